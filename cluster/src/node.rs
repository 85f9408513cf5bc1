//! One node's side of the bus: the loop that keeps membership and interest, the writer that owns
//! the connection's outgoing order, and a reader for each subscription. All of it runs on one thread;
//! the rest of the program talks to it through [`Cluster`] and hears from it through [`Event`]s.
//!
//! ```text
//!  Cluster ── publications, requests ───▶ data ──┐
//!     │ ▲                                        ├─▶ writer ─▶ Bus ─▶ readers ── publications, requests ─▶ Event
//!     │ └─────────────── answers ────────────────│──────────────────────┤
//!     └── wishes ───────▶ Node ─▶ urgent, rooms ┘                       │
//!                           ▲──────────── heartbeats, probes ───────────┘
//! ```

mod asking;
mod core;
mod reader;
mod writer;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use metrics::Counter;
use proto::envelope::{self, Answer, Body, Heartbeat, Held, Publication, Request};
use proto::{Audience, NodeId, RoomName, wire};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::asking::Asking;
use self::core::{Core, RETRACTABLE_MAX};
use self::reader::Reader;
use self::writer::{Control, Data, Writer};
use crate::beats::Beats;
use crate::epoch::Epochs;
use crate::incoming::{Incoming, Share};
use crate::interest::Interest;
use crate::link::Link;
use crate::membership::{Membership, Strangers};
use crate::missed::Missed;
use crate::occupancy::Occupancy;
use crate::retractable::Retractable;
use crate::{
    AskError, Budget, Bus, CallError, ClusterName, Gathered, LinkState, Peer, Permit, Subject,
    Subjects, Unreadable,
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
    /// Most rooms that are listened to so.
    pub lingering_rooms_max: usize,
    /// Messages that may wait to be sent, and events that may wait for the host.
    pub queue_messages_max: usize,
    /// Bytes of messages that may wait between the bus and the host, over all subscriptions; more are dropped and told.
    pub incoming_bytes_max: usize,
    /// Requests to other nodes and to applications that may wait for their answers.
    pub pending_max: usize,
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
    /// An application asks, in JSON, and this node is the one to serve it.
    Api {
        /// The last token of the subject.
        verb: String,
        /// Its text.
        body: Bytes,
        /// What it is part of, as the application's header has it.
        traceparent: Option<Box<str>>,
        /// Takes the answer, where one is awaited.
        responder: Option<Responder>,
        /// Its share of the budget.
        permit: Permit,
    },
    /// No more [`Event::Api`] comes: see [`Cluster::stop_serving`].
    ApiEnded(oneshot::Sender<()>),
    /// The room has its first member in the cluster, and this node is the one that says so.
    Occupied(RoomName),
    /// The room has lost its last member in the cluster, and this node is the one that says so.
    Vacated(RoomName),
    /// A socket, or a member, was on a node that is gone, and this node is the one that says so.
    Lost(Held),
    /// That node was not gone, and it is still there.
    Found(Held),
    /// What is published to the room, anywhere in the cluster, is heard from now on.
    RoomReady(RoomName),
    /// Publications to these rooms, or to any, have been missed, or may have been.
    Gap {
        /// None for any.
        rooms: Option<Vec<RoomName>>,
        /// A word for the client.
        reason: &'static str,
    },
}

/// What another node asks of the host.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: Request,
    /// Takes the answer.
    pub responder: Responder,
    /// Its share of the budget, where it carries a payload.
    pub permit: Option<Permit>,
}

/// Sends one answer back to the node that asked.
#[derive(Debug)]
pub struct Responder {
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
    incoming: Incoming,
    asking: Asking,
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
    incoming: Incoming,
    there: watch::Sender<bool>,
    asking: Asking,
}

/// What the host wants to know of the loop.
enum Command {
    Peers(oneshot::Sender<Vec<Peer>>),
    Unreadable(oneshot::Sender<Vec<Unreadable>>),
    StopServing(oneshot::Sender<()>),
}

/// At most two messages for each room that gets its first local member or loses its last, and each socket and member
/// that is held: bounded by them.
enum Wanted {
    Want(RoomName),
    Release(RoomName),
    Begin(Held),
    End(Held),
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
    /// Bytes for an application.
    Raw(Bytes, Option<Permit>),
    /// Nothing but a question to the server itself, with its number.
    Void(u64),
    /// Say goodbye.
    Goodbye(oneshot::Sender<()>),
    /// Close the connection.
    Close(oneshot::Sender<()>),
}

/// What readers pass on to the loop.
enum Input {
    Heartbeat(NodeId, Heartbeat),
    Goodbye(NodeId),
    /// A node that is up, and cannot be read.
    Stranger(NodeId, u32),
    /// The answer to a probe of the loop.
    Answer(u64, NodeId),
    /// Nobody listens where the loop has sent something.
    NoResponders(u64),
    /// A node does not listen where somebody has asked it something.
    NotListening(NodeId),
    NotSubscribed(RoomName, Responder),
    /// Counted for as long as it waits: one may tell of a thousand rooms.
    Occupancy(NodeId, envelope::Occupancy, Share),
    /// A node asks for all that this one holds; an older one does not say where it awaits it.
    OccupancyWanted(Option<Responder>),
}

/// Counts messages of one direction, without a look for the counters at each.
#[derive(Clone)]
struct Traffic {
    messages: Counter,
    bytes: Counter,
}

enum RoomOp {
    Subscribe(RoomName),
    Unsubscribe(RoomName),
    /// Take no more requests of applications.
    StopServing(oneshot::Sender<()>),
}

/// How often the loop looks at the connection and at what has run out.
const TICK: Duration = Duration::from_millis(100);

/// Heartbeats and probes that may wait for the writer; there is no use in more.
const URGENT_MAX: usize = 1_024;

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
    let incoming = Incoming::new(config.incoming_bytes_max);
    let subjects = Arc::new(Subjects::new(config.cluster.clone()));
    let (there, there_receiver) = watch::channel(false);
    let asking = Asking::new(&config, Arc::clone(&subjects), data.clone(), there_receiver);
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
        incoming: incoming.clone(),
        asking: asking.clone(),
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
        incoming,
        there,
        asking,
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

    /// Bytes of messages that wait between the bus and the host.
    pub fn incoming_bytes(&self) -> usize {
        self.incoming.bytes()
    }

    /// Whether the bus takes a message with so many bytes of a user's choice.
    pub fn fits(&self, chosen_bytes: usize) -> bool {
        let payload_max = self.payload_max.load(Ordering::Relaxed);
        chosen_bytes.saturating_add(wire::OVERHEAD_BYTES) <= payload_max
    }

    /// Sends a publication to the other nodes. The caller has seen that it [`fits`](Self::fits).
    pub fn publish(&self, publication: Publication, permit: Option<Permit>) -> Sent {
        match self.send(publication, None, permit) {
            true => Sent::ToAll,
            false => Sent::LocalOnly,
        }
    }

    /// As [`Cluster::publish`], in one order with it, and waits for every other node to say how many sockets it reached.
    pub fn publish_confirmed(
        &self,
        publication: Publication,
        permit: Permit,
    ) -> impl Future<Output = Gathered> + use<> {
        // Nodes without members of the room do not hear the publication; they are asked apart.
        let elsewhere = match &publication.to {
            Audience::Room(room) => Some(Request::NotSubscribed(room.clone())),
            Audience::Everyone => None,
        };
        let confirmation = self.asking.confirm();
        let sent = self.send(publication, Some(confirmation.reply()), Some(permit));
        confirmation.sent(sent, elsewhere.as_ref())
    }

    /// Puts a publication into the queue to the bus. Where that takes none, others will be told that they missed it.
    fn send(
        &self,
        publication: Publication,
        reply: Option<Subject>,
        permit: Option<Permit>,
    ) -> bool {
        if self.alone {
            return true;
        }
        if self.link() == LinkState::Connected {
            let subject = self.subjects.audience(&publication.to);
            let body = Box::new(Body::Publication(publication));
            let parcel = Parcel {
                subject,
                reply,
                what: What::Body(body, permit),
            };
            match self.data.try_send(parcel) {
                Ok(()) => return true,
                Err(error) => {
                    metrics::counter!("unisono_bus_dropped_total").increment(1);
                    lock(&self.missed).lose_parcel(error.into_inner());
                }
            }
        } else {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
            lock(&self.missed).lose(&publication.to);
        }
        false
    }

    /// Tells applications on the bus, whoever listens. The permit is for the text. What one caller tells and
    /// asks leaves in the order of the calls.
    ///
    /// # Errors
    ///
    /// When the bus does not take it now.
    pub fn tell(&self, kind: &'static str, text: Bytes, permit: Permit) -> Result<(), AskError> {
        self.to_applications(kind, text, permit, None)
    }

    /// As [`Cluster::tell`], and waits for the first answer: for ever, so whoever asks has to set a bound.
    pub fn ask(
        &self,
        kind: &'static str,
        text: Bytes,
        permit: Permit,
    ) -> impl Future<Output = Result<Bytes, AskError>> + use<> {
        let asked = self.asking.application().and_then(|(waiting, reply)| {
            self.to_applications(kind, text, permit, Some(reply))?;
            Ok(waiting)
        });
        async move { asked?.first().await }
    }

    fn to_applications(
        &self,
        kind: &'static str,
        text: Bytes,
        permit: Permit,
        reply: Option<Subject>,
    ) -> Result<(), AskError> {
        let ready = self.link() == LinkState::Connected && !self.alone;
        if !ready || !self.fits(text.len()) {
            return Err(AskError::NotSent);
        }
        let parcel = Parcel {
            subject: self.subjects.event(kind),
            reply,
            what: What::Raw(text, Some(permit)),
        };
        let sent = self.data.try_send(parcel);
        sent.map_err(|_| AskError::NotSent)
    }

    /// Listens to a room; [`Event::RoomReady`] follows, within two call timeouts whatever the bus does.
    pub fn want(&self, room: RoomName) {
        let _ = self.wishes.send(Wanted::Want(room));
    }

    /// Lets go of a room, after a while.
    pub fn release(&self, room: RoomName) {
        let _ = self.wishes.send(Wanted::Release(room));
    }

    /// Something whose end somebody wants to know of, whatever becomes of this node, begins or ends here. Of a room,
    /// [`Event::Occupied`] or [`Event::Vacated`] follows on one node, where that changes something in the cluster; of
    /// the rest, [`Event::Lost`] when this node is gone.
    pub fn hold(&self, held: Held, begun: bool) {
        let wanted = if begun { Wanted::Begin } else { Wanted::End };
        let _ = self.wishes.send(wanted(held));
    }

    /// Asks one node and waits for its answer. The permit is for what the request carries. What is asked of one node by
    /// one caller arrives in the order of the calls, and of what the caller publishes.
    pub fn call(
        &self,
        node: NodeId,
        request: Request,
        permit: Option<Permit>,
    ) -> impl Future<Output = Result<Answer, CallError>> + use<> {
        self.asking.one(node, request, permit)
    }

    /// Asks all other nodes and waits for their answers.
    pub fn call_all(&self, request: &Request) -> impl Future<Output = Gathered> + use<> {
        self.asking.all(request)
    }

    /// The other nodes that are up.
    pub async fn peers(&self) -> Vec<Peer> {
        let (sender, receiver) = oneshot::channel();
        // Not an answer of the network, so it is worth the wait for a place in the queue.
        let _ = self.commands.send(Command::Peers(sender)).await;
        receiver.await.unwrap_or_default()
    }

    /// The other nodes that are up, and speak a version that this one does not read.
    pub async fn unreadable(&self) -> Vec<Unreadable> {
        let (sender, receiver) = oneshot::channel();
        let _ = self.commands.send(Command::Unreadable(sender)).await;
        receiver.await.unwrap_or_default()
    }

    /// Waits until the link to the bus is there, and proved.
    pub async fn connected(&self) {
        let mut link = self.link.clone();
        // Without a sender the node has ended.
        let _ = link.wait_for(|state| *state == LinkState::Connected).await;
    }

    /// Takes no more requests of applications from the bus: those go to other nodes from now on. Returns when the host
    /// has seen to all that this node has taken, as it says by way of [`Event::ApiEnded`].
    pub async fn stop_serving(&self) {
        let (sender, receiver) = oneshot::channel();
        if self
            .commands
            .send(Command::StopServing(sender))
            .await
            .is_ok()
        {
            let _ = receiver.await;
        }
    }

    /// Writes out what waits to be sent, and says goodbye: to the others this node is gone, and no heartbeat follows.
    /// Returns when each of them has shown, within `call_timeout`, that it has heard so. What they asked before is here by
    /// then, and can still be answered.
    pub async fn say_goodbye(&self) {
        if self.hand_over(What::Goodbye).await && !self.alone {
            self.call_all(&Request::Probe).await;
        }
    }

    /// Writes out what waits to be sent, says goodbye unless that is done, and closes the connection. Nothing can be
    /// sent from then on.
    pub async fn leave(&self) {
        self.hand_over(What::Close).await;
    }

    /// Waits until the lane of data has come to it. Says whether it has.
    async fn hand_over(&self, what: impl FnOnce(oneshot::Sender<()>) -> What) -> bool {
        let (sender, receiver) = oneshot::channel();
        let parcel = Parcel {
            subject: self.subjects.heartbeat(),
            reply: None,
            what: what(sender),
        };
        self.data.send(parcel).await.is_ok() && receiver.await.is_ok()
    }
}

impl Responder {
    /// Sends the answer. When too much waits to be sent, it is dropped and counted, and whoever asked
    /// will know that it is missing.
    pub fn respond(self, answer: Answer) {
        self.send(What::Body(Box::new(Body::Answer(answer)), None));
    }

    /// As [`Responder::respond`], to an application.
    pub fn respond_raw(self, answer: Bytes) {
        self.send(What::Raw(answer, None));
    }

    fn send(self, what: What) {
        let parcel = Parcel {
            subject: self.reply,
            reply: None,
            what,
        };
        if self.data.try_send(parcel).is_err() {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
        }
    }
}

/// Whose sockets miss something when this is not sent.
fn audiences(body: &Body) -> Vec<Audience> {
    match body {
        Body::Publication(publication) => vec![publication.to.clone()],
        Body::Missed(rooms) if rooms.is_empty() => vec![Audience::Everyone],
        Body::Missed(rooms) => rooms.iter().cloned().map(Audience::Room).collect(),
        _ => Vec::new(),
    }
}

fn lock(missed: &Mutex<Missed>) -> std::sync::MutexGuard<'_, Missed> {
    missed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Traffic {
    fn count(&self, payload: &Bytes) {
        self.messages.increment(1);
        self.bytes.increment(payload.len() as u64);
    }
}

impl Missed {
    fn lose_parcel(&mut self, parcel: Parcel) {
        if let What::Body(body, _) = parcel.what {
            audiences(&body).iter().for_each(|to| self.lose(to));
        }
    }
}

// === impl Node ===

impl Node {
    /// Runs until the handle is gone, or something in it is broken. Must be polled inside a [`tokio::task::LocalSet`].
    ///
    /// Calls of other nodes are handed to `serve` on this thread, in the order in which they came, so that an answer
    /// costs no detour over another; it passes them on and waits for nothing.
    pub async fn run<B: Bus>(self, bus: B, serve: impl Fn(Call) + 'static) {
        let bus = Rc::new(bus);
        let (inputs, inputs_receiver) = mpsc::channel(self.config.queue_messages_max);
        let (urgent, urgent_receiver) = mpsc::channel(URGENT_MAX);
        let (rooms, rooms_receiver) = mpsc::unbounded_channel();
        let (room_subscriptions, subscriptions) = mpsc::unbounded_channel();
        let now = Instant::now();
        let reader = Reader {
            node: self.config.node,
            subjects: Arc::clone(&self.subjects),
            budget: self.budget,
            incoming: self.incoming.clone(),
            asking: self.asking.clone(),
            events: self.events.clone(),
            serve: Rc::new(serve),
            inputs,
            data: self.data.clone(),
            traffic: Traffic {
                messages: metrics::counter!("unisono_bus_received_messages_total"),
                bytes: metrics::counter!("unisono_bus_received_bytes_total"),
            },
            epochs: Rc::new(RefCell::new(Epochs::new(self.config.heartbeat_interval))),
        };
        let writer = Writer {
            bus: Rc::clone(&bus),
            node: self.config.node,
            missed: Arc::clone(&self.missed),
            traffic: Traffic {
                messages: metrics::counter!("unisono_bus_sent_messages_total"),
                bytes: metrics::counter!("unisono_bus_sent_bytes_total"),
            },
            said_goodbye: Rc::default(),
        };
        let there = self.there;
        let there_receiver = there.subscribe();
        let control = Control {
            writer: writer.clone(),
            subjects: Arc::clone(&self.subjects),
            reader,
            readers: JoinSet::new(),
            room_subscriptions,
            room_handles: HashMap::new(),
            link: self.link.subscribe(),
            may_serve: true,
            serving: None,
            deferred: HashSet::new(),
            there: there_receiver.clone(),
            beats: (0, 0),
        };
        let data = Data {
            writer,
            link: self.link.subscribe(),
            there: there_receiver,
        };
        // Ends when this future does.
        let mut lanes = JoinSet::new();
        lanes.spawn_local(control.run(rooms_receiver, urgent_receiver, subscriptions));
        lanes.spawn_local(data.run(self.data_receiver));
        let core = Core {
            bus,
            subjects: self.subjects,
            load: self.load,
            events: self.events,
            rooms,
            urgent,
            data: self.data,
            link_state: self.link,
            there,
            payload_max: self.payload_max,
            missed: self.missed,
            link: Link::new(self.config.bus_timeout, now),
            membership: Membership::new(self.config.node_timeout),
            strangers: Strangers::default(),
            beats: Beats::new(self.config.heartbeat_interval),
            interest: Interest::new(
                self.config.room_linger,
                self.config.lingering_rooms_max,
                self.config.call_timeout,
            ),
            asking: self.asking,
            probes: HashMap::new(),
            heartbeat_due: now,
            overflows: 0,
            incoming: self.incoming,
            proving_link: false,
            liveness: Vec::new(),
            silent: HashSet::new(),
            occupancy: Occupancy::default(),
            settled_at: None,
            spoken_for: HashSet::new(),
            deaf: Duration::ZERO,
            others_spoke: false,
            ticked_at: now,
            left_at: None,
            unsaid: VecDeque::new(),
            unsaid_surplus: None,
            retractable: Retractable::new(RETRACTABLE_MAX),
            saying: VecDeque::new(),
            snapshot_wanted: Vec::new(),
            nodes: metrics::gauge!("unisono_nodes"),
            nodes_unreadable: metrics::gauge!("unisono_nodes_unreadable"),
            connects: metrics::counter!("unisono_bus_connects_total"),
            config: self.config,
        };
        let broken = async {
            while let Some(ended) = lanes.join_next().await {
                if ended.is_err() {
                    return;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = core.run(self.commands, self.wishes, inputs_receiver) => {}
            // A lane that panicked would leave the node deaf or dumb: better none than that.
            () = broken => {}
        }
    }
}
