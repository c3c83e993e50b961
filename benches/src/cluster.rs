//! A cluster of real processes on free loopback ports, for tests and
//! benchmarks: nodes can be killed, frozen, cut off and started again by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
pub use shoal::links::Direction;
use shoal::links::Links;
use tempfile::TempDir;

use crate::client::Client;
use crate::node::Node;
pub use crate::node::Program;
use crate::small_disk::SmallDisk;

/// How long all workers may take to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);
/// How often membership is asked for while waiting.
const JOIN_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Removes the directory `$1` once our end of its standard input is closed,
/// that is, once we have ended in whatever way, and keeps at it for some
/// seconds because nodes may still be writing. Disks of workers that are
/// still mounted there are unmounted; what is no disk, umount refuses.
const SWEEP: &str = r#"cat >/dev/null; for i in 1 2 3 4 5 6 7 8 9 10; do umount -l "$1"/*/; rm -rf "$1"; sleep 0.5; [ -e "$1" ] || break; done"#;

/// What a cluster is made of.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// How to start a node.
    pub program: Program,
    /// Workers, named `worker-1` and so on.
    pub workers: usize,
    /// Threads of each worker for queries.
    pub threads: usize,
    /// Directories on the server that COPY may use, besides
    /// [`Cluster::import_dir`].
    pub import_roots: Vec<PathBuf>,
    /// More arguments for the coordinator.
    pub coordinator_args: Vec<String>,
    /// More arguments for each worker.
    pub worker_args: Vec<String>,
    /// Environment of every node.
    pub env: Vec<(String, String)>,
    /// Where the cluster's directory is made; None: the system's directory
    /// for temporary files.
    pub parent_dir: Option<PathBuf>,
    /// Where workers keep their data; None: in the cluster's directory. It is
    /// not removed.
    pub worker_dir: Option<PathBuf>,
    /// Whether all nodes reach one another through links, so that workers can
    /// be cut off.
    pub links: bool,
    /// The size of the disk that each worker has for itself, below the
    /// cluster's directory; None: no such disk. Only root can mount one.
    pub disk_bytes: Option<u64>,
}

impl ClusterOptions {
    /// `workers` workers of one thread each.
    pub fn new(program: Program, workers: usize) -> Self {
        Self {
            program,
            workers,
            threads: 1,
            import_roots: Vec::new(),
            coordinator_args: Vec::new(),
            worker_args: Vec::new(),
            env: Vec::new(),
            parent_dir: None,
            worker_dir: None,
            links: false,
            disk_bytes: None,
        }
    }
}

/// A running cluster. Dropping it kills its nodes and removes its files, and
/// prints the ends of the logs when that happens because a test failed. In a
/// `static`, which is never dropped, the same happens when the process ends.
pub struct Cluster {
    nodes: Mutex<Vec<Node>>,
    links: Option<Links>,
    /// By worker.
    disks: Mutex<BTreeMap<String, Arc<SmallDisk>>>,
    options: ClusterOptions,
    /// Where workers reach the coordinator.
    coordinator_url: String,
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

        let mut args = vec!["coordinator".to_owned()];
        for root in std::iter::once(&import_dir).chain(&options.import_roots) {
            args.extend(["--import-root".to_owned(), root.display().to_string()]);
        }
        args.extend(options.coordinator_args.iter().cloned());
        let mut coordinator =
            Node::new("coordinator", dir.path(), options.program.clone(), args, options.env.clone());
        coordinator.spawn()?;
        let listening = coordinator.wait_until_listening()?;
        let links = options.links.then(Links::new).transpose().context("make links")?;
        let mut coordinator_url = format!("http://{listening}");
        if let Some(links) = &links {
            let link = links.open("coordinator").context("open a link to the coordinator")?;
            links.lead("coordinator", listening)?;
            coordinator_url = format!("http://{}", link.address);
        }
        let cluster = Self {
            nodes: Mutex::new(vec![coordinator]),
            links,
            disks: Mutex::default(),
            options: options.clone(),
            coordinator_url,
            import_dir,
            dir,
            sweeper,
        };
        let workers: Result<Vec<String>> = (0..options.workers).map(|_| cluster.spawn_worker()).collect();
        for worker in workers? {
            cluster.wait_until_listening(&worker)?;
        }
        cluster.wait_until_joined(options.workers)?;
        Ok(cluster)
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

    /// Starts a worker without waiting for it; its name.
    fn spawn_worker(&self) -> Result<String> {
        let options = &self.options;
        let mut nodes = self.nodes();
        // The coordinator is one of them.
        let name = format!("worker-{}", nodes.len());
        let mut args: Vec<String> =
            ["worker", "--coordinator", &self.coordinator_url, "--name", &name, "--threads"]
                .into_iter()
                .map(str::to_owned)
                .collect();
        args.push(options.threads.to_string());
        args.extend(options.worker_args.iter().cloned());
        let link = self.links.as_ref().map(|links| links.open(&name)).transpose();
        let link = link.with_context(|| format!("open a link to {name}"))?;
        if let Some(link) = link {
            args.extend(["--advertise".to_owned(), format!("http://{}", link.address)]);
        }
        let mut worker = Node::new(&name, self.dir(), options.program.clone(), args, options.env.clone());
        if let Some(parent) = &options.worker_dir {
            worker = worker.with_data_dir(parent.join(&name));
        }
        if let Some(link) = link {
            worker = worker.with_host(link.host);
        }
        if let Some(bytes) = options.disk_bytes {
            let disk = SmallDisk::mount(&self.dir().join(&name), bytes)?;
            self.disks().insert(name.clone(), Arc::new(disk));
        }
        worker.spawn()?;
        nodes.push(worker);
        Ok(name)
    }

    /// Waits until a worker listens, and has its link lead there.
    fn wait_until_listening(&self, worker: &str) -> Result<()> {
        let listening = self.with(worker, Node::wait_until_listening)?;
        if let Some(links) = &self.links {
            links.lead(worker, listening)?;
        }
        Ok(())
    }

    /// The URL that clients connect to.
    pub fn url(&self) -> String {
        let nodes = self.nodes();
        nodes[0].address().map_or_else(String::new, |address| format!("http://{address}"))
    }

    /// A new session.
    ///
    /// # Errors
    /// When the coordinator cannot be reached.
    pub async fn connect(&self) -> Result<Client> {
        Ok(Client::connect(&self.url()).await?)
    }

    /// A directory that COPY may read from and write to.
    pub fn import_dir(&self) -> &Path {
        &self.import_dir
    }

    /// The directory that holds everything of this cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Names of all nodes, the coordinator first.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes().iter().map(|node| node.name().to_owned()).collect()
    }

    /// Where a node keeps its data.
    ///
    /// # Errors
    /// When there is no node of that name; so do all methods below.
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

    /// Kills a node with SIGKILL.
    ///
    /// # Errors
    /// For an unknown name.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.with(name, |node| {
            node.kill();
            Ok(())
        })
    }

    /// Ends a node with SIGTERM.
    ///
    /// # Errors
    /// When it is still there after `timeout`.
    pub fn terminate(&self, name: &str, timeout: Duration) -> Result<ExitStatus> {
        self.with(name, |node| node.terminate(timeout))
    }

    /// Freezes a node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&self, name: &str) -> Result<()> {
        self.with(name, |node| node.pause())
    }

    /// Lets a frozen node go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.with(name, |node| node.resume())
    }

    /// Cuts a worker off: bytes to or from it, or both, are held until it is
    /// healed. Nobody is told, and no connection breaks.
    ///
    /// # Errors
    /// For an unknown name, and where the cluster was started without links.
    pub fn cut(&self, worker: &str, direction: Direction) -> Result<()> {
        self.links()?.cut(worker, direction).with_context(|| format!("cut {worker} off"))
    }

    /// Lets flow what a cut held.
    ///
    /// # Errors
    /// As [`Cluster::cut`].
    pub fn heal(&self, worker: &str) -> Result<()> {
        self.links()?.heal(worker).with_context(|| format!("heal {worker}"))
    }

    fn links(&self) -> Result<&Links> {
        self.links.as_ref().context("the cluster was started without links: set ClusterOptions::links")
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

    /// Starts a killed node again, with its data and its address, and waits
    /// until it listens.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self, name: &str) -> Result<()> {
        self.with(name, |node| {
            node.kill();
            node.spawn()?;
            node.wait_until_listening().map(|_| ())
        })
    }

    /// Waits until `workers` workers are live.
    ///
    /// # Errors
    /// With the ends of the logs, after half a minute.
    pub fn wait_until_joined(&self, workers: usize) -> Result<()> {
        let url = self.url();
        let joined = std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let deadline = Instant::now() + JOIN_TIMEOUT;
                loop {
                    let live = match Client::connect(&url).await {
                        Ok(mut client) => client.live_workers().await.map_err(anyhow::Error::from),
                        Err(error) => Err(error.into()),
                    };
                    match live {
                        Ok(live) if live >= workers => return Ok(()),
                        other if Instant::now() > deadline => {
                            bail!("after {JOIN_TIMEOUT:?} not {workers} workers but {other:?}")
                        }
                        _ => tokio::time::sleep(JOIN_POLL_INTERVAL).await,
                    }
                }
            })
        })
        .join();
        match joined {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.context(self.log_tails())),
            Err(_) => bail!("waiting for workers panicked"),
        }
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
