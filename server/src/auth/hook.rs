//! The application is asked who a client is, and whether it may come.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::token::SECONDS_MAX;
use super::{Denied, Grant, Names};
use crate::config;
use crate::fetch;
use crate::handshake::Handshake;
use crate::reload::Current;
use crate::seldom::Seldom;
use crate::signature::Signer;

/// Most handshakes that the application is asked about at one time.
const REQUESTS_MAX: usize = 1000;

/// Most bytes of its answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Longest text for the client that is passed on.
const MESSAGE_BYTES_MAX: usize = 200;

/// The headers of a handshake that the application is told.
const HEADERS: [&str; 7] = [
    "cookie",
    "authorization",
    "origin",
    "user-agent",
    "accept-language",
    "x-forwarded-for",
    "sec-websocket-protocol",
];

/// Asks the application.
pub(super) struct Hook {
    client: Client,
    url: String,
    timeout: Duration,
    signer: Current<Signer>,
    outside: Handle,
    requests: Arc<Semaphore>,
    complaints: Seldom,
}

// === impl Hook ===

impl Hook {
    /// Asks the application, with requests that are signed.
    pub fn start(
        config: &config::Auth,
        signer: Option<Current<Signer>>,
        outside: &Handle,
    ) -> anyhow::Result<Self> {
        let signer = signer.context("auth.hook_url needs hooks.secret or hooks.secret_file")?;
        Ok(Self {
            client: fetch::client(&config.hook_url).context("auth.hook_url")?,
            url: config.hook_url.clone(),
            timeout: config.hook_timeout,
            signer,
            outside: outside.clone(),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            complaints: Seldom::default(),
        })
    }

    /// What the application says of a client.
    pub async fn ask(&self, handshake: &Handshake) -> Result<Grant, Denied> {
        let Ok(permit) = self.requests.clone().try_acquire_owned() else {
            let why = "too many handshakes wait for the application";
            return Err(Denied::Unavailable(why.to_owned()));
        };
        let request = self.request(handshake, SystemTime::now());
        let limit = self.timeout;
        // The connections are those of the outside thread: a worker that is busy holds up none. A client
        // that has left meanwhile leaves its request, which still counts.
        let answer = self.outside.spawn(async move {
            let _permit = permit;
            let late = || format!("no answer within {limit:?}");
            timeout(limit, exchange(request)).await.with_context(late)?
        });
        let answer = answer.await.context("the request was dropped");
        answer.and_then(|answer| answer).unwrap_or_else(|error| {
            if let Some(handshakes) = self.complaints.add(Instant::now(), 1) {
                let error = format!("{error:#}");
                warn!(
                    error,
                    handshakes, "the application does not answer handshakes"
                );
            }
            let why = "the application does not answer handshakes";
            Err(Denied::Unavailable(why.to_owned()))
        })
    }

    fn request(&self, handshake: &Handshake, now: SystemTime) -> RequestBuilder {
        let body = question(handshake).to_string().into_bytes();
        let id = format!("msg_{:032x}", rand::random::<u128>());
        let mut request = self.client.post(&self.url);
        for (name, value) in self.signer.get().headers(&id, now, &body) {
            request = request.header(name, value);
        }
        request
            .header("content-type", "application/json")
            .body(body)
    }
}

fn question(handshake: &Handshake) -> Value {
    let mut headers = Map::new();
    for name in HEADERS {
        let values: Vec<_> = handshake.header_all(name).collect();
        // Several lines are one list, as everywhere; only that of cookies reads otherwise.
        let between = if name == "cookie" { "; " } else { ", " };
        if !values.is_empty() {
            headers.insert(name.to_owned(), values.join(between).into());
        }
    }
    json!({
        "type": "handshake",
        "path": handshake.path(),
        "room": handshake.path(),
        "query": handshake.query_string(),
        "peer": handshake.peer().to_string(),
        "headers": headers,
    })
}

/// The outer error is for the log, the inner for the client.
async fn exchange(request: RequestBuilder) -> anyhow::Result<Result<Grant, Denied>> {
    let response = request.send().await;
    let response = response.map_err(reqwest::Error::without_url)?;
    match response.status().as_u16() {
        200 | 204 => {
            let body = fetch::body(response, ANSWER_BYTES_MAX).await?;
            Ok(Ok(grant(&body, SystemTime::now())?))
        }
        401 => Ok(Err(Denied::Unauthorized(
            message(response, "the application does not know this client").await,
        ))),
        403 => Ok(Err(Denied::Forbidden(
            message(response, "the application does not let this client in").await,
        ))),
        _ => bail!("the answer is {}", response.status()),
    }
}

fn grant(body: &[u8], now: SystemTime) -> anyhow::Result<Grant> {
    if body.trim_ascii().is_empty() {
        return Ok(Grant::default());
    }
    let answer: Map<String, Value> =
        serde_json::from_slice(body).context("the answer is not a JSON object")?;
    // A typing error must not let anybody in with more than was meant.
    let known = ["user", "rooms", "rights", "expires_in"];
    if let Some(field) = answer.keys().find(|field| !known.contains(&field.as_str())) {
        bail!("the answer has a field {field:?}, and knows {known:?} only");
    }
    let names = Names {
        user: "user".to_owned(),
        rooms: "rooms".to_owned(),
        rights: "rights".to_owned(),
    };
    let grant = Grant::read(&answer, &names).map_err(anyhow::Error::msg);
    let expires_at = match answer.get("expires_in") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let seconds = value.as_u64().filter(|seconds| *seconds <= SECONDS_MAX);
            let seconds = seconds.context("`expires_in` is no number of seconds")?;
            let end = now.checked_add(Duration::from_secs(seconds));
            Some(end.context("`expires_in` is too long")?)
        }
    };
    Ok(Grant {
        expires_at,
        ..grant.context("the answer is no grant")?
    })
}

/// What the application wants the client to read, if it is short. What else stands there, such as a page
/// for people, changes nothing about what its status says.
async fn message(response: Response, default: &str) -> String {
    let read = async {
        let body = fetch::body(response, ANSWER_BYTES_MAX).await?;
        let body: Value = serde_json::from_slice(&body)?;
        let message = body
            .pointer("/error/message")
            .or_else(|| body.get("message"));
        let message = message.and_then(Value::as_str).context("no message")?;
        let bytes = message.len();
        ensure!((1..=MESSAGE_BYTES_MAX).contains(&bytes), "not a short one");
        ensure!(!message.contains(char::is_control), "not a line");
        anyhow::Ok(message.to_owned())
    };
    read.await.unwrap_or_else(|_| default.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Auth, Rights, sample};
    use crate::config::AuthMode;
    use crate::fetch::canned::{self, Canned};
    use crate::rules::Pattern;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const SILENT: &str = "the application does not answer handshakes";

    async fn asking(answer: Vec<u8>, timeout: Duration) -> (Auth, Canned) {
        let server = canned::serve(&[answer]).await;
        let mut config = sample::config();
        config.auth.mode = AuthMode::Hook;
        config.auth.hook_url = server.url.clone();
        config.auth.hook_timeout = timeout;
        config.hooks.secret.0 = SECRET.to_owned();
        let auth = sample::auth(&config).unwrap();
        (auth, server)
    }

    async fn answered(status: u16, body: &str) -> Result<Grant, Denied> {
        let minute = Duration::from_secs(60);
        let (auth, _server) = asking(canned::answer(status, body), minute).await;
        auth.authenticate(&sample::handshake("/a", "", &[])).await
    }

    #[tokio::test]
    async fn the_application_is_told_who_comes_and_who_asks() {
        let answer = canned::answer(200, "{}");
        let (auth, mut server) = asking(answer, Duration::from_secs(60)).await;
        let headers = [
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("origin", "https://example.com"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-for", "192.0.2.2"),
            ("x-internal", "hush"),
        ];
        let handshake = sample::handshake("/chat/1", "q=1&r", &headers);
        auth.authenticate(&handshake).await.unwrap();
        let (head, body) = server.requests.recv().await.unwrap();
        let told: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            told,
            json!({
                "type": "handshake",
                "path": "/chat/1",
                "room": "/chat/1",
                "query": "q=1&r",
                "peer": "192.0.2.7:4711",
                "headers": {
                    "cookie": "a=1; b=2",
                    "origin": "https://example.com",
                    "x-forwarded-for": "192.0.2.1, 192.0.2.2",
                },
            })
        );
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(": "));
            let found = lines.find(|(found, _)| found.eq_ignore_ascii_case(name));
            found.unwrap().1.to_owned()
        };
        assert!(head.starts_with("POST /here HTTP/1.1"), "{head}");
        assert_eq!(header("content-type"), "application/json");
        let seconds = header("webhook-timestamp").parse().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let signed = Signer::new(SECRET).unwrap();
        let signed = signed.headers(&header("webhook-id"), now, &body);
        assert_eq!(header("webhook-signature"), signed[2].1);
    }

    #[tokio::test]
    async fn the_application_grants() {
        let nobody = Ok(Grant::default());
        for (status, body) in [(200, ""), (204, ""), (200, " \n"), (200, "{}")] {
            assert_eq!(answered(status, body).await, nobody, "{status} {body}");
        }
        // A slip is not taken for silence.
        for body in [r#"{"user": null, "right": []}"#, r#"{"allow": false}"#] {
            assert!(
                matches!(answered(200, body).await, Err(Denied::Unavailable(_))),
                "{body}"
            );
        }
        let body = r#"{"user": 7, "rooms": ["/chat/{id}"], "rights": ["join"], "expires_in": 60}"#;
        let before = SystemTime::now();
        let grant = answered(200, body).await.unwrap();
        assert_eq!(grant.user.unwrap().as_str(), "7");
        assert_eq!(
            *grant.rooms.unwrap(),
            [Pattern::parse("/chat/{id}").unwrap()]
        );
        assert_eq!(grant.rights, Rights::of(["join"]).unwrap());
        assert!(grant.expires_at.unwrap() >= before + Duration::from_secs(60));
    }

    #[tokio::test]
    async fn the_application_refuses() {
        let unauthorized = |text: &str| Err(Denied::Unauthorized(text.to_owned()));
        let forbidden = |text: &str| Err(Denied::Forbidden(text.to_owned()));
        let long = format!(r#"{{"message": "{}"}}"#, "x".repeat(MESSAGE_BYTES_MAX + 1));
        let unknown = "the application does not know this client";
        for (status, body, expected) in [
            (401, "", unauthorized(unknown)),
            (
                401,
                r#"{"message": "log in first"}"#,
                unauthorized("log in first"),
            ),
            (401, r#"{"message": "two\nlines"}"#, unauthorized(unknown)),
            (401, r#"{"message": ""}"#, unauthorized(unknown)),
            (401, &long, unauthorized(unknown)),
            (401, &"<p>".repeat(ANSWER_BYTES_MAX), unauthorized(unknown)),
            (
                403,
                r#"{"error": {"message": "you are banned"}, "message": "no"}"#,
                forbidden("you are banned"),
            ),
            (
                403,
                "<h1>no</h1>",
                forbidden("the application does not let this client in"),
            ),
        ] {
            assert_eq!(
                answered(status, body).await,
                expected,
                "{status} {body:.80}"
            );
        }
    }

    #[tokio::test]
    async fn whatever_else_is_no_answer() {
        let unavailable = Err(Denied::Unavailable(SILENT.to_owned()));
        for (status, body) in [
            (500, "{}"),
            (404, "{}"),
            (302, "{}"),
            (201, "{}"),
            (200, "[]"),
            (200, "<h1>welcome</h1>"),
            (200, r#"{"user": ""}"#),
            (200, r#"{"user": 1.5}"#),
            (200, r#"{"rooms": null}"#),
            (200, r#"{"rooms": ["/a{b}"]}"#),
            (200, r#"{"rights": ["fly"]}"#),
            (200, r#"{"expires_in": -1}"#),
            (200, r#"{"expires_in": 18446744073709551615}"#),
            (200, &"x".repeat(10 << 20)),
        ] {
            assert_eq!(
                answered(status, body).await,
                unavailable,
                "{status} {body:.80}"
            );
        }
        let handshake = sample::handshake("/a", "", &[]);
        let (auth, _server) = asking(Vec::new(), Duration::from_millis(50)).await;
        assert_eq!(auth.authenticate(&handshake).await, unavailable, "late");
        let (auth, _server) = asking(b"garbage\r\n\r\n".to_vec(), Duration::from_secs(60)).await;
        assert_eq!(auth.authenticate(&handshake).await, unavailable, "no HTTP");
    }

    #[tokio::test]
    async fn the_application_is_not_flooded() {
        let (auth, _server) = asking(canned::answer(200, ""), Duration::from_secs(60)).await;
        let super::super::Way::Hook(hook) = &auth.way else {
            panic!("it asks");
        };
        let all = u32::try_from(REQUESTS_MAX).unwrap();
        let permits = hook.requests.clone().try_acquire_many_owned(all).unwrap();
        let handshake = sample::handshake("/a", "", &[]);
        let busy = Denied::Unavailable("too many handshakes wait for the application".to_owned());
        assert_eq!(auth.authenticate(&handshake).await, Err(busy));
        drop(permits);
        assert!(auth.authenticate(&handshake).await.is_ok());
    }
}
