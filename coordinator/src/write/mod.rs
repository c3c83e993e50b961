//! The life of a write until it can be committed: its rows become segments that are
//! durable on the workers of their shards (`shoal_data::load`), here or on the
//! workers; and segments that are written anew together.
//!
//! Nothing here changes the catalog: the caller commits what was staged, all
//! of it or nothing.

mod ask;
mod compact;
mod deals;
mod holders;
mod load;
mod rows;
mod spread;
mod tasks;

pub use compact::compact;
pub use holders::SegmentHolders;
pub use load::{Staged, WriteContext, write};
pub use rows::RowsLoad;
pub use shoal_data::load::WriteProgress;
pub use spread::{Load, Texts, spread};

#[cfg(test)]
mod tests;
