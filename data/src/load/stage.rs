//! Makes one encoded segment durable on the workers of its shard.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::stream;
use serde::{Deserialize, Serialize};
use shoal_proto::cluster::segments_client::SegmentsClient;
use shoal_proto::cluster::{StageHeader, StageRequest, stage_request};
use shoal_proto::{ErrorCode, Failure, SegmentId, WorkerId, WriteId};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::WriteContext;
use crate::{EncodedSegment, Segment, Sketches};

/// Bytes of a segment that one message carries.
const PIECE_BYTES: usize = 256 * 1024;
/// What any segment may take to be durable, however small.
const STAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Slower than this a worker is taken for stuck.
const STAGE_BYTES_PER_SECOND_MIN: u64 = 1024 * 1024;
/// A connection may turn out to be stale; then it is made anew once.
const TRIES: usize = 2;
/// How long a worker that is not live is waited for, where the others are not
/// enough: it may be about to join, here or after a restart of either.
const WORKER_WAIT: Duration = Duration::from_secs(5);

/// What is asked for beyond that most workers have a segment.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    /// What must stay free on a worker's disk beside it.
    pub keep_free_bytes: u64,
    /// Workers without which the others are not enough.
    pub needed: Vec<WorkerId>,
}

/// A segment that is durable on its replicas.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Durable {
    /// The segment.
    pub segment: Segment,
    /// The id of the disk of each replica on which it is; empty: not known.
    pub disks: Vec<String>,
}

/// What came of the rows of a write, or of a part of one.
#[derive(Clone, Debug)]
pub struct Written {
    /// Their segments.
    pub durable: Vec<Durable>,
    /// How many distinct values their columns have; none where that is not known of all rows.
    pub sketches: Option<Arc<Sketches>>,
}

impl Durable {
    /// Its copies, and where each of them is.
    pub fn copies(&self) -> impl Iterator<Item = (SegmentId, WorkerId, String)> {
        let id = self.segment.id;
        let copies = self.segment.replicas.iter().zip(&self.disks);
        copies.map(move |(worker, disk)| (id, worker.clone(), disk.clone()))
    }
}

/// Sends the segment to all of `workers` at once and waits for each; once a
/// majority has it, only for those that are live: a copy for a silent one is
/// made when it is back. Without a majority those that are not live are waited
/// for, for some seconds. Where this process is one of them, nothing is sent
/// there. The result names those on which it is durable.
///
/// # Errors
/// Where they are no majority, or one that is needed is not among them: the worst
/// of the workers' own errors, with all of them in its message.
pub async fn stage(
    context: &WriteContext,
    table: &str,
    write_id: &WriteId,
    encoded: EncodedSegment,
    workers: &[WorkerId],
    conditions: &Conditions,
) -> Result<Durable, Failure> {
    let EncodedSegment { mut segment, bytes, .. } = encoded;
    let header = StageHeader {
        name: segment.name().to_string(),
        bytes: segment.bytes,
        crc32c: segment.crc32c,
        write_id: write_id.as_str().to_owned(),
        keep_free_bytes: conditions.keep_free_bytes,
    };
    let majority = workers.len() / 2 + 1;
    let durable = AtomicUsize::new(0);
    let is_enough = CancellationToken::new();
    let sends = workers.iter().map(|worker| {
        let (header, bytes, durable, is_enough) = (&header, &bytes, &durable, &is_enough);
        async move {
            let lost = async {
                is_enough.cancelled().await;
                context.holders().lost(worker).await;
            };
            tokio::select! {
                sent = send(context, header, bytes, worker, is_enough) => {
                    if sent.is_ok() && durable.fetch_add(1, Ordering::Relaxed) + 1 >= majority {
                        is_enough.cancel();
                    }
                    sent
                }
                () = lost => {
                    let message = "is silent, and the others are enough: not waited for";
                    Err(Failure::new(ErrorCode::Unavailable, message).at(worker.as_str()))
                }
            }
        }
    });
    let outcomes = join_all(sends).await;
    let (mut failures, mut disks) = (Vec::new(), Vec::new());
    for (worker, outcome) in workers.iter().zip(outcomes) {
        match outcome {
            Ok(disk) => {
                segment.replicas.push(worker.clone());
                disks.push(disk);
            }
            Err(failure) => {
                tracing::warn!(%worker, segment = %segment.name(), %failure, "segment not staged");
                failures.push((worker, failure));
            }
        }
    }
    let lacking = conditions.needed.iter().find(|needed| !segment.replicas.contains(needed));
    if segment.replicas.len() >= majority && lacking.is_none() {
        return Ok(Durable { segment, disks });
    }
    let needed = match lacking {
        Some(lacking) => format!("and {lacking}, which has the segments before it, is needed, too"),
        None => format!("{majority} are needed"),
    };
    let reasons: Vec<String> =
        failures.iter().map(|(worker, failure)| format!("{worker}: {}", failure.message)).collect();
    let message = format!(
        "shard {} of `{table}` was written to {} of its {} workers, {needed}; nothing was changed ({})",
        segment.shard,
        segment.replicas.len(),
        workers.len(),
        reasons.join("; ")
    );
    // A full disk is for the caller to know; all else may pass.
    let code = if failures.iter().any(|(_, failure)| failure.code == ErrorCode::Exhausted) {
        ErrorCode::Exhausted
    } else {
        ErrorCode::Unavailable
    };
    Err(Failure::new(code, message))
}

/// Sends the segment to one worker, or stores it here where this process is that one;
/// the id of the disk on which it is durable there.
async fn send(
    context: &WriteContext,
    header: &StageHeader,
    bytes: &Bytes,
    worker: &WorkerId,
    is_enough: &CancellationToken,
) -> Result<String, Failure> {
    if let Some(stored) = context.holders().store_here(worker, header, bytes) {
        let stored = in_time(header, stored).await.unwrap_or_else(Err);
        return stored.map_err(|failure| failure.at(worker.as_str()));
    }
    let give_up = Instant::now() + WORKER_WAIT;
    let mut tries = TRIES;
    loop {
        let Some(address) = context.holders().address(worker) else {
            tokio::select! {
                () = context.holders().joined(worker) => continue,
                () = is_enough.cancelled() => {}
                () = sleep_until(give_up) => {}
            }
            return Err(Failure::new(ErrorCode::Unavailable, "is not live").at(worker.as_str()));
        };
        tries -= 1;
        match send_once(context, header, bytes, &address).await {
            Ok(disk) => return Ok(disk),
            Err(failure) if failure.code == ErrorCode::Unavailable && tries > 0 => {
                tracing::debug!(%worker, %failure, "segment sent again");
            }
            Err(failure) => {
                if matches!(failure.code, ErrorCode::Unavailable | ErrorCode::Timeout) {
                    context.holders().suspect(worker, &failure.message);
                }
                return Err(failure.at(worker.as_str()));
            }
        }
    }
}

async fn send_once(
    context: &WriteContext,
    header: &StageHeader,
    bytes: &Bytes,
    address: &str,
) -> Result<String, Failure> {
    let requests = std::iter::once(stage_request::Part::Header(header.clone()))
        .chain(pieces(bytes).map(stage_request::Part::Data))
        .map(|part| StageRequest { part: Some(part) });
    let mut client = SegmentsClient::new(context.channels().get(address)?);
    let staged = in_time(header, client.stage(stream::iter(requests.collect::<Vec<_>>()))).await?;
    let reply = staged.map_err(|status| Failure::from_status(&status))?.into_inner();
    if (reply.bytes, reply.crc32c) != (header.bytes, header.crc32c) {
        let message = format!(
            "stored {} bytes with checksum {:08x} of {} bytes with checksum {:08x}",
            reply.bytes, reply.crc32c, header.bytes, header.crc32c
        );
        return Err(Failure::new(ErrorCode::Corrupt, message));
    }
    Ok(reply.disk)
}

/// What comes of storing a segment, unless it takes longer than it may.
async fn in_time<T>(header: &StageHeader, storing: impl Future<Output = T>) -> Result<T, Failure> {
    let limit = STAGE_TIMEOUT + Duration::from_secs(header.bytes / STAGE_BYTES_PER_SECOND_MIN);
    tokio::time::timeout(limit, storing).await.map_err(|_elapsed| {
        let message = format!("did not store {} bytes within {} s", header.bytes, limit.as_secs());
        Failure::new(ErrorCode::Timeout, message)
    })
}

/// The bytes cut for sending, without a copy.
fn pieces(bytes: &Bytes) -> impl Iterator<Item = Bytes> + use<> {
    let bytes = bytes.clone();
    (0..bytes.len()).step_by(PIECE_BYTES).map(move |start| {
        let end = bytes.len().min(start + PIECE_BYTES);
        bytes.slice(start..end)
    })
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use shoal_proto::{Channels, TableId};
    use tokio::runtime::Handle;

    use super::*;
    use crate::PackedStatistics;
    use crate::load::{Holders, WriteLimits};

    /// This process is one of the workers, and its disk never answers.
    struct StuckDisk;

    impl Holders for StuckDisk {
        fn address(&self, _worker: &WorkerId) -> Option<String> {
            None
        }

        fn joined<'a>(&'a self, _worker: &'a WorkerId) -> BoxFuture<'a, ()> {
            Box::pin(std::future::pending())
        }

        fn lost<'a>(&'a self, _worker: &'a WorkerId) -> BoxFuture<'a, ()> {
            Box::pin(std::future::pending())
        }

        fn suspect(&self, _worker: &WorkerId, _why: &str) {}

        fn store_here<'a>(
            &'a self,
            _worker: &'a WorkerId,
            _header: &'a StageHeader,
            _bytes: &'a Bytes,
        ) -> Option<BoxFuture<'a, Result<String, Failure>>> {
            Some(Box::pin(std::future::pending()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_here_that_never_answers_is_not_waited_for_for_ever() {
        let limits = WriteLimits::new(0, 1);
        let channels = Channels::new(Handle::current());
        let context = WriteContext::new(Arc::new(StuckDisk), channels, limits);
        let bytes = Bytes::from_static(b"a segment");
        let segment = Segment {
            id: SegmentId::random(),
            table: TableId(1),
            shard: 0,
            rows: 1,
            bytes: bytes.len() as u64,
            crc32c: 0,
            columns: PackedStatistics::default(),
            replicas: Vec::new(),
        };
        let encoded = EncodedSegment { segment, bytes, sketches: None };
        let (workers, conditions) = ([WorkerId::from("w1")], Conditions::default());
        let staged = stage(&context, "t", &WriteId::from("w"), encoded, &workers, &conditions).await;
        let failure = staged.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.message.contains("w1: did not store 9 bytes"), "{failure}");
    }
}
