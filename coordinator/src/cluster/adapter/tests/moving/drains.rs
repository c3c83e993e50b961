//! Workers that are drained, by an operator or because they ask for it.

use super::*;

#[tokio::test]
async fn all_shards_leave_a_worker_that_is_drained() {
    let cluster = cluster().await;
    let mut streams = Vec::new();
    for worker in ["w1", "w2", "w3"] {
        streams.push((worker, connect(&cluster, worker, &[]).await));
    }
    let segments = with_copies(&cluster).await;
    let now = Instant::now();
    let drain = |is_draining: bool| Command::DrainWorker { worker: "w1".into(), is_draining };
    let given_up = || {
        cluster.give_up(now);
        cluster.given_up(&"w1".into())
    };
    apply(&cluster, drain(true)).await;
    assert_eq!(given_up(), Some(GivenUp::Draining));
    assert_eq!(cluster.drained(), BTreeSet::from([WorkerId::from("w1")]));
    cluster.place_anew().await;
    assert_eq!(placed(&cluster), shards(["w2 w3", "w2 w3", "w3 w2"]));
    assert_eq!(fetch(&cluster, "w1", streams[0].1).await, Vec::<String>::new());
    for ((worker, stream), shard) in streams.into_iter().skip(1).zip([2, 0]) {
        cluster.place_anew().await;
        assert_eq!(given_up(), Some(GivenUp::Draining), "a copy is still to be made");
        assert_eq!(fetch(&cluster, worker, stream).await, [segments[shard].name().to_string()]);
    }
    assert_eq!(given_up(), Some(GivenUp::Draining), "its copies are in the catalog");
    cluster.place_anew().await;
    assert_eq!(given_up(), Some(GivenUp::Drained));
    assert_eq!(kinds(&cluster), ["draining", "moved", "moved", "drained"]);
    // Nothing comes back until it is told so.
    cluster.place_anew().await;
    assert_eq!(shards_on(&cluster, "w1"), 0);
    apply(&cluster, drain(false)).await;
    assert_eq!(given_up(), None);
    cluster.place_anew().await;
    assert_eq!(shards_on(&cluster, "w1"), 2);
}

/// A beat of a worker that is to stop once nothing is left on it.
fn beat_to_drain(cluster: &Cluster, worker: &str, stream: StreamNumber) -> Orders {
    let (worker, incarnation) = (worker.to_owned(), "one".to_owned());
    cluster.beat(stream, Beat { worker, incarnation, drain: true, ..Beat::default() })
}

#[tokio::test]
async fn a_worker_that_asks_for_it_is_drained_until_it_ends() {
    let cluster = cluster().await;
    let [w1, w2, w3] = [
        connect(&cluster, "w1", &[]).await,
        connect(&cluster, "w2", &[]).await,
        connect(&cluster, "w3", &[]).await,
    ];
    let segments = with_copies(&cluster).await;
    let now = Instant::now();
    let given_up = || {
        cluster.give_up(now);
        cluster.given_up(&"w1".into())
    };
    assert_eq!(given_up(), None);
    assert!(!beat_to_drain(&cluster, "w1", w1).drained);
    assert_eq!(live(&cluster), ["w1", "w2", "w3"], "it goes on serving");
    let everywhere = TableLayout { replicas: ReplicaCount::All, ..table(TableId(9), "new").layout };
    let elsewhere = vec![["w2", "w3"].map(WorkerId::from).to_vec(); 2];
    assert_eq!(cluster.place(&everywhere).unwrap().shards, elsewhere);
    assert_eq!(given_up(), Some(GivenUp::Draining));
    assert_eq!(cluster.drained(), BTreeSet::from([WorkerId::from("w1")]));
    cluster.place_anew().await;
    assert_eq!(placed(&cluster), shards(["w2 w3", "w2 w3", "w3 w2"]));
    for (worker, stream, shard) in [("w2", w2, 2), ("w3", w3, 0)] {
        assert_eq!(given_up(), Some(GivenUp::Draining), "a copy is still to be made");
        assert!(!beat_to_drain(&cluster, "w1", w1).drained);
        assert_eq!(fetch(&cluster, worker, stream).await, [segments[shard].name().to_string()]);
    }
    cluster.place_anew().await;
    assert_eq!(given_up(), Some(GivenUp::Drained));
    assert!(beat_to_drain(&cluster, "w1", w1).drained);
    assert_eq!(kinds(&cluster), ["draining", "moved", "moved", "drained"]);
    // What is known of it is of a while ago.
    move_shards(&cluster, ["w2 w3", "w2 w3", "w3 w1"]).await;
    assert!(!beat_to_drain(&cluster, "w1", w1).drained);
    move_shards(&cluster, ["w2 w3", "w2 w3", "w3 w2"]).await;

    // Its stream breaks: it asks again with its join.
    cluster.disconnected(&"w1".into(), w1);
    assert_eq!(given_up(), None);
    cluster.join(JoinRequest { drain: true, ..request("w1", &[]) }).await.unwrap();
    assert_eq!(given_up(), Some(GivenUp::Drained));
    // A new process asks for nothing, and gets its part.
    connect(&cluster, "w1", &[]).await;
    assert_eq!(given_up(), None);
    cluster.place_anew().await;
    assert_eq!(shards_on(&cluster, "w1"), 2);
}

#[tokio::test]
async fn a_worker_that_cannot_be_drained_is_told_what_is_missing() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    for worker in ["w2", "w3"] {
        connect(&cluster, worker, &[]).await;
    }
    with_copies(&cluster).await;
    beat_to_drain(&cluster, "w1", w1);
    let word = || {
        cluster.give_up(Instant::now());
        let orders = beat_to_drain(&cluster, "w1", w1);
        (orders.drained, orders.drain_lacks)
    };
    assert_eq!(word(), (false, String::new()), "the others can take all of it");
    let (schema_name, name, replicas) = ("public".to_owned(), "t".to_owned(), ReplicaCount::Count(3));
    apply(&cluster, Command::SetReplicas { schema_name, name, replicas }).await;
    let lacks = "public.t is to have 3 copies of each shard, and only 2 other workers can hold one: \
                 start another worker";
    assert_eq!(word(), (false, lacks.to_owned()));
    cluster.place_anew().await;
    assert_eq!(word(), (false, lacks.to_owned()));
    assert_eq!(beat(&cluster, "w1", w1).drain_lacks, "", "it does not ask");
}

#[tokio::test]
async fn a_worker_is_not_drained_while_a_write_goes_there() {
    let cluster = cluster().await;
    for worker in ["w1", "w2"] {
        connect(&cluster, worker, &[]).await;
    }
    let id = with_table(&cluster).await;
    let write = WriteId::random();
    cluster.protect(&write, segment(id, 0, "w9").name(), &["w9".into()]);
    let worker = WorkerRecord {
        id: "w9".into(),
        address: "http://w9".to_owned(),
        zone: String::new(),
        is_draining: false,
    };
    apply(&cluster, Command::RegisterWorker { worker }).await;
    apply(&cluster, Command::DrainWorker { worker: "w9".into(), is_draining: true }).await;
    let now = Instant::now();
    cluster.give_up(now);
    assert_eq!(cluster.given_up(&"w9".into()), Some(GivenUp::Draining));
    cluster.unprotect(&write);
    cluster.give_up(now);
    assert_eq!(cluster.given_up(&"w9".into()), Some(GivenUp::Drained));
}

#[tokio::test]
async fn a_worker_is_not_told_that_it_is_drained_while_a_write_goes_there() {
    let cluster = cluster().await;
    let w1 = connect(&cluster, "w1", &[]).await;
    beat_to_drain(&cluster, "w1", w1);
    cluster.give_up(Instant::now());
    assert!(beat_to_drain(&cluster, "w1", w1).drained);
    // It has begun since that was found out.
    let write = WriteId::random();
    cluster.protect(&write, segment(TableId(1), 0, "w1").name(), &["w1".into()]);
    assert!(!beat_to_drain(&cluster, "w1", w1).drained);
    cluster.unprotect(&write);
    assert!(beat_to_drain(&cluster, "w1", w1).drained);
}
