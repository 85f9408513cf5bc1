//! For the tests of an application: a node in this process, and clients of it. With the feature `testing`.
//!
//! ```
//! use serde_json::json;
//! use unisono_server::testing::TestNode;
//! use unisono_server::{App, Message, Room, Socket};
//!
//! #[actix_web::main]
//! async fn main() {
//!     let room = Room::new("/").on("double", async |_: Socket, message: Message| {
//!         message.get("n", 0) * 2
//!     });
//!     let node = TestNode::start(App::new().room(room)).await;
//!     let mut client = node.connect("/").await;
//!     assert_eq!(client.ask("double", json!({ "n": 21 })).await, 42);
//! }
//! ```
//!
//! Everything here panics where something does not go as it should, and waits for at most ten seconds.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, Message as WsMessage};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::app::App;
use crate::config::Sources;
use crate::server::Server;
use crate::unisono::Unisono;
use crate::vital;
use proto::SocketId;

/// A node that serves an application on a free port, alone, for as long as the process lives.
pub struct TestNode {
    server: Server,
    address: SocketAddr,
}

/// A client of a [`TestNode`].
pub struct TestClient {
    id: Option<SocketId>,
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("nothing in {PATIENCE:?}: {what}"))
}

impl TestNode {
    /// Starts a node with the default configuration. To be called in an actix system, as
    /// `#[actix_web::test]` makes one.
    pub async fn start(app: App) -> Self {
        Self::start_with(app, &[]).await
    }

    /// As [`TestNode::start`], with settings, as `("sockets.max", "5")`.
    pub async fn start_with(app: App, settings: &[(&str, &str)]) -> Self {
        assert!(
            actix_rt::System::try_current().is_some(),
            "a node runs in an actix system: use `#[actix_web::test]`"
        );
        vital::disarm();
        // Where the test has no log of its own: why a handler failed is told there, and only there.
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_test_writer()
            .try_init();
        let mut flags = vec![("workers".to_owned(), "1".to_owned())];
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        flags.extend(settings.iter().map(text));
        let sources = Sources {
            flags,
            ..Sources::without_file()
        };
        let loaded = sources.load().unwrap_or_else(|error| panic!("{error}"));
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener
            .local_addr()
            .expect("a bound listener has an address");
        let server = Server::start(loaded.config, app, listener, None).await;
        Self {
            server: server.expect("the node starts"),
            address,
        }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The API key that it has made for itself; none where `api.keys` are among its settings. [`TestNode::http`] shows
    /// it to the HTTP API.
    pub fn api_key(&self) -> Option<&str> {
        self.server.api_key()
    }

    /// The handle of the application.
    pub fn unisono(&self) -> Unisono {
        self.server.unisono()
    }

    /// A client in the room of that path.
    pub async fn connect(&self, path: &str) -> TestClient {
        self.connect_as(path, "user-agent", "test").await
    }

    /// A client with a header of its own, as a cookie.
    pub async fn connect_as(&self, path: &str, header: &'static str, value: &str) -> TestClient {
        let request = self.request(path, header, value);
        let (socket, _) = soon("a handshake", connect_async(request))
            .await
            .expect("the handshake succeeds");
        let mut client = TestClient { id: None, socket };
        let native = self.server.unisono().greets(path);
        if native {
            let opened = client.event("unisono:open").await;
            let id = opened["id"].as_str().and_then(|id| id.parse().ok());
            client.id = id;
        }
        client
    }

    /// The HTTP status with which a handshake is refused.
    pub async fn refused(&self, path: &str) -> u16 {
        self.refused_as(path, "user-agent", "test").await
    }

    /// As [`TestNode::refused`], with a header of its own.
    pub async fn refused_as(&self, path: &str, header: &'static str, value: &str) -> u16 {
        let request = self.request(path, header, value);
        match soon("an answer", connect_async(request)).await {
            Err(Error::Http(response)) => response.status().as_u16(),
            Err(error) => panic!("no answer: {error}"),
            Ok(_) => panic!("the client was let in"),
        }
    }

    /// The status of an HTTP GET.
    pub async fn get(&self, path: &str) -> u16 {
        self.http("GET", path, "").await.0
    }

    /// Status and body of an HTTP request; a body that is sent is JSON.
    pub async fn http(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        // The application's own routes have their own ways.
        let of_the_api = path.starts_with("/api/v1/") || path == "/metrics";
        let key = self.api_key().filter(|_| of_the_api);
        let key = key.map_or_else(String::new, |key| {
            format!("Authorization: Bearer {key}\r\n")
        });
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{key}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len(),
        );
        let asked = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(head.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = soon("an answer", asked).await.expect("the node answers");
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.expect("the answer is HTTP"), body.to_owned())
    }

    fn request(&self, path: &str, header: &'static str, value: &str) -> Request {
        let url = format!("ws://{}{path}", self.address);
        let mut request = url.into_client_request().expect("a good URL");
        let value = value.parse().expect("a good header");
        request.headers_mut().insert(header, value);
        request
    }
}

impl TestClient {
    /// The id of the socket. In rooms of bare frames there is none to be learned.
    pub fn id(&self) -> SocketId {
        self.id.expect("the server greets in rooms that speak JSON")
    }

    /// Sends an event.
    pub async fn send(&mut self, event: &str, data: impl Serialize) {
        self.send_text(&json!({ "event": event, "data": data }).to_string())
            .await;
    }

    /// Sends a bare text frame.
    pub async fn send_text(&mut self, text: &str) {
        let sent = self.socket.send(WsMessage::text(text)).await;
        sent.expect("the connection is there");
    }

    /// Sends a bare binary frame.
    pub async fn send_binary(&mut self, bytes: impl Into<bytes::Bytes>) {
        let sent = self.socket.send(WsMessage::binary(bytes)).await;
        sent.expect("the connection is there");
    }

    /// Sends an event and waits for the data of its ack.
    pub async fn ask(&mut self, event: &str, data: impl Serialize) -> Value {
        let mut answer = self.answer(event, data).await;
        assert_eq!(
            answer["event"], "unisono:ack",
            "{event} is answered: {answer}"
        );
        answer["data"].take()
    }

    /// Sends an event and waits for the error that answers it: an object with `code` and `message`.
    pub async fn ask_error(&mut self, event: &str, data: impl Serialize) -> Value {
        let mut answer = self.answer(event, data).await;
        assert_eq!(
            answer["event"], "unisono:error",
            "{event} is answered: {answer}"
        );
        answer["data"].take()
    }

    async fn answer(&mut self, event: &str, data: impl Serialize) -> Value {
        let message = json!({ "event": event, "data": data, "id": "ask" });
        self.send_text(&message.to_string()).await;
        loop {
            let answer = self.next().await;
            if answer["id"] == "ask" {
                return answer;
            }
        }
    }

    /// Waits for an event, past others, and gives its data.
    pub async fn event(&mut self, event: &str) -> Value {
        loop {
            let mut found = self.next().await;
            if found["event"] == event {
                return found["data"].take();
            }
        }
    }

    /// Waits for the next binary frame.
    pub async fn binary(&mut self) -> bytes::Bytes {
        loop {
            match soon("a frame", self.socket.next()).await {
                Some(Ok(WsMessage::Binary(bytes))) => return bytes,
                Some(Ok(WsMessage::Ping(_) | WsMessage::Pong(_))) => {}
                other => panic!("no bytes: {other:?}"),
            }
        }
    }

    /// Waits for the next text frame.
    pub async fn text(&mut self) -> String {
        loop {
            match soon("a frame", self.socket.next()).await {
                Some(Ok(WsMessage::Text(text))) => return text.as_str().to_owned(),
                Some(Ok(WsMessage::Ping(_) | WsMessage::Pong(_))) => {}
                other => panic!("no text: {other:?}"),
            }
        }
    }

    async fn next(&mut self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"))
    }

    /// Closes the connection in good order.
    pub async fn close(mut self) {
        let normal = tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: 1000.into(),
            reason: "".into(),
        };
        let _ = self.socket.close(Some(normal)).await;
        self.closed().await;
    }

    /// Waits for the server to close, past everything else, and gives code and reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match soon("a close", self.socket.next()).await {
                Some(Ok(WsMessage::Close(Some(close)))) => {
                    return (close.code.into(), close.reason.to_string());
                }
                Some(Ok(WsMessage::Close(None))) => return (1005, String::new()),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return (1006, String::new()),
            }
        }
    }
}
