//! RFC 6455 byte by byte, for what a client library would never send: the opening handshake (§4), frames (§5), closing
//! (§7) and text (§8.1).

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::Message;
use unisono_tests::{Node, Opcode, Wire, eventually, frame, head, unread_at, upgrade_request};

const RAW: &str = "[sockets]\nmessage_rate = 1000000\nmessage_burst = 1000000\n\
    [[rooms]]\npattern = \"/echo\"\nformat = \"raw\"\nclient_events = \"echo\"\n\
    [[rooms]]\npattern = \"/raw\"\nformat = \"raw\"\n\
    [[rooms]]\npattern = \"/x\"";

/// A socket in a room that echoes whatever comes.
async fn echo(node: &Node) -> Wire {
    let mut wire = node.wire().await;
    wire.upgrade("/echo").await;
    wire
}

/// A client's frame, with everything chosen.
fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = head(first, payload.len() as u64);
    let mask_at = bytes.len() - 4;
    bytes[mask_at..].copy_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    bytes
}

/// A frame that is not the last of its message.
fn unfinished(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(opcode, payload);
    bytes[0] &= 0x7f;
    bytes
}

/// A frame as a server has to write it: whole, unmasked, its length in the shortest form.
fn written(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode as u8];
    match payload.len() {
        len @ 0..126 => bytes.push(len as u8),
        len @ 126..0x1_0000 => {
            bytes.push(126);
            bytes.extend((len as u16).to_be_bytes());
        }
        len => {
            bytes.push(127);
            bytes.extend((len as u64).to_be_bytes());
        }
    }
    bytes.extend(payload);
    bytes
}

fn close_payload(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

/// The end of what a client says, and what then comes back of it.
fn goodbye() -> (Vec<u8>, Vec<u8>) {
    let payload = close_payload(1000, "");
    let (asked, answered) = (Opcode::Close, Opcode::Close);
    (frame(asked, &payload), written(answered, &payload))
}

/// Sends the frames and a Close; what comes back, to the last byte, has to be this and a Close.
async fn expect_bytes(node: &Node, what: &str, sent: &[u8], expected: &[u8]) {
    let mut wire = echo(node).await;
    let (close, closed) = goodbye();
    wire.send([sent, &close].concat()).await;
    let came = wire.rest().await;
    let expected = [expected, &closed].concat();
    assert!(
        came == expected,
        "{what}: {} bytes came, {} expected; {:x?}… for {:x?}…",
        came.len(),
        expected.len(),
        &came[..came.len().min(24)],
        &expected[..expected.len().min(24)]
    );
}

/// Sends bytes that end the socket with that code, and the connection with it.
async fn expect_refusal(node: &Node, what: &str, sent: &[u8], code: u16) {
    let mut wire = echo(node).await;
    // The server need not read it to the end.
    let _ = wire.try_send(sent).await;
    let frames = wire.frames().await;
    let [close] = &frames[..] else {
        panic!("{what}: {frames:?} for {sent:x?}");
    };
    assert!(close.fin && close.opcode == Opcode::Close as u8, "{what}");
    assert!((2..=125).contains(&close.payload.len()), "{what}");
    let said = u16::from_be_bytes([close.payload[0], close.payload[1]]);
    assert_eq!(said, code, "{what}: {sent:x?}");
    let reason = std::str::from_utf8(&close.payload[2..]);
    assert!(reason.is_ok(), "{what}");
}

// === §4: the opening handshake ===

/// The upgrade request with one thing changed.
fn changed(from: &str, to: &str) -> String {
    let request = upgrade_request("/x");
    assert!(request.contains(from), "{from:?}");
    request.replacen(from, to, 1)
}

#[tokio::test]
async fn each_bad_handshake_gets_its_status_and_nothing_behind_it_is_read() {
    let node = Node::alone(RAW).await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let many = "X: y\r\n".repeat(101);
    for (what, request, status) in [
        // §4.1, §4.2.1: method, version, target.
        ("POST", changed("GET", "POST"), 400),
        ("HEAD", changed("GET", "HEAD"), 400),
        ("another case of GET", changed("GET", "get"), 400),
        ("HTTP/0.9", changed("HTTP/1.1", "HTTP/0.9"), 400),
        ("HTTP/2.0", changed("HTTP/1.1", "HTTP/2.0"), 400),
        ("HTTP/1.2", changed("HTTP/1.1", "HTTP/1.2"), 400),
        ("a star", changed("/x", "*"), 400),
        ("no slash", changed("/x", "x"), 400),
        ("an authority", changed("/x", "a:80"), 400),
        ("no target", changed(" /x ", " "), 400),
        ("no such room", changed("/x", "/y"), 404),
        // Host.
        ("no Host", changed("Host: 127.0.0.1\r\n", ""), 400),
        (
            "two of Host",
            changed("Host: 127.0.0.1\r\n", "Host: a\r\nHost: a\r\n"),
            400,
        ),
        // Upgrade and Connection.
        ("no Upgrade", changed("Upgrade: websocket\r\n", ""), 400),
        ("empty Upgrade", changed(" websocket", ""), 400),
        ("h2c", changed("websocket", "h2c"), 400),
        ("websocket2", changed("websocket", "websocket2"), 400),
        ("web socket", changed("websocket", "web socket"), 400),
        ("no Connection", changed("Connection: Upgrade\r\n", ""), 400),
        (
            "another Connection",
            changed("Connection: Upgrade", "Connection: close"),
            400,
        ),
        (
            "an upgrade in one word with another",
            changed("Connection: Upgrade", "Connection: keep-alive Upgrade"),
            400,
        ),
        // Sec-WebSocket-Key: 16 bytes, once.
        ("no key", changed(key, ""), 400),
        ("two keys", changed(key, &format!("{key}{key}")), 400),
        ("an empty key", changed("dGhlIHNhbXBsZSBub25jZQ==", ""), 400),
        ("a key without padding", changed("ZQ==", "ZQ"), 400),
        ("a key of 15 bytes", changed("ZQ==", ""), 400),
        ("a key of another alphabet", changed("dGhl", "-_hl"), 400),
        ("a key with a blank inside", changed("dGhl", "dG l"), 400),
        // Sec-WebSocket-Version: 13, once.
        (
            "no version",
            changed("Sec-WebSocket-Version: 13\r\n", ""),
            426,
        ),
        ("version 12", changed("n: 13", "n: 12"), 426),
        ("version 013", changed("n: 13", "n: 013"), 426),
        ("version +13", changed("n: 13", "n: +13"), 426),
        ("several versions", changed("n: 13", "n: 13, 8"), 426),
        (
            "two lines of versions",
            changed("n: 13", "n: 13\r\nSec-WebSocket-Version: 13"),
            400,
        ),
        // RFC 9112: lines.
        ("a blank before the colon", changed("Host:", "Host :"), 400),
        (
            "a folded line",
            changed("Connection: Upgrade", "Connection:\r\n Upgrade"),
            400,
        ),
        ("a NUL", changed("Host: 127.0.0.1", "Host: 127\0"), 400),
        (
            "a line without a colon",
            changed("Host: 127.0.0.1", "Host"),
            400,
        ),
        ("a name of nothing", changed("Host: ", ": "), 400),
        (
            "101 more headers",
            changed("Host:", &format!("{many}Host:")),
            400,
        ),
    ] {
        // What is behind a refused request is not another one.
        let request = request + &upgrade_request("/echo");
        let mut wire = node.wire().await;
        wire.send(request).await;
        let response = wire.response().await;
        assert_eq!(response.status, status, "{what}: {response:?}");
        assert_eq!(response.header("connection"), Some("close"), "{what}");
        assert_eq!(
            response.header("sec-websocket-version"),
            (status == 426).then_some("13"),
            "{what}"
        );
        let body: Value = serde_json::from_str(&response.body).expect("a JSON body");
        assert!(body["error"]["code"].is_string(), "{what}: {body}");
        wire.expect_eof().await;
    }
}

#[tokio::test]
async fn headers_may_be_written_as_http_allows() {
    let node = Node::alone(RAW).await;
    for (what, request) in [
        (
            "a list in one line",
            changed("Connection: Upgrade", "Connection: keep-alive,, ,Upgrade,"),
        ),
        (
            "a list in several lines",
            changed(
                "Connection: Upgrade",
                "Connection: keep-alive\r\nConnection: foo, UPGRADE",
            ),
        ),
        (
            "several protocols to upgrade to",
            changed(
                "Upgrade: websocket",
                "Upgrade: h2c\r\nUpgrade: foo, WebSocket",
            ),
        ),
        (
            "names in another case",
            changed("Sec-WebSocket-Key", "sec-websocket-KEY"),
        ),
        (
            "blanks and tabs around a value",
            changed("Version: 13", "Version:\t 13 \t"),
        ),
        ("no blank before a value", changed("Host: ", "Host:")),
        ("an empty Host", changed("Host: 127.0.0.1", "Host:")),
        (
            "another port",
            changed("Host: 127.0.0.1", "Host: example.org:8443"),
        ),
        (
            "a value that is no text",
            changed("Host:", "X: \u{fffd}é\r\nHost:"),
        ),
        ("a whole URL", changed("/x", "http://127.0.0.1/x")),
        ("a URL of its own scheme", changed("/x", "ws://127.0.0.1/x")),
        ("a query", changed("/x", "/x?a=b?c=/d&e=%ff")),
        ("a path with a slash behind", changed("/x", "/x/")),
        ("a path that is encoded", changed("/x", "/%78")),
        ("HTTP/1.0", changed("HTTP/1.1", "HTTP/1.0")),
        (
            "an empty line before",
            format!("\r\n{}", upgrade_request("/x")),
        ),
    ] {
        let mut wire = node.wire().await;
        wire.send(request).await;
        let response = wire.response().await;
        assert_eq!(response.status, 101, "{what}: {response:?}");
        let accept = response.header("sec-websocket-accept");
        assert_eq!(accept, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{what}");
        // §4.2.2: what nobody asked for is not there, and no body.
        for name in [
            "sec-websocket-protocol",
            "sec-websocket-extensions",
            "content-length",
            "transfer-encoding",
        ] {
            assert_eq!(response.header(name), None, "{what}");
        }
        assert!(wire.text().await.contains(r#""room":"/x""#), "{what}");
    }
}

#[tokio::test]
async fn a_subprotocol_is_chosen_once_or_not_at_all() {
    let node = Node::alone(RAW).await;
    let line = |value: &str| format!("Sec-WebSocket-Protocol: {value}\r\n");
    for (offer, chosen) in [
        (line("unisono.v1"), true),
        (line("other") + &line("unisono.v1"), true),
        (line("other, unisono.v1 ,more"), true),
        (line("unisono.v1, unisono.v1"), true),
        (line("unisono.v2"), false),
        (line("unisono.v1.more"), false),
        (line(""), false),
        (line("other, another"), false),
    ] {
        let mut wire = node.wire().await;
        wire.send(changed("Host:", &format!("{offer}Host:"))).await;
        let response = wire.response().await;
        assert_eq!(response.status, 101, "{offer}: {response:?}");
        let found = response.headers.iter();
        let found: Vec<_> = found
            .filter(|(name, _)| name == "sec-websocket-protocol")
            .map(|(_, value)| value.as_str())
            .collect();
        assert_eq!(found, ["unisono.v1"][..usize::from(chosen)], "{offer}");
    }
}

// === §5: frames ===

#[tokio::test]
async fn every_length_and_mask_brings_the_same_bytes_back() {
    let roomy = RAW.replacen("[sockets]", "[sockets]\nmessage_bytes = \"1MiB\"", 1);
    let node = Node::alone(&roomy).await;
    let binary = |len: usize| -> Vec<u8> { (0..len).map(|n| (n * 7 % 251) as u8).collect() };

    // §5.2: each form of the length, at both of its ends.
    for len in [
        0,
        1,
        7,
        8,
        9,
        124,
        125,
        126,
        127,
        65_534,
        65_535,
        65_536,
        100_000,
        1 << 20,
    ] {
        let payload = binary(len);
        let (sent, came) = (
            frame(Opcode::Binary, &payload),
            written(Opcode::Binary, &payload),
        );
        expect_bytes(&node, &format!("{len} bytes"), &sent, &came).await;
    }

    // §5.3: any mask, with a payload that ends anywhere in it.
    for mask in [
        [0; 4],
        [0xff; 4],
        [0, 0, 0, 1],
        [0x80, 0, 0, 0],
        *b"mask",
        [1, 2, 3, 4],
    ] {
        let (mut sent, mut came) = (vec![], vec![]);
        for len in 0..40 {
            sent.extend(masked(0x82, &binary(len), mask));
            came.extend(written(Opcode::Binary, &binary(len)));
        }
        expect_bytes(&node, &format!("mask {mask:?}"), &sent, &came).await;
    }
    let every_byte: Vec<u8> = (0..=255)
        .flat_map(|byte| masked(0x82, &[byte; 5], [byte, 0, !byte, 0x55]))
        .collect();
    let came: Vec<u8> = (0..=255)
        .flat_map(|byte| written(Opcode::Binary, &[byte; 5]))
        .collect();
    expect_bytes(&node, "every byte of a mask", &every_byte, &came).await;
}

#[tokio::test]
async fn every_reserved_bit_and_opcode_is_refused() {
    let node = Node::alone(RAW).await;
    // §5.2: nobody has agreed to an extension, so no bit means anything.
    for opcode in [0x1, 0x2, 0x8, 0x9, 0xa] {
        for reserved in 1..8 {
            let first = 0x80 | reserved << 4 | opcode;
            let sent = masked(first, b"", [1; 4]);
            expect_refusal(&node, &format!("{first:x}"), &sent, 1002).await;
        }
    }
    for opcode in (0x3..=0x7).chain(0xb..=0xf) {
        for fin in [0, 0x80] {
            let sent = masked(fin | opcode, b"a", [1; 4]);
            expect_refusal(&node, &format!("opcode {opcode:x}"), &sent, 1002).await;
        }
    }
    // Within a message, too.
    for reserved in 1..8 {
        let sent = [
            unfinished(Opcode::Binary, b"a"),
            masked(0x80 | reserved << 4, b"b", [1; 4]),
        ];
        expect_refusal(&node, "a continuation", &sent.concat(), 1002).await;
    }
}

#[tokio::test]
async fn a_length_has_to_be_in_its_shortest_form() {
    let node = Node::alone(RAW).await;
    let with_length = |first: u8, length: &[u8], payload: usize| {
        let mut bytes = vec![first];
        bytes.extend(length);
        bytes.extend([0; 4]);
        bytes.extend(vec![b'a'; payload]);
        bytes
    };
    let sixteen = |len: u16| [&[0x80 | 126][..], &len.to_be_bytes()].concat();
    let sixty_four = |len: u64| [&[0x80 | 127][..], &len.to_be_bytes()].concat();
    for first in [0x81, 0x82, 0x02] {
        for len in [0, 1, 124, 125] {
            let sent = with_length(first, &sixteen(len), usize::from(len));
            expect_refusal(&node, &format!("{len} in 2 bytes"), &sent, 1002).await;
        }
        for len in [0, 1, 125, 126, 1_000, 65_535] {
            let sent = with_length(first, &sixty_four(len), len as usize);
            expect_refusal(&node, &format!("{len} in 8 bytes"), &sent, 1002).await;
        }
        for len in [1 << 63, u64::MAX] {
            let sent = with_length(first, &sixty_four(len), 0);
            expect_refusal(&node, &format!("{len}"), &sent, 1002).await;
        }
        for len in [65_537, 1 << 32, i64::MAX as u64] {
            let sent = with_length(first, &sixty_four(len), 0);
            expect_refusal(&node, &format!("{len}"), &sent, 1009).await;
        }
    }
    // §5.5: control frames have one byte for it.
    for opcode in [0x8, 0x9, 0xa] {
        for (what, sent) in [
            ("126 bytes", with_length(0x80 | opcode, &sixteen(126), 126)),
            ("5 in 2 bytes", with_length(0x80 | opcode, &sixteen(5), 5)),
            (
                "5 in 8 bytes",
                with_length(0x80 | opcode, &sixty_four(5), 5),
            ),
            ("a fragment", masked(opcode, b"", [1; 4])),
            ("unmasked", vec![0x80 | opcode, 0]),
        ] {
            let what = format!("control frame {opcode:x}: {what}");
            expect_refusal(&node, &what, &sent, 1002).await;
        }
    }
}

#[tokio::test]
async fn fragments_are_one_message_whatever_comes_between() {
    let node = Node::alone(RAW).await;
    let (ping, pong) = (
        |payload: &[u8]| frame(Opcode::Ping, payload),
        |payload: &[u8]| written(Opcode::Pong, payload),
    );
    let of_bytes = |opcode: Opcode, text: &str| -> Vec<u8> {
        let mut bytes = unfinished(opcode, b"");
        for byte in text.bytes() {
            bytes.extend(unfinished(Opcode::Continuation, &[byte]));
        }
        bytes.extend(frame(Opcode::Continuation, b""));
        bytes
    };
    let text = "κόσμε \u{10ffff} €";
    for (what, sent, came) in [
        (
            "one byte each",
            of_bytes(Opcode::Text, text),
            written(Opcode::Text, text.as_bytes()),
        ),
        (
            "nothing but empty ones",
            of_bytes(Opcode::Binary, ""),
            written(Opcode::Binary, b""),
        ),
        (
            "pings, pongs and a ping that is full",
            [
                unfinished(Opcode::Text, b"a"),
                ping(b"1"),
                frame(Opcode::Pong, b"nobody asked"),
                unfinished(Opcode::Continuation, b"b"),
                ping(&[0xff; 125]),
                ping(b""),
                frame(Opcode::Continuation, b"c"),
            ]
            .concat(),
            [
                pong(b"1"),
                pong(&[0xff; 125]),
                pong(b""),
                written(Opcode::Text, b"abc"),
            ]
            .concat(),
        ),
        (
            "a text after a binary",
            [of_bytes(Opcode::Binary, "x"), of_bytes(Opcode::Text, "y")].concat(),
            [written(Opcode::Binary, b"x"), written(Opcode::Text, b"y")].concat(),
        ),
    ] {
        // A pong may overtake what goes through the room and back.
        let mut wire = echo(&node).await;
        wire.send(sent).await;
        let sort = |bytes: &[u8], control: bool| -> Vec<Vec<u8>> {
            let frames = split(bytes);
            let kept = frames.into_iter();
            kept.filter(|frame| (frame[0] & 8 != 0) == control)
                .collect()
        };
        let mut found = vec![];
        while found.len() < came.len() {
            let frame = wire.frame().await;
            assert!(frame.fin, "{what}");
            let opcode = match frame.opcode {
                1 => Opcode::Text,
                2 => Opcode::Binary,
                10 => Opcode::Pong,
                other => panic!("{what}: {other}"),
            };
            found.extend(written(opcode, &frame.payload));
        }
        for control in [false, true] {
            assert_eq!(sort(&found, control), sort(&came, control), "{what}");
        }
    }
    for (what, sent) in [
        (
            "a continuation of nothing",
            frame(Opcode::Continuation, b""),
        ),
        ("one that goes on", unfinished(Opcode::Continuation, b"a")),
        (
            "one after the last",
            [
                unfinished(Opcode::Text, b"a"),
                frame(Opcode::Continuation, b"b"),
                ping(b""),
                frame(Opcode::Continuation, b"c"),
            ]
            .concat(),
        ),
        (
            "another message inside",
            [unfinished(Opcode::Text, b"a"), frame(Opcode::Binary, b"b")].concat(),
        ),
    ] {
        let mut wire = echo(&node).await;
        wire.send(sent).await;
        assert_eq!(wire.close().await.0, 1002, "{what}");
        wire.expect_eof().await;
    }
}

/// Whole frames of a server with less than 126 bytes.
fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    while let Some(len) = bytes.get(1) {
        let (frame, rest) = bytes.split_at(2 + usize::from(*len));
        frames.push(frame.to_vec());
        bytes = rest;
    }
    frames
}

#[tokio::test]
async fn a_stream_may_be_cut_anywhere() {
    let node = Node::alone(RAW).await;
    let text = "Grüße \u{1f600}";
    let long = [2; 126];
    let stream = [
        frame(Opcode::Text, text.as_bytes()),
        frame(Opcode::Ping, b"ping"),
        unfinished(Opcode::Binary, &[1; 3]),
        frame(Opcode::Continuation, &long),
        frame(Opcode::Text, b""),
    ]
    .concat();
    let messages = [
        (Opcode::Text as u8, text.as_bytes().to_vec()),
        (Opcode::Binary as u8, [&[1; 3][..], &long].concat()),
        (Opcode::Text as u8, vec![]),
        (Opcode::Pong as u8, b"ping".to_vec()),
    ];
    // Within the long payload one place is like another.
    let long_ends = stream.len() - 6;
    let cuts = (1..stream.len()).filter(|cut| !(long_ends - 120..long_ends - 2).contains(cut));

    let mut wire = echo(&node).await;
    for cut in cuts {
        wire.send(&stream[..cut]).await;
        eventually("the server has read it", async || {
            unread_at(node.port()) == 0
        })
        .await;
        wire.send(&stream[cut..]).await;
        let mut came = vec![];
        while came.len() < messages.len() {
            let frame = wire.frame().await;
            assert!(frame.fin, "cut at {cut}");
            came.push((frame.opcode, frame.payload));
        }
        // A pong may overtake what goes through the room and back.
        came.sort_by_key(|(opcode, _)| *opcode == Opcode::Pong as u8);
        assert_eq!(came, messages, "cut at {cut}");
    }
    for byte in &stream {
        wire.send([*byte]).await;
    }
    wire.send(goodbye().0).await;
    assert_eq!(
        wire.frames().await.len(),
        messages.len() + 1,
        "byte by byte"
    );
}

// === §5.5: control frames ===

#[tokio::test]
async fn pings_are_answered_while_ten_thousand_messages_pass() {
    const MESSAGES: usize = 10_000;
    const PINGS: u32 = 100;
    /// Messages that are ahead of the member: less than its queue on the node holds.
    const AHEAD: usize = 1_000;
    let node = Node::alone(RAW).await;
    let mut member = node.wire().await;
    member.upgrade("/raw").await;
    let mut sender = node.wire().await;
    sender.upgrade("/raw").await;
    eventually("both are in the room", async || {
        node.api().members("/raw").await["count"] == 2
    })
    .await;

    // Messages pass until all pings are answered, and not the other way round.
    let room = Arc::new(Semaphore::new(AHEAD));
    let sending = tokio::spawn({
        let room = Arc::clone(&room);
        async move {
            for n in 0.. {
                let Ok(place) = room.acquire().await else {
                    break;
                };
                place.forget();
                let text = format!("message {n} {}", "x".repeat(100));
                sender.send(frame(Opcode::Text, text.as_bytes())).await;
            }
            sender
        }
    });
    let (mut pings, mut pongs, mut messages) = (0_u32, 0_u32, 0);
    while pongs < PINGS || messages < MESSAGES {
        if pings == pongs {
            member.send(frame(Opcode::Ping, &pings.to_be_bytes())).await;
            pings += 1;
        }
        let frame = member.frame().await;
        if frame.opcode == Opcode::Pong as u8 {
            assert_eq!(frame.payload, pongs.to_be_bytes());
            pongs += 1;
            continue;
        }
        let text = String::from_utf8(frame.payload).expect("text");
        assert!(text.starts_with(&format!("message {messages} ")), "{text}");
        messages += 1;
        room.add_permits(1);
    }
    room.close();
    sending.await.expect("the sender is still connected");
}

// === §7: closing ===

#[tokio::test]
async fn each_code_of_a_close_is_echoed_or_refused() {
    // Nobody waits for that: the end comes with the echo.
    let patient = RAW.replacen("[sockets]", "[sockets]\nclose_timeout = \"1h\"", 1);
    let node = Node::alone(&patient).await;
    for code in [
        1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000,
        4999,
    ] {
        let mut wire = echo(&node).await;
        wire.send(frame(Opcode::Close, &close_payload(code, "why not")))
            .await;
        assert_eq!(wire.close().await.0, code);
        wire.expect_eof().await;
    }
    for code in [
        0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 65_535,
    ] {
        let what = format!("a close with {code}");
        let sent = frame(Opcode::Close, &close_payload(code, ""));
        expect_refusal(&node, &what, &sent, 1002).await;
    }
    expect_refusal(&node, "one byte", &frame(Opcode::Close, &[3]), 1002).await;
    for reason in [&b"\xff"[..], b"a\xc3", b"\xed\xa0\x80", b"\xc0\x80"] {
        let payload = [&1000_u16.to_be_bytes(), reason].concat();
        expect_refusal(&node, "a bad reason", &frame(Opcode::Close, &payload), 1007).await;
    }
    let (empty, longest) = (vec![], close_payload(1000, &"é".repeat(61)));
    for payload in [empty, longest] {
        let mut wire = echo(&node).await;
        wire.send(frame(Opcode::Close, &payload)).await;
        let close = wire.frame().await;
        assert_eq!((close.fin, close.opcode), (true, Opcode::Close as u8));
        assert!(payload.starts_with(&close.payload), "{close:?}");
        wire.expect_eof().await;
    }
}

#[tokio::test]
async fn nothing_after_a_close_is_heard() {
    let node = Node::alone(RAW).await;
    let mut member = node.ungreeted("/raw").await;
    let mut wire = node.wire().await;
    wire.upgrade("/raw").await;
    eventually("both are in the room", async || {
        node.api().members("/raw").await["count"] == 2
    })
    .await;

    wire.send(
        [
            frame(Opcode::Text, b"before"),
            goodbye().0,
            frame(Opcode::Text, b"after"),
            frame(Opcode::Ping, b"after"),
            b"\xff\xff\xff\xff".to_vec(),
        ]
        .concat(),
    )
    .await;

    // One Close, no pong, no error about what came behind.
    assert_eq!(wire.rest().await, goodbye().1);
    member.expect_frame(Message::text("before")).await;
    let fence = json!({"room": "/raw", "text": "fence"});
    node.api().post("publish", fence).await.ok();
    member.expect_frame(Message::text("fence")).await;
}

#[tokio::test]
async fn a_message_that_a_close_interrupts_is_nobody_s() {
    let node = Node::alone(RAW).await;
    let sent = [unfinished(Opcode::Text, b"half a mess"), goodbye().0].concat();
    let mut wire = echo(&node).await;

    wire.send(sent).await;

    assert_eq!(wire.rest().await, goodbye().1);
}

#[tokio::test]
async fn who_does_not_answer_a_close_is_cut_off_in_time() {
    let quick = RAW.replacen("[sockets]", "[sockets]\nclose_timeout = \"300ms\"", 1);
    let node = Node::alone(&quick).await;
    let mut wire = node.wire().await;
    wire.upgrade("/x").await;
    let greeting: Value = serde_json::from_str(&wire.text().await).expect("JSON");
    let mut member = node.client("/x").await;

    let body = json!({"to": greeting["data"]["id"], "code": 4000, "reason": "out"});
    node.api().post("disconnect", body).await.ok();

    assert_eq!(wire.close().await, (4000, "out".to_owned()));
    // What it says in place of a Close goes nowhere.
    let _ = wire
        .try_send(frame(Opcode::Text, br#"{"event":"late"}"#))
        .await;
    wire.expect_eof().await;
    node.api().publish("/x", "fence", Value::Null).await;
    assert_eq!(member.next().await.event, "fence");
}

#[tokio::test]
async fn two_hundred_ends_of_all_kinds_leave_no_file_open() {
    let mut node = Node::alone(RAW).await;
    drop(node.client("/x").await);
    let before = node.process().open_files();

    for n in 0..200 {
        let mut wire = echo(&node).await;
        match n % 8 {
            0 => wire.send(goodbye().0).await,
            1 => wire.send(frame(Opcode::Close, b"")).await,
            2 => wire.send(frame(Opcode::Close, b"\x03")).await,
            3 => wire.send(frame(Opcode::Close, b"\x03\xe8\xff")).await,
            4 => wire.send(b"\xff\xff".as_slice()).await,
            5 => wire.send(&frame(Opcode::Text, b"half")[..8]).await,
            // Without a word, and with a reset.
            6 => {}
            _ => {
                wire.reset();
                continue;
            }
        }
        if n % 8 < 5 {
            wire.rest().await;
        }
    }

    eventually("the files are closed", async || {
        let now = node.process().open_files();
        if now <= before {
            Ok(())
        } else {
            Err((before, now))
        }
    })
    .await;
}

// === §8.1: text ===

#[tokio::test]
async fn text_is_utf_8_and_comes_back_as_it_was() {
    let node = Node::alone(RAW).await;
    for text in [
        "\u{feff}with a mark of byte order",
        "\u{feff}",
        "\0",
        "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}",
        // Not characters, but UTF-8.
        "\u{fffe}\u{ffff}\u{fdd0}\u{fdef}\u{1fffe}\u{10fffe}",
        "\u{d7ff}\u{e000}\u{fffd}",
        "e\u{301} is not é",
        "\r\n\t\u{2028}",
    ] {
        let sent = frame(Opcode::Text, text.as_bytes());
        let came = written(Opcode::Text, text.as_bytes());
        expect_bytes(&node, &format!("{text:?}"), &sent, &came).await;
    }
    for bytes in [
        &b"\x80"[..],
        b"\xbf",
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x80\x80",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xed\xbf\xbf",
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xf0\x80\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xf4\x90\x80\x80",
        b"\xf5\x80\x80\x80",
        b"\xfe",
        b"\xff",
        b"\xc3",
        b"\xe2\x82",
        b"\xf0\x9f\x98",
        b"\xc3(",
        b"\xe2\x82(",
    ] {
        let bytes = [b"good, then ", bytes].concat();
        let whole = frame(Opcode::Text, &bytes);
        expect_refusal(&node, "one frame", &whole, 1007).await;
        let (first, last) = bytes.split_at(bytes.len() - 1);
        let two = [
            unfinished(Opcode::Text, first),
            frame(Opcode::Continuation, last),
        ];
        expect_refusal(&node, "two frames", &two.concat(), 1007).await;
        // Binary may be anything.
        let binary = frame(Opcode::Binary, &bytes);
        expect_bytes(&node, "binary", &binary, &written(Opcode::Binary, &bytes)).await;
    }
}
