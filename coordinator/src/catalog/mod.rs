//! All metadata as one deterministic state machine: a [`Command`] goes in, a
//! new [`State`] comes out, and a redb store makes the commands durable.
//!
//! `command` and `state` know no clock and do no I/O; only `store` does.

pub mod command;
pub mod state;
pub mod store;

mod disk;

pub use command::{Command, ExternalTable, Outcome, View, WorkerRecord, WriteRecord};
pub use state::{CatalogError, State};
pub use store::{Catalog, Dropped};
