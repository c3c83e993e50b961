//! One node of a test cluster: a real process, its data directory, its log.

use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use shoal::links::Link;

/// How long a node may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Lines of a node's log that a failure shows.
const LOG_TAIL_LINES: usize = 40;

/// How to start the `shoal` binary.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Arguments before shoal's own.
    pub leading_args: Vec<String>,
}

impl Program {
    /// The `shoal` binary at `path`.
    pub fn shoal(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), leading_args: Vec::new() }
    }

    /// This executable again, with `shoal` as its first argument: how
    /// `shoal-benches` starts nodes of the version that it is built with.
    ///
    /// # Errors
    /// When the path of this executable cannot be found.
    pub fn this_executable() -> Result<Self> {
        let path = std::env::current_exe().context("path of this executable")?;
        Ok(Self { path, leading_args: vec!["shoal".into()] })
    }
}

/// A node. It ends when this is dropped, and also when the process that
/// started it ends in any way: its standard input is a pipe from us, and it
/// stops when that closes.
pub struct Node {
    name: String,
    data_dir: PathBuf,
    log: PathBuf,
    program: Program,
    args: Vec<String>,
    env: Vec<(String, String)>,
    child: Option<Child>,
    /// Stopped where it was, by [`Node::pause`].
    is_paused: bool,
    host: IpAddr,
    /// Where others reach it; None: where it listens.
    advertise: Option<String>,
    address: Option<SocketAddr>,
    /// CPU seconds of earlier processes of this node.
    cpu_seconds_before: f64,
}

impl Node {
    /// Describes a node without starting it. `args` are those of `shoal`, what
    /// it runs first, without `--data-dir`, `--listen` and `--advertise`.
    pub fn new(
        name: &str,
        dir: &Path,
        program: Program,
        args: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            data_dir: dir.join(name),
            log: dir.join(format!("{name}.log")),
            program,
            args,
            env,
            child: None,
            is_paused: false,
            host: Ipv4Addr::LOCALHOST.into(),
            advertise: None,
            address: None,
            cpu_seconds_before: 0.0,
        }
    }

    /// The same node with its data elsewhere.
    pub fn with_data_dir(mut self, data_dir: PathBuf) -> Self {
        self.data_dir = data_dir;
        self
    }

    /// The same node, reached through a link: it listens on the link's host,
    /// and others connect to the link.
    pub fn with_link(mut self, link: Link) -> Self {
        self.host = link.host;
        self.advertise = Some(format!("http://{}", link.address));
        self
    }

    /// `coordinator`, `coordinator-2`, `worker-1`, ...
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it keeps its data.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where it listens, once it was ready; the same over restarts.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The URL at which other nodes reach it, once it was ready.
    pub fn url(&self) -> Option<String> {
        let listening = self.address?;
        Some(self.advertise.clone().unwrap_or_else(|| format!("http://{listening}")))
    }

    /// Whether it is a coordinator, and not a worker.
    pub fn is_coordinator(&self) -> bool {
        self.args.first().is_some_and(|command| command == "coordinator")
    }

    /// Whether it runs and is not frozen: it can answer.
    pub fn can_answer(&self) -> bool {
        self.child.is_some() && !self.is_paused
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// CPU seconds of all its processes so far.
    pub fn cpu_seconds(&self) -> f64 {
        self.cpu_seconds_before + self.pid().map_or(0.0, crate::process::cpu_seconds)
    }

    /// Starts its process, without waiting for it. A node that listened
    /// before listens at the same address again.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        if self.child.is_some() {
            bail!("{} runs already", self.name);
        }
        fs::create_dir_all(&self.data_dir).with_context(|| format!("create {}", self.data_dir.display()))?;
        let _ = fs::remove_file(self.address_file());
        let log = self.open_log()?;
        let listen = self.address.unwrap_or(SocketAddr::new(self.host, 0)).to_string();
        let child = Command::new(&self.program.path)
            .args(&self.program.leading_args)
            .args(&self.args)
            .arg("--data-dir")
            .arg(&self.data_dir)
            .args(["--listen", &listen, "--stop-with-stdin"])
            .args(self.advertise.iter().flat_map(|url| ["--advertise", url]))
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().context("log file")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {} ({})", self.name, self.program.path.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it listens.
    ///
    /// # Errors
    /// When it ended or takes too long; with the end of its log.
    pub fn wait_until_listening(&mut self) -> Result<SocketAddr> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(address) = self.bound_address()
                && TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            {
                self.address = Some(address);
                return Ok(address);
            }
            let ended = match &mut self.child {
                Some(child) => child.try_wait().context("wait for a node")?,
                None => bail!("{} was not started", self.name),
            };
            if let Some(status) = ended {
                self.child = None;
                bail!("{} ended at its start with {status}; its log:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!("{} did not listen within {START_TIMEOUT:?}; its log:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Ends it with SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        self.cpu_seconds_before = self.cpu_seconds();
        self.is_paused = false;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it does not run or is still there after `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + timeout;
        loop {
            let Some(child) = &mut self.child else { bail!("{} does not run", self.name) };
            if let Some(status) = child.try_wait().context("wait for a node")? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} still ran {timeout:?} after SIGTERM; its log:\n{}", self.name, self.log_tail());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Freezes it (SIGSTOP): its connections stay open and silent.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.is_paused = true;
        Ok(())
    }

    /// Lets a frozen node go on (SIGCONT).
    ///
    /// # Errors
    /// When it does not run.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::CONT)?;
        self.is_paused = false;
        Ok(())
    }

    /// Whether its process is there: false after a crash.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = self.log_text();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_TAIL_LINES);
        format!("--- {} ({})\n{}\n", self.name, self.log.display(), lines[from..].join("\n"))
    }

    /// Its whole log.
    pub fn log_text(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self
            .pid()
            .and_then(|pid| i32::try_from(pid).ok())
            .and_then(Pid::from_raw)
            .with_context(|| format!("{} does not run", self.name))?;
        kill_process(pid, signal).with_context(|| format!("send {signal:?} to {}", self.name))
    }

    fn address_file(&self) -> PathBuf {
        self.data_dir.join("address")
    }

    fn bound_address(&self) -> Option<SocketAddr> {
        let text = fs::read_to_string(self.address_file()).ok()?;
        text.trim().parse().ok()
    }

    fn open_log(&self) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("open {}", self.log.display()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
