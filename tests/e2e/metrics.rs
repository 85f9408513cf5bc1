//! What `/metrics` says, against what was done.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use unisono_tests::{
    Certificate, Client, Identity, Metrics, Node, Sandbox, Stream, Wire, eventually, in_repository,
    promtool, stream_request, upgrade_request,
};

// === what there is ===

#[tokio::test]
async fn every_metric_is_there_from_the_start_and_documented() {
    let (node, _identity) = with_everything().await;
    let metrics = node.metrics().await;
    let exported = metrics.names("TYPE");

    let text = in_repository("docs/metrics.md");
    let documented: BTreeSet<&str> = Metrics::named_in(&text).collect();
    let undocumented: Vec<_> = exported.difference(&documented).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
    let missing: Vec<_> = documented.difference(&exported).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(metrics.names("HELP"), exported);
    assert_eq!(
        metrics.get("unisono_hook_request_seconds_bucket{le=\"+Inf\"}"),
        0.0,
        "an empty histogram is there, too"
    );
}

#[tokio::test]
async fn the_exposition_is_what_prometheus_takes() {
    let (node, _identity) = with_everything().await;
    let mut client = node.client("/x").await;
    client.send("chat", json!(1)).await;
    promtool(&["check", "metrics"], node.metrics().await.text());
}

#[tokio::test]
async fn cpu_time_has_fractions_of_a_second() {
    let node = Node::alone("").await;
    eventually("some hundredths of a second were used", async || {
        let metrics = node.metrics().await;
        let text = "# TYPE process_cpu_seconds_total counter\n";
        assert!(metrics.text().contains(text), "{}", metrics.text());
        metrics.get("process_cpu_seconds_total").fract() > 0.0
    })
    .await;
}

#[tokio::test]
async fn the_cpu_time_of_threads_is_told_by_what_they_do() {
    let node = Node::config("alone").arg("--set=workers=2").start().await;
    let mut client = node.client("/x").await;
    let spent = |metrics: &Metrics, thread: &str| {
        metrics.get(&format!(
            "unisono_thread_cpu_seconds_total{{thread=\"{thread}\"}}"
        ))
    };
    eventually("they have used some", async || {
        client.ack("unisono:ping", json!(1)).await;
        node.metrics().await.sum("unisono_thread_cpu_seconds_total") >= 0.05
    })
    .await;

    let metrics = node.metrics().await;
    let type_of = "# TYPE unisono_thread_cpu_seconds_total counter\n";
    assert!(metrics.text().contains(type_of), "{}", metrics.text());
    let all = metrics.sum("unisono_thread_cpu_seconds_total");
    let named = ["node", "bus", "worker-0", "worker-1", "outside"];
    let sum: f64 = named.map(|thread| spent(&metrics, thread)).iter().sum();
    assert!((sum - all).abs() < 0.001, "{sum} of {all}");
    // Other threads have little to do, and each clock goes by hundredths.
    let rest = metrics.get("process_cpu_seconds_total") - all;
    assert!((-0.05..0.5).contains(&rest), "{all}, {rest} more");
}

#[tokio::test]
async fn names_and_ids_make_no_series() {
    let node = Node::alone("").await;
    let mut first = node.client("/first").await;
    first.send("chat", json!(1)).await;
    first.ack("unisono:ping", json!(1)).await;
    let before = node.metrics().await;

    for n in 0..50 {
        let mut client = node.client(&format!("/room-{n}")).await;
        client.join(&format!("more-{n}")).await;
        client.ack(&format!("event-{n}"), json!(n)).await;
        client.emit(&first.id, &format!("emit-{n}"), json!(n)).await;
        client.close(3000 + n, &format!("reason {n}")).await;
        let unknown = format!("{:08x}{}", n, &first.id[8..]);
        node.api().emit(&unknown, "gone", json!(n)).await;
        node.api().get(&format!("/nowhere/{n}?token={n}")).await;
    }

    eventually("all of them are gone", async || {
        node.metrics().await.sum("unisono_sockets") == 1.0
    })
    .await;
    let after = node.metrics().await;
    assert_eq!(before.series(), after.series());
    assert!(after.get("unisono_closes_total{code=\"other\"}") >= 50.0);
}

// === against what was done ===

#[tokio::test]
async fn sockets_publications_and_messages_are_counted() {
    let sandbox = Sandbox::start(2).await;
    let mut client = sandbox.client(0, "/x").await;
    let mut stream = sandbox.stream(0, "/x").await;
    let mut far = sandbox.client(1, "/x").await;

    sandbox.api(0).publish("/x", "news", json!(1)).await;
    client.expect("news").await;
    stream.expect("news").await;
    far.expect("news").await;
    client.send("chat", json!(2)).await;
    stream.expect("chat").await;
    far.expect("chat").await;
    sandbox.api(0).broadcast("all", json!(3)).await;
    client.expect("all").await;
    stream.expect("all").await;
    far.expect("all").await;

    let here = sandbox.nodes[0].metrics().await;
    for (series, value) in [
        ("unisono_sockets{wire=\"websocket\"}", 1.0),
        ("unisono_sockets{wire=\"event_stream\"}", 1.0),
        ("unisono_rooms", 1.0),
        ("unisono_users", 0.0),
        ("unisono_nodes", 2.0),
        ("unisono_ready", 1.0),
        ("unisono_bus_connected", 1.0),
        ("unisono_bus_connects_total", 1.0),
        ("unisono_bus_dropped_total", 0.0),
        ("unisono_handshakes_total{outcome=\"accepted\"}", 2.0),
        ("unisono_publications_total{source=\"api\"}", 2.0),
        ("unisono_publications_total{source=\"client\"}", 1.0),
        ("unisono_publications_total{source=\"bus\"}", 0.0),
        ("unisono_deliveries_total", 5.0),
        ("unisono_received_messages_total", 1.0),
        // Two greetings besides.
        ("unisono_sent_messages_total", 7.0),
    ] {
        assert_eq!(here.get(series), value, "{series}");
    }
    let there = sandbox.nodes[1].metrics().await;
    for (series, value) in [
        ("unisono_sockets{wire=\"websocket\"}", 1.0),
        ("unisono_publications_total{source=\"bus\"}", 3.0),
        ("unisono_deliveries_total", 3.0),
        ("unisono_received_messages_total", 0.0),
    ] {
        assert_eq!(there.get(series), value, "{series}");
    }
    assert!(here.get("unisono_sent_bytes_total") > 300.0);
    assert!(here.get("unisono_received_bytes_total") > 20.0);
    for node in [&here, &there] {
        for direction in ["sent", "received"] {
            assert!(node.get(&format!("unisono_bus_{direction}_messages_total")) > 3.0);
            assert!(node.get(&format!("unisono_bus_{direction}_bytes_total")) > 60.0);
        }
    }
    drop((client, stream));
    eventually("nobody is there, and nothing waits", async || {
        let metrics = sandbox.nodes[0].metrics().await;
        let left = [
            "unisono_sockets",
            "unisono_rooms",
            "unisono_queue_bytes",
            "unisono_inflight_bytes",
        ]
        .map(|name| metrics.sum(name));
        (left == [0.0; 4]).then_some(()).ok_or(left)
    })
    .await;
}

#[tokio::test]
async fn emits_are_counted_by_status() {
    let sandbox = Sandbox::config()
        .nodes(2)
        .cluster("call_timeout = \"2s\"")
        .start()
        .await;
    let mut near = sandbox.client(0, "/x").await;
    let mut far = sandbox.client(1, "/x").await;
    // Of the same worker, and of no node.
    let stranger = format!("{}ffff", &near.id[..near.id.len() - 4]);
    let gone = format!("01234567-89ab{}", &near.id[13..]);

    let to = json!([near.id, far.id, stranger, gone, "garbage"]);
    let body = json!({"to": to, "event": "hi"});
    let results = sandbox.api(0).post("emit", body).await.ok();
    near.expect("hi").await;
    far.expect("hi").await;
    assert_eq!(results["results"][&gone], "node_gone", "{results}");
    // Nobody waits for this answer: where the socket is, it counts all the same.
    near.send("unisono:emit", json!({"to": far.id, "event": "hi"}))
        .await;
    far.expect("hi").await;
    sandbox.nodes[1].freeze();
    let late = sandbox.api(0).emit(&far.id, "late", Value::Null).await;
    assert_eq!(late, "timeout");
    sandbox.nodes[1].thaw();

    let here = sandbox.nodes[0].metrics().await;
    let count = |metrics: &Metrics, status: &str| {
        metrics.get(&format!("unisono_emits_total{{status=\"{status}\"}}"))
    };
    for (status, value) in [
        ("delivered", 1.0),
        ("not_found", 1.0),
        ("node_gone", 1.0),
        ("invalid", 1.0),
        ("timeout", 1.0),
        ("dropped", 0.0),
    ] {
        assert_eq!(count(&here, status), value, "{status}");
    }
    far.expect("late").await;
    assert_eq!(count(&sandbox.nodes[1].metrics().await, "delivered"), 3.0);
}

#[tokio::test]
async fn closes_are_counted_by_code() {
    let node = Node::alone("[sockets]\nmessage_bytes = \"1KiB\"").await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(node.client("/x").await);
    }
    let mut clients = clients.into_iter();
    let mut next = || clients.next().expect("another client");

    next().close(1000, "").await;
    // A code of the client's own choice, even one of the application's, is no label of its own.
    next().close(3777, "\u{1b}[2J").await;
    let mut large = next();
    large.send_text("x".repeat(2000)).await;
    assert_eq!(large.expect_close().await.0, 1009);
    for code in [4000, 4099] {
        let mut told = next();
        node.api().disconnect(&told.id, code, "bye").await;
        assert_eq!(told.expect_close().await.0, code);
    }
    drop(next());
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    wire.reset();

    eventually("all are gone", async || {
        let metrics = node.metrics().await;
        let seen: Vec<_> = ["1000", "1006", "1009", "application", "other"]
            .map(|code| metrics.get(&format!("unisono_closes_total{{code=\"{code}\"}}")))
            .into();
        let expected = [1.0, 2.0, 1.0, 2.0, 1.0];
        (seen == expected).then_some(()).ok_or(seen)
    })
    .await;
    let metrics = node.metrics().await;
    assert_eq!(metrics.sum("unisono_closes_total"), 7.0);
    assert_eq!(metrics.get("unisono_slow_sockets_total"), 0.0);
}

#[tokio::test]
async fn handshakes_are_counted_by_what_became_of_them() {
    let rooms = "[[rooms]]\npattern = \"/chat/{id}\"\n[sockets]\nmax = 2\nhead_bytes = \"4KiB\"";
    let node = Node::alone(rooms).await;
    let good = upgrade_request("/chat/1");
    for (request, status) in [
        (good.replace("/chat/1", "/nowhere"), 404),
        (good.replace("Version: 13", "Version: 8"), 426),
        (good.replace("Upgrade: websocket", "Upgrade: nothing"), 400),
        (good.replace("/chat/1", &"x".repeat(5000)), 431),
        (stream_request("/nowhere", ""), 404),
    ] {
        let mut wire = node.wire().await;
        wire.send(&request).await;
        assert_eq!(wire.response().await.status, status, "{request}");
    }
    let _client = node.client("/chat/1").await;
    let _stream = node.stream("/chat/1").await;
    let mut wire = node.wire().await;
    wire.send(&good).await;
    assert_eq!(wire.response().await.status, 503);
    let full = Stream::ask(node.port(), &stream_request("/chat/1", "")).await;
    assert_eq!(full.expect_err("full").status, 503);

    let metrics = node.metrics().await;
    for (outcome, value) in [
        ("accepted", 2.0),
        ("400", 1.0),
        ("404", 2.0),
        ("426", 1.0),
        ("431", 1.0),
        ("503", 2.0),
    ] {
        let series = format!("unisono_handshakes_total{{outcome=\"{outcome}\"}}");
        assert_eq!(metrics.get(&series), value, "{outcome}");
    }
    assert_eq!(metrics.sum("unisono_handshakes_total"), 9.0);
    assert_eq!(metrics.get("unisono_sockets_max"), 2.0);
}

#[tokio::test]
async fn gaps_and_reconnects_are_counted() {
    let mut sandbox = Sandbox::start(2).await;
    let mut near = sandbox.client(0, "/x").await;
    let mut far = sandbox.client(1, "/x").await;
    let _raw = sandbox.client(0, "/y").await;

    sandbox.nats[0].kill();
    eventually("the bus is away", async || {
        sandbox.nodes[0]
            .metrics()
            .await
            .get("unisono_bus_connected")
            == 0.0
    })
    .await;
    sandbox.api(0).publish("/x", "local", Value::Null).await;
    near.expect("local").await;
    sandbox.nats[0].start_again().await;
    let mut gaps = [0_u32, 0];
    for (client, gaps) in [&mut near, &mut far].into_iter().zip(&mut gaps) {
        client.expect("unisono:gap").await;
        *gaps += 1;
    }
    sandbox.all_know_each_other().await;
    for node in &sandbox.nodes {
        eventually("the bus is back", async || {
            node.metrics().await.get("unisono_bus_connected") == 1.0
        })
        .await;
    }
    eventually("publications get through", async || {
        sandbox.api(0).publish("/x", "fence", Value::Null).await["status"] == "sent"
    })
    .await;
    let mut metrics = vec![];
    for (client, gaps) in [&mut near, &mut far].into_iter().zip(&mut gaps) {
        *gaps += gaps_before(client, "fence").await;
    }
    for node in &sandbox.nodes[..2] {
        metrics.push(node.metrics().await);
    }
    // A notice of the other node may come late: what was counted by then is seen before this.
    sandbox.api(0).publish("/x", "end", Value::Null).await;
    let mut most = gaps;
    for (client, most) in [&mut near, &mut far].into_iter().zip(&mut most) {
        *most += gaps_before(client, "end").await;
    }

    for (i, metrics) in metrics.iter().enumerate() {
        let told = metrics.get("unisono_gaps_total{reason=\"bus_outage\"}");
        // The other socket of node 0 is told what concerns any room.
        let (least, most) = (f64::from(gaps[i]), f64::from(most[i]));
        assert!(
            told >= least && told <= most * (2.0 - i as f64),
            "{i}: {told} of {least} to {most}"
        );
        assert_eq!(metrics.get("unisono_bus_connects_total"), 2.0);
        assert_eq!(metrics.get("unisono_bus_connected"), 1.0);
    }
    let lost = sandbox.nodes[0].metrics().await;
    assert!(lost.get("unisono_bus_dropped_total") >= 1.0);
}

/// How many gaps a client is told of before that event.
async fn gaps_before(client: &mut Client, event: &str) -> u32 {
    let mut gaps = 0;
    loop {
        match client.next().await.event.as_str() {
            "unisono:gap" => gaps += 1,
            found if found == event => return gaps,
            // Tried more than once.
            "fence" => {}
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_slow_reader_is_counted_and_its_queue_with_it() {
    let settings = "[sockets]\nqueue_bytes = \"256KiB\"\nwrite_timeout = \"60s\"";
    let node = Node::alone(settings).await;
    let mut slow = Wire::narrow(node.port()).await;
    slow.upgrade("/x").await;
    let greeting: Value = serde_json::from_str(&slow.text().await).expect("a greeting");
    let id = greeting["data"]["id"].as_str().expect("an id");
    let padding = json!("x".repeat(32 * 1024));

    let mut waited = 0.0_f64;
    eventually("it is full", async || {
        let status = node.api().emit(id, "big", padding.clone()).await;
        let metrics = node.metrics().await;
        waited = waited.max(metrics.get("unisono_queue_bytes"));
        status != "delivered"
    })
    .await;

    assert!(waited > 32.0 * 1024.0, "{waited}");
    eventually("it is closed", async || {
        node.metrics()
            .await
            .get("unisono_closes_total{code=\"1013\"}")
            == 1.0
    })
    .await;
    let metrics = node.metrics().await;
    assert_eq!(metrics.get("unisono_slow_sockets_total"), 1.0);
    let status = |status| metrics.get(&format!("unisono_emits_total{{status=\"{status}\"}}"));
    assert_eq!(status("dropped") + status("not_found"), 1.0);
    drop(slow);
    eventually("nothing waits any more", async || {
        node.metrics().await.get("unisono_queue_bytes") == 0.0
    })
    .await;
}

#[tokio::test]
async fn limits_are_counted_by_what_they_limit() {
    let node = Node::alone(
        "[sockets]\nmessage_rate = 1\nmessage_burst = 2\nrate_warnings = 100\n\
         ping_rate = 1\nping_burst = 1\nhandshake_rate = 1\nhandshake_burst = 2",
    )
    .await;
    let mut client = node.client("/x").await;
    for _ in 0..5 {
        client.send("chat", json!(1)).await;
    }
    for _ in 0..3 {
        client.expect_error("rate_limited").await;
    }
    let mut pinging = node.client("/x").await;
    for _ in 0..3 {
        let ping = Message::Ping(Vec::new().into());
        pinging.send_frame(ping).await;
    }
    let mut wire = node.wire().await;
    wire.send(upgrade_request("/x")).await;
    assert_eq!(wire.response().await.status, 429);

    eventually("the pings were counted", async || {
        let metrics = node.metrics().await;
        let count = |what| metrics.get(&format!("unisono_rate_limited_total{{what=\"{what}\"}}"));
        let seen = ["message", "ping", "handshake"].map(count);
        (seen == [3.0, 1.0, 1.0]).then_some(()).ok_or(seen)
    })
    .await;
    let refused = "unisono_handshakes_total{outcome=\"429\"}";
    assert_eq!(node.metrics().await.get(refused), 1.0);
}

// === helpers ===

/// A node with all that some metrics are there for: a certificate, which has to outlive it, and a Redis, which is not there.
pub(super) async fn with_everything() -> (Node, Identity) {
    let identity = Identity::new(&Certificate::new());
    let node = Node::config("all").tls(&identity);
    let node = node.toml("[laravel]\nredis_url = \"redis://127.0.0.1:1\"");
    (node.start().await, identity)
}
