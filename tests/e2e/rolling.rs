//! A restart of all nodes, one after the other, as its clients and its load balancer see it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use unisono_tests::{
    Api, Client, Departure, Nginx, Node, Returning, Sandbox, eventually, upgrade_request,
};

use crate::traffic::{BALANCED, Traffic};

const CLIENTS: usize = 240;
const DELAY: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_millis(1000);
const RECONNECT_MAX: Duration = Duration::from_millis(800);
const SETTINGS: &str = "[drain]\ndelay = \"2s\"\nwindow = \"1s\"\nreconnect_max = \"800ms\"\n";
const KEY: &str = "a-key-of-the-rolling-restart";

/// What a busy machine may add to a stated time, and far more.
const MARGIN: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_rolling_restart_costs_each_client_one_paced_reconnect() {
    let mut sandbox = Sandbox::config()
        .ports()
        .key(KEY)
        .toml(SETTINGS)
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let balanced = Api::new(
        format!("http://127.0.0.1:{}", nginx.port()),
        Some(KEY.to_owned()),
    );
    let url = format!("ws://127.0.0.1:{}/crowd", nginx.port());
    let clients = join_all((0..CLIENTS).map(|_| Returning::start(url.clone()))).await;

    let mut restarts = vec![];
    for _ in 0..3 {
        // The first becomes the last, so each has its turn.
        let node = sandbox.nodes.remove(0);
        let (node, restart) = restart(node, &sandbox, &balanced).await;
        sandbox.nodes.push(node);
        sandbox.all_know_each_other().await;
        restarts.push(restart);
    }
    everybody_is_here(&sandbox.nodes).await;

    let stories = join_all(clients.into_iter().map(Returning::story)).await;
    for story in &stories {
        let nodes: BTreeSet<_> = story.iter().map(|departure| &departure.node).collect();
        assert_eq!(nodes.len(), story.len(), "sent away twice: {story:?}");
    }
    let departures: Vec<Departure> = stories.into_iter().flatten().collect();
    let sockets: usize = restarts.iter().map(|restart| restart.sockets).sum();
    assert_eq!(
        departures.len(),
        sockets,
        "each was sent away, and nobody else"
    );
    for restart in &restarts {
        came_back(restart, &departures);
    }
}

/// What was seen of the restart of one node.
struct Restart {
    id: String,
    sockets: usize,
    terminated: Instant,
}

/// Restarts a node among two others, which go on.
async fn restart(mut node: Node, others: &Sandbox, balanced: &Api) -> (Node, Restart) {
    let all: Vec<&Node> = others.nodes.iter().chain([&node]).collect();
    let sockets = everybody_is_here(&all).await[2];
    let (left, right) = (&others.nodes[0], &others.nodes[1]);
    let mut traffic = Traffic::around([left, right], &node).await;
    traffic.add(BALANCED, balanced).await;
    let id = node.id().await;

    let terminated = Instant::now();
    node.terminate();
    eventually("the node is no longer ready", async || {
        node.api().get("/health/ready").await.status == 503
    })
    .await;
    let mut late = node.wire().await;
    late.send(upgrade_request("/crowd")).await;
    let refused = late.response().await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");

    assert_eq!(node.process().exited().await.code(), Some(0));
    let took = terminated.elapsed();
    assert!(took < DELAY + WINDOW + MARGIN, "{took:?}");

    traffic.loses_nothing([left.api(), right.api()]).await;
    let restart = Restart {
        id,
        sockets,
        terminated,
    };
    (node.restart().await, restart)
}

/// Waits until all clients are somewhere, and returns how many are where.
async fn everybody_is_here(nodes: &[impl AsRef<Node>]) -> Vec<usize> {
    eventually("everybody is back", async || {
        let mut sockets = vec![];
        for node in nodes {
            let sum = node.as_ref().metrics().await.sum("unisono_sockets");
            sockets.push(sum as usize);
        }
        match sockets.iter().sum::<usize>() {
            CLIENTS => Ok(sockets),
            _ => Err(sockets),
        }
    })
    .await
}

fn came_back(restart: &Restart, departures: &[Departure]) {
    let of_node = departures
        .iter()
        .filter(|departure| departure.node == restart.id);
    let of_node: Vec<_> = of_node.collect();
    assert_eq!(of_node.len(), restart.sockets, "each client of the node");
    let mut times = BTreeSet::new();
    for departure in &of_node {
        assert_eq!(departure.code, Some(1012), "{departure:?}");
        assert!(
            departure.at >= restart.terminated + DELAY,
            "closed before anybody could know that it is not ready"
        );
        let wait = departure
            .reconnect_in
            .expect("it was told when to come back");
        assert!(wait <= RECONNECT_MAX, "{departure:?}");
        assert!(departure.away < wait + MARGIN, "{departure:?}");
        times.insert(wait);
    }
    assert!(times.len() > of_node.len() / 2, "not told apart: {times:?}");
}

// === the pace ===

/// So many sockets on one node that is then terminated: when each was closed, and when it may come back.
async fn closings(toml: &str, sockets: usize) -> Vec<(Duration, Duration)> {
    let mut node = Node::alone(toml).await;
    let mut clients: Vec<Client> = join_all((0..sockets).map(|_| node.client("/x"))).await;
    let terminated = Instant::now();
    node.terminate();
    let closings = clients.iter_mut().map(async |client| {
        let closing = client.expect("unisono:closing").await;
        let at = terminated.elapsed();
        assert_eq!(client.expect_close().await.0, 1012);
        let wait = closing.data["reconnect_in_ms"].as_u64().expect("a time");
        (at, Duration::from_millis(wait))
    });
    let closings = join_all(closings).await;
    assert_eq!(node.process().exited().await.code(), Some(0));
    closings
}

/// The distance of Kolmogorov and Smirnov from an even spread over this time: the largest difference between the
/// share of times that have come and the share of time that has passed.
fn unevenness(times: impl Iterator<Item = Duration>, over: Duration) -> f64 {
    let mut times: Vec<_> = times.map(|time| time.div_duration_f64(over)).collect();
    times.sort_by(f64::total_cmp);
    let count = times.len() as f64;
    let steps = times.iter().enumerate();
    let distances = steps.map(|(nth, time)| {
        let (before, after) = (nth as f64 / count, (nth + 1) as f64 / count);
        (time - before).abs().max((after - time).abs())
    });
    distances.fold(0.0, f64::max)
}

/// Of n sockets the kth is closed after k parts of the window, but for one more of each worker. A busy machine makes them
/// later, but never sooner.
fn none_before_its_turn(closings: &[(Duration, Duration)], window: Duration) {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut times: Vec<_> = closings.iter().map(|(at, _)| *at).collect();
    times.sort();
    for (nth, at) in times.iter().enumerate() {
        let turns = (nth + 1).saturating_sub(workers) as u32;
        let turn = window * turns / times.len() as u32;
        assert!(*at >= turn, "{nth} after {at:?}: {times:?}");
    }
}

#[tokio::test]
async fn a_drain_closes_evenly_over_its_window() {
    let window = Duration::from_secs(4);
    let drain = "[drain]\ndelay = \"0s\"\nwindow = \"4s\"\nreconnect_max = \"5s\"";

    let closings = closings(drain, 100).await;

    none_before_its_turn(&closings, window);
    // One run of random times in a million is worse than 0.27.
    let back = closings.iter().map(|(_, wait)| *wait);
    let back = unevenness(back, Duration::from_secs(5));
    assert!(back < 0.27, "{back}: {closings:?}");
}

#[tokio::test]
async fn a_drain_takes_longer_where_its_sockets_would_come_too_fast() {
    let drain = "[drain]\ndelay = \"0s\"\nwindow = \"100ms\"\nrate = 20";

    let closings = closings(drain, 40).await;

    none_before_its_turn(&closings, Duration::from_secs(2));
}
