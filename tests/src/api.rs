//! The HTTP API, as an application in any language would use it.

use std::sync::LazyLock;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Certificate, Client as Http, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::tls;

// Connections are not kept for the next request: a node that was killed in between would be seen as an
// error of the request, and not of the node.
static HTTP: LazyLock<Http> = LazyLock::new(|| {
    // The workspace's reqwest wants a library for TLS to be chosen, used or not.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trusted = Certificate::from_der(tls::authority()).expect("a certificate");
    let http = Http::builder().no_proxy().pool_max_idle_per_host(0);
    let http = http.tls_certs_only([trusted]);
    http.build().expect("an HTTP client")
});

/// A caller of the HTTP API of one address.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    key: Option<String>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status; 0 when the server could not be reached.
    pub status: u16,
    /// The body: JSON where it is JSON, else a string.
    pub body: Value,
}

// === impl Answer ===

impl Answer {
    /// The body of a 200.
    ///
    /// # Panics
    /// When the status is another.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "the API answered {}", self.body);
        self.body
    }

    /// The status and the error code of a refusal: `(401, "unauthorized")`.
    #[track_caller]
    pub fn refusal(&self) -> (u16, &str) {
        assert_ne!(self.status, 200, "the API agreed: {}", self.body);
        let code = self.body["error"]["code"].as_str();
        (
            self.status,
            code.unwrap_or_else(|| panic!("no error code in {}", self.body)),
        )
    }
}

// === impl Api ===

impl Api {
    /// A caller of `base`, such as `http://127.0.0.1:8080`.
    pub fn new(base: String, key: Option<String>) -> Self {
        Self { base, key }
    }

    /// The same API with another key, or none.
    #[must_use]
    pub fn with_key(&self, key: Option<&str>) -> Self {
        Self {
            base: self.base.clone(),
            key: key.map(str::to_owned),
        }
    }

    /// The address it calls.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A request to build on, with the key.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = HTTP.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// `GET` of any path.
    pub async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    /// `POST /api/v1/<verb>`.
    pub async fn post(&self, verb: &str, body: Value) -> Answer {
        answer(
            self.request(Method::POST, &format!("/api/v1/{verb}"))
                .json(&body),
        )
        .await
    }

    /// `POST /api/v1/<verb>` with a body written by hand.
    pub async fn post_text(&self, verb: &str, body: &str) -> Answer {
        let request = self.request(Method::POST, &format!("/api/v1/{verb}"));
        answer(
            request
                .header("content-type", "application/json")
                .body(body.to_owned()),
        )
        .await
    }

    /// Emits to one socket and returns the status of the delivery.
    pub async fn emit(&self, to: &str, event: &str, data: Value) -> String {
        let body = json!({"to": to, "event": event, "data": data});
        status_of(to, &self.post("emit", body).await.ok())
    }

    /// Publishes to a room and returns the answer.
    pub async fn publish(&self, room: &str, event: &str, data: Value) -> Value {
        let body = json!({"room": room, "event": event, "data": data});
        self.post("publish", body).await.ok()
    }

    /// Publishes to a room and returns how many sockets it was handed to, on all nodes.
    pub async fn publish_confirmed(&self, room: &str, event: &str, data: Value) -> Value {
        let body = json!({"room": room, "event": event, "data": data, "confirm": true});
        self.post("publish", body).await.ok()
    }

    /// Sends to every socket of the cluster.
    pub async fn broadcast(&self, event: &str, data: Value) -> Value {
        self.post("broadcast", json!({"event": event, "data": data}))
            .await
            .ok()
    }

    /// Disconnects one socket with an application's code and returns the status.
    pub async fn disconnect(&self, to: &str, code: u16, reason: &str) -> String {
        let body = json!({"to": to, "code": code, "reason": reason});
        status_of(to, &self.post("disconnect", body).await.ok())
    }

    /// Puts a socket into a room and returns the status.
    pub async fn join(&self, to: &str, room: &str) -> String {
        status_of(
            to,
            &self
                .post("join", json!({"to": to, "room": room}))
                .await
                .ok(),
        )
    }

    /// Takes a socket out of a room and returns the status.
    pub async fn leave(&self, to: &str, room: &str) -> String {
        status_of(
            to,
            &self
                .post("leave", json!({"to": to, "room": room}))
                .await
                .ok(),
        )
    }

    /// The list of nodes as this one sees it.
    pub async fn nodes(&self) -> Value {
        self.get("/api/v1/nodes").await.ok()
    }

    /// The members of a room, with the count and the nodes that were asked.
    pub async fn members(&self, room: &str) -> Value {
        self.query("/api/v1/rooms/sockets", &[("room", room)])
            .await
            .ok()
    }

    /// `GET` with a query, its values percent-encoded.
    pub async fn query(&self, path: &str, pairs: &[(&str, &str)]) -> Answer {
        let encode = |value| utf8_percent_encode(value, NON_ALPHANUMERIC);
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        self.get(&format!("{path}?{}", pairs.join("&"))).await
    }
}

/// The one HTTP client of the harness.
pub(crate) fn http() -> &'static Http {
    &HTTP
}

async fn answer(request: RequestBuilder) -> Answer {
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => {
            return Answer {
                status: 0,
                body: Value::String(format!("{error:?}")),
            };
        }
    };
    let status = response.status().as_u16();
    let text = response
        .text()
        .await
        .unwrap_or_else(|error| format!("{error:?}"));
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, body }
}

#[track_caller]
fn status_of(to: &str, answer: &Value) -> String {
    let status = answer["results"][to].as_str();
    status
        .unwrap_or_else(|| panic!("no result for {to} in {answer}"))
        .to_owned()
}
