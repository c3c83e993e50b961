//! Shoal's contract at rest: what a table, a shard and a segment are, how a
//! row finds its shard, how rows are loaded, how segments are written and checked,
//! and sample data.
//!
//! Nothing here talks to a coordinator, but for bytes of files, or decides where
//! shards live.

pub mod block_sums;
pub mod byte_size;
pub mod checksum;
pub mod data_dir;
pub mod error;
pub mod file_stream;
pub mod functions;
pub mod import_store;
pub mod key_hash;
pub mod load;
pub mod object_stores;
pub mod operators;
pub mod packed_statistics;
mod page_cache;
pub mod plain_rows;
pub mod sample;
pub mod scan_counter;
pub mod scan_fault;
pub mod segment;
pub mod segment_writer;
pub mod shard_store;
pub mod sketch;
pub mod table;

pub use byte_size::parse_bytes;
pub use data_dir::DataDir;
pub use error::DataError;
pub use import_store::{ImportRoots, ImportStore};
pub use key_hash::KeyHash;
pub use packed_statistics::PackedStatistics;
pub use scan_counter::{CountedReaders, Scanned, counted_segment};
pub use segment::{ColumnStatistics, Segment, SegmentName, StatValue};
pub use segment_writer::{EncodedSegment, SegmentWriter, SortedWriter};
pub use shard_store::{Locate, Located, Replica, ShardStore};
pub use sketch::Sketches;
pub use table::{ReplicaCount, Table, TableLayout};
