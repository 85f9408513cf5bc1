//! The door: which requests become a socket, which an HTTP answer, and which neither.

use serde_json::Value;
use unisono_tests::{
    BEARER, Node, Opcode, Response, eventually, frame, stream_request, upgrade_request,
};

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

const KEY_OF_API: &str = "a-key-of-the-application-0123456789abcdef";

/// A request line and headers, with the line ends of HTTP.
fn request(line: &str, headers: &[&str]) -> String {
    let mut text = format!("{line}\r\n");
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

async fn ask(node: &Node, request: &str) -> Response {
    let mut wire = node.wire().await;
    wire.send(request).await;
    wire.response().await
}

#[tokio::test]
async fn what_is_not_a_valid_upgrade_is_refused_before_the_101() {
    let node = Node::alone("").await;
    let get = "GET /x HTTP/1.1";
    let (host, connection, upgrade) = (
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
    );
    let (version, key) = (
        "Sec-WebSocket-Version: 13",
        &format!("Sec-WebSocket-Key: {KEY}"),
    );
    let short_key = "Sec-WebSocket-Key: x";
    let long_key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZTEyMw==";

    for (what, line, headers) in [
        (
            "a key that is no key",
            get,
            vec![host, connection, upgrade, version, short_key],
        ),
        (
            "a key of 19 bytes",
            get,
            vec![host, connection, upgrade, version, long_key],
        ),
        ("no key", get, vec![host, connection, upgrade, version]),
        ("no host", get, vec![connection, upgrade, version, key]),
        (
            "two hosts",
            get,
            vec![host, "Host: b", connection, upgrade, version, key],
        ),
    ] {
        let response = ask(&node, &request(line, &headers)).await;
        assert_eq!(response.status, 400, "{what}: {response:?}");
    }

    let other_upgrade = "Upgrade: notwebsocketreally";
    for (what, line, headers) in [
        (
            "another upgrade",
            get,
            vec![host, connection, other_upgrade, version, key],
        ),
        ("no upgrade", get, vec![host, connection, version, key]),
        ("no connection", get, vec![host, upgrade, version, key]),
        (
            "another method",
            "POST /x HTTP/1.1",
            vec![host, connection, upgrade, version, key, "Content-Length: 0"],
        ),
    ] {
        let response = ask(&node, &request(line, &headers)).await;
        assert!(
            (400..500).contains(&response.status),
            "{what}: {response:?}"
        );
    }
}

#[tokio::test]
async fn another_version_is_told_which_one_is_spoken() {
    let node = Node::alone("").await;
    for version in ["8", "99", "0", "x"] {
        let request = upgrade_request("/x").replace("Version: 13", &format!("Version: {version}"));
        let response = ask(&node, &request).await;
        assert_eq!(response.status, 426, "version {version}: {response:?}");
        assert_eq!(
            response.header("sec-websocket-version"),
            Some("13"),
            "version {version}"
        );
    }
}

#[tokio::test]
async fn refusals_have_an_error_body() {
    let node = Node::alone("").await;
    let bad_key = upgrade_request("/x").replace(KEY, "x");
    let bad_version = upgrade_request("/x").replace("Version: 13", "Version: 8");

    for request in [bad_key, bad_version] {
        let response = ask(&node, &request).await;
        let body: Value = serde_json::from_str(&response.body).expect("a JSON body");
        assert!(body["error"]["code"].is_string(), "{body}");
        assert!(body["error"]["message"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn what_browsers_and_proxies_send_is_accepted() {
    let node = Node::alone("").await;
    let plain = upgrade_request("/x");
    for (what, request) in [
        ("the example of the RFC", plain.clone()),
        (
            "Firefox",
            plain.replace("Connection: Upgrade", "Connection: keep-alive, Upgrade"),
        ),
        (
            "other case",
            plain.replace("Upgrade: websocket", "upgrade: WebSocket"),
        ),
        (
            "HTTP/1.0, as nginx speaks by default",
            plain.replace("HTTP/1.1", "HTTP/1.0"),
        ),
        ("an extension offered that nobody knows", {
            let offer = "Sec-WebSocket-Extensions: x-webkit-deflate-frame\r\n\r\n";
            format!("{}{offer}", &plain[..plain.len() - 2])
        }),
    ] {
        let response = ask(&node, &request).await;
        assert_eq!(
            (response.status, response.version.as_str()),
            (101, "HTTP/1.1"),
            "{what}"
        );
        let accept = response.header("sec-websocket-accept");
        assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{what}");
        let upgrade = response.header("upgrade").unwrap_or_default();
        assert!(
            upgrade.eq_ignore_ascii_case("websocket"),
            "{what}: {response:?}"
        );
        let connection = response.header("connection").unwrap_or_default();
        assert!(
            connection.eq_ignore_ascii_case("upgrade"),
            "{what}: {response:?}"
        );
        assert_eq!(response.header("sec-websocket-extensions"), None, "{what}");
    }
}

#[tokio::test]
async fn an_upgrade_header_that_a_proxy_put_on_a_plain_request_does_no_harm() {
    let node = Node::alone("").await;
    let headers = [
        "Host: 127.0.0.1",
        "Connection: upgrade",
        "Upgrade: websocket",
    ];

    let response = ask(&node, &request("GET /health/live HTTP/1.1", &headers)).await;

    assert_eq!(response.status, 200, "{response:?}");
}

#[tokio::test]
async fn a_connection_may_be_upgraded_after_a_plain_request() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;

    for _ in 0..2 {
        wire.send(request("GET /health/live HTTP/1.1", &["Host: 127.0.0.1"]))
            .await;
        assert_eq!(wire.response().await.status, 200);
    }
    wire.upgrade("/x").await;

    assert!(wire.text().await.contains("unisono:open"));
    wire.send(frame(Opcode::Ping, b"alive")).await;
    assert_eq!(wire.frame().await.payload, b"alive");
}

#[tokio::test]
async fn frames_may_come_with_a_later_upgrade() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;
    let upgrade = upgrade_request("/x");
    let (before, after) = upgrade.split_at(40);

    // The first half of the head comes with the request before it.
    let first = request("GET /health/live HTTP/1.1", &["Host: 127.0.0.1"]);
    wire.send(format!("{first}{before}")).await;
    assert_eq!(wire.response().await.status, 200);
    wire.send([after.as_bytes(), &frame(Opcode::Ping, b"early")].concat())
        .await;

    assert_eq!(wire.response().await.status, 101);
    let mut seen = vec![wire.frame().await, wire.frame().await];
    seen.retain(|frame| frame.opcode == Opcode::Pong as u8);
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].payload, b"early");
}

/// Requests, the head of each answer as it begins, and whether a body comes with it.
type Before<'a> = (&'a str, Vec<String>, &'a [&'a str]);

#[tokio::test]
async fn an_upgrade_that_does_not_wait_for_answers_is_refused_in_its_turn() {
    let node = Node::config("alone").key(KEY_OF_API).start().await;
    let mut member = node.client("/room").await;
    let host = "Host: 127.0.0.1";
    let key = &format!("Authorization: Bearer {KEY_OF_API}");
    let body = r#"{"room":"/room","event":"said","data":1}"#;
    let length = &format!("Content-Length: {}", body.len());
    let publish = "POST /api/v1/publish HTTP/1.1";
    let get = request("GET /health/live HTTP/1.1", &[host]);
    let head = request("HEAD /health/live HTTP/1.1", &[host]);
    let slow = request("GET /metrics HTTP/1.1", &[host, key]);
    let post = request(publish, &[host, key, length]) + body;
    let chunked = request(publish, &[host, key, "Transfer-Encoding: chunked"])
        + &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let expecting = request(publish, &[host, key, length, "Expect: 100-continue"]) + body;
    let unknown = request("GET /api/v1/nope HTTP/1.1", &[host, key]);

    let table: [Before<'_>; 8] = [
        ("a quick answer", vec![get.clone()], &["200"]),
        ("a slow answer", vec![slow], &["200"]),
        ("a body", vec![post.clone()], &["200"]),
        ("a chunked body", vec![chunked], &["200"]),
        ("an Expect", vec![expecting], &["100", "200"]),
        ("a HEAD", vec![head], &["200 HEAD"]),
        ("an error", vec![unknown], &["404"]),
        ("several", vec![post, get.clone(), get], &["200"; 3]),
    ];
    for (what, before, answers) in table {
        let publishes = before.iter().any(|request| request.contains("publish"));
        let mut bytes = before.concat().into_bytes();
        bytes.extend(upgrade_request("/x").bytes());
        bytes.extend(frame(Opcode::Ping, b"early"));
        let mut wire = node.wire().await;

        wire.send(bytes).await;

        for expected in answers {
            let (status, without_body) = match expected.strip_suffix(" HEAD") {
                Some(status) => (status, true),
                None => (*expected, false),
            };
            let found = match without_body {
                true => wire.until("\r\n\r\n").await,
                false => format!("HTTP/1.1 {}", wire.response().await.status),
            };
            let expected = format!("HTTP/1.1 {status}");
            assert!(found.starts_with(&expected), "{what}: {found}");
        }
        let refused = wire.response().await;
        assert_eq!(refused.status, 400, "{what}: {refused:?}");
        assert!(refused.body.contains("waits for the answers"), "{what}");
        wire.expect_eof().await;
        if publishes {
            assert_eq!(member.expect("said").await.data, 1, "{what}");
        }
    }
}

#[tokio::test]
async fn what_comes_behind_an_event_stream_is_thrown_away() {
    let node = Node::alone("").await;
    for behind in [
        upgrade_request("/x") + "frames",
        stream_request("/other", ""),
    ] {
        let mut wire = node.wire().await;
        wire.send(stream_request("/room", "") + &behind).await;
        assert_eq!(wire.response().await.status, 200);
        wire.until("unisono:open").await;

        node.api().publish("/room", "said", Value::from(1)).await;
        wire.until("said").await;
        let all = serde_json::json!({"room": "/room"});
        node.api().post("disconnect", all).await.ok();

        let rest = String::from_utf8_lossy(&wire.rest().await).into_owned();
        assert!(!rest.contains("HTTP/1.1"), "{rest}");
        drop(wire);
        let metrics = node.metrics().await;
        assert_eq!(metrics.sum("unisono_sockets"), 0.0);
    }
}

#[tokio::test]
async fn what_comes_behind_the_last_request_is_not_done() {
    let mut node = Node::config("alone").key(KEY_OF_API).start().await;
    let mut member = node.client("/room").await;
    let key = &format!("Authorization: Bearer {KEY_OF_API}");
    let body = r#"{"room":"/room","event":"said","data":1}"#;
    let length = &format!("Content-Length: {}", body.len());
    let last = request(
        "GET /health/live HTTP/1.1",
        &["Host: a", "Connection: close"],
    );
    let publish = request("POST /api/v1/publish HTTP/1.1", &["Host: a", key, length]) + body;

    for behind in [publish, upgrade_request("/room") + "frames"] {
        let mut wire = node.wire().await;
        wire.send(last.clone() + &behind).await;

        let response = wire.response().await;
        assert_eq!(response.status, 200);
        wire.expect_eof().await;
    }

    node.api().publish("/room", "fence", Value::Null).await;
    member.expect("fence").await;
    let log = node.process().stderr();
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn an_upgrade_with_a_body_is_refused() {
    let node = Node::alone("").await;
    for header in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let upgrade = upgrade_request("/x");
        let head = upgrade.strip_suffix("\r\n").expect("an empty line");
        let response = ask(&node, &format!("{head}{header}")).await;
        assert_eq!(response.status, 400, "{header}: {response:?}");
    }
}

#[tokio::test]
async fn a_refused_upgrade_is_told_so_whatever_comes_behind_it() {
    let node = Node::alone("[[rooms]]\npattern = \"/x\"").await;
    let mut wire = node.wire().await;
    let mut bytes = upgrade_request("/nowhere").into_bytes();
    bytes.resize(4 << 20, b'x');

    // It takes all of that, and then reads.
    wire.send(bytes).await;

    assert_eq!(wire.response().await.status, 404);
    wire.expect_eof().await;
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;

    for byte in upgrade_request("/x").as_bytes() {
        wire.send([*byte]).await;
    }

    assert_eq!(wire.response().await.status, 101);
    assert!(wire.text().await.contains("unisono:open"));
}

#[tokio::test]
async fn frames_may_come_with_the_head() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;
    let mut bytes = upgrade_request("/x").into_bytes();
    bytes.extend(frame(
        Opcode::Text,
        br#"{"event":"unisono:ping","id":"early"}"#,
    ));
    bytes.extend(frame(Opcode::Ping, b"early"));

    wire.send(bytes).await;

    assert_eq!(wire.response().await.status, 101);
    let mut seen = vec![];
    while seen.len() < 3 {
        let payload = wire.frame().await.payload;
        seen.push(String::from_utf8(payload).expect("all of it is UTF-8"));
    }
    assert!(
        seen.iter().any(|text| text.contains("unisono:open")),
        "{seen:?}"
    );
    assert!(
        seen.iter().any(|text| text.contains("unisono:ack")),
        "{seen:?}"
    );
    assert!(seen.iter().any(|text| text == "early"), "{seen:?}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let node = Node::alone("").await;
    let long_path = upgrade_request(&format!("/{}", "x".repeat(300 * 1024)));
    let padding = format!("X-Padding: {}\r\n\r\n", "x".repeat(300 * 1024));
    let plain = upgrade_request("/x");
    let long_header = format!("{}{padding}", &plain[..plain.len() - 2]);

    for request in [long_path, long_header] {
        let mut wire = node.wire().await;
        // The server need not read it to the end.
        let _ = wire.try_send(request).await;
        let answer = String::from_utf8_lossy(&wire.rest().await).into_owned();
        let status = answer.split(' ').nth(1);
        assert!(matches!(status, Some("400" | "414" | "431")), "{answer}");
    }
    node.client("/x")
        .await
        .ack("unisono:ping", Value::Null)
        .await;
}

#[tokio::test]
async fn a_path_that_is_no_room_name_is_refused() {
    let node = Node::alone("").await;
    for path in [
        "/%ff",
        "/%00",
        "/a%0Ab",
        "/%",
        &format!("/{}", "x".repeat(200)),
    ] {
        let response = ask(&node, &upgrade_request(path)).await;
        assert_eq!(response.status, 400, "{path}: {response:?}");
    }
    let longest = format!("/{}", "x".repeat(199));
    assert_eq!(ask(&node, &upgrade_request(&longest)).await.status, 101);
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;

    wire.send("GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\n").await;

    let answer = String::from_utf8_lossy(&wire.rest().await).into_owned();
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_full_node_says_when_to_come_back() {
    let node = Node::alone("[sockets]\nmax = 2").await;
    let a = node.client("/x").await;
    let mut b = node.client("/x").await;

    let response = ask(&node, &upgrade_request("/x")).await;
    assert_eq!(response.status, 503, "{response:?}");
    let retry_after = response
        .header("retry-after")
        .and_then(|seconds| seconds.parse::<u32>().ok());
    assert!(retry_after.is_some(), "{response:?}");
    b.ack("unisono:ping", Value::Null).await;

    drop(a);
    eventually("a place is free again", async || {
        let response = ask(&node, &upgrade_request("/x")).await;
        if response.status == 101 {
            Ok(())
        } else {
            Err(response)
        }
    })
    .await;
}

#[tokio::test]
async fn a_connect_is_refused() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;

    wire.send("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n")
        .await;

    assert_eq!(wire.response().await.status, 405);
    wire.expect_eof().await;
}

#[tokio::test]
async fn a_head_with_bare_line_feeds_is_refused() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;

    wire.send("POST / HTTP/1.1\nHost: a\n\nGET / HTTP/1.1\r\n\r\n")
        .await;

    assert_eq!(wire.response().await.status, 400);
    wire.expect_eof().await;
}

#[tokio::test]
async fn more_connections_than_are_allowed_are_told_so() {
    let node = Node::alone("[sockets]\nconnections = 3").await;
    let mut served = Vec::new();
    let refused = loop {
        assert!(served.len() <= 3, "the harness may hold some of the three");
        let mut wire = node.wire().await;
        wire.send("GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        match wire.response().await {
            // It stays, and takes a place.
            response if response.status == 200 => served.push(wire),
            response => break response,
        }
    };

    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let patience = "--set=api.idle_timeout=200ms";
    let node = Node::config("impatient").arg(patience).start().await;
    let mut wire = node.wire().await;

    let head = "POST /api/v1/emit HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n";
    wire.send(format!("{head}{BEARER}\r\n{{")).await;

    assert_eq!(wire.response().await.status, 408);
}

#[tokio::test]
async fn a_later_request_that_stands_still_is_not_waited_for() {
    let node = Node::alone("[sockets]\nhead_timeout = \"300ms\"").await;
    let chunked = "POST /nowhere HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let linger = "--set=api.linger_time=300ms";
    let lingering = Node::config("lingering").arg(linger).start().await;
    for (node, request, rest, status) in [
        (
            &node,
            "GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HT",
            200,
        ),
        (&lingering, chunked, "5\r\nhe", 404),
    ] {
        let mut wire = node.wire().await;
        wire.send(request).await;
        assert_eq!(wire.response().await.status, status);
        wire.send(rest).await;
        wire.expect_eof().await;
    }
}
