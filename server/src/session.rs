//! The actor of one client connection. It owns the socket: reads frames and does what they ask, queues
//! what it is handed and writes as fast as the client takes it, and ends when either side is done.

mod application;
mod commands;
mod outbox;
mod pump;
mod stream;
mod wakes;

use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use cluster::Permit;
use proto::client::{
    ClientId, ErrorCode, Refusal, ack_text, closing_text, error_text, open_text, results_data,
    room_data,
};
use proto::envelope::Status;
use proto::{Close, Publication, RoomName, SocketId, UserName};
use tokio::time::{Instant, Sleep};
use tracing::debug;

use crate::admission::Admitted;
use crate::app::{Done, Job, Socket};
use crate::auth::{self, Grant, NOBODY};
use crate::delivery::Wire;
use crate::events::NoAck;
use crate::meters::{self, Handed, Tally};
use crate::node::{Finish, Publish};
use crate::places::Place;
use crate::rate::Used;
use crate::registry::{Closed, Open};
use crate::rules::{ClientEvents, Denied, Format, Rule};
use crate::shared::{Shared, Slot};
use crate::tls::Stream;
use crate::websocket::{Decoder, frame};
use crate::worker::Worker;

use outbox::Outbox;
use pump::Pump;
use wakes::Sleeper;

pub use stream::EventStream;
pub use wakes::Wakes;

/// Frames for the client; they are counted in the session's queue already.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Deliver(pub Bytes);

/// The client reads too slowly: something for it did not fit into its queue.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Overflowed;

/// The socket is a member of the room from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Joined(pub RoomName);

/// The socket may not join, and why.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Refused(pub RoomName, pub Denied);

/// Why a socket may join no more.
pub const TOO_MANY: Denied = (ErrorCode::Forbidden, "this socket is in too many rooms");

/// The socket is no member of the room.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Left(pub RoomName);

/// The time has come that the session asked for.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

/// Close the connection.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Disconnect {
    close: Close,
    after: Duration,
    /// Announced before the close.
    reconnect_in: Option<Duration>,
}

/// What became of an emit of the client's. Comes as a message, because the pump runs after those.
#[derive(Message)]
#[rtype(result = "()")]
struct Emitted {
    id: ClientId,
    results: Vec<(String, Status)>,
}

/// A handler of the application's is through.
#[derive(Message)]
#[rtype(result = "()")]
struct Handled {
    id: Option<ClientId>,
    event: Option<String>,
    done: Done,
}

/// What the application outside made of an event. Comes as a message, as [`Emitted`] does.
#[derive(Message)]
#[rtype(result = "()")]
struct Answered {
    id: ClientId,
    event: Option<String>,
    answer: Result<Option<Bytes>, NoAck>,
}

/// What became of a fresh token. Nothing more is read before: two of them would race.
#[derive(Message)]
#[rtype(result = "()")]
struct Refreshed {
    id: Option<ClientId>,
    grant: Result<Grant, auth::Denied>,
}

/// A session, as others hold it.
#[derive(Clone)]
pub struct SessionRef {
    /// The socket.
    pub id: SocketId,
    /// How bytes travel to the client.
    pub wire: Wire,
    /// Whose it is.
    pub user: Option<UserName>,
    /// Whether the client understands the server's own events.
    native: bool,
    actor: SessionActor,
    queue: Arc<Queue>,
}

/// The actor of a session, by its wire.
#[derive(Clone)]
enum SessionActor {
    Socket(Addr<Session>),
    Stream(Addr<EventStream>),
}

/// The bytes that wait for a client, in the mailbox and in the outbox.
struct Queue {
    bytes: AtomicUsize,
    max: usize,
    /// Whether the connection takes no more just now. While it does, the session only has to get its turn,
    /// so a burst is not held against the client.
    blocked: AtomicBool,
    burst_max: usize,
    overflowed: AtomicBool,
    /// Nothing that comes now is delivered any more.
    closed: AtomicBool,
    /// Of the worker, which counts these bytes, too.
    tally: Arc<Tally>,
}

/// What the door knows of a connection that it lets in.
pub struct Arrival {
    /// The connection, of which the 101 is still to be written.
    pub stream: Stream,
    /// The answer to the handshake.
    pub response: Vec<u8>,
    /// Bytes that came after the handshake.
    pub rest: Vec<u8>,
    /// How it is spoken to.
    pub wire: Wire,
    /// Who comes.
    pub admitted: Admitted,
}

/// The actor.
pub struct Session {
    id: SocketId,
    worker: Rc<Worker>,
    stream: Stream,
    wire: Wire,
    peer: SocketAddr,
    /// None for the grant of everybody.
    grant: Option<Box<Grant>>,
    /// For handlers, where the room has some.
    socket: Option<Socket>,
    decoder: Decoder,
    outbox: Outbox,
    queue: Arc<Queue>,
    rule: Arc<Rule>,
    home: RoomName,
    /// That of the home among the rooms of the node, until the registry knows the session.
    place: Option<Box<Place>>,
    rooms: Vec<Membership>,
    phase: Phase,
    /// Input that waits while the session is stalled.
    carry: Vec<u8>,
    stall: Option<Stall>,
    /// What the client has published in this turn.
    published: Vec<Publish>,
    /// Acks that wait for a room.
    joins: Vec<(RoomName, Option<ClientId>)>,
    leaves: Vec<(RoomName, Option<ClientId>)>,
    /// Emits, and events for the application outside, that wait for their answer.
    asks_in_flight: usize,
    /// A handler of the application's is at work, or a fresh token is looked at.
    handling: bool,
    messages: Used,
    pings: Used,
    joined: Used,
    warnings: Used,
    /// Of this turn.
    messages_left: usize,
    /// Answers the latest ping, when the client reads again.
    pong: Option<Bytes>,
    heard: Instant,
    pinged: Option<Instant>,
    disconnect: Option<Box<(Instant, Disconnect)>>,
    /// How the client has ended it, while what it said before is on its way back to it.
    ending: Option<Box<(Bytes, Close)>>,
    wake: Option<wakes::Key>,
    /// When what the client was granted has ended, and the patience with it.
    expires: Option<Instant>,
    /// Shared with the handler of its end.
    slot: Arc<Slot>,
}

/// A room that the socket is in.
struct Membership {
    room: RoomName,
    /// The client came or asked for it; the application did not put it there.
    by_client: bool,
}

/// How long the answer to a handshake waits for the greeting, so that both leave in one `write`: what the registry and
/// the room need to say, in the same turn of the worker, that the room is ready. Where it is not, the answer leaves.
const OPENING_TURNS: u8 = 2;

/// Where a session is in its life.
enum Phase {
    /// Its first room is not ready. Nothing is read yet, and for so many turns nothing is written.
    Opening(u8),
    /// As it should be.
    Open,
    /// A Close frame is queued.
    Closing(Box<Closing>),
}

/// The end of a session: others do not know it any more, so it keeps its own time.
struct Closing {
    deadline: Pin<Box<Sleep>>,
    /// Nothing that the client may still send matters: it has sent its Close, or nonsense. What comes is
    /// read all the same, because unread bytes would turn the end into a reset and cost it our Close.
    deaf: bool,
    /// Our side of the connection is shut.
    shut: bool,
}

/// A publication that waits for its share of the budget. Nothing is read meanwhile.
struct Stall {
    publication: Publication,
    id: Option<ClientId>,
    permit: Pin<Box<dyn Future<Output = Permit>>>,
}

impl Actor for Session {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let session = SessionRef {
            id: self.id,
            wire: self.wire,
            user: self.grant().user.clone(),
            native: self.native(),
            actor: SessionActor::Socket(ctx.address()),
            queue: Arc::clone(&self.queue),
        };
        let open = Open {
            session,
            room: self.home.clone(),
            rule: Arc::clone(&self.rule),
            peer: self.peer,
            place: self.place.take().map(|place| *place),
        };
        introduce(&self.worker, self.socket.as_ref(), open);
        ctx.spawn(Pump);
        self.schedule(ctx);
    }

    fn stopped(&mut self, _: &mut Context<Self>) {
        self.hand_over();
        self.worker.wakes.cancel(&mut self.wake);
        let mut end = Close::GONE;
        if std::thread::panicking() {
            // Best effort: the actor is gone after this.
            self.stream.write_now(&frame::close(Some(&Close::INTERNAL)));
            end = Close::INTERNAL;
        }
        // Where the end was told already, this one counts for nothing.
        self.worker.registry.do_send(Closed(self.id, end.clone()));
        if let Phase::Open = self.phase {
            self.run_on_close(end);
        }
    }
}

impl Handler<Deliver> for Session {
    type Result = ();

    fn handle(&mut self, Deliver(frames): Deliver, _: &mut Context<Self>) {
        if self.is_closing() {
            self.queue.remove(outbox::cost(&frames));
        } else {
            // The pump writes when the mailbox is empty.
            self.outbox.push(frames);
        }
    }
}

impl Handler<Overflowed> for Session {
    type Result = ();

    fn handle(&mut self, Overflowed: Overflowed, _: &mut Context<Self>) {
        self.close_slow();
    }
}

impl Handler<Joined> for Session {
    type Result = ();

    fn handle(&mut self, Joined(room): Joined, ctx: &mut Context<Self>) {
        // Of a membership that the client has given up since: the word for that is on its way.
        if self.leaves.iter().any(|(left, _)| *left == room) {
            return;
        }
        let waiting = take_waiting(&mut self.joins, &room);
        let opening = matches!(self.phase, Phase::Opening(_));
        let by_client = opening || !waiting.is_empty();
        match self.rooms.iter_mut().find(|joined| joined.room == room) {
            Some(joined) => joined.by_client |= by_client,
            None => self.rooms.push(Membership {
                room: room.clone(),
                by_client,
            }),
        }
        if opening {
            self.phase = Phase::Open;
            self.greet();
            self.run_handler(None, Job::Open, ctx);
        }
        for id in waiting {
            self.ack(id.as_ref(), Some(room_data(&room).as_bytes()));
        }
    }
}

impl Handler<Refused> for Session {
    type Result = ();

    fn handle(&mut self, Refused(room, (code, why)): Refused, _: &mut Context<Self>) {
        for id in take_waiting(&mut self.joins, &room) {
            self.refuse(&Refusal {
                id,
                code,
                message: why.to_owned(),
                event: Some("unisono:join".to_owned()),
            });
        }
    }
}

impl Handler<Left> for Session {
    type Result = ();

    fn handle(&mut self, Left(room): Left, _: &mut Context<Self>) {
        self.rooms.retain(|joined| joined.room != room);
        for id in take_waiting(&mut self.leaves, &room) {
            self.ack(id.as_ref(), Some(room_data(&room).as_bytes()));
        }
    }
}

impl Handler<Disconnect> for Session {
    type Result = ();

    fn handle(&mut self, disconnect: Disconnect, ctx: &mut Context<Self>) {
        if disconnect.after.is_zero() {
            self.disconnect(&disconnect);
            return;
        }
        let at = Instant::now() + disconnect.after;
        let earlier = self
            .disconnect
            .as_ref()
            .is_none_or(|planned| at < planned.0);
        if earlier {
            self.disconnect = Some(Box::new((at, disconnect)));
            self.schedule(ctx);
        }
    }
}

impl Handler<Wake> for Session {
    type Result = ();

    fn handle(&mut self, Wake: Wake, ctx: &mut Context<Self>) {
        self.worker.wakes.cancel(&mut self.wake);
        self.on_wake(Instant::now());
        self.schedule(ctx);
    }
}

impl Handler<Emitted> for Session {
    type Result = ();

    fn handle(&mut self, Emitted { id, results }: Emitted, _: &mut Context<Self>) {
        self.asks_in_flight -= 1;
        self.ack(Some(&id), Some(results_data(&results).as_bytes()));
    }
}

impl Handler<Handled> for Session {
    type Result = ();

    fn handle(&mut self, Handled { id, event, done }: Handled, _: &mut Context<Self>) {
        self.handling = false;
        match done {
            Ok(data) => self.ack(id.as_ref(), data.as_deref()),
            Err(error) => self.refuse(&Refusal {
                id,
                code: ErrorCode::HandlerFailed,
                message: error.message().to_owned(),
                event,
            }),
        }
    }
}

impl Handler<Answered> for Session {
    type Result = ();

    fn handle(&mut self, Answered { id, event, answer }: Answered, _: &mut Context<Self>) {
        self.asks_in_flight -= 1;
        match answer {
            Ok(data) => self.ack(Some(&id), data.as_deref()),
            Err(no_ack) => self.refuse_no_ack(Some(id), event, no_ack),
        }
    }
}

impl Handler<Refreshed> for Session {
    type Result = ();

    fn handle(&mut self, Refreshed { id, grant }: Refreshed, ctx: &mut Context<Self>) {
        self.handling = false;
        self.on_refreshed(id, grant, ctx);
    }
}

// === impl SessionRef ===

impl SessionRef {
    /// Hands frames over, which hold so many messages. When they do not fit into the client's queue, they are
    /// not, and the client, who has missed something now, is closed.
    pub fn offer(&self, frames: &Bytes, messages: u64, handed: &mut Handed<'_>) -> bool {
        if self.queue.add(frames) {
            handed.add(messages, outbox::cost(frames));
            self.send(Deliver(frames.clone()));
            return true;
        }
        if !self.queue.overflowed.swap(true, Ordering::Relaxed) {
            self.send(Overflowed);
        }
        false
    }

    /// Sends an event of the server's, to a client that understands such, and says whether it was queued.
    pub fn tell(&self, text: &str) -> bool {
        let frame = || self.wire.text(text.as_bytes());
        self.native && self.offer(&frame(), 1, &mut self.queue.tally.sending())
    }

    /// Sends a message to the actor.
    pub fn send<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Session: Handler<M>,
        EventStream: Handler<M>,
    {
        self.actor.send(message);
    }

    /// Whether what is sent now may still be delivered.
    pub fn is_open(&self) -> bool {
        !self.queue.closed.load(Ordering::Relaxed) && self.actor.is_alive()
    }

    /// As [`SessionRef::offer`], with the word for what became of it.
    pub fn emit(&self, frame: &Bytes) -> Status {
        let tally = &self.queue.tally;
        let status = if !self.is_open() {
            Status::NotFound
        } else if self.offer(frame, 1, &mut tally.sending()) {
            Status::Delivered
        } else {
            Status::Dropped
        };
        tally.emitted(status);
        status
    }

    /// Bytes that wait for the client.
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes.load(Ordering::Relaxed)
    }
}

impl SessionActor {
    fn send<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        Session: Handler<M>,
        EventStream: Handler<M>,
    {
        match self {
            Self::Socket(actor) => actor.do_send(message),
            Self::Stream(actor) => actor.do_send(message),
        }
    }

    fn is_alive(&self) -> bool {
        match self {
            Self::Socket(actor) => actor.connected(),
            Self::Stream(actor) => actor.connected(),
        }
    }
}

impl Queue {
    fn new(worker: &Worker) -> Arc<Self> {
        let shared = &worker.shared;
        let sockets = &shared.config.sockets;
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            max: sockets.queue_bytes,
            blocked: AtomicBool::new(false),
            burst_max: sockets.queue_bytes.max(sockets.inflight_bytes),
            overflowed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            tally: Arc::clone(shared.meters.tally(worker.index)),
        })
    }

    /// Counts frames, if there is room. Alone they fit always. The tally is the caller's business.
    fn add(&self, frames: &Bytes) -> bool {
        let cost = outbox::cost(frames);
        let before = self.bytes.fetch_add(cost, Ordering::Relaxed);
        let max = if self.blocked.load(Ordering::Relaxed) {
            self.max
        } else {
            self.burst_max
        };
        let fits = before == 0 || before + cost <= max;
        if !fits {
            self.bytes.fetch_sub(cost, Ordering::Relaxed);
        }
        fits
    }

    /// Counts frames past every limit.
    fn force(&self, frames: &Bytes) {
        let cost = outbox::cost(frames);
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        self.tally.queued(cost);
    }

    fn remove(&self, cost: usize) {
        self.bytes.fetch_sub(cost, Ordering::Relaxed);
        self.tally.unqueued(cost);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What nobody will take any more.
        self.tally.unqueued(*self.bytes.get_mut());
    }
}

// === impl Disconnect ===

impl Disconnect {
    /// What an application asked for.
    pub fn after(close: Close, after_ms: u64) -> Self {
        Self {
            close,
            after: Duration::from_millis(after_ms),
            reconnect_in: None,
        }
    }

    /// The node is about to stop.
    pub fn for_restart(close: Close, reconnect_in: Duration) -> Self {
        Self {
            close,
            after: Duration::ZERO,
            reconnect_in: Some(reconnect_in),
        }
    }
}

// === impl Session: life ===

impl Session {
    /// Starts the session of a client that the door let in.
    pub fn start_on(worker: Rc<Worker>, arrival: Arrival) {
        let sockets = &worker.shared.config.sockets;
        let id = SocketId::new(worker.shared.node, worker.index, rand::random());
        let mut admitted = arrival.admitted;
        let now = Instant::now();
        let mut session = Self {
            id,
            socket: admitted.socket(id, &worker.unisono),
            decoder: Decoder::new(sockets.message_bytes, arrival.wire.window().is_some()),
            outbox: Outbox::default(),
            queue: Queue::new(&worker),
            stream: arrival.stream,
            wire: arrival.wire,
            peer: admitted.peer,
            rule: admitted.rule,
            home: admitted.room,
            place: Some(Box::new(admitted.place)),
            expires: admitted.grant.expires(now, &worker.shared.config.auth),
            grant: boxed(admitted.grant),
            rooms: Vec::with_capacity(1),
            phase: Phase::Opening(OPENING_TURNS),
            carry: arrival.rest,
            stall: None,
            published: Vec::new(),
            joins: Vec::new(),
            leaves: Vec::new(),
            asks_in_flight: 0,
            handling: false,
            messages: Used::nothing(now),
            pings: Used::nothing(now),
            joined: Used::nothing(now),
            warnings: Used::nothing(now),
            messages_left: 0,
            pong: None,
            heard: now,
            pinged: None,
            disconnect: None,
            ending: None,
            wake: None,
            slot: Arc::new(admitted.slot),
            worker,
        };
        session.queue.tally.received(session.carry.len());
        session.push(arrival.response.into());
        session.start();
    }

    fn shared(&self) -> &Shared {
        &self.worker.shared
    }

    fn native(&self) -> bool {
        self.rule.format == Format::Json
    }

    fn grant(&self) -> &Grant {
        self.grant.as_deref().unwrap_or(&NOBODY)
    }

    fn greet(&mut self) {
        let settings = &self.shared().config.sockets;
        if self.native() && settings.greeting {
            let interval = settings.ping_interval.as_secs_f64();
            let text = open_text(self.id, &self.home, self.shared().node, interval);
            self.send_text(&text);
        }
    }

    fn disconnect(&mut self, disconnect: &Disconnect) {
        if let (true, Phase::Open, Some(reconnect_in)) =
            (self.native(), &self.phase, disconnect.reconnect_in)
        {
            let close = &disconnect.close;
            let reconnect_in_ms = reconnect_in.as_millis() as u64;
            let text = closing_text(close.code, &close.reason, Some(reconnect_in_ms));
            self.send_text(&text);
        }
        self.close(&disconnect.close);
    }

    /// Says goodbye: after what is queued, a Close frame. From now on the socket is no more, for others.
    fn close(&mut self, close: &Close) {
        self.close_with(frame::close(Some(close)), close.clone(), false);
        debug!(socket = %self.id, code = close.code, "closing");
    }

    /// The client has nothing more to say, or says nonsense. In a room that echoes, what it said before is on its way
    /// back to it, and comes first.
    fn finish(&mut self, frame: Bytes, end: Close) {
        let echoes = self.rule.client_events == ClientEvents::Echo;
        if self.is_closing() || !echoes {
            return self.close_with(frame, end, true);
        }
        let (socket, close) = (self.id, end.clone());
        self.ending.get_or_insert_with(|| Box::new((frame, end)));
        self.hand_over();
        self.worker.unisono.node.do_send(Finish { socket, close });
    }

    fn close_with(&mut self, frame: Bytes, end: Close, deaf: bool) {
        if self.is_closing() {
            return;
        }
        let (frame, end, deaf) = match self.ending.take() {
            Some(ending) => (ending.0, ending.1, true),
            None => (frame, end, deaf),
        };
        if let Phase::Open = self.phase {
            self.run_on_close(end.clone());
        }
        self.queue.closed.store(true, Ordering::Relaxed);
        // Past every limit: it is the last.
        self.queue.force(&frame);
        self.outbox.push(frame);
        let timeout = self.shared().config.sockets.close_timeout;
        self.phase = Phase::Closing(Box::new(Closing {
            deadline: Box::pin(tokio::time::sleep(timeout)),
            deaf,
            shut: false,
        }));
        self.worker.registry.do_send(Closed(self.id, end));
        self.worker.wakes.cancel(&mut self.wake);
        self.stall = None;
        self.carry = Vec::new();
    }

    /// The client will not read what is queued in time: it gets no more than it has begun to take.
    fn close_slow(&mut self) {
        if !self.is_closing() {
            let dropped = self.outbox.drop_unwritten();
            self.queue.remove(dropped);
            meters::slow();
            self.close(&Close::SLOW);
        }
    }

    fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing(_))
    }

    /// Whether what the client has sent has to be seen to before more is read.
    fn is_busy(&self) -> bool {
        self.handling
            || self.ending.is_some()
            || self.asks_in_flight >= self.shared().config.sockets.emits_in_flight
    }

    fn is_in(&self, room: &RoomName) -> bool {
        self.rooms.iter().any(|joined| joined.room == *room)
    }

    /// When the session has to look at its clock next.
    fn next_deadline(&self) -> Instant {
        let settings = &self.shared().config.sockets;
        let alive = match self.pinged {
            Some(pinged) => pinged + settings.pong_timeout,
            None => self.heard + settings.ping_interval,
        };
        let blocked = self.outbox.blocked_since();
        let written = blocked.map(|since| since + settings.write_timeout);
        let disconnect = self.disconnect.as_ref().map(|planned| planned.0);
        [written, disconnect, self.expires]
            .into_iter()
            .flatten()
            .fold(alive, Instant::min)
    }

    /// Asks to be woken, unless that happens early enough anyway.
    fn schedule(&mut self, ctx: &Context<Self>) {
        if self.is_closing() {
            return;
        }
        let at = self.next_deadline();
        let wakes = &self.worker.wakes;
        if matches!(&self.wake, Some(planned) if wakes.is_before(at, planned)) {
            wakes.cancel(&mut self.wake);
        }
        self.wake.get_or_insert_with(|| {
            let (id, actor) = (self.id, SessionActor::Socket(ctx.address()));
            wakes.plan(at, Sleeper { id, actor })
        });
    }

    /// The client gave a sign of life. Where a ping was out, there is none now: the wake for it, which would find nothing
    /// to do, is called off while all that it takes is at hand.
    fn hear(&mut self, ctx: &Context<Self>) {
        self.heard = Instant::now();
        if self.pinged.take().is_some() {
            self.worker.wakes.cancel(&mut self.wake);
            self.schedule(ctx);
        }
    }

    fn on_wake(&mut self, now: Instant) {
        if self.is_closing() {
            return;
        }
        let worker = Rc::clone(&self.worker);
        let settings = &worker.shared.config.sockets;
        if let Some(planned) = self.disconnect.take_if(|planned| planned.0 <= now) {
            return self.disconnect(&planned.1);
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            return self.close(&Close::EXPIRED);
        }
        if self.stall.is_some() || self.is_busy() {
            // It is this side that does not listen.
            self.heard = now;
            self.pinged = None;
        }
        let stuck = |since| now >= since + settings.write_timeout;
        if self.outbox.blocked_since().is_some_and(stuck) {
            return self.close_slow();
        }
        match self.pinged {
            Some(pinged) if now >= pinged + settings.pong_timeout => self.close(&Close::NO_PONG),
            None if now >= self.heard + settings.ping_interval => {
                self.pinged = Some(now);
                self.push(Bytes::from_static(&frame::PING));
            }
            _ => {}
        }
    }
}

/// The grant of everybody, where nobody asks who somebody is, takes no memory of a socket.
fn boxed(grant: Grant) -> Option<Box<Grant>> {
    (grant != NOBODY).then(|| Box::new(grant))
}

/// Makes a session known: to its handlers, and to the registry, which has it join its first room.
fn introduce(worker: &Worker, socket: Option<&Socket>, open: Open) {
    if let Some(socket) = socket {
        let _ = socket.0.session.set(open.session.clone());
    }
    worker.registry.do_send(open);
}

fn take_waiting(
    waiting: &mut Vec<(RoomName, Option<ClientId>)>,
    room: &RoomName,
) -> Vec<Option<ClientId>> {
    waiting
        .extract_if(.., |(name, _)| name == room)
        .map(|(_, id)| id)
        .collect()
}

// === impl Session: sending ===

impl Session {
    /// `data` is JSON text.
    fn ack(&mut self, id: Option<&ClientId>, data: Option<&[u8]>) {
        if let Some(id) = id {
            let data = data.and_then(|data| std::str::from_utf8(data).ok());
            self.send_text(&ack_text(id, data));
        }
    }

    /// A raw client understands no events of the server's: that its frame went nowhere, it is told by a close.
    /// Only what a handler makes of a frame is the application's business.
    fn refuse(&mut self, refusal: &Refusal) {
        if self.native() {
            return self.send_text(&error_text(refusal));
        }
        match refusal.code {
            ErrorCode::HandlerFailed => {}
            ErrorCode::Unavailable => self.close(&Close::UNAVAILABLE),
            ErrorCode::TooLarge => self.close(&Close::TOO_BIG),
            _ => self.close(&Close::NOT_ALLOWED),
        }
    }

    fn send_text(&mut self, text: &str) {
        if !self.is_closing() {
            self.queue.tally.sent_message();
        }
        self.push(Wire::WebSocket.text(text.as_bytes()));
    }

    /// Queues a frame of the session's own.
    fn push(&mut self, frame: Bytes) {
        if self.is_closing() {
            return;
        }
        if self.queue.add(&frame) {
            self.queue.tally.queued(outbox::cost(&frame));
            self.outbox.push(frame);
        } else {
            self.close_slow();
        }
    }
}
