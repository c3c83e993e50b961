//! What can go wrong in a worker, by cause, and what the caller does next.

use datafusion::common::DataFusionError;
use shoal_data::DataError;
use shoal_proto::{ErrorCode, Failure};

/// An error of a worker.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting or a request that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The segment is not here.
    #[error("segment {0} is not on this worker")]
    NotHere(String),
    /// Bytes that are not what was announced.
    #[error("segment {name} is corrupt: {what}")]
    Corrupt {
        /// The segment.
        name: String,
        /// What does not match.
        what: String,
    },
    /// The disk has no room.
    #[error("no room for segment {name} of {bytes} bytes: the disk of {dir} is full; free some space there")]
    DiskFull {
        /// The segment.
        name: String,
        /// Its length.
        bytes: u64,
        /// Where it was to be.
        dir: String,
    },
    /// The disk has room for it, and not for what must stay free beside it.
    #[error(
        "no room for segment {name} of {bytes} bytes: {free_bytes} bytes are free on the disk of {dir}, and \
         {keep_free_bytes} must stay free beside it; free some space there"
    )]
    NoRoom {
        /// The segment.
        name: String,
        /// Its length.
        bytes: u64,
        /// What must stay free.
        keep_free_bytes: u64,
        /// What is free.
        free_bytes: u64,
        /// Where it was to be.
        dir: String,
    },
    /// This worker takes no segments any more.
    #[error("segment {0} is not taken: this worker is drained and about to stop")]
    Closed(String),
    /// A defect of Shoal.
    #[error("{0} (this is a defect in Shoal; please report it)")]
    Internal(String),
    /// From another node.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// From data at rest.
    #[error(transparent)]
    Data(#[from] DataError),
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

impl Error {
    /// Wraps an I/O error with the operation that failed.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }

    /// What the caller does next.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::Invalid,
            Self::NotHere(_) => ErrorCode::NotFound,
            Self::Corrupt { .. } => ErrorCode::Corrupt,
            Self::DiskFull { .. } | Self::NoRoom { .. } => ErrorCode::Exhausted,
            Self::Closed(_) => ErrorCode::Stopping,
            Self::Internal(_) => ErrorCode::Internal,
            Self::Failure(failure) => failure.code,
            Self::Data(error) => error.code(),
            Self::Io { source, .. } if shoal_data::data_dir::is_full(source) => ErrorCode::Exhausted,
            Self::Io { .. } => ErrorCode::Internal,
        }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Self::Failure(Failure::from_datafusion(&error))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Failure(failure) => failure,
            other => Self::new(other.code(), other.to_string()),
        }
    }
}
