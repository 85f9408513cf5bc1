//! The end of a token, and fresh ones.

use serde_json::{Value, json};
use unisono_tests::{Client, NodeConfig};

use super::*;

const EXPIRED: (u16, &str) = (4401, "token expired");
const WITHDRAWN: (u16, &str) = (4403, "rights withdrawn");

/// Without any patience.
fn strict() -> NodeConfig {
    by_token("leeway = \"0s\"\nexpired_close_delay = \"50ms\"")
}

/// A token of Ann's that ends in so many seconds, or a little earlier.
fn anns(seconds: u64, mut more: Value) -> String {
    more["sub"] = json!("ann");
    more["exp"] = json!(now() + seconds);
    token(more)
}

fn is(close: &(u16, String), expected: (u16, &str)) {
    assert_eq!((close.0, close.1.as_str()), expected);
}

#[tokio::test]
async fn a_socket_ends_soon_after_its_token() {
    let node = strict().start().await;
    let target = format!("/x?token={}", anns(2, json!({})));
    let mut guests = vec![];
    for by in BOTH {
        guests.push(by.enter(&node, &target, &[]).await);
    }
    for guest in &mut guests {
        is(&guest.close().await, EXPIRED);
    }
    refusal(&node, "the same token", &target, &[], UNAUTHORIZED).await;
    let members = node.api().members("/x").await;
    assert_eq!(members["count"], 0, "{members}");
}

#[tokio::test]
async fn a_fresh_token_keeps_a_socket_open() {
    let node = strict().start().await;
    let mut client = node
        .client(&format!("/x?token={}", anns(2, json!({}))))
        .await;
    // The witness ends later than the client would have.
    let mut witness = node
        .client(&format!("/x?token={}", anns(3, json!({}))))
        .await;
    let more = json!({"rooms": ["/x", "/y"], "rights": ["join"]});

    let fresh = json!({"token": anns(3600, more)});
    let answer = client.ack("unisono:refresh", fresh).await;
    let left = answer["expires_in"].as_u64().expect("seconds");
    assert!((3590..=3600).contains(&left), "{answer}");

    is(&witness.expect_close().await, EXPIRED);
    client.join("/y").await;
    for (event, data) in [
        ("unisono:join", json!({"room": "/z"})),
        ("unisono:publish", json!({"room": "/x", "event": "a"})),
    ] {
        // What it may do is what the fresh token says.
        assert_eq!(client.refused(event, data).await, "forbidden", "{event}");
    }
}

#[tokio::test]
async fn a_fresh_token_may_end_sooner() {
    let node = strict().start().await;
    let mut client = node
        .client(&format!("/x?token={}", anns(3600, json!({}))))
        .await;
    let answer = client
        .ack("unisono:refresh", json!({"token": anns(2, json!({}))}))
        .await;
    let left = answer["expires_in"].as_u64().expect("seconds");
    assert!(left <= 2, "{answer}");
    is(&client.expect_close().await, EXPIRED);
}

#[tokio::test]
async fn a_bad_fresh_token_changes_nothing() {
    let mut node = strict().start().await;
    let claims = json!({"rooms": ["/x", "/y"]});
    let mine = anns(3, claims);
    let mut client = node.client(&format!("/x?token={mine}")).await;
    client.join("/y").await;

    let good = anns(3600, json!({}));
    for (what, bad) in [
        ("another user", token(json!({"sub": "bob"}))),
        ("nobody", token(json!({}))),
        ("garbage", "garbage".to_owned()),
        ("nothing", String::new()),
        ("a forgery", format!("{good}A")),
        ("expired", token(json!({"sub": "ann", "exp": now() - 60}))),
        ("9 KiB", "a".repeat(9 << 10)),
    ] {
        let refresh = json!({"token": bad});
        let refused = client.request("unisono:refresh", refresh).await;
        let refused = refused.expect_err(what);
        assert_eq!(refused.code, "forbidden", "{what}");
        assert!(bad.len() < 10 || !refused.message.contains(&bad), "{what}");
    }
    for bad in [Value::Null, json!({}), json!({"token": 1}), json!("a")] {
        let code = client.refused("unisono:refresh", bad).await;
        assert_eq!(code, "bad_message");
    }
    let socket = format!("/api/v1/sockets/{}", client.id);
    let told = node.api().get(&socket).await.ok();
    assert_eq!(told["user"], "ann");
    assert_eq!(told["rooms"], json!(["/x", "/y"]));
    client.publish("/x", "a", json!(1)).await;
    let elsewhere = json!({"room": "/z"});
    assert_eq!(client.refused("unisono:join", elsewhere).await, "forbidden");

    is(&client.expect_close().await, EXPIRED);
    let log = log(&mut node);
    assert!(!log.contains("eyJ"), "a token in {log}");
}

/// Refreshes with a token for these rooms, which is not answered.
async fn withdraw(client: &mut Client, rooms: &[&str]) {
    let data = json!({"token": anns(3600, json!({"rooms": rooms}))});
    let refresh = json!({"event": "unisono:refresh", "data": data, "id": "fresh"});
    client.send_text(refresh.to_string()).await;
}

#[tokio::test]
async fn a_fresh_token_that_takes_rooms_away_ends_the_socket() {
    let node = strict().start().await;
    let target = format!("/x?token={}", anns(3600, json!({})));
    let mut client = node.client(&target).await;
    client.join("/y").await;
    withdraw(&mut client, &["/x"]).await;
    is(&client.expect_close().await, WITHDRAWN);

    let mut client = node.client(&target).await;
    withdraw(&mut client, &["/y"]).await;
    is(&client.expect_close().await, WITHDRAWN);
}

#[tokio::test]
async fn a_room_that_was_left_or_given_by_the_application_may_go() {
    let node = strict().start().await;
    let mut client = node
        .client(&format!("/x?token={}", anns(3600, json!({}))))
        .await;
    client.join("/y").await;
    client.leave("/y").await;
    assert_eq!(node.api().join(&client.id, "/z").await, "delivered");

    withdraw(&mut client, &["/x"]).await;

    client.expect("unisono:ack").await;
    node.api().publish("/z", "hello", json!(1)).await;
    client.expect("hello").await;
}

#[tokio::test]
async fn a_join_that_is_under_way_counts_too() {
    let auth = format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\n");
    let sandbox = unisono_tests::Sandbox::config().toml(&auth).start().await;
    for n in 0..10 {
        let target = format!("/x?token={}", anns(3600, json!({})));
        let mut client = sandbox.client(0, &target).await;
        let join = json!({"event": "unisono:join", "data": {"room": format!("/y/{n}")}});
        client.send_text(join.to_string()).await;
        withdraw(&mut client, &["/x"]).await;
        is(&client.expect_close().await, WITHDRAWN);
    }
}
