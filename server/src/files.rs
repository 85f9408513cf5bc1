//! Open files: a socket is one. What the system grants is shared out at the start, so that they never run out.

use std::io;

use anyhow::{Context, bail};
use tracing::warn;

use crate::config::{AuthMode, Config};

/// Files of a node beside those of its workers: its runtimes, the bus, and one that is spare on each worker's listener.
const OWN: usize = 16;

/// Files of each worker: its runtime, and the spare one; each listener comes on top.
const WORKER: usize = 5;

/// Kept for what opens files now and then: the bus, files that are read, key servers, Redis, a collector of traces.
const RESERVE: usize = 24;

/// Clients that a node has to have room for, so that it is worth to be started.
const PLACES_MIN: usize = 8;

/// What a node wants, and what becomes of it.
struct Granted {
    limit: usize,
    wanted: usize,
    shares: Shares,
}

/// What a node may open for clients.
#[derive(Debug, PartialEq, Eq)]
struct Shares {
    sockets: usize,
    connections: usize,
    /// Clients that are just told that there is no room.
    refusing: usize,
}

/// Raises the limit of open files as far as the configuration wants, and where it stays below that, cuts `sockets.max`
/// and `sockets.connections` to what it leaves. Says how many clients may be refused at one time.
///
/// # Errors
///
/// When the limit is too low for any node.
pub fn fit(config: &mut Config, workers: usize, refusing_max: usize) -> anyhow::Result<usize> {
    let Granted {
        limit,
        wanted,
        shares,
    } = ask_for(config, workers, refusing_max)?;
    if limit < wanted {
        warn!(
            limit,
            wanted,
            "sockets.max" = shares.sockets,
            "sockets.connections" = shares.connections,
            "too few open files: sockets.max and sockets.connections are cut to what there is; raise the limit (ulimit \
             -n, or LimitNOFILE= of systemd), or lower them"
        );
    }
    config.sockets.max = shares.sockets;
    config.sockets.connections = shares.connections;
    Ok(shares.refusing)
}

/// Says before anything is opened whether a node can be started at all.
///
/// # Errors
///
/// When the limit is too low for that.
pub fn check(config: &Config, workers: usize) -> anyhow::Result<()> {
    ask_for(config, workers, 0).map(drop)
}

fn ask_for(config: &Config, workers: usize, refusing_max: usize) -> anyhow::Result<Granted> {
    let listeners = 1 + usize::from(config.admin.listen.is_some());
    let taken = open().unwrap_or(OWN) + OWN + workers * (WORKER + listeners) + reserve(config);
    // The application may be asked about each connection, over one more.
    let cost = match config.auth.mode {
        AuthMode::Hook => 2,
        AuthMode::None | AuthMode::Token => 1,
    };
    let shares = Shares {
        sockets: config.sockets.max,
        connections: config.sockets.connections,
        refusing: refusing_max,
    };
    let wanted = taken.saturating_add(shares.files(cost));
    let limit = raise_limit(wanted as u64).context("cannot read the limit of open files")?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let needed = taken + PLACES_MIN * cost;
    if limit < wanted && limit < needed {
        bail!(
            "too few open files: the limit is {limit}, and this node needs at least {needed}; raise it (ulimit -n, or \
             LimitNOFILE= of systemd)"
        );
    }
    let shares = match limit < wanted {
        true => shares.cut(limit - taken, cost),
        false => shares,
    };
    Ok(Granted {
        limit,
        wanted,
        shares,
    })
}

/// Files that are open now; none where the system does not say.
fn open() -> Option<usize> {
    let folder = std::fs::read_dir("/proc/self/fd").or_else(|_| std::fs::read_dir("/dev/fd"));
    folder.ok().map(Iterator::count)
}

/// The application's endpoint is spoken to over as many connections as there are lanes.
fn reserve(config: &Config) -> usize {
    RESERVE
        + match config.hooks.url.as_str() {
            "" => 0,
            _ => config.hooks.lanes,
        }
}

impl Shares {
    fn files(&self, cost: usize) -> usize {
        let connections = self.connections.saturating_mul(cost);
        let clients = self.sockets.saturating_add(connections);
        clients.saturating_add(self.refusing)
    }

    /// Of so many files: to those who come and go a fifth, and the rest to sockets, where nobody wants less.
    fn cut(&self, files: usize, cost: usize) -> Self {
        let refusing = self.refusing.min((files / 16).max(1));
        let clients = files.saturating_sub(refusing);
        let connections = self.connections.min((clients / 5 / cost).max(1));
        let sockets = self.sockets.min(clients - connections * cost);
        Self {
            sockets,
            connections: self.connections.min((clients - sockets) / cost),
            refusing,
        }
    }
}

/// Raises the limit of open files to what is wanted, or as far as it may be raised, and says where it is now. The
/// kernel's table of files grows at once to what is wanted of it.
///
/// Left to itself it doubles whenever it is full, and whatever opens a file waits for that, in a process of more than
/// one thread 10 to 25 ms each time (Linux: `expand_fdtable` waits for all processors): a node that takes 5,000
/// sockets would accept nobody for a quarter of the time. The table costs 8 bytes of the kernel's for a file.
pub fn raise_limit(wanted: u64) -> io::Result<u64> {
    let limit = rlimit::increase_nofile_limit(wanted)?;
    #[cfg(target_os = "linux")]
    grow_table(wanted.min(limit));
    Ok(limit)
}

/// Opens a file with the highest number, and closes it. Where that cannot be, the table grows as it is used.
#[cfg(target_os = "linux")]
fn grow_table(files: u64) {
    let last = i32::try_from(files.saturating_sub(1)).unwrap_or(i32::MAX);
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(io::stderr(), last) {
        tracing::debug!(%error, "the table of open files stays small");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_shared_out_and_never_more() {
        let wanted = Shares {
            sockets: 100_000,
            connections: 10_000,
            refusing: 128,
        };
        for (files, cost) in [(8, 1), (16, 2), (100, 1), (137, 1), (1_000, 2), (60_000, 1)] {
            let cut = wanted.cut(files, cost);
            assert!(cut.files(cost) <= files, "{files}: {cut:?}");
            let least = cut.sockets.min(cut.connections).min(cut.refusing);
            assert!(least >= 1, "{files}: {cut:?}");
        }
        let few = Shares {
            sockets: 10,
            ..wanted
        };
        let cut = few.cut(100, 1);
        assert_eq!((cut.sockets, cut.connections), (10, 84), "{cut:?}");
        let few = Shares {
            connections: 3,
            ..wanted
        };
        let cut = few.cut(100, 1);
        assert_eq!((cut.sockets, cut.connections), (91, 3), "{cut:?}");
    }
}
