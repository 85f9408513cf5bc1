//! Frames as the server writes them: unmasked, never fragmented.

use bytes::{BufMut, Bytes, BytesMut};
use proto::Close;

use super::deflate::Window;

/// What a frame holds (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of a fragmented message.
    Continuation,
    /// UTF-8.
    Text,
    /// Any bytes.
    Binary,
    /// The end.
    Close,
    /// "Are you there?"
    Ping,
    /// "I am."
    Pong,
}

/// Most bytes in the payload of a control frame (RFC 6455 §5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Most bytes of a header that the server writes.
pub const HEADER_BYTES_MAX: usize = 10;

/// Of a frame's first byte: it is the last of its message.
pub const FIN: u8 = 0x80;

/// Of the first byte of a message's first frame: it is compressed (RFC 7692 §6).
pub const COMPRESSED: u8 = 0x40;

impl Opcode {
    /// The number in a frame's first byte.
    pub const fn code(self) -> u8 {
        match self {
            Self::Continuation => 0x0,
            Self::Text => 0x1,
            Self::Binary => 0x2,
            Self::Close => 0x8,
            Self::Ping => 0x9,
            Self::Pong => 0xa,
        }
    }

    /// None for the reserved numbers.
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x0 => Self::Continuation,
            0x1 => Self::Text,
            0x2 => Self::Binary,
            0x8 => Self::Close,
            0x9 => Self::Ping,
            0xa => Self::Pong,
            _ => return None,
        })
    }

    /// Control frames may come between the fragments of a message.
    pub fn is_control(self) -> bool {
        self.code() >= 0x8
    }
}

/// A ping without a payload.
pub const PING: [u8; 2] = [FIN | Opcode::Ping.code(), 0];

/// A whole message in one frame.
///
/// # Panics
///
/// When a control frame has more than [`CONTROL_BYTES_MAX`] bytes.
pub fn encode(opcode: Opcode, payload: &[u8]) -> Bytes {
    assert!(
        !opcode.is_control() || payload.len() <= CONTROL_BYTES_MAX,
        "control frames are short"
    );
    assemble(FIN | opcode.code(), payload)
}

/// As [`encode`], compressed where that makes it smaller: for clients that agreed to it, and not for control frames.
pub fn encode_compressed(opcode: Opcode, payload: &[u8], window: Window) -> Bytes {
    match window.compress(payload) {
        Some(compressed) => assemble(FIN | COMPRESSED | opcode.code(), &compressed),
        None => encode(opcode, payload),
    }
}

fn assemble(first: u8, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEADER_BYTES_MAX + payload.len());
    frame.put_u8(first);
    match payload.len() {
        len @ 0..=125 => frame.put_u8(len as u8),
        len @ 126..=0xffff => {
            frame.put_u8(126);
            frame.put_u16(len as u16);
        }
        len => {
            frame.put_u8(127);
            frame.put_u64(len as u64);
        }
    }
    frame.put_slice(payload);
    frame.freeze()
}

/// A Close frame. None stands for a Close without a code, as a client may send it.
pub fn close(close: Option<&Close>) -> Bytes {
    let mut payload = Vec::new();
    if let Some(close) = close {
        payload.extend_from_slice(&close.code.to_be_bytes());
        payload.extend_from_slice(close.reason.as_bytes());
    }
    encode(Opcode::Close, &payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (len, header) in [
            (0, vec![0x82, 0]),
            (125, vec![0x82, 125]),
            (126, vec![0x82, 126, 0, 126]),
            (65_535, vec![0x82, 126, 0xff, 0xff]),
            (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let frame = encode(Opcode::Binary, &vec![7; len]);
            assert_eq!(frame[..header.len()], header);
            assert_eq!(frame.len(), header.len() + len);
        }
    }

    #[test]
    fn a_close_frame_has_code_and_reason() {
        assert_eq!(close(None)[..], [0x88, 0]);
        assert_eq!(close(Some(&Close::NORMAL))[..], *b"\x88\x08\x03\xe8normal");
    }
}
