//! A real nginx in front of the nodes: a master and two workers, as in production.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{
    Api, Certificate, Client, KEY, Node, Process, Stream, Wire, eventually, free_port,
    in_repository,
};

const HINT: &str = "install nginx (Debian: apt-get install nginx)";

/// Ports of the nodes in the shipped file.
const SHIPPED_PORTS: [u16; 3] = [8081, 8082, 8083];

/// An nginx on free ports, with a configuration that belongs inside `http { }`.
#[derive(Debug)]
pub struct Nginx {
    config: NginxConfig,
    port: u16,
    tls_port: u16,
    api: Api,
    // Before the directory: its last words are read from there.
    process: Process,
    directory: TempDir,
}

/// What an nginx is started with.
#[derive(Debug, Clone)]
pub struct NginxConfig {
    site: String,
    main: String,
    upstream: Vec<u16>,
    certificate: Option<Certificate>,
}

// === impl NginxConfig ===

impl NginxConfig {
    /// Takes a variant as its first lines say: the lines with this mark lose it.
    ///
    /// # Panics
    /// When no line has it.
    #[must_use]
    pub fn variant(mut self, mark: &str) -> Self {
        let mark = format!("#{mark} ");
        let take = |line: &str| match line.strip_prefix(&mark) {
            Some(line) => format!("{line}\n"),
            None => format!("{line}\n"),
        };
        assert!(
            self.site.contains(&format!("\n{mark}")),
            "no line begins with {mark:?}"
        );
        self.site = self.site.lines().map(take).collect();
        self
    }

    /// The variant `tls`, with this certificate, on [`Nginx::tls_port`]; what is plain is sent there.
    #[must_use]
    pub fn tls(mut self, certificate: &Certificate) -> Self {
        self = self.set("\n    listen 80;\n", "\n").variant("tls");
        self.certificate = Some(certificate.clone());
        self
    }

    /// Another text in place of one that is there, such as a shorter time.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn set(mut self, from: &str, to: &str) -> Self {
        assert!(
            self.site.contains(from),
            "the nginx configuration has no {from:?} any more"
        );
        self.site = self.site.replace(from, to);
        self
    }

    /// One more directive for the file around it.
    #[must_use]
    pub fn main(mut self, directive: &str) -> Self {
        self.main.push_str(directive);
        self
    }

    /// What goes inside `http { }`, as far as it is settled before the start.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// Starts it and waits until it listens.
    pub async fn start(self) -> Nginx {
        let directory = TempDir::with_prefix("unisono-nginx-").expect("a temporary directory");
        let (port, tls_port) = (free_port(), free_port());
        self.write(directory.path(), port, tls_port);
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path());
        command.arg("-c").arg(directory.path().join("nginx.conf"));
        command.args(["-e", "stderr"]);
        let mut process = Process::spawn("nginx", command, directory.path(), HINT);
        eventually("nginx listens", async || {
            process.must_run();
            TcpStream::connect(("127.0.0.1", port)).await
        })
        .await;
        let nginx = Nginx {
            config: self,
            port,
            tls_port,
            api: Api::new(format!("http://127.0.0.1:{port}"), Some(KEY.to_owned())),
            process,
            directory,
        };
        eventually("its workers run", async || nginx.workers().len() == WORKERS).await;
        nginx
    }

    fn write(&self, directory: &Path, port: u16, tls_port: u16) {
        let nodes: String = self.upstream.iter().map(|port| server(*port)).collect();
        let site = self
            .site
            .replace("@NODES@", &nodes)
            .replace("@PORT@", &port.to_string())
            .replace("listen 80;", &format!("listen 127.0.0.1:{port};"))
            .replace("listen 443 ", &format!("listen 127.0.0.1:{tls_port} "))
            .replace("/etc/nginx/tls/", "")
            .replace("/var/log/nginx/", "");
        if let Some(certificate) = &self.certificate {
            certificate.write(directory, "fullchain.pem", "privkey.pem");
        }
        for (name, text) in [
            ("site.conf", site),
            ("nginx.conf", around(directory, &self.main, &nodes)),
        ] {
            fs::write(directory.join(name), text).expect("a file in the test's own directory");
        }
    }
}

// === impl Nginx ===

/// Enough for what they share and what they do not.
const WORKERS: usize = 2;

impl Nginx {
    /// The configuration that is shipped, with nothing changed but addresses and the log's path.
    pub async fn shipped(nodes: &[Node]) -> Self {
        Self::config(nodes.iter().map(Node::port)).start().await
    }

    /// The configuration that is shipped, in front of these ports, to build on.
    pub fn config(upstream: impl IntoIterator<Item = u16>) -> NginxConfig {
        let upstream: Vec<u16> = upstream.into_iter().collect();
        let mut config = NginxConfig {
            site: Self::text(),
            main: String::new(),
            upstream: upstream.clone(),
            certificate: None,
        };
        assert!(
            upstream.len() <= SHIPPED_PORTS.len(),
            "more nodes than that"
        );
        for (i, shipped) in SHIPPED_PORTS.into_iter().enumerate() {
            let shipped = format!("server 127.0.0.1:{shipped} max_fails=0;");
            config = match upstream.get(i) {
                Some(port) => {
                    let own = format!("server 127.0.0.1:{port} max_fails=0;");
                    config.set(&shipped, &own)
                }
                None => config.set(&shipped, ""),
            };
        }
        config
    }

    /// The shipped file as it is.
    pub fn text() -> String {
        in_repository("nginx/unisono.conf")
    }

    /// The configuration of the Laravel package's documentation, as its authors wrote it.
    pub async fn laravel(nodes: &[Node]) -> Self {
        Self::foreign("tests/nginx/laravel.conf", nodes).await
    }

    /// The configuration of the Hyperf documentation, as its authors wrote it.
    pub async fn hyperf(nodes: &[Node]) -> Self {
        Self::foreign("tests/nginx/hyperf.conf", nodes).await
    }

    /// A site of the test's own; `listen 80;` becomes a free port.
    pub fn site(site: &str) -> NginxConfig {
        NginxConfig {
            site: site.to_owned(),
            main: String::new(),
            upstream: vec![free_port()],
            certificate: None,
        }
    }

    async fn foreign(path: &str, nodes: &[Node]) -> Self {
        let config = NginxConfig {
            site: in_repository(path),
            main: String::new(),
            upstream: nodes.iter().map(Node::port).collect(),
            certificate: None,
        };
        config.start().await
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

    /// A bare TCP connection.
    pub async fn wire(&self) -> Wire {
        Wire::connect(self.port).await
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port for TLS, with [`NginxConfig::tls`].
    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    /// What the access log says so far.
    pub fn access_log(&self) -> String {
        fs::read_to_string(self.directory.path().join("access.log")).unwrap_or_default()
    }

    /// What the error log says so far.
    pub fn error_log(&self) -> String {
        self.process.stderr()
    }

    /// The process ids of the workers, those that are on their way out included.
    pub fn workers(&self) -> BTreeSet<u32> {
        let pid = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        children
            .split_whitespace()
            .map(|pid| pid.parse().expect("a process id"))
            .collect()
    }

    /// Stops one worker, so that others take whatever comes. Returns when it has stopped.
    pub fn freeze(&self, worker: u32) {
        signal(worker, Signal::STOP);
        let state = || fs::read_to_string(format!("/proc/{worker}/stat"));
        while !state().expect("the worker runs").contains(") T ") {
            thread::yield_now();
        }
    }

    /// It goes on where it stopped.
    pub fn thaw(&self, worker: u32) {
        signal(worker, Signal::CONT);
    }

    /// Puts another certificate where the first one is.
    pub fn certify(&mut self, certificate: &Certificate) {
        certificate.write(self.directory.path(), "fullchain.pem", "privkey.pem");
        self.config.certificate = Some(certificate.clone());
    }

    /// `nginx -s reload`, and waits until new workers serve alone.
    pub async fn reload(&self) {
        let old = self.workers();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(self.directory.path());
        command
            .arg("-c")
            .arg(self.directory.path().join("nginx.conf"));
        let reload = command.args(["-e", "stderr", "-s", "reload"]).status();
        assert!(reload.expect("nginx reloads").success());
        eventually("new workers have taken over", async || {
            let retired = old.iter().all(|pid| {
                let title = fs::read_to_string(format!("/proc/{pid}/cmdline"));
                title.unwrap_or_default().contains("is shutting down")
                    || !self.workers().contains(pid)
            });
            let fresh = self.workers().difference(&old).count();
            if retired && fresh == WORKERS {
                Ok(())
            } else {
                Err((old.clone(), self.workers()))
            }
        })
        .await;
    }
}

impl Drop for Nginx {
    /// Through the master, for workers would outlive its being killed.
    fn drop(&mut self) {
        self.process.end();
    }
}

/// The file around the one under test.
fn around(directory: &Path, main: &str, nodes: &str) -> String {
    let directory = directory.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {directory}/{name};\n"))
        .collect();
    // The directory is this user's own.
    let user = match geteuid().is_root() {
        true => "user root;\n",
        false => "",
    };
    format!(
        "daemon off;\npid {directory}/nginx.pid;\nworker_processes {WORKERS};\n{user}{main}\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n{temporary}access_log off;\n\
         upstream unisono_nodes {{\n{nodes}}}\n\
         include site.conf;\n}}\n"
    )
}

fn signal(worker: u32, signal: Signal) {
    let pid = i32::try_from(worker).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), signal).expect("the worker runs");
}

fn server(port: u16) -> String {
    format!("server 127.0.0.1:{port};\n")
}
