//! The HTTP API of one node: verbs, answers, refusals and who may ask.

use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};
use unisono_tests::{Api, Certificate, Identity, KEY as KEY_OF_ALL, Node, eventually, free_port};

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

#[tokio::test]
async fn a_head_is_answered_as_a_get_without_its_body() {
    let node = Node::config("alone").key(KEY).start().await;
    let socket = node.client("/x").await;
    let socket = format!("/api/v1/sockets/{}", socket.id);
    for path in [
        "/",
        "/health/live",
        "/health/ready",
        "/metrics",
        "/api/v1/nodes",
        "/api/v1/rooms?limit=1",
        "/api/v1/rooms/sockets?room=/x",
        &socket,
        "/api/v1/tail",
        "/api/v1/nope",
        "/api/v1/publish",
    ] {
        let ask = async |method| {
            let answer = node.api().request(method, path).send();
            answer.await.expect("an answer")
        };
        let get = ask(Method::GET).await;
        let head = ask(Method::HEAD).await;
        assert_eq!(head.status(), get.status(), "{path}");
        let named = |answer: &reqwest::Response, name| answer.headers().get(name).cloned();
        for name in ["content-type", "cache-control"] {
            assert_eq!(named(&head, name), named(&get, name), "{path}: {name}");
        }
        assert_eq!(head.bytes().await.expect("an end").len(), 0, "{path}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_refused_with_what_to_do() {
    let node = Node::alone("").await;
    for (coding, status) in [
        ("gzip", 415),
        ("identity, br", 415),
        ("identity", 200),
        ("", 200),
    ] {
        let publish = node.api().request(Method::POST, "/api/v1/publish");
        let publish = publish.header("content-encoding", coding);
        let body = r#"{"room":"/x","text":"hi"}"#;
        let answer = publish.body(body).send().await.expect("an answer");
        assert_eq!(answer.status(), status, "{coding}");
        if status == 415 {
            assert_eq!(answer.headers()["accept-encoding"], "identity");
            let error: Value = answer.json().await.expect("JSON");
            assert_eq!(error["error"]["code"], "unsupported_encoding");
            let message = error["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains(coding), "{message}");
        }
    }
}

// === answers before the end of a request ===

#[tokio::test]
async fn clients_that_still_write_read_the_answer() {
    let node = Node::alone("").await;
    let script = format!(
        r#"
import urllib.error, urllib.request, collections
seen = collections.Counter()
for path, method, key in [
        ("publish", "POST", "{KEY_OF_ALL}"), ("nope", "POST", "{KEY_OF_ALL}"),
        ("nodes", "PUT", "{KEY_OF_ALL}"), ("emit", "POST", "of-somebody-else")]:
    for _ in range(40):
        request = urllib.request.Request(
            "http://127.0.0.1:{}/api/v1/" + path, data=b"x" * 1200000, method=method,
            headers=dict(Authorization="Bearer " + key))
        try:
            seen[path, urllib.request.urlopen(request).status] += 1
        except urllib.error.HTTPError as error:
            error.read()
            seen[path, error.code] += 1
        except Exception as error:
            seen[path, repr(error)] += 1
print(sorted(seen.items()))
"#,
        node.port()
    );

    let python = move || Command::new("python3").args(["-c", &script]).output();
    let output = tokio::task::spawn_blocking(python).await;
    let output = output.expect("no panic").expect("python3 runs");

    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected =
        "[(('emit', 401), 40), (('nodes', 405), 40), (('nope', 404), 40), (('publish', 413), 40)]";
    assert_eq!(said.trim(), expected);
}

#[tokio::test]
async fn clients_that_still_write_inside_of_tls_read_the_answer() {
    let identity = Identity::new(&Certificate::new());
    let node = Node::config("secret").tls(&identity).start().await;
    for _ in 0..10 {
        let publish = node.api().request(Method::POST, "/api/v1/publish");
        let answer = publish.body(vec![b'x'; 1_200_000]).send().await;
        assert_eq!(answer.expect("an answer").status(), 413);
    }
}

#[tokio::test]
async fn a_client_that_writes_for_ever_is_cut() {
    let node = Node::config("bounded")
        .arg("--set=api.linger_bytes=4MiB")
        .start()
        .await;
    let length = "Content-Length: 1000000000000";
    let chunked = "Transfer-Encoding: chunked";
    for (header, piece) in [(length, vec![b'x'; 0x10000]), (chunked, chunk(0x10000))] {
        let mut wire = node.wire().await;
        let head = format!("POST /nowhere HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n");
        wire.send(head).await;
        assert_eq!(wire.response().await.status, 404, "{header}");

        let mut sent = 0;
        while wire.try_send(&piece).await.is_ok() {
            sent += piece.len();
            // What the kernel keeps on both sides is on top of it.
            assert!(sent < 64 << 20, "{header}: {sent} bytes are taken");
        }
    }
}

fn chunk(len: usize) -> Vec<u8> {
    let head = format!("{len:x}\r\n").into_bytes();
    [head, vec![b'x'; len], b"\r\n".to_vec()].concat()
}

#[tokio::test]
async fn a_connection_whose_body_was_read_is_kept() {
    let node = Node::config("alone").key(KEY).start().await;
    let mut wire = node.wire().await;
    let body = r#"{"nonsense":1}"#;
    let refused = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for _ in 0..3 {
        wire.send(&refused).await;
        let response = wire.response().await;
        assert_eq!(response.status, 400, "{response:?}");
        assert_eq!(response.header("connection"), None, "{response:?}");
    }
}
