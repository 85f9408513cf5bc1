//! The handlers of a room, without their types, and how one is run.

use std::collections::HashMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use proto::{Close, EventName};
use tokio::time::Instant;
use tracing::warn;

use super::{Accept, Frame, HandlerError, Message, Refuse, Reply, Socket};
use crate::handshake::Handshake;
use crate::seldom::Seldom;
use crate::unisono::Unisono;

type Running<T> = Pin<Box<dyn Future<Output = T>>>;
type Handler<T> = Arc<dyn Fn(Socket, T) -> Running<Done> + Send + Sync>;
pub(super) type HandshakeHandler =
    Arc<dyn Fn(Handshake) -> Running<Result<Accept, Refuse>> + Send + Sync>;
pub(super) type Task = Arc<dyn Fn(Unisono) -> Running<()> + Send + Sync>;

/// What a handler came to: the data of an ack, or an error for the client.
pub type Done = Result<Option<Bytes>, HandlerError>;

/// What an application does in a room.
#[derive(Clone, Default)]
pub struct Handlers {
    events: HashMap<String, Handler<Message>>,
    any: Option<Handler<Message>>,
    frame: Option<Handler<Frame>>,
    open: Option<Handler<()>>,
    close: Option<Handler<Close>>,
    pub(super) handshake: Option<HandshakeHandler>,
}

/// Handlers that failed, for whatever any client may send again and again.
static FAILED: Seldom = Seldom::new();
static LATE: Seldom = Seldom::new();
static PANICKED: Seldom = Seldom::new();

/// Something for a handler to do.
pub enum Job {
    /// The socket is there.
    Open,
    /// The client sent an event.
    Event(Message),
    /// The client sent a bare frame.
    Frame(Frame),
    /// The socket is over.
    Close(Close),
}

/// Forgets the type of a handler.
fn erase<T: 'static, R: Reply>(
    handler: impl AsyncFn(Socket, T) -> R + Send + Sync + 'static,
) -> Handler<T> {
    let handler = Arc::new(handler);
    Arc::new(move |socket, given| {
        let handler = Arc::clone(&handler);
        Box::pin(async move { handler(socket, given).await.into_reply() })
    })
}

pub(super) fn task(task: impl AsyncFn(Unisono) + Send + Sync + 'static) -> Task {
    let task = Arc::new(task);
    Arc::new(move |unisono| {
        let task = Arc::clone(&task);
        Box::pin(async move { task(unisono).await })
    })
}

impl Handlers {
    pub(super) fn on<R: Reply>(
        &mut self,
        event: &str,
        handler: impl AsyncFn(Socket, Message) -> R + Send + Sync + 'static,
    ) {
        if let Err(error) = EventName::parse_user(event) {
            panic!("event {event:?}: {error}");
        }
        let earlier = self.events.insert(event.to_owned(), erase(handler));
        assert!(earlier.is_none(), "event {event:?} has a handler already");
    }

    pub(super) fn on_any<R: Reply>(
        &mut self,
        handler: impl AsyncFn(Socket, Message) -> R + Send + Sync + 'static,
    ) {
        self.any = Some(erase(handler));
    }

    pub(super) fn on_frame<R: Reply>(
        &mut self,
        handler: impl AsyncFn(Socket, Frame) -> R + Send + Sync + 'static,
    ) {
        self.frame = Some(erase(handler));
    }

    pub(super) fn on_open<R: Reply>(
        &mut self,
        handler: impl AsyncFn(Socket) -> R + Send + Sync + 'static,
    ) {
        self.open = Some(erase(async move |socket, ()| handler(socket).await));
    }

    pub(super) fn on_close<R: Reply>(
        &mut self,
        handler: impl AsyncFn(Socket, Close) -> R + Send + Sync + 'static,
    ) {
        self.close = Some(erase(handler));
    }

    pub(super) fn on_handshake(
        &mut self,
        handler: impl AsyncFn(Handshake) -> Result<Accept, Refuse> + Send + Sync + 'static,
    ) {
        let handler = Arc::new(handler);
        self.handshake = Some(Arc::new(move |handshake| {
            let handler = Arc::clone(&handler);
            Box::pin(async move { handler(handshake).await })
        }));
    }

    /// Whether there is anybody to do it.
    pub fn handle(&self, job: &Job) -> bool {
        match job {
            Job::Open => self.open.is_some(),
            Job::Event(message) => self.any.is_some() || self.events.contains_key(message.name()),
            Job::Frame(_) => self.frame.is_some(),
            Job::Close(_) => self.close.is_some(),
        }
    }

    /// Has it done, after what is being done for this socket already. A handler that takes longer than
    /// `limit` is dropped where it waits; one that panics costs nothing but this job.
    pub fn run(
        &self,
        socket: Socket,
        job: Job,
        limit: Duration,
    ) -> impl Future<Output = Done> + use<> {
        let what = job.label();
        let lane = socket.clone();
        let running = self.start(socket, job);
        async move {
            let _turn = lane.0.lane.lock().await;
            let Some(running) = running else {
                return Ok(None);
            };
            let started = Instant::now();
            // Also where it is dropped, which may panic, too.
            let limited = async { tokio::time::timeout(limit, running()).await };
            let (outcome, done) = match AssertUnwindSafe(limited).catch_unwind().await {
                Ok(Ok(Ok(data))) => ("ok", Ok(data)),
                Ok(Ok(Err(error))) => {
                    if let Some(source) = error.source()
                        && let Some(times) = FAILED.add(Instant::now(), 1)
                    {
                        warn!(handler = %what, error = %source, times, "a handler failed");
                    }
                    ("error", Err(error))
                }
                Ok(Err(_)) => {
                    if let Some(times) = LATE.add(Instant::now(), 1) {
                        warn!(handler = %what, ?limit, times, "a handler took too long");
                    }
                    let late = HandlerError::new("the handler took too long");
                    ("timeout", Err(late))
                }
                Err(_) => {
                    if let Some(times) = PANICKED.add(Instant::now(), 1) {
                        warn!(handler = %what, times, "a handler panicked");
                    }
                    ("panic", Err(HandlerError::new("the handler failed")))
                }
            };
            metrics::counter!("unisono_handlers_total", "result" => outcome).increment(1);
            metrics::histogram!("unisono_handler_seconds").record(started.elapsed());
            done
        }
    }

    /// The handler is called when its turn has come.
    fn start(&self, socket: Socket, job: Job) -> Option<Box<dyn FnOnce() -> Running<Done>>> {
        Some(match job {
            Job::Open => {
                let handler = Arc::clone(self.open.as_ref()?);
                Box::new(move || handler(socket, ()))
            }
            Job::Event(message) => {
                let named = self.events.get(message.name());
                let handler = Arc::clone(named.or(self.any.as_ref())?);
                Box::new(move || handler(socket, message))
            }
            Job::Frame(frame) => {
                let handler = Arc::clone(self.frame.as_ref()?);
                Box::new(move || handler(socket, frame))
            }
            Job::Close(close) => {
                let handler = Arc::clone(self.close.as_ref()?);
                Box::new(move || handler(socket, close))
            }
        })
    }
}

impl Job {
    /// For the log.
    fn label(&self) -> Label {
        match self {
            Self::Open => Label::Fixed("on_open"),
            Self::Event(message) => Label::Event(message.event_name()),
            Self::Frame(_) => Label::Fixed("on_frame"),
            Self::Close(_) => Label::Fixed("on_close"),
        }
    }
}

/// Which handler it is. Names of clients' own choice are written with their control characters escaped.
enum Label {
    Fixed(&'static str),
    Event(EventName),
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(what) => f.write_str(what),
            Self::Event(name) => write!(f, "on {name:?}"),
        }
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut events: Vec<_> = self.events.keys().collect();
        events.sort_unstable();
        f.debug_struct("Handlers")
            .field("events", &events)
            .finish_non_exhaustive()
    }
}
