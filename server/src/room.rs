//! The actor of one room on one worker: it knows the members and fans publications out to them.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message};
use bytes::{Bytes, BytesMut};
use indexmap::IndexMap;
use proto::client::gap_text;
use proto::envelope::{Answer, SocketsPage, SocketsQuery};
use proto::{NodeId, RoomName, SocketId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::delivery::{Delivery, Wire};
use crate::meters::{self, Tally};
use crate::session::{Disconnect, Joined, Left, SessionRef};
use crate::vital::Vital;

/// A socket becomes a member; its session is told.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Add(pub SessionRef);

/// A socket stops being a member; its session is told, after all that was published before.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Remove(pub SocketId);

/// A publication for the members.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Deliver {
    /// The publication.
    pub delivery: Arc<Delivery>,
    /// Present when it may reach a socket through several rooms.
    pub once: Option<Once>,
}

/// Something may have been missed in this room.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Gap(pub &'static str);

/// Close all members and say how many.
#[derive(Message)]
#[rtype(result = "()")]
pub struct DisconnectAll {
    /// What each is told, and when.
    pub disconnect: Disconnect,
    /// Takes the count.
    pub reply: oneshot::Sender<Answer>,
}

/// List members.
#[derive(Message)]
#[rtype(result = "()")]
pub struct List {
    /// Which.
    pub query: SocketsQuery,
    /// Takes the page.
    pub reply: oneshot::Sender<Answer>,
}

/// What has gathered is fanned out, after the mailbox was emptied.
#[derive(Message)]
#[rtype(result = "()")]
struct Flush;

/// The sockets of this worker that a send to several rooms has reached so far.
#[derive(Clone, Default)]
pub struct Once(Arc<Mutex<HashSet<SocketId>>>);

/// The actor.
pub struct Room {
    name: RoomName,
    members: IndexMap<SocketId, SessionRef>,
    pending: Vec<Arc<Delivery>>,
    tally: Arc<Tally>,
    _vital: Vital,
}

/// Most bytes in a batch of several frames: far below a socket's queue, so that a burst of small
/// publications is not what makes a reader slow.
const BATCH_BYTES_MAX: usize = 64 * 1024;

impl Actor for Room {
    type Context = Context<Self>;
}

impl Handler<Add> for Room {
    type Result = ();

    fn handle(&mut self, Add(session): Add, _: &mut Context<Self>) {
        self.flush();
        session.send(Joined(self.name.clone()));
        self.members.insert(session.id, session);
    }
}

impl Handler<Remove> for Room {
    type Result = ();

    fn handle(&mut self, Remove(id): Remove, _: &mut Context<Self>) {
        self.flush();
        if let Some(session) = self.members.swap_remove(&id) {
            session.send(Left(self.name.clone()));
        }
    }
}

impl Handler<Deliver> for Room {
    type Result = ();

    fn handle(&mut self, Deliver { delivery, once }: Deliver, ctx: &mut Context<Self>) {
        if delivery.is_particular() {
            self.flush();
            self.deliver_each(&delivery, once.as_ref());
            return;
        }
        if self.pending.is_empty() {
            ctx.notify(Flush);
        }
        self.pending.push(delivery);
    }
}

impl Handler<Flush> for Room {
    type Result = ();

    fn handle(&mut self, Flush: Flush, _: &mut Context<Self>) {
        self.flush();
    }
}

impl Handler<Gap> for Room {
    type Result = ();

    fn handle(&mut self, Gap(reason): Gap, _: &mut Context<Self>) {
        self.flush();
        let text = gap_text(Some(&self.name), reason);
        let members = self.members.values();
        let told = members.filter(|session| session.tell(&text)).count();
        meters::gap(reason, told as u64);
    }
}

impl Handler<DisconnectAll> for Room {
    type Result = ();

    fn handle(&mut self, message: DisconnectAll, _: &mut Context<Self>) {
        self.flush();
        for session in self.members.values() {
            session.send(message.disconnect.clone());
        }
        let _ = message.reply.send(Answer::Count(self.members.len() as u64));
    }
}

impl Handler<List> for Room {
    type Result = ();

    fn handle(&mut self, List { query, reply }: List, _: &mut Context<Self>) {
        let mut sockets: Vec<_> = self
            .members
            .iter()
            .filter(|(id, _)| query.after.is_none_or(|after| **id > after))
            .map(|(id, session)| (*id, session.user.clone()))
            .collect();
        sockets.sort_unstable();
        let more = sockets.len() > query.limit;
        sockets.truncate(query.limit);
        let _ = reply.send(Answer::Sockets(SocketsPage {
            sockets,
            count: self.members.len() as u64,
            more,
        }));
    }
}

impl Room {
    /// A room without members.
    pub fn new(name: RoomName, tally: Arc<Tally>) -> Self {
        Self {
            name,
            members: IndexMap::new(),
            pending: Vec::new(),
            tally,
            _vital: Vital("room"),
        }
    }

    /// Hands each member all that waits as one batch; those who are left out of some of it get their own.
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() || self.members.is_empty() {
            return;
        }
        // Made for a wire when its first member is met.
        let batches: [OnceCell<Vec<Batch>>; Wire::COUNT] = Default::default();
        let mut handed = self.tally.publishing();
        // Often nobody, or the sender.
        let mut left_out: Vec<SocketId> = pending
            .iter()
            .flat_map(|delivery| &delivery.publication().except)
            .copied()
            .collect();
        left_out.sort_unstable();
        left_out.dedup();
        for (id, session) in &self.members {
            if left_out.binary_search(id).is_ok() {
                let theirs = pending.iter().filter(|delivery| !delivery.excludes(*id));
                for batch in put_together(theirs.map(|delivery| delivery.frame(session.wire))) {
                    session.offer(&batch.frames, batch.messages, &mut handed);
                }
            } else {
                let frames = || pending.iter().map(|delivery| delivery.frame(session.wire));
                let batches = batches[session.wire as usize].get_or_init(|| put_together(frames()));
                for batch in batches {
                    session.offer(&batch.frames, batch.messages, &mut handed);
                }
            }
        }
    }

    fn deliver_each(&mut self, delivery: &Delivery, once: Option<&Once>) {
        let mut reached = 0;
        let mut handed = self.tally.publishing();
        for (id, session) in &self.members {
            let wanted = !delivery.excludes(*id) && once.is_none_or(|once| once.first(*id));
            if wanted && session.offer(delivery.frame(session.wire), 1, &mut handed) {
                reached += 1;
            }
        }
        delivery.count(reached);
    }
}

impl Once {
    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether the socket was not reached before.
    fn first(&self, id: SocketId) -> bool {
        let mut reached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reached.insert(id)
    }
}

/// Frames that are one piece now.
struct Batch {
    frames: Bytes,
    messages: u64,
}

/// Frames, put together up to [`BATCH_BYTES_MAX`]. One frame alone is not copied.
fn put_together<'a>(frames: impl Iterator<Item = &'a Bytes>) -> Vec<Batch> {
    let mut batches = Vec::new();
    let mut gathered: Vec<&Bytes> = Vec::new();
    let mut bytes = 0;
    for frame in frames {
        if bytes + frame.len() > BATCH_BYTES_MAX && !gathered.is_empty() {
            batches.push(concat(&gathered, bytes));
            gathered.clear();
            bytes = 0;
        }
        bytes += frame.len();
        gathered.push(frame);
    }
    if !gathered.is_empty() {
        batches.push(concat(&gathered, bytes));
    }
    batches
}

fn concat(frames: &[&Bytes], bytes: usize) -> Batch {
    let messages = frames.len() as u64;
    let frames = match frames {
        [frame] => Bytes::clone(frame),
        frames => {
            let mut batch = BytesMut::with_capacity(bytes);
            for frame in frames {
                batch.extend_from_slice(frame);
            }
            batch.freeze()
        }
    };
    Batch { frames, messages }
}

/// Sends to several rooms of which copies may still be on their way, by the number of the send.
#[derive(Default)]
pub struct OnceTable {
    sends: HashMap<(NodeId, u64), (Once, Instant)>,
}

/// How long a copy may be late, how many sends are remembered, and how many sockets in all of them. A send
/// that is forgotten could reach a socket twice; the times and numbers are far above what a working bus needs.
const ONCE_AGE_MAX: Duration = Duration::from_secs(10);
const ONCE_SENDS_MAX: usize = 16_384;
const ONCE_SOCKETS_MAX: usize = 1_000_000;

impl OnceTable {
    /// The sockets that the send has reached so far.
    pub fn get(&mut self, send: (NodeId, u64), now: Instant) -> Once {
        if self.sends.len() >= ONCE_SENDS_MAX && !self.sends.contains_key(&send) {
            self.forget_oldest(ONCE_SENDS_MAX / 2);
        }
        let (once, _) = self
            .sends
            .entry(send)
            .or_insert_with(|| (Once::default(), now));
        once.clone()
    }

    /// Forgets what is through. To be called now and then.
    pub fn sweep(&mut self, now: Instant) {
        self.sends
            .retain(|_, (_, seen)| now.duration_since(*seen) < ONCE_AGE_MAX);
        let sockets = |table: &Self| {
            table
                .sends
                .values()
                .map(|(once, _)| once.len())
                .sum::<usize>()
        };
        while sockets(self) > ONCE_SOCKETS_MAX {
            self.forget_oldest(self.sends.len() / 2);
        }
        if self.sends.is_empty() {
            self.sends = HashMap::new();
        }
    }

    /// Keeps the newest.
    fn forget_oldest(&mut self, kept: usize) {
        let mut ages: Vec<_> = self
            .sends
            .iter()
            .map(|(send, (_, seen))| (*seen, *send))
            .collect();
        ages.sort_unstable();
        for (_, send) in &ages[..ages.len() - kept] {
            self.sends.remove(send);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_put_together_up_to_a_bound() {
        let small = Bytes::from_static(b"small");
        let large = Bytes::from(vec![0; BATCH_BYTES_MAX]);
        let frames = [&small, &small, &large, &small];
        let batches = put_together(frames.into_iter());
        let sizes: Vec<_> = batches.iter().map(|batch| batch.frames.len()).collect();
        assert_eq!(sizes, [10, BATCH_BYTES_MAX, 5]);
        assert_eq!(batches[0].frames, "smallsmall");
        assert_eq!(batches[0].messages, 2);
        let alone = batches[1].frames.as_ptr();
        assert_eq!(alone, large.as_ptr(), "one alone is shared");
    }

    #[tokio::test(start_paused = true)]
    async fn a_send_to_several_rooms_is_remembered_for_a_while() {
        let now = Instant::now();
        let mut table = OnceTable::default();
        let id = SocketId::new(NodeId::new(1), 0, 1);
        assert!(table.get((NodeId::new(1), 1), now).first(id));
        assert!(!table.get((NodeId::new(1), 1), now).first(id));
        assert!(table.get((NodeId::new(2), 1), now).first(id));
        for send in 2..=ONCE_SENDS_MAX as u64 {
            table.get((NodeId::new(1), send), now + Duration::from_millis(1));
        }
        assert!(table.sends.len() <= ONCE_SENDS_MAX);
        table.sweep(now + Duration::from_secs(1));
        assert!(!table.sends.is_empty());
        table.sweep(now + ONCE_AGE_MAX + Duration::from_secs(1));
        assert!(table.sends.is_empty());
    }
}
