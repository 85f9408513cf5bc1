//! Who goes first when many want more than there is in a second: they take turns, one thing of each, so that whoever wants
//! much waits for it and keeps nobody else waiting. Fair queueing, as of packets (RFC 970). Pure; `now` is told.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use crate::rate::{Limit, Used};

/// What waits, of whom. Everybody who waits has a turn; what is in `things` is never empty.
pub struct Turns<W, T> {
    limit: Limit,
    used: Used,
    /// Those who wait, from the one whose turn is next.
    order: VecDeque<W>,
    things: HashMap<W, VecDeque<T>>,
    len: usize,
}

impl<W: Copy + Eq + Hash, T> Turns<W, T> {
    /// Nobody waits. So many things go in a second.
    pub fn new(limit: Limit, now: Instant) -> Self {
        Self {
            limit,
            used: Used::nothing(now),
            order: VecDeque::new(),
            things: HashMap::new(),
            len: 0,
        }
    }

    /// Whether something may go at once: nobody waits, and the limit is not reached.
    pub fn may_go(&mut self, now: Instant) -> bool {
        self.len == 0 && self.used.take(self.limit, now)
    }

    /// Somebody has to wait with something.
    pub fn wait(&mut self, who: W, thing: T) {
        let things = self.things.entry(who).or_default();
        if things.is_empty() {
            self.order.push_back(who);
        }
        things.push_back(thing);
        self.len += 1;
    }

    /// What goes now, if anything does. Whoever it is of is last from now on. Things that are not `wanted` any more go
    /// nowhere, and take no turn.
    pub fn next(&mut self, now: Instant, wanted: impl Fn(&T) -> bool) -> Option<T> {
        while let Some(who) = self.order.front().copied() {
            let Some(things) = self.things.get_mut(&who) else {
                self.order.pop_front();
                continue;
            };
            while things.front().is_some_and(|thing| !wanted(thing)) {
                things.pop_front();
                self.len -= 1;
            }
            if things.is_empty() {
                self.things.remove(&who);
                self.order.pop_front();
                continue;
            }
            if !self.used.take(self.limit, now) {
                return None;
            }
            let thing = things.pop_front();
            self.len -= 1;
            self.order.pop_front();
            if things.is_empty() {
                self.things.remove(&who);
            } else {
                self.order.push_back(who);
            }
            return thing;
        }
        // A crowd that is gone leaves no large tables.
        self.order = VecDeque::new();
        self.things = HashMap::new();
        None
    }

    /// In how long the next may go; none while nothing waits.
    pub fn due(&self, now: Instant) -> Option<Duration> {
        (self.len > 0).then(|| self.used.wait(self.limit, now))
    }

    /// Forgets what is not wanted any more.
    pub fn retain(&mut self, wanted: impl Fn(&T) -> bool) {
        self.len = 0;
        self.things.retain(|_, things| {
            things.retain(&wanted);
            self.len += things.len();
            !things.is_empty()
        });
        self.order.retain(|who| self.things.contains_key(who));
    }

    /// How many things wait.
    pub fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { rate: 10, burst: 2 };

    fn turns() -> (Turns<&'static str, u32>, Instant) {
        let now = Instant::now();
        (Turns::new(LIMIT, now), now)
    }

    #[tokio::test(start_paused = true)]
    async fn turns_keep_whoever_wants_much_from_the_others() {
        let (mut turns, mut now) = turns();
        assert!(turns.may_go(now) && turns.may_go(now) && !turns.may_go(now));
        assert_eq!(turns.due(now), None, "nobody waits");
        for n in 0..100 {
            turns.wait("greedy", n);
        }
        turns.wait("modest", 1_000);
        turns.wait("other", 2_000);
        turns.wait("modest", 1_001);
        assert_eq!(turns.next(now, |_| true), None, "not yet");
        let mut went = Vec::new();
        for _ in 0..7 {
            now += turns.due(now).unwrap();
            went.push(turns.next(now, |_| true).unwrap());
            assert_eq!(
                turns.next(now, |_| true),
                None,
                "one in a tenth of a second"
            );
        }
        assert_eq!(went, [0, 1_000, 2_000, 1, 1_001, 2, 3]);
        assert!(!turns.may_go(now + Duration::from_secs(9)), "others wait");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_not_taken_by_what_is_wanted_no_longer() {
        let (mut turns, mut now) = turns();
        for n in 0..50 {
            turns.wait("gone", n);
        }
        turns.wait("here", 50);
        turns.wait("gone", 51);
        let wanted = |thing: &u32| *thing >= 50;
        assert_eq!(turns.next(now, wanted), Some(51));
        assert_eq!(turns.next(now, wanted), Some(50));
        assert_eq!((turns.len(), turns.due(now)), (0, None));
        assert_eq!(turns.next(now, wanted), None);
        now += Duration::from_secs(10);
        assert!(turns.may_go(now), "nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn turns_forget_what_is_wanted_no_longer() {
        let (mut turns, now) = turns();
        for n in 0..50 {
            turns.wait("a", n);
            turns.wait("b", 100 + n);
        }
        turns.retain(|thing| *thing == 7);
        assert_eq!((turns.len(), turns.order.len()), (1, 1));
        assert_eq!(turns.next(now, |_| true), Some(7));
    }
}
