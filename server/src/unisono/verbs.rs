//! The verbs of an application, with names and values as it has them at hand.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use actix_web::ResponseError;
use actix_web::http::StatusCode;
use bytes::Bytes;
use cluster::{CallError, Sent};
use proto::close::CloseError;
use proto::envelope::{Act, SocketsPage, SocketsQuery, Status, Target};
use proto::name::NameError;
use proto::{Audience, Close, EventName, Payload, RoomName, SocketId, UserName};
use serde::Serialize;

use super::{Partial, PublishError, Unisono};

/// Why nothing was sent. In a route of the application's, `?` makes an HTTP answer of it.
///
/// ```
/// use actix_web::{HttpResponse, web};
/// use unisono_server::{App, SendError, Unisono};
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// async fn news(unisono: web::Data<Unisono>, room: web::Path<String>) -> Result<HttpResponse, SendError> {
///     unisono.publish(&room, "news", "it works").await?;
///     Ok(HttpResponse::Ok().finish())
/// }
/// let app = App::new().routes(|config| {
///     config.route("/news/{room}", web::get().to(news));
/// });
/// # let node = TestNode::start(app).await;
/// # assert_eq!(node.get("/news/sports").await, 200);
/// # assert_eq!(node.get("/news/no%00name").await, 400);
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The name of a room, an event or a user that is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Data that cannot be written as JSON.
    #[error("data that is no JSON: {0}")]
    Data(#[from] serde_json::Error),
    /// Too large, or too much is on its way.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// A close code or a reason that an application may not use.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// The node of the socket does not answer.
    #[error("the node of the socket does not answer")]
    Timeout,
}

/// Something to be sent to rooms, or to everybody. Nothing is sent before `.await`.
#[must_use = "nothing is sent before it is awaited"]
pub struct Outgoing {
    unisono: Unisono,
    what: Result<(Vec<Audience>, Payload), SendError>,
    except: Vec<SocketId>,
}

/// As [`Outgoing`], and whoever awaits it learns how many sockets were reached.
#[must_use = "nothing is sent before it is awaited"]
pub struct Confirmed(Outgoing);

/// A socket that is to be closed. It is not before `.await`.
///
/// ```
/// # use std::time::Duration;
/// use unisono_server::{App, Message, Room, Socket};
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// let room = Room::new("/").on("bye", async |socket: Socket, _: Message| {
///     let after = Duration::from_millis(1);
///     let _ = socket.disconnect().code(4000).reason("bye").after(after).await;
/// });
/// # let node = TestNode::start(App::new().room(room)).await;
/// # let mut client = node.connect("/").await;
/// # client.send("bye", ()).await;
/// # assert_eq!(client.closed().await, (4000, "bye".to_owned()));
/// # }
/// ```
#[must_use = "nothing is closed before it is awaited"]
pub struct Disconnect {
    unisono: Unisono,
    id: SocketId,
    code: u16,
    reason: String,
    after: Duration,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An event with its data.
pub(crate) fn event(name: &str, data: impl Serialize) -> Result<Payload, SendError> {
    let name = EventName::parse_user(name)?;
    let data = Some(Bytes::from(serde_json::to_vec(&data)?));
    Ok(Payload::Event { name, data })
}

/// A bare text frame.
pub(crate) fn text(frame: impl Into<String>) -> Payload {
    Payload::Text(frame.into().into())
}

fn room(name: &str) -> Result<Vec<Audience>, SendError> {
    Ok(vec![Audience::Room(RoomName::parse(name)?)])
}

impl Unisono {
    /// Sends an event to a socket, wherever it is, and says what became of it.
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn emit(
        &self,
        to: SocketId,
        name: &str,
        data: impl Serialize,
    ) -> Result<Status, SendError> {
        self.emit_payload(to, event(name, data)?).await
    }

    /// Sends a bare text frame to a socket.
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn send_text(
        &self,
        to: SocketId,
        frame: impl Into<String>,
    ) -> Result<Status, SendError> {
        self.emit_payload(to, text(frame)).await
    }

    /// Sends a bare binary frame to a socket.
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn send_binary(
        &self,
        to: SocketId,
        frame: impl Into<Bytes>,
    ) -> Result<Status, SendError> {
        self.emit_payload(to, Payload::Binary(frame.into())).await
    }

    async fn emit_payload(&self, to: SocketId, payload: Payload) -> Result<Status, SendError> {
        let emit = Act::Emit {
            payload,
            from: None,
        };
        self.act_on_one(to, &emit).await
    }

    /// Sends an event to all sockets of a user, and says how many there were.
    ///
    /// ```
    /// # use unisono_server::{Accept, Handshake, testing::TestNode};
    /// use unisono_server::{App, Room, SendError, Unisono};
    ///
    /// async fn remind(unisono: &Unisono, user: &str) -> Result<bool, SendError> {
    ///     let reached = unisono.emit_to_user(user, "reminder", "now").await?;
    ///     Ok(reached.value > 0)
    /// }
    /// # #[actix_rt::main]
    /// # async fn main() {
    /// # let room = Room::new("/").on_handshake(async |_: Handshake| Ok(Accept::new().user("alice")));
    /// # let node = TestNode::start(App::new().room(room)).await;
    /// # let mut client = node.connect("/").await;
    /// # assert!(remind(&node.unisono(), "alice").await.unwrap());
    /// # assert!(!remind(&node.unisono(), "bob").await.unwrap());
    /// # assert_eq!(client.event("reminder").await, "now");
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn emit_to_user(
        &self,
        user: &str,
        name: &str,
        data: impl Serialize,
    ) -> Result<Partial<u64>, SendError> {
        let target = Target::User(UserName::parse(user)?);
        let emit = Act::Emit {
            payload: event(name, data)?,
            from: None,
        };
        Ok(self.act_on(target, emit)?.await)
    }

    /// Publishes an event to a room.
    ///
    /// ```
    /// # use unisono_server::testing::TestNode;
    /// use unisono_server::{App, SendError, SocketId, Unisono};
    ///
    /// async fn tell_the_others(unisono: &Unisono, sender: SocketId) -> Result<u64, SendError> {
    ///     let news = unisono.publish("/news", "headline", "it works").except(sender);
    ///     Ok(news.confirm().await?.value)
    /// }
    /// # #[actix_rt::main]
    /// # async fn main() {
    /// # let node = TestNode::start(App::new()).await;
    /// # let a = node.connect("/news").await;
    /// # let mut b = node.connect("/news").await;
    /// # assert_eq!(tell_the_others(&node.unisono(), a.id()).await.unwrap(), 1);
    /// # assert_eq!(b.event("headline").await, "it works");
    /// # }
    /// ```
    pub fn publish(&self, to: &str, name: &str, data: impl Serialize) -> Outgoing {
        self.outgoing(room(to).and_then(|to| Ok((to, event(name, data)?))))
    }

    /// Publishes a bare text frame to a room.
    pub fn publish_text(&self, to: &str, frame: impl Into<String>) -> Outgoing {
        self.outgoing(room(to).map(|to| (to, text(frame))))
    }

    /// Publishes a bare binary frame to a room.
    pub fn publish_binary(&self, to: &str, frame: impl Into<Bytes>) -> Outgoing {
        self.outgoing(room(to).map(|to| (to, Payload::Binary(frame.into()))))
    }

    /// Sends an event to every socket of the cluster.
    pub fn broadcast(&self, name: &str, data: impl Serialize) -> Outgoing {
        self.outgoing(event(name, data).map(|event| (vec![Audience::Everyone], event)))
    }

    /// Sends a bare text frame to every socket of the cluster.
    pub fn broadcast_text(&self, frame: impl Into<String>) -> Outgoing {
        self.outgoing(Ok((vec![Audience::Everyone], text(frame))))
    }

    /// Sends a bare binary frame to every socket of the cluster.
    pub fn broadcast_binary(&self, frame: impl Into<Bytes>) -> Outgoing {
        let payload = Payload::Binary(frame.into());
        self.outgoing(Ok((vec![Audience::Everyone], payload)))
    }

    fn outgoing(&self, what: Result<(Vec<Audience>, Payload), SendError>) -> Outgoing {
        Outgoing {
            unisono: self.clone(),
            what,
            except: Vec::new(),
        }
    }

    /// Makes a socket a member of a room: `Delivered` says that it receives what is published on any node.
    ///
    /// # Errors
    ///
    /// When the name is none.
    pub async fn join(&self, id: SocketId, room: &str) -> Result<Status, SendError> {
        let join = Act::Join(RoomName::parse(room)?);
        self.act_on_one(id, &join).await
    }

    /// Undoes [`Unisono::join`].
    ///
    /// # Errors
    ///
    /// When the name is none.
    pub async fn leave(&self, id: SocketId, room: &str) -> Result<Status, SendError> {
        let leave = Act::Leave(RoomName::parse(room)?);
        self.act_on_one(id, &leave).await
    }

    /// Counts the members of a room in the whole cluster, and names them, by id; of more than `api.page`, the
    /// first. [`Unisono::sockets`] goes on from there.
    ///
    /// ```
    /// # use unisono_server::testing::TestNode;
    /// use unisono_server::{App, SendError, Unisono};
    ///
    /// async fn is_empty(unisono: &Unisono, room: &str) -> Result<bool, SendError> {
    ///     Ok(unisono.members(room).await?.value.count == 0)
    /// }
    /// # #[actix_rt::main]
    /// # async fn main() {
    /// # let node = TestNode::start(App::new()).await;
    /// # let _stays = node.connect("/news").await;
    /// # assert!(!is_empty(&node.unisono(), "/news").await.unwrap());
    /// # assert!(is_empty(&node.unisono(), "/old-news").await.unwrap());
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the name is none.
    pub async fn members(&self, room: &str) -> Result<Partial<SocketsPage>, SendError> {
        let query = SocketsQuery {
            room: RoomName::parse(room)?,
            after: None,
            limit: self.shared.config.api.page,
        };
        Ok(self.sockets(query).await)
    }

    /// Closes a socket, wherever it is.
    pub fn disconnect(&self, id: SocketId) -> Disconnect {
        Disconnect {
            unisono: self.clone(),
            id,
            code: Close::NORMAL.code,
            reason: String::new(),
            after: Duration::ZERO,
        }
    }

    /// Closes all sockets of a user, and says how many there were.
    ///
    /// # Errors
    ///
    /// When the name, the code or the reason cannot be.
    pub async fn disconnect_user(
        &self,
        user: &str,
        code: u16,
        reason: &str,
    ) -> Result<Partial<u64>, SendError> {
        let target = Target::User(UserName::parse(user)?);
        let close = Close::by_application(code, reason.to_owned())?;
        let disconnect = Act::Disconnect { close, after_ms: 0 };
        Ok(self.act_on(target, disconnect)?.await)
    }

    async fn act_on_one(&self, id: SocketId, act: &Act) -> Result<Status, SendError> {
        let statuses = self.act(vec![id.to_string()], act)?.await;
        let status = statuses.first().map(|(_, status)| *status);
        Ok(status.unwrap_or(Status::Timeout))
    }
}

impl Outgoing {
    /// Leaves a socket out, on whichever node it is.
    pub fn except(mut self, id: SocketId) -> Self {
        self.except.push(id);
        self
    }

    /// Waits to learn how many sockets were reached, and on which nodes.
    pub fn confirm(self) -> Confirmed {
        Confirmed(self)
    }
}

impl IntoFuture for Outgoing {
    type Output = Result<Sent, SendError>;
    type IntoFuture = Boxed<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (to, payload) = self.what?;
            Ok(self.unisono.send(to, payload, self.except).await?)
        })
    }
}

impl IntoFuture for Confirmed {
    type Output = Result<Partial<u64>, SendError>;
    type IntoFuture = Boxed<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Outgoing {
                unisono,
                what,
                except,
            } = self.0;
            let (to, payload) = what?;
            Ok(unisono.send_confirmed(to, payload, except).await?)
        })
    }
}

impl Disconnect {
    /// The close code: 1000, which it is anyway, or 4000 to 4099.
    pub fn code(mut self, code: u16) -> Self {
        self.code = code;
        self
    }

    /// The reason, at most 123 bytes.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = reason.into();
        self
    }

    /// Only after a while.
    pub fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }
}

impl IntoFuture for Disconnect {
    type Output = Result<Status, SendError>;
    type IntoFuture = Boxed<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let close = Close::by_application(self.code, self.reason)?;
            let after_ms = u64::try_from(self.after.as_millis()).unwrap_or(u64::MAX);
            let disconnect = Act::Disconnect { close, after_ms };
            self.unisono.act_on_one(self.id, &disconnect).await
        })
    }
}

impl ResponseError for SendError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Name(_) | Self::Close(_) => StatusCode::BAD_REQUEST,
            Self::Data(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Publish(PublishError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Publish(PublishError::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

impl From<CallError> for SendError {
    fn from(_: CallError) -> Self {
        Self::Timeout
    }
}
