//! When rooms are occupied in the cluster, and when they are vacated: each said once.

use async_nats::Subscriber;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::timeout;
use unisono_tests::{Endpoint, Node, PATIENCE, Reply, Sandbox, SandboxConfig, eventually};

const RULES: &str = "[[rooms]]\npattern = \"/watched/{id}\"\nevents = [\"occupied\", \"vacated\"]\n\
    [[rooms]]\npattern = \"/{any...}\"\n";

fn watched() -> SandboxConfig {
    Sandbox::config().toml(RULES)
}

async fn listen(sandbox: &Sandbox) -> Subscriber {
    let bus = sandbox.nats[0].connect().await;
    let events = bus.subscribe("unisono.event.*").await;
    let events = events.expect("a subscription");
    bus.flush().await.expect("the server has it");
    events
}

/// What happened next, and in which room.
async fn next(events: &mut Subscriber) -> (String, String) {
    let message = timeout(PATIENCE, events.next()).await;
    let message = message
        .expect("an event comes")
        .expect("the subscription lasts");
    let event = message.payload;
    let event: Value = serde_json::from_slice(&event).expect("an event is JSON");
    assert!(event["at"].is_string() && event["node"].is_string() && event["id"].is_string());
    assert!(event.get("socket").is_none(), "it happened to a room");
    let word = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    (word("type"), word("room"))
}

fn happened(kind: &str, room: &str) -> (String, String) {
    (kind.to_owned(), room.to_owned())
}

#[tokio::test]
async fn the_first_socket_and_the_last_of_the_cluster_count() {
    let sandbox = watched().start().await;
    let mut events = listen(&sandbox).await;
    let mut sockets = vec![];
    for i in [0, 1, 1, 2] {
        sockets.push(sandbox.client(i, "/watched/1").await);
    }
    let _unwatched = sandbox.client(0, "/other").await;
    assert_eq!(next(&mut events).await, happened("occupied", "/watched/1"));

    for socket in &mut sockets {
        socket.close(1000, "").await;
    }
    assert_eq!(next(&mut events).await, happened("vacated", "/watched/1"));

    // By `unisono:join` and `unisono:leave`, too; and nothing came in between.
    let mut socket = sandbox.client(2, "/other").await;
    socket.join("/watched/2").await;
    assert_eq!(next(&mut events).await, happened("occupied", "/watched/2"));
    socket.leave("/watched/2").await;
    assert_eq!(next(&mut events).await, happened("vacated", "/watched/2"));
}

#[tokio::test]
async fn a_survivor_speaks_for_a_dead_node() {
    // A dead node is noticed soon.
    let fast = "heartbeat_interval = \"200ms\"\nnode_timeout = \"2s\"\n";
    for dead in 0..3 {
        let mut sandbox = watched().cluster(fast).start().await;
        let mut events = listen(&sandbox).await;
        let _socket = sandbox.client(dead, "/watched/1").await;
        assert_eq!(next(&mut events).await, happened("occupied", "/watched/1"));
        let other = (dead + 1) % 3;
        let _both = sandbox.client(dead, "/watched/both").await;
        assert_eq!(
            next(&mut events).await,
            happened("occupied", "/watched/both")
        );
        let mut stays = sandbox.client(other, "/watched/both").await;

        sandbox.nodes[dead].kill();

        assert_eq!(next(&mut events).await, happened("vacated", "/watched/1"));
        stays.close(1000, "").await;
        assert_eq!(
            next(&mut events).await,
            happened("vacated", "/watched/both")
        );
    }
}

#[tokio::test]
async fn a_node_without_a_bus_tells_an_endpoint() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let hooks = format!(
        "{RULES}[hooks]\nurl = \"{}\"\nsecret = \"a secret of the tests\"",
        endpoint.url()
    );
    let node = Node::alone(&hooks).await;
    let mut socket = node.client("/watched/1").await;
    socket.close(1000, "").await;

    let told = eventually("both are told", async || {
        let events = endpoint.events();
        (events.len() == 2).then_some(events)
    })
    .await;

    let told: Vec<_> = told
        .iter()
        .map(|event| (&event["type"], &event["room"]))
        .collect();
    let room = Value::from("/watched/1");
    assert_eq!(
        told,
        [(&"occupied".into(), &room), (&"vacated".into(), &room)]
    );
}
