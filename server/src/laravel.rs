//! Broadcasts of Laravel applications. Laravel's `redis` driver publishes them on a Redis server; every
//! node listens there, and each delivers to its own sockets only: the other nodes heard it too.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::Utf8Error;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures_util::StreamExt;
use proto::envelope::Text;
use proto::json::{Unreadable, check_message, speaks_for_server};
use proto::name::{NAME_BYTES_MAX, NameError};
use proto::{RoomName, SocketId};
use redis::aio::{PubSub, PubSubSink};
use redis::{Client, ConnectionInfo, IntoConnectionInfo, Msg, ProtocolVersion, RedisError};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use crate::config;
use crate::seldom::Seldom;
use crate::textfile;
use crate::vital::Vital;

/// One broadcast of a Laravel application.
#[derive(Debug, PartialEq)]
pub struct Broadcast {
    /// The room: the channel without Laravel's prefix.
    pub room: RoomName,
    /// Laravel's payload, byte for byte.
    pub text: Text,
    /// The socket that caused it and does not get it.
    pub except: Option<SocketId>,
}

/// The longest payload that is delivered.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// How long Redis may take to let the node in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection may be dead without its end being told, so Redis is asked every now and then.
const PING_INTERVAL: Duration = Duration::from_secs(3);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The bound on the wait between two attempts to connect, at first and at last.
const DELAY_MIN: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(4);

/// How Laravel's own prefixes end, those of today and of before.
const PREFIX_ENDS: [&str; 2] = ["-database-", "_database_"];

/// Prefixes that are hinted at, at most: applications on one Redis server.
const HINTS_MAX: usize = 16;

/// Listens to the Redis server of `[laravel]` for as long as the process lives, however often the server
/// goes away; does nothing where there is none. `deliver` gets the broadcasts in their order and must not
/// block. `gap` is called each time that Redis is back, before what comes then: broadcasts may have been
/// missed.
///
/// # Errors
///
/// When the URL is no good, or the password file cannot be read.
pub fn start(
    config: &config::Laravel,
    outside: &Handle,
    deliver: impl FnMut(Broadcast) + Send + 'static,
    gap: impl FnMut() + Send + 'static,
) -> anyhow::Result<()> {
    if config.redis_url.is_empty() {
        return Ok(());
    }
    let listener = Listener {
        redis: Redis::new(config)?,
        channels: Channels::new(&config.prefix),
        away: None,
        complaints: Seldom::default(),
        deliver,
        gap,
    };
    // From the start, so that an alarm has something to look at.
    metrics::gauge!("unisono_laravel_connected").set(0.0);
    for result in ["delivered", "bad"] {
        counter(result).increment(0);
    }
    outside.spawn(listener.run());
    Ok(())
}

/// The task that listens.
struct Listener<D, G> {
    redis: Redis,
    channels: Channels,
    /// Why Redis is away, as it was last said.
    away: Option<String>,
    complaints: Seldom,
    deliver: D,
    gap: G,
}

/// Where to listen, and to what.
struct Redis {
    server: ConnectionInfo,
    password_file: PathBuf,
    pattern: String,
}

/// Which room a channel means.
struct Channels {
    prefix: String,
    hinted: HashSet<String>,
}

/// Why a message of Redis is not delivered.
#[derive(Debug, thiserror::Error)]
enum Bad {
    #[error("it has {bytes} bytes; at most {TEXT_BYTES_MAX} are delivered")]
    TooLong { bytes: usize },
    #[error("it is not UTF-8")]
    NotText(#[from] Utf8Error),
    #[error("it is not a JSON object")]
    NotAnObject,
    #[error("it {0}")]
    Unreadable(#[from] Unreadable),
    #[error("it is not what Laravel sends: {0}")]
    NotABroadcast(#[from] serde_json::Error),
    #[error("the channel is not UTF-8, or lacks the prefix")]
    Channel,
    #[error("the channel names no room: {0}")]
    Room(NameError),
    #[error(transparent)]
    Event(NameError),
}

/// What is read of a payload. `data` is the clients' business.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow, rename = "event")]
    _event: Cow<'a, str>,
    /// Whatever the application was told in `X-Socket-ID`.
    #[serde(borrow)]
    socket: Option<&'a RawValue>,
}

// === impl Listener ===

impl<D: FnMut(Broadcast), G: FnMut()> Listener<D, G> {
    async fn run(mut self) {
        let _vital = Vital("laravel");
        let mut attempts = 0;
        // Redis may have been there for others before it was for this node.
        let mut missed = false;
        loop {
            let reason = match self.redis.subscribe().await {
                Err(reason) => reason,
                Ok(subscription) => {
                    self.connected();
                    if missed {
                        (self.gap)();
                    }
                    let since = Instant::now();
                    let reason = self.follow(subscription).await;
                    // A server that lets the node in only to throw it out is not asked at once again.
                    if since.elapsed() > DELAY_MAX {
                        attempts = 0;
                    }
                    reason
                }
            };
            missed = true;
            self.went_away(&reason);
            sleep(full_jitter(attempts)).await;
            attempts += 1;
        }
    }

    /// Takes what comes until nothing comes any more; returns why.
    async fn follow(&mut self, subscription: PubSub) -> anyhow::Error {
        let (sink, mut messages) = subscription.split();
        let silence = silence(sink);
        tokio::pin!(silence);
        loop {
            tokio::select! {
                message = messages.next() => match message {
                    Some(message) => self.take(&message),
                    None => return anyhow!("the connection ended"),
                },
                () = &mut silence => {
                    return anyhow!("no answer to a ping within {PING_TIMEOUT:?}");
                }
            }
        }
    }

    fn take(&mut self, message: &Msg) {
        let channel: Vec<u8> = message.get_channel().unwrap_or_default();
        match self.broadcast(&channel, message.get_payload_bytes()) {
            Ok(broadcast) => {
                counter("delivered").increment(1);
                (self.deliver)(broadcast);
            }
            Err(bad) => {
                counter("bad").increment(1);
                if let Some(messages) = self.complaints.add(Instant::now(), 1) {
                    let channel = &channel[..channel.len().min(NAME_BYTES_MAX)];
                    let channel = String::from_utf8_lossy(channel);
                    warn!(?channel, reason = %bad, messages, "not a broadcast of Laravel");
                }
            }
        }
    }

    fn broadcast(&mut self, channel: &[u8], payload: &[u8]) -> Result<Broadcast, Bad> {
        let room = self.channels.room(channel)?;
        let (text, except) = read(payload)?;
        if let Some(prefix) = self.channels.hint(&room) {
            warn!(
                "the rooms of these broadcasts begin with what looks like Laravel's prefix; to leave it \
                 off, add: [laravel] prefix = \"{prefix}\""
            );
        }
        Ok(Broadcast { room, text, except })
    }

    fn connected(&mut self) {
        let Redis {
            server, pattern, ..
        } = &self.redis;
        metrics::gauge!("unisono_laravel_connected").set(1.0);
        info!(redis = %server.addr(), %pattern, "listening to Laravel's broadcasts");
        self.away = None;
    }

    /// Says so, once for each reason in a row.
    fn went_away(&mut self, reason: &anyhow::Error) {
        metrics::gauge!("unisono_laravel_connected").set(0.0);
        let reason = format!("{reason:#}");
        if self.away.as_ref() != Some(&reason) {
            let redis = self.redis.server.addr();
            warn!(%redis, %reason, "Redis is away; no broadcasts of Laravel until it is back");
            self.away = Some(reason);
        }
    }
}

// === impl Redis ===

impl Redis {
    fn new(config: &config::Laravel) -> anyhow::Result<Self> {
        let server = config.redis_url.as_str().into_connection_info();
        let server = server.context("laravel.redis_url")?;
        // Publications are not of any one database, and a user that may only listen may not SELECT one.
        // In RESP3 they would come another way.
        let settings = server.redis_settings().clone();
        let settings = settings
            .set_db(0)
            .set_protocol(ProtocolVersion::RESP2)
            .set_skip_set_lib_name();
        let redis = Self {
            server: server.set_redis_settings(settings),
            password_file: config.redis_password_file.clone(),
            pattern: escape_glob(&config.prefix) + &config.pattern,
        };
        redis.login()?;
        Ok(redis)
    }

    /// The server, with the password that is in the file now: it may change while the node runs.
    fn login(&self) -> anyhow::Result<ConnectionInfo> {
        let file: &Path = &self.password_file;
        if file.as_os_str().is_empty() {
            return Ok(self.server.clone());
        }
        let password = textfile::read(file);
        let password = password.with_context(|| format!("cannot read {}", file.display()))?;
        let settings = self.server.redis_settings().clone();
        let settings = settings.set_password(password.trim());
        Ok(self.server.clone().set_redis_settings(settings))
    }

    async fn subscribe(&self) -> anyhow::Result<PubSub> {
        let subscribing = async {
            // These errors say what they have under them themselves.
            let plain = anyhow::Error::msg::<RedisError>;
            let client = Client::open(self.login()?).map_err(plain)?;
            let mut subscription = client.get_async_pubsub().await.map_err(plain)?;
            let subscribed = subscription.psubscribe(&self.pattern).await;
            subscribed.map_err(plain)?;
            Ok(subscription)
        };
        let subscribed = timeout(CONNECT_TIMEOUT, subscribing).await;
        subscribed.unwrap_or_else(|_| Err(anyhow!("no answer within {CONNECT_TIMEOUT:?}")))
    }
}

// === impl Channels ===

impl Channels {
    fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            hinted: HashSet::new(),
        }
    }

    fn room(&self, channel: &[u8]) -> Result<RoomName, Bad> {
        let channel = std::str::from_utf8(channel).map_err(|_| Bad::Channel)?;
        let name = channel.strip_prefix(&self.prefix).ok_or(Bad::Channel)?;
        RoomName::parse(name).map_err(Bad::Room)
    }

    /// A prefix that may have been forgotten in the configuration; each only once.
    fn hint(&mut self, room: &RoomName) -> Option<String> {
        let prefix = default_prefix(room.as_str())?;
        let news = self.prefix.is_empty()
            && self.hinted.len() < HINTS_MAX
            && self.hinted.insert(prefix.to_owned());
        news.then(|| prefix.to_owned())
    }
}

/// Returns when Redis has left a ping unanswered.
async fn silence(mut sink: PubSubSink) {
    loop {
        sleep(PING_INTERVAL).await;
        // A refusal is an answer too; and where the connection ended, the messages end as well.
        let pong = sink.ping::<redis::Value>();
        if timeout(PING_TIMEOUT, pong).await.is_err() {
            return;
        }
    }
}

/// The payload of a broadcast, and the socket that it spares: none, where Laravel names one that cannot be
/// ours, such as that of another server.
fn read(payload: &[u8]) -> Result<(Text, Option<SocketId>), Bad> {
    let bytes = payload.len();
    if bytes > TEXT_BYTES_MAX {
        return Err(Bad::TooLong { bytes });
    }
    let text = std::str::from_utf8(payload)?;
    // Serde would read the fields from a list as well.
    if !text.trim_start().starts_with('{') {
        return Err(Bad::NotAnObject);
    }
    let Payload { socket, .. } = serde_json::from_str(text)?;
    check_message(payload)?;
    if speaks_for_server(payload) {
        return Err(Bad::Event(NameError::Reserved));
    }
    let socket: Option<String> = socket.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let except = socket.and_then(|socket| SocketId::parse(&socket).ok());
    Ok((Text::from_utf8(Bytes::copy_from_slice(payload))?, except))
}

/// What looks like the prefix that Laravel takes when it is told none: the application's name and
/// "database", as one word.
fn default_prefix(channel: &str) -> Option<&str> {
    // A channel of an application without a prefix.
    if channel.starts_with("private-") || channel.starts_with("presence-") {
        return None;
    }
    let ends = PREFIX_ENDS.iter().filter_map(|end| channel.find(end));
    let (name, rest) = channel.split_at(ends.min()?);
    let word = |letter: char| letter.is_alphanumeric() || matches!(letter, '-' | '_');
    let prefix = &channel[..name.len() + PREFIX_ENDS[0].len()];
    let fits = !name.is_empty() && name.chars().all(word) && rest.len() > PREFIX_ENDS[0].len();
    fits.then_some(prefix)
}

/// A pattern of PSUBSCRIBE that matches this text only.
fn escape_glob(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, '*' | '?' | '[' | ']' | '\\') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

/// "Full jitter": a random part of a bound that doubles with each attempt, so that the nodes of a cluster
/// do not come all at once.
fn full_jitter(attempts: u32) -> Duration {
    let bound = DELAY_MIN.saturating_mul(2u32.saturating_pow(attempts));
    bound.min(DELAY_MAX).mul_f64(rand::random::<f64>())
}

fn counter(result: &'static str) -> metrics::Counter {
    metrics::counter!("unisono_laravel_broadcasts_total", "result" => result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::NodeId;

    /// What Laravel sends for the event of the article, recorded.
    const MESSAGE: &str = r#"{"event":"App\\Events\\Message","data":{"data":{"name":"\u6728\u5c0f\u6487"},"socket":null},"socket":null}"#;

    fn socket() -> SocketId {
        SocketId::new(NodeId::new(0xabcdef), 3, 9)
    }

    #[test]
    fn a_payload_goes_on_byte_for_byte() {
        let spaced = " {\n\"socket\" : null, \"data\": [1,\t2],\"event\":\"x\", \"more\": {}} ";
        for payload in [MESSAGE, spaced, r#"{"event":"x"}"#] {
            let (text, except) = read(payload.as_bytes()).unwrap();
            assert_eq!(text.as_bytes(), payload);
            assert_eq!(except, None, "{payload}");
        }
    }

    #[test]
    fn the_socket_at_the_top_is_spared() {
        let own = socket();
        let others = format!(
            r#"{{"event":"App\\Events\\M","data":{{"x":1,"socket":"{own}"}},"socket":"{own}"}}"#
        );
        assert_eq!(read(others.as_bytes()).unwrap().1, Some(own));

        let inside = format!(r#"{{"event":"e","data":{{"socket":"{own}"}},"socket":null}}"#);
        assert_eq!(read(inside.as_bytes()).unwrap().1, None);
    }

    #[test]
    fn a_socket_of_another_server_spares_nobody() {
        let foreign =
            r#"{"event":"App\\Events\\M","data":{"x":1,"socket":"123.456"},"socket":"123.456"}"#;
        assert_eq!(read(foreign.as_bytes()).unwrap().1, None);
        for odd in ["5", "true", "{}", "[\"x\"]", "\"\"", "\"\\u0000\""] {
            let payload = format!(r#"{{"event":"e","socket":{odd}}}"#);
            assert_eq!(read(payload.as_bytes()).unwrap().1, None, "{payload}");
        }
    }

    #[test]
    fn what_laravel_does_not_send_is_no_broadcast() {
        for garbage in [
            "",
            "hello",
            "5",
            "null",
            "\"event\"",
            "[]",
            r#"["event", null]"#,
            "{}",
            r#"{"data":1}"#,
            r#"{"event":null}"#,
            r#"{"event":5}"#,
            r#"{"event":"x""#,
            r#"{"event":"x"} {}"#,
            r#"{"event":"x","data":}"#,
            r#"{"type":"message","payload":{"event":"X"}}"#,
        ] {
            assert!(read(garbage.as_bytes()).is_err(), "{garbage}");
        }
        let not_text = b"{\"event\":\"x\",\"data\":\"\xff\"}";
        assert!(matches!(read(not_text), Err(Bad::NotText(_))));
    }

    #[test]
    fn a_payload_has_a_bound() {
        let (head, tail) = (r#"{"event":"x","data":""#, r#""}"#);
        let fits = TEXT_BYTES_MAX - head.len() - tail.len();
        let payload = |bytes| format!("{head}{}{tail}", "x".repeat(bytes));
        assert!(read(payload(fits).as_bytes()).is_ok());
        let longer = read(payload(fits + 1).as_bytes());
        assert!(matches!(longer, Err(Bad::TooLong { bytes }) if bytes == TEXT_BYTES_MAX + 1));
        // Depth is no danger to this node either: what is not wanted is skipped, not built.
        let deep = |levels| {
            let (open, close) = ("[".repeat(levels), "]".repeat(levels));
            read(format!(r#"{{"event":"x","data":{open}{close}}}"#).as_bytes())
        };
        assert!(deep(124).is_ok());
        for levels in [125, 100_000] {
            assert!(matches!(deep(levels), Err(Bad::Unreadable(_))), "{levels}");
        }
    }

    #[test]
    fn a_payload_does_not_speak_for_the_server() {
        for event in ["unisono:closing", r"\u0075nisono:gap"] {
            let payload = format!(r#"{{"event":"{event}","data":{{"code":4000}}}}"#);
            assert!(matches!(read(payload.as_bytes()), Err(Bad::Event(_))));
        }
        assert!(read(br#"{"event":"x","data":{"event":"unisono:gap"}}"#).is_ok());
    }

    #[test]
    fn a_channel_without_the_prefix_is_a_room() {
        let plain = Channels::new("");
        let prefixed = Channels::new("laravel-database-");
        let name = |room: Result<RoomName, Bad>| room.unwrap().as_str().to_owned();
        assert_eq!(name(plain.room(b"message")), "message");
        assert_eq!(
            name(prefixed.room(b"laravel-database-private-chat.1")),
            "private-chat.1"
        );
        assert_eq!(
            name(prefixed.room(b"laravel-database-/chat-rooms/1")),
            "/chat-rooms/1"
        );

        assert!(matches!(prefixed.room(b"message"), Err(Bad::Channel)));
        assert!(matches!(
            prefixed.room(b"laravel-database-"),
            Err(Bad::Room(_))
        ));
        assert!(matches!(plain.room(b"a\xff"), Err(Bad::Channel)));
        assert!(matches!(plain.room(b"a\nb"), Err(Bad::Room(_))));
        assert!(matches!(plain.room(&[b'x'; 201]), Err(Bad::Room(_))));
    }

    #[test]
    fn default_prefixes_are_known() {
        for (channel, prefix) in [
            ("laravel_database_private-chat.1", "laravel_database_"),
            ("laravel-database-orders", "laravel-database-"),
            ("my-shop-database-presence-x", "my-shop-database-"),
            ("a_database_b-database-c", "a_database_"),
            ("a-database-b_database_c", "a-database-"),
            ("läden-database-x", "läden-database-"),
        ] {
            assert_eq!(default_prefix(channel), Some(prefix), "{channel}");
        }
        for channel in [
            "message",
            "private-chat.1",
            "private-database-backups",
            "-database-x",
            "laravel-database-",
            "laravel_database-x",
            "chat.1-database-x",
        ] {
            assert_eq!(default_prefix(channel), None, "{channel}");
        }
    }

    #[test]
    fn a_prefix_is_hinted_at_once() {
        let room = |text: &str| RoomName::parse(text).unwrap();
        let mut channels = Channels::new("");
        let hint = channels.hint(&room("laravel-database-orders"));
        assert_eq!(hint.as_deref(), Some("laravel-database-"));
        assert_eq!(channels.hint(&room("laravel-database-chat")), None);
        assert!(channels.hint(&room("shop_database_chat")).is_some());
        for n in 0..100 {
            channels.hint(&room(&format!("app{n}-database-x")));
        }
        assert_eq!(channels.hinted.len(), HINTS_MAX);

        let mut told = Channels::new("own:");
        assert_eq!(told.hint(&room("laravel-database-orders")), None);
    }

    #[test]
    fn a_prefix_is_no_pattern() {
        assert_eq!(escape_glob("laravel-database-"), "laravel-database-");
        assert_eq!(escape_glob("a*b?[c-d]\\é^"), "a\\*b\\?\\[c-d\\]\\\\é^");
    }

    #[test]
    fn the_wait_has_a_bound() {
        assert!(full_jitter(0) <= DELAY_MIN);
        for attempts in [1, 5, 31, 32, u32::MAX] {
            assert!(full_jitter(attempts) <= DELAY_MAX, "{attempts}");
        }
    }

    #[test]
    fn what_a_node_is_told_of_redis_is_checked_at_the_start() {
        let config = |url: &str, file: &str| config::Laravel {
            redis_url: url.to_owned(),
            redis_password_file: file.into(),
            prefix: "a[b]:".to_owned(),
            pattern: "news.*".to_owned(),
        };
        let redis = Redis::new(&config(
            "rediss://reader@redis.example/7?protocol=resp3",
            "",
        ));
        let redis = redis.unwrap();
        let settings = redis.server.redis_settings();
        assert_eq!(settings.username(), Some("reader"));
        assert_eq!(
            (settings.db(), settings.protocol()),
            (0, ProtocolVersion::RESP2)
        );
        assert_eq!(redis.server.addr().to_string(), "redis.example:6379");
        assert_eq!(redis.pattern, "a\\[b\\]:news.*");

        assert!(Redis::new(&config("redis://redis.example/seven", "")).is_err());
        assert!(Redis::new(&config("redis://redis.example", "/nowhere")).is_err());
    }

    #[test]
    fn the_password_is_read_anew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\n").unwrap();
        let redis = Redis::new(&config::Laravel {
            redis_url: "redis://reader@redis.example".to_owned(),
            redis_password_file: file.path().to_owned(),
            prefix: String::new(),
            pattern: "*".to_owned(),
        });
        let redis = redis.unwrap();
        let password = || {
            redis
                .login()
                .unwrap()
                .redis_settings()
                .password()
                .map(str::to_owned)
        };
        assert_eq!(password().as_deref(), Some("first"));
        std::fs::write(file.path(), "second").unwrap();
        assert_eq!(password().as_deref(), Some("second"));
    }
}
