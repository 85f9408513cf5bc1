//! The bus of a node that is alone, and of simulated clusters: messages pass within the process.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;

use crate::{Bus, BusStatus, Message, Outgoing, PublishError, Subject};

/// Where [`MemoryBus`]es meet. Links can be cut and healed, like the cables of a real network.
#[derive(Clone)]
pub struct MemoryHub {
    connections: Arc<Mutex<HashMap<u64, Connection>>>,
    next: Arc<AtomicU64>,
    payload_max: usize,
}

/// One connection to a [`MemoryHub`].
pub struct MemoryBus {
    hub: MemoryHub,
    id: u64,
}

/// Messages of one subscription.
pub struct MemorySubscription(mpsc::Receiver<Message>);

struct Connection {
    status: BusStatus,
    subscriptions: Vec<Subscribed>,
}

struct Subscribed {
    pattern: Subject,
    shared: bool,
    sender: mpsc::Sender<Message>,
}

/// Messages that wait in one subscription; as with NATS, more are dropped and counted.
const SUBSCRIPTION_MESSAGES_MAX: usize = 16_384;

impl MemoryHub {
    /// A hub that takes messages of at most `payload_max` bytes.
    pub fn new(payload_max: usize) -> Self {
        Self {
            connections: Arc::default(),
            next: Arc::default(),
            payload_max,
        }
    }

    /// A new connection.
    pub fn connect(&self) -> MemoryBus {
        let mut connections = self.lock();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let status = BusStatus {
            connected: true,
            connections: 1,
            overflows: 0,
        };
        connections.insert(
            id,
            Connection {
                status,
                subscriptions: Vec::new(),
            },
        );
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

    fn with_status(&self, nth: u64, change: impl FnOnce(&mut BusStatus)) {
        if let Some(connection) = self.lock().get_mut(&nth) {
            change(&mut connection.status);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus for MemoryBus {
    type Subscription = MemorySubscription;

    async fn publish(&self, message: Outgoing) -> Result<(), PublishError> {
        if message.payload.len() > self.hub.payload_max {
            return Err(PublishError::TooLarge);
        }
        let mut connections = self.hub.lock();
        let me = connections.get(&self.id).ok_or(PublishError::Closed)?;
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
        let mut responders = 0;
        let mut served = false;
        for (id, other) in connections.iter_mut() {
            if *id != self.id && other.status.connected {
                responders += other.deliver(&arrived, &mut served);
            }
        }
        if let (0, Some(reply)) = (responders, message.reply) {
            let word = Message {
                subject: reply.as_str().to_owned(),
                reply: None,
                payload: Bytes::new(),
                traceparent: None,
                no_responders: true,
            };
            if let Some(me) = connections.get_mut(&self.id) {
                me.deliver(&word, &mut served);
            }
        }
        Ok(())
    }

    async fn subscribe(&self, subject: Subject) -> MemorySubscription {
        self.add(subject, false)
    }

    async fn subscribe_shared(&self, subject: Subject) -> MemorySubscription {
        self.add(subject, true)
    }

    fn status(&self) -> BusStatus {
        let connections = self.hub.lock();
        connections
            .get(&self.id)
            .map_or_else(BusStatus::default, |connection| connection.status)
    }

    fn payload_max(&self) -> usize {
        self.hub.payload_max
    }

    async fn reconnect(&self) {}

    async fn close(&self) {
        self.hub.lock().remove(&self.id);
    }
}

impl MemoryBus {
    fn add(&self, pattern: Subject, shared: bool) -> MemorySubscription {
        let (sender, receiver) = mpsc::channel(SUBSCRIPTION_MESSAGES_MAX);
        if let Some(me) = self.hub.lock().get_mut(&self.id) {
            me.subscriptions.push(Subscribed {
                pattern,
                shared,
                sender,
            });
        }
        MemorySubscription(receiver)
    }
}

impl Drop for MemoryBus {
    fn drop(&mut self) {
        self.hub.lock().remove(&self.id);
    }
}

impl Connection {
    /// Delivers to the subscriptions that match, of shared ones only if none was `served`; gives their number.
    fn deliver(&mut self, message: &Message, served: &mut bool) -> usize {
        self.subscriptions
            .retain(|subscribed| !subscribed.sender.is_closed());
        let mut matching = 0;
        for subscribed in &self.subscriptions {
            let wanted = matches(subscribed.pattern.as_str(), &message.subject)
                && !(subscribed.shared && *served);
            if wanted {
                matching += 1;
                *served |= subscribed.shared;
                if subscribed.sender.try_send(message.clone()).is_err() {
                    self.status.overflows += 1;
                }
            }
        }
        matching
    }
}

impl Stream for MemorySubscription {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        self.0.poll_recv(cx)
    }
}

/// Whether a subject is of a pattern, in which `*` stands for one token.
fn matches(pattern: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    let all = pattern
        .split('.')
        .all(|token| matches!(subject.next(), Some(other) if token == "*" || token == other));
    all && subject.next().is_none()
}
