//! Keys: from PEM and JWKS files, and from key servers.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use unisono_tests::{eventually, free_port};

use super::*;

/// A set of keys: the name of the pair in `server/testdata`, and that in the set.
fn jwks(keys: &[(&str, Option<&str>)]) -> Vec<u8> {
    let jwk = |(name, kid): &(&str, Option<&str>)| {
        let pair = PAIRS.into_iter().find(|pair| pair.0 == *name);
        let pair = pair.expect("a pair of the tests");
        let jwk = Jwk::from_encoding_key(&private_key(pair.0), pair.1).expect("a key");
        let mut jwk = serde_json::to_value(jwk).expect("a key as JSON");
        if let Some(kid) = kid {
            jwk["kid"] = json!(kid);
        }
        jwk
    };
    let keys: Vec<Value> = keys.iter().map(jwk).collect();
    json!({ "keys": keys }).to_string().into_bytes()
}

fn target(token: &str) -> String {
    format!("/x?token={token}")
}

#[tokio::test]
async fn a_public_key_is_good_for_its_algorithm_only() {
    for (name, algorithm) in PAIRS {
        let public = testdata(&format!("{name}.pub.pem"));
        let node = Node::alone(&format!(
            "[auth]\nmode = \"token\"\npublic_key_file = {public:?}\nalgorithm = \"{algorithm:?}\""
        ))
        .await;
        for pair in PAIRS {
            let token = target(&token_of(pair, None, json!({"sub": "ann"})));
            match pair.0 == name {
                true => welcome(&node, name, &token, &[]).await,
                false => drop(refusal(&node, name, &token, &[], UNAUTHORIZED).await),
            }
        }
        // What everybody may know is no secret.
        let pem = std::fs::read(&public).expect("a key of the tests");
        for pem in [&pem[..], pem.trim_ascii()] {
            let forged = signed(
                &Header::default(),
                &EncodingKey::from_secret(pem),
                json!({"sub": "ann"}),
            );
            let what = format!("HS256 by the text of {name}");
            let message = refusal(&node, &what, &target(&forged), &[], UNAUTHORIZED).await;
            assert!(message.contains("algorithm"), "{what}: {message}");
        }
    }
}

#[tokio::test]
async fn a_secret_may_be_in_a_file_and_beside_other_keys() {
    let directory = TempDir::with_prefix("unisono-keys-").expect("a temporary directory");
    let file = directory.path().join("secret");
    std::fs::write(&file, format!("{SECRET}\n")).expect("a file of the test's own");
    let public = testdata("p256.pub.pem");
    let node = Node::alone(&format!(
        "[auth]\nmode = \"token\"\nsecret_file = {file:?}\npublic_key_file = {public:?}\nalgorithm = \"ES256\""
    ))
    .await;

    welcome(&node, "HS256", &target(&token(json!({}))), &[]).await;
    welcome(
        &node,
        "ES256",
        &target(&token_of(PAIRS[1], None, json!({}))),
        &[],
    )
    .await;
    let other = target(&token_of(PAIRS[0], None, json!({})));
    refusal(&node, "RS256", &other, &[], UNAUTHORIZED).await;
}

#[tokio::test]
async fn a_file_of_keys_tells_them_by_name() {
    let directory = TempDir::with_prefix("unisono-keys-").expect("a temporary directory");
    let file = directory.path().join("jwks.json");
    let keys = [("rsa", Some("r")), ("p256", Some("p")), ("ed25519", None)];
    std::fs::write(&file, jwks(&keys)).expect("a file of the test's own");
    let node = Node::alone(&format!("[auth]\nmode = \"token\"\njwks_file = {file:?}")).await;

    for (pair, kid, good) in [
        (PAIRS[0], Some("r"), true),
        (PAIRS[0], None, true),
        (PAIRS[0], Some("p"), false),
        (PAIRS[0], Some("nobody"), false),
        (PAIRS[1], Some("p"), true),
        (PAIRS[1], None, true),
        (PAIRS[1], Some("r"), false),
        // A key without a name may be the one of any.
        (PAIRS[2], Some("nobody"), true),
        (PAIRS[2], None, true),
    ] {
        let what = format!("{pair:?} {kid:?}");
        let token = target(&token_of(pair, kid, json!({"sub": "ann"})));
        match good {
            true => welcome(&node, &what, &token, &[]).await,
            false => drop(refusal(&node, &what, &token, &[], UNAUTHORIZED).await),
        }
    }
}

#[tokio::test]
async fn a_rotated_key_is_taken_after_one_more_look() {
    let a = Reply::With(200, jwks(&[("p256", Some("a"))]));
    let site = Site::start(a).await;
    let node = Node::alone(&by_url(&site.url())).await;
    let first = target(&token_of(PAIRS[1], Some("a"), json!({"sub": "ann"})));
    welcome(&node, "the first key", &first, &[]).await;
    assert_eq!(site.requests().len(), 1);
    assert_eq!(site.requests()[0].line(), "GET /here HTTP/1.1");

    let both = [("p256", Some("a")), ("ed25519", Some("b"))];
    site.reply(Reply::With(200, jwks(&both)));
    let second = target(&token_of(PAIRS[2], Some("b"), json!({"sub": "ann"})));
    welcome(&node, "the second key", &second, &[]).await;
    welcome(&node, "the first key, still", &first, &[]).await;
    assert_eq!(site.requests().len(), 2, "one more look");
}

#[tokio::test]
async fn keys_that_nobody_has_make_for_one_look_at_most() {
    let site = Site::start(Reply::With(200, jwks(&[("p256", Some("a"))]))).await;
    let node = Node::alone(&by_url(&site.url())).await;
    let good = target(&token_of(PAIRS[1], Some("a"), json!({})));
    welcome(&node, "the key", &good, &[]).await;

    for n in 0..10 {
        let kid = format!("unknown-{n}");
        let token = target(&token_of(PAIRS[1], Some(&kid), json!({})));
        let message = refusal(&node, &kid, &token, &[], UNAUTHORIZED).await;
        assert!(message.contains("unknown key"), "{message}");
    }
    let forged = token_of(PAIRS[1], Some("a"), json!({})) + "A";
    refusal(&node, "a forgery", &target(&forged), &[], UNAUTHORIZED).await;

    let looks = site.requests().len();
    assert!(looks <= 2, "{looks}");
}

#[tokio::test]
async fn keys_outlive_their_server() {
    let keys = Reply::With(200, jwks(&[("p256", Some("a"))]));
    // One that nobody takes while the server is away.
    let site = Site::start_on(free_port(), keys).await;
    let auth = by_url(&site.url()) + "jwks_refresh = \"50ms\"";
    let node = Node::alone(&auth).await;
    let good = target(&token_of(PAIRS[1], Some("a"), json!({})));
    welcome(&node, "the key", &good, &[]).await;

    for (what, reply) in [
        ("an error", Reply::With(500, jwks(&[]))),
        ("no keys", Reply::With(200, b"<h1>welcome</h1>".to_vec())),
        ("no HTTP", Reply::Bytes("hello")),
        ("too much", Reply::With(200, vec![b' '; 2 << 20])),
    ] {
        site.reply(reply);
        let before = site.requests().len();
        eventually("the key server is asked again", async || {
            site.requests().len() > before + 1
        })
        .await;
        welcome(&node, what, &good, &[]).await;
    }
    let port = site.port;
    drop(site);
    welcome(&node, "nobody there", &good, &[]).await;

    let keys = Reply::With(200, jwks(&[("ed25519", Some("b"))]));
    let _site = Site::start_on(port, keys).await;
    eventually("the new key counts", async || {
        let token = target(&token_of(PAIRS[2], Some("b"), json!({})));
        let response = By::WebSocket.knock(&node, &token, &[]).await;
        (response.status == 101).then_some(()).ok_or(response)
    })
    .await;
    refusal(&node, "the old key", &good, &[], UNAUTHORIZED).await;
}

#[tokio::test]
async fn without_keys_nobody_is_turned_away_for_good() {
    let port = free_port();
    let node = Node::alone(&by_url(&super::site::url(port))).await;
    let good = target(&token_of(PAIRS[1], Some("a"), json!({})));
    let message = refusal(&node, "no keys yet", &good, &[], UNAVAILABLE).await;
    assert!(message.contains("not there yet"), "{message}");
    refusal(&node, "no token", "/x", &[], UNAUTHORIZED).await;
    assert_eq!(node.api().get("/health/ready").await.status, 200);

    let keys = Reply::With(200, jwks(&[("p256", Some("a"))]));
    let _site = Site::start_on(port, keys).await;
    eventually("the key is there", async || {
        let response = By::WebSocket.knock(&node, &good, &[]).await;
        (response.status == 101).then_some(()).ok_or(response)
    })
    .await;
    welcome(&node, "the key is there", &good, &[]).await;
}

fn by_url(url: &str) -> String {
    format!("[auth]\nmode = \"token\"\njwks_url = \"{url}\"\n")
}
