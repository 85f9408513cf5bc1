//! What an application is told of the sockets of a node that cannot tell it any more.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use unisono_tests::{Client, Nats, Sandbox, SandboxConfig};

use super::NOTICE;

const NODE_TIMEOUT: Duration = Duration::from_secs(2);

const FAST: &str = "heartbeat_interval = \"200ms\"\nnode_timeout = \"2s\"\nbus_timeout = \"1s\"\n\
    nats_connect_timeout = \"1s\"\nnats_reconnect_delay_max = \"500ms\"\n";

const RULES: &str = "[[rooms]]\npattern = \"/quiet\"\n\
    [[rooms]]\npattern = \"/{any...}\"\n\
    events = [\"opened\", \"closed\", \"joined\", \"left\", \"occupied\", \"vacated\"]\n\
    [drain]\ndelay = \"0s\"\nwindow = \"0s\"\n";

fn watched() -> SandboxConfig {
    Sandbox::config().toml(RULES).cluster(FAST)
}

/// What is told on NATS, as it comes.
struct Told(Subscriber);

impl Told {
    async fn listen(nats: &Nats) -> Self {
        let bus = nats.connect().await;
        let events = bus.subscribe("unisono.event.*").await;
        bus.flush().await.expect("the server has it");
        Self(events.expect("a subscription"))
    }

    async fn next(&mut self) -> Value {
        let message = timeout(NOTICE, self.0.next()).await;
        let message = message
            .expect("an event comes")
            .expect("the subscription lasts");
        serde_json::from_slice(&message.payload).expect("an event is JSON")
    }

    /// Of each socket, what is told of it up to the first that this is true of.
    async fn until(&mut self, last: impl Fn(&Value) -> bool) -> BTreeMap<String, Vec<String>> {
        let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
        loop {
            let event = self.next().await;
            if last(&event) {
                return told;
            }
            let word = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            let mut what = format!("{} {}", word("type"), word("room"));
            if let Some(code) = event["code"].as_u64() {
                what.push_str(&format!(" {code}"));
            }
            told.entry(word("socket")).or_default().push(what);
        }
    }

    /// The same, up to the coming of a socket that nothing else is about.
    async fn fence(&mut self, sandbox: &Sandbox, node: usize) -> BTreeMap<String, Vec<String>> {
        let mut fence = sandbox.client(node, "/quiet").await;
        fence.join("/fence").await;
        let id = fence.id.clone();
        let told = self.until(|event| event["type"] == "joined" && event["socket"] == id.as_str());
        let mut told = told.await;
        // Of the room, and it may come first.
        told.entry(String::new())
            .or_default()
            .retain(|what| !what.ends_with("/fence"));
        told.retain(|_, what| !what.is_empty());
        fence.leave("/fence").await;
        self.until(|event| event["type"] == "vacated" && event["room"] == "/fence")
            .await;
        told
    }
}

async fn in_two_rooms(sandbox: &Sandbox, node: usize) -> Client {
    let mut client = sandbox.client(node, "/home").await;
    client.join("/away").await;
    client
}

fn list(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn a_survivor_tells_of_the_sockets_of_a_killed_node() {
    for dead in 0..3 {
        let mut sandbox = watched().start().await;
        let mut told = Told::listen(&sandbox.nats[0]).await;
        let lost = [
            in_two_rooms(&sandbox, dead).await,
            in_two_rooms(&sandbox, dead).await,
        ];
        let mut left = in_two_rooms(&sandbox, dead).await;
        left.leave("/away").await;
        let gone = in_two_rooms(&sandbox, dead).await;
        let gone_id = gone.id.clone();
        drop(gone);
        told.until(|event| event["type"] == "closed" && event["socket"] == gone_id.as_str())
            .await;
        told.fence(&sandbox, (dead + 1) % 3).await;

        sandbox.nodes[dead].kill();
        let told_of = told.until(|event| event["type"] == "vacated" && event["room"] == "/away");
        let mut all = told_of.await;
        // Rooms may be told of before their sockets are.
        for (socket, more) in told.fence(&sandbox, (dead + 1) % 3).await {
            all.entry(socket).or_default().extend(more);
        }
        all.remove("");

        let ends = list(&["left /away", "left /home", "closed /home 1006"]);
        let mut expected: BTreeMap<_, _> = lost
            .iter()
            .map(|client| (client.id.clone(), ends.clone()))
            .collect();
        expected.insert(left.id.clone(), list(&["left /home", "closed /home 1006"]));
        for words in all.values_mut() {
            // In which order it leaves rooms, nobody says; the end is the end.
            assert!(
                words.last().is_some_and(|last| last.starts_with("closed")),
                "{words:?}"
            );
            let closed = words.len() - 1;
            words[..closed].sort();
        }
        assert_eq!(all, expected);
    }
}

#[tokio::test]
async fn a_node_that_stops_tells_of_its_sockets_itself_and_nobody_else_does() {
    let mut sandbox = watched().start().await;
    let mut told = Told::listen(&sandbox.nats[0]).await;
    let mut clients = vec![];
    for _ in 0..20 {
        clients.push(in_two_rooms(&sandbox, 1).await);
    }
    told.fence(&sandbox, 0).await;

    sandbox.nodes[1].terminate();
    for client in &mut clients {
        client.expect("unisono:closing").await;
        client.expect_close().await;
    }
    assert_eq!(sandbox.nodes[1].process().exited().await.code(), Some(0));
    sandbox.nodes.remove(1);
    sandbox.all_know_each_other().await;
    // If anybody else told, it would be by then.
    let later = Instant::now() + NODE_TIMEOUT;
    let mut all = told.fence(&sandbox, 0).await;
    while Instant::now() < later {
        for (socket, more) in told.fence(&sandbox, 1).await {
            all.entry(socket).or_default().extend(more);
        }
    }
    for client in &clients {
        let words = all.remove(&client.id).unwrap_or_default();
        assert_eq!(words.len(), 3, "{words:?}");
        assert_eq!(words[2], "closed /home 1012");
    }
}

/// A connection to NATS that breaks and comes back is no death; a silence that is long enough is, until it is over.
#[tokio::test]
async fn a_node_that_comes_back_gets_its_sockets_back() {
    let nats = vec![Nats::start().await];
    let (sandbox, links) = watched().start_behind_links(nats).await;
    let mut told = Told::listen(&sandbox.nats[0]).await;
    let stays = in_two_rooms(&sandbox, 2).await;
    let mut leaves = in_two_rooms(&sandbox, 2).await;
    let probe = stays.id.clone();
    told.fence(&sandbox, 0).await;

    links[2].cut();
    // Whoever looks for it just then finds nobody under its id.
    for _ in 0..10 {
        sandbox.api(0).emit(&probe, "where", Value::Null).await;
    }
    sandbox.all_know_each_other().await;
    let later = Instant::now() + NODE_TIMEOUT;
    while Instant::now() < later {
        let words = told.fence(&sandbox, 0).await;
        assert!(!words.contains_key(&probe), "{words:?}");
    }

    links[2].sever();
    let id = probe.clone();
    let closed = move |event: &Value| event["type"] == "closed" && event["socket"] == id.as_str();
    told.until(closed).await;
    leaves.leave("/away").await;
    links[2].heal();
    let id = probe.clone();
    let opened = move |event: &Value| event["type"] == "opened" && event["socket"] == id.as_str();
    let mut all = told.until(opened).await;
    sandbox.all_know_each_other().await;
    for (socket, more) in told.fence(&sandbox, 0).await {
        all.entry(socket).or_default().extend(more);
    }
    let mut words = all.remove(&leaves.id).unwrap_or_default();
    words.retain(|word| !word.starts_with("closed") && !word.starts_with("left"));
    assert_eq!(
        words,
        ["opened /home", "joined /home"],
        "and not of what it left meanwhile"
    );
    let mut words = all.remove(&probe).unwrap_or_default();
    words.sort();
    assert_eq!(words, ["joined /away", "joined /home"]);
}
