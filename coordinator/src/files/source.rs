//! The bytes of one file, on disk or in an object store, for readers that
//! block. Each use opens or asks anew; nothing is cached.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use flate2::read::MultiGzDecoder;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use shoal_data::ImportRoots;
use tokio::runtime::Handle;

use super::Compression;
use crate::Error;

/// Bytes asked of an object store at once.
const REMOTE_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes read from disk at once.
const LOCAL_BYTES: usize = 256 * 1024;
/// Bytes read from disk to find the head of a Parquet page.
const PAGE_HEAD_BYTES: usize = 8 * 1024;
/// A row group of an object store up to this size is fetched as a whole.
const PREFETCH_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// One file. Its methods block: use it on blocking threads only.
#[derive(Clone, Debug)]
pub(super) struct SourceFile {
    name: String,
    bytes: u64,
    place: Place,
    /// Bytes that are here already, and where they begin.
    prefetched: Option<(u64, Bytes)>,
}

#[derive(Clone, Debug)]
enum Place {
    Disk(Arc<File>),
    Store { store: Arc<dyn ObjectStore>, path: object_store::path::Path, handle: Handle },
}

impl SourceFile {
    /// A file below the import roots.
    ///
    /// # Errors
    /// `NotFound`, and `Invalid` for what is outside, no file or empty.
    pub(super) fn local(roots: &ImportRoots, path: &Path) -> Result<Self, Error> {
        let (file, metadata) = roots.open(path)?;
        Self::checked(path.display().to_string(), metadata.len(), Place::Disk(Arc::new(file)))
    }

    /// An object that was found already.
    ///
    /// # Errors
    /// `Invalid` where it is empty.
    pub(super) fn remote(
        name: String,
        store: Arc<dyn ObjectStore>,
        path: object_store::path::Path,
        bytes: u64,
        handle: Handle,
    ) -> Result<Self, Error> {
        Self::checked(name, bytes, Place::Store { store, path, handle })
    }

    fn checked(name: String, bytes: u64, place: Place) -> Result<Self, Error> {
        if bytes == 0 {
            return Err(Error::Invalid(format!("`{name}` is empty")));
        }
        Ok(Self { name, bytes, place, prefetched: None })
    }

    /// As people know it.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its bytes from the start, decompressed.
    ///
    /// # Errors
    /// What the decompressor says of the first bytes.
    pub(super) fn stream(&self, compression: Compression) -> Result<Box<dyn Read + Send>, Error> {
        let raw = SourceReader { file: self.clone(), at: 0, step_bytes: LOCAL_BYTES, waiting: Bytes::new() };
        Ok(match compression {
            Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::with_capacity(LOCAL_BYTES, raw))),
            Compression::Zstd => {
                Box::new(zstd::stream::read::Decoder::new(raw).map_err(|error| self.unreadable(&error))?)
            }
            Compression::None | Compression::Snappy | Compression::Lz4 => Box::new(raw),
        })
    }

    /// The error for bytes that cannot be read or decompressed.
    pub(super) fn unreadable(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Invalid(format!("`{}` cannot be read: {error}", self.name))
    }

    /// The same file with the bytes from `start` to `end` at hand, if it is
    /// remote and they are not too many.
    pub(super) fn prefetched(&self, start: u64, end: u64) -> io::Result<Self> {
        let mut file = self.clone();
        let bytes = end.min(self.bytes).saturating_sub(start);
        if matches!(self.place, Place::Store { .. }) && bytes > 0 && bytes <= PREFETCH_BYTES_MAX {
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
        match &self.place {
            Place::Disk(file) => shoal_data::file_stream::read_exact(file, start..start + bytes as u64),
            Place::Store { store, path, handle } => {
                handle.block_on(store.get_range(path, start..start + bytes as u64)).map_err(io::Error::other)
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
pub(super) struct SourceReader {
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
                Place::Disk(_) => self.step_bytes as u64,
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
