//! Claims about `Files.Read` over real connections, with ends of ours and of tonic's, such
//! as older versions have.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::runtime::Handle;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::*;
use crate::cluster::files_client::FilesClient;
use crate::cluster::files_server::{Files, FilesServer};
use crate::cluster::{ReadChunk, ReadEnd, ReadRequest, StatReply, StatRequest};
use crate::server::{self, Incoming};
use crate::{Channels, ErrorCode, Failure};

/// Some time for a busy machine.
const SOON: Duration = Duration::from_secs(20);

type Messages = BoxStream<'static, Result<ReadChunk, Status>>;

type Answer = dyn Fn(&ReadRequest) -> Result<Messages, Status> + Send + Sync;

/// Answers as a test has it.
struct Peer(Box<Answer>);

impl Peer {
    fn new(answer: impl Fn(&ReadRequest) -> Result<Messages, Status> + Send + Sync + 'static) -> Self {
        Self(Box::new(answer))
    }

    /// Sends these messages, and then that status if there is one.
    fn sending(messages: Vec<ReadChunk>, last: Option<Status>) -> Self {
        Self::new(move |_| {
            let messages = messages.clone().into_iter().map(Ok).chain(last.clone().map(Err));
            Ok(stream::iter(messages.collect::<Vec<_>>()).boxed())
        })
    }

    /// Serves it, by our server or by tonic's.
    async fn serve(self, by_tonic: bool) -> Channel {
        let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut server = server::builder();
        let served = if by_tonic {
            server.add_service(FilesServer::new(self))
        } else {
            server.add_service(ChunkServer::new(self))
        };
        tokio::spawn(served.serve_with_incoming(Incoming::new(listener)));
        Channels::new(Handle::current()).get(&format!("http://{address}")).unwrap()
    }
}

#[async_trait]
impl Files for Peer {
    type ReadStream = Messages;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Messages>, Status> {
        (self.0)(request.get_ref()).map(Response::new)
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        let bytes = request.get_ref().name.len() as u64;
        Ok(Response::new(StatReply { bytes, modified_unix_ms: 0 }))
    }
}

fn data(length: usize) -> ReadChunk {
    ReadChunk { data: (0..length).map(|index| (index * 31 % 251) as u8).collect(), end: None }
}

fn end(bytes: u64) -> ReadChunk {
    ReadChunk { data: Bytes::new(), end: Some(ReadEnd { bytes, crc32c: 7 }) }
}

fn request() -> ReadRequest {
    ReadRequest { name: "1/2/3".to_owned(), offset: 4, length: 5 }
}

/// What came, and how it ended.
type Read = (Vec<ReadChunk>, Result<(), Status>);

/// Reads all that comes, by our client or by tonic's.
async fn read_all(channel: Channel, by_tonic: bool) -> Read {
    let mut chunks = Vec::new();
    let ended = if by_tonic {
        async {
            let mut stream = FilesClient::new(channel).read(request()).await?.into_inner();
            while let Some(chunk) = stream.message().await? {
                chunks.push(chunk);
            }
            Ok::<_, Status>(())
        }
        .await
    } else {
        async {
            let mut stream = read(channel, request()).await?;
            while let Some(chunk) = stream.message().await? {
                chunks.push(chunk);
            }
            Ok::<_, Status>(())
        }
        .await
    };
    (chunks, ended)
}

/// All data in one, and all end marks.
fn joined(chunks: &[ReadChunk]) -> (Vec<u8>, Vec<ReadEnd>) {
    (
        chunks.iter().flat_map(|chunk| chunk.data.to_vec()).collect(),
        chunks.iter().filter_map(|chunk| chunk.end).collect(),
    )
}

/// Who sends and who reads: whether that is tonic.
const ENDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

#[tokio::test]
async fn either_end_understands_one_of_tonic() {
    // One is as large as a frame, one larger, and all are more than a stream may hold unread.
    let mut messages = vec![data(1), data(200), data(256 * 1024), data(300_001)];
    messages.extend(std::iter::repeat_n(data(256 * 1024), 12));
    messages.push(end(99));
    for (sender, reader) in ENDS {
        let channel = Peer::sending(messages.clone(), None).serve(sender).await;
        let (came, ended) = read_all(channel, reader).await;
        ended.unwrap();
        assert!(joined(&came) == joined(&messages), "{sender} {reader}");
        if reader {
            assert!(came == messages, "{sender} {reader}: the messages are others");
        }
    }
}

#[tokio::test]
async fn what_a_sender_says_is_heard_before_and_in_the_middle_of_its_answer() {
    let failures = [
        Failure::new(ErrorCode::NotFound, "segment 1/2/3 is not on this worker").at("w1"),
        Failure::new(ErrorCode::Corrupt, "cannot read `1/2/3`: 5 % of it is „rot“").at("w2"),
        Failure::new(ErrorCode::Stopping, "it stops"),
    ];
    for (sender, reader) in ENDS {
        for failure in &failures {
            let status = failure.to_status();
            let refuses = Peer::new(move |_| Err(status.clone())).serve(sender).await;
            let (came, ended) = read_all(refuses, reader).await;
            assert!(came.is_empty());
            assert_eq!(Failure::of_call(&ended.unwrap_err()), *failure, "{sender} {reader}");

            let fails = Peer::sending(vec![data(70_000)], Some(failure.to_status())).serve(sender).await;
            let (came, ended) = read_all(fails, reader).await;
            assert!(joined(&came) == joined(&[data(70_000)]), "{sender} {reader}");
            assert_eq!(Failure::of_call(&ended.unwrap_err()), *failure, "{sender} {reader}");
        }
    }
}

#[tokio::test]
async fn a_request_comes_as_it_was_made_and_other_calls_come_too() {
    let echoes = Peer::new(|request| {
        let echo = ReadChunk { data: format!("{request:?}").into(), end: None };
        Ok(stream::iter([Ok(echo)]).boxed())
    });
    let channel = echoes.serve(false).await;
    let (came, ended) = read_all(channel.clone(), false).await;
    ended.unwrap();
    assert_eq!(joined(&came).0, format!("{:?}", request()).into_bytes());
    let stat = FilesClient::new(channel).stat(StatRequest { name: "12345".to_owned() }).await.unwrap();
    assert_eq!(stat.into_inner().bytes, 5);
}

#[tokio::test]
async fn a_sender_ends_when_its_reader_is_gone() {
    // Held by this test, by the peer, and by each answer that is not over.
    let alive = Arc::new(());
    let held = Arc::clone(&alive);
    let peer = Peer::new(move |_| {
        let held = Arc::clone(&held);
        let messages = stream::iter([Ok(data(3))]).chain(stream::pending());
        Ok(messages.inspect(move |_| assert!(Arc::strong_count(&held) > 2)).boxed())
    });
    let mut chunks = read(peer.serve(false).await, request()).await.unwrap();
    assert_eq!(chunks.message().await.unwrap(), Some(data(3)));
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(chunks);
    let ended = async {
        while Arc::strong_count(&alive) > 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, ended).await.is_ok(), "it goes on for nobody");
}

#[tokio::test]
async fn who_has_no_files_says_so() {
    let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let mut server = server::builder();
    let served = server.add_routes(tonic::service::Routes::default());
    tokio::spawn(served.serve_with_incoming(Incoming::new(listener)));
    let channel = Channels::new(Handle::current()).get(&format!("http://{address}")).unwrap();
    let (came, ended) = read_all(channel, false).await;
    assert!(came.is_empty());
    assert_eq!(Failure::of_call(&ended.unwrap_err()).code, ErrorCode::Unsupported);
}
