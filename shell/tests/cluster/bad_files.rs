//! Files that cannot be loaded: a clear error, nothing loaded.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use shoal_benches::{Client, Cluster};

use crate::bad_input::{fails, with_client};
use crate::fixture::{options, shared};

fn write_parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns.into_iter().map(|(name, column)| (name, column, true)),
    )
    .unwrap();
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn ints(values: &[Option<i32>]) -> ArrayRef {
    Arc::new(Int32Array::from(values.to_vec()))
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

async fn rows(client: &mut Client, table: &str) -> i64 {
    client.number(&format!("SELECT count(*) FROM {table}")).await.unwrap()
}

#[test]
fn bad_parquet_files_are_named_and_load_nothing() {
    let cluster = shared(2);
    let dir = cluster.import_dir().join("bad_parquet");
    fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name);
    write_parquet(&path("good.parquet"), vec![("k", ints(&[Some(1), Some(2)])), ("s", texts(&["a", "b"]))]);
    let good = fs::read(path("good.parquet")).unwrap();
    fs::write(path("empty.parquet"), b"").unwrap();
    fs::write(path("truncated.parquet"), &good[..good.len() / 2]).unwrap();
    fs::write(path("text.parquet"), "k,s\n1,a\n".repeat(100)).unwrap();
    write_parquet(&path("missing_column.parquet"), vec![("k", ints(&[Some(1)]))]);
    write_parquet(
        &path("other_column.parquet"),
        vec![("k", ints(&[Some(1)])), ("s", texts(&["a"])), ("surplus", texts(&["a"]))],
    );
    write_parquet(&path("other_type.parquet"), vec![("k", texts(&["not a number"])), ("s", texts(&["a"]))]);
    write_parquet(&path("nulls.parquet"), vec![("k", ints(&[Some(1), None])), ("s", texts(&["a", "b"]))]);
    with_client(cluster, async |client| {
        client.update("CREATE TABLE bad_parquet (k INT NOT NULL, s VARCHAR)").await.unwrap();
        for (name, parts) in [
            ("absent.parquet", &["absent.parquet"] as &[&str]),
            ("no_match_*.parquet", &["no_match_"]),
            ("empty.parquet", &["empty.parquet"]),
            ("truncated.parquet", &["truncated.parquet"]),
            ("text.parquet", &["text.parquet"]),
            ("missing_column.parquet", &["missing_column.parquet", "s"]),
            ("other_column.parquet", &["other_column.parquet", "surplus"]),
            ("other_type.parquet", &["k"]),
            ("nulls.parquet", &["k", "null"]),
        ] {
            let sql = format!("COPY bad_parquet FROM '{}' (FORMAT parquet)", path(name).display());
            fails(client, &sql, parts).await;
            assert_eq!(rows(client, "bad_parquet").await, 0, "{name}");
        }
        // One bad file among good ones: nothing of any.
        let sql = format!("COPY bad_parquet FROM '{}/*.parquet' (FORMAT parquet)", dir.display());
        fails(client, &sql, &[]).await;
        assert_eq!(rows(client, "bad_parquet").await, 0);
        let sql = format!("COPY bad_parquet FROM '{}' (FORMAT parquet)", path("good.parquet").display());
        assert_eq!(client.update(&sql).await.unwrap(), 2);
        fails(client, &sql.replace("parquet)", "avro)"), &["avro"]).await;
        fails(client, &sql.replace("parquet)", "parquet, HEADR true)"), &["headr"]).await;
        assert_eq!(rows(client, "bad_parquet").await, 2);
        client.update("DROP TABLE bad_parquet").await.unwrap();
    });
}

#[test]
fn broken_lines_of_text_files_are_numbered_and_load_nothing() {
    let cluster = shared(2);
    let dir = cluster.import_dir().join("bad_text");
    fs::create_dir_all(&dir).unwrap();
    let mut lines: Vec<String> = (1..=5_000).map(|line| format!("{line},text {line}")).collect();
    fs::write(dir.join("good.csv"), format!("k,s\n{}\n", lines.join("\n"))).unwrap();
    lines[4_321] = "1,two,three".into();
    fs::write(dir.join("columns.csv"), format!("k,s\n{}\n", lines.join("\n"))).unwrap();
    lines[4_321] = "notanumber,x".into();
    fs::write(dir.join("type.csv"), format!("k,s\n{}\n", lines.join("\n"))).unwrap();
    fs::write(
        dir.join("broken.json"),
        "{\"k\": 1, \"s\": \"a\"}\n{\"k\": 2, \"s\": \n{\"k\": 3, \"s\": \"c\"}\n",
    )
    .unwrap();
    fs::write(dir.join("quote.csv"), "k,s\n1,\"never closed\n2,b\n").unwrap();
    fs::write(dir.join("binary.csv"), [b'k', b',', b's', b'\n', 0xff, 0xfe, 0x00, b'\n']).unwrap();
    with_client(cluster, async |client| {
        client.update("CREATE TABLE bad_text (k INT NOT NULL, s VARCHAR)").await.unwrap();
        for (name, format, parts) in [
            // The header is line 1.
            ("columns.csv", "csv, HEADER true", &["columns.csv", "4323"] as &[&str]),
            ("type.csv", "csv, HEADER true", &["type.csv", "4323"]),
            ("broken.json", "json", &["broken.json", "2"]),
            ("binary.csv", "csv, HEADER true", &["binary.csv"]),
            ("absent.csv", "csv, HEADER true", &["absent.csv"]),
        ] {
            let sql = format!("COPY bad_text FROM '{}' (FORMAT {format})", dir.join(name).display());
            fails(client, &sql, parts).await;
            assert_eq!(rows(client, "bad_text").await, 0, "{name}");
        }
        let sql =
            format!("COPY bad_text FROM '{}' (FORMAT csv, HEADER true)", dir.join("good.csv").display());
        assert_eq!(client.update(&sql).await.unwrap(), 5_000);
        assert_eq!(client.number("SELECT sum(k) FROM bad_text").await.unwrap(), 12_502_500);
        client.update("DROP TABLE bad_text").await.unwrap();
    });
}

#[test]
fn files_outside_the_import_roots_are_out_of_reach() {
    let cluster = shared(2);
    let dir = cluster.import_dir().join("roots");
    fs::create_dir_all(&dir).unwrap();
    let outside = cluster.dir().join("outside.csv");
    fs::write(&outside, "k\n1\n").unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("link.csv")).unwrap();
    std::os::unix::fs::symlink(cluster.dir(), dir.join("up")).unwrap();
    with_client(cluster, async |client| {
        client.update("CREATE TABLE rooted (k VARCHAR)").await.unwrap();
        for path in [
            "/etc/passwd".to_owned(),
            outside.display().to_string(),
            format!("{}/../../outside.csv", dir.display()),
            format!("{}/up/outside.csv", dir.display()),
            format!("{}/*/outside.csv", dir.display()),
            "file:///etc/passwd".to_owned(),
            "../outside.csv".to_owned(),
            "http://169.254.169.254/latest".to_owned(),
        ] {
            fails(client, &format!("COPY rooted FROM '{path}' (FORMAT csv)"), &[]).await;
            fails(client, &format!("COPY rooted TO '{path}' (FORMAT csv)"), &[]).await;
            let external =
                format!("CREATE EXTERNAL TABLE rooted_external (k VARCHAR) STORED AS CSV LOCATION '{path}'");
            fails(client, &external, &[]).await;
        }
        let link = dir.join("link.csv");
        fails(client, &format!("COPY rooted FROM '{}' (FORMAT csv)", link.display()), &[]).await;
        fails(client, "COPY rooted FROM '/etc/passwd' (FORMAT csv)", &["import"]).await;
        // A link may be replaced by a file; what it leads to stays as it is.
        let _either = client.update(&format!("COPY (SELECT 2) TO '{}' (FORMAT csv)", link.display())).await;
        assert_eq!(rows(client, "rooted").await, 0);
        assert_eq!(fs::read_to_string(&outside).unwrap(), "k\n1\n");
        client.update("DROP TABLE rooted").await.unwrap();
    });
}

/// A file system of limited size, unmounted on drop.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    /// None where mounting is not allowed.
    fn mount(mebibytes: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs"])
            .arg(dir.path())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(Self { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ignored = Command::new("umount").args(["-l"]).arg(self.dir.path()).status();
    }
}

#[test]
fn a_full_disk_fails_the_load_and_nothing_else() {
    let Some(disk) = SmallDisk::mount(48) else {
        eprintln!("mounting a tmpfs is not allowed here: the full disk is not tested");
        return;
    };
    let mut options = options(2);
    options.worker_dir = Some(disk.dir.path().to_owned());
    let cluster = Cluster::start(&options).unwrap();
    with_client(&cluster, async |client| {
        client
            .update(
                "CREATE TABLE full_disk (k BIGINT NOT NULL, s VARCHAR) WITH (shards = 4, shard_key = 'k')",
            )
            .await
            .unwrap();
        client.update("INSERT INTO full_disk VALUES (1, 'kept')").await.unwrap();
        // Digests cannot be compressed: some 130 MB.
        let sql = "INSERT INTO full_disk SELECT value, md5(CAST(value AS VARCHAR)) || md5(CAST(-value AS VARCHAR)) FROM generate_series(1, 2000000)";
        let error = client.update(sql).await.unwrap_err();
        assert_eq!(error.code, tonic::Code::ResourceExhausted, "{error}");
        assert_eq!(rows(client, "full_disk").await, 1);
        // What was staged is removed, so that there is room again.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let room = client.update("INSERT INTO full_disk SELECT value, md5(CAST(value AS VARCHAR)) FROM generate_series(2, 100000)").await;
            match room {
                Ok(_) => break,
                Err(error) => assert!(std::time::Instant::now() < deadline, "still no room: {error}"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert_eq!(rows(client, "full_disk").await, 100_000);
    });
    drop(cluster);
    drop(disk);
}
