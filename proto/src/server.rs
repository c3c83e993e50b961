//! The one place that builds servers: limits, keepalive, `TCP_NODELAY` and,
//! one day, TLS and identity.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::Server;

use crate::channel::{
    CONNECTION_WINDOW_BYTES, FRAME_BYTES_MAX, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES,
};

/// Bytes that the headers of one request may take; strangers control them.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
/// Streams that one client may have open on a connection.
const CONCURRENT_STREAMS_MAX: u32 = 4096;

/// A server with all that every server of Shoal needs; add the services.
pub fn builder() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(CONCURRENT_STREAMS_MAX)
}

/// Binds `listen` and says where: port 0 becomes a free port.
///
/// # Errors
/// Whatever the operating system says, with the address in the message.
pub async fn bind(listen: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {listen}: {error}")))?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Accepted connections with `TCP_NODELAY` set on each: tonic ignores its own
/// setting when it is handed a stream of connections, and small queries then
/// take twice as long.
#[derive(Debug)]
pub struct Incoming(TcpListener);

impl Incoming {
    /// Accepts on `listener`.
    pub fn new(listener: TcpListener) -> Self {
        Self(listener)
    }
}

impl Stream for Incoming {
    type Item = io::Result<TcpStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.0.poll_accept(cx) {
            Poll::Ready(Ok((stream, _))) => {
                // A peer that is gone already fails at its first read.
                let _gone = stream.set_nodelay(true);
                Poll::Ready(Some(Ok(stream)))
            }
            Poll::Ready(Err(error)) => {
                // Such as too many open files: the listener itself is well.
                tracing::warn!(%error, "connection not accepted");
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn accepted_connections_send_small_messages_at_once() {
        let (listener, address) = bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let mut incoming = Incoming::new(listener);
        let (client, accepted) = tokio::join!(TcpStream::connect(address), incoming.next());
        assert!(accepted.unwrap().unwrap().nodelay().unwrap());
        assert!(!client.unwrap().nodelay().unwrap(), "the system does it for all: this shows nothing");
    }
}
