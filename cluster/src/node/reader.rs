//! What comes in.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::SelectAll;
use futures_util::{Stream, StreamExt};
use proto::envelope::{Act, Answer, Body, Envelope, Request, Status, Target};
use proto::wire::WireError;
use proto::{Audience, NodeId, wire};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use super::asking::Asking;
use super::{Call, Event, Input, Parcel, Responder, Traffic};
use crate::epoch::{Epochs, Heard};
use crate::incoming::{Class, Incoming, ReadAhead};
use crate::pending::Found;
use crate::{AskError, Budget, Bus, Message, Seldom, Subject, Subjects};

/// Reads one subscription, or those of all rooms. Waits when the host is busy: the wait holds back what it reads only,
/// and what comes meanwhile counts as [`Incoming`].
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) node: NodeId,
    pub(super) subjects: Arc<Subjects>,
    pub(super) budget: Budget,
    pub(super) incoming: Incoming,
    pub(super) asking: Asking,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) serve: Rc<dyn Fn(Call)>,
    pub(super) inputs: mpsc::Sender<Input>,
    pub(super) data: mpsc::Sender<Parcel>,
    pub(super) traffic: Traffic,
    /// One for all subscriptions.
    pub(super) epochs: Rc<RefCell<Epochs>>,
}

/// Messages with this node's id, of which it sent none.
static DOUBLES: Seldom = Seldom::new();

/// Connections that were claimed in the name of a node, and were none of its own.
static FORGED: Seldom = Seldom::new();

/// For how long a node that stops looks how many requests come.
const LOOK: Duration = Duration::from_millis(100);

/// What a subscription is for.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Inbox,
    Heartbeats,
    Publications,
}

/// Why an envelope is not read.
enum Unread {
    /// It is of a node that speaks this version.
    Stranger(NodeId, u32),
    /// It is none, or comes too late, or from nobody who may send it.
    Dropped,
}

/// The subscriptions of rooms. Those that are added are read from then on, also while a message is acted upon.
struct Rooms<S> {
    added: mpsc::UnboundedReceiver<S>,
    rooms: SelectAll<S>,
}

impl<S: Stream<Item = Message> + Unpin> Stream for Rooms<S> {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Message>> {
        loop {
            match self.added.poll_recv(cx) {
                Poll::Ready(Some(room)) => self.rooms.push(room),
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        match self.rooms.poll_next_unpin(cx) {
            // There is no room, for now.
            Poll::Ready(None) => Poll::Pending,
            next => next,
        }
    }
}

impl Reader {
    pub(super) async fn run(self, subscription: impl Stream<Item = Message> + Unpin, kind: Kind) {
        let class = match kind {
            Kind::Inbox | Kind::Heartbeats => Class::Control,
            Kind::Publications => Class::Data,
        };
        let mut messages = ReadAhead::new(subscription, self.incoming.clone(), class);
        while let Some(message) = messages.next().await {
            self.traffic.count(&message.payload);
            let acting = async {
                match kind {
                    Kind::Inbox => self.on_inbox(message).await,
                    Kind::Heartbeats => self.on_heartbeat(message).await,
                    Kind::Publications => self.on_publication(message).await,
                }
            };
            messages.during(acting).await;
        }
    }

    /// Reads the subscription for requests of applications, until it is to end: then what the bus has sent already is
    /// taken, and whoever wants to know of the end is told after the last of it.
    pub(super) async fn serve<B: Bus>(
        self,
        bus: Rc<B>,
        requests: B::Subscription,
        mut end: oneshot::Receiver<oneshot::Sender<()>>,
    ) {
        let mut ended = None;
        let mut requests = ReadAhead::new(requests, self.incoming.clone(), Class::Data);
        let mut came = 0;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                end = &mut end, if ended.is_none() => match end {
                    Ok(told) => {
                        ended = Some(told);
                        came = 0;
                        look.reset();
                    }
                    Err(_) => return,
                },
                // Where none came, none is on its way. Else as many more are taken as come in half that time, which is
                // more than can be on their way.
                _ = look.tick(), if ended.is_some() => {
                    let more = if came == 0 { 0 } else { came / 2 + 1 };
                    came = 0;
                    bus.drain(requests.subscription(), more).await;
                }
                message = requests.next() => match message {
                    Some(message) => {
                        came += 1;
                        self.traffic.count(&message.payload);
                        requests.during(self.on_api(message)).await;
                    }
                    None => break,
                },
            }
        }
        if let Some(told) = ended {
            self.event(Event::ApiEnded(told)).await;
        }
    }

    /// Reads the subscriptions of rooms, which are many: a task of its own would cost each of them more than all else
    /// that the node keeps of it. They take turns, a message of each. One that waits for its share of the budget would
    /// keep the others waiting in any case: they would be behind it in the queue for that.
    pub(super) async fn run_rooms(
        self,
        added: mpsc::UnboundedReceiver<impl Stream<Item = Message> + Unpin>,
    ) {
        let rooms = Rooms {
            added,
            rooms: SelectAll::new(),
        };
        self.run(rooms, Kind::Publications).await;
    }

    async fn on_inbox(&self, message: Message) {
        if let Some(number) = Subjects::ask_of(&message.subject) {
            let reply = match message.no_responders {
                true => Err(AskError::NobodyListens),
                false => Ok(message.payload),
            };
            return self.asking.application_answers(number, reply);
        }
        let number = Subjects::call_of(&message.subject);
        if message.no_responders {
            let Some(number) = number else { return };
            match self.asking.nobody_listens(number) {
                Found::One(node) => self.input(Input::NotListening(node)).await,
                Found::Several => {}
                Found::Nothing => self.input(Input::NoResponders(number)).await,
            }
            return;
        }
        let responder = self.responder(&message);
        let bytes = message.payload.len();
        let Ok(Envelope { origin, body, .. }) = self.decode_current(message) else {
            return;
        };
        match (body, number, responder) {
            (Body::Answer(answer), Some(number), _) => {
                if self.asking.answer(number, origin, answer) == Found::Nothing {
                    self.input(Input::Answer(number, origin)).await;
                }
            }
            (Body::Request(Request::Probe), _, Some(responder)) => responder.respond(Answer::Pong),
            // Whoever asks does not wait in vain.
            (Body::Request(Request::Unknown), _, Some(responder)) => {
                self.skip();
                let known = cfg!(feature = "next");
                responder.respond(if known {
                    Answer::Pong
                } else {
                    Answer::Unsupported
                });
            }
            (Body::Request(Request::Occupancy), _, responder) => {
                self.input(Input::OccupancyWanted(responder)).await;
            }
            (Body::Occupancy(occupancy), Some(_), _) => {
                let share = self.incoming.share(bytes);
                self.input(Input::Occupancy(origin, occupancy, share)).await;
            }
            (Body::Request(Request::NotSubscribed(room)), _, Some(responder)) => {
                self.input(Input::NotSubscribed(room, responder)).await;
            }
            (Body::Request(request), _, Some(responder)) => {
                let permit = match &request {
                    // Answers come by this subscription too: it does not wait.
                    Request::Act(target, Act::Emit { payload, .. }) => {
                        match (self.budget.try_acquire(payload.len()), target) {
                            (Some(permit), _) => Some(permit),
                            (None, Target::Sockets(ids)) => {
                                metrics::counter!("unisono_emits_total", "status" => "dropped")
                                    .increment(ids.len() as u64);
                                let dropped = ids.iter().map(|id| (*id, Status::Dropped));
                                return responder.respond(Answer::Statuses(dropped.collect()));
                            }
                            // Without an answer, this node is among the missing. Nobody knows here to how many
                            // sockets it was: it counts as one.
                            (None, Target::Room(_) | Target::User(_)) => {
                                metrics::counter!("unisono_emits_total", "status" => "dropped")
                                    .increment(1);
                                return;
                            }
                        }
                    }
                    _ => None,
                };
                (self.serve)(Call {
                    request,
                    responder,
                    permit,
                });
            }
            (Body::Unknown | Body::Request(Request::Unknown), ..) => self.skip(),
            _ => self.refuse(&"unexpected in an inbox"),
        }
    }

    async fn on_heartbeat(&self, message: Message) {
        let envelope = match self.decode(message) {
            Ok(envelope) => envelope,
            Err(Unread::Stranger(node, version)) => {
                return self.input(Input::Stranger(node, version)).await;
            }
            Err(Unread::Dropped) => return,
        };
        if !self.confirm(&envelope) {
            return;
        }
        let Envelope { origin, body, .. } = envelope;
        match body {
            Body::Heartbeat(heartbeat) => self.input(Input::Heartbeat(origin, heartbeat)).await,
            Body::Goodbye => self.input(Input::Goodbye(origin)).await,
            Body::Unknown => self.skip(),
            _ => self.refuse(&"unexpected among heartbeats"),
        }
    }

    async fn on_publication(&self, message: Message) {
        let subject = message.subject.clone();
        let bytes = message.payload.len();
        let responder = self.responder(&message);
        let Ok(Envelope { origin, body, .. }) = self.decode_current(message) else {
            return;
        };
        match body {
            Body::Publication(publication) => {
                let expected = self.subjects.audience(&publication.to);
                if expected.as_str() != subject {
                    return self.refuse(&"a publication on another room's subject");
                }
                let permit = self.budget.acquire(publication.payload.len()).await;
                let responder = responder.filter(|_| publication.confirm);
                self.event(Event::Deliver {
                    publication,
                    origin,
                    responder,
                    permit,
                })
                .await;
            }
            Body::Missed(rooms) => {
                let rooms = (!rooms.is_empty()).then_some(rooms);
                let reason = "bus_outage";
                self.event(Event::Gap { rooms, reason }).await;
            }
            Body::Occupancy(occupancy) => {
                let share = self.incoming.share(bytes);
                self.input(Input::Occupancy(origin, occupancy, share)).await;
            }
            Body::Unreadable(audience) => {
                self.skip();
                let rooms = match audience {
                    Audience::Room(room) => Some(vec![room]),
                    Audience::Everyone => None,
                };
                let reason = "unsupported";
                self.event(Event::Gap { rooms, reason }).await;
                if let Some(responder) = responder {
                    responder.respond(Answer::Unsupported);
                }
            }
            Body::Unknown => self.skip(),
            _ => self.refuse(&"unexpected among publications"),
        }
    }

    async fn on_api(&self, message: Message) {
        let responder = self.responder(&message);
        let permit = self.budget.acquire(message.payload.len()).await;
        self.event(Event::Api {
            verb: Subjects::verb_of(&message.subject).to_owned(),
            body: message.payload,
            traceparent: message.traceparent,
            responder,
            permit,
        })
        .await;
    }

    fn responder(&self, message: &Message) -> Option<Responder> {
        message.reply.as_deref().map(|reply| Responder {
            reply: Subject::reply_to(reply),
            data: self.data.clone(),
        })
    }

    /// What is not for this node to act upon is counted, and told of in the log.
    fn decode(&self, message: Message) -> Result<Envelope, Unread> {
        let envelope = wire::decode(message.payload).map_err(|error| {
            self.refuse(&error);
            match error {
                WireError::Version { version, origin } => Unread::Stranger(origin, version),
                _ => Unread::Dropped,
            }
        })?;
        // No echo, so it is somebody else who uses this node's id.
        if envelope.origin == self.node {
            self.refuse(&"a foreign message with this node's id");
            self.warn_of_a_double();
            return Err(Unread::Dropped);
        }
        Ok(envelope)
    }

    /// As [`Reader::decode`], of what comes in the order of its node's connections.
    fn decode_current(&self, message: Message) -> Result<Envelope, Unread> {
        let envelope = self.decode(message)?;
        let (origin, connection) = (envelope.origin, envelope.connection);
        if !self.epochs.borrow_mut().is_current(origin, connection) {
            self.late(origin);
            return Err(Unread::Dropped);
        }
        Ok(envelope)
    }

    /// Says whether a heartbeat, or a goodbye, counts.
    fn confirm(&self, envelope: &Envelope) -> bool {
        let Envelope {
            origin, connection, ..
        } = *envelope;
        let heard = match envelope.body {
            Body::Heartbeat(_) => {
                let now = Instant::now();
                self.epochs.borrow_mut().heartbeat(origin, connection, now)
            }
            _ if self.epochs.borrow_mut().is_current(origin, connection) => Heard::Now,
            _ => Heard::Late,
        };
        match heard {
            Heard::Now => true,
            Heard::Late => {
                self.late(origin);
                false
            }
            Heard::Restored => {
                metrics::counter!("unisono_bus_forged_total").increment(1);
                if let Some(times) = FORGED.add(Instant::now(), 1) {
                    warn!(node = %origin, connection, times, "somebody claimed a later connection to the bus in the name of a node: what the node sent meanwhile was dropped, and sockets are told of the gap");
                }
                // The loop tells of the gap: the numbers of the heartbeats that were dropped are missing.
                true
            }
        }
    }

    fn late(&self, node: NodeId) {
        metrics::counter!("unisono_bus_late_total").increment(1);
        debug!(%node, "bus message dropped: too late");
    }

    /// What a later version says, and this one does not know.
    fn skip(&self) {
        metrics::counter!("unisono_bus_skipped_total").increment(1);
    }

    fn refuse(&self, why: &dyn std::fmt::Display) {
        metrics::counter!("unisono_bus_refused_total").increment(1);
        debug!(%why, "bus message refused");
    }

    /// Ids are random, so it is no accident: somebody forges messages, or runs a copy of this process's memory.
    fn warn_of_a_double(&self) {
        if let Some(messages) = DOUBLES.add(Instant::now(), 1) {
            warn!(node = %self.node, messages, "somebody else uses this node's id on the bus");
        }
    }

    async fn input(&self, input: Input) {
        let _ = self.inputs.send(input).await;
    }

    async fn event(&self, event: Event) {
        let _ = self.events.send(event).await;
    }
}
