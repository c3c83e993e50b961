//! Backslash commands: what they are and how they are read.

use std::path::PathBuf;
use std::time::Duration;

use super::copy::Copy;
use crate::client::ClientError;
use crate::render::{Expanded, Format};

/// How often `\watch` repeats when it is not said.
const WATCH_DEFAULT: Duration = Duration::from_secs(2);
/// The longest that `\watch` waits.
const WATCH_MAX_SECONDS: f64 = 86_400.0;

/// A backslash command.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Command {
    /// `\d`, `\dt`, `\dv`, `\dn`, `\d NAME`.
    Describe(Described, Option<String>),
    /// `\timing [on|off]`: none turns it over.
    Timing(Option<bool>),
    /// `\x [on|off|auto]`: none turns it over.
    Expanded(Option<Expanded>),
    /// `\format [NAME]`: none says what it is.
    Format(Option<Format>),
    /// `\rows [N|all]`: none says what it is.
    Rows(Option<Option<usize>>),
    /// `\watch [SECONDS]`.
    Watch(Duration),
    /// `\i FILE`.
    Include(PathBuf),
    /// `\o [FILE]`: none is the terminal again.
    Output(Option<PathBuf>),
    /// `\g [FILE]`, `\gx [FILE]`.
    Go {
        /// Turned on its side, this once.
        expanded: bool,
        /// Into this file, this once.
        file: Option<PathBuf>,
    },
    /// `\copy ...`.
    Copy(Copy),
    /// `\conninfo`.
    Connection,
    /// `\?`.
    Help,
    /// `\q`.
    Quit,
    /// Something that only a hook may know.
    Other {
        /// The word after the backslash.
        name: String,
        /// The rest of the line.
        argument: String,
    },
}

/// What `\d...` lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Described {
    /// Everything, or one thing in detail.
    Any,
    /// Tables.
    Tables,
    /// Views.
    Views,
    /// Schemas.
    Schemas,
}

/// Every command with its meaning, for `\?` and for completion.
pub(super) const COMMANDS: &[(&str, &str)] = &[
    ("\\?", "shows this"),
    ("\\q", "quits (Ctrl-D does too)"),
    ("\\g [FILE]", "runs the statement, or the last one again; the result goes to FILE"),
    ("\\gx [FILE]", "as \\g, with one line per value"),
    ("\\watch [SECONDS]", "runs the statement again and again, until Ctrl-C"),
    ("\\d [PATTERN]", "lists tables and views; with a name, describes it"),
    ("\\dt [PATTERN]", "lists tables"),
    ("\\dv [PATTERN]", "lists views"),
    ("\\dn [PATTERN]", "lists schemas"),
    ("\\copy TABLE from 'FILE' [(OPTION VALUE, ...)]", "loads a local Parquet, CSV or JSON file"),
    (
        "\\copy TABLE|(QUERY) to 'FILE' [(OPTION VALUE, ...)]",
        "writes a local file; options: format, header, delimiter, null",
    ),
    ("\\i FILE", "runs the statements in FILE"),
    ("\\o [FILE]", "sends results to FILE, or back to the screen"),
    ("\\x [on|off|auto]", "one line per value; auto: when a row is wider than the screen"),
    ("\\format [NAME]", "table, csv, tsv, json, ndjson, vertical or markdown"),
    ("\\rows [N|all]", "how many rows of a result the screen shows"),
    ("\\timing [on|off]", "shows how long each statement takes"),
    ("\\conninfo", "shows where the shell is connected to"),
];

/// Reads a command, given without its backslash.
///
/// # Errors
/// `Usage`, naming the command, the argument and what would be right.
pub(super) fn parse(text: &str) -> Result<Command, ClientError> {
    let name_length = text.find(char::is_whitespace).unwrap_or(text.len());
    let (name, argument) = text.split_at(name_length);
    let argument = argument.trim();
    let wrong = |right: &str| Err(ClientError::Usage(format!("\\{name} takes {right}, not `{argument}`")));
    let command = match name {
        "?" | "h" | "help" => Command::Help,
        "q" | "quit" | "exit" => Command::Quit,
        "d" => Command::Describe(Described::Any, optional(argument)),
        "dt" => Command::Describe(Described::Tables, optional(argument)),
        "dv" => Command::Describe(Described::Views, optional(argument)),
        "dn" => Command::Describe(Described::Schemas, optional(argument)),
        "timing" => match argument {
            "" => Command::Timing(None),
            "on" => Command::Timing(Some(true)),
            "off" => Command::Timing(Some(false)),
            _ => return wrong("on or off"),
        },
        "x" => match argument {
            "" => Command::Expanded(None),
            "on" => Command::Expanded(Some(Expanded::On)),
            "off" => Command::Expanded(Some(Expanded::Off)),
            "auto" => Command::Expanded(Some(Expanded::Auto)),
            _ => return wrong("on, off or auto"),
        },
        "format" => match argument {
            "" => Command::Format(None),
            _ => match <Format as clap::ValueEnum>::from_str(argument, true) {
                Ok(format) => Command::Format(Some(format)),
                Err(_) => return wrong("table, csv, tsv, json, ndjson, vertical or markdown"),
            },
        },
        "rows" => match (argument, argument.parse()) {
            ("", _) => Command::Rows(None),
            ("all", _) => Command::Rows(Some(None)),
            (_, Ok(rows)) if rows > 0 => Command::Rows(Some(Some(rows))),
            _ => return wrong("a number of rows, or all"),
        },
        "watch" => match (argument, argument.parse::<f64>()) {
            ("", _) => Command::Watch(WATCH_DEFAULT),
            (_, Ok(seconds)) if seconds > 0.0 && seconds <= WATCH_MAX_SECONDS => {
                Command::Watch(Duration::from_secs_f64(seconds))
            }
            _ => return wrong("a number of seconds"),
        },
        "i" | "include" => match file(argument) {
            Some(file) => Command::Include(file),
            None => return wrong("a file"),
        },
        "o" => Command::Output(file(argument)),
        "g" => Command::Go { expanded: false, file: file(argument) },
        "gx" => Command::Go { expanded: true, file: file(argument) },
        "copy" => Command::Copy(Copy::parse(argument)?),
        "conninfo" => Command::Connection,
        _ => Command::Other { name: name.to_owned(), argument: argument.to_owned() },
    };
    Ok(command)
}

/// The message for a command that nobody knows.
pub(super) fn unknown(name: &str) -> ClientError {
    ClientError::Usage(format!("there is no command \\{name}; \\? lists the commands"))
}

fn optional(argument: &str) -> Option<String> {
    let argument = argument.trim_end_matches(';').trim_end();
    (!argument.is_empty()).then(|| argument.to_owned())
}

/// A file's name, with or without quotes; `~/` is the home directory.
fn file(argument: &str) -> Option<PathBuf> {
    let unquoted = ['\'', '"']
        .iter()
        .find_map(|quote| argument.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(argument);
    (!unquoted.is_empty()).then(|| expand_home(unquoted))
}

/// `~/` at the beginning replaced by the home directory.
pub(super) fn expand_home(file: &str) -> PathBuf {
    match (file.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Command) {
        assert_eq!(parse(text).unwrap(), expected, "{text}");
    }

    #[test]
    fn commands_are_read() {
        check("?", Command::Help);
        check("q", Command::Quit);
        check("d", Command::Describe(Described::Any, None));
        check("d line*;", Command::Describe(Described::Any, Some("line*".into())));
        check("dt  s.t ", Command::Describe(Described::Tables, Some("s.t".into())));
        check("timing", Command::Timing(None));
        check("timing off", Command::Timing(Some(false)));
        check("x auto", Command::Expanded(Some(Expanded::Auto)));
        check("format CSV", Command::Format(Some(Format::Csv)));
        check("rows all", Command::Rows(Some(None)));
        check("rows 5", Command::Rows(Some(Some(5))));
        check("watch", Command::Watch(WATCH_DEFAULT));
        check("watch 0.5", Command::Watch(Duration::from_millis(500)));
        check("i 'a b.sql'", Command::Include("a b.sql".into()));
        check("o", Command::Output(None));
        check("g out.txt", Command::Go { expanded: false, file: Some("out.txt".into()) });
        check("kill worker-2 now", Command::Other { name: "kill".into(), argument: "worker-2 now".into() });
    }

    #[test]
    fn a_wrong_argument_says_what_is_right() {
        for (text, expected) in [
            ("timing maybe", "\\timing takes on or off, not `maybe`"),
            ("watch -1", "\\watch takes a number of seconds, not `-1`"),
            ("rows 0", "\\rows takes a number of rows, or all, not `0`"),
            ("i", "\\i takes a file, not ``"),
            ("format xml", "\\format takes table, csv, tsv, json, ndjson, vertical or markdown, not `xml`"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
    }
}
