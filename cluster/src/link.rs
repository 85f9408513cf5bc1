//! Whether the bus is there: a connection that answers. Pure; `now` is told.

use std::time::Duration;

use tokio::time::Instant;

use crate::BusStatus;

/// The state of this node's link to the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected yet, since the start.
    Connecting,
    /// Connected, and answering.
    Connected,
    /// Connected once, but cut off or silent now.
    Away,
}

/// What a look at the link showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// As before.
    None,
    /// There again, or for the first time. Subscriptions were made anew.
    Returned,
    /// Gone, or silent.
    Left,
}

pub(crate) struct Link {
    state: LinkState,
    connections: u64,
    /// The last sign of life, by which a connection that is open but dead is told.
    heard: Instant,
    silence_max: Duration,
}

impl Link {
    pub(crate) fn new(silence_max: Duration, now: Instant) -> Self {
        Self {
            state: LinkState::Connecting,
            connections: 0,
            heard: now,
            silence_max,
        }
    }

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    /// The server answered.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// Looks at the connection.
    pub(crate) fn look(&mut self, status: BusStatus, now: Instant) -> Change {
        let new = status.connections != self.connections;
        if new {
            // Give a new connection time to answer.
            self.connections = status.connections;
            self.heard = now;
        }
        let silent = now.duration_since(self.heard) > self.silence_max;
        let there = status.connected && !silent;
        match (self.state, there) {
            // A connection that came and went between two looks lost messages all the same.
            (LinkState::Connected, true) if !new => Change::None,
            (_, true) => {
                self.state = LinkState::Connected;
                Change::Returned
            }
            (LinkState::Connected, false) => {
                self.state = LinkState::Away;
                Change::Left
            }
            (LinkState::Connecting | LinkState::Away, false) => Change::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_secs(3);

    fn status(connected: bool, connections: u64) -> BusStatus {
        BusStatus {
            connected,
            connections,
            overflows: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_comes_goes_and_comes_back() {
        let start = Instant::now();
        let mut link = Link::new(SILENCE, start);
        assert_eq!(link.look(status(false, 0), start), Change::None);
        assert_eq!(link.state(), LinkState::Connecting);
        assert_eq!(link.look(status(true, 1), start), Change::Returned);
        assert_eq!(link.look(status(true, 1), start), Change::None);
        assert_eq!(link.look(status(false, 1), start), Change::Left);
        assert_eq!(link.look(status(false, 1), start), Change::None);
        assert_eq!(link.look(status(true, 2), start), Change::Returned);
        // Reconnected between two looks.
        assert_eq!(link.look(status(true, 3), start), Change::Returned);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_is_away_until_it_speaks() {
        let start = Instant::now();
        let mut link = Link::new(SILENCE, start);
        link.look(status(true, 1), start);
        let later = start + SILENCE + Duration::from_millis(1);
        assert_eq!(link.look(status(true, 1), later), Change::Left);
        assert_eq!(link.state(), LinkState::Away);
        link.heard(later);
        assert_eq!(link.look(status(true, 1), later), Change::Returned);
    }
}
