//! Joins the cluster and beats, on a thread and a connection of its own: a
//! worker busy with queries is not taken for dead.
//!
//! Nothing here touches the disk or waits for a query.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::cluster::cluster_client::ClusterClient;
use shoal_proto::cluster::{Beat, HeldSegment, JoinReply, JoinRequest, Orders, QueryProgress};
use shoal_proto::{Channels, ErrorCode, Failure};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::Error;
use crate::identity::Identity;
use crate::replicate::Replicator;
use crate::scrub::Scrub;
use crate::segment_dir::SegmentDir;

/// How long the coordinator may take to answer a join.
const JOIN_MAX: Duration = Duration::from_secs(5);
/// Silence of the coordinator after which the stream is taken for broken: it
/// answers each beat. A worker that hears nothing cannot be reached either, and
/// to end the stream is how the coordinator gets to know, within two seconds.
const SILENCE_MAX: Duration = Duration::from_millis(1_750);
/// Waits between attempts to join: from, to.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// How often a cause that lasts is logged.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// What the execution of tasks tells the coordinator with every beat. Answers
/// at once, without waiting for anything.
pub trait ExecutionStatus: Send + Sync {
    /// What each running query has read from segments so far.
    fn progress(&self) -> Vec<QueryProgress>;
    /// Tasks that run.
    fn tasks_running(&self) -> u32;
    /// Query memory in use.
    fn memory_used_bytes(&self) -> u64;
}

/// Who the worker is and how it is reached.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// URL at which it is reached.
    pub address: String,
    /// May be empty.
    pub zone: String,
    /// Limit of its query memory.
    pub memory_bytes: u64,
    /// Threads on which it runs tasks.
    pub threads: u32,
}

/// The thread that beats.
#[derive(Debug)]
pub struct Heartbeat {
    leaving: CancellationToken,
    left: CancellationToken,
    end: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub struct HeartbeatParts {
    /// URLs of the coordinators.
    pub coordinators: Vec<String>,
    /// The worker's identity; its cluster is recorded at the first join.
    pub identity: Identity,
    /// Where the identity is kept.
    pub data_dir: PathBuf,
    /// Where the worker listens, which a connection may come from.
    pub listening: IpAddr,
    /// What it says of itself.
    pub introduction: Introduction,
    /// What it holds.
    pub dir: Arc<SegmentDir>,
    /// Who carries out the coordinator's orders.
    pub replicator: Replicator,
    /// What looks for rot.
    pub scrub: Scrub,
    /// What it runs.
    pub status: Arc<dyn ExecutionStatus>,
}

impl Heartbeat {
    /// Starts the thread; it tries to join for ever.
    ///
    /// # Errors
    /// `Io` where there can be no thread.
    pub fn start(parts: HeartbeatParts) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::io("cannot start the heartbeat", error))?;
        let (leaving, left, end) =
            (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
        let mut beating = Beating {
            channels: Channels::new(runtime.handle().clone()).from_loopback(parts.listening),
            incarnation: uuid::Uuid::new_v4().simple().to_string(),
            parts,
            leaving: leaving.clone(),
            left: left.clone(),
        };
        let ended = end.clone();
        let thread = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = beating.run() => {}
                        () = ended.cancelled() => {}
                    }
                });
            })
            .map_err(|error| Error::io("cannot start the heartbeat", error))?;
        Ok(Self { leaving, left, end, thread: Some(thread) })
    }

    /// Tells the coordinator that no new work should come; returns when it
    /// knows, or after `limit`.
    pub async fn leave(&self, limit: Duration) {
        self.leaving.cancel();
        let told = tokio::time::timeout(limit, self.left.cancelled()).await;
        if told.is_err() {
            tracing::warn!("the coordinator was not told that this worker stops");
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.end.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the heartbeat's thread panicked");
        }
    }
}

struct Beating {
    channels: Channels,
    /// New at each process start.
    incarnation: String,
    parts: HeartbeatParts,
    leaving: CancellationToken,
    /// Cancelled when the coordinator has heard that the worker leaves.
    left: CancellationToken,
}

impl Beating {
    async fn run(&mut self) {
        let mut backoff = BACKOFF.0;
        let mut logged: Option<(Instant, String)> = None;
        for turn in 0_usize.. {
            let coordinators = &self.parts.coordinators;
            let Some(coordinator) = coordinators.get(turn % coordinators.len().max(1)).cloned() else {
                tracing::error!("no coordinator is configured");
                return;
            };
            let started = Instant::now();
            let Err(failure) = self.beat_at(&coordinator).await else {
                // Told to join anew.
                continue;
            };
            if started.elapsed() > SILENCE_MAX {
                backoff = BACKOFF.0;
            }
            let what = failure.to_string();
            let is_news = logged.as_ref().is_none_or(|(at, last)| *last != what || at.elapsed() >= LOG_EVERY);
            if is_news {
                tracing::warn!(%coordinator, error = %what, retry_in = ?backoff, "not connected to the coordinator");
                logged = Some((Instant::now(), what));
            }
            self.channels.forget(&coordinator);
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    /// Joins at one coordinator and beats until the stream breaks, which is an
    /// error, or the coordinator wants to be told everything again.
    async fn beat_at(&mut self, coordinator: &str) -> Result<(), Failure> {
        let mut client = ClusterClient::new(self.channels.get(coordinator)?)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reply = self.join(&mut client).await?;
        let interval = Duration::from_millis(reply.beat_interval_ms.clamp(50, 1_000).into());
        // Whatever was fetched before is in the report of the join.
        let _reported = self.parts.replicator.take_fetched();
        self.parts.replicator.obey(reply.fetch, &reply.discard);

        let (beats, outgoing) = mpsc::channel(4);
        let opened = client.heartbeat(ReceiverStream::new(outgoing));
        let opened = tokio::time::timeout(JOIN_MAX, opened).await.map_err(|_| silent(coordinator))?;
        let mut orders = opened.map_err(|status| Failure::from_status(&status))?.into_inner();
        tracing::info!(%coordinator, cluster = %reply.cluster, "joined the cluster");

        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard_at = Instant::now();
        let mut told_leaving = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.parts.replicator.news() => {}
                () = self.leaving.cancelled(), if !told_leaving => told_leaving = true,
                received = next(&mut orders) => {
                    let received = received?;
                    if received.rejoin {
                        return Ok(());
                    }
                    heard_at = Instant::now();
                    if told_leaving {
                        self.left.cancel();
                    }
                    self.parts.replicator.obey(received.fetch, &received.discard);
                    continue;
                }
            }
            if self.parts.replicator.take_lost() {
                // A join tells what is here, and brings orders for the rest. The
                // stream stays: to end it would be to be lost.
                let reply = self.join(&mut client).await?;
                self.parts.replicator.obey(reply.fetch, &reply.discard);
                heard_at = Instant::now();
            }
            if heard_at.elapsed() > SILENCE_MAX {
                return Err(silent(coordinator));
            }
            if beats.try_send(self.beat()).is_err() {
                // Full or closed: the answer that does not come says the rest.
                tracing::debug!("a beat was not sent");
            }
        }
    }

    async fn join(&mut self, client: &mut ClusterClient<Channel>) -> Result<JoinReply, Failure> {
        let parts = &mut self.parts;
        let held = parts.dir.report();
        let request = JoinRequest {
            worker: parts.identity.name.to_string(),
            address: parts.introduction.address.clone(),
            zone: parts.introduction.zone.clone(),
            memory_bytes: parts.introduction.memory_bytes,
            threads: parts.introduction.threads,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            held: held
                .into_iter()
                .map(|(name, bytes)| HeldSegment { name: name.to_string(), bytes })
                .collect(),
            incarnation: self.incarnation.clone(),
            cluster: parts.identity.cluster.clone(),
        };
        let joined = tokio::time::timeout(JOIN_MAX, client.join(request)).await;
        let joined = joined.map_err(|_| Failure::new(ErrorCode::Unavailable, "no answer to the join"))?;
        let reply = joined.map_err(|status| Failure::from_status(&status))?.into_inner();
        if parts.identity.cluster.is_empty() {
            parts.identity.cluster.clone_from(&reply.cluster);
            parts.identity.save(&parts.data_dir)?;
        } else if parts.identity.cluster != reply.cluster {
            // Never remove anything on the word of another cluster.
            return Err(Failure::new(
                ErrorCode::Invalid,
                format!(
                    "this worker belongs to cluster {}, and the coordinator to cluster {}",
                    parts.identity.cluster, reply.cluster
                ),
            ));
        }
        Ok(reply)
    }

    fn beat(&self) -> Beat {
        let parts = &self.parts;
        Beat {
            worker: parts.identity.name.to_string(),
            incarnation: self.incarnation.clone(),
            memory_used_bytes: parts.status.memory_used_bytes(),
            tasks_running: parts.status.tasks_running(),
            disk_free_bytes: parts.dir.free_bytes(),
            disk_used_bytes: parts.dir.used_bytes(),
            fetched: parts.replicator.take_fetched().iter().map(ToString::to_string).collect(),
            progress: parts.status.progress(),
            leaving: self.leaving.is_cancelled(),
            scrub: Some(parts.scrub.progress()),
        }
    }
}

async fn next(orders: &mut Streaming<Orders>) -> Result<Orders, Failure> {
    match orders.message().await {
        Ok(Some(orders)) => Ok(orders),
        Ok(None) => Err(Failure::new(ErrorCode::Unavailable, "the coordinator ended the heartbeat stream")),
        Err(status) => Err(Failure::from_status(&status)),
    }
}

fn silent(coordinator: &str) -> Failure {
    Failure::new(ErrorCode::Unavailable, format!("coordinator {coordinator} was silent for {SILENCE_MAX:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::path::Path;

    use async_trait::async_trait;
    use futures::StreamExt;
    use futures::future::join_all;
    use futures::stream::BoxStream;
    use shoal_data::DataDir;
    use shoal_data::shard_store::LocalSegments;
    use shoal_proto::cluster::cluster_server::{Cluster, ClusterServer};
    use shoal_proto::cluster::{LocateReply, LocateRequest};
    use shoal_proto::server::{self, Incoming};
    use tonic::{Request, Response, Status};

    use super::*;

    /// A coordinator that hears everything, and from here on answers nothing.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum MuteFrom {
        Join,
        Stream,
        Beats,
    }

    #[async_trait]
    impl Cluster for MuteFrom {
        type HeartbeatStream = BoxStream<'static, Result<Orders, Status>>;

        async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
            if *self == Self::Join {
                std::future::pending::<()>().await;
            }
            let cluster = "c".to_owned();
            Ok(Response::new(JoinReply { cluster, beat_interval_ms: 50, ..JoinReply::default() }))
        }

        async fn heartbeat(
            &self,
            beats: Request<Streaming<Beat>>,
        ) -> Result<Response<Self::HeartbeatStream>, Status> {
            if *self == Self::Stream {
                std::future::pending::<()>().await;
            }
            let unanswered =
                beats.into_inner().filter_map(|_| std::future::ready(None::<Result<Orders, Status>>));
            Ok(Response::new(unanswered.boxed()))
        }

        async fn locate(&self, _: Request<LocateRequest>) -> Result<Response<LocateReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }
    }

    /// A worker that runs nothing.
    struct Idle;

    impl ExecutionStatus for Idle {
        fn progress(&self) -> Vec<QueryProgress> {
            Vec::new()
        }

        fn tasks_running(&self) -> u32 {
            0
        }

        fn memory_used_bytes(&self) -> u64 {
            0
        }
    }

    /// The heartbeat of a worker that keeps its data below `root`.
    fn beating(root: &Path) -> Beating {
        let data_dir = DataDir::lock(root).unwrap();
        let dir = Arc::new(SegmentDir::open(&data_dir).unwrap());
        let io = tokio::runtime::Handle::current();
        let channels = Channels::new(io.clone());
        let replicator = Replicator::new(Arc::clone(&dir), channels.clone(), io);
        let local = LocalSegments::new(dir.path().to_owned(), Arc::new(replicator.clone()));
        Beating {
            channels,
            incarnation: "a".to_owned(),
            parts: HeartbeatParts {
                coordinators: Vec::new(),
                identity: Identity::load(root, Some("w1")).unwrap(),
                data_dir: root.to_owned(),
                listening: Ipv4Addr::LOCALHOST.into(),
                introduction: Introduction {
                    address: "http://127.0.0.1:1".to_owned(),
                    zone: String::new(),
                    memory_bytes: 1,
                    threads: 1,
                },
                scrub: Scrub::new(Arc::clone(&dir), Arc::new(local), 0),
                dir,
                replicator,
                status: Arc::new(Idle),
            },
            leaving: CancellationToken::new(),
            left: CancellationToken::new(),
        }
    }

    #[tokio::test]
    async fn a_coordinator_that_falls_silent_is_given_up() {
        // Five seconds for each of the first two, and less than two between a
        // beat and its answer; the rest is for a busy machine.
        let cases = [(MuteFrom::Join, 7), (MuteFrom::Stream, 7), (MuteFrom::Beats, 4)];
        let ended = cases.map(|(coordinator, limit_s)| async move {
            let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
            let service = ClusterServer::new(coordinator);
            tokio::spawn(server::builder().add_service(service).serve_with_incoming(Incoming::new(listener)));
            let root = tempfile::tempdir().unwrap();
            let mut beating = beating(root.path());
            let limit = Duration::from_secs(limit_s);
            let beats = tokio::time::timeout(limit, beating.beat_at(&format!("http://{address}"))).await;
            let ended = beats.unwrap_or_else(|_| panic!("{coordinator:?}: still waited for"));
            let failure = ended.unwrap_err();
            assert_eq!(failure.code, ErrorCode::Unavailable, "{coordinator:?}: {failure}");
        });
        join_all(ended).await;
    }
}
