//! A real nats-server: started, killed, brought back on the same port, frozen, and looked into.

use std::fs;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use crate::api::http;
use crate::{Process, Proxy, eventually, free_port};

const HINT: &str = "install nats-server (Debian: apt-get install nats-server)";

/// The name under which tests themselves connect, so that they can be told from nodes.
const TESTER: &str = "unisono-tests";

/// A NATS server on loopback ports that stay the same over restarts.
#[derive(Debug)]
pub struct Nats {
    port: u16,
    monitor_port: u16,
    route_port: u16,
    // Before the directory: its last words are read from there.
    process: Option<Process>,
    directory: TempDir,
}

/// What differs from a plain server.
#[derive(Debug, Clone, Default)]
pub struct NatsConfig {
    max_payload: Option<usize>,
    route_to: Option<u16>,
    lines: String,
}

// === impl NatsConfig ===

impl NatsConfig {
    /// The largest message the server takes, in bytes.
    #[must_use]
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = Some(bytes);
        self
    }

    /// More lines for the server's configuration file.
    #[must_use]
    pub fn lines(mut self, lines: &str) -> Self {
        self.lines.push_str(lines);
        self
    }

    /// Starts the server and waits until it serves.
    pub async fn start(self) -> Nats {
        let mut nats = self.absent();
        nats.start_again().await;
        nats
    }

    /// Starts two servers with a route between them.
    pub async fn pair(self) -> [Nats; 2] {
        let first = self.clone().start().await;
        let route = first.route_port;
        Nats::beside(first, route, self).await
    }

    /// A server that has its ports but does not run yet.
    pub fn absent(self) -> Nats {
        let nats = Nats {
            port: free_port(),
            monitor_port: free_port(),
            route_port: free_port(),
            directory: TempDir::with_prefix("unisono-nats-").expect("a temporary directory"),
            process: None,
        };
        fs::write(nats.directory.path().join("nats.conf"), self.text(&nats))
            .expect("a file in the test's own directory");
        nats
    }

    fn text(&self, nats: &Nats) -> String {
        let Nats {
            port,
            monitor_port,
            route_port,
            ..
        } = nats;
        let routes = self.route_to.map(|to| format!("\"nats://127.0.0.1:{to}\""));
        let routes = routes.unwrap_or_default();
        let payload = self
            .max_payload
            .map(|bytes| format!("max_payload: {bytes}\n"));
        let payload = payload.unwrap_or_default();
        let lines = &self.lines;
        // Nodes go where they are told to, which may be a proxy, and nowhere else.
        format!(
            "host: 127.0.0.1\nport: {port}\nhttp: \"127.0.0.1:{monitor_port}\"\n\
             cluster {{ name: sandbox, listen: \"127.0.0.1:{route_port}\", routes: [{routes}], no_advertise: true }}\n\
             {payload}{lines}\n"
        )
    }
}

// === impl Nats ===

impl Nats {
    /// Starts a plain server.
    pub async fn start() -> Self {
        NatsConfig::default().start().await
    }

    /// A server that has its ports but does not run yet; [`Nats::start_again`] brings it up.
    pub fn absent() -> Self {
        NatsConfig::default().absent()
    }

    /// What may be set before the start.
    pub fn config() -> NatsConfig {
        NatsConfig::default()
    }

    /// Two servers with a route between them.
    pub async fn pair() -> [Self; 2] {
        Self::config().pair().await
    }

    /// Two servers, and the proxy that the route between them goes through.
    pub async fn pair_apart(config: NatsConfig) -> ([Self; 2], Proxy) {
        let first = config.clone().start().await;
        let route = Proxy::to(first.route_port).await;
        let pair = Self::beside(first, route.port(), config).await;
        (pair, route)
    }

    async fn beside(first: Self, route: u16, config: NatsConfig) -> [Self; 2] {
        let to_first = NatsConfig {
            route_to: Some(route),
            ..config
        };
        let pair = [first, to_first.start().await];
        Self::have_a_route(&pair).await;
        pair
    }

    /// Waits until there is a route between the two.
    pub async fn have_a_route(pair: &[Self]) {
        eventually("the two nats-servers have a route", async || {
            let mut routes = vec![];
            for nats in pair {
                routes.push(nats.routes().await);
            }
            if routes.iter().all(|count| *count == 1) {
                Ok(())
            } else {
                Err(routes)
            }
        })
        .await;
    }

    /// How many routes it has to other servers now.
    pub async fn routes(&self) -> u64 {
        let routes = self.monitor("routez").await;
        routes["num_routes"].as_u64().expect("a count")
    }

    /// The port for clients.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `nats://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Waits until it has ended by itself.
    pub async fn exited(&mut self) {
        let process = self.process.as_mut().expect("the nats-server runs");
        process.exited().await;
    }

    /// Starts it on the same ports, for the first time or after [`Nats::kill`].
    pub async fn start_again(&mut self) {
        let mut command = Command::new("nats-server");
        command
            .arg("-c")
            .arg(self.directory.path().join("nats.conf"));
        let process = Process::spawn("nats-server", command, self.directory.path(), HINT);
        self.process = Some(process);
        let health = format!("http://127.0.0.1:{}/healthz", self.monitor_port);
        eventually("nats-server serves", async || {
            self.process.as_mut().expect("just started").must_run();
            let answer = http()
                .get(&health)
                .send()
                .await
                .map_err(|error| error.to_string())?;
            if answer.status().is_success() {
                Ok(())
            } else {
                Err(answer.status().to_string())
            }
        })
        .await;
    }

    /// Lame duck mode: no new connections, and those there are ended one after the other; then it exits. How fast, its
    /// configuration says.
    pub fn lame_duck(&self) {
        self.process().user_signal_2();
    }

    /// SIGSTOP: connections stay open and nothing moves.
    pub fn freeze(&self) {
        self.process().freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process().thaw();
    }

    /// What the monitoring port answers to `connz`, `subsz`, `routez`, `varz`.
    pub async fn monitor(&self, path: &str) -> Value {
        let url = format!("http://127.0.0.1:{}/{path}", self.monitor_port);
        let answer = http()
            .get(url)
            .send()
            .await
            .expect("the monitoring port answers");
        answer.json().await.expect("monitoring answers in JSON")
    }

    /// The ids of the connections that nodes hold now; an id that stays is a bus that was not cut.
    pub async fn node_connections(&self) -> Vec<u64> {
        let connz = self.monitor("connz").await;
        let connections = connz["connections"].as_array().cloned().unwrap_or_default();
        let nodes = connections
            .iter()
            .filter(|connection| connection["name"] != TESTER);
        nodes
            .filter_map(|connection| connection["cid"].as_u64())
            .collect()
    }

    /// How many subscriptions there are, the server's own included.
    pub async fn subscriptions(&self) -> u64 {
        self.monitor("subsz").await["num_subscriptions"]
            .as_u64()
            .expect("a count")
    }

    /// Connects as an application would.
    pub async fn connect(&self) -> async_nats::Client {
        let options = async_nats::ConnectOptions::new().name(TESTER);
        options
            .connect(self.url())
            .await
            .expect("the nats-server accepts")
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the nats-server runs")
    }
}
