//! What can go wrong between the shell and a coordinator, by what the shell
//! does next.

use std::error::Error as _;
use std::io;

use arrow::error::ArrowError;
use arrow_flight::error::FlightError;
use shoal_proto::{ErrorCode, Failure};
use tonic::{Code, Status};

/// An error of the shell.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The command line, an address or a backslash command is wrong.
    #[error("{0}")]
    Usage(String),
    /// Nobody answers.
    #[error("cannot connect to {address}: {cause}")]
    Unreachable {
        /// Where nobody answers.
        address: String,
        /// What the network says.
        cause: String,
    },
    /// The connection broke while something was under way.
    #[error("connection lost: {cause}")]
    Lost {
        /// What the network says.
        cause: String,
    },
    /// The coordinator does not know the session any more.
    #[error("{0}")]
    SessionEnded(Failure),
    /// The coordinator is stopping, and did nothing.
    #[error("{0}")]
    Stopping(Failure),
    /// The coordinator refused the statement, or it failed.
    #[error("{0}")]
    Statement(Failure),
    /// A local file.
    #[error("{what}: {source}")]
    File {
        /// The operation and the file.
        what: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// What is in a local file, or cannot be put into one.
    #[error("{0}")]
    Content(String),
    /// Rows could not be written out; a broken pipe is the usual cause.
    #[error("cannot write the result: {0}")]
    Output(#[source] io::Error),
    /// The person pressed Ctrl-C.
    #[error("cancelled")]
    Cancelled,
}

impl ClientError {
    /// A local file operation that failed.
    pub fn file(what: impl Into<String>, source: io::Error) -> Self {
        Self::File { what: what.into(), source }
    }

    /// Whether the session is gone, with its connection or without, or is of no
    /// more use.
    pub fn session_is_gone(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::SessionEnded(_) | Self::Stopping(_))
    }

    /// Whether the session is gone, and the coordinator did nothing of what it
    /// was asked for.
    pub fn nothing_was_done(&self) -> bool {
        matches!(self, Self::SessionEnded(_) | Self::Stopping(_))
    }

    /// The exit status that tells scripts what kind of error it was: 1 the
    /// statement, 2 the connection, 3 the usage, 130 Ctrl-C.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 3,
            Self::Unreachable { .. } | Self::Lost { .. } | Self::SessionEnded(_) | Self::Stopping(_) => 2,
            Self::Statement(_) | Self::File { .. } | Self::Content(_) => 1,
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Output(_) => 1,
            Self::Cancelled => 130,
        }
    }

    /// The SQLSTATE, where there is one.
    pub fn sqlstate(&self) -> Option<&'static str> {
        match self {
            Self::SessionEnded(failure) | Self::Stopping(failure) | Self::Statement(failure) => {
                Some(failure.code.sqlstate())
            }
            Self::Unreachable { .. } | Self::Lost { .. } => Some(ErrorCode::Unavailable.sqlstate()),
            Self::Cancelled => Some(ErrorCode::Cancelled.sqlstate()),
            Self::Usage(_) | Self::File { .. } | Self::Content(_) | Self::Output(_) => None,
        }
    }

    /// An answer that does not follow the protocol.
    pub(super) fn protocol(what: &str) -> Self {
        Self::Statement(Failure::new(
            ErrorCode::Internal,
            format!("the coordinator's answer is not as expected: {what}"),
        ))
    }
}

impl From<Status> for ClientError {
    /// A status with a source was made on this side, by the transport: the
    /// coordinator said nothing.
    fn from(status: Status) -> Self {
        if let Some(source) = status.source()
            && status.code() != Code::OutOfRange
            && status.code() != Code::ResourceExhausted
        {
            return Self::Lost { cause: root_cause(source) };
        }
        let failure = Failure::from_status(&status);
        match status.code() {
            Code::Unauthenticated => Self::SessionEnded(failure),
            _ if failure.code == ErrorCode::Stopping => Self::Stopping(failure),
            _ => Self::Statement(failure),
        }
    }
}

impl From<FlightError> for ClientError {
    fn from(error: FlightError) -> Self {
        match error {
            FlightError::Tonic(status) => Self::from(*status),
            FlightError::Arrow(error) => Self::from(error),
            FlightError::ExternalError(error) => Self::protocol(&error.to_string()),
            other => Self::protocol(&other.to_string()),
        }
    }
}

impl From<ArrowError> for ClientError {
    fn from(error: ArrowError) -> Self {
        Self::protocol(&error.to_string())
    }
}

/// The innermost message of an error, which is the one that says something.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    // `Connection refused (os error 111)`: the number helps nobody.
    match text.split_once(" (os error") {
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_from_the_coordinator_is_not_a_lost_connection() {
        let error = ClientError::from(Status::unavailable("no live replica of shard 3"));
        assert_eq!((error.exit_code(), error.sqlstate()), (1, Some("08006")));
        assert_eq!(error.to_string(), "no live replica of shard 3");
    }

    #[test]
    fn a_status_of_the_transport_is_a_lost_connection() {
        let source = io::Error::from_raw_os_error(111);
        let error = ClientError::from(Status::from_error(Box::new(source)));
        assert_eq!(error.exit_code(), 2);
        assert_eq!(error.to_string(), "connection lost: Connection refused");
    }

    #[test]
    fn an_unknown_token_is_an_ended_session() {
        let error = ClientError::from(Status::unauthenticated("session expired"));
        assert!(matches!(error, ClientError::SessionEnded(_)));
    }

    #[test]
    fn a_coordinator_that_is_stopping_is_left() {
        let failure = Failure::new(ErrorCode::Stopping, "stopping");
        let error = ClientError::from(failure.to_status());
        assert!(matches!(error, ClientError::Stopping(_)) && error.session_is_gone());
        assert!(error.nothing_was_done());
        assert!(!ClientError::from(Status::unavailable("no live replica")).session_is_gone());
    }
}
