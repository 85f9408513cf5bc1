//! The nodes that are measured: their APIs, where their sockets are opened, and what they say of themselves.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use url::Url;

use super::entrance::Entrance;
use crate::cli::connection::{self, Api, Connections};
use crate::cli::files;
use crate::cli::outcome::Failure;
use crate::delivery::Wire;

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
    /// When each of them began: others in their place say other times.
    starts: Vec<f64>,
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
            starts: Vec::new(),
        };
        for meter in &self.meters {
            let text = meter.get_text("/metrics").await.ok()??;
            let read = |name| value(&text, name);
            all.cpu += Duration::try_from_secs_f64(read("process_cpu_seconds_total")?).ok()?;
            all.resident_bytes += read("process_resident_memory_bytes")?;
            all.sockets += read("unisono_sockets")?;
            all.starts.push(read("process_start_time_seconds")?);
        }
        Some(all)
    }
}

/// CPU between two readings; none where they are not of the same processes.
pub fn spent(before: Option<&Reading>, after: Option<&Reading>) -> Option<Duration> {
    let (before, after) = (before?, after?);
    let same = before.starts == after.starts;
    same.then(|| after.cpu.checked_sub(before.cpu))?
}

/// Why there is no CPU to speak of.
pub const NO_CPU: &str = "no CPU of the nodes: /metrics is not at --url, or not always of the same process (a load balancer, a \
     restart). Name with --metrics-url where it is";

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

    #[test]
    fn cpu_of_another_process_is_none() {
        let reading = |cpu, start| Reading {
            cpu: Duration::from_secs(cpu),
            resident_bytes: 0.0,
            sockets: 0.0,
            starts: vec![start],
        };
        let spent = |after: Reading| spent(Some(&reading(1, 5.0)), Some(&after));
        assert_eq!(spent(reading(3, 5.0)), Some(Duration::from_secs(2)));
        assert_eq!(spent(reading(3, 6.0)), None);
        assert_eq!(spent(reading(0, 5.0)), None);
    }
}
