//! One round of a cell: nodes and a NATS server of its own, and who measures them. All are real processes, which
//! end with the round, however it ends.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use futures_util::FutureExt;
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, interval};
use unisono_tests::{Node, Process, Sandbox, unisono, within};

use crate::matrix::{Cell, Load, Scale};
use crate::results::{Round, Sample};

/// How often nodes are looked at once their sockets have left.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How often they are looked at while they hold idle sockets, in parts of that time. To answer costs a node some
/// milliseconds, which are in what it seems to spend on the sockets: a look each second was an eighth of that.
const LOOKS_WHILE_HELD: u64 = 10;

/// A socket that publishes as fast as it can would reach the limit of an honest client; all else is as by default.
const SETTINGS: &str = "[sockets]\nmessage_rate = 1000000\nmessage_burst = 1000000\n";

/// What a round may take at most, in times of what is expected of it.
const PATIENCE_FACTOR: u32 = 6;

/// Measures a cell once. Whatever goes wrong, a process that does not start included, is the reason of a failed round.
pub async fn measure(cell: &Cell, scale: Scale) -> Round {
    // The harness panics where a process of it fails, as tests are to.
    let round = AssertUnwindSafe(run(cell, scale)).catch_unwind().await;
    match round {
        Ok(Ok(round)) => round,
        Ok(Err(error)) => Round::Failed(format!("{error:#}")),
        Err(panic) => Round::Failed(message(&*panic)),
    }
}

async fn run(cell: &Cell, scale: Scale) -> Result<Round> {
    let mut cluster = start(cell).await;
    let directory = TempDir::with_prefix("unisono-bench-")?;
    let mut command = unisono();
    // Behind the name of the program, which was built with this one.
    command.args(cell.command_line(scale).split(' ').skip(1));
    for node in &cluster.nodes {
        command.args(["--url", node.api().base()]);
    }
    if let (Load::Emit { .. }, Some(nats)) = (&cell.load, cluster.nats.first()) {
        command.args(["--nats", &nats.url()]);
    }

    let idle = match cell.load {
        Load::Idle { hold, watch } => Some((hold, Duration::from_secs(watch))),
        _ => None,
    };
    // Before the first socket.
    let begin = Instant::now();
    let mut watched = vec![];
    if idle.is_some() {
        watched.push(sample(&mut cluster, begin).await);
    }
    let mut bench = Process::spawn("bench", command, directory.path(), "");
    let patience = cell.expected_time(scale) * PATIENCE_FACTOR + Duration::from_secs(30);
    match idle {
        None => {
            within(patience, "the measurement ends", async || bench.status()).await;
        }
        Some((hold, watch)) => {
            let mut ticks = interval(LOOK_INTERVAL);
            let mut left = None;
            for second in 0.. {
                ticks.tick().await;
                if left.is_some() || second % (hold / LOOKS_WHILE_HELD).max(1) == 0 {
                    let sample = sample(&mut cluster, begin).await;
                    let were_there = watched.iter().any(|before: &Sample| before.sockets > 0);
                    if were_there && sample.sockets == 0 {
                        left.get_or_insert_with(Instant::now);
                    }
                    watched.push(sample);
                }
                if bench.status().is_some() {
                    let left = left.get_or_insert_with(Instant::now);
                    if left.elapsed() >= watch {
                        break;
                    }
                }
                anyhow::ensure!(begin.elapsed() < patience, "it took more than {patience:?}");
            }
        }
    }
    let report = report(&mut bench)?;
    Ok(Round::Measured { report, watched })
}

/// The nodes of a cell, and their bus.
async fn start(cell: &Cell) -> Sandbox {
    match cell.nodes {
        1 => Sandbox {
            nodes: vec![Node::alone(SETTINGS).await],
            nats: vec![],
        },
        nodes => {
            let config = Sandbox::config().nodes(nodes as usize);
            config.toml(SETTINGS).start().await
        }
    }
}

/// What the nodes and their bus have now.
async fn sample(cluster: &mut Sandbox, begin: Instant) -> Sample {
    let mut sample = Sample {
        at: begin.elapsed().as_secs_f64(),
        sockets: 0,
        resident_kib: 0,
        subscriptions: None,
    };
    for node in &mut cluster.nodes {
        sample.sockets += node.metrics().await.sum("unisono_sockets") as u64;
        sample.resident_kib += node.process().memory_kib();
    }
    if let Some(nats) = cluster.nats.first() {
        sample.subscriptions = Some(nats.subscriptions().await);
    }
    sample
}

/// What has been measured, or why that is not to be trusted.
fn report(bench: &mut Process) -> Result<Value> {
    let status = bench.status().context("it is still running")?;
    let report: Option<Value> = serde_json::from_str(&bench.stdout()).ok();
    match report {
        Some(report) if status.success() => match report["interrupted"].as_bool() {
            Some(true) => bail!("interrupted"),
            _ => Ok(report),
        },
        Some(report) => Err(anyhow!(
            "not everything came once: {}",
            what_went_wrong(&report)
        )),
        None => {
            let said = bench.stderr();
            let line = said.lines().find(|line| !line.trim().is_empty());
            Err(anyhow!("{}", line.unwrap_or("it said nothing")))
        }
    }
}

/// The counts that ought to be zero and are not, and the notes.
fn what_went_wrong(report: &Value) -> String {
    let counts = ["lost", "duplicates", "late", "failed"];
    let mut words: Vec<String> = counts
        .iter()
        .filter_map(|name| Some((name, report[name].as_u64().filter(|count| *count > 0)?)))
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let notes = report["notes"].as_array().into_iter().flatten();
    words.extend(notes.filter_map(|note| note.as_str().map(str::to_owned)));
    words.join("; ")
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    let line = text.and_then(|text| text.lines().next());
    line.unwrap_or("a process could not be started").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_went_wrong_is_said() {
        let report = json!({ "lost": 3, "duplicates": 0, "notes": ["ended early: closed"] });
        assert_eq!(what_went_wrong(&report), "lost 3; ended early: closed");
    }
}
