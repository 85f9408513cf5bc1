//! Clients that check by themselves what they hear: in order, once, and with a word about what is missing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval};

use crate::client::{Client, Event, Heard};

/// What one socket has heard of numbered publications, and what is wrong with that.
///
/// A publication is the event [`NUMBERED`] with `{"from": <name>, "n": <number>}`; of each sender and room, numbers
/// grow by one.
#[derive(Debug, Default)]
pub struct Ledger {
    streams: HashMap<Stream, Last>,
    /// What is missing and was not explained yet.
    holes: Vec<Hole>,
    /// What was told of late.
    told: VecDeque<(Instant, Option<String>)>,
    numbers: u64,
    gaps: u64,
    wrong: Vec<String>,
}

/// The event of a numbered publication.
pub const NUMBERED: &str = "n";

/// How long after the next number a socket may be told that some are missing.
pub const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// What is told may overtake what was sent before it, by as much: they come by different subscriptions.
const OVERTAKES_BY: Duration = Duration::from_secs(2);

type Stream = (String, Option<String>);

#[derive(Debug, Clone, Copy)]
struct Last {
    number: u64,
    at: Instant,
}

#[derive(Debug)]
struct Hole {
    stream: Stream,
    missing: (u64, u64),
    since: Instant,
    until: Instant,
}

/// A client that does nothing but listen, and say numbers to the room of its URL where it is told to.
#[derive(Debug)]
pub struct Witness {
    /// Its socket.
    pub id: String,
    shared: Arc<Mutex<Shared>>,
    talks: watch::Sender<bool>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct Shared {
    ledger: Ledger,
    said: u64,
    end: Option<Heard>,
}

// === impl Ledger ===

impl Ledger {
    /// Takes note of what came, if it is of interest.
    pub fn hear(&mut self, event: &Event, now: Instant) {
        match event.event.as_str() {
            NUMBERED => {
                let from = event.data["from"].as_str().expect("a sender");
                let number = event.data["n"].as_u64().expect("a number");
                self.number((from.to_owned(), event.room.clone()), number, now);
            }
            "unisono:gap" => {
                let room = event.data["room"].as_str().map(str::to_owned);
                self.gap(room, now);
            }
            _ => {}
        }
    }

    /// The socket is no longer in a room: what comes later has a beginning of its own.
    pub fn leave(&mut self, room: &str) {
        self.streams
            .retain(|(_, of), _| of.as_deref() != Some(room));
    }

    /// What is wrong by now; at rest, what is not explained yet is wrong, too.
    pub fn wrong(&mut self, now: Instant) -> &[String] {
        let late = |hole: &Hole| hole.until + TOLD_WITHIN < now;
        for hole in self.holes.extract_if(.., |hole| late(hole)) {
            let Hole {
                stream: (from, room),
                missing: (first, last),
                ..
            } = hole;
            self.wrong.push(format!(
                "{first} to {last} of {from} in {room:?} are missing, and nobody said so"
            ));
        }
        &self.wrong
    }

    /// As [`Ledger::wrong`], and forgets it.
    pub fn take_wrong(&mut self, now: Instant) -> Vec<String> {
        self.wrong(now);
        std::mem::take(&mut self.wrong)
    }

    /// Whether something is missing of which nobody has said so yet.
    pub fn waits(&self) -> bool {
        !self.holes.is_empty()
    }

    /// The last number of that sender, in that room.
    pub fn last(&self, from: &str, room: Option<&str>) -> Option<u64> {
        let stream = (from.to_owned(), room.map(str::to_owned));
        self.streams.get(&stream).map(|last| last.number)
    }

    /// Numbers heard.
    pub fn numbers(&self) -> u64 {
        self.numbers
    }

    /// Gaps told.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    fn number(&mut self, stream: Stream, number: u64, now: Instant) {
        self.numbers += 1;
        let last = Last { number, at: now };
        let Some(before) = self.streams.insert(stream.clone(), last) else {
            return;
        };
        if number <= before.number {
            let (from, room) = stream;
            let before = before.number;
            self.wrong.push(format!(
                "{number} of {from} in {room:?} came after {before}: twice, or out of order"
            ));
        } else if number > before.number + 1 {
            let hole = Hole {
                stream,
                missing: (before.number + 1, number - 1),
                since: before.at - OVERTAKES_BY,
                until: now,
            };
            let told = |(at, of): &(Instant, Option<String>)| *at >= hole.since && hole.is_in(of);
            if !self.told.iter().any(told) {
                self.holes.push(hole);
            }
        }
    }

    fn gap(&mut self, room: Option<String>, now: Instant) {
        const TOLD_MAX: usize = 1_000;
        self.gaps += 1;
        self.holes.retain(|hole| !hole.is_in(&room));
        self.told.push_back((now, room));
        if self.told.len() > TOLD_MAX {
            self.told.pop_front();
        }
    }
}

impl Hole {
    /// Whether a gap in that room, or any, is about it.
    fn is_in(&self, room: &Option<String>) -> bool {
        room.is_none() || *room == self.stream.1
    }
}

// === impl Witness ===

impl Witness {
    /// Listens.
    pub fn listening(client: Client) -> Self {
        // One that never talks.
        Self::start(client, Duration::from_secs(3_600), false)
    }

    /// Listens, and says a number to the room of its URL so often, under the name of its socket's id.
    pub fn talking(client: Client, every: Duration) -> Self {
        Self::start(client, every, true)
    }

    fn start(client: Client, every: Duration, talks: bool) -> Self {
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (talks, talking) = watch::channel(talks);
        let id = client.id.clone();
        let task = tokio::spawn(attend(client, every, Arc::clone(&shared), talking));
        Self {
            id,
            shared,
            talks,
            task: task.abort_handle(),
        }
    }

    /// Says no more.
    pub fn hush(&self) {
        self.talks.send_replace(false);
    }

    /// The last number that it said; none where it said nothing.
    pub fn said(&self) -> Option<u64> {
        self.shared().said.checked_sub(1)
    }

    /// How many numbers it heard, and of how many gaps it was told.
    pub fn heard(&self) -> (u64, u64) {
        let ledger = &self.shared().ledger;
        (ledger.numbers, ledger.gaps)
    }

    /// How its connection ended, if it did.
    pub fn end(&self) -> Option<Heard> {
        self.shared().end.clone()
    }

    /// The last number of another that it heard in that room.
    pub fn heard_of(&self, other: &Self, room: &str) -> Option<u64> {
        self.shared().ledger.last(&other.id, Some(room))
    }

    /// Whether it has heard the last number of another, and knows the reason of all that it missed.
    ///
    /// # Panics
    /// When something is wrong with what it heard.
    #[track_caller]
    pub fn is_even_with(&self, other: &Self, room: &str) -> bool {
        let said = other.said();
        let mut shared = self.shared();
        let wrong = shared.ledger.wrong(Instant::now());
        assert!(wrong.is_empty(), "{wrong:#?}");
        let last = shared.ledger.last(&other.id, Some(room));
        (last == said || self.id == other.id) && !shared.ledger.waits()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn attend(
    mut client: Client,
    every: Duration,
    shared: Arc<Mutex<Shared>>,
    mut talks: watch::Receiver<bool>,
) {
    let name = client.id.clone();
    let mut pace = interval(every);
    loop {
        let talking = *talks.borrow_and_update();
        tokio::select! {
            heard = client.hear() => match heard {
                Heard::Event(event) => lock(&shared).ledger.hear(&event, Instant::now()),
                end => {
                    lock(&shared).end = Some(end);
                    return;
                }
            },
            changed = talks.changed() => if changed.is_err() { return },
            _ = pace.tick(), if talking => {
                let number = lock(&shared).said;
                let data = json!({"from": name, "n": number});
                if client.try_send(NUMBERED, data).await.is_err() {
                    // What comes next says how it ended.
                    pace = interval(Duration::from_secs(3_600));
                    pace.reset();
                    continue;
                }
                lock(&shared).said += 1;
            }
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: u64) -> Event {
        let text = format!(r#"{{"event":"n","data":{{"from":"a","n":{n}}},"room":"/x"}}"#);
        Event::parse(&text)
    }

    fn gap(room: &str) -> Event {
        Event::parse(&format!(
            r#"{{"event":"unisono:gap","data":{{"room":{room},"reason":"bus_outage"}}}}"#
        ))
    }

    #[test]
    fn what_is_missing_has_to_be_told() {
        let start = Instant::now() + TOLD_WITHIN;
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut ledger = Ledger::default();
        for n in [5, 6, 9] {
            ledger.hear(&number(n), at(0));
        }
        assert!(ledger.waits());
        ledger.hear(&gap(r#""/y""#), at(1));
        assert!(ledger.waits(), "of another room");
        ledger.hear(&gap("null"), at(1));
        assert!(!ledger.waits());

        ledger.hear(&number(20), at(2));
        assert!(!ledger.waits(), "told before the next number came");
        ledger.hear(&number(21), at(20));
        ledger.hear(&number(23), at(30));
        ledger.hear(&number(26), at(35));
        assert!(ledger.wrong(at(35)).is_empty(), "not yet");
        assert_eq!(ledger.wrong(at(100)).len(), 2, "{:?}", ledger.wrong);
    }

    #[test]
    fn nothing_comes_twice_or_out_of_order() {
        let now = Instant::now() + TOLD_WITHIN;
        for bad in [5, 4] {
            let mut ledger = Ledger::default();
            ledger.hear(&number(5), now);
            ledger.hear(&number(bad), now);
            assert_eq!(ledger.wrong(now).len(), 1);
        }
        let mut ledger = Ledger::default();
        ledger.hear(&number(5), now);
        ledger.leave("/x");
        ledger.hear(&number(8), now);
        assert!(ledger.wrong(now + 2 * TOLD_WITHIN).is_empty());
    }
}
