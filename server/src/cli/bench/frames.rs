//! Frames as a server sends them: unmasked, whole messages. They are read where they lie.

use anyhow::ensure;

use super::rest::{PIECE_BYTES_MAX, Rest};
use crate::websocket::Opcode;
use crate::websocket::frame::COMPRESSED;

/// The start of a stream, and what was cut off its end.
#[derive(Debug, Default)]
pub struct Frames {
    rest: Rest,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Text(&'a [u8]),
    /// A text that is to be inflated.
    Compressed(&'a [u8]),
    Ping(&'a [u8]),
    /// With the code and the reason, as they come.
    Close(&'a [u8]),
    /// Any other.
    Other,
}

/// What masks a payload. It need not be a secret here.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

impl Frames {
    /// Hands out the frames that are complete with those bytes.
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(Frame)) -> anyhow::Result<()> {
        self.rest.feed(bytes, |bytes| read(bytes, &mut on))
    }
}

/// How many bytes the complete frames have.
fn read(bytes: &[u8], on: &mut impl FnMut(Frame)) -> anyhow::Result<usize> {
    let mut at = 0;
    while let Some((first, head, payload)) = head(&bytes[at..]) {
        ensure!(
            payload <= PIECE_BYTES_MAX as u64,
            "a frame of {payload} bytes"
        );
        let (start, end) = (at + head, at + head + payload as usize);
        let Some(payload) = bytes.get(start..end) else {
            break;
        };
        on(match Opcode::from_code(first & 0x0f) {
            Some(Opcode::Text) if first & COMPRESSED != 0 => Frame::Compressed(payload),
            Some(Opcode::Text) => Frame::Text(payload),
            Some(Opcode::Close) => Frame::Close(payload),
            Some(Opcode::Ping) => Frame::Ping(payload),
            _ => Frame::Other,
        });
        at = end;
    }
    Ok(at)
}

/// The first byte, bytes of the head, bytes of the payload.
fn head(bytes: &[u8]) -> Option<(u8, usize, u64)> {
    let [first, second, rest @ ..] = bytes else {
        return None;
    };
    let (head, length) = match second & 0x7f {
        126 => (4, u64::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*rest.first_chunk()?)),
        length => (2, u64::from(length)),
    };
    Some((*first, head, length))
}

/// A pong, or (with a code) a close, as a client sends it. A control frame has at most 125 bytes.
pub fn control(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    masked(opcode, &payload[..payload.len().min(125)])
}

/// A frame as a client sends it.
pub fn masked(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let length = payload.len();
    let mut frame = Vec::with_capacity(wire_bytes(length) + MASK.len());
    frame.push(0x80 | opcode.code());
    match length {
        0..126 => frame.push(0x80 | length as u8),
        126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(a, b)| a ^ b));
    frame
}

/// Bytes on the wire of a text that a server sends.
pub fn wire_bytes(payload: usize) -> usize {
    payload
        + match payload {
            0..126 => 2,
            126..65_536 => 4,
            _ => 10,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::Window;
    use crate::websocket::frame::{encode, encode_compressed};

    #[test]
    fn frames_are_the_same_however_the_stream_is_cut() {
        let text = |payload: &[u8]| encode(Opcode::Text, payload);
        let long = vec![b'y'; 70_000];
        let compressed = encode_compressed(Opcode::Text, &[b'z'; 300], Window::Large);
        let mut stream = text(b"{}").to_vec();
        stream.extend(text(&[b'x'; 200]));
        stream.extend(text(&long));
        stream.extend(&compressed);
        stream.extend([0x89, 2, b'h', b'i', 0x82, 0, 0x88, 0]);
        let expected: Vec<(u8, Vec<u8>)> = vec![
            (1, b"{}".to_vec()),
            (1, vec![b'x'; 200]),
            (1, long),
            (2, compressed[2..].to_vec()),
            (9, b"hi".to_vec()),
            (0, vec![]),
            (8, vec![]),
        ];
        for cut in [1, 2, 3, 7, 199, 70_001, stream.len()] {
            let (mut frames, mut seen) = (Frames::default(), vec![]);
            for part in stream.chunks(cut) {
                let fed = frames.feed(part, |frame| {
                    seen.push(match frame {
                        Frame::Text(payload) => (1, payload.to_vec()),
                        Frame::Compressed(payload) => (2, payload.to_vec()),
                        Frame::Ping(payload) => (9, payload.to_vec()),
                        Frame::Close(payload) => (8, payload.to_vec()),
                        Frame::Other => (0, vec![]),
                    });
                });
                fed.unwrap();
            }
            assert!(seen == expected, "cut into pieces of {cut}");
            assert!(frames.rest.is_empty());
        }
        assert_eq!(wire_bytes(200), text(&[b'x'; 200]).len());
    }

    #[test]
    fn a_frame_without_end_is_refused() {
        let mut head = vec![0x81, 127];
        head.extend(u64::MAX.to_be_bytes());
        assert!(Frames::default().feed(&head, |_| ()).is_err());
    }

    #[test]
    fn what_a_client_says_is_masked() {
        let frame = control(Opcode::Pong, b"hi");
        assert_eq!(frame[..2], [0x8a, 0x82]);
        assert_eq!([frame[6] ^ MASK[0], frame[7] ^ MASK[1]], *b"hi");
        // As a server reads it.
        for length in [125, 126, 65_535, 65_536] {
            let frame = masked(Opcode::Text, &vec![b'x'; length]);
            let read = head(&frame).unwrap();
            assert_eq!(read, (0x81, wire_bytes(length) - length, length as u64));
            assert_eq!(frame.len(), wire_bytes(length) + MASK.len());
        }
    }
}
