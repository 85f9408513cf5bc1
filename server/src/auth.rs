//! Who a client is and what it may do.

use std::sync::Arc;
use std::time::SystemTime;

use proto::{RoomName, UserName};

use crate::rules::Pattern;

/// What a client was granted when it came, or with a fresh token since.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Who it is, where somebody said so.
    pub user: Option<UserName>,
    /// The rooms that it may be in and publish to; none for all that the rules allow.
    pub rooms: Option<Arc<[Pattern]>>,
    /// What it may do.
    pub rights: Rights,
    /// When all of this ends.
    pub expires_at: Option<SystemTime>,
}

/// What a client may do, where the rules of the room allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// `unisono:join`.
    pub join: bool,
    /// `unisono:publish`.
    pub publish: bool,
    /// `unisono:emit`.
    pub emit: bool,
    /// Events of its own.
    pub send: bool,
}

/// Why a client is not let in, or a token not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nothing shows who it is, or what does is not good: 401. The text is for the client.
    Unauthorized(String),
    /// It is known, and may not: 403. The text is for the client.
    Forbidden(String),
    /// Who could tell does not answer: 503. The text is for the client.
    Unavailable(String),
}

impl Default for Rights {
    fn default() -> Self {
        Self {
            join: true,
            publish: true,
            emit: true,
            send: true,
        }
    }
}

impl Grant {
    /// Whether the room is among those that the client was granted by name: not by the lack of a list.
    pub fn names(&self, room: &RoomName) -> bool {
        let rooms = self.rooms.as_deref().unwrap_or_default();
        rooms.iter().any(|pattern| pattern.matches(room.as_str()))
    }

    /// Whether nothing is said against the room.
    pub fn admits(&self, room: &RoomName) -> bool {
        self.rooms.is_none() || self.names(room)
    }
}
