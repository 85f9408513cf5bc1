//! The physical limit: bare loops over TCP on this machine that do the least which any server could do.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::ready;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::listen_on;

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

/// CPU that this thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// A thread writes to each socket in turn; this one reads, as it reads from a node. It ends early where it is stopped.
pub async fn write(
    writing: Writing,
    buffer: &Rc<RefCell<Vec<u8>>>,
    stop: &CancellationToken,
) -> anyhow::Result<Spent> {
    let Writing {
        sockets,
        bytes,
        rounds,
        window,
    } = writing;
    let (listener, address) = listen()?;
    let (permit, permits) = mpsc::channel();
    let (done, mut spent) = oneshot::channel();
    let stopped = stop.clone();
    thread::spawn(move || done.send(write_loop(&listener, writing, &permits, &stopped)));
    let mut streams = Vec::new();
    for _ in 0..sockets {
        let stream = TcpStream::connect(address).await;
        streams.push(stream.context("cannot connect to the bare loop")?);
    }
    let read = Rc::new(Cell::new(0));
    let round_bytes = u64::from(sockets) * bytes as u64;
    let mut readers = JoinSet::new();
    for mut stream in streams {
        let (read, permit, buffer) = (Rc::clone(&read), permit.clone(), Rc::clone(buffer));
        readers.spawn_local(async move {
            loop {
                let count = poll_fn(|cx| {
                    let mut buffer = buffer.borrow_mut();
                    let mut buffer = ReadBuf::new(&mut buffer);
                    ready!(Pin::new(&mut stream).poll_read(cx, &mut buffer))?;
                    std::task::Poll::Ready(io::Result::Ok(buffer.filled().len()))
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
    let spent = spent.context("the bare loop has stopped")?;
    spent.context("the bare loop cannot write")
}

fn write_loop(
    listener: &TcpListener,
    writing: Writing,
    permits: &mpsc::Receiver<()>,
    stop: &CancellationToken,
) -> io::Result<Spent> {
    let mut streams = Vec::new();
    for _ in 0..writing.sockets {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let frame = vec![b'x'; writing.bytes];
    let (begin, cpu) = (Instant::now(), thread_cpu());
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
    Ok(Spent {
        steps,
        cpu: thread_cpu().saturating_sub(cpu),
        time: begin.elapsed(),
    })
}

/// A thread that accepts so many connections and answers each handshake as if it had understood it. It says what it
/// spent when it has answered the last.
pub fn accept(
    handshakes: u32,
) -> anyhow::Result<(SocketAddr, oneshot::Receiver<io::Result<Spent>>)> {
    let (listener, address) = listen()?;
    let (done, spent) = oneshot::channel();
    thread::spawn(move || done.send(accept_loop(&listener, handshakes)));
    Ok((address, spent))
}

fn accept_loop(listener: &TcpListener, handshakes: u32) -> io::Result<Spent> {
    let mut open = Vec::new();
    let (begin, cpu) = (Instant::now(), thread_cpu());
    for _ in 0..handshakes {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut head, mut read) = ([0; 1024], 0);
        while !head[..read].ends_with(b"\r\n\r\n") {
            match stream.read(&mut head[read..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => read += count,
            }
        }
        stream.write_all(SWITCHING)?;
        open.push(stream);
    }
    Ok(Spent {
        steps: u64::from(handshakes),
        cpu: thread_cpu().saturating_sub(cpu),
        time: begin.elapsed(),
    })
}

const SWITCHING: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn listen() -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = listen_on((Ipv4Addr::LOCALHOST, 0).into())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
