//! Who may connect and do what: tokens, their keys, claims and end, the application's own word, origins and
//! proxies. By WebSocket and by event stream, of which the same is asked.

mod expiry;
mod hook;
mod keys;
mod origins;
mod proxies;
mod rights;
mod settings;
mod site;
mod tokens;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use unisono_tests::{Api, Node, NodeConfig, Response, Wire, stream_request, upgrade_request};

use site::{Reply, Site};

/// Of 32 bytes, as HS256 wants it.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A node that takes tokens signed with [`SECRET`].
fn by_token(toml: &str) -> NodeConfig {
    Node::config("door").toml(&format!(
        "[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\n{toml}"
    ))
}

// === tokens ===

/// Seconds since 1970.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A token with these claims, signed with [`SECRET`], good for an hour unless they say otherwise.
fn token(claims: Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(&Header::default(), &key, claims)
}

fn signed(header: &Header, key: &EncodingKey, mut claims: Value) -> String {
    if claims.get("exp").is_none() {
        claims["exp"] = json!(now() + 3600);
    }
    jsonwebtoken::encode(header, &claims, key).expect("claims of our own")
}

/// The name of a key pair in `server/testdata`, and what it is for.
const PAIRS: [(&str, Algorithm); 3] = [
    ("rsa", Algorithm::RS256),
    ("p256", Algorithm::ES256),
    ("ed25519", Algorithm::EdDSA),
];

fn testdata(name: &str) -> PathBuf {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "../server/testdata"]
        .iter()
        .collect();
    root.join(name)
}

fn private_key(name: &str) -> EncodingKey {
    let pem = std::fs::read(testdata(&format!("{name}.pem"))).expect("a key of the tests");
    let key = match name {
        "rsa" => EncodingKey::from_rsa_pem(&pem),
        "p256" => EncodingKey::from_ec_pem(&pem),
        _ => EncodingKey::from_ed_pem(&pem),
    };
    key.expect("a private key")
}

/// A token of one of those pairs, which names its key where it is told to.
fn token_of(pair: (&str, Algorithm), kid: Option<&str>, claims: Value) -> String {
    let header = Header {
        kid: kid.map(str::to_owned),
        ..Header::new(pair.1)
    };
    signed(&header, &private_key(pair.0), claims)
}

// === guests ===

/// The wire that a client comes by.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    WebSocket,
    EventStream,
}

const BOTH: [By; 2] = [By::WebSocket, By::EventStream];

impl By {
    fn request(self, target: &str, headers: &[(&str, &str)]) -> String {
        let plain = match self {
            Self::WebSocket => upgrade_request(target),
            Self::EventStream => stream_request(target, ""),
        };
        let mut request = plain[..plain.len() - 2].to_owned();
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request + "\r\n"
    }

    /// The status of who is let in.
    fn welcome(self) -> u16 {
        match self {
            Self::WebSocket => 101,
            Self::EventStream => 200,
        }
    }

    /// How the node answers.
    async fn knock(self, node: &Node, target: &str, headers: &[(&str, &str)]) -> Response {
        let mut wire = node.wire().await;
        wire.send(self.request(target, headers)).await;
        wire.response().await
    }

    /// Comes in, and is greeted.
    async fn enter(self, node: &Node, target: &str, headers: &[(&str, &str)]) -> Guest {
        self.enter_on(node.wire().await, target, headers).await
    }

    async fn enter_on(self, mut wire: Wire, target: &str, headers: &[(&str, &str)]) -> Guest {
        wire.send(self.request(target, headers)).await;
        let response = wire.response().await;
        let what = format!("{self:?} {target:.300} {headers:.300?}");
        assert_eq!(response.status, self.welcome(), "{what}: {response:?}");
        let mut guest = Guest {
            by: self,
            id: String::new(),
            wire,
        };
        let open = guest.event().await;
        assert_eq!(open["event"], "unisono:open", "{what}");
        guest.id = open["data"]["id"].as_str().expect("an id").to_owned();
        guest
    }
}

/// A client that is in, on either wire.
struct Guest {
    by: By,
    id: String,
    wire: Wire,
}

impl Guest {
    /// The next event.
    async fn event(&mut self) -> Value {
        let text = match self.by {
            By::WebSocket => self.wire.text().await,
            By::EventStream => {
                self.wire.until("data: ").await;
                self.wire.until("\n\n").await
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// Expects nothing but the end, and returns its code and reason.
    async fn close(&mut self) -> (u16, String) {
        if self.by == By::WebSocket {
            return self.wire.close().await;
        }
        let event = self.event().await;
        assert_eq!(event["event"], "unisono:closing", "{event}");
        let rest = self.wire.rest().await;
        let rest = String::from_utf8_lossy(&rest);
        assert_eq!(rest.trim(), "0", "the last chunk");
        let code = event["data"]["code"].as_u64().expect("a code");
        let reason = event["data"]["reason"].as_str().expect("a reason");
        (u16::try_from(code).expect("a short one"), reason.to_owned())
    }

    /// What the API tells of it.
    async fn told(&self, api: &Api) -> Value {
        api.get(&format!("/api/v1/sockets/{}", self.id)).await.ok()
    }
}

/// Comes by both wires, and is let in.
async fn welcome(node: &Node, what: &str, target: &str, headers: &[(&str, &str)]) {
    for by in BOTH {
        let response = by.knock(node, target, headers).await;
        assert_eq!(
            response.status,
            by.welcome(),
            "{what}: {by:?}: {response:?}"
        );
    }
}

/// Comes by both wires, is refused by each in the same words, and returns them.
async fn refusal(
    node: &Node,
    what: &str,
    target: &str,
    headers: &[(&str, &str)],
    (status, code): (u16, &str),
) -> String {
    let mut told = vec![];
    for by in BOTH {
        let response = by.knock(node, target, headers).await;
        let what = format!("{what}: {by:?}: {response:?}");
        assert_eq!(response.status, status, "{what}");
        assert_eq!(
            response.header("content-type"),
            Some("application/json"),
            "{what}"
        );
        let retry_after = response.header("retry-after");
        assert_eq!(retry_after.is_some(), matches!(status, 429 | 503), "{what}");
        assert_eq!(response.header("sec-websocket-accept"), None, "{what}");
        let body: Value = serde_json::from_str(&response.body).expect("a JSON body");
        assert_eq!(body["error"]["code"], code, "{what}");
        let message = body["error"]["message"].as_str();
        told.push(message.expect("a message").to_owned());
    }
    assert_eq!(told[0], told[1], "{what}");
    told.swap_remove(0)
}

const UNAUTHORIZED: (u16, &str) = (401, "unauthorized");
const FORBIDDEN: (u16, &str) = (403, "forbidden");
const UNAVAILABLE: (u16, &str) = (503, "unavailable");

/// All that the node has written so far.
fn log(node: &mut Node) -> String {
    node.process().stdout() + &node.process().stderr()
}
