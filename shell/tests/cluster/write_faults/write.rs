//! One write of each kind, and what must be there of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array};
use arrow::record_batch::RecordBatch;
use arrow_flight::sql::{
    CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use shoal_benches::Client;
use tokio::task::JoinHandle;

/// Rows of one write.
pub(super) const ROWS: i64 = 2_000;
/// How long one write may take before it is sent again.
const ANSWERED_WITHIN: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Insert,
    Copy,
    CreateAs,
    Ingest,
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Insert, Self::Copy, Self::CreateAs, Self::Ingest];
}

/// One write, sent as often as it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Write {
    pub(super) kind: Kind,
    pub(super) number: i64,
}

impl Write {
    fn id(self) -> String {
        format!("fault-{}", self.number)
    }

    fn table(self) -> String {
        match self.kind {
            Kind::CreateAs => format!("wf_as_{}", self.number),
            Kind::Insert | Kind::Copy | Kind::Ingest => "wf_rows".to_owned(),
        }
    }

    /// Makes the file that a COPY reads.
    pub(super) fn prepare(self, import_dir: &Path) {
        if matches!(self.kind, Kind::Copy) {
            let lines: String = (1..=ROWS).map(|n| format!("{},{n}\n", self.number)).collect();
            std::fs::write(self.file(import_dir), format!("write,n\n{lines}")).unwrap();
        }
    }

    fn file(self, import_dir: &Path) -> PathBuf {
        import_dir.join(format!("{}.csv", self.id()))
    }

    /// Sends it once; the rows that are acknowledged.
    pub(super) async fn send(self, url: &str, import_dir: &Path) -> Result<i64, String> {
        let (number, table) = (self.number, self.table());
        let rows =
            format!("SELECT CAST({number} AS BIGINT) AS write, value AS n FROM generate_series(1, {ROWS})");
        let sent = async {
            let mut client = Client::connect(url).await?;
            client.flight().set_header("shoal-write-id", self.id());
            match self.kind {
                Kind::Insert => client.update(&format!("INSERT INTO {table} {rows}")).await,
                Kind::Copy => {
                    let file = self.file(import_dir);
                    let sql = format!("COPY {table} FROM '{}' (FORMAT csv, HEADER true)", file.display());
                    client.update(&sql).await
                }
                Kind::CreateAs => {
                    let layout = "WITH (shards = 2, replicas = 3, shard_key = 'n')";
                    client.update(&format!("CREATE TABLE {table} {layout} AS {rows}")).await
                }
                Kind::Ingest => {
                    let writes: ArrayRef = Arc::new(Int64Array::from_iter_values((1..=ROWS).map(|_| number)));
                    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(1..=ROWS));
                    let batch = RecordBatch::try_from_iter([("write", writes), ("n", keys)])?;
                    let batches = futures::stream::iter([Ok(batch)]);
                    Ok(client.flight().execute_ingest(append_to(table), batches).await?)
                }
            }
        };
        match tokio::time::timeout(ANSWERED_WITHIN, sent).await {
            Err(_) => Err("no answer".to_owned()),
            Ok(answer) => answer.map_err(|error: shoal_benches::ClientError| error.to_string()),
        }
    }

    /// How many of its rows are there; none where its table is not.
    pub(super) async fn count(self, client: &mut Client) -> Result<i64, shoal_benches::ClientError> {
        let sql = format!("SELECT count(*) FROM {} WHERE write = {}", self.table(), self.number);
        match client.number(&sql).await {
            Err(error) if error.code == tonic::Code::NotFound || error.message.contains("not found") => Ok(0),
            counted => counted,
        }
    }

    /// What the cluster says of it, to whoever knows its id.
    pub(super) async fn asked(self, client: &mut Client) -> Option<i64> {
        let sql = format!("SELECT sum(rows) FROM system.writes WHERE write_id = '{}'", self.id());
        client.number(&sql).await.ok()
    }

    /// Counts its rows again and again until `stop`: there is never a half.
    pub(super) fn watch(self, url: String, stop: Arc<AtomicBool>) -> JoinHandle<()> {
        tokio::spawn(async move {
            let mut client = None;
            while !stop.load(Ordering::Relaxed) {
                if client.is_none() {
                    client = Client::connect(&url).await.ok();
                }
                if let Some(asking) = &mut client {
                    match self.count(asking).await {
                        Ok(rows) => assert!(rows == 0 || rows == ROWS, "{rows} of {ROWS} rows of {self:?}"),
                        Err(_) => client = None,
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    }

    /// Each of its rows is there, once.
    pub(super) async fn check(self, client: &mut Client) {
        let sql = format!(
            "SELECT count(*) * 1000000000 + count(DISTINCT n) * 100000 + min(n) * 10000 + max(n) FROM {} WHERE write = {}",
            self.table(),
            self.number
        );
        let found = client.number(&sql).await.unwrap();
        assert_eq!(found, ROWS * 1_000_000_000 + ROWS * 100_000 + 10_000 + ROWS, "{self:?}");
        assert_eq!(self.asked(client).await, Some(ROWS), "{self:?}");
    }
}

fn append_to(table: String) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail.into(),
            if_exists: TableExistsOption::Append.into(),
        }),
        table,
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: Default::default(),
    }
}
