//! The files below the coordinator's import roots as an object store: read
//! from disk by the coordinator, and through the coordinator by workers.
//!
//! Nothing outside the roots is ever opened: neither by `..` nor by a symlink.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Component, Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use shoal_proto::{Channels, ErrorCode, Failure};

use crate::file_stream::{self, CHUNK_BYTES};

/// The scheme and host under which sessions register the store: the file
/// `/data/x.csv` of the coordinator is `import://files/data/x.csv`.
pub const IMPORT_STORE_URL: &str = "import://files";

/// Directories of the coordinator whose files may be read.
#[derive(Clone, Debug, Default)]
pub struct ImportRoots(Arc<[PathBuf]>);

impl ImportRoots {
    /// The roots as configured; a root that is itself a symlink counts as what
    /// it points to.
    pub fn new(roots: &[PathBuf]) -> Self {
        Self(roots.iter().map(|root| root.canonicalize().unwrap_or_else(|_| root.clone())).collect())
    }

    /// The canonical directories.
    pub fn directories(&self) -> &[PathBuf] {
        &self.0
    }

    /// The canonical path of an existing file or directory below a root.
    ///
    /// # Errors
    /// `Invalid` for a path outside the roots, with `..`, or through a symlink
    /// that leads out; `NotFound` where there is nothing. What lies outside is
    /// not told apart from what does not exist.
    pub fn resolve(&self, path: &FilePath) -> Result<PathBuf, Failure> {
        let shown = path.display();
        if self.0.is_empty() {
            return Err(Failure::new(
                ErrorCode::Invalid,
                format!(
                    "`{shown}` cannot be read: no import roots are configured; start the coordinator with --import-root DIR"
                ),
            ));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(Failure::new(
                ErrorCode::Invalid,
                format!("`{shown}` contains `..`; write the path without it"),
            ));
        }
        if !path.is_absolute() {
            return Err(Failure::new(
                ErrorCode::Invalid,
                format!("`{shown}` is relative; write the path from `/`"),
            ));
        }
        let canonical = match path.canonicalize() {
            Ok(canonical) => canonical,
            Err(error) if self.contains(path) => {
                let code = if error.kind() == io::ErrorKind::NotFound {
                    ErrorCode::NotFound
                } else {
                    ErrorCode::Invalid
                };
                return Err(Failure::new(code, format!("`{shown}` cannot be opened: {error}")));
            }
            Err(_) => return Err(self.outside(path)),
        };
        if self.contains(&canonical) { Ok(canonical) } else { Err(self.outside(path)) }
    }

    /// Opens a regular file below a root.
    ///
    /// # Errors
    /// As [`Self::resolve`], and `Invalid` for what is no regular file.
    pub fn open(&self, path: &FilePath) -> Result<(File, std::fs::Metadata), Failure> {
        let canonical = self.resolve(path)?;
        // Looked at first: opening a pipe waits for its other end.
        let opened = std::fs::metadata(&canonical).and_then(|metadata| {
            let file = if metadata.is_file() { Some(File::open(&canonical)?) } else { None };
            Ok((file, metadata))
        });
        let (file, metadata) = opened.map_err(|error| {
            let code = if error.kind() == io::ErrorKind::NotFound {
                ErrorCode::NotFound
            } else {
                ErrorCode::Invalid
            };
            Failure::new(code, format!("`{}` cannot be opened: {error}", path.display()))
        })?;
        let Some(file) = file else {
            return Err(Failure::new(ErrorCode::Invalid, format!("`{}` is not a file", path.display())));
        };
        Ok((file, metadata))
    }

    fn contains(&self, path: &FilePath) -> bool {
        self.0.iter().any(|root| path.starts_with(root))
    }

    fn outside(&self, path: &FilePath) -> Failure {
        let roots: Vec<_> = self.0.iter().map(|root| root.display().to_string()).collect();
        Failure::new(
            ErrorCode::Invalid,
            format!(
                "`{}` is outside the import roots ({}); move the file there, or add its directory with --import-root",
                path.display(),
                roots.join(", ")
            ),
        )
    }
}

/// Milliseconds since 1970 at which a file was last changed.
pub fn modified_unix_ms(metadata: &std::fs::Metadata) -> u64 {
    let since = metadata.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The object path of an absolute file path.
///
/// # Errors
/// `Invalid` for a path that is not UTF-8 or has parts that URLs cannot hold.
pub fn object_path(path: &FilePath) -> Result<Path, Failure> {
    let text = path.to_str().ok_or_else(|| {
        Failure::new(ErrorCode::Invalid, format!("`{}` is not UTF-8; rename the file", path.display()))
    })?;
    Ok(Path::from(text))
}

/// The absolute file path of an object path.
///
/// # Errors
/// `Invalid` for a path that does not decode to UTF-8.
pub fn file_path(location: &Path) -> Result<PathBuf, Failure> {
    let text = percent_encoding::percent_decode_str(location.as_ref()).decode_utf8().map_err(|error| {
        Failure::new(ErrorCode::Invalid, format!("`{location}` is not a path of a file: {error}"))
    })?;
    Ok(FilePath::new("/").join(text.as_ref()))
}

/// Import files as an object store; reads only.
#[derive(Clone, Debug)]
pub struct ImportStore(Source);

#[derive(Clone, Debug)]
enum Source {
    Disk(ImportRoots),
    Coordinators { addresses: Vec<String>, channels: Channels },
}

/// What is known of a file before it is read.
struct Stat {
    bytes: u64,
    modified_unix_ms: u64,
    /// The coordinator that answered, or the file itself.
    at: At,
}

#[derive(Clone)]
enum At {
    Disk(Arc<File>),
    Coordinator(Channels, String),
}

impl ImportStore {
    /// Reads from this node's disk; for the coordinator.
    pub fn on_disk(roots: ImportRoots) -> Self {
        Self(Source::Disk(roots))
    }

    /// Reads through the first of these coordinators that answers; for workers.
    pub fn through(addresses: Vec<String>, channels: Channels) -> Self {
        Self(Source::Coordinators { addresses, channels })
    }

    async fn stat(&self, path: &FilePath) -> Result<Stat, Failure> {
        match &self.0 {
            Source::Disk(roots) => {
                let (roots, path) = (roots.clone(), path.to_owned());
                let (file, metadata) = blocking(move || roots.open(&path)).await?;
                let modified_unix_ms = modified_unix_ms(&metadata);
                Ok(Stat { bytes: metadata.len(), modified_unix_ms, at: At::Disk(Arc::new(file)) })
            }
            Source::Coordinators { addresses, channels } => {
                let mut last = Failure::new(ErrorCode::Unavailable, "no coordinator is known");
                let name = path.display().to_string();
                for address in addresses {
                    match file_stream::stat(channels, address, &name).await {
                        Ok(reply) => {
                            return Ok(Stat {
                                bytes: reply.bytes,
                                modified_unix_ms: reply.modified_unix_ms,
                                at: At::Coordinator(channels.clone(), address.clone()),
                            });
                        }
                        Err(failure) if failure.code.is_retryable() => last = failure,
                        Err(failure) => return Err(failure),
                    }
                }
                Err(last)
            }
        }
    }
}

/// The bytes `range` of a file that was found.
async fn read(
    at: At,
    path: PathBuf,
    range: Range<u64>,
) -> Result<BoxStream<'static, Result<Bytes, Failure>>, Failure> {
    match at {
        At::Coordinator(channels, address) => {
            let name = path.display().to_string();
            file_stream::receive(&channels, &address, &name, range, file_stream::STALL_MAX).await
        }
        At::Disk(file) => Ok(stream::try_unfold(range.start, move |at| {
            let (file, path) = (Arc::clone(&file), path.clone());
            let end = range.end.min(at + CHUNK_BYTES);
            async move {
                if at >= end {
                    return Ok(None);
                }
                let read = move || {
                    file_stream::read_exact(&file, at..end).map_err(|error| {
                        Failure::new(ErrorCode::Invalid, format!("cannot read `{}`: {error}", path.display()))
                    })
                };
                Ok(Some((blocking(read).await?, end)))
            }
        })
        .boxed()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|join| Err(Failure::new(ErrorCode::Internal, format!("blocking read: {join}"))))
}

#[async_trait]
impl ObjectStore for ImportStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let path = file_path(location).map_err(store_error)?;
        let stat = self.stat(&path).await.map_err(store_error)?;
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(stat.modified_unix_ms);
        let meta = ObjectMeta {
            location: location.clone(),
            last_modified: modified.into(),
            size: stat.bytes,
            e_tag: None,
            version: None,
        };
        let range = match &options.range {
            Some(range) => range
                .as_range(stat.bytes)
                .map_err(|source| object_store::Error::Generic { store: STORE, source: Box::new(source) })?,
            None => 0..stat.bytes,
        };
        let payload = if options.head {
            stream::empty().boxed()
        } else {
            let read = read(stat.at, path, range.clone()).await.map_err(store_error)?;
            read.map_err(store_error).boxed()
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range: if options.head { 0..0 } else { range },
            attributes: object_store::Attributes::default(),
        })
    }

    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
        Err(read_only("put"))
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(read_only("put_multipart"))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        locations.map(|_| Err(read_only("delete"))).boxed()
    }

    /// Patterns are resolved by the coordinator before a plan is made.
    fn list(&self, _: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        stream::once(async { Err(read_only("list")) }).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> object_store::Result<ListResult> {
        Err(read_only("list"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> object_store::Result<()> {
        Err(read_only("copy"))
    }
}

const STORE: &str = "import";

/// The failure travels as the source, so that its code survives.
fn store_error(failure: Failure) -> object_store::Error {
    object_store::Error::Generic { store: STORE, source: Box::new(failure) }
}

fn read_only(operation: &str) -> object_store::Error {
    object_store::Error::NotSupported {
        source: format!("{operation}: import files are read here, never changed or listed").into(),
    }
}

impl fmt::Display for ImportStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(IMPORT_STORE_URL)
    }
}

#[cfg(test)]
mod tests;
