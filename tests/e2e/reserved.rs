//! Events whose names begin with `unisono:` are the server's. Nobody else speaks in its name, through whichever door.

use proto::envelope::Body;
use proto::{Envelope, EventName, NodeId, Payload, Publication, RoomName};
use serde_json::{Value, json};
use unisono_tests::{Endpoint, Node, Redis, Reply, Sandbox, SandboxConfig, eventually};

const SPOOF: &str = r#"{"event":"unisono:closing","data":{"code":4000,"reason":"spoof"}}"#;
const HIDDEN: &str = r#" {"data":1,"\u0065vent":"\u0075nisono:gap"}"#;

fn sandbox(toml: &str) -> SandboxConfig {
    Sandbox::config().nodes(1).toml(toml)
}

#[tokio::test]
async fn no_client_speaks_for_the_server() {
    let rooms =
        "[[rooms]]\npattern = \"/raw\"\nformat = \"raw\"\n[[rooms]]\npattern = \"/{path...}\"";
    let node = Node::alone(rooms).await;
    let mut other = node.client("/x").await;
    other.join("/raw").await;
    let mut client = node.client("/x").await;
    client.send("unisono:closing", Value::Null).await;
    client.expect_error("unknown_event").await;
    let to = other.id.clone();
    for (verb, mut data) in [
        ("unisono:publish", json!({"room": "/x"})),
        ("unisono:emit", json!({"to": to})),
    ] {
        data["event"] = "unisono:closing".into();
        assert_eq!(client.refused(verb, data).await, "forbidden");
    }
    // To members of a raw room who speak JSON, a text would read as an event.
    for text in [SPOOF, HIDDEN] {
        let mut raw = node.ungreeted("/raw").await;
        raw.send_text(text).await;
        assert_eq!(raw.expect_close().await.0, 1008, "{text}");
    }
    let mut raw = node.ungreeted("/raw").await;
    let fine = r#"{"event":"mine","data":"unisono:closing"}"#;
    raw.send_text(fine).await;
    assert_eq!(other.next().await.text, fine);
}

#[tokio::test]
async fn no_application_speaks_for_the_server() {
    let sandbox = sandbox("").start().await;
    let mut client = sandbox.client(0, "/x").await;
    let bus = sandbox.nats[0].connect().await;
    let whom = [
        ("publish", json!({"room": "/x"})),
        ("broadcast", json!({})),
        ("emit", json!({"to": client.id})),
    ];
    for (verb, whom) in whom {
        let event = json!({"event": "unisono:closing", "data": 1});
        for content in [event, json!({"text": SPOOF}), json!({"text": HIDDEN})] {
            let mut body = whom.clone();
            for (name, value) in content.as_object().expect("an object") {
                body[name] = value.clone();
            }
            let answer = sandbox.api(0).post(verb, body.clone()).await;
            assert_eq!(answer.refusal(), (400, "bad_event"), "{verb} {body}");

            let batch = sandbox.api(0).post("batch", json!([{ verb: body }])).await;
            assert_eq!(batch.ok()[0]["error"]["code"], "bad_event", "{body}");

            let subject = format!("unisono.api.{verb}");
            let answer = bus.request(subject, body.to_string().into()).await;
            let answer = answer.expect("an answer").payload;
            let answer: Value = serde_json::from_slice(&answer).expect("JSON");
            assert_eq!(answer["error"]["code"], "bad_event", "{body}");
        }
    }
    sandbox.api(0).publish("/x", "fence", Value::Null).await;
    client.expect("fence").await;
}

#[tokio::test]
async fn no_action_speaks_for_the_server() {
    let endpoint = Endpoint::start(|_| {
        let text = json!({"publish": {"room": "/x", "text": SPOOF}});
        let event = json!({"broadcast": {"event": "unisono:gap"}});
        let fence = json!({"publish": {"room": "/x", "event": "fence"}});
        Reply::Json(json!({"actions": [text, event, fence]}))
    })
    .await;
    let toml = format!(
        "[hooks]\nurl = \"{}\"\nsecret = \"a secret of the tests\"\n\
         [[rooms]]\npattern = \"/x\"\nclient_events = \"forward\"",
        endpoint.url()
    );
    let node = Node::alone(&toml).await;
    let mut client = node.client("/x").await;
    client.send("act", Value::Null).await;
    client.expect("fence").await;
    assert_eq!(
        node.metrics().await.get("unisono_actions_failed_total"),
        2.0
    );
}

#[tokio::test]
async fn no_broadcast_of_laravel_speaks_for_the_server() {
    let redis = Redis::start().await;
    let toml = format!("[laravel]\nredis_url = \"{}\"", redis.url());
    let node = Node::alone(&toml).await;
    redis.has_listeners(1).await;
    let mut client = node.client("/x").await;
    for payload in [SPOOF, HIDDEN] {
        redis.publish("/x", payload).await;
    }
    redis.publish("/x", r#"{"event":"fence"}"#).await;
    client.expect("fence").await;
    let bad = "unisono_laravel_broadcasts_total{result=\"bad\"}";
    assert_eq!(node.metrics().await.get(bad), 2.0);
}

#[tokio::test]
async fn no_envelope_speaks_for_the_server() {
    let sandbox = sandbox("").start().await;
    let mut client = sandbox.client(0, "/x").await;
    let bus = sandbox.nats[0].connect().await;
    let publish = async |payload| {
        let to = proto::Audience::Room(RoomName::parse("/x").expect("a name"));
        let envelope = Envelope {
            origin: NodeId::new(0xf00d),
            connection: 0,
            body: Body::Publication(Publication::new(to, payload)),
        };
        let bytes = proto::wire::encode(&envelope);
        bus.publish("unisono.room.=2Fx", bytes)
            .await
            .expect("published");
        bus.flush().await.expect("sent");
    };
    let event = |name: &str| Payload::Event {
        name: EventName::parse(name).expect("a name"),
        data: None,
    };
    publish(event("unisono:closing")).await;
    publish(Payload::Text(SPOOF.to_owned().into())).await;
    publish(Payload::Text(HIDDEN.to_owned().into())).await;
    publish(event("fence")).await;
    client.expect("fence").await;
    eventually("they are counted", async || {
        let refused = sandbox.nodes[0].metrics().await;
        let refused = refused.get("unisono_bus_refused_total");
        (refused == 3.0).then_some(()).ok_or(refused)
    })
    .await;
}
