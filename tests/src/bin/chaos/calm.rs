//! What must hold once everything was mended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::Value;
use tokio::time::Instant;
use unisono_tests::{Api, Node, within};

use crate::faults::Faults;
use crate::report::Report;
use crate::world::{HOME, Phase, World, lock};

/// How long it may take until everything is as it should be.
const CALM: Duration = Duration::from_secs(40);

/// Looks at all of it. What does not come to hold in time is wrong.
pub async fn look(world: &World, faults: &mut Faults, report: &mut Report) {
    let start = Instant::now();
    world.enter(Phase::Calm);
    let apis: Vec<Api> = faults.nodes().map(|node| node.api().clone()).collect();
    holds(world, "every node lists every node", async || {
        nodes_know_each_other(&apis).await
    })
    .await;
    report.calm("nodes know each other", start.elapsed());
    holds(world, "every client is there", async || all_there(world)).await;
    let marks: BTreeMap<String, u64> = home(world).into_iter().collect();
    holds(world, "everybody hears everybody", async || {
        behind(world, &marks, |heard, mark| heard > mark)
    })
    .await;
    report.calm("everybody hears everybody", start.elapsed());

    world.enter(Phase::Silence);
    holds(
        world,
        "everybody has heard the last word of everybody",
        async || {
            let last = home(world).into_iter().collect();
            behind(world, &last, |heard, last| heard == last)
        },
    )
    .await;
    holds(world, "every emit that was delivered came", async || {
        emits_came(world)
    })
    .await;
    holds(world, "the tables of all nodes are the truth", async || {
        tables_are_true(world, &apis).await
    })
    .await;
    let mut nodes: Vec<&mut Node> = faults.nodes().collect();
    holds(world, "the metrics add up", async || {
        metrics_add_up(world, &mut nodes).await
    })
    .await;
    drop(nodes);
    report.calm("tables and metrics are true", start.elapsed());
    report.memory(faults.examine(world));
}

/// Waits until it holds, and writes it down where it does not.
async fn holds<E: Debug>(world: &World, what: &str, probe: impl AsyncFnMut() -> Result<(), E>) {
    if world.is_wrong() {
        return;
    }
    let held = within(CALM, what, probe);
    if std::panic::AssertUnwindSafe(held)
        .catch_unwind()
        .await
        .is_err()
    {
        world.wrong(format!("it did not come to hold that {what}"));
    }
}

async fn nodes_know_each_other(apis: &[Api]) -> Result<(), Vec<Value>> {
    let mut lists = vec![];
    for api in apis {
        lists.push(api.get("/api/v1/nodes").await.body);
    }
    let count = |list: &Value| list["nodes"].as_array().map_or(0, Vec::len);
    let ready = lists.iter().all(|list| count(list) == apis.len());
    if ready { Ok(()) } else { Err(lists) }
}

fn all_there(world: &World) -> Result<(), String> {
    let lives = world.lives();
    let waiting: Vec<_> = lives
        .iter()
        .map(|life| lock(life))
        .filter(|life| !life.there || life.asked > 0)
        .map(|life| format!("{} there: {} asked: {}", life.id, life.there, life.asked))
        .collect();
    if waiting.is_empty() {
        Ok(())
    } else {
        Err(waiting.join(", "))
    }
}

/// What everybody has said at home, by socket.
fn home(world: &World) -> Vec<(String, u64)> {
    let lives = world.lives();
    let lives = lives.iter().map(|life| lock(life));
    lives
        .map(|life| {
            let said = life.said.get(HOME).copied().unwrap_or_default();
            (life.id.clone(), said)
        })
        .collect()
}

/// Who has not heard of whom what it should have.
fn behind(
    world: &World,
    marks: &BTreeMap<String, u64>,
    is_even: impl Fn(u64, u64) -> bool,
) -> Result<(), Vec<String>> {
    let mut behind = vec![];
    for life in world.lives() {
        let life = lock(&life);
        if life.ledger.waits() {
            behind.push(format!("{} waits for a word", life.id));
        }
        for (from, mark) in marks.iter().filter(|(from, _)| **from != life.id) {
            let heard = life.ledger.last(from, Some(HOME)).unwrap_or_default();
            if !is_even(heard, *mark) {
                behind.push(format!(
                    "{} heard {heard} of {from}, who said {mark}",
                    life.id
                ));
            }
        }
    }
    if behind.is_empty() {
        Ok(())
    } else {
        Err(behind)
    }
}

fn emits_came(world: &World) -> Result<(), Vec<String>> {
    let mut missing = vec![];
    for life in world.lives() {
        let life = lock(&life);
        let delivered = world.emitted_to(&life.id);
        let lost: Vec<_> = delivered.difference(&life.tokens).collect();
        if !lost.is_empty() {
            missing.push(format!("{}: {lost:?}", life.id));
        }
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(missing)
    }
}

/// By room, the sockets that are in it.
type Table = BTreeMap<String, BTreeSet<String>>;

async fn tables_are_true(world: &World, apis: &[Api]) -> Result<(), (Table, Vec<Table>)> {
    let mut truth = Table::new();
    for life in world.lives() {
        let life = lock(&life);
        for room in &life.rooms {
            truth
                .entry(room.clone())
                .or_default()
                .insert(life.id.clone());
        }
    }
    let mut tables = vec![];
    for api in apis {
        let mut table = Table::new();
        let rooms = api.get("/api/v1/rooms").await.body;
        for room in rooms["rooms"].as_array().into_iter().flatten() {
            let name = room["room"].as_str().unwrap_or_default();
            let members = api
                .query("/api/v1/rooms/sockets", &[("room", name)])
                .await
                .body;
            let sockets = members["sockets"].as_array().into_iter().flatten();
            let ids = sockets.filter_map(|one| one["id"].as_str().map(str::to_owned));
            table.insert(name.to_owned(), ids.collect());
        }
        if rooms["nodes"]["missing"] != serde_json::json!([]) {
            table.insert(format!("partial: {rooms}"), BTreeSet::new());
        }
        tables.push(table);
    }
    if tables.iter().all(|table| *table == truth) {
        Ok(())
    } else {
        Err((truth, tables))
    }
}

async fn metrics_add_up(world: &World, nodes: &mut [&mut Node]) -> Result<(), String> {
    let (mut sockets, mut waiting) = (0.0, 0.0);
    for node in nodes.iter() {
        let metrics = node.metrics().await;
        sockets += metrics.sum("unisono_sockets");
        waiting += metrics.get("unisono_inflight_bytes") + metrics.get("unisono_queue_bytes");
        let (seen, connected) = (
            metrics.get("unisono_nodes"),
            metrics.get("unisono_bus_connected"),
        );
        if seen as usize != nodes.len() || connected != 1.0 {
            return Err(format!("{}: {seen} nodes, bus {connected}", node.name()));
        }
    }
    let there = world.lives().len() as f64;
    if sockets == there && waiting == 0.0 {
        Ok(())
    } else {
        Err(format!(
            "{sockets} sockets of {there}, {waiting} bytes wait"
        ))
    }
}
