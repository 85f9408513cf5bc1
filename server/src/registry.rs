//! The actor that knows the sockets and rooms of one worker. What comes for any of them passes here, in
//! order.

use std::cell::{OnceCell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use cluster::Permit;
use proto::client::{ErrorCode, gap_text};
use proto::envelope::{
    Act, Answer, Held, Request, RoomsPage, RoomsQuery, Seat, SocketInfo, SocketsPage, Status,
    Target,
};
use proto::{Audience, Close, RoomName, SocketId, UserName};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::admission::TOO_MANY_ROOMS;
use crate::delivery::{Delivery, Wire, payload_frame};
use crate::events::{Event, Kind};
use crate::meters::{self, Tally};
use crate::node::{Node, Occupied, Vacated};
use crate::places::Place;
use crate::room::{self, OnceTable, Room};
use crate::rules::{Lifecycle, Rule};
use crate::session::{Disconnect, Joined, Left, Refused, SessionRef, TOO_MANY};
use crate::shared::{Shared, now_ms};
use crate::tail::{self, Passed};
use crate::vital::Vital;

/// A session is there; it joins its first room, and is open once it has.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Open {
    /// The session.
    pub session: SessionRef,
    /// Its first room.
    pub room: RoomName,
    /// The rule of that room.
    pub rule: Arc<Rule>,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// The place of the room, which the room itself holds from then on.
    pub place: Option<Place>,
}

/// A session is closing or gone, in that way; the first word counts.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Closed(pub SocketId, pub Close);

/// A session wants to join; it is told `Joined` in time.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Join(pub SocketId, pub RoomName);

/// A session wants to leave; it is told `Left`.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Leave(pub SocketId, pub RoomName);

/// What is published to the room, anywhere, is heard from now on.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ready(pub RoomName);

/// Publications for sockets of this worker, in the order in which they came.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Deliver(pub Vec<Arc<Delivery>>);

/// Something may have been missed: in these rooms, or anywhere.
#[derive(Clone, Message)]
#[rtype(result = "()")]
pub struct Gap {
    /// None for anywhere.
    pub rooms: Option<Arc<[RoomName]>>,
    /// A word for the client.
    pub reason: &'static str,
}

/// A question about sockets and rooms of this worker.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ask {
    /// What.
    pub request: Request,
    /// Takes the answer.
    pub reply: oneshot::Sender<Answer>,
    /// Its share of the budget, where it carries a payload.
    pub _permit: Option<Permit>,
}

/// Close all sockets, evenly over that while.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain(pub Duration);

/// The rooms have had their turn.
#[derive(Message)]
#[rtype(result = "()")]
struct GoOn;

/// Something for sockets, after what their rooms have to deliver; and what comes to rooms after that.
enum Later {
    Room(Arc<Delivery>),
    Broadcast(Arc<Delivery>),
    Act(Ask),
}

/// Close some sockets, whose clients are to come back to other nodes.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Shed(pub usize);

/// The actor.
pub struct Registry {
    worker: usize,
    shared: Arc<Shared>,
    node: Addr<Node>,
    sockets: HashMap<SocketId, Socket>,
    /// Rooms may have something that their members were not handed yet.
    rooms_at_work: bool,
    later: VecDeque<Later>,
    users: HashMap<UserName, HashSet<SocketId>>,
    rooms: HashMap<RoomName, RoomEntry>,
    /// The rooms that sockets wait for; nothing of the others.
    joining: HashMap<SocketId, Vec<RoomName>>,
    once: OnceTable,
    _vital: Vital,
}

struct Socket {
    session: SessionRef,
    /// Where somebody wants to know of its beginning and its end.
    home: Option<Box<Home>>,
    peer: SocketAddr,
    connected_at_ms: u64,
    /// Not before the first room is joined do others see the socket.
    open: bool,
    rooms: Vec<RoomName>,
}

/// The room by which a socket came, and its rule.
struct Home {
    room: RoomName,
    rule: Arc<Rule>,
}

struct RoomEntry {
    addr: Addr<Room>,
    rule: Option<Arc<Rule>>,
    members: usize,
    ready: bool,
    waiting: Vec<Waiting>,
}

/// A socket that joins once the room is ready.
struct Waiting {
    id: SocketId,
    done: Option<Vote>,
}

/// One of several sockets in a request: the answer goes out when the last has voted.
#[derive(Clone)]
struct Vote(Rc<RefCell<Votes>>);

struct Votes {
    statuses: Vec<(SocketId, Status)>,
    /// Only the number of those who were reached is wanted.
    count: bool,
    reply: Option<oneshot::Sender<Answer>>,
}

/// How often sends that are through are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// How often a drain closes a share of the sockets.
const DRAIN_TICK: Duration = Duration::from_millis(50);

impl Actor for Registry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(SWEEP, |registry, _| {
            registry.once.sweep(Instant::now());
            give_back(&mut registry.sockets);
            give_back(&mut registry.users);
            give_back(&mut registry.rooms);
            give_back(&mut registry.joining);
        });
    }
}

impl Handler<Open> for Registry {
    type Result = ();

    fn handle(
        &mut self,
        Open {
            session,
            room,
            rule,
            peer,
            place: _place,
        }: Open,
        _: &mut Context<Self>,
    ) {
        let id = session.id;
        if let Some(user) = session.user.clone() {
            let sockets = self.users.entry(user.clone()).or_default();
            if sockets.is_empty() {
                self.shared.meters.user(&user, true);
            }
            sockets.insert(id);
        }
        let socket = Socket {
            session,
            home: Home::of(&room, rule),
            peer,
            connected_at_ms: now_ms(),
            open: false,
            rooms: Vec::with_capacity(1),
        };
        self.sockets.insert(id, socket);
        self.join(id, &room, None);
    }
}

impl Handler<Closed> for Registry {
    type Result = ();

    fn handle(&mut self, Closed(id, close): Closed, _: &mut Context<Self>) {
        let Some(socket) = self.sockets.remove(&id) else {
            return;
        };
        meters::closed(&close);
        if let Some(user) = &socket.session.user {
            self.forget_user(user, id);
        }
        for room in &socket.rooms {
            self.tell_member(&socket, room, Kind::Left);
            self.remove_member(room, id);
        }
        for room in self.joining.remove(&id).unwrap_or_default() {
            self.wait_no_more(id, &room);
        }
        if self.shared.tails.on() && socket.open {
            self.shared.tails.show(&Passed {
                close: Some(&close),
                ..socket.passed(tail::Kind::Closed)
            });
        }
        if let (true, Some(home)) = (socket.open, &socket.home) {
            self.tell(&socket, &home.rule, &home.room, Kind::Closed(&close));
        }
    }
}

impl Handler<Join> for Registry {
    type Result = ();

    fn handle(&mut self, Join(id, room): Join, _: &mut Context<Self>) {
        self.join(id, &room, None);
    }
}

impl Handler<Leave> for Registry {
    type Result = ();

    fn handle(&mut self, Leave(id, room): Leave, _: &mut Context<Self>) {
        self.leave(id, &room);
    }
}

impl Handler<Ready> for Registry {
    type Result = ();

    fn handle(&mut self, Ready(room): Ready, _: &mut Context<Self>) {
        let Some(entry) = self.rooms.get_mut(&room) else {
            return;
        };
        entry.ready = true;
        for Waiting { id, done } in self.take_waiting(&room) {
            self.admit(id, &room, done);
        }
        self.close_if_empty(&room);
    }
}

impl Handler<Deliver> for Registry {
    type Result = ();

    fn handle(&mut self, Deliver(deliveries): Deliver, ctx: &mut Context<Self>) {
        for delivery in deliveries {
            self.deliver(delivery, ctx);
        }
    }
}

impl Handler<GoOn> for Registry {
    type Result = ();

    fn handle(&mut self, GoOn: GoOn, ctx: &mut Context<Self>) {
        self.rooms_at_work = false;
        while let Some(later) = self.later.pop_front() {
            match later {
                Later::Room(delivery) => self.hand_to_room(delivery),
                later if self.rooms_at_work => {
                    self.later.push_front(later);
                    return go_on(ctx);
                }
                Later::Broadcast(delivery) => self.broadcast(&delivery),
                Later::Act(ask) => self.answer_ask(ask),
            }
        }
    }
}

impl Handler<Gap> for Registry {
    type Result = ();

    fn handle(&mut self, Gap { rooms, reason }: Gap, _: &mut Context<Self>) {
        match rooms {
            Some(rooms) => {
                for entry in rooms.iter().filter_map(|room| self.rooms.get(room)) {
                    entry.addr.do_send(room::Gap(reason));
                }
            }
            None => {
                let text = gap_text(None, reason);
                let sockets = self.sockets.values().filter(|socket| socket.open);
                let told = sockets.filter(|socket| socket.session.tell(&text)).count();
                meters::gap(reason, told as u64);
            }
        }
    }
}

impl Handler<Ask> for Registry {
    type Result = ();

    fn handle(&mut self, ask: Ask, ctx: &mut Context<Self>) {
        match ask.request {
            Request::Act(..) if self.must_wait() => self.wait(Later::Act(ask), ctx),
            _ => self.answer_ask(ask),
        }
    }
}

/// A worker's tasks take turns in the order in which they were woken: the rooms come before this.
fn go_on(ctx: &Context<Registry>) {
    let registry = ctx.address();
    actix_rt::spawn(async move { registry.do_send(GoOn) });
}

impl Registry {
    fn deliver(&mut self, delivery: Arc<Delivery>, ctx: &mut Context<Self>) {
        if self.shared.tails.on() {
            self.show_delivery(&delivery);
        }
        match &delivery.publication().to {
            Audience::Room(_) if !self.later.is_empty() => self.wait(Later::Room(delivery), ctx),
            Audience::Room(_) => self.hand_to_room(delivery),
            Audience::Everyone if self.must_wait() => self.wait(Later::Broadcast(delivery), ctx),
            Audience::Everyone => self.broadcast(&delivery),
        }
    }

    fn hand_to_room(&mut self, delivery: Arc<Delivery>) {
        let Audience::Room(name) = &delivery.publication().to else {
            return;
        };
        let now = Instant::now();
        let Some(entry) = self.rooms.get(name) else {
            return;
        };
        let once = delivery.once().map(|send| self.once.get(send, now));
        entry.addr.do_send(room::Deliver { delivery, once });
        self.rooms_at_work = true;
    }

    /// Whether what goes straight to sockets has to wait, so that it does not overtake what was published to
    /// their rooms before.
    fn must_wait(&self) -> bool {
        self.rooms_at_work || !self.later.is_empty()
    }

    fn wait(&mut self, later: Later, ctx: &mut Context<Self>) {
        if self.later.is_empty() {
            go_on(ctx);
        }
        self.later.push_back(later);
    }

    fn broadcast(&self, delivery: &Delivery) {
        let mut reached = 0;
        let mut handed = self.tally().publishing();
        for (id, socket) in &self.sockets {
            let wanted = socket.open && !delivery.excludes(*id);
            let session = &socket.session;
            if wanted && session.offer(delivery.frame(session.wire), 1, &mut handed) {
                reached += 1;
            }
        }
        delivery.count(reached);
    }

    fn answer_ask(&mut self, ask: Ask) {
        let Ask {
            request,
            reply,
            _permit,
        } = ask;
        let answer = match request {
            // Through the room, so that what was published before comes before.
            Request::Act(Target::Room(room), Act::Disconnect { close, after_ms }) => {
                let disconnect = Disconnect::after(close, after_ms);
                let Some(entry) = self.rooms.get(&room) else {
                    let _ = reply.send(Answer::Count(0));
                    return;
                };
                return entry
                    .addr
                    .do_send(room::DisconnectAll { disconnect, reply });
            }
            Request::Act(target, act) => {
                let (ids, count) = match target {
                    Target::Sockets(ids) => (ids, false),
                    Target::Room(room) => (self.members(&room), true),
                    Target::User(user) => (self.sockets_of(&user), true),
                };
                return self.act(ids, &act, &Vote::new(count, reply));
            }
            Request::Sockets(query) => {
                let Some(entry) = self.rooms.get(&query.room) else {
                    let _ = reply.send(Answer::Sockets(SocketsPage::default()));
                    return;
                };
                return entry.addr.do_send(room::List { query, reply });
            }
            Request::Socket(id) => Answer::Socket(self.describe(id)),
            Request::Rooms(query) => Answer::Rooms(self.page(&query)),
            Request::Probe
            | Request::Occupancy
            | Request::NotSubscribed(_)
            | Request::Drain
            | Request::Tail(_)
            | Request::Unknown => Answer::Pong,
        };
        let _ = reply.send(answer);
    }
}

impl Handler<Drain> for Registry {
    type Result = ();

    fn handle(&mut self, Drain(window): Drain, ctx: &mut Context<Self>) {
        let reconnect_max = self.shared.config.drain.reconnect_max;
        let started = Instant::now();
        let mut ids: Vec<_> = self.sockets.keys().copied().collect();
        let all = ids.len();
        ctx.run_interval(DRAIN_TICK, move |registry, _| {
            let passed = started.elapsed();
            // Whoever came through the door in the last moment is closed with the last share.
            if passed >= window {
                ids = registry.sockets.keys().copied().collect();
            }
            for id in ids.split_off(still_open(all, passed, window).min(ids.len())) {
                if let Some(socket) = registry.sockets.get(&id) {
                    let reconnect_in = reconnect_max.mul_f64(rand::random());
                    let goodbye = Disconnect::for_restart(Close::RESTART, reconnect_in);
                    socket.session.send(goodbye);
                }
            }
        });
    }
}

/// How many of all sockets a drain leaves open for now. By the clock, not by ticks: those of a busy worker come late,
/// and the window is a promise.
fn still_open(all: usize, passed: Duration, window: Duration) -> usize {
    let left = window.saturating_sub(passed).as_secs_f64() / window.as_secs_f64().max(f64::EPSILON);
    (all as f64 * left) as usize
}

impl Handler<Shed> for Registry {
    type Result = ();

    fn handle(&mut self, Shed(count): Shed, _: &mut Context<Self>) {
        let reconnect_max = self.shared.config.drain.reconnect_max;
        let open = self.sockets.values().filter(|socket| socket.open);
        for socket in open.take(count) {
            let reconnect_in = reconnect_max.mul_f64(rand::random());
            let goodbye = Disconnect::for_restart(Close::REBALANCE, reconnect_in);
            socket.session.send(goodbye);
        }
    }
}

#[cfg(feature = "failures")]
impl Handler<crate::failures::Fail> for Registry {
    type Result = ();

    fn handle(&mut self, fail: crate::failures::Fail, _: &mut Context<Self>) {
        use crate::failures::Part;
        match &fail.part {
            Part::Session(id) => self.sockets[id].session.send(fail),
            Part::Room(_, room) => self.rooms[room].addr.do_send(fail),
            _ => fail.failure.happen(),
        }
    }
}

impl Registry {
    /// The registry of a worker without sockets.
    pub fn new(worker: usize, shared: Arc<Shared>, node: Addr<Node>) -> Self {
        Self {
            worker,
            shared,
            node,
            sockets: HashMap::new(),
            rooms_at_work: false,
            later: VecDeque::new(),
            users: HashMap::new(),
            rooms: HashMap::new(),
            joining: HashMap::new(),
            once: OnceTable::default(),
            _vital: Vital("registry"),
        }
    }

    fn tally(&self) -> &Arc<Tally> {
        self.shared.meters.tally(self.worker)
    }

    fn join(&mut self, id: SocketId, room: &RoomName, done: Option<Vote>) {
        let rooms_max = self.shared.config.sockets.rooms_per_socket;
        let joining = self.joining.get(&id).map_or(0, Vec::len);
        let refused = match self.sockets.get(&id) {
            // The socket of a session that joins its first room is not open yet.
            Some(socket) if !socket.open && done.is_some() => Some(Status::NotFound),
            Some(socket) if socket.rooms.contains(room) => Some(Status::Delivered),
            Some(socket) if socket.rooms.len() + joining >= rooms_max => Some(Status::Dropped),
            Some(_) => None,
            None => Some(Status::NotFound),
        };
        if let Some(status) = refused {
            self.answer(id, room, done, status);
            return;
        }
        let worker = self.worker;
        let entry = match self.rooms.entry(room.clone()) {
            Entry::Occupied(entry) => {
                let entry = entry.into_mut();
                if !entry.ready {
                    // Where the room waits for its turn, it may come earlier with those of this socket.
                    self.node.do_send(Occupied {
                        room: room.clone(),
                        worker,
                        by: id,
                    });
                }
                entry
            }
            Entry::Vacant(entry) => {
                if self.shared.places.enter(room).is_err() {
                    return self.refuse(id, room, done);
                }
                self.node.do_send(Occupied {
                    room: room.clone(),
                    worker,
                    by: id,
                });
                let tally = self.shared.meters.tally(worker);
                entry.insert(RoomEntry {
                    addr: Room::new(room.clone(), Arc::clone(tally)).start(),
                    rule: self.shared.config.rules.find(room).cloned(),
                    members: 0,
                    ready: false,
                    waiting: Vec::new(),
                })
            }
        };
        if entry.ready {
            self.admit(id, room, done);
        } else {
            entry.waiting.push(Waiting { id, done });
            self.joining.entry(id).or_default().push(room.clone());
        }
    }

    /// Those who wait for a room, and do no more.
    fn take_waiting(&mut self, room: &RoomName) -> Vec<Waiting> {
        let entry = self.rooms.get_mut(room);
        let waiting = entry.map_or_else(Vec::new, |entry| std::mem::take(&mut entry.waiting));
        for Waiting { id, .. } in &waiting {
            if let Some(rooms) = self.joining.get_mut(id) {
                rooms.retain(|joining| joining != room);
                if rooms.is_empty() {
                    self.joining.remove(id);
                }
            }
        }
        waiting
    }

    /// A socket is gone that waits for a room. When it was the only one, nobody wants the room any more.
    fn wait_no_more(&mut self, id: SocketId, room: &RoomName) {
        if let Some(entry) = self.rooms.get_mut(room) {
            for waiting in entry.waiting.extract_if(.., |waiting| waiting.id == id) {
                if let Some(done) = waiting.done {
                    done.vote(id, Status::NotFound);
                }
            }
        }
        self.close_if_empty(room);
    }

    /// The room is ready; the socket may be gone, or in it by another way.
    fn admit(&mut self, id: SocketId, room: &RoomName, done: Option<Vote>) {
        let socket = self.sockets.get_mut(&id);
        let entry = self.rooms.get_mut(room);
        let rooms_max = self.shared.config.sockets.rooms_per_socket;
        let status = match (socket, entry) {
            (Some(socket), Some(entry)) => {
                let known = socket.rooms.contains(room);
                if !known && socket.rooms.len() >= rooms_max {
                    self.answer(id, room, done, Status::Dropped);
                    return;
                }
                if !known {
                    let opened = !socket.open;
                    if opened {
                        // Straight from here, so that nothing which is sent to an open socket comes before.
                        socket.open = true;
                        socket.session.send(Joined(room.clone()));
                    }
                    socket.rooms.push(room.clone());
                    entry.members += 1;
                    entry.addr.do_send(room::Add(socket.session.clone()));
                    self.tell_admitted(id, room, opened);
                }
                Status::Delivered
            }
            _ => Status::NotFound,
        };
        if let Some(done) = done {
            done.vote(id, status);
        }
    }

    /// A join came to an end without an `Add` to the room, which would tell the session.
    fn answer(&self, id: SocketId, room: &RoomName, done: Option<Vote>, status: Status) {
        if let Some(done) = done {
            done.vote(id, status);
        } else if let Some(socket) = self.sockets.get(&id) {
            let room = room.clone();
            match status {
                Status::Delivered => socket.session.send(Joined(room)),
                _ => socket.session.send(Refused(room, TOO_MANY)),
            }
        }
    }

    /// The room would be one too many for the node.
    fn refuse(&self, id: SocketId, room: &RoomName, done: Option<Vote>) {
        if let Some(done) = done {
            done.vote(id, Status::Dropped);
        } else if let Some(socket) = self.sockets.get(&id) {
            let why = (ErrorCode::Unavailable, TOO_MANY_ROOMS);
            socket.session.send(Refused(room.clone(), why));
        }
    }

    fn leave(&mut self, id: SocketId, room: &RoomName) -> Status {
        let Some(socket) = self.sockets.get_mut(&id).filter(|socket| socket.open) else {
            return Status::NotFound;
        };
        match socket.rooms.iter().position(|joined| joined == room) {
            Some(index) => {
                socket.rooms.remove(index);
                if let Some(socket) = self.sockets.get(&id) {
                    self.tell_member(socket, room, Kind::Left);
                }
                self.remove_member(room, id);
            }
            // Nothing to leave, but the session may wait for the word.
            None => socket.session.send(Left(room.clone())),
        }
        Status::Delivered
    }

    fn remove_member(&mut self, room: &RoomName, id: SocketId) {
        if let Some(entry) = self.rooms.get_mut(room) {
            entry.members -= 1;
            entry.addr.do_send(room::Remove(id));
            self.close_if_empty(room);
        }
    }

    fn close_if_empty(&mut self, room: &RoomName) {
        let empty = |entry: &RoomEntry| entry.members == 0 && entry.waiting.is_empty();
        if self.rooms.get(room).is_some_and(empty) {
            self.rooms.remove(room);
            self.shared.places.leave(room);
            self.node.do_send(Vacated {
                room: room.clone(),
                worker: self.worker,
            });
        }
    }

    fn act(&mut self, ids: Vec<SocketId>, act: &Act, vote: &Vote) {
        // Made for a wire when its first socket is met.
        let frames: [OnceCell<Bytes>; Wire::COUNT] = Default::default();
        for id in ids {
            let session = match self.sockets.get(&id) {
                Some(socket) if socket.open => &socket.session,
                _ => {
                    if let Act::Emit { .. } = act {
                        self.tally().emitted(Status::NotFound);
                    }
                    if self.shared.tails.on() {
                        self.show_act(id, act, Status::NotFound);
                    }
                    vote.clone().vote(id, Status::NotFound);
                    continue;
                }
            };
            let status = match act {
                Act::Emit { payload, from, .. } => {
                    let deflate_min = self.shared.config.sockets.deflate_min_bytes;
                    let wire = session.wire.for_payload(payload, deflate_min);
                    let frame = frames[wire as usize]
                        .get_or_init(|| payload_frame(wire, payload, None, *from));
                    session.emit(frame)
                }
                Act::Disconnect { close, after_ms } => {
                    session.send(Disconnect::after(close.clone(), *after_ms));
                    Status::Delivered
                }
                Act::Join(room) => {
                    self.join(id, room, Some(vote.clone()));
                    continue;
                }
                Act::Leave(room) => self.leave(id, room),
            };
            if self.shared.tails.on() {
                self.show_act(id, act, status);
            }
            vote.clone().vote(id, status);
        }
    }

    fn members(&self, room: &RoomName) -> Vec<SocketId> {
        let sockets = self.sockets.iter();
        let members = sockets.filter(|(_, socket)| socket.rooms.contains(room));
        members.map(|(id, _)| *id).collect()
    }

    fn sockets_of(&self, user: &UserName) -> Vec<SocketId> {
        let ids = self.users.get(user);
        ids.map_or_else(Vec::new, |ids| ids.iter().copied().collect())
    }

    fn forget_user(&mut self, user: &UserName, id: SocketId) {
        if let Some(ids) = self.users.get_mut(user) {
            ids.remove(&id);
            if ids.is_empty() {
                self.users.remove(user);
                self.shared.meters.user(user, false);
            }
        }
    }

    /// Tells the application what happened to a socket, where the rule wants that.
    fn tell(&self, socket: &Socket, rule: &Rule, room: &RoomName, kind: Kind) {
        self.hold(socket, rule, room, kind);
        if kind
            .lifecycle()
            .is_some_and(|what| rule.events.contains(&what))
        {
            // What cannot be told is counted there.
            let _ = self.shared.events.tell(&Event {
                kind,
                socket: Some(socket.session.id),
                room,
                user: socket.session.user.as_ref(),
            });
        }
    }

    /// Whose end the application wants to be told, that the other nodes know, too: one of them tells, when this one is
    /// gone without a word.
    fn hold(&self, socket: &Socket, rule: &Rule, room: &RoomName, kind: Kind) {
        let (held, end, begun): (fn(Seat) -> Held, _, _) = match kind {
            Kind::Joined => (Held::Member, Lifecycle::Left, true),
            Kind::Left => (Held::Member, Lifecycle::Left, false),
            Kind::Opened => (Held::Socket, Lifecycle::Closed, true),
            Kind::Closed(_) => (Held::Socket, Lifecycle::Closed, false),
            _ => return,
        };
        if !self.shared.cluster.alone() && rule.events.contains(&end) {
            let seat = Seat {
                socket: socket.session.id,
                room: room.clone(),
                user: socket.session.user.clone(),
            };
            self.shared.cluster.hold(held(seat), begun);
        }
    }

    fn tell_member(&self, socket: &Socket, room: &RoomName, kind: Kind) {
        if self.shared.tails.on() {
            let kind = match kind {
                Kind::Left => tail::Kind::Left,
                _ => tail::Kind::Joined,
            };
            self.shared.tails.show(&Passed {
                room: Some(room),
                ..socket.passed(kind)
            });
        }
        let entry = self.rooms.get(room);
        if let Some(rule) = entry.and_then(|entry| entry.rule.as_ref()) {
            self.tell(socket, rule, room, kind);
        }
    }

    /// Shows a publication at each socket that is watched and gets it.
    fn show_delivery(&self, delivery: &Delivery) {
        let publication = delivery.publication();
        let room = match &publication.to {
            Audience::Room(room) => Some(room),
            Audience::Everyone => None,
        };
        for id in self.shared.tails.sockets() {
            let Some(socket) = self.sockets.get(&id).filter(|socket| socket.open) else {
                continue;
            };
            let member = room.is_none_or(|room| socket.rooms.contains(room));
            if member && !delivery.excludes(id) {
                self.shared.tails.show(&Passed {
                    room,
                    from: publication.from,
                    payload: Some(&publication.payload),
                    ..socket.passed(tail::Kind::Deliver)
                });
            }
        }
    }

    fn show_act(&self, id: SocketId, act: &Act, status: Status) {
        let Act::Emit { payload, from, .. } = act else {
            return;
        };
        let user = self
            .sockets
            .get(&id)
            .and_then(|socket| socket.session.user.as_ref());
        self.shared.tails.show(&Passed {
            socket: Some(id),
            user,
            from: *from,
            payload: Some(payload),
            status: Some(status),
            ..Passed::new(tail::Kind::Emit)
        });
    }

    fn tell_admitted(&self, id: SocketId, room: &RoomName, opened: bool) {
        if let Some(socket) = self.sockets.get(&id) {
            if opened && self.shared.tails.on() {
                let opened = socket.passed(tail::Kind::Opened);
                self.shared.tails.show(&Passed {
                    room: Some(room),
                    ..opened
                });
            }
            if let (true, Some(home)) = (opened, &socket.home) {
                self.tell(socket, &home.rule, &home.room, Kind::Opened);
            }
            self.tell_member(socket, room, Kind::Joined);
        }
    }

    fn describe(&self, id: SocketId) -> Option<SocketInfo> {
        let socket = self.sockets.get(&id).filter(|socket| socket.open)?;
        Some(SocketInfo {
            id,
            rooms: socket.rooms.clone(),
            user: socket.session.user.clone(),
            connected_at_ms: socket.connected_at_ms,
            remote_addr: socket.peer.to_string(),
            queued_bytes: socket.session.queued_bytes() as u64,
        })
    }

    fn page(&self, query: &RoomsQuery) -> RoomsPage {
        let mut rooms: Vec<_> = self
            .rooms
            .iter()
            .filter(|(name, entry)| {
                let name = name.as_str();
                entry.members > 0 && name.starts_with(&query.prefix) && name > query.after.as_str()
            })
            .map(|(name, entry)| (name.clone(), entry.members as u64))
            .collect();
        rooms.sort_unstable();
        let more = rooms.len() > query.limit;
        rooms.truncate(query.limit);
        RoomsPage { rooms, more }
    }
}

impl Socket {
    /// Something that passes it.
    fn passed(&self, kind: tail::Kind) -> Passed<'_> {
        Passed {
            socket: Some(self.session.id),
            user: self.session.user.as_ref(),
            ..Passed::new(kind)
        }
    }
}

impl Home {
    fn of(room: &RoomName, rule: Arc<Rule>) -> Option<Box<Self>> {
        let wanted = [Lifecycle::Opened, Lifecycle::Closed];
        let wanted = wanted.iter().any(|what| rule.events.contains(what));
        let room = room.clone();
        wanted.then(|| Box::new(Self { room, rule }))
    }
}

impl Vote {
    fn new(count: bool, reply: oneshot::Sender<Answer>) -> Self {
        Self(Rc::new(RefCell::new(Votes {
            statuses: Vec::new(),
            count,
            reply: Some(reply),
        })))
    }

    fn vote(self, id: SocketId, status: Status) {
        self.0.borrow_mut().statuses.push((id, status));
    }
}

impl Drop for Votes {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            let statuses = std::mem::take(&mut self.statuses);
            let reached = |(_, status): &&(SocketId, Status)| *status == Status::Delivered;
            let _ = reply.send(match self.count {
                true => Answer::Count(statuses.iter().filter(reached).count() as u64),
                false => Answer::Statuses(statuses),
            });
        }
    }
}

/// A table that was much larger gives back what it does not need. A quarter is well below the half to which it shrinks, so
/// that one which goes up and down a little stays as it is.
pub fn give_back<K: Eq + Hash, V>(table: &mut HashMap<K, V>) {
    const KEPT: usize = 1_024;
    let needed = table.len().max(KEPT);
    if table.capacity() > 4 * needed {
        table.shrink_to(2 * needed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_leaves_open_the_share_of_the_window_that_is_left() {
        let window = Duration::from_secs(4);
        for all in [0, 1, 7, 100, 1_000] {
            for passed_ms in (0..6_000).step_by(50) {
                let open = still_open(all, Duration::from_millis(passed_ms), window);
                let left = all * 4_000_u64.saturating_sub(passed_ms) as usize;
                assert!(
                    open * 4_000 <= left && left < (open + 1) * 4_000,
                    "{all} {passed_ms}"
                );
            }
            assert_eq!(still_open(all, Duration::ZERO, Duration::ZERO), 0);
        }
    }

    #[test]
    fn a_table_gives_back_what_it_does_not_need() {
        let mut table: HashMap<u32, u32> = (0..100_000).map(|n| (n, n)).collect();
        let full = table.capacity();
        table.retain(|n, _| *n < 50_000);
        give_back(&mut table);
        assert!(table.capacity() > full / 2, "half of it may be needed soon");
        table.retain(|n, _| *n < 10);
        give_back(&mut table);
        assert!(table.capacity() < full / 10, "{}", table.capacity());
        let small = table.capacity();
        give_back(&mut table);
        assert_eq!((table.capacity(), table.len()), (small, 10));
    }
}
