//! Clients that mean harm, or are just unlucky: what they cost is bounded, it comes back, and a well-behaved socket beside
//! them feels nothing of it.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::json;
use tokio::time::{Instant, timeout};
use unisono_tests::{
    BEARER, Node, NodeConfig, Opcode, PATIENCE, Steady, Wire, compressed_frame, eventually, frame,
    head, pass, stream_request, upgrade_request,
};

/// Where attackers come from, so that limits for an address do not meet the others.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// The pace of those who drip.
const BETWEEN_BYTES: Duration = Duration::from_millis(20);

/// Who does not answer a goodbye is cut.
const CLOSED_SOON: &str = "[sockets]\nclose_timeout = \"500ms\"";

/// A node of two workers with well-behaved clients, and what it was like before others came.
struct Siege {
    node: Node,
    steady: Steady,
    files: usize,
    memory_kib: u64,
}

impl Siege {
    async fn begin(toml: &str) -> Self {
        Self::of(Node::config("alone").toml(toml)).await
    }

    /// With so long for bodies, and for answers that nobody takes.
    async fn of_http(idle_timeout: &str) -> Self {
        let idle_timeout = format!("--set=api.idle_timeout={idle_timeout}");
        Self::of(Node::config("alone").arg(&idle_timeout)).await
    }

    async fn of(config: NodeConfig) -> Self {
        let mut node = config.arg("--set=workers=2").start().await;
        let steady = Steady::start(&node.url("/steady"), &node.url("/steady")).await;
        Self {
            steady,
            files: node.process().open_files(),
            memory_kib: node.process().memory_kib(),
            node,
        }
    }

    /// Nothing is left of those who came, and the node has grown by no more than that. The well-behaved have lost nothing.
    async fn end(mut self, kib_max: u64) {
        let node = &mut self.node;
        eventually("nothing is left of them", async || {
            let metrics = node.metrics().await;
            let sockets = metrics.sum("unisono_sockets");
            let rooms = metrics.get("unisono_rooms");
            // The one that asks is among them.
            let connections = metrics.get("unisono_connections");
            let queued = metrics.get("unisono_queue_bytes");
            let files = node.process().open_files();
            let seen = (sockets, rooms, connections, queued, files);
            let clean = (sockets, rooms) == (2.0, 1.0) && connections <= 1.0 && queued < 4096.0;
            match clean && files <= self.files {
                true => Ok(()),
                false => Err((seen, self.files)),
            }
        })
        .await;
        // The allocator gives back in its own time, and keeps something on each thread.
        eventually("the node is not much larger than before", async || {
            let grown = node.process().memory_kib().saturating_sub(self.memory_kib);
            match grown <= kib_max {
                true => Ok(()),
                false => Err(format!("grown by {grown} KiB, not {kib_max}")),
            }
        })
        .await;
        self.steady.end().await;
    }
}

async fn greeted(node: &Node, path: &str) -> Wire {
    let mut wire = node.wire().await;
    wire.upgrade(path).await;
    assert!(wire.text().await.contains("unisono:open"));
    wire
}

fn not_final(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame(opcode, payload);
    bytes[0] &= 0x7f;
    bytes
}

async fn members(node: &Node, room: &str) -> u64 {
    let members = node.api().members(room).await;
    members["count"].as_u64().expect("a count")
}

// === those who do not take part ===

#[tokio::test]
async fn those_who_never_read_cost_a_queue_each_and_not_for_long() {
    const EACH: usize = 8;
    let limits =
        "[sockets]\nqueue_bytes = \"256KiB\"\nwrite_timeout = \"1s\"\nclose_timeout = \"500ms\"";
    let mut siege = Siege::begin(limits).await;
    let node = &siege.node;
    // Sockets that never read, such that have sent a FIN besides, and streams.
    let mut deaf = vec![];
    for n in 0..3 * EACH {
        let mut wire = Wire::narrow(node.port()).await;
        match n % 3 {
            0 | 1 => wire.upgrade("/deaf").await,
            _ => wire.send(stream_request("/deaf", "")).await,
        }
        deaf.push(wire);
    }
    eventually("all are there", async || {
        members(node, "/deaf").await == 3 * EACH as u64
    })
    .await;
    let padding = "x".repeat(32 * 1024);

    siege
        .steady
        .during(async {
            for n in 0..100 {
                node.api().publish("/deaf", "big", json!(padding)).await;
                if n == 4 {
                    for wire in deaf.iter_mut().skip(1).step_by(3) {
                        wire.half_close().await;
                    }
                }
                let queued = node.metrics().await.get("unisono_queue_bytes");
                // The kernel has the rest. What is under way alone fits always.
                let most = 3 * EACH * (256 + 64) * 1024;
                assert!(queued <= most as f64, "{queued} bytes wait");
            }
            eventually("they are gone", async || members(node, "/deaf").await == 0).await;
        })
        .await;

    siege.end(32 * 1024).await;
}

#[tokio::test]
async fn half_a_connection_is_none() {
    let mut siege = Siege::begin("").await;
    let node = &siege.node;
    let mut halves = join_all((0..100).map(|_| greeted(node, "/half"))).await;

    siege
        .steady
        .during(async {
            for wire in &mut halves {
                wire.half_close().await;
            }
            eventually("they are gone", async || members(node, "/half").await == 0).await;
            for wire in &mut halves {
                wire.rest().await;
            }
        })
        .await;

    siege.end(16 * 1024).await;
}

#[tokio::test]
async fn those_who_have_vanished_are_forgotten() {
    let times =
        "[sockets]\nping_interval = \"500ms\"\npong_timeout = \"8s\"\nclose_timeout = \"500ms\"";
    let mut siege = Siege::begin(times).await;
    let node = &siege.node;
    // Their connections stand, as those of machines that lost their network do, and nothing comes from them.
    let mut vanished = join_all((0..99).map(|_| greeted(node, "/gone"))).await;
    let since = Instant::now();
    vanished.push(greeted(node, "/gone").await);

    siege
        .steady
        .during(eventually("they are gone", async || {
            members(node, "/gone").await == 0
        }))
        .await;

    assert!(since.elapsed() >= Duration::from_secs(1), "too early");
    // All of them is gone before they are: the server did not wait for their goodbye.
    siege.end(16 * 1024).await;
    drop(vanished);
}

#[tokio::test]
async fn heads_that_drip_are_not_waited_for() {
    const HEAD_TIMEOUT: Duration = Duration::from_secs(1);
    let mut siege = Siege::begin("[sockets]\nhead_timeout = \"1s\"").await;
    let node = &siege.node;

    siege
        .steady
        .during(async {
            let drip = async || {
                let (mut wire, start) = (node.wire().await, Instant::now());
                wire.send("GET /x HTTP/1.1\r\nX-Slow: ").await;
                // Byte by byte, each of which shows a client that lives.
                while start.elapsed() < 2 * HEAD_TIMEOUT && wire.try_send("a").await.is_ok() {
                    pass(BETWEEN_BYTES).await;
                }
                let answer = wire.response().await;
                assert_eq!(answer.status, 408, "{answer:?}");
            };
            join_all((0..200).map(|_| drip())).await;
        })
        .await;

    siege.end(16 * 1024).await;
}

// === floods ===

/// Frames that ask for much, many times.
fn floods() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| frame(Opcode::Text, text.as_bytes());
    let rooms = (0..100).flat_map(|n| {
        let room = json!({"room": format!("room-{n}")});
        let join = json!({"event": "unisono:join", "data": room, "id": n});
        let leave = json!({"event": "unisono:leave", "data": room});
        [text(&join.to_string()), text(&leave.to_string())]
    });
    let mut compressed = compressed_frame(br#"{"event":"x"}"#).repeat(500);
    compressed.extend(compressed_frame(b"{}").repeat(500));
    vec![
        ("pings", frame(Opcode::Ping, b"").repeat(1_000)),
        ("large pings", frame(Opcode::Ping, &[0; 125]).repeat(500)),
        ("messages", text(r#"{"event":"x"}"#).repeat(1_000)),
        ("nonsense", text("{").repeat(1_000)),
        ("joins and leaves", rooms.flatten().collect()),
        ("compressed messages", compressed),
        (
            "empty fragments",
            not_final(Opcode::Continuation, b"").repeat(1_000),
        ),
    ]
}

#[tokio::test]
async fn those_who_flood_are_closed() {
    let mut siege = Siege::begin(CLOSED_SOON).await;
    let node = &siege.node;

    for (what, bytes) in floods() {
        siege
            .steady
            .during(async {
                let flood = async |n: usize| {
                    let mut wire = deflating(node, &format!("/flood-{n}")).await;
                    if what == "empty fragments" {
                        wire.send(not_final(Opcode::Text, b"")).await;
                    }
                    wire.flood(&bytes, 64 << 20).await;
                    wire.close().await.0
                };
                let codes = join_all((0..4).map(flood)).await;
                assert!(codes.iter().all(|code| *code == 1008), "{what}: {codes:?}");
            })
            .await;
    }

    siege.end(32 * 1024).await;
}

/// A socket whose messages may be compressed, greeted.
async fn deflating(node: &Node, path: &str) -> Wire {
    let mut wire = node.wire().await;
    let request = upgrade_request(path);
    let head = request.strip_suffix("\r\n").expect("a head");
    wire.send(format!(
        "{head}Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.response().await.status, 101);
    assert!(wire.text().await.contains("unisono:open"));
    wire
}

#[tokio::test]
async fn what_is_too_large_is_never_held() {
    let mut siege = Siege::begin(CLOSED_SOON).await;
    let node = &siege.node;
    let bytes = [0; 64 * 1024];
    let bomb = compressed_frame(&vec![b' '; 16 << 20]);
    let fragment = not_final(Opcode::Continuation, &bytes[..1_000]);

    siege
        .steady
        .during(async {
            // A frame of a terabyte, of which much comes.
            let terabyte = async || {
                let mut wire = greeted(node, "/large").await;
                wire.send(head(0x82, 1 << 40)).await;
                wire.flood(&bytes, 64 << 20).await;
                wire.close().await.0
            };
            let endless = async || {
                let mut wire = greeted(node, "/large").await;
                wire.send(not_final(Opcode::Binary, b"")).await;
                wire.flood(&fragment, 64 << 20).await;
                wire.close().await.0
            };
            let bombs = async || {
                let mut wire = deflating(node, "/large").await;
                wire.flood(&bomb, bomb.len()).await;
                wire.close().await.0
            };
            for _ in 0..5 {
                let (terabytes, endless) = join(
                    join_all((0..2).map(|_| terabyte())),
                    join_all((0..2).map(|_| endless())),
                )
                .await;
                let bombs = join_all((0..20).map(|_| bombs())).await;
                for codes in [terabytes, endless, bombs] {
                    assert!(codes.iter().all(|code| *code == 1009), "{codes:?}");
                }
            }
        })
        .await;

    siege.end(16 * 1024).await;
}

// === crowds ===

#[tokio::test]
async fn those_who_come_and_go_leave_nothing() {
    let mut siege = Siege::begin("").await;
    let node = &siege.node;

    siege
        .steady
        .during(async {
            let come_and_go = async |n: usize| {
                let mut wire = Wire::connect_from(ELSEWHERE, node.port()).await;
                let path = format!("/passing-{}", n % 100);
                match n % 5 {
                    // Not a word.
                    0 => wire.reset(),
                    // Half a word.
                    1 => wire.send("GET /x HTT").await,
                    // Gone before the answer.
                    2 => wire.send(upgrade_request(&path)).await,
                    3 => wire.upgrade(&path).await,
                    _ => {
                        wire.upgrade(&path).await;
                        wire.reset();
                    }
                }
            };
            for n in (0..5_000).step_by(20) {
                join_all((n..n + 20).map(come_and_go)).await;
            }
        })
        .await;

    siege.end(32 * 1024).await;
}

#[tokio::test]
async fn a_thousand_of_one_address_cost_what_a_thousand_cost() {
    let mut siege = Siege::begin("").await;
    let node = &siege.node;

    let crowd = siege
        .steady
        .during(async {
            let come = async || {
                let mut wire = Wire::connect_from(ELSEWHERE, node.port()).await;
                wire.upgrade("/crowd").await;
                wire
            };
            let mut crowd = vec![];
            for _ in 0..50 {
                crowd.extend(join_all((0..20).map(|_| come())).await);
            }
            assert_eq!(members(node, "/crowd").await, 1_000);
            crowd
        })
        .await;
    siege.steady.during(async { drop(crowd) }).await;

    siege.end(48 * 1024).await;
}

#[tokio::test]
async fn a_thousand_of_one_address_are_too_many_where_there_is_a_limit() {
    let limit = "[sockets]\nhandshake_rate = 10\nhandshake_burst = 50";
    let mut siege = Siege::begin(limit).await;
    let node = &siege.node;
    let start = Instant::now();

    let (accepted, crowd) = siege
        .steady
        .during(async {
            let come = async || {
                let mut wire = Wire::connect_from(ELSEWHERE, node.port()).await;
                wire.send(upgrade_request("/crowd")).await;
                let status = wire.response().await.status;
                assert!(matches!(status, 101 | 429), "{status}");
                (status == 101).then_some(wire)
            };
            let mut crowd = vec![];
            for _ in 0..50 {
                crowd.extend(join_all((0..20).map(|_| come())).await);
            }
            let crowd: Vec<_> = crowd.into_iter().flatten().collect();
            (crowd.len(), crowd)
        })
        .await;
    let most = 51 + 10 * (start.elapsed().as_secs() as usize + 1);
    assert!((50..=most).contains(&accepted), "{accepted} of {most}");
    drop(crowd);

    siege.end(16 * 1024).await;
}

// === HTTP ===

#[tokio::test]
async fn requests_without_end_cost_no_more_than_one() {
    let mut siege = Siege::of_http("1s").await;
    let node = &siege.node;
    let request =
        format!("GET /api/v1/nodes HTTP/1.1\r\nHost: 127.0.0.1\r\n{BEARER}\r\n").repeat(100);

    siege
        .steady
        .during(async {
            let pipeline = async || {
                let mut wire = Wire::narrow(node.port()).await;
                // Nothing of the answers is read, and the server does not wait for that for long.
                let asking = async { while wire.try_send(&request).await.is_ok() {} };
                let asked = timeout(PATIENCE, asking).await;
                asked.expect("the server hangs up");
            };
            join_all((0..4).map(|_| pipeline())).await;
        })
        .await;

    // Ten thousands of answers leave small blocks all over the allocator's pages: 20 to 45 MiB, and no more with more of it.
    siege.end(64 * 1024).await;
}

#[tokio::test]
async fn heads_of_many_lines_are_refused() {
    let mut siege = Siege::begin("").await;
    let node = &siege.node;
    let many = |count| {
        let lines: String = (0..count).map(|n| format!("X-{n}: {n}\r\n")).collect();
        let request = upgrade_request("/x");
        let head = request.strip_suffix("\r\n").expect("a head");
        format!("{head}{lines}\r\n")
    };

    siege
        .steady
        .during(async {
            for (count, expected) in [(90, 101), (200, 400), (5_000, 431)] {
                let request = many(count);
                let ask = async || {
                    let mut wire = node.wire().await;
                    // It may be refused before all of it is sent.
                    let _ = wire.try_send(&request).await;
                    assert_eq!(wire.response().await.status, expected, "{count} lines");
                };
                for _ in 0..10 {
                    join_all((0..20).map(|_| ask())).await;
                }
            }
        })
        .await;

    siege.end(16 * 1024).await;
}

#[tokio::test]
async fn bodies_that_drip_are_not_waited_for() {
    let mut siege = Siege::of_http("1s").await;
    let node = &siege.node;
    let head = format!(
        "POST /api/v1/publish HTTP/1.1\r\nHost: 127.0.0.1\r\n{BEARER}Content-Length: 100000\r\n\r\n"
    );

    siege
        .steady
        .during(async {
            let drip = async || {
                let (mut wire, start) = (node.wire().await, Instant::now());
                wire.send(&head).await;
                while wire.try_send(" ").await.is_ok() {
                    assert!(start.elapsed() < PATIENCE, "it is waited for");
                    pass(BETWEEN_BYTES).await;
                }
            };
            join_all((0..100).map(|_| drip())).await;
        })
        .await;

    siege.end(16 * 1024).await;
}
