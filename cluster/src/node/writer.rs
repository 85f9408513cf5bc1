//! What goes out, in two lanes that do not wait for each other: subscriptions with the probes that prove
//! them, and everything else.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{AbortHandle, Abortable};
use proto::envelope::{Body, Envelope};
use proto::{Audience, NodeId, RoomName, wire};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use super::reader::{Kind, Reader};
use super::{Parcel, RoomOp, Traffic, What, audiences, lock};
use crate::interest::give_back;
use crate::missed::Missed;
use crate::{Bus, LinkState, Outgoing, PublishError, Seldom, Subject, Subjects};

/// Messages that the bus did not take.
static UNSENT: Seldom = Seldom::new();

/// Hands messages over to the bus.
pub(super) struct Writer<B> {
    pub(super) bus: Rc<B>,
    pub(super) node: NodeId,
    pub(super) missed: Arc<Mutex<Missed>>,
    pub(super) traffic: Traffic,
    /// No heartbeat follows: to the others this node would be back.
    pub(super) said_goodbye: Rc<Cell<bool>>,
}

/// The lane of subscriptions, and of what proves them: a probe is written after the subscriptions that were
/// asked for before it. What is asked for during an outage is put together until the bus is back.
pub(super) struct Control<B: Bus> {
    pub(super) writer: Writer<B>,
    pub(super) subjects: Arc<Subjects>,
    pub(super) reader: Reader,
    /// End with the lane.
    pub(super) readers: JoinSet<()>,
    /// Takes the subscriptions of rooms to their reader.
    pub(super) room_subscriptions: mpsc::UnboundedSender<RoomSubscription<B>>,
    /// End the subscription of a room.
    pub(super) room_handles: HashMap<RoomName, AbortHandle>,
    /// As the host sees the link. Requests of applications are not taken before it is proved for the first time: until
    /// then they would reach this node only, and their answers nobody.
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) may_serve: bool,
    /// Ends the reader of those requests.
    pub(super) serving: Option<oneshot::Sender<oneshot::Sender<()>>>,
    /// Rooms to subscribe to when the bus is there.
    pub(super) deferred: HashSet<RoomName>,
    /// Whether it is.
    pub(super) there: watch::Receiver<bool>,
    /// Which connection it is, and the number of the last heartbeat on it.
    pub(super) beats: (u64, u64),
}

/// Messages of a room, until it is let go.
pub(super) type RoomSubscription<B> = Abortable<<B as Bus>::Subscription>;

/// The lane of everything else. What is in it holds a share of the budget, so it never waits for a bus that
/// is away: local publications would wait with it.
pub(super) struct Data<B> {
    pub(super) writer: Writer<B>,
    /// As the host sees the link.
    pub(super) link: watch::Receiver<LinkState>,
    /// Whether the bus is there, proved or not.
    pub(super) there: watch::Receiver<bool>,
}

// === impl Control ===

impl<B: Bus> Control<B> {
    pub(super) async fn run(
        mut self,
        mut rooms: mpsc::UnboundedReceiver<RoomOp>,
        mut urgent: mpsc::Receiver<Parcel>,
        subscriptions: mpsc::UnboundedReceiver<RoomSubscription<B>>,
    ) {
        let reader = self.reader.clone().run_rooms(subscriptions);
        self.readers.spawn_local(reader);
        for (subject, kind) in [
            (self.subjects.inbox(self.writer.node), Kind::Inbox),
            (self.subjects.heartbeat(), Kind::Heartbeats),
            (self.subjects.all(), Kind::Publications),
        ] {
            let subscription = self.writer.bus.subscribe(subject).await;
            let reader = self.reader.clone().run(subscription, kind);
            self.readers.spawn_local(reader);
        }
        loop {
            tokio::select! {
                biased;
                Some(op) = rooms.recv() => self.on_room(op).await,
                () = proved(&mut self.link), if self.may_serve => self.serve().await,
                Some(parcel) = urgent.recv() => {
                    if parcel.is_heartbeat() && self.writer.said_goodbye.get() {
                        continue;
                    }
                    if *self.there.borrow_and_update() {
                        for room in std::mem::take(&mut self.deferred) {
                            self.subscribe(room).await;
                        }
                    }
                    // There is no use in old heartbeats once the bus is back.
                    let status = self.writer.bus.status();
                    if status.connected {
                        let parcel = self.numbered(parcel, status.connections);
                        tokio::select! {
                            biased;
                            () = self.writer.send(parcel) => {}
                            () = gone(&mut self.there) => {}
                        }
                    }
                }
                Some(ended) = self.readers.join_next() => {
                    // One that broke leaves the node deaf.
                    if ended.is_err_and(|error| error.is_panic()) {
                        panic!("a reader of the bus panicked");
                    }
                }
                else => return,
            }
        }
    }

    /// Heartbeats have their number only where they are written: those that were not are not missing.
    fn numbered(&mut self, mut parcel: Parcel, connection: u64) -> Parcel {
        if let What::Body(body, _) = &mut parcel.what
            && let Body::Heartbeat(heartbeat) = &mut **body
        {
            let (same, last) = self.beats;
            let last = if same == connection { last } else { 0 };
            heartbeat.number = last + 1;
            self.beats = (connection, heartbeat.number);
        }
        parcel
    }

    async fn on_room(&mut self, op: RoomOp) {
        match op {
            RoomOp::Subscribe(room) => self.subscribe(room).await,
            RoomOp::Unsubscribe(room) => {
                self.deferred.remove(&room);
                if let Some(handle) = self.room_handles.remove(&room) {
                    handle.abort();
                    give_back(&mut self.room_handles);
                }
            }
            RoomOp::StopServing(told) => {
                self.may_serve = false;
                if let Some(serving) = self.serving.take() {
                    let _ = serving.send(told);
                }
            }
        }
    }

    async fn serve(&mut self) {
        self.may_serve = false;
        let requests = self.subjects.api();
        let requests = self.writer.bus.subscribe_shared(requests).await;
        let (serving, end) = oneshot::channel();
        self.serving = Some(serving);
        let bus = Rc::clone(&self.writer.bus);
        let reader = self.reader.clone().serve(bus, requests, end);
        self.readers.spawn_local(reader);
    }

    async fn subscribe(&mut self, room: RoomName) {
        if !*self.there.borrow_and_update() {
            self.deferred.insert(room);
            return;
        }
        let subject = self.subjects.room(&room);
        let subscription = tokio::select! {
            subscription = self.writer.bus.subscribe(subject) => subscription,
            () = gone(&mut self.there) => {
                self.deferred.insert(room);
                return;
            }
        };
        let (handle, registration) = AbortHandle::new_pair();
        let subscription = Abortable::new(subscription, registration);
        // Without its reader this lane ends, too.
        let _ = self.room_subscriptions.send(subscription);
        self.room_handles.insert(room, handle);
    }
}

/// Waits until the link is there, and proved.
async fn proved(link: &mut watch::Receiver<LinkState>) {
    // Without a sender the loop has ended, and this lane ends with it.
    let _ = link.wait_for(|state| *state == LinkState::Connected).await;
}

/// Waits until the bus is not there.
async fn gone(there: &mut watch::Receiver<bool>) {
    // Without a sender the loop has ended, and this lane ends with it.
    let _ = there.wait_for(|there| !there).await;
}

// === impl Data ===

impl<B: Bus> Data<B> {
    pub(super) async fn run(mut self, mut data: mpsc::Receiver<Parcel>) {
        while let Some(parcel) = data.recv().await {
            match parcel.what {
                What::Goodbye(done) => {
                    self.say_goodbye(parcel.subject).await;
                    let _ = done.send(());
                }
                What::Close(done) => {
                    // From here on nothing is taken that would not be sent.
                    data.close();
                    while let Ok(parcel) = data.try_recv() {
                        self.write(parcel).await;
                    }
                    self.say_goodbye(parcel.subject).await;
                    self.writer.bus.close().await;
                    let _ = done.send(());
                    return;
                }
                what => self.write(Parcel { what, ..parcel }).await,
            }
        }
    }

    /// Once; without a bus there is nobody to hear it.
    async fn say_goodbye(&self, subject: Subject) {
        if !self.writer.said_goodbye.replace(true) && *self.there.borrow() {
            let _ = self.writer.say(subject, None, Body::Goodbye).await;
        }
    }

    async fn write(&mut self, parcel: Parcel) {
        let proved = *self.link.borrow() == LinkState::Connected;
        if !*self.there.borrow() || (parcel.is_publication() && !proved) {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
            lock(&self.writer.missed).lose_parcel(parcel);
            return;
        }
        // What is cut off in the middle counts as unsure, and so as lost with the link.
        tokio::select! {
            () = self.writer.send(parcel) => {}
            () = gone(&mut self.there) => {}
        }
    }
}

// === impl Writer ===

impl<B: Bus> Writer<B> {
    async fn send(&self, parcel: Parcel) {
        let (body, _permit) = match parcel.what {
            What::Body(body, permit) => (*body, permit),
            What::Raw(bytes, _permit) => {
                let _ = self.hand_over(parcel.subject, parcel.reply, bytes).await;
                return;
            }
            What::Void(number) => {
                lock(&self.missed).ask(number);
                let nothing = Bytes::new();
                let _ = self.hand_over(parcel.subject, parcel.reply, nothing).await;
                return;
            }
            // Seen to by its lane.
            What::Goodbye(_) | What::Close(_) => return,
        };
        let audiences = audiences(&body);
        for to in &audiences {
            lock(&self.missed).sent(to);
        }
        let sent = self.say(parcel.subject, parcel.reply, body).await;
        match (sent, audiences.as_slice()) {
            (Ok(()), _) | (Err(_), []) => {}
            (Err(_), [to]) => lock(&self.missed).lose(to),
            // A list of rooms that is too long to tell is told as "any".
            (Err(_), _) => lock(&self.missed).lose(&Audience::Everyone),
        }
    }

    async fn say(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        body: Body,
    ) -> Result<(), PublishError> {
        let origin = self.node;
        let connection = self.bus.status().connections;
        let payload = wire::encode(&Envelope {
            origin,
            connection,
            body,
        });
        self.hand_over(subject, reply, payload).await
    }

    async fn hand_over(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        payload: Bytes,
    ) -> Result<(), PublishError> {
        self.traffic.count(&payload);
        let outgoing = Outgoing {
            subject,
            reply,
            payload,
        };
        let sent = self.bus.publish(outgoing).await;
        if let Err(error) = sent {
            metrics::counter!("unisono_bus_dropped_total").increment(1);
            if let Some(messages) = UNSENT.add(Instant::now(), 1) {
                warn!(%error, messages, "messages were not sent");
            }
        }
        sent
    }
}

impl<B> Clone for Writer<B> {
    fn clone(&self) -> Self {
        Self {
            bus: Rc::clone(&self.bus),
            node: self.node,
            missed: Arc::clone(&self.missed),
            traffic: self.traffic.clone(),
            said_goodbye: Rc::clone(&self.said_goodbye),
        }
    }
}

impl Parcel {
    fn is_heartbeat(&self) -> bool {
        matches!(&self.what, What::Body(body, _) if matches!(**body, Body::Heartbeat(_)))
    }

    fn is_publication(&self) -> bool {
        matches!(&self.what, What::Body(body, _) if matches!(**body, Body::Publication(_)))
    }
}
