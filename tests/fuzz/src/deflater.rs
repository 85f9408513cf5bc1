//! Compressed messages of the server: they come out as they went in, within the window that the client has, whatever
//! was compressed before them.

use server::fuzzing::deflate::{Window, inflate};
use server::fuzzing::frame::{COMPRESSED, FIN, Opcode, encode, encode_compressed};
use zlib_rs::{Inflate, InflateFlush};

/// So little room that whatever a message refers back to has to be in the window.
const CHUNK: usize = 16;

/// That of the smaller window; the larger one is all that the format knows.
const SMALL_WINDOW_BITS: u8 = 9;

/// More are cut off: nothing new happens in them.
const PAYLOAD_BYTES_MAX: usize = 10_000;

/// The first byte says how often the rest is repeated, and where it is cut in two messages, which then follow each
/// other.
pub fn check(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let mut both = rest.repeat(1 + usize::from(first >> 4));
    both.truncate(PAYLOAD_BYTES_MAX);
    let (one, two) = both.split_at(both.len() * usize::from(first & 0x0f) / 16);
    for payload in [one, two, one] {
        check_message(payload, Window::Large);
        check_message(payload, Window::Small);
    }
}

fn check_message(payload: &[u8], window: Window) {
    let frame = encode_compressed(Opcode::Binary, payload, window);
    let Some(compressed) = window.compress(payload) else {
        assert_eq!(frame, encode(Opcode::Binary, payload));
        return;
    };
    assert!(compressed.len() < payload.len());
    assert!(frame.ends_with(&compressed));
    assert_eq!(frame[0], FIN | COMPRESSED | Opcode::Binary.code());
    let inflated = inflate(&compressed, payload.len()).expect("it was compressed here");
    assert!(inflated == payload, "another message comes out");
    assert!(inflate(&compressed, payload.len() - 1).is_err(), "too big");
    if window == Window::Small {
        let inflated = inflate_within(&compressed, SMALL_WINDOW_BITS);
        assert!(inflated == payload, "it refers to more than the window");
    }
}

fn inflate_within(compressed: &[u8], window_bits: u8) -> Vec<u8> {
    let input = [compressed, &[0, 0, 0xff, 0xff]].concat();
    let mut inflater = Inflate::new(false, window_bits);
    let mut inflated = Vec::new();
    loop {
        let rest = &input[inflater.total_in() as usize..];
        let (before, mut chunk) = (inflater.total_out(), [0; CHUNK]);
        inflater
            .decompress(rest, &mut chunk, InflateFlush::NoFlush)
            .expect("within the window");
        let len = (inflater.total_out() - before) as usize;
        inflated.extend_from_slice(&chunk[..len]);
        if len < CHUNK {
            return inflated;
        }
    }
}
