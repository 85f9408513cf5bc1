//! A worker thread: an arbiter with a registry, the sessions that it holds, and a door for newcomers.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr};
use actix_rt::ArbiterHandle;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::door::{Door, Returning};
use crate::node::Node;
use crate::registry::Registry;
use crate::shared::{Shared, Slot};
use crate::unisono::Unisono;
use crate::vital::Vital;

/// What the actors of one worker have in common.
pub struct Worker {
    /// Which it is.
    pub index: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The registry of this worker.
    pub registry: Addr<Registry>,
    /// The way to everything else.
    pub unisono: Unisono,
}

/// A connection that was accepted.
pub struct Connection {
    /// The connection, non-blocking, of no runtime yet.
    pub stream: std::net::TcpStream,
    /// The other end.
    pub peer: SocketAddr,
    /// Whether it came in by the administrators' address.
    pub admin: bool,
    /// Its place among the connections that are no sockets.
    pub slot: Slot,
}

/// Connections that may wait for a worker.
const CONNECTIONS_WAITING: usize = 256;

/// A worker that runs.
pub struct Running {
    /// Its registry.
    pub registry: Addr<Registry>,
    /// Takes what it needs to let clients in.
    pub open: oneshot::Sender<Unisono>,
    /// Takes connections.
    pub connections: mpsc::Sender<Connection>,
}

/// Starts a worker on a thread. It lets nobody in before it is told of the other workers.
pub async fn start(
    index: usize,
    thread: ArbiterHandle,
    shared: Arc<Shared>,
    node: Addr<Node>,
) -> Running {
    let (registry_sender, registry) = oneshot::channel();
    let (open, unisono) = oneshot::channel();
    let (connections, receiver) = mpsc::channel(CONNECTIONS_WAITING);
    let run = async move || {
        let registry = Registry::new(index, Arc::clone(&shared), node).start();
        let _ = registry_sender.send(registry.clone());
        let Ok(unisono) = unisono.await else {
            return;
        };
        let worker = Rc::new(Worker {
            index,
            shared,
            registry,
            unisono,
        });
        serve(worker, receiver).await;
    };
    thread.spawn_fn(move || {
        actix_rt::spawn(run());
    });
    let registry = registry.await.expect("a new worker answers");
    Running {
        registry,
        open,
        connections,
    }
}

async fn serve(worker: Rc<Worker>, mut connections: mpsc::Receiver<Connection>) {
    let _vital = Vital("door");
    let (returning_sender, mut returning) = mpsc::unbounded_channel();
    let door = Rc::new(Door::new(worker, returning_sender).await);
    loop {
        let door = Rc::clone(&door);
        tokio::select! {
            Some(Returning(connection)) = returning.recv() => {
                actix_rt::spawn(async move { door.enter(connection).await });
            }
            connection = connections.recv() => {
                let Some(Connection { stream, peer, admin, slot }) = connection else {
                    return;
                };
                match TcpStream::from_std(stream) {
                    Ok(stream) => {
                        actix_rt::spawn(async move { door.greet(stream, peer, admin, slot).await });
                    }
                    Err(error) => error!(%error, "a connection cannot be used"),
                }
            }
        }
    }
}
