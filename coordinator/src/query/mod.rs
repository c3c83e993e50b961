//! The life of a query: admitted, seen through one frozen view for each
//! attempt, planned, run, tried again, accounted for.
//!
//! No SQL text is read here and nothing of any protocol.

mod admission;
mod attempt;
mod certificate;
mod compact_sorts;
mod each_task;
mod explain;
mod filter_share;
mod group_late;
mod group_once;
mod guard;
mod halves;
mod in_place;
mod join_order;
mod join_room;
mod keepable;
mod late_materialization;
mod leaves;
mod limited_side;
mod merge_joins;
mod merge_memory;
mod merged_rows;
mod plain_text;
mod planned_reads;
mod planner_rules;
mod pruning;
mod registry;
mod result_cache;
mod retry;
mod rewrite;
mod row_by_row;
mod rows_stay;
mod runtime_filters;
mod safe_pushdown;
mod scan_tasks;
mod session_state;
mod shard_streams;
mod shard_table;
mod timeline;
#[cfg(test)]
mod told;
mod view;
mod weight;
mod whole_plan;
mod yielding;

pub use admission::{Admission, Class, Need, Permit, Priority, Ticket};
pub use attempt::{Attempts, Pinned, QueryStream};
pub use certificate::{Certificate, TableRead};
pub use explain::{Moved, Scanned, TimeSplit, Work, explain, explain_analyze};
pub use join_room::Joins;
pub(crate) use keepable::{fleeting_part, never_kept};
pub use merged_rows::Merge;
pub use registry::{QueryRecord, QueryState, Registry, Running};
pub use result_cache::{CacheUsage, Filling, Grounds, KeptResult, ResultCache, ResultKey};
pub(crate) use rewrite::reads_own_tables;
pub use rewrite::{as_meant, reads_data};
pub use rows_stay::{LastTasks, Refusal, Stay, TakesRows};
pub(crate) use session_state::tables_of;
pub use session_state::{Failover, Planning, StateTemplate, TIME_ZONE};
pub use shard_table::ShardTable;
pub use timeline::{Elapsed, Timeline};
pub use view::{View, ViewWorker};
pub use weight::{Weight, weigh};
pub(crate) use whole_plan::{KeptWhole, is_brief};
