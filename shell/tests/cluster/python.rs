//! The ADBC driver from Python, against a cluster: `tests/python/run.sh`.

use std::path::PathBuf;
use std::process::Command;

use shoal_benches::{Cluster, ClusterOptions};

use crate::fixture::{options, own};

#[test]
fn the_adbc_driver_of_python_works() {
    check(&own(2), &[]);
}

#[test]
fn the_adbc_driver_of_python_fetches_where_it_is_told_to() {
    let cluster = Cluster::start(&ClusterOptions { coordinators: 3, ..options(2) }).unwrap();
    check(&cluster, &["test_locations.py"]);
}

/// Runs the suite, or some of it, against a cluster.
fn check(cluster: &Cluster, arguments: &[&str]) {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/python/run.sh");
    let uri = format!("grpc+tcp://{}", cluster.address("coordinator").unwrap());
    let output =
        Command::new("bash").arg(&script).args(arguments).env("SHOAL_TEST_URI", uri).output().unwrap();
    let text =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} ended with {}:\n{text}", script.display(), output.status);
    eprintln!("{text}");
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
