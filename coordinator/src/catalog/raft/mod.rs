//! The catalog among several coordinators: what openraft needs of us, and what
//! the rest of the coordinator sees of it. One coordinator is a majority of one.

pub mod changes;
pub mod core;
pub mod file;
mod handover;
pub mod machine;
pub mod members;
pub mod peers;
pub mod succession;
pub mod types;

pub mod log;

pub use log::LogStore;
