//! What can go wrong in a coordinator, by cause, and what the caller does
//! next.

use datafusion::common::DataFusionError;
use shoal_data::DataError;
use shoal_proto::{ErrorCode, Failure};

/// An error of the coordinator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The statement cannot be done as it is written.
    #[error("{0}")]
    Invalid(String),
    /// The named thing does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The named thing exists already.
    #[error("{0}")]
    AlreadyExists(String),
    /// Shoal cannot do this.
    #[error("{0}")]
    Unsupported(String),
    /// A limit was reached: queue, memory, disk or size.
    #[error("{0}")]
    Exhausted(String),
    /// Somebody stopped it.
    #[error("{0}")]
    Cancelled(String),
    /// It took longer than it may.
    #[error("{0}")]
    Timeout(String),
    /// No worker, or too few, can do it now.
    #[error("{0}")]
    Unavailable(String),
    /// Who asks is not known.
    #[error("{0}")]
    Unauthenticated(String),
    /// This coordinator is stopping, and did nothing of what it was asked for.
    #[error("this coordinator is stopping and takes no new statements: connect to another one")]
    Stopping,
    /// A defect of Shoal.
    #[error("{0} (this is a defect in Shoal; please report it)")]
    Internal(String),
    /// From a worker, or from inside a plan.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// From data at rest.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The catalog's store failed.
    #[error("catalog store: {0}")]
    Store(#[source] Box<redb::Error>),
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
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::AlreadyExists(_) => ErrorCode::AlreadyExists,
            Self::Unsupported(_) => ErrorCode::Unsupported,
            Self::Exhausted(_) => ErrorCode::Exhausted,
            Self::Cancelled(_) => ErrorCode::Cancelled,
            Self::Timeout(_) => ErrorCode::Timeout,
            Self::Unavailable(_) => ErrorCode::Unavailable,
            Self::Unauthenticated(_) => ErrorCode::Unauthenticated,
            Self::Stopping => ErrorCode::Stopping,
            Self::Internal(_) | Self::Store(_) => ErrorCode::Internal,
            Self::Failure(failure) => failure.code,
            Self::Data(error) => error.code(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorCode::Exhausted,
                std::io::ErrorKind::NotFound => ErrorCode::NotFound,
                _ => ErrorCode::Internal,
            },
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

impl From<Error> for DataFusionError {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        Failure::from(error).to_status()
    }
}
