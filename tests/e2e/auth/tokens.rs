//! Tokens: where they are found, and which are good.

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use unisono_tests::{Client, Node, unisono};

use super::*;
use crate::config::{run, text};

const ORIGIN: (&str, &str) = ("Origin", "https://example.com");

#[tokio::test]
async fn a_token_is_found_in_each_place_and_the_first_place_decides() {
    let node = by_token(
        "token_from = [\"subprotocol\", \"cookie\", \"query\", \"header\"]\n\
         token_query = \"t\"\ntoken_cookie = \"c\"\norigins = [\"https://example.com\"]",
    );
    let node = node.start().await;
    let of = |user: &str| token(json!({"sub": user}));
    let protocol = format!("unisono.v1, bearer.{}", of("in-protocol"));
    let cookie = format!("theme=dark; c={}; d=1", of("in-cookie"));
    let target = format!("/x?a=b&t={}&t={}", of("in-query"), of("in-query-again"));
    let header = format!("bearer {}", of("in-header"));
    let all = [
        ORIGIN,
        ("Authorization", &header),
        ("Cookie", &cookie),
        ("Sec-WebSocket-Protocol", &protocol),
    ];

    for (target, headers, user) in [
        (target.as_str(), &all[..], "in-protocol"),
        (&target, &all[..3], "in-cookie"),
        (&target, &all[..2], "in-query"),
        ("/x", &all[..2], "in-header"),
        ("/x?t=", &all[..2], "in-header"),
        (&target, &all[..1], "in-query"),
        ("/x", &[ORIGIN, all[3]], "in-protocol"),
        ("/x", &[ORIGIN, all[2]], "in-cookie"),
    ] {
        for by in BOTH {
            let guest = by.enter(&node, target, headers).await;
            assert_eq!(guest.told(node.api()).await["user"], user, "{by:?}");
        }
    }

    let bad = [ORIGIN, ("Cookie", "c=bad"), all[1]];
    refusal(&node, "a bad one first", "/x", &bad, UNAUTHORIZED).await;
    refusal(&node, "another name", "/x?token=a", &all[..1], UNAUTHORIZED).await;
}

#[tokio::test]
async fn a_place_that_is_not_listed_is_not_looked_at() {
    let node = by_token("token_from = [\"header\"]").start().await;
    let good = token(json!({}));
    let cookie = format!("unisono_token={good}");
    let protocol = format!("bearer.{good}");
    let target = format!("/x?token={good}");

    let headers = [
        ("Cookie", cookie.as_str()),
        ("Sec-WebSocket-Protocol", &protocol),
    ];
    let message = refusal(&node, "elsewhere", &target, &headers, UNAUTHORIZED).await;

    assert!(message.contains("`Authorization: Bearer`"), "{message}");
    assert!(!message.contains(&good), "{message}");
}

#[tokio::test]
async fn the_subprotocol_with_the_token_is_never_sent_back() {
    let node = by_token("").start().await;
    let bearer = format!("bearer.{}", token(json!({})));
    let unisono = "unisono.v1";

    for (offered, chosen) in [
        (vec![format!("{unisono}, {bearer}")], Some(unisono)),
        (vec![format!("{bearer},{unisono}")], Some(unisono)),
        (vec![bearer.clone(), unisono.to_owned()], Some(unisono)),
        (vec![bearer.clone()], None),
        (vec![format!("chat, {bearer}")], None),
    ] {
        let headers: Vec<_> = offered
            .iter()
            .map(|offered| ("Sec-WebSocket-Protocol", offered.as_str()))
            .collect();
        let response = By::WebSocket.knock(&node, "/x", &headers).await;
        assert_eq!(response.status, 101, "{response:?}");
        assert_eq!(response.header("sec-websocket-protocol"), chosen);
        assert!(!format!("{response:?}").contains(&bearer[7..]));
    }
    // A library that is not ours agrees.
    let offer = format!("{unisono}, {bearer}");
    let headers = [("sec-websocket-protocol", offer.as_str())];
    let client = Client::connect_with(&node.url("/x"), &headers).await;
    assert_eq!(client.subprotocol.as_deref(), Some(unisono));
}

#[tokio::test]
async fn a_bad_token_is_refused_with_the_reason_and_told_to_nobody() {
    let mut node = by_token(
        "audience = [\"sockets\", \"other\"]\nissuer = [\"https://example.com\"]\nleeway = \"0s\"\n\
         [log]\nlevel = \"trace\"",
    )
    .start()
    .await;
    let with = |name: &str, value: Value| {
        let mut claims = json!({"sub": "ann", "aud": "sockets", "iss": "https://example.com"});
        match value {
            Value::Null => drop(claims.as_object_mut().expect("claims").remove(name)),
            value => claims[name] = value,
        }
        claims
    };
    let good = token(with("", Value::Null));
    let (message, signature) = good.rsplit_once('.').expect("three parts");
    let (head, payload) = message.split_once('.').expect("three parts");
    let backwards: String = signature.chars().rev().collect();
    let other_secret = EncodingKey::from_secret(b"another secret of 32 or more bytes");
    // {"alg":"none"}, {"alg":"NONE"}
    let none = "eyJhbGciOiJub25lIn0";
    let loud_none = "eyJhbGciOiJOT05FIn0";

    let not_one = "not a signed JSON Web Token";
    let algorithm = "the algorithm of the token";
    let unknown = "signed by an unknown key";
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    let hs512 = signed(&Header::new(Algorithm::HS512), &secret, with("a", json!(1)));
    for (what, bad, why) in [
        ("garbage", "hello".to_owned(), not_one),
        ("dots", "..".to_owned(), not_one),
        ("two parts", message.to_owned(), not_one),
        ("five parts", format!("{good}.a.b"), not_one),
        ("not UTF-8", format!("%ff{good}"), not_one),
        ("no signature", format!("{message}."), unknown),
        (
            "another signature",
            format!("{message}.{backwards}"),
            unknown,
        ),
        (
            "other claims",
            format!("{head}.{payload}A.{signature}"),
            unknown,
        ),
        ("none", format!("{none}.{payload}."), algorithm),
        (
            "none, signed",
            format!("{none}.{payload}.{signature}"),
            algorithm,
        ),
        ("NONE", format!("{loud_none}.{payload}."), algorithm),
        ("HS512", hs512, algorithm),
        (
            "another secret",
            signed(&Header::default(), &other_secret, with("a", json!(1))),
            unknown,
        ),
        (
            "expired",
            token(with("exp", json!(now() - 1))),
            "has expired",
        ),
        ("exp is text", token(with("exp", json!("soon"))), "`exp`"),
        (
            "too early",
            token(with("nbf", json!(now() + 60))),
            "not valid yet",
        ),
        ("no audience", token(with("aud", Value::Null)), "no `aud`"),
        (
            "another audience",
            token(with("aud", json!("us"))),
            "audience",
        ),
        (
            "other audiences",
            token(with("aud", json!(["a", 1]))),
            "audience",
        ),
        ("no issuer", token(with("iss", Value::Null)), "no `iss`"),
        (
            "another issuer",
            token(with("iss", json!("evil"))),
            "issuer",
        ),
        ("an object as user", token(with("sub", json!({}))), "`sub`"),
        ("an empty user", token(with("sub", json!(""))), "`sub`"),
        (
            "rooms as text",
            token(with("rooms", json!("/x"))),
            "`rooms`",
        ),
        (
            "no pattern",
            token(with("rooms", json!(["/a{b}"]))),
            "`rooms`",
        ),
        (
            "an unknown right",
            token(with("rights", json!(["fly"]))),
            "`rights`",
        ),
        ("9 KiB", "a".repeat(9 << 10), "more than 8192 bytes"),
        (
            "9 KiB, signed",
            token(with("more", json!("x".repeat(9 << 10)))),
            "more than 8192 bytes",
        ),
    ] {
        let target = format!("/x?token={bad}");
        let message = refusal(&node, what, &target, &[], UNAUTHORIZED).await;
        assert!(message.contains(why), "{what}: {message}");
        let header = format!("Bearer {bad}");
        if !bad.starts_with('%') {
            let headers = [("Authorization", header.as_str())];
            assert_eq!(
                refusal(&node, what, "/x", &headers, UNAUTHORIZED).await,
                message
            );
        }
        assert!(
            bad.len() < 10 || !message.contains(&bad),
            "{what}: {message}"
        );
        let log = log(&mut node);
        assert!(bad.len() < 10 || !log.contains(&bad), "{what}: {log}");
    }
    let message = refusal(&node, "none at all", "/x", &[], UNAUTHORIZED).await;
    assert!(
        message.contains("the parameter `token` of the URL"),
        "{message}"
    );

    for several in [json!("other"), json!(["a", "other"])] {
        let target = format!("/x?token={}", token(with("aud", several)));
        welcome(&node, "one of several audiences", &target, &[]).await;
    }
    welcome(&node, "the good one", &format!("/x?token={good}"), &[]).await;
    let log = log(&mut node);
    for part in [payload, signature] {
        assert!(!log.contains(part), "a token in {log}");
    }
}

#[tokio::test]
async fn without_exp_no_token_is_good_and_clocks_may_differ() {
    let node = by_token("leeway = \"30s\"").start().await;
    let eternal = jsonwebtoken::encode(
        &Header::default(),
        &json!({"sub": "ann"}),
        &EncodingKey::from_secret(SECRET.as_bytes()),
    );
    let target = format!("/x?token={}", eternal.expect("claims of our own"));
    let message = refusal(&node, "eternal", &target, &[], UNAUTHORIZED).await;
    assert!(message.contains("no `exp`"), "{message}");

    for claims in [json!({"exp": now() - 15}), json!({"nbf": now() + 15})] {
        let target = format!("/x?token={}", token(claims));
        welcome(&node, "within the leeway", &target, &[]).await;
    }
    let target = format!("/x?token={}", token(json!({"exp": now() - 31})));
    refusal(&node, "beyond it", &target, &[], UNAUTHORIZED).await;
}

#[tokio::test]
async fn a_token_is_no_api_key() {
    let node = by_token("").key("an api key").start().await;
    let token = token(json!({"sub": "ann"}));
    let api = node.api().with_key(Some(&token));

    assert_eq!(api.get("/api/v1/nodes").await.refusal(), UNAUTHORIZED);
    let target = "/x?token=an%20api%20key";
    refusal(&node, "nor the other way round", target, &[], UNAUTHORIZED).await;
}

// === unisono token ===

/// Runs `unisono token` with this `[auth]`, and returns the status and what it printed and complained of.
fn mint(auth: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let output = run(&[&["token"], args].concat(), auth, &[]);
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[tokio::test]
async fn what_the_command_mints_the_node_takes() {
    let auth = format!(
        "[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\nuser_claim = \"uid\"\n\
         audience = [\"sockets\"]\nissuer = [\"https://example.com\"]\n"
    );
    let node = Node::alone(&auth).await;
    let args = "--user ann --room /x --room /y/{id} --right join --right send --expires-in 90s";
    let args: Vec<_> = args.split(' ').collect();
    let (status, token, said) = mint(&auth, &args);
    assert_eq!((status, said.as_str()), (Some(0), ""));
    assert_eq!(token.lines().count(), 1, "{token}");

    let target = format!("/x?token={}", token.trim());
    let mut client = node.client(&target).await;
    let socket = format!("/api/v1/sockets/{}", client.id);
    assert_eq!(node.api().get(&socket).await.ok()["user"], "ann");
    client.join("/y/1").await;
    let elsewhere = json!({"room": "/z"});
    assert_eq!(client.refused("unisono:join", elsewhere).await, "forbidden");
    let publication = json!({"room": "/x", "event": "a"});
    let code = client.refused("unisono:publish", publication).await;
    assert_eq!(code, "forbidden");
    let fresh = json!({"token": token.trim()});
    let left = client.ack("unisono:refresh", fresh).await["expires_in"].as_u64();
    assert!(
        left.is_some_and(|left| (60..=90).contains(&left)),
        "{left:?}"
    );
}

#[tokio::test]
async fn the_command_signs_with_private_keys() {
    for (name, algorithm) in PAIRS {
        let public = testdata(&format!("{name}.pub.pem"));
        let algorithm = format!("{algorithm:?}");
        let auth = format!(
            "[auth]\nmode = \"token\"\npublic_key_file = {public:?}\nalgorithm = \"{algorithm}\"\n"
        );
        let node = Node::alone(&auth).await;
        let private = testdata(&format!("{name}.pem"));
        let private = private.to_str().expect("a path");
        let (status, token, said) =
            mint(&auth, &["--key-file", private, "--algorithm", &algorithm]);
        assert_eq!(status, Some(0), "{said}");
        welcome(&node, name, &format!("/x?token={}", token.trim()), &[]).await;
    }
}

#[test]
fn the_command_says_what_is_missing() {
    let secret = format!("[auth]\nsecret = \"{SECRET}\"\n");
    let pem = testdata("p256.pem");
    let pem = pem.to_str().expect("a path");
    let file = "[auth]\nsecret_file = \"/nowhere\"\n";
    for (auth, args, status, expected) in [
        ("", &[][..], 1, "set auth.secret or auth.secret_file"),
        ("", &[], 1, "--key-file and --algorithm"),
        (file, &[], 1, "/nowhere"),
        (&secret, &["--room", "/a{b}"], 1, "--room /a{b}"),
        (&secret, &["--right", "fly"], 1, "--right"),
        (&secret, &["--user", ""], 1, "--user"),
        (
            &secret,
            &["--key-file", "/nowhere", "--algorithm", "ES256"],
            1,
            "/nowhere",
        ),
        (
            &secret,
            &["--key-file", pem, "--algorithm", "RS256"],
            1,
            "RS256",
        ),
        (&secret, &["--key-file", pem], 64, "--algorithm"),
        (&secret, &["--expires-in", "soon"], 64, "--expires-in"),
        (&secret, &["--claim", "a"], 64, "KEY=JSON"),
        ("[auth]\nsecret = \"short\"", &[], 64, "auth.secret"),
    ] {
        let (code, printed, said) = mint(auth, args);
        assert_eq!(code, Some(status), "{args:?}: {said}");
        assert!(said.contains(expected), "{args:?}: {said}");
        assert_eq!(printed, "", "{args:?}");
        assert!(!said.contains(SECRET), "{said}");
    }
}

#[test]
fn the_command_has_a_help() {
    let output = unisono().args(["token", "--help"]).output();
    let output = output.expect("unisono runs");
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for flag in [
        "Usage",
        "--user",
        "--room",
        "--right",
        "--expires-in",
        "--claim",
        "--key-file",
        "--algorithm",
        "--kid",
    ] {
        assert!(help.contains(flag), "no {flag} in {help}");
    }
}
