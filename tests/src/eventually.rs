//! Waiting: for an answer with a deadline, or for a state that will come.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for something that should come at once: far longer than a busy machine takes. It ends a wait for
/// what never comes; how fast something is, no test asks.
pub const PATIENCE: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What a probe of [`eventually`] may return: a `bool`, an `Option` or a `Result`.
pub trait Outcome {
    /// What is handed to the test once the probe succeeded.
    type Value;

    /// The value, or what was seen in its place.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl Outcome for bool {
    type Value = ();

    fn outcome(self) -> Result<(), String> {
        self.then_some(()).ok_or_else(|| "false".to_owned())
    }
}

impl<T> Outcome for Option<T> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "none".to_owned())
    }
}

impl<T, E: Debug> Outcome for Result<T, E> {
    type Value = T;

    fn outcome(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:?}"))
    }
}

/// Lets a time pass that the server has named, or that makes the client what it is: one that is told when to come back,
/// or one that drips. Not to wait for anything.
pub async fn pass(time: Duration) {
    sleep(time).await;
}

/// Asks again and again until the probe succeeds; the only sleep of the tests.
///
/// # Panics
/// When [`PATIENCE`] has run out; the message tells what the probe saw last.
#[track_caller]
pub fn eventually<P, O>(what: &str, probe: P) -> impl Future<Output = O::Value>
where
    P: AsyncFnMut() -> O,
    O: Outcome,
{
    within(PATIENCE, what, probe)
}

/// [`eventually`] with a deadline of its own, for what has a stated time.
///
/// # Panics
/// When the deadline has passed; the message tells what the probe saw last.
#[track_caller]
pub fn within<P, O>(deadline: Duration, what: &str, mut probe: P) -> impl Future<Output = O::Value>
where
    P: AsyncFnMut() -> O,
    O: Outcome,
{
    let here = Location::caller();
    async move {
        let end = Instant::now() + deadline;
        loop {
            match probe().await.outcome() {
                Ok(value) => return value,
                Err(seen) if Instant::now() >= end => {
                    panic!("{here}: {what}: not within {deadline:?}, last seen: {seen}")
                }
                Err(_) => sleep(POLL_INTERVAL).await,
            }
        }
    }
}

/// One answer that must come within [`PATIENCE`].
pub(crate) async fn soon<T>(
    here: &Location<'_>,
    what: impl FnOnce() -> String,
    answer: impl Future<Output = T>,
) -> T {
    match timeout(PATIENCE, answer).await {
        Ok(value) => value,
        Err(_) => panic!("{here}: {}: nothing came within {PATIENCE:?}", what()),
    }
}
