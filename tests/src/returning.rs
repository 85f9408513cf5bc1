//! A client that comes back, as the documentation tells clients to.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::{Client, Heard, PATIENCE, pass};

/// The wait after a refusal.
const BACKOFF: Duration = Duration::from_millis(200);

/// A client in the background: when it is told to, it comes back after its own `reconnect_in_ms`.
#[derive(Debug)]
pub struct Returning {
    task: JoinHandle<Vec<Departure>>,
    enough: oneshot::Sender<()>,
}

/// A connection that ended, and how the client came back.
#[derive(Debug, Clone)]
pub struct Departure {
    /// The node that it was on.
    pub node: String,
    /// The close code; none where the connection ended without a close frame.
    pub code: Option<u16>,
    /// When the close frame came.
    pub at: Instant,
    /// After what time the node wanted to have it back.
    pub reconnect_in: Option<Duration>,
    /// From the close frame to the greeting.
    pub away: Duration,
}

impl Returning {
    /// Connects, and stays until it is enough.
    pub async fn start(url: String) -> Self {
        let client = Client::connect(&url).await;
        let (enough, mut stop) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut client = client;
            let mut departures = vec![];
            loop {
                let ended = tokio::select! {
                    ended = end(&mut client) => ended,
                    _ = &mut stop => return departures,
                };
                let (reconnect_in, code, at) = ended;
                pass(reconnect_in.unwrap_or_default()).await;
                let node = client.node.clone();
                client = back(&url).await;
                departures.push(Departure {
                    node,
                    code,
                    at,
                    reconnect_in,
                    away: at.elapsed(),
                });
            }
        });
        Self { task, enough }
    }

    /// All that it has been through, once it is connected.
    pub async fn story(self) -> Vec<Departure> {
        let _ = self.enough.send(());
        self.task.await.expect("a client that does not panic")
    }
}

/// Tries again when it is refused, for as long as a test is patient.
async fn back(url: &str) -> Client {
    let asked = Instant::now();
    loop {
        match Client::try_connect(url).await {
            Ok(client) => return client,
            Err(status) if asked.elapsed() > PATIENCE => panic!("refused for too long: {status:?}"),
            Err(_) => pass(BACKOFF).await,
        }
    }
}

/// Reads until the connection ends.
async fn end(client: &mut Client) -> (Option<Duration>, Option<u16>, Instant) {
    let mut reconnect_in = None;
    loop {
        match client.hear().await {
            Heard::Event(event) if event.event == "unisono:closing" => {
                reconnect_in = event.data["reconnect_in_ms"]
                    .as_u64()
                    .map(Duration::from_millis);
            }
            Heard::Event(_) => {}
            Heard::Closed(code) => return (reconnect_in, Some(code), Instant::now()),
            Heard::Cut => return (reconnect_in, None, Instant::now()),
        }
    }
}
