//! The one binary: see [`cli`] for its commands.

mod cli;

use std::process::ExitCode;

use orderflow::allocator;

#[global_allocator]
static ALLOCATOR: allocator::MiMalloc = allocator::MiMalloc;

fn main() -> ExitCode {
    allocator::set_up();
    orderflow_faults::set_up();
    cli::main()
}
