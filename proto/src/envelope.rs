//! What is sent to sockets, and what nodes ask of each other.

use std::time::Duration;

use bytes::Bytes;

use crate::{Close, EventName, NodeId, RoomName, SocketId, UserName};

/// One message from one node to others.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope {
    /// Who sent it.
    pub origin: NodeId,
    /// Over which of its connections to the bus, from 1; zero of a node that does not count.
    pub connection: u64,
    /// What it says.
    pub body: Body,
}

/// What an envelope says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// "I am alive."
    Heartbeat(Heartbeat),
    /// "I stop now."
    Goodbye,
    /// For the sockets of a room, or all.
    Publication(Publication),
    /// To be answered with an [`Answer`].
    Request(Request),
    /// Answers a [`Request`].
    Answer(Answer),
    /// Publications to these rooms may have been lost; to any room, when it is empty.
    Missed(Vec<RoomName>),
    /// The sender's rooms and sockets.
    Occupancy(Occupancy),
    /// A publication whose payload this version cannot read: its sockets miss it.
    Unreadable(Audience),
    /// Something that this version does not know.
    Unknown,
}

/// What a node holds, of that whose end the application wants to be told even by another node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Held {
    /// A member of a room.
    Member(Seat),
    /// A socket; the room is that of its URL.
    Socket(Seat),
    /// The room has members there.
    Room(RoomName),
}

/// A socket in a room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    /// The socket.
    pub socket: SocketId,
    /// The room.
    pub room: RoomName,
    /// Whose socket it is.
    pub user: Option<UserName>,
}

/// Which rooms have members on a node, and which sockets are there, of those whose application asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupancy {
    /// The number of this change, or of the last one.
    pub version: u64,
    /// What there is.
    pub told: Told,
}

/// What an [`Occupancy`] tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// This is there now.
    Begun(Held),
    /// It is no more.
    Ended(Held),
    /// All that there is.
    Snapshot {
        /// Or, of much, some.
        held: Vec<Held>,
        /// Which message of several.
        part: u32,
        /// The next message goes on.
        more: bool,
    },
}

/// A node's account of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    /// A name for people, from the configuration; need not be unique.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// When it started, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// Sockets on the node.
    pub sockets: u64,
    /// Rooms with members on the node.
    pub rooms: u64,
    /// Takes no new sockets and is about to stop.
    pub draining: bool,
    /// The number of the latest change of its rooms: see [`Occupancy`].
    pub occupancy: u64,
    /// Which one on the node's connection, from 1; zero of a node that does not count.
    pub number: u64,
}

/// What a socket is sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Payload {
    /// A named event; `data` is JSON text that nobody on the way parses or changes.
    Event {
        /// The event.
        name: EventName,
        /// JSON text, absent where there is none.
        data: Option<Bytes>,
    },
    /// A bare text frame.
    Text(Text),
    /// A bare binary frame.
    Binary(Bytes),
}

/// Bytes that were seen to be UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(Bytes);

/// A send to many.
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// Whose sockets.
    pub to: Audience,
    /// What they are sent.
    pub payload: Payload,
    /// The socket that sent it, if a client did.
    pub from: Option<SocketId>,
    /// Sockets that must not get it.
    pub except: Vec<SocketId>,
    /// The same number, given by the origin, on every copy of one send to several rooms: a socket in
    /// more than one of them gets one copy.
    pub once: Option<u64>,
    /// The origin waits for each node to say how many sockets it reached.
    pub confirm: bool,
    /// Present where it is sampled. Few are, and so it takes no more room than a pointer.
    pub trace: Option<Box<TraceContext>>,
}

/// A place in a trace, by the ids of W3C Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span of it that something is part of.
    pub span_id: [u8; 8],
}

/// Whose sockets a publication goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The members of a room.
    Room(RoomName),
    /// Every socket of the cluster.
    Everyone,
}

/// What one node asks of another.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// "Do your messages reach me, and mine you?"
    Probe,
    /// Do something with sockets of the asked node.
    Act(Target, Act),
    /// Describe a socket.
    Socket(SocketId),
    /// List rooms, by name.
    Rooms(RoomsQuery),
    /// List the members of a room, by id.
    Sockets(SocketsQuery),
    /// "Tell everybody all your rooms": I have missed some of your [`Occupancy`].
    Occupancy,
    /// "I publish to this room and count: say zero if you do not listen to it."
    NotSubscribed(RoomName),
    /// "Drain, and stop."
    Drain,
    /// "What has passed you since I last asked?"
    Tail(TailQuery),
    /// Something that this version does not know, or cannot read: the answer is [`Answer::Unsupported`].
    Unknown,
}

/// Which sockets a [`Request::Act`] means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// These. The answer is [`Answer::Statuses`].
    Sockets(Vec<SocketId>),
    /// The members of a room. The answer is [`Answer::Count`].
    Room(RoomName),
    /// All sockets of a user. The answer is [`Answer::Count`].
    User(UserName),
}

/// What is done with sockets.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Send to them.
    Emit {
        /// What they are sent.
        payload: Payload,
        /// The socket that sent it, if a client did.
        from: Option<SocketId>,
        /// Present where it is sampled.
        trace: Option<Box<TraceContext>>,
    },
    /// Make them members of a room.
    Join(RoomName),
    /// Undo [`Act::Join`].
    Leave(RoomName),
    /// Close them.
    Disconnect {
        /// What they are told.
        close: Close,
        /// After how many milliseconds.
        after_ms: u64,
    },
}

/// A look at what passes a node. It renews a lease, or begins it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailQuery {
    /// The lease, by a number that whoever watches has drawn.
    pub id: u64,
    /// What is wanted; anything, where it is empty.
    pub filters: Vec<String>,
    /// Most bytes of a payload.
    pub data_bytes: usize,
    /// How long to wait where there is nothing.
    pub wait: Duration,
}

/// One page of rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomsQuery {
    /// Only names that begin so.
    pub prefix: String,
    /// Only names after this one.
    pub after: String,
    /// Most rooms in the answer.
    pub limit: usize,
}

/// One page of a room's sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketsQuery {
    /// The room.
    pub room: RoomName,
    /// Only ids after this one.
    pub after: Option<SocketId>,
    /// Most sockets in the answer.
    pub limit: usize,
}

/// Answers a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To [`Request::Probe`].
    Pong,
    /// To requests that name sockets.
    Statuses(Vec<(SocketId, Status)>),
    /// How many sockets were reached, or meant.
    Count(u64),
    /// To [`Request::Socket`].
    Socket(Option<SocketInfo>),
    /// To [`Request::Rooms`].
    Rooms(RoomsPage),
    /// To [`Request::Sockets`].
    Sockets(SocketsPage),
    /// To [`Request::Tail`].
    Tail(TailPage),
    /// To what a version does not know; and an answer that this version does not know.
    Unsupported,
}

/// What became of a send to one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is in the socket's send queue on its node.
    Delivered,
    /// No such socket now.
    NotFound,
    /// The socket's node no longer answers.
    NodeGone,
    /// The socket's queue, or a limit of the socket, is full.
    Dropped,
    /// No answer in time: it may have arrived or not.
    Timeout,
    /// Not a socket id.
    Invalid,
}

/// A socket, described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketInfo {
    /// Its id.
    pub id: SocketId,
    /// The rooms that it is in, in the order of joining.
    pub rooms: Vec<RoomName>,
    /// Whom it belongs to, where that is known.
    pub user: Option<UserName>,
    /// In milliseconds since 1970.
    pub connected_at_ms: u64,
    /// The peer's address.
    pub remote_addr: String,
    /// Bytes that wait to be written to it.
    pub queued_bytes: u64,
}

/// What has passed a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TailPage {
    /// JSON objects.
    pub lines: Vec<Bytes>,
    /// How many there were since the lease began, with those that found no room.
    pub seen: u64,
}

/// Rooms in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoomsPage {
    /// Each with the number of its sockets.
    pub rooms: Vec<(RoomName, u64)>,
    /// Whether there are rooms after the last.
    pub more: bool,
}

/// Sockets of a room in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketsPage {
    /// Each with its user, where that is known.
    pub sockets: Vec<(SocketId, Option<UserName>)>,
    /// All sockets of the room, on this page or not.
    pub count: u64,
    /// Whether there are sockets after the last.
    pub more: bool,
}

impl Text {
    /// The bytes, when they are UTF-8.
    pub fn from_utf8(bytes: Bytes) -> Result<Self, std::str::Utf8Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes of the text.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl Payload {
    /// Bytes that a user chose, for limits and budgets.
    pub fn len(&self) -> usize {
        match self {
            Self::Event { name, data } => name.as_str().len() + data.as_ref().map_or(0, Bytes::len),
            Self::Text(text) => text.0.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Publication {
    /// A publication by nobody in particular, to all of `to`.
    pub fn new(to: Audience, payload: Payload) -> Self {
        Self {
            to,
            payload,
            from: None,
            except: Vec::new(),
            once: None,
            confirm: false,
            trace: None,
        }
    }
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Delivered,
        Self::NotFound,
        Self::NodeGone,
        Self::Dropped,
        Self::Timeout,
        Self::Invalid,
    ];

    /// The word for it in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::NotFound => "not_found",
            Self::NodeGone => "node_gone",
            Self::Dropped => "dropped",
            Self::Timeout => "timeout",
            Self::Invalid => "invalid",
        }
    }
}
