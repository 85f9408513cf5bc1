//! Sockets by the thousand that come and go: nothing of them stays.

use std::net::Ipv4Addr;

use futures_util::future::join_all;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use unisono_tests::{Node, Opcode, Sandbox, Wire, eventually, frame, upgrade_request};

const SECRET: &str = "a secret of more than 32 bytes, for tests";

/// So many in all: some forty seconds.
const CONNECTIONS: usize = 100_000;

/// So many stand at one time, on all nodes; the files of this process are bounded.
const WAVE: usize = 2_000;

/// Those that are opened at one time.
const AT_ONCE: usize = 50;

/// Waves until memory has the size that it keeps, and those after them, as the last, of which the smallest counts.
const WARM: usize = 10;
const LOOKED_AT: usize = 5;

/// Rooms to choose from.
const ROOMS: usize = 5_000;

#[tokio::test]
async fn sockets_that_come_and_go_leave_nothing() {
    let auth = format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"");
    let linger = "room_linger = \"1s\"\n";
    let config = Sandbox::config().nodes(2).cluster(linger).toml(&auth);
    let mut sandbox = config.start().await;
    let bus = &sandbox.nats[0];
    let before = eventually("the bus is at rest", async || {
        let first = bus.subscriptions().await;
        (bus.subscriptions().await == first).then_some(first)
    })
    .await;
    let files: Vec<usize> = each(&mut sandbox, |node| node.process().open_files());

    let mut random = Random(CONNECTIONS as u64);
    let mut sizes = vec![];
    for wave in 0..CONNECTIONS / WAVE {
        come_and_go(&sandbox.nodes, wave, &mut random).await;
        for node in &sandbox.nodes {
            eventually("the tables are empty", async || empty(node).await).await;
        }
        sizes.push(each(&mut sandbox, |node| node.process().memory_kib()));
    }

    println!("memory after each wave, KiB: {sizes:?}");
    let early = smallest(&sizes[WARM..WARM + LOOKED_AT]);
    let late = smallest(&sizes[sizes.len() - LOOKED_AT..]);
    for (early, late) in early.iter().zip(&late) {
        // The allocator finds its size by and by: 5 % more, and no more with four times as many sockets. What is lost
        // for each of them, 120 bytes of it, would show.
        assert!(*late <= early + early / 8, "a node grows: {sizes:?}");
    }
    let bus = &sandbox.nats[0];
    eventually("the bus knows no more rooms than before", async || {
        let now = bus.subscriptions().await;
        if now <= before {
            Ok(())
        } else {
            Err((before, now))
        }
    })
    .await;
    eventually("their descriptors are closed", async || {
        let now = each(&mut sandbox, |node| node.process().open_files());
        if now.iter().zip(&files).all(|(now, before)| now <= before) {
            Ok(())
        } else {
            Err((files.clone(), now))
        }
    })
    .await;
}

fn each<T>(sandbox: &mut Sandbox, look: impl Fn(&mut Node) -> T) -> Vec<T> {
    sandbox.nodes.iter_mut().map(look).collect()
}

/// What each node had at its smallest.
fn smallest(sizes: &[Vec<u64>]) -> Vec<u64> {
    let of = |node: usize| sizes.iter().map(|sizes| sizes[node]).min();
    (0..sizes[0].len()).filter_map(of).collect()
}

/// What the node knows of sockets, rooms and users is nothing.
async fn empty(node: &Node) -> Result<(), String> {
    let rooms = node.api().get("/api/v1/rooms").await.ok();
    let metrics = node.metrics().await;
    let sockets = metrics.sum("unisono_sockets");
    let (rooms_known, users) = (metrics.get("unisono_rooms"), metrics.get("unisono_users"));
    let queued = metrics.get("unisono_queue_bytes");
    if rooms["rooms"] == json!([]) && [sockets, rooms_known, users, queued] == [0.0; 4] {
        Ok(())
    } else {
        Err(format!(
            "{sockets} sockets, {rooms_known} rooms, {users} users, {queued} bytes: {rooms:.200}"
        ))
    }
}

/// A wave of sockets, each in two rooms by chance, which end in one of several ways.
async fn come_and_go(nodes: &[Node], wave: usize, random: &mut Random) {
    // A port is not used again at once: each wave has an address of its own.
    let from = Ipv4Addr::new(127, 0, 1, (wave % 200) as u8 + 2);
    let mut there = Vec::with_capacity(WAVE);
    while there.len() < WAVE {
        let some = (0..AT_ONCE).map(|_| {
            let node = &nodes[random.below(nodes.len())];
            let (first, second) = (random.below(ROOMS), random.below(ROOMS));
            come(node, from, first, second, random.below(1_000))
        });
        let some: Vec<_> = some.collect();
        there.extend(join_all(some).await);
    }
    let ends: Vec<_> = there
        .into_iter()
        .map(|wire| go(wire, random.below(4)))
        .collect();
    join_all(ends).await;
}

async fn come(node: &Node, from: Ipv4Addr, first: usize, second: usize, user: usize) -> Wire {
    let claims = json!({"sub": format!("user-{user}"), "exp": 4_000_000_000_u64});
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&Header::default(), &claims, &key).expect("claims are JSON");
    let mut wire = Wire::connect_from(from, node.port()).await;
    wire.send(upgrade_request(&format!("/room-{first}?token={token}")))
        .await;
    assert_eq!(wire.response().await.status, 101);
    let join = json!({"event": "unisono:join", "data": {"room": format!("/room-{second}")}});
    wire.send(frame(Opcode::Text, join.to_string().as_bytes()))
        .await;
    wire
}

async fn go(mut wire: Wire, how: usize) {
    match how {
        0 => {
            wire.send(frame(Opcode::Close, &1000_u16.to_be_bytes()))
                .await;
            assert_eq!(wire.close().await.0, 1000);
        }
        1 => wire.half_close().await,
        2 => wire.reset(),
        _ => drop(wire),
    }
}

/// Chance that is the same each time: xorshift.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}
