//! An application behind HTTP that answers as the test says.

use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// A small HTTP server that keeps every request. Dropped, it takes no more connections.
#[derive(Debug)]
pub struct Endpoint {
    port: u16,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method, path and version.
    pub line: String,
    /// The headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body; nothing where it is no JSON.
    pub body: String,
    /// The same, whatever it is.
    pub bytes: Vec<u8>,
    /// The events in it.
    pub events: Vec<Value>,
    /// The status that it was answered with; 0 where it got no answer.
    pub status: u16,
}

/// What a request is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    /// 200 with this JSON.
    Json(Value),
    /// 200 with this body.
    Body(Vec<u8>),
    /// This status, without a body.
    Status(u16),
    /// Nothing: the connection stays open.
    Silence,
    /// Nothing: the connection ends.
    HangUp,
}

type Answer = Box<dyn FnMut(&Request) -> Reply + Send>;

struct Shared {
    answer: Mutex<Answer>,
    requests: Mutex<Vec<Request>>,
    held: watch::Sender<bool>,
}

// === impl Request ===

impl Request {
    /// The text of one field of the nth event, exactly as it came.
    pub fn raw(&self, nth: usize, field: &str) -> Option<String> {
        type Object<'a> = BTreeMap<String, &'a RawValue>;
        let body: BTreeMap<String, Vec<Object>> = serde_json::from_str(&self.body).ok()?;
        let raw = body.get("events")?.get(nth)?.get(field)?;
        Some(raw.get().to_owned())
    }
}

// === impl Reply ===

impl Reply {
    /// 200 without a body: taken, and nothing to say.
    pub fn taken() -> Self {
        Self::Body(vec![])
    }

    fn status(&self) -> u16 {
        match self {
            Self::Json(_) | Self::Body(_) => 200,
            Self::Status(status) => *status,
            Self::Silence | Self::HangUp => 0,
        }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Starts on a free port. `answer` says for each request what it is answered.
    pub async fn start(answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let shared = Arc::new(Shared {
            answer: Mutex::new(Box::new(answer)),
            requests: Mutex::default(),
            held: watch::Sender::new(false),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = Arc::clone(&serving);
                // A client that goes away is part of some tests.
                tokio::spawn(async move { serving.serve(stream).await.ok() });
            }
        });
        Self {
            port,
            shared,
            accepting: accepting.abort_handle(),
        }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where events are to be sent.
    pub fn url(&self) -> String {
        format!("{}/events", self.base())
    }

    /// The same without a path.
    pub fn base(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Answers in another way from now on.
    pub fn answer(&self, answer: impl FnMut(&Request) -> Reply + Send + 'static) {
        *lock(&self.shared.answer) = Box::new(answer);
    }

    /// Takes requests from now on, and lets them wait for their answers.
    pub fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    /// Answers what waits.
    pub fn release(&self) {
        self.shared.held.send_replace(false);
    }

    /// The requests so far, in the order of their coming.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// The events so far of requests that were answered with 200, in the order of the requests' coming.
    pub fn events(&self) -> Vec<Value> {
        let requests = self.requests().into_iter();
        let taken = requests.filter(|request| request.status == 200);
        taken.flat_map(|request| request.events).collect()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

// === impl Shared ===

impl Shared {
    async fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        let (read, mut write) = stream.split();
        let mut read = BufReader::new(read);
        while let Some(mut request) = next(&mut read).await? {
            let reply = (lock(&self.answer))(&request);
            request.status = reply.status();
            lock(&self.requests).push(request);
            // The sender lives as long as this.
            let _ = self.held.subscribe().wait_for(|held| !held).await;
            let (status, body) = match reply {
                Reply::Json(json) => (200, json.to_string().into_bytes()),
                Reply::Body(body) => (200, body),
                Reply::Status(status) => (status, vec![]),
                Reply::Silence => pending().await,
                Reply::HangUp => return Ok(()),
            };
            let head = format!(
                "HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            write.write_all(&[head.as_bytes(), &body].concat()).await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

/// The next request of a connection; none at its end.
async fn next(read: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if read.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        read.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map(|length| length.parse());
    let length = length.expect("a request has a length");
    let mut bytes = vec![0; length.expect("a length is a number")];
    read.read_exact(&mut bytes).await?;
    let mut request = Request {
        line: line.trim_end().to_owned(),
        headers,
        body: String::new(),
        bytes,
        events: Vec::new(),
        status: 0,
    };
    let content_type = request.headers.get("content-type");
    if content_type.is_some_and(|kind| kind == "application/json") {
        request.body = String::from_utf8(request.bytes.clone()).expect("JSON is text");
        let json: Value = serde_json::from_str(&request.body).expect("a request is JSON");
        request.events = json["events"].as_array().cloned().unwrap_or_default();
    }
    Ok(Some(request))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
