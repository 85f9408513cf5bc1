//! Where the sockets of a node are opened: addresses, TLS, handshakes and why they fail.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use proto::SocketId;
use rustix::io::Errno;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use url::Url;

use super::socket::{Buffer, Socket};
use crate::cli::outcome::Failure;
use crate::delivery::Wire;
use crate::textfile;
use crate::tls::Stream;

/// Where the sockets of one node are opened.
#[derive(Clone)]
pub struct Entrance {
    url: Url,
    address: SocketAddr,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    token: Option<String>,
    wire: Wire,
    timeout: Duration,
}

const TOO_FEW_FILES: &str =
    "too few open files: raise the limit (ulimit -n), or take fewer sockets";

/// Longer than the head of any answer, with a body that says why not.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

impl Entrance {
    /// The entrance of the node at that URL.
    pub async fn find(
        url: &Url,
        ca: Option<&Path>,
        token: Option<String>,
        wire: Wire,
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
            wire,
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
            wire: Wire::WebSocket,
            timeout,
        })
    }

    /// The same for WebSockets, whatever else the sockets are.
    pub fn for_websocket(&self) -> Self {
        Self {
            wire: Wire::WebSocket,
            ..self.clone()
        }
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
        buffer: &RefCell<Buffer>,
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
                Stream::Tls(Box::new(connected.into()))
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
                let head = String::from_utf8_lossy(&read);
                return match self.agreed(&head)? {
                    Some(chunked) => Ok(Socket::open(stream, self.wire, chunked, rest)),
                    None => Err(self.refused(&head, rest, &mut stream).await),
                };
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
        let offer = match (self.wire, self.wire.window()) {
            (Wire::EventStream, _) => {
                return format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n{token}\r\n"
                );
            }
            (_, Some(window)) => format!("Sec-WebSocket-Extensions: {}\r\n", window.answer()),
            (_, None) => String::new(),
        };
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}{token}\r\n"
        )
    }

    /// Whether the answer opens a socket, and whether its body then comes in chunks.
    fn agreed(&self, head: &str) -> Result<Option<bool>, Failure> {
        let says = |name, wanted: &str| header(head, name).is_some_and(|it| it.starts_with(wanted));
        match self.wire {
            Wire::EventStream => {
                let opened =
                    head.starts_with("HTTP/1.1 200 ") && says("content-type", "text/event-stream");
                Ok(opened.then(|| says("transfer-encoding", "chunked")))
            }
            wire => {
                let opened = head.starts_with("HTTP/1.1 101 ");
                let compresses = says("sec-websocket-extensions", "permessage-deflate");
                if opened && wire.window().is_some() && !compresses {
                    return Err(Failure::Failed(format!(
                        "{} does not compress: set sockets.deflate there, or leave out --deflate",
                        self.url
                    )));
                }
                Ok(opened.then_some(false))
            }
        }
    }

    /// The node said no: with a status, and a reason that is JSON.
    async fn refused(&self, head: &str, body: Vec<u8>, stream: &mut Stream) -> Failure {
        let length = header(head, "content-length").and_then(|length| length.parse().ok());
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
        let files = [Errno::MFILE, Errno::NFILE].map(|errno| Some(errno.raw_os_error()));
        Failure::Failed(match error.kind() {
            _ if files.contains(&error.raw_os_error()) => TOO_FEW_FILES.to_owned(),
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

/// The value of a header in the head of an answer.
fn header<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case(wanted).then(|| value.trim())
    })
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
            let read =
                textfile::read_bytes(file).with_context(|| format!("--ca {}", file.display()))?;
            for certificate in CertificateDer::pem_slice_iter(&read) {
                roots.add(certificate?)?;
            }
            config.with_root_certificates(roots)
        }
    };
    Ok(TlsConnector::from(Arc::new(config.with_no_client_auth())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entrance(wire: Wire) -> Entrance {
        let address = ([127, 0, 0, 1], 8080).into();
        let entrance = Entrance::bare(address, Duration::from_secs(1)).unwrap();
        Entrance { wire, ..entrance }
    }

    #[test]
    fn an_answer_opens_what_was_asked_for() {
        let upgraded = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n";
        let compressed = upgraded.replace(
            "\r\n\r\n",
            "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        );
        let events = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
        let chunked = format!("{events}Transfer-Encoding: chunked\r\n\r\n");
        let page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n";
        for (wire, head, agreed) in [
            (Wire::WebSocket, upgraded, Some(false)),
            (Wire::WebSocket, &chunked, None),
            (Wire::Deflate, &compressed, Some(false)),
            (Wire::Deflate, page, None),
            (Wire::EventStream, &chunked, Some(true)),
            (Wire::EventStream, events, Some(false)),
            (Wire::EventStream, upgraded, None),
            (Wire::EventStream, page, None),
        ] {
            assert_eq!(
                entrance(wire).agreed(head).unwrap(),
                agreed,
                "{wire:?} {head}"
            );
        }
        let plain = entrance(Wire::Deflate).agreed(upgraded);
        assert!(matches!(plain, Err(Failure::Failed(why)) if why.contains("sockets.deflate")));
    }

    #[test]
    fn who_is_out_of_ports_or_files_is_told_what_to_do() {
        let why = |kind| match entrance(Wire::WebSocket).unreachable(&kind) {
            Failure::Failed(why) => why,
            other => panic!("{other:?}"),
        };
        let ports = why(io::ErrorKind::AddrNotAvailable.into());
        assert!(ports.contains("--url") && ports.contains("ip_local_port_range"));
        let files = why(io::Error::from_raw_os_error(Errno::MFILE.raw_os_error()));
        assert!(files.contains("ulimit -n"), "{files}");
    }
}
