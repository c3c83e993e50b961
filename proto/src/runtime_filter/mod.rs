//! Keys of the built side of a join, on their way to the tasks that read its
//! other side: what one task has, what all have together, and how it travels.
//! It goes over the streams that carry plans, so it ends with its attempt.
//!
//! Where filters are gathered and applied is not decided here. A filter that
//! never comes leaves out no row, and whoever knows that it will not come says so:
//! the filter is then one of any key.

mod bloom;
mod collector;
mod key_filter;
mod relay;
mod task_filters;
mod union;

pub use bloom::Bloom;
pub use collector::{COLLECTOR_BYTES, KeyCollector};
pub use key_filter::{Bounds, FilterId, KeyFilter};
pub use relay::RuntimeFilterRelay;
pub use task_filters::{Asker, RuntimeFilters};
