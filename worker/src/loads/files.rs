//! Where a worker reads the files that it loads: below import roots of its own,
//! through the coordinator, or from an object store. One that is not as the
//! coordinator has seen it is none of the load.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::{GetOptions, ObjectStore};
use parking_lot::Mutex;
use shoal_data::load::{SourceFile, Version, store_failure};
use shoal_data::{ImportRoots, file_stream};
use shoal_proto::cluster::LoadFile;
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::runtime::Handle;
use url::Url;

use crate::segments::blocking;

/// How long a look below the import roots of this worker may take.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Finds files. Cheap to clone.
#[derive(Clone)]
pub struct Files {
    roots: ImportRoots,
    mounts: Mounts,
    runtime: Arc<RuntimeEnv>,
    channels: Channels,
}

impl Files {
    /// Files below `roots`, in the object stores of `runtime`, and on coordinators.
    pub fn new(roots: ImportRoots, runtime: Arc<RuntimeEnv>, channels: Channels) -> Self {
        Self { roots, mounts: Mounts::new(LOOK_MAX), runtime, channels }
    }

    /// A file of a load, whose import files are on the coordinator at `files_at`.
    ///
    /// # Errors
    /// `Invalid` where it was changed since the coordinator has looked at it;
    /// `NotFound`; `Unavailable`, also where an object store does not answer.
    pub(super) async fn find(&self, file: &LoadFile, files_at: &str) -> Result<SourceFile, Failure> {
        let found = match file.store.is_empty() {
            true => match self.own(file).await? {
                Some(own) => own,
                None => self.through_coordinator(file, files_at).await?,
            },
            false => self.object(file).await?,
        };
        if found.version().is_same(&seen(file)) { Ok(found) } else { Err(found.changed()) }
    }

    /// The same file below a root of this worker, where there is one that answers.
    async fn own(&self, file: &LoadFile) -> Result<Option<SourceFile>, Failure> {
        if self.roots.directories().is_empty() {
            return Ok(None);
        }
        let (roots, path) = (self.roots.clone(), file.path.clone());
        let opened = self.mounts.look(move || SourceFile::local(&roots, Path::new(&path)).ok()).await?;
        Ok(opened.flatten().filter(|own| own.version().is_same(&seen(file))))
    }

    async fn through_coordinator(&self, file: &LoadFile, files_at: &str) -> Result<SourceFile, Failure> {
        let stat = file_stream::stat(&self.channels, files_at, &file.path).await?;
        SourceFile::at_coordinator(&self.channels, files_at, &file.path, &stat, Handle::current())
    }

    async fn object(&self, file: &LoadFile) -> Result<SourceFile, Failure> {
        let invalid = |error: &dyn std::fmt::Display| {
            Failure::new(ErrorCode::Invalid, format!("`{}{}`: {error}", file.store, file.path))
        };
        let url = Url::parse(&file.store).map_err(|error| invalid(&error))?;
        // The registry knows the disk as one.
        if url.scheme() == "file" {
            return Err(invalid(&"a disk is no object store"));
        }
        let path = object_store::path::Path::parse(&file.path).map_err(|error| invalid(&error))?;
        let store = self.runtime.object_store_registry.get_store(&url).map_err(|error| invalid(&error))?;
        let head = GetOptions::new().with_head(true);
        let answer = store.get_opts(&path, head).await;
        let name = format!("{}{path}", file.store);
        let object = answer.map_err(|error| store_failure(&name, &error))?.meta;
        SourceFile::remote(&file.store, store, object, Handle::current())
    }
}

/// The import roots of a worker may be mounts, and those may not answer.
#[derive(Clone)]
struct Mounts {
    patience: Duration,
    /// A look that was given up and is not back yet.
    stuck: Arc<Mutex<Weak<()>>>,
}

impl Mounts {
    fn new(patience: Duration) -> Self {
        Self { patience, stuck: Arc::default() }
    }

    /// What a look finds. None where it takes too long, or an earlier one that took too
    /// long is not back yet: each of them keeps a thread.
    async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, Failure> {
        if self.stuck.lock().strong_count() > 0 {
            return Ok(None);
        }
        let under_way = Arc::new(());
        let stuck = Arc::downgrade(&under_way);
        let looking = blocking(move || {
            let _under_way = under_way;
            Ok(look())
        });
        match tokio::time::timeout(self.patience, looking).await {
            Ok(found) => Ok(Some(found?)),
            Err(_elapsed) => {
                tracing::warn!("an import root of this worker does not answer: files are read elsewhere");
                *self.stuck.lock() = stuck;
                Ok(None)
            }
        }
    }
}

/// As the coordinator has seen it.
fn seen(file: &LoadFile) -> Version {
    let LoadFile { bytes, modified_unix_ms, e_tag, .. } = file;
    match file.store.is_empty() {
        true => Version::of_file(*bytes, *modified_unix_ms),
        false => {
            let e_tag = Some(e_tag.clone()).filter(|e_tag| !e_tag.is_empty());
            Version::of_object(*bytes, *modified_unix_ms, e_tag)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(roots: &[std::path::PathBuf]) -> Files {
        let channels = Channels::new(Handle::current());
        Files::new(ImportRoots::new(roots), Arc::new(RuntimeEnv::default()), channels)
    }

    #[tokio::test]
    async fn a_file_that_is_here_is_read_here_as_long_as_it_is_the_same() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().canonicalize().unwrap().join("a.parquet");
        std::fs::write(&path, "rows").unwrap();
        let roots = [root.path().to_owned()];
        let seen = SourceFile::local(&ImportRoots::new(&roots), &path).unwrap();
        let Version { bytes, modified_unix_ms, .. } = seen.version().clone();
        let text = path.to_str().unwrap().to_owned();
        let file = LoadFile { path: text, bytes, modified_unix_ms, ..LoadFile::default() };
        // Nobody is at that address: it was not asked.
        let nobody = "http://127.0.0.1:1";
        let found = files(&roots).find(&file, nobody).await.unwrap();
        assert_eq!((found.version(), found.origin()), (seen.version(), seen.origin()));

        for (files, file) in [
            (files(&[]), file.clone()),
            (files(&roots), LoadFile { bytes: bytes + 1, ..file.clone() }),
            (files(&roots), LoadFile { modified_unix_ms: modified_unix_ms + 1, ..file.clone() }),
        ] {
            let failure = files.find(&file, nobody).await.unwrap_err();
            assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
        }
    }

    #[tokio::test]
    async fn a_mount_that_does_not_answer_is_left_alone_until_it_does() {
        let mounts = Mounts::new(Duration::from_millis(10));
        let (answer, answered) = std::sync::mpsc::channel::<()>();
        assert_eq!(mounts.look(move || answered.recv().is_ok()).await.unwrap(), None);
        assert_eq!(mounts.look(|| "not asked").await.unwrap(), None);
        answer.send(()).unwrap();
        while mounts.look(|| "asked").await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_object_store_that_the_worker_does_not_know_is_named() {
        for (store, named) in [("s3://lake/", "`s3://lake/a.parquet`"), ("file:///", "`file:///a.parquet`")] {
            let (store, path) = (store.to_owned(), "a.parquet".to_owned());
            let file = LoadFile { store, path, ..LoadFile::default() };
            let failure = files(&[]).find(&file, "http://127.0.0.1:1").await.unwrap_err();
            assert!(failure.message.contains(named), "{failure}");
        }
    }
}
