//! Connections of other nodes to the bus: which one a node speaks over now, and which it has given up. Pure; `now` is
//! told.
//!
//! A NATS server that stood still has taken messages that it passes on when it moves again. Their sender has long
//! counted them as lost, told so, and gone on over another server: they would come after what was sent after them. So
//! nodes number their connections, and what comes over an earlier one is late.
//!
//! A number is only a claim: whoever may publish on the bus can write any into an envelope. Were the largest believed
//! for ever, one forged envelope would make all later ones of its victim late. So a claim holds while heartbeats come
//! over that connection. Where they go on to come over an earlier one instead, for longer than late ones take, the
//! earlier one is believed again.

use std::collections::HashMap;
use std::time::Duration;

use proto::NodeId;
use tokio::time::Instant;

/// The connection of each node, as far as it is believed.
#[derive(Debug)]
pub(crate) struct Epochs {
    nodes: HashMap<NodeId, Epoch>,
    heartbeat_interval: Duration,
}

#[derive(Debug, Default)]
struct Epoch {
    connection: u64,
    /// The last heartbeat over it.
    confirmed_at: Option<Instant>,
    /// An earlier connection over which heartbeats come all the same.
    earlier: Option<Earlier>,
}

#[derive(Debug)]
struct Earlier {
    connection: u64,
    first_at: Instant,
    heartbeats: u32,
}

/// What a heartbeat says of its node's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It came over the connection that is believed.
    Now,
    /// It came over one that was given up.
    Late,
    /// A later connection was claimed, and no heartbeat came over it: this one is believed again. What came over it
    /// meanwhile was dropped.
    Restored,
}

/// Nodes to remember. A restarted one is a new one, so they pile up.
const NODES_MAX: usize = 4_096;

/// Heartbeats over an earlier connection that restore it, and in how many intervals at least: late ones come in one
/// burst, when the server that held them moves again.
const RESTORING_HEARTBEATS: u32 = 3;
const RESTORING_INTERVALS: f64 = 1.5;

/// A connection counts as confirmed for so many intervals after a heartbeat.
const CONFIRMED_INTERVALS: u32 = 2;

/// By so much one message may raise the number at most: by the connections that a node makes between two words.
const STEP_MAX: u64 = 10_000;

impl Epochs {
    pub(crate) fn new(heartbeat_interval: Duration) -> Self {
        Self {
            nodes: HashMap::new(),
            heartbeat_interval,
        }
    }

    /// Something came over that connection. Says whether it is believed; zero is of a node that does not count.
    pub(crate) fn is_current(&mut self, node: NodeId, connection: u64) -> bool {
        if connection == 0 {
            return true;
        }
        let epoch = self.epoch(node);
        let known = epoch.connection > 0;
        if connection > epoch.connection {
            if known && connection - epoch.connection > STEP_MAX {
                return false;
            }
            *epoch = Epoch {
                connection,
                ..Epoch::default()
            };
        }
        epoch.connection == connection
    }

    /// A heartbeat came over that connection.
    pub(crate) fn heartbeat(&mut self, node: NodeId, connection: u64, now: Instant) -> Heard {
        if connection == 0 {
            return Heard::Now;
        }
        let interval = self.heartbeat_interval;
        let current = self.is_current(node, connection);
        let epoch = self.epoch(node);
        if current {
            epoch.confirmed_at = Some(now);
            epoch.earlier = None;
            return Heard::Now;
        }
        let confirmed = epoch
            .confirmed_at
            .is_some_and(|at| now.duration_since(at) <= CONFIRMED_INTERVALS * interval);
        if confirmed {
            epoch.earlier = None;
            return Heard::Late;
        }
        match &mut epoch.earlier {
            Some(earlier) if earlier.connection == connection => {
                earlier.heartbeats += 1;
                let steady =
                    now.duration_since(earlier.first_at) >= interval.mul_f64(RESTORING_INTERVALS);
                if earlier.heartbeats < RESTORING_HEARTBEATS || !steady {
                    return Heard::Late;
                }
                *epoch = Epoch {
                    connection,
                    confirmed_at: Some(now),
                    earlier: None,
                };
                Heard::Restored
            }
            earlier => {
                *earlier = Some(Earlier {
                    connection,
                    first_at: now,
                    heartbeats: 1,
                });
                Heard::Late
            }
        }
    }

    fn epoch(&mut self, node: NodeId) -> &mut Epoch {
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&node) {
            self.nodes.clear();
        }
        self.nodes.entry(node).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(500);

    #[test]
    fn a_connection_that_was_given_up_is_late() {
        let (one, two) = (NodeId::new(1), NodeId::new(2));
        let mut epochs = Epochs::new(INTERVAL);
        assert!(epochs.is_current(one, 1));
        assert!(epochs.is_current(one, 1));
        assert!(epochs.is_current(two, 7));
        assert!(epochs.is_current(one, 3));
        assert!(!epochs.is_current(one, 1));
        assert!(epochs.is_current(one, 0), "it does not count");
        assert!(epochs.is_current(one, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_forged_connection_holds_for_some_heartbeats_only() {
        let (node, start) = (NodeId::new(1), Instant::now());
        for forged in [3, 2 + STEP_MAX] {
            let mut epochs = Epochs::new(INTERVAL);
            assert_eq!(epochs.heartbeat(node, 2, start), Heard::Now);
            assert!(epochs.is_current(node, forged));
            assert!(!epochs.is_current(node, 2));
            let mut heard = Vec::new();
            for nth in 1..=5 {
                heard.push(epochs.heartbeat(node, 2, start + nth * INTERVAL));
            }
            let late = [Heard::Late, Heard::Late];
            assert_eq!(
                heard,
                [&late[..], &[Heard::Restored, Heard::Now, Heard::Now]].concat()
            );
            assert!(epochs.is_current(node, 2));
        }
    }

    #[test]
    fn a_number_far_beyond_the_last_is_not_believed() {
        let node = NodeId::new(1);
        let mut epochs = Epochs::new(INTERVAL);
        assert!(epochs.is_current(node, 2));
        assert!(!epochs.is_current(node, u64::MAX));
        assert!(epochs.is_current(node, 2));
    }

    /// A server that stood still passes on what it held, in one burst, while the node speaks over another.
    #[tokio::test(start_paused = true)]
    async fn late_heartbeats_restore_nothing() {
        let (node, start) = (NodeId::new(1), Instant::now());
        let mut epochs = Epochs::new(INTERVAL);
        for nth in 0..20 {
            let now = start + nth * INTERVAL;
            assert_eq!(epochs.heartbeat(node, 2, now), Heard::Now);
            assert_eq!(epochs.heartbeat(node, 1, now), Heard::Late);
        }
        // Nor where the node has just died.
        let burst = start + 60 * INTERVAL;
        for _ in 0..20 {
            assert_eq!(epochs.heartbeat(node, 1, burst), Heard::Late);
        }
    }
}
