//! A client connection, as handlers see it.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use proto::{RoomName, SocketId, UserName};
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::warn;

use crate::delivery::payload_frame;
use crate::seldom::Seldom;
use crate::session::SessionRef;
use crate::unisono::{Disconnect, Outgoing, SendError, Unisono, event, text};
use proto::Payload;
use proto::envelope::Status;

/// A client connection, in the hands of a handler. Cheap to clone; it may be kept, and used from elsewhere.
/// Once the connection is over, what is sent to it is `NotFound`.
///
/// ```
/// use unisono_server::{App, HandlerError, Message, Room, Socket, SocketId, Status};
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// #[derive(serde::Deserialize)]
/// struct Private {
///     to: SocketId,
///     text: String,
/// }
///
/// async fn private(socket: Socket, message: Message) -> Result<Status, HandlerError> {
///     let Private { to, text } = message.data()?;
///     Ok(socket.unisono().emit(to, "private message", &text).await?)
/// }
/// let room = Room::new("/private").on("private message", private);
/// # let node = TestNode::start(App::new().room(room)).await;
/// # let mut a = node.connect("/private").await;
/// # let mut b = node.connect("/private").await;
/// # let data = serde_json::json!({"to": b.id(), "text": "hi"});
/// # assert_eq!(a.ask("private message", data).await, "delivered");
/// # assert_eq!(b.event("private message").await, "hi");
/// # }
/// ```
#[derive(Clone)]
pub struct Socket(pub(crate) Arc<Inner>);

/// Texts that speak for the server.
static REFUSED: Seldom = Seldom::new();

pub(crate) struct Inner {
    pub(crate) session: OnceLock<SessionRef>,
    pub(crate) id: SocketId,
    pub(crate) unisono: Unisono,
    pub(crate) room: RoomName,
    pub(crate) parameters: Vec<(String, String)>,
    pub(crate) user: Option<UserName>,
    pub(crate) peer: SocketAddr,
    pub(crate) context: Context,
    /// Held by the handler that is at work: the next waits.
    pub(crate) lane: Mutex<()>,
}

/// Values that an application keeps with a connection, one of each type, for as long as the socket lives; they
/// are still there in `on_close`.
///
/// ```
/// use unisono_server::Context;
///
/// struct Username(String);
///
/// let context = Context::default();
/// context.set(Username("alice".to_owned()));
/// assert_eq!(context.get::<Username>().unwrap().0, "alice");
/// assert!(context.get::<u8>().is_none());
/// ```
#[derive(Default)]
pub struct Context(RwLock<HashMap<TypeId, Value>>);

type Value = Arc<dyn Any + Send + Sync>;

impl Socket {
    /// The id, by which anybody in the cluster can send to the socket.
    pub fn id(&self) -> SocketId {
        self.0.id
    }

    /// Whose it is, where `[auth]` or `on_handshake` said so.
    pub fn user(&self) -> Option<&str> {
        self.0.user.as_ref().map(UserName::as_str)
    }

    /// The room of the URL.
    pub fn room(&self) -> &str {
        self.0.room.as_str()
    }

    /// What a parameter of the pattern stands for in the room of the URL.
    pub fn param(&self, name: &str) -> Option<&str> {
        let mut parameters = self.0.parameters.iter();
        parameters
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    /// Where the client is.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// What the application keeps with the connection.
    pub fn context(&self) -> &Context {
        &self.0.context
    }

    /// Whether what is sent to it now may still be delivered.
    pub fn is_open(&self) -> bool {
        self.0.session.get().is_some_and(SessionRef::is_open)
    }

    /// The cluster: to send to others.
    pub fn unisono(&self) -> &Unisono {
        &self.0.unisono
    }

    /// Sends to this client, before the ack of the message that is being handled. There is nothing to await.
    ///
    /// # Errors
    ///
    /// When the name or the data are none.
    pub fn emit(&self, name: &str, data: impl Serialize) -> Result<Status, SendError> {
        Ok(self.deliver(&event(name, data)?))
    }

    /// Sends a bare text frame to this client. One that reads as an event of the server's own is
    /// [`Dropped`](Status::Dropped), with a line in the log.
    pub fn send_text(&self, frame: impl Into<String>) -> Status {
        match text(frame) {
            Ok(text) => self.deliver(&text),
            Err(error) => {
                if let Some(frames) = REFUSED.add(Instant::now(), 1) {
                    warn!(%error, frames, "texts of the application were not sent");
                }
                Status::Dropped
            }
        }
    }

    /// Sends a bare binary frame to this client.
    pub fn send_binary(&self, frame: impl Into<bytes::Bytes>) -> Status {
        self.deliver(&Payload::Binary(frame.into()))
    }

    fn deliver(&self, payload: &Payload) -> Status {
        match self.0.session.get() {
            Some(session) => {
                let sockets = &self.0.unisono.shared.config.sockets;
                let wire = session.wire.for_payload(payload, sockets.deflate_min_bytes);
                session.emit(&payload_frame(wire, payload, None, None))
            }
            None => Status::NotFound,
        }
    }

    /// Publishes to the room of the URL, to all but this socket.
    pub fn publish(&self, name: &str, data: impl Serialize) -> Outgoing {
        let room = self.0.room.as_str();
        self.0.unisono.publish(room, name, data).except(self.id())
    }

    /// Sends to every socket of the cluster but this.
    pub fn broadcast(&self, name: &str, data: impl Serialize) -> Outgoing {
        self.0.unisono.broadcast(name, data).except(self.id())
    }

    /// Becomes a member of a room, and waits until what is published to it on any node is received.
    ///
    /// # Errors
    ///
    /// When the name is none.
    pub async fn join(&self, room: &str) -> Result<Status, SendError> {
        self.0.unisono.join(self.id(), room).await
    }

    /// Undoes [`Socket::join`].
    ///
    /// # Errors
    ///
    /// When the name is none.
    pub async fn leave(&self, room: &str) -> Result<Status, SendError> {
        self.0.unisono.leave(self.id(), room).await
    }

    /// Closes the connection, after what was sent to it.
    pub fn disconnect(&self) -> Disconnect {
        self.0.unisono.disconnect(self.id())
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut socket = f.debug_struct("Socket");
        socket.field("id", &self.id()).field("room", &self.room());
        socket.finish_non_exhaustive()
    }
}

impl Context {
    /// Keeps a value, in place of an earlier one of its type, which is returned.
    pub fn set<T: Any + Send + Sync>(&self, value: T) -> Option<Arc<T>> {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let earlier = values.insert(TypeId::of::<T>(), Arc::new(value));
        earlier.and_then(|earlier| earlier.downcast().ok())
    }

    /// The value of that type.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let values = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let value = values.get(&TypeId::of::<T>())?;
        Arc::clone(value).downcast().ok()
    }

    /// Changes the value of that type, beginning with its default; other values of the context cannot be reached
    /// meanwhile.
    ///
    /// ```
    /// # let context = unisono_server::Context::default();
    /// let count = |count: &mut u32| {
    ///     *count += 1;
    ///     *count
    /// };
    /// assert_eq!((context.update(count), context.update(count)), (1, 2));
    /// ```
    pub fn update<T: Any + Send + Sync + Clone + Default, R>(
        &self,
        change: impl FnOnce(&mut T) -> R,
    ) -> R {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let value = values.remove(&TypeId::of::<T>());
        let value = value.and_then(|value| value.downcast::<T>().ok());
        let mut value = value.unwrap_or_default();
        let changed = change(Arc::make_mut(&mut value));
        values.insert(TypeId::of::<T>(), value);
        changed
    }

    /// Takes the value of that type away.
    pub fn remove<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        let mut values = self.0.write().unwrap_or_else(PoisonError::into_inner);
        values.remove(&TypeId::of::<T>())?.downcast().ok()
    }
}
