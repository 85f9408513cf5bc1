//! Sends numbered messages, in a closed loop or at a rate, to sockets that take note of what comes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use proto::SocketId;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::bare::Own;
use super::message::{Filler, STAMP_BYTES, Stamp};
use super::nodes::Nodes;
use super::publisher::{Publisher, Talker};
use super::socket::{Buffer, Incoming, Socket};
use super::tally::{SEEN_MIN, Seen, Tally};
use crate::cli::outcome::Failure;

/// How much is sent, and when.
#[derive(Args, Clone)]
pub struct Load {
    /// How long to send
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION",
          conflicts_with = "messages")]
    pub duration: Duration,
    /// How many messages to send, in place of a time
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// A closed loop: messages in flight, from the first that has not reached everybody on [default: 16; emit: 1]
    #[arg(long, value_name = "N", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=SEEN_MIN as i64))]
    window: Option<u32>,
    /// An open loop: messages in a second, whatever becomes of them; latencies are from the time at which one was due
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,
    /// Bytes of text in a message
    #[arg(long, default_value_t = 128, value_name = "N", value_parser = bytes)]
    pub bytes: usize,
}

/// A socket that listens, and what it is to the numbers.
pub struct Member {
    pub target: u64,
    /// Which node it is on, by its place in the list.
    pub node: usize,
    pub id: SocketId,
}

/// To whom the numbers go in turn.
pub enum Targets {
    /// With who publishes to them.
    Rooms(Vec<String>, Publisher),
    /// With the node of each.
    Sockets(Vec<(SocketId, usize)>),
}

/// All that the tasks of a run share.
pub struct Run {
    pub nodes: Rc<Nodes>,
    /// What every socket reads into.
    pub buffer: RefCell<Buffer>,
    /// Ctrl-C, or a socket that the node has closed.
    pub stop: CancellationToken,
    tally: RefCell<Tally>,
    /// Pings that have come to all sockets.
    pub pings: Cell<u64>,
    begin: Cell<Instant>,
    /// Something has moved.
    moved: Notify,
    unanswered: Cell<u32>,
    closing: CancellationToken,
    closed: RefCell<Option<String>>,
    tasks: RefCell<JoinSet<()>>,
}

/// Handshakes at one time, where they are not what is measured.
const OPENING: usize = 64;

/// Messages at a rate that no node has answered yet: with more, those that are due wait, and are late.
const UNANSWERED_MAX: u32 = SEEN_MIN;

/// Often enough to see the end.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What is waited for after Ctrl-C.
const INTERRUPTED_TIMEOUT: Duration = Duration::from_secs(1);

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        _ => Err("it is a number from 0.001 to 1000000".to_owned()),
    }
}

fn bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if (STAMP_BYTES..=1 << 20).contains(&bytes) => Ok(bytes),
        _ => Err(format!("it is a number from {STAMP_BYTES} to 1048576")),
    }
}

impl Load {
    /// Messages in flight; none at a rate.
    pub fn window(&self, default: u32) -> Option<u32> {
        match self.rate {
            None => Some(self.window.unwrap_or(default)),
            Some(_) => None,
        }
    }

    /// What the latencies are from.
    pub fn describe(&self, default: u32) -> String {
        match (self.rate, self.window(default)) {
            (Some(rate), _) => {
                format!("open, {rate} in a second: latencies are from when a message was due")
            }
            (None, window) => format!(
                "closed, {} in flight: latencies are from when a message was sent",
                window.unwrap_or(default)
            ),
        }
    }
}

/// How far something is, on a terminal's standard error and nowhere else.
pub fn progress(what: &'static str, length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent} % ");
    bar.set_style(style.expect("the template is fine"));
    bar.with_message(what)
}

impl Run {
    /// Nothing yet.
    pub fn new(nodes: Rc<Nodes>, stop: CancellationToken) -> Rc<Self> {
        Rc::new(Self {
            nodes,
            buffer: RefCell::default(),
            stop,
            tally: RefCell::new(Tally::new(
                Stamp {
                    run: rand::random(),
                },
                1,
                1,
            )),
            pings: Cell::new(0),
            begin: Cell::new(Instant::now()),
            moved: Notify::new(),
            unanswered: Cell::new(0),
            closing: CancellationToken::new(),
            closed: RefCell::new(None),
            tasks: RefCell::new(JoinSet::new()),
        })
    }

    /// Opens a socket for each pair of a room and its members, and has all of them listen. What Ctrl-C leaves out is
    /// not there.
    pub async fn join(
        self: &Rc<Self>,
        rooms: &[String],
        members: u32,
    ) -> Result<Vec<Member>, Failure> {
        let targets = rooms.len() as u64;
        *self.tally.borrow_mut() = Tally::new(
            Stamp {
                run: rand::random(),
            },
            targets,
            members,
        );
        let nodes = self.nodes.entrances.len();
        let places = (0..u64::from(members)).flat_map(|member| {
            // Members of one room are on all nodes, and so are the first members of all rooms.
            (0..targets).map(move |target| (target, (member + target) as usize % nodes))
        });
        let bar = progress("opening sockets", targets * u64::from(members));
        let opened = stream::iter(places).map(|(target, node)| async move {
            let entrance = &self.nodes.entrances[node];
            let (socket, id) = entrance.join(&rooms[target as usize], &self.buffer).await?;
            Ok::<_, Failure>((socket, Member { target, node, id }))
        });
        let mut opened = opened.buffer_unordered(OPENING);
        let mut joined = Vec::new();
        loop {
            let next = tokio::select! {
                next = opened.next() => next,
                () = self.stop.cancelled() => None,
            };
            let Some(next) = next else { break };
            let (socket, member) = next?;
            bar.inc(1);
            self.keep(socket, member.target);
            joined.push(member);
        }
        bar.finish_and_clear();
        // As they were meant to be, not as they came.
        joined.sort_by_key(|member| (member.target, member.node));
        Ok(joined)
    }

    /// A socket whose numbers nobody counts, kept until the end.
    pub fn keep(self: &Rc<Self>, socket: Socket, target: u64) {
        let task = Rc::clone(self).listening(socket, target);
        self.tasks.borrow_mut().spawn_local(task);
    }

    /// A socket that publishes, kept until the end.
    pub fn keep_talking(self: &Rc<Self>, talker: Rc<Talker>, socket: Socket) {
        let run = Rc::clone(self);
        self.tasks.borrow_mut().spawn_local(async move {
            if let Some(why) = talker.talk(socket, &run, &run.closing).await {
                run.break_off(why);
            }
        });
    }

    async fn listening(self: Rc<Self>, mut socket: Socket, target: u64) {
        let mut seen = Seen::default();
        let closing = self.closing.clone();
        let mut closing = std::pin::pin!(closing.cancelled());
        let why = loop {
            let mut close = None;
            let mut now = None;
            let read = socket.read(&self.buffer, |incoming| match incoming {
                Incoming::Text(text) => {
                    // What comes in one piece comes at one time.
                    let now = *now.get_or_insert_with(|| self.begin.get().elapsed());
                    let mut tally = self.tally.borrow_mut();
                    let before = tally.flight.len();
                    tally.arrive(&mut seen, target, text, now);
                    if tally.flight.len() < before {
                        self.moved.notify_one();
                    }
                }
                Incoming::Close(why) => close = Some(why),
                Incoming::Ping => self.pings.update(|count| count + 1),
            });
            let read = tokio::select! {
                biased;
                read = read => read,
                () = &mut closing => return socket.close().await,
            };
            match (read, close) {
                (Ok(Some(bytes)), None) => self.tally.borrow_mut().wire_bytes += bytes as u64,
                (_, Some(close)) => break format!("the node closed a socket: {close}"),
                (Ok(None), None) => break "a connection ended".to_owned(),
                (Err(error), None) => break format!("a socket broke: {error:#}"),
            }
        };
        self.break_off(why);
    }

    fn break_off(&self, why: String) {
        self.closed.borrow_mut().get_or_insert(why);
        self.stop.cancel();
        self.moved.notify_one();
    }

    /// Sends as the load says and waits for what is due.
    pub async fn send(self: &Rc<Self>, load: &Load, targets: Targets, window: u32) -> Own {
        let targets = Rc::new(targets);
        let filler = Filler::of_message(load.bytes);
        let own = Own::begin();
        let begin = Instant::now();
        self.begin.set(begin);
        // What greeted the sockets is no delivery.
        self.tally.borrow_mut().wire_bytes = 0;
        let length = match load.messages {
            Some(messages) => messages,
            None => load.duration.as_millis() as u64,
        };
        let bar = progress("sending", length);
        let at_one_time = targets.at_one_time();
        let mut due = load.rate.map(|rate| pace(begin, rate, at_one_time));
        let mut number = 0;
        loop {
            let done = match load.messages {
                Some(messages) => number >= messages,
                None => begin.elapsed() >= load.duration,
            };
            if done || self.stop.is_cancelled() {
                break;
            }
            let may = match &mut due {
                None => (self.tally.borrow().flight.len() as u32) < window,
                Some(due) => {
                    number < *due.borrow_and_update() && self.unanswered.get() < UNANSWERED_MAX
                }
            };
            if may {
                let at = match load.rate {
                    None => begin.elapsed(),
                    Some(rate) => {
                        let before = number / at_one_time * at_one_time;
                        Duration::from_secs_f64(before as f64 / rate)
                    }
                };
                self.send_one(number, at, load, &filler, &targets);
                number += 1;
                bar.set_position(match load.messages {
                    Some(_) => number,
                    None => begin.elapsed().as_millis() as u64,
                });
                continue;
            }
            let paced = async {
                match &mut due {
                    Some(due) => drop(due.changed().await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.moved.notified() => {}
                () = paced => {}
                () = self.stop.cancelled() => {}
                () = sleep(LOOK_INTERVAL) => self.give_up(begin),
            }
        }
        bar.finish_and_clear();
        self.arrived(begin).await;
        own.end()
    }

    fn give_up(&self, begin: Instant) {
        if let Some(before) = begin.elapsed().checked_sub(self.nodes.timeout) {
            self.tally.borrow_mut().flight.give_up(before);
        }
    }

    fn send_one(
        self: &Rc<Self>,
        number: u64,
        at: Duration,
        load: &Load,
        filler: &Filler,
        targets: &Rc<Targets>,
    ) {
        let text = {
            let mut tally = self.tally.borrow_mut();
            let members = tally.members;
            if load.rate.is_none() {
                tally.flight.leave(members, at);
            }
            tally.stamp.text(number, at, filler)
        };
        self.unanswered.update(|count| count + 1);
        let (run, targets) = (Rc::clone(self), Rc::clone(targets));
        spawn_local(async move {
            let answer = targets.send(number, text, &run.nodes).await;
            let now = run.begin.get().elapsed();
            let answer = answer.map_err(|failure| match failure {
                Failure::Usage(why) | Failure::Failed(why) => why,
                Failure::NobodyReads => String::new(),
            });
            run.tally.borrow_mut().answered(number, at, now, answer);
            run.unanswered.update(|count| count - 1);
            run.moved.notify_one();
        });
    }

    /// Waits for what is due, for as long as any comes.
    async fn arrived(&self, begin: Instant) {
        loop {
            let (lost, last) = {
                let tally = self.tally.borrow();
                (tally.lost(), tally.last)
            };
            if self.unanswered.get() == 0 && lost == 0 {
                return;
            }
            let patience = match self.stop.is_cancelled() {
                true => INTERRUPTED_TIMEOUT,
                false => self.nodes.timeout,
            };
            if begin.elapsed().saturating_sub(last) > patience {
                return;
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Closes all sockets, and takes the accounts.
    pub async fn end(&self) -> (Tally, Option<String>) {
        self.closing.cancel();
        let mut tasks = self.tasks.take();
        let all = async { while tasks.join_next().await.is_some() {} };
        let _ = timeout(INTERRUPTED_TIMEOUT, all).await;
        let tally = self.tally.replace(Tally::new(Stamp { run: 0 }, 1, 1));
        (tally, self.closed.take())
    }
}

impl Targets {
    /// Messages that are due at one time.
    fn at_one_time(&self) -> u64 {
        match self {
            Self::Rooms(_, publisher) => publisher.at_one_time(),
            Self::Sockets(_) => 1,
        }
    }

    async fn send(&self, number: u64, text: String, nodes: &Nodes) -> Result<(), Failure> {
        match self {
            Self::Rooms(rooms, publisher) => {
                let nth = (number % rooms.len() as u64) as usize;
                let room = (nth, rooms[nth].as_str());
                publisher.publish(number, room, text, nodes).await
            }
            Self::Sockets(sockets) => {
                let (id, node) = &sockets[(number % sockets.len() as u64) as usize];
                // Another node than that of the socket, where there is one.
                let api = &nodes.apis[(node + 1) % nodes.apis.len()];
                let answer = api
                    .post("/api/v1/emit", &json!({ "to": id, "text": text }))
                    .await?;
                let status = &answer["results"][id.to_string()];
                match status == "delivered" {
                    true => Ok(()),
                    false => Err(Failure::Failed(format!("the node answers {status}"))),
                }
            }
        }
    }
}

/// How many messages are due by now, so many at one time, told by a thread of its own: tokio's clock goes by
/// milliseconds.
fn pace(begin: Instant, rate: f64, at_one_time: u64) -> watch::Receiver<u64> {
    let (tell, due) = watch::channel(0);
    thread::spawn(move || {
        loop {
            let gone = (begin.elapsed().as_secs_f64() * rate) as u64;
            let count = (gone / at_one_time + 1) * at_one_time;
            if tell.send(count).is_err() {
                return;
            }
            let next = begin + Duration::from_secs_f64(count as f64 / rate);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    });
    due
}
