//! Shoal's coordinator: the front doors, the catalog, membership and
//! placement, and the life of a query and of a write.
//!
//! It never reads a worker's disk and never runs the leaves of a query's plan
//! itself: it plans, routes, merges and retries. What it reads of segments, from
//! workers, it writes anew: small ones that become one.

pub mod catalog;
pub mod cluster;
pub mod config;
pub mod engine;
pub mod error;
pub mod files;
pub mod flight;
pub mod node;
pub mod query;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod sql;
pub mod write;

pub use config::CoordinatorConfig;
pub use engine::{Engine, HeadStart, Ingest, IngestMode, Prepared, QueryOutput};
pub use error::Error;
pub use session::Session;
