//! A cluster under random faults, with clients that check by themselves what they hear.
//!
//! ```text
//! cargo build --workspace --bins && target/debug/chaos --minutes 10
//! ```
//!
//! Three nodes, two NATS servers with a route between them, a proxy on every link. In each round faults come and go
//! for a while, some at the same time; then all is mended, and what must hold then is looked at. The seed decides what
//! happens and in which order; when exactly, the machine does, so a seed finds the same weather again and not the
//! same race.

mod application;
mod calm;
mod client;
mod faults;
mod report;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

use self::faults::Faults;
use self::report::Report;
use self::world::{Phase, World};

/// Breaks a cluster at random and looks whether it keeps its promises
///
/// Ends with status 1, and says why, when it does not.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Args {
    /// What happens: the same seed has the same faults in the same order. Drawn, and printed, unless it is given
    #[arg(long)]
    seed: Option<u64>,
    /// How long, in minutes; the round that is under way then is finished
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Clients, each on any node, in some rooms
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(2..=500))]
    clients: u16,
    /// Seconds of faults in each round
    #[arg(long, default_value_t = 20)]
    storm: u64,
    /// Where to write a report, as JSON
    #[arg(long)]
    report: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("chaos: seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(60.0 * args.minutes.max(0.0));

    let mut faults = Faults::start().await;
    let world = Arc::new(World::new(faults.ports(), usize::from(args.clients)));
    let clients = (0..usize::from(args.clients))
        .map(|nth| tokio::spawn(client::run(Arc::clone(&world), nth, random.random())));
    let mut tasks: Vec<_> = clients.collect();
    tasks.push(tokio::spawn(application::run(
        Arc::clone(&world),
        random.random(),
    )));

    let mut report = Report::new(seed);
    loop {
        world.enter(Phase::Storm);
        let until = Instant::now() + Duration::from_secs(args.storm);
        faults.rage(&world, &mut random, until, &mut report).await;
        faults.mend(&world, &mut report).await;
        calm::look(&world, &mut faults, &mut report).await;
        report.round(&world);
        for task in &tasks {
            if task.is_finished() {
                world.wrong("a client of the run itself has ended".to_owned());
            }
        }
        if Instant::now() >= end || world.is_wrong() {
            break;
        }
    }
    for task in &tasks {
        task.abort();
    }

    report.end(&world, start.elapsed());
    if let Some(path) = &args.report {
        report.write(path);
    }
    println!("{}", report.summary());
    if !world.is_wrong() {
        return ExitCode::SUCCESS;
    }
    for wrong in world.all_that_is_wrong() {
        println!("wrong: {wrong}");
    }
    println!("once more: chaos --seed {seed} --minutes {}", args.minutes);
    // What the processes said at the end, as when a test fails.
    faults.show_logs();
    ExitCode::FAILURE
}
