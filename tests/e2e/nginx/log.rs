//! What the logs tell, and what they keep to themselves.

use unisono_tests::stream_request;

use super::*;

/// Nobody else has this word.
const SECRET: &str = "s3cr3t";

#[tokio::test]
async fn no_token_gets_into_the_access_log() {
    let mut node = Node::config("node").key("a-long-key").start().await;
    let nginx = config(std::slice::from_ref(&node))
        .variant("limit")
        .set("unisono_open 1000;", "unisono_open 2;")
        .set("client_header_timeout 10s;", "client_header_timeout 500ms;")
        .start()
        .await;
    let path = format!("/x?token={SECRET}");
    let everywhere = format!(
        "Authorization: Bearer {SECRET}\r\nReferer: http://x/?token={SECRET}\r\n\
         Sec-WebSocket-Protocol: unisono.v1, bearer.{SECRET}\r\nCookie: unisono_token={SECRET}"
    );
    let upgrade = upgrade_with(&path, &everywhere);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{everywhere}\r\n\r\n");
    let mut open = vec![];
    for (status, request) in [
        (101, upgrade.clone()),
        (200, stream_request(&path, &format!("{everywhere}\r\n"))),
        (429, upgrade.clone()),
        (200, get(&format!("/health/live?token={SECRET}"))),
        (401, get(&format!("/api/v1/nodes?token={SECRET}"))),
        (404, get(&format!("/metrics?token={SECRET}"))),
        (400, get(&path).replace("Host: x", "Host: x\r\nHost: y")),
        (400, format!("GET {path} HTTP/1.1\r\n{everywhere}\r\n\r\n")),
        (505, format!("GET {path} HTTP/3.0\r\nHost: x\r\n\r\n")),
        (414, get(&format!("{path}{}", "x".repeat(17_000)))),
        (
            413,
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"),
        ),
    ] {
        let mut wire = nginx.wire().await;
        wire.try_send(request).await.ok();
        assert_eq!(wire.response().await.status, status);
        open.push(wire);
    }
    // One who never ends its head, and one whose node is dead.
    let mut drips = nginx.wire().await;
    drips.send(format!("GET {path} HTTP/1.1\r\nHost:")).await;
    drips.expect_eof().await;
    node.kill();
    drop(open);
    // A line is written when its request has ended, and does not count against the limit any more.
    eventually("the socket and the stream have ended", async || {
        let log = nginx.access_log();
        log.contains("\"GET /x\" 101 ") && log.contains("\"GET /x\" 200 ")
    })
    .await;
    let refused = answer(nginx.wire().await, &upgrade).await;
    assert_eq!(refused.status, 502);

    // Lines come when a request ends: the sockets' and the stream's, too.
    let statuses = [
        101, 200, 429, 200, 401, 404, 400, 400, 505, 414, 413, 408, 502,
    ];
    let log = eventually("the log tells of all", async || {
        let log = nginx.access_log();
        if log.lines().count() == statuses.len() {
            Ok(log)
        } else {
            Err(log)
        }
    })
    .await;
    for status in statuses {
        assert!(log.contains(&format!("\" {status} ")), "{status}: {log}");
    }
    assert!(log.contains("\"GET /x\" 101 "), "{log}");
    assert!(!log.contains(SECRET), "{log}");
    // As its comment says.
    assert!(nginx.error_log().contains(SECRET));
}
