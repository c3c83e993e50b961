//! One node of the demo as an operating system process.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::links::Link;

/// How long a node may take until it listens.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How often its address file is looked for.
const LISTEN_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long a node may take to end after its input ended.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// What is shown of a node's log when it did not come up.
const LOG_TAIL_BYTES: u64 = 2000;

/// A node: its command line, and its process while it runs.
pub(super) struct NodeProcess {
    name: String,
    data_dir: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
    link: Link,
    /// Where it listened last, and where it will again.
    address: Option<SocketAddr>,
}

impl NodeProcess {
    /// A node that is not started yet, and is reached through a link.
    /// `arguments` follow `shoal`, the command first, without the data directory
    /// and the addresses.
    pub(super) fn new(name: &str, dir: &Path, link: Link, arguments: Vec<String>) -> Self {
        Self {
            name: name.to_owned(),
            data_dir: dir.join(name),
            log: dir.join(format!("{name}.log")),
            arguments,
            child: None,
            link,
            address: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Its process, if that still runs.
    pub(super) fn pid(&mut self) -> Option<u32> {
        let child = self.child.as_mut()?;
        matches!(child.try_wait(), Ok(None)).then(|| child.id())
    }

    /// Whether it is a coordinator, and not a worker.
    pub(super) fn is_coordinator(&self) -> bool {
        self.arguments.first().is_some_and(|command| command == "coordinator")
    }

    /// Where clients and other nodes reach it.
    pub(super) fn reached_at(&self) -> SocketAddr {
        self.link.address
    }

    /// Starts its process.
    ///
    /// # Errors
    /// Where it runs already, or the operating system does not let it.
    pub(super) fn start(&mut self) -> Result<()> {
        if let Some(pid) = self.pid() {
            bail!("{} is running (pid {pid})", self.name);
        }
        fs::create_dir_all(&self.data_dir)
            .with_context(|| format!("cannot make {}", self.data_dir.display()))?;
        // An address of an earlier run must not be taken for this one's.
        let _absent = fs::remove_file(self.address_file());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let listen = self.address.unwrap_or(SocketAddr::new(self.link.host, 0)).to_string();
        let advertise = format!("http://{}", self.link.address);
        let program = std::env::current_exe().context("cannot find the shoal binary")?;
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .args(["--listen", &listen, "--advertise", &advertise, "--stop-with-stdin", "--data-dir"])
            .arg(&self.data_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Its own group: Ctrl-C in the shell is not for the nodes.
            .process_group(0);
        for (variable, _) in std::env::vars_os() {
            // Settings of some other node are not for these.
            if variable.to_string_lossy().starts_with("SHOAL_") && variable != "SHOAL_LOG" {
                command.env_remove(variable);
            }
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits until it listens; where.
    ///
    /// # Errors
    /// With the end of its log, where it ended or takes too long.
    pub(super) fn wait_until_listening(&mut self) -> Result<SocketAddr> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        loop {
            let address =
                fs::read_to_string(self.address_file()).ok().and_then(|text| text.trim().parse().ok());
            if let Some(address) = address {
                self.address = Some(address);
                return Ok(address);
            }
            if self.pid().is_none() {
                bail!("{} ended at once; its log says:\n{}", self.name, self.log_tail());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} does not listen after {LISTEN_TIMEOUT:?}; its log says:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            std::thread::sleep(LISTEN_POLL_INTERVAL);
        }
    }

    /// Ends it as `kill -9` does; its process, if it ran.
    pub(super) fn kill(&mut self) -> Option<u32> {
        let pid = self.pid();
        if let Some(mut child) = self.child.take() {
            // Both fail only where it has ended already.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
        pid
    }

    /// Tells it to end; see [`NodeProcess::stop`].
    pub(super) fn close_input(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
        }
    }

    /// Ends it: nicely, then not.
    pub(super) fn stop(&mut self) {
        self.close_input();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.pid().is_some() && Instant::now() < deadline {
            std::thread::sleep(LISTEN_POLL_INTERVAL);
        }
        self.kill();
    }

    fn address_file(&self) -> PathBuf {
        self.data_dir.join("address")
    }

    fn log_tail(&self) -> String {
        let read = || -> std::io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().unwrap_or_else(|error| format!("(cannot read {}: {error})", self.log.display()))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        self.kill();
    }
}
