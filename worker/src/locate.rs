//! Asks the coordinators where a segment can be read.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shoal_data::{Locate, Located, Replica, SegmentName};
use shoal_proto::cluster::LocateRequest;
use shoal_proto::cluster::cluster_client::ClusterClient;
use shoal_proto::{Channels, ErrorCode, Failure, WorkerId};

use crate::coordinators::Coordinators;

/// How long one coordinator may take to answer.
const LOCATE_MAX: Duration = Duration::from_secs(2);

/// [`Locate`] through the first coordinator that knows the segment.
#[derive(Clone, Debug)]
pub struct CoordinatorLocate {
    coordinators: Arc<Coordinators>,
    channels: Channels,
}

impl CoordinatorLocate {
    /// Asks these coordinators, first those that are connected.
    pub fn new(coordinators: Arc<Coordinators>, channels: Channels) -> Self {
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
        let replicas = reply.locations.into_iter().map(|location| Replica {
            worker: WorkerId::new(location.worker),
            address: location.address,
            zone: location.zone,
        });
        Ok(Located { replicas: replicas.collect(), bytes: reply.bytes, crc32c: reply.crc32c })
    }
}

#[async_trait]
impl Locate for CoordinatorLocate {
    async fn locate(&self, name: &SegmentName) -> Result<Located, Failure> {
        let (mut unanswered, mut unknown) = (None, None);
        for address in self.coordinators.in_order() {
            match self.ask(&address, name).await {
                Ok(located) => return Ok(located),
                Err(failure) if failure.code.is_retryable() => unanswered = Some(failure),
                // It may be behind the others.
                Err(failure) if failure.code == ErrorCode::NotFound => unknown = Some(failure),
                Err(failure) => return Err(failure),
            }
        }
        let nobody = || Failure::new(ErrorCode::Unavailable, "no coordinator is known");
        Err(unanswered.or(unknown).unwrap_or_else(nobody))
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
    use crate::coordinators::DrainWord;

    /// What a coordinator does when it is asked.
    #[derive(Clone, Copy)]
    enum Answer {
        Never,
        Unknown,
        Known,
    }

    #[async_trait]
    impl Cluster for Answer {
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
            match self {
                Self::Never => std::future::pending().await,
                Self::Unknown => Err(Status::not_found("no such segment")),
                Self::Known => Ok(Response::new(LocateReply { bytes: 7, ..LocateReply::default() })),
            }
        }
    }

    async fn coordinator(answer: Answer) -> String {
        let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let service = ClusterServer::new(answer);
        tokio::spawn(server::builder().add_service(service).serve_with_incoming(Incoming::new(listener)));
        format!("http://{address}")
    }

    /// What these coordinators say within the limit.
    async fn located(coordinators: Coordinators, limit: Duration) -> Result<Located, Failure> {
        let channels = Channels::new(tokio::runtime::Handle::current());
        let locate = CoordinatorLocate::new(Arc::new(coordinators), channels);
        let name = SegmentName { table: TableId(1), shard: 0, segment: SegmentId::random() };
        let located = tokio::time::timeout(limit, locate.locate(&name)).await;
        located.expect("a coordinator that is mute is still waited for")
    }

    /// For one that is mute, and some time for a busy machine.
    const WITH_ONE_MUTE: Duration = Duration::from_secs(4);

    #[tokio::test]
    async fn a_coordinator_that_does_not_answer_is_passed_over() {
        let (mute, other) = (coordinator(Answer::Never).await, coordinator(Answer::Known).await);
        let (alone, before_another) = tokio::join!(
            located(Coordinators::new([mute.clone()]), WITH_ONE_MUTE),
            located(Coordinators::new([mute.clone(), other]), WITH_ONE_MUTE)
        );
        let failure = alone.unwrap_err();
        assert_eq!(failure.code, ErrorCode::Unavailable, "{failure}");
        assert!(failure.message.contains(&mute), "{failure}");
        assert_eq!(before_another.unwrap().bytes, 7);
    }

    #[tokio::test]
    async fn whoever_is_connected_is_asked_first() {
        let (mute, other) = (coordinator(Answer::Never).await, coordinator(Answer::Known).await);
        let coordinators = Coordinators::new([mute, other.clone()]);
        coordinators.heard(&other, false, DrainWord::default());
        assert_eq!(located(coordinators, LOCATE_MAX).await.unwrap().bytes, 7);
    }

    #[tokio::test]
    async fn only_when_nobody_knows_a_segment_there_is_none() {
        let [behind, mute, other] = [Answer::Unknown, Answer::Never, Answer::Known].map(coordinator);
        let (behind, mute, other) = tokio::join!(behind, mute, other);
        for (coordinators, expected) in [
            (vec![behind.clone()], Err(ErrorCode::NotFound)),
            (vec![behind.clone(), other], Ok(7)),
            // It may know it.
            (vec![mute, behind], Err(ErrorCode::Unavailable)),
        ] {
            let said = located(Coordinators::new(coordinators), WITH_ONE_MUTE).await;
            assert_eq!(said.map(|located| located.bytes).map_err(|failure| failure.code), expected);
        }
    }
}
