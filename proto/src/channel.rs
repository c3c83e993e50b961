//! The one place that builds client channels: deadlines, keepalive and, one
//! day, TLS and identity.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};

use crate::{ErrorCode, Failure, Zone};

/// How long a connection may take to come up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often an open connection is probed, also while it is idle.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a probe may stay unanswered before the connection is given up.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Unread bytes that one stream may hold; what bounds a slow reader.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// Unread bytes that one connection may hold. Far above the sum of its
/// streams, so that a stream nobody reads never starves its neighbours.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024 * 1024;
/// Bytes of one frame of HTTP/2. The 16 KiB that are usual cost more time than
/// the bytes in them.
pub const FRAME_BYTES_MAX: u32 = 256 * 1024;
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
    /// The loopback address that connections to this machine come from.
    source: Option<IpAddr>,
    /// Where this process stands.
    zone: Arc<Zone>,
    connect: Option<Connect>,
}

/// Makes a channel in another way than over TCP.
#[derive(Clone)]
struct Connect(Arc<dyn Fn(&Endpoint) -> Channel + Send + Sync>);

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connect")
    }
}

impl Channels {
    /// Channels whose connections live on `io`.
    pub fn new(io: tokio::runtime::Handle) -> Self {
        Self { open: Arc::default(), io, source: None, zone: Arc::default(), connect: None }
    }

    /// Has `connect` make channels, in another way than over TCP: such as through a
    /// network that a test makes up. They are to connect when they are first used.
    pub fn through(mut self, connect: impl Fn(&Endpoint) -> Channel + Send + Sync + 'static) -> Self {
        self.connect = Some(Connect(Arc::new(connect)));
        self
    }

    /// Lets connections to loopback addresses come from `address` where that
    /// is one, too, and not 127.0.0.1: several nodes on one machine can then be
    /// told apart. Any other address changes nothing: which one leads where is
    /// for the operating system to know.
    pub fn from_loopback(mut self, address: IpAddr) -> Self {
        self.source =
            Some(address).filter(|address| address.is_loopback() && *address != Ipv4Addr::LOCALHOST);
        self
    }

    /// Channels of a node that stands in this zone; to be called before they are
    /// shared.
    pub fn in_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Arc::new(Zone::named(zone));
        self
    }

    /// Where this process stands, with what came over its channels from other zones.
    pub fn zone(&self) -> &Zone {
        &self.zone
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
        let mut endpoint = endpoint(address)?;
        if let Some(source) = self.source.filter(|source| is_beside(&endpoint, *source)) {
            endpoint = endpoint.local_address(Some(source));
        }
        let channel = {
            let _on_io = self.io.enter();
            match &self.connect {
                Some(Connect(connect)) => connect(&endpoint),
                None => endpoint.connect_lazy(),
            }
        };
        let mut open = self.open.lock();
        Ok(open.entry(address.to_owned()).or_insert(channel).clone())
    }

    /// Forgets the channel to `address`; the next use connects anew.
    pub fn forget(&self, address: &str) {
        self.open.lock().remove(address);
    }
}

/// Whether a connection to the endpoint may come from this loopback address.
fn is_beside(endpoint: &Endpoint, source: IpAddr) -> bool {
    let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']);
    let target = host.parse::<IpAddr>();
    target.is_ok_and(|target| target.is_loopback() && target.is_ipv4() == source.is_ipv4())
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
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::time::timeout;
    use tonic::body::Body;
    use tonic::codegen::Service;
    use tonic::codegen::http::Request;

    use super::*;
    use crate::cluster::files_client::FilesClient;
    use crate::cluster::{ReadRequest, StatRequest};

    /// Kinds of frames of HTTP/2.
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    /// Flags of such frames.
    const ACK: u8 = 1;
    const END_HEADERS: u8 = 4;

    /// Where a connection to a loopback listener comes from.
    async fn source_of(channels: &Channels) -> IpAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut channel = channels.get(&address).unwrap();
        let connecting = tokio::spawn(async move {
            // A channel connects for its first call. Nobody answers that.
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
            let _unanswered = channel.call(Request::new(Body::empty())).await;
        });
        let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await;
        connecting.abort();
        accepted.unwrap().unwrap().1.ip()
    }

    #[tokio::test]
    async fn a_node_with_a_loopback_address_of_its_own_connects_from_there() {
        let channels = || Channels::new(tokio::runtime::Handle::current());
        for (address, expected) in [
            ("127.3.2.1", "127.3.2.1"),
            ("127.0.0.1", "127.0.0.1"),
            // Nothing that leads to 127.0.0.1.
            ("::1", "127.0.0.1"),
            ("192.0.2.7", "127.0.0.1"),
            ("0.0.0.0", "127.0.0.1"),
        ] {
            let channels = channels().from_loopback(address.parse().unwrap());
            assert_eq!(source_of(&channels).await, expected.parse::<IpAddr>().unwrap(), "{address}");
        }
        assert_eq!(source_of(&channels()).await, Ipv4Addr::LOCALHOST);
    }

    #[test]
    fn only_connections_to_this_machine_have_a_source() {
        let source = "127.3.2.1".parse().unwrap();
        for (address, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://127.9.9.9:1", true),
            ("http://[::1]:1", false),
            ("http://10.0.0.1:1", false),
            ("http://localhost:1", false),
        ] {
            assert_eq!(is_beside(&endpoint(address).unwrap(), source), expected, "{address}");
        }
    }

    /// On this machine a connection that takes longer is not answered at all.
    const ANSWERED_WITHIN: Duration = Duration::from_millis(500);

    #[tokio::test]
    async fn a_connection_that_does_not_come_up_is_given_up() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        // Nobody accepts. Once the queue of those who wait is full, the system
        // leaves whoever comes without an answer, as a lost machine would.
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) = timeout(ANSWERED_WITHIN, TcpStream::connect(address)).await {
            waiting.push(connected.unwrap());
            assert!(waiting.len() < 100, "the queue does not fill");
        }
        let channels = Channels::new(tokio::runtime::Handle::current());
        let mut client = FilesClient::new(channels.get(&format!("http://{address}")).unwrap());
        let started = Instant::now();
        let asked = timeout(Duration::from_secs(4), client.stat(StatRequest::default())).await;
        let status = asked.expect("the call waits for a connection").unwrap_err();
        assert!(started.elapsed() >= ANSWERED_WITHIN, "somebody answered: {status}");
        assert_eq!(Failure::from_status(&status).code, ErrorCode::Unavailable, "{status}");
    }

    /// Brings a connection up and begins to answer each call, and then says
    /// nothing more, to probes neither. Returns when the connection is closed.
    async fn fall_silent(mut client: TcpStream) -> std::io::Result<()> {
        let mut preface = [0; 24];
        client.read_exact(&mut preface).await?;
        client.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0]).await?;
        loop {
            let mut head = [0; 9];
            client.read_exact(&mut head).await?;
            let [high, middle, low, kind, flags, stream @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, high, middle, low]) as usize];
            client.read_exact(&mut payload).await?;
            let mut answer: Vec<u8> = Vec::new();
            if kind == SETTINGS && flags != ACK {
                answer.extend([0, 0, 0, SETTINGS, ACK]);
                answer.extend(stream);
            } else if kind == HEADERS {
                // `:status: 200` and `content-type: application/grpc`.
                let mut headers: Vec<u8> = vec![0x88, 0x0f, 0x10, 16];
                headers.extend(b"application/grpc");
                answer.extend([0, 0, headers.len() as u8, HEADERS, END_HEADERS]);
                answer.extend(stream);
                answer.extend(headers);
            }
            client.write_all(&answer).await?;
        }
    }

    #[tokio::test]
    async fn a_connection_that_falls_silent_is_given_up_also_while_it_is_idle() {
        // The interval and the timeout of the probes, and some time for a busy machine.
        const GIVEN_UP_WITHIN: Duration = Duration::from_secs(6);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());

        let idle = endpoint(&address).unwrap().connect().await.unwrap();
        let idle_peer = tokio::spawn(fall_silent(listener.accept().await.unwrap().0));

        let channels = Channels::new(tokio::runtime::Handle::current());
        let mut client = FilesClient::new(channels.get(&address).unwrap());
        let peer = tokio::spawn(async move { fall_silent(listener.accept().await?.0).await });
        let called = timeout(GIVEN_UP_WITHIN, client.read(ReadRequest::default())).await.unwrap();
        let mut stream = called.unwrap().into_inner();

        let (message, closed) =
            tokio::join!(timeout(GIVEN_UP_WITHIN, stream.message()), timeout(GIVEN_UP_WITHIN, idle_peer));
        assert!(message.expect("a stream waits for a silent peer").is_err());
        let closed = closed.expect("an idle connection to a silent peer stays").unwrap();
        assert!(closed.is_err(), "it hears its client until that is gone");
        drop(idle);
        peer.abort();
    }
}
