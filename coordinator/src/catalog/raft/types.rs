//! What the coordinators' log holds and what comes of it.

use std::io::Cursor;

use openraft::BasicNode;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::catalog::state::COORDINATORS_MAX;
use crate::catalog::{CatalogError, Command, Outcome};

/// The number of a coordinator in its cluster, from 1 on. No other ever gets it.
pub type CoordinatorId = u64;

openraft::declare_raft_types!(
    /// What openraft is told about our types.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = CoordinatorId,
        Node = BasicNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
);

/// An entry of the log.
pub type Entry = openraft::Entry<TypeConfig>;
/// The place of an entry.
pub type LogId = openraft::LogId<CoordinatorId>;
/// Which coordinators there are, since which entry.
pub type Membership = openraft::StoredMembership<CoordinatorId, BasicNode>;
/// What a snapshot is of.
pub type SnapshotMeta = openraft::SnapshotMeta<CoordinatorId, BasicNode>;
/// What openraft takes for the end of a coordinator.
pub type StorageError = openraft::StorageError<CoordinatorId>;
/// Whom a coordinator voted for, in which term.
pub type Vote = openraft::Vote<CoordinatorId>;
/// Who led when an entry was made, or is voted for.
pub type LeaderId = openraft::LeaderId<CoordinatorId>;

/// Bits of a term that say whose it is.
const WHOSE_BITS: u32 = 20;
const _: () = assert!(COORDINATORS_MAX < 1 << WHOSE_BITS, "a number must fit into a term");

/// The number of the time of one leader. It only grows, and no two leaders share
/// it. openraft may elect several in one of its own terms, one after the other,
/// each with a greater number than the one before: both are in it.
pub fn term_of(leader: &LeaderId) -> u64 {
    leader.term << WHOSE_BITS | leader.node_id
}

/// A term as people are shown it: without whose it is.
pub fn shown_term(term: u64) -> u64 {
    term >> WHOSE_BITS
}

/// A command as it is in the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// The same each time that it is sent, so that it is applied once.
    pub id: Uuid,
    /// The coordinator that wants it; 0 in logs from before this was told.
    #[serde(default)]
    pub from: CoordinatorId,
    /// Entries of the log that were applied there when it was made: it is none
    /// of them. The same each time that it is sent.
    #[serde(default)]
    pub since: u64,
    /// The term in which its coordinator decided it as the leader: it is refused in
    /// any other ([`term_of`]). None for what anybody may want.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// The command; none: if it was not applied before, it never is from now on.
    pub command: Option<Command>,
}

/// What came of an entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It was none of ours.
    Nothing,
    /// What the command did.
    Done(Outcome),
    /// Why it was refused.
    Refused(CatalogError),
    /// It was given up before it came.
    Abandoned,
    /// So many others came since it was made that nobody knows whether it was
    /// applied before; it was not now.
    Forgotten,
}
