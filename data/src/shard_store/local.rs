//! The segments on this node's own disk.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::block_sums::BlockSums;
use crate::{SegmentName, page_cache};

/// Checksums of segments that are kept in memory: some 20 bytes per MB of them.
const SUMS_MAX: usize = 20_000;
/// Bytes that are read without a thread that may wait: of more that is a small part.
const AT_HAND_BYTES_MAX: u64 = 1024 * 1024;
/// Ranges that are read so, each with the blocks that it begins and ends in.
const AT_HAND_RANGES_MAX: usize = 64;

/// Knows which segments should be here, and is told of those that cannot be used.
pub trait ReportDamage: fmt::Debug + Send + Sync {
    /// Whether this node has the segment, as far as it knows.
    fn has(&self, name: &SegmentName) -> bool;

    /// The local file of this segment is damaged.
    fn damaged(&self, name: &SegmentName, what: &io::Error);
}

/// The segments on this node's own disk, verified whenever they are read.
#[derive(Debug)]
pub struct LocalSegments {
    dir: PathBuf,
    report: Arc<dyn ReportDamage>,
    /// Checksums that were loaded.
    sums: Mutex<HashMap<SegmentName, Arc<BlockSums>>>,
}

impl LocalSegments {
    /// Those below `dir`; damage is told to `report`.
    pub fn new(dir: PathBuf, report: Arc<dyn ReportDamage>) -> Self {
        Self { dir, report, sums: Mutex::default() }
    }

    /// The ranges of a segment; none where it is not here or damaged.
    pub fn read(&self, name: &SegmentName, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let read = self.open(name).and_then(|(file, sums)| {
            ranges.iter().map(|range| sums.read(&file, range.clone())).collect::<io::Result<Vec<_>>>()
        });
        self.unless_damaged(name, read)
    }

    /// The same without a wait for bytes from the disk: few that the system has in
    /// memory, of a segment that was read before. None where it is not so, or
    /// where anything is not as it should be.
    pub fn read_at_hand(&self, name: &SegmentName, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let bytes: u64 = ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum();
        if bytes > AT_HAND_BYTES_MAX || ranges.len() > AT_HAND_RANGES_MAX {
            return None;
        }
        let sums = self.sums.lock().get(name).cloned()?;
        let file = page_cache::open(&self.dir.join(name.to_string()))?;
        ranges.iter().map(|range| sums.read_at_hand(&file, range.clone())).collect()
    }

    /// Whether the segment should be here, whatever the disk says.
    pub fn has(&self, name: &SegmentName) -> bool {
        self.report.has(name)
    }

    /// Whether the checksums of a segment are on the disk as they were written,
    /// whatever is remembered of them.
    pub fn has_sums(&self, name: &SegmentName) -> bool {
        let loaded = BlockSums::load(*name, &self.dir.join(name.to_string()));
        self.unless_damaged(name, loaded).is_some()
    }

    /// The length of a segment; none where it is not here or damaged.
    pub fn bytes_of(&self, name: &SegmentName) -> Option<u64> {
        let sums = self.open(name).map(|(_, sums)| sums.bytes());
        self.unless_damaged(name, sums)
    }

    /// The file of a segment and what it must hold.
    ///
    /// # Errors
    /// `NotFound`, `InvalidData`, and what the disk says.
    pub fn open(&self, name: &SegmentName) -> io::Result<(File, Arc<BlockSums>)> {
        let path = self.dir.join(name.to_string());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                self.forget(name);
                return Err(error);
            }
        };
        if let Some(sums) = self.sums.lock().get(name) {
            return Ok((file, Arc::clone(sums)));
        }
        let sums = BlockSums::load(*name, &path).map_err(|error| match error.kind() {
            // The segment is there: without its checksums it is damaged.
            io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::InvalidData, "its checksums are gone"),
            _ => error,
        })?;
        let sums = Arc::new(sums);
        let mut known = self.sums.lock();
        if known.len() >= SUMS_MAX {
            known.clear();
        }
        known.insert(*name, Arc::clone(&sums));
        Ok((file, sums))
    }

    /// Tells of a segment that could not be read as it was written; not of
    /// one that was mended since, or that a second look finds well or cannot
    /// judge: a node that may not open another file has no damage.
    pub fn tell(&self, name: &SegmentName, error: &io::Error) {
        self.forget(name);
        match self.verify(name) {
            Ok(()) => {
                tracing::warn!(segment = %name, %error, "could not be read, and is well on a second look")
            }
            Err(second) if is_damage(&second) => self.report.damaged(name, error),
            Err(second) => tracing::error!(segment = %name, error = %second, "cannot be read now"),
        }
    }

    /// Looks whether all of a segment is as it was written.
    ///
    /// # Errors
    /// As [`LocalSegments::open`], and `InvalidData` or `UnexpectedEof`.
    pub fn verify(&self, name: &SegmentName) -> io::Result<()> {
        let (file, sums) = self.open(name)?;
        sums.verify(&file)
    }

    fn forget(&self, name: &SegmentName) {
        self.sums.lock().remove(name);
    }

    fn unless_damaged<T>(&self, name: &SegmentName, read: io::Result<T>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(error) => {
                self.tell(name, &error);
                None
            }
        }
    }
}

/// Whether an error says that bytes are not those that were written, and not
/// only that they cannot be read now.
pub fn is_damage(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof, io::ErrorKind::NotFound];
    kinds.contains(&error.kind()) || error.raw_os_error() == Some(EIO)
}
