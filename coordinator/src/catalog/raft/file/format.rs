//! Which formats of the catalog's file are read, and how one of format 1, with
//! the commands of a single coordinator, becomes one of format 2.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use openraft::{BasicNode, CommittedLeaderId};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction,
};

use super::pieces::{PIECE_BYTES, PIECES, SnapshotHead, put_pieces};
use super::{ENTRIES, Identity, META, VALUES, broken, from_json, put, store};
use crate::Error;
use crate::catalog::State;
use crate::catalog::command::Command;
use crate::catalog::raft::machine::Recent;
use crate::catalog::raft::types::{LogId, Membership, SnapshotMeta, Vote};

/// What this program writes, and the newest that it reads.
pub(super) const FORMAT: u64 = 2;

/// Tables of format 1.
const OLD_SNAPSHOT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");
const OLD_LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// The number of a coordinator that was alone.
const ALONE: u64 = 1;

/// Refuses what a newer program wrote, brings what an older one wrote up to
/// date, and makes the tables of a new file.
pub(super) fn check_format(database: &Database, path: &Path, address: &str) -> Result<(), Error> {
    let before = match format_of(database)? {
        Some(FORMAT) => return Ok(()),
        Some(1) => Some(state_of_format_1(database, path)?),
        None => None,
        Some(other) => {
            return Err(Error::Invalid(format!(
                "catalog {} is in format {other}; this version of shoal reads up to format {FORMAT}: \
                 start the version that wrote it, or a newer one",
                path.display()
            )));
        }
    };
    let transaction = begin(database)?;
    transaction.open_table(META).map_err(store)?.insert("format", FORMAT).map_err(store)?;
    transaction.open_table(VALUES).map_err(store)?;
    transaction.open_table(ENTRIES).map_err(store)?;
    transaction.open_table(PIECES).map_err(store)?;
    if let Some(state) = before {
        let identity = Identity { cluster: state.cluster.clone(), coordinator: ALONE };
        put(&transaction, "identity", &identity)?;
        // As if its commands had come through a log of this coordinator alone.
        let last = LogId::new(CommittedLeaderId::new(1, ALONE), state.version.max(1));
        put(&transaction, "vote", &Vote::new(1, ALONE))?;
        let membership = alone(last, ALONE, address);
        write_snapshot(&transaction, last, membership, &state, &Recent::default())?;
        transaction.delete_table(OLD_SNAPSHOT).map_err(store)?;
        transaction.delete_table(OLD_LOG).map_err(store)?;
    }
    transaction.commit().map_err(store)
}

/// A transaction that is durable when it is committed.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, Error> {
    let mut transaction = database.begin_write().map_err(store)?;
    transaction.set_durability(Durability::Immediate).map_err(store)?;
    Ok(transaction)
}

/// The membership of one coordinator.
pub(in crate::catalog) fn alone(since: LogId, coordinator: u64, address: &str) -> Membership {
    let nodes = BTreeMap::from([(coordinator, BasicNode::new(address))]);
    let voters = vec![BTreeSet::from([coordinator])];
    Membership::new(Some(since), openraft::Membership::new(voters, nodes))
}

/// Puts a snapshot in the place of everything up to `last`.
pub(super) fn write_snapshot(
    transaction: &WriteTransaction,
    last: LogId,
    last_membership: Membership,
    state: &State,
    recent: &Recent,
) -> Result<(), Error> {
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership, snapshot_id: last.to_string() };
    let data = state.to_bytes(recent)?;
    let number = 0;
    put(transaction, "snapshot", &SnapshotHead { meta, number, bytes: data.len() as u64 })?;
    put(transaction, "purged", &last)?;
    put(transaction, "committed", &Some(last))?;
    put_pieces(transaction, number, 0, &data.chunks(PIECE_BYTES).collect::<Vec<_>>())
}

fn format_of(database: &Database) -> Result<Option<u64>, Error> {
    let transaction = database.begin_read().map_err(store)?;
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get("format").map_err(store)?.map(|format| format.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(store(error)),
    }
}

fn state_of_format_1(database: &Database, path: &Path) -> Result<State, Error> {
    let transaction = database.begin_read().map_err(store)?;
    let snapshot = transaction.open_table(OLD_SNAPSHOT).map_err(store)?;
    let json = snapshot.get("state").map_err(store)?;
    let json = json.ok_or_else(|| broken(path, "it has no snapshot"))?;
    let mut state: State = from_json(path, "snapshot", json.value())?;
    for entry in transaction.open_table(OLD_LOG).map_err(store)?.iter().map_err(store)? {
        let (version, json) = entry.map_err(store)?;
        let version = version.value();
        let command: Command = from_json(path, "command", json.value())?;
        state.apply(command).map_err(|error| broken(path, &format!("command {version}: {error}")))?;
        if state.version != version {
            return Err(broken(path, &format!("command {version} does not follow the one before")));
        }
    }
    // Nothing reads them after a restart; workers are told when they join.
    state.take_dropped();
    Ok(state)
}
