//! `unisono` as the next minor release would be to this one, as far as other nodes can tell: nothing to learn from,
//! but what the tests of mixed versions run beside it. Its nodes have a version of their own, tell more than today's
//! read, and ask what today's do not know.

use std::process::ExitCode;

use unisono_server::App;

fn main() -> ExitCode {
    unisono_server::run(App::new())
}
