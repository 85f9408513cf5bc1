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
        // Most rooms have one member; the table would begin with places for three.
        if self.members.capacity() == 0 {
            self.members.reserve_exact(1);
        }
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

    /// Hands each member all that waits as one batch. Those who are left out of some of it, often nobody, or the
    /// senders, get the pieces between: of the same memory, so that many senders in one batch cost no copy each.
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() || self.members.is_empty() {
            return;
        }
        // Made for a wire when its first member is met.
        let batches: [OnceCell<Vec<Batch>>; Wire::COUNT] = Default::default();
        let cuts: [OnceCell<Cuts>; Wire::COUNT] = Default::default();
        let mut handed = self.tally.publishing();
        let left_out = left_out(&pending);
        for (id, session) in &self.members {
            let wire = session.wire as usize;
            let frames = || pending.iter().map(|delivery| delivery.frame(session.wire));
            let theirs = theirs(&left_out, *id);
            // Whoever sent all of it costs no batch.
            if theirs.len() == pending.len() {
                continue;
            }
            let batches = batches[wire].get_or_init(|| put_together(frames()));
            if theirs.is_empty() {
                for batch in batches {
                    session.offer(&batch.frames, batch.messages, &mut handed);
                }
            } else {
                let cuts = cuts[wire].get_or_init(|| Cuts::of(frames()));
                let without = theirs.iter().map(|(_, nth)| *nth);
                let frame = |nth: usize| pending[nth].frame(session.wire);
                cuts.pieces(batches, without, frame, |piece| {
                    session.offer(&piece.frames, piece.messages, &mut handed);
                });
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

/// Who is left out of which publications, by their places: sorted, each once.
fn left_out(pending: &[Arc<Delivery>]) -> Vec<(SocketId, usize)> {
    let mut left_out: Vec<_> = pending
        .iter()
        .enumerate()
        .flat_map(|(nth, delivery)| {
            let except = delivery.publication().except.iter();
            except.map(move |id| (*id, nth))
        })
        .collect();
    left_out.sort_unstable();
    left_out.dedup();
    left_out
}

/// Those of one socket.
fn theirs(left_out: &[(SocketId, usize)], id: SocketId) -> &[(SocketId, usize)] {
    let from = left_out.partition_point(|(other, _)| *other < id);
    let len = left_out[from..].partition_point(|(other, _)| *other == id);
    &left_out[from..from + len]
}

/// Frames that are one piece now.
struct Batch {
    frames: Bytes,
    messages: u64,
}

/// Where each of the frames of some batches ends, counted in bytes from the start of the first batch.
struct Cuts(Vec<usize>);

impl Cuts {
    fn of<'a>(frames: impl Iterator<Item = &'a Bytes>) -> Self {
        let ends = frames.scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        });
        Self(ends.collect())
    }

    /// The bytes before the nth frame.
    fn before(&self, nth: usize) -> usize {
        nth.checked_sub(1).map_or(0, |last| self.0[last])
    }

    /// What is left of the batches without some of their frames, whose places are in order. Nothing is copied: these
    /// are slices of the batches, or, when less than half of a batch is left, the frames themselves, so that a few
    /// bytes which wait for a client hold no large batch in memory.
    fn pieces<'a>(
        &self,
        batches: &[Batch],
        without: impl Iterator<Item = usize>,
        frame: impl Fn(usize) -> &'a Bytes,
        mut take: impl FnMut(Batch),
    ) {
        let mut without = without.peekable();
        let mut cuts = Vec::new();
        let mut first = 0;
        for batch in batches {
            let end = first + batch.messages as usize;
            let start = self.before(first);
            cuts.clear();
            cuts.extend(std::iter::from_fn(|| without.next_if(|nth| *nth < end)));
            let cut = cuts
                .iter()
                .map(|nth| self.before(nth + 1) - self.before(*nth));
            let few = 2 * cut.sum::<usize>() > batch.frames.len();
            let mut from = first;
            for to in cuts.iter().copied().chain([end]) {
                if few {
                    (from..to).for_each(|nth| {
                        take(Batch {
                            frames: frame(nth).clone(),
                            messages: 1,
                        });
                    });
                } else if from < to {
                    let bytes = self.before(from) - start..self.before(to) - start;
                    take(Batch {
                        frames: batch.frames.slice(bytes),
                        messages: (to - from) as u64,
                    });
                }
                from = to + 1;
            }
            first = end;
        }
    }
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

    /// The frames "10" to "19", and so on.
    fn numbers(count: usize) -> Vec<Bytes> {
        let numbers = 10..10 + count;
        numbers.map(|nth| Bytes::from(nth.to_string())).collect()
    }

    fn pieces_without(frames: &[Bytes], batches: &[Batch], without: &[usize]) -> Vec<Bytes> {
        let cuts = Cuts::of(frames.iter());
        let mut pieces = Vec::new();
        let frame = |nth: usize| &frames[nth];
        cuts.pieces(batches, without.iter().copied(), frame, |piece| {
            assert_eq!(piece.messages, piece.frames.len() as u64 / 2);
            pieces.push(piece.frames);
        });
        pieces
    }

    fn is_within(piece: &Bytes, whole: &Bytes) -> bool {
        let (piece, whole) = (piece.as_ptr_range(), whole.as_ptr_range());
        whole.start <= piece.start && piece.end <= whole.end
    }

    #[test]
    fn pieces_leave_out_frames_and_share_the_memory_of_the_batch() {
        let frames = numbers(10);
        // As two batches that are full.
        let mut batches = put_together(frames[..6].iter());
        batches.extend(put_together(frames[6..].iter()));
        for (without, expected) in [
            (&[][..], &["101112131415", "16171819"][..]),
            (&[0], &["1112131415", "16171819"]),
            (&[2, 3], &["1011", "1415", "16171819"]),
            (&[5, 6], &["1011121314", "171819"]),
            (&[1, 9], &["10", "12131415", "161718"]),
            (&[0, 1, 2, 3, 4, 5], &["16171819"]),
        ] {
            let pieces = pieces_without(&frames, &batches, without);
            assert_eq!(pieces, expected, "{without:?}");
            for piece in pieces {
                let shared = batches.iter().any(|batch| is_within(&piece, &batch.frames));
                assert!(shared, "{without:?}: {piece:?} is a copy");
            }
        }
    }

    #[test]
    fn pieces_of_all_publishers_copy_nothing() {
        const PUBLISHERS: usize = 64;
        let frames = numbers(PUBLISHERS);
        let batches = put_together(frames.iter());
        let mut handed = 0;
        for publisher in 0..PUBLISHERS {
            for piece in pieces_without(&frames, &batches, &[publisher]) {
                assert!(is_within(&piece, &batches[0].frames), "a copy");
                handed += piece.len();
            }
        }
        assert_eq!(handed, 2 * PUBLISHERS * (PUBLISHERS - 1));
    }

    #[test]
    fn a_frame_that_is_left_of_a_large_batch_does_not_hold_it() {
        let frames = numbers(5);
        let batches = put_together(frames.iter());
        let pieces = pieces_without(&frames, &batches, &[0, 1, 3]);
        assert_eq!(pieces, ["12", "14"]);
        for (piece, frame) in pieces.iter().zip([&frames[2], &frames[4]]) {
            assert!(is_within(piece, frame), "neither a copy nor a slice");
        }
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
