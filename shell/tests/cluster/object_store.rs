//! External tables on an S3-compatible object store: `moto`'s server, from
//! the Python environment that `tests/python` makes.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;

use crate::fixture::options;

const SERVER: &str = r#"
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("port", server._server.server_port, flush=True)
import boto3
s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server._server.server_port}", region_name="us-east-1",
                  aws_access_key_id="test", aws_secret_access_key="test")
s3.create_bucket(Bucket="lake")
for key, path in zip(sys.argv[1::2], sys.argv[2::2]):
    s3.upload_file(path, "lake", key)
print("ready", flush=True)
sys.stdin.read()
"#;

struct Moto(Child);

impl Drop for Moto {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn python() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new("bash").arg(root.join("tests/python/run.sh")).arg("--python").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn write_parquet(path: &std::path::Path, first: i64, rows: i64) {
    let schema = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, false),
        Field::new("s", DataType::Utf8, false),
    ]));
    let keys: Vec<i64> = (first..first + rows).collect();
    let texts: StringArray = keys.iter().map(|key| Some(format!("row {key}"))).collect();
    let batch =
        RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(keys)), Arc::new(texts)]);
    let mut writer = ArrowWriter::try_new(std::fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch.unwrap()).unwrap();
    writer.close().unwrap();
}

#[test]
fn external_tables_read_an_object_store_on_the_workers() {
    let dir = tempfile::tempdir().unwrap();
    let files = [dir.path().join("a.parquet"), dir.path().join("b.parquet")];
    write_parquet(&files[0], 0, 1000);
    write_parquet(&files[1], 1000, 500);
    let mut command = Command::new(python());
    command.args(["-c", SERVER, "open/a.parquet"]).arg(&files[0]).arg("open/b.parquet").arg(&files[1]);
    command.arg("private/c.parquet").arg(&files[0]);
    let mut moto =
        Moto(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(moto.0.stdout.take().unwrap()).lines();
    // The server says other things too.
    let port: u16 = loop {
        if let Some(port) = lines.next().unwrap().unwrap().strip_prefix("port ") {
            break port.parse().unwrap();
        }
    };
    while lines.next().unwrap().unwrap() != "ready" {}

    let mut options = options(2);
    for (name, value) in [
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
    ] {
        options.env.push((name.into(), value));
    }
    let store = ["--object-store".to_owned(), "s3://lake/open".to_owned()];
    options.coordinator_args.extend(store.clone());
    options.worker_args.extend(store);
    let cluster = shoal_benches::Cluster::start(&options).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut client = cluster.connect().await.unwrap();
        client
            .update("CREATE EXTERNAL TABLE lake STORED AS PARQUET LOCATION 's3://lake/open/'")
            .await
            .unwrap();
        assert_eq!(client.number("SELECT sum(k) FROM lake").await.unwrap(), (0..1500).sum::<i64>());
        assert_eq!(client.number("SELECT count(*) FROM lake WHERE s = 'row 1200'").await.unwrap(), 1);
        for format in ["parquet", "csv"] {
            let name = format!("s3://lake/open/out/copy.{format}.zst");
            let name = if format == "parquet" { "s3://lake/open/out/copy.parquet" } else { &name };
            let sql = format!("COPY (SELECT * FROM lake WHERE k < 1200) TO '{name}' (FORMAT {format})");
            assert_eq!(client.update(&sql).await.unwrap(), 1200);
            client.update(&format!("CREATE TABLE back_{format} (k BIGINT, s TEXT)")).await.unwrap();
            let sql = format!("COPY back_{format} FROM '{name}' (FORMAT {format})");
            assert_eq!(client.update(&sql).await.unwrap(), 1200);
            let sum = format!("SELECT sum(k) FROM back_{format} WHERE s = 'row ' || k");
            assert_eq!(client.number(&sum).await.unwrap(), (0..1200).sum::<i64>());
        }
        // What is new in a folder is found, by loads and by external tables.
        client.update("CREATE TABLE listed (k BIGINT, s TEXT)").await.unwrap();
        for (part, rows) in [(0, 300), (1, 600)] {
            let rows_of_part = format!("SELECT * FROM lake WHERE k % 5 = {part}");
            let sql = format!("COPY ({rows_of_part}) TO 's3://lake/open/list/{part}.parquet' (FORMAT parquet)");
            assert_eq!(client.update(&sql).await.unwrap(), 300);
            let sql = "COPY listed FROM 's3://lake/open/list/' (FORMAT parquet)";
            assert_eq!(client.update(sql).await.unwrap(), rows, "objects of the folder when it has {}", part + 1);
            client
                .update("CREATE EXTERNAL TABLE IF NOT EXISTS found STORED AS PARQUET LOCATION 's3://lake/open/list/'")
                .await
                .unwrap();
            assert_eq!(client.number("SELECT count(*) FROM found").await.unwrap(), rows);
        }
        // A query that fails halfway leaves no object behind.
        let broken =
            "COPY (SELECT 1 / (k - 1400) AS q FROM lake) TO 's3://lake/open/broken.csv' (FORMAT csv)";
        assert!(client.update(broken).await.is_err());
        let read = "CREATE EXTERNAL TABLE broken STORED AS CSV LOCATION 's3://lake/open/broken.csv'";
        assert!(client.update(read).await.is_err());
        for target in ["s3://lake/private/x.csv", "s3://lake/open/", "s3://lake/open/*.csv"] {
            let sql = format!("COPY (SELECT 1) TO '{target}' (FORMAT csv)");
            let message = client.update(&sql).await.unwrap_err().to_string();
            assert!(message.contains(target), "{message}");
        }
        for outside in [
            "s3://lake/private/",
            "s3://lake/open/../private/",
            "s3://other/open/",
            "http://169.254.169.254/x",
        ] {
            let sql = format!("CREATE EXTERNAL TABLE outside STORED AS PARQUET LOCATION '{outside}'");
            let message = client.update(&sql).await.unwrap_err().to_string();
            assert!(message.contains("--object-store"), "{outside}: {message}");
        }
    });
    assert_eq!(cluster.crashed(), Vec::<String>::new());
}
