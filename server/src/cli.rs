//! The command line: a node to be served, and clients of a running cluster.

mod act;
mod bench;
mod connection;
mod drain;
mod health;
mod list;
mod outcome;
mod print;
mod send;
mod signals;
mod tail;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tracing::{info, warn};

use crate::app::App;
use crate::auth::{TokenArgs, mint};
use crate::config::{AuthMode, Loaded, Sources};
use crate::files;
use crate::key_file::KeyFile;
use crate::listener;
use crate::log;
use crate::server::{self, Server};
use connection::{Api, Asking};
use outcome::{Done, EXIT_USAGE, Failure, Outcome};
use signals::{Live, Signals};

/// A WebSocket server of which any number of nodes act as one
#[derive(Parser)]
#[command(
    name = "unisono",
    version = proto::VERSION,
    arg_required_else_help = false,
    after_help = "Examples:\n  \
        unisono                                  start a node, alone, on http://127.0.0.1:8080\n  \
        unisono --nats nats://127.0.0.1:4222     start a node of a cluster\n  \
        unisono nodes                            see who is there\n  \
        unisono publish /chat 'new message' '{\"text\":\"hi\"}'\n\n\
        Exit status: 0, 1 failed, 64 wrong use. Every command has a --help with examples."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Start a node (the same as no command)
    Serve(Settings),
    /// Print the configuration in effect, with every default and its comment, secrets hidden
    Config(Settings),
    /// Check the configuration and say what is wrong with it
    CheckConfig(Settings),
    /// Print a token for a client, signed with the secret of [auth], for trying things out
    Token(Minting),
    #[command(flatten)]
    Client(Client),
    /// Print a script that completes this command line in a shell
    #[command(after_help = "Examples:\n  \
        source <(unisono completions bash)\n  \
        unisono completions zsh > ~/.zfunc/_unisono\n  \
        unisono completions fish > ~/.config/fish/completions/unisono.fish")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args)]
struct Minting {
    #[command(flatten)]
    token: TokenArgs,
    #[command(flatten)]
    settings: Settings,
}

/// What asks a running cluster.
#[derive(Subcommand)]
enum Client {
    /// List the nodes of the cluster
    Nodes(Asking<list::Nodes>),
    /// List the rooms that have members, by name
    Rooms(Asking<list::Rooms>),
    /// List the sockets of a room, by id
    Sockets(Asking<list::Sockets>),
    /// Describe a socket: its node, its rooms, its user
    Socket(Asking<list::Socket>),
    /// Send an event to sockets, or to all sockets of a user
    Emit(Asking<send::Emit>),
    /// Send an event to a room
    Publish(Asking<send::Publish>),
    /// Send an event to every socket of the cluster
    Broadcast(Asking<send::Broadcast>),
    /// Close sockets: by id, all of a room, or all of a user
    Disconnect(Asking<act::Disconnect>),
    /// Make sockets members of a room
    Join(Asking<act::Join>),
    /// Take sockets out of a room
    Leave(Asking<act::Leave>),
    /// Drain a node, which then stops, as on SIGTERM
    Drain(Asking<drain::Drain>),
    /// Show live what passes, on every node
    Tail(Asking<tail::Tail>),
    /// Ask a node whether it is ready for clients
    Health(Asking<health::Health>),
    /// Measure a running cluster: fan-out, latency, handshakes, memory
    Bench(bench::Bench),
}

/// Where a node's configuration comes from.
#[derive(Args, Default)]
#[command(next_help_heading = "Configuration")]
struct Settings {
    /// The configuration file; without it, `unisono.toml` in the working directory, if there is one
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve clients and the HTTP API
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// A NATS server, as nats://host:port; may be given several times
    #[arg(long, value_name = "URL")]
    nats: Vec<String>,
    /// The name of this node, for people
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// Any key of the configuration, as `sockets.max=1000`; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// Runs an application as a program: reads the command line and the configuration, serves until a signal, and
/// says with which status to end. The flags, files and variables are those of the program `unisono`.
///
/// ```no_run
/// use std::process::ExitCode;
/// use unisono_server::{App, Room};
///
/// fn main() -> ExitCode {
///     unisono_server::run(App::new().room(Room::new("/{path...}")))
/// }
/// ```
pub fn run(app: App) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    outcome::exit(obey(app, cli))
}

fn obey(app: App, cli: Cli) -> Outcome {
    let before = cli.settings;
    match cli.command {
        None => return serve(app, &before),
        Some(Command::Serve(settings)) => return serve(app, &before.and(settings)),
        Some(Command::Config(settings)) => print::print(&before.and(settings).load()?.text)?,
        Some(Command::CheckConfig(settings)) => {
            let config = before.and(settings).load()?.config;
            for doubt in app.rules(&config.rules).doubts() {
                print::note(&doubt);
            }
            print::line("the configuration is fine")?;
        }
        Some(Command::Token(Minting { token, settings })) => {
            let loaded = before.and(settings).load()?;
            let token = mint(&token, &loaded.config.auth, SystemTime::now())?;
            print::line(&token)?;
        }
        Some(Command::Client(client)) => return client.run(),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "unisono", &mut script);
            print::print(&String::from_utf8_lossy(&script))?;
        }
    }
    Ok(Done::All)
}

impl Client {
    fn run(self) -> Outcome {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        macro_rules! ask {
            ($asking:expr) => {{
                let Asking { what, connection } = $asking;
                runtime.block_on(what.run(&Api::new(connection)?))
            }};
        }
        match self {
            Self::Nodes(asking) => ask!(asking),
            Self::Rooms(asking) => ask!(asking),
            Self::Sockets(asking) => ask!(asking),
            Self::Socket(asking) => ask!(asking),
            Self::Emit(asking) => ask!(asking),
            Self::Publish(asking) => ask!(asking),
            Self::Broadcast(asking) => ask!(asking),
            Self::Disconnect(asking) => ask!(asking),
            Self::Join(asking) => ask!(asking),
            Self::Leave(asking) => ask!(asking),
            Self::Drain(asking) => ask!(asking),
            Self::Tail(asking) => ask!(asking),
            Self::Health(asking) => ask!(asking),
            Self::Bench(bench) => runtime.block_on(bench.run()),
        }
    }
}

fn serve(app: App, settings: &Settings) -> Outcome {
    let Loaded { config, text, file } = settings.load()?;
    let sources = settings.sources();
    let level = log::start(&config.log);
    refuse_huge_pages();
    match file {
        Some(file) => info!(file = %file.display(), "configuration"),
        None => info!("no configuration file: defaults, environment and flags"),
    }
    files::check(&config, server::workers(&config))?;
    let listener = listen_on(config.listen)?;
    let admin = config.admin.listen.map(listen_on).transpose()?;
    let ended = actix_rt::System::new().block_on(async move {
        // Before anything that takes its time: an early signal is a signal, too.
        let signals = Signals::listen()?;
        let address = listener.local_addr()?;
        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        let open = config.rules.open() && app.rooms.is_empty();
        let doubts = app.rules(&config.rules).doubts();
        let any_origin = config.auth.origins.is_empty();
        let alone = config.cluster.nats.is_empty();
        let auth_mode = config.auth.mode;
        let unheard = match alone && config.hooks.url.is_empty() {
            true => config.rules.forwarding(),
            false => Vec::new(),
        };
        let any_page = (config.auth.mode == AuthMode::Hook || app.asks_at_handshakes())
            && any_origin;
        let drain = config.drain.clone();
        let secure = |tls| if tls { "s" } else { "" };
        let s = secure(!config.tls.certificate_file.as_os_str().is_empty());
        let admin_s = secure(config.admin.tls);
        let server = Server::start(config, app, listener, admin).await?;
        let ports = std::iter::once(address).chain(admin_address);
        let key_file = keep_key(&server, &ports.map(|address| address.port()).collect::<Vec<_>>());
        let mut welcome = vec![
            format!("unisono {}, node {}", proto::VERSION, server.node()),
            format!("  WebSocket   ws{s}://{address}/<room>"),
            format!("  HTTP API    http{s}://{address}/api/v1/"),
        ];
        if open {
            if auth_mode == AuthMode::None {
                let page = format!("  chat page   http{s}://{address}/   (open it in two tabs)");
                welcome.push(page);
            }
            warn_open(address.ip().is_loopback(), any_origin);
        }
        if let Some(address) = admin_address {
            welcome.push(format!("  metrics     http{admin_s}://{address}/metrics"));
        }
        if let Some(file) = &key_file {
            welcome.push(format!("  API key     in {}", file.path().display()));
        }
        // A node does without somebody who reads it.
        let _ = print::line(&welcome.join("\n"));
        for doubt in doubts {
            warn!("{doubt}");
        }
        for room in unheard {
            warn!(
                room,
                "client_events is `forward`, and there is no application to forward to: neither cluster.nats nor hooks.url"
            );
        }
        if any_page {
            warn!(
                "the application answers handshakes, and any web page may make its visitors' browsers ask it, \
                 cookies and all: list your own pages in auth.origins"
            );
        }
        if alone {
            info!("no cluster.nats: this node is alone");
        }
        let live = Live {
            level,
            text,
            sources,
        };
        anyhow::Ok(signals.serve(&server, &drain, live).await)
    })?;
    Ok(ended)
}

/// Keeps the key of a node that has made one for itself where programs of the same user find it.
fn keep_key(server: &Server, ports: &[u16]) -> Option<KeyFile> {
    let key = server.api_key()?;
    match KeyFile::write(key, ports) {
        Ok(file) => Some(file),
        Err(error) => {
            let error = format!("{error:#}");
            warn!(
                %error,
                "THE HTTP API ANSWERS NOBODY: no api.keys are configured, and the key that this node has made cannot be \
                 kept in a file; set api.keys or api.keys_file, or XDG_RUNTIME_DIR to a folder of this user"
            );
            None
        }
    }
}

fn warn_open(loopback: bool, any_origin: bool) {
    let pages = match any_origin {
        true => "; pages of any origin may connect, as no auth.origins are listed",
        false => "",
    };
    if loopback {
        info!(
            "open mode: no [[rooms]], so every path is a room and clients may use every event{pages}"
        );
    } else {
        warn!(
            "OPEN MODE ON A PUBLIC ADDRESS: no [[rooms]], so anybody who reaches this port may join every \
             room and send to every socket{pages}; write [[rooms]] before anybody else finds it"
        );
    }
}

fn listen_on(address: SocketAddr) -> anyhow::Result<TcpListener> {
    listener::listen(address).with_context(|| format!("cannot listen on {address}"))
}

/// Sessions are small and many, and their number goes up and down: with pages of 2 MiB, which the allocator
/// would take where it may, 5,000 idle sockets cost 6.1 KiB each instead of 2.8.
fn refuse_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        info!(%error, "huge pages cannot be refused");
    }
}

impl Settings {
    /// What is given before the command, and what after it, which wins.
    fn and(mut self, after: Self) -> Self {
        self.nats.extend(after.nats);
        self.set.extend(after.set);
        Self {
            config: after.config.or(self.config),
            listen: after.listen.or(self.listen),
            node_name: after.node_name.or(self.node_name),
            ..self
        }
    }

    fn load(&self) -> Result<Loaded, Failure> {
        let loaded = self.sources().load();
        loaded.map_err(|error| Failure::Usage(error.to_string()))
    }

    fn sources(&self) -> Sources {
        let mut flags = Vec::new();
        if let Some(listen) = &self.listen {
            flags.push(("listen".to_owned(), listen.clone()));
        }
        if !self.nats.is_empty() {
            flags.push(("cluster.nats".to_owned(), self.nats.join(",")));
        }
        if let Some(name) = &self.node_name {
            flags.push(("cluster.node_name".to_owned(), name.clone()));
        }
        flags.extend(self.set.iter().cloned());
        Sources::from_environment(self.config.clone(), flags)
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) => Ok((key.trim().to_owned(), value.trim().to_owned())),
        None => Err("expected KEY=VALUE".to_owned()),
    }
}
