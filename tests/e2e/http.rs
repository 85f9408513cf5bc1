//! The HTTP API of one node: verbs, answers, refusals and who may ask.

use reqwest::Method;
use serde_json::{Value, json};
use unisono_tests::{Api, KEY as KEY_OF_ALL, Node, eventually, free_port};

const KEY: &str = "a-key-of-the-application-0123456789abcdef";

// === health and pages ===

#[tokio::test]
async fn health_tells_the_node_and_the_state_of_the_bus() {
    let node = Node::alone("").await;
    let a = node.client("/x").await;

    for path in ["/health/live", "/health/ready"] {
        let health = node.api().get(path).await.ok();
        assert_eq!(health["status"], "ok", "{path}");
        assert_eq!(health["node"], a.node, "{path}");
        assert!(health["bus"].is_string(), "{path}: {health}");
    }
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let node = Node::alone("").await;

    let response = node
        .api()
        .request(Method::GET, "/metrics")
        .send()
        .await
        .expect("an answer");

    assert_eq!(response.status(), 200);
    let content_type = response.headers()["content-type"]
        .to_str()
        .expect("ASCII")
        .to_owned();
    assert!(content_type.starts_with("text/plain"), "{content_type}");
    let text = response.text().await.expect("text");
    assert!(
        text.lines().any(|line| line.starts_with("# TYPE ")),
        "{text}"
    );
}

#[tokio::test]
async fn the_chat_page_is_there_in_open_mode_only() {
    let open = Node::alone("").await;
    let ruled = Node::alone("[[rooms]]\npattern = \"/x\"").await;

    let page = open.api().get("/").await;
    assert_eq!(page.status, 200);
    assert!(
        page.body
            .as_str()
            .is_some_and(|html| html.contains("<html")),
        "{}",
        page.body
    );
    assert_eq!(ruled.api().get("/").await.status, 404);
}

// === verbs ===

#[tokio::test]
async fn an_emit_tells_the_status_of_every_address() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let nobody = with_other_socket(&a.id);
    let elsewhere = with_other_node(&a.id);

    let to = [a.id.as_str(), &nobody, &elsewhere, "nonsense"];
    let body = json!({"to": to, "event": "hello", "data": {"n": 1}});
    let answer = node.api().post("emit", body).await.ok();

    let expected = json!({
        (a.id.as_str()): "delivered",
        (nobody.as_str()): "not_found",
        (elsewhere.as_str()): "node_gone",
        "nonsense": "invalid",
    });
    assert_eq!(answer["results"], expected);
    let hello = a.expect("hello").await;
    assert_eq!(
        (hello.data, hello.room, hello.from),
        (json!({"n": 1}), None, None)
    );
}

#[tokio::test]
async fn a_socket_named_twice_gets_one_copy() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    node.api()
        .post("emit", json!({"to": [a.id, a.id], "event": "hello"}))
        .await
        .ok();

    a.expect("hello").await;
    node.api().emit(&a.id, "fence", Value::Null).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn a_publication_spares_those_it_excepts() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    let body = json!({"room": "/x", "event": "hello", "except": [a.id], "confirm": true});
    assert_eq!(node.api().post("publish", body).await.ok()["sockets"], 1);
    node.api()
        .post("broadcast", json!({"event": "all", "except": [a.id]}))
        .await
        .ok();

    b.expect("hello").await;
    b.expect("all").await;
    node.api().emit(&a.id, "fence", Value::Null).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn a_socket_in_several_rooms_gets_one_copy() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    a.join("one").await;
    a.join("two").await;

    let body = json!({"rooms": ["one", "two", "/x"], "event": "hello", "confirm": true});
    assert_eq!(node.api().post("publish", body).await.ok()["sockets"], 1);

    a.expect("hello").await;
    node.api().emit(&a.id, "fence", Value::Null).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn a_node_without_nats_publishes_to_all_there_is() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    assert_eq!(
        node.api().publish("/x", "hello", json!(1)).await["status"],
        "sent"
    );
    let confirmed = node.api().publish_confirmed("/x", "hello", json!(2)).await;

    let nodes = json!({"reached": 1, "missing": []});
    assert_eq!(
        confirmed,
        json!({"status": "confirmed", "sockets": 1, "nodes": nodes})
    );
    a.expect("hello").await;
    a.expect("hello").await;
}

#[tokio::test]
async fn a_disconnect_closes_with_the_application_s_code() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;
    let mut c = node.client("/x").await;

    assert_eq!(
        node.api().disconnect(&a.id, 4001, "kicked").await,
        "delivered"
    );
    assert_eq!(a.expect_close().await, (4001, "kicked".to_owned()));

    node.api()
        .post("disconnect", json!({"to": b.id}))
        .await
        .ok();
    assert_eq!(b.expect_close().await.0, 1000);

    let body = json!({"room": "/x", "code": 4002, "reason": "closing time"});
    assert_eq!(
        node.api().post("disconnect", body).await.ok()["disconnected"],
        1
    );
    assert_eq!(c.expect_close().await, (4002, "closing time".to_owned()));
}

#[tokio::test]
async fn a_disconnect_may_only_use_codes_that_are_the_application_s() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    for code in [999, 1001, 1012, 3000, 3999, 4100, 4401] {
        let answer = node
            .api()
            .post("disconnect", json!({"to": a.id, "code": code}))
            .await;
        assert_eq!(answer.status, 400, "{code}: {}", answer.body);
    }
    let long = "x".repeat(124);
    let answer = node
        .api()
        .post("disconnect", json!({"to": a.id, "reason": long}))
        .await;
    assert_eq!(answer.status, 400, "{}", answer.body);

    node.api().emit(&a.id, "still here", Value::Null).await;
    a.expect("still here").await;
}

#[tokio::test]
async fn rooms_are_joined_and_left_from_outside() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    assert_eq!(node.api().join(&a.id, "vip").await, "delivered");
    assert_eq!(
        node.api().publish_confirmed("vip", "hello", json!(1)).await["sockets"],
        1
    );
    assert_eq!(a.expect("hello").await.room.as_deref(), Some("vip"));

    assert_eq!(node.api().leave(&a.id, "vip").await, "delivered");
    assert_eq!(
        node.api().publish_confirmed("vip", "hello", json!(2)).await["sockets"],
        0
    );
    assert_eq!(
        node.api().join(&with_other_socket(&a.id), "vip").await,
        "not_found"
    );
}

#[tokio::test]
async fn a_batch_is_done_in_order() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    let answers = node
        .api()
        .post(
            "batch",
            json!([
                {"emit": {"to": a.id, "event": "one"}},
                {"publish": {"room": "/x", "event": "two"}},
                {"broadcast": {"event": "three"}},
                {"emit": {"to": "nonsense", "event": "four"}},
                {"disconnect": {"to": a.id, "code": 4003}},
            ]),
        )
        .await
        .ok();

    assert_eq!(answers.as_array().map(Vec::len), Some(5), "{answers}");
    assert_eq!(answers[0]["results"][&a.id], "delivered");
    assert_eq!(answers[1]["status"], "sent");
    assert_eq!(answers[2]["status"], "sent");
    assert_eq!(answers[3]["results"]["nonsense"], "invalid");
    for event in ["one", "two", "three"] {
        a.expect(event).await;
    }
    assert_eq!(a.expect_close().await.0, 4003);
}

#[tokio::test]
async fn a_mistake_in_a_batch_is_told_in_its_place() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    let batch = json!([
        {"publish": {"room": "/x", "event": "one"}},
        {"publish": {"room": "/x", "event": "two", "tto": 1}},
        {"publish": {"room": "/x", "event": "three"}},
    ]);
    let answers = node.api().post("batch", batch).await.ok();

    assert_eq!(
        (&answers[0]["status"], &answers[2]["status"]),
        (&json!("sent"), &json!("sent"))
    );
    let message = answers[1]["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("tto"), "{answers}");
    a.expect("one").await;
    a.expect("three").await;
}

#[tokio::test]
async fn a_batch_holds_at_most_a_thousand() {
    let node = Node::alone("").await;
    let one = json!({"publish": {"room": "/x", "event": "e"}});

    let answers = node
        .api()
        .post("batch", vec![one.clone(); 1000].into())
        .await
        .ok();
    assert_eq!(answers.as_array().map(Vec::len), Some(1000));
    let answer = node.api().post("batch", vec![one; 1001].into()).await;
    assert!(matches!(answer.status, 400 | 413), "{}", answer.body);
}

// === questions ===

#[tokio::test]
async fn a_socket_can_be_looked_at() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    a.join("news").await;

    let seen = node
        .api()
        .get(&format!("/api/v1/sockets/{}", a.id))
        .await
        .ok();

    assert_eq!(seen["id"], a.id);
    assert_eq!(seen["node"], a.node);
    let mut rooms: Vec<&str> = seen["rooms"]
        .as_array()
        .expect("rooms")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    rooms.sort_unstable();
    assert_eq!(rooms, ["/x", "news"]);
    assert_eq!(seen["user"], Value::Null);
    assert!(!seen["connected_at"].is_null(), "{seen}");
    assert!(
        seen["remote_addr"]
            .as_str()
            .is_some_and(|ip| ip.starts_with("127.0.0.1")),
        "{seen}"
    );
    assert_eq!(seen["queued_bytes"], 0);
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_not_found() {
    let node = Node::alone("").await;
    let a = node.client("/x").await;

    for id in [
        with_other_socket(&a.id),
        with_other_node(&a.id),
        "nonsense".to_owned(),
    ] {
        let answer = node.api().get(&format!("/api/v1/sockets/{id}")).await;
        assert!(
            matches!(answer.refusal(), (404 | 400, _)),
            "{id}: {}",
            answer.body
        );
    }
}

#[tokio::test]
async fn rooms_are_listed_page_by_page() {
    let node = Node::alone("").await;
    let mut a = node.client("/lobby").await;
    let b = node.client("/lobby").await;
    for n in 0..5 {
        a.join(&format!("news-{n}")).await;
    }

    let all = node.api().get("/api/v1/rooms").await.ok();
    assert_eq!(all["rooms"].as_array().map(Vec::len), Some(6), "{all}");
    assert_eq!(all["cursor"], Value::Null);
    let lobby = node
        .api()
        .query("/api/v1/rooms", &[("prefix", "/lob")])
        .await
        .ok();
    assert_eq!(lobby["rooms"], json!([{"room": "/lobby", "sockets": 2}]));

    let mut names = vec![];
    let mut cursor: Option<String> = None;
    loop {
        let mut pairs = vec![("prefix", "news-"), ("limit", "2")];
        if let Some(cursor) = &cursor {
            pairs.push(("cursor", cursor));
        }
        let page = node.api().query("/api/v1/rooms", &pairs).await.ok();
        let rooms = page["rooms"].as_array().expect("a page of rooms");
        assert!(rooms.len() <= 2, "{page}");
        names.extend(
            rooms
                .iter()
                .filter_map(|room| room["room"].as_str().map(str::to_owned)),
        );
        match page["cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => break,
        }
    }
    assert_eq!(names, ["news-0", "news-1", "news-2", "news-3", "news-4"]);

    let members = node.api().members("/lobby").await;
    assert_eq!(members["count"], 2);
    let mut ids: Vec<&str> = members["sockets"]
        .as_array()
        .expect("sockets")
        .iter()
        .filter_map(|socket| socket["id"].as_str())
        .collect();
    ids.sort_unstable();
    let mut expected = [a.id.as_str(), &b.id];
    expected.sort_unstable();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn a_node_tells_of_itself() {
    let node = Node::alone("").await;
    let a = node.client("/x").await;
    let b = node.client("/y").await;

    let nodes = eventually("the counts are there", async || {
        let nodes = node.api().nodes().await;
        if nodes["nodes"][0]["rooms"] == 2 {
            Ok(nodes)
        } else {
            Err(nodes)
        }
    })
    .await;

    assert_eq!(nodes["self"], a.node);
    assert_eq!(a.node, b.node);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1));
    let this = &nodes["nodes"][0];
    assert_eq!(
        (&this["id"], &this["name"]),
        (&json!(a.node), &json!("alone"))
    );
    assert_eq!(this["sockets"], 2);
    assert!(
        this["version"].is_string() && this["state"].is_string(),
        "{this}"
    );
    assert!(!this["started_at"].is_null(), "{this}");
}

// === refusals ===

#[tokio::test]
async fn a_field_that_is_not_known_is_named() {
    let node = Node::alone("").await;
    for (verb, body) in [
        ("emit", json!({"to": "x", "event": "e", "tto": 1})),
        ("publish", json!({"room": "/x", "event": "e", "tto": 1})),
        ("broadcast", json!({"event": "e", "tto": 1})),
        ("disconnect", json!({"room": "/x", "tto": 1})),
        ("join", json!({"to": "x", "room": "/x", "tto": 1})),
        ("leave", json!({"to": "x", "room": "/x", "tto": 1})),
    ] {
        let answer = node.api().post(verb, body).await;
        assert_eq!(answer.status, 400, "{verb}: {}", answer.body);
        let message = answer.body["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("tto"), "{verb}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let node = Node::alone("").await;
    let long_name = "x".repeat(201);
    let mut wrong = vec![];
    for (verb, body) in [
        ("emit", json!({"event": "nobody to send it to"})),
        ("emit", json!({"to": "x"})),
        ("emit", json!({"to": "x", "event": "e", "text": "both"})),
        ("emit", json!({"to": "x", "text": "a", "binary": "AA=="})),
        ("emit", json!({"to": "x", "binary": "not base64!"})),
        ("emit", json!({"to": "x", "event": ""})),
        ("emit", json!({"to": "x", "event": long_name})),
        ("publish", json!({"event": "e"})),
        (
            "publish",
            json!({"room": "/a", "rooms": ["/b"], "event": "e"}),
        ),
        ("publish", json!({"room": "", "event": "e"})),
        ("publish", json!({"room": long_name, "event": "e"})),
        ("publish", json!({"room": "line\nfeed", "event": "e"})),
        ("disconnect", json!({})),
        ("join", json!({"to": "x"})),
        ("emit", json!([])),
        ("join", json!(["x", "/x"])),
        ("disconnect", json!(["x"])),
    ] {
        let answer = node.api().post(verb, body.clone()).await;
        if answer.status != 400 || !answer.body["error"]["code"].is_string() {
            wrong.push(format!("{verb} {body:.80}: {answer:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    for body in ["", "{", "null", "\"text\"", "[1,"] {
        let answer = node.api().post_text("publish", body).await;
        assert_eq!(answer.refusal().0, 400, "{body:?}: {}", answer.body);
    }
    assert_eq!(
        node.api().get("/api/v1/rooms/sockets").await.refusal().0,
        400
    );
    assert_eq!(
        node.api().get("/api/v1/rooms?limit=many").await.refusal().0,
        400
    );
    assert_eq!(node.api().get("/api/v1/nothing").await.refusal().0, 404);
    assert!(matches!(
        node.api().get("/api/v1/emit").await.status,
        404 | 405
    ));
}

// === who may ask ===

#[tokio::test]
async fn with_a_key_only_those_who_know_it_may_ask() {
    let node = Node::config("keyed").key(KEY).start().await;
    let publication = json!({"room": "/x", "event": "e"});

    assert_eq!(
        node.api().post("publish", publication.clone()).await.status,
        200
    );
    for key in [None, Some("wrong"), Some(&KEY[1..]), Some("")] {
        let other = node.api().with_key(key);
        assert_eq!(
            other.post("publish", publication.clone()).await.refusal().0,
            401,
            "{key:?}"
        );
        assert_eq!(other.get("/api/v1/nodes").await.refusal().0, 401, "{key:?}");
        assert_eq!(other.get("/health/live").await.status, 200, "{key:?}");
    }
}

/// Another socket of the same node and worker.
fn with_other_socket(id: &str) -> String {
    let last = if id.ends_with('0') { '1' } else { '0' };
    format!("{}{last}", &id[..id.len() - 1])
}

/// The same socket of another node.
fn with_other_node(id: &str) -> String {
    let first = if id.starts_with('0') { '1' } else { '0' };
    format!("{first}{}", &id[1..])
}

#[tokio::test]
async fn an_admin_listener_takes_the_metrics_away_from_the_public_one() {
    let admin_port = free_port();
    let toml = format!("[admin]\nlisten = \"127.0.0.1:{admin_port}\"");
    let node = Node::alone(&toml).await;
    let admin = Api::new(
        format!("http://127.0.0.1:{admin_port}"),
        Some(KEY_OF_ALL.to_owned()),
    );

    assert_eq!(admin.get("/metrics").await.status, 200);
    assert_eq!(admin.get("/health/live").await.status, 200);
    assert_eq!(admin.nodes().await["self"], node.id().await);
    assert_eq!(node.api().get("/metrics").await.status, 404);
    assert_eq!(node.api().get("/health/live").await.status, 200);
}

#[tokio::test]
async fn errors_of_the_http_server_read_like_those_of_the_api() {
    let node = Node::config("small")
        .arg("--set=api.body_bytes=1KiB")
        .start()
        .await;

    let large = json!({"room": "/x", "text": "x".repeat(2_000)});
    assert_eq!(
        node.api().post("publish", large).await.refusal(),
        (413, "too_large")
    );
    let method = node.api().get("/api/v1/publish").await;
    assert_eq!(method.refusal(), (405, "wrong_method"));
    assert_eq!(
        node.api().get("/api/v1/nope").await.refusal(),
        (404, "not_found")
    );
    let nobody = json!({"rooms": [], "text": "x"});
    assert_eq!(node.api().post("publish", nobody).await.status, 400);
}
