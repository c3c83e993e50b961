//! Segments by name, wherever their bytes are: this node's own file first,
//! else a peer that holds a replica, and the next peer where one fails.
//!
//! Nothing here writes, and nothing here decides where segments live.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;
use shoal_proto::exchange::ReadLog;
use shoal_proto::{Channels, ErrorCode, Failure, WorkerId};

use crate::{SegmentName, file_stream};

mod kept_reads;
mod local;

use self::kept_reads::KeptReads;
pub use local::{LocalSegments, ReportDamage, is_damage};

/// The scheme and host under which sessions register the store: segments are
/// `shard://segments/<table>/<shard>/<segment>.parquet`.
pub const SHARD_STORE_URL: &str = "shard://segments";

/// How long an answer of [`Locate`] is used again.
const LOCATED_FOR: Duration = Duration::from_secs(2);
/// How long a peer may send nothing while there is another one to ask. It may
/// be frozen, or cut off: a query must not wait until that is certain.
const PEER_PATIENCE: Duration = Duration::from_secs(1);
/// How long this node's own disk may take before a peer is asked.
const DISK_PATIENCE: Duration = Duration::from_secs(2);
/// How long a peer that failed comes last.
const AVOIDED_FOR: Duration = Duration::from_secs(5);
/// Answers of [`Locate`] that are kept.
const LOCATED_MAX: usize = 10_000;
/// Ranges of one remote segment this near to each other are read as one.
const COALESCE_BYTES: u64 = 256 * 1024;
/// A remote read above this is cut, so that no single buffer grows large.
const WHOLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Knows where a segment can be read right now.
#[async_trait]
pub trait Locate: fmt::Debug + Send + Sync {
    /// The live workers that hold the segment, best first.
    ///
    /// # Errors
    /// `NotFound` where the catalog has no such segment, `Unavailable` where
    /// the coordinator cannot be asked.
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure>;
}

/// Where a segment can be read, and what its bytes must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// Live workers that hold it, best first.
    pub replicas: Vec<Replica>,
    /// Length of the segment.
    pub bytes: u64,
    /// CRC-32C of the whole segment.
    pub crc32c: u32,
}

/// One worker that holds a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// The worker.
    pub worker: WorkerId,
    /// The URL at which it is reached.
    pub address: String,
    /// Where it stands; may be empty.
    pub zone: String,
}

/// What was located, and when.
type Known = HashMap<SegmentName, (Instant, Arc<Located>)>;

/// Segments as an object store. Cheap to clone; reads only.
#[derive(Clone)]
pub struct ShardStore {
    local: Option<Arc<LocalSegments>>,
    locate: Arc<dyn Locate>,
    channels: Channels,
    located: Arc<Mutex<Known>>,
    avoided: Arc<Mutex<HashMap<WorkerId, Instant>>>,
    /// When the local disk last did not answer.
    silent_disk: Arc<Mutex<Option<Instant>>>,
    /// Of segments that are not here.
    kept: KeptReads,
    /// Where bytes from other zones are counted, besides the channels' zone.
    log: Option<Arc<ReadLog>>,
}

impl ShardStore {
    /// A store that looks into `local` first, if this node holds segments,
    /// and then asks `locate` for peers.
    pub fn new(local: Option<Arc<LocalSegments>>, locate: Arc<dyn Locate>, channels: Channels) -> Self {
        Self {
            local,
            locate,
            channels,
            located: Arc::default(),
            avoided: Arc::default(),
            silent_disk: Arc::default(),
            kept: KeptReads::new(0),
            log: None,
        }
    }

    /// The same store, which keeps up to so many bytes of what it read from peers lately.
    pub fn keeping(self, bytes_max: u64) -> Self {
        Self { kept: KeptReads::new(bytes_max), ..self }
    }

    /// The same store for one query, which counts there what comes from other
    /// zones.
    pub fn counting(&self, log: Arc<ReadLog>) -> Self {
        Self { log: Some(log), ..self.clone() }
    }

    /// Whether a segment is none of this node's. What should be here is looked at each time,
    /// so that damage is noticed.
    fn is_of_others(&self, name: &SegmentName) -> bool {
        self.local.as_ref().is_none_or(|local| !local.has(name))
    }

    /// All ranges that are in memory, as lookups read them: of the local file, each block
    /// verified, or of what peers sent.
    fn read_at_hand(&self, name: &SegmentName, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        // Not even what is in memory: where some of it is not, the system begins to read it
        // on this thread, and waits where that disk takes nothing more.
        let local = self.local.as_ref().filter(|_| !self.is_disk_silent());
        let local = local.and_then(|local| local.read_at_hand(name, ranges));
        local.or_else(|| self.kept.find(name, ranges).filter(|_| self.is_of_others(name)))
    }

    /// All ranges from the local file, each block verified, in one hop to a blocking thread.
    /// None where there is no local file or it is damaged, or the disk does not answer.
    async fn read_local(&self, name: &SegmentName, ranges: &[Range<u64>]) -> Option<Vec<Bytes>> {
        let (name, ranges) = (*name, ranges.to_vec());
        self.ask_disk(&name, move |local| local.read(&name, &ranges)).await
    }

    /// Whether the local disk did not answer lately.
    fn is_disk_silent(&self) -> bool {
        self.silent_disk.lock().is_some_and(|since| since.elapsed() < AVOIDED_FOR)
    }

    /// What the local disk says in time. One that was silent is left alone for a
    /// while: each question holds a thread.
    async fn ask_disk<T: Send + 'static>(
        &self,
        name: &SegmentName,
        ask: impl FnOnce(&LocalSegments) -> Option<T> + Send + 'static,
    ) -> Option<T> {
        let local = Arc::clone(self.local.as_ref()?);
        if self.is_disk_silent() {
            return None;
        }
        let asked = tokio::task::spawn_blocking(move || ask(&local));
        match tokio::time::timeout(DISK_PATIENCE, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(join)) => {
                tracing::error!(segment = %name, error = %join, "reading a local segment did not end");
                None
            }
            Err(_) => {
                tracing::warn!(segment = %name, "the disk does not answer: reading from a peer");
                *self.silent_disk.lock() = Some(Instant::now());
                None
            }
        }
    }

    async fn located(&self, name: &SegmentName) -> Result<Arc<Located>, Failure> {
        let now = Instant::now();
        if let Some((since, located)) = self.located.lock().get(name)
            && now.duration_since(*since) < LOCATED_FOR
        {
            return Ok(Arc::clone(located));
        }
        let located = Arc::new(self.locate.locate(name).await?);
        let mut known = self.located.lock();
        if known.len() >= LOCATED_MAX {
            known.clear();
        }
        known.insert(*name, (now, Arc::clone(&located)));
        Ok(located)
    }

    /// Replicas in the order in which they are tried: those of other zones after
    /// those of this one, and those that failed lately last.
    fn in_order(&self, located: &Located) -> Vec<Replica> {
        let now = Instant::now();
        let mut avoided = self.avoided.lock();
        avoided.retain(|_, since| now.duration_since(*since) < AVOIDED_FOR);
        let zone = self.channels.zone();
        let mut replicas = located.replicas.clone();
        replicas.sort_by_key(|it| (avoided.contains_key(&it.worker), zone.is_other(&it.zone)));
        replicas
    }

    /// Counts bytes that a replica delivered.
    fn count(&self, replica: &Replica, bytes: usize) {
        let bytes = bytes as u64;
        if self.channels.zone().received(&replica.zone, bytes)
            && let Some(log) = &self.log
        {
            log.add_crossed(bytes);
        }
    }

    /// One range from the first peer that delivers it whole.
    async fn read_peers(&self, name: &SegmentName, range: Range<u64>) -> Result<Bytes, Failure> {
        let located = self.located(name).await?;
        if range.end > located.bytes {
            return Err(Failure::new(
                ErrorCode::Internal,
                format!("bytes {range:?} of segment {name} were asked for, which has {}", located.bytes),
            ));
        }
        let text = name.to_string();
        let mut tried = Vec::new();
        let replicas = self.in_order(&located);
        let with = |patience: Duration| replicas.iter().map(move |replica| (replica, patience));
        let mut turns: Vec<_> = with(file_stream::STALL_MAX).collect();
        if replicas.len() > 1 {
            // Where all are slow, each gets the time that it needs.
            turns = with(PEER_PATIENCE).chain(turns).collect();
        }
        let mut silent = None;
        for (replica, patience) in turns {
            let received =
                file_stream::receive_all(&self.channels, &replica.address, &text, range.clone(), patience);
            match received.await {
                Ok(bytes) => {
                    self.count(replica, bytes.len());
                    return Ok(bytes);
                }
                Err(failure) => {
                    tracing::warn!(segment = %name, worker = %replica.worker, error = %failure, "peer cannot deliver");
                    self.avoided.lock().insert(replica.worker.clone(), Instant::now());
                    tried.push(format!("{}: {}", replica.worker, failure.message));
                    if failure.code == ErrorCode::Unavailable {
                        silent.get_or_insert_with(|| replica.worker.clone());
                    }
                }
            }
        }
        self.located.lock().remove(name);
        let tried = if tried.is_empty() { "no live worker holds it".to_owned() } else { tried.join("; ") };
        let message =
            format!("segment {name} of shard {} cannot be read from any replica ({tried})", name.shard);
        let failure = Failure::new(ErrorCode::Unavailable, message);
        // Whoever did not answer is to blame, and not this node that asked.
        Err(match silent {
            Some(peer) => failure.at(peer.as_str()),
            None => failure,
        })
    }

    async fn bytes_of(&self, name: &SegmentName) -> Result<u64, Failure> {
        let asked = *name;
        if let Some(bytes) = self.ask_disk(name, move |local| local.bytes_of(&asked)).await {
            return Ok(bytes);
        }
        Ok(self.located(name).await?.bytes)
    }

    async fn read(&self, name: &SegmentName, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, Failure> {
        if let Some(read) = self.read_at_hand(name, ranges) {
            return Ok(read);
        }
        if let Some(read) = self.read_local(name, ranges).await {
            return Ok(read);
        }
        let read =
            object_store::coalesce_ranges(ranges, |range| self.read_peers(name, range), COALESCE_BYTES)
                .await?;
        if self.is_of_others(name) {
            self.kept.keep(name, ranges, &read);
        }
        Ok(read)
    }
}

#[async_trait]
impl ObjectStore for ShardStore {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let name = parse(location)?;
        let size = self.bytes_of(&name).await.map_err(store_error)?;
        let meta = meta(location, size);
        let range = match &options.range {
            Some(range) => range
                .as_range(size)
                .map_err(|source| object_store::Error::Generic { store: STORE, source: Box::new(source) })?,
            None => 0..size,
        };
        let payload: BoxStream<'static, object_store::Result<Bytes>> = if options.head {
            stream::empty().boxed()
        } else if range.end - range.start <= WHOLE_BYTES_MAX {
            let read = self.read(&name, std::slice::from_ref(&range)).await.map_err(store_error)?;
            stream::iter(read.into_iter().map(Ok)).boxed()
        } else {
            pieces(self.clone(), name, range.clone())
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(payload),
            meta,
            range: if options.head { 0..0 } else { range },
            attributes: object_store::Attributes::default(),
        })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        if ranges.is_empty() {
            return Ok(Vec::new());
        }
        let name = parse(location)?;
        self.read(&name, ranges).await.map_err(store_error)
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

    /// Segments are found in the catalog, never by listing.
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

const STORE: &str = "shard";

/// A large range as pieces, each read when it is asked for.
fn pieces(
    store: ShardStore,
    name: SegmentName,
    range: Range<u64>,
) -> BoxStream<'static, object_store::Result<Bytes>> {
    stream::try_unfold((store, range.start), move |(store, at)| {
        let end = range.end.min(at + WHOLE_BYTES_MAX);
        async move {
            if at >= end {
                return Ok(None);
            }
            let wanted = at..end;
            let mut read = store.read(&name, std::slice::from_ref(&wanted)).await.map_err(store_error)?;
            Ok(read.pop().map(|bytes| (bytes, (store, end))))
        }
    })
    .boxed()
}

/// What the store says of a segment. Segments never change, so their time of
/// change is a constant: caches keyed on it stay right.
pub fn meta(location: &Path, bytes: u64) -> ObjectMeta {
    ObjectMeta {
        location: location.clone(),
        last_modified: Default::default(),
        size: bytes,
        e_tag: None,
        version: None,
    }
}

fn parse(location: &Path) -> object_store::Result<SegmentName> {
    location.as_ref().parse().map_err(|error: crate::DataError| store_error(Failure::from(error)))
}

/// The failure travels as the source, so that its code survives.
fn store_error(failure: Failure) -> object_store::Error {
    match failure.code {
        ErrorCode::NotFound => {
            object_store::Error::NotFound { path: String::new(), source: Box::new(failure) }
        }
        _ => object_store::Error::Generic { store: STORE, source: Box::new(failure) },
    }
}

fn read_only(operation: &str) -> object_store::Error {
    object_store::Error::NotSupported {
        source: format!("{operation}: segments are read here, and written through the write path only")
            .into(),
    }
}

impl fmt::Debug for ShardStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardStore").field("local", &self.local).field("locate", &self.locate).finish()
    }
}

impl fmt::Display for ShardStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHARD_STORE_URL)
    }
}

#[cfg(test)]
mod tests;
