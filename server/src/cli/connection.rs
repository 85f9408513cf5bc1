//! The way to a running cluster: the HTTP API of any of its nodes.

use std::error::Error;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use bytes::BytesMut;
use clap::Args;
use reqwest::{Certificate, Client, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde_json::Value;
use url::{Host, Url};

use super::outcome::Failure;
use crate::fetch;
use crate::key_file;
use crate::textfile;

/// Where a node is, and how to speak to it.
#[derive(Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Any node of the cluster
    #[arg(long, env = "UNISONO_URL", default_value = "http://127.0.0.1:8080", value_parser = url)]
    url: Url,
    #[command(flatten)]
    access: Access,
}

/// Where several nodes are, for what goes to each of them.
#[derive(Args)]
#[command(next_help_heading = "Connection")]
pub struct Connections {
    /// A node of the cluster; may be given several times, or with commas between them
    #[arg(long = "url", env = "UNISONO_URL", default_value = "http://127.0.0.1:8080", value_parser = url,
          value_name = "URL", value_delimiter = ',')]
    urls: Vec<Url>,
    #[command(flatten)]
    pub access: Access,
}

/// How to speak to a node, wherever it is.
#[derive(Args, Clone)]
pub struct Access {
    /// An API key, one of `api.keys`; in the variable, other users of the machine do not see it. Not needed for a node of
    /// this user on this machine that has made a key for itself
    #[arg(long, env = "UNISONO_KEY", hide_env_values = true)]
    key: Option<String>,
    /// A PEM file of authorities to trust, in place of those of the system
    #[arg(long, env = "UNISONO_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// How long to wait for an answer
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    pub timeout: Duration,
    /// Print JSON, for programs
    #[arg(long)]
    pub json: bool,
}

// What documents a command is at its name, in `cli.rs`: a comment here would take its place.
#[derive(Args)]
pub struct Asking<T: Args> {
    #[command(flatten)]
    pub what: T,
    #[command(flatten)]
    pub connection: Connection,
}

/// The HTTP API of a node.
pub struct Api {
    http: Client,
    url: Url,
    access: Access,
}

/// Lines of an answer that goes on.
pub struct Lines {
    response: Response,
    read: BytesMut,
}

/// More than any line has.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// More than any answer has.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The URL of a node, or its address.
pub fn url(text: &str) -> Result<Url, String> {
    let whole = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    match Url::parse(&whole) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        Ok(_) => Err("it begins with http:// or https://".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether that is this machine.
fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

impl Connections {
    /// The APIs of those nodes, in their order.
    pub fn apis(&self) -> Result<Vec<Api>, Failure> {
        let api = |url: &Url| Api::at_url(url.clone(), self.access.clone());
        self.urls.iter().map(api).collect()
    }
}

impl Api {
    /// The API at the other end of that connection.
    pub fn new(connection: Connection) -> Result<Self, Failure> {
        Self::at_url(connection.url, connection.access)
    }

    /// The API of the node at that URL.
    pub fn at_url(url: Url, mut access: Access) -> Result<Self, Failure> {
        // A variable that is set to nothing.
        access.key = access.key.filter(|key| !key.is_empty());
        let found = || key_file::find(url.port_or_known_default()?);
        if access.key.is_none() && is_here(&url) {
            access.key = found();
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = fetch::builder(url.as_str());
        if let Some(file) = &access.ca {
            let trusted = textfile::read_bytes(file).context("cannot read it");
            let trusted = trusted.and_then(|text| Ok(Certificate::from_pem_bundle(&text)?));
            let trusted = trusted.with_context(|| format!("--ca {}", file.display()))?;
            http = http.tls_certs_only(trusted);
        }
        let http = http.build().context("cannot make an HTTP client")?;
        Ok(Self { http, url, access })
    }

    /// Where the node is.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Whether a program reads the output.
    pub fn json(&self) -> bool {
        self.access.json
    }

    /// `GET`, and the body of a 200.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Value, Failure> {
        let (status, body) = self.get_any(path, query).await?;
        match status {
            StatusCode::OK => Ok(body),
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// `GET`, and whatever is answered.
    pub async fn get_any(
        &self,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<(StatusCode, Value), Failure> {
        self.ask(self.http.get(self.at(path, query))).await
    }

    /// `POST`, and the body of a 200.
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        let (status, body) = self
            .ask(self.http.post(self.at(path, &[])).json(body))
            .await?;
        match status {
            StatusCode::OK => Ok(body),
            _ => Err(self.refusal(status, &body)),
        }
    }

    /// `GET` of a text; none where the node has nothing there.
    pub async fn get_text(&self, path: &str) -> Result<Option<String>, Failure> {
        let request = self.http.get(self.at(path, &[]));
        let response = self.send(request.timeout(self.access.timeout)).await?;
        if response.status() != StatusCode::OK {
            return Ok(None);
        }
        let body = fetch::body(response, ANSWER_BYTES_MAX).await?;
        Ok(Some(String::from_utf8_lossy(&body).into_owned()))
    }

    /// `GET` of lines that come for as long as somebody reads them.
    pub async fn stream(&self, path: &str, query: &[(&str, &str)]) -> Result<Lines, Failure> {
        let request = self.http.get(self.at(path, query));
        let timeout = self.access.timeout;
        let sent = tokio::time::timeout(timeout, self.send(request)).await;
        let mut response = sent.map_err(|_| self.silent())??;
        let status = response.status();
        if status != StatusCode::OK {
            let body = fetch::body(response, ANSWER_BYTES_MAX).await?;
            let body = serde_json::from_slice(&body).unwrap_or_default();
            return Err(self.refusal(status, &body));
        }
        // The first line says who takes part, and comes as soon as that is known.
        let first = tokio::time::timeout(timeout, response.chunk()).await;
        let first = first.map_err(|_| self.silent())?;
        let first = first.map_err(|error| self.unreachable(&error))?;
        Ok(Lines {
            response,
            read: first.unwrap_or_default().into(),
        })
    }

    async fn ask(&self, request: RequestBuilder) -> Result<(StatusCode, Value), Failure> {
        let request = request.timeout(self.access.timeout);
        let response = self.send(request).await?;
        let status = response.status();
        let body = fetch::body(response, ANSWER_BYTES_MAX).await?;
        match serde_json::from_slice(&body) {
            Ok(body) => Ok((status, body)),
            Err(_) if status == StatusCode::OK => Err(Failure::Failed(format!(
                "what answers at {} is no node of Unisono: look at --url or UNISONO_URL",
                self.url
            ))),
            Err(_) => Err(self.refusal(status, &Value::Null)),
        }
    }

    async fn send(&self, mut request: RequestBuilder) -> Result<Response, Failure> {
        if let Some(key) = &self.access.key {
            request = request.bearer_auth(key);
        }
        request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))
    }

    fn at(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.url.clone();
        let base = url.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{base}{path}"));
        url.set_fragment(None);
        url.set_query(None);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// Nobody answered, and what to do about it.
    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let url = &self.url;
        if error.is_timeout() {
            return self.silent();
        }
        // The first cause is the one that says something.
        let mut cause: &dyn Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        Failure::Failed(format!(
            "cannot reach {url}: {cause}\nIs a node running there? Say where with --url or UNISONO_URL."
        ))
    }

    fn silent(&self) -> Failure {
        let url = &self.url;
        let timeout = humantime::format_duration(self.access.timeout);
        Failure::Failed(format!("{url} does not answer within {timeout}"))
    }

    /// The node said no, and what to do about it.
    fn refusal(&self, status: StatusCode, body: &Value) -> Failure {
        let error = body.get("error").unwrap_or(&Value::Null);
        let said = |field| error.get(field).and_then(Value::as_str);
        let message = match (said("message"), said("code")) {
            (Some(message), Some(code)) => format!("{message} ({code})"),
            _ => format!("{} answers {status}", self.url),
        };
        if status != StatusCode::UNAUTHORIZED {
            return Failure::Failed(message);
        }
        let advice = match &self.access.key {
            None => {
                "Give an API key with --key or UNISONO_KEY: one of `api.keys` of the node. The key that a node makes for \
                 itself is found by its own user on its own machine, by the port of --url."
            }
            Some(_) => "The key of --key or UNISONO_KEY has to be one of `api.keys` of the node.",
        };
        Failure::Failed(format!("{message}\n{advice}"))
    }
}

impl Lines {
    /// The next line; none when the node has ended it.
    pub async fn next_line(&mut self) -> Result<Option<String>, Failure> {
        let mut searched = 0;
        loop {
            let end = self.read[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = self.read.split_to(searched + end + 1);
                let line = String::from_utf8_lossy(&line);
                return Ok(Some(line.trim_end().to_owned()));
            }
            searched = self.read.len();
            if searched > LINE_BYTES_MAX {
                return Err(Failure::Failed("a line has no end".to_owned()));
            }
            // A connection that breaks is an end like any other.
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.read.extend_from_slice(&chunk),
                Ok(None) | Err(_) => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_looked_for_only_where_a_node_of_this_machine_is_asked() {
        let here = |text| is_here(&url(text).expect("a URL"));
        for text in [
            "localhost:1",
            "127.0.0.1:81",
            "https://127.9.9.9",
            "http://[::1]:8080",
        ] {
            assert!(here(text), "{text}");
        }
        for text in [
            "localhost.example.com",
            "10.0.0.7:8080",
            "http://[::2]",
            "http://127.0.0.1.example.com",
        ] {
            assert!(!here(text), "{text}");
        }
    }

    #[test]
    fn an_address_will_do_for_a_url() {
        let read = |text| url(text).map(|url| url.to_string());
        assert_eq!(read("127.0.0.1:81"), Ok("http://127.0.0.1:81/".to_owned()));
        assert_eq!(read("https://a/b"), Ok("https://a/b".to_owned()));
        for bad in ["ws://a", "", "http://", "a b"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
