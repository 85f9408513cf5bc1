//! A publication on its way to the sockets of this node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use cluster::Permit;
use proto::client::event_text;
use proto::{Audience, NodeId, Payload, Publication, RoomName, SocketId};
use tokio::sync::oneshot;

use crate::websocket::Opcode;
use crate::websocket::frame::encode;

/// A publication that the workers of a node share, with its frame, which is made once. When the last
/// worker has let go of it, its share of the budget is free, and whoever counts learns the sum.
pub struct Delivery {
    publication: Publication,
    origin: NodeId,
    frame: OnceLock<Bytes>,
    tally: Option<Tally>,
    permit: Permit,
}

/// Counts the sockets that were reached.
struct Tally {
    reached: AtomicU64,
    done: Mutex<Option<oneshot::Sender<u64>>>,
}

impl Delivery {
    /// A publication that nobody counts.
    pub fn new(publication: Publication, origin: NodeId, permit: Permit) -> Arc<Self> {
        Self::with_tally(publication, origin, permit, None)
    }

    /// A publication that is counted: `done` gets the number of sockets of this node that it reached.
    pub fn counted(
        publication: Publication,
        origin: NodeId,
        permit: Permit,
        done: oneshot::Sender<u64>,
    ) -> Arc<Self> {
        let tally = Tally {
            reached: AtomicU64::new(0),
            done: Mutex::new(Some(done)),
        };
        Self::with_tally(publication, origin, permit, Some(tally))
    }

    fn with_tally(
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
            frame: OnceLock::new(),
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

    /// The frame, made at the first call.
    pub fn frame(&self) -> &Bytes {
        let room = match &self.publication.to {
            Audience::Room(room) => Some(room),
            Audience::Everyone => None,
        };
        self.frame
            .get_or_init(|| payload_frame(&self.publication.payload, room, self.publication.from))
    }

    /// Sockets were reached.
    pub fn count(&self, sockets: u64) {
        if let Some(tally) = &self.tally {
            tally.reached.fetch_add(sockets, Ordering::Relaxed);
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let done = self.done.get_mut().ok().and_then(Option::take);
        if let Some(done) = done {
            let _ = done.send(*self.reached.get_mut());
        }
    }
}

/// The frame that a socket is sent. Sockets of every format are sent the same: an event as a JSON object,
/// because its sender gave it a name that must not get lost, and a bare payload as it is.
pub fn payload_frame(payload: &Payload, room: Option<&RoomName>, from: Option<SocketId>) -> Bytes {
    match payload {
        Payload::Event { name, data } => {
            let text = event_text(name, data.as_deref(), room, from);
            encode(Opcode::Text, &text)
        }
        Payload::Text(text) => encode(Opcode::Text, text.as_bytes()),
        Payload::Binary(bytes) => encode(Opcode::Binary, bytes),
    }
}
