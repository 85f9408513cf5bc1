//! Compressed messages (permessage-deflate, RFC 7692). No message leans on one before, in either direction: so what is
//! sent to many is compressed once, and a socket takes no memory for it.

use std::cell::RefCell;

use flate2::{Compress, Compression, FlushCompress, Status};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};
use proto::Close;

/// How far back a compressed message may refer, which decides who can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// 32 KiB: what clients have, unless they say otherwise.
    Large,
    /// 512 bytes: within whatever a client may ask for.
    Small,
}

/// Sizes of windows that the extension knows, as powers of two (RFC 7692 §7.1.2.1).
const WINDOW_BITS: std::ops::RangeInclusive<u8> = 8..=15;

/// The smaller of the windows that a message is compressed for.
const SMALL_WINDOW_BITS: u8 = 9;

/// What a message ends with that was flushed, and is left out (RFC 7692 §7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// An empty block that says that it is the last. Behind a whole message it is one; behind one that was cut off it is
/// anything else.
const LAST_BLOCK: [u8; 5] = [1, 0, 0, 0xff, 0xff];

/// Bytes that an inflated message is given room for at first, and at least by which that grows.
const ROOM: usize = 4 * 1024;

/// Blocks in one message that say that they are the last. Behind each the inflater begins anew, which costs it more than
/// the client the two bytes of an empty one.
pub const LAST_BLOCKS_MAX: usize = 16;

thread_local! {
    static COMPRESSOR: RefCell<Compress> = RefCell::new(Compress::new(Compression::fast(), false));
    static INFLATER: RefCell<DecompressorOxide> = RefCell::default();
}

impl Window {
    /// The first offer in a `Sec-WebSocket-Extensions` header that can be taken (RFC 7692 §5.1, §7.1). What is none, or
    /// has a mistake in it, is passed over.
    pub fn of_offers(header: &str) -> Option<Self> {
        header.split(',').find_map(Self::of_offer)
    }

    fn of_offer(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut window = Self::Large;
        let mut seen = Vec::new();
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(unquoted(value.trim()))),
                None => (part, None),
            };
            if seen.contains(&name) {
                return None;
            }
            seen.push(name);
            match (name, value) {
                // That is how it is anyway.
                ("server_no_context_takeover" | "client_no_context_takeover", None) => {}
                ("client_max_window_bits", None) => {}
                ("client_max_window_bits", Some(bits)) => drop(window_bits(bits)?),
                ("server_max_window_bits", Some(bits)) => match window_bits(bits)? {
                    15 => {}
                    SMALL_WINDOW_BITS.. => window = Self::Small,
                    _ => return None,
                },
                _ => return None,
            }
        }
        Some(window)
    }

    /// The value of `Sec-WebSocket-Extensions` in the answer.
    pub fn answer(self) -> &'static str {
        match self {
            Self::Large => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
            }
            Self::Small => {
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9"
            }
        }
    }

    /// A message, compressed; none where that would not make it smaller.
    pub fn compress(self, payload: &[u8]) -> Option<Vec<u8>> {
        // A full flush makes the compressor forget: what comes after it does not refer to what was before.
        let (piece, flush) = match self {
            Self::Large => (payload.len(), FlushCompress::Sync),
            Self::Small => (1 << SMALL_WINDOW_BITS, FlushCompress::Full),
        };
        COMPRESSOR.with_borrow_mut(|compressor| {
            compressor.reset();
            // The tail has to fit in, too; if it does not, nothing was saved.
            let mut compressed = Vec::with_capacity(payload.len());
            for piece in payload.chunks(piece.max(1)) {
                let before = compressor.total_in();
                let status = compressor.compress_vec(piece, &mut compressed, flush);
                let taken = compressor.total_in() - before == piece.len() as u64;
                let whole = status.is_ok_and(|status| status == Status::Ok) && taken;
                if !whole || compressed.len() == compressed.capacity() {
                    return None;
                }
            }
            let end = compressed.strip_suffix(&TAIL)?.len();
            compressed.truncate(end);
            Some(compressed)
        })
    }
}

/// The bytes of a compressed message.
///
/// # Errors
///
/// When they are more than `bytes_max`, of which nothing is kept, when it is none, or when it has more blocks that end it
/// than anybody needs. They say how to close.
pub fn inflate(compressed: &[u8], bytes_max: usize) -> Result<Vec<u8>, Close> {
    INFLATER.with_borrow_mut(|inflater| {
        inflater.init();
        let mut inflating = Inflating {
            inflater,
            message: Vec::new(),
            len: 0,
            from: 0,
            bytes_max,
            last_blocks: 0,
        };
        // A client that ends with a last block may leave out what would come behind it.
        if !inflating.read(compressed)? {
            let last_blocks = inflating.last_blocks;
            inflating.read(&TAIL)?;
            let len = inflating.len;
            let still_open = inflating.last_blocks == last_blocks;
            inflating.last_blocks = 0;
            let whole = still_open && inflating.read(&LAST_BLOCK)?;
            if !whole || inflating.len != len {
                return Err(Close::BAD_DEFLATE);
            }
        }
        let Inflating {
            mut message, len, ..
        } = inflating;
        message.truncate(len);
        Ok(message)
    })
}

/// A message that is being inflated.
struct Inflating<'a> {
    inflater: &'a mut DecompressorOxide,
    /// What there is of it, and room for more.
    message: Vec<u8>,
    len: usize,
    /// Behind the latest last block, which is as far back as anything may refer.
    from: usize,
    bytes_max: usize,
    last_blocks: usize,
}

impl Inflating<'_> {
    /// Reads a part of it, and says whether that ended with a last block.
    fn read(&mut self, part: &[u8]) -> Result<bool, Close> {
        let flags = inflate_flags::TINFL_FLAG_HAS_MORE_INPUT
            | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let mut rest = part;
        loop {
            let room = &mut self.message[self.from..];
            let at = self.len - self.from;
            let (status, read, written) = decompress(self.inflater, rest, room, at, flags);
            rest = &rest[read..];
            self.len += written;
            if self.len > self.bytes_max {
                return Err(Close::TOO_BIG);
            }
            match status {
                TINFLStatus::NeedsMoreInput => return Ok(false),
                TINFLStatus::HasMoreOutput => {
                    let more = (2 * self.len).max(ROOM);
                    self.message.resize(more.min(self.bytes_max + 1), 0);
                }
                // A block may say that it is the last, and not be (RFC 7692 §7.2.3.4).
                TINFLStatus::Done => {
                    self.inflater.init();
                    self.from = self.len;
                    self.last_blocks += 1;
                    if self.last_blocks > LAST_BLOCKS_MAX {
                        return Err(Close::POLICY);
                    }
                    if rest.is_empty() {
                        return Ok(true);
                    }
                }
                _ => return Err(Close::BAD_DEFLATE),
            }
        }
    }
}

/// More than a message of so many bytes has when it is compressed, however badly (zlib's `deflateBound`, which says what
/// its worst settings do).
pub fn compressed_bytes_max(bytes: usize) -> usize {
    bytes + bytes / 8 + bytes / 64 + 64
}

fn window_bits(text: &str) -> Option<u8> {
    let bits = text.parse().ok()?;
    let written = !text.starts_with(['0', '+']);
    (written && WINDOW_BITS.contains(&bits)).then_some(bits)
}

fn unquoted(value: &str) -> &str {
    let inner = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    inner.unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn offers_are_taken_that_can_be() {
        for (header, taken) in [
            ("permessage-deflate", Some(Window::Large)),
            (
                "permessage-deflate; client_max_window_bits",
                Some(Window::Large),
            ),
            (
                "permessage-deflate; client_max_window_bits=10",
                Some(Window::Large),
            ),
            (
                "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
                Some(Window::Large),
            ),
            (
                "permessage-deflate;server_max_window_bits=15",
                Some(Window::Large),
            ),
            (
                "permessage-deflate; server_max_window_bits=\"10\"",
                Some(Window::Small),
            ),
            (
                "permessage-deflate; server_max_window_bits=9",
                Some(Window::Small),
            ),
            ("permessage-deflate; server_max_window_bits=8", None),
            (
                "permessage-deflate; server_max_window_bits=8, permessage-deflate",
                Some(Window::Large),
            ),
            (
                "x-webkit-deflate-frame, permessage-deflate",
                Some(Window::Large),
            ),
            ("permessage-deflate; server_max_window_bits", None),
            ("permessage-deflate; server_max_window_bits=16", None),
            ("permessage-deflate; server_max_window_bits=09", None),
            ("permessage-deflate; server_no_context_takeover=1", None),
            (
                "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
                None,
            ),
            ("permessage-deflate; mystery", None),
            ("permessage-bzip2", None),
            ("", None),
        ] {
            assert_eq!(Window::of_offers(header), taken, "{header}");
        }
    }

    #[test]
    fn the_examples_of_the_standard_are_read() {
        // RFC 7692 §7.2.3: once compressed, in two blocks, not compressed, in a block that says it is the last.
        for message in [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
            &[
                0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00,
            ],
            &[
                0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00,
            ],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        ] {
            assert_eq!(
                inflate(message, 5).as_deref(),
                Ok(&b"Hello"[..]),
                "{message:x?}"
            );
            assert_eq!(inflate(message, 4), Err(Close::TOO_BIG), "{message:x?}");
        }
    }

    #[test]
    fn a_message_that_was_cut_off_is_none() {
        let text = "a text that is worth compressing, a text that is worth compressing; ".repeat(9);
        let compressed = Window::Large.compress(text.as_bytes()).unwrap();
        for end in 1..compressed.len() {
            // What is missing is taken from what comes behind, and that may be anything.
            let cut = inflate(&compressed[..end], 1_000);
            assert!(cut.is_err(), "{end} of {} bytes", compressed.len());
        }
        // As of a compressor that was finished, and of one that was not told to forget that.
        let ended = [0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        assert_eq!(inflate(&ended, 5).as_deref(), Ok(&b"Hello"[..]));
    }

    #[test]
    fn a_bomb_is_given_up_when_it_is_too_big() {
        let bomb = Window::Large.compress(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < 1 << 20);
        assert_eq!(inflate(&bomb, 64 << 10), Err(Close::TOO_BIG));
        assert_eq!(
            inflate(&bomb, 64 << 20).map(|bytes| bytes.len()),
            Ok(64 << 20)
        );
    }

    #[test]
    fn last_blocks_are_counted() {
        let blocks = |count| [3, 0].repeat(count);
        assert_eq!(inflate(&blocks(LAST_BLOCKS_MAX), 9), Ok(vec![]));
        assert_eq!(inflate(&blocks(LAST_BLOCKS_MAX + 1), 9), Err(Close::POLICY));
    }

    #[test]
    fn what_does_not_get_smaller_is_left_as_it_is() {
        for window in [Window::Large, Window::Small] {
            assert_eq!(window.compress(b""), None);
            assert_eq!(window.compress(b"short"), None);
            let noise: Vec<u8> = (0..100_000u32)
                .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            assert!(
                window
                    .compress(&noise)
                    .is_none_or(|bytes| bytes.len() < noise.len())
            );
        }
    }

    proptest! {
        #[test]
        fn what_was_compressed_comes_out_again(payload: Vec<u8>, times in 1..200_usize, small: bool) {
            let window = if small { Window::Small } else { Window::Large };
            let payload = payload.repeat(times);
            if let Some(compressed) = window.compress(&payload) {
                prop_assert!(compressed.len() < payload.len());
                prop_assert_eq!(inflate(&compressed, payload.len()), Ok(payload.clone()));
                if !payload.is_empty() {
                    prop_assert_eq!(inflate(&compressed, payload.len() - 1), Err(Close::TOO_BIG));
                }
            }
        }

        #[test]
        fn anything_may_come(bytes: Vec<u8>, max in 0..10_000_usize) {
            if let Ok(message) = inflate(&bytes, max) {
                prop_assert!(message.len() <= max);
            }
        }
    }
}
