//! The backends of `docs/examples`, run as their README says.

use std::env;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::{Process, eventually, free_port};

const HINT: &str = "run tests/backends/install, or tests/run, which does";

/// One of the programs, as it runs.
#[derive(Debug)]
pub struct Backend {
    // Before the directory: its last words are read from there.
    process: Process,
    port: u16,
    _directory: TempDir,
}

/// A program that does not run yet.
#[derive(Debug)]
pub struct BackendConfig {
    file: String,
    port: u16,
    env: Vec<(String, String)>,
}

// === impl BackendConfig ===

impl BackendConfig {
    /// One environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The address at which it will serve, if it serves HTTP.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Starts it, and waits until it says that it listens.
    ///
    /// # Panics
    /// When what it needs is not installed.
    pub async fn start(self) -> Backend {
        let directory = TempDir::with_prefix("unisono-backend-").expect("a temporary directory");
        let mut command = self.command(directory.path());
        command
            .current_dir(directory.path())
            .env("PORT", self.port.to_string())
            .envs(self.env.iter().cloned());
        let mut process = Process::spawn(&self.file, command, directory.path(), HINT);
        eventually("the backend listens", async || {
            process.must_run();
            let said = process.stdout() + &process.stderr();
            let listens = said.contains("listening on") || said.contains("Development Server");
            if listens { Ok(()) } else { Err(said) }
        })
        .await;
        Backend {
            process,
            port: self.port,
            _directory: directory,
        }
    }

    /// Runs one that serves nobody to its end, with these arguments. Returns what it printed, where it succeeds.
    ///
    /// # Panics
    /// When it cannot be started.
    pub async fn run(self, arguments: &[&str]) -> Option<String> {
        let directory = TempDir::with_prefix("unisono-backend-").expect("a temporary directory");
        let mut command = match self.file.ends_with(".php") {
            true => {
                let mut command = Command::new("php");
                command.arg(example(&self.file));
                command
            }
            false => self.command(directory.path()),
        };
        command.args(arguments).envs(self.env);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.expect("it does not panic").expect(HINT);
        let printed = String::from_utf8(output.stdout).expect("text");
        output.status.success().then_some(printed)
    }

    fn command(&self, directory: &Path) -> Command {
        let file = example(&self.file);
        let installed = installed();
        let extension = file.extension().and_then(|extension| extension.to_str());
        match extension {
            Some("py") => {
                let mut command = Command::new(installed.join("venv/bin/python"));
                command.arg(file);
                command
            }
            Some("mjs") => {
                // Node looks for packages beside the program, or above it.
                let program = directory.join(&self.file);
                std::fs::copy(file, &program).expect("an example");
                symlink(
                    installed.join("node_modules"),
                    directory.join("node_modules"),
                )
                .expect("a link in the test's own directory");
                let mut command = Command::new("node");
                command.arg(program);
                command
            }
            Some("php") => {
                let mut command = Command::new("php");
                command.args(["-S", &format!("127.0.0.1:{}", self.port)]);
                command.arg(file);
                command
            }
            _ => panic!("{} is in no language that is known here", self.file),
        }
    }
}

// === impl Backend ===

impl Backend {
    /// A program of `docs/examples`, by its name.
    pub fn config(file: &str) -> BackendConfig {
        BackendConfig {
            file: file.to_owned(),
            port: free_port(),
            env: vec![],
        }
    }

    /// The port that it was given to serve HTTP on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

fn example(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/examples")
        .join(file)
}

/// A program of `tests/backends` in Python, in the environment that `tests/backends/install` makes.
///
/// # Panics
/// When that is not there.
pub fn python(file: &str) -> Command {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("backends");
    let mut command = Command::new(installed().join("venv/bin/python"));
    command.arg(program.join(file));
    command
}

/// Where `tests/backends/install` puts things.
fn installed() -> PathBuf {
    let this = env::current_exe().expect("the path of this program");
    // A test runs from target/<profile>/deps, a program from target/<profile>.
    let folders = this.ancestors().skip(2).take(3);
    let mut candidates = folders.map(|folder| folder.join("backends"));
    candidates
        .find(|folder| folder.join("node_modules").is_dir())
        .unwrap_or_else(|| panic!("nothing is installed for the backends: {HINT}"))
}
