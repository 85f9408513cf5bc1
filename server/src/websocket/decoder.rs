//! Reads what a client sends. Limits are checked on the header, before a byte of the body is kept;
//! everything that breaks the protocol is found at the first byte that does.

use std::borrow::Cow;

use proto::Close;

use super::deflate::{compressed_bytes_max, inflate};
use super::frame::{COMPRESSED, CONTROL_BYTES_MAX, FIN, Opcode};

/// Turns bytes into messages. Keeps no buffer between messages.
pub struct Decoder {
    message_bytes_max: usize,
    /// Whether the client may compress.
    deflate: bool,
    header: Header,
    frame: Option<Frame>,
    message: Option<Box<Message>>,
    control: Vec<u8>,
}

/// What a client sent. Borrows from the input where a message came in one piece.
#[derive(Debug, PartialEq)]
pub enum Incoming<'a> {
    /// A text message.
    Text(Cow<'a, str>),
    /// A binary message.
    Binary(Cow<'a, [u8]>),
    /// To be answered with a pong of the same payload.
    Ping(Cow<'a, [u8]>),
    /// Answers a ping.
    Pong,
    /// The client closes, and perhaps says why.
    Close(Option<Close>),
}

/// The bytes of a header that have come so far.
#[derive(Default)]
struct Header {
    bytes: [u8; HEADER_BYTES_MAX],
    len: usize,
}

/// A frame whose payload is on its way.
struct Frame {
    opcode: Opcode,
    fin: bool,
    compressed: bool,
    mask: [u8; 4],
    /// Payload bytes seen so far, which place the mask.
    seen: usize,
    remaining: usize,
}

/// A message in pieces: of several frames, or of one that spans several reads.
struct Message {
    text: bool,
    compressed: bool,
    bytes: Vec<u8>,
    /// The length of the prefix that is known to be UTF-8, where it is not compressed.
    utf8: usize,
    empty_fragments: usize,
}

/// Two bytes, a length of eight, a mask of four.
const HEADER_BYTES_MAX: usize = 14;

/// Fragments without a byte in one message: they cost the client nothing, so they are counted.
const EMPTY_FRAGMENTS_MAX: usize = 1_024;

impl Decoder {
    /// Refuses messages of more than `message_bytes_max` bytes; of those that are compressed, as they may be with
    /// `deflate`, it is the bytes inside that count.
    pub fn new(message_bytes_max: usize, deflate: bool) -> Self {
        Self {
            message_bytes_max,
            deflate,
            header: Header::default(),
            frame: None,
            message: None,
            control: Vec::new(),
        }
    }

    /// The next message in `input`, whose front moves on past it. None when more bytes are needed: then
    /// all of `input` has been taken. After an error, which says how to close, the decoder is of no use.
    pub fn next<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Incoming<'a>>, Close> {
        loop {
            let frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.read_header(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            if let Some(incoming) = self.read_payload(frame, input)? {
                return Ok(Some(incoming));
            }
            if self.frame.is_some() {
                return Ok(None);
            }
        }
    }

    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, Close> {
        loop {
            let needed = self.header.needed();
            if self.header.len < needed {
                let taken = take(input, needed - self.header.len);
                let end = self.header.len + taken.len();
                self.header.bytes[self.header.len..end].copy_from_slice(taken);
                self.header.len = end;
                if end < needed {
                    return Ok(None);
                }
            }
            if self.header.len == 2 {
                self.check_start()?;
            }
            if self.header.len == self.header.needed() {
                break;
            }
        }
        let frame = self.open_frame()?;
        self.header.len = 0;
        Ok(Some(frame))
    }

    /// What the first two bytes tell (RFC 6455 §5.2, §5.4, §5.5).
    fn check_start(&self) -> Result<(), Close> {
        let [first, second, ..] = self.header.bytes;
        let opcode = Opcode::from_code(first & 0x0f).ok_or(Close::PROTOCOL)?;
        let data = matches!(opcode, Opcode::Text | Opcode::Binary);
        let may_be_set = if self.deflate && data { COMPRESSED } else { 0 };
        let (reserved, fin) = (first & 0x70 & !may_be_set != 0, first & FIN != 0);
        let (masked, len) = (second & 0x80 != 0, usize::from(second & 0x7f));
        let bad = reserved
            || !masked
            || (opcode.is_control() && (!fin || len > CONTROL_BYTES_MAX))
            || (opcode == Opcode::Continuation && self.message.is_none())
            || (data && self.message.is_some());
        if bad { Err(Close::PROTOCOL) } else { Ok(()) }
    }

    fn open_frame(&mut self) -> Result<Frame, Close> {
        let [first, second, extended @ ..] = self.header.bytes;
        let (len, rest) = match second & 0x7f {
            126 => (u64::from(u16::from_be_bytes([extended[0], extended[1]])), 2),
            127 => {
                let eight = extended[..8].try_into().expect("8 bytes");
                (u64::from_be_bytes(eight), 8)
            }
            len => (u64::from(len), 0),
        };
        let minimal = match rest {
            2 => len > 125,
            8 => len > 0xffff && len >> 63 == 0,
            _ => true,
        };
        if !minimal {
            return Err(Close::PROTOCOL);
        }
        let (before, compressed) = match &self.message {
            Some(message) => (message.bytes.len(), message.compressed),
            None => (0, first & COMPRESSED != 0),
        };
        let bytes_max = match compressed {
            true => compressed_bytes_max(self.message_bytes_max),
            false => self.message_bytes_max,
        };
        let room = (bytes_max - before) as u64;
        let opcode = Opcode::from_code(first & 0x0f).expect("checked with the first byte");
        if !opcode.is_control() && len > room {
            return Err(Close::TOO_BIG);
        }
        let mask = extended[rest..rest + 4].try_into().expect("4 bytes");
        Ok(Frame {
            opcode,
            fin: first & FIN != 0,
            compressed,
            mask,
            seen: 0,
            remaining: len as usize,
        })
    }

    /// Takes what there is of the payload; keeps the frame when there is more to come.
    fn read_payload<'a>(
        &mut self,
        mut frame: Frame,
        input: &mut &'a mut [u8],
    ) -> Result<Option<Incoming<'a>>, Close> {
        let chunk = take(input, frame.remaining);
        unmask(chunk, frame.mask, frame.seen);
        frame.seen += chunk.len();
        frame.remaining -= chunk.len();
        let whole = frame.remaining == 0;
        if frame.opcode.is_control() {
            return self.read_control(frame, chunk, whole);
        }
        if self.message.is_none() {
            if whole && frame.fin {
                let text = frame.opcode == Opcode::Text;
                let payload = self.expand(Cow::Borrowed(chunk), frame.compressed)?;
                return complete(text, payload).map(Some);
            }
            self.message = Some(Box::new(Message {
                text: frame.opcode == Opcode::Text,
                compressed: frame.compressed,
                bytes: Vec::new(),
                utf8: 0,
                empty_fragments: 0,
            }));
        }
        let message = self.message.as_mut().expect("made above where it was not");
        message.append(chunk)?;
        if !whole {
            self.frame = Some(frame);
            return Ok(None);
        }
        if frame.fin {
            let message = self.message.take().expect("as above");
            let payload = self.expand(Cow::Owned(message.bytes), message.compressed)?;
            return complete(message.text, payload).map(Some);
        }
        if frame.seen == 0 {
            message.empty_fragments += 1;
            if message.empty_fragments > EMPTY_FRAGMENTS_MAX {
                return Err(Close::POLICY);
            }
        }
        Ok(None)
    }

    fn expand<'a>(&self, payload: Cow<'a, [u8]>, compressed: bool) -> Result<Cow<'a, [u8]>, Close> {
        match compressed {
            true => inflate(&payload, self.message_bytes_max).map(Cow::Owned),
            false => Ok(payload),
        }
    }

    fn read_control<'a>(
        &mut self,
        frame: Frame,
        chunk: &'a mut [u8],
        whole: bool,
    ) -> Result<Option<Incoming<'a>>, Close> {
        let payload = if whole && self.control.is_empty() {
            Cow::Borrowed(&*chunk)
        } else {
            self.control.extend_from_slice(chunk);
            if !whole {
                self.frame = Some(frame);
                return Ok(None);
            }
            Cow::Owned(std::mem::take(&mut self.control))
        };
        Ok(Some(match frame.opcode {
            Opcode::Ping => Incoming::Ping(payload),
            Opcode::Pong => Incoming::Pong,
            _ => Incoming::Close(read_close(&payload)?),
        }))
    }
}

impl Header {
    /// Bytes that the header has, as far as can be told from those that are there.
    fn needed(&self) -> usize {
        if self.len < 2 {
            return 2;
        }
        match self.bytes[1] & 0x7f {
            126 => 8,
            127 => 14,
            _ => 6,
        }
    }
}

impl Message {
    fn append(&mut self, chunk: &[u8]) -> Result<(), Close> {
        self.bytes.extend_from_slice(chunk);
        if self.text && !self.compressed {
            match simdutf8::compat::from_utf8(&self.bytes[self.utf8..]) {
                Ok(text) => self.utf8 += text.len(),
                // Cut within a character, which may still be completed.
                Err(error) if error.error_len().is_none() => self.utf8 += error.valid_up_to(),
                Err(_) => return Err(Close::BAD_UTF8),
            }
        }
        Ok(())
    }
}

fn complete(text: bool, payload: Cow<'_, [u8]>) -> Result<Incoming<'_>, Close> {
    if !text {
        return Ok(Incoming::Binary(payload));
    }
    let text = match payload {
        Cow::Borrowed(bytes) => simdutf8::basic::from_utf8(bytes)
            .map(Cow::Borrowed)
            .map_err(|_| Close::BAD_UTF8),
        Cow::Owned(bytes) => String::from_utf8(bytes)
            .map(Cow::Owned)
            .map_err(|_| Close::BAD_UTF8),
    };
    text.map(Incoming::Text)
}

/// RFC 6455 §5.5.1 and §7.4.
fn read_close(payload: &[u8]) -> Result<Option<Close>, Close> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
        [_] => return Err(Close::PROTOCOL),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Close::PROTOCOL);
    }
    let reason = std::str::from_utf8(reason).map_err(|_| Close::BAD_UTF8)?;
    Ok(Some(Close {
        code,
        reason: reason.to_owned().into(),
    }))
}

/// Takes up to `len` bytes off the front.
fn take<'a>(input: &mut &'a mut [u8], len: usize) -> &'a mut [u8] {
    let whole = std::mem::take(input);
    let (front, rest) = whole.split_at_mut(len.min(whole.len()));
    *input = rest;
    front
}

/// XORs with the mask, eight bytes at a time; `seen` bytes of the payload came before.
fn unmask(bytes: &mut [u8], mask: [u8; 4], seen: usize) {
    let mut mask = mask;
    mask.rotate_left(seen % 4);
    let word = u64::from_ne_bytes([
        mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3],
    ]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for eight in words {
        *eight = (u64::from_ne_bytes(*eight) ^ word).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::super::deflate::Window;
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1 << 20;

    /// A client's frame, in the form of RFC 6455 §5.2.
    fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            len @ 0..=125 => bytes.push(0x80 | len as u8),
            len @ 126..=0xffff => {
                bytes.push(0x80 | 126);
                bytes.extend((len as u16).to_be_bytes());
            }
            len => {
                bytes.push(0x80 | 127);
                bytes.extend((len as u64).to_be_bytes());
            }
        }
        bytes.extend(mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        bytes
    }

    fn own(incoming: Incoming<'_>) -> Incoming<'static> {
        match incoming {
            Incoming::Text(text) => Incoming::Text(text.into_owned().into()),
            Incoming::Binary(bytes) => Incoming::Binary(bytes.into_owned().into()),
            Incoming::Ping(bytes) => Incoming::Ping(bytes.into_owned().into()),
            Incoming::Pong => Incoming::Pong,
            Incoming::Close(close) => Incoming::Close(close),
        }
    }

    /// Everything in the pieces, up to the first error.
    fn decode(pieces: &[Vec<u8>], max: usize) -> (Vec<Incoming<'static>>, Option<u16>) {
        decode_with(Decoder::new(max, false), pieces)
    }

    fn decode_with(
        mut decoder: Decoder,
        pieces: &[Vec<u8>],
    ) -> (Vec<Incoming<'static>>, Option<u16>) {
        let mut seen = Vec::new();
        for piece in pieces {
            let mut piece = piece.clone();
            let mut input = piece.as_mut_slice();
            loop {
                match decoder.next(&mut input) {
                    Ok(Some(incoming)) => seen.push(own(incoming)),
                    Ok(None) => break,
                    Err(close) => return (seen, Some(close.code)),
                }
            }
            assert!(input.is_empty(), "all input is taken");
        }
        (seen, None)
    }

    fn refused(bytes: &[u8]) -> Option<u16> {
        decode(&[bytes.to_vec()], 1_000).1
    }

    #[derive(Clone, Debug)]
    struct Sent {
        opcode: u8,
        payload: Vec<u8>,
        cuts: Vec<proptest::sample::Index>,
        window: Option<Window>,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let text = "\\PC{0,300}".prop_map(|text| (1, text.into_bytes()));
        let binary = proptest::collection::vec(any::<u8>(), 0..70_000).prop_map(|b| (2, b));
        let even = (any::<u8>(), 0..70_000_usize).prop_map(|(byte, len)| (2, vec![byte; len]));
        let ping = proptest::collection::vec(any::<u8>(), 0..126).prop_map(|b| (9, b));
        let cuts = proptest::collection::vec(any::<proptest::sample::Index>(), 0..3);
        let windows = [None, Some(Window::Large), Some(Window::Small)];
        let message = prop_oneof![text, binary, even, ping];
        (message, cuts, proptest::sample::select(windows.to_vec())).prop_map(
            |((opcode, payload), cuts, window)| Sent {
                opcode,
                payload,
                cuts,
                window,
            },
        )
    }

    impl Sent {
        /// The message as frames, fragmented at the cuts with a ping in between.
        fn frames(&self, mask: [u8; 4]) -> Vec<u8> {
            if self.opcode == 9 {
                return frame(0x89, &self.payload, mask);
            }
            let compressed = self
                .window
                .and_then(|window| window.compress(&self.payload));
            let flag = if compressed.is_some() { COMPRESSED } else { 0 };
            let payload = compressed.as_ref().unwrap_or(&self.payload);
            let cuts = self.cuts.iter().map(|cut| cut.index(payload.len() + 1));
            let mut cuts: Vec<_> = cuts.collect();
            cuts.sort_unstable();
            let mut bytes = Vec::new();
            let mut start = 0;
            for (nth, cut) in cuts.iter().enumerate() {
                let first = if nth == 0 { flag | self.opcode } else { 0 };
                bytes.extend(frame(first, &payload[start..*cut], mask));
                bytes.extend(frame(0x8a, b"", mask));
                start = *cut;
            }
            let first = if cuts.is_empty() {
                flag | self.opcode
            } else {
                0
            };
            bytes.extend(frame(FIN | first, &payload[start..], mask));
            bytes
        }

        fn incoming(&self) -> Incoming<'static> {
            match self.opcode {
                1 => Incoming::Text(String::from_utf8(self.payload.clone()).unwrap().into()),
                2 => Incoming::Binary(self.payload.clone().into()),
                _ => Incoming::Ping(self.payload.clone().into()),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn messages_survive_fragments_masks_and_splits(
            sent in proptest::collection::vec(sent(), 0..4),
            mask: [u8; 4],
            splits in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|sent| sent.frames(mask)).collect();
            let mut splits: Vec<_> = splits.iter().map(|at| at.index(bytes.len() + 1)).collect();
            splits.sort_unstable();
            splits.push(bytes.len());
            let mut start = 0;
            let pieces: Vec<_> = splits
                .into_iter()
                .map(|end| bytes[std::mem::replace(&mut start, end)..end].to_vec())
                .collect();
            let (seen, error) = decode_with(Decoder::new(MAX, true), &pieces);
            prop_assert_eq!(error, None);
            let seen: Vec<_> = seen.into_iter().filter(|i| *i != Incoming::Pong).collect();
            let expected: Vec<_> = sent.iter().map(Sent::incoming).collect();
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn any_bytes_give_the_same_whole_or_in_single_bytes(
            bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let single: Vec<_> = bytes.iter().map(|byte| vec![*byte]).collect();
            for deflate in [false, true] {
                let whole = decode_with(Decoder::new(200, deflate), std::slice::from_ref(&bytes));
                prop_assert_eq!(whole, decode_with(Decoder::new(200, deflate), &single));
            }
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let mask = [1, 2, 3, 4];
        let whole = frame(0x81, b"hi", mask);
        for (bytes, code) in [
            (vec![0x81, 0x02, b'h', b'i'], 1002), // not masked
            (vec![0xc1, 0x80], 1002),             // RSV1 without an extension
            (vec![0x83, 0x80], 1002),             // reserved opcodes
            (vec![0x8b, 0x80], 1002),
            (vec![0x89, 0x80 | 126], 1002), // a long control frame
            (vec![0x09, 0x80], 1002),       // a fragmented one
            (vec![0x80, 0x80], 1002),       // a continuation of nothing
            (vec![0x81, 0xfe, 0, 125, 0, 0, 0, 0], 1002), // lengths in a longer form than needed
            (
                vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
                1002,
            ),
            (
                vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                1002,
            ),
            (vec![0x82, 0xff, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1009), // 2^40 bytes
            (frame(0x82, &[0; 1_001], mask), 1009),
            ([frame(0x01, b"a", mask), whole.clone()].concat(), 1002), // text within text
            (
                [frame(0x02, &[0; 900], mask), frame(0x80, &[0; 101], mask)].concat(),
                1009,
            ),
            (frame(0x81, b"\xff", mask), 1007),
            (
                frame(0x81, "€".as_bytes().split_last().unwrap().1, mask),
                1007,
            ),
            (frame(0x88, b"\x03", mask), 1002),
            (frame(0x88, &1005u16.to_be_bytes(), mask), 1002),
            (frame(0x88, &999u16.to_be_bytes(), mask), 1002),
            (frame(0x88, b"\x03\xe8\xff", mask), 1007),
        ] {
            assert_eq!(refused(&bytes), Some(code), "{bytes:x?}");
        }
        assert_eq!(refused(&whole), None);
        assert_eq!(refused(&frame(0x82, &[0; 1_000], mask)), None);
    }

    #[test]
    fn compressed_messages_are_held_to_the_same_rules() {
        let mask = [9, 8, 7, 6];
        let compressed = |payload: &[u8]| Window::Large.compress(payload).unwrap();
        let text = frame(0xc1, &compressed(&[b'a'; 1_000]), mask);
        let fitting = [text.clone(), frame(0xc2, &compressed(&[0; 1_000]), mask)].concat();
        for (bytes, code) in [
            (fitting, None),
            (frame(0xc2, &compressed(&[0; 1_001]), mask), Some(1009)),
            (frame(0xc1, &compressed(&[0xff; 100]), mask), Some(1007)), // not UTF-8
            (frame(0xc2, b"\xff\xff", mask), Some(1007)),               // not deflate
            (frame(0xc9, b"", mask), Some(1002)),                       // a control frame
            (frame(0xe1, b"", mask), Some(1002)),                       // RSV2
            (
                [frame(0x01, b"a", mask), frame(0xc0, b"a", mask)].concat(),
                Some(1002),
            ),
            (
                [frame(0x01, b"a", mask), frame(0x80, b"a", mask)].concat(),
                None,
            ),
        ] {
            let (_, error) = decode_with(Decoder::new(1_000, true), std::slice::from_ref(&bytes));
            assert_eq!(error, code, "{bytes:x?}");
        }
        assert_eq!(refused(&text), Some(1002), "nobody agreed to it");
    }

    #[test]
    fn bad_text_is_refused_at_its_first_bad_byte() {
        let mask = [0; 4];
        // The frame claims 100 bytes; the third of those that came cannot be UTF-8.
        let mut bytes = frame(0x01, &[0; 100], mask);
        bytes.truncate(6);
        bytes.extend(b"ok\xf8");
        assert_eq!(refused(&bytes), Some(1007));
        // A character may be cut by a fragment.
        let parts = [frame(0x01, b"\xe2\x82", mask), frame(0x80, b"\xac", mask)];
        let (seen, error) = decode(&parts, 100);
        assert_eq!((seen, error), (vec![Incoming::Text("€".into())], None));
    }

    #[test]
    fn empty_fragments_are_counted() {
        let mut bytes = frame(0x01, b"", [0; 4]);
        for _ in 0..=EMPTY_FRAGMENTS_MAX {
            bytes.extend(frame(0x00, b"", [0; 4]));
        }
        assert_eq!(refused(&bytes), Some(1008));
    }

    #[test]
    fn a_close_tells_code_and_reason() {
        let close = frame(0x88, b"\x0f\xa1kicked", [5, 6, 7, 8]);
        let expected = Close {
            code: 4001,
            reason: "kicked".into(),
        };
        let (seen, error) = decode(&[close], 100);
        assert_eq!((seen, error), (vec![Incoming::Close(Some(expected))], None));
    }
}
