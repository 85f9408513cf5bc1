//! One node, no NATS: rooms, events, acks, raw frames and pings.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use unisono_tests::{Client, Node, Opcode, eventually, frame, head, upgrade_request};
use uuid::Uuid;

// === the greeting and the room ===

#[tokio::test]
async fn the_greeting_names_socket_room_node_and_ping_interval() {
    let node = Node::alone("").await;
    let a = node.client("/chat-rooms/1").await;

    let id = Uuid::parse_str(&a.id).expect("a socket id is a UUID");
    assert_eq!(id.get_version_num(), 8);
    assert_eq!(id.get_variant(), uuid::Variant::RFC4122);
    assert_eq!(a.id, id.hyphenated().to_string(), "lower case, hyphenated");
    assert_eq!(id.simple().to_string()[..12], a.node);
    assert_eq!(a.node, node.id().await);
    assert_eq!(a.room, "/chat-rooms/1");
    assert_eq!(a.greeting["ping_interval"], 25);
}

#[tokio::test]
async fn every_socket_has_an_id_of_its_own() {
    let node = Node::alone("").await;
    let a = node.client("/x").await;
    let b = node.client("/x").await;

    assert_ne!(a.id, b.id);
    assert_eq!(a.node, b.node);
}

#[tokio::test]
async fn the_path_is_the_room() {
    let node = Node::alone("").await;
    for (path, room) in [
        ("", "/"),
        ("/", "/"),
        ("/chat-rooms/1", "/chat-rooms/1"),
        ("/chat-rooms/1/", "/chat-rooms/1"),
        ("/Chat-Rooms/1", "/Chat-Rooms/1"),
        ("/a%20b", "/a b"),
        ("/a%2520b", "/a%20b"),
        ("/a+b", "/a+b"),
        ("/%E6%88%BF%E9%97%B4", "/房间"),
        ("/x?room=/y", "/x"),
        ("/x/?room=/y", "/x"),
        ("/x%3Fy", "/x?y"),
        ("/?x=1", "/"),
    ] {
        assert_eq!(node.client(path).await.room, room, "the room of {path:?}");
    }
}

#[tokio::test]
async fn rooms_that_differ_in_case_are_two_rooms() {
    let node = Node::alone("").await;
    let mut lower = node.client("/room").await;
    let mut upper = node.client("/Room").await;

    node.api().publish("/room", "for lower", json!(1)).await;
    node.api().publish("/Room", "for upper", json!(2)).await;

    assert_eq!(
        upper.expect("for upper").await.room.as_deref(),
        Some("/Room")
    );
    assert_eq!(
        lower.expect("for lower").await.room.as_deref(),
        Some("/room")
    );
}

#[tokio::test]
async fn a_greeting_can_be_left_out() {
    let node = Node::alone("[sockets]\ngreeting = false").await;
    let mut a = node.ungreeted("/x").await;

    a.send_text(r#"{"event":"unisono:ping","data":"first","id":1}"#)
        .await;

    assert_eq!(a.expect("unisono:ack").await.data, "first");
}

#[tokio::test]
async fn the_subprotocol_is_chosen_when_it_is_offered() {
    let node = Node::alone("").await;
    let offer = |protocols| [("sec-websocket-protocol", protocols)];

    let a = Client::connect_with(&node.url("/x"), &offer("unisono.v1")).await;
    let b = Client::connect_with(&node.url("/x"), &offer("other, unisono.v1")).await;
    let c = node.client("/x").await;

    assert_eq!(a.subprotocol.as_deref(), Some("unisono.v1"));
    assert_eq!(b.subprotocol.as_deref(), Some("unisono.v1"));
    assert_eq!(c.subprotocol, None);
}

// === events ===

#[tokio::test]
async fn what_a_client_sends_reaches_the_others_of_its_room_but_not_itself() {
    let node = Node::alone("").await;
    let mut a = node.client("/chat-rooms/1").await;
    let mut b = node.client("/chat-rooms/1").await;
    let mut elsewhere = node.client("/chat-rooms/2").await;

    a.send("new message", json!({"content": "hi"})).await;
    let got = b.expect("new message").await;
    assert_eq!(got.data, json!({"content": "hi"}));
    assert_eq!(got.room.as_deref(), Some("/chat-rooms/1"));
    assert_eq!(got.from.as_deref(), Some(a.id.as_str()));

    b.send("fence", Value::Null).await;
    a.expect("fence").await;
    node.api().broadcast("fence", Value::Null).await;
    elsewhere.expect("fence").await;
}

#[tokio::test]
async fn an_id_is_answered_once_as_it_was_sent() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let ids = [r#""one""#, r#""""#, "7", "0", "-1", "9007199254740993"];

    for id in ids {
        a.send_text(format!(r#"{{"event":"hello","id":{id}}}"#))
            .await;
    }
    for id in ids {
        let ack = a.expect("unisono:ack").await;
        assert_eq!(ack.raw("id").as_deref(), Some(id));
    }
    a.send_text(r#"{"event":"unisono:ping","id":"fence"}"#)
        .await;
    assert_eq!(a.expect("unisono:ack").await.id, Some(json!("fence")));
}

#[tokio::test]
async fn an_event_without_an_id_is_not_answered() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    a.send("hello", json!(1)).await;

    a.ack("unisono:ping", json!("fence")).await;
    node.api().emit(&a.id, "fence", Value::Null).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn data_crosses_as_it_was_written() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    for data in [
        "{}",
        "[]",
        "null",
        "false",
        r#""""#,
        "1.0e5",
        "-0.0",
        "123456789012345678901234567890",
        r#"{"b":1,"a":2,"b":3}"#,
        r#"{ "a" : [ 1 ,2 ] }"#,
        r#""\u00e9\/\ud83d\ude00""#,
        r#""é😀""#,
    ] {
        a.send_text(format!(r#"{{"event":"as written","data":{data}}}"#))
            .await;
        assert_eq!(
            b.expect("as written").await.raw("data").as_deref(),
            Some(data)
        );
    }
}

#[tokio::test]
async fn absent_data_stays_absent() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    a.send_text(r#"{"event":"bare"}"#).await;
    assert_eq!(b.expect("bare").await.raw("data"), None);

    let publication = json!({"room": "/x", "event": "bare"});
    node.api().post("publish", publication).await.ok();
    assert_eq!(b.expect("bare").await.raw("data"), None);

    node.api()
        .post("emit", json!({"to": b.id, "event": "bare"}))
        .await
        .ok();
    assert_eq!(b.expect("bare").await.raw("data"), None);
}

#[tokio::test]
async fn the_api_hands_data_on_as_it_was_written() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let data = r#"{ "big": 123456789012345678901234567890, "e": 1.0e5 }"#;

    let body = format!(r#"{{"room":"/x","event":"as written","data":{data}}}"#);
    node.api().post_text("publish", &body).await.ok();
    assert_eq!(
        a.expect("as written").await.raw("data").as_deref(),
        Some(data)
    );

    let body = format!(r#"{{"to":"{}","event":"as written","data":{data}}}"#, a.id);
    node.api().post_text("emit", &body).await.ok();
    assert_eq!(
        a.expect("as written").await.raw("data").as_deref(),
        Some(data)
    );
}

#[tokio::test]
async fn a_ping_event_brings_its_data_back() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    a.send_text(r#"{"event":"unisono:ping","data":{"t": 1.50},"id":1}"#)
        .await;

    assert_eq!(
        a.expect("unisono:ack").await.raw("data").as_deref(),
        Some(r#"{"t": 1.50}"#)
    );
}

// === rooms beyond the path ===

#[tokio::test]
async fn a_joined_room_is_heard_until_it_is_left() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    a.join("news").await;
    b.join("news").await;
    b.publish("news", "headline", json!(1)).await;
    let headline = a.expect("headline").await;
    assert_eq!(headline.room.as_deref(), Some("news"));
    assert_eq!(headline.from.as_deref(), Some(b.id.as_str()));

    a.leave("news").await;
    b.publish("news", "headline", json!(2)).await;
    b.publish("/x", "fence", json!(3)).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn a_publisher_does_not_get_its_own_publication() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    a.publish("/x", "hello", json!(1)).await;
    b.expect("hello").await;

    b.publish("/x", "fence", json!(2)).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn joining_twice_is_joining_once() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    a.join("news").await;
    a.join("news").await;

    assert_eq!(
        node.api()
            .publish_confirmed("news", "headline", json!(1))
            .await["sockets"],
        1
    );
    a.expect("headline").await;
    a.leave("news").await;
    assert_eq!(
        node.api()
            .publish_confirmed("news", "headline", json!(2))
            .await["sockets"],
        0
    );
    node.api().emit(&a.id, "fence", json!(3)).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn an_emit_reaches_the_sockets_that_it_names() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/y").await;
    let mut c = node.client("/z").await;

    assert_eq!(a.emit(&b.id, "hello", json!("b")).await, "delivered");
    let hello = b.expect("hello").await;
    assert_eq!(hello.data, "b");
    assert_eq!(hello.room, None);

    let both = json!({"to": [b.id, c.id], "event": "hello", "data": "both"});
    let mut results = a.ack("unisono:emit", both).await;
    let expected = json!({(b.id.as_str()): "delivered", (c.id.as_str()): "delivered"});
    assert_eq!(results["results"].take(), expected);
    b.expect("hello").await;
    c.expect("hello").await;
}

#[tokio::test]
async fn a_frame_that_names_a_channel_joins_it() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    a.send_text(r#"{"channel":"message"}"#).await;
    b.send_text(r#"{"channel": "message", "event": "Message"}"#)
        .await;
    eventually("both are in the room", async || {
        let members = node.api().members("message").await;
        if members["count"] == 2 {
            Ok(())
        } else {
            Err(members)
        }
    })
    .await;

    node.api()
        .publish("message", "App\\Events\\Message", json!({"name": "x"}))
        .await;
    for client in [&mut a, &mut b] {
        let message = client.expect("App\\Events\\Message").await;
        assert_eq!(message.room.as_deref(), Some("message"));
        assert_eq!(message.data, json!({"name": "x"}));
    }
}

#[tokio::test]
async fn a_closed_socket_leaves_its_rooms() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    a.join("news").await;

    a.close(1000, "bye").await;
    assert_eq!(a.expect_close().await.0, 1000);

    eventually("no rooms are left", async || {
        let rooms = node.api().get("/api/v1/rooms").await.ok();
        if rooms["rooms"] == json!([]) {
            Ok(())
        } else {
            Err(rooms)
        }
    })
    .await;
    assert_eq!(node.api().emit(&a.id, "late", json!(1)).await, "not_found");
}

// === rules ===

const RULES: &str = r#"
    [[rooms]]
    pattern = "/echo/{id}"
    client_events = "echo"
    [[rooms]]
    pattern = "/forward/{id}"
    client_events = "forward"
    [[rooms]]
    pattern = "/deny/{rest...}"
    client_events = "deny"
    [[rooms]]
    pattern = "/raw/{id}"
    format = "raw"
    client_events = "relay"
    [[rooms]]
    pattern = "/raw-echo"
    format = "raw"
    client_events = "echo"
"#;

#[tokio::test]
async fn an_echo_room_sends_back_to_the_sender_too() {
    let node = Node::alone(RULES).await;
    let mut a = node.client("/echo/1").await;
    let mut b = node.client("/echo/1").await;

    a.send("hello", json!(1)).await;

    for client in [&mut b, &mut a] {
        let hello = client.expect("hello").await;
        assert_eq!(
            (hello.data, hello.room.as_deref()),
            (json!(1), Some("/echo/1"))
        );
    }
}

#[tokio::test]
async fn a_forward_room_keeps_client_events_from_clients() {
    let node = Node::alone(RULES).await;
    let mut a = node.client("/forward/1").await;
    let mut b = node.client("/forward/1").await;

    assert_eq!(a.refused("secret", json!(1)).await, "unavailable");

    node.api().publish("/forward/1", "fence", json!(2)).await;
    a.expect("fence").await;
    b.expect("fence").await;
}

#[tokio::test]
async fn a_deny_room_refuses_client_events() {
    let node = Node::alone(RULES).await;
    let mut a = node.client("/deny/any/depth").await;
    let mut b = node.client("/deny/any/depth").await;

    assert_eq!(a.refused("hello", json!(1)).await, "forbidden");

    node.api()
        .publish("/deny/any/depth", "fence", json!(2))
        .await;
    a.expect("fence").await;
    b.expect("fence").await;
}

#[tokio::test]
async fn publishing_to_a_room_one_is_not_in_is_refused() {
    let rooms = "[[rooms]]\npattern = \"/{room}\"\npublish = \"members\"";
    let node = Node::alone(rooms).await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/y").await;

    let publication = json!({"room": "/y", "event": "intruder", "data": 1});
    assert_eq!(
        a.refused("unisono:publish", publication).await,
        "not_joined"
    );

    b.ack("unisono:ping", json!(1)).await;
    node.api().publish("/y", "fence", json!(2)).await;
    b.expect("fence").await;
}

#[tokio::test]
async fn a_path_that_matches_no_pattern_is_not_found() {
    let node = Node::alone(RULES).await;
    for path in [
        "/elsewhere",
        "/",
        "/echo",
        "/echo/1/2",
        "/Echo/1",
        "/raw/1/2",
    ] {
        let mut wire = node.wire().await;
        wire.send(upgrade_request(path)).await;
        let response = wire.response().await;
        assert_eq!(response.status, 404, "{path}: {}", response.body);
        let body: Value = serde_json::from_str(&response.body).expect("a JSON body");
        assert!(body["error"]["code"].is_string(), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_raw_room_passes_text_and_binary_as_they_are() {
    let node = Node::alone(RULES).await;
    let mut a = node.ungreeted("/raw/1").await;
    let mut b = node.ungreeted("/raw/1").await;
    eventually("both are in the room", async || {
        node.api().members("/raw/1").await["count"] == 2
    })
    .await;

    a.send_text("not { json").await;
    b.expect_frame(Message::text("not { json")).await;
    a.send_binary([0x00, 0xff, 0x80]).await;
    b.expect_frame(Message::binary(vec![0x00, 0xff, 0x80]))
        .await;
    a.send_text("").await;
    b.expect_frame(Message::text("")).await;

    b.send_text("fence").await;
    a.expect_frame(Message::text("fence")).await;
}

#[tokio::test]
async fn a_raw_echo_room_brings_frames_back() {
    let node = Node::alone(RULES).await;
    let mut a = node.ungreeted("/raw-echo").await;

    a.send_text("hello").await;
    a.expect_frame(Message::text("hello")).await;
    a.send_binary([1, 2, 3]).await;
    a.expect_frame(Message::binary(vec![1, 2, 3])).await;
}

#[tokio::test]
async fn what_was_said_before_the_end_is_echoed_before_it() {
    let node = Node::alone(RULES).await;
    let said: Vec<Vec<u8>> = (0..20)
        .map(|n| frame(Opcode::Text, format!("{n}").as_bytes()))
        .collect();
    // A reserved opcode; a close.
    for (end, code) in [
        (head(0x83, 0), 1002),
        (frame(Opcode::Close, &4000u16.to_be_bytes()), 4000),
    ] {
        let mut wire = node.wire().await;
        wire.upgrade("/raw-echo").await;
        wire.send([said.concat(), end].concat()).await;
        for n in 0..20 {
            assert_eq!(wire.text().await, n.to_string());
        }
        assert_eq!(wire.close().await.0, code);
    }
}

#[tokio::test]
async fn an_application_publishes_bare_frames() {
    let node = Node::alone(RULES).await;
    let mut raw = node.ungreeted("/raw-echo").await;
    let mut json = node.client("/echo/1").await;
    raw.send_text("in").await;
    raw.expect_frame(Message::text("in")).await;

    node.api()
        .post("publish", json!({"room": "/raw-echo", "text": "hello"}))
        .await
        .ok();
    raw.expect_frame(Message::text("hello")).await;
    node.api()
        .post("publish", json!({"room": "/raw-echo", "binary": "AP+A"}))
        .await
        .ok();
    raw.expect_frame(Message::binary(vec![0x00, 0xff, 0x80]))
        .await;

    node.api()
        .post("emit", json!({"to": json.id, "text": "Recv: hi"}))
        .await
        .ok();
    json.expect_frame(Message::text("Recv: hi")).await;
    node.api()
        .post("emit", json!({"to": json.id, "binary": "AP+A"}))
        .await
        .ok();
    json.expect_frame(Message::binary(vec![0x00, 0xff, 0x80]))
        .await;
}

// === frames ===

#[tokio::test]
async fn a_ping_is_answered_with_its_own_payload() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    wire.text().await;

    for payload in [&b""[..], b"hello", &[0xff; 125]] {
        wire.send(frame(Opcode::Ping, payload)).await;
        let pong = wire.frame().await;
        assert_eq!((pong.fin, pong.opcode), (true, Opcode::Pong as u8));
        assert_eq!(pong.payload, payload);
    }
}

#[tokio::test]
async fn a_fragmented_message_is_one_message_and_a_ping_may_come_between() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    wire.text().await;
    let message = "{\"event\":\"unisono:ping\",\"data\":\"é\",\"id\":1}".as_bytes();
    let cut = message.iter().position(|byte| *byte == 0xc3).expect("an é") + 1;

    let mut first = frame(Opcode::Text, &message[..cut]);
    first[0] &= 0x7f;
    wire.send(first).await;
    wire.send(frame(Opcode::Ping, b"between")).await;
    assert_eq!(wire.frame().await.payload, b"between");
    let mut empty = frame(Opcode::Continuation, b"");
    empty[0] &= 0x7f;
    wire.send(empty).await;
    wire.send(frame(Opcode::Continuation, &message[cut..]))
        .await;

    let ack: Value = serde_json::from_str(&wire.text().await).expect("an ack");
    assert_eq!(ack, json!({"event": "unisono:ack", "id": 1, "data": "é"}));
}

#[tokio::test]
async fn a_close_is_echoed_with_its_code_and_the_connection_ends() {
    let node = Node::alone("").await;
    for code in [1000_u16, 1001, 3000, 4321] {
        let mut wire = node.wire().await;
        wire.upgrade("/x").await;
        wire.text().await;

        let mut payload = code.to_be_bytes().to_vec();
        payload.extend(b"bye");
        wire.send(frame(Opcode::Close, &payload)).await;

        assert_eq!(wire.close().await.0, code);
        wire.expect_eof().await;
    }
}

#[tokio::test]
async fn a_close_without_a_code_is_echoed_too() {
    let node = Node::alone("").await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    wire.text().await;

    wire.send(frame(Opcode::Close, b"")).await;

    let close = wire.frame().await;
    assert_eq!(close.opcode, Opcode::Close as u8);
    assert!(
        close.payload.is_empty() || close.payload == 1000_u16.to_be_bytes(),
        "{close:?}"
    );
    wire.expect_eof().await;
}

#[tokio::test]
async fn closed_sockets_leave_no_file_descriptors_behind() {
    let mut node = Node::alone("").await;
    drop(node.client("/x").await);
    let before = node.process().open_files();

    for _ in 0..50 {
        let mut client = node.client("/x").await;
        client.close(1000, "").await;
        client.expect_close().await;
        drop(node.client("/x").await);
    }

    eventually("the descriptors are closed", async || {
        let now = node.process().open_files();
        if now <= before {
            Ok(())
        } else {
            Err((before, now))
        }
    })
    .await;
}

#[tokio::test]
async fn what_goes_to_everybody_and_to_rooms_comes_in_order() {
    let node = Node::config("alone").arg("--set=workers=2").start().await;
    let mut members = vec![];
    for _ in 0..8 {
        members.push(node.client("/x").await);
    }
    for round in 0..20 {
        let sends = (0..40).map(|n| {
            let data = json!([round, n]);
            match n % 4 {
                0 | 1 => json!({"publish": {"room": "/x", "event": "m", "data": data}}),
                2 => json!({"broadcast": {"event": "m", "data": data}}),
                _ => json!({"emit": {"to": members[0].id, "event": "m", "data": data}}),
            }
        });
        let batch = Value::Array(sends.collect());
        node.api().post("batch", batch).await.ok();
        for (nth, member) in members.iter_mut().enumerate() {
            for n in (0..40).filter(|n| n % 4 != 3 || nth == 0) {
                assert_eq!(member.expect("m").await.data, json!([round, n]));
            }
        }
    }
}

const QUICK_PINGS: &str = "[sockets]\nping_interval = \"200ms\"\npong_timeout = \"200ms\"";

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_dropped() {
    let node = Node::alone(QUICK_PINGS).await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    wire.text().await;

    assert_eq!(wire.frame().await.opcode, Opcode::Ping as u8);

    assert_eq!(wire.close().await.0, 4408);
    wire.expect_eof().await;
    eventually("its room is empty", async || {
        node.api().members("/x").await["count"] == 0
    })
    .await;
}

#[tokio::test]
async fn a_peer_that_answers_pings_stays() {
    // For longer than a ping and the wait for its pong take.
    let quick = "[sockets]\nping_interval = \"200ms\"\npong_timeout = \"8s\"";
    answers_pings(quick, 45).await;
}

#[tokio::test]
async fn pings_do_not_wait_for_the_time_of_a_pong_that_has_come() {
    answers_pings(
        "[sockets]\nping_interval = \"200ms\"\npong_timeout = \"1h\"",
        5,
    )
    .await;
}

async fn answers_pings(settings: &str, times: u32) {
    let node = Node::alone(settings).await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    wire.text().await;

    for _ in 0..times {
        let ping = wire.frame().await;
        assert_eq!(ping.opcode, Opcode::Ping as u8, "{ping:?}");
        wire.send(frame(Opcode::Pong, &ping.payload)).await;
    }
}
