//! What requests say. Unknown fields are refused by name.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use proto::client::{OneOrMany, present};
use proto::json::{check_data, speaks_for_server};
use proto::name::NameError;
use proto::{Close, EventName, Payload, RoomName, UserName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{ApiError, room_name};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Emit<'a> {
    pub(super) to: Option<OneOrMany>,
    pub(super) user: Option<String>,
    event: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    text: Option<String>,
    binary: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Publish<'a> {
    pub(super) room: Option<String>,
    pub(super) rooms: Option<Vec<String>>,
    event: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    text: Option<String>,
    binary: Option<String>,
    #[serde(default)]
    pub(super) except: Vec<String>,
    #[serde(default)]
    pub(super) confirm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Broadcast<'a> {
    event: Option<String>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    text: Option<String>,
    binary: Option<String>,
    #[serde(default)]
    pub(super) except: Vec<String>,
    #[serde(default)]
    pub(super) confirm: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disconnect {
    pub(super) to: Option<OneOrMany>,
    pub(super) room: Option<String>,
    pub(super) user: Option<String>,
    #[serde(default = "Disconnect::code_default")]
    code: u16,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    pub(super) after_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Membership {
    pub(super) to: Option<OneOrMany>,
    pub(super) user: Option<String>,
    pub(super) room: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Drain {
    pub(super) node: String,
}

/// Whom a request means.
pub(super) enum Whom {
    Sockets(Vec<String>),
    Room(RoomName),
    User(UserName),
}

/// What is to be sent: an event with data, or a bare frame.
pub(super) struct Content<'a> {
    event: Option<&'a str>,
    data: Option<&'a RawValue>,
    text: Option<&'a str>,
    binary: Option<&'a str>,
}

/// The longest delay of a disconnect: a day.
const AFTER_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

macro_rules! content {
    ($body:ident) => {
        impl $body<'_> {
            pub(super) fn content(&self) -> Content<'_> {
                Content {
                    event: self.event.as_deref(),
                    data: self.data,
                    text: self.text.as_deref(),
                    binary: self.binary.as_deref(),
                }
            }
        }
    };
}

content!(Emit);
content!(Publish);
content!(Broadcast);

impl Content<'_> {
    pub(super) fn payload(&self) -> Result<Payload, ApiError> {
        match (self.event, self.text, self.binary) {
            (Some(event), None, None) => Ok(Payload::Event {
                name: EventName::parse_user(event).map_err(bad_event)?,
                data: self.data.map(readable).transpose()?,
            }),
            (None, _, _) if self.data.is_some() => {
                Err(ApiError::bad("`data` goes with `event`".to_owned()))
            }
            (None, Some(text), None) if speaks_for_server(text.as_bytes()) => {
                Err(bad_event(NameError::Reserved))
            }
            (None, Some(text), None) => Ok(Payload::Text(text.to_owned().into())),
            (None, None, Some(binary)) => BASE64_STANDARD
                .decode(binary)
                .map(|bytes| Payload::Binary(bytes.into()))
                .map_err(|_| ApiError::bad("`binary` is not base64".to_owned())),
            _ => Err(ApiError::bad(
                "one of `event`, `text` and `binary` is needed".to_owned(),
            )),
        }
    }
}

/// The data, where all who are sent it can read it.
fn readable(data: &RawValue) -> Result<Bytes, ApiError> {
    let data = data.get().as_bytes();
    check_data(data).map_err(|error| ApiError::bad(format!("`data` {error}")))?;
    Ok(Bytes::copy_from_slice(data))
}

fn bad_event(error: NameError) -> ApiError {
    ApiError {
        code: "bad_event",
        ..ApiError::bad(error.to_string())
    }
}

impl Disconnect {
    fn code_default() -> u16 {
        1000
    }

    pub(super) fn close(&self) -> Result<Close, ApiError> {
        if self.after_ms > AFTER_MS_MAX {
            return Err(ApiError::bad(format!(
                "`after_ms` is at most {AFTER_MS_MAX}"
            )));
        }
        Close::by_application(self.code, self.reason.clone())
            .map_err(|error| ApiError::bad(format!("the {error}")))
    }
}

impl Whom {
    pub(super) fn of(
        to: Option<OneOrMany>,
        room: Option<String>,
        user: Option<String>,
    ) -> Result<Self, ApiError> {
        match (to, room, user) {
            (Some(to), None, None) => Ok(Self::Sockets(to.into())),
            (None, Some(room), None) => room_name(&room).map(Self::Room),
            (None, None, Some(user)) => user_name(&user).map(Self::User),
            _ => {
                let message = "one of `to` and `user` is needed, or `room` in `disconnect`";
                Err(ApiError::bad(message.to_owned()))
            }
        }
    }
}

fn user_name(name: &str) -> Result<UserName, ApiError> {
    UserName::parse(name).map_err(|error| ApiError {
        code: "bad_user",
        ..ApiError::bad(error.to_string())
    })
}
