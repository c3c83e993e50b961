//! A steady load of queries on a real cluster: clients ask the same questions
//! all the time, each answer must equal the first one exactly, and what each
//! took is kept.

mod asked;
mod doors;
mod questions;
mod roamer;
mod steady;
mod tables;

pub use asked::{Asked, Tally, Verdict};
pub use doors::{Doors, Seat};
pub use questions::Questions;
pub use roamer::{Detours, Roamer};
pub use steady::Load;
pub use tables::{MOVES, bytes_on_each, load_tables, settle, start_loaded};
