//! The nodes, their hosts, and what is done to them.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use proto::envelope::{Act, Answer, Held, Request, Status, Target};
use proto::{Audience, NodeId, Payload, Publication, RoomName, SocketId};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};
use unisono_cluster::{Budget, Call, Cluster, ClusterName, Config, Event, Load, MemoryHub, start};

use crate::crowd::{Crowd, Rank, Socket, Turn};
use crate::figures::Figures;
use crate::meter::{Kind, Meter, Metered};

/// As a node's own defaults have it.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(5);
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Heartbeats of one node in a second.
pub const HEARTBEATS: f64 = 2.0;

/// In steps of this things are done and looked at: that of a node's own clock.
const STEP: Duration = Duration::from_millis(100);

/// Steps without a word of what nodes hold, after which all know of all: each would have asked by the second heartbeat
/// of a node of which it has missed something.
const SILENT_STEPS: u32 = 15;

/// In so many of them all sockets come: five seconds.
const FILL_STEPS: usize = 50;

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Of so many rooms one is watched: its application is told when it is occupied, and when it is vacated.
const WATCHED_OF: usize = 20;

/// Bytes of a publication.
const PAYLOAD_BYTES: usize = 200;

pub struct World {
    hub: MemoryHub,
    nodes: Vec<Node>,
    crowd: Crowd,
    heard: Rc<RefCell<Heard>>,
    /// When the phase began.
    began: Instant,
    /// Copies that the publications of the last phase should have had.
    expected: u64,
    /// What this process had in memory, in steps.
    memory: Vec<(&'static str, u64)>,
    /// Pairs of a node and a watched room that has members there.
    held: usize,
}

struct Node {
    cluster: Cluster,
    meter: Rc<Meter>,
    /// Rooms that are not ready yet.
    pending: Rc<RefCell<HashMap<RoomName, Instant>>>,
    tasks: [JoinHandle<()>; 2],
    up: bool,
    beyond: bool,
}

/// What all hosts together were told.
#[derive(Default)]
struct Heard {
    /// Rooms that are occupied, as applications have been told.
    occupied: HashSet<RoomName>,
    /// How long rooms took to be ready.
    waits: Vec<Duration>,
}

// === impl World ===

impl World {
    /// So many nodes, which come up one after the other within a heartbeat, and sockets that are still to come.
    pub async fn start(nodes: usize, sockets: usize, seed: u64) -> (Self, Vec<Socket>) {
        let (crowd, coming) = Crowd::new(nodes, sockets, seed);
        let mut world = Self {
            hub: MemoryHub::new(1 << 20),
            nodes: Vec::new(),
            crowd,
            heard: Rc::default(),
            began: Instant::now(),
            expected: 0,
            memory: vec![("at the start", resident_bytes())],
            held: 0,
        };
        println!("{}", Figures::HEAD);
        for _ in 0..nodes {
            world.spawn();
            sleep(HEARTBEAT_INTERVAL / nodes as u32).await;
        }
        (world, coming)
    }

    fn spawn(&mut self) {
        let nth = self.nodes.len();
        let config = Config {
            cluster: ClusterName::parse("unisono").unwrap(),
            node: id(nth),
            name: format!("unisono-{nth}"),
            version: "0.1.0".to_owned(),
            started_at_ms: 1_700_000_000_000 + nth as u64,
            alone: false,
            heartbeat_interval: HEARTBEAT_INTERVAL,
            node_timeout: NODE_TIMEOUT,
            bus_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_millis(900),
            room_linger: Duration::from_secs(5),
            lingering_rooms_max: 10_000,
            queue_messages_max: 8_192,
            incoming_bytes_max: 64 << 20,
            pending_max: 65_536,
        };
        let load = Load {
            sockets: 10_000,
            rooms: 5_000,
            draining: false,
        };
        let (cluster, node, events) = start(config, Budget::new(64 << 20), move || load);
        let meter = Rc::new(Meter::default());
        let pending = Rc::default();
        let host = host(events, Rc::clone(&self.heard), Rc::clone(&pending));
        let bus = Metered::new(self.hub.connect(), Rc::clone(&meter));
        self.nodes.push(Node {
            cluster,
            meter,
            pending,
            tasks: [spawn_local(host), spawn_local(node.run(bus, answer))],
            up: true,
            beyond: false,
        });
    }

    /// All sockets come.
    pub async fn fill(&mut self, coming: Vec<Socket>) -> Figures {
        self.memory.push(("with nodes", resident_bytes()));
        self.begin();
        let mut watched = Vec::new();
        for some in coming.chunks(coming.len().div_ceil(FILL_STEPS)) {
            for socket in some {
                if let Some(turn) = self.crowd.join(*socket) {
                    self.want(&turn);
                    watched.extend(is_watched(turn.room).then_some(turn));
                }
            }
            sleep(STEP).await;
        }
        let figures = self.quiet_down("all sockets come, in five seconds").await;
        self.memory.push(("with interest", resident_bytes()));
        // Apart from them, to see what memory the table of these takes.
        self.begin();
        for some in watched.chunks(watched.len().div_ceil(FILL_STEPS)) {
            some.iter().for_each(|turn| self.hold(turn));
            sleep(STEP).await;
        }
        self.quiet_down("what is watched is told, in five").await;
        self.memory.push(("with what is watched", resident_bytes()));
        figures
    }

    /// Lets time pass.
    pub async fn watch(&mut self, name: &'static str, time: Duration) -> Figures {
        self.begin();
        let mut figures = Figures::default();
        sleep(time).await;
        self.count(&mut figures);
        self.end(name, figures, time, time)
    }

    /// Until every node knows who is up, and what they hold; and what was said of rooms is true.
    pub async fn settle(&mut self, name: &'static str) -> Figures {
        let began = self.began;
        let mut figures = Figures::default();
        let (mut until, mut silent) = (began.elapsed(), 0);
        while silent < SILENT_STEPS {
            assert!(began.elapsed() < PATIENCE, "{name}: no end");
            let snapshots = figures.count(Kind::Snapshot);
            self.count(&mut figures);
            let as_it_should_be =
                figures.count(Kind::Snapshot) == snapshots && self.all_know().await;
            if as_it_should_be {
                silent += 1;
            } else {
                silent = 0;
                until = began.elapsed() + STEP;
            }
            sleep(STEP).await;
        }
        self.assert_said_what_is(name);
        self.end(name, figures, began.elapsed(), until)
    }

    /// Until no room waits to be ready, and what was said of rooms is true.
    pub async fn quiet_down(&mut self, name: &'static str) -> Figures {
        let began = self.began;
        let pending = |node: &Node| node.up && !node.pending.borrow().is_empty();
        while self.nodes.iter().any(pending) {
            assert!(began.elapsed() < PATIENCE, "{name}: rooms are not ready");
            sleep(STEP).await;
        }
        self.settle(name).await
    }

    /// Members of rooms publish: one of a thousand sockets in a second; and emits, a tenth of that.
    pub async fn publish_for(&mut self, name: &'static str, time: Duration) -> Figures {
        self.begin();
        self.expected = 0;
        let began = Instant::now();
        let text = "x".repeat(PAYLOAD_BYTES);
        while began.elapsed() < time {
            for _ in 0..self.crowd.sockets().div_ceil(10_000) {
                let Socket { node, room } = self.crowd.any();
                self.expected += self.crowd.nodes_with(room) as u64 - 1;
                let to = Audience::Room(self.crowd.name(room).clone());
                let payload = Payload::Text(text.clone().into());
                self.nodes[node]
                    .cluster
                    .publish(Publication::new(to, payload), None);
            }
            for _ in 0..self.crowd.sockets().div_ceil(100_000) {
                self.emit(&text);
            }
            sleep(STEP).await;
        }
        let mut figures = Figures::default();
        self.count(&mut figures);
        self.end(name, figures, time, time)
    }

    fn emit(&mut self, text: &str) {
        let from = self.crowd.any().node;
        let to = self.crowd.any().node;
        if from == to {
            return;
        }
        let socket = SocketId::new(id(to), 0, 1);
        let emit = Act::Emit {
            payload: Payload::Text(text.to_owned().into()),
            from: None,
            trace: None,
        };
        let request = Request::Act(Target::Sockets(vec![socket]), emit);
        let answer = self.nodes[from].cluster.call(id(to), request, None);
        spawn_local(async move {
            assert_eq!(
                answer.await,
                Ok(Answer::Statuses(vec![(socket, Status::Delivered)]))
            );
        });
    }

    /// How many copies of publications should have arrived in the last phase.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// One of six hundred sockets leaves in a second, and another one comes: they stay for ten minutes.
    pub async fn churn_for(&mut self, name: &'static str, time: Duration) -> Figures {
        self.begin();
        let began = Instant::now();
        let step = STEP / 10;
        let mut owed = 0.0;
        while began.elapsed() < time {
            owed += self.crowd.sockets() as f64 / 600.0 * step.as_secs_f64();
            while owed >= 1.0 {
                owed -= 1.0;
                let (Socket { room, .. }, turn) = self.crowd.leave();
                self.tell(turn);
                let node = self.some_node();
                self.join(Socket { node, room });
            }
            sleep(step).await;
        }
        let mut figures = Figures::default();
        self.count(&mut figures);
        self.end(name, figures, time, time)
    }

    /// A node dies, which is not the eldest, and gives back its sockets.
    pub async fn kill(&mut self) -> Vec<Socket> {
        let nth = 1 + self.crowd.draw(self.nodes.len() - 1);
        self.kill_nth(nth).await
    }

    pub async fn kill_eldest(&mut self) {
        self.kill_nth(0).await;
    }

    async fn kill_nth(&mut self, nth: usize) -> Vec<Socket> {
        self.begin();
        for task in &mut self.nodes[nth].tasks {
            task.abort();
            let _ = task.await;
        }
        self.nodes[nth].up = false;
        let watched = self.crowd.rooms_of(nth).filter(|room| is_watched(*room));
        self.held -= watched.count();
        self.crowd.lose(nth)
    }

    /// They come to the other nodes, over some time.
    pub async fn come_back(&mut self, sockets: Vec<Socket>, time: Duration) {
        self.begin();
        let steps = (time.as_millis() / STEP.as_millis()) as usize;
        for some in sockets.chunks(sockets.len().div_ceil(steps)) {
            for Socket { room, .. } in some {
                let node = self.some_node();
                self.join(Socket { node, room: *room });
            }
            sleep(STEP).await;
        }
    }

    /// A node more, which has no sockets yet.
    pub fn add(&mut self) {
        self.begin();
        self.crowd.add_node();
        self.spawn();
    }

    /// Every other node loses the rest.
    pub fn part(&mut self) {
        self.begin();
        self.hub.part(|nth| nth % 2 == 1);
        for (nth, node) in self.nodes.iter_mut().enumerate() {
            node.beyond = nth % 2 == 1;
        }
    }

    pub fn heal(&mut self) {
        self.begin();
        self.hub.part(|_| false);
        for node in &mut self.nodes {
            node.beyond = false;
        }
    }

    /// One of so many sockets leaves.
    pub async fn leave_at_once(&mut self, one_of: usize) -> Vec<Socket> {
        self.begin();
        let mut gone = Vec::new();
        for _ in 0..self.crowd.sockets() / one_of {
            let (socket, turn) = self.crowd.leave();
            self.tell(turn);
            gone.push(socket);
        }
        // Rooms linger.
        sleep(Duration::from_secs(6)).await;
        gone
    }

    pub fn join_at_once(&mut self, sockets: Vec<Socket>) {
        self.begin();
        for socket in sockets {
            self.join(socket);
        }
    }

    /// Messages that it takes a node to tell all that it holds, where that is most.
    pub fn snapshot_parts(&self) -> f64 {
        let watched = |nth| {
            self.crowd
                .rooms_of(nth)
                .filter(|room| is_watched(*room))
                .count()
        };
        let most = self.up().into_iter().map(watched).max();
        most.unwrap_or(0).div_ceil(1_000).max(1) as f64
    }

    fn join(&mut self, socket: Socket) {
        let turn = self.crowd.join(socket);
        self.tell(turn);
    }

    /// As a host tells its node.
    fn tell(&mut self, turn: Option<Turn>) {
        let Some(turn) = turn else { return };
        if is_watched(turn.room) {
            self.hold(&turn);
        }
        self.want(&turn);
    }

    fn want(&self, turn: &Turn) {
        let room = self.crowd.name(turn.room).clone();
        let node = &self.nodes[turn.node];
        if turn.begun {
            node.pending
                .borrow_mut()
                .insert(room.clone(), Instant::now());
            node.cluster.want(room);
        } else {
            node.pending.borrow_mut().remove(&room);
            node.cluster.release(room);
        }
    }

    fn hold(&mut self, turn: &Turn) {
        let room = self.crowd.name(turn.room).clone();
        self.held = if turn.begun {
            self.held + 1
        } else {
            self.held - 1
        };
        self.nodes[turn.node]
            .cluster
            .hold(Held::Room(room), turn.begun);
    }

    fn up(&self) -> Vec<usize> {
        let nodes = 0..self.nodes.len();
        nodes.filter(|nth| self.nodes[*nth].up).collect()
    }

    fn some_node(&mut self) -> usize {
        let up = self.up();
        up[self.crowd.draw(up.len())]
    }

    /// Whether each node knows of all others that it can reach, and of nobody else.
    async fn all_know(&self) -> bool {
        for nth in self.up() {
            let side = self.nodes[nth].beyond;
            let reached = |other: &usize| *other != nth && self.nodes[*other].beyond == side;
            let others = self.up().into_iter().filter(reached);
            let expected: HashSet<_> = others.map(id).collect();
            let known = self.nodes[nth].cluster.peers().await;
            if known.iter().map(|peer| peer.id).collect::<HashSet<_>>() != expected {
                return false;
            }
        }
        true
    }

    /// Applications were told what is true.
    fn assert_said_what_is(&self, name: &str) {
        if self.nodes.iter().any(|node| node.beyond) {
            return;
        }
        let watched = self
            .up()
            .into_iter()
            .flat_map(|nth| self.crowd.rooms_of(nth));
        let watched = watched.filter(|room| is_watched(*room));
        let expected: HashSet<_> = watched.map(|room| self.crowd.name(room).clone()).collect();
        let heard = self.heard.borrow();
        let (missing, wrong) = (
            expected.difference(&heard.occupied).count(),
            heard.occupied.difference(&expected).count(),
        );
        if self.held > 0 {
            assert_eq!(
                (missing, wrong),
                (0, 0),
                "{name}: not said, and said in error, of {}",
                expected.len()
            );
        }
    }

    /// A phase begins: what was counted before it is forgotten.
    fn begin(&mut self) {
        self.began = Instant::now();
        for node in &self.nodes {
            node.meter.take();
        }
        self.heard.borrow_mut().waits.clear();
    }

    fn count(&self, figures: &mut Figures) {
        for nth in self.up() {
            figures.add(&self.nodes[nth].meter.take());
        }
    }

    fn end(
        &self,
        name: &'static str,
        figures: Figures,
        lasted: Duration,
        until: Duration,
    ) -> Figures {
        let waits = std::mem::take(&mut self.heard.borrow_mut().waits);
        let figures = figures.of(name, self.up().len(), lasted, until, waits);
        println!("{}", figures.row());
        figures
    }

    /// What there is now.
    pub fn shape(&self) -> String {
        let interest = self.crowd.interest();
        let subscriptions: usize = self
            .nodes
            .iter()
            .map(|node| node.meter.subscriptions())
            .sum();
        let nodes = self.nodes.len();
        // Three of every node's own, and one that it shares.
        assert_eq!(
            subscriptions,
            interest + 4 * nodes,
            "rooms with local members, and four"
        );
        let mut text = format!(
            "rooms {}, with local members on a node {} (mean), subscriptions of a node {}\n\
             watched: {} pairs of node and room\n",
            self.crowd.rooms(),
            interest / nodes,
            subscriptions / nodes,
            self.held,
        );
        for (what, bytes) in &self.memory {
            let _ = writeln!(text, "memory {what}: {} MiB", bytes >> 20);
        }
        if let [.., (_, before), (_, after)] = self.memory.as_slice() {
            let entries = (self.held * nodes).max(1) as u64;
            let _ = writeln!(
                text,
                "memory of a watched pair, on each node: {} bytes",
                (after - before) / entries
            );
        }
        text
    }
}

/// What a host answers to other nodes.
fn answer(call: Call) {
    if let Request::Act(Target::Sockets(to), _) = call.request {
        let delivered = |id| (id, Status::Delivered);
        let statuses = to.into_iter().map(delivered).collect();
        call.responder.respond(Answer::Statuses(statuses));
    }
}

/// Writes down what a host is told.
async fn host(
    mut events: mpsc::Receiver<Event>,
    heard: Rc<RefCell<Heard>>,
    pending: Rc<RefCell<HashMap<RoomName, Instant>>>,
) {
    while let Some(event) = events.recv().await {
        match event {
            Event::Occupied(room) => {
                heard.borrow_mut().occupied.insert(room);
            }
            Event::Vacated(room) => {
                heard.borrow_mut().occupied.remove(&room);
            }
            Event::RoomReady(room) => {
                if let Some(since) = pending.borrow_mut().remove(&room) {
                    heard.borrow_mut().waits.push(since.elapsed());
                }
            }
            _ => {}
        }
    }
}

fn id(nth: usize) -> NodeId {
    // As long as those that are drawn at random.
    NodeId::new((1 << 47) + nth as u64)
}

fn is_watched(room: Rank) -> bool {
    room.is_multiple_of(WATCHED_OF)
}

/// Of this process, where the system tells.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}
