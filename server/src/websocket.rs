//! The WebSocket protocol (RFC 6455), without I/O: bytes in, messages out, and the other way round.

pub mod decoder;
pub mod deflate;
pub mod frame;
pub mod handshake;

pub use decoder::{Decoder, Incoming};
pub use deflate::Window;
pub use frame::Opcode;
