//! Names that users choose: rooms, events and people. Compared byte for byte, never folded or trimmed.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Most bytes in the name of a room or an event.
pub const NAME_BYTES_MAX: usize = 200;

/// Events of this prefix are the server's own.
pub const SERVER_EVENT_PREFIX: &str = "unisono:";

/// The name of a room: 1 to 200 bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomName(Arc<str>);

/// The name of an event: 1 to 200 bytes of UTF-8. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventName(Arc<str>);

/// The name of a user, as the application knows it: 1 to 200 bytes of UTF-8 without control characters. All
/// sockets of one user can be sent to by it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserName(Arc<str>);

/// A text that is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The empty text names nothing.
    #[error("a name has at least one byte")]
    Empty,
    /// Longer than [`NAME_BYTES_MAX`].
    #[error("a name has at most {NAME_BYTES_MAX} bytes, this one has {bytes}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Room names show up in logs and subjects of people's tools, so they are one line of text.
    #[error("a name has no control characters")]
    ControlCharacter,
    /// A path that is no percent-encoded UTF-8.
    #[error("the path is not percent-encoded UTF-8")]
    Encoding,
    /// An event that only the server may send.
    #[error("event names that begin with `{SERVER_EVENT_PREFIX}` belong to the server")]
    Reserved,
}

// === impl RoomName ===

impl RoomName {
    /// Checks length and characters.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_length(text)?;
        check_line(text)?;
        Ok(Self(text.into()))
    }

    /// The room that the path of a URL names: percent-decoded once, without one trailing slash.
    pub fn from_path(path: &str) -> Result<Self, NameError> {
        let path = match path.strip_suffix('/') {
            None => path,
            Some("") => "/",
            Some(shorter) => shorter,
        };
        let decoded = percent_decode(path)?;
        match decoded.as_str() {
            "" => Self::parse("/"),
            decoded => Self::parse(decoded),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `%HH` becomes its byte, everything else stays. A `%` without two digits is an error, not text: two
/// spellings of one URL must not name two rooms by accident.
fn percent_decode(path: &str) -> Result<String, NameError> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => decoded.push((high << 4 | low) as u8),
            _ => return Err(NameError::Encoding),
        }
    }
    String::from_utf8(decoded).map_err(|_| NameError::Encoding)
}

// === impl EventName ===

impl EventName {
    /// Checks the length. Accepts the server's own names too.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_length(text)?;
        Ok(Self(text.into()))
    }

    /// As [`EventName::parse`], for those who may not speak in the server's name.
    pub fn parse_user(text: &str) -> Result<Self, NameError> {
        if is_reserved(text) {
            return Err(NameError::Reserved);
        }
        Self::parse(text)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl UserName ===

impl UserName {
    /// Checks length and characters.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        check_length(text)?;
        check_line(text)?;
        Ok(Self(text.into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether an event of that name is the server's own. Nobody else may send one, through whichever door.
pub fn is_reserved(event: &str) -> bool {
    event.starts_with(SERVER_EVENT_PREFIX)
}

fn check_line(text: &str) -> Result<(), NameError> {
    match text.chars().any(char::is_control) {
        true => Err(NameError::ControlCharacter),
        false => Ok(()),
    }
}

fn check_length(text: &str) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        bytes if bytes > NAME_BYTES_MAX => Err(NameError::TooLong { bytes }),
        _ => Ok(()),
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for RoomName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_room() {
        for (path, room) in [
            ("", "/"),
            ("/", "/"),
            ("/chat-rooms/1", "/chat-rooms/1"),
            ("/chat-rooms/1/", "/chat-rooms/1"),
            ("/a//", "/a/"),
            ("/caf%C3%A9", "/café"),
            ("/100%2525", "/100%25"),
            ("/a%2Fb", "/a/b"),
            ("/Room", "/Room"),
        ] {
            assert_eq!(RoomName::from_path(path).unwrap().as_str(), room, "{path}");
        }
        for (path, error) in [
            ("/%", NameError::Encoding),
            ("/%4", NameError::Encoding),
            ("/%+1", NameError::Encoding),
            ("/%ff", NameError::Encoding),
            ("/%0a", NameError::ControlCharacter),
        ] {
            assert_eq!(RoomName::from_path(path), Err(error), "{path}");
        }
    }

    #[test]
    fn names_have_bounds() {
        let long = "x".repeat(NAME_BYTES_MAX);
        assert!(RoomName::parse(&long).is_ok());
        assert!(EventName::parse(&long).is_ok());
        let longer = format!("{long}x");
        assert_eq!(
            RoomName::parse(&longer),
            Err(NameError::TooLong { bytes: 201 })
        );
        assert_eq!(EventName::parse(""), Err(NameError::Empty));
        assert_eq!(
            EventName::parse_user("unisono:gap"),
            Err(NameError::Reserved)
        );
        assert!(EventName::parse("two\nlines").is_ok());
        for odd in [">", "a.b*", "*", " ", "房间", "a..b"] {
            assert_eq!(RoomName::parse(odd).unwrap().as_str(), odd);
        }
    }
}
