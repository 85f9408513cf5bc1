//! The examples of `server/examples/`, each as three nodes on one NATS: what their heads promise.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use unisono_tests::{Client, Sandbox, eventually, upgrade_request};

const ONE_SECOND: Duration = Duration::from_secs(1);

async fn example(name: &str) -> Sandbox {
    Sandbox::config().example(name).start().await
}

/// Clients of rooms that greet nobody, one on each node, when all nodes know of all of them.
async fn bare_clients(sandbox: &Sandbox) -> Vec<Client> {
    let mut clients = vec![];
    for node in &sandbox.nodes {
        clients.push(node.ungreeted("/").await);
    }
    for node in &sandbox.nodes {
        eventually("all are in the room", async || {
            node.api().members("/").await["count"] == 3
        })
        .await;
    }
    clients
}

/// Says goodbye, hears it, and hangs up; returns who that was.
async fn leave(mut client: Client) -> String {
    client.close(1000, "").await;
    client.expect_close().await;
    client.id
}

// === private_messages ===

/// A client of which everybody else has been told: of what it sends nothing is read before.
async fn newcomer(sandbox: &Sandbox, node: usize) -> Client {
    let mut client = sandbox.client(node, "/").await;
    let note = json!({"to": client.id, "content": "note"});
    assert_eq!(client.ack("private message", note).await, "delivered");
    assert_eq!(
        client.expect("private message").await.data["content"],
        "note"
    );
    client
}

#[tokio::test]
async fn private_messages_tell_everybody_else_who_comes() {
    let sandbox = example("private_messages").await;
    let mut a = newcomer(&sandbox, 0).await;
    let mut b = newcomer(&sandbox, 1).await;
    let mut c = newcomer(&sandbox, 2).await;

    let content = format!("User [{}] joined.", b.id);
    let joined = a.expect("user joined").await.data;
    assert_eq!(joined, json!({"id": b.id, "content": content}));
    for earlier in [&mut a, &mut b] {
        assert_eq!(earlier.expect("user joined").await.data["id"], json!(c.id));
    }
    // Each from the node of a newcomer, after what that one caused.
    for (i, fence) in ["fence 0", "fence 1", "fence 2"].into_iter().enumerate() {
        sandbox.api(i).broadcast(fence, Value::Null).await;
        for client in [&mut a, &mut b, &mut c] {
            client.expect(fence).await;
        }
    }
}

#[tokio::test]
async fn private_messages_reach_one_socket_on_whichever_node() {
    let sandbox = example("private_messages").await;
    let mut a = newcomer(&sandbox, 0).await;
    let mut b = newcomer(&sandbox, 1).await;
    let mut c = newcomer(&sandbox, 2).await;
    for joined in [&b.id, &c.id] {
        assert_eq!(a.expect("user joined").await.data["id"], json!(joined));
    }
    b.expect("user joined").await;

    for to in [&mut a, &mut b] {
        let data = json!({"to": to.id, "content": "hello"});
        assert_eq!(c.ack("private message", data).await, "delivered");
        let message = to.expect("private message").await;
        assert_eq!(message.data, json!({"from": c.id, "content": "hello"}));
        assert_eq!(message.room, None);
    }
    sandbox.api(2).broadcast("fence", Value::Null).await;
    for client in [&mut a, &mut b, &mut c] {
        client.expect("fence").await;
    }
}

#[tokio::test]
async fn private_messages_to_nobody_are_told_so() {
    let sandbox = example("private_messages").await;
    let mut gone = newcomer(&sandbox, 1).await;
    let mut a = newcomer(&sandbox, 0).await;
    gone.expect("user joined").await;
    let gone = leave(gone).await;

    let nonsense = json!({"to": "nonsense", "content": "hello"});
    let refusal = a.request("private message", nonsense).await;
    let refusal = refusal.expect_err("the id is none");
    assert_eq!(refusal.code, "handler_failed");
    let expected = "in `data`: to: a socket id is a lower-case, hyphenated UUID of version 8";
    assert_eq!(refusal.message, expected);

    let refusal = a.request("private message", json!({"to": gone})).await;
    let refusal = refusal.expect_err("there is no content");
    let expected = "in `data`: missing field `content`";
    assert!(refusal.message.starts_with(expected), "{refusal:?}");

    let late = json!({"to": gone, "content": "hello"});
    eventually("the socket is gone", async || {
        a.ack("private message", late.clone()).await == "not_found"
    })
    .await;
}

// === chat_rooms ===

#[tokio::test]
async fn chat_rooms_keep_their_messages_to_themselves() {
    let sandbox = example("chat_rooms").await;
    let mut a = sandbox.client(0, "/chat-rooms/1").await;
    let mut b = sandbox.client(1, "/chat-rooms/1").await;
    let mut c = sandbox.client(2, "/chat-rooms/1").await;
    let mut elsewhere = sandbox.client(1, "/chat-rooms/2").await;

    let ack = a.ack("new message", json!({"content": "hi"})).await;

    assert_eq!(ack, "sent");
    for member in [&mut b, &mut c] {
        let message = member.expect("new message").await;
        assert_eq!(message.data, json!({"from": a.id, "content": "hi"}));
        assert_eq!(message.room.as_deref(), Some("/chat-rooms/1"));
    }
    sandbox.api(0).broadcast("fence", Value::Null).await;
    for client in [&mut a, &mut b, &mut c, &mut elsewhere] {
        client.expect("fence").await;
    }
}

#[tokio::test]
async fn chat_rooms_know_their_members_on_all_nodes() {
    let sandbox = example("chat_rooms").await;
    let mut clients = vec![];
    for i in 0..3 {
        clients.push(sandbox.client(i, "/chat-rooms/1").await);
    }
    let mut alone = sandbox.client(1, "/chat-rooms/2").await;
    let mut ids: Vec<String> = clients.iter().map(|client| client.id.clone()).collect();
    ids.sort();

    for client in &mut clients {
        let found = client.ack("who", Value::Null).await;
        let expected = json!({"chat_room": "1", "count": 3, "members": ids});
        assert_eq!(found, expected);
    }
    let found = alone.ack("who", Value::Null).await;
    let expected = json!({"chat_room": "2", "count": 1, "members": [alone.id]});
    assert_eq!(found, expected);
}

#[tokio::test]
async fn chat_rooms_hear_who_left() {
    let sandbox = example("chat_rooms").await;
    let mut a = sandbox.client(0, "/chat-rooms/1").await;
    let mut b = sandbox.client(1, "/chat-rooms/1").await;
    let c = sandbox.client(2, "/chat-rooms/1").await;
    let mut elsewhere = sandbox.client(0, "/chat-rooms/2").await;

    let c_id = leave(c).await;
    for member in [&mut a, &mut b] {
        let left = member.expect("user left").await.data;
        let content = format!("User [{c_id}] left.");
        assert_eq!(left, json!({"id": c_id, "content": content}));
    }
    let b_id = b.id.clone();
    drop(b);
    let left = a.expect("user left").await.data;
    assert_eq!(left["id"], json!(b_id), "it was gone without a word");

    sandbox.api(2).broadcast("fence", Value::Null).await;
    sandbox.api(1).broadcast("fence", Value::Null).await;
    for client in [&mut a, &mut elsewhere] {
        client.expect("fence").await;
        client.expect("fence").await;
    }
}

#[tokio::test]
async fn chat_rooms_have_no_way_around_their_handlers() {
    let sandbox = example("chat_rooms").await;
    let mut a = sandbox.client(0, "/chat-rooms/1").await;
    let mut b = sandbox.client(1, "/chat-rooms/2").await;
    let lie = json!({"id": a.id, "content": "User [a] left."});

    for (event, data) in [
        ("unisono:join", json!({"room": "/chat-rooms/2"})),
        (
            "unisono:publish",
            json!({"room": "/chat-rooms/1", "event": "user left", "data": lie}),
        ),
        (
            "unisono:emit",
            json!({"to": b.id, "event": "user left", "data": lie}),
        ),
    ] {
        assert_eq!(a.refused(event, data).await, "forbidden", "{event}");
    }
    assert_eq!(a.refused("user left", lie).await, "unknown_event");
    sandbox.api(0).broadcast("fence", Value::Null).await;
    b.expect("fence").await;
}

// === username ===

async fn named(sandbox: &Sandbox, i: usize, cookie: &str) -> Client {
    Client::connect_with(&sandbox.nodes[i].url("/"), &[("cookie", cookie)]).await
}

#[tokio::test]
async fn username_comes_from_the_cookie_and_stays_to_the_end() {
    let sandbox = example("username").await;
    let mut alice = named(&sandbox, 0, "theme=dark; username=alice").await;
    let mut bob = named(&sandbox, 1, "username=bob").await;
    let mut carol = named(&sandbox, 2, "username=carol").await;
    let alices = json!({"username": "alice", "content": "hi"});
    let bobs = json!({"username": "bob", "content": "hello"});

    let ack = alice.ack("new message", json!({"content": "hi"})).await;
    assert_eq!(ack, "sent");
    for other in [&mut bob, &mut carol] {
        assert_eq!(other.expect("new message").await.data, alices);
    }
    let lie = json!({"username": "alice", "content": "hello"});
    assert_eq!(bob.ack("new message", lie).await, "sent");
    for other in [&mut alice, &mut carol] {
        assert_eq!(other.expect("new message").await.data, bobs);
    }

    leave(alice).await;
    for client in [&mut bob, &mut carol] {
        let left = client.expect("user left").await.data;
        assert_eq!(left, json!({"username": "alice"}));
    }
}

#[tokio::test]
async fn username_is_no_claim_of_the_client() {
    let sandbox = example("username").await;
    let mut alice = named(&sandbox, 0, "username=alice").await;
    let mut bob = named(&sandbox, 1, "username=bob").await;

    let lie = json!({"username": "alice", "content": "hi"});
    let publish = json!({"room": "/", "event": "new message", "data": lie});
    assert_eq!(bob.refused("unisono:publish", publish).await, "forbidden");
    let emit = json!({"to": alice.id, "event": "new message", "data": lie});
    assert_eq!(bob.refused("unisono:emit", emit).await, "forbidden");
    sandbox.api(1).broadcast("fence", Value::Null).await;
    alice.expect("fence").await;
}

#[tokio::test]
async fn username_is_needed() {
    let sandbox = example("username").await;
    for node in &sandbox.nodes {
        for cookie in ["", "Cookie: theme=dark\r\n", "Cookie: username=\r\n"] {
            let request = upgrade_request("/");
            let request = request.replacen("\r\n", &format!("\r\n{cookie}"), 1);
            let mut wire = node.wire().await;
            wire.send(request).await;
            let response = wire.response().await;
            assert_eq!(response.status, 401, "{cookie}: {response:?}");
            assert!(response.body.contains("`username` is missing"));
        }
    }
    assert_eq!(sandbox.api(0).members("/").await["count"], 0);
}

// === push ===

#[tokio::test]
async fn push_sends_through_any_node() {
    let sandbox = example("push").await;
    let mut bystander = sandbox.client(0, "/").await;
    for to in 0..3 {
        let mut client = sandbox.client(to, "/").await;
        for from in 0..3 {
            let path = format!("/server/send?fd={}", client.id);
            assert_eq!(sandbox.api(from).get(&path).await.ok(), "");
            client.expect_frame(Message::text("Hello World.")).await;
        }
    }
    sandbox.api(0).broadcast("fence", Value::Null).await;
    bystander.expect("fence").await;
}

#[tokio::test]
async fn push_closes_after_a_second_through_any_node() {
    let sandbox = example("push").await;
    let mut clients = vec![];
    for from in 0..3 {
        let client = sandbox.client((from + 1) % 3, "/").await;
        let path = format!("/server/close?fd={}", client.id);
        let asking = Instant::now();
        assert_eq!(sandbox.api(from).get(&path).await.ok(), "");
        clients.push((client, asking));
    }
    for (client, asking) in &mut clients {
        assert_eq!(client.expect_close().await, (1000, String::new()));
        assert!(asking.elapsed() >= ONE_SECOND, "{:?}", asking.elapsed());
    }
}

#[tokio::test]
async fn push_says_what_is_wrong_with_an_id() {
    let sandbox = example("push").await;
    let gone = leave(sandbox.client(2, "/").await).await;
    let nowhere = format!("{}{}", "0".repeat(8), &gone[8..]);

    for verb in ["send", "close"] {
        for query in ["?fd=17", "?fd=", ""] {
            let answer = sandbox.api(0).get(&format!("/server/{verb}{query}")).await;
            assert_eq!(answer.status, 400, "{verb}{query}: {}", answer.body);
        }
    }
    for id in [gone, nowhere] {
        eventually("the socket is gone", async || {
            let answer = sandbox.api(0).get(&format!("/server/send?fd={id}")).await;
            answer.status == 404
        })
        .await;
        let path = format!("/server/close?fd={id}");
        assert_eq!(sandbox.api(0).get(&path).await.ok(), "");
    }
}

// === broadcast ===

#[tokio::test]
async fn broadcast_reaches_every_connection() {
    let sandbox = example("broadcast").await;
    let mut clients = bare_clients(&sandbox).await;
    for api in (0..3).map(|i| sandbox.api(i)) {
        let answer = api.query("/", &[("message", "hi, 世界 & all")]).await;
        assert_eq!(answer.ok(), "said to 3\n");
        for client in &mut clients {
            client.expect_frame(Message::text("hi, 世界 & all")).await;
        }
    }
    for client in &mut clients {
        client.send_text("anything").await;
        client.expect_frame(Message::text("this is server")).await;
    }
    assert_eq!(sandbox.api(0).get("/").await.status, 400);
}

// === echo_to_all ===

#[tokio::test]
async fn echo_to_all_includes_the_sender() {
    let sandbox = example("echo_to_all").await;
    let mut clients = bare_clients(&sandbox).await;
    for sender in 0..3 {
        let text = format!("<b>hi</b> from {sender}");
        clients[sender].send_text(text.clone()).await;
        for client in &mut clients {
            client.expect_frame(Message::text(text.clone())).await;
        }
    }
    let fence = json!({"text": "fence"});
    sandbox.api(2).post("broadcast", fence).await.ok();
    for client in &mut clients {
        client.expect_frame(Message::text("fence")).await;
    }
}

#[tokio::test]
async fn echo_to_all_has_a_page() {
    let sandbox = example("echo_to_all").await;
    let mut wire = sandbox.nodes[1].wire().await;
    wire.send("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    let response = wire.response().await;
    assert_eq!(response.status, 200);
    let html = Some("text/html; charset=utf-8");
    assert_eq!(response.header("content-type"), html);
    for part in ["<textarea", "<button", "<ul", ".textContent = data"] {
        assert!(response.body.contains(part), "{part}");
    }
    assert!(!response.body.contains(".innerHTML"));
}
