//! Server-sent events: a room's path, asked for as an event stream, is a socket that only receives.

use std::time::SystemTime;

use jsonwebtoken::{EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};
use unisono_tests::{
    Dispatched, Nginx, Node, Response, Sandbox, Stream, Wire, eventually, free_port, stream_request,
};

// === what comes ===

#[tokio::test]
async fn the_greeting_comes_first() {
    let node = Node::alone("").await;
    let a = node.stream("/chat-rooms/1?x=1").await;
    let b = node.client("/chat-rooms/1").await;

    assert_eq!(a.room, "/chat-rooms/1");
    assert_eq!(a.node, b.node);
    assert_eq!(a.id[..8], b.id[..8], "ids name the node on either wire");
    assert_ne!(a.id, b.id);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
        ("connection", "close"),
    ] {
        assert_eq!(a.head.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_greeting_can_be_left_out() {
    let node = Node::alone("[sockets]\ngreeting = false").await;
    let mut a = Stream::ungreeted(node.port(), "/x").await;

    // Something comes all the same: the client learns that it is there.
    a.expect_comment().await;
    node.api().publish("/x", "hello", json!(1)).await;

    a.expect("hello").await;
}

#[tokio::test]
async fn what_a_websocket_gets_a_stream_gets_byte_for_byte() {
    let sandbox = Sandbox::start(3).await;
    let mut stream = sandbox.stream(0, "/x").await;
    let mut socket = sandbox.client(1, "/x").await;
    let mut sender = sandbox.client(2, "/x").await;
    let data = [
        "{}",
        "null",
        r#""""#,
        "123456789012345678901234567890",
        r#"{ "a" : [ 1 ,2 ], "a": "é😀\u00e9\n\r" }"#,
        "[\n  1,\n\n  2\n]",
        "\"data: not a field\"",
    ];

    for data in data {
        let body = format!(r#"{{"room":"/x","event":"e: v","data":{data}}}"#);
        sandbox.api(2).post_text("publish", &body).await.ok();
        let text = socket.expect("e: v").await.text;
        assert_eq!(stream.expect("e: v").await.text, text, "published: {data}");
        assert!(text.contains(data), "{text}");
        sender.expect("e: v").await;

        sender
            .send_text(format!(r#"{{"event":"relayed","data":{data}}}"#))
            .await;
        let text = socket.expect("relayed").await.text;
        assert_eq!(stream.expect("relayed").await.text, text, "relayed: {data}");
        assert!(text.contains(&sender.id), "{text}");

        let to = [&stream.id, &socket.id];
        let body = format!(r#"{{"to":{},"event":"emitted","data":{data}}}"#, json!(to));
        let results = sandbox.api(2).post_text("emit", &body).await.ok();
        assert_eq!(results["results"][&stream.id], "delivered");
        let text = socket.expect("emitted").await.text;
        assert_eq!(stream.expect("emitted").await.text, text, "emitted: {data}");

        let body = format!(r#"{{"event":"broadcast","data":{data}}}"#);
        sandbox.api(2).post_text("broadcast", &body).await.ok();
        let text = socket.expect("broadcast").await.text;
        assert_eq!(
            stream.expect("broadcast").await.text,
            text,
            "broadcast: {data}"
        );
        sender.expect("broadcast").await;
    }
}

#[tokio::test]
async fn lines_that_end_as_windows_ends_them_come_out_as_lines() {
    let node = Node::alone("").await;
    let mut a = node.stream("/x").await;

    let body = "{\"room\":\"/x\",\"event\":\"e\",\"data\":[\r\n1,\r2\n]}";
    node.api().post_text("publish", body).await.ok();

    let event = a.expect("e").await;
    assert_eq!(event.raw("data").as_deref(), Some("[\n1,\n2\n]"));
}

#[tokio::test]
async fn a_raw_room_gets_nothing_of_the_server_s_own() {
    let node = Node::alone("[[rooms]]\npattern = \"/raw/{id}\"\nformat = \"raw\"").await;
    let mut a = Stream::ungreeted(node.port(), "/raw/1").await;
    let mut b = node.ungreeted("/raw/1").await;
    a.expect_comment().await;
    eventually("both are in the room", async || {
        node.api().members("/raw/1").await["count"] == 2
    })
    .await;

    b.send_text("not { json").await;
    b.send_text("two\nlines\n").await;
    b.send_text("").await;
    b.send_binary([0x00, 0xff, 0x80]).await;
    b.send_binary([]).await;

    let dispatched = |name: &str, data: &str| Dispatched {
        name: name.to_owned(),
        data: data.to_owned(),
    };
    for (name, data) in [
        ("message", "not { json"),
        ("message", "two\nlines\n"),
        ("message", ""),
        ("binary", "AP+A"),
        ("binary", ""),
    ] {
        assert_eq!(a.dispatched().await, dispatched(name, data));
    }
    let bare = json!({"room": "/raw/1", "text": " led by a blank"});
    node.api().post("publish", bare).await.ok();
    assert_eq!(
        a.dispatched().await,
        dispatched("message", " led by a blank")
    );
    let disconnect = json!({"room": "/raw/1"});
    node.api().post("disconnect", disconnect).await.ok();
    a.expect_end().await;
}

#[tokio::test]
async fn bare_frames_come_bare() {
    let node = Node::alone("").await;
    let mut a = node.stream("/x").await;

    let text = json!({"to": a.id, "text": "not json"});
    node.api().post("emit", text).await.ok();
    let binary = json!({"to": a.id, "binary": "AP+A"});
    node.api().post("emit", binary).await.ok();

    assert_eq!(a.dispatched().await.data, "not json");
    let binary = a.dispatched().await;
    assert_eq!(
        (binary.name.as_str(), binary.data.as_str()),
        ("binary", "AP+A")
    );
}

#[tokio::test]
async fn comments_come_as_often_as_pings() {
    let node = Node::alone("[sockets]\nping_interval = \"100ms\"").await;
    let mut a = node.stream("/x").await;

    for _ in 0..3 {
        a.expect_comment().await;
    }
    node.api().emit(&a.id, "still here", Value::Null).await;
    while a.dispatched().await.data != r#"{"event":"still here","data":null}"# {}
}

// === a socket like others ===

#[tokio::test]
async fn a_stream_is_a_socket_to_everybody_on_every_node() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.stream(0, "/x").await;
    let mut b = sandbox.client(1, "/x").await;
    let api = sandbox.api(2);

    assert_eq!(api.emit(&a.id, "hello", json!(1)).await, "delivered");
    assert_eq!(a.expect("hello").await.data, 1);
    assert_eq!(b.emit(&a.id, "psst", json!(2)).await, "delivered");
    let psst = a.expect("psst").await;
    assert_eq!(
        (psst.room.as_deref(), psst.from.as_deref()),
        (None, Some(b.id.as_str()))
    );

    let seen = api.get(&format!("/api/v1/sockets/{}", a.id)).await.ok();
    assert_eq!(
        (&seen["id"], &seen["node"]),
        (&json!(a.id), &json!(a.node.clone()))
    );
    assert_eq!(
        (&seen["rooms"], &seen["user"]),
        (&json!(["/x"]), &Value::Null)
    );
    assert_eq!(api.members("/x").await["count"], 2);
    let confirmed = api.publish_confirmed("/x", "all", Value::Null).await;
    assert_eq!(confirmed["sockets"], 2);
    a.expect("all").await;

    assert_eq!(api.join(&a.id, "vip").await, "delivered");
    let confirmed = api.publish_confirmed("vip", "in", Value::Null).await;
    assert_eq!(confirmed["sockets"], 1);
    assert_eq!(a.expect("in").await.room.as_deref(), Some("vip"));
    let both = json!({"rooms": ["/x", "vip"], "event": "once", "confirm": true});
    assert_eq!(api.post("publish", both).await.ok()["sockets"], 2);
    a.expect("once").await;
    assert_eq!(api.leave(&a.id, "vip").await, "delivered");
    let confirmed = api.publish_confirmed("vip", "out", Value::Null).await;
    assert_eq!(confirmed["sockets"], 0);

    for body in [
        json!({"room": "/x", "event": "not for a", "except": [a.id], "confirm": true}),
        json!({"event": "not for a", "except": [a.id], "confirm": true}),
    ] {
        let verb = match body["room"].is_null() {
            true => "broadcast",
            false => "publish",
        };
        assert_eq!(api.post(verb, body).await.ok()["sockets"], 1, "{verb}");
    }
    api.emit(&a.id, "fence", Value::Null).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn an_event_reaches_an_application_that_is_on_nats() {
    let sandbox = Sandbox::start(2).await;
    let bus = sandbox.nats[0].connect().await;
    let mut a = sandbox.stream(0, "/x").await;

    for n in 0..20 {
        let body = json!({"to": a.id, "event": "n", "data": n}).to_string();
        let subject = "unisono.api.emit";
        let reply = bus.request(subject, body.into()).await.expect("an answer");
        let reply: Value = serde_json::from_slice(&reply.payload).expect("JSON");
        assert_eq!(reply["results"][&a.id], "delivered");
    }

    for n in 0..20 {
        assert_eq!(a.expect("n").await.data, n);
    }
}

// === the end ===

#[tokio::test]
async fn a_disconnect_is_told_before_the_body_ends() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.stream(0, "/x").await;
    let mut b = sandbox.stream(0, "/x").await;
    let mut c = sandbox.stream(1, "/x").await;
    let api = sandbox.api(1);

    assert_eq!(api.disconnect(&a.id, 4001, "kicked").await, "delivered");
    let closing = json!({"code": 4001, "reason": "kicked"});
    assert_eq!(a.expect_closing().await, closing);
    assert_eq!(a.retry, None);
    assert_eq!(api.emit(&a.id, "late", json!(1)).await, "not_found");

    let later = json!({"to": b.id, "after_ms": 100});
    api.post("disconnect", later).await.ok();
    assert_eq!(b.expect_closing().await["code"], 1000);

    let room = json!({"room": "/x", "code": 4002, "reason": "closing time"});
    assert_eq!(api.post("disconnect", room).await.ok()["disconnected"], 1);
    let closing = json!({"code": 4002, "reason": "closing time"});
    assert_eq!(c.expect_closing().await, closing);
    assert_eq!(api.members("/x").await["count"], 0);
}

#[tokio::test]
async fn a_client_that_goes_is_gone_at_once() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let gone = async |id: &str| {
        eventually("nobody finds the socket", async || {
            let seen = sandbox.api(1).get(&format!("/api/v1/sockets/{id}")).await;
            let members = sandbox.api(1).members("/x").await;
            match (seen.status, &members["count"]) {
                (404, count) if *count == 0 => Ok(()),
                _ => Err((seen, members)),
            }
        })
        .await;
        let status = sandbox.api(1).emit(id, "late", Value::Null).await;
        assert_eq!(status, "not_found");
    };

    let a = sandbox.stream(0, "/x").await;
    let id = a.id.clone();
    drop(a);
    gone(&id).await;

    let a = sandbox.stream(0, "/x").await;
    let id = a.id.clone();
    a.reset();
    gone(&id).await;

    let a = nginx.stream("/x").await;
    let id = a.id.clone();
    drop(a);
    gone(&id).await;

    let a = nginx.stream("/x").await;
    let id = a.id.clone();
    a.reset();
    gone(&id).await;

    let node = &sandbox.nodes[0];
    eventually("no places are taken", async || {
        let metrics = metrics(node).await;
        match gauge(&metrics, "unisono_sockets") {
            0 => Ok(()),
            count => Err(count),
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_client_sends_after_its_request_is_nobody_s() {
    let mut node = Node::alone("").await;
    let mut wire = node.wire().await;
    wire.send(stream_request("/x", "")).await;
    assert_eq!(wire.response().await.status, 200);
    eventually("one is in the room", async || {
        node.api().members("/x").await["count"] == 1
    })
    .await;

    let before = node.process().memory_kib();
    let more = stream_request("/y", "").repeat(1000);
    for _ in 0..500 {
        wire.send(&more).await;
    }
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 4096, "the node grew by {grown} KiB of 40000");
    assert_eq!(node.api().members("/x").await["count"], 1);
    assert_eq!(node.api().members("/y").await["count"], 0);
    node.api().post("disconnect", json!({"room": "/x"})).await;
    let body = String::from_utf8(wire.rest().await).expect("UTF-8");
    assert!(body.ends_with("\r\n0\r\n\r\n"), "{body}");
    assert!(!body.contains("HTTP/1.1"), "{body}");

    let mut wire = node.wire().await;
    wire.send(stream_request("/x", "")).await;
    assert_eq!(wire.response().await.status, 200);
    for _ in 0..500 {
        wire.send(&more).await;
    }
    drop(wire);
    eventually("nobody is left", async || {
        gauge(&metrics(&node).await, "unisono_sockets") == 0
    })
    .await;
}

#[tokio::test]
async fn a_drain_says_when_to_come_back() {
    let drain = "[drain]\ndelay = \"0s\"\nwindow = \"500ms\"\nreconnect_max = \"3s\"";
    let mut node = Node::alone(drain).await;
    let mut streams = vec![];
    for _ in 0..5 {
        streams.push(node.stream("/x").await);
    }
    let mut socket = node.client("/x").await;

    node.terminate();

    for stream in &mut streams {
        let closing = stream.expect_closing().await;
        assert_eq!(closing["code"], 1012, "{closing}");
        let reconnect_in_ms = closing["reconnect_in_ms"].as_u64();
        assert!(reconnect_in_ms.is_some_and(|ms| ms <= 3000), "{closing}");
        assert_eq!(stream.retry, reconnect_in_ms);
    }
    socket.expect("unisono:closing").await;
    assert_eq!(socket.expect_close().await.0, 1012);
    assert_eq!(node.process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_draining_node_takes_no_streams() {
    let node = Node::alone("[drain]\ndelay = \"60s\"").await;
    let mut a = node.stream("/x").await;

    node.terminate();
    let refused = eventually("streams are refused", async || {
        let refused = Stream::ask(node.port(), &stream_request("/x", "")).await;
        refused.err()
    })
    .await;

    assert_refused(&refused, 503, "draining");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    node.api().emit(&a.id, "still here", Value::Null).await;
    a.expect("still here").await;
}

// === those who do not read ===

#[tokio::test]
async fn who_never_reads_is_cut_and_the_others_miss_nothing() {
    let settings = "[sockets]\nqueue_bytes = \"256KiB\"\nwrite_timeout = \"2s\"";
    let mut node = Node::alone(settings).await;
    let mut deaf = Wire::narrow(node.port()).await;
    deaf.send(stream_request("/x", "")).await;
    eventually("it is in the room", async || {
        node.api().members("/x").await["count"] == 1
    })
    .await;
    let members = node.api().members("/x").await;
    let deaf_id = members["sockets"][0]["id"].as_str().expect("an id");
    let deaf_path = format!("/api/v1/sockets/{deaf_id}");
    let mut socket = node.client("/x").await;
    let mut stream = node.stream("/x").await;
    let padding = "x".repeat(32 * 1024);
    let before = node.process().memory_kib();

    for n in 0..800 {
        let data = json!({"n": n, "padding": padding});
        node.api().publish("/x", "big", data).await;
        assert_eq!(socket.expect("big").await.data["n"], n);
        assert_eq!(stream.expect("big").await.data["n"], n);
        let seen = node.api().get(&deaf_path).await.body;
        let queued = seen["queued_bytes"].as_u64().unwrap_or(0);
        assert!(queued <= 256 * 1024, "{queued} bytes wait after {n}");
    }

    eventually("it is cut", async || {
        let members = node.api().members("/x").await;
        match members["count"].as_u64() {
            Some(2) => Ok(()),
            _ => Err(members),
        }
    })
    .await;
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 8192, "the node grew by {grown} KiB of 25600");
    eventually("its place is free", async || {
        gauge(&metrics(&node).await, "unisono_sockets") == 2
    })
    .await;
    drop(deaf);
}

#[tokio::test]
async fn who_reads_too_slowly_is_told_so_after_what_fitted() {
    let settings = "[sockets]\nqueue_bytes = \"256KiB\"\nwrite_timeout = \"60s\"";
    let mut node = Node::alone(settings).await;
    let mut slow = node.stream("/x").await;
    let padding = "x".repeat(32 * 1024);
    let before = node.process().memory_kib();

    // More than its queue and what the system's buffers hold.
    let mut dropped = 0;
    for n in 0..1500 {
        let data = json!({"n": n, "padding": padding});
        let body = json!({"room": "/x", "event": "big", "data": data, "confirm": true});
        let answer = node.api().post("publish", body).await.ok();
        if answer["sockets"] == 0 {
            dropped += 1;
        }
    }
    assert!(dropped > 0, "everything fitted");
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 8192, "the node grew by {grown} KiB of 48000");

    let mut next = 0;
    let closing = loop {
        let event = slow.next().await;
        if event.event == "unisono:closing" {
            break event;
        }
        assert_eq!(event.data["n"], next, "a beginning without holes");
        next += 1;
    };
    assert_eq!(closing.data["code"], 1013, "{}", closing.text);
    slow.expect_end().await;
    eventually("its place is free", async || {
        gauge(&metrics(&node).await, "unisono_sockets") == 0
    })
    .await;
}

#[tokio::test]
async fn who_reads_a_little_now_and_then_costs_no_more() {
    let settings = "[sockets]\nqueue_bytes = \"256KiB\"\nwrite_timeout = \"60s\"";
    let mut node = Node::alone(settings).await;
    let mut slow = node.stream("/x").await;
    let padding = "x".repeat(32 * 1024);
    let before = node.process().memory_kib();

    // It takes one of each ten.
    let mut taken = 0;
    'all: for n in 0..2000 {
        let data = json!({"n": n, "padding": padding});
        node.api().publish("/x", "big", data).await;
        if n % 10 == 0 {
            let event = slow.next().await;
            if event.event == "unisono:closing" {
                break 'all;
            }
            assert_eq!(event.data["n"], taken, "a beginning without holes");
            taken += 1;
        }
    }
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 8192, "the node grew by {grown} KiB of 64000");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_hold_up_a_drain() {
    let settings = "[sockets]\nclose_timeout = \"500ms\"\n[drain]\ndelay = \"0s\"\nwindow = \"0s\"";
    let mut node = Node::alone(settings).await;
    let mut deaf = Wire::narrow(node.port()).await;
    deaf.send(stream_request("/x", "")).await;
    let mut good = node.stream("/x").await;
    let padding = "x".repeat(32 * 1024);
    for _ in 0..200 {
        node.api().publish("/x", "big", json!(padding)).await;
        good.expect("big").await;
    }

    node.terminate();

    assert_eq!(good.expect_closing().await["code"], 1012);
    assert_eq!(node.process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn who_is_disconnected_and_reads_no_more_is_not_waited_for() {
    let sockets = "[sockets]\nqueue_bytes = \"32MiB\"\nwrite_timeout = \"60s\"";
    let node = Node::alone(&format!("{sockets}\nclose_timeout = \"300ms\"")).await;
    let mut slow = Wire::narrow(node.port()).await;
    slow.send(stream_request("/x", "")).await;
    let mut good = node.stream("/x").await;
    let padding = "x".repeat(32 * 1024);
    for _ in 0..500 {
        node.api().publish("/x", "big", json!(padding)).await;
        good.expect("big").await;
    }

    let all = json!({"room": "/x", "code": 4001});
    node.api().post("disconnect", all).await.ok();
    assert_eq!(good.expect_closing().await["code"], 4001);
    eventually("it has read so much that it is its turn", async || {
        let mut read = 0;
        while read < 128 * 1024 {
            read += slow.swallow().await;
        }
        node.api().members("/x").await["count"] == 0
    })
    .await;

    eventually("its place is free", async || {
        gauge(&metrics(&node).await, "unisono_sockets") == 0
    })
    .await;
}

// === who gets one ===

#[tokio::test]
async fn only_who_accepts_a_stream_gets_one() {
    let node = Node::alone("").await;
    let ask = async |accept: &str| {
        let request = stream_request("/", "").replace("text/event-stream", accept);
        Stream::ask(node.port(), &request).await
    };

    for accept in [
        "text/event-stream",
        "text/html, text/event-stream;q=0.9",
        "application/json,text/event-stream",
        "TEXT/Event-Stream",
        "text/html\r\nAccept: text/event-stream",
    ] {
        let mut stream = match ask(accept).await {
            Ok(stream) => stream,
            Err(refused) => panic!("{accept}: {refused:?}"),
        };
        stream.expect("unisono:open").await;
    }
    for accept in [
        "*/*",
        "text/*",
        "text/html",
        "text/event-stream;q=0",
        "text/event-streams",
        "",
    ] {
        let page = match ask(accept).await {
            Ok(_) => panic!("{accept} is no wish for a stream"),
            Err(page) => page,
        };
        assert_eq!(page.status, 200, "{accept}: {page:?}");
        assert!(page.body.contains("<html"), "{accept}: {page:?}");
    }
}

#[tokio::test]
async fn only_a_get_gets_one() {
    let node = Node::alone("").await;
    for method in ["HEAD", "POST", "PUT", "OPTIONS"] {
        let request = stream_request("/x", "Connection: close\r\nContent-Length: 0\r\n");
        let mut wire = node.wire().await;
        wire.send(request.replacen("GET", method, 1)).await;
        let answer = String::from_utf8_lossy(&wire.rest().await).into_owned();
        let status = answer.split(' ').nth(1);
        assert!(
            matches!(status, Some("404" | "405")),
            "{method}: {answer:?}"
        );
        assert!(!answer.contains("event-stream"), "{method}: {answer:?}");
    }
    assert_eq!(node.api().members("/x").await["count"], 0);
}

#[tokio::test]
async fn who_is_refused_is_told_why() {
    let rules = "[[rooms]]\npattern = \"/x\"\n[[rooms]]\npattern = \"/inner\"\njoin = \"client\"";
    let node = Node::alone(rules).await;
    for (path, status, code) in [
        ("/elsewhere", 404, "no_such_room"),
        ("/", 404, "no_such_room"),
        ("/inner", 403, "forbidden"),
        ("/%ff", 400, "bad_room"),
        ("/a%0Ab", 400, "bad_room"),
    ] {
        match Stream::ask(node.port(), &stream_request(path, "")).await {
            Ok(_) => panic!("{path} is a stream"),
            Err(refused) => assert_refused(&refused, status, code),
        }
    }
}

const SECRET: &str = "a secret of the application, 32 bytes or more";

/// A token of Alice's, good for so many seconds, from this second on.
fn token(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("a time after 1970").as_secs();
    let claims = json!({"sub": "alice", "exp": now + seconds});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::default(), &claims, &key).expect("claims are JSON")
}

#[tokio::test]
async fn a_token_is_asked_for_and_has_an_end() {
    let auth = format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\nleeway = \"0s\"");
    let node = Node::alone(&format!("{auth}\nexpired_close_delay = \"0s\"")).await;

    for headers in ["", "Authorization: Bearer nonsense\r\n"] {
        let refused = Stream::ask(node.port(), &stream_request("/x", headers)).await;
        assert_refused(&refused.expect_err("no token"), 401, "unauthorized");
    }
    let good = token(3600);
    let bearer = format!("Authorization: Bearer {good}\r\n");
    let mut a = Stream::connect_with(node.port(), "/x", &bearer).await;
    // The only way of a browser's own.
    let mut b = node.stream(&format!("/x?token={good}")).await;
    let mut brief = node.stream(&format!("/x?token={}", token(2))).await;

    assert_eq!(brief.expect_closing().await["code"], 4401);
    node.api().publish("/x", "fence", Value::Null).await;
    a.expect("fence").await;
    b.expect("fence").await;
}

#[tokio::test]
async fn only_listed_origins_may_listen() {
    let node = Node::alone("[auth]\norigins = [\"https://a.example\"]").await;
    let ask = async |origin: &str| {
        let request = stream_request("/x", &format!("Origin: {origin}\r\n"));
        Stream::ask(node.port(), &request).await
    };

    let good = ask("https://a.example").await.expect("it is listed");
    let allowed = good.head.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://a.example"));
    let credentials = good.head.header("access-control-allow-credentials");
    assert_eq!(credentials, Some("true"));
    for origin in ["https://b.example", "http://a.example", "null"] {
        let refused = ask(origin).await.expect_err("it is not listed");
        assert_refused(&refused, 403, "forbidden");
        // What it is told is for those who are listed.
        let allowed = refused.header("access-control-allow-origin");
        assert_eq!(allowed, None, "{origin}");
    }
}

#[tokio::test]
async fn a_full_node_says_when_to_come_back() {
    let node = Node::alone("[sockets]\nmax = 2").await;
    let a = node.stream("/x").await;
    let mut b = node.client("/x").await;

    let refused = Stream::ask(node.port(), &stream_request("/x", "")).await;
    let refused = refused.expect_err("the node is full");
    assert_refused(&refused, 503, "full");
    let retry_after = refused.header("retry-after");
    assert!(
        retry_after.is_some_and(|seconds| seconds.parse::<u32>().is_ok()),
        "{refused:?}"
    );
    b.ack("unisono:ping", Value::Null).await;

    drop(a);
    eventually("a place is free again", async || {
        let stream = Stream::ask(node.port(), &stream_request("/x", "")).await;
        stream.map(|_| ()).map_err(|refused| refused.status)
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_a_socket_and_no_connection() {
    let node = Node::alone("[sockets]\nconnections = 2").await;
    let mut streams = vec![];
    for _ in 0..5 {
        // What has just asked for something else may still be there.
        let stream = eventually("a stream is let in", async || {
            Stream::ask(node.port(), &stream_request("/x", "")).await
        });
        streams.push(stream.await);
    }
    for stream in &mut streams {
        stream.expect("unisono:open").await;
    }

    let connections = eventually("the probes' connections are over", async || {
        let metrics = metrics(&node).await;
        assert_eq!(gauge(&metrics, "unisono_sockets"), 5);
        match gauge(&metrics, "unisono_connections") {
            // The one that asks.
            1 => Ok(1),
            more => Err(more),
        }
    });
    assert_eq!(connections.await, 1);
    let nodes = node.api().nodes().await;
    assert_eq!(nodes["nodes"][0]["sockets"], 5);
}

#[tokio::test]
async fn the_administrators_address_has_no_streams() {
    let admin = free_port();
    let listen = format!("[admin]\nlisten = \"127.0.0.1:{admin}\"");
    let node = Node::alone(&listen).await;

    let refused = Stream::ask(admin, &stream_request("/x", "")).await;

    assert_refused(&refused.expect_err("no streams there"), 404, "not_found");
    node.stream("/x").await;
}

// === the way there ===

#[tokio::test]
async fn a_gap_is_told() {
    let mut sandbox = Sandbox::start(2).await;
    let mut a = sandbox.stream(1, "/x").await;

    sandbox.nats[0].kill();
    eventually("the node has noticed", async || {
        let answer = sandbox.api(0).publish("/x", "missed", Value::Null).await;
        answer["status"] == "local_only"
    })
    .await;
    sandbox.nats[0].start_again().await;

    let gap = loop {
        let event = a.next().await;
        if event.event == "unisono:gap" {
            break event;
        }
    };
    assert_eq!(gap.data["reason"], "bus_outage", "{}", gap.text);
    sandbox.all_know_each_other().await;
    eventually("publications come again", async || {
        let answer = sandbox.api(0).publish_confirmed("/x", "n", Value::Null);
        answer.await["sockets"] == 1
    })
    .await;
    while a.next().await.event != "n" {}
}

#[tokio::test]
async fn the_shipped_nginx_configuration_passes_streams_on() {
    let sandbox = Sandbox::config()
        .toml("[sockets]\nping_interval = \"300ms\"\n[drain]\ndelay = \"0s\"\nwindow = \"0s\"")
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let mut streams = vec![];
    for _ in 0..6 {
        streams.push(nginx.stream("/x").await);
    }
    let mut nodes: Vec<_> = streams.iter().map(|stream| stream.node.clone()).collect();
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 3, "{nodes:?}");

    // Each comes before the next is sent: nothing is gathered on the way.
    for n in 0..20 {
        sandbox.api(n % 3).publish("/x", "n", json!(n)).await;
        for stream in &mut streams {
            assert_eq!(stream.expect("n").await.data, n);
        }
    }
    for stream in &mut streams {
        stream.expect_comment().await;
    }
    let kicked = &mut streams[0];
    sandbox.api(1).disconnect(&kicked.id, 4001, "kicked").await;
    assert_eq!(kicked.expect_closing().await["code"], 4001);

    let leaving = sandbox.nodes[0].id().await;
    sandbox.nodes[0].terminate();
    for stream in &mut streams[1..] {
        if stream.node == leaving {
            assert_eq!(stream.expect_closing().await["code"], 1012);
            assert!(stream.retry.is_some());
        }
    }
    for _ in 0..6 {
        assert_ne!(nginx.stream("/x").await.node, leaving);
    }
}

#[tokio::test]
async fn http_1_0_gets_a_stream_without_chunks() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;

    wire.send(stream_request("/x", "").replace("HTTP/1.1", "HTTP/1.0"))
        .await;
    let head = wire.response().await;
    assert_eq!((head.status, head.header("transfer-encoding")), (200, None));
    eventually("it is in the room", async || {
        node.api().members("/x").await["count"] == 1
    })
    .await;
    node.api().post("disconnect", json!({"room": "/x"})).await;

    let body = String::from_utf8(wire.rest().await).expect("UTF-8");
    assert!(
        body.starts_with("data: {\"event\":\"unisono:open\""),
        "{body}"
    );
    assert!(body.ends_with("}}\n\n"), "{body}");
}

#[tokio::test]
async fn pages_of_any_origin_may_read_it() {
    let node = Node::alone("").await;

    let a = Stream::connect_with(node.port(), "/x", "Origin: http://a.example\r\n").await;
    let allowed = a.head.header("access-control-allow-origin");
    assert_eq!(allowed, Some("http://a.example"));
    assert_eq!(a.head.header("vary"), Some("Origin"));
    let credentials = a.head.header("access-control-allow-credentials");
    assert_eq!(credentials, None, "nobody said whose cookies may be used");

    let b = node.stream("/x").await;
    assert_eq!(b.head.header("access-control-allow-origin"), None);
}

// === story helpers ===

#[track_caller]
fn assert_refused(refused: &Response, status: u16, code: &str) {
    assert_eq!(refused.status, status, "{refused:?}");
    let body: Value = serde_json::from_str(&refused.body).expect("a JSON body");
    assert_eq!(body["error"]["code"], code, "{refused:?}");
    assert!(body["error"]["message"].is_string(), "{refused:?}");
}

async fn metrics(node: &Node) -> String {
    let answer = node.api().request(Method::GET, "/metrics").send().await;
    answer
        .expect("an answer")
        .text()
        .await
        .expect("metrics are text")
}

#[track_caller]
fn gauge(metrics: &str, name: &str) -> u64 {
    let values: Vec<u64> = metrics
        .lines()
        .filter_map(|line| match line.strip_prefix(name)?.split_once(' ')? {
            (labels, value) if labels.is_empty() || labels.starts_with('{') => value.parse().ok(),
            _ => None,
        })
        .collect();
    assert!(!values.is_empty(), "no {name} in {metrics}");
    values.iter().sum()
}
