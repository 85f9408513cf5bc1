//! Puts a node together and runs it: bus, node actor, workers, listeners; and takes it down again.

use std::io;
use std::net::TcpListener;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use actix::{Arbiter, AsyncContext, Context};
use actix_rt::ArbiterHandle;
use anyhow::{Context as _, ensure};
use cluster::{Budget, Call, Load, MemoryHub, NatsAuth, NatsBus, NatsConfig};
use futures_util::FutureExt;
use proto::envelope::Request;
use proto::{Audience, NodeId, Payload, Publication};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::api::{self, Keys};
use crate::app::App;
use crate::ask::{self, Workers};
use crate::auth::Auth;
use crate::config::{AuthMode, Config};
use crate::events::Events;
use crate::files;
use crate::hooks::Hooks;
use crate::laravel::{self, Broadcast};
use crate::listener::{Listener, REFUSING_MAX};
use crate::meters::Meters;
use crate::node::{DrainAll, Node, Pulse};
use crate::outside;
use crate::places::Places;
use crate::rate::{Addresses, Limit};
use crate::rebalance;
use crate::reload::{Followed, Look, Reload};
use crate::rules::Guard;
use crate::shared::{Counts, Shared, now_ms};
use crate::signature::Signer;
use crate::tail::Tails;
use crate::textfile;
use crate::tls::Tls;
use crate::trace::{Identity, Parent, Traces};
use crate::unisono::Unisono;
use crate::vital::EXIT_SOFTWARE;
use crate::worker;

/// A node that runs: for programs that have a `main` of their own. Others call [`run`](crate::run).
///
/// ```
/// use std::time::Duration;
/// use unisono_server::{App, Server, Sources};
///
/// #[actix_web::main]
/// async fn main() -> anyhow::Result<()> {
///     let sources = Sources {
///         flags: vec![("sockets.max".to_owned(), "1000".to_owned())],
///         ..Sources::without_file()
///     };
///     let config = sources.load()?.config;
///     let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
///     let server = Server::start(config, App::new(), listener, None).await?;
///     println!("node {}", server.node());
///     server.drain(Duration::ZERO, Duration::ZERO).await;
///     Ok(())
/// }
/// ```
pub struct Server {
    unisono: Unisono,
}

/// Which threads the workers and the bus run on.
pub(crate) enum Threads {
    /// Each on one of its own.
    Own,
    /// All on the caller's, one after the other, with a bus that meets those of other nodes at that hub.
    #[cfg(feature = "counting")]
    Callers(MemoryHub),
}

/// How often a drain looks whether the last socket is gone.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How long the bus may take with what waits to be sent, and with the goodbye.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long connections are kept at most that bring no request: actix-http's own time is 5 s.
const KEPT_TIMEOUT: Duration = Duration::from_secs(6);

/// How long after this node's first word the others have said that they are up, which they do within 100 ms.
const MEET: Duration = Duration::from_millis(250);

/// How long the collector of traces may take with the last spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Most addresses whose handshakes are counted at one time.
const ADDRESSES_MAX: usize = 65_536;

/// Messages that a bus without other nodes takes; it takes any.
const ALONE_PAYLOAD_MAX: usize = usize::MAX;

impl Server {
    /// Starts a node that serves an application on `listener`, and administrators on a listener of their own where there
    /// is one. On Linux each worker but one listens at the same address with a socket of its own, which has none of the
    /// options that were set on that listener. Must be called in an actix system.
    ///
    /// Raises this process's limit of open files as far as `sockets.max` and `sockets.connections` want; where it stays
    /// below, those are cut to what it leaves.
    ///
    /// # Errors
    ///
    /// When a file that the configuration names cannot be read, the listener not be used, or too few files be opened.
    pub async fn start(
        config: Config,
        app: App,
        listener: TcpListener,
        admin: Option<TcpListener>,
    ) -> anyhow::Result<Self> {
        Self::start_on(Threads::Own, config, app, listener, admin).await
    }

    /// As [`Server::start`], on threads of the caller's choice.
    pub(crate) async fn start_on(
        threads: Threads,
        mut config: Config,
        app: App,
        listener: TcpListener,
        admin: Option<TcpListener>,
    ) -> anyhow::Result<Self> {
        if !app.rooms.is_empty() {
            config.rules = app.rules(&config.rules);
        }
        if !config.laravel.redis_url.is_empty() {
            config
                .rules
                .guard_private(match config.laravel.prefix.as_str() {
                    "" => Guard::Anywhere,
                    _ => Guard::Prefixed,
                });
        }
        let workers = workers(&config);
        let refusing_max = files::fit(&mut config, workers, workers * REFUSING_MAX)?;
        // Before anything is there that counts.
        let meters = Meters::start(workers)?;
        let outside = outside::start()?;
        let reload = Reload::new(config.files.reload_interval, &outside);
        let signer = Signer::follow(&config.hooks, &reload)?;
        // There once the node is, which nobody can act upon before.
        let late = Arc::new(OnceLock::<Unisono>::new());
        let hooks = {
            let late = Arc::clone(&late);
            let signer = signer.as_ref().map(Followed::current);
            Hooks::start(&config.hooks, signer, &outside, move |actions| {
                let unisono = late.get().cloned();
                Box::pin(async move {
                    if let Some(unisono) = unisono {
                        api::carry_out(&unisono, actions).await;
                    }
                })
            })?
        };
        let keys = Keys::start(&config.api, &reload)?;
        let auth = Auth::start(&config.auth, signer.as_ref(), &reload, &outside)?;
        let tls = Tls::start(&config.tls, &reload)?;
        let nats = nats_config(&config)?;
        // Of each worker.
        let mut listeners: Vec<Vec<Listener>> = Vec::new();
        listeners.resize_with(workers, Vec::new);
        for (listener, admin) in [(Some(listener), false), (admin, true)] {
            if let Some(listener) = listener {
                let refusing_max = refusing_max.div_ceil(workers);
                let shares = Listener::share(listener, admin, workers, refusing_max);
                let shares = shares.context("cannot listen for each worker")?;
                let of_workers = listeners.iter_mut().zip(shares);
                of_workers.for_each(|(all, share)| all.push(share));
            }
        }
        let node_id = NodeId::new(rand::random());
        let started_at_ms = now_ms();
        let counts = Arc::new(Counts::default());
        let bytes = u32::try_from(config.sockets.inflight_bytes);
        let budget = Budget::new(bytes.context("sockets.inflight_bytes")?);
        let name = node_name(&config);
        let loaded = Arc::clone(&counts);
        let (cluster, cluster_node, events) = cluster::start(
            cluster::Config {
                alone: threads.are_alone(&config),
                ..cluster_config(&config, node_id, name.clone(), started_at_ms)
            },
            budget.clone(),
            move || {
                #[cfg(feature = "failures")]
                crate::failures::on_the_bus();
                Load {
                    sockets: loaded.sockets.load(Ordering::Relaxed) as u64,
                    rooms: loaded.rooms.load(Ordering::Relaxed) as u64,
                    draining: loaded.draining.load(Ordering::Relaxed),
                }
            },
        );
        let limit = Limit {
            rate: config.sockets.handshake_rate,
            burst: config.sockets.handshake_burst,
        };
        let addresses = (limit.rate > 0).then(|| Mutex::new(Addresses::new(limit, ADDRESSES_MAX)));
        let timeout = config.sockets.handler_timeout;
        let identity = Identity {
            node: node_id.to_string(),
            name: &name,
        };
        let traces = Traces::start(&config.tracing, &identity, &outside)?;
        let places = Places::new(config.sockets.rooms_max);
        let shared = Arc::new(Shared {
            events: Events::new(cluster.clone(), budget.clone(), hooks, timeout),
            curious: is_curious(&config),
            tails: Tails::new(node_id),
            traces,
            outside: outside.clone(),
            drain_wanted: Notify::new(),
            doors_closed: watch::Sender::new(false),
            routes: app.routes,
            tls,
            keys,
            reload,
            signer,
            auth,
            addresses,
            config,
            node: node_id,
            cluster,
            budget,
            load: counts,
            places,
            name,
            started_at_ms,
            meters,
            once: AtomicU64::new(1),
            bus_away: Mutex::new(None),
        });
        shared.meters.enter("node");
        let entering = Arc::clone(&shared);
        outside.spawn(async move { entering.meters.enter("outside") });
        let node_context = Context::new();
        let node = node_context.address();
        let mut running = Vec::new();
        for index in 0..workers {
            let thread = threads.worker();
            running.push(worker::start(index, thread, Arc::clone(&shared), node.clone()).await);
        }
        let registries = running.iter().map(|worker| worker.registry.clone());
        let workers = Workers::new(registries.collect());
        node_context.run(Node::new(Arc::clone(&shared), workers.clone(), events));
        let unisono = Unisono {
            shared,
            node,
            workers,
            parent: Parent::None,
        };
        let _ = late.set(unisono.clone());
        let serving = unisono.clone();
        threads.run_bus(
            Arc::clone(&unisono.shared),
            cluster_node,
            nats.map(|nats| NatsConfig {
                client_name: format!("unisono {node_id}"),
                ..nats
            }),
            move |call| ask::serve(&serving, call),
        )?;
        meet_the_others(&unisono.shared).await;
        for (worker, listeners) in running.into_iter().zip(listeners) {
            let _ = worker.open.send((unisono.clone(), listeners));
        }
        listen_to_laravel(&unisono, &outside)?;
        if unisono.shared.config.rebalance.enabled {
            actix_rt::spawn(rebalance::run(unisono.clone()));
        }
        for task in app.tasks {
            let running = AssertUnwindSafe(task(unisono.clone())).catch_unwind();
            actix_rt::spawn(async move {
                if running.await.is_err() {
                    error!("a task of the application panicked, and has ended");
                }
            });
        }
        Ok(Self { unisono })
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        self.unisono.shared.node
    }

    /// The handle for applications.
    pub fn unisono(&self) -> Unisono {
        self.unisono.clone()
    }

    /// The API key that the node has made for itself, as no configured one is there: the HTTP API answers nobody without
    /// a key. Whoever runs the node may show it to programs of theirs; [`run`](crate::run) keeps it in a file.
    pub fn api_key(&self) -> Option<&str> {
        self.unisono.shared.keys.own()
    }

    /// Reads files of keys, secrets and certificates at once, as it otherwise does every `files.reload_interval`, and
    /// takes the keys and secrets of that configuration, if there is one. Logs what it has found, and says which settings
    /// of it cannot be used.
    pub async fn reload(&self, config: Option<&Config>) -> Vec<&'static str> {
        let shared = &self.unisono.shared;
        let mut failed = Vec::new();
        // First, so that it says what is new in files.
        for (setting, look) in shared.reload.look().await {
            match look {
                Look::Bad(_) => failed.push(setting),
                Look::Same => info!(setting, "no new content"),
                Look::New => {}
            }
        }
        let Some(config) = config.cloned() else {
            return failed;
        };
        let handle = self.unisono();
        let change = move || {
            let shared = &handle.shared;
            let mut changed = vec![("api.keys", shared.keys.change(&config.api))];
            if let Some(signer) = &shared.signer {
                changed.push(("hooks.secret", Signer::change(signer, &config.hooks)));
            }
            if shared.config.auth.mode == AuthMode::Token {
                changed.push(("auth", shared.auth.change(&config.auth)));
            }
            changed
        };
        let changed = tokio::task::spawn_blocking(change).await;
        for (setting, done) in changed.into_iter().flatten() {
            match done {
                Ok(()) => info!(setting, "taken from the configuration"),
                Err(error) => {
                    let error = format!("{error:#}");
                    error!(setting, %error, "what is configured now is of no use; the old content stays");
                    failed.push(setting);
                }
            }
        }
        failed.sort_unstable();
        failed.dedup();
        failed
    }

    /// Waits until somebody asks, through the API of any node, that this one be drained: see [`Server::drain`].
    pub async fn drain_wanted(&self) {
        self.unisono.shared.drain_wanted.notified().await;
    }

    /// Takes the node out of service: not ready at once, then, after `delay`, the sockets are closed evenly
    /// over `window`, or over a longer one where that would be more than `drain.rate` in a second; what is on its way
    /// to other nodes is written out. With a window of zero all are closed at once, however many.
    ///
    /// The bus goes last. Until the last socket is closed, requests are served as ever; then newcomers find nobody, what
    /// was accepted is finished, and only then the other nodes are told, and the bus is closed.
    pub async fn drain(&self, delay: Duration, window: Duration) {
        let shared = &self.unisono.shared;
        let begun = Instant::now();
        shared.load.draining.store(true, Ordering::SeqCst);
        let sockets = || shared.load.sockets.load(Ordering::Relaxed);
        info!(sockets = sockets(), "draining");
        tokio::time::sleep(delay).await;
        let window = paced(window, sockets(), shared.config.drain.rate);
        info!(sockets = sockets(), ?window, "closing the sockets");
        self.unisono.node.do_send(DrainAll(window));
        let sockets_config = &shared.config.sockets;
        let closing = 2 * sockets_config.close_timeout;
        let limit = window + closing.max(sockets_config.handler_timeout);
        let empty = async {
            while sockets() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(limit, empty).await.is_err() {
            warn!(
                sockets = sockets(),
                "sockets are left at the end of the drain"
            );
        }
        // One that is to stop at once does not wait for connections that may bring one more request.
        let kept = if window.is_zero() {
            begun
        } else {
            begun + KEPT_TIMEOUT
        };
        self.finish_requests(kept).await;
        // What the registries were told last, they have told the application when they answer.
        self.unisono.workers.ask(Request::Probe, None).await;
        let told = async {
            while shared.events.waiting() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, told).await.is_err() {
            let events = shared.events.waiting();
            warn!(events, "the application was not told everything");
        }
        let left = async {
            // What sockets have published last is on its way to the bus.
            let _ = self.unisono.node.send(Pulse).await;
            shared.cluster.say_goodbye().await;
            // What other nodes have asked before they heard it is answered.
            self.unisono.workers.ask(Request::Probe, None).await;
            shared.cluster.peers().await;
            shared.cluster.leave().await;
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, left).await.is_err() {
            warn!("the bus took no goodbye");
        }
        let flushed = tokio::time::timeout(FLUSH_TIMEOUT, shared.traces.flush());
        if flushed.await.is_err() {
            warn!("the collector did not take the last spans");
        }
        info!("drained");
    }

    /// Sends newcomers away, and finishes what those have asked for who are there. Connections that are kept are served
    /// until then; later nothing more is taken.
    async fn finish_requests(&self, kept: Instant) {
        let shared = &self.unisono.shared;
        let load = &shared.load;
        shared.doors_closed.send_replace(true);
        let gone = async {
            // No listener is left, and nobody whom one has let in.
            shared.doors_closed.closed().await;
            while load.connections.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
        };
        let _ = tokio::time::timeout_at(kept, gone).await;
        load.leaving.store(true, Ordering::SeqCst);
        let finished = async {
            shared.doors_closed.closed().await;
            while load.requests.load(Ordering::SeqCst) > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
            shared.cluster.stop_serving().await;
        };
        if tokio::time::timeout(LEAVE_TIMEOUT, finished).await.is_err() {
            let requests = load.requests.load(Ordering::SeqCst);
            warn!(requests, "requests are left at the end of the drain");
        }
        load.left.store(true, Ordering::SeqCst);
    }
}

/// Waits until what is published here reaches the other nodes, and what they publish is heard here; not for long, because
/// a node without a bus serves its own sockets.
async fn meet_the_others(shared: &Shared) {
    let settings = &shared.config.cluster;
    let connected = tokio::time::timeout(settings.start_wait, shared.cluster.connected());
    if connected.await.is_err() {
        warn!("no bus yet: this node begins without the others");
    } else if !shared.cluster.alone() {
        tokio::time::sleep(MEET.min(settings.start_wait)).await;
    }
}

/// Threads that serve sockets.
pub(crate) fn workers(config: &Config) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(64),
        workers => workers,
    }
}

/// The window, or a longer one where so many sockets would come to the other nodes faster than they may.
fn paced(window: Duration, sockets: usize, rate: u32) -> Duration {
    if window.is_zero() || rate == 0 {
        return window;
    }
    window.max(Duration::from_secs_f64(sockets as f64 / f64::from(rate)))
}

/// What Laravel broadcasts, each node hears for itself.
fn listen_to_laravel(unisono: &Unisono, outside: &Handle) -> anyhow::Result<()> {
    let config = &unisono.shared.config.laravel;
    let (deliver, gap) = (unisono.clone(), unisono.clone());
    laravel::start(
        config,
        outside,
        move |Broadcast { room, text, except }| {
            let to = Audience::Room(room);
            deliver.send_here(Publication {
                except: except.into_iter().collect(),
                ..Publication::new(to, Payload::Text(text))
            });
        },
        move || gap.tell_gap(None, "redis_outage"),
    )
}

/// Whether anybody looks at the headers of handshakes, which cost something to keep.
fn is_curious(config: &Config) -> bool {
    let auth = &config.auth;
    auth.mode != AuthMode::None
        || !auth.origins.is_empty()
        || !auth.trusted_proxies.is_empty()
        || config.rules.has_handlers()
}

impl Threads {
    /// Where the next worker runs.
    fn worker(&self) -> ArbiterHandle {
        match self {
            // The thread lives on when only a handle is left of it.
            Self::Own => Arbiter::new().handle(),
            #[cfg(feature = "counting")]
            Self::Callers(_) => Arbiter::current(),
        }
    }

    /// Whether there are no other nodes.
    fn are_alone(&self, config: &Config) -> bool {
        match self {
            Self::Own => config.cluster.nats.is_empty(),
            #[cfg(feature = "counting")]
            Self::Callers(_) => false,
        }
    }

    /// Runs the node's side of the bus.
    fn run_bus(
        &self,
        shared: Arc<Shared>,
        node: cluster::Node,
        nats: Option<NatsConfig>,
        serve: impl Fn(Call) + Send + 'static,
    ) -> io::Result<()> {
        match self {
            Self::Own => run_bus(shared, node, nats, serve),
            #[cfg(feature = "counting")]
            Self::Callers(hub) => {
                actix_rt::spawn(node.run(hub.connect(), serve));
                Ok(())
            }
        }
    }
}

/// Runs the node's side of the bus on a thread of its own.
fn run_bus(
    shared: Arc<Shared>,
    node: cluster::Node,
    nats: Option<NatsConfig>,
    serve: impl Fn(Call) + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = async move || match nats {
        None => {
            let bus = MemoryHub::new(ALONE_PAYLOAD_MAX).connect();
            node.run(bus, serve).await;
        }
        Some(config) => match NatsBus::connect(config).await {
            Ok(bus) => node.run(bus, serve).await,
            Err(error) => error!(%error, "no bus"),
        },
    };
    std::thread::Builder::new()
        .name("bus".to_owned())
        .spawn(move || {
            shared.meters.enter("bus");
            let local = tokio::task::LocalSet::new();
            let body = std::panic::AssertUnwindSafe(|| local.block_on(&runtime, run()));
            let _ = std::panic::catch_unwind(body);
            error!("the bus thread ended; the node stops");
            std::process::exit(EXIT_SOFTWARE);
        })?;
    Ok(())
}

fn cluster_config(
    config: &Config,
    node: NodeId,
    name: String,
    started_at_ms: u64,
) -> cluster::Config {
    let settings = &config.cluster;
    cluster::Config {
        cluster: settings.name.clone(),
        node,
        name,
        version: proto::VERSION.to_owned(),
        started_at_ms,
        alone: settings.nats.is_empty(),
        heartbeat_interval: settings.heartbeat_interval,
        node_timeout: settings.node_timeout,
        bus_timeout: settings.bus_timeout,
        call_timeout: settings.call_timeout,
        room_linger: settings.room_linger,
        lingering_rooms_max: settings.lingering_rooms,
        queue_messages_max: settings.queue_messages,
        incoming_bytes_max: settings.incoming_bytes,
        pending_max: settings.pending_requests,
    }
}

fn nats_config(config: &Config) -> anyhow::Result<Option<NatsConfig>> {
    let settings = &config.cluster;
    if settings.nats.is_empty() {
        return Ok(None);
    }
    let set = |path: &std::path::Path| !path.as_os_str().is_empty();
    let read = |path: &std::path::Path| {
        let text = textfile::read(path);
        text.with_context(|| format!("cannot read {}", path.display()))
    };
    let line = |path| read(path).map(|text| text.trim().to_owned());
    // The client of NATS reads this one itself, each time that it connects, and would not find the first certificate.
    ensure!(
        !set(&settings.nats_tls_ca) || !textfile::has_mark(&settings.nats_tls_ca),
        "{} begins with a byte order mark: save it without",
        settings.nats_tls_ca.display()
    );
    let auth = if set(&settings.nats_credentials_file) {
        NatsAuth::Credentials(read(&settings.nats_credentials_file)?)
    } else if set(&settings.nats_token_file) {
        NatsAuth::Token(line(&settings.nats_token_file)?)
    } else if !settings.nats_user.is_empty() {
        let password = line(&settings.nats_password_file)?;
        NatsAuth::UserPassword(settings.nats_user.clone(), password)
    } else {
        NatsAuth::None
    };
    Ok(Some(NatsConfig {
        servers: settings.nats.clone(),
        client_name: String::new(),
        auth,
        tls_ca: Some(settings.nats_tls_ca.clone()).filter(|path| set(path)),
        connect_timeout: settings.nats_connect_timeout,
        ping_interval: settings.bus_timeout,
        reconnect_delay_max: settings.nats_reconnect_delay_max,
        subscription_messages_max: settings.subscription_messages,
    }))
}

/// The configured name, or that of the machine.
fn node_name(config: &Config) -> String {
    if !config.cluster.node_name.is_empty() {
        return config.cluster.node_name.clone();
    }
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let machine = machine.unwrap_or_default().trim().to_owned();
    if machine.is_empty() {
        "unisono".to_owned()
    } else {
        machine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_of_many_sockets_takes_longer() {
        let window = Duration::from_secs(20);
        assert_eq!(paced(window, 100_000, 5_000), window);
        assert_eq!(paced(window, 150_000, 5_000), Duration::from_secs(30));
        assert_eq!(paced(window, 150_000, 0), window, "any rate");
        assert_eq!(paced(Duration::ZERO, 150_000, 5_000), Duration::ZERO);
    }
}
