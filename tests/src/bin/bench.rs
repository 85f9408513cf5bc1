//! What one delivery costs the server, held against a bare loop of `write` calls that does the same work.
//!
//! ```text
//! cargo build --release && cargo run --release -p unisono-tests --bin bench
//! ```
//!
//! Both sides run in turns on this machine and send the very same bytes to the very same readers, so that
//! their ratio means something where absolute times are noise. CPU is what the kernel accounts to the
//! threads of the sending process (user and system, in nanoseconds); memory is its `RssAnon`. Linux only.

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, Subcommand};
use mio::{Events, Interest, Poll, Token};
use serde_json::{Value, json};
use tokio::runtime;
use tokio::time::Instant;
use unisono_tests::{Node, Process, eventually};

const ONE_AT_A_TIME_MAX: f64 = 1.25;
const IN_FLIGHT_MAX: f64 = 0.16;
const IDLE_KIB_MAX: f64 = 4.0;

const ROOM: &str = "/bench";
const WARM_UP_PUBLICATIONS: u32 = 20;
/// With no publication complete for this long, what has not arrived is lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a sender is left alone before its counters are read.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Measures server CPU per delivery, as a ratio to a bare write loop, and memory per idle socket
#[derive(Debug, Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Args {
    /// Sockets in the room
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    sockets: u32,
    /// Publications in each case of a round
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    publications: u32,
    /// Rounds: in each, the bare loop and the server take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Bytes of text in a publication
    #[arg(long, default_value_t = 128)]
    bytes: usize,
    /// Publications in flight in the second case
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    window: u32,
    /// Idle sockets to measure memory with; 0 leaves it out
    #[arg(long, default_value_t = 5000)]
    idle: u32,
    /// Seconds to hold the idle sockets and measure their CPU; 0 leaves it out
    #[arg(long, default_value_t = 0)]
    idle_seconds: u64,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// End with status 1 when a budget is not kept
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// The bare loop, which the bench starts as a process of its own
    #[command(hide = true)]
    Bare {
        #[arg(long)]
        sockets: u32,
    },
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether what was asked for is so.
fn run(args: &Args) -> Result<bool> {
    if let Some(Part::Bare { sockets }) = args.part {
        bare_loop(sockets)?;
        return Ok(true);
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(measure(args))?;
    if args.json {
        println!("{:#}", report.json(args));
    } else {
        print!("{}", report.table(args));
    }
    Ok(!args.check || report.keeps_budgets())
}

// === the run ===

async fn measure(args: &Args) -> Result<Report> {
    let files = u64::from(args.sockets.max(args.idle)) + 200;
    let granted = rlimit::increase_nofile_limit(files)?;
    ensure!(
        granted >= files,
        "{files} open files are needed, the system grants {granted}"
    );
    build_server_if_absent()?;

    eprintln!("idle: {} sockets", args.idle);
    let (frame, idle) = measure_idle(args).await?;
    let mut report = Report {
        frame_bytes: frame.len(),
        idle,
        rounds: vec![],
    };
    for number in 1..=args.rounds {
        eprintln!("round {number} of {}", args.rounds);
        let round = Round {
            bare: measure_bare(args, &frame).await?,
            server: measure_server(args, &frame).await?,
        };
        let Round { bare, server } = &round;
        eprintln!(
            "    bare {:.2} and {:.2} µs, server {:.2} and {:.2} µs",
            bare.one_at_a_time, bare.in_flight, server.one_at_a_time, server.in_flight
        );
        report.rounds.push(round);
    }
    Ok(report)
}

/// `cargo run` builds this program only, not the server that it drives.
fn build_server_if_absent() -> Result<()> {
    let beside = env::current_exe()?.with_file_name("unisono");
    if env::var_os("UNISONO_BIN").is_some() || beside.is_file() {
        return Ok(());
    }
    let mut build = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "-p", "unisono-server", "--bin", "unisono"]);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let status = build
        .status()
        .context("cannot run cargo to build the server")?;
    ensure!(status.success(), "the server does not build");
    ensure!(
        beside.is_file(),
        "no {}: name the server in UNISONO_BIN",
        beside.display()
    );
    Ok(())
}

async fn start_server() -> Node {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: only the release build's figures mean anything");
    }
    Node::alone("").await
}

/// What idle sockets cost, and, from the same node, the frame that a publication becomes.
async fn measure_idle(args: &Args) -> Result<(Vec<u8>, Option<Idle>)> {
    let mut node = start_server().await;
    let (port, pid) = (node.port(), node.process().pid());
    let message = message(args.bytes);
    let mut first = Crowd::in_room(port, ROOM, 1, message.clone())?;
    let frame = first.learn_frame()?;
    if args.idle == 0 {
        return Ok((frame, None));
    }
    first.read_for(SETTLE_TIME)?;
    let before = anonymous_kib(pid)?;
    let mut crowd = Crowd::in_room(port, "/idle", args.idle, message)?;
    crowd.read_for(Duration::from_secs(1))?;
    let after = anonymous_kib(pid)?;
    let kib_per_socket = after.saturating_sub(before) as f64 / f64::from(args.idle);

    let mut cpu_us_per_second = None;
    if args.idle_seconds > 0 {
        eprintln!("idle: for {} s", args.idle_seconds);
        let start = cpu(pid)?;
        crowd.read_for(Duration::from_secs(args.idle_seconds))?;
        let spent = spent_us(&start, &cpu(pid)?);
        cpu_us_per_second = Some(spent / f64::from(args.idle) / args.idle_seconds as f64);
    }
    ensure!(crowd.open() == args.idle, "the server closed idle sockets");
    Ok((
        frame,
        Some(Idle {
            kib_per_socket,
            cpu_us_per_second,
        }),
    ))
}

async fn measure_server(args: &Args, frame: &[u8]) -> Result<Costs> {
    let mut node = start_server().await;
    let mut crowd = Crowd::in_room(node.port(), ROOM, args.sockets, message(args.bytes))?;
    let learned = crowd.learn_frame()?;
    ensure!(
        learned.len() == frame.len(),
        "frames differ in length from node to node"
    );
    crowd.costs(node.process().pid(), args)
}

async fn measure_bare(args: &Args, frame: &[u8]) -> Result<Costs> {
    let directory = tempfile::tempdir()?;
    let mut command = Command::new(env::current_exe()?);
    command.args(["bare", "--sockets", &args.sockets.to_string()]);
    let bare = Process::spawn("bare", command, directory.path(), "");
    let port = eventually("the bare loop listens", async || {
        bare.stdout()
            .strip_suffix('\n')
            .and_then(|port| port.parse::<u16>().ok())
    })
    .await;
    let mut crowd = Crowd::of_bare_loop(port, args.sockets, frame)?;
    crowd.costs(bare.pid(), args)
}

// === the bare loop ===

/// Writes the frame to each socket in turn, once for every byte that comes in on the first connection.
///
/// The least that any server can do for a publication: one `write` per socket, and nothing else.
fn bare_loop(sockets: u32) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?.port());
    let (mut source, _) = listener.accept()?;
    let mut length = [0; 4];
    source.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    source.read_exact(&mut frame)?;
    let mut readers = vec![];
    for _ in 0..sockets {
        let (reader, _) = listener.accept()?;
        reader.set_nodelay(true)?;
        readers.push(reader);
    }
    source.write_all(b"!")?;
    let mut publications = [0; 64];
    loop {
        let count = source.read(&mut publications)?;
        if count == 0 {
            return Ok(());
        }
        for _ in 0..count {
            for reader in &mut readers {
                let written = reader.write(&frame)?;
                ensure!(
                    written == frame.len(),
                    "a reader did not take the whole frame"
                );
            }
        }
    }
}

// === the crowd: who publishes, and all who read ===

/// N readers and one publisher, served by one thread that does little more than count.
struct Crowd {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    readers: Vec<Reader>,
    source: Source,
    /// Payload bytes of one copy, once known.
    copy_bytes: Option<u64>,
    /// `arrived[k]`: how many readers have more than k copies.
    arrived: Vec<u32>,
    /// Frames that are no copies: the greeting, errors, gaps.
    others: Vec<String>,
}

struct Reader {
    stream: mio::net::TcpStream,
    frames: Frames,
    copies: usize,
    open: bool,
}

/// The socket that asks for publications: any number of messages at once, in one write where it fits.
struct Source {
    reader: Reader,
    message: Vec<u8>,
    unsent: Vec<u8>,
}

impl Crowd {
    /// Clients in a room, and one more that publishes to it.
    fn in_room(port: u16, room: &str, count: u32, message: Vec<u8>) -> Result<Self> {
        let join = |_| Reader::join(port, room);
        let readers = (0..count)
            .map(join)
            .collect::<Result<_>>()
            .context("cannot open a socket")?;
        Self::new(readers, Reader::join(port, room)?, message)
    }

    /// Plain connections to a bare loop, which is given the frame to write.
    fn of_bare_loop(port: u16, count: u32, frame: &[u8]) -> Result<Self> {
        let mut control = connect(port)?;
        control.write_all(&u32::try_from(frame.len())?.to_be_bytes())?;
        control.write_all(frame)?;
        let plain = |_| Reader::new(connect(port)?, Frames::default());
        let readers = (0..count).map(plain).collect::<Result<_>>()?;
        control.read_exact(&mut [0; 1])?;
        let mut crowd = Self::new(
            readers,
            Reader::new(control, Frames::default())?,
            b".".to_vec(),
        )?;
        crowd.learn_frame()?;
        Ok(crowd)
    }

    fn new(mut readers: Vec<Reader>, source: Reader, message: Vec<u8>) -> Result<Self> {
        let poll = Poll::new()?;
        let mut source = Source {
            reader: source,
            message,
            unsent: vec![],
        };
        for (index, reader) in readers.iter_mut().enumerate() {
            poll.registry()
                .register(&mut reader.stream, Token(index), Interest::READABLE)?;
        }
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut source.reader.stream, Token(readers.len()), both)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(1024),
            buffer: vec![0; 64 * 1024],
            readers,
            source,
            copy_bytes: None,
            arrived: vec![],
            others: vec![],
        })
    }

    /// How many readers are still connected.
    fn open(&self) -> u32 {
        self.readers
            .iter()
            .map(|reader| u32::from(reader.open))
            .sum()
    }

    /// One publication, to see what frame it becomes. From now on frames of this size count as copies.
    fn learn_frame(&mut self) -> Result<Vec<u8>> {
        self.source.publish(1)?;
        let deadline = Instant::now() + STALL_TIMEOUT;
        while self.others.len() < self.readers.len() {
            ensure!(
                Instant::now() < deadline,
                "not everyone got the first publication"
            );
            self.read_once(deadline)?;
        }
        let [payload, rest @ ..] = self.others.as_slice() else {
            bail!("nobody reads")
        };
        ensure!(
            rest.iter().all(|other| other == payload),
            "unlike copies of one publication"
        );
        ensure!(
            payload.starts_with(r#"{"event":"m","#),
            "not the publication: {payload}"
        );
        let frame = text_frame(payload.as_bytes());
        self.copy_bytes = Some(payload.len() as u64);
        self.others.clear();
        Ok(frame)
    }

    /// What the process `pid` spends on a delivery, in both cases.
    fn costs(&mut self, pid: u32, args: &Args) -> Result<Costs> {
        self.deliver(WARM_UP_PUBLICATIONS, 1)?;
        self.deliver(WARM_UP_PUBLICATIONS, args.window)?;
        let deliveries = f64::from(args.publications) * f64::from(args.sockets);
        let mut cost = |window| -> Result<f64> {
            self.read_for(SETTLE_TIME)?;
            let start = cpu(pid)?;
            self.deliver(args.publications, window)?;
            Ok(spent_us(&start, &cpu(pid)?) / deliveries)
        };
        Ok(Costs {
            one_at_a_time: cost(1)?,
            in_flight: cost(args.window)?,
        })
    }

    /// Publishes so many times, never more than `window` ahead of the slowest reader, and counts every copy.
    fn deliver(&mut self, publications: u32, window: u32) -> Result<()> {
        let (total, window) = (publications as usize, window as usize);
        let everyone = self.readers.len();
        self.arrived = vec![0; total];
        self.readers.iter_mut().for_each(|reader| reader.copies = 0);
        let (mut asked, mut complete) = (0, 0);
        let mut last_complete = Instant::now();
        while complete < total {
            let due = (complete + window).min(total) - asked;
            self.source.publish(due)?;
            asked += due;
            self.read_once(last_complete + STALL_TIMEOUT)?;
            while complete < total && self.arrived[complete] as usize == everyone {
                complete += 1;
                last_complete = Instant::now();
            }
            if last_complete.elapsed() >= STALL_TIMEOUT {
                break;
            }
        }
        self.read_for(SETTLE_TIME)?;
        let received: usize = self.readers.iter().map(|reader| reader.copies).sum();
        let due = total * everyone;
        ensure!(
            received >= due,
            "{} of {due} deliveries were lost",
            due - received
        );
        ensure!(
            received == due,
            "{} more deliveries than publications ask for",
            received - due
        );
        if let Some(other) = self.others.first() {
            bail!("the server said something else: {other}");
        }
        Ok(())
    }

    /// Reads, and answers pings, for a while.
    fn read_for(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.read_once(end)?;
        }
        Ok(())
    }

    /// Reads what is there, or waits for it until the deadline.
    fn read_once(&mut self, deadline: Instant) -> Result<()> {
        let timeout = deadline.saturating_duration_since(Instant::now());
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        for event in &self.events {
            let Token(index) = event.token();
            let Self {
                buffer,
                arrived,
                others,
                ..
            } = self;
            let Some(reader) = self.readers.get_mut(index) else {
                self.source.flush()?;
                self.source
                    .reader
                    .read(buffer, self.copy_bytes, |arrival| {
                        others.push(match arrival {
                            Arrival::Copy(_) => "a copy for the publisher itself".to_owned(),
                            Arrival::Other(text) => text,
                        });
                    })?;
                continue;
            };
            reader.read(buffer, self.copy_bytes, |arrival| match arrival {
                Arrival::Copy(number) => {
                    if let Some(count) = arrived.get_mut(number) {
                        *count += 1;
                    }
                }
                Arrival::Other(text) => others.push(text),
            })?;
        }
        Ok(())
    }
}

impl Source {
    fn publish(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            self.unsent.extend_from_slice(&self.message);
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unsent.is_empty() {
            match self.reader.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("the publisher cannot write"),
            }
        }
        Ok(())
    }
}

enum Arrival {
    /// A copy of a publication, the reader's nth.
    Copy(usize),
    /// Any other text.
    Other(String),
}

impl Reader {
    fn new(stream: TcpStream, frames: Frames) -> Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = mio::net::TcpStream::from_std(stream);
        Ok(Self {
            stream,
            frames,
            copies: 0,
            open: true,
        })
    }

    /// Opens a WebSocket and waits until it is greeted.
    fn join(port: u16, room: &str) -> Result<Self> {
        let mut stream = connect(port)?;
        stream.set_read_timeout(Some(STALL_TIMEOUT))?;
        stream.write_all(
            format!(
                "GET {room} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            .as_bytes(),
        )?;
        let mut read = vec![];
        let mut buffer = [0; 4096];
        let mut more = |read: &mut Vec<u8>| -> Result<()> {
            let count = stream.read(&mut buffer)?;
            ensure!(
                count > 0,
                "closed in place of a greeting: {}",
                String::from_utf8_lossy(read)
            );
            read.extend_from_slice(&buffer[..count]);
            Ok(())
        };
        let head_bytes = loop {
            match read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(at) => break at + 4,
                None => more(&mut read)?,
            }
        };
        let head = String::from_utf8_lossy(&read[..head_bytes]).into_owned();
        ensure!(head.starts_with("HTTP/1.1 101 "), "refused: {head}");
        read.drain(..head_bytes);

        let mut frames = Frames::default();
        let mut greeted = false;
        loop {
            frames.feed(&read, None, |frame| match frame {
                Frame::Text(text) if text.starts_with(r#"{"event":"unisono:open""#) => {
                    greeted = true;
                }
                _ => {}
            });
            if greeted {
                break;
            }
            read.clear();
            more(&mut read)?;
        }
        Self::new(stream, frames)
    }

    /// Reads what is there, once: a short read has emptied the socket.
    fn read(
        &mut self,
        buffer: &mut [u8],
        copy_bytes: Option<u64>,
        mut on: impl FnMut(Arrival),
    ) -> Result<()> {
        loop {
            let count = match self.stream.read(buffer) {
                Ok(0) => {
                    self.open = false;
                    return Ok(());
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("a reader was cut"),
            };
            let mut pongs = vec![];
            self.frames
                .feed(&buffer[..count], copy_bytes, |frame| match frame {
                    Frame::Copy => {
                        on(Arrival::Copy(self.copies));
                        self.copies += 1;
                    }
                    Frame::Text(text) => on(Arrival::Other(text)),
                    Frame::Ping(payload) => pongs.extend(masked_frame(Frames::PONG, &payload)),
                    Frame::Close(payload) => {
                        let reason = String::from_utf8_lossy(payload.get(2..).unwrap_or_default());
                        on(Arrival::Other(format!(
                            "close {:?} {reason}",
                            payload.get(..2)
                        )));
                    }
                });
            if !pongs.is_empty() {
                self.stream
                    .write_all(&pongs)
                    .context("a reader cannot answer a ping")?;
            }
            if count < buffer.len() {
                return Ok(());
            }
        }
    }
}

fn connect(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

// === frames ===

/// Frames from a server, told apart by kind; what a copy says is not looked at.
#[derive(Default)]
struct Frames {
    head: Vec<u8>,
    /// Of the frame whose head is complete: its opcode, bytes to come, bytes kept.
    body: Option<(u8, u64, Option<Vec<u8>>)>,
}

#[derive(Debug, PartialEq)]
enum Frame {
    Copy,
    Text(String),
    Ping(Vec<u8>),
    Close(Vec<u8>),
}

impl Frames {
    const TEXT: u8 = 1;
    const CLOSE: u8 = 8;
    const PING: u8 = 9;
    const PONG: u8 = 10;

    fn feed(&mut self, mut bytes: &[u8], copy_bytes: Option<u64>, mut on: impl FnMut(Frame)) {
        loop {
            let Some((opcode, missing, kept)) = &mut self.body else {
                let Some((byte, rest)) = bytes.split_first() else {
                    return;
                };
                self.head.push(*byte);
                bytes = rest;
                if let Some((opcode, length)) = head(&self.head) {
                    let is_copy = opcode == Self::TEXT && Some(length) == copy_bytes;
                    self.body = Some((opcode, length, (!is_copy).then(Vec::new)));
                    self.head.clear();
                }
                continue;
            };
            let here = bytes
                .len()
                .min(usize::try_from(*missing).unwrap_or(usize::MAX));
            let (part, rest) = bytes.split_at(here);
            bytes = rest;
            *missing -= here as u64;
            if let Some(kept) = kept {
                kept.extend_from_slice(part);
            }
            if *missing > 0 {
                return;
            }
            match (*opcode, kept.take()) {
                (_, None) => on(Frame::Copy),
                (Self::PING, Some(payload)) => on(Frame::Ping(payload)),
                (Self::CLOSE, Some(payload)) => on(Frame::Close(payload)),
                (_, Some(payload)) => {
                    on(Frame::Text(String::from_utf8_lossy(&payload).into_owned()));
                }
            }
            self.body = None;
        }
    }
}

/// Opcode and length of an unmasked frame, once its head is complete.
fn head(bytes: &[u8]) -> Option<(u8, u64)> {
    let [first, second, rest @ ..] = bytes else {
        return None;
    };
    let length = match (second & 0x7f, rest.len()) {
        (126, 2) => rest
            .iter()
            .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        (127, 8) => rest
            .iter()
            .fold(0, |length, byte| length << 8 | u64::from(*byte)),
        (126 | 127, _) => return None,
        (length, _) => u64::from(length),
    };
    Some((first & 0x0f, length))
}

fn head_of(opcode: u8, length: usize, mask: u8) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match length {
        0..126 => head.push(mask | length as u8),
        126..65_536 => {
            head.push(mask | 126);
            head.extend((length as u16).to_be_bytes());
        }
        _ => {
            head.push(mask | 127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head
}

/// A text frame as a server sends it.
fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = head_of(Frames::TEXT, payload.len(), 0);
    frame.extend_from_slice(payload);
    frame
}

/// A frame as a client sends it.
fn masked_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = head_of(opcode, payload.len(), 0x80);
    frame.extend(KEY);
    frame.extend(
        payload
            .iter()
            .zip(KEY.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// What the publisher sends, once for every publication.
fn message(bytes: usize) -> Vec<u8> {
    let text = format!(r#"{{"event":"m","data":"{}"}}"#, "x".repeat(bytes));
    masked_frame(Frames::TEXT, text.as_bytes())
}

// === what the system knows of a process ===

/// Nanoseconds on a CPU, of each thread.
fn cpu(pid: u32) -> Result<BTreeMap<String, u64>> {
    let mut spent = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")? {
        let path = task?.path().join("schedstat");
        let text = match fs::read_to_string(&path) {
            // A thread that has just ended.
            Err(error) if error.kind() == ErrorKind::NotFound && !path.is_file() => continue,
            text => text.context("this kernel keeps no schedstat")?,
        };
        let nanoseconds = text.split(' ').next().unwrap_or_default().parse()?;
        spent.insert(path.display().to_string(), nanoseconds);
    }
    ensure!(!spent.is_empty(), "this kernel keeps no schedstat");
    Ok(spent)
}

/// Microseconds between two readings.
fn spent_us(start: &BTreeMap<String, u64>, end: &BTreeMap<String, u64>) -> f64 {
    let since = |(thread, time): (&String, &u64)| time - start.get(thread).unwrap_or(&0);
    end.iter().map(since).sum::<u64>() as f64 / 1000.0
}

fn anonymous_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("no RssAnon")?;
    Ok(kib.parse()?)
}

// === the report ===

struct Report {
    frame_bytes: usize,
    idle: Option<Idle>,
    rounds: Vec<Round>,
}

struct Idle {
    kib_per_socket: f64,
    cpu_us_per_second: Option<f64>,
}

struct Round {
    bare: Costs,
    server: Costs,
}

/// Microseconds of CPU per delivery.
struct Costs {
    one_at_a_time: f64,
    in_flight: f64,
}

impl Report {
    fn each(&self, of: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }

    /// Ratios are taken within a round, and their median after that.
    fn one_at_a_time(&self) -> Vec<f64> {
        self.each(|Round { bare, server }| server.one_at_a_time / bare.one_at_a_time)
    }

    /// Held against the bare loop at its one at a time: it has no batches to make.
    fn in_flight(&self) -> Vec<f64> {
        self.each(|Round { bare, server }| server.in_flight / bare.one_at_a_time)
    }

    fn keeps_budgets(&self) -> bool {
        median(&self.one_at_a_time()) <= ONE_AT_A_TIME_MAX
            && median(&self.in_flight()) <= IN_FLIGHT_MAX
            && self
                .idle
                .as_ref()
                .is_none_or(|idle| idle.kib_per_socket <= IDLE_KIB_MAX)
    }

    fn table(&self, args: &Args) -> String {
        let mut text = format!(
            "{} sockets, {} publications of {} bytes on the wire; nothing lost\n\n{:38}",
            args.sockets, args.publications, self.frame_bytes, ""
        );
        for number in 1..=self.rounds.len() {
            let _ = write!(text, "{:>9}", format!("round {number}"));
        }
        let _ = writeln!(text, "{:>9}{:>9}", "median", "budget");
        let mut row = |name: &str, values: &[f64], budget: Option<f64>| {
            let _ = write!(text, "{name:38}");
            for value in values.iter().chain([&median(values)]) {
                let _ = write!(text, "{value:>9.2}");
            }
            let _ = match budget {
                Some(budget) => writeln!(text, "{budget:>9.2}  {}", verdict(values, budget)),
                None => writeln!(text),
            };
        };
        let window = args.window;
        row(
            "bare loop, µs",
            &self.each(|round| round.bare.one_at_a_time),
            None,
        );
        row(
            "server, one at a time, µs",
            &self.each(|round| round.server.one_at_a_time),
            None,
        );
        row(
            "  / bare loop",
            &self.one_at_a_time(),
            Some(ONE_AT_A_TIME_MAX),
        );
        row(
            &format!("server, {window} in flight, µs"),
            &self.each(|round| round.server.in_flight),
            None,
        );
        row("  / bare loop", &self.in_flight(), Some(IN_FLIGHT_MAX));
        row(
            &format!("bare loop, {window} in flight, unbatched, µs"),
            &self.each(|round| round.bare.in_flight),
            None,
        );
        if let Some(idle) = &self.idle {
            let _ = writeln!(
                text,
                "\nidle socket, KiB of user memory: {:.2}, budget {IDLE_KIB_MAX:.2}  {}",
                idle.kib_per_socket,
                verdict(&[idle.kib_per_socket], IDLE_KIB_MAX)
            );
            if let Some(cpu) = idle.cpu_us_per_second {
                let _ = writeln!(text, "idle socket, µs of CPU per second: {cpu:.2}");
            }
        }
        text
    }

    fn json(&self, args: &Args) -> Value {
        let case = |bare: Vec<f64>, server: Vec<f64>, ratio: Vec<f64>, budget: f64| {
            json!({
                "bare_us": bare, "server_us": server, "ratio": ratio,
                "median": { "bare_us": median(&bare), "server_us": median(&server), "ratio": median(&ratio) },
                "budget": budget, "kept": median(&ratio) <= budget,
            })
        };
        json!({
            "sockets": args.sockets, "publications": args.publications, "rounds": args.rounds,
            "frame_bytes": self.frame_bytes, "window": args.window, "lost": 0,
            "one_at_a_time": case(
                self.each(|round| round.bare.one_at_a_time),
                self.each(|round| round.server.one_at_a_time),
                self.one_at_a_time(),
                ONE_AT_A_TIME_MAX,
            ),
            "in_flight": case(
                self.each(|round| round.bare.in_flight),
                self.each(|round| round.server.in_flight),
                self.in_flight(),
                IN_FLIGHT_MAX,
            ),
            "idle": self.idle.as_ref().map(|idle| json!({
                "sockets": args.idle,
                "kib_per_socket": idle.kib_per_socket,
                "budget": IDLE_KIB_MAX,
                "kept": idle.kib_per_socket <= IDLE_KIB_MAX,
                "cpu_us_per_socket_second": idle.cpu_us_per_second,
            })),
            "kept": self.keeps_budgets(),
        })
    }
}

fn verdict(values: &[f64], budget: f64) -> &'static str {
    if median(values) <= budget {
        "kept"
    } else {
        "OVER"
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => f64::midpoint(sorted[(count - 1) / 2], sorted[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let mut stream = text_frame(b"{}");
        stream.extend(text_frame(&[b'x'; 200]));
        stream.extend(text_frame(&vec![b'y'; 70_000]));
        stream.extend([0x89, 2, b'h', b'i', 0x88, 0]);
        let whole = |cut: usize| {
            let (mut frames, mut seen) = (Frames::default(), vec![]);
            for part in stream.chunks(cut) {
                frames.feed(part, Some(200), |frame| seen.push(frame));
            }
            seen
        };
        let expected = [
            Frame::Text("{}".to_owned()),
            Frame::Copy,
            Frame::Text("y".repeat(70_000)),
            Frame::Ping(b"hi".to_vec()),
            Frame::Close(vec![]),
        ];
        for cut in [1, 2, 3, 7, 199, stream.len()] {
            assert_eq!(whole(cut), expected, "cut into pieces of {cut}");
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }
}
