//! The bytes of one file that is loaded, on disk, in an object store or below the
//! import roots of a coordinator, for readers that block. Nothing is kept but a row
//! group for as long as it is read.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::{GetOptions, ObjectMeta, ObjectStore};
use parking_lot::Mutex;
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use shoal_proto::cluster::StatReply;
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Version;
use crate::ImportRoots;
use crate::file_stream::{self, STALL_MAX};
use crate::import_store::modified_unix_ms;

/// Bytes that a [`SourceReader`] asks of an object store at once.
const REMOTE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes that it reads at once of a file on a disk or at a coordinator.
const LOCAL_BYTES: usize = 256 * 1024;
/// The same to find the head of a Parquet page, also in what is at hand.
const PAGE_HEAD_BYTES: usize = 8 * 1024;
/// A row group up to this size is fetched as a whole.
const PREFETCH_BYTES_MAX: u64 = 64 * MIB;
/// MiB of such row groups that one process has at once.
const PREFETCHED_MIB_MAX: usize = 512;
static PREFETCHED: Semaphore = Semaphore::const_new(PREFETCHED_MIB_MAX);
const MIB: u64 = 1024 * 1024;

/// Where any node finds a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// URL of the object store; empty: below the import roots of the coordinator.
    pub store: String,
    /// Its path there.
    pub path: String,
}

/// One file. Its methods block: use it on blocking threads only.
#[derive(Clone, Debug)]
pub struct SourceFile {
    name: String,
    version: Version,
    /// None where its path is not UTF-8.
    origin: Option<Origin>,
    place: Place,
    /// What a store or a coordinator said last that could not be read: who decodes
    /// the bytes makes a text of it.
    failed: Arc<Mutex<Option<Failure>>>,
    prefetched: Option<Prefetched>,
}

/// Bytes that are here already.
#[derive(Clone, Debug)]
struct Prefetched {
    /// Where they begin.
    start: u64,
    bytes: Bytes,
    /// For as long as they are here.
    _room: Arc<SemaphorePermit<'static>>,
}

#[derive(Clone, Debug)]
enum Place {
    Disk { file: Arc<File>, path: PathBuf },
    Store { store: Arc<dyn ObjectStore>, path: object_store::path::Path, handle: Handle },
    Coordinator { channels: Channels, address: String, path: String, handle: Handle },
}

impl SourceFile {
    /// A file below the import roots of this node.
    ///
    /// # Errors
    /// `NotFound`, and `Invalid` for what is outside, no file or empty.
    pub fn local(roots: &ImportRoots, path: &Path) -> Result<Self, Failure> {
        let (file, metadata) = roots.open(path)?;
        let origin = path.to_str().map(|path| Origin { store: String::new(), path: path.to_owned() });
        let place = Place::Disk { file: Arc::new(file), path: path.to_owned() };
        Self::new(path.display().to_string(), on_disk(&metadata), origin, place)
    }

    /// An object of the store with this URL, that was found already; it is read on
    /// `handle`, in the version that was found.
    ///
    /// # Errors
    /// `Invalid` where it is empty.
    pub fn remote(
        url: &str,
        store: Arc<dyn ObjectStore>,
        object: ObjectMeta,
        handle: Handle,
    ) -> Result<Self, Failure> {
        let (name, version) = (format!("{url}{}", object.location), Version::of_meta(&object));
        let origin = Origin { store: url.to_owned(), path: object.location.to_string() };
        Self::new(name, version, Some(origin), Place::Store { store, path: object.location, handle })
    }

    /// A file below the import roots of the coordinator at `address`, which said
    /// this of it; it is read on `handle`.
    ///
    /// # Errors
    /// `Invalid` where it is empty.
    pub fn at_coordinator(
        channels: &Channels,
        address: &str,
        path: &str,
        stat: &StatReply,
        handle: Handle,
    ) -> Result<Self, Failure> {
        let (address, path) = (address.to_owned(), path.to_owned());
        let version = Version::of_file(stat.bytes, stat.modified_unix_ms);
        let origin = Origin { store: String::new(), path: path.clone() };
        let place = Place::Coordinator { channels: channels.clone(), address, path: path.clone(), handle };
        Self::new(path, version, Some(origin), place)
    }

    fn new(name: String, version: Version, origin: Option<Origin>, place: Place) -> Result<Self, Failure> {
        if version.bytes == 0 {
            return Err(Failure::new(ErrorCode::Invalid, format!("`{name}` is empty")));
        }
        Ok(Self { name, version, origin, place, failed: Arc::default(), prefetched: None })
    }

    /// As people know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As it was found.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Looks again at what was read, now that it was: whether it is as it was found.
    /// An object store has said so with each of its answers.
    ///
    /// # Errors
    /// [`Self::changed`], and `Unavailable` where the coordinator does not say.
    pub fn check_unchanged(&self) -> Result<(), Failure> {
        let is_same = match &self.place {
            // Neither was it written to, nor is another one in its place.
            Place::Disk { file, path } => [file.metadata(), std::fs::metadata(path)]
                .iter()
                .all(|now| now.as_ref().is_ok_and(|now| on_disk(now).is_same(&self.version))),
            Place::Store { .. } => true,
            Place::Coordinator { channels, address, path, handle } => {
                match handle.block_on(file_stream::stat(channels, address, path)) {
                    Ok(now) => Version::of_file(now.bytes, now.modified_unix_ms).is_same(&self.version),
                    Err(failure) if failure.code == ErrorCode::NotFound => false,
                    Err(failure) => return Err(failure),
                }
            }
        };
        if is_same { Ok(()) } else { Err(self.changed()) }
    }

    /// The error where it is not as it was found any more.
    pub fn changed(&self) -> Failure {
        let message = format!(
            "`{}` was changed while it was read; nothing was loaded; try again once nobody writes to it",
            self.name
        );
        Failure::new(ErrorCode::Invalid, message)
    }

    /// Where other nodes find it; none where they cannot.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Its bytes from the start.
    pub fn reader(&self) -> SourceReader {
        self.reader_from(0, u64::MAX)
    }

    /// Its bytes from `at` on, for who wants those before `until` and few more.
    pub(super) fn reader_from(&self, at: u64, until: u64) -> SourceReader {
        SourceReader { file: self.clone(), at, until, step_bytes: LOCAL_BYTES, waiting: Bytes::new() }
    }

    /// The error for bytes that cannot be read or decompressed.
    pub fn unreadable(&self, error: &dyn std::fmt::Display) -> Failure {
        self.failure_or(format!("`{}` cannot be read: {error}", self.name))
    }

    /// Why its bytes did not come; where they did, `Invalid` with this message.
    pub(super) fn failure_or(&self, message: String) -> Failure {
        self.failed.lock().clone().unwrap_or_else(|| Failure::new(ErrorCode::Invalid, message))
    }

    /// The same file with the bytes from `start` to `end` at hand, if it is
    /// elsewhere and they are not too many. Waits until there is room for them.
    pub(super) fn prefetched(&self, start: u64, end: u64) -> io::Result<Self> {
        let mut file = self.clone();
        let bytes = end.min(self.version.bytes).saturating_sub(start);
        if bytes == 0 || bytes > PREFETCH_BYTES_MAX {
            return Ok(file);
        }
        let handle = match &self.place {
            Place::Disk { .. } => return Ok(file),
            Place::Store { handle, .. } | Place::Coordinator { handle, .. } => handle,
        };
        let room = handle.block_on(PREFETCHED.acquire_many(bytes.div_ceil(MIB) as u32));
        let room = Arc::new(room.map_err(io::Error::other)?);
        let bytes = self.read_range(start, bytes as usize)?;
        file.prefetched = Some(Prefetched { start, bytes, _room: room });
        Ok(file)
    }

    fn read_range(&self, start: u64, bytes: usize) -> io::Result<Bytes> {
        if let Some(held) = &self.prefetched
            && let Some(offset) = start.checked_sub(held.start)
            && offset.saturating_add(bytes as u64) <= held.bytes.len() as u64
        {
            let offset = offset as usize;
            return Ok(held.bytes.slice(offset..offset + bytes));
        }
        let range = start..start + bytes as u64;
        let read = match &self.place {
            Place::Disk { file, .. } => return file_stream::read_exact(file, range),
            Place::Store { store, path, handle } => {
                handle.block_on(self.read_object(store.as_ref(), path, range))
            }
            Place::Coordinator { channels, address, path, handle } => {
                handle.block_on(file_stream::receive_all(channels, address, path, range, STALL_MAX))
            }
        };
        read.map_err(|failure| {
            *self.failed.lock() = Some(failure.clone());
            io::Error::other(failure)
        })
    }

    /// Bytes of the version that was found, and of no other one.
    async fn read_object(
        &self,
        store: &dyn ObjectStore,
        path: &object_store::path::Path,
        range: Range<u64>,
    ) -> Result<Bytes, Failure> {
        let options = GetOptions::new().with_range(Some(range)).with_if_match(self.version.condition());
        let answer = match store.get_opts(path, options).await {
            Ok(answer) if Version::of_meta(&answer.meta).is_same(&self.version) => answer,
            Ok(_) | Err(object_store::Error::Precondition { .. }) => return Err(self.changed()),
            Err(error) => return Err(store_failure(&self.name, &error)),
        };
        answer.bytes().await.map_err(|error| store_failure(&self.name, &error))
    }
}

/// What an object store says of an object that it does not give: what may pass is
/// `Unavailable`.
pub fn store_failure(name: &str, error: &object_store::Error) -> Failure {
    let code = match error {
        object_store::Error::NotFound { .. } => ErrorCode::NotFound,
        // No connection, no answer in time, and what has no error of its own.
        object_store::Error::Generic { .. } => ErrorCode::Unavailable,
        _ => ErrorCode::Invalid,
    };
    Failure::new(code, format!("`{name}` cannot be read: {error}"))
}

fn on_disk(metadata: &Metadata) -> Version {
    Version::of_file(metadata.len(), modified_unix_ms(metadata))
}

impl Length for SourceFile {
    fn len(&self) -> u64 {
        self.version.bytes
    }
}

impl ChunkReader for SourceFile {
    type T = SourceReader;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let file = self.clone();
        let (step_bytes, waiting) = (PAGE_HEAD_BYTES, Bytes::new());
        Ok(SourceReader { file, at: start, until: u64::MAX, step_bytes, waiting })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.saturating_add(length as u64) > self.version.bytes {
            return Err(ParquetError::EOF(format!(
                "bytes {start} to {} are beyond the end at {}",
                start.saturating_add(length as u64),
                self.version.bytes
            )));
        }
        Ok(self.read_range(start, length)?)
    }
}

/// A file read from some byte to its end.
#[derive(Debug)]
pub struct SourceReader {
    file: SourceFile,
    at: u64,
    /// What comes behind this is not much.
    until: u64,
    step_bytes: usize,
    waiting: Bytes,
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.waiting.is_empty() {
            let left = self.file.version.bytes.saturating_sub(self.at);
            let wanted = match self.file.place {
                Place::Disk { .. } | Place::Coordinator { .. } => self.step_bytes as u64,
                Place::Store { .. } if self.file.prefetched.is_some() => self.step_bytes as u64,
                Place::Store { .. } => REMOTE_BYTES,
            };
            let wanted = match self.until.saturating_sub(self.at) {
                0 => wanted.min(LOCAL_BYTES as u64),
                before => wanted.min(before),
            };
            let bytes = left.min(wanted) as usize;
            if bytes == 0 {
                return Ok(0);
            }
            self.waiting = self.file.read_range(self.at, bytes)?;
            self.at += bytes as u64;
        }
        let bytes = self.waiting.len().min(buffer.len());
        self.waiting.copy_to_slice(&mut buffer[..bytes]);
        Ok(bytes)
    }
}
