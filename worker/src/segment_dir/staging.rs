//! Segments that are being written: each is there under its name once it is whole,
//! checked and durable.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use shoal_data::SegmentName;
use shoal_data::block_sums::{BlockSummer, BlockSums};
use shoal_data::data_dir::{is_full, make_dir, sync_dir, sync_file};
use shoal_proto::fault::{self, Step};

use super::{SegmentDir, Writing};
use crate::Error;

impl SegmentDir {
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
