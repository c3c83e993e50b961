//! The demo's cluster: coordinators and workers, each a process of its own, in
//! one folder, that reach one another through links that can be cut.
//!
//! Nothing of it outlives the demo: each node holds the reading end of a pipe
//! from this process and ends when that closes, however this process ended.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::kept::Kept;
use super::process::NodeProcess;
use crate::client::{Addresses, ClientError};
use crate::links::{Direction, Links};

mod starting;

/// A node as it is right now.
pub(super) struct NodeState {
    pub(super) name: String,
    pub(super) is_coordinator: bool,
    /// None: it does not run.
    pub(super) pid: Option<u32>,
    /// Stopped where it was, by `\freeze` or by somebody else.
    pub(super) is_frozen: bool,
    /// Where clients and other nodes reach it.
    pub(super) reached_at: SocketAddr,
    pub(super) log: PathBuf,
    /// None: it is not cut off.
    pub(super) cut: Option<Direction>,
}

impl NodeState {
    /// Whether it runs, and is neither frozen nor cut off.
    pub(super) fn can_answer(&self) -> bool {
        self.pid.is_some() && !self.is_frozen && self.cut.is_none()
    }
}

/// Whether a process is stopped; no where the system does not tell.
fn is_frozen(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state comes behind the name, which may have anything in it.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

/// The running cluster; dropping it ends it.
pub(super) struct DemoCluster {
    dir: PathBuf,
    /// Whether the folder stays when the demo ends.
    kept: bool,
    /// Held while the demo runs, so that no other one uses a kept folder.
    _lock: Option<File>,
    links: Links,
    /// Coordinators first.
    nodes: Mutex<Vec<NodeProcess>>,
}

impl DemoCluster {
    /// Starts all nodes and waits until they listen. The folder goes when the
    /// cluster ends, unless it is kept.
    ///
    /// # Errors
    /// With the end of its log, where a node does not come up.
    pub(super) fn start(keep: Option<&Path>, demo: &Kept, threads: Option<u32>) -> Result<Self> {
        let dir = match keep {
            Some(folder) => {
                fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
                folder.canonicalize().with_context(|| format!("cannot open {}", folder.display()))?
            }
            None => tempfile::Builder::new()
                .prefix("shoal-demo-")
                .tempdir()
                .context("cannot make a temporary folder")?
                .keep(),
        };
        let kept = keep.is_some();
        let lock = keep.map(|_| locked(&dir)).transpose()?;
        let links = Links::new().context("cannot make links between the nodes")?;
        let cluster = Self { dir, kept, _lock: lock, links, nodes: Mutex::default() };
        cluster.start_coordinators(demo.coordinators)?;
        cluster.start_workers(demo.workers, threads)?;
        Ok(cluster)
    }

    /// Where clients connect: all coordinators, those last that cannot answer
    /// right now.
    ///
    /// # Errors
    /// Where there is no coordinator.
    pub(super) fn addresses(&self) -> Result<Addresses, ClientError> {
        let mut coordinators: Vec<NodeState> =
            self.nodes().into_iter().filter(|node| node.is_coordinator).collect();
        coordinators.sort_by_key(|node| !node.can_answer());
        let places: Vec<String> = coordinators.iter().map(|node| node.reached_at.to_string()).collect();
        Addresses::parse(&places.join(","))
    }

    /// All nodes as they are right now, coordinators first.
    pub(super) fn nodes(&self) -> Vec<NodeState> {
        let state = |node: &mut NodeProcess| NodeState {
            name: node.name().to_owned(),
            is_coordinator: node.is_coordinator(),
            pid: node.pid(),
            is_frozen: node.pid().is_some_and(is_frozen),
            reached_at: node.reached_at(),
            log: node.log().to_owned(),
            cut: self.links.cut_of(node.name()),
        };
        self.nodes.lock().iter_mut().map(state).collect()
    }

    /// Ends one node as `kill -9` does; its process.
    ///
    /// # Errors
    /// Where there is no such node, or it does not run.
    pub(super) fn kill(&self, name: &str) -> Result<u32> {
        let mut nodes = self.nodes.lock();
        let node = find(&mut nodes, name)?;
        node.kill().ok_or_else(|| anyhow!("{name} is not running; `\\start {name}` brings it back"))
    }

    /// Sends a signal to one node; its process.
    ///
    /// # Errors
    /// Where there is no such node, or it does not run.
    pub(super) fn signal(&self, name: &str, signal: Signal) -> Result<u32> {
        let mut nodes = self.nodes.lock();
        let pid = find(&mut nodes, name)?.pid();
        let pid = pid.ok_or_else(|| anyhow!("{name} is not running; `\\start {name}` brings it back"))?;
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let process = process.ok_or_else(|| anyhow!("{pid} is not the number of a process"))?;
        kill_process(process, signal).with_context(|| format!("cannot signal {name} (process {pid})"))?;
        Ok(pid)
    }

    /// Holds what a node sends, or receives, or both.
    ///
    /// # Errors
    /// Where there is no such node.
    pub(super) fn cut(&self, name: &str, direction: Direction) -> Result<()> {
        find(&mut self.nodes.lock(), name)?;
        self.links.cut(name, direction).with_context(|| format!("cannot cut {name} off"))
    }

    /// Lets flow what was held.
    ///
    /// # Errors
    /// Where there is no such node.
    pub(super) fn heal(&self, name: &str) -> Result<()> {
        find(&mut self.nodes.lock(), name)?;
        self.links.heal(name).with_context(|| format!("cannot heal {name}"))
    }

    /// Starts one node again, where it listened before; its process.
    ///
    /// # Errors
    /// Where there is no such node, it runs already, or does not come up.
    pub(super) fn restart(&self, name: &str) -> Result<u32> {
        let mut nodes = self.nodes.lock();
        let node = find(&mut nodes, name)?;
        node.start()?;
        node.wait_until_listening()?;
        node.pid().ok_or_else(|| anyhow!("{name} ended at once; see {}", node.log().display()))
    }

    /// Ends everything, and removes the folder unless it is kept.
    pub(super) fn stop(&self) {
        let mut nodes = self.nodes.lock();
        for node in nodes.iter_mut() {
            node.close_input();
        }
        for node in nodes.iter_mut() {
            node.stop();
        }
        nodes.clear();
        if !self.kept {
            // A node may have removed it already.
            let _gone = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Takes a kept folder for this demo.
fn locked(dir: &Path) -> Result<File> {
    let path = dir.join("demo.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(anyhow!(
            "another demo runs in {}: leave that one, or keep this one's data in another folder",
            dir.display()
        )),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn find<'a>(nodes: &'a mut [NodeProcess], name: &str) -> Result<&'a mut NodeProcess> {
    let names: Vec<_> = nodes.iter().map(|node| node.name().to_owned()).collect();
    nodes
        .iter_mut()
        .find(|node| node.name() == name)
        .ok_or_else(|| anyhow!("there is no node `{name}` (nodes: {})", names.join(", ")))
}

impl Drop for DemoCluster {
    fn drop(&mut self) {
        self.stop();
    }
}
