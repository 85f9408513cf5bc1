//! What clients may do, by room: patterns and the rules under them. Pure.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use proto::RoomName;
use proto::client::ErrorCode;
use proto::name::NAME_BYTES_MAX;
use serde::{Deserialize, Deserializer};

use crate::app::Handlers;
use crate::auth::Grant;

/// The rules of a server. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    rules: Arc<[Arc<Rule>]>,
    open: bool,
    guard_private: Option<Guard>,
}

/// The rule of the rooms that match a pattern.
#[derive(Clone, Debug, Deserialize)]
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
    /// Which clients may be in it at all, and publish to it.
    #[serde(default)]
    pub who: Who,
    /// What is told to the application.
    #[serde(default)]
    pub events: HashSet<Lifecycle>,
    /// What the application does, where it is written in Rust.
    #[serde(skip)]
    pub handlers: Option<Arc<Handlers>>,
}

/// Which clients may be in a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// Every one.
    #[default]
    Anyone,
    /// Those with a user.
    Users,
    /// Those whose grant names the room.
    Granted,
}

/// What happens to a socket or a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// A socket is there; of the rule of the room that it came by.
    Opened,
    /// It is gone; of the same rule.
    Closed,
    /// A socket became a member.
    Joined,
    /// It is none any more.
    Left,
    /// The room has a first member in the cluster.
    Occupied,
    /// It has lost the last.
    Vacated,
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
///
/// ```
/// use unisono_server::{Join, Publish, Room};
///
/// // Clients come by the URL, or join later, and talk to each other past the application.
/// let open = Room::new("/chat").join(Join::UrlAndClient).publish(Publish::Members).emit(true);
/// ```
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
    rest: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Text(String),
    Any(Box<str>),
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
    /// As other programs write patterns.
    #[error("a segment that stands for any other is `{{name}}`, and `{{name...}}` for the rest")]
    Foreign,
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
            guard_private: None,
        }
    }

    /// The same rules after others, which are no open mode whatever these are.
    #[must_use]
    pub fn after(&self, first: Vec<Rule>) -> Self {
        let mine = if self.open { &[][..] } else { &self.rules };
        let first = first.into_iter().map(Arc::new);
        Self {
            rules: first.chain(mine.iter().cloned()).collect(),
            open: false,
            ..*self
        }
    }

    /// From now on, rooms of Laravel's private and presence channels are for those only whose grant names
    /// them, whatever their rule says.
    pub fn guard_private(&mut self, guard: Guard) {
        self.guard_private = Some(guard);
    }

    /// Whether a client may be in a room.
    pub fn may_enter(&self, rule: &Rule, room: &RoomName, grant: &Grant) -> Result<(), Denied> {
        let guarded = self.guard_private.is_some_and(|guard| guard.guards(room));
        let who = if guarded { Who::Granted } else { rule.who };
        match who {
            Who::Users if grant.user.is_none() => {
                Err((ErrorCode::Forbidden, "this room is for known users"))
            }
            Who::Granted if !grant.names(room) => {
                let why = "this room is for those whose token names it";
                Err((ErrorCode::Forbidden, why))
            }
            _ if !grant.admits(room) => {
                Err((ErrorCode::Forbidden, "the token does not name this room"))
            }
            _ => Ok(()),
        }
    }

    /// Whether a client may `unisono:join`.
    pub fn may_join(&self, rule: &Rule, room: &RoomName, grant: &Grant) -> Result<(), Denied> {
        if !rule.join.by_client() {
            return Err((ErrorCode::Forbidden, "clients may not join this room"));
        }
        if !grant.rights.join {
            return Err((ErrorCode::Forbidden, "this client may not join rooms"));
        }
        self.may_enter(rule, room, grant)
    }

    /// Whether a client may `unisono:publish`.
    pub fn may_publish(
        &self,
        rule: &Rule,
        room: &RoomName,
        grant: &Grant,
        member: bool,
    ) -> Result<(), Denied> {
        match rule.publish {
            Publish::None => Err((ErrorCode::Forbidden, "clients may not publish to this room")),
            _ if !grant.rights.publish => {
                Err((ErrorCode::Forbidden, "this client may not publish"))
            }
            Publish::Members if !member => {
                Err((ErrorCode::NotJoined, "only members publish to this room"))
            }
            // Whoever is in it has been let in.
            _ if member => Ok(()),
            _ => self.may_enter(rule, room, grant),
        }
    }

    /// Whether nobody wrote a rule, and every client may do everything.
    pub fn open(&self) -> bool {
        self.open
    }

    /// The patterns of rooms whose clients' events go to an application outside.
    pub fn forwarding(&self) -> Vec<String> {
        let forwards = |rule: &&Arc<Rule>| rule.client_events == ClientEvents::Forward;
        let rules = self.rules.iter().filter(forwards);
        rules.map(|rule| rule.pattern.to_string()).collect()
    }

    /// Patterns of which clients will get nothing, each with why, for people.
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        for (nth, rule) in self.rules.iter().enumerate() {
            let pattern = &rule.pattern;
            let wider = self.rules[..nth].iter().map(|rule| &rule.pattern);
            if let Some(wider) = wider.into_iter().find(|wider| wider.covers(pattern)) {
                doubts.push(format!(
                    "the pattern `{pattern}` never rules: `{wider}` stands before it, and matches all that it does"
                ));
            } else if let Some(why) = pattern.vain(rule.join) {
                doubts.push(format!("no client comes into `{pattern}`: {why}"));
            }
        }
        doubts
    }

    /// Whether an application has handlers for any rooms.
    pub fn has_handlers(&self) -> bool {
        self.rules.iter().any(|rule| rule.handlers.is_some())
    }

    /// The first rule that matches.
    pub fn find(&self, room: &RoomName) -> Option<&Arc<Rule>> {
        self.rules
            .iter()
            .find(|rule| rule.pattern.matches(room.as_str()))
    }
}

/// Which rooms are those of Laravel's private and presence channels.
#[derive(Clone, Copy, Debug)]
pub enum Guard {
    /// Those that begin as such: what Laravel puts before all channels is known, and taken away.
    Prefixed,
    /// Those that have it anywhere in their name.
    Anywhere,
}

impl Guard {
    fn guards(self, room: &RoomName) -> bool {
        PRIVATE_PREFIXES.iter().any(|prefix| match self {
            Self::Prefixed => room.as_str().starts_with(prefix),
            Self::Anywhere => room.as_str().contains(prefix),
        })
    }
}

/// What Laravel puts before the names of channels that not everybody may listen to.
const PRIVATE_PREFIXES: [&str; 2] = ["private-", "presence-"];

/// Why a rule says no.
pub type Denied = (ErrorCode, &'static str);

impl Rule {
    /// The rule of a pattern that says nothing but that.
    pub fn new(pattern: Pattern) -> Self {
        Self {
            pattern,
            publish: Self::publish_default(),
            ..Self::open()
        }
    }

    /// Whether a client may `unisono:emit`.
    pub fn may_emit(&self, grant: &Grant) -> Result<(), Denied> {
        let may = self.emit && grant.rights.emit;
        may.then_some(()).ok_or((
            ErrorCode::Forbidden,
            if self.emit {
                "this client may not emit"
            } else {
                "clients may not emit here"
            },
        ))
    }

    /// Whether a client may send events of its own, to whomever they go.
    pub fn may_send(&self, grant: &Grant) -> Result<(), Denied> {
        let may = grant.rights.send;
        may.then_some(())
            .ok_or((ErrorCode::Forbidden, "this client may not send events"))
    }

    fn open() -> Self {
        Self {
            pattern: Pattern {
                segments: Vec::new(),
                rest: Some("path".into()),
            },
            client_events: Self::client_events_default(),
            format: Self::format_default(),
            join: Self::join_default(),
            publish: Publish::Anyone,
            emit: Self::emit_default(),
            who: Who::default(),
            events: HashSet::new(),
            handlers: None,
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
        let mut rest = None;
        for segment in text.split('/') {
            if rest.is_some() {
                return Err(PatternError::RestInside);
            }
            let name = segment
                .strip_prefix('{')
                .and_then(|segment| segment.strip_suffix('}'));
            let Some(name) = name else {
                if segment.contains(['{', '}']) {
                    return Err(PatternError::Braces);
                }
                if segment.starts_with(':') || matches!(segment, "*" | "**") {
                    return Err(PatternError::Foreign);
                }
                segments.push(Segment::Text(segment.to_owned()));
                continue;
            };
            let name = match name.strip_suffix("...") {
                Some(name) => {
                    rest = Some(name.into());
                    name
                }
                None => {
                    segments.push(Segment::Any(name.into()));
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
                (Some(given), Segment::Any(_)) if !given.is_empty() => {}
                _ => return false,
            }
        }
        self.rest.is_some() || given.peek().is_none()
    }

    /// Whether it matches every room that the other one does.
    pub fn covers(&self, other: &Self) -> bool {
        let covers = |(mine, other): (&Segment, &Segment)| match (mine, other) {
            (Segment::Any(_), Segment::Any(_)) => true,
            (Segment::Any(_), Segment::Text(text)) => !text.is_empty(),
            (Segment::Text(mine), Segment::Text(other)) => mine == other,
            (Segment::Text(_), Segment::Any(_)) => false,
        };
        let (mine, others) = (self.segments.len(), other.segments.len());
        // The rest may be empty.
        let long_enough = match self.rest {
            Some(_) => mine <= others,
            None => mine == others && other.rest.is_none(),
        };
        long_enough && self.segments.iter().zip(&other.segments).all(covers)
    }

    /// Why it is in vain: no room has such a name, or none that somebody who wrote it means.
    fn vain(&self, join: Join) -> Option<String> {
        let texts = || {
            self.segments.iter().map(|segment| match segment {
                Segment::Text(text) => text.as_str(),
                Segment::Any(_) => "?",
            })
        };
        let slashes = self.segments.len().saturating_sub(1);
        if texts().map(str::len).sum::<usize>() + slashes > NAME_BYTES_MAX {
            return Some(format!("a room has at most {NAME_BYTES_MAX} bytes"));
        }
        let mut written = self.segments.iter().filter_map(|segment| match segment {
            Segment::Text(text) => Some(text),
            Segment::Any(_) => None,
        });
        if written.clone().any(|text| text.contains(char::is_control)) {
            return Some("a room has no control characters".to_owned());
        }
        // By `unisono:join` a room of any name is joined, in which nothing is decoded.
        let path = matches!(self.segments.first(), Some(Segment::Text(first)) if first.is_empty());
        if !join.by_url() || !path {
            return None;
        }
        let all = self.to_string();
        if self.rest.is_none() && self.segments.len() > 2 && all.ends_with('/') {
            let without = all.trim_end_matches('/');
            return Some(format!(
                "one slash at the end of a path does not count; write `{without}`"
            ));
        }
        if written.clone().any(|text| text.contains(['?', '#'])) {
            return Some("a path ends before `?` and `#`".to_owned());
        }
        let decoded =
            |text: &String| RoomName::from_path(text).is_ok_and(|room| room.as_str() != text);
        let text = written.find(|text| text.contains('%') && decoded(text))?;
        let decoded = RoomName::from_path(text).ok()?;
        Some(format!(
            "paths are percent-decoded; write `{decoded}` for `{text}`"
        ))
    }

    /// What the parameters stand for in the name of a room that [matches](Self::matches), in their order.
    pub fn parameters(&self, room: &str) -> Vec<(&str, String)> {
        let mut given = room.split('/');
        let mut found = Vec::new();
        for (segment, given) in self.segments.iter().zip(given.by_ref()) {
            if let Segment::Any(name) = segment {
                found.push((&**name, given.to_owned()));
            }
        }
        if let Some(name) = &self.rest {
            let rest: Vec<_> = given.collect();
            found.push((&**name, rest.join("/")));
        }
        found
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segments = self.segments.iter().map(|segment| match segment {
            Segment::Text(text) => text.clone(),
            Segment::Any(name) => format!("{{{name}}}"),
        });
        let rest = self.rest.as_ref().map(|name| format!("{{{name}...}}"));
        let all: Vec<_> = segments.chain(rest).collect();
        f.write_str(&all.join("/"))
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
    fn parameters_have_names() {
        let parameters = |pattern: &str, room: &str| {
            let pattern = Pattern::parse(pattern).unwrap();
            let found = pattern.parameters(room).into_iter();
            found
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(parameters("/chat-rooms/{id}", "/chat-rooms/1"), ["id=1"]);
        assert_eq!(parameters("/{a}/x/{b...}", "/1/x/2/3"), ["a=1", "b=2/3"]);
        assert_eq!(parameters("/files/{path...}", "/files"), ["path="]);
        assert_eq!(parameters("/", "/"), [""; 0]);
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
            ("/chat/:id", PatternError::Foreign),
            ("/chat/*", PatternError::Foreign),
        ] {
            assert_eq!(Pattern::parse(pattern), Err(error), "{pattern}");
        }
    }

    #[test]
    fn the_first_match_rules() {
        let rule = |pattern: &str, client_events| Rule {
            client_events,
            ..Rule::new(Pattern::parse(pattern).unwrap())
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
        let after = rules.after(vec![rule("/other", ClientEvents::Relay)]);
        let other = RoomName::parse("/other").unwrap();
        assert_eq!(
            after.find(&other).unwrap().client_events,
            ClientEvents::Relay
        );
        assert!(!Rules::new(Vec::new()).after(Vec::new()).open());
    }

    #[test]
    fn a_wider_pattern_covers_a_narrower_one() {
        let patterns = [
            "/",
            "/a",
            "/a/",
            "/a//",
            "/{x}",
            "/{x...}",
            "/a/{x}",
            "/a/{x...}",
            "/{x}/b",
            "/a/b",
            "/{x}/{y}",
            "/{x}/b/{z...}",
            "{x...}",
            "{x}",
            "a",
            "a/{x...}",
        ];
        let rooms = [
            "/", "/a", "/a/", "/a//", "/b", "/a/b", "/a/c", "/b/b", "/a/b/c", "/a//c", "a", "b",
            "a/b", "a/", "",
        ];
        for wide in patterns {
            for narrow in patterns {
                let covers = Pattern::parse(wide)
                    .unwrap()
                    .covers(&Pattern::parse(narrow).unwrap());
                let matches = |pattern: &str, room| Pattern::parse(pattern).unwrap().matches(room);
                let seen = rooms
                    .iter()
                    .all(|room| !matches(narrow, room) || matches(wide, room));
                assert_eq!(covers, seen, "{wide} {narrow}");
            }
        }
    }

    #[test]
    fn patterns_in_vain_are_told() {
        let doubts = |patterns: &[&str]| {
            let rules = patterns
                .iter()
                .map(|pattern| Rule::new(Pattern::parse(pattern).unwrap()));
            Rules::new(rules.collect()).doubts()
        };
        for (pattern, part) in [
            ("/x/", "write `/x`"),
            ("/x//", "write `/x`"),
            ("/{a}/", "write `/{a}`"),
            ("/a%20b", "write `a b` for `a%20b`"),
            ("/{x}/caf%C3%A9", "write `café` for `caf%C3%A9`"),
            ("/a?b=1", "ends before `?`"),
            ("/a#b", "ends before `?`"),
            ("/a\n", "no control characters"),
            (&format!("/{}", "x".repeat(200)), "at most 200 bytes"),
        ] {
            let found = doubts(&[pattern]);
            assert!(
                found.len() == 1 && found[0].contains(part),
                "{pattern}: {found:?}"
            );
        }
        for fine in [
            &["/"][..],
            &["/x", "/x/{y}", "/{x...}", "{any...}"],
            &["/100%", "/a%zz", "/a//b", "orders.1", "a%20b", "x/"],
            &["/{a}/{b...}"],
            &[&"/x".repeat(100)],
        ] {
            assert_eq!(doubts(fine), [""; 0], "{fine:?}");
        }
        let shadowed = doubts(&["/a", "/{x...}", "/chat/{id}", "/a"]);
        assert_eq!(shadowed.len(), 2, "{shadowed:?}");
        assert!(shadowed[0].contains("`/chat/{id}`") && shadowed[0].contains("`/{x...}`"));
        assert!(
            shadowed[1].contains("`/a` stands before"),
            "the first that does"
        );
        let mut rule = Rule::new(Pattern::parse("/x/").unwrap());
        rule.join = Join::Client;
        assert_eq!(
            Rules::new(vec![rule]).doubts(),
            [""; 0],
            "by its name it is joined"
        );
    }

    #[test]
    fn rules_and_grants_have_to_agree() {
        let room = RoomName::parse("/a").unwrap();
        let patterns = |names: &[&str]| {
            let patterns = names.iter().map(|name| Pattern::parse(name).unwrap());
            Some(patterns.collect())
        };
        let nobody = Grant::default();
        let known = Grant {
            user: Some(proto::UserName::parse("u").unwrap()),
            ..Grant::default()
        };
        let named = Grant {
            rooms: patterns(&["/{any}"]),
            ..Grant::default()
        };
        let elsewhere = Grant {
            rooms: patterns(&["/b"]),
            ..Grant::default()
        };
        for (who, grants) in [
            (Who::Anyone, [true, true, true, false]),
            (Who::Users, [false, true, false, false]),
            (Who::Granted, [false, false, true, false]),
        ] {
            let mut rule = Rule::open();
            rule.who = who;
            let rules = Rules::new(Vec::new());
            let grants_given = [&nobody, &known, &named, &elsewhere];
            let found = grants_given.map(|grant| rules.may_enter(&rule, &room, grant).is_ok());
            assert_eq!(found, grants, "{who:?}");
        }
        let mut rules = Rules::new(Vec::new());
        let private = RoomName::parse("private-chat.1").unwrap();
        assert!(rules.may_enter(&Rule::open(), &private, &nobody).is_ok());
        rules.guard_private(Guard::Prefixed);
        assert!(rules.may_enter(&Rule::open(), &private, &known).is_err());
        let unknown_prefix = RoomName::parse("laravel-database-private-chat.1").unwrap();
        assert!(
            rules
                .may_enter(&Rule::open(), &unknown_prefix, &known)
                .is_ok()
        );
        rules.guard_private(Guard::Anywhere);
        assert!(
            rules
                .may_enter(&Rule::open(), &unknown_prefix, &known)
                .is_err()
        );
        let mute = Grant {
            rights: crate::auth::Rights {
                join: false,
                publish: false,
                emit: false,
                send: false,
            },
            ..Grant::default()
        };
        let rule = Rule::open();
        assert!(rules.may_enter(&rule, &room, &mute).is_ok());
        assert!(rules.may_join(&rule, &room, &mute).is_err());
        assert!(rules.may_publish(&rule, &room, &mute, true).is_err());
        assert!(rule.may_emit(&mute).is_err());
        assert!(rule.may_send(&mute).is_err());
    }
}
