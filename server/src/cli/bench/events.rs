//! Server-sent events (HTML Living Standard §9.2.6) in the body of an HTTP answer, in chunks (RFC 9112 §7.1) or not.
//! They are read where they lie.

use std::borrow::Cow;

use anyhow::{bail, ensure};
use memchr::memchr;

use super::rest::{PIECE_BYTES_MAX, Rest};

/// The start of a body, and what was cut off its end.
#[derive(Debug)]
pub struct Events {
    /// None where the end of the connection is that of the body.
    chunks: Option<Chunks>,
    rest: Rest,
}

/// What comes with it.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The data of an event without a name, its lines with LF between them.
    Data(&'a [u8]),
    /// A comment, which stands for a ping.
    Comment,
    /// The body is over.
    End,
}

/// Where in its chunks a body is.
#[derive(Clone, Copy, Debug)]
enum Chunks {
    /// In a size, of which that much was read.
    Size(Option<u64>),
    /// Behind a size, before the end of its line.
    Extension(u64),
    /// So many bytes before the end of a chunk.
    Bytes(u64),
    /// Between a chunk and the end of its line.
    Behind,
    /// Behind the last chunk.
    Over,
}

impl Events {
    /// The events of a body that is, or is not, in chunks.
    pub fn new(chunked: bool) -> Self {
        Self {
            chunks: chunked.then_some(Chunks::Size(None)),
            rest: Rest::default(),
        }
    }

    /// Hands out the events that are complete with those bytes. Lines end with LF or CR LF: a node writes no bare CR.
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(Event)) -> anyhow::Result<()> {
        let Self { chunks, rest } = self;
        let Some(chunks) = chunks else {
            return rest.feed(bytes, |body| Ok(read(body, &mut on)));
        };
        chunks.feed(bytes, |part| {
            rest.feed(part, |body| Ok(read(body, &mut on)))
        })?;
        if let Chunks::Over = chunks {
            on(Event::End);
        }
        Ok(())
    }
}

/// How many bytes the complete events have.
fn read(body: &[u8], on: &mut impl FnMut(Event)) -> usize {
    let (mut whole, mut at) = (0, 0);
    let mut data: Option<Cow<[u8]>> = None;
    let (mut named, mut comment) = (false, false);
    while let Some(end) = memchr(b'\n', &body[at..]) {
        let line = &body[at..at + end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        at += end + 1;
        if let Some(value) = field(line, b"data") {
            match &mut data {
                None => data = Some(Cow::Borrowed(value)),
                Some(lines) => {
                    let lines = lines.to_mut();
                    lines.push(b'\n');
                    lines.extend_from_slice(value);
                }
            }
        } else if line.is_empty() {
            match data.take() {
                Some(data) if !named => on(Event::Data(&data)),
                None if comment => on(Event::Comment),
                _ => {}
            }
            (named, comment) = (false, false);
            whole = at;
        } else {
            named |= field(line, b"event").is_some_and(|name| name != b"message");
            comment |= line.starts_with(b":");
        }
    }
    whole
}

/// The value, where the line is of that field.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(b""),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

impl Chunks {
    /// Hands out what is in the chunks, in parts.
    fn feed(
        &mut self,
        mut bytes: &[u8],
        mut on: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while let [byte, behind @ ..] = bytes {
            if let Self::Bytes(missing) = *self {
                let count = usize::try_from(missing).map_or(bytes.len(), |it| it.min(bytes.len()));
                let part;
                (part, bytes) = bytes.split_at(count);
                on(part)?;
                *self = match missing - count as u64 {
                    0 => Self::Behind,
                    missing => Self::Bytes(missing),
                };
                continue;
            }
            *self = self.step(*byte)?;
            bytes = behind;
        }
        Ok(())
    }

    /// One byte between the chunks.
    fn step(self, byte: u8) -> anyhow::Result<Self> {
        let next = match (self, byte) {
            (Self::Size(Some(size)) | Self::Extension(size), b'\n') => match size {
                0 => Self::Over,
                size => Self::Bytes(size),
            },
            (Self::Size(Some(size)), b'\r' | b';' | b' ' | b'\t') => Self::Extension(size),
            (Self::Extension(_), _) | (Self::Over, _) | (Self::Behind, b'\r') => self,
            (Self::Behind, b'\n') => Self::Size(None),
            (Self::Size(size), digit) => {
                let Some(digit) = char::from(digit).to_digit(16) else {
                    bail!("a chunk without a size");
                };
                let size = size.unwrap_or(0) * 16 + u64::from(digit);
                ensure!(size <= PIECE_BYTES_MAX as u64, "a chunk of {size} bytes");
                Self::Size(Some(size))
            }
            (Self::Behind | Self::Bytes(_), _) => bail!("a chunk that is longer than it says"),
        };
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::sse;

    /// In chunks of that size.
    fn chunked(body: &[u8], size: usize) -> Vec<u8> {
        let mut stream = Vec::new();
        for chunk in body.chunks(size) {
            stream.extend(format!("{:X}\r\n", chunk.len()).bytes());
            stream.extend(chunk);
            stream.extend(b"\r\n");
        }
        stream.extend(b"0\r\n\r\n");
        stream
    }

    /// What is read of a stream that comes in pieces of that size.
    fn seen(stream: &[u8], cut: usize, chunked: bool) -> Vec<String> {
        let (mut events, mut seen) = (Events::new(chunked), Vec::new());
        for part in stream.chunks(cut) {
            let fed = events.feed(part, |event| {
                seen.push(match event {
                    Event::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
                    Event::Comment => ":".to_owned(),
                    Event::End => "end".to_owned(),
                });
            });
            fed.unwrap();
        }
        assert!(events.rest.is_empty());
        seen
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        let long = "y".repeat(70_000);
        let mut body = sse::data(b"{}").to_vec();
        body.extend(sse::COMMENT);
        body.extend(sse::data(b"one\ntwo\r\n\nfour"));
        body.extend(sse::data(long.as_bytes()));
        body.extend(b"event: binary\ndata: aGk=\n\n");
        body.extend(b"retry: 100\n\n");
        body.extend(b": why\r\nevent: message\r\ndata:close\r\ndata\r\n\r\n");
        let expected = ["{}", ":", "one\ntwo\n\nfour", &long, "close\n"];
        for cut in [1, 2, 3, 7, 199, 70_001, 200_000] {
            assert!(seen(&body, cut, false) == expected, "pieces of {cut}");
            for size in [3, 16, 5_000, body.len()] {
                let mut seen = seen(&chunked(&body, size), cut, true);
                // What comes behind the end says it again, and nobody reads on.
                seen.truncate(expected.len() + 1);
                let (end, events) = seen.split_last().unwrap();
                assert!(events == expected, "pieces of {cut}, chunks of {size}");
                assert_eq!(end, "end");
            }
        }
    }

    #[test]
    fn a_chunk_may_say_more_than_its_size() {
        let stream = b"8;name=\"x\"\r\ndata: a\n\r\n1 \r\n\n\r\n0\r\nTrailer: 1\r\n\r\n";
        assert_eq!(seen(stream, stream.len(), true), ["a", "end"]);
    }

    #[test]
    fn what_are_no_chunks_is_refused() {
        for bad in ["\r\n", "x\r\n", "1\r\nab\r\n", "fffffffffffffffff\r\n"] {
            let fed = Events::new(true).feed(bad.as_bytes(), |_| ());
            assert!(fed.is_err(), "{bad}");
        }
    }
}
