//! COPY's two directions over real files, and what is wrong with them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch, record_batch};
use arrow::compute::concat_batches;
// `record_batch!` looks for it by this name.
use arrow::datatypes as arrow_schema;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use object_store::ObjectStoreExt;
use parquet::arrow::ArrowWriter;
use shoal_data::{ImportRoots, ImportStore};
use tempfile::TempDir;

use super::*;
use crate::catalog::ExternalTable;

/// A directory that is the import root, and one beside it that is not.
struct Fixture {
    _home: TempDir,
    root: std::path::PathBuf,
    outside: std::path::PathBuf,
    roots: ImportRoots,
    state: SessionState,
}

impl Fixture {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (root, outside) = (home.path().join("root"), home.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret.csv"), "k,text\n1,secret\n").unwrap();
        let roots = ImportRoots::new(std::slice::from_ref(&root));
        let root = root.canonicalize().unwrap();
        Self { _home: home, root, outside, roots, state: SessionContext::new().state() }
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn put_parquet(&self, name: &str, batch: &RecordBatch) {
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
        writer.write(batch).unwrap();
        self.put(name, writer.into_inner().unwrap());
    }

    async fn read(&self, location: &str, options: &[(&str, &str)]) -> Result<RecordBatch, String> {
        self.read_as(location, options, columns()).await
    }

    async fn read_as(
        &self,
        location: &str,
        options: &[(&str, &str)],
        columns: SchemaRef,
    ) -> Result<RecordBatch, String> {
        let format =
            FileFormat::from_options(location, &named(options)).map_err(|error| error.to_string())?;
        let opened = open_files(&self.state, &self.roots, location, &format, columns.clone())
            .await
            .map_err(|error| error.to_string())?;
        let batches: Vec<_> = opened
            .into_rows()
            .try_collect()
            .await
            .map_err(|error| shoal_proto::Failure::from_datafusion(&error).message)?;
        Ok(concat_batches(&columns, &batches).unwrap())
    }

    /// What must be in the message of a load that is refused.
    async fn assert_refused(&self, location: &str, options: &[(&str, &str)], hints: &[&str]) {
        let message = self.read(location, options).await.expect_err(location);
        for hint in hints {
            assert!(message.contains(hint), "`{hint}` is not in: {message}");
        }
    }
}

fn named(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, false),
        Field::new("text", DataType::Utf8, true),
    ]))
}

fn keys(batch: &RecordBatch) -> Vec<i64> {
    let mut keys = batch.column(0).as_primitive::<Int64Type>().values().to_vec();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn csv_is_read_with_and_without_names() {
    let fixture = Fixture::new();
    fixture.put("named.csv", "text,K\na,1\n,2\n");
    fixture.put("plain.csv", "1,a\n2,\n");
    fixture.put("other.txt", "1|'a''b'\n2|NA\n");
    fixture.put("bom.csv", "\u{feff}k,text\r\n1,a\r\n2,\r\n");
    let expected = RecordBatch::try_new(
        columns(),
        record_batch!(("k", Int64, [1, 2]), ("text", Utf8, [Some("a"), None])).unwrap().columns().to_vec(),
    )
    .unwrap();
    assert_eq!(fixture.read("named.csv", &[]).await.unwrap(), expected);
    assert_eq!(fixture.read("named.csv", &[("header", "true")]).await.unwrap(), expected);
    assert_eq!(fixture.read("plain.csv", &[]).await.unwrap(), expected);
    assert_eq!(fixture.read("bom.csv", &[]).await.unwrap(), expected);
    let other = [("format", "csv"), ("delimiter", "|"), ("quote", "'"), ("null", "NA")];
    let read = fixture.read("other.txt", &other).await.unwrap();
    assert_eq!(read.column(1).as_string::<i32>().value(0), "a'b");
    assert!(read.column(1).is_null(1));
}

#[tokio::test]
async fn a_broken_line_is_named_by_its_number() {
    let fixture = Fixture::new();
    fixture.put("value.csv", "k,text\n1,a\n2,b\nx,c\n");
    fixture.assert_refused("value.csv", &[], &["value.csv", "line 4", "'x'"]).await;
    fixture.put("fields.csv", "k,text\n1,a\n2\n");
    fixture.assert_refused("fields.csv", &[], &["fields.csv", "line 3", "expected 2 got 1"]).await;
    fixture.put("headless.csv", "1,a\ny,b\n");
    fixture.assert_refused("headless.csv", &[], &["line 2", "'y'"]).await;
    let mut many = String::from("k,text\n");
    (0..20_000).for_each(|key| many.push_str(&format!("{key},a\n")));
    many.push_str("z,a\n");
    fixture.put("many.csv", many);
    fixture.assert_refused("many.csv", &[], &["line 20002", "'z'"]).await;
}

#[tokio::test]
async fn text_that_must_not_be_null_may_be_empty() {
    let fixture = Fixture::new();
    let columns: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("text", DataType::Utf8, false),
    ]));
    fixture.put("a.csv", "k,text\n1,\n,b\n");
    let read = fixture.read_as("a.csv", &[], columns.clone()).await.unwrap();
    assert_eq!(read.column(1).as_string::<i32>().value(0), "");
    assert!(read.column(0).is_null(1));
    let message = fixture.read_as("a.csv", &[("null", "")], columns).await.unwrap_err();
    assert!(message.contains("null in column `text`"), "{message}");
}

#[tokio::test]
async fn json_lines_are_read_and_wrong_ones_named() {
    let fixture = Fixture::new();
    fixture.put("a.json", "{\"k\": 1, \"text\": \"a\"}\n\n{\"k\": 2}");
    let read = fixture.read("a.json", &[]).await.unwrap();
    assert_eq!(keys(&read), [1, 2]);
    assert!(read.column(1).is_null(1));
    for (lines, hints) in [
        ("{\"k\": 1}\n{\"k\": \"x\"}\n", ["line 2", "a.json"]),
        ("{\"k\": 1}\n{\"k\": 2,\n", ["line 2", "end on this line"]),
        ("{\"k\": 1}\n{\"k\": 2, \"z\": 1}\n", ["line 2", "z"]),
        ("{\"k\": 1}\n{\"text\": \"a\"}\n", ["row 2", "null in column `k`"]),
        ("[1]\n", ["line 1", "one JSON object per line"]),
    ] {
        fixture.put("a.json", lines);
        fixture.assert_refused("a.json", &[], &hints).await;
    }
}

#[tokio::test]
async fn compressed_text_is_read_by_its_name_or_option() {
    let fixture = Fixture::new();
    let text = b"k,text\n1,a\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text).unwrap();
    let gzip = gzip.finish().unwrap();
    fixture.put("a.csv.gz", &gzip);
    fixture.put("b.csv.zst", zstd::encode_all(text.as_slice(), 1).unwrap());
    fixture.put("c.csv", &gzip);
    assert_eq!(keys(&fixture.read("a.csv.gz", &[]).await.unwrap()), [1]);
    assert_eq!(keys(&fixture.read("b.csv.zst", &[]).await.unwrap()), [1]);
    assert_eq!(keys(&fixture.read("c.csv", &[("compression", "gzip")]).await.unwrap()), [1]);
    fixture.put("cut.csv.gz", &gzip[..gzip.len() - 12]);
    fixture.assert_refused("cut.csv.gz", &[], &["cut.csv.gz"]).await;
    fixture.put("not.csv.zst", "k,text\n1,a\n");
    fixture.assert_refused("not.csv.zst", &[], &["not.csv.zst", "cannot be read"]).await;
}

#[tokio::test]
async fn parquet_columns_go_by_name_and_types_that_fit_are_cast() {
    let fixture = Fixture::new();
    let batch = record_batch!(("text", Utf8View, ["a", "b"]), ("k", Int32, [1, 2])).unwrap();
    fixture.put_parquet("a.parquet", &batch);
    let read = fixture.read("a.parquet", &[]).await.unwrap();
    assert_eq!(keys(&read), [1, 2]);
    assert_eq!(read.column(1).as_string::<i32>().value(1), "b");
}

#[tokio::test]
async fn what_is_wrong_with_a_parquet_file_is_said() {
    let fixture = Fixture::new();
    let good = record_batch!(("k", Int64, [1, 2]), ("text", Utf8, ["a", "b"])).unwrap();
    fixture.put_parquet("good.parquet", &good);
    let bytes = fs::read(fixture.root.join("good.parquet")).unwrap();

    fixture.assert_refused("missing.parquet", &[], &["missing.parquet", "No such file"]).await;
    fixture.put("empty.parquet", "");
    fixture.assert_refused("empty.parquet", &[], &["empty.parquet", "is empty"]).await;
    fixture.put("cut.parquet", &bytes[..bytes.len() - 20]);
    fixture.assert_refused("cut.parquet", &[], &["cut.parquet", "not a whole Parquet file"]).await;
    fixture.put("text.parquet", "k,text\n1,a\n");
    fixture.assert_refused("text.parquet", &[], &["text.parquet", "not a whole Parquet file"]).await;
    let mut damaged = bytes;
    damaged[4..40].fill(0xff);
    fixture.put("damaged.parquet", damaged);
    fixture.assert_refused("damaged.parquet", &[], &["damaged.parquet", "row group 0"]).await;

    fixture.put_parquet(
        "extra.parquet",
        &record_batch!(("k", Int64, [1]), ("text", Utf8, ["a"]), ("z", Int64, [1])).unwrap(),
    );
    fixture.assert_refused("extra.parquet", &[], &["extra.parquet", "column `z`"]).await;
    fixture.put_parquet("lacks.parquet", &record_batch!(("k", Int64, [1])).unwrap());
    fixture.assert_refused("lacks.parquet", &[], &["lacks.parquet", "lacks column `text`"]).await;
    fixture.put_parquet("type.parquet", &record_batch!(("k", Utf8, ["1"]), ("text", Utf8, ["a"])).unwrap());
    fixture.assert_refused("type.parquet", &[], &["type.parquet", "`k`", "Utf8", "Int64"]).await;
    fixture.put_parquet(
        "null.parquet",
        &record_batch!(("k", Int64, [Some(1), None]), ("text", Utf8, ["a", "b"])).unwrap(),
    );
    fixture.assert_refused("null.parquet", &[], &["null.parquet", "row 2", "`k`"]).await;
}

#[tokio::test]
async fn patterns_and_directories_stand_for_their_files() {
    let fixture = Fixture::new();
    for (name, key) in
        [("d/a.csv", 1), ("d/b.csv", 2), ("d/c.json", 3), ("d/e/f.csv", 4), ("d/.hidden.csv", 5)]
    {
        fixture.put(name, format!("k,text\n{key},x\n"));
    }
    assert_eq!(keys(&fixture.read("d/*.csv", &[]).await.unwrap()), [1, 2]);
    assert_eq!(keys(&fixture.read("d/**/*.csv", &[]).await.unwrap()), [1, 2, 4]);
    assert_eq!(keys(&fixture.read("d/[ab].csv", &[]).await.unwrap()), [1, 2]);
    let absolute = fixture.root.join("d/?.csv");
    assert_eq!(keys(&fixture.read(absolute.to_str().unwrap(), &[]).await.unwrap()), [1, 2]);
    let url = format!("file://{}", fixture.root.join("d/a.csv").display());
    assert_eq!(keys(&fixture.read(&url, &[]).await.unwrap()), [1]);
    assert_eq!(keys(&fixture.read("d", &[("format", "csv")]).await.unwrap()), [1, 2, 3]);
    fixture.put("odd [1].csv", "k,text\n9,x\n");
    assert_eq!(keys(&fixture.read("odd [1].csv", &[]).await.unwrap()), [9]);
    fixture.assert_refused("d/*.parquet", &[], &["no file matches", "d/*.parquet"]).await;
    // One bad file among many: none is loaded.
    fixture.put("d/g.csv", "k,z\n1,x\n");
    fixture.assert_refused("d/*.csv", &[], &["g.csv", "column `z`"]).await;
}

#[tokio::test]
async fn nothing_outside_the_roots_is_read() {
    let fixture = Fixture::new();
    let secret = fixture.outside.join("secret.csv");
    std::os::unix::fs::symlink(&secret, fixture.root.join("link.csv")).unwrap();
    std::os::unix::fs::symlink(&fixture.outside, fixture.root.join("linked")).unwrap();
    let pattern = format!("{}/*.csv", fixture.outside.display());
    for location in [
        secret.to_str().unwrap(),
        pattern.as_str(),
        "link.csv",
        "lin*.csv",
        "linked/secret.csv",
        "linked/*.csv",
        "*/secret.csv",
        "/etc/passwd",
        "/etc/*",
        "/*/passwd",
        "/proc/self/environ",
    ] {
        fixture.assert_refused(location, &[("format", "csv")], &["outside the import roots"]).await;
    }
    for location in ["../outside/secret.csv", "x/../../outside/*.csv", "file:///x/../etc/passwd"] {
        fixture.assert_refused(location, &[("format", "csv")], &["`..`"]).await;
    }
    // Whether something exists outside does not show.
    let missing = fixture.outside.join("nothing.csv");
    fixture.assert_refused(missing.to_str().unwrap(), &[], &["outside the import roots"]).await;
    fixture.assert_refused("file://host/x.csv", &[], &["names a host"]).await;
}

#[tokio::test]
async fn without_roots_nothing_is_read() {
    let mut fixture = Fixture::new();
    fixture.put("a.csv", "k,text\n1,a\n");
    fixture.roots = ImportRoots::default();
    fixture.assert_refused("a.csv", &[], &["--import-root"]).await;
    let absolute = fixture.root.join("a.csv");
    fixture.assert_refused(absolute.to_str().unwrap(), &[], &["--import-root"]).await;
}

#[tokio::test]
async fn long_lines_make_small_batches() {
    let fixture = Fixture::new();
    let line_end = "x\ny".repeat(50_000);
    let text: String = (0..100).map(|key| format!("{key},\"{line_end}\"\r\n")).collect();
    fixture.put("long.csv", &text);
    let format = FileFormat::from_options("long.csv", &BTreeMap::new()).unwrap();
    let opened = open_files(&fixture.state, &fixture.roots, "long.csv", &format, columns()).await.unwrap();
    let batches: Vec<_> = opened.into_rows().try_collect().await.unwrap();
    assert_eq!(keys(&concat_batches(&columns(), &batches).unwrap()), (0..100).collect::<Vec<_>>());
    assert!(batches.iter().all(|batch| batch.column(1).as_string::<i32>().value(0) == line_end));
    assert!(batches.iter().all(|batch| batch.num_rows() < 70), "one batch has nearly all");
}

#[tokio::test]
async fn object_stores_are_read_like_disks() {
    let fixture = Fixture::new();
    let store = Arc::new(object_store::memory::InMemory::new());
    let batch = record_batch!(("k", Int64, [1, 2]), ("text", Utf8, ["a", "b"])).unwrap();
    fixture.put_parquet("a.parquet", &batch);
    let parquet = fs::read(fixture.root.join("a.parquet")).unwrap();
    for (name, bytes) in [
        ("in/a.parquet", parquet),
        ("in/a.csv", b"k,text\n3,c\n".to_vec()),
        ("in/b.csv", b"k,text\n4,d\n".to_vec()),
        ("bad/a.parquet", b"PAR1".to_vec()),
    ] {
        store.put(&name.into(), bytes.into()).await.unwrap();
    }
    let url = url::Url::parse("s3://bucket").unwrap();
    fixture.state.runtime_env().register_object_store(&url, store);
    assert_eq!(keys(&fixture.read("s3://bucket/in/a.parquet", &[]).await.unwrap()), [1, 2]);
    assert_eq!(keys(&fixture.read("s3://bucket/in/*.csv", &[]).await.unwrap()), [3, 4]);
    fixture.assert_refused("s3://bucket/none/*.csv", &[], &["no object matches"]).await;
    fixture
        .assert_refused("s3://bucket/bad/a.parquet", &[], &["s3://bucket/bad/a.parquet", "not a whole"])
        .await;
    fixture.assert_refused("s3://other/a.parquet", &[], &["s3://other/a.parquet"]).await;
}

fn rows(count: i64) -> SendableRecordBatchStream {
    let batches = (0..count).step_by(1000).map(move |start| {
        let keys: Vec<i64> = (start..count.min(start + 1000)).collect();
        let texts: Vec<Option<String>> =
            keys.iter().map(|key| (key % 3 > 0).then(|| format!("text, \"{key}\""))).collect();
        let texts: Vec<Option<&str>> = texts.iter().map(Option::as_deref).collect();
        let batch = record_batch!(("k", Int64, keys), ("text", Utf8, texts)).unwrap();
        Ok(RecordBatch::try_new(columns(), batch.columns().to_vec()).unwrap())
    });
    Box::pin(RecordBatchStreamAdapter::new(columns(), futures::stream::iter(batches.collect::<Vec<_>>())))
}

#[tokio::test]
async fn what_is_written_can_be_read_back() {
    let fixture = Fixture::new();
    let expected: Vec<_> = rows(5000).try_collect().await.unwrap();
    let expected = concat_batches(&columns(), &expected).unwrap();
    for (name, options) in [
        ("a.parquet", vec![]),
        ("b.parquet", vec![("compression", "lz4")]),
        ("a.csv", vec![]),
        ("b.csv", vec![("header", "false"), ("delimiter", "|"), ("null", "NULL")]),
        ("c.csv.gz", vec![]),
        ("a.json", vec![]),
        ("b.json.zst", vec![]),
    ] {
        let format = FileFormat::from_options(name, &named(&options)).unwrap();
        assert_eq!(
            write_file(&fixture.state, &fixture.roots, name, &format, rows(5000)).await.unwrap(),
            5000
        );
        assert_eq!(fixture.read(name, &options).await.unwrap(), expected, "{name}");
    }
    let left: Vec<_> = fs::read_dir(&fixture.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 7, "{left:?}");
}

#[tokio::test]
async fn a_file_without_rows_still_has_names() {
    let fixture = Fixture::new();
    let format = FileFormat::from_options("a.csv", &BTreeMap::new()).unwrap();
    assert_eq!(write_file(&fixture.state, &fixture.roots, "a.csv", &format, rows(0)).await.unwrap(), 0);
    assert_eq!(fs::read_to_string(fixture.root.join("a.csv")).unwrap(), "k,text\n");
}

#[tokio::test]
async fn a_write_that_fails_leaves_the_file_as_it_was() {
    let fixture = Fixture::new();
    fixture.put("a.csv", "before");
    let format = FileFormat::from_options("a.csv", &BTreeMap::new()).unwrap();
    let broken =
        futures::stream::iter(vec![Err(datafusion::common::DataFusionError::Execution("gone".into()))]);
    let broken = Box::pin(RecordBatchStreamAdapter::new(columns(), broken));
    assert!(write_file(&fixture.state, &fixture.roots, "a.csv", &format, broken).await.is_err());
    assert_eq!(fs::read_to_string(fixture.root.join("a.csv")).unwrap(), "before");
    for location in ["../x.csv", "/etc/x.csv", "nowhere/x.csv", "s3://bucket/x.csv"] {
        assert!(
            write_file(&fixture.state, &fixture.roots, location, &format, rows(1)).await.is_err(),
            "{location}"
        );
    }
    fs::create_dir(fixture.root.join("d.csv")).unwrap();
    let error = write_file(&fixture.state, &fixture.roots, "d.csv", &format, rows(1)).await.unwrap_err();
    assert!(error.to_string().contains("directory"), "{error}");
}

#[tokio::test]
async fn columns_are_taken_from_files() {
    let fixture = Fixture::new();
    fixture.put("a.csv", "k,price,day,text,nothing\n1,1.5,2020-01-01,x,\n");
    fixture.put("a.json", "{\"k\": 1, \"text\": \"x\", \"list\": [1]}\n");
    fixture.put_parquet("a.parquet", &record_batch!(("k", Int32, [1]), ("text", Utf8View, ["x"])).unwrap());
    let inferred = async |location: &str| {
        let format = FileFormat::from_options(location, &BTreeMap::new()).unwrap();
        let schema = infer_columns(&fixture.state, &fixture.roots, location, &format).await.unwrap();
        schema
            .fields()
            .iter()
            .map(|field| (field.name().clone(), field.data_type().clone()))
            .collect::<Vec<_>>()
    };
    let csv = inferred("a.csv").await;
    let types: Vec<&DataType> = csv.iter().map(|(_, data_type)| data_type).collect();
    assert_eq!(
        types,
        [&DataType::Int64, &DataType::Float64, &DataType::Date32, &DataType::Utf8, &DataType::Utf8]
    );
    assert_eq!(inferred("a.json").await.len(), 3);
    assert_eq!(inferred("a.parquet").await[0], ("k".to_owned(), DataType::Int32));
}

#[tokio::test]
async fn external_tables_are_read_through_the_import_store() {
    let fixture = Fixture::new();
    fixture.put_parquet(
        "p/a b%.parquet",
        &record_batch!(("k", Int64, [1, 2]), ("text", Utf8, ["a", "b"])).unwrap(),
    );
    fixture.put_parquet("p/c.parquet", &record_batch!(("k", Int64, [3]), ("text", Utf8, ["c"])).unwrap());
    fixture.put("c/a.csv", "k,text\n4,d\n");
    fixture.put("c/b.csv", "k,text\n5,\"e\nf\"\n");
    let config = SessionConfig::new().with_extension(Arc::new(fixture.roots.clone()));
    let context = SessionContext::new_with_config(config);
    let url = url::Url::parse(shoal_data::import_store::IMPORT_STORE_URL).unwrap();
    context.register_object_store(&url, Arc::new(ImportStore::on_disk(fixture.roots.clone())));
    for (name, format, location) in [("p", "PARQUET", "p/*.parquet"), ("c", "CSV", "c/")] {
        let table = ExternalTable {
            schema_name: "public".into(),
            name: name.into(),
            columns: columns(),
            format: format.into(),
            location: location.into(),
            options: BTreeMap::new(),
        };
        context.register_table(name, external_table(&table).unwrap()).unwrap();
    }
    let sum = |sql: &'static str| {
        let context = context.clone();
        async move {
            let rows = context.sql(sql).await.unwrap().collect().await.unwrap();
            rows.iter()
                .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
                .sum::<i64>()
        }
    };
    assert_eq!(sum("SELECT k FROM p WHERE text <> 'a'").await, 5);
    assert_eq!(sum("SELECT k FROM c").await, 9);
    assert_eq!(sum("SELECT count(*) FROM p").await, 3);
    fixture.put("c/z.csv", "k,text\n10,g\n");
    assert_eq!(sum("SELECT k FROM c").await, 19);
    assert!(Path::new(&fixture.root).exists());
}
