//! A lane: one request after the other, each tried until it is taken or given up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use backon::{ExponentialBuilder, Retryable};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::warn;

use super::answer::{Answers, Nonsense};
use super::{Actions, HookAnswer, Waiting, count_events};
use crate::config;
use crate::fetch;
use crate::reload::Current;
use crate::seldom::Seldom;
use crate::signature::Signer;
use crate::vital::Vital;

/// One lane.
pub struct Lane {
    events: mpsc::UnboundedReceiver<Waiting>,
    /// Did not fit into the last request.
    held: Option<Waiting>,
    application: Arc<Application>,
    /// A lane that died would let its events wait for ever.
    _vital: Vital,
}

/// Where the lanes lead.
pub struct Application {
    url: Url,
    client: Client,
    signer: Current<Signer>,
    config: config::Hooks,
    act: Act,
    troubles: Seldom,
    losses: Seldom,
    halvings: Seldom,
    nonsense: Seldom,
    excesses: Seldom,
}

/// Does what an answer asks for.
pub type Act = Box<dyn Fn(Actions) -> BoxFuture<'static, ()> + Send + Sync>;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// No answer came.
    #[error("{0:#}")]
    Silence(anyhow::Error),
    /// Not now; perhaps with the time after which to come again.
    #[error("status {0}")]
    Later(StatusCode, Option<Duration>),
    /// Not ever.
    #[error("status {0}")]
    Refused(StatusCode),
}

/// Most that one answer may ask to be done.
const ACTIONS_MAX: usize = 1000;

/// The bound of the first wait between two attempts.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);

const BODY_START: &[u8] = b"{\"events\":[";
const BODY_END: &[u8] = b"]}";

/// For clients.
const UNREACHABLE: &str = "the application cannot be reached";
const REFUSED: &str = "the application refused the request";
const TOO_LARGE: &str = "larger than the application takes";
const NONSENSE: &str = "the application answered with nonsense";

// === impl Lane ===

impl Lane {
    /// A lane for these events.
    pub fn new(events: mpsc::UnboundedReceiver<Waiting>, application: Arc<Application>) -> Self {
        Self {
            events,
            held: None,
            application,
            _vital: Vital("hooks"),
        }
    }

    /// Delivers events until nobody can send any more.
    pub async fn run(mut self) {
        while let Some(batch) = self.batch().await {
            self.application.deliver(batch).await;
        }
    }

    /// What is there, at least one event, as far as it fits into a request.
    async fn batch(&mut self) -> Option<Vec<Waiting>> {
        let first = match self.held.take() {
            Some(held) => held,
            None => self.events.recv().await?,
        };
        let mut bytes = BODY_START.len() + first.event.json.len() + BODY_END.len();
        let mut batch = vec![first];
        while batch.len() < self.application.config.batch {
            let Ok(next) = self.events.try_recv() else {
                break;
            };
            bytes += 1 + next.event.json.len();
            // An event that has more goes alone.
            if bytes > self.application.config.batch_bytes {
                self.held = Some(next);
                break;
            }
            batch.push(next);
        }
        Some(batch)
    }
}

// === impl Application ===

impl Application {
    /// The application of the configuration.
    pub fn new(
        config: &config::Hooks,
        signer: Option<Current<Signer>>,
        act: Act,
    ) -> anyhow::Result<Self> {
        let url = Url::parse(&config.url).context("url")?;
        Ok(Self {
            url,
            client: fetch::client(&config.url)?,
            signer: signer.context("a secret is needed")?,
            config: config.clone(),
            act,
            troubles: Seldom::default(),
            losses: Seldom::default(),
            halvings: Seldom::default(),
            nonsense: Seldom::default(),
            excesses: Seldom::default(),
        })
    }

    /// Delivers a batch, in their order. One that the application does not take for what is in it goes again in halves,
    /// down to single events: one event must not cost the others of its batch.
    async fn deliver(&self, batch: Vec<Waiting>) {
        // Halves have no time of their own, so that a lane is held up for no longer than by one request.
        let started = Instant::now();
        // The next is the last.
        let mut parts = vec![batch];
        while let Some(mut part) = parts.pop() {
            self.drop_late(&mut part);
            if part.is_empty() {
                continue;
            }
            match self.send(&part, started).await {
                Ok(answers) => self.answer(part, answers).await,
                Err(Failure::Refused(status)) if part.len() > 1 && is_of_content(status) => {
                    let events = part.len();
                    if let Some(batches) = self.halvings.add(Instant::now(), 1) {
                        warn!(
                            %status, events, batches,
                            "the application refused a batch, which goes again in halves; hooks.batch_bytes bounds one"
                        );
                    }
                    let second = part.split_off(events / 2);
                    parts.extend([second, part]);
                }
                Err(failure @ Failure::Refused(status)) => {
                    let word = match status {
                        StatusCode::PAYLOAD_TOO_LARGE => TOO_LARGE,
                        _ => REFUSED,
                    };
                    self.lose(part, "failed", word, &failure);
                }
                Err(failure) => {
                    // Their time is over, too.
                    parts.push(part);
                    let lost = parts.drain(..).rev().flatten().collect();
                    self.lose(lost, "failed", UNREACHABLE, &failure);
                }
            }
        }
    }

    fn drop_late(&self, batch: &mut Vec<Waiting>) {
        let now = Instant::now();
        let late: Vec<_> = batch
            .extract_if(.., |waiting| self.is_late(waiting, now))
            .collect();
        if !late.is_empty() {
            self.lose(late, "dropped", UNREACHABLE, &"waited too long");
        }
    }

    /// Sends a request, again and again where that may help, until `retry_for` after the start.
    async fn send(
        &self,
        batch: &[Waiting],
        started: Instant,
    ) -> Result<Result<Answers, Nonsense>, Failure> {
        let id = format!("msg_{:032x}", rand::random::<u128>());
        let body = body(batch);
        let delay_max = self.config.retry_delay_max;
        let backoff = ExponentialBuilder::new()
            .with_min_delay(RETRY_DELAY_MIN.min(delay_max))
            .with_max_delay(delay_max)
            .without_max_times();
        (|| self.attempt(&id, &body))
            .retry(backoff)
            .adjust(|failure, bound| {
                let delay = bound?.mul_f64(rand::random());
                self.delay(started.elapsed(), failure, delay)
            })
            .notify(|failure, _| {
                if let Some(failures) = self.troubles.add(Instant::now(), 1) {
                    warn!(%failure, failures, "a request to the application failed and is tried again");
                }
            })
            .await
    }

    /// Whether its client has waited for so long, behind others, that it is told so and not the application.
    fn is_late(&self, waiting: &Waiting, now: Instant) -> bool {
        let patience = self.config.retry_for.max(self.config.timeout);
        let waited = now.saturating_duration_since(waiting.since);
        waiting.event.answer.is_some() && waited > patience
    }

    /// How long to wait before the next attempt, if there is to be one: `delay`, but not longer than until
    /// the last moment, and not shorter than the application asks for.
    fn delay(&self, elapsed: Duration, failure: &Failure, delay: Duration) -> Option<Duration> {
        let asked = match failure {
            Failure::Silence(_) => Duration::ZERO,
            Failure::Later(_, after) => after.unwrap_or_default().min(self.config.retry_delay_max),
            Failure::Refused(_) => return None,
        };
        let left = self.config.retry_for.saturating_sub(elapsed);
        let may = !left.is_zero() && asked <= left;
        may.then(|| delay.min(left).max(asked))
    }

    async fn attempt(&self, id: &str, body: &Bytes) -> Result<Result<Answers, Nonsense>, Failure> {
        let started = Instant::now();
        let outcome = match self.post(id, body).await {
            Ok(response) => Ok(self.read(response).await),
            Err(failure) => Err(failure),
        };
        let result = if outcome.is_ok() { "ok" } else { "error" };
        metrics::counter!("unisono_hook_requests_total", "result" => result).increment(1);
        metrics::histogram!("unisono_hook_request_seconds").record(started.elapsed());
        outcome
    }

    /// Sends a request, until the head of the answer.
    async fn post(&self, id: &str, body: &Bytes) -> Result<Response, Failure> {
        let mut request = self
            .client
            .post(self.url.clone())
            .timeout(self.config.timeout)
            .header(CONTENT_TYPE, "application/json")
            .body(body.clone());
        for (name, value) in self.signer.get().headers(id, SystemTime::now(), body) {
            request = request.header(name, value);
        }
        // The URL may hold a password.
        let silence = |error: reqwest::Error| Failure::Silence(error.without_url().into());
        let response = request.send().await.map_err(silence)?;
        let status = response.status();
        match status {
            _ if status.is_success() => Ok(response),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::Later(status, retry_after(&response)))
            }
            _ if status.is_server_error() => Err(Failure::Later(status, retry_after(&response))),
            _ => Err(Failure::Refused(status)),
        }
    }

    /// Reads the rest of an answer. The application has taken the request, whatever comes now: to send it
    /// again would be to tell it everything twice.
    async fn read(&self, mut response: Response) -> Result<Answers, Nonsense> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| "it broke off")? {
            if body.len() + chunk.len() > self.config.answer_bytes {
                return Err("more than answer_bytes");
            }
            body.extend_from_slice(&chunk);
        }
        Answers::parse(&body)
    }

    /// The batch was taken: does what the application wants done, then tells who waits.
    async fn answer(&self, batch: Vec<Waiting>, answers: Result<Answers, Nonsense>) {
        count_events("delivered", batch.len());
        let mut answers = match answers {
            Ok(answers) => answers,
            Err(reason) => {
                metrics::counter!("unisono_hook_answers_refused_total").increment(1);
                if let Some(answers) = self.nonsense.add(Instant::now(), 1) {
                    warn!(reason, answers, "the application answered with nonsense");
                }
                for waiting in batch {
                    waiting.answer(HookAnswer::Failed(NONSENSE.to_owned()));
                }
                return;
            }
        };
        let mut actions = std::mem::take(&mut answers.actions);
        let excess = actions.len().saturating_sub(ACTIONS_MAX);
        if excess > 0 {
            actions.truncate(ACTIONS_MAX);
            metrics::counter!("unisono_actions_failed_total").increment(excess as u64);
            if let Some(ignored) = self.excesses.add(Instant::now(), excess) {
                warn!(ignored, "too many actions in one answer; the rest ignored");
            }
        }
        if !actions.is_empty() {
            (self.act)(actions).await;
        }
        for waiting in batch {
            let answer = answers.remove(&waiting.event.id);
            waiting.answer(answer);
        }
    }

    fn lose(
        &self,
        batch: Vec<Waiting>,
        result: &'static str,
        word: &'static str,
        reason: &dyn std::fmt::Display,
    ) {
        count_events(result, batch.len());
        if let Some(events) = self.losses.add(Instant::now(), batch.len()) {
            warn!(%reason, events, "events for the application lost");
        }
        for waiting in batch {
            waiting.answer(HookAnswer::Unavailable(word));
        }
    }
}

/// Whether a status may be due to what one of the events is, or to how many there are. Others, such as a 404, are of the
/// address or the signature: each event would get the same.
fn is_of_content(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY
    )
}

fn body(batch: &[Waiting]) -> Bytes {
    let events = batch.iter().map(|waiting| &waiting.event.json);
    let bytes: usize = events.clone().map(|json| json.len() + 1).sum();
    let mut body = BytesMut::with_capacity(BODY_START.len() + bytes + BODY_END.len());
    body.put_slice(BODY_START);
    for (nth, json) in events.enumerate() {
        if nth > 0 {
            body.put_u8(b',');
        }
        body.put_slice(json);
    }
    body.put_slice(BODY_END);
    body.freeze()
}

/// In seconds; a date, which the header may hold as well, is not looked at.
fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::super::Places;
    use super::*;
    use crate::hooks::tests::{config, event, event_waiting, signer};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn application(config: &config::Hooks) -> Application {
        Application::new(config, signer(), Box::new(|_| Box::pin(async {}))).unwrap()
    }

    #[test]
    fn the_last_attempt_is_at_the_end_of_retry_for() {
        let mut config = config("http://localhost/");
        config.retry_for = MS(1000);
        config.retry_delay_max = MS(300);
        let application = application(&config);
        let silence = Failure::Silence(anyhow::anyhow!("nobody there"));
        let later = |after| Failure::Later(StatusCode::TOO_MANY_REQUESTS, Some(MS(after)));
        let refused = Failure::Refused(StatusCode::NOT_FOUND);
        for (elapsed, failure, delay) in [
            (10, &silence, Some(100)),
            (950, &silence, Some(50)),
            (1000, &silence, None),
            (0, &refused, None),
            (0, &later(20), Some(100)),
            (0, &later(200), Some(200)),
            (0, &later(3_600_000), Some(300)),
            (900, &later(200), None),
        ] {
            let found = application.delay(MS(elapsed), failure, MS(100));
            assert_eq!(found, delay.map(MS), "{failure} after {elapsed}");
        }
    }

    #[test]
    fn a_client_does_not_wait_behind_others_for_ever() {
        let config = config("http://localhost/");
        let application = application(&config);
        let waiting = |event| Waiting {
            event,
            since: Instant::now(),
            place: vec![Places::new(1, 0).take(0).expect("it is empty")],
        };
        let patience = config.retry_for.max(config.timeout);
        let (asked, _answer) = event_waiting("1", 0);
        let asked = waiting(asked);
        assert!(!application.is_late(&asked, asked.since + patience));
        assert!(application.is_late(&asked, asked.since + patience + MS(1)));
        let told = waiting(event("2", 0));
        assert!(!application.is_late(&told, told.since + 2 * patience));
    }
}
