//! A node that stands still for longer than others wait for it, with the world going on around it.

use std::time::Duration;

use serde_json::{Value, json};
use unisono_tests::{Nats, NatsConfig, Sandbox, Witness, eventually, within};

use super::{NOTICE, even};

const FAST: &str = "heartbeat_interval = \"200ms\"\nnode_timeout = \"1s\"\nbus_timeout = \"1s\"\n\
    nats_connect_timeout = \"1s\"\nnats_reconnect_delay_max = \"500ms\"\n";

#[tokio::test]
async fn a_node_that_froze_is_back_and_nothing_came_twice() {
    let sandbox = Sandbox::config().cluster(FAST).start().await;
    let pace = Duration::from_millis(5);
    let talkers = [
        Witness::talking(sandbox.client(0, "/x").await, pace),
        Witness::talking(sandbox.client(1, "/x").await, pace),
        Witness::talking(sandbox.client(2, "/x").await, pace),
        Witness::listening(sandbox.client(2, "/x").await),
    ];
    let mut mover = sandbox.client(0, "/x").await;

    for round in 0..3 {
        sandbox.nodes[2].freeze();
        let room = format!("while-{round}");
        mover.join(&room).await;
        gone(&sandbox, 2).await;
        let heard = talkers[0].heard().0;
        eventually("the others go on", async || {
            talkers[0].heard().0 > heard + 100
        })
        .await;
        let asked = sandbox
            .api(1)
            .emit(&talkers[3].id, "lost", Value::Null)
            .await;
        assert!(matches!(asked.as_str(), "timeout" | "node_gone"), "{asked}");

        sandbox.nodes[2].thaw();
        sandbox.all_know_each_other().await;
        eventually("what changed meanwhile is known", async || {
            let answer = sandbox
                .api(2)
                .publish_confirmed(&room, "hello", Value::Null)
                .await;
            if answer["sockets"] == 1 {
                Ok(())
            } else {
                Err(answer)
            }
        })
        .await;
    }

    even(&talkers, "/x").await;
    for i in 0..3 {
        let members = sandbox.api(i).members("/x").await;
        let nodes = json!({"reached": 3, "missing": []});
        assert_eq!((&members["count"], &members["nodes"]), (&json!(5), &nodes));
    }
    for talker in &talkers {
        assert_eq!(talker.end(), None);
    }
}

/// The bus hands over faster than the node takes: it forgets, and says so.
#[tokio::test]
async fn a_node_that_cannot_follow_says_so() {
    flooded(Nats::config(), "subscription_messages = 16\n").await;
}

/// NATS does not wait for one that does not read: it hangs up.
#[tokio::test]
async fn a_node_that_does_not_read_is_hung_up_on_and_says_so() {
    let little = Nats::config()
        .max_payload(256 * 1024)
        .lines("max_pending: 262144\nwrite_deadline: \"1s\"");
    flooded(little, "").await;
}

async fn flooded(nats: NatsConfig, cluster: &str) {
    let config = Sandbox::config().nodes(2).nats(nats);
    let config = config.cluster(&format!("{FAST}{cluster}"));
    let mut sandbox = config.start().await;
    // A busy machine can take as many. Too much is what gathers while the node stands still.
    let pace = Duration::from_millis(5);
    let mut talkers = vec![];
    for _ in 0..4 {
        talkers.push(Witness::talking(sandbox.client(0, "/x").await, pace));
    }
    talkers.push(Witness::listening(sandbox.client(1, "/x").await));
    eventually("they are heard", async || talkers[4].heard().0 > 1_000).await;
    let before = sandbox.nodes[1].process().memory_kib();

    for _ in 0..2 {
        sandbox.nodes[1].freeze();
        gone(&sandbox, 1).await;
        let filler = "x".repeat(8 * 1024);
        for n in 0..1_000 {
            // Sent, or not: NATS makes those wait who send to one that does not read.
            sandbox
                .api(0)
                .publish("/x", "filler", json!([n, filler]))
                .await;
        }
        sandbox.nodes[1].thaw();
        sandbox.all_know_each_other().await;
        let heard = talkers[4].heard().0;
        within(NOTICE, "it follows again", async || {
            talkers[4].heard().0 > heard + 1_000
        })
        .await;
    }

    even(&talkers, "/x").await;
    let metrics = sandbox.nodes[1].metrics().await;
    let dropped = metrics.get("unisono_bus_overflows_total");
    let connects = metrics.get("unisono_bus_connects_total");
    assert!(dropped > 0.0 || connects > 1.0, "{dropped} {connects}");
    assert!(talkers[4].heard().1 > 0, "told of the gap");
    assert_eq!(talkers[4].end(), None, "it kept its socket");
    let after = sandbox.nodes[1].process().memory_kib();
    assert!(after < before + 48 * 1024, "{before} KiB, then {after} KiB");
}

async fn gone(sandbox: &Sandbox, node: usize) {
    let other = usize::from(node == 0);
    let count = sandbox.nodes.len() - 1;
    eventually("it is off the list", async || {
        let nodes = sandbox.api(other).nodes().await;
        if nodes["nodes"].as_array().map(Vec::len) == Some(count) {
            Ok(())
        } else {
            Err(nodes)
        }
    })
    .await;
}
