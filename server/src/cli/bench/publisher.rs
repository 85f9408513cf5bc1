//! How publications come to the nodes: as requests of HTTP, or as events of a socket.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::frames::masked;
use super::load::Run;
use super::nodes::Nodes;
use super::socket::{Incoming, Socket};
use crate::cli::outcome::Failure;
use crate::websocket::Opcode;

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum By {
    /// Requests of HTTP, to all nodes in turn, as an application's
    Http,
    /// One more socket of the room (of the first, where there are many), on the first node, as a client. What is in
    /// flight it sends in one piece. Mind sockets.message_rate
    Socket,
}

/// Publishes to rooms.
pub enum Publisher {
    Http,
    Sockets(Vec<Rc<Talker>>),
}

/// A socket that sends, and waits for answers.
#[derive(Default)]
pub struct Talker {
    number: Cell<u64>,
    unsent: RefCell<Vec<u8>>,
    unanswered: RefCell<HashMap<u64, oneshot::Sender<Result<(), String>>>>,
    /// Something is to be sent.
    stirred: Notify,
}

/// `unisono:ack`, or `unisono:error`.
#[derive(Deserialize)]
struct Answer<'a> {
    event: &'a str,
    id: Option<u64>,
    #[serde(default)]
    data: Value,
}

const ACK: &str = "unisono:ack";
const ERROR: &str = "unisono:error";

impl Publisher {
    /// One that is there until the run ends, with so many sockets, no more than rooms; with none, over HTTP.
    pub async fn start(sockets: u32, run: &Rc<Run>, rooms: &[String]) -> Result<Self, Failure> {
        let mut talkers = Vec::new();
        let places = run.nodes.entrances.iter().cycle().zip(rooms);
        for (entrance, room) in places.take(sockets as usize) {
            let entrance = entrance.for_websocket();
            let (socket, _) = entrance.join(room, &run.buffer).await?;
            let talker = Rc::new(Talker::default());
            run.keep_talking(Rc::clone(&talker), socket);
            talkers.push(talker);
        }
        Ok(match talkers.is_empty() {
            true => Self::Http,
            false => Self::Sockets(talkers),
        })
    }

    /// Messages that are due at one time, where they have times: one of each socket.
    pub fn at_one_time(&self) -> u64 {
        match self {
            Self::Http => 1,
            Self::Sockets(talkers) => talkers.len() as u64,
        }
    }

    /// Publishes to a room, which is the `nth`, and waits until a node has taken it.
    pub async fn publish(
        &self,
        number: u64,
        (nth, room): (usize, &str),
        text: String,
        nodes: &Nodes,
    ) -> Result<(), Failure> {
        match self {
            Self::Http => {
                let api = &nodes.apis[(number % nodes.apis.len() as u64) as usize];
                let body = json!({ "room": room, "text": text });
                let answer = api.post("/api/v1/publish", &body).await?;
                match answer["status"] == "sent" {
                    true => Ok(()),
                    false => Err(Failure::Failed(format!("the node answers {answer}"))),
                }
            }
            Self::Sockets(talkers) => {
                // Each publishes to rooms of its own, of which it is in the first: none hears another.
                let talker = &talkers[nth % talkers.len()];
                let data = json!({ "room": room, "event": "m", "data": text });
                talker.ask("unisono:publish", &data).await
            }
        }
    }
}

impl Talker {
    /// Sends an event of the server's, and waits for its ack.
    pub async fn ask(&self, event: &str, data: &Value) -> Result<(), Failure> {
        let id = self.number.get();
        self.number.set(id + 1);
        let text = json!({ "event": event, "id": id, "data": data }).to_string();
        let frame = masked(Opcode::Text, text.as_bytes());
        self.unsent.borrow_mut().extend(frame);
        let (tell, told) = oneshot::channel();
        self.unanswered.borrow_mut().insert(id, tell);
        self.stirred.notify_one();
        match told.await {
            Ok(answer) => answer.map_err(Failure::Failed),
            Err(_) => Err(Failure::Failed("the socket that asks is gone".into())),
        }
    }

    /// Sends what is to be sent and reads what comes, until it is enough or the socket is over: then it says why.
    pub async fn talk(
        &self,
        mut socket: Socket,
        run: &Run,
        closing: &CancellationToken,
    ) -> Option<String> {
        let why = loop {
            socket.push(&mut self.unsent.borrow_mut());
            let mut close = None;
            let sent_and_read = async {
                socket.flush().await?;
                let on = |incoming: Incoming| match incoming {
                    Incoming::Text(text) => self.on_text(text),
                    Incoming::Close(why) => close = Some(why),
                    Incoming::Ping => {}
                };
                socket.read(&run.buffer, on).await
            };
            let read = tokio::select! {
                biased;
                read = sent_and_read => read,
                () = self.stirred.notified() => continue,
                () = closing.cancelled() => {
                    socket.close().await;
                    return None;
                }
            };
            match (read, close) {
                (_, Some(close)) => break format!("the node closed a socket that asks: {close}"),
                (Ok(Some(_)), None) => {}
                (Ok(None), None) => break "the connection of a socket that asks ended".to_owned(),
                (Err(error), None) => break format!("a socket that asks broke: {error:#}"),
            }
        };
        // Whoever waits for an answer learns that there will be none.
        self.unanswered.borrow_mut().clear();
        Some(why)
    }

    fn on_text(&self, text: &[u8]) {
        // Most of the rest are publications of others.
        let Ok(answer) = serde_json::from_slice::<Answer>(text) else {
            return;
        };
        let Some(tell) = (answer.id).and_then(|id| self.unanswered.borrow_mut().remove(&id)) else {
            return;
        };
        let _ = match answer.event {
            ACK => tell.send(Ok(())),
            ERROR => tell.send(Err(refused(&answer.data))),
            _ => Ok(()),
        };
    }
}

fn refused(data: &Value) -> String {
    let code = data["code"].as_str().unwrap_or("-");
    let message = data["message"].as_str().unwrap_or("-");
    let (what, rate, right) = match data["event"].as_str() {
        Some("unisono:join") => (
            "join",
            ". Raise sockets.join_burst",
            ". Let clients join rooms of that name, and raise sockets.rooms_per_socket where it is below 101",
        ),
        _ => (
            "publication",
            ". Publish with --by http, or raise sockets.message_rate",
            ". Publish with --by http, or let clients publish to the room",
        ),
    };
    let hint = match code {
        "rate_limited" => rate,
        "forbidden" => right,
        _ => "",
    };
    format!("the node refuses a {what}: {message} ({code}){hint}")
}
