//! Which rooms this node listens to, and from when on it can be sure to hear them. Pure; `now` is told.
//!
//! A subscription counts only from the time that the bus has proved it. The proof is a round: after the
//! SUB, on the same connection, one message that the server itself answers and one to every other node.
//! An answer of a peer shows that the peer's NATS server, too, has heard of the subscription, because
//! servers pass on interest and messages between them in order. Joins that come while a round is under
//! way share the next one; and the more nodes there are to ask, the longer it is until then, so that what a node asks in a
//! second is bounded, however many nodes and joins there are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use proto::{NodeId, RoomName};
use tokio::time::Instant;

pub(crate) struct Interest {
    rooms: HashMap<RoomName, Room>,
    /// Rooms that were released, in the order of their time; some may be wanted again.
    lingering: VecDeque<(Instant, RoomName)>,
    round: Option<Round>,
    /// What the next round will prove.
    next: Proof,
    /// Not before then does the next round begin.
    next_at: Option<Instant>,
    linger: Duration,
    lingering_max: usize,
    round_timeout: Duration,
}

/// A probe for each so much time: 500 in a second. With a hundred nodes a room that is new to this one waits for up to
/// 200 ms, while joins follow each other; the first does not.
const PROBE_INTERVAL: Duration = Duration::from_millis(2);

struct Room {
    state: RoomState,
    /// Set while nobody wants the room, to the time when it is let go.
    until: Option<Instant>,
}

#[derive(PartialEq)]
enum RoomState {
    Unproved,
    /// Members were let in without the proof, which is still to come.
    Overdue,
    Proved,
}

#[derive(Default)]
struct Proof {
    rooms: Vec<RoomName>,
    /// The whole link is being proved, after it came back.
    link: bool,
}

struct Round {
    proof: Proof,
    server: bool,
    peers: HashSet<NodeId>,
    deadline: Instant,
}

/// What a wish for a room needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Nothing: messages are heard already.
    Ready,
    /// A subscription, and a round.
    Subscribe,
    /// The round that is to come or under way.
    Wait,
}

/// What a finished round proved.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Proved {
    /// Rooms that are wanted and heard from now on.
    pub(crate) rooms: Vec<RoomName>,
    /// Whether the link as a whole was proved.
    pub(crate) link: bool,
    /// Rooms of which something may have been missed since their members were let in without proof.
    pub(crate) late: Vec<RoomName>,
    /// The peers that did not answer.
    pub(crate) silent: Vec<NodeId>,
}

impl Interest {
    pub(crate) fn new(linger: Duration, lingering_max: usize, round_timeout: Duration) -> Self {
        Self {
            rooms: HashMap::new(),
            lingering: VecDeque::new(),
            round: None,
            next: Proof::default(),
            next_at: None,
            linger,
            lingering_max,
            round_timeout,
        }
    }

    /// The room has a local member.
    pub(crate) fn want(&mut self, room: RoomName) -> Wish {
        if let Some(known) = self.rooms.get_mut(&room) {
            known.until = None;
            return match known.state {
                RoomState::Proved => Wish::Ready,
                RoomState::Unproved | RoomState::Overdue => Wish::Wait,
            };
        }
        let unproved = Room {
            state: RoomState::Unproved,
            until: None,
        };
        self.rooms.insert(room.clone(), unproved);
        self.next.rooms.push(room);
        Wish::Subscribe
    }

    /// The room has no local member any more. Lingers, because people reload pages. Takes out the oldest, if too many
    /// linger now; the caller unsubscribes.
    pub(crate) fn release(&mut self, room: &RoomName, now: Instant) -> Vec<RoomName> {
        if let Some(known) = self.rooms.get_mut(room) {
            let until = now + self.linger;
            known.until = Some(until);
            self.lingering.push_back((until, room.clone()));
        }
        let mut gone = Vec::new();
        while self.lingering.len() > self.lingering_max {
            gone.extend(self.let_go_of_the_oldest());
        }
        gone
    }

    /// Gives the room that was released first, unless it was wanted again.
    fn let_go_of_the_oldest(&mut self) -> Option<RoomName> {
        let (until, name) = self.lingering.pop_front()?;
        let released = |room: &Room| room.until == Some(until);
        if !self.rooms.get(&name).is_some_and(released) {
            return None;
        }
        self.rooms.remove(&name);
        give_back(&mut self.rooms);
        Some(name)
    }

    /// Whether the room is listened to, proved or not.
    pub(crate) fn knows(&self, room: &RoomName) -> bool {
        self.rooms.contains_key(room)
    }

    /// The link is to be proved again.
    pub(crate) fn prove_link(&mut self) {
        self.next.link = true;
    }

    /// Takes out the rooms whose time is over; the caller unsubscribes.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<RoomName> {
        let mut gone = Vec::new();
        while let Some((until, _)) = self.lingering.front()
            && *until <= now
        {
            gone.extend(self.let_go_of_the_oldest());
        }
        if self.lingering.is_empty() {
            self.lingering = VecDeque::new();
        }
        gone
    }

    /// Starts the next round when one is needed and due, and none is under way; the caller probes these peers.
    pub(crate) fn start_round(
        &mut self,
        peers: impl Iterator<Item = NodeId>,
        now: Instant,
    ) -> bool {
        if !self.needs_round() || self.next_at.is_some_and(|at| now < at) {
            return false;
        }
        let peers: HashSet<_> = peers.collect();
        // A node that has many more peers than that asks more of them in a second, rather than keep joins waiting.
        let pace = PROBE_INTERVAL * u32::try_from(peers.len()).unwrap_or(u32::MAX);
        self.next_at = Some(now + pace.min(self.round_timeout / 2));
        self.round = Some(Round {
            proof: std::mem::take(&mut self.next),
            server: false,
            peers,
            deadline: now + self.round_timeout,
        });
        true
    }

    /// When the next round begins, where one waits only for its time.
    pub(crate) fn round_due(&self) -> Option<Instant> {
        self.next_at.filter(|_| self.needs_round())
    }

    fn needs_round(&self) -> bool {
        self.round.is_none() && (self.next.link || !self.next.rooms.is_empty())
    }

    /// The server answered the round's probe.
    pub(crate) fn server_answered(&mut self) {
        if let Some(round) = &mut self.round {
            round.server = true;
        }
    }

    /// A peer answered, or is no more.
    pub(crate) fn peer_answered(&mut self, peer: NodeId) {
        if let Some(round) = &mut self.round {
            round.peers.remove(&peer);
        }
    }

    /// The connection is another: what the round has asked proves nothing about it.
    pub(crate) fn abandon_round(&mut self) {
        if let Some(round) = self.round.take() {
            self.next.rooms.extend(round.proof.rooms);
            self.next.link |= round.proof.link;
        }
    }

    /// Ends the round when everybody answered, or at its deadline: a peer that is silent for so long cannot
    /// publish either, and a socket that waits for its own room to open has waited enough. Without the
    /// server's answer the proof is still owed, by the next round. With `offline`, ends at once: there is
    /// nobody to hear.
    pub(crate) fn end_round(&mut self, offline: bool, now: Instant) -> Option<Proved> {
        let over = self.round.as_ref().is_some_and(|round| {
            offline || round.deadline <= now || (round.server && round.peers.is_empty())
        });
        if !over {
            return None;
        }
        let Round {
            proof,
            server,
            peers,
            ..
        } = self.round.take()?;
        let settled = server || offline;
        let mut proved = Proved {
            link: proof.link && settled,
            ..Proved::default()
        };
        self.next.link |= proof.link && !settled;
        for name in proof.rooms {
            let Some(room) = self.rooms.get_mut(&name) else {
                continue;
            };
            let wanted = room.until.is_none();
            if !settled {
                room.state = RoomState::Overdue;
                self.next.rooms.push(name.clone());
            } else {
                let before = std::mem::replace(&mut room.state, RoomState::Proved);
                if before == RoomState::Overdue && wanted && !offline {
                    proved.late.push(name.clone());
                }
            }
            if wanted {
                proved.rooms.push(name);
            }
        }
        if !offline {
            proved.silent.extend(peers);
        }
        Some(proved)
    }
}

/// A table that was much larger gives back what it does not need.
pub(crate) fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    const KEPT: usize = 1_024;
    let needed = table.len().max(KEPT);
    if table.capacity() > 4 * needed {
        table.shrink_to(2 * needed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINGERING_MAX: usize = 3;
    const LINGER: Duration = Duration::from_secs(5);
    const TIMEOUT: Duration = Duration::from_secs(1);

    fn room(name: &str) -> RoomName {
        RoomName::parse(name).unwrap()
    }

    fn interest() -> (Interest, Instant) {
        (
            Interest::new(LINGER, LINGERING_MAX, TIMEOUT),
            Instant::now(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_is_ready_when_server_and_peers_answered() {
        let (mut interest, now) = interest();
        let peer = NodeId::new(1);
        assert_eq!(interest.want(room("a")), Wish::Subscribe);
        assert_eq!(interest.want(room("a")), Wish::Wait);
        assert!(interest.start_round([peer].into_iter(), now));
        // Comes too late for this round.
        assert_eq!(interest.want(room("b")), Wish::Subscribe);
        assert!(!interest.start_round([peer].into_iter(), now));
        interest.server_answered();
        assert_eq!(interest.end_round(false, now), None);
        interest.peer_answered(peer);
        let proved = interest.end_round(false, now).unwrap();
        assert_eq!(proved.rooms, [room("a")]);
        assert_eq!(interest.want(room("a")), Wish::Ready);
        let now = interest.round_due().unwrap();
        assert!(interest.start_round(std::iter::empty(), now));
        interest.server_answered();
        assert_eq!(interest.end_round(false, now).unwrap().rooms, [room("b")]);
        assert!(!interest.start_round(std::iter::empty(), now));
    }

    #[tokio::test(start_paused = true)]
    async fn many_joins_do_not_make_many_probes() {
        let (mut interest, now) = interest();
        let peers = || (1..=99).map(NodeId::new);
        let mut rounds = 0;
        for ms in 0..1_000 {
            let now = now + Duration::from_millis(ms);
            interest.want(room(&ms.to_string()));
            rounds += u32::from(interest.start_round(peers(), now));
            interest.server_answered();
            peers().for_each(|peer| interest.peer_answered(peer));
            interest.end_round(false, now);
        }
        assert_eq!(rounds, 6, "the first at once, and then one in 198 ms");
        let due = interest.round_due().unwrap();
        assert!(interest.start_round(peers(), due));
        // However many there are, a join does not wait for long.
        let mut crowded = Interest::new(LINGER, LINGERING_MAX, TIMEOUT);
        crowded.want(room("a"));
        assert_eq!(crowded.round_due(), None, "at once");
        crowded.start_round((1..=5_000).map(NodeId::new), now);
        crowded.end_round(true, now);
        crowded.want(room("b"));
        assert_eq!(crowded.round_due(), Some(now + TIMEOUT / 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_or_bus_holds_a_join_back_for_a_bounded_time() {
        let (mut interest, now) = interest();
        interest.want(room("a"));
        interest.start_round([NodeId::new(1)].into_iter(), now);
        assert_eq!(interest.end_round(false, now), None);
        let proved = interest.end_round(false, now + TIMEOUT).unwrap();
        assert_eq!(proved.rooms, [room("a")]);

        // The proof is still owed.
        assert_eq!(interest.want(room("a")), Wish::Wait);
        let now = now + TIMEOUT;
        assert!(interest.start_round(std::iter::empty(), now));
        interest.server_answered();
        let proved = interest.end_round(false, now).unwrap();
        assert_eq!(proved.late, [room("a")]);
        assert_eq!(interest.want(room("a")), Wish::Ready);

        interest.want(room("b"));
        interest.start_round([NodeId::new(1)].into_iter(), now);
        assert_eq!(interest.end_round(true, now).unwrap().rooms, [room("b")]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_connection_is_proved_anew() {
        let (mut interest, now) = interest();
        interest.want(room("a"));
        interest.prove_link();
        interest.start_round(std::iter::empty(), now);
        interest.server_answered();
        interest.abandon_round();
        assert_eq!(interest.end_round(false, now), None);
        assert!(interest.start_round(std::iter::empty(), now));
        interest.server_answered();
        let proved = interest.end_round(false, now).unwrap();
        assert!(proved.link && proved.rooms == [room("a")]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_lingers_before_it_is_let_go() {
        let (mut interest, now) = interest();
        interest.want(room("a"));
        interest.release(&room("a"), now);
        interest.start_round(std::iter::empty(), now);
        interest.server_answered();
        let nobody_wants_it = Proved::default();
        assert_eq!(interest.end_round(false, now), Some(nobody_wants_it));
        assert!(interest.expire(now + LINGER / 2).is_empty());
        assert_eq!(interest.want(room("a")), Wish::Ready);
        assert!(interest.expire(now + LINGER * 2).is_empty());
        interest.release(&room("a"), now);
        assert_eq!(interest.expire(now + LINGER), [room("a")]);
        assert_eq!(interest.want(room("a")), Wish::Subscribe);
    }

    #[tokio::test(start_paused = true)]
    async fn rooms_linger_up_to_a_number() {
        let (mut interest, now) = interest();
        for name in ["a", "b", "c", "d"] {
            interest.want(room(name));
        }
        for name in ["a", "b", "c"] {
            assert!(interest.release(&room(name), now).is_empty(), "{name}");
        }
        interest.want(room("a"));
        assert!(
            interest.release(&room("d"), now).is_empty(),
            "a has members"
        );
        assert_eq!(interest.release(&room("a"), now), [room("b")], "the oldest");
        for name in ["a", "c", "d"] {
            assert!(interest.knows(&room(name)), "{name}");
        }
        assert_eq!(interest.want(room("b")), Wish::Subscribe);
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_is_left_and_joined_again_takes_no_more_memory() {
        let (mut interest, mut now) = interest();
        interest.want(room("a"));
        for _ in 0..100 {
            now += Duration::from_millis(1);
            assert!(interest.release(&room("a"), now).is_empty());
            assert_eq!(interest.want(room("a")), Wish::Wait);
        }
        assert!(interest.lingering.len() <= LINGERING_MAX);
        assert!(interest.knows(&room("a")));
    }
}
