//! The demo's cluster: one coordinator and its workers, each a process of its
//! own, in one folder, that reach one another through links that can be cut.
//!
//! Nothing of it outlives the demo: each node holds the reading end of a pipe
//! from this process and ends when that closes, however this process ended.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

use super::process::NodeProcess;
use crate::config::{cores, share_of_memory};
use crate::links::{Direction, Links};

/// The share of the machine's memory that all workers may use together.
const MEMORY_PERCENT: u64 = 50;

/// A node as it is right now.
pub(super) struct NodeState {
    pub(super) name: String,
    /// None: it does not run.
    pub(super) pid: Option<u32>,
    /// Stopped where it was, by `\freeze` or by somebody else.
    pub(super) is_frozen: bool,
    pub(super) address: Option<SocketAddr>,
    pub(super) log: PathBuf,
    /// None: it is not cut off.
    pub(super) cut: Option<Direction>,
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
    coordinator: SocketAddr,
    links: Links,
    /// The coordinator first.
    nodes: Mutex<Vec<NodeProcess>>,
}

impl DemoCluster {
    /// Starts all nodes and waits until they listen. The folder goes when the
    /// cluster ends, unless it is kept.
    ///
    /// # Errors
    /// With the end of its log, where a node does not come up.
    pub(super) fn start(keep: Option<&Path>, workers: u32, threads: Option<u32>) -> Result<Self> {
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
        // From here on the nodes remove the folder, or we do.
        let end =
            if kept { Vec::new() } else { vec!["--remove-with-stdin".to_owned(), dir.display().to_string()] };
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let links = Links::new().context("cannot make links between the nodes")?;
        let nodes = Mutex::default();
        let mut cluster = Self { dir, kept, _lock: lock, coordinator: unknown, links, nodes };
        // Files where the demo was started are what COPY and external tables
        // may read and write.
        let import_root = std::env::current_dir().context("cannot tell the current folder")?;
        let import_root = format!("--import-root={}", import_root.display());
        let arguments = [vec!["coordinator".to_owned(), import_root], end.clone()].concat();
        let address = {
            let mut nodes = cluster.nodes.lock();
            nodes.push(NodeProcess::new("coordinator", &cluster.dir, arguments));
            let coordinator = find(&mut nodes, "coordinator")?;
            coordinator.start()?;
            coordinator.wait_until_listening()?
        };
        cluster.coordinator = address;
        let link = cluster.links.open("coordinator").context("cannot open a link to the coordinator")?;
        cluster.links.lead("coordinator", address)?;
        let coordinator = link.address;
        let threads = threads.unwrap_or_else(|| (u32::try_from(cores()).unwrap_or(1) / workers).max(1));
        let memory = share_of_memory(MEMORY_PERCENT / u64::from(workers).min(MEMORY_PERCENT)).0.to_string();
        for number in 1..=workers {
            let name = format!("worker-{number}");
            let link = cluster.links.open(&name).with_context(|| format!("cannot open a link to {name}"))?;
            let arguments = [
                "worker".to_owned(),
                format!("--name={name}"),
                format!("--coordinator=http://{coordinator}"),
                format!("--advertise=http://{}", link.address),
                format!("--threads={threads}"),
                format!("--memory-limit={memory}"),
            ];
            let arguments = [arguments.to_vec(), end.clone()].concat();
            let mut worker = NodeProcess::new(&name, &cluster.dir, arguments).with_host(link.host);
            worker.start()?;
            cluster.nodes.lock().push(worker);
        }
        for worker in cluster.nodes.lock().iter_mut().skip(1) {
            let listening = worker.wait_until_listening()?;
            cluster.links.lead(worker.name(), listening)?;
        }
        Ok(cluster)
    }

    /// Where clients connect.
    pub(super) fn coordinator(&self) -> SocketAddr {
        self.coordinator
    }

    /// All nodes as they are right now, the coordinator first.
    pub(super) fn nodes(&self) -> Vec<NodeState> {
        let state = |node: &mut NodeProcess| NodeState {
            name: node.name().to_owned(),
            pid: node.pid(),
            is_frozen: node.pid().is_some_and(is_frozen),
            address: node.address(),
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

    /// Holds what a worker sends, or receives, or both.
    ///
    /// # Errors
    /// Where there is no such worker.
    pub(super) fn cut(&self, name: &str, direction: Direction) -> Result<()> {
        self.links.cut(self.worker(name)?, direction).with_context(|| format!("cannot cut {name} off"))
    }

    /// Lets flow what was held.
    ///
    /// # Errors
    /// Where there is no such worker.
    pub(super) fn heal(&self, name: &str) -> Result<()> {
        self.links.heal(self.worker(name)?).with_context(|| format!("cannot heal {name}"))
    }

    fn worker<'a>(&self, name: &'a str) -> Result<&'a str> {
        find(&mut self.nodes.lock(), name)?;
        if name == "coordinator" {
            return Err(anyhow!(
                "only workers can be cut off; cutting off all of them cuts off the coordinator"
            ));
        }
        Ok(name)
    }

    /// Starts one node again; its process.
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
