//! Messages to sockets: one room, single sockets, many rooms.

use std::rc::Rc;

use bytes::Bytes;
use clap::Args;
use cluster::RoundTrip;
use hdrhistogram::Histogram;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::bare::{self, OTHER_FILES, Spent, Writing};
use super::frames::wire_bytes;
use super::load::{Load, Run, Targets};
use super::nodes::{Nodes, Reached, busiest, spent, want_files};
use super::occupied::Occupied;
use super::publisher::{By, Publisher};
use super::report::{Cost, Report, round};
use super::tally::{SEEN_MIN, Tally, histogram, record};
use super::{Place, some};
use crate::cli::outcome::{Done, Failure, Outcome};

#[derive(Args)]
pub struct Fanout {
    /// Sockets in the room
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// Who publishes
    #[arg(long, value_enum, default_value_t = By::Http)]
    by: By,
    #[command(flatten)]
    course: Course,
}

#[derive(Args)]
pub struct Emit {
    /// Sockets, which get messages in turn
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = some())]
    sockets: u32,
    /// Measure the bare round trip of a request over this NATS server, too, and what an answer takes beyond it
    #[arg(long, value_name = "URL", conflicts_with = "no_raw")]
    nats: Option<String>,
    #[command(flatten)]
    course: Course,
}

#[derive(Args)]
pub struct Rooms {
    /// How many rooms
    #[arg(long, default_value_t = 100, value_name = "R", value_parser = some())]
    rooms: u32,
    /// Sockets in each of them
    #[arg(long, default_value_t = 10, value_name = "M", value_parser = some())]
    members: u32,
    /// Who publishes
    #[arg(long, value_enum, default_value_t = By::Http)]
    by: By,
    /// How many sockets publish, with --by socket: each to rooms of its own, on all nodes in turn, and with --rate at one
    /// time
    #[arg(long, value_name = "N", value_parser = some())]
    publishers: Option<u32>,
    /// Publish nothing: let a few sockets join all rooms, leave those alone for --duration, and report the memory of each
    #[arg(long, conflicts_with_all = ["by", "publishers", "messages", "window", "rate", "bytes", "no_raw"])]
    idle: bool,
    #[command(flatten)]
    course: Course,
}

/// What the three have in common.
#[derive(Args)]
struct Course {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    reached: Reached,
}

/// Who gets the messages, and what they are held against.
struct Shape {
    name: &'static str,
    rooms: Vec<String>,
    members: u32,
    /// What is in flight unless it is said.
    window: u32,
    against: Against,
}

enum Against {
    /// For messages to rooms, published by so many sockets: a bare loop that writes as much.
    Loop { publishers: u32 },
    /// For messages to sockets: requests that do nothing, to the nodes and over that NATS server.
    Requests { nats: Option<String> },
}

/// What an answer takes at least, measured before and after, since machines have their moods.
struct Floor {
    /// A request to a node that asks for nothing, through the same client.
    health: Histogram<u64>,
    /// A request over NATS with as many bytes, and its reply without any.
    nats: Option<Nats>,
}

struct Nats {
    url: String,
    trip: RoundTrip,
    payload: Bytes,
    latency: Histogram<u64>,
}

/// Round trips at one time, of each kind.
const FLOOR_TRIPS: usize = 100;

impl Fanout {
    pub async fn run(self, stop: CancellationToken) -> Outcome {
        let shape = Shape {
            name: "fanout",
            rooms: vec![self.course.place.room()],
            members: self.sockets,
            window: 16,
            against: Against::Loop {
                publishers: u32::from(self.by == By::Socket),
            },
        };
        self.course.run(shape, stop).await
    }
}

impl Emit {
    pub async fn run(self, stop: CancellationToken) -> Outcome {
        let shape = Shape {
            name: "emit",
            rooms: vec![self.course.place.room(); self.sockets as usize],
            members: 1,
            window: 1,
            against: Against::Requests { nats: self.nats },
        };
        self.course.run(shape, stop).await
    }
}

impl Rooms {
    /// Sockets that publish.
    fn publishers(&self) -> Result<u32, Failure> {
        let wrong = |why: &str| Err(Failure::Usage(format!("--publishers: {why}")));
        match (self.by, self.publishers) {
            (By::Http, None) => Ok(0),
            (By::Http, Some(_)) => wrong("they are sockets, so give --by socket, too"),
            (By::Socket, Some(sockets)) if sockets > self.rooms => {
                wrong("there are fewer --rooms, and each publishes to rooms of its own")
            }
            (By::Socket, sockets) => Ok(sockets.unwrap_or(1)),
        }
    }

    pub async fn run(self, stop: CancellationToken) -> Outcome {
        let room = self.course.place.room();
        if self.idle {
            let occupied = Occupied {
                room,
                rooms: self.rooms,
                members: self.members,
                duration: self.course.load.duration,
                reached: self.course.reached,
            };
            return occupied.run(stop).await;
        }
        let shape = Shape {
            name: "rooms",
            rooms: (0..self.rooms).map(|i| format!("{room}/{i}")).collect(),
            members: self.members,
            window: 16,
            against: Against::Loop {
                publishers: self.publishers()?,
            },
        };
        self.course.run(shape, stop).await
    }
}

impl Course {
    async fn run(self, shape: Shape, stop: CancellationToken) -> Outcome {
        let Self {
            place,
            load,
            reached,
        } = self;
        let sockets = shape.rooms.len() as u64 * u64::from(shape.members);
        let window = load.window(shape.window);
        let publishers = match shape.against {
            Against::Loop { publishers } => publishers,
            Against::Requests { .. } => 0,
        };
        let waiting = u64::from(window.unwrap_or(SEEN_MIN));
        want_files(sockets + u64::from(publishers) + waiting + OTHER_FILES)?;
        let nodes = Rc::new(reached.reach().await?);
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let members = run.join(&shape.rooms, shape.members).await?;

        let mut floor = None;
        let targets = match shape.against {
            Against::Loop { publishers } => {
                let publisher = Publisher::start(publishers, &run, &shape.rooms).await?;
                Targets::Rooms(shape.rooms, publisher)
            }
            Against::Requests { nats } => {
                if !place.no_raw {
                    floor = Some(Floor::find(&nodes, nats, load.bytes).await?);
                }
                let sockets = members.iter().map(|member| (member.id, member.node));
                Targets::Sockets(sockets.collect())
            }
        };
        let bare = !place.no_raw && matches!(targets, Targets::Rooms(..));
        if let Some(floor) = &mut floor {
            floor.measure(&nodes, &stop).await?;
        }
        let before = nodes.read().await;
        let own = run.send(&load, targets, window.unwrap_or(1)).await;
        let after = nodes.read().await;
        let again = match &mut floor {
            Some(floor) => floor.measure(&nodes, &stop).await,
            None => Ok(()),
        };
        let interrupted = stop.is_cancelled();
        let (tally, closed) = run.end().await;

        let mut report = Report::of(shape.name);
        report.value("loop", if window.is_some() { "closed" } else { "open" });
        report.shape(members.len() as u64, &nodes);
        report.value("bytes", load.bytes);
        report.tally(&tally);
        if let Some(floor) = &floor {
            floor.report(&mut report);
        }
        if let Err(Failure::Failed(why) | Failure::Usage(why)) = again {
            report.note(format!("the floor is that from before the run: {why}"));
        }
        let bare = match bare && !interrupted {
            true => {
                let bytes = tally.wire_bytes_per_delivery();
                let bytes = bytes.map_or(wire_bytes(load.bytes), |bytes| bytes.round() as usize);
                let writing = Writing::like(sockets, bytes, window.unwrap_or(1));
                let spent = report.bare(bare::write(writing, &stop).await);
                spent.map(|spent| (writing, spent))
            }
            false => None,
        };
        let cpu = spent(before.as_ref(), after.as_ref());
        report.cost(&Cost {
            of: "delivery",
            steps: tally.delivered,
            nodes: cpu,
            bare: bare.map(|(_, spent)| spent),
        });
        if let Some(floor) = &floor {
            floor.compare(&tally, &nodes, &mut report);
        }
        report.busiest(busiest(before.as_ref(), after.as_ref()));
        report.own(&own, "delivery", tally.delivered);
        report.note(format!("the loop is {}", load.describe(shape.window)));
        if nodes.wire.window().is_some() {
            about_compressed(&mut report, run.buffer.borrow().inflated.count);
        }
        if let Some((writing, spent)) = &bare {
            about_bare(&mut report, writing, spent);
        }
        report.about_nodes(&nodes, cpu);
        report.ending(closed.as_deref(), interrupted);
        report.print(nodes.json)?;
        Ok(Done::all(closed.is_none() && tally.whole()))
    }
}

impl Floor {
    /// Nothing yet; with connections to the NATS server, where one is named.
    async fn find(nodes: &Nodes, nats: Option<String>, bytes: usize) -> Result<Self, Failure> {
        let nats = match nats {
            None => None,
            Some(url) => {
                let trip = RoundTrip::connect(&url, "unisono bench", nodes.timeout).await;
                Some(Nats {
                    trip: trip.map_err(|error| no_nats(&url, &error))?,
                    url,
                    payload: vec![b'x'; bytes].into(),
                    latency: histogram(),
                })
            }
        };
        Ok(Self {
            health: histogram(),
            nats,
        })
    }

    /// Asks in turns, for as long as nobody stops it.
    async fn measure(&mut self, nodes: &Nodes, stop: &CancellationToken) -> Result<(), Failure> {
        for turn in 0..FLOOR_TRIPS {
            if stop.is_cancelled() {
                break;
            }
            let begin = Instant::now();
            let api = &nodes.apis[turn % nodes.apis.len()];
            api.get_any("/health/live", &[]).await?;
            record(&mut self.health, begin.elapsed());
            if let Some(nats) = &mut self.nats {
                let begin = Instant::now();
                let asked = nats.trip.ask(nats.payload.clone()).await;
                asked.map_err(|error| no_nats(&nats.url, &error))?;
                record(&mut nats.latency, begin.elapsed());
            }
        }
        Ok(())
    }

    fn report(&self, report: &mut Report) {
        report.latency("health", &self.health);
        if let Some(nats) = &self.nats {
            report.latency("nats", &nats.latency);
        }
    }

    /// How much longer an answer took.
    fn compare(&self, tally: &Tally, nodes: &Nodes, report: &mut Report) {
        if self.health.is_empty() || tally.answer.is_empty() {
            return;
        }
        let (answer, health) = (median_us(&tally.answer), median_us(&self.health));
        let ratio = answer / health;
        report.figure("ratio", round(ratio), format!("{ratio:.2}"));
        report.note(
            "the ratio is that of the medians of answer and health, a request that does nothing",
        );
        let Some(nats) = &self.nats else {
            return;
        };
        if nodes.apis.len() < 2 {
            report.note("nothing of this went over NATS: name two nodes with --url");
            return;
        }
        let over = answer - health - median_us(&nats.latency);
        report.figure("over_floor_us", round(over), format!("{over:.0}"));
        report.note(
            "over floor us is what the median of answer is above those of health and nats together",
        );
    }
}

fn no_nats(url: &str, error: &cluster::NatsError) -> Failure {
    Failure::Failed(format!("no round trip over --nats {url}: {error}"))
}

fn median_us(histogram: &Histogram<u64>) -> f64 {
    histogram.value_at_quantile(0.5) as f64 / 1e3
}

fn about_compressed(report: &mut Report, count: u64) {
    report.count("compressed", count);
    if count == 0 {
        report.note(
            "nothing came compressed: messages have less than sockets.deflate_min_bytes, or would not get smaller. Give \
             more --bytes",
        );
    }
}

fn about_bare(report: &mut Report, writing: &Writing, spent: &Spent) {
    report.note(format!(
        "raw is a bare loop of {} writes of {} bytes to {} connections on this machine: {:.0} in a second",
        spent.steps,
        writing.bytes,
        writing.sockets,
        spent.rate()
    ));
}
