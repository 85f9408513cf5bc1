//! A bare TCP connection: bytes as the test wrote them, for what no WebSocket library would send.

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::Location;

use flate2::{Compress, Compression, FlushCompress, Status};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::eventually::soon;

/// What a compressed message leaves out (RFC 7692 §7.2.1).
const DEFLATE_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// The key of the example in RFC 6455, and the accept value that belongs to it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// A TCP connection to a server.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    pub(crate) unread: Vec<u8>,
}

/// An HTTP response head, and its body where it has a length.
#[derive(Debug, Clone)]
pub struct Response {
    /// `HTTP/1.1` or `HTTP/1.0`.
    pub version: String,
    /// The status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// The kinds of frame of RFC 6455.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// The rest of a fragmented message.
    Continuation = 0,
    /// UTF-8.
    Text = 1,
    /// Bytes.
    Binary = 2,
    /// The last frame.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping.
    Pong = 10,
}

/// A frame that the server sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The last frame of its message.
    pub fin: bool,
    /// The message is compressed, see [`inflated`].
    pub compressed: bool,
    /// The four bits of the opcode.
    pub opcode: u8,
    /// The payload.
    pub payload: Vec<u8>,
}

/// What [`Wire::piece`] has room for: as much as Linux hands over on loopback at one time.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// A client's frame: final, masked, its length in the shortest form.
pub fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(0x80 | opcode as u8, payload.len() as u64);
    bytes.extend(
        payload
            .iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    bytes
}

/// A client's text message, compressed as RFC 7692 says, in one frame.
pub fn compressed_frame(text: &[u8]) -> Vec<u8> {
    let compressed = deflated(text);
    let mut bytes = frame(Opcode::Text, &compressed);
    bytes[0] |= 0x40;
    bytes
}

/// The bytes of a compressed message.
pub fn deflated(message: &[u8]) -> Vec<u8> {
    let mut compressor = Compress::new(Compression::default(), false);
    let mut compressed = Vec::with_capacity(message.len() + 100);
    let flushed = compressor.compress_vec(message, &mut compressed, FlushCompress::Sync);
    assert_eq!(flushed.expect("it can be compressed"), Status::Ok);
    assert!(compressed.ends_with(&DEFLATE_TAIL));
    compressed.truncate(compressed.len() - DEFLATE_TAIL.len());
    compressed
}

/// What was compressed, by a reader that keeps no more of it than `2^window_bits` bytes.
pub fn inflated(compressed: &[u8], window_bits: u8) -> Vec<u8> {
    let mut inflater = DecompressorOxide::new();
    let mut window = vec![0; 1 << window_bits];
    let (mut message, mut at) = (vec![], 0);
    let whole = [compressed, &DEFLATE_TAIL].concat();
    let mut rest = &whole[..];
    loop {
        let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
        let (status, read, written) = decompress(&mut inflater, rest, &mut window, at, flags);
        rest = &rest[read..];
        message.extend_from_slice(&window[at..at + written]);
        at = (at + written) % window.len();
        match status {
            TINFLStatus::HasMoreOutput => {}
            TINFLStatus::NeedsMoreInput => break,
            failed => panic!("no deflate data: {failed:?}"),
        }
    }
    assert!(rest.is_empty(), "{rest:x?}");
    message
}

/// The head of a masked frame with this first byte that declares this length.
pub fn head(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..126 => bytes.push(0x80 | length as u8),
        126..0x1_0000 => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend(length.to_be_bytes());
        }
    }
    bytes.extend(MASK);
    bytes
}

// === impl Response ===

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

// === impl Wire ===

impl Wire {
    /// Connects to this port on loopback.
    pub async fn connect(port: u16) -> Self {
        Self::over(TcpSocket::new_v4().expect("a TCP socket"), port).await
    }

    /// Connects with the smallest receive buffer there is: little is on its way to one who does not read.
    pub async fn narrow(port: u16) -> Self {
        let socket = TcpSocket::new_v4().expect("a TCP socket");
        socket
            .set_recv_buffer_size(2048)
            .expect("a small receive buffer");
        Self::over(socket, port).await
    }

    /// Connects from another address of loopback, which counts as another client.
    pub async fn connect_from(address: Ipv4Addr, port: u16) -> Self {
        let socket = TcpSocket::new_v4().expect("a TCP socket");
        socket
            .bind(SocketAddr::from((address, 0)))
            .expect("an address of this machine");
        Self::over(socket, port).await
    }

    async fn over(socket: TcpSocket, port: u16) -> Self {
        let stream = socket
            .connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
            .await;
        let stream = stream.unwrap_or_else(|error| panic!("connecting to port {port}: {error}"));
        stream.set_nodelay(true).expect("a TCP option");
        Self {
            stream,
            unread: vec![],
        }
    }

    /// The port at this end.
    pub fn local_port(&self) -> u16 {
        self.stream.local_addr().expect("a connected socket").port()
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        self.stream.set_zero_linger().expect("a TCP option");
    }

    /// Says that nothing more comes, and goes on listening: a FIN.
    pub async fn half_close(&mut self) {
        let shut = self.stream.shutdown().await;
        shut.expect("the connection stands");
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes)
            .await
            .expect("the connection takes bytes");
    }

    /// Sends bytes to a server that may hang up on them.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Sends the same again and again, until so many bytes are sent or the server hangs up, and reads what comes
    /// meanwhile: until it does hang up.
    #[track_caller]
    pub fn flood(&mut self, bytes: &[u8], most: usize) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move {
            let (mut read, mut write) = self.stream.split();
            let writing = async {
                for _ in 0..most.div_ceil(bytes.len()) {
                    if write.write_all(bytes).await.is_err() {
                        break;
                    }
                }
            };
            let unread = &mut self.unread;
            let reading =
                async { while read.read_buf(unread).await.is_ok_and(|count| count > 0) {} };
            let both = async { tokio::join!(writing, reading) };
            soon(here, || "the end of a flood".to_owned(), both).await;
        }
    }

    /// Opens a WebSocket at this path, with the example key of the RFC.
    #[track_caller]
    pub fn upgrade(&mut self, path: &str) -> impl Future<Output = ()> {
        let here = Location::caller();
        let request = upgrade_request(path);
        async move {
            self.send(request).await;
            let response = self.response().await;
            assert_eq!(response.status, 101, "{here}: {}", response.body);
            assert_eq!(
                response.header("sec-websocket-accept"),
                Some(ACCEPT),
                "{here}"
            );
        }
    }

    /// Reads an HTTP response.
    #[track_caller]
    pub fn response(&mut self) -> impl Future<Output = Response> {
        let here = Location::caller();
        async move {
            soon(
                here,
                || "an HTTP response".to_owned(),
                self.read_response(here),
            )
            .await
        }
    }

    /// Reads up to this text, and returns what came before it.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> impl Future<Output = String> {
        let here = Location::caller();
        async move {
            let find = async {
                loop {
                    let mut windows = self.unread.windows(text.len());
                    match windows.position(|window| window == text.as_bytes()) {
                        Some(at) => break at,
                        None => self.more(here).await,
                    }
                }
            };
            let at = soon(here, || format!("{text:?}"), find).await;
            let mut read: Vec<u8> = self.unread.drain(..at + text.len()).collect();
            read.truncate(at);
            String::from_utf8_lossy(&read).into_owned()
        }
    }

    /// Reads a frame.
    #[track_caller]
    pub fn frame(&mut self) -> impl Future<Output = Frame> {
        let here = Location::caller();
        async move { soon(here, || "a frame".to_owned(), self.read_frame(here)).await }
    }

    /// Reads a text frame.
    #[track_caller]
    pub fn text(&mut self) -> impl Future<Output = String> {
        let here = Location::caller();
        async move {
            let frame = soon(here, || "a text frame".to_owned(), self.read_frame(here)).await;
            assert_eq!(frame.opcode, Opcode::Text as u8, "{here}: {frame:?}");
            String::from_utf8(frame.payload).expect("text frames are UTF-8")
        }
    }

    /// Reads on until the close frame and returns its code and reason.
    #[track_caller]
    pub fn close(&mut self) -> impl Future<Output = (u16, String)> {
        let here = Location::caller();
        async move { soon(here, || "a close frame".to_owned(), self.read_close(here)).await }
    }

    /// Expects the server to have hung up, with nothing more to read.
    #[track_caller]
    pub fn expect_eof(&mut self) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move {
            let more = soon(here, || "the end".to_owned(), self.fill()).await;
            assert!(
                !more,
                "{here}: more came: {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
    }

    /// Reads what has come, at least something, and forgets it; says how much it was.
    #[track_caller]
    pub fn swallow(&mut self) -> impl Future<Output = usize> {
        let here = Location::caller();
        async move {
            if self.unread.is_empty() {
                soon(here, || "anything".to_owned(), self.more(here)).await;
            }
            std::mem::take(&mut self.unread).len()
        }
    }

    /// Reads until the server hangs up, and returns what came.
    #[track_caller]
    pub fn rest(&mut self) -> impl Future<Output = Vec<u8>> {
        let here = Location::caller();
        async move {
            soon(here, || "the end".to_owned(), async {
                while self.fill().await {}
            })
            .await;
            std::mem::take(&mut self.unread)
        }
    }

    /// The whole frames of what comes next in one piece, that is, in one read.
    #[track_caller]
    pub fn piece(&mut self) -> impl Future<Output = Vec<Frame>> {
        let here = Location::caller();
        async move {
            assert!(self.unread.is_empty(), "{here}: something came before");
            self.unread.reserve(PIECE_BYTES_MAX);
            let more = soon(here, || "a piece".to_owned(), self.fill()).await;
            assert!(more, "{here}: the server hung up");
            parse_frames(&std::mem::take(&mut self.unread))
        }
    }

    /// Reads until the server hangs up, and returns the whole frames that came.
    #[track_caller]
    pub fn frames(&mut self) -> impl Future<Output = Vec<Frame>> {
        let rest = self.rest();
        async move { parse_frames(&rest.await) }
    }

    async fn read_close(&mut self, here: &Location<'_>) -> (u16, String) {
        loop {
            let frame = self.read_frame(here).await;
            if frame.opcode == Opcode::Close as u8 {
                let (code, reason) = frame
                    .payload
                    .split_at_checked(2)
                    .unwrap_or((&[0x03, 0xed], &[]));
                let reason = String::from_utf8(reason.to_vec()).expect("close reasons are UTF-8");
                return (u16::from_be_bytes([code[0], code[1]]), reason);
            }
        }
    }

    pub(crate) async fn read_response(&mut self, here: &Location<'_>) -> Response {
        let end = loop {
            match self
                .unread
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                Some(end) => break end,
                None => self.more(here).await,
            }
        };
        let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().splitn(3, ' ');
        let version = first.next().unwrap_or_default().to_owned();
        let status = first.next().and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{here}: no HTTP response: {head}"));
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut response = Response {
            version,
            status,
            headers,
            body: String::new(),
        };
        let length = response.header("content-length").map_or(0, |length| {
            length
                .parse()
                .unwrap_or_else(|_| panic!("{here}: a content length: {length}"))
        });
        while self.unread.len() < length {
            self.more(here).await;
        }
        let body: Vec<u8> = self.unread.drain(..length).collect();
        response.body = String::from_utf8_lossy(&body).into_owned();
        response
    }

    async fn read_frame(&mut self, here: &Location<'_>) -> Frame {
        loop {
            match parse_frame(&self.unread) {
                Some((frame, length)) => {
                    self.unread.drain(..length);
                    return frame;
                }
                None => self.more(here).await,
            }
        }
    }

    pub(crate) async fn more(&mut self, here: &Location<'_>) {
        let got = self.fill().await;
        assert!(
            got,
            "{here}: the server hung up after {:?}",
            String::from_utf8_lossy(&self.unread)
        );
    }

    /// Reads what there is; false at the end. A reset is an end too.
    pub(crate) async fn fill(&mut self) -> bool {
        self.stream
            .read_buf(&mut self.unread)
            .await
            .is_ok_and(|read| read > 0)
    }
}

/// The request that [`Wire::upgrade`] sends: the example of RFC 6455 with another path.
pub fn upgrade_request(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    )
}

/// The frames that these bytes begin with.
fn parse_frames(bytes: &[u8]) -> Vec<Frame> {
    let mut start = 0;
    let next = || {
        let (frame, length) = parse_frame(&bytes[start..])?;
        start += length;
        Some(frame)
    };
    std::iter::from_fn(next).collect()
}

/// The first frame of these bytes and its length, once it is complete. A server masks nothing.
fn parse_frame(bytes: &[u8]) -> Option<(Frame, usize)> {
    let (&[first, second], _) = bytes.split_first_chunk::<2>()?;
    assert_eq!(second & 0x80, 0, "a server must not mask");
    assert_eq!(first & 0x30, 0, "bits that nothing uses");
    let (start, length) = match second {
        126 => (
            4,
            usize::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        ),
        127 => (
            10,
            u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?) as usize,
        ),
        short => (2, usize::from(short)),
    };
    let payload = bytes.get(start..start + length)?.to_vec();
    Some((
        Frame {
            fin: first & 0x80 != 0,
            compressed: first & 0x40 != 0,
            opcode: first & 0x0f,
            payload,
        },
        start + length,
    ))
}
