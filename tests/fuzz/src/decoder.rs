//! Frames of a client. However a stream is cut into reads, it says the same, and that is what a decoder says which does
//! it the simple way.

use proto::Close;
use server::fuzzing::decoder::{Decoder, Incoming};
use server::fuzzing::deflate::{compressed_bytes_max, inflate};

/// Limits of a message, by two bits of the first byte.
const MESSAGE_BYTES_MAX: [usize; 4] = [0, 125, 1_000, 70_000];

/// A stream of not more bytes is also read byte by byte.
const BYTE_BY_BYTE_MAX: usize = 4 * 1024;

/// What came of a stream.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    messages: Vec<Incoming<'static>>,
    end: Option<Close>,
}

/// How the server's decoder is set.
#[derive(Clone, Copy)]
struct Settings {
    message_bytes_max: usize,
    deflate: bool,
}

/// The first byte has settings and a number of cuts; two bytes for each cut follow; the rest is the stream.
pub fn check(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let settings = Settings {
        message_bytes_max: MESSAGE_BYTES_MAX[usize::from(first >> 1 & 3)],
        deflate: first & 1 != 0,
    };
    let Some((cuts, stream)) = rest.split_at_checked(2 * usize::from(first >> 3 & 7)) else {
        return;
    };
    let mut cuts: Vec<usize> = cuts
        .chunks_exact(2)
        .map(|cut| usize::from(u16::from_be_bytes([cut[0], cut[1]])) % (stream.len() + 1))
        .collect();
    cuts.sort_unstable();

    let whole = decode(settings, [stream]);
    let mut from = 0;
    let pieces = cuts.into_iter().chain([stream.len()]).map(|to| {
        let piece = &stream[from..to];
        from = to;
        piece
    });
    assert_eq!(decode(settings, pieces), whole, "cut in pieces");
    if stream.len() <= BYTE_BY_BYTE_MAX {
        assert_eq!(decode(settings, stream.chunks(1)), whole, "byte by byte");
    }
    for message in &whole.messages {
        match message {
            Incoming::Text(text) => assert!(text.len() <= settings.message_bytes_max),
            Incoming::Binary(bytes) => assert!(bytes.len() <= settings.message_bytes_max),
            Incoming::Ping(bytes) => assert!(bytes.len() <= 125),
            Incoming::Pong | Incoming::Close(_) => {}
        }
    }
    whole.check(&Reference::decode(settings, stream));
}

fn decode<'a>(settings: Settings, pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
    let mut decoder = Decoder::new(settings.message_bytes_max, settings.deflate);
    let mut outcome = Outcome::default();
    for piece in pieces {
        let mut piece = piece.to_vec();
        let mut input = piece.as_mut_slice();
        loop {
            match decoder.next(&mut input) {
                Ok(Some(incoming)) => outcome.messages.push(own(incoming)),
                Ok(None) => break,
                Err(close) => {
                    outcome.end = Some(close);
                    return outcome;
                }
            }
        }
        assert!(input.is_empty(), "all input is taken");
    }
    outcome
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

impl Outcome {
    fn check(&self, reference: &Reference) {
        assert_eq!(self.messages, reference.messages);
        let code = self.end.as_ref().map(|close| close.code);
        match reference.end {
            // Text may be seen to be none before the frame is there as a whole.
            End::Incomplete => assert!(matches!(code, None | Some(1007)), "{code:?}"),
            End::Clean => assert_eq!(code, None),
            End::Broken => assert!(code.is_some()),
        }
        if let Some(close) = &self.end {
            assert!(matches!(close.code, 1002 | 1007 | 1008 | 1009), "{close:?}");
            assert!(close.reason.len() <= proto::close::REASON_BYTES_MAX);
        }
    }
}

/// RFC 6455 §5 on a whole stream, with no thought for speed, memory or where the bytes are cut.
struct Reference {
    messages: Vec<Incoming<'static>>,
    end: End,
}

enum End {
    /// After a frame.
    Clean,
    /// Within one.
    Incomplete,
    /// At something that may not be.
    Broken,
}

struct Frame<'a> {
    fin: bool,
    reserved: u8,
    opcode: u8,
    masked: bool,
    minimal: bool,
    payload: Option<Vec<u8>>,
    declared: u64,
    rest: &'a [u8],
}

impl Reference {
    fn decode(settings: Settings, mut stream: &[u8]) -> Self {
        let mut messages = Vec::new();
        // Opcode, whether it is compressed, bytes, fragments without any.
        let mut message: Option<(u8, bool, Vec<u8>, usize)> = None;
        let end = loop {
            if stream.is_empty() {
                break End::Clean;
            }
            let Some(frame) = Frame::read(stream) else {
                break match Frame::start_is_bad(settings, stream, message.is_some()) {
                    true => End::Broken,
                    false => End::Incomplete,
                };
            };
            let control = frame.opcode & 8 != 0;
            let (max, before) = match (&message, frame.reserved) {
                (Some((_, true, bytes, _)), _) => (
                    compressed_bytes_max(settings.message_bytes_max),
                    bytes.len(),
                ),
                (Some((_, false, bytes, _)), _) => (settings.message_bytes_max, bytes.len()),
                (None, 0) => (settings.message_bytes_max, 0),
                (None, _) => (compressed_bytes_max(settings.message_bytes_max), 0),
            };
            let bad = Frame::start_is_bad(settings, stream, message.is_some())
                || !frame.minimal
                || !frame.masked
                || (!control && frame.declared > (max - before) as u64);
            if bad {
                break End::Broken;
            }
            let Some(payload) = frame.payload else {
                break End::Incomplete;
            };
            stream = frame.rest;
            match frame.opcode {
                8 => match Self::close(&payload) {
                    Some(close) => messages.push(close),
                    None => break End::Broken,
                },
                9 => messages.push(Incoming::Ping(payload.into())),
                10 => messages.push(Incoming::Pong),
                opcode => {
                    let (first, compressed, mut bytes, mut empty) =
                        message
                            .take()
                            .unwrap_or((opcode, frame.reserved != 0, Vec::new(), 0));
                    empty += usize::from(payload.is_empty());
                    bytes.extend(payload);
                    if !frame.fin {
                        let text = first == 1 && !compressed;
                        if empty > 1_024 || (text && cannot_be_text(&bytes)) {
                            break End::Broken;
                        }
                        message = Some((first, compressed, bytes, empty));
                        continue;
                    }
                    let bytes = match compressed {
                        true => inflate(&bytes, settings.message_bytes_max),
                        false => Ok(bytes),
                    };
                    match (first, bytes.map(String::from_utf8)) {
                        (1, Ok(Ok(text))) => messages.push(Incoming::Text(text.into())),
                        (2, Ok(Ok(text))) => {
                            messages.push(Incoming::Binary(text.into_bytes().into()));
                        }
                        (2, Ok(Err(error))) => {
                            messages.push(Incoming::Binary(error.into_bytes().into()));
                        }
                        _ => break End::Broken,
                    }
                }
            }
        };
        Self { messages, end }
    }

    fn close(payload: &[u8]) -> Option<Incoming<'static>> {
        if payload.is_empty() {
            return Some(Incoming::Close(None));
        }
        let code = u16::from_be_bytes([payload[0], *payload.get(1)?]);
        let reason = String::from_utf8(payload[2..].to_vec()).ok()?;
        let reserved = [1004, 1005, 1006, 1015];
        let sent = (1000..1015).contains(&code) || (3000..5000).contains(&code);
        (sent && !reserved.contains(&code)).then_some(Incoming::Close(Some(Close {
            code,
            reason: reason.into(),
        })))
    }
}

/// Whatever follows.
fn cannot_be_text(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_some())
}

impl<'a> Frame<'a> {
    /// None where the header is not whole.
    fn read(stream: &'a [u8]) -> Option<Self> {
        let (first, second) = (*stream.first()?, *stream.get(1)?);
        let (declared, header, minimal) = match second & 0x7f {
            126 => {
                let len = u16::from_be_bytes(stream.get(2..4)?.try_into().ok()?);
                (u64::from(len), 4, len > 125)
            }
            127 => {
                let len = u64::from_be_bytes(stream.get(2..10)?.try_into().ok()?);
                (len, 10, len > 65_535 && len <= i64::MAX as u64)
            }
            len => (u64::from(len), 2, true),
        };
        let masked = second & 0x80 != 0;
        let mask = if masked {
            stream.get(header..header + 4)?
        } else {
            &[0; 4]
        };
        let body = stream.get(header + 4..).unwrap_or_default();
        let whole = usize::try_from(declared)
            .ok()
            .and_then(|len| body.split_at_checked(len));
        Some(Self {
            fin: first & 0x80 != 0,
            reserved: first & 0x70,
            opcode: first & 0x0f,
            masked,
            minimal,
            payload: whole.map(|(payload, _)| {
                let bytes = payload.iter().zip(mask.iter().cycle());
                bytes.map(|(byte, mask)| byte ^ mask).collect()
            }),
            declared,
            rest: whole.map_or(&[], |(_, rest)| rest),
        })
    }

    /// Whether the first two bytes break a rule, as far as they are there.
    fn start_is_bad(settings: Settings, stream: &[u8], within: bool) -> bool {
        let [first, second, ..] = *stream else {
            return false;
        };
        let (fin, opcode, len) = (first & 0x80 != 0, first & 0x0f, second & 0x7f);
        let may_compress = settings.deflate && matches!(opcode, 1 | 2);
        let reserved = first & if may_compress { 0x30 } else { 0x70 };
        reserved != 0
            || second & 0x80 == 0
            || match opcode {
                0 => !within,
                1 | 2 => within,
                8..=10 => !fin || len > 125,
                _ => true,
            }
    }
}
