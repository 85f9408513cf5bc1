//! The bus of a node that is alone, and of simulated clusters: messages pass within the process.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::{Bus, BusStatus, Message, Outgoing, PublishError, Subject};

/// Where [`MemoryBus`]es meet. Links can be cut and healed, like the cables of a real network.
#[derive(Clone)]
pub struct MemoryHub {
    switch: Arc<Mutex<Switch>>,
    payload_max: usize,
}

/// One connection to a [`MemoryHub`].
pub struct MemoryBus {
    hub: MemoryHub,
    id: u64,
}

/// Messages of one subscription.
pub struct MemorySubscription {
    hub: MemoryHub,
    pattern: Subject,
    id: u64,
    receiver: mpsc::Receiver<Message>,
}

#[derive(Default)]
struct Switch {
    /// Connections and subscriptions so far, which are their ids.
    next_connection: u64,
    next_subscription: u64,
    connections: HashMap<u64, Connection>,
    /// By their subject, or pattern, as it was given: a publication looks for two.
    subscriptions: HashMap<String, Vec<Subscribed>>,
}

struct Connection {
    status: BusStatus,
    /// Which part of a network that is cut in two; false for all where it is whole.
    beyond: bool,
}

struct Subscribed {
    id: u64,
    connection: u64,
    shared: bool,
    sender: mpsc::Sender<Message>,
}

/// Messages that wait in one subscription; as with NATS, more are dropped and counted.
const SUBSCRIPTION_MESSAGES_MAX: usize = 16_384;

// === impl MemoryHub ===

impl MemoryHub {
    /// A hub that takes messages of at most `payload_max` bytes.
    pub fn new(payload_max: usize) -> Self {
        Self {
            switch: Arc::default(),
            payload_max,
        }
    }

    /// A new connection.
    pub fn connect(&self) -> MemoryBus {
        let mut switch = self.lock();
        let id = switch.next_connection;
        switch.next_connection += 1;
        let status = BusStatus {
            connected: true,
            connections: 1,
            overflows: 0,
        };
        let connection = Connection {
            status,
            beyond: false,
        };
        switch.connections.insert(id, connection);
        MemoryBus {
            hub: self.clone(),
            id,
        }
    }

    /// Cuts the link of the connection that was made as the `nth`, counted from 0.
    pub fn cut(&self, nth: u64) {
        self.with_status(nth, |status| status.connected = false);
    }

    /// Heals it.
    pub fn heal(&self, nth: u64) {
        self.with_status(nth, |status| {
            status.connected = true;
            status.connections += 1;
        });
    }

    /// Cuts the network in two, as when two NATS servers lose each other: the connections that are `beyond` reach each
    /// other only, and so do the rest. None of them notices. With nobody beyond, the network is whole again.
    pub fn part(&self, beyond: impl Fn(u64) -> bool) {
        for (nth, connection) in &mut self.lock().connections {
            connection.beyond = beyond(*nth);
        }
    }

    fn with_status(&self, nth: u64, change: impl FnOnce(&mut BusStatus)) {
        if let Some(connection) = self.lock().connections.get_mut(&nth) {
            change(&mut connection.status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Switch> {
        self.switch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl MemoryBus ===

impl Bus for MemoryBus {
    type Subscription = MemorySubscription;

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        if message.payload.len() > self.hub.payload_max {
            return Err(PublishError::TooLarge);
        }
        let mut switch = self.hub.lock();
        let me = switch.connections.get(&self.id);
        let me = me.ok_or(PublishError::Closed)?;
        let beyond = me.beyond;
        if !me.status.connected {
            return Ok(()); // into a dead socket's buffer, as it were
        }
        let arrived = Message {
            subject: message.subject.as_str().to_owned(),
            reply: message
                .reply
                .as_ref()
                .map(|reply| reply.as_str().to_owned()),
            payload: message.payload,
            traceparent: None,
            no_responders: false,
        };
        let others = |to, connection: &Connection| to != self.id && connection.beyond == beyond;
        let responders = switch.deliver(&arrived, others);
        if let (0, Some(reply)) = (responders, message.reply) {
            let word = Message {
                subject: reply.as_str().to_owned(),
                reply: None,
                payload: Bytes::new(),
                traceparent: None,
                no_responders: true,
            };
            switch.deliver(&word, |to, _| to == self.id);
        }
        Ok(())
    }

    async fn subscribe(&self, subject: Subject) -> MemorySubscription {
        self.add(subject, false)
    }

    async fn subscribe_shared(&self, subject: Subject) -> MemorySubscription {
        self.add(subject, true)
    }

    /// What was sent is there: nothing is on its way that could be lost.
    async fn drain(&self, subscription: &mut MemorySubscription, _: u64) {
        self.hub.lock().unsubscribe(subscription);
    }

    fn status(&self) -> BusStatus {
        let switch = self.hub.lock();
        let me = switch.connections.get(&self.id);
        me.map_or_else(BusStatus::default, |me| me.status)
    }

    fn payload_max(&self) -> usize {
        self.hub.payload_max
    }

    async fn reconnect(&self) {}

    async fn close(&self) {
        self.hub.lock().disconnect(self.id);
    }
}

impl MemoryBus {
    fn add(&self, pattern: Subject, shared: bool) -> MemorySubscription {
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_MESSAGES_MAX);
        let mut switch = self.hub.lock();
        let id = switch.next_subscription;
        switch.next_subscription += 1;
        let subscribed = Subscribed {
            id,
            connection: self.id,
            shared,
            sender,
        };
        let name = pattern.as_str().to_owned();
        switch
            .subscriptions
            .entry(name)
            .or_default()
            .push(subscribed);
        drop(switch);
        MemorySubscription {
            hub: self.hub.clone(),
            pattern,
            id,
            receiver,
        }
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.hub.lock().disconnect(self.id);
    }
}

// === impl Switch ===

impl Switch {
    /// The connection is no more, and its subscriptions end.
    fn disconnect(&mut self, connection: u64) {
        if self.connections.remove(&connection).is_some() {
            self.subscriptions.retain(|_, there| {
                there.retain(|subscribed| subscribed.connection != connection);
                !there.is_empty()
            });
        }
    }

    fn unsubscribe(&mut self, MemorySubscription { pattern, id, .. }: &MemorySubscription) {
        if let Some(there) = self.subscriptions.get_mut(pattern.as_str()) {
            there.retain(|subscribed| subscribed.id != *id);
            if there.is_empty() {
                self.subscriptions.remove(pattern.as_str());
            }
        }
    }

    /// Delivers to the subscriptions of those connections, of shared ones to one; gives the number of deliveries.
    fn deliver(&mut self, message: &Message, reached: impl Fn(u64, &Connection) -> bool) -> usize {
        let mut responders = 0;
        let mut served = false;
        for name in [message.subject.clone(), pattern_of(&message.subject)] {
            for subscribed in self.subscriptions.get(&name).into_iter().flatten() {
                let id = subscribed.connection;
                let connection = self.connections.get_mut(&id);
                let reached = |to: &&mut Connection| to.status.connected && reached(id, to);
                let Some(connection) = connection.filter(reached) else {
                    continue;
                };
                if subscribed.shared && served {
                    continue;
                }
                responders += 1;
                served |= subscribed.shared;
                if subscribed.sender.try_send(message.clone()).is_err() {
                    connection.status.overflows += 1;
                }
            }
        }
        responders
    }
}

/// The only pattern that a subject is of: [`Subjects`](crate::Subjects) makes none but with `*` for the last token.
fn pattern_of(subject: &str) -> String {
    let (before, _) = subject.rsplit_once('.').unwrap_or_default();
    format!("{before}.*")
}

// === impl MemorySubscription ===

impl Stream for MemorySubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.receiver.poll_recv(cx)
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.hub.lock().unsubscribe(self);
    }
}
