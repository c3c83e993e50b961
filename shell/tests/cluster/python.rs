//! The ADBC driver from Python, against a cluster: `tests/python/run.sh`.

use std::path::PathBuf;
use std::process::Command;

use crate::fixture::own;

#[test]
fn the_adbc_driver_of_python_works() {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/python/run.sh");
    let cluster = own(2);
    let uri = format!("grpc+tcp://{}", cluster.address("coordinator").unwrap());
    let output = Command::new("bash").arg(&script).env("SHOAL_TEST_URI", uri).output().unwrap();
    let text =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} ended with {}:\n{text}", script.display(), output.status);
    eprintln!("{text}");
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
