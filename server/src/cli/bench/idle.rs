//! Sockets that do nothing but answer pings.

use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::bare::{self, OTHER_FILES, Ping};
use super::frames::control;
use super::load::{Run, progress};
use super::nodes::{Nodes, Reached, Reading, spent, want_files};
use super::report::{Cost, Report, round};
use super::{Place, SETTLE_TIME, some};
use crate::cli::outcome::{Done, Failure, Outcome};
use crate::delivery::Wire;
use crate::websocket::{Opcode, frame};

#[derive(Args)]
pub struct Idle {
    /// Sockets to hold
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// How long to hold them, count their pings and look at the CPU
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration, value_name = "DURATION")]
    duration: Duration,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    reached: Reached,
}

impl Idle {
    pub async fn run(self, stop: CancellationToken) -> Outcome {
        want_files(u64::from(self.sockets) + OTHER_FILES)?;
        let nodes = Rc::new(self.reached.reach().await?);
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let before = reading(&nodes).await?;
        let members = run.join(&[self.place.room()], self.sockets).await?;
        sleep(SETTLE_TIME).await;
        let opened = reading(&nodes).await?;
        run.pings.set(0);
        let begin = Instant::now();
        hold("holding", self.duration, &stop).await;
        let held = begin.elapsed();
        let pings = run.pings.get();
        let after = reading(&nodes).await?;
        let interrupted = stop.is_cancelled();
        let (_, closed) = run.end().await;

        let mut report = Report::of("idle");
        let bare = match pings > 0 && !self.place.no_raw && !interrupted {
            true => {
                // How long the nodes have waited before each ping of a socket.
                let silence = held.mul_f64(members.len() as f64 / pings as f64).min(held);
                let silence = hold("holding as many bare ones", silence, &stop);
                report
                    .bare(bare::ping(members.len() as u64, ping(nodes.wire), silence, &stop).await)
            }
            false => None,
        };
        let sockets = members.len() as f64;
        report.shape(members.len() as u64, &nodes);
        report.value("seconds", round(held.as_secs_f64()));
        let more = (opened.sockets - before.sockets) as i64;
        report.figure("node_sockets_more", more, more.to_string());
        let each = |bytes: f64| bytes / sockets.max(1.0);
        let kib = each(opened.resident_bytes - before.resident_bytes) / 1024.0;
        report.figure("node_kib_per_socket", round(kib), format!("{kib:.2}"));
        let cpu = spent(Some(&opened), Some(&after));
        if let Some(cpu) = cpu {
            let us = each(cpu.as_secs_f64() * 1e6) / held.as_secs_f64().max(1e-9);
            report.figure(
                "node_cpu_us_per_socket_second",
                round(us),
                format!("{us:.2}"),
            );
        }
        report.count("pings", pings);
        report.cost(&Cost {
            of: "ping",
            steps: pings,
            nodes: cpu,
            bare,
        });
        if pings == 0 {
            report.note(format!(
                "no ping came in {:.0} s, and so there is no ratio: hold them for longer than sockets.ping_interval of the \
                 nodes",
                held.as_secs_f64()
            ));
        }
        report.about_nodes(&nodes, cpu);
        report.note("memory is what the nodes' processes have more of; what was free in them before is not seen");
        report.ending(closed.as_deref(), interrupted);
        report.print(nodes.json)?;
        Ok(Done::all(closed.is_none()))
    }
}

/// What passes on a socket that does nothing.
fn ping(wire: Wire) -> Ping {
    match wire {
        // A comment in a chunk of its own, which nobody answers.
        Wire::EventStream => Ping {
            ping: b"3\r\n:\n\n\r\n".to_vec(),
            pong: Vec::new(),
        },
        _ => Ping {
            ping: frame::PING.to_vec(),
            pong: control(Opcode::Pong, b""),
        },
    }
}

/// What the nodes say, which has to be something.
pub async fn reading(nodes: &Nodes) -> Result<Reading, Failure> {
    let read = nodes.read().await;
    read.ok_or_else(|| {
        Failure::Failed(
            "/metrics of the nodes is not at --url: say with --metrics-url where it is".to_owned(),
        )
    })
}

/// Waits for that time, or until nobody wants to any more.
pub async fn hold(what: &'static str, time: Duration, stop: &CancellationToken) {
    let bar = progress(what, time.as_secs());
    let passing = async {
        for _ in 0..time.as_secs() {
            sleep(Duration::from_secs(1)).await;
            bar.inc(1);
        }
        sleep(Duration::from_nanos(u64::from(time.subsec_nanos()))).await;
    };
    tokio::select! {
        () = passing => {}
        () = stop.cancelled() => {}
    }
    bar.finish_and_clear();
}
