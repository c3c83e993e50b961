//! `\copy`: what a person writes. Reading and writing the files is in
//! `copy/local.rs`.

mod local;

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_coordinator::files::FileFormat;

use super::command::expand_home;
use super::lex::{Token, TokenKind, tokens};
use crate::client::ClientError;

pub(super) use local::{Source, open, write};

/// `\copy SUBJECT from|to 'FILE' [with] [(OPTION VALUE, ...)]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Copy {
    /// What is copied.
    pub(super) subject: Subject,
    /// Which way.
    pub(super) direction: Direction,
    /// The local file.
    pub(super) file: PathBuf,
    /// What the file is like: by its options, else by its name.
    pub(super) format: FileFormat,
}

/// What is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// A table.
    Table {
        /// None: the session's current schema.
        schema: Option<String>,
        /// Its name, without quotes.
        name: String,
        /// Both as they were written.
        written: String,
    },
    /// A query, without its parentheses.
    Query(String),
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the file into the table.
    From,
    /// Into the file.
    To,
}

const USAGE: &str = "\\copy TABLE from 'FILE' or \\copy TABLE|(QUERY) to 'FILE', and then maybe (format csv, header true, \
                     delimiter ',', null '', compression gzip)";

impl Copy {
    /// Reads what follows `\copy`.
    ///
    /// # Errors
    /// `Usage`, saying what is expected.
    pub(super) fn parse(text: &str) -> Result<Self, ClientError> {
        let mut reader = Reader::new(text);
        let subject = reader.subject()?;
        let direction = match reader.word()?.as_str() {
            "from" => Direction::From,
            "to" => Direction::To,
            other => return Err(wrong(&format!("`{other}` is neither from nor to"))),
        };
        if direction == Direction::From && matches!(subject, Subject::Query(_)) {
            return Err(wrong("rows cannot be copied into a query"));
        }
        let file = reader.file()?;
        let options = reader.options()?;
        let format = FileFormat::from_options(&file.to_string_lossy(), &options)
            .map_err(|error| ClientError::Usage(error.to_string()))?;
        Ok(Self { subject, direction, file, format })
    }
}

fn wrong(why: &str) -> ClientError {
    ClientError::Usage(format!("{why}; write {USAGE}"))
}

struct Reader<'a> {
    text: &'a str,
    tokens: Vec<Token>,
    next: usize,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        let is_content = |token: &Token| !matches!(token.kind, TokenKind::Space | TokenKind::Semicolon);
        Self { text, tokens: tokens(text).filter(is_content).collect(), next: 0 }
    }

    fn peek(&self) -> Option<(TokenKind, &'a str)> {
        self.tokens.get(self.next).map(|token| (token.kind, &self.text[token.start..token.end]))
    }

    fn take(&mut self) -> Option<(TokenKind, &'a str)> {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn word(&mut self) -> Result<String, ClientError> {
        match self.take() {
            Some((TokenKind::Word, word)) => Ok(word.to_ascii_lowercase()),
            Some((_, other)) => Err(wrong(&format!("`{other}` is not expected here"))),
            None => Err(wrong("the command is not complete")),
        }
    }

    fn subject(&mut self) -> Result<Subject, ClientError> {
        let start = self.tokens.first().map_or(0, |token| token.start);
        if matches!(self.peek(), Some((TokenKind::Symbol, "("))) {
            let mut depth = 0_usize;
            while let Some((_, text)) = self.take() {
                match text {
                    "(" => depth += 1,
                    ")" => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    let end = self.tokens[self.next - 1].start;
                    return Ok(Subject::Query(self.text[start + 1..end].trim().to_owned()));
                }
            }
            return Err(wrong("the query's parenthesis is not closed"));
        }
        let first = self.name()?;
        let (schema, name) = match self.peek() {
            Some((TokenKind::Symbol, ".")) => {
                self.next += 1;
                (Some(first), self.name()?)
            }
            _ => (None, first),
        };
        let end = self.tokens[self.next - 1].end;
        Ok(Subject::Table { schema, name, written: self.text[start..end].to_owned() })
    }

    fn name(&mut self) -> Result<String, ClientError> {
        match self.take() {
            Some((TokenKind::Word, word)) => Ok(word.to_lowercase()),
            Some((TokenKind::QuotedName, name)) => Ok(name.trim_matches(['"', '`']).replace("\"\"", "\"")),
            Some((_, other)) => Err(wrong(&format!("`{other}` is no table"))),
            None => Err(wrong("the table is missing")),
        }
    }

    /// A quoted name, or everything up to the next white space.
    fn file(&mut self) -> Result<PathBuf, ClientError> {
        let Some((kind, text)) = self.peek() else {
            return Err(wrong("the file is missing"));
        };
        if matches!(kind, TokenKind::Text | TokenKind::QuotedName) {
            self.next += 1;
            return Ok(expand_home(&unquoted(text)));
        }
        let start = self.tokens[self.next].start;
        let length = self.text[start..].find(char::is_whitespace).unwrap_or(self.text.len() - start);
        let file = self.text[start..start + length].trim_end_matches(';');
        while self.tokens.get(self.next).is_some_and(|token| token.start < start + length) {
            self.next += 1;
        }
        Ok(expand_home(file))
    }

    /// Options by their names in lower case.
    fn options(&mut self) -> Result<BTreeMap<String, String>, ClientError> {
        if matches!(self.peek(), Some((TokenKind::Word, word)) if word.eq_ignore_ascii_case("with")) {
            self.next += 1;
        }
        let parenthesis = matches!(self.peek(), Some((TokenKind::Symbol, "(")));
        if parenthesis {
            self.next += 1;
        }
        let mut options = BTreeMap::new();
        loop {
            match self.peek() {
                None if parenthesis => return Err(wrong("the options' parenthesis is not closed")),
                None => break,
                Some((_, ")")) if parenthesis => {
                    self.next += 1;
                    break;
                }
                Some((_, ",")) => self.next += 1,
                Some(_) => {
                    let (name, value) = self.option()?;
                    options.insert(name, value);
                }
            }
        }
        match self.peek() {
            Some((_, rest)) => Err(wrong(&format!("`{rest}` is not expected here"))),
            None => Ok(options),
        }
    }

    fn option(&mut self) -> Result<(String, String), ClientError> {
        let name = self.word()?;
        if matches!(name.as_str(), "csv" | "parquet" | "json" | "ndjson") {
            return Ok(("format".to_owned(), name));
        }
        if matches!(self.peek(), Some((_, "="))) {
            self.next += 1;
        }
        let value = match self.peek() {
            None | Some((_, "," | ")")) if name == "header" => "true".to_owned(),
            // `csv header delimiter '|'`, as older versions of psql have it.
            Some((TokenKind::Word, next))
                if name == "header"
                    && !matches!(next.to_ascii_lowercase().as_str(), "true" | "false" | "on" | "off") =>
            {
                "true".to_owned()
            }
            Some((TokenKind::Text | TokenKind::QuotedName, text)) => {
                self.next += 1;
                unquoted(text)
            }
            Some((TokenKind::Word | TokenKind::Number, text)) => {
                self.next += 1;
                text.to_owned()
            }
            _ => return Err(wrong(&format!("option {name} has no value"))),
        };
        Ok((name, value))
    }
}

fn unquoted(text: &str) -> String {
    let text = text.strip_prefix(['e', 'E']).filter(|rest| rest.starts_with('\'')).unwrap_or(text);
    let Some(quote) = text.chars().next() else {
        return String::new();
    };
    let inner = text[quote.len_utf8()..].strip_suffix(quote).unwrap_or(&text[quote.len_utf8()..]);
    inner.replace(&format!("{quote}{quote}"), &quote.to_string())
}

#[cfg(test)]
mod tests {
    use shoal_coordinator::files::{Compression, CsvOptions, FileKind};

    use super::*;

    fn csv() -> FileFormat {
        FileFormat { kind: FileKind::Csv, csv: CsvOptions::default(), compression: None }
    }

    fn table(schema: Option<&str>, name: &str, written: &str) -> Subject {
        Subject::Table {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
            written: written.to_owned(),
        }
    }

    fn check(text: &str, subject: Subject, direction: Direction, file: &str, format: FileFormat) {
        let expected = Copy { subject, direction, file: file.into(), format };
        assert_eq!(Copy::parse(text).unwrap(), expected, "{text}");
    }

    #[test]
    fn every_way_to_write_it_is_read() {
        check("t from 'a.csv'", table(None, "t", "t"), Direction::From, "a.csv", csv());
        check("S.T FROM /x/a-b.csv;", table(Some("s"), "t", "S.T"), Direction::From, "/x/a-b.csv", csv());
        check(
            "\"Odd\" to 'it''s.parquet'",
            table(None, "Odd", "\"Odd\""),
            Direction::To,
            "it's.parquet",
            FileFormat { kind: FileKind::Parquet, ..csv() },
        );
        check(
            "(select (1), ')' from t) to 'x.out' with (format json, compression zstd)",
            Subject::Query("select (1), ')' from t".into()),
            Direction::To,
            "x.out",
            FileFormat { kind: FileKind::Json, compression: Some(Compression::Zstd), ..csv() },
        );
        check(
            "t from 'a.csv' (header false, null 'NA')",
            table(None, "t", "t"),
            Direction::From,
            "a.csv",
            FileFormat {
                csv: CsvOptions { header: Some(false), null: Some("NA".into()), ..CsvOptions::default() },
                ..csv()
            },
        );
        check(
            "t from 'a.txt' csv header delimiter '|'",
            table(None, "t", "t"),
            Direction::From,
            "a.txt",
            FileFormat {
                csv: CsvOptions { header: Some(true), delimiter: b'|', ..CsvOptions::default() },
                ..csv()
            },
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, why) in [
            ("", "the table is missing"),
            ("t", "not complete"),
            ("t into 'f'", "`into` is neither from nor to"),
            ("t from", "the file is missing"),
            ("t from 'f.xls'", "does not say what kind of file"),
            ("(select 1) from 'f.csv'", "cannot be copied into a query"),
            ("(select 1 to 'f.csv'", "parenthesis is not closed"),
            ("t from 'f.csv' (colour red)", "no option COLOUR"),
            ("t from 'f.csv' (null)", "option null has no value"),
            ("t from 'f.csv' (format csv", "parenthesis is not closed"),
        ] {
            let error = Copy::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
