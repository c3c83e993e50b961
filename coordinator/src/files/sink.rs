//! Where COPY TO writes: a file or an object that is there as a whole, or not
//! at all.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use datafusion::execution::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use object_store::buffered::BufWriter as Upload;
use parking_lot::Mutex;
use shoal_data::ImportRoots;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use url::Url;
use uuid::Uuid;

use crate::Error;

/// Something new to write. Dropped before [`Sink::keep`], nothing is left.
pub(super) enum Sink {
    File(NewFile),
    Object(NewObject),
}

impl Sink {
    /// Takes the bytes, in order.
    pub(super) fn writer(&self) -> Result<SinkWriter, Error> {
        Ok(match self {
            Self::File(file) => SinkWriter::File(file.file()?),
            Self::Object(object) => SinkWriter::Object(object.upload.clone(), object.runtime.clone()),
        })
    }

    /// All was written: from now on it is there, under its name.
    pub(super) fn keep(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.keep(),
            Self::Object(object) => object.keep(),
        }
    }
}

/// The bytes of a [`Sink`]. For threads that may block.
pub(super) enum SinkWriter {
    File(File),
    Object(Arc<Mutex<Upload>>, Handle),
}

impl Write for SinkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.write(bytes),
            Self::Object(upload, runtime) => {
                runtime.block_on(upload.lock().put(Bytes::copy_from_slice(bytes)))?;
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.flush(),
            // Its parts go out when they are full, the last one with `keep`.
            Self::Object(..) => Ok(()),
        }
    }
}

/// An object that the store shows once its upload is complete.
pub(super) struct NewObject {
    upload: Arc<Mutex<Upload>>,
    runtime: Handle,
    is_kept: bool,
}

impl NewObject {
    /// Must be called within a runtime, which then moves the bytes.
    pub(super) fn create(state: &SessionState, url: &Url) -> Result<Self, Error> {
        let path = object_store::path::Path::from_url_path(url.path())
            .map_err(|error| Error::Invalid(format!("`{url}` is not the name of an object: {error}")))?;
        if url.path().ends_with('/') || path.as_ref().is_empty() {
            return Err(Error::Invalid(format!("`{url}` names no object: add a file name")));
        }
        if path.as_ref().contains('*') {
            return Err(Error::Invalid(format!("`{url}` is a pattern: COPY TO writes one object")));
        }
        let bucket = ObjectStoreUrl::parse(&url[..url::Position::BeforePath])?;
        let store = state.runtime_env().object_store(&bucket)?;
        let upload = Arc::new(Mutex::new(Upload::new(store, path)));
        Ok(Self { upload, runtime: Handle::current(), is_kept: false })
    }

    fn keep(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.upload.lock().shutdown())?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for NewObject {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Dropped where blocking is not allowed when it was never written to.
        let upload = self.upload.clone();
        self.runtime.spawn_blocking({
            let runtime = self.runtime.clone();
            move || {
                if let Err(error) = runtime.block_on(upload.lock().abort()) {
                    tracing::warn!(%error, "upload not aborted: the store may keep its parts");
                }
            }
        });
    }
}

/// A file under another name until it is whole.
pub(super) struct NewFile {
    temporary: PathBuf,
    target: PathBuf,
    file: File,
    is_kept: bool,
}

impl NewFile {
    pub(super) fn create(roots: &ImportRoots, path: &Path) -> Result<Self, Error> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            return Err(Error::Invalid(format!("`{}` is not the path of a file", path.display())));
        };
        let directory = roots.resolve(directory)?;
        let target = directory.join(name);
        if target.is_dir() {
            return Err(Error::Invalid(format!("`{}` is a directory: add a file name", path.display())));
        }
        let temporary = directory.join(format!(".{name}.{}.tmp", Uuid::new_v4().simple()));
        let file = File::create_new(&temporary)
            .map_err(|error| Error::io(format!("cannot write in `{}`", directory.display()), error))?;
        Ok(Self { temporary, target, file, is_kept: false })
    }

    fn file(&self) -> Result<File, Error> {
        self.file
            .try_clone()
            .map_err(|error| Error::io(format!("cannot write `{}`", self.target.display()), error))
    }

    fn keep(&mut self) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.temporary, &self.target)?;
        self.is_kept = true;
        match self.target.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = std::fs::remove_file(&self.temporary)
        {
            tracing::warn!(path = %self.temporary.display(), %error, "temporary file not removed");
        }
    }
}
