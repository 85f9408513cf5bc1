//! The handle that everybody outside the actors speaks through: the HTTP API, applications, and sessions on
//! behalf of their clients.

mod to;
mod verbs;

pub use to::{Members, Rooms, To, User};
pub use verbs::{Confirmed, Disconnect, Outgoing, SendError};
pub(crate) use verbs::{event, text};

use std::collections::HashMap;
use std::sync::Arc;

use actix::Addr;
use cluster::{CallError, Gathered, Permit, Sent};
use futures_util::future::join_all;
use proto::envelope::{
    Act, Answer, Payload, Request, RoomsPage, RoomsQuery, SocketInfo, SocketsPage, SocketsQuery,
    Status, Target,
};
use proto::{Audience, NodeId, Publication, RoomName, SocketId};
use tokio::sync::oneshot;

use crate::ask::{Kind, Workers, group_by};
use crate::delivery::Delivery;
use crate::meters::{self, Source};
use crate::node::{Node, Publish, Report};
use crate::registry::Gap;
use crate::shared::Shared;
use crate::trace::{Parent, Span, Work, delivered};

/// A running node, as applications use it: every verb reaches the whole cluster. Cheap to clone, and at home on any
/// thread.
///
/// ```
/// use unisono_server::{App, Room, SendError, Unisono};
/// # use unisono_server::testing::TestNode;
/// # #[actix_web::main]
/// # async fn main() {
///
/// async fn close_the_lobby(unisono: Unisono) -> Result<u64, SendError> {
///     unisono.publish("/lobby", "closing", "see you tomorrow").await?;
///     let closed = unisono.disconnect(unisono_server::Members("/lobby")).code(4001).await?;
///     Ok(closed.value)
/// }
/// # let node = TestNode::start(App::new()).await;
/// # let mut client = node.connect("/lobby").await;
/// # assert_eq!(close_the_lobby(node.unisono()).await.unwrap(), 1);
/// # assert_eq!(client.closed().await.0, 4001);
/// # }
/// ```
#[derive(Clone)]
pub struct Unisono {
    /// What the actors share.
    pub(crate) shared: Arc<Shared>,
    pub(crate) node: Addr<Node>,
    pub(crate) workers: Workers,
    /// What is sent by this handle is part of that.
    pub(crate) parent: Parent,
}

/// Which nodes took part in an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// How many did, this one included.
    pub reached: usize,
    /// Which did not, though they are thought to be up.
    pub missing: Vec<NodeId>,
}

/// An answer of several nodes: an answer of those that can answer is an answer.
///
/// ```
/// use unisono_server::Partial;
///
/// fn tell(reached: &Partial<u64>) -> String {
///     let Partial { value, nodes } = reached;
///     match nodes.missing.len() {
///         0 => format!("{value} sockets on {} nodes", nodes.reached),
///         silent => format!("{value} sockets, and perhaps some on {silent} nodes that do not answer"),
///     }
/// }
/// # let reached = Partial { value: 2, nodes: unisono_server::Nodes { reached: 1, missing: vec![] } };
/// # assert_eq!(tell(&reached), "2 sockets on 1 nodes");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Partial<T> {
    /// What those said who answered.
    pub value: T,
    /// Who that was.
    pub nodes: Nodes,
}

/// Why a publication was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// More bytes than the bus takes.
    #[error("larger than the bus takes")]
    TooLarge,
    /// Too much is on its way already.
    #[error("too many publications are on their way")]
    Busy,
}

impl Unisono {
    /// This node.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// Whether this node has been up for longer than all others that are up: a way to choose one for what is to happen
    /// once in the cluster. While nodes cannot hear each other, more than one may think so.
    pub async fn is_eldest(&self) -> bool {
        let mine = (self.shared.started_at_ms, self.shared.node);
        let peers = self.shared.cluster.peers().await;
        let mut ages = peers
            .iter()
            .map(|peer| (peer.heartbeat.started_at_ms, peer.id));
        ages.all(|age| mine < age)
    }

    /// Whether who comes by that path is greeted.
    #[cfg(feature = "testing")]
    pub(crate) fn greets(&self, path: &str) -> bool {
        let path = path.split('?').next().unwrap_or_default();
        let room = proto::RoomName::from_path(path).ok();
        let rule = room.and_then(|room| self.shared.config.rules.find(&room).cloned());
        let json = rule.is_some_and(|rule| rule.format == crate::rules::Format::Json);
        json && self.shared.config.sockets.greeting
    }

    /// The span of an act, where it is an emit, and sampled.
    fn emitting(&self, act: &mut Act) -> Option<Span> {
        let Act::Emit { trace, .. } = act else {
            return None;
        };
        let span = self.shared.traces.begin(Work::Emit, self.parent)?;
        *trace = Some(Box::new(span.place()));
        Some(span)
    }

    /// Does something with sockets, wherever they are. Ids that are none are told so. The request is on its
    /// way, in the order of the calls, when this returns; the future is for the statuses.
    ///
    /// # Errors
    ///
    /// Nothing was sent when it is too large, or too much is under way.
    pub(crate) fn act(
        &self,
        to: Vec<String>,
        mut act: Act,
    ) -> Result<impl Future<Output = Vec<(String, Status)>> + use<>, PublishError> {
        let permit = self.permit_for(&act, to.len())?;
        let span = self.emitting(&mut act);
        let each = self.each(to, &act, permit.as_ref());
        Ok(async move {
            let statuses = each.await;
            if let Some(mut span) = span {
                span.reached(delivered(&statuses));
            }
            statuses
        })
    }

    /// Does something with the sockets of a room or a user, and says with how many.
    ///
    /// # Errors
    ///
    /// Those of [`Unisono::act`].
    pub(crate) fn act_on(
        &self,
        target: Target,
        mut act: Act,
    ) -> Result<impl Future<Output = Partial<u64>> + use<>, PublishError> {
        let permit = self.permit_for(&act, 0)?;
        let span = self.emitting(&mut act);
        let request = Request::Act(target, act);
        let asked = self.everywhere(request, permit.as_ref(), |answer| match answer {
            Answer::Count(count) => count,
            _ => 0,
        });
        Ok(async move {
            let count = asked.await;
            if let Some(mut span) = span {
                span.reached(count.value);
            }
            count
        })
    }

    /// A share of the budget for what a request carries.
    fn permit_for(&self, act: &Act, ids: usize) -> Result<Option<Permit>, PublishError> {
        let Act::Emit { payload, .. } = act else {
            return Ok(None);
        };
        // Ids cost their bytes and two of framing.
        if !self.shared.cluster.fits(payload.len() + ids * 18) {
            return Err(PublishError::TooLarge);
        }
        let permit = self.shared.budget.try_acquire(payload.len());
        permit.map(Some).ok_or(PublishError::Busy)
    }

    /// Sends to rooms, or to everybody; a socket in several of the rooms gets it once.
    pub(crate) async fn send(
        &self,
        to: Vec<Audience>,
        payload: Payload,
        except: Vec<SocketId>,
    ) -> Result<Sent, PublishError> {
        let mut replies = Vec::new();
        for (mut publication, permit) in self.publications(to, &payload, &except)? {
            let shared = &self.shared;
            let span = shared.publishing(&mut publication, Source::Api, self.parent);
            let delivery = Delivery::new(shared, publication, shared.node, permit);
            let (reply, sent) = oneshot::channel();
            let publish = Publish::reported(Source::Api, delivery, Report::Sent(reply));
            self.node.do_send(publish.within(span));
            replies.push(sent);
        }
        let mut sent = Sent::ToAll;
        for reply in replies {
            if reply.await != Ok(Sent::ToAll) {
                sent = Sent::LocalOnly;
            }
        }
        Ok(sent)
    }

    /// Sends to the sockets of this node only, or tells them of the gap where too much is under way.
    pub(crate) fn send_here(&self, publication: Publication) {
        match self.shared.budget.try_acquire(publication.payload.len()) {
            Some(permit) => {
                let delivery = Delivery::new(&self.shared, publication, self.shared.node, permit);
                let publish = Publish::reported(Source::Laravel, delivery, Report::Here);
                self.node.do_send(publish);
            }
            None => {
                let room = match publication.to {
                    Audience::Room(room) => Some([room].into()),
                    Audience::Everyone => None,
                };
                self.tell_gap(room, "overload");
            }
        }
    }

    /// Tells the sockets of this node that they may have missed something.
    pub(crate) fn tell_gap(&self, rooms: Option<Arc<[RoomName]>>, reason: &'static str) {
        self.node.do_send(Gap { rooms, reason });
    }

    /// As [`Unisono::send`], and waits to learn how many sockets got it.
    pub(crate) async fn send_confirmed(
        &self,
        to: Vec<Audience>,
        payload: Payload,
        except: Vec<SocketId>,
    ) -> Result<Partial<u64>, PublishError> {
        let mut replies = Vec::new();
        for (publication, permit) in self.publications(to, &payload, &except)? {
            let mut publication = Publication {
                confirm: true,
                ..publication
            };
            let shared = &self.shared;
            let span = shared.publishing(&mut publication, Source::Api, self.parent);
            let (done, here) = oneshot::channel();
            let (reply, elsewhere) = oneshot::channel();
            let delivery = Delivery::counted(shared, publication, shared.node, permit, done);
            let publish = Publish::reported(Source::Api, delivery, Report::Confirmed(reply));
            self.node.do_send(publish.within(span));
            replies.push((here, elsewhere));
        }
        let mut total = 0;
        let mut nodes = Nodes::default();
        for (here, elsewhere) in replies {
            total += here.await.unwrap_or(0);
            let gathered = elsewhere.await.unwrap_or_default();
            let mut those = Nodes::of(&gathered);
            if gathered.unasked {
                // It has been sent here, which no error may hide. Of the others none was asked: each may have missed it.
                let peers = self.shared.cluster.peers().await;
                those.missing = peers.into_iter().map(|peer| peer.id).collect();
            }
            total += match Kind::Count.merge(gathered.answers.into_iter().map(|(_, a)| a)) {
                Answer::Count(count) => count,
                _ => 0,
            };
            nodes = nodes.worse(those);
        }
        Ok(Partial {
            value: total,
            nodes,
        })
    }

    /// Describes a socket; none where there is no such socket.
    ///
    /// # Errors
    ///
    /// When its node does not answer.
    pub async fn socket(&self, id: SocketId) -> Result<Option<SocketInfo>, SendError> {
        let request = Request::Socket(id);
        let answer = if id.node() == self.shared.node {
            Ok(self.workers.ask(request, None).await)
        } else {
            self.shared.cluster.call(id.node(), request, None).await
        };
        match answer {
            Ok(Answer::Socket(socket)) => Ok(socket),
            Ok(_) | Err(CallError::NodeGone) => Ok(None),
            Err(CallError::Timeout | CallError::Unsupported) => Err(SendError::Timeout),
        }
    }

    /// Lists rooms, by name.
    pub async fn rooms(&self, query: RoomsQuery) -> Partial<RoomsPage> {
        self.everywhere(Request::Rooms(query), None, |answer| match answer {
            Answer::Rooms(page) => page,
            _ => RoomsPage::default(),
        })
        .await
    }

    /// Lists the sockets of a room, by id.
    pub async fn sockets(&self, query: SocketsQuery) -> Partial<SocketsPage> {
        self.everywhere(Request::Sockets(query), None, |answer| match answer {
            Answer::Sockets(page) => page,
            _ => SocketsPage::default(),
        })
        .await
    }

    /// Asks each node about its own sockets, all at once, and puts the statuses in the order of `to`.
    fn each(
        &self,
        to: Vec<String>,
        act: &Act,
        permit: Option<&Permit>,
    ) -> impl Future<Output = Vec<(String, Status)>> + use<> {
        let parsed: Vec<_> = to.iter().map(|text| SocketId::parse(text).ok()).collect();
        let mut distinct: Vec<_> = parsed.iter().flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut here = None;
        let mut elsewhere = Vec::new();
        for (node, ids) in group_by(&distinct, SocketId::node) {
            let part = Request::Act(Target::Sockets(ids.clone()), act.clone());
            if node == self.shared.node {
                here = Some(self.ask_here(part, permit));
            } else {
                let answer = self.shared.cluster.call(node, part, permit.cloned());
                elsewhere.push(async move { (ids, answer.await) });
            }
        }
        let emit = matches!(act, Act::Emit { .. });
        async move {
            let mut statuses = HashMap::new();
            if let Some(here) = here
                && let Answer::Statuses(found) = here.await
            {
                statuses.extend(found);
            }
            for (ids, answer) in join_all(elsewhere).await {
                match answer {
                    Ok(Answer::Statuses(found)) => statuses.extend(found),
                    Ok(_) => {}
                    Err(CallError::NodeGone) => {
                        statuses.extend(ids.into_iter().map(|id| (id, Status::NodeGone)));
                    }
                    Err(CallError::Unsupported) => {
                        statuses.extend(ids.into_iter().map(|id| (id, Status::Dropped)));
                    }
                    Err(CallError::Timeout) => {}
                }
            }
            let status = |id: Option<SocketId>| {
                let status = match id {
                    None => Status::Invalid,
                    Some(id) => statuses.get(&id).copied().unwrap_or(Status::Timeout),
                };
                // The others are counted where the socket is.
                let here = matches!(status, Status::Invalid | Status::NodeGone | Status::Timeout);
                if emit && here {
                    meters::emit_failed(status);
                }
                status
            };
            to.into_iter()
                .zip(parsed)
                .map(|(text, id)| (text, status(id)))
                .collect()
        }
    }

    /// The request is on its way when this returns; the future is for the answers.
    fn everywhere<T>(
        &self,
        request: Request,
        permit: Option<&Permit>,
        read: fn(Answer) -> T,
    ) -> impl Future<Output = Partial<T>> + use<T> {
        let kind = Kind::of(&request);
        let elsewhere = self.shared.cluster.call_all(&request);
        let here = self.ask_here(request, permit);
        async move {
            let here = here.await;
            let gathered = elsewhere.await;
            let nodes = Nodes::of(&gathered);
            let others = gathered.answers.into_iter().map(|(_, answer)| answer);
            Partial {
                value: read(kind.merge(std::iter::once(here).chain(others))),
                nodes,
            }
        }
    }

    fn ask_here(
        &self,
        request: Request,
        permit: Option<&Permit>,
    ) -> impl Future<Output = Answer> + use<> {
        let span = self.shared.answering(&request, Parent::Here);
        Span::until(span, self.workers.ask(request, permit))
    }

    /// One publication for each audience, with their permit.
    fn publications(
        &self,
        to: Vec<Audience>,
        payload: &Payload,
        except: &[SocketId],
    ) -> Result<Vec<(Publication, Permit)>, PublishError> {
        // Ids cost their bytes and two of framing.
        if !self.shared.cluster.fits(payload.len() + except.len() * 18) {
            return Err(PublishError::TooLarge);
        }
        // The payload is one, however many rooms it goes to.
        let permit = self.shared.budget.try_acquire(payload.len());
        let permit = permit.ok_or(PublishError::Busy)?;
        let once = (to.len() > 1).then(|| self.shared.next_once());
        let publication = |to| Publication {
            except: except.to_vec(),
            once,
            ..Publication::new(to, payload.clone())
        };
        let publications = to.into_iter().map(publication);
        Ok(publications
            .map(|publication| (publication, permit.clone()))
            .collect())
    }
}

impl Nodes {
    fn of(gathered: &Gathered) -> Self {
        // Gone or silent: a node that is cut off from the bus is "gone" too, with all its sockets alive.
        let mut missing: Vec<_> = gathered.missing.iter().map(|(node, _)| *node).collect();
        missing.sort_unstable();
        Self {
            reached: 1 + gathered.answers.len(),
            missing,
        }
    }

    /// Of two accounts of one send, who took part in both.
    fn worse(mut self, other: Self) -> Self {
        if self.reached == 0 {
            return other;
        }
        self.missing.extend(other.missing);
        self.missing.sort_unstable();
        self.missing.dedup();
        self.reached = self.reached.min(other.reached);
        self
    }
}
