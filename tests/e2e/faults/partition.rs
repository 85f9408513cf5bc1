//! One node is cut off from NATS, or a client from its node, by a network that takes packets and loses them. A proxy does
//! it, and not rules of the kernel's packet filter: those want root, and a machine of their own.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt;
use serde_json::{Value, json};
use unisono_tests::{Client, Heard, Nats, Node, Proxy, Sandbox, Way, Witness, eventually};

use super::{even, ready};

/// A dead node is noticed soon, but not while the questions of a short outage run into their timeouts, two seconds in
/// all; readiness is lost soon, too.
const FAST: &str = "heartbeat_interval = \"200ms\"\nnode_timeout = \"6s\"\nbus_timeout = \"1s\"\n\
    ready_grace = \"6s\"\nnats_connect_timeout = \"1s\"\nnats_reconnect_delay_max = \"500ms\"\n";

const RULES: &str = "[[rooms]]\npattern = \"/watched/{name}\"\nevents = [\"occupied\", \"vacated\"]\n\
    [[rooms]]\npattern = \"/{any...}\"\n";

/// Three nodes, the last of which can be cut off.
async fn cluster() -> (Sandbox, Vec<Proxy>) {
    let nats = vec![Nats::start().await];
    let config = Sandbox::config().cluster(FAST).toml(RULES);
    config.start_behind_links(nats).await
}

fn swallowed(link: &Proxy) {
    link.blackhole(Way::Both);
}

fn lost_there(link: &Proxy) {
    link.blackhole(Way::There);
}

fn lost_back(link: &Proxy) {
    link.blackhole(Way::Back);
}

/// As packets that are sent again until they arrive.
fn stalled(link: &Proxy) {
    link.stall(Way::Both);
}

#[tokio::test]
async fn a_node_that_is_black_holed_for_a_while() {
    cut_off_for_a_while(swallowed).await;
}

#[tokio::test]
async fn a_node_that_is_heard_by_nobody_for_a_while() {
    cut_off_for_a_while(lost_there).await;
}

#[tokio::test]
async fn a_node_that_hears_nobody_for_a_while() {
    cut_off_for_a_while(lost_back).await;
}

#[tokio::test]
async fn a_node_whose_packets_come_late() {
    cut_off_for_a_while(stalled).await;
}

#[tokio::test]
async fn a_node_that_is_refused_for_a_while() {
    cut_off_for_a_while(Proxy::sever).await;
}

/// For less than it takes to notice a dead node, then for more.
async fn cut_off_for_a_while(cut: impl Fn(&Proxy)) {
    let (sandbox, links) = cluster().await;
    let bus = sandbox.nats[0].connect().await;
    let mut turns = bus
        .subscribe("unisono.event.*")
        .await
        .expect("a subscription");
    bus.flush().await.expect("the server has it");
    let mut watched = sandbox.client(2, "/watched/it").await;
    assert_eq!(of_it(&mut turns).await, "occupied");
    let pace = Duration::from_millis(20);
    let talkers = [
        Witness::talking(sandbox.client(0, "/x").await, pace),
        Witness::talking(sandbox.client(2, "/x").await, pace),
        Witness::listening(sandbox.client(2, "/x").await),
        Witness::listening(sandbox.client(1, "/x").await),
    ];
    let away = sandbox.nodes[2].id().await;

    for long in [false, true] {
        let gaps: Vec<_> = talkers.iter().map(|one| one.heard().1).collect();
        cut(&links[2]);

        let rooms = sandbox.api(0).get("/api/v1/rooms").await.ok();
        let nodes = json!({"reached": 2, "missing": [away]});
        assert_eq!(rooms["nodes"], nodes, "{rooms}");
        let lost = sandbox
            .api(0)
            .emit(&talkers[1].id, "lost", Value::Null)
            .await;
        assert!(matches!(lost.as_str(), "timeout" | "node_gone"), "{lost}");

        // Its own sockets hear each other, and it lives.
        let heard = talkers[2].heard().0;
        eventually("its sockets hear each other", async || {
            talkers[2].heard().0 > heard + 20
        })
        .await;
        watched.ack("unisono:ping", json!("alive")).await;
        let live = sandbox.api(2).get("/health/live").await;
        assert_eq!(live.status, 200, "{live:?}");
        eventually("it knows", async || {
            let health = sandbox.api(2).get("/health/live").await.ok();
            if health["bus"] == "away" {
                Ok(())
            } else {
                Err(health)
            }
        })
        .await;
        if long {
            assert_eq!(of_it(&mut turns).await, "vacated");
            // The other one may have been the first to notice.
            eventually("nobody misses it any more", async || {
                let rooms = sandbox.api(0).get("/api/v1/rooms").await.ok();
                if rooms["nodes"] == json!({"reached": 2, "missing": []}) {
                    Ok(())
                } else {
                    Err(rooms)
                }
            })
            .await;
            eventually("it is not ready", async || !ready(&sandbox.nodes[2]).await).await;
            assert_eq!(sandbox.api(2).get("/health/live").await.status, 200);
        } else {
            assert!(ready(&sandbox.nodes[2]).await, "not for a short outage");
        }
        for i in 0..2 {
            assert!(ready(&sandbox.nodes[i]).await, "the others are ready");
        }

        links[2].heal();
        sandbox.all_know_each_other().await;
        eventually("it is ready", async || ready(&sandbox.nodes[2]).await).await;
        if long {
            // It was taken back.
            assert_eq!(of_it(&mut turns).await, "occupied");
        }
        eventually("everybody is told of the gap", async || {
            let now: Vec<_> = talkers.iter().map(|one| one.heard().1).collect();
            let more = now.iter().zip(&gaps).all(|(now, before)| now > before);
            if more {
                Ok(())
            } else {
                Err((gaps.clone(), now))
            }
        })
        .await;
        eventually("an emit arrives", async || {
            sandbox.api(0).emit(&watched.id, "found", Value::Null).await == "delivered"
        })
        .await;
        let fence = format!("/watched/{long}");
        let mut passing = sandbox.client(0, &fence).await;
        passing.close(1000, "").await;
        until_vacated(&mut turns, &fence).await;
    }

    even(&talkers, "/x").await;
    drop(watched);
    assert_eq!(of_it(&mut turns).await, "vacated");
}

/// What is told next of the room of the node that is cut off.
async fn of_it(turns: &mut Subscriber) -> String {
    loop {
        let (kind, room) = turn(turns).await;
        if room == "/watched/it" {
            return kind;
        }
    }
}

/// Nothing is told of that room before this one is vacated.
async fn until_vacated(turns: &mut Subscriber, fence: &str) {
    loop {
        let (kind, room) = turn(turns).await;
        assert_ne!(room, "/watched/it", "{kind}");
        if (kind.as_str(), room.as_str()) == ("vacated", fence) {
            return;
        }
    }
}

async fn turn(turns: &mut Subscriber) -> (String, String) {
    let next = tokio::time::timeout(super::NOTICE, turns.next()).await;
    let next = next
        .expect("an event comes")
        .expect("the subscription lasts");
    let event: Value = serde_json::from_slice(&next.payload).expect("an event is JSON");
    let word = |field: &str| event[field].as_str().expect("a word").to_owned();
    (word("type"), word("room"))
}

#[tokio::test]
async fn a_link_that_breaks_again_and_again_loses_nothing_in_silence() {
    let (sandbox, links) = cluster().await;
    let pace = Duration::from_millis(5);
    let talkers = [
        Witness::talking(sandbox.client(0, "/x").await, pace),
        Witness::talking(sandbox.client(1, "/x").await, pace),
        Witness::talking(sandbox.client(2, "/x").await, pace),
    ];
    for round in 0..6 {
        let heard = talkers[1].heard().0;
        let link = &links[round % 3];
        if round < 3 {
            link.cut();
        } else {
            link.reset();
        }
        eventually("they go on", async || talkers[1].heard().0 > heard + 200).await;
    }
    sandbox.all_know_each_other().await;
    even(&talkers, "/x").await;
    for (i, talker) in talkers.iter().enumerate() {
        assert_eq!(talker.end(), None, "{i}");
        assert!(talker.heard().1 > 0, "{i} was told");
    }
}

#[tokio::test]
async fn a_black_holed_client_is_gone_in_time() {
    let sockets = "[sockets]\nping_interval = \"1s\"\npong_timeout = \"8s\"\n";
    let node = Node::alone(&format!("{sockets}{RULES}")).await;
    let mut stays = node.client("/x").await;
    for way in [Way::Both, Way::There, Way::Back] {
        let link = Proxy::to(node.port()).await;
        let url = format!("ws://127.0.0.1:{}/x", link.port());
        let lost = Witness::listening(Client::connect(&url).await);
        let before = node.metrics().await;
        link.blackhole(way);

        eventually("it is a member no more", async || {
            // One that answers pings, meanwhile.
            stays.ack("unisono:ping", Value::Null).await;
            let members = node.api().members("/x").await;
            if members["count"] == 1 {
                Ok(())
            } else {
                Err(members)
            }
        })
        .await;
        eventually("the close is counted", async || {
            let closes = |metrics: &unisono_tests::Metrics| {
                metrics.get("unisono_closes_total{code=\"4408\"}") as u64
            };
            closes(&node.metrics().await) == closes(&before) + 1
        })
        .await;
        link.heal();
        eventually("the client knows", async || lost.end().is_some()).await;
        assert!(!matches!(lost.end(), Some(Heard::Event(_))));
    }
}
