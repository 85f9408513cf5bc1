//! The clients: many sockets in one thread, each a light task; all read into one buffer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};

use bytes::BytesMut;
use proto::SocketId;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use super::events::{Event, Events};
use super::frames::{Frame, Frames, control};
use super::inflated::Inflated;
use crate::delivery::Wire;
use crate::tls::Stream;
use crate::websocket::Opcode;

/// A WebSocket or a stream of events, open.
pub struct Socket {
    stream: Stream,
    reader: Reader,
    /// What came with the answer to the handshake, until it is looked at.
    rest: Vec<u8>,
    unsent: BytesMut,
}

/// What a node says to a socket.
pub enum Incoming<'a> {
    Text(&'a [u8]),
    Ping,
    /// The last, and why.
    Close(String),
}

/// What all sockets of a thread read into.
pub struct Buffer {
    bytes: Vec<u8>,
    pub inflated: Inflated,
}

enum Reader {
    Frames(Frames),
    Events(Events),
}

/// An event of the server's own.
#[derive(Deserialize)]
struct Told<'a, T> {
    event: &'a str,
    data: T,
}

#[derive(Deserialize)]
struct Greeting {
    id: SocketId,
}

#[derive(Deserialize)]
struct Closing {
    code: u16,
    reason: String,
}

/// As much as is read at one time.
pub const BUFFER_BYTES: usize = 64 * 1024;

impl Default for Buffer {
    fn default() -> Self {
        Self {
            bytes: vec![0; BUFFER_BYTES],
            inflated: Inflated::default(),
        }
    }
}

impl Socket {
    /// A socket that a node has agreed to with a head, and what came behind that. `chunked` is how a stream of events
    /// comes.
    pub fn open(stream: Stream, wire: Wire, chunked: bool, rest: Vec<u8>) -> Self {
        let reader = match wire {
            Wire::EventStream => Reader::Events(Events::new(chunked)),
            _ => Reader::Frames(Frames::default()),
        };
        Self {
            stream,
            reader,
            rest,
            unsent: BytesMut::new(),
        }
    }

    /// Reads once, answers pings, and hands out what came: in so many bytes, or none at the end of the connection.
    pub async fn read(
        &mut self,
        buffer: &RefCell<Buffer>,
        mut on: impl FnMut(Incoming),
    ) -> anyhow::Result<Option<usize>> {
        let Self {
            stream,
            reader,
            rest,
            unsent,
        } = self;
        let mut feed =
            |bytes: &[u8], inflated: &mut Inflated| reader.feed(bytes, inflated, unsent, &mut on);
        let count = if rest.is_empty() {
            let read = poll_fn(|cx| {
                // Nobody else has it: there is one thread, and nothing below waits.
                let Buffer { bytes, inflated } = &mut *buffer.borrow_mut();
                let mut read = ReadBuf::new(bytes);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut read))?;
                Poll::Ready(feed(read.filled(), inflated).map(|()| read.filled().len()))
            });
            match read.await? {
                0 => return Ok(None),
                count => count,
            }
        } else {
            let rest = std::mem::take(rest);
            feed(&rest, &mut buffer.borrow_mut().inflated)?;
            rest.len()
        };
        self.flush().await?;
        Ok(Some(count))
    }

    /// Takes what is to be sent with the next [`Socket::flush`].
    pub fn push(&mut self, frames: &mut Vec<u8>) {
        self.unsent.extend_from_slice(frames);
        frames.clear();
    }

    /// Sends what waits. Dropped in the middle, it goes on where it was.
    pub async fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            self.stream.write_buf(&mut self.unsent).await?;
        }
        Ok(())
    }

    /// Says goodbye, and hears nothing any more.
    pub async fn close(mut self) {
        if let Reader::Frames(_) = self.reader {
            let close = control(Opcode::Close, &1000_u16.to_be_bytes());
            let _ = self.stream.write_all(&close).await;
        }
        let _ = self.stream.shutdown().await;
    }

    /// Reads up to `unisono:open`, and says which socket this is.
    pub async fn greeting(&mut self, buffer: &RefCell<Buffer>) -> anyhow::Result<SocketId> {
        let (mut id, mut closed) = (None, None);
        loop {
            let read = self.read(buffer, |incoming| match incoming {
                Incoming::Text(text) => {
                    let greeting = told::<Greeting>(text, "unisono:open");
                    id = id.or(greeting.map(|greeting| greeting.id));
                }
                Incoming::Close(why) => closed = Some(why),
                Incoming::Ping => {}
            });
            let read = read.await?;
            if let Some(id) = id {
                return Ok(id);
            }
            if let Some(closed) = closed {
                anyhow::bail!("closed: {closed}");
            }
            anyhow::ensure!(read.is_some(), "the connection ended");
        }
    }
}

impl Reader {
    /// Hands out what is complete with those bytes, and puts what is to be answered to the `pongs`.
    fn feed(
        &mut self,
        bytes: &[u8],
        inflated: &mut Inflated,
        pongs: &mut BytesMut,
        on: &mut impl FnMut(Incoming),
    ) -> anyhow::Result<()> {
        let mut broken = Ok(());
        match self {
            Self::Frames(frames) => frames.feed(bytes, |frame| match frame {
                Frame::Text(text) => on(Incoming::Text(text)),
                Frame::Compressed(text) => match inflated.text(text) {
                    Ok(text) => on(Incoming::Text(text)),
                    Err(error) => broken = Err(error),
                },
                Frame::Ping(payload) => {
                    pongs.extend(control(Opcode::Pong, payload));
                    on(Incoming::Ping);
                }
                Frame::Close(payload) => on(Incoming::Close(reason(payload))),
                Frame::Other => {}
            }),
            Self::Events(events) => events.feed(bytes, |event| {
                on(match event {
                    // A stream has no frame that closes it.
                    Event::Data(text) => match told::<Closing>(text, "unisono:closing") {
                        Some(Closing { code, reason }) => {
                            Incoming::Close(format!("{code} {reason}"))
                        }
                        None => Incoming::Text(text),
                    },
                    Event::Comment => Incoming::Ping,
                    Event::End => Incoming::Close("the answer is over".to_owned()),
                });
            }),
        }?;
        broken
    }
}

/// The data of that event, where the text is one.
fn told<'a, T: Deserialize<'a>>(text: &'a [u8], event: &str) -> Option<T> {
    // Most are none, and are not worth a parser.
    let told: Told<T> = serde_json::from_slice(text.starts_with(b"{").then_some(text)?).ok()?;
    (told.event == event).then_some(told.data)
}

/// What a close frame says.
fn reason(payload: &[u8]) -> String {
    match payload {
        [first, second, reason @ ..] => {
            let code = u16::from_be_bytes([*first, *second]);
            format!("{code} {}", String::from_utf8_lossy(reason))
                .trim_end()
                .to_owned()
        }
        _ => "no code".to_owned(),
    }
}
