//! What an application written in Rust is made of: rooms with handlers, and HTTP routes of its own.

mod accept;
mod handlers;
mod message;
mod socket;

use std::sync::Arc;

use actix_web::web::ServiceConfig;

use crate::handshake::Handshake;
use crate::rules::{ClientEvents, Format, Join, Lifecycle, Pattern, Publish, Rule, Rules, Who};
use crate::unisono::Unisono;
use handlers::{HandshakeHandler, Task};

pub use accept::{Accept, Refuse};
pub use handlers::{Done, Handlers, Job};
pub use message::{Frame, HandlerError, Json, Message, Reply};
pub(crate) use socket::Inner;
pub use socket::{Context, Socket};

/// An application: rooms and what happens in them, HTTP routes beside them.
///
/// ```
/// use serde_json::json;
/// use unisono_server::{App, Json, Message, Room, Socket};
/// # use unisono_server::testing::TestNode;
/// # #[actix_rt::main]
/// # async fn main() {
///
/// let app = App::new().room(
///     Room::new("/chat-rooms/{id}")
///         .on_open(async |socket: Socket| {
///             let text = format!("{} joined {}", socket.id(), socket.param("id").unwrap_or("?"));
///             let _ = socket.publish("user joined", &text).await;
///         })
///         .on("add", async |_: Socket, message: Message| {
///             let (a, b): (i64, i64) = message.data()?;
///             Ok::<_, unisono_server::HandlerError>(Json(json!({ "sum": a + b })))
///         }),
/// );
/// // A program ends with `unisono_server::run(app)`, which reads the command line and the configuration.
/// # let node = TestNode::start(app).await;
/// # let mut client = node.connect("/chat-rooms/1").await;
/// # assert_eq!(client.ask("add", json!([1, 2])).await, json!({"sum": 3}));
/// # }
/// ```
#[derive(Clone, Default)]
pub struct App {
    pub(crate) rooms: Vec<Rule>,
    pub(crate) routes: Routes,
    pub(crate) tasks: Vec<Task>,
}

/// Adds the application's own routes to those of the server, on each worker.
#[derive(Clone, Default)]
pub(crate) struct Routes(Vec<Route>);

type Route = Arc<dyn Fn(&mut ServiceConfig) + Send + Sync>;

/// The rooms of a pattern, and what the application does in them.
///
/// Rooms that an application defines come before the `[[rooms]]` of the configuration. Events that no
/// handler is for are answered `unknown_event`; [`Room::client_events`] says otherwise. Nor do clients get past
/// the handlers: that they may `unisono:join`, `unisono:publish` or `unisono:emit` is to be said, too.
///
/// ```
/// use unisono_server::{Message, Room, Socket};
///
/// let room = Room::new("/chat-rooms/{id}").on("say", async |socket: Socket, message: Message| {
///     let _ = socket.publish("said", message.json()).await;
/// });
/// ```
#[derive(Clone)]
pub struct Room {
    rule: Rule,
    handlers: Handlers,
}

impl App {
    /// An application without rooms: it serves as the configuration says.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it decides about handshakes, by cookies perhaps.
    pub(crate) fn asks_at_handshakes(&self) -> bool {
        let handlers = self.rooms.iter().filter_map(|rule| rule.handlers.as_ref());
        handlers
            .into_iter()
            .any(|handlers| handlers.handshake().is_some())
    }

    /// The rules of a node that serves it, with those of its configuration.
    pub(crate) fn rules(&self, configured: &Rules) -> Rules {
        match self.rooms.is_empty() {
            true => configured.clone(),
            false => configured.after(self.rooms.clone()),
        }
    }

    /// Adds rooms. The first whose pattern matches rules.
    #[must_use]
    pub fn room(mut self, room: Room) -> Self {
        self.rooms.push(room.into());
        self
    }

    /// Adds HTTP routes, on the port of the sockets. They come before the server's own pages, and after
    /// `/api/v1`; handlers take the cluster as `web::Data<Unisono>`.
    ///
    /// ```
    /// use actix_web::{HttpResponse, web};
    /// use unisono_server::{App, Unisono};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// async fn hello(unisono: web::Data<Unisono>) -> HttpResponse {
    ///     let _ = unisono.broadcast_text("Hello World.").await;
    ///     HttpResponse::Ok().finish()
    /// }
    /// let app = App::new().routes(|config| {
    ///     config.route("/hello", web::get().to(hello));
    /// });
    /// # let node = TestNode::start(app).await;
    /// # let mut client = node.connect("/any").await;
    /// # assert_eq!(node.get("/hello").await, 200);
    /// # assert_eq!(client.text().await, "Hello World.");
    /// # }
    /// ```
    #[must_use]
    pub fn routes(
        mut self,
        configure: impl Fn(&mut ServiceConfig) + Send + Sync + 'static,
    ) -> Self {
        self.routes.0.push(Arc::new(configure));
        self
    }

    /// Starts a task once the node serves, on every node. It runs on the main thread, beside others, until it ends;
    /// a panic ends it, and is logged. What is to happen once in the cluster asks [`Unisono::is_eldest`] first.
    ///
    /// ```
    /// use unisono_server::{App, Unisono};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// let app = App::new().on_start(async |unisono: Unisono| {
    ///     if unisono.is_eldest().await {
    ///         println!("node {} is the one", unisono.node());
    ///     }
    /// });
    /// # TestNode::start(app).await;
    /// # }
    /// ```
    #[must_use]
    pub fn on_start(mut self, task: impl AsyncFn(Unisono) + Send + Sync + 'static) -> Self {
        self.tasks.push(handlers::task(task));
        self
    }
}

impl Room {
    /// Rooms whose names match: segments between slashes, `{name}` for any one, `{name...}` for the rest.
    ///
    /// # Panics
    ///
    /// When the pattern is none.
    pub fn new(pattern: &str) -> Self {
        let parsed = Pattern::parse(pattern);
        let pattern = parsed.unwrap_or_else(|error| panic!("pattern `{pattern}`: {error}"));
        let mut rule = Rule::new(pattern);
        rule.client_events = ClientEvents::Deny;
        rule.join = Join::Url;
        rule.publish = Publish::None;
        rule.emit = false;
        Self {
            rule,
            handlers: Handlers::default(),
        }
    }

    /// Handles an event of clients. What it returns answers the client: see [`Reply`]. The messages of one
    /// socket are handled one after the other.
    #[must_use]
    pub fn on<R: Reply>(
        mut self,
        event: &str,
        handler: impl AsyncFn(Socket, Message) -> R + Send + Sync + 'static,
    ) -> Self {
        self.handlers.on(event, handler);
        self
    }

    /// Handles the events that no other handler is for.
    ///
    /// ```
    /// use unisono_server::{App, Message, Room, Socket};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// let parrot = Room::new("/").on_any(async |socket: Socket, message: Message| {
    ///     let _ = socket.emit(message.name(), message.json());
    /// });
    /// # let node = TestNode::start(App::new().room(parrot)).await;
    /// # let mut client = node.connect("/").await;
    /// # client.send("hello", serde_json::json!("you")).await;
    /// # assert_eq!(client.event("hello").await, serde_json::json!("you"));
    /// # }
    /// ```
    #[must_use]
    pub fn on_any<R: Reply>(
        mut self,
        handler: impl AsyncFn(Socket, Message) -> R + Send + Sync + 'static,
    ) -> Self {
        self.handlers.on_any(handler);
        self
    }

    /// Handles frames as they are: the rooms speak no JSON, and the server sends nothing of its own.
    ///
    /// ```
    /// use unisono_server::{App, Frame, Room, Socket};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// let echo = Room::new("/echo").on_frame(async |socket: Socket, frame: Frame| {
    ///     let _ = match frame {
    ///         Frame::Text(text) => socket.send_text(text),
    ///         Frame::Binary(bytes) => socket.send_binary(bytes),
    ///     };
    /// });
    /// # let node = TestNode::start(App::new().room(echo)).await;
    /// # let mut client = node.connect("/echo").await;
    /// # client.send_text("hi").await;
    /// # assert_eq!(client.text().await, "hi");
    /// # }
    /// ```
    #[must_use]
    pub fn on_frame<R: Reply>(
        mut self,
        handler: impl AsyncFn(Socket, Frame) -> R + Send + Sync + 'static,
    ) -> Self {
        self.rule.format = Format::Raw;
        self.handlers.on_frame(handler);
        self
    }

    /// Decides about a client before it is let in, and says who it is. It is asked after `[auth]`.
    ///
    /// ```
    /// use unisono_server::{Accept, App, Handshake, Refuse, Room};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// struct Visits(u32);
    ///
    /// let room = Room::new("/").on_handshake(async |handshake: Handshake| {
    ///     match handshake.cookie("username") {
    ///         Some(name) => Ok(Accept::new().user(name).context(Visits(1))),
    ///         None => Err(Refuse::unauthorized("log in first")),
    ///     }
    /// });
    /// # let node = TestNode::start(App::new().room(room)).await;
    /// # assert_eq!(node.refused("/").await, 401);
    /// # node.connect_as("/", "cookie", "username=me").await;
    /// # }
    /// ```
    #[must_use]
    pub fn on_handshake(
        mut self,
        handler: impl AsyncFn(Handshake) -> Result<Accept, Refuse> + Send + Sync + 'static,
    ) -> Self {
        self.handlers.on_handshake(handler);
        self
    }

    /// Handles a new socket, before the first of its messages.
    ///
    /// ```
    /// use unisono_server::{App, Room, SendError, Socket, Status};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_web::main]
    /// # async fn main() {
    ///
    /// async fn welcome(socket: Socket) -> Result<Status, SendError> {
    ///     socket.emit("welcome", socket.room())
    /// }
    /// let room = Room::new("/lobby").on_open(welcome);
    /// # let node = TestNode::start(App::new().room(room)).await;
    /// # assert_eq!(node.connect("/lobby").await.event("welcome").await, "/lobby");
    /// # }
    /// ```
    #[must_use]
    pub fn on_open<R: Reply>(
        mut self,
        handler: impl AsyncFn(Socket) -> R + Send + Sync + 'static,
    ) -> Self {
        self.handlers.on_open(handler);
        self
    }

    /// Handles the end of a socket, once for each that was open, after the last of its messages: with the
    /// code and the reason that either side gave, or 1006 where the connection was just gone.
    ///
    /// ```
    /// use unisono_server::{App, Close, Room, Socket};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// let room = Room::new("/").on_close(async |socket: Socket, close: Close| {
    ///     let _ = socket.publish("user left", &close.code).await;
    /// });
    /// # let node = TestNode::start(App::new().room(room)).await;
    /// # let mut stays = node.connect("/").await;
    /// # node.connect("/").await.close().await;
    /// # assert_eq!(stays.event("user left").await, serde_json::json!(1000));
    /// # }
    /// ```
    #[must_use]
    pub fn on_close<R: Reply>(
        mut self,
        handler: impl AsyncFn(Socket, proto::Close) -> R + Send + Sync + 'static,
    ) -> Self {
        self.handlers.on_close(handler);
        self
    }

    /// What becomes of the events that no handler is for.
    ///
    /// ```
    /// use unisono_server::{App, ClientEvents, Room};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_web::main]
    /// # async fn main() {
    ///
    /// let chat = Room::new("/chat").client_events(ClientEvents::Relay);
    /// # let node = TestNode::start(App::new().room(chat)).await;
    /// # let mut a = node.connect("/chat").await;
    /// # let mut b = node.connect("/chat").await;
    /// # a.send("say", "hi").await;
    /// # assert_eq!(b.event("say").await, "hi");
    /// # }
    /// ```
    #[must_use]
    pub fn client_events(mut self, client_events: ClientEvents) -> Self {
        self.rule.client_events = client_events;
        self
    }

    /// How frames read: as JSON, or raw. Raw frames of clients without [`Room::on_frame`] go where
    /// [`Room::client_events`] says.
    ///
    /// ```
    /// use unisono_server::rules::{ClientEvents, Format};
    /// use unisono_server::{App, Room};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_rt::main]
    /// # async fn main() {
    ///
    /// let echo = Room::new("/echo").format(Format::Raw).client_events(ClientEvents::Echo);
    /// # let node = TestNode::start(App::new().room(echo)).await;
    /// # let mut client = node.connect("/echo").await;
    /// # client.send_text("hi").await;
    /// # assert_eq!(client.text().await, "hi");
    /// # }
    /// ```
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.rule.format = format;
        self
    }

    /// How clients become members: by the URL, unless told otherwise. Who joins by `unisono:join` is not asked
    /// by [`Room::on_handshake`].
    #[must_use]
    pub fn join(mut self, join: Join) -> Self {
        self.rule.join = join;
        self
    }

    /// Who may publish with `unisono:publish`, past all handlers: no client, unless told otherwise.
    #[must_use]
    pub fn publish(mut self, publish: Publish) -> Self {
        self.rule.publish = publish;
        self
    }

    /// Whether clients may `unisono:emit`, past all handlers: not unless told so.
    #[must_use]
    pub fn emit(mut self, emit: bool) -> Self {
        self.rule.emit = emit;
        self
    }

    /// Which clients may be in the rooms.
    ///
    /// ```
    /// use unisono_server::{App, Room, Who};
    /// # use unisono_server::testing::TestNode;
    /// # #[actix_web::main]
    /// # async fn main() {
    ///
    /// let members = Room::new("/members").who(Who::Users);
    /// # let node = TestNode::start(App::new().room(members)).await;
    /// # assert_eq!(node.refused("/members").await, 403);
    /// # }
    /// ```
    #[must_use]
    pub fn who(mut self, who: Who) -> Self {
        self.rule.who = who;
        self
    }

    /// What is told to applications outside, as `[[rooms]] events` does.
    ///
    /// ```
    /// use unisono_server::{Lifecycle, Room};
    ///
    /// let room = Room::new("/games/{id}").events([Lifecycle::Occupied, Lifecycle::Vacated]);
    /// ```
    #[must_use]
    pub fn events(mut self, events: impl IntoIterator<Item = Lifecycle>) -> Self {
        self.rule.events = events.into_iter().collect();
        self
    }
}

impl From<Room> for Rule {
    fn from(Room { mut rule, handlers }: Room) -> Self {
        rule.handlers = Some(Arc::new(handlers));
        rule
    }
}

impl Routes {
    pub(crate) fn configure(&self, config: &mut ServiceConfig) {
        self.0.iter().for_each(|route| route(config));
    }
}

impl Handlers {
    pub(crate) fn handshake(&self) -> Option<&HandshakeHandler> {
        self.handshake.as_ref()
    }
}
