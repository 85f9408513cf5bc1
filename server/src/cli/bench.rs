//! `unisono bench`: what a running cluster does, in numbers, beside what this machine could do at best.

mod handshakes;
mod idle;
mod messages;
mod occupied;
mod raw;

mod load;
mod nodes;
mod publisher;
mod report;
mod tally;

mod entrance;
mod events;
mod frames;
mod inflated;
mod message;
mod rest;
mod socket;

mod bare;

use std::process;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use super::outcome::Outcome;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono bench fanout --sockets 1000\n  \
    unisono bench fanout --url http://10.0.0.7:8080 --url http://10.0.0.8:8080 --rate 100 --duration 1m\n  \
    unisono bench emit --url http://10.0.0.7:8080 --url http://10.0.0.8:8080\n  \
    unisono bench emit --url http://10.0.0.7:8080 --url http://10.0.0.8:8080 --nats nats://10.0.0.9:4222\n  \
    unisono bench fanout --wire sse --sockets 1000\n  \
    unisono bench fanout --deflate --bytes 4096\n  \
    unisono bench rooms --rooms 500 --members 4 --bytes 512\n  \
    unisono bench rooms --rooms 10000 --members 1 --idle\n  \
    unisono bench connect --sockets 5000 --concurrency 100\n  \
    unisono bench idle --sockets 10000 --json\n\n\
    Ctrl-C ends a run early, with the figures so far. Exit status: 0 when everything came once, 1 when not, 64 wrong use.")]
pub struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One room with all sockets, on all nodes: messages published to it
    Fanout(messages::Fanout),
    /// Messages to single sockets, each sent through another node than that of the socket
    Emit(messages::Emit),
    /// Many small rooms, published to in turn; or left alone, for the memory of each
    Rooms(messages::Rooms),
    /// Handshakes
    Connect(handshakes::Connect),
    /// Sockets that do nothing: memory and CPU of each
    Idle(idle::Idle),
    /// No node: a bare loop of `write` on this machine, which is the limit of all the others
    Raw(raw::Raw),
}

#[derive(Args)]
struct Place {
    /// The room, or what the names of rooms begin with [default: /unisono-bench/<random>]
    #[arg(long)]
    room: Option<String>,
    /// Leave out the bare loop (emit: the request that does nothing), and so the ratio
    #[arg(long)]
    no_raw: bool,
}

/// How long nodes are left alone before they are read.
const SETTLE_TIME: Duration = Duration::from_millis(300);

/// As a shell has it for what SIGINT has ended.
const EXIT_INTERRUPTED: i32 = 130;

fn some() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..)
}

impl Bench {
    /// Measures, and reports.
    pub async fn run(self) -> Outcome {
        let measured = async {
            let stop = interrupts();
            match self.what {
                What::Fanout(fanout) => fanout.run(stop).await,
                What::Emit(emit) => emit.run(stop).await,
                What::Rooms(rooms) => rooms.run(stop).await,
                What::Connect(connect) => connect.run(stop).await,
                What::Idle(idle) => idle.run(stop).await,
                What::Raw(raw) => raw.run(stop).await,
            }
        };
        LocalSet::new().run_until(Box::pin(measured)).await
    }
}

/// The first Ctrl-C asks for the report, a second for the end.
fn interrupts() -> CancellationToken {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    spawn_local(async move {
        let _ = tokio::signal::ctrl_c().await;
        asked.cancel();
        let _ = tokio::signal::ctrl_c().await;
        process::exit(EXIT_INTERRUPTED);
    });
    stop
}

impl Place {
    fn room(&self) -> String {
        let drawn = || format!("/unisono-bench/{:08x}", rand::random::<u32>());
        self.room.clone().unwrap_or_else(drawn)
    }
}
