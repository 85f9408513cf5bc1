//! Numbered publications that go on while nodes come and go, and who hears them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use unisono_tests::{Api, Client, Heard, Node, PATIENCE};

/// The source that publishes by way of a load balancer.
pub const BALANCED: &str = "balanced";

/// Sources and listeners around a node that leaves and comes back.
pub struct Traffic {
    sources: Vec<(&'static str, Source)>,
    listeners: [Listener; LISTENERS],
}

const LISTENERS: usize = 2;

/// The room of all of this.
const ROOM: &str = "/steady";

/// The pace of one source: some hundred a second.
const PACE: Duration = Duration::from_millis(5);

/// Publishes 0, 1, 2 and so on, one after the other, until it is enough or the node is gone.
struct Source {
    task: JoinHandle<Vec<u64>>,
    enough: watch::Sender<bool>,
}

/// Hears a room, up to a fence from each node that stays.
struct Listener(JoinHandle<BTreeMap<String, Vec<u64>>>);

impl Source {
    /// Publishes under that name. Returns when the first is taken.
    async fn start(name: &'static str, api: Api) -> Self {
        let (enough, stop) = watch::channel(false);
        let (begin, mut begun) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut taken = vec![];
            let mut pace = tokio::time::interval(PACE);
            for n in 0.. {
                pace.tick().await;
                if *stop.borrow() {
                    break;
                }
                // Every fourth wants to know how far it went.
                let body =
                    json!({"room": ROOM, "event": "n", "data": [name, n], "confirm": n % 4 == 0});
                let answer = api.post("publish", body).await;
                match (answer.status, answer.body["status"].as_str()) {
                    (200, Some("sent")) => taken.push(n),
                    // It says who may not have heard it.
                    (200, Some("confirmed")) if answer.body["nodes"]["missing"] == json!([]) => {
                        taken.push(n);
                    }
                    (0, _) => break,
                    _ => {}
                }
                if !taken.is_empty() {
                    begin.send_replace(true);
                }
            }
            taken
        });
        let first = timeout(PATIENCE, begun.wait_for(|begun| *begun)).await;
        assert!(
            first.is_ok_and(|first| first.is_ok()),
            "{name} publishes nothing"
        );
        Self { task, enough }
    }

    /// The numbers that were taken.
    async fn taken(self) -> Vec<u64> {
        let _ = self.enough.send(true);
        self.task.await.expect("a source that does not panic")
    }
}

impl Listener {
    fn start(mut client: Client) -> Self {
        Self(tokio::spawn(async move {
            let mut heard: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            let mut fences = 0;
            while fences < LISTENERS {
                match client.hear().await {
                    Heard::Event(event) if event.event == "fence" => fences += 1,
                    Heard::Event(event) if event.event == "n" => {
                        let name = event.data[0].as_str().expect("a name").to_owned();
                        let number = event.data[1].as_u64().expect("a number");
                        heard.entry(name).or_default().push(number);
                    }
                    Heard::Event(event) => panic!("nothing else is sent: {}", event.text),
                    end => panic!("a steady socket was closed: {end:?}"),
                }
            }
            heard
        }))
    }

    /// What came, by the name of the source.
    async fn heard(self) -> BTreeMap<String, Vec<u64>> {
        self.0.await.expect("a listener that does not panic")
    }
}

impl Traffic {
    /// Sources on three nodes, and listeners on the two that stay.
    pub async fn around(stay: [&Node; 2], leaving: &Node) -> Self {
        let [left, right] = stay;
        let mut traffic = Self {
            listeners: [
                Listener::start(left.client(ROOM).await),
                Listener::start(right.client(ROOM).await),
            ],
            sources: vec![],
        };
        for (name, node) in [("left", left), ("right", right), ("leaving", leaving)] {
            traffic.add(name, node.api()).await;
        }
        traffic
    }

    /// One more source.
    pub async fn add(&mut self, name: &'static str, api: &Api) {
        let source = Source::start(name, api.clone()).await;
        self.sources.push((name, source));
    }

    /// Ends, and sees that both listeners heard each number that was taken: once, and in order, but for what went by
    /// several nodes, which promise none between them.
    pub async fn loses_nothing(self, stay: [&Api; LISTENERS]) {
        let mut taken = vec![];
        for (name, source) in self.sources {
            taken.push((name, source.taken().await));
        }
        // Nothing comes after what these have sent.
        for api in stay {
            api.publish(ROOM, "fence", Value::Null).await;
        }
        for listener in self.listeners {
            let heard = listener.heard().await;
            for (name, taken) in &taken {
                let heard = heard.get(*name).map(Vec::as_slice).unwrap_or_default();
                nothing_is_lost(name, taken, heard);
            }
        }
    }
}

/// What was not taken may have come.
#[track_caller]
fn nothing_is_lost(name: &str, taken: &[u64], heard: &[u64]) {
    assert!(!taken.is_empty(), "{name} published nothing");
    let mut heard = heard.to_vec();
    if name == BALANCED {
        heard.sort_unstable();
    }
    assert!(
        heard.is_sorted_by(|a, b| a < b),
        "{name}: twice, or in another order: {heard:?}"
    );
    let lost: Vec<_> = taken
        .iter()
        .filter(|number| heard.binary_search(number).is_err())
        .collect();
    assert!(lost.is_empty(), "{name}: lost: {lost:?}");
}
