//! COPY's options and the file formats that they describe.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_proto::{ErrorCode, Failure};

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    /// Apache Parquet.
    Parquet,
    /// Delimited text.
    Csv,
    /// One JSON object per line.
    Json,
}

/// How the bytes of a file are compressed; inside of it, for Parquet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compression {
    /// Not.
    None,
    /// gzip (text only).
    Gzip,
    /// Zstandard.
    Zstd,
    /// Snappy (Parquet only).
    Snappy,
    /// LZ4 (Parquet only).
    Lz4,
}

/// How delimited text is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CsvOptions {
    /// Whether the first line has names; none: read finds out, write writes it.
    pub header: Option<bool>,
    /// Between fields.
    pub delimiter: u8,
    /// Round fields that hold delimiters, quotes or line ends.
    pub quote: u8,
    /// Before a quote within quotes; none: the quote is doubled.
    pub escape: Option<u8>,
    /// What stands for null; none: the empty field, except in a NOT NULL
    /// column of text, where it is the empty text.
    pub null: Option<String>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self { header: None, delimiter: b',', quote: b'"', escape: None, null: None }
    }
}

/// What COPY and external tables know about their files. It goes to workers: one that does
/// not know a field must not read files as if it were not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFormat {
    /// The kind.
    pub kind: FileKind,
    /// Of use for CSV only.
    pub csv: CsvOptions,
    /// None: by the name of the file, when reading; the kind's own default
    /// for Parquet.
    pub compression: Option<Compression>,
}

const OPTIONS: &str = "FORMAT, HEADER, DELIMITER, NULL, QUOTE, ESCAPE, COMPRESSION";

impl FileFormat {
    /// Files of this kind, written as is usual.
    pub fn of(kind: FileKind) -> Self {
        Self { kind, csv: CsvOptions::default(), compression: None }
    }

    /// Reads options by lower-case name; without FORMAT the location's
    /// extension decides. DataFusion's `format.` names are taken too.
    ///
    /// # Errors
    /// `Invalid` naming an option that is unknown, has no sense for the kind,
    /// or whose value cannot be.
    pub fn from_options(location: &str, options: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let mut named = BTreeMap::new();
        for (name, value) in options {
            let name = name.strip_prefix("format.").unwrap_or(name);
            let name = match name {
                "has_header" => "header",
                "null_value" => "null",
                "file_compression_type" => "compression",
                other => other,
            };
            if named.insert(name, value.as_str()).is_some() {
                return Err(invalid(format!("option {} is given twice", name.to_uppercase())));
            }
        }
        let kind = match named.remove("format") {
            Some(name) => kind_named(name)?,
            None => kind_of_location(location)?,
        };
        let compression =
            named.remove("compression").map(|name| compression_named(name, kind)).transpose()?;
        let mut csv = CsvOptions::default();
        if strip_compression(location).ends_with(".tsv") {
            csv.delimiter = b'\t';
        }
        for (name, value) in named {
            let shown = name.to_uppercase();
            if !matches!(name, "header" | "delimiter" | "null" | "quote" | "escape") {
                return Err(invalid(format!("there is no option {shown}: the options are {OPTIONS}")));
            }
            if kind != FileKind::Csv {
                return Err(invalid(format!("option {shown} is for FORMAT csv only: leave it out")));
            }
            match name {
                "header" => csv.header = Some(boolean(&shown, value)?),
                "delimiter" => csv.delimiter = one_byte(&shown, value)?,
                "quote" => csv.quote = one_byte(&shown, value)?,
                "escape" => csv.escape = Some(one_byte(&shown, value)?),
                _ => csv.null = Some(value.to_owned()),
            }
        }
        if csv.delimiter == csv.quote {
            return Err(invalid("DELIMITER and QUOTE are the same character: choose two"));
        }
        if csv.escape == Some(csv.quote) {
            csv.escape = None;
        }
        Ok(Self { kind, csv, compression })
    }

    /// How the file of this name is compressed as a whole; Parquet never is.
    pub fn stream_compression(&self, name: &str) -> Compression {
        if self.kind == FileKind::Parquet {
            return Compression::None;
        }
        self.compression.unwrap_or_else(|| match extension(name).as_str() {
            "gz" | "gzip" => Compression::Gzip,
            "zst" | "zstd" => Compression::Zstd,
            _ => Compression::None,
        })
    }
}

fn kind_named(name: &str) -> Result<FileKind, Failure> {
    match name.to_lowercase().as_str() {
        "parquet" => Ok(FileKind::Parquet),
        "csv" | "text" => Ok(FileKind::Csv),
        "json" | "ndjson" | "jsonl" => Ok(FileKind::Json),
        _ => Err(invalid(format!("FORMAT {name} is not known: choose parquet, csv or json"))),
    }
}

fn kind_of_location(location: &str) -> Result<FileKind, Failure> {
    match extension(strip_compression(location)).as_str() {
        "parquet" | "pq" => Ok(FileKind::Parquet),
        "csv" | "tsv" => Ok(FileKind::Csv),
        "json" | "ndjson" | "jsonl" => Ok(FileKind::Json),
        _ => Err(invalid(format!(
            "`{location}` does not say what kind of file it is: add (FORMAT parquet), (FORMAT csv) or (FORMAT json)"
        ))),
    }
}

fn compression_named(name: &str, kind: FileKind) -> Result<Compression, Failure> {
    let compression = match name.to_lowercase().as_str() {
        "none" | "uncompressed" => Compression::None,
        "gzip" | "gz" => Compression::Gzip,
        "zstd" | "zst" => Compression::Zstd,
        "snappy" => Compression::Snappy,
        "lz4" => Compression::Lz4,
        _ => {
            return Err(invalid(format!("COMPRESSION {name} is not known: choose none, gzip or zstd")));
        }
    };
    let fits = match kind {
        FileKind::Parquet => compression != Compression::Gzip,
        FileKind::Csv | FileKind::Json => !matches!(compression, Compression::Snappy | Compression::Lz4),
    };
    let choices = match kind {
        FileKind::Parquet => "none, snappy, lz4 or zstd",
        FileKind::Csv | FileKind::Json => "none, gzip or zstd",
    };
    if fits {
        Ok(compression)
    } else {
        Err(invalid(format!("COMPRESSION {name} is not for this format: choose {choices}")))
    }
}

fn boolean(option: &str, value: &str) -> Result<bool, Failure> {
    match value.to_lowercase().as_str() {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(invalid(format!("{option} {value} is neither true nor false"))),
    }
}

fn one_byte(option: &str, value: &str) -> Result<u8, Failure> {
    let value = match value {
        "\\t" | "tab" => "\t",
        other => other,
    };
    match value.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | 0) => Ok(*byte),
        _ => Err(invalid(format!("{option} '{}' is not one ASCII character", value.escape_debug()))),
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::Invalid, message)
}

/// The last extension in lower case, or nothing.
fn extension(name: &str) -> String {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.rsplit_once('.').map(|(_, extension)| extension.to_lowercase()).unwrap_or_default()
}

fn strip_compression(name: &str) -> &str {
    [".gz", ".gzip", ".zst", ".zstd"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(location: &str, options: &[(&str, &str)]) -> Result<FileFormat, String> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        FileFormat::from_options(location, &options).map_err(|failure| failure.message)
    }

    #[test]
    fn the_name_says_what_the_options_do_not() {
        assert_eq!(format("x.parquet", &[]).unwrap().kind, FileKind::Parquet);
        assert_eq!(format("/a/x.CSV.gz", &[]).unwrap().stream_compression("x.csv.gz"), Compression::Gzip);
        assert_eq!(format("x.tsv", &[]).unwrap().csv.delimiter, b'\t');
        assert_eq!(format("dir/*.jsonl.zst", &[]).unwrap().kind, FileKind::Json);
        assert_eq!(format("x", &[("format", "CSV")]).unwrap().kind, FileKind::Csv);
        assert!(format("x.dat", &[]).unwrap_err().contains("FORMAT"));
    }

    #[test]
    fn an_option_that_is_not_known_is_not_left_out() {
        let format = FileFormat { compression: Some(Compression::Zstd), ..FileFormat::of(FileKind::Csv) };
        let text = serde_json::to_string(&format).unwrap();
        assert_eq!(serde_json::from_str::<FileFormat>(&text).unwrap(), format);
        for (before, after) in
            [("{\"kind\"", "{\"new\":1,\"kind\""), ("{\"header\"", "{\"new\":1,\"header\"")]
        {
            let newer = text.replacen(before, after, 1);
            assert_ne!(newer, text);
            assert!(serde_json::from_str::<FileFormat>(&newer).is_err(), "{newer}");
        }
    }

    #[test]
    fn options_are_read_and_checked() {
        let csv =
            format("x.csv", &[("header", "true"), ("delimiter", "|"), ("null", "NA"), ("escape", "\\")]);
        assert_eq!(
            csv.unwrap().csv,
            CsvOptions {
                header: Some(true),
                delimiter: b'|',
                quote: b'"',
                escape: Some(b'\\'),
                null: Some("NA".into())
            }
        );
        assert_eq!(format("x.csv", &[("format.has_header", "false")]).unwrap().csv.header, Some(false));
        for (location, name, value, hint) in [
            ("x.csv", "delimeter", ",", "DELIMITER"),
            ("x.csv", "delimiter", "||", "one ASCII"),
            ("x.csv", "header", "maybe", "true nor false"),
            ("x.csv", "compression", "snappy", "gzip or zstd"),
            ("x.parquet", "header", "true", "csv only"),
            ("x.csv", "format", "xml", "parquet, csv or json"),
            ("x.csv", "quote", ",", "same character"),
        ] {
            let message = format(location, &[(name, value)]).unwrap_err();
            assert!(message.contains(hint), "{message}");
        }
    }
}
