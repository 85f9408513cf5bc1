//! What a run came to, for people and for programs.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::bare::{Own, Spent};
use super::nodes::{NO_CPU, Nodes};
use super::tally::Tally;
use crate::cli::outcome::Failure;
use crate::cli::print;
use crate::delivery::Wire;

/// Figures, in the order in which they are shown.
pub struct Report {
    rows: Vec<Vec<String>>,
    latencies: Vec<Vec<String>>,
    json: Map<String, Value>,
    notes: Vec<String>,
}

/// What the nodes spent, against what a bare loop did.
pub struct Cost {
    /// What it is for: one delivery, one handshake.
    pub of: &'static str,
    /// How many of them there were.
    pub steps: u64,
    /// CPU of the nodes; none where they did not say.
    pub nodes: Option<Duration>,
    /// None where it was not wanted, or did not come to it.
    pub bare: Option<Spent>,
}

/// The clock of processes goes by hundredths of a second: below this the digits of a quotient mean little.
const CPU_MIN: Duration = Duration::from_millis(200);

const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

impl Report {
    /// Of that subcommand.
    pub fn of(bench: &str) -> Self {
        let mut json = Map::new();
        json.insert("bench".to_owned(), bench.into());
        Self {
            rows: Vec::new(),
            latencies: Vec::new(),
            json,
            notes: Vec::new(),
        }
    }

    /// A figure, as programs and as people read it.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>, text: impl Into<String>) {
        self.value(name, value);
        self.rows.push(vec![name.replace('_', " "), text.into()]);
    }

    /// A number as it is.
    pub fn count(&mut self, name: &str, count: u64) {
        self.figure(name, count, count.to_string());
    }

    /// A figure that only programs want.
    pub fn value(&mut self, name: &str, value: impl Into<Value>) {
        self.json.insert(name.to_owned(), value.into());
    }

    /// Something to be known about the figures.
    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Percentiles, where anything was counted.
    pub fn latency(&mut self, name: &str, histogram: &Histogram<u64>) {
        let us = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let key = format!("{}_us", name.replace(' ', "_"));
        if histogram.is_empty() {
            self.value(&key, Value::Null);
            return;
        }
        let quantiles = PERCENTILES.map(|(name, at)| (name, us(histogram.value_at_quantile(at))));
        let all = quantiles.into_iter().chain([("max", us(histogram.max()))]);
        let mut row = vec![name.to_owned()];
        let mut values = Map::new();
        for (name, value) in all {
            row.push(time_text(value));
            values.insert(name.to_owned(), json!(round(value)));
        }
        values.insert("count".to_owned(), histogram.len().into());
        self.latencies.push(row);
        self.value(&key, values);
    }

    /// How many sockets there were, of which kind and where.
    pub fn shape(&mut self, sockets: u64, nodes: &Nodes) {
        let count = nodes.apis.len();
        let plural = if count == 1 { "" } else { "s" };
        self.figure(
            "sockets",
            sockets,
            format!("{sockets} on {count} node{plural}"),
        );
        self.value("nodes", count);
        let wire = match nodes.wire {
            Wire::EventStream => "sse",
            wire => wire.as_str(),
        };
        self.value("wire", wire);
        self.value("deflate", nodes.wire.window().is_some());
    }

    /// Why there is no CPU of the nodes, or not of all.
    pub fn about_nodes(&mut self, nodes: &Nodes, cpu: Option<Duration>) {
        if cpu.is_none() {
            self.note(NO_CPU);
        } else if nodes.cluster > nodes.apis.len() {
            self.note(format!(
                "the cluster has {} nodes, and the CPU is that of {}: name the others with --url",
                nodes.cluster,
                nodes.apis.len()
            ));
        }
    }

    /// Whether the run came to its end, and why not. A socket that was closed is the reason, even if Ctrl-C came, too.
    pub fn ending(&mut self, closed: Option<&str>, interrupted: bool) {
        if let Some(why) = closed {
            self.note(format!("ended early: {why}"));
        } else if interrupted {
            self.note("interrupted: the figures so far");
        }
        self.value("interrupted", interrupted && closed.is_none());
    }

    /// What was sent, what came of it, and how fast.
    pub fn tally(&mut self, tally: &Tally) {
        let seconds = tally.last.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds.max(1e-9);
        self.value("seconds", round(seconds));
        for (name, count) in [
            ("messages", tally.accepted),
            ("deliveries", tally.delivered),
        ] {
            let rate = rate(count);
            let text = format!("{count} in {seconds:.2} s, {rate:.0} in a second");
            self.figure(name, count, text);
            self.value(&format!("{name}_per_second"), round(rate));
        }
        self.count("expected", tally.expected());
        self.count("lost", tally.lost());
        self.count("duplicates", tally.duplicates);
        match tally.wire_bytes_per_delivery() {
            Some(bytes) => self.figure(
                "wire_bytes_per_delivery",
                round(bytes),
                format!("{bytes:.0}"),
            ),
            None => self.value("wire_bytes_per_delivery", Value::Null),
        }
        self.value("late", tally.late);
        self.value("failed", tally.failed);
        self.value("foreign", tally.others);
        if tally.late > 0 {
            self.note(format!(
                "{} deliveries came so late that nobody knows whether they came before: they count as neither lost nor \
                 duplicates",
                tally.late
            ));
        }
        if let Some(why) = &tally.first_failure {
            let why = why.lines().next().unwrap_or_default();
            self.note(format!("{} messages were not taken: {why}", tally.failed));
        }
        self.latency("delivery", &tally.delivery);
        self.latency("answer", &tally.answer);
    }

    /// What a bare loop came to. Where it failed, the other figures are still good.
    pub fn bare<T>(&mut self, measured: anyhow::Result<T>) -> Option<T> {
        let failed = |error| self.note(format!("no bare loop, and so no ratio: {error:#}"));
        measured.map_err(failed).ok()
    }

    /// CPU, and its ratio to that of the bare loop.
    pub fn cost(&mut self, cost: &Cost) {
        let of = cost.of;
        let nodes = cost.nodes.filter(|_| cost.steps > 0);
        let nodes = nodes.map(|cpu| cpu.as_secs_f64() * 1e6 / cost.steps as f64);
        let name = format!("node_cpu_us_per_{of}");
        match nodes {
            Some(us) => self.figure(&name, round(us), format!("{us:.2}")),
            None => self.value(&name, Value::Null),
        }
        if let Some(cpu) = cost.nodes {
            self.doubt(cpu);
        }
        let bare = cost.bare.as_ref();
        self.value("raw", bare.map_or(Value::Null, Spent::json));
        if let Some(bare) = bare {
            let us = bare.cpu_us();
            self.figure(
                &format!("raw_cpu_us_per_{of}"),
                round(us),
                format!("{us:.2}"),
            );
        }
        let ratio = nodes.zip(bare).map(|(us, bare)| us / bare.cpu_us());
        match ratio {
            Some(ratio) => self.figure("ratio", round(ratio), format!("{ratio:.2}")),
            None => self.value("ratio", Value::Null),
        }
    }

    /// Says so where the nodes used too little CPU for the digits to mean anything.
    pub fn doubt(&mut self, cpu: Duration) {
        if cpu < CPU_MIN {
            let ms = cpu.as_millis();
            self.note(format!(
                "the nodes used {ms} ms of CPU, by a clock that goes by 10: run for longer"
            ));
        }
    }

    /// How busy the nodes' busiest thread was: whether it was what limits.
    pub fn busiest(&mut self, busiest: Option<(String, f64)>) {
        let Some((thread, busy)) = busiest else {
            return self.value("node_thread_busy", Value::Null);
        };
        let percent = busy * 100.0;
        self.figure(
            "node_thread_busy",
            round(busy),
            format!("{percent:.0} % ({thread})"),
        );
        self.value("node_thread", thread);
    }

    /// What this program did itself for so many steps: whether it was what limits.
    pub fn own(&mut self, own: &Own, of: &str, steps: u64) {
        if steps > 0 {
            let us = own.cpu.as_secs_f64() * 1e6 / steps as f64;
            self.figure(
                &format!("own_cpu_us_per_{of}"),
                round(us),
                format!("{us:.2}"),
            );
        }
        let busy = own.cpu.as_secs_f64() / own.time.as_secs_f64().max(1e-9);
        self.figure(
            "own_thread_busy",
            round(busy),
            format!("{:.0} %", busy * 100.0),
        );
        if busy > BUSY_MAX {
            self.note(
                "this program's thread was busy nearly all the time, and may be what limits: run several, or on a faster \
                 machine",
            );
        }
    }

    /// Prints all of it.
    pub fn print(mut self, json: bool) -> Result<(), Failure> {
        if json {
            self.value("notes", self.notes.clone());
            return print::line(&Value::Object(self.json).to_string());
        }
        print::table(&["figure", "value"], self.rows)?;
        if !self.latencies.is_empty() {
            let names = PERCENTILES.map(|(name, _)| name);
            let header = ["latency"].into_iter().chain(names).chain(["max"]);
            print::table(&header.collect::<Vec<_>>(), self.latencies)?;
        }
        self.notes.iter().for_each(|note| print::note(note));
        Ok(())
    }
}

const BUSY_MAX: f64 = 0.9;

impl Spent {
    /// As programs read it.
    pub fn json(&self) -> Value {
        json!({
            "steps": self.steps,
            "cpu_us_per_step": round(self.cpu_us()),
            "steps_per_second": round(self.rate()),
        })
    }
}

/// Three digits behind the point are enough.
pub fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn time_text(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.0} µs"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Stamp;
    use super::super::tally::{histogram, record};
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_cpu() {
        let mut report = Report::of("fanout");
        report.cost(&Cost {
            of: "delivery",
            steps: 1_000_000,
            nodes: Some(Duration::from_secs(6)),
            bare: Some(Spent {
                steps: 100_000,
                cpu: Duration::from_millis(400),
                time: Duration::from_secs(1),
            }),
        });
        assert_eq!(report.json["node_cpu_us_per_delivery"], 6.0);
        assert_eq!(report.json["raw"]["cpu_us_per_step"], 4.0);
        assert_eq!(report.json["ratio"], 1.5);
        assert!(report.notes.is_empty());
    }

    #[test]
    fn without_figures_there_is_no_ratio() {
        let mut report = Report::of("fanout");
        report.cost(&Cost {
            of: "delivery",
            steps: 0,
            nodes: None,
            bare: None,
        });
        assert_eq!(report.json["ratio"], Value::Null);
        assert_eq!(report.bare(Ok(1)), Some(1));
        assert_eq!(report.bare::<u32>(Err(anyhow::anyhow!("no ports"))), None);
        assert!(report.notes.iter().any(|note| note.ends_with("no ports")));
        report.latency("answer", &histogram());
        assert_eq!(report.json["answer_us"], Value::Null);
        report.tally(&Tally::new(Stamp { run: 1 }, 1, 1));
        assert_eq!(report.json["expected"], 0);
    }

    #[test]
    fn latencies_are_in_microseconds_to_three_digits() {
        let mut counted = histogram();
        for ms in 1..=1000 {
            record(&mut counted, Duration::from_millis(ms));
        }
        let mut report = Report::of("emit");
        report.latency("delivery", &counted);
        let p99 = report.json["delivery_us"]["p99"].as_f64().unwrap();
        assert!((p99 / 990_000.0 - 1.0).abs() < 0.001, "{p99}");
        assert_eq!(report.json["delivery_us"]["count"], 1000);
        assert_eq!(time_text(999.0), "999 µs");
        assert_eq!(time_text(1_234_567.0), "1.23 s");
    }
}
