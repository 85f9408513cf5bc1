//! A bound on the bytes of messages that the bus has handed over and that wait for this node to act upon them.
//!
//! The client of NATS bounds what waits in each subscription by the number of messages only. So each reader takes
//! what its subscription has at once, and lets it wait here, where bytes are counted over all subscriptions.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::task::coop;

use crate::Message;

/// Counts the bytes that wait, over all subscriptions of a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Incoming(Arc<Counts>);

struct Counts {
    bytes: AtomicUsize,
    bytes_max: usize,
    overflows: AtomicU64,
}

/// Bytes that stay counted until this is dropped.
pub(crate) struct Share {
    incoming: Incoming,
    bytes: usize,
}

/// One subscription, of which messages are taken as they come, also while one of them is acted upon.
pub(crate) struct ReadAhead<S> {
    subscription: S,
    /// Nothing more comes.
    ended: bool,
    waiting: VecDeque<Message>,
    /// What the message takes that is acted upon.
    current: usize,
    incoming: Incoming,
    class: Class,
}

/// Which part of the bound is open to a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Publications and requests of applications: three quarters.
    Data,
    /// Heartbeats, answers and requests of nodes: all, so that no flood of data makes this node deaf to its cluster.
    Control,
}

/// What a message costs beside its payload.
const FIXED_BYTES: usize = 512;

/// Room for so many messages is kept by a subscription of which none waits: half a KiB, for each room of the node.
const KEPT_MAX: usize = 4;

// === impl Incoming ===

impl Incoming {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Counts {
            bytes: AtomicUsize::new(0),
            bytes_max,
            overflows: AtomicU64::new(0),
        }))
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Messages that were dropped, so far, because too much waited.
    pub(crate) fn overflows(&self) -> u64 {
        self.0.overflows.load(Ordering::Relaxed)
    }

    /// Counts a message that waits on behind its reader. It has been let in before, so it is not refused.
    pub(crate) fn share(&self, payload_bytes: usize) -> Share {
        let bytes = payload_bytes + FIXED_BYTES;
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Share {
            incoming: self.clone(),
            bytes,
        }
    }

    /// Counts a message, or says that there is no room for it. One that is larger than the bound passes alone.
    fn admit(&self, cost: usize, class: Class) -> bool {
        let max = match class {
            Class::Data => self.0.bytes_max - self.0.bytes_max / 4,
            Class::Control => self.0.bytes_max,
        };
        let taken = self.bytes();
        let admitted = taken == 0 || taken.saturating_add(cost) <= max;
        if admitted {
            self.0.bytes.fetch_add(cost, Ordering::Relaxed);
        } else {
            self.0.overflows.fetch_add(1, Ordering::Relaxed);
        }
        admitted
    }

    fn release(&self, bytes: usize) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.incoming.release(self.bytes);
    }
}

// === impl ReadAhead ===

impl<S: Stream<Item = Message> + Unpin> ReadAhead<S> {
    pub(crate) fn new(subscription: S, incoming: Incoming, class: Class) -> Self {
        Self {
            subscription,
            ended: false,
            waiting: VecDeque::new(),
            current: 0,
            incoming,
            class,
        }
    }

    /// What the messages come from.
    pub(crate) fn subscription(&mut self) -> &mut S {
        &mut self.subscription
    }

    /// The next message, in the order in which they came. The one before counts no more. May be given up and called again.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        self.incoming.release(std::mem::take(&mut self.current));
        // Other tasks of the thread have their turn among many messages; what came meanwhile is taken then.
        let same_turn = coop::has_budget_remaining();
        coop::consume_budget().await;
        if self.waiting.is_empty() || !same_turn {
            poll_fn(|cx| {
                self.fill(cx);
                match self.waiting.is_empty() && !self.ended {
                    true => Poll::Pending,
                    false => Poll::Ready(()),
                }
            })
            .await;
        }
        let message = self.waiting.pop_front()?;
        self.current = cost(&message);
        if self.waiting.is_empty() {
            self.waiting.shrink_to(KEPT_MAX);
        }
        Some(message)
    }

    /// Awaits what is done about a message. What comes meanwhile is not left to the client of the bus.
    pub(crate) async fn during(&mut self, acting: impl Future<Output = ()>) {
        let mut acting = pin!(acting);
        poll_fn(|cx| match acting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => {
                self.fill(cx);
                Poll::Pending
            }
        })
        .await;
    }

    /// Takes all that the subscription has, however much: what stayed there would not be counted.
    fn fill(&mut self, cx: &mut Context<'_>) {
        let taking = coop::unconstrained(poll_fn(|cx| {
            while !self.ended {
                match Pin::new(&mut self.subscription).poll_next(cx) {
                    Poll::Ready(Some(message)) => {
                        if self.incoming.admit(cost(&message), self.class) {
                            self.waiting.push_back(message);
                        }
                    }
                    Poll::Ready(None) => self.ended = true,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(())
        }));
        let _ = pin!(taking).poll(cx);
    }
}

impl<S> Drop for ReadAhead<S> {
    fn drop(&mut self) {
        let waiting: usize = self.waiting.iter().map(cost).sum();
        self.incoming.release(waiting + self.current);
    }
}

fn cost(message: &Message) -> usize {
    message.payload.len() + FIXED_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use tokio::sync::mpsc;

    use super::*;

    struct Receiver(mpsc::UnboundedReceiver<Message>);

    impl Stream for Receiver {
        type Item = Message;

        fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
            self.0.poll_recv(cx)
        }
    }

    /// A message of which the first byte is a number.
    fn message(number: u8, bytes: usize) -> Message {
        let mut payload = vec![0; bytes];
        payload[0] = number;
        Message {
            subject: "a".to_owned(),
            reply: None,
            payload: Bytes::from(payload),
            traceparent: None,
            no_responders: false,
        }
    }

    fn subscribe(
        incoming: &Incoming,
        class: Class,
    ) -> (mpsc::UnboundedSender<Message>, ReadAhead<Receiver>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let read = ReadAhead::new(Receiver(receiver), incoming.clone(), class);
        (sender, read)
    }

    /// Whatever comes while a message is acted upon, for which one poll is enough.
    async fn hold_up(read: &mut ReadAhead<Receiver>) {
        let held_up = read.during(std::future::pending()).now_or_never();
        assert!(held_up.is_none());
    }

    async fn numbers(read: &mut ReadAhead<Receiver>) -> Vec<u8> {
        let mut numbers = vec![];
        while let Some(Some(message)) = read.next().now_or_never() {
            numbers.push(message.payload[0]);
        }
        numbers
    }

    #[tokio::test]
    async fn messages_wait_in_order_while_one_is_acted_upon() {
        let incoming = Incoming::new(1 << 20);
        let (sender, mut read) = subscribe(&incoming, Class::Data);
        for number in 0..3 {
            sender.send(message(number, 100)).unwrap();
        }
        assert_eq!(read.next().await.unwrap().payload[0], 0);
        sender.send(message(3, 100)).unwrap();
        hold_up(&mut read).await;
        assert_eq!(incoming.bytes(), 4 * (100 + FIXED_BYTES));
        assert_eq!(numbers(&mut read).await, [1, 2, 3]);
        assert_eq!((incoming.bytes(), incoming.overflows()), (0, 0));
        drop(sender);
        assert_eq!(read.next().await, None);
    }

    #[tokio::test]
    async fn more_than_a_turn_takes_is_taken_from_the_subscription_at_once() {
        let incoming = Incoming::new(1 << 30);
        let (sender, mut read) = subscribe(&incoming, Class::Data);
        for number in 0..1_000 {
            sender.send(message(number as u8, 100)).unwrap();
        }
        assert_eq!(read.next().await.unwrap().payload[0], 0);
        assert_eq!(incoming.bytes(), 1_000 * (100 + FIXED_BYTES));
        for number in 1..1_000 {
            assert_eq!(read.next().await.unwrap().payload[0], number as u8);
        }
    }

    #[tokio::test]
    async fn bytes_are_bounded_over_all_subscriptions() {
        let incoming = Incoming::new(100_000);
        let (first, mut read) = subscribe(&incoming, Class::Data);
        let (second, mut read_too) = subscribe(&incoming, Class::Data);
        for number in 0..4 {
            first.send(message(number, 20_000)).unwrap();
            second.send(message(number, 20_000)).unwrap();
        }
        hold_up(&mut read).await;
        hold_up(&mut read_too).await;
        assert!(incoming.bytes() <= 75_000, "{}", incoming.bytes());
        assert_eq!(incoming.overflows(), 5);
        // What came first is there.
        assert_eq!(numbers(&mut read).await, [0, 1, 2]);
        second.send(message(9, 20_000)).unwrap();
        assert_eq!(numbers(&mut read_too).await, [9]);
    }

    #[tokio::test]
    async fn a_flood_of_data_leaves_room_for_what_nodes_say() {
        let incoming = Incoming::new(100_000);
        let (data, mut read) = subscribe(&incoming, Class::Data);
        let (control, mut inbox) = subscribe(&incoming, Class::Control);
        for number in 0..100 {
            data.send(message(number, 10_000)).unwrap();
        }
        hold_up(&mut read).await;
        let dropped = incoming.overflows();
        control.send(message(7, 10_000)).unwrap();
        hold_up(&mut inbox).await;
        assert_eq!(numbers(&mut inbox).await, [7]);
        assert_eq!(incoming.overflows(), dropped);
    }

    #[tokio::test]
    async fn a_message_larger_than_the_bound_passes_alone() {
        let incoming = Incoming::new(1_000);
        let (sender, mut read) = subscribe(&incoming, Class::Data);
        sender.send(message(1, 5_000)).unwrap();
        sender.send(message(2, 5_000)).unwrap();
        assert_eq!(numbers(&mut read).await, [1]);
        assert_eq!((incoming.bytes(), incoming.overflows()), (0, 1));
    }

    #[tokio::test]
    async fn a_subscription_that_ends_gives_its_bytes_back() {
        let incoming = Incoming::new(1 << 20);
        let (sender, mut read) = subscribe(&incoming, Class::Data);
        for number in 0..3 {
            sender.send(message(number, 100)).unwrap();
        }
        assert!(read.next().await.is_some());
        let share = incoming.share(100);
        drop(read);
        assert_eq!(incoming.bytes(), 100 + FIXED_BYTES);
        drop(share);
        assert_eq!(incoming.bytes(), 0);
    }
}
