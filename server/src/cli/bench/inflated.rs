//! Texts that came compressed. A node compresses once what goes to many, so that many sockets get the same bytes: they
//! are inflated once, and the clients' CPU is not what is measured.

use std::collections::VecDeque;

use anyhow::anyhow;

use super::rest::PIECE_BYTES_MAX;
use crate::websocket::deflate::inflate;

/// The latest texts.
#[derive(Debug, Default)]
pub struct Inflated {
    known: VecDeque<Known>,
    /// Where the next is looked for first: each socket gets them in the same order.
    next: usize,
    /// How many texts came compressed.
    pub count: u64,
}

#[derive(Debug)]
struct Known {
    compressed: Vec<u8>,
    text: Vec<u8>,
}

/// As many as are in flight in most runs; each may have a mebibyte.
const KNOWN_MAX: usize = 32;

impl Inflated {
    /// The text of those bytes.
    pub fn text(&mut self, compressed: &[u8]) -> anyhow::Result<&[u8]> {
        self.count += 1;
        let at = match self.find(compressed) {
            Some(at) => at,
            None => {
                let text = inflate(compressed, PIECE_BYTES_MAX);
                let text = text.map_err(|close| anyhow!("not inflated: {}", close.reason))?;
                if self.known.len() == KNOWN_MAX {
                    self.known.pop_front();
                }
                self.known.push_back(Known {
                    compressed: compressed.to_vec(),
                    text,
                });
                self.known.len() - 1
            }
        };
        self.next = (at + 1) % self.known.len();
        Ok(&self.known[at].text)
    }

    fn find(&self, compressed: &[u8]) -> Option<usize> {
        let count = self.known.len();
        let mut places = (0..count).map(|step| (self.next + step) % count);
        places.find(|at| self.known[*at].compressed == compressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::websocket::Window;

    #[test]
    fn each_text_comes_out_whoever_gets_it_and_when() {
        let mut inflated = Inflated::default();
        let text = |number: usize| format!("{number} ").repeat(100).into_bytes();
        let numbers = (0..100).chain(90..100).chain(0..3).chain([0, 2, 1]);
        for number in numbers.clone() {
            let compressed = Window::Large.compress(&text(number)).unwrap();
            assert_eq!(inflated.text(&compressed).unwrap(), text(number));
        }
        assert_eq!(inflated.count, numbers.count() as u64);
        assert_eq!(inflated.known.len(), KNOWN_MAX);
        assert!(inflated.text(&[0xff; 9]).is_err());
    }
}
