//! Laravel's broadcasts, from a real Redis to the sockets of every node.

use std::path::Path;
use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};
use unisono_tests::{
    Client, Node, NodeConfig, Process, Redis, Sandbox, eventually, unisono, upgrade_request, within,
};

/// What Laravel sends for the event of the article, recorded.
const MESSAGE: &str = r#"{"event":"App\\Events\\Message","data":{"data":{"name":"\u6728\u5c0f\u6487"},"socket":null},"socket":null}"#;
const FENCE: &str = r#"{"event":"fence","data":{"socket":null},"socket":null}"#;

/// How long a node may take to find that a Redis which still has its connections is none.
const NOTICE: Duration = Duration::from_secs(90);

/// Of 32 bytes, as HS256 wants it.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

// === delivery ===

#[tokio::test]
async fn a_broadcast_comes_byte_for_byte_and_once_on_every_node() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut by_channel = one_on_each(&sandbox, "message").await;
    let mut by_url = vec![];
    for i in 0..3 {
        by_url.push(sandbox.client(i, "/orders/1").await);
    }
    // Whoever reads and writes JSON on the way would tidy this up.
    let untidy =
        "{ \"event\":\"a\\/b\",\n \"more\":1.50, \"data\":{\"\\u00e9\":[ ]},\"socket\":null }";

    for payload in [MESSAGE, untidy] {
        assert_eq!(redis.publish("message", payload).await, 3, "every node");
        assert_eq!(redis.publish("/orders/1", payload).await, 3);
    }
    fence(&redis, "message").await;
    fence(&redis, "/orders/1").await;

    for client in by_channel.iter_mut().chain(&mut by_url) {
        assert_eq!(client.next().await.text, MESSAGE);
        assert_eq!(client.next().await.text, untidy);
        assert_eq!(client.next().await.text, FENCE);
    }
}

#[tokio::test]
async fn broadcasts_keep_their_order_on_every_node() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut clients = one_on_each(&sandbox, "orders").await;

    for n in 0..100 {
        redis.publish("orders", event("n", &json!(n))).await;
    }

    for client in &mut clients {
        for n in 0..100 {
            assert_eq!(client.expect("n").await.data, n);
        }
    }
}

#[tokio::test]
async fn the_socket_that_caused_it_is_spared_on_whichever_node() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut clients = one_on_each(&sandbox, "message").await;

    for cause in 0..3 {
        let id = clients[cause].id.clone();
        let payload = json!({"event": "hello", "data": {"x": 1, "socket": id}, "socket": id});
        redis.publish("message", payload.to_string()).await;
        fence(&redis, "message").await;

        for (i, client) in clients.iter_mut().enumerate() {
            if i != cause {
                assert_eq!(client.next().await.text, payload.to_string());
            }
            client.expect("fence").await;
        }
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_spares_nobody() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let gone = sandbox.client(0, "/x").await.id;
    let mut clients = one_on_each(&sandbox, "message").await;

    for socket in [
        json!("123.456"),
        json!(gone),
        json!(5),
        json!({}),
        json!(""),
    ] {
        let payload = json!({"event": "hello", "data": {"socket": socket}, "socket": socket});
        redis.publish("message", payload.to_string()).await;
        fence(&redis, "message").await;

        for client in &mut clients {
            assert_eq!(client.next().await.text, payload.to_string());
            client.expect("fence").await;
        }
    }
}

#[tokio::test]
async fn who_is_not_in_the_room_gets_nothing() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut strangers = vec![];
    for i in 0..3 {
        let mut stranger = sandbox.client(i, "/elsewhere").await;
        stranger.join("message").await;
        stranger.leave("message").await;
        strangers.push(stranger);
    }
    let mut members = one_on_each(&sandbox, "message").await;

    redis.publish("message", MESSAGE).await;
    fence(&redis, "/elsewhere").await;

    for client in &mut strangers {
        client.expect("fence").await;
    }
    for client in &mut members {
        assert_eq!(client.next().await.text, MESSAGE);
    }
}

// === channels ===

#[tokio::test]
async fn the_prefix_is_taken_off() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "prefix = \"laravel-database-\"").await;
    let mut clients = one_on_each(&sandbox, "message").await;

    assert_eq!(redis.publish("laravel-database-message", MESSAGE).await, 3);
    assert_eq!(redis.publish("message", MESSAGE).await, 0, "not Laravel's");
    fence(&redis, "laravel-database-message").await;

    for client in &mut clients {
        assert_eq!(client.next().await.text, MESSAGE);
        client.expect("fence").await;
    }
}

#[tokio::test]
async fn a_prefix_is_taken_at_its_word() {
    let redis = Redis::start().await;
    let config = node(
        &redis.url(),
        "prefix = 'shop[1]*\\?:'\npattern = \"orders.*\"",
    );
    let node = config.start().await;
    redis.has_listeners(1).await;
    let mut client = joined(&node, "orders.1").await;

    for channel in [
        "shop1x\\y:orders.1",
        "shop[1]*\\?:invoices.1",
        "shop[1]x\\?:orders.1",
    ] {
        assert_eq!(redis.publish(channel, MESSAGE).await, 0, "{channel}");
    }
    assert_eq!(redis.publish("shop[1]*\\?:orders.1", MESSAGE).await, 1);

    assert_eq!(client.next().await.text, MESSAGE);
}

#[tokio::test]
async fn a_forgotten_prefix_is_hinted_at_once() {
    let redis = Redis::start().await;
    let mut node = node(&redis.url(), "").start().await;
    redis.has_listeners(1).await;
    let mut client = joined(&node, "laravel_database_message").await;

    for _ in 0..3 {
        redis.publish("laravel_database_message", MESSAGE).await;
        assert_eq!(client.next().await.text, MESSAGE);
    }

    let hint = r#"[laravel] prefix = "laravel_database_""#;
    let log = log(&mut node);
    assert_eq!(log.matches(hint).count(), 1, "{log}");
}

#[tokio::test]
async fn garbage_harms_nobody() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut clients = one_on_each(&sandbox, "message").await;
    let large = event("large", &json!("x".repeat(2 << 20)));
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let reverb = r#"{"type":"message","payload":{"event":"X","channels":["message"],"data":"{}"}}"#;

    let payloads: [&[u8]; 12] = [
        b"",
        b"hello",
        b"null",
        b"[]",
        b"{}",
        br#"["event"]"#,
        br#"{"event":5}"#,
        br#"{"event":"x""#,
        b"{\"event\":\"\xff\"}",
        reverb.as_bytes(),
        deep.as_bytes(),
        large.as_bytes(),
    ];
    for payload in payloads {
        assert_eq!(redis.publish("message", payload).await, 3);
    }
    let channels = ["two\nlines", &"x".repeat(201)];
    for channel in channels {
        assert_eq!(redis.publish(channel, MESSAGE).await, 3);
    }
    fence(&redis, "message").await;

    for client in &mut clients {
        assert_eq!(client.next().await.text, FENCE);
    }
    let bad = payloads.len() + channels.len();
    for i in 0..3 {
        let metrics = sandbox.api(i).get("/metrics").await;
        for line in [
            "unisono_laravel_connected 1\n".to_owned(),
            "unisono_laravel_broadcasts_total{result=\"delivered\"} 1\n".to_owned(),
            format!("unisono_laravel_broadcasts_total{{result=\"bad\"}} {bad}\n"),
        ] {
            let text = metrics.body.as_str().expect("text");
            assert!(text.contains(&line), "{line}in {text}");
        }
    }
}

// === Redis comes and goes ===

#[tokio::test]
async fn nodes_serve_until_redis_comes_up() {
    let mut redis = Redis::absent();
    let config = Sandbox::config().toml(&section(&redis.url(), ""));
    let sandbox = config.start().await;
    let mut clients = one_on_each(&sandbox, "message").await;
    sandbox
        .api(0)
        .publish("message", "hello", Value::Null)
        .await;
    for client in &mut clients {
        client.expect("hello").await;
    }

    redis.start_again().await;
    redis.has_listeners(3).await;
    redis.publish("message", MESSAGE).await;

    for client in &mut clients {
        // Redis may have been there for others before.
        assert_eq!(client.expect("unisono:gap").await.data["room"], Value::Null);
        assert_eq!(client.next().await.text, MESSAGE);
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_costs_a_gap_and_nothing_else() {
    let mut redis = Redis::start().await;
    let mut sandbox = sandbox(&redis, "").await;
    let mut clients = one_on_each(&sandbox, "message").await;

    for _ in 0..2 {
        redis.kill();
        for node in &sandbox.nodes {
            connected(node, 0).await;
        }
        redis.start_again().await;
        redis.has_listeners(3).await;
        redis.publish("message", MESSAGE).await;

        for client in &mut clients {
            assert_eq!(client.expect("unisono:gap").await.data["room"], Value::Null);
            assert_eq!(client.next().await.text, MESSAGE);
        }
    }
    for node in &mut sandbox.nodes {
        let log = log(node);
        let lines = |text: &str| log.matches(text).count();
        assert_eq!(lines("listening to Laravel's broadcasts"), 3, "{log}");
    }
}

#[tokio::test]
async fn a_redis_that_only_keeps_its_connections_is_noticed() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut clients = one_on_each(&sandbox, "message").await;

    redis.freeze();
    for node in &sandbox.nodes {
        connected(node, 0).await;
    }
    redis.thaw();
    for node in &sandbox.nodes {
        connected(node, 1).await;
    }
    redis.publish("message", MESSAGE).await;
    fence(&redis, "message").await;

    for client in &mut clients {
        client.expect("unisono:gap").await;
        assert_eq!(client.next().await.text, MESSAGE);
        client.expect("fence").await;
    }
}

// === login ===

#[tokio::test]
async fn a_password_is_taken_from_its_file_at_each_attempt() {
    let redis = Redis::config().password("correct horse").start().await;
    let file = redis.write("given", "battery staple\n");
    let mut node = node(&redis.url(), &password(&file)).start().await;
    let mut client = joined(&node, "message").await;
    eventually("the refusal is logged", async || {
        let log = log(&mut node);
        if log.contains("Redis is away") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;

    redis.write("given", "correct horse\n");
    redis.has_listeners(1).await;
    redis.publish("message", MESSAGE).await;

    client.expect("unisono:gap").await;
    assert_eq!(client.next().await.text, MESSAGE);
    let log = log(&mut node);
    for secret in ["battery", "horse"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test]
async fn a_user_needs_no_more_than_to_listen() {
    let rights = "resetchannels &laravel-database-* -@all +psubscribe +ping";
    let config = Redis::config().password("of others");
    let redis = config.user("reader", "own", rights).start().await;
    let file = redis.write("given", "own");
    let prefix = "prefix = \"laravel-database-\"";
    let config = node(
        &redis.url_of("reader"),
        &format!("{prefix}\n{}", password(&file)),
    );
    let node = config.start().await;
    redis.has_listeners(1).await;
    let mut client = joined(&node, "message").await;

    redis.publish("laravel-database-message", MESSAGE).await;

    assert_eq!(client.next().await.text, MESSAGE);
}

#[tokio::test]
async fn redis_is_spoken_to_over_tls() {
    let redis = Redis::config().tls().start().await;
    let authority = redis.authority();
    let trust = authority.to_str().expect("a path in UTF-8");
    let trusting = node(&redis.tls_url(), "").env("SSL_CERT_FILE", trust);
    let trusting = trusting.start().await;
    redis.has_listeners(1).await;
    let mut client = joined(&trusting, "message").await;

    redis.publish("message", MESSAGE).await;
    assert_eq!(client.next().await.text, MESSAGE);

    let mut wary = node(&redis.tls_url(), "").start().await;
    eventually("a certificate of nobody's is refused", async || {
        let log = log(&mut wary);
        if log.contains("Redis is away") && log.contains("certificate") {
            Ok(())
        } else {
            Err(log)
        }
    })
    .await;
    assert_eq!(redis.listeners().await, 1);
}

#[tokio::test]
async fn a_password_file_that_is_not_there_stops_the_start() {
    let redis = Redis::start().await;
    let config = node(&redis.url(), &password(Path::new("/nowhere")));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("unisono.toml");
    std::fs::write(&file, config.text()).expect("a file in the test's own directory");

    let mut command = unisono();
    command.arg("--config").arg(file);
    let mut process = Process::spawn("unisono", command, directory.path(), "");

    assert!(!process.exited().await.success());
    assert!(
        process.stderr().contains("/nowhere"),
        "{}",
        process.stderr()
    );
}

// === private channels and tokens ===

#[tokio::test]
async fn private_channels_are_closed_to_who_shows_no_token() {
    let redis = Redis::start().await;
    let sandbox = sandbox(&redis, "").await;
    let mut client = sandbox.client(0, "/x").await;

    for channel in ["private-chat.1", "presence-chat.1", "private-encrypted-x"] {
        let join = json!({"room": channel});
        assert_eq!(client.refused("unisono:join", join).await, "forbidden");
        client
            .send_text(json!({"channel": channel}).to_string())
            .await;
        client.expect_error("forbidden").await;
        redis.publish(channel, MESSAGE).await;
    }

    fence(&redis, "/x").await;
    client.expect("fence").await;
}

#[tokio::test]
async fn a_bad_token_is_refused_before_the_101() {
    let redis = Redis::start().await;
    let node = node(&redis.url(), "").toml(&auth()).start().await;
    let good = token(json!({"sub": "1"}));
    let (head, signature) = good.rsplit_once('.').expect("three parts");
    let other: String = signature.chars().rev().collect();
    let expired = token(json!({"sub": "1", "exp": 1_000_000_000}));
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIiwiZXhwIjo0MTAyNDQ0ODAwfQ.";

    for path in [
        "/x".to_owned(),
        "/x?token=".to_owned(),
        "/x?token=hello".to_owned(),
        format!("/x?token={head}.{other}"),
        format!("/x?token={expired}"),
        format!("/x?token={unsigned}"),
        format!("/x?other={good}"),
    ] {
        let mut wire = node.wire().await;
        wire.send(upgrade_request(&path)).await;
        assert_eq!(wire.response().await.status, 401, "{path}");
    }

    let mut client = node.client(&format!("/x?token={good}")).await;
    client.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_token_names_the_private_channels_that_its_holder_may_join() {
    let redis = Redis::start().await;
    let toml = section(&redis.url(), "prefix = \"laravel-database-\"") + &auth();
    let sandbox = Sandbox::config().toml(&toml).start().await;
    redis.has_listeners(3).await;
    let token = token(json!({"sub": "1", "rooms": ["/x", "private-chat.1"]}));
    let mut clients = vec![];
    for i in 0..3 {
        let mut client = sandbox.client(i, &format!("/x?token={token}")).await;
        client.join("private-chat.1").await;
        let other = json!({"room": "private-chat.2"});
        assert_eq!(client.refused("unisono:join", other).await, "forbidden");
        client.send_text(r#"{"channel":"private-chat.2"}"#).await;
        client.expect_error("forbidden").await;
        clients.push(client);
    }

    redis
        .publish("laravel-database-private-chat.2", MESSAGE)
        .await;
    redis
        .publish("laravel-database-private-chat.1", MESSAGE)
        .await;
    fence(&redis, "laravel-database-private-chat.1").await;

    for client in &mut clients {
        assert_eq!(client.next().await.text, MESSAGE);
        client.expect("fence").await;
    }
}

// === helpers ===

/// The section `[laravel]` for a Redis at this URL.
fn section(url: &str, more: &str) -> String {
    format!("[laravel]\nredis_url = \"{url}\"\n{more}\n")
}

fn password(file: &Path) -> String {
    format!("redis_password_file = {file:?}")
}

fn auth() -> String {
    format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\n")
}

/// A token with these claims, good for long where they do not say how long.
fn token(mut claims: Value) -> String {
    if claims["exp"].is_null() {
        claims["exp"] = json!(4_102_444_800_u64);
    }
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    jsonwebtoken::encode(&Header::default(), &claims, &key).expect("claims of our own")
}

/// One node that listens to a Redis.
fn node(url: &str, more: &str) -> NodeConfig {
    Node::config("alone").toml(&section(url, more))
}

/// Three nodes that listen to it.
async fn sandbox(redis: &Redis, more: &str) -> Sandbox {
    let config = Sandbox::config().toml(&section(&redis.url(), more));
    let sandbox = config.start().await;
    redis.has_listeners(3).await;
    sandbox
}

/// A client that has joined as those of the article do.
async fn joined(node: &Node, channel: &str) -> Client {
    let mut client = node.client("/").await;
    let join = json!({"channel": channel, "event": "Message"});
    client.send_text(join.to_string()).await;
    eventually("the client is in the room", async || {
        let members = node.api().members(channel).await;
        let sockets = members["sockets"].as_array();
        let mut ids = sockets.into_iter().flatten().map(|socket| &socket["id"]);
        if ids.any(|id| *id == client.id) {
            Ok(())
        } else {
            Err(members)
        }
    })
    .await;
    client
}

async fn one_on_each(sandbox: &Sandbox, channel: &str) -> Vec<Client> {
    let mut clients = vec![];
    for node in &sandbox.nodes {
        clients.push(joined(node, channel).await);
    }
    clients
}

/// Comes after everything that Redis was given before, and shows that nothing else did.
async fn fence(redis: &Redis, channel: &str) {
    redis.publish(channel, FENCE).await;
}

fn event(name: &str, data: &Value) -> String {
    json!({"event": name, "data": data, "socket": null}).to_string()
}

/// Waits until the node says whether it is connected to Redis.
async fn connected(node: &Node, gauge: u8) {
    let line = format!("unisono_laravel_connected {gauge}\n");
    within(NOTICE, "the node has noticed", async || {
        let metrics = node.api().get("/metrics").await.body;
        metrics.as_str().is_some_and(|text| text.contains(&line))
    })
    .await;
}

fn log(node: &mut Node) -> String {
    node.process().stdout() + &node.process().stderr()
}
