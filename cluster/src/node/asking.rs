//! Requests: puts them on their way, in the order of the calls, and waits for their answers.
//!
//! Whoever asks writes into the table of pending requests and into the queue of what is to be sent, and waits by a
//! timer of its own. So a request leaves in one order with the publications of the same caller, and its answer comes
//! back without a detour over the loop.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::NodeId;
use proto::envelope::{Answer, Body, Request};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::{Parcel, What};
use crate::pending::{ApplicationReply, Found, NodeReply, Number, Pending};
use crate::{AskError, CallError, Gathered, Permit, Subject, Subjects};

/// How long to wait for a node that nobody knows: it may have come up a moment ago, or never have been.
const STRANGER_TIMEOUT: Duration = Duration::from_millis(300);

/// A node that has not answered by then, in parts of the time it has, is asked whether it listens at all: NATS may not
/// have noticed its death when the request came.
const PROBE_AFTER: (u32, u32) = (2, 3);

/// The requests of a node, to other nodes and to applications. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Asking(Arc<Shared>);

struct Shared {
    node: NodeId,
    alone: bool,
    call_timeout: Duration,
    subjects: Arc<Subjects>,
    data: mpsc::Sender<Parcel>,
    /// Whether the bus is there, proved or not.
    there: watch::Receiver<bool>,
    last: AtomicU64,
    pending: Mutex<Pending>,
    /// The other nodes that are up, as the loop knows them.
    peers: Mutex<Arc<[NodeId]>>,
}

/// Waits for all other nodes to answer one message.
pub(super) struct Confirmation {
    asking: Asking,
    begun: Instant,
    number: Number,
    waiting: Option<Waiting<Gathered>>,
    peers: Arc<[NodeId]>,
}

/// A request that waits. Dropped, it waits no more.
pub(super) struct Waiting<T> {
    asking: Asking,
    number: Number,
    receiver: oneshot::Receiver<T>,
}

impl Asking {
    pub(super) fn new(
        config: &super::Config,
        subjects: Arc<Subjects>,
        data: mpsc::Sender<Parcel>,
        there: watch::Receiver<bool>,
    ) -> Self {
        Self(Arc::new(Shared {
            node: config.node,
            alone: config.alone,
            call_timeout: config.call_timeout,
            subjects,
            data,
            there,
            last: AtomicU64::new(0),
            pending: Mutex::new(Pending::new(config.pending_max)),
            peers: Mutex::new(Arc::new([])),
        }))
    }

    /// A number that no other request has.
    pub(super) fn number(&self) -> Number {
        self.0.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The loop says who is up.
    pub(super) fn set_peers(&self, peers: impl Iterator<Item = NodeId>) {
        let mut peers: Vec<_> = peers.collect();
        peers.sort_unstable();
        let mut known = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if **known != *peers {
            *known = peers.into();
        }
    }

    pub(super) fn peers(&self) -> Arc<[NodeId]> {
        let peers = self.0.peers.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&peers)
    }

    /// Asks one node. The request is on its way when this returns.
    pub(super) fn one(
        &self,
        node: NodeId,
        request: Request,
        permit: Option<Permit>,
    ) -> impl Future<Output = NodeReply> + use<> {
        let begun = Instant::now();
        let known = self.peers().binary_search(&node).is_ok();
        let waiting = self.open(|pending, number, sender| pending.node(number, node, sender));
        if let Some(waiting) = &waiting {
            self.send_request(waiting.number, waiting.number, node, request, permit);
        }
        async move {
            let Some(waiting) = waiting else {
                return Err(CallError::Timeout);
            };
            match known {
                true => {
                    waiting
                        .answer(begun, NodeReply::Err(CallError::Timeout))
                        .await
                }
                false => waiting.stranger(begun).await,
            }
        }
    }

    /// Asks all other nodes. The requests are on their way when this returns.
    pub(super) fn all(&self, request: &Request) -> impl Future<Output = Gathered> + use<> {
        let begun = Instant::now();
        let peers = self.peers();
        let waiting = self.open_nodes(&peers);
        if let Some(waiting) = &waiting {
            self.send_parts(waiting.number, &peers, request);
            self.pending().finish(waiting.number);
        }
        gather(waiting, begun)
    }

    /// Waits for all other nodes to answer one message, which the caller sends next.
    pub(super) fn confirm(&self) -> Confirmation {
        let peers = self.peers();
        let waiting = self.open_nodes(&peers);
        Confirmation {
            asking: self.clone(),
            begun: Instant::now(),
            // Also where too many requests wait: what is to be sent is sent, and nobody is heard of.
            number: waiting.as_ref().map_or(0, |waiting| waiting.number),
            waiting,
            peers,
        }
    }

    /// Waits for an application to answer one message, which the caller sends next, with the subject for the answer.
    pub(super) fn application(&self) -> Result<(Waiting<ApplicationReply>, Subject), AskError> {
        let waiting = self.open(Pending::application).ok_or(AskError::NotSent)?;
        let reply = self.0.subjects.ask_reply(self.0.node, waiting.number);
        Ok((waiting, reply))
    }

    /// A node answers. Says whether anybody waited.
    pub(super) fn answer(&self, number: Number, from: NodeId, answer: Answer) -> Found {
        self.pending().answer(number, from, answer)
    }

    /// An application answers.
    pub(super) fn application_answers(&self, number: Number, reply: ApplicationReply) {
        self.pending().application_answers(number, reply);
    }

    /// The bus says that nobody listens where a request was sent.
    pub(super) fn nobody_listens(&self, number: Number) -> Found {
        self.pending().nobody_listens(number)
    }

    fn open<T>(
        &self,
        insert: impl FnOnce(&mut Pending, Number, oneshot::Sender<T>) -> bool,
    ) -> Option<Waiting<T>> {
        let (sender, receiver) = oneshot::channel();
        let number = self.number();
        let inserted = insert(&mut self.pending(), number, sender);
        if !inserted {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
        }
        inserted.then(|| Waiting {
            asking: self.clone(),
            number,
            receiver,
        })
    }

    fn open_nodes(&self, peers: &[NodeId]) -> Option<Waiting<Gathered>> {
        let peers = peers.to_vec();
        self.open(|pending, number, sender| pending.nodes(number, peers, sender))
    }

    fn send_parts(&self, of: Number, peers: &[NodeId], request: &Request) {
        for peer in peers {
            let number = self.number();
            self.pending().part(of, *peer, number);
            self.send_request(number, number, *peer, request.clone(), None);
        }
    }

    /// Sends a request under a number; where it cannot be sent, what waits under the number `of` fails.
    fn send_request(
        &self,
        number: Number,
        of: Number,
        node: NodeId,
        request: Request,
        permit: Option<Permit>,
    ) {
        if self.0.alone {
            return self.pending().fail(of, node, CallError::NodeGone);
        }
        let parcel = Parcel {
            subject: self.0.subjects.request(node),
            reply: Some(self.0.subjects.reply(self.0.node, number)),
            what: What::Body(Box::new(Body::Request(request)), permit),
        };
        if !*self.0.there.borrow() || self.0.data.try_send(parcel).is_err() {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
            self.pending().fail(of, node, CallError::Timeout);
        }
    }

    /// Asks whether those listen at all that have not answered a request.
    fn probe(&self, of: Number) -> Probes<'_> {
        let mut probes = Vec::new();
        let silent = self.pending().silent(of);
        for node in silent {
            let number = self.number();
            self.pending().probe(of, node, number);
            probes.push(number);
            let parcel = Parcel {
                subject: self.0.subjects.request(node),
                reply: Some(self.0.subjects.reply(self.0.node, number)),
                what: What::Body(Box::new(Body::Request(Request::Probe)), None),
            };
            // Without it the node is silent, as it was.
            let _ = self.0.data.try_send(parcel);
        }
        Probes(self, probes)
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        let pending = self.0.pending.lock();
        pending.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Probes that are out. Dropped, they are forgotten.
struct Probes<'a>(&'a Asking, Vec<Number>);

impl Drop for Probes<'_> {
    fn drop(&mut self) {
        let mut pending = self.0.pending();
        for number in &self.1 {
            pending.remove(*number);
        }
    }
}

impl Confirmation {
    /// The subject for the answers.
    pub(super) fn reply(&self) -> Subject {
        let shared = &self.asking.0;
        shared.subjects.reply(shared.node, self.number)
    }

    /// Says whether the message was sent, and asks each node apart, where there is something to ask.
    pub(super) fn sent(
        self,
        sent: bool,
        apart: Option<&Request>,
    ) -> impl Future<Output = Gathered> + use<> {
        let Self {
            asking,
            begun,
            number,
            waiting,
            peers,
        } = self;
        if waiting.is_some() {
            if !sent {
                for peer in &*peers {
                    asking.pending().fail(number, *peer, CallError::Timeout);
                }
            } else if let Some(request) = apart {
                asking.send_parts(number, &peers, request);
            }
            asking.pending().finish(number);
        }
        gather(waiting, begun)
    }
}

async fn gather(waiting: Option<Waiting<Gathered>>, begun: Instant) -> Gathered {
    let unasked = Gathered {
        unasked: true,
        ..Gathered::default()
    };
    match waiting {
        Some(waiting) => waiting.answer(begun, unasked).await,
        None => unasked,
    }
}

impl<T: Late> Waiting<T> {
    /// Waits for `call_timeout` from when it was asked. `otherwise` is for a table that has ended.
    async fn answer(mut self, begun: Instant, otherwise: T) -> T {
        let timeout = self.asking.0.call_timeout;
        let probe_at = begun + timeout * PROBE_AFTER.0 / PROBE_AFTER.1;
        if let Ok(reply) = timeout_at(probe_at, &mut self.receiver).await {
            return reply.unwrap_or(otherwise);
        }
        let asking = self.asking.clone();
        let _probes = asking.probe(self.number);
        match timeout_at(begun + timeout, &mut self.receiver).await {
            Ok(reply) => reply.unwrap_or(otherwise),
            Err(_) => T::late(&mut asking.pending(), self.number).unwrap_or(otherwise),
        }
    }
}

impl Waiting<ApplicationReply> {
    /// Waits for ever, so whoever asks has to set a bound.
    pub(super) async fn first(mut self) -> ApplicationReply {
        let reply = (&mut self.receiver).await;
        reply.unwrap_or(Err(AskError::NotSent))
    }
}

impl Waiting<NodeReply> {
    /// Waits for a node that nobody knows.
    async fn stranger(mut self, begun: Instant) -> NodeReply {
        let gone = Err(CallError::NodeGone);
        let timeout = self.asking.0.call_timeout.min(STRANGER_TIMEOUT);
        match timeout_at(begun + timeout, &mut self.receiver).await {
            Ok(Ok(reply)) => reply,
            _ => gone,
        }
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.asking.pending().remove(self.number);
    }
}

/// What is answered when the time is over.
pub(super) trait Late: Sized {
    fn late(pending: &mut Pending, number: Number) -> Option<Self>;
}

impl Late for NodeReply {
    fn late(_: &mut Pending, _: Number) -> Option<Self> {
        Some(Err(CallError::Timeout))
    }
}

impl Late for Gathered {
    fn late(pending: &mut Pending, number: Number) -> Option<Self> {
        pending.late(number)
    }
}
