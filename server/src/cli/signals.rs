//! What signals mean to a node.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use toml::{Table, Value};
use tracing::{error, info, warn};

use super::outcome::Done;
use crate::config::{Drain, Loaded, Sources};
use crate::log::Level;
use crate::server::Server;

/// The signals of a node, from when it starts.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    /// They would end a process that does not listen.
    _ignored: [Signal; 2],
}

/// What can change while the node runs.
pub struct Live {
    /// What is logged.
    pub level: Level,
    /// The configuration at the start, as `unisono config` prints it.
    pub text: String,
    /// Where it comes from.
    pub sources: Sources,
}

/// Settings that SIGHUP takes. Where files have changed in their places, there is no need of it.
const LIVE: [&str; 10] = [
    "api.keys",
    "api.keys_file",
    "auth.secret",
    "auth.secret_file",
    "auth.public_key_file",
    "auth.algorithm",
    "auth.jwks_file",
    "hooks.secret",
    "hooks.secret_file",
    "log.level",
];

/// How long files may take that are read again: a signal that comes meanwhile waits.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(5);

impl Signals {
    /// Listens from now on.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            _ignored: [
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
            ],
        })
    }

    /// Serves until a signal, or a request of the API, ends it. SIGTERM drains, and so does the API. SIGINT, from somebody
    /// at a keyboard, closes all sockets at once, in good order. A second of these ends the process at once, and so does
    /// SIGQUIT. SIGHUP reads again what can be.
    pub async fn serve(mut self, server: &Server, drain: &Drain, mut live: Live) -> Done {
        let (delay, window) = loop {
            tokio::select! {
                _ = self.terminate.recv() => break (drain.delay, drain.window),
                _ = self.interrupt.recv() => break (Duration::ZERO, Duration::ZERO),
                () = server.drain_wanted() => break (drain.delay, drain.window),
                _ = self.quit.recv() => return quit(),
                _ = self.hang_up.recv() => live.reload(server).await,
            }
        };
        let mut drained = pin!(server.drain(delay, window));
        loop {
            tokio::select! {
                () = &mut drained => return Done::All,
                _ = self.terminate.recv() => break,
                _ = self.interrupt.recv() => break,
                _ = self.quit.recv() => return quit(),
                _ = self.hang_up.recv() => live.reload(server).await,
            }
        }
        warn!("a second signal: the rest of the drain is left out");
        Done::All
    }
}

fn quit() -> Done {
    warn!("SIGQUIT: the node ends at once, its sockets without a goodbye");
    Done::Quit
}

impl Live {
    /// Reads again what can be, and says what came of it.
    async fn reload(&mut self, server: &Server) {
        info!("SIGHUP: reading keys, secrets, certificates and the log level again");
        if timeout(RELOAD_TIMEOUT, self.read(server)).await.is_err() {
            error!("files took too long to read: not all that can be was read again");
        }
    }

    async fn read(&mut self, server: &Server) {
        let sources = self.sources.clone();
        // Not on this thread, which publications pass.
        let loaded = tokio::task::spawn_blocking(move || sources.load()).await;
        let loaded = match loaded.map_err(|error| error.to_string()) {
            Ok(Ok(loaded)) => Some(loaded),
            Ok(Err(error)) => refuse(&error.to_string()),
            Err(error) => refuse(&error),
        };
        let config = loaded.as_ref().map(|loaded| &loaded.config);
        let mut failed = server.reload(config).await;
        if let Some(config) = config {
            let level = config.log.level.as_str();
            match self.level.change(level) {
                Ok(true) => info!(level, "log.level: another level"),
                Ok(false) => {}
                Err(error) => {
                    error!(%error, level, "log.level: the old level stays");
                    failed.push("log.level");
                }
            }
        }
        if let Some(loaded) = &loaded {
            let waiting = changed(&self.text, &loaded.text).join(", ");
            if !waiting.is_empty() {
                warn!(
                    settings = waiting,
                    "changed in the configuration, and in use after a restart only"
                );
            }
        }
        match failed.is_empty() {
            true => info!("SIGHUP: done"),
            false => error!(
                settings = failed.join(", "),
                "SIGHUP: done, but for some settings"
            ),
        }
    }
}

fn refuse(error: &str) -> Option<Loaded> {
    error!(error, "the configuration is of no use; the old one stays");
    None
}

/// The settings that differ and are not taken while the node runs.
fn changed(before: &str, after: &str) -> Vec<String> {
    let (before, after) = (flat(before), flat(after));
    let is_other = |(key, value): &(String, Value)| {
        let same = before.iter().any(|old| old.0 == *key && old.1 == *value);
        !same && !LIVE.contains(&key.as_str())
    };
    let mut changed: Vec<_> = after
        .iter()
        .filter(|pair| is_other(pair))
        .map(|pair| pair.0.clone())
        .collect();
    let gone = before
        .iter()
        .filter(|(key, _)| !after.iter().any(|new| new.0 == *key));
    changed.extend(gone.map(|(key, _)| key.clone()));
    changed
}

/// Each setting with its value.
fn flat(text: &str) -> Vec<(String, Value)> {
    let mut settings = Vec::new();
    for (name, value) in text.parse::<Table>().unwrap_or_default() {
        match value {
            Value::Table(section) => {
                let named = |(key, value)| (format!("{name}.{key}"), value);
                settings.extend(section.into_iter().map(named));
            }
            value => settings.push((name, value)),
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_wait_for_a_restart_are_named() {
        let before = "listen = 'a'\n[api]\nkeys = []\n[sockets]\nmax = 1\nconnections = 2\n[[rooms]]\npattern = '/a'";
        let after = "listen = 'a'\n[api]\nkeys = ['(hidden)']\n[sockets]\nmax = 3\nconnections = 2";
        assert_eq!(changed(before, after), ["sockets.max", "rooms"]);
        assert!(changed(before, before).is_empty());
    }
}
