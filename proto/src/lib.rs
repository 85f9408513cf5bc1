//! The words: what clients, applications and nodes say, as values.
//!
//! Nothing here waits or does I/O. Text from outside is parsed once, at the edge, into the types of
//! this crate ([`SocketId`], [`RoomName`], [`EventName`], …); inside, a value of such a type is proof that
//! it is well formed.

pub mod client;
pub mod close;
pub mod envelope;
pub mod id;
pub mod json;
pub mod name;
pub mod wire;

/// The version of the program.
pub const VERSION: &str = env!("UNISONO_VERSION");

pub use close::Close;
pub use envelope::{Audience, Body, Envelope, Payload, Publication, TraceContext};
pub use id::{NodeId, SocketId};
pub use name::{EventName, RoomName, UserName};
