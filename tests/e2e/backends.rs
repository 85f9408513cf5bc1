//! Backends in any language: what they are told and asked over NATS, and those of docs/examples at work.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{Client as Bus, Message, Subscriber};
use futures_util::StreamExt;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use unisono_tests::{
    Backend, BackendConfig, Endpoint, Nats, PATIENCE, Reply, Sandbox, SandboxConfig, eventually,
    free_port,
};

const ROOMS: &str = r#"
[[rooms]]
pattern = "/chat/{id}"
client_events = "forward"
events = ["opened", "closed", "joined", "left"]

[[rooms]]
pattern = "/raw/{id}"
client_events = "forward"
format = "raw"

[[rooms]]
pattern = "/quiet/{id}"
"#;

/// The rooms at the head of each example.
const EXAMPLE_ROOMS: &str = r#"
[[rooms]]
pattern = "/chat-rooms/{id}"
client_events = "forward"
events = ["opened"]
"#;

const SECRET: &str = "whsec_c2VjcmV0IG9mIHRoZSB0ZXN0cywgb2YgMzIgYnl0ZXM=";

// === what happened ===

#[tokio::test]
async fn the_life_of_a_socket_is_told_once_and_in_order() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    let mut listener = Listener::start(&bus).await;
    let mut clients = vec![];
    for i in 0..3 {
        let mut client = sandbox.client(i, "/chat/1").await;
        client.send("hello", json!({"n": i})).await;
        listener.until("message", &client.id).await;
        clients.push(client);
    }
    let ids: Vec<_> = clients.iter().map(|client| client.id.clone()).collect();
    let nodes = sandbox.ids().await;

    let status = sandbox.api(0).disconnect(&ids[2], 4000, "kicked").await;
    assert_eq!(status, "delivered");
    clients[0].close(4001, "bye").await;
    drop(clients.remove(1));

    let ends = [
        (4001, "bye"),
        (1006, "the connection is gone"),
        (4000, "kicked"),
    ];
    for (i, (code, reason)) in ends.into_iter().enumerate() {
        listener.until("closed", &ids[i]).await;
        let told = |more: Value| {
            let mut fields = json!({
                "socket": ids[i], "room": "/chat/1", "user": null, "node": nodes[i],
            });
            fields
                .as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            fields
        };
        let expected = [
            told(json!({"type": "opened"})),
            told(json!({"type": "joined"})),
            told(json!({"type": "message", "event": "hello", "data": {"n": i}})),
            told(json!({"type": "left"})),
            told(json!({"type": "closed", "code": code, "reason": reason})),
        ];
        assert_eq!(listener.of(&ids[i]), expected);
    }

    // Nothing comes a second time.
    let before = listener.told.len();
    let fence = sandbox.client(0, "/chat/1").await;
    listener.until("joined", &fence.id).await;
    assert_eq!(listener.told.len(), before + 2, "{:?}", listener.told);
    let mut ids = listener.told.iter().map(|told| told["id"].to_string());
    let mut unique: Vec<_> = ids.by_ref().collect();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), before + 2, "each event has an id of its own");
}

#[tokio::test]
async fn joins_and_leaves_are_told_whoever_makes_them() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    let mut listener = Listener::start(&bus).await;
    let mut a = sandbox.client(0, "/chat/1").await;

    a.join("/chat/2").await;
    a.join("/chat/2").await;
    a.leave("/chat/2").await;
    for room in ["/chat/3", "no rule"] {
        assert_eq!(sandbox.api(1).join(&a.id, room).await, "delivered");
        assert_eq!(sandbox.api(1).join(&a.id, room).await, "delivered");
        assert_eq!(sandbox.api(2).leave(&a.id, room).await, "delivered");
        assert_eq!(sandbox.api(2).leave(&a.id, room).await, "delivered");
    }
    a.join("/quiet/1").await;
    a.join("/chat/4").await;
    a.close(1000, "").await;

    listener.until("closed", &a.id).await;
    let told = listener.of(&a.id);
    let told: Vec<_> = told
        .iter()
        .map(|told| (told["type"].as_str(), told["room"].as_str()))
        .map(|(kind, room)| (kind.expect("a type"), room.expect("a room")))
        .collect();
    assert_eq!(
        told,
        [
            ("opened", "/chat/1"),
            ("joined", "/chat/1"),
            ("joined", "/chat/2"),
            ("left", "/chat/2"),
            ("joined", "/chat/3"),
            ("left", "/chat/3"),
            ("joined", "/chat/4"),
            ("left", "/chat/1"),
            ("left", "/chat/4"),
            ("closed", "/chat/1"),
        ]
    );
}

#[tokio::test]
async fn a_drain_tells_of_every_socket_before_the_node_exits() {
    let config = sandbox_config("[drain]\ndelay = \"0s\"\nwindow = \"200ms\"\n");
    let mut sandbox = config.start().await;
    let bus = sandbox.nats[0].connect().await;
    let mut listener = Listener::start(&bus).await;
    let mut clients = vec![];
    for _ in 0..20 {
        clients.push(sandbox.client(0, "/chat/1").await);
    }

    sandbox.nodes[0].terminate();

    for client in &mut clients {
        client.expect("unisono:closing").await;
        assert_eq!(client.expect_close().await.0, 1012);
    }
    for client in &clients {
        let closed = listener.until("closed", &client.id).await;
        assert_eq!(closed["code"], 1012);
    }
    assert!(sandbox.nodes[0].process().exited().await.success());
}

// === what clients say ===

#[tokio::test]
async fn a_reply_is_the_ack_and_all_of_it_crosses_untouched() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    let mut listener = Listener::start(&bus).await;
    application(&bus, echo).await;
    // Whoever reads and writes JSON on the way would tidy this up.
    let data = r#"{ "big":12345678901234567890123, "f":1.50, "e":{}, "l":[ ], "u":"\u00e9" }"#;
    for i in 0..3 {
        let mut client = sandbox.client(i, "/chat/1").await;
        for id in ["7", "\"seven\""] {
            let text = format!(r#"{{"event":"say","data":{data},"id":{id}}}"#);
            client.send_text(text).await;

            let ack = client.expect("unisono:ack").await;
            assert_eq!(ack.raw("data").as_deref(), Some(data));
            assert_eq!(ack.raw("id").as_deref(), Some(id));
        }
        client.send_text(r#"{"event":"bare","id":1}"#).await;
        let ack = client.expect("unisono:ack").await;
        assert_eq!(ack.raw("data"), None);
        let told = listener.until("message", &client.id).await;
        assert_eq!(
            (&told["event"], &told["room"]),
            (&json!("say"), &json!("/chat/1"))
        );
    }
}

#[tokio::test]
async fn an_event_without_an_id_is_told_and_not_asked() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    let mut messages = listen(&bus).await;
    let mut client = sandbox.client(1, "/chat/1").await;

    client.send("say", json!({})).await;
    let told = next(&mut messages).await;
    assert!(told.reply.is_none());
    assert_eq!(json_of(&told.payload)["data"], json!({}));

    application(&bus, echo).await;
    client.send("say", json!(2)).await;
    assert_eq!(client.ack("say", json!(3)).await, 3);
    // No ack for the second came before that of the third.
    client.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn what_an_application_may_reply() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    // Replies with the text that the client sent.
    application(&bus, |event| {
        let text = json_of(event)["data"].as_str().expect("a text").to_owned();
        text.into_bytes()
    })
    .await;
    let mut client = sandbox.client(1, "/chat/1").await;

    for ack in [
        "{}",
        "[]",
        "null",
        "1.50",
        r#"{"error":"no","more":1}"#,
        r#""error""#,
    ] {
        client
            .send_text(json!({"event": "say", "data": ack, "id": 1}).to_string())
            .await;
        let answer = client.expect("unisono:ack").await;
        assert_eq!(answer.raw("data").as_deref(), Some(ack));
    }
    client
        .send_text(r#"{"event":"say","data":"","id":1}"#)
        .await;
    let answer = client.expect("unisono:ack").await;
    assert_eq!(
        answer.raw("data"),
        None,
        "an empty reply is an ack without data"
    );

    for (reply, message) in [
        (r#"{"error":"not today"}"#, "not today"),
        (r#"{"error":{"message":"not today"}}"#, "not today"),
        (
            r#"{"error":{"code":"c","message":"not today"}}"#,
            "not today",
        ),
        (
            "garbage",
            "the application answered with something else than JSON",
        ),
        (
            "{",
            "the application answered with something else than JSON",
        ),
    ] {
        let refusal = client.request("say", json!(reply)).await.expect_err(reply);
        assert_eq!(refusal.code, "handler_failed", "{reply}");
        assert_eq!(refusal.message, message, "{reply}");
    }
}

#[tokio::test]
async fn the_first_reply_counts() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    application(&bus, echo).await;
    application(&bus, echo).await;
    let mut client = sandbox.client(1, "/chat/1").await;

    for n in 0..20 {
        client
            .send_text(json!({"event": "say", "data": n, "id": n}).to_string())
            .await;
        let ack = client.expect("unisono:ack").await;
        assert_eq!((ack.id, ack.data), (Some(json!(n)), json!(n)));
    }
}

#[tokio::test]
async fn without_an_application_the_client_is_told_at_once() {
    let sandbox = sandbox("[sockets]\nhandler_timeout = \"1h\"\n").await;
    let mut client = sandbox.client(1, "/chat/1").await;

    assert_eq!(client.refused("say", json!(1)).await, "unavailable");

    assert_eq!(metric(&sandbox, 1, "unisono_events_lost_total").await, 1.0);
}

#[tokio::test]
async fn a_late_reply_is_none() {
    let sandbox = sandbox("[sockets]\nhandler_timeout = \"2s\"\n").await;
    let bus = sandbox.nats[0].connect().await;
    let mut messages = listen(&bus).await;
    let mut client = sandbox.client(1, "/chat/1").await;

    let started = Instant::now();
    let refusal = client
        .request("say", json!(1))
        .await
        .expect_err("nobody replies");
    assert_eq!(refusal.code, "unavailable");
    assert!(started.elapsed() >= Duration::from_secs(2));
    let late = next(&mut messages).await.reply.expect("it was asked");
    bus.publish(late, "\"late\"".into())
        .await
        .expect("published");
    settle(&bus).await;

    drop(messages);
    application(&bus, echo).await;
    assert_eq!(client.ack("say", json!(2)).await, 2);
    client.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_slow_application_does_not_hold_up_the_socket() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    let mut messages = listen(&bus).await;
    let mut client = sandbox.client(1, "/chat/1").await;

    client
        .send_text(r#"{"event":"say","data":1,"id":"slow"}"#)
        .await;
    let asked = next(&mut messages).await.reply.expect("it was asked");
    client.ack("unisono:ping", Value::Null).await;
    sandbox.api(0).emit(&client.id, "hello", Value::Null).await;
    client.expect("hello").await;
    bus.publish(asked, "{}".into()).await.expect("published");

    assert_eq!(client.expect("unisono:ack").await.id, Some(json!("slow")));
}

#[tokio::test]
async fn bare_frames_are_told_as_text_and_as_base64() {
    let sandbox = sandbox("").await;
    let bus = sandbox.nats[0].connect().await;
    let mut listener = Listener::start(&bus).await;
    let mut client = sandbox.nodes[2].ungreeted("/raw/1").await;

    client.send_text("{ \"event\": 1 ✓").await;
    client.send_binary([0, 255, 10]).await;

    let (text, binary) = (listener.next().await, listener.next().await);
    assert_eq!(text["text"], "{ \"event\": 1 ✓");
    assert_eq!(binary["binary"], "AP8K");
    let fields = |told: &Value| {
        let fields = told.as_object().expect("an object").keys();
        let mut fields: Vec<_> = fields.cloned().collect();
        fields.sort_unstable();
        fields.join(" ")
    };
    assert_eq!(fields(&text), "at id node room socket text type user");
    assert_eq!(fields(&binary), "at binary id node room socket type user");
}

#[tokio::test]
async fn more_than_the_bus_takes_is_too_large() {
    let nats = Nats::config().max_payload(4096);
    let sandbox = sandbox_config("").nats(nats).start().await;
    let bus = sandbox.nats[0].connect().await;
    application(&bus, echo).await;
    let mut client = sandbox.client(1, "/chat/1").await;

    let code = client.refused("say", json!("x".repeat(5000))).await;

    assert_eq!(code, "too_large");
    assert_eq!(client.ack("say", json!("x")).await, "x");
}

// === NATS away ===

#[tokio::test]
async fn with_nats_away_clients_are_told() {
    let mut sandbox = sandbox("[sockets]\nhandler_timeout = \"1s\"\n").await;
    let bus = sandbox.nats[0].connect().await;
    application(&bus, echo).await;
    let mut client = sandbox.client(1, "/chat/1").await;
    assert_eq!(client.ack("say", json!(1)).await, 1);

    sandbox.nats[0].kill();

    assert_eq!(client.refused("say", json!(2)).await, "unavailable");
    eventually("the node knows", async || {
        sandbox.api(1).get("/health/live").await.ok()["bus"] == "away"
    })
    .await;
    let before = metric(&sandbox, 1, "unisono_events_lost_total").await;
    client.send("say", json!(3)).await;
    let error = client.expect_error("unavailable").await;
    assert_eq!((error.id, &error.data["event"]), (None, &json!("say")));
    let lost = metric(&sandbox, 1, "unisono_events_lost_total").await;
    assert_eq!(lost, before + 1.0);
    let other = sandbox.client(1, "/chat/1").await;
    assert_eq!(
        metric(&sandbox, 1, "unisono_events_lost_total").await,
        lost + 2.0,
        "opened and joined of {}",
        other.id
    );

    sandbox.nats[0].start_again().await;
    eventually("the application is asked again", async || {
        client.request("say", json!(4)).await
    })
    .await;
}

#[tokio::test]
async fn with_nats_frozen_clients_are_told_in_time() {
    let sandbox = sandbox("[sockets]\nhandler_timeout = \"1s\"\n").await;
    let bus = sandbox.nats[0].connect().await;
    application(&bus, echo).await;
    let mut client = sandbox.client(1, "/chat/1").await;
    assert_eq!(client.ack("say", json!(1)).await, 1);

    sandbox.nats[0].freeze();
    assert_eq!(client.refused("say", json!(2)).await, "unavailable");
    sandbox.nats[0].thaw();

    eventually("the application is asked again", async || {
        client.request("say", json!(3)).await
    })
    .await;
}

// === the examples ===

#[tokio::test]
async fn backend_py_is_a_chat() {
    over_nats("backend.py").await;
}

#[tokio::test]
async fn backend_mjs_is_a_chat() {
    over_nats("backend.mjs").await;
}

#[tokio::test]
async fn two_backends_share_the_work() {
    let sandbox = Sandbox::config().toml(EXAMPLE_ROOMS).start().await;
    let start = |file| {
        Backend::config(file)
            .env("NATS_URL", &sandbox.nats[0].url())
            .start()
    };
    let _backends = (start("backend.py").await, start("backend.mjs").await);
    let mut client = sandbox.client(1, "/chat-rooms/1").await;
    client.expect("welcome").await;

    for n in 0..20 {
        client.ack("new message", json!({"text": n})).await;
        assert_eq!(client.expect("new message").await.data["text"], n);
    }
}

#[tokio::test]
async fn webhook_py_is_a_chat() {
    over_http("webhook.py").await;
}

#[tokio::test]
async fn webhook_mjs_is_a_chat() {
    over_http("webhook.mjs").await;
}

#[tokio::test]
async fn webhook_php_is_a_chat() {
    over_http("webhook.php").await;
}

#[tokio::test]
async fn the_webhooks_refuse_what_another_has_signed() {
    for file in ["webhook.py", "webhook.mjs", "webhook.php"] {
        let backend = Backend::config(file);
        let sandbox = hooked(&backend).nodes(1).start().await;
        let _backend = backend
            .env("WEBHOOK_SECRET", "whsec_YW5vdGhlcg==")
            .start()
            .await;
        let mut client = sandbox.client(0, "/chat-rooms/1").await;

        let refusal = client.request("new message", json!({"text": "hi"})).await;

        let refusal = refusal.expect_err(file);
        assert_eq!(refusal.code, "unavailable", "{file}");
        assert_eq!(
            refusal.message, "the application refused the request",
            "{file}"
        );
    }
}

const PUBLISHERS: [&str; 3] = ["publish.py", "publish.mjs", "publish.php"];

/// What a publisher prints, given these nodes.
async fn published(file: &str, nodes: &[String]) -> Option<String> {
    Backend::config(file)
        .env("NODES", &nodes.join(","))
        .env("API_KEY", "a-long-key")
        .run(&["/x", "n", "[1]"])
        .await
}

#[tokio::test]
async fn the_publishers_publish() {
    let sandbox = Sandbox::config().nodes(1).key("a-long-key").start().await;
    let node = format!("http://127.0.0.1:{}", sandbox.nodes[0].port());
    let mut member = sandbox.client(0, "/x").await;
    for file in PUBLISHERS {
        let printed = published(file, std::slice::from_ref(&node)).await;
        assert_eq!(printed.as_deref(), Some("sent\n"), "{file}");
        assert_eq!(member.expect("n").await.data, json!([1]), "{file}");
    }
}

#[tokio::test]
async fn the_publishers_try_the_next_node_where_nothing_was_done() {
    let gone = format!("http://127.0.0.1:{}", free_port());
    for file in PUBLISHERS {
        let draining = Endpoint::start(|_| Reply::Status(503)).await;
        let [node, unasked] =
            [(); 2].map(|()| Endpoint::start(|_| Reply::Json(json!({"status": "sent"}))));
        let (node, unasked) = (node.await, unasked.await);
        let nodes = [gone.clone(), draining.base(), node.base(), unasked.base()];

        assert_eq!(
            published(file, &nodes).await.as_deref(),
            Some("sent\n"),
            "{file}"
        );

        let requests = [&draining, &node, &unasked].map(|node| node.requests().len());
        assert_eq!(requests, [1, 1, 0], "{file}");
    }
}

#[tokio::test]
async fn the_publishers_do_not_try_again_what_may_have_been_done() {
    for file in PUBLISHERS {
        let dying = Endpoint::start(|_| Reply::HangUp).await;
        let next = Endpoint::start(|_| Reply::Json(json!({"status": "sent"}))).await;

        assert_eq!(
            published(file, &[dying.base(), next.base()]).await,
            None,
            "{file}"
        );

        assert_eq!(next.requests().len(), 0, "{file}");
    }
}

async fn over_nats(file: &str) {
    let sandbox = Sandbox::config().toml(EXAMPLE_ROOMS).start().await;
    let backend = Backend::config(file).env("NATS_URL", &sandbox.nats[0].url());
    let _backend = backend.start().await;
    chat(&sandbox).await;
    let mut client = sandbox.client(0, "/chat-rooms/2").await;
    client.expect("welcome").await;
    let nobody = json!({"to": "nobody", "text": "hi"});
    let ack = client.ack("private message", nobody).await;
    assert_eq!(ack, json!({"sent": false}));
}

async fn over_http(file: &str) {
    let backend = Backend::config(file);
    let sandbox = hooked(&backend).start().await;
    let _backend = backend.env("WEBHOOK_SECRET", SECRET).start().await;
    chat(&sandbox).await;
}

fn hooked(backend: &BackendConfig) -> SandboxConfig {
    let hooks = format!(
        "[hooks]\nurl = \"{}\"\nsecret = \"{SECRET}\"\n",
        backend.url()
    );
    Sandbox::config().toml(&hooks).toml(EXAMPLE_ROOMS)
}

/// What each of the examples does, whatever it is written in.
async fn chat(sandbox: &Sandbox) {
    let mut clients = vec![];
    for i in 0..3 {
        let mut client = sandbox.client(i, "/chat-rooms/1").await;
        let welcome = client.expect("welcome").await;
        assert_eq!(welcome.data, json!({"text": "Welcome to /chat-rooms/1"}));
        clients.push(client);
    }
    let ids: Vec<_> = clients.iter().map(|client| client.id.clone()).collect();

    let ack = clients[0]
        .ack("new message", json!({"text": "hi ✓ \"'"}))
        .await;
    assert_eq!(ack, json!({"sent": true}));
    for (from, text) in [(0, "hi ✓ \"'"), (1, "no ack")] {
        if from == 1 {
            let said = json!({"text": text});
            clients[1].send("new message", said).await;
        }
        for client in &mut clients {
            let message = client.expect("new message").await;
            assert_eq!(message.data, json!({"from": ids[from], "text": text}));
            assert_eq!(message.room.as_deref(), Some("/chat-rooms/1"));
        }
    }

    let private = json!({"to": ids[2], "text": "psst"});
    let ack = clients[0].ack("private message", private).await;
    assert_eq!(ack, json!({"sent": true}));
    let message = clients[2].expect("private message").await;
    assert_eq!(message.data, json!({"from": ids[0], "text": "psst"}));

    let refusal = clients[0].request("nonsense", json!({})).await;
    let refusal = refusal.expect_err("there is no such event");
    assert_eq!(refusal.code, "handler_failed");
    assert!(refusal.message.contains("nonsense"), "{refusal:?}");

    // What nobody thought of is answered, and the next is served.
    for data in [json!("text"), json!(null), json!([1]), json!({"to": 1})] {
        let _ = clients[1].request("private message", data).await;
    }
    let ack = clients[1]
        .ack("new message", json!({"text": "still there"}))
        .await;
    assert_eq!(ack, json!({"sent": true}));
}

// === applications in the test itself ===

/// An application that listens to everything, and keeps it.
struct Listener {
    events: Subscriber,
    told: Vec<Value>,
}

impl Listener {
    async fn start(bus: &Bus) -> Self {
        let events = bus.subscribe("unisono.event.>").await.expect("subscribed");
        settle(bus).await;
        Self {
            events,
            told: vec![],
        }
    }

    /// The next event.
    async fn next(&mut self) -> Value {
        let message = next(&mut self.events).await;
        let told = json_of(&message.payload);
        let subject = format!(
            "unisono.event.{}",
            told["type"].as_str().unwrap_or_default()
        );
        assert_eq!(message.subject.as_str(), subject);
        let at = told["at"].as_str().unwrap_or_default();
        assert!(at.len() == 24 && at.ends_with('Z'), "{told}");
        self.told.push(told.clone());
        told
    }

    /// The first event of this type and socket, come or to come.
    async fn until(&mut self, kind: &str, socket: &str) -> Value {
        let wanted = |told: &Value| told["type"] == kind && told["socket"] == socket;
        if let Some(told) = self.told.iter().find(|told| wanted(told)) {
            return told.clone();
        }
        loop {
            let told = self.next().await;
            if wanted(&told) {
                return told;
            }
        }
    }

    /// What came of this socket, without what differs each time.
    fn of(&self, socket: &str) -> Vec<Value> {
        let told = self.told.iter().filter(|told| told["socket"] == socket);
        told.cloned()
            .map(|mut told| {
                let fields = told.as_object_mut().expect("an object");
                fields.remove("id").expect("an id");
                fields.remove("at").expect("a time");
                told
            })
            .collect()
    }
}

/// An application that replies to each message as `reply` says.
async fn application(bus: &Bus, reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) {
    let messages = bus.subscribe("unisono.event.message").await;
    let mut messages = messages.expect("subscribed");
    settle(bus).await;
    let bus = bus.clone();
    tokio::spawn(async move {
        while let Some(message) = messages.next().await {
            if let Some(to) = message.reply {
                let reply = reply(&message.payload);
                bus.publish(to, reply.into()).await.expect("published");
            }
        }
    });
}

/// The data of an event, byte for byte; nothing where there is none.
fn echo(event: &[u8]) -> Vec<u8> {
    let event: BTreeMap<String, Box<RawValue>> =
        serde_json::from_slice(event).expect("an event is a JSON object");
    let data = event.get("data").map(|data| data.get().into());
    data.unwrap_or_default()
}

/// What clients send, from now on.
async fn listen(bus: &Bus) -> Subscriber {
    let messages = bus.subscribe("unisono.event.message").await;
    settle(bus).await;
    messages.expect("subscribed")
}

/// NATS has seen to everything that this connection asked for before.
async fn settle(bus: &Bus) {
    let inbox = bus.new_inbox();
    let mut own = bus.subscribe(inbox.clone()).await.expect("subscribed");
    bus.publish(inbox, "".into()).await.expect("published");
    next(&mut own).await;
}

async fn next(messages: &mut Subscriber) -> Message {
    let message = timeout(PATIENCE, messages.next()).await;
    message.expect("a message in time").expect("a message")
}

fn json_of(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("an event is JSON")
}

fn sandbox_config(toml: &str) -> SandboxConfig {
    Sandbox::config().toml(toml).toml(ROOMS)
}

async fn sandbox(toml: &str) -> Sandbox {
    sandbox_config(toml).start().await
}

/// A counter of node `i`; 0 where it has not counted yet.
async fn metric(sandbox: &Sandbox, i: usize, name: &str) -> f64 {
    let metrics = sandbox.api(i).get("/metrics").await.body;
    let metrics = metrics.as_str().expect("text");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().expect("a number"))
}
