//! The segments on this worker's disk. A file is there under its name only
//! once it is whole and durable; until then it is in the staging directory,
//! which every start empties. One that is damaged is set aside, where nobody
//! reads it, until a good copy has taken its place: it may be the last one.
//!
//! All of it blocks: call it from blocking threads.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use shoal_data::block_sums::{self, BlockSums};
use shoal_data::data_dir::make_dir;
use shoal_data::shard_store::is_damage;
use shoal_data::{DataDir, SegmentName};

use crate::{Error, disk_id};

mod staging;

pub use staging::Staging;

/// Name of the directory that holds the segments, below the data directory.
pub const SEGMENTS: &str = "segments";
const STAGING: &str = "staging";
/// Name of the directory of damaged segments, below the data directory.
pub const DAMAGED: &str = "damaged";

/// The segments of one worker.
#[derive(Debug)]
pub struct SegmentDir {
    segments: PathBuf,
    staging: PathBuf,
    damaged: PathBuf,
    /// See [`SegmentDir::disk`].
    disk: String,
    /// Names and lengths of what is there. Never locked while the disk works.
    held: Mutex<HashMap<SegmentName, u64>>,
    /// What is set aside.
    aside: Mutex<BTreeSet<SegmentName>>,
    /// What is being written, by number. Locked while names on disk change.
    writing: Mutex<HashMap<u64, Writing>>,
    /// Whether nothing more is taken. It changes only while `writing` is locked.
    is_closed: AtomicBool,
    /// Number of the next one.
    next: AtomicU64,
    /// Those below this number began before the newest report.
    reported: AtomicU64,
    /// Segments that were set aside since the start.
    damaged_count: AtomicU64,
}

/// One segment that is being written.
#[derive(Debug)]
struct Writing {
    name: SegmentName,
    /// Nobody wants it any more.
    is_revoked: bool,
}

impl SegmentDir {
    /// Empties the staging directory and finds what is there. What has no
    /// right checksums beside it cannot be told from rot, and is set aside.
    ///
    /// # Errors
    /// `Io` where a directory cannot be read.
    pub fn open(data_dir: &DataDir) -> Result<Self, Error> {
        let segments = data_dir.path().join(SEGMENTS);
        // Before anything else is there: what begins empty never has the id of what was
        // there before.
        let disk = disk_id::load(data_dir.path(), &segments)?;
        let staging = data_dir.emptied(STAGING)?;
        let damaged = data_dir.path().join(DAMAGED);
        make_dir(&damaged)?;
        let dir = Self {
            segments,
            staging,
            damaged,
            disk,
            held: Mutex::default(),
            aside: Mutex::default(),
            writing: Mutex::default(),
            is_closed: AtomicBool::new(false),
            next: AtomicU64::new(0),
            reported: AtomicU64::new(0),
            damaged_count: AtomicU64::new(0),
        };
        for file in entries(&dir.damaged)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().replacen('-', "/", 2);
            dir.aside.lock().extend(name.parse::<SegmentName>());
        }
        dir.take_back()?;
        for table in entries(&dir.segments)? {
            if table.ends_with(disk_id::FILE) {
                continue;
            }
            for shard in entries(&table)? {
                for file in entries(&shard)? {
                    dir.find(&file)?;
                }
            }
        }
        Ok(dir)
    }

    /// Puts back what was set aside and is well: what kept it from being read was
    /// not its bytes.
    fn take_back(&self) -> Result<(), Error> {
        let aside: Vec<SegmentName> = self.aside.lock().iter().copied().collect();
        for name in aside {
            let (from, to) = (self.damaged_path(&name), self.segments.join(name.to_string()));
            let is_well =
                BlockSums::load(name, &from).and_then(|sums| sums.verify(&File::open(&from)?)).is_ok();
            if !is_well || to.exists() {
                continue;
            }
            let failed = |error| Error::io(format!("cannot put {} back", from.display()), error);
            if let Some(shard) = to.parent() {
                make_dir(shard)?;
            }
            fs::rename(BlockSums::path(&from), BlockSums::path(&to)).map_err(failed)?;
            fs::rename(&from, &to).map_err(failed)?;
            self.aside.lock().remove(&name);
            tracing::info!(segment = %name, "was set aside, is well, and is put back");
        }
        Ok(())
    }

    /// Takes in a file that was there at the start.
    fn find(&self, file: &Path) -> Result<(), Error> {
        let name_of = |file: &Path| {
            let relative = file.strip_prefix(&self.segments).unwrap_or(file);
            relative.to_string_lossy().parse::<SegmentName>()
        };
        if file.extension().is_some_and(|extension| extension == block_sums::EXTENSION) {
            let segment = file.with_extension("");
            // What a crash between two names leaves.
            if name_of(&segment).is_ok()
                && !segment.exists()
                && let Err(error) = remove_if_there(file)
            {
                tracing::warn!(%error, "checksums without a segment are left");
            }
            return Ok(());
        }
        let Ok(name) = name_of(file) else {
            tracing::warn!(file = %file.display(), "not a segment, left alone");
            return Ok(());
        };
        match whole_length(name, file) {
            Ok(bytes) => {
                self.held.lock().insert(name, bytes);
            }
            Err(error) if is_damage(&error) => self.set_aside(&name, &error),
            Err(error) => return Err(Error::io(format!("cannot look at {}", file.display()), error)),
        }
        Ok(())
    }

    /// Where the segments are.
    pub fn path(&self) -> &Path {
        &self.segments
    }

    /// The id of what is here: the same over restarts, and another one where a
    /// start finds nothing, because the disk is new or is not mounted.
    pub fn disk(&self) -> &str {
        &self.disk
    }

    /// Every segment that is here, with its length, by name.
    pub fn held(&self) -> Vec<(SegmentName, u64)> {
        let mut held: Vec<_> = self.held.lock().iter().map(|(name, bytes)| (*name, *bytes)).collect();
        held.sort_unstable();
        held
    }

    /// Segments that are here or are being written.
    pub fn count(&self) -> usize {
        // In this order: one that is about to be here is not missed.
        let writing = self.writing.lock().len();
        writing + self.held.lock().len()
    }

    /// Takes nothing more, until [`SegmentDir::open_again`], where nothing is here and
    /// nothing is being written; whether that is so.
    pub fn close(&self) -> bool {
        let writing = self.writing.lock();
        // What is being written stays in there until it is here.
        let is_empty = writing.is_empty() && self.held.lock().is_empty();
        self.is_closed.store(is_empty, Ordering::Relaxed);
        is_empty
    }

    /// Takes segments again.
    pub fn open_again(&self) {
        let _writing = self.writing.lock();
        self.is_closed.store(false, Ordering::Relaxed);
    }

    /// The length of the segment, if it is here.
    pub fn bytes_of(&self, name: &SegmentName) -> Option<u64> {
        self.held.lock().get(name).copied()
    }

    /// What [`SegmentDir::held`] says, for a coordinator that is joined, and
    /// what is set aside, with a length of 0. What comes after this and was
    /// begun before is a late one.
    pub fn report(&self) -> Vec<(SegmentName, u64)> {
        self.reported.fetch_max(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        let mut report = self.held();
        report.extend(self.aside.lock().iter().map(|name| (*name, 0)));
        report
    }

    /// Whether the segment with this number, which is here now, was begun
    /// before any report: then the coordinator that got it may not know of it.
    pub fn is_late(&self, number: u64) -> bool {
        number < self.reported.load(Ordering::Relaxed)
    }

    /// Damaged segments that were found since the start.
    pub fn damaged_count(&self) -> u64 {
        self.damaged_count.load(Ordering::Relaxed)
    }

    /// Bytes of all segments that are here.
    pub fn used_bytes(&self) -> u64 {
        self.held.lock().values().sum()
    }

    /// Bytes that are free on the disk, and that it has in all; none of either
    /// where it cannot be asked.
    pub fn disk_bytes(&self) -> (u64, u64) {
        let asked = rustix::fs::statvfs(&self.segments);
        asked.map_or((0, 0), |disk| (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize))
    }

    /// Looks whether a segment of so many bytes can come, and `keep_free_bytes` stay
    /// free beside it. What is being written has taken its room already.
    ///
    /// # Errors
    /// `NoRoom`. A disk that cannot be asked has room.
    pub fn check_room(&self, name: &SegmentName, bytes: u64, keep_free_bytes: u64) -> Result<(), Error> {
        let (free_bytes, total_bytes) = self.disk_bytes();
        if total_bytes == 0 || free_bytes >= bytes.saturating_add(keep_free_bytes) {
            return Ok(());
        }
        let (name, dir) = (name.to_string(), self.segments.display().to_string());
        Err(Error::NoRoom { name, bytes, keep_free_bytes, free_bytes, dir })
    }

    /// Removes a segment that nobody needs; whether it was here. One that is
    /// being written under this name does not appear any more.
    ///
    /// # Errors
    /// `Io` where the disk refuses.
    pub fn remove(&self, name: &SegmentName) -> Result<bool, Error> {
        let mut writing = self.writing.lock();
        writing.values_mut().filter(|writing| writing.name == *name).for_each(|it| it.is_revoked = true);
        self.held.lock().remove(name);
        let path = self.segments.join(name.to_string());
        let was_here = remove_if_there(&path)?;
        remove_if_there(&BlockSums::path(&path))?;
        self.forget_damaged(name)?;
        Ok(was_here)
    }

    /// Moves a damaged segment, and what there is of its checksums, to where
    /// nobody reads it.
    pub fn set_aside(&self, name: &SegmentName, what: &io::Error) {
        let _writing = self.writing.lock();
        self.held.lock().remove(name);
        self.aside.lock().insert(*name);
        self.damaged_count.fetch_add(1, Ordering::Relaxed);
        let (path, aside) = (self.segments.join(name.to_string()), self.damaged_path(name));
        tracing::error!(
            segment = %name, error = %what, aside = %aside.display(),
            "segment is damaged: it is set aside until a peer's copy is here"
        );
        // The segment first: without it, its checksums are swept up.
        for (from, to) in [(&path, &aside), (&BlockSums::path(&path), &BlockSums::path(&aside))] {
            match fs::rename(from, to) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::error!(file = %from.display(), %error, "damaged file not set aside"),
            }
        }
    }

    fn damaged_path(&self, name: &SegmentName) -> PathBuf {
        self.damaged.join(name.to_string().replace('/', "-"))
    }

    fn forget_damaged(&self, name: &SegmentName) -> Result<(), Error> {
        self.aside.lock().remove(name);
        let path = self.damaged_path(name);
        remove_if_there(&path)?;
        remove_if_there(&BlockSums::path(&path)).map(|_| ())
    }
}

/// The length of a segment's file, which is that of which its checksums are.
fn whole_length(name: SegmentName, path: &Path) -> io::Result<u64> {
    let (sums, bytes) = (BlockSums::load(name, path)?, path.metadata()?.len());
    if sums.bytes() != bytes {
        let what = format!("it has {bytes} of the {} bytes that were written", sums.bytes());
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(bytes)
}

/// Removes a file; whether it was there.
fn remove_if_there(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("cannot remove {}", path.display()), error)),
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    if !dir.is_dir() {
        tracing::warn!(file = %dir.display(), "not a directory of segments, left alone");
        return Ok(Vec::new());
    }
    let listed = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    listed.map_err(|error| Error::io(format!("cannot list {}", dir.display()), error))
}

#[cfg(test)]
mod tests;
