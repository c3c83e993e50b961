//! All metadata as one deterministic state machine: a [`Command`] goes in, a
//! new [`State`] comes out. The coordinators agree on the order of commands
//! through a log (`raft`), which each of them keeps in a redb file.
//!
//! `command` and `state` know no clock and do no I/O.

pub mod command;
pub mod handle;
pub mod state;

mod disk;
pub mod raft;

pub use command::{COMMANDS, Command, ExternalTable, OnDisk, Outcome, View, WorkerRecord, WriteRecord};
pub use handle::{Catalog, CatalogOptions};
pub use raft::changes::{ChangeError, Number, Settled, bytes_in_change, check_change_bytes};
pub use raft::core::{Answer, Coordinator, Enlist};
pub use raft::machine::Dropped;
pub use raft::peers::Call;
pub use raft::types::{CoordinatorId, Proposal, TypeConfig, shown_term};
pub use state::{CatalogError, ColumnBounds, Contents, State, TableFacts};
