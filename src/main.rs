//! The process: allocator, arguments, exit code. Everything else is in the library.

use std::process::ExitCode;

/// Many small, short-lived allocations on several threads are what a proxy does; this allocator is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let exit = match snapgate::cli::parse(std::env::args_os()) {
        Ok(command) => snapgate::commands::run(command),
        Err(exit) => exit,
    };
    exit.into()
}
