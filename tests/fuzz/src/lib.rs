//! Feeds anything to what reads the bytes of strangers, and checks what must hold of it.
//!
//! Each module is one target: its `check` panics when a promise is broken. `tests/fuzz/run` has libFuzzer look for
//! bytes that do it; what has been found, and the beginnings from which it looks, are in `corpus`, and go through the
//! same functions in the ordinary tests.

pub mod decoder;
pub mod deflater;
pub mod inflater;

pub mod head;

pub mod client;

pub mod envelope;
pub mod subject;

/// What a target does with some bytes.
pub type Check = fn(&[u8]);

/// The targets, by the names of their programs and of their folders in `corpus`.
pub const TARGETS: [(&str, Check); 7] = [
    ("decoder", decoder::check),
    ("deflater", deflater::check),
    ("inflater", inflater::check),
    ("head", head::check),
    ("client", client::check),
    ("envelope", envelope::check),
    ("subject", subject::check),
];
