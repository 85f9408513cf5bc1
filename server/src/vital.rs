//! Actors that the node cannot do without.

#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::error;

/// Kept in an actor whose panic must not leave the node alive but deaf: such a node exits, with status
/// 70 (`EX_SOFTWARE`), and whatever supervises it starts a new one. Its clients come back elsewhere.
pub struct Vital(pub &'static str);

/// `EX_SOFTWARE` of `sysexits.h`.
pub const EXIT_SOFTWARE: i32 = 70;

/// In the tests of an application it is the test that panics, and takes its node along.
#[cfg(feature = "testing")]
static DISARMED: AtomicBool = AtomicBool::new(false);

/// From now on nothing in this process is vital.
#[cfg(feature = "testing")]
pub fn disarm() {
    DISARMED.store(true, Ordering::Relaxed);
}

fn is_armed() -> bool {
    #[cfg(feature = "testing")]
    return !DISARMED.load(Ordering::Relaxed);
    #[cfg(not(feature = "testing"))]
    true
}

impl Drop for Vital {
    fn drop(&mut self) {
        if std::thread::panicking() && is_armed() {
            error!(actor = self.0, "a vital actor panicked; the node stops");
            std::process::exit(EXIT_SOFTWARE);
        }
    }
}
