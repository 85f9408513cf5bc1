//! The spans of requests, by HTTP and by NATS.

use std::future::{Ready, ready};

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{FromRequest, HttpMessage, HttpRequest, web};

use super::{ApiError, ApiResult};
use crate::trace::{Parent, Span, Work};
use crate::unisono::Unisono;

/// The methods that are told. Others are whatever their sender wrote.
const METHODS: [Method; 3] = [Method::GET, Method::HEAD, Method::POST];

/// The same of verbs, which stand in a subject of NATS.
const VERBS: [&str; 6] = [
    "emit",
    "publish",
    "broadcast",
    "disconnect",
    "join",
    "leave",
];

/// The node, as a request asks it: what is sent for it is part of its span.
pub(super) struct Asked(pub(super) Unisono);

impl FromRequest for Asked {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let unisono = request.app_data::<web::Data<Unisono>>();
        let parent = request.extensions().get::<Parent>().copied();
        let asked = unisono.map(|unisono| {
            Self(Unisono {
                parent: parent.unwrap_or_default(),
                ..Unisono::clone(unisono)
            })
        });
        ready(asked.ok_or_else(|| ApiError::unavailable("the node is not there yet")))
    }
}

/// A span around the request, where it is sampled.
pub(super) async fn around(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let mut span = begin(&request);
    let response = next.call(request).await;
    if let Some(span) = &mut span {
        let status = match &response {
            Ok(response) => response.status(),
            Err(error) => error.as_response_error().status_code(),
        };
        span.say("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.fail();
        }
    }
    response
}

/// The route tells which request it is: a path may hold an id, and a query anything.
fn begin(request: &ServiceRequest) -> Option<Span> {
    let traces = &request.app_data::<web::Data<Unisono>>()?.shared.traces;
    if !traces.on() {
        return None;
    }
    let traceparent = request.headers().get("traceparent");
    let parent = Parent::read(traceparent.and_then(|value| value.to_str().ok()));
    let span = traces.begin(Work::Request, parent);
    request.extensions_mut().insert(Parent::of(span.as_ref()));
    let mut span = span?;
    let method = match request.method() {
        method if METHODS.contains(method) => method.as_str(),
        _ => "_OTHER",
    };
    span.say("http.request.method", method.to_owned());
    match request.match_pattern() {
        Some(route) => {
            span.rename(format!("{method} {route}"));
            span.say("http.route", route);
        }
        None => span.rename(method.to_owned()),
    }
    Some(span)
}

/// What became of a request that came by NATS.
pub(super) fn over_nats(span: &mut Span, verb: &str, done: &ApiResult) {
    let verb = VERBS.iter().find(|known| **known == verb);
    let verb = verb.copied().unwrap_or("unknown");
    span.rename(format!("unisono.api.{verb}"));
    span.say("messaging.system", "nats");
    if let Err(error) = done {
        span.say("error.type", error.code);
        if error.status >= StatusCode::INTERNAL_SERVER_ERROR {
            span.fail();
        }
    }
}
