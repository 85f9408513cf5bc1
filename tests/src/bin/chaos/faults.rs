//! The cluster, and what is done to it.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngExt};
use tokio::time::{Instant, interval_at};
use unisono_tests::{Nats, Node, NodeConfig, Proxy, Way};

use crate::report::Report;
use crate::world::World;

const NODES: usize = 3;

/// Everything is noticed soon, so that much happens in a minute.
const CLUSTER: &str = "heartbeat_interval = \"200ms\"\nnode_timeout = \"2s\"\nbus_timeout = \"1s\"\n\
    nats_connect_timeout = \"1s\"\nnats_reconnect_delay_max = \"500ms\"\n";

/// Of some rooms the application wants to be told, whatever becomes of a node.
const RULES: &str = "[[rooms]]\npattern = \"/{any...}\"\n\
    events = [\"opened\", \"closed\", \"joined\", \"left\", \"occupied\", \"vacated\"]\n\
    [[rooms]]\npattern = \"{any}\"\n";

/// Soon to be over; the grace is for clients to hear of it.
const LAME: &str = "lame_duck_grace_period: \"1s\"\nlame_duck_duration: \"30s\"";

/// How long one fault may last, and the wait for the next.
const LASTS_MS: std::ops::Range<u64> = 300..6_000;
const WAITS_MS: std::ops::Range<u64> = 200..3_000;

/// Faults at a time.
const FAULTS_MAX: usize = 3;

/// The processes, and the proxies between them.
pub struct Faults {
    nodes: Vec<Running>,
    nats: [Nats; 2],
    /// From each node to each NATS server.
    links: Vec<[Proxy; 2]>,
    route: Proxy,
    /// What is to be mended, and when.
    ongoing: Vec<(Instant, Fault)>,
}

struct Running {
    config: NodeConfig,
    node: Option<Node>,
}

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    NodeKilled(usize),
    NodeFrozen(usize),
    NatsKilled(usize),
    NatsFrozen(usize),
    NatsLame(usize),
    /// A node's links to both servers.
    Links(usize, Trouble),
    /// A node's link to one.
    Link(usize, usize, Trouble),
    Route(Trouble),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Cut,
    Reset,
    Severed,
    Stalled,
    Swallowed,
    LostThere,
    LostBack,
    Slow,
}

// === impl Faults ===

impl Faults {
    /// Starts all of it, in good health.
    pub async fn start() -> Self {
        let (nats, route) = Nats::pair_apart(Nats::config().lines(LAME)).await;
        let (mut nodes, mut links) = (vec![], vec![]);
        for nth in 0..NODES {
            let to = [
                Proxy::to(nats[0].port()).await,
                Proxy::to(nats[1].port()).await,
            ];
            let urls = to
                .each_ref()
                .map(|link| format!("nats://127.0.0.1:{}", link.port()));
            let config = Node::config(&format!("node-{nth}"))
                .nats(urls)
                .cluster(CLUSTER)
                .toml(RULES);
            let node = Some(config.clone().start().await);
            nodes.push(Running { config, node });
            links.push(to);
        }
        Self {
            nodes,
            nats,
            links,
            route,
            ongoing: vec![],
        }
    }

    /// The ports of the nodes.
    pub fn ports(&self) -> Vec<Option<u16>> {
        self.nodes
            .iter()
            .map(|one| one.node.as_ref().map(Node::port))
            .collect()
    }

    /// The nodes that run.
    pub fn nodes(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut().filter_map(|one| one.node.as_mut())
    }

    /// Faults come and go, until then.
    pub async fn rage(
        &mut self,
        world: &World,
        random: &mut StdRng,
        until: Instant,
        report: &mut Report,
    ) {
        let mut next = Instant::now();
        while next < until {
            due(next).await;
            self.mend_those_due(world, Instant::now(), report).await;
            if self.ongoing.len() < FAULTS_MAX {
                let fault = Fault::draw(random);
                let lasts = Duration::from_millis(random.random_range(LASTS_MS));
                if self.is_new(fault) {
                    report.fault(&format!("{fault:?} for {lasts:?}"));
                    self.break_it(world, fault).await;
                    self.ongoing.push((Instant::now() + lasts, fault));
                }
            }
            self.look_for_the_dead(world);
            next = Instant::now() + Duration::from_millis(random.random_range(WAITS_MS));
        }
    }

    /// All is well again.
    pub async fn mend(&mut self, world: &World, report: &mut Report) {
        let far = Instant::now() + Duration::from_secs(3_600);
        self.mend_those_due(world, far, report).await;
        Nats::have_a_route(&self.nats).await;
    }

    /// A panic in a log, memory beyond its bound.
    pub fn examine(&mut self, world: &World) -> u64 {
        const MEMORY_KIB_MAX: u64 = 256 * 1024;
        let mut most = 0;
        for node in self.nodes() {
            let name = node.name().to_owned();
            let process = node.process();
            let memory = process.memory_kib();
            if memory > MEMORY_KIB_MAX {
                world.wrong(format!("{name} holds {memory} KiB"));
            }
            most = most.max(memory);
            look_for_a_panic(world, &name, &process.stderr());
        }
        most
    }

    pub fn show_logs(&mut self) {
        for node in self.nodes() {
            let name = node.name().to_owned();
            let log = node.process().stderr();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(60);
            println!("--- {name}\n{}", lines[last..].join("\n"));
        }
    }

    fn is_new(&self, fault: Fault) -> bool {
        self.ongoing.iter().all(|(_, other)| !other.is_like(fault))
    }

    async fn mend_those_due(&mut self, world: &World, now: Instant, report: &mut Report) {
        let (over, ongoing) = std::mem::take(&mut self.ongoing)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.ongoing = ongoing;
        for (_, fault) in over {
            report.fault(&format!("{fault:?} is over"));
            self.mend_it(world, fault).await;
        }
    }

    async fn break_it(&mut self, world: &World, fault: Fault) {
        match fault {
            Fault::NodeKilled(nth) => {
                world.set_port(nth, None);
                if let Some(mut node) = self.nodes[nth].node.take() {
                    look_for_a_panic(world, &nth.to_string(), &node.process().stderr());
                    node.kill();
                }
            }
            Fault::NodeFrozen(nth) => {
                if let Some(node) = &self.nodes[nth].node {
                    node.freeze();
                }
            }
            Fault::NatsKilled(nth) => self.nats[nth].kill(),
            Fault::NatsFrozen(nth) => self.nats[nth].freeze(),
            Fault::NatsLame(nth) => self.nats[nth].lame_duck(),
            Fault::Links(nth, trouble) => {
                for link in &self.links[nth] {
                    trouble.on(link);
                }
            }
            Fault::Link(nth, to, trouble) => trouble.on(&self.links[nth][to]),
            Fault::Route(trouble) => trouble.on(&self.route),
        }
    }

    async fn mend_it(&mut self, world: &World, fault: Fault) {
        match fault {
            Fault::NodeKilled(nth) => {
                // NATS may be away, and the node not ready: it lives all the same.
                let node = self.nodes[nth].config.clone().start_live().await;
                world.set_port(nth, Some(node.port()));
                self.nodes[nth].node = Some(node);
            }
            Fault::NodeFrozen(nth) => {
                if let Some(node) = &self.nodes[nth].node {
                    node.thaw();
                }
            }
            Fault::NatsKilled(nth) => self.nats[nth].start_again().await,
            Fault::NatsFrozen(nth) => self.nats[nth].thaw(),
            Fault::NatsLame(nth) => {
                self.nats[nth].kill();
                self.nats[nth].start_again().await;
            }
            Fault::Links(nth, _) => self.links[nth].iter().for_each(Proxy::heal),
            Fault::Link(nth, to, _) => self.links[nth][to].heal(),
            Fault::Route(_) => self.route.heal(),
        }
    }

    fn look_for_the_dead(&mut self, world: &World) {
        for node in self.nodes() {
            let name = node.name().to_owned();
            if let Some(status) = node.process().status() {
                let log = node.process().stderr();
                world.wrong(format!("{name} ended by itself: {status}\n{log}"));
            }
        }
    }
}

// === impl Fault ===

impl Fault {
    fn draw(random: &mut impl Rng) -> Self {
        let node = random.random_range(0..NODES);
        let nats = random.random_range(0..2);
        let trouble = Trouble::draw(random);
        match random.random_range(0..16) {
            0..2 => Self::NodeKilled(node),
            2..5 => Self::NodeFrozen(node),
            5..7 => Self::NatsKilled(nats),
            7..9 => Self::NatsFrozen(nats),
            9 => Self::NatsLame(nats),
            10..12 => Self::Links(node, trouble),
            12..14 => Self::Link(node, nats, trouble),
            _ => Self::Route(trouble),
        }
    }

    /// Whether it is about the same thing, which cannot be broken twice.
    fn is_like(self, other: Self) -> bool {
        self.thing() == other.thing()
    }

    fn thing(self) -> (u8, usize) {
        match self {
            Self::NodeKilled(nth) | Self::NodeFrozen(nth) => (0, nth),
            Self::NatsKilled(nth) | Self::NatsFrozen(nth) | Self::NatsLame(nth) => (1, nth),
            Self::Links(nth, _) | Self::Link(nth, ..) => (2, nth),
            Self::Route(_) => (3, 0),
        }
    }
}

impl Trouble {
    fn draw(random: &mut impl Rng) -> Self {
        match random.random_range(0..8) {
            0 => Self::Cut,
            1 => Self::Reset,
            2 => Self::Severed,
            3 => Self::Stalled,
            4 => Self::Swallowed,
            5 => Self::LostThere,
            6 => Self::LostBack,
            _ => Self::Slow,
        }
    }

    fn on(self, proxy: &Proxy) {
        match self {
            Self::Cut => proxy.cut(),
            Self::Reset => proxy.reset(),
            Self::Severed => proxy.sever(),
            Self::Stalled => proxy.stall(Way::Both),
            Self::Swallowed => proxy.blackhole(Way::Both),
            Self::LostThere => proxy.blackhole(Way::There),
            Self::LostBack => proxy.blackhole(Way::Back),
            Self::Slow => proxy.delay(Duration::from_millis(200)),
        }
    }
}

/// The pace of the faults, which nothing is synchronised by.
async fn due(at: Instant) {
    interval_at(at, Duration::from_secs(3_600)).tick().await;
}

fn look_for_a_panic(world: &World, name: &str, log: &str) {
    if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
        world.wrong(format!("{name} panicked: {line}"));
    }
}
