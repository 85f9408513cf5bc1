//! Actors that the node cannot do without.

use tracing::error;

/// Kept in an actor whose panic must not leave the node alive but deaf: such a node exits, with status
/// 70 (`EX_SOFTWARE`), and whatever supervises it starts a new one. Its clients come back elsewhere.
pub struct Vital(pub &'static str);

/// `EX_SOFTWARE` of `sysexits.h`.
pub const EXIT_SOFTWARE: i32 = 70;

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() {
            error!(actor = self.0, "a vital actor panicked; the node stops");
            std::process::exit(EXIT_SOFTWARE);
        }
    }
}
