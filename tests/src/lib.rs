//! Drives the whole product from outside: real processes, real NATS, real Redis, real nginx, foreign
//! clients, backends in other languages.
//!
//! A [`Sandbox`] is a cluster of [`Node`]s on a [`Nats`] of their own; a [`Client`] speaks the native
//! protocol, a [`Stream`] reads server-sent events, a [`Wire`] speaks bytes, an [`Api`] speaks the HTTP API,
//! a [`Browser`] is a real one,
//! a [`Proxy`] fails on demand, a [`Witness`] checks what it hears. Ports are free ones on loopback, files live in a directory that goes away,
//! and every process dies with the value that stands for it. What a test cannot wait for by reading an
//! answer it waits for with [`eventually`].

mod eventually;
mod process;
mod terminal;

mod backend;
mod collector;
mod endpoint;
mod kernel;
mod metrics;
mod nats;
mod nginx;
mod node;
mod proxy;
mod redis;
mod sandbox;
mod tls;

mod api;
mod browser;
mod client;
mod returning;
mod steady;
mod stream;
mod wire;
mod witness;

pub use api::{Answer, Api};
pub use backend::{Backend, BackendConfig, python};
pub use browser::{Browser, Page};
pub use client::{Client, Event, Heard, Refusal};
pub use collector::{Collector, Span};
pub use endpoint::{Endpoint, Reply, Request};
pub use eventually::{Outcome, PATIENCE, eventually, pass, within};
pub use kernel::{closed_to, connections_to, is_held, unread_at};
pub use metrics::{Metrics, in_repository, promtool};
pub use nats::{Nats, NatsConfig};
pub use nginx::{Nginx, NginxConfig};
pub use node::{BEARER, KEY, Node, NodeConfig, other_build, unisono, with_open_files};
pub use process::{Output, Process, free_port};
pub use proxy::{Proxy, Way};
pub use redis::{Redis, RedisConfig};
pub use returning::{Departure, Returning};
pub use sandbox::{Sandbox, SandboxConfig};
pub use steady::Steady;
pub use stream::{Dispatched, Stream, stream_request};
pub use terminal::Terminal;
pub use tls::{Certificate, Handshake, Identity, Tls, Tunnel};
pub use wire::{
    Frame, Opcode, Response, Wire, compressed_frame, deflated, frame, head, inflated,
    upgrade_request,
};
pub use witness::{Ledger, NUMBERED, TOLD_WITHIN, Witness};
