//! Events on their way to the application: an HTTP endpoint that is told what happened and may answer.
//!
//! An event waits in one of several lanes, chosen by its key. A lane sends one request after the other, so
//! that what has the same key arrives in order; what gathers meanwhile goes into the next request. An
//! application that took a request whose answer got lost is told again, under the same `webhook-id`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::warn;

use crate::config;
use crate::reload::Current;
use crate::seldom::Seldom;
use crate::signature::Signer;
use lane::{Application, Lane};

pub use answer::ErrorText;

mod answer;
mod lane;

/// The way to the application. Cheap to clone; used from all threads.
#[derive(Clone)]
pub struct Hooks(Arc<Lanes>);

/// Something to tell the application.
pub struct HookEvent {
    /// Unique; names the event in the answer.
    pub id: Box<str>,
    /// Events of one key stay in order.
    pub key: u64,
    /// A client wanted it; what nobody wanted, such as the end of a socket, has room of its own.
    pub from_client: bool,
    /// The event as a JSON object.
    pub json: Bytes,
    /// Who waits for the application's answer.
    pub answer: Option<oneshot::Sender<HookAnswer>>,
}

/// What the application asks to be done, in order. As it wrote it: what is sent on is not changed.
pub type Actions = Vec<Box<RawValue>>;

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookAnswer {
    /// The application took it. JSON text for the client's ack; none where the application gave none.
    Ack(Option<Bytes>),
    /// The application refuses, with a text for the client.
    Failed(String),
    /// The application cannot be reached, or too much waits: said in a word for the client.
    Unavailable(&'static str),
}

/// All lanes, and what they share.
struct Lanes {
    lanes: Box<[Queue]>,
    places: Arc<Places>,
    /// Of these, so many are for what clients want.
    client_places: Arc<Places>,
    patience: Duration,
    overflows: Seldom,
}

/// What waits for one lane.
struct Queue {
    sender: mpsc::UnboundedSender<Waiting>,
    /// One client fills its own lane at most.
    client_places: Arc<Places>,
}

/// How much waits or is under way, and how much may.
struct Places {
    events: AtomicUsize,
    bytes: AtomicUsize,
    events_max: usize,
    bytes_max: usize,
}

/// Room for one event of so many bytes, until it is dropped.
struct Place {
    places: Arc<Places>,
    bytes: usize,
}

/// All the room that an event takes.
type Room = Vec<Place>;

/// An event that has a place.
struct Waiting {
    event: HookEvent,
    since: Instant,
    place: Room,
}

/// Too much waits already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{OVERLOADED}")]
pub struct Overloaded;

/// For the client whose event found no place.
const OVERLOADED: &str = "too much waits for the application";

// === impl Hooks ===

impl Hooks {
    /// The way to the application, where one is configured. Requests are sent by tasks on `outside`. What
    /// an answer asks to be done is handed to `act`, in order; it is done before the answers are given.
    ///
    /// # Errors
    ///
    /// A secret that cannot be read, is missing or is not one; certificates that cannot be loaded.
    pub fn start(
        config: &config::Hooks,
        signer: Option<Current<Signer>>,
        outside: &Handle,
        act: impl Fn(Actions) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> anyhow::Result<Option<Self>> {
        if config.url.is_empty() {
            return Ok(None);
        }
        let application = Application::new(config, signer, Box::new(act)).context("hooks")?;
        let application = Arc::new(application);
        let lanes = (0..config.lanes).map(|_| {
            // Unbounded, but nothing enters without a place, of which there is a number.
            let (sender, receiver) = mpsc::unbounded_channel();
            outside.spawn(Lane::new(receiver, Arc::clone(&application)).run());
            Queue {
                sender,
                client_places: Places::new(
                    config.queue.div_ceil(config.lanes),
                    config.queue_bytes.div_ceil(config.lanes),
                ),
            }
        });
        Ok(Some(Self(Arc::new(Lanes {
            lanes: lanes.collect(),
            places: Places::new(config.queue, config.queue_bytes),
            client_places: Places::new(
                config.queue - config.queue / 4,
                config.queue_bytes - config.queue_bytes / 4,
            ),
            patience: config.retry_for + config.timeout,
            overflows: Seldom::default(),
        }))))
    }

    /// How long who waits for an answer should: as long as one request may take that is tried again. Behind
    /// many others, the event may not even have had its turn then.
    pub fn patience(&self) -> Duration {
        self.0.patience
    }

    /// How many events wait or are under way.
    pub fn waiting(&self) -> usize {
        self.0.places.events.load(Ordering::Relaxed)
    }

    /// Queues an event. Never waits: without room for it the event is dropped, and who waits for an answer
    /// gets one.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn send(&self, event: HookEvent) -> Result<(), Overloaded> {
        let lanes = &*self.0;
        let nth = event.key % lanes.lanes.len() as u64;
        let queue = &lanes.lanes[nth as usize];
        let bytes = event.json.len();
        let room = if event.from_client {
            [&lanes.places, &lanes.client_places, &queue.client_places]
                .into_iter()
                .map(|places| places.take(bytes))
                .collect::<Option<Room>>()
        } else {
            lanes.places.take(bytes).map(|place| vec![place])
        };
        let Some(place) = room else {
            lanes.overflow(event);
            return Err(Overloaded);
        };
        let waiting = Waiting {
            event,
            since: Instant::now(),
            place,
        };
        if let Err(mpsc::error::SendError(waiting)) = queue.sender.send(waiting) {
            // The lanes end with the process only.
            count_events("dropped", 1);
            waiting.answer(HookAnswer::Unavailable(OVERLOADED));
            return Err(Overloaded);
        }
        Ok(())
    }
}

impl Lanes {
    fn overflow(&self, event: HookEvent) {
        count_events("dropped", 1);
        if let Some(events) = self.overflows.add(Instant::now(), 1) {
            warn!(events, "too much waits for the application; events dropped");
        }
        event.answer(HookAnswer::Unavailable(OVERLOADED));
    }
}

impl Places {
    fn new(events_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {
            events: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            events_max,
            bytes_max,
        })
    }

    fn take(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        take(&self.events, 1, self.events_max)?;
        if take(&self.bytes, bytes, self.bytes_max).is_none() {
            self.events.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place {
            places: Arc::clone(self),
            bytes,
        })
    }
}

impl HookEvent {
    /// Tells who waits, if anybody does.
    fn answer(self, answer: HookAnswer) {
        if let Some(waits) = self.answer {
            let _ = waits.send(answer);
        }
    }
}

impl Waiting {
    fn answer(self, answer: HookAnswer) {
        let Self { event, place, .. } = self;
        // First, so that whoever acts upon the answer finds room.
        drop(place);
        event.answer(answer);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.events.fetch_sub(1, Ordering::Relaxed);
        self.places.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

fn take(count: &AtomicUsize, more: usize, max: usize) -> Option<usize> {
    let taken = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= max);
    let before = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
    before.ok()
}

fn count_events(result: &'static str, events: usize) {
    metrics::counter!("unisono_hook_events_total", "result" => result).increment(events as u64);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::{SystemTime, UNIX_EPOCH};

    use futures_util::FutureExt;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::{Secret, Sources};

    const SECRET: &str = "a secret of the tests";

    /// An application that answers when the test says so.
    struct Endpoint {
        url: String,
        requests: mpsc::UnboundedReceiver<Request>,
    }

    /// A request that waits for its answer. Dropped, its connection is closed.
    struct Request {
        line: String,
        headers: HashMap<String, String>,
        body: Vec<u8>,
        reply: oneshot::Sender<Vec<u8>>,
    }

    impl Endpoint {
        async fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/events?of=1", listener.local_addr().unwrap());
            let (sender, requests) = mpsc::unbounded_channel();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    // A client that goes away is part of some tests.
                    tokio::spawn(serve(stream, sender.clone()).map(drop));
                }
            });
            Self { url, requests }
        }

        async fn next(&mut self) -> Request {
            self.requests.recv().await.expect("the endpoint goes on")
        }
    }

    async fn serve(
        mut stream: TcpStream,
        requests: mpsc::UnboundedSender<Request>,
    ) -> std::io::Result<()> {
        let (read, mut write) = stream.split();
        let mut read = BufReader::new(read);
        loop {
            let mut line = String::new();
            read.read_line(&mut line).await?;
            let mut headers = HashMap::new();
            loop {
                let mut header = String::new();
                read.read_line(&mut header).await?;
                match header.trim_end().split_once(": ") {
                    Some((name, value)) => headers.insert(name.to_lowercase(), value.to_owned()),
                    None => break,
                };
            }
            let Some(length) = headers.get("content-length") else {
                return Ok(());
            };
            let mut body = vec![0; length.parse().unwrap()];
            read.read_exact(&mut body).await?;
            let (reply, replied) = oneshot::channel();
            let _ = requests.send(Request {
                line: line.trim_end().to_owned(),
                headers,
                body,
                reply,
            });
            match replied.await {
                Ok(reply) => write.write_all(&reply).await?,
                Err(_) => return Ok(()),
            }
        }
    }

    impl Request {
        fn events(&self) -> Vec<u64> {
            let body: Value = serde_json::from_slice(&self.body).unwrap();
            let events = body["events"].as_array().unwrap().iter();
            events.map(|event| event["n"].as_u64().unwrap()).collect()
        }

        fn id(&self) -> String {
            self.headers["webhook-id"].clone()
        }

        fn answer(self, status: &str, body: impl AsRef<[u8]>) {
            let body = body.as_ref();
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
            self.raw([head.as_bytes(), body].concat());
        }

        fn raw(self, bytes: Vec<u8>) {
            self.reply.send(bytes).expect("the connection is served");
        }

        fn ok(self, body: &Value) {
            self.answer("200 OK", body.to_string());
        }
    }

    /// The defaults, for an endpoint.
    pub fn config(url: &str) -> config::Hooks {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let defaults = Sources::default().load().expect("the defaults are good");
        config::Hooks {
            url: url.to_owned(),
            secret: Secret(SECRET.to_owned()),
            retry_delay_max: Duration::from_millis(10),
            lanes: 1,
            ..defaults.config.hooks
        }
    }

    pub fn signer() -> Option<Current<Signer>> {
        Some(Current::new(Signer::new(SECRET).unwrap()))
    }

    fn start(config: &config::Hooks) -> Hooks {
        let act = |_| async {}.boxed();
        let hooks = Hooks::start(config, signer(), &Handle::current(), act).unwrap();
        hooks.expect("there is a URL")
    }

    /// An event whose body says `{"n":<id>}`.
    pub fn event(id: &str, key: u64) -> HookEvent {
        HookEvent {
            id: id.into(),
            key,
            from_client: false,
            json: format!("{{\"n\":{id}}}").into(),
            answer: None,
        }
    }

    /// The same, with somebody who waits for the answer.
    pub fn event_waiting(id: &str, key: u64) -> (HookEvent, oneshot::Receiver<HookAnswer>) {
        let (sender, answer) = oneshot::channel();
        let event = HookEvent {
            answer: Some(sender),
            ..event(id, key)
        };
        (event, answer)
    }

    fn send_waiting(hooks: &Hooks, id: &str) -> oneshot::Receiver<HookAnswer> {
        let (event, answer) = event_waiting(id, 0);
        let _ = hooks.send(event);
        answer
    }

    fn texts(actions: &[Box<RawValue>]) -> Vec<String> {
        let texts = actions.iter().map(|action| action.get().to_owned());
        texts.collect()
    }

    fn ack(json: &str) -> HookAnswer {
        HookAnswer::Ack(Some(Bytes::copy_from_slice(json.as_bytes())))
    }

    #[tokio::test]
    async fn what_gathers_during_a_request_goes_into_the_next_in_order() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            batch: 3,
            ..config(&endpoint.url)
        });
        let _ = hooks.send(event("0", 7));
        let first = endpoint.next().await;
        assert_eq!(first.events(), [0]);
        assert_eq!(first.line, "POST /events?of=1 HTTP/1.1");
        assert_eq!(first.headers["content-type"], "application/json");
        let agent = format!("unisono/{}", proto::VERSION);
        assert_eq!(first.headers["user-agent"], agent);
        for id in ["1", "2", "3", "4", "5"] {
            let _ = hooks.send(event(id, 7));
        }
        first.answer("204 No Content", "");
        let second = endpoint.next().await;
        assert_eq!(second.events(), [1, 2, 3]);
        second.answer("201 Created", " ");
        assert_eq!(endpoint.next().await.events(), [4, 5]);
    }

    #[tokio::test]
    async fn a_request_has_batch_bytes_or_one_event() {
        let mut endpoint = Endpoint::start().await;
        let config = config(&endpoint.url);
        assert_eq!(config.batch_bytes, 1 << 20);
        let hooks = start(&config);
        let large = |id: &str, bytes: usize| HookEvent {
            json: format!("{{\"n\":{id},\"text\":\"{}\"}}", "x".repeat(bytes)).into(),
            ..event(id, 0)
        };
        let _ = hooks.send(event("0", 0));
        let first = endpoint.next().await;
        let _ = hooks.send(large("1", 600 << 10));
        let _ = hooks.send(large("2", 400 << 10));
        let _ = hooks.send(large("3", 2 << 20));
        let _ = hooks.send(event("4", 0));
        first.answer("200 OK", "");
        for events in [&[1, 2][..], &[3], &[4]] {
            let request = endpoint.next().await;
            assert_eq!(request.events(), events);
            request.answer("200 OK", "");
        }

        // `{"events":[{"n":1},{"n":2}]}` has 28 bytes.
        let hooks = start(&config::Hooks {
            batch_bytes: 28,
            ..config
        });
        let _ = hooks.send(event("0", 0));
        let first = endpoint.next().await;
        for id in ["1", "2", "3"] {
            let _ = hooks.send(event(id, 0));
        }
        first.answer("200 OK", "");
        for events in [&[1, 2][..], &[3]] {
            let request = endpoint.next().await;
            assert_eq!(request.events(), events);
            request.answer("200 OK", "");
        }
    }

    /// Hands over a batch of the events 1 to 5, and returns what waits for their answers.
    async fn send_a_batch(
        endpoint: &mut Endpoint,
        hooks: &Hooks,
    ) -> [oneshot::Receiver<HookAnswer>; 5] {
        let _ = hooks.send(event("0", 0));
        let first = endpoint.next().await;
        let answers = ["1", "2", "3", "4", "5"].map(|id| send_waiting(hooks, id));
        first.answer("200 OK", "");
        answers
    }

    #[tokio::test]
    async fn a_batch_that_is_too_large_goes_again_in_halves() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config(&endpoint.url));
        let answers = send_a_batch(&mut endpoint, &hooks).await;
        let mut ids = std::collections::HashSet::new();
        let mut taken = Vec::new();
        // 503: a half has retries as any other request.
        for (status, events) in [
            ("413 No", &[1, 2, 3, 4, 5][..]),
            ("413 No", &[1, 2]),
            ("200 OK", &[1]),
            ("200 OK", &[2]),
            ("503 Not now", &[3, 4, 5]),
            ("413 No", &[3, 4, 5]),
            ("413 No", &[3]),
            ("200 OK", &[4, 5]),
        ] {
            let request = endpoint.next().await;
            assert_eq!(request.events(), events);
            let seconds = request.headers["webhook-timestamp"].parse().unwrap();
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            let signer = Signer::new(SECRET).unwrap();
            for (name, value) in signer.headers(&request.id(), at, &request.body) {
                assert_eq!(request.headers[name], value, "signed by itself");
            }
            ids.insert(request.id());
            if status == "200 OK" {
                taken.extend_from_slice(events);
            }
            request.answer(status, "");
        }
        assert_eq!(taken, [1, 2, 4, 5], "in order, without the one too large");
        assert_eq!(ids.len(), 7, "each half has its own, and keeps it");
        for (nth, answer) in answers.into_iter().enumerate() {
            let expected = match nth {
                2 => HookAnswer::Unavailable("larger than the application takes"),
                _ => HookAnswer::Ack(None),
            };
            assert_eq!(answer.await.unwrap(), expected, "{nth}");
        }
        assert_eq!(hooks.waiting(), 0, "places are given back before answers");
    }

    #[tokio::test]
    async fn an_event_that_is_refused_does_not_cost_the_others() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config(&endpoint.url));
        for status in ["400 No", "422 No"] {
            let answers = send_a_batch(&mut endpoint, &hooks).await;
            let serve = async {
                loop {
                    let request = endpoint.next().await;
                    match request.events().contains(&4) {
                        true => request.answer(status, ""),
                        false => request.answer("200 OK", ""),
                    }
                }
            };
            let answered = futures_util::future::join_all(answers);
            let answers = tokio::select! {
                answers = answered => answers,
                () = serve => unreachable!("it serves for ever"),
            };
            for (nth, answer) in answers.into_iter().enumerate() {
                let taken = answer == Ok(HookAnswer::Ack(None));
                assert_eq!(taken, nth != 3, "{status} {nth}");
            }
        }
    }

    #[tokio::test]
    async fn a_batch_is_not_halved_where_each_event_would_be_refused() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config(&endpoint.url));
        for status in ["401 No", "404 No", "410 No"] {
            let answers = send_a_batch(&mut endpoint, &hooks).await;
            let request = endpoint.next().await;
            assert_eq!(request.events(), [1, 2, 3, 4, 5]);
            request.answer(status, "");
            for answer in answers {
                let refused = "the application refused the request";
                assert_eq!(answer.await.unwrap(), HookAnswer::Unavailable(refused));
            }
        }
    }

    #[tokio::test]
    async fn halves_have_the_time_of_their_batch() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            // Whoever asks for more time than there is gets no other attempt.
            retry_delay_max: Duration::from_secs(7200),
            retry_for: Duration::from_secs(3600),
            ..config(&endpoint.url)
        });
        let answers = send_a_batch(&mut endpoint, &hooks).await;
        endpoint.next().await.answer("413 No", "");
        let half = endpoint.next().await;
        assert_eq!(half.events(), [1, 2]);
        half.answer("503 No\r\nretry-after: 3601", "");
        for answer in answers {
            let unreachable = HookAnswer::Unavailable("the application cannot be reached");
            assert_eq!(answer.await.unwrap(), unreachable);
        }
        let _ = hooks.send(event("6", 0));
        assert_eq!(endpoint.next().await.events(), [6], "nothing is left");
    }

    #[tokio::test]
    async fn a_stuck_lane_does_not_hold_up_another() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            lanes: 2,
            ..config(&endpoint.url)
        });
        let _ = hooks.send(event("0", 0));
        let stuck = endpoint.next().await;
        let _ = hooks.send(event("2", 2));
        for id in ["1", "3"] {
            let _ = hooks.send(event(id, id.parse().unwrap()));
            let request = endpoint.next().await;
            assert_eq!(request.events(), [id.parse::<u64>().unwrap()]);
            request.answer("200 OK", "");
        }
        stuck.answer("200 OK", "");
        assert_eq!(endpoint.next().await.events(), [2]);
    }

    #[tokio::test]
    async fn a_failed_request_is_tried_again_signed_anew_under_its_id() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config(&endpoint.url));
        let answer = send_waiting(&hooks, "0");
        let _ = hooks.send(event("1", 0));
        let mut id = None;
        for status in [
            "500 No",
            "408 No",
            "429 No\r\nretry-after: 60",
            "gone",
            "200",
        ] {
            let request = endpoint.next().await;
            assert_eq!(request.events(), [0, 1]);
            assert_eq!(*id.get_or_insert_with(|| request.id()), request.id());

            let seconds = request.headers["webhook-timestamp"].parse().unwrap();
            let at = UNIX_EPOCH + Duration::from_secs(seconds);
            let now = SystemTime::now();
            assert!(at <= now && at > now - Duration::from_secs(60));
            let signer = Signer::new(SECRET).unwrap();
            for (name, value) in signer.headers(&request.id(), at, &request.body) {
                assert_eq!(request.headers[name], value);
            }
            match status {
                "gone" => drop(request),
                "200" => request.ok(&json!({"answers": {"0": {"ack": "at last"}}})),
                status => request.answer(status, "sorry"),
            }
        }
        assert_eq!(answer.await.unwrap(), ack("\"at last\""));
        let _ = hooks.send(event("2", 0));
        let next = endpoint.next().await;
        assert_eq!(next.events(), [2]);
        assert_ne!(Some(next.id()), id);
    }

    #[tokio::test]
    async fn what_is_refused_is_not_tried_again() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config(&endpoint.url));
        for status in ["404 No", "400 No", "302 No\r\nlocation: /elsewhere"] {
            let answer = send_waiting(&hooks, "0");
            endpoint.next().await.answer(status, "");
            let refused = "the application refused the request";
            assert_eq!(answer.await.unwrap(), HookAnswer::Unavailable(refused));
        }
        let _ = hooks.send(event("1", 0));
        assert_eq!(endpoint.next().await.events(), [1]);
    }

    #[tokio::test]
    async fn what_fails_for_too_long_is_given_up() {
        let unreachable = HookAnswer::Unavailable("the application cannot be reached");
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            retry_delay_max: Duration::from_secs(7200),
            retry_for: Duration::from_secs(3600),
            ..config(&endpoint.url)
        });
        let answer = send_waiting(&hooks, "0");
        endpoint.next().await.answer("503 Not now", "");
        let again = endpoint.next().await;
        again.answer("503 Not before it is over\r\nretry-after: 3601", "");
        assert_eq!(answer.await.unwrap(), unreachable);

        let silent = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            timeout: Duration::from_millis(50),
            retry_for: Duration::ZERO,
            ..config(&silent.url)
        });
        assert_eq!(send_waiting(&hooks, "0").await.unwrap(), unreachable);
    }

    #[tokio::test]
    async fn nonsense_is_no_reason_to_send_again() {
        let nonsense = HookAnswer::Failed("the application answered with nonsense".to_owned());
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config(&endpoint.url));
        let huge = vec![b' '; 10 << 20];
        let endless = [b"HTTP/1.1 200 OK\r\n\r\n", &huge[..]].concat();
        let half = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nrubbish";
        for nth in 0..4 {
            let answer = send_waiting(&hooks, "0");
            let request = endpoint.next().await;
            match nth {
                0 => request.answer("200 OK", "<h1>It works!</h1>"),
                1 => request.answer("200 OK", &huge),
                2 => request.raw(endless.clone()),
                _ => request.raw(half.to_vec()),
            }
            assert_eq!(answer.await.unwrap(), nonsense, "{nth}");
        }
        let _ = hooks.send(event("1", 0));
        assert_eq!(endpoint.next().await.events(), [1]);
    }

    #[tokio::test]
    async fn actions_come_in_order_and_before_the_answers() {
        let mut endpoint = Endpoint::start().await;
        let (sender, mut acts) = mpsc::unbounded_channel();
        let act = move |actions: Actions| {
            let (done, wait) = oneshot::channel::<()>();
            sender.send((actions, done)).unwrap();
            wait.map(drop).boxed()
        };
        let config = config(&endpoint.url);
        let hooks = Hooks::start(&config, signer(), &Handle::current(), act);
        let hooks = hooks.unwrap().expect("there is a URL");

        let mut answers = ["0", "1", "2"].map(|id| send_waiting(&hooks, id));
        let actions = [
            json!({"emit": {"to": ["a"]}}),
            json!({"publish": {"room": "/r"}}),
        ];
        endpoint.next().await.ok(&json!({
            "answers": {"0": {"ack": {"a": [1]}}, "1": {"error": "no"}},
            "actions": actions,
        }));
        let (acted, done) = acts.recv().await.unwrap();
        assert_eq!(texts(&acted), actions.map(|action| action.to_string()));
        assert!(answers[0].try_recv().is_err(), "not before it is done");
        done.send(()).unwrap();
        let [first, second, third] = answers;
        assert_eq!(first.await.unwrap(), ack(r#"{"a":[1]}"#));
        let failed = HookAnswer::Failed("no".to_owned());
        assert_eq!(second.await.unwrap(), failed);
        assert_eq!(third.await.unwrap(), HookAnswer::Ack(None));

        let _ = hooks.send(event("3", 0));
        let many: Vec<_> = (0..1001).map(|n| json!({"emit": n})).collect();
        endpoint.next().await.ok(&json!({"actions": many}));
        let (acted, _) = acts.recv().await.unwrap();
        assert_eq!(acted.len(), 1000);
        assert_eq!(acted[999].get(), r#"{"emit":999}"#);
    }

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_and_told_so() {
        let overloaded = HookAnswer::Unavailable(OVERLOADED);
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            queue: 2,
            queue_bytes: 30,
            ..config(&endpoint.url)
        });
        let first = send_waiting(&hooks, "0");
        let request = endpoint.next().await;
        let second = send_waiting(&hooks, "1");
        let mut third = send_waiting(&hooks, "2");
        assert_eq!(third.try_recv(), Ok(overloaded.clone()), "two are there");
        request.answer("200 OK", "");
        assert_eq!(first.await.unwrap(), HookAnswer::Ack(None));

        let (event, mut large) = event_waiting("3", 0);
        let json = Bytes::from_static(b"{\"n\":3,\"text\":\"xxxxxxxxx\"}");
        let _ = hooks.send(HookEvent { json, ..event });
        assert_eq!(large.try_recv(), Ok(overloaded), "27 bytes and 7");
        let fourth = send_waiting(&hooks, "4");
        for (id, answer) in [(1, second), (4, fourth)] {
            let request = endpoint.next().await;
            assert_eq!(request.events(), [id]);
            request.answer("200 OK", "");
            assert_eq!(answer.await.unwrap(), HookAnswer::Ack(None));
        }
    }

    #[tokio::test]
    async fn no_client_crowds_out_the_others() {
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            queue: 16,
            lanes: 2,
            ..config(&endpoint.url)
        });
        let from_client = |key| HookEvent {
            from_client: true,
            ..event("1", key)
        };
        let sent = |key| {
            (0..20)
                .filter(|_| hooks.send(from_client(key)).is_ok())
                .count()
        };
        let _ = hooks.send(event("0", 0));
        let first = endpoint.next().await;
        assert_eq!(sent(0), 8, "its lane's share");
        assert_eq!(sent(1), 4, "what is for clients");
        let told = (0..20)
            .filter(|_| hooks.send(event("2", 0)).is_ok())
            .count();
        assert_eq!(told, 3, "the rest is for what no client wanted");
        first.answer("200 OK", "");
    }

    #[tokio::test]
    async fn what_becomes_of_events_is_counted() {
        // Everything of this test runs on its thread.
        let recorder = PrometheusBuilder::new().build_recorder();
        let _guard = metrics::set_default_local_recorder(&recorder);
        let mut endpoint = Endpoint::start().await;
        let hooks = start(&config::Hooks {
            queue: 1,
            ..config(&endpoint.url)
        });
        for reply in ["500 No", "200 OK", "404 No"] {
            let answer = send_waiting(&hooks, "0");
            let request = endpoint.next().await;
            let _ = hooks.send(event("1", 0));
            request.answer(reply, "nonsense");
            if reply == "500 No" {
                endpoint.next().await.answer("200 OK", "");
            }
            answer.await.unwrap();
        }
        let text = recorder.handle().render();
        for line in [
            "unisono_hook_events_total{result=\"delivered\"} 2",
            "unisono_hook_events_total{result=\"dropped\"} 3",
            "unisono_hook_events_total{result=\"failed\"} 1",
            "unisono_hook_requests_total{result=\"ok\"} 2",
            "unisono_hook_requests_total{result=\"error\"} 2",
            "unisono_hook_request_seconds_count 4",
            "unisono_hook_answers_refused_total 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[tokio::test]
    async fn without_a_url_there_are_no_hooks() {
        let start = |config: &config::Hooks| {
            let act = |_| async {}.boxed();
            Hooks::start(config, None, &Handle::current(), act)
        };
        assert!(start(&config("")).unwrap().is_none());
        assert!(start(&config("http://localhost/")).is_err(), "unsigned");
    }
}
