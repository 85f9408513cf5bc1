//! After a node has come to a cluster it has no sockets, and the others have too many. Those close some, slowly, whose
//! clients come back by the load balancer.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::config;
use crate::registry::Shed;
use crate::unisono::Unisono;

/// How often a node compares itself with the others.
const INTERVAL: Duration = Duration::from_secs(1);

/// Whether a node is shedding. Pure.
#[derive(Debug, Default)]
struct Balance {
    shedding: bool,
}

impl Balance {
    /// How many sockets are to be closed now, given those of the other nodes, and those on their way from this one
    /// to others. It begins well above the mean and ends near it, so that nodes which are about equal do not send
    /// clients to and fro.
    fn shed(&mut self, mine: u64, others: &[u64], away: u64, config: &config::Rebalance) -> u64 {
        let nodes = others.len() as u64 + 1;
        let mean = (mine + away + others.iter().sum::<u64>()) / nodes;
        let above = |percent: u32| mean + (mean * u64::from(percent)).div_ceil(100);
        let limit = match self.shedding {
            true => above(config.stop_percent),
            false => above(config.start_percent),
        };
        self.shedding = !others.is_empty() && mine > limit;
        match self.shedding {
            true => (mine - above(config.stop_percent)).min(config.rate.into()),
            false => 0,
        }
    }
}

/// Runs for as long as the node.
pub async fn run(unisono: Unisono) {
    let shared = &unisono.shared;
    let mut balance = Balance::default();
    // What was shed, and when.
    let mut shed: VecDeque<(Instant, u64)> = VecDeque::new();
    // After so long it is gone here, and then it is back and counted elsewhere. Whatever is counted twice until
    // then makes a node shed less.
    let gone = shared.config.sockets.close_timeout;
    let back = gone + shared.config.drain.reconnect_max + 2 * INTERVAL;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = Instant::now();
        shed.retain(|(when, _)| *when > now - back);
        if shared.load.draining.load(Ordering::Relaxed) {
            return;
        }
        let peers = shared.cluster.peers().await.into_iter();
        let others: Vec<_> = peers
            .filter(|peer| !peer.heartbeat.draining)
            .map(|peer| peer.heartbeat.sockets)
            .collect();
        let mine = shared.load.sockets.load(Ordering::Relaxed) as u64;
        let closing = shed.iter().filter(|(when, _)| *when > now - gone);
        let mine = mine.saturating_sub(closing.map(|(_, count)| count).sum());
        let away = shed.iter().map(|(_, count)| count).sum();
        let count = balance.shed(mine, &others, away, &shared.config.rebalance);
        shed.push_back((now, count));
        let mut left = count as usize;
        let workers = unisono.workers.all().len();
        for (nth, registry) in unisono.workers.all().enumerate() {
            let share = left.div_ceil(workers - nth);
            left -= share;
            if share > 0 {
                registry.do_send(Shed(share));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: config::Rebalance = config::Rebalance {
        enabled: true,
        start_percent: 20,
        stop_percent: 5,
        rate: 100,
    };

    #[test]
    fn it_begins_well_above_the_mean_and_ends_near_it() {
        let mut balance = Balance::default();
        let mut shed = |mine, others: &[u64], away| balance.shed(mine, others, away, &CONFIG);
        assert_eq!(shed(1000, &[], 0), 0, "alone");
        assert_eq!(shed(1000, &[1000, 1000], 0), 0);
        assert_eq!(shed(1150, &[1000, 900], 0), 0, "not enough for a start");
        assert_eq!(shed(1000, &[1000, 0], 0), 100, "as fast as it may");
        assert_eq!(shed(760, &[700, 500], 100), 39, "the rest: the mean is 686");
        assert_eq!(shed(700, &[690, 670], 0), 0, "near the mean");
        assert_eq!(shed(720, &[690, 650], 0), 0, "and not again at once");
        assert_eq!(shed(3, &[2, 2], 0), 0, "few are few");
    }
}
