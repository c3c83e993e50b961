//! What the plans of these tests are put together from. All tables have two columns, `k` and `v`, and are
//! in eight shards by `k`, but for one of six and one of two. No shard has a segment in the catalog: each
//! worker has all there is.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::compute::SortOptions;
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{JoinType, NullEquality, Result, internal_err};
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, Partitioning, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::joins::SortMergeJoinExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use datafusion_distributed::{
    BroadcastExec, DistributedExec, DistributedLeafExec, NetworkBroadcastExec, NetworkCoalesceExec,
    NetworkShuffleExec,
};
use shoal_data::SegmentName;
use shoal_data::shard_store::SHARD_STORE_URL;
use shoal_proto::{SegmentId, TableId, WorkerId};
use uuid::Uuid;

use crate::catalog::TableFacts;
use crate::catalog::state::tests::table;
use crate::cluster::{LiveWorker, LiveWorkers};
use crate::query::guard::{ISOLATED_UNION, check};
use crate::query::view::View;

pub(super) type Plan = Arc<dyn ExecutionPlan>;

pub(super) const ONE: u64 = 1;
pub(super) const OTHER: u64 = 2;
pub(super) const OF_SIX: u64 = 3;
pub(super) const FEW: u64 = 4;
const SHARDS: u32 = 8;

pub(super) fn view() -> View {
    let facts = [(ONE, SHARDS), (OTHER, SHARDS), (OF_SIX, 6), (FEW, 2)].map(|(id, shards)| {
        let mut made = table(TableId(id), "t");
        made.layout.shards = shards;
        made.placement = (0..shards).map(|_| vec![WorkerId::from("w1")]).collect();
        Arc::new(TableFacts::new(Arc::new(made)))
    });
    let workers = ["w1", "w2"].into_iter().map(LiveWorker::named).collect();
    let live = LiveWorkers { workers, ..LiveWorkers::default() };
    View::new(&live, &facts, &BTreeSet::new(), "", 0, 2).unwrap()
}

/// What is said of a plan whose top the coordinator runs.
pub(super) fn check_whole(plan: Plan) -> Result<(), String> {
    let plan: Plan = Arc::new(DistributedExec::new(plan));
    check(&plan, &view()).map_err(|error| error.to_string())
}

/// What is said of a stage of so many tasks.
fn check_in(tasks: usize, plan: Plan) -> Result<(), String> {
    check_whole(put_together(coalesced(plan, tasks)))
}

#[track_caller]
pub(super) fn passes_in(tasks: usize, plan: Plan) {
    assert_eq!(check_in(tasks, plan), Ok(()));
}

/// In two tasks.
#[track_caller]
pub(super) fn passes(plan: Plan) {
    passes_in(2, plan);
}

/// In two tasks.
#[track_caller]
pub(super) fn refused(plan: Plan, why: &str) {
    let said = check_in(2, plan);
    assert!(matches!(&said, Err(said) if said.contains(why)), "{said:?}");
}

pub(super) fn col(plan: &Plan, name: &str) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new_with_schema(name, &plan.schema()).unwrap())
}

pub(super) fn col_at(plan: &Plan, index: usize) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(plan.schema().field(index).name(), index))
}

/// The segment of a shard: each has one.
pub(super) fn file(table: u64, shard: u32) -> PartitionedFile {
    let segment = SegmentId(Uuid::from_u128((u128::from(table) << 64) + u128::from(shard)));
    let name = SegmentName { table: TableId(table), shard, segment };
    PartitionedFile::new(name.to_string(), 100)
}

/// A scan of these files in these groups, hashed by a column where it says so.
fn scan_at(url: &str, groups: Vec<Vec<PartitionedFile>>, key: Option<&str>, limit: Option<usize>) -> Plan {
    let fields = ["k", "v"].map(|name| Field::new(name, DataType::Int64, true));
    let schema = Arc::new(Schema::new(fields.to_vec()));
    let layout = key.map(|key| {
        let key: Arc<dyn PhysicalExpr> = Arc::new(Column::new_with_schema(key, &schema).unwrap());
        Partitioning::Hash(vec![key], groups.len())
    });
    let url = ObjectStoreUrl::parse(url).unwrap();
    let scan = FileScanConfigBuilder::new(url, Arc::new(ParquetSource::new(schema)))
        .with_file_groups(groups.into_iter().map(FileGroup::new).collect())
        .with_output_partitioning(layout)
        .with_limit(limit)
        .build();
    DataSourceExec::from_data_source(scan)
}

/// A scan of segments.
pub(super) fn scan(key: Option<&str>, groups: Vec<Vec<PartitionedFile>>) -> Plan {
    scan_at(SHARD_STORE_URL, groups, key, None)
}

/// A scan of all shards of a table that was not dealt to tasks.
pub(super) fn undealt(table: u64, key: Option<&str>) -> Plan {
    let group = |number| {
        let shards = (0..SHARDS).filter(|shard| shard % 2 == number);
        shards.map(|shard| file(table, shard)).collect()
    };
    scan(key, vec![group(0), group(1)])
}

/// What each task of a stage reads of a scan.
pub(super) fn leaf(original: Plan, tasks: Vec<Plan>) -> Plan {
    Arc::new(DistributedLeafExec::try_new(original, tasks).unwrap())
}

/// A scan that was dealt to so many tasks of so many partitions as its shards are hashed.
pub(super) fn dealt(table: u64, key: Option<&str>, tasks: u32, partitions: u32) -> Plan {
    let group = |number| {
        let shards = (0..SHARDS).filter(|shard| shard % (tasks * partitions) == number);
        shards.map(|shard| file(table, shard)).collect()
    };
    let groups = |task| (0..partitions).map(|partition| group(task * partitions + partition)).collect();
    leaf(undealt(table, key), (0..tasks).map(|task| scan(key, groups(task))).collect())
}

/// Dealt to two tasks, and says that it is hashed by its key.
pub(super) fn by_key(table: u64) -> Plan {
    dealt(table, Some("k"), 2, 2)
}

/// Dealt to two tasks, and says nothing.
pub(super) fn by_load(table: u64) -> Plan {
    dealt(table, None, 2, 2)
}

/// All of a table in one task, hashed by nothing.
pub(super) fn whole(table: u64) -> Plan {
    dealt(table, None, 1, 2)
}

/// A scan of a file that is no segment, in one partition of each of so many tasks.
pub(super) fn outside(tasks: usize, limit: Option<usize>) -> Plan {
    let part = || scan_at("file:///", vec![vec![PartitionedFile::new("x.parquet", 9)]], None, limit);
    leaf(part(), (0..tasks).map(|_| part()).collect())
}

/// Sorted in its partitions.
pub(super) fn sorted(input: Plan, by: &[&str]) -> Plan {
    Arc::new(sort(input, by).with_preserve_partitioning(true))
}

/// Sorted as one partition.
pub(super) fn sort(input: Plan, by: &[&str]) -> SortExec {
    let keys = by.iter().map(|name| PhysicalSortExpr::new_default(col(&input, name)));
    SortExec::new(LexOrdering::new(keys.collect::<Vec<_>>()).unwrap(), input)
}

fn dealing(input: Plan, by: &[&str]) -> RepartitionExec {
    let by = by.iter().map(|name| col(&input, name)).collect();
    RepartitionExec::try_new(input, Partitioning::Hash(by, 2)).unwrap()
}

/// Dealt anew, and not sent.
pub(super) fn locally_dealt(input: Plan, by: &[&str]) -> Plan {
    Arc::new(dealing(input, by))
}

/// A stage of two tasks whose rows come dealt by these columns.
pub(super) fn shuffled(input: Plan, by: &[&str]) -> Plan {
    shuffled_in(2, input, by)
}

pub(super) fn shuffled_in(tasks: usize, input: Plan, by: &[&str]) -> Plan {
    Arc::new(NetworkShuffleExec::try_new(locally_dealt(input, by), tasks).unwrap())
}

/// The same, of which DataFusion believes that each partition comes in the order of the input.
pub(super) fn shuffled_in_order(tasks: usize, input: Plan, by: &[&str]) -> Plan {
    let dealing = dealing(input, by).with_preserve_order();
    Arc::new(NetworkShuffleExec::try_new(Arc::new(dealing), tasks).unwrap())
}

/// A stage of so many tasks whose partitions come as they are.
pub(super) fn coalesced(input: Plan, tasks: usize) -> Plan {
    Arc::new(NetworkCoalesceExec::try_new(input, tasks, 1).unwrap())
}

pub(super) fn put_together(input: Plan) -> Plan {
    Arc::new(CoalescePartitionsExec::new(input))
}

/// A stage of two tasks all of whose rows come to each task.
pub(super) fn broadcast(input: Plan) -> Plan {
    let head = Arc::new(BroadcastExec::new(input, 1));
    Arc::new(NetworkBroadcastExec::try_new(head, 2).unwrap())
}

/// The same as one partition.
pub(super) fn sent_to_all(input: Plan) -> Plan {
    put_together(broadcast(input))
}

pub(super) fn merged_on(left: Plan, right: Plan, (one, other): (&str, &str)) -> Plan {
    let on = vec![(col(&left, one), col(&right, other))];
    let (order, nulls) = (vec![SortOptions::default()], NullEquality::NullEqualsNothing);
    Arc::new(SortMergeJoinExec::try_new(left, right, on, None, JoinType::Inner, order, nulls).unwrap())
}

/// Stands for the library's union, which only its planner can make, and says like that one in how many
/// tasks its children run.
#[derive(Debug)]
struct Isolated {
    tasks: Vec<usize>,
    children: Vec<Plan>,
    properties: Arc<PlanProperties>,
}

pub(super) fn isolated(tasks: &[usize], children: Vec<Plan>) -> Plan {
    let properties = match children.as_slice() {
        [only] => Arc::clone(only.properties()),
        _ => Arc::clone(UnionExec::try_new(children.clone()).unwrap().properties()),
    };
    Arc::new(Isolated { tasks: tasks.to_vec(), children, properties })
}

impl DisplayAs for Isolated {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DistributedUnionExec:")?;
        for (child, count) in self.tasks.iter().enumerate() {
            for task in 0..*count {
                write!(f, " t0:[c{child}({task}/{count})]")?;
            }
        }
        Ok(())
    }
}

impl ExecutionPlan for Isolated {
    fn name(&self) -> &str {
        ISOLATED_UNION
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Plan> {
        self.children.iter().collect()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Plan>) -> Result<Plan> {
        Ok(isolated(&self.tasks, children))
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        internal_err!("plans of these tests do not run")
    }
}
