//! Claims about copies, from a peer that serves its segments.

use std::path::Path;

use bytes::Bytes;
use shoal_data::DataDir;
use shoal_data::shard_store::LocalSegments;
use shoal_proto::cluster::Location;
use shoal_proto::cluster::files_server::FilesServer;
use shoal_proto::server::{self, Incoming};
use shoal_proto::{SegmentId, TableId};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::*;
use crate::segments::SegmentService;

/// Some time for a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Far from being through with anything while a test runs.
const CRAWL: u64 = 1;

/// A worker's segments, and who copies them.
struct Node {
    dir: Arc<SegmentDir>,
    replicator: Replicator,
    _lock: DataDir,
    _root: TempDir,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let lock = locked(root.path());
        let dir = Arc::new(SegmentDir::open(&lock).unwrap());
        let channels = Channels::new(Handle::current()).in_zone("north");
        let replicator = Replicator::new(Arc::clone(&dir), channels, Handle::current());
        Self { dir, replicator, _lock: lock, _root: root }
    }

    /// Serves what is here; where.
    async fn serve(&self) -> Location {
        self.serve_as(false).await
    }

    /// The same, as this version does or as an older one did.
    async fn serve_as(&self, is_older: bool) -> Location {
        let local = LocalSegments::new(self.dir.path().to_owned(), Arc::new(self.replicator.clone()));
        let (dir, replicator) = (Arc::clone(&self.dir), self.replicator.clone());
        let service = SegmentService::new("source".into(), dir, Arc::new(local), replicator);
        let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let mut server = server::builder();
        let served = if is_older {
            server.add_service(FilesServer::new(service))
        } else {
            server.add_service(service.files_server())
        };
        tokio::spawn(served.serve_with_incoming(Incoming::new(listener)));
        let zone = "south".to_owned();
        Location { worker: "source".to_owned(), address: format!("http://{address}"), zone }
    }

    /// Writes a segment; the order to copy it from there.
    fn write(&self, from: &Location) -> FetchRequest {
        let name = SegmentName { table: TableId(3), shard: 0, segment: SegmentId::random() };
        // Several messages, the last of which ends within a block.
        let data: Bytes =
            (0..3 * file_stream::CHUNK_BYTES - 77).map(|index| (index * 31 % 251) as u8).collect();
        let (bytes, crc32c) = (data.len() as u64, crc32c::crc32c(&data));
        let mut staging = self.dir.stage(name, bytes, crc32c).unwrap();
        staging.write(&data).unwrap();
        staging.finish().unwrap();
        let from = vec![from.clone()];
        FetchRequest { name: name.to_string(), bytes, crc32c, from, ..FetchRequest::default() }
    }

    fn has(&self, request: &FetchRequest) -> bool {
        self.dir.bytes_of(&request.name.parse().unwrap()) == Some(request.bytes)
    }
}

fn locked(path: &Path) -> DataDir {
    DataDir::lock(path).unwrap()
}

async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let waited = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, waited).await.is_ok(), "still waited for: {what}");
}

#[tokio::test]
async fn what_is_urgent_waits_for_nothing_that_only_moves() {
    let (source, target) = (Node::new(), Node::new());
    let from = source.serve().await;
    let moves = [source.write(&from), source.write(&from)];
    let slow = |request: &FetchRequest| FetchRequest { bytes_per_second: CRAWL, ..request.clone() };
    target.replicator.obey(moves.iter().map(slow).collect(), &[]);
    eventually("both are under way", || target.replicator.0.under_way.lock().len() == 2).await;
    let urgent = FetchRequest { urgent: true, ..source.write(&from) };
    let fetched = tokio::time::timeout(SOON, target.replicator.fetch(urgent.clone())).await;
    assert_eq!(fetched.expect("it waits").unwrap(), (urgent.bytes, urgent.crc32c));
    assert!(target.has(&urgent));
    assert!(!moves.iter().any(|request| target.has(request)), "a move keeps to no rate");

    // One crawls and one has not begun: both are urgent by now.
    let hurried = moves.iter().map(|request| FetchRequest { urgent: true, ..request.clone() });
    target.replicator.obey(hurried.collect(), &[]);
    eventually("both are here", || moves.iter().all(|request| target.has(request))).await;
    eventually("nothing is under way", || target.replicator.0.under_way.lock().is_empty()).await;
    assert_eq!(target.replicator.cross_zone_bytes(), 3 * urgent.bytes);
}

#[tokio::test]
async fn a_rate_holds_for_what_is_urgent_too() {
    let (source, target) = (Node::new(), Node::new());
    let from = source.serve().await;
    let order = source.write(&from);
    let slow = FetchRequest { urgent: true, bytes_per_second: CRAWL, ..order.clone() };
    target.replicator.obey(vec![slow], &[]);
    let has_begun = || target.replicator.0.urgent.permits.available_permits() < URGENT_MAX;
    eventually("it has begun", has_begun).await;
    // Others that may go at any rate are not held up by it.
    let other = source.write(&from);
    let fetched = tokio::time::timeout(SOON, target.replicator.fetch(other.clone())).await;
    fetched.expect("it waits").unwrap();
    assert!(target.has(&other) && !target.has(&order));
}

#[tokio::test]
async fn a_copy_that_nobody_waits_for_any_more_can_be_ordered_again() {
    let (source, target) = (Node::new(), Node::new());
    let from = source.serve().await;
    let order = source.write(&from);
    let slow = FetchRequest { bytes_per_second: CRAWL, ..order.clone() };
    let has_begun = || target.replicator.0.moves.permits.available_permits() < MOVES_MAX;
    tokio::select! {
        ended = target.replicator.fetch(slow) => panic!("it keeps to no rate: {ended:?}"),
        () = eventually("it has begun", has_begun) => {}
    }
    assert!(target.replicator.0.under_way.lock().is_empty(), "it is under way for ever");
    let fetched = tokio::time::timeout(SOON, target.replicator.fetch(order.clone())).await;
    assert_eq!(fetched.expect("it waits").unwrap(), (order.bytes, order.crc32c));
    assert!(target.has(&order));
}

#[tokio::test]
async fn what_is_damaged_on_its_way_or_before_is_not_taken() {
    let (source, target) = (Node::new(), Node::new());
    let from = source.serve().await;
    let order = source.write(&from);
    // Its source says something else of it than the catalog does.
    let other = FetchRequest { crc32c: order.crc32c ^ 1, ..order.clone() };
    let refused = target.replicator.fetch(other).await.unwrap_err();
    assert!(refused.to_string().contains("checksum"), "{refused}");
    // Damaged in its second message, on the source's disk.
    let path = source.dir.path().join(&order.name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[usize::try_from(file_stream::CHUNK_BYTES).unwrap() + 5] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = target.replicator.fetch(order.clone()).await.unwrap_err();
    for part in ["cannot be fetched from anybody (source: ", "from 262144 on are not those that were written"]
    {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    assert!(!target.has(&order));
    assert_eq!(target.dir.report(), [], "something of it is left");
}

#[tokio::test]
async fn a_copy_is_the_same_from_this_version_and_from_an_older_one() {
    let target = Node::new();
    for is_older in [false, true] {
        let source = Node::new();
        let from = source.serve_as(is_older).await;
        let order = source.write(&from);
        target.replicator.fetch(order.clone()).await.unwrap();
        let [copied, original] =
            [&target, &source].map(|node| std::fs::read(node.dir.path().join(&order.name)));
        assert!(copied.unwrap() == original.unwrap(), "{is_older}");
    }
}

/// Stands before a worker and passes on so many bytes of what it answers on a connection;
/// then that is gone. Where.
async fn dying_after(bytes: u64, from: &Location) -> Location {
    let (listener, address) = server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let source = from.address.strip_prefix("http://").unwrap().to_owned();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&source).await.unwrap();
            tokio::spawn(async move {
                let (mut asks, mut hears) = client.into_split();
                let (answers, mut is_asked) = server.into_split();
                let mut answers = answers.take(bytes);
                tokio::select! {
                    _ = tokio::io::copy(&mut asks, &mut is_asked) => {}
                    _ = tokio::io::copy(&mut answers, &mut hears) => {}
                }
            });
        }
    });
    Location { worker: "dying".to_owned(), address: format!("http://{address}"), ..from.clone() }
}

#[tokio::test]
async fn a_copy_whose_source_dies_half_way_comes_from_the_next_one() {
    let (source, target) = (Node::new(), Node::new());
    let from = source.serve().await;
    let order = source.write(&from);
    let dying = dying_after(order.bytes / 2, &from).await;
    let alone = FetchRequest { from: vec![dying.clone()], ..order.clone() };
    let refused = target.replicator.fetch(alone).await.unwrap_err();
    assert!(refused.to_string().contains("(dying: connection lost: "), "{refused}");
    assert_eq!(target.dir.report(), [], "something of it is left");
    let came = target.replicator.cross_zone_bytes();
    assert!(came < order.bytes, "{came} bytes came from where half of them do");

    let both = FetchRequest { from: vec![dying, from], ..order.clone() };
    target.replicator.fetch(both).await.unwrap();
    assert!(target.has(&order));
}
