//! What a cluster needs of a message bus.

use std::future::Future;

use bytes::Bytes;
use futures_util::Stream;

use crate::Subject;

/// A message bus, as one node is connected to it. Implementations pass one contract suite
/// (`bus_contract` in the tests):
///
/// - what one node publishes to one subject arrives at each subscription in that order, at most once;
/// - a node does not hear itself;
/// - a publication with `reply` that nobody is subscribed to is answered on `reply` with
///   [`Message::no_responders`], at once;
/// - what is published to a shared subscription arrives at one of its nodes;
/// - what is too large is refused and costs the connection nothing;
/// - after the connection came back, subscriptions are as they were.
pub trait Bus: 'static {
    /// Messages of one subscription. Dropping it ends the subscription.
    type Subscription: Stream<Item = Message> + Unpin + 'static;

    /// Hands a message over. May wait for room in the connection's buffer, never for an answer.
    fn publish(&self, message: Outgoing) -> impl Future<Output = Result<(), PublishError>>;

    /// Subscribes to a subject or pattern. What is published after the subscription has reached the
    /// server arrives; a later [`Bus::publish`] on this connection reaches the server after it.
    fn subscribe(&self, subject: Subject) -> impl Future<Output = Self::Subscription>;

    /// As [`Bus::subscribe`], and of all nodes that have subscribed so to the subject, one gets each message.
    fn subscribe_shared(&self, subject: Subject) -> impl Future<Output = Self::Subscription>;

    /// Ends a subscription with so many more messages: those that the bus has sent already, and others up to that number.
    /// None of them is lost, where the bus has sent no more than that already. Then the stream ends.
    fn drain(&self, subscription: &mut Self::Subscription, more: u64) -> impl Future<Output = ()>;

    /// How the connection does now.
    fn status(&self) -> BusStatus;

    /// Most bytes in a message, as the server said last.
    fn payload_max(&self) -> usize;

    /// Gives up a connection that seems dead and makes a new one.
    fn reconnect(&self) -> impl Future<Output = ()>;

    /// Writes out what was handed over and closes the connection; waits a bounded time.
    fn close(&self) -> impl Future<Output = ()>;
}

/// How a connection does. Counters, so that a reader who looks seldom misses nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BusStatus {
    /// Whether there is a connection now.
    pub connected: bool,
    /// Connections made so far.
    pub connections: u64,
    /// Times that messages were dropped because this node read too slowly.
    pub overflows: u64,
}

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where to.
    pub subject: Subject,
    /// Where an answer is awaited.
    pub reply: Option<Subject>,
    /// The bytes.
    pub payload: Bytes,
}

/// A message that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The subject that it was published to.
    pub subject: String,
    /// Where its sender awaits an answer.
    pub reply: Option<String>,
    /// The bytes.
    pub payload: Bytes,
    /// The header of that name, of an application that traces its requests (W3C Trace Context).
    pub traceparent: Option<Box<str>>,
    /// Not a message but the bus's word that nobody was there to answer.
    pub no_responders: bool,
}

/// Why a message could not be handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// More bytes than the server takes.
    #[error("the message has more bytes than the bus takes")]
    TooLarge,
    /// The connection is gone for good.
    #[error("the bus is closed")]
    Closed,
}
