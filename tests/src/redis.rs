//! A real redis-server, as a Laravel application would publish on it: started, killed, brought back on the
//! same port, frozen.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use redis::{Client, IntoConnectionInfo};
use tempfile::TempDir;

use crate::{Process, eventually, free_port};

const HINT: &str = "install redis-server (Debian: apt-get install redis-server)";

/// A Redis server on loopback ports that stay the same over restarts.
#[derive(Debug)]
pub struct Redis {
    port: u16,
    tls_port: u16,
    config: RedisConfig,
    // Before the directory: its last words are read from there.
    process: Option<Process>,
    directory: TempDir,
}

/// What differs from a plain server.
#[derive(Debug, Clone, Default)]
pub struct RedisConfig {
    password: Option<String>,
    users: String,
    tls: bool,
}

// === impl RedisConfig ===

impl RedisConfig {
    /// What everybody must know who comes without a name.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// A user of this name, with a password and with nothing but these rights, as `ACL SETUSER` takes them.
    #[must_use]
    pub fn user(mut self, name: &str, password: &str, rights: &str) -> Self {
        let _ = writeln!(self.users, "user {name} on >{password} {rights}");
        self
    }

    /// A second port, for TLS, with a certificate that [`Redis::authority`] vouches for.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts the server and waits until it serves.
    pub async fn start(self) -> Redis {
        let mut redis = self.absent();
        redis.start_again().await;
        redis
    }

    /// A server that has its ports but does not run yet.
    pub fn absent(self) -> Redis {
        let directory = TempDir::with_prefix("unisono-redis-").expect("a temporary directory");
        if self.tls {
            certify(directory.path());
        }
        let redis = Redis {
            port: free_port(),
            tls_port: free_port(),
            config: self,
            directory,
            process: None,
        };
        redis.write("redis.conf", &redis.text());
        redis
    }
}

// === impl Redis ===

impl Redis {
    /// Starts a plain server.
    pub async fn start() -> Self {
        RedisConfig::default().start().await
    }

    /// A server that has its ports but does not run yet; [`Redis::start_again`] brings it up.
    pub fn absent() -> Self {
        RedisConfig::default().absent()
    }

    /// What may be set before the start.
    pub fn config() -> RedisConfig {
        RedisConfig::default()
    }

    /// `redis://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// `redis://<user>@127.0.0.1:<port>`.
    pub fn url_of(&self, user: &str) -> String {
        format!("redis://{user}@127.0.0.1:{}", self.port)
    }

    /// `rediss://localhost:<port>`, of a server with [`RedisConfig::tls`].
    pub fn tls_url(&self) -> String {
        format!("rediss://localhost:{}", self.tls_port)
    }

    /// The certificate to trust, as PEM, of a server with [`RedisConfig::tls`].
    pub fn authority(&self) -> PathBuf {
        self.path("certificate.pem")
    }

    /// Puts a file beside the server's own, and says where.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).expect("a file in the test's own directory");
        path
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it on the same ports, for the first time or after [`Redis::kill`].
    pub async fn start_again(&mut self) {
        let mut command = Command::new("redis-server");
        command
            .arg(self.path("redis.conf"))
            .current_dir(self.directory.path());
        let process = Process::spawn("redis-server", command, self.directory.path(), HINT);
        self.process = Some(process);
        eventually("redis-server serves", async || {
            self.process.as_mut().expect("just started").must_run();
            self.ask::<String>(redis::cmd("PING")).await
        })
        .await;
    }

    /// SIGSTOP: connections stay open and nothing moves.
    pub fn freeze(&self) {
        self.process().freeze();
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.process().thaw();
    }

    /// Publishes as Laravel does; returns how many nodes it went to.
    pub async fn publish(&self, channel: &str, payload: impl AsRef<[u8]>) -> usize {
        let mut command = redis::cmd("PUBLISH");
        command.arg(channel).arg(payload.as_ref());
        self.ask(command).await.expect("Redis publishes")
    }

    /// How many connections listen to patterns of channels.
    pub async fn listeners(&self) -> usize {
        let mut command = redis::cmd("CLIENT");
        command.arg("LIST").arg("TYPE").arg("pubsub");
        let list: String = self.ask(command).await.expect("Redis lists its clients");
        let patterns = |line: &&str| !line.contains(" psub=0 ");
        list.lines().filter(patterns).count()
    }

    /// Waits until so many nodes listen.
    #[track_caller]
    pub fn has_listeners(&self, count: usize) -> impl Future<Output = ()> {
        eventually("the nodes listen to Redis", async move || {
            let listeners = self.listeners().await;
            if listeners == count {
                Ok(())
            } else {
                Err(listeners)
            }
        })
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: redis::Cmd) -> redis::RedisResult<T> {
        let server = self.url().into_connection_info()?;
        let mut settings = server.redis_settings().clone();
        if let Some(password) = &self.config.password {
            settings = settings.set_password(password);
        }
        let client = Client::open(server.set_redis_settings(settings))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        command.query_async(&mut connection).await
    }

    fn text(&self) -> String {
        let RedisConfig {
            password,
            users,
            tls,
        } = &self.config;
        let password = password.as_ref();
        let password = password.map(|password| format!("requirepass {password:?}\n"));
        let password = password.unwrap_or_default();
        let tls = match tls {
            false => String::new(),
            true => format!(
                "tls-port {}\ntls-cert-file certificate.pem\ntls-key-file key.pem\n\
                 tls-ca-cert-file certificate.pem\ntls-auth-clients no\n",
                self.tls_port
            ),
        };
        let port = self.port;
        format!(
            "bind 127.0.0.1\nport {port}\nsave \"\"\nappendonly no\ndaemonize no\n\
             {password}{users}{tls}"
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the redis-server runs")
    }
}

/// A certificate of its own for `localhost`, with its key.
fn certify(directory: &Path) {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    for (name, text) in [
        ("certificate.pem", cert.pem()),
        ("key.pem", signing_key.serialize_pem()),
    ] {
        fs::write(directory.join(name), text).expect("a file in the test's own directory");
    }
}
