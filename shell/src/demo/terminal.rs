//! The terminal as it was: a demo that ends while the line editor reads must
//! not leave it in raw mode.

use std::io::stdin;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The settings of the terminal at one moment; nothing where there is none.
pub(super) struct TerminalState(Option<Termios>);

impl TerminalState {
    /// The settings right now.
    pub(super) fn now() -> Self {
        Self(tcgetattr(stdin()).ok())
    }

    /// Brings them back.
    pub(super) fn restore(&self) {
        if let Some(settings) = &self.0 {
            // Only a terminal that went away is in the way of this.
            let _gone = tcsetattr(stdin(), OptionalActions::Now, settings);
        }
    }
}
