//! The SQL prompt and the running of scripts: what a person types, taken
//! apart and carried out.
//!
//! Nothing here knows how rows travel (`client`) or what they look like
//! (`render`).

mod command;
mod complete;
mod copy;
mod describe;
mod help;
mod highlight;
mod hook;
mod interrupt;
mod keywords;
mod lex;
mod line;
mod options;
mod output;
mod progress;
mod prompt;
mod report;
mod script;
mod session;
mod split;

pub use hook::{BackslashHook, NoHook, Show};
pub use options::{OnError, Options, ROWS_SHOWN_DEFAULT, Screen};
pub use prompt::run;
pub use script::{Input, run_script};
