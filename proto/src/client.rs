//! The native protocol: JSON text that clients send and receive.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::envelope::Status;
use crate::json::check_data;
use crate::name::{NameError, SERVER_EVENT_PREFIX};
use crate::{EventName, NodeId, RoomName, SocketId};

/// The subprotocol that is chosen when a client offers it.
pub const SUBPROTOCOL: &str = "unisono.v1";

/// Most bytes in the `id` of a client's message.
pub const CLIENT_ID_BYTES_MAX: usize = 128;

/// A message of a client, understood.
#[derive(Debug, PartialEq)]
pub struct ClientMessage {
    /// Asks for exactly one ack or error.
    pub id: Option<ClientId>,
    /// What the client wants.
    pub command: Command,
}

/// What a client wants.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// An event of the application's own, subject to the room's `client_events` rule.
    Event {
        /// The event.
        name: EventName,
        /// JSON text.
        data: Option<Bytes>,
    },
    /// Become a member.
    Join(RoomName),
    /// Stop being a member.
    Leave(RoomName),
    /// Send to a room.
    Publish {
        /// The room.
        room: RoomName,
        /// The event.
        name: EventName,
        /// JSON text.
        data: Option<Bytes>,
    },
    /// Send to sockets.
    Emit {
        /// Ids, as the client wrote them: one that is no id is answered as such.
        to: Vec<String>,
        /// The event.
        name: EventName,
        /// JSON text.
        data: Option<Bytes>,
    },
    /// Have the data back.
    Ping(Option<Bytes>),
    /// Go on with a fresh token.
    Refresh(String),
}

/// The `id` of a client's message, as the JSON text that the client wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientId(Box<str>);

/// Why a message was refused, as the client reads it in `unisono:error`.
#[derive(Debug, PartialEq)]
pub struct Refusal {
    /// The client's own id, if it could be read.
    pub id: Option<ClientId>,
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// The event that was refused, if it could be read.
    pub event: Option<String>,
}

/// For programs: what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// Not JSON.
    BadJson,
    /// JSON, but not a message.
    BadMessage,
    /// No such event.
    UnknownEvent,
    /// A rule says no.
    Forbidden,
    /// Not the name of a room, or of a room that exists.
    BadRoom,
    /// Larger than may be sent on.
    TooLarge,
    /// Only for members.
    NotJoined,
    /// Not possible just now.
    Unavailable,
    /// Too many messages in too short a time.
    RateLimited,
    /// The application's handler could not do it, and says so.
    HandlerFailed,
}

impl ErrorCode {
    /// The word for it on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadJson => "bad_json",
            Self::BadMessage => "bad_message",
            Self::UnknownEvent => "unknown_event",
            Self::Forbidden => "forbidden",
            Self::BadRoom => "bad_room",
            Self::TooLarge => "too_large",
            Self::NotJoined => "not_joined",
            Self::Unavailable => "unavailable",
            Self::RateLimited => "rate_limited",
            Self::HandlerFailed => "handler_failed",
        }
    }
}

// === reading ===

/// The outer object. Fields stay text until their turn comes, so that a message which is refused for
/// one of them can still be answered with its `id`.
#[derive(Deserialize)]
struct Outer<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `room`")]
struct RoomData {
    room: String,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `token`")]
struct RefreshData {
    token: String,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `room` and `event`")]
struct PublishData<'a> {
    room: String,
    event: String,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `to` and `event`")]
struct EmitData<'a> {
    to: OneOrMany,
    event: String,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

/// One text or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "invalid `to`, expected an id or a list of ids")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl From<OneOrMany> for Vec<String> {
    fn from(texts: OneOrMany) -> Self {
        match texts {
            OneOrMany::One(text) => vec![text],
            OneOrMany::Many(texts) => texts,
        }
    }
}

/// Reads a JSON object. `serde` alone would also take an array, for the fields in their order.
///
/// # Errors
///
/// Those of [`serde_json::from_str`], and one of the category `Data` when it is no object.
pub fn from_object<'a, T: Deserialize<'a>>(text: &'a str) -> serde_json::Result<T> {
    if text.trim_start().starts_with('[') {
        // Nonsense behind the bracket is worse than an array.
        serde_json::from_str::<serde::de::IgnoredAny>(text)?;
        return Err(serde::de::Error::custom("expected an object, not an array"));
    }
    serde_json::from_str(text)
}

/// For `deserialize_with`: tells `"data":null` from no data. `Option` alone would take both for `None`.
///
/// # Errors
///
/// Those of `T`.
pub fn present<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(deserializer).map(Some)
}

impl ClientMessage {
    /// Understands the text of a frame.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let outer: Outer = from_object(text).map_err(|error| Refusal {
            id: None,
            code: match error.classify() {
                serde_json::error::Category::Data => ErrorCode::BadMessage,
                _ => ErrorCode::BadJson,
            },
            message: error.to_string(),
            event: None,
        })?;
        let refuse = |code, message: String| Refusal {
            id: None,
            code,
            message,
            event: None,
        };
        let id = outer
            .id
            .map(ClientId::parse)
            .transpose()
            .map_err(|message| refuse(ErrorCode::BadMessage, message.to_owned()))?;
        let command = Self::command(&outer).map_err(|(code, message, event)| Refusal {
            id: id.clone(),
            event,
            ..refuse(code, message)
        })?;
        Ok(Self { id, command })
    }

    fn command(outer: &Outer) -> Result<Command, (ErrorCode, String, Option<String>)> {
        if let (Some(channel), None) = (outer.channel, outer.data) {
            let room = serde_json::from_str::<String>(channel.get())
                .map_err(|_| (ErrorCode::BadRoom, "`channel` is a text".into(), None))?;
            return room_name(&room).map(Command::Join).map_err(with(None));
        }
        let Some(event) = outer.event else {
            let message = "`event` is missing".to_owned();
            return Err((ErrorCode::BadMessage, message, None));
        };
        let event: String = serde_json::from_str(event.get())
            .map_err(|_| (ErrorCode::BadMessage, "`event` is a text".into(), None))?;
        let name = event_name(&event).map_err(with(None))?;
        let command = match event.strip_prefix(SERVER_EVENT_PREFIX) {
            None => for_others(outer.data).map(|data| Command::Event { name, data }),
            Some(verb) => Self::server_command(verb, outer.data),
        };
        command.map_err(with(Some(event)))
    }

    fn server_command(verb: &str, data: Option<&RawValue>) -> Result<Command, (ErrorCode, String)> {
        match verb {
            "ping" => Ok(Command::Ping(data.map(json_text))),
            "join" => Ok(Command::Join(room_name(&read::<RoomData>(data)?.room)?)),
            "leave" => Ok(Command::Leave(room_name(&read::<RoomData>(data)?.room)?)),
            "refresh" => Ok(Command::Refresh(read::<RefreshData>(data)?.token)),
            "publish" => {
                let PublishData { room, event, data } = read(data)?;
                Ok(Command::Publish {
                    room: room_name(&room)?,
                    name: user_event_name(&event)?,
                    data: for_others(data)?,
                })
            }
            "emit" => {
                let EmitData { to, event, data } = read(data)?;
                Ok(Command::Emit {
                    to: to.into(),
                    name: user_event_name(&event)?,
                    data: for_others(data)?,
                })
            }
            _ => Err((
                ErrorCode::UnknownEvent,
                "the server has no such event".to_owned(),
            )),
        }
    }
}

fn with(
    event: Option<String>,
) -> impl FnOnce((ErrorCode, String)) -> (ErrorCode, String, Option<String>) {
    |(code, message)| (code, message, event)
}

fn read<'a, T: Deserialize<'a>>(data: Option<&'a RawValue>) -> Result<T, (ErrorCode, String)> {
    let text = data.map_or("null", RawValue::get);
    from_object(text).map_err(|error| (ErrorCode::BadMessage, format!("in `data`: {error}")))
}

fn room_name(text: &str) -> Result<RoomName, (ErrorCode, String)> {
    RoomName::parse(text).map_err(|error| (ErrorCode::BadRoom, error.to_string()))
}

fn event_name(text: &str) -> Result<EventName, (ErrorCode, String)> {
    EventName::parse(text).map_err(|error| (ErrorCode::BadMessage, error.to_string()))
}

fn user_event_name(text: &str) -> Result<EventName, (ErrorCode, String)> {
    EventName::parse_user(text).map_err(|error| match error {
        NameError::Reserved => (ErrorCode::Forbidden, error.to_string()),
        error => (ErrorCode::BadMessage, error.to_string()),
    })
}

/// The data of what others are sent, who have to be able to read it.
fn for_others(data: Option<&RawValue>) -> Result<Option<Bytes>, (ErrorCode, String)> {
    let Some(data) = data else {
        return Ok(None);
    };
    check_data(data.get().as_bytes())
        .map_err(|error| (ErrorCode::BadMessage, format!("`data` {error}")))?;
    Ok(Some(json_text(data)))
}

fn json_text(value: &RawValue) -> Bytes {
    Bytes::copy_from_slice(value.get().as_bytes())
}

impl Command {
    /// The event of the server's that asks for it; none for an event of the application's.
    pub fn server_event(&self) -> Option<&'static str> {
        match self {
            Self::Event { .. } => None,
            Self::Join(_) => Some("unisono:join"),
            Self::Leave(_) => Some("unisono:leave"),
            Self::Publish { .. } => Some("unisono:publish"),
            Self::Emit { .. } => Some("unisono:emit"),
            Self::Ping(_) => Some("unisono:ping"),
            Self::Refresh(_) => Some("unisono:refresh"),
        }
    }
}

impl ClientId {
    fn parse(value: &RawValue) -> Result<Self, &'static str> {
        let text = value.get();
        let string = text.starts_with('"');
        let integer = text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
        if !(string || integer) {
            return Err("`id` is a text or an integer");
        }
        if text.len() > CLIENT_ID_BYTES_MAX {
            return Err("`id` has at most 128 bytes");
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === writing ===

/// The text of an event as clients read it: `event`, `data`, `room`, `from`, each only where there is one.
pub fn event_text(
    name: &EventName,
    data: Option<&[u8]>,
    room: Option<&RoomName>,
    from: Option<SocketId>,
) -> Vec<u8> {
    let data_bytes = data.map_or(0, <[u8]>::len);
    let mut text = Vec::with_capacity(data_bytes + name.as_str().len() + 96);
    text.extend_from_slice(b"{\"event\":");
    push_json(&mut text, name.as_str());
    if let Some(data) = data {
        text.extend_from_slice(b",\"data\":");
        text.extend_from_slice(data);
    }
    if let Some(room) = room {
        text.extend_from_slice(b",\"room\":");
        push_json(&mut text, room.as_str());
    }
    if let Some(from) = from {
        text.extend_from_slice(b",\"from\":");
        push_json(&mut text, &from.to_string());
    }
    text.push(b'}');
    text
}

fn push_json(text: &mut Vec<u8>, value: &str) {
    serde_json::to_writer(text, value).expect("writing a text to memory cannot fail");
}

/// `unisono:open`, the greeting.
pub fn open_text(id: SocketId, room: &RoomName, node: NodeId, ping_interval_s: f64) -> String {
    // A whole number of seconds reads as one.
    let ping_interval = match ping_interval_s.fract() {
        0.0 => serde_json::json!(ping_interval_s as u64),
        _ => serde_json::json!(ping_interval_s),
    };
    format!(
        r#"{{"event":"unisono:open","data":{{"id":"{id}","room":{},"node":"{node}","ping_interval":{ping_interval}}}}}"#,
        json(room.as_str()),
    )
}

/// `unisono:ack`; `data` is JSON text.
pub fn ack_text(id: &ClientId, data: Option<&str>) -> String {
    match data {
        Some(data) => format!(r#"{{"event":"unisono:ack","id":{id},"data":{data}}}"#),
        None => format!(r#"{{"event":"unisono:ack","id":{id}}}"#),
    }
}

/// `unisono:error`.
pub fn error_text(refusal: &Refusal) -> String {
    let id = refusal
        .id
        .as_ref()
        .map_or_else(String::new, |id| format!(r#","id":{id}"#));
    let event = refusal
        .event
        .as_ref()
        .map_or_else(String::new, |event| format!(r#","event":{}"#, json(event)));
    format!(
        r#"{{"event":"unisono:error"{id},"data":{{"code":"{}","message":{}{event}}}}}"#,
        refusal.code.as_str(),
        json(&refusal.message),
    )
}

/// `unisono:gap`: something may have been missed in the room, or anywhere.
pub fn gap_text(room: Option<&RoomName>, reason: &str) -> String {
    let room = room.map_or_else(|| "null".to_owned(), |room| json(room.as_str()));
    format!(
        r#"{{"event":"unisono:gap","data":{{"room":{room},"reason":{}}}}}"#,
        json(reason)
    )
}

/// `unisono:closing`: the socket is about to be closed, and when to come back, where that is known.
pub fn closing_text(code: u16, reason: &str, reconnect_in_ms: Option<u64>) -> String {
    let reconnect_in = reconnect_in_ms.map_or_else(String::new, |reconnect_in_ms| {
        format!(r#","reconnect_in_ms":{reconnect_in_ms}"#)
    });
    format!(
        r#"{{"event":"unisono:closing","data":{{"code":{code},"reason":{}{reconnect_in}}}}}"#,
        json(reason)
    )
}

/// The data of an ack that names a room.
pub fn room_data(room: &RoomName) -> String {
    format!(r#"{{"room":{}}}"#, json(room.as_str()))
}

/// The data of an ack to `unisono:emit`; ids as the client wrote them.
pub fn results_data(results: &[(String, Status)]) -> String {
    let results: serde_json::Map<_, _> = results
        .iter()
        .map(|(id, status)| (id.clone(), status.as_str().into()))
        .collect();
    serde_json::json!({ "results": results }).to_string()
}

fn json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refused(text: &str) -> (ErrorCode, Option<String>, Option<String>) {
        let refusal = ClientMessage::parse(text).expect_err(text);
        let id = refusal.id.map(|id| id.to_string());
        (refusal.code, id, refusal.event)
    }

    fn room(text: &str) -> RoomName {
        RoomName::parse(text).unwrap()
    }

    #[test]
    fn data_is_not_touched() {
        for data in [
            "{}",
            "null",
            "[ 1,\t2 ]",
            "1.0e5",
            "123456789012345678901234567890",
            r#""\u6728\/""#,
        ] {
            let text = format!(r#"{{"event":"e", "data": {data} , "id":7}}"#);
            let message = ClientMessage::parse(&text).unwrap();
            assert_eq!(message.id.unwrap().to_string(), "7");
            let Command::Event {
                name,
                data: Some(kept),
            } = message.command
            else {
                panic!("an event with data");
            };
            assert_eq!(kept, data);
            let written = event_text(&name, Some(&kept), None, None);
            assert_eq!(
                String::from_utf8(written).unwrap(),
                format!(r#"{{"event":"e","data":{data}}}"#)
            );
        }
        let none = ClientMessage::parse(r#"{"event":"e"}"#).unwrap();
        assert!(matches!(none.command, Command::Event { data: None, .. }));
    }

    #[test]
    fn each_command_is_understood() {
        let parse = |text| ClientMessage::parse(text).unwrap().command;
        assert_eq!(
            parse(r#"{"event":"unisono:join","data":{"room":"a.b*"}}"#),
            Command::Join(room("a.b*"))
        );
        assert_eq!(
            parse(r#"{"channel":"orders.1","event":"Message"}"#),
            Command::Join(room("orders.1"))
        );
        assert_eq!(
            parse(r#"{"event":"unisono:leave","data":{"room":">"}}"#),
            Command::Leave(room(">"))
        );
        assert!(matches!(
            parse(r#"{"event":"unisono:publish","data":{"room":"/r","event":"e","data":null}}"#),
            Command::Publish { data: Some(data), .. } if data == "null"
        ));
        assert!(matches!(
            parse(r#"{"event":"unisono:emit","data":{"to":["a","b"],"event":"e"}}"#),
            Command::Emit { to, data: None, .. } if to == ["a", "b"]
        ));
        assert_eq!(
            parse(r#"{"event":"unisono:ping","data":[1]}"#),
            Command::Ping(Some(Bytes::from_static(b"[1]")))
        );
        // With data it is a message like any other.
        assert!(matches!(
            parse(r#"{"channel":"x","event":"e","data":1}"#),
            Command::Event { .. }
        ));
    }

    #[test]
    fn a_refusal_says_what_and_to_whom() {
        use ErrorCode::*;
        let long = "x".repeat(201);
        assert_eq!(refused("nonsense").0, BadJson);
        assert_eq!(refused("").0, BadJson);
        assert_eq!(refused(r#"{"event":"e""#).0, BadJson);
        assert_eq!(refused("[]").0, BadMessage);
        assert_eq!(refused(r#"["e"]"#).0, BadMessage);
        assert_eq!(refused(r#"["e""#).0, BadJson);
        let join = r#"{"event":"unisono:join","data":["r"]}"#;
        assert_eq!(refused(join).0, BadMessage);
        assert_eq!(refused("5").0, BadMessage);
        assert_eq!(refused(r#"{"data":1}"#).0, BadMessage);
        assert_eq!(refused(r#"{"event":"a","event":"b"}"#).0, BadMessage);
        assert_eq!(
            refused(r#"{"event":5,"id":"a"}"#),
            (BadMessage, Some(r#""a""#.into()), None)
        );
        assert_eq!(refused(r#"{"event":"e","id":1.5}"#).0, BadMessage);
        assert_eq!(refused(r#"{"event":"e","id":{}}"#).0, BadMessage);
        assert_eq!(
            refused(&format!(r#"{{"event":"{long}","id":1}}"#)),
            (BadMessage, Some("1".into()), None)
        );
        assert_eq!(
            refused(r#"{"event":"unisono:nope","id":1}"#),
            (UnknownEvent, Some("1".into()), Some("unisono:nope".into()))
        );
        let join = |room: &str| format!(r#"{{"event":"unisono:join","data":{{"room":"{room}"}}}}"#);
        assert_eq!(refused(&join(&long)).0, BadRoom);
        assert_eq!(refused(&join("")).0, BadRoom);
        assert_eq!(refused(&join("a\\nb")).0, BadRoom);
        assert_eq!(refused(r#"{"event":"unisono:join"}"#).0, BadMessage);
        assert_eq!(
            refused(r#"{"event":"unisono:emit","data":{"to":[],"event":"unisono:gap"}}"#).0,
            Forbidden
        );
        assert_eq!(
            refused(r#"{"event":"e","data":"\ud800","id":1}"#),
            (BadMessage, Some("1".into()), Some("e".into()))
        );
    }

    #[test]
    fn data_that_others_cannot_read_is_refused() {
        let deep = "[".repeat(20_000) + &"]".repeat(20_000);
        for (data, why) in [
            (&*deep, "`data` is nested too deeply, at most 124 levels"),
            (r#"["\udc00"]"#, "`data` has a lone surrogate"),
            ("1e999", "`data` has a number beyond a double"),
            (
                r#"{"\u0000":1}"#,
                "`data` has a name that begins with U+0000",
            ),
        ] {
            for message in [
                format!(r#"{{"event":"e","data":{data}}}"#),
                format!(
                    r#"{{"event":"unisono:publish","data":{{"room":"r","event":"e","data":{data}}}}}"#
                ),
                format!(
                    r#"{{"event":"unisono:emit","data":{{"to":[],"event":"e","data":{data}}}}}"#
                ),
            ] {
                let refusal = ClientMessage::parse(&message).expect_err(why);
                assert_eq!(
                    (refusal.code, &*refusal.message),
                    (ErrorCode::BadMessage, why)
                );
            }
            // Nobody but the sender gets it.
            let ping = format!(r#"{{"event":"unisono:ping","data":{data}}}"#);
            assert!(ClientMessage::parse(&ping).is_ok(), "{why}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_json(name in "\\PC{1,40}", from: u64, text in "\\PC{0,40}") {
            let name = EventName::parse(&name).unwrap();
            let from = SocketId::new(NodeId::new(from), 0, from);
            let data = json(&text);
            let written = event_text(&name, Some(data.as_bytes()), Some(&room("/\"r\"")), Some(from));
            let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
            prop_assert_eq!(read, serde_json::json!({
                "event": name.as_str(), "data": text, "room": "/\"r\"", "from": from.to_string(),
            }));
        }

        #[test]
        fn any_text_is_understood_or_refused(text in "\\PC{0,200}") {
            let _ = ClientMessage::parse(&text);
        }
    }
}
