//! The opening handshake (RFC 6455 §4.2): what a request head asks for, and the answers.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proto::RoomName;
use proto::client::SUBPROTOCOL;
use sha1::{Digest, Sha1};

use super::deflate::Window;

/// What a request wants of this server.
#[derive(Debug, PartialEq)]
pub enum Wanted {
    /// A WebSocket.
    Socket(Upgrade),
    /// Plain HTTP, whatever `Connection` says: some proxies put `upgrade` on every request.
    Http,
}

/// A valid request for a WebSocket.
#[derive(Debug, PartialEq)]
pub struct Upgrade {
    /// The room that the path names.
    pub room: RoomName,
    /// The query of the URL.
    pub query: String,
    /// The value of `Sec-WebSocket-Accept`.
    pub accept: String,
    /// Whether the client offers [`SUBPROTOCOL`].
    pub subprotocol: bool,
    /// How messages to a client may be compressed that offers it.
    pub deflate: Option<Window>,
}

/// A request that is answered with an error, and never with a 101.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status with its reason phrase.
    pub status: Cow<'static, str>,
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// A header line beside the usual ones.
    pub header: &'static str,
}

/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Reads a request head.
pub fn read(request: &httparse::Request<'_, '_>) -> Result<Wanted, Refusal> {
    // Handed to the HTTP server, it would come back as a wish to upgrade.
    if request.method == Some("CONNECT") {
        let message = "this is no proxy";
        return Err(Refusal::of("405 Method Not Allowed", "bad_method", message));
    }
    let key = one(request, "sec-websocket-key")?;
    let version = one(request, "sec-websocket-version")?;
    if key.is_none() && version.is_none() {
        return Ok(Wanted::Http);
    }
    if request.method != Some("GET") {
        return Err(Refusal::bad("a WebSocket begins with GET"));
    }
    if !has_token(request, "upgrade", "websocket") || !has_token(request, "connection", "upgrade") {
        return Err(Refusal::bad(
            "`Upgrade: websocket` or `Connection: upgrade` is missing; does a proxy on the way drop them?",
        ));
    }
    // HTTP/1.0 may leave it out, and is what some proxies speak to their upstreams.
    if request.version == Some(1) && one(request, "host")?.is_none() {
        return Err(Refusal::bad("`Host` is missing"));
    }
    // What is behind the head is frames, and nothing else.
    let is_empty = one(request, "content-length")?.is_none_or(|length| length == "0");
    if !is_empty || one(request, "transfer-encoding")?.is_some() {
        return Err(Refusal::bad("the request of a WebSocket has no body"));
    }
    if version != Some("13") {
        return Err(Refusal {
            status: "426 Upgrade Required".into(),
            code: "wrong_version",
            message: "the WebSocket version is 13".to_owned(),
            header: "Sec-WebSocket-Version: 13\r\n",
        });
    }
    let key = key
        .filter(|key| BASE64_STANDARD.decode(key).is_ok_and(|key| key.len() == 16))
        .ok_or_else(|| Refusal::bad("`Sec-WebSocket-Key` is not 16 bytes in base64"))?;
    let path = path(request.path.unwrap_or("/"))
        .ok_or_else(|| Refusal::bad("the target is neither a path nor a URL"))?;
    let room = RoomName::from_path(path).map_err(|error| Refusal {
        code: "bad_room",
        ..Refusal::bad(error.to_string())
    })?;
    let target = request.path.unwrap_or("/");
    let query = target.split_once('?').map_or("", |(_, query)| query);
    Ok(Wanted::Socket(Upgrade {
        room,
        query: query.split('#').next().unwrap_or_default().to_owned(),
        accept: accept(key),
        subprotocol: has_token(request, "sec-websocket-protocol", SUBPROTOCOL),
        deflate: lines(request, "sec-websocket-extensions").find_map(Window::of_offers),
    }))
}

/// The head of the request without what only concerns the hop to a proxy, for an HTTP server that would
/// take it for a wish to upgrade.
pub fn without_upgrade(request: &httparse::Request<'_, '_>) -> Vec<u8> {
    let mut head = format!(
        "{} {} HTTP/1.{}\r\n",
        request.method.unwrap_or("GET"),
        request.path.unwrap_or("/"),
        request.version.unwrap_or(1),
    )
    .into_bytes();
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("upgrade") {
            // Its sender is a proxy, which the HTTP server should know: see `api::access`.
            head.extend_from_slice(b"Via: 1.1 unknown\r\n");
            continue;
        }
        if is("connection") {
            let kept: Vec<_> = tokens(std::str::from_utf8(header.value).unwrap_or_default())
                .filter(|token| !token.eq_ignore_ascii_case("upgrade"))
                .collect();
            if !kept.is_empty() {
                head.extend(format!("Connection: {}\r\n", kept.join(", ")).bytes());
            }
            continue;
        }
        head.extend_from_slice(header.name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(header.value);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

impl Upgrade {
    /// The 101.
    pub fn response(&self) -> Vec<u8> {
        let protocol = match self.subprotocol {
            true => format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n"),
            false => String::new(),
        };
        let extensions = match self.deflate {
            Some(window) => format!("Sec-WebSocket-Extensions: {}\r\n", window.answer()),
            None => String::new(),
        };
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n{protocol}{extensions}\r\n",
            self.accept
        )
        .into_bytes()
    }
}

impl Refusal {
    /// A refusal with that status.
    pub fn of(status: impl Into<Cow<'static, str>>, code: &'static str, message: &str) -> Self {
        Self {
            status: status.into(),
            code,
            message: message.to_owned(),
            header: "",
        }
    }

    /// A refusal that another try may overcome.
    pub fn unavailable(code: &'static str, message: &str) -> Self {
        Self {
            header: "Retry-After: 5\r\n",
            ..Self::of("503 Service Unavailable", code, message)
        }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self {
            status: "400 Bad Request".into(),
            code: "bad_handshake",
            message: message.into(),
            header: "",
        }
    }

    /// The answer, which ends the connection.
    pub fn response(&self) -> Vec<u8> {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}});
        let body = body.to_string();
        format!(
            "HTTP/1.1 {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n{}\r\n{body}",
            self.status,
            body.len(),
            self.header
        )
        .into_bytes()
    }
}

/// The path of a request target, without the query; an absolute URL loses scheme and host.
fn path(target: &str) -> Option<&str> {
    let before_query = target.split(['?', '#']).next()?;
    if before_query.starts_with('/') {
        return Some(before_query);
    }
    let (_, rest) = before_query.split_once("://")?;
    Some(rest.find('/').map_or("/", |slash| &rest[slash..]))
}

fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(GUID);
    BASE64_STANDARD.encode(hash.finalize())
}

/// The value of a header that may come once.
fn one<'h>(request: &httparse::Request<'h, '_>, name: &str) -> Result<Option<&'h str>, Refusal> {
    let mut values = request
        .headers
        .iter()
        .filter(|header| header.name.eq_ignore_ascii_case(name));
    let value = values.next();
    if values.next().is_some() {
        return Err(Refusal::bad(format!("`{name}` comes more than once")));
    }
    value
        .map(|header| std::str::from_utf8(header.value).map(str::trim))
        .transpose()
        .map_err(|_| Refusal::bad(format!("`{name}` is not text")))
}

/// Whether a list header holds a token, in any of its lines.
fn has_token(request: &httparse::Request<'_, '_>, name: &str, token: &str) -> bool {
    lines(request, name).any(|line| tokens(line).any(|found| found.eq_ignore_ascii_case(token)))
}

/// The values of all headers of that name, as far as they are text.
fn lines<'h>(request: &httparse::Request<'h, '_>, name: &str) -> impl Iterator<Item = &'h str> {
    let headers = request.headers.iter();
    headers
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .filter_map(|header| std::str::from_utf8(header.value).ok())
}

fn tokens(line: &str) -> impl Iterator<Item = &str> {
    line.split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /chat-rooms/1?token=x HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: other, unisono.v1\r\n\r\n";

    fn with<T>(head: &str, act: impl FnOnce(&httparse::Request<'_, '_>) -> T) -> T {
        let mut headers = [httparse::EMPTY_HEADER; 20];
        let mut request = httparse::Request::new(&mut headers);
        assert!(request.parse(head.as_bytes()).unwrap().is_complete());
        act(&request)
    }

    #[test]
    fn the_example_of_the_standard_is_accepted() {
        let Ok(Wanted::Socket(upgrade)) = with(GOOD, read) else {
            panic!("accepted");
        };
        assert_eq!(upgrade.room.as_str(), "/chat-rooms/1");
        assert_eq!(upgrade.accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(upgrade.subprotocol);
        let old = GOOD
            .replace("HTTP/1.1", "HTTP/1.0")
            .replace("Host: a\r\n", "");
        assert!(matches!(with(&old, read), Ok(Wanted::Socket(_))));
        let foreign = GOOD.replace("?token=x", "?next=http://x/admin");
        assert!(matches!(
            with(&foreign, read),
            Ok(Wanted::Socket(upgrade)) if upgrade.room.as_str() == "/chat-rooms/1"
        ));
        let absolute = GOOD.replace("GET /chat-rooms/1?token=x", "GET http://a/b/");
        assert!(matches!(
            with(&absolute, read),
            Ok(Wanted::Socket(upgrade)) if upgrade.room.as_str() == "/b"
        ));
    }

    #[test]
    fn others_are_refused() {
        for (from, to, status) in [
            ("GET", "POST", "400"),
            ("WebSocket\r", "notwebsocketreally\r", "400"),
            ("keep-alive, Upgrade", "keep-alive", "400"),
            ("Host: a\r\n", "", "400"),
            ("Version: 13", "Version: 8", "426"),
            ("Sec-WebSocket-Version: 13\r\n", "", "426"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "x", "400"),
            ("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "", "400"),
            ("Host: a", "Sec-WebSocket-Key: a\r\nHost: a", "400"),
            ("Host: a", "Content-Length: 5\r\nHost: a", "400"),
            ("Host: a", "Transfer-Encoding: chunked\r\nHost: a", "400"),
            ("/chat-rooms/1", "/%ff", "400"),
            ("/chat-rooms/1?token=x", "*", "400"),
        ] {
            let refusal = with(&GOOD.replacen(from, to, 1), read).expect_err(to);
            assert!(refusal.status.starts_with(status), "{to}: {refusal:?}");
        }
    }

    #[test]
    fn an_upgrade_header_alone_is_no_wish_for_a_socket() {
        let head = "GET /health/live HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
            Connection: upgrade\r\nX: y\r\n\r\n";
        assert_eq!(with(head, read), Ok(Wanted::Http));
        let cleaned = with(head, without_upgrade);
        let expected = "GET /health/live HTTP/1.1\r\nHost: a\r\nVia: 1.1 unknown\r\nX: y\r\n\r\n";
        assert_eq!(String::from_utf8(cleaned).unwrap(), expected);
        let connect = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n";
        let refusal = with(connect, read).expect_err("a loop otherwise");
        assert!(refusal.status.starts_with("405"));
        let kept = head.replace("Connection: upgrade", "Connection: Upgrade, close");
        let cleaned = String::from_utf8(with(&kept, without_upgrade)).unwrap();
        assert!(cleaned.contains("Connection: close\r\n"));
    }
}
