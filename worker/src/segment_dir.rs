//! The segments on this worker's disk. A file is there under its name only
//! once it is whole and durable; until then it is in the staging directory,
//! which every start empties.
//!
//! All of it blocks: call it from blocking threads.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::FallocateFlags;
use shoal_data::block_sums::{self, BlockSummer, BlockSums};
use shoal_data::data_dir::{is_full, make_dir, sync_dir, sync_file};
use shoal_data::{DataDir, SegmentName};

use crate::Error;

/// Name of the directory that holds the segments, below the data directory.
pub const SEGMENTS: &str = "segments";
const STAGING: &str = "staging";

/// The segments of one worker.
#[derive(Debug)]
pub struct SegmentDir {
    segments: PathBuf,
    staging: PathBuf,
    /// Names and lengths of what is there.
    held: Mutex<HashMap<SegmentName, u64>>,
    staged: AtomicU64,
}

impl SegmentDir {
    /// Empties the staging directory and finds what is there.
    ///
    /// # Errors
    /// `Io` where a directory cannot be read.
    pub fn open(data_dir: &DataDir) -> Result<Self, Error> {
        let segments = data_dir.path().join(SEGMENTS);
        make_dir(&segments)?;
        let staging = data_dir.emptied(STAGING)?;
        let mut held = HashMap::new();
        for table in entries(&segments)? {
            for shard in entries(&table)? {
                for file in entries(&shard)? {
                    if file.extension().is_some_and(|extension| extension == block_sums::EXTENSION) {
                        continue;
                    }
                    let relative = file.strip_prefix(&segments).unwrap_or(&file).to_string_lossy();
                    match relative.parse::<SegmentName>() {
                        Ok(name) => {
                            let metadata = file.metadata().map_err(|error| {
                                Error::io(format!("cannot look at {}", file.display()), error)
                            })?;
                            if !BlockSums::path(&file).exists() {
                                sum_up(name, &file)?;
                            }
                            held.insert(name, metadata.len());
                        }
                        Err(_) => tracing::warn!(file = %file.display(), "not a segment, left alone"),
                    }
                }
            }
        }
        Ok(Self { segments, staging, held: Mutex::new(held), staged: AtomicU64::new(0) })
    }

    /// Where the segments are.
    pub fn path(&self) -> &Path {
        &self.segments
    }

    /// Every segment that is here, with its length, by name.
    pub fn held(&self) -> Vec<(SegmentName, u64)> {
        let mut held: Vec<_> = self.held.lock().iter().map(|(name, bytes)| (*name, *bytes)).collect();
        held.sort_unstable();
        held
    }

    /// The length of the segment, if it is here.
    pub fn bytes_of(&self, name: &SegmentName) -> Option<u64> {
        self.held.lock().get(name).copied()
    }

    /// Bytes of all segments that are here.
    pub fn used_bytes(&self) -> u64 {
        self.held.lock().values().sum()
    }

    /// Bytes that are free on the disk.
    pub fn free_bytes(&self) -> u64 {
        rustix::fs::statvfs(&self.segments).map_or(0, |disk| disk.f_bavail * disk.f_frsize)
    }

    /// Starts a segment of so many bytes; takes the room for it at once.
    ///
    /// # Errors
    /// `DiskFull` before anything is written; `Io`.
    pub fn stage(self: &Arc<Self>, name: SegmentName, bytes: u64, crc32c: u32) -> Result<Staging, Error> {
        let number = self.staged.fetch_add(1, Ordering::Relaxed);
        let path = self.staging.join(format!("{}-{number}", name.segment));
        let file = File::create(&path).map_err(|error| self.failed(&name, bytes, &path, error))?;
        let staging = Staging {
            dir: Arc::clone(self),
            name,
            file,
            sums_path: Temporary(BlockSums::path(&path)),
            path: Temporary(path),
            expected: (bytes, crc32c),
            written: (0, 0),
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
        Ok(staging)
    }

    /// Removes a segment; whether it was here.
    ///
    /// # Errors
    /// `Io` where the disk refuses.
    pub fn remove(&self, name: &SegmentName) -> Result<bool, Error> {
        self.held.lock().remove(name);
        let path = self.segments.join(name.to_string());
        let removed = match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(format!("cannot remove {}", path.display()), error)),
        };
        let sums = BlockSums::path(&path);
        match fs::remove_file(&sums) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("cannot remove {}", sums.display()), error)),
        }
        Ok(removed)
    }

    /// Puts a whole, durable file and its checksums under their names,
    /// durably: the checksums first, as a segment is nothing without them.
    fn install(&self, name: SegmentName, bytes: u64, from: &Path, sums: &Path) -> Result<(), Error> {
        let path = self.segments.join(name.to_string());
        if let Some(shard) = path.parent() {
            make_dir(shard)?;
            let sums_path = BlockSums::path(&path);
            fs::rename(sums, &sums_path).map_err(|error| self.failed(&name, bytes, &sums_path, error))?;
            fs::rename(from, &path).map_err(|error| self.failed(&name, bytes, &path, error))?;
            sync_dir(shard)?;
        }
        self.held.lock().insert(name, bytes);
        Ok(())
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
    name: SegmentName,
    file: File,
    path: Temporary,
    sums_path: Temporary,
    /// Of what was written so far.
    blocks: BlockSummer,
    /// Bytes and checksum that were announced.
    expected: (u64, u32),
    /// Bytes and checksum so far.
    written: (u64, u32),
}

impl Staging {
    /// Adds bytes.
    ///
    /// # Errors
    /// `Corrupt` for more than were announced; `DiskFull`; `Io`.
    pub fn write(&mut self, data: &Bytes) -> Result<(), Error> {
        self.written.0 += data.len() as u64;
        self.written.1 = crc32c::crc32c_append(self.written.1, data);
        if self.written.0 > self.expected.0 {
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
    /// `Corrupt` where they are not what was announced; `DiskFull`; `Io`. An
    /// fsync that fails otherwise ends the process.
    pub fn finish(self) -> Result<(u64, u32), Error> {
        if self.written.0 != self.expected.0 {
            return Err(self.corrupt(&format!("{} of {} bytes came", self.written.0, self.expected.0)));
        }
        if self.written.1 != self.expected.1 {
            return Err(self.corrupt("its checksum does not match"));
        }
        let failed = |path: &Path, error| self.dir.failed(&self.name, self.expected.0, path, error);
        let sums = self.blocks.clone().finish(self.name).encode();
        let mut sums_file =
            File::create(&self.sums_path.0).map_err(|error| failed(&self.sums_path.0, error))?;
        sums_file.write_all(&sums).map_err(|error| failed(&self.sums_path.0, error))?;
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
        self.dir.install(self.name, self.expected.0, &self.path.0, &self.sums_path.0)?;
        Ok(self.written)
    }

    fn corrupt(&self, what: &str) -> Error {
        Error::Corrupt { name: self.name.to_string(), what: what.to_owned() }
    }
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

/// Makes the checksums of a segment that an earlier version wrote without.
fn sum_up(name: SegmentName, path: &Path) -> Result<(), Error> {
    tracing::warn!(segment = %name, "has no checksums of its blocks: they are made from what is there");
    let failed = |error| Error::io(format!("cannot make checksums of {}", path.display()), error);
    let mut file = File::open(path).map_err(failed)?;
    let mut blocks = BlockSummer::default();
    let mut piece = vec![0; block_sums::BLOCK_BYTES as usize];
    loop {
        let length = file.read(&mut piece).map_err(failed)?;
        if length == 0 {
            break;
        }
        blocks.update(&piece[..length]);
    }
    let sums_path = BlockSums::path(path);
    let mut sums = File::create(&sums_path).map_err(failed)?;
    sums.write_all(&blocks.finish(name).encode()).map_err(failed)?;
    sync_file(&sums, &sums_path)?;
    Ok(())
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
