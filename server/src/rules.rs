//! What clients may do, by room: patterns and the rules under them. Pure.

use std::sync::Arc;

use proto::RoomName;
use serde::{Deserialize, Deserializer};

/// The rules of a server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Arc<[Arc<Rule>]>,
    open: bool,
}

/// The rule of the rooms that match a pattern.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Which rooms.
    pub pattern: Pattern,
    /// What becomes of clients' own events.
    #[serde(default = "Rule::client_events_default")]
    pub client_events: ClientEvents,
    /// How frames read.
    #[serde(default = "Rule::format_default")]
    pub format: Format,
    /// How clients become members.
    #[serde(default = "Rule::join_default")]
    pub join: Join,
    /// Who may publish with `unisono:publish`.
    #[serde(default = "Rule::publish_default")]
    pub publish: Publish,
    /// Whether clients that came by its URL may `unisono:emit`.
    #[serde(default = "Rule::emit_default")]
    pub emit: bool,
}

/// What becomes of clients' own events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientEvents {
    /// To the room, but not to the sender.
    Relay,
    /// To the room and the sender.
    Echo,
    /// To the application only.
    Forward,
    /// Refused.
    Deny,
}

/// How frames read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The native protocol.
    Json,
    /// Frames pass through as they are.
    Raw,
}

/// How clients become members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Join {
    /// By the path that they connect to.
    #[serde(rename = "url")]
    Url,
    /// By `unisono:join`.
    #[serde(rename = "client")]
    Client,
    /// By either.
    #[serde(rename = "url+client", alias = "client+url")]
    UrlAndClient,
    /// Only the application makes members.
    #[serde(rename = "none")]
    None,
}

/// Who may publish with `unisono:publish`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Publish {
    /// Members of the room.
    Members,
    /// Every client.
    Anyone,
    /// No client.
    None,
}

/// A pattern of room names: segments between slashes, `{name}` for any one, `{name...}` for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    segments: Vec<Segment>,
    rest: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Any,
}

/// A text that is no pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Nothing matches it.
    #[error("a pattern is not empty")]
    Empty,
    /// Braces are for whole segments.
    #[error("`{{name}}` stands for a whole segment, between slashes")]
    Braces,
    /// Nothing can come after the rest.
    #[error("`{{name...}}` is the last segment")]
    RestInside,
    /// Each name once.
    #[error("a parameter is named twice")]
    Twice,
}

impl Rules {
    /// The open mode, when there is no rule.
    pub fn new(rules: Vec<Rule>) -> Self {
        let open = rules.is_empty();
        let rules = if open { vec![Rule::open()] } else { rules };
        Self {
            rules: rules.into_iter().map(Arc::new).collect(),
            open,
        }
    }

    /// Whether nobody wrote a rule, and every client may do everything.
    pub fn open(&self) -> bool {
        self.open
    }

    /// The first rule that matches.
    pub fn find(&self, room: &RoomName) -> Option<&Arc<Rule>> {
        self.rules
            .iter()
            .find(|rule| rule.pattern.matches(room.as_str()))
    }
}

impl Rule {
    fn open() -> Self {
        Self {
            pattern: Pattern {
                segments: Vec::new(),
                rest: true,
            },
            client_events: Self::client_events_default(),
            format: Self::format_default(),
            join: Self::join_default(),
            publish: Publish::Anyone,
            emit: Self::emit_default(),
        }
    }

    fn client_events_default() -> ClientEvents {
        ClientEvents::Relay
    }

    fn format_default() -> Format {
        Format::Json
    }

    fn join_default() -> Join {
        Join::UrlAndClient
    }

    fn publish_default() -> Publish {
        Publish::Members
    }

    fn emit_default() -> bool {
        true
    }
}

impl Join {
    /// By the path that a client connects to.
    pub fn by_url(self) -> bool {
        matches!(self, Self::Url | Self::UrlAndClient)
    }

    /// By `unisono:join`.
    pub fn by_client(self) -> bool {
        matches!(self, Self::Client | Self::UrlAndClient)
    }
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        let mut segments = Vec::new();
        let mut names = Vec::new();
        let mut rest = false;
        for segment in text.split('/') {
            if rest {
                return Err(PatternError::RestInside);
            }
            let name = segment
                .strip_prefix('{')
                .and_then(|segment| segment.strip_suffix('}'));
            let Some(name) = name else {
                if segment.contains(['{', '}']) {
                    return Err(PatternError::Braces);
                }
                segments.push(Segment::Text(segment.to_owned()));
                continue;
            };
            let name = match name.strip_suffix("...") {
                Some(name) => {
                    rest = true;
                    name
                }
                None => {
                    segments.push(Segment::Any);
                    name
                }
            };
            if name.is_empty() || name.contains(['{', '}']) {
                return Err(PatternError::Braces);
            }
            if names.contains(&name) {
                return Err(PatternError::Twice);
            }
            names.push(name);
        }
        Ok(Self { segments, rest })
    }

    /// Whether the name of a room is of this pattern. The rest may be empty: `/files/{path...}` matches
    /// `/files` too, because a trailing slash does not count.
    pub fn matches(&self, room: &str) -> bool {
        let mut given = room.split('/').peekable();
        for segment in &self.segments {
            match (given.next(), segment) {
                (Some(given), Segment::Text(text)) if given == text => {}
                (Some(given), Segment::Any) if !given.is_empty() => {}
                _ => return false,
            }
        }
        self.rest || given.peek().is_none()
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_segment_by_segment() {
        for (pattern, room, expected) in [
            ("/", "/", true),
            ("/", "/a", false),
            ("/chat-rooms/{id}", "/chat-rooms/1", true),
            ("/chat-rooms/{id}", "/chat-rooms", false),
            ("/chat-rooms/{id}", "/chat-rooms/", false),
            ("/chat-rooms/{id}", "/chat-rooms/1/2", false),
            ("/{a}/x/{b}", "/1/x/2", true),
            ("/{path...}", "/", true),
            ("/{path...}", "/a/b/c", true),
            ("/{path...}", "no-slash", false),
            ("/files/{path...}", "/files", true),
            ("/files/{path...}", "/files/a/b", true),
            ("/files/{path...}", "/filesystem", false),
            ("{any...}", "orders.1", true),
            ("{any...}", "/a/b", true),
            ("{one}", "orders.1", true),
            ("{one}", "/a", false),
            ("message", "message", true),
            ("/Room", "/room", false),
        ] {
            let matches = Pattern::parse(pattern).unwrap().matches(room);
            assert_eq!(matches, expected, "{pattern} {room}");
        }
    }

    #[test]
    fn bad_patterns_are_refused() {
        for (pattern, error) in [
            ("", PatternError::Empty),
            ("/a{b}", PatternError::Braces),
            ("/{}", PatternError::Braces),
            ("/{...}", PatternError::Braces),
            ("/{a", PatternError::Braces),
            ("/{a...}/b", PatternError::RestInside),
            ("/{a}/{a}", PatternError::Twice),
        ] {
            assert_eq!(Pattern::parse(pattern), Err(error), "{pattern}");
        }
    }

    #[test]
    fn the_first_match_rules() {
        let rule = |pattern: &str, client_events| Rule {
            pattern: Pattern::parse(pattern).unwrap(),
            client_events,
            ..Rule::open()
        };
        let rules = Rules::new(vec![
            rule("/quiet/{id}", ClientEvents::Deny),
            rule("/{any...}", ClientEvents::Echo),
        ]);
        let found = |room: &str| {
            let room = RoomName::parse(room).unwrap();
            rules.find(&room).map(|rule| rule.client_events)
        };
        assert_eq!(found("/quiet/1"), Some(ClientEvents::Deny));
        assert_eq!(found("/other"), Some(ClientEvents::Echo));
        assert_eq!(found("elsewhere"), None);
        assert!(Rules::new(Vec::new()).open());
    }
}
