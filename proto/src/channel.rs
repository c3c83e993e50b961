//! The one place that builds client channels: deadlines, keepalive and, one
//! day, TLS and identity.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::{ErrorCode, Failure};

/// How long a connection may take to come up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an open connection is probed, also while it is idle.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// How long a probe may stay unanswered before the connection is given up.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Unread bytes that one stream may hold; what bounds a slow reader.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Unread bytes that one connection may hold. Far above the sum of its
/// streams, so that a stream nobody reads never starves its neighbours.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024 * 1024;
/// The largest message between nodes; larger batches are split before.
pub const MESSAGE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Client channels by address, shared by everything in one process. A channel
/// connects when it is first used and reconnects by itself.
#[derive(Clone, Debug)]
pub struct Channels {
    open: Arc<Mutex<HashMap<String, Channel>>>,
    /// Connections are driven here, not on the runtime that computes: a
    /// keepalive is answered however busy the queries are.
    io: tokio::runtime::Handle,
}

impl Channels {
    /// Channels whose connections live on `io`.
    pub fn new(io: tokio::runtime::Handle) -> Self {
        Self { open: Arc::default(), io }
    }

    /// The channel to `address` (a URL such as `http://10.0.0.7:9001`).
    ///
    /// # Errors
    /// `Invalid` where the address is no URL. Whether somebody answers there
    /// shows only when the channel is used.
    pub fn get(&self, address: &str) -> Result<Channel, Failure> {
        if let Some(channel) = self.open.lock().get(address) {
            return Ok(channel.clone());
        }
        let endpoint = endpoint(address)?;
        let channel = {
            let _on_io = self.io.enter();
            endpoint.connect_lazy()
        };
        let mut open = self.open.lock();
        Ok(open.entry(address.to_owned()).or_insert(channel).clone())
    }

    /// Forgets the channel to `address`; the next use connects anew.
    pub fn forget(&self, address: &str) {
        self.open.lock().remove(address);
    }
}

/// An endpoint with all that every client of Shoal needs.
///
/// # Errors
/// `Invalid` where the address is no URL.
pub fn endpoint(address: &str) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|error| {
        Failure::new(
            ErrorCode::Invalid,
            format!("`{address}` is not an address such as http://127.0.0.1:9000: {error}"),
        )
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}
