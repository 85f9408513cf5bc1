//! Applications in any language, over NATS: JSON requests that one of the nodes serves.

use async_nats::Client as Bus;
use serde_json::{Value, json};
use unisono_tests::Sandbox;

pub(super) async fn ask(bus: &Bus, verb: &str, body: Value) -> Value {
    let subject = format!("unisono.api.{verb}");
    let reply = bus
        .request(subject, body.to_string().into())
        .await
        .expect("a node answers");
    serde_json::from_slice(&reply.payload).expect("the answer is JSON")
}

#[tokio::test]
async fn an_application_emits_over_nats() {
    let sandbox = Sandbox::start(3).await;
    let bus = sandbox.nats[0].connect().await;
    for i in 0..3 {
        let mut client = sandbox.client(i, "/x").await;
        let body = json!({"to": [client.id, "nonsense"], "event": "hello", "data": i});

        let answer = ask(&bus, "emit", body).await;

        let results = json!({(client.id.as_str()): "delivered", "nonsense": "invalid"});
        assert_eq!(answer["results"], results);
        assert_eq!(client.expect("hello").await.data, i);
    }
}

#[tokio::test]
async fn exactly_one_node_serves_a_request() {
    let sandbox = Sandbox::start(3).await;
    let bus = sandbox.nats[0].connect().await;
    let mut clients = vec![];
    for i in 0..3 {
        clients.push(sandbox.client(i, "/x").await);
    }

    for n in 0..10 {
        let body = json!({"room": "/x", "event": "n", "data": n, "confirm": true});
        assert_eq!(ask(&bus, "publish", body).await["sockets"], 3);
    }
    assert_eq!(
        ask(&bus, "broadcast", json!({"event": "fence"})).await["status"],
        "sent"
    );

    for client in &mut clients {
        let mut numbers = vec![];
        loop {
            let event = client.next().await;
            if event.event == "fence" {
                break;
            }
            numbers.push(event.data.as_u64().expect("a number"));
        }
        assert_eq!(
            numbers,
            Vec::from_iter(0..10),
            "each once; one sender waited for each answer"
        );
    }
}

#[tokio::test]
async fn an_application_joins_leaves_and_disconnects_over_nats() {
    let sandbox = Sandbox::start(2).await;
    let bus = sandbox.nats[0].connect().await;
    let mut a = sandbox.client(0, "/x").await;
    let membership = json!({"to": a.id, "room": "vip"});

    assert_eq!(
        ask(&bus, "join", membership.clone()).await["results"][&a.id],
        "delivered"
    );
    assert_eq!(
        sandbox
            .api(1)
            .publish_confirmed("vip", "hello", json!(1))
            .await["sockets"],
        1
    );
    a.expect("hello").await;
    assert_eq!(
        ask(&bus, "leave", membership).await["results"][&a.id],
        "delivered"
    );
    assert_eq!(
        sandbox
            .api(1)
            .publish_confirmed("vip", "hello", json!(2))
            .await["sockets"],
        0
    );

    let body = json!({"to": a.id, "code": 4001, "reason": "kicked"});
    assert_eq!(
        ask(&bus, "disconnect", body).await["results"][&a.id],
        "delivered"
    );
    assert_eq!(a.expect_close().await, (4001, "kicked".to_owned()));
}

#[tokio::test]
async fn a_request_without_a_reply_subject_is_done_all_the_same() {
    let sandbox = Sandbox::start(2).await;
    let bus = sandbox.nats[0].connect().await;
    let mut a = sandbox.client(0, "/x").await;

    let body = json!({"room": "/x", "event": "hello", "data": {"n": 1}});
    bus.publish("unisono.api.publish", body.to_string().into())
        .await
        .expect("published");

    assert_eq!(a.expect("hello").await.data, json!({"n": 1}));
}

#[tokio::test]
async fn a_mistaken_request_is_answered_with_the_error() {
    let sandbox = Sandbox::start(2).await;
    let bus = sandbox.nats[0].connect().await;

    let answer = ask(
        &bus,
        "publish",
        json!({"room": "/x", "event": "e", "tto": 1}),
    )
    .await;
    let message = answer["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("tto"), "{answer}");

    let reply = bus
        .request("unisono.api.emit", "{".into())
        .await
        .expect("a node answers");
    let answer: Value = serde_json::from_slice(&reply.payload).expect("the answer is JSON");
    assert!(answer["error"]["code"].is_string(), "{answer}");
}

#[tokio::test]
async fn what_is_not_an_envelope_is_dropped_by_the_nodes() {
    let sandbox = Sandbox::start(2).await;
    let bus = sandbox.nats[0].connect().await;
    let mut a = sandbox.client(0, "/x").await;
    let before = sandbox.nats[0].node_connections().await;

    let subjects = subscribed_subjects(&sandbox).await;
    assert!(!subjects.is_empty());
    for subject in subjects {
        for garbage in [&b""[..], b"\xff\xff\xff\xff", b"{}", &[0; 10_000]] {
            bus.publish(subject.clone(), garbage.to_vec().into())
                .await
                .expect("published");
        }
    }
    bus.flush().await.expect("flushed");

    let answer = sandbox
        .api(1)
        .publish_confirmed("/x", "fence", Value::Null)
        .await;
    assert_eq!(
        (&answer["sockets"], &answer["nodes"]["reached"]),
        (&json!(1), &json!(2))
    );
    a.expect("fence").await;
    assert_eq!(sandbox.nats[0].node_connections().await, before);
}

/// What the nodes listen to, with something in place of each wildcard.
async fn subscribed_subjects(sandbox: &Sandbox) -> Vec<String> {
    let connz = sandbox.nats[0].monitor("connz?subs=1").await;
    let connections = connz["connections"].as_array().expect("connections");
    let lists = connections
        .iter()
        .filter_map(|one| one["subscriptions_list"].as_array());
    let subjects = lists.flatten().filter_map(Value::as_str);
    subjects
        .filter(|subject| subject.starts_with("unisono."))
        .map(|subject| subject.replace(['*', '>'], "x"))
        .collect()
}
