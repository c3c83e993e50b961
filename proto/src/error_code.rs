//! What went wrong, by what the caller can do about it, and the one place
//! where that becomes a gRPC status, an SQLSTATE or an exit code.

use serde::{Deserialize, Serialize};
use std::fmt;

use datafusion::common::DataFusionError;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

/// What the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u32)]
pub enum ErrorCode {
    /// The statement or an option is wrong: change it.
    Invalid = 1,
    /// The named thing does not exist.
    NotFound = 2,
    /// The named thing exists already.
    AlreadyExists = 3,
    /// Shoal cannot do this.
    Unsupported = 4,
    /// A limit was reached (memory, disk, queue): ask for less, or raise it.
    Exhausted = 5,
    /// Somebody stopped it.
    Cancelled = 6,
    /// It took longer than it may.
    Timeout = 7,
    /// A node cannot be reached: another replica may answer.
    Unavailable = 8,
    /// Bytes are not what was written: another replica may have them.
    Corrupt = 9,
    /// A defect in Shoal or below it.
    Internal = 10,
    /// The credentials are wrong or missing.
    Unauthenticated = 11,
    /// The node is stopping and did nothing: another one does it.
    Stopping = 12,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: [Self; 12] = [
        Self::Invalid,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Unsupported,
        Self::Exhausted,
        Self::Cancelled,
        Self::Timeout,
        Self::Unavailable,
        Self::Corrupt,
        Self::Internal,
        Self::Unauthenticated,
        Self::Stopping,
    ];

    /// The code with this number; an unknown number is a defect of a peer.
    pub fn from_number(number: u32) -> Self {
        Self::ALL.into_iter().find(|code| *code as u32 == number).unwrap_or(Self::Internal)
    }

    /// Whether another attempt, on other replicas, can cure it.
    pub fn is_retryable(self) -> bool {
        match self {
            Self::Unavailable | Self::Corrupt | Self::Stopping => true,
            Self::Invalid
            | Self::NotFound
            | Self::AlreadyExists
            | Self::Unsupported
            | Self::Exhausted
            | Self::Cancelled
            | Self::Timeout
            | Self::Internal
            | Self::Unauthenticated => false,
        }
    }

    /// The gRPC status code.
    pub fn grpc(self) -> Code {
        match self {
            Self::Invalid => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::AlreadyExists => Code::AlreadyExists,
            Self::Unsupported => Code::Unimplemented,
            Self::Exhausted => Code::ResourceExhausted,
            Self::Cancelled => Code::Cancelled,
            Self::Timeout => Code::DeadlineExceeded,
            Self::Unavailable | Self::Stopping => Code::Unavailable,
            Self::Corrupt => Code::DataLoss,
            Self::Internal => Code::Internal,
            Self::Unauthenticated => Code::Unauthenticated,
        }
    }

    /// The code that a gRPC status stands for.
    pub fn from_grpc(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => Self::Invalid,
            Code::NotFound => Self::NotFound,
            Code::AlreadyExists => Self::AlreadyExists,
            Code::Unimplemented => Self::Unsupported,
            Code::ResourceExhausted => Self::Exhausted,
            Code::Cancelled => Self::Cancelled,
            Code::DeadlineExceeded => Self::Timeout,
            Code::Unavailable | Code::Aborted => Self::Unavailable,
            Code::DataLoss => Self::Corrupt,
            Code::Unauthenticated | Code::PermissionDenied => Self::Unauthenticated,
            Code::Ok | Code::Unknown | Code::Internal => Self::Internal,
        }
    }

    /// The SQLSTATE class and code that comes nearest.
    pub fn sqlstate(self) -> &'static str {
        match self {
            Self::Invalid => "42000",
            Self::NotFound => "42P01",
            Self::AlreadyExists => "42P07",
            Self::Unsupported => "0A000",
            Self::Exhausted => "53000",
            Self::Cancelled => "57014",
            Self::Timeout => "57014",
            Self::Unavailable => "08006",
            Self::Corrupt => "XX001",
            Self::Internal => "XX000",
            Self::Unauthenticated => "28000",
            Self::Stopping => "57P01",
        }
    }
}

/// An error that can cross the wire and keep what matters: its code and the
/// worker where it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What the caller does next.
    pub code: ErrorCode,
    /// What happened, for a person.
    pub message: String,
    /// The worker that failed or could not be reached, where there is one.
    pub worker: Option<String>,
}

impl Failure {
    /// An error that no worker is to blame for.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), worker: None }
    }

    /// The same error, blamed on `worker` unless a worker is named already.
    pub fn at(mut self, worker: &str) -> Self {
        self.worker.get_or_insert_with(|| worker.to_owned());
        self
    }

    /// Finds the failure in a DataFusion error, or makes one of it.
    pub fn from_datafusion(error: &DataFusionError) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = source {
            if let Some(failure) = cause.downcast_ref::<Self>() {
                return failure.clone();
            }
            if let Some(status) = cause.downcast_ref::<Status>() {
                return Self::from_status(status);
            }
            source = cause.source();
        }
        // `DataFusionError::source` stops at some wrappers; its own root
        // finder sees through them.
        if let DataFusionError::External(inner) = error.find_root()
            && let Some(failure) = inner.downcast_ref::<Self>()
        {
            return failure.clone();
        }
        let code = match error.find_root() {
            DataFusionError::Plan(_)
            | DataFusionError::SQL(..)
            | DataFusionError::SchemaError(..)
            | DataFusionError::Configuration(_)
            | DataFusionError::ArrowError(..)
            | DataFusionError::Execution(_)
            | DataFusionError::Diagnostic(..) => ErrorCode::Invalid,
            DataFusionError::NotImplemented(_) => ErrorCode::Unsupported,
            DataFusionError::ResourcesExhausted(_) => ErrorCode::Exhausted,
            DataFusionError::ObjectStore(inner) => match inner.as_ref() {
                datafusion::object_store::Error::NotFound { .. } => ErrorCode::NotFound,
                _ => ErrorCode::Internal,
            },
            _ => ErrorCode::Internal,
        };
        Self::new(code, plainly(&error.strip_backtrace()))
    }

    /// The failure that a gRPC status stands for.
    pub fn from_status(status: &Status) -> Self {
        let mut failure = Self::new(ErrorCode::from_grpc(status.code()), status.message());
        if failure.code == ErrorCode::Unavailable && status.metadata().contains_key(STOPPING_HEADER) {
            failure.code = ErrorCode::Stopping;
        }
        failure.worker =
            status.metadata().get(WORKER_HEADER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        failure
    }

    /// As [`Failure::from_status`], where another node can be asked as well. What
    /// names no worker and is internal or cancelled mostly comes from the
    /// connection. A coordinator names no worker either: what is internal to it
    /// counts as a lost connection, too.
    pub fn of_call(status: &Status) -> Self {
        let mut failure = Self::from_status(status);
        if failure.worker.is_none() && matches!(failure.code, ErrorCode::Internal | ErrorCode::Cancelled) {
            failure.code = ErrorCode::Unavailable;
            failure.message = format!("connection lost: {}", failure.message);
        }
        failure
    }

    /// The gRPC status for this failure; the worker travels as metadata, and so
    /// does what gRPC has no code for.
    pub fn to_status(&self) -> Status {
        let mut status = Status::new(self.code.grpc(), self.message.clone());
        if self.code == ErrorCode::Stopping {
            status.metadata_mut().insert(STOPPING_HEADER, MetadataValue::from_static("1"));
        }
        if let Some(worker) = &self.worker
            && let Ok(value) = worker.parse()
        {
            status.metadata_mut().insert(WORKER_HEADER, value);
        }
        status
    }
}

/// A message without the words in front of it that say where inside the
/// engine it arose; the code says what kind it is.
fn plainly(message: &str) -> &str {
    let mut rest = message;
    loop {
        let before = rest;
        for words in [
            "Error during planning: ",
            "Schema error: ",
            "Arrow error: ",
            "Execution error: ",
            "Invalid or Unsupported Configuration: ",
            "This feature is not implemented: ",
        ] {
            rest = rest.strip_prefix(words).unwrap_or(rest);
        }
        if rest.starts_with("Optimizer rule '")
            && let Some((_rule, cause)) = rest.split_once("caused by")
        {
            rest = cause.trim_start();
        }
        if rest == before {
            return if rest.is_empty() { message } else { rest };
        }
    }
}

const WORKER_HEADER: &str = "x-shoal-worker";
/// Tells a node that is stopping from one that cannot be reached.
const STOPPING_HEADER: &str = "x-shoal-stopping";

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.worker {
            Some(worker) => write!(f, "worker {worker}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for DataFusionError {
    fn from(failure: Failure) -> Self {
        Self::External(Box::new(failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_node_said_comes_from_the_connection() {
        let broken = Failure::of_call(&Status::unknown("transport error"));
        assert_eq!(broken.code, ErrorCode::Unavailable);
        let told = Failure::new(ErrorCode::Internal, "a bug").at("w1");
        assert_eq!(Failure::of_call(&told.to_status()), told);
        let missing = Failure::new(ErrorCode::NotFound, "no such segment");
        assert_eq!(Failure::of_call(&missing.to_status()), missing);
    }

    #[test]
    fn messages_begin_with_what_is_wrong() {
        let cast = "Optimizer rule 'simplify_expressions' failed\ncaused by\nArrow error: Cast error: Cannot cast 'x'";
        assert_eq!(plainly(cast), "Cast error: Cannot cast 'x'");
        assert_eq!(plainly("Error during planning: table 't' not found"), "table 't' not found");
        assert_eq!(plainly("table 't' not found"), "table 't' not found");
        assert_eq!(plainly("Arrow error: "), "Arrow error: ");
    }

    #[test]
    fn only_what_other_replicas_may_cure_is_retryable() {
        let expected = [
            (ErrorCode::Invalid, false),
            (ErrorCode::NotFound, false),
            (ErrorCode::AlreadyExists, false),
            (ErrorCode::Unsupported, false),
            (ErrorCode::Exhausted, false),
            (ErrorCode::Cancelled, false),
            (ErrorCode::Timeout, false),
            (ErrorCode::Unavailable, true),
            (ErrorCode::Corrupt, true),
            (ErrorCode::Internal, false),
            (ErrorCode::Unauthenticated, false),
            (ErrorCode::Stopping, true),
        ];
        assert_eq!(expected, ErrorCode::ALL.map(|code| (code, code.is_retryable())));
    }

    #[test]
    fn codes_survive_the_wire() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code as u32), code);
            let failure = Failure::new(code, "m").at("w1");
            assert_eq!(Failure::from_status(&failure.to_status()), failure);
        }
    }

    #[test]
    fn a_failure_is_found_below_contexts() {
        let failure = Failure::new(ErrorCode::Unavailable, "gone").at("w2");
        let error = DataFusionError::from(failure.clone()).context("outer").context("outermost");
        assert_eq!(Failure::from_datafusion(&error), failure);
    }
}
