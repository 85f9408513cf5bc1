//! Questions to other nodes that wait for answers: scatter, gather, and give up in time. Pure; `now`
//! is told.

use std::collections::{BTreeMap, HashMap, HashSet};

use proto::NodeId;
use proto::envelope::Answer;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// What came back from several nodes. Partial answers are answers: who did not speak is named.
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

/// The table of open calls. A call has one number, or one for each node asked, and the number is the
/// last token of the subject that answers come to.
pub(crate) struct Calls {
    next: u64,
    numbers: HashMap<u64, (u64, Option<NodeId>)>,
    calls: HashMap<u64, Call>,
    deadlines: BTreeMap<(Instant, u64), ()>,
}

struct Call {
    waiting: HashSet<NodeId>,
    gathered: Gathered,
    sender: oneshot::Sender<Gathered>,
    numbers: Vec<u64>,
    deadline: Instant,
    late: CallError,
}

impl Calls {
    pub(crate) fn new() -> Self {
        Self {
            next: 0,
            numbers: HashMap::new(),
            calls: HashMap::new(),
            deadlines: BTreeMap::new(),
        }
    }

    /// Opens a call that waits for `nodes` and gives its id. Who has not answered at the deadline is `late`.
    pub(crate) fn open(
        &mut self,
        nodes: impl IntoIterator<Item = NodeId>,
        sender: oneshot::Sender<Gathered>,
        deadline: Instant,
        late: CallError,
    ) -> u64 {
        let id = self.number();
        let call = Call {
            waiting: nodes.into_iter().collect(),
            gathered: Gathered::default(),
            sender,
            numbers: Vec::new(),
            deadline,
            late,
        };
        self.calls.insert(id, call);
        self.deadlines.insert((deadline, id), ());
        id
    }

    /// A number for a message of the call: to one node, or to whoever hears it.
    pub(crate) fn message(&mut self, call: u64, to: Option<NodeId>) -> u64 {
        let number = self.number();
        if let Some(open) = self.calls.get_mut(&call) {
            open.numbers.push(number);
            self.numbers.insert(number, (call, to));
        }
        number
    }

    /// An answer came.
    pub(crate) fn answer(&mut self, number: u64, from: NodeId, answer: Answer) {
        if answer == Answer::Unsupported {
            return self.fail(number, from, CallError::Unsupported);
        }
        self.settle(number, from, |gathered| {
            gathered.answers.push((from, answer));
        });
    }

    /// The bus says that nobody listens. Gives the node that is gone, if the message was to one.
    pub(crate) fn no_responders(&mut self, number: u64) -> Option<NodeId> {
        let node = self.numbers.get(&number)?.1?;
        self.fail(number, node, CallError::NodeGone);
        Some(node)
    }

    /// There will be no answer.
    pub(crate) fn fail(&mut self, number: u64, node: NodeId, error: CallError) {
        self.settle(number, node, |gathered| {
            gathered.missing.push((node, error));
        });
    }

    fn settle(&mut self, number: u64, node: NodeId, note: impl FnOnce(&mut Gathered)) {
        let Some((id, _)) = self.numbers.get(&number).copied() else {
            return;
        };
        let Some(call) = self.calls.get_mut(&id) else {
            return;
        };
        if call.waiting.remove(&node) {
            note(&mut call.gathered);
        }
        self.finish(id);
    }

    /// Ends the call when nobody is waited for any more.
    pub(crate) fn finish(&mut self, id: u64) {
        if self
            .calls
            .get(&id)
            .is_some_and(|call| call.waiting.is_empty())
        {
            self.end(id);
        }
    }

    /// Ends the calls whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((&(deadline, id), ())) = self.deadlines.first_key_value() {
            if deadline > now {
                break;
            }
            self.end(id);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let ((deadline, _), ()) = self.deadlines.first_key_value()?;
        Some(*deadline)
    }

    fn end(&mut self, id: u64) {
        let Some(mut call) = self.calls.remove(&id) else {
            return;
        };
        self.deadlines.remove(&(call.deadline, id));
        for number in &call.numbers {
            self.numbers.remove(number);
        }
        let late = call.waiting.drain().map(|node| (node, call.late));
        call.gathered.missing.extend(late);
        // Whoever asked may have gone away.
        let _ = call.sender.send(call.gathered);
    }

    /// A number that no other message has.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_is_named() {
        let [a, b, c, d] = [1, 2, 3, 4].map(NodeId::new);
        let mut calls = Calls::new();
        let (sender, mut receiver) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(1);
        let call = calls.open([a, b, c, d], sender, deadline, CallError::Timeout);
        let [to_a, to_b, _, to_d] = [a, b, c, d].map(|node| calls.message(call, Some(node)));
        calls.answer(to_a, a, Answer::Count(1));
        calls.answer(to_a, a, Answer::Count(9));
        assert_eq!(calls.no_responders(to_b), Some(b));
        calls.answer(to_d, d, Answer::Unsupported);
        assert!(receiver.try_recv().is_err());
        assert_eq!(calls.next_deadline(), Some(deadline));
        calls.expire(deadline);
        let gathered = receiver.await.unwrap();
        assert_eq!(gathered.answers, [(a, Answer::Count(1))]);
        let missing = [
            (b, CallError::NodeGone),
            (d, CallError::Unsupported),
            (c, CallError::Timeout),
        ];
        assert_eq!(gathered.missing, missing);
        assert!(calls.numbers.is_empty() && calls.calls.is_empty());
        assert_eq!(calls.next_deadline(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_with_its_last_answer() {
        let a = NodeId::new(1);
        let mut calls = Calls::new();
        let (sender, mut receiver) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(1);
        let call = calls.open([a], sender, deadline, CallError::Timeout);
        let number = calls.message(call, None);
        assert_eq!(
            calls.no_responders(number),
            None,
            "not addressed to one node"
        );
        calls.answer(number, NodeId::new(9), Answer::Pong);
        assert!(receiver.try_recv().is_err());
        calls.answer(number, a, Answer::Pong);
        assert_eq!(receiver.await.unwrap().answers.len(), 1);
    }
}
