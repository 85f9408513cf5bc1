//! Numbered publications that go on while nodes come and go, and who hears them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use unisono_tests::{Api, Client, Heard, PATIENCE};

/// The room of all of this.
pub const ROOM: &str = "/steady";

/// The pace of one source: some hundred a second.
const PACE: Duration = Duration::from_millis(5);

/// Publishes 0, 1, 2 and so on, one after the other, until it is enough or the node is gone.
pub struct Source {
    task: JoinHandle<Vec<u64>>,
    enough: watch::Sender<bool>,
}

/// Hears a room, up to a number of fences.
pub struct Listener(JoinHandle<BTreeMap<String, Vec<u64>>>);

impl Source {
    /// Publishes under that name. Returns when the first is taken.
    pub async fn start(name: &'static str, api: Api) -> Self {
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
    pub async fn taken(self) -> Vec<u64> {
        let _ = self.enough.send(true);
        self.task.await.expect("a source that does not panic")
    }
}

impl Listener {
    /// Hears what comes until so many fences have come.
    pub fn start(mut client: Client, fences: usize) -> Self {
        Self(tokio::spawn(async move {
            let mut heard: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            let mut left = fences;
            while left > 0 {
                match client.hear().await {
                    Heard::Event(event) if event.event == "fence" => left -= 1,
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
    pub async fn heard(self) -> BTreeMap<String, Vec<u64>> {
        self.0.await.expect("a listener that does not panic")
    }
}

/// Nothing comes after what these have sent.
pub async fn fence(apis: &[&Api]) {
    for api in apis {
        api.publish(ROOM, "fence", Value::Null).await;
    }
}

/// Each that was taken came, in the order of the numbers and once. What was not taken may have come.
#[track_caller]
pub fn nothing_is_lost(name: &str, taken: &[u64], heard: &[u64]) {
    assert!(!taken.is_empty(), "{name} published nothing");
    assert!(
        heard.is_sorted_by(|a, b| a < b),
        "{name}: twice, or in another order: {heard:?}"
    );
    nothing_is_lost_in_any_order(name, taken, heard);
}

/// As [`nothing_is_lost`], for what went by several nodes, which promise no order between them.
#[track_caller]
pub fn nothing_is_lost_in_any_order(name: &str, taken: &[u64], heard: &[u64]) {
    let mut sorted = heard.to_vec();
    sorted.sort_unstable();
    assert!(
        sorted.is_sorted_by(|a, b| a < b),
        "{name}: twice: {heard:?}"
    );
    let lost: Vec<_> = taken
        .iter()
        .filter(|number| sorted.binary_search(number).is_err())
        .collect();
    assert!(lost.is_empty(), "{name}: lost: {lost:?}");
}
