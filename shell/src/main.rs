//! The `shoal` binary: everything is in the library, so that the benchmark
//! suite can be `shoal`, too.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shoal::main_with_args(std::env::args_os())
}
