//! What happened.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::World;

pub struct Report {
    start: Instant,
    seed: u64,
    rounds: u64,
    memory_kib: u64,
    faults: Vec<String>,
    calms: Vec<String>,
    end: Value,
}

/// Lines to keep of a long run.
const LINES_MAX: usize = 10_000;

impl Report {
    pub fn new(seed: u64) -> Self {
        Self {
            start: Instant::now(),
            seed,
            rounds: 0,
            memory_kib: 0,
            faults: vec![],
            calms: vec![],
            end: Value::Null,
        }
    }

    /// A fault began, or is over.
    pub fn fault(&mut self, what: &str) {
        let line = format!("{:8.3} {what}", self.start.elapsed().as_secs_f64());
        println!("chaos: {line}");
        if self.faults.len() < LINES_MAX {
            self.faults.push(line);
        }
    }

    /// How long it took until that was so.
    pub fn calm(&mut self, what: &str, after: Duration) {
        let line = format!("{what} after {:.1} s", after.as_secs_f64());
        if self.calms.len() < LINES_MAX {
            self.calms.push(line);
        }
    }

    pub fn memory(&mut self, kib: u64) {
        self.memory_kib = self.memory_kib.max(kib);
    }

    pub fn round(&mut self, world: &World) {
        self.rounds += 1;
        let heard = &world.counts()["heard"];
        let (rounds, seconds) = (self.rounds, self.start.elapsed().as_secs());
        println!("chaos: round {rounds} is over after {seconds} s, {heard} heard");
    }

    pub fn end(&mut self, world: &World, took: Duration) {
        self.end = json!({
            "seed": self.seed,
            "seconds": took.as_secs(),
            "rounds": self.rounds,
            "memory_kib_max": self.memory_kib,
            "counts": world.counts(),
            "wrong": world.all_that_is_wrong(),
            "faults": self.faults,
            "calms": self.calms,
        });
    }

    pub fn write(&self, path: &Path) {
        let text = format!("{:#}\n", self.end);
        std::fs::write(path, text).unwrap_or_else(|error| {
            println!("chaos: no report in {}: {error}", path.display());
        });
    }

    pub fn summary(&self) -> String {
        let Self {
            seed,
            rounds,
            memory_kib,
            ..
        } = self;
        let (counts, seconds) = (&self.end["counts"], &self.end["seconds"]);
        let wrong = self.end["wrong"].as_array().map_or(0, Vec::len);
        format!(
            "chaos: seed {seed}, {rounds} rounds in {seconds} s, {} faults, at most {memory_kib} KiB, {wrong} wrong\n{counts:#}",
            self.faults.len()
        )
    }
}
