//! A publication on its way to the sockets of this node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use cluster::Permit;
use proto::client::event_text;
use proto::{Audience, NodeId, Payload, Publication, RoomName, SocketId};
use tokio::sync::oneshot;

use crate::shared::Shared;
use crate::trace::Span;
use crate::websocket::frame::{encode, encode_compressed};
use crate::websocket::{Opcode, Window};

/// How bytes travel to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// As frames of a WebSocket.
    WebSocket,
    /// The same; large messages are compressed.
    Deflate,
    /// The same, for clients that keep little of a message.
    DeflateSmall,
    /// As server-sent events.
    EventStream,
}

/// A publication that the workers of a node share, with its frames, each made once. When the last
/// worker has let go of it, its share of the budget is free, and whoever counts learns the sum.
pub struct Delivery {
    publication: Publication,
    origin: NodeId,
    frames: [OnceLock<Bytes>; Wire::COUNT],
    /// Smaller messages are not compressed.
    deflate_min: usize,
    tally: Option<Tally>,
    permit: Permit,
}

/// Counts the sockets that were reached, for whoever waits for the sum and for the span, which ends with it.
struct Tally {
    reached: AtomicU64,
    done: Mutex<Option<oneshot::Sender<u64>>>,
    span: Option<Span>,
}

impl Delivery {
    /// A publication that nobody counts, unless it is traced.
    pub fn new(
        shared: &Shared,
        publication: Publication,
        origin: NodeId,
        permit: Permit,
    ) -> Arc<Self> {
        let span = shared.delivering(&publication, origin);
        let tally = span.map(|span| Tally::new(None, Some(span)));
        Self::with_tally(shared, publication, origin, permit, tally)
    }

    /// A publication that is counted: `done` gets the number of sockets of this node that it reached.
    pub fn counted(
        shared: &Shared,
        publication: Publication,
        origin: NodeId,
        permit: Permit,
        done: oneshot::Sender<u64>,
    ) -> Arc<Self> {
        let span = shared.delivering(&publication, origin);
        let tally = Tally::new(Some(done), span);
        Self::with_tally(shared, publication, origin, permit, Some(tally))
    }

    fn with_tally(
        shared: &Shared,
        mut publication: Publication,
        origin: NodeId,
        permit: Permit,
        tally: Option<Tally>,
    ) -> Arc<Self> {
        // For `excludes`.
        publication.except.sort_unstable();
        Arc::new(Self {
            publication,
            origin,
            frames: Default::default(),
            deflate_min: shared.config.sockets.deflate_min_bytes,
            tally,
            permit,
        })
    }

    /// Whether the socket must not get it.
    pub fn excludes(&self, id: SocketId) -> bool {
        self.publication.except.binary_search(&id).is_ok()
    }

    /// What is sent, to whom.
    pub fn publication(&self) -> &Publication {
        &self.publication
    }

    /// Its share of the budget.
    pub fn permit(&self) -> Permit {
        self.permit.clone()
    }

    /// The number that copies of one send share, with the node that gave it.
    pub fn once(&self) -> Option<(NodeId, u64)> {
        self.publication.once.map(|once| (self.origin, once))
    }

    /// Whether each socket reached has to be looked at: a batch will not do.
    pub fn is_particular(&self) -> bool {
        self.publication.once.is_some() || self.tally.is_some()
    }

    /// The frame, made at the first call for that wire.
    pub fn frame(&self, wire: Wire) -> &Bytes {
        let wire = wire.for_payload(&self.publication.payload, self.deflate_min);
        let room = match &self.publication.to {
            Audience::Room(room) => Some(room),
            Audience::Everyone => None,
        };
        let publication = &self.publication;
        self.frames[wire as usize]
            .get_or_init(|| payload_frame(wire, &publication.payload, room, publication.from))
    }

    /// Sockets were reached.
    pub fn count(&self, sockets: u64) {
        if let Some(tally) = &self.tally {
            tally.reached.fetch_add(sockets, Ordering::Relaxed);
        }
    }
}

impl Tally {
    fn new(done: Option<oneshot::Sender<u64>>, span: Option<Span>) -> Self {
        Self {
            reached: AtomicU64::new(0),
            done: Mutex::new(done),
            span,
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let reached = *self.reached.get_mut();
        // Ends before anybody hears of it.
        if let Some(mut span) = self.span.take() {
            span.reached(reached);
        }
        let done = self.done.get_mut().ok().and_then(Option::take);
        if let Some(done) = done {
            let _ = done.send(reached);
        }
    }
}

/// The frame that a socket is sent, on a [`Wire::for_payload`]. Sockets of every format are sent the same: an event as a JSON object,
/// because its sender gave it a name that must not get lost, and a bare payload as it is.
pub fn payload_frame(
    wire: Wire,
    payload: &Payload,
    room: Option<&RoomName>,
    from: Option<SocketId>,
) -> Bytes {
    let text = |text: &[u8]| match wire.window() {
        Some(window) => encode_compressed(Opcode::Text, text, window),
        None => wire.text(text),
    };
    match payload {
        Payload::Event { name, data } => text(&event_text(name, data.as_deref(), room, from)),
        Payload::Text(bytes) => text(bytes.as_bytes()),
        Payload::Binary(bytes) => match wire.window() {
            Some(window) => encode_compressed(Opcode::Binary, bytes, window),
            None => wire.binary(bytes),
        },
    }
}

impl Wire {
    /// All there are.
    pub const ALL: [Self; 4] = [
        Self::WebSocket,
        Self::Deflate,
        Self::DeflateSmall,
        Self::EventStream,
    ];

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// A WebSocket whose client agreed to that compression, or to none.
    pub fn of_websocket(deflate: Option<Window>) -> Self {
        match deflate {
            None => Self::WebSocket,
            Some(Window::Large) => Self::Deflate,
            Some(Window::Small) => Self::DeflateSmall,
        }
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket | Self::Deflate | Self::DeflateSmall => "websocket",
            Self::EventStream => "event_stream",
        }
    }

    /// How messages are compressed on it.
    pub fn window(self) -> Option<Window> {
        match self {
            Self::Deflate => Some(Window::Large),
            Self::DeflateSmall => Some(Window::Small),
            Self::WebSocket | Self::EventStream => None,
        }
    }

    /// The wire whose frame the payload has on this one: without compression, where it is smaller than that.
    pub fn for_payload(self, payload: &Payload, deflate_min: usize) -> Self {
        match self {
            Self::Deflate | Self::DeflateSmall if payload.len() < deflate_min => Self::WebSocket,
            wire => wire,
        }
    }

    /// A text for a client, not compressed.
    pub fn text(self, text: &[u8]) -> Bytes {
        match self {
            Self::EventStream => sse::data(text),
            _ => encode(Opcode::Text, text),
        }
    }

    /// Bytes for a client, not compressed. A stream of events is text: there they are base64, in an event named
    /// `binary`.
    pub fn binary(self, bytes: &[u8]) -> Bytes {
        match self {
            Self::EventStream => sse::binary(bytes),
            _ => encode(Opcode::Binary, bytes),
        }
    }
}

/// The format of an event stream (HTML Living Standard §9.2.6).
pub mod sse {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use bytes::Bytes;

    /// A line that says nothing.
    pub const COMMENT: &[u8] = b":\n\n";

    /// An event with that text. Its lines may end in any way: they come out with LF between them.
    pub fn data(text: &[u8]) -> Bytes {
        let mut event = Vec::with_capacity(text.len() + 16);
        let mut lines = text.split(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            let line = match lines.peek() {
                Some(_) => line.strip_suffix(b"\r").unwrap_or(line),
                None => line,
            };
            for part in line.split(|byte| *byte == b'\r') {
                event.extend_from_slice(b"data: ");
                event.extend_from_slice(part);
                event.push(b'\n');
            }
        }
        event.push(b'\n');
        event.into()
    }

    pub(super) fn binary(bytes: &[u8]) -> Bytes {
        format!("event: binary\ndata: {}\n\n", BASE64_STANDARD.encode(bytes)).into()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lines_stay_lines() {
            assert_eq!(data(b"one"), "data: one\n\n");
            assert_eq!(data(b""), "data: \n\n");
            let expected = "data: a\ndata: b\ndata: c\ndata: d\ndata: \n\n";
            assert_eq!(data(b"a\nb\r\nc\rd\n"), expected);
            assert_eq!(binary(b"hi"), "event: binary\ndata: aGk=\n\n");
        }
    }
}
