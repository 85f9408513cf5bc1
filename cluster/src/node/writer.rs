//! What goes out.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use proto::envelope::{Body, Envelope};
use proto::{NodeId, RoomName, wire};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tracing::warn;

use super::reader::{Kind, Reader};
use super::{Parcel, RoomOp, What, lock};
use crate::missed::Missed;
use crate::{Bus, LinkState, Outgoing, PublishError, Subject, Subjects};

/// Owns the order of what goes out: subscriptions, then probes and heartbeats, then everything else.
pub(super) struct Writer<B> {
    pub(super) bus: Rc<B>,
    pub(super) node: NodeId,
    pub(super) subjects: Arc<Subjects>,
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) missed: Arc<Mutex<Missed>>,
    pub(super) reader: Reader,
    /// Ends with the writer.
    pub(super) readers: JoinSet<()>,
    pub(super) room_readers: HashMap<RoomName, AbortHandle>,
}

impl<B: Bus> Writer<B> {
    pub(super) async fn run(
        mut self,
        mut rooms: mpsc::UnboundedReceiver<RoomOp>,
        mut urgent: mpsc::Receiver<Parcel>,
        mut data: mpsc::Receiver<Parcel>,
    ) {
        for (subject, kind) in [
            (self.subjects.inbox(self.node), Kind::Inbox),
            (self.subjects.heartbeat(), Kind::Heartbeats),
            (self.subjects.all(), Kind::Publications),
        ] {
            let subscription = self.bus.subscribe(subject).await;
            let reader = self.reader.clone().run(subscription, kind);
            self.readers.spawn_local(reader);
        }
        loop {
            tokio::select! {
                biased;
                Some(op) = rooms.recv() => self.on_room(op).await,
                Some(parcel) = urgent.recv() => self.send(parcel).await,
                Some(parcel) = data.recv() => {
                    let there = *self.link.borrow() == LinkState::Connected;
                    if there || !parcel.is_publication() {
                        self.send(parcel).await;
                    } else {
                        lock(&self.missed).note_parcel(parcel);
                    }
                }
                else => return,
            }
        }
    }

    async fn on_room(&mut self, op: RoomOp) {
        match op {
            RoomOp::Subscribe(room) => {
                let subscription = self.bus.subscribe(self.subjects.room(&room)).await;
                let reader = self.reader.clone().run(subscription, Kind::Publications);
                let reader = self.readers.spawn_local(reader);
                self.room_readers.insert(room, reader);
            }
            RoomOp::Unsubscribe(room) => {
                if let Some(reader) = self.room_readers.remove(&room) {
                    reader.abort();
                }
                while self.readers.try_join_next().is_some() {}
            }
        }
    }

    async fn send(&mut self, parcel: Parcel) {
        let (body, _permit) = match parcel.what {
            What::Body(body, permit) => (Some(*body), permit),
            What::Void => {
                lock(&self.missed).ask();
                (None, None)
            }
            What::Close(done) => {
                self.publish(parcel.subject, None, Some(Body::Goodbye))
                    .await;
                self.bus.close().await;
                let _ = done.send(());
                return;
            }
        };
        if let Some(Body::Publication(publication)) = &body {
            lock(&self.missed).sent(&publication.to);
        }
        self.publish(parcel.subject, parcel.reply, body).await;
    }

    async fn publish(&self, subject: Subject, reply: Option<Subject>, body: Option<Body>) {
        let origin = self.node;
        let payload = body.map(|body| wire::encode(&Envelope { origin, body }));
        let outgoing = Outgoing {
            subject,
            reply,
            payload: payload.unwrap_or_default(),
        };
        match self.bus.publish(outgoing).await {
            Ok(()) | Err(PublishError::Closed) => {}
            Err(PublishError::TooLarge) => {
                metrics::counter!("unisono_bus_dropped_total").increment(1);
                warn!("a message was larger than the bus takes");
            }
        }
    }
}

impl Parcel {
    fn is_publication(&self) -> bool {
        matches!(&self.what, What::Body(body, _) if matches!(**body, Body::Publication(_)))
    }
}
