//! What passes through this node, for whoever watches it. Each watcher has a lease here, which it renews by
//! taking what has gathered; a lease that nobody renews ends. While there is none, watching costs one relaxed
//! load for each thing that passes. What finds no room in a lease's queue is counted, and waited for by nobody.
//!
//! A send is told where it begins, an emit and what happens to a socket on the node of the socket: so everything
//! is told once in the cluster, whoever asks all nodes.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use proto::envelope::{Status, TailPage, TailQuery};
use proto::{Close, NodeId, Payload, RoomName, SocketId, UserName};
use serde::Serialize;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::api::time;
use crate::shared::now_ms;

/// The leases of this node, and what may be watched from here.
pub struct Tails {
    node: NodeId,
    count: AtomicUsize,
    leases: RwLock<HashMap<u64, Arc<Lease>>>,
    /// Places for those who watch through this node.
    pub places: Arc<Semaphore>,
}

/// Something that passes.
pub struct Passed<'a> {
    /// What it is.
    pub kind: Kind,
    /// In which room.
    pub room: Option<&'a RoomName>,
    /// To which socket, or what socket it is about.
    pub socket: Option<SocketId>,
    /// Which socket sent it.
    pub from: Option<SocketId>,
    /// Whose socket it is about.
    pub user: Option<&'a UserName>,
    /// What was sent.
    pub payload: Option<&'a Payload>,
    /// What became of it.
    pub status: Option<Status>,
    /// How it ended.
    pub close: Option<&'a Close>,
    /// Every node has it by itself: it is shown to those who watch through this one.
    pub everywhere: bool,
}

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A send to a room.
    Publish,
    /// A send to everybody.
    Broadcast,
    /// Either of them, at a socket that gets it: only for those who watch the socket.
    Deliver,
    /// A send to one socket.
    Emit,
    /// What a client sent to the application.
    Message,
    /// A socket is there.
    Opened,
    /// It is gone.
    Closed,
    /// It became a member of a room.
    Joined,
    /// It is none any more.
    Left,
}

/// What somebody wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// What is of rooms with such a name.
    Room(Pattern),
    /// What is to a socket, from it, or about it.
    Socket(SocketId),
    /// Events with such a name.
    Event(Pattern),
}

/// A text in which `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Neither of the three kinds.
    #[error(
        "`{0}`: a filter is room:<name>, event:<name> (`*` stands for any text) or socket:<id>"
    )]
    Kind(String),
    /// Not the id of a socket.
    #[error("`{0}` is not the id of a socket")]
    Socket(String),
    /// Longer than what it is compared with.
    #[error("a filter is too long")]
    Long,
}

struct Lease {
    filters: Vec<Filter>,
    /// Whoever watches does so through this node.
    here: bool,
    /// Most bytes of a payload to show.
    data_bytes: usize,
    /// Lines in the queue, or on their way into it.
    queued: AtomicUsize,
    missed: AtomicU64,
    queue: Mutex<Queue>,
    ready: Notify,
}

struct Queue {
    lines: VecDeque<Bytes>,
    bytes: usize,
    /// Lines that were taken.
    taken: u64,
    renewed_at: Instant,
}

/// Most who watch through one node.
pub const TAILS_MAX: usize = 8;

/// Most leases of one node: those who watch through any.
const LEASES_MAX: usize = 64;

/// How long a lease lasts that nobody renews.
pub const LEASE: Duration = Duration::from_secs(5);

/// The longest that a node lets who asks wait for something to happen.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// What may wait in the queue of a lease.
const LINES_MAX: usize = 1_024;
const QUEUE_BYTES_MAX: usize = 512 * 1024;

/// What is given at one time, which a message of the bus has to hold.
const PAGE_BYTES_MAX: usize = 128 * 1024;

/// Most filters, and bytes of one: a name has 200 at most.
pub const FILTERS_MAX: usize = 16;
const FILTER_BYTES_MAX: usize = 256;

/// Bytes of a payload that are shown, and those that are when all are wanted.
pub const DATA_BYTES: usize = 1_024;
pub const DATA_BYTES_FULL: usize = 64 * 1024;

// === impl Tails ===

impl Tails {
    /// Nobody watches yet.
    pub fn new(node: NodeId) -> Arc<Self> {
        Arc::new(Self {
            node,
            count: AtomicUsize::new(0),
            leases: RwLock::default(),
            places: Arc::new(Semaphore::new(TAILS_MAX)),
        })
    }

    /// Whether anybody watches.
    pub fn on(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Shows something to whoever wants to see it. Never waits for them.
    pub fn show(&self, passed: &Passed) {
        let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
        for lease in leases.values() {
            if lease.wants(passed) {
                lease.show(passed, self.node);
            }
        }
    }

    /// The sockets that somebody watches.
    pub fn sockets(&self) -> Vec<SocketId> {
        let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
        let filters = leases.values().flat_map(|lease| &lease.filters);
        let sockets = filters.filter_map(|filter| match filter {
            Filter::Socket(id) => Some(*id),
            _ => None,
        });
        let mut sockets: Vec<_> = sockets.collect();
        sockets.sort_unstable();
        sockets.dedup();
        sockets
    }

    /// Renews a lease, or begins it, and takes what has gathered once there is something, or the time is up. None
    /// where there are too many leases, or a filter is none. `fits` says how many bytes can be given at all.
    pub async fn take(
        self: Arc<Self>,
        query: TailQuery,
        fits: impl Fn(usize) -> bool,
    ) -> Option<TailPage> {
        let lease = self.lease(&query, false)?;
        Some(lease.page_within(query.wait, fits).await)
    }

    /// As [`Tails::take`], for one who watches through this node.
    pub async fn take_here(self: Arc<Self>, query: TailQuery) -> Option<TailPage> {
        let lease = self.lease(&query, true)?;
        Some(lease.page_within(query.wait, |_| true).await)
    }

    fn lease(self: &Arc<Self>, query: &TailQuery, here: bool) -> Option<Arc<Lease>> {
        let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(lease) = leases.get(&query.id) {
            lease.lock().renewed_at = Instant::now();
            return Some(Arc::clone(lease));
        }
        drop(leases);
        // Only a beginning and an end hold up what passes, for as long as a map takes.
        let mut leases = self.leases.write().unwrap_or_else(PoisonError::into_inner);
        if leases.len() >= LEASES_MAX || query.filters.len() > FILTERS_MAX {
            return None;
        }
        let filters = query.filters.iter().map(|text| text.parse());
        let lease = Arc::new(Lease::new(
            filters.collect::<Result<_, _>>().ok()?,
            here,
            query.data_bytes.min(DATA_BYTES_FULL),
        ));
        leases.insert(query.id, Arc::clone(&lease));
        self.count.store(leases.len(), Ordering::Relaxed);
        drop(leases);
        let (tails, id) = (Arc::clone(self), query.id);
        actix_rt::spawn(async move {
            loop {
                let ends_at = tails.renewed_at(id) + LEASE;
                tokio::time::sleep_until(ends_at).await;
                if tails.renewed_at(id) + LEASE <= Instant::now() {
                    return tails.end(id);
                }
            }
        });
        Some(lease)
    }

    fn renewed_at(&self, id: u64) -> Instant {
        let leases = self.leases.read().unwrap_or_else(PoisonError::into_inner);
        let lease = leases.get(&id);
        lease.map_or_else(Instant::now, |lease| lease.lock().renewed_at)
    }

    fn end(&self, id: u64) {
        let mut leases = self.leases.write().unwrap_or_else(PoisonError::into_inner);
        leases.remove(&id);
        self.count.store(leases.len(), Ordering::Relaxed);
    }
}

// === impl Lease ===

impl Lease {
    fn new(filters: Vec<Filter>, here: bool, data_bytes: usize) -> Self {
        Self {
            filters,
            here,
            data_bytes,
            queued: AtomicUsize::new(0),
            missed: AtomicU64::new(0),
            queue: Mutex::new(Queue {
                lines: VecDeque::new(),
                bytes: 0,
                taken: 0,
                renewed_at: Instant::now(),
            }),
            ready: Notify::new(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wants(&self, passed: &Passed) -> bool {
        if passed.everywhere && !self.here {
            return false;
        }
        let all = self.filters.is_empty() && passed.kind != Kind::Deliver;
        all || self.filters.iter().any(|filter| filter.fits(passed))
    }

    fn show(&self, passed: &Passed, node: NodeId) {
        // A place first: where there is none, nothing is written.
        if self.queued.fetch_add(1, Ordering::Relaxed) >= LINES_MAX {
            return self.miss();
        }
        let line = passed.line(node, &time(now_ms()), self.data_bytes);
        let mut queue = self.lock();
        if queue.bytes + line.len() > QUEUE_BYTES_MAX {
            drop(queue);
            return self.miss();
        }
        queue.bytes += line.len();
        queue.lines.push_back(line);
        drop(queue);
        self.ready.notify_one();
    }

    fn miss(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
        self.missed.fetch_add(1, Ordering::Relaxed);
    }

    async fn page_within(&self, wait: Duration, fits: impl Fn(usize) -> bool) -> TailPage {
        if self.lock().lines.is_empty() {
            let _ = tokio::time::timeout(wait.min(WAIT_MAX), self.ready.notified()).await;
        }
        self.page(fits)
    }

    fn page(&self, fits: impl Fn(usize) -> bool) -> TailPage {
        let mut queue = self.lock();
        let mut lines = Vec::new();
        let mut bytes = 0;
        while let Some(line) = queue.lines.front() {
            // With a few bytes of framing.
            let with = bytes + line.len() + 8;
            if !lines.is_empty() && (with > PAGE_BYTES_MAX || !fits(with)) {
                break;
            }
            let alone = fits(line.len() + 8);
            let line = queue.lines.pop_front().unwrap_or_default();
            queue.bytes -= line.len();
            self.queued.fetch_sub(1, Ordering::Relaxed);
            if alone {
                bytes = with;
                lines.push(line);
                queue.taken += 1;
            } else {
                self.missed.fetch_add(1, Ordering::Relaxed);
            }
        }
        if !queue.lines.is_empty() {
            self.ready.notify_one();
        }
        let seen = queue.taken + self.missed.load(Ordering::Relaxed);
        TailPage { lines, seen }
    }
}

// === impl Filter ===

impl Filter {
    fn fits(&self, passed: &Passed) -> bool {
        match self {
            Self::Socket(id) => passed.socket == Some(*id) || passed.from == Some(*id),
            _ if passed.kind == Kind::Deliver => false,
            Self::Room(pattern) => passed.room.is_some_and(|room| pattern.fits(room.as_str())),
            Self::Event(pattern) => match passed.payload {
                Some(Payload::Event { name, .. }) => pattern.fits(name.as_str()),
                _ => false,
            },
        }
    }
}

impl std::str::FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        if text.len() > FILTER_BYTES_MAX {
            return Err(FilterError::Long);
        }
        let pattern = |text: &str| Pattern(text.to_owned());
        match text.split_once(':') {
            Some(("room", name)) if !name.is_empty() => Ok(Self::Room(pattern(name))),
            Some(("event", name)) if !name.is_empty() => Ok(Self::Event(pattern(name))),
            Some(("socket", id)) => {
                let id = id.parse().map_err(|_| FilterError::Socket(id.to_owned()));
                id.map(Self::Socket)
            }
            _ => Err(FilterError::Kind(text.to_owned())),
        }
    }
}

impl Pattern {
    /// The first part at the beginning, the last at the end, and the others between them, each as early as it can.
    fn fits(&self, name: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == name;
        };
        let Some(mut left) = name.strip_prefix(first) else {
            return false;
        };
        let mut parts = rest.split('*');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            match left.find(part) {
                Some(at) => left = &left[at + part.len()..],
                None => return false,
            }
        }
        left.ends_with(last)
    }
}

// === impl Passed ===

impl Passed<'_> {
    /// Something of that kind, of which nothing else is known yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            room: None,
            socket: None,
            from: None,
            user: None,
            payload: None,
            status: None,
            close: None,
            everywhere: false,
        }
    }

    /// A JSON object on one line.
    fn line(&self, node: NodeId, at: &str, data_bytes: usize) -> Bytes {
        let mut line = Line(Vec::with_capacity(320));
        line.field("at", at);
        line.field("node", &node.to_string());
        line.field("kind", &self.kind);
        self.room.inspect(|room| line.field("room", room.as_str()));
        self.socket.inspect(|socket| line.field("socket", socket));
        self.user.inspect(|user| line.field("user", user.as_str()));
        self.from.inspect(|from| line.field("from", from));
        match self.payload {
            Some(Payload::Event { name, data }) => {
                line.field("event", name.as_str());
                match data {
                    Some(data) if data.len() <= data_bytes => line.json("data", data),
                    Some(data) => line.start(data, data_bytes),
                    None => {}
                }
            }
            Some(Payload::Text(text)) if text.as_bytes().len() > data_bytes => {
                line.start(text.as_bytes(), data_bytes);
            }
            Some(Payload::Text(text)) => {
                line.field("text", &String::from_utf8_lossy(text.as_bytes()));
            }
            Some(Payload::Binary(bytes)) => {
                let shown = &bytes[..bytes.len().min(data_bytes)];
                line.field("binary", &BASE64_STANDARD.encode(shown));
                if shown.len() < bytes.len() {
                    line.field("bytes", &bytes.len());
                }
            }
            None => {}
        }
        self.status
            .inspect(|status| line.field("status", status.as_str()));
        if let Some(close) = self.close {
            line.field("code", &close.code);
            line.field("reason", &close.reason);
        }
        line.end()
    }
}

/// An object that is being written.
struct Line(Vec<u8>);

impl Line {
    fn name(&mut self, name: &str) {
        self.0.push(if self.0.is_empty() { b'{' } else { b',' });
        self.0.push(b'"');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\":");
    }

    fn field(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        self.name(name);
        let written = serde_json::to_writer(&mut self.0, value);
        written.expect("writing to memory cannot fail");
    }

    /// JSON as it is, on one line: only the white space of JSON has line ends.
    fn json(&mut self, name: &str, json: &[u8]) {
        self.name(name);
        let byte = |byte: &u8| match byte {
            b'\n' | b'\r' => b' ',
            byte => *byte,
        };
        self.0.extend(json.iter().map(byte));
    }

    /// The beginning of a text that is too long, and how long it is.
    fn start(&mut self, text: &[u8], bytes: usize) {
        let start = String::from_utf8_lossy(&text[..bytes]);
        // Half a character may be at the end.
        self.field("start", start.trim_end_matches(char::REPLACEMENT_CHARACTER));
        self.field("bytes", &text.len());
    }

    fn end(mut self) -> Bytes {
        self.0.push(b'}');
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::EventName;

    fn event(name: &str, data: &'static [u8]) -> Payload {
        Payload::Event {
            name: EventName::parse(name).unwrap(),
            data: Some(Bytes::from_static(data)),
        }
    }

    fn query(id: u64, filters: &[&str]) -> TailQuery {
        TailQuery {
            id,
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            data_bytes: 8,
            wait: Duration::from_millis(10),
        }
    }

    #[test]
    fn a_star_is_any_text() {
        let fits = |pattern: &str, name| Pattern(pattern.to_owned()).fits(name);
        for (pattern, name) in [
            ("*", ""),
            ("*", "anything"),
            ("a*", "a"),
            ("a*c", "abc"),
            ("*b*", "abc"),
            ("a*b*b", "abb"),
            ("**", "x"),
            ("a", "a"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("a", "ab"),
            ("a*", "ba"),
            ("ab*ba", "aba"),
            ("*b*b*", "abc"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn other_texts_are_no_filters() {
        for text in ["", "room", "room:", "rooms:/a", "socket:1", "event:"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
        assert!(
            format!("room:{}", "x".repeat(300))
                .parse::<Filter>()
                .is_err()
        );
        assert!("room:/a:b".parse::<Filter>().is_ok());
    }

    #[test]
    fn a_line_is_one_line() {
        let node = NodeId::new(7);
        let room = RoomName::parse("/a").unwrap();
        let payload = event("e", b"{\n\"a\":\r\n1}");
        let publish = Passed {
            room: Some(&room),
            payload: Some(&payload),
            ..Passed::new(Kind::Publish)
        };
        let line = publish.line(node, "now", 100);
        let expected = r#"{"at":"now","node":"000000000007","kind":"publish","room":"/a","event":"e","data":{ "a":  1}}"#;
        assert_eq!(line, expected);
        let payload = Payload::Text("äöü".to_owned().into());
        let emit = Passed {
            payload: Some(&payload),
            ..Passed::new(Kind::Emit)
        };
        let line = emit.line(node, "now", 3);
        let expected = r#"{"at":"now","node":"000000000007","kind":"emit","start":"ä","bytes":6}"#;
        assert_eq!(line, expected);
    }

    #[actix_rt::test]
    async fn what_finds_no_room_is_counted() {
        let tails = Tails::new(NodeId::new(7));
        assert!(!tails.on());
        let page = Arc::clone(&tails).take(query(1, &["event:a*"]), |_| true);
        assert_eq!(page.await.unwrap(), TailPage::default());
        assert!(tails.on());
        let (wanted, other) = (event("ab", b"1"), event("b", b"1"));
        for payload in [&wanted, &other] {
            for _ in 0..LINES_MAX + 10 {
                tails.show(&Passed {
                    payload: Some(payload),
                    ..Passed::new(Kind::Broadcast)
                });
            }
        }
        let (mut lines, mut seen) = (0, 0);
        while lines < LINES_MAX {
            let page = Arc::clone(&tails)
                .take(query(1, &[]), |_| true)
                .await
                .unwrap();
            lines += page.lines.len();
            seen = page.seen;
        }
        assert_eq!((lines, seen), (LINES_MAX, LINES_MAX as u64 + 10));
    }

    #[actix_rt::test]
    async fn a_lease_ends_when_nobody_renews_it() {
        tokio::time::pause();
        let tails = Tails::new(NodeId::new(7));
        let renew = async || Arc::clone(&tails).take(query(1, &[]), |_| true).await;
        renew().await.unwrap();
        tokio::time::advance(LEASE - Duration::from_secs(1)).await;
        renew().await.unwrap();
        tokio::time::advance(LEASE - Duration::from_secs(1)).await;
        tokio::task::yield_now().await;
        assert!(tails.on());
        tokio::time::advance(Duration::from_secs(2)).await;
        tokio::task::yield_now().await;
        assert!(!tails.on());
        for id in 0..LEASES_MAX as u64 {
            assert!(
                Arc::clone(&tails)
                    .take(query(id, &[]), |_| true)
                    .await
                    .is_some()
            );
        }
        assert!(
            Arc::clone(&tails)
                .take(query(99, &[]), |_| true)
                .await
                .is_none()
        );
        assert!(
            Arc::clone(&tails)
                .take(query(0, &["x"]), |_| true)
                .await
                .is_some()
        );
    }
}
