//! How much one client, or one address, may ask for.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use unisono_tests::{
    Nginx, Node, NodeConfig, Opcode, Response, Sandbox, Wire, eventually, frame, stream_request,
    unisono, upgrade_request, with_open_files,
};

// === messages ===

/// A frame that asks for an answer to this number.
fn question(n: u64) -> Vec<u8> {
    let text = json!({"event": "unisono:ping", "id": n}).to_string();
    frame(Opcode::Text, text.as_bytes())
}

#[tokio::test]
async fn a_flood_is_refused_above_the_burst_and_then_closed() {
    let limits = "[sockets]\nmessage_rate = 1\nmessage_burst = 5\nrate_warnings = 3";
    let node = Node::alone(limits).await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    assert!(wire.text().await.contains("unisono:open"));

    wire.send((0..20).flat_map(question).collect::<Vec<u8>>())
        .await;

    for n in 0..5 {
        let ack: Value = serde_json::from_str(&wire.text().await).expect("JSON");
        assert_eq!(ack, json!({"event": "unisono:ack", "id": n}));
    }
    for n in 5..8 {
        let error: Value = serde_json::from_str(&wire.text().await).expect("JSON");
        assert_eq!(error["event"], "unisono:error", "{error}");
        assert_eq!(error["id"], n, "{error}");
        assert_eq!(error["data"]["code"], "rate_limited", "{error}");
        assert_eq!(error["data"]["event"], "unisono:ping", "{error}");
    }
    assert_eq!(wire.close().await.0, 1008);
}

#[tokio::test]
async fn what_is_refused_goes_nowhere() {
    let limits = "[sockets]\nmessage_rate = 1\nmessage_burst = 5\nrate_warnings = 100";
    let node = Node::alone(limits).await;
    let mut member = node.client("/x").await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    assert!(wire.text().await.contains("unisono:open"));

    let chat = |n| json!({"event": "chat", "data": n, "id": n}).to_string();
    let frames = (0..20).flat_map(|n: u64| frame(Opcode::Text, chat(n).as_bytes()));
    wire.send(frames.collect::<Vec<u8>>()).await;
    for n in 0..20 {
        let answer: Value = serde_json::from_str(&wire.text().await).expect("JSON");
        assert_eq!(answer["id"], n, "{answer}");
    }

    node.api().publish("/x", "fence", Value::Null).await;
    for n in 0..5 {
        assert_eq!(member.expect("chat").await.data, n);
    }
    member.expect("fence").await;
}

#[tokio::test]
async fn who_was_too_fast_may_go_on_a_moment_later() {
    let limits = "[sockets]\nmessage_rate = 1\nmessage_burst = 1\nrate_warnings = 1000000";
    let node = Node::alone(limits).await;
    let mut a = node.client("/x").await;

    a.ack("unisono:ping", Value::Null).await;
    let refusal = loop {
        if let Err(refusal) = a.request("unisono:ping", Value::Null).await {
            break refusal;
        }
    };
    assert_eq!(refusal.code, "rate_limited");

    eventually("it may go on", async || {
        a.request("unisono:ping", Value::Null).await
    })
    .await;
}

#[tokio::test]
async fn who_waits_for_its_answers_is_never_refused() {
    // Nobody gets an answer in less than the 5 µs that each of these has.
    let limits = "[sockets]\nmessage_rate = 200000\nmessage_burst = 20\nrate_warnings = 1";
    let node = Node::alone(limits).await;
    let mut a = node.client("/x").await;

    // Far more than a burst.
    for n in 0..1_000 {
        a.ack("unisono:ping", json!(n)).await;
    }
}

#[tokio::test]
async fn a_raw_client_that_is_too_fast_is_closed_at_once() {
    let limits = "[sockets]\nmessage_rate = 1\nmessage_burst = 3\nrate_warnings = 100";
    let raw = "[[rooms]]\npattern = \"/raw\"\nformat = \"raw\"";
    let node = Node::alone(&format!("{limits}\n{raw}")).await;
    let mut member = node.ungreeted("/raw").await;
    let mut wire = node.wire().await;
    wire.upgrade("/raw").await;
    eventually("both are in the room", async || {
        node.api().members("/raw").await["count"] == 2
    })
    .await;

    let frames = (0..10).flat_map(|n| frame(Opcode::Text, n.to_string().as_bytes()));
    wire.send(frames.collect::<Vec<u8>>()).await;

    assert_eq!(wire.close().await.0, 1008);
    for n in 0..3 {
        member.expect_frame(Message::text(n.to_string())).await;
    }
    let fence = json!({"room": "/raw", "text": "fence"});
    node.api().post("publish", fence).await.ok();
    member.expect_frame(Message::text("fence")).await;
}

#[tokio::test]
async fn a_flood_does_not_hold_up_others_of_its_worker() {
    let limits = "[sockets]\nmessage_rate = 1\nmessage_burst = 1\nrate_warnings = 4000000000";
    let node = Node::config("alone").toml(limits).arg("--set=workers=1");
    let node = node.start().await;
    let mut other = node.wire().await;
    other.upgrade("/x").await;
    assert!(other.text().await.contains("unisono:open"));
    let mut flood = node.wire().await;
    flood.upgrade("/x").await;
    assert!(flood.text().await.contains("unisono:open"));

    let over = Arc::new(AtomicBool::new(false));
    let flooding = {
        let over = Arc::clone(&over);
        let questions: Vec<u8> = (0..500).flat_map(question).collect();
        tokio::spawn(async move {
            let mut answers = 0;
            loop {
                flood.send(&questions).await;
                for _ in 0..500 {
                    flood.text().await;
                    answers += 1;
                }
                if over.load(Ordering::Relaxed) {
                    return answers;
                }
            }
        })
    };
    // Ping frames do not count, and come back in their turn: the flood does not end before they do.
    for n in 0..500_u32 {
        other.send(frame(Opcode::Ping, &n.to_be_bytes())).await;
        assert_eq!(other.frame().await.payload, n.to_be_bytes());
    }
    assert!(!flooding.is_finished(), "the flood lasted");
    over.store(true, Ordering::Relaxed);
    let flooded: u64 = flooding.await.expect("the flood was answered");
    assert!(flooded >= 500, "{flooded}");
}

// === handshakes ===

const FEW: &str = "[sockets]\nhandshake_rate = 1\nhandshake_burst = 3";

async fn answer(mut wire: Wire, request: &str) -> Response {
    wire.send(request).await;
    wire.response().await
}

#[track_caller]
fn assert_too_many(refused: &Response) {
    assert_eq!(refused.status, 429, "{refused:?}");
    let retry_after = refused.header("retry-after");
    let seconds = retry_after.and_then(|seconds| seconds.parse::<u32>().ok());
    assert!(seconds.is_some_and(|seconds| seconds >= 1), "{refused:?}");
    let body: Value = serde_json::from_str(&refused.body).expect("a JSON body");
    assert_eq!(body["error"]["code"], "rate_limited", "{refused:?}");
    assert!(body["error"]["message"].is_string(), "{refused:?}");
}

/// Asks until it is refused; says how often it was not, and how long that took. On a busy machine a place may have
/// become free since an earlier refusal.
async fn until_refused(node: &Node, request: &str, status: u16) -> (u64, u64, Response) {
    let (start, mut accepted) = (Instant::now(), 0);
    loop {
        let response = answer(node.wire().await, request).await;
        if response.status != status {
            return (accepted, start.elapsed().as_secs(), response);
        }
        accepted += 1;
    }
}

#[tokio::test]
async fn handshakes_of_one_address_are_counted() {
    let node = Node::alone(FEW).await;
    let upgrade = upgrade_request("/x");

    let (accepted, seconds, refused) = until_refused(&node, &upgrade, 101).await;

    assert!(
        (3..=4 + seconds).contains(&accepted),
        "{accepted} were let in"
    );
    assert_too_many(&refused);
    let stream = stream_request("/x", "");
    assert_too_many(&until_refused(&node, &stream, 200).await.2);
    for _ in 0..20 {
        assert_eq!(node.api().get("/health/live").await.status, 200);
        assert_eq!(node.api().get("/api/v1/nodes").await.status, 200);
    }
    let neighbour = Wire::connect_from(Ipv4Addr::new(127, 0, 0, 2), node.port()).await;
    assert_eq!(answer(neighbour, &upgrade).await.status, 101);
    eventually("it may come again", async || {
        answer(node.wire().await, &upgrade).await.status == 101
    })
    .await;
}

#[tokio::test]
async fn streams_are_handshakes_too() {
    let node = Node::alone(FEW).await;

    let stream = stream_request("/x", "");
    let (accepted, seconds, refused) = until_refused(&node, &stream, 200).await;

    assert!(
        (3..=4 + seconds).contains(&accepted),
        "{accepted} were let in"
    );
    assert_too_many(&refused);
    assert_too_many(&until_refused(&node, &upgrade_request("/x"), 101).await.2);
}

#[tokio::test]
async fn behind_a_proxy_the_addresses_that_it_forwards_are_counted() {
    let proxies = "[auth]\ntrusted_proxies = [\"127.0.0.1\"]";
    let node = Node::alone(&format!("{FEW}\n{proxies}")).await;
    let forwarded = |request: String, address: &str| {
        let header = format!("X-Forwarded-For: {address}\r\n\r\n");
        format!("{}{header}", &request[..request.len() - 2])
    };
    let upgrade = |address: &str| forwarded(upgrade_request("/x"), address);
    let stream = |address: &str| forwarded(stream_request("/x", ""), address);

    // What stands before the address that the proxy has seen is anybody's word.
    let first = upgrade("9.9.9.9, 10.0.0.1");
    let (accepted, seconds, refused) = until_refused(&node, &first, 101).await;
    assert!((3..=4 + seconds).contains(&accepted), "{accepted} came in");
    assert_too_many(&refused);
    assert_too_many(&until_refused(&node, &stream("10.0.0.1"), 200).await.2);
    let other_word = upgrade("8.8.8.8, 10.0.0.1");
    assert_too_many(&until_refused(&node, &other_word, 101).await.2);
    for (request, status) in [
        (upgrade("10.0.0.2"), 101),
        (stream("10.0.0.3"), 200),
        (upgrade("2001:db8::1"), 101),
        (upgrade_request("/x"), 101),
    ] {
        let response = answer(node.wire().await, &request).await;
        assert_eq!(response.status, status, "{request}");
    }

    // Nobody else is believed.
    let stranger = Ipv4Addr::new(127, 0, 0, 2);
    let mut refused = None;
    for n in 0..20 {
        let wire = Wire::connect_from(stranger, node.port()).await;
        let response = answer(wire, &upgrade(&format!("10.0.1.{n}"))).await;
        if response.status != 101 {
            refused = Some(response);
            break;
        }
    }
    assert_too_many(&refused.expect("another address each time, as it says"));
}

#[tokio::test]
async fn behind_nginx_each_client_has_its_own_address() {
    let sandbox = Sandbox::config()
        .toml("[auth]\ntrusted_proxies = [\"127.0.0.0/8\"]")
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let neighbour = Ipv4Addr::new(127, 0, 0, 2);
    let mut wire = Wire::connect_from(neighbour, nginx.port()).await;
    wire.upgrade("/x").await;
    let open: Value = serde_json::from_str(&wire.text().await).expect("JSON");
    let stream = nginx.stream("/x").await;

    let socket_id = open["data"]["id"].as_str().expect("an id");
    for (id, address) in [(socket_id, "127.0.0.2"), (&stream.id, "127.0.0.1")] {
        let seen = sandbox.api(0).get(&format!("/api/v1/sockets/{id}")).await;
        let remote = seen.ok()["remote_addr"].to_string();
        assert!(remote.contains(address), "{remote} is not {address}");
    }
}

#[tokio::test]
async fn any_number_of_handshakes_is_the_default() {
    let node = Node::alone("").await;
    for _ in 0..150 {
        let response = answer(node.wire().await, &upgrade_request("/x")).await;
        assert_eq!(response.status, 101);
    }
}

// === open files ===

#[tokio::test]
async fn there_is_room_for_all_sockets_before_they_come() {
    let mut node = Node::alone("[sockets]\nmax = 3000\nconnections = 500").await;
    let slots = node.process().file_slots();
    assert!(slots >= 3500, "newcomers wait while {slots} become more");
}

fn few(open_files: u32) -> NodeConfig {
    let config = Node::config("few").arg("--set=workers=2");
    config.open_files(open_files)
}

#[tokio::test]
async fn few_open_files_are_shared_out_and_nobody_hangs() {
    const CLIENTS: usize = 300;
    let mut node = few(200).start().await;
    let mut wires = Vec::new();
    for _ in 0..CLIENTS {
        let mut wire = node.wire().await;
        wire.send(upgrade_request("/x")).await;
        wires.push(wire);
    }

    let mut served = 0;
    for wire in &mut wires {
        let response = wire.response().await;
        match response.status {
            101 => served += 1,
            status => assert_eq!(status, 503, "{response:?}"),
        }
    }

    let metrics = node.metrics().await;
    assert_eq!(metrics.get("unisono_sockets_max"), f64::from(served));
    assert!(served >= 50, "{served}");
    assert_eq!(node.api().get("/health/live").await.status, 200);
    assert_eq!(node.api().get("/health/ready").await.status, 200);
    assert!(node.process().open_files() < 200);
    let log = node.process().stderr();
    let lines = |text| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("too few open files"), 1, "{log}");
    assert_eq!(lines("cannot be accepted"), 0, "{log}");
    assert!(lines("WARN") < 5, "{log}");
}

#[tokio::test]
async fn a_want_of_files_that_nobody_foresaw_is_told_to_clients() {
    let mut node = few(200).start().await;
    let log = |node: &mut Node| node.process().stderr();
    // They take the files that are left for everything else.
    node.process().limit_open_files(40);
    let mut wires = Vec::new();
    let mut told = 0;
    for _ in 0..40 {
        let mut wire = node.wire().await;
        wire.send(upgrade_request("/x")).await;
        let response = wire.response().await;
        told += usize::from(response.status == 503);
        wires.push(wire);
    }

    assert!(told > 0, "{}", log(&mut node));
    let log = log(&mut node);
    let lines = log
        .lines()
        .filter(|line| line.contains("cannot be accepted"));
    assert!((1..5).contains(&lines.count()), "{log}");
}

#[test]
fn a_node_without_files_says_so_and_ends() {
    for limit in [16, 60] {
        let mut command = unisono();
        command.args(["--listen", "127.0.0.1:0", "--set", "workers=2"]);
        let output = with_open_files(limit, &command).output();
        let output = output.expect("unisono runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let sentence = format!("too few open files: the limit is {limit}, and this node needs");
        assert!(said.contains(&sentence), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}
