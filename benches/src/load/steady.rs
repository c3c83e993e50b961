//! The load itself: clients that each ask one question after the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::asked::{Asked, Tally, Verdict};
use super::doors::Doors;
use super::questions::Questions;
use super::roamer::{Detours, Roamer};
use crate::client::Client;
use crate::report::say;

/// How long a client waits after a question that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// Clients that ask until [`Load::end`].
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<Result<Detours>>,
}

#[derive(Default)]
struct Shared {
    asked: Mutex<Vec<Asked>>,
    is_over: AtomicBool,
}

impl Load {
    /// Begins with so many clients, dealt to the coordinators in turn. Where they
    /// return, each comes back to its own when that was away.
    pub fn begin(doors: &Arc<Doors>, questions: &Arc<Questions>, clients: usize, returns: bool) -> Self {
        let shared = Arc::new(Shared::default());
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            let roamer = Roamer::new(Arc::clone(doors), number);
            let roamer = if returns { roamer.returning() } else { roamer };
            // Each is at another question.
            let first = number * questions.count() / clients;
            tasks.spawn(ask(roamer, Arc::clone(questions), first, Arc::clone(&shared)));
        }
        Self { shared, clients: tasks }
    }

    /// Begins clients that go on elsewhere, and lets them ask for so many seconds;
    /// since when all of them have been asking by then.
    pub async fn begin_measured(
        doors: &Arc<Doors>,
        questions: &Arc<Questions>,
        clients: usize,
        seconds: f64,
    ) -> (Self, Instant) {
        let load = Self::begin(doors, questions, clients, false);
        tokio::time::sleep(Duration::from_secs_f64(seconds / 4.0)).await;
        let since = Instant::now();
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        (load, since)
    }

    /// What was asked and answered so far.
    pub fn tally(&self) -> Tally {
        Tally::new(self.shared.asked.lock().clone())
    }

    /// Ends it: all that was asked, and how often clients went on elsewhere.
    ///
    /// # Errors
    /// When a client stopped.
    pub async fn end(mut self) -> Result<(Tally, Detours)> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let mut detours = Detours::default();
        while let Some(ended) = self.clients.join_next().await {
            detours.add(ended.context("a client stopped")??);
        }
        Ok((self.tally(), detours))
    }
}

async fn ask(
    mut roamer: Roamer,
    questions: Arc<Questions>,
    first: usize,
    shared: Arc<Shared>,
) -> Result<Detours> {
    let mut number = first;
    while !shared.is_over.load(Ordering::Relaxed) {
        let question = questions.at(number);
        number += 1;
        let sql = question.sql.as_str();
        let before = roamer.detours();
        let at = Instant::now();
        let answered =
            roamer.ask(move |mut client: Client| async move { client.query_with_schema(sql).await }).await;
        let ms = at.elapsed().as_secs_f64() * 1e3;
        let verdict = match &answered {
            Ok((schema, batches)) => question.judge(schema, batches)?,
            Err(error) => {
                say(format!("failed: {sql}: {error}"));
                Verdict::Failed
            }
        };
        let is_detour = roamer.detours() != before;
        shared.asked.lock().push(Asked { at, ms, verdict, is_detour });
        if verdict == Verdict::Failed {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(roamer.detours())
}
