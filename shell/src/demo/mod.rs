//! `shoal demo`: a cluster of real processes on this machine, with data in
//! it, and a prompt. It is an ordinary cluster: only started from here.

mod args;
mod bars;
mod cluster;
mod commands;
mod drill;
mod ending;
mod files;
mod kept;
mod load;
mod process;
mod questions;
mod roles;
mod run;
mod terminal;
mod tpch;
mod welcome;

pub use args::{DemoArgs, EXAMPLES};
pub use run::run;
