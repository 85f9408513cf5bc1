//! How fast is too fast. Pure; `now` is told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// So many in a second on average, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In a second, on average.
    pub rate: u32,
    /// At once.
    pub burst: u32,
}

/// What somebody has used of a [`Limit`]: the generic cell rate algorithm (ITU-T I.371), which keeps nothing but
/// the time at which all of it is there again.
#[derive(Clone, Copy, Debug)]
pub struct Used(Instant);

/// What addresses have used, for as many as are remembered.
#[derive(Debug)]
pub struct Addresses {
    limit: Limit,
    used: HashMap<IpAddr, Used>,
    max: usize,
    swept: Option<Instant>,
}

/// How often those who have used nothing lately are looked for, at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

impl Used {
    /// Nothing yet.
    pub fn nothing(now: Instant) -> Self {
        Self(now)
    }

    /// Uses one, if one is there.
    pub fn take(&mut self, limit: Limit, now: Instant) -> bool {
        let one = Duration::from_secs(1) / limit.rate.max(1);
        let full = self.0.max(now) + one;
        let fits = full.duration_since(now) <= one * limit.burst.max(1);
        if fits {
            self.0 = full;
        }
        fits
    }

    /// How long until [`Used::take`] finds one.
    pub fn wait(&self, limit: Limit, now: Instant) -> Duration {
        let one = Duration::from_secs(1) / limit.rate.max(1);
        let full = self.0.max(now) + one;
        full.duration_since(now)
            .saturating_sub(one * limit.burst.max(1))
    }

    fn is_nothing(&self, now: Instant) -> bool {
        self.0 <= now
    }
}

impl Addresses {
    /// Remembers at most `max` addresses.
    pub fn new(limit: Limit, max: usize) -> Self {
        Self {
            limit,
            used: HashMap::new(),
            max,
            swept: None,
        }
    }

    /// As [`Used::take`], for an address. Of IPv6, all addresses of one /64 are one: that is what one customer
    /// gets. When too many are remembered, all who have come lately, a newcomer is turned away.
    pub fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        let key = match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        };
        if self.used.len() >= self.max && !self.used.contains_key(&key) {
            if self.swept.is_none_or(|swept| now >= swept + SWEEP_INTERVAL) {
                self.swept = Some(now);
                self.used.retain(|_, used| !used.is_nothing(now));
            }
            if self.used.len() >= self.max {
                return false;
            }
        }
        let used = self.used.entry(key).or_insert(Used::nothing(now));
        used.take(self.limit, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit { rate: 10, burst: 3 };

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate() {
        let mut now = Instant::now();
        let mut used = Used::nothing(now);
        let taken = |used: &mut Used, now| (0..20).filter(|_| used.take(LIMIT, now)).count();
        assert_eq!(taken(&mut used, now), 3);
        now += Duration::from_millis(200);
        assert_eq!(taken(&mut used, now), 2);
        now += Duration::from_secs(3600);
        assert_eq!(taken(&mut used, now), 3, "no more than a burst is saved up");
        let wait = used.wait(LIMIT, now);
        assert_eq!(wait, Duration::from_millis(100));
        assert_eq!(taken(&mut used, now + wait), 1);
        assert_eq!(Used::nothing(now).wait(LIMIT, now), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_are_apart_and_bounded() {
        let mut now = Instant::now();
        let mut addresses = Addresses::new(Limit { rate: 1, burst: 1 }, 3);
        let mut take = |address: &str, now| addresses.take(address.parse().unwrap(), now);
        assert!(take("1.1.1.1", now) && !take("1.1.1.1", now));
        assert!(!take("::ffff:1.1.1.1", now), "the same, as IPv6 writes it");
        assert!(take("2001:db8::1", now) && !take("2001:db8::2", now));
        assert!(take("2001:db8:0:1::1", now));
        assert!(!take("9.9.9.9", now), "no place");
        now += Duration::from_secs(2);
        assert!(take("9.9.9.9", now), "others have been forgotten");
        assert!(addresses.used.len() <= 3);
    }
}
