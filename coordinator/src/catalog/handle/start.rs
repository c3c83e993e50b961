//! How the catalog's consensus starts: who this coordinator is, what it has on its
//! disk, and how openraft is set up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::{BasicNode, Config, Raft, SnapshotPolicy};
use shoal_proto::Channels;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::CatalogOptions;
use crate::Error;
use crate::catalog::raft::LogStore;
use crate::catalog::raft::core::{Core, Enlist, Enlisted};
use crate::catalog::raft::file::{Change, Identity, Opened};
use crate::catalog::raft::machine::{Machine, Published};
use crate::catalog::raft::members::Turns;
use crate::catalog::raft::peers::Peers;
use crate::catalog::raft::succession::Heard;
use crate::catalog::raft::types::{CoordinatorId, LogId, TypeConfig};

/// Entries that stay behind a snapshot, for coordinators that are behind.
pub(super) const LOG_KEPT: u64 = 1_000;
/// How often a leader says that it is there.
const HEARTBEAT: Duration = Duration::from_millis(200);
/// A follower that has not heard of the leader for the longer of them, and for a
/// time between the two after that, wants to lead itself.
const ELECTION: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(700));
/// How often it is looked at whether there should be a snapshot.
const SNAPSHOT_LOOK: Duration = Duration::from_millis(100);
/// How long one piece of a snapshot may take on its way.
const SNAPSHOT_PIECE_MAX: Duration = Duration::from_secs(10);
/// How long a coordinator that is alone may take to lead.
const ALONE_MAX: Duration = Duration::from_secs(30);
/// The number of the coordinator with which a cluster begins.
const FIRST: CoordinatorId = 1;

/// Starts what is in an open file, as a coordinator of its own cluster or of the one
/// that it joins.
///
/// # Errors
/// As [`super::Catalog::open`], but for what opens the file.
pub(super) async fn start(
    mut opened: Opened,
    options: CatalogOptions,
    channels: Channels,
) -> Result<Core, Error> {
    let CatalogOptions { address, join, .. } = options;
    let identity = match &opened.identity {
        Some(identity) => identity.clone(),
        None => {
            let identity = match join.as_slice() {
                [] => Identity { cluster: Uuid::new_v4().simple().to_string(), coordinator: FIRST },
                join => ask_to_join(&channels, join, &address).await?,
            };
            let kept = opened.file.change(Change::Identity(identity.clone())).await;
            kept.map_err(|error| Error::io("cannot keep who this coordinator is", error))?;
            identity
        }
    };
    let Identity { cluster, coordinator } = identity;
    tell_newest(&opened, coordinator);
    let published = Published::new(&cluster);
    let snapshot_bytes = opened.file.snapshot_bytes();
    let machine = Machine::new(opened.file.clone(), opened.snapshot.take(), published.clone())?;
    tracing::info!(snapshot_bytes, entries = opened.entries.len(), "the catalog is read");
    let log = LogStore::new(&mut opened);
    let peers = Peers::new(channels, cluster.clone());
    let failed = |error: &dyn std::error::Error| Error::Internal(format!("the catalog's log: {error}"));
    let config = config(&cluster).map_err(|error| failed(&*error))?;
    let raft = Raft::<TypeConfig>::new(coordinator, Arc::new(config), peers.clone(), log.clone(), machine);
    let raft = raft.await.map_err(|error| failed(&error))?;
    if coordinator == FIRST && !raft.is_initialized().await.map_err(|error| failed(&error))? {
        let members = BTreeMap::from([(coordinator, BasicNode::new(&address))]);
        raft.initialize(members).await.map_err(|error| failed(&error))?;
    }
    tokio::spawn(keep_log_short(raft.clone(), log.clone()));
    let path = opened.file.path().to_owned();
    let turns = Turns::new(tokio::runtime::Handle::current());
    let proposals = TaskTracker::new();
    let core = Core {
        me: coordinator,
        cluster,
        address,
        join,
        path,
        raft,
        log,
        peers,
        published,
        turns,
        proposals,
        heard: Heard::default(),
    };
    let voters = core.raft.with_raft_state(|state| {
        state.membership_state.effective().membership().voter_ids().collect::<Vec<_>>()
    });
    if voters.await.map_err(|error| failed(&error))? == [coordinator] {
        lead_alone(&core).await?;
    }
    tokio::spawn(core.clone().complete_changes());
    tokio::spawn(core.clone().attend());
    Ok(core)
}

/// Says how new what it has is: where the others are lost, that is how to choose.
fn tell_newest(opened: &Opened, coordinator: CoordinatorId) {
    let of_log = opened.entries.values().next_back().map(|(entry, _)| entry.log_id);
    let of_snapshot = opened.snapshot.as_ref().and_then(|snapshot| snapshot.meta.last_log_id);
    let newest = of_log.max(of_snapshot);
    // In this order one is newer than another: a term of openraft may have had several leaders.
    let (last_term, last_leader, last_index) =
        newest.map_or((0, 0, 0), |newest| (newest.leader_id.term, newest.leader_id.node_id, newest.index));
    tracing::info!(
        coordinator,
        last_term,
        last_leader,
        last_index,
        "the catalog of this coordinator is opened"
    );
}

/// Has snapshots made, and the log removed before them, for as long as there is a
/// log: it is kept in memory, and applied anew at each start.
async fn keep_log_short(raft: Raft<TypeConfig>, log: LogStore) {
    let mut metrics = raft.metrics();
    while metrics.changed().await.is_ok() {
        let (kept, applied, purged) = {
            let metrics = metrics.borrow_and_update();
            let index = |log_id: Option<LogId>| log_id.map(|log_id| log_id.index);
            (index(metrics.snapshot), index(metrics.last_applied), index(metrics.purged))
        };
        let asked = match (kept, applied) {
            (kept, Some(applied)) if log.wants_snapshot(kept, applied) => raft.trigger().snapshot().await,
            (Some(kept), _) => match log.removable(kept) {
                Some(upto) if Some(upto) > purged => raft.trigger().purge_log(upto).await,
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        if asked.is_err() {
            return;
        }
        tokio::time::sleep(SNAPSHOT_LOOK).await;
    }
}

/// Nobody else can lead: there is nothing to wait for.
async fn lead_alone(core: &Core) -> Result<(), Error> {
    let failed = |error: &dyn std::error::Error| Error::Internal(format!("the catalog's log: {error}"));
    if !core.is_leader() {
        core.raft.trigger().elect().await.map_err(|error| failed(&error))?;
    }
    let leads = core.raft.wait(Some(ALONE_MAX)).current_leader(core.me, "the only coordinator leads").await;
    leads.map_err(|error| failed(&error))?;
    core.catch_up().await?;
    Ok(())
}

/// Gets a number in the cluster of one of these coordinators.
async fn ask_to_join(channels: &Channels, join: &[String], address: &str) -> Result<Identity, Error> {
    let peers = Peers::new(channels.clone(), "");
    let request = Enlist { coordinator: None, address: address.to_owned(), may_forward: true };
    let Enlisted { cluster, coordinator } = Core::enlist_through(&peers, join, &request).await?;
    tracing::info!(%cluster, coordinator, "this coordinator joins");
    Ok(Identity { cluster, coordinator })
}

fn config(cluster: &str) -> Result<Config, Box<openraft::ConfigError>> {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: ms(HEARTBEAT),
        election_timeout_min: ms(ELECTION.0),
        election_timeout_max: ms(ELECTION.1),
        install_snapshot_timeout: ms(SNAPSHOT_PIECE_MAX),
        // It knows nothing of bytes: see `keep_log_short`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: LOG_KEPT,
        ..Config::default()
    }
    .validate()
    .map_err(Box::new)
}
