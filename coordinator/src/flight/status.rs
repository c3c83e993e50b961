//! Errors as gRPC statuses that clients can receive: short enough for the
//! headers they travel in, and never a dead stream where something panicked.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use shoal_proto::{ErrorCode, Failure};
use tonic::Status;

/// Bytes of a message that are sent. A status travels in a header, which
/// clients limit to 8 KiB, and each byte may take three there.
const MESSAGE_BYTES_MAX: usize = 2000;

/// The status for an error. A worker is named in the message, as clients of
/// Flight SQL see nothing else.
pub(super) fn status(error: impl Into<Failure>) -> Status {
    let failure = error.into();
    Failure::new(failure.code, shortened(failure.to_string())).to_status()
}

/// The status for a request that is wrong.
pub(super) fn invalid(message: impl Into<String>) -> Status {
    status(Failure::new(ErrorCode::Invalid, message))
}

/// The status for something that Shoal does not do.
pub(super) fn unsupported(message: impl Into<String>) -> Status {
    status(Failure::new(ErrorCode::Unsupported, message))
}

/// The status for something that is gone.
pub(super) fn not_found(message: impl Into<String>) -> Status {
    status(Failure::new(ErrorCode::NotFound, message))
}

/// The status for a defect.
pub(super) fn internal(message: impl std::fmt::Display) -> Status {
    status(crate::Error::Internal(message.to_string()))
}

/// Runs `work`; a panic in it becomes a status.
pub(super) async fn guarded<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match AssertUnwindSafe(work).catch_unwind().await {
        Ok(outcome) => outcome,
        Err(panic) => Err(panicked(panic.as_ref())),
    }
}

/// The status for a caught panic.
pub(super) fn panicked(panic: &(dyn Any + Send)) -> Status {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = text, "panic while answering a client");
    internal(format!("panic: {text}"))
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let left_out = message.len() - MESSAGE_BYTES_MAX;
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push_str(&format!("... ({left_out} bytes left out)"));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = invalid("ü".repeat(5000));
        assert!(status.message().len() < MESSAGE_BYTES_MAX + 40);
        assert!(status.message().ends_with("bytes left out)"));
    }

    #[test]
    fn a_worker_is_named_in_the_message() {
        let failure = Failure::new(ErrorCode::Unavailable, "gone").at("w2");
        assert_eq!(status(failure).message(), "worker w2: gone");
    }

    #[test]
    fn who_is_stopping_says_so_to_clients_that_look_for_it() {
        let status = status(crate::Error::Stopping);
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(Failure::from_status(&status).code, ErrorCode::Stopping);
        let gone = super::status(Failure::new(ErrorCode::Unavailable, "gone"));
        assert_eq!(Failure::from_status(&gone).code, ErrorCode::Unavailable);
    }

    #[tokio::test]
    async fn a_panic_becomes_a_status() {
        let outcome: Result<(), _> = guarded(async { panic!("boom {}", 7) }).await;
        let status = outcome.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Internal);
        assert!(status.message().contains("boom 7"), "{status}");
    }
}
