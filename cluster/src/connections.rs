//! What comes too late: of a connection that its node has given up for another. Pure.
//!
//! A NATS server that stood still has taken messages that it passes on when it moves again. Their sender has long
//! counted them as lost, told so, and gone on over another server: they would come after what was sent after them.

use std::collections::HashMap;

use proto::NodeId;

/// The latest connection of each node, by the numbers that nodes give to their own.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    latest: HashMap<NodeId, u64>,
}

/// Nodes to remember. A restarted one is a new one, so they pile up.
const NODES_MAX: usize = 4_096;

impl Connections {
    /// Something came over that connection. Says whether it is the latest that is known of; zero is of a node that does
    /// not count, which has none.
    pub(crate) fn is_latest(&mut self, node: NodeId, connection: u64) -> bool {
        if connection == 0 {
            return true;
        }
        if self.latest.len() >= NODES_MAX && !self.latest.contains_key(&node) {
            self.latest.clear();
        }
        let latest = self.latest.entry(node).or_default();
        *latest = connection.max(*latest);
        *latest == connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_late() {
        let (one, two) = (NodeId::new(1), NodeId::new(2));
        let mut connections = Connections::default();
        assert!(connections.is_latest(one, 1));
        assert!(connections.is_latest(one, 1));
        assert!(connections.is_latest(two, 7));
        assert!(connections.is_latest(one, 3));
        assert!(!connections.is_latest(one, 1));
        assert!(connections.is_latest(one, 0), "it does not count");
        assert!(connections.is_latest(one, 3));
    }
}
