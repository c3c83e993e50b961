//! On which disks of its workers a write says that its segments are.

use shoal_proto::SegmentId;

use super::*;
use crate::catalog::{Command, OnDisk, WriteRecord};
use crate::write::Staged;

#[tokio::test(flavor = "multi_thread")]
async fn a_write_says_on_which_disks_its_segments_are() {
    let fixture = Fixture::new(0).await;
    for (store, disk) in fixture.stores.iter().zip(["first", "second", ""]) {
        *store.disk.lock() = disk.to_owned();
    }
    let staged = fixture.write(&table(2, &["k"]), rows(100, 10)).await.unwrap();
    let write = WriteRecord { id: "w".into(), rows: staged.rows };
    let segments = staged.segments.clone();
    let commit = Command::CommitWrite { write, table: TableId(1), segments, replace: false, sketches: None };
    let Command::OnDisks { disks, change } = staged.on_disks(commit) else {
        panic!("it says nothing of disks");
    };
    let on = |worker: &str, disk: &str| OnDisk {
        worker: worker.into(),
        disk: disk.to_owned(),
        segments: Vec::new(),
    };
    // The third worker says nothing of its disk.
    assert_eq!(disks, [on("w1", "first"), on("w2", "second")]);
    assert_eq!(change.segments(), staged.segments.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_write_say_together_on_which_disks_they_are() {
    let fixture = Fixture::new(0).await;
    let (table, worker) = (table(2, &["k"]), WorkerId::from("w1"));
    let disks = ["first", "second"];
    let mut parts = Vec::new();
    for disk in disks {
        *fixture.stores[0].disk.lock() = disk.to_owned();
        parts.push(fixture.write(&table, rows(100, 10)).await.unwrap());
    }
    let of_first: Vec<SegmentId> = parts[0].segments.iter().map(|segment| segment.id).collect();
    let staged = parts.into_iter().reduce(Staged::with).unwrap();
    assert_eq!(staged.rows, 200);
    let write = WriteRecord { id: "w".into(), rows: staged.rows };
    let segments = staged.segments.clone();
    let commit = Command::CommitWrite { write, table: TableId(1), segments, replace: false, sketches: None };
    let Command::OnDisks { disks: told, .. } = staged.on_disks(commit) else {
        panic!("it says nothing of disks");
    };
    assert_eq!(told.iter().map(|it| it.disk.as_str()).collect::<Vec<_>>(), disks);
    for segment in &staged.segments {
        let is_on: Vec<bool> = told.iter().map(|it| it.is_of(segment.id, &worker)).collect();
        let is_of_first = of_first.contains(&segment.id);
        assert_eq!(is_on, [is_of_first, !is_of_first]);
    }
}
