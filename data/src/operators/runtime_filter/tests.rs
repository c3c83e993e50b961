use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::common::{JoinType, NullEquality};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::TaskContext;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_plan::joins::{HashJoinExec, PartitionMode};
use datafusion::physical_plan::{ExecutionPlan, displayable};
use datafusion::prelude::SessionConfig;
use datafusion_proto::physical_plan::{DefaultPhysicalProtoConverter, PhysicalExtensionCodec};
use futures::{StreamExt, TryStreamExt};
use proptest::prelude::*;
use shoal_proto::query::RuntimeFilter;
use shoal_proto::runtime_filter::{KeyFilter, RuntimeFilterRelay, RuntimeFilters};

use super::*;
use crate::operators::OperatorCodec;
use crate::shard_store::SHARD_STORE_URL;

type Keys = Vec<Option<i64>>;

fn keys() -> FilterKeys {
    FilterKeys { id: FilterId { plan: 3, join: 1 }, columns: vec![1] }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("n", DataType::Int64, false),
        Field::new("k", DataType::Int64, true),
    ]))
}

/// Rows with their numbers and these keys, in batches of seven.
fn rows(partitions: &[Keys]) -> Arc<dyn ExecutionPlan> {
    let partitions = partitions.iter().map(|keys| {
        let numbered: Vec<(i64, Option<i64>)> = (0..).zip(keys.iter().copied()).collect();
        let batches = numbered.chunks(7).map(|rows| {
            let numbers = Int64Array::from_iter_values(rows.iter().map(|(number, _)| *number));
            let keys = Int64Array::from_iter(rows.iter().map(|(_, key)| *key));
            RecordBatch::try_new(schema(), vec![Arc::new(numbers), Arc::new(keys)]).unwrap()
        });
        batches.collect::<Vec<_>>()
    });
    let partitions: Vec<_> = partitions.collect();
    MemorySourceConfig::try_new_exec(&partitions, schema(), None).unwrap()
}

fn context(filters: &Arc<RuntimeFilters>) -> Arc<TaskContext> {
    let config = SessionConfig::new().with_extension(Arc::clone(filters));
    Arc::new(TaskContext::default().with_session_config(config))
}

/// What a task whose partitions have these keys tells the coordinator, as one of
/// so many tasks.
async fn told(partitions: &[Keys], task: u32, tasks: u32) -> RuntimeFilter {
    told_of(partitions, &[], task, tasks).await
}

/// The same, where partitions are dropped after so many batches before they are read to
/// their end.
async fn told_of(partitions: &[Keys], dropped: &[Option<usize>], task: u32, tasks: u32) -> RuntimeFilter {
    let filters = Arc::new(RuntimeFilters::new());
    let gathering: Arc<dyn ExecutionPlan> = Arc::new(JoinKeysExec::new(rows(partitions), keys()));
    for (partition, keys) in partitions.iter().enumerate() {
        let execute = || gathering.execute(partition, context(&filters)).unwrap();
        if let Some(batches) = dropped.get(partition).copied().flatten() {
            let mut some = execute().take(batches);
            while some.next().await.transpose().unwrap().is_some() {}
        }
        let handed_on: Vec<RecordBatch> = execute().try_collect().await.unwrap();
        let rows: usize = handed_on.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, keys.len());
    }
    RuntimeFilter { task, tasks, ..filters.next_part().await }
}

/// The rows that a filter hands on of rows with these keys.
async fn handed_on(filters: &Arc<RuntimeFilters>, probe: Keys) -> Vec<(i64, Option<i64>)> {
    let filter = RuntimeFilterExec::new(rows(&[probe]), keys());
    let stream = filter.execute(0, context(filters)).unwrap();
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    let of_batch = |batch: &RecordBatch| {
        let (numbers, keys) = (batch.column(0).as_primitive::<Int64Type>().clone(), batch.column(1).clone());
        let keys = keys.as_primitive::<Int64Type>().clone();
        (0..batch.num_rows())
            .map(|row| (numbers.value(row), keys.is_valid(row).then(|| keys.value(row))))
            .collect::<Vec<_>>()
    };
    batches.iter().flat_map(of_batch).collect()
}

fn runs<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn some_keys() -> impl Strategy<Value = Keys> {
    prop::collection::vec(prop::option::weighted(0.9, prop_oneof![-20..20_i64, any::<i64>()]), 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However keys are dealt to tasks and partitions, also where some of these are dropped and
    /// read again.
    #[test]
    fn no_row_with_a_partner_is_left_out_and_order_stays(
        tasks in prop::collection::vec(prop::collection::vec(some_keys(), 1..4), 1..5),
        dropped in prop::collection::vec(prop::option::weighted(0.3, 0..4_usize), 0..3),
        probe in some_keys(),
    ) {
        let (all, given) = runs(async {
            let relay = RuntimeFilterRelay::new();
            let mut whole = relay.join("worker").unwrap();
            let count = tasks.len() as u32;
            let mut come = None;
            for (task, partitions) in (0..).zip(&tasks) {
                let is_of_any = come.as_ref().is_some_and(|come| KeyFilter::from_wire(come).unwrap().1.is_of_any());
                assert!(come.is_none() || is_of_any, "whole before task {task} of {count}");
                let dropped = if task == 0 { &dropped[..] } else { &[] };
                relay.take_in(&told_of(partitions, dropped, task, count).await);
                come = come.or(whole.try_recv().ok());
            }
            assert!(whole.try_recv().is_err(), "once");
            let filters = Arc::new(RuntimeFilters::new());
            filters.deliver(&come.unwrap());
            let given = handed_on(&filters, probe.clone()).await;
            ((0..).zip(probe).collect::<Vec<(i64, Option<i64>)>>(), given)
        });
        let built: Vec<i64> = tasks.into_iter().flatten().flatten().flatten().collect();
        let has_partner = |row: &&(i64, Option<i64>)| row.1.is_some_and(|key| built.contains(&key));
        let needed: Vec<_> = all.iter().filter(has_partner).collect();
        prop_assert_eq!(needed, given.iter().filter(has_partner).collect::<Vec<_>>());
        let mut in_order = all.iter();
        prop_assert!(given.iter().all(|row| in_order.any(|other| other == row)), "another order, or other rows");
        if dropped.iter().all(Option::is_none) {
            prop_assert!(given.iter().all(|row| row.1.is_some()), "a key that is null has no partner");
        }
    }
}

#[test]
fn rows_without_a_partner_are_left_out_and_counted() {
    runs(async {
        let filters = Arc::new(RuntimeFilters::new());
        filters.deliver(&told(&[vec![Some(5)], vec![Some(900), None]], 0, 1).await);
        let probe: Keys = (0..1000).map(Some).collect();
        let filter = RuntimeFilterExec::new(rows(&[probe]), keys());
        let stream = filter.execute(0, context(&filters)).unwrap();
        let given: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        let given: usize = given.iter().map(RecordBatch::num_rows).sum();
        assert!((2..50).contains(&given), "{given} rows");
        let counted = filter.metrics().unwrap().sum_by_name(ROWS_PRUNED_METRIC).unwrap().as_usize();
        assert_eq!(counted, 1000 - given);
    });
}

#[test]
fn the_wait_of_the_first_row_is_told() {
    runs(async {
        let filter = RuntimeFilterExec::new(rows(&[vec![Some(1)]]), keys());
        let stream = filter.execute(0, context(&Arc::new(RuntimeFilters::new()))).unwrap();
        assert_eq!(stream.try_collect::<Vec<RecordBatch>>().await.unwrap().len(), 1);
        let waited = filter.metrics().unwrap().sum_by_name(WAIT_METRIC).unwrap().as_usize();
        assert!(waited >= 20_000_000, "{waited} ns");
    });
}

#[test]
fn a_filter_that_does_not_come_leaves_out_nothing() {
    runs(async {
        let probe: Keys = vec![Some(1), None, Some(3)];
        let all = vec![(0, Some(1)), (1, None), (2, Some(3))];
        let filters = Arc::new(RuntimeFilters::new());
        assert_eq!(handed_on(&filters, probe.clone()).await, all);
        // Nor does that of another plan.
        let other = RuntimeFilter { plan: 4, ..told(&[vec![Some(77)]], 0, 1).await };
        filters.deliver(&other);
        assert_eq!(handed_on(&filters, probe.clone()).await, all);
        // Nor one over other types.
        let mut collector = shoal_proto::runtime_filter::KeyCollector::new(vec![DataType::Utf8View]).unwrap();
        collector.add(&[Arc::new(arrow::array::StringViewArray::from(vec!["x"]))]).unwrap();
        filters.deliver(&collector.finish().unwrap().to_wire(keys().id, 0, 1).unwrap());
        assert_eq!(handed_on(&filters, probe).await, all);
    });
}

#[tokio::test(start_paused = true)]
async fn the_first_row_waits_as_long_again_as_its_attempt_has_lasted() {
    let ms = Duration::from_millis;
    // For how long there were tasks, when the filter comes after that, and whether that is in time.
    let cases = [
        (0, 19, true),
        (0, 21, false),
        (300, 299, true),
        (300, 301, false),
        (5000, 999, true),
        (5000, 1001, false),
    ];
    for (age, late, in_time) in cases {
        let whole = told(&[vec![Some(77)]], 0, 1).await;
        let filters = Arc::new(RuntimeFilters::new());
        tokio::time::advance(ms(age)).await;
        let comes = async {
            tokio::time::sleep(ms(late)).await;
            filters.deliver(&whole);
        };
        let probe: Keys = vec![Some(1), Some(77)];
        let (given, ()) = tokio::join!(handed_on(&filters, probe), comes);
        let expected = if in_time { vec![(1, Some(77))] } else { vec![(0, Some(1)), (1, Some(77))] };
        assert_eq!(given, expected, "{late} ms after {age} ms");
    }
}

#[test]
fn keys_are_told_only_when_all_partitions_are_at_their_end() {
    runs(async {
        let filters = Arc::new(RuntimeFilters::new());
        let partitions = [vec![Some(1); 20], vec![Some(2); 20]];
        let gathering = JoinKeysExec::new(rows(&partitions), keys());
        for _again in 0..2 {
            let stream = gathering.execute(0, context(&filters)).unwrap();
            let _all: Vec<RecordBatch> = stream.try_collect().await.unwrap();
            assert!(told_now(&filters).await.is_none());
        }
        let stream = gathering.execute(1, context(&filters)).unwrap();
        let _all: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        assert_eq!(told_now(&filters).await.unwrap().rows(), 40);
    });
}

/// What waits to be told, if anything does.
async fn told_now(filters: &RuntimeFilters) -> Option<KeyFilter> {
    let part = tokio::time::timeout(Duration::ZERO, filters.next_part()).await.ok()?;
    Some(KeyFilter::from_wire(&part).unwrap().1)
}

#[test]
fn of_keys_that_are_not_gathered_it_is_told_at_once_that_they_may_be_any() {
    runs(async {
        let filters = Arc::new(RuntimeFilters::new());
        let partitions = [vec![Some(1); 20], vec![Some(2); 20]];
        // One partition is dropped half-way, or unread.
        for batches in [1, 0] {
            let gathering = JoinKeysExec::new(rows(&partitions), keys());
            let mut first = gathering.execute(0, context(&filters)).unwrap();
            for _ in 0..batches {
                first.next().await.unwrap().unwrap();
            }
            assert!(told_now(&filters).await.is_none());
            drop(first);
            assert!(told_now(&filters).await.unwrap().is_of_any(), "{batches} batches");
            // Once, whatever the other one has.
            let second = gathering.execute(1, context(&filters)).unwrap();
            let _all: Vec<RecordBatch> = second.try_collect().await.unwrap();
            assert!(told_now(&filters).await.is_none());
        }
        // There is no memory to gather them.
        let gathering = JoinKeysExec::new(rows(&partitions), keys());
        let little = RuntimeEnvBuilder::new().with_memory_limit(1000, 1.0).build_arc().unwrap();
        let poor = Arc::into_inner(context(&filters)).unwrap().with_runtime(little);
        let stream = gathering.execute(0, Arc::new(poor)).unwrap();
        assert!(told_now(&filters).await.unwrap().is_of_any());
        assert_eq!(stream.try_collect::<Vec<RecordBatch>>().await.unwrap().len(), 3);
    });
}

#[test]
fn a_join_that_the_one_above_does_not_read_says_that_its_keys_may_be_any() {
    runs(async {
        let filters = Arc::new(RuntimeFilters::new());
        let joined = |built, probe| -> Arc<dyn ExecutionPlan> {
            let key = || Arc::new(Column::new("k", 1)) as _;
            let (mode, nulls) = (PartitionMode::Partitioned, NullEquality::NullEqualsNothing);
            let on = vec![(key(), key())];
            let join =
                HashJoinExec::try_new(built, probe, on, None, &JoinType::Inner, None, mode, nulls, false);
            Arc::new(join.unwrap())
        };
        let both = || rows(&[vec![Some(1)], vec![Some(2)]]);
        let below = joined(Arc::new(JoinKeysExec::new(both(), keys())), both());
        let above = joined(rows(&[vec![Some(1)], vec![]]), below);
        let mut found = 0;
        for partition in 0..2 {
            let stream = above.execute(partition, context(&filters)).unwrap();
            let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
            found += batches.iter().map(RecordBatch::num_rows).sum::<usize>();
        }
        assert_eq!(found, 1);
        assert!(told_now(&filters).await.unwrap().is_of_any());
    });
}

#[tokio::test(start_paused = true)]
async fn filters_one_above_the_other_are_waited_for_at_the_same_time() {
    let ms = Duration::from_millis;
    let filters = Arc::new(RuntimeFilters::new());
    tokio::time::advance(ms(300)).await;
    let plan = (1..=3).fold(rows(&[vec![Some(1), Some(2)]]), |input, join| {
        let keys = FilterKeys { id: FilterId { plan: 3, join }, columns: vec![1] };
        Arc::new(RuntimeFilterExec::new(input, keys))
    });
    let since = tokio::time::Instant::now();
    let stream = plan.execute(0, context(&filters)).unwrap();
    let given: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    assert_eq!((given[0].num_rows(), since.elapsed()), (2, ms(300)));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_filter_of_which_it_is_known_that_it_does_not_come() {
    let ms = Duration::from_millis;
    // Where the join is, and on another worker; of one task of the join, and of one of two.
    for (elsewhere, tasks) in [(false, 1), (true, 1), (true, 2)] {
        let joining = Arc::new(RuntimeFilters::new());
        let reading = if elsewhere { Arc::new(RuntimeFilters::new()) } else { Arc::clone(&joining) };
        let gathering = JoinKeysExec::new(rows(&[vec![Some(1)]]), keys());
        let stream = gathering.execute(0, context(&joining)).unwrap();
        tokio::time::advance(Duration::from_secs(5)).await;
        let since = tokio::time::Instant::now();
        let given = async {
            let given = handed_on(&reading, vec![Some(1), None, Some(2)]).await;
            (given, since.elapsed())
        };
        let ends = async {
            tokio::time::sleep(ms(10)).await;
            drop(stream);
            if !elsewhere {
                return;
            }
            let relay = RuntimeFilterRelay::new();
            let mut whole = relay.join("reading").unwrap();
            relay.take_in(&RuntimeFilter { tasks, ..joining.next_part().await });
            reading.deliver(&whole.try_recv().unwrap());
        };
        let (given, ()) = tokio::join!(given, ends);
        let all = vec![(0, Some(1)), (1, None), (2, Some(2))];
        assert_eq!(given, (all, ms(10)), "elsewhere: {elsewhere}, of {tasks}");
    }
}

#[test]
fn without_tasks_there_is_nothing_to_gather() {
    runs(async {
        let gathering = JoinKeysExec::new(rows(&[vec![Some(1)]]), keys());
        let stream = gathering.execute(0, Arc::new(TaskContext::default())).unwrap();
        assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().len(), 1);
    });
}

#[test]
fn both_operators_come_to_workers_as_they_are() {
    let (codec, converter) = (OperatorCodec, DefaultPhysicalProtoConverter {});
    let input = rows(&[vec![Some(1)]]);
    let gathering: Arc<dyn ExecutionPlan> = Arc::new(JoinKeysExec::new(Arc::clone(&input), keys()));
    let filter: Arc<dyn ExecutionPlan> = Arc::new(RuntimeFilterExec::new(Arc::clone(&input), keys()));
    for node in [gathering, filter] {
        let mut name = Vec::new();
        codec.try_encode(Arc::clone(&node), &mut name, &converter).unwrap();
        let context = TaskContext::default();
        let decoded = codec.try_decode(&name, &[Arc::clone(&input)], &context, &converter).unwrap();
        let line = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).one_line().to_string();
        assert_eq!(line(&decoded), line(&node));
        let keys_of = |plan: &Arc<dyn ExecutionPlan>| match plan.downcast_ref::<JoinKeysExec>() {
            Some(gathering) => gathering.keys().clone(),
            None => plan.downcast_ref::<RuntimeFilterExec>().unwrap().keys().clone(),
        };
        assert_eq!(keys_of(&decoded), keys());
        assert!(codec.try_decode(&name, &[], &context, &converter).is_err());
    }
}

/// The scan below, as text.
fn scan_text(plan: &Arc<dyn ExecutionPlan>) -> String {
    displayable(plan.as_ref()).indent(true).to_string()
}

#[test]
fn the_scan_below_learns_between_which_values_the_keys_are() {
    let scan = |limit| {
        FileScanConfigBuilder::new(
            ObjectStoreUrl::parse(SHARD_STORE_URL).unwrap(),
            Arc::new(ParquetSource::new(schema())),
        )
        .with_file_groups(vec![FileGroup::new(vec![PartitionedFile::new("1/2/x.parquet", 9)])])
        .with_projection_indices(Some(vec![1, 0]))
        .unwrap()
        .with_limit(limit)
        .build()
    };
    let over = |limit| -> Arc<dyn ExecutionPlan> {
        let keys = FilterKeys { columns: vec![0], ..keys() };
        Arc::new(RuntimeFilterExec::new(DataSourceExec::from_data_source(scan(limit)), keys))
    };
    let plan = into_scans(over(None)).unwrap();
    assert!(scan_text(&plan).contains("DynamicFilter [ empty ]"), "{}", scan_text(&plan));
    // A scan that may stop at any row gives others if it begins elsewhere.
    assert!(!scan_text(&into_scans(over(Some(3))).unwrap()).contains("DynamicFilter"));
    runs(async {
        let filters = Arc::new(RuntimeFilters::new());
        filters.deliver(&told(&[vec![Some(50), Some(40)]], 0, 1).await);
        let context = context(&filters);
        let url = url::Url::parse(SHARD_STORE_URL).unwrap();
        context.runtime_env().register_object_store(&url, Arc::new(object_store::memory::InMemory::new()));
        // It fails to read, as there is no such file: after it has learnt.
        let mut stream = plan.execute(0, context).unwrap();
        assert!(stream.next().await.is_none_or(|rows| rows.is_err()));
    });
    let text = scan_text(&plan);
    assert!(text.contains("k@1 >= 40 AND k@1 <= 50"), "{text}");
}
