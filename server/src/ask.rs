//! Questions about sockets and rooms: split by who holds what, asked of all at once, put together again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use actix::Addr;
use cluster::{Call, Permit};
use proto::envelope::{Answer, Request, RoomsPage, SocketsPage, Status, Target};
use proto::{RoomName, SocketId};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use crate::registry::{Ask, Registry};
use crate::trace::{Parent, Span};
use crate::unisono::Unisono;

/// Answers a call of another node. To be called on the bus's thread: it waits for nothing.
pub fn serve(unisono: &Unisono, call: Call) {
    let Call {
        request,
        responder,
        permit,
    } = call;
    let shared = &unisono.shared;
    match request {
        Request::Drain => {
            shared.drain_wanted.notify_one();
            responder.respond(Answer::Pong);
        }
        Request::Tail(query) => {
            let (tails, cluster) = (Arc::clone(&shared.tails), shared.cluster.clone());
            spawn_local(async move {
                let page = tails.take(query, |bytes| cluster.fits(bytes)).await;
                // Whoever asks knows what it means when it is no page.
                responder.respond(page.map_or(Answer::Pong, Answer::Tail));
            });
        }
        request => {
            let span = shared.answering(&request, Parent::Elsewhere);
            let answer = unisono.workers.ask(request, permit.as_ref());
            spawn_local(async move {
                responder.respond(Span::until(span, answer).await);
            });
        }
    }
}

/// The workers of this node. Cheap to clone.
#[derive(Clone)]
pub struct Workers(Arc<[Addr<Registry>]>);

impl Workers {
    /// Registries in the order of the workers' indices.
    pub fn new(registries: Vec<Addr<Registry>>) -> Self {
        Self(registries.into())
    }

    /// The registry of one worker.
    pub fn get(&self, worker: usize) -> Option<&Addr<Registry>> {
        self.0.get(worker)
    }

    /// All registries.
    pub fn all(&self) -> impl ExactSizeIterator<Item = &Addr<Registry>> {
        self.0.iter()
    }

    /// Asks the workers that a request concerns. The request has reached them, in order, when this
    /// returns; the future is for the answer. The permit, for what the request carries, is held until each
    /// of them has seen to it.
    pub fn ask(
        &self,
        request: Request,
        permit: Option<&Permit>,
    ) -> impl Future<Output = Answer> + use<> {
        let kind = Kind::of(&request);
        let mut known = Vec::new();
        let mut asked = Vec::new();
        let mut ask = |worker: usize, request: Request| {
            let (reply, answer) = oneshot::channel();
            if let Some(registry) = self.get(worker) {
                registry.do_send(Ask {
                    request,
                    reply,
                    _permit: permit.cloned(),
                });
                asked.push(answer);
            }
        };
        match ids(&request) {
            Some(ids) => {
                for (worker, ids) in group_by(ids, SocketId::worker) {
                    if worker < self.0.len() {
                        ask(worker, with_ids(&request, ids));
                    } else {
                        let unknown = ids.into_iter().map(|id| (id, Status::NotFound));
                        known.push(Answer::Statuses(unknown.collect()));
                    }
                }
            }
            None => match request {
                Request::Socket(id) => ask(id.worker(), Request::Socket(id)),
                request => (0..self.0.len()).for_each(|worker| ask(worker, request.clone())),
            },
        }
        async move {
            let mut answers = known;
            for answer in asked {
                // A worker without an answer is one that ends, and the node with it.
                answers.extend(answer.await);
            }
            kind.merge(answers)
        }
    }
}

/// The sockets that a request names.
fn ids(request: &Request) -> Option<&[SocketId]> {
    match request {
        Request::Act(Target::Sockets(ids), _) => Some(ids),
        _ => None,
    }
}

/// The same request for other sockets.
fn with_ids(request: &Request, ids: Vec<SocketId>) -> Request {
    match request.clone() {
        Request::Act(_, act) => Request::Act(Target::Sockets(ids), act),
        other => other,
    }
}

/// Ids by who holds them, each group in the order in which they came.
pub fn group_by<K: std::hash::Hash + Eq>(
    ids: &[SocketId],
    key: impl Fn(SocketId) -> K,
) -> HashMap<K, Vec<SocketId>> {
    let mut groups: HashMap<K, Vec<SocketId>> = HashMap::new();
    for id in ids {
        groups.entry(key(*id)).or_default().push(*id);
    }
    groups
}

/// What answers to a request look like, and how several become one.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Each socket its status.
    Statuses,
    /// A number of sockets.
    Count,
    /// One socket, or none.
    Socket,
    /// A page of that many rooms.
    Rooms(usize),
    /// A page of that many sockets.
    Sockets(usize),
    /// Nothing to tell.
    Pong,
}

impl Kind {
    /// The kind of answer that a request has.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Act(Target::Sockets(_), _) => Self::Statuses,
            Request::Act(Target::Room(_) | Target::User(_), _) => Self::Count,
            Request::Socket(_) => Self::Socket,
            Request::Rooms(query) => Self::Rooms(query.limit),
            Request::Sockets(query) => Self::Sockets(query.limit),
            // These never come so far.
            Request::Probe
            | Request::Occupancy
            | Request::NotSubscribed(_)
            | Request::Drain
            | Request::Tail(_)
            | Request::Unknown => Self::Pong,
        }
    }

    /// One answer out of those of several workers or nodes. Answers of another kind are left out.
    pub fn merge(self, answers: impl IntoIterator<Item = Answer>) -> Answer {
        let answers = answers.into_iter();
        match self {
            Self::Pong => Answer::Pong,
            Self::Statuses => Answer::Statuses(
                answers
                    .filter_map(|answer| match answer {
                        Answer::Statuses(statuses) => Some(statuses),
                        _ => None,
                    })
                    .flatten()
                    .collect(),
            ),
            Self::Count => Answer::Count(
                answers
                    .filter_map(|answer| match answer {
                        Answer::Count(count) => Some(count),
                        _ => None,
                    })
                    .sum(),
            ),
            Self::Socket => Answer::Socket(answers.into_iter().find_map(|answer| match answer {
                Answer::Socket(socket) => socket,
                _ => None,
            })),
            Self::Rooms(limit) => Answer::Rooms(merge_rooms(
                answers.filter_map(|answer| match answer {
                    Answer::Rooms(page) => Some(page),
                    _ => None,
                }),
                limit,
            )),
            Self::Sockets(limit) => Answer::Sockets(merge_sockets(
                answers.filter_map(|answer| match answer {
                    Answer::Sockets(page) => Some(page),
                    _ => None,
                }),
                limit,
            )),
        }
    }
}

/// Each page has the first names of its source, so the first names of all pages together have their full
/// counts: a source that leaves one of them out would have to have as many smaller names before it.
fn merge_rooms(pages: impl Iterator<Item = RoomsPage>, limit: usize) -> RoomsPage {
    let mut more = false;
    let mut counts: BTreeMap<RoomName, u64> = BTreeMap::new();
    for page in pages {
        more |= page.more;
        for (room, sockets) in page.rooms {
            *counts.entry(room).or_default() += sockets;
        }
    }
    more |= counts.len() > limit;
    RoomsPage {
        rooms: counts.into_iter().take(limit).collect(),
        more,
    }
}

fn merge_sockets(pages: impl Iterator<Item = SocketsPage>, limit: usize) -> SocketsPage {
    let mut merged = SocketsPage::default();
    for page in pages {
        merged.more |= page.more;
        merged.count += page.count;
        merged.sockets.extend(page.sockets);
    }
    merged.sockets.sort_unstable();
    merged.more |= merged.sockets.len() > limit;
    merged.sockets.truncate(limit);
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::NodeId;

    fn page(rooms: &BTreeMap<RoomName, u64>, limit: usize) -> RoomsPage {
        RoomsPage {
            rooms: rooms.clone().into_iter().take(limit).collect(),
            more: rooms.len() > limit,
        }
    }

    proptest! {
        #[test]
        fn a_page_of_pages_has_full_counts(
            nodes in proptest::collection::vec(
                proptest::collection::btree_map("[a-f]{1,2}", 1..9u64, 0..12), 0..4),
            limit in 1..8usize,
        ) {
            let nodes: Vec<BTreeMap<_, _>> = nodes
                .into_iter()
                .map(|rooms| {
                    let named = |(name, n): (String, u64)| (RoomName::parse(&name).unwrap(), n);
                    rooms.into_iter().map(named).collect()
                })
                .collect();
            let mut all: BTreeMap<RoomName, u64> = BTreeMap::new();
            for (room, sockets) in nodes.iter().flatten() {
                *all.entry(room.clone()).or_default() += sockets;
            }
            let merged = merge_rooms(nodes.iter().map(|rooms| page(rooms, limit)), limit);
            prop_assert_eq!(merged, page(&all, limit));
        }
    }

    #[test]
    fn statuses_and_counts_add_up() {
        let id = |n| SocketId::new(NodeId::new(1), 0, n);
        let statuses = |n, status| Answer::Statuses(vec![(id(n), status)]);
        let merged = Kind::Statuses.merge([
            statuses(1, Status::Delivered),
            Answer::Pong,
            statuses(2, Status::NotFound),
        ]);
        let both = vec![(id(1), Status::Delivered), (id(2), Status::NotFound)];
        assert_eq!(merged, Answer::Statuses(both));
        let count = Kind::Count.merge([Answer::Count(2), Answer::Count(3)]);
        assert_eq!(count, Answer::Count(5));
    }
}
