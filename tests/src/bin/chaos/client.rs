//! A client: it comes back when it loses its connection, joins, leaves and publishes at random, and checks what comes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use unisono_tests::{Client, Event, Heard, NUMBERED, TOLD_WITHIN};

use crate::world::{HOME, Life, Phase, ROOMS, World, api_of, lock};

/// How often a client does something.
const PACE: Duration = Duration::from_millis(50);

/// How long a handshake may take before the client tries another node.
const PATIENCE: Duration = Duration::from_secs(3);

/// A life of a client: one connection.
struct Living {
    world: Arc<World>,
    client: Client,
    life: Arc<Mutex<Life>>,
    random: StdRng,
    last_ask: u64,
    /// What was asked for, by id.
    asks: HashMap<u64, Ask>,
    /// What was published from elsewhere once a join was acknowledged.
    probes: HashMap<String, Probe>,
}

#[derive(Debug, Clone)]
enum Ask {
    Join(String),
    Leave(String),
}

/// It must come, unless a gap was told since the join.
struct Probe {
    room: String,
    gaps: u64,
    sent_at: Instant,
}

pub async fn run(world: Arc<World>, nth: usize, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    // Between two attempts, too.
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let Some(port) = world.port(random.random_range(0..usize::MAX)) else {
            continue;
        };
        let url = format!("ws://127.0.0.1:{port}{HOME}");
        let Ok(Ok(client)) = timeout(PATIENCE, Client::try_connect(&url)).await else {
            world.count("handshakes_failed", 1);
            continue;
        };
        world.count("connections", 1);
        let life = Life {
            id: client.id.clone(),
            there: true,
            rooms: [HOME.to_owned()].into(),
            ..Life::default()
        };
        let life = Arc::new(Mutex::new(life));
        world.begin(nth, Arc::clone(&life));
        let mut living = Living {
            world: Arc::clone(&world),
            client,
            life,
            random: StdRng::seed_from_u64(random.random()),
            last_ask: 0,
            asks: HashMap::new(),
            probes: HashMap::new(),
        };
        living.live().await;
        living.end();
    }
}

impl Living {
    async fn live(&mut self) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = self.client.hear() => match heard {
                    Heard::Event(event) => self.on_event(&event).await,
                    Heard::Closed(code) => {
                        self.world.count(&format!("closed_{code}"), 1);
                        return;
                    }
                    Heard::Cut => {
                        self.world.count("cut", 1);
                        return;
                    }
                },
                _ = pace.tick() => {
                    self.check();
                    if self.act().await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Does something. None when the connection is no more.
    async fn act(&mut self) -> Option<()> {
        match self.world.phase() {
            Phase::Storm => match self.random.random_range(0..20) {
                0 | 1 => {
                    let room = (*ROOMS.choose(&mut self.random)?).to_owned();
                    // One after the other: which of two is answered last would be no matter of order.
                    if !self.asks.is_empty() {
                        return Some(());
                    }
                    let member = lock(&self.life).rooms.contains(&room);
                    let ask = if member {
                        Ask::Leave(room)
                    } else {
                        Ask::Join(room)
                    };
                    self.ask(ask).await
                }
                2 => {
                    // Clients come and go.
                    if self.random.random_range(0..10) > 0 {
                        return Some(());
                    }
                    self.world.count("left_by_itself", 1);
                    None
                }
                3..8 => {
                    let rooms: Vec<_> = lock(&self.life).rooms.iter().cloned().collect();
                    let room = rooms.choose(&mut self.random)?.clone();
                    self.say(&room).await
                }
                _ => self.say(HOME).await,
            },
            Phase::Calm => self.say(HOME).await,
            Phase::Silence => Some(()),
        }
    }

    async fn say(&mut self, room: &str) -> Option<()> {
        let number = {
            let mut life = lock(&self.life);
            let said = life.said.entry(room.to_owned()).or_default();
            *said += 1;
            *said
        };
        let numbered = json!({"from": self.client.id, "n": number});
        let sent = if room == HOME {
            self.client.try_send(NUMBERED, numbered).await
        } else {
            let data = json!({"room": room, "event": NUMBERED, "data": numbered});
            self.client.try_send("unisono:publish", data).await
        };
        self.world.count("said", 1);
        sent.ok()
    }

    async fn ask(&mut self, ask: Ask) -> Option<()> {
        let (event, room) = match &ask {
            Ask::Join(room) => ("unisono:join", room.clone()),
            Ask::Leave(room) => ("unisono:leave", room.clone()),
        };
        self.last_ask += 1;
        let text = json!({"event": event, "data": {"room": room}, "id": self.last_ask});
        {
            let mut life = lock(&self.life);
            life.asked += 1;
            if let Ask::Leave(room) = &ask {
                // It may be over at any time from now on.
                life.rooms.remove(room);
            }
        }
        self.asks.insert(self.last_ask, ask);
        self.client.try_send_text(text.to_string()).await.ok()
    }

    async fn on_event(&mut self, event: &Event) {
        let now = Instant::now();
        lock(&self.life).ledger.hear(event, now);
        match event.event.as_str() {
            NUMBERED => self.world.count("heard", 1),
            "unisono:gap" => self.world.count("gaps", 1),
            "unisono:ack" => self.on_answer(event, true),
            "unisono:error" => {
                self.world.count("refused", 1);
                self.on_answer(event, false);
            }
            "token" => self.on_token(&event.data),
            "probe" => {
                let token = event.data.as_str().unwrap_or_default();
                if self.probes.remove(token).is_some() {
                    self.world.count("probes_heard", 1);
                    self.world.was_probed(token);
                }
            }
            _ => {}
        }
    }

    fn on_answer(&mut self, event: &Event, done: bool) {
        let Some(id) = event.id.as_ref().and_then(Value::as_u64) else {
            return;
        };
        let Some(ask) = self.asks.remove(&id) else {
            return self.world.wrong(format!("{id} was answered twice"));
        };
        let mut life = lock(&self.life);
        life.asked -= 1;
        match (ask, done) {
            (Ask::Join(room), true) => {
                life.rooms.insert(room.clone());
                let gaps = life.ledger.gaps();
                drop(life);
                self.probe(room, gaps);
            }
            (Ask::Leave(room), true) => life.ledger.leave(&room),
            // It is where it was.
            (Ask::Leave(room), false) => {
                life.rooms.insert(room);
            }
            (Ask::Join(_), false) => {}
        }
    }

    fn on_token(&mut self, token: &Value) {
        let token = token.as_str().unwrap_or_default().to_owned();
        let fresh = lock(&self.life).tokens.insert(token.clone());
        if !fresh {
            self.world.wrong(format!("the emit {token} came twice"));
        }
    }

    /// An acknowledged join is heard from any node.
    fn probe(&mut self, room: String, gaps: u64) {
        let Some(port) = self.world.port(self.random.random_range(0..usize::MAX)) else {
            return;
        };
        let token = format!("{}-{}", self.client.id, self.last_ask);
        let probe = Probe {
            room: room.clone(),
            gaps,
            sent_at: Instant::now(),
        };
        self.probes.insert(token.clone(), probe);
        let world = Arc::clone(&self.world);
        tokio::spawn(async move {
            let body = json!({"room": room, "event": "probe", "data": token});
            let answer = timeout(PATIENCE, api_of(port).post("publish", body)).await;
            let sent = answer.is_ok_and(|answer| answer.body["status"] == "sent");
            world.count(
                if sent {
                    "probes_sent"
                } else {
                    "probes_not_sent"
                },
                1,
            );
            if sent {
                world.probed(token, port);
            }
        });
    }

    fn check(&mut self) {
        let now = Instant::now();
        let mut life = lock(&self.life);
        for wrong in life.ledger.take_wrong(now) {
            let id = &self.client.id;
            self.world.wrong(format!("{id}: {wrong}"));
        }
        let (gaps, rooms) = (life.ledger.gaps(), life.rooms.clone());
        drop(life);
        self.probes.retain(|token, probe| {
            let explained = gaps > probe.gaps || !rooms.contains(&probe.room);
            let late = probe.sent_at + 2 * TOLD_WITHIN < now;
            if late && !explained && self.world.was_probed(token) {
                self.world.wrong(format!(
                    "{}: what was published to {} after the join was acknowledged did not come",
                    self.client.id, probe.room
                ));
            }
            !explained && !late
        });
    }

    /// The connection is no more, which is word enough about what did not come.
    fn end(&mut self) {
        let mut life = lock(&self.life);
        life.there = false;
        for wrong in life.ledger.take_wrong(Instant::now()) {
            self.world.wrong(format!("{}: {wrong}", self.client.id));
        }
        self.world.forget(&self.client.id);
    }
}
