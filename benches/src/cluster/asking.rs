//! What coordinators say of the cluster: who has joined, and who leads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tonic::Code;

use super::Cluster;
use crate::client::{Client, ClientError};

/// How long something may take until all coordinators say that it is so.
const SAID_WITHIN: Duration = Duration::from_secs(30);
/// How often they are asked meanwhile.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// How long one of them may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// What one coordinator answers to a query, a line for each row.
#[derive(Debug)]
struct Said {
    coordinator: String,
    answer: Result<String, ClientError>,
}

impl Said {
    /// Whether it said a number of at least so many.
    fn is_at_least(&self, count: usize) -> bool {
        let said = self.answer.as_ref().ok().and_then(|text| text.trim().parse::<usize>().ok());
        said.is_some_and(|said| said >= count)
    }
}

impl Cluster {
    /// Waits until `workers` workers are live, as each coordinator says that
    /// can answer.
    ///
    /// # Errors
    /// With the ends of the logs, after half a minute.
    pub fn wait_until_joined(&self, workers: usize) -> Result<()> {
        let sql = "SELECT count(*) FROM system.workers WHERE state = 'live'";
        self.asked_until(&format!("{workers} workers"), sql, |said| {
            said.iter().all(|said| said.is_at_least(workers)).then_some(())
        })
    }

    /// Waits until so many coordinators decide together, as each says that can
    /// answer.
    ///
    /// # Errors
    /// As [`Cluster::wait_until_joined`].
    pub fn wait_until_voting(&self, coordinators: usize) -> Result<()> {
        let sql = "SELECT count(*) FROM system.coordinators WHERE role IN ('leader', 'follower')";
        self.asked_until(&format!("{coordinators} coordinators"), sql, |said| {
            said.iter().all(|said| said.is_at_least(coordinators)).then_some(())
        })
    }

    /// Waits until every coordinator that can answer has caught up with the
    /// others, and so counts the rows of this table; it must have some.
    ///
    /// # Errors
    /// As [`Cluster::wait_until_joined`].
    pub fn wait_until_caught_up(&self, table: &str) -> Result<()> {
        self.asked_until("all caught up", &format!("SELECT count(*) FROM {table}"), |said| {
            said.iter().all(|said| said.is_at_least(1)).then_some(())
        })
    }

    /// Waits until no copy of a shard is still to come, as every coordinator says
    /// that can answer.
    ///
    /// # Errors
    /// As [`Cluster::wait_until_joined`].
    pub fn wait_until_complete(&self) -> Result<()> {
        let sql = "SELECT CASE WHEN count(*) = 0 THEN 1 ELSE 0 END FROM system.moves";
        self.asked_until("all copies", sql, |said| said.iter().all(|said| said.is_at_least(1)).then_some(()))
    }

    /// The name of the coordinator that leads, once most of those that can
    /// answer say that it does, and it can answer itself.
    ///
    /// # Errors
    /// As [`Cluster::wait_until_joined`].
    pub fn leader(&self) -> Result<String> {
        let sql = "SELECT address FROM system.coordinators WHERE role = 'leader'";
        self.asked_until("a leader", sql, |said| {
            let answers = said.iter().filter_map(|said| said.answer.as_ref().ok());
            let named: Vec<String> = answers.filter_map(|address| self.coordinator_at(address)).collect();
            let votes = |leader: &String| named.iter().filter(|name| *name == leader).count();
            let elected = named.iter().find(|leader| 2 * votes(leader) > said.len())?;
            said.iter().any(|said| said.coordinator == *elected).then(|| elected.clone())
        })
    }

    fn coordinator_at(&self, address: &str) -> Option<String> {
        let address = address.trim().trim_end_matches('/');
        let nodes = self.nodes();
        let node = nodes.iter().find(|node| node.url().is_some_and(|url| url == address))?;
        Some(node.name().to_owned())
    }

    /// Asks until `judge` finds what it looks for in the answers.
    fn asked_until<T: Send>(
        &self,
        what: &str,
        sql: &str,
        judge: impl Fn(&[Said]) -> Option<T> + Sync,
    ) -> Result<T> {
        let asking = async {
            let deadline = Instant::now() + SAID_WITHIN;
            loop {
                let said = self.asked(sql).await;
                let found = if said.is_empty() { None } else { judge(&said) };
                if let Some(found) = found {
                    return Ok(found);
                }
                if Instant::now() > deadline {
                    bail!("after {SAID_WITHIN:?} not {what} but {said:?}");
                }
                tokio::time::sleep(ASK_INTERVAL).await;
            }
        };
        // On a thread of its own: whoever calls may be on a runtime, and that
        // cannot wait for another.
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(|| -> Result<T> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(asking)
            });
            asking.join().map_err(|_| anyhow!("to ask for {what} panicked"))
        });
        asked?.with_context(|| self.log_tails())
    }

    /// What each coordinator says that can answer.
    async fn asked(&self, sql: &str) -> Vec<Said> {
        let mut all = Vec::new();
        for (coordinator, url) in self.answering() {
            let asking = async { Client::connect(&url).await?.text(sql).await };
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await.unwrap_or_else(|_| {
                let message = format!("no answer within {ANSWER_TIMEOUT:?}");
                Err(ClientError { code: Code::DeadlineExceeded, message })
            });
            all.push(Said { coordinator, answer });
        }
        all
    }

    /// Coordinators that run, are not frozen and not cut off: their names and
    /// where clients connect.
    fn answering(&self) -> Vec<(String, String)> {
        let is_cut = |name: &str| self.links.as_ref().is_some_and(|links| links.cut_of(name).is_some());
        self.nodes()
            .iter()
            .filter(|node| node.is_coordinator() && node.can_answer() && !is_cut(node.name()))
            .filter_map(|node| Some((node.name().to_owned(), format!("http://{}", node.address()?))))
            .collect()
    }
}
