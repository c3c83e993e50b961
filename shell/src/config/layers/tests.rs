//! Which layer wins, and what is refused.

use std::fs;
use std::time::Duration;

use super::*;
use crate::config::{ByteSize, CoordinatorSettings, WorkerSettings};

/// Settings and the document of `--print-config`, and the folder of the file.
type Outcome<S> = (Result<(S, String), ConfigError>, tempfile::TempDir);

fn worker(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> Outcome<WorkerSettings> {
    node("worker", WorkerSettings::read, flags, environment, file)
}

fn coordinator(
    flags: &[&str],
    environment: &[(&str, &str)],
    file: Option<&str>,
) -> Outcome<CoordinatorSettings> {
    node("coordinator", CoordinatorSettings::read, flags, environment, file)
}

fn node<S>(
    command: &'static str,
    read: fn(&mut Layers) -> Result<S, ConfigError>,
    flags: &[&str],
    environment: &[(&str, &str)],
    file: Option<&str>,
) -> Outcome<S> {
    let folder = tempfile::tempdir().unwrap();
    let mut line: Vec<String> = vec!["shoal".into(), command.into()];
    line.extend(flags.iter().map(|flag| (*flag).to_owned()));
    if let Some(text) = file {
        let path = folder.path().join(format!("{command}.toml"));
        fs::write(&path, text).unwrap();
        line.extend(["--config".to_owned(), path.display().to_string()]);
    }
    let matches = crate::args::command().try_get_matches_from(line).unwrap();
    let (_, matches) = matches.subcommand().unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let outcome = Layers::new(command, matches, environment).and_then(|mut layers| {
        let settings = read(&mut layers)?;
        let document = layers.document()?;
        layers.finish()?;
        Ok((settings, document))
    });
    (outcome, folder)
}

fn refusal(flags: &[&str], environment: &[(&str, &str)], file: Option<&str>) -> String {
    let (outcome, folder) = worker(flags, environment, file);
    outcome.unwrap_err().to_string().replace(&folder.path().display().to_string(), "DIR")
}

const REQUIRED: [&str; 4] = ["--data-dir", "w", "--coordinator", "http://c:1"];

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let (outcome, _folder) = worker(
        &["--data-dir", "from-flag", "--threads", "3"],
        &[("SHOAL_DATA_DIR", "from-environment"), ("SHOAL_GRACE", "3s"), ("SHOAL_THREADS", "4")],
        Some(
            "data_dir = 'f'\ngrace = '4s'\ncoordinator = ['http://a:1', 'http://b:2']\nmemory_limit = '1GiB'",
        ),
    );
    let (settings, document) = outcome.unwrap();
    assert_eq!(settings.node.data_dir.to_str(), Some("from-flag"));
    assert_eq!(settings.node.grace, Duration::from_secs(3));
    assert_eq!(settings.coordinators, ["http://a:1", "http://b:2"]);
    assert_eq!(settings.memory_limit, ByteSize(1 << 30));
    assert_eq!(settings.threads, 3);
    assert_eq!(settings.node.listen.port(), 7401);
    for (assignment, source) in [
        ("data_dir = \"from-flag\"", "flag --data-dir"),
        ("grace = \"3s\"", "environment SHOAL_GRACE"),
        ("listen = \"127.0.0.1:7401\"", "default"),
        ("memory_limit = \"1GiB\"", "worker.toml"),
        ("# name =", "not set"),
    ] {
        let line = document.lines().find(|line| line.starts_with(assignment)).unwrap();
        assert!(line.ends_with(source), "{line}");
    }
}

#[test]
fn what_print_config_prints_is_a_configuration_file() {
    let (outcome, _folder) = worker(&REQUIRED, &[("SHOAL_ZONE", "b \"quoted\"")], None);
    let (settings, document) = outcome.unwrap();
    let (outcome, _folder) = worker(&[], &[], Some(&document));
    let (again, _) = outcome.unwrap();
    assert_eq!(format!("{settings:?}"), format!("{again:?}"));
}

#[test]
fn a_coordinator_joins_whom_the_layer_that_wins_names() {
    let here = ["--data-dir", "c"];
    let check = |flags: &[&str], environment: &[(&str, &str)], file: Option<&str>, expected: &[&str]| {
        let (outcome, _folder) = coordinator(&[here.as_slice(), flags].concat(), environment, file);
        let (settings, document) = outcome.unwrap();
        assert_eq!(settings.join, expected);
        let shown = expected.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
        assert!(document.contains(&format!("join = [{shown}]")), "{document}");
    };
    check(&[], &[], None, &[]);
    let file = Some("join = ['http://d:4']");
    check(&[], &[], file, &["http://d:4"]);
    let environment = [("SHOAL_JOIN", "http://b:2, shoal://c:3")];
    check(&[], &environment, file, &["http://b:2", "http://c:3"]);
    check(&["--join", "a:1", "--join", "http://b:2"], &environment, file, &["http://a:1", "http://b:2"]);
    let (outcome, _folder) = coordinator(&[here.as_slice(), &["--join", "https://a:1"]].concat(), &[], None);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("join = `https://a:1` (from flag --join): not the address of a node"), "{error}");
}

#[test]
fn a_worker_drains_where_the_layer_that_wins_says_so() {
    let check = |flags: &[&str], environment: &[(&str, &str)], file: Option<&str>, expected: (bool, &str)| {
        let (outcome, _folder) = worker(&[REQUIRED.as_slice(), flags].concat(), environment, file);
        let (settings, document) = outcome.unwrap();
        let (is_wanted, source) = expected;
        assert_eq!(settings.drain, is_wanted, "{document}");
        let line = document.lines().find(|line| line.starts_with(&format!("drain = {is_wanted}"))).unwrap();
        assert!(line.ends_with(source), "{line}");
    };
    check(&[], &[], None, (false, "default"));
    let file = Some("drain = true");
    check(&[], &[], file, (true, "worker.toml"));
    let off = [("SHOAL_DRAIN", "off")];
    check(&[], &off, file, (false, "environment SHOAL_DRAIN"));
    check(&["--drain"], &off, file, (true, "flag --drain"));
    assert!(refusal(&REQUIRED, &[("SHOAL_DRAIN", "later")], None).contains("not true or false"));
    let (outcome, _folder) = coordinator(&["--data-dir", "c"], &[], file);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("unknown key `drain`"), "{error}");
}

#[test]
fn a_coordinator_compacts_unless_the_layer_that_wins_says_no() {
    let here = ["--data-dir", "c"];
    let check = |flags: &[&str], environment: &[(&str, &str)], file: Option<&str>, expected: bool| {
        let (outcome, _folder) = coordinator(&[here.as_slice(), flags].concat(), environment, file);
        let (settings, document) = outcome.unwrap();
        assert_eq!(settings.compaction, expected, "{document}");
        assert!(document.contains(&format!("compaction = {expected}")), "{document}");
    };
    check(&[], &[], None, true);
    let file = Some("compaction = false");
    check(&[], &[], file, false);
    check(&[], &[("SHOAL_COMPACTION", "on")], file, true);
    check(&["--compaction", "off"], &[("SHOAL_COMPACTION", "on")], file, false);
    let (outcome, _folder) = coordinator(&[here.as_slice(), &["--compaction=never"]].concat(), &[], None);
    assert!(outcome.unwrap_err().to_string().contains("not true or false"));
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    let text = "data_dir = 'w'\n\nmemory_limt = '1GiB'\n";
    assert_eq!(
        refusal(&REQUIRED, &[], Some(text)),
        "DIR/worker.toml:3: unknown key `memory_limt` (did you mean `memory_limit`?); \
         `shoal worker --print-config` lists every key"
    );
    let text = "max_queries = 3";
    assert!(refusal(&REQUIRED, &[], Some(text)).contains("unknown key `max_queries`"));
    let text = "data-dir = 'w'";
    assert!(refusal(&REQUIRED, &[], Some(text)).contains("did you mean `data_dir`?"));
}

#[test]
fn wrong_values_say_where_they_were_written() {
    let flags = |name: &'static str, value: &'static str| [REQUIRED.as_slice(), &[name, value]].concat();
    assert_eq!(
        refusal(&flags("--memory-limit", "4 quarts"), &[], None),
        "memory_limit = `4 quarts` (from flag --memory-limit): \
         not a size; write it like 4GiB, 512MiB, 1.5GB or a number of bytes"
    );
    assert!(refusal(&REQUIRED, &[("SHOAL_THREADS", "0")], None).contains("(from environment SHOAL_THREADS)"));
    assert!(refusal(&REQUIRED, &[], Some("grace = 10")).contains("(from DIR/worker.toml): not a duration"));
    assert!(refusal(&REQUIRED, &[], Some("[grace]\nsoft = '1s'")).contains("line 1: `grace` is not"));
    assert!(
        refusal(&REQUIRED, &[], Some("grace = ")).contains("DIR/worker.toml: TOML parse error at line 1")
    );
}

#[test]
fn what_is_required_is_asked_for_at_once() {
    let message = refusal(&[], &[], None);
    assert!(
        message.contains("coordinator is required: give --coordinator, SHOAL_COORDINATOR or"),
        "{message}"
    );
    assert!(message.contains("data_dir is required: give --data-dir"), "{message}");
}

#[test]
fn misspelt_variables_are_pointed_out() {
    let matches = crate::args::command().get_matches_from(["shoal", "worker"].into_iter().chain(REQUIRED));
    let (_, matches) = matches.subcommand().unwrap();
    let environment =
        [("SHOAL_THREAD", "1"), ("SHOAL_SERVICE_PORT_QQ", "1"), ("SHOAL_URI", "x"), ("PATH", "x")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut layers = Layers::new("worker", matches, environment).unwrap();
    WorkerSettings::read(&mut layers).unwrap();
    let warnings = layers.finish().unwrap();
    assert_eq!(warnings, ["environment variable SHOAL_THREAD is no setting (did you mean SHOAL_THREADS?)"]);
}

#[test]
fn a_network_address_needs_insecure_and_a_name() {
    let check = |extra: &[&str]| {
        let (outcome, _folder) = worker(&[REQUIRED.as_slice(), extra].concat(), &[], None);
        outcome.unwrap().0.node.check().map_err(|error| error.to_string())
    };
    assert_eq!(check(&["--listen", "127.0.0.1:0"]), Ok(()));
    assert_eq!(check(&["--listen", "[::1]:0"]), Ok(()));
    assert!(check(&["--listen", "10.0.0.1:7401"]).unwrap_err().contains("--insecure"));
    assert_eq!(check(&["--listen", "10.0.0.1:7401", "--insecure"]), Ok(()));
    assert!(
        check(&["--listen", "0.0.0.0:7401", "--insecure"])
            .unwrap_err()
            .contains("--advertise http://HOST:7401")
    );
    assert_eq!(check(&["--listen", "0.0.0.0:7401", "--insecure", "--advertise", "http://w1:7401"]), Ok(()));
}
