//! Which nodes have members of which rooms, for rooms whose application wants to know when they are occupied in the
//! cluster and when they are vacated. Pure.
//!
//! Every node tells all others of its own rooms, and all of them keep the same table. The one that has been up for
//! longest is the one that speaks: it has heard everything, and when it goes, the next has, too.

use std::collections::{HashMap, HashSet};

use proto::{NodeId, RoomName};

/// The table of one node.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    nodes: HashMap<NodeId, HashSet<RoomName>>,
    /// By how many nodes each room is occupied; never zero.
    rooms: HashMap<RoomName, usize>,
    /// Rooms of snapshots that have come in part.
    parts: HashMap<NodeId, HashSet<RoomName>>,
}

/// What a room of the cluster has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Occupied(RoomName),
    Vacated(RoomName),
}

impl Occupancy {
    /// A room of a node got its first member there.
    pub(crate) fn occupy(&mut self, node: NodeId, room: RoomName) -> Option<Turn> {
        if !self.nodes.entry(node).or_default().insert(room.clone()) {
            return None;
        }
        let count = self.rooms.entry(room.clone()).or_default();
        *count += 1;
        (*count == 1).then_some(Turn::Occupied(room))
    }

    /// A room of a node lost its last member there.
    pub(crate) fn vacate(&mut self, node: NodeId, room: &RoomName) -> Option<Turn> {
        let rooms = self.nodes.get_mut(&node)?;
        if !rooms.remove(room) {
            return None;
        }
        if rooms.is_empty() {
            self.nodes.remove(&node);
        }
        let count = self.rooms.get_mut(room)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.rooms.remove(room);
        Some(Turn::Vacated(room.clone()))
    }

    /// All rooms of a node, or with `more` to come a part of them.
    pub(crate) fn snapshot(&mut self, node: NodeId, rooms: Vec<RoomName>, more: bool) -> Vec<Turn> {
        let part = self.parts.entry(node).or_default();
        part.extend(rooms);
        if more {
            return Vec::new();
        }
        let now = self.parts.remove(&node).unwrap_or_default();
        let before = self.nodes.get(&node).cloned().unwrap_or_default();
        let vacated = before.difference(&now);
        let mut turns: Vec<_> = vacated.filter_map(|room| self.vacate(node, room)).collect();
        let occupied = now.difference(&before).cloned();
        turns.extend(occupied.filter_map(|room| self.occupy(node, room)));
        turns
    }

    /// A node is gone, with all its members.
    pub(crate) fn forget(&mut self, node: NodeId) -> Vec<Turn> {
        self.parts.remove(&node);
        let rooms = self.nodes.get(&node).cloned().unwrap_or_default();
        let turns = rooms.iter().filter_map(|room| self.vacate(node, room));
        turns.collect()
    }

    /// The rooms of a node.
    pub(crate) fn rooms(&self, node: NodeId) -> Vec<RoomName> {
        let rooms = self.nodes.get(&node);
        rooms.map_or_else(Vec::new, |rooms| rooms.iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::parse(name).unwrap()
    }

    #[test]
    fn the_first_and_the_last_node_count() {
        let (a, b) = (NodeId::new(1), NodeId::new(2));
        let mut table = Occupancy::default();
        let occupied = Some(Turn::Occupied(room("x")));
        assert_eq!(table.occupy(a, room("x")), occupied);
        assert_eq!(table.occupy(a, room("x")), None);
        assert_eq!(table.occupy(b, room("x")), None);
        assert_eq!(table.vacate(a, &room("x")), None);
        assert_eq!(table.vacate(a, &room("x")), None);
        assert_eq!(table.vacate(b, &room("x")), Some(Turn::Vacated(room("x"))));
        assert!(table.nodes.is_empty() && table.rooms.is_empty());
    }

    #[test]
    fn a_snapshot_is_a_difference() {
        let (a, b) = (NodeId::new(1), NodeId::new(2));
        let mut table = Occupancy::default();
        table.occupy(a, room("old"));
        table.occupy(a, room("stays"));
        table.occupy(b, room("shared"));
        assert_eq!(table.snapshot(a, vec![room("stays")], true), []);
        let turns = table.snapshot(a, vec![room("shared"), room("new")], false);
        let expected = [Turn::Vacated(room("old")), Turn::Occupied(room("new"))];
        assert_eq!(turns, expected);
        let mut turns = table.forget(a);
        turns.sort_by_key(|turn| format!("{turn:?}"));
        assert_eq!(
            turns,
            [Turn::Vacated(room("new")), Turn::Vacated(room("stays"))]
        );
        assert_eq!(table.rooms(b), [room("shared")]);
    }
}
