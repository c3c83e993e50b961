//! EXPLAIN and EXPLAIN ANALYZE: stages, their workers and what they did.

mod report;

pub use report::{explain, explain_analyze};
