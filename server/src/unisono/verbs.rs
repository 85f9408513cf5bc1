//! The verbs of an application, with names and values as it has them at hand.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::pin::Pin;
use std::time::Duration;

use actix_web::ResponseError;
use actix_web::http::StatusCode;
use bytes::Bytes;
use cluster::Sent;
use proto::close::CloseError;
use proto::envelope::{Act, SocketsPage, SocketsQuery, Target};
use proto::json::{Unreadable, check_data, speaks_for_server};
use proto::name::NameError;
use proto::{Audience, Close, EventName, Payload, RoomName, SocketId};
use serde::Serialize;

use super::to::{Reached, Rooms, To};
use super::{Partial, PublishError, Unisono};

/// Why nothing was sent, or asked. In a route of the application's, `?` makes an HTTP answer of it.
///
/// ```
/// use actix_web::{HttpResponse, web};
/// use unisono_server::{App, SendError, Unisono};
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// async fn news(unisono: web::Data<Unisono>, room: web::Path<String>) -> Result<HttpResponse, SendError> {
///     unisono.publish(room.as_str(), "news", "it works").await?;
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
    /// Data that not every reader of JSON can read.
    #[error("the data {0}")]
    Unreadable(#[from] Unreadable),
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
///
/// ```
/// # use unisono_server::testing::TestNode;
/// use unisono_server::{App, SendError, Sent, Unisono};
///
/// async fn announce(unisono: &Unisono) -> Result<bool, SendError> {
///     // `LocalOnly` while the bus is away: the other nodes' clients are told of the gap.
///     Ok(unisono.broadcast("news", "hello").await? == Sent::ToAll)
/// }
/// # #[actix_web::main]
/// # async fn main() {
/// # let node = TestNode::start(App::new()).await;
/// # assert!(announce(&node.unisono()).await.unwrap());
/// # }
/// ```
#[must_use = "nothing is sent before it is awaited"]
pub struct Outgoing {
    unisono: Unisono,
    what: Result<(Vec<Audience>, Payload), SendError>,
    except: Vec<SocketId>,
}

/// As [`Outgoing`], and whoever awaits it learns how many sockets were reached.
#[must_use = "nothing is sent before it is awaited"]
pub struct Confirmed(Outgoing);

/// Sockets that are to be closed. They are not before `.await`.
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
pub struct Disconnect<T = SocketId> {
    unisono: Unisono,
    target: Result<Target, SendError>,
    code: u16,
    reason: String,
    after: Duration,
    to: PhantomData<fn(T)>,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An event with its data.
pub(crate) fn event(name: &str, data: impl Serialize) -> Result<Payload, SendError> {
    let name = EventName::parse_user(name)?;
    let data = serde_json::to_vec(&data)?;
    check_data(&data)?;
    let data = Some(Bytes::from(data));
    Ok(Payload::Event { name, data })
}

/// A bare text frame, which does not speak for the server.
pub(crate) fn text(frame: impl Into<String>) -> Result<Payload, NameError> {
    let frame = frame.into();
    match speaks_for_server(frame.as_bytes()) {
        true => Err(NameError::Reserved),
        false => Ok(Payload::Text(frame.into())),
    }
}

fn audiences(to: impl Rooms) -> Result<Vec<Audience>, SendError> {
    let mut rooms = to.rooms()?;
    // A room that is named twice is one.
    rooms.sort_unstable();
    rooms.dedup();
    Ok(rooms.into_iter().map(Audience::Room).collect())
}

impl Unisono {
    /// Sends an event to sockets, wherever they are, and says what became of it: see [`To`].
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn emit<T: To>(
        &self,
        to: T,
        name: &str,
        data: impl Serialize,
    ) -> Result<T::Reached, SendError> {
        self.emit_payload(to, event(name, data)?).await
    }

    /// Sends a bare text frame to sockets.
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn send_text<T: To>(
        &self,
        to: T,
        frame: impl Into<String>,
    ) -> Result<T::Reached, SendError> {
        self.emit_payload(to, text(frame)?).await
    }

    /// Sends a bare binary frame to sockets.
    ///
    /// # Errors
    ///
    /// When nothing was sent.
    pub async fn send_binary<T: To>(
        &self,
        to: T,
        frame: impl Into<Bytes>,
    ) -> Result<T::Reached, SendError> {
        self.emit_payload(to, Payload::Binary(frame.into())).await
    }

    async fn emit_payload<T: To>(&self, to: T, payload: Payload) -> Result<T::Reached, SendError> {
        let emit = Act::Emit {
            payload,
            from: None,
            trace: None,
        };
        self.act_to::<T>(to.target()?, emit).await
    }

    /// Publishes an event to a room, or to several: see [`Rooms`].
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
    pub fn publish(&self, to: impl Rooms, name: &str, data: impl Serialize) -> Outgoing {
        self.outgoing(audiences(to).and_then(|to| Ok((to, event(name, data)?))))
    }

    /// Publishes a bare text frame to a room.
    pub fn publish_text(&self, to: impl Rooms, frame: impl Into<String>) -> Outgoing {
        self.outgoing(audiences(to).and_then(|to| Ok((to, text(frame)?))))
    }

    /// Publishes a bare binary frame to a room.
    pub fn publish_binary(&self, to: impl Rooms, frame: impl Into<Bytes>) -> Outgoing {
        self.outgoing(audiences(to).map(|to| (to, Payload::Binary(frame.into()))))
    }

    /// Sends an event to every socket of the cluster.
    pub fn broadcast(&self, name: &str, data: impl Serialize) -> Outgoing {
        self.outgoing(event(name, data).map(|event| (vec![Audience::Everyone], event)))
    }

    /// Sends a bare text frame to every socket of the cluster.
    pub fn broadcast_text(&self, frame: impl Into<String>) -> Outgoing {
        let text = text(frame).map_err(SendError::from);
        self.outgoing(text.map(|text| (vec![Audience::Everyone], text)))
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

    /// Makes sockets members of a room: `Delivered` says that one receives what is published on any node.
    ///
    /// # Errors
    ///
    /// When a name is none.
    pub async fn join<T: To>(&self, to: T, room: &str) -> Result<T::Reached, SendError> {
        let join = Act::Join(RoomName::parse(room)?);
        self.act_to::<T>(to.target()?, join).await
    }

    /// Undoes [`Unisono::join`].
    ///
    /// # Errors
    ///
    /// When a name is none.
    pub async fn leave<T: To>(&self, to: T, room: &str) -> Result<T::Reached, SendError> {
        let leave = Act::Leave(RoomName::parse(room)?);
        self.act_to::<T>(to.target()?, leave).await
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

    /// Closes sockets, wherever they are.
    pub fn disconnect<T: To>(&self, to: T) -> Disconnect<T> {
        Disconnect {
            unisono: self.clone(),
            target: to.target(),
            code: Close::NORMAL.code,
            reason: String::new(),
            after: Duration::ZERO,
            to: PhantomData,
        }
    }

    async fn act_to<T: To>(&self, target: Target, act: Act) -> Result<T::Reached, SendError> {
        let reached = match target {
            Target::Sockets(ids) => {
                let texts = ids.iter().map(SocketId::to_string).collect();
                let statuses = self.act(texts, act)?.await.into_iter();
                let statuses = statuses.map(|(_, status)| status);
                Reached::Each(ids.into_iter().zip(statuses).collect())
            }
            target => Reached::All(self.act_on(target, act)?.await),
        };
        Ok(T::reached(reached))
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

impl<T> Disconnect<T> {
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

impl<T: To + 'static> IntoFuture for Disconnect<T> {
    type Output = Result<T::Reached, SendError>;
    type IntoFuture = Boxed<Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        let Self {
            unisono,
            target,
            code,
            reason,
            after,
            to: _,
        } = self;
        Box::pin(async move {
            let close = Close::by_application(code, reason)?;
            let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            let disconnect = Act::Disconnect { close, after_ms };
            unisono.act_to::<T>(target?, disconnect).await
        })
    }
}

impl ResponseError for SendError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Name(_) | Self::Unreadable(_) | Self::Close(_) => StatusCode::BAD_REQUEST,
            Self::Data(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Publish(PublishError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Publish(PublishError::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}
