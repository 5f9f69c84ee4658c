//! The one binary: see [`cli`] for its commands.

mod cli;

use std::process::ExitCode;

/// Batches come and go in large pieces on many threads, which the system's allocator is slow at and gives back late.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
