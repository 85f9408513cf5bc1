//! Which other nodes are up: a table kept by heartbeats. Pure; `now` is told.

use std::collections::HashMap;
use std::time::Duration;

use proto::NodeId;
use proto::envelope::Heartbeat;
use tokio::time::Instant;

/// Another node, as it last described itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// Its id.
    pub id: NodeId,
    /// Its own words.
    pub heartbeat: Heartbeat,
}

/// Another node that speaks a version of the protocol which this one does not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its id.
    pub id: NodeId,
    /// The version that it speaks.
    pub version: u32,
}

/// Nodes that are up, and cannot be read.
#[derive(Debug, Default)]
pub(crate) struct Strangers(HashMap<NodeId, (u32, Instant)>);

/// Most of them that are remembered: whoever draws an id for each message is told of so often, and no more.
const STRANGERS_MAX: usize = 64;

pub(crate) struct Membership {
    peers: HashMap<NodeId, (Peer, Instant)>,
    /// Those that do not listen, and when they were last heard: they are down, and nobody knows whether for good.
    missing: HashMap<NodeId, Instant>,
    timeout: Duration,
}

impl Membership {
    /// Peers are down when they were not heard of for `timeout`.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            peers: HashMap::new(),
            missing: HashMap::new(),
            timeout,
        }
    }

    /// Says whether the peer was not up.
    pub(crate) fn heard(&mut self, id: NodeId, heartbeat: Heartbeat, now: Instant) -> bool {
        self.missing.remove(&id);
        let peer = Peer { id, heartbeat };
        self.peers.insert(id, (peer, now)).is_none()
    }

    /// A peer does not listen: it is down, and gone if it is not heard before its time is over. Says whether it was up.
    pub(crate) fn miss(&mut self, id: NodeId) -> bool {
        let Some((_, heard)) = self.peers.remove(&id) else {
            return false;
        };
        self.missing.insert(id, heard);
        true
    }

    /// A peer has left. Says whether it was not gone already.
    pub(crate) fn leave(&mut self, id: NodeId) -> bool {
        let up = self.peers.remove(&id).is_some();
        self.missing.remove(&id).is_some() || up
    }

    /// Takes out those that are gone: they were not heard of for too long. Says of each whether it was up until now.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(NodeId, bool)> {
        let silent = |heard: Instant| now.duration_since(heard) > self.timeout;
        let peers = self.peers.extract_if(|_, (_, heard)| silent(*heard));
        let peers = peers.map(|(id, _)| (id, true));
        let missing = self.missing.extract_if(|_, heard| silent(*heard));
        peers.chain(missing.map(|(id, _)| (id, false))).collect()
    }

    /// After an outage of the bus: nobody could be heard, so nobody is to blame for silence.
    pub(crate) fn forgive(&mut self, now: Instant) {
        let peers = self.peers.values_mut().map(|(_, heard)| heard);
        for heard in peers.chain(self.missing.values_mut()) {
            *heard = now;
        }
    }

    pub(crate) fn knows(&self, id: NodeId) -> bool {
        self.peers.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.peers.keys().copied()
    }

    /// Those that are up, and those that may be again.
    pub(crate) fn ids_not_gone(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.ids().chain(self.missing.keys().copied())
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &Peer> + '_ {
        self.peers.values().map(|(peer, _)| peer)
    }
}

impl Strangers {
    /// Says whether the node is new.
    pub(crate) fn heard(&mut self, id: NodeId, version: u32, now: Instant) -> bool {
        let known = self.0.contains_key(&id);
        let told = known || self.0.len() < STRANGERS_MAX;
        if told {
            self.0.insert(id, (version, now));
        }
        told && !known
    }

    /// Forgets those that were not heard of for so long.
    pub(crate) fn expire(&mut self, timeout: Duration, now: Instant) {
        self.0
            .retain(|_, (_, heard)| now.duration_since(*heard) <= timeout);
    }

    pub(crate) fn all(&self) -> impl ExactSizeIterator<Item = Unreadable> + '_ {
        let stranger = |(id, (version, _)): (&NodeId, &(u32, Instant))| Unreadable {
            id: *id,
            version: *version,
        };
        self.0.iter().map(stranger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat() -> Heartbeat {
        Heartbeat {
            name: "node-0".into(),
            version: "0".into(),
            started_at_ms: 0,
            sockets: 0,
            rooms: 0,
            draining: false,
            occupancy: 0,
            number: 0,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_is_new_once_and_many_are_not_counted() {
        let timeout = Duration::from_secs(5);
        let now = Instant::now();
        let mut strangers = Strangers::default();
        let mut heard = |nth| strangers.heard(NodeId::new(nth), 9, now);
        let new = (0..1000).chain(0..1000).filter(|nth| heard(*nth)).count();
        assert_eq!((new, strangers.all().len()), (STRANGERS_MAX, STRANGERS_MAX));
        let one = strangers
            .all()
            .find(|stranger| stranger.id == NodeId::new(3));
        assert_eq!(one.unwrap().version, 9);
        let later = now + timeout;
        assert!(!strangers.heard(NodeId::new(3), 9, later));
        strangers.expire(timeout, later + Duration::from_millis(1));
        assert_eq!(
            strangers
                .all()
                .map(|stranger| stranger.id)
                .collect::<Vec<_>>(),
            [NodeId::new(3)]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_takes_a_peer_down() {
        let timeout = Duration::from_secs(5);
        let (start, one, two) = (Instant::now(), NodeId::new(1), NodeId::new(2));
        let mut table = Membership::new(timeout);
        assert!(table.heard(one, heartbeat(), start));
        assert!(table.heard(two, heartbeat(), start));
        assert!(!table.heard(two, heartbeat(), start + timeout));
        let later = start + timeout + Duration::from_millis(1);
        assert_eq!(table.expire(later), [(one, true)]);
        assert_eq!(table.ids().collect::<Vec<_>>(), [two]);
        table.forgive(later + timeout);
        assert!(table.expire(later + timeout).is_empty());
        assert!(table.leave(two) && !table.leave(two));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_missed_is_gone_in_its_time() {
        let timeout = Duration::from_secs(5);
        let (start, one, two) = (Instant::now(), NodeId::new(1), NodeId::new(2));
        let mut table = Membership::new(timeout);
        for id in [one, two] {
            table.heard(id, heartbeat(), start);
            assert!(table.miss(id) && !table.miss(id));
        }
        assert_eq!(table.ids().count(), 0);
        assert_eq!(table.ids_not_gone().count(), 2);
        assert!(table.expire(start + timeout).is_empty());
        assert!(table.heard(two, heartbeat(), start + timeout), "up again");
        let later = start + timeout + Duration::from_millis(1);
        assert_eq!(table.expire(later), [(one, false)]);
        assert!(table.miss(two) && table.leave(two) && !table.leave(two));
        assert_eq!(table.ids_not_gone().count(), 0);
    }
}
