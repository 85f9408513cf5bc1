//! How a node spreads its work over its threads.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use proto::SocketId;
use serde_json::{Value, json};
use unisono_tests::{Client, Node, Opcode, frame};

const WORKERS: usize = 4;

async fn node() -> Node {
    let workers = format!("--set=workers={WORKERS}");
    Node::config("alone").arg(&workers).start().await
}

/// Each worker holds its share of the clients, which the kernel deals out by a hash: with five standard
/// deviations to spare.
fn assert_dealt_out(clients: &[Client]) {
    let mut held: BTreeMap<usize, usize> = BTreeMap::new();
    for client in clients {
        let id = SocketId::parse(&client.id).expect("an id");
        *held.entry(id.worker()).or_default() += 1;
    }
    let (all, part) = (clients.len() as f64, 1.0 / WORKERS as f64);
    let deviation = (all * part * (1.0 - part)).sqrt();
    let is_fair = |count: usize| (count as f64 - all * part).abs() < 5.0 * deviation;
    assert!(
        held.len() == WORKERS && held.values().all(|count| is_fair(*count)),
        "{held:?}"
    );
}

#[tokio::test]
async fn a_hot_room_uses_all_workers() {
    let mut node = node().await;
    let mut clients = vec![];
    for _ in 0..100 * WORKERS {
        clients.push(node.client("/hot").await);
    }
    assert_dealt_out(&clients);

    let before = node.process().workers_cpu();
    let text = "x".repeat(4 * 1024);
    let (publisher, members) = clients.split_first_mut().expect("clients");
    for _ in 0..25 {
        publisher.publish("/hot", "m", json!(text)).await;
    }
    join_all(members.iter_mut().map(async |member| {
        for _ in 0..25 {
            member.expect("m").await;
        }
    }))
    .await;
    let after = node.process().workers_cpu();
    let spent: Vec<u64> = (after.iter().zip(&before))
        .map(|(after, before)| after - before)
        .collect();
    let all: u64 = spent.iter().sum();
    assert_eq!(spent.len(), WORKERS);
    // Each of four does a quarter, but for chance and the noise of so short a time.
    assert!(spent.iter().all(|one| 8 * one > all), "{spent:?}");
}

/// So each of many sends costs a fraction of a `write` for each member: bursts stay together on their way.
#[tokio::test]
async fn what_a_client_sends_in_one_piece_comes_in_one_piece() {
    const BURST: usize = 16;
    let node = node().await;
    let mut wires = vec![];
    for _ in 0..4 * WORKERS {
        let mut wire = node.wire().await;
        wire.upgrade("/x").await;
        wire.text().await;
        wires.push(wire);
    }
    let (publisher, members) = wires.split_first_mut().expect("clients");
    for round in 0..20 {
        let events = (0..BURST).map(|n| json!({"event": "m", "data": [round, n]}).to_string());
        let frames = events.map(|event| frame(Opcode::Text, event.as_bytes()));
        publisher.send(frames.collect::<Vec<_>>().concat()).await;

        for member in &mut *members {
            let piece = member.piece().await;
            let data = piece.iter().map(|frame| {
                let event: Value = serde_json::from_slice(&frame.payload).expect("JSON");
                event["data"].clone()
            });
            let expected: Vec<_> = (0..BURST).map(|n| json!([round, n])).collect();
            assert_eq!(data.collect::<Vec<_>>(), expected);
        }
    }
}

#[tokio::test]
async fn many_rooms_spread_over_the_workers() {
    let node = node().await;
    let mut clients = vec![];
    for room in 0..1_000 {
        clients.push(node.client(&format!("/rooms/{room}")).await);
    }
    assert_dealt_out(&clients);
}
