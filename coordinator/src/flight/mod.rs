//! The Arrow Flight SQL front door: it translates between the protocol and
//! [`crate::Engine`], and decides nothing about tables or queries.
//!
//! A client prepares or names a statement, is told where to fetch
//! (`GetFlightInfo`) and fetches (`DoGet`). A query starts when it is
//! fetched, so that nothing runs for a client that never comes; a statement
//! that changes something runs once, at `GetFlightInfo` or at `DoPut`.

mod actions;
mod connection;
mod door;
mod failures;
mod home;
mod ingest;
mod locations;
mod metadata;
mod parameters;
mod queries;
mod query_ticket;
mod rows;
mod sessions;
mod sql_info;
mod status;
mod tickets;
mod type_info;

pub use connection::{Connection, ConnectionDetails, connections};
pub use door::FlightDoor;
pub use rows::{FlightStream, encoded, result_schema};
