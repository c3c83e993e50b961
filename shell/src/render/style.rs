//! Colour, where colour is wanted.

use std::io::IsTerminal;

use nu_ansi_term::{Color, Style};

/// Colours text, or leaves it alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    colored: bool,
}

impl Paint {
    /// Leaves all text alone.
    pub const PLAIN: Self = Self { colored: false };
    /// Colours text whatever it is written to.
    pub const COLORED: Self = Self { colored: true };

    /// Colours text if `stream` is a terminal that shows colour and the
    /// environment does not forbid it (`NO_COLOR`, `TERM=dumb`).
    pub fn for_stream(stream: &impl IsTerminal) -> Self {
        let forbidden = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colored: stream.is_terminal() && !forbidden }
    }

    /// Whether it colours.
    pub fn is_colored(self) -> bool {
        self.colored
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.colored && !text.is_empty() { style.paint(text).to_string() } else { text.to_owned() }
    }

    /// Names of columns and the like.
    pub fn head(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }

    /// Lines, NULL, and what is said beside a result.
    pub fn dim(self, text: &str) -> String {
        self.paint(Style::new().dimmed(), text)
    }

    /// `ERROR:` and the caret.
    pub fn error(self, text: &str) -> String {
        self.paint(Color::Red.bold(), text)
    }

    /// `NOTICE:` and the like.
    pub fn notice(self, text: &str) -> String {
        self.paint(Color::Yellow.normal(), text)
    }

    /// SQL keywords.
    pub fn keyword(self, text: &str) -> String {
        self.paint(Color::Blue.bold(), text)
    }

    /// Quoted text.
    pub fn text(self, text: &str) -> String {
        self.paint(Color::Green.normal(), text)
    }

    /// Numbers.
    pub fn number(self, text: &str) -> String {
        self.paint(Color::Cyan.normal(), text)
    }

    /// Backslash commands and the prompt.
    pub fn command(self, text: &str) -> String {
        self.paint(Color::Purple.normal(), text)
    }
}
