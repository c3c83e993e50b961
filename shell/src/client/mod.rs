//! The shell's side of Arrow Flight SQL: one connection, one session, and the
//! statements, streams and ingests that run in it.
//!
//! Nothing here writes to a terminal or knows what a person typed.

mod address;
mod addresses;
mod connection;
mod error;
mod failover;
mod ingest;
mod names;
mod progress;
mod statement;

pub use address::Address;
pub use addresses::Addresses;
pub use connection::Client;
pub use error::ClientError;
pub use ingest::IngestTarget;
pub(crate) use names::text_rows;
pub use names::{Names, Relation};
pub use progress::Progress;
pub use statement::{Rows, Statement};
