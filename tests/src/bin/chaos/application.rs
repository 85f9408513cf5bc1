//! The application: it broadcasts numbers and emits tokens, over the HTTP API of any node.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval, timeout};
use unisono_tests::{Api, NUMBERED};

use crate::world::{Phase, World, lock};

const PACE: Duration = Duration::from_millis(40);

/// How long an answer may take, whatever happens to a node.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);

/// How long the application itself waits: longer, where a node stands still.
const PATIENCE: Duration = Duration::from_secs(2);

pub async fn run(world: Arc<World>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // What one sender sends through one node is in order. Where it is not known what has become of the last, another goes
    // on.
    let mut sender = Sender::new(&world, &mut random);
    let mut tokens = 0_u64;
    loop {
        pace.tick().await;
        if world.phase() != Phase::Storm {
            continue;
        }
        if random.random_range(0..4) > 0 {
            sender.broadcast(&world, &mut random).await;
            continue;
        }
        let lives = world.lives();
        let Some(life) = lives.choose(&mut random) else {
            continue;
        };
        let (id, there) = {
            let life = lock(life);
            (life.id.clone(), life.there)
        };
        let Some(api) = world.api(random.random_range(0..usize::MAX)) else {
            continue;
        };
        if !there || id.is_empty() {
            continue;
        }
        tokens += 1;
        let token = format!("token-{tokens}");
        tokio::spawn(emit(Arc::clone(&world), api, id, token));
    }
}

/// Emits, and holds the node to its answer.
async fn emit(world: Arc<World>, api: Api, to: String, token: String) {
    let body = json!({"to": to, "event": "token", "data": token});
    let Ok(answer) = timeout(ANSWERED_WITHIN, api.post("emit", body)).await else {
        // It stands still.
        return world.count("emits_unanswered", 1);
    };
    if answer.status != 200 {
        return world.count("emits_failed", 1);
    }
    let status = answer.body["results"][&to].as_str().unwrap_or_default();
    world.count(&format!("emits_{status}"), 1);
    match status {
        "delivered" => world.emitted(&to, token),
        "not_found" | "node_gone" | "timeout" => {}
        other => world.wrong(format!("an emit was answered {other:?}")),
    }
}

/// Numbers over one node.
struct Sender {
    name: String,
    api: Option<Api>,
    last: u64,
}

impl Sender {
    fn new(world: &World, random: &mut StdRng) -> Self {
        Self {
            name: format!("application-{:016x}", random.random::<u64>()),
            api: world.api(random.random_range(0..usize::MAX)),
            last: 0,
        }
    }

    async fn broadcast(&mut self, world: &World, random: &mut StdRng) {
        let Some(api) = &self.api else {
            *self = Self::new(world, random);
            return;
        };
        self.last += 1;
        let data = json!({"from": self.name, "n": self.last});
        let body = json!({"event": NUMBERED, "data": data});
        let answer = timeout(PATIENCE, api.post("broadcast", body)).await;
        match answer {
            Ok(answer) if answer.status == 200 => world.count("broadcasts", 1),
            _ => {
                world.count("broadcasts_failed", 1);
                *self = Self::new(world, random);
            }
        }
        if random.random_range(0..50) == 0 {
            *self = Self::new(world, random);
        }
    }
}
