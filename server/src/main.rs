//! The program `unisono`: a node without an application of its own.

use std::process::ExitCode;

use unisono_server::App;

/// Freed memory goes back to the system after a mass disconnect, and small allocations are cheap: both
/// measured against the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    unisono_server::run(App::new())
}
