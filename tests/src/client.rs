//! A client of the native protocol, on a WebSocket library that is not ours.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::Location;

use futures_util::{SinkExt, StreamExt};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::eventually::soon;
use crate::tls::Tls;

/// One WebSocket connection that reads and writes events.
#[derive(Debug)]
pub struct Client {
    /// The socket id of the greeting; empty where there was none.
    pub id: String,
    /// The room of the greeting.
    pub room: String,
    /// The node id of the greeting.
    pub node: String,
    /// The greeting itself.
    pub greeting: Value,
    /// The subprotocol that the server chose.
    pub subprotocol: Option<String>,
    stream: WebSocketStream<Box<dyn Connection>>,
    inbox: VecDeque<Event>,
    last_id: u64,
}

/// TCP, or TLS on it.
trait Connection: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + fmt::Debug + Send + Unpin> Connection for T {}

/// A message from the server.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The name.
    pub event: String,
    /// The data; null where there is none, see [`Event::raw`].
    pub data: Value,
    /// The room of a publication.
    pub room: Option<String>,
    /// The socket that a publication came from.
    pub from: Option<String>,
    /// The id that an ack or an error answers.
    pub id: Option<Value>,
    /// The frame as it came.
    pub text: String,
}

/// What a client hears, when it expects nothing in particular.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// An event.
    Event(Box<Event>),
    /// The server closed, with this code.
    Closed(u16),
    /// The connection is gone without a goodbye.
    Cut,
}

/// A `unisono:error` that answers a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// One of the codes of the contract.
    pub code: String,
    /// What it says to a human.
    pub message: String,
}

fn with_data(mut fields: Value, data: Value) -> Value {
    fields["data"] = data;
    fields
}

// === impl Event ===

impl Event {
    pub(crate) fn parse(text: &str) -> Self {
        let value: Value = serde_json::from_str(text)
            .unwrap_or_else(|error| panic!("the server sent no JSON: {error} in {text}"));
        let string = |name: &str| value[name].as_str().map(str::to_owned);
        Self {
            event: string("event").unwrap_or_else(|| panic!("no event in {text}")),
            data: value["data"].clone(),
            room: string("room"),
            from: string("from"),
            id: value.get("id").cloned(),
            text: text.to_owned(),
        }
    }

    /// The text of one field exactly as it came, or none where it is absent.
    pub fn raw(&self, field: &str) -> Option<String> {
        let fields: BTreeMap<String, Box<RawValue>> =
            serde_json::from_str(&self.text).expect("parsed before");
        fields.get(field).map(|raw| raw.get().to_owned())
    }

    fn refusal(&self) -> Refusal {
        let string = |name: &str| self.data[name].as_str().unwrap_or_default().to_owned();
        Refusal {
            code: string("code"),
            message: string("message"),
        }
    }
}

// === impl Client ===

impl Client {
    /// Connects and waits for the greeting.
    pub async fn connect(url: &str) -> Self {
        Self::connect_with(url, &[]).await
    }

    /// Connects with more request headers, and waits for the greeting.
    pub async fn connect_with(url: &str, headers: &[(&'static str, &str)]) -> Self {
        let mut client = Self::ungreeted_with(url, headers).await;
        let greeting = client.expect("unisono:open").await;
        client.greeted(greeting);
        client
    }

    /// Connects to a server that may not be there, and waits for the greeting.
    ///
    /// # Errors
    /// With what happened in its place.
    pub async fn try_connect(url: &str) -> Result<Self, String> {
        let handshake = handshake(url, &[]);
        let mut client = handshake.await.map_err(|error| error.to_string())?;
        match client.hear().await {
            Heard::Event(greeting) if greeting.event == "unisono:open" => {
                client.greeted(*greeting);
                Ok(client)
            }
            other => Err(format!("{other:?}")),
        }
    }

    fn greeted(&mut self, greeting: Event) {
        let string = |name: &str| {
            let value = greeting.data[name].as_str();
            value
                .unwrap_or_else(|| panic!("no {name} in {}", greeting.text))
                .to_owned()
        };
        self.id = string("id");
        self.room = string("room");
        self.node = string("node");
        self.greeting = greeting.data;
    }

    /// Connects to where no greeting is sent.
    pub async fn ungreeted(url: &str) -> Self {
        Self::ungreeted_with(url, &[]).await
    }

    /// Connects with more request headers to where no greeting is sent.
    ///
    /// # Panics
    /// When the handshake is refused.
    pub async fn ungreeted_with(url: &str, headers: &[(&'static str, &str)]) -> Self {
        let here = Location::caller();
        soon(
            here,
            || format!("handshake with {url}"),
            handshake(url, headers),
        )
        .await
        .unwrap_or_else(|error| panic!("handshake with {url}: {error}"))
    }

    // --- frames

    /// Sends any frame.
    pub async fn send_frame(&mut self, message: Message) {
        self.stream
            .send(message)
            .await
            .expect("the socket takes a frame");
    }

    /// Sends a text frame as it is.
    pub async fn send_text(&mut self, text: impl Into<String>) {
        self.send_frame(Message::text(text.into())).await;
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.send_frame(Message::binary(bytes.into())).await;
    }

    /// The next frame, whatever it is.
    #[track_caller]
    pub fn next_frame(&mut self) -> impl Future<Output = Message> {
        let here = Location::caller();
        async move {
            match soon(here, || "a frame".to_owned(), self.stream.next()).await {
                Some(Ok(message)) => message,
                Some(Err(error)) => panic!("{here}: expected a frame: {error}"),
                None => panic!("{here}: expected a frame: the connection ended"),
            }
        }
    }

    /// Expects the next frame to be this one.
    #[track_caller]
    pub fn expect_frame(&mut self, message: Message) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move {
            let next = self.next_frame().await;
            assert_eq!(next, message, "{here}: another frame");
        }
    }

    /// Starts the close handshake.
    pub async fn close(&mut self, code: u16, reason: &str) {
        let frame = CloseFrame {
            code: CloseCode::from(code),
            reason: reason.to_owned().into(),
        };
        self.stream
            .close(Some(frame))
            .await
            .expect("the socket takes a close frame");
    }

    // --- events

    /// Whatever comes next, however long that takes. May be given up and called again.
    pub async fn hear(&mut self) -> Heard {
        if let Some(event) = self.inbox.pop_front() {
            return Heard::Event(event.into());
        }
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => return Heard::Event(Event::parse(&text).into()),
                Some(Ok(Message::Close(frame))) => {
                    return Heard::Closed(frame.map_or(1005, |frame| frame.code.into()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Heard::Cut,
            }
        }
    }

    /// Sends an event to a server that may be gone.
    pub async fn try_send(&mut self, event: &str, data: Value) -> Result<(), Error> {
        self.try_send_text(json!({"event": event, "data": data}).to_string())
            .await
    }

    /// Sends a text frame to a server that may be gone.
    pub async fn try_send_text(&mut self, text: String) -> Result<(), Error> {
        self.stream.send(Message::text(text)).await
    }

    /// Sends an event without an id: nothing answers it but a mistake in it.
    pub async fn send(&mut self, event: &str, data: Value) {
        self.send_text(json!({"event": event, "data": data}).to_string())
            .await;
    }

    /// Sends an event with an id of its own and waits for the ack or the error.
    ///
    /// What comes in between is kept for [`Client::expect`].
    #[track_caller]
    pub fn request(
        &mut self,
        event: &str,
        data: Value,
    ) -> impl Future<Output = Result<Value, Refusal>> {
        let here = Location::caller();
        self.last_id += 1;
        let id = json!(self.last_id);
        let event = event.to_owned();
        async move {
            self.send_text(json!({"event": event, "data": data, "id": id}).to_string())
                .await;
            loop {
                let answer = self.receive(here, &format!("the answer to {event}")).await;
                match answer.event.as_str() {
                    "unisono:ack" if answer.id.as_ref() == Some(&id) => return Ok(answer.data),
                    "unisono:error" if answer.id.as_ref() == Some(&id) => {
                        return Err(answer.refusal());
                    }
                    _ => self.inbox.push_back(answer),
                }
            }
        }
    }

    /// [`Client::request`] that must be acknowledged; returns the result.
    #[track_caller]
    pub fn ack(&mut self, event: &str, data: Value) -> impl Future<Output = Value> {
        let here = Location::caller();
        let what = format!("{event} {data}");
        let request = self.request(event, data);
        async move {
            request
                .await
                .unwrap_or_else(|refusal| panic!("{here}: {what} was refused: {refusal:?}"))
        }
    }

    /// [`Client::request`] that must be refused; returns the code.
    #[track_caller]
    pub fn refused(&mut self, event: &str, data: Value) -> impl Future<Output = String> {
        let here = Location::caller();
        let what = format!("{event} {data}");
        let request = self.request(event, data);
        async move {
            match request.await {
                Err(refusal) => refusal.code,
                Ok(result) => panic!("{here}: {what} was acknowledged with {result}"),
            }
        }
    }

    /// Joins a room; from then on its publications come, from every node.
    #[track_caller]
    pub fn join(&mut self, room: &str) -> impl Future<Output = ()> {
        let ack = self.ack("unisono:join", json!({"room": room}));
        let room = room.to_owned();
        async move { assert_eq!(ack.await, json!({"room": room})) }
    }

    /// Leaves a room.
    #[track_caller]
    pub fn leave(&mut self, room: &str) -> impl Future<Output = ()> {
        let ack = self.ack("unisono:leave", json!({"room": room}));
        let room = room.to_owned();
        async move { assert_eq!(ack.await, json!({"room": room})) }
    }

    /// Publishes to a room, acknowledged.
    #[track_caller]
    pub fn publish(&mut self, room: &str, event: &str, data: Value) -> impl Future<Output = ()> {
        let data = with_data(json!({"room": room, "event": event}), data);
        let ack = self.ack("unisono:publish", data);
        async move {
            ack.await;
        }
    }

    /// Emits to one socket and returns the status.
    #[track_caller]
    pub fn emit(&mut self, to: &str, event: &str, data: Value) -> impl Future<Output = String> {
        let data = with_data(json!({"to": to, "event": event}), data);
        let ack = self.ack("unisono:emit", data);
        let to = to.to_owned();
        async move {
            ack.await["results"][to]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        }
    }

    /// The next event.
    #[track_caller]
    #[expect(
        clippy::should_implement_trait,
        reason = "awaited, so that nobody takes a client for an iterator"
    )]
    pub fn next(&mut self) -> impl Future<Output = Event> {
        let here = Location::caller();
        async move {
            match self.inbox.pop_front() {
                Some(event) => event,
                None => self.receive(here, "an event").await,
            }
        }
    }

    /// Expects the next event to have this name.
    #[track_caller]
    pub fn expect(&mut self, event: &str) -> impl Future<Output = Event> {
        let here = Location::caller();
        let event = event.to_owned();
        async move {
            let next = match self.inbox.pop_front() {
                Some(next) => next,
                None => self.receive(here, &format!("the event {event:?}")).await,
            };
            assert_eq!(next.event, event, "{here}: another event: {}", next.text);
            next
        }
    }

    /// Expects a `unisono:error` without a request's id, or with one sent by hand, of this code.
    #[track_caller]
    pub fn expect_error(&mut self, code: &str) -> impl Future<Output = Event> {
        let here = Location::caller();
        let code = code.to_owned();
        async move {
            let error = self.expect("unisono:error").await;
            assert_eq!(
                error.data["code"], code,
                "{here}: another code: {}",
                error.text
            );
            error
        }
    }

    /// Expects the server to close, with nothing before it; returns code and reason.
    #[track_caller]
    pub fn expect_close(&mut self) -> impl Future<Output = (u16, String)> {
        let here = Location::caller();
        async move {
            if let Some(event) = self.inbox.front() {
                panic!("{here}: expected a close, got {}", event.text);
            }
            loop {
                match self.next_frame().await {
                    Message::Close(Some(frame)) => {
                        return (frame.code.into(), frame.reason.to_string());
                    }
                    Message::Close(None) => return (1005, String::new()),
                    Message::Ping(_) => {}
                    other => panic!("{here}: expected a close, got {other:?}"),
                }
            }
        }
    }

    /// Expects the connection to be gone without a goodbye.
    #[track_caller]
    pub fn expect_cut(&mut self) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move {
            match soon(here, || "the end".to_owned(), self.stream.next()).await {
                None | Some(Err(_)) => {}
                Some(Ok(message)) => panic!("{here}: expected the end, got {message:?}"),
            }
        }
    }

    async fn receive(&mut self, here: &Location<'_>, what: &str) -> Event {
        loop {
            let message = soon(here, || what.to_owned(), self.stream.next()).await;
            match message {
                Some(Ok(Message::Text(text))) => return Event::parse(&text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => panic!("{here}: expected {what}, got {other:?}"),
                Some(Err(error)) => panic!("{here}: expected {what}: {error}"),
                None => panic!("{here}: expected {what}: the connection ended"),
            }
        }
    }
}

async fn handshake(url: &str, headers: &[(&'static str, &str)]) -> Result<Client, Error> {
    let mut request = url.into_client_request().expect("a valid URL");
    for (name, value) in headers {
        request
            .headers_mut()
            .insert(*name, value.parse().expect("a valid header"));
    }
    let uri = request.uri();
    let secure = uri.scheme_str() == Some("wss");
    let address = (
        uri.host().expect("a host").to_owned(),
        uri.port_u16().unwrap_or(80),
    );
    let stream: Box<dyn Connection> = if secure {
        Box::new(Tls::new().connect(address.1).await?)
    } else {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Box::new(stream)
    };
    let (stream, response) = tokio_tungstenite::client_async(request, stream).await?;
    let subprotocol = response.headers().get("sec-websocket-protocol");
    Ok(Client {
        id: String::new(),
        room: String::new(),
        node: String::new(),
        greeting: Value::Null,
        subprotocol: subprotocol.map(|name| String::from_utf8_lossy(name.as_bytes()).into()),
        stream,
        inbox: VecDeque::new(),
        last_id: 0,
    })
}
