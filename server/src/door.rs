//! What happens to a connection first: its request head is read, within bounds, and shows whether it is to
//! become a session or is plain HTTP.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_http::header::{HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use actix_http::{ConnectionType, HttpMessage, HttpService, Protocol, Request, h1};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_service, map_config};
use actix_web::App;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use actix_web::middleware::{Next, from_fn};
use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tracing::debug;

use crate::admission::admit;
use crate::api;
use crate::config::{Api, Config};
use crate::delivery::Wire;
use crate::handshake::Handshake;
use crate::meters;
use crate::session::{Arrival, Session};
use crate::shared::Slot;
use crate::tls::Stream;
use crate::websocket::handshake::{self, Refusal, Upgrade, Wanted};
use crate::worker::Worker;

/// The door of one worker.
pub struct Door {
    worker: Rc<Worker>,
    public: Http,
    admin: Http,
}

/// A connection that is back at the door, one per connection: as bounded as they are.
pub struct Returning {
    connection: Replay,
    /// Answers that the HTTP server has not sent yet.
    unsent: BytesMut,
    /// The upgrade came before the request ahead of it was answered.
    too_early: bool,
}

type Http = Box<dyn Fn(Replay, SocketAddr) -> LocalBoxFuture<'static, ()>>;

/// A connection from which some bytes have been read, and are read again.
pub struct Replay {
    stream: Stream,
    read: BytesMut,
    peer: SocketAddr,
    /// Came in by the administrators' address.
    admin: bool,
    /// Ends a connection to the HTTP server whose client does not take its answers.
    idle: Option<Idle>,
    /// Ends one whose next request does not come to its end.
    stalled: Option<Stalled>,
    /// The client's side has ended, or the connection is broken.
    over: bool,
    /// Nothing more is written to it.
    is_shut: bool,
    /// Its request may have a body.
    has_body: bool,
    place: Rc<Place>,
}

/// Runs while a request that has begun stands still, after so many answers.
struct Stalled {
    answers: u64,
    sleep: Pin<Box<Sleep>>,
}

/// A connection at the HTTP server. The server drops connections without a word; this one then goes back to the
/// door, which closes it.
struct Served {
    connection: Option<Replay>,
    back: Rc<RefCell<Option<Replay>>>,
}

/// Runs while a client takes nothing of what is written to it.
struct Idle {
    sleep: Option<Pin<Box<Sleep>>>,
}

/// The place of a connection on the node, until it is over: that of a plain one, or, once it is an event stream,
/// that of a socket.
pub struct Place {
    slot: RefCell<Arc<Slot>>,
    is_socket: Cell<bool>,
    write_timeout: Cell<Duration>,
    /// When the last that is to be written is waited for no longer.
    deadline: Cell<Option<Instant>>,
    /// Requests that the HTTP server has not answered wholly.
    under_way: Cell<u32>,
    /// Requests that it has answered.
    answers: Cell<u64>,
    /// Nothing was read since a request was handed on: what comes next, came together with that.
    is_behind: Cell<bool>,
    /// The last request may have been answered before all of its body was there, and the HTTP server reads on.
    reads_on: Cell<bool>,
    /// Bytes that came since the last answer.
    bytes: Cell<usize>,
    /// An answer has said that the connection ends with it. What came behind its request is not looked at.
    is_last: Cell<bool>,
    /// All is written when that answer is.
    is_done: Cell<bool>,
    limits: Limits,
}

/// Bounds on what comes after an answer.
#[derive(Clone, Copy)]
struct Limits {
    head_timeout: Duration,
    linger_bytes: usize,
    linger_time: Duration,
}

/// A request at the HTTP server, until its answer is written.
struct UnderWay(Rc<Place>);

/// The body of an answer.
struct Answer {
    body: BoxBody,
    _under_way: Option<UnderWay>,
}

impl Place {
    fn new(slot: Slot, config: &Config) -> Self {
        Self {
            slot: RefCell::new(Arc::new(slot)),
            is_socket: Cell::new(false),
            write_timeout: Cell::new(config.api.idle_timeout),
            deadline: Cell::new(None),
            under_way: Cell::new(0),
            answers: Cell::new(0),
            is_behind: Cell::new(false),
            reads_on: Cell::new(false),
            bytes: Cell::new(0),
            is_last: Cell::new(false),
            is_done: Cell::new(false),
            limits: Limits {
                head_timeout: config.sockets.head_timeout,
                linger_bytes: config.api.linger_bytes,
                linger_time: config.api.linger_time,
            },
        }
    }

    /// The connection is a socket from now on, and counts as one.
    pub fn become_socket(&self, slot: Arc<Slot>, write_timeout: Duration) {
        self.slot.replace(slot);
        self.is_socket.set(true);
        self.write_timeout.set(write_timeout);
    }

    /// Nothing more is to be written; what is, is written within that time or not at all.
    pub fn leave(&self, close_timeout: Duration) {
        self.deadline.set(Some(Instant::now() + close_timeout));
    }

    /// How long the client may take nothing, from now on.
    fn patience(&self) -> Duration {
        let left = self
            .deadline
            .get()
            .map(|deadline| deadline - Instant::now());
        left.map_or(self.write_timeout.get(), |left| {
            left.min(self.write_timeout.get())
        })
    }
}

/// Most header lines in a request.
const HEADERS_MAX: usize = 100;

/// Bytes of a request head that are read at one time.
const HEAD_BYTES: usize = 1024;

/// How long a refused client may take to read why.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Bytes that are read at one time to be thrown away.
const SCRATCH_BYTES: usize = 8 * 1024;

impl Door {
    /// Makes the HTTP application of this worker. A later request of a connection that began as plain HTTP
    /// may ask for an upgrade, as those of proxies do that keep connections: it comes out of `returning`,
    /// and is to be handed to [`Door::enter_again`].
    pub async fn new(worker: Rc<Worker>, returning: mpsc::UnboundedSender<Returning>) -> Self {
        let with_admin = worker.shared.config.admin.listen.is_some();
        Self {
            public: http(
                &worker,
                api::app(Rc::clone(&worker), true, !with_admin),
                returning.clone(),
            )
            .await,
            admin: http(
                &worker,
                api::app(Rc::clone(&worker), false, true),
                returning,
            )
            .await,
            worker,
        }
    }

    /// Takes care of a new connection, until it has become a session or is over.
    pub async fn greet(&self, stream: TcpStream, peer: SocketAddr, admin: bool, slot: Slot) {
        let config = &self.worker.shared.config;
        let tls = self.worker.shared.tls(admin);
        let stream = match tls {
            None => Stream::Plain(stream),
            // Apart, so that its future is not part of every waiting connection.
            Some(tls) => match Box::pin(tls.accept(stream, config.sockets.head_timeout)).await {
                Ok(stream) => stream,
                Err(error) => return debug!(%error, %peer, "TLS handshake"),
            },
        };
        let is_secret = matches!(stream, Stream::Tls(_));
        let connection = Replay {
            stream,
            read: BytesMut::new(),
            peer,
            admin,
            idle: None,
            stalled: None,
            over: false,
            is_shut: false,
            has_body: false,
            place: Rc::new(Place::new(slot, config)),
        };
        if tls.is_some() && !is_secret {
            let why = "this port speaks TLS: https:// or wss://";
            let refusal = Refusal::of("400 Bad Request", "bad_request", why);
            meters::refused(&refusal.status);
            return connection.refuse(&refusal, &config.api).await;
        }
        self.enter(connection).await;
    }

    /// Takes care of a connection on which the HTTP server met an upgrade. Its answers come first. An upgrade that did
    /// not wait for them is refused in its turn: while a request is under way, the server takes what comes behind an
    /// upgrade for the body of that, and throws it away.
    pub async fn enter_again(&self, returning: Returning) {
        let Returning {
            mut connection,
            unsent,
            too_early,
        } = returning;
        if connection.send(&unsent).await.is_err() {
            return;
        }
        let api = &self.worker.shared.config.api;
        if connection.place.is_last.get() {
            return connection.linger(api).await;
        }
        if too_early {
            let why = "an upgrade waits for the answers to the requests before it";
            let refusal = Refusal::of("400 Bad Request", "bad_handshake", why);
            meters::refused(&refusal.status);
            return connection.refuse(&refusal, api).await;
        }
        self.enter(connection).await;
    }

    /// Takes care of a connection of which the head of a request is still to be read.
    pub async fn enter(&self, mut connection: Replay) {
        let peer = connection.peer;
        let settings = &self.worker.shared.config.sockets;
        let api = &self.worker.shared.config.api;
        let head = connection.read_head(settings.head_bytes);
        let head_len = match timeout(settings.head_timeout, head).await {
            Ok(Ok(len)) => len,
            Ok(Err(HeadError::TooLarge)) => {
                let status = "431 Request Header Fields Too Large";
                let refusal =
                    Refusal::of(status, "head_too_large", "the request head is too large");
                meters::refused(&refusal.status);
                return connection.refuse(&refusal, api).await;
            }
            Ok(Err(HeadError::Io)) => return,
            Err(_) => {
                let status = "408 Request Timeout";
                let refusal = Refusal::of(status, "timeout", "the request head took too long");
                meters::refused(&refusal.status);
                return connection.refuse(&refusal, api).await;
            }
        };
        let head = connection.read.split_to(head_len);
        connection.has_body = !head.starts_with(b"GET ");
        let curious = self.worker.shared.curious;
        match Self::decide(&head, curious) {
            Ok(Decision::Http(head)) => {
                let mut read = BytesMut::from(&head[..]);
                read.extend_from_slice(&connection.read);
                connection.read = read;
                connection.idle = Some(Idle { sleep: None });
                let http = if connection.admin {
                    &self.admin
                } else {
                    &self.public
                };
                http(connection, peer).await;
            }
            Ok(Decision::Socket(..)) if connection.admin => {
                let refusal =
                    Refusal::of("404 Not Found", "not_found", "no sockets are served here");
                meters::refused(&refusal.status);
                connection.refuse(&refusal, api).await;
            }
            Ok(Decision::Socket(mut upgrade, headers)) => {
                upgrade.deflate = upgrade.deflate.filter(|_| settings.deflate);
                let wire = Wire::of_websocket(upgrade.deflate);
                let handshake = Handshake {
                    room: upgrade.room.clone(),
                    query: upgrade.query.clone(),
                    headers,
                    peer,
                    user: None,
                    parameters: Vec::new(),
                };
                match Box::pin(admit(&self.worker.shared, wire, handshake)).await {
                    Ok(admitted) => {
                        let arrival = Arrival {
                            response: upgrade.response(),
                            rest: connection.read.to_vec(),
                            stream: connection.stream,
                            wire,
                            admitted,
                        };
                        Session::start_on(Rc::clone(&self.worker), arrival);
                    }
                    Err(refusal) => connection.refuse(&refusal, api).await,
                }
            }
            Err(refusal) => {
                meters::refused(&refusal.status);
                connection.refuse(&refusal, api).await;
            }
        }
    }

    /// Apart from [`Door::enter`], so that the table of headers is not part of every waiting connection.
    fn decide(head: &[u8], curious: bool) -> Result<Decision, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let bad = |why: &str| Refusal::of("400 Bad Request", "bad_request", why);
        match request
            .parse(head)
            .map_err(|error| bad(&error.to_string()))?
        {
            // A head that ends before its empty line has lines that end in a bare LF: others would see its end
            // elsewhere.
            httparse::Status::Complete(len) if len == head.len() => {}
            _ => return Err(bad("lines end in CR LF")),
        }
        Ok(match handshake::read(&request)? {
            Wanted::Http => Decision::Http(handshake::without_upgrade(&request)),
            Wanted::Socket(upgrade) => {
                let headers = if curious {
                    headers_of(&request)
                } else {
                    HeaderMap::new()
                };
                Decision::Socket(upgrade, headers)
            }
        })
    }
}

/// The service of an actix-web application. A request that asks for an upgrade comes out of `returning`.
async fn http<S, B>(
    worker: &Rc<Worker>,
    app: App<S>,
    returning: mpsc::UnboundedSender<Returning>,
) -> Http
where
    S: ServiceFactory<
            ServiceRequest,
            Config = (),
            Response = ServiceResponse<B>,
            Error = actix_web::Error,
            InitError = (),
        > + 'static,
    B: MessageBody + 'static,
{
    let upgrade = fn_service(move |(request, framed): (Request, Framed)| {
        let parts = framed.into_parts();
        let mut served = parts.io;
        if let Some(mut connection) = served.connection.take() {
            let mut read = BytesMut::from(&head_of(&request)[..]);
            read.extend_from_slice(&parts.read_buf);
            read.extend_from_slice(&connection.read);
            connection.read = read;
            let too_early = connection.place.is_behind.get();
            let _ = returning.send(Returning {
                connection,
                unsent: parts.write_buf,
                too_early,
            });
        }
        std::future::ready(Ok::<_, actix_web::Error>(()))
    });
    let factory = HttpService::build()
        // Between 1 and 999 ms actix-http forgets connections for ever; with 0 it closes at once. Above, it would read
        // any number of bytes, and not say before that nothing more comes: see `Replay::linger`.
        .client_disconnect_timeout(Duration::ZERO)
        .on_connect_ext(|served: &Served, data| {
            if let Some(connection) = &served.connection {
                data.insert(Rc::clone(&connection.place));
            }
        })
        .finish(map_config(app.wrap(from_fn(mark)).into_factory(), |()| {
            AppConfig::default()
        }))
        .upgrade(Some(upgrade));
    let service = factory.new_service(()).await;
    let service = Rc::new(service.expect("the application has no fallible parts"));
    let worker = Rc::clone(worker);
    Box::new(move |connection, peer| {
        let service = Rc::clone(&service);
        let worker = Rc::clone(&worker);
        Box::pin(async move {
            let back = Rc::default();
            let served = Served {
                connection: Some(connection),
                back: Rc::clone(&back),
            };
            let outcome = service.call((served, Protocol::Http1, Some(peer))).await;
            if let Err(error) = &outcome {
                debug!(%error, "http connection");
            }
            let connection = back.take();
            if let Some(connection) = connection
                && connection.may_be_told_more(outcome.is_err())
            {
                Box::pin(connection.linger(&worker.shared.config.api)).await;
            }
        })
    })
}

/// Keeps the place of a connection told of what is under way.
async fn mark(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<Answer>, actix_web::Error> {
    let place = request.conn_data::<Rc<Place>>().map(Rc::clone);
    if let Some(place) = place.as_ref().filter(|place| place.is_last.get()) {
        // The connection ends once that answer is flushed (RFC 9112 §9.6). The HTTP server would go on.
        place.is_done.set(true);
        return std::future::pending().await;
    }
    let mut is_last = request.head().connection_type() == ConnectionType::Close;
    let under_way = place.map(|place| {
        place.under_way.set(place.under_way.get() + 1);
        place.is_behind.set(true);
        let is_chunked = request.headers().contains_key(TRANSFER_ENCODING);
        place.reads_on.set(is_chunked);
        UnderWay(place)
    });
    let called = next.call(request).await;
    is_last |= match &called {
        Ok(response) => response.response().head().connection_type() == ConnectionType::Close,
        Err(_) => false,
    };
    if let Some(UnderWay(place)) = &under_way {
        place.is_last.set(is_last);
    }
    let response = called?;
    Ok(response.map_body(|_, body| Answer {
        body: body.boxed(),
        _under_way: under_way,
    }))
}

type Framed = actix_codec::Framed<Served, h1::Codec>;

/// What a request head asks for.
enum Decision {
    Http(Vec<u8>),
    /// With the headers, where anybody wants to see them.
    Socket(Upgrade, HeaderMap),
}

/// What the HTTP server gets of a request head that ends in its empty line; none, where that asks for a socket.
#[cfg(feature = "fuzzing")]
pub fn head_for_http(head: &[u8]) -> Result<Option<Vec<u8>>, Refusal> {
    Ok(match Door::decide(head, true)? {
        Decision::Http(head) => Some(head),
        Decision::Socket(..) => None,
    })
}

enum HeadError {
    TooLarge,
    Io,
}

impl Replay {
    /// Reads what was read before, and then what comes.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let count = self.read.len().min(buffer.remaining());
        buffer.put_slice(&self.read[..count]);
        self.read.advance(count);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Reads up to the empty line and says where the head ends.
    async fn read_head(&mut self, bytes_max: usize) -> Result<usize, HeadError> {
        let mut searched = 0;
        loop {
            // The end may span two reads.
            let from = usize::saturating_sub(searched, 3);
            if let Some(at) = find(&self.read[from..], b"\r\n\r\n") {
                let len = from + at + 4;
                return if len > bytes_max {
                    Err(HeadError::TooLarge)
                } else {
                    Ok(len)
                };
            }
            if self.read.len() > bytes_max {
                return Err(HeadError::TooLarge);
            }
            searched = self.read.len();
            // Room for what most heads have: an empty buffer would be filled by some dozen bytes at a time.
            self.read.reserve(HEAD_BYTES);
            match self.stream.read_buf(&mut self.read).await {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(HeadError::Io),
            }
        }
    }

    /// The client of an event stream has nothing more to say: what comes is read, and thrown away, for its end.
    /// The HTTP server would keep it as further requests and then read no more, or take the end for that of the
    /// requests, and write until that fails.
    fn discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.read = BytesMut::new();
        let mut scratch = [0; 4096];
        // The runtime sees to it that others get their turn.
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => {
                    return Poll::Ready(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(()) => {}
                Err(error) => return Poll::Ready(error),
            }
        }
    }

    /// Pending turns into an error when it has lasted too long.
    fn unless_idle<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        let Some(idle) = &mut self.idle else {
            return polled;
        };
        if polled.is_ready() {
            idle.sleep = None;
            return polled;
        }
        let place = &self.place;
        let sleep = idle
            .sleep
            .get_or_insert_with(|| Box::pin(sleep(place.patience())));
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// A request that has begun comes to its end in time, once one was answered. Before, its head is there already.
    fn unless_stalled(
        &mut self,
        polled: Poll<io::Result<()>>,
        count: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let place = &self.place;
        if place.under_way.get() > 0 {
            return polled;
        }
        if polled.is_ready() {
            place.is_behind.set(false);
            place.bytes.set(place.bytes.get().saturating_add(count));
            let too_many = place.reads_on.get() && place.bytes.get() > place.limits.linger_bytes;
            return match too_many {
                true => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                false => polled,
            };
        }
        let answers = place.answers.get();
        let limit = match (place.reads_on.get(), place.bytes.get()) {
            _ if answers == 0 => return polled,
            (true, _) => place.limits.linger_time,
            // The HTTP server itself ends connections without any request.
            (false, 0) => return polled,
            (false, _) => place.limits.head_timeout,
        };
        let stalled = match &mut self.stalled {
            Some(stalled) if stalled.answers == answers => stalled,
            stalled => stalled.insert(Stalled {
                answers,
                sleep: Box::pin(sleep(limit)),
            }),
        };
        match stalled.sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sends what the HTTP server has left behind.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let write_timeout = self.place.write_timeout.get();
        let sent = timeout(write_timeout, async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        });
        sent.await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Answers and closes. A client that has said all, and has nothing more to say, is not waited for.
    async fn refuse(mut self, refusal: &Refusal, api: &Api) {
        let response = refusal.response();
        let answered = timeout(REFUSE_TIMEOUT, async {
            self.stream.write_all(&response).await?;
            self.stream.shutdown().await?;
            self.is_shut = true;
            io::Result::Ok(())
        });
        if !matches!(answered.await, Ok(Ok(()))) {
            return;
        }
        let mut scratch = [0; 1];
        let has_more = match self.stream.read(&mut scratch).now_or_never() {
            Some(Ok(count)) => count > 0,
            Some(Err(_)) => false,
            None => self.has_body || !self.read.is_empty(),
        };
        if has_more {
            self.linger(api).await;
        }
    }

    /// Whether the client may be writing still, for all that the HTTP server knows.
    fn may_be_told_more(&self, failed: bool) -> bool {
        // The server shuts down nothing that it leaves because nobody asks it for anything.
        !self.over && !self.place.is_socket.get() && (self.is_shut || failed)
    }

    /// Closes, and meanwhile reads what the client still sends, and throws it away: unread bytes would turn the end
    /// into a reset, which may cost the client the answer, and one that writes does not read before it has written.
    async fn linger(mut self, api: &Api) {
        let mut scratch = vec![0; SCRATCH_BYTES];
        let mut bytes = 0;
        let thrown_away = timeout(api.linger_time, async {
            if !self.is_shut {
                self.stream.shutdown().await?;
            }
            while bytes <= api.linger_bytes {
                let read = self.stream.read(&mut scratch);
                match timeout(api.linger_timeout, read).await {
                    Ok(Ok(count)) if count > 0 => bytes += count,
                    _ => break,
                }
            }
            io::Result::Ok(())
        });
        let _ = thrown_away.await;
        drop(self.place);
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes
        .windows(wanted.len())
        .position(|window| window == wanted)
}

/// The headers of a request. Those that cannot be are left out.
fn headers_of(request: &httparse::Request<'_, '_>) -> HeaderMap {
    let headers = request.headers.iter().filter_map(|header| {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        Some((name, HeaderValue::from_bytes(header.value).ok()?))
    });
    let mut map = HeaderMap::new();
    headers.for_each(|(name, value)| map.append(name, value));
    map
}

/// The text of a request head that actix-http has taken apart.
fn head_of(request: &Request) -> Vec<u8> {
    let version = match request.version() {
        actix_http::Version::HTTP_10 => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let mut head = format!("{} {} {version}\r\n", request.method(), request.uri()).into_bytes();
    for (name, value) in request.headers() {
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

impl Served {
    fn connection(&mut self) -> io::Result<&mut Replay> {
        let connection = self.connection.as_mut();
        connection.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.back.replace(self.connection.take());
    }
}

impl AsyncRead for Served {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let connection = self.connection()?;
        if connection.place.is_socket.get() {
            return connection.discard(cx).map(Err);
        }
        let before = buffer.filled().len();
        let polled = connection.poll_read(cx, buffer);
        let count = buffer.filled().len() - before;
        let at_end = polled.is_ready() && count == 0 && buffer.remaining() > 0;
        let polled = connection.unless_stalled(polled, count, cx);
        connection.over |= at_end || matches!(polled, Poll::Ready(Err(_)));
        polled
    }
}

impl AsyncWrite for Served {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let connection = self.connection()?;
        let written = Pin::new(&mut connection.stream).poll_write(cx, bytes);
        let written = connection.unless_idle(written, cx);
        connection.over |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection()?;
        let flushed = Pin::new(&mut connection.stream).poll_flush(cx);
        ready!(connection.unless_idle(flushed, cx))?;
        match connection.place.is_done.get() {
            true => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            false => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let connection = self.connection()?;
        let shut = Pin::new(&mut connection.stream).poll_shutdown(cx);
        let shut = connection.unless_idle(shut, cx);
        connection.is_shut |= matches!(shut, Poll::Ready(Ok(())));
        shut
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let Self(place) = self;
        place.under_way.set(place.under_way.get() - 1);
        place.answers.set(place.answers.get() + 1);
        place.bytes.set(0);
    }
}

impl MessageBody for Answer {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.body.as_pin_mut().poll_next(cx)
    }
}
