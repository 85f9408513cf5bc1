//! A real nginx in front of the nodes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{Api, Client, Node, Process, Stream, eventually, free_port};

const HINT: &str = "install nginx (Debian: apt-get install nginx)";

/// An nginx on a free port, with a configuration that belongs inside `http { }`.
#[derive(Debug)]
pub struct Nginx {
    port: u16,
    api: Api,
    _process: Process,
    _directory: TempDir,
}

// === impl Nginx ===

impl Nginx {
    /// The configuration that is shipped, with nothing changed but addresses and the log's path.
    pub async fn shipped(nodes: &[Node]) -> Self {
        let conf = read("../nginx/unisono.conf");
        let listen = substitute(&conf, "listen 80;", "listen 127.0.0.1:@PORT@;");
        let mut text = substitute(&listen, "/var/log/nginx/access.log", "access.log");
        for (i, node) in nodes.iter().enumerate() {
            let shipped = format!("server 127.0.0.1:{} ", 8081 + i);
            text = substitute(
                &text,
                &shipped,
                &format!("server 127.0.0.1:{} ", node.port()),
            );
        }
        assert!(
            !text.contains("127.0.0.1:808"),
            "the shipped file names more nodes than there are"
        );
        Self::start(&text, nodes).await
    }

    /// The configuration of the Laravel package's documentation, as its authors wrote it.
    pub async fn laravel(nodes: &[Node]) -> Self {
        Self::start(&read("nginx/laravel.conf"), nodes).await
    }

    /// The configuration of the Hyperf documentation, as its authors wrote it.
    pub async fn hyperf(nodes: &[Node]) -> Self {
        Self::start(&read("nginx/hyperf.conf"), nodes).await
    }

    /// Starts nginx with `@PORT@` and `@NODES@` replaced in this text; the nodes are also the upstream
    /// group `unisono_nodes`.
    async fn start(text: &str, nodes: &[Node]) -> Self {
        let port = free_port();
        let servers: String = nodes
            .iter()
            .map(|node| format!("server 127.0.0.1:{};\n", node.port()))
            .collect();
        let site = text
            .replace("@PORT@", &port.to_string())
            .replace("@NODES@", &servers);

        let directory = TempDir::with_prefix("unisono-nginx-").expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("site.conf"), site).expect("a file in the test's own directory");
        fs::write(path("nginx.conf"), around(directory.path(), &servers))
            .expect("a file in the test's own directory");
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(path("nginx.conf"));
        command.args(["-e", "stderr"]);
        let mut process = Process::spawn("nginx", command, directory.path(), HINT);
        eventually("nginx listens", async || {
            process.must_run();
            TcpStream::connect(("127.0.0.1", port)).await
        })
        .await;
        let api = Api::new(format!("http://127.0.0.1:{port}"), None);
        Self {
            port,
            api,
            _process: process,
            _directory: directory,
        }
    }

    /// The HTTP API as the world outside sees it.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A client that comes through nginx, greeted.
    pub async fn client(&self, path: &str) -> Client {
        Client::connect(&format!("ws://127.0.0.1:{}{path}", self.port)).await
    }

    /// The event stream of this path, through nginx, greeted.
    pub async fn stream(&self, path: &str) -> Stream {
        Stream::connect(self.port, path).await
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// The file around the one under test. One process and no workers: nothing outlives it when it is killed.
fn around(directory: &Path, servers: &str) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {}/{name};\n", directory.display()))
        .collect();
    format!(
        "daemon off;\nmaster_process off;\npid {}/nginx.pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n{temporary}access_log off;\n\
         upstream unisono_nodes {{\n{servers}}}\n\
         include site.conf;\n}}\n",
        directory.display()
    )
}

fn substitute(text: &str, from: &str, to: &str) -> String {
    assert!(
        text.contains(from),
        "the shipped nginx configuration has no {from:?} any more"
    );
    text.replace(from, to)
}

fn read(relative: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(relative);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
