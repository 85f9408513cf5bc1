//! Envelopes from the bus, where anybody with access may put anything: what is read is written the same again, and takes
//! no more bytes than the nodes count on.

use bytes::Bytes;
use proto::envelope::{Audience, Body, Publication};
use proto::wire::{OVERHEAD_BYTES, decode, encode};

/// Bytes of a socket id in a list.
const EXCEPTED_BYTES: usize = 20;

/// A message.
pub fn check(data: &[u8]) {
    let Ok(envelope) = decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let written = encode(&envelope);
    assert_eq!(decode(written.clone()).as_ref(), Ok(&envelope));
    if let Body::Publication(publication) = &envelope.body {
        assert!(written.len() <= chosen(publication) + OVERHEAD_BYTES);
    }
}

/// The bytes of it that somebody chose.
fn chosen(publication: &Publication) -> usize {
    let room = match &publication.to {
        Audience::Room(room) => room.as_str().len(),
        Audience::Everyone => 0,
    };
    publication.payload.len() + room + EXCEPTED_BYTES * publication.except.len()
}
