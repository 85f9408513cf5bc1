//! Who waits for whom, and for how long.

use tokio_tungstenite::tungstenite::Message;
use unisono_tests::{BEARER, is_held};

use super::*;

/// A node that pings like the shipped ones, only faster.
const QUICK_PINGS: &str = "[sockets]\nping_interval = \"500ms\"\npong_timeout = \"30s\"";

/// So many of them take longer than an nginx waits that waits for 5 seconds.
const PINGS: usize = 14;

#[tokio::test]
async fn pings_keep_an_idle_socket_open() {
    let node = Node::alone(QUICK_PINGS).await;
    let nginx = config(std::slice::from_ref(&node))
        .set("proxy_read_timeout 75s;", "proxy_read_timeout 5s;")
        .start()
        .await;
    let mut client = nginx.client("/x").await;
    let mut stream = nginx.stream("/x").await;
    for _ in 0..PINGS {
        assert!(matches!(client.next_frame().await, Message::Ping(_)));
    }
    for _ in 0..PINGS {
        stream.expect_comment().await;
    }
    client.publish("/x", "n", Value::Null).await;
    stream.expect("n").await;
}

#[tokio::test]
async fn a_socket_on_which_nothing_passes_is_cut() {
    let node = Node::alone("").await;
    let nginx = config(std::slice::from_ref(&node))
        .set("proxy_read_timeout 75s;", "proxy_read_timeout 5s;")
        .start()
        .await;
    let mut clock = Node::alone(QUICK_PINGS).await;
    let mut ticks = clock.client("/x").await;
    let mut idle = nginx.client("/x").await;
    let mut speaks = nginx.client("/y").await;
    // One that only speaks is not idle, though nobody answers it.
    for n in 0..PINGS {
        assert!(matches!(ticks.next_frame().await, Message::Ping(_)));
        speaks.send("n", json!(n)).await;
    }
    idle.expect_cut().await;
    speaks.publish("/y", "m", Value::Null).await;
    clock.kill();
}

#[tokio::test]
async fn a_client_that_has_stopped_reading_is_cut() {
    // The node itself would wait for longer.
    let patient = "[sockets]\nqueue_bytes = \"256MiB\"\nwrite_timeout = \"60s\"";
    let node = Node::config("node").toml(patient).start().await;
    let nginx = config(std::slice::from_ref(&node))
        .set("send_timeout 20s;", "send_timeout 1s;")
        .start()
        .await;
    let mut wire = Wire::narrow(nginx.port()).await;
    wire.upgrade("/x").await;
    let data = "x".repeat(1_000_000);
    for _ in 0..24 {
        node.api().publish("/x", "n", json!(data)).await;
    }
    eventually("nobody is there any more", async || {
        node.api().members("/x").await["count"] == 0
    })
    .await;
    // Nothing is kept for it.
    eventually("nginx has forgotten it", async || {
        !is_held(nginx.port(), wire.local_port())
    })
    .await;
}

#[tokio::test]
async fn a_request_that_drips_in_is_cut() {
    let node = Node::alone("").await;
    let nginx = config(std::slice::from_ref(&node))
        .set("client_header_timeout 10s;", "client_header_timeout 1s;")
        .set("client_body_timeout 10s;", "client_body_timeout 1s;")
        .start()
        .await;
    let head = "POST /api/v1/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n";
    let body = format!("{head}{BEARER}\r\n{{");
    for start in ["G", "GET /x HTTP/1.1\r\nHost: x\r\nX-", &body] {
        let mut wire = nginx.wire().await;
        wire.send(start).await;
        wire.expect_eof().await;
    }
}

#[tokio::test]
async fn a_node_that_takes_nothing_loses_its_clients() {
    let node = Node::alone("").await;
    let nginx = config(std::slice::from_ref(&node))
        .set("proxy_send_timeout 20s;", "proxy_send_timeout 1s;")
        .start()
        .await;
    let mut wire = nginx.wire().await;
    wire.upgrade("/x").await;
    wire.text().await;
    node.freeze();
    // More than all the buffers between here and there. What comes after the cut nginx takes, and throws away.
    let bytes = vec![b'x'; 1_000_000];
    for _ in 0..300 {
        if wire.try_send(&bytes).await.is_err() {
            break;
        }
    }
    wire.expect_eof().await;
    node.thaw();
}
