//! What this node has said to have ended with nodes that seemed to be dead, in case one of them comes back. Pure.

use std::collections::{HashSet, VecDeque};

use proto::NodeId;
use proto::envelope::Held;

/// By node, the one that went first in front.
#[derive(Debug)]
pub(crate) struct Retractable {
    nodes: VecDeque<(NodeId, HashSet<Held>)>,
    held_max: usize,
}

impl Retractable {
    /// Remembers so much, and what the latest node held, however much that is.
    pub(crate) fn new(held_max: usize) -> Self {
        Self {
            nodes: VecDeque::new(),
            held_max,
        }
    }

    /// This node has said that all that has ended. Gives the nodes that are forgotten for it, with how much each held.
    pub(crate) fn ended(
        &mut self,
        node: NodeId,
        held: impl Iterator<Item = Held>,
    ) -> Vec<(NodeId, usize)> {
        match self.nodes.iter_mut().find(|(of, _)| *of == node) {
            Some((_, ended)) => ended.extend(held),
            None => self.nodes.push_back((node, held.collect())),
        }
        let mut size: usize = self.nodes.iter().map(|(_, ended)| ended.len()).sum();
        let mut forgotten = Vec::new();
        while size > self.held_max && self.nodes.len() > 1 {
            let Some((node, ended)) = self.nodes.pop_front() else {
                break;
            };
            size -= ended.len();
            forgotten.push((node, ended.len()));
        }
        forgotten
    }

    /// Whether this node has said that it has ended, and not yet that it has not.
    pub(crate) fn take(&mut self, held: &Held) -> bool {
        let mut all = self.nodes.iter_mut();
        all.any(|(_, ended)| ended.remove(held))
    }

    /// That node is back, and has told of its sockets. A room may be back with another node than the one that was the
    /// last to be lost.
    pub(crate) fn sockets_told(&mut self, node: NodeId) {
        self.nodes.retain_mut(|(of, ended)| {
            if *of == node {
                ended.retain(|held| matches!(held, Held::Room(_)));
            }
            !ended.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use proto::RoomName;

    use super::*;

    fn rooms(names: &'static [&str]) -> impl Iterator<Item = Held> {
        let room = |name: &&str| Held::Room(RoomName::parse(name).unwrap());
        names.iter().map(room)
    }

    fn room(name: &'static str) -> Held {
        Held::Room(RoomName::parse(name).unwrap())
    }

    #[test]
    fn nodes_that_went_first_are_forgotten_first_and_named() {
        let [a, b, c] = [1, 2, 3].map(NodeId::new);
        let mut retractable = Retractable::new(4);
        assert_eq!(retractable.ended(a, rooms(&["a", "b"])), []);
        assert_eq!(retractable.ended(b, rooms(&["c", "d"])), []);
        assert_eq!(retractable.ended(a, rooms(&["e"])), [(a, 3)]);
        assert!(!retractable.take(&room("a")));
        assert!(retractable.take(&room("c")));
        assert!(!retractable.take(&room("c")), "once");
        // The latest is remembered, however large it is.

        assert_eq!(
            retractable.ended(c, rooms(&["f", "g", "h", "i", "j"])),
            [(b, 1)]
        );
        assert!(retractable.take(&room("j")));
    }
}
