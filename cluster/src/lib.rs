//! The nodes: what one node of the cluster knows of the others, and how it speaks to them.
//!
//! [`start`] runs a node's side of the bus on a thread of its own and gives back a [`Cluster`], the
//! handle that the rest of the program holds. What other nodes want comes out as [`Event`]s and [`Call`]s. Nothing
//! here knows what a socket is made of: a host that can deliver publications and answer requests is
//! all that it asks for.

mod beats;
mod budget;
mod bus;
mod epoch;
mod incoming;
mod interest;
mod link;
mod membership;
mod memory;
mod missed;
mod nats;
mod node;
mod occupancy;
mod pending;
mod retractable;
mod seldom;
mod subject;

pub use budget::{Budget, Permit};
pub use bus::{Bus, BusStatus, Message, Outgoing, PublishError};
pub use link::LinkState;
pub use membership::{Peer, Unreadable};
pub use memory::{MemoryBus, MemoryHub};
pub use nats::{
    CLIENT_LOG_TARGET, NatsAuth, NatsBus, NatsConfig, NatsError, RoundTrip, check_server,
};
pub use node::{Call, Cluster, Config, Event, Load, Node, Responder, Sent, start};
pub use pending::{AskError, CallError, Gathered};
pub use seldom::Seldom;
pub use subject::{ClusterName, ClusterNameError, Subject, Subjects};
