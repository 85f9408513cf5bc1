//! A restart of all nodes, one after the other, as its clients and its load balancer see it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use unisono_tests::{
    Api, Client, Departure, Nginx, Node, Process, Returning, Sandbox, eventually, python,
    upgrade_request,
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

// === clients and publishers that are not ours ===

/// The program of `tests/backends`, around these nodes.
async fn crowd(nginx: &Nginx, nodes: &[Node], directory: &std::path::Path) -> Process {
    let ports: Vec<_> = nodes.iter().map(|node| node.port().to_string()).collect();
    let mut command = python("crowd.py");
    command
        .env("NGINX", nginx.port().to_string())
        .env("NODES", ports.join(","))
        .env("KEY", KEY);
    let mut crowd = Process::spawn("crowd", command, directory, "run tests/backends/install");
    eventually("everybody has begun", async || {
        assert!(crowd.status().is_none(), "{}", crowd.stderr());
        crowd.stdout().contains("ready")
    })
    .await;
    crowd
}

#[tokio::test]
async fn an_orderly_restart_loses_nothing_and_tells_nobody_of_a_gap() {
    let mut sandbox = Sandbox::config()
        .ports()
        .key(KEY)
        .toml(SETTINGS)
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut crowd = crowd(&nginx, &sandbox.nodes, directory.path()).await;
    let application = Application::start(&sandbox.nats[0].url()).await;

    for _ in 0..3 {
        let mut node = sandbox.nodes.remove(0);
        node.terminate();
        assert_eq!(node.process().exited().await.code(), Some(0));
        sandbox.nodes.push(node.restart().await);
        sandbox.all_know_each_other().await;
    }

    application.was_always_answered().await;
    crowd.terminate();
    assert_eq!(crowd.exited().await.code(), Some(0), "{}", crowd.stderr());
    let stdout = crowd.stdout();
    let report = stdout.lines().last().expect("a report");
    let report: Value = serde_json::from_str(report).expect("JSON");
    assert_eq!(report["problems"], json!([]), "{report}");
    assert_eq!(report["gaps"], json!([]), "{report}");
    let answers = report["answers"].as_object().expect("each publisher");
    assert_eq!(answers.len(), 8, "{report}");
    for (publisher, answers) in answers {
        let expected: &[&str] = match publisher.starts_with("nginx") {
            true => &["200 sent", "200 confirmed"],
            // Who asks a node itself sees that it leaves.
            false => &[
                "200 sent",
                "200 confirmed",
                "503 draining",
                "ConnectionRefusedError",
            ],
        };
        for answer in answers.as_object().expect("a count of each").keys() {
            assert!(expected.contains(&answer.as_str()), "{publisher}: {report}");
        }
    }
}

/// Asks over NATS, whichever node serves it, one request after the other.
struct Application {
    task: tokio::task::JoinHandle<u64>,
    enough: watch::Sender<bool>,
}

impl Application {
    async fn start(nats: &str) -> Self {
        let bus = async_nats::connect(nats).await.expect("a NATS server");
        let (enough, stop) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut asked = 0;
            while !*stop.borrow() {
                let body = json!({"room": "/elsewhere", "event": "n"}).to_string();
                let answer = bus.request("unisono.api.publish", body.into()).await;
                let answer = answer.unwrap_or_else(|error| panic!("after {asked}: {error}"));
                assert_eq!(answer.payload, r#"{"status":"sent"}"#, "after {asked}");
                asked += 1;
            }
            asked
        });
        Self { task, enough }
    }

    async fn was_always_answered(self) {
        let _ = self.enough.send(true);
        assert!(self.task.await.expect("each request is answered") > 0);
    }
}

/// The head of a publication to `/x` with a body of so many bytes.
fn publish_head(bytes: usize) -> String {
    format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Length: {bytes}\r\n\r\n"
    )
}

const PUBLICATION: &str = r#"{"room":"/x","event":"n"}"#;

const LIVE: &str = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn a_node_that_drains_serves_requests_and_keeps_no_connection() {
    let config = Sandbox::config().nodes(2).key(KEY);
    let sandbox = config.toml("[drain]\ndelay = \"60s\"").start().await;
    let mut member = sandbox.client(1, "/x").await;
    let node = &sandbox.nodes[0];
    let publish = publish_head(PUBLICATION.len()) + PUBLICATION;
    let mut kept = node.wire().await;
    kept.send(&publish).await;
    let answer = kept.response().await;
    assert_eq!((answer.status, answer.header("connection")), (200, None));

    node.terminate();
    eventually("the node is no longer ready", async || {
        node.api().get("/health/ready").await.status == 503
    })
    .await;

    for mut wire in [kept, node.wire().await] {
        wire.send(&publish).await;
        let answer = wire.response().await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        wire.expect_eof().await;
    }
    for _ in 0..3 {
        member.expect("n").await;
    }
}

#[tokio::test]
async fn a_node_that_leaves_finishes_what_it_has_accepted_and_refuses_the_rest() {
    let mut sandbox = Sandbox::config().nodes(2).key(KEY).start().await;
    let mut member = sandbox.client(1, "/x").await;
    let node = &sandbox.nodes[0];
    let [mut accepted, mut late, mut probe] =
        [node.wire().await, node.wire().await, node.wire().await];
    // Connections that are kept.
    for wire in [&mut late, &mut probe] {
        wire.send(LIVE).await;
        assert_eq!(wire.response().await.status, 200);
    }
    let (begin, end) = PUBLICATION.split_at(5);
    let head = publish_head(PUBLICATION.len());
    let head = head.replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    accepted.send(head + begin).await;
    // It is under way.
    accepted.until("100 Continue\r\n\r\n").await;

    // Whoever is to stop at once waits for no connection, but for what it has accepted.
    node.interrupt();
    let address = ("127.0.0.1", node.port());
    eventually("newcomers find nobody", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
    late.send(publish_head(PUBLICATION.len()) + PUBLICATION)
        .await;
    let refused = late.response().await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.header("connection"), Some("close"));
    assert!(refused.body.contains(r#""code":"draining""#), "{refused:?}");
    probe.send(LIVE).await;
    assert_eq!(probe.response().await.status, 200);
    accepted.send(end).await;
    assert_eq!(accepted.response().await.status, 200);

    assert_eq!(sandbox.nodes[0].process().exited().await.code(), Some(0));
    member.expect("n").await;
    sandbox.api(1).publish("/x", "fence", Value::Null).await;
    member.expect("fence").await;
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
