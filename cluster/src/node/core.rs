//! The loop of a node's side of the bus, and its state.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use metrics::{Counter, Gauge};
use proto::envelope::{self, Answer, Body, Heartbeat, Held, Request, Told};
use proto::{Audience, NodeId, RoomName, wire};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_local;
use tokio::time::Instant;
use tracing::{info, warn};

use super::asking::Asking;
use super::{
    Command, Config, Event, Input, Load, Parcel, Responder, RoomOp, TICK, Wanted, What, lock,
};
use crate::beats::Beats;
use crate::incoming::Incoming;
use crate::interest::{Interest, Wish};
use crate::link::{Change, Link};
use crate::membership::{Membership, Strangers};
use crate::missed::Missed;
use crate::occupancy::{Occupancy, Snapshot, Turn};
use crate::retractable::Retractable;
use crate::{Bus, LinkState, Peer, Seldom, Subject, Subjects};

/// Times that something of a node was lost between two NATS servers.
static LOSSES: Seldom = Seldom::new();
/// Nodes that speak a version of the protocol which this one does not read.
static STRANGERS: Seldom = Seldom::new();

/// Questions to the server that are remembered while it is silent; then the link is away.
const LIVENESS_MAX: usize = 16;

/// By how much one node may hear of a change later than another.
const SAID_AFTER: Duration = Duration::from_millis(300);

/// Most turns that are kept in case the node that speaks is dead.
const UNSAID_MAX: usize = 10_000;

/// Of what was held by nodes that may come back from the dead, so much is remembered, and what the latest of them held.
/// Half of a large cluster may be cut off at one time.
pub(super) const RETRACTABLE_MAX: usize = 200_000;

/// Rooms and sockets in one message of a snapshot: of the longest names, far below what a bus takes.
const SNAPSHOT_HELD_MAX: usize = 1_000;

/// Sockets of nodes that are gone of which is told in one tick: the way to the application is bounded.
const SAID_IN_A_TICK_MAX: usize = 500;

/// The loop and its state. It never waits for the network.
pub(super) struct Core<B> {
    pub(super) config: Config,
    pub(super) bus: Rc<B>,
    pub(super) subjects: Arc<Subjects>,
    pub(super) load: Box<dyn Fn() -> Load + Send>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) rooms: mpsc::UnboundedSender<RoomOp>,
    pub(super) urgent: mpsc::Sender<Parcel>,
    pub(super) data: mpsc::Sender<Parcel>,
    pub(super) link_state: watch::Sender<LinkState>,
    pub(super) there: watch::Sender<bool>,
    pub(super) payload_max: Arc<AtomicUsize>,
    pub(super) missed: Arc<Mutex<Missed>>,
    pub(super) link: Link,
    pub(super) membership: Membership,
    pub(super) strangers: Strangers,
    pub(super) beats: Beats,
    pub(super) interest: Interest,
    pub(super) asking: Asking,
    /// The probes of the round under way: to the server, or to a peer.
    pub(super) probes: HashMap<u64, Option<NodeId>>,
    pub(super) heartbeat_due: Instant,
    pub(super) overflows: u64,
    pub(super) incoming: Incoming,
    /// From the return of the link to its proof, sockets are not told of the gap yet: it still grows.
    pub(super) proving_link: bool,
    /// Numbers of the signs of life that the server was asked for, since the last that it gave.
    pub(super) liveness: Vec<u64>,
    /// Peers that did not answer the last round in time, until they are heard again: the next does not wait
    /// for them.
    pub(super) silent: HashSet<NodeId>,
    pub(super) occupancy: Occupancy,
    /// Since when this node may speak for others, or will.
    pub(super) settled_at: Option<Instant>,
    /// What the node that speaks should have said.
    pub(super) unsaid: VecDeque<(Instant, Turn)>,
    /// For how many of these there was no room, and when there was none for the last of them.
    pub(super) unsaid_surplus: Option<(Instant, u64)>,
    /// What this node said has ended, because its node seemed to be dead.
    pub(super) retractable: Retractable,
    /// What is about to be said of sockets of nodes that are gone.
    pub(super) saying: VecDeque<Turn>,
    /// Peers of which another node has said meanwhile what was new.
    pub(super) spoken_for: HashSet<NodeId>,
    /// For how long this node was deaf the last time, and whether others were not.
    pub(super) deaf: Duration,
    pub(super) others_spoke: bool,
    pub(super) ticked_at: Instant,
    pub(super) left_at: Option<Instant>,
    /// Those who have missed some of what this node holds.
    pub(super) snapshot_wanted: Vec<Option<Responder>>,
    /// Nodes that are up, this one included.
    pub(super) nodes: Gauge,
    pub(super) nodes_unreadable: Gauge,
    pub(super) connects: Counter,
}

impl<B: Bus> Core<B> {
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut wishes: mpsc::UnboundedReceiver<Wanted>,
        mut inputs: mpsc::Receiver<Input>,
    ) {
        let mut tick = tokio::time::interval(match self.config.alone {
            // There is no connection to look at.
            true => (self.config.heartbeat_interval / 2).clamp(TICK, 10 * TICK),
            false => TICK,
        });
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let round_due = self.interest.round_due();
            let due = async {
                match round_due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                Some(wanted) = wishes.recv() => self.on_wish(wanted).await,
                Some(input) = inputs.recv() => self.on_input(input).await,
                _ = tick.tick() => self.on_tick().await,
                () = due => {}
            }
            self.advance_round(Instant::now()).await;
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Peers(sender) => {
                let _ = sender.send(self.membership.peers().cloned().collect());
            }
            Command::Unreadable(sender) => {
                let _ = sender.send(self.strangers.all().collect());
            }
            Command::StopServing(sender) => {
                let _ = self.rooms.send(RoomOp::StopServing(sender));
            }
        }
    }

    async fn on_wish(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Want(room) => match self.interest.want(room.clone()) {
                Wish::Ready => self.emit(Event::RoomReady(room)).await,
                // Without a bus nobody else publishes, and a subscription would only take memory.
                Wish::Subscribe if self.config.alone => {}
                Wish::Subscribe => {
                    let _ = self.rooms.send(RoomOp::Subscribe(room));
                }
                Wish::Wait => {}
            },
            Wanted::Release(room) => {
                let gone = self.interest.release(&room, Instant::now());
                self.unsubscribe(gone);
            }
            Wanted::Begin(held) => self.change(held, true).await,
            Wanted::End(held) => self.change(held, false).await,
        }
    }

    async fn change(&mut self, held: Held, begun: bool) {
        let node = self.config.node;
        let (version, turn) = self.occupancy.change(node, held.clone(), begun);
        let told = match begun {
            true => Told::Begun(held),
            false => Told::Ended(held),
        };
        // When it does not get there, the next heartbeats show that something is missing.
        self.tell_held(self.subjects.all(), envelope::Occupancy { version, told });
        // Of its sockets the host has told.
        let turn = turn.filter(|turn| !turn.is_of_a_socket());
        self.turn(node, turn).await;
    }

    /// Tells other nodes of what this one holds.
    fn tell_held(&self, subject: Subject, occupancy: envelope::Occupancy) -> bool {
        let parcel = Parcel {
            subject,
            reply: None,
            what: What::Body(Box::new(Body::Occupancy(occupancy)), None),
        };
        let there = self.link.state() == LinkState::Connected && !self.config.alone;
        let told = there && self.data.try_send(parcel).is_ok();
        if there && !told {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
        }
        told
    }

    /// Tells those who asked. To tell all the others, too, would cost each of them as much as it costs whoever is new to
    /// the cluster; but where most have asked, as after the return of this node, one message for all is less to send.
    fn tell_all_held(&mut self) {
        let askers = std::mem::take(&mut self.snapshot_wanted);
        let most = 2 * askers.len() > self.membership.ids().count();
        let replies: Option<Vec<_>> = askers
            .into_iter()
            .map(|asker| asker.map(|asker| asker.reply))
            .collect();
        match replies.filter(|_| !most) {
            Some(replies) => replies
                .into_iter()
                .for_each(|reply| self.tell_all_held_to(&reply)),
            None => self.tell_all_held_to(&self.subjects.all()),
        }
    }

    fn tell_all_held_to(&self, subject: &Subject) {
        let version = self.occupancy.version(self.config.node);
        let held = self.occupancy.held(self.config.node);
        // At least one message, though there may be nothing.
        let parts = held.len().div_ceil(SNAPSHOT_HELD_MAX).max(1);
        let mut some = held.chunks(SNAPSHOT_HELD_MAX);
        for part in 0..parts {
            let told = Told::Snapshot {
                held: some.next().unwrap_or_default().to_vec(),
                part: part as u32,
                more: part + 1 < parts,
            };
            if !self.tell_held(subject.clone(), envelope::Occupancy { version, told }) {
                // A torso counts for nothing; it will be asked for again.
                return;
            }
        }
    }

    fn on_occupancy(&mut self, peer: NodeId, occupancy: envelope::Occupancy) -> Vec<Turn> {
        // Of a node that is down nothing would ever be forgotten. When it is up, it is asked for all.
        if !self.membership.knows(peer) {
            return Vec::new();
        }
        let version = occupancy.version;
        let turn = match occupancy.told {
            Told::Snapshot { held, part, more } => {
                let snapshot = Snapshot {
                    version,
                    part,
                    more,
                    held,
                };
                return self.occupancy.snapshot(peer, snapshot);
            }
            Told::Begun(held) => self.occupancy.changed(peer, version, held, true),
            Told::Ended(held) => self.occupancy.changed(peer, version, held, false),
        };
        Vec::from_iter(turn)
    }

    /// The node that has been up for longest says what has become of rooms, and of the sockets of nodes that are gone. What it says the others do not; but
    /// as it may be dead already, they keep what it should have said since it was last heard.
    async fn turn(&mut self, cause: NodeId, turns: impl IntoIterator<Item = Turn>) {
        let now = Instant::now();
        if self.speaks(now) {
            for turn in turns {
                self.say(turn).await;
            }
            return;
        }
        if self.elder() == Some(cause) {
            // Of its own rooms it speaks before it tells anybody.
            return;
        }
        self.unsaid
            .extend(turns.into_iter().map(|turn| (now, turn)));
        let surplus = self.unsaid.len().saturating_sub(UNSAID_MAX);
        if let Some((at, _)) = self.unsaid.drain(..surplus).next_back() {
            let (_, before) = self.unsaid_surplus.unwrap_or((at, 0));
            self.unsaid_surplus = Some((at, before + surplus as u64));
        }
    }

    async fn say(&mut self, turn: Turn) {
        if turn.is_of_a_socket() {
            self.saying.push_back(turn);
        } else {
            self.say_now(turn).await;
        }
    }

    async fn say_now(&self, turn: Turn) {
        self.emit(match turn {
            Turn::Begun(Held::Room(room)) => Event::Occupied(room),
            Turn::Ended(Held::Room(room)) => Event::Vacated(room),
            Turn::Begun(held) => Event::Found(held),
            Turn::Ended(held) => Event::Lost(held),
        })
        .await;
    }

    /// Whether it is for this node to speak. Not before it has had the time to hear of older ones.
    fn speaks(&self, now: Instant) -> bool {
        let settled = self.settled_at.is_some_and(|at| at <= now) || self.config.alone;
        settled && self.elder().is_none()
    }

    /// The node that has been up for longest, where that is another.
    fn elder(&self) -> Option<NodeId> {
        let age = |peer: &&Peer| (peer.heartbeat.started_at_ms, peer.id);
        let eldest = self.membership.peers().min_by_key(age)?;
        let mine = (self.config.started_at_ms, self.config.node);
        (age(&eldest) < mine).then_some(eldest.id)
    }

    /// All that a node held has ended with it, and of some of that it has to be said.
    async fn forget(&mut self, peer: NodeId, is_wanted: impl Fn(&Turn) -> bool) {
        let turns = self.occupancy.forget(peer).into_iter();
        if self.spoken_for.remove(&peer) && self.others_spoke {
            // It went while this node was deaf, and was not heard since: another has said so.
            return;
        }
        self.say_ended(peer, turns.filter(is_wanted).collect())
            .await;
    }

    async fn say_ended(&mut self, peer: NodeId, turns: Vec<Turn>) {
        if turns.is_empty() {
            return;
        }
        if self.speaks(Instant::now()) {
            let held = turns.iter().map(|turn| turn.held().clone());
            for (node, held) in self.retractable.ended(peer, held) {
                count_lost("taken_back", held as u64);
                warn!(%node, held, "too much has ended with dead nodes: if this one comes back, its sockets are not given back");
            }
        }
        self.turn(peer, turns).await;
    }

    /// A node is back. Where this one has said that its rooms are vacated and its sockets gone, it is the one to say
    /// that they are not, whoever speaks by now.
    async fn retract(&mut self, peer: NodeId, turns: Vec<Turn>) -> Vec<Turn> {
        let (mut back, others): (Vec<_>, Vec<_>) = turns
            .into_iter()
            .partition(|turn| matches!(turn, Turn::Begun(held) if self.retractable.take(held)));
        self.retractable.sockets_told(peer);
        // A socket is there before it is a member.
        back.sort_by_key(|turn| matches!(turn.held(), Held::Member(_)));
        for turn in back {
            self.say(turn).await;
        }
        others
    }

    async fn on_input(&mut self, input: Input) {
        let now = Instant::now();
        if matches!(input, Input::Answer(..) | Input::NoResponders(_)) {
            // Only what answers this node: one whose words get lost may go on to hear others.
            self.link.heard(now);
        }
        match input {
            Input::Heartbeat(peer, heartbeat) => {
                self.silent.remove(&peer);
                let name = heartbeat.name.clone();
                let latest = heartbeat.occupancy;
                if self.spoken_for.contains(&peer) {
                    self.was_there(peer, heartbeat.number);
                }
                let missed = self.beats.heard(peer, heartbeat.number, now);
                // Of what was missed before the link was proved, sockets will be told all the same.
                if missed && self.link.state() == LinkState::Connected && !self.proving_link {
                    if let Some(times) = LOSSES.add(now, 1) {
                        warn!(node = %peer, %name, times, "something of a node was lost on the way");
                    }
                    self.gap(None, "bus_outage").await;
                }
                if self.membership.heard(peer, heartbeat, now) {
                    info!(node = %peer, %name, "node up");
                    self.count_nodes();
                    // Let it know of this one without the wait for the next turn; with the next tick, because others
                    // may be new, too, and one heartbeat is for all of them.
                    self.heartbeat_due = now;
                }
                if self.elder() == Some(peer) {
                    // It lives, and has said what there was to say a while ago.
                    let said = now - SAID_AFTER;
                    self.unsaid.retain(|(at, _)| *at > said);
                    self.unsaid_surplus.take_if(|(at, _)| *at <= said);
                }
                if latest == self.occupancy.version(peer) {
                    self.spoken_for.remove(&peer);
                }
                if self.occupancy.heard(peer, latest) {
                    self.ask_for_all(peer);
                }
            }
            Input::Goodbye(peer) => self.left(peer).await,
            Input::Stranger(node, version) => {
                if self.strangers.heard(node, version, now)
                    && let Some(nodes) = STRANGERS.add(now, 1)
                {
                    let reads = wire::VERSIONS;
                    warn!(%node, nodes, version, ?reads, "a node is up that speaks a version this one does not read: they do not hear each other");
                }
            }
            Input::Occupancy(peer, occupancy, _share) => {
                let whole = is_whole(&occupancy);
                let mut turns = self.on_occupancy(peer, occupancy);
                if whole {
                    turns = self.retract(peer, turns).await;
                    if self.spoken_for.remove(&peer) {
                        turns.clear();
                    }
                }
                turns.retain(|turn| !turn.is_of_a_socket());
                for turn in &turns {
                    // Anew: whoever speaks says so.
                    self.retractable.take(turn.held());
                }
                self.turn(peer, turns).await;
            }
            Input::OccupancyWanted(asker) => {
                // When most have asked, all are told.
                if self.snapshot_wanted.len() <= self.membership.ids().count() {
                    self.snapshot_wanted.push(asker);
                }
            }
            Input::Answer(number, from) => {
                if self.probes.contains_key(&number) {
                    self.interest.peer_answered(from);
                }
            }
            Input::NoResponders(number) if self.liveness.contains(&number) => {
                self.liveness.clear();
                lock(&self.missed).confirm(number);
            }
            Input::NoResponders(number) => match self.probes.get(&number).copied() {
                Some(None) => self.interest.server_answered(),
                Some(Some(peer)) => self.miss(peer),
                None => {}
            },
            Input::NotListening(peer) => self.miss(peer),
            Input::NotSubscribed(room, responder) => {
                if !self.interest.knows(&room) {
                    responder.respond(Answer::Count(0));
                }
            }
        }
    }

    /// A peer does not listen. As it may have lost nothing but its connection, and come back in a moment, what it holds
    /// has not ended yet.
    fn miss(&mut self, peer: NodeId) {
        if self.membership.miss(peer) {
            info!(node = %peer, why = "does not listen", "node down");
        }
        self.wait_no_more(peer);
    }

    async fn left(&mut self, peer: NodeId) {
        let up = self.membership.knows(peer);
        if self.membership.leave(peer) {
            log_gone(peer, up, "said goodbye");
            // It has seen to its sockets itself.
            self.forget(peer, |turn| !turn.is_of_a_socket()).await;
        }
        self.wait_no_more(peer);
    }

    fn wait_no_more(&mut self, peer: NodeId) {
        self.interest.peer_answered(peer);
        self.silent.remove(&peer);
        self.count_nodes();
    }

    /// This node was deaf for so long. When others took it for dead meanwhile, one of them spoke, and what is new to
    /// this one has been said.
    fn was_deaf(&mut self, deaf: Duration) {
        if deaf >= self.config.node_timeout {
            self.spoken_for = self.membership.ids_not_gone().collect();
            self.deaf = deaf;
            self.others_spoke = false;
        }
    }

    /// A peer is heard for the first time since this node was deaf. By the number of the heartbeat it is seen whether
    /// it has been connected all the while, as one is that was heard by others, or was away, too.
    fn was_there(&mut self, peer: NodeId, number: u64) {
        let beats = u32::try_from(number).unwrap_or(u32::MAX);
        let connected = self.config.heartbeat_interval.saturating_mul(beats);
        if number == 0 || connected > self.deaf {
            self.others_spoke = true;
        } else {
            self.spoken_for.remove(&peer);
        }
    }

    async fn on_tick(&mut self) {
        let now = Instant::now();
        let stopped = now - std::mem::replace(&mut self.ticked_at, now);
        if stopped > self.config.heartbeat_interval {
            // It was this process that stood still, and not the others that were silent.
            self.membership.forgive(now);
            self.was_deaf(stopped);
        }
        let status = self.bus.status();
        match self.link.look(status, now) {
            Change::None => {}
            Change::Returned => {
                if let Some(left_at) = self.left_at.take() {
                    self.was_deaf(now - left_at);
                }
                self.payload_max
                    .store(self.bus.payload_max(), Ordering::Relaxed);
                self.membership.forgive(now);
                self.beats.restart(now);
                lock(&self.missed).lose_unsure();
                self.interest.abandon_round();
                self.probes.clear();
                self.interest.prove_link();
                self.proving_link = true;
                self.heartbeat_due = now;
            }
            Change::Left => {
                warn!("the bus is away");
                self.left_at = Some(now);
                self.proving_link = false;
                lock(&self.missed).lose_unsure();
                if status.connected {
                    // Open but dead: another server, or a new connection, may be better.
                    let bus = Rc::clone(&self.bus);
                    spawn_local(async move { bus.reconnect().await });
                }
            }
        }
        self.strangers.expire(self.config.node_timeout, now);
        self.count_nodes();
        self.connects.absolute(status.connections);
        self.there
            .send_replace(self.link.state() == LinkState::Connected);
        if !self.proving_link {
            self.show_link();
        }
        // What the client of the bus had no room for, and what this node had none for.
        let overflows = status.overflows + self.incoming.overflows();
        if overflows != self.overflows {
            self.overflows = overflows;
            metrics::counter!("unisono_bus_overflows_total").absolute(overflows);
            self.gap(None, "overload").await;
        }
        if self.heartbeat_due <= now {
            self.heartbeat_due = now + self.config.heartbeat_interval;
            self.send_heartbeat();
            #[cfg(feature = "next")]
            self.say_what_is_new();
            let number = self.asking.number();
            self.liveness.push(number);
            let surplus = self.liveness.len().saturating_sub(LIVENESS_MAX);
            self.liveness.drain(..surplus);
            self.probe_server(number);
        }
        if self.link.state() == LinkState::Connected {
            for (peer, up) in self.membership.expire(now) {
                log_gone(peer, up, "silent for too long");
                self.wait_no_more(peer);
                self.forget(peer, |_| true).await;
            }
            if !self.snapshot_wanted.is_empty() {
                self.tell_all_held();
            }
            let settled_at = now + 2 * self.config.heartbeat_interval;
            self.settled_at.get_or_insert(settled_at);
            self.tell_missed();
        }
        if self.speaks(now) {
            if let Some((_, lost)) = self.unsaid_surplus.take() {
                count_lost("said", lost);
                warn!(
                    lost,
                    "the application may not have been told what became of rooms and sockets: the node that should have said so is gone, and too much waited"
                );
            }
            for (_, turn) in std::mem::take(&mut self.unsaid) {
                self.say(turn).await;
            }
        }
        for _ in 0..SAID_IN_A_TICK_MAX {
            let Some(turn) = self.saying.pop_front() else {
                break;
            };
            self.say_now(turn).await;
        }
        let gone = self.interest.expire(now);
        self.unsubscribe(gone);
    }

    fn unsubscribe(&self, rooms: Vec<RoomName>) {
        for room in rooms {
            let _ = self.rooms.send(RoomOp::Unsubscribe(room));
        }
    }

    /// Who is up is known to whoever asks, and shown.
    fn count_nodes(&self) {
        self.asking.set_peers(self.membership.ids());
        self.nodes.set(1.0 + self.membership.ids().count() as f64);
        self.nodes_unreadable.set(self.strangers.all().len() as f64);
    }

    /// What the host sees is `Connected` only once the link is proved: whoever comes before that may
    /// miss something, and is told of the gap.
    fn show_link(&self) {
        let now = self.link.state();
        self.link_state.send_if_modified(|shown| {
            let before = std::mem::replace(shown, now);
            before != now
        });
    }

    fn send_heartbeat(&self) {
        let load = (self.load)();
        let heartbeat = Heartbeat {
            name: self.config.name.clone(),
            version: self.config.version.clone(),
            started_at_ms: self.config.started_at_ms,
            sockets: load.sockets,
            rooms: load.rooms,
            draining: load.draining,
            occupancy: self.occupancy.version(self.config.node),
            // It gets one when it is written.
            number: 0,
        };
        self.urgent(
            self.subjects.heartbeat(),
            None,
            What::Body(Box::new(Body::Heartbeat(heartbeat)), None),
        );
    }

    /// As the next minor release might, says what today's nodes do not know, and asks it of them.
    #[cfg(feature = "next")]
    fn say_what_is_new(&mut self) {
        for subject in [self.subjects.heartbeat(), self.subjects.all()] {
            self.urgent(subject, None, What::Body(Box::new(Body::Unknown), None));
        }
        for peer in self.membership.ids().collect::<Vec<_>>() {
            let asked = Instant::now();
            let answered = self.asking.one(peer, Request::Unknown, None);
            spawn_local(async move {
                let answered = answered.await;
                let ms = asked.elapsed().as_millis();
                info!(node = %peer, ms, ?answered, "asked what is new");
            });
        }
    }

    fn probe_server(&self, number: u64) {
        let reply = self.subjects.reply(self.config.node, number);
        self.urgent(
            self.subjects.void(self.config.node),
            Some(reply),
            What::Void(number),
        );
    }

    fn urgent(&self, subject: Subject, reply: Option<Subject>, what: What) {
        // A writer that is stuck for so long has no use for more heartbeats.
        let parcel = Parcel {
            subject,
            reply,
            what,
        };
        if self.urgent.try_send(parcel).is_err() {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
        }
    }

    /// Other nodes' sockets may have missed what this node could not send.
    fn tell_missed(&mut self) {
        if self.proving_link {
            return;
        }
        // Not in the condition, which would hold the lock until the end of its block.
        let lost = lock(&self.missed).take_lost();
        if let Some(rooms) = lost {
            let parcel = Parcel {
                subject: self.subjects.all(),
                reply: None,
                what: What::Body(Box::new(Body::Missed(rooms)), None),
            };
            if self.data.try_send(parcel).is_err() {
                lock(&self.missed).lose(&Audience::Everyone);
            }
        }
    }

    async fn advance_round(&mut self, now: Instant) {
        let offline = self.link.state() != LinkState::Connected;
        loop {
            if let Some(proved) = self.interest.end_round(offline, now) {
                self.probes.clear();
                self.silent.extend(proved.silent);
                for room in proved.rooms {
                    self.emit(Event::RoomReady(room)).await;
                }
                if !proved.late.is_empty() {
                    self.gap(Some(proved.late), "bus_outage").await;
                }
                if proved.link && !offline && self.proving_link {
                    self.proving_link = false;
                    if !self.config.alone {
                        self.gap(None, "bus_outage").await;
                    }
                    self.show_link();
                }
            }
            // Without a bus nobody is asked.
            let asked = |peer: &NodeId| !offline && !self.silent.contains(peer);
            let peers = self.membership.ids().filter(asked);
            if !self.interest.start_round(peers, now) {
                return;
            }
            if !offline {
                self.probe_all();
            }
        }
    }

    /// The answer comes here, or to everybody, among the publications: a node that is older knows that way only.
    fn ask_for_all(&mut self, peer: NodeId) {
        let reply = self.subjects.reply(self.config.node, self.asking.number());
        let request = Body::Request(Request::Occupancy);
        let what = What::Body(Box::new(request), None);
        self.urgent(self.subjects.request(peer), Some(reply), what);
    }

    fn probe_all(&mut self) {
        let number = self.asking.number();
        self.probes.insert(number, None);
        self.probe_server(number);
        for peer in self.membership.ids().collect::<Vec<_>>() {
            let number = self.asking.number();
            self.probes.insert(number, Some(peer));
            self.urgent(
                self.subjects.request(peer),
                Some(self.subjects.reply(self.config.node, number)),
                What::Body(Box::new(Body::Request(Request::Probe)), None),
            );
        }
    }

    async fn gap(&self, rooms: Option<Vec<RoomName>>, reason: &'static str) {
        self.emit(Event::Gap { rooms, reason }).await;
    }

    /// The host takes events as they come and waits for nothing of this thread's.
    async fn emit(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}

/// Something of which the application should have been told, and may not be.
fn count_lost(what: &'static str, lost: u64) {
    metrics::counter!("unisono_occupancy_lost_total", "what" => what).increment(lost);
}

/// Of one that was missed it is in the log already that it is down.
fn log_gone(node: NodeId, up: bool, why: &str) {
    match up {
        true => info!(%node, why, "node down"),
        false => info!(%node, why, "node gone"),
    }
}

/// Whether it is all that a node holds, or the last part of it.
fn is_whole(occupancy: &envelope::Occupancy) -> bool {
    matches!(occupancy.told, Told::Snapshot { more: false, .. })
}
