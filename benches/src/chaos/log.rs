//! What happened, as JSON lines on disk and as totals.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;

use crate::report::{percentile, say};

/// How an answer compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    Failed,
}

pub(super) struct Log {
    began: Instant,
    file: Option<Mutex<File>>,
    answers: Mutex<BTreeMap<&'static str, Vec<(Verdict, f64)>>>,
}

impl Log {
    pub(super) fn new(path: Option<&Path>) -> Result<Self> {
        let file = path
            .map(|path| File::create(path).with_context(|| format!("write {}", path.display())))
            .transpose()?;
        Ok(Self { began: Instant::now(), file: file.map(Mutex::new), answers: Mutex::default() })
    }

    fn line(&self, line: &serde_json::Value) {
        if let Some(file) = &self.file {
            // The run goes on also when its log cannot be kept.
            let _written = writeln!(file.lock(), "{line}");
        }
    }

    pub(super) fn fault(&self, worker: &str, fault: &str, lasting: Duration) {
        self.line(&serde_json::json!({
            "at_ms": self.began.elapsed().as_millis() as u64,
            "worker": worker,
            "fault": fault,
            "lasting_ms": lasting.as_millis() as u64,
        }));
    }

    /// Notes an answer of a kind of statement.
    pub(super) fn answer(
        &self,
        kind: &'static str,
        what: &str,
        elapsed: Duration,
        outcome: Result<(), (Verdict, String)>,
    ) {
        let (verdict, why) = match outcome {
            Ok(()) => (Verdict::Right, None),
            Err((verdict, why)) => (verdict, Some(why)),
        };
        self.answers.lock().entry(kind).or_default().push((verdict, elapsed.as_secs_f64() * 1e3));
        self.line(&serde_json::json!({
            "at_ms": self.began.elapsed().as_millis() as u64,
            "kind": kind,
            "what": what,
            "elapsed_ms": elapsed.as_millis() as u64,
            "verdict": format!("{verdict:?}"),
            "why": why,
        }));
        if let Some(why) = why {
            say(format!("{verdict:?}: {kind} {what}: {why}"));
        }
    }

    pub(super) fn totals(&self) -> Totals {
        Totals(self.answers.lock().clone())
    }
}

/// All answers by kind.
pub(super) struct Totals(BTreeMap<&'static str, Vec<(Verdict, f64)>>);

impl Totals {
    fn count(&self, wanted: Option<Verdict>) -> usize {
        let all = self.0.values().flatten();
        all.filter(|(verdict, _)| wanted.is_none_or(|wanted| *verdict == wanted)).count()
    }

    pub(super) fn answers(&self) -> usize {
        self.count(None)
    }

    pub(super) fn wrong(&self) -> usize {
        self.count(Some(Verdict::Wrong))
    }

    pub(super) fn failed(&self) -> usize {
        self.count(Some(Verdict::Failed))
    }

    pub(super) fn worst_ms(&self) -> f64 {
        self.0.values().flatten().map(|(_, ms)| *ms).fold(0.0, f64::max)
    }

    pub(super) fn table(&self) -> String {
        let mut text = format!(
            "{:>8}{:>10}{:>8}{:>8}{:>10}{:>10}{:>10}",
            "", "answers", "wrong", "failed", "p50 ms", "p99 ms", "worst ms"
        );
        for (kind, answers) in &self.0 {
            let ms: Vec<f64> = answers.iter().map(|(_, ms)| *ms).collect();
            let of = |wanted: Verdict| answers.iter().filter(|(verdict, _)| *verdict == wanted).count();
            text.push_str(&format!(
                "\n{kind:>8}{:>10}{:>8}{:>8}{:>10.0}{:>10.0}{:>10.0}",
                answers.len(),
                of(Verdict::Wrong),
                of(Verdict::Failed),
                percentile(&ms, 0.5),
                percentile(&ms, 0.99),
                percentile(&ms, 1.0)
            ));
        }
        text
    }
}
