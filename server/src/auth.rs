//! Who a client is and what it may do.

mod hook;
mod keys;
mod mint;
mod origins;
#[cfg(test)]
mod sample;
mod token;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix_http::header::{HeaderMap, HeaderName, ORIGIN};
use ipnet::IpNet;
use proto::{RoomName, UserName};
use serde_json::{Map, Value};
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::config::{self, AuthMode, TokenPlace};
use crate::handshake::Handshake;
use crate::reload::{Followed, Reload};
use crate::rules::Pattern;
use crate::signature::Signer;
use hook::Hook;
use token::Verifier;

pub use mint::{TokenArgs, mint};
pub use origins::Listed;

/// No connection lives for so long, and no timer has to.
const EXPIRES_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What the subprotocol begins with that carries a token.
const BEARER: &str = "bearer.";

/// Finds out who clients are. One for all workers.
pub struct Auth {
    way: Way,
    places: Vec<TokenPlace>,
    query: String,
    cookie: String,
    origins: Vec<Listed>,
    proxies: Vec<IpNet>,
}

enum Way {
    /// Nobody is anybody.
    None,
    /// By the token that it brings.
    Token(Verifier),
    /// By what the application says.
    Hook(Hook),
}

/// What a client was granted when it came, or with a fresh token since.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grant {
    /// Who it is, where somebody said so.
    pub user: Option<UserName>,
    /// Who a fresh token has to be for: whom the first one was for, whatever the application made of it.
    pub holder: Option<UserName>,
    /// The rooms that it may be in and publish to; none for all that the rules allow.
    pub rooms: Option<Arc<[Pattern]>>,
    /// The same, as the application inside the process says, whatever a token grants; none for all.
    pub within: Option<Arc<[Pattern]>>,
    /// What it may do.
    pub rights: Rights,
    /// When all of this ends.
    pub expires_at: Option<SystemTime>,
}

/// What a client may do, where the rules of the room allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// `unisono:join`.
    pub join: bool,
    /// `unisono:publish`.
    pub publish: bool,
    /// `unisono:emit`.
    pub emit: bool,
    /// Events of its own.
    pub send: bool,
}

/// Why a client is not let in, or a token not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nothing shows who it is, or what does is not good: 401. The text is for the client.
    Unauthorized(String),
    /// It is known, and may not: 403. The text is for the client.
    Forbidden(String),
    /// Who could tell does not answer: 503. The text is for the client.
    Unavailable(String),
}

/// Where in a JSON object a grant stands.
struct Names {
    user: String,
    rooms: String,
    rights: String,
}

// === impl Auth ===

impl Auth {
    /// Reads keys and secrets. Does not wait for a key server.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a key that is none.
    pub fn start(
        config: &config::Auth,
        signer: Option<&Followed<Signer>>,
        reload: &Reload,
        outside: &Handle,
    ) -> anyhow::Result<Self> {
        let way = match config.mode {
            AuthMode::None => Way::None,
            AuthMode::Token => Way::Token(Verifier::start(config, reload, outside)?),
            AuthMode::Hook => {
                Way::Hook(Hook::start(config, signer.map(Followed::current), outside)?)
            }
        };
        Ok(Self {
            way,
            places: config.token_from.clone(),
            query: config.token_query.clone(),
            cookie: config.token_cookie.clone(),
            origins: config
                .origins
                .iter()
                .map(|origin| Listed::parse(origin).map_err(anyhow::Error::msg))
                .collect::<Result<_, _>>()?,
            proxies: config
                .trusted_proxies
                .iter()
                .map(|network| network.0)
                .collect(),
        })
    }

    /// Takes the keys of tokens of that configuration from now on.
    ///
    /// # Errors
    ///
    /// As of [`Auth::start`]; then all stays as it was.
    pub fn change(&self, config: &config::Auth) -> anyhow::Result<()> {
        match &self.way {
            Way::Token(verifier) if config.mode == AuthMode::Token => verifier.change(config),
            _ => Ok(()),
        }
    }

    /// Who a client is, before it is let in.
    pub async fn authenticate(&self, handshake: &Handshake) -> Result<Grant, Denied> {
        match &self.way {
            Way::None => Ok(Grant::default()),
            Way::Token(verifier) => match self.token(handshake) {
                Some((_, token)) => verifier.verify(&token, SystemTime::now()).await,
                None => Err(Denied::Unauthorized(self.no_token())),
            },
            Way::Hook(hook) => hook.ask(handshake).await,
        }
    }

    /// What a fresh token grants, of a client that is here already: `unisono:refresh`.
    pub async fn refresh(&self, token: &str) -> Result<Grant, Denied> {
        match &self.way {
            Way::Token(verifier) => verifier.verify(token, SystemTime::now()).await,
            Way::None | Way::Hook(_) => {
                let why = "nothing to refresh: clients do not come with tokens here";
                Err(Denied::Forbidden(why.to_owned()))
            }
        }
    }

    /// Whether a client may come from where it does. Without a list of origins, from anywhere; with one,
    /// from the pages on it, and from what is no page: unless it shows who it is by a cookie, which only
    /// browsers have reason to.
    pub fn check_origin(&self, handshake: &Handshake) -> Result<(), Denied> {
        if self.origins.is_empty() {
            return Ok(());
        }
        let forbidden = |why: &str| Err(Denied::Forbidden(why.to_owned()));
        let mut given = handshake.headers.get_all(ORIGIN);
        match (given.next(), given.next()) {
            (None, _) => {
                let token = matches!(self.way, Way::Token(_)).then(|| self.token(handshake));
                // For an event stream of its own origin a browser sends no `Origin`, but this, which no page
                // can forge.
                let site = handshake.header("sec-fetch-site");
                let own_page = site == Some("same-origin");
                if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
                    // A page may have a browser ask without saying for whom, and without seeing the answer.
                    return forbidden("pages of other origins say which they are");
                }
                match token.flatten() {
                    Some((TokenPlace::Cookie, _)) if !own_page => {
                        forbidden("a token in a cookie counts only with an `Origin`")
                    }
                    _ => Ok(()),
                }
            }
            (Some(origin), None) if self.lists(origin.as_bytes()) => Ok(()),
            _ => forbidden("pages of this origin may not connect"),
        }
    }

    /// Whether there is a list of origins, and this one, the value of an `Origin`, is on it.
    pub fn lists(&self, origin: &[u8]) -> bool {
        self.origins.iter().any(|listed| listed.matches(origin))
    }

    /// Where a client is: the peer, unless that is a trusted proxy; then the last of `X-Forwarded-For` that
    /// is none, or the furthest that can be told. The port is 0 where the header does not tell it.
    pub fn client_address(&self, peer: SocketAddr, headers: &HeaderMap) -> SocketAddr {
        let mut client = canonical(peer);
        let lines: Vec<_> = headers
            .get_all(HeaderName::from_static("x-forwarded-for"))
            .collect();
        // One list. What is no text is one item that is no address.
        let items = lines.iter().rev().flat_map(|line| {
            let line = line.to_str().unwrap_or("?");
            line.rsplit(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
        });
        for item in items {
            if !self.is_proxy(client.ip()) {
                break;
            }
            match forwarded(item) {
                Some(address) => client = canonical(address),
                None => break,
            }
        }
        client
    }

    fn is_proxy(&self, address: IpAddr) -> bool {
        self.proxies
            .iter()
            .any(|network| network.contains(&address))
    }

    /// The token of the first place that has one.
    fn token<'h>(&self, handshake: &'h Handshake) -> Option<(TokenPlace, Cow<'h, str>)> {
        let find = |place: TokenPlace| match place {
            TokenPlace::Header => {
                let (scheme, token) = handshake.header("authorization")?.split_once(' ')?;
                let token = scheme.eq_ignore_ascii_case("bearer").then_some(token)?;
                Some(token.trim().into())
            }
            TokenPlace::Query => handshake.query(&self.query),
            TokenPlace::Cookie => handshake.cookie(&self.cookie).map(Cow::from),
            TokenPlace::Subprotocol => handshake
                .header_all("sec-websocket-protocol")
                .flat_map(|header| header.split(','))
                .find_map(|protocol| protocol.trim().strip_prefix(BEARER))
                .map(Cow::from),
        };
        let found = |place| find(place).filter(|token| !token.is_empty());
        let mut places = self.places.iter();
        places.find_map(|place| Some((*place, found(*place)?)))
    }

    fn no_token(&self) -> String {
        let place = |place: &TokenPlace| match place {
            TokenPlace::Header => "`Authorization: Bearer`".to_owned(),
            TokenPlace::Query => format!("the parameter `{}` of the URL", self.query),
            TokenPlace::Cookie => format!("the cookie `{}`", self.cookie),
            TokenPlace::Subprotocol => format!("a subprotocol `{BEARER}<token>`"),
        };
        let places: Vec<_> = self.places.iter().map(place).collect();
        format!("no token: one is expected in {}", places.join(" or "))
    }
}

/// A peer of a socket that serves IPv4 too may read `::ffff:192.0.2.1`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One address of `X-Forwarded-For`, as they are written: with or without a port, IPv6 with or without
/// brackets.
pub fn forwarded(item: &str) -> Option<SocketAddr> {
    let alone = item
        .strip_prefix('[')
        .and_then(|item| item.strip_suffix(']'))
        .unwrap_or(item);
    let address = alone
        .parse()
        .map(|address: IpAddr| SocketAddr::new(address, 0));
    address.or_else(|_| item.parse()).ok()
}

// === impl Grant ===

fn matches(rooms: &[Pattern], room: &RoomName) -> bool {
    rooms.iter().any(|pattern| pattern.matches(room.as_str()))
}

impl Grant {
    /// Whether the room is among those that the client was granted by name: not by the lack of a list.
    pub fn names(&self, room: &RoomName) -> bool {
        let named = |rooms: &Option<Arc<[Pattern]>>| {
            rooms.as_deref().is_some_and(|rooms| matches(rooms, room))
        };
        self.admits(room) && (named(&self.rooms) || named(&self.within))
    }

    /// When a socket with it is closed, by the clock of this process: when it has ended, and some patience after.
    pub fn expires(&self, now: Instant, config: &config::Auth) -> Option<Instant> {
        let left = self.expires_at?.duration_since(SystemTime::now());
        let left = left.unwrap_or_default().min(EXPIRES_MAX);
        Some(now + left + config.expired_close_delay)
    }

    /// Whether nothing is said against the room.
    pub fn admits(&self, room: &RoomName) -> bool {
        [&self.rooms, &self.within]
            .into_iter()
            .flatten()
            .all(|rooms| matches(rooms, room))
    }

    /// Reads what an object says of it. A field that is not there says nothing.
    fn read(object: &Map<String, Value>, names: &Names) -> Result<Self, String> {
        let user = match object.get(&names.user) {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) => Some(Cow::from(name)),
            Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Some(id.to_string().into()),
            Some(_) => return Err(format!("`{}` is no text or whole number", names.user)),
        };
        let user = user.map(|name| UserName::parse(&name)).transpose();
        let user = user.map_err(|error| format!("`{}`: {error}", names.user))?;
        let rooms = match texts(object, &names.rooms)? {
            None => None,
            Some(texts) => {
                let bad = |error| format!("`{}`: {error}", names.rooms);
                let patterns = texts.into_iter().map(Pattern::parse);
                Some(patterns.collect::<Result<_, _>>().map_err(bad)?)
            }
        };
        let rights = match texts(object, &names.rights)? {
            None => Rights::default(),
            Some(words) => {
                let bad = |error| format!("`{}`: {error}", names.rights);
                Rights::of(words).map_err(bad)?
            }
        };
        Ok(Self {
            user,
            holder: None,
            rooms,
            within: None,
            rights,
            expires_at: None,
        })
    }
}

// === impl Rights ===

/// The grant of somebody of whom nothing is known.
pub const NOBODY: Grant = Grant {
    user: None,
    holder: None,
    rooms: None,
    within: None,
    rights: Rights::ALL,
    expires_at: None,
};

impl Rights {
    const ALL: Self = Self {
        join: true,
        publish: true,
        emit: true,
        send: true,
    };
}

impl Default for Rights {
    fn default() -> Self {
        Self::ALL
    }
}

impl Rights {
    /// Only those that are named.
    fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut rights = Self {
            join: false,
            publish: false,
            emit: false,
            send: false,
        };
        for word in words {
            match word {
                "join" => rights.join = true,
                "publish" => rights.publish = true,
                "emit" => rights.emit = true,
                "send" => rights.send = true,
                _ => return Err("a right is one of join, publish, emit and send".to_owned()),
            }
        }
        Ok(rights)
    }
}

/// A list of texts. `null` is none: it would grant everything to whom somebody forgot to grant something.
fn texts<'a>(object: &'a Map<String, Value>, name: &str) -> Result<Option<Vec<&'a str>>, String> {
    let Some(value) = object.get(name) else {
        return Ok(None);
    };
    let texts = value
        .as_array()
        .and_then(|items| items.iter().map(Value::as_str).collect());
    let bad = || format!("`{name}` is no list of texts");
    texts.map(Some).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(change: impl FnOnce(&mut config::Auth)) -> Auth {
        let mut config = sample::config();
        config.auth.mode = AuthMode::Token;
        config.auth.secret.0 = sample::SECRET.to_owned();
        change(&mut config.auth);
        sample::auth(&config).unwrap()
    }

    #[tokio::test]
    async fn nobody_is_anybody_by_default() {
        let auth = auth(|config| config.mode = AuthMode::None);
        let handshake = sample::handshake("/a", "token=nonsense", &[("origin", "null")]);
        assert_eq!(auth.authenticate(&handshake).await, Ok(Grant::default()));
        assert_eq!(auth.check_origin(&handshake), Ok(()));
        assert!(matches!(auth.refresh("a").await, Err(Denied::Forbidden(_))));
    }

    #[tokio::test]
    async fn the_first_place_that_has_a_token_decides() {
        use TokenPlace::{Cookie, Header, Query, Subprotocol};
        let all = [
            ("authorization", "bearer  in-header"),
            ("cookie", "a=b; c=in-cookie"),
            ("sec-websocket-protocol", "v1, bearer.in-protocol"),
        ];
        let query = "t=in-query&t=second";
        for (places, query, headers, expected) in [
            (&[Header, Query][..], query, &all[..], Some("in-header")),
            (&[Query, Header], query, &all, Some("in-query")),
            (&[Cookie, Header], query, &all, Some("in-cookie")),
            (&[Subprotocol], query, &all, Some("in-protocol")),
            (
                &[Header, Subprotocol],
                query,
                &all[1..],
                Some("in-protocol"),
            ),
            (
                &[Header, Query],
                "t=a%2Eb",
                &[("authorization", "Basic x")],
                Some("a.b"),
            ),
            (
                &[Header, Query],
                "t=a",
                &[("authorization", "Bearer")],
                Some("a"),
            ),
            (&[Query, Header], "t=", &all, Some("in-header")),
            (
                &[Subprotocol],
                "",
                &[("sec-websocket-protocol", "v1,bearer.")],
                None,
            ),
            (&[Header], query, &all[1..], None),
            (&[Query], "token=a", &[], None),
        ] {
            let auth = auth(|config| {
                config.token_from = places.to_vec();
                config.token_query = "t".to_owned();
                config.token_cookie = "c".to_owned();
            });
            let handshake = sample::handshake("/a", query, headers);
            let found = auth.token(&handshake).map(|(_, token)| token);
            assert_eq!(found.as_deref(), expected, "{places:?} {query} {headers:?}");
        }
    }

    #[tokio::test]
    async fn a_token_lets_in() {
        let auth = auth(|_| {});
        let args = TokenArgs {
            user: Some("ann".to_owned()),
            rooms: Vec::new(),
            rights: Vec::new(),
            expires_in: std::time::Duration::from_secs(60),
            claims: Vec::new(),
            key_file: None,
            algorithm: None,
            kid: None,
        };
        let mut config = sample::config().auth;
        config.secret.0 = sample::SECRET.to_owned();
        let token = mint(&args, &config, SystemTime::now()).unwrap();
        let query = format!("token={token}");
        let grant = auth
            .authenticate(&sample::handshake("/a", &query, &[]))
            .await;
        assert_eq!(grant.unwrap().user.unwrap().as_str(), "ann");
        assert!(auth.refresh(&token).await.is_ok());
        let without = auth.authenticate(&sample::handshake("/a", "", &[])).await;
        let why = "no token: one is expected in `Authorization: Bearer` or the parameter `token` of the \
                   URL or a subprotocol `bearer.<token>`";
        assert_eq!(without, Err(Denied::Unauthorized(why.to_owned())));
    }

    #[tokio::test]
    async fn what_waits_for_an_answer_is_small() {
        let auth = auth(|_| {});
        let handshake = sample::handshake("/a", "", &[]);
        let bytes = size_of_val(&auth.authenticate(&handshake));
        assert!(bytes <= 1024, "{bytes}");
    }

    #[tokio::test]
    async fn pages_come_from_where_they_may() {
        let from = |origins: &[&str], place, headers: &[_]| {
            let auth = auth(|config| {
                config.origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
                config.token_from = vec![TokenPlace::Header, place];
            });
            let handshake = sample::handshake("/a", "token=a", headers);
            auth.check_origin(&handshake).is_ok()
        };
        let list = &[
            "https://example.com",
            "http://localhost:3000",
            "capacitor://localhost",
            "https://*.example.org",
        ];
        assert!(from(&["null"], TokenPlace::Query, &[("origin", "null")]));
        let cookie = ("cookie", "unisono_token=a");
        for (headers, expected) in [
            (&[][..], true),
            (&[("origin", "https://example.com")], true),
            (&[("origin", "http://localhost:3000")], true),
            (&[("origin", "http://example.com")], false),
            (&[("origin", "https://example.com:8443")], false),
            (&[("origin", "https://example.com.evil.example")], false),
            (&[("origin", "https://EXAMPLE.com:443")], true),
            (&[("origin", "capacitor://localhost")], true),
            (&[("origin", "ionic://localhost")], false),
            (&[("origin", "https://a.example.org")], true),
            (&[("origin", "https://example.org")], false),
            (&[("origin", "https://example.com/")], false),
            (&[("origin", "null")], false),
            (&[("origin", "")], false),
            (&[("origin", "\u{fc}")], false),
            (
                &[("origin", "https://example.com"), ("origin", "null")],
                false,
            ),
        ] {
            assert_eq!(
                from(list, TokenPlace::Query, headers),
                expected,
                "{headers:?}"
            );
            assert!(from(&[], TokenPlace::Query, headers), "{headers:?}");
        }
        assert!(!from(list, TokenPlace::Cookie, &[cookie]));
        assert!(from(
            list,
            TokenPlace::Cookie,
            &[cookie, ("origin", list[0])]
        ));
        assert!(from(
            list,
            TokenPlace::Cookie,
            &[cookie, ("authorization", "Bearer a")]
        ));
        assert!(
            from(list, TokenPlace::Query, &[cookie]),
            "nobody looks at it"
        );
    }

    #[tokio::test]
    async fn proxies_tell_where_clients_are() {
        let auth = auth(|config| {
            let networks = ["10.0.0.0/8", "192.0.2.1", "2001:db8:1::/48"];
            let network = |text: &str| text.parse().or_else(|_| text.parse().map(IpAddr::into));
            config.trusted_proxies = networks
                .map(|text| config::Network(network(text).unwrap()))
                .to_vec();
        });
        let (proxy, stranger) = ("10.0.0.1:1111", "198.51.100.9:2222");
        for (peer, lines, expected) in [
            (stranger, &[][..], stranger),
            (stranger, &["203.0.113.7"], stranger),
            (proxy, &[], proxy),
            (proxy, &[""], proxy),
            (proxy, &["203.0.113.7"], "203.0.113.7:0"),
            (proxy, &["1.1.1.1, 203.0.113.7"], "203.0.113.7:0"),
            (
                proxy,
                &["1.1.1.1,203.0.113.7,10.9.9.9 , 192.0.2.1"],
                "203.0.113.7:0",
            ),
            (
                proxy,
                &["1.1.1.1", "203.0.113.7", "10.9.9.9"],
                "203.0.113.7:0",
            ),
            (proxy, &["203.0.113.7,"], "203.0.113.7:0"),
            (proxy, &["203.0.113.7:80"], "203.0.113.7:80"),
            (proxy, &["2001:db8::7"], "[2001:db8::7]:0"),
            (proxy, &["[2001:db8::7]"], "[2001:db8::7]:0"),
            (proxy, &["[2001:db8::7]:80"], "[2001:db8::7]:80"),
            (proxy, &["2001:db8::7, 2001:db8:1::1"], "[2001:db8::7]:0"),
            (proxy, &["::ffff:203.0.113.7"], "203.0.113.7:0"),
            (proxy, &["203.0.113.7, ::ffff:10.9.9.9"], "203.0.113.7:0"),
            (proxy, &["10.2.2.2, 10.3.3.3"], "10.2.2.2:0"),
            (proxy, &["unknown"], proxy),
            (proxy, &["203.0.113.7, unknown, 10.9.9.9"], "10.9.9.9:0"),
            (proxy, &["203.0.113.7", "\u{fc}", "10.9.9.9"], "10.9.9.9:0"),
            (proxy, &["203.0.113.7.1"], proxy),
            ("[::ffff:10.0.0.1]:1111", &["203.0.113.7"], "203.0.113.7:0"),
            ("[::ffff:198.51.100.9]:2222", &["203.0.113.7"], stranger),
        ] {
            let headers: Vec<_> = lines
                .iter()
                .map(|line| ("x-forwarded-for", *line))
                .collect();
            let headers = sample::header_map(&headers);
            let found = auth.client_address(peer.parse().unwrap(), &headers);
            assert_eq!(found.to_string(), expected, "{peer} {lines:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_key_stops_the_start() {
        let start = |change: fn(&mut config::Config)| {
            let mut config = sample::config();
            config.auth.mode = AuthMode::Token;
            change(&mut config);
            let auth = sample::auth(&config);
            auth.map(|_| ()).map_err(|error| format!("{error:#}"))
        };
        for (change, expected) in [
            ((|_| {}) as fn(&mut config::Config), "tokens need a key"),
            (
                |config| config.auth.secret_file = "/nowhere".into(),
                "/nowhere",
            ),
            (
                |config| config.auth.secret_file = sample::path(""),
                "cannot read",
            ),
            (
                |config| config.auth.public_key_file = "/nowhere".into(),
                "/nowhere",
            ),
            (
                |config| {
                    config.auth.public_key_file = sample::path("rsa1024.pub.pem");
                    config.auth.algorithm = "RS256".to_owned();
                },
                "this one 1024",
            ),
            (
                |config| config.auth.jwks_file = sample::path("rsa.pem"),
                "not a JSON Web Key Set",
            ),
            (|config| config.auth.mode = AuthMode::Hook, "hooks.secret"),
        ] {
            let error = start(change).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        let shared: fn(Auth) = |auth| drop::<Box<dyn Send + Sync>>(Box::new(auth));
        shared(auth(|_| {}));
    }
}
