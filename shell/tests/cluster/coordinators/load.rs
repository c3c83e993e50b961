//! A client that writes and clients that read, all the time: what they are told
//! must be right whatever happens to the coordinators.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use shoal_benches::{Client, ClientError, Cluster};
use tokio::task::JoinHandle;
use tonic::Code;

use crate::fixture::in_time;

/// Rows of one write.
pub(super) const ROWS: i64 = 50;
/// How long something may take to be accepted on a machine that does other
/// things, with an election before it.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(60);
/// How long one try may take: a coordinator that is frozen never answers.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait before the next one.
const PAUSE: Duration = Duration::from_millis(50);

/// What is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) rows: i64,
    pub(super) writes: i64,
    pub(super) keys: i64,
}

impl Found {
    /// So many writes, each whole and once.
    pub(super) fn whole(writes: i64) -> Self {
        Self { rows: writes * ROWS, writes, keys: writes * ROWS }
    }
}

/// Makes the table.
pub(super) async fn make_table(client: &mut Client) {
    let sql = "CREATE TABLE kept (write BIGINT NOT NULL, n BIGINT NOT NULL) \
               WITH (shards = 4, replicas = 2, shard_key = 'n')";
    client.update(sql).await.unwrap();
}

/// Looks at the table.
pub(super) async fn look(client: &mut Client) -> Result<Found, ClientError> {
    let sql = "SELECT count(*), count(DISTINCT write), count(DISTINCT n) FROM kept WHERE write >= 0";
    let batches = client.query(sql).await?;
    let batch = batches.iter().find(|batch| batch.num_rows() > 0).expect("no row");
    let number = |index: usize| batch.column(index).as_primitive::<Int64Type>().value(0);
    Ok(Found { rows: number(0), writes: number(1), keys: number(2) })
}

/// A session with this coordinator in which the smallest scan is cut into
/// tasks.
pub(super) async fn session_with(cluster: &Cluster, coordinator: &str) -> Client {
    let mut client = cluster.connect_to(coordinator).await.unwrap();
    client.update("SET shoal.task_bytes = 1").await.unwrap();
    client
}

/// Where clients reach these coordinators.
pub(super) fn urls(cluster: &Cluster, coordinators: &[String]) -> Vec<String> {
    coordinators.iter().map(|name| cluster.url_of(name).unwrap()).collect()
}

/// Writes the rows of a write through the first coordinator that takes it,
/// always under the same id.
pub(super) async fn write(urls: &[String], write: i64) {
    let first = write * ROWS;
    let last = first + ROWS - 1;
    let sql = format!("INSERT INTO kept SELECT {write}, value FROM generate_series({first}, {last})");
    assert_eq!(accepted(urls, &sql, Some(&format!("write-{write}"))).await, ROWS, "write {write}");
}

/// Sends a statement to one coordinator after the other until one carries it
/// out; how many rows it changed.
pub(super) async fn accepted(urls: &[String], sql: &str, write_id: Option<&str>) -> i64 {
    let since = Instant::now();
    for url in urls.iter().cycle() {
        let sending = async {
            let mut client = Client::connect(url).await?;
            if let Some(id) = write_id {
                client.flight().set_header("shoal-write-id", id);
            }
            client.update(sql).await
        };
        let error = match tokio::time::timeout(TRY_TIMEOUT, sending).await {
            Ok(Ok(rows)) => return rows,
            Ok(Err(error)) => {
                let is_refused =
                    matches!(error.code, Code::InvalidArgument | Code::NotFound | Code::AlreadyExists);
                assert!(!is_refused, "{url} refuses {sql}: {error}");
                error.to_string()
            }
            Err(_) => format!("no answer within {TRY_TIMEOUT:?}"),
        };
        assert!(since.elapsed() < ACCEPTED_WITHIN, "nobody carries out {sql}; at last {url}: {error}");
        tokio::time::sleep(PAUSE).await;
    }
    panic!("there is no coordinator to send {sql} to")
}

/// What the clients of a load have done so far.
#[derive(Default)]
struct Counts {
    /// Writes that were sent, and that were acknowledged.
    sent: AtomicI64,
    acknowledged: AtomicI64,
    is_over: AtomicBool,
}

/// A client that reads, and how often it was answered.
struct Reader {
    coordinator: String,
    answers: Arc<AtomicI64>,
    task: JoinHandle<()>,
}

/// One writer, through any coordinator, and a reader on each of some that are
/// there all the time.
pub(super) struct Load {
    counts: Arc<Counts>,
    writer: JoinHandle<()>,
    readers: Vec<Reader>,
}

impl Load {
    pub(super) async fn begin(cluster: &Cluster, readers: &[String]) -> Self {
        let counts = Arc::new(Counts::default());
        let writer = tokio::spawn({
            let (counts, urls) = (Arc::clone(&counts), urls(cluster, &cluster.coordinator_names()));
            async move {
                while !counts.is_over.load(Ordering::SeqCst) {
                    let next = counts.sent.fetch_add(1, Ordering::SeqCst);
                    write(&urls, next).await;
                    counts.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let mut reading = Vec::new();
        for coordinator in readers {
            let client = session_with(cluster, coordinator).await;
            let answers = Arc::<AtomicI64>::default();
            let read = read(client, coordinator.clone(), Arc::clone(&counts), Arc::clone(&answers));
            let task = tokio::spawn(read);
            reading.push(Reader { coordinator: coordinator.clone(), answers, task });
        }
        Self { counts, writer, readers: reading }
    }

    /// Waits until every client has got on since this was called.
    pub(super) async fn goes_on(&self) {
        let acknowledged = self.counts.acknowledged.load(Ordering::SeqCst);
        self.until("the writer", || self.counts.acknowledged.load(Ordering::SeqCst) >= acknowledged + 2)
            .await;
        for reader in &self.readers {
            let answers = reader.answers.load(Ordering::SeqCst);
            let what = format!("the reader on {}", reader.coordinator);
            self.until(&what, || reader.answers.load(Ordering::SeqCst) >= answers + 2).await;
        }
    }

    async fn until(&self, who: &str, gets_on: impl Fn() -> bool) {
        let since = Instant::now();
        while !gets_on() {
            let stopped = self.writer.is_finished() || self.readers.iter().any(|r| r.task.is_finished());
            assert!(!stopped, "a client failed while {who} was waited for");
            assert!(since.elapsed() < 2 * ACCEPTED_WITHIN, "{who} does not get on");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends all clients; how many writes there are, all of them acknowledged.
    pub(super) async fn end(self) -> i64 {
        self.goes_on().await;
        self.counts.is_over.store(true, Ordering::SeqCst);
        self.writer.await.unwrap();
        for reader in self.readers {
            reader.task.await.unwrap();
        }
        self.counts.acknowledged.load(Ordering::SeqCst)
    }
}

/// Reads until the load is over. An answer has all that was acknowledged before
/// it was asked for, and nothing that was not sent when it came.
async fn read(mut client: Client, coordinator: String, counts: Arc<Counts>, answers: Arc<AtomicI64>) {
    while !counts.is_over.load(Ordering::SeqCst) {
        let at_least = counts.acknowledged.load(Ordering::SeqCst);
        let found = in_time(look(&mut client)).await;
        let at_most = counts.sent.load(Ordering::SeqCst);
        let found = found.unwrap_or_else(|error| panic!("{coordinator}: {error}"));
        assert_eq!(found, Found::whole(found.writes), "{coordinator}: a write in part, or twice");
        assert!(
            (at_least..=at_most).contains(&found.writes),
            "{coordinator}: {} writes, of {at_least} acknowledged and {at_most} sent",
            found.writes
        );
        answers.fetch_add(1, Ordering::SeqCst);
    }
}
