//! Whether what other nodes send arrives whole. Pure; `now` is told.
//!
//! A node whose own connection breaks knows it, and tells what it may have missed, and others missed of it. Between
//! two NATS servers is a connection of which no node knows: while it is broken, each server goes on, and what should
//! have passed is gone. So heartbeats, which go the way of everything else, are numbered on each connection from 1;
//! where one is missing, other things may be, too. A server tries for the first time after a second to make a lost
//! connection to another anew, so heartbeats that come more often than that miss no break.

use std::collections::HashMap;
use std::time::Duration;

use proto::NodeId;
use tokio::time::Instant;

pub(crate) struct Beats {
    /// The latest number, also of nodes that seem to be gone: they may come back.
    latest: HashMap<NodeId, u64>,
    /// Until then any number is the first: this node's own connection is new.
    open_until: Option<Instant>,
    interval: Duration,
}

/// Heartbeats of every node should have come in so many intervals.
const INTERVALS: u32 = 3;

/// Nodes to remember. A restarted one is a new one, so they pile up.
const NODES_MAX: usize = 4_096;

impl Beats {
    /// Nodes send heartbeats about so often.
    pub(crate) fn new(interval: Duration) -> Self {
        Self {
            latest: HashMap::new(),
            open_until: None,
            interval,
        }
    }

    /// This node's own connection is new; that it may have missed something is told apart.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.latest.clear();
        self.open_until = Some(now + INTERVALS * self.interval);
    }

    /// A heartbeat came, with its number; zero is of a node that does not count. Says whether something of that node
    /// may have been missed before it.
    pub(crate) fn heard(&mut self, node: NodeId, number: u64, now: Instant) -> bool {
        if number == 0 {
            return false;
        }
        if self.latest.len() >= NODES_MAX && !self.latest.contains_key(&node) {
            // Those that are up are back within an interval.
            self.restart(now);
        }
        let open = self.open_until.is_none_or(|until| now < until);
        let expected = match self.latest.insert(node, number) {
            Some(latest) => latest.checked_add(1) == Some(number),
            // Up for a while, and never heard of.
            None => open,
        };
        // The first on a connection of that node's: it tells itself what it has lost with the one before.
        !expected && number != 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_number_that_is_missing_is_noticed() {
        let interval = Duration::from_secs(1);
        let (start, node) = (Instant::now(), NodeId::new(1));
        let mut beats = Beats::new(interval);
        beats.restart(start);
        assert!(!beats.heard(node, 7, start), "it was there before");
        assert!(!beats.heard(node, 8, start));
        assert!(beats.heard(node, 10, start));
        assert!(!beats.heard(node, 11, start));
        assert!(!beats.heard(node, 1, start), "another connection");
        assert!(beats.heard(node, 4, start));
        let later = start + 10 * interval;
        assert!(!beats.heard(NodeId::new(2), 1, later), "a new node");
        assert!(beats.heard(NodeId::new(3), 2, later), "where was it?");
        assert!(!beats.heard(NodeId::new(4), 0, later));
        assert!(!beats.heard(NodeId::new(4), 0, later));
        beats.restart(later);
        assert!(!beats.heard(node, 9, later));
    }
}
