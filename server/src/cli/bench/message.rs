//! The text of a numbered message: `<run> <number> <nanoseconds> <filler>`, the first three of fixed widths.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Tells the messages of one run from those of others in the same room.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    pub run: u32,
}

/// What fills a message up: words, as text of people or JSON has them, so that it compresses as those do. The same in
/// every message, and in every run.
#[derive(Debug)]
pub struct Filler(String);

/// What such an event begins with, as nodes write it.
const EVENT: &[u8] = br#"{"event":"m","data":""#;

/// The least that a message has: the run, the number, the nanoseconds and what parts them.
pub const STAMP_BYTES: usize = 8 + 1 + 12 + 1 + 16 + 1;

/// Different words in a filler. Some are had more often than others.
const WORDS: usize = 100;

impl Stamp {
    /// The message of that number, sent (or meant to be) so long after the beginning.
    pub fn text(self, number: u64, at: Duration, filler: &Filler) -> String {
        let Filler(filler) = filler;
        format!(
            "{:08x} {number:012} {:016} {filler}",
            self.run,
            at.as_nanos()
        )
    }

    /// The number, and when it was sent, of a text or an event with that text; none of what others say.
    pub fn read(self, payload: &[u8]) -> Option<(u64, Duration)> {
        let text = payload.strip_prefix(EVENT).unwrap_or(payload);
        let head: &[u8; STAMP_BYTES] = text.first_chunk()?;
        let blanks = [head[8], head[21], head[38]];
        let run = digits::<16>(&head[..8])?;
        (blanks == *b"   " && run == u64::from(self.run)).then_some(())?;
        let at = Duration::from_nanos(digits::<10>(&head[22..38])?);
        Some((digits::<10>(&head[9..21])?, at))
    }
}

fn digits<const RADIX: u32>(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |sum, byte| {
        let digit = char::from(*byte).to_digit(RADIX)?;
        Some(sum * u64::from(RADIX) + u64::from(digit))
    })
}

impl Filler {
    /// What makes messages of so many bytes, or of a stamp only where that has more.
    pub fn of_message(bytes: usize) -> Self {
        let bytes = bytes.saturating_sub(STAMP_BYTES);
        let mut random = StdRng::seed_from_u64(0);
        let word = |random: &mut StdRng| {
            let letters = random.random_range(2..10);
            let letters = (0..letters).map(|_| char::from(random.random_range(b'a'..=b'z')));
            letters.collect::<String>()
        };
        let words: Vec<_> = (0..WORDS).map(|_| word(&mut random)).collect();
        let mut text = String::with_capacity(bytes + 16);
        while text.len() < bytes {
            // The square of a number below one has small ones more often.
            let rank = random.random::<f64>().powi(2) * WORDS as f64;
            text.push_str(&words[rank as usize]);
            text.push(' ');
        }
        text.truncate(bytes);
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::Window;

    #[test]
    fn a_message_says_what_it_is() {
        let (stamp, at) = (Stamp { run: 0xabc }, Duration::from_millis(7));
        let filler = Filler::of_message(64);
        let text = stamp.text(42, at, &filler);
        assert_eq!(text.len(), 64);
        assert_eq!(stamp.read(text.as_bytes()), Some((42, at)));
        let event = format!(r#"{{"event":"m","data":"{text}","room":"/x"}}"#);
        assert_eq!(stamp.read(event.as_bytes()), Some((42, at)));
        let least = stamp.text(0, at, &Filler::of_message(1));
        assert_eq!(least.len(), STAMP_BYTES);
        let other = Stamp { run: 1 }.text(42, at, &filler);
        for foreign in [&*other, "", r#"{"event":"unisono:open"}"#, &text[1..]] {
            assert_eq!(stamp.read(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_message_compresses_as_others_do() {
        for bytes in [1 << 10, 4 << 10, 64 << 10, 1 << 20] {
            let text = Stamp { run: 1 }.text(1, Duration::ZERO, &Filler::of_message(bytes));
            let compressed = Window::Large.compress(text.as_bytes()).unwrap();
            let times = bytes as f64 / compressed.len() as f64;
            assert!((2.0..4.0).contains(&times), "{bytes}: {times}");
            println!("{bytes}: {times}");
        }
    }
}
