//! Three nodes and a real NATS: what is sent on one node arrives on every other, once and in order.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use unisono_tests::{Client, Sandbox, eventually};

// === emit ===

#[tokio::test]
async fn every_node_emits_to_sockets_on_every_node() {
    let sandbox = Sandbox::start(3).await;
    for to in 0..3 {
        let mut client = sandbox.client(to, "/x").await;
        for from in 0..3 {
            let api = sandbox.api(from);
            assert_eq!(
                api.emit(&client.id, "hello", json!({"from": from})).await,
                "delivered"
            );
            assert_eq!(
                api.emit(&client.id, "fence", Value::Null).await,
                "delivered"
            );

            let hello = client.expect("hello").await;
            assert_eq!((hello.data, hello.room), (json!({"from": from}), None));
            client.expect("fence").await;
        }
    }
}

#[tokio::test]
async fn clients_emit_across_nodes() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(1, "/y").await;
    let mut c = sandbox.client(2, "/z").await;

    let both = json!({"to": [b.id, c.id, a.id], "event": "hello", "data": 1});
    let results = a.ack("unisono:emit", both).await["results"].take();

    let expected = json!({
        (a.id.as_str()): "delivered", (b.id.as_str()): "delivered", (c.id.as_str()): "delivered",
    });
    assert_eq!(results, expected);
    for client in [&mut a, &mut b, &mut c] {
        client.expect("hello").await;
    }
}

#[tokio::test]
async fn emits_to_one_socket_keep_their_order() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(1, "/y").await;

    for n in 0..200 {
        let emit = json!({"to": b.id, "event": "n", "data": n});
        a.send("unisono:emit", emit).await;
    }
    for n in 0..200 {
        assert_eq!(b.expect("n").await.data, n);
    }
    assert_eq!(a.emit(&b.id, "fence", Value::Null).await, "delivered");
    b.expect("fence").await;
}

#[tokio::test]
async fn a_socket_that_closed_is_not_found_from_anywhere() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/x").await;
    a.close(1000, "").await;
    a.expect_close().await;

    for api in [sandbox.api(0), sandbox.api(1)] {
        eventually("the socket is gone", async || {
            let status = api.emit(&a.id, "late", Value::Null).await;
            if status == "not_found" {
                Ok(())
            } else {
                Err(status)
            }
        })
        .await;
        assert_eq!(
            api.get(&format!("/api/v1/sockets/{}", a.id))
                .await
                .refusal()
                .0,
            404
        );
    }
}

#[tokio::test]
async fn an_id_of_a_node_that_never_was_is_answered_at_once() {
    let sandbox = Sandbox::start(2).await;
    let a = sandbox.client(0, "/x").await;
    let elsewhere = format!(
        "{}{}",
        if a.id.starts_with('0') { '1' } else { '0' },
        &a.id[1..]
    );

    for api in [sandbox.api(0), sandbox.api(1)] {
        // Whoever waited for an answer would say `timeout`.
        assert_eq!(
            api.emit(&elsewhere, "hello", Value::Null).await,
            "node_gone"
        );
    }
}

#[tokio::test]
async fn the_sockets_of_a_killed_node_are_gone_at_once() {
    let mut sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/x").await;
    let mut lost = sandbox.client(2, "/x").await;

    sandbox.nodes[2].kill();
    lost.expect_cut().await;
    eventually("NATS has lost it, too", async || {
        sandbox.nats[0].node_connections().await.len() == 2
    })
    .await;

    assert_eq!(
        sandbox.api(0).emit(&lost.id, "hello", Value::Null).await,
        "node_gone"
    );
    assert_eq!(a.emit(&lost.id, "hello", Value::Null).await, "node_gone");
    assert_eq!(sandbox.api(1).join(&lost.id, "news").await, "node_gone");
    assert_eq!(
        sandbox.api(1).disconnect(&lost.id, 4000, "").await,
        "node_gone"
    );
}

#[tokio::test]
async fn a_restarted_node_is_another_node() {
    let mut sandbox = Sandbox::start(2).await;
    let before = sandbox.client(1, "/x").await;

    let node = sandbox.nodes.pop().expect("two nodes");
    sandbox.nodes.push(node.restart().await);
    sandbox.all_know_each_other().await;

    let mut after = sandbox.client(1, "/x").await;
    assert_ne!(before.node, after.node);
    for api in [sandbox.api(0), sandbox.api(1)] {
        assert_eq!(
            api.emit(&before.id, "hello", Value::Null).await,
            "node_gone"
        );
        assert_eq!(api.emit(&after.id, "hello", Value::Null).await, "delivered");
        after.expect("hello").await;
    }
}

// === publish and broadcast ===

#[tokio::test]
async fn a_publication_reaches_every_member_on_every_node_once() {
    let sandbox = Sandbox::start(3).await;
    let mut members = two_on_each(&sandbox, "/chat-rooms/1").await;
    let mut others = two_on_each(&sandbox, "/chat-rooms/2").await;

    for i in 0..3 {
        let answer = sandbox
            .api(i)
            .publish_confirmed("/chat-rooms/1", "hello", json!(i))
            .await;
        let nodes = json!({"reached": 3, "missing": []});
        assert_eq!(
            answer,
            json!({"status": "confirmed", "sockets": 6, "nodes": nodes})
        );
    }
    assert_eq!(
        sandbox.api(0).broadcast("fence", Value::Null).await["status"],
        "sent"
    );

    for member in &mut members {
        let mut from: Vec<Value> = vec![];
        for _ in 0..3 {
            let hello = member.expect("hello").await;
            assert_eq!(hello.room.as_deref(), Some("/chat-rooms/1"));
            from.push(hello.data);
        }
        assert_eq!(from, [json!(0), json!(1), json!(2)]);
        let fence = member.expect("fence").await;
        assert_eq!(fence.room, None);
    }
    for other in &mut others {
        other.expect("fence").await;
    }
}

#[tokio::test]
async fn a_confirmed_broadcast_counts_every_socket() {
    let sandbox = Sandbox::start(3).await;
    let mut clients = two_on_each(&sandbox, "/x").await;
    let body = json!({"event": "all", "except": [clients[5].id], "confirm": true});

    let answer = sandbox.api(1).post("broadcast", body).await.ok();

    assert_eq!(
        (&answer["sockets"], &answer["nodes"]["reached"]),
        (&json!(5), &json!(3))
    );
    for client in &mut clients[..5] {
        client.expect("all").await;
    }
    sandbox
        .api(0)
        .emit(&clients[5].id, "fence", Value::Null)
        .await;
    clients[5].expect("fence").await;
}

#[tokio::test]
async fn each_sender_s_messages_arrive_once_and_in_order() {
    const MESSAGES: u64 = 500;
    let sandbox = Sandbox::start(3).await;
    let mut clients = two_on_each(&sandbox, "/chat-rooms/1").await;

    // The first three are one on each node; they send at the same time, in turns.
    for n in 0..MESSAGES {
        for sender in &mut clients[..3] {
            sender.send("n", json!(n)).await;
        }
    }
    for sender in &mut clients[..3] {
        sender.ack("unisono:ping", json!("all is sent")).await;
    }
    for i in 0..3 {
        sandbox
            .api(i)
            .publish_confirmed("/chat-rooms/1", "fence", json!(i))
            .await;
    }

    let ids: Vec<String> = clients[..3]
        .iter()
        .map(|client| client.id.clone())
        .collect();
    for client in &mut clients {
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        let mut fences = 0;
        while fences < 3 {
            let event = client.next().await;
            if event.event == "fence" {
                fences += 1;
                continue;
            }
            let from = event.from.expect("a client sent it");
            let expected = next.entry(from).or_default();
            assert_eq!(event.data, *expected, "the next of one sender");
            *expected += 1;
        }
        let expected: BTreeMap<String, u64> = ids
            .iter()
            .filter(|id| **id != client.id)
            .map(|id| (id.clone(), MESSAGES))
            .collect();
        assert_eq!(next, expected);
    }
}

#[tokio::test]
async fn publications_of_one_room_come_in_the_same_order_to_all_sockets_of_a_node() {
    let sandbox = Sandbox::start(3).await;
    let mut senders = two_on_each(&sandbox, "/x").await;
    let mut left = sandbox.client(0, "/x").await;
    let mut right = sandbox.client(0, "/x").await;

    for n in 0..50 {
        for sender in &mut senders {
            sender.send("n", json!(n)).await;
        }
    }

    for _ in 0..50 * 6 {
        let (left, right) = (left.expect("n").await, right.expect("n").await);
        assert_eq!((left.from, left.data), (right.from, right.data));
    }
}

#[tokio::test]
async fn a_socket_in_several_rooms_gets_one_copy_from_another_node() {
    let sandbox = Sandbox::start(3).await;
    let mut clients = two_on_each(&sandbox, "/x").await;
    for client in &mut clients {
        client.join("one").await;
        client.join("two").await;
    }

    let body = json!({"rooms": ["one", "two", "/x"], "event": "hello", "confirm": true});
    let answer = sandbox.api(0).post("publish", body).await.ok();
    assert_eq!(answer["sockets"], 6, "{answer}");
    sandbox.api(0).publish("one", "fence", Value::Null).await;

    for client in &mut clients {
        client.expect("hello").await;
        client.expect("fence").await;
    }
}

#[tokio::test]
async fn those_excepted_are_spared_on_every_node() {
    let sandbox = Sandbox::start(3).await;
    let mut clients = two_on_each(&sandbox, "/x").await;
    let except: Vec<&str> = clients[..3]
        .iter()
        .map(|client| client.id.as_str())
        .collect();

    let body = json!({"room": "/x", "event": "hello", "except": except, "confirm": true});
    assert_eq!(
        sandbox.api(0).post("publish", body).await.ok()["sockets"],
        3
    );
    sandbox.api(0).publish("/x", "fence", Value::Null).await;

    for client in &mut clients[..3] {
        client.expect("fence").await;
    }
    for client in &mut clients[3..] {
        client.expect("hello").await;
        client.expect("fence").await;
    }
}

#[tokio::test]
async fn bare_frames_cross_nodes() {
    use tokio_tungstenite::tungstenite::Message;
    let rooms = "[[rooms]]\npattern = \"/raw\"\nformat = \"raw\"\nclient_events = \"relay\"";
    let sandbox = Sandbox::config().nodes(2).toml(rooms).start().await;
    let mut a = sandbox.nodes[0].ungreeted("/raw").await;
    let mut b = sandbox.nodes[1].ungreeted("/raw").await;
    for api in [sandbox.api(0), sandbox.api(1)] {
        eventually("both are in the room", async || {
            api.members("/raw").await["count"] == 2
        })
        .await;
    }

    a.send_binary([0xff, 0x00]).await;
    b.expect_frame(Message::binary(vec![0xff, 0x00])).await;
    a.send_text("text").await;
    b.expect_frame(Message::text("text")).await;
    sandbox
        .api(0)
        .post("broadcast", json!({"text": "for all"}))
        .await
        .ok();
    b.expect_frame(Message::text("for all")).await;
    a.expect_frame(Message::text("for all")).await;
}

// === join, leave and disconnect from another node ===

#[tokio::test]
async fn rooms_are_joined_and_left_from_another_node() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/x").await;

    assert_eq!(sandbox.api(1).join(&a.id, "vip").await, "delivered");
    let answer = sandbox
        .api(2)
        .publish_confirmed("vip", "hello", json!(1))
        .await;
    assert_eq!(answer["sockets"], 1, "{answer}");
    assert_eq!(a.expect("hello").await.room.as_deref(), Some("vip"));

    assert_eq!(sandbox.api(2).leave(&a.id, "vip").await, "delivered");
    assert_eq!(
        sandbox
            .api(1)
            .publish_confirmed("vip", "hello", json!(2))
            .await["sockets"],
        0
    );
    sandbox.api(1).emit(&a.id, "fence", Value::Null).await;
    a.expect("fence").await;
}

#[tokio::test]
async fn a_socket_is_disconnected_from_another_node() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/x").await;

    assert_eq!(
        sandbox.api(1).disconnect(&a.id, 4001, "kicked").await,
        "delivered"
    );

    assert_eq!(a.expect_close().await, (4001, "kicked".to_owned()));
}

#[tokio::test]
async fn a_room_is_disconnected_on_every_node() {
    let sandbox = Sandbox::start(3).await;
    let mut members = two_on_each(&sandbox, "/x").await;
    let mut other = sandbox.client(1, "/y").await;

    let body = json!({"room": "/x", "code": 4002, "reason": "closing time"});
    let answer = sandbox.api(0).post("disconnect", body).await.ok();

    assert_eq!(answer["disconnected"], 6, "{answer}");
    assert_eq!(answer["nodes"], json!({"reached": 3, "missing": []}));
    for member in &mut members {
        assert_eq!(
            member.expect_close().await,
            (4002, "closing time".to_owned())
        );
    }
    other.ack("unisono:ping", Value::Null).await;
}

#[tokio::test]
async fn a_disconnect_can_be_announced() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/x").await;

    let asked = Instant::now();
    let body = json!({"to": a.id, "code": 4003, "reason": "in a moment", "after_ms": 2_000});
    let answer = sandbox.api(1).post("disconnect", body).await.ok();
    assert_eq!(answer["results"][&a.id], "delivered");
    sandbox.api(1).emit(&a.id, "last words", Value::Null).await;

    a.expect("last words").await;
    assert_eq!(a.expect_close().await, (4003, "in a moment".to_owned()));
    assert!(
        asked.elapsed() >= Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
}

// === questions ===

#[tokio::test]
async fn rooms_are_counted_over_all_nodes() {
    let sandbox = Sandbox::start(3).await;
    let _lobby = two_on_each(&sandbox, "/lobby").await;
    let mut one = sandbox.client(2, "/game/1").await;
    one.join("/game/2").await;
    let reached = json!({"reached": 3, "missing": []});

    for i in 0..3 {
        let api = sandbox.api(i);
        let lobby = api
            .query("/api/v1/rooms", &[("prefix", "/lobby")])
            .await
            .ok();
        assert_eq!(lobby["rooms"], json!([{"room": "/lobby", "sockets": 6}]));
        assert_eq!(lobby["nodes"], reached);

        let page = api.query("/api/v1/rooms", &[("limit", "2")]).await.ok();
        let first = json!([{"room": "/game/1", "sockets": 1}, {"room": "/game/2", "sockets": 1}]);
        assert_eq!(page["rooms"], first);
        let cursor = page["cursor"].as_str().expect("there is more").to_owned();
        let page = api
            .query("/api/v1/rooms", &[("limit", "2"), ("cursor", &cursor)])
            .await
            .ok();
        assert_eq!(page["rooms"], json!([{"room": "/lobby", "sockets": 6}]));
        assert_eq!(page["cursor"], Value::Null);
    }
}

#[tokio::test]
async fn members_are_listed_over_all_nodes_page_by_page() {
    let sandbox = Sandbox::start(3).await;
    let members = two_on_each(&sandbox, "/lobby").await;
    let mut expected: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
    expected.sort_unstable();

    let mut listed = vec![];
    let mut cursor = None;
    loop {
        let mut pairs = vec![("room", "/lobby".to_owned()), ("limit", "4".to_owned())];
        pairs.extend(cursor.map(|cursor| ("cursor", cursor)));
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let page = sandbox
            .api(1)
            .query("/api/v1/rooms/sockets", &pairs)
            .await
            .ok();
        assert_eq!(page["count"], 6, "{page}");
        assert_eq!(page["nodes"], json!({"reached": 3, "missing": []}));
        let sockets = page["sockets"].as_array().expect("a page of sockets");
        assert!(sockets.len() <= 4, "{page}");
        listed.extend(
            sockets
                .iter()
                .filter_map(|one| one["id"].as_str().map(str::to_owned)),
        );
        cursor = page["cursor"].as_str().map(str::to_owned);
        if cursor.is_none() {
            break;
        }
    }
    listed.sort_unstable();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn a_socket_is_looked_at_from_another_node() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/x").await;
    a.join("news").await;

    let seen = sandbox
        .api(1)
        .get(&format!("/api/v1/sockets/{}", a.id))
        .await
        .ok();

    assert_eq!((&seen["id"], &seen["node"]), (&json!(a.id), &json!(a.node)));
    assert_eq!(seen["rooms"].as_array().map(Vec::len), Some(2), "{seen}");
}

#[tokio::test]
async fn every_node_tells_of_all_nodes() {
    let sandbox = Sandbox::start(3).await;
    let _clients = two_on_each(&sandbox, "/x").await;

    for node in &sandbox.nodes {
        let nodes = eventually("the counts have come round", async || {
            let nodes = node.api().nodes().await;
            let counts = nodes["nodes"].as_array().expect("a list of nodes").iter();
            let told = counts
                .clone()
                .all(|one| one["sockets"] == 2 && one["rooms"] == 1);
            if told { Ok(nodes) } else { Err(nodes) }
        })
        .await;
        assert_eq!(nodes["self"], node.id().await);
        let mut names: Vec<&str> = nodes["nodes"]
            .as_array()
            .expect("a list of nodes")
            .iter()
            .filter_map(|one| one["name"].as_str())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["node-0", "node-1", "node-2"]);
    }
}

// === joins, and a bus of two servers ===

#[tokio::test]
async fn an_acknowledged_join_misses_nothing_that_another_node_publishes() {
    acknowledged_joins_miss_nothing(Sandbox::config().nodes(2).start().await, 50).await;
}

#[tokio::test]
async fn an_acknowledged_join_misses_nothing_over_two_nats_servers() {
    acknowledged_joins_miss_nothing(Sandbox::config().nodes(2).pair_of_nats().start().await, 100)
        .await;
}

#[tokio::test]
async fn a_greeted_client_misses_nothing_over_two_nats_servers() {
    let sandbox = Sandbox::config().nodes(2).pair_of_nats().start().await;
    for n in 0..30 {
        let room = format!("/room-{n}");
        let mut member = sandbox.client(0, &room).await;

        sandbox.api(1).publish(&room, "hello", json!(n)).await;

        assert_eq!(member.expect("hello").await.data, n);
    }
}

async fn acknowledged_joins_miss_nothing(sandbox: Sandbox, trials: usize) {
    let mut member = sandbox.client(0, "/x").await;
    for n in 0..trials {
        let room = format!("room-{n}");
        member.join(&room).await;

        sandbox.api(1).publish(&room, "hello", json!(n)).await;

        let hello = member.expect("hello").await;
        assert_eq!((hello.data, hello.room), (json!(n), Some(room.clone())));
        member.leave(&room).await;
    }
}

#[tokio::test]
async fn rooms_leave_no_subscriptions_behind() {
    let sandbox = Sandbox::start(2).await;
    let before = sandbox.nats[0].subscriptions().await;
    let mut a = sandbox.client(0, "/x").await;
    let mut b = sandbox.client(1, "/x").await;
    for n in 0..20 {
        a.join(&format!("room-{n}")).await;
        b.join(&format!("room-{n}")).await;
    }
    assert!(sandbox.nats[0].subscriptions().await >= before + 20);

    drop((a, b));

    eventually("the subscriptions are let go", async || {
        let now = sandbox.nats[0].subscriptions().await;
        if now <= before {
            Ok(())
        } else {
            Err((before, now))
        }
    })
    .await;
}

#[tokio::test]
async fn sockets_cost_no_subscriptions() {
    let sandbox = Sandbox::start(1).await;
    let mut clients = vec![sandbox.client(0, "/x").await];
    let before = sandbox.nats[0].subscriptions().await;

    for _ in 0..20 {
        clients.push(sandbox.client(0, "/x").await);
    }

    assert_eq!(sandbox.nats[0].subscriptions().await, before);
}

/// Two clients on each of three nodes: the first three on nodes 0, 1, 2, then again.
async fn two_on_each(sandbox: &Sandbox, path: &str) -> Vec<Client> {
    let mut clients = vec![];
    for i in [0, 1, 2, 0, 1, 2] {
        clients.push(sandbox.client(i, path).await);
    }
    clients
}
