//! What applications on the bus are asked, until they answer. An answer is bare bytes of whoever is first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

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

type Reply = Result<Bytes, AskError>;

/// Those who wait, by the number of what they asked. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Asks(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    last: u64,
    senders: HashMap<u64, oneshot::Sender<Reply>>,
}

/// One who waits. Dropped, it waits no more.
pub(crate) struct Asking {
    asks: Asks,
    number: u64,
    receiver: oneshot::Receiver<Reply>,
}

impl Asks {
    /// Waits for the answer to what is about to be asked.
    pub(crate) fn open(&self) -> Asking {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.last += 1;
        let number = waiting.last;
        waiting.senders.insert(number, sender);
        drop(waiting);
        Asking {
            asks: self.clone(),
            number,
            receiver,
        }
    }

    /// Somebody answers; later answers to the same find nobody who waits.
    pub(crate) fn answer(&self, number: u64, reply: Reply) {
        let sender = self.lock().senders.remove(&number);
        if let Some(sender) = sender {
            let _ = sender.send(reply);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) async fn answer(mut self) -> Reply {
        let reply = (&mut self.receiver).await;
        reply.unwrap_or(Err(AskError::NotSent))
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.asks.lock().senders.remove(&self.number);
    }
}
