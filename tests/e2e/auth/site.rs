//! A web site of the test's own: a key server, or the application that answers handshakes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// It is there until it is dropped.
pub struct Site {
    pub port: u16,
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

struct State {
    reply: Reply,
    requests: Vec<Request>,
}

/// What it answers to everybody.
#[derive(Clone)]
pub enum Reply {
    /// A status and a body.
    With(u16, Vec<u8>),
    /// These bytes.
    Bytes(&'static str),
    /// Nothing, and keeps the connection.
    Silence,
}

/// One that came.
#[derive(Clone, Debug)]
pub struct Request {
    head: String,
    pub body: Vec<u8>,
}

// === impl Site ===

impl Site {
    pub async fn start(reply: Reply) -> Self {
        Self::start_on(0, reply).await
    }

    /// On a port that was free a moment ago.
    pub async fn start_on(port: u16, reply: Reply) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await;
        let listener = listener.expect("a port for the site");
        let port = listener.local_addr().expect("it is bound").port();
        let requests = vec![];
        let state = Arc::new(Mutex::new(State { reply, requests }));
        let task = tokio::spawn(serve(listener, Arc::clone(&state))).abort_handle();
        Self { port, state, task }
    }

    pub fn url(&self) -> String {
        url(self.port)
    }

    /// From now on it answers this.
    pub fn reply(&self, reply: Reply) {
        lock(&self.state).reply = reply;
    }

    /// The requests that came so far.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.state).requests.clone()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The page that a site on this port is asked for.
pub fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/here")
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    // They end with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(answer(stream, Arc::clone(&state)));
    }
}

async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let mut read = vec![];
    let (head, length) = loop {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).into_owned();
            let length = header_of(&head, "content-length").map_or(0, |length| {
                length.parse().expect("a length of its own making")
            });
            read.drain(..end + 4);
            break (head, length);
        }
    };
    while read.len() < length {
        if stream.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
    let reply = {
        let mut state = lock(&state);
        state.requests.push(Request { head, body: read });
        state.reply.clone()
    };
    match reply {
        Reply::With(status, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status} Whatever\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Reply::Bytes(text) => stream.write_all(text.as_bytes()).await?,
        Reply::Silence => {
            stream.read_to_end(&mut vec![]).await?;
        }
    }
    stream.shutdown().await
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn header_of<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let lines = head.lines().filter_map(|line| line.split_once(':'));
    let mut lines = lines.filter(|(found, _)| found.eq_ignore_ascii_case(name));
    lines.next().map(|(_, value)| value.trim())
}

// === impl Request ===

impl Request {
    /// The method and the target.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> &str {
        header_of(&self.head, name).unwrap_or_else(|| panic!("no {name} in {}", self.head))
    }
}
