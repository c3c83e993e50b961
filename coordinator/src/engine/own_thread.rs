//! A thread for work that is to take one core at most, and that nobody need wait
//! for.

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Its priority, as `nice` has it: about a tenth of what a thread of a query gets
/// where both want the same core.
const NICE: i32 = 10;
/// Stack of the thread.
const STACK_BYTES: usize = 8 << 20;

/// Runs work on a thread of its own, so that it takes one core at most: where there
/// is one thread only, operators start no others. To drop the result ends it, when
/// it gives way next; `held` is dropped when it has ended.
pub(super) async fn on_own_thread<T: Send + 'static>(
    held: impl Send + 'static,
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let _stops_when_dropped = stop.drop_guard();
    let (sender, ended) = oneshot::channel();
    let run = move || {
        let _held = held;
        // Of this thread and those that it starts. Where it may not be, all of it is done as before.
        let lowered = rustix::process::getpriority_process(None)
            .and_then(|nice| rustix::process::setpriority_process(None, nice.max(NICE)));
        if let Err(error) = lowered {
            tracing::debug!(%error, "compactions have the priority of queries");
        }
        let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stopped.cancelled() => Err(Error::Cancelled("the compaction was given up".into())),
                    result = work => result,
                }
            }),
            Err(error) => Err(Error::io("cannot start a runtime to compact on", error)),
        };
        // Whoever waited may have gone.
        drop(sender.send(result));
    };
    std::thread::Builder::new()
        .name("shoal-compact".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map_err(|error| Error::io("cannot start a thread to compact on", error))?;
    ended.await.unwrap_or_else(|_| Err(Error::Internal("the thread that compacts panicked".into())))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn work_on_a_thread_of_its_own_ends_when_it_is_dropped() {
        assert_eq!(on_own_thread((), async { Ok(7) }).await.unwrap(), 7);
        let refused: Result<(), Error> = on_own_thread((), async { Err(Error::Invalid("no".into())) }).await;
        assert_eq!(refused.unwrap_err().to_string(), "no");
        let (alive, is_over) = oneshot::channel::<()>();
        let endless = on_own_thread((), async move {
            let _alive = alive;
            std::future::pending::<()>().await;
            Ok(())
        });
        let given_up = tokio::time::timeout(Duration::from_millis(50), endless).await;
        assert!(given_up.is_err(), "it ended by itself");
        // Its end drops what it held.
        assert!(tokio::time::timeout(Duration::from_secs(20), is_over).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn others_come_first_on_a_core() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        assert_eq!(on_own_thread((), async move { Ok(nice()) }).await.unwrap(), before.max(NICE));
        assert_eq!(nice(), before, "of this thread");
    }

    #[tokio::test]
    async fn a_panic_on_the_thread_is_an_error() {
        async fn panics() -> Result<(), Error> {
            panic!("on purpose")
        }
        let turns = Arc::new(tokio::sync::Mutex::new(()));
        let turn = Arc::clone(&turns).lock_owned().await;
        let error = on_own_thread(turn, panics()).await.unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
        // The next one gets its turn all the same.
        drop(tokio::time::timeout(Duration::from_secs(20), turns.lock()).await.unwrap());
    }

    #[tokio::test]
    async fn the_next_one_gets_its_turn_when_what_was_given_up_has_ended_and_not_before() {
        let turns = Arc::new(tokio::sync::Mutex::new(()));
        let turn = Arc::clone(&turns).lock_owned().await;
        let (begun, has_begun) = oneshot::channel::<()>();
        let (go_on, stands_still) = std::sync::mpsc::channel::<()>();
        let has_gone_on = Arc::new(AtomicBool::new(false));
        let goes_on = Arc::clone(&has_gone_on);
        let work = on_own_thread(turn, async move {
            begun.send(()).unwrap();
            // Its thread cannot hear of anything meanwhile.
            assert!(stands_still.recv().is_err());
            tokio::task::yield_now().await;
            goes_on.store(true, Ordering::SeqCst);
            Ok(())
        });
        let is_given_up = tokio::select! {
            _ended = work => false,
            begun = has_begun => begun.is_ok(),
        };
        assert!(is_given_up, "it ended by itself");
        assert!(turns.try_lock().is_err(), "two at a time");
        drop(go_on);
        drop(tokio::time::timeout(Duration::from_secs(20), turns.lock()).await.unwrap());
        assert!(!has_gone_on.load(Ordering::SeqCst), "it went on after it was given up");
    }
}
