//! What waits to be written to a client: shared frames, in order.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Outbox {
    frames: VecDeque<Bytes>,
    /// Bytes of the first frame that are written already.
    offset: usize,
    /// The connection has taken bytes that it has not passed on, as TLS does.
    unflushed: bool,
    blocked_since: Option<Instant>,
}

/// What the connection took.
#[derive(Default)]
pub(super) struct Written {
    pub(super) bytes: usize,
    /// What that counted for.
    pub(super) cost: usize,
}

/// What an entry costs beside its bytes: its place here or in the mailbox, and its share of a buffer.
const ENTRY_BYTES: usize = 96;

/// What frames count for, against the limit of a client's queue.
pub(super) fn cost(frames: &Bytes) -> usize {
    frames.len() + ENTRY_BYTES
}

/// Most frames in one system call.
const SLICES_MAX: usize = 32;

/// Places that an empty outbox may keep.
const CAPACITY_KEPT: usize = 4;

impl Outbox {
    pub(super) fn push(&mut self, frames: Bytes) {
        self.frames.push_back(frames);
    }

    /// Whether everything is on its way to the client.
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty() && !self.unflushed
    }

    /// Since when the client has taken nothing, though something waits.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Forgets what the client has not begun to take, and says what that counted for.
    pub(super) fn drop_unwritten(&mut self) -> usize {
        let kept = usize::from(self.offset > 0);
        let dropped = self.frames.drain(kept.min(self.frames.len())..);
        dropped.map(|frames| cost(&frames)).sum()
    }

    /// Writes as much as the connection takes.
    pub(super) fn write<W: AsyncWrite + Unpin>(
        &mut self,
        mut connection: W,
        task: &mut Context<'_>,
    ) -> io::Result<Written> {
        let mut written = Written::default();
        while let Some(first) = self.frames.front() {
            let connection = Pin::new(&mut connection);
            let result = if self.frames.len() == 1 {
                connection.poll_write(task, &first[self.offset..])
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES_MAX];
                let mut count = 0;
                for (slice, frames) in slices.iter_mut().zip(&self.frames) {
                    let from = if count == 0 { self.offset } else { 0 };
                    *slice = IoSlice::new(&frames[from..]);
                    count += 1;
                }
                connection.poll_write_vectored(task, &slices[..count])
            };
            match result {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => {
                    written.bytes += bytes;
                    written.cost += bytes + ENTRY_BYTES * self.advance(bytes);
                    self.blocked_since = None;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return Ok(written);
                }
            }
        }
        if self.unflushed {
            match Pin::new(&mut connection).poll_flush(task)? {
                Poll::Ready(()) => {
                    self.blocked_since = None;
                    self.unflushed = false;
                }
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                }
            }
        }
        Ok(written)
    }

    /// Says how many entries are done with.
    fn advance(&mut self, bytes: usize) -> usize {
        let mut done = 0;
        self.offset += bytes;
        while let Some(first) = self.frames.front()
            && self.offset >= first.len()
        {
            self.offset -= first.len();
            self.frames.pop_front();
            done += 1;
        }
        if self.frames.is_empty() && self.frames.capacity() > CAPACITY_KEPT {
            self.frames = VecDeque::new();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Takes a number of bytes, then no more.
    struct Narrow {
        taken: Vec<u8>,
        room: usize,
    }

    impl AsyncWrite for Narrow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Poll::Ready(Ok(count))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn everything_is_written_once_and_in_order() {
        let mut outbox = Outbox::default();
        let mut task = Context::from_waker(Waker::noop());
        let mut narrow = Narrow {
            taken: Vec::new(),
            room: 0,
        };
        let frames: Vec<String> = (0..50).map(|n| format!("frame {n};")).collect();
        for frame in &frames {
            outbox.push(Bytes::from(frame.clone()));
        }
        assert_eq!(outbox.write(&mut narrow, &mut task).unwrap().cost, 0);
        assert!(outbox.blocked_since().is_some());
        let mut counted = 0;
        while !outbox.is_empty() {
            narrow.room = 7;
            counted += outbox.write(&mut narrow, &mut task).unwrap().cost;
        }
        assert_eq!(narrow.taken, frames.concat().into_bytes());
        assert_eq!(counted, narrow.taken.len() + frames.len() * ENTRY_BYTES);
        assert!(outbox.blocked_since().is_none());
    }

    #[test]
    fn a_frame_that_was_begun_is_finished() {
        let mut outbox = Outbox::default();
        let mut task = Context::from_waker(Waker::noop());
        let mut narrow = Narrow {
            taken: Vec::new(),
            room: 2,
        };
        for frame in ["first", "second", "third"] {
            outbox.push(Bytes::from(frame));
        }
        outbox.write(&mut narrow, &mut task).unwrap();
        let dropped = "secondthird".len() + 2 * ENTRY_BYTES;
        assert_eq!(outbox.drop_unwritten(), dropped);
        outbox.push(Bytes::from("close"));
        narrow.room = 100;
        outbox.write(&mut narrow, &mut task).unwrap();
        assert_eq!(narrow.taken, b"firstclose");
    }
}
