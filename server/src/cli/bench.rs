//! `unisono bench`: what a running cluster does, in numbers, beside what this machine could do at best.

mod bare;
mod frames;
mod load;
mod nodes;
mod report;
mod socket;
mod tally;

use std::cell::RefCell;
use std::process;
use std::rc::Rc;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream};
use hdrhistogram::Histogram;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::outcome::{Done, Failure, Outcome};
use bare::{Spent, Writing};
use load::{Load, Own, Run, Targets, progress};
use nodes::{NO_CPU, Nodes, Reached, Reading, spent, want_files};
use report::{Cost, Report, round};
use socket::Entrance;
use tally::{SEEN_MIN, histogram, record};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono bench fanout --sockets 1000\n  \
    unisono bench fanout --url http://10.0.0.7:8080 --url http://10.0.0.8:8080 --rate 100 --duration 1m\n  \
    unisono bench emit --url http://10.0.0.7:8080 --url http://10.0.0.8:8080\n  \
    unisono bench rooms --rooms 500 --members 4 --bytes 512\n  \
    unisono bench connect --sockets 5000 --concurrency 100\n  \
    unisono bench idle --sockets 10000 --json\n\n\
    Ctrl-C ends a run early, with the figures so far. Exit status: 0 when everything came once, 1 when not, 64 wrong use.")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One room with all sockets, on all nodes: messages published to it
    Fanout(Fanout),
    /// Messages to single sockets, each sent through another node than that of the socket
    Emit(Emit),
    /// Many small rooms, published to in turn
    Rooms(Rooms),
    /// Handshakes
    Connect(Connect),
    /// Sockets that do nothing: memory and CPU of each
    Idle(Idle),
    /// No node: a bare loop of `write` on this machine, which is the limit of all the others
    Raw(Raw),
}

#[derive(Args)]
struct Fanout {
    /// Sockets in the room
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    reached: Reached,
}

#[derive(Args)]
struct Emit {
    /// Sockets, which get messages in turn
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = some())]
    sockets: u32,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    reached: Reached,
}

#[derive(Args)]
struct Rooms {
    /// How many rooms
    #[arg(long, default_value_t = 100, value_name = "R", value_parser = some())]
    rooms: u32,
    /// Sockets in each of them
    #[arg(long, default_value_t = 10, value_name = "M", value_parser = some())]
    members: u32,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    reached: Reached,
}

#[derive(Args)]
struct Connect {
    /// Sockets to open; they stay open until the last is
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// Handshakes at one time
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = some())]
    concurrency: u32,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    reached: Reached,
}

#[derive(Args)]
struct Idle {
    /// Sockets to hold
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// How long to hold them and look at the CPU
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    duration: Duration,
    /// The room they are in [default: /unisono-bench/<random>]
    #[arg(long)]
    room: Option<String>,
    #[command(flatten)]
    reached: Reached,
}

#[derive(Args)]
struct Raw {
    /// Connections to write to in turn
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// Bytes of text in a message, to which come those of a frame
    #[arg(long, default_value_t = 128, value_name = "N")]
    bytes: usize,
    /// Messages to each connection [default: 100000 writes in all]
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Messages in flight
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = some())]
    window: u32,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Place {
    /// The room, or what the names of rooms begin with [default: /unisono-bench/<random>]
    #[arg(long)]
    room: Option<String>,
    /// Leave out the bare loop (emit: the request that does nothing), and so the ratio
    #[arg(long)]
    no_raw: bool,
}

/// A run of messages: who gets them, and what they are held against.
struct Course {
    name: &'static str,
    rooms: Vec<String>,
    members: u32,
    load: Load,
    /// What is in flight unless it is said.
    window: u32,
    raw: bool,
    reached: Reached,
}

/// Writes of a bare loop, unless it is said how many: some tenths of a second.
const RAW_WRITES: u64 = 100_000;

/// Files that are no sockets: those of the runtime, the standard ones, some to spare.
const OTHER_FILES: u64 = 200;

/// Round trips that make a floor.
const FLOOR_TRIPS: u32 = 200;

/// How long nodes are left alone before they are read.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// As a shell has it for what SIGINT has ended.
const EXIT_INTERRUPTED: i32 = 130;

fn some() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

impl Bench {
    /// Measures, and reports.
    pub async fn run(self) -> Outcome {
        let measured = async {
            let stop = interrupts();
            match self.what {
                What::Fanout(fanout) => fanout.course().run(stop).await,
                What::Emit(emit) => emit.course().run(stop).await,
                What::Rooms(rooms) => rooms.course().run(stop).await,
                What::Connect(connect) => connect.run(stop).await,
                What::Idle(idle) => idle.run(stop).await,
                What::Raw(raw) => raw.run(stop).await,
            }
        };
        LocalSet::new().run_until(Box::pin(measured)).await
    }
}

/// The first Ctrl-C asks for the report, a second for the end.
fn interrupts() -> CancellationToken {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    spawn_local(async move {
        let _ = tokio::signal::ctrl_c().await;
        asked.cancel();
        let _ = tokio::signal::ctrl_c().await;
        process::exit(EXIT_INTERRUPTED);
    });
    stop
}

fn room(wanted: Option<String>) -> String {
    wanted.unwrap_or_else(|| format!("/unisono-bench/{:08x}", rand::random::<u32>()))
}

// === messages ===

impl Fanout {
    fn course(self) -> Course {
        Course {
            name: "fanout",
            rooms: vec![room(self.place.room)],
            members: self.sockets,
            load: self.load,
            window: 16,
            raw: !self.place.no_raw,
            reached: self.reached,
        }
    }
}

impl Emit {
    fn course(self) -> Course {
        let room = room(self.place.room);
        Course {
            name: "emit",
            rooms: vec![room; self.sockets as usize],
            members: 1,
            load: self.load,
            window: 1,
            raw: !self.place.no_raw,
            reached: self.reached,
        }
    }
}

impl Rooms {
    fn course(self) -> Course {
        let room = room(self.place.room);
        Course {
            name: "rooms",
            rooms: (0..self.rooms).map(|i| format!("{room}/{i}")).collect(),
            members: self.members,
            load: self.load,
            window: 16,
            raw: !self.place.no_raw,
            reached: self.reached,
        }
    }
}

impl Course {
    async fn run(self, stop: CancellationToken) -> Outcome {
        let emits = self.name == "emit";
        let sockets = self.rooms.len() as u64 * u64::from(self.members);
        let window = self.load.window(self.window);
        want_files(sockets + u64::from(window.unwrap_or(SEEN_MIN)) + OTHER_FILES)?;
        let nodes = Rc::new(self.reached.reach().await?);
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let members = run.join(&self.rooms, self.members).await?;

        let floor = match emits && self.raw {
            true => Some(floor(&nodes, &stop).await?),
            false => None,
        };
        let targets = match emits {
            true => Targets::Sockets(
                members
                    .iter()
                    .map(|member| (member.id, member.node))
                    .collect(),
            ),
            false => Targets::Rooms(self.rooms),
        };
        let before = nodes.read().await;
        let own = run.send(&self.load, targets, window.unwrap_or(1)).await;
        let after = nodes.read().await;
        let interrupted = stop.is_cancelled();
        let (tally, closed) = run.end().await;

        let mut report = Report::of(self.name);
        report.value("loop", if window.is_some() { "closed" } else { "open" });
        shape(&mut report, members.len() as u64, &nodes);
        report.value("bytes", self.load.bytes);
        report.tally(&tally);
        if let Some(floor) = &floor {
            report.latency("health", floor);
        }
        let bare = match self.raw && !emits && !interrupted {
            true => {
                let writing = Writing::like(sockets, self.load.bytes, window.unwrap_or(1));
                Some(bare::write(writing, &run.buffer, &stop).await?)
            }
            false => None,
        };
        let cpu = spent(before.as_ref(), after.as_ref());
        report.cost(&Cost {
            of: "delivery",
            steps: tally.delivered,
            nodes: cpu,
            bare,
        });
        if let Some(floor) = floor.filter(|floor| !floor.is_empty() && !tally.answer.is_empty()) {
            let median = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.5) as f64;
            let ratio = median(&tally.answer) / median(&floor);
            report.figure("ratio", round(ratio), format!("{ratio:.2}"));
            report.note("the ratio is that of the medians of answer and health, a request that does nothing");
        }
        report.own(own.cpu, own.time);
        report.note(format!("the loop is {}", self.load.describe(self.window)));
        if let Some(bare) = bare {
            about_raw(&mut report, &bare, sockets);
        }
        about_nodes(&mut report, &nodes, cpu);
        if let Some(why) = &closed {
            report.note(format!("ended early: {why}"));
        } else if interrupted {
            report.note("interrupted: the figures so far");
        }
        report.value("interrupted", interrupted && closed.is_none());
        report.print(nodes.json)?;
        Ok(Done::all(closed.is_none() && tally.whole()))
    }
}

/// What an answer takes at least: a request that asks for nothing, through the same client.
async fn floor(nodes: &Nodes, stop: &CancellationToken) -> Result<Histogram<u64>, Failure> {
    let mut floor = histogram();
    for trip in 0..FLOOR_TRIPS {
        if stop.is_cancelled() {
            break;
        }
        let begin = Instant::now();
        let api = &nodes.apis[trip as usize % nodes.apis.len()];
        api.get_any("/health/live", &[]).await?;
        record(&mut floor, begin.elapsed());
    }
    Ok(floor)
}

fn shape(report: &mut Report, sockets: u64, nodes: &Nodes) {
    let count = nodes.apis.len();
    let plural = if count == 1 { "" } else { "s" };
    report.figure(
        "sockets",
        sockets,
        format!("{sockets} on {count} node{plural}"),
    );
    report.value("nodes", count);
}

fn about_nodes(report: &mut Report, nodes: &Nodes, cpu: Option<Duration>) {
    if cpu.is_none() {
        report.note(NO_CPU);
    } else if nodes.cluster > nodes.apis.len() {
        report.note(format!(
            "the cluster has {} nodes, and the CPU is that of {}: name the others with --url",
            nodes.cluster,
            nodes.apis.len()
        ));
    }
}

fn about_raw(report: &mut Report, bare: &Spent, sockets: u64) {
    let used = Writing::sockets(sockets);
    report.note(format!(
        "raw is a bare loop of {} writes to {used} connections on this machine: {:.0} in a second",
        bare.steps,
        bare.rate()
    ));
}

impl Writing {
    /// As many sockets and bytes as messages go to.
    fn like(sockets: u64, bytes: usize, window: u32) -> Self {
        let sockets = Self::sockets(sockets);
        Self {
            sockets,
            bytes: frames::wire_bytes(bytes),
            rounds: (RAW_WRITES / u64::from(sockets)).max(10),
            window,
        }
    }

    /// Both ends are files of this process: there may be fewer connections than sockets.
    fn sockets(wanted: u64) -> u32 {
        let files = 2 * wanted + OTHER_FILES;
        let limit = rlimit::increase_nofile_limit(files).unwrap_or(0);
        let sockets = wanted.min(limit.saturating_sub(OTHER_FILES) / 2).max(1);
        u32::try_from(sockets).unwrap_or(u32::MAX)
    }
}

// === handshakes ===

/// Handshakes that were made.
struct Handshakes {
    made: u64,
    failed: u64,
    first_failure: Option<String>,
    latency: Histogram<u64>,
    own: Own,
}

impl Connect {
    async fn run(self, stop: CancellationToken) -> Outcome {
        want_files(u64::from(self.sockets) + OTHER_FILES)?;
        let nodes = Rc::new(self.reached.reach().await?);
        let room = room(self.place.room.clone());
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let before = nodes.read().await;
        let made = shake_hands(
            &run,
            &nodes.entrances,
            &room,
            self.sockets,
            self.concurrency,
        )
        .await;
        sleep(SETTLE_TIME).await;
        let after = nodes.read().await;
        let interrupted = stop.is_cancelled();
        let (_, closed) = run.end().await;

        let bare = match self.place.no_raw || interrupted {
            true => None,
            false => Some(self.bare(&nodes).await?),
        };
        let mut report = Report::of("connect");
        shape(&mut report, made.made, &nodes);
        report.count("failed", made.failed);
        report.value("seconds", round(made.own.time.as_secs_f64()));
        let rate = made.rate();
        report.figure("handshakes_per_second", round(rate), format!("{rate:.0}"));
        if let Some((bare, _)) = &bare {
            let rate = bare.rate();
            report.figure(
                "raw_handshakes_per_second",
                round(rate),
                format!("{rate:.0}"),
            );
        }
        report.latency("handshake", &made.latency);
        if let Some((bare, _)) = &bare {
            report.latency("raw handshake", &bare.latency);
        }
        let cpu = spent(before.as_ref(), after.as_ref());
        report.cost(&Cost {
            of: "handshake",
            steps: made.made,
            nodes: cpu,
            bare: bare.map(|(_, spent)| spent),
        });
        report.own(made.own.cpu, made.own.time);
        about_nodes(&mut report, &nodes, cpu);
        if let Some(why) = &made.first_failure {
            report.note(format!("{} handshakes failed: {why}", made.failed));
        } else if let Some(why) = &closed {
            report.note(why);
        } else if interrupted {
            report.note("interrupted: the figures so far");
        }
        report.value("interrupted", interrupted && closed.is_none());
        report.print(nodes.json)?;
        let whole = made.failed == 0 && made.made > 0 && closed.is_none();
        Ok(Done::all(whole))
    }

    /// The same, against a loop that accepts and answers.
    async fn bare(&self, nodes: &Rc<Nodes>) -> anyhow::Result<(Handshakes, Spent)> {
        let sockets = Writing::sockets(u64::from(self.sockets));
        let (address, spent) = bare::accept(sockets)?;
        let run = Run::new(Rc::clone(nodes), CancellationToken::new());
        let entrance = [Entrance::bare(address, nodes.timeout)?];
        let made = shake_hands(&run, &entrance, "/", sockets, self.concurrency).await;
        anyhow::ensure!(made.failed == 0, "the bare loop cannot be reached");
        let spent = spent.await??;
        Ok((made, spent))
    }
}

async fn shake_hands(
    run: &Rc<Run>,
    entrances: &[Entrance],
    room: &str,
    sockets: u32,
    concurrency: u32,
) -> Handshakes {
    let mut made = Handshakes {
        made: 0,
        failed: 0,
        first_failure: None,
        latency: histogram(),
        own: Own {
            cpu: Duration::ZERO,
            time: Duration::ZERO,
        },
    };
    let bar = progress("handshakes", u64::from(sockets));
    let (begin, cpu) = (Instant::now(), bare::thread_cpu());
    let handshakes = (0..sockets as usize).map(|i| async move {
        let begin = Instant::now();
        let opened = entrances[i % entrances.len()].open(room).await;
        (opened, begin.elapsed())
    });
    let mut handshakes = stream::iter(handshakes).buffer_unordered(concurrency as usize);
    loop {
        let next = tokio::select! {
            next = handshakes.next() => next,
            () = run.stop.cancelled() => None,
        };
        match next {
            None => break,
            Some((Ok(socket), latency)) => {
                made.made += 1;
                record(&mut made.latency, latency);
                run.keep(socket, 0);
            }
            Some((Err(failure), _)) => {
                made.failed += 1;
                if let Failure::Failed(why) | Failure::Usage(why) = failure {
                    made.first_failure.get_or_insert(why);
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    made.own = Own {
        cpu: bare::thread_cpu().saturating_sub(cpu),
        time: begin.elapsed(),
    };
    made
}

impl Handshakes {
    fn rate(&self) -> f64 {
        self.made as f64 / self.own.time.as_secs_f64().max(1e-9)
    }
}

// === sockets that do nothing ===

impl Idle {
    async fn run(self, stop: CancellationToken) -> Outcome {
        want_files(u64::from(self.sockets) + OTHER_FILES)?;
        let nodes = Rc::new(self.reached.reach().await?);
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let before = reading(&nodes).await?;
        let members = run.join(&[room(self.room)], self.sockets).await?;
        sleep(SETTLE_TIME).await;
        let opened = reading(&nodes).await?;
        let begin = Instant::now();
        tokio::select! {
            () = hold(self.duration) => {}
            () = stop.cancelled() => {}
        }
        let held = begin.elapsed();
        let after = reading(&nodes).await?;
        let interrupted = stop.is_cancelled();
        let (_, closed) = run.end().await;

        let mut report = Report::of("idle");
        let sockets = members.len() as f64;
        shape(&mut report, members.len() as u64, &nodes);
        report.value("seconds", round(held.as_secs_f64()));
        let more = (opened.sockets - before.sockets) as i64;
        report.figure("node_sockets_more", more, more.to_string());
        let each = |bytes: f64| bytes / sockets.max(1.0);
        let kib = each(opened.resident_bytes - before.resident_bytes) / 1024.0;
        report.figure("node_kib_per_socket", round(kib), format!("{kib:.2}"));
        match spent(Some(&opened), Some(&after)) {
            Some(cpu) => {
                report.doubt(cpu);
                let us = each(cpu.as_secs_f64() * 1e6) / held.as_secs_f64().max(1e-9);
                report.figure(
                    "node_cpu_us_per_socket_second",
                    round(us),
                    format!("{us:.2}"),
                );
            }
            None => report.note(NO_CPU),
        }
        report.note("memory is what the nodes' processes have more of; what was free in them before is not seen");
        if let Some(why) = &closed {
            report.note(format!("ended early: {why}"));
        } else if interrupted {
            report.note("interrupted: the figures so far");
        }
        report.value("interrupted", interrupted && closed.is_none());
        report.print(nodes.json)?;
        Ok(Done::all(closed.is_none()))
    }
}

async fn reading(nodes: &Nodes) -> Result<Reading, Failure> {
    let read = nodes.read().await;
    read.ok_or_else(|| {
        Failure::Failed(
            "/metrics of the nodes is not at --url: say with --metrics-url where it is".to_owned(),
        )
    })
}

async fn hold(time: Duration) {
    let bar = progress("holding", time.as_secs());
    for _ in 0..time.as_secs() {
        sleep(Duration::from_secs(1)).await;
        bar.inc(1);
    }
    sleep(Duration::from_nanos(u64::from(time.subsec_nanos()))).await;
    bar.finish_and_clear();
}

// === the bare loop alone ===

impl Raw {
    async fn run(self, stop: CancellationToken) -> Outcome {
        want_files(2 * u64::from(self.sockets) + OTHER_FILES)?;
        let mut writing = Writing::like(u64::from(self.sockets), self.bytes, self.window);
        writing.rounds = self.messages.unwrap_or(writing.rounds);
        let buffer = Rc::new(RefCell::new(vec![0; 64 * 1024]));
        let spent = bare::write(writing, &buffer, &stop).await?;
        let mut report = Report::of("raw");
        report.count("sockets", u64::from(writing.sockets));
        report.value("bytes", self.bytes);
        report.count("writes", spent.steps);
        let (us, rate) = (spent.cpu_us(), spent.rate());
        report.figure("cpu_us_per_write", round(us), format!("{us:.2}"));
        report.figure("writes_per_second", round(rate), format!("{rate:.0}"));
        report.print(self.json)?;
        Ok(Done::All)
    }
}
