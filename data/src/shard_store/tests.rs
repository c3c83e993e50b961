//! Claims about reading segments from wherever they are.

use std::io;
use std::slice::from_ref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use shoal_proto::cluster::files_server::{Files, FilesServer};
use shoal_proto::cluster::{ReadChunk, ReadEnd, ReadRequest, StatReply, StatRequest};
use shoal_proto::{SegmentId, TableId};
use tonic::{Request, Response, Status};

use super::*;
use crate::block_sums::{BlockSummer, BlockSums};

/// What a peer does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Sends what it has.
    Honest,
    /// Has nothing.
    Empty,
    /// Ends the stream after the bytes, without the mark.
    NoMark,
    /// Leaves out the last byte, and says so in its mark.
    Short,
    /// Changes a byte on the way.
    Flipped,
    /// Takes the call and sends nothing.
    Silent,
}

#[derive(Debug)]
struct Peer {
    manner: Manner,
    bytes: Bytes,
    asked: Arc<AtomicUsize>,
}

#[async_trait]
impl Files for Peer {
    type ReadStream = BoxStream<'static, Result<ReadChunk, Status>>;

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let range = request.offset as usize..(request.offset + request.length) as usize;
        let data = self.bytes.slice(range);
        let end = |data: &Bytes| ReadChunk {
            data: Bytes::new(),
            end: Some(ReadEnd { bytes: data.len() as u64, crc32c: crc32c::crc32c(data) }),
        };
        let messages = match self.manner {
            Manner::Empty => return Err(Status::not_found("not here")),
            Manner::Silent => return Ok(Response::new(stream::pending().boxed())),
            Manner::Honest => {
                let mut messages: Vec<_> = data
                    .chunks(5)
                    .map(|piece| ReadChunk { data: Bytes::copy_from_slice(piece), end: None })
                    .collect();
                messages.push(end(&data));
                messages
            }
            Manner::NoMark => vec![ReadChunk { data, end: None }],
            Manner::Short => {
                let data = data.slice(..data.len() - 1);
                vec![ReadChunk { data: data.clone(), end: None }, end(&data)]
            }
            Manner::Flipped => {
                let mut flipped = data.to_vec();
                flipped[0] ^= 1;
                vec![ReadChunk { data: flipped.into(), end: None }, end(&data)]
            }
        };
        Ok(Response::new(stream::iter(messages.into_iter().map(Ok)).boxed()))
    }

    async fn stat(&self, _: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

#[derive(Debug)]
struct Everywhere(Mutex<Located>, AtomicUsize);

#[async_trait]
impl Locate for Everywhere {
    async fn locate(&self, _: &SegmentName) -> Result<Located, Failure> {
        self.1.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.lock().clone())
    }
}

struct Fixture {
    store: ShardStore,
    located: Arc<Everywhere>,
    local: tempfile::TempDir,
    name: SegmentName,
    /// How often each peer was asked.
    asked: Vec<Arc<AtomicUsize>>,
    damage: Arc<Damage>,
    segments: Arc<LocalSegments>,
}

/// What was told of damage, and whether the segment should be here.
#[derive(Debug, Default)]
struct Damage(Mutex<Vec<io::ErrorKind>>, AtomicBool);

impl ReportDamage for Damage {
    fn has(&self, _name: &SegmentName) -> bool {
        self.1.load(Ordering::SeqCst)
    }

    fn damaged(&self, _name: &SegmentName, what: &io::Error) {
        self.0.lock().push(what.kind());
    }
}

const BYTES: &[u8] = b"0123456789abcdefghij";
/// Where the peers stand, in turn.
const ZONES: [&str; 2] = ["south", "north"];

/// A node without the segment, and peers of these manners, in that order.
async fn fixture(manners: &[Manner]) -> Fixture {
    fixture_in("", manners).await
}

/// The same, of a node in this zone.
async fn fixture_in(zone: &str, manners: &[Manner]) -> Fixture {
    let mut replicas = Vec::new();
    let mut asked = Vec::new();
    for (index, manner) in manners.iter().enumerate() {
        let (listener, address) = shoal_proto::server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let count = Arc::new(AtomicUsize::new(0));
        let peer = Peer { manner: *manner, bytes: Bytes::from_static(BYTES), asked: Arc::clone(&count) };
        let incoming = shoal_proto::server::Incoming::new(listener);
        let server = shoal_proto::server::builder().add_service(FilesServer::new(peer));
        tokio::spawn(server.serve_with_incoming(incoming));
        replicas.push(Replica {
            worker: WorkerId::new(format!("w{index}")),
            address: format!("http://{address}"),
            zone: ZONES[index % ZONES.len()].to_owned(),
        });
        asked.push(count);
    }
    let located = Located { replicas, bytes: BYTES.len() as u64, crc32c: crc32c::crc32c(BYTES) };
    let located = Arc::new(Everywhere(Mutex::new(located), AtomicUsize::new(0)));
    let local = tempfile::tempdir().unwrap();
    let channels = Channels::new(tokio::runtime::Handle::current()).in_zone(zone);
    let locate: Arc<dyn Locate> = Arc::<Everywhere>::clone(&located);
    let damage = Arc::new(Damage::default());
    let report: Arc<dyn ReportDamage> = Arc::<Damage>::clone(&damage);
    let segments = Arc::new(LocalSegments::new(local.path().to_owned(), report));
    let store = ShardStore::new(Some(Arc::clone(&segments)), locate, channels);
    let name = SegmentName { table: TableId(1), shard: 3, segment: SegmentId::random() };
    Fixture { store, located, local, name, asked, damage, segments }
}

impl Fixture {
    fn path(&self) -> Path {
        Path::from(self.name.to_string())
    }

    async fn read(&self, range: Range<u64>) -> object_store::Result<Bytes> {
        self.store.get_range(&self.path(), range).await
    }

    fn put_local(&self, bytes: &[u8]) {
        let path = self.local.path().join(self.name.to_string());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut summer = BlockSummer::default();
        summer.update(bytes);
        std::fs::write(BlockSums::path(&path), summer.finish(self.name).encode()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn asked(&self) -> Vec<usize> {
        self.asked.iter().map(|count| count.load(Ordering::SeqCst)).collect()
    }
}

fn failure(error: object_store::Error) -> Failure {
    let error = datafusion::common::DataFusionError::ObjectStore(Box::new(error));
    Failure::from_datafusion(&error)
}

#[tokio::test]
async fn a_local_segment_needs_nobody_else() {
    let fixture = fixture(&[Manner::Honest]).await;
    fixture.put_local(BYTES);
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    let ranges = fixture.store.get_ranges(&fixture.path(), &[0..2, 18..20, 3..3]).await.unwrap();
    assert_eq!(ranges, ["01", "ij", ""]);
    let whole = fixture.store.get(&fixture.path()).await.unwrap();
    assert_eq!(whole.meta.size, 20);
    assert_eq!(whole.bytes().await.unwrap(), BYTES);
    assert_eq!(fixture.asked(), [0]);
    assert_eq!(fixture.located.1.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_silent_disk_is_not_read_whatever_is_in_memory() {
    let fixture = fixture(&[Manner::Honest]).await;
    fixture.put_local(BYTES);
    // Its checksums and its bytes are in memory after that.
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    assert_eq!(fixture.asked(), [0]);
    *fixture.store.silent_disk.lock() = Some(Instant::now());
    assert_eq!(fixture.store.get_ranges(&fixture.path(), &[5..8, 0..2]).await.unwrap(), ["567", "01"]);
    assert_eq!(fixture.asked(), [1]);
    *fixture.store.silent_disk.lock() = None;
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    assert_eq!(fixture.asked(), [1]);
}

#[tokio::test]
async fn a_peer_of_the_same_zone_comes_first_and_bytes_from_another_count() {
    let fixture = fixture_in("north", &[Manner::Honest, Manner::NoMark]).await;
    let log = Arc::new(ReadLog::new());
    let store = fixture.store.counting(Arc::clone(&log));
    let crossed = || (log.crossed_bytes(), fixture.store.channels.zone().crossed_bytes());
    // The second one is near, and delivers nothing whole.
    assert_eq!(store.get_range(&fixture.path(), 5..8).await.unwrap(), "567");
    assert_eq!((fixture.asked(), crossed()), (vec![1, 1], (3, 3)));
    // It is avoided now; others count for themselves.
    assert_eq!(fixture.read(0..10).await.unwrap().len(), 10);
    assert_eq!((fixture.asked(), crossed()), (vec![2, 1], (3, 13)));

    let south = fixture_in("south", &[Manner::Honest, Manner::Honest]).await;
    south.read(0..10).await.unwrap();
    assert_eq!((south.asked(), south.store.channels.zone().crossed_bytes()), (vec![1, 0], 0));
}

#[tokio::test]
async fn a_damaged_local_segment_is_told_and_comes_from_a_peer() {
    let fixture = fixture(&[Manner::Honest]).await;
    fixture.put_local(BYTES);
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    let path = fixture.local.path().join(fixture.name.to_string());
    for (number, damage) in [&b"0123456789abcdefghiX"[..], b"0123456789", b""].into_iter().enumerate() {
        std::fs::write(&path, damage).unwrap();
        assert_eq!(fixture.read(5..8).await.unwrap(), "567");
        assert_eq!(fixture.asked(), [number + 1]);
        assert_eq!(fixture.damage.0.lock().len(), number + 1);
    }
    std::fs::write(&path, BYTES).unwrap();
    // Mended meanwhile: whoever read the damage has nothing to tell.
    let told = fixture.damage.0.lock().len();
    fixture.segments.tell(&fixture.name, &io::ErrorKind::InvalidData.into());
    assert_eq!(fixture.damage.0.lock().len(), told);
    std::fs::remove_file(BlockSums::path(&path)).unwrap();
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    assert_eq!(fixture.store.head(&fixture.path()).await.unwrap().size, 20);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    assert_eq!(fixture.damage.0.lock().last(), Some(&io::ErrorKind::NotFound));
}

#[tokio::test]
async fn a_segment_that_is_not_here_comes_from_a_peer() {
    let fixture = fixture(&[Manner::Honest]).await;
    assert_eq!(fixture.read(5..18).await.unwrap(), "56789abcdefgh");
    assert_eq!(fixture.store.head(&fixture.path()).await.unwrap().size, 20);
    let ranges = fixture.store.get_ranges(&fixture.path(), &[18..20, 0..2]).await.unwrap();
    assert_eq!(ranges, ["ij", "01"]);
    assert_eq!(fixture.located.1.load(Ordering::SeqCst), 1, "each read asks where the segment is");
}

#[tokio::test]
async fn a_small_piece_comes_from_a_peer_once() {
    let fixture = fixture(&[Manner::Honest]).await;
    let store = fixture.store.clone().keeping(1 << 20);
    let read = async |ranges: &[Range<u64>]| store.get_ranges(&fixture.path(), ranges).await.unwrap();
    for _again in 0..3 {
        assert_eq!(read(&[5..8, 18..20]).await, ["567", "ij"]);
        assert_eq!(fixture.asked(), [1]);
    }
    assert_eq!(read(from_ref(&(5..9))).await, ["5678"]);
    assert_eq!(fixture.asked(), [2], "another piece");

    // What should be here is looked at each time, also where that came from a peer before.
    fixture.put_local(BYTES);
    fixture.damage.1.store(true, Ordering::SeqCst);
    let file = fixture.local.path().join(fixture.name.to_string());
    std::fs::write(&file, b"not what was written").unwrap();
    // A file that is not there is told of, too.
    let told = fixture.damage.0.lock().len();
    for number in 1..=4 {
        assert_eq!(read(from_ref(&(5..9))).await, ["5678"]);
        assert_eq!((fixture.asked(), fixture.damage.0.lock().len()), (vec![2 + number], told + number));
        if number == 2 {
            std::fs::remove_file(&file).unwrap();
        }
    }
    // It was moved away.
    fixture.damage.1.store(false, Ordering::SeqCst);
    assert_eq!(read(from_ref(&(5..9))).await, ["5678"]);
    assert_eq!(fixture.asked(), [6]);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_peer_the_next_one_is_asked() {
    for manner in [Manner::Empty, Manner::NoMark, Manner::Short, Manner::Flipped] {
        let fixture = fixture(&[manner, Manner::Honest]).await;
        assert_eq!(fixture.read(2..12).await.unwrap(), "23456789ab", "{manner:?}");
        assert_eq!(fixture.read(0..1).await.unwrap(), "0", "{manner:?}");
        assert_eq!(fixture.asked(), [1, 2], "{manner:?}: who failed is not asked first again");
    }
}

#[tokio::test]
async fn a_dead_peer_is_passed_over() {
    let fixture = fixture(&[Manner::Honest]).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let gone = Replica { worker: "gone".into(), address, zone: String::new() };
    fixture.located.0.lock().replicas.insert(0, gone);
    assert_eq!(fixture.read(0..4).await.unwrap(), "0123");
}

#[tokio::test]
async fn a_silent_peer_is_given_up() {
    let fixture = fixture(&[Manner::Silent, Manner::Honest]).await;
    // It has a second while there is another one to ask.
    let read = tokio::time::timeout(Duration::from_secs(3), fixture.read(0..4)).await;
    assert_eq!(read.expect("the silent peer is still waited for").unwrap(), "0123");
    assert_eq!(fixture.asked(), [1, 1]);
}

#[tokio::test]
async fn when_all_fail_the_error_names_segment_and_peers() {
    let fixture = fixture(&[Manner::NoMark, Manner::Flipped]).await;
    let failure = failure(fixture.read(0..4).await.unwrap_err());
    assert_eq!(failure.code, ErrorCode::Unavailable);
    let message = failure.message;
    for part in
        [fixture.name.to_string().as_str(), "shard 3", "w0:", "without its end mark", "w1:", "checksum"]
    {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}

#[tokio::test]
async fn a_local_file_that_is_cut_is_read_from_a_peer() {
    let fixture = fixture(&[Manner::Honest]).await;
    fixture.put_local(&BYTES[..10]);
    assert_eq!(fixture.read(5..8).await.unwrap(), "567");
    let ranges = fixture.store.get_ranges(&fixture.path(), std::slice::from_ref(&(8..12))).await.unwrap();
    assert_eq!(ranges, ["89ab"]);
    assert_eq!(fixture.asked(), [1]);
}

#[tokio::test]
async fn nothing_but_segments_has_a_name_here() {
    let fixture = fixture(&[]).await;
    for wrong in ["etc/passwd", "1/2/3", "1/2/../3.parquet"] {
        let error = fixture.store.get(&Path::from(wrong)).await.unwrap_err();
        assert_eq!(failure(error).code, ErrorCode::Invalid, "{wrong}");
    }
    let listed: object_store::Result<Vec<_>> = fixture.store.list(None).try_collect().await;
    assert!(listed.is_err());
    assert!(fixture.store.put(&fixture.path(), "x".into()).await.is_err());
    assert!(fixture.store.delete(&fixture.path()).await.is_err());
}

#[tokio::test]
async fn a_large_segment_comes_in_pieces() {
    let fixture = fixture(&[]).await;
    let bytes: Vec<u8> = (0..WHOLE_BYTES_MAX + 1000).map(|index| (index % 251) as u8).collect();
    fixture.put_local(&bytes);
    let pieces: Vec<Bytes> =
        fixture.store.get(&fixture.path()).await.unwrap().into_stream().try_collect().await.unwrap();
    assert!(pieces.len() > 1);
    assert_eq!(pieces.concat(), bytes);
}
