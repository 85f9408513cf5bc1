//! Compressed messages (RFC 7692): who gets them, what comes out of them, and what they may not do.

use serde_json::{Value, json};
use unisono_tests::{
    Browser, Client, Node, Opcode, Sandbox, Wire, compressed_frame, deflated, eventually, frame,
    inflated, upgrade_request,
};

/// Opens a room with that offer, and returns what was answered to it.
async fn offering(node: &Node, path: &str, offer: &str) -> (Wire, Option<String>) {
    let mut wire = node.wire().await;
    let offer = format!("Sec-WebSocket-Extensions: {offer}\r\n\r\n");
    let request = upgrade_request(path);
    let head = request.strip_suffix("\r\n").expect("a head");
    wire.send(format!("{head}{offer}")).await;
    let response = wire.response().await;
    assert_eq!(response.status, 101);
    let answer = response.header("sec-websocket-extensions");
    let answer = answer.map(str::to_owned);
    (wire, answer)
}

/// The id of a greeting, which is too small to be compressed.
async fn greeted(wire: &mut Wire) -> String {
    let greeting = wire.frame().await;
    assert!(!greeting.compressed, "{greeting:?}");
    let greeting: Value = serde_json::from_slice(&greeting.payload).expect("JSON");
    greeting["data"]["id"].as_str().expect("an id").to_owned()
}

/// The next event, which is compressed, for a reader with that window.
async fn event(wire: &mut Wire, window_bits: u8) -> Value {
    let frame = wire.frame().await;
    assert!(frame.compressed && frame.fin, "{frame:?}");
    serde_json::from_slice(&inflated(&frame.payload, window_bits)).expect("JSON")
}

/// Text that is worth compressing, and needs more than a small window to be so.
fn long() -> String {
    (0..400)
        .map(|n| format!("line {} of many; ", n % 40))
        .collect()
}

#[tokio::test]
async fn an_offer_that_can_be_taken_is_taken() {
    let node = Node::alone("").await;
    let large = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    let small = format!("{large}; server_max_window_bits=9");
    for (offer, expected) in [
        ("permessage-deflate", Some(large)),
        ("permessage-deflate; client_max_window_bits", Some(large)),
        (
            "permessage-deflate; server_max_window_bits=10",
            Some(&*small),
        ),
        ("permessage-deflate; server_max_window_bits=8", None),
        (
            "permessage-deflate; server_max_window_bits=8, permessage-deflate",
            Some(large),
        ),
        ("permessage-deflate; no_such_thing", None),
        ("x-webkit-deflate-frame", None),
        (", ;=\"", None),
    ] {
        let (mut wire, answer) = offering(&node, "/x", offer).await;
        assert_eq!(answer.as_deref(), expected, "{offer}");
        greeted(&mut wire).await;
    }
    let off = Node::alone("[sockets]\ndeflate = false").await;
    let (mut wire, answer) = offering(&off, "/x", "permessage-deflate").await;
    assert_eq!(answer, None);
    greeted(&mut wire).await;
    wire.send(compressed_frame(b"{}")).await;
    assert_eq!(wire.close().await.0, 1002);
}

#[tokio::test]
async fn everybody_gets_the_same_however_it_travels() {
    let sandbox = Sandbox::start(2).await;
    let node = &sandbox.nodes[0];
    let mut plain = node.client("/room").await;
    let (mut large, _) = offering(node, "/room", "permessage-deflate").await;
    let (mut small, _) = offering(
        node,
        "/room",
        "permessage-deflate; server_max_window_bits=9",
    )
    .await;
    let large_id = greeted(&mut large).await;
    greeted(&mut small).await;
    let text = long();
    for n in 0..3 {
        let data = json!({"n": n, "text": text});
        sandbox.api(1).publish("/room", "news", data.clone()).await;
        assert_eq!(plain.expect("news").await.data, data);
        assert_eq!(event(&mut large, 15).await["data"], data);
        assert_eq!(event(&mut small, 9).await["data"], data);
    }
    // To one, to all, and something that is too small.
    let status = sandbox.api(1).emit(&large_id, "private", json!(text)).await;
    assert_eq!(status, "delivered");
    assert_eq!(event(&mut large, 15).await["data"], json!(text));
    sandbox.api(1).broadcast("all", json!(text)).await;
    assert_eq!(event(&mut small, 9).await["event"], "all");
    assert_eq!(event(&mut large, 15).await["event"], "all");
    sandbox.api(1).publish("/room", "small", json!(1)).await;
    for wire in [&mut large, &mut small] {
        let frame = wire.frame().await;
        assert!(!frame.compressed, "{frame:?}");
    }
    // Of an event stream and of WebSockets of any kind one is as good as the other.
    let metrics = node.metrics().await;
    assert_eq!(metrics.get("unisono_sockets{wire=\"websocket\"}"), 3.0);
}

#[tokio::test]
async fn what_a_client_compresses_is_understood() {
    let node = Node::alone("").await;
    let mut member = node.client("/room").await;
    let (mut wire, _) = offering(&node, "/room", "permessage-deflate").await;
    greeted(&mut wire).await;
    let message = |n| json!({"event": "said", "data": {"n": n, "text": long()}}).to_string();
    wire.send(compressed_frame(message(1).as_bytes())).await;
    assert_eq!(member.expect("said").await.data["n"], 1);
    // In three fragments, with a ping among them, and then without compression.
    let compressed = deflated(message(2).as_bytes());
    let mut parts = compressed.chunks(compressed.len() / 3 + 1);
    let mut part = |opcode: Opcode, bits: u8| {
        let mut bytes = frame(opcode, parts.next().expect("three parts"));
        bytes[0] = bytes[0] & 0x0f | bits;
        bytes
    };
    wire.send(part(Opcode::Text, 0x40)).await;
    wire.send(frame(Opcode::Ping, b"there?")).await;
    wire.send(part(Opcode::Continuation, 0)).await;
    wire.send(part(Opcode::Continuation, 0x80)).await;
    let pong = wire.frame().await;
    assert_eq!(
        (pong.opcode, &*pong.payload),
        (Opcode::Pong as u8, &b"there?"[..])
    );
    assert_eq!(member.expect("said").await.data["n"], 2);
    wire.send(frame(Opcode::Text, message(3).as_bytes())).await;
    assert_eq!(member.expect("said").await.data["n"], 3);
}

#[tokio::test]
async fn what_breaks_the_rules_of_compression_is_closed() {
    let node = Node::alone("").await;
    let with_bits = |mut bytes: Vec<u8>, bits: u8| {
        bytes[0] |= bits;
        bytes
    };
    for (bytes, code) in [
        (with_bits(frame(Opcode::Ping, b""), 0x40), 1002),
        (with_bits(frame(Opcode::Text, b""), 0x60), 1002),
        (with_bits(frame(Opcode::Text, b"\xff\xff\xff"), 0x40), 1007),
        (compressed_frame(b"\xff\xfe"), 1007),
        // Only the first frame of a message says that it is compressed.
        (
            [
                vec![0x41, 0x80, 0, 0, 0, 0],
                with_bits(frame(Opcode::Continuation, b"\x00"), 0x40),
            ]
            .concat(),
            1002,
        ),
        // Many ends, each of which takes the server longer than the client.
        (
            with_bits(frame(Opcode::Text, &[3, 0].repeat(1_000)), 0x40),
            1008,
        ),
    ] {
        let (mut wire, _) = offering(&node, "/x", "permessage-deflate").await;
        greeted(&mut wire).await;
        wire.send(&bytes).await;
        assert_eq!(wire.close().await.0, code, "{bytes:x?}");
    }
}

#[tokio::test]
async fn a_bomb_costs_no_more_than_a_message() {
    let mut node = Node::alone("").await;
    let bomb = deflated(&vec![b'a'; 40 << 20]);
    assert!(
        bomb.len() < 64 << 10,
        "it fits into a message: {}",
        bomb.len()
    );
    let mut bytes = frame(Opcode::Text, &bomb);
    bytes[0] |= 0x40;
    let before = node.process().memory_kib();
    for _ in 0..20 {
        let (mut wire, _) = offering(&node, "/x", "permessage-deflate").await;
        greeted(&mut wire).await;
        wire.send(&bytes).await;
        assert_eq!(wire.close().await.0, 1009);
    }
    let grown = node.process().memory_kib().saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB of 800 MiB");
}

#[tokio::test]
async fn a_browser_and_the_node_agree() {
    let node = Node::alone("").await;
    let mut member = node.client("/room").await;
    let mut browser = Browser::start().await;
    let mut page = browser
        .open(&format!("http://127.0.0.1:{}/", node.port()))
        .await;
    let url = node.url("/room");
    let opened = page
        .eval(&format!(
            "new Promise((done, fail) => {{
                window.probed = [];
                window.probe = new WebSocket({url:?});
                probe.onmessage = ({{ data }}) => probed.push(JSON.parse(data));
                probe.onopen = () => done(probe.extensions);
                probe.onerror = fail;
            }})"
        ))
        .await;
    let extensions = opened.as_str().expect("text");
    assert!(extensions.starts_with("permessage-deflate"), "{extensions}");
    let text = long().repeat(5);
    let sent = |metrics: unisono_tests::Metrics| metrics.get("unisono_sent_bytes_total");
    let before = sent(node.metrics().await);
    member.publish("/room", "news", json!(text)).await;
    eventually("the page has it", async || {
        page.eval("probed.filter(message => message.event == 'news').map(message => message.data)")
            .await
            == json!([text])
    })
    .await;
    let cost = sent(node.metrics().await) - before;
    assert!(cost < text.len() as f64 / 4.0, "{cost} bytes");
    page.eval(&format!(
        "probe.send(JSON.stringify({{event: 'said', data: {}}}))",
        json!(text)
    ))
    .await;
    assert_eq!(member.expect("said").await.data, json!(text));
    let received = node.metrics().await.get("unisono_received_bytes_total");
    assert!(received < text.len() as f64 * 1.5, "{received} bytes");
    page.close().await;
}

#[tokio::test]
async fn clients_that_know_nothing_of_it_are_as_before() {
    let node = Node::alone("[sockets]\ndeflate_min_bytes = 0").await;
    let mut one = Client::connect(&node.url("/room")).await;
    let mut other = node.client("/room").await;
    one.publish("/room", "news", json!(long())).await;
    assert_eq!(other.expect("news").await.data, json!(long()));
}
