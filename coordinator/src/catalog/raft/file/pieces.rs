//! Snapshots on the disk: in pieces, so that one of a large catalog is written in
//! many small commits, and entries of the log need not wait for all of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{broken, store};
use crate::Error;
use crate::catalog::raft::types::SnapshotMeta;

/// Snapshots in pieces, by the number of the snapshot and the place of the piece.
/// The one that counts is told by `snapshot` among the single values.
pub(super) const PIECES: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("snapshot_pieces");

/// What a snapshot is cut into. A page of the file has a power of two of bytes, and
/// this fits in one.
pub(super) const PIECE_BYTES: usize = (1 << 20) - 4_096;
/// Pieces that are written with one commit; entries of the log wait for no more.
pub(super) const PIECES_AT_ONCE: usize = 8;
/// Pieces of a snapshot that does not count any more that go with one commit.
const PIECES_FORGOTTEN: usize = 16;

/// A snapshot as it is kept.
#[derive(Clone, Debug)]
pub struct KeptSnapshot {
    /// What it is of.
    pub meta: SnapshotMeta,
    /// The state, encoded.
    pub data: Bytes,
}

/// Which snapshot counts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotHead {
    /// What it is of.
    pub meta: SnapshotMeta,
    /// The number under which its pieces are.
    pub(super) number: u64,
    /// The length of all pieces together.
    pub(super) bytes: u64,
}

impl SnapshotHead {
    /// How many there are.
    pub(super) fn pieces(&self) -> u64 {
        self.bytes.div_ceil(PIECE_BYTES as u64)
    }
}

/// The pieces that are written with one commit, from this place on.
pub(super) fn cut(data: &Bytes, place: u64) -> Vec<Bytes> {
    let first = usize::try_from(place).unwrap_or(usize::MAX).saturating_mul(PIECE_BYTES);
    let starts = (first..).step_by(PIECE_BYTES).take(PIECES_AT_ONCE);
    let starts = starts.take_while(|start| *start < data.len());
    starts.map(|start| data.slice(start..data.len().min(start + PIECE_BYTES))).collect()
}

/// Writes pieces of the snapshot of this number, from this place on.
pub(super) fn put_pieces(
    transaction: &WriteTransaction,
    number: u64,
    first: u64,
    pieces: &[impl AsRef<[u8]>],
) -> Result<(), Error> {
    let mut table = transaction.open_table(PIECES).map_err(store)?;
    for (place, piece) in (first..).zip(pieces) {
        table.insert((number, place), piece.as_ref()).map_err(store)?;
    }
    Ok(())
}

/// Whether a snapshot is of less than the one that counts.
pub(super) fn is_older(head: &SnapshotHead, kept: Option<&SnapshotHead>) -> bool {
    kept.is_some_and(|kept| head.meta.last_log_id < kept.meta.last_log_id)
}

/// Removes some of the pieces that nobody needs.
pub(super) fn forget_some(
    transaction: &WriteTransaction,
    unneeded: &mut BTreeMap<u64, Range<u64>>,
) -> Result<(), Error> {
    let Some(mut entry) = unneeded.first_entry() else { return Ok(()) };
    let number = *entry.key();
    let mut table = transaction.open_table(PIECES).map_err(store)?;
    for place in entry.get_mut().by_ref().take(PIECES_FORGOTTEN) {
        table.remove((number, place)).map_err(store)?;
    }
    if entry.get().is_empty() {
        entry.remove();
    }
    Ok(())
}

/// Pieces that do not belong to the snapshot that counts, which a crash left; and
/// the number of the next snapshot.
pub(super) fn strays(
    database: &Database,
    kept: Option<&SnapshotHead>,
) -> Result<(BTreeMap<u64, Range<u64>>, u64), Error> {
    let transaction = database.begin_read().map_err(store)?;
    let pieces = transaction.open_table(PIECES).map_err(store)?;
    let (mut strays, mut next) = (BTreeMap::new(), 0_u64);
    while let Some(first) = pieces.range((next, 0_u64)..).map_err(store)?.next() {
        let number = first.map_err(store)?.0.value().0;
        let last = pieces.range((number, 0_u64)..=(number, u64::MAX)).map_err(store)?.next_back();
        let last = last.transpose().map_err(store)?.map_or(0, |(key, _)| key.value().1);
        if kept.is_none_or(|kept| kept.number != number) {
            strays.insert(number, 0..last + 1);
        }
        next = number + 1;
    }
    // Also where it has no pieces.
    Ok((strays, next.max(kept.map_or(0, |kept| kept.number + 1))))
}

/// The snapshot that counts, put together.
pub(super) fn read_snapshot(
    database: &Database,
    head: Option<&SnapshotHead>,
    path: &Path,
) -> Result<Option<KeptSnapshot>, Error> {
    let Some(head) = head else { return Ok(None) };
    let transaction = database.begin_read().map_err(store)?;
    let pieces = transaction.open_table(PIECES).map_err(store)?;
    let length = usize::try_from(head.bytes).map_err(|_| broken(path, "its snapshot is too large"))?;
    let mut data = Vec::with_capacity(length);
    for piece in pieces.range((head.number, 0_u64)..(head.number + 1, 0_u64)).map_err(store)? {
        let (_, piece) = piece.map_err(store)?;
        data.extend_from_slice(piece.value());
    }
    if data.len() != length {
        return Err(broken(path, "pieces of its snapshot are missing"));
    }
    Ok(Some(KeptSnapshot { meta: head.meta.clone(), data: data.into() }))
}
