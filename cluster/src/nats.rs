//! The bus of a real cluster. The only file that knows `async_nats`.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{
    Client, ConnectError, ConnectOptions, Event, HeaderMap, PublishErrorKind, ServerAddr,
    StatusCode, Subscriber,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{Bus, BusStatus, Message, Outgoing, PublishError, Seldom, Subject};

/// How to reach NATS.
#[derive(Clone, Debug)]
pub struct NatsConfig {
    /// Servers, as `nats://host:port` or `tls://host:port`; each is tried in turn.
    pub servers: Vec<String>,
    /// The name that `nats-server` shows for the connection.
    pub client_name: String,
    /// How to log in.
    pub auth: NatsAuth,
    /// A PEM file of authorities to trust beside the system's.
    pub tls_ca: Option<PathBuf>,
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// How often to ping the server; two pings without an answer end the connection.
    pub ping_interval: Duration,
    /// Longest wait between two attempts to reconnect; the wait is random below a bound that doubles.
    pub reconnect_delay_max: Duration,
    /// Messages that may wait in one subscription.
    pub subscription_messages_max: usize,
}

/// Checks that a text names a server.
pub fn check_server(text: &str) -> Result<(), NatsError> {
    let server: ServerAddr = text
        .parse()
        .map_err(|error: std::io::Error| NatsError(error.to_string()))?;
    let plain = !server.host().is_empty() && !server.host().contains(char::is_whitespace);
    plain
        .then_some(())
        .ok_or_else(|| NatsError("no host in the URL".to_owned()))
}

/// How to log in to NATS.
#[derive(Clone, Debug)]
pub enum NatsAuth {
    /// Not at all.
    None,
    /// With a name and a password.
    UserPassword(String, String),
    /// With a token.
    Token(String),
    /// With a `.creds` file (JWT and seed).
    Credentials(String),
}

/// A connection to NATS: made in the background, and made again for ever.
pub struct NatsBus {
    client: Client,
    seen: Arc<Seen>,
}

/// What the client's events told.
#[derive(Default)]
struct Seen {
    overflows: AtomicU64,
    closed: AtomicBool,
}

/// Messages of one subscription.
pub struct NatsSubscription {
    subscriber: Option<Subscriber>,
    /// Messages that came out of it.
    taken: u64,
}

/// A request and its reply over a NATS server, and nothing else: what a call to another node takes at least. The
/// replies come from a connection and a thread of their own, as those of another node do.
pub struct RoundTrip {
    client: Client,
    subject: String,
    /// Dropped, it ends the thread.
    _answering: oneshot::Sender<()>,
}

/// Servers or credentials that cannot be used, whatever the network does.
#[derive(Debug, thiserror::Error)]
#[error("nats: {0}")]
pub struct NatsError(String);

/// The target of the client's own log lines, which say again what this file says.
pub const CLIENT_LOG_TARGET: &str = "async_nats";

/// What the server refuses, such as a subject without the right to it: it may say so for each message.
static SERVER_ERRORS: Seldom = Seldom::new();

/// Connections that were made, and lost: a server that accepts and hangs up does so for ever.
static CONNECTS: Seldom = Seldom::new();
static DISCONNECTS: Seldom = Seldom::new();

/// What the client could not do, such as a connection, which it tries for ever.
static CLIENT_ERRORS: Seldom = Seldom::new();

/// The queue group of what one node of all has to serve.
const QUEUE_GROUP: &str = "unisono";

/// Messages and subscriptions that the client itself may hold back: few, because they are not part of the
/// node's budget, and the queues before it are.
const CLIENT_COMMANDS_MAX: usize = 128;

/// How long [`Bus::close`] waits for the last bytes to be written.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// How often [`Bus::close`] looks whether they are.
const CLOSE_POLL: Duration = Duration::from_millis(5);

/// One of today's has 55; those of later versions may be longer.
const TRACEPARENT_BYTES_MAX: usize = 256;

/// What `nats-server` takes unless it is told otherwise; used until it has said.
const PAYLOAD_MAX_DEFAULT: usize = 1024 * 1024;

impl NatsBus {
    /// Starts to connect, on the current runtime. Returns before there is a connection.
    pub async fn connect(config: NatsConfig) -> Result<Self, NatsError> {
        let seen = Arc::new(Seen::default());
        let noted = Arc::clone(&seen);
        let delay_max = config.reconnect_delay_max;
        let mut options = ConnectOptions::new()
            .name(config.client_name)
            .no_echo()
            .retry_on_initial_connect()
            .max_reconnects(None)
            .connection_timeout(config.connect_timeout)
            .ping_interval(config.ping_interval)
            .subscription_capacity(config.subscription_messages_max)
            .client_capacity(CLIENT_COMMANDS_MAX)
            .reconnect_delay_callback(move |attempts| full_jitter(attempts, delay_max))
            .event_callback(move |event| {
                note(&event, &noted);
                std::future::ready(())
            });
        options = match config.auth {
            NatsAuth::None => options,
            NatsAuth::UserPassword(user, password) => options.user_and_password(user, password),
            NatsAuth::Token(token) => options.token(token),
            NatsAuth::Credentials(text) => options
                .credentials(&text)
                .map_err(|error| NatsError(format!("the credentials file: {error}")))?,
        };
        if let Some(path) = config.tls_ca {
            options = options.add_root_certificates(path).require_tls(true);
        }
        let client = options
            .connect(config.servers)
            .await
            .map_err(|error| NatsError(error.to_string()))?;
        Ok(Self { client, seen })
    }
}

/// "Full jitter": a random part of a bound that doubles with each attempt, so that a cluster which lost
/// NATS does not come back all at once. The first attempt waits too, for the same reason.
fn full_jitter(attempts: usize, max: Duration) -> Duration {
    let doublings = u32::try_from(attempts.min(16)).unwrap_or(16);
    let bound = Duration::from_millis(50)
        .saturating_mul(2u32.saturating_pow(doublings))
        .min(max);
    bound.mul_f64(rand::random::<f64>())
}

/// Events come through a queue that forgets when it is full, so they are only logged; the state itself
/// is asked for.
fn note(event: &Event, seen: &Seen) {
    match event {
        Event::Connected => {
            if let Some(times) = CONNECTS.add(Instant::now(), 1) {
                info!(times, "bus connected");
            }
        }
        Event::Disconnected => {
            if let Some(times) = DISCONNECTS.add(Instant::now(), 1) {
                warn!(times, "bus disconnected");
            }
        }
        Event::SlowConsumer(_) => {
            seen.overflows.fetch_add(1, Ordering::Relaxed);
        }
        Event::LameDuckMode => info!("nats server is in lame duck mode"),
        Event::ServerError(error) => {
            metrics::counter!("unisono_bus_errors_total").increment(1);
            if let Some(errors) = SERVER_ERRORS.add(Instant::now(), 1) {
                warn!(%error, errors, "nats server");
            }
        }
        Event::ClientError(error) => {
            metrics::counter!("unisono_bus_errors_total").increment(1);
            if let Some(errors) = CLIENT_ERRORS.add(Instant::now(), 1) {
                warn!(%error, errors, "nats client");
            }
        }
        Event::Closed => seen.closed.store(true, Ordering::Release),
        Event::Draining => {}
    }
}

impl Bus for NatsBus {
    type Subscription = NatsSubscription;

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let subject = message.subject.as_str().to_owned();
        let result = match message.reply {
            None => self.client.publish(subject, message.payload).await,
            Some(reply) => {
                let reply = reply.as_str().to_owned();
                self.client
                    .publish_with_reply(subject, reply, message.payload)
                    .await
            }
        };
        result.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => PublishError::TooLarge,
            _ => PublishError::Closed,
        })
    }

    async fn subscribe(&self, subject: Subject) -> NatsSubscription {
        let subscriber = self.client.subscribe(subject.as_str().to_owned()).await;
        // Subjects come from the codec, so only a client that is closed refuses: there is nothing to hear.
        NatsSubscription::new(subscriber.ok())
    }

    async fn subscribe_shared(&self, subject: Subject) -> NatsSubscription {
        let subject = subject.as_str().to_owned();
        let subscriber = self
            .client
            .queue_subscribe(subject, QUEUE_GROUP.to_owned())
            .await;
        NatsSubscription::new(subscriber.ok())
    }

    /// The client forgets a subscription before the server does, and what comes in between is lost, also when it drains
    /// (0.51: it does not wait for the answer to its PING). With a number, both end after the same message.
    async fn drain(&self, subscription: &mut NatsSubscription, more: u64) {
        let NatsSubscription { subscriber, taken } = subscription;
        if let Some(subscriber) = subscriber {
            // Only a client that is closed refuses, and then the stream has ended.
            let _ = match more {
                0 => subscriber.drain().await,
                more => subscriber.unsubscribe_after(*taken + more).await,
            };
        }
    }

    fn status(&self) -> BusStatus {
        BusStatus {
            connected: self.client.connection_state() == State::Connected,
            connections: self.client.statistics().connects.load(Ordering::Relaxed),
            overflows: self.seen.overflows.load(Ordering::Relaxed),
        }
    }

    fn payload_max(&self) -> usize {
        match self.client.max_payload() {
            0 => PAYLOAD_MAX_DEFAULT,
            bytes => bytes,
        }
    }

    async fn reconnect(&self) {
        let _ = self.client.force_reconnect().await;
    }

    async fn close(&self) {
        let drained = async {
            // A client that drains may end with its last bytes unwritten, where the socket takes no more for a moment.
            let _ = self.client.flush().await;
            let _ = self.client.drain().await;
            while !self.seen.closed.load(Ordering::Acquire) {
                tokio::time::sleep(CLOSE_POLL).await;
            }
        };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, drained).await;
    }
}

/// Nodes send no headers to each other: this is for requests of applications.
fn traceparent(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get("traceparent")?.as_str();
    (value.len() <= TRACEPARENT_BYTES_MAX).then(|| value.into())
}

impl NatsSubscription {
    fn new(subscriber: Option<Subscriber>) -> Self {
        Self {
            subscriber,
            taken: 0,
        }
    }
}

impl Stream for NatsSubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let Some(subscriber) = &mut self.subscriber else {
            return Poll::Ready(None);
        };
        let message = Pin::new(subscriber).poll_next(cx);
        if let Poll::Ready(Some(_)) = &message {
            self.taken += 1;
        }
        message.map(|message| {
            message.map(|message| Message {
                no_responders: message.status == Some(StatusCode::NO_RESPONDERS),
                traceparent: message.headers.as_ref().and_then(traceparent),
                subject: message.subject.into_string(),
                reply: message.reply.map(async_nats::Subject::into_string),
                payload: message.payload,
            })
        })
    }
}

// === impl RoundTrip ===

impl RoundTrip {
    /// Makes both connections to that server, each within `timeout`, which is that of a round trip, too. They have
    /// the name `client_name`.
    ///
    /// # Errors
    ///
    /// When there is no server, or it refuses.
    pub async fn connect(
        server: &str,
        client_name: &str,
        timeout: Duration,
    ) -> Result<Self, NatsError> {
        let connect = || {
            let options = ConnectOptions::new().name(client_name);
            let options = options.connection_timeout(timeout);
            options
                .request_timeout(Some(timeout))
                .connect(server.to_owned())
        };
        let client = connect().await.map_err(error)?;
        let subject = client.new_inbox();
        let (answering, ended) = oneshot::channel();
        let (ready, answers) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(error)?;
        let connecting = connect();
        let at = subject.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = answer(connecting, at, ready) => {}
                    _ = ended => {}
                }
            });
        });
        match answers.await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(NatsError(
                    "the connection that answers has ended".to_owned(),
                ));
            }
        }
        Ok(Self {
            client,
            subject,
            _answering: answering,
        })
    }

    /// One round trip: those bytes there, none back.
    ///
    /// # Errors
    ///
    /// When no reply comes.
    pub async fn ask(&self, payload: Bytes) -> Result<(), NatsError> {
        let subject = self.subject.clone();
        let reply = self.client.request(subject, payload).await;
        reply.map(drop).map_err(error)
    }
}

/// Replies to whatever comes to that subject, and says when it begins to.
async fn answer(
    connecting: impl Future<Output = Result<Client, ConnectError>>,
    subject: String,
    ready: oneshot::Sender<Result<(), NatsError>>,
) {
    let begun = async {
        let client = connecting.await.map_err(error)?;
        let requests = client.subscribe(subject.clone()).await.map_err(error)?;
        // Comes back when the server knows the subscription.
        client.publish(subject, Bytes::new()).await.map_err(error)?;
        Ok((client, requests))
    };
    let (client, mut requests) = match begun.await {
        Ok(begun) => begun,
        Err(why) => return drop(ready.send(Err(why))),
    };
    let mut ready = Some(ready);
    while let Some(request) = requests.next().await {
        match (request.reply, ready.take()) {
            (Some(reply), _) => drop(client.publish(reply, Bytes::new()).await),
            (None, Some(ready)) => drop(ready.send(Ok(()))),
            (None, None) => {}
        }
    }
}

fn error(error: impl std::fmt::Display) -> NatsError {
    NatsError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_are_spread_below_a_bound() {
        let max = Duration::from_secs(4);
        for attempt in [0, 1, 5, 40, usize::MAX] {
            let bound = Duration::from_millis(50 << attempt.min(7)).min(max);
            let waits: Vec<_> = (0..200).map(|_| full_jitter(attempt, max)).collect();
            assert!(waits.iter().all(|wait| *wait <= bound), "{attempt}");
            let early = waits.iter().filter(|wait| **wait < bound / 2).count();
            assert!((40..=160).contains(&early), "{attempt}: {early} of 200");
        }
    }
}
