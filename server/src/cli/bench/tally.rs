//! Accounts of a run: which numbers were sent, which came, how often and after how long. Nothing here does I/O.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::message::Stamp;

/// What a socket has seen of the numbers sent to it: a window that slides, as IPsec has against replays (RFC 6479).
#[derive(Debug)]
pub struct Seen {
    /// The lowest number that the window holds.
    base: u64,
    bits: [u64; WORDS],
}

/// What a number is to the socket that it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It comes for the first time.
    New,
    /// It has come before.
    Again,
    /// So far behind the highest one that nobody knows.
    Late,
}

/// Publications that have not reached everybody, in the order of their numbers.
#[derive(Debug, Default)]
pub struct Flight {
    /// The number of the first.
    base: u64,
    /// Of each: deliveries to come, and when it was sent.
    slots: VecDeque<(u32, Duration)>,
}

/// The sums.
pub struct Tally {
    pub stamp: Stamp,
    /// How many rooms, or sockets, take turns with the numbers.
    pub targets: u64,
    /// How many sockets each of them is.
    pub members: u32,
    /// Publications that a node has taken.
    pub accepted: u64,
    /// Publications that no node has taken, and why the first was not.
    pub failed: u64,
    pub first_failure: Option<String>,
    pub delivered: u64,
    pub duplicates: u64,
    pub late: u64,
    /// Texts that are not of this run.
    pub others: u64,
    /// What the sockets have read, with all that frames them; within TLS, where there is that.
    pub wire_bytes: u64,
    /// When the last delivery, or answer, came: since the beginning.
    pub last: Duration,
    pub delivery: Histogram<u64>,
    pub answer: Histogram<u64>,
    pub flight: Flight,
}

/// Numbers that a window holds at least: as many messages may be in flight and still be told apart for certain.
pub const SEEN_MIN: u32 = 64 * (WORDS as u32 - 1);

const WORDS: usize = 17;

impl Default for Seen {
    fn default() -> Self {
        Self {
            base: 0,
            bits: [0; WORDS],
        }
    }
}

impl Seen {
    /// Takes note of a number.
    pub fn arrive(&mut self, number: u64) -> Arrival {
        if number < self.base {
            return Arrival::Late;
        }
        let (word, first) = (number / 64, self.base / 64);
        // Words that are left behind are used again for those ahead, empty.
        let held = first + WORDS as u64;
        if word >= held {
            for ahead in held..=word.min(held + WORDS as u64) {
                self.bits[(ahead % WORDS as u64) as usize] = 0;
            }
            self.base = (word + 1 - WORDS as u64) * 64;
        }
        let bits = &mut self.bits[(word % WORDS as u64) as usize];
        let bit = 1 << (number % 64);
        let before = *bits & bit != 0;
        *bits |= bit;
        if before { Arrival::Again } else { Arrival::New }
    }
}

impl Flight {
    /// The next publication leaves, for so many sockets.
    pub fn leave(&mut self, members: u32, at: Duration) {
        self.slots.push_back((members, at));
    }

    /// How many there are from the first that has not reached everybody on.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// That number has reached one more socket.
    pub fn reached(&mut self, number: u64) {
        if let Some((missing, _)) = self.slot(number) {
            *missing = missing.saturating_sub(1);
        }
        self.land();
    }

    /// That number will reach nobody.
    pub fn failed(&mut self, number: u64) {
        if let Some((missing, _)) = self.slot(number) {
            *missing = 0;
        }
        self.land();
    }

    /// What was sent before that is waited for no longer.
    pub fn give_up(&mut self, before: Duration) {
        while self.slots.front().is_some_and(|(_, at)| *at < before) {
            self.slots.pop_front();
            self.base += 1;
        }
        self.land();
    }

    fn slot(&mut self, number: u64) -> Option<&mut (u32, Duration)> {
        let at = number.checked_sub(self.base)?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    fn land(&mut self) {
        while self.slots.front().is_some_and(|(missing, _)| *missing == 0) {
            self.slots.pop_front();
            self.base += 1;
        }
    }
}

impl Tally {
    /// Nothing yet, of messages to so many targets with so many sockets each.
    pub fn new(stamp: Stamp, targets: u64, members: u32) -> Self {
        Self {
            stamp,
            targets,
            members,
            accepted: 0,
            failed: 0,
            first_failure: None,
            delivered: 0,
            duplicates: 0,
            late: 0,
            others: 0,
            wire_bytes: 0,
            last: Duration::ZERO,
            delivery: histogram(),
            answer: histogram(),
            flight: Flight::default(),
        }
    }

    /// A text has come to a socket of that target.
    pub fn arrive(&mut self, seen: &mut Seen, target: u64, payload: &[u8], now: Duration) {
        let read = self.stamp.read(payload);
        let Some((number, at)) = read.filter(|(number, _)| number % self.targets == target) else {
            self.others += 1;
            return;
        };
        self.last = now;
        match seen.arrive(number / self.targets) {
            Arrival::New => {
                self.delivered += 1;
                record(&mut self.delivery, now.saturating_sub(at));
                self.flight.reached(number);
            }
            Arrival::Again => self.duplicates += 1,
            Arrival::Late => self.late += 1,
        }
    }

    /// A node has taken a message that was sent at that time, or has not.
    pub fn answered(
        &mut self,
        number: u64,
        at: Duration,
        now: Duration,
        answer: Result<(), String>,
    ) {
        self.last = now;
        match answer {
            Ok(()) => {
                self.accepted += 1;
                record(&mut self.answer, now.saturating_sub(at));
            }
            Err(why) => {
                self.failed += 1;
                self.first_failure.get_or_insert(why);
                self.flight.failed(number);
            }
        }
    }

    /// Deliveries that are due for what the nodes have taken.
    pub fn expected(&self) -> u64 {
        self.accepted * u64::from(self.members)
    }

    /// Deliveries that are due and have not come. One that was late has come.
    pub fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.delivered + self.late)
    }

    /// Bytes that a delivery was on the wire; none before the first.
    pub fn wire_bytes_per_delivery(&self) -> Option<f64> {
        (self.delivered > 0).then(|| self.wire_bytes as f64 / self.delivered as f64)
    }

    /// Whether all that is due has come once.
    pub fn whole(&self) -> bool {
        self.failed == 0 && self.lost() == 0 && self.duplicates == 0
    }
}

/// From a microsecond to an hour, to three digits.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 3_600_000_000_000, 3).expect("the bounds are in order")
}

/// Counts a latency.
pub fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
    histogram.saturating_record(nanoseconds.max(1));
}

#[cfg(test)]
mod tests {
    use super::super::message::Filler;
    use super::*;

    const STAMP: Stamp = Stamp { run: 0xabc };

    fn text(number: u64, at: Duration) -> String {
        STAMP.text(number, at, &Filler::of_message(0))
    }

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn numbers_are_new_once_in_any_order() {
        let mut seen = Seen::default();
        let max = u64::from(SEEN_MIN);
        for number in (0..max).rev().chain(max..10 * max) {
            assert_eq!(seen.arrive(number), Arrival::New, "{number}");
            assert_eq!(seen.arrive(number), Arrival::Again, "{number}");
        }
        assert_eq!(seen.arrive(9 * max), Arrival::Again);
        assert_eq!(seen.arrive(0), Arrival::Late);
        // Far ahead, nothing of the old window is left.
        let far = 1_000_000 * max;
        for number in (far - max + 64..=far).rev() {
            assert_eq!(seen.arrive(number), Arrival::New, "{number}");
        }
    }

    #[test]
    fn a_gap_stays_one_until_it_is_filled() {
        let mut seen = Seen::default();
        for number in (0..200).filter(|number| number % 3 != 0) {
            assert_eq!(seen.arrive(number), Arrival::New);
        }
        for number in 0..200 {
            let expected = match number % 3 {
                0 => Arrival::New,
                _ => Arrival::Again,
            };
            assert_eq!(seen.arrive(number), expected, "{number}");
        }
    }

    #[test]
    fn what_is_lost_or_comes_twice_is_counted() {
        let mut tally = Tally::new(STAMP, 1, 2);
        let mut seen = [Seen::default(), Seen::default()];
        for number in 0..3 {
            tally.flight.leave(2, ms(number));
            tally.answered(number, ms(number), ms(number + 1), Ok(()));
        }
        let mut arrive = |socket: usize, number| {
            let text = text(number, ms(number));
            tally.arrive(&mut seen[socket], 0, text.as_bytes(), ms(number + 5));
            (tally.flight.len(), tally.lost(), tally.duplicates)
        };
        assert_eq!(arrive(0, 0), (3, 5, 0));
        assert_eq!(arrive(0, 0), (3, 5, 1), "a copy for nobody else");
        assert_eq!(arrive(1, 0), (2, 4, 1));
        // Number 1 never reaches the second socket, and holds up what is behind it.
        assert_eq!(arrive(0, 1), (2, 3, 1));
        assert_eq!(arrive(0, 2), (2, 2, 1));
        assert_eq!(arrive(1, 2), (2, 1, 1));
        tally.flight.give_up(ms(2));
        assert_eq!(tally.flight.len(), 0);
        assert_eq!((tally.expected(), tally.delivered, tally.lost()), (6, 5, 1));
        assert!(!tally.whole());
        assert_eq!(tally.delivery.len(), 5);
        let median = tally.delivery.value_at_quantile(0.5);
        assert!((4_990_000..5_010_000).contains(&median), "{median}");
    }

    #[test]
    fn a_message_that_no_node_takes_is_not_waited_for() {
        let mut tally = Tally::new(STAMP, 1, 2);
        tally.flight.leave(2, ms(0));
        tally.answered(0, ms(0), ms(1), Err("no".to_owned()));
        assert_eq!(
            (tally.flight.len(), tally.expected(), tally.lost()),
            (0, 0, 0)
        );
        assert!(!tally.whole());
        assert_eq!(tally.first_failure.as_deref(), Some("no"));
    }

    #[test]
    fn each_target_has_numbers_of_its_own() {
        let mut tally = Tally::new(STAMP, 3, 1);
        let mut seen = Seen::default();
        for number in 0..6 {
            let text = text(number, ms(0));
            tally.arrive(&mut seen, 1, text.as_bytes(), ms(1));
        }
        assert_eq!((tally.delivered, tally.others), (2, 4));
    }
}
