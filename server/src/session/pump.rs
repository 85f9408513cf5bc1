//! Reading and writing: the one future of a session that touches the connection.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::Poll;

use actix::fut::ActorFuture;
use actix::{ActorContext, Context};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tracing::debug;

use super::{Phase, Session};
use crate::websocket::Incoming;
use crate::websocket::frame;

/// Reads without a pause for others.
const READS_PER_TURN: usize = 4;

/// Messages without a pause for others: one read may hold thousands of small ones.
const MESSAGES_PER_TURN: usize = 128;

/// The size of the buffer that all sessions of a worker read into.
const READ_BYTES: usize = 64 * 1024;

thread_local! {
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// Drives the connection whenever the actor is polled: after each message, and when the socket is ready.
pub(super) struct Pump;

impl ActorFuture<Session> for Pump {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        session: &mut Session,
        ctx: &mut Context<Session>,
        task: &mut std::task::Context<'_>,
    ) -> Poll<()> {
        if session.drive(ctx, task).is_err() {
            ctx.stop();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

/// The connection is over.
struct Gone;

impl Session {
    fn drive(
        &mut self,
        ctx: &mut Context<Self>,
        task: &mut std::task::Context<'_>,
    ) -> Result<(), Gone> {
        if let Phase::Opening(turns) = &mut self.phase
            && *turns > 0
        {
            *turns -= 1;
            task.waker().wake_by_ref();
            return Ok(());
        }
        self.write(task)?;
        if let Phase::Opening(_) = self.phase {
            return Ok(());
        }
        let read = self.read(ctx, task);
        self.hand_over();
        // Also when there is nobody left to read from: the last answer may still be wanted.
        self.write(task)?;
        read?;
        if self.outbox.is_empty()
            && let Some(pong) = self.pong.take()
        {
            self.push(pong);
            self.write(task)?;
        }
        let queue_max = self.shared().config.sockets.queue_bytes;
        let blocked = self.outbox.blocked_since().is_some();
        self.queue.blocked.store(blocked, Ordering::Relaxed);
        if blocked && self.queue.bytes.load(Ordering::Relaxed) > queue_max {
            self.close_slow();
        }
        if let Phase::Closing(closing) = &mut self.phase {
            if closing.deadline.as_mut().poll(task).is_ready() {
                return Err(Gone);
            }
            if closing.deaf && !closing.shut && self.outbox.is_empty() {
                closing.shut = match Pin::new(&mut self.stream).poll_shutdown(task) {
                    Poll::Ready(result) => result.is_ok(),
                    Poll::Pending => false,
                };
            }
        } else if self.outbox.blocked_since().is_some() {
            self.schedule(ctx);
        }
        Ok(())
    }

    fn write(&mut self, task: &mut std::task::Context<'_>) -> Result<(), Gone> {
        let written = self
            .outbox
            .write(&mut self.stream, task)
            .map_err(|_| Gone)?;
        if written.bytes > 0 {
            self.queue.remove(written.cost);
            self.queue.tally.sent(written.bytes);
        }
        Ok(())
    }

    fn read(
        &mut self,
        ctx: &mut Context<Self>,
        task: &mut std::task::Context<'_>,
    ) -> Result<(), Gone> {
        self.messages_left = MESSAGES_PER_TURN;
        for _ in 0..READS_PER_TURN {
            if !self.may_read(task) {
                return Ok(());
            }
            // What came before comes first, all of it.
            if !self.carry.is_empty() {
                let mut carry = std::mem::take(&mut self.carry);
                self.take_in(&mut carry, ctx);
                if self.messages_left == 0 {
                    break;
                }
                continue;
            }
            let read = READ_BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                match Pin::new(&mut self.stream).poll_read(task, &mut buffer) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(Err(_)) => Poll::Ready(Err(Gone)),
                    Poll::Ready(Ok(())) if buffer.filled().is_empty() => Poll::Ready(Err(Gone)),
                    Poll::Ready(Ok(())) => {
                        self.queue.tally.received(buffer.filled().len());
                        self.take_in(buffer.filled_mut(), ctx);
                        Poll::Ready(Ok(()))
                    }
                }
            });
            match read {
                Poll::Pending => return Ok(()),
                Poll::Ready(result) => result?,
            }
            if self.messages_left == 0 {
                break;
            }
        }
        // There may be more; others first.
        task.waker().wake_by_ref();
        Ok(())
    }

    /// Whether what the client sent may be looked at now.
    fn may_read(&mut self, task: &mut std::task::Context<'_>) -> bool {
        if self.is_closing() {
            return true;
        }
        if let Some(stall) = &mut self.stall {
            let Poll::Ready(permit) = stall.permit.as_mut().poll(task) else {
                return false;
            };
            if let Some(stall) = self.stall.take() {
                self.published(stall.publication, stall.id.as_ref(), permit);
            }
        }
        !self.is_busy()
    }

    fn take_in(&mut self, mut input: &mut [u8], ctx: &mut Context<Self>) {
        self.hear(ctx);
        loop {
            match &self.phase {
                Phase::Closing(closing) if closing.deaf => return,
                // Who floods on, while its goodbye is waited for, gets no longer turns than before.
                Phase::Closing(_) if self.messages_left > 0 => {}
                _ if self.stall.is_some() || self.is_busy() || self.messages_left == 0 => {
                    debug_assert!(self.carry.is_empty(), "nothing is read before it is used");
                    self.carry = input.to_vec();
                    return;
                }
                _ => {}
            }
            let incoming = match self.decoder.next(&mut input) {
                Ok(None) => return,
                Ok(Some(incoming)) => incoming,
                Err(close) => {
                    debug!(socket = %self.id, code = close.code, "bad input");
                    self.finish(frame::close(Some(&close)), close);
                    // If it was closing already, it is deaf from now on.
                    self.deafen();
                    return;
                }
            };
            self.messages_left = self.messages_left.saturating_sub(1);
            match (&self.phase, incoming) {
                (Phase::Closing(_), Incoming::Close(_)) => self.deafen(),
                (Phase::Closing(_), _) => {}
                (_, incoming) => self.on_incoming(incoming, ctx),
            }
        }
    }

    fn deafen(&mut self) {
        if let Phase::Closing(closing) = &mut self.phase {
            closing.deaf = true;
        }
    }
}
