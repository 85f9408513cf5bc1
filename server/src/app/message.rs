//! What handlers are given, and what they give back.

use std::cell::OnceCell;
use std::fmt;

use bytes::Bytes;
use cluster::Sent;
use proto::envelope::Status;
use proto::{EventName, SocketId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;

/// An event that a client sent.
///
/// ```
/// use unisono_server::{App, HandlerError, Message, Room, Socket};
/// # use serde_json::json;
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// #[derive(serde::Deserialize)]
/// struct Say {
///     text: String,
/// }
///
/// async fn say(_: Socket, message: Message) -> Result<String, HandlerError> {
///     let say: Say = message.data()?;
///     let color = message.get("style.color", "black".to_owned());
///     Ok(format!("{} in {color}", say.text))
/// }
/// let room = Room::new("/").on("say", say);
/// # let node = TestNode::start(App::new().room(room)).await;
/// # let mut client = node.connect("/").await;
/// # let data = json!({"text": "hi", "style": {"color": "red"}});
/// # assert_eq!(client.ask("say", data).await, json!("hi in red"));
/// # assert_eq!(client.ask("say", json!({"text": "hi"})).await, json!("hi in black"));
/// # assert_eq!(client.ask_error("say", json!({"txt": 1})).await["code"], "handler_failed");
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Message {
    name: EventName,
    data: Option<Bytes>,
    value: OnceCell<Value>,
}

/// A frame of a client in a room that speaks no JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A text frame.
    Text(String),
    /// A binary frame.
    Binary(Bytes),
}

/// What a handler may return: it becomes the ack, or the `unisono:error`, of a client that asked for one.
///
/// `()` for an ack without data; [`Json`], simple values and what became of a send for one with; a [`Result`]
/// for either. So a handler may end with a verb of `Socket` or `Unisono`:
///
/// ```
/// use unisono_server::{App, Message, Room, Socket};
/// # use serde_json::json;
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// let room = Room::new("/")
///     .on_open(async |socket: Socket| socket.emit("welcome", ()))
///     .on("say", async |socket: Socket, message: Message| {
///         socket.publish("said", message.json()).await
///     });
/// # let node = TestNode::start(App::new().room(room)).await;
/// # let mut client = node.connect("/").await;
/// # client.event("welcome").await;
/// # assert_eq!(client.ask("say", "hi").await, "sent");
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no reply of a handler",
    note = "a value of your own becomes one as `Json(value)`, where it is `serde::Serialize`"
)]
pub trait Reply {
    /// The data of the ack, as JSON text.
    ///
    /// # Errors
    ///
    /// What the client is told instead.
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError>;
}

/// Any value, as the data of an ack.
///
/// ```
/// use unisono_server::{Json, Reply};
///
/// assert_eq!(Json(vec![1, 2]).into_reply().unwrap().unwrap(), "[1,2]");
/// ```
#[derive(Clone, Debug)]
pub struct Json<T>(pub T);

/// Why a handler could not do what the client asked.
///
/// What is said with [`HandlerError::new`] is said to the client: a text, or an error that it may read. Any
/// other error, as `?` brings it here, is written to the log and the client learns only that the handler failed.
///
/// ```
/// use unisono_server::HandlerError;
///
/// fn seats(text: &str) -> Result<u8, HandlerError> {
///     let seats: u8 = text.parse().map_err(HandlerError::new)?;
///     if seats > 8 {
///         return Err(HandlerError::new("at most 8 seats"));
///     }
///     Ok(seats)
/// }
/// assert_eq!(seats("9").unwrap_err().message(), "at most 8 seats");
/// assert_eq!(seats("x").unwrap_err().message(), "invalid digit found in string");
///
/// fn menu() -> Result<String, HandlerError> {
///     Ok(std::fs::read_to_string("/no/such/menu")?)
/// }
/// assert_eq!(menu().unwrap_err().message(), "the handler failed");
/// ```
pub struct HandlerError {
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Message {
    pub(crate) fn new(name: EventName, data: Option<Bytes>) -> Self {
        Self {
            name,
            data,
            value: OnceCell::new(),
        }
    }

    pub(crate) fn event_name(&self) -> EventName {
        self.name.clone()
    }

    /// The name of the event.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The data, as a type of the application's. No data reads as `null`.
    ///
    /// # Errors
    ///
    /// When the data is not like that; the client is told in which way.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        let text = self.data.as_deref().unwrap_or(b"null");
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            // Where in the text it is would be of its data, which the client wrote as a part of more.
            let text = error.to_string();
            let what = text.split(" at line ").next().unwrap_or_default();
            HandlerError::new(format!("in `data`: {what}"))
        })
    }

    /// What is found at a path in the data, as `user.name` or `lines.0.text`; the default where there is
    /// nothing, or nothing of that type.
    pub fn get<T: DeserializeOwned>(&self, path: &str, default: T) -> T {
        let step = |value: &'_ Value, name: &str| match value {
            Value::Object(fields) => fields.get(name).cloned(),
            Value::Array(items) => items.get(name.parse::<usize>().ok()?).cloned(),
            _ => None,
        };
        let mut names = path.split('.');
        let first = names.next().and_then(|name| step(self.value(), name));
        let found = names.fold(first, |value, name| step(&value?, name));
        let read = found.and_then(|value| serde_json::from_value(value).ok());
        read.unwrap_or(default)
    }

    /// The data, to be looked into; `null` where there is none.
    pub fn value(&self) -> &Value {
        self.value.get_or_init(|| {
            let text = self.data.as_deref().unwrap_or(b"null");
            serde_json::from_slice(text).unwrap_or_default()
        })
    }

    /// The data as its JSON text, to be passed on as it is; `null` where there is none.
    pub fn json(&self) -> Box<RawValue> {
        let text = self.data.as_deref().unwrap_or(b"null");
        serde_json::from_slice(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
    }
}

impl HandlerError {
    /// An error whose text the client may read.
    pub fn new(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            source: None,
        }
    }

    /// What the client reads.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the log gets to read, where that is more.
    pub(crate) fn source(&self) -> Option<&(dyn std::error::Error + Send + Sync)> {
        self.source.as_deref()
    }
}

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> Self {
        Self {
            message: "the handler failed".to_owned(),
            source: Some(error.into()),
        }
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "{}: {source}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Reply for () {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        Ok(None)
    }
}

impl<T: Serialize> Reply for Json<T> {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        Ok(Some(serde_json::to_vec(&self.0)?.into()))
    }
}

impl Reply for Status {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        self.as_str().into_reply()
    }
}

impl Reply for Sent {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        let word = match self {
            Self::ToAll => "sent",
            Self::LocalOnly => "local_only",
        };
        word.into_reply()
    }
}

impl<T: Reply> Reply for Option<T> {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        self.map_or(Ok(None), T::into_reply)
    }
}

impl<T: Reply, E: Into<HandlerError>> Reply for Result<T, E> {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        self.map_err(Into::into)?.into_reply()
    }
}

macro_rules! reply_as_json {
    ($($type:ty),*) => {
        $(impl Reply for $type {
            fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
                Json(self).into_reply()
            }
        })*
    };
}

impl<T: Serialize> Reply for Vec<T> {
    fn into_reply(self) -> Result<Option<Bytes>, HandlerError> {
        Json(self).into_reply()
    }
}

reply_as_json!(
    Value,
    Box<RawValue>,
    String,
    &str,
    std::borrow::Cow<'_, str>,
    SocketId,
    bool,
    i8,
    i16,
    i32,
    i64,
    isize,
    u8,
    u16,
    u32,
    u64,
    usize,
    f32,
    f64
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_found_by_path() {
        let message = |data: &str| {
            let data = Some(Bytes::from(data.to_owned()));
            Message::new(EventName::parse("x").unwrap(), data)
        };
        let found = message(r#"{"a":{"b":[1,{"c":"d"}]},"n":null}"#);
        assert_eq!(found.get("a.b.1.c", String::new()), "d");
        assert_eq!(found.get("a.b.0", 0), 1);
        assert_eq!(found.get("a.b.7", 5), 5);
        assert_eq!(found.get("a.b", String::from("wrong type")), "wrong type");
        assert_eq!(found.get("n", Some(1)), None);
        assert_eq!(message("5").get("a", 7), 7);
        assert_eq!(message("5").data::<u8>().unwrap(), 5);
        let error = message(r#"{"a":"x"}"#).data::<std::collections::HashMap<String, u8>>();
        let error = error.unwrap_err();
        assert!(
            error.message().starts_with("in `data`: a: invalid type"),
            "{error}"
        );
        let none = Message::new(EventName::parse("x").unwrap(), None);
        assert_eq!(none.data::<Option<u8>>().unwrap(), None);
        assert_eq!(none.json().get(), "null");
    }
}
