//! The segments on this worker's disk. A file is there under its name only
//! once it is whole and durable; until then it is in the staging directory,
//! which every start empties. One that is damaged is set aside, where nobody
//! reads it, until a good copy has taken its place: it may be the last one.
//!
//! All of it blocks: call it from blocking threads.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use shoal_data::block_sums::{self, BlockSummer, BlockSums};
use shoal_data::data_dir::{is_full, make_dir, sync_dir, sync_file};
use shoal_data::shard_store::is_damage;
use shoal_data::{DataDir, SegmentName};
use shoal_proto::fault::{self, Step};

use crate::{Error, disk_id};

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

    /// Starts a segment of so many bytes; takes the room for it at once.
    ///
    /// # Errors
    /// `Closed`; `DiskFull` before anything is written; `Io`.
    pub fn stage(self: &Arc<Self>, name: SegmentName, bytes: u64, crc32c: u32) -> Result<Staging, Error> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.staging.join(format!("{}-{number}", name.segment));
        let file = File::create(&path).map_err(|error| self.failed(&name, bytes, &path, error))?;
        let (sums_path, path) = (Temporary(BlockSums::path(&path)), Temporary(path));
        {
            let mut writing = self.writing.lock();
            if self.is_closed.load(Ordering::Relaxed) {
                return Err(Error::Closed(name.to_string()));
            }
            writing.insert(number, Writing { name, is_revoked: false });
        }
        let staging = Staging {
            dir: Arc::clone(self),
            number,
            name,
            file,
            sums_path,
            path,
            expected: (bytes, crc32c),
            written: 0,
            blocks: BlockSummer::default(),
        };
        if bytes > 0 {
            match rustix::fs::fallocate(&staging.file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) => {}
                // Not every file system can.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(self.failed(&name, bytes, &staging.path.0, error.into())),
            }
        }
        fault::point(Step::StageCreated);
        Ok(staging)
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

    /// Puts a whole, durable file and its checksums under their names,
    /// durably: the checksums first, as a segment is nothing without them.
    fn install(&self, staging: &Staging) -> Result<(), Error> {
        let (name, bytes) = (staging.name, staging.expected.0);
        let path = self.segments.join(name.to_string());
        let Some(shard) = path.parent() else {
            return Err(Error::Internal(format!("segment {name} has no directory")));
        };
        make_dir(shard)?;
        let sums_path = BlockSums::path(&path);
        {
            let writing = self.writing.lock();
            check_wanted(&writing, staging)?;
            fs::rename(&staging.sums_path.0, &sums_path)
                .map_err(|error| self.failed(&name, bytes, &sums_path, error))?;
            fault::point(Step::SumsRenamed);
            fs::rename(&staging.path.0, &path).map_err(|error| self.failed(&name, bytes, &path, error))?;
            fault::point(Step::SegmentRenamed);
        }
        sync_dir(shard)?;
        let writing = self.writing.lock();
        // It may have been removed since it has its name.
        check_wanted(&writing, staging)?;
        self.held.lock().insert(name, bytes);
        self.forget_damaged(&name)
    }

    fn failed(&self, name: &SegmentName, bytes: u64, path: &Path, error: io::Error) -> Error {
        if is_full(&error) {
            Error::DiskFull { name: name.to_string(), bytes, dir: self.segments.display().to_string() }
        } else {
            Error::io(format!("cannot write {}", path.display()), error)
        }
    }
}

/// A segment that is being written. Dropped before [`Staging::finish`], it
/// leaves nothing behind.
#[derive(Debug)]
pub struct Staging {
    dir: Arc<SegmentDir>,
    number: u64,
    name: SegmentName,
    file: File,
    path: Temporary,
    sums_path: Temporary,
    /// Of what was written so far.
    blocks: BlockSummer,
    /// Bytes and checksum that were announced.
    expected: (u64, u32),
    /// Bytes so far.
    written: u64,
}

impl Staging {
    /// Its number among all that were begun here.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// `Corrupt` for more than were announced; `DiskFull`; `Io`.
    pub fn write(&mut self, data: &Bytes) -> Result<(), Error> {
        self.written += data.len() as u64;
        if self.written > self.expected.0 {
            return Err(self.corrupt("there are more bytes than were announced"));
        }
        self.blocks.update(data);
        self.file
            .write_all(data)
            .map_err(|error| self.dir.failed(&self.name, self.expected.0, &self.path.0, error))
    }

    /// Checks the bytes and makes them durable under the segment's name.
    /// Returns their length and checksum.
    ///
    /// # Errors
    /// `Corrupt` where they are not what was announced; `Invalid` where the
    /// segment was discarded meanwhile; `DiskFull`; `Io`. An fsync that fails
    /// otherwise ends the process.
    pub fn finish(self) -> Result<(u64, u32), Error> {
        if self.written != self.expected.0 {
            return Err(self.corrupt(&format!("{} of {} bytes came", self.written, self.expected.0)));
        }
        let sums = self.blocks.clone().finish(self.name);
        if sums.crc32c() != self.expected.1 {
            return Err(self.corrupt("its checksum does not match"));
        }
        fault::point(Step::StageWritten);
        let failed = |path: &Path, error| self.dir.failed(&self.name, self.expected.0, path, error);
        let mut sums_file =
            File::create(&self.sums_path.0).map_err(|error| failed(&self.sums_path.0, error))?;
        sums_file.write_all(&sums.encode()).map_err(|error| failed(&self.sums_path.0, error))?;
        for (file, path) in [(&sums_file, &self.sums_path.0), (&self.file, &self.path.0)] {
            sync_file(file, path).map_err(|error| match error {
                full if full.code() == shoal_proto::ErrorCode::Exhausted => Error::DiskFull {
                    name: self.name.to_string(),
                    bytes: self.expected.0,
                    dir: self.dir.segments.display().to_string(),
                },
                other => other.into(),
            })?;
        }
        fault::point(Step::StageSynced);
        self.dir.install(&self)?;
        fault::point(Step::StageInstalled);
        Ok(self.expected)
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::Corrupt { name: self.name.to_string(), what: what.to_owned() }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.dir.writing.lock().remove(&self.number);
    }
}

/// Refuses to let a segment appear that was discarded.
fn check_wanted(writing: &HashMap<u64, Writing>, staging: &Staging) -> Result<(), Error> {
    if writing.get(&staging.number).is_some_and(|writing| writing.is_revoked) {
        return Err(Error::Invalid(format!("segment {} was discarded while it was written", staging.name)));
    }
    Ok(())
}

/// A file that is removed when this is dropped, unless it was renamed.
#[derive(Debug)]
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(file = %self.0.display(), %error, "left until the next start"),
        }
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
