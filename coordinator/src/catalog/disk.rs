//! The file under the catalog's store, so that a full disk is met before
//! anything is half written, and a disk that loses bytes ends the process.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};
use rustix::fs::FallocateFlags;
use shoal_data::data_dir::{crash, is_full};

/// What must stay free for a command that adds something to the catalog.
const FREE_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// The most by which the file grows at once.
const GROWTH_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The catalog's file.
#[derive(Debug)]
pub(super) struct Disk {
    path: PathBuf,
    file: File,
    backend: FileBackend,
}

impl Disk {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self, DatabaseError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let backend = FileBackend::new(file.try_clone()?)?;
        Ok(Self { path: path.to_owned(), file, backend })
    }
}

/// Whether the disk has room for a command that adds something: also where the
/// file has to grow for it, which it does by doubling.
pub(super) fn has_room(path: &Path) -> bool {
    #[cfg(test)]
    if is_full_for_test(path) {
        return false;
    }
    has_room_for(path, 0)
}

/// Whether so many bytes more would fit.
pub(super) fn has_room_for(path: &Path, bytes: u64) -> bool {
    let length = path.metadata().map_or(0, |file| file.len());
    let needed = FREE_BYTES_MIN + length.min(GROWTH_BYTES_MAX) + bytes;
    rustix::fs::statvfs(path).map_or(true, |disk| disk.f_bavail * disk.f_frsize >= needed)
}

/// A test makes a disk full by putting this file beside the catalog.
#[cfg(test)]
pub(super) fn is_full_for_test(path: &Path) -> bool {
    path.with_extension("full").exists()
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.backend.read(offset, out)
    }

    /// Takes the space at once: a full disk shows here, before a commit, and
    /// not in the middle of one.
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        #[cfg(test)]
        if is_full_for_test(&self.path) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let now = self.backend.len()?;
        if len > now {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), now, len - now) {
                Ok(()) => return Ok(()),
                // Not every file system can.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        match self.backend.sync_data() {
            Err(error) if !is_full(&error) => crash(&self.path, &error),
            done => done,
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> Result<(), io::Error> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
