//! openraft's own claims about a log and a state machine, and ours about what
//! openraft does not ask for.

use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, StorageError};
use tempfile::TempDir;

use super::*;
use crate::catalog::raft::file::{Change, Opened};
use crate::catalog::raft::log::LogStore;
use crate::catalog::raft::types::Vote;

const ADDRESS: &str = "http://127.0.0.1:1";

struct OnDisk;

fn open(dir: &TempDir) -> (LogStore, Machine) {
    let mut opened = opened(dir);
    let machine = Machine::new(opened.file.clone(), opened.snapshot.take(), Published::new("c")).unwrap();
    (LogStore::new(&mut opened), machine)
}

fn opened(dir: &TempDir) -> Opened {
    RaftFile::open(&dir.path().join("catalog.redb"), ADDRESS).unwrap()
}

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError<CoordinatorId>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(&dir);
        Ok((dir, log, machine))
    }
}

#[test]
fn openraft_finds_no_fault() {
    Suite::test_all(OnDisk).unwrap();
}

#[tokio::test]
async fn who_led_does_not_lead_on_after_a_restart() {
    use openraft::storage::RaftLogStorage;
    let dir = tempfile::tempdir().unwrap();
    let identity = crate::catalog::raft::file::Identity { cluster: "c".to_owned(), coordinator: 1 };
    opened(&dir).file.change(Change::Identity(identity)).await.unwrap();
    for (voted_for, is_kept) in [(1, false), (2, true)] {
        let vote = Vote::new_committed(7, voted_for);
        let (mut log, machine) = open(&dir);
        log.save_vote(&vote).await.unwrap();
        assert_eq!(log.read_vote().await.unwrap(), Some(vote));
        drop((log, machine));
        let (mut log, _machine) = open(&dir);
        let read = log.read_vote().await.unwrap().unwrap();
        assert_eq!((read.leader_id, read.committed), (vote.leader_id, is_kept));
    }
}

fn entry(index: u64, id: Uuid, command: Option<Command>) -> Entry {
    let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
    Entry {
        log_id,
        payload: EntryPayload::Normal(Proposal { id, from: 1, since: index, term: None, command }),
    }
}

fn schema(name: &str) -> Option<Command> {
    Some(Command::CreateSchema { name: name.to_owned(), if_not_exists: false })
}

#[tokio::test]
async fn a_follower_is_sent_what_it_can_take_at_once() {
    use openraft::RaftLogReader;
    let dir = tempfile::tempdir().unwrap();
    let mut opened = opened(&dir);
    let kept = |index: u64, length: usize| {
        let entry = entry(index, Uuid::new_v4(), schema(&"x".repeat(length)));
        let bytes = serde_json::to_vec(&entry).unwrap().len() as u64;
        (index, (entry, bytes))
    };
    opened.entries = (1..=6).map(|index| kept(index, 200_000)).chain([kept(7, 2_000_000)]).collect();
    let mut log = LogStore::new(&mut opened);
    for (start, expected) in [(1, vec![1, 2]), (3, vec![3, 4]), (6, vec![6]), (7, vec![7])] {
        let entries = log.limited_get_log_entries(start, 8).await.unwrap();
        let sent: Vec<_> = entries.iter().map(|entry| entry.log_id.index).collect();
        assert_eq!(sent, expected, "from {start}");
    }
}

#[tokio::test]
async fn what_is_sent_again_is_applied_once() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = open(&dir);
    let (id, other) = (Uuid::new_v4(), Uuid::new_v4());
    let entries = [entry(1, id, schema("s")), entry(2, id, schema("s")), entry(3, other, schema("s"))];
    let replies = machine.apply(entries).await.unwrap();
    assert_eq!(replies[..2], [Reply::Done(Outcome::Done), Reply::Done(Outcome::Done)]);
    assert!(matches!(replies[2], Reply::Refused(_)), "{replies:?}");
    assert_eq!(machine.published.state.borrow().version, 1);
    assert_eq!(
        *machine.published.applied.borrow(),
        Position { entries: 4, term: term_of(&CommittedLeaderId::new(1, 1)) }
    );
}

#[tokio::test]
async fn what_is_given_up_is_never_applied_and_what_was_applied_is_not_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = open(&dir);
    let (late, early) = (Uuid::new_v4(), Uuid::new_v4());
    let entries = [
        entry(1, late, None),
        entry(2, late, schema("late")),
        entry(3, early, schema("early")),
        entry(4, early, None),
    ];
    let replies = machine.apply(entries).await.unwrap();
    assert_eq!(replies[..2], [Reply::Abandoned, Reply::Abandoned]);
    assert_eq!(replies[2..], [Reply::Done(Outcome::Done), Reply::Done(Outcome::Done)]);
    let state = Arc::clone(&machine.published.state.borrow());
    assert!(state.has_schema("early") && !state.has_schema("late"));
}

/// An entry that was made when nothing was applied yet.
fn old_entry(index: u64, id: Uuid, command: Option<Command>) -> Entry {
    let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
    Entry { log_id, payload: EntryPayload::Normal(Proposal { id, from: 1, since: 0, term: None, command }) }
}

#[tokio::test]
async fn nobody_is_told_that_what_is_forgotten_was_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut machine) = open(&dir);
    let id = Uuid::new_v4();
    machine.apply([old_entry(1, id, schema("s"))]).await.unwrap();
    let last = 1 + RECENT_MAX as u64;
    let others = (2..last).map(|index| entry(index, Uuid::new_v4(), None));
    machine.apply(others.collect::<Vec<_>>()).await.unwrap();
    let remembered = machine.apply([old_entry(last, id, None)]).await.unwrap();
    assert_eq!(remembered, [Reply::Done(Outcome::Done)]);
    machine.apply([entry(last + 1, Uuid::new_v4(), None)]).await.unwrap();
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    is_forgotten(&mut machine, last + 2, id).await;
    drop((log, machine));
    let (_log, mut machine) = open(&dir);
    is_forgotten(&mut machine, last + 2, id).await;
}

async fn is_forgotten(machine: &mut Machine, next: u64, id: Uuid) {
    let entries = [
        old_entry(next, id, None),
        old_entry(next + 1, id, schema("again")),
        entry(next + 2, Uuid::new_v4(), schema("new")),
    ];
    let replies = machine.apply(entries).await.unwrap();
    assert_eq!(replies, [Reply::Forgotten, Reply::Forgotten, Reply::Done(Outcome::Done)]);
    assert!(!machine.published.state.borrow().has_schema("again"));
}

#[tokio::test]
async fn a_coordinator_that_was_removed_writes_nothing() {
    use crate::catalog::state::tests::{commit, create, segment, table};
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = open(&dir);
    let id = shoal_proto::TableId(1);
    let before = segment(id, 0, "w1");
    let compact =
        Command::Compact { table: id, shard: 0, old: vec![before.id], new: vec![segment(id, 0, "w1")] };
    let entries = [
        entry(1, Uuid::new_v4(), Some(Command::ReserveTable)),
        entry(2, Uuid::new_v4(), Some(create(table(id, "t")))),
        entry(3, Uuid::new_v4(), Some(commit("before", &before))),
        entry(4, Uuid::new_v4(), Some(Command::DismissCoordinator { coordinator: 1 })),
        entry(5, Uuid::new_v4(), Some(commit("after", &segment(id, 0, "w1")))),
        entry(6, Uuid::new_v4(), Some(compact)),
    ];
    let replies = machine.apply(entries).await.unwrap();
    assert_eq!(replies[2], Reply::Done(Outcome::Done));
    assert!(replies[4..].iter().all(|reply| matches!(reply, Reply::Refused(_))), "{replies:?}");
    let state = Arc::clone(&machine.published.state.borrow());
    assert_eq!(state.table_by_id(id).unwrap().segments, [Arc::new(before)]);
}

#[tokio::test]
async fn what_a_leader_decided_holds_in_its_term_only() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut machine) = open(&dir);
    let now = term_of(&CommittedLeaderId::new(1, 1));
    let decided_in = |index: u64, term: u64, name: &str| {
        let mut entry = entry(index, Uuid::new_v4(), schema(name));
        if let EntryPayload::Normal(proposal) = &mut entry.payload {
            proposal.term = Some(term);
        }
        entry
    };
    let replies = machine
        .apply([decided_in(1, now, "now"), decided_in(2, now - 1, "late"), decided_in(3, 1, "early")])
        .await
        .unwrap();
    assert_eq!(replies[0], Reply::Done(Outcome::Done));
    assert!(matches!(replies[1], Reply::Refused(_)), "{replies:?}");
    let state = Arc::clone(&machine.published.state.borrow());
    assert!(state.has_schema("now") && !state.has_schema("late") && !state.has_schema("early"));
}

#[tokio::test]
async fn a_snapshot_brings_all_of_it_and_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut machine) = open(&dir);
    let id = Uuid::new_v4();
    machine.apply([entry(1, id, schema("s"))]).await.unwrap();
    let snapshot = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    drop((log, machine));
    for is_installed in [false, true] {
        let other = tempfile::tempdir().unwrap();
        let (_log, mut machine) = open(if is_installed { &other } else { &dir });
        if is_installed {
            machine.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.unwrap();
        }
        assert!(machine.published.state.borrow().has_schema("s"), "{is_installed}");
        assert_eq!(machine.applied_state().await.unwrap().0, snapshot.meta.last_log_id);
        // The replies are part of it, too.
        let again = machine.apply([entry(2, id, schema("s"))]).await.unwrap();
        assert_eq!(again, [Reply::Done(Outcome::Done)], "{is_installed}");
    }
}

/// A machine with a table of some segments, and the log that made it.
async fn machine_with_table(dir: &TempDir) -> Machine {
    use crate::catalog::state::tests::{commit, create, segment, table};
    let (_, mut machine) = open(dir);
    let id = shoal_proto::TableId(1);
    let mut commands = vec![Command::ReserveTable, create(table(id, "t"))];
    commands.extend((0..50).map(|number| commit(&number.to_string(), &segment(id, number % 2, "w1"))));
    let entries = (1..).zip(commands).map(|(index, command)| entry(index, Uuid::new_v4(), Some(command)));
    machine.apply(entries.collect::<Vec<_>>()).await.unwrap();
    machine
}

/// How many pieces of snapshots a file has that nobody has open.
fn pieces(dir: &TempDir) -> u64 {
    use redb::{ReadableDatabase, ReadableTableMetadata, TableDefinition};
    const PIECES: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("snapshot_pieces");
    let database = redb::Database::open(dir.path().join("catalog.redb")).unwrap();
    let table = database.begin_read().unwrap().open_table(PIECES).unwrap();
    table.len().unwrap()
}

fn of(index: u64) -> SnapshotMeta {
    let last_log_id = Some(LogId::new(CommittedLeaderId::new(1, 1), index));
    SnapshotMeta { last_log_id, last_membership: Membership::default(), snapshot_id: index.to_string() }
}

#[tokio::test]
async fn a_snapshot_of_many_pieces_is_read_as_it_was_written_and_the_one_before_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = opened(&dir).file;
    let data = |bytes: usize| -> Bytes { (0..bytes).map(|at| (at / 3) as u8).collect() };
    for (index, bytes) in [(1, 30 << 20), (2, 5), (3, (2 << 20) + 1)] {
        let kept = KeptSnapshot { meta: of(index), data: data(bytes) };
        file.keep(kept).await.unwrap();
        let read = file.snapshot().await.unwrap().unwrap();
        assert_eq!((read.meta, read.data == data(bytes)), (of(index), true), "snapshot {index}");
        assert_eq!(file.snapshot_bytes(), bytes as u64);
    }
    // One that is of less comes too late.
    file.keep(KeptSnapshot { meta: of(2), data: data(7) }).await.unwrap();
    assert_eq!(file.snapshot().await.unwrap().unwrap().meta, of(3));
    for _ in 0..10 {
        file.change(Change::Vote(Vote::new(7, 1))).await.unwrap();
    }
    drop(file);
    let opened = opened(&dir);
    let read = opened.snapshot.unwrap();
    assert_eq!((read.meta, read.data), (of(3), data((2 << 20) + 1)));
    drop(opened.file);
    assert_eq!(pieces(&dir), 3, "pieces of snapshots that do not count are left");
}

#[tokio::test]
async fn what_a_crash_left_of_a_snapshot_is_not_read_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let file = opened(&dir).file;
    let whole = Bytes::from(vec![1; 3_000_000]);
    file.keep(KeptSnapshot { meta: of(1), data: whole.clone() }).await.unwrap();
    for first in 0..4 {
        let piece = Bytes::from(vec![2; 1_000]);
        file.change(Change::Pieces(7, 8 * first, vec![piece; 8])).await.unwrap();
    }
    drop(file);
    for round in 0..2 {
        let opened = opened(&dir);
        let read = opened.snapshot.unwrap();
        assert_eq!((read.meta, &read.data), (of(1), &whole), "round {round}");
        for _ in 0..3 {
            opened.file.change(Change::Vote(Vote::new(7, 1))).await.unwrap();
        }
    }
    assert_eq!(pieces(&dir), 3);
}

#[tokio::test]
async fn segments_are_there_after_a_snapshot_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut machine = machine_with_table(&dir).await;
    let before = Arc::clone(&machine.published.state.borrow());
    machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    drop(machine);
    let (_log, machine) = open(&dir);
    let after = Arc::clone(&machine.published.state.borrow());
    let segments =
        |state: &State| state.tables().flat_map(|table| table.segments.clone()).collect::<Vec<_>>();
    assert_eq!(segments(&after), segments(&before));
    assert_eq!((after.version, segments(&after).len()), (before.version, 50));
}

/// A catalog of the version before this one: a snapshot and commands, in tables
/// of its own.
#[tokio::test]
async fn a_catalog_of_a_single_coordinator_becomes_one_of_the_consensus() {
    use redb::TableDefinition;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.redb");
    let database = redb::Database::create(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let meta: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
        transaction.open_table(meta).unwrap().insert("format", 1).unwrap();
        let snapshot: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshot");
        let state = serde_json::to_vec(&State::new("old")).unwrap();
        transaction.open_table(snapshot).unwrap().insert("state", state.as_slice()).unwrap();
        let log: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
        let command = serde_json::to_vec(&schema("kept")).unwrap();
        transaction.open_table(log).unwrap().insert(1, command.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let catalog = crate::catalog::Catalog::alone(dir.path()).await.unwrap();
        assert_eq!(catalog.snapshot().cluster, "old");
        assert!(catalog.snapshot().has_schema("kept"));
        let addresses: Vec<_> = catalog.coordinators().into_iter().map(|it| (it.id, it.address)).collect();
        assert_eq!(addresses, [(1, ADDRESS.to_owned())]);
        let name = format!("s{}", catalog.snapshot().version);
        catalog.apply(Command::CreateSchema { name, if_not_exists: false }).await.unwrap();
    }
}
