//! EXPLAIN and EXPLAIN ANALYZE: stages, their workers and what they did.

mod report;
mod split;
mod work;

pub use report::{explain, explain_analyze};
pub use split::TimeSplit;
pub use work::{Moved, Scanned, Work};
