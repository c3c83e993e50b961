//! The `shoal` command: the SQL shell, the demo, and the processes of a
//! cluster.
//!
//! Nothing here knows how a query runs: it starts nodes and speaks Flight SQL
//! to them.

pub mod args;
pub mod client;
pub mod config;
pub mod demo;
pub mod links;
pub mod node;
pub mod render;
pub mod repl;
pub mod sql;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::FromArgMatches;

use args::{Args, Command};

/// Exit status of a command line or a setting that cannot be. Not clap's 2:
/// that tells of a connection that failed.
pub(crate) const EXIT_USAGE: u8 = 3;

/// Runs `shoal` with this command line, its own name first.
pub fn main_with_args(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = args::command()
        .try_get_matches_from(args)
        .and_then(|matches| Args::from_arg_matches(&matches).map(|args| (args, matches)));
    let (args, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            // Help and version come this way, too.
            let _closed = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let Some((_, matches)) = matches.subcommand() else { return ExitCode::from(EXIT_USAGE) };
    match args.command {
        Command::Demo(args) => demo::run(*args),
        Command::Sql(args) => sql::main(*args),
        Command::Coordinator(_) => node::coordinator(matches),
        Command::Worker(_) => node::worker(matches),
    }
}
