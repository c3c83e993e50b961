//! What can go wrong with data at rest.

use datafusion::common::DataFusionError;
use shoal_proto::{ErrorCode, Failure};

/// An error about tables, segments or their bytes.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A table option or shard key that cannot be.
    #[error("{0}")]
    Layout(String),
    /// Bytes that are not what was written.
    #[error("segment {name} is corrupt: {what}")]
    Corrupt {
        /// The segment.
        name: String,
        /// What does not match.
        what: String,
    },
    /// The name does not name a segment.
    #[error("`{0}` is not a segment name (table/shard/segment.parquet)")]
    Name(String),
    /// Encoding or decoding Parquet.
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
    /// Sorting, hashing or splitting batches.
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    /// Generating or reading through DataFusion.
    #[error(transparent)]
    DataFusion(#[from] DataFusionError),
    /// A file operation.
    #[error("{what}: {source}")]
    Io {
        /// The operation and the file.
        what: String,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
}

impl DataError {
    /// Wraps an I/O error with the operation that failed.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// What the caller does next.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Layout(_) | Self::Name(_) => ErrorCode::Invalid,
            Self::Corrupt { .. } => ErrorCode::Corrupt,
            Self::Parquet(_) | Self::Arrow(_) => ErrorCode::Internal,
            Self::DataFusion(error) => Failure::from_datafusion(error).code,
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::Exhausted,
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::Internal,
            },
        }
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
