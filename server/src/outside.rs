//! The thread on which the node speaks to what is neither a client nor another node: the application's HTTP
//! endpoints, key servers, Redis, a collector of traces. Nothing that is slow there holds up a socket.

use std::io;

use tokio::runtime::{Builder, Handle};
use tracing::error;

use crate::vital::EXIT_SOFTWARE;

/// Starts the thread. What is spawned on the handle runs for as long as the process.
pub fn start() -> io::Result<Handle> {
    // Two libraries for TLS might be there; each then asks which one to use. A second node in the same
    // process finds it chosen.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("outside".to_owned())
        .spawn(move || {
            runtime.block_on(std::future::pending::<()>());
            error!("the outside thread ended; the node stops");
            std::process::exit(EXIT_SOFTWARE);
        })?;
    Ok(handle)
}
