//! The sockets: a WebSocket server of which any number of nodes act as one.
//!
//! A connection comes through the `door`, becomes a `session`, which is a member of `room`s and known to
//! the `registry` of its worker thread. Publications pass through the one `node` actor. Everything else
//! speaks to the node through the handle [`Unisono`].

pub mod config;
pub mod rules;

mod server;

mod worker;

pub mod auth;
mod door;
pub mod handshake;
mod websocket;

mod session;

mod registry;
mod room;

mod node;

mod ask;
mod delivery;
mod outside;
mod shared;
mod signature;
mod vital;

mod api;
mod app;

pub use app::{Nodes, Partial, PublishError, Unisono};
pub use config::{Config, Sources};
pub use server::Server;
