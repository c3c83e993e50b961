//! Which coordinator leads, as the cluster says.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::{DemoCluster, NodeState};
use crate::client::{Client, text_rows};

/// How long the answer may take; without a majority there is none.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Who asks.
const USER: &str = "demo";

/// The role of each coordinator, by where it is reached.
#[derive(Default)]
pub(super) struct Roles(BTreeMap<String, String>);

impl Roles {
    /// Asks for them; nothing is known where nobody answers.
    pub(super) async fn ask(cluster: &DemoCluster) -> Self {
        let asking = async {
            let client = Client::connect(&cluster.addresses()?, USER).await?;
            client.collect("SELECT address, role FROM system.coordinators").await
        };
        let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_TIMEOUT, asking).await else {
            return Self::default();
        };
        let roles = text_rows(&answer).into_iter().filter_map(|row| match row.as_slice() {
            [Some(address), Some(role)] => {
                Some((address.trim_start_matches("http://").to_owned(), role.clone()))
            }
            _ => None,
        });
        Self(roles.collect())
    }

    /// What a node is in the cluster; empty where that is not known.
    pub(super) fn of(&self, node: &NodeState) -> &str {
        if !node.is_coordinator {
            return "worker";
        }
        self.0.get(&node.reached_at.to_string()).map_or("", String::as_str)
    }
}
