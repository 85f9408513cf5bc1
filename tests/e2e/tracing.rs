//! Traces: which spans a collector gets, and that it costs nobody anything when it takes none.

use std::collections::BTreeSet;
use std::fs;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use unisono_tests::{Collector, Node, Reply, Sandbox, Span, eventually, free_port};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

const ROOMS: &str = "[[rooms]]\npattern = \"/chat/{id}\"\nemit = true\n";

// === one trace ===

#[tokio::test]
async fn a_publication_is_followed_from_the_api_to_the_queues_of_every_node() {
    let (collector, sandbox) = traced("sample_ratio = 0").await;
    let mut far = sandbox.client(1, "/chat/1").await;
    let mut farther = [
        sandbox.client(2, "/chat/1").await,
        sandbox.client(2, "/chat/1").await,
    ];
    let body = json!({"room": "/chat/1", "event": "news", "data": "secret-payload"});
    post(&sandbox, "publish?token=secret-query", &body, "01").await;
    far.expect("news").await;
    for client in &mut farther {
        client.expect("news").await;
    }

    let delivered = collector.expect("deliver", 3).await;
    let request = collector.expect_one("POST /api/v1/publish").await;
    let publish = collector.expect_one("publish").await;
    let bus = collector.expect_one("bus publish").await;
    assert_eq!(request.parent, CALLER);
    assert_eq!(publish.parent, request.id);
    assert_eq!(bus.parent, publish.id);
    let nodes = sandbox.ids().await;
    for span in [&request, &publish, &bus] {
        assert_eq!(span.node(), nodes[0]);
    }
    for (node, (sockets, parent)) in [(0, &publish), (1, &bus), (2, &bus)]
        .into_iter()
        .enumerate()
    {
        let span = of_node(&delivered, &nodes[node]);
        assert_eq!(span.sockets(), sockets, "{span:?}");
        assert_eq!(span.parent, parent.id, "{span:?}");
    }
    assert_eq!(request.attributes["http.request.method"], "POST");
    assert_eq!(request.attributes["http.route"], "/api/v1/publish");
    assert_eq!(request.attributes["http.response.status_code"], 200);
    assert_eq!(publish.attributes["unisono.source"], "api");
    assert_eq!(publish.attributes["unisono.room.pattern"], "/chat/{id}");
    assert_eq!(request.resource["service.name"], "unisono");
    assert_eq!(request.resource["unisono.node.name"], "node-0");
    let all = collector.spans();
    assert_eq!(all.len(), 6, "{all:?}");
    assert!(all.iter().all(|span| span.trace == TRACE && !span.failed));
    for request in collector.requests() {
        assert_eq!(request.line, "POST /v1/traces HTTP/1.1");
        let text = String::from_utf8_lossy(&request.bytes);
        for private in ["secret", "/chat/1", "news", "token"] {
            assert!(!text.contains(private), "{private}: {text}");
        }
    }
    eventually("what was sent is counted", async || {
        let sent = join_all(sandbox.nodes.iter().map(Node::metrics)).await;
        let sent = sent
            .iter()
            .map(|of| of.get("unisono_spans_total{result=\"sent\"}"));
        sent.sum::<f64>() == 6.0
    })
    .await;
}

#[tokio::test]
async fn a_broadcast_that_waits_for_its_count_is_followed() {
    let (collector, sandbox) = traced("sample_ratio = 0").await;
    let _here = sandbox.client(0, "/chat/1").await;
    let _far = sandbox.client(1, "/chat/2").await;
    let body = json!({"event": "news", "confirm": true});
    let answer = post(&sandbox, "broadcast", &body, "01").await;
    assert_eq!(answer["sockets"], 2);

    let delivered = collector.expect("deliver", 3).await;
    let nodes = sandbox.ids().await;
    let sockets = nodes.iter().map(|node| of_node(&delivered, node).sockets());
    assert_eq!(sockets.collect::<Vec<_>>(), [1, 1, 0]);
    let broadcast = collector.expect_one("broadcast").await;
    for span in &delivered {
        // Its own sockets it does not wait for.
        let elsewhere = span.node() != nodes[0];
        assert!(!elsewhere || span.nanos <= broadcast.nanos, "{span:?}");
    }
    assert_eq!(
        collector.expect_one("bus publish").await.parent,
        broadcast.id
    );
}

#[tokio::test]
async fn an_emit_is_followed_to_the_node_of_the_socket() {
    let (collector, sandbox) = traced("sample_ratio = 0").await;
    let mut far = sandbox.client(2, "/chat/1").await;
    let here = sandbox.client(0, "/chat/1").await;
    let gone = format!("{}ffff", &far.id[..far.id.len() - 4]);
    let body = json!({"to": [far.id, here.id, gone], "event": "psst", "data": 1});
    post(&sandbox, "emit", &body, "01").await;
    far.expect("psst").await;

    let delivered = collector.expect("deliver", 2).await;
    let emit = collector.expect_one("emit").await;
    let request = collector.expect_one("POST /api/v1/emit").await;
    assert_eq!(emit.parent, request.id);
    assert_eq!(emit.sockets(), 2);
    for (node, client) in [(2, &far), (0, &here)] {
        let span = of_node(&delivered, &client.node);
        assert_eq!(span.node(), sandbox.ids().await[node]);
        assert_eq!(
            (span.parent.as_str(), span.sockets()),
            (emit.id.as_str(), 1)
        );
    }
    let texts = collector
        .requests()
        .into_iter()
        .map(|request| request.bytes);
    for text in texts.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()) {
        assert!(!text.contains(&far.id), "{text}");
    }
}

#[tokio::test]
async fn a_batch_and_several_rooms_are_one_trace() {
    let (collector, sandbox) = traced("sample_ratio = 0").await;
    let mut both = sandbox.client(1, "/chat/1").await;
    both.join("/chat/2").await;
    let body = json!([
        {"publish": {"rooms": ["/chat/1", "/chat/2"], "event": "news"}},
        {"broadcast": {"event": "all"}},
        {"publish": {"room": "/chat/1"}},
    ]);
    post(&sandbox, "batch", &body, "01").await;
    both.expect("news").await;
    both.expect("all").await;

    let published = collector.expect("publish", 2).await;
    let request = collector.expect_one("POST /api/v1/batch").await;
    collector.expect("bus publish", 3).await;
    assert!(published.iter().all(|span| span.parent == request.id));
    let delivered = collector.expect("deliver", 7).await;
    let once: u64 = delivered.iter().map(Span::sockets).sum();
    assert_eq!(once, 2, "one for the two rooms, one for everybody");
}

#[tokio::test]
async fn a_request_over_nats_is_followed_by_its_header() {
    let (collector, sandbox) = traced("sample_ratio = 0").await;
    let mut client = sandbox.client(1, "/chat/1").await;
    let bus = sandbox.nats[0].connect().await;
    for (verb, flags) in [("publish", "00"), ("publish", "01"), ("secret-verb", "01")] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("traceparent", traceparent(flags));
        let body = json!({"room": "/chat/1", "event": flags}).to_string();
        let subject = format!("unisono.api.{verb}");
        let answer = bus
            .request_with_headers(subject, headers, body.into())
            .await;
        answer.expect("an answer");
    }
    client.expect("00").await;
    client.expect("01").await;

    let request = collector.expect_one("unisono.api.publish").await;
    assert_eq!(
        (request.trace.as_str(), request.parent.as_str()),
        (TRACE, CALLER)
    );
    let refused = collector.expect_one("unisono.api.unknown").await;
    assert_eq!(refused.attributes["error.type"], "bad_request");
    assert_eq!(collector.expect_one("publish").await.parent, request.id);
    eventually("the node of the client has delivered it", async || {
        let spans = collector.spans().into_iter();
        let delivered = spans.filter(|span| span.name == "deliver");
        delivered.map(|span| span.sockets()).sum::<u64>() == 1
    })
    .await;
}

// === what is sampled ===

#[tokio::test]
async fn what_nobody_samples_is_not_told() {
    let (collector, sandbox) = traced("sample_ratio = 0").await;
    let mut far = sandbox.client(1, "/chat/1").await;
    let mut here = sandbox.client(0, "/chat/1").await;
    sandbox.api(0).publish("/chat/1", "a", json!(1)).await;
    let body = json!({"room": "/chat/1", "event": "b"});
    post(&sandbox, "publish", &body, "00").await;
    here.ack("c", Value::Null).await;
    for event in ["a", "b", "c"] {
        far.expect(event).await;
    }
    // Comes after whatever there was of those.
    post(
        &sandbox,
        "publish",
        &json!({"room": "/chat/1", "event": "d"}),
        "01",
    )
    .await;
    far.expect("d").await;
    collector.expect("deliver", 2).await;
    collector.expect_one("POST /api/v1/publish").await;
    let traces: BTreeSet<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.trace)
        .collect();
    assert_eq!(traces, BTreeSet::from([TRACE.to_owned()]));
}

#[tokio::test]
async fn a_ratio_of_one_samples_everything_but_what_says_no() {
    let (collector, sandbox) = traced("sample_ratio = 1").await;
    let mut a = sandbox.client(0, "/chat/1").await;
    let mut b = sandbox.client(1, "/chat/1").await;
    a.ack("said", json!(1)).await;
    b.expect("said").await;
    assert_eq!(a.emit(&b.id, "psst", json!(2)).await, "delivered");
    post(
        &sandbox,
        "publish",
        &json!({"room": "/chat/1", "event": "no"}),
        "00",
    )
    .await;
    b.expect("psst").await;
    b.expect("no").await;

    let publish = collector.expect_one("publish").await;
    assert_eq!(publish.parent, "");
    assert_eq!(publish.attributes["unisono.source"], "client");
    let emit = collector.expect_one("emit").await;
    assert_eq!(emit.parent, "");
    assert_ne!(emit.trace, publish.trace);
    let delivered = collector.expect("deliver", 3).await;
    let of_publish = delivered.iter().filter(|span| span.trace == publish.trace);
    assert_eq!(of_publish.map(Span::sockets).sum::<u64>(), 1);
}

#[tokio::test]
async fn strangers_begin_no_traces() {
    let collector = Collector::start().await;
    let config = Node::config("keyed").key("a-long-api-key");
    let node = config
        .toml(&collector.toml("sample_ratio = 1"))
        .start()
        .await;
    let request = node
        .api()
        .with_key(None)
        .request(Method::POST, "/api/v1/publish");
    let answer = request
        .header("traceparent", traceparent("01"))
        .send()
        .await;
    assert_eq!(answer.expect("an answer").status(), 401);
    let answer = node.api().get("/api/v1/nowhere/secret").await;
    assert_eq!(answer.status, 404);
    node.api().get("/api/v1/sockets/secret").await;
    collector.expect_one("GET /api/v1/sockets/{id}").await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 2, "{spans:?}");
    assert!(!format!("{spans:?}").contains("secret"));
}

// === a collector that does not take them ===

#[tokio::test]
async fn headers_are_sent_and_other_programs_variables_change_nothing_else() {
    let collector = Collector::start().await;
    let folder = TempDir::with_prefix("unisono-tracing-").expect("a temporary directory");
    let file = folder.path().join("headers");
    fs::write(&file, "x-api-key: k3y\n").expect("a file in the test's own directory");
    let lines = format!("headers_file = {file:?}\nservice_name = \"chat\"\nsample_ratio = 1");
    let mut config = Node::config("alone").toml(&collector.toml(&lines));
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_SERVICE_NAME", "other"),
        ("OTEL_RESOURCE_ATTRIBUTES", "other=1"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "0"),
    ] {
        config = config.env(name, value);
    }
    let node = config.start().await;
    node.api().publish("/x", "news", json!(1)).await;

    let publish = collector.expect_one("publish").await;
    assert_eq!(publish.resource["service.name"], "chat");
    assert!(!publish.resource.contains_key("other"));
    assert_eq!(publish.attributes["unisono.source"], "api");
    collector.expect_one("deliver").await;
    assert_eq!(collector.requests()[0].headers["x-api-key"], "k3y");
}

#[tokio::test]
async fn a_collector_that_takes_nothing_costs_nobody_anything() {
    let refusing = Collector::answering(Reply::Status(500)).await;
    let hanging = Collector::answering(Reply::Silence).await;
    let away = format!(
        "[tracing]\nendpoint = \"http://127.0.0.1:{}\"\n",
        free_port()
    );
    let bounds = "sample_ratio = 1\nqueue = 8\nbatch = 4\ntimeout = \"300ms\"";
    let drain = "[drain]\ndelay = \"0s\"\nwindow = \"0s\"\n";
    for tracing in [
        refusing.toml(bounds),
        hanging.toml(bounds),
        format!("{away}delay = \"20ms\"\n{bounds}\n"),
    ] {
        let mut node = Node::alone(&format!("{tracing}{drain}")).await;
        let mut client = node.client("/x").await;
        for n in 0..100 {
            node.api().publish("/x", "news", json!(n)).await;
            assert_eq!(client.expect("news").await.data, json!(n));
        }
        eventually("what is lost is counted", async || {
            let metrics = node.metrics().await;
            let [failed, dropped] = ["failed", "dropped"]
                .map(|result| metrics.get(&format!("unisono_spans_total{{result=\"{result}\"}}")));
            // A request, a publication and a delivery each; the last few may be under way.
            let enough = failed >= 4.0 && failed + dropped >= 280.0;
            enough.then_some(()).ok_or((failed, dropped))
        })
        .await;
        node.terminate();
        assert!(node.process().exited().await.success());
        let said = node.process().stderr();
        let lines = said.matches("the collector did not take spans").count();
        assert!((1..=3).contains(&lines), "{said}");
    }
}

#[tokio::test]
async fn the_last_spans_are_sent_before_the_end() {
    let collector = Collector::start().await;
    let tracing = collector.toml("sample_ratio = 1").replace("20ms", "1h");
    let mut node = Node::alone(&tracing).await;
    node.api().publish("/x", "news", json!(1)).await;
    node.interrupt();
    assert!(node.process().exited().await.success());
    let names: BTreeSet<_> = collector
        .spans()
        .into_iter()
        .map(|span| span.name)
        .collect();
    let expected = ["POST /api/v1/publish", "deliver", "publish"];
    assert_eq!(names, expected.map(str::to_owned).into());
}

// === helpers ===

/// Three nodes that send their spans to one collector.
async fn traced(lines: &str) -> (Collector, Sandbox) {
    let collector = Collector::start().await;
    let toml = format!("{}{ROOMS}", collector.toml(lines));
    let sandbox = Sandbox::config().toml(&toml).start().await;
    (collector, sandbox)
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CALLER}-{flags}")
}

/// Asks node 0, as part of a trace.
async fn post(sandbox: &Sandbox, path: &str, body: &Value, flags: &str) -> Value {
    let request = sandbox
        .api(0)
        .request(Method::POST, &format!("/api/v1/{path}"));
    let request = request.header("traceparent", traceparent(flags)).json(body);
    let answer = request.send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    answer.json().await.expect("JSON")
}

#[track_caller]
fn of_node<'a>(spans: &'a [Span], node: &str) -> &'a Span {
    let found = spans.iter().find(|span| span.node() == node);
    found.unwrap_or_else(|| panic!("no span of {node} in {spans:?}"))
}
