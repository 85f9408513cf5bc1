//! What happens when something dies, stops or comes back.

mod bus;
mod forgery;
mod frozen;
mod partition;
mod route;
mod survivors;

use std::time::Duration;

use serde_json::{Value, json};
use unisono_tests::{
    Answer, Client, Event, Nats, Node, Sandbox, Witness, eventually, upgrade_request, within,
};

/// How long a node may take to find that a silent peer is gone.
const NOTICE: Duration = Duration::from_secs(90);

// === NATS away ===

#[tokio::test]
async fn nodes_serve_their_own_sockets_until_nats_comes_up() {
    let mut nats = Nats::absent();
    let config = |i| Node::config(&format!("node-{i}")).nats([nats.url()]);
    let nodes = vec![config(0).start_live().await, config(1).start_live().await];
    let api = nodes[0].api();
    let mut a = nodes[0].client("/x").await;
    let mut b = nodes[0].client("/x").await;
    let mut far = nodes[1].client("/x").await;

    assert_eq!(api.get("/health/live").await.status, 200);
    assert_eq!(
        api.publish("/x", "local", json!(1)).await["status"],
        "local_only"
    );
    a.expect("local").await;
    b.expect("local").await;
    a.send("chat", json!(2)).await;
    b.expect("chat").await;
    assert_eq!(a.emit(&b.id, "psst", json!(3)).await, "delivered");
    b.expect("psst").await;

    nats.start_again().await;
    let sandbox = Sandbox {
        nats: vec![nats],
        nodes,
    };
    sandbox.all_know_each_other().await;
    reaches(0, &sandbox, "/x", "global", 3).await;
    assert_eq!(
        sandbox.api(0).publish("/x", "sent", Value::Null).await["status"],
        "sent"
    );
    while far.next().await.event != "sent" {}
    eventually("both nodes are ready", async || {
        ready(&sandbox.nodes[0]).await && ready(&sandbox.nodes[1]).await
    })
    .await;
}

#[tokio::test]
async fn a_nats_that_dies_and_comes_back_costs_a_gap_and_nothing_else() {
    let mut sandbox = Sandbox::start(2).await;
    let mut near = sandbox.client(0, "/x").await;
    let mut far = sandbox.client(1, "/x").await;
    let mut publisher = Publisher::default();
    let (mut seen_near, mut seen_far) = (vec![], vec![]);

    publisher.publish(&sandbox, 20).await;
    until_number(&mut far, &mut seen_far, 19).await;
    sandbox.nats[0].kill();
    eventually("the node has noticed", async || {
        publisher.publish(&sandbox, 1).await == "local_only"
    })
    .await;
    publisher.publish(&sandbox, 20).await;
    assert_ne!(
        sandbox.api(0).get("/health/live").await.ok()["bus"],
        "connected"
    );

    sandbox.nats[0].start_again().await;
    until_gap(&mut near, &mut seen_near).await;
    until_gap(&mut far, &mut seen_far).await;
    sandbox.all_know_each_other().await;
    assert_eq!(
        sandbox.api(0).get("/health/live").await.ok()["bus"],
        "connected"
    );

    let after_the_gap = publisher.published;
    assert_eq!(publisher.publish(&sandbox, 20).await, "sent");
    until_number(&mut near, &mut seen_near, publisher.published - 1).await;
    until_number(&mut far, &mut seen_far, publisher.published - 1).await;

    let all: Vec<u64> = (0..publisher.published).collect();
    assert_eq!(
        seen_near, all,
        "local delivery went on, and nothing came twice"
    );
    assert!(
        seen_far.is_sorted_by(|a, b| a < b),
        "in order and nothing twice: {seen_far:?}"
    );
    assert_eq!(seen_far[..20], all[..20], "nothing was missed before");
    let tail = all.len() - after_the_gap as usize;
    let start = seen_far.len() - tail;
    assert_eq!(
        seen_far[start..],
        all[after_the_gap as usize..],
        "nothing was missed after the gap"
    );
}

#[tokio::test]
async fn a_join_during_an_outage_is_heard_everywhere_after_it() {
    let mut sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/x").await;
    sandbox.nats[0].kill();
    eventually("the node has noticed", async || {
        sandbox.api(0).publish("/x", "n", Value::Null).await["status"] == "local_only"
    })
    .await;

    a.send_text(r#"{"event":"unisono:join","data":{"room":"news"},"id":"late"}"#)
        .await;
    sandbox.nats[0].start_again().await;
    sandbox.all_know_each_other().await;

    // The join is either acknowledged, whenever, or refused as unavailable: never silently half done.
    let answer = loop {
        let event = a.next().await;
        if event.id == Some(json!("late")) {
            break event;
        }
    };
    if answer.event == "unisono:error" {
        assert_eq!(answer.data["code"], "unavailable");
        a.join("news").await;
    }
    reaches(1, &sandbox, "news", "headline", 1).await;
    while a.next().await.event != "headline" {}
}

#[tokio::test]
async fn what_a_frozen_nats_does_not_take_holds_no_local_socket_back() {
    let sandbox = Sandbox::config()
        .nodes(2)
        .toml("[sockets]\ninflight_bytes = \"256KiB\"")
        .start()
        .await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(0, "/x").await;
    let filler = "x".repeat(32 * 1024);

    sandbox.nats[0].freeze();
    // Far more than the sockets' buffers, the bus's queue and the node's budget take together.
    for n in 0..600 {
        a.send("chat", json!([n, filler])).await;
        assert_eq!(b.expect("chat").await.data[0], n);
    }

    sandbox.nats[0].thaw();
    let mut skipped = vec![];
    until_gap(&mut b, &mut skipped).await;
    assert_eq!(skipped.len(), 0, "{skipped:?}");
}

#[tokio::test]
async fn a_frozen_nats_is_noticed_and_local_sockets_do_not_feel_it() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(0, "/x").await;
    let mut far = sandbox.client(1, "/x").await;

    sandbox.nats[0].freeze();
    for n in 0..20 {
        a.send("chat", json!(n)).await;
        assert_eq!(b.expect("chat").await.data, n);
    }
    let status = sandbox.api(0).emit(&far.id, "lost", Value::Null).await;
    assert!(
        matches!(status.as_str(), "timeout" | "node_gone"),
        "{status}"
    );
    within(NOTICE, "the node has noticed", async || {
        let answer = sandbox.api(0).publish("/x", "outage", Value::Null).await;
        if answer["status"] == "local_only" {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;

    sandbox.nats[0].thaw();
    sandbox.all_know_each_other().await;
    for i in 0..2 {
        bus_is_back(&sandbox, i).await;
    }
    let mut skipped = vec![];
    until_gap(&mut far, &mut skipped).await;
    sandbox.api(0).publish("/x", "again", Value::Null).await;
    while far.next().await.event != "again" {}
    sandbox.api(0).publish("/x", "fence", Value::Null).await;
    far.expect("fence").await;
}

// === nodes away ===

#[tokio::test]
async fn a_frozen_node_is_named_as_missing() {
    let config = Sandbox::config().cluster("node_timeout = \"30s\"\n");
    let sandbox = config.start().await;
    let _a = sandbox.client(0, "/x").await;
    let _b = sandbox.client(1, "/x").await;
    let _c = sandbox.client(2, "/x").await;
    let frozen = sandbox.nodes[2].id().await;
    let partial = json!({"reached": 2, "missing": [frozen]});

    sandbox.nodes[2].freeze();
    let rooms = sandbox.api(0).get("/api/v1/rooms").await.ok();
    assert_eq!(rooms["rooms"], json!([{"room": "/x", "sockets": 2}]));
    assert_eq!(rooms["nodes"], partial);
    let members = sandbox.api(1).members("/x").await;
    assert_eq!(
        (&members["count"], &members["nodes"]),
        (&json!(2), &partial)
    );
    let answer = sandbox
        .api(0)
        .publish_confirmed("/x", "hello", Value::Null)
        .await;
    assert_eq!(
        (&answer["sockets"], &answer["nodes"]),
        (&json!(2), &partial)
    );

    sandbox.nodes[2].thaw();
    eventually("the node is counted again", async || {
        let rooms = sandbox.api(0).get("/api/v1/rooms").await.ok();
        if rooms["nodes"]["reached"] == 3 {
            Ok(())
        } else {
            Err(rooms)
        }
    })
    .await;
}

#[tokio::test]
async fn an_emit_to_a_frozen_node_does_not_hang() {
    let sandbox = Sandbox::start(2).await;
    let mut far = sandbox.client(1, "/x").await;
    let mut near = sandbox.client(0, "/x").await;

    sandbox.nodes[1].freeze();
    let to = json!({"to": [far.id, near.id], "event": "hello"});
    let answer = sandbox.api(0).post("emit", to).await.ok();

    assert_eq!(answer["results"][&near.id], "delivered");
    assert_eq!(answer["results"][&far.id], "timeout");
    near.expect("hello").await;

    sandbox.nodes[1].thaw();
    eventually("the node answers again", async || {
        let status = sandbox.api(0).emit(&far.id, "again", Value::Null).await;
        if status == "delivered" {
            Ok(())
        } else {
            Err(status)
        }
    })
    .await;
    while far.next().await.event != "again" {}
}

#[tokio::test]
async fn a_killed_node_disappears_from_the_list() {
    let mut sandbox = Sandbox::start(3).await;
    let mut dead = sandbox.nodes.pop().expect("three nodes");

    dead.kill();

    within(NOTICE, "the dead node is off the lists", async || {
        let mut lists = vec![];
        for node in &sandbox.nodes {
            lists.push(node.api().nodes().await["nodes"].as_array().map(Vec::len));
        }
        if lists == [Some(2), Some(2)] {
            Ok(())
        } else {
            Err(lists)
        }
    })
    .await;
    let nodes = sandbox.api(0).get("/api/v1/rooms").await.ok()["nodes"].take();
    assert_eq!(nodes, json!({"reached": 2, "missing": []}));
}

// === drain ===

#[tokio::test]
async fn sigterm_says_when_to_come_back_and_exits_zero() {
    let mut node = Node::alone("[drain]\ndelay = \"0s\"\nwindow = \"1s\"").await;
    let mut clients = vec![];
    for _ in 0..5 {
        clients.push(node.client("/x").await);
    }

    node.terminate();

    for client in &mut clients {
        let closing = client.expect("unisono:closing").await;
        assert_eq!(closing.data["code"], 1012);
        assert!(closing.data["reconnect_in_ms"].is_u64(), "{}", closing.text);
        assert_eq!(client.expect_close().await.0, 1012);
    }
    assert_eq!(node.process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_draining_node_is_not_ready_while_it_still_serves() {
    let mut sandbox = Sandbox::config()
        .nodes(2)
        .toml("[drain]\ndelay = \"3s\"\nwindow = \"1s\"")
        .start()
        .await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(1, "/x").await;

    sandbox.nodes[0].terminate();
    let not_ready = eventually("the node is no longer ready", async || {
        let ready = sandbox.api(0).get("/health/ready").await;
        if ready.status == 503 {
            Ok(ready)
        } else {
            Err(ready)
        }
    })
    .await;
    assert!(not_ready.body["status"].is_string(), "{}", not_ready.body);
    assert_eq!(sandbox.api(0).get("/health/live").await.status, 200);

    let mut late = sandbox.nodes[0].wire().await;
    late.send(upgrade_request("/x")).await;
    let refused = late.response().await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");

    b.publish("/x", "still here", Value::Null).await;
    a.expect("still here").await;
    a.expect("unisono:closing").await;
    assert_eq!(a.expect_close().await.0, 1012);

    assert_eq!(sandbox.nodes[0].process().exited().await.code(), Some(0));
    sandbox.nodes.remove(0);
    sandbox.all_know_each_other().await;
    b.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn nodes_move_to_the_nats_server_that_is_left() {
    let [mut first, second] = Nats::pair().await;
    let config = |i| Node::config(&format!("node-{i}")).nats([first.url(), second.url()]);
    let (one, two, three) = (config(0), config(1), config(2));
    let nodes = vec![one.start().await, two.start().await, three.start().await];
    first.kill();
    let sandbox = Sandbox {
        nats: vec![first, second],
        nodes,
    };
    let _members = [sandbox.client(0, "/x").await, sandbox.client(1, "/x").await];
    let mut far = sandbox.client(2, "/x").await;

    sandbox.all_know_each_other().await;
    reaches(0, &sandbox, "/x", "again", 3).await;
    while far.next().await.event != "again" {}
}

#[tokio::test]
async fn a_node_drains_without_nats_too() {
    let mut sandbox = Sandbox::config()
        .nodes(1)
        .toml("[drain]\ndelay = \"0s\"\nwindow = \"0s\"")
        .start()
        .await;
    sandbox.nats[0].kill();
    // More rooms than NATS's client keeps in mind while it is away.
    let mut clients = Vec::new();
    for n in 0..300 {
        clients.push(sandbox.client(0, &format!("/room/{n}")).await);
    }

    sandbox.nodes[0].terminate();

    for client in &mut clients {
        client.expect("unisono:closing").await;
    }
    assert_eq!(sandbox.nodes[0].process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_second_signal_ends_the_drain() {
    let mut node = Node::alone("[drain]\ndelay = \"60s\"\nwindow = \"60s\"").await;
    let mut a = node.client("/x").await;
    node.terminate();
    eventually("the drain has begun", async || !ready(&node).await).await;
    a.ack("unisono:ping", json!("still here")).await;

    node.terminate();

    node.process().exited().await;
    a.expect_cut().await;
}

#[tokio::test]
async fn an_interrupt_ends_the_drain_too() {
    let mut node = Node::alone("[drain]\ndelay = \"60s\"\nwindow = \"60s\"").await;
    let mut a = node.client("/x").await;
    node.terminate();
    eventually("the drain has begun", async || !ready(&node).await).await;
    a.ack("unisono:ping", json!("still here")).await;

    node.interrupt();

    node.process().exited().await;
    a.expect_cut().await;
}

#[tokio::test]
async fn an_interrupt_closes_everybody_at_once() {
    let mut node = Node::alone("[drain]\ndelay = \"60s\"\nwindow = \"60s\"").await;
    let mut a = node.client("/x").await;

    node.interrupt();

    a.expect("unisono:closing").await;
    assert_eq!(a.expect_close().await.0, 1012);
    assert_eq!(node.process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_rolling_restart_costs_each_client_one_reconnect() {
    let mut sandbox = Sandbox::config()
        .nodes(3)
        .toml("[drain]\ndelay = \"0s\"\nwindow = \"500ms\"")
        .start()
        .await;
    let mut member = sandbox.client(2, "/x").await;

    for _ in 0..2 {
        let mut node = sandbox.nodes.remove(0);
        let mut moved = node.client("/x").await;
        node.terminate();
        moved.expect("unisono:closing").await;
        assert_eq!(moved.expect_close().await.0, 1012);
        assert_eq!(node.process().exited().await.code(), Some(0));
        sandbox.nodes.push(node.restart().await);
        sandbox.all_know_each_other().await;

        let mut back = sandbox.client(2, "/x").await;
        back.send("back", Value::Null).await;
        member.expect("back").await;
    }
}

// === story helpers ===

/// Waits until everybody hears everybody, silences those who talk, and waits until everybody has heard the last word of
/// everybody, and knows of what it has missed.
async fn even(witnesses: &[Witness], room: &str) {
    let talkers: Vec<_> = witnesses
        .iter()
        .filter(|one| one.said().is_some())
        .collect();
    let said: Vec<_> = talkers.iter().map(|talker| talker.said()).collect();
    each(witnesses, "everybody hears everybody", |one| {
        let heard = |(talker, said): (&&Witness, &Option<u64>)| {
            one.id == talker.id || one.heard_of(talker, room) > *said
        };
        talkers.iter().zip(&said).all(heard)
    })
    .await;
    for talker in &talkers {
        talker.hush();
    }
    each(
        witnesses,
        "everybody has heard the last of everybody",
        |one| talkers.iter().all(|talker| one.is_even_with(talker, room)),
    )
    .await;
}

/// Waits until it is true of each of them.
async fn each(witnesses: &[Witness], what: &str, is_true: impl Fn(&Witness) -> bool) {
    within(NOTICE, what, async || {
        let not = witnesses
            .iter()
            .enumerate()
            .filter(|(_, one)| !is_true(one));
        let not: Vec<_> = not
            .map(|(nth, one)| (nth, one.heard(), one.end()))
            .collect();
        if not.is_empty() { Ok(()) } else { Err(not) }
    })
    .await;
}

/// What node `i` publishes reaches so many sockets of the cluster, sooner or later.
async fn reaches(i: usize, sandbox: &Sandbox, room: &str, event: &str, sockets: u64) {
    eventually("a publication reaches everybody", async || {
        let answer = sandbox
            .api(i)
            .publish_confirmed(room, event, Value::Null)
            .await;
        if answer["sockets"] == sockets {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await;
}

/// Numbers its publications from 0, on node 0, to the room `/x`.
#[derive(Default)]
struct Publisher {
    published: u64,
}

impl Publisher {
    /// Publishes so many more and returns the last status.
    async fn publish(&mut self, sandbox: &Sandbox, count: u64) -> String {
        let mut status = String::new();
        for _ in 0..count {
            let answer = sandbox
                .api(0)
                .publish("/x", "n", json!(self.published))
                .await;
            self.published += 1;
            status = answer["status"].as_str().expect("a status").to_owned();
        }
        status
    }
}

/// Reads on until the server tells of a gap; keeps the numbers that come before it.
async fn until_gap(client: &mut Client, seen: &mut Vec<u64>) {
    loop {
        let event = client.next().await;
        if event.event == "unisono:gap" {
            assert_eq!(event.data["reason"], "bus_outage", "{}", event.text);
            return;
        }
        seen.extend(number(&event));
    }
}

/// Reads on until this number has come; keeps all of them.
async fn until_number(client: &mut Client, seen: &mut Vec<u64>, last: u64) {
    while seen.last() != Some(&last) {
        let event = client.next().await;
        seen.extend(number(&event));
    }
}

fn number(event: &Event) -> Option<u64> {
    (event.event == "n").then(|| event.data.as_u64().expect("a number"))
}

async fn bus_is_back(sandbox: &Sandbox, i: usize) {
    eventually("the node says that the bus is back", async || {
        let health = sandbox.api(i).get("/health/live").await;
        if health.body["bus"] == "connected" {
            Ok(())
        } else {
            Err(health)
        }
    })
    .await;
}

async fn ready(node: &Node) -> bool {
    let Answer { status, .. } = node.api().get("/health/ready").await;
    status == 200
}
