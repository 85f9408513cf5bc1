//! A client of server-sent events that reads HTTP/1.1 itself: chunks, lines, events, and nothing forgiven.

use std::panic::Location;

use serde_json::Value;

use crate::client::Event;
use crate::eventually::soon;
use crate::{Response, Wire};

/// One event stream.
#[derive(Debug)]
pub struct Stream {
    /// The socket id of the greeting; empty where there was none.
    pub id: String,
    /// The room of the greeting.
    pub room: String,
    /// The node id of the greeting.
    pub node: String,
    /// The answer's head.
    pub head: Response,
    /// The latest `retry:`, in milliseconds.
    pub retry: Option<u64>,
    /// How many comments have come.
    pub comments: u64,
    wire: Wire,
    /// Of the body, what is no whole line yet.
    lines: Vec<u8>,
    ended: bool,
}

/// An event of the stream, as a browser would dispatch it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatched {
    /// `message` where the stream names none.
    pub name: String,
    /// The data, its lines joined.
    pub data: String,
}

/// A line, or the end of the body.
enum Line {
    Text(String),
    End,
}

/// The request for the event stream of this path, with more header lines, each with its line end.
pub fn stream_request(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n{headers}\r\n")
}

// === impl Stream ===

impl Stream {
    /// Asks for the room of this path, and waits for the greeting.
    pub async fn connect(port: u16, path: &str) -> Self {
        Self::connect_with(port, path, "").await
    }

    /// [`Stream::connect`] with more header lines, each with its line end.
    pub async fn connect_with(port: u16, path: &str, headers: &str) -> Self {
        let mut stream = Self::ask(port, &stream_request(path, headers))
            .await
            .unwrap_or_else(|refused| panic!("no stream of {path}: {refused:?}"));
        let greeting = stream.expect("unisono:open").await;
        let string = |name: &str| {
            let value = greeting.data[name].as_str();
            value
                .unwrap_or_else(|| panic!("no {name} in {}", greeting.text))
                .to_owned()
        };
        stream.id = string("id");
        stream.room = string("room");
        stream.node = string("node");
        stream
    }

    /// Asks where no greeting is sent.
    pub async fn ungreeted(port: u16, path: &str) -> Self {
        Self::ask(port, &stream_request(path, ""))
            .await
            .unwrap_or_else(|refused| panic!("no stream of {path}: {refused:?}"))
    }

    /// Sends a request; what is not an event stream is a refusal.
    #[track_caller]
    pub fn ask(port: u16, request: &str) -> impl Future<Output = Result<Self, Response>> {
        let here = Location::caller();
        let request = request.to_owned();
        async move {
            let mut wire = Wire::connect(port).await;
            wire.send(request).await;
            let head = soon(
                here,
                || "the head of a stream".to_owned(),
                wire.read_response(here),
            )
            .await;
            let is_stream = head.header("content-type") == Some("text/event-stream");
            if head.status != 200 || !is_stream {
                return Err(head);
            }
            assert_eq!(head.header("transfer-encoding"), Some("chunked"), "{here}");
            Ok(Self {
                id: String::new(),
                room: String::new(),
                node: String::new(),
                head,
                retry: None,
                comments: 0,
                wire,
                lines: vec![],
                ended: false,
            })
        }
    }

    /// The next event as a browser would dispatch it; comments and `retry:` are noted.
    #[track_caller]
    pub fn dispatched(&mut self) -> impl Future<Output = Dispatched> {
        let here = Location::caller();
        async move { soon(here, || "an event".to_owned(), self.read_event(here)).await }
    }

    /// The next event of the native protocol.
    #[track_caller]
    #[expect(
        clippy::should_implement_trait,
        reason = "awaited, so that nobody takes a stream for an iterator"
    )]
    pub fn next(&mut self) -> impl Future<Output = Event> {
        let dispatched = self.dispatched();
        async move {
            let Dispatched { name, data } = dispatched.await;
            assert_eq!(name, "message", "events of the protocol have no name");
            Event::parse(&data)
        }
    }

    /// Expects the next event of the native protocol to have this name.
    #[track_caller]
    pub fn expect(&mut self, event: &str) -> impl Future<Output = Event> {
        let here = Location::caller();
        let event = event.to_owned();
        let next = self.next();
        async move {
            let next = next.await;
            assert_eq!(next.event, event, "{here}: another event: {}", next.text);
            next
        }
    }

    /// Expects the server to say goodbye and to end the body; returns the data of the goodbye.
    #[track_caller]
    pub fn expect_closing(&mut self) -> impl Future<Output = Value> {
        let here = Location::caller();
        async move {
            let closing = soon(here, || "a goodbye".to_owned(), self.read_event(here)).await;
            let closing = Event::parse(&closing.data);
            assert_eq!(closing.event, "unisono:closing", "{here}: {}", closing.text);
            soon(here, || "the end".to_owned(), self.read_end(here)).await;
            closing.data
        }
    }

    /// Expects the body to end as it should, and the connection with it.
    #[track_caller]
    pub fn expect_end(&mut self) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move { soon(here, || "the end".to_owned(), self.read_end(here)).await }
    }

    /// Waits until one more comment has come, with no event before it.
    #[track_caller]
    pub fn expect_comment(&mut self) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move {
            let before = self.comments;
            soon(here, || "a comment".to_owned(), async {
                while self.comments == before {
                    match self.read_line(here).await {
                        Line::Text(line) if line.is_empty() => {}
                        Line::Text(line) if line.starts_with(':') => self.comments += 1,
                        Line::Text(line) => panic!("{here}: expected a comment, got {line:?}"),
                        Line::End => panic!("{here}: expected a comment, the body ended"),
                    }
                }
            })
            .await;
        }
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.wire.reset();
    }

    async fn read_event(&mut self, here: &Location<'_>) -> Dispatched {
        let (mut name, mut data) = (None, None::<String>);
        loop {
            let line = match self.read_line(here).await {
                Line::Text(line) => line,
                Line::End => panic!("{here}: expected an event, the body ended"),
            };
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    if let Some(data) = data.take() {
                        let name = name.take().unwrap_or_else(|| "message".to_owned());
                        return Dispatched { name, data };
                    }
                    name = None;
                }
                "" => self.comments += 1,
                "event" => name = Some(value.to_owned()),
                "data" => match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                },
                "retry" => self.retry = Some(value.parse().expect("retry is a number")),
                _ => panic!("{here}: a line that no server sends: {line:?}"),
            }
        }
    }

    async fn read_end(&mut self, here: &Location<'_>) {
        loop {
            match self.read_line(here).await {
                Line::Text(line) if line.is_empty() => {}
                Line::Text(line) => panic!("{here}: expected the end, got {line:?}"),
                Line::End => break,
            }
        }
        assert!(self.wire.unread.is_empty(), "{here}: more came after it");
        // A proxy may keep the connection for the next request.
        if self.head.header("connection") == Some("close") {
            assert!(!self.wire.fill().await, "{here}: more came after the end");
        }
    }

    /// Lines end with LF here, as the server writes them.
    async fn read_line(&mut self, here: &Location<'_>) -> Line {
        loop {
            if let Some(at) = self.lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.lines.drain(..=at).collect();
                assert!(!line.contains(&b'\r'), "{here}: a CR would end a line");
                let line = std::str::from_utf8(&line[..at]).expect("event streams are UTF-8");
                return Line::Text(line.to_owned());
            }
            if self.ended {
                assert!(self.lines.is_empty(), "{here}: the body ends in a line");
                return Line::End;
            }
            self.read_chunk(here).await;
        }
    }

    async fn read_chunk(&mut self, here: &Location<'_>) {
        loop {
            let unread = &self.wire.unread;
            if let Some(at) = unread.windows(2).position(|two| two == b"\r\n") {
                let size = String::from_utf8_lossy(&unread[..at]).into_owned();
                let size = usize::from_str_radix(&size, 16)
                    .unwrap_or_else(|_| panic!("{here}: the size of a chunk: {size:?}"));
                let (start, end) = (at + 2, at + 2 + size);
                if unread.len() >= end + 2 {
                    assert_eq!(&unread[end..end + 2], b"\r\n", "{here}: the end of a chunk");
                    self.lines.extend_from_slice(&unread[start..end]);
                    self.wire.unread.drain(..end + 2);
                    self.ended = size == 0;
                    return;
                }
            }
            self.wire.more(here).await;
        }
    }
}
