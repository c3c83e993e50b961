//! Ctrl-C.

use futures::FutureExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::ClientError;

/// Hears Ctrl-C while something runs. At the prompt the terminal is in raw
/// mode, and the line editor hears it instead.
pub(super) struct Interrupts {
    signal: Option<Signal>,
}

impl Interrupts {
    /// Begins to listen; from now on Ctrl-C does not end the process.
    pub(super) fn listen() -> Self {
        Self { signal: signal(SignalKind::interrupt()).ok() }
    }

    /// Forgets a Ctrl-C that came when there was nothing to interrupt.
    pub(super) fn forget(&mut self) {
        if let Some(signal) = &mut self.signal {
            while let Some(Some(())) = signal.recv().now_or_never() {}
        }
    }

    /// Waits for Ctrl-C.
    pub(super) async fn wait(&mut self) {
        match &mut self.signal {
            Some(signal) => {
                if signal.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    }

    /// Runs `work` to its end, or drops it on Ctrl-C.
    pub(super) async fn guard<T>(
        &mut self,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        tokio::select! {
            result = work => result,
            () = self.wait() => Err(ClientError::Cancelled),
        }
    }
}
