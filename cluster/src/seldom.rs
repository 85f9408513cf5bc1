//! Throttle for lines of the log: whatever a peer can cause must not become a flood.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Counts what happens, and says at most every ten seconds how much it was since it last said so.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    said_at: Option<Instant>,
    held_back: u64,
}

const INTERVAL: Duration = Duration::from_secs(10);

impl Seldom {
    /// Nothing so far.
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            said_at: None,
            held_back: 0,
        }))
    }

    /// So many more; a number when it is time for a line.
    pub fn add(&self, now: Instant, more: usize) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.held_back += more as u64;
        let quiet = |at: Instant| now.saturating_duration_since(at) < INTERVAL;
        if state.said_at.is_some_and(quiet) {
            return None;
        }
        state.said_at = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_the_next_after_ten_seconds() {
        let seldom = Seldom::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seldom.add(start, 2), Some(2));
        assert_eq!(seldom.add(after(1), 1), None);
        assert_eq!(seldom.add(after(9), 3), None);
        assert_eq!(seldom.add(after(10), 1), Some(5));
        assert_eq!(seldom.add(after(19), 1), None);
    }
}
