//! A stream that is cut anywhere: what is whole is read where it lies, and the rest is kept until more comes.

use anyhow::ensure;

/// What was cut off.
#[derive(Debug, Default)]
pub struct Rest(Vec<u8>);

/// More than a node sends in one piece.
pub const PIECE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Room for a piece that is cut, which a socket may keep.
const KEPT_BYTES: usize = 4 * 1024;

impl Rest {
    /// Has `read` read what there is with those bytes. It says how many of them were whole pieces.
    ///
    /// # Errors
    ///
    /// Those of `read`, and a piece of more than [`PIECE_BYTES_MAX`].
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut read: impl FnMut(&[u8]) -> anyhow::Result<usize>,
    ) -> anyhow::Result<()> {
        let Self(rest) = self;
        if rest.is_empty() {
            let whole = read(bytes)?;
            rest.extend_from_slice(&bytes[whole..]);
        } else {
            rest.extend_from_slice(bytes);
            let whole = read(rest)?;
            rest.drain(..whole);
            if rest.is_empty() {
                rest.shrink_to(KEPT_BYTES);
            }
        }
        let kept = rest.len();
        ensure!(kept <= PIECE_BYTES_MAX, "a message of over {kept} bytes");
        Ok(())
    }

    /// Whether nothing is cut, and how much room that takes.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty() && self.0.capacity() <= KEPT_BYTES
    }
}
