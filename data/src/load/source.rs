//! The bytes of one file that is loaded, on disk, in an object store or below the
//! import roots of a coordinator, for readers that block. Each use opens or asks
//! anew; nothing is cached.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use shoal_proto::cluster::StatReply;
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::runtime::Handle;

use crate::ImportRoots;
use crate::file_stream::{self, STALL_MAX};
use crate::import_store::modified_unix_ms;

/// Bytes asked of an object store at once.
const REMOTE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes read from disk at once.
const LOCAL_BYTES: usize = 256 * 1024;
/// Bytes read from disk to find the head of a Parquet page.
const PAGE_HEAD_BYTES: usize = 8 * 1024;
/// A row group up to this size is fetched as a whole.
const PREFETCH_BYTES_MAX: u64 = 64 * 1024 * 1024;

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
    bytes: u64,
    modified_unix_ms: u64,
    /// None where its path is not UTF-8.
    origin: Option<Origin>,
    place: Place,
    /// Bytes that are here already, and where they begin.
    prefetched: Option<(u64, Bytes)>,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(Arc<File>),
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
        Self {
            name: path.display().to_string(),
            bytes: metadata.len(),
            modified_unix_ms: modified_unix_ms(&metadata),
            origin: path.to_str().map(|path| Origin { store: String::new(), path: path.to_owned() }),
            place: Place::Disk(Arc::new(file)),
            prefetched: None,
        }
        .checked()
    }

    /// An object of the store with this URL, that was found already; it is read on
    /// `handle`.
    ///
    /// # Errors
    /// `Invalid` where it is empty.
    pub fn remote(
        url: &str,
        store: Arc<dyn ObjectStore>,
        object: ObjectMeta,
        handle: Handle,
    ) -> Result<Self, Failure> {
        Self {
            name: format!("{url}{}", object.location),
            bytes: object.size,
            modified_unix_ms: u64::try_from(object.last_modified.timestamp_millis()).unwrap_or(0),
            origin: Some(Origin { store: url.to_owned(), path: object.location.to_string() }),
            place: Place::Store { store, path: object.location, handle },
            prefetched: None,
        }
        .checked()
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
        Self {
            name: path.clone(),
            bytes: stat.bytes,
            modified_unix_ms: stat.modified_unix_ms,
            origin: Some(Origin { store: String::new(), path: path.clone() }),
            place: Place::Coordinator { channels: channels.clone(), address, path, handle },
            prefetched: None,
        }
        .checked()
    }

    fn checked(self) -> Result<Self, Failure> {
        if self.bytes == 0 {
            return Err(Failure::new(ErrorCode::Invalid, format!("`{}` is empty", self.name)));
        }
        Ok(self)
    }

    /// As people know it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its length, and when it was last changed, in milliseconds since 1970.
    pub fn version(&self) -> (u64, u64) {
        (self.bytes, self.modified_unix_ms)
    }

    /// Where other nodes find it; none where they cannot.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Its bytes from the start.
    pub fn reader(&self) -> SourceReader {
        SourceReader { file: self.clone(), at: 0, step_bytes: LOCAL_BYTES, waiting: Bytes::new() }
    }

    /// The error for bytes that cannot be read or decompressed.
    pub fn unreadable(&self, error: &dyn std::fmt::Display) -> Failure {
        Failure::new(ErrorCode::Invalid, format!("`{}` cannot be read: {error}", self.name))
    }

    /// The same file with the bytes from `start` to `end` at hand, if it is
    /// elsewhere and they are not too many.
    pub(super) fn prefetched(&self, start: u64, end: u64) -> io::Result<Self> {
        let mut file = self.clone();
        let bytes = end.min(self.bytes).saturating_sub(start);
        if !matches!(self.place, Place::Disk(_)) && bytes > 0 && bytes <= PREFETCH_BYTES_MAX {
            file.prefetched = Some((start, self.read_range(start, bytes as usize)?));
        }
        Ok(file)
    }

    fn read_range(&self, start: u64, bytes: usize) -> io::Result<Bytes> {
        if let Some((first, held)) = &self.prefetched
            && let Some(offset) = start.checked_sub(*first)
            && offset.saturating_add(bytes as u64) <= held.len() as u64
        {
            let offset = offset as usize;
            return Ok(held.slice(offset..offset + bytes));
        }
        let range = start..start + bytes as u64;
        match &self.place {
            Place::Disk(file) => file_stream::read_exact(file, range),
            Place::Store { store, path, handle } => {
                handle.block_on(store.get_range(path, range)).map_err(io::Error::other)
            }
            Place::Coordinator { channels, address, path, handle } => {
                let read = file_stream::receive_all(channels, address, path, range, STALL_MAX);
                handle.block_on(read).map_err(io::Error::other)
            }
        }
    }
}

impl Length for SourceFile {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for SourceFile {
    type T = SourceReader;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(SourceReader { file: self.clone(), at: start, step_bytes: PAGE_HEAD_BYTES, waiting: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if start.saturating_add(length as u64) > self.bytes {
            return Err(ParquetError::EOF(format!(
                "bytes {start} to {} are beyond the end at {}",
                start.saturating_add(length as u64),
                self.bytes
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
    step_bytes: usize,
    waiting: Bytes,
}

impl Read for SourceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.waiting.is_empty() {
            let left = self.file.bytes.saturating_sub(self.at);
            let wanted = match self.file.place {
                Place::Disk(_) | Place::Coordinator { .. } => self.step_bytes as u64,
                Place::Store { .. } if self.file.prefetched.is_some() => self.step_bytes as u64,
                Place::Store { .. } => REMOTE_BYTES,
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
