//! The progress line: what a statement that takes longer than a second is
//! doing, on one line of the terminal that is wiped before anything else is
//! written.

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, Write};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::interrupt::Interrupts;
use crate::client::{Client, ClientError, Progress};
use crate::render::{Paint, quantity, truncated};

/// Nothing is shown for what is done sooner.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the coordinator is asked and the line drawn.
const INTERVAL: Duration = Duration::from_millis(200);
/// Rates are taken over so many intervals.
const RATE_INTERVALS: usize = 10;
/// Width of the bar.
const BAR_WIDTH: usize = 20;

/// Where the line is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Columns of the terminal.
    pub(super) width: usize,
    /// Colour.
    pub(super) paint: Paint,
    /// Use box characters.
    pub(super) unicode: bool,
}

/// Follows one statement.
pub(super) struct Monitor {
    /// None: standard error is no terminal, so nothing is drawn.
    place: Option<Place>,
    started: Instant,
    next_tick: Instant,
    poll: Option<Poll>,
    samples: VecDeque<Sample>,
    /// What is said when the coordinator says nothing.
    doing: String,
    drawn: bool,
}

struct Poll {
    task: JoinHandle<()>,
    latest: watch::Receiver<Option<Progress>>,
}

impl Drop for Poll {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    rows: u64,
    bytes: u64,
}

impl Monitor {
    /// Begins now.
    pub(super) fn start(place: Option<Place>, doing: &str) -> Self {
        let started = Instant::now();
        Self {
            place,
            started,
            next_tick: started + PATIENCE,
            poll: None,
            samples: VecDeque::new(),
            doing: doing.to_owned(),
            drawn: false,
        }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Asks the coordinator about this query from now on.
    pub(super) fn follow(&mut self, client: &Client, query_id: &str) {
        if self.place.is_none() {
            return;
        }
        let (client, query_id) = (client.clone(), query_id.to_owned());
        let (sender, latest) = watch::channel(None);
        let first = self.next_tick.max(Instant::now() + INTERVAL) - INTERVAL / 2;
        let task = tokio::spawn(async move {
            tokio::time::sleep_until(first).await;
            loop {
                let Ok(progress) = client.progress(&query_id).await else {
                    return;
                };
                if sender.send(progress).is_err() {
                    return;
                }
                tokio::time::sleep(INTERVAL).await;
            }
        });
        self.poll = Some(Poll { task, latest });
    }

    /// Says what is being done, where there is no query to ask about.
    pub(super) fn say(&mut self, doing: String) {
        self.doing = doing;
    }

    /// Runs `work` to its end and draws meanwhile; drops it on Ctrl-C.
    pub(super) async fn watch<T>(
        &mut self,
        interrupts: &mut Interrupts,
        work: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        self.watch_with(interrupts, work, |_| {}).await
    }

    /// As [`Monitor::watch`]; `before_drawing` may change what is said.
    pub(super) async fn watch_with<T>(
        &mut self,
        interrupts: &mut Interrupts,
        work: impl Future<Output = Result<T, ClientError>>,
        mut before_drawing: impl FnMut(&mut Self),
    ) -> Result<T, ClientError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                result = &mut work => return result,
                () = interrupts.wait() => {
                    self.wipe();
                    return Err(ClientError::Cancelled);
                }
                () = tokio::time::sleep_until(self.next_tick), if self.place.is_some() => {
                    self.next_tick = Instant::now() + INTERVAL;
                    before_drawing(self);
                    self.draw();
                }
            }
        }
    }

    /// Removes the line, so that something else can be written.
    pub(super) fn wipe(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let mut stderr = io::stderr().lock();
            // A terminal that cannot be written to needs no wiping.
            drop(stderr.write_all(b"\r\x1b[2K").and_then(|()| stderr.flush()));
        }
    }

    fn draw(&mut self) {
        let Some(place) = self.place else {
            return;
        };
        let progress = self.poll.as_ref().and_then(|poll| poll.latest.borrow().clone());
        let text = match progress {
            Some(progress) => {
                let rates = self.rates(&progress);
                line(&progress, rates, self.started.elapsed(), place.unicode)
            }
            None => format!("{} · {}", self.doing, seconds(self.started.elapsed())),
        };
        let text = truncated(&text, place.width.saturating_sub(1));
        let mut stderr = io::stderr().lock();
        let drawn = write!(stderr, "\r\x1b[2K{}", place.paint.dim(&text)).and_then(|()| stderr.flush());
        self.drawn = drawn.is_ok();
    }

    fn rates(&mut self, progress: &Progress) -> Rates {
        let now = Sample { at: Instant::now(), rows: progress.rows, bytes: progress.bytes };
        self.samples.push_back(now);
        if self.samples.len() > RATE_INTERVALS {
            self.samples.pop_front();
        }
        let first = self.samples.front().copied().unwrap_or(now);
        let elapsed = (now.at - first.at).as_secs_f64();
        if elapsed <= 0.0 {
            let elapsed = self.started.elapsed().as_secs_f64().max(0.001);
            return Rates { rows: now.rows as f64 / elapsed, bytes: now.bytes as f64 / elapsed };
        }
        Rates {
            rows: now.rows.saturating_sub(first.rows) as f64 / elapsed,
            bytes: now.bytes.saturating_sub(first.bytes) as f64 / elapsed,
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Per second.
#[derive(Clone, Copy, Debug)]
struct Rates {
    rows: f64,
    bytes: f64,
}

fn seconds(elapsed: Duration) -> String {
    match elapsed.as_secs() {
        seconds if seconds < 60 => format!("{seconds} s"),
        _ => quantity::duration(elapsed),
    }
}

/// What the line says about a query.
fn line(progress: &Progress, rates: Rates, elapsed: Duration, unicode: bool) -> String {
    let elapsed = seconds(elapsed);
    if progress.state == "queued" {
        return match progress.queue_position {
            Some(position) => format!("queued, position {position} · {elapsed}"),
            None => format!("queued · {elapsed}"),
        };
    }
    let mut parts = Vec::new();
    // Small queries run where nobody counts: that is not 0 percent.
    let is_counted = progress.segments_done > 0 || progress.workers_busy > 0;
    if progress.segments_total > 0 && is_counted {
        let done = progress.segments_done.min(progress.segments_total);
        let percent = done * 100 / progress.segments_total;
        parts.push(format!("{} {percent:3}%", bar(done, progress.segments_total, unicode)));
        parts.push(format!("{done}/{} segments", quantity::count(progress.segments_total)));
    } else {
        parts.push("running".to_owned());
    }
    if rates.rows >= 1.0 {
        parts.push(format!("{} rows/s", quantity::short(rates.rows)));
    }
    if rates.bytes >= 1.0 {
        parts.push(format!("{}/s", quantity::bytes(rates.bytes as u64)));
    }
    match progress.workers_busy {
        0 => {}
        1 => parts.push("1 worker busy".to_owned()),
        busy => parts.push(format!("{busy} workers busy")),
    }
    parts.push(elapsed);
    parts.join(" · ")
}

fn bar(done: u64, total: u64, unicode: bool) -> String {
    let filled = (done as usize * BAR_WIDTH) / total.max(1) as usize;
    let (full, empty) = if unicode { ("━", "─") } else { ("#", ".") };
    format!("{}{}", full.repeat(filled), empty.repeat(BAR_WIDTH - filled.min(BAR_WIDTH)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(progress: Progress, expected: &str) {
        let reads = if progress.rows > 0 { 1.0 } else { 0.0 };
        let rates = Rates { rows: 12_345_678.0 * reads, bytes: 987_654_321.0 * reads };
        assert_eq!(line(&progress, rates, Duration::from_secs(3), true), expected);
    }

    #[test]
    fn a_running_query_tells_how_far_it_is() {
        check(
            Progress {
                state: "running".into(),
                segments_done: 42,
                segments_total: 100,
                rows: 5,
                bytes: 5,
                workers_busy: 4,
                ..Progress::default()
            },
            "━━━━━━━━────────────  42% · 42/100 segments · 12.3 M rows/s · 988 MB/s · 4 workers busy · 3 s",
        );
    }

    #[test]
    fn a_queued_query_tells_its_place() {
        check(
            Progress { state: "queued".into(), queue_position: Some(3), ..Progress::default() },
            "queued, position 3 · 3 s",
        );
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        check(Progress { state: "running".into(), ..Progress::default() }, "running · 3 s");
        check(
            Progress { state: "running".into(), segments_total: 8, ..Progress::default() },
            "running · 3 s",
        );
    }

    #[test]
    fn more_segments_done_than_there_are_is_all_of_them() {
        check(
            Progress { state: "running".into(), segments_done: 9, segments_total: 8, ..Progress::default() },
            "━━━━━━━━━━━━━━━━━━━━ 100% · 8/8 segments · 3 s",
        );
    }
}
