//! How the nodes of a demo are started: the coordinators, and then the workers.

use std::fs;

use anyhow::{Context, Result};

use super::{DemoCluster, NodeProcess, find};
use crate::config::{cores, share_of_memory};
use crate::links::Link;

/// The share of the machine's memory that all workers may use together.
const MEMORY_PERCENT: u64 = 50;
/// The coordinator that starts the cluster; the others join it.
const FIRST: &str = "coordinator";

impl DemoCluster {
    /// Starts the coordinators: those first that the folder has already, as one
    /// that joins needs most of them.
    pub(super) fn start_coordinators(&self, count: u32) -> Result<()> {
        let others = (2..=count).map(|number| format!("coordinator-{number}"));
        let names = std::iter::once(FIRST.to_owned()).chain(others);
        let (there, new): (Vec<String>, Vec<String>) =
            names.partition(|name| name == FIRST || self.dir.join(name).exists());
        let import_root = import_root()?;
        let first = self.kept_link(FIRST)?;
        for names in [there, new] {
            for name in &names {
                let mut arguments = vec!["coordinator".to_owned(), import_root.clone()];
                let link = if name == FIRST {
                    first
                } else {
                    arguments.push(format!("--join=http://{}", first.address));
                    self.kept_link(name)?
                };
                self.start_node(name, link, arguments)?;
            }
            self.wait_until_listening(&names)?;
        }
        // Those that join may have come before others that were there.
        self.nodes.lock().sort_by_key(|node| number_of(node.name()));
        Ok(())
    }

    /// A link to a coordinator at the address that the folder remembers: the
    /// other coordinators know it by that.
    fn kept_link(&self, name: &str) -> Result<Link> {
        let path = self.dir.join(format!("{name}.link"));
        let before = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
        let link = match before {
            Some(address) => self.links.open_at(name, address),
            None => self.links.open(name),
        };
        let link = link.with_context(|| format!("cannot open a link to {name} ({})", path.display()))?;
        fs::write(&path, link.address.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(link)
    }

    /// Starts workers, which join all coordinators.
    pub(super) fn start_workers(&self, count: u32, threads: Option<u32>) -> Result<()> {
        let threads = threads.unwrap_or_else(|| (u32::try_from(cores()).unwrap_or(1) / count).max(1));
        let memory = share_of_memory(MEMORY_PERCENT / u64::from(count).min(MEMORY_PERCENT)).0;
        let coordinators: Vec<String> = self
            .nodes
            .lock()
            .iter()
            .map(|node| format!("--coordinator=http://{}", node.reached_at()))
            .collect();
        let names: Vec<String> = (1..=count).map(|number| format!("worker-{number}")).collect();
        let import_root = import_root()?;
        for name in &names {
            let link = self.links.open(name).with_context(|| format!("cannot open a link to {name}"))?;
            let arguments = [
                "worker".to_owned(),
                format!("--name={name}"),
                format!("--threads={threads}"),
                format!("--memory-limit={memory}"),
                import_root.clone(),
            ];
            self.start_node(name, link, [arguments.to_vec(), coordinators.clone()].concat())?;
        }
        self.wait_until_listening(&names)
    }

    fn start_node(&self, name: &str, link: Link, mut arguments: Vec<String>) -> Result<()> {
        if !self.kept {
            // The nodes remove the folder, or we do.
            arguments.extend(["--remove-with-stdin".to_owned(), self.dir.display().to_string()]);
        }
        let mut node = NodeProcess::new(name, &self.dir, link, arguments);
        node.start()?;
        self.nodes.lock().push(node);
        Ok(())
    }

    /// Waits until all of these listen, and has their links lead there.
    fn wait_until_listening(&self, names: &[String]) -> Result<()> {
        let mut nodes = self.nodes.lock();
        for name in names {
            let listening = find(&mut nodes, name)?.wait_until_listening()?;
            self.links.lead(name, listening)?;
        }
        Ok(())
    }
}

/// Files where the demo was started are what COPY and external tables may read and
/// write.
fn import_root() -> Result<String> {
    let folder = std::env::current_dir().context("cannot tell the current folder")?;
    Ok(format!("--import-root={}", folder.display()))
}

/// Of `coordinator-3` 3, and of `coordinator` 0.
fn number_of(name: &str) -> u32 {
    name.rsplit_once('-').and_then(|(_, number)| number.parse().ok()).unwrap_or_default()
}
