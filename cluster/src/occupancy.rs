//! Which nodes have members of which rooms, for rooms whose application wants to know when they are occupied in the
//! cluster and when they are vacated. Pure.
//!
//! Every node tells all others of its own rooms, and all of them keep the same table. The one that has been up for
//! longest is the one that speaks: it has heard everything, and when it goes, the next has, too. A message may be
//! lost, so each change has a number, heartbeats tell the latest, and whoever has missed one asks for all.

use std::collections::{HashMap, HashSet};

use proto::{NodeId, RoomName};

/// The table of one node.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    nodes: HashMap<NodeId, Rooms>,
    /// By how many nodes each room is occupied; never zero.
    rooms: HashMap<RoomName, usize>,
}

/// The rooms of one node.
#[derive(Debug, Default)]
struct Rooms {
    rooms: HashSet<RoomName>,
    /// The number of the last change up to which nothing is missing.
    version: u64,
    /// That number when a heartbeat told of a later one: the change may be on its way.
    suspected_at: Option<u64>,
    /// A snapshot that has come in part.
    part: Option<Part>,
}

#[derive(Debug)]
struct Part {
    version: u64,
    next: u32,
    rooms: HashSet<RoomName>,
}

/// A message with all rooms of a node, or some of them.
pub(crate) struct Snapshot {
    /// The number of the last change that is in it.
    pub(crate) version: u64,
    /// Which message of several, from zero.
    pub(crate) part: u32,
    /// Whether there is another.
    pub(crate) more: bool,
    /// The rooms.
    pub(crate) rooms: Vec<RoomName>,
}

/// What a room of the cluster has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Occupied(RoomName),
    Vacated(RoomName),
}

impl Turn {
    pub(crate) fn room(&self) -> &RoomName {
        match self {
            Self::Occupied(room) | Self::Vacated(room) => room,
        }
    }
}

impl Occupancy {
    /// The number of the latest change of a node that is known with all before it.
    pub(crate) fn version(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |rooms| rooms.version)
    }

    /// A change of this node's own, with its number.
    pub(crate) fn change(
        &mut self,
        node: NodeId,
        room: &RoomName,
        occupied: bool,
    ) -> (u64, Option<Turn>) {
        let version = self.version(node) + 1;
        (version, self.changed(node, version, room, occupied))
    }

    /// A node tells of a change.
    pub(crate) fn changed(
        &mut self,
        node: NodeId,
        version: u64,
        room: &RoomName,
        occupied: bool,
    ) -> Option<Turn> {
        let rooms = self.nodes.entry(node).or_default();
        if version <= rooms.version {
            return None;
        }
        if version == rooms.version + 1 {
            rooms.version = version;
        }
        match occupied {
            true => self.occupy(node, room),
            false => self.vacate(node, room),
        }
    }

    /// A node tells the number of its latest change. Says whether to ask it for all of its rooms.
    pub(crate) fn heard(&mut self, node: NodeId, latest: u64) -> bool {
        if latest == self.version(node) {
            if let Some(rooms) = self.nodes.get_mut(&node) {
                rooms.suspected_at = None;
            }
            return false;
        }
        let rooms = self.nodes.entry(node).or_default();
        rooms.suspected_at.replace(rooms.version) == Some(rooms.version)
    }

    /// A node tells all of its rooms, in one message or several.
    pub(crate) fn snapshot(&mut self, node: NodeId, snapshot: Snapshot) -> Vec<Turn> {
        let Snapshot {
            version,
            part: nth,
            more,
            rooms: some,
        } = snapshot;
        let rooms = self.nodes.entry(node).or_default();
        let fresh = || Part {
            version,
            next: 0,
            rooms: HashSet::new(),
        };
        let mut part = match rooms.part.take() {
            Some(part) if part.version == version && nth > 0 => part,
            _ => fresh(),
        };
        if nth != part.next {
            // One is missing: another snapshot will be asked for.
            return Vec::new();
        }
        part.next += 1;
        part.rooms.extend(some);
        if more {
            rooms.part = Some(part);
            return Vec::new();
        }
        rooms.version = version;
        let now = part.rooms;
        let before = rooms.rooms.clone();
        let vacated = before.difference(&now);
        let mut turns: Vec<_> = vacated.filter_map(|room| self.vacate(node, room)).collect();
        let occupied = now.difference(&before);
        turns.extend(occupied.filter_map(|room| self.occupy(node, room)));
        turns
    }

    /// A node is gone, with all its members.
    pub(crate) fn forget(&mut self, node: NodeId) -> Vec<Turn> {
        let rooms = self.nodes.get(&node).map(|rooms| rooms.rooms.clone());
        let rooms = rooms.unwrap_or_default();
        let turns = rooms
            .iter()
            .filter_map(|room| self.vacate(node, room))
            .collect();
        self.nodes.remove(&node);
        turns
    }

    /// The rooms of a node.
    pub(crate) fn rooms(&self, node: NodeId) -> Vec<RoomName> {
        let rooms = self.nodes.get(&node);
        rooms.map_or_else(Vec::new, |rooms| rooms.rooms.iter().cloned().collect())
    }

    fn occupy(&mut self, node: NodeId, room: &RoomName) -> Option<Turn> {
        let rooms = self.nodes.get_mut(&node)?;
        if !rooms.rooms.insert(room.clone()) {
            return None;
        }
        let count = self.rooms.entry(room.clone()).or_default();
        *count += 1;
        (*count == 1).then(|| Turn::Occupied(room.clone()))
    }

    fn vacate(&mut self, node: NodeId, room: &RoomName) -> Option<Turn> {
        let rooms = self.nodes.get_mut(&node)?;
        if !rooms.rooms.remove(room) {
            return None;
        }
        let count = self.rooms.get_mut(room)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.rooms.remove(room);
        Some(Turn::Vacated(room.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::parse(name).unwrap()
    }

    fn snapshot(version: u64, part: u32, more: bool, names: &[&str]) -> Snapshot {
        Snapshot {
            version,
            part,
            more,
            rooms: names.iter().map(|name| room(name)).collect(),
        }
    }

    #[test]
    fn the_first_and_the_last_node_count() {
        let (a, b) = (NodeId::new(1), NodeId::new(2));
        let mut table = Occupancy::default();
        let x = room("x");
        assert_eq!(
            table.change(a, &x, true),
            (1, Some(Turn::Occupied(x.clone())))
        );
        assert_eq!(table.changed(b, 1, &x, true), None);
        assert_eq!(table.change(a, &x, false), (2, None));
        assert_eq!(
            table.changed(b, 2, &x, false),
            Some(Turn::Vacated(x.clone()))
        );
        assert_eq!(table.changed(b, 1, &x, true), None, "old");
        assert!(table.rooms.is_empty());
    }

    #[test]
    fn a_snapshot_is_a_difference() {
        let (a, b) = (NodeId::new(1), NodeId::new(2));
        let mut table = Occupancy::default();
        table.changed(a, 1, &room("old"), true);
        table.changed(a, 2, &room("stays"), true);
        table.changed(b, 1, &room("shared"), true);
        assert_eq!(table.snapshot(a, snapshot(9, 0, true, &["stays"])), []);
        let turns = table.snapshot(a, snapshot(9, 1, false, &["shared", "new"]));
        let expected = [Turn::Vacated(room("old")), Turn::Occupied(room("new"))];
        assert_eq!(turns, expected);
        assert_eq!(table.version(a), 9);
        let mut turns = table.forget(a);
        turns.sort_by_key(|turn| format!("{turn:?}"));
        assert_eq!(
            turns,
            [Turn::Vacated(room("new")), Turn::Vacated(room("stays"))]
        );
        assert_eq!(table.rooms(b), [room("shared")]);
    }

    #[test]
    fn a_torso_is_no_snapshot() {
        let a = NodeId::new(1);
        let mut table = Occupancy::default();
        assert_eq!(table.snapshot(a, snapshot(5, 0, true, &["lost"])), []);
        assert_eq!(table.snapshot(a, snapshot(5, 2, false, &["end"])), []);
        assert_eq!(table.snapshot(a, snapshot(6, 1, false, &["end"])), []);
        assert_eq!(table.snapshot(a, snapshot(7, 0, true, &["x"])), []);
        assert_eq!(table.snapshot(a, snapshot(8, 0, true, &["y"])), []);
        let turns = table.snapshot(a, snapshot(8, 1, false, &["z"]));
        assert_eq!(turns.len(), 2, "without x: {turns:?}");
    }

    #[test]
    fn what_was_missed_is_asked_for() {
        let a = NodeId::new(1);
        let mut table = Occupancy::default();
        assert!(!table.heard(a, 0), "it has none");
        assert!(!table.heard(a, 1), "it may be on its way");
        table.changed(a, 1, &room("x"), true);
        assert!(!table.heard(a, 1));
        table.changed(a, 3, &room("z"), true);
        assert!(!table.heard(a, 3));
        assert!(table.heard(a, 3), "the second is missing");
        table.snapshot(a, snapshot(3, 0, false, &["x", "z"]));
        assert!(!table.heard(a, 3) && !table.heard(a, 3));
    }
}
