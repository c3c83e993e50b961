//! What happened, as JSON lines on disk, as totals, and for the chart.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::faults::Fault;
use crate::report::{percentile, say};

/// How an answer compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    Failed,
}

/// An answer of a kind of statement.
#[derive(Clone, Debug)]
pub(super) struct Answered {
    pub(super) kind: &'static str,
    /// When it was asked for, in seconds since the run began.
    pub(super) asked_s: f64,
    pub(super) ms: f64,
    pub(super) verdict: Verdict,
}

/// What a worker suffered, until it was live again.
#[derive(Clone, Debug)]
pub(super) struct Suffered {
    pub(super) worker: String,
    pub(super) fault: Fault,
    pub(super) from_s: f64,
    /// None: it still does.
    pub(super) to_s: Option<f64>,
}

pub(super) struct Log {
    began: Instant,
    file: Option<Mutex<File>>,
    answers: Mutex<Vec<Answered>>,
    faults: Mutex<Vec<Suffered>>,
}

impl Log {
    pub(super) fn new(path: Option<&Path>) -> Result<Self> {
        let file = path
            .map(|path| File::create(path).with_context(|| format!("write {}", path.display())))
            .transpose()?;
        Ok(Self {
            began: Instant::now(),
            file: file.map(Mutex::new),
            answers: Mutex::default(),
            faults: Mutex::default(),
        })
    }

    fn line(&self, mut line: Value) {
        if let Some(file) = &self.file {
            line["at_ms"] = json!(self.began.elapsed().as_millis() as u64);
            // The run goes on also when its log cannot be kept.
            let _written = writeln!(file.lock(), "{line}");
        }
    }

    /// A fault strikes.
    pub(super) fn fault(&self, worker: &str, fault: Fault, lasting: Duration) {
        let from_s = self.began.elapsed().as_secs_f64();
        self.faults.lock().push(Suffered { worker: worker.to_owned(), fault, from_s, to_s: None });
        let lasting_ms = lasting.as_millis() as u64;
        self.line(json!({"worker": worker, "fault": fault.name(), "lasting_ms": lasting_ms}));
    }

    /// The worker is live again.
    pub(super) fn healed(&self, worker: &str) {
        if let Some(last) = self.faults.lock().last_mut() {
            last.to_s = Some(self.began.elapsed().as_secs_f64());
        }
        self.line(json!({"worker": worker, "fault": "healed"}));
    }

    /// Something worth knowing about the fault under way.
    pub(super) fn note(&self, what: &str) {
        self.line(json!({ "note": what }));
    }

    /// Notes an answer of a kind of statement that was asked for at `asked`.
    pub(super) fn answer(
        &self,
        kind: &'static str,
        what: &str,
        asked: Instant,
        outcome: Result<(), (Verdict, String)>,
    ) {
        let elapsed = asked.elapsed();
        let (verdict, why) = match outcome {
            Ok(()) => (Verdict::Right, None),
            Err((verdict, why)) => (verdict, Some(why)),
        };
        let asked_s = asked.saturating_duration_since(self.began).as_secs_f64();
        let ms = elapsed.as_secs_f64() * 1e3;
        self.answers.lock().push(Answered { kind, asked_s, ms, verdict });
        let during = self.during(asked_s);
        self.line(json!({
            "kind": kind,
            "what": what,
            "elapsed_ms": ms as u64,
            "verdict": format!("{verdict:?}"),
            "why": why,
            "during": during,
        }));
        if let Some(why) = why {
            let during = if during.is_empty() { "no fault".to_owned() } else { during.join(", ") };
            say(format!(
                "{verdict:?}: {kind} {what}, asked after {asked_s:.1} s, answered {ms:.0} ms later, \
                 during {during}: {why}"
            ));
        }
    }

    /// The faults between then and now.
    fn during(&self, since_s: f64) -> Vec<String> {
        let faults = self.faults.lock();
        let meanwhile = faults.iter().filter(|fault| fault.to_s.is_none_or(|end| end >= since_s));
        meanwhile
            .map(|fault| format!("{} of {} at {:.1} s", fault.fault.name(), fault.worker, fault.from_s))
            .collect()
    }

    pub(super) fn totals(&self) -> Totals {
        Totals { answers: self.answers.lock().clone(), faults: self.faults.lock().clone() }
    }
}

/// All that happened.
pub(super) struct Totals {
    pub(super) answers: Vec<Answered>,
    pub(super) faults: Vec<Suffered>,
}

impl Totals {
    pub(super) fn wrong(&self) -> usize {
        self.answers.iter().filter(|answer| answer.verdict == Verdict::Wrong).count()
    }

    pub(super) fn failed(&self) -> usize {
        self.answers.iter().filter(|answer| answer.verdict == Verdict::Failed).count()
    }

    pub(super) fn worst_ms(&self) -> f64 {
        self.answers.iter().map(|answer| answer.ms).fold(0.0, f64::max)
    }

    /// A row for each kind of statement, and for each kind of fault what was
    /// answered during it.
    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:>10}{:>10}{:>8}{:>8}{:>10}{:>10}{:>10}",
            "", "answers", "wrong", "failed", "p50 ms", "p99 ms", "worst ms"
        );
        let mut kinds: BTreeMap<&str, Vec<&Answered>> = BTreeMap::new();
        for answer in &self.answers {
            kinds.entry(answer.kind).or_default().push(answer);
        }
        kinds.iter().for_each(|(kind, answers)| push_row(&mut text, kind, answers));
        let mut faults: BTreeMap<Fault, Vec<&Answered>> = BTreeMap::new();
        for suffered in &self.faults {
            let met = |answer: &&Answered| {
                answer.asked_s <= suffered.to_s.unwrap_or(f64::MAX)
                    && answer.asked_s + answer.ms / 1e3 >= suffered.from_s
            };
            faults.entry(suffered.fault).or_default().extend(self.answers.iter().filter(met));
        }
        for (fault, answers) in &faults {
            push_row(&mut text, fault.name(), answers);
        }
        text
    }
}

fn push_row(text: &mut String, name: &str, answers: &[&Answered]) {
    let ms: Vec<f64> = answers.iter().map(|answer| answer.ms).collect();
    let of = |wanted: Verdict| answers.iter().filter(|answer| answer.verdict == wanted).count();
    text.push_str(&format!(
        "\n{name:>10}{:>10}{:>8}{:>8}{:>10.0}{:>10.0}{:>10.0}",
        answers.len(),
        of(Verdict::Wrong),
        of(Verdict::Failed),
        percentile(&ms, 0.5),
        percentile(&ms, 0.99),
        percentile(&ms, 1.0)
    ));
}
