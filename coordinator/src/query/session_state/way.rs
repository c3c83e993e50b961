//! The ways in which a query is planned.

use datafusion::config::ConfigOptions;

use crate::query::in_place::OneSideMoves;
use crate::sql::ShoalConfig;

/// How a query is planned: the best way first, then those that are right for
/// more queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Shards join and group where they are.
    Colocated,
    /// The same, but where only one side of a join that gives rows of its small side is so sharded,
    /// both sides move: what is brought to shards must come in as many parts as these can be dealt to.
    Paired,
    /// Every join and grouping goes through an exchange.
    Exchanged,
    /// What cannot be right in many tasks is right in one.
    OneTask,
    /// What reads few bytes is run by one worker, as one process would.
    Whole,
    /// What cannot be sent to workers runs on the coordinator.
    Here,
    /// A scan, shard by shard, that can be resumed.
    Streamed,
    /// Few rows of each shard, put together on the coordinator.
    Merged,
}

impl Way {
    /// Has plans that are made with these options be such.
    pub(super) fn tell(self, options: &mut ConfigOptions) {
        let is_colocated = matches!(self, Self::Colocated | Self::Paired);
        options.optimizer.preserve_file_partitions = usize::from(is_colocated);
        if let Some(shoal) = options.extensions.get_mut::<ShoalConfig>() {
            shoal.colocate = is_colocated;
        }
        options.extensions.insert(OneSideMoves(self == Self::Colocated));
        match self {
            // One order of rows only.
            Self::Streamed => options.execution.target_partitions = 1,
            // One partition, and nothing that is learnt while it runs: either takes longer than so few rows.
            Self::Whole => {
                options.execution.target_partitions = 1;
                options.optimizer.enable_join_dynamic_filter_pushdown = false;
                options.optimizer.enable_topk_dynamic_filter_pushdown = false;
                options.optimizer.enable_aggregate_dynamic_filter_pushdown = false;
            }
            // Segments stay whole.
            Self::Merged => options.optimizer.repartition_file_scans = false,
            Self::Colocated | Self::Paired | Self::Exchanged | Self::OneTask | Self::Here => {}
        }
    }
}
