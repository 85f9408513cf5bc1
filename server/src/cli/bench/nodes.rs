//! The nodes that are measured: their APIs, where their sockets are opened, and what they say of themselves.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tokio::time::Instant;
use url::Url;

use super::entrance::Entrance;
use crate::cli::connection::{self, Api, Connections};
use crate::cli::outcome::Failure;
use crate::delivery::Wire;
use crate::files;

#[derive(Args)]
pub struct Reached {
    /// What the sockets are
    #[arg(long, value_enum, default_value_t = WireName::Websocket)]
    wire: WireName,
    /// Offer to take messages compressed (permessage-deflate, no context takeover), and inflate them
    #[arg(long)]
    deflate: bool,
    #[command(flatten)]
    connections: Connections,
    /// Where /metrics of the nodes is, if not at --url: the address of `[admin] listen`; may be given several times
    #[arg(long, value_parser = connection::url, value_name = "URL", value_delimiter = ',', help_heading = "Connection")]
    metrics_url: Vec<Url>,
    /// A token for the sockets, where the nodes want one
    #[arg(
        long,
        env = "UNISONO_TOKEN",
        hide_env_values = true,
        help_heading = "Connection"
    )]
    token: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum WireName {
    /// WebSockets
    Websocket,
    /// Streams of server-sent events
    Sse,
}

/// Nodes that have answered.
pub struct Nodes {
    pub apis: Vec<Api>,
    pub entrances: Vec<Entrance>,
    meters: Vec<Api>,
    /// What the sockets are.
    pub wire: Wire,
    pub timeout: Duration,
    pub json: bool,
    /// Nodes of the cluster, those included that were not named.
    pub cluster: usize,
}

/// What the processes of all nodes say at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub cpu: Duration,
    pub resident_bytes: f64,
    pub sockets: f64,
    pub rooms: f64,
    at: Instant,
    processes: Vec<Process>,
}

/// What one of them says of itself.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    /// When it began: another in its place says another time.
    start: f64,
    /// CPU of its threads, in seconds; none where the node does not say.
    threads: HashMap<String, f64>,
}

impl Reached {
    /// Asks each node whether it is there, and would be asked more.
    pub async fn reach(&self) -> Result<Nodes, Failure> {
        let access = &self.connections.access;
        let wire = self.wire()?;
        let apis = self.connections.apis()?;
        let token = self.token.clone().filter(|token| !token.is_empty());
        let mut entrances = Vec::new();
        let mut cluster = 0;
        for api in &apis {
            let known = api.get("/api/v1/nodes", &[]).await?;
            cluster = known["nodes"].as_array().map_or(0, Vec::len).max(cluster);
            let entrance = Entrance::find(
                api.url(),
                access.ca.as_deref(),
                token.clone(),
                wire,
                access.timeout,
            );
            entrances.push(entrance.await?);
        }
        let urls = match self.metrics_url.is_empty() {
            true => apis.iter().map(|api| api.url().clone()).collect(),
            false => self.metrics_url.clone(),
        };
        let meters = urls.into_iter().map(|url| Api::at_url(url, access.clone()));
        Ok(Nodes {
            meters: meters.collect::<Result<_, _>>()?,
            apis,
            entrances,
            wire,
            timeout: access.timeout,
            json: access.json,
            cluster,
        })
    }

    fn wire(&self) -> Result<Wire, Failure> {
        match (self.wire, self.deflate) {
            (WireName::Websocket, false) => Ok(Wire::WebSocket),
            (WireName::Websocket, true) => Ok(Wire::Deflate),
            (WireName::Sse, false) => Ok(Wire::EventStream),
            (WireName::Sse, true) => Err(Failure::Usage(
                "--deflate cannot be used with --wire sse: it is of WebSockets".to_owned(),
            )),
        }
    }
}

impl Nodes {
    /// What all of them say now; none where one does not.
    pub async fn read(&self) -> Option<Reading> {
        let mut all = Reading {
            cpu: Duration::ZERO,
            resident_bytes: 0.0,
            sockets: 0.0,
            rooms: 0.0,
            at: Instant::now(),
            processes: Vec::new(),
        };
        for meter in &self.meters {
            let text = meter.get_text("/metrics").await.ok()??;
            let read = |name| value(&text, name);
            all.cpu += Duration::try_from_secs_f64(read("process_cpu_seconds_total")?).ok()?;
            all.resident_bytes += read("process_resident_memory_bytes")?;
            all.sockets += read("unisono_sockets")?;
            all.rooms += read("unisono_rooms")?;
            all.processes.push(Process {
                start: read("process_start_time_seconds")?,
                threads: threads(&text),
            });
        }
        Some(all)
    }
}

/// CPU between two readings; none where they are not of the same processes.
pub fn spent(before: Option<&Reading>, after: Option<&Reading>) -> Option<Duration> {
    let (before, after) = (before?, after?);
    let cpu = after.cpu.checked_sub(before.cpu)?;
    before.are_of_the_same(after).then_some(cpu)
}

/// The thread of one node that had least time to spare between two readings, and how much of it it was busy; none where
/// the nodes do not say.
pub fn busiest(before: Option<&Reading>, after: Option<&Reading>) -> Option<(String, f64)> {
    let (before, after) = (before?, after?);
    if !before.are_of_the_same(after) {
        return None;
    }
    let time = after.at.duration_since(before.at).as_secs_f64();
    let both = before.processes.iter().zip(&after.processes);
    let shares = both.flat_map(|(before, after)| {
        after.threads.iter().filter_map(move |(thread, after)| {
            let spent = after - before.threads.get(thread)?;
            Some((thread.clone(), spent / time.max(1e-9)))
        })
    });
    shares.max_by(|(_, a), (_, b)| a.total_cmp(b))
}

impl Reading {
    fn are_of_the_same(&self, other: &Self) -> bool {
        let starts = |reading: &Self| -> Vec<f64> {
            let processes = reading.processes.iter();
            processes.map(|process| process.start).collect()
        };
        starts(self) == starts(other)
    }
}

/// Why there is no CPU to speak of.
pub const NO_CPU: &str = "no CPU of the nodes: /metrics is not at --url, or not always of the same process (a load balancer, a \
     restart). Name with --metrics-url where it is";

/// CPU of each thread, in seconds.
fn threads(text: &str) -> HashMap<String, f64> {
    let threads = text.lines().filter_map(|line| {
        let labeled = line.strip_prefix("unisono_thread_cpu_seconds_total{thread=\"")?;
        let (thread, seconds) = labeled.split_once("\"} ")?;
        Some((thread.to_owned(), seconds.parse().ok()?))
    });
    threads.collect()
}

/// The sum of a metric over its labels.
fn value(text: &str, name: &str) -> Option<f64> {
    let values = text.lines().filter_map(|line| {
        let (head, value) = line.rsplit_once(' ')?;
        let named = head.split('{').next() == Some(name);
        named.then(|| value.parse::<f64>().ok())?
    });
    values.reduce(|sum, value| sum + value)
}

/// Raises the limit of open files, or says what is to be done.
pub fn want_files(wanted: u64) -> Result<u64, Failure> {
    let limit = files::raise_limit(wanted).context("the limit of open files cannot be read")?;
    match limit >= wanted {
        true => Ok(limit),
        false => Err(Failure::Failed(format!(
            "too few open files: {wanted} are needed, and the limit is {limit}. Raise it (ulimit -n), or take fewer sockets"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_labels() {
        let text = "# TYPE unisono_sockets gauge\nunisono_sockets{wire=\"websocket\"} 3\n\
                    unisono_sockets{wire=\"event_stream\"} 2\nunisono_sockets_max 100\n";
        assert_eq!(value(text, "unisono_sockets"), Some(5.0));
        assert_eq!(value(text, "unisono_sockets_max"), Some(100.0));
        assert_eq!(value(text, "unisono_socket"), None);
    }

    fn reading(cpu: u64, start: f64, text: &str) -> Reading {
        Reading {
            cpu: Duration::from_secs(cpu),
            resident_bytes: 0.0,
            sockets: 0.0,
            rooms: 0.0,
            at: Instant::now(),
            processes: vec![Process {
                start,
                threads: threads(text),
            }],
        }
    }

    #[test]
    fn cpu_of_another_process_is_none() {
        let before = reading(1, 5.0, "");
        let spent = |after: Reading| spent(Some(&before), Some(&after));
        assert_eq!(spent(reading(3, 5.0, "")), Some(Duration::from_secs(2)));
        assert_eq!(spent(reading(3, 6.0, "")), None);
        assert_eq!(spent(reading(0, 5.0, "")), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_busiest_thread_had_least_time_to_spare() {
        let cpu = |node, bus, worker| {
            format!(
                "# TYPE unisono_thread_cpu_seconds_total counter\n\
                 unisono_thread_cpu_seconds_total{{thread=\"node\"}} {node}\n\
                 unisono_thread_cpu_seconds_total{{thread=\"bus\"}} {bus}\n\
                 unisono_thread_cpu_seconds_total{{thread=\"worker-0\"}} {worker}\n"
            )
        };
        let before = reading(0, 5.0, &cpu(1.0, 1.0, 10.0));
        tokio::time::advance(Duration::from_secs(10)).await;
        let busy = |start, text: &str| busiest(Some(&before), Some(&reading(0, start, text)));
        let is = |thread: &str, share| Some((thread.to_owned(), share));
        assert_eq!(busy(5.0, &cpu(2.0, 6.0, 11.0)), is("bus", 0.5));
        assert_eq!(busy(5.0, &cpu(2.0, 6.0, 16.0)), is("worker-0", 0.6));
        assert_eq!(busy(5.0, ""), None);
        assert_eq!(busy(6.0, &cpu(2.0, 6.0, 16.0)), None, "another process");
    }
}
