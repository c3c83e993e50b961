//! The demo as a person meets it: the right answer, and nothing left behind,
//! however it ends.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::talk::Talk;

/// How long the nodes may take to be gone after the demo is.
const GONE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long something that must come may take.
const COMES_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Of the six faults of a drill so many must lose a worker, in one of so many
/// drills.
const FAULTS_NOTICED_MIN: u64 = 5;
const DRILLS_MAX: usize = 3;
/// The smallest demo that survives a worker.
const SMALL: [&str; 9] =
    ["demo", "--scale", "0.01", "--coordinators", "1", "--workers", "2", "--replicas", "2"];

fn demo(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoal"));
    command.args(SMALL).args(flags).env("TMPDIR", folder).stdin(Stdio::null());
    command
}

fn run(folder: &Path, flags: &[&str]) -> Output {
    let output = demo(folder, flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Processes whose command line names the folder.
fn processes_in(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let lines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&folder)).collect()
}

/// Waits until no process and no file is left.
pub(crate) fn assert_gone(folder: &Path) {
    let deadline = Instant::now() + GONE_TIMEOUT;
    loop {
        let processes = processes_in(folder);
        let files: Vec<_> = std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
        if processes.is_empty() && files.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {processes:?} {files:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A demo at its prompt, its input still open.
fn at_prompt(folder: &Path) -> Child {
    let mut child = demo(folder, &[]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("Connect ")), "no welcome");
    // What comes after is not read, and must not block the demo.
    std::thread::spawn(move || lines.count());
    assert!(processes_in(folder).len() >= 3);
    child
}

/// Whether a process stands still, as after SIGSTOP.
fn is_stopped(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().trim_start().starts_with('T')
}

/// Waits until something is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + COMES_WITHIN;
    while !is_so() {
        assert!(Instant::now() < deadline, "not {what} within {COMES_WITHIN:?}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[test]
fn one_command_gives_the_right_answer_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(
        folder.path(),
        &[
            "-c",
            "SELECT count(*) AS n FROM orders",
            "-c",
            "SELECT sum(l_quantity) AS q FROM lineitem",
            "--format",
            "csv",
        ],
    );
    assert_eq!(text(&output), "n\n15000\nq\n1536127.00\n");
    assert_gone(folder.path());
}

#[test]
fn a_wrong_statement_is_an_error_of_the_demo() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &["-c", "SELECT * FROM ordrs"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ordrs"));
    assert_gone(folder.path());
}

#[test]
fn nothing_outlives_a_killed_demo() {
    for signal in [Signal::KILL, Signal::TERM, Signal::HUP] {
        let folder = tempfile::tempdir().unwrap();
        let mut child = at_prompt(folder.path());
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
        assert_gone(folder.path());
    }
}

#[test]
fn the_prompt_kills_and_starts_workers() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = demo(folder.path(), &[])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let script = "SELECT sum(o_totalprice) AS before FROM orders;\n\\kill worker-2\n\
                  SELECT sum(o_totalprice) AS between FROM orders;\n\\start worker-2\n\
                  SELECT sum(o_totalprice) AS after FROM orders;\n\\kill worker-9\n\\q\n";
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let mut errors = child.stderr.take().unwrap();
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        text
    });
    let output = text(&child.wait_with_output().unwrap());
    let errors = errors.join().unwrap();
    assert_eq!(output.matches("2127396830.02").count(), 3, "{output}\n{errors}");
    assert!(output.contains("killed worker-2"), "{output}\n{errors}");
    assert!(output.contains("started worker-2"), "{output}\n{errors}");
    assert!(errors.contains("there is no node `worker-9`"), "{output}\n{errors}");
    assert_gone(folder.path());
}

#[test]
fn a_worker_is_cut_off_and_healed_at_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let sum = "SELECT sum(o_totalprice) AS total FROM orders";
    let output = run(
        folder.path(),
        &["-c", "\\cut worker-2 out", "-c", sum, "-c", "\\workers", "-c", "\\heal worker-2", "-c", sum],
    );
    let output = text(&output);
    assert_eq!(output.matches("2127396830.02").count(), 2, "{output}");
    let cut = output.lines().find(|line| line.starts_with("worker-2 ")).unwrap();
    assert!(cut.contains("cut, outbound"), "{output}");
    for (command, error) in [
        ("\\cut worker-9", "there is no node `worker-9`"),
        ("\\cut worker-1 up", "`up` is not a direction"),
        ("\\heal", "\\heal takes the name of a node"),
        ("\\drill 99", "\\drill takes a number of queries from 1 to 8, not `99`"),
    ] {
        let output = demo(folder.path(), &["-c", command]).output().unwrap();
        assert_eq!(output.status.code(), Some(3), "{command}");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains(error), "{command}: {errors}");
    }
    assert_gone(folder.path());
}

#[test]
fn a_worker_is_frozen_and_thawed_at_the_prompt() {
    let folder = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(&mut demo(folder.path(), &["--format", "csv"]));
    let sum = "SELECT sum(o_totalprice) AS total FROM orders;";
    let state = "SELECT 'worker-2 is ' || state AS said FROM system.workers WHERE worker = 'worker-2';";
    let total = "2127396830.02";

    let froze = talk.ask("\\freeze worker-2", "froze worker-2 (process ");
    let pid = froze.split(['(', ')']).nth(1).unwrap().strip_prefix("process ").unwrap();
    until("frozen", || is_stopped(pid));
    until("lost", || talk.ask(state, "worker-2 is ") == "worker-2 is lost");
    // It was not ended: its process is there.
    let shown = talk.ask("\\workers", "worker-2 ");
    assert_eq!(shown.split_whitespace().skip(1).take(2).collect::<Vec<_>>(), [pid, "frozen"], "{shown}");
    assert_eq!(talk.ask(sum, total), total);

    talk.ask("\\thaw worker-2", "worker-2 (process ");
    until("thawed", || !is_stopped(pid));
    until("live again", || talk.ask(state, "worker-2 is ") == "worker-2 is live");
    assert_eq!(talk.ask(sum, total), total);
    talk.end();
    assert_gone(folder.path());
}

/// Two queries, each under a kill, a freeze and a cut; how often a worker was
/// lost.
fn losses_of_a_drill() -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let counts = "SELECT min(times_lost) AS fewest, sum(times_lost) AS losses FROM system.workers";
    let output = run(folder.path(), &["--format", "csv", "-c", "\\drill 2", "-c", "\\workers", "-c", counts]);
    let output = text(&output);
    for fault in ["kill", "freeze", "cut"] {
        let lines = output.lines().filter(|line| line.split_whitespace().nth(2) == Some(fault));
        let lines: Vec<_> = lines.filter(|line| line.ends_with(" same")).collect();
        assert_eq!(lines.len(), 2, "{output}");
        // One query each, and both workers in turn.
        assert!(lines[0].starts_with("TPC-H q1 ") && lines[1].starts_with("TPC-H q5 "), "{output}");
        assert!(lines[0].contains(" worker-1 ") && lines[1].contains(" worker-2 "), "{output}");
    }
    assert!(output.contains("6 queries under faults, every answer the same; it cost a kill"), "{output}");
    // All are back.
    assert!(!output.contains("gone") && !output.contains("cut, "), "{output}");
    assert_gone(folder.path());
    let counted = output.lines().skip_while(|line| *line != "fewest,losses").nth(1);
    let counted = counted.and_then(|line| line.split_once(','));
    let (fewest, losses) = counted.unwrap_or_else(|| panic!("{output}"));
    // Each was killed once, and that is never missed.
    assert!(fewest.parse::<u64>().unwrap() >= 1, "{output}");
    losses.parse().unwrap()
}

#[test]
fn a_drill_takes_workers_away_and_no_answer_changes() {
    // A freeze or a cut lasts until its query is answered. Where it comes too
    // late for that query it is over before anybody misses the worker; that
    // must not be so in drill after drill.
    let mut losses = Vec::new();
    let took_away = (0..DRILLS_MAX).any(|_| {
        let lost = losses_of_a_drill();
        losses.push(lost);
        lost >= FAULTS_NOTICED_MIN
    });
    assert!(took_away, "workers were lost so often, in drills of six faults: {losses:?}");
}

#[test]
fn a_drill_asks_about_the_users_own_tables() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let file = data.path().join("trips.csv");
    let rows: String = (0..5000).map(|row| format!("{row},{}.5,town {}\n", row % 7, row % 11)).collect();
    std::fs::write(&file, format!("id,price,town\n{rows}")).unwrap();
    let drill = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(["demo", "--workers", "2", "-c", "\\drill", "--load"])
            .arg(&file)
            .args(more)
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let output = drill(&[]);
    let shown = text(&output);
    assert!(output.status.success(), "{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(shown.lines().filter(|line| line.starts_with("trips ")).count(), 3, "{shown}");
    assert!(shown.contains("3 queries under faults, every answer the same"), "{shown}");
    // Nobody could stand in.
    let output = drill(&["--replicas", "1"]);
    assert_eq!(output.status.code(), Some(3));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("a drill needs a worker to spare"), "{errors}");
    assert_gone(folder.path());
}

/// Types at the demo's prompt on a terminal: Ctrl-C while a drill has frozen a
/// worker; then says whether a process of the demo still stands still.
const INTERRUPTED_DRILL: &str = r#"
import os, pty, re, select, sys, time

pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = ""

def until(pattern):
    global seen
    deadline = time.time() + 120
    while not re.search(pattern, seen):
        if time.time() > deadline:
            sys.exit("no " + pattern + " in " + seen)
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65536).decode(errors="replace")
    seen = seen[re.search(pattern, seen).end():]

def processes():
    found = []
    for entry in os.listdir("/proc"):
        try:
            if os.environ["TMPDIR"] in open(f"/proc/{entry}/cmdline").read():
                found.append(entry)
        except OSError:
            continue
    return found

def stopped(among):
    states = []
    for process in among:
        try:
            states.append(open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[0])
        except OSError:
            continue
    return states.count("T")

until("ends the demo")
os.write(terminal, b"\\drill 5\r")
until("freeze +worker-")
# One that has done its part already stands still for some milliseconds only.
among = processes()
deadline = time.time() + 60
while stopped(among) == 0:
    if time.time() > deadline:
        sys.exit("no worker was frozen")
    time.sleep(0.001)
os.write(terminal, b"\x03")
until("(?i)cancelled")
os.write(terminal, b"SELECT 'live ' || count(*) FROM system.workers WHERE state = 'live';\r")
until("live [0-9]")
print("stopped", stopped(processes()))
os.write(terminal, b"\\q\r")
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"#;

#[test]
fn an_interrupted_drill_brings_back_what_it_took_away() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("python3")
        .args(["-c", INTERRUPTED_DRILL, env!("CARGO_BIN_EXE_shoal")])
        .args(SMALL)
        .env("TMPDIR", folder.path())
        .env("TERM", "xterm")
        .env("SHOAL_HISTORY", "")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {errors}", text(&output));
    assert_eq!(text(&output).trim(), "stopped 0", "{errors}");
    assert_gone(folder.path());
}

#[test]
fn kept_data_is_there_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let keep = kept.to_str().unwrap();
    let made = run(folder.path(), &["--keep", keep, "-c", "CREATE TABLE mine AS SELECT * FROM nation"]);
    assert!(String::from_utf8_lossy(&made.stderr).contains("Loaded"));
    let again = run(
        folder.path(),
        &[
            "--keep",
            keep,
            "-c",
            "SELECT (SELECT count(*) FROM mine) + (SELECT count(*) FROM orders) AS n",
            "--format",
            "csv",
        ],
    );
    assert_eq!(text(&again), "n\n15025\n");
    assert!(!String::from_utf8_lossy(&again.stderr).contains("Loaded"));
    assert!(processes_in(folder.path()).is_empty());
}

#[test]
fn files_become_tables_named_after_them() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = data.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let trips = write("Trips 2024.csv", "id,price,day\n1,2.5,2024-01-01\n2,3.5,2024-01-02\n");
    let events = write("events.ndjson", "{\"kind\": \"a\", \"n\": 1}\n{\"kind\": \"b\", \"n\": 2}\n");
    let people = write("people.json", "[{\"name\": \"Ann\"}, {\"name\": \"Bob\"}, {\"name\": \"Cid\"}]");
    let run = |files: &[&str], sql: &str| {
        Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(["demo", "--workers", "2", "--format", "csv", "-c", sql, "--load"])
            .args(files)
            .env("TMPDIR", folder.path())
            .output()
            .unwrap()
    };
    let sql = "SELECT (SELECT sum(price) FROM trips_2024) AS p, (SELECT sum(n) FROM events) AS n, \
               (SELECT count(*) FROM people) AS people";
    let output = run(&[&trips, &events, &people], sql);
    assert_eq!(text(&output), "p,n,people\n6.0,3,3\n", "{}", String::from_utf8_lossy(&output.stderr));
    let broken = write("broken.csv", "a,b\n1,2\n3\n");
    let output = run(&[&broken], "SELECT 1");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("broken.csv"), "{errors}");
    assert_gone(folder.path());
}
