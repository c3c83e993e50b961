//! The `Cluster` service: translates and forwards, decides nothing.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use shoal_data::{Locate, SegmentName};
use shoal_proto::channel::MESSAGE_BYTES_MAX;
use shoal_proto::cluster::cluster_server::{Cluster as ClusterRpc, ClusterServer};
use shoal_proto::cluster::{Beat, JoinReply, JoinRequest, LocateReply, LocateRequest, Location, Orders};
use shoal_proto::{Failure, WorkerId};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::adapter::Cluster;
use super::membership::StreamNumber;
use crate::Error;

/// Serves a [`Cluster`] to its workers.
#[derive(Clone, Debug)]
pub struct ClusterService {
    cluster: Arc<Cluster>,
    stop: CancellationToken,
}

impl ClusterService {
    /// Serves until `stop`, which ends the heartbeat streams.
    pub fn new(cluster: Arc<Cluster>, stop: CancellationToken) -> Self {
        Self { cluster, stop }
    }

    /// The service, ready to be added to a server.
    pub fn into_server(self) -> ClusterServer<Self> {
        ClusterServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

/// One heartbeat stream; a worker is lost when it is dropped.
struct Listening {
    cluster: Arc<Cluster>,
    stop: CancellationToken,
    beats: Streaming<Beat>,
    stream: StreamNumber,
    worker: Option<WorkerId>,
}

impl Listening {
    /// The orders for the next beat; none when the stream is over.
    async fn next(&mut self) -> Option<Result<Orders, Status>> {
        let beat = tokio::select! {
            beat = self.beats.message() => beat,
            () = self.stop.cancelled() => return None,
        };
        match beat {
            Ok(Some(beat)) => {
                self.worker = Some(WorkerId::new(beat.worker.clone()));
                Some(Ok(self.cluster.beat(self.stream, beat)))
            }
            Ok(None) => None,
            Err(status) => {
                tracing::debug!(worker = ?self.worker, %status, "heartbeat stream broke");
                None
            }
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            self.cluster.disconnected(worker, self.stream);
        }
    }
}

#[async_trait]
impl ClusterRpc for ClusterService {
    type HeartbeatStream = BoxStream<'static, Result<Orders, Status>>;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        // Whatever is told to others as an address must be one.
        shoal_proto::channel::endpoint(&request.address).map_err(|failure| failure.to_status())?;
        let reply = self.cluster.join(request).await.inspect_err(|error| {
            tracing::warn!(%error, "worker refused");
        })?;
        Ok(Response::new(reply))
    }

    async fn heartbeat(
        &self,
        request: Request<Streaming<Beat>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        let listening = Listening {
            cluster: Arc::clone(&self.cluster),
            stop: self.stop.clone(),
            beats: request.into_inner(),
            stream: self.cluster.open_stream(),
            worker: None,
        };
        let orders = stream::unfold(listening, |mut listening| async move {
            let orders = listening.next().await?;
            Some((orders, listening))
        });
        Ok(Response::new(orders.boxed()))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateReply>, Status> {
        let name: SegmentName = request.into_inner().name.parse().map_err(Error::from)?;
        let located = self.cluster.locate(&name).await.map_err(|failure: Failure| failure.to_status())?;
        let locations = located.replicas.into_iter().map(|replica| Location {
            worker: replica.worker.to_string(),
            address: replica.address,
            zone: replica.zone,
        });
        Ok(Response::new(LocateReply {
            locations: locations.collect(),
            bytes: located.bytes,
            crc32c: located.crc32c,
        }))
    }
}
