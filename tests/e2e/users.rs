//! Sending to a user: all sockets that came with a token of that name, on either wire, on every node.

use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use unisono_tests::{Client, Sandbox, Stream, eventually};

use crate::applications::ask;

const SECRET: &str = "a secret of the application, 32 bytes or more";

/// A token of this user, good until 2100.
fn token(user: &str) -> String {
    let claims = json!({"sub": user, "exp": 4_102_444_800_u64});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).expect("claims are JSON")
}

async fn sandbox() -> Sandbox {
    let auth = format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"");
    Sandbox::config().toml(&auth).start().await
}

async fn client(sandbox: &Sandbox, i: usize, user: &str) -> Client {
    sandbox
        .client(i, &format!("/x?token={}", token(user)))
        .await
}

async fn stream(sandbox: &Sandbox, i: usize, user: &str) -> Stream {
    let bearer = format!("Authorization: Bearer {}\r\n", token(user));
    Stream::connect_with(sandbox.nodes[i].port(), "/x", &bearer).await
}

/// Alice on three nodes and two wires, and Bob.
struct Guests {
    clients: [Client; 2],
    streams: [Stream; 2],
    bob: Client,
}

impl Guests {
    async fn come(sandbox: &Sandbox) -> Self {
        Self {
            clients: [
                client(sandbox, 0, "alice").await,
                client(sandbox, 1, "alice").await,
            ],
            streams: [
                stream(sandbox, 1, "alice").await,
                stream(sandbox, 2, "alice").await,
            ],
            bob: client(sandbox, 2, "bob").await,
        }
    }

    async fn all_of_alice_get(&mut self, event: &str) {
        for client in &mut self.clients {
            client.expect(event).await;
        }
        for stream in &mut self.streams {
            stream.expect(event).await;
        }
    }
}

fn on_all_nodes(word: &str, count: u64) -> Value {
    json!({word: count, "nodes": {"reached": 3, "missing": []}})
}

#[tokio::test]
async fn an_emit_reaches_all_sockets_of_a_user() {
    let sandbox = sandbox().await;
    let mut guests = Guests::come(&sandbox).await;

    for i in 0..3 {
        let body = json!({"user": "alice", "event": "hello", "data": i});
        let answer = sandbox.api(i).post("emit", body).await.ok();
        assert_eq!(answer, on_all_nodes("delivered", 4));
        guests.all_of_alice_get("hello").await;
    }

    let nobody = json!({"user": "carol", "event": "hello"});
    let answer = sandbox.api(0).post("emit", nobody).await.ok();
    assert_eq!(answer, on_all_nodes("delivered", 0));
    let case = json!({"user": "Alice", "event": "hello"});
    let answer = sandbox.api(0).post("emit", case).await.ok();
    assert_eq!(answer, on_all_nodes("delivered", 0));
    sandbox.api(0).broadcast("fence", Value::Null).await;
    guests.bob.expect("fence").await;
    guests.all_of_alice_get("fence").await;
}

#[tokio::test]
async fn a_user_joins_and_leaves_with_all_sockets() {
    let sandbox = sandbox().await;
    let mut guests = Guests::come(&sandbox).await;
    let api = sandbox.api(0);
    let membership = json!({"user": "alice", "room": "vip"});

    let joined = api.post("join", membership.clone()).await.ok();
    assert_eq!(joined, on_all_nodes("joined", 4));
    let heard = api.publish_confirmed("vip", "hello", Value::Null).await;
    assert_eq!(heard["sockets"], 4);
    guests.all_of_alice_get("hello").await;

    let left = api.post("leave", membership).await.ok();
    assert_eq!(left, on_all_nodes("left", 4));
    let heard = api.publish_confirmed("vip", "hello", Value::Null).await;
    assert_eq!(heard["sockets"], 0);
    for (verb, word) in [("join", "joined"), ("leave", "left")] {
        let nobody = json!({"user": "carol", "room": "vip"});
        let answer = api.post(verb, nobody).await.ok();
        assert_eq!(answer, on_all_nodes(word, 0));
    }
}

#[tokio::test]
async fn a_user_is_disconnected_everywhere() {
    let sandbox = sandbox().await;
    let mut guests = Guests::come(&sandbox).await;
    let kick = json!({"user": "alice", "code": 4001, "reason": "kicked"});

    let answer = sandbox.api(2).post("disconnect", kick.clone()).await.ok();

    assert_eq!(answer, on_all_nodes("disconnected", 4));
    for client in &mut guests.clients {
        assert_eq!(client.expect_close().await, (4001, "kicked".to_owned()));
    }
    for stream in &mut guests.streams {
        let closing = json!({"code": 4001, "reason": "kicked"});
        assert_eq!(stream.expect_closing().await, closing);
    }
    let again = sandbox.api(0).post("disconnect", kick).await.ok();
    assert_eq!(again, on_all_nodes("disconnected", 0));
    guests.bob.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn who_has_gone_is_not_counted() {
    let sandbox = sandbox().await;
    let Guests {
        clients: [mut first, _second],
        streams: [third, _fourth],
        ..
    } = Guests::come(&sandbox).await;
    first.close(1000, "bye").await;
    first.expect_close().await;
    drop(third);

    let hello = json!({"user": "alice", "event": "hello"});
    unisono_tests::eventually("two are left", async || {
        let answer = sandbox.api(0).post("emit", hello.clone()).await.ok();
        if answer == on_all_nodes("delivered", 2) {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
}

#[tokio::test]
async fn questions_tell_the_user() {
    let sandbox = sandbox().await;
    let guests = Guests::come(&sandbox).await;
    let alice = [
        &guests.clients[0].id,
        &guests.clients[1].id,
        &guests.streams[0].id,
        &guests.streams[1].id,
    ];

    for id in alice {
        let seen = sandbox.api(0).get(&format!("/api/v1/sockets/{id}")).await;
        assert_eq!(seen.ok()["user"], "alice");
    }
    let members = sandbox.api(1).members("/x").await;
    let mut expected: Vec<Value> = alice
        .iter()
        .map(|id| json!({"id": id, "user": "alice"}))
        .collect();
    expected.push(json!({"id": guests.bob.id, "user": "bob"}));
    expected.sort_by_key(|socket| socket["id"].to_string());
    assert_eq!(members["sockets"], json!(expected));
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused() {
    let sandbox = sandbox().await;
    let api = sandbox.api(0);
    let hello = |mut body: Value| {
        body["event"] = json!("hello");
        body
    };
    let long = "x".repeat(1000);

    for name in ["", "line\nfeed", long.as_str()] {
        for (verb, body) in [
            ("emit", hello(json!({"user": name}))),
            ("disconnect", json!({"user": name})),
            ("join", json!({"user": name, "room": "/x"})),
            ("leave", json!({"user": name, "room": "/x"})),
        ] {
            let answer = api.post(verb, body).await;
            assert_eq!(answer.refusal(), (400, "bad_user"), "{verb} {name:?}");
        }
    }
    for (verb, body) in [
        ("emit", hello(json!({"user": "alice", "to": "x"}))),
        ("emit", hello(json!({"user": "alice", "room": "/x"}))),
        ("emit", hello(json!({}))),
        ("disconnect", json!({"user": "alice", "to": "x"})),
        ("disconnect", json!({"user": "alice", "room": "/x"})),
        ("disconnect", json!({"to": "x", "room": "/x"})),
        ("disconnect", json!({})),
        ("join", json!({"user": "alice", "to": "x", "room": "/x"})),
        ("join", json!({"user": "alice"})),
        ("leave", json!({"user": "alice", "to": "x", "room": "/x"})),
        ("leave", json!({"room": "/x"})),
    ] {
        let answer = api.post(verb, body.clone()).await;
        assert_eq!(answer.refusal().0, 400, "{verb} {body}");
    }
}

#[tokio::test]
async fn all_of_it_goes_over_nats_too() {
    let sandbox = sandbox().await;
    let mut guests = Guests::come(&sandbox).await;
    let bus = sandbox.nats[0].connect().await;
    let hello = json!({"user": "alice", "event": "hello"});
    let membership = json!({"user": "alice", "room": "vip"});

    for (verb, body, word) in [
        ("emit", hello.clone(), "delivered"),
        ("join", membership.clone(), "joined"),
        ("leave", membership, "left"),
    ] {
        assert_eq!(ask(&bus, verb, body).await, on_all_nodes(word, 4), "{verb}");
    }
    guests.all_of_alice_get("hello").await;
    let refused = ask(&bus, "emit", json!({"user": "", "event": "hello"})).await;
    assert_eq!(refused["error"]["code"], "bad_user", "{refused}");

    let kick = json!({"user": "alice", "code": 4001});
    let answer = ask(&bus, "disconnect", kick).await;
    assert_eq!(answer, on_all_nodes("disconnected", 4));
    for client in &mut guests.clients {
        assert_eq!(client.expect_close().await.0, 4001);
    }
    for stream in &mut guests.streams {
        assert_eq!(stream.expect_closing().await["code"], 4001);
    }
    let answer = ask(&bus, "emit", hello).await;
    assert_eq!(answer, on_all_nodes("delivered", 0));
}

#[tokio::test]
async fn a_user_counts_once_on_each_node() {
    let sandbox = sandbox().await;
    let guests = Guests::come(&sandbox).await;
    let users = async || {
        let mut users = Vec::new();
        for node in &sandbox.nodes {
            users.push(node.metrics().await.get("unisono_users"));
        }
        users
    };
    assert_eq!(users().await, [1.0, 1.0, 2.0]);
    drop(guests);
    eventually("they are gone", async || users().await == [0.0; 3]).await;
}
