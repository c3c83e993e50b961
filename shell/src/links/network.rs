//! The links of one cluster.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::Direction;
use super::cut::Cuts;
use super::relay::Relay;

/// The last number of the address that all links listen on.
const LINKS_HOST: u8 = 254;

/// How one node is reached, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Where others connect to reach the node.
    pub address: SocketAddr,
    /// A loopback address of the node's own. It must listen and connect from
    /// there: that is how the links know whose bytes they carry.
    pub host: IpAddr,
}

/// A link to each node of a cluster. All connections through them are gone
/// when this is dropped.
pub struct Links {
    /// Only none while this is dropped.
    runtime: Option<Runtime>,
    cuts: watch::Sender<Cuts>,
    nodes: Arc<Mutex<HashMap<IpAddr, Arc<str>>>>,
    targets: Mutex<HashMap<String, watch::Sender<Option<SocketAddr>>>>,
    /// The first numbers of all addresses; those of another cluster differ.
    net: [u8; 3],
}

impl Links {
    /// No link yet.
    ///
    /// # Errors
    /// Where there can be no thread.
    pub fn new() -> io::Result<Self> {
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("links").enable_all().build()?;
        let [first, second, ..] = RandomState::new().build_hasher().finish().to_ne_bytes();
        Ok(Self {
            runtime: Some(runtime),
            cuts: watch::Sender::new(Cuts::default()),
            nodes: Arc::default(),
            targets: Mutex::default(),
            // 127.0 is what everybody else uses.
            net: [127, first.max(1), second],
        })
    }

    /// Opens the link to a node that is not started yet. Whoever connects
    /// waits for [`Links::lead`].
    ///
    /// # Errors
    /// Where there is no port, or there are too many nodes.
    pub fn open(&self, node: &str) -> io::Result<Link> {
        let [a, b, c] = self.net;
        self.open_at(node, (Ipv4Addr::new(a, b, c, LINKS_HOST), 0).into())
    }

    /// As [`Links::open`], where others connect to this address, such as one of
    /// an earlier run.
    ///
    /// # Errors
    /// Where somebody else listens there, or there are too many nodes.
    pub fn open_at(&self, node: &str, address: SocketAddr) -> io::Result<Link> {
        let Some(runtime) = &self.runtime else { return Err(io::ErrorKind::NotConnected.into()) };
        let [a, b, c] = self.net;
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let target = watch::Sender::new(None);
        let name: Arc<str> = node.into();
        let relay = Relay {
            node: Arc::clone(&name),
            target: target.subscribe(),
            cuts: self.cuts.subscribe(),
            nodes: Arc::clone(&self.nodes),
        };
        let mut nodes = self.nodes.lock();
        let number = u8::try_from(nodes.len() + 1).ok().filter(|number| *number < LINKS_HOST);
        let number = number.ok_or_else(|| {
            io::Error::other(format!(
                "no link to {node}: there are {} nodes, and no more can be",
                nodes.len()
            ))
        })?;
        let host = IpAddr::from([a, b, c, number]);
        nodes.insert(host, name);
        self.targets.lock().insert(node.to_owned(), target);
        let _in_runtime = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        runtime.spawn(relay.serve(listener));
        Ok(Link { address, host })
    }

    /// Where a node listens, once it does.
    ///
    /// # Errors
    /// Where there is no link to it; so do the methods below.
    pub fn lead(&self, node: &str, listening: SocketAddr) -> io::Result<()> {
        let targets = self.targets.lock();
        let target = targets.get(node).ok_or_else(|| unknown(node))?;
        target.send_replace(Some(listening));
        Ok(())
    }

    /// Holds what a node sends, or receives, or both: nothing is lost, no
    /// connection breaks, and nobody is told. In place of an earlier cut.
    ///
    /// # Errors
    /// Where there is no link to it.
    pub fn cut(&self, node: &str, direction: Direction) -> io::Result<()> {
        self.change(node, |cuts| cuts.cut(node, direction))
    }

    /// Lets flow what was held.
    ///
    /// # Errors
    /// Where there is no link to it.
    pub fn heal(&self, node: &str) -> io::Result<()> {
        self.change(node, |cuts| cuts.heal(node))
    }

    /// How a node is cut off right now.
    pub fn cut_of(&self, node: &str) -> Option<Direction> {
        self.cuts.borrow().of(node)
    }

    fn change(&self, node: &str, change: impl FnOnce(&mut Cuts)) -> io::Result<()> {
        if !self.targets.lock().contains_key(node) {
            return Err(unknown(node));
        }
        self.cuts.send_modify(change);
        Ok(())
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropped like any other value, it would wait, which must not be
            // done on a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}

fn unknown(node: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no link to `{node}`"))
}
