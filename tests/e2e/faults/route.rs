//! Two NATS servers, and what can be wrong with the route between them. Node 0 is on one, node 1 on the other.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use unisono_tests::{Nats, Proxy, Sandbox, Way, Witness, eventually};

use super::even;

const SLOW: Duration = Duration::from_millis(200);

/// What is asked over a slow route is answered in time, also on a machine that is busy.
const PATIENT: &str = "call_timeout = \"5s\"\n";

async fn apart(cluster: &str) -> (Sandbox, Proxy) {
    let (nats, route) = Nats::pair_apart(Nats::config()).await;
    let config = Sandbox::config().nodes(2).cluster(cluster);
    (config.start_on(Vec::from(nats)).await, route)
}

#[tokio::test]
async fn an_acknowledged_join_is_heard_over_a_slow_route() {
    let (sandbox, route) = apart(PATIENT).await;
    route.delay(SLOW);
    // Several at a time, each one join after the other.
    let trials = (0..5).map(async |client| {
        let mut member = sandbox.client(0, "/x").await;
        for n in 0..12 {
            let room = format!("room-{client}-{n}");
            member.join(&room).await;
            sandbox.api(1).publish(&room, "hello", json!(n)).await;
            let hello = member.expect("hello").await;
            assert_eq!((hello.data, hello.room), (json!(n), Some(room)));
        }
    });
    join_all(trials).await;
}

#[tokio::test]
async fn emits_and_questions_are_answered_over_a_slow_route() {
    let (sandbox, route) = apart(PATIENT).await;
    let mut near = sandbox.client(0, "/x").await;
    let mut far = sandbox.client(1, "/x").await;
    route.delay(SLOW);

    for n in 0..5 {
        assert_eq!(near.emit(&far.id, "hello", json!(n)).await, "delivered");
        assert_eq!(far.expect("hello").await.data, n);
    }
    let answer = sandbox
        .api(1)
        .publish_confirmed("/x", "all", Value::Null)
        .await;
    assert_eq!(
        (&answer["sockets"], &answer["nodes"]),
        (&json!(2), &json!({"reached": 2, "missing": []}))
    );
    let rooms = sandbox.api(0).get("/api/v1/rooms").await.ok();
    assert_eq!(rooms["rooms"], json!([{"room": "/x", "sockets": 2}]));
    assert_eq!(
        sandbox
            .api(0)
            .emit(&gone(&far.id), "hello", Value::Null)
            .await,
        "node_gone"
    );
}

/// Neither node loses its own NATS server, so neither knows by itself that anything was lost.
#[tokio::test]
async fn what_is_lost_with_a_route_is_told() {
    for long in [false, true] {
        let (sandbox, route) = apart("node_timeout = \"2s\"\n").await;
        let talkers = [
            Witness::talking(sandbox.client(0, "/x").await, Duration::from_millis(10)),
            Witness::talking(sandbox.client(1, "/x").await, Duration::from_millis(10)),
        ];
        eventually("they hear each other", async || {
            talkers.iter().all(|talker| talker.heard().0 > 20)
        })
        .await;

        // A cut, or one that the nodes take for the other's death.
        match long {
            false => route.cut(),
            true => route.sever(),
        }
        if long {
            for i in 0..2 {
                eventually("each is alone", async || {
                    sandbox.api(i).nodes().await["nodes"]
                        .as_array()
                        .map(Vec::len)
                        == Some(1)
                })
                .await;
            }
            route.heal();
        }
        let said = talkers[0].said();
        Nats::have_a_route(&sandbox.nats).await;
        sandbox.all_know_each_other().await;

        eventually("both are told", async || {
            let gaps: Vec<_> = talkers.iter().map(|talker| talker.heard().1).collect();
            if gaps.iter().all(|gaps| *gaps > 0) {
                Ok(())
            } else {
                Err(gaps)
            }
        })
        .await;
        eventually("they go on", async || talkers[0].said() > said).await;
        even(&talkers, "/x").await;
        for i in 0..2 {
            let health = sandbox.api(i).get("/health/live").await.ok();
            assert_eq!(health["bus"], "connected", "{health}");
            let connects = sandbox.nodes[i]
                .metrics()
                .await
                .get("unisono_bus_connects_total");
            assert_eq!(connects as u64, 1, "nobody lost its own server");
        }
    }
}

#[tokio::test]
async fn a_route_that_swallows_everything_costs_a_gap() {
    let (sandbox, route) = apart("node_timeout = \"2s\"\n").await;
    let talkers = [
        Witness::talking(sandbox.client(0, "/x").await, Duration::from_millis(10)),
        Witness::talking(sandbox.client(1, "/x").await, Duration::from_millis(10)),
    ];
    let dead = sandbox.client(1, "/x").await;
    eventually("they hear each other", async || {
        talkers.iter().all(|talker| talker.heard().0 > 20)
    })
    .await;

    route.blackhole(Way::Both);
    let status = sandbox.api(0).emit(&dead.id, "lost", Value::Null).await;
    assert!(
        matches!(status.as_str(), "timeout" | "node_gone"),
        "{status}"
    );
    eventually("the other is off the list", async || {
        sandbox.api(0).nodes().await["nodes"]
            .as_array()
            .map(Vec::len)
            == Some(1)
    })
    .await;
    route.heal();
    Nats::have_a_route(&sandbox.nats).await;
    sandbox.all_know_each_other().await;

    even(&talkers, "/x").await;
    for talker in &talkers {
        assert!(talker.heard().1 > 0, "told of the gap");
    }
}

/// The same socket's number on a node that never was.
fn gone(id: &str) -> String {
    let first = if id.starts_with('0') { '1' } else { '0' };
    format!("{first}{}", &id[1..])
}
