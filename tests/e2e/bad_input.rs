//! Whatever a peer sends costs that peer at most its own socket.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use unisono_tests::{Client, Nats, Node, Opcode, Sandbox, Wire, eventually, frame, head};

// === messages ===

#[tokio::test]
async fn a_malformed_message_is_answered_and_the_socket_stays_open() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let long_name = "x".repeat(201);
    let deep = "[".repeat(20_000);
    let mut wrong = vec![];

    for (text, code) in [
        ("".to_owned(), "bad_json"),
        ("hello".to_owned(), "bad_json"),
        ("{".to_owned(), "bad_json"),
        (r#"{"event":"x"} trailing"#.to_owned(), "bad_json"),
        (r#"{"event":"x","data":01}"#.to_owned(), "bad_json"),
        (format!(r#"{{"event":"x","data":{deep}}}"#), "bad_json"),
        ("1".to_owned(), "bad_message"),
        ("null".to_owned(), "bad_message"),
        (r#"["event","x"]"#.to_owned(), "bad_message"),
        ("{}".to_owned(), "bad_message"),
        (r#"{"data":1}"#.to_owned(), "bad_message"),
        (r#"{"event":1}"#.to_owned(), "bad_message"),
        (r#"{"event":""}"#.to_owned(), "bad_message"),
        (format!(r#"{{"event":"{long_name}"}}"#), "bad_message"),
        (r#"{"event":"x","id":{}}"#.to_owned(), "bad_message"),
        (r#"{"event":"x","id":1.5}"#.to_owned(), "bad_message"),
        (r#"{"event":"x","id":true}"#.to_owned(), "bad_message"),
        (r#"{"event":"unisono:x"}"#.to_owned(), "unknown_event"),
        (r#"{"event":"unisono:open"}"#.to_owned(), "unknown_event"),
        (r#"{"event":"unisono:join"}"#.to_owned(), "bad_message"),
        (
            r#"{"event":"unisono:join","data":"news"}"#.to_owned(),
            "bad_message",
        ),
        (
            r#"{"event":"unisono:join","data":["news"]}"#.to_owned(),
            "bad_message",
        ),
        (
            r#"{"event":"unisono:publish","data":{"room":"/x"}}"#.to_owned(),
            "bad_message",
        ),
        (
            r#"{"event":"unisono:emit","data":{"event":"x"}}"#.to_owned(),
            "bad_message",
        ),
    ] {
        a.send_text(text.clone()).await;
        a.send_text(r#"{"event":"unisono:ping","id":"fence"}"#)
            .await;
        let answer = a.next().await;
        if answer.data["code"] != code || !answer.data["message"].is_string() {
            wrong.push(format!("{text:.80} is no {code}: {}", answer.text));
        }
        while answer.id != Some(json!("fence")) && a.next().await.id != Some(json!("fence")) {}
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    a.ack("unisono:ping", json!("still open")).await;
}

#[tokio::test]
async fn an_error_repeats_the_id_and_names_the_event() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    a.send_text(r#"{"event":"unisono:x","id":"seven"}"#).await;
    let error = a.expect_error("unknown_event").await;
    assert_eq!(error.id, Some(json!("seven")));
    assert_eq!(error.data["event"], "unisono:x");

    a.send_text(r#"{"event":"unisono:x"}"#).await;
    assert_eq!(a.expect_error("unknown_event").await.id, None);
}

#[tokio::test]
async fn binary_in_a_json_room_is_answered_and_the_socket_stays_open() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    a.send_binary([1, 2, 3]).await;

    a.expect("unisono:error").await;
    a.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_server_s_event_cannot_be_forged() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;

    for data in [
        json!({"room": "/x", "event": "unisono:closing", "data": {"code": 1012}}),
        json!({"room": "/x", "event": "unisono:gap"}),
    ] {
        let code = a.refused("unisono:publish", data).await;
        assert!(
            matches!(code.as_str(), "bad_message" | "forbidden"),
            "{code}"
        );
    }
    let emit = json!({"to": b.id, "event": "unisono:closing"});
    let code = a.refused("unisono:emit", emit).await;
    assert!(
        matches!(code.as_str(), "bad_message" | "forbidden"),
        "{code}"
    );
    let publication = json!({"room": "/x", "event": "unisono:closing"});
    assert_eq!(
        node.api().post("publish", publication).await.refusal().0,
        400
    );

    a.publish("/x", "fence", Value::Null).await;
    b.expect("fence").await;
}

#[tokio::test]
async fn what_is_no_room_name_is_refused() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;

    for room in [
        "",
        "line\nfeed",
        "nul\0",
        &"x".repeat(201),
        &"é".repeat(101),
    ] {
        let room = json!({"room": room});
        assert_eq!(
            a.refused("unisono:join", room.clone()).await,
            "bad_room",
            "{room}"
        );
    }
    a.join(&"x".repeat(200)).await;
    a.join(&"é".repeat(100)).await;
}

#[tokio::test]
async fn a_socket_is_in_so_many_rooms_and_no_more() {
    let node = Node::alone("[sockets]\nrooms_per_socket = 5").await;
    let mut a = node.client("/x").await;
    let join = |n: usize| json!({"room": format!("room-{n}")});

    let mut joined = 0;
    while joined < 10 && a.request("unisono:join", join(joined)).await.is_ok() {
        joined += 1;
    }
    assert!(matches!(joined, 4 | 5), "{joined} rooms beside the first");

    a.leave("room-0").await;
    a.join("another").await;
}

#[tokio::test]
async fn a_room_name_of_300_kb_is_refused_where_messages_may_be_so_long() {
    let sandbox = Sandbox::config()
        .nodes(1)
        .toml("[sockets]\nmessage_bytes = \"1MiB\"")
        .start()
        .await;
    let mut a = sandbox.client(0, "/x").await;
    let before = sandbox.nats[0].node_connections().await;

    let room = json!({"room": "x".repeat(300 * 1024)});
    assert_eq!(a.refused("unisono:join", room.clone()).await, "bad_room");
    assert_eq!(a.refused("unisono:leave", room).await, "bad_room");

    a.ack("unisono:ping", Value::Null).await;
    assert_eq!(sandbox.nats[0].node_connections().await, before);
}

// === rooms named like wildcards ===

#[tokio::test]
async fn a_room_named_like_a_wildcard_is_just_a_room() {
    let sandbox = Sandbox::start(2).await;
    let rooms = [
        ">", "*", "a.b*", "a.>", "a.b", ".", "..", "a..b", " ", "a b", "%3E", "=", "$SYS.>",
    ];
    let mut members: Vec<Client> = vec![];
    for room in rooms {
        let mut member = sandbox.client(1, "/x").await;
        member.join(room).await;
        members.push(member);
    }

    for room in rooms {
        let answer = sandbox
            .api(0)
            .publish_confirmed(room, "for one room", json!(room))
            .await;
        assert_eq!(answer["sockets"], 1, "{room:?}: {answer}");
    }

    for (member, room) in members.iter_mut().zip(rooms) {
        let got = member.expect("for one room").await;
        assert_eq!((got.data, got.room.as_deref()), (json!(room), Some(room)));
    }
    sandbox.api(0).broadcast("fence", Value::Null).await;
    for member in &mut members {
        member.expect("fence").await;
    }
}

// === sizes ===

#[tokio::test]
async fn a_message_over_the_limit_closes_the_socket() {
    let node = Node::alone("").await;
    let mut a = node.client("/x").await;
    let mut b = node.client("/x").await;
    let message = |bytes: usize| {
        let empty = json!({"event": "big", "data": ""}).to_string();
        json!({"event": "big", "data": "x".repeat(bytes - empty.len())}).to_string()
    };

    a.send_text(message(64 * 1024)).await;
    assert_eq!(b.expect("big").await.room.as_deref(), Some("/x"));

    a.send_text(message(64 * 1024 + 1)).await;
    assert_eq!(a.expect_close().await.0, 1009);
    b.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_frame_that_declares_a_terabyte_is_refused_by_its_head() {
    let mut node = Node::alone("").await;
    let mut wire = greeted(&node).await;
    let before = node.process().memory_kib();

    wire.send(head(0x82, 1 << 40)).await;

    assert_eq!(wire.close().await.0, 1009);
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 4096, "the node grew by {grown} KiB");
}

#[tokio::test]
async fn fragments_without_end_are_refused_at_the_limit() {
    let node = Node::alone("").await;
    let mut wire = greeted(&node).await;
    let mut first = frame(Opcode::Binary, &[0; 1000]);
    first[0] = Opcode::Binary as u8;
    let mut more = frame(Opcode::Continuation, &[0; 1000]);
    more[0] = Opcode::Continuation as u8;

    wire.send(first).await;
    // 64 KiB are 65 such fragments and a bit; the server hangs up somewhere after.
    for _ in 0..100 {
        if wire.try_send(&more).await.is_err() {
            break;
        }
    }

    assert_eq!(wire.close().await.0, 1009);
}

// === frames ===

#[tokio::test]
async fn a_frame_that_breaks_the_protocol_closes_the_socket() {
    let mut node = Node::alone("").await;
    let with_first = |first: u8, payload: &[u8]| {
        let mut bytes = frame(Opcode::Text, payload);
        bytes[0] = first;
        bytes
    };
    let mask = [0; 4];
    let long_form_of_5 = [&[0x81, 0x80 | 126, 0, 5][..], &mask, b"hello"].concat();
    let longest_form_of_5 = [
        &[0x81, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 5][..],
        &mask,
        b"hello",
    ]
    .concat();
    let negative = [&[0x82, 0x80 | 127, 0x80, 0, 0, 0, 0, 0, 0, 5][..], &mask].concat();
    let mut orphan_start = frame(Opcode::Text, b"a");
    orphan_start[0] &= 0x7f;
    let two_starts = [orphan_start.clone(), frame(Opcode::Text, b"b")].concat();

    for (what, bytes, codes) in [
        ("unmasked", b"\x81\x05hello".to_vec(), &[1002][..]),
        ("unmasked and empty", b"\x81\x00".to_vec(), &[1002]),
        ("RSV1", with_first(0xc1, b"hello"), &[1002]),
        ("RSV2", with_first(0xa1, b"hello"), &[1002]),
        ("RSV3", with_first(0x91, b"hello"), &[1002]),
        ("opcode 3", with_first(0x83, b"hello"), &[1002]),
        ("opcode 11", with_first(0x8b, b"hello"), &[1002]),
        ("a length in 2 bytes that fits 1", long_form_of_5, &[1002]),
        (
            "a length in 8 bytes that fits 1",
            longest_form_of_5,
            &[1002],
        ),
        ("a length with its highest bit set", negative, &[1002, 1009]),
        (
            "a ping of 126 bytes",
            frame(Opcode::Ping, &[0; 126]),
            &[1002],
        ),
        ("a fragmented ping", with_first(0x09, b"hello"), &[1002]),
        (
            "a continuation of nothing",
            frame(Opcode::Continuation, b"hello"),
            &[1002],
        ),
        ("a start inside a message", two_starts, &[1002]),
        ("a close of 1 byte", frame(Opcode::Close, &[3]), &[1002]),
        (
            "a close with code 1005",
            frame(Opcode::Close, &1005_u16.to_be_bytes()),
            &[1002],
        ),
        (
            "a close with code 999",
            frame(Opcode::Close, &999_u16.to_be_bytes()),
            &[1002],
        ),
        (
            "a close with a bad reason",
            frame(Opcode::Close, b"\x03\xe8\xff"),
            &[1002, 1007],
        ),
        (
            "text that is not UTF-8",
            frame(Opcode::Text, b"\"\xff\""),
            &[1007],
        ),
        (
            "text with half a surrogate",
            frame(Opcode::Text, b"\"\xed\xa0\x80\""),
            &[1007],
        ),
        (
            "text that ends inside a character",
            frame(Opcode::Text, b"\"\xc3"),
            &[1007],
        ),
    ] {
        let mut wire = greeted(&node).await;
        wire.send(bytes).await;
        let (code, reason) = wire.close().await;
        assert!(codes.contains(&code), "{what}: {code} {reason}");
        wire.expect_eof().await;
    }

    comes_to_rest(&mut node).await;
    node.client("/x")
        .await
        .ack("unisono:ping", Value::Null)
        .await;
}

#[tokio::test]
async fn bad_utf8_is_noticed_before_the_message_ends() {
    let node = Node::alone("").await;
    let mut start = frame(Opcode::Text, b"{\"event\":\"\xce\xba");
    start[0] &= 0x7f;
    let mut bad = frame(Opcode::Continuation, b"\xf4\x90\x80\x80");
    bad[0] &= 0x7f;

    let mut fragmented = greeted(&node).await;
    fragmented.send([start, bad].concat()).await;
    assert_eq!(fragmented.close().await.0, 1007);

    // One frame of 100 bytes, of which only the bad beginning comes.
    let mut partial = greeted(&node).await;
    let masked: Vec<u8> = frame(Opcode::Text, b"\"\xff\xff\"")[6..].to_vec();
    partial.send([head(0x81, 100), masked].concat()).await;
    assert_eq!(partial.close().await.0, 1007);
}

// === those who do not read ===

#[tokio::test]
async fn who_never_reads_is_closed_and_the_others_miss_nothing() {
    let mut node = Node::alone("[sockets]\nqueue_bytes = \"256KiB\"").await;
    let mut deaf = Wire::narrow(node.port()).await;
    deaf.upgrade("/x").await;
    let mut good = node.client("/x").await;
    let padding = "x".repeat(32 * 1024);
    let before = node.process().memory_kib();

    for n in 0..500 {
        let data = json!({"n": n, "padding": padding});
        node.api().publish("/x", "big", data).await;
        assert_eq!(good.expect("big").await.data["n"], n);
    }

    let members = eventually("only the good one is left", async || {
        let members = node.api().members("/x").await;
        if members["count"] == 1 {
            Ok(members)
        } else {
            Err(members)
        }
    })
    .await;
    assert_eq!(members["sockets"][0]["id"], good.id);
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 8192, "the node grew by {grown} KiB of 16000");

    // What the deaf one had been sent is a beginning without holes.
    let texts = deaf
        .frames()
        .await
        .into_iter()
        .filter(|frame| frame.opcode == 1);
    let sent: Vec<Value> = texts
        .map(|frame| serde_json::from_slice(&frame.payload).expect("JSON"))
        .filter(|event: &Value| event["event"] == "big")
        .map(|event| event["data"]["n"].clone())
        .collect();
    let beginning: Vec<Value> = (0..sent.len()).map(|n| json!(n)).collect();
    assert_eq!(sent, beginning);
}

#[tokio::test]
async fn a_cut_connection_is_noticed_at_once() {
    let node = Node::alone("").await;
    let wire = greeted(&node).await;
    assert_eq!(node.api().members("/x").await["count"], 1);

    drop(wire);

    eventually("the room is empty", async || {
        node.api().members("/x").await["count"] == 0
    })
    .await;
}

// === beyond what the bus takes ===

#[tokio::test]
async fn what_nats_would_not_take_is_refused_before_it_cuts_the_bus() {
    let sandbox = Sandbox::config()
        .nodes(2)
        .nats(Nats::config().max_payload(64 * 1024))
        .toml("[sockets]\nmessage_bytes = \"256KiB\"")
        .start()
        .await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(1, "/x").await;
    let before = sandbox.nats[0].node_connections().await;
    let big = "x".repeat(100 * 1024);

    for (verb, body) in [
        (
            "publish",
            json!({"room": "/x", "event": "big", "data": big}),
        ),
        ("broadcast", json!({"event": "big", "data": big})),
        ("emit", json!({"to": b.id, "event": "big", "data": big})),
    ] {
        let answer = sandbox.api(0).post(verb, body).await;
        assert_eq!(answer.refusal(), (413, "too_large"), "{verb}");
    }
    let publication = json!({"room": "/x", "event": "big", "data": big});
    assert_eq!(a.refused("unisono:publish", publication).await, "too_large");
    assert_eq!(a.refused("big", json!(big)).await, "too_large");

    sandbox.api(0).publish("/x", "fence", Value::Null).await;
    a.expect("fence").await;
    b.expect("fence").await;
    assert_eq!(
        sandbox.nats[0].node_connections().await,
        before,
        "no bus was cut"
    );
}

#[tokio::test]
async fn many_addresses_and_many_rooms_do_not_cut_the_bus() {
    let sandbox = Sandbox::config()
        .nodes(2)
        .nats(Nats::config().max_payload(64 * 1024))
        .start()
        .await;
    let mut b = sandbox.client(1, "/x").await;
    let before = sandbox.nats[0].node_connections().await;
    let nobody = |n: usize| format!("{}{n:06x}", &b.id[..b.id.len() - 6]);
    let everybody: Vec<String> = (0..2000).map(nobody).collect();
    let rooms: Vec<String> = (0..2000)
        .map(|n| format!("/{}{n}", "x".repeat(150)))
        .collect();

    for (verb, body) in [
        ("emit", json!({"to": everybody, "event": "e"})),
        (
            "publish",
            json!({"room": "/x", "event": "e", "except": everybody}),
        ),
        ("publish", json!({"rooms": rooms, "event": "e"})),
    ] {
        let answer = sandbox.api(0).post(verb, body).await;
        assert!(
            matches!(answer.status, 200 | 400 | 413),
            "{verb}: {}",
            answer.body
        );
    }

    sandbox.api(0).emit(&b.id, "fence", Value::Null).await;
    while b.next().await.event != "fence" {}
    assert_eq!(
        sandbox.nats[0].node_connections().await,
        before,
        "no bus was cut"
    );
}

async fn greeted(node: &Node) -> Wire {
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    assert!(wire.text().await.contains("unisono:open"));
    wire
}

/// Waits for a third of a second in which the node used less than a fifth of one CPU.
async fn comes_to_rest(node: &mut Node) {
    const WINDOW: Duration = Duration::from_millis(300);
    let mut since = Instant::now();
    let mut before = node.process().cpu_ticks();
    eventually("the node has nothing left to do", async || {
        if since.elapsed() < WINDOW {
            return Err("too early to tell".to_owned());
        }
        let used = node.process().cpu_ticks() - before;
        (since, before) = (Instant::now(), before + used);
        if used < 6 {
            Ok(())
        } else {
            Err(format!("{used} ticks in {WINDOW:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn more_at_a_time_than_the_node_carries_waits_and_keeps_its_order() {
    // Each burst is far more than may be on its way through the node.
    let node = Node::alone("[sockets]\ninflight_bytes = \"64KiB\"").await;
    let mut member = node.client("/x").await;
    let mut senders = Vec::new();
    for sender in 0..4 {
        let mut wire = node.wire().await;
        wire.upgrade("/x").await;
        let events = (0..200).map(|n| {
            let filler = "x".repeat(1_000);
            let text = json!({"event": "e", "data": [sender, n, filler]}).to_string();
            frame(Opcode::Text, text.as_bytes())
        });
        senders.push((wire, events.flatten().collect::<Vec<u8>>()));
    }

    let sending = senders.into_iter().map(|(mut wire, bytes)| {
        tokio::spawn(async move {
            wire.send(bytes).await;
            wire
        })
    });
    let sending: Vec<_> = sending.collect();

    let mut next = [0; 4];
    for _ in 0..800 {
        let data = member.expect("e").await.data;
        let sender = data[0].as_u64().expect("a number") as usize;
        assert_eq!(data[1], next[sender], "sender {sender}");
        next[sender] += 1;
    }
    for wire in sending {
        wire.await.expect("a sender that is still connected");
    }
}

#[tokio::test]
async fn a_burst_is_not_held_against_a_client_that_reads() {
    let node = Node::alone("[sockets]\nqueue_bytes = \"256KiB\"").await;
    let mut reader = node.client("/x").await;
    let filler = "x".repeat(50_000);
    let publish = json!({"room": "/x", "event": "e", "data": filler});
    let batch: Vec<_> = (0..20).map(|_| json!({"publish": publish})).collect();

    node.api()
        .post_text("batch", &json!(batch).to_string())
        .await
        .ok();

    for _ in 0..20 {
        reader.expect("e").await;
    }
}
