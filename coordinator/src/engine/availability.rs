//! EXPLAIN AVAILABILITY: what may be lost without a query failing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use shoal_data::Table;

use super::{Engine, Scope};
use crate::Error;
use crate::cluster::repair::{has, readable};
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::{as_meant, tables_of};

/// The columns of the answer.
pub(super) fn availability_columns() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let number = |name: &str| Field::new(name, DataType::UInt64, false);
    Arc::new(Schema::new(vec![
        text("table"),
        number("shards"),
        number("live_copies"),
        number("workers_may_be_lost"),
        text("workers_needed"),
        text("zones_needed"),
    ]))
}

/// How much of a cluster one table can do without.
#[derive(Debug, PartialEq, Eq)]
struct Availability {
    /// Live copies of the shard that has fewest.
    live_copies: usize,
    /// Without any one of these, a shard cannot be read.
    workers_needed: BTreeSet<String>,
    /// The same of zones.
    zones_needed: BTreeSet<String>,
}

fn availability(table: &Table, live: &LiveWorkers) -> Availability {
    let mut fewest = None;
    let (mut workers_needed, mut zones_needed) = (BTreeSet::new(), BTreeSet::new());
    // Shards without segments can do without workers.
    let mut holders_of: BTreeMap<u32, Vec<&LiveWorker>> = BTreeMap::new();
    for segment in &table.segments {
        match holders_of.get_mut(&segment.shard) {
            Some(holders) => holders.retain(|worker| has(segment, worker)),
            None => drop(holders_of.insert(segment.shard, readable(segment, live).collect())),
        }
    }
    for holders in holders_of.into_values() {
        if let [only] = holders.as_slice() {
            workers_needed.insert(only.id.to_string());
        }
        let zones: BTreeSet<_> = holders.iter().map(|worker| worker.zone.as_str()).collect();
        if let [only] = zones.into_iter().collect::<Vec<_>>().as_slice()
            && !only.is_empty()
        {
            zones_needed.insert((*only).to_owned());
        }
        fewest = Some(fewest.map_or(holders.len(), |fewest: usize| fewest.min(holders.len())));
    }
    let live_copies = fewest.unwrap_or(live.workers.len());
    Availability { live_copies, workers_needed, zones_needed }
}

impl Engine {
    /// One row for each table that the query reads.
    pub(super) fn explain_availability(
        &self,
        scope: &Scope,
        plan: LogicalPlan,
    ) -> Result<RecordBatch, Error> {
        let optimised = scope.planning.state().optimize(&as_meant(plan)?)?;
        let live = self.cluster.live();
        let found: BTreeMap<String, (u64, Availability)> = tables_of(&optimised)?
            .iter()
            .map(|table| {
                let shards = u64::from(table.layout.shards);
                (table.full_name(), (shards, availability(table, &live)))
            })
            .collect();
        let number = |get: fn(&(u64, Availability)) -> u64| -> Arc<UInt64Array> {
            Arc::new(found.values().map(|found| Some(get(found))).collect())
        };
        let text = |get: fn(&Availability) -> &BTreeSet<String>| -> Arc<StringArray> {
            let joined = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
            Arc::new(found.values().map(|(_, found)| Some(joined(get(found)))).collect())
        };
        let tables: StringArray = found.keys().map(Some).collect();
        RecordBatch::try_new(
            availability_columns(),
            vec![
                Arc::new(tables),
                number(|(shards, _)| *shards),
                number(|(_, found)| found.live_copies as u64),
                number(|(_, found)| found.live_copies.saturating_sub(1) as u64),
                text(|found| &found.workers_needed),
                text(|found| &found.zones_needed),
            ],
        )
        .map_err(|error| Error::Internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {

    use shoal_data::Segment;
    use shoal_proto::{TableId, WorkerId};

    use super::*;
    use crate::catalog::state::tests::{segment, table};
    use crate::cluster::Holds;

    /// A table of two shards, of one segment each, on these workers.
    fn held_by(shards: [&[&str]; 2]) -> Table {
        let mut held = table(TableId(1), "t");
        for (shard, workers) in (0..).zip(shards) {
            let replicas = workers.iter().copied().map(WorkerId::from).collect();
            held.segments.push(Arc::new(Segment { replicas, ..segment(held.id, shard, "") }));
        }
        held
    }

    /// Workers and their zones.
    fn live(workers: &[(&str, &str)]) -> LiveWorkers {
        let workers = workers
            .iter()
            .map(|(id, zone)| LiveWorker { zone: (*zone).to_owned(), ..LiveWorker::named(*id) });
        LiveWorkers { workers: workers.collect(), ..LiveWorkers::default() }
    }

    fn check(table: &Table, live: &LiveWorkers, live_copies: usize, workers: &[&str], zones: &[&str]) {
        let names = |names: &[&str]| names.iter().copied().map(str::to_owned).collect();
        let expected =
            Availability { live_copies, workers_needed: names(workers), zones_needed: names(zones) };
        assert_eq!(availability(table, live), expected, "{table:?} on {live:?}");
    }

    const THREE: [(&str, &str); 3] = [("a", "north"), ("b", "north"), ("c", "south")];

    #[test]
    fn a_zone_is_needed_that_has_all_copies_of_a_shard() {
        let three = live(&THREE);
        // One shard is in the north only, on two workers there.
        check(&held_by([&["a", "b"], &["a", "c"]]), &three, 2, &[], &["north"]);
        check(&held_by([&["a", "c"], &["b", "c"]]), &three, 2, &[], &[]);
        check(&held_by([&["a", "b"], &["c"]]), &three, 1, &["c"], &["north", "south"]);
        check(&held_by([&["c"], &["c"]]), &three, 1, &["c"], &["south"]);
    }

    #[test]
    fn who_is_lost_makes_others_needed() {
        let held = held_by([&["a", "c"], &["b", "c"]]);
        check(&held, &live(&THREE[..2]), 1, &["a", "b"], &["north"]);
        // It lives, and its file of the first shard is gone.
        let mut damaged = live(&THREE);
        let lacks = [held.segments[0].name()].into();
        damaged.workers[0].holds = Arc::new(Holds::all_but(lacks));
        check(&held, &damaged, 1, &["c"], &["south"]);
        // Nobody has a copy any more, so nobody is needed for it.
        check(&held_by([&["d"], &["a", "c"]]), &live(&THREE), 0, &[], &[]);
    }

    #[test]
    fn where_there_are_no_zones_none_is_needed() {
        let held = held_by([&["a", "b"], &["c"]]);
        check(&held, &live(&[("a", ""), ("b", ""), ("c", "")]), 1, &["c"], &[]);
        // Without rows nothing is needed.
        check(&table(TableId(1), "t"), &live(&THREE), 3, &[], &[]);
    }
}
