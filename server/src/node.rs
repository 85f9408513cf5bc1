//! The one actor per node through which publications pass, so that all sockets of the node see a room's
//! messages in one order. It knows which workers have members of which room.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message, StreamHandler};
use cluster::{Event, Gathered, Permit, Sent};
use futures_util::stream::unfold;
use proto::envelope::{Act, Answer, Held, Request, Seat, Target};
use proto::{Audience, Close, Publication, RoomName, SocketId};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::api;
use crate::ask::Workers;
use crate::delivery::Delivery;
use crate::events::{self, Kind};
use crate::meters::{self, Source};
use crate::registry::{Deliver, Drain, Gap, Ready, give_back};
use crate::rules::{Lifecycle, Rule};
use crate::shared::Shared;
use crate::tail::{self, Passed};
use crate::trace::{Parent, Span, Work};
use crate::turns::Turns;
use crate::unisono::Unisono;
use crate::vital::Vital;

/// Send to the sockets of this node and of the others.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Publish {
    /// From where.
    source: Source,
    /// What.
    delivery: Arc<Delivery>,
    /// Who wants to know how far it went.
    report: Report,
    /// Where it is traced: ends when it has left the node, or when the others have answered.
    span: Option<Span>,
}

/// What a client has published in one turn.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Burst(pub Vec<Publish>);

/// Who wants to know how far a publication went.
pub enum Report {
    /// Nobody, and it does not leave the node: the others have it from elsewhere.
    Here,
    /// Nobody.
    None,
    /// Whether it left the node.
    Sent(oneshot::Sender<Sent>),
    /// How many sockets of the other nodes it reached.
    Confirmed(oneshot::Sender<Gathered>),
}

/// A worker has its first member, or waits for it; and for each other socket that waits, again.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Occupied {
    /// The room.
    pub room: RoomName,
    /// The worker.
    pub worker: usize,
    /// The socket that brings it.
    pub by: SocketId,
}

/// A worker has lost its last member.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Vacated {
    /// The room.
    pub room: RoomName,
    /// The worker.
    pub worker: usize,
}

/// Close a socket, after what it has published.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Finish {
    /// The socket.
    pub socket: SocketId,
    /// Why.
    pub close: Close,
}

/// Close all sockets of the node, evenly over that while.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DrainAll(pub Duration);

/// What has gathered is handed over, after the mailbox was emptied.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

/// Somebody wants to know whether it is awake.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Pulse;

/// The actor.
pub struct Node {
    shared: Arc<Shared>,
    workers: Workers,
    rooms: HashMap<RoomName, RoomEntry>,
    /// Publications that came in one after the other, each with a bit for every worker that has sockets for it.
    gathered: Vec<(u64, Publish)>,
    /// Rooms that wait, because there are too many in one second, by the sockets that brought them.
    newcomers: Turns<SocketId, Newcomer>,
    /// With more, those are looked for that wait in vain.
    newcomers_max: usize,
    tickets: u32,
    /// They will have their turns in a moment.
    turns_planned: bool,
    events: Option<mpsc::Receiver<Event>>,
    api_places: Arc<Semaphore>,
    _vital: Vital,
}

/// Most publications that are handed over together.
const GATHERED_MAX: usize = 64;

/// Requests of applications, from NATS, that may be under way at one time.
const API_REQUESTS_MAX: usize = 1_024;

#[derive(Default)]
struct RoomEntry {
    /// A bit for each worker that has members, or waits for one.
    workers: u64,
    /// The ticket of a room that waits for its turn to be listened to; zero for the others.
    ticket: u32,
    /// What is published anywhere is heard.
    ready: bool,
}

/// A room that waits for its turn to be listened to. The ticket is that of its entry, unless it has been vacated since.
struct Newcomer {
    room: RoomName,
    ticket: u32,
}

/// What may wait in vain before it is looked for, beside twice as many as do not.
const NEWCOMERS_SLACK: usize = 1_024;

/// How often rooms have their turns: at 5,000 in a second, ten at a time.
const TURN: Duration = Duration::from_millis(2);

impl Actor for Node {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(events) = self.events.take() {
            ctx.add_stream(unfold(events, async |mut events| {
                let event = events.recv().await?;
                Some((event, events))
            }));
        }
    }
}

impl Handler<Publish> for Node {
    type Result = ();

    fn handle(&mut self, publish: Publish, ctx: &mut Context<Self>) {
        self.publish(publish, ctx);
    }
}

impl Handler<Burst> for Node {
    type Result = ();

    fn handle(&mut self, Burst(publications): Burst, ctx: &mut Context<Self>) {
        for publish in publications {
            self.publish(publish, ctx);
        }
    }
}

impl Handler<Flush> for Node {
    type Result = ();

    fn handle(&mut self, Flush: Flush, _: &mut Context<Self>) {
        self.flush();
    }
}

/// Ends the span of a publication that has left the node, or could not.
fn left(span: Option<Span>, sent: Sent) {
    if let (Some(mut span), Sent::LocalOnly) = (span, sent) {
        span.fail();
    }
}

impl Handler<Finish> for Node {
    type Result = ();

    fn handle(&mut self, Finish { socket, close }: Finish, _: &mut Context<Self>) {
        self.flush();
        let disconnect = Act::Disconnect { close, after_ms: 0 };
        let request = Request::Act(Target::Sockets(vec![socket]), disconnect);
        drop(self.workers.ask(request, None));
    }
}

impl Handler<Occupied> for Node {
    type Result = ();

    fn handle(&mut self, Occupied { room, worker, by }: Occupied, ctx: &mut Context<Self>) {
        let entry = self.rooms.entry(room.clone()).or_default();
        let first = entry.workers == 0;
        entry.workers |= 1 << worker;
        if first {
            self.shared.load.rooms.fetch_add(1, Ordering::Relaxed);
            if self.is_watched(&room) {
                self.shared.cluster.hold(Held::Room(room.clone()), true);
            }
            self.want(room, by, ctx);
        } else if entry.ticket != 0 {
            let ticket = entry.ticket;
            self.wait(by, Newcomer { room, ticket }, ctx);
        } else if entry.ready {
            self.tell_ready(&room, 1 << worker);
        }
    }
}

impl Handler<Vacated> for Node {
    type Result = ();

    fn handle(&mut self, Vacated { room, worker }: Vacated, _: &mut Context<Self>) {
        if let Some(entry) = self.rooms.get_mut(&room) {
            entry.workers &= !(1 << worker);
            if entry.workers == 0 {
                self.rooms.remove(&room);
                give_back(&mut self.rooms);
                self.shared.load.rooms.fetch_sub(1, Ordering::Relaxed);
                if self.is_watched(&room) {
                    self.shared.cluster.hold(Held::Room(room.clone()), false);
                }
                self.shared.cluster.release(room);
            }
        }
    }
}

/// Whether a room still waits for this turn: nobody may be in it any more.
fn waits(rooms: &HashMap<RoomName, RoomEntry>, newcomer: &Newcomer) -> bool {
    let entry = rooms.get(&newcomer.room);
    entry.is_some_and(|entry| entry.ticket == newcomer.ticket)
}

impl Handler<Pulse> for Node {
    type Result = ();

    /// What came before it is on its way.
    fn handle(&mut self, Pulse: Pulse, _: &mut Context<Self>) {
        self.flush();
    }
}

impl Handler<DrainAll> for Node {
    type Result = ();

    fn handle(&mut self, DrainAll(window): DrainAll, _: &mut Context<Self>) {
        self.flush();
        for registry in self.workers.all() {
            registry.do_send(Drain(window));
        }
    }
}

/// What other nodes want, and what the bus tells.
impl StreamHandler<Event> for Node {
    fn handle(&mut self, event: Event, ctx: &mut Context<Self>) {
        match event {
            Event::Deliver {
                publication,
                origin,
                responder,
                permit,
            } => {
                let delivery = match responder {
                    None => Delivery::new(&self.shared, publication, origin, permit),
                    Some(responder) => {
                        let (done, count) = oneshot::channel();
                        actix_rt::spawn(async move {
                            responder.respond(Answer::Count(count.await.unwrap_or(0)));
                        });
                        Delivery::counted(&self.shared, publication, origin, permit, done)
                    }
                };
                self.gather(Publish::reported(Source::Bus, delivery, Report::Here), ctx);
            }
            Event::Api {
                verb,
                body,
                traceparent,
                responder,
                permit,
            } => {
                let Ok(place) = Arc::clone(&self.api_places).try_acquire_owned() else {
                    if let Some(responder) = responder {
                        responder.respond_raw(api::busy().into());
                    }
                    return;
                };
                // What it sends takes a share of its own.
                drop(permit);
                let parent = Parent::read(traceparent.as_deref());
                let span = self.shared.traces.begin(Work::Request, parent);
                let app = Unisono {
                    shared: Arc::clone(&self.shared),
                    node: ctx.address(),
                    workers: self.workers.clone(),
                    parent: Parent::of(span.as_ref()),
                };
                actix_rt::spawn(async move {
                    let answer = api::serve(&app, &verb, &body, span).await;
                    if let Some(responder) = responder {
                        responder.respond_raw(answer.into());
                    }
                    drop(place);
                });
            }
            Event::ApiEnded(told) => {
                let places = Arc::clone(&self.api_places);
                actix_rt::spawn(async move {
                    let all = places.acquire_many(API_REQUESTS_MAX as u32).await;
                    drop(all);
                    let _ = told.send(());
                });
            }
            Event::Occupied(room) => self.tell_application(&room, None, Kind::Occupied),
            Event::Vacated(room) => self.tell_application(&room, None, Kind::Vacated),
            Event::Lost(held) => {
                let closed = Kind::Closed(&Close::NODE_GONE);
                self.tell_of_another_node(&held, Kind::Left, closed);
            }
            Event::Found(held) => self.tell_of_another_node(&held, Kind::Joined, Kind::Opened),
            Event::RoomReady(room) => {
                self.flush();
                if let Some(entry) = self.rooms.get_mut(&room) {
                    entry.ready = true;
                    let workers = entry.workers;
                    self.tell_ready(&room, workers);
                }
            }
            Event::Gap { rooms, reason } => {
                let rooms: Option<Arc<[RoomName]>> = rooms.map(Into::into);
                self.flush();
                self.tell_gap(&Gap { rooms, reason });
            }
        }
    }
}

impl Publish {
    /// A publication of which nobody wants to know how far it went.
    pub fn quietly(source: Source, delivery: Arc<Delivery>) -> Self {
        Self::reported(source, delivery, Report::None)
    }

    /// A publication of which somebody does.
    pub fn reported(source: Source, delivery: Arc<Delivery>, report: Report) -> Self {
        Self {
            source,
            delivery,
            report,
            span: None,
        }
    }

    /// The same, traced.
    pub fn within(self, span: Option<Span>) -> Self {
        Self { span, ..self }
    }
}

impl Handler<Gap> for Node {
    type Result = ();

    fn handle(&mut self, gap: Gap, _: &mut Context<Self>) {
        self.flush();
        self.tell_gap(&gap);
    }
}

impl Node {
    /// The actor of a node. `events` are those of the cluster.
    pub fn new(shared: Arc<Shared>, workers: Workers, events: mpsc::Receiver<Event>) -> Self {
        let limit = shared.config.sockets.first_join_limit();
        Self {
            newcomers: Turns::new(limit, Instant::now()),
            newcomers_max: NEWCOMERS_SLACK,
            tickets: 0,
            turns_planned: false,
            shared,
            workers,
            rooms: HashMap::new(),
            gathered: Vec::new(),
            events: Some(events),
            api_places: Arc::new(Semaphore::new(API_REQUESTS_MAX)),
            _vital: Vital("node"),
        }
    }

    /// Listens to a room, at once or, when too many are new, in its turn.
    fn want(&mut self, room: RoomName, by: SocketId, ctx: &mut Context<Self>) {
        // Nothing is asked of a bus that is not there.
        if self.shared.cluster.alone() || self.newcomers.may_go(Instant::now()) {
            return self.shared.cluster.want(room);
        }
        self.tickets = self.tickets.checked_add(1).unwrap_or(1);
        if let Some(entry) = self.rooms.get_mut(&room) {
            entry.ticket = self.tickets;
        }
        let ticket = self.tickets;
        self.wait(by, Newcomer { room, ticket }, ctx);
    }

    /// Waits for the turn of that socket, or of another that wants the room, too.
    fn wait(&mut self, by: SocketId, newcomer: Newcomer, ctx: &mut Context<Self>) {
        self.newcomers.wait(by, newcomer);
        if self.newcomers.len() > self.newcomers_max {
            let rooms = &self.rooms;
            self.newcomers.retain(|newcomer| waits(rooms, newcomer));
            self.newcomers_max = 2 * self.newcomers.len() + NEWCOMERS_SLACK;
        }
        meters::first_joins_waiting(self.newcomers.len());
        self.plan_turns(TURN, ctx);
    }

    fn plan_turns(&mut self, after: Duration, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.turns_planned, true) {
            ctx.run_later(after, |node, ctx| {
                node.turns_planned = false;
                node.take_turns(ctx);
            });
        }
    }

    /// Listens to those whose turn it is.
    fn take_turns(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        let rooms = &self.rooms;
        let next = |newcomer: &Newcomer| waits(rooms, newcomer);
        let mut going = Vec::new();
        while let Some(newcomer) = self.newcomers.next(now, next) {
            going.push(newcomer.room);
        }
        for room in going {
            if let Some(entry) = self.rooms.get_mut(&room) {
                entry.ticket = 0;
            }
            self.shared.cluster.want(room);
        }
        meters::first_joins_waiting(self.newcomers.len());
        if let Some(due) = self.newcomers.due(now) {
            self.plan_turns(due.max(TURN), ctx);
        }
    }

    fn publish(&mut self, publish: Publish, ctx: &mut Context<Self>) {
        if self.shared.tails.on() {
            self.show(&publish.delivery, matches!(publish.report, Report::Here));
        }
        self.gather(publish, ctx);
    }

    /// Keeps a publication until the mailbox is empty: what came in meanwhile wakes each worker once, and leaves it in
    /// one `write` for each socket, where the first alone would be on its way before the second is there.
    fn gather(&mut self, publish: Publish, ctx: &mut Context<Self>) {
        self.shared.meters.published(publish.source);
        let workers = match &publish.delivery.publication().to {
            Audience::Everyone => u64::MAX,
            Audience::Room(room) => self.rooms.get(room).map_or(0, |entry| entry.workers),
        };
        if self.gathered.is_empty() {
            ctx.notify(Flush);
        }
        self.gathered.push((workers, publish));
        if self.gathered.len() == GATHERED_MAX {
            self.flush();
        }
    }

    /// Hands over what has gathered: to the workers, then to the other nodes.
    fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let gathered = std::mem::take(&mut self.gathered);
        for (index, registry) in self.workers.all().enumerate() {
            let theirs = gathered
                .iter()
                .filter(|(workers, _)| workers & (1 << index) != 0);
            let theirs: Vec<_> = theirs
                .map(|(_, publish)| Arc::clone(&publish.delivery))
                .collect();
            if !theirs.is_empty() {
                registry.do_send(Deliver(theirs));
            }
        }
        for (_, publish) in gathered {
            self.pass_on(publish);
        }
    }

    /// Sends a publication to the other nodes, and says how far it went.
    fn pass_on(&self, publish: Publish) {
        let Publish {
            delivery,
            report,
            span,
            ..
        } = publish;
        let cluster = &self.shared.cluster;
        let publish = || {
            let (publication, permit) = self.outward(&delivery);
            cluster.publish(publication, Some(permit))
        };
        match report {
            Report::Here => {}
            Report::None => left(span, publish()),
            Report::Sent(reply) => {
                let sent = publish();
                left(span, sent);
                let _ = reply.send(sent);
            }
            Report::Confirmed(reply) => {
                let (publication, permit) = self.outward(&delivery);
                let confirmed = cluster.publish_confirmed(publication, permit);
                actix_rt::spawn(async move {
                    let confirmed = confirmed.await;
                    drop(span);
                    let _ = reply.send(confirmed);
                });
            }
        }
    }

    /// What goes to the other nodes, with its share of the budget. Where it is traced, the span of the bus lasts until
    /// that is let go, and what the others do is part of it.
    fn outward(&self, delivery: &Delivery) -> (Publication, Permit) {
        let mut publication = delivery.publication().clone();
        let mut permit = delivery.permit();
        if let Some(place) = &mut publication.trace
            && !self.shared.cluster.alone()
            && let Some(mut span) = self.shared.traces.begin(Work::Bus, Parent::Here(**place))
        {
            span.say("messaging.system", "nats");
            **place = span.place();
            permit = permit.with(span);
        }
        (publication, permit)
    }

    fn show(&self, delivery: &Delivery, everywhere: bool) {
        let publication = delivery.publication();
        let (kind, room) = match &publication.to {
            Audience::Room(room) => (tail::Kind::Publish, Some(room)),
            Audience::Everyone => (tail::Kind::Broadcast, None),
        };
        self.shared.tails.show(&Passed {
            room,
            from: publication.from,
            payload: Some(&publication.payload),
            everywhere,
            ..Passed::new(kind)
        });
    }

    /// What has become of a member, or of a socket, whose node cannot tell it.
    fn tell_of_another_node(&self, held: &Held, of_member: Kind, of_socket: Kind) {
        let (seat, kind) = match held {
            Held::Member(seat) => (seat, of_member),
            Held::Socket(seat) => (seat, of_socket),
            Held::Room(_) => return,
        };
        self.tell_application(&seat.room, Some(seat), kind);
    }

    fn tell_application(&self, room: &RoomName, seat: Option<&Seat>, kind: Kind) {
        let rule = self.shared.config.rules.find(room);
        let wanted = |rule: &Rule| {
            kind.lifecycle()
                .is_some_and(|what| rule.events.contains(&what))
        };
        if !rule.is_some_and(|rule| wanted(rule)) {
            return;
        }
        // What cannot be told is counted there.
        let _ = self.shared.events.tell(&events::Event {
            kind,
            socket: seat.map(|seat| seat.socket),
            room,
            user: seat.and_then(|seat| seat.user.as_ref()),
        });
    }

    /// Whether the application wants to know when the room is occupied, or vacated.
    fn is_watched(&self, room: &RoomName) -> bool {
        let rule = self.shared.config.rules.find(room);
        rule.is_some_and(|rule| {
            rule.events.contains(&Lifecycle::Occupied) || rule.events.contains(&Lifecycle::Vacated)
        })
    }

    fn tell_gap(&self, gap: &Gap) {
        for registry in self.workers.all() {
            registry.do_send(gap.clone());
        }
    }

    fn tell_ready(&self, room: &RoomName, workers: u64) {
        for registry in self.chosen(workers) {
            registry.do_send(Ready(room.clone()));
        }
    }

    fn chosen(
        &self,
        workers: u64,
    ) -> impl Iterator<Item = &actix::Addr<crate::registry::Registry>> {
        self.workers
            .all()
            .enumerate()
            .filter(move |(index, _)| workers & (1 << index) != 0)
            .map(|(_, registry)| registry)
    }
}
