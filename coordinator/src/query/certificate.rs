//! What a result rests on: which version of the catalog, what was read of each
//! table, by which workers, in how many attempts. Made when all rows have come
//! and what was read is what was planned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use serde::Serialize;
use shoal_proto::exchange::ReadLog;
use shoal_proto::{Failure, TableId, WorkerId};

use super::planned_reads::PlannedReads;
use super::registry::QueryRecord;
use super::view::View;

/// What a complete result rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The version of the catalog that was read.
    pub snapshot: u64,
    /// Attempts that it took.
    pub attempts: u32,
    /// Workers that ran it to its end, in order.
    pub workers: Vec<WorkerId>,
    /// What was read, in the order of the tables' names. Files and system
    /// tables are not told.
    pub tables: Vec<TableRead>,
    /// What was lost on the way, and why.
    pub lost: Vec<String>,
    /// Whether the result was kept from an earlier query, which this tells of.
    pub from_cache: bool,
}

impl Certificate {
    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let workers = self.workers.iter().map(|worker| worker.as_str().len() + size_of::<WorkerId>());
        let tables = self.tables.iter().map(|read| read.table.len() + size_of::<TableRead>());
        let lost = self.lost.iter().map(|loss| loss.len() + size_of::<String>());
        workers.chain(tables).chain(lost).sum()
    }
}

/// What was read of one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableRead {
    /// With its schema.
    pub table: String,
    /// Segments of the plan's scans. A table that is scanned twice counts twice, and one that each
    /// task reads as often as there are tasks.
    pub segments_planned: u64,
    /// Those that were turned to. Fewer than planned where a limit or an empty
    /// side of a join made the others unnecessary.
    pub segments: u64,
    /// Rows in those that were opened: the statistics of others ruled them out.
    pub rows: u64,
}

/// What there is to know of an attempt, to certify its result.
pub(super) struct Certifier {
    pub(super) snapshot: u64,
    pub(super) names: BTreeMap<TableId, String>,
    pub(super) planned: PlannedReads,
    pub(super) reads: Arc<ReadLog>,
    pub(super) view: Arc<View>,
    pub(super) record: Arc<QueryRecord>,
}

impl Certifier {
    /// The rows as they are. When they have ended, what was read is compared
    /// with what was planned: the record gets the certificate, or the stream an
    /// error in place of its end.
    pub(super) fn certified(self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let schema = rows.schema();
        let end = futures::stream::once(async move { self.certify() });
        let end = end.filter_map(|end| std::future::ready(end.err().map(|failure| Err(failure.into()))));
        Box::pin(RecordBatchStreamAdapter::new(schema, rows.chain(end)))
    }

    fn certify(self) -> Result<(), Failure> {
        let read = self.reads.by_table();
        let name = |table: TableId| self.names.get(&table).cloned().unwrap_or_else(|| table.0.to_string());
        self.planned.check(&read, name)?;
        let mut tables: Vec<TableRead> = self
            .planned
            .tables()
            .map(|(table, segments_planned)| {
                let read = read.get(&table).copied().unwrap_or_default();
                TableRead { table: name(table), segments_planned, segments: read.segments, rows: read.rows }
            })
            .collect();
        tables.sort_by(|one, other| one.table.cmp(&other.table));
        self.record.cross_zone_bytes.store(self.reads.crossed_bytes(), Ordering::Relaxed);
        self.record.cross_zone_bytes_most.store(self.reads.crossed_bytes_most(), Ordering::Relaxed);
        let workers: BTreeSet<WorkerId> =
            self.planned.workers(&self.view).into_iter().chain(self.record.streamers()).collect();
        self.record.certify(Certificate {
            snapshot: self.snapshot,
            attempts: self.record.attempts.load(Ordering::Relaxed),
            workers: workers.into_iter().collect(),
            tables,
            lost: self.record.losses(),
            from_cache: false,
        });
        Ok(())
    }
}
