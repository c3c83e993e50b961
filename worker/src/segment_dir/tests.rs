//! Claims about segments on disk.

use std::sync::Arc;

use bytes::Bytes;
use shoal_proto::{ErrorCode, SegmentId, TableId};

use super::*;

fn name(shard: u32) -> SegmentName {
    SegmentName { table: TableId(3), shard, segment: SegmentId::random() }
}

fn open(path: &Path) -> (DataDir, Arc<SegmentDir>) {
    let data_dir = DataDir::lock(path).unwrap();
    let dir = Arc::new(SegmentDir::open(&data_dir).unwrap());
    (data_dir, dir)
}

fn write(dir: &Arc<SegmentDir>, name: SegmentName, bytes: &[u8]) -> Result<(u64, u32), Error> {
    let mut staging = dir.stage(name, bytes.len() as u64, crc32c::crc32c(bytes))?;
    for piece in bytes.chunks(3) {
        staging.write(&Bytes::copy_from_slice(piece))?;
    }
    staging.finish()
}

fn staged_files(path: &Path) -> usize {
    fs::read_dir(path.join(STAGING)).unwrap().count()
}

#[test]
fn a_segment_is_there_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let (lock, dir) = open(root.path());
    let held = name(1);
    assert_eq!(write(&dir, held, b"0123456789").unwrap(), (10, crc32c::crc32c(b"0123456789")));
    drop((lock, dir));
    let (_lock, dir) = open(root.path());
    assert_eq!(dir.held(), [(held, 10)]);
    assert_eq!(dir.used_bytes(), 10);
    let path = dir.path().join(held.to_string());
    let sums = BlockSums::load(held, &path).unwrap();
    assert_eq!(sums.read(&File::open(&path).unwrap(), 2..10).unwrap(), "23456789");
}

#[test]
fn what_has_no_right_checksums_is_set_aside_until_a_copy_is_here() {
    let root = tempfile::tempdir().unwrap();
    let [well, bare, rotten, short] = [0, 1, 2, 3].map(name);
    let (lock, dir) = open(root.path());
    for name in [well, bare, rotten, short] {
        write(&dir, name, b"0123456789").unwrap();
    }
    let path = |name: SegmentName| root.path().join(SEGMENTS).join(name.to_string());
    fs::remove_file(BlockSums::path(&path(bare))).unwrap();
    let mut sums = fs::read(BlockSums::path(&path(rotten))).unwrap();
    sums[20] ^= 1;
    fs::write(BlockSums::path(&path(rotten)), sums).unwrap();
    fs::write(path(short), b"01234").unwrap();
    drop((lock, dir));
    let (lock, dir) = open(root.path());
    assert_eq!(dir.held(), [(well, 10)]);
    assert_eq!(dir.damaged_count(), 3);
    let aside = |name: SegmentName| dir.damaged_path(&name);
    for name in [bare, rotten, short] {
        assert!(!path(name).exists() && !BlockSums::path(&path(name)).exists());
    }
    // Nothing is lost that may be the last of its kind.
    assert_eq!(fs::read(aside(bare)).unwrap(), b"0123456789");
    assert_eq!(fs::read(aside(short)).unwrap(), b"01234");
    assert!(BlockSums::path(&aside(rotten)).exists());
    write(&dir, rotten, b"0123456789").unwrap();
    assert!(!aside(rotten).exists() && !BlockSums::path(&aside(rotten)).exists());
    dir.remove(&bare).unwrap();
    assert!(!aside(bare).exists());
    assert_eq!(dir.report(), [(well, 10), (rotten, 10), (short, 0)]);
    drop((lock, dir));
    let (_lock, dir) = open(root.path());
    assert_eq!(dir.held(), [(well, 10), (rotten, 10)]);
    assert!(dir.damaged_path(&short).exists());
    // Who needs it no more says so, also when it was damaged long ago.
    assert_eq!(dir.report(), [(well, 10), (rotten, 10), (short, 0)]);
}

#[test]
fn checksums_without_a_segment_are_swept_up() {
    let root = tempfile::tempdir().unwrap();
    let (lock, dir) = open(root.path());
    let held = name(0);
    write(&dir, held, b"0123").unwrap();
    let path = dir.path().join(held.to_string());
    fs::remove_file(&path).unwrap();
    drop((lock, dir));
    let (_lock, dir) = open(root.path());
    assert!(dir.held().is_empty());
    assert!(!BlockSums::path(&path).exists());
}

#[test]
fn what_was_discarded_while_it_was_written_does_not_appear() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let held = name(0);
    let mut late = dir.stage(held, 4, crc32c::crc32c(b"0123")).unwrap();
    late.write(&Bytes::from_static(b"0123")).unwrap();
    assert!(!dir.remove(&held).unwrap());
    assert_eq!(late.finish().unwrap_err().code(), ErrorCode::Invalid);
    assert!(dir.held().is_empty());
    let path = dir.path().join(held.to_string());
    assert!(!path.exists() && !BlockSums::path(&path).exists());
    assert_eq!(staged_files(root.path()), 0);
    // Ordered anew, it comes.
    write(&dir, held, b"0123").unwrap();
    assert_eq!(dir.held(), [(held, 4)]);
}

#[test]
fn a_segment_that_was_begun_before_a_report_is_late() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let [early, late] = [0, 1].map(name);
    let in_time = dir.stage(early, 0, 0).unwrap();
    let number = in_time.number();
    in_time.finish().unwrap();
    assert!(!dir.is_late(number));
    let slow = dir.stage(late, 0, 0).unwrap();
    let number = slow.number();
    assert_eq!(dir.report(), [(early, 0)]);
    // Begun before one coordinator was told, and after another was.
    let between = dir.stage(late, 0, 0).unwrap().number();
    dir.report();
    slow.finish().unwrap();
    assert!(dir.is_late(number) && dir.is_late(between));
    let next = dir.stage(late, 0, 0).unwrap();
    assert!(!dir.is_late(next.number()));
}

#[test]
fn what_is_not_whole_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (lock, dir) = open(root.path());
    let held = name(0);
    // Given up.
    let mut staging = dir.stage(held, 10, 0).unwrap();
    staging.write(&Bytes::from_static(b"01234")).unwrap();
    assert_eq!(staged_files(root.path()), 1);
    drop(staging);
    assert_eq!(staged_files(root.path()), 0);
    // Too short, too long, other bytes.
    let mut short = dir.stage(held, 10, 0).unwrap();
    short.write(&Bytes::from_static(b"01234")).unwrap();
    assert_eq!(short.finish().unwrap_err().code(), ErrorCode::Corrupt);
    let mut long = dir.stage(held, 2, 0).unwrap();
    assert_eq!(long.write(&Bytes::from_static(b"01234")).unwrap_err().code(), ErrorCode::Corrupt);
    drop(long);
    let mut other = dir.stage(held, 5, 77).unwrap();
    other.write(&Bytes::from_static(b"01234")).unwrap();
    assert_eq!(other.finish().unwrap_err().code(), ErrorCode::Corrupt);
    assert_eq!(staged_files(root.path()), 0);
    assert!(dir.held().is_empty());
    // A crash in the middle.
    fs::write(root.path().join(STAGING).join("left"), b"x").unwrap();
    drop((lock, dir));
    let (_lock, dir) = open(root.path());
    assert_eq!(staged_files(root.path()), 0);
    assert!(dir.held().is_empty());
}

#[test]
fn more_than_the_disk_has_is_refused_before_anything_is_written() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let held = name(0);
    let error = dir.stage(held, 1 << 60, 0).unwrap_err();
    // ext4 says that no file can be so large, tmpfs that there is no room.
    assert!(matches!(error, Error::DiskFull { .. } | Error::Io { .. }), "{error}");
    assert_eq!(staged_files(root.path()), 0);
    write(&dir, held, b"0123").unwrap();
}

#[test]
fn what_must_stay_free_beside_a_segment_is_not_taken() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let held = name(0);
    dir.check_room(&held, 10, 10).unwrap();
    let error = dir.check_room(&held, 10, 1 << 60).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Exhausted);
    let message = error.to_string();
    let named = format!("segment {held} of 10 bytes");
    for part in [named.as_str(), "bytes are free on the disk of", "1152921504606846976 must stay free"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(dir.check_room(&held, u64::MAX, u64::MAX).is_err());
    assert_eq!(staged_files(root.path()), 0);
}

#[test]
fn a_segment_written_twice_is_there_once() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let held = name(0);
    write(&dir, held, b"0123").unwrap();
    write(&dir, held, b"0123").unwrap();
    assert_eq!(dir.held(), [(held, 4)]);
}

#[test]
fn removing_what_is_not_here_is_no_error() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let held = name(0);
    write(&dir, held, b"0123").unwrap();
    let path = dir.path().join(held.to_string());
    let file = File::open(&path).unwrap();
    assert!(dir.remove(&held).unwrap());
    assert!(!dir.remove(&held).unwrap());
    assert!(!path.exists() && !BlockSums::path(&path).exists());
    // Who reads it already reads on.
    assert_eq!(shoal_data::file_stream::read_exact(&file, 0..4).unwrap(), "0123");
}

#[test]
fn strangers_in_the_directory_are_left_alone() {
    let root = tempfile::tempdir().unwrap();
    let stranger = root.path().join(SEGMENTS).join("3/0/notes.txt");
    fs::create_dir_all(stranger.parent().unwrap()).unwrap();
    fs::write(&stranger, b"x").unwrap();
    fs::write(root.path().join(SEGMENTS).join("README"), b"x").unwrap();
    let (_lock, dir) = open(root.path());
    assert!(dir.held().is_empty());
    assert!(stranger.exists());
}

#[test]
fn what_is_being_written_counts_until_it_is_here_or_given_up() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    assert_eq!(dir.count(), 0);
    let given_up = dir.stage(name(0), 4, 0).unwrap();
    let held = name(1);
    write(&dir, held, b"0123").unwrap();
    assert_eq!(dir.count(), 2);
    drop(given_up);
    assert_eq!(dir.count(), 1);
    dir.remove(&held).unwrap();
    assert_eq!(dir.count(), 0);
}

#[test]
fn what_is_closed_takes_nothing_and_only_what_is_empty_is_closed() {
    let root = tempfile::tempdir().unwrap();
    let (_lock, dir) = open(root.path());
    let held = name(0);
    let begun = dir.stage(held, 0, 0).unwrap();
    assert!(!dir.close(), "a segment is being written");
    begun.finish().unwrap();
    assert!(!dir.close(), "a segment is here");
    write(&dir, name(1), b"0123").unwrap();
    for (held, _) in dir.held() {
        dir.remove(&held).unwrap();
    }
    assert!(dir.close());
    let refused = dir.stage(held, 4, 0).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Stopping, "{refused}");
    assert_eq!((dir.count(), staged_files(root.path())), (0, 0));
    dir.open_again();
    write(&dir, held, b"0123").unwrap();
    assert_eq!(dir.held(), [(held, 4)]);
}

#[test]
fn the_id_is_another_one_where_everything_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let (lock, dir) = open(root.path());
    let first = dir.disk().to_owned();
    write(&dir, name(0), b"0123").unwrap();
    drop((lock, dir));
    let (lock, dir) = open(root.path());
    assert_eq!(dir.disk(), first);
    drop((lock, dir));
    fs::remove_dir_all(root.path().join(SEGMENTS)).unwrap();
    let (_lock, dir) = open(root.path());
    assert_ne!(dir.disk(), first);
}
