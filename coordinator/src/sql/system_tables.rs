//! The `system` schema: what the cluster is and does, usable in any query.

use std::sync::Arc;
use std::time::{Instant, UNIX_EPOCH};

use arrow::array::{
    ArrayRef, BooleanArray, StringArray, TimestampMicrosecondArray, UInt32Array, UInt64Array,
};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use shoal_data::{ReplicaCount, Table};
use shoal_proto::WorkerId;
use shoal_proto::cluster::ScrubProgress;

use self::columns::{Columns, filled, lists, signed, text, unsigned};

use crate::Error;
use crate::catalog::{Coordinator, State, shown_term};
use crate::cluster::arriving::arriving;
use crate::cluster::repair::has;
use crate::cluster::{Cluster, GivenUp};
use crate::query::{Admission, Registry, ResultCache};

mod columns;
mod columns_of_tables;
mod queries;

/// The schema that holds them.
pub const SYSTEM_SCHEMA: &str = "system";

/// Makes the system tables. Cheap to clone.
#[derive(Clone)]
pub struct SystemTables {
    cluster: Arc<Cluster>,
    registry: Registry,
    admission: Admission,
    results: ResultCache,
}

impl SystemTables {
    /// Tables over what this coordinator knows.
    pub fn new(
        cluster: Arc<Cluster>,
        registry: Registry,
        admission: Admission,
        results: ResultCache,
    ) -> Self {
        Self { cluster, registry, admission, results }
    }

    /// The names of the tables.
    pub fn names() -> impl Iterator<Item = &'static str> {
        [
            "coordinators",
            "workers",
            "tables",
            "columns",
            "shards",
            "segments",
            "moves",
            "events",
            "queries",
            "writes",
            "scrub",
            "caches",
        ]
        .into_iter()
    }

    /// One table, filled now or when it is read; none where there is none of that name.
    ///
    /// # Errors
    /// None in practice; those of making a batch.
    pub fn table(&self, name: &str, snapshot: &State) -> Result<Option<Arc<dyn TableProvider>>, Error> {
        let columns = match name {
            "coordinators" => {
                let catalog = self.cluster.catalog();
                coordinators(&catalog.coordinators(), shown_term(catalog.term()))
            }
            "workers" => self.workers(snapshot),
            "tables" => tables(snapshot),
            "columns" => return Ok(Some(Arc::new(columns_of_tables::columns(snapshot)?))),
            "shards" => self.shards(snapshot),
            "segments" => segments(snapshot),
            "moves" => self.moves(snapshot),
            "events" => self.events(),
            "queries" => self.queries(),
            "writes" => writes(snapshot),
            "scrub" => self.scrub(),
            "caches" => self.caches(),
            _ => return Ok(None),
        };
        let batch = filled(name, columns)?;
        let table = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
        Ok(Some(Arc::new(table)))
    }

    fn workers(&self, snapshot: &State) -> Columns {
        let live = self.cluster.live();
        let known: Vec<_> = snapshot.workers().collect();
        let alive = |index: usize| live.get(&known[index].id);
        let given_up = |index: usize| self.cluster.given_up(&known[index].id);
        let all = 0..known.len();
        let number = |get: fn(&crate::cluster::LiveWorker) -> u64| -> ArrayRef {
            Arc::new(all.clone().map(|index| alive(index).map(get)).collect::<UInt64Array>())
        };
        let held = |worker: &crate::cluster::LiveWorker| {
            let of_table = |table: &Arc<Table>| {
                let facts = snapshot.facts(table);
                facts.of_worker(&worker.id).filter(|segment| worker.holds.contains(&segment.name())).count()
            };
            snapshot.tables().map(of_table).sum::<usize>() as u64
        };
        let now = Instant::now();
        let outliers = self.cluster.outliers().lock().clone();
        let ejected = outliers.ejected(live.workers.iter().map(|worker| &worker.id), now);
        let ejected_ms = |worker: &WorkerId| -> Option<u64> {
            let remaining = outliers.remaining(worker, now).filter(|_| ejected.contains(worker))?;
            u64::try_from(remaining.as_millis()).ok()
        };
        vec![
            ("worker", text(known.iter().map(|worker| worker.id.as_str()))),
            (
                "state",
                text(all.clone().map(|index| match (alive(index), given_up(index)) {
                    (Some(_), _) => "live",
                    (None, Some(GivenUp::Dead)) => "dead",
                    (None, _) => "lost",
                })),
            ),
            (
                "drain",
                Arc::new(
                    all.clone()
                        .map(|index| match given_up(index)? {
                            GivenUp::Draining => Some("draining"),
                            GivenUp::Drained => Some("drained"),
                            GivenUp::Dead => None,
                        })
                        .collect::<StringArray>(),
                ),
            ),
            ("address", text(known.iter().map(|worker| worker.address.as_str()))),
            ("zone", text(known.iter().map(|worker| worker.zone.as_str()))),
            (
                "threads",
                Arc::new(
                    all.clone()
                        .map(|index| alive(index).map(|worker| worker.threads))
                        .collect::<UInt32Array>(),
                ),
            ),
            ("memory_bytes", number(|worker| worker.memory_bytes)),
            ("memory_used_bytes", number(|worker| worker.memory_used_bytes)),
            ("tasks_running", number(|worker| u64::from(worker.tasks_running))),
            ("segments", Arc::new(all.clone().map(|index| alive(index).map(held)).collect::<UInt64Array>())),
            ("disk_used_bytes", number(|worker| worker.disk_used_bytes)),
            ("disk_free_bytes", number(|worker| worker.disk_free_bytes)),
            ("disk_total_bytes", number(|worker| worker.disk_total_bytes)),
            ("cross_zone_bytes", number(|worker| worker.cross_zone_bytes)),
            ("rows_loaded", number(|worker| worker.rows_loaded)),
            ("times_lost", unsigned(known.iter().map(|worker| self.cluster.times_lost(&worker.id)))),
            (
                "ejected_ms",
                Arc::new(known.iter().map(|worker| ejected_ms(&worker.id)).collect::<UInt64Array>()),
            ),
        ]
    }

    fn shards(&self, snapshot: &State) -> Columns {
        let live = self.cluster.live();
        let mut rows = Vec::new();
        for table in snapshot.tables() {
            let facts = snapshot.facts(table);
            for shard in 0..table.layout.shards {
                let segments: Vec<_> = facts.of_shard(shard).collect();
                let placed = table.placement.get(shard as usize).cloned().unwrap_or_default();
                let complete = placed
                    .iter()
                    .filter_map(|id| live.get(id))
                    .filter(|worker| segments.iter().all(|segment| has(segment, worker)));
                rows.push((
                    table,
                    shard,
                    segments.len() as u64,
                    segments.iter().map(|segment| segment.rows).sum::<u64>(),
                    segments.iter().map(|segment| segment.bytes).sum::<u64>(),
                    complete.count() as u64,
                    placed,
                ));
            }
        }
        vec![
            ("schema", text(rows.iter().map(|row| row.0.schema_name.as_str()))),
            ("table", text(rows.iter().map(|row| row.0.name.as_str()))),
            ("shard", Arc::new(rows.iter().map(|row| Some(row.1)).collect::<UInt32Array>())),
            ("segments", unsigned(rows.iter().map(|row| row.2))),
            ("rows", unsigned(rows.iter().map(|row| row.3))),
            ("bytes", unsigned(rows.iter().map(|row| row.4))),
            ("replicas_live", unsigned(rows.iter().map(|row| row.5))),
            (
                "workers",
                lists(rows.iter().map(|row| row.6.iter().map(|id| id.as_str().to_owned()).collect())),
            ),
        ]
    }

    fn moves(&self, snapshot: &State) -> Columns {
        let (live, draining) = (self.cluster.live(), self.cluster.drained());
        let mut rows = Vec::new();
        for table in snapshot.tables() {
            let facts = snapshot.facts(table);
            for shard in 0..table.layout.shards {
                for arriving in arriving(&facts, shard, &live, &draining) {
                    rows.push((table, shard, arriving));
                }
            }
        }
        vec![
            ("schema", text(rows.iter().map(|(table, ..)| table.schema_name.as_str()))),
            ("table", text(rows.iter().map(|(table, ..)| table.name.as_str()))),
            ("shard", Arc::new(rows.iter().map(|(_, shard, _)| Some(*shard)).collect::<UInt32Array>())),
            ("worker", text(rows.iter().map(|(.., arriving)| arriving.worker.as_str()))),
            ("kind", text(rows.iter().map(|(.., arriving)| arriving.kind.name()))),
            ("state", text(rows.iter().map(|(.., it)| if it.is_waiting { "waiting" } else { "copying" }))),
            ("segments_done", unsigned(rows.iter().map(|(.., arriving)| arriving.done.segments))),
            ("segments_left", unsigned(rows.iter().map(|(.., arriving)| arriving.left.segments))),
            ("bytes_done", unsigned(rows.iter().map(|(.., arriving)| arriving.done.bytes))),
            ("bytes_left", unsigned(rows.iter().map(|(.., arriving)| arriving.left.bytes))),
        ]
    }

    fn events(&self) -> Columns {
        let events = self.cluster.events();
        let at = events.iter().map(|event| {
            let since = event.at.duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since.as_micros()).ok()
        });
        vec![
            ("at", Arc::new(at.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))),
            ("kind", text(events.iter().map(|event| event.kind.name()))),
            (
                "worker",
                Arc::new(
                    events
                        .iter()
                        .map(|event| event.worker.as_ref().map(WorkerId::as_str))
                        .collect::<StringArray>(),
                ),
            ),
            ("message", text(events.iter().map(|event| event.message.as_str()))),
        ]
    }

    fn scrub(&self) -> Columns {
        let live = self.cluster.live();
        let scrubs: Vec<_> = live.workers.iter().map(|worker| self.cluster.scrub(&worker.id)).collect();
        let number = |get: fn(&ScrubProgress) -> Option<u64>| -> ArrayRef {
            Arc::new(scrubs.iter().map(|scrub| scrub.as_ref().and_then(get)).collect::<UInt64Array>())
        };
        vec![
            ("worker", text(live.workers.iter().map(|worker| worker.id.as_str()))),
            ("round", number(|scrub| Some(scrub.round))),
            ("segments_done", number(|scrub| Some(scrub.segments_done))),
            ("segments_total", number(|scrub| Some(scrub.segments_total))),
            ("bytes_done", number(|scrub| Some(scrub.bytes_done))),
            ("bytes_total", number(|scrub| Some(scrub.bytes_total))),
            ("bytes_per_second", number(|scrub| Some(scrub.bytes_per_second))),
            ("damaged", number(|scrub| Some(scrub.damaged))),
            ("since_round_ms", number(|scrub| scrub.since_round_ms)),
        ]
    }

    fn caches(&self) -> Columns {
        let usage = self.results.usage();
        let number = |number: u64| unsigned(std::iter::once(number));
        vec![
            ("cache", text(std::iter::once("results"))),
            ("entries", number(usage.entries as u64)),
            ("bytes", number(usage.bytes as u64)),
            ("bytes_max", number(usage.bytes_max as u64)),
            ("hits", number(usage.hits)),
            ("misses", number(usage.misses)),
            ("stored", number(usage.stored)),
            ("evicted", number(usage.evicted)),
            ("outdated", number(usage.outdated)),
        ]
    }
}

/// `all` by number; `term` is that of the leader that is known here.
fn coordinators(all: &[Coordinator], term: u64) -> Columns {
    let role = |it: &Coordinator| match (it.is_leader, it.is_voter) {
        (true, _) => "leader",
        (false, true) => "follower",
        (false, false) => "learner",
    };
    vec![
        ("coordinator", signed(all.iter().map(|it| it.id))),
        ("address", text(all.iter().map(|it| it.address.as_str()))),
        ("role", text(all.iter().map(role))),
        ("is_self", Arc::new(all.iter().map(|it| Some(it.is_self)).collect::<BooleanArray>())),
        ("term", signed(all.iter().map(|_| term))),
    ]
}

fn tables(snapshot: &State) -> Columns {
    let tables: Vec<_> = snapshot.tables().collect();
    let key = |get: fn(&shoal_data::TableLayout) -> &[String]| {
        text(tables.iter().map(|table| get(&table.layout).join(", ")))
    };
    vec![
        ("schema", text(tables.iter().map(|table| table.schema_name.as_str()))),
        ("table", text(tables.iter().map(|table| table.name.as_str()))),
        ("shards", Arc::new(tables.iter().map(|table| Some(table.layout.shards)).collect::<UInt32Array>())),
        (
            "replicas",
            text(tables.iter().map(|table| match table.layout.replicas {
                ReplicaCount::All => "all".to_owned(),
                ReplicaCount::Count(count) => count.to_string(),
            })),
        ),
        ("shard_key", key(|layout| &layout.shard_key)),
        ("sort_key", key(|layout| &layout.sort_key)),
        ("segments", unsigned(tables.iter().map(|table| table.segments.len() as u64))),
        ("rows", unsigned(tables.iter().map(|table| table.rows()))),
        ("bytes", unsigned(tables.iter().map(|table| table.bytes()))),
        (
            "hash_is_current",
            Arc::new(
                tables.iter().map(|table| Some(table.is_hashed_as_new_ones())).collect::<BooleanArray>(),
            ),
        ),
    ]
}

fn segments(snapshot: &State) -> Columns {
    let rows: Vec<_> = snapshot
        .tables()
        .flat_map(|table| table.segments.iter().map(move |segment| (table, segment)))
        .collect();
    vec![
        ("schema", text(rows.iter().map(|(table, _)| table.schema_name.as_str()))),
        ("table", text(rows.iter().map(|(table, _)| table.name.as_str()))),
        ("shard", Arc::new(rows.iter().map(|(_, segment)| Some(segment.shard)).collect::<UInt32Array>())),
        ("segment", text(rows.iter().map(|(_, segment)| segment.id.to_string()))),
        ("rows", unsigned(rows.iter().map(|(_, segment)| segment.rows))),
        ("bytes", unsigned(rows.iter().map(|(_, segment)| segment.bytes))),
        ("crc32c", Arc::new(rows.iter().map(|(_, segment)| Some(segment.crc32c)).collect::<UInt32Array>())),
        (
            "replicas",
            lists(
                rows.iter()
                    .map(|(_, segment)| segment.replicas.iter().map(|id| id.as_str().to_owned()).collect()),
            ),
        ),
    ]
}

fn writes(snapshot: &State) -> Columns {
    let writes: Vec<_> = snapshot.writes().collect();
    vec![
        ("write_id", text(writes.iter().map(|write| write.id.as_str()))),
        ("rows", unsigned(writes.iter().map(|write| write.rows))),
    ]
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::DataType;
    use arrow::util::pretty::pretty_format_batches;

    use super::*;

    #[test]
    fn coordinators_are_shown_with_what_they_do() {
        let coordinator = |id: u64, is_voter: bool, is_leader: bool| Coordinator {
            id,
            address: format!("http://10.0.0.{id}:7400"),
            is_voter,
            is_leader,
            is_self: id == 3,
        };
        let all = [coordinator(1, true, true), coordinator(3, true, false), coordinator(4, false, false)];
        let batch = filled("coordinators", coordinators(&all, 7)).unwrap();
        let expected = "\
+-------------+----------------------+----------+---------+------+
| coordinator | address              | role     | is_self | term |
+-------------+----------------------+----------+---------+------+
| 1           | http://10.0.0.1:7400 | leader   | false   | 7    |
| 3           | http://10.0.0.3:7400 | follower | true    | 7    |
| 4           | http://10.0.0.4:7400 | learner  | false   | 7    |
+-------------+----------------------+----------+---------+------+";
        assert_eq!(pretty_format_batches(std::slice::from_ref(&batch)).unwrap().to_string(), expected);
        let fields = batch.schema();
        let never_null: Vec<_> = fields.fields().iter().filter(|field| !field.is_nullable()).collect();
        assert!(matches!(never_null.as_slice(), [field] if field.name() == "coordinator"));
        assert_eq!(fields.field(0).data_type(), &DataType::Int64);
    }
}
