//! Table of pending requests: what this node has asked of other nodes and of applications, and who waits for the
//! answers. Pure: no clock, no I/O. [`Asking`](crate::node::asking::Asking) sends the requests and sets their deadlines.

use std::collections::HashMap;

use bytes::Bytes;
use proto::NodeId;
use proto::envelope::Answer;
use tokio::sync::oneshot;

/// Answers of several nodes. A partial answer is an answer: nodes that did not speak are named.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Who answered what.
    pub answers: Vec<(NodeId, Answer)>,
    /// Who did not answer, and why not.
    pub missing: Vec<(NodeId, CallError)>,
    /// Nobody was asked: too much waits to be sent, or this node ends.
    pub unasked: bool,
}

/// Why a node did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Nobody listens under that id.
    NodeGone,
    /// Not within the time; or this node has no bus, or too much to send.
    Timeout,
    /// It is of an earlier version, which does not know what it was asked.
    Unsupported,
}

/// Why an application did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody listens on that subject.
    #[error("no application listens")]
    NobodyListens,
    /// The bus is away, or takes nothing more, or not so much.
    #[error("the bus does not take it")]
    NotSent,
}

/// The number of a request: the last token of the subject that its answers come to.
pub(crate) type Number = u64;

/// The answer of one node.
pub(crate) type NodeReply = Result<Answer, CallError>;

/// The answer of an application: the bytes of whichever was first.
pub(crate) type ApplicationReply = Result<Bytes, AskError>;

/// The table. At most `max` requests are in it at one time.
#[derive(Debug)]
pub(crate) struct Pending {
    entries: HashMap<Number, Entry>,
    max: usize,
}

#[derive(Debug)]
enum Entry {
    /// A request to an application.
    Application(oneshot::Sender<ApplicationReply>),
    /// A request to one node.
    Node {
        node: NodeId,
        sender: oneshot::Sender<NodeReply>,
    },
    /// A request to several nodes, under one number or with parts.
    Nodes(Box<Nodes>),
    /// A part of a request to several nodes: what one of them is asked apart.
    Part { of: Number, node: NodeId },
    /// A question whether a node listens at all, for the sake of a request that it has not answered.
    Probe { of: Number, node: NodeId },
}

#[derive(Debug)]
struct Nodes {
    silent: Vec<NodeId>,
    gathered: Gathered,
    sender: oneshot::Sender<Gathered>,
    parts: Vec<Number>,
}

/// What a word of the bus was about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// No pending request has that number.
    Nothing,
    /// A request to several nodes at one subject.
    Several,
    /// A request, a part or a probe to that node.
    One(NodeId),
}

impl Pending {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            entries: HashMap::new(),
            max,
        }
    }

    /// Waits for an application. False where the table is full.
    pub(crate) fn application(
        &mut self,
        number: Number,
        sender: oneshot::Sender<ApplicationReply>,
    ) -> bool {
        self.insert(number, Entry::Application(sender))
    }

    /// Waits for one node. False where the table is full.
    pub(crate) fn node(
        &mut self,
        number: Number,
        node: NodeId,
        sender: oneshot::Sender<NodeReply>,
    ) -> bool {
        self.insert(number, Entry::Node { node, sender })
    }

    /// Waits for several nodes. False where the table is full.
    pub(crate) fn nodes(
        &mut self,
        number: Number,
        nodes: Vec<NodeId>,
        sender: oneshot::Sender<Gathered>,
    ) -> bool {
        let nodes = Nodes {
            silent: nodes,
            gathered: Gathered::default(),
            sender,
            parts: Vec::new(),
        };
        self.insert(number, Entry::Nodes(Box::new(nodes)))
    }

    /// Asks one of several nodes apart. Parts do not count against the bound: there are as many as nodes.
    pub(crate) fn part(&mut self, of: Number, node: NodeId, number: Number) {
        if let Some(Entry::Nodes(nodes)) = self.entries.get_mut(&of) {
            nodes.parts.push(number);
            self.entries.insert(number, Entry::Part { of, node });
        }
    }

    /// Asks whether a node listens, until the answer to the request `of` comes.
    pub(crate) fn probe(&mut self, of: Number, node: NodeId, number: Number) {
        if self.entries.contains_key(&of) {
            self.entries.insert(number, Entry::Probe { of, node });
        }
    }

    fn insert(&mut self, number: Number, entry: Entry) -> bool {
        let free = self.entries.len() < self.max;
        if free {
            self.entries.insert(number, entry);
        }
        free
    }

    /// Nodes that have not answered a request yet.
    pub(crate) fn silent(&self, number: Number) -> Vec<NodeId> {
        match self.entries.get(&number) {
            Some(Entry::Node { node, .. }) => vec![*node],
            Some(Entry::Nodes(nodes)) => nodes.silent.clone(),
            _ => Vec::new(),
        }
    }

    /// A node answers. Says whether the number was pending.
    pub(crate) fn answer(&mut self, number: Number, from: NodeId, answer: Answer) -> Found {
        let reply = match answer {
            Answer::Unsupported => Err(CallError::Unsupported),
            answer => Ok(answer),
        };
        match self.entries.get(&number) {
            // That it listens does not say that it will answer.
            Some(Entry::Probe { node, .. }) if *node == from => {
                self.entries.remove(&number);
            }
            Some(Entry::Probe { .. } | Entry::Application(_)) | None => return Found::Nothing,
            Some(_) => self.settle(number, from, reply),
        }
        Found::One(from)
    }

    /// An application answers. Later answers to the same request find nobody who waits.
    pub(crate) fn application_answers(&mut self, number: Number, reply: ApplicationReply) {
        if let Some(Entry::Application(_)) = self.entries.get(&number)
            && let Some(Entry::Application(sender)) = self.entries.remove(&number)
        {
            let _ = sender.send(reply);
        }
    }

    /// The bus says that nobody listens where a request was sent.
    pub(crate) fn nobody_listens(&mut self, number: Number) -> Found {
        let (of, node) = match self.entries.get(&number) {
            Some(Entry::Node { node, .. }) => (number, *node),
            Some(Entry::Part { node, .. }) => (number, *node),
            Some(Entry::Probe { of, node }) => (*of, *node),
            Some(Entry::Nodes(_)) => return Found::Several,
            Some(Entry::Application(_)) | None => return Found::Nothing,
        };
        if of != number {
            self.entries.remove(&number);
        }
        self.fail(of, node, CallError::NodeGone);
        Found::One(node)
    }

    /// There will be no answer of that node.
    pub(crate) fn fail(&mut self, number: Number, node: NodeId, error: CallError) {
        self.settle(number, node, Err(error));
    }

    fn settle(&mut self, number: Number, from: NodeId, reply: NodeReply) {
        match self.entries.get_mut(&number) {
            Some(Entry::Node { node, .. }) if *node == from => {
                if let Some(Entry::Node { sender, .. }) = self.entries.remove(&number) {
                    let _ = sender.send(reply);
                }
            }
            Some(Entry::Nodes(nodes)) => {
                nodes.settle(from, reply);
                self.finish(number);
            }
            Some(Entry::Part { of, node }) if *node == from => {
                let of = *of;
                self.settle(of, from, reply);
            }
            _ => {}
        }
    }

    /// Ends a request to several nodes when none is silent any more.
    pub(crate) fn finish(&mut self, number: Number) {
        if let Some(Entry::Nodes(nodes)) = self.entries.get(&number)
            && nodes.silent.is_empty()
            && let Some(nodes) = self.take_nodes(number)
        {
            // Whoever asked may have gone away.
            let _ = nodes.sender.send(nodes.gathered);
        }
    }

    fn take_nodes(&mut self, number: Number) -> Option<Nodes> {
        let Some(Entry::Nodes(nodes)) = self.entries.remove(&number) else {
            return None;
        };
        for part in &nodes.parts {
            self.entries.remove(part);
        }
        Some(*nodes)
    }

    /// The time for a request to several nodes is over: what has come, with the silent among the missing.
    pub(crate) fn late(&mut self, number: Number) -> Option<Gathered> {
        let mut nodes = self.take_nodes(number)?;
        let late = nodes
            .silent
            .drain(..)
            .map(|node| (node, CallError::Timeout));
        nodes.gathered.missing.extend(late);
        Some(nodes.gathered)
    }

    /// Nobody waits for it any more.
    pub(crate) fn remove(&mut self, number: Number) {
        if let Some(Entry::Nodes(_)) = self.entries.get(&number) {
            self.take_nodes(number);
        } else {
            self.entries.remove(&number);
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Nodes {
    fn settle(&mut self, from: NodeId, reply: NodeReply) {
        let Some(index) = self.silent.iter().position(|node| *node == from) else {
            return;
        };
        self.silent.swap_remove(index);
        match reply {
            Ok(answer) => self.gathered.answers.push((from, answer)),
            Err(error) => self.gathered.missing.push((from, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> [NodeId; 4] {
        [1, 2, 3, 4].map(NodeId::new)
    }

    #[test]
    fn nodes_that_do_not_answer_are_named() {
        let [a, b, c, d] = nodes();
        let mut pending = Pending::new(10);
        let (sender, mut receiver) = oneshot::channel();
        assert!(pending.nodes(1, nodes().to_vec(), sender));
        for (number, node) in (2..).zip(nodes()) {
            pending.part(1, node, number);
        }
        assert_eq!(pending.answer(2, a, Answer::Count(1)), Found::One(a));
        pending.answer(2, a, Answer::Count(9));
        assert_eq!(pending.nobody_listens(3), Found::One(b));
        pending.answer(5, d, Answer::Unsupported);
        assert_eq!(pending.silent(1), [c]);
        assert!(receiver.try_recv().is_err());
        let gathered = pending.late(1).expect("it was pending");
        assert_eq!(gathered.answers, [(a, Answer::Count(1))]);
        let missing = [
            (b, CallError::NodeGone),
            (d, CallError::Unsupported),
            (c, CallError::Timeout),
        ];
        assert_eq!(gathered.missing, missing);
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_request_to_several_ends_with_the_last_answer() {
        let [a, b, ..] = nodes();
        let mut pending = Pending::new(10);
        let (sender, mut receiver) = oneshot::channel();
        assert!(pending.nodes(1, vec![a], sender));
        assert_eq!(pending.nobody_listens(1), Found::Several);
        pending.answer(1, b, Answer::Pong);
        assert!(receiver.try_recv().is_err());
        pending.answer(1, a, Answer::Pong);
        assert_eq!(receiver.try_recv().unwrap().answers.len(), 1);
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn one_node_is_answered_for_by_itself_only() {
        let [a, b, ..] = nodes();
        let mut pending = Pending::new(10);
        let (sender, mut receiver) = oneshot::channel();
        assert!(pending.node(1, a, sender));
        pending.answer(1, b, Answer::Pong);
        pending.application_answers(1, Ok(Bytes::new()));
        assert!(receiver.try_recv().is_err());
        pending.answer(1, a, Answer::Pong);
        assert_eq!(receiver.try_recv(), Ok(Ok(Answer::Pong)));
    }

    #[test]
    fn a_probe_tells_a_dead_node_from_a_slow_one() {
        let [a, b, ..] = nodes();
        let mut pending = Pending::new(10);
        let (sender, mut of_a) = oneshot::channel();
        assert!(pending.node(1, a, sender));
        let (sender, mut of_b) = oneshot::channel();
        assert!(pending.node(2, b, sender));
        pending.probe(1, a, 3);
        pending.probe(2, b, 4);
        pending.answer(3, a, Answer::Pong);
        assert!(of_a.try_recv().is_err(), "it lives, and has not answered");
        assert_eq!(pending.nobody_listens(4), Found::One(b));
        assert_eq!(of_b.try_recv(), Ok(Err(CallError::NodeGone)));
        pending.remove(1);
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let [a, ..] = nodes();
        let mut pending = Pending::new(1);
        assert!(pending.node(1, a, oneshot::channel().0));
        assert!(!pending.node(2, a, oneshot::channel().0));
        assert!(!pending.application(3, oneshot::channel().0));
        pending.remove(1);
        assert!(pending.nodes(4, vec![a], oneshot::channel().0));
    }
}
