//! The hot paths, as `bench/hot` takes them. Not part of the API.

use std::net::TcpListener;

use cluster::MemoryHub;

use crate::app::App;
use crate::config::Config;
use crate::server::{Server, Threads};

pub use crate::delivery::{Wire, payload_frame};
pub use crate::websocket::{Decoder, Incoming};

/// Starts a node whose workers and bus all run on this thread, one after the other, so that what they do is the same
/// each time. It meets those with the same `hub`. Must be called in an actix system.
///
/// # Errors
///
/// Those of [`Server::start`].
pub async fn start(
    config: Config,
    listener: TcpListener,
    hub: &MemoryHub,
) -> anyhow::Result<Server> {
    let threads = Threads::Callers(hub.clone());
    Server::start_on(threads, config, App::new(), listener, None).await
}
