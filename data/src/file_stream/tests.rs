//! Claims about files that are sent, and about what comes of them over a real connection.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::TryStreamExt;
use shoal_proto::chunks::ChunkServer;
use shoal_proto::cluster::files_server::{Files, FilesServer, SERVICE_NAME};
use shoal_proto::server::{self, Incoming};
use tokio::runtime::Handle;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Response};

use super::*;

/// Some time for a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// A file of so many bytes, and these.
fn file_of(bytes: u64) -> (File, Vec<u8>) {
    let whole: Vec<u8> = (0..bytes).map(|index| (index * 31 % 251) as u8).collect();
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&whole, 0).unwrap();
    (file, whole)
}

/// All of a stream: its bytes, its end mark, and how many messages have bytes.
async fn sent(source: impl Source, range: Range<u64>) -> Result<(Vec<u8>, ReadEnd, usize), Status> {
    let mut messages = send(source, "f".to_owned(), range.clone());
    let (mut bytes, mut ends, mut count) = (Vec::new(), Vec::new(), 0);
    while let Some(message) = messages.next().await {
        let ReadChunk { data, end } = message?;
        assert!(ends.is_empty(), "something comes behind the end mark");
        assert!(data.len() as u64 <= CHUNK_BYTES);
        if end.is_none() {
            let at = range.start + bytes.len() as u64;
            assert!(count == 0 || at.is_multiple_of(CHUNK_BYTES), "{range:?}: a message begins at {at}");
            assert!(!data.is_empty(), "{range:?}: a message without bytes at {at}");
            count += 1;
        }
        bytes.extend_from_slice(&data);
        ends.extend(end);
    }
    Ok((bytes, ends.pop().expect("an end mark"), count))
}

#[tokio::test]
async fn any_part_of_a_file_comes_in_order_with_its_checksum() {
    let (file, whole) = file_of(4 * CHUNK_BYTES + 77);
    let all = whole.len() as u64;
    for (range, messages) in [
        (0..all, 5),
        (0..CHUNK_BYTES, 1),
        (0..3 * CHUNK_BYTES, 3),
        (5..all, 5),
        (CHUNK_BYTES - 1..3 * CHUNK_BYTES + 1, 4),
        (2 * CHUNK_BYTES..all, 3),
        // What fits into one message is one, wherever it begins.
        (CHUNK_BYTES - 1..CHUNK_BYTES + 1, 1),
        (7..CHUNK_BYTES + 7, 1),
        (7..CHUNK_BYTES + 8, 2),
        (9..9, 0),
    ] {
        let (bytes, end, count) = sent(file.try_clone().unwrap(), range.clone()).await.unwrap();
        let expected = &whole[range.start as usize..range.end as usize];
        assert!(bytes == expected, "{range:?}");
        assert_eq!(count, messages, "{range:?}");
        assert_eq!((end.bytes, end.crc32c), (expected.len() as u64, checksum::crc32c(expected)), "{range:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_too_short_gives_no_end_mark() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 * CHUNK_BYTES + 1).unwrap();
    let refused = sent(file, 0..3 * CHUNK_BYTES).await.unwrap_err();
    assert!(refused.message().contains("cannot read `f`"), "{refused}");
}

/// Sends one source, whatever is asked for.
#[derive(Clone)]
struct Peer(Arc<dyn Source>);

impl Source for Peer {
    fn read(&self, range: Range<u64>) -> io::Result<(Bytes, u32)> {
        self.0.read(range)
    }
}

#[async_trait]
impl Files for Peer {
    type ReadStream = BoxStream<'static, Result<ReadChunk, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let ReadRequest { name, offset, length } = request.into_inner();
        Ok(Response::new(send(self.clone(), name, offset..offset + length)))
    }

    async fn stat(&self, _: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

/// Serves it, as this version does or as an older one did; channels, and where it is.
async fn serve(source: impl Source, is_older: bool) -> (Channels, String) {
    let peer = Peer(Arc::new(source));
    let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut server = server::builder();
    let served = if is_older {
        server.add_service(FilesServer::new(peer))
    } else {
        server.add_service(ChunkServer::new(peer))
    };
    tokio::spawn(served.serve_with_incoming(Incoming::new(listener)));
    (Channels::new(Handle::current()), format!("http://{address}"))
}

/// How many bytes come, and what ends them before their end.
async fn all_of(mut pieces: BoxStream<'static, Result<Bytes, Failure>>) -> (u64, Option<Failure>) {
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(piece) => bytes += piece.len() as u64,
            Err(failure) => return (bytes, Some(failure)),
        }
    }
    (bytes, None)
}

#[tokio::test]
async fn what_is_sent_arrives_from_this_version_and_from_an_older_one() {
    // More than a stream may hold unread.
    let (file, whole) = file_of(9 * CHUNK_BYTES + 77);
    let all = whole.len() as u64;
    for is_older in [false, true] {
        let (channels, address) = serve(file.try_clone().unwrap(), is_older).await;
        for range in [0..all, 5..all, CHUNK_BYTES - 1..CHUNK_BYTES + 1, 9..9] {
            let expected = &whole[range.start as usize..range.end as usize];
            let came = receive_all(&channels, &address, "f", range.clone(), SOON).await.unwrap();
            assert!(came == expected, "{range:?} {is_older}");
            let pieces = receive_unsummed(&channels, &address, "f", range.clone(), SOON).await.unwrap();
            let pieces: Vec<Bytes> = pieces.try_collect().await.unwrap();
            assert!(pieces.concat() == expected, "{range:?} {is_older}");
        }
    }
}

/// Damaged behind its first message.
struct Damaged(File);

impl Source for Damaged {
    fn read(&self, range: Range<u64>) -> io::Result<(Bytes, u32)> {
        if range.start > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged"));
        }
        self.0.read(range)
    }
}

#[tokio::test]
async fn what_cannot_be_read_in_the_middle_is_said_by_its_sender() {
    for is_older in [false, true] {
        let (channels, address) = serve(Damaged(file_of(CHUNK_BYTES).0), is_older).await;
        let range = 0..3 * CHUNK_BYTES;
        let pieces = receive_unsummed(&channels, &address, "f", range, SOON).await.unwrap();
        let expected = Failure::new(ErrorCode::Corrupt, "cannot read `f`: it is damaged");
        assert_eq!(all_of(pieces).await, (CHUNK_BYTES, Some(expected)), "{is_older}");
    }
}

/// Waits behind its first message, until a test is through.
struct Stalled {
    file: File,
    until: Mutex<mpsc::Receiver<()>>,
}

impl Source for Stalled {
    fn read(&self, range: Range<u64>) -> io::Result<(Bytes, u32)> {
        if range.start > 0 {
            let _through = self.until.lock().recv();
        }
        self.file.read(range)
    }
}

#[tokio::test]
async fn a_sender_that_falls_silent_in_the_middle_is_given_up() {
    let (through, until) = mpsc::channel();
    let stalled = Stalled { file: file_of(3 * CHUNK_BYTES).0, until: Mutex::new(until) };
    let (channels, address) = serve(stalled, false).await;
    let (range, patience) = (0..3 * CHUNK_BYTES, Duration::from_secs(2));
    let pieces = receive(&channels, &address, "f", range, patience).await.unwrap();
    let silent = Failure::new(ErrorCode::Unavailable, format!("{address} sent nothing for 2s"));
    assert_eq!(all_of(pieces).await, (CHUNK_BYTES, Some(silent)));
    drop(through);
}

/// Answers with these bytes, whatever is asked for.
#[derive(Clone)]
struct Plain(&'static str);

impl NamedService for Plain {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Plain {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<http::Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<Body>) -> Self::Future {
        ready(Ok(http::Response::new(Body::new(self.0.to_owned()))))
    }
}

#[tokio::test]
async fn bytes_that_an_end_mark_carries_are_not_lost_without_a_word() {
    // One message of nine bytes, in an order that nobody need keep to: first that three bytes
    // were sent, and then those.
    let message = "\x00\x00\x00\x00\x09\x12\x02\x08\x03\x0a\x03abc";
    let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let served = server::builder().add_service(Plain(message));
    tokio::spawn(served.serve_with_incoming(Incoming::new(listener)));
    let (channels, address) = (Channels::new(Handle::current()), format!("http://{address}"));
    let pieces = receive_unsummed(&channels, &address, "f", 0..3, SOON).await.unwrap();
    let why = format!("`f` from {address} is not complete after 0 of 3 bytes: its end mark carries bytes");
    assert_eq!(all_of(pieces).await, (0, Some(Failure::new(ErrorCode::Corrupt, why))));
}
