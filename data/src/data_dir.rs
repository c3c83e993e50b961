//! A node's directory: owned by one process at a time, and written so that
//! what was written is there after a crash.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::DataError;

const LOCK_FILE: &str = "lock";
const ADDRESS_FILE: &str = "address";

/// A locked data directory; unlocked when dropped, also by a crash.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory where it is missing, and locks it.
    ///
    /// # Errors
    /// `Layout` where another process holds it; `Io` otherwise.
    pub fn lock(path: &Path) -> Result<Self, DataError> {
        make_dir(path)?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| DataError::io(format!("cannot open {}", lock_path.display()), error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataError::Layout(format!(
                "data directory {} is in use by another shoal process; stop it, or choose another --data-dir",
                path.display()
            ))),
            Err(TryLockError::Error(error)) => {
                Err(DataError::io(format!("cannot lock {}", lock_path.display()), error))
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A directory in it that exists and is empty.
    ///
    /// # Errors
    /// `Io`.
    pub fn emptied(&self, name: &str) -> Result<PathBuf, DataError> {
        let path = self.path.join(name);
        match fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DataError::io(format!("cannot empty {}", path.display()), error)),
        }
        make_dir(&path)?;
        Ok(path)
    }

    /// Writes the address at which the node answers to the file `address`, for
    /// whoever started it on port 0.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_address(&self, address: &str) -> Result<(), DataError> {
        write_durably(&self.path, ADDRESS_FILE, address.as_bytes())
    }
}

/// Makes a directory and those above it, and makes them durable.
///
/// # Errors
/// `Io`, naming the directory.
pub fn make_dir(path: &Path) -> Result<(), DataError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        make_dir(parent)?;
    }
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(DataError::io(format!("cannot make directory {}", path.display()), error)),
    }
    if let Some(parent) = parent {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Replaces the file `name` in `dir`: after a crash it is the old or the new
/// one, whole.
///
/// # Errors
/// `Io`; the old file is then still there.
pub fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), DataError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.tmp"));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        Ok(file)
    });
    let file = written.map_err(|error| {
        // What is left of it is overwritten by the next attempt.
        let _left = fs::remove_file(&temporary);
        DataError::io(format!("cannot write {}", temporary.display()), error)
    })?;
    sync_file(&file, &temporary)?;
    fs::rename(&temporary, &path)
        .map_err(|error| DataError::io(format!("cannot rename to {}", path.display()), error))?;
    sync_dir(dir)
}

/// Makes the bytes of a new file durable.
///
/// # Errors
/// Only for a full disk, which leaves the file for the caller to remove. Any
/// other failure ends the process: what the disk holds is then not known, and
/// a second fsync would lie.
pub fn sync_file(file: &File, path: &Path) -> Result<(), DataError> {
    match file.sync_all() {
        Ok(()) => Ok(()),
        Err(error) if is_full(&error) => {
            Err(DataError::io(format!("cannot write {}", path.display()), error))
        }
        Err(error) => crash(path, &error),
    }
}

/// Makes the names in a directory durable. A failure ends the process.
///
/// # Errors
/// `Io` where the directory cannot be opened.
pub fn sync_dir(path: &Path) -> Result<(), DataError> {
    let dir = File::open(path)
        .map_err(|error| DataError::io(format!("cannot open directory {}", path.display()), error))?;
    match dir.sync_all() {
        Ok(()) => Ok(()),
        Err(error) => crash(path, &error),
    }
}

/// Whether the disk, or this user's part of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Ends the process because the disk does not keep what it was given. The
/// next start recovers from what is really there.
pub fn crash(path: &Path, error: &io::Error) -> ! {
    tracing::error!(path = %path.display(), %error, "fsync failed: ending, to recover from what the disk really holds");
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let held = DataDir::lock(&path).unwrap();
        let refused = DataDir::lock(&path).unwrap_err().to_string();
        assert!(refused.contains("in use by another"), "{refused}");
        drop(held);
        DataDir::lock(&path).unwrap();
    }

    #[test]
    fn leftovers_are_gone_after_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::lock(dir.path()).unwrap();
        let spool = held.emptied("spool").unwrap();
        fs::create_dir(spool.join("deep")).unwrap();
        fs::write(spool.join("deep/file"), b"x").unwrap();
        assert_eq!(fs::read_dir(held.emptied("spool").unwrap()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        write_durably(dir.path(), "f", b"old").unwrap();
        write_durably(dir.path(), "f", b"new").unwrap();
        assert_eq!(fs::read(dir.path().join("f")).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
