//! What reads the bytes of strangers, as `tests/fuzz` calls it. Not part of the API.

pub use crate::auth::forwarded;
pub use crate::door::head_for_http;
pub use crate::websocket::{decoder, deflate, frame, handshake};
