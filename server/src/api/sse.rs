//! Event streams (server-sent events): `GET` of a room's path by whoever accepts one.

use std::rc::Rc;

use actix_web::http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL,
    CONTENT_TYPE, ORIGIN, VARY,
};
use actix_web::http::{StatusCode, Version};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, Resource, guard, web};
use proto::RoomName;
use serde_json::json;

use crate::admission::admit;
use crate::delivery::Wire;
use crate::door::Place;
use crate::handshake::Handshake;
use crate::meters;
use crate::session::EventStream;
use crate::websocket::handshake::Refusal;
use crate::worker::Worker;

/// Takes any path, of those who accept an event stream.
pub(super) fn resource() -> Resource {
    web::resource("/{path:.*}")
        .guard(guard::Get())
        .guard(guard::fn_guard(|request| {
            let accept = request.head().headers.get_all(ACCEPT);
            accept
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(','))
                .any(is_event_stream)
        }))
        .to(stream)
}

/// One entry of an `Accept`. A weight of nothing is a no (RFC 9110 §12.4.2).
fn is_event_stream(kind: &str) -> bool {
    let mut parts = kind.split(';').map(str::trim);
    let named = parts
        .next()
        .is_some_and(|kind| kind.eq_ignore_ascii_case("text/event-stream"));
    let refused = |part: &str| match part.split_once('=') {
        Some((name, weight)) => name.eq_ignore_ascii_case("q") && weight.parse() == Ok(0.0),
        None => false,
    };
    named && !parts.any(refused)
}

async fn stream(request: HttpRequest) -> HttpResponse {
    let (Some(worker), Some(peer), Some(place)) = (
        request.app_data::<Rc<Worker>>(),
        request.peer_addr(),
        request.conn_data::<Rc<Place>>(),
    ) else {
        return HttpResponse::InternalServerError().finish();
    };
    let room = match RoomName::from_path(request.uri().path()) {
        Ok(room) => room,
        Err(error) => {
            let refusal = Refusal::of("400 Bad Request", "bad_room", &error.to_string());
            meters::refused(&refusal.status);
            return refuse(&request, &refusal);
        }
    };
    let handshake = Handshake {
        room,
        query: request.query_string().to_owned(),
        headers: request.headers().clone(),
        peer,
        user: None,
        parameters: Vec::new(),
    };
    let admitted = match admit(&worker.shared, Wire::EventStream, handshake).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(&request, &refusal),
    };
    let body = EventStream::start_on(Rc::clone(worker), admitted, Rc::clone(place));
    let mut response = HttpResponse::Ok();
    let mut response = allow_origin(&request, &mut response)
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        // nginx would gather events before it passes them on.
        .insert_header(("X-Accel-Buffering", "no"))
        .force_close()
        .body(body);
    if request.version() < Version::HTTP_11 {
        // Such a client knows no chunks: the end of the connection is the end of the body.
        response.head_mut().no_chunking(true);
    }
    response.map_into_boxed_body()
}

fn refuse(request: &HttpRequest, refusal: &Refusal) -> HttpResponse {
    let status = refusal.status.get(..3).and_then(|code| code.parse().ok());
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = HttpResponse::build(status.unwrap_or(StatusCode::FORBIDDEN));
    if let Some((name, value)) = refusal.header.split_once(": ") {
        response.insert_header((name, value.trim()));
    }
    allow_origin(request, &mut response)
        .json(json!({"error": {"code": refusal.code, "message": refusal.message}}))
}

/// A browser shows an answer to a page of another origin only where it is told to: to those of `auth.origins`, or
/// to any, where none are listed.
fn allow_origin<'a>(
    request: &HttpRequest,
    response: &'a mut HttpResponseBuilder,
) -> &'a mut HttpResponseBuilder {
    let worker = request.app_data::<Rc<Worker>>();
    let shared = worker.map(|worker| &worker.shared);
    let open = shared.is_none_or(|shared| shared.config.auth.origins.is_empty());
    if let Some(origin) = request.headers().get(ORIGIN) {
        response.insert_header((VARY, "Origin"));
        if open {
            response.insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()));
        } else if shared.is_some_and(|shared| shared.auth.lists(origin.as_bytes())) {
            response
                .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()))
                .insert_header((ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"));
        }
    }
    response
}
