//! The application answers handshakes.

use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};
use unisono_tests::{Client, eventually};

use super::*;

const HOOK_SECRET: &str = "what both sides know";

/// A node that asks this site; it has one thread, which nobody may hold up.
async fn asking(site: &Site, more: &str) -> Node {
    let url = site.url();
    let auth = format!("[auth]\nmode = \"hook\"\nhook_url = \"{url}\"\n{more}\n");
    let hooks = format!("[hooks]\nsecret = \"{HOOK_SECRET}\"\n");
    let node = Node::config("asking").toml(&auth).toml(&hooks);
    node.arg("--set=workers=1").start().await
}

fn grants(grant: &Value) -> Reply {
    Reply::With(200, grant.to_string().into_bytes())
}

#[tokio::test]
async fn the_application_is_told_who_comes_and_by_whom() {
    let site = Site::start(grants(&json!({"user": "ann"}))).await;
    let node = asking(&site, "trusted_proxies = [\"127.0.0.1\"]").await;
    let headers = [
        ("Cookie", "session=1"),
        ("Cookie", "theme=dark"),
        ("Authorization", "Basic YTpi"),
        ("Origin", "https://example.com"),
        ("User-Agent", "tests"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X-Internal", "hush"),
    ];
    for by in BOTH {
        let guest = by.enter(&node, "/chat%2D1/?a=b&c=%20", &headers).await;
        assert_eq!(guest.told(node.api()).await["user"], "ann", "{by:?}");
    }

    let requests = site.requests();
    assert_eq!(requests.len(), 2, "one for each");
    for request in requests {
        assert_eq!(request.line(), "POST /here HTTP/1.1");
        assert_eq!(request.header("content-type"), "application/json");
        let told: Value = serde_json::from_slice(&request.body).expect("JSON");
        assert_eq!(
            told,
            json!({
                "type": "handshake",
                "path": "/chat-1",
                "room": "/chat-1",
                "query": "a=b&c=%20",
                "peer": "203.0.113.9:0",
                "headers": {
                    "cookie": "session=1; theme=dark",
                    "authorization": "Basic YTpi",
                    "origin": "https://example.com",
                    "user-agent": "tests",
                    "x-forwarded-for": "203.0.113.9",
                },
            })
        );
        let (id, at) = (
            request.header("webhook-id"),
            request.header("webhook-timestamp"),
        );
        let seconds: u64 = at.parse().expect("seconds");
        assert!(now().abs_diff(seconds) < 60, "{at}");
        let mut message = format!("{id}.{at}.").into_bytes();
        message.extend(&request.body);
        let key = EncodingKey::from_secret(HOOK_SECRET.as_bytes());
        let signature = crypto::sign(&message, &key, Algorithm::HS256).expect("signed");
        // Of base64 there are two alphabets.
        let signature = signature.replace('-', "+").replace('_', "/");
        assert_eq!(
            request.header("webhook-signature"),
            format!("v1,{signature}=")
        );
    }
}

#[tokio::test]
async fn what_the_application_grants_counts() {
    let grant =
        json!({"user": "ann", "rooms": ["/x", "/y/{id}"], "rights": ["join"], "expires_in": 2});
    let site = Site::start(grants(&grant)).await;
    let node = asking(&site, "expired_close_delay = \"50ms\"").await;
    let mut client = node.client("/x").await;
    let mut stream = By::EventStream.enter(&node, "/x", &[]).await;

    client.join("/y/1").await;
    for (event, data) in [
        ("unisono:join", json!({"room": "/z"})),
        ("unisono:publish", json!({"room": "/x", "event": "a"})),
        ("unisono:emit", json!({"to": "a", "event": "a"})),
        ("hello", json!(1)),
        ("unisono:refresh", json!({"token": "a"})),
    ] {
        assert_eq!(client.refused(event, data).await, "forbidden", "{event}");
    }
    refusal(&node, "another room", "/z", &[], FORBIDDEN).await;
    let expired = (4401, "token expired".to_owned());
    assert_eq!(client.expect_close().await, expired);
    assert_eq!(stream.close().await, expired);

    for (body, user) in [
        ("", Value::Null),
        ("{}", Value::Null),
        (r#"{"user":7}"#, json!("7")),
    ] {
        site.reply(Reply::With(200, body.as_bytes().to_vec()));
        let guest = By::WebSocket.enter(&node, "/anywhere", &[]).await;
        assert_eq!(guest.told(node.api()).await["user"], user, "{body}");
    }
    site.reply(Reply::With(204, vec![]));
    welcome(&node, "204", "/x", &[]).await;
}

#[tokio::test]
async fn what_the_application_does_not_say_lets_nobody_in() {
    let site = Site::start(Reply::Silence).await;
    let mut node = asking(&site, "hook_timeout = \"2s\"").await;
    let with = |status: u16, body: &str| Reply::With(status, body.as_bytes().to_vec());
    let silent = "the application does not answer handshakes";
    let unknown = "the application does not know this client";
    for (what, reply, answer, expected) in [
        ("silence", Reply::Silence, UNAVAILABLE, silent),
        ("401", with(401, ""), UNAUTHORIZED, unknown),
        (
            "401 with words",
            with(401, r#"{"message":"log in first"}"#),
            UNAUTHORIZED,
            "log in first",
        ),
        (
            "403",
            with(403, "<h1>no</h1>"),
            FORBIDDEN,
            "the application does not let this client in",
        ),
        (
            "403 with words",
            with(403, r#"{"error":{"message":"you are banned"}}"#),
            FORBIDDEN,
            "you are banned",
        ),
        (
            "words with a line end",
            with(401, r#"{"message":"a\r\nSet-Cookie: b"}"#),
            UNAUTHORIZED,
            unknown,
        ),
        ("500", with(500, "{}"), UNAVAILABLE, silent),
        ("404", with(404, "{}"), UNAVAILABLE, silent),
        ("302", with(302, "{}"), UNAVAILABLE, silent),
        ("a page", with(200, "<h1>welcome</h1>"), UNAVAILABLE, silent),
        ("a list", with(200, "[]"), UNAVAILABLE, silent),
        (
            "rooms: null",
            with(200, r#"{"rooms":null}"#),
            UNAVAILABLE,
            silent,
        ),
        (
            "a right",
            with(200, r#"{"rights":["fly"]}"#),
            UNAVAILABLE,
            silent,
        ),
        (
            "no HTTP",
            Reply::Bytes("hello\r\n\r\n"),
            UNAVAILABLE,
            silent,
        ),
        ("nothing", Reply::Bytes(""), UNAVAILABLE, silent),
        (
            "10 MB",
            Reply::With(200, vec![b' '; 10 << 20]),
            UNAVAILABLE,
            silent,
        ),
    ] {
        site.reply(reply);
        assert_eq!(
            refusal(&node, what, "/x?secret=1", &[], answer).await,
            expected
        );
        assert_eq!(node.api().get("/health/live").await.status, 200, "{what}");
    }
    site.reply(grants(&json!({})));
    welcome(&node, "all is well again", "/x", &[]).await;
    drop(site);
    let message = refusal(&node, "nobody there", "/x", &[], UNAVAILABLE).await;
    assert_eq!(message, silent);

    let log = log(&mut node);
    assert!(log.contains(silent), "{log}");
    assert!(
        !log.contains(HOOK_SECRET) && !log.contains("secret=1"),
        "{log}"
    );
}

#[tokio::test]
async fn a_slow_application_holds_up_nobody_else() {
    let site = Site::start(grants(&json!({"user": "ann"}))).await;
    let node = asking(&site, "hook_timeout = \"4s\"").await;
    let mut ann: Client = node.client("/x").await;
    let mut bob = node.client("/x").await;

    site.reply(Reply::Silence);
    let mut waiting = vec![];
    for n in 0..20 {
        let mut wire = node.wire().await;
        wire.send(BOTH[n % 2].request("/x", &[])).await;
        waiting.push(wire);
    }
    eventually("the application has all of them", async || {
        site.requests().len() >= 22
    })
    .await;
    ann.send("hello", json!(1)).await;
    bob.expect("hello").await;
    assert_eq!(node.api().get("/health/live").await.status, 200);
    node.api().nodes().await;
    // One who has gone is nothing to wait for; those who stay are answered in time.
    drop(waiting.pop());
    for wire in &mut waiting {
        let response = wire.response().await;
        assert_eq!(response.status, 503, "{response:?}");
        assert!(response.header("retry-after").is_some(), "{response:?}");
    }
    ann.ack("unisono:ping", json!(1)).await;
}
