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
            .map_err(|status| Failure::from_status(&status))?
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
