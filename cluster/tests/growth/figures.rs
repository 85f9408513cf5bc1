//! What was counted, and how it reads.

use std::fmt::Write;
use std::time::Duration;

use crate::meter::{Count, Kind, Tally};

/// What was counted in one phase.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    name: &'static str,
    /// How long it took, and how long until all was as it had to be.
    pub lasted: Duration,
    pub until: Duration,
    nodes: f64,
    sum: Tally,
    /// How long a new room took to be ready: half of them, and the longest.
    waits: Option<(Duration, Duration)>,
}

// === impl Figures ===

impl Figures {
    /// What stands above [`Figures::row`].
    pub const HEAD: &str = concat!(
        "each node, on average                    seconds  until     sent received       KiB",
        "  received, by kind",
    );

    /// One node's share.
    pub fn add(&mut self, tally: &Tally) {
        self.sum.add(tally);
    }

    /// What the phase was.
    pub fn of(
        mut self,
        name: &'static str,
        nodes: usize,
        lasted: Duration,
        until: Duration,
        mut waits: Vec<Duration>,
    ) -> Self {
        waits.sort_unstable();
        self.name = name;
        self.nodes = nodes as f64;
        self.lasted = lasted;
        self.until = until;
        self.waits = waits.last().map(|last| (waits[waits.len() / 2], *last));
        self
    }

    /// Messages in a second, of one node.
    pub fn sent(&self, kind: Kind) -> f64 {
        self.rate(self.sum.sent[kind as usize].messages)
    }

    pub fn received(&self, kind: Kind) -> f64 {
        self.rate(self.sum.received[kind as usize].messages)
    }

    pub fn all_received(&self) -> f64 {
        self.rate(self.sum.received.iter().map(|count| count.messages).sum())
    }

    /// Messages that one node received, in all of the phase.
    pub fn each_received(&self, kind: Kind) -> f64 {
        self.per_node(|tally| tally.received[kind as usize].messages)
    }

    /// Messages that all nodes together received.
    pub fn count(&self, kind: Kind) -> u64 {
        self.sum.received[kind as usize].messages
    }

    /// A line of the table: of one node, on average, and what all of the phase was.
    pub fn row(&self) -> String {
        let messages = |counts: &[Count]| counts.iter().map(|count| count.messages).sum();
        let bytes = |counts: &[Count]| counts.iter().map(|count| count.bytes).sum();
        let mut row = format!(
            "{:<40}{:>8.1}{:>7.1}{:>9.1}{:>9.1}{:>10.1} ",
            self.name,
            self.lasted.as_secs_f64(),
            self.until.as_secs_f64(),
            self.per_node(|tally| messages(&tally.sent)),
            self.per_node(|tally| messages(&tally.received)),
            self.per_node(|tally| bytes(&tally.received)) / 1024.0,
        );
        for kind in Kind::ALL {
            let count = self.per_node(|tally| tally.received[kind as usize].messages);
            let bytes = self.per_node(|tally| tally.received[kind as usize].bytes);
            if count >= 0.05 {
                let kib = bytes / 1024.0;
                let _ = write!(row, " {kind:?} {count:.1} ({kib:.1} KiB)");
            }
        }
        if let Some((half, longest)) = self.waits {
            let (half, longest) = (half.as_millis(), longest.as_millis());
            let _ = write!(row, ", ready after {half} to {longest} ms");
        }
        row
    }

    fn rate(&self, count: u64) -> f64 {
        count as f64 / self.nodes / self.lasted.as_secs_f64()
    }

    fn per_node(&self, pick: impl Fn(&Tally) -> u64) -> f64 {
        pick(&self.sum) as f64 / self.nodes
    }
}
