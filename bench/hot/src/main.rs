//! The hot paths, each by itself, for `bench/instructions` to count.
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*count_here*' hot deliver-1
//! ```
//!
//! What is counted are instructions of this process, not the kernel's. Everything runs on one thread, in an order that
//! is the same each time: nodes with their workers, the bus between them, and clients that are mere connections, which
//! read nothing while the server is counted. What a path did is looked at afterwards.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use actix_rt::{System, SystemRunner};
use anyhow::{Context as _, Result, ensure};
use clap::{Parser, ValueEnum};
use cluster::MemoryHub;
use futures_util::future::join_all;
use proto::{EventName, NodeId, Payload, RoomName, SocketId};
use server::counting::{self, Decoder, Incoming, Wire};
use server::{Sent, Server, Sources, Status, Unisono};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// As in `unisono`: what memory costs is part of a path.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a hot path and prints how often it did
#[derive(Parser)]
struct Args {
    /// Without one, names them all
    path: Option<Path>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Path {
    /// Decode a masked text frame of 128 bytes
    #[value(name = "decode-128")]
    Decode128,
    /// Decode a masked text frame of 4 KiB
    #[value(name = "decode-4096")]
    Decode4096,
    /// Make the frame of a publication with 128 bytes of text
    Frame,
    /// The same with 4 KiB, compressed
    FrameCompressed,
    /// One of 1,000 deliveries of a publication to a room
    #[value(name = "deliver-1")]
    Deliver1,
    /// One of 16,000 deliveries of 16 publications at a time
    #[value(name = "deliver-16")]
    Deliver16,
    /// Emit to a socket on this node
    EmitHere,
    /// Emit to a socket on another node, with all that both do
    EmitThere,
}

const ROOM: &str = "/hot";
const EVENT: &str = "message";
const MEMBERS: usize = 1_000;

/// Both ends of the members' connections, and what a node has open besides.
const FILES: u64 = 2 * MEMBERS as u64 + 200;

/// Most bytes in a message between nodes: as a NATS server has it by default.
const BUS_BYTES_MAX: usize = 1024 * 1024;

/// How long anything may take that is not counted: far above what valgrind needs.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let Some(path) = Args::parse().path else {
        for path in Path::value_variants() {
            println!("{}", path.name());
        }
        return ExitCode::SUCCESS;
    };
    match path.run() {
        Ok(times) => {
            println!("{times}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hot: {}: {error:#}", path.name());
            ExitCode::FAILURE
        }
    }
}

/// Callgrind collects inside of this function only, which it knows by its name: no generics, no closures.
#[inline(never)]
fn count_here(work: &mut dyn FnMut()) {
    work();
}

/// Runs a future to its end, with all that it wakes, and has it counted.
fn count(system: &SystemRunner, work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut work = pin!(work);
    let mut done = Ok(());
    count_here(&mut || done = system.block_on(work.as_mut()));
    done
}

// === impl Path ===

impl Path {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Runs it many times, and says how many.
    fn run(self) -> Result<usize> {
        match self {
            Self::Decode128 => decode(128, 2_000),
            Self::Decode4096 => decode(4_096, 500),
            Self::Frame => frame(Wire::WebSocket, 128, 2_000),
            Self::FrameCompressed => frame(Wire::Deflate, 4_096, 50),
            Self::Deliver1 => deliver(1, 20),
            Self::Deliver16 => deliver(16, 5),
            Self::EmitHere => emit(1, 200),
            Self::EmitThere => emit(2, 200),
        }
    }
}

/// Text of a user's, of so many bytes, that is neither all the same nor noise.
fn text(bytes: usize) -> String {
    let words = (0..).map(|n: usize| format!("word {} ", n * n % 997));
    let mut text: String = words.take(bytes).collect();
    text.truncate(bytes);
    text
}

fn decode(bytes: usize, times: usize) -> Result<usize> {
    let mut decoder = Decoder::new(bytes, false);
    let mut frames = vec![masked(text(bytes).as_bytes()); times];
    let mut decoded = 0;
    count_here(&mut || {
        for frame in &mut frames {
            let mut input = &mut frame[..];
            if let Ok(Some(Incoming::Text(text))) = decoder.next(&mut input) {
                decoded += black_box(&text).len();
            }
        }
    });
    ensure!(decoded == bytes * times, "not every frame was decoded");
    Ok(times)
}

/// A text frame as clients send it (RFC 6455 §5.2).
fn masked(text: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x5a, 0xc3, 0x0f, 0x96];
    let mut frame = vec![0x81];
    match u8::try_from(text.len()) {
        Ok(short) if short < 126 => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            let len = u16::try_from(text.len()).expect("texts here are short");
            frame.extend(len.to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(
        text.iter()
            .zip(MASK.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

fn frame(wire: Wire, bytes: usize, times: usize) -> Result<usize> {
    let payload = Payload::Event {
        name: EventName::parse_user(EVENT)?,
        data: Some(format!("{:?}", text(bytes)).into()),
    };
    let room = RoomName::parse(ROOM)?;
    let from = SocketId::new(NodeId::new(1), 0, 1);
    let mut made = 0;
    count_here(&mut || {
        for _ in 0..times {
            let frame = counting::payload_frame(wire, black_box(&payload), Some(&room), Some(from));
            made += usize::from(!black_box(frame).is_empty());
        }
    });
    ensure!(made == times, "not every frame was made");
    Ok(times)
}

/// Publications to a room of [`MEMBERS`], `at_once` of them each time, which a room hands on as one batch.
fn deliver(at_once: usize, times: usize) -> Result<usize> {
    rlimit::increase_nofile_limit(FILES)?;
    let system = System::new();
    let data = text(128);
    let (unisono, mut last, others, bytes) = system.block_on(async {
        let node = Node::start(&MemoryHub::new(BUS_BYTES_MAX)).await?;
        let mut others = Vec::new();
        for _ in 1..MEMBERS {
            others.push(node.connect().await?.silent()?);
        }
        let mut last = node.connect().await?;
        // The first time, what grows does, and the length of a frame is learned.
        let unisono = node.server.unisono();
        publish(&unisono, at_once, &data).await?;
        let bytes = at_once * last.frame().await?.len();
        last.take(bytes - bytes / at_once).await?;
        anyhow::Ok((unisono, last, others, bytes))
    })?;
    let work = async {
        for _ in 0..times {
            publish(&unisono, at_once, &data).await?;
            // Who came last is served last: when it has everything, everybody has.
            last.take(bytes).await?;
        }
        Ok(())
    };
    count(&system, work)?;
    system.block_on(async {
        for other in others {
            other.took((1 + times) * bytes).await?;
        }
        anyhow::Ok(())
    })?;
    Ok(times * at_once * MEMBERS)
}

async fn publish(unisono: &Unisono, at_once: usize, data: &str) -> Result<()> {
    let publication = |_| unisono.publish(ROOM, EVENT, data).into_future();
    for sent in join_all((0..at_once).map(publication)).await {
        ensure!(sent? == Sent::ToAll, "there is no bus");
    }
    Ok(())
}

/// Emits to a socket of the last of so many nodes, through the first.
fn emit(nodes: usize, times: usize) -> Result<usize> {
    let system = System::new();
    let data = text(128);
    let (unisono, to, client, bytes) = system.block_on(async {
        let hub = MemoryHub::new(BUS_BYTES_MAX);
        let first = Node::start(&hub).await?;
        let unisono = first.server.unisono();
        let mut last = first;
        for _ in 1..nodes {
            last = Node::start(&hub).await?;
        }
        let mut client = last.connect().await?;
        let members = last.server.unisono().members(ROOM).await?.value.sockets;
        let (to, _) = *members.first().context("nobody is in the room")?;
        // The nodes have to hear of each other first.
        while unisono.emit(to, EVENT, &data).await? != Status::Delivered {
            tokio::task::yield_now().await;
        }
        let bytes = client.frame().await?.len();
        anyhow::Ok((unisono, to, client.silent()?, bytes))
    })?;
    let work = async {
        for _ in 0..times {
            let status = unisono.emit(to, EVENT, &data).await?;
            ensure!(status == Status::Delivered, "an emit was not delivered");
        }
        Ok(())
    };
    count(&system, work)?;
    system.block_on(client.took(times * bytes))?;
    Ok(times)
}

// === a node and its clients, on one thread ===

struct Node {
    server: Server,
    address: SocketAddr,
}

/// A client that has been greeted.
struct Client(TcpStream);

/// A client whose connection no runtime knows of.
struct Silent(std::net::TcpStream);

impl Node {
    async fn start(hub: &MemoryHub) -> Result<Self> {
        let flags = [("workers", "1")];
        let sources = Sources {
            flags: flags
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ..Sources::without_file()
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let server = counting::start(sources.load()?.config, listener, hub).await?;
        Ok(Self { server, address })
    }

    async fn connect(&self) -> Result<Client> {
        let mut stream = TcpStream::connect(self.address).await?;
        let request = format!(
            "GET {ROOM} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            self.address,
        );
        stream.write_all(request.as_bytes()).await?;
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            response.push(stream.read_u8().await?);
        }
        ensure!(
            response.starts_with(b"HTTP/1.1 101 "),
            "a client was refused"
        );
        let mut client = Client(stream);
        client.frame().await?;
        Ok(client)
    }
}

impl Client {
    /// The next frame, with its head, of at most 64 KiB.
    async fn frame(&mut self) -> Result<Vec<u8>> {
        let mut frame = self.take(2).await?;
        let mut left = usize::from(frame[1]);
        ensure!(left < 127, "a frame is longer than any here should be");
        if left == 126 {
            let long = self.take(2).await?;
            left = usize::from(u16::from_be_bytes([long[0], long[1]]));
            frame.extend(long);
        }
        frame.extend(self.take(left).await?);
        Ok(frame)
    }

    async fn take(&mut self, bytes: usize) -> Result<Vec<u8>> {
        let mut taken = vec![0; bytes];
        let read = tokio::time::timeout(PATIENCE, self.0.read_exact(&mut taken));
        read.await.context("the server says nothing")??;
        Ok(taken)
    }

    /// Takes no notice of what arrives, which costs nothing then.
    fn silent(self) -> Result<Silent> {
        Ok(Silent(self.0.into_std()?))
    }
}

impl Silent {
    /// Looks whether so many bytes have arrived, or do soon.
    async fn took(self, bytes: usize) -> Result<()> {
        let mut client = Client(TcpStream::from_std(self.0)?);
        client.take(bytes).await?;
        Ok(())
    }
}
