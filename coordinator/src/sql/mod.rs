//! Statements of ours on top of DataFusion's: what they say, and the names
//! that they resolve. Nothing is executed here.

mod catalog_list;
mod config;
mod hints;
mod layout;
mod looked_up;
mod parse;
mod system_tables;

pub use catalog_list::SnapshotCatalogs;
pub(crate) use catalog_list::VIEW_DEPTH_MAX;
pub use config::{RESULT_CACHE_SETTING, ShoalConfig};
pub use hints::{with_function_hint, with_hint};
pub use layout::{TableOptions, complete_layout, plain_columns};
pub use looked_up::{LookedUp, Meaning};
pub use parse::{Copy, CopyDirection, CopySource, Statement, parse};
pub use system_tables::{SYSTEM_SCHEMA, SystemTables};

pub(crate) use parse::fold_identifier;
