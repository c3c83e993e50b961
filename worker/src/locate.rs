//! Asks the coordinators where a segment can be read.

use std::time::Duration;

use async_trait::async_trait;
use shoal_data::{Locate, Located, Replica, SegmentName};
use shoal_proto::cluster::LocateRequest;
use shoal_proto::cluster::cluster_client::ClusterClient;
use shoal_proto::{Channels, ErrorCode, Failure, WorkerId};

/// How long one coordinator may take to answer.
const LOCATE_MAX: Duration = Duration::from_secs(2);

/// [`Locate`] through the first coordinator that answers.
#[derive(Clone, Debug)]
pub struct CoordinatorLocate {
    coordinators: Vec<String>,
    channels: Channels,
}

impl CoordinatorLocate {
    /// Asks these coordinators, in order.
    pub fn new(coordinators: Vec<String>, channels: Channels) -> Self {
        Self { coordinators, channels }
    }

    async fn ask(&self, address: &str, name: &SegmentName) -> Result<Located, Failure> {
        let mut client = ClusterClient::new(self.channels.get(address)?);
        let asked = client.locate(LocateRequest { name: name.to_string() });
        let reply = tokio::time::timeout(LOCATE_MAX, asked)
            .await
            .map_err(|_| {
                Failure::new(ErrorCode::Unavailable, format!("coordinator {address} does not answer"))
            })?
            .map_err(|status| Failure::of_call(&status))?
            .into_inner();
        let replicas = reply
            .locations
            .into_iter()
            .map(|location| Replica { worker: WorkerId::new(location.worker), address: location.address });
        Ok(Located { replicas: replicas.collect(), bytes: reply.bytes, crc32c: reply.crc32c })
    }
}

#[async_trait]
impl Locate for CoordinatorLocate {
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure> {
        let mut last = Failure::new(ErrorCode::Unavailable, "no coordinator is known");
        for address in &self.coordinators {
            match self.ask(address, name).await {
                Ok(located) => return Ok(located),
                Err(failure) if failure.code.is_retryable() => last = failure,
                Err(failure) => return Err(failure),
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::BoxStream;
    use shoal_proto::cluster::cluster_server::{Cluster, ClusterServer};
    use shoal_proto::cluster::{Beat, JoinReply, JoinRequest, LocateReply, Orders};
    use shoal_proto::server::{self, Incoming};
    use shoal_proto::{SegmentId, TableId};
    use tonic::{Request, Response, Status, Streaming};

    use super::*;

    struct Coordinator {
        /// It hears what it is asked, and does not answer.
        is_mute: bool,
    }

    #[async_trait]
    impl Cluster for Coordinator {
        type HeartbeatStream = BoxStream<'static, Result<Orders, Status>>;

        async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
            Err(Status::unimplemented("not asked for"))
        }

        async fn heartbeat(
            &self,
            _: Request<Streaming<Beat>>,
        ) -> Result<Response<Self::HeartbeatStream>, Status> {
            Err(Status::unimplemented("not asked for"))
        }

        async fn locate(&self, _: Request<LocateRequest>) -> Result<Response<LocateReply>, Status> {
            if self.is_mute {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(LocateReply { bytes: 7, ..LocateReply::default() }))
        }
    }

    async fn coordinator(is_mute: bool) -> String {
        let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let service = ClusterServer::new(Coordinator { is_mute });
        tokio::spawn(server::builder().add_service(service).serve_with_incoming(Incoming::new(listener)));
        format!("http://{address}")
    }

    /// What these coordinators say, within two seconds for one that is mute and
    /// some time for a busy machine.
    async fn located(coordinators: Vec<String>) -> Result<Located, Failure> {
        let locate = CoordinatorLocate::new(coordinators, Channels::new(tokio::runtime::Handle::current()));
        let name = SegmentName { table: TableId(1), shard: 0, segment: SegmentId::random() };
        let located = tokio::time::timeout(Duration::from_secs(4), locate.locate(&name)).await;
        located.expect("a coordinator that is mute is still waited for")
    }

    #[tokio::test]
    async fn a_coordinator_that_does_not_answer_is_passed_over() {
        let (mute, other) = (coordinator(true).await, coordinator(false).await);
        let (alone, before_another) =
            tokio::join!(located(vec![mute.clone()]), located(vec![mute.clone(), other]));
        let failure = alone.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
        assert!(failure.message.contains(&mute), "{failure}");
        assert_eq!(before_another.unwrap().bytes, 7);
    }
}
