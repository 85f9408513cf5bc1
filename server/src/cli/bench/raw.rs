//! A bare loop of `write` alone, without a node.

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::bare::{self, OTHER_FILES, Writing};
use super::frames::wire_bytes;
use super::nodes::want_files;
use super::report::{Report, round};
use super::some;
use crate::cli::outcome::{Done, Outcome};

#[derive(Args)]
pub struct Raw {
    /// Connections to write to in turn
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = some())]
    sockets: u32,
    /// Bytes of text in a message, to which come those of a frame
    #[arg(long, default_value_t = 128, value_name = "N")]
    bytes: usize,
    /// Messages to each connection [default: 100000 writes in all]
    #[arg(long, value_name = "N")]
    messages: Option<u64>,
    /// Messages in flight
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = some())]
    window: u32,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl Raw {
    pub async fn run(self, stop: CancellationToken) -> Outcome {
        let sockets = u64::from(self.sockets);
        want_files(2 * sockets + OTHER_FILES)?;
        let mut writing = Writing::like(sockets, wire_bytes(self.bytes), self.window);
        writing.rounds = self.messages.unwrap_or(writing.rounds);
        let spent = bare::write(writing, &stop).await?;
        let mut report = Report::of("raw");
        report.count("sockets", u64::from(writing.sockets));
        report.value("bytes", self.bytes);
        report.count("writes", spent.steps);
        let (us, rate) = (spent.cpu_us(), spent.rate());
        report.figure("cpu_us_per_write", round(us), format!("{us:.2}"));
        report.figure("writes_per_second", round(rate), format!("{rate:.0}"));
        report.ending(None, stop.is_cancelled());
        report.print(self.json)?;
        Ok(Done::All)
    }
}
