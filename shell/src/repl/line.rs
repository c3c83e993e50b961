//! The line editor: history, and what rustyline asks while a person types.

use std::borrow::Cow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::error::ReadlineError;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::{Hinter, HistoryHinter};
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{CompletionType, Config, Context, Editor, Helper};

use super::complete::{Offer, offer};
use super::highlight::highlighted;
use super::hook::BackslashHook;
use super::split::is_complete;
use crate::client::Names;
use crate::render::Paint;

/// Lines of history that are kept.
const HISTORY_LINES_MAX: usize = 10_000;
/// Longer input is not coloured: that would be slow at every key.
const HIGHLIGHT_BYTES_MAX: usize = 64 * 1024;

/// Reads statements from the terminal.
pub(super) struct LineEditor {
    editor: Editor<Assistant, FileHistory>,
    history: Option<PathBuf>,
    prompt: (String, String),
}

impl LineEditor {
    /// An editor with the history of earlier sessions.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub(super) fn new(
        prompt: &str,
        paint: Paint,
        history: Option<PathBuf>,
        names: Arc<RwLock<Names>>,
        hook: Arc<dyn BackslashHook>,
    ) -> Result<Self, ReadlineError> {
        let config = Config::builder()
            .max_history_size(HISTORY_LINES_MAX)?
            .history_ignore_dups(true)?
            .history_ignore_space(true)
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Assistant {
            names,
            hook,
            paint,
            files: FilenameCompleter::new(),
            hints: HistoryHinter::new(),
        }));
        if let Some(history) = &history {
            prepare_history(history);
            // A first session has no history yet.
            drop(editor.load_history(history));
        }
        Ok(Self { editor, history, prompt: (prompt.to_owned(), paint.command(prompt)) })
    }

    /// Reads statements up to a semicolon, or one backslash command.
    ///
    /// # Errors
    /// `Interrupted` on Ctrl-C, `Eof` on Ctrl-D.
    pub(super) fn read(&mut self) -> Result<String, ReadlineError> {
        let input = self.editor.readline(&self.prompt)?;
        self.remember(&input);
        Ok(input)
    }

    /// Adds to the history.
    fn remember(&mut self, input: &str) {
        if !input.trim().is_empty()
            && self.editor.add_history_entry(input.trim_end()).unwrap_or(false)
            && let Some(history) = &self.history
        {
            // History is a comfort: that it cannot be kept stops nobody.
            drop(self.editor.append_history(history));
        }
    }
}

fn prepare_history(history: &Path) {
    if let Some(folder) = history.parent() {
        drop(std::fs::create_dir_all(folder));
    }
    // Statements may hold secrets: nobody else reads them.
    drop(std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(history));
}

/// Where history is kept: `SHOAL_HISTORY` (empty: nowhere), else below
/// `XDG_STATE_HOME` or `~/.local/state`.
pub(super) fn history_file() -> Option<PathBuf> {
    if let Some(file) = std::env::var_os("SHOAL_HISTORY") {
        return Some(PathBuf::from(file)).filter(|file| !file.as_os_str().is_empty());
    }
    let state = std::env::var_os("XDG_STATE_HOME").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let state = state.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))?;
    Some(state.join("shoal").join("history"))
}

/// What rustyline asks.
struct Assistant {
    names: Arc<RwLock<Names>>,
    hook: Arc<dyn BackslashHook>,
    paint: Paint,
    files: FilenameCompleter,
    hints: HistoryHinter,
}

impl Helper for Assistant {}

impl Completer for Assistant {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        cursor: usize,
        context: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        match offer(&self.names.read(), self.hook.as_ref(), line, cursor) {
            Offer::Files => self.files.complete(line, cursor, context),
            Offer::Words { start, words } => {
                let pair = |word: String| Pair { display: word.clone(), replacement: word };
                Ok((start, words.into_iter().map(pair).collect()))
            }
        }
    }
}

impl Hinter for Assistant {
    type Hint = String;

    /// The rest of the last statement that began like this; only in colour,
    /// as it could not be told from what was typed.
    fn hint(&self, line: &str, cursor: usize, context: &Context<'_>) -> Option<String> {
        if !self.paint.is_colored() || line.trim().len() < 2 {
            return None;
        }
        self.hints.hint(line, cursor, context).filter(|hint| !hint.contains('\n'))
    }
}

impl Highlighter for Assistant {
    fn highlight<'l>(&self, line: &'l str, _cursor: usize) -> Cow<'l, str> {
        if !self.paint.is_colored() || line.len() > HIGHLIGHT_BYTES_MAX {
            return Cow::Borrowed(line);
        }
        Cow::Owned(highlighted(line, self.paint))
    }

    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Owned(self.paint.dim(hint))
    }

    fn highlight_char(&self, line: &str, _cursor: usize, kind: CmdKind) -> bool {
        self.paint.is_colored() && kind != CmdKind::MoveCursor && !line.is_empty()
    }
}

impl Validator for Assistant {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        if is_complete(context.input()) {
            Ok(ValidationResult::Valid(None))
        } else {
            Ok(ValidationResult::Incomplete)
        }
    }
}
