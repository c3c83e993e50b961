//! What happened, as JSON lines on disk, as totals, and for the chart.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::faults::Fault;
use crate::report::{percentile, say};

/// The first column of the table.
const NAME_WIDTH_MIN: usize = 10;

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

/// What a node suffered, until it was whole again.
#[derive(Clone, Debug)]
pub(super) struct Suffered {
    pub(super) node: String,
    pub(super) fault: Fault,
    pub(super) from_s: f64,
    /// None: it still does.
    pub(super) to_s: Option<f64>,
}

impl Suffered {
    /// The name of its row in the table.
    fn row(&self) -> String {
        let fault = self.fault.name();
        if is_coordinator(&self.node) { format!("coordinator {fault}") } else { fault.to_owned() }
    }
}

fn is_coordinator(node: &str) -> bool {
    node.starts_with("coordinator")
}

/// Under which key a line names a node.
fn key_of(node: &str) -> &'static str {
    if is_coordinator(node) { "coordinator" } else { "worker" }
}

pub(super) struct Log {
    began: Instant,
    file: Option<Mutex<File>>,
    answers: Mutex<Vec<Answered>>,
    faults: Mutex<Vec<Suffered>>,
    /// Tries of statements that failed on coordinators that suffered.
    on_struck: AtomicUsize,
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
            on_struck: AtomicUsize::new(0),
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
    pub(super) fn fault(&self, node: &str, fault: Fault, lasting: Duration) {
        let from_s = self.began.elapsed().as_secs_f64();
        self.faults.lock().push(Suffered { node: node.to_owned(), fault, from_s, to_s: None });
        let lasting_ms = lasting.as_millis() as u64;
        self.line(json!({(key_of(node)): node, "fault": fault.name(), "lasting_ms": lasting_ms}));
    }

    /// The node is whole again.
    pub(super) fn healed(&self, node: &str) {
        let to_s = self.began.elapsed().as_secs_f64();
        let mut faults = self.faults.lock();
        let suffered = faults.iter_mut().rev().find(|suffered| suffered.node == node);
        if let Some(suffered) = suffered {
            suffered.to_s = Some(to_s);
        }
        drop(faults);
        self.line(json!({(key_of(node)): node, "fault": "healed"}));
    }

    /// The nodes that suffer now.
    pub(super) fn suffering(&self) -> Vec<String> {
        let faults = self.faults.lock();
        faults.iter().filter(|fault| fault.to_s.is_none()).map(|fault| fault.node.clone()).collect()
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

    /// Notes that a statement failed on a coordinator that suffered meanwhile,
    /// and is tried again elsewhere.
    pub(super) fn on_struck(&self, kind: &'static str, what: &str, coordinator: &str, why: &str) {
        self.on_struck.fetch_add(1, Ordering::Relaxed);
        self.line(json!({
            "kind": kind, "what": what, "coordinator": coordinator, "verdict": "OnStruck", "why": why,
        }));
    }

    /// The faults between then and now.
    fn during(&self, since_s: f64) -> Vec<String> {
        let faults = self.faults.lock();
        let meanwhile = faults.iter().filter(|fault| fault.to_s.is_none_or(|end| end >= since_s));
        meanwhile
            .map(|fault| format!("{} of {} at {:.1} s", fault.fault.name(), fault.node, fault.from_s))
            .collect()
    }

    pub(super) fn totals(&self) -> Totals {
        Totals {
            answers: self.answers.lock().clone(),
            faults: self.faults.lock().clone(),
            on_struck: self.on_struck.load(Ordering::Relaxed),
        }
    }
}

/// All that happened.
pub(super) struct Totals {
    pub(super) answers: Vec<Answered>,
    pub(super) faults: Vec<Suffered>,
    /// Tries of statements that failed on coordinators that suffered, and were
    /// answered elsewhere: none of the answers.
    pub(super) on_struck: usize,
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
        let mut kinds: BTreeMap<&str, Vec<&Answered>> = BTreeMap::new();
        for answer in &self.answers {
            kinds.entry(answer.kind).or_default().push(answer);
        }
        // Those of workers first.
        let mut faults: BTreeMap<(bool, Fault), (String, Vec<&Answered>)> = BTreeMap::new();
        for suffered in &self.faults {
            let met = |answer: &&Answered| {
                answer.asked_s <= suffered.to_s.unwrap_or(f64::MAX)
                    && answer.asked_s + answer.ms / 1e3 >= suffered.from_s
            };
            let kind = (is_coordinator(&suffered.node), suffered.fault);
            let (_, answers) = faults.entry(kind).or_insert_with(|| (suffered.row(), Vec::new()));
            answers.extend(self.answers.iter().filter(met));
        }
        let kinds = kinds.into_iter().map(|(kind, answers)| (kind.to_owned(), answers));
        let rows: Vec<(String, Vec<&Answered>)> = kinds.chain(faults.into_values()).collect();
        let width = rows.iter().map(|(name, _)| name.len()).fold(NAME_WIDTH_MIN, usize::max);
        let mut text = format!(
            "{:>width$}{:>10}{:>8}{:>8}{:>10}{:>10}{:>10}",
            "", "answers", "wrong", "failed", "p50 ms", "p99 ms", "worst ms"
        );
        for (name, answers) in &rows {
            text.push_str(&format!("\n{name:>width$}"));
            push_row(&mut text, answers);
        }
        text
    }
}

fn push_row(text: &mut String, answers: &[&Answered]) {
    let ms: Vec<f64> = answers.iter().map(|answer| answer.ms).collect();
    let of = |wanted: Verdict| answers.iter().filter(|answer| answer.verdict == wanted).count();
    text.push_str(&format!(
        "{:>10}{:>8}{:>8}{:>10.0}{:>10.0}{:>10.0}",
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
    fn faults_at_the_same_time_end_each_for_itself() {
        let log = Log::new(None).unwrap();
        log.fault("worker-2", Fault::Kill, Duration::ZERO);
        log.fault("coordinator-2", Fault::Kill, Duration::ZERO);
        assert_eq!(log.suffering(), ["worker-2", "coordinator-2"]);
        log.healed("worker-2");
        assert_eq!(log.suffering(), ["coordinator-2"]);
        log.healed("coordinator-2");
        assert_eq!(log.suffering(), Vec::<String>::new());
        let totals = log.totals();
        assert!(totals.faults.iter().all(|suffered| suffered.to_s.is_some()));
        let table = totals.table();
        let rows: Vec<&str> = table.lines().skip(1).collect();
        assert_eq!(rows.len(), 2, "{table}");
        assert!(
            rows[0].starts_with("            kill  ") && rows[1].starts_with("coordinator kill  "),
            "{table}"
        );
    }

    #[test]
    fn coordinators_are_named_as_what_they_are_and_what_fails_on_them_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chaos.jsonl");
        let log = Log::new(Some(&path)).unwrap();
        log.fault("coordinator", Fault::Cut, Duration::from_millis(300));
        log.on_struck("scan", "lineitem", "coordinator", "no answer");
        log.healed("coordinator");
        let totals = log.totals();
        assert_eq!((totals.answers.len(), totals.failed(), totals.on_struck), (0, 0, 1));
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for line in &mut lines {
            line["at_ms"].take();
        }
        let expected = [
            json!({"at_ms": null, "coordinator": "coordinator", "fault": "cut", "lasting_ms": 300}),
            json!({
                "at_ms": null, "kind": "scan", "what": "lineitem", "coordinator": "coordinator",
                "verdict": "OnStruck", "why": "no answer",
            }),
            json!({"at_ms": null, "coordinator": "coordinator", "fault": "healed"}),
        ];
        assert_eq!(lines, expected);
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
