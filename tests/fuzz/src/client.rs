//! Text of a client: what is understood says the same when it is written down again, and whatever is answered is JSON.

use bytes::Bytes;
use proto::client::{ClientId, ClientMessage, Command, ack_text, error_text, event_text};
use proto::name::NAME_BYTES_MAX;
use serde_json::value::RawValue;
use serde_json::{Value, json};

/// A text frame; what is no UTF-8 does not come this far.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let message = match ClientMessage::parse(text) {
        Ok(message) => message,
        Err(refusal) => return check_answer(&error_text(&refusal), refusal.id.as_ref()),
    };
    assert!(serde_json::from_str::<&RawValue>(text).is_ok(), "JSON");
    if let Some(id) = &message.id {
        check_answer(&ack_text(id, Some("null")), Some(id));
    }
    let written = write(&message);
    let again = ClientMessage::parse(&written);
    assert_eq!(again.as_ref(), Ok(&message), "{written}");
}

fn check_answer(text: &str, id: Option<&ClientId>) {
    // Its strings are the client's own, which may hold half of a surrogate pair: JSON, but no text.
    let raw: &RawValue = serde_json::from_str(text).expect("JSON");
    assert_eq!(raw.get(), text);
    if let Some(id) = id {
        assert!(text.contains(&format!(r#","id":{id}"#)), "{text}");
    }
}

/// The message as another client would write it.
fn write(message: &ClientMessage) -> String {
    let raw = |data: &Bytes| {
        let text = std::str::from_utf8(data).expect("JSON is text");
        let raw: Box<RawValue> = serde_json::from_str(text).expect("JSON");
        assert_eq!(raw.get(), text, "nothing around it");
        raw
    };
    let data = match &message.command {
        Command::Event { name, data } => {
            assert!(name.as_str().len() <= NAME_BYTES_MAX);
            let text = event_text(name, data.as_deref(), None, None);
            return with_id(String::from_utf8(text).expect("text"), message);
        }
        Command::Join(room) | Command::Leave(room) => {
            assert!(!room.as_str().is_empty() && room.as_str().len() <= NAME_BYTES_MAX);
            Some(raw(&json!({ "room": room.as_str() }).to_string().into()))
        }
        Command::Publish { room, name, data } => Some(object(
            &[
                ("room", json!(room.as_str())),
                ("event", json!(name.as_str())),
            ],
            data,
        )),
        Command::Emit { to, name, data } => Some(object(
            &[("to", json!(to)), ("event", json!(name.as_str()))],
            data,
        )),
        Command::Ping(data) => data.as_ref().map(raw),
        Command::Refresh(token) => Some(raw(&json!({ "token": token }).to_string().into())),
    };
    let event = message.command.server_event().expect("a server's");
    let data = data.map_or_else(String::new, |data| format!(r#","data":{data}"#));
    with_id(format!(r#"{{"event":"{event}"{data}}}"#), message)
}

fn object(fields: &[(&str, Value)], data: &Option<Bytes>) -> Box<RawValue> {
    let mut texts: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!(r#""{name}":{value}"#))
        .collect();
    if let Some(data) = data {
        let data = std::str::from_utf8(data).expect("JSON is text");
        texts.push(format!(r#""data":{data}"#));
    }
    let text = format!("{{{}}}", texts.join(","));
    serde_json::from_str(&text).expect("JSON")
}

fn with_id(mut text: String, message: &ClientMessage) -> String {
    if let Some(id) = &message.id {
        assert_eq!(text.pop(), Some('}'));
        text.push_str(&format!(r#","id":{id}}}"#));
    }
    text
}
