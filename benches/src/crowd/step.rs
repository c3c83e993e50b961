//! One step: so many clients, each of which asks its next question as soon as
//! the last one is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use super::class::Class;
use super::deal::Dealer;
use super::level::Level;
use super::questions::{Question, Questions};
use super::session::{Session, many};
use crate::load::{Asked, Verdict};
use crate::report::say;

/// A step that asked so many ends with the deck that it is in.
const QUESTIONS_MAX: usize = 500_000;
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(120);
/// How long a client waits after a question that failed.
const PAUSE: Duration = Duration::from_millis(50);
/// Of what goes wrong in one step, so much is told.
const TOLD_MAX: usize = 10;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step<'a> {
    /// Whom to ask.
    pub(super) url: &'a str,
    /// How many ask at once.
    pub(super) clients: usize,
    /// For so long they begin decks of questions, and ask what is left of the last.
    pub(super) seconds: f64,
    /// Decides what they ask.
    pub(super) seed: u64,
}

/// What the clients of a step share.
struct Shared {
    questions: Arc<Questions>,
    until: Instant,
    dealer: Mutex<Dealer>,
    told: AtomicUsize,
}

impl Shared {
    /// What is asked next, by whoever is free; none at the end of the step.
    fn next(&self) -> Option<&Question> {
        let is_late = Instant::now() >= self.until;
        let next = self.dealer.lock().next(is_late);
        next.and_then(|(class, which)| self.questions.get(class, which))
    }

    fn tell(&self, what: &str, question: &Question, why: &str) {
        if self.told.fetch_add(1, Ordering::Relaxed) < TOLD_MAX {
            say(format!("{what}: {}: {why}", question.describe()));
        }
    }
}

/// Runs it: from the first question until the last answer.
///
/// # Errors
/// When the clients cannot connect, or one stopped.
pub(super) async fn run(step: Step<'_>, questions: &Arc<Questions>) -> Result<Level> {
    let sessions = many(step.clients, || Session::open(step.url)).await?;
    let began = Instant::now();
    let shared = Arc::new(Shared {
        questions: Arc::clone(questions),
        until: began + Duration::from_secs_f64(step.seconds),
        dealer: Mutex::new(Dealer::new(questions.kinds(), StdRng::seed_from_u64(step.seed), QUESTIONS_MAX)),
        told: AtomicUsize::new(0),
    });
    let mut clients = JoinSet::new();
    for session in sessions {
        clients.spawn(ask(session, Arc::clone(&shared)));
    }
    let mut asked = Vec::new();
    let mut sessions = Vec::with_capacity(step.clients);
    while let Some(ended) = clients.join_next().await {
        let (session, its) = ended.context("a client stopped")?;
        sessions.push(session);
        asked.extend(its);
    }
    let seconds = began.elapsed().as_secs_f64();
    for session in sessions {
        session.close().await;
    }
    Ok(Level::new(step.clients, seconds, &asked))
}

async fn ask(mut session: Session, shared: Arc<Shared>) -> (Session, Vec<(Class, Asked)>) {
    let mut asked = Vec::new();
    while let Some(question) = shared.next() {
        let at = Instant::now();
        let answered = tokio::time::timeout(ANSWER_MAX, session.ask(&question.form)).await;
        let ms = at.elapsed().as_secs_f64() * 1e3;
        let verdict = match answered {
            Ok(Ok((schema, batches))) => match question.check(&schema, &batches) {
                Ok(()) => Verdict::Right,
                Err(difference) => {
                    shared.tell("wrong", question, &difference.to_string());
                    Verdict::Wrong
                }
            },
            Ok(Err(error)) => {
                shared.tell("failed", question, &error.to_string());
                Verdict::Failed
            }
            Err(_) => {
                shared.tell("failed", question, &format!("no answer within {ANSWER_MAX:?}"));
                Verdict::Failed
            }
        };
        asked.push((question.class, Asked { at, ms, verdict, is_detour: false }));
        if verdict == Verdict::Failed {
            tokio::time::sleep(PAUSE).await;
        }
    }
    (session, asked)
}

/// Has one client ask a question of each kind, and every query of TPC-H, so that
/// files and plans are where they will be.
///
/// # Errors
/// When an answer is missing or wrong.
pub(super) async fn warm_up(url: &str, questions: &Questions) -> Result<()> {
    let mut session = Session::open(url).await?;
    for question in questions.of_each_kind() {
        let answered = session.ask(&question.form).await;
        let (schema, batches) = answered.with_context(|| question.describe())?;
        question.check(&schema, &batches).with_context(|| question.describe())?;
    }
    session.close().await;
    Ok(())
}
