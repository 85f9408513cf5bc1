//! A collector of OpenTelemetry that keeps what it is sent.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use serde_json::{Value, json};

use crate::{Endpoint, Reply, Request, eventually};

/// Takes spans as OTLP over HTTP, read with the types of the OpenTelemetry project.
#[derive(Debug)]
pub struct Collector {
    endpoint: Endpoint,
}

/// A span, as the collector got it.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The trace, in hexadecimal digits.
    pub trace: String,
    /// The span.
    pub id: String,
    /// The span that it is part of; empty where there is none.
    pub parent: String,
    /// What it is called.
    pub name: String,
    /// What is said about it.
    pub attributes: BTreeMap<String, Value>,
    /// What is said about whose it is.
    pub resource: BTreeMap<String, Value>,
    /// Whether it failed.
    pub failed: bool,
    /// How long it took, in nanoseconds.
    pub nanos: u64,
}

// === impl Collector ===

impl Collector {
    /// A collector that takes everything.
    pub async fn start() -> Self {
        Self::answering(Reply::taken()).await
    }

    /// A collector that always answers so.
    pub async fn answering(reply: Reply) -> Self {
        let endpoint = Endpoint::start(move |_| reply.clone()).await;
        Self { endpoint }
    }

    /// The section `[tracing]` of a node that sends here at once, with these lines more.
    pub fn toml(&self, lines: &str) -> String {
        let base = self.endpoint.base();
        format!("[tracing]\nendpoint = \"{base}\"\ndelay = \"20ms\"\n{lines}\n")
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.endpoint.requests()
    }

    /// The spans so far, in the order of their coming.
    pub fn spans(&self) -> Vec<Span> {
        let requests = self.requests();
        requests.iter().flat_map(spans).collect()
    }

    /// Waits for so many spans of these names, whatever others there are.
    pub async fn expect(&self, name: &str, count: usize) -> Vec<Span> {
        eventually("the spans are there", async || {
            let all = self.spans();
            let found: Vec<_> = all
                .iter()
                .filter(|span| span.name == name)
                .cloned()
                .collect();
            if found.len() == count {
                Ok(found)
            } else {
                Err(all)
            }
        })
        .await
    }

    /// Waits for the one span of that name.
    pub async fn expect_one(&self, name: &str) -> Span {
        self.expect(name, 1).await.remove(0)
    }
}

// === impl Span ===

impl Span {
    /// The id of the node that it is of.
    pub fn node(&self) -> &str {
        self.resource["service.instance.id"]
            .as_str()
            .unwrap_or_default()
    }

    /// How many sockets it reached.
    pub fn sockets(&self) -> u64 {
        self.attributes["unisono.sockets"]
            .as_u64()
            .unwrap_or_default()
    }
}

fn spans(request: &Request) -> Vec<Span> {
    let message = ExportTraceServiceRequest::decode(&request.bytes[..]);
    let mut spans = Vec::new();
    for of_resource in message.expect("a request of OTLP").resource_spans {
        let resource = of_resource.resource.unwrap_or_default().attributes;
        let resource = attributes(resource);
        let of_scopes = of_resource.scope_spans.into_iter();
        spans.extend(of_scopes.flat_map(|scope| scope.spans).map(|span| Span {
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            name: span.name,
            attributes: attributes(span.attributes),
            resource: resource.clone(),
            failed: span.status.is_some_and(|status| status.code == 2),
            nanos: span.end_time_unix_nano - span.start_time_unix_nano,
        }));
    }
    spans
}

fn attributes(pairs: Vec<KeyValue>) -> BTreeMap<String, Value> {
    let value = |value: Option<AnyValue>| match value.and_then(|value| value.value) {
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::IntValue(number)) => json!(number),
        other => panic!("no attribute of this program: {other:?}"),
    };
    let pairs = pairs.into_iter();
    pairs.map(|pair| (pair.key, value(pair.value))).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
