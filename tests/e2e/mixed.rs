//! Two versions in one cluster: this one, and the build of [`unisono_tests::other_build`], which is to this one what
//! the next minor release would be, or an earlier release.

use futures_util::StreamExt;
use proto::envelope::{Answer, Heartbeat, Request};
use proto::{Audience, Body, Envelope, NodeId, RoomName, wire};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use unisono_tests::{Node, PATIENCE, Sandbox, SandboxConfig, eventually};

use crate::traffic::Traffic;

const SETTINGS: &str = "[drain]\ndelay = \"0s\"\nwindow = \"200ms\"\n\
    [[rooms]]\npattern = \"/watched\"\nevents = [\"occupied\", \"vacated\"]\n\
    [[rooms]]\npattern = \"/{any...}\"\npublish = \"anyone\"\n";

fn settings() -> SandboxConfig {
    Sandbox::config().ports().toml(SETTINGS)
}

/// This version, the other one, and this one again.
async fn mixed() -> Sandbox {
    let mut sandbox = settings().nodes(1).start().await;
    for (i, other) in [(1, true), (2, false)] {
        let config = settings().node(i, &sandbox.nats);
        let config = if other { config.other() } else { config };
        sandbox.nodes.push(config.start().await);
    }
    sandbox.all_know_each_other().await;
    sandbox
}

/// Whether the other build is the next release, of which it is known what it has more.
fn is_next() -> bool {
    unisono_tests::other_build().ends_with("examples/next")
}

#[tokio::test]
async fn nodes_of_two_versions_do_everything_for_each_other() {
    let sandbox = mixed().await;
    let bus = sandbox.nats[0].connect().await;
    let mut events = bus.subscribe("unisono.event.*").await.expect("subscribed");
    bus.flush().await.expect("the server has it");
    let all = json!({"reached": 3, "missing": []});
    let mut clients = vec![];
    for i in 0..3 {
        clients.push(sandbox.client(i, "/x").await);
    }

    for i in 0..3 {
        let api = sandbox.api(i);
        for client in &mut clients {
            assert_eq!(api.emit(&client.id, "emitted", json!(i)).await, "delivered");
            assert_eq!(client.expect("emitted").await.data, i);
            assert_eq!(api.join(&client.id, "vip").await, "delivered");
        }
        for (room, sockets) in [("/x", 3), ("vip", 3)] {
            let sent = api.publish_confirmed(room, "published", json!(i)).await;
            assert_eq!((&sent["sockets"], &sent["nodes"]), (&json!(sockets), &all));
        }
        let body = json!({"event": "broadcast", "confirm": true});
        let sent = api.post("broadcast", body).await.ok();
        assert_eq!((&sent["sockets"], &sent["nodes"]), (&json!(3), &all));
        for client in &mut clients {
            client.expect("published").await;
            assert_eq!(
                client.expect("published").await.room.as_deref(),
                Some("vip")
            );
            client.expect("broadcast").await;
            assert_eq!(api.leave(&client.id, "vip").await, "delivered");
            let found = api
                .get(&format!("/api/v1/sockets/{}", client.id))
                .await
                .ok();
            assert_eq!(found["rooms"], json!(["/x"]));
        }
        let members = api.members("/x").await;
        assert_eq!((&members["count"], &members["nodes"]), (&json!(3), &all));
        let rooms = api.get("/api/v1/rooms").await.ok();
        assert_eq!(rooms["rooms"], json!([{"room": "/x", "sockets": 3}]));
        assert_eq!(rooms["nodes"], all);
    }

    // What clients do reaches those of the other version.
    let ids: Vec<String> = clients.iter().map(|client| client.id.clone()).collect();
    for i in 0..3 {
        clients[i].send("said", json!(i)).await;
        for j in (0..3).filter(|j| *j != i) {
            assert_eq!(clients[j].expect("said").await.from.as_ref(), Some(&ids[i]));
            assert_eq!(
                clients[i].emit(&ids[j], "psst", Value::Null).await,
                "delivered"
            );
            clients[j].expect("psst").await;
        }
    }

    // A room of two versions is occupied once, and vacated once.
    let mut watched = vec![];
    for i in 0..3 {
        watched.push(sandbox.client(i, "/watched").await);
    }
    for client in &watched {
        let far = sandbox.api(1).disconnect(&client.id, 4001, "enough").await;
        assert_eq!(far, "delivered");
    }
    for client in &mut watched {
        assert_eq!(client.expect_close().await.0, 4001);
    }
    for kind in ["occupied", "vacated"] {
        let event = timeout(PATIENCE, events.next()).await;
        let event = event.expect("it is told").expect("the subscription lasts");
        assert_eq!(event.subject.as_str(), format!("unisono.event.{kind}"));
    }

    let body = json!({"room": "/x", "code": 4002});
    let closed = sandbox.api(2).post("disconnect", body).await.ok();
    assert_eq!(
        (&closed["disconnected"], &closed["nodes"]),
        (&json!(3), &all)
    );
}

#[tokio::test]
async fn what_passes_nodes_of_two_versions_is_shown_by_either() {
    let sandbox = mixed().await;
    for i in 0..2 {
        let tail = sandbox
            .api(i)
            .request(Method::GET, "/api/v1/tail?filter=room:/x");
        let mut tail = tail.send().await.expect("an answer");
        let mut shown = String::new();
        until_shown(&mut tail, &mut shown, r#""reached":3"#).await;
        for from in 0..3 {
            sandbox
                .api(from)
                .publish("/x", &format!("of-{from}"), Value::Null)
                .await;
            until_shown(&mut tail, &mut shown, &format!("of-{from}")).await;
        }
    }
}

async fn until_shown(tail: &mut reqwest::Response, shown: &mut String, text: &str) {
    while !shown.contains(text) {
        let chunk = timeout(PATIENCE, tail.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("no {text} in {shown}"));
        let chunk = chunk.expect("it goes on").expect("it goes on");
        shown.push_str(&String::from_utf8_lossy(&chunk));
    }
}

#[tokio::test]
async fn a_node_of_one_version_is_drained_by_one_of_the_other() {
    let mut sandbox = mixed().await;
    // This version asks the other, then the other this one.
    for (by, which) in [(0, 1), (1, 2)] {
        let mut moved = sandbox.client(which, "/x").await;
        let body = json!({"node": sandbox.nodes[which].id().await});
        sandbox.api(by).post("drain", body).await.ok();
        assert_eq!(moved.expect("unisono:closing").await.data["code"], 1012);
        let status = sandbox.nodes[which].process().exited().await;
        assert_eq!(status.code(), Some(0));
        let node = sandbox.nodes.remove(which);
        sandbox.nodes.insert(which, node.restart().await);
        sandbox.all_know_each_other().await;
    }
}

#[tokio::test]
async fn an_upgrade_and_a_rollback_lose_nothing() {
    let mut sandbox = settings().start().await;
    let versions = |nodes: &Value| {
        let nodes = nodes["nodes"].as_array().expect("a list");
        let versions = nodes.iter().map(|node| node["version"].to_string());
        versions.collect::<std::collections::BTreeSet<_>>().len()
    };
    for upgrade in [true, false] {
        for _ in 0..3 {
            let mut node = sandbox.nodes.remove(0);
            let (left, right) = (&sandbox.nodes[0], &sandbox.nodes[1]);
            let traffic = Traffic::around([left, right], &node).await;
            node.terminate();
            assert_eq!(node.process().exited().await.code(), Some(0));
            let node = match upgrade {
                true => other(node).await,
                false => node.restart_as(|config| config.this()).await,
            };
            sandbox.nodes.push(node);
            sandbox.all_know_each_other().await;
            traffic
                .loses_nothing([sandbox.api(0), sandbox.api(1)])
                .await;
        }
        // All of one version, whichever it is.
        assert_eq!(versions(&sandbox.api(0).nodes().await), 1);
    }
}

#[tokio::test]
async fn what_the_next_release_says_more_is_skipped_or_answered_at_once() {
    let mut sandbox = mixed().await;
    if !is_next() {
        return;
    }
    let versions = sandbox.api(0).nodes().await;
    let listed = |i: usize| &versions["nodes"][i]["version"];
    assert!((1..3).any(|i| listed(i) != listed(0)), "{versions}");
    eventually("it has asked, and was answered", async || {
        let said = sandbox.nodes[1].process().stderr();
        let answers = said.matches("Unsupported").count();
        if answers >= 2 { Ok(()) } else { Err(said) }
    })
    .await;
    for i in [0, 2] {
        let metrics = sandbox.nodes[i].metrics().await;
        assert!(metrics.get("unisono_bus_skipped_total") > 0.0);
        assert_eq!(metrics.get("unisono_bus_refused_total"), 0.0);
    }
}

// === the rule, message by message ===

const STRANGER: u64 = 0xabc;

fn envelope(body: Body) -> Vec<u8> {
    let origin = NodeId::new(STRANGER);
    let connection = 0;
    wire::encode(&Envelope {
        origin,
        connection,
        body,
    })
    .to_vec()
}

/// What a node of a version that this one does not read says once in a while.
fn heartbeat_of_another_protocol() -> Vec<u8> {
    let mut bytes = envelope(Body::Heartbeat(Heartbeat {
        name: "stranger".to_owned(),
        version: "9.0.0".to_owned(),
        started_at_ms: 0,
        sockets: 0,
        rooms: 0,
        draining: false,
        occupancy: 0,
        number: 0,
    }));
    // Field 1, the version, comes first.
    assert_eq!(bytes[..2], [0x08, wire::VERSION as u8]);
    bytes[1] = 99;
    bytes
}

#[tokio::test]
async fn what_a_node_cannot_read_is_told_to_who_should_know() {
    let sandbox = Sandbox::start(1).await;
    let mut client = sandbox.client(0, "/x").await;
    let node = sandbox.nodes[0].id().await;
    let bus = sandbox.nats[0].connect().await;

    // Whoever asks what it does not know has an answer at once.
    let to = format!("unisono.node.{node}.request");
    let question = envelope(Body::Request(Request::Unknown));
    let answer = bus.request(to, question.into()).await.expect("an answer");
    let answer = wire::decode(answer.payload).expect("of this version").body;
    assert_eq!(answer, Body::Answer(Answer::Unsupported));

    // Something new is skipped; a publication that is missed is told of.
    let room = RoomName::parse("/x").expect("a name");
    for body in [Body::Unknown, Body::Unreadable(Audience::Room(room))] {
        let subject = "unisono.room.=2Fx";
        let sent = bus.publish(subject, envelope(body).into()).await;
        sent.expect("sent");
    }
    let gap = client.expect("unisono:gap").await;
    assert_eq!(gap.data, json!({"room": "/x", "reason": "unsupported"}));
    let metrics = sandbox.nodes[0].metrics().await;
    assert_eq!(metrics.get("unisono_bus_skipped_total"), 3.0);
    assert_eq!(metrics.get("unisono_bus_refused_total"), 0.0);
}

#[tokio::test]
async fn a_node_of_another_protocol_is_seen_and_told_of_once() {
    let mut sandbox = Sandbox::start(1).await;
    let bus = sandbox.nats[0].connect().await;
    let id = NodeId::new(STRANGER).to_string();

    for _ in 0..5 {
        let heartbeat = heartbeat_of_another_protocol().into();
        let sent = bus.publish("unisono.heartbeat", heartbeat).await;
        sent.expect("sent");
    }

    let listed = eventually("it is listed", async || {
        let nodes = sandbox.api(0).nodes().await;
        nodes.get("unreadable").cloned()
    })
    .await;
    assert_eq!(listed, json!([{"id": id, "protocol": 99}]));
    eventually("each message is counted", async || {
        let metrics = sandbox.nodes[0].metrics().await;
        metrics.get("unisono_bus_refused_total") == 5.0
            && metrics.get("unisono_nodes_unreadable") == 1.0
    })
    .await;
    let output = unisono_tests::unisono()
        .args(["nodes", "--url", sandbox.api(0).base()])
        .output()
        .expect("unisono runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&format!("{id} (99)")), "{said}");
    let log = sandbox.nodes[0].process().stderr();
    assert_eq!(log.matches("a node is up that speaks").count(), 1, "{log}");
    eventually("and forgotten", async || {
        sandbox.api(0).nodes().await.get("unreadable").is_none()
    })
    .await;
}

// === story helpers ===

/// The node in the other version, which has ended.
async fn other(node: Node) -> Node {
    node.restart_as(|config| config.other()).await
}
