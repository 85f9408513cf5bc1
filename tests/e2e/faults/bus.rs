//! What becomes of NATS itself, with two servers and a thousand publications a second.

use std::time::Duration;

use unisono_tests::{Nats, NatsConfig, Node, Sandbox, Witness, eventually, within};

use super::{NOTICE, even, ready};

const FAST: &str = "heartbeat_interval = \"200ms\"\nnode_timeout = \"3s\"\nbus_timeout = \"1s\"\n\
    nats_connect_timeout = \"1s\"\nnats_reconnect_delay_max = \"500ms\"\n";

/// Three nodes that may go to either server, and a talker on each.
async fn under_traffic(config: NatsConfig) -> (Sandbox, Vec<Witness>) {
    let pair = config.pair().await;
    let urls = [pair[0].url(), pair[1].url()];
    let mut nodes = vec![];
    for i in 0..3 {
        let node = Node::config(&format!("node-{i}")).cluster(FAST);
        nodes.push(node.nats(urls.clone()).start().await);
    }
    let sandbox = Sandbox {
        nats: Vec::from(pair),
        nodes,
    };
    sandbox.all_know_each_other().await;
    let mut talkers = vec![];
    for i in 0..3 {
        let client = sandbox.client(i, "/x").await;
        talkers.push(Witness::talking(client, Duration::from_millis(3)));
    }
    go_on(&talkers).await;
    (sandbox, talkers)
}

/// Everybody hears more, and more again.
async fn go_on(talkers: &[Witness]) {
    let before: Vec<_> = talkers.iter().map(|talker| talker.heard().0).collect();
    within(NOTICE, "everybody hears more", async || {
        let heard = talkers.iter().map(|talker| talker.heard().0);
        heard.zip(&before).all(|(now, before)| now > before + 300)
    })
    .await;
}

/// Nobody is on that server.
async fn left(sandbox: &Sandbox, nats: usize) {
    within(NOTICE, "everybody is on the other server", async || {
        let there = sandbox.nats[1 - nats].node_connections().await;
        if there.len() == 3 { Ok(()) } else { Err(there) }
    })
    .await;
}

/// The traffic is heard by all again, and all that was missed was told. Nobody lost a socket for it.
async fn at_peace(sandbox: &Sandbox, talkers: &[Witness]) {
    sandbox.all_know_each_other().await;
    go_on(talkers).await;
    even(talkers, "/x").await;
    for (i, talker) in talkers.iter().enumerate() {
        assert_eq!(talker.end(), None, "{i}");
        assert_eq!(sandbox.api(i).get("/health/live").await.status, 200);
        eventually("every node is ready", async || {
            ready(&sandbox.nodes[i]).await
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_is_killed_and_started_again() {
    let (mut sandbox, talkers) = under_traffic(Nats::config()).await;
    for server in [0, 1, 0] {
        sandbox.nats[server].kill();
        left(&sandbox, server).await;
        go_on(&talkers).await;
        sandbox.nats[server].start_again().await;
    }
    at_peace(&sandbox, &talkers).await;
}

#[tokio::test]
async fn a_server_that_freezes_for_longer_than_the_bus_may_be_silent() {
    let (sandbox, talkers) = under_traffic(Nats::config()).await;
    for server in [0, 1, 0] {
        sandbox.nats[server].freeze();
        left(&sandbox, server).await;
        go_on(&talkers).await;
        // What it took before, it passes on now.
        sandbox.nats[server].thaw();
        go_on(&talkers).await;
    }
    at_peace(&sandbox, &talkers).await;
}

#[tokio::test]
async fn both_servers_die_and_come_back() {
    let (mut sandbox, talkers) = under_traffic(Nats::config()).await;
    for nats in &mut sandbox.nats {
        nats.kill();
    }
    for i in 0..3 {
        eventually("every node knows", async || {
            let health = sandbox.api(i).get("/health/live").await.ok();
            if health["bus"] == "away" {
                Ok(())
            } else {
                Err(health)
            }
        })
        .await;
        assert!(
            ready(&sandbox.nodes[i]).await,
            "if all lost it, clients have nowhere to go"
        );
    }
    for nats in &mut sandbox.nats {
        nats.start_again().await;
    }
    at_peace(&sandbox, &talkers).await;
    for talker in &talkers {
        assert!(talker.heard().1 > 0, "told of the gap");
    }
}

#[tokio::test]
async fn a_lame_duck_is_left_in_good_order() {
    let soon = "lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"";
    let (mut sandbox, talkers) = under_traffic(Nats::config().lines(soon)).await;
    for server in [0, 1] {
        sandbox.nats[server].lame_duck();
        left(&sandbox, server).await;
        go_on(&talkers).await;
        sandbox.nats[server].exited().await;
        sandbox.nats[server].start_again().await;
        Nats::have_a_route(&sandbox.nats).await;
    }
    at_peace(&sandbox, &talkers).await;
}
