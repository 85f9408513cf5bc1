//! Why a socket is closed: code, reason, and what the client should do next, in one table.

use std::borrow::Cow;

/// Most bytes in the reason of a Close frame (RFC 6455 §5.5: 125 less the code).
pub const REASON_BYTES_MAX: usize = 123;

/// A close code with its reason text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// As in RFC 6455 §7.4, or 4000 and above.
    pub code: u16,
    /// At most [`REASON_BYTES_MAX`] bytes.
    pub reason: Cow<'static, str>,
}

/// A code or reason that an application may not choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// Other codes say things about the server that are not the application's to say.
    #[error("code is 1000 or 4000 to 4099")]
    Code,
    /// A Close frame cannot carry more.
    #[error("reason has at most {REASON_BYTES_MAX} bytes")]
    Reason,
}

impl Close {
    /// The client gave no code (RFC 6455 §7.1.5); never sent.
    pub const NO_STATUS: Self = Self::new(1005, "");
    /// The connection was gone without a word (RFC 6455 §7.1.5); never sent.
    pub const GONE: Self = Self::new(1006, "the connection is gone");

    /// The node of the socket is gone without a word, and with it the connection; said by another, never sent.
    pub const NODE_GONE: Self = Self::new(1006, "the node is gone");

    /// The client asked for it, or nothing is left to say.
    pub const NORMAL: Self = Self::new(1000, "normal");
    /// The peer broke the protocol.
    pub const PROTOCOL: Self = Self::new(1002, "protocol error");
    /// Text that is not UTF-8.
    pub const BAD_UTF8: Self = Self::new(1007, "text is not UTF-8");
    /// A message that is compressed and cannot be read.
    pub const BAD_DEFLATE: Self = Self::new(1007, "not deflate data");
    /// More fragments or frames than anybody needs.
    pub const POLICY: Self = Self::new(1008, "policy");
    /// A message beyond `sockets.message_bytes`.
    pub const TOO_BIG: Self = Self::new(1009, "message too large");
    /// A fault of ours that costs this socket.
    pub const INTERNAL: Self = Self::new(1011, "internal error");
    /// The node is about to stop; the client should come back, to another.
    pub const RESTART: Self = Self::new(1012, "node is restarting");
    /// This node has more sockets than others; the client should come back, to another.
    pub const REBALANCE: Self = Self::new(1012, "rebalancing");
    /// The client reads slower than it is written to.
    pub const SLOW: Self = Self::new(1013, "reading too slowly");
    /// The client's token has ended, and no fresh one came.
    pub const EXPIRED: Self = Self::new(4401, "token expired");
    /// A fresh token does not grant what the socket has.
    pub const WITHDRAWN: Self = Self::new(4403, "rights withdrawn");
    /// The client sent what it may not send here.
    pub const NOT_ALLOWED: Self = Self::new(1008, "not allowed");
    /// What the client sent cannot be taken just now.
    pub const UNAVAILABLE: Self = Self::new(1013, "unavailable");
    /// The client has sent too much for too long.
    pub const RATE: Self = Self::new(1008, "rate limit");
    /// No pong in time.
    pub const NO_PONG: Self = Self::new(4408, "no pong in time");

    const fn new(code: u16, reason: &'static str) -> Self {
        Self {
            code,
            reason: Cow::Borrowed(reason),
        }
    }

    /// What an application asked for in `disconnect`.
    pub fn by_application(code: u16, reason: String) -> Result<Self, CloseError> {
        if !(code == 1000 || (4000..=4099).contains(&code)) {
            return Err(CloseError::Code);
        }
        if reason.len() > REASON_BYTES_MAX {
            return Err(CloseError::Reason);
        }
        Ok(Self {
            code,
            reason: Cow::Owned(reason),
        })
    }
}
