//! Where clients are, behind proxies.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use unisono_tests::{Nginx, Sandbox, Wire, eventually};

use super::*;

const FORWARDED: &str = "X-Forwarded-For";

/// The `remote_addr` of who sends these headers.
async fn address(node: &Node, by: By, headers: &[(&str, &str)]) -> String {
    let guest = by.enter(node, "/x", headers).await;
    let told = guest.told(node.api()).await;
    told["remote_addr"].as_str().expect("an address").to_owned()
}

#[tokio::test]
async fn only_proxies_that_are_trusted_say_where_a_client_is() {
    let trusting = "[auth]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\", \"2001:db8:1::/48\"]";
    let node = Node::alone(trusting).await;
    // What ends in a colon is the connection's own address, with whatever port.
    let own = "127.0.0.1:";
    for (lines, expected) in [
        (&[][..], own),
        (&["203.0.113.9"], "203.0.113.9:0"),
        (&["203.0.113.9:4711"], "203.0.113.9:4711"),
        (&["2001:db8::9"], "[2001:db8::9]:0"),
        (&["[2001:db8::9]"], "[2001:db8::9]:0"),
        (&["[2001:db8::9]:4711"], "[2001:db8::9]:4711"),
        (&["::ffff:203.0.113.9"], "203.0.113.9:0"),
        // A chain of proxies, and what a client has put in front of it.
        (&["203.0.113.9, 10.1.2.3"], "203.0.113.9:0"),
        (&["203.0.113.9 ,2001:db8:1::1 , 10.1.2.3"], "203.0.113.9:0"),
        (&["6.6.6.6, 203.0.113.9"], "203.0.113.9:0"),
        (&["6.6.6.6, 203.0.113.9, 10.1.2.3"], "203.0.113.9:0"),
        (&["6.6.6.6", "203.0.113.9, 10.1.2.3"], "203.0.113.9:0"),
        (&["127.0.0.1, 203.0.113.9"], "203.0.113.9:0"),
        (&["10.1.1.1, 10.2.2.2"], "10.1.1.1:0"),
        // The furthest that can be told.
        (&["garbage"], own),
        (&["203.0.113.9, garbage"], own),
        (&["garbage, 10.1.1.1"], "10.1.1.1:0"),
        (&["203.0.113.9, unknown, 10.1.1.1"], "10.1.1.1:0"),
        (&["203.0.113.999"], own),
        (&["", ", ,"], own),
        (&["203.0.113.9,"], "203.0.113.9:0"),
    ] {
        let headers: Vec<_> = lines.iter().map(|line| (FORWARDED, *line)).collect();
        for by in BOTH {
            let found = address(&node, by, &headers).await;
            let fine = found == expected || expected.ends_with(':') && found.starts_with(expected);
            assert!(fine, "{by:?} {lines:?}: {found}");
        }
    }
}

#[tokio::test]
async fn a_stranger_is_not_believed() {
    for trusting in [
        "",
        "[auth]\ntrusted_proxies = [\"10.0.0.0/8\", \"127.0.0.2\"]",
    ] {
        let node = Node::alone(trusting).await;
        for by in BOTH {
            let found = address(&node, by, &[(FORWARDED, "203.0.113.9")]).await;
            assert!(found.starts_with("127.0.0.1:"), "{by:?}: {found}");
        }
    }
}

#[tokio::test]
async fn the_shipped_nginx_says_where_clients_are() {
    let trusting = "[auth]\ntrusted_proxies = [\"127.0.0.1\"]";
    let sandbox = Sandbox::config().toml(trusting).start().await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let (_, port) = nginx.api().base().rsplit_once(':').expect("a port");
    let port = port.parse().expect("a port");
    for n in 2..6 {
        let client = Ipv4Addr::new(127, 0, 0, n);
        for by in BOTH {
            let wire = Wire::connect_from(client, port).await;
            // What the client claims itself ends at nginx.
            let guest = by.enter_on(wire, "/x", &[(FORWARDED, "6.6.6.6")]).await;
            let told = guest.told(sandbox.api(0)).await;
            assert_eq!(told["remote_addr"], format!("{client}:0"), "{by:?}");
        }
    }
}

#[tokio::test]
async fn handshakes_are_counted_by_address() {
    let toml = "[auth]\ntrusted_proxies = [\"127.0.0.1\"]\n\
                [sockets]\nhandshake_rate = 1\nhandshake_burst = 2";
    let node = Node::alone(toml).await;
    let flood = async |by: By, address: &str| {
        eventually("there is an end to it", async || {
            let response = by.knock(&node, "/x", &[(FORWARDED, address)]).await;
            if response.status == 429 {
                return Ok(response);
            }
            assert_eq!(response.status, by.welcome(), "{response:?}");
            Err(response)
        })
        .await
    };
    for (by, address) in [
        (By::WebSocket, "203.0.113.9"),
        (By::EventStream, "2001:db8::1"),
    ] {
        let response = flood(by, address).await;
        let body: Value = serde_json::from_str(&response.body).expect("a JSON body");
        assert_eq!(body["error"]["code"], "rate_limited");
        assert_eq!(response.header("retry-after"), Some("1"));
    }
    // Others are not concerned, whoever stands between.
    welcome(&node, "another", "/x", &[(FORWARDED, "203.0.113.10")]).await;
    welcome(&node, "another", "/x", &[(FORWARDED, "2001:db8:0:1::1")]).await;
    // What is not a handshake is not counted.
    for _ in 0..10 {
        assert_eq!(node.api().get("/health/live").await.status, 200);
    }
    node.api().broadcast("a", json!(1)).await;
}
