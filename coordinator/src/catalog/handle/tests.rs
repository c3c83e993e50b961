//! Claims about the store.

use std::fs;

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use openraft::BasicNode;
use shoal_proto::TableId;

use super::start::LOG_KEPT;
use super::*;
use crate::catalog::state::tests::{commit, create, segment, table};

/// Commands that are on their way at once.
const SIDES: usize = 100;

async fn with_table(catalog: &Catalog) -> TableId {
    let Ok(Outcome::Table(id)) = catalog.apply(Command::ReserveTable).await else {
        panic!("no table id");
    };
    catalog.apply(create(table(id, &format!("t{id}")))).await.unwrap();
    id
}

fn json(catalog: &Catalog) -> String {
    serde_json::to_string(catalog.snapshot().as_ref()).unwrap()
}

#[tokio::test]
async fn a_closed_catalog_opens_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let cluster = catalog.snapshot().cluster.clone();
    let id = with_table(&catalog).await;
    catalog.apply(commit("x", &segment(id, 0, "w1"))).await.unwrap();
    let before = json(&catalog);
    drop(catalog);
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    assert_eq!(json(&catalog), before);
    assert_eq!(catalog.snapshot().cluster, cluster);
    let again = catalog.apply(commit("x", &segment(id, 0, "w1"))).await.unwrap();
    assert_eq!(again, Outcome::AlreadyWritten { rows: 10 });
}

#[tokio::test]
async fn it_is_noticed_that_the_consensus_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let options = CatalogOptions {
        dir: dir.path().to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
        listening: std::net::Ipv4Addr::LOCALHOST.into(),
        join: Vec::new(),
        force_new_cluster: false,
    };
    let opened = RaftFile::open(&dir.path().join(FILE), &options.address).unwrap();
    let channels = Channels::new(tokio::runtime::Handle::current());
    let core = start(opened, options, channels).await.unwrap();
    assert!(end_of(&core.raft).now_or_never().is_none());
    core.raft.shutdown().await.unwrap();
    assert!(!end_of(&core.raft).await.is_empty());
}

/// In its old term it would not know up to where its log was acknowledged.
#[tokio::test]
async fn each_start_leads_in_a_term_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut before = 0;
    for _ in 0..3 {
        let catalog = Catalog::alone(dir.path()).await.unwrap();
        assert!(catalog.is_leader());
        assert!(catalog.term() > before, "{} after {before}", catalog.term());
        before = catalog.term();
    }
}

/// What a kill -9 leaves: the file as it is at some moment, without a close.
#[tokio::test]
async fn every_acknowledged_command_is_there_after_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let crashed = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    for number in 0..20 {
        catalog.apply(commit(&number.to_string(), &segment(id, 0, "w1"))).await.unwrap();
        let before = json(&catalog);
        fs::copy(dir.path().join(FILE), crashed.path().join(FILE)).unwrap();
        let recovered = Catalog::alone(crashed.path()).await.unwrap();
        assert_eq!(json(&recovered), before, "after command {number}");
    }
}

#[tokio::test]
async fn commands_from_many_sides_are_all_there() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    // Enough to fold the log into a snapshot more than once.
    let count = 2 * (crate::catalog::raft::log::SNAPSHOT_EVERY + LOG_KEPT) + 10;
    let writes = (0..count).map(|number| {
        let catalog = catalog.clone();
        async move { catalog.apply(commit(&number.to_string(), &segment(id, 0, "w1"))).await.unwrap() }
    });
    // Of so many at once the last would wait longer for a busy disk than any may.
    let outcomes: Vec<_> = stream::iter(writes).buffer_unordered(SIDES).collect().await;
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Done));
    let before = json(&catalog);
    assert_eq!(catalog.snapshot().table_by_id(id).unwrap().segments.len() as u64, count);
    drop(catalog);
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    assert_eq!(json(&catalog), before);
}

#[tokio::test]
async fn a_refused_command_leaves_its_neighbours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    let good = segment(id, 0, "w1");
    let bad = segment(TableId(99), 0, "w1");
    let (a, b, c) = tokio::join!(
        catalog.apply(commit("a", &good)),
        catalog.apply(commit("b", &bad)),
        catalog.apply(Command::ReserveTable),
    );
    assert_eq!(a.unwrap(), Outcome::Done);
    assert!(matches!(b, Err(Error::NotFound(_))));
    assert!(matches!(c, Ok(Outcome::Table(_))));
}

#[tokio::test]
async fn a_newer_catalog_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(Catalog::alone(dir.path()).await.unwrap());
    let database = redb::Database::open(dir.path().join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta: redb::TableDefinition<'_, &str, u64> = redb::TableDefinition::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 3).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = Catalog::alone(dir.path()).await.unwrap_err();
    assert!(matches!(error, Error::Invalid(_)));
    let message = error.to_string();
    assert!(message.contains("format 3") && message.contains("reads up to format 2"), "{message}");
}

#[tokio::test]
async fn a_catalog_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let _open = Catalog::alone(dir.path()).await.unwrap();
    let message = Catalog::alone(dir.path()).await.unwrap_err().to_string();
    assert!(message.contains("open in another process"), "{message}");
}

#[tokio::test]
async fn garbage_is_not_taken_for_a_catalog() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(FILE), vec![7; 8192]).unwrap();
    assert!(Catalog::alone(dir.path()).await.is_err());
}

#[tokio::test]
async fn what_is_dropped_is_told_once_after_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    let held = segment(id, 0, "w1");
    catalog.apply(commit("x", &held)).await.unwrap();
    assert!(catalog.take_dropped().is_empty());
    let gone = catalog.snapshot();
    let table = gone.table_by_id(id).unwrap();
    let drop = Command::DropTable {
        schema_name: table.schema_name.clone(),
        name: table.name.clone(),
        if_exists: false,
    };
    catalog.apply(drop).await.unwrap();
    let dropped = catalog.take_dropped();
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0].segment.id, held.id);
    assert_eq!(dropped[0].version, catalog.snapshot().version);
    assert!(catalog.take_dropped().is_empty());
}

#[tokio::test]
async fn a_full_disk_refuses_and_the_catalog_lives() {
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join(FILE).with_extension("full");
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    let before = json(&catalog);
    fs::write(&full, "").unwrap();
    let refused = catalog.apply(commit("x", &segment(id, 0, "w1"))).await.unwrap_err();
    assert!(refused.to_string().contains("is full; nothing was changed"), "{refused}");
    assert_eq!(refused.code(), shoal_proto::ErrorCode::Exhausted, "{refused}");
    assert_eq!(json(&catalog), before);
    // What makes it smaller goes through, until the file must grow: then it
    // waits, and is made once there is room.
    let drops = (0..20).map(|number| {
        let name = format!("{number}-{}", "x".repeat(100_000));
        catalog.apply(Command::DropTable { schema_name: "public".to_owned(), name, if_exists: true })
    });
    let dropped = join_all(drops);
    let room = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        fs::remove_file(&full).unwrap();
    };
    let (dropped, ()) = tokio::join!(dropped, room);
    assert!(dropped.iter().all(Result::is_ok), "{dropped:?}");
    catalog.apply(commit("after", &segment(id, 0, "w1"))).await.unwrap();
    assert_ne!(json(&catalog), before);
    let after = json(&catalog);
    drop(catalog);
    assert_eq!(json(&Catalog::alone(dir.path()).await.unwrap()), after);
}

#[tokio::test]
async fn a_change_that_is_too_large_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    let before = json(&catalog);
    let segments = vec![segment(id, 0, "w1"); 100_000];
    let write = crate::catalog::WriteRecord { id: "x".into(), rows: 1 };
    let command = Command::CommitWrite { write, table: id, segments, replace: false, sketches: None };
    let refused = catalog.apply(command).await.unwrap_err();
    assert_eq!(refused.code(), shoal_proto::ErrorCode::Exhausted, "{refused}");
    let message = refused.to_string();
    assert!(message.contains("100000 segments") && message.contains("several parts"), "{message}");
    assert_eq!(json(&catalog), before);
}

/// Opens a catalog as one of several, at a URL where nobody listens.
async fn alone_again(dir: &std::path::Path) -> Result<Catalog, Error> {
    Catalog::open(CatalogOptions {
        dir: dir.to_owned(),
        address: "http://127.0.0.1:2".to_owned(),
        listening: std::net::Ipv4Addr::LOCALHOST.into(),
        join: Vec::new(),
        force_new_cluster: true,
    })
    .await
}

#[tokio::test]
async fn what_is_left_of_a_cluster_becomes_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let error = alone_again(dir.path()).await.unwrap_err();
    assert!(error.to_string().contains("belongs to no cluster"), "{error}");
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    let id = with_table(&catalog).await;
    // One that is down: from here on there is no majority.
    let consensus = catalog.consensus();
    let node = BasicNode::new("http://127.0.0.1:1");
    consensus.raft.add_learner(2, node, false).await.unwrap();
    let voters = openraft::ChangeMembers::AddVoterIds([2].into());
    let adding = consensus.raft.change_membership(voters, true);
    assert!(tokio::time::timeout(Duration::from_millis(300), adding).await.is_err());
    let before = catalog.snapshot().cluster.clone();
    drop(catalog);
    let catalog = alone_again(dir.path()).await.unwrap();
    assert_eq!(catalog.snapshot().cluster, before);
    assert!(catalog.snapshot().table_by_id(id).is_some());
    let members: Vec<_> = catalog.coordinators().into_iter().map(|it| (it.id, it.address)).collect();
    assert_eq!(members, [(1, "http://127.0.0.1:2".to_owned())]);
    // The other one still has what it had: it is not taken in with that, nor is
    // one of which this one never heard.
    for coordinator in [2, 3] {
        assert!(catalog.snapshot().is_dismissed(coordinator), "{coordinator}");
        let request = Enlist {
            coordinator: Some(coordinator),
            address: "http://127.0.0.1:1".to_owned(),
            may_forward: false,
        };
        let refused = catalog.consensus().enlist_here(&request).await.unwrap_err();
        assert!(refused.message.contains("was removed from the cluster"), "{refused}");
    }
    assert!(!catalog.snapshot().is_dismissed(1));
    let Ok(Outcome::Coordinator(next)) = catalog.apply(Command::ReserveCoordinator).await else {
        panic!("no number");
    };
    assert!(!catalog.snapshot().is_dismissed(next) && next > 3, "{next}");
    with_table(&catalog).await;
    drop(catalog);
    let catalog = Catalog::alone(dir.path()).await.unwrap();
    assert_eq!(catalog.snapshot().tables().count(), 2);
}
