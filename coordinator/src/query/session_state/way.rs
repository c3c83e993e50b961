//! The ways in which a query is planned.

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
    /// What cannot be sent to workers runs on the coordinator.
    Here,
    /// A scan, shard by shard, that can be resumed.
    Streamed,
    /// Few rows of each shard, put together on the coordinator.
    Merged,
}
