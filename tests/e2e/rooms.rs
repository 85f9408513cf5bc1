//! How many rooms a node takes, how fast, and what they cost it.

use futures_util::future::join_all;
use serde_json::{Value, json};
use unisono_tests::{
    Client, Node, Response, Sandbox, Stream, eventually, stream_request, upgrade_request,
};

const FULL: &str = "[sockets]\nrooms_max = 3";

async fn handshake(node: &Node, path: &str) -> Response {
    let mut wire = node.wire().await;
    wire.send(upgrade_request(path)).await;
    wire.response().await
}

#[track_caller]
fn assert_full(refused: &Response) {
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    let body: Value = serde_json::from_str(&refused.body).expect("a JSON body");
    assert_eq!(body["error"]["code"], "full", "{refused:?}");
    let message = body["error"]["message"].as_str().expect("a text");
    assert!(message.contains("rooms"), "{message}");
}

#[tokio::test]
async fn a_room_too_many_is_refused_at_every_door_and_those_that_are_there_stay_open() {
    let node = Node::alone(FULL).await;
    let mut a = node.client("/a").await;
    a.join("/b").await;
    a.join("/c").await;

    assert_eq!(
        a.refused("unisono:join", json!({"room": "/d"})).await,
        "unavailable"
    );
    assert_full(&handshake(&node, "/d").await);
    let stream = Stream::ask(node.port(), &stream_request("/d", "")).await;
    assert_full(&stream.map(drop).expect_err("a refusal"));
    let id = a.id.clone();
    assert_eq!(node.api().join(&id, "/d").await, "dropped");

    // A room that is there takes anybody, by every door.
    let mut b = node.client("/b").await;
    b.join("/a").await;
    let stream = node.stream("/c").await;
    assert_eq!(node.api().join(&stream.id, "/a").await, "delivered");
    a.publish("/a", "hi", json!(1)).await;
    assert_eq!(b.expect("hi").await.data, 1);

    let metrics = node.metrics().await;
    assert_eq!(metrics.get("unisono_rooms"), 3.0);
    assert_eq!(metrics.get("unisono_rooms_max"), 3.0);
    assert_eq!(metrics.get("unisono_rooms_refused_total"), 4.0);

    drop(stream);
    a.leave("/c").await;
    eventually("its place is free", async || {
        a.request("unisono:join", json!({"room": "/d"})).await
    })
    .await;
}

#[tokio::test]
async fn a_room_that_finds_no_place_is_in_the_log_once() {
    let mut node = Node::alone(FULL).await;
    let mut a = node.client("/a").await;
    for room in ["/b", "/c"] {
        a.join(room).await;
    }
    for n in 0..50 {
        let room = json!({"room": format!("/more/{n}")});
        assert_eq!(a.refused("unisono:join", room).await, "unavailable");
    }
    let line = |log: &str| log.matches("sockets.rooms_max").count();
    let log = node.process().stderr();
    assert_eq!(line(&log), 1, "{log}");
}

#[tokio::test]
async fn handshakes_at_one_time_share_the_places_that_are_left() {
    let node = Node::config("alone")
        .toml("[sockets]\nrooms_max = 10")
        .arg("--set=workers=2");
    let node = node.start().await;
    let mut wires = Vec::new();
    for _ in 0..60 {
        wires.push(node.wire().await);
    }
    let answers = wires.iter_mut().enumerate().map(async |(n, wire)| {
        wire.send(upgrade_request(&format!("/{}", n % 30))).await;
        wire.response().await.status
    });
    let answers = join_all(answers).await;
    let open = answers.iter().filter(|status| **status == 101).count();
    assert!(answers.iter().all(|status| [101, 503].contains(status)));
    // Two come to each of ten rooms, except that one may find none and the next a place.
    assert!((10..=20).contains(&open), "{answers:?}");
    for wire in wires
        .iter_mut()
        .zip(&answers)
        .filter_map(|(wire, status)| (*status == 101).then_some(wire))
    {
        assert!(wire.text().await.contains("unisono:open"), "none is closed");
    }
    assert_eq!(node.metrics().await.get("unisono_rooms"), 10.0);
}

#[tokio::test]
async fn a_room_holds_its_place_over_all_workers_until_the_last_has_left() {
    let node = Node::config("alone")
        .toml("[sockets]\nrooms_max = 1")
        .arg("--set=workers=2");
    let node = node.start().await;
    let mut members: Vec<Client> = Vec::new();
    for _ in 0..20 {
        members.push(node.client("/x").await);
    }
    while let Some(mut member) = members.pop() {
        assert_full(&handshake(&node, "/y").await);
        member.ack("unisono:ping", Value::Null).await;
    }
    eventually("the room is empty", async || {
        handshake(&node, "/y").await.status == 101
    })
    .await;
}

#[tokio::test]
async fn a_client_that_joins_too_fast_is_told_so() {
    let node = Node::alone("[sockets]\njoin_rate = 1\njoin_burst = 3").await;
    let mut a = node.client("/x").await;
    // More than a second for each join would be a refusal less.
    let mut codes = Vec::new();
    for n in 0..40 {
        let room = json!({"room": format!("/{n}")});
        codes.push(a.request("unisono:join", room).await.err());
    }
    assert!(codes[..3].iter().all(Option::is_none), "{codes:?}");
    let refused: Vec<_> = codes.into_iter().flatten().collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|refused| refused.code == "rate_limited"));
    let metrics = node.metrics().await;
    let counted = metrics.get("unisono_rate_limited_total{what=\"join\"}");
    assert_eq!(counted, refused.len() as f64);
    // It is no flood of messages, and what it is in already is no join.
    a.join("/0").await;
    a.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_crowd_of_new_rooms_keeps_nobody_else_waiting() {
    let sandbox = Sandbox::config()
        .nodes(1)
        .toml("[sockets]\nfirst_join_rate = 4\nfirst_join_burst = 1")
        .start()
        .await;
    let mut greedy = sandbox.client(0, "/greedy").await;
    let join = |n: u32| json!({"event": "unisono:join", "data": {"room": format!("/{n}")}});
    for n in 0..100 {
        greedy.send_text(join(n).to_string()).await;
    }
    greedy.ack("unisono:ping", Value::Null).await;

    // In its turn, which is the next but one: all of the other's would be 25 s.
    let mut modest = sandbox.client(0, "/modest").await;
    let waiting = sandbox.nodes[0].metrics().await;
    assert!(waiting.get("unisono_first_joins_waiting") >= 1.0);
    modest.join("/modest/2").await;
    // One of the other's last, in the turn of this one.
    modest.join("/99").await;
    let waiting = sandbox.nodes[0].metrics().await;
    assert!(waiting.get("unisono_first_joins_waiting") >= 1.0);

    // Those of a socket that is gone take no turns.
    drop(greedy);
    eventually("nobody waits, and its rooms are gone", async || {
        let metrics = sandbox.nodes[0].metrics().await;
        let rooms = metrics.get("unisono_rooms");
        (metrics.get("unisono_first_joins_waiting"), rooms) == (0.0, 3.0)
    })
    .await;
}

#[tokio::test]
async fn joins_above_the_rate_of_new_rooms_wait_and_are_true() {
    let sandbox = Sandbox::config()
        .nodes(2)
        .toml("[sockets]\nfirst_join_rate = 50\nfirst_join_burst = 1")
        .start()
        .await;
    sandbox.all_know_each_other().await;
    let mut a = sandbox.client(0, "/x").await;
    for n in 0..20 {
        let room = format!("/{n}");
        a.join(&room).await;
        sandbox.api(1).publish(&room, "hi", json!(n)).await;
        assert_eq!(a.expect("hi").await.data, n, "the ack was early");
    }
}

#[tokio::test]
async fn rooms_without_members_are_listened_to_up_to_a_number() {
    let sandbox = Sandbox::config()
        .nodes(1)
        .cluster("room_linger = \"10m\"\nlingering_rooms = 5\n")
        .start()
        .await;
    let mut a = sandbox.client(0, "/x").await;
    let before = sandbox.nats[0].subscriptions().await;
    for n in 0..30 {
        a.join(&format!("/{n}")).await;
        a.leave(&format!("/{n}")).await;
    }
    eventually("the oldest are let go", async || {
        let now = sandbox.nats[0].subscriptions().await;
        if now == before + 5 {
            Ok(())
        } else {
            Err((before, now))
        }
    })
    .await;
    // One that lingers is heard at once, one that was let go is listened to again.
    for room in ["/29", "/0"] {
        a.join(room).await;
    }
}
