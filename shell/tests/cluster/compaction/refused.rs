//! A shard whose worker has no room stays as it is, and only that one.

use shoal_benches::small_disk::SmallDisk;

use super::*;
use crate::fixture::wait_until;

/// One copy of each shard: only one of them is on the disk that becomes full.
const LAYOUT: &str = "shards = 3, replicas = 1, shard_key = 'k', sort_key = 'k'";
/// All three disks have room.
const HAVE_ROOM: &str = "SELECT count(*) / 3 FROM system.workers WHERE disk_free_bytes > 100000000";
/// One of them is told to be full: what was told before it was filled up does not count.
const IS_FULL: &str = "SELECT count(*) FROM system.workers WHERE disk_free_bytes < 1000000";
const SEGMENTS: &str = "SELECT segments FROM system.shards ORDER BY shard";

#[test]
fn a_shard_without_room_on_its_worker_leaves_the_others_to_be_compacted() {
    if let Some(why) = SmallDisk::refusal() {
        eprintln!("no disk was filled up, because none can be mounted here: {why}");
        return;
    }
    let coordinator_args = vec!["--compaction=off".to_owned()];
    let disk_bytes = Some(128 << 20);
    let obedient = Obedient::start(ClusterOptions { coordinator_args, disk_bytes, ..options(3) });
    let cluster = &obedient.cluster;
    let _logs = cluster.show_logs_on_failure();
    run(async {
        let mut client = cluster.connect().await.unwrap();
        wait_until(&mut client, HAVE_ROOM).await;
        client.update(&create("many", LAYOUT)).await.unwrap();
        make_many(&mut client, 1..4).await;
        let of_first = "SELECT array_to_string(workers, ' ') FROM system.shards WHERE shard = 0";
        let first = client.text(of_first).await.unwrap().trim().to_owned();
        let on_first = format!("SELECT count(*) FROM system.shards WHERE array_has(workers, '{first}')");
        assert_eq!(client.number(&on_first).await.unwrap(), 1, "other shards are on {first}, too");
        let disk = cluster.disk(&first).unwrap();

        // There was room when the shard was chosen.
        let before = obeyed(cluster, "coordinator");
        order(&obedient, "coordinator", Step::CompactionBegun, "stall");
        let optimized = optimizing(cluster).await;
        wait_until_stalled(cluster, before).await;
        disk.fill().unwrap();
        obedient.order("");
        let error = optimized.await.unwrap().unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
        let named = "1 of 3 shards of public.many stay as they are: 0; the others were looked at. Shard 0: ";
        assert!(error.message.contains(named), "{error}");
        assert_eq!(client.text(SEGMENTS).await.unwrap(), "3\n1\n1\n");

        // Somebody stops it behind that shard: which it was is told all the same.
        wait_until(&mut client, IS_FULL).await;
        disk.empty().unwrap();
        wait_until(&mut client, HAVE_ROOM).await;
        make_many(&mut client, 4..6).await;
        let before = obeyed(cluster, "coordinator");
        order(&obedient, "coordinator", Step::CompactionBegun, "stall");
        let mut asking = cluster.connect().await.unwrap();
        let optimized = tokio::spawn(async move {
            let ended = in_time(asking.update("OPTIMIZE TABLE many")).await;
            (ended, asking.notices().await.unwrap())
        });
        wait_until_stalled(cluster, before).await;
        disk.fill().unwrap();
        let before = obeyed(cluster, "coordinator");
        order(&obedient, "coordinator", Step::CompactionStaged, "stall");
        wait_until_stalled(cluster, before).await;
        kill_optimizing(&mut client).await;
        let (ended, notices) = optimized.await.unwrap();
        obedient.order("");
        let error = ended.unwrap_err();
        assert!(error.message.contains("cancelled"), "{error}");
        let named = "1 of 3 shards of public.many stay as they are: 0. Shard 0: ";
        assert!(notices.len() == 2 && notices[0].starts_with(named), "{notices:?}");
        assert_eq!(notices[1], "3 of 3 shards of public.many have small segments left");
        disk.empty().unwrap();
        check(&mut client, 5).await;
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
