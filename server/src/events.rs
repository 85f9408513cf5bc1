//! What an application outside the process is told and asked: over HTTP, where `hooks.url` is set, and over NATS.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use cluster::{AskError, Budget, Cluster, Permit};
use futures_util::future::Either;
use proto::json::check_data;
use proto::{Close, NodeId, Payload, RoomName, SocketId, UserName};
use serde::Deserialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use crate::api::time;
use crate::hooks::{ErrorText, HookAnswer, HookEvent, Hooks};
use crate::rules::Lifecycle;
use crate::shared::now_ms;

/// The way to the application. Cheap to clone; it never waits.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    node: NodeId,
    cluster: Cluster,
    budget: Budget,
    hooks: Option<Hooks>,
    timeout: Duration,
    last: AtomicU64,
}

/// Something that happened.
pub struct Event<'a> {
    /// What.
    pub kind: Kind<'a>,
    /// To which socket; none where it happened to a room.
    pub socket: Option<SocketId>,
    /// In which room.
    pub room: &'a RoomName,
    /// Whose socket it is.
    pub user: Option<&'a UserName>,
}

/// What happened.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// A socket is there.
    Opened,
    /// It is gone.
    Closed(&'a Close),
    /// It became a member.
    Joined,
    /// It is none any more.
    Left,
    /// The room has its first member in the cluster.
    Occupied,
    /// The room has lost its last member in the cluster.
    Vacated,
    /// A client sent something.
    Message(&'a Payload),
}

/// Why a client gets no ack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAck {
    /// The application says no, and why.
    Failed(String),
    /// It is more than the bus takes.
    TooLarge,
    /// The application is not there.
    Unavailable(&'static str),
}

const NOBODY: NoAck = NoAck::Unavailable("no application listens");
const AWAY: NoAck = NoAck::Unavailable("the application cannot be reached");
const BUSY: NoAck = NoAck::Unavailable("too much is on its way");
const LATE: NoAck = NoAck::Unavailable("the application does not answer");

impl Events {
    /// `timeout` is how long an application on NATS may take over an answer.
    pub fn new(cluster: Cluster, budget: Budget, hooks: Option<Hooks>, timeout: Duration) -> Self {
        Self(Arc::new(Inner {
            node: cluster.node(),
            cluster,
            budget,
            hooks,
            timeout,
            last: AtomicU64::new(0),
        }))
    }

    /// Tells the application, over every way that there is. What of one socket is told by one caller arrives in
    /// the order of the calls.
    ///
    /// # Errors
    ///
    /// When there is no way just now: it is lost, and counted.
    pub fn tell(&self, event: &Event) -> Result<(), NoAck> {
        let (id, json) = self.write(event);
        let mut told = Err(NOBODY);
        if !self.0.cluster.alone() {
            told = self.publish(event.kind.word(), json.clone());
        }
        if let Some(hooks) = &self.0.hooks {
            let sent = hooks.send(HookEvent {
                id: id.into(),
                key: event.key(),
                from_client: event.is_from_client(),
                json,
                answer: None,
            });
            // The hooks count what they cannot deliver.
            return sent.map_err(|_| BUSY);
        }
        if self.0.cluster.alone() {
            count_lost();
        }
        told
    }

    /// As [`Events::tell`], and waits for the answer: that of the HTTP endpoint, where there is one, or else the
    /// first over NATS.
    pub fn ask(&self, event: &Event) -> impl Future<Output = Result<Option<Bytes>, NoAck>> + use<> {
        let (id, json) = self.write(event);
        let kind = event.kind.word();
        let timeout = self.0.timeout;
        if let Some(hooks) = &self.0.hooks {
            if !self.0.cluster.alone() {
                let _ = self.publish(kind, json.clone());
            }
            let (sender, receiver) = oneshot::channel();
            // Without room for it, who waits gets its answer from there.
            let _ = hooks.send(HookEvent {
                id: id.into(),
                key: event.key(),
                from_client: event.is_from_client(),
                json,
                answer: Some(sender),
            });
            let answer = tokio::time::timeout(hooks.patience(), receiver);
            return Either::Left(async {
                match answer.await {
                    Ok(Ok(HookAnswer::Ack(data))) => Ok(data),
                    Ok(Ok(HookAnswer::Failed(why))) => Err(NoAck::Failed(why)),
                    Ok(Ok(HookAnswer::Unavailable(why))) => Err(NoAck::Unavailable(why)),
                    Ok(Err(_)) => Err(AWAY),
                    Err(_) => Err(LATE),
                }
            });
        }
        let alone = self.0.cluster.alone();
        let permit = self.permit(&json);
        let asked = permit.map(|permit| self.0.cluster.ask(kind, json, permit));
        Either::Right(async move {
            let asking = async {
                match alone {
                    true => Err(NOBODY),
                    false => Ok(asked?.await?),
                }
            };
            match tokio::time::timeout(timeout, asking).await {
                Ok(Ok(answer)) => read_answer(&answer),
                Ok(Err(lost)) => {
                    count_lost();
                    Err(lost)
                }
                Err(_) => Err(LATE),
            }
        })
    }

    /// How many events wait to be told over HTTP.
    pub fn waiting(&self) -> usize {
        self.0.hooks.as_ref().map_or(0, Hooks::waiting)
    }

    fn publish(&self, kind: &'static str, json: Bytes) -> Result<(), NoAck> {
        let permit = self.permit(&json);
        let told = permit.and_then(|permit| Ok(self.0.cluster.tell(kind, json, permit)?));
        if told.is_err() {
            count_lost();
        }
        told
    }

    fn permit(&self, json: &Bytes) -> Result<Permit, NoAck> {
        if !self.0.cluster.fits(json.len()) {
            return Err(NoAck::TooLarge);
        }
        self.0.budget.try_acquire(json.len()).ok_or(BUSY)
    }

    /// The event as JSON, with its id.
    fn write(&self, event: &Event) -> (String, Bytes) {
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{number}", self.0.node);
        let json = event.json(&id, self.0.node, &time(now_ms()));
        (id, json)
    }
}

impl Kind<'_> {
    /// What an application has to ask for in order to be told.
    pub fn lifecycle(&self) -> Option<Lifecycle> {
        match self {
            Self::Opened => Some(Lifecycle::Opened),
            Self::Closed(_) => Some(Lifecycle::Closed),
            Self::Joined => Some(Lifecycle::Joined),
            Self::Left => Some(Lifecycle::Left),
            Self::Occupied => Some(Lifecycle::Occupied),
            Self::Vacated => Some(Lifecycle::Vacated),
            Self::Message(_) => None,
        }
    }

    /// The word for it, on the wire and in subjects.
    fn word(&self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed(_) => "closed",
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Occupied => "occupied",
            Self::Vacated => "vacated",
            Self::Message(_) => "message",
        }
    }
}

impl Event<'_> {
    fn is_from_client(&self) -> bool {
        matches!(self.kind, Kind::Message(_))
    }

    /// Events of one key stay in order: those of one socket, or of one room.
    fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self.socket {
            Some(socket) => socket.as_bytes().hash(&mut hasher),
            None => self.room.hash(&mut hasher),
        }
        hasher.finish()
    }

    fn json(&self, id: &str, node: NodeId, at: &str) -> Bytes {
        let mut text = Vec::with_capacity(320);
        let mut serializer = serde_json::Serializer::new(&mut text);
        let written = self.serialize(&mut serializer, id, node, at);
        written.expect("writing to memory cannot fail");
        text.into()
    }

    fn serialize<S: Serializer>(
        &self,
        serializer: S,
        id: &str,
        node: NodeId,
        at: &str,
    ) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", self.kind.word())?;
        map.serialize_entry("id", id)?;
        if let Some(socket) = self.socket {
            map.serialize_entry("socket", &socket.to_string())?;
        }
        map.serialize_entry("room", self.room.as_str())?;
        if self.socket.is_some() {
            map.serialize_entry("user", &self.user.map(UserName::as_str))?;
        }
        match self.kind {
            Kind::Message(Payload::Event { name, data }) => {
                map.serialize_entry("event", name.as_str())?;
                if let Some(data) = data {
                    // It was JSON when the client's message was read.
                    let data: Result<&RawValue, _> = serde_json::from_slice(data);
                    map.serialize_entry("data", &data.unwrap_or(RawValue::NULL))?;
                }
            }
            Kind::Message(Payload::Text(text)) => {
                let text = std::str::from_utf8(text.as_bytes()).unwrap_or_default();
                map.serialize_entry("text", text)?;
            }
            Kind::Message(Payload::Binary(bytes)) => {
                map.serialize_entry("binary", &BASE64_STANDARD.encode(bytes))?;
            }
            Kind::Closed(close) => {
                map.serialize_entry("code", &close.code)?;
                map.serialize_entry("reason", &close.reason)?;
            }
            _ => {}
        }
        map.serialize_entry("at", at)?;
        map.serialize_entry("node", &node.to_string())?;
        map.end()
    }
}

fn count_lost() {
    metrics::counter!("unisono_events_lost_total").increment(1);
}

impl From<AskError> for NoAck {
    fn from(error: AskError) -> Self {
        match error {
            AskError::NobodyListens => NOBODY,
            AskError::NotSent => AWAY,
        }
    }
}

/// An answer that is an error: an object of that alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorAnswer {
    error: ErrorText,
}

/// What an application on NATS answered: nothing, JSON for the ack, or an error.
fn read_answer(answer: &Bytes) -> Result<Option<Bytes>, NoAck> {
    if answer.is_empty() {
        return Ok(None);
    }
    if let Ok(ErrorAnswer { error }) = serde_json::from_slice(answer) {
        return Err(NoAck::Failed(error.into()));
    }
    match serde_json::from_slice::<&RawValue>(answer) {
        Ok(json) => match check_data(json.get().as_bytes()) {
            Ok(()) => Ok(Some(answer.slice_ref(json.get().as_bytes()))),
            Err(error) => Err(NoAck::Failed(format!("the application's answer {error}"))),
        },
        Err(_) => {
            let why = "the application answered with something else than JSON";
            Err(NoAck::Failed(why.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::EventName;

    #[test]
    fn an_event_reads_as_it_should() {
        let node = NodeId::new(7);
        let room = RoomName::parse("/a").unwrap();
        let user = UserName::parse("alice").unwrap();
        let payload = Payload::Event {
            name: EventName::parse("say \"hi\"").unwrap(),
            data: Some(Bytes::from_static(b"{ \"big\": 12345678901234567890123 }")),
        };
        let socket = SocketId::new(node, 0, 1);
        let message = Event {
            kind: Kind::Message(&payload),
            socket: Some(socket),
            room: &room,
            user: Some(&user),
        };
        let json = message.json("1", node, "now");
        let expected = format!(
            r#"{{"type":"message","id":"1","socket":"{socket}","room":"/a","user":"alice","event":"say \"hi\"","data":{{ "big": 12345678901234567890123 }},"at":"now","node":"000000000007"}}"#
        );
        assert_eq!(json, expected);
        let vacated = Event {
            kind: Kind::Vacated,
            socket: None,
            user: None,
            ..message
        };
        let json = vacated.json("2", node, "now");
        assert_eq!(
            json,
            r#"{"type":"vacated","id":"2","room":"/a","at":"now","node":"000000000007"}"#
        );
    }

    #[test]
    fn answers_are_acks_or_errors() {
        let read = |text: &'static str| read_answer(&Bytes::from_static(text.as_bytes()));
        assert_eq!(read(""), Ok(None));
        assert_eq!(
            read(" {\"a\": 1}\n"),
            Ok(Some(Bytes::from_static(b"{\"a\": 1}")))
        );
        assert_eq!(read("null"), Ok(Some(Bytes::from_static(b"null"))));
        for text in [
            r#"{"error":"no"}"#,
            r#"{"error":{"code":"x","message":"no"}}"#,
        ] {
            assert_eq!(read(text), Err(NoAck::Failed("no".to_owned())), "{text}");
        }
        assert!(matches!(read(r#"{"error":"no","more":1}"#), Ok(Some(_))));
        assert!(matches!(read("garbage"), Err(NoAck::Failed(_))));
        assert!(matches!(read("1e999"), Err(NoAck::Failed(_))));
    }
}
