//! The sockets: a WebSocket server of which any number of nodes act as one.
//!
//! A connection comes through the `door`, becomes a `session`, which is a member of `room`s and known to
//! the `registry` of its worker thread. Publications pass through the one `node` actor. Everything else
//! speaks to the node through the handle [`Unisono`].
//!
//! An application written in Rust is an [`App`]: see there.

pub mod config;
pub mod rules;

mod app;

mod cli;
mod log;
mod server;

mod worker;

mod admission;
mod auth;
mod door;
mod handshake;
mod rate;
mod websocket;

mod session;

mod registry;
mod room;

mod node;

mod ask;
mod delivery;
mod events;
mod hooks;
mod laravel;
mod meters;
mod outside;
mod seldom;
mod shared;
mod signature;
mod vital;

mod api;
mod unisono;

#[cfg(feature = "testing")]
pub mod testing;

pub use actix_web;
pub use app::{
    Accept, App, Context, Frame, HandlerError, Json, Message, Refuse, Reply, Room, Socket,
};
pub use cli::run;
pub use cluster::Sent;
pub use config::{Config, Sources};
pub use handshake::Handshake;
pub use proto::envelope::{RoomsPage, RoomsQuery, SocketInfo, SocketsPage, SocketsQuery, Status};
pub use proto::{Close, NodeId, RoomName, SocketId, UserName};
pub use rules::{ClientEvents, Format, Join, Lifecycle, Publish, Who};
pub use server::Server;
pub use unisono::{
    Confirmed, Disconnect, Members, Nodes, Outgoing, Partial, PublishError, Rooms, SendError, To,
    Unisono, User,
};
