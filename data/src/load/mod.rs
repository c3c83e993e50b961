//! How rows become durable segments, on a coordinator or on a worker: files are
//! read, rows brought to a table's columns, dealt to shards, encoded once per
//! segment and sent to the workers that should hold them.
//!
//! Nothing here knows the catalog: whoever calls commits what was staged, all of
//! it or nothing.

mod csv_file;
mod file_piece;
mod format;
mod holders;
mod json_file;
mod pieces;
mod progress;
mod row_groups;
mod row_shape;
mod shard_writer;
mod source;
mod stage;
mod text;
mod version;
mod wire;
mod write;

pub use csv_file::{CsvFile, arrow_format};
pub use file_piece::FilePiece;
pub use format::{Compression, CsvOptions, FileFormat, FileKind};
pub use holders::{Announce, Holders};
pub use json_file::JsonFile;
pub use pieces::{BATCH_BYTES, BATCH_ROWS, Piece, Sink, read_pieces};
pub use progress::WriteProgress;
pub use row_groups::{RowGroup, read_footer, row_groups};
pub use row_shape::RowShape;
pub use source::{Origin, SourceFile, SourceReader, store_failure};
pub use stage::{Conditions, Durable, Written, stage};
pub use text::text;
pub use version::Version;
pub use wire::{from_wire, to_wire};
pub use write::{WriteContext, WriteLimits, write};
