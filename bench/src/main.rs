//! Runs the matrix, and writes the report. `bench/run` builds what it needs and calls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use unisono_bench::machine::{Machine, Versions};
use unisono_bench::matrix::{Cell, Scale, is_wanted, order};
use unisono_bench::results::{Outcome, Results, Round};
use unisono_bench::{cell, charts, document, plot};

/// Measures nodes on this machine, and writes REPORT.md, its plots and results.json
#[derive(Debug, Parser)]
#[command(name = "bench/run")]
struct Args {
    /// Every kind of cell, once, with fewer sockets: a few minutes
    #[arg(long, conflicts_with = "render")]
    quick: bool,
    /// Only cells whose name has all these words, as "fanout sockets=1000"; may be given several times
    #[arg(long, value_name = "WORDS", conflicts_with = "render")]
    only: Vec<String>,
    /// Say which cells there are, and measure none
    #[arg(long, conflicts_with = "render")]
    list: bool,
    /// Measure nothing: write the report again, from the results.json that is there
    #[arg(long)]
    render: bool,
    /// Where to write [default: bench/; with --quick or --only: bench/ in the target folder]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// End with status 1 when a cell fails, or a budget is not kept
    #[arg(long)]
    check: bool,
}

/// As a shell has it for what SIGINT has ended.
const EXIT_INTERRUPTED: u8 = 130;

/// The raw results, beside the report.
const RESULTS: &str = "results.json";

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<ExitCode> {
    let scale = match args.quick {
        true => Scale::Quick,
        false => Scale::Full,
    };
    let cells: Vec<Cell> = scale
        .cells()
        .into_iter()
        .filter(|cell| is_wanted(cell, &args.only))
        .collect();
    if args.list {
        cells.iter().for_each(|cell| println!("{cell}"));
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        !cells.is_empty(),
        "no cell is meant by --only: --list says which there are"
    );

    let out = match &args.out {
        Some(out) => out.clone(),
        // What is not whole is no report of the repository's.
        None if args.quick || !args.only.is_empty() => beside_this_program()?,
        None => Path::new(env!("CARGO_MANIFEST_DIR")).to_owned(),
    };
    let results = match args.render {
        true => {
            let path = out.join(RESULTS);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())?
        }
        false => {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let measured = runtime.block_on(unless_interrupted(measure(scale, args, cells)))?;
            match measured {
                Some(results) => results,
                None => {
                    eprintln!("bench: interrupted, nothing is written");
                    return Ok(ExitCode::from(EXIT_INTERRUPTED));
                }
            }
        }
    };
    write(&results, &out)?;
    let budgets_kept = document::budgets(&results)
        .iter()
        .all(document::Budget::is_kept);
    eprintln!("{}", out.join("REPORT.md").display());
    match args.check && (results.has_failures() || !budgets_kept) {
        true => Ok(ExitCode::FAILURE),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// The folder `bench` of the target folder, from which this program was started.
fn beside_this_program() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let target = this
        .ancestors()
        .nth(2)
        .context("this program is in no folder")?;
    Ok(target.join("bench"))
}

/// Drops what it waits for, and all processes with it, on Ctrl-C or SIGTERM.
async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Result<Option<T>> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => Ok(Some(done)),
        _ = interrupts.recv() => Ok(None),
        _ = terminations.recv() => Ok(None),
    }
}

// === measuring ===

async fn measure(scale: Scale, args: &Args, cells: Vec<Cell>) -> Results {
    let (begin, date) = (Instant::now(), today());
    let mut outcomes: Vec<Outcome> = cells
        .into_iter()
        .map(|cell| Outcome {
            cell,
            rounds: vec![],
        })
        .collect();
    let rounds: Vec<u32> = outcomes
        .iter()
        .map(|outcome| scale.rounds(&outcome.cell))
        .collect();
    let order = order(&rounds);
    let mut progress = Progress::new(
        order
            .iter()
            .map(|&at| outcomes[at].cell.expected_time(scale)),
    );
    for at in order {
        let Outcome { cell, rounds } = &mut outcomes[at];
        let round = cell::measure(cell, scale).await;
        progress.done(cell, &round, begin.elapsed());
        rounds.push(round);
    }
    Results {
        scale,
        only: args.only.clone(),
        date,
        seconds: begin.elapsed().as_secs(),
        machine: Machine::this(),
        versions: Versions::now(),
        cells: outcomes,
    }
}

/// The day in UTC.
fn today() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let (day, _) = now.split_once('T').expect("a date, then a time");
    day.to_owned()
}

/// How far a run is, for standard error.
struct Progress {
    expected: Vec<Duration>,
    done: usize,
}

impl Progress {
    fn new(expected: impl Iterator<Item = Duration>) -> Self {
        Self {
            expected: expected.collect(),
            done: 0,
        }
    }

    /// One round more, at that time since the begin.
    fn done(&mut self, cell: &Cell, round: &Round, elapsed: Duration) {
        self.done += 1;
        let (past, ahead) = self.expected.split_at(self.done);
        let sum = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64();
        // The machine is as much slower than expected in what is ahead as it was before.
        let left = (elapsed.as_secs_f64() * sum(ahead) / sum(past)) as u64;
        eprintln!(
            "[{}/{}, {}:{:02} left] {cell}: {}",
            self.done,
            self.expected.len(),
            left / 60,
            left % 60,
            document::in_short(round)
        );
    }
}

// === writing ===

/// The results, the plots, and last the report that names them; each file is there whole or as it was.
fn write(results: &Results, out: &Path) -> Result<()> {
    let plots = out.join(document::PLOTS);
    fs::create_dir_all(&plots).with_context(|| plots.display().to_string())?;
    replace(&out.join(RESULTS), &results.to_json()?)?;
    for figure in charts::figures(results) {
        let path = plots.join(figure.file);
        replace(&path, &plot::svg(&figure.chart)?)?;
    }
    replace(&out.join("REPORT.md"), &document::document(results))
}

fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_added_extension("new");
    fs::write(&new, text)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| path.display().to_string())
}
