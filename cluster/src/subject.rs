//! The one place where NATS subjects are made: an injective map from names to subject tokens.

use std::fmt;

use proto::{Audience, NodeId, RoomName};

/// The first token of every subject: letters, digits, `_` and `-`, at most 64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

/// A text that is no cluster name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a cluster name is 1 to 64 letters, digits, `_` or `-`")]
pub struct ClusterNameError;

/// A subject, or a pattern of subjects to subscribe to. Made by [`Subjects`] only: no text of a user
/// can be mistaken for one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject(String);

/// The subjects of one cluster.
///
/// ```text
/// <cluster>.all                 every node
/// <cluster>.heartbeat           every node
/// <cluster>.room.<token>        nodes with members of the room
/// <cluster>.node.<id>.request   one node
/// <cluster>.node.<id>.<number>  answers to that node
/// <cluster>.node.<id>.ask-<n>   answers of applications to that node
/// <cluster>.api.<verb>          applications ask, one node serves
/// <cluster>.event.<type>        what happened, for applications
/// <cluster>.void.<id>           nobody, ever: the server's "no responders" proves a round trip
/// ```
#[derive(Clone, Debug)]
pub struct Subjects {
    cluster: ClusterName,
}

/// Before the number in the last token of a reply subject.
const ASK: &str = "ask-";

impl ClusterName {
    /// Checks the characters.
    pub fn parse(text: &str) -> Result<Self, ClusterNameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
            return Err(ClusterNameError);
        }
        Ok(Self(text.to_owned()))
    }
}

impl Subjects {
    /// The subjects of the cluster of that name.
    pub fn new(cluster: ClusterName) -> Self {
        Self { cluster }
    }

    /// Read by every node.
    pub fn all(&self) -> Subject {
        self.subject("all")
    }

    /// Read by every node.
    pub fn heartbeat(&self) -> Subject {
        self.subject("heartbeat")
    }

    /// Read by the nodes that have members of the room. At most 3 bytes for each byte of the name.
    pub fn room(&self, room: &RoomName) -> Subject {
        self.subject(format_args!("room.{}", token(room.as_str())))
    }

    /// Where a publication to that audience goes.
    pub fn audience(&self, to: &Audience) -> Subject {
        match to {
            Audience::Room(room) => self.room(room),
            Audience::Everyone => self.all(),
        }
    }

    /// The pattern of all that is addressed to a node.
    pub fn inbox(&self, node: NodeId) -> Subject {
        self.subject(format_args!("node.{node}.*"))
    }

    /// Where a node reads requests.
    pub fn request(&self, node: NodeId) -> Subject {
        self.subject(format_args!("node.{node}.request"))
    }

    /// Where a node reads the answer to its call of that number.
    pub fn reply(&self, node: NodeId, call: u64) -> Subject {
        self.subject(format_args!("node.{node}.{call}"))
    }

    /// The number of the call that a message on a subject of [`Subjects::reply`] answers.
    pub fn call_of(subject: &str) -> Option<u64> {
        subject.rsplit('.').next()?.parse().ok()
    }

    /// Where a node reads the answer of an application to what it asked under that number.
    pub fn ask_reply(&self, node: NodeId, number: u64) -> Subject {
        self.subject(format_args!("node.{node}.{ASK}{number}"))
    }

    /// The number of what a message on a subject of [`Subjects::ask_reply`] answers.
    pub fn ask_of(subject: &str) -> Option<u64> {
        let token = subject.rsplit('.').next()?;
        token.strip_prefix(ASK)?.parse().ok()
    }

    /// Where applications read events of that type, which is a word of this program's own.
    pub fn event(&self, kind: &'static str) -> Subject {
        self.subject(format_args!("event.{kind}"))
    }

    /// The pattern of applications' requests.
    pub fn api(&self) -> Subject {
        self.subject("api.*")
    }

    /// The verb of a request on a subject of [`Subjects::api`].
    pub fn verb_of(subject: &str) -> &str {
        subject.rsplit('.').next().unwrap_or_default()
    }

    /// Read by nobody.
    pub fn void(&self, node: NodeId) -> Subject {
        self.subject(format_args!("void.{node}"))
    }

    fn subject(&self, rest: impl fmt::Display) -> Subject {
        Subject(format!("{}.{rest}", self.cluster.0))
    }
}

impl Subject {
    /// A subject that came with a message, to send the answer to.
    pub(crate) fn reply_to(subject: &str) -> Self {
        Self(subject.to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Letters, digits, `_` and `-` stay; every other byte becomes `=HH`. Different names have different
/// tokens, no token is a wildcard or holds a dot, and people can still read it in `nats sub`.
fn token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("={byte:02X}"));
        }
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(token: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = token.bytes();
        while let Some(byte) = rest.next() {
            if byte == b'=' {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                let hex = std::str::from_utf8(&hex).unwrap();
                bytes.push(u8::from_str_radix(hex, 16).unwrap());
            } else {
                bytes.push(byte);
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn a_token_can_be_read_back(name in "\\PC{1,66}") {
            let token = token(&name);
            prop_assert!(token.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-=".contains(&b)));
            prop_assert!(!token.is_empty() && token.len() <= 3 * name.len());
            prop_assert_eq!(decode(&token), name.as_bytes());
        }
    }

    #[test]
    fn odd_names_are_just_rooms() {
        let subjects = Subjects::new(ClusterName::parse("unisono").unwrap());
        let subject = |name| subjects.room(&RoomName::parse(name).unwrap()).0;
        assert_eq!(subject(">"), "unisono.room.=3E");
        assert_eq!(subject("a.b*"), "unisono.room.a=2Eb=2A");
        assert_eq!(subject("/chat-rooms/1"), "unisono.room.=2Fchat-rooms=2F1");
        assert_ne!(subject("Room"), subject("room"));
        let longest = subject(&">".repeat(proto::name::NAME_BYTES_MAX));
        assert!(longest.len() < 1_000, "far below NATS's 4096 bytes");
    }

    #[test]
    fn a_cluster_name_is_one_token() {
        for bad in ["", "a.b", "a b", "*", ">", "ä", &"x".repeat(65)] {
            assert_eq!(ClusterName::parse(bad), Err(ClusterNameError), "{bad}");
        }
    }
}
