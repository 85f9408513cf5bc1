//! The actor of one event stream (server-sent events): a session that only receives. It is the body of an
//! HTTP response, and is polled as that: when the client takes nothing, it stands still until the connection's
//! time is up, and what is sent to it meanwhile counts against its queue.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use actix::{Actor, ActorContext, AsyncContext, Handler};
use actix_web::body::{BodyStream, MessageBody};
use actix_web_actors::HttpContext;
use bytes::Bytes;
use futures_util::Stream;
use proto::client::{closing_text, open_text};
use proto::{Close, RoomName, SocketId};
use tokio::time::Instant;

use super::{
    Deliver, Disconnect, Joined, Left, Overflowed, Queue, Refused, SessionActor, SessionRef,
    Sleeper, Wake, introduce, outbox, wakes,
};
use crate::admission::Admitted;
use crate::app::{Job, Socket};
use crate::auth::Grant;
use crate::delivery::{Wire, sse};
use crate::door::Place;
use crate::meters;
use crate::places;
use crate::registry::{Closed, Open};
use crate::rules::{Format, Rule};
use crate::shared::Slot;
use crate::worker::Worker;

/// The actor.
pub struct EventStream {
    id: SocketId,
    worker: Rc<Worker>,
    peer: SocketAddr,
    grant: Grant,
    rule: Arc<Rule>,
    home: RoomName,
    /// For handlers, where the room has some.
    socket: Option<Socket>,
    queue: Arc<Queue>,
    outlet: Outlet,
    open: bool,
    written: Instant,
    disconnect: Option<(Instant, Disconnect)>,
    expires: Option<Instant>,
    wake: Option<wakes::Key>,
    end: Option<Close>,
    place: Rc<Place>,
    slot: Option<Arc<Slot>>,
    /// That of the home among the rooms of the node, until the registry knows the stream.
    room_place: Option<places::Place>,
}

/// The events that the HTTP server has not taken yet: it takes the next when it has room for it. They count
/// against the queue until then.
type Outlet = Rc<RefCell<VecDeque<Bytes>>>;

/// The body: runs the actor, and hands out its events.
struct Body<S> {
    actor: S,
    ended: bool,
    outlet: Outlet,
    queue: Arc<Queue>,
}

impl Actor for EventStream {
    type Context = HttpContext<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let session = SessionRef {
            id: self.id,
            wire: Wire::EventStream,
            user: self.grant.user.clone(),
            native: self.native(),
            actor: SessionActor::Stream(ctx.address()),
            queue: Arc::clone(&self.queue),
        };
        let open = Open {
            session,
            room: self.home.clone(),
            rule: Arc::clone(&self.rule),
            peer: self.peer,
            place: self.room_place.take(),
        };
        introduce(&self.worker, self.socket.as_ref(), open);
        self.schedule(ctx);
    }

    fn stopped(&mut self, _: &mut Self::Context) {
        self.worker.wakes.cancel(&mut self.wake);
        let otherwise = match std::thread::panicking() {
            true => Close::INTERNAL,
            false => Close::GONE,
        };
        let end = self.end.take().unwrap_or(otherwise);
        self.worker.registry.do_send(Closed(self.id, end.clone()));
        let slot = self.slot.take();
        if self.open
            && let Some(running) = self.run(Job::Close(end))
        {
            actix_rt::spawn(async move {
                let _ = running.await;
                drop(slot);
            });
        }
    }
}

impl Handler<Deliver> for EventStream {
    type Result = ();

    fn handle(&mut self, Deliver(frames): Deliver, _: &mut Self::Context) {
        if self.end.is_some() {
            self.queue.remove(outbox::cost(&frames));
        } else {
            self.written = Instant::now();
            self.outlet.borrow_mut().push_back(frames);
        }
    }
}

impl Handler<Overflowed> for EventStream {
    type Result = ();

    fn handle(&mut self, Overflowed: Overflowed, ctx: &mut Self::Context) {
        if self.end.is_none() {
            // The client did not take what is queued in time: it gets no more than it was handed.
            for event in self.outlet.take() {
                self.queue.remove(outbox::cost(&event));
            }
            meters::slow();
            self.close(Close::SLOW, None, ctx);
        }
    }
}

impl Handler<Joined> for EventStream {
    type Result = ();

    fn handle(&mut self, Joined(_): Joined, _: &mut Self::Context) {
        if self.open {
            return;
        }
        self.open = true;
        let shared = &self.worker.shared;
        if self.native() && shared.config.sockets.greeting {
            let interval = shared.config.sockets.ping_interval.as_secs_f64();
            let text = open_text(self.id, &self.home, shared.node, interval);
            self.queue.tally.sent_message();
            self.write(sse::data(text.as_bytes()));
        } else {
            // The client learns that it is there.
            self.write(Bytes::from_static(sse::COMMENT));
        }
        if let Some(running) = self.run(Job::Open) {
            actix_rt::spawn(async move {
                let _ = running.await;
            });
        }
    }
}

impl Handler<Refused> for EventStream {
    type Result = ();

    fn handle(&mut self, _: Refused, _: &mut Self::Context) {}
}

impl Handler<Left> for EventStream {
    type Result = ();

    fn handle(&mut self, _: Left, _: &mut Self::Context) {}
}

impl Handler<Disconnect> for EventStream {
    type Result = ();

    fn handle(&mut self, disconnect: Disconnect, ctx: &mut Self::Context) {
        if disconnect.after.is_zero() {
            return self.disconnect(&disconnect, ctx);
        }
        let at = Instant::now() + disconnect.after;
        let earlier = self
            .disconnect
            .as_ref()
            .is_none_or(|planned| at < planned.0);
        if earlier {
            self.disconnect = Some((at, disconnect));
            self.schedule(ctx);
        }
    }
}

impl Handler<Wake> for EventStream {
    type Result = ();

    fn handle(&mut self, Wake: Wake, ctx: &mut Self::Context) {
        let now = Instant::now();
        if let Some((_, disconnect)) = self.disconnect.take_if(|planned| planned.0 <= now) {
            return self.disconnect(&disconnect, ctx);
        }
        if self.expires.is_some_and(|expires| expires <= now) {
            return self.close(Close::EXPIRED, None, ctx);
        }
        if now >= self.written + self.worker.shared.config.sockets.ping_interval {
            // Keeps proxies from taking the connection for idle, and shows when it is dead.
            self.write(Bytes::from_static(sse::COMMENT));
        }
        self.schedule(ctx);
    }
}

impl EventStream {
    /// The session of a client that was let in, as the body of the response. It counts as a socket until it
    /// and its connection are over.
    pub fn start_on(
        worker: Rc<Worker>,
        mut admitted: Admitted,
        place: Rc<Place>,
    ) -> impl MessageBody {
        let id = SocketId::new(worker.shared.node, worker.index, rand::random());
        let socket = admitted.socket(id, &worker.unisono);
        let slot = Arc::new(admitted.slot);
        place.become_socket(
            Arc::clone(&slot),
            worker.shared.config.sockets.write_timeout,
        );
        let now = Instant::now();
        let stream = Self {
            id,
            socket,
            peer: admitted.peer,
            expires: admitted.grant.expires(now, &worker.shared.config.auth),
            grant: admitted.grant,
            rule: admitted.rule,
            home: admitted.room,
            queue: Queue::new(&worker),
            outlet: Rc::default(),
            open: false,
            written: now,
            disconnect: None,
            wake: None,
            end: None,
            place,
            slot: Some(slot),
            room_place: Some(admitted.place),
            worker,
        };
        BodyStream::new(Body {
            outlet: Rc::clone(&stream.outlet),
            queue: Arc::clone(&stream.queue),
            actor: HttpContext::create(stream),
            ended: false,
        })
    }

    fn native(&self) -> bool {
        self.rule.format == Format::Json
    }

    /// Queues an event of the session's own: few, small, and past every limit.
    fn write(&mut self, event: Bytes) {
        self.queue.force(&event);
        self.written = Instant::now();
        self.outlet.borrow_mut().push_back(event);
    }

    fn disconnect(&mut self, disconnect: &Disconnect, ctx: &mut HttpContext<Self>) {
        let reconnect_in = disconnect.reconnect_in;
        let reconnect_in_ms = reconnect_in.map(|reconnect_in| reconnect_in.as_millis() as u64);
        self.close(disconnect.close.clone(), reconnect_in_ms, ctx);
    }

    /// A stream has no close frame: its last event says what one would, and when to come back, which a browser
    /// does by itself.
    fn close(&mut self, close: Close, reconnect_in_ms: Option<u64>, ctx: &mut HttpContext<Self>) {
        if self.end.is_some() {
            return;
        }
        if let Some(ms) = reconnect_in_ms {
            self.write(format!("retry: {ms}\n\n").into());
        }
        if self.native() && self.open {
            let text = closing_text(close.code, &close.reason, reconnect_in_ms);
            self.queue.tally.sent_message();
            self.write(sse::data(text.as_bytes()));
        }
        self.worker.registry.do_send(Closed(self.id, close.clone()));
        self.end = Some(close);
        self.queue.closed.store(true, Ordering::Relaxed);
        self.place
            .leave(self.worker.shared.config.sockets.close_timeout);
        ctx.write_eof();
        ctx.stop();
    }

    /// Asks to be woken, in place of what was planned.
    fn schedule(&mut self, ctx: &HttpContext<Self>) {
        let ping = self.written + self.worker.shared.config.sockets.ping_interval;
        let disconnect = self.disconnect.as_ref().map(|planned| planned.0);
        let times = [disconnect, self.expires].into_iter().flatten();
        let at = times.fold(ping, Instant::min);
        self.worker.wakes.cancel(&mut self.wake);
        let (id, actor) = (self.id, SessionActor::Stream(ctx.address()));
        self.wake = Some(self.worker.wakes.plan(at, Sleeper { id, actor }));
    }

    fn run(&self, job: Job) -> Option<impl Future<Output = crate::app::Done> + use<>> {
        let handlers = self.rule.handlers.as_ref()?;
        let socket = self.socket.clone()?;
        let limit = self.worker.shared.config.sockets.handler_timeout;
        handlers
            .handle(&job)
            .then(|| handlers.run(socket, job, limit))
    }
}

impl<S, E> Stream for Body<S>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    type Item = Result<Bytes, E>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let body = self.get_mut();
        body.queue.blocked.store(false, Ordering::Relaxed);
        let polled = match body.ended {
            true => Poll::Ready(None),
            false => Pin::new(&mut body.actor).poll_next(cx),
        };
        body.ended = matches!(polled, Poll::Ready(None));
        let Some(event) = body.outlet.borrow_mut().pop_front() else {
            return polled;
        };
        body.queue.remove(outbox::cost(&event));
        body.queue.tally.sent(event.len());
        // The HTTP server asks for the next as soon as the client has taken enough; nobody else gets a turn
        // before that, unless it waits.
        body.queue.blocked.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Ok(event)))
    }
}
