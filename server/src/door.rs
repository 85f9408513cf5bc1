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

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_http::{HttpMessage, HttpService, Protocol, Request, h1};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, fn_service, map_config};
use actix_web::App;
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, ServiceRequest, ServiceResponse};
use bytes::{Buf, BytesMut};
use futures_util::future::LocalBoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tracing::debug;

use crate::admission::admit;
use crate::api;
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
pub struct Returning(pub Replay);

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
    place: Rc<Place>,
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
}

impl Place {
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
const LINGER: Duration = Duration::from_secs(1);

impl Door {
    /// Makes the HTTP application of this worker. A later request of a connection that began as plain HTTP
    /// may ask for an upgrade, as those of proxies do that keep connections: it comes out of `returning`,
    /// and is to be handed to [`Door::enter`].
    pub async fn new(worker: Rc<Worker>, returning: mpsc::UnboundedSender<Returning>) -> Self {
        let with_admin = worker.shared.config.admin.listen.is_some();
        Self {
            public: http(
                api::app(Rc::clone(&worker), true, !with_admin),
                returning.clone(),
            )
            .await,
            admin: http(api::app(Rc::clone(&worker), false, true), returning).await,
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
            place: Rc::new(Place {
                slot: RefCell::new(Arc::new(slot)),
                is_socket: Cell::new(false),
                write_timeout: Cell::new(config.api.idle_timeout),
                deadline: Cell::new(None),
            }),
        };
        if tls.is_some() && !is_secret {
            let why = "this port speaks TLS: https:// or wss://";
            let refusal = Refusal::of("400 Bad Request", "bad_request", why);
            meters::refused(&refusal.status);
            return connection.refuse(&refusal).await;
        }
        self.enter(connection).await;
    }

    /// Takes care of a connection of which the head of a request is still to be read.
    pub async fn enter(&self, mut connection: Replay) {
        let peer = connection.peer;
        let settings = &self.worker.shared.config.sockets;
        let head = connection.read_head(settings.head_bytes);
        let head_len = match timeout(settings.head_timeout, head).await {
            Ok(Ok(len)) => len,
            Ok(Err(HeadError::TooLarge)) => {
                let status = "431 Request Header Fields Too Large";
                let refusal =
                    Refusal::of(status, "head_too_large", "the request head is too large");
                meters::refused(&refusal.status);
                return connection.refuse(&refusal).await;
            }
            Ok(Err(HeadError::Io)) => return,
            Err(_) => {
                let status = "408 Request Timeout";
                let refusal = Refusal::of(status, "timeout", "the request head took too long");
                meters::refused(&refusal.status);
                return connection.refuse(&refusal).await;
            }
        };
        let head = connection.read.split_to(head_len);
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
                connection.refuse(&refusal).await;
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
                    Err(refusal) => connection.refuse(&refusal).await,
                }
            }
            Err(refusal) => {
                meters::refused(&refusal.status);
                connection.refuse(&refusal).await;
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
async fn http<S, B>(app: App<S>, returning: mpsc::UnboundedSender<Returning>) -> Http
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
        let mut connection = parts.io;
        let mut read = BytesMut::from(&head_of(&request)[..]);
        read.extend_from_slice(&parts.read_buf);
        read.extend_from_slice(&connection.read);
        connection.read = read;
        let _ = returning.send(Returning(connection));
        std::future::ready(Ok::<_, actix_web::Error>(()))
    });
    let factory = HttpService::build()
        // Between 1 and 999 ms actix-http forgets connections for ever; with 0 it closes at once.
        .client_disconnect_timeout(Duration::ZERO)
        .on_connect_ext(|connection: &Replay, data| {
            data.insert(Rc::clone(&connection.place));
        })
        .finish(map_config(app.into_factory(), |()| AppConfig::default()))
        .upgrade(Some(upgrade));
    let service = factory.new_service(()).await;
    let service = Rc::new(service.expect("the application has no fallible parts"));
    Box::new(move |connection, peer| {
        let service = Rc::clone(&service);
        Box::pin(async move {
            let served = service
                .call((connection, Protocol::Http1, Some(peer)))
                .await;
            if let Err(error) = served {
                debug!(%error, "http connection");
            }
        })
    })
}

type Framed = actix_codec::Framed<Replay, h1::Codec>;

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

    /// Answers and closes. What the client still sends is read for a moment: unread bytes would turn the
    /// end into a reset, which may cost the client the answer.
    async fn refuse(mut self, refusal: &Refusal) {
        let linger = async {
            self.stream.write_all(&refusal.response()).await?;
            self.stream.shutdown().await?;
            let mut rest = vec![0; 1024];
            while self.stream.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = timeout(LINGER, linger).await;
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

impl AsyncRead for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.place.is_socket.get() {
            return self.discard(cx).map(Err);
        }
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
}

impl AsyncWrite for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.unless_idle(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
