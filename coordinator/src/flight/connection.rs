//! Client connections that know when they end: a client without a token has
//! one session for as long as its connection lives, and the next client that
//! is given the same port by its system does not inherit it.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::Connected;

use super::sessions::ConnectionSession;

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    details: ConnectionDetails,
}

/// What each request of a connection carries in its extensions. The last
/// clone goes with the connection, and its sessions with it.
#[derive(Clone, Debug)]
pub struct ConnectionDetails {
    remote: Option<SocketAddr>,
    sessions: Arc<Mutex<Vec<ConnectionSession>>>,
}

impl ConnectionDetails {
    pub(super) fn new(remote: Option<SocketAddr>) -> Self {
        Self { remote, sessions: Arc::default() }
    }

    /// Where the client is; `None` where the system cannot say.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.remote
    }

    /// Sessions of the connection, one for each user name that it used.
    pub(super) fn sessions(&self) -> &Mutex<Vec<ConnectionSession>> {
        &self.sessions
    }
}

/// Accepted streams as connections, to be served by
/// `tonic::transport::Server::serve_with_incoming`.
pub fn connections(
    incoming: impl Stream<Item = io::Result<TcpStream>>,
) -> impl Stream<Item = io::Result<Connection>> {
    incoming.map(|accepted| {
        accepted.map(|stream| {
            let details = ConnectionDetails::new(stream.peer_addr().ok());
            Connection { stream, details }
        })
    })
}

impl Connected for Connection {
    type ConnectInfo = ConnectionDetails;

    fn connect_info(&self) -> ConnectionDetails {
        self.details.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
