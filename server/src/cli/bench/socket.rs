//! The clients: many WebSockets in one thread, each a light task; all read into one buffer.

use std::cell::RefCell;
use std::fs;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use proto::SocketId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use url::Url;

use super::frames::{Frame, Frames, control};
use crate::cli::outcome::Failure;

/// Where the sockets of one node are opened.
#[derive(Clone)]
pub struct Entrance {
    url: Url,
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    token: Option<String>,
    timeout: Duration,
}

/// A WebSocket, open.
pub struct Socket {
    stream: Stream,
    frames: Frames,
    /// What came with the answer to the handshake has been looked at.
    begun: bool,
}

/// A connection to a node.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// `unisono:open`.
#[derive(Deserialize)]
struct Opened<'a> {
    event: &'a str,
    data: Greeting,
}

#[derive(Deserialize)]
struct Greeting {
    id: SocketId,
}

/// Longer than the head of any answer, with a body that says why not.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

impl Entrance {
    /// The entrance of the node at that URL.
    pub async fn find(
        url: &Url,
        ca: Option<&Path>,
        token: Option<String>,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(80);
        let name = host.trim_matches(['[', ']']).to_owned();
        let found = lookup_host((name.clone(), port)).await;
        let found: Vec<_> = found.into_iter().flatten().collect();
        let address = first(&found).await;
        let address = address.with_context(|| format!("{host} has no address"))?;
        let tls = match url.scheme() {
            "https" => {
                let name = ServerName::try_from(name);
                let name = name.with_context(|| format!("{host} is not the name of a server"))?;
                Some((connector(ca)?, name))
            }
            _ => None,
        };
        Ok(Self {
            url: url.clone(),
            address,
            tls,
            token,
            timeout,
        })
    }

    /// A bare loop on this machine, in place of a node.
    pub fn bare(address: SocketAddr, timeout: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            url: Url::parse(&format!("http://{address}"))?,
            address,
            tls: None,
            token: None,
            timeout,
        })
    }

    /// A handshake, up to its answer.
    pub async fn open(&self, room: &str) -> Result<Socket, Failure> {
        let opened = tokio::time::timeout(self.timeout, self.shake_hands(room)).await;
        opened.map_err(|_| self.silent("the handshake"))?
    }

    /// A handshake, up to the socket's greeting: from then on it receives what is published on any node.
    pub async fn join(
        &self,
        room: &str,
        buffer: &RefCell<Vec<u8>>,
    ) -> Result<(Socket, SocketId), Failure> {
        let mut socket = self.open(room).await?;
        let greeted = tokio::time::timeout(self.timeout, socket.greeting(buffer)).await;
        match greeted {
            Ok(Ok(id)) => Ok((socket, id)),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err(Failure::Failed(format!(
                "{} does not greet a socket in {room}: no `unisono:open` came. Take a room of the format `json`, and set \
                 sockets.greeting",
                self.url
            ))),
        }
    }

    async fn shake_hands(&self, room: &str) -> Result<Socket, Failure> {
        let tcp = TcpStream::connect(self.address).await;
        let tcp = tcp.map_err(|error| self.unreachable(&error))?;
        tcp.set_nodelay(true)?;
        let mut stream = match &self.tls {
            None => Stream::Plain(tcp),
            Some((connector, name)) => {
                let connected = connector.connect(name.clone(), tcp).await;
                let connected = connected.map_err(|error| self.unreachable(&error))?;
                Stream::Tls(Box::new(connected))
            }
        };
        let head = self.head(room);
        let sent = stream.write_all(head.as_bytes()).await;
        sent.map_err(|error| self.unreachable(&error))?;
        let mut read = Vec::with_capacity(512);
        loop {
            let count = stream.read_buf(&mut read).await;
            let count = count.map_err(|error| self.unreachable(&error))?;
            let end = read.windows(4).position(|bytes| bytes == b"\r\n\r\n");
            if let Some(end) = end {
                let rest = read.split_off(end + 4);
                if !read.starts_with(b"HTTP/1.1 101 ") {
                    return Err(self.refused(&read, rest, &mut stream).await);
                }
                return Ok(Socket {
                    stream,
                    frames: Frames::begun(rest),
                    begun: false,
                });
            }
            if count == 0 || read.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Failed(format!(
                    "{} ends the connection in place of an answer to the handshake",
                    self.url
                )));
            }
        }
    }

    fn head(&self, room: &str) -> String {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{room}", url.path().trim_end_matches('/')));
        let (path, host) = (url.path(), self.url.authority());
        let token = self
            .token
            .as_ref()
            .map(|token| format!("Authorization: Bearer {token}\r\n"));
        let token = token.unwrap_or_default();
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{token}\r\n"
        )
    }

    /// The node said no: with a status, and a reason that is JSON.
    async fn refused(&self, head: &[u8], body: Vec<u8>, stream: &mut Stream) -> Failure {
        let head = String::from_utf8_lossy(head);
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let named = name.eq_ignore_ascii_case("content-length");
            named.then(|| value.trim().parse::<usize>().ok())?
        });
        let length = length.unwrap_or(0).min(ANSWER_BYTES_MAX);
        let mut body = body;
        while body.len() < length
            && stream
                .read_buf(&mut body)
                .await
                .is_ok_and(|count| count > 0)
        {}
        let status = head.split_whitespace().nth(1).unwrap_or("?");
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let field = |name: &str| said["error"][name].as_str().unwrap_or("-").to_owned();
        let mut why = format!(
            "{} refuses the handshake: {status}, {} ({})",
            self.url,
            field("message"),
            field("code")
        );
        why.push_str(match status {
            "401" => "\nGive a token with --token or UNISONO_TOKEN.",
            "403" | "404" => "\nSay with --room which room the rules of the node allow.",
            _ => "",
        });
        Failure::Failed(why)
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let url = &self.url;
        Failure::Failed(match error.kind() {
            io::ErrorKind::AddrNotAvailable => format!(
                "no port of this machine is left for connections to {url}: give more nodes with --url, fewer --sockets, or \
                 more ports (net.ipv4.ip_local_port_range)"
            ),
            _ => format!("cannot open a socket at {url}: {error}"),
        })
    }

    fn broken(&self, error: &anyhow::Error) -> Failure {
        Failure::Failed(format!("a socket at {} broke: {error:#}", self.url))
    }

    fn silent(&self, what: &str) -> Failure {
        let timeout = humantime::format_duration(self.timeout);
        Failure::Failed(format!(
            "{} does not answer {what} within {timeout}",
            self.url
        ))
    }
}

/// The first address where somebody listens; the first of all, where nobody does. `localhost` has several.
async fn first(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    for address in addresses.iter().filter(|_| addresses.len() > 1) {
        if TcpStream::connect(address).await.is_ok() {
            return Some(*address);
        }
    }
    addresses.first().copied()
}

/// Trusts the authorities of the file, or else of the system.
fn connector(ca: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = match ca {
        None => config.with_platform_verifier()?,
        Some(file) => {
            let mut roots = RootCertStore::empty();
            let read = fs::read(file).with_context(|| format!("--ca {}", file.display()))?;
            for certificate in CertificateDer::pem_slice_iter(&read) {
                roots.add(certificate?)?;
            }
            config.with_root_certificates(roots)
        }
    };
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

impl Socket {
    /// Reads once, answers pings, and hands out what else came. Whether there may be more.
    pub async fn read(
        &mut self,
        buffer: &RefCell<Vec<u8>>,
        mut on: impl FnMut(Frame),
    ) -> anyhow::Result<bool> {
        let mut pongs = Vec::new();
        let mut answering = |frame: Frame| match frame {
            Frame::Ping(payload) => pongs.extend(control(10, payload)),
            frame => on(frame),
        };
        let more = if self.begun {
            let Self { stream, frames, .. } = self;
            let read = poll_fn(|cx| {
                // Nobody else has it: there is one thread, and nothing below waits.
                let mut buffer = buffer.borrow_mut();
                let mut buffer = ReadBuf::new(&mut buffer);
                ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
                let count = buffer.filled().len();
                Poll::Ready(frames.feed(buffer.filled(), &mut answering).map(|()| count))
            });
            read.await? > 0
        } else {
            self.begun = true;
            self.frames.feed(&[], &mut answering)?;
            true
        };
        if !pongs.is_empty() {
            self.stream.write_all(&pongs).await?;
        }
        Ok(more)
    }

    /// Says goodbye, and hears nothing any more.
    pub async fn close(mut self) {
        let _ = self
            .stream
            .write_all(&control(8, &1000_u16.to_be_bytes()))
            .await;
        let _ = self.stream.shutdown().await;
    }

    async fn greeting(&mut self, buffer: &RefCell<Vec<u8>>) -> anyhow::Result<SocketId> {
        let (mut id, mut closed) = (None, None);
        loop {
            let more = self.read(buffer, |frame| match frame {
                Frame::Text(text) => {
                    let opened = serde_json::from_slice::<Opened>(text).ok();
                    let opened = opened.filter(|opened| opened.event == "unisono:open");
                    id = id.or(opened.map(|opened| opened.data.id));
                }
                Frame::Close(payload) => closed = Some(reason(payload)),
                _ => {}
            });
            let more = more.await?;
            if let Some(id) = id {
                return Ok(id);
            }
            if let Some(closed) = closed {
                anyhow::bail!("closed: {closed}");
            }
            anyhow::ensure!(more, "the connection ended");
        }
    }
}

/// What a close frame says.
pub fn reason(payload: &[u8]) -> String {
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

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
