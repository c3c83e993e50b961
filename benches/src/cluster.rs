//! A cluster of real processes on free loopback ports, for tests and
//! benchmarks: nodes can be killed, frozen, cut off and started again by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
pub use shoal::links::Direction;
use shoal::links::Links;
use tempfile::TempDir;

use crate::client::Client;
use crate::node::Node;
pub use crate::node::Program;
use crate::small_disk::SmallDisk;

mod asking;
mod faults;
mod options;

pub use options::ClusterOptions;

/// The one that starts the cluster.
const FIRST_COORDINATOR: &str = "coordinator";
/// Removes the directory `$1` once our end of its standard input is closed,
/// that is, once we have ended in whatever way, and keeps at it for some
/// seconds because nodes may still be writing. Disks of workers that are
/// still mounted there are unmounted; what is no disk, umount refuses.
const SWEEP: &str = r#"cat >/dev/null; for i in 1 2 3 4 5 6 7 8 9 10; do umount -l "$1"/*/; rm -rf "$1"; sleep 0.5; [ -e "$1" ] || break; done"#;

/// A running cluster. Dropping it kills its nodes and removes its files, and
/// prints the ends of the logs when that happens because a test failed. In a
/// `static`, which is never dropped, the same happens when the process ends.
pub struct Cluster {
    nodes: Mutex<Vec<Node>>,
    links: Option<Links>,
    /// By worker.
    disks: Mutex<BTreeMap<String, Arc<SmallDisk>>>,
    options: ClusterOptions,
    import_dir: PathBuf,
    dir: TempDir,
    /// Its standard input closes when we end.
    sweeper: Child,
}

impl Cluster {
    /// Starts all nodes and waits until every worker has joined.
    ///
    /// # Errors
    /// With the ends of the logs, when a node does not come up.
    pub fn start(options: &ClusterOptions) -> Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("shoal-cluster-");
        let dir = match &options.parent_dir {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        }
        .context("make the cluster's directory")?;
        let sweeper = Command::new("sh")
            .args(["-c", SWEEP, "sh"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start sh")?;
        let import_dir = dir.path().join("import");
        std::fs::create_dir(&import_dir).context("make the import directory")?;

        let links = options.links.then(Links::new).transpose().context("make links")?;
        let cluster = Self {
            nodes: Mutex::default(),
            links,
            disks: Mutex::default(),
            options: options.clone(),
            import_dir,
            dir,
            sweeper,
        };
        cluster.start_coordinators(options.coordinators)?;
        let workers: Result<Vec<String>> = (0..options.workers).map(|_| cluster.spawn_worker()).collect();
        for worker in workers? {
            cluster.wait_until_listening(&worker)?;
        }
        cluster.wait_until_joined(options.workers)?;
        Ok(cluster)
    }

    fn start_coordinators(&self, coordinators: usize) -> Result<()> {
        // The others join its cluster.
        self.add_coordinator()?;
        let others: Result<Vec<String>> = (1..coordinators).map(|_| self.spawn_coordinator()).collect();
        for other in others? {
            self.wait_until_listening(&other)?;
        }
        if coordinators > 1 {
            self.wait_until_voting(coordinators)?;
        }
        Ok(())
    }

    /// Starts one more coordinator like the others, and waits until it listens;
    /// its name. [`Cluster::wait_until_voting`] waits until it decides, too.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn add_coordinator(&self) -> Result<String> {
        let name = self.spawn_coordinator()?;
        self.wait_until_listening(&name)?;
        Ok(name)
    }

    /// Starts one more worker like the others, and waits until it listens; its
    /// name.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn add_worker(&self) -> Result<String> {
        let name = self.spawn_worker()?;
        self.wait_until_listening(&name)?;
        Ok(name)
    }

    /// Starts a coordinator without waiting for it; its name. It joins those
    /// that have listened.
    fn spawn_coordinator(&self) -> Result<String> {
        let options = &self.options;
        let mut nodes = self.nodes();
        let others = nodes.iter().filter(|node| node.is_coordinator()).count();
        let name = match others {
            0 => FIRST_COORDINATOR.to_owned(),
            others => format!("coordinator-{}", others + 1),
        };
        let mut args = vec!["coordinator".to_owned()];
        args.extend(options.coordinator_zone_args(others));
        args.extend(coordinator_urls(&nodes).flat_map(|url| ["--join".to_owned(), url]));
        for root in std::iter::once(&self.import_dir).chain(&options.import_roots) {
            args.extend(["--import-root".to_owned(), root.display().to_string()]);
        }
        args.extend(options.coordinator_args.iter().cloned());
        let mut coordinator = self.linked(self.node(&name, args))?;
        coordinator.spawn()?;
        nodes.push(coordinator);
        Ok(name)
    }

    /// Starts a worker without waiting for it; its name.
    fn spawn_worker(&self) -> Result<String> {
        let options = &self.options;
        let mut nodes = self.nodes();
        let others = nodes.iter().filter(|node| !node.is_coordinator()).count();
        let name = format!("worker-{}", others + 1);
        let mut args: Vec<String> =
            ["worker", "--name", &name, "--threads"].into_iter().map(str::to_owned).collect();
        args.push(options.threads.to_string());
        args.extend(options.zone_args(others));
        args.extend(coordinator_urls(&nodes).flat_map(|url| ["--coordinator".to_owned(), url]));
        args.extend(options.worker_args.iter().cloned());
        let mut worker = self.linked(self.node(&name, args))?;
        if let Some(parent) = &options.worker_dir {
            worker = worker.with_data_dir(parent.join(&name));
        }
        if let Some(bytes) = options.disk_bytes {
            let disk = SmallDisk::mount(&self.dir().join(&name), bytes)?;
            self.disks().insert(name.clone(), Arc::new(disk));
        }
        worker.spawn()?;
        nodes.push(worker);
        Ok(name)
    }

    fn node(&self, name: &str, args: Vec<String>) -> Node {
        Node::new(name, self.dir(), self.options.program.clone(), args, self.options.env.clone())
    }

    /// The same node with a link to it, where there are links.
    fn linked(&self, node: Node) -> Result<Node> {
        let Some(links) = &self.links else { return Ok(node) };
        let link = links.open(node.name()).with_context(|| format!("open a link to {}", node.name()))?;
        Ok(node.with_link(link))
    }

    /// Waits until a node listens, and has its link lead there.
    fn wait_until_listening(&self, name: &str) -> Result<()> {
        let listening = self.with(name, Node::wait_until_listening)?;
        if let Some(links) = &self.links {
            links.lead(name, listening)?;
        }
        Ok(())
    }

    /// The URL at which clients reach the first coordinator; not through its
    /// link. Empty where it never listened.
    pub fn url(&self) -> String {
        self.url_of(FIRST_COORDINATOR).unwrap_or_default()
    }

    /// The URL at which clients reach this coordinator; not through its link.
    ///
    /// # Errors
    /// When it never listened.
    pub fn url_of(&self, coordinator: &str) -> Result<String> {
        Ok(format!("http://{}", self.address(coordinator)?))
    }

    /// A new session with the first coordinator.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect(&self) -> Result<Client> {
        self.connect_to(FIRST_COORDINATOR).await
    }

    /// A new session with this coordinator.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect_to(&self, coordinator: &str) -> Result<Client> {
        Ok(Client::connect(&self.url_of(coordinator)?).await?)
    }

    /// A directory that COPY may read from and write to.
    pub fn import_dir(&self) -> &Path {
        &self.import_dir
    }

    /// The directory that holds everything of this cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Names of all nodes, coordinators first.
    pub fn node_names(&self) -> Vec<String> {
        [self.coordinator_names(), self.worker_names()].concat()
    }

    /// Names of all coordinators, in the order in which they were started.
    pub fn coordinator_names(&self) -> Vec<String> {
        self.names_of(Node::is_coordinator)
    }

    /// Names of all workers, in the order in which they were started.
    pub fn worker_names(&self) -> Vec<String> {
        self.names_of(|node| !node.is_coordinator())
    }

    fn names_of(&self, is_one: impl Fn(&Node) -> bool) -> Vec<String> {
        self.nodes().iter().filter(|node| is_one(node)).map(|node| node.name().to_owned()).collect()
    }

    /// Where a node keeps its data.
    ///
    /// # Errors
    /// When there is no node of that name; so do all methods below, and those
    /// that do something to a node.
    pub fn data_dir(&self, name: &str) -> Result<PathBuf> {
        self.with(name, |node| Ok(node.data_dir().to_owned()))
    }

    /// Where a node listens, as `host:port`.
    ///
    /// # Errors
    /// When it never listened.
    pub fn address(&self, name: &str) -> Result<std::net::SocketAddr> {
        self.with(name, |node| node.address().context("it never listened"))
    }

    /// A node's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, name: &str) -> Result<u32> {
        self.with(name, |node| node.pid().context("it does not run"))
    }

    /// The disk that a worker has for itself.
    ///
    /// # Errors
    /// For an unknown name, and where workers have none.
    pub fn disk(&self, worker: &str) -> Result<Arc<SmallDisk>> {
        let disk = self.disks().get(worker).cloned();
        disk.with_context(|| format!("{worker} has no disk for itself"))
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<String, Arc<SmallDisk>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names of nodes that should run and do not: they crashed.
    pub fn crashed(&self) -> Vec<String> {
        self.nodes()
            .iter_mut()
            .filter(|node| node.pid().is_some())
            .filter_map(|node| (!node.is_alive()).then(|| node.name().to_owned()))
            .collect()
    }

    /// Processes of all running nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes().iter().filter_map(Node::pid).collect()
    }

    /// CPU seconds of all nodes so far.
    pub fn cpu_seconds(&self) -> f64 {
        self.nodes().iter().map(Node::cpu_seconds).sum()
    }

    /// The ends of all logs.
    pub fn log_tails(&self) -> String {
        self.nodes().iter().map(Node::log_tail).collect()
    }

    /// A guard that prints the ends of the logs when the test fails that holds
    /// it: for clusters in a `static`.
    pub fn show_logs_on_failure(&self) -> impl Drop + '_ {
        ShowLogs { cluster: self }
    }

    fn with<T>(&self, name: &str, then: impl FnOnce(&mut Node) -> Result<T>) -> Result<T> {
        let mut nodes = self.nodes();
        let node = nodes
            .iter_mut()
            .find(|node| node.name() == name)
            .with_context(|| format!("the cluster has no node `{name}`"))?;
        then(node).with_context(|| format!("node {name}"))
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_to_stderr(&self.log_tails());
        }
        self.nodes().clear();
        self.disks().clear();
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}

/// Where other nodes reach the coordinators that have listened.
fn coordinator_urls(nodes: &[Node]) -> impl Iterator<Item = String> {
    nodes.iter().filter(|node| node.is_coordinator()).filter_map(Node::url)
}

struct ShowLogs<'a> {
    cluster: &'a Cluster,
}

impl Drop for ShowLogs<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_to_stderr(&self.cluster.log_tails());
        }
    }
}

fn print_to_stderr(text: &str) {
    eprintln!("{text}");
}
