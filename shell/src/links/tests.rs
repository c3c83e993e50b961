//! Real sockets through real links.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

/// How long nothing must come before it counts as held.
const HELD_FOR: Duration = Duration::from_millis(150);
/// How long something that must come may take.
const COMES_WITHIN: Duration = Duration::from_secs(20);

/// Two workers, `a` and `b`, of which `b` listens.
struct Net {
    links: Links,
    a: Link,
    b: Link,
    listener: TcpListener,
}

impl Net {
    fn new() -> Self {
        let links = Links::new().unwrap();
        let (a, b) = (links.open("a").unwrap(), links.open("b").unwrap());
        let listener = TcpListener::bind((b.host, 0)).unwrap();
        links.lead("b", listener.local_addr().unwrap()).unwrap();
        Self { links, a, b, listener }
    }

    /// A connection of `a` to `b`: the two ends.
    fn connected(&self) -> (TcpStream, TcpStream) {
        let near = from(self.a.host, self.b.address);
        (near, accepted(&self.listener))
    }
}

/// A connection that comes from `host`.
fn from(host: std::net::IpAddr, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(host, 0)).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(COMES_WITHIN)).unwrap();
    stream
}

fn accepted(listener: &TcpListener) -> TcpStream {
    let stream = listener.accept().unwrap().0;
    stream.set_read_timeout(Some(COMES_WITHIN)).unwrap();
    stream
}

fn assert_comes(stream: &mut TcpStream, expected: &[u8]) {
    let mut read = vec![0; expected.len()];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(read, expected);
}

fn assert_held(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(HELD_FOR)).unwrap();
    let read = stream.read(&mut [0; 16]);
    stream.set_read_timeout(Some(COMES_WITHIN)).unwrap();
    let kind = read.map_err(|error| error.kind());
    assert!(matches!(kind, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{kind:?} came");
}

#[test]
fn bytes_and_their_end_go_both_ways() {
    let net = Net::new();
    let (mut near, mut far) = net.connected();
    near.write_all(b"ask").unwrap();
    assert_comes(&mut far, b"ask");
    far.write_all(b"answer").unwrap();
    assert_comes(&mut near, b"answer");
    drop(far);
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0, "the end did not come");
}

#[test]
fn a_cut_holds_its_direction_and_loses_nothing() {
    for (worker, direction, is_there_held, is_back_held) in [
        ("a", Direction::Both, true, true),
        ("a", Direction::Outbound, true, false),
        ("a", Direction::Inbound, false, true),
        ("b", Direction::Both, true, true),
        ("b", Direction::Outbound, false, true),
        ("b", Direction::Inbound, true, false),
    ] {
        let net = Net::new();
        let (mut near, mut far) = net.connected();
        net.links.cut(worker, direction).unwrap();
        assert_eq!(net.links.cut_of(worker), Some(direction));
        near.write_all(b"there").unwrap();
        far.write_all(b"back").unwrap();
        for (stream, is_held, bytes) in
            [(&mut far, is_there_held, &b"there"[..]), (&mut near, is_back_held, b"back")]
        {
            if is_held {
                assert_held(stream);
            } else {
                assert_comes(stream, bytes);
            }
        }
        net.links.heal(worker).unwrap();
        assert_eq!(net.links.cut_of(worker), None);
        if is_there_held {
            assert_comes(&mut far, b"there");
        }
        if is_back_held {
            assert_comes(&mut near, b"back");
        }
    }
}

#[test]
fn others_do_not_notice_a_cut() {
    let net = Net::new();
    net.links.cut("a", Direction::Both).unwrap();
    // A client is not known to the links.
    let mut near = TcpStream::connect(net.b.address).unwrap();
    let mut far = accepted(&net.listener);
    near.write_all(b"ask").unwrap();
    assert_comes(&mut far, b"ask");
}

#[test]
fn a_new_connection_gets_no_answer_until_healed() {
    for direction in [Direction::Both, Direction::Inbound, Direction::Outbound] {
        let net = Net::new();
        net.links.cut("b", direction).unwrap();
        let mut near = from(net.a.host, net.b.address);
        near.write_all(b"ask").unwrap();
        net.listener.set_nonblocking(true).unwrap();
        assert_held(&mut near);
        assert!(net.listener.accept().is_err(), "{direction}: the connection came through");
        net.listener.set_nonblocking(false).unwrap();
        net.links.heal("b").unwrap();
        assert_comes(&mut accepted(&net.listener), b"ask");
    }
}

#[test]
fn the_death_of_a_peer_is_not_heard_through_a_cut() {
    let net = Net::new();
    let (mut near, far) = net.connected();
    net.links.cut("b", Direction::Both).unwrap();
    drop(far);
    assert_held(&mut near);
    net.links.heal("b").unwrap();
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn what_waits_is_bounded_and_arrives_whole() {
    const BYTES: usize = 64 << 20;
    let net = Net::new();
    let (mut near, mut far) = net.connected();
    net.links.cut("a", Direction::Outbound).unwrap();
    let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    let sending = std::thread::spawn(move || near.write_all(&bytes).unwrap());
    // It would be taken, were it to come.
    assert_held(&mut far);
    std::thread::sleep(HELD_FOR);
    assert!(!sending.is_finished(), "64 MiB went into a link that is cut");
    net.links.heal("a").unwrap();
    let mut read = vec![0; BYTES];
    far.read_exact(&mut read).unwrap();
    assert!(read.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    sending.join().unwrap();
}

#[test]
fn a_link_to_a_node_that_is_gone_breaks_and_comes_back() {
    let links = Links::new().unwrap();
    let b = links.open("b").unwrap();
    let listener = TcpListener::bind((b.host, 0)).unwrap();
    let listening = listener.local_addr().unwrap();
    links.lead("b", listening).unwrap();
    drop(listener);
    let mut near = TcpStream::connect(b.address).unwrap();
    near.set_read_timeout(Some(COMES_WITHIN)).unwrap();
    let began = Instant::now();
    let read = near.read(&mut [0; 1]).map_err(|error| error.kind());
    assert!(matches!(read, Ok(0) | Err(ErrorKind::ConnectionReset)), "{read:?}");
    assert!(began.elapsed() < COMES_WITHIN);
    let listener = TcpListener::bind(listening).unwrap();
    let mut near = TcpStream::connect(b.address).unwrap();
    near.write_all(b"again").unwrap();
    assert_comes(&mut accepted(&listener), b"again");
}

#[test]
fn a_link_is_opened_where_it_was_before() {
    let before = Links::new().unwrap().open("b").unwrap();
    let links = Links::new().unwrap();
    // The links that are gone may need a moment.
    let since = Instant::now();
    let again = loop {
        match links.open_at("b", before.address) {
            Ok(link) => break link,
            Err(error) => assert!(since.elapsed() < COMES_WITHIN, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(again.address, before.address);
    let listener = TcpListener::bind((again.host, 0)).unwrap();
    links.lead("b", listener.local_addr().unwrap()).unwrap();
    let mut near = TcpStream::connect(before.address).unwrap();
    near.write_all(b"ask").unwrap();
    assert_comes(&mut accepted(&listener), b"ask");
    assert_eq!(links.open_at("c", before.address).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn a_link_that_is_not_there_is_named() {
    let error = Links::new().unwrap().cut("worker-9", Direction::Both).unwrap_err();
    assert_eq!(error.to_string(), "there is no link to `worker-9`");
    assert!("sideways".parse::<Direction>().unwrap_err().contains("`sideways`"));
}
