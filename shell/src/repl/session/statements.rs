//! Running a statement and showing what comes of it.

use std::path::PathBuf;
use std::time::Duration;

use shoal_proto::WriteId;

use super::super::output::Output;
use super::super::progress::Monitor;
use super::Session;
use super::repeat::{Stage, tag};
use crate::client::{ClientError, Rows};
use crate::render::{Expanded, Layout, quantity};

/// How a statement's result is shown, this once.
#[derive(Clone, Debug, Default)]
pub(super) struct Showing {
    /// Turned on its side.
    pub(super) expanded: bool,
    /// Into this file.
    pub(super) file: Option<PathBuf>,
}

impl Session {
    /// Runs a statement as it was typed.
    pub(super) async fn statement(&mut self, sql: &str) -> Result<(), ClientError> {
        self.last = Some(sql.to_owned());
        self.show(sql, &Showing::default()).await
    }

    /// Runs a statement; where its session is lost, again in another one if
    /// that does no harm.
    pub(super) async fn show(&mut self, sql: &str, showing: &Showing) -> Result<(), ClientError> {
        let write_id = WriteId::random();
        let mut stage = Stage::Planning;
        let outcome = match self.attempt(sql, showing, &write_id, &mut stage).await {
            Err(lost) if lost.session_is_gone() => self.go_on(sql, showing, &write_id, stage, lost).await,
            outcome => outcome,
        };
        self.settings.note(sql, &outcome);
        outcome
    }

    /// Runs a statement once; `stage` says how far it came.
    pub(super) async fn attempt(
        &mut self,
        sql: &str,
        showing: &Showing,
        write_id: &WriteId,
        stage: &mut Stage,
    ) -> Result<(), ClientError> {
        *stage = Stage::Planning;
        self.interrupts.forget();
        let mut monitor = Monitor::start(self.options.screen.progress_place(), "planning");
        let statement = monitor.watch(&mut self.interrupts, self.client.prepare(sql)).await?;
        monitor.say("running".to_owned());
        if !statement.returns_rows() {
            *stage = Stage::Changing;
            let changed = monitor.watch(&mut self.interrupts, statement.update(Some(write_id))).await;
            let elapsed = monitor.elapsed();
            drop(monitor);
            return match changed {
                Ok(rows) => self.after_change(sql, rows, elapsed).await,
                Err(error) => {
                    if leaves_notices(sql, &error) {
                        self.say_notices().await;
                    }
                    Err(error)
                }
            };
        }
        *stage = Stage::Querying;
        let mut rows = monitor.watch(&mut self.interrupts, statement.query()).await?;
        if let Some(query_id) = rows.query_id() {
            monitor.follow(&self.client, query_id);
        }
        let outcome = self.show_rows(&mut rows, &mut monitor, showing, stage).await;
        let ended = matches!(&outcome, Ok(shown) if !shown.cut);
        let query_id = rows.query_id().map(str::to_owned);
        let bytes = rows.bytes();
        drop(rows);
        let elapsed = monitor.elapsed();
        drop(monitor);
        if !ended && let Some(query_id) = query_id {
            // Its stream is closed: it ends by itself should this not arrive.
            drop(tokio::time::timeout(Duration::from_secs(2), self.client.cancel(&query_id)).await);
        }
        let shown = outcome?;
        self.say_rows(&shown, bytes, elapsed);
        // A change that gives rows.
        if tag(sql) == "REBALANCE" {
            self.say_notices().await;
        }
        Ok(())
    }

    async fn say_notices(&mut self) {
        let notices = self.interrupts.guard(self.client.notices()).await.unwrap_or_default();
        for notice in notices {
            self.print_notice(&notice);
        }
    }

    async fn show_rows(
        &mut self,
        rows: &mut Rows,
        monitor: &mut Monitor,
        showing: &Showing,
        stage: &mut Stage,
    ) -> Result<Shown, ClientError> {
        let mut once = match &showing.file {
            Some(file) => Some(Output::file(file)?),
            None => None,
        };
        let output = once.as_mut().unwrap_or(&mut self.output);
        let on_screen = output.is_screen();
        let layout = if on_screen { self.options.screen_layout() } else { self.options.file_layout() };
        let layout =
            Layout { expanded: if showing.expanded { Expanded::On } else { layout.expanded }, ..layout };
        let limit =
            if on_screen && self.options.screen.stdout_is_terminal { self.options.rows_shown } else { None };
        let mut renderer = layout.renderer(rows.schema());
        let mut shown = Shown::default();
        while let Some(batch) = monitor.watch(&mut self.interrupts, rows.next()).await? {
            let room = limit.map_or(batch.num_rows(), |limit| limit.saturating_sub(shown.rows));
            let taken = batch.slice(0, room.min(batch.num_rows()));
            if taken.num_rows() > 0 {
                // A file of its own would be made anew.
                if showing.file.is_none() {
                    *stage = Stage::Showing;
                }
                if on_screen {
                    monitor.wipe();
                }
                output.write(|out| renderer.rows(&taken, out))?;
                shown.rows += taken.num_rows();
            }
            if taken.num_rows() < batch.num_rows() {
                shown.cut = true;
                break;
            }
        }
        *stage = Stage::Showing;
        monitor.wipe();
        output.write(|out| renderer.finish(out))?;
        shown.remark = renderer.remark();
        Ok(shown)
    }

    fn say_rows(&self, shown: &Shown, bytes: u64, elapsed: Duration) {
        let screen = &self.options.screen;
        let elapsed = quantity::duration(elapsed);
        if !self.options.says_summaries() {
            if self.options.timing && !self.options.quiet {
                self.print_aside(&format!("Time: {elapsed}\n"));
            }
            return;
        }
        let rows = quantity::rows(shown.rows as u64);
        let mut parts = vec![if shown.cut { format!("the first {rows}") } else { rows }];
        if self.options.timing {
            parts.push(quantity::bytes(bytes));
            parts.push(elapsed);
        }
        let mut text = screen.stderr_paint.dim(&format!("({})", parts.join(", ")));
        text.push('\n');
        if let Some(remark) = &shown.remark {
            text.push_str(&screen.stderr_paint.notice(&format!("{remark}\n")));
        }
        if shown.cut {
            let how = if self.interactive {
                "There are more rows: \\rows all shows them on the screen, \\o FILE sends them to a file."
            } else {
                "There are more rows: --rows all shows them on the screen, > FILE sends them to a file."
            };
            text.push_str(&screen.stderr_paint.notice(&format!("{how}\n")));
        }
        if self.interactive {
            text.push('\n');
        }
        self.print_aside(&text);
    }

    async fn after_change(&mut self, sql: &str, rows: i64, elapsed: Duration) -> Result<(), ClientError> {
        self.say_notices().await;
        let tag = tag(sql);
        if !self.options.quiet {
            self.say_change(&tag, rows, elapsed);
        }
        if ["CREATE", "DROP", "ALTER", "USE", "SET"].iter().any(|verb| tag.starts_with(verb)) {
            self.refresh_names();
        }
        Ok(())
    }

    /// Says what a change did, as `INSERT, 3 rows (12 ms)`.
    pub(super) fn say_change(&self, tag: &str, rows: i64, elapsed: Duration) {
        let mut text = tag.to_owned();
        let counts = matches!(tag, "INSERT" | "COPY" | "UPDATE" | "DELETE");
        if let Ok(rows) = u64::try_from(rows)
            && (counts || rows > 0)
        {
            text.push_str(&format!(", {}", quantity::rows(rows)));
        }
        if self.options.timing {
            let elapsed = format!(" ({})", quantity::duration(elapsed));
            text.push_str(&self.options.screen.stderr_paint.dim(&elapsed));
        }
        text.push('\n');
        if self.interactive {
            text.push('\n');
        }
        self.print_aside(&text);
    }
}

/// Whether a change that ended with this error says what it did before: that stays
/// done. Where it was cancelled here, it ended without a word.
fn leaves_notices(sql: &str, error: &ClientError) -> bool {
    tag(sql) == "OPTIMIZE" && !error.session_is_gone() && !matches!(error, ClientError::Cancelled)
}

/// What was shown of a result.
#[derive(Debug, Default)]
struct Shown {
    rows: usize,
    /// There were more.
    cut: bool,
    remark: Option<String>,
}

#[cfg(test)]
mod tests {
    use shoal_proto::{ErrorCode, Failure};

    use super::*;

    #[test]
    fn notices_are_asked_for_where_a_coordinator_may_have_left_some() {
        let failed = || ClientError::Statement(Failure::new(ErrorCode::Exhausted, "no room on worker w1"));
        let optimize = "OPTIMIZE TABLE t";
        assert!(leaves_notices(optimize, &failed()));
        assert!(!leaves_notices("DROP TABLE t", &failed()));
        assert!(!leaves_notices(optimize, &ClientError::Lost { cause: "gone".to_owned() }));
        assert!(!leaves_notices(optimize, &ClientError::Cancelled));
        // By KILL QUERY, from elsewhere.
        let killed =
            ClientError::Statement(Failure::new(ErrorCode::Cancelled, "the statement was cancelled"));
        assert!(leaves_notices(optimize, &killed));
    }
}
