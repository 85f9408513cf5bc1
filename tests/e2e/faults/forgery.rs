//! Somebody on NATS who is no node of the cluster, or says that he is another one.

use bytes::Bytes;
use proto::envelope::{Answer, Heartbeat, Request};
use proto::{Audience, Body, Envelope, NodeId, Payload, Publication, RoomName, wire};
use serde_json::{Value, json};
use unisono_tests::{Client, Sandbox, eventually};

const FAST: &str = "heartbeat_interval = \"200ms\"\n";

/// Every subject that a node with a socket in `/x` listens to, but those of applications.
fn subjects(node: &str) -> Vec<String> {
    let node = |token: &str| format!("unisono.node.{node}.{token}");
    let all = ["all", "heartbeat", "room.=2Fx"].map(|rest| format!("unisono.{rest}"));
    let inbox = [
        node("request"),
        node("1"),
        node("99999999"),
        node("ask-x"),
        node("zzz"),
    ];
    all.into_iter().chain(inbox).collect()
}

async fn refused(sandbox: &Sandbox, i: usize) -> u64 {
    let metrics = sandbox.nodes[i].metrics().await;
    metrics.get("unisono_bus_refused_total") as u64
}

async fn refused_so_many(sandbox: &Sandbox, i: usize, count: u64) {
    eventually("all of it is counted", async || {
        let now = refused(sandbox, i).await;
        if now == count { Ok(()) } else { Err(now) }
    })
    .await;
}

/// What is sent next comes next, and the nodes know each other over the same connections as before.
async fn nothing_happened(sandbox: &Sandbox, clients: &mut [Client], connections: &[u64]) {
    for i in 0..sandbox.nodes.len() {
        sandbox.api(i).publish("/x", "fence", json!(i)).await;
        for client in &mut *clients {
            assert_eq!(client.expect("fence").await.data, i);
        }
    }
    sandbox.all_know_each_other().await;
    assert_eq!(sandbox.nats[0].node_connections().await, connections);
}

#[tokio::test]
async fn garbage_is_counted_and_nothing_else() {
    let sandbox = Sandbox::config().nodes(2).cluster(FAST).start().await;
    let mut clients = [sandbox.client(0, "/x").await, sandbox.client(1, "/x").await];
    let connections = sandbox.nats[0].node_connections().await;
    let stranger = sandbox.nats[0].connect().await;
    let ids = sandbox.ids().await;
    let big = 1024 * 1024;
    let garbage = [
        Bytes::new(),
        Bytes::from_static(b"\xff\xff\xff\xff\x00"),
        Bytes::from_static(b"{\"event\":\"hello\"}"),
        // As large as the bus takes, all of it a field that is not there.
        Bytes::from([&[0x7a, 0xfb, 0xff, 0x3f][..], &vec![b'x'; big - 5]].concat()),
        Bytes::from(vec![0xff; big]),
        Bytes::from(vec![0; big]),
    ];

    for subject in subjects(&ids[0]) {
        for payload in &garbage {
            let sent = stranger.publish(subject.clone(), payload.clone()).await;
            sent.expect("the server takes it");
        }
    }
    stranger.flush().await.expect("the server is there");

    let of_all = 3 * garbage.len() as u64;
    let of_one = 5 * garbage.len() as u64;
    refused_so_many(&sandbox, 0, of_all + of_one).await;
    refused_so_many(&sandbox, 1, of_all).await;
    nothing_happened(&sandbox, &mut clients, &connections).await;
}

#[tokio::test]
async fn garbage_for_the_api_is_answered_and_nothing_else() {
    let sandbox = Sandbox::config().nodes(1).cluster(FAST).start().await;
    let mut clients = [sandbox.client(0, "/x").await];
    let connections = sandbox.nats[0].node_connections().await;
    let stranger = sandbox.nats[0].connect().await;
    let garbage = [
        Bytes::new(),
        Bytes::from(vec![b'['; 1 << 19]),
        Bytes::from_static(b"\xff"),
    ];
    for verb in [
        "emit",
        "publish",
        "broadcast",
        "disconnect",
        "join",
        "leave",
        "no-such",
        ">",
    ] {
        for payload in &garbage {
            let subject = format!("unisono.api.{verb}");
            let answer = stranger.request(subject, payload.clone()).await;
            let answer = answer.expect("an answer").payload;
            let answer: Value = serde_json::from_slice(&answer).expect("JSON");
            assert!(answer["error"]["code"].is_string(), "{verb}: {answer}");
        }
    }
    nothing_happened(&sandbox, &mut clients, &connections).await;
}

/// One envelope with a later connection in it makes all that its victim sends late, but not for ever.
#[tokio::test]
async fn a_forged_connection_silences_a_node_for_some_heartbeats_only() {
    let sandbox = Sandbox::config().nodes(2).cluster(FAST).start().await;
    let mut listener = sandbox.client(1, "/x").await;
    let victim = sandbox.ids().await[0].clone();
    let victim = NodeId::parse(&victim).expect("an id");
    let stranger = sandbox.nats[0].connect().await;
    // The first is too far away to be believed at all.
    for connection in [u64::MAX, 5_000] {
        let forged = wire::encode(&Envelope {
            origin: victim,
            connection,
            body: Body::Goodbye,
        });
        let sent = stranger.publish("unisono.all", forged).await;
        sent.expect("the server takes it");
    }
    stranger.flush().await.expect("the server is there");

    listener.expect("unisono:gap").await;
    sandbox.api(0).publish("/x", "heard again", json!(1)).await;
    listener.expect("heard again").await;
    let metrics = sandbox.nodes[1].metrics().await;
    assert_eq!(metrics.get("unisono_bus_forged_total"), 1.0);
}

/// To have one's id used by another cannot happen by accident: ids are drawn at random at every start. Whoever does it
/// on purpose is heard by the others, as anybody is who may speak on the nodes' subjects; the node itself does not listen.
#[tokio::test]
async fn a_second_node_of_the_same_id_is_seen_and_does_no_harm() {
    let mut sandbox = Sandbox::config().cluster(FAST).start().await;
    let mut clients = [
        sandbox.client(0, "/x").await,
        sandbox.client(1, "/x").await,
        sandbox.client(2, "/x").await,
    ];
    let connections = sandbox.nats[0].node_connections().await;
    let stranger = sandbox.nats[0].connect().await;
    let id = sandbox.nodes[0].id().await;
    let room = RoomName::parse("/x").expect("a room");
    let text = Payload::Text("forged".to_owned().into());
    let heartbeat = Heartbeat {
        name: "double".to_owned(),
        version: "0".to_owned(),
        started_at_ms: 1,
        sockets: 1_000_000,
        rooms: 0,
        draining: true,
        occupancy: 0,
        number: 0,
    };
    let forge = |body: Body| {
        let origin = NodeId::parse(&id).expect("a node id");
        wire::encode(&Envelope {
            origin,
            connection: 0,
            body,
        })
    };
    let forged = [
        ("unisono.heartbeat".to_owned(), Body::Heartbeat(heartbeat)),
        ("unisono.heartbeat".to_owned(), Body::Goodbye),
        (
            format!("unisono.node.{id}.request"),
            Body::Request(Request::Drain),
        ),
        (format!("unisono.node.{id}.7"), Body::Answer(Answer::Pong)),
        (
            "unisono.room.=2Fx".to_owned(),
            Body::Publication(Publication::new(Audience::Room(room), text.clone())),
        ),
        (
            "unisono.all".to_owned(),
            Body::Publication(Publication::new(Audience::Everyone, text)),
        ),
    ];
    let count = forged.len() as u64;

    for (subject, body) in forged {
        let sent = stranger.publish(subject, forge(body)).await;
        sent.expect("the server takes it");
    }
    stranger.flush().await.expect("the server is there");

    refused_so_many(&sandbox, 0, count).await;
    eventually("the log says so", async || {
        let log = sandbox.nodes[0].process().stderr();
        log.contains("somebody else uses this node's id")
    })
    .await;
    // The others have believed it, and believe the next heartbeat, which is the node's own.
    for client in &mut clients[1..] {
        use tokio_tungstenite::tungstenite::Message;
        client.expect_frame(Message::text("forged")).await;
        client.expect_frame(Message::text("forged")).await;
    }
    sandbox.all_know_each_other().await;
    for i in 0..3 {
        eventually("what the node says of itself counts", async || {
            let nodes = sandbox.api(i).nodes().await;
            let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
            let own = nodes.into_iter().find(|node| node["id"] == id);
            let own = own.ok_or("not there")?;
            let right =
                own["sockets"] == 1 && own["name"] == "node-0" && own["state"] != "draining";
            if right { Ok(()) } else { Err(own.to_string()) }
        })
        .await;
    }
    nothing_happened(&sandbox, &mut clients, &connections).await;
}
