//! Apache Ballista: a scheduler, executors and a client, each a process of this executable.
//! What runs in them is in `ballista_serve.rs`, in builds with the feature `ballista` alone.

use std::net::TcpListener;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::TableFiles;
use super::child::{ChildPeer, RowFile, tables_file, this_executable};
use crate::answer::Numbers;

/// As in `--against`, with as many partitions as there are slots.
pub const BALLISTA: &str = "ballista";
/// The same with the partitions that Ballista has where nobody says how many.
pub const BALLISTA_16: &str = "ballista_16";
/// Partitions of a query where nobody says how many.
const OWN_PARTITIONS: usize = 16;

/// Tells how to build it where it is not in this build.
///
/// # Errors
/// Where it is not.
pub fn ensure_built() -> Result<()> {
    ensure!(
        cfg!(feature = "ballista"),
        "ballista is not in this build of shoal-benches: \
         `cargo build --release -p shoal-benches --features ballista --target-dir target/ballista` makes one that has it"
    );
    Ok(())
}

/// Starts [`BALLISTA`] or [`BALLISTA_16`] over files.
///
/// An executor with one slot for each core: on the machine of two cores that Ballista's bar comes from these
/// are 2 executors x 1 slot, with which it was measured there. A slot more than there are cores only waits;
/// two slots in one executor would share its memory, and nothing would go from one process to another.
///
/// # Errors
/// When one of its processes does not come up, or it is not in this build.
pub fn start(name: &str, cores: usize, tables: &[TableFiles]) -> Result<ChildPeer> {
    ensure_built()?;
    let scheduler_port = free_port()?;
    let mut scheduler = this_executable("ballista-scheduler")?;
    scheduler.args(["--port", &scheduler_port.to_string()]);
    let mut helpers = vec![helper("ballista scheduler", scheduler, directory()?)?];
    for number in 1..=cores {
        // Its own, as on a machine of its own: executors read what lies below it as files, and get
        // the rest from each other.
        let dir = directory()?;
        let mut executor = this_executable("ballista-executor")?;
        executor
            .args(["--port", &free_port()?.to_string()])
            .args(["--grpc-port", &free_port()?.to_string()])
            .args(["--scheduler-port", &scheduler_port.to_string()])
            .arg("--work-dir")
            .arg(dir.path());
        helpers.push(helper(&format!("ballista executor {number}"), executor, dir)?);
    }
    let partitions = if name == BALLISTA_16 { OWN_PARTITIONS } else { cores };
    let dir = directory()?;
    let mut client = this_executable("ballista")?;
    client
        .args(["--threads", &cores.to_string()])
        .args(["--partitions", &partitions.to_string()])
        .args(["--scheduler-port", &scheduler_port.to_string()])
        .arg("--tables")
        .arg(tables_file(&dir, tables)?);
    let peer = ChildPeer::start(name, Numbers::Exact, RowFile::Arrow, client, dir)?;
    Ok(peer.with_helpers(helpers))
}

fn helper(name: &str, command: Command, dir: TempDir) -> Result<ChildPeer> {
    ChildPeer::start(name, Numbers::Exact, RowFile::Arrow, command, dir)
}

fn directory() -> Result<TempDir> {
    TempDir::new().context("make a directory")
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr()?.port())
}

#[cfg(all(test, not(feature = "ballista")))]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_it_says_how_to_get_one() {
        for name in [BALLISTA, BALLISTA_16] {
            let error = start(name, 1, &[]).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("cargo build --release -p shoal-benches --features ballista"), "{error}");
        }
    }
}
