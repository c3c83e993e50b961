//! Tests of how scans are dealt to tasks.

use std::collections::BTreeSet;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{Constraint, Constraints, Statistics};
use datafusion::config::CsvOptions;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::physical_plan::{CsvSource, ParquetSource};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, IsNullExpr};
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalSortExpr};
use datafusion::physical_expr_adapter::DefaultPhysicalExprAdapterFactory;
use datafusion::physical_plan::projection::ProjectionExec;
use shoal_proto::{SegmentId, WorkerId};

use super::*;
use crate::catalog::TableFacts;
use crate::catalog::state::tests::{segment, table};
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::session_state::PARTITIONS;

#[test]
fn a_scan_without_its_files_is_the_same_otherwise() {
    let fields = ["a", "b"].map(|name| Field::new(name, DataType::Int64, false));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let a = Arc::new(Column::new("a", 0));
    let statistics = Statistics { num_rows: Precision::Exact(7), ..Statistics::new_unknown(&schema) };
    let scan = FileScanConfigBuilder::new(
        ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap(),
        Arc::new(ParquetSource::new(schema)),
    )
    .with_file_groups(vec![FileGroup::new(vec![PartitionedFile::new("1/2/x.parquet", 9)])])
    .with_statistics(statistics)
    .with_constraints(Constraints::new_unverified(vec![Constraint::Unique(vec![0])]))
    .with_expr_adapter(Some(Arc::new(DefaultPhysicalExprAdapterFactory)))
    .with_projection_indices(Some(vec![1, 0]))
    .unwrap()
    .with_limit(Some(3))
    .with_batch_size(Some(100))
    .with_output_ordering(LexOrdering::new([PhysicalSortExpr::new_default(a.clone())]).into_iter().collect())
    .with_output_partitioning(Some(Partitioning::Hash(vec![a], 1)))
    .build();
    let mut copied = scan.clone();
    copied.file_groups.clear();
    let bare = without_files(&scan);
    assert_ne!(format!("{scan:?}"), format!("{copied:?}"));
    assert_eq!(format!("{bare:?}"), format!("{copied:?}"));
    assert_eq!(bare.statistics(), copied.statistics());
    assert_eq!(bare.constraints, copied.constraints);
    assert!(!bare.constraints.is_empty(), "there is nothing to lose");
    let adapter = format!("{:?}", bare.expr_adapter_factory);
    assert_eq!(adapter, "Some(DefaultPhysicalExprAdapterFactory)");
    assert_eq!((bare.limit, bare.batch_size), (Some(3), Some(100)));
    assert_eq!((bare.preserve_order, &bare.output_ordering), (true, &copied.output_ordering));
    assert_eq!(format!("{:?}", bare.output_partitioning), format!("{:?}", copied.output_partitioning));
}

/// The segments of each group of each task, by their numbers.
fn dealt(leaf: &Arc<dyn ExecutionPlan>, names: &[SegmentName]) -> Vec<Vec<Vec<usize>>> {
    let leaf = leaf.downcast_ref::<DistributedLeafExec>().unwrap();
    let number = |file: &PartitionedFile| {
        let name = segment_of(file).unwrap();
        names.iter().position(|other| *other == name).unwrap()
    };
    let groups = |variant| {
        let scan = shard_scan(variant).unwrap();
        scan.file_groups.iter().map(|group| group.files().iter().map(number).collect()).collect()
    };
    leaf.variants().iter().map(groups).collect()
}

#[test]
fn files_of_a_sorted_group_stay_in_their_order() {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
    let names: Vec<SegmentName> = [3, 0, 2, 1, 1]
        .map(|shard| SegmentName { table: TableId(1), shard, segment: SegmentId::random() })
        .to_vec();
    let file = |number: usize| PartitionedFile::new(names[number].to_string(), 100);
    let scan = FileScanConfigBuilder::new(
        ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap(),
        Arc::new(ParquetSource::new(schema)),
    )
    .with_file_groups(vec![
        FileGroup::new(vec![file(0), file(1), file(2)]),
        FileGroup::new(vec![file(3), file(4)]),
    ])
    .build();
    let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan.clone());
    let tasks_of = BTreeMap::from([(0, 0), (1, 1), (2, 1), (3, 0)]);
    let two = deal_sorted(&plan, &scan, 2, 2, &tasks_of).unwrap();
    assert_eq!(dealt(&two, &names), [vec![vec![0, 1], vec![]], vec![vec![2], vec![3, 4]]]);
    let one = deal_sorted(&plan, &scan, 1, 2, &(0..4).map(|shard| (shard, 0)).collect()).unwrap();
    assert_eq!(dealt(&one, &names), [vec![vec![0, 1, 2], vec![3, 4]]]);
    assert!(deal_sorted(&plan, &scan, 1, 1, &tasks_of).is_err(), "two sorted groups are not one");
}

const WORKERS: [&str; 4] = ["w1", "w2", "w3", "w4"];

/// Four workers of a thread, and a table of so many shards, each of which is on one of them.
fn view_of(shards: u32) -> View {
    view_with(shards, 1)
}

/// The same with so many threads.
fn view_with(shards: u32, threads: u32) -> View {
    let mut made = table(TableId(1), "t");
    made.layout.shards = shards;
    let on = |shard: u32| WORKERS[shard as usize % WORKERS.len()];
    made.placement = (0..shards).map(|shard| vec![WorkerId::from(on(shard))]).collect();
    made.segments = (0..shards).map(|shard| Arc::new(segment(TableId(1), shard, on(shard)))).collect();
    let facts = [Arc::new(TableFacts::new(Arc::new(made)))];
    let worker = |name| LiveWorker { threads, ..LiveWorker::named(name) };
    let live = LiveWorkers { workers: WORKERS.map(worker).to_vec(), ..LiveWorkers::default() };
    View::new(&live, &facts, &BTreeSet::new(), "", 0, PARTITIONS).unwrap()
}

/// A scan of a segment of each of these shards, in the given order. A table says that it is hashed where
/// the engine computes the hash that it was written with, and else nothing.
fn scan_of(shards: &[u32], is_hashed: bool) -> (Vec<SegmentName>, FileScanConfig) {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
    let name = |&shard| SegmentName { table: TableId(1), shard, segment: SegmentId::random() };
    let names: Vec<SegmentName> = shards.iter().map(name).collect();
    let files = names.iter().map(|name| PartitionedFile::new(name.to_string(), 1 << 30)).collect();
    let mut groups = vec![FileGroup::default(); PARTITIONS];
    groups[0] = FileGroup::new(files);
    let layout = Partitioning::Hash(vec![Arc::new(Column::new("a", 0))], PARTITIONS);
    let url = ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap();
    let scan = FileScanConfigBuilder::new(url, Arc::new(ParquetSource::new(schema)))
        .with_file_groups(groups)
        .with_output_partitioning(is_hashed.then_some(layout))
        .build();
    (names, scan)
}

/// The shards of each group of each task, where the scan of these of a table's shards was dealt to so
/// many tasks; or why it was not.
fn dealt_shards(
    of_table: u32,
    shards: &[u32],
    is_hashed: bool,
    tasks: usize,
) -> Result<Vec<Vec<Vec<u32>>>, String> {
    let (names, scan) = scan_of(shards, is_hashed);
    let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan.clone());
    let leaf = deal_scan(&plan, &scan, &view_of(of_table), tasks, PARTITIONS);
    let leaf = leaf.map_err(|error| error.to_string())?;
    let shards = |numbers: Vec<usize>| numbers.into_iter().map(|number| names[number].shard).collect();
    let groups = |groups: Vec<Vec<usize>>| groups.into_iter().map(shards).collect();
    Ok(dealt(&leaf, &names).into_iter().map(groups).collect())
}

#[test]
fn hashed_shards_are_dealt_as_an_exchange_deals_rows() {
    let all: Vec<u32> = (0..8).collect();
    assert_eq!(dealt_shards(8, &all, true, 1).unwrap(), [[vec![0, 2, 4, 6], vec![1, 3, 5, 7]]]);
    assert_eq!(dealt_shards(8, &all, true, 2).unwrap(), [[vec![0, 4], vec![1, 5]], [vec![2, 6], vec![3, 7]]]);
    assert_eq!(
        dealt_shards(8, &all, true, 4).unwrap(),
        [[vec![0], vec![1]], [vec![2], vec![3]], [vec![4], vec![5]], [vec![6], vec![7]]]
    );
    let six: Vec<u32> = (0..6).collect();
    assert_eq!(
        dealt_shards(6, &six, true, 3).unwrap(),
        [[vec![0], vec![1]], [vec![2], vec![3]], [vec![4], vec![5]]]
    );
}

#[test]
fn shards_that_do_not_divide_into_all_partitions_are_not_dealt_as_hashed() {
    let six: Vec<u32> = (0..6).collect();
    for (tasks, shards) in [(4, six.as_slice()), (4, &[0, 1]), (2, &six)] {
        let refusal = dealt_shards(6, shards, true, tasks).unwrap_err();
        let why = format!("6 shards cannot be dealt to {tasks} tasks of 2 partitions as they are hashed");
        assert!(refusal.contains(&why), "{refusal}");
    }
}

#[test]
fn shards_that_were_pruned_move_no_others() {
    let none = Vec::new;
    assert_eq!(dealt_shards(8, &[6, 1], true, 2).unwrap(), [[none(), vec![1]], [vec![6], none()]]);
    assert_eq!(dealt_shards(8, &[7], true, 2).unwrap(), [[none(), none()], [none(), vec![7]]]);
    assert_eq!(dealt_shards(8, &[], true, 2).unwrap(), [[none(), none()], [none(), none()]]);
    // Those that are left divide into the partitions, and are not moved together for it.
    assert_eq!(dealt_shards(8, &[3, 4, 5, 7], true, 2).unwrap(), [[vec![4], vec![5]], [none(), vec![3, 7]]]);
}

#[test]
fn shards_of_another_hash_are_dealt_whole_to_who_has_them() {
    let six: Vec<u32> = (0..6).collect();
    let tasks = dealt_shards(6, &six, false, 4).unwrap();
    let workers = view_of(6).task_workers(4);
    let mut all = Vec::new();
    for (task, groups) in tasks.iter().enumerate() {
        assert_eq!(groups.len(), PARTITIONS);
        for shard in groups.iter().flatten() {
            assert_eq!(WORKERS[*shard as usize % 4], WORKERS[workers[task]], "{tasks:?}");
            all.push(*shard);
        }
    }
    all.sort_unstable();
    assert_eq!(all, six);
}

#[test]
fn a_scan_gets_as_many_tasks_as_its_shards_divide_into() {
    let check = |shards: u32, expected: usize| {
        let (_names, scan) = scan_of(&(0..shards).collect::<Vec<_>>(), true);
        let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan);
        let config = SessionConfig::new()
            .with_target_partitions(PARTITIONS)
            .with_option_extension(ShoalConfig::default())
            .with_extension(Arc::new(view_of(shards)));
        let event = DesiredTaskCountEvent { plan: &plan, session_config: &config };
        let tasks = desired_task_count(event).unwrap().unwrap().task_count.as_usize();
        assert_eq!(tasks, expected, "{shards} shards");
    };
    check(1, 1);
    check(2, 1);
    check(4, 2);
    check(6, 3);
    check(8, 4);
    check(12, 3);
    // Nothing divides: they join nothing where they are, and are read by all.
    check(7, 4);
}

#[test]
fn a_scan_gets_fewer_tasks_where_each_has_more_threads() {
    let tasks = |threads| {
        let (_names, scan) = scan_of(&(0..8).collect::<Vec<_>>(), true);
        let plan: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan);
        let config = SessionConfig::new()
            .with_target_partitions(PARTITIONS)
            .with_option_extension(ShoalConfig { task_bytes: 4 << 30, ..ShoalConfig::default() })
            .with_extension(Arc::new(view_with(8, threads)));
        let event = DesiredTaskCountEvent { plan: &plan, session_config: &config };
        desired_task_count(event).unwrap().unwrap().task_count.as_usize()
    };
    // Of 8 GiB.
    assert_eq!([1, 2, 16].map(tasks), [4, 2, 2]);
}

#[test]
fn files_that_cannot_be_read_in_pieces_are_dealt_whole() {
    let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
    let file = |name: &&str| PartitionedFile::new(*name, 1 << 30);
    let scan = |over_lines, compression| -> Arc<dyn ExecutionPlan> {
        let options = CsvOptions { newlines_in_values: Some(over_lines), ..CsvOptions::default() };
        let source = CsvSource::new(Arc::clone(&schema)).with_csv_options(options);
        let groups: [&[&str]; 2] = [&["a", "b", "c"], &["d", "e"]];
        let groups = groups.map(|names| FileGroup::new(names.iter().map(file).collect()));
        let scan = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(groups.to_vec())
            .with_file_compression_type(compression)
            .build();
        DataSourceExec::from_data_source(scan)
    };
    let names = |plan: &Arc<dyn ExecutionPlan>| -> Vec<String> {
        let groups = file_scan(plan).unwrap().file_groups.iter();
        let files = |group: &FileGroup| group.files().iter().map(|file| file.path().to_string()).collect();
        assert!(groups.clone().flat_map(FileGroup::files).all(|file| file.range.is_none()));
        groups.map(files).collect()
    };
    let plain = FileCompressionType::UNCOMPRESSED;
    for plan in [scan(true, plain), scan(false, FileCompressionType::GZIP)] {
        let dealt = |tasks| -> Vec<Vec<String>> {
            let leaf = deal_whole_files(&plan, tasks).unwrap().unwrap();
            leaf.downcast_ref::<DistributedLeafExec>().unwrap().variants().iter().map(names).collect()
        };
        assert_eq!(dealt(1), [["abc", "de"]]);
        assert_eq!(dealt(2), [["ac", "e"], ["b", "d"]]);
    }
    assert!(deal_whole_files(&scan(false, plain), 2).is_none(), "the library cuts it as well");
}

#[test]
fn each_task_has_its_share_to_read() {
    let tasks = |bytes| tasks_worthwhile(bytes, 24);
    assert_eq!([0, 1, 12, 13, 36, 37, 60, 61].map(tasks), [1, 1, 1, 2, 2, 3, 3, 4]);
    // Sessions that want as many tasks as there can be.
    assert_eq!(tasks_worthwhile(5, 1), 5);
    assert_eq!(tasks_worthwhile(0, 0), 1);
}

#[test]
fn a_scan_is_as_large_as_its_columns_are_decoded() {
    let column = |name: &str, data_type| Field::new(name, data_type, false);
    let schema = Schema::new(vec![
        column("number", DataType::Int64),
        column("day", DataType::Date32),
        column("price", DataType::Decimal128(15, 2)),
        column("short", DataType::Utf8View),
        column("long", DataType::Utf8View),
        column("flag", DataType::Boolean),
    ]);
    let schema = Arc::new(schema);
    let scan_of = |columns: Vec<usize>, rows: Precision<usize>| {
        let statistics = Statistics { num_rows: rows, ..Statistics::new_unknown(&schema) };
        let url = ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap();
        let files = FileGroup::new(vec![PartitionedFile::new("one", 600), PartitionedFile::new("two", 400)]);
        FileScanConfigBuilder::new(url, Arc::new(ParquetSource::new(Arc::clone(&schema))))
            .with_file_groups(vec![files])
            .with_statistics(statistics)
            .with_projection_indices(Some(columns))
            .unwrap()
            .build()
    };
    let bytes_of = |columns, rows| decoded_bytes(&scan_of(columns, rows));
    let rows = Precision::Inexact(100);
    assert_eq!(bytes_of(vec![0], rows), 100 * 8);
    assert_eq!(bytes_of(vec![0, 1, 2], rows), 100 * (8 + 4 + 16));
    // Of two texts the one has half of the files.
    assert_eq!(bytes_of(vec![1, 3], rows), 100 * (4 + 16) + 500);
    assert_eq!(bytes_of(vec![0, 1, 2, 3, 4, 5], rows), 100 * (8 + 4 + 16 + 16 + 16 + 1) + 1000);
    // What is computed while a column is read takes all of the column.
    let whole: Arc<dyn ExecutionPlan> = DataSourceExec::from_data_source(scan_of(vec![3], rows));
    let texts = Arc::new(Column::new("short", 0)) as Arc<dyn PhysicalExpr>;
    let is_null = Arc::new(IsNullExpr::new(texts)) as Arc<dyn PhysicalExpr>;
    let computed = ProjectionExec::try_new([(is_null, "empty".to_owned())], Arc::clone(&whole)).unwrap();
    let computed = whole.try_swapping_with_projection(&computed).unwrap().unwrap();
    assert_eq!(computed.schema().field(0).data_type(), &DataType::Boolean);
    assert_eq!(decoded_bytes(shard_scan(&computed).unwrap()), 100 * 16 + 500);
    // Where nobody knows how many rows there are it is what is in the files.
    assert_eq!(bytes_of(vec![0], Precision::Absent), 1000 / 6);
}

#[test]
fn of_one_shard_it_counts_what_is_stored() {
    let tasks = |shards: &[u32]| {
        let (_names, scan) = scan_of(shards, true);
        let rows = Precision::Exact(10 << 30);
        let statistics = Statistics { num_rows: rows, ..Statistics::new_unknown(scan.file_schema()) };
        let scan = FileScanConfigBuilder::from(scan).with_statistics(statistics).build();
        tasks_of_scan(&scan, 1 << 30).unwrap()
    };
    // Segments of 1 GiB; numbers of 80 GiB are in them.
    assert_eq!([tasks(&[3]), tasks(&[3, 3]), tasks(&[3, 4])], [2, 3, 81]);
}

#[test]
fn there_are_as_many_tasks_as_shards_are_dealt_to_evenly() {
    let of_32 = |wanted, most| tasks_that_meet(wanted, most, 32, 2);
    // Of a little more than half as many as there could be there would be half.
    assert_eq!(
        [1, 2, 3, 4, 5, 6, 8, 11, 12, 15, 16].map(|wanted| of_32(wanted, 16)),
        [1, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16]
    );
    // Never more than there are workers.
    assert_eq!([3, 12, 15].map(|wanted| of_32(wanted, wanted)), [2, 8, 8]);
    assert_eq!(tasks_that_meet(3, 4, 1, 2), 1);
    // What cannot be dealt so is dealt otherwise.
    assert_eq!(tasks_that_meet(3, 4, 7, 2), 3);
}
