//! When the sessions of a worker want to be woken: one clock for all of them.
//!
//! A timing wheel with a slot for each tick (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987, scheme
//! 4). Nearly all that is planned is a ping, or the time for its answer, which is called off when that comes: an entry is
//! written once, into a slot that lies in one piece, and never moved or looked for. A hierarchy of slots, and a table
//! from socket to timer, are memory that is cold by then: they were 18 % of what idle sockets cost.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use proto::SocketId;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{SessionActor, Wake};

/// The clock of a worker.
pub struct Wakes {
    started: Instant,
    wheel: RefCell<Wheel<Sleeper>>,
    /// The tick for which [`Wakes::run`] waits.
    awaited: Cell<u64>,
    /// There is an earlier one now.
    earlier: Notify,
}

/// Who is to be woken.
pub(super) struct Sleeper {
    pub(super) id: SocketId,
    pub(super) actor: SessionActor,
}

/// Where on the wheel something is.
#[derive(Debug)]
pub(super) struct Key {
    tick: u64,
    index: u32,
}

/// Wakes come at multiples of this, up to so much later than they were asked for: those of many sockets run out
/// together, and the worker wakes once for all of them.
const TICK: Duration = Duration::from_millis(50);

/// How far the wheel reaches, in ticks: 51.2 s, which is twice the default of `sockets.ping_interval`.
const TICKS: usize = 1_024;

impl Wakes {
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            wheel: RefCell::new(Wheel::new(TICKS)),
            awaited: Cell::new(u64::MAX),
            earlier: Notify::new(),
        }
    }

    /// Plans a [`Wake`] for that time. What is further away than the wheel reaches is woken there, too early.
    pub(super) fn plan(&self, at: Instant, sleeper: Sleeper) -> Key {
        let mut wheel = self.wheel.borrow_mut();
        wheel.skip_empty(self.now());
        let key = wheel.insert(self.tick(at), sleeper);
        if key.tick < self.awaited.get() {
            self.earlier.notify_one();
        }
        key
    }

    /// Calls off what is planned, where it has not come yet.
    pub(super) fn cancel(&self, planned: &mut Option<Key>) {
        if let Some(key) = planned.take() {
            self.wheel.borrow_mut().remove(key);
        }
    }

    /// Whether that time is before what is planned.
    pub(super) fn is_before(&self, at: Instant, key: &Key) -> bool {
        self.tick(at) < key.tick
    }

    /// Wakes them, for ever. Those that ended without a word, by a panic, are found here at the latest.
    pub async fn run(&self, ended: impl Fn(SocketId)) {
        loop {
            let next = self.wheel.borrow().next();
            self.awaited.set(next.unwrap_or(u64::MAX));
            let due = async {
                match next {
                    Some(tick) => sleep_until(self.time(tick)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.wake(&ended),
                () = self.earlier.notified() => {}
            }
        }
    }

    fn wake(&self, ended: &impl Fn(SocketId)) {
        let now = self.now();
        let due = || self.wheel.borrow_mut().due(now);
        while let Some(slot) = due() {
            for sleeper in slot.into_iter().flatten() {
                if sleeper.actor.is_alive() {
                    sleeper.actor.send(Wake);
                } else {
                    ended(sleeper.id);
                }
            }
        }
    }

    /// The tick that has passed last.
    fn now(&self) -> u64 {
        (self.started.elapsed().as_millis() / TICK.as_millis()) as u64
    }

    fn time(&self, tick: u64) -> Instant {
        self.started + Duration::from_millis(tick * TICK.as_millis() as u64)
    }

    /// The first tick that is not before that time.
    fn tick(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started).as_millis();
        since.div_ceil(TICK.as_millis()) as u64
    }
}

/// The rules of it. Pure; ticks are counted from the start.
struct Wheel<T> {
    /// A tick's slot is at its number, modulo how many there are.
    slots: Box<[Vec<Option<T>>]>,
    /// The latest tick whose slot was emptied.
    passed: u64,
}

impl<T> Wheel<T> {
    fn new(ticks: usize) -> Self {
        Self {
            slots: (0..ticks).map(|_| Vec::new()).collect(),
            passed: 0,
        }
    }

    /// At that tick, or the nearest there is a slot for.
    fn insert(&mut self, tick: u64, value: T) -> Key {
        let first = self.passed + 1;
        let tick = tick.clamp(first, self.passed + self.slots.len() as u64);
        let slot = self.slot(tick);
        slot.push(Some(value));
        let index = (slot.len() - 1) as u32;
        Key { tick, index }
    }

    /// To be called once for a key: another may get its place.
    fn remove(&mut self, Key { tick, index }: Key) -> Option<T> {
        if tick <= self.passed {
            return None;
        }
        let slot = self.slot(tick);
        let value = slot.get_mut(index as usize)?.take();
        while let Some(None) = slot.last() {
            slot.pop();
        }
        if slot.is_empty() {
            // Clients that come and go leave nothing here.
            *slot = Vec::new();
        }
        value
    }

    /// The first tick with anything in its slot, even if it was called off.
    fn next(&self) -> Option<u64> {
        let mut ticks = self.passed + 1..=self.passed + self.slots.len() as u64;
        ticks.find(|tick| !self.slots[self.place(*tick)].is_empty())
    }

    /// The wheel reaches as far as it can from now on: slots without anything in them need nobody to empty them.
    fn skip_empty(&mut self, now: u64) {
        let end = self.passed + self.slots.len() as u64;
        while self.passed < now.min(end) && self.slot(self.passed + 1).is_empty() {
            self.passed += 1;
        }
        if self.passed == end {
            self.passed = self.passed.max(now);
        }
    }

    /// Empties the next slot that is due at that tick, with all in it.
    fn due(&mut self, now: u64) -> Option<Vec<Option<T>>> {
        self.skip_empty(now);
        (self.passed < now).then(|| {
            self.passed += 1;
            std::mem::take(self.slot(self.passed))
        })
    }

    fn slot(&mut self, tick: u64) -> &mut Vec<Option<T>> {
        let place = self.place(tick);
        &mut self.slots[place]
    }

    fn place(&self, tick: u64) -> usize {
        (tick % self.slots.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_due(wheel: &mut Wheel<&'static str>, now: u64) -> Vec<&'static str> {
        let mut all = vec![];
        while let Some(slot) = wheel.due(now) {
            all.extend(slot.into_iter().flatten());
        }
        all
    }

    #[test]
    fn all_come_in_time_and_once() {
        let mut wheel = Wheel::new(8);
        wheel.insert(3, "third");
        wheel.insert(1, "first");
        wheel.insert(3, "third, too");
        assert_eq!(wheel.next(), Some(1));
        assert_eq!(all_due(&mut wheel, 0), [""; 0]);
        assert_eq!(all_due(&mut wheel, 2), ["first"]);
        assert_eq!(wheel.next(), Some(3));
        assert_eq!(all_due(&mut wheel, 100), ["third", "third, too"]);
        assert_eq!(wheel.next(), None);
        assert_eq!(all_due(&mut wheel, 200), [""; 0]);
    }

    #[test]
    fn what_was_called_off_does_not_come() {
        let mut wheel = Wheel::new(8);
        let first = wheel.insert(2, "first");
        let second = wheel.insert(2, "second");
        assert_eq!(wheel.remove(first), Some("first"));
        assert_eq!(all_due(&mut wheel, 2), ["second"]);
        // Another is in its place by now.
        wheel.insert(10, "third");
        wheel.insert(10, "fourth");
        assert_eq!(wheel.remove(second), None);
        assert_eq!(all_due(&mut wheel, 10), ["third", "fourth"]);
    }

    #[test]
    fn what_was_called_off_takes_no_place() {
        let mut wheel = Wheel::new(8);
        let keys = [(); 100].map(|()| wheel.insert(2, "come and gone"));
        for key in keys {
            assert_eq!(wheel.remove(key), Some("come and gone"));
        }
        assert_eq!(wheel.next(), None);
        assert_eq!(wheel.slots[2].capacity(), 0);
    }

    #[test]
    fn what_is_past_comes_next_and_what_is_too_far_at_the_end() {
        let mut wheel = Wheel::new(8);
        wheel.skip_empty(20);
        assert_eq!(wheel.insert(5, "past").tick, 21);
        assert_eq!(wheel.insert(1_000, "far").tick, 28);
        assert_eq!(all_due(&mut wheel, 27), ["past"]);
        wheel.skip_empty(29);
        assert_eq!(
            wheel.insert(100, "farther").tick,
            35,
            "the slot of 28 waits"
        );
        assert_eq!(all_due(&mut wheel, 28), ["far"]);
        assert_eq!(all_due(&mut wheel, 35), ["farther"]);
    }
}
