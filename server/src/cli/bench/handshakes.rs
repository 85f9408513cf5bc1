//! Handshakes.

use std::rc::Rc;

use clap::Args;
use futures_util::{StreamExt, stream};
use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::bare::{self, OTHER_FILES, Own, Spent};
use super::entrance::Entrance;
use super::load::{Run, progress};
use super::nodes::{Nodes, Reached, busiest, spent, want_files};
use super::report::{Cost, Report, round};
use super::tally::{histogram, record};
use super::{Place, SETTLE_TIME, some};
use crate::cli::outcome::{Done, Failure, Outcome};

#[derive(Args)]
pub struct Connect {
    /// Sockets to open; they stay open until the last is
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// Handshakes at one time
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = some())]
    concurrency: u32,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    reached: Reached,
}

/// Handshakes that were made.
struct Handshakes {
    made: u64,
    failed: u64,
    first_failure: Option<String>,
    latency: Histogram<u64>,
    own: Own,
}

impl Connect {
    pub async fn run(self, stop: CancellationToken) -> Outcome {
        want_files(u64::from(self.sockets) + OTHER_FILES)?;
        let nodes = Rc::new(self.reached.reach().await?);
        let room = self.place.room();
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let before = nodes.read().await;
        let made = shake_hands(
            &run,
            &nodes.entrances,
            &room,
            self.sockets,
            self.concurrency,
        )
        .await;
        sleep(SETTLE_TIME).await;
        let after = nodes.read().await;
        let interrupted = stop.is_cancelled();
        let (_, closed) = run.end().await;

        let mut report = Report::of("connect");
        let bare = match self.place.no_raw || interrupted {
            true => None,
            false => report.bare(self.bare(&nodes).await),
        };
        report.shape(made.made, &nodes);
        report.count("failed", made.failed);
        report.value("seconds", round(made.own.time.as_secs_f64()));
        let rate = made.rate();
        report.figure("handshakes_per_second", round(rate), format!("{rate:.0}"));
        if let Some((bare, _)) = &bare {
            let rate = bare.rate();
            report.figure(
                "raw_handshakes_per_second",
                round(rate),
                format!("{rate:.0}"),
            );
        }
        report.latency("handshake", &made.latency);
        if let Some((bare, _)) = &bare {
            report.latency("raw handshake", &bare.latency);
        }
        let cpu = spent(before.as_ref(), after.as_ref());
        report.cost(&Cost {
            of: "handshake",
            steps: made.made,
            nodes: cpu,
            bare: bare.map(|(_, spent)| spent),
        });
        report.busiest(busiest(before.as_ref(), after.as_ref()));
        report.own(&made.own, "handshake", made.made);
        report.about_nodes(&nodes, cpu);
        if let Some(why) = &made.first_failure {
            report.note(format!("{} handshakes failed: {why}", made.failed));
        }
        report.ending(closed.as_deref(), interrupted);
        report.print(nodes.json)?;
        let whole = made.failed == 0 && made.made > 0 && closed.is_none();
        Ok(Done::all(whole))
    }

    /// The same, against a loop that accepts and answers.
    async fn bare(&self, nodes: &Rc<Nodes>) -> anyhow::Result<(Handshakes, Spent)> {
        let sockets = bare::connections(u64::from(self.sockets));
        let (address, spent) = bare::accept(sockets)?;
        let run = Run::new(Rc::clone(nodes), CancellationToken::new());
        let entrance = [Entrance::bare(address, nodes.timeout)?];
        let made = shake_hands(&run, &entrance, "/", sockets, self.concurrency).await;
        anyhow::ensure!(made.failed == 0, "the bare loop cannot be reached");
        let spent = spent.await??;
        Ok((made, spent))
    }
}

async fn shake_hands(
    run: &Rc<Run>,
    entrances: &[Entrance],
    room: &str,
    sockets: u32,
    concurrency: u32,
) -> Handshakes {
    let mut made = Handshakes {
        made: 0,
        failed: 0,
        first_failure: None,
        latency: histogram(),
        own: Own::default(),
    };
    let bar = progress("handshakes", u64::from(sockets));
    let own = Own::begin();
    let handshakes = (0..sockets as usize).map(|i| async move {
        let begin = Instant::now();
        let opened = entrances[i % entrances.len()].open(room).await;
        (opened, begin.elapsed())
    });
    let mut handshakes = stream::iter(handshakes).buffer_unordered(concurrency as usize);
    loop {
        let next = tokio::select! {
            next = handshakes.next() => next,
            () = run.stop.cancelled() => None,
        };
        match next {
            None => break,
            Some((Ok(socket), latency)) => {
                made.made += 1;
                record(&mut made.latency, latency);
                run.keep(socket, 0);
            }
            Some((Err(failure), _)) => {
                made.failed += 1;
                if let Failure::Failed(why) | Failure::Usage(why) = failure {
                    made.first_failure.get_or_insert(why);
                }
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    made.own = own.end();
    made
}

impl Handshakes {
    fn rate(&self) -> f64 {
        self.made as f64 / self.own.time.as_secs_f64().max(1e-9)
    }
}
