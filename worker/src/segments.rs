//! The `Segments` and `Files` services of a worker: check, forward to the
//! directory on blocking threads, name the worker in every error.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use shoal_data::block_sums::BlockSums;
use shoal_data::shard_store::LocalSegments;
use shoal_data::{SegmentName, file_stream};
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::chunks::ChunkServer;
use shoal_proto::cluster::files_server::Files;
use shoal_proto::cluster::segments_server::{Segments, SegmentsServer};
use shoal_proto::cluster::{
    DeleteReply, DeleteRequest, FetchRequest, ReadChunk, ReadRequest, StageHeader, StageReply, StageRequest,
    StatReply, StatRequest, stage_request,
};
use shoal_proto::{Failure, WorkerId};
use tonic::{Request, Response, Status, Streaming};

use crate::Error;
use crate::replicate::Replicator;
use crate::segment_dir::{SegmentDir, Staging};

/// How long a sender may be silent before its segment is given up.
const STALL_MAX: Duration = Duration::from_secs(10);

/// Serves the segments of one worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SegmentService {
    worker: WorkerId,
    dir: Arc<SegmentDir>,
    local: Arc<LocalSegments>,
    replicator: Replicator,
}

impl SegmentService {
    /// Writes to `dir` and reads what is there through `local`; fetches through
    /// `replicator`.
    pub fn new(
        worker: WorkerId,
        dir: Arc<SegmentDir>,
        local: Arc<LocalSegments>,
        replicator: Replicator,
    ) -> Self {
        Self { worker, dir, local, replicator }
    }

    /// The service that writes segments, ready to be added to a server.
    pub fn segments_server(&self) -> SegmentsServer<Self> {
        SegmentsServer::new(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The service that reads segments, ready to be added to a server.
    pub fn files_server(&self) -> ChunkServer<Self> {
        ChunkServer::new(self.clone())
    }

    fn refuse(&self, error: impl Into<Error>) -> Status {
        Failure::from(error.into()).at(self.worker.as_str()).to_status()
    }

    fn parse(&self, name: &str) -> Result<SegmentName, Status> {
        name.parse().map_err(|error: shoal_data::DataError| self.refuse(error))
    }

    fn durable(&self, bytes: u64, crc32c: u32) -> StageReply {
        StageReply { bytes, crc32c, disk: self.dir.disk().to_owned() }
    }

    async fn open(&self, name: &str) -> Result<Verified, Status> {
        let (local, name) = (Arc::clone(&self.local), self.parse(name)?);
        let opened = blocking(move || match local.open(&name) {
            Ok((file, sums)) => Ok(Verified { file, sums, name, local }),
            Err(error) => {
                local.tell(&name, &error);
                Err(match error.kind() {
                    io::ErrorKind::NotFound => Error::NotHere(name.to_string()),
                    _ => Error::Corrupt { name: name.to_string(), what: error.to_string() },
                })
            }
        });
        opened.await.map_err(|error| self.refuse(error))
    }

    async fn receive(&self, mut parts: Streaming<StageRequest>) -> Result<(u64, u32), Error> {
        let first = next_part(&mut parts).await?;
        let Some(stage_request::Part::Header(header)) = first else {
            return Err(Error::Invalid("a segment is sent with its header first".to_owned()));
        };
        let name = header.name.clone();
        let dir = Arc::clone(&self.dir);
        let mut staging = blocking(move || begun(&dir, &header)).await?;
        while let Some(part) = next_part(&mut parts).await? {
            let stage_request::Part::Data(data) = part else {
                return Err(Error::Invalid(format!("segment {name} is sent with two headers")));
            };
            staging = blocking(move || {
                staging.write(&data)?;
                Ok(staging)
            })
            .await?;
        }
        finished(staging, &self.replicator).await
    }
}

/// A segment whose bytes are verified before they are sent.
struct Verified {
    file: File,
    sums: Arc<BlockSums>,
    name: SegmentName,
    local: Arc<LocalSegments>,
}

impl file_stream::Source for Verified {
    fn read(&self, range: Range<u64>) -> io::Result<(Bytes, u32)> {
        self.sums.read_summed(&self.file, range).inspect_err(|error| self.local.tell(&self.name, error))
    }
}

async fn next_part(parts: &mut Streaming<StageRequest>) -> Result<Option<stage_request::Part>, Error> {
    let message = tokio::time::timeout(STALL_MAX, parts.message()).await.map_err(|_| {
        Error::Invalid(format!("a segment's sender was silent for {} s", STALL_MAX.as_secs()))
    })?;
    let message = message.map_err(|status| Failure::from_status(&status))?;
    match message {
        None => Ok(None),
        Some(StageRequest { part: Some(part) }) => Ok(Some(part)),
        Some(StageRequest { part: None }) => Err(Error::Invalid("an empty part of a segment".to_owned())),
    }
}

/// Runs what blocks where it may; a panic there is an error here.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|join| Err(Error::Internal(format!("file work did not end: {join}"))))
}

/// Begins a segment as its header says, where so much stays free beside it as that
/// asks for.
///
/// # Errors
/// `NoRoom`, and those of [`SegmentDir::stage`].
pub(crate) fn begun(dir: &Arc<SegmentDir>, header: &StageHeader) -> Result<Staging, Error> {
    let name: SegmentName = header.name.parse()?;
    if header.keep_free_bytes > 0 {
        dir.check_room(&name, header.bytes, header.keep_free_bytes)?;
    }
    dir.stage(name, header.bytes, header.crc32c)
}

/// Makes a segment that was written durable under its name; its length and
/// checksum. All of it where it runs to its end, also when nobody waits any more.
///
/// # Errors
/// Those of [`Staging::finish`].
pub(crate) async fn finished(staging: Staging, replicator: &Replicator) -> Result<(u64, u32), Error> {
    let replicator = replicator.clone();
    // Gone with this call, when nobody waits for it.
    let waited_for = Arc::new(());
    let waits = Arc::downgrade(&waited_for);
    let done = blocking(move || {
        let number = staging.number();
        let done = staging.finish()?;
        if waits.strong_count() == 0 {
            replicator.staged_for_nobody(number);
        }
        Ok(done)
    })
    .await;
    drop(waited_for);
    done
}

#[async_trait]
impl Segments for SegmentService {
    async fn stage(&self, request: Request<Streaming<StageRequest>>) -> Result<Response<StageReply>, Status> {
        let received = self.receive(request.into_inner()).await;
        let (bytes, crc32c) = received.map_err(|error| {
            tracing::warn!(%error, "segment not staged");
            self.refuse(error)
        })?;
        Ok(Response::new(self.durable(bytes, crc32c)))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        let names = request.into_inner().names;
        let names = names.iter().map(|name| self.parse(name)).collect::<Result<Vec<_>, _>>()?;
        let deleted = self.replicator.discard(names).await.map_err(|error| self.refuse(error))?;
        Ok(Response::new(DeleteReply { deleted }))
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<StageReply>, Status> {
        let request = request.into_inner();
        let fetched = self.replicator.fetch(request).await.map_err(|error| self.refuse(error))?;
        Ok(Response::new(self.durable(fetched.0, fetched.1)))
    }
}

#[async_trait]
impl Files for SegmentService {
    type ReadStream = BoxStream<'static, Result<ReadChunk, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadRequest { name, offset, length } = request.into_inner();
        let segment = self.open(&name).await?;
        let bytes = segment.sums.bytes();
        let range = file_stream::checked_range(offset, length, bytes).ok_or_else(|| {
            let what = format!("it has {bytes} bytes here, and {length} from {offset} on were asked for");
            self.refuse(Error::Corrupt { name: name.clone(), what })
        })?;
        Ok(Response::new(file_stream::send(segment, name, range)))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        let bytes = self.open(&request.into_inner().name).await?.sums.bytes();
        Ok(Response::new(StatReply { bytes, modified_unix_ms: 0 }))
    }
}
