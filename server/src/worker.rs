//! A worker thread: an arbiter with a registry, the sessions that it holds, and a door for newcomers.

use std::rc::Rc;
use std::sync::Arc;

use actix::{Actor, Addr};
use actix_rt::ArbiterHandle;
use proto::Close;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use crate::door::Door;
use crate::listener::Listener;
use crate::node::Node;
use crate::registry::{Closed, Registry};
use crate::session::Wakes;
use crate::shared::Shared;
use crate::unisono::Unisono;
use crate::vital::{EXIT_SOFTWARE, Vital};

/// What the actors of one worker have in common.
pub struct Worker {
    /// Which it is.
    pub index: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The registry of this worker.
    pub registry: Addr<Registry>,
    /// The clock of its sessions.
    pub wakes: Wakes,
    /// The way to everything else.
    pub unisono: Unisono,
}

/// The way to everything else, and where clients come in.
pub type Opening = (Unisono, Vec<Listener>);

/// A worker that runs.
pub struct Running {
    /// Its registry.
    pub registry: Addr<Registry>,
    /// Takes what it needs to let clients in.
    pub open: oneshot::Sender<Opening>,
}

/// Starts a worker on a thread. It lets nobody in before it is told of the other workers.
pub async fn start(
    index: usize,
    thread: ArbiterHandle,
    shared: Arc<Shared>,
    node: Addr<Node>,
) -> Running {
    let (registry_sender, registry) = oneshot::channel();
    let (open, opening) = oneshot::channel::<Opening>();
    let run = async move || {
        shared.meters.enter(format!("worker-{index}"));
        let registry = Registry::new(index, Arc::clone(&shared), node).start();
        let _ = registry_sender.send(registry.clone());
        let Ok((unisono, listeners)) = opening.await else {
            return;
        };
        let worker = Rc::new(Worker {
            index,
            shared,
            registry,
            wakes: Wakes::new(),
            unisono,
        });
        serve(worker, listeners).await;
    };
    thread.spawn_fn(move || {
        actix_rt::spawn(run());
    });
    let registry = registry.await.expect("a new worker answers");
    Running { registry, open }
}

async fn serve(worker: Rc<Worker>, listeners: Vec<Listener>) {
    let _vital = Vital("door");
    let shared = Arc::clone(&worker.shared);
    actix_rt::spawn(wake(Rc::clone(&worker)));
    let (returning_sender, mut returning) = mpsc::unbounded_channel();
    let door = Rc::new(Door::new(worker, returning_sender).await);
    for listener in listeners {
        let accepting = listener.accept(Rc::clone(&door), Arc::clone(&shared));
        actix_rt::spawn(async move {
            // Ends without an error when the node leaves.
            if let Err(error) = accepting.await {
                error!(%error, "a worker cannot listen; the node stops");
                std::process::exit(EXIT_SOFTWARE);
            }
        });
    }
    while let Some(connection) = returning.recv().await {
        let door = Rc::clone(&door);
        actix_rt::spawn(async move { door.enter_again(connection).await });
    }
}

async fn wake(worker: Rc<Worker>) {
    let _vital = Vital("clock");
    let ended = |id| worker.registry.do_send(Closed(id, Close::INTERNAL));
    worker.wakes.run(ended).await;
}
