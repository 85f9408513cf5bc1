//! A real browser, driven by its DevTools protocol: pages that are opened and asked in their own language.

use std::fs;
use std::panic::Location;
use std::process::Command;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::eventually::soon;
use crate::{Process, eventually};

const HINT: &str = "install chromium (Debian: apt-get install chromium)";

/// A chromium without a window, killed on drop.
#[derive(Debug)]
pub struct Browser {
    port: u16,
    devtools: DevTools,
    // Before the directory: its last words are read from there.
    _process: Process,
    _directory: TempDir,
}

/// A tab.
#[derive(Debug)]
pub struct Page {
    devtools: DevTools,
}

/// A connection that takes commands and answers each.
#[derive(Debug)]
struct DevTools {
    stream: WebSocketStream<TcpStream>,
    last_id: u64,
}

// === impl Browser ===

impl Browser {
    /// Starts it with a profile of its own.
    pub async fn start() -> Self {
        let directory = TempDir::with_prefix("unisono-browser-").expect("a temporary directory");
        let profile = directory.path().join("profile");
        let mut command = Command::new("chromium");
        command
            .arg("--headless")
            .arg("--remote-debugging-port=0")
            .arg(format!("--user-data-dir={}", profile.display()))
            // Root may not have a sandbox, and a container has little shared memory.
            .args(["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"])
            .args(["--no-first-run", "--no-proxy-server", "about:blank"]);
        let mut process = Process::spawn("chromium", command, directory.path(), HINT);
        let (port, path) = eventually("chromium says where it listens", async || {
            process.must_run();
            let file = fs::read_to_string(profile.join("DevToolsActivePort")).ok()?;
            let (port, path) = file.split_once('\n')?;
            Some((port.parse::<u16>().ok()?, path.trim().to_owned()))
        })
        .await;
        Self {
            port,
            devtools: DevTools::connect(port, &path).await,
            _process: process,
            _directory: directory,
        }
    }

    /// Opens a page in a new tab, and waits until it has loaded.
    #[track_caller]
    pub fn open(&mut self, url: &str) -> impl Future<Output = Page> {
        let here = Location::caller();
        let url = url.to_owned();
        async move {
            let created = self
                .devtools
                .command(here, "Target.createTarget", json!({"url": url}))
                .await;
            let target = created["targetId"].as_str().expect("a target id");
            let path = format!("/devtools/page/{target}");
            let mut page = Page {
                devtools: DevTools::connect(self.port, &path).await,
            };
            eventually("the page has loaded", async || {
                let seen = "[location.href.split('#')[0], document.readyState]";
                let seen = page.evaluate(here, seen).await;
                if seen[1] == "complete" && seen[0] != "about:blank" {
                    Ok(())
                } else {
                    Err(seen)
                }
            })
            .await;
            page
        }
    }
}

// === impl Page ===

impl Page {
    /// The value of an expression; a promise is waited for.
    ///
    /// # Panics
    /// When it throws.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> impl Future<Output = Value> {
        let here = Location::caller();
        let expression = expression.to_owned();
        async move { self.evaluate(here, &expression).await }
    }

    /// Closes the tab.
    #[track_caller]
    pub fn close(mut self) -> impl Future<Output = ()> {
        let here = Location::caller();
        async move {
            self.devtools.command(here, "Page.close", json!({})).await;
        }
    }

    async fn evaluate(&mut self, here: &Location<'_>, expression: &str) -> Value {
        let parameters = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
        });
        let mut done = self
            .devtools
            .command(here, "Runtime.evaluate", parameters)
            .await;
        let exception = &done["exceptionDetails"];
        assert!(exception.is_null(), "{here}: {expression}: {exception}");
        done["result"]["value"].take()
    }
}

// === impl DevTools ===

impl DevTools {
    async fn connect(port: u16, path: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await;
        let stream = stream.expect("chromium listens");
        let url = format!("ws://127.0.0.1:{port}{path}");
        let (stream, _) = tokio_tungstenite::client_async(url, stream)
            .await
            .unwrap_or_else(|error| panic!("DevTools at {path}: {error}"));
        Self { stream, last_id: 0 }
    }

    async fn command(&mut self, here: &Location<'_>, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let id = self.last_id;
        let command = json!({"id": id, "method": method, "params": parameters});
        let command = Message::text(command.to_string());
        self.stream.send(command).await.expect("chromium lives");
        let answer = async {
            loop {
                let message = self.stream.next().await.expect("chromium lives");
                let message = message.unwrap_or_else(|error| panic!("{here}: {method}: {error}"));
                let Message::Text(text) = message else {
                    continue;
                };
                let mut answer: Value = serde_json::from_str(&text).expect("DevTools speaks JSON");
                if answer["id"] == id {
                    let error = &answer["error"];
                    assert!(error.is_null(), "{here}: {method}: {error}");
                    return answer["result"].take();
                }
            }
        };
        soon(here, || method.to_owned(), answer).await
    }
}
