//! What is measured. Counts of the hot path are plain atomics of one worker, added to once for a batch and summed
//! when somebody reads `/metrics`; what happens seldom goes straight to the recorder, by its name in the [`table`].

pub mod table;
mod threads;

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use proto::envelope::Status;
use proto::{Close, UserName};

use table::{CODES, HANDSHAKES};
use threads::Threads;

/// Where a publication came into the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// From a client.
    Client,
    /// From the application: over HTTP or NATS, from a handler, in an answer.
    Api,
    /// From another node.
    Bus,
    /// From Laravel's Redis.
    Laravel,
}

/// The counts of a node.
pub struct Meters {
    prometheus: PrometheusHandle,
    process: Collector,
    threads: Threads,
    tallies: Box<[Arc<Tally>]>,
    publications: [AtomicU64; Source::ALL.len()],
    users: Users,
}

/// The counts of one worker, on cache lines of their own: only its thread adds to them, but for a handler of the
/// application's that has moved elsewhere, so an addition waits for nobody.
#[derive(Default)]
#[repr(align(128))]
pub struct Tally {
    /// Wraps around where something is taken off before it was added.
    queue_bytes: AtomicU64,
    deliveries: AtomicU64,
    sent_messages: AtomicU64,
    sent_bytes: AtomicU64,
    received_messages: AtomicU64,
    received_bytes: AtomicU64,
    emits: [AtomicU64; Status::ALL.len()],
}

/// What is handed to sessions in one go: counted when this is dropped.
pub struct Handed<'a> {
    tally: &'a Tally,
    published: bool,
    messages: u64,
    bytes: u64,
}

/// Whose sockets are on this node, by a hash of the name, each with the number of workers that have some.
#[derive(Default)]
struct Users {
    workers: Mutex<HashMap<u64, u32>>,
    hasher: RandomState,
}

/// Upper bounds, in seconds, of what handlers and applications take.
const BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// How often samples of histograms are put into their buckets, where nobody reads them.
const UPKEEP: Duration = Duration::from_secs(5);

/// CPU times: gauges here for the sake of their fractions, and counters to whoever reads them.
const CPU_TIMES: [&str; 2] = [
    "process_cpu_seconds_total",
    "unisono_thread_cpu_seconds_total",
];

/// The recorder of the process. A second node, as in tests, shares it.
static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

// === impl Meters ===

impl Meters {
    /// Makes every metric known, at zero, before anything is counted. Must be called in an actix system.
    pub fn start(workers: usize) -> anyhow::Result<Self> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?;
        let prometheus = RECORDER.get_or_init(|| {
            let recorder = builder.build_recorder();
            let handle = recorder.handle();
            let _ = metrics::set_global_recorder(recorder);
            handle
        });
        let process = Collector::default();
        process.describe();
        table::register();
        let upkeep = prometheus.clone();
        actix_rt::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkeep.run_upkeep();
            }
        });
        Ok(Self {
            prometheus: prometheus.clone(),
            process,
            threads: Threads::default(),
            tallies: (0..workers).map(|_| Arc::default()).collect(),
            publications: Default::default(),
            users: Users::default(),
        })
    }

    /// The counts of one worker.
    pub fn tally(&self, worker: usize) -> &Arc<Tally> {
        &self.tallies[worker]
    }

    /// The CPU time of the thread that calls this is told from now on, by that name.
    pub fn enter(&self, thread: impl Into<String>) {
        self.threads.enter(thread.into());
    }

    /// A publication came in.
    pub fn published(&self, source: Source) {
        self.publications[source as usize].fetch_add(1, Relaxed);
    }

    /// A worker has its first socket of a user, or has lost its last.
    pub fn user(&self, user: &UserName, here: bool) {
        self.users.count(user, here);
    }

    /// What the workers have counted, and what the process takes, as Prometheus reads it.
    pub fn render(&self) -> String {
        let sum = |count: fn(&Tally) -> &AtomicU64| {
            let counts = self.tallies.iter().map(|tally| count(tally).load(Relaxed));
            counts.fold(0, u64::wrapping_add)
        };
        for (name, count) in [
            ("unisono_deliveries_total", sum(|tally| &tally.deliveries)),
            (
                "unisono_sent_messages_total",
                sum(|tally| &tally.sent_messages),
            ),
            ("unisono_sent_bytes_total", sum(|tally| &tally.sent_bytes)),
            (
                "unisono_received_messages_total",
                sum(|tally| &tally.received_messages),
            ),
            (
                "unisono_received_bytes_total",
                sum(|tally| &tally.received_bytes),
            ),
        ] {
            metrics::counter!(name).absolute(count);
        }
        for source in Source::ALL {
            let count = self.publications[source as usize].load(Relaxed);
            let word = source.as_str();
            metrics::counter!("unisono_publications_total", "source" => word).absolute(count);
        }
        for status in [Status::Delivered, Status::NotFound, Status::Dropped] {
            let counts = self.tallies.iter();
            let count = counts.map(|tally| tally.emits[status as usize].load(Relaxed));
            emitted(status, count.sum(), metrics::Counter::absolute);
        }
        // The workers are not asked at one moment: something may seem to be taken off that was never added.
        let queue_bytes = sum(|tally| &tally.queue_bytes).cast_signed().max(0);
        metrics::gauge!("unisono_queue_bytes").set(queue_bytes as f64);
        metrics::gauge!("unisono_users").set(self.users.len() as f64);
        self.process.collect();
        for (thread, seconds) in self.threads.cpu_seconds() {
            let name = "unisono_thread_cpu_seconds_total";
            metrics::gauge!(name, "thread" => thread).set(seconds);
        }
        let mut text = self.prometheus.render();
        for name in CPU_TIMES {
            let kind = |kind: &str| format!("# TYPE {name} {kind}");
            text = text.replacen(&kind("gauge"), &kind("counter"), 1);
        }
        text
    }
}

// === impl Tally ===

impl Tally {
    /// Publications are about to be handed to sessions.
    pub fn publishing(&self) -> Handed<'_> {
        self.handing(true)
    }

    /// Something that is no publication is.
    pub fn sending(&self) -> Handed<'_> {
        self.handing(false)
    }

    fn handing(&self, published: bool) -> Handed<'_> {
        Handed {
            tally: self,
            published,
            messages: 0,
            bytes: 0,
        }
    }

    /// Something of the session's own waits for its client.
    pub fn queued(&self, bytes: usize) {
        self.queue_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Something waits no longer.
    pub fn unqueued(&self, bytes: usize) {
        self.queue_bytes.fetch_sub(bytes as u64, Relaxed);
    }

    /// A message of the session's own was queued.
    pub fn sent_message(&self) {
        self.sent_messages.fetch_add(1, Relaxed);
    }

    /// Bytes were written.
    pub fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// A client sent a message.
    pub fn received_message(&self) {
        self.received_messages.fetch_add(1, Relaxed);
    }

    /// Bytes were read.
    pub fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// An emit came to its end at a socket of this worker, or where it would be.
    pub fn emitted(&self, status: Status) {
        self.emits[status as usize].fetch_add(1, Relaxed);
    }
}

impl Handed<'_> {
    /// So many messages were, which count for so many bytes.
    pub fn add(&mut self, messages: u64, bytes: usize) {
        self.messages += messages;
        self.bytes += bytes as u64;
    }
}

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        if self.messages == 0 {
            return;
        }
        self.tally.queue_bytes.fetch_add(self.bytes, Relaxed);
        self.tally.sent_messages.fetch_add(self.messages, Relaxed);
        if self.published {
            self.tally.deliveries.fetch_add(self.messages, Relaxed);
        }
    }
}

// === impl Users ===

impl Users {
    fn count(&self, user: &UserName, here: bool) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        match workers.entry(self.hasher.hash_one(user.as_str())) {
            Entry::Vacant(entry) if here => {
                entry.insert(1);
            }
            Entry::Vacant(_) => {}
            Entry::Occupied(mut entry) if here => *entry.get_mut() += 1,
            Entry::Occupied(entry) if *entry.get() == 1 => {
                entry.remove();
            }
            Entry::Occupied(mut entry) => *entry.get_mut() -= 1,
        }
    }

    fn len(&self) -> usize {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.len()
    }
}

// === what happens seldom ===

/// A socket is over.
pub fn closed(close: &Close) {
    let code = match close.code {
        4000..=4099 => "application",
        code => listed(&CODES, code).unwrap_or("other"),
    };
    metrics::counter!("unisono_closes_total", "code" => code).increment(1);
}

/// A client is closed because it reads too slowly.
pub fn slow() {
    metrics::counter!("unisono_slow_sockets_total").increment(1);
}

/// A client is let in.
pub fn accepted() {
    metrics::counter!("unisono_handshakes_total", "outcome" => "accepted").increment(1);
}

/// A client is not let in, with that status line.
pub fn refused(status: &str) {
    let status = status.get(..3).and_then(|code| code.parse().ok());
    let outcome = status.and_then(|status| listed(&HANDSHAKES, status));
    let outcome = outcome.unwrap_or("other");
    metrics::counter!("unisono_handshakes_total", "outcome" => outcome).increment(1);
}

/// So many sockets were told of a gap.
pub fn gap(reason: &'static str, sockets: u64) {
    metrics::counter!("unisono_gaps_total", "reason" => reason).increment(sockets);
}

/// A join or a handshake would have brought one room too many.
pub fn room_refused() {
    metrics::counter!("unisono_rooms_refused_total").increment(1);
}

/// So many rooms wait for their turn to be listened to.
pub fn first_joins_waiting(rooms: usize) {
    metrics::gauge!("unisono_first_joins_waiting").set(rooms as f64);
}

/// A limit of a client's rate was reached: of its messages, pings, joins or handshakes.
pub fn rate_limited(what: &'static str) {
    metrics::counter!("unisono_rate_limited_total", "what" => what).increment(1);
}

/// Emits of which only their sender's node knows what became of them.
pub fn emit_failed(status: Status) {
    emitted(status, 1, metrics::Counter::increment);
}

fn emitted(status: Status, count: u64, how: fn(&metrics::Counter, u64)) {
    let counter = metrics::counter!("unisono_emits_total", "status" => status.as_str());
    how(&counter, count);
}

/// The word in the list that is this number.
fn listed(words: &[&'static str], number: u16) -> Option<&'static str> {
    let is = |word: &&&str| word.parse() == Ok(number);
    words.iter().find(is).copied()
}

impl Source {
    const ALL: [Self; 4] = [Self::Client, Self::Api, Self::Bus, Self::Laravel];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Api => "api",
            Self::Bus => "bus",
            Self::Laravel => "laravel",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_on_two_workers_is_one() {
        let users = Users::default();
        let [alice, bob] = ["alice", "bob"].map(|name| UserName::parse(name).unwrap());
        users.count(&alice, true);
        users.count(&alice, true);
        users.count(&bob, true);
        assert_eq!(users.len(), 2);
        users.count(&alice, false);
        assert_eq!(users.len(), 2);
        users.count(&alice, false);
        users.count(&bob, false);
        users.count(&bob, false);
        assert_eq!(users.len(), 0);
    }

    #[test]
    fn codes_of_clients_own_choice_make_no_labels() {
        assert_eq!(listed(&CODES, 1006), Some("1006"));
        assert_eq!(listed(&CODES, 3999), None);
        assert_eq!(listed(&CODES, 0), None);
        assert_eq!(listed(&HANDSHAKES, 404), Some("404"));
    }

    #[test]
    fn a_batch_is_counted_at_its_end() {
        let tally = Tally::default();
        let mut handed = tally.publishing();
        handed.add(3, 100);
        handed.add(3, 100);
        assert_eq!(tally.deliveries.load(Relaxed), 0);
        drop(handed);
        tally.sending().add(1, 10);
        tally.unqueued(150);
        assert_eq!(tally.deliveries.load(Relaxed), 6);
        assert_eq!(tally.sent_messages.load(Relaxed), 7);
        assert_eq!(tally.queue_bytes.load(Relaxed), 60);
    }
}
