//! What a session looks like: chosen by flags and by what standard output
//! and standard error are.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use console::Term;

use super::progress::Place;
use crate::render::{Expanded, Format, Layout, Paint};

/// Rows of a result that a terminal shows.
pub const ROWS_SHOWN_DEFAULT: usize = 100;

/// What happens after an error in a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// Nothing more is run.
    #[default]
    Stop,
    /// The next statement is run; the exit status still tells of the error.
    Continue,
}

/// How a session behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// What stands before the cursor.
    pub prompt: String,
    /// What is said first.
    pub greeting: Option<String>,
    /// How results are written.
    pub format: Format,
    /// Whether tables are turned on their side.
    pub expanded: Expanded,
    /// Rows of a result that a terminal shows; none: all.
    pub rows_shown: Option<usize>,
    /// Say how long each statement took.
    pub timing: bool,
    /// Write the columns' names in CSV and TSV.
    pub header: bool,
    /// Say the SQLSTATE of errors.
    pub verbose: bool,
    /// Say nothing beside results and errors.
    pub quiet: bool,
    /// What happens after an error in a script.
    pub on_error: OnError,
    /// Where typed statements are kept; none: nowhere.
    pub history: Option<PathBuf>,
    /// What standard output and standard error are.
    pub screen: Screen,
}

/// What is written to.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Standard output is a terminal.
    pub stdout_is_terminal: bool,
    /// Standard error is a terminal.
    pub stderr_is_terminal: bool,
    /// Colour of results.
    pub stdout_paint: Paint,
    /// Colour of errors, notices and progress.
    pub stderr_paint: Paint,
    /// Progress is drawn: standard error is a terminal that is not dumb.
    pub progress: bool,
    /// The terminal shows more than ASCII.
    pub unicode: bool,
}

impl Screen {
    /// What they are now.
    pub fn detect() -> Self {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            stdout_is_terminal: stdout.is_terminal(),
            stderr_is_terminal: stderr.is_terminal(),
            stdout_paint: Paint::for_stream(&stdout),
            stderr_paint: Paint::for_stream(&stderr),
            progress: stderr.is_terminal() && !dumb && !no_color,
            unicode: speaks_utf8(),
        }
    }

    /// Columns of the terminal that results are written to; none where that
    /// is no terminal. It may have been resized since the last time.
    pub fn width(&self) -> Option<usize> {
        self.stdout_is_terminal.then(|| usize::from(Term::stdout().size().1).max(20))
    }

    pub(super) fn progress_place(&self) -> Option<Place> {
        self.progress.then(|| Place {
            width: usize::from(Term::stderr().size().1),
            paint: self.stderr_paint,
            unicode: self.unicode,
        })
    }
}

/// Whether the locale says UTF-8; one that says nothing is taken to.
fn speaks_utf8() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_default()
        .to_ascii_lowercase();
    locale.is_empty() || locale.contains("utf-8") || locale.contains("utf8")
}

impl Options {
    /// What suits the terminal, or its absence.
    pub fn from_terminal() -> Self {
        let screen = Screen::detect();
        Self {
            prompt: "shoal> ".to_owned(),
            greeting: None,
            format: Format::Table,
            expanded: Expanded::Off,
            rows_shown: Some(ROWS_SHOWN_DEFAULT),
            timing: screen.stdout_is_terminal && screen.stderr_is_terminal,
            header: true,
            verbose: false,
            quiet: false,
            on_error: OnError::Stop,
            history: super::line::history_file(),
            screen,
        }
    }

    /// The layout of results on standard output.
    pub(super) fn screen_layout(&self) -> Layout {
        Layout {
            format: self.format,
            expanded: self.expanded,
            width: self.screen.width(),
            paint: self.screen.stdout_paint,
            unicode: self.screen.stdout_is_terminal && self.screen.unicode,
            header: self.header,
            footer: !(self.screen.stdout_is_terminal && self.says_summaries()),
            ..Layout::default()
        }
    }

    /// The layout of results in files.
    pub(super) fn file_layout(&self) -> Layout {
        Layout { format: self.format, expanded: self.expanded, header: self.header, ..Layout::default() }
    }

    /// Whether rows and time are said beside each result.
    pub(super) fn says_summaries(&self) -> bool {
        self.screen.stderr_is_terminal && !self.quiet
    }
}
