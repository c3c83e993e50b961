//! Texts in parts: the rows of the whole, or an error.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use proptest::prelude::*;
use shoal_proto::ErrorCode;

use super::*;
use crate::ImportRoots;
use crate::load::CsvOptions;

type Rows = Vec<Vec<Option<String>>>;

fn columns(count: usize) -> SchemaRef {
    let fields = (0..count).map(|index| Field::new(format!("c{index}"), DataType::Utf8, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn format(kind: FileKind, header: bool, escape: Option<u8>) -> FileFormat {
    let csv = CsvOptions { header: Some(header), escape, ..CsvOptions::default() };
    FileFormat { csv, ..FileFormat::of(kind) }
}

fn open(path: &Path, text: &str, format: &FileFormat, columns: &SchemaRef) -> Result<FilePiece, Failure> {
    std::fs::write(path, text).unwrap();
    let roots = ImportRoots::new(&[path.parent().unwrap().to_owned()]);
    let file = SourceFile::local(&roots, path)?;
    Ok(FilePiece::open(file, format, columns)?.remove(0))
}

fn read(piece: FilePiece) -> Result<Rows, Failure> {
    let mut rows = Rows::new();
    piece.read(&mut |batch: RecordBatch| {
        for row in 0..batch.num_rows() {
            let values = batch
                .columns()
                .iter()
                .map(|column| column.as_string::<i32>().iter().nth(row).flatten().map(str::to_owned));
            rows.push(values.collect());
        }
        true
    })?;
    Ok(rows)
}

/// The text in about so many parts.
fn parts(whole: &FilePiece, format: &FileFormat, count: u64) -> Vec<FilePiece> {
    whole.cut(format, (whole.bytes() / count).max(1))
}

/// What all parts give, or what is wrong with one of them.
fn read_parts(parts: Vec<FilePiece>) -> Result<Rows, Failure> {
    let rows = parts.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(rows.concat())
}

/// Whatever the text is: parts are all of the whole or an error, which they are where it is.
fn check(text: &str, format: &FileFormat, columns: &SchemaRef, count: u64) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("a.txt");
    let Ok(whole) = open(&path, text, format, columns) else {
        return Ok(());
    };
    let in_parts = read_parts(parts(&whole, format, count));
    match (read(whole), in_parts) {
        (Ok(whole), Ok(in_parts)) => prop_assert_eq!(in_parts, whole),
        (Err(failure), Ok(_)) => return Err(TestCaseError::fail(format!("parts hide: {failure}"))),
        (_, Err(failure)) => prop_assert_eq!(failure.code, ErrorCode::Invalid),
    }
    Ok(())
}

fn tokens(all: &'static [&'static str], count: usize) -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(all), 0..count).prop_map(|tokens| tokens.concat())
}

/// Values that CSV may have, with no line end in them.
fn on_a_line() -> impl Strategy<Value = String> {
    let plain = tokens(&["a", "b", " ", "é", "a\"", "\\"], 4)
        .prop_map(|value| if value.is_empty() { "x".to_owned() } else { value });
    let quoted = tokens(&["a", ",", "\"\"", " "], 4).prop_map(|value| format!("\"{value}\""));
    prop_oneof![plain, quoted, Just("l".repeat(300))]
}

fn record(value: impl Strategy<Value = String>) -> impl Strategy<Value = String> {
    let line_end = proptest::sample::select(&["\n", "\r\n", "\n\n", "\r\n\r\n"][..]);
    (proptest::collection::vec(value, 2), line_end).prop_map(|(values, end)| values.join(",") + end)
}

/// Records, with names before them or a byte order mark, and maybe no last line end.
fn csv(value: impl Strategy<Value = String>) -> impl Strategy<Value = (String, bool)> {
    let records = proptest::collection::vec(record(value), 1..12);
    (records, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(records, header, mark, end)| {
        let mut text = if mark { "\u{feff}".to_owned() } else { String::new() };
        text += if header { "c0,c1\r\n" } else { "" };
        text += &records.concat();
        if !end {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
        }
        (text, header)
    })
}

proptest! {
    #[test]
    fn parts_of_csv_whose_values_end_on_their_line_are_the_whole(
        (text, header) in csv(on_a_line()),
        count in 1_u64..9,
    ) {
        let format = format(FileKind::Csv, header, None);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a.csv");
        let whole = open(&path, &text, &format, &columns(2)).unwrap();
        let in_parts = parts(&whole, &format, count);
        prop_assert!(in_parts.len() as u64 >= count.min(text.len() as u64));
        prop_assert_eq!(read_parts(in_parts).unwrap(), read(whole).unwrap());
    }

    #[test]
    fn parts_of_csv_are_the_whole_or_an_error(
        (text, header) in csv(prop_oneof![
            on_a_line(),
            tokens(&["a", ",", "\"\"", "\n", "\r", "\n1,2\n"], 5).prop_map(|value| format!("\"{value}\"")),
        ]),
        count in 1_u64..9,
    ) {
        check(&text, &format(FileKind::Csv, header, None), &columns(2), count)?;
    }

    #[test]
    fn parts_of_any_text_are_the_whole_or_an_error(
        text in tokens(&["a", "\"", ",", "\n", "\n", "\r", "\r\n", "\\", "\u{feff}", "a,b\n"], 24),
        escape in proptest::option::of(Just(b'\\')),
        header in any::<bool>(),
        column_count in 1_usize..3,
        count in 1_u64..9,
    ) {
        let names = if header { ["c0\n", "c0,c1\n"][column_count - 1] } else { "" };
        let format = format(FileKind::Csv, header, escape);
        check(&format!("{names}{text}"), &format, &columns(column_count), count)?;
    }

    #[test]
    fn parts_of_json_lines_are_the_whole(
        lines in proptest::collection::vec(
            proptest::sample::select(&["{\"c0\": \"a\\\"\\n{\"}", "{}", "", " ", "{\"c0\": \"longer than the others\"}\r"][..]),
            1..20,
        ),
        count in 1_u64..9,
    ) {
        let format = FileFormat::of(FileKind::Json);
        let text = format!("{}\n{{}}", lines.join("\n"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("a.json");
        let whole = open(&path, &text, &format, &columns(1)).unwrap();
        let in_parts = read_parts(parts(&whole, &format, count)).unwrap();
        prop_assert_eq!(in_parts, read(whole).unwrap());
    }
}

#[test]
fn a_value_that_was_cut_is_found_also_where_both_sides_look_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("a.csv");
    let format = format(FileKind::Csv, false, None);
    // Behind the line feed in the value there are two whole records for who does not know better.
    for text in ["1,\"a\n2,b\"\n", "\"a\nb\",c\n", "1,\"a\n2,b\n3,c\n4,\"\n"] {
        let whole = open(&path, text, &format, &columns(2)).unwrap();
        let end = text.find('\n').unwrap() as u64 + 1;
        let failure = read(whole.part(0..end)).unwrap_err();
        assert!(failure.message.contains("a record that begins in bytes 0 to"), "{failure}");
        assert_eq!(read(whole).unwrap().len(), 1, "{text:?}");
    }
}

#[test]
fn all_objects_of_json_are_rows_or_it_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("a.json");
    let format = FileFormat::of(FileKind::Json);
    let object = "{\"c0\": \"x\"}";
    let rows = |text: &str| read(open(&path, text, &format, &columns(1)).unwrap()).map(|rows| rows.len());
    let lines = |count: usize| format!("{object}\n").repeat(count);
    // As many as are decoded at once, and one more or less.
    for count in [1, 8191, 8192, 8193, 20_000] {
        assert_eq!(rows(&lines(count)).unwrap(), count);
        assert_eq!(rows(&lines(count).replace('\n', " \r\n")).unwrap(), count);
    }
    assert_eq!(rows(&object.repeat(3)).unwrap(), 3);
    for text in [object.repeat(10_000), format!("{object}{object}\n{}", lines(8191))] {
        let failure = rows(&text).unwrap_err();
        assert!(failure.message.contains("there are more objects than lines"), "{failure}");
    }
}

#[test]
fn a_text_that_is_compressed_is_not_cut() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap().join("a.json.gz");
    let format = FileFormat::of(FileKind::Json);
    let whole = open(&path, "whatever it is, it is not opened yet", &format, &columns(1)).unwrap();
    assert_eq!(whole.cut(&format, 1).len(), 1);
    assert_eq!(whole.cut(&format, 1)[0].range(), None);
}

#[test]
fn a_text_that_is_changed_while_it_is_read_gives_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (name, kind, text) in
        [("a.csv", FileKind::Csv, "1,2\n3,4\n"), ("a.json", FileKind::Json, "{\"c0\": \"1\"}\n{}\n")]
    {
        let path = dir.path().canonicalize().unwrap().join(name);
        let format = format(kind, false, None);
        let whole = open(&path, text, &format, &columns(2)).unwrap();
        let all = parts(&whole, &format, 2);
        assert_eq!(all.len(), 2);
        std::fs::write(&path, format!("{text}{text}")).unwrap();
        for piece in all.into_iter().chain([whole]) {
            let failure = read(piece).unwrap_err();
            assert!(failure.message.contains("was changed"), "{failure}");
        }
    }
}

#[test]
fn an_object_is_read_in_parts_of_the_version_that_was_found() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(InMemory::new());
    let path = object_store::path::Path::from("a.csv");
    // More than is asked for at once.
    let line = format!("{},\"a, b\"\r\n", "l".repeat(1_000));
    let text = format!("c0,c1\n{}", line.repeat(1_500));
    let put = || runtime.block_on(store.put(&path, text.clone().into())).unwrap();
    put();
    let object = runtime.block_on(store.head(&path)).unwrap();
    let file = SourceFile::remote("memory:///", store.clone(), object, runtime.handle().clone()).unwrap();
    let format = format(FileKind::Csv, true, None);
    let whole = FilePiece::open(file, &format, &columns(2)).unwrap().remove(0);
    let all = parts(&whole, &format, 5);
    assert!(all.len() >= 5);
    let rows = read_parts(all.clone()).unwrap();
    assert_eq!(rows.len(), 1_500);
    assert_eq!(rows, read(whole).unwrap());
    put();
    let failure = read_parts(all).unwrap_err();
    assert!(failure.message.contains("`memory:///a.csv` was changed"), "{failure}");
}
