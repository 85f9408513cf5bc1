//! What an application behind HTTP is told and asked, and what it may answer.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::timeout;
use unisono_tests::{
    Client, Endpoint, PATIENCE, Refusal, Reply, Request, Sandbox, SandboxConfig, eventually,
    free_port,
};

const ROOMS: &str = r#"
[[rooms]]
pattern = "/chat/{id}"
client_events = "forward"
events = ["opened", "closed", "joined", "left"]

[[rooms]]
pattern = "/asked/{id}"
client_events = "forward"

[[rooms]]
pattern = "/relay/{id}"
"#;

// === what is told ===

#[tokio::test]
async fn what_happens_is_posted_and_nats_hears_it_too() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let sandbox = sandbox(&endpoint.url(), "").await;
    let bus = sandbox.nats[0].connect().await;
    let mut heard = bus.subscribe("unisono.event.>").await.expect("subscribed");
    bus.request("unisono.api.broadcast", r#"{"event":"fence"}"#.into())
        .await
        .expect("NATS knows of the subscription");
    let mut client = sandbox.client(1, "/chat/1").await;
    client.send("say", json!({"n": 1})).await;
    client.close(4001, "bye").await;

    let events = eventually("all five are posted", async || {
        let events = endpoint.events();
        (events.len() == 5).then_some(events)
    })
    .await;

    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str()).collect();
    let expected = ["opened", "joined", "message", "left", "closed"];
    assert_eq!(kinds, expected.map(Some));
    assert_eq!(events[2]["data"], json!({"n": 1}));
    assert_eq!(
        (&events[4]["code"], &events[4]["reason"]),
        (&json!(4001), &json!("bye"))
    );
    for event in &events {
        assert_eq!(event["socket"], client.id);
        assert_eq!(event["node"], client.node);
        let message = timeout(PATIENCE, heard.next()).await.expect("in time");
        let message = message.expect("NATS hears it, too");
        assert!(message.reply.is_none());
        let told: Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!(told, *event);
    }
    for request in endpoint.requests() {
        assert_eq!(request.line, "POST /events HTTP/1.1");
        assert_eq!(request.headers["content-type"], "application/json");
        assert!(request.headers["webhook-id"].starts_with("msg_"));
        assert!(request.headers["webhook-signature"].starts_with("v1,"));
        assert!(request.headers["webhook-timestamp"].parse::<u64>().is_ok());
    }
}

#[tokio::test]
async fn a_burst_comes_in_batches_and_in_order() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let sandbox = sandbox(&endpoint.url(), "").await;
    endpoint.hold();
    let mut clients = vec![];
    for i in 0..5 {
        let mut client = sandbox.client(i % 3, "/chat/1").await;
        for n in 0..100 {
            client.send("n", json!(n)).await;
        }
        // What was sent before has been read.
        client.ack("unisono:ping", Value::Null).await;
        clients.push(client);
    }
    let ids: Vec<_> = clients.iter().map(|client| client.id.clone()).collect();
    drop(clients);
    endpoint.release();

    let is_closed = |event: &&Value| event["type"] == "closed";
    let events = eventually("everything is posted", async || {
        let events = endpoint.events();
        (events.iter().filter(is_closed).count() == 5).then_some(events)
    })
    .await;

    for id in ids {
        let events = events.iter().filter(|event| event["socket"] == id);
        let told: Vec<_> = events
            .map(|event| match &event["data"] {
                Value::Null => event["type"].as_str().expect("a type").to_owned(),
                number => number.to_string(),
            })
            .collect();
        let start = ["opened", "joined"].map(str::to_owned);
        let end = ["left", "closed"].map(str::to_owned);
        let expected = start
            .into_iter()
            .chain((0..100).map(|n| n.to_string()))
            .chain(end);
        assert_eq!(told, expected.collect::<Vec<_>>());
    }
    let requests = endpoint.requests().len();
    assert!(requests < 50, "{requests} requests for 520 events");
}

#[tokio::test]
async fn what_fails_at_first_is_sent_again_and_nothing_is_lost() {
    let mut failures = 3;
    let endpoint = Endpoint::start(move |request| {
        if failures > 0 {
            failures -= 1;
            return Reply::Status(500);
        }
        ack_all(request, &json!("at last"))
    })
    .await;
    let sandbox = sandbox(&endpoint.url(), "retry_delay_max = \"20ms\"\n").await;
    let mut client = sandbox.client(0, "/asked/1").await;

    assert_eq!(client.ack("say", json!(1)).await, "at last");
    assert_eq!(client.ack("say", json!(2)).await, "at last");

    let requests = endpoint.requests();
    let statuses: Vec<_> = requests.iter().map(|request| request.status).collect();
    assert_eq!(statuses, [500, 500, 500, 200, 200]);
    let ids: Vec<_> = requests
        .iter()
        .map(|request| &request.headers["webhook-id"])
        .collect();
    assert_eq!(BTreeSet::from_iter(&ids[..4]).len(), 1, "{ids:?}");
    assert_ne!(ids[3], ids[4]);
    let bodies: BTreeSet<_> = requests[..4].iter().map(|request| &request.body).collect();
    assert_eq!(bodies.len(), 1);
}

#[tokio::test]
async fn a_drain_posts_what_waits_before_the_node_exits() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let config = config(&endpoint.url(), "");
    let config = config.toml("[drain]\ndelay = \"0s\"\nwindow = \"200ms\"\n");
    let mut sandbox = config.start().await;
    endpoint.hold();
    let mut clients = vec![];
    for _ in 0..20 {
        clients.push(sandbox.client(0, "/chat/1").await);
    }

    sandbox.nodes[0].terminate();
    for client in &mut clients {
        client.expect("unisono:closing").await;
        assert_eq!(client.expect_close().await.0, 1012);
    }
    assert!(sandbox.nodes[0].process().status().is_none(), "it waits");
    endpoint.release();

    assert!(sandbox.nodes[0].process().exited().await.success());
    let events = endpoint.events();
    let closed = events.iter().filter(|event| event["type"] == "closed");
    let closed: BTreeMap<_, _> = closed
        .map(|event| (event["socket"].as_str(), &event["code"]))
        .collect();
    for client in &clients {
        assert_eq!(closed.get(&Some(client.id.as_str())), Some(&&json!(1012)));
    }
    assert_eq!(events.len(), 20 * 4, "each is told once");
}

// === what is answered ===

#[tokio::test]
async fn the_answer_over_http_is_the_ack() {
    // Whoever reads and writes JSON on the way would tidy this up.
    let data = r#"{ "big":12345678901234567890123, "f":1.50, "e":{}, "l":[ ], "u":"\u00e9" }"#;
    let endpoint = Endpoint::start(|request| {
        let acks = request.events.iter().enumerate().map(|(nth, event)| {
            let data = request.raw(nth, "data").expect("there is some");
            format!("{}:{{\"ack\":{data}}}", event["id"])
        });
        let acks: Vec<_> = acks.collect();
        Reply::Body(format!("{{\"answers\":{{{}}}}}", acks.join(",")).into())
    })
    .await;
    let sandbox = sandbox(&endpoint.url(), "").await;
    let bus = sandbox.nats[0].connect().await;
    let mut heard = bus
        .subscribe("unisono.event.message")
        .await
        .expect("subscribed");
    bus.request("unisono.api.broadcast", r#"{"event":"fence"}"#.into())
        .await
        .expect("NATS knows of the subscription");

    for i in 0..3 {
        let mut client = sandbox.client(i, "/asked/1").await;
        let text = format!(r#"{{"event":"say","data":{data},"id":"7"}}"#);
        client.send_text(text).await;

        let ack = client.expect("unisono:ack").await;
        assert_eq!(ack.raw("data").as_deref(), Some(data));
        let message = timeout(PATIENCE, heard.next()).await.expect("in time");
        let message = message.expect("NATS hears it, too");
        assert!(message.reply.is_none(), "and is not asked");
    }
}

#[tokio::test]
async fn what_comes_of_each_answer() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let hooks = "timeout = \"10s\"\nretry_for = \"200ms\"\nretry_delay_max = \"50ms\"\n";
    let sandbox = sandbox(&endpoint.url(), hooks).await;
    let mut client = sandbox.client(0, "/asked/1").await;
    let mut say = async || client.request("say", json!(1)).await;
    let refusal = |code: &str, message: &str| {
        Err(Refusal {
            code: code.to_owned(),
            message: message.to_owned(),
        })
    };
    let nonsense = refusal("handler_failed", "the application answered with nonsense");
    let refused = refusal("unavailable", "the application refused the request");
    let unreachable = refusal("unavailable", "the application cannot be reached");

    for (reply, expected) in [
        (Reply::taken(), Ok(Value::Null)),
        (Reply::Status(204), Ok(Value::Null)),
        (
            Reply::Json(json!({"answers": {"another": {"ack": 1}}})),
            Ok(Value::Null),
        ),
        (Reply::Body(b"<h1>It works!</h1>".into()), nonsense.clone()),
        (Reply::Body(vec![b' '; 10 << 20]), nonsense.clone()),
        (Reply::Json(json!({"answers": [1]})), nonsense),
        (Reply::Status(404), refused.clone()),
        (Reply::Status(302), refused),
        (Reply::Status(503), unreachable.clone()),
        (Reply::Silence, unreachable),
    ] {
        let what = format!("{reply:.60?}");
        endpoint.answer(move |_| reply.clone());
        assert_eq!(say().await, expected, "{what}");
    }
    for error in [json!("no"), json!({"message": "no"})] {
        endpoint.answer(move |request| each(request, &json!({"error": error})));
        assert_eq!(say().await, refusal("handler_failed", "no"));
    }
    endpoint.answer(|request| ack_all(request, &json!({})));
    assert_eq!(say().await, Ok(json!({})));

    let requests = metric(&sandbox, "unisono_hook_requests_total{result=\"error\"}").await;
    assert!(requests >= 4.0, "{requests}");
    for (name, count) in [
        ("unisono_hook_events_total{result=\"delivered\"}", 9.0),
        ("unisono_hook_events_total{result=\"failed\"}", 4.0),
        ("unisono_hook_requests_total{result=\"ok\"}", 9.0),
        ("unisono_hook_answers_refused_total", 3.0),
        ("unisono_hook_request_seconds_count", 9.0 + requests),
    ] {
        assert_eq!(metric(&sandbox, name).await, count, "{name}");
    }
}

#[tokio::test]
async fn an_application_that_takes_small_bodies_gets_all_that_fits() {
    // As nginx before it with a small `client_max_body_size`.
    let taken = |request: &Request| match request.bytes.len() > 2_000 {
        true => Reply::Status(413),
        false => ack_all(request, &json!({})),
    };
    let endpoint = Endpoint::start(taken).await;
    let hooks = "batch_bytes = \"8KiB\"\nlanes = 1\ntimeout = \"60s\"\n";
    let sandbox = sandbox(&endpoint.url(), hooks).await;
    let mut client = sandbox.client(0, "/asked/1").await;
    endpoint.hold();
    for n in 0..50 {
        let padding = if n == 20 { 3_000 } else { 300 };
        let data = json!({"n": n, "padding": "x".repeat(padding)});
        client.send("say", data).await;
    }
    eventually("all of them wait", async || {
        metric(&sandbox, "unisono_hook_events_waiting").await == 50.0
    })
    .await;
    endpoint.release();
    let last = client.ack("say", json!({"n": 50})).await;
    assert_eq!(last, json!({}));

    let requests = endpoint.requests();
    let taken = requests.iter().filter(|request| request.status == 200);
    let taken: Vec<_> = taken.flat_map(|request| &request.events).collect();
    let numbers: Vec<_> = taken
        .iter()
        .map(|event| event["data"]["n"].as_u64())
        .collect();
    let all_but_one: Vec<_> = (0..=50).filter(|n| *n != 20).map(Some).collect();
    assert_eq!(numbers, all_but_one, "in order, once");
    let bounded = |request: &Request| request.bytes.len() <= 8 << 10;
    assert!(requests.iter().all(bounded), "before it is sent");
    let ids: BTreeSet<_> = requests
        .iter()
        .map(|request| &request.headers["webhook-id"])
        .collect();
    assert_eq!(ids.len(), requests.len(), "none is tried again as it was");
    let failed = "unisono_hook_events_total{result=\"failed\"}";
    assert_eq!(metric(&sandbox, failed).await, 1.0);
}

#[tokio::test]
async fn an_absent_endpoint_costs_an_error_in_time() {
    let url = format!("http://127.0.0.1:{}/", free_port());
    let sandbox = sandbox(&url, "timeout = \"300ms\"\nretry_for = \"300ms\"\n").await;
    let mut client = sandbox.client(0, "/asked/1").await;

    assert_eq!(client.refused("say", json!(1)).await, "unavailable");

    client.send("say", json!(2)).await;
    eventually("both are counted", async || {
        metric(&sandbox, "unisono_hook_events_total{result=\"failed\"}").await == 2.0
    })
    .await;
}

#[tokio::test]
async fn a_client_does_not_wait_for_its_turn_behind_many() {
    let endpoint = Endpoint::start(|_| Reply::Silence).await;
    let hooks = "timeout = \"500ms\"\nretry_for = \"0s\"\nbatch = 1\nlanes = 1\n";
    let sandbox = sandbox(&endpoint.url(), hooks).await;
    let mut client = sandbox.client(0, "/asked/1").await;
    // Its turn would come after more than three minutes.
    for n in 0..400 {
        client.send("say", json!(n)).await;
    }

    assert_eq!(client.refused("say", json!(400)).await, "unavailable");
}

#[tokio::test]
async fn a_silent_endpoint_holds_up_no_socket() {
    let endpoint = Endpoint::start(|request| ack_all(request, &json!({}))).await;
    endpoint.hold();
    let sandbox = sandbox(&endpoint.url(), "timeout = \"1h\"\nretry_for = \"0s\"\n").await;
    let mut asking = sandbox.client(0, "/asked/1").await;
    let mut near = sandbox.client(0, "/relay/1").await;
    let mut far = sandbox.client(1, "/relay/1").await;

    asking.send_text(r#"{"event":"say","id":"slow"}"#).await;
    eventually("it is posted", async || !endpoint.requests().is_empty()).await;
    for n in 0..20 {
        near.send("n", json!(n)).await;
        assert_eq!(far.expect("n").await.data, n);
    }
    asking.ack("unisono:ping", Value::Null).await;
    let status = sandbox.api(1).emit(&asking.id, "hello", Value::Null).await;
    assert_eq!(status, "delivered");
    asking.expect("hello").await;

    // All of that came first.
    endpoint.release();
    let ack = asking.expect("unisono:ack").await;
    assert_eq!(ack.id, Some(json!("slow")));
}

#[tokio::test]
async fn what_finds_no_room_is_dropped_told_and_counted() {
    let endpoint = Endpoint::start(|request| ack_all(request, &json!({}))).await;
    let sandbox = sandbox(&endpoint.url(), "queue = 2\nlanes = 1\n").await;
    let mut client = sandbox.client(0, "/asked/1").await;
    endpoint.hold();

    client.send("say", json!(1)).await;
    client.send("say", json!(2)).await;
    let refusal = client.request("say", json!(3)).await.expect_err("no room");
    assert_eq!(refusal.code, "unavailable");
    assert_eq!(refusal.message, "too much waits for the application");
    let dropped = "unisono_hook_events_total{result=\"dropped\"}";
    assert_eq!(metric(&sandbox, dropped).await, 1.0);

    endpoint.release();
    eventually("there is room", async || {
        client.request("say", json!(4)).await
    })
    .await;
}

// === actions ===

#[tokio::test]
async fn actions_are_carried_out_in_order_before_the_ack() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let sandbox = sandbox(&endpoint.url(), "").await;
    let mut a = sandbox.client(0, "/asked/1").await;
    let mut b = sandbox.client(1, "/asked/1").await;
    let mut c = sandbox.client(2, "/relay/1").await;
    let publish = |room: &str, event: &str| json!({"publish": {"room": room, "event": event, "confirm": true}});
    let vip = json!({"to": b.id, "room": "vip"});
    let actions = json!([
        {"emit": {"to": a.id, "event": "one"}},
        {"nonsense": {}},
        {"emit": {"to": a.id, "event": "unisono:open"}},
        "text",
        {"emit": {"to": a.id}, "publish": {"room": "/asked/1", "event": "two verbs"}},
        {"emit": {"to": [a.id, b.id], "event": "two", "data": {}}},
        publish("/asked/1", "three"),
        {"broadcast": {"event": "four", "confirm": true}},
        {"join": vip},
        publish("vip", "five"),
        {"leave": vip},
        publish("vip", "never"),
        {"disconnect": {"to": c.id, "code": 4002, "reason": "enough"}},
        {"emit": {"to": b.id, "event": "six"}},
    ]);
    endpoint.answer(move |request| {
        let Reply::Json(mut answer) = ack_all(request, &json!("done")) else {
            unreachable!("it is JSON");
        };
        answer["actions"] = actions.clone();
        Reply::Json(answer)
    });

    a.send_text(r#"{"event":"act","id":1}"#).await;

    assert_eq!(names(&mut a, 5).await, "one two three four unisono:ack");
    assert_eq!(names(&mut b, 5).await, "two three four five six");
    c.expect("four").await;
    assert_eq!(c.expect_close().await, (4002, "enough".to_owned()));
    assert_eq!(metric(&sandbox, "unisono_actions_failed_total").await, 4.0);
}

#[tokio::test]
async fn what_an_action_sends_is_what_was_written() {
    let data = r#"{ "big":12345678901234567890123, "f":1.50, "e":{}, "l":[ ], "u":"\u00e9" }"#;
    let body = format!(
        r#"{{"actions":[{{"publish":{{"room":"/relay/1","event":"said","data":{data}}}}}]}}"#
    );
    let endpoint = Endpoint::start(move |_| Reply::Body(body.clone().into())).await;
    let sandbox = sandbox(&endpoint.url(), "").await;
    let mut near = sandbox.client(0, "/relay/1").await;
    let mut far = sandbox.client(1, "/relay/1").await;
    let mut client = sandbox.client(0, "/asked/1").await;

    client.send("say", json!(1)).await;

    for client in [&mut near, &mut far] {
        let said = client.expect("said").await;
        assert_eq!(said.raw("data").as_deref(), Some(data));
    }
}

// === helpers ===

/// `[hooks]` with this URL and these lines, on three nodes.
fn config(url: &str, hooks: &str) -> SandboxConfig {
    let hooks = format!("[hooks]\nurl = \"{url}\"\nsecret = \"a secret of the tests\"\n{hooks}");
    Sandbox::config().toml(&hooks).toml(ROOMS)
}

async fn sandbox(url: &str, hooks: &str) -> Sandbox {
    config(url, hooks).start().await
}

fn each(request: &Request, answer: &Value) -> Reply {
    let events = request.events.iter();
    let answers: serde_json::Map<_, _> = events
        .map(|event| event["id"].as_str().expect("an id").to_owned())
        .map(|id| (id, answer.clone()))
        .collect();
    Reply::Json(json!({ "answers": answers }))
}

fn ack_all(request: &Request, data: &Value) -> Reply {
    each(request, &json!({ "ack": data }))
}

/// The names of the next events.
async fn names(client: &mut Client, count: usize) -> String {
    let mut names = vec![];
    for _ in 0..count {
        names.push(client.next().await.event);
    }
    names.join(" ")
}

/// A counter of the first node; 0 where it has not counted yet.
async fn metric(sandbox: &Sandbox, name: &str) -> f64 {
    let metrics = sandbox.api(0).get("/metrics").await.body;
    let metrics = metrics.as_str().expect("text");
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().expect("a number"))
}
