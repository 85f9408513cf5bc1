//! What the parts of the run know of each other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::watch;
use unisono_tests::{Api, KEY, Ledger};

/// The room of the URL of every client.
pub const HOME: &str = "/home";

/// Rooms that clients join and leave.
pub const ROOMS: [&str; 5] = ["/a", "/b", "c", "d.e", ">"];

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Anything.
    Storm,
    /// They stay where they are, and say numbers in their home.
    Calm,
    /// They listen.
    Silence,
}

/// Shared by all tasks.
#[derive(Debug)]
pub struct World {
    /// The ports of the nodes; none for one that is down.
    ports: Mutex<Vec<Option<u16>>>,
    phase: watch::Sender<Phase>,
    /// What each client is now.
    clients: Mutex<Vec<Arc<Mutex<Life>>>>,
    /// Emits that were delivered, by socket: the token of each.
    emitted: Mutex<HashMap<String, BTreeSet<String>>>,
    /// Probes of joins that their node says it has sent, with the port of that node.
    probes: Mutex<HashMap<String, u16>>,
    wrong: Mutex<Vec<String>>,
    counts: Mutex<BTreeMap<String, u64>>,
}

/// One connection of a client.
#[derive(Debug, Default)]
pub struct Life {
    /// The socket.
    pub id: String,
    /// Whether it is there.
    pub there: bool,
    /// What it hears.
    pub ledger: Ledger,
    /// The numbers that it has said, by room.
    pub said: BTreeMap<String, u64>,
    /// Where it is a member, as was acknowledged.
    pub rooms: BTreeSet<String>,
    /// Requests that wait for their answer.
    pub asked: usize,
    /// Tokens of emits that came.
    pub tokens: BTreeSet<String>,
}

// === impl World ===

impl World {
    pub fn new(ports: Vec<Option<u16>>, clients: usize) -> Self {
        let lives = (0..clients).map(|_| Arc::default()).collect();
        Self {
            ports: Mutex::new(ports),
            phase: watch::Sender::new(Phase::Storm),
            clients: Mutex::new(lives),
            emitted: Mutex::default(),
            probes: Mutex::default(),
            wrong: Mutex::default(),
            counts: Mutex::default(),
        }
    }

    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn set_port(&self, node: usize, port: Option<u16>) {
        let before = std::mem::replace(&mut lock(&self.ports)[node], port);
        // What it was about to send is gone with it.
        lock(&self.probes).retain(|_, by| Some(*by) != before);
    }

    /// The port of a node that runs, by a random number.
    pub fn port(&self, random: usize) -> Option<u16> {
        let ports = lock(&self.ports);
        let there: Vec<u16> = ports.iter().copied().flatten().collect();
        there.get(random % there.len().max(1)).copied()
    }

    pub fn api(&self, random: usize) -> Option<Api> {
        self.port(random).map(api_of)
    }

    // --- clients

    pub fn begin(&self, client: usize, life: Arc<Mutex<Life>>) {
        lock(&self.clients)[client] = life;
    }

    pub fn lives(&self) -> Vec<Arc<Mutex<Life>>> {
        lock(&self.clients).clone()
    }

    /// An emit reached the queue of a socket, as the answer said.
    pub fn emitted(&self, socket: &str, token: String) {
        let mut emitted = lock(&self.emitted);
        emitted.entry(socket.to_owned()).or_default().insert(token);
    }

    /// What was delivered to this socket so far.
    pub fn emitted_to(&self, socket: &str) -> BTreeSet<String> {
        lock(&self.emitted).get(socket).cloned().unwrap_or_default()
    }

    /// A socket is no more, and with it what was on its way to it.
    pub fn forget(&self, socket: &str) {
        lock(&self.emitted).remove(socket);
    }

    /// A node says that this probe is on its way.
    pub fn probed(&self, token: String, port: u16) {
        if lock(&self.ports).contains(&Some(port)) {
            lock(&self.probes).insert(token, port);
        }
    }

    /// Whether this probe was sent, and its node was not killed since. Once.
    pub fn was_probed(&self, token: &str) -> bool {
        lock(&self.probes).remove(token).is_some()
    }

    // --- findings

    pub fn wrong(&self, what: String) {
        const WRONG_MAX: usize = 100;
        println!("chaos: wrong: {what}");
        let mut wrong = lock(&self.wrong);
        if wrong.len() < WRONG_MAX {
            wrong.push(what);
        }
    }

    pub fn is_wrong(&self) -> bool {
        !lock(&self.wrong).is_empty()
    }

    pub fn all_that_is_wrong(&self) -> Vec<String> {
        lock(&self.wrong).clone()
    }

    pub fn count(&self, what: &str, by: u64) {
        *lock(&self.counts).entry(what.to_owned()).or_default() += by;
    }

    pub fn counts(&self) -> Map<String, Value> {
        let counts = lock(&self.counts);
        let pairs = counts.iter().map(|(what, by)| (what.clone(), (*by).into()));
        pairs.collect()
    }
}

/// The HTTP API at that port.
pub fn api_of(port: u16) -> Api {
    Api::new(format!("http://127.0.0.1:{port}"), Some(KEY.to_owned()))
}

/// Nothing panics with one of these in its hands but the whole run.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
