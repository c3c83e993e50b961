//! Files that are changed while they are loaded.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use parquet::arrow::ArrowWriter;
use shoal_proto::{ErrorCode, Failure};

use super::{Piece, RowGroup, SourceFile, row_groups};
use crate::ImportRoots;
use crate::load::store_failure;

const ROWS: usize = 100;

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)]))
}

fn parquet() -> Vec<u8> {
    let keys: ArrayRef = Arc::new((0..ROWS as i64).collect::<Int64Array>());
    let batch = RecordBatch::try_from_iter([("k", keys)]).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn opened(file: &SourceFile) -> Vec<RowGroup> {
    row_groups(file, &columns()).unwrap()
}

fn read(row_groups: Vec<RowGroup>) -> Result<usize, Failure> {
    let mut rows = 0;
    for row_group in row_groups {
        row_group.read(&mut |batch: RecordBatch| {
            rows += batch.num_rows();
            true
        })?;
    }
    Ok(rows)
}

/// The same bytes each time, changed so many seconds after 1970.
fn put(path: &Path, seconds: u64) {
    fs::write(path, parquet()).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

#[test]
fn a_file_that_is_not_as_it_was_found_is_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("a.parquet");
    let roots = ImportRoots::new(&[dir.path().to_owned()]);
    put(&path, 1);
    let written_over = || put(&path, 2);
    let replaced = || {
        let other = path.with_extension("new");
        put(&other, 3);
        fs::rename(&other, &path).unwrap();
    };
    let removed = || fs::remove_file(&path).unwrap();
    let changes: [&dyn Fn(); 3] = [&written_over, &replaced, &removed];
    for change in changes {
        let file = SourceFile::local(&roots, &path).unwrap();
        let pieces = opened(&file);
        assert_eq!(read(pieces.clone()).unwrap(), ROWS);
        change();
        let failure = read(pieces).unwrap_err();
        assert_eq!(failure.code, ErrorCode::Invalid);
        assert!(failure.message.contains("a.parquet` was changed"), "{failure}");
    }
}

#[test]
fn an_object_is_read_in_the_version_that_was_found_or_not_at_all() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(InMemory::new());
    let path = object_store::path::Path::from("a.parquet");
    let put = || runtime.block_on(store.put(&path, parquet().into())).unwrap();
    put();
    let object = runtime.block_on(store.head(&path)).unwrap();
    let file = SourceFile::remote("memory:///", store.clone(), object, runtime.handle().clone()).unwrap();
    let pieces = opened(&file);
    assert_eq!(read(pieces.clone()).unwrap(), ROWS);

    // Of the same length, maybe within the same second.
    put();
    for failure in [read(pieces.clone()).unwrap_err(), row_groups(&file, &columns()).err().unwrap()] {
        assert_eq!(failure.code, ErrorCode::Invalid);
        assert!(failure.message.contains("`memory:///a.parquet` was changed"), "{failure}");
    }
    runtime.block_on(store.delete(&path)).unwrap();
    let failure = read(pieces).unwrap_err();
    assert_eq!(failure.code, ErrorCode::NotFound, "{failure}");
}

#[test]
fn what_may_pass_is_told_from_what_is_wrong_with_an_object() {
    let (store, path) = ("S3", "a".to_owned());
    let source = || Box::<dyn std::error::Error + Send + Sync>::from("503");
    for (error, code) in [
        (object_store::Error::Generic { store, source: source() }, ErrorCode::Unavailable),
        (object_store::Error::NotFound { path: path.clone(), source: source() }, ErrorCode::NotFound),
        (object_store::Error::PermissionDenied { path, source: source() }, ErrorCode::Invalid),
    ] {
        let failure = store_failure("s3://lake/a", &error);
        assert_eq!(failure.code, code);
        assert!(failure.message.contains("`s3://lake/a`"), "{failure}");
    }
}
