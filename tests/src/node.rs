//! One node of the cluster: the binary `unisono`, or an example, with a configuration of the test's own.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::Method;
use tempfile::TempDir;

use crate::{Api, Client, Identity, Metrics, Output, Process, Stream, Wire, eventually, within};

const START_PATIENCE: Duration = Duration::from_secs(60);

/// The API key of every node that gets none of its own: the harness's callers and [`unisono`] know it.
pub const KEY: &str = "the-api-key-of-all-nodes-of-the-tests";

/// The same, as a line of a request's head that is written by hand.
pub const BEARER: &str = "Authorization: Bearer the-api-key-of-all-nodes-of-the-tests\r\n";

/// A running `unisono`, or an example in its place, killed on drop.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    // Before the directory: its last words are read from there.
    process: Process,
    directory: TempDir,
    port: u16,
    api: Api,
}

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    name: String,
    program: Program,
    port: u16,
    nats: Vec<String>,
    keys: Vec<String>,
    keyless: bool,
    cluster: String,
    toml: String,
    env: Vec<(String, String)>,
    args: Vec<String>,
    tls: bool,
    output: Output,
    open_files: Option<u32>,
}

/// What a node runs.
#[derive(Debug, Clone)]
enum Program {
    Unisono,
    Example(String),
    Other,
}

// === impl NodeConfig ===

impl NodeConfig {
    /// An example of `server/examples/` in place of `unisono`.
    #[must_use]
    pub fn example(mut self, name: &str) -> Self {
        self.program = Program::Example(name.to_owned());
        self
    }

    /// The other build of the tests of mixed versions, in place of `unisono`: see [`other_build`].
    #[must_use]
    pub fn other(mut self) -> Self {
        self.program = Program::Other;
        self
    }

    /// Back from [`NodeConfig::other`].
    #[must_use]
    pub fn this(mut self) -> Self {
        self.program = Program::Unisono;
        self
    }

    /// A port of its own choice, where it is again after a restart.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The NATS servers it joins; none is a node alone.
    #[must_use]
    pub fn nats<I: IntoIterator<Item = S>, S: Into<String>>(mut self, urls: I) -> Self {
        self.nats = urls.into_iter().map(Into::into).collect();
        self
    }

    /// An API key it accepts, in place of [`KEY`]; the node's [`Api`] uses the first one.
    #[must_use]
    pub fn key(mut self, key: &str) -> Self {
        self.keys.push(key.to_owned());
        self
    }

    /// No API key in its configuration: its [`Api`] has none either.
    #[must_use]
    pub fn keyless(mut self) -> Self {
        self.keyless = true;
        self
    }

    /// More lines for the section `[cluster]`.
    #[must_use]
    pub fn cluster(mut self, lines: &str) -> Self {
        let _ = writeln!(self.cluster, "{lines}");
        self
    }

    /// More sections: any but `[cluster]` and `[api]`.
    #[must_use]
    pub fn toml(mut self, sections: &str) -> Self {
        let _ = writeln!(self.toml, "{sections}");
        self
    }

    /// Speaks TLS, with that certificate.
    #[must_use]
    pub fn tls(mut self, identity: &Identity) -> Self {
        self.tls = true;
        let (certificate, key) = (identity.certificate(), identity.key());
        self.toml(&format!(
            "[tls]\ncertificate_file = {certificate:?}\nkey_file = {key:?}\nreload_interval = \"50ms\""
        ))
    }

    /// One environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Its output is lost. Wants [`NodeConfig::port`]: it cannot say where it listens.
    #[must_use]
    pub fn output(mut self, output: Output) -> Self {
        self.output = output;
        self
    }

    /// It may open so many files, and no more.
    #[must_use]
    pub fn open_files(mut self, limit: u32) -> Self {
        self.open_files = Some(limit);
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Node {
        let node = self.start_live().await;
        within(START_PATIENCE, "the node is ready", async || {
            let ready = node.api.get("/health/ready").await;
            if ready.status == 200 {
                Ok(())
            } else {
                Err(ready)
            }
        })
        .await;
        node
    }

    /// Starts it and waits only until it lives: for a node whose NATS is away.
    pub async fn start_live(self) -> Node {
        let directory = TempDir::with_prefix("unisono-node-").expect("a temporary directory");
        Node::run(self, directory).await
    }

    /// The API keys of its configuration.
    fn keys(&self) -> Vec<String> {
        match self.keys.is_empty() && !self.keyless {
            true => vec![KEY.to_owned()],
            false => self.keys.clone(),
        }
    }

    /// The letter by which its URLs differ from those without TLS.
    fn s(&self) -> &'static str {
        if self.tls { "s" } else { "" }
    }

    /// The file as it is written for the node.
    pub fn text(&self) -> String {
        let Self {
            name,
            port,
            nats,
            cluster,
            toml,
            ..
        } = self;
        let keys = self.keys();
        format!(
            "listen = \"127.0.0.1:{port}\"\n\n\
             [cluster]\nname = \"unisono\"\nnode_name = \"{name}\"\nnats = {nats:?}\n{cluster}\n\
             [api]\nkeys = {keys:?}\n\n\
             {toml}"
        )
    }
}

// === impl Node ===

impl AsRef<Node> for Node {
    fn as_ref(&self) -> &Node {
        self
    }
}

impl Node {
    /// A configuration to build on; nothing but the name is set.
    pub fn config(name: &str) -> NodeConfig {
        NodeConfig {
            name: name.to_owned(),
            program: Program::Unisono,
            port: 0,
            nats: vec![],
            keys: vec![],
            keyless: false,
            cluster: String::new(),
            toml: String::new(),
            env: vec![],
            args: vec![],
            tls: false,
            output: Output::Kept,
            open_files: None,
        }
    }

    /// One node without NATS, with these sections in its configuration.
    pub async fn alone(toml: &str) -> Self {
        Self::config("alone").toml(toml).start().await
    }

    async fn run(config: NodeConfig, directory: TempDir) -> Self {
        let file = directory.path().join("unisono.toml");
        fs::write(&file, config.text()).expect("a file in the test's own directory");
        let mut command = match &config.program {
            Program::Unisono => unisono(),
            Program::Example(name) => example(name),
            Program::Other => unconfigured(&other_build()),
        };
        if let Some(limit) = config.open_files {
            command = with_open_files(limit, &command);
        }
        command
            .current_dir(directory.path())
            .arg("--config")
            .arg(file);
        // Where a node without a key keeps the one that it makes.
        command.env("XDG_RUNTIME_DIR", directory.path());
        command.args(&config.args).envs(config.env.iter().cloned());
        let (name, output) = (&config.name, config.output);
        let mut process = Process::spawn_with(name, command, directory.path(), "", output);
        let port = within(
            START_PATIENCE,
            "the node says where it listens",
            async || {
                process.must_run();
                match output {
                    Output::Kept => announced_port(&process.stdout()),
                    _ => Some(config.port),
                }
            },
        )
        .await;
        let api = Api::new(
            format!("http{}://127.0.0.1:{port}", config.s()),
            config.keys().first().cloned(),
        );
        let node = Self {
            config,
            directory,
            process,
            port,
            api,
        };
        within(START_PATIENCE, "the node lives", async || {
            let live = node.api.get("/health/live").await;
            if live.status == 200 {
                Ok(())
            } else {
                Err(live)
            }
        })
        .await;
        node
    }

    /// The name it was given; [`Node::id`] is what it calls itself.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The node id of this run.
    pub async fn id(&self) -> String {
        let live = self.api.get("/health/live").await;
        live.ok()["node"].as_str().expect("a node id").to_owned()
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `ws://127.0.0.1:<port><path>`, or `wss://`.
    pub fn url(&self, path: &str) -> String {
        format!("ws{}://127.0.0.1:{}{path}", self.config.s(), self.port)
    }

    /// Its HTTP API, with its first key if it has one.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A client of the room at this path, greeted.
    pub async fn client(&self, path: &str) -> Client {
        Client::connect(&self.url(path)).await
    }

    /// A client that expects no greeting.
    pub async fn ungreeted(&self, path: &str) -> Client {
        Client::ungreeted(&self.url(path)).await
    }

    /// The event stream of the room at this path, greeted.
    pub async fn stream(&self, path: &str) -> Stream {
        Stream::connect(self.port, path).await
    }

    /// A bare TCP connection.
    pub async fn wire(&self) -> Wire {
        Wire::connect(self.port).await
    }

    /// What `/metrics` says.
    pub async fn metrics(&self) -> Metrics {
        let answer = self.api.request(Method::GET, "/metrics").send().await;
        let text = answer.expect("an answer").text().await;
        Metrics::parse(text.expect("metrics are text"))
    }

    /// The process, for signals and for what the system knows of it.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGKILL: no goodbye.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGSTOP.
    pub fn freeze(&self) {
        self.process.freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process.thaw();
    }

    /// SIGTERM: drain and exit.
    pub fn terminate(&self) {
        self.process.terminate();
    }

    /// SIGINT: close everybody at once and exit.
    pub fn interrupt(&self) {
        self.process.interrupt();
    }

    /// A new process with the same configuration, on a port of its own where none is set.
    pub async fn restart(self) -> Self {
        self.restart_as(|config| config).await
    }

    /// A new process with that configuration in place of its own.
    pub async fn restart_as(self, change: impl FnOnce(NodeConfig) -> NodeConfig) -> Self {
        let Self {
            config,
            directory,
            process,
            ..
        } = self;
        drop(process);
        let config = change(config);
        let node = Self::run(config, directory).await;
        eventually("the restarted node is ready", async || {
            node.api.get("/health/ready").await.status == 200
        })
        .await;
        node
    }
}

/// The command `unisono`, without any variable of this process's environment that would configure it, and with
/// [`KEY`] for what it asks of nodes.
///
/// # Panics
/// When the binary was not built.
pub fn unisono() -> Command {
    let given = env::var_os("UNISONO_BIN").map(PathBuf::from);
    let mut command = unconfigured(&given.unwrap_or_else(|| built("unisono")));
    command.env("UNISONO_KEY", KEY);
    command
}

/// The same command, in a process that may open so many files.
pub fn with_open_files(limit: u32, command: &Command) -> Command {
    let script = format!("ulimit -n {limit} && exec \"$0\" \"$@\"");
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(script).arg(command.get_program());
    limited.args(command.get_args());
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(key, value),
            None => limited.env_remove(key),
        };
    }
    limited
}

/// The other build for the tests of mixed versions: the example `next`, which is to this build what the next minor
/// release would be; or the program that `UNISONO_OTHER_BIN` names, as an earlier release.
///
/// # Panics
/// When it was not built.
pub fn other_build() -> PathBuf {
    if let Some(given) = env::var_os("UNISONO_OTHER_BIN") {
        return PathBuf::from(given);
    }
    find("examples/next").unwrap_or_else(|| {
        panic!("the build of the next minor release is missing: run tests/run, or {NEXT} first")
    })
}

const NEXT: &str = "cargo build --workspace --example next --features unisono-server/next";

fn example(name: &str) -> Command {
    unconfigured(&built(&format!("examples/{name}")))
}

fn unconfigured(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (key, _) in env::vars_os() {
        if key.to_string_lossy().starts_with("UNISONO_") {
            command.env_remove(key);
        }
    }
    command
}

fn built(program: &str) -> PathBuf {
    find(program).unwrap_or_else(|| {
        panic!("no {program}: run tests/run, or cargo build --workspace --bins --examples first")
    })
}

fn find(program: &str) -> Option<PathBuf> {
    let this = env::current_exe().expect("the path of this program");
    // A test runs from target/<profile>/deps, a program from target/<profile>.
    let mut candidates = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(program));
    candidates.find(|path| path.is_file())
}

fn announced_port(stdout: &str) -> Option<u16> {
    let (_, after) = stdout.split_once("://127.0.0.1:")?;
    let (port, _) = after.split_once('/')?;
    port.parse().ok()
}
