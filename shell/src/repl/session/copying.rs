//! Running `\copy`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use shoal_proto::WriteId;

use super::super::copy::{Copy, Direction, Source, Subject, open, write};
use super::super::progress::Monitor;
use super::Session;
use super::repeat::{how_to_find_out, unsettled};
use crate::client::{ClientError, IngestTarget};
use crate::render::quantity;

impl Session {
    /// Copies between a local file and the cluster; where the session is lost,
    /// once more in another one. A file is made anew, and the write's id makes
    /// a second one do nothing.
    pub(super) async fn copy(&mut self, copy: &Copy) -> Result<(), ClientError> {
        let write_id = WriteId::random();
        let mut outcome = self.copy_once(copy, &write_id).await;
        if let Err(lost) = &outcome
            && lost.session_is_gone()
        {
            let refused = lost.nothing_was_done();
            outcome = match self.reconnect(lost).await {
                Ok(()) => self.copy_once(copy, &write_id).await,
                Err(error) => Err(error),
            };
            if copy.direction == Direction::From && !refused && !self.settings.has_write_id() {
                let how = how_to_find_out("COPY", Some(&write_id));
                outcome = outcome.map_err(|error| unsettled(error, &how));
            }
        }
        if copy.direction == Direction::From {
            self.settings.note_write(&outcome);
        }
        outcome
    }

    async fn copy_once(&mut self, copy: &Copy, write_id: &WriteId) -> Result<(), ClientError> {
        self.interrupts.forget();
        match (&copy.direction, &copy.subject) {
            (Direction::From, Subject::Table { schema, name, written }) => {
                let target =
                    IngestTarget { schema: schema.clone(), table: name.clone(), ..IngestTarget::default() };
                self.copy_from(copy, target, written, write_id).await
            }
            (_, Subject::Table { written, .. }) => {
                self.copy_to(copy, &format!("SELECT * FROM {written}")).await
            }
            (_, Subject::Query(query)) => self.copy_to(copy, query).await,
        }
    }

    async fn copy_from(
        &mut self,
        copy: &Copy,
        target: IngestTarget,
        written: &str,
        write_id: &WriteId,
    ) -> Result<(), ClientError> {
        let mut monitor = Monitor::start(self.options.screen.progress_place(), "reading");
        let select = format!("SELECT * FROM {written}");
        let planned = monitor.watch(&mut self.interrupts, self.client.prepare(&select)).await?;
        let columns = planned.columns().clone();
        drop(planned);
        let opened = monitor.watch(&mut self.interrupts, open(copy, columns.clone())).await?;
        let Source { batches, rows } = opened;
        let target = IngestTarget { columns: Some(columns), ..target };
        let counter = Arc::clone(&rows);
        let ingest = self.client.ingest(&target, write_id, batches);
        let say = |monitor: &mut Monitor| {
            monitor.say(format!("{} sent", quantity::rows(counter.load(Ordering::Relaxed))));
        };
        let rows = monitor.watch_with(&mut self.interrupts, ingest, say).await?;
        let elapsed = monitor.elapsed();
        drop(monitor);
        let notices = self.interrupts.guard(self.client.notices()).await.unwrap_or_default();
        for notice in notices {
            self.print_notice(&notice);
        }
        if !self.options.quiet {
            self.say_change("COPY", rows, elapsed);
        }
        Ok(())
    }

    async fn copy_to(&mut self, copy: &Copy, query: &str) -> Result<(), ClientError> {
        let mut monitor = Monitor::start(self.options.screen.progress_place(), "planning");
        let statement = monitor.watch(&mut self.interrupts, self.client.prepare(query)).await?;
        if !statement.returns_rows() {
            return Err(ClientError::Usage(
                "only rows can be copied to a file: give a table or a query".to_owned(),
            ));
        }
        monitor.say("running".to_owned());
        let rows = monitor.watch(&mut self.interrupts, statement.query()).await?;
        if let Some(query_id) = rows.query_id() {
            monitor.follow(&self.client, query_id);
        }
        let row_count = monitor.watch(&mut self.interrupts, write(copy, rows)).await?;
        let elapsed = monitor.elapsed();
        drop(monitor);
        if !self.options.quiet {
            self.say_change("COPY", i64::try_from(row_count).unwrap_or(i64::MAX), elapsed);
        }
        Ok(())
    }
}
