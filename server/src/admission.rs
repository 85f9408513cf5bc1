//! Who is let in: all that is checked before the answer to a handshake, on either wire.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError};

use futures_util::FutureExt;
use proto::{RoomName, SocketId, UserName};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::app::{Accept, Context, Inner, Refuse, Socket};
use crate::auth::{Denied, Grant};
use crate::delivery::Wire;
use crate::handshake::Handshake;
use crate::meters;
use crate::places::Place;
use crate::rules::{Pattern, Rule};
use crate::seldom::Seldom;
use crate::shared::{Shared, Slot};
use crate::unisono::Unisono;
use crate::websocket::handshake::Refusal;

/// Handshakes for which there was no place.
static FULL: Seldom = Seldom::new();

/// A client that is let in.
pub struct Admitted {
    /// The room of the URL.
    pub room: RoomName,
    /// Its rule.
    pub rule: Arc<Rule>,
    /// What the client may do.
    pub grant: Grant,
    /// Where it is.
    pub peer: SocketAddr,
    /// What the application keeps with the connection.
    context: Context,
    /// Its place among the sockets of the node.
    pub slot: Slot,
    /// The place of its room on the node, until it is a member.
    pub place: Place,
}

/// Asks everybody who has a say, in the order of what it costs to ask.
pub async fn admit(shared: &Shared, wire: Wire, handshake: Handshake) -> Result<Admitted, Refusal> {
    let admitted = decide(shared, wire, handshake).await;
    match &admitted {
        Ok(_) => meters::accepted(),
        Err(refusal) => meters::refused(&refusal.status),
    }
    admitted
}

async fn decide(
    shared: &Shared,
    wire: Wire,
    mut handshake: Handshake,
) -> Result<Admitted, Refusal> {
    handshake.peer = shared
        .auth
        .client_address(handshake.peer, &handshake.headers);
    if let Some(addresses) = &shared.addresses {
        let mut addresses = addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if !addresses.take(handshake.peer.ip(), Instant::now()) {
            meters::rate_limited("handshake");
            return Err(Refusal {
                header: "Retry-After: 1\r\n",
                ..Refusal::of(
                    "429 Too Many Requests",
                    "rate_limited",
                    "too many handshakes from this address",
                )
            });
        }
    }
    let room = handshake.room.clone();
    let Some(rule) = shared.config.rules.find(&room).cloned() else {
        let message = "there is no such room";
        return Err(Refusal::of("404 Not Found", "no_such_room", message));
    };
    if !rule.join.by_url() {
        return Err(forbidden("clients may not come to this room by its URL"));
    }
    let slot = shared.load.socket(wire, shared.config.sockets.max);
    // After it is counted: a drain that begins now either is seen or sees it.
    if shared.load.draining.load(Ordering::SeqCst) {
        let message = "the node is about to stop";
        return Err(Refusal::unavailable("draining", message));
    }
    let Some(slot) = slot else {
        if let Some(handshakes) = FULL.add(Instant::now(), 1) {
            warn!(
                handshakes,
                "handshakes are refused: sockets.max are there already"
            );
        }
        return Err(Refusal::unavailable("full", "the node is full"));
    };
    shared.auth.check_origin(&handshake)?;
    let mut grant = shared.auth.authenticate(&handshake).await?;
    let mut context = Context::default();
    grant.holder = grant.user.clone();
    handshake.user = grant.user.clone();
    let handler = rule
        .handlers
        .as_ref()
        .and_then(|handlers| handlers.handshake());
    if let Some(handler) = handler {
        let limit = shared.config.sockets.handler_timeout;
        let mut handshake = handshake.clone();
        handshake.parameters = parameters(&rule, &room);
        let caught = AssertUnwindSafe(async { handler(handshake).await }).catch_unwind();
        let accept = match timeout(limit, caught).await {
            Ok(Ok(accept)) => accept?,
            Ok(Err(_)) => {
                complain("it panicked");
                return Err(handler_failed());
            }
            Err(_) => {
                complain(format_args!("it took longer than {limit:?}"));
                let message = "the application does not answer handshakes";
                return Err(Refusal::unavailable("unavailable", message));
            }
        };
        context = accepted(accept, &mut grant)?;
    }
    let entered = shared.config.rules.may_enter(&rule, &room, &grant);
    entered.map_err(|(_, message)| forbidden(message))?;
    let Ok(place) = shared.places.take(&room) else {
        return Err(Refusal::unavailable("full", TOO_MANY_ROOMS));
    };
    Ok(Admitted {
        room,
        rule,
        grant,
        peer: handshake.peer,
        context,
        slot,
        place,
    })
}

/// Why no room that is new to the node finds a place.
pub const TOO_MANY_ROOMS: &str = "the node has too many rooms";

/// Handshakes that the application's handler did not decide.
static UNDECIDED: Seldom = Seldom::new();

/// Any client can make the handler fail once more.
fn complain(why: impl std::fmt::Display) {
    if let Some(handshakes) = UNDECIDED.add(Instant::now(), 1) {
        warn!(%why, handshakes, "on_handshake failed");
    }
}

fn accepted(accept: Accept, grant: &mut Grant) -> Result<Context, Refusal> {
    if let Some(user) = accept.user {
        let user = UserName::parse(&user).map_err(|error| {
            complain(format_args!("it gave a bad name of a user: {error}"));
            handler_failed()
        })?;
        grant.user = Some(user);
    }
    if let Some(rooms) = accept.rooms {
        let patterns = rooms.iter().map(|pattern| Pattern::parse(pattern));
        let patterns = patterns.collect::<Result<_, _>>().map_err(|error| {
            complain(format_args!("it gave a bad pattern: {error}"));
            handler_failed()
        })?;
        grant.within = Some(patterns);
    }
    Ok(accept.context)
}

fn parameters(rule: &Rule, room: &RoomName) -> Vec<(String, String)> {
    let parameters = rule.pattern.parameters(room.as_str()).into_iter();
    parameters
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

fn handler_failed() -> Refusal {
    let status = "500 Internal Server Error";
    Refusal::of(status, "handler_failed", "the handler failed")
}

fn forbidden(message: &str) -> Refusal {
    Refusal::of("403 Forbidden", "forbidden", message)
}

impl Admitted {
    /// The socket for handlers, where the room has some. To be taken once.
    pub fn socket(&mut self, id: SocketId, unisono: &Unisono) -> Option<Socket> {
        self.rule.handlers.as_ref()?;
        Some(Socket(Arc::new(Inner {
            session: OnceLock::new(),
            id,
            unisono: unisono.clone(),
            room: self.room.clone(),
            parameters: parameters(&self.rule, &self.room),
            user: self.grant.user.clone(),
            peer: self.peer,
            context: std::mem::take(&mut self.context),
            lane: Mutex::new(()),
        })))
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthorized(why) => Self {
                header: "WWW-Authenticate: Bearer\r\n",
                ..Self::of("401 Unauthorized", "unauthorized", &why)
            },
            Denied::Forbidden(why) => Self::of("403 Forbidden", "forbidden", &why),
            Denied::Unavailable(why) => Self::unavailable("unavailable", &why),
        }
    }
}

impl From<Refuse> for Refusal {
    fn from(Refuse { status, message }: Refuse) -> Self {
        let status = actix_http::StatusCode::from_u16(status);
        let status = status.unwrap_or(actix_http::StatusCode::FORBIDDEN);
        let reason = status.canonical_reason().unwrap_or("Refused");
        Self::of(format!("{} {reason}", status.as_u16()), "refused", &message)
    }
}
