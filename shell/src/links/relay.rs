//! One connection through a link: bytes go on, or wait while they are held.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::cut::{Cuts, Flow};

/// Connections that one link carries at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// Bytes of one way of a connection that wait here while they are held; the
/// rest stays with who sends them.
const BUFFER_BYTES: usize = 128 * 1024;
/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long nothing is accepted after that failed, such as for too many open
/// files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a link knows.
#[derive(Clone)]
pub(super) struct Relay {
    /// The node that it leads to.
    pub(super) node: Arc<str>,
    /// Where the node listens; none before it was started.
    pub(super) target: watch::Receiver<Option<SocketAddr>>,
    pub(super) cuts: watch::Receiver<Cuts>,
    /// The addresses that nodes connect from.
    pub(super) nodes: Arc<Mutex<HashMap<IpAddr, Arc<str>>>>,
}

impl Relay {
    /// Takes connections for ever.
    pub(super) async fn serve(self, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let flow = Flow {
                        from: self.nodes.lock().get(&peer.ip()).cloned(),
                        to: Some(self.node.clone()),
                    };
                    let relay = self.clone();
                    tokio::spawn(async move {
                        // None: the links are gone.
                        let _ended = relay.connection(stream, flow).await;
                        drop(place);
                    });
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Carries one connection to its end. Where either way is held, a new
    /// connection gets no answer, and the end of an old one is not heard of.
    async fn connection(mut self, client: TcpStream, flow: Flow) -> Option<()> {
        let back = flow.reversed();
        self.cuts.wait_for(|cuts| !cuts.hold(&flow) && !cuts.hold(&back)).await.ok()?;
        let target = (*self.target.wait_for(Option::is_some).await.ok()?)?;
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(target)).await;
        let Ok(Ok(server)) = connected else {
            // As near as can be to a connection that is refused.
            let _gone = client.set_zero_linger();
            return Some(());
        };
        let (mut client, mut server) = (client, server);
        for stream in [&client, &server] {
            // A peer that is gone already fails at its first read.
            let _gone = stream.set_nodelay(true);
        }
        let (client_read, client_write) = client.split();
        let (server_read, server_write) = server.split();
        let there = pump(client_read, server_write, self.cuts.clone(), &flow);
        let here = pump(server_read, client_write, self.cuts.clone(), &back);
        if tokio::try_join!(there, here).is_err() {
            // Both sides close below: not before both can hear of it.
            self.cuts.wait_for(|cuts| !cuts.hold(&flow) && !cuts.hold(&back)).await.ok()?;
        }
        Some(())
    }
}

/// Moves the bytes of one way until their end, or until one side breaks.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut cuts: watch::Receiver<Cuts>,
    flow: &Flow,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await;
        cuts.wait_for(|cuts| !cuts.hold(flow)).await.map_err(io::Error::other)?;
        match read? {
            0 => return to.shutdown().await,
            length => to.write_all(&buffer[..length]).await?,
        }
    }
}
