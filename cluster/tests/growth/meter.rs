//! A bus that counts what passes it, by what it is for.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use proto::envelope::{Answer, Body, Request, Told};
use proto::wire;
use unisono_cluster::{Bus, BusStatus, Message, Outgoing, PublishError, Subject};

/// What a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// That a node is up.
    Heartbeat,
    /// Whether the bus is: a question that nobody but the bus itself answers.
    Liveness,
    /// Whether a new subscription is known everywhere: questions and answers.
    Probe,
    /// What a node holds that is watched: one change.
    Change,
    /// What a node holds that is watched: all of it, or the wish for it.
    Snapshot,
    /// For the sockets of a room, or all.
    Publication,
    /// Questions to a node, and answers.
    Call,
    /// That something was missed, and what else is rare.
    Other,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Heartbeat,
        Self::Liveness,
        Self::Probe,
        Self::Change,
        Self::Snapshot,
        Self::Publication,
        Self::Call,
        Self::Other,
    ];

    fn of(subject: &str, payload: &Bytes) -> Self {
        // Most messages by far: to decode them, too, would take a third of the time of a run.
        if subject.ends_with(".heartbeat") {
            return Self::Heartbeat;
        }
        if payload.is_empty() {
            return Self::Liveness;
        }
        let envelope = wire::decode(payload.clone()).expect("nodes speak so");
        match envelope.body {
            Body::Request(Request::Probe) | Body::Answer(Answer::Pong) => Self::Probe,
            Body::Occupancy(occupancy) => match occupancy.told {
                Told::Begun(_) | Told::Ended(_) => Self::Change,
                Told::Snapshot { .. } => Self::Snapshot,
            },
            Body::Request(Request::Occupancy) => Self::Snapshot,
            Body::Publication(_) => Self::Publication,
            Body::Request(_) | Body::Answer(_) => Self::Call,
            _ => Self::Other,
        }
    }
}

/// Messages and their bytes: of payload, subject and reply, which is all but a dozen bytes of what NATS's protocol
/// takes for them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub messages: u64,
    pub bytes: u64,
}

/// What one node has sent and received, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub sent: [Count; Kind::ALL.len()],
    pub received: [Count; Kind::ALL.len()],
}

/// The counters of one node.
#[derive(Default)]
pub struct Meter {
    tally: RefCell<Tally>,
    subscriptions: Cell<usize>,
}

/// A bus with a meter.
pub struct Metered<B> {
    bus: B,
    meter: Rc<Meter>,
}

/// A subscription with a meter.
pub struct MeteredSubscription<S> {
    subscription: S,
    meter: Rc<Meter>,
}

impl Count {
    pub fn add(&mut self, other: Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
    }
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        for kind in Kind::ALL {
            self.sent[kind as usize].add(other.sent[kind as usize]);
            self.received[kind as usize].add(other.received[kind as usize]);
        }
    }
}

impl Meter {
    /// What was counted since the last call.
    pub fn take(&self) -> Tally {
        self.tally.take()
    }

    pub fn subscriptions(&self) -> usize {
        self.subscriptions.get()
    }

    fn subscribe<S>(self: &Rc<Self>, subscription: S) -> MeteredSubscription<S> {
        self.subscriptions.set(self.subscriptions.get() + 1);
        MeteredSubscription {
            subscription,
            meter: Rc::clone(self),
        }
    }
}

impl<B> Metered<B> {
    pub fn new(bus: B, meter: Rc<Meter>) -> Self {
        Self { bus, meter }
    }
}

impl<B: Bus> Bus for Metered<B> {
    type Subscription = MeteredSubscription<B::Subscription>;

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        let reply = message
            .reply
            .as_ref()
            .map_or(0, |reply| reply.as_str().len());
        let bytes = message.payload.len() + message.subject.as_str().len() + reply;
        let count = Count {
            messages: 1,
            bytes: bytes as u64,
        };
        let kind = Kind::of(message.subject.as_str(), &message.payload) as usize;
        self.meter.tally.borrow_mut().sent[kind].add(count);
        self.bus.publish(message).await
    }

    async fn subscribe(&self, subject: Subject) -> Self::Subscription {
        self.meter.subscribe(self.bus.subscribe(subject).await)
    }

    async fn subscribe_shared(&self, subject: Subject) -> Self::Subscription {
        self.meter
            .subscribe(self.bus.subscribe_shared(subject).await)
    }

    async fn drain(&self, subscription: &mut Self::Subscription, more: u64) {
        self.bus.drain(&mut subscription.subscription, more).await;
    }

    fn status(&self) -> BusStatus {
        self.bus.status()
    }

    fn payload_max(&self) -> usize {
        self.bus.payload_max()
    }

    async fn reconnect(&self) {
        self.bus.reconnect().await;
    }

    async fn close(&self) {
        self.bus.close().await;
    }
}

impl<S: Stream<Item = Message> + Unpin> Stream for MeteredSubscription<S> {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        let next = Pin::new(&mut self.subscription).poll_next(cx);
        if let Poll::Ready(Some(message)) = &next {
            let reply = message.reply.as_ref().map_or(0, String::len);
            let bytes = message.payload.len() + message.subject.len() + reply;
            let count = Count {
                messages: 1,
                bytes: bytes as u64,
            };
            let kind = Kind::of(&message.subject, &message.payload) as usize;
            self.meter.tally.borrow_mut().received[kind].add(count);
        }
        next
    }
}

impl<S> Drop for MeteredSubscription<S> {
    fn drop(&mut self) {
        let subscriptions = &self.meter.subscriptions;
        subscriptions.set(subscriptions.get() - 1);
    }
}
