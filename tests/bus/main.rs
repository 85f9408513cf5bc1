//! The contract of `cluster::Bus`: one suite, held by NATS and by its in-memory twin.

use std::time::Duration;

use bytes::Bytes;
use cluster::{
    Bus, ClusterName, MemoryHub, Message, NatsAuth, NatsBus, NatsConfig, Outgoing, PublishError,
    Subject, Subjects,
};
use futures_util::StreamExt;
use proto::{NodeId, RoomName};
use unisono_tests::{Nats, PATIENCE, eventually};

const PAYLOAD_MAX: usize = 64 * 1024;

/// Holds an implementation to the contract: `connect` makes another connection to the same bus.
async fn contract<B: Bus>(connect: impl AsyncFn() -> B) {
    order_is_kept_and_nothing_comes_twice(&connect().await, &connect().await).await;
    nobody_hears_himself(&connect().await, &connect().await).await;
    a_pattern_takes_one_token(&connect().await, &connect().await).await;
    nobody_there_is_an_answer(&connect().await, &connect().await).await;
    a_shared_subscription_is_served_once(&connect().await, &connect().await, &connect().await)
        .await;
    a_drained_subscription_leaves_nothing_behind(&connect().await, &connect().await).await;
    what_is_too_large_costs_nothing(&connect().await, &connect().await).await;
    a_dropped_subscription_hears_no_more(&connect().await, &connect().await).await;
    odd_rooms_do_not_mix(&connect().await, &connect().await).await;
    the_last_words_are_written(connect().await, &connect().await).await;
}

#[tokio::test]
async fn the_memory_bus_keeps_the_contract() {
    let hub = MemoryHub::new(PAYLOAD_MAX);
    contract(async || hub.connect()).await;
}

#[tokio::test]
async fn nats_keeps_the_contract() {
    let nats = Nats::config().max_payload(PAYLOAD_MAX).start().await;
    contract(async || connected(&nats).await).await;
}

#[tokio::test]
async fn nats_may_come_late_and_come_back() {
    let mut nats = Nats::absent();
    let bus = NatsBus::connect(config(&nats))
        .await
        .expect("no network needed");
    assert!(!bus.status().connected);
    let other = NatsBus::connect(config(&nats)).await.expect("as above");
    let mut heard = bus.subscribe(subjects().all()).await;
    for round in 1..=2 {
        nats.start_again().await;
        reached(&bus, round).await;
        reached(&other, round).await;
        sync(&bus).await;
        publish(&other, subjects().all(), "again").await;
        assert_eq!(next(&mut heard).await, "again", "round {round}");
        nats.kill();
        gone(&bus).await;
    }
}

// === the contract ===

async fn order_is_kept_and_nothing_comes_twice(a: &impl Bus, b: &impl Bus) {
    let mut heard = a.subscribe(room("r")).await;
    sync(a).await;
    for n in 0..1_000 {
        publish(b, room("r"), &n.to_string()).await;
    }
    for n in 0..1_000 {
        assert_eq!(next(&mut heard).await, n.to_string());
    }
    fence(&mut heard, b, room("r")).await;
}

async fn nobody_hears_himself(a: &impl Bus, b: &impl Bus) {
    let mut heard = a.subscribe(room("r")).await;
    sync(a).await;
    publish(a, room("r"), "own").await;
    sync(a).await;
    fence(&mut heard, b, room("r")).await;
}

async fn a_pattern_takes_one_token(a: &impl Bus, b: &impl Bus) {
    let node = NodeId::new(5);
    let mut heard = a.subscribe(subjects().inbox(node)).await;
    sync(a).await;
    publish(b, subjects().request(NodeId::new(6)), "other").await;
    publish(b, subjects().request(node), "request").await;
    publish(b, subjects().reply(node, 7), "reply").await;
    assert_eq!(next(&mut heard).await, "request");
    let reply = message(&mut heard).await;
    assert_eq!(Subjects::call_of(&reply.subject), Some(7));
}

async fn nobody_there_is_an_answer(a: &impl Bus, b: &impl Bus) {
    let (here, gone) = (NodeId::new(10), NodeId::new(11));
    let mut inbox = a.subscribe(subjects().inbox(here)).await;
    let asked = Outgoing {
        subject: subjects().request(gone),
        reply: Some(subjects().reply(here, 3)),
        payload: Bytes::from_static(b"?"),
    };
    a.publish(asked.clone()).await.expect("handed over");
    let word = message(&mut inbox).await;
    assert!(word.no_responders, "{word:?}");
    assert_eq!(Subjects::call_of(&word.subject), Some(3));

    // With somebody there, it is his to answer.
    let mut there = b.subscribe(subjects().inbox(gone)).await;
    sync(b).await;
    a.publish(asked).await.expect("handed over");
    let question = message(&mut there).await;
    assert!(!question.no_responders);
    assert_eq!(
        question.reply.as_deref(),
        Some(subjects().reply(here, 3).as_str())
    );
}

async fn a_shared_subscription_is_served_once(a: &impl Bus, b: &impl Bus, c: &impl Bus) {
    let requests = || Subjects::reply(&subjects(), NodeId::new(30), 1);
    let mut by_a = a.subscribe_shared(requests()).await;
    let mut by_b = b.subscribe_shared(requests()).await;
    sync(a).await;
    sync(b).await;
    for n in 0..20 {
        publish(c, requests(), &n.to_string()).await;
    }
    let mut seen = Vec::new();
    for _ in 0..20 {
        let either = futures_util::future::select(by_a.next(), by_b.next());
        let message = tokio::time::timeout(PATIENCE, either).await;
        let (message, _) = message.expect("a message in time").factor_first();
        let message = message.expect("an open bus");
        seen.push(String::from_utf8(message.payload.to_vec()).expect("text"));
    }
    seen.sort_by_key(|n| n.parse::<u32>().ok());
    assert_eq!(seen, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
}

async fn a_drained_subscription_leaves_nothing_behind(a: &impl Bus, b: &impl Bus) {
    let requests = || Subjects::reply(&subjects(), NodeId::new(31), 1);
    let mut heard = a.subscribe_shared(requests()).await;
    sync(a).await;
    for n in 0..20 {
        publish(b, requests(), &n.to_string()).await;
    }
    sync(b).await;
    for n in 0..5 {
        assert_eq!(next(&mut heard).await, n.to_string());
    }
    a.drain(&mut heard, 15).await;
    for n in 5..20 {
        assert_eq!(next(&mut heard).await, n.to_string());
    }
    let end = tokio::time::timeout(PATIENCE, heard.next()).await;
    assert_eq!(end.expect("an end in time"), None);
}

async fn what_is_too_large_costs_nothing(a: &impl Bus, b: &impl Bus) {
    let mut heard = a.subscribe(room("r")).await;
    sync(a).await;
    sync(b).await;
    assert_eq!(b.payload_max(), PAYLOAD_MAX);
    let connections = b.status().connections;
    let send = async |bytes: usize| {
        let outgoing = Outgoing {
            subject: room("r"),
            reply: None,
            payload: vec![b'x'; bytes].into(),
        };
        b.publish(outgoing).await
    };
    assert_eq!(send(PAYLOAD_MAX + 1).await, Err(PublishError::TooLarge));
    assert_eq!(send(PAYLOAD_MAX).await, Ok(()));
    assert_eq!(message(&mut heard).await.payload.len(), PAYLOAD_MAX);
    assert_eq!(
        b.status().connections,
        connections,
        "the connection was not cut"
    );
}

async fn a_dropped_subscription_hears_no_more(a: &impl Bus, b: &impl Bus) {
    let (here, there) = (NodeId::new(20), NodeId::new(21));
    let subscription = a.subscribe(subjects().inbox(there)).await;
    sync(a).await;
    drop(subscription);
    let mut inbox = b.subscribe(subjects().inbox(here)).await;
    // It ends soon, not at once; then nobody is there.
    loop {
        let asked = Outgoing {
            subject: subjects().request(there),
            reply: Some(subjects().reply(here, 1)),
            payload: Bytes::new(),
        };
        b.publish(asked).await.expect("handed over");
        sync(b).await;
        if let Ok(Some(word)) = tokio::time::timeout(Duration::ZERO, inbox.next()).await {
            assert!(word.no_responders);
            return;
        }
    }
}

async fn odd_rooms_do_not_mix(a: &impl Bus, b: &impl Bus) {
    let names = [
        ">", "*", "a.b*", "a.b", "a b", "room", "Room", "房间", "=3E",
    ];
    let mut heard = Vec::new();
    for name in names {
        heard.push(a.subscribe(room(name)).await);
    }
    sync(a).await;
    for name in names {
        publish(b, room(name), name).await;
    }
    for (name, heard) in names.into_iter().zip(&mut heard) {
        assert_eq!(next(heard).await, name);
        fence(heard, b, room(name)).await;
    }
}

async fn the_last_words_are_written(a: impl Bus, b: &impl Bus) {
    let mut heard = b.subscribe(room("r")).await;
    sync(b).await;
    for n in 0..500 {
        publish(&a, room("r"), &n.to_string()).await;
    }
    a.close().await;
    for n in 0..500 {
        assert_eq!(next(&mut heard).await, n.to_string());
    }
}

// === words ===

fn subjects() -> Subjects {
    Subjects::new(ClusterName::parse("contract").expect("a name"))
}

fn room(name: &str) -> Subject {
    subjects().room(&RoomName::parse(name).expect("a name"))
}

async fn publish(bus: &impl Bus, subject: Subject, text: &str) {
    let outgoing = Outgoing {
        subject,
        reply: None,
        payload: text.to_owned().into(),
    };
    bus.publish(outgoing).await.expect("handed over");
}

async fn message(heard: &mut (impl StreamExt<Item = Message> + Unpin)) -> Message {
    let message = tokio::time::timeout(PATIENCE, heard.next()).await;
    message.expect("a message in time").expect("an open bus")
}

async fn next(heard: &mut (impl StreamExt<Item = Message> + Unpin)) -> String {
    let message = message(heard).await;
    String::from_utf8(message.payload.to_vec()).expect("text")
}

/// Nothing else came before this.
async fn fence(
    heard: &mut (impl StreamExt<Item = Message> + Unpin),
    from: &impl Bus,
    subject: Subject,
) {
    publish(from, subject, "fence").await;
    assert_eq!(next(heard).await, "fence");
}

/// Everything that this connection handed over before has reached the server.
async fn sync(bus: &impl Bus) {
    let me = NodeId::new(0xffff);
    let mut inbox = bus.subscribe(subjects().inbox(me)).await;
    let asked = Outgoing {
        subject: subjects().void(me),
        reply: Some(subjects().reply(me, 1)),
        payload: Bytes::new(),
    };
    bus.publish(asked).await.expect("handed over");
    assert!(message(&mut inbox).await.no_responders);
}

fn config(nats: &Nats) -> NatsConfig {
    NatsConfig {
        servers: vec![nats.url()],
        client_name: "contract".to_owned(),
        auth: NatsAuth::None,
        tls_ca: None,
        connect_timeout: Duration::from_secs(2),
        ping_interval: Duration::from_secs(2),
        reconnect_delay_max: Duration::from_millis(200),
        subscription_messages_max: 10_000,
    }
}

async fn connected(nats: &Nats) -> NatsBus {
    let bus = NatsBus::connect(config(nats))
        .await
        .expect("no network needed");
    reached(&bus, 1).await;
    bus
}

async fn reached(bus: &NatsBus, connections: u64) {
    eventually("a connection", async || {
        let status = bus.status();
        let there = status.connected && status.connections == connections;
        there.then_some(()).ok_or(format!("{status:?}"))
    })
    .await;
}

async fn gone(bus: &NatsBus) {
    eventually("the connection is gone", async || {
        (!bus.status().connected).then_some(()).ok_or("connected")
    })
    .await;
}
