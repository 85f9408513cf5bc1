//! What an application in Rust may count on, on a node in this process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};
use unisono_server::testing::TestNode;
use unisono_server::{
    Accept, App, Close, HandlerError, Handshake, Join, Json, Message, Refuse, Room, Socket, Status,
    User,
};

/// Soon enough not to be waited for, in tests of a time limit.
const LIMIT: (&str, &str) = ("sockets.handler_timeout", "100ms");

async fn next<T>(receiver: &mut mpsc::UnboundedReceiver<T>) -> T {
    let received = tokio::time::timeout(Duration::from_secs(60), receiver.recv()).await;
    received.expect("soon").expect("the sender lives")
}

#[actix_web::test]
async fn messages_of_one_socket_are_handled_in_their_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let room = Room::new("/").on("n", async move |_: Socket, message: Message| {
        let n: u64 = message.data()?;
        // The earlier, the slower.
        for _ in n..50 {
            tokio::task::yield_now().await;
        }
        log.lock().expect("no panic").push(n);
        Ok::<_, HandlerError>(n)
    });
    let node = TestNode::start(App::new().room(room)).await;
    let mut client = node.connect("/").await;
    for n in 0..49 {
        client.send("n", n).await;
    }
    assert_eq!(client.ask("n", 49).await, 49);
    assert_eq!(*seen.lock().expect("no panic"), Vec::from_iter(0..50));
}

#[actix_web::test]
async fn a_slow_handler_holds_back_its_own_socket_only() {
    let go = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&go);
    let room = Room::new("/")
        .on("slow", async move |_: Socket, _: Message| {
            let _ = gate.acquire().await?;
            Ok::<_, HandlerError>("slow")
        })
        .on("fast", async |_: Socket, _: Message| "fast");
    let node = TestNode::start(App::new().room(room)).await;
    let mut held = node.connect("/").await;
    let mut free = node.connect("/").await;
    held.send_text(r#"{"event":"slow","id":1}"#).await;
    held.send_text(r#"{"event":"fast","id":2}"#).await;
    for _ in 0..10 {
        assert_eq!(free.ask("fast", ()).await, "fast");
    }
    // What is sent to it arrives all the same.
    let sent = node.unisono().emit(held.id(), "news", 1).await;
    assert_eq!(sent.expect("a good event"), Status::Delivered);
    assert_eq!(held.event("news").await, 1);
    go.add_permits(1);
    let answers = [held.text().await, held.text().await];
    assert_eq!(
        answers[0],
        r#"{"event":"unisono:ack","id":1,"data":"slow"}"#
    );
    assert_eq!(
        answers[1],
        r#"{"event":"unisono:ack","id":2,"data":"fast"}"#
    );
}

#[actix_web::test]
async fn a_handler_that_fails_costs_its_message_only() {
    let room = Room::new("/")
        .on("panics", async |_: Socket, message: Message| {
            assert_eq!(message.name(), "", "as it should");
        })
        .on("never returns", async |_: Socket, _: Message| {
            std::future::pending::<()>().await;
        })
        .on("says no", async |_: Socket, _: Message| {
            Err::<(), _>(HandlerError::new("not today"))
        })
        .on("breaks", async |_: Socket, _: Message| {
            std::fs::read("/nowhere/at/all")?;
            Ok::<_, HandlerError>(())
        })
        .on("works", async |_: Socket, _: Message| {
            Json(json!({ "fine": true }))
        });
    let node = TestNode::start_with(App::new().room(room), &[LIMIT]).await;
    let mut client = node.connect("/").await;
    for (event, message) in [
        ("panics", "the handler failed"),
        ("never returns", "the handler took too long"),
        ("says no", "not today"),
        ("breaks", "the handler failed"),
    ] {
        let expected = json!({"code": "handler_failed", "message": message, "event": event});
        assert_eq!(client.ask_error(event, ()).await, expected);
        // Without an id as well.
        client.send(event, ()).await;
        assert_eq!(client.event("unisono:error").await, expected);
        assert_eq!(client.ask("works", ()).await, json!({ "fine": true }));
    }
    let unknown = client.ask_error("no such event", ()).await;
    assert_eq!(unknown["code"], "unknown_event");
    assert_eq!(client.ask("works", ()).await, json!({ "fine": true }));
}

#[actix_web::test]
async fn the_context_lives_from_the_handshake_to_the_end() {
    struct Name(String);
    struct Count(AtomicUsize);
    let (sender, mut ends) = mpsc::unbounded_channel();
    let room = Room::new("/rooms/{id}")
        .on_handshake(async |handshake: Handshake| {
            let name = handshake.query("name").map(|name| name.into_owned());
            match name {
                Some(name) => Ok(Accept::new().user(name.clone()).context(Name(name))),
                None => Err(Refuse::status(402).message("pay first")),
            }
        })
        .on_open(async |socket: Socket| {
            socket.context().set(Count(AtomicUsize::new(0)));
        })
        .on("count", async |socket: Socket, _: Message| {
            let count = socket.context().get::<Count>();
            count.map(|count| Json(count.0.fetch_add(1, Ordering::Relaxed) + 1))
        })
        .on("whoami", async |socket: Socket, _: Message| {
            let name = socket.context().get::<Name>().map(|name| name.0.clone());
            Json(json!([
                name,
                socket.user(),
                socket.param("id"),
                socket.room()
            ]))
        })
        .on_close(async move |socket: Socket, close: Close| {
            let name = socket.context().get::<Name>();
            let count = socket.context().get::<Count>();
            let count = count.map(|count| count.0.load(Ordering::Relaxed));
            let name = name.map(|name| name.0.clone());
            let _ = sender.send((name, count, close.code, close.reason.to_string()));
        });
    let node = TestNode::start(App::new().room(room)).await;
    assert_eq!(node.refused("/rooms/7").await, 402);

    let mut client = node.connect("/rooms/7?name=ann").await;
    assert_eq!(client.ask("count", ()).await, 1);
    assert_eq!(client.ask("count", ()).await, 2);
    let whoami = json!(["ann", "ann", "7", "/rooms/7"]);
    assert_eq!(client.ask("whoami", ()).await, whoami);
    client.close().await;
    let ann = Some("ann".to_owned());
    assert_eq!(next(&mut ends).await, (ann, Some(2), 1000, String::new()));

    // Gone without a word.
    drop(node.connect("/rooms/7?name=bob").await);
    let (name, count, code, _) = next(&mut ends).await;
    assert_eq!((name.as_deref(), count, code), (Some("bob"), Some(0), 1006));

    // Closed by the application, all sockets of the user.
    let mut client = node.connect("/rooms/7?name=eve").await;
    let eve = node.unisono().disconnect(User("eve"));
    let closed = eve.code(4007).reason("enough").await;
    assert_eq!(closed.expect("a good close").value, 1);
    assert_eq!(client.closed().await, (4007, "enough".to_owned()));
    let (name, _, code, reason) = next(&mut ends).await;
    assert_eq!(
        (name.as_deref(), code, reason.as_str()),
        (Some("eve"), 4007, "enough")
    );
    assert!(
        ends.is_empty(),
        "once for each that was open, and not for who was refused"
    );
}

#[actix_web::test]
async fn the_end_is_handled_after_the_last_message() {
    let go = Arc::new(Notify::new());
    let gate = Arc::clone(&go);
    let (sender, mut order) = mpsc::unbounded_channel();
    let (opens, closes) = (sender.clone(), sender.clone());
    let room = Room::new("/")
        .on_open(async move |_: Socket| {
            tokio::task::yield_now().await;
            let _ = opens.send("opened");
        })
        .on("slow", async move |_: Socket, _: Message| {
            gate.notified().await;
            let _ = sender.send("handled");
        })
        .on_close(async move |_: Socket, _: Close| {
            let _ = closes.send("closed");
        });
    let node = TestNode::start(App::new().room(room)).await;
    let mut client = node.connect("/").await;
    client.send("slow", ()).await;
    drop(client);
    assert_eq!(next(&mut order).await, "opened");
    go.notify_one();
    assert_eq!(next(&mut order).await, "handled");
    assert_eq!(next(&mut order).await, "closed");
}

#[actix_web::test]
async fn a_handshake_that_is_not_decided_is_refused() {
    let room = Room::new("/")
        .on_handshake(async |_: Handshake| std::future::pending::<Result<Accept, Refuse>>().await);
    let node = TestNode::start_with(App::new().room(room), &[LIMIT]).await;
    assert_eq!(node.refused("/").await, 503);
    let room =
        Room::new("/").on_handshake(async |_: Handshake| Ok(Accept::new().user("bad\nname")));
    let node = TestNode::start(App::new().room(room)).await;
    assert_eq!(node.refused("/").await, 500);
    let room = Room::new("/").on_handshake(async |handshake: Handshake| {
        assert_eq!(handshake.path(), "", "as it should");
        Ok(Accept::new())
    });
    let node = TestNode::start(App::new().room(room)).await;
    assert_eq!(node.refused("/").await, 500);
    assert_eq!(
        node.refused("/elsewhere").await,
        404,
        "and the node goes on"
    );
}

#[actix_web::test]
async fn what_a_handler_sends_comes_before_its_ack() {
    let room = Room::new("/").on("burst", async |socket: Socket, _: Message| {
        for n in 0..20 {
            socket.emit("n", n)?;
        }
        Ok::<_, unisono_server::SendError>(())
    });
    let node = TestNode::start(App::new().room(room)).await;
    let mut client = node.connect("/").await;
    client.send_text(r#"{"event":"burst","id":"last"}"#).await;
    for n in 0..20 {
        assert_eq!(client.event("n").await, n);
    }
    let ack: Value = serde_json::from_str(&client.text().await).expect("JSON");
    assert_eq!(ack, json!({"event": "unisono:ack", "id": "last"}));
}

#[actix_web::test]
async fn rooms_of_the_configuration_come_after_the_applications() {
    let room = Room::new("/mine").on("x", async |_: Socket, _: Message| "handled");
    let node = TestNode::start(App::new().room(room)).await;
    assert_eq!(
        node.refused("/other").await,
        404,
        "no open mode beside an application"
    );
    let mut client = node.connect("/mine").await;
    assert_eq!(client.ask("x", ()).await, "handled");
    assert_eq!(
        client
            .ask_error("unisono:join", json!({"room": "/other"}))
            .await["code"],
        "bad_room"
    );
    assert_eq!(client.ask("unisono:ping", 5).await, 5);
}

#[actix_web::test]
async fn a_fresh_token_does_not_undo_what_the_application_allowed() {
    let secret = "a secret of the tests, long enough";
    let room = |pattern| Room::new(pattern).join(Join::UrlAndClient);
    let lobby = room("/lobby")
        .on_handshake(async |_: Handshake| Ok(Accept::new().rooms(["/lobby", "/game/{id}"])));
    let app = App::new().room(lobby).room(room("/{any...}"));
    let settings = [("auth.mode", "token"), ("auth.secret", secret)];
    let node = TestNode::start_with(app, &settings).await;
    let claims = json!({ "sub": "ann", "exp": 253_402_300_000_u64 });
    let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key);
    let token = token.expect("a token");
    let mut client = node.connect(&format!("/lobby?token={token}")).await;

    client
        .ask("unisono:join", json!({ "room": "/game/1" }))
        .await;
    let admin = json!({ "room": "/admin" });
    assert_eq!(
        client.ask_error("unisono:join", &admin).await["code"],
        "forbidden"
    );
    client
        .ask("unisono:refresh", json!({ "token": token }))
        .await;
    assert_eq!(
        client.ask_error("unisono:join", &admin).await["code"],
        "forbidden"
    );
    client
        .ask("unisono:join", json!({ "room": "/game/2" }))
        .await;
}
