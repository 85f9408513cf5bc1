//! The physical limit: bare loops over TCP on this machine that do the least which any server could do.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, ready};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use mio::{Events, Interest, Token};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::socket::BUFFER_BYTES;
use crate::cli::listen_on;
use crate::files;

/// What a loop of `write` is asked to do.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    pub sockets: u32,
    /// Bytes of each `write`.
    pub bytes: usize,
    /// How many times each socket is written to, and how many of them before the slowest reader has the first.
    pub rounds: u64,
    pub window: u32,
}

/// What a loop spent on so many steps.
#[derive(Clone, Copy, Debug)]
pub struct Spent {
    pub steps: u64,
    pub cpu: Duration,
    pub time: Duration,
}

/// What a thread took for something.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    pub cpu: Duration,
    pub time: Duration,
}

/// What [`Own`] is counted from.
pub struct OwnBegin {
    cpu: Duration,
    at: Instant,
}

/// Writes of a bare loop, unless it is said how many: some tenths of a second.
const WRITES: u64 = 100_000;

/// Pings of a bare loop before it looks for pongs: as many as come due at one time on a node, more or less.
const PINGS_AT_A_TIME: usize = 64;

/// Well below the 28,232 ports that Linux has for connections from one address to one port of another.
const CONNECTIONS_MAX: u64 = 20_000;

/// Files that are no sockets: those of the runtime, the standard ones, some to spare.
pub const OTHER_FILES: u64 = 200;

/// How long a loop waits for pongs before it looks whether it is to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

impl Spent {
    /// Of each step, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.steps.max(1) as f64
    }

    /// Steps in a second.
    pub fn rate(&self) -> f64 {
        self.steps as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl Own {
    /// Begins to count, on this thread.
    pub fn begin() -> OwnBegin {
        OwnBegin {
            cpu: thread_cpu(),
            at: Instant::now(),
        }
    }
}

impl OwnBegin {
    /// What the thread has taken since.
    pub fn end(&self) -> Own {
        Own {
            cpu: thread_cpu().saturating_sub(self.cpu),
            time: self.at.elapsed(),
        }
    }

    fn spent(&self, steps: u64) -> Spent {
        let Own { cpu, time } = self.end();
        Spent { steps, cpu, time }
    }
}

fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Of so many connections, as many as one address has ports for and as this process may have files, for both ends are
/// here.
pub fn connections(wanted: u64) -> u32 {
    let wanted = wanted.min(CONNECTIONS_MAX);
    let open = 2 * wanted + OTHER_FILES;
    let limit = files::raise_limit(open).unwrap_or(0);
    let sockets = wanted.min(limit.saturating_sub(OTHER_FILES) / 2).max(1);
    u32::try_from(sockets).unwrap_or(u32::MAX)
}

// === messages ===

impl Writing {
    /// To as many sockets as that, as far as there are files, and as often as takes some tenths of a second.
    pub fn like(sockets: u64, bytes: usize, window: u32) -> Self {
        let sockets = connections(sockets);
        Self {
            sockets,
            bytes,
            rounds: (WRITES / u64::from(sockets)).max(10),
            window,
        }
    }
}

/// A thread writes to each socket in turn; this one reads, as it reads from a node. It ends early where it is stopped.
pub async fn write(writing: Writing, stop: &CancellationToken) -> anyhow::Result<Spent> {
    let Writing {
        sockets,
        bytes,
        rounds,
        window,
    } = writing;
    let (listener, address) = listen()?;
    let (permit, permits) = mpsc::channel();
    let stopped = stop.clone();
    let mut spent = on_a_thread(move || write_loop(&listener, writing, &permits, &stopped));
    let read = Rc::new(Cell::new(0));
    let buffer = Rc::new(RefCell::new(vec![0; BUFFER_BYTES]));
    let round_bytes = u64::from(sockets) * bytes as u64;
    let mut readers = JoinSet::new();
    for mut stream in connect(address, sockets).await? {
        let (read, permit, buffer) = (Rc::clone(&read), permit.clone(), Rc::clone(&buffer));
        readers.spawn_local(async move {
            loop {
                let count = poll_fn(|cx| {
                    let mut buffer = buffer.borrow_mut();
                    let mut buffer = ReadBuf::new(&mut buffer);
                    ready!(Pin::new(&mut stream).poll_read(cx, &mut buffer))?;
                    Poll::Ready(io::Result::Ok(buffer.filled().len()))
                });
                let Ok(count @ 1..) = count.await else {
                    return;
                };
                let before = read.get();
                let after = before + count as u64;
                read.set(after);
                for _ in before / round_bytes..after / round_bytes {
                    let _ = permit.send(());
                }
            }
        });
    }
    for _ in 0..u64::from(window).min(rounds) {
        let _ = permit.send(());
    }
    let spent = tokio::select! {
        spent = &mut spent => spent,
        () = stop.cancelled() => {
            // It may wait for one, and looks up.
            let _ = permit.send(());
            spent.await
        }
    };
    spent.context("the bare loop has stopped")?
}

fn write_loop(
    listener: &TcpListener,
    writing: Writing,
    permits: &mpsc::Receiver<()>,
    stop: &CancellationToken,
) -> io::Result<Spent> {
    let mut streams = accepted(listener, writing.sockets)?;
    let frame = vec![b'x'; writing.bytes];
    let own = Own::begin();
    let mut steps = 0;
    for _ in 0..writing.rounds {
        if permits.recv().is_err() || stop.is_cancelled() {
            break;
        }
        for stream in &mut streams {
            stream.write_all(&frame)?;
            steps += 1;
        }
    }
    Ok(own.spent(steps))
}

// === pings ===

/// What passes on a socket that does nothing else.
#[derive(Clone)]
pub struct Ping {
    pub ping: Vec<u8>,
    /// The answer, where there is one.
    pub pong: Vec<u8>,
}

/// After a silence a thread writes a ping to each of so many sockets, and reads the pongs; this one answers. Memory that
/// nobody has touched for a while costs a machine more, and a node's is like that. It ends early where it is stopped.
pub async fn ping(
    sockets: u64,
    what: Ping,
    silence: impl Future<Output = ()>,
    stop: &CancellationToken,
) -> anyhow::Result<Spent> {
    let sockets = connections(sockets);
    let (listener, address) = listen()?;
    let (stopped, written) = (stop.clone(), what.clone());
    let (begin, begun) = mpsc::channel();
    let spent = on_a_thread(move || ping_loop(&listener, sockets, &written, &begun, &stopped));
    let mut answering = JoinSet::new();
    for mut stream in connect(address, sockets).await? {
        let Ping { mut ping, pong } = what.clone();
        answering.spawn_local(async move {
            while stream.read_exact(&mut ping).await.is_ok() {
                if stream.write_all(&pong).await.is_err() {
                    return;
                }
            }
        });
    }
    silence.await;
    let _ = begin.send(());
    spent.await.context("the bare loop has stopped")?
}

fn ping_loop(
    listener: &TcpListener,
    sockets: u32,
    Ping { ping, pong }: &Ping,
    begun: &mpsc::Receiver<()>,
    stop: &CancellationToken,
) -> io::Result<Spent> {
    let mut poll = mio::Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let mut streams = Vec::new();
    for (number, stream) in accepted(listener, sockets)?.into_iter().enumerate() {
        stream.set_nonblocking(true)?;
        let mut stream = mio::net::TcpStream::from_std(stream);
        let registry = poll.registry();
        registry.register(&mut stream, Token(number), Interest::READABLE)?;
        streams.push(stream);
    }
    // Nobody says so where the clients did not come.
    let _ = begun.recv();
    let own = Own::begin();
    let mut steps = 0;
    for first in (0..streams.len()).step_by(PINGS_AT_A_TIME) {
        let due = first..streams.len().min(first + PINGS_AT_A_TIME);
        for stream in &mut streams[due.clone()] {
            stream.write_all(ping)?;
        }
        let mut missing = due.len() * pong.len();
        while missing > 0 {
            match poll.poll(&mut events, Some(LOOK_INTERVAL)) {
                Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
                _ if stop.is_cancelled() => return Ok(own.spent(steps)),
                _ => {}
            }
            for event in &events {
                match streams[event.token().0].read(&mut [0; 128]) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(count) => missing = missing.saturating_sub(count),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        steps += due.len() as u64;
    }
    Ok(own.spent(steps))
}

// === handshakes ===

/// A thread that accepts so many connections and answers each handshake as if it had understood it. It says what it
/// spent when it has answered the last.
pub fn accept(
    handshakes: u32,
) -> anyhow::Result<(SocketAddr, oneshot::Receiver<anyhow::Result<Spent>>)> {
    let (listener, address) = listen()?;
    let spent = on_a_thread(move || accept_loop(&listener, handshakes));
    Ok((address, spent))
}

fn accept_loop(listener: &TcpListener, handshakes: u32) -> io::Result<Spent> {
    let mut open = Vec::new();
    let own = Own::begin();
    for _ in 0..handshakes {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut head, mut read) = ([0; 1024], 0);
        while !head[..read].ends_with(b"\r\n\r\n") {
            match stream.read(&mut head[read..])? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
        }
        stream.write_all(SWITCHING)?;
        open.push(stream);
    }
    Ok(own.spent(u64::from(handshakes)))
}

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

// === what they share ===

fn on_a_thread(
    run: impl FnOnce() -> io::Result<Spent> + Send + 'static,
) -> oneshot::Receiver<anyhow::Result<Spent>> {
    let (done, spent) = oneshot::channel();
    thread::spawn(move || done.send(run().context("the bare loop has failed")));
    spent
}

fn listen() -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = listen_on((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

async fn connect(address: SocketAddr, sockets: u32) -> anyhow::Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..sockets {
        let stream = TcpStream::connect(address).await;
        let stream = stream.context("cannot connect to the bare loop")?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    Ok(streams)
}

fn accepted(listener: &TcpListener, sockets: u32) -> io::Result<Vec<std::net::TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..sockets {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    Ok(streams)
}
