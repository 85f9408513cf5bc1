//! One node's side of the bus: the loop that keeps membership, interest and calls, the writer that owns
//! the connection's outgoing order, and a reader for each subscription. All of it runs on one thread;
//! the rest of the program talks to it through [`Cluster`] and hears from it through [`Event`]s.
//!
//! ```text
//!  Cluster ── publications ─────────────▶ data ──┐
//!     │                                          ├─▶ writer ─▶ Bus ─▶ readers ── publications, requests ─▶ Event
//!     └── calls, wishes ─▶ Node ─▶ urgent, rooms ┘                      │
//!                           ▲──────────── answers, heartbeats ──────────┘
//! ```

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use proto::envelope::{Answer, Body, Envelope, Heartbeat, Publication, Request};
use proto::{Audience, NodeId, RoomName, wire};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet, spawn_local};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::calls::Calls;
use crate::interest::{Interest, Wish};
use crate::link::{Change, Link};
use crate::membership::Membership;
use crate::missed::Missed;
use crate::{
    Budget, Bus, CallError, ClusterName, Gathered, LinkState, Message, Outgoing, Peer, Permit,
    PublishError, Subject, Subjects,
};

/// How a node takes part in its cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster.
    pub cluster: ClusterName,
    /// This node.
    pub node: NodeId,
    /// Its name for people.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// When it started, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// There is no bus, and so are no other nodes.
    pub alone: bool,
    /// How often to say that this node is alive, and to ask the same of the bus.
    pub heartbeat_interval: Duration,
    /// How long a node may be silent before it is taken for gone.
    pub node_timeout: Duration,
    /// How long the bus may be silent before it is taken for gone.
    pub bus_timeout: Duration,
    /// How long to wait for the answers of other nodes.
    pub call_timeout: Duration,
    /// How long a room without local members is still listened to.
    pub room_linger: Duration,
    /// Messages that may wait to be sent, and events that may wait for the host.
    pub queue_messages_max: usize,
}

/// What a host tells of itself in heartbeats.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Sockets on the node.
    pub sockets: u64,
    /// Rooms with members on the node.
    pub rooms: u64,
    /// Takes no new sockets.
    pub draining: bool,
}

/// What other nodes want of the host, and what it should know of the bus.
#[derive(Debug)]
pub enum Event {
    /// For local sockets.
    Deliver {
        /// What and to whom.
        publication: Publication,
        /// Who sent it: numbers in [`Publication::once`] are the origin's own.
        origin: NodeId,
        /// Present when the origin wants the number of sockets reached.
        responder: Option<Responder>,
        /// Its share of the budget.
        permit: Permit,
    },
    /// To be answered.
    Request {
        /// What is asked.
        request: Request,
        /// Takes the answer.
        responder: Responder,
    },
    /// What is published to the room, anywhere in the cluster, is heard from now on.
    RoomReady(RoomName),
    /// Publications to these rooms, or to any, may have been missed.
    Gap {
        /// None for any.
        rooms: Option<Vec<RoomName>>,
        /// A word for the client.
        reason: &'static str,
    },
}

/// Sends one answer back to the node that asked.
#[derive(Debug)]
pub struct Responder {
    node: NodeId,
    reply: Subject,
    data: mpsc::Sender<Parcel>,
}

/// How far a publication went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It is on its way to every node.
    ToAll,
    /// It stays on this node, for want of a bus; others will be told that they missed something.
    LocalOnly,
}

/// The handle to a node's side of the bus. Cheap to clone. What it is told is on its way when the call
/// returns; only the futures of answers wait for the network.
#[derive(Clone)]
pub struct Cluster {
    node: NodeId,
    alone: bool,
    subjects: Arc<Subjects>,
    commands: mpsc::Sender<Command>,
    wishes: mpsc::UnboundedSender<Wanted>,
    data: mpsc::Sender<Parcel>,
    link: watch::Receiver<LinkState>,
    payload_max: Arc<AtomicUsize>,
    missed: Arc<Mutex<Missed>>,
}

/// The side that runs on the bus's own thread.
pub struct Node {
    config: Config,
    subjects: Arc<Subjects>,
    load: Box<dyn Fn() -> Load + Send>,
    budget: Budget,
    events: mpsc::Sender<Event>,
    commands: mpsc::Receiver<Command>,
    wishes: mpsc::UnboundedReceiver<Wanted>,
    data: mpsc::Sender<Parcel>,
    data_receiver: mpsc::Receiver<Parcel>,
    link: watch::Sender<LinkState>,
    payload_max: Arc<AtomicUsize>,
    missed: Arc<Mutex<Missed>>,
}

enum Command {
    Call(Vec<NodeId>, Box<Request>, oneshot::Sender<Gathered>),
    CallAll(Box<Request>, oneshot::Sender<Gathered>),
    PublishConfirmed(Box<Publication>, Permit, oneshot::Sender<Gathered>),
    Peers(oneshot::Sender<Vec<Peer>>),
}

/// One message for each room that gets its first local member or loses its last: bounded by them.
enum Wanted {
    Want(RoomName),
    Release(RoomName),
}

/// Something to send.
#[derive(Debug)]
struct Parcel {
    subject: Subject,
    reply: Option<Subject>,
    what: What,
}

#[derive(Debug)]
enum What {
    Body(Box<Body>, Option<Permit>),
    /// Nothing but a question to the server itself.
    Void,
    /// Say goodbye and close.
    Close(oneshot::Sender<()>),
}

/// What readers pass on to the loop.
enum Input {
    Heartbeat(NodeId, Heartbeat),
    Goodbye(NodeId),
    Answer(u64, NodeId, Answer),
    NoResponders(u64),
    NotSubscribed(RoomName, Responder),
}

enum RoomOp {
    Subscribe(RoomName),
    Unsubscribe(RoomName),
}

/// How often the loop looks at the connection and at what has run out.
const TICK: Duration = Duration::from_millis(100);

/// Heartbeats and probes that may wait for the writer; there is no use in more.
const URGENT_MAX: usize = 1_024;

/// The number of the liveness probe in reply subjects. Calls have numbers above it.
const LIVENESS: u64 = 0;

/// Makes the two sides. [`Node::run`] has to be awaited, on the bus's thread, for anything to happen.
pub fn start(
    config: Config,
    budget: Budget,
    load: impl Fn() -> Load + Send + 'static,
) -> (Cluster, Node, mpsc::Receiver<Event>) {
    let (events, events_receiver) = mpsc::channel(config.queue_messages_max);
    let (commands, commands_receiver) = mpsc::channel(config.queue_messages_max);
    let (wishes, wishes_receiver) = mpsc::unbounded_channel();
    let (data, data_receiver) = mpsc::channel(config.queue_messages_max);
    let (link, link_receiver) = watch::channel(LinkState::Connecting);
    let payload_max = Arc::new(AtomicUsize::new(usize::MAX));
    let missed = Arc::new(Mutex::new(Missed::default()));
    let subjects = Arc::new(Subjects::new(config.cluster.clone()));
    let cluster = Cluster {
        node: config.node,
        alone: config.alone,
        subjects: Arc::clone(&subjects),
        commands,
        wishes,
        data: data.clone(),
        link: link_receiver,
        payload_max: Arc::clone(&payload_max),
        missed: Arc::clone(&missed),
    };
    let node = Node {
        config,
        subjects,
        load: Box::new(load),
        budget,
        events,
        commands: commands_receiver,
        wishes: wishes_receiver,
        data,
        data_receiver,
        link,
        payload_max,
        missed,
    };
    (cluster, node, events_receiver)
}

// === impl Cluster ===

impl Cluster {
    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether there is no bus, and so are no other nodes.
    pub fn alone(&self) -> bool {
        self.alone
    }

    /// How the link to the bus does.
    pub fn link(&self) -> LinkState {
        *self.link.borrow()
    }

    /// Whether the bus takes a message with so many bytes of a user's choice.
    pub fn fits(&self, chosen_bytes: usize) -> bool {
        let payload_max = self.payload_max.load(Ordering::Relaxed);
        chosen_bytes.saturating_add(wire::OVERHEAD_BYTES) <= payload_max
    }

    /// Sends a publication to the other nodes. The caller has seen that it [`fits`](Self::fits).
    pub fn publish(&self, publication: Publication, permit: Option<Permit>) -> Sent {
        if self.alone {
            return Sent::ToAll;
        }
        if self.link() == LinkState::Connected {
            let subject = match &publication.to {
                Audience::Room(room) => self.subjects.room(room),
                Audience::Everyone => self.subjects.all(),
            };
            let body = Box::new(Body::Publication(publication));
            let parcel = Parcel {
                subject,
                reply: None,
                what: What::Body(body, permit),
            };
            match self.data.try_send(parcel) {
                Ok(()) => return Sent::ToAll,
                Err(error) => {
                    metrics::counter!("unisono_bus_dropped_total").increment(1);
                    lock(&self.missed).note_parcel(error.into_inner());
                }
            }
        } else {
            lock(&self.missed).lose(&publication.to);
        }
        Sent::LocalOnly
    }

    /// As [`Cluster::publish`], and waits for every other node to say how many sockets it reached.
    pub fn publish_confirmed(
        &self,
        publication: Publication,
        permit: Permit,
    ) -> impl Future<Output = Gathered> + use<> {
        let publication = Box::new(publication);
        self.ask(|sender| Command::PublishConfirmed(publication, permit, sender))
            .gathered()
    }

    /// Listens to a room; [`Event::RoomReady`] follows, within the call timeout whatever the bus does.
    pub fn want(&self, room: RoomName) {
        let _ = self.wishes.send(Wanted::Want(room));
    }

    /// Lets go of a room, after a while.
    pub fn release(&self, room: RoomName) {
        let _ = self.wishes.send(Wanted::Release(room));
    }

    /// Asks one node and waits for its answer. What is asked of one node by one caller arrives in the
    /// order of the calls.
    pub fn call(
        &self,
        node: NodeId,
        request: Request,
    ) -> impl Future<Output = Result<Answer, CallError>> + use<> {
        let request = Box::new(request);
        let asked = self.ask(|sender| Command::Call(vec![node], request, sender));
        async {
            let Gathered { answers, missing } = asked.gathered().await;
            match (answers.into_iter().next(), missing.first()) {
                (Some((_, answer)), _) => Ok(answer),
                (None, Some((_, error))) => Err(*error),
                (None, None) => Err(CallError::Timeout),
            }
        }
    }

    /// Asks all other nodes and waits for their answers.
    pub fn call_all(&self, request: Request) -> impl Future<Output = Gathered> + use<> {
        let request = Box::new(request);
        self.ask(|sender| Command::CallAll(request, sender))
            .gathered()
    }

    /// The other nodes that are up.
    pub async fn peers(&self) -> Vec<Peer> {
        let (sender, receiver) = oneshot::channel();
        // Not an answer of the network, so it is worth the wait for a place in the queue.
        let _ = self.commands.send(Command::Peers(sender)).await;
        receiver.await.unwrap_or_default()
    }

    /// Says goodbye, writes out what waits to be sent, and closes the connection.
    pub async fn leave(&self) {
        let (sender, receiver) = oneshot::channel();
        let parcel = Parcel {
            subject: self.subjects.heartbeat(),
            reply: None,
            what: What::Close(sender),
        };
        if self.data.send(parcel).await.is_ok() {
            let _ = receiver.await;
        }
    }

    /// The command is on its way when this returns, before anybody awaits the answer.
    fn ask(&self, command: impl FnOnce(oneshot::Sender<Gathered>) -> Command) -> Asked {
        let (sender, receiver) = oneshot::channel();
        if self.commands.try_send(command(sender)).is_err() {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
        }
        Asked(receiver)
    }
}

/// What comes back, once it does. A command that found no place in the queue comes back empty.
struct Asked(oneshot::Receiver<Gathered>);

impl Asked {
    async fn gathered(self) -> Gathered {
        self.0.await.unwrap_or_default()
    }
}

impl Responder {
    /// Sends the answer. When too much waits to be sent, it is dropped and counted, and whoever asked
    /// will know that it is missing.
    pub fn respond(self, answer: Answer) {
        let parcel = Parcel {
            subject: self.reply,
            reply: None,
            what: What::Body(Box::new(Body::Answer(answer)), None),
        };
        if self.data.try_send(parcel).is_err() {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
        }
    }

    /// The node that answers.
    pub fn node(&self) -> NodeId {
        self.node
    }
}

fn lock(missed: &Mutex<Missed>) -> std::sync::MutexGuard<'_, Missed> {
    missed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Missed {
    fn note_parcel(&mut self, parcel: Parcel) {
        if let What::Body(body, _) = parcel.what
            && let Body::Publication(publication) = *body
        {
            self.lose(&publication.to);
        }
    }
}

// === impl Node ===

impl Node {
    /// Runs until the handle is gone. Must be polled inside a [`tokio::task::LocalSet`].
    pub async fn run<B: Bus>(self, bus: B) {
        let bus = Rc::new(bus);
        let (inputs, inputs_receiver) = mpsc::channel(self.config.queue_messages_max);
        let (urgent, urgent_receiver) = mpsc::channel(URGENT_MAX);
        let (rooms, rooms_receiver) = mpsc::unbounded_channel();
        let now = Instant::now();
        let reader = Reader {
            node: self.config.node,
            subjects: Arc::clone(&self.subjects),
            budget: self.budget,
            events: self.events.clone(),
            inputs,
            data: self.data.clone(),
        };
        let writer = Writer {
            bus: Rc::clone(&bus),
            node: self.config.node,
            subjects: Arc::clone(&self.subjects),
            link: self.link.subscribe(),
            missed: Arc::clone(&self.missed),
            reader,
            readers: JoinSet::new(),
            room_readers: HashMap::new(),
        };
        let mut writing = JoinSet::new();
        writing.spawn_local(writer.run(rooms_receiver, urgent_receiver, self.data_receiver));
        let core = Core {
            bus,
            subjects: self.subjects,
            load: self.load,
            events: self.events,
            rooms,
            urgent,
            data: self.data,
            link_state: self.link,
            payload_max: self.payload_max,
            missed: self.missed,
            link: Link::new(self.config.bus_timeout, now),
            membership: Membership::new(self.config.node_timeout),
            interest: Interest::new(self.config.room_linger, self.config.call_timeout),
            calls: Calls::new(),
            probes: HashMap::new(),
            heartbeat_due: now,
            overflows: 0,
            proving_link: false,
            config: self.config,
        };
        core.run(self.commands, self.wishes, inputs_receiver).await;
    }
}

/// The loop and its state. It never waits for the network.
struct Core<B> {
    config: Config,
    bus: Rc<B>,
    subjects: Arc<Subjects>,
    load: Box<dyn Fn() -> Load + Send>,
    events: mpsc::Sender<Event>,
    rooms: mpsc::UnboundedSender<RoomOp>,
    urgent: mpsc::Sender<Parcel>,
    data: mpsc::Sender<Parcel>,
    link_state: watch::Sender<LinkState>,
    payload_max: Arc<AtomicUsize>,
    missed: Arc<Mutex<Missed>>,
    link: Link,
    membership: Membership,
    interest: Interest,
    calls: Calls,
    /// The probes of the round under way: to the server, or to a peer.
    probes: HashMap<u64, Option<NodeId>>,
    heartbeat_due: Instant,
    overflows: u64,
    /// From the return of the link to its proof, sockets are not told of the gap yet: it still grows.
    proving_link: bool,
}

impl<B: Bus> Core<B> {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut wishes: mpsc::UnboundedReceiver<Wanted>,
        mut inputs: mpsc::Receiver<Input>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let deadline = self.calls.next_deadline();
            let call_over = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                Some(wanted) = wishes.recv() => self.on_wish(wanted).await,
                Some(input) = inputs.recv() => self.on_input(input),
                _ = tick.tick() => self.on_tick().await,
                () = call_over => {}
            }
            let now = Instant::now();
            self.calls.expire(now);
            self.advance_round(now).await;
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Call(nodes, request, sender) => self.call(&nodes, &request, sender),
            Command::CallAll(request, sender) => {
                let peers: Vec<_> = self.membership.ids().collect();
                self.call(&peers, &request, sender);
            }
            Command::PublishConfirmed(publication, permit, sender) => {
                self.publish_confirmed(*publication, permit, sender);
            }
            Command::Peers(sender) => {
                let _ = sender.send(self.membership.peers().cloned().collect());
            }
        }
    }

    fn call(&mut self, nodes: &[NodeId], request: &Request, sender: oneshot::Sender<Gathered>) {
        let deadline = Instant::now() + self.config.call_timeout;
        let call = self.calls.open(nodes.iter().copied(), sender, deadline);
        for node in nodes {
            self.send_request(call, *node, request.clone());
        }
        self.calls.finish(call);
    }

    fn send_request(&mut self, call: u64, node: NodeId, request: Request) {
        let number = self.calls.message(call, Some(node));
        let parcel = Parcel {
            subject: self.subjects.request(node),
            reply: Some(self.subjects.reply(self.config.node, number)),
            what: What::Body(Box::new(Body::Request(request)), None),
        };
        let there = self.link.state() == LinkState::Connected;
        if self.config.alone {
            self.calls.fail(number, node, CallError::NodeGone);
        } else if !there || self.data.try_send(parcel).is_err() {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
            self.calls.fail(number, node, CallError::Timeout);
        }
    }

    fn publish_confirmed(
        &mut self,
        publication: Publication,
        permit: Permit,
        sender: oneshot::Sender<Gathered>,
    ) {
        let peers: Vec<_> = self.membership.ids().collect();
        let deadline = Instant::now() + self.config.call_timeout;
        let call = self.calls.open(peers.iter().copied(), sender, deadline);
        let number = self.calls.message(call, None);
        let (subject, room) = match &publication.to {
            Audience::Room(room) => (self.subjects.room(room), Some(room.clone())),
            Audience::Everyone => (self.subjects.all(), None),
        };
        let audience = publication.to.clone();
        let parcel = Parcel {
            subject,
            reply: Some(self.subjects.reply(self.config.node, number)),
            what: What::Body(Box::new(Body::Publication(publication)), Some(permit)),
        };
        let there = self.link.state() == LinkState::Connected;
        if !self.config.alone && (!there || self.data.try_send(parcel).is_err()) {
            lock(&self.missed).lose(&audience);
            for peer in peers {
                self.calls.fail(number, peer, CallError::Timeout);
            }
        } else if let Some(room) = room {
            // Nodes without members of the room do not hear the publication; they are asked apart.
            for peer in peers {
                self.send_request(call, peer, Request::NotSubscribed(room.clone()));
            }
        }
        self.calls.finish(call);
    }

    async fn on_wish(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Want(room) => match self.interest.want(room.clone()) {
                Wish::Ready => self.emit(Event::RoomReady(room)).await,
                Wish::Subscribe => {
                    let _ = self.rooms.send(RoomOp::Subscribe(room));
                }
                Wish::Wait => {}
            },
            Wanted::Release(room) => self.interest.release(&room, Instant::now()),
        }
    }

    fn on_input(&mut self, input: Input) {
        let now = Instant::now();
        self.link.heard(now);
        match input {
            Input::Heartbeat(peer, heartbeat) => {
                let name = heartbeat.name.clone();
                if self.membership.heard(peer, heartbeat, now) {
                    info!(node = %peer, %name, "node up");
                    // Let it know of this one without the wait for the next turn.
                    self.send_heartbeat();
                }
            }
            Input::Goodbye(peer) => self.down(peer, "said goodbye"),
            Input::Answer(number, from, answer) => match self.probes.get(&number) {
                Some(_) => self.interest.peer_answered(from),
                None => self.calls.answer(number, from, answer),
            },
            Input::NoResponders(LIVENESS) => lock(&self.missed).confirm(),
            Input::NoResponders(number) => match self.probes.get(&number).copied() {
                Some(None) => self.interest.server_answered(),
                Some(Some(peer)) => self.down(peer, "does not listen"),
                None => {
                    if let Some(peer) = self.calls.no_responders(number) {
                        self.down(peer, "does not listen");
                    }
                }
            },
            Input::NotSubscribed(room, responder) => {
                if !self.interest.knows(&room) {
                    responder.respond(Answer::Count(0));
                }
            }
        }
    }

    fn down(&mut self, peer: NodeId, why: &str) {
        self.interest.peer_answered(peer);
        if self.membership.down(peer) {
            info!(node = %peer, why, "node down");
        }
    }

    async fn on_tick(&mut self) {
        let now = Instant::now();
        let status = self.bus.status();
        match self.link.look(status, now) {
            Change::None => {}
            Change::Returned => {
                self.payload_max
                    .store(self.bus.payload_max(), Ordering::Relaxed);
                self.membership.forgive(now);
                lock(&self.missed).lose_unsure();
                self.interest.prove_link();
                self.proving_link = true;
                self.heartbeat_due = now;
            }
            Change::Left => {
                warn!("the bus is away");
                self.proving_link = false;
                lock(&self.missed).lose_unsure();
                if status.connected {
                    // Open but dead: another server, or a new connection, may be better.
                    let bus = Rc::clone(&self.bus);
                    spawn_local(async move { bus.reconnect().await });
                }
            }
        }
        if !self.proving_link {
            self.show_link();
        }
        if status.overflows != self.overflows {
            self.overflows = status.overflows;
            metrics::counter!("unisono_bus_overflows_total").absolute(status.overflows);
            self.gap(None, "overload").await;
        }
        if self.heartbeat_due <= now {
            self.heartbeat_due = now + self.config.heartbeat_interval;
            self.send_heartbeat();
            self.probe_server(LIVENESS);
        }
        if self.link.state() == LinkState::Connected {
            for peer in self.membership.expire(now) {
                info!(node = %peer, "node down: silent for too long");
                self.interest.peer_answered(peer);
            }
            self.tell_missed();
        }
        for room in self.interest.expire(now) {
            let _ = self.rooms.send(RoomOp::Unsubscribe(room));
        }
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
        };
        self.urgent(
            self.subjects.heartbeat(),
            None,
            What::Body(Box::new(Body::Heartbeat(heartbeat)), None),
        );
    }

    fn probe_server(&self, number: u64) {
        let reply = self.subjects.reply(self.config.node, number);
        self.urgent(
            self.subjects.void(self.config.node),
            Some(reply),
            What::Void,
        );
    }

    fn urgent(&self, subject: Subject, reply: Option<Subject>, what: What) {
        // A writer that is stuck for so long has no use for more heartbeats.
        let _ = self.urgent.try_send(Parcel {
            subject,
            reply,
            what,
        });
    }

    /// Other nodes' sockets may have missed what this node could not send.
    fn tell_missed(&mut self) {
        if self.proving_link {
            return;
        }
        if let Some(rooms) = lock(&self.missed).take_lost() {
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
                for room in proved.rooms {
                    self.emit(Event::RoomReady(room)).await;
                }
                if proved.link && !offline && self.proving_link {
                    self.proving_link = false;
                    if !self.config.alone {
                        self.gap(None, "bus_outage").await;
                    }
                    self.show_link();
                }
            }
            if !self.interest.start_round(self.membership.ids(), now) {
                return;
            }
            if !offline {
                self.probe_all();
            }
        }
    }

    fn probe_all(&mut self) {
        let number = self.calls.number();
        self.probes.insert(number, None);
        self.probe_server(number);
        for peer in self.membership.ids().collect::<Vec<_>>() {
            let number = self.calls.number();
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

// === writing ===

/// Owns the order of what goes out: subscriptions, then probes and heartbeats, then everything else.
struct Writer<B> {
    bus: Rc<B>,
    node: NodeId,
    subjects: Arc<Subjects>,
    link: watch::Receiver<LinkState>,
    missed: Arc<Mutex<Missed>>,
    reader: Reader,
    /// Ends with the writer.
    readers: JoinSet<()>,
    room_readers: HashMap<RoomName, AbortHandle>,
}

impl<B: Bus> Writer<B> {
    async fn run(
        mut self,
        mut rooms: mpsc::UnboundedReceiver<RoomOp>,
        mut urgent: mpsc::Receiver<Parcel>,
        mut data: mpsc::Receiver<Parcel>,
    ) {
        for (subject, kind) in [
            (self.subjects.inbox(self.node), Kind::Inbox),
            (self.subjects.heartbeat(), Kind::Heartbeats),
            (self.subjects.all(), Kind::Publications),
        ] {
            let subscription = self.bus.subscribe(subject).await;
            let reader = self.reader.clone().run(subscription, kind);
            self.readers.spawn_local(reader);
        }
        loop {
            tokio::select! {
                biased;
                Some(op) = rooms.recv() => self.on_room(op).await,
                Some(parcel) = urgent.recv() => self.send(parcel).await,
                Some(parcel) = data.recv() => {
                    let there = *self.link.borrow() == LinkState::Connected;
                    if there || !parcel.is_publication() {
                        self.send(parcel).await;
                    } else {
                        lock(&self.missed).note_parcel(parcel);
                    }
                }
                else => return,
            }
        }
    }

    async fn on_room(&mut self, op: RoomOp) {
        match op {
            RoomOp::Subscribe(room) => {
                let subscription = self.bus.subscribe(self.subjects.room(&room)).await;
                let reader = self.reader.clone().run(subscription, Kind::Publications);
                let reader = self.readers.spawn_local(reader);
                self.room_readers.insert(room, reader);
            }
            RoomOp::Unsubscribe(room) => {
                if let Some(reader) = self.room_readers.remove(&room) {
                    reader.abort();
                }
                while self.readers.try_join_next().is_some() {}
            }
        }
    }

    async fn send(&mut self, parcel: Parcel) {
        let (body, _permit) = match parcel.what {
            What::Body(body, permit) => (Some(*body), permit),
            What::Void => {
                lock(&self.missed).ask();
                (None, None)
            }
            What::Close(done) => {
                self.publish(parcel.subject, None, Some(Body::Goodbye))
                    .await;
                self.bus.close().await;
                let _ = done.send(());
                return;
            }
        };
        if let Some(Body::Publication(publication)) = &body {
            lock(&self.missed).sent(&publication.to);
        }
        self.publish(parcel.subject, parcel.reply, body).await;
    }

    async fn publish(&self, subject: Subject, reply: Option<Subject>, body: Option<Body>) {
        let origin = self.node;
        let payload = body.map(|body| wire::encode(&Envelope { origin, body }));
        let outgoing = Outgoing {
            subject,
            reply,
            payload: payload.unwrap_or_default(),
        };
        match self.bus.publish(outgoing).await {
            Ok(()) | Err(PublishError::Closed) => {}
            Err(PublishError::TooLarge) => {
                metrics::counter!("unisono_bus_dropped_total").increment(1);
                warn!("a message was larger than the bus takes");
            }
        }
    }
}

impl Parcel {
    fn is_publication(&self) -> bool {
        matches!(&self.what, What::Body(body, _) if matches!(**body, Body::Publication(_)))
    }
}

// === reading ===

/// Reads one subscription. Waits when the host is busy: the wait holds back its own subscription only.
#[derive(Clone)]
struct Reader {
    node: NodeId,
    subjects: Arc<Subjects>,
    budget: Budget,
    events: mpsc::Sender<Event>,
    inputs: mpsc::Sender<Input>,
    data: mpsc::Sender<Parcel>,
}

#[derive(Clone, Copy)]
enum Kind {
    Inbox,
    Heartbeats,
    Publications,
}

impl Reader {
    async fn run(self, mut subscription: impl StreamExt<Item = Message> + Unpin, kind: Kind) {
        while let Some(message) = subscription.next().await {
            match kind {
                Kind::Inbox => self.on_inbox(message).await,
                Kind::Heartbeats => self.on_heartbeat(message).await,
                Kind::Publications => self.on_publication(message).await,
            }
        }
    }

    async fn on_inbox(&self, message: Message) {
        let number = Subjects::call_of(&message.subject);
        if message.no_responders {
            if let Some(number) = number {
                self.input(Input::NoResponders(number)).await;
            }
            return;
        }
        let responder = self.responder(&message);
        let Some(Envelope { origin, body }) = self.decode(message) else {
            return;
        };
        match (body, number, responder) {
            (Body::Answer(answer), Some(number), _) => {
                self.input(Input::Answer(number, origin, answer)).await;
            }
            (Body::Request(Request::Probe), _, Some(responder)) => responder.respond(Answer::Pong),
            (Body::Request(Request::NotSubscribed(room)), _, Some(responder)) => {
                self.input(Input::NotSubscribed(room, responder)).await;
            }
            (Body::Request(request), _, Some(responder)) => {
                self.event(Event::Request { request, responder }).await;
            }
            _ => self.refuse(&"unexpected in an inbox"),
        }
    }

    async fn on_heartbeat(&self, message: Message) {
        match self.decode(message) {
            Some(Envelope {
                origin,
                body: Body::Heartbeat(heartbeat),
            }) => self.input(Input::Heartbeat(origin, heartbeat)).await,
            Some(Envelope {
                origin,
                body: Body::Goodbye,
            }) => self.input(Input::Goodbye(origin)).await,
            Some(_) => self.refuse(&"unexpected among heartbeats"),
            None => {}
        }
    }

    async fn on_publication(&self, message: Message) {
        let subject = message.subject.clone();
        let responder = self.responder(&message);
        let Some(Envelope { origin, body }) = self.decode(message) else {
            return;
        };
        match body {
            Body::Publication(publication) => {
                let expected = match &publication.to {
                    Audience::Room(room) => self.subjects.room(room),
                    Audience::Everyone => self.subjects.all(),
                };
                if expected.as_str() != subject {
                    return self.refuse(&"a publication on another room's subject");
                }
                let permit = self.budget.acquire(publication.payload.len()).await;
                let responder = responder.filter(|_| publication.confirm);
                self.event(Event::Deliver {
                    publication,
                    origin,
                    responder,
                    permit,
                })
                .await;
            }
            Body::Missed(rooms) => {
                let rooms = (!rooms.is_empty()).then_some(rooms);
                let reason = "bus_outage";
                self.event(Event::Gap { rooms, reason }).await;
            }
            _ => self.refuse(&"unexpected among publications"),
        }
    }

    fn responder(&self, message: &Message) -> Option<Responder> {
        message.reply.as_deref().map(|reply| Responder {
            node: self.node,
            reply: Subject::reply_to(reply),
            data: self.data.clone(),
        })
    }

    fn decode(&self, message: Message) -> Option<Envelope> {
        match wire::decode(message.payload) {
            // No echo, so it is somebody else who uses this node's id.
            Ok(envelope) if envelope.origin == self.node => {
                self.refuse(&"a foreign message with this node's id");
                None
            }
            Ok(envelope) => Some(envelope),
            Err(error) => {
                self.refuse(&error);
                None
            }
        }
    }

    fn refuse(&self, why: &dyn std::fmt::Display) {
        metrics::counter!("unisono_bus_refused_total").increment(1);
        debug!(%why, "bus message refused");
    }

    async fn input(&self, input: Input) {
        let _ = self.inputs.send(input).await;
    }

    async fn event(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}
