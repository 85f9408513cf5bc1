//! Two well-behaved clients beside others: one says a number at a steady pace, the other hears it.

use std::panic::Location;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::time::{Instant, interval_at};

use crate::{Client, PATIENCE};

/// The pair, on a thread of its own: what the test does meanwhile does not slow it.
///
/// A number counts from the moment at which it should have been sent. One that had to wait, because the one before
/// it took long, took as long as it waited: nothing slow hides behind something slow.
#[derive(Debug)]
pub struct Steady {
    heard: watch::Receiver<Vec<Duration>>,
    enough: watch::Sender<bool>,
    thread: JoinHandle<()>,
    calm: Duration,
}

/// A number comes every so often.
const PACE: Duration = Duration::from_millis(5);

/// Numbers that make up a measurement, at least.
const ENOUGH: usize = 200;

impl Steady {
    /// Connects the two, one to each URL; both are of one room whose members hear each other. Returns once it is known
    /// how fast they are when nothing happens.
    pub async fn start(from: &str, to: &str) -> Self {
        let (hear, mut heard) = watch::channel(Vec::new());
        let (enough, stop) = watch::channel(false);
        let (from, to) = (from.to_owned(), to.to_owned());
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            runtime.block_on(talk(&from, &to, hear, stop));
        });
        let calm = tokio::time::timeout(PATIENCE, heard.wait_for(|heard| heard.len() >= ENOUGH));
        let calm = percentile(&calm.await.expect("a pair that talks").expect("it lives"));
        Self {
            heard,
            enough,
            thread,
            calm,
        }
    }

    /// Expects the pair to go on, whatever is done meanwhile and comes of it: what is sent behind the attack arrives, too.
    /// How fast it was is printed only, as a busy machine may slow it by any factor.
    #[track_caller]
    pub fn during<T>(&mut self, attack: impl Future<Output = T>) -> impl Future<Output = T> {
        let here = Location::caller();
        async move {
            let before = self.heard.borrow().len();
            let value = attack.await;
            let since = self.heard.borrow().len().max(before);
            let more = self.heard.wait_for(|heard| heard.len() >= since + ENOUGH);
            let more = tokio::time::timeout(PATIENCE, more).await;
            let heard = more.unwrap_or_else(|_| panic!("{here}: the pair has fallen silent"));
            let heard = heard.unwrap_or_else(|_| panic!("{here}: the pair is gone"));
            let (p99, slowest) = (
                percentile(&heard[before..]),
                heard[before..].iter().max().copied().unwrap_or_default(),
            );
            let seen = format!(
                "{here}: {} numbers, p99 {p99:?} after {:?}, slowest {slowest:?}",
                heard.len() - before,
                self.calm
            );
            println!("{seen}");
            assert!(slowest <= PATIENCE, "{seen}");
            value
        }
    }

    /// Ends it. Every number has come, once and in its turn.
    pub async fn end(self) {
        let _ = self.enough.send(true);
        let ended = tokio::task::spawn_blocking(move || self.thread.join()).await;
        ended
            .expect("it is waited for")
            .expect("a pair that lost nothing");
    }
}

async fn talk(
    from: &str,
    to: &str,
    hear: watch::Sender<Vec<Duration>>,
    mut stop: watch::Receiver<bool>,
) {
    let (mut from, mut to) = (Client::connect(from).await, Client::connect(to).await);
    let start = Instant::now() + PACE;
    let say = async {
        let mut pace = interval_at(start, PACE);
        for n in 0_u32.. {
            pace.tick().await;
            let last = *stop.borrow_and_update();
            from.send("number", json!([n, last])).await;
            if last {
                break;
            }
        }
    };
    let listen = async {
        for n in 0_u32.. {
            let data = to.expect("number").await.data;
            assert_eq!(data[0], n, "a number was lost, or came twice");
            let took = start.elapsed().saturating_sub(PACE * n);
            hear.send_modify(|heard| heard.push(took));
            if data[1] == true {
                break;
            }
        }
    };
    tokio::join!(say, listen);
}

/// The 99th percentile.
fn percentile(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * 99).div_ceil(100) - 1]
}
