//! A WebSocket server of which any number of nodes act as one, as a library: your application inside.
//!
//! ```no_run
//! use unisono_server::{App, HandlerError, Message, Room, Socket, SocketId, Status};
//!
//! /// What it returns becomes the client's ack.
//! async fn private_message(socket: Socket, message: Message) -> Result<Status, HandlerError> {
//!     let to: SocketId = message.get("to", String::new()).parse().map_err(HandlerError::new)?;
//!     Ok(socket.unisono().emit(to, "private message", message.value()).await?)
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let room = Room::new("/chat-rooms/{id}").on("private message", private_message);
//!     unisono_server::run(App::new().room(room))
//! }
//! ```
//!
//! [`App`] and [`Room`] say what an application is made of, [`Socket`] and [`Message`] are what handlers get,
//! [`Unisono`] is the cluster, for routes and tasks outside of handlers, and `testing` (a feature) a node and clients
//! for tests.
//!
//! # Inside
//!
//! A connection comes through the `door`, becomes a `session`, which is a member of `room`s and known to
//! the `registry` of its worker thread. Publications pass through the one `node` actor. Everything else
//! speaks to the node through the handle [`Unisono`].

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
mod rebalance;
mod websocket;

mod session;

mod places;
mod registry;
mod room;

mod node;
mod turns;

mod ask;
mod delivery;
mod events;
mod fetch;
mod files;
mod hooks;
mod key_file;
mod laravel;
mod listener;
mod meters;
mod outside;
mod reload;
mod seldom;
mod shared;
mod signature;
mod tail;
mod textfile;
mod tls;
mod trace;
mod vital;

mod api;
mod unisono;

#[cfg(feature = "failures")]
pub mod failures;
#[cfg(feature = "testing")]
pub mod testing;

#[cfg(feature = "counting")]
#[doc(hidden)]
pub mod counting;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

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
