//! The request with which a client comes, as those see it who decide whether it may.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use actix_http::header::HeaderMap;
use proto::{RoomName, UserName};

/// A client's first request, WebSocket or event stream.
///
/// ```
/// use unisono_server::{Accept, App, Handshake, Refuse, Room};
/// # use unisono_server::testing::TestNode;
/// # #[actix_web::main]
/// # async fn main() {
///
/// async fn let_in(handshake: Handshake) -> Result<Accept, Refuse> {
///     match (handshake.param("id"), handshake.query("name")) {
///         (Some("closed"), _) => Err(Refuse::forbidden("this game is over")),
///         (_, Some(name)) => Ok(Accept::new().user(name)),
///         (_, None) => Err(Refuse::unauthorized("say who you are: ?name=...")),
///     }
/// }
/// let games = Room::new("/games/{id}").on_handshake(let_in);
/// # let node = TestNode::start(App::new().room(games)).await;
/// # assert_eq!(node.refused("/games/closed?name=ann").await, 403);
/// # assert_eq!(node.refused("/games/1").await, 401);
/// # node.connect("/games/1?name=ann").await;
/// # }
/// ```
#[derive(Clone)]
pub struct Handshake {
    pub(crate) room: RoomName,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) peer: SocketAddr,
    pub(crate) user: Option<UserName>,
    pub(crate) parameters: Vec<(String, String)>,
}

impl Handshake {
    /// The room that the path of the URL names, percent-decoded: `/chat-rooms/1`.
    pub fn path(&self) -> &str {
        self.room.as_str()
    }

    /// What a parameter of the room's pattern stands for.
    pub fn param(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters
            .find(|(found, _)| found == name)
            .map(|(_, value)| value.as_str())
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
        // As bytes: what another script keeps beside it may be no text.
        let headers = self.headers.get_all("cookie");
        headers
            .flat_map(|header| header.as_bytes().split(|byte| *byte == b';'))
            .filter_map(|pair| {
                let end = pair.iter().position(|byte| *byte == b'=')?;
                Some((pair[..end].trim_ascii(), &pair[end + 1..]))
            })
            .find(|(found, _)| *found == name.as_bytes())
            .and_then(|(_, value)| std::str::from_utf8(value).ok())
            .map(|value| value.trim().trim_matches('"'))
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
