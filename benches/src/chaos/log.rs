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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_on_disk_is_json_that_says_when_and_what() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chaos.jsonl");
        let log = Log::new(Some(&path)).unwrap();
        log.fault("worker-2", Fault::CutIn, Duration::from_millis(300));
        log.note("a \"word\"\nor two");
        let asked = Instant::now();
        log.answer("scan", "lineitem", asked, Ok(()));
        log.answer("lookup", "97", asked, Err((Verdict::Wrong, "1 instead of 2".to_owned())));
        log.healed("worker-2");

        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut take = |line: usize, key: &str| lines[line][key].take();
        let at_ms: Vec<u64> = (0..5).map(|line| take(line, "at_ms").as_u64().unwrap()).collect();
        assert!(at_ms.is_sorted(), "{at_ms:?}");
        for line in [2, 3] {
            assert!(take(line, "elapsed_ms").is_u64());
            let during = take(line, "during");
            let during = during.as_array().unwrap();
            assert_eq!(during.len(), 1, "{during:?}");
            assert!(during[0].as_str().unwrap().starts_with("cut in of worker-2 at "), "{during:?}");
        }
        // What was looked at is null now, and yet there.
        let answer = |kind: &str, what: &str, verdict: &str, why: Option<&str>| {
            json!({
                "at_ms": null, "kind": kind, "what": what, "elapsed_ms": null, "verdict": verdict,
                "why": why, "during": null,
            })
        };
        let expected = [
            json!({"at_ms": null, "worker": "worker-2", "fault": "cut in", "lasting_ms": 300}),
            json!({"at_ms": null, "note": "a \"word\"\nor two"}),
            answer("scan", "lineitem", "Right", None),
            answer("lookup", "97", "Wrong", Some("1 instead of 2")),
            json!({"at_ms": null, "worker": "worker-2", "fault": "healed"}),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_answer_names_the_faults_while_it_was_waited_for() {
        let log = Log::new(None).unwrap();
        let suffer = |worker: &str, fault| log.fault(worker, fault, Duration::ZERO);
        let named = |since_s: f64| {
            let named = log.during(since_s).into_iter();
            named.filter_map(|named| Some(named.split_once(" at ")?.0.to_owned())).collect::<Vec<_>>()
        };
        suffer("worker-1", Fault::Kill);
        log.healed("worker-1");
        suffer("worker-2", Fault::Cut);
        // Times differ.
        std::thread::sleep(Duration::from_millis(2));
        let asked_s = log.began.elapsed().as_secs_f64();
        // What was over before is not named, and what lasts is.
        assert_eq!(named(asked_s), ["cut of worker-2"]);
        log.healed("worker-2");
        suffer("worker-3", Fault::Freeze);
        log.healed("worker-3");
        suffer("worker-1", Fault::Slow);
        assert_eq!(named(asked_s), ["cut of worker-2", "freeze of worker-3", "slow of worker-1"]);
        assert_eq!(named(0.0).len(), 4);
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(named(log.began.elapsed().as_secs_f64()), ["slow of worker-1"]);
    }

    #[test]
    fn wrong_and_failed_answers_are_told_apart() {
        let log = Log::new(None).unwrap();
        let answer = |outcome| log.answer("lookup", "97", Instant::now(), outcome);
        answer(Ok(()));
        answer(Err((Verdict::Wrong, "1 instead of 2".to_owned())));
        for _ in 0..2 {
            answer(Err((Verdict::Failed, "no live replica".to_owned())));
        }
        let totals = log.totals();
        assert_eq!((totals.answers.len(), totals.wrong(), totals.failed()), (4, 1, 2));
    }
}
