//! How the demo ends early: SIGTERM and SIGHUP at any time, Ctrl-C until the
//! prompt is there; from then on Ctrl-C is the shell's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};

use super::cluster::DemoCluster;
use super::terminal::TerminalState;

/// What there is to end.
#[derive(Clone, Default)]
pub(super) struct Ending {
    cluster: Arc<Mutex<Option<Arc<DemoCluster>>>>,
    at_prompt: Arc<AtomicBool>,
}

impl Ending {
    /// Begins to listen for signals.
    ///
    /// # Errors
    /// Where the operating system does not allow it.
    pub(super) fn listen() -> Result<Self> {
        let ending = Self::default();
        let terminal = Arc::new(TerminalState::now());
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let mut heard = signal(kind).context("cannot listen for signals")?;
            let (ending, terminal) = (ending.clone(), Arc::clone(&terminal));
            tokio::spawn(async move {
                while heard.recv().await.is_some() {
                    let is_ours =
                        kind != SignalKind::interrupt() || !ending.at_prompt.load(Ordering::Relaxed);
                    if is_ours {
                        terminal.restore();
                        eprintln!("\nending the demo");
                        // Without a cluster yet: the nodes see us go and go, too.
                        if let Some(cluster) = ending.cluster.lock().take() {
                            cluster.stop();
                        }
                        std::process::exit(128 + kind.as_raw_value());
                    }
                }
            });
        }
        Ok(ending)
    }

    /// From now on there is a cluster to end.
    pub(super) fn watch(&self, cluster: &Arc<DemoCluster>) {
        *self.cluster.lock() = Some(Arc::clone(cluster));
    }

    /// From now on Ctrl-C is the shell's.
    pub(super) fn leave_interrupts_to_shell(&self) {
        self.at_prompt.store(true, Ordering::Relaxed);
    }
}
