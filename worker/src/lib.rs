//! Shoal's worker: it holds segments, copies them from and to its peers, makes
//! them of the rows of files, and runs the tasks of queries.
//!
//! It never changes the catalog, and never decides what it should hold: the
//! coordinators tell it.

pub mod config;
pub mod coordinators;
mod disk_id;
mod drain;
pub mod error;
pub mod execute;
pub mod heartbeat;
pub mod identity;
pub mod lanes;
pub mod loads;
pub mod locate;
pub mod node;
mod pace;
mod pulse;
pub mod replicate;
pub mod reports;
pub mod scrub;
pub mod segment_dir;
pub mod segments;
pub mod session;

pub use config::WorkerConfig;
pub use error::Error;
