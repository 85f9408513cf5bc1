//! Behind a real nginx: the configuration that is shipped, each claim and each variant of it, and two that people
//! have already.

mod balancing;
mod forwarding;
mod limits;
mod log;
mod numbers;
mod reload;
mod times;
mod tls;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use unisono_tests::{
    Client, Nginx, NginxConfig, Node, Response, Sandbox, Wire, eventually, upgrade_request,
};

/// What holds behind any of the configurations.
async fn a_cluster_works_behind(nginx: &Nginx, mut sandbox: Sandbox) {
    let mut clients = vec![];
    for _ in 0..30 {
        clients.push(nginx.client("/chat-rooms/1?token=x").await);
    }
    let shares = shares(&clients);
    assert_eq!(shares.len(), sandbox.nodes.len(), "{shares:?}");
    assert!(shares.values().all(|share| *share >= 5), "{shares:?}");

    clients[0]
        .send("new message", json!({"content": "hi"}))
        .await;
    let first = clients[0].id.clone();
    for client in &mut clients[1..] {
        let message = client.expect("new message").await;
        assert_eq!(message.from.as_deref(), Some(first.as_str()));
    }
    let last = clients[29].id.clone();
    assert_eq!(
        clients[0].emit(&last, "psst", Value::Null).await,
        "delivered"
    );
    clients[29].expect("psst").await;

    assert_eq!(nginx.api().get("/health/live").await.status, 200);
    let stranger = nginx.api().with_key(None);
    assert_eq!(stranger.get("/api/v1/nodes").await.refusal().0, 401);
    let publication = json!({"room": "/chat-rooms/1", "event": "intruder"});
    assert_eq!(stranger.post("publish", publication).await.refusal().0, 401);
    sandbox.api(0).broadcast("fence", Value::Null).await;
    for client in &mut clients {
        client.expect("fence").await;
    }

    clients[0].close(4000, "bye").await;
    assert_eq!(clients[0].expect_close().await.0, 4000);

    let dead = sandbox.ids().await[2].clone();
    sandbox.nodes[2].kill();
    for _ in 0..6 {
        assert_ne!(nginx.client("/").await.node, dead);
    }
}

/// How many of these clients are on which node.
fn shares(clients: &[Client]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for client in clients {
        *shares.entry(client.node.as_str()).or_default() += 1;
    }
    shares
}

/// The shipped configuration in front of these nodes, to build on.
fn config(nodes: &[Node]) -> NginxConfig {
    Nginx::config(nodes.iter().map(Node::port))
}

/// A handshake with one more header line.
fn upgrade_with(path: &str, header: &str) -> String {
    upgrade_request(path).replace("\r\n\r\n", &format!("\r\n{header}\r\n\r\n"))
}

/// What this request is answered.
async fn answer(mut wire: Wire, request: &str) -> Response {
    wire.send(request).await;
    wire.response().await
}

/// A machine that has gone without a word: connections to it are neither taken nor refused.
struct Vanished {
    listener: TcpListener,
    _waiting: Vec<TcpStream>,
}

impl Vanished {
    /// Its queue of one is full, and the kernel lets everybody else try for ever.
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().expect("a TCP socket");
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .expect("a free port");
        let listener = socket.listen(0).expect("a listener");
        let address = listener.local_addr().expect("a bound socket");
        let waiting = TcpStream::connect(address).await;
        Self {
            listener,
            _waiting: vec![waiting.expect("the one place in its queue")],
        }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().expect("a bound socket").port()
    }
}

// === whole configurations ===

#[tokio::test]
async fn the_shipped_configuration_carries_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[tokio::test]
async fn the_laravel_configuration_carries_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::laravel(&sandbox.nodes).await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[tokio::test]
async fn the_hyperf_configuration_carries_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::hyperf(&sandbox.nodes).await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[tokio::test]
async fn limits_behind_another_proxy_carry_a_cluster() {
    let sandbox = Sandbox::start(3).await;
    let config = config(&sandbox.nodes).variant("limit").variant("realip");
    let nginx = config.start().await;

    a_cluster_works_behind(&nginx, sandbox).await;
}

#[test]
fn each_variant_is_taken_by_the_command_beside_it() {
    let text = Nginx::text();
    let mut marks: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split([' ', '\n']).next())
        .filter(|mark| !mark.is_empty())
        .collect();
    marks.sort_unstable();
    marks.dedup();
    assert_eq!(marks, ["hsts", "limit", "realip", "tls"]);

    for mark in marks {
        let command = text.lines().find(|line| {
            line.starts_with("#     sed -i '") && line.contains(&format!("s/^#{mark} //"))
        });
        let command = command.unwrap_or_else(|| panic!("no command for {mark}"));
        let script = command.split('\'').nth(1).expect("a script in quotes");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("unisono.conf");
        fs::write(&file, &text).expect("a file in the test's own directory");
        let sed = Command::new("sed").args(["-i", script]).arg(&file).status();
        assert!(sed.expect("sed").success());

        let taken = fs::read_to_string(&file).expect("a file");
        let mut expected = Nginx::config([8081, 8082, 8083]);
        if mark == "tls" {
            expected = expected.set("\n    listen 80;\n", "\n");
        }
        assert_eq!(taken, expected.variant(mark).site());
    }
}

#[tokio::test]
async fn the_shipped_configuration_keeps_the_metrics_inside() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;

    assert_eq!(nginx.api().get("/metrics").await.status, 404);
    assert_eq!(sandbox.api(0).get("/metrics").await.status, 200);
}

#[tokio::test]
async fn a_socket_costs_nginx_two_connections() {
    let sandbox = Sandbox::start(1).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let open = || -> usize {
        let files = |pid| {
            fs::read_dir(format!("/proc/{pid}/fd"))
                .expect("a worker")
                .count()
        };
        nginx.workers().iter().map(files).sum()
    };
    let mut clients = vec![nginx.client("/x").await];
    // What a worker opens with its first connection is not counted, nor what an earlier one has left.
    let mut before = 0;
    eventually("all is quiet", async || {
        let now = open();
        std::mem::replace(&mut before, now) == now
    })
    .await;
    for _ in 0..10 {
        clients.push(nginx.client("/x").await);
    }
    assert_eq!(open() - before, 20);
}

async fn drain(node: &Node) {
    node.terminate();
    eventually("the node is no longer ready", async || {
        node.api().get("/health/ready").await.status == 503
    })
    .await;
}
