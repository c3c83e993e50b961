//! Sample data: TPC-H, generated in the process, with the tables' statements
//! and the benchmark's 22 queries. Nothing here is read from disk.

mod queries;
mod tpch;

pub use queries::{QUERIES, query};
pub use tpch::{TpchBatches, TpchTable, tpch_batches, tpch_schema};
