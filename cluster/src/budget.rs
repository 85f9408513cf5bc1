//! A bound on the bytes of publications that are on their way through a node.

use std::any::Any;
use std::sync::Arc;

use tokio::sync::Semaphore;

/// Bytes that may be under way at one time. Every publication holds a [`Permit`] of its size from where
/// it enters the node to where the last worker has queued it for its sockets and the bus has taken it,
/// so no mailbox between the two can grow past the budget. Cheap to clone.
#[derive(Clone)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    bytes_max: u32,
}

/// Bytes taken from a [`Budget`] until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Permit(#[expect(dead_code, reason = "held for its Drop")] Arc<dyn Any + Send + Sync>);

/// What a publication costs beside its payload.
const FIXED_BYTES: usize = 512;

impl Budget {
    /// A budget of `bytes`.
    pub fn new(bytes: u32) -> Self {
        Self {
            semaphore: Arc::new(Semaphore::new(bytes as usize)),
            bytes_max: bytes,
        }
    }

    /// Takes the bytes when they are there; never waits.
    pub fn try_acquire(&self, payload_bytes: usize) -> Option<Permit> {
        let bytes = self.cost(payload_bytes);
        let permit = Arc::clone(&self.semaphore).try_acquire_many_owned(bytes);
        permit.ok().map(|permit| Permit(Arc::new(permit)))
    }

    /// Waits for the bytes, first come first served.
    pub async fn acquire(&self, payload_bytes: usize) -> Permit {
        let bytes = self.cost(payload_bytes);
        let permit = Arc::clone(&self.semaphore).acquire_many_owned(bytes);
        Permit(Arc::new(
            permit.await.expect("the semaphore is never closed"),
        ))
    }

    /// Bytes that are taken.
    pub fn taken(&self) -> usize {
        self.bytes_max as usize
            - self
                .semaphore
                .available_permits()
                .min(self.bytes_max as usize)
    }

    /// Something larger than the whole budget passes alone.
    fn cost(&self, payload_bytes: usize) -> u32 {
        u32::try_from(payload_bytes + FIXED_BYTES)
            .map_or(self.bytes_max, |bytes| bytes.min(self.bytes_max))
    }
}

impl Permit {
    /// The same permit, with something that learns by its `Drop` when the last clone of this one is dropped.
    #[must_use]
    pub fn with(self, witness: impl Send + Sync + 'static) -> Self {
        Self(Arc::new((self, witness)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_when_the_permit_goes() {
        let budget = Budget::new(2_000);
        let first = budget.try_acquire(1_000).expect("all is free");
        assert!(budget.try_acquire(1_000).is_none());
        let witness = Arc::new(());
        let both = first.clone().with(Arc::clone(&witness));
        drop(first);
        assert!(budget.try_acquire(1_000).is_none());
        assert_eq!(Arc::strong_count(&witness), 2);
        drop(both);
        assert_eq!(Arc::strong_count(&witness), 1);
        assert!(
            budget.try_acquire(1_000_000).is_some(),
            "large ones pass alone"
        );
    }
}
