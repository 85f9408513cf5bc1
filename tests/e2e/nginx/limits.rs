//! The variant with limits for each address.

use unisono_tests::stream_request;

use super::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

async fn comes(nginx: &Nginx, from: Ipv4Addr, request: &str) -> (u16, Wire) {
    let mut wire = Wire::connect_from(from, nginx.port()).await;
    wire.send(request).await;
    let status = wire.response().await.status;
    (status, wire)
}

#[tokio::test]
async fn an_address_has_so_many_sockets_and_streams() {
    let sandbox = Sandbox::start(3).await;
    let nginx = config(&sandbox.nodes)
        .variant("limit")
        .set("unisono_open 1000;", "unisono_open 4;")
        .start()
        .await;
    let (upgrade, stream) = (upgrade_request("/x?token=x"), stream_request("/x", ""));
    let mut open = vec![];
    for request in [&upgrade, &stream, &upgrade, &stream] {
        let (status, wire) = comes(&nginx, CLIENT, request).await;
        assert!([101, 200].contains(&status), "{status}");
        open.push(wire);
    }
    for request in [&upgrade, &stream] {
        assert_eq!(comes(&nginx, CLIENT, request).await.0, 429);
    }
    // Others are not concerned, nor is plain HTTP.
    open.push(comes(&nginx, ANOTHER, &upgrade).await.1);
    let plain = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(comes(&nginx, CLIENT, plain).await.0, 200);

    drop(open);
    eventually("who has left may come again", async || {
        comes(&nginx, CLIENT, &upgrade).await.0 == 101
    })
    .await;
    assert!(
        !nginx.error_log().contains("token"),
        "{}",
        nginx.error_log()
    );
}

#[tokio::test]
async fn an_address_comes_so_fast_and_no_faster() {
    let sandbox = Sandbox::start(1).await;
    let nginx = config(&sandbox.nodes)
        .variant("limit")
        .set("rate=50r/s", "rate=1r/m")
        .set("burst=1000 ", "burst=5 ")
        .start()
        .await;
    let upgrade = upgrade_request("/x?token=x");
    let mut welcome = 0;
    for _ in 0..10 {
        match comes(&nginx, CLIENT, &upgrade).await.0 {
            101 => welcome += 1,
            status => assert_eq!(status, 429),
        }
    }
    assert_eq!(welcome, 6);
    assert_eq!(comes(&nginx, ANOTHER, &upgrade).await.0, 101);
    let plain = "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(comes(&nginx, CLIENT, plain).await.0, 200);
    assert!(
        !nginx.error_log().contains("token"),
        "{}",
        nginx.error_log()
    );
}

#[tokio::test]
async fn a_node_s_clients_come_back_from_one_address_within_the_limits() {
    let sandbox = Sandbox::start(3).await;
    let nginx = config(&sandbox.nodes).variant("limit").start().await;
    for _ in 0..150 {
        nginx.client("/x").await;
    }
}
