//! Where it is measured, and what: the machine and the versions, as they say themselves.

use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};
use unisono_tests::unisono;

/// The machine on which all processes of a run are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The model of its processor.
    pub cpu: String,
    /// As many threads as run at one time.
    pub cores: usize,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
    /// The version of its kernel.
    pub kernel: String,
}

/// The programs of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// `unisono --version`.
    pub unisono: String,
    /// The commit of the repository, with `-dirty` where files differ from it.
    pub commit: String,
    /// Whether it is a build without optimisation, whose figures mean nothing.
    pub debug: bool,
    /// `rustc --version`.
    pub rustc: String,
    /// `nats-server --version`.
    pub nats_server: String,
}

/// What is written where something cannot be found out.
const UNKNOWN: &str = "unknown";

impl Machine {
    /// This one, as Linux describes it.
    pub fn this() -> Self {
        let kib = field("/proc/meminfo", "MemTotal").and_then(|text| {
            let (kib, _) = text.split_once(' ')?;
            kib.parse::<f64>().ok()
        });
        Self {
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_else(|| UNKNOWN.to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (kib.unwrap_or(0.0) / 1024.0 / 1024.0).round() as u64,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned()),
        }
    }
}

impl Versions {
    /// Of the programs that a run starts, and of what they were built from and with.
    pub fn now() -> Self {
        let mut git = Command::new("git");
        git.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=12",
            "--exclude=*",
        ]);
        let mut version = unisono();
        version.arg("--version");
        Self {
            unisono: first_line(version),
            commit: first_line(git),
            debug: cfg!(debug_assertions),
            rustc: version_of("rustc"),
            nats_server: version_of("nats-server"),
        }
    }
}

fn version_of(program: &str) -> String {
    let mut command = Command::new(program);
    command.arg("--version");
    first_line(command)
}

/// What a program says first.
fn first_line(mut command: Command) -> String {
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.as_deref().and_then(|text| text.lines().next());
    line.unwrap_or(UNKNOWN).to_owned()
}

/// The first value of that name, in a file of lines `name: value`.
fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| {
        let (own, value) = line.split_once(':')?;
        (own.trim() == name).then(|| value.trim().to_owned())
    })
}
