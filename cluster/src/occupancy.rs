//! Which nodes have members of which rooms, and which sockets they hold, of those whose application wants to be told
//! of their end by whoever is left. Pure.
//!
//! Every node tells all others of what it holds, and all of them keep the same table. The one that has been up for
//! longest is the one that speaks: it has heard everything, and when it goes, the next has, too. A message may be
//! lost, so each change has a number, heartbeats tell the latest, and whoever has missed one asks for all. The answer
//! may come by another way than the changes, and so before or after those that were made later.

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::envelope::Held;
use proto::{NodeId, RoomName};

/// The table of one node.
#[derive(Debug, Default)]
pub(crate) struct Occupancy {
    nodes: HashMap<NodeId, Holding>,
    /// By how many nodes each room is occupied; never zero.
    rooms: HashMap<RoomName, usize>,
}

/// What one node holds.
#[derive(Debug, Default)]
struct Holding {
    held: HashSet<Held>,
    /// The number of the last change up to which nothing is missing.
    version: u64,
    /// That number when a heartbeat told of another one: the change may be on its way.
    suspected_at: Option<u64>,
    /// Heartbeats in a row that told of an earlier number than that: somebody else told of changes in the node's name.
    doubts: u32,
    /// A snapshot that has come in part.
    part: Option<Part>,
    /// Changes that came after one that is missing, by their numbers: whether it has begun.
    later: BTreeMap<u64, (Held, bool)>,
}

/// Changes to remember until a snapshot comes; with more, it may be asked for again. A number further ahead than that
/// is not believed.
const LATER_MAX: usize = 10_000;

/// After so many heartbeats that tell of an earlier number than is known, the node itself is believed. A heartbeat may
/// overtake changes, and be older than they are, but not so many of them in a row.
const DOUBTS_MAX: u32 = 3;

#[derive(Debug)]
struct Part {
    version: u64,
    next: u32,
    held: HashSet<Held>,
}

/// A message with all that a node holds, or some of it.
pub(crate) struct Snapshot {
    /// The number of the last change that is in it.
    pub(crate) version: u64,
    /// Which message of several, from zero.
    pub(crate) part: u32,
    /// Whether there is another.
    pub(crate) more: bool,
    /// What the node holds.
    pub(crate) held: Vec<Held>,
}

/// What became of something in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Begun(Held),
    Ended(Held),
}

impl Turn {
    pub(crate) fn held(&self) -> &Held {
        match self {
            Self::Begun(held) | Self::Ended(held) => held,
        }
    }

    /// Whether it is about a socket. Of those its own node tells, for as long as it is there.
    pub(crate) fn is_of_a_socket(&self) -> bool {
        !matches!(self.held(), Held::Room(_))
    }
}

impl Holding {
    /// Takes out the changes that came after one that is missing, of which those up to the version are of no use.
    fn take_later(&mut self) -> BTreeMap<u64, (Held, bool)> {
        let after = self.version.saturating_add(1);
        let later = self.later.split_off(&after);
        self.later.clear();
        later
    }
}

impl Occupancy {
    /// The number of the latest change of a node that is known with all before it.
    pub(crate) fn version(&self, node: NodeId) -> u64 {
        self.nodes.get(&node).map_or(0, |holding| holding.version)
    }

    /// A change of this node's own, with its number.
    pub(crate) fn change(&mut self, node: NodeId, held: Held, begun: bool) -> (u64, Option<Turn>) {
        let version = self.version(node) + 1;
        (version, self.changed(node, version, held, begun))
    }

    /// A node tells of a change.
    pub(crate) fn changed(
        &mut self,
        node: NodeId,
        version: u64,
        held: Held,
        begun: bool,
    ) -> Option<Turn> {
        let holding = self.nodes.entry(node).or_default();
        if version <= holding.version || version - holding.version > LATER_MAX as u64 {
            return None;
        }
        if version - holding.version == 1 {
            holding.version = version;
            holding.doubts = 0;
        } else if holding.later.len() < LATER_MAX {
            holding.later.insert(version, (held.clone(), begun));
        }
        match begun {
            true => self.begin(node, held),
            false => self.end(node, held),
        }
    }

    /// A node tells the number of its latest change. Says whether to ask it for all that it holds.
    pub(crate) fn heard(&mut self, node: NodeId, latest: u64) -> bool {
        if latest == self.version(node) {
            if let Some(holding) = self.nodes.get_mut(&node) {
                holding.suspected_at = None;
                holding.doubts = 0;
                holding.later = holding.take_later();
            }
            return false;
        }
        let holding = self.nodes.entry(node).or_default();
        holding.doubts = match latest < holding.version {
            true => holding.doubts.saturating_add(1),
            false => 0,
        };
        holding.suspected_at.replace(holding.version) == Some(holding.version)
    }

    /// A node tells all that it holds, in one message or several.
    pub(crate) fn snapshot(&mut self, node: NodeId, snapshot: Snapshot) -> Vec<Turn> {
        let Snapshot {
            version,
            part: nth,
            more,
            held: some,
        } = snapshot;
        let holding = self.nodes.entry(node).or_default();
        let fresh = || Part {
            version,
            next: 0,
            held: HashSet::new(),
        };
        let mut part = match holding.part.take() {
            Some(part) if part.version == version && nth > 0 => part,
            _ => fresh(),
        };
        if nth != part.next {
            // One is missing: another snapshot will be asked for.
            return Vec::new();
        }
        part.next += 1;
        part.held.extend(some);
        if more {
            holding.part = Some(part);
            return Vec::new();
        }
        if version < holding.version {
            if holding.doubts < DOUBTS_MAX {
                // Of before what is known by now, with nothing missing.
                return Vec::new();
            }
            // Changes beyond it were somebody else's.
            holding.later.clear();
        }
        holding.version = version;
        holding.doubts = 0;
        let mut now = part.held;
        for (number, (held, begun)) in holding.take_later() {
            match begun {
                true => now.insert(held.clone()),
                false => now.remove(&held),
            };
            if number - holding.version == 1 {
                holding.version = number;
            } else {
                holding.later.insert(number, (held, begun));
            }
        }
        let before = holding.held.clone();
        let ended = before.difference(&now).cloned();
        let mut turns: Vec<_> = ended.filter_map(|held| self.end(node, held)).collect();
        let begun = now.difference(&before).cloned();
        turns.extend(begun.filter_map(|held| self.begin(node, held)));
        turns
    }

    /// A node is gone, with all that it held. Of one socket, what it was a member of ends first.
    pub(crate) fn forget(&mut self, node: NodeId) -> Vec<Turn> {
        let mut held = self.held(node);
        held.sort_by_key(|held| match held {
            Held::Member(_) => 0,
            Held::Socket(_) => 1,
            Held::Room(_) => 2,
        });
        let turns = held.into_iter().filter_map(|held| self.end(node, held));
        let turns = turns.collect();
        self.nodes.remove(&node);
        turns
    }

    /// What a node holds.
    pub(crate) fn held(&self, node: NodeId) -> Vec<Held> {
        let holding = self.nodes.get(&node);
        holding.map_or_else(Vec::new, |holding| holding.held.iter().cloned().collect())
    }

    fn begin(&mut self, node: NodeId, held: Held) -> Option<Turn> {
        let holding = self.nodes.get_mut(&node)?;
        if !holding.held.insert(held.clone()) {
            return None;
        }
        if let Held::Room(room) = &held {
            let count = self.rooms.entry(room.clone()).or_default();
            *count += 1;
            if *count > 1 {
                return None;
            }
        }
        Some(Turn::Begun(held))
    }

    fn end(&mut self, node: NodeId, held: Held) -> Option<Turn> {
        let holding = self.nodes.get_mut(&node)?;
        if !holding.held.remove(&held) {
            return None;
        }
        if let Held::Room(room) = &held {
            let count = self.rooms.get_mut(room)?;
            *count -= 1;
            if *count > 0 {
                return None;
            }
            self.rooms.remove(room);
        }
        Some(Turn::Ended(held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> Held {
        Held::Room(RoomName::parse(name).unwrap())
    }

    fn snapshot(version: u64, part: u32, more: bool, names: &[&str]) -> Snapshot {
        Snapshot {
            version,
            part,
            more,
            held: names.iter().map(|name| room(name)).collect(),
        }
    }

    #[test]
    fn a_number_that_was_forged_is_believed_for_some_heartbeats_only() {
        let node = NodeId::new(1);
        let mut occupancy = Occupancy::default();
        occupancy.changed(node, 1, room("own"), true);
        assert_eq!(occupancy.changed(node, u64::MAX, room("far"), true), None);
        let forged = occupancy.snapshot(node, snapshot(u64::MAX, 0, false, &["forged"]));
        assert_eq!(forged.len(), 2, "one has ended, one begun");
        assert_eq!(
            occupancy.snapshot(node, snapshot(1, 0, false, &["own"])),
            []
        );
        assert_eq!(occupancy.changed(node, 2, room("next"), true), None);
        let asked = [1, 2, 2, 2].map(|latest| occupancy.heard(node, latest));
        assert_eq!(asked, [false, true, true, true]);
        let turns = occupancy.snapshot(node, snapshot(2, 0, false, &["own", "next"]));
        assert_eq!(turns.len(), 3);
        assert!(!occupancy.heard(node, 2));
        assert!(occupancy.changed(node, 3, room("new"), true).is_some());
    }

    #[test]
    fn the_first_and_the_last_node_count() {
        let (a, b) = (NodeId::new(1), NodeId::new(2));
        let mut table = Occupancy::default();
        let x = room("x");
        assert_eq!(
            table.change(a, x.clone(), true),
            (1, Some(Turn::Begun(x.clone())))
        );
        assert_eq!(table.changed(b, 1, x.clone(), true), None);
        assert_eq!(table.change(a, x.clone(), false), (2, None));
        assert_eq!(
            table.changed(b, 2, x.clone(), false),
            Some(Turn::Ended(x.clone()))
        );
        assert_eq!(table.changed(b, 1, x, true), None, "old");
        assert!(table.rooms.is_empty());
    }

    #[test]
    fn a_snapshot_is_a_difference() {
        let (a, b) = (NodeId::new(1), NodeId::new(2));
        let mut table = Occupancy::default();
        table.changed(a, 1, room("old"), true);
        table.changed(a, 2, room("stays"), true);
        table.changed(b, 1, room("shared"), true);
        assert_eq!(table.snapshot(a, snapshot(9, 0, true, &["stays"])), []);
        let turns = table.snapshot(a, snapshot(9, 1, false, &["shared", "new"]));
        let expected = [Turn::Ended(room("old")), Turn::Begun(room("new"))];
        assert_eq!(turns, expected);
        assert_eq!(table.version(a), 9);
        let mut turns = table.forget(a);
        turns.sort_by_key(|turn| format!("{turn:?}"));
        assert_eq!(
            turns,
            [Turn::Ended(room("new")), Turn::Ended(room("stays"))]
        );
        assert_eq!(table.held(b), [room("shared")]);
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
    fn a_snapshot_may_be_overtaken() {
        let a = NodeId::new(1);
        let mut table = Occupancy::default();
        // This node is new to the cluster, and the answer to its question comes late.
        table.changed(a, 7, room("y"), true);
        table.changed(a, 8, room("x"), false);
        table.changed(a, 10, room("z"), true);
        let turns = table.snapshot(a, snapshot(6, 0, false, &["x"]));
        assert_eq!(
            turns,
            [],
            "what is known already is not said again, nor what has ended"
        );
        assert_eq!(table.version(a), 8, "the ninth is missing");
        let mut held = table.held(a);
        held.sort_by_key(|held| format!("{held:?}"));
        assert_eq!(held, [room("y"), room("z")]);
        table.snapshot(a, snapshot(9, 0, false, &["y"]));
        assert_eq!(table.version(a), 10);
        assert_eq!(table.held(a).len(), 2);
        assert_eq!(table.snapshot(a, snapshot(9, 0, false, &[])), [], "too old");
        assert_eq!(table.held(a).len(), 2);
    }

    #[test]
    fn of_a_node_that_is_gone_members_end_before_their_sockets() {
        use proto::SocketId;
        use proto::envelope::Seat;
        let a = NodeId::new(1);
        let seat = |number, name| Seat {
            socket: SocketId::new(a, 0, number),
            room: RoomName::parse(name).unwrap(),
            user: None,
        };
        let (one, two) = (seat(1, "x"), seat(2, "x"));
        let mut table = Occupancy::default();
        let all = [
            Held::Room(RoomName::parse("x").unwrap()),
            Held::Socket(one.clone()),
            Held::Member(one.clone()),
            Held::Member(two.clone()),
            Held::Member(seat(1, "y")),
        ];
        for held in &all {
            let (_, turn) = table.change(a, held.clone(), true);
            assert_eq!(turn, Some(Turn::Begun(held.clone())));
        }
        let (_, turn) = table.change(a, Held::Member(two), false);
        assert!(turn.is_some_and(|turn| turn.is_of_a_socket()));
        let turns = table.forget(a);
        assert_eq!(turns.len(), 4);
        assert_eq!(turns[2], Turn::Ended(Held::Socket(one)));
        assert!(!turns[3].is_of_a_socket());
        assert_eq!(table.held(a), []);
    }

    #[test]
    fn what_was_missed_is_asked_for() {
        let a = NodeId::new(1);
        let mut table = Occupancy::default();
        assert!(!table.heard(a, 0), "it has none");
        assert!(!table.heard(a, 1), "it may be on its way");
        table.changed(a, 1, room("x"), true);
        assert!(!table.heard(a, 1));
        table.changed(a, 3, room("z"), true);
        assert!(!table.heard(a, 3));
        assert!(table.heard(a, 3), "the second is missing");
        table.snapshot(a, snapshot(3, 0, false, &["x", "z"]));
        assert!(!table.heard(a, 3) && !table.heard(a, 3));
    }
}
