//! A catalog of the size that is asked for, made by the catalog's own code, and
//! what each worker holds of it.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shoal_coordinator::catalog::{Catalog, CatalogOptions, Command, Outcome, WorkerRecord, WriteRecord};
use shoal_coordinator::cluster::disk::Disk;
use shoal_coordinator::cluster::placement::{Candidate, place};
use shoal_data::sample::{TpchTable, tpch_schema};
use shoal_data::{
    ColumnStatistics, KeyHash, ReplicaCount, Segment, SegmentName, StatValue, Table, TableLayout,
};
use shoal_proto::{SegmentId, WorkerId, WriteId};

/// The most segments of the table that queries are planned on.
const LARGE_SEGMENTS: usize = 100_000;
/// Segments of a shard, as far as there may be that many shards.
const SEGMENTS_PER_SHARD: usize = 9;
/// The most shards of a table.
const SHARDS_MAX: usize = 1_000;
/// Segments of one command: a change of the catalog has a largest size.
const SEGMENTS_AT_ONCE: usize = 2_000;
/// Rows and bytes of a segment: no small one, as those would be compacted, and
/// nobody has their rows.
const SEGMENT_ROWS: u64 = 600_000;
const SEGMENT_BYTES: u64 = 96 << 20;
/// Days since 1970 between which rows were shipped.
const SHIPPED: (i64, i64) = (8_036, 10_561);
/// Zones that the workers stand in.
const ZONES: [&str; 3] = ["a", "b", "c"];

/// What is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) workers: usize,
    pub(super) tables: usize,
    pub(super) segments: usize,
    pub(super) replicas: u32,
    pub(super) seed: u64,
}

/// How large one table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) segments: usize,
    pub(super) shards: u32,
}

/// A worker and what it holds.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    pub(super) worker: WorkerRecord,
    pub(super) held: Vec<(SegmentName, u64)>,
}

/// The catalog that was made.
#[derive(Debug)]
pub(super) struct Filled {
    pub(super) cluster: String,
    /// The first is the one that queries are planned on.
    pub(super) shapes: Vec<Shape>,
    pub(super) holders: Vec<Holder>,
}

impl Filled {
    /// Shards of all tables.
    pub(super) fn shards(&self) -> u64 {
        self.shapes.iter().map(|shape| u64::from(shape.shards)).sum()
    }
}

/// The name of a table.
pub(super) fn table_name(index: usize) -> String {
    format!("scale_{index}")
}

/// The sizes of the tables: a tenth of the segments is in the first, as far as
/// that is not more than it is to have, and the others share the rest.
pub(super) fn shapes(segments: usize, tables: usize) -> Vec<Shape> {
    let tables = tables.clamp(1, segments.max(1));
    let first = if tables == 1 { segments } else { segments.div_ceil(10).min(LARGE_SEGMENTS) };
    let (rest, others) = (segments - first, tables - 1);
    let share = |index: usize| rest * (index + 1) / others - rest * index / others;
    let shape = |segments: usize| {
        let shards = (segments / SEGMENTS_PER_SHARD).clamp(1, SHARDS_MAX);
        Shape { segments, shards: u32::try_from(shards).unwrap_or(1) }
    };
    std::iter::once(first).chain((0..others).map(share)).map(shape).collect()
}

/// Makes the catalog in this directory: its workers, its tables and a snapshot
/// of them, as a coordinator leaves it that has run for long.
///
/// # Errors
/// What the catalog says.
pub(super) async fn fill(dir: &Path, wanted: &Wanted) -> Result<Filled> {
    let options = CatalogOptions {
        dir: dir.to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        listening: Ipv4Addr::LOCALHOST.into(),
        join: Vec::new(),
        force_new_cluster: false,
    };
    let catalog = Catalog::open(options).await.context("open the catalog")?;
    let mut holders: Vec<Holder> = (0..wanted.workers).map(holder).collect();
    let registered = holders.iter().map(|holder| {
        let worker = holder.worker.clone();
        catalog.apply(Command::RegisterWorker { worker })
    });
    try_join_all(registered).await.context("register the workers")?;

    let shapes = shapes(wanted.segments, wanted.tables);
    let mut random = StdRng::seed_from_u64(wanted.seed);
    let candidates: Vec<Candidate> = holders
        .iter()
        .map(|holder| Candidate {
            id: holder.worker.id.clone(),
            zone: holder.worker.zone.clone(),
            disk: Disk::default(),
        })
        .collect();
    let numbers: HashMap<WorkerId, usize> =
        candidates.iter().enumerate().map(|(number, candidate)| (candidate.id.clone(), number)).collect();
    let mut last: Option<Table> = None;
    for (index, shape) in shapes.iter().enumerate() {
        let Outcome::Table(id) = catalog.apply(Command::ReserveTable).await? else {
            bail!("the catalog gave no number for a table");
        };
        let layout = TableLayout {
            shards: shape.shards,
            replicas: ReplicaCount::Count(wanted.replicas),
            shard_key: vec!["l_orderkey".to_owned()],
            sort_key: Vec::new(),
            hash: KeyHash::CURRENT,
            bloom_filters: Vec::new(),
        };
        // Tables that are laid out alike lie alike, as they do in a real cluster.
        let placed = place(&layout, &candidates, last.as_ref().into_iter()).context("no workers")?;
        let table = Table {
            id,
            schema_name: "public".to_owned(),
            name: table_name(index),
            columns: tpch_schema(TpchTable::Lineitem),
            layout,
            placement: placed.shards,
            segments: Vec::new(),
            sketches: None,
        };
        let command = Command::CreateTable { table: table.clone(), if_not_exists: false, write: None };
        catalog.apply(command).await.with_context(|| format!("create table {index}"))?;
        let mut segments = Vec::with_capacity(SEGMENTS_AT_ONCE);
        for number in 0..shape.segments {
            let segment = segment(&mut random, &table, number, *shape);
            for worker in &segment.replicas {
                if let Some(number) = numbers.get(worker) {
                    holders[*number].held.push((segment.name(), segment.bytes));
                }
            }
            segments.push(segment);
            if segments.len() == SEGMENTS_AT_ONCE || number + 1 == shape.segments {
                let segments = std::mem::take(&mut segments);
                let rows = segments.iter().map(|segment| segment.rows).sum();
                let write = WriteRecord { id: WriteId::random(), rows };
                let command =
                    Command::CommitWrite { write, table: id, segments, replace: false, sketches: None };
                catalog.apply(command).await.with_context(|| format!("fill table {index}"))?;
            }
        }
        last = Some(table);
    }
    let cluster = catalog.snapshot().cluster.clone();
    catalog.compact().await.context("keep a snapshot of the catalog")?;
    Ok(Filled { cluster, shapes, holders })
}

fn holder(number: usize) -> Holder {
    let id = format!("w{number:05}");
    let worker = WorkerRecord {
        id: WorkerId::new(id),
        // Nobody is called there: no query is run.
        address: format!("http://127.0.0.1:{}", 1 + number % 1_000),
        zone: ZONES[number % ZONES.len()].to_owned(),
        is_draining: false,
    };
    Holder { worker, held: Vec::new() }
}

/// The segment of this number: each shard gets one in turn, as writes do it.
fn segment(random: &mut StdRng, table: &Table, number: usize, shape: Shape) -> Segment {
    let shard = u32::try_from(number % shape.shards as usize).unwrap_or_default();
    Segment {
        id: SegmentId::random(),
        table: table.id,
        shard,
        rows: SEGMENT_ROWS + random.random_range(0..1_000),
        bytes: SEGMENT_BYTES + random.random_range(0..1_000_000),
        crc32c: random.random(),
        columns: columns(random, number as f64 / shape.segments as f64).into(),
        replicas: table.placement.get(shard as usize).cloned().unwrap_or_default(),
    }
}

/// What is known of the columns of `lineitem` in a segment that was written when
/// this part of all was there: dates and order numbers grow, the others do not.
fn columns(random: &mut StdRng, age: f64) -> Vec<ColumnStatistics> {
    let between =
        |min: StatValue, max: StatValue| ColumnStatistics { nulls: 0, min: Some(min), max: Some(max) };
    let ints = |min: i64, max: i64| between(StatValue::Int(min), StatValue::Int(max));
    let decimals = |min: i64, max: i64| {
        between(StatValue::Decimal(min.to_string()), StatValue::Decimal(max.to_string()))
    };
    let texts =
        |min: &str, max: &str| between(StatValue::Text(min.to_owned()), StatValue::Text(max.to_owned()));
    let order = (age * 6e9) as i64 + random.random_range(1..1_000);
    let shipped = SHIPPED.0 + (age * (SHIPPED.1 - SHIPPED.0) as f64) as i64 + random.random_range(0..5);
    vec![
        ints(order, order + 60_000_000),
        ints(random.random_range(1..50), 200_000_000 - random.random_range(0..50)),
        ints(random.random_range(1..5), 10_000_000 - random.random_range(0..5)),
        ints(1, 7),
        decimals(100, 5_000),
        decimals(90_000 + random.random_range(0..1_000), 10_490_000 + random.random_range(0..5_000)),
        decimals(0, 10),
        decimals(0, 8),
        texts("A", "R"),
        texts("F", "O"),
        ints(shipped, shipped + 30),
        ints(shipped - 40, shipped + 60),
        ints(shipped + 1, shipped + 60),
        texts("COLLECT COD", "TAKE BACK RETURN"),
        texts("AIR", "TRUCK"),
        texts(
            &format!(" Tiresias {} the accounts detect quickly", random.random_range(0..1_000_000)),
            &format!("zzle? furiously ironic {} instructions among", random.random_range(0..1_000_000)),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use shoal_proto::TableId;

    use super::*;

    #[test]
    fn all_segments_are_in_some_table() {
        for (segments, tables) in
            [(1, 1), (7, 100), (10_000, 100), (100_000, 1), (1_000_000, 100), (12_345, 3)]
        {
            let shapes = shapes(segments, tables);
            assert_eq!(shapes.iter().map(|shape| shape.segments).sum::<usize>(), segments, "{tables} tables");
            assert!(shapes.iter().all(|shape| (1..=1_000).contains(&shape.shards)), "{shapes:?}");
        }
        let large = shapes(1_000_000, 100);
        assert_eq!(large[0], Shape { segments: 100_000, shards: 1_000 });
        assert_eq!(large.iter().map(|shape| shape.shards).sum::<u32>(), 100_000);
    }

    #[test]
    fn what_is_known_of_columns_is_of_their_types() {
        let schema = tpch_schema(TpchTable::Lineitem);
        let known = columns(&mut StdRng::seed_from_u64(1), 0.5);
        assert_eq!(known.len(), schema.fields().len());
        for (column, field) in known.iter().zip(schema.fields()) {
            for bound in [&column.min, &column.max] {
                let scalar = bound.as_ref().and_then(|bound| bound.to_scalar(field.data_type()));
                assert!(scalar.is_some(), "{field} cannot be {bound:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_catalog_that_is_opened_again_has_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let wanted = Wanted { workers: 5, tables: 3, segments: 200, replicas: 2, seed: 1 };
        let filled = fill(dir.path(), &wanted).await.unwrap();
        let held: usize = filled.holders.iter().map(|holder| holder.held.len()).sum();
        assert_eq!(held, 400);
        let options = CatalogOptions {
            dir: dir.path().to_owned(),
            address: "http://127.0.0.1:1".to_owned(),
            listening: Ipv4Addr::LOCALHOST.into(),
            join: Vec::new(),
            force_new_cluster: false,
        };
        let state = Catalog::open(options).await.unwrap().snapshot();
        assert_eq!(state.cluster, filled.cluster);
        assert_eq!(state.workers().count(), 5);
        let segments: Vec<usize> = state.tables().map(|table| table.segments.len()).collect();
        assert_eq!(segments, filled.shapes.iter().map(|shape| shape.segments).collect::<Vec<_>>());
        assert_eq!(state.table_by_id(TableId(1)).unwrap().name, table_name(0));
    }
}
