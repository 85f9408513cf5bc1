//! Event streams (server-sent events): `GET` of a room's path by whoever accepts one.

use std::rc::Rc;

use actix_web::http::StatusCode;
use actix_web::http::header::{
    ACCEPT, ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL,
    CONTENT_TYPE, ORIGIN, RETRY_AFTER, VARY,
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, Resource, guard, web};
use proto::RoomName;
use serde_json::json;

use crate::admission::admit;
use crate::door::Place;
use crate::handshake::Handshake;
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
                .any(|kind| {
                    kind.split(';').next().unwrap_or_default().trim() == "text/event-stream"
                })
        }))
        .to(stream)
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
            return refuse(&request, &refusal);
        }
    };
    let handshake = Handshake {
        room,
        query: request.query_string().to_owned(),
        headers: request.headers().clone(),
        peer,
        user: None,
    };
    let admitted = match admit(&worker.shared, handshake).await {
        Ok(admitted) => admitted,
        Err(refusal) => return refuse(&request, &refusal),
    };
    let body = EventStream::start_on(Rc::clone(worker), admitted, Rc::clone(place));
    let mut response = HttpResponse::Ok();
    allow_origin(&request, &mut response)
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        // nginx would gather events before it passes them on.
        .insert_header(("X-Accel-Buffering", "no"))
        .force_close()
        .body(body)
}

fn refuse(request: &HttpRequest, refusal: &Refusal) -> HttpResponse {
    let status = refusal.status.get(..3).and_then(|code| code.parse().ok());
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    let mut response = HttpResponse::build(status.unwrap_or(StatusCode::FORBIDDEN));
    if let Some((_, seconds)) = refusal.header.split_once("Retry-After: ") {
        response.insert_header((RETRY_AFTER, seconds.trim()));
    }
    allow_origin(request, &mut response)
        .json(json!({"error": {"code": refusal.code, "message": refusal.message}}))
}

/// A browser gives an event stream to a page of another origin only where it is told to. Those that may not have
/// been refused by now, as they are at a WebSocket.
fn allow_origin<'a>(
    request: &HttpRequest,
    response: &'a mut HttpResponseBuilder,
) -> &'a mut HttpResponseBuilder {
    if let Some(origin) = request.headers().get(ORIGIN) {
        response
            .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()))
            .insert_header((VARY, "Origin"));
        let worker = request.app_data::<Rc<Worker>>();
        let listed = worker.is_some_and(|worker| !worker.shared.config.auth.origins.is_empty());
        if listed {
            response.insert_header((ACCESS_CONTROL_ALLOW_CREDENTIALS, "true"));
        }
    }
    response
}
