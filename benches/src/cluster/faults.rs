//! What is done to the nodes of a cluster: they are killed, frozen, cut off,
//! and brought back.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal::links::{Direction, Links};

use super::Cluster;

impl Cluster {
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

    /// Cuts a node off from the others: bytes to or from it, or both, are held
    /// until it is healed. Nobody is told, and no connection breaks. Clients
    /// still reach a coordinator.
    ///
    /// # Errors
    /// For an unknown name, and where the cluster was started without links.
    pub fn cut(&self, name: &str, direction: Direction) -> Result<()> {
        self.links()?.cut(name, direction).with_context(|| format!("cut {name} off"))
    }

    /// Lets flow what a cut held.
    ///
    /// # Errors
    /// As [`Cluster::cut`].
    pub fn heal(&self, name: &str) -> Result<()> {
        self.links()?.heal(name).with_context(|| format!("heal {name}"))
    }

    fn links(&self) -> Result<&Links> {
        self.links.as_ref().context("the cluster was started without links: set ClusterOptions::links")
    }

    /// Starts a killed node again, with its data and its address, and waits
    /// until it listens.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&self, name: &str) -> Result<()> {
        self.restart_all(&[name.to_owned()])
    }

    /// As [`Cluster::restart`], all of them at once: coordinators may need one
    /// another to come up.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn restart_all(&self, names: &[String]) -> Result<()> {
        for name in names {
            self.with(name, |node| {
                node.kill();
                node.spawn()
            })?;
        }
        names.iter().try_for_each(|name| self.wait_until_listening(name))
    }
}
