//! What becomes of a node when a part of it fails: one socket is gone, or the node is. Never does it live on deaf.

use std::time::Duration;

use futures_util::future::join_all;
use proto::SocketId;
use serde_json::{Value, json};
use tokio::time::timeout;
use unisono_tests::{Client, Node, NodeConfig, Output, Sandbox, eventually, free_port};

/// `EX_SOFTWARE`: whatever supervises the node starts another.
const STOPPED: Option<i32> = Some(70);

/// How long Kubernetes waits for the answer to a probe, as k8s/base/deployment.yaml says.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// A node of which clients may break parts, with two workers.
fn fragile() -> NodeConfig {
    Node::config("alone")
        .example("failures")
        .arg("--set=workers=2")
}

/// One client on each of the two workers.
async fn one_on_each(node: &Node) -> [Client; 2] {
    let first = node.client("/x").await;
    loop {
        let second = node.client("/x").await;
        if worker(&second) != worker(&first) {
            return [first, second];
        }
    }
}

fn worker(client: &Client) -> usize {
    SocketId::parse(&client.id).expect("an id").worker()
}

async fn live(node: &Node) -> u16 {
    let answer = timeout(PROBE_TIMEOUT, node.api().get("/health/live"));
    answer.await.map_or(0, |answer| answer.status)
}

// === panics ===

#[tokio::test]
async fn a_handler_that_panics_costs_its_message() {
    let node = fragile().start().await;
    let [mut a, mut b] = one_on_each(&node).await;
    for _ in 0..3 {
        let refusal = a.refused("fail", json!({"part": "handler"})).await;
        assert_eq!(refusal, "handler_failed");
        b.ack("unisono:ping", Value::Null).await;
    }
    let metrics = node.metrics().await;
    assert_eq!(metrics.get("unisono_handlers_total{result=\"panic\"}"), 3.0);
    assert_eq!(metrics.get("unisono_sockets{wire=\"websocket\"}"), 2.0);
}

#[tokio::test]
async fn a_session_that_panics_is_closed_and_the_only_one() {
    let mut node = fragile().start().await;
    let [mut a, mut b] = one_on_each(&node).await;
    let files = node.process().open_files();
    let mut streams = vec![];
    for _ in 0..3 {
        let mut victim = node.client("/x").await;
        victim.send("fail", json!({"part": "session"})).await;
        assert_eq!(victim.expect_close().await.0, 1011);
        // A stream says nothing at its end, which is not in its place.
        let stream = node.stream("/x").await;
        let wish = json!({"part": "session", "socket": stream.id});
        a.ack("fail", wish).await;
        // Its client does not go before it does.
        streams.push(stream);
    }
    eventually("all that is left are two", async || {
        let members = node.api().members("/x").await;
        let metrics = node.metrics().await;
        let sockets = metrics.sum("unisono_sockets");
        let closes = metrics.get("unisono_closes_total{code=\"1011\"}");
        let now = node.process().open_files();
        if members["count"] == 2 && (sockets, closes) == (2.0, 6.0) && now <= files {
            Ok(())
        } else {
            Err((members, sockets, closes, files, now))
        }
    })
    .await;
    node.api().publish("/x", "fence", Value::Null).await;
    a.expect("fence").await;
    b.expect("fence").await;
    assert_eq!(live(&node).await, 200);
}

#[tokio::test]
async fn a_node_stops_with_what_it_cannot_do_without() {
    for part in ["room", "registry", "node", "bus", "outside"] {
        let mut sandbox = Sandbox::config().nodes(1).example("failures").start().await;
        let mut a = sandbox.client(0, "/x").await;
        a.send("fail", json!({"part": part})).await;

        let process = sandbox.nodes[0].process();
        let status = process.exited().await;

        let log = process.stderr();
        assert_eq!(status.code(), STOPPED, "{part}: {log}");
        assert!(log.contains("the node stops"), "{part}: {log}");
    }
}

// === threads that are held up ===

#[tokio::test]
async fn a_worker_that_is_held_up_is_noticed_and_holds_up_nobody_else() {
    let node = fragile().start().await;
    let [mut a, mut b] = one_on_each(&node).await;
    assert_eq!(live(&node).await, 200);

    // For longer than all that follows takes, on whatever machine.
    a.send("fail", json!({"part": "handler", "block_ms": 40_000}))
        .await;

    eventually("the handler is at work", async || {
        matches!(live(&node).await, 503 | 0)
    })
    .await;
    // Whichever worker is asked, it does not say yes.
    for _ in 0..2 {
        let (status, ()) = tokio::join!(live(&node), async {
            for _ in 0..50 {
                b.ack("unisono:ping", Value::Null).await;
            }
        });
        assert!(matches!(status, 503 | 0), "{status}");
    }
    // All of that was while it was held up.
    assert!(matches!(live(&node).await, 503 | 0));
    eventually("it lives again", async || live(&node).await == 200).await;
    a.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_node_does_not_say_that_it_lives_with_a_thread_held_up() {
    let parts = ["node", "registry", "bus", "outside"];
    let threads = ["main", "worker", "bus", "outside"];
    let all = parts.into_iter().zip(threads);
    join_all(all.map(|(part, thread)| says_no_while_held_up(part, thread))).await;
}

async fn says_no_while_held_up(part: &str, thread: &str) {
    let sandbox = Sandbox::config().nodes(1).example("failures").start().await;
    let node = &sandbox.nodes[0];
    let mut a = node.client("/x").await;

    a.send("fail", json!({"part": part, "block_ms": 20_000}))
        .await;

    // The bus is held up at its next heartbeat only.
    let status = eventually("it is noticed", async || {
        match timeout(PROBE_TIMEOUT, node.api().get("/health/live")).await {
            Ok(answer) if answer.status == 200 => None,
            Ok(answer) => Some(answer.body["status"].to_string()),
            // A worker takes connections in and answers; of others it is the machine that is late.
            Err(_) => (thread == "worker").then(|| "no answer by a worker".to_owned()),
        }
    })
    .await;
    assert!(status.contains(thread), "{part}: {status}");
    eventually("it lives again", async || live(node).await == 200).await;
    a.ack("unisono:ping", Value::Null).await;
}

/// What comes from other nodes meanwhile waits within a bound, and what has no room is counted and told.
#[tokio::test]
async fn a_flood_for_a_node_that_is_held_up_stays_within_its_bound() {
    let config = Sandbox::config().nodes(2).example("failures");
    let config = config.cluster("incoming_bytes = \"4MiB\"\n");
    let config = config.toml("[sockets]\ninflight_bytes = \"16MiB\"\nqueue_bytes = \"64MiB\"\n");
    let mut sandbox = config.start().await;
    let mut member = sandbox.client(1, "/x").await;
    let mut breaker = sandbox.client(1, "/y").await;
    let large = "x".repeat(256 * 1024);
    let flood = async |sandbox: &Sandbox, messages: usize| {
        let body = json!({"room": "/x", "event": "flood", "data": large});
        let mut taken = 0;
        while taken < messages {
            // Too many at a time are answered 503.
            let answer = sandbox.api(0).post("publish", body.clone()).await;
            taken += usize::from(answer.status == 200);
        }
    };
    flood(&sandbox, 1).await;
    member.expect("flood").await;
    let before = sandbox.nodes[1].process().memory_kib();

    breaker
        .send("fail", json!({"part": "node", "block_ms": 12_000}))
        .await;
    eventually("too much waits", async || {
        flood(&sandbox, 8).await;
        let metrics = sandbox.nodes[1].metrics().await;
        let waiting = metrics.get("unisono_incoming_bytes");
        let dropped = metrics.get("unisono_bus_overflows_total");
        assert!(waiting <= 4.0 * 1024.0 * 1024.0, "{waiting}");
        (dropped > 0.0).then_some(()).ok_or((waiting, dropped))
    })
    .await;
    flood(&sandbox, 400).await;
    let after = sandbox.nodes[1].process().memory_kib();

    assert!(after < before + 40 * 1024, "{before} KiB, then {after} KiB");
    let gap = loop {
        let event = member.next().await;
        if event.event == "unisono:gap" {
            break event.data;
        }
    };
    assert_eq!(gap["reason"], "overload");
    eventually("nothing waits", async || {
        let metrics = sandbox.nodes[1].metrics().await;
        let waiting = metrics.get("unisono_incoming_bytes");
        (waiting == 0.0).then_some(()).ok_or(waiting)
    })
    .await;
    // It was never taken for dead: what nodes say to each other has room of its own.
    let nodes = sandbox.api(0).nodes().await;
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(2), "{nodes}");
}

// === logs that cannot be written ===

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_its_lines() {
    for output in [Output::ToFullDisk, Output::ToNobody] {
        let log = "[log]\nlevel = \"trace\"";
        let config = Node::config("alone").toml(log).port(free_port());
        let mut node = config.output(output).start().await;
        let mut a = node.client("/x").await;
        let mut b = node.client("/x").await;

        // Each step has its lines.
        a.join("/y").await;
        a.send_text("no JSON").await;
        a.expect_error("bad_json").await;
        for n in 0..100 {
            a.send("hello", json!(n)).await;
            assert_eq!(b.expect("hello").await.data, n);
        }
        let told = node.api().disconnect(&a.id, 4000, "bye").await;
        assert_eq!(told, "delivered");
        assert_eq!(a.expect_close().await.0, 4000);
        b.ack("unisono:ping", Value::Null).await;
        node.interrupt();
        let status = node.process().exited().await;
        assert_eq!(status.code(), Some(0), "{output:?}");
    }
}
