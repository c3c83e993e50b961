//! The life of a write until it can be committed: rows are brought to the
//! table's columns, dealt to shards, encoded once per segment and made
//! durable on the workers that should hold them; and segments that are written
//! anew together.
//!
//! Nothing here changes the catalog: the caller commits what was staged, all
//! of it or nothing.

mod compact;
mod holders;
mod load;
mod progress;
mod rows;
mod shard_writer;
mod stage;

pub use compact::compact;
pub use holders::SegmentHolders;
pub use load::{BUFFER_BYTES_DEFAULT, Staged, WriteContext, write};
pub use progress::WriteProgress;
pub use rows::{RowShape, is_loadable};

#[cfg(test)]
mod tests;
