//! The way back where a majority of the coordinators is lost for good.

use std::time::Duration;

use openraft::storage::RaftStateMachine;
use shoal_data::SegmentName;
use shoal_proto::Channels;

use super::super::raft::file::{KeptSnapshot, Opened, format};
use super::super::raft::machine::{Machine, Published};
use super::super::raft::peers::{Call, Peers};
use super::super::raft::types::{SnapshotMeta, Vote};
use crate::Error;
use crate::cluster::going::Needs;

/// Workers may have heard of newer terms than this coordinator has, from leaders
/// that are lost; they remove nothing on the word of an older one.
const TERMS_SKIPPED: u64 = 1_000_000;

/// How long another coordinator may take to say that it still runs.
const ANSWER_MAX: Duration = Duration::from_secs(1);

async fn answers(cluster: &str, id: u64, address: &str) -> bool {
    let peers = Peers::new(Channels::new(tokio::runtime::Handle::current()), cluster);
    let nothing: Vec<SegmentName> = Vec::new();
    let answer: Result<Needs, _> = peers.call((Some(id), address), Call::Needs, &nothing, ANSWER_MAX).await;
    answer.is_ok()
}

/// Makes the coordinator of this file the only one of its cluster, at `address`,
/// with all that is in its log, also what was not acknowledged.
///
/// # Errors
/// `Invalid` for a file that is of no cluster yet; where it cannot be read or
/// written.
pub(super) async fn make_alone(mut opened: Opened, address: &str) -> Result<(), Error> {
    let Some(identity) = opened.identity.clone() else {
        return Err(Error::Invalid(
            "--force-new-cluster is for the data directory of a coordinator that lost the others, and this one \
             belongs to no cluster; leave the flag out"
                .to_owned(),
        ));
    };
    let published = Published::new(&identity.cluster);
    let behind = opened.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
    let mut machine = Machine::new(opened.file.clone(), opened.snapshot.take(), published)?;
    let entries = std::mem::take(&mut opened.entries);
    let entries = entries.into_values().map(|(entry, _)| entry);
    let behind = entries.filter(|entry| Some(entry.log_id) > behind);
    let failed = |error: &dyn std::error::Error| Error::Internal(format!("the catalog's log: {error}"));
    machine.apply(behind).await.map_err(|error| failed(&error))?;
    let (last, membership) = machine.applied_state().await.map_err(|error| failed(&error))?;
    let Some(last) = last else {
        return Err(Error::Invalid(
            "this coordinator has nothing of its cluster: use --force-new-cluster on another one".to_owned(),
        ));
    };
    let nodes = membership.membership().nodes();
    let others: Vec<_> = nodes.filter(|(id, _)| **id != identity.coordinator).collect();
    if others.is_empty() {
        // Left on the command line: nothing is lost by it.
        return Ok(());
    }
    for (id, node) in others {
        if answers(&identity.cluster, *id, &node.addr).await {
            return Err(Error::Invalid(format!(
                "coordinator {id} at {} still runs: --force-new-cluster is for a coordinator that lost the others \
                 for good; leave the flag out, or stop the other one and never start it again",
                node.addr
            )));
        }
    }
    // In the same change: they still have their data, and what is in it must not
    // come back as that of a member.
    machine.dismiss_all_but(identity.coordinator)?;
    let known = opened.vote.map_or(0, |vote| vote.leader_id.term).max(last.leader_id.term);
    let term = known + TERMS_SKIPPED;
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: format::alone(last, identity.coordinator, address),
        snapshot_id: format!("alone-{last}"),
    };
    let snapshot = KeptSnapshot { meta, data: machine.encoded()? };
    opened.file.committed(Some(last));
    let made = opened.file.keep_alone(snapshot, Vote::new(term, identity.coordinator)).await;
    made.map_err(|error| Error::io("cannot make this coordinator the only one", error))?;
    tracing::warn!(
        coordinator = identity.coordinator,
        cluster = %identity.cluster,
        "this coordinator is the only one of its cluster now: others need an empty --data-dir to join it"
    );
    Ok(())
}
