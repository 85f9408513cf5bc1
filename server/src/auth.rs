//! Who a client is and what it may do.

use std::sync::Arc;
use std::time::SystemTime;

use proto::{RoomName, UserName};
use tokio::time::Instant;

use crate::config;
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

    /// When a socket with it is closed, by the clock of this process: when it has ended, and some patience after.
    pub fn expires(&self, now: Instant, config: &config::Auth) -> Option<Instant> {
        let left = self.expires_at?.duration_since(SystemTime::now());
        now.checked_add(left.unwrap_or_default() + config.expired_close_delay)
    }

    /// Whether nothing is said against the room.
    pub fn admits(&self, room: &RoomName) -> bool {
        self.rooms.is_none() || self.names(room)
    }
}
// STUB
use crate::handshake::Handshake;
use actix_http::header::HeaderMap;
use std::net::SocketAddr;
/// x
pub struct Auth {}
impl Auth {
    /// x
    pub fn start(
        config: &config::Auth,
        hooks: &config::Hooks,
        outside: &tokio::runtime::Handle,
    ) -> anyhow::Result<Self> {
        let _ = (config, hooks, outside);
        Ok(Self {})
    }
    /// x
    pub async fn authenticate(&self, handshake: &Handshake) -> Result<Grant, Denied> {
        let _ = handshake;
        Ok(Grant::default())
    }
    /// x
    pub fn check_origin(&self, handshake: &Handshake) -> Result<(), Denied> {
        let _ = handshake;
        Ok(())
    }
    /// x
    pub async fn refresh(&self, token: &str) -> Result<Grant, Denied> {
        let _ = token;
        Ok(Grant::default())
    }
    /// x
    pub fn client_address(&self, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        let _ = headers;
        peer
    }
}
