//! What nginx tells the nodes of a client, and what it passes on.

use tokio::io::AsyncWriteExt;
use unisono_tests::{Endpoint, Reply, Request};

use super::*;

/// A `POST` with these header lines, each with its line end, as an application behind this nginx gets it.
async fn arrives(nginx: NginxConfig, endpoint: &Endpoint, client: [u8; 4], lines: &str) -> Request {
    let nginx = nginx.start().await;
    let wire = Wire::connect_from(client.into(), nginx.port()).await;
    let request = format!(
        "POST /x HTTP/1.1\r\nHost: chat.example:8443\r\n{lines}Content-Length: 2\r\n\r\n{{}}"
    );
    assert_eq!(answer(wire, &request).await.status, 200);
    endpoint.requests().pop().expect("a request")
}

async fn endpoint() -> (Endpoint, NginxConfig) {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let config = Nginx::config([endpoint.port()]);
    (endpoint, config)
}

#[tokio::test]
async fn what_a_client_claims_of_proxies_ends_here() {
    let (endpoint, config) = endpoint().await;
    let lies = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: https\r\n\
                X-Forwarded-Host: evil.example\r\nForwarded: for=6.6.6.6;proto=https\r\n";
    let request = arrives(config, &endpoint, [127, 0, 0, 2], lies).await;
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    assert_eq!(header("x-forwarded-for"), Some("127.0.0.2"));
    assert_eq!(header("x-forwarded-proto"), Some("http"));
    assert_eq!(header("x-forwarded-host"), None);
    assert_eq!(header("forwarded"), None);
    // With its port.
    assert_eq!(header("host"), Some("chat.example:8443"));
    assert_eq!(request.line, "POST /x HTTP/1.1");
}

#[tokio::test]
async fn only_websocket_passes_as_an_upgrade() {
    for (upgrade, passed) in [
        ("websocket", Some("websocket")),
        ("WebSocket", Some("websocket")),
        ("h2c", None),
        ("TLS/1.0", None),
        ("websocket, h2c", None),
        ("h2c-websocket", None),
    ] {
        let (endpoint, config) = endpoint().await;
        let lines = format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\nHTTP2-Settings: AAMAAABk\r\n"
        );
        let request = arrives(config, &endpoint, [127, 0, 0, 1], &lines).await;
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        assert_eq!(header("upgrade"), passed, "{upgrade}");
        assert_eq!(header("connection"), passed.map(|_| "upgrade"), "{upgrade}");
    }
}

#[tokio::test]
async fn behind_another_proxy_its_word_is_taken_and_nobody_else_s() {
    for (from, expected) in [
        ([127, 0, 9, 1], "203.0.113.9"),
        ([127, 0, 8, 1], "127.0.8.1"),
    ] {
        let (endpoint, config) = endpoint().await;
        let config = config.variant("realip").set("10.0.0.0/8", "127.0.9.0/24");
        // The client's own lie, the client, and a proxy between.
        let lines = "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 127.0.9.2\r\n";
        let request = arrives(config, &endpoint, from, lines).await;
        assert_eq!(request.headers["x-forwarded-for"], expected);
    }
}

#[tokio::test]
async fn the_address_behind_another_proxy_is_what_is_logged_and_limited() {
    let node = Node::alone("").await;
    let nginx = config(std::slice::from_ref(&node))
        .variant("realip")
        .set("10.0.0.0/8", "127.0.0.0/8")
        .variant("limit")
        .set("unisono_open 1000;", "unisono_open 1;")
        .start()
        .await;
    let mut open = vec![];
    for (address, expected) in [
        ("203.0.113.9", 101),
        ("203.0.113.9", 429),
        ("203.0.113.10", 101),
    ] {
        let request = upgrade_with("/x", &format!("X-Forwarded-For: {address}"));
        let mut wire = nginx.wire().await;
        wire.send(request).await;
        assert_eq!(wire.response().await.status, expected, "{address}");
        open.push(wire);
    }
    drop(open);
    eventually("the log tells of all three", async || {
        let log = nginx.access_log();
        let lines = |start: &str| log.lines().filter(|line| line.starts_with(start)).count();
        lines("203.0.113.9 ") == 2 && lines("203.0.113.10 ") == 1
    })
    .await;
}

#[tokio::test]
async fn a_token_of_the_largest_size_passes_in_a_header_and_in_a_url() {
    let node = Node::alone("[auth]\nmode = \"none\"").await;
    let nginx = config(std::slice::from_ref(&node)).start().await;
    let token = "x".repeat(8192);
    for request in [
        upgrade_with("/x", &format!("Authorization: Bearer {token}")),
        upgrade_request(&format!("/x?token={token}")),
    ] {
        assert_eq!(answer(nginx.wire().await, &request).await.status, 101);
    }
    // A head that is too long for a node is refused by it, or here.
    let request = upgrade_with("/x", &format!("X: {}", "x".repeat(16_300)));
    assert_eq!(answer(nginx.wire().await, &request).await.status, 431);
    let request = upgrade_with("/x", &format!("X: {}", "x".repeat(17_000)));
    assert_eq!(answer(nginx.wire().await, &request).await.status, 400);
}

#[tokio::test]
async fn the_largest_body_passes_and_none_that_is_larger() {
    let node = Node::config("node").key("a-long-key").start().await;
    let nginx = config(std::slice::from_ref(&node)).start().await;
    let api = nginx.api().with_key(Some("a-long-key"));
    let body = |length: usize| {
        let rest = r#"{"room":"/x","event":"n","data":""}"#;
        let data = "x".repeat(length - rest.len());
        format!(r#"{{"room":"/x","event":"n","data":"{data}"}}"#)
    };
    let largest = 1 << 20;
    assert_eq!(
        node.api().post_text("publish", &body(largest)).await.status,
        200
    );
    assert_eq!(
        node.api()
            .post_text("publish", &body(largest + 1))
            .await
            .status,
        413
    );
    assert_eq!(api.post_text("publish", &body(largest)).await.status, 200);
    assert_eq!(
        api.post_text("publish", &body(largest + 1)).await.status,
        413
    );
}

#[tokio::test]
async fn what_an_application_streams_arrives_as_it_is_sent() {
    let application = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = application.local_addr().expect("a bound socket").port();
    let nginx = Nginx::config([port]).start().await;
    let mut wire = nginx.wire().await;
    wire.send("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (mut stream, _) = application.accept().await.expect("nginx comes");
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("a head");
    for part in ["5\r\nfirst\r\n", "6\r\nsecond\r\n"] {
        stream.write_all(part.as_bytes()).await.expect("a chunk");
        // Each before the next is sent.
        wire.until(part).await;
    }
}

#[tokio::test]
async fn what_a_client_does_not_take_goes_to_no_file() {
    let application = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = application.local_addr().expect("a bound socket").port();
    let nginx = Nginx::config([port]).main("error_log stderr warn;\n");
    let nginx = nginx.start().await;
    let mut wire = Wire::narrow(nginx.port()).await;
    wire.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let (mut stream, _) = application.accept().await.expect("nginx comes");
    let length = 8 << 20;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
    let body = vec![b'x'; length];
    let write = async {
        stream.write_all(head.as_bytes()).await.expect("a head");
        stream.write_all(&body).await.expect("a body");
    };
    let (response, ()) = tokio::join!(wire.response(), write);
    assert_eq!(response.body.len(), length);
    let log = nginx.error_log();
    assert!(!log.contains("temporary file"), "{log}");
}
