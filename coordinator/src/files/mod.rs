//! Files of the server and of object stores: which may be touched, what is in
//! them, and COPY's two directions.
//!
//! Nothing outside the import roots is opened, listed or told apart from what
//! does not exist. Nothing here knows of shards.

mod external;
mod infer;
mod location;
mod read;
mod sink;
mod write;

pub use external::{ExternalFiles, external_table};
pub use infer::infer_columns;
pub use location::{Location, expand, resolve};
pub use read::{Opened, open_files};
pub use shoal_data::ImportRoots;
pub use shoal_data::load::{Compression, CsvOptions, FileFormat, FileKind};
pub use write::write_file;

#[cfg(test)]
mod tests;
