//! How a cluster grows: a hundred nodes on the in-memory bus, with the rooms of very many sockets, in one thread under a
//! paused clock. What passes the bus is counted by what it is for, and must stay within what docs/growth.md says.
//!
//! ```sh
//! cargo test --release -p unisono-cluster --test growth -- --nocapture
//! ```
//!
//! prints a table. `UNISONO_GROWTH_SOCKETS`, `UNISONO_GROWTH_NODES` and `UNISONO_GROWTH_SEED` give it another shape: the
//! 1,000,000 sockets of the page take a minute of CPU and 5 GiB of memory.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod crowd;
mod figures;
mod meter;
mod world;

use std::time::Duration;

use tokio::task::LocalSet;

use crate::figures::Figures;
use crate::meter::Kind;
use crate::world::{HEARTBEATS, NODE_TIMEOUT, World};

/// Nodes and sockets of the run that is one of all tests.
const NODES: usize = 100;
const SOCKETS: usize = 10_000;

/// When a node that is silent must be known to be gone.
const NOTICED: Duration = NODE_TIMEOUT.saturating_add(Duration::from_secs(1));

/// Of one node, in a second: 500 probes, and as many answers to those of others; and the first round, which did not wait.
const PROBES_AND_ANSWERS_MAX: f64 = 1_200.0;

#[test]
fn a_hundred_nodes_grow_as_the_page_says() {
    let seed = number("SEED", rand::random::<u16>().into());
    let nodes = number("NODES", NODES);
    let sockets = number("SOCKETS", SOCKETS);
    println!("seed {seed}, {nodes} nodes, {sockets} sockets");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, story(nodes, sockets, seed as u64));
}

/// What the environment asks for in place of that.
fn number(what: &str, otherwise: usize) -> usize {
    std::env::var(format!("UNISONO_GROWTH_{what}")).map_or(otherwise, |text| text.parse().unwrap())
}

async fn story(nodes: usize, sockets: usize, seed: u64) {
    let peers = nodes as f64 - 1.0;
    // Nothing is ever done for each socket: only this makes a large run longer.
    let while_long = Duration::from_secs(5);

    let (mut world, coming) = World::start(nodes, sockets, seed).await;
    let started = world.settle("all nodes come up").await;
    assert!(started.until <= Duration::from_secs(2), "{started:?}");
    greetings_are_bounded(&started, peers);

    let filled = world.fill(coming).await;
    probes_are_bounded(&filled);
    println!("{}", world.shape());

    let quiet = world.watch("nothing happens", while_long).await;
    assert_about(quiet.sent(Kind::Heartbeat), HEARTBEATS);
    assert_about(quiet.received(Kind::Heartbeat), HEARTBEATS * peers);
    // And the answers of the bus to two questions.
    assert_about(quiet.all_received(), HEARTBEATS * (peers + 1.0));

    let spoken = world
        .publish_for("publications and emits", while_long)
        .await;
    let copies = spoken.count(Kind::Publication);
    assert_eq!(
        copies,
        world.expected(),
        "one for each other node with members"
    );

    let churn = world.churn_for("joins and leaves", while_long).await;
    probes_are_bounded(&churn);

    let lost = world.kill().await;
    let died = world.settle("a node dies").await;
    assert!(died.until <= NOTICED, "{died:?}");
    world.come_back(lost, Duration::from_secs(5)).await;
    let back = world
        .quiet_down("its sockets come back, in five seconds")
        .await;
    probes_are_bounded(&back);

    world.add();
    let joined = world.settle("a node joins").await;
    assert!(joined.until <= Duration::from_secs(3), "{joined:?}");
    let snapshots = joined.count(Kind::Snapshot);
    // A question to each other node, and its answer, which no third one gets.
    assert!(
        snapshots as f64 <= world.snapshot_parts() * 2.0 * nodes as f64,
        "{joined:?}"
    );

    world.part();
    let parted = world.settle("the network is cut in two").await;
    assert!(parted.until <= NOTICED, "{parted:?}");
    world.heal();
    let healed = world.settle("it is whole again").await;
    assert!(healed.until <= Duration::from_secs(3), "{healed:?}");
    greetings_are_bounded(&healed, peers);

    let gone = world.leave_at_once(10).await;
    world
        .quiet_down("a tenth of all sockets leaves at once")
        .await;
    world.join_at_once(gone);
    let back = world.quiet_down("and comes back at once").await;
    probes_are_bounded(&back);

    world.kill_eldest().await;
    let died = world.settle("the eldest node dies").await;
    assert!(died.until <= NOTICED, "{died:?}");
}

/// A node that is new to many others is not greeted by each of them, for each of them: each greets all at one time.
fn greetings_are_bounded(figures: &Figures, peers: f64) {
    let beats = figures.each_received(Kind::Heartbeat) / peers;
    let seconds = figures.lasted.as_secs_f64();
    // One with each tick of a node's clock would be ten in a second.
    assert!(beats <= 10.0 * seconds, "{figures:?}");
}

/// Nodes ask each other whether they know of new subscriptions, but not for each of them.
fn probes_are_bounded(figures: &Figures) {
    let sent = figures.sent(Kind::Probe);
    assert!(
        sent <= PROBES_AND_ANSWERS_MAX,
        "{sent} in a second: {figures:?}"
    );
}

#[track_caller]
fn assert_about(seen: f64, expected: f64) {
    assert!(
        (seen / expected - 1.0).abs() <= 0.02,
        "{seen} is not about {expected}"
    );
}
