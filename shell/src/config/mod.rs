//! Where a node's settings come from: flags, then `SHOAL_*` environment
//! variables, then a TOML file, then defaults.
//!
//! Nothing here starts anything or knows what a setting does.

mod error;
mod layers;
mod logging;
mod node;
mod source;
mod value;

pub use error::ConfigError;
pub use layers::Layers;
pub use logging::start_logging;
pub use node::{
    CoordinatorSettings, LogFormat, LogSettings, NodeSettings, WorkerSettings, cores, memory_for_queries,
    share_of_memory,
};
pub use source::{Resolved, Source};
pub use value::{ByteSize, Value};
