//! Behind a real nginx: the configuration that is shipped, and two that people have already.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use unisono_tests::{Client, Nginx, Node, Sandbox};

/// What holds behind any of the configurations.
async fn a_cluster_works_behind(nginx: &Nginx, mut sandbox: Sandbox) {
    let mut clients = vec![];
    for _ in 0..30 {
        clients.push(nginx.client("/chat-rooms/1?token=x").await);
    }
    let shares = shares(&clients);
    assert_eq!(shares.len(), sandbox.nodes.len(), "{shares:?}");
    assert!(shares.values().all(|share| *share >= 5), "{shares:?}");

    clients[0]
        .send("new message", json!({"content": "hi"}))
        .await;
    let first = clients[0].id.clone();
    for client in &mut clients[1..] {
        let message = client.expect("new message").await;
        assert_eq!(message.from.as_deref(), Some(first.as_str()));
    }
    let last = clients[29].id.clone();
    assert_eq!(
        clients[0].emit(&last, "psst", Value::Null).await,
        "delivered"
    );
    clients[29].expect("psst").await;

    assert_eq!(nginx.api().get("/health/live").await.status, 200);
    assert_eq!(nginx.api().get("/api/v1/nodes").await.refusal().0, 401);
    let publication = json!({"room": "/chat-rooms/1", "event": "intruder"});
    assert_eq!(
        nginx.api().post("publish", publication).await.refusal().0,
        401
    );
    sandbox.api(0).broadcast("fence", Value::Null).await;
    for client in &mut clients {
        client.expect("fence").await;
    }

    clients[0].close(4000, "bye").await;
    assert_eq!(clients[0].expect_close().await.0, 4000);

    let dead = sandbox.ids().await[2].clone();
    sandbox.nodes[2].kill();
    for _ in 0..6 {
        assert_ne!(nginx.client("/").await.node, dead);
    }
}

/// How many of these clients are on which node.
fn shares(clients: &[Client]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for client in clients {
        *shares.entry(client.node.as_str()).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn the_shipped_configuration_carries_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[tokio::test]
async fn the_laravel_configuration_carries_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::laravel(&sandbox.nodes).await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[tokio::test]
async fn the_hyperf_configuration_carries_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::hyperf(&sandbox.nodes).await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[tokio::test]
async fn the_shipped_configuration_passes_by_a_draining_node() {
    let sandbox = Sandbox::config()
        .toml("[drain]\ndelay = \"60s\"")
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let draining = sandbox.nodes[0].id().await;

    drain(&sandbox.nodes[0]).await;

    for _ in 0..9 {
        assert_ne!(nginx.client("/").await.node, draining);
    }
}

#[tokio::test]
async fn the_shipped_configuration_keeps_the_metrics_inside() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;

    assert_eq!(nginx.api().get("/metrics").await.status, 404);
    assert_eq!(sandbox.api(0).get("/metrics").await.status, 200);
}

async fn drain(node: &Node) {
    node.terminate();
    unisono_tests::eventually("the node is no longer ready", async || {
        node.api().get("/health/ready").await.status == 503
    })
    .await;
}
