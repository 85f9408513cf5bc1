//! Spans of what is sampled, for a collector of OpenTelemetry: docs/tracing.md says which there are. This is the only file
//! that knows OpenTelemetry.
//!
//! A span is made where the work begins, and ends when it is dropped: then it goes into a bounded queue, which the
//! outside thread empties. Where nothing is traced, or something is not sampled, there is no span, and no more than an
//! `Option` to look at.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags,
    TraceId, TraceState, Tracer, TracerProvider,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue, Value};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    Sampler, SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter as _,
    SpanLimits, SpanProcessor,
};
use proto::envelope::{Answer, Status as Delivered, TraceContext};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::config;
use crate::fetch;
use crate::seldom::Seldom;
use crate::textfile;

/// Where spans begin, if anything is traced.
pub struct Traces(Option<Active>);

/// A piece of work, under way until this is dropped.
#[derive(Debug)]
pub struct Span(Box<SdkSpan>);

/// What a piece of work is part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parent {
    /// Nothing: chance decides whether it is sampled.
    #[default]
    None,
    /// Something that is not sampled, and so this is not.
    Unsampled,
    /// A span of this node.
    Here(TraceContext),
    /// A span of another node, or of the application.
    Elsewhere(TraceContext),
}

/// The kinds of work that have spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A request of the API.
    Request,
    /// A publication, from where it comes into the cluster to where it has left the node.
    Publish,
    /// The same, to everybody.
    Broadcast,
    /// An emit, until all answers are there.
    Emit,
    /// The way of a publication through the queue to NATS.
    Bus,
    /// The way of a publication or an emit into the queues of a node's sockets.
    Deliver,
}

/// Who makes the spans.
pub struct Identity<'a> {
    /// The id of the node.
    pub node: String,
    /// Its name for people.
    pub name: &'a str,
}

struct Active {
    tracer: SdkTracer,
    sample_ratio: f64,
    waiting: mpsc::Sender<Waiting>,
}

#[expect(clippy::large_enum_variant, reason = "nearly all of them are spans")]
enum Waiting {
    Span(SpanData),
    /// Somebody wants to know when everything before this is sent, or given up.
    Flush(oneshot::Sender<()>),
}

const SPANS: &str = "unisono_spans_total";

// === impl Traces ===

impl Traces {
    /// Begins to send spans from the outside thread, where an endpoint is configured.
    ///
    /// # Errors
    ///
    /// When the file of headers cannot be read, or makes no sense.
    pub fn start(
        config: &config::Tracing,
        identity: &Identity<'_>,
        outside: &Handle,
    ) -> anyhow::Result<Self> {
        if config.endpoint.is_empty() {
            return Ok(Self(None));
        }
        let endpoint = format!("{}/v1/traces", config.endpoint.trim_end_matches('/'));
        let resource = Resource::builder_empty()
            .with_service_name(config.service_name.clone())
            .with_attributes([
                KeyValue::new("service.version", proto::VERSION),
                KeyValue::new("service.instance.id", identity.node.clone()),
                KeyValue::new("unisono.node.name", identity.name.to_owned()),
            ])
            .build();
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(fetch::client(&endpoint).context("tracing.endpoint")?)
            .with_headers(headers(&config.headers_file)?)
            .with_endpoint(endpoint)
            .with_timeout(config.timeout)
            .build()
            .context("tracing.endpoint")?;
        exporter.set_resource(&resource);
        let (waiting, queue) = mpsc::channel(config.queue);
        outside.spawn(export(exporter, queue, config.clone()));
        // Everything is said here, so that no variable that other programs read changes it.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_span_limits(SpanLimits::default())
            .with_span_processor(Queue {
                waiting: waiting.clone(),
                losses: Seldom::new(),
            })
            .build();
        let scope = InstrumentationScope::builder("unisono")
            .with_version(proto::VERSION)
            .build();
        info!(
            sample_ratio = config.sample_ratio,
            "traces are sent to tracing.endpoint"
        );
        Ok(Self(Some(Active {
            tracer: provider.tracer_with_scope(scope),
            sample_ratio: config.sample_ratio,
            waiting,
        })))
    }

    /// Whether there is anything to trace for.
    pub fn on(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a span, where the work is sampled.
    pub fn begin(&self, work: Work, parent: Parent) -> Option<Span> {
        let Active {
            tracer,
            sample_ratio,
            ..
        } = self.0.as_ref()?;
        let (within, remote) = match parent {
            Parent::Unsampled => return None,
            Parent::None if rand::random::<f64>() >= *sample_ratio => return None,
            Parent::None => (None, false),
            Parent::Here(within) => (Some(within), false),
            Parent::Elsewhere(within) => (Some(within), true),
        };
        let mut context = Context::new();
        if let Some(TraceContext { trace_id, span_id }) = within {
            context = context.with_remote_span_context(SpanContext::new(
                TraceId::from_bytes(trace_id),
                SpanId::from_bytes(span_id),
                TraceFlags::SAMPLED,
                remote,
                TraceState::NONE,
            ));
        }
        let span = SpanBuilder::from_name(work.name()).with_kind(work.kind());
        Some(Span(Box::new(tracer.build_with_context(span, &context))))
    }

    /// Waits until what has ended by now is sent, or given up.
    pub async fn flush(&self) {
        if let Some(active) = &self.0 {
            let (done, flushed) = oneshot::channel();
            let _ = active.waiting.send(Waiting::Flush(done)).await;
            let _ = flushed.await;
        }
    }
}

impl Work {
    fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Publish => "publish",
            Self::Broadcast => "broadcast",
            Self::Emit => "emit",
            Self::Bus => "bus publish",
            Self::Deliver => "deliver",
        }
    }

    fn kind(self) -> SpanKind {
        match self {
            Self::Request => SpanKind::Server,
            Self::Publish | Self::Broadcast | Self::Emit => SpanKind::Internal,
            Self::Bus => SpanKind::Producer,
            Self::Deliver => SpanKind::Consumer,
        }
    }
}

// === impl Parent ===

impl Parent {
    /// What a `traceparent` says (W3C Trace Context). One that makes no sense says nothing.
    pub fn read(traceparent: Option<&str>) -> Self {
        let Some(header) = traceparent else {
            return Self::None;
        };
        let context = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &Traceparent(header));
        let span = context.span();
        match span.span_context() {
            found if !found.is_valid() => Self::None,
            found if found.is_sampled() => Self::Elsewhere(place(found)),
            _ => Self::Unsampled,
        }
    }

    /// A span of this node, or the lack of one where it was decided.
    pub fn of(span: Option<&Span>) -> Self {
        span.map_or(Self::Unsampled, |span| Self::Here(span.place()))
    }
}

struct Traceparent<'a>(&'a str);

impl Extractor for Traceparent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == "traceparent").then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

fn place(context: &SpanContext) -> TraceContext {
    TraceContext {
        trace_id: context.trace_id().to_bytes(),
        span_id: context.span_id().to_bytes(),
    }
}

// === impl Span ===

impl Span {
    /// Its place in the trace, for what is part of it.
    pub fn place(&self) -> TraceContext {
        place(self.0.span_context())
    }

    /// Says something about it. What users chose, and what they sent, is never said.
    pub fn say(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.set_attribute(KeyValue::new(name, value));
    }

    /// Names it.
    pub fn rename(&mut self, name: String) {
        self.0.update_name(name);
    }

    /// It failed, by a fault of this side.
    pub fn fail(&mut self) {
        self.0.set_status(Status::error(""));
    }

    /// Sockets were reached.
    pub fn reached(&mut self, sockets: u64) {
        self.say(
            "unisono.sockets",
            i64::try_from(sockets).unwrap_or(i64::MAX),
        );
    }

    /// It lasts until the answer is there, which says how many sockets were reached.
    pub async fn until(span: Option<Self>, answer: impl Future<Output = Answer>) -> Answer {
        let answer = answer.await;
        if let Some(mut span) = span {
            span.reached(match &answer {
                Answer::Count(count) => *count,
                Answer::Statuses(statuses) => delivered(statuses),
                _ => 0,
            });
        }
        answer
    }
}

/// How many of them say so.
pub fn delivered<T>(statuses: &[(T, Delivered)]) -> u64 {
    let delivered = |(_, status): &&(T, Delivered)| *status == Delivered::Delivered;
    statuses.iter().filter(delivered).count() as u64
}

// === on the way to the collector ===

/// Takes spans that have ended, wherever that is, and waits for nobody.
#[derive(Debug)]
struct Queue {
    waiting: mpsc::Sender<Waiting>,
    losses: Seldom,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.waiting.try_send(Waiting::Span(span)).is_err() {
            count("dropped", 1);
            if let Some(spans) = self.losses.add(Instant::now(), 1) {
                warn!(spans, "too many spans wait: these are dropped");
            }
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// Sends what waits, one batch after the other. One that is not taken in time is lost: the next may have better luck,
/// and what waits meanwhile has a bound.
async fn export(
    exporter: SpanExporter,
    mut queue: mpsc::Receiver<Waiting>,
    config: config::Tracing,
) {
    let failures = Seldom::new();
    while let Some(first) = queue.recv().await {
        let mut batch = Vec::new();
        let mut flush = None;
        let deadline = Instant::now() + config.delay;
        let mut next = Some(first);
        while let Some(waiting) = next {
            match waiting {
                Waiting::Span(span) => batch.push(span),
                Waiting::Flush(done) => {
                    flush = Some(done);
                    break;
                }
            }
            if batch.len() >= config.batch {
                break;
            }
            next = timeout_at(deadline, queue.recv()).await.unwrap_or(None);
        }
        let spans = batch.len() as u64;
        if spans > 0 {
            // The exporter's own timeout ends its retries, and no attempt.
            match timeout(config.timeout, exporter.export(batch)).await {
                Ok(Ok(())) => count("sent", spans),
                failed => {
                    count("failed", spans);
                    let error = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    if let Some(spans) = failures.add(Instant::now(), spans as usize) {
                        warn!(
                            spans,
                            error, "the collector did not take spans: these are lost"
                        );
                    }
                }
            }
        }
        if let Some(done) = flush {
            let _ = done.send(());
        }
    }
}

fn count(result: &'static str, spans: u64) {
    metrics::counter!(SPANS, "result" => result).increment(spans);
}

/// The lines of a file of headers.
fn headers(file: &Path) -> anyhow::Result<HashMap<String, String>> {
    if file.as_os_str().is_empty() {
        return Ok(HashMap::new());
    }
    let text = textfile::read(file);
    let text = text.with_context(|| format!("cannot read {}", file.display()))?;
    let mut headers = HashMap::new();
    for (line, number) in text
        .lines()
        .zip(1..)
        .filter(|(line, _)| !line.trim().is_empty())
    {
        let (name, value) = header(line).with_context(|| {
            // Without the line itself, which may hold a secret.
            format!(
                "{}: line {number} is no header `name: value`",
                file.display()
            )
        })?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn header(line: &str) -> Option<(String, String)> {
    use reqwest::header::{HeaderName, HeaderValue};
    let (name, value) = line.split_once(':')?;
    let (name, value) = (name.trim(), value.trim());
    HeaderName::from_bytes(name.as_bytes()).ok()?;
    HeaderValue::from_str(value).ok()?;
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_followed_where_it_says_so() {
        let Parent::Elsewhere(place) = Parent::read(Some(SAMPLED)) else {
            panic!("sampled");
        };
        assert_eq!(place.trace_id[..2], [0x0a, 0xf7]);
        assert_eq!(place.span_id[..2], [0xb7, 0xad]);
        let unsampled = format!("{}00", &SAMPLED[..SAMPLED.len() - 2]);
        assert_eq!(Parent::read(Some(&unsampled)), Parent::Unsampled);
        for nonsense in ["", "00", &SAMPLED[3..], &SAMPLED.replace('0', "g"), "ü"] {
            assert_eq!(Parent::read(Some(nonsense)), Parent::None, "{nonsense}");
        }
        assert_eq!(Parent::read(None), Parent::None);
    }

    #[test]
    fn a_file_of_headers_has_one_on_each_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("headers");
        std::fs::write(&file, "x-api-key: a: b \n\nAuthorization:Bearer c\n").unwrap();
        let read = headers(&file).unwrap();
        assert_eq!(read["x-api-key"], "a: b");
        assert_eq!(read["Authorization"], "Bearer c");
        for secret in [
            "my-secret",
            "my secret: x",
            ": my-secret",
            "x: my-\u{7}secret",
        ] {
            std::fs::write(&file, format!("x: y\n{secret}\n")).unwrap();
            let error = format!("{:#}", headers(&file).unwrap_err());
            assert!(error.contains("line 2"), "{error}");
            assert!(!error.contains("my"), "{error}");
        }
        assert!(headers(Path::new("")).unwrap().is_empty());
        assert!(headers(&folder.path().join("none")).is_err());
    }

    #[test]
    fn where_nothing_is_traced_there_is_no_span() {
        let off = Traces(None);
        let place = TraceContext {
            trace_id: [1; 16],
            span_id: [2; 8],
        };
        assert!(off.begin(Work::Publish, Parent::Here(place)).is_none());
        assert_eq!(Parent::of(None), Parent::Unsampled);
    }

    #[test]
    fn a_span_costs_a_publication_a_pointer() {
        assert_eq!(size_of::<Option<Span>>(), size_of::<usize>());
        assert_eq!(size_of::<Option<Box<TraceContext>>>(), size_of::<usize>());
    }
}
