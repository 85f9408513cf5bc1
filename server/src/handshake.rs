//! The request with which a client comes, as those see it who decide whether it may.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use actix_http::header::HeaderMap;
use proto::{RoomName, UserName};

/// A client's first request, WebSocket or event stream.
#[derive(Clone)]
pub struct Handshake {
    pub(crate) room: RoomName,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) peer: SocketAddr,
    pub(crate) user: Option<UserName>,
}

impl Handshake {
    /// The room that the path of the URL names, percent-decoded: `/chat-rooms/1`.
    pub fn path(&self) -> &str {
        self.room.as_str()
    }

    /// The query of the URL, as it came, without the question mark; empty where there is none.
    pub fn query_string(&self) -> &str {
        &self.query
    }

    /// A parameter of the query, decoded; the first of that name.
    pub fn query(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut pairs = url::form_urlencoded::parse(self.query.as_bytes());
        pairs
            .find(|(found, _)| found == name)
            .map(|(_, value)| value)
    }

    /// A header, where it is text; the first of that name, whose case does not count.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All headers of that name which are text.
    pub fn header_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let values = self.headers.get_all(name);
        values.filter_map(|value| value.to_str().ok())
    }

    /// A cookie, as it came: without surrounding quotes, and not decoded any further.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.header_all("cookie")
            .flat_map(|header| header.split(';'))
            .filter_map(|pair| pair.split_once('='))
            .find(|(found, _)| found.trim() == name)
            .map(|(_, value)| value.trim().trim_matches('"'))
    }

    /// Who the client is, where `[auth]` says so.
    pub fn user(&self) -> Option<&str> {
        self.user.as_ref().map(UserName::as_str)
    }

    /// Where the client is: its own address, or what a proxy in `auth.trusted_proxies` says of it. The port
    /// is 0 where a proxy does not tell it.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

/// Without the query and the headers, which may hold tokens.
impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("path", &self.path())
            .field("peer", &self.peer)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}
