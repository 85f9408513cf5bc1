//! The command line.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::app::App;
use crate::auth::{TokenArgs, mint};
use crate::config::{AuthMode, Config, Drain, Loaded, Sources};
use crate::log;
use crate::server::Server;

/// A WebSocket server of which any number of nodes act as one
#[derive(Parser)]
#[command(version, arg_required_else_help = false)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Start a node (the same as no command)
    Serve,
    /// Print the configuration in effect, with every default and its comment, secrets hidden
    Config,
    /// Check the configuration and say what is wrong with it
    CheckConfig,
    /// Print a token for a client, signed with the secret of [auth], for trying things out
    Token(TokenArgs),
}

#[derive(Args)]
struct Settings {
    /// The configuration file; without it, `unisono.toml` in the working directory, if there is one
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve clients and the HTTP API
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// A NATS server, as nats://host:port; may be given several times
    #[arg(long, global = true, value_name = "URL")]
    nats: Vec<String>,
    /// The name of this node, for people
    #[arg(long, global = true, value_name = "NAME")]
    node_name: Option<String>,
    /// Any key of the configuration, as `sockets.max=1000`; may be given several times
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

/// `EX_USAGE` of `sysexits.h`: wrong use, a configuration that cannot be.
const EXIT_USAGE: u8 = 64;

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
    let loaded = match cli.settings.sources().load() {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("unisono: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match cli.command {
        Some(Command::Config) => print!("{}", loaded.text),
        Some(Command::CheckConfig) => println!("the configuration is fine"),
        Some(Command::Token(args)) => match mint(&args, &loaded.config.auth, SystemTime::now()) {
            Ok(token) => println!("{token}"),
            Err(error) => {
                eprintln!("unisono: {error:#}");
                return ExitCode::FAILURE;
            }
        },
        Some(Command::Serve) | None => {
            if let Err(error) = serve(app, loaded) {
                eprintln!("unisono: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn serve(app: App, Loaded { config, file, .. }: Loaded) -> anyhow::Result<()> {
    log::start(&config.log);
    refuse_huge_pages();
    match file {
        Some(file) => info!(file = %file.display(), "configuration"),
        None => info!("no configuration file: defaults, environment and flags"),
    }
    raise_file_limit(&config);
    let listener = listen_on(config.listen)?;
    let admin = config.admin.listen.map(listen_on).transpose()?;
    actix_rt::System::new().block_on(async move {
        let address = listener.local_addr()?;
        let admin_address = admin.as_ref().map(TcpListener::local_addr).transpose()?;
        let open = config.rules.open() && app.rooms.is_empty();
        let alone = config.cluster.nats.is_empty();
        let any_page = config.auth.mode == AuthMode::Hook && config.auth.origins.is_empty();
        let drain = config.drain.clone();
        let server = Server::start(config, app, listener, admin).await?;
        println!(
            "unisono {}, node {}",
            env!("CARGO_PKG_VERSION"),
            server.node()
        );
        println!("  WebSocket   ws://{address}/<room>");
        println!("  HTTP API    http://{address}/api/v1/");
        if open {
            println!("  chat page   http://{address}/   (open it in two tabs)");
            warn_open(address.ip().is_loopback());
        }
        if let Some(address) = admin_address {
            println!("  metrics     http://{address}/metrics");
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
        wait_for_end(&server, &drain).await
    })
}

/// SIGTERM drains. SIGINT, from somebody at a keyboard, closes all sockets at once, in good order. A second
/// signal ends the process at once.
async fn wait_for_end(server: &Server, drain: &Drain) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut asked = async || {
        tokio::select! {
            _ = terminate.recv() => (drain.delay, drain.window),
            _ = interrupt.recv() => (Duration::ZERO, Duration::ZERO),
        }
    };
    let (delay, window) = asked().await;
    tokio::select! {
        () = server.drain(delay, window) => {}
        _ = asked() => warn!("a second signal: the rest of the drain is left out"),
    }
    Ok(())
}

fn warn_open(loopback: bool) {
    if loopback {
        info!("open mode: no [[rooms]], so every path is a room and clients may use every event");
    } else {
        warn!(
            "OPEN MODE ON A PUBLIC ADDRESS: no [[rooms]], so anybody who reaches this port may join every \
             room and send to every socket; write [[rooms]] before anybody else finds it"
        );
    }
}

/// As `TcpListener::bind`, with a longer backlog: after a restart, everybody comes at once.
fn listen_on(address: SocketAddr) -> anyhow::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let listen = || {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        std::io::Result::Ok(socket.into())
    };
    listen().with_context(|| format!("cannot listen on {address}"))
}

/// Connections that the kernel keeps until they are accepted; it may take fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

fn raise_file_limit(config: &Config) {
    // Beside sockets and connections there are the bus, the log, and a few of the runtime's.
    let wanted = (config.sockets.max + config.sockets.connections + 100) as u64;
    let limit = rlimit::increase_nofile_limit(wanted).unwrap_or(0);
    if limit < wanted {
        warn!(
            limit,
            wanted, "too few open files allowed for sockets.max and sockets.connections"
        );
    }
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
