//! The shell and the demo without one of several coordinators: they go on at
//! another one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use shoal_benches::{Cluster, ClusterOptions};

use crate::demo::assert_gone;
use crate::fixture::{options, own};
use crate::talk::Talk;

/// How long something that must come may take.
const COMES_WITHIN: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

fn shoal() -> Command {
    Command::new(env!("CARGO_BIN_EXE_shoal"))
}

/// Asks until what is printed, up to a line that begins so, is as it must be.
fn until(talk: &mut Talk, typed: &str, beginning: &str, is_so: impl Fn(&[String]) -> bool) {
    let since = Instant::now();
    loop {
        let lines = talk.ask_all(typed, beginning);
        if is_so(&lines) {
            return;
        }
        assert!(since.elapsed() < COMES_WITHIN, "after `{typed}` still {lines:?}");
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[test]
fn the_shell_goes_on_at_another_coordinator() {
    let cluster = Cluster::start(&ClusterOptions { coordinators: 3, ..options(2) }).unwrap();
    let _logs = cluster.show_logs_on_failure();
    let place = |name: &str| cluster.address(name).unwrap().to_string();
    let (first, second, third) = (place("coordinator"), place("coordinator-2"), place("coordinator-3"));
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    // It learns of the third.
    let uri = format!("shoal://{first},{second}");
    let mut talk = Talk::begin_with_notices(shoal().args(["sql", &uri, "--format", "csv"]), &said);
    let sum = "SELECT 'sum ' || sum(k) AS said FROM kept;";
    talk.ask(
        &format!(
            "CREATE TABLE kept (k BIGINT) WITH (shards = 2, replicas = 2, shard_key = 'k');\n\
             INSERT INTO kept VALUES (1), (2);\nSET shoal.task_bytes = '7MiB';\n{sum}"
        ),
        "sum 3",
    );
    // It says so when all that was asked is over: a query that loses its coordinator behind
    // its first row is not run again.
    until(&mut talk, "\\conninfo", "When it is gone: ", |lines| {
        lines.iter().any(|line| line.contains(&third))
    });

    cluster.kill("coordinator").unwrap();
    talk.ask(sum, "sum 3");
    talk.ask("SHOW shoal.task_bytes;", "shoal.task_bytes,7MiB");
    talk.ask(&format!("INSERT INTO kept VALUES (4);\n{sum}"), "sum 7");
    cluster.restart("coordinator").unwrap();
    cluster.wait_until_voting(3).unwrap();
    cluster.kill("coordinator-2").unwrap();
    talk.ask(&format!("INSERT INTO kept VALUES (8);\n{sum}"), "sum 15");
    talk.ask("SHOW shoal.task_bytes;", "shoal.task_bytes,7MiB");
    talk.end();
    let said = std::fs::read_to_string(said).unwrap();
    assert!(
        said.contains(&format!("connection to shoal://{first} lost; now connected to shoal://")),
        "{said}"
    );
    assert!(!said.contains("ERROR"), "{said}");
}

#[test]
fn the_shell_never_goes_on_in_another_cluster() {
    let (ours, other) = (own(1), own(1));
    let _logs = (ours.show_logs_on_failure(), other.show_logs_on_failure());
    let place = |cluster: &Cluster| cluster.address("coordinator").unwrap().to_string();
    let (here, there) = (place(&ours), place(&other));
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let mut talk = Talk::begin_with_notices(
        shoal().args(["sql", &format!("shoal://{here},{there}"), "--format", "csv"]),
        &said,
    );
    let sum = "SELECT 'sum ' || sum(k) AS said FROM kept;";
    talk.ask(&format!("CREATE TABLE kept (k BIGINT);\nINSERT INTO kept VALUES (1), (2);\n{sum}"), "sum 3");
    ours.kill("coordinator").unwrap();
    // It tries for some seconds, and ends; the other cluster would have answered.
    let ended = talk.end_after("SELECT 'answered' AS said;");
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(ended.code(), Some(2), "{said}");
    assert!(said.contains(&format!("{there}: it belongs to another cluster (")), "{said}");
    assert!(!said.contains("now connected to"), "{said}");
}

/// A demo with all its coordinators, and little else.
fn demo(folder: &Path, flags: &[&str]) -> Command {
    let mut command = shoal();
    command
        .args(["demo", "--scale", "0.01", "--workers", "2", "--replicas", "2", "--format", "csv"])
        .args(flags)
        .env("TMPDIR", folder)
        .stdin(Stdio::null());
    command
}

#[test]
fn the_demo_goes_on_without_a_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let mut talk = Talk::begin(&mut demo(folder.path(), &[]));
    let (sum, total) = ("SELECT sum(o_totalprice) AS total FROM orders;", "2127396830.02");
    let roles = |lines: &[String], role: &str| {
        lines.iter().filter(|line| line.split_whitespace().nth(3) == Some(role)).count()
    };
    for name in ["coordinator", "coordinator-2"] {
        until(&mut talk, "\\nodes", "worker-2 ", |lines| {
            roles(lines, "leader") == 1 && roles(lines, "follower") == 2 && roles(lines, "worker") == 2
        });
        talk.ask(&format!("\\kill {name}"), &format!("killed {name} (process "));
        talk.ask(sum, total);
        // Without a process it has no number.
        let shown = talk.ask("\\nodes", &format!("{name} "));
        assert_eq!(shown.split_whitespace().nth(1), Some("gone"), "{shown}");
        talk.ask(&format!("\\start {name}"), &format!("started {name} (process "));
        talk.ask(sum, total);
    }
    talk.ask("\\cut coordinator-3", "cut coordinator-3 off");
    talk.ask(sum, total);
    talk.ask("\\heal coordinator-3", "coordinator-3 is connected again");
    talk.ask(sum, total);
    talk.end();
    assert_gone(folder.path());
}

#[test]
fn a_kept_demo_of_one_coordinator_gets_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("kept");
    let run = |flags: &[&str]| {
        let output = demo(folder.path(), &["--keep", kept.to_str().unwrap()]).args(flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    run(&["--coordinators", "1", "-c", "CREATE TABLE mine AS SELECT * FROM nation"]);
    // As versions leave it that know of one only.
    let file = kept.join("demo.toml");
    let known = std::fs::read_to_string(&file).unwrap();
    let known: Vec<&str> = known.lines().filter(|line| !line.starts_with("coordinators")).collect();
    std::fs::write(&file, known.join("\n")).unwrap();
    std::fs::remove_file(kept.join("coordinator.link")).unwrap();
    let sql = "SELECT (SELECT count(*) FROM mine) AS mine, \
               (SELECT count(*) FROM system.coordinators) AS coordinators";
    for _ in 0..3 {
        assert_eq!(run(&["-c", sql]), "mine,coordinators\n25,3\n");
    }
}
