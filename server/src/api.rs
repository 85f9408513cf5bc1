//! The HTTP API, the probes, and the chat page, on actix-web.

mod access;
mod body;
mod keys;
mod leaving;
mod span;
mod sse;
mod tail;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::Payload;
use actix_web::dev::{ServiceFactory, ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, WWW_AUTHENTICATE,
};
use actix_web::{
    App, FromRequest, HttpRequest, HttpResponse, Resource, ResponseError, Route, guard, web,
};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use cluster::{CallError, LinkState, Sent, Unreadable};
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use proto::client::from_object;
use proto::envelope::{Act, Request, RoomsQuery, SocketsQuery, Status, Target};
use proto::{Audience, NodeId, RoomName, SocketId, UserName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::config::Scope;
use crate::hooks::Actions;
use crate::node::Pulse;
use crate::seldom::Seldom;
use crate::trace::Span;
use crate::unisono::{Nodes, PublishError, Unisono};
use crate::worker::Worker;
use access::Asker;
use body::{Broadcast, Disconnect, Drain, Emit, Membership, Publish, Whom};
use span::Asked;

pub use keys::Keys;

/// An answer that is an error.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

const CHAT_PAGE: &str = include_str!("chat.html");

/// The application of one worker: for the public or for administrators, with or without `/metrics`.
pub fn app(
    worker: Rc<Worker>,
    public: bool,
    metrics: bool,
) -> App<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse<impl MessageBody>,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    let api = web::scope("/api/v1")
        .wrap(actix_web::middleware::from_fn(span::around))
        // What is wrapped last comes first: strangers begin no traces.
        .wrap(actix_web::middleware::from_fn(access::authenticate))
        .service(may(Scope::Send, "/emit", web::post().to(emit)))
        .service(may(Scope::Send, "/publish", web::post().to(publish)))
        .service(may(Scope::Send, "/broadcast", web::post().to(broadcast)))
        .service(may(Scope::Admin, "/disconnect", web::post().to(disconnect)))
        .service(may(Scope::Send, "/join", web::post().to(join)))
        .service(may(Scope::Send, "/leave", web::post().to(leave)))
        .service(may(Scope::Admin, "/drain", web::post().to(drain)))
        // Each verb of a batch is looked at by itself.
        .service(at("/batch", web::post().to(batch)))
        .service(may(Scope::Read, "/sockets/{id}", reading().to(socket)))
        .service(may(Scope::Read, "/rooms", reading().to(rooms)))
        .service(may(
            Scope::Read,
            "/rooms/sockets",
            reading().to(room_sockets),
        ))
        .service(may(Scope::Read, "/nodes", reading().to(nodes)))
        .service(may(Scope::Read, "/tail", reading().to(tail::tail)))
        .default_service(web::to(no_such_path));
    let body_bytes_max = worker.shared.config.api.body_bytes;
    App::new()
        .app_data(web::Data::new(worker.unisono.clone()))
        .app_data(web::PayloadConfig::new(body_bytes_max))
        .service(api)
        .configure(|config| {
            if public {
                worker.shared.routes.configure(config);
                config.service(sse::resource());
            }
        })
        .app_data(worker)
        .wrap(actix_web::middleware::from_fn(leaving::watch))
        .service(at("/", reading().to(chat_page)))
        .service(at("/health/live", reading().to(live)))
        .service(at("/health/ready", reading().to(ready)))
        .configure(|config| {
            let route = reading().to(metrics_text);
            match (metrics, public) {
                (false, _) => {}
                // Clients reach this port, too.
                (true, true) => {
                    let keyed = may(Scope::Read, "/metrics", route);
                    let authenticate = actix_web::middleware::from_fn(access::authenticate);
                    config.service(keyed.wrap(authenticate));
                }
                (true, false) => {
                    config.service(at("/metrics", route));
                }
            }
        })
        .default_service(web::to(no_such_path))
}

type Handle = web::Data<Unisono>;
type ApiResult = Result<Value, ApiError>;

// === verbs ===

async fn emit(Asked(unisono): Asked, Body(body): Body) -> Result<HttpResponse, ApiError> {
    do_emit(&unisono, read(&body)?).await.map(answer)
}

async fn publish(Asked(unisono): Asked, Body(body): Body) -> Result<HttpResponse, ApiError> {
    do_publish(&unisono, read(&body)?).await.map(answer)
}

async fn broadcast(Asked(unisono): Asked, Body(body): Body) -> Result<HttpResponse, ApiError> {
    do_broadcast(&unisono, read(&body)?).await.map(answer)
}

async fn disconnect(unisono: Handle, Body(body): Body) -> Result<HttpResponse, ApiError> {
    do_disconnect(&unisono, read(&body)?).await.map(answer)
}

async fn join(unisono: Handle, Body(body): Body) -> Result<HttpResponse, ApiError> {
    do_join(&unisono, read(&body)?).await.map(answer)
}

async fn leave(unisono: Handle, Body(body): Body) -> Result<HttpResponse, ApiError> {
    do_leave(&unisono, read(&body)?).await.map(answer)
}

/// The requests of a batch are carried out one after the other. One that fails has an `error` in its
/// place, and the rest goes on.
async fn batch(
    Asked(unisono): Asked,
    request: HttpRequest,
    Body(body): Body,
) -> Result<HttpResponse, ApiError> {
    let asker = access::of(&request).ok_or_else(|| ApiError::unauthorized("no key"))?;
    let requests: Vec<HashMap<&str, &RawValue>> =
        serde_json::from_str(text(&body)?).map_err(|error| ApiError::bad(error.to_string()))?;
    let max = unisono.shared.config.api.batch;
    if requests.len() > max {
        return Err(ApiError::bad(format!("a batch has at most {max} requests")));
    }
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        let done = do_one(&unisono, &asker, request).await;
        answers.push(done.unwrap_or_else(|error| error.body()));
    }
    Ok(answer(Value::Array(answers)))
}

async fn do_one(unisono: &Unisono, asker: &Asker, request: HashMap<&str, &RawValue>) -> ApiResult {
    let mut parts = request.into_iter();
    let (Some((verb, body)), None) = (parts.next(), parts.next()) else {
        let message = "a request of a batch is an object with one verb";
        return Err(ApiError::bad(message.to_owned()));
    };
    asker.check_verb(verb)?;
    do_verb(unisono, verb, body.get().as_bytes()).await
}

/// Serves a request that came over NATS; an error is an answer, too.
pub async fn serve(unisono: &Unisono, verb: &str, body: &[u8], span: Option<Span>) -> Vec<u8> {
    let done = do_verb(unisono, verb, body).await;
    if let Some(mut span) = span {
        span::over_nats(&mut span, verb, &done);
    }
    let answer = done.unwrap_or_else(|error| error.body());
    answer.to_string().into_bytes()
}

/// What is answered when too many requests from NATS are under way.
pub fn busy() -> Vec<u8> {
    let error = ApiError::from(PublishError::Busy);
    error.body().to_string().into_bytes()
}

/// Actions that failed.
static FAILED: Seldom = Seldom::new();

/// Carries out what an application's answer asks for, in order, for as long as the answer itself might have taken.
/// One that fails is logged, and the rest goes on.
pub async fn carry_out(unisono: &Unisono, actions: Actions) {
    let deadline = Instant::now() + unisono.shared.config.hooks.timeout;
    let mut left = actions.len() as u64;
    for action in actions {
        if Instant::now() >= deadline {
            metrics::counter!("unisono_actions_failed_total").increment(left);
            warn!(left, "actions took too long: these are not carried out");
            return;
        }
        left -= 1;
        let done = match from_object::<HashMap<&str, &RawValue>>(action.get()) {
            Ok(request) => do_one(unisono, &Asker::Application, request).await,
            Err(error) => Err(ApiError::bad(error.to_string())),
        };
        if let Err(error) = done {
            metrics::counter!("unisono_actions_failed_total").increment(1);
            if let Some(actions) = FAILED.add(Instant::now(), 1) {
                warn!(actions, %error, "actions of the application were not carried out");
            }
        }
    }
}

async fn do_verb(unisono: &Unisono, verb: &str, body: &[u8]) -> ApiResult {
    match verb {
        "emit" => do_emit(unisono, read(body)?).await,
        "publish" => do_publish(unisono, read(body)?).await,
        "broadcast" => do_broadcast(unisono, read(body)?).await,
        "disconnect" => do_disconnect(unisono, read(body)?).await,
        "join" => do_join(unisono, read(body)?).await,
        "leave" => do_leave(unisono, read(body)?).await,
        verb => Err(ApiError::bad(format!("there is no verb `{verb}`"))),
    }
}

async fn do_emit(unisono: &Unisono, body: Emit<'_>) -> ApiResult {
    let emit = Act::Emit {
        payload: body.content().payload()?,
        from: None,
        trace: None,
    };
    let whom = Whom::of(body.to, None, body.user)?;
    act(unisono, whom, emit, "delivered").await
}

/// Does something with sockets that are named one by one, each of which gets its status, or with those of a
/// room or a user, which are counted under that word.
async fn act(unisono: &Unisono, whom: Whom, act: Act, word: &str) -> ApiResult {
    let target = match whom {
        Whom::Sockets(ids) => {
            check_count(unisono, ids.len())?;
            return Ok(results(unisono.act(ids, act)?.await));
        }
        Whom::Room(room) => Target::Room(room),
        Whom::User(user) => Target::User(user),
    };
    let done = unisono.act_on(target, act)?.await;
    Ok(json!({ (word): done.value, "nodes": nodes_value(&done.nodes) }))
}

async fn do_publish(unisono: &Unisono, body: Publish<'_>) -> ApiResult {
    let payload = body.content().payload()?;
    let rooms = match (body.room, body.rooms) {
        (Some(room), None) => vec![room],
        (None, Some(rooms)) => rooms,
        _ => Vec::new(),
    };
    if rooms.is_empty() {
        let message = "one of `room` and `rooms` is needed, with at least one room";
        return Err(ApiError::bad(message.to_owned()));
    }
    check_count(unisono, rooms.len())?;
    let mut audiences = Vec::with_capacity(rooms.len());
    for room in &rooms {
        let audience = Audience::Room(room_name(room)?);
        if !audiences.contains(&audience) {
            audiences.push(audience);
        }
    }
    send(unisono, audiences, payload, body.except, body.confirm).await
}

async fn do_broadcast(unisono: &Unisono, body: Broadcast<'_>) -> ApiResult {
    let payload = body.content().payload()?;
    let everyone = vec![Audience::Everyone];
    send(unisono, everyone, payload, body.except, body.confirm).await
}

async fn send(
    unisono: &Unisono,
    to: Vec<Audience>,
    payload: proto::Payload,
    except: Vec<String>,
    confirm: bool,
) -> ApiResult {
    check_count(unisono, except.len())?;
    let except = except
        .iter()
        .map(|id| socket_id(id))
        .collect::<Result<_, _>>()?;
    if confirm {
        let cluster = &unisono.shared.cluster;
        let whole = cluster.alone() || cluster.link() == LinkState::Connected;
        let confirmed = unisono.send_confirmed(to, payload, except).await?;
        return Ok(json!({
            "status": if whole { "confirmed" } else { "local_only" },
            "sockets": confirmed.value,
            "nodes": nodes_value(&confirmed.nodes),
        }));
    }
    let status = match unisono.send(to, payload, except).await? {
        Sent::ToAll => "sent",
        Sent::LocalOnly => "local_only",
    };
    Ok(json!({ "status": status }))
}

async fn do_disconnect(unisono: &Unisono, body: Disconnect) -> ApiResult {
    let close = body.close()?;
    let after_ms = body.after_ms;
    let disconnect = Act::Disconnect { close, after_ms };
    let whom = Whom::of(body.to, body.room, body.user)?;
    act(unisono, whom, disconnect, "disconnected").await
}

async fn do_join(unisono: &Unisono, body: Membership) -> ApiResult {
    let join = Act::Join(room_name(&body.room)?);
    act(unisono, Whom::of(body.to, None, body.user)?, join, "joined").await
}

async fn do_leave(unisono: &Unisono, body: Membership) -> ApiResult {
    let leave = Act::Leave(room_name(&body.room)?);
    act(unisono, Whom::of(body.to, None, body.user)?, leave, "left").await
}

/// Only over HTTP: whoever may send messages over NATS, or has them sent by a webhook's answer, need not be
/// allowed to stop nodes.
async fn drain(unisono: Handle, Body(body): Body) -> Result<HttpResponse, ApiError> {
    let Drain { node } = read(&body)?;
    let node = NodeId::parse(&node).map_err(|error| ApiError::bad(format!("`{node}`: {error}")))?;
    let no_such_node = || ApiError::not_found("no such node is up");
    let shared = &unisono.shared;
    if node == shared.node {
        shared.drain_wanted.notify_one();
    } else {
        let peers = shared.cluster.peers().await;
        if !peers.iter().any(|peer| peer.id == node) {
            return Err(no_such_node());
        }
        let asked = shared.cluster.call(node, Request::Drain, None).await;
        asked.map_err(|error| match error {
            CallError::NodeGone => no_such_node(),
            // Not a 503, which would say that nothing was done.
            CallError::Timeout => ApiError {
                status: StatusCode::GATEWAY_TIMEOUT,
                code: "timeout",
                message: "the node does not answer; perhaps it drains".to_owned(),
            },
            CallError::Unsupported => {
                ApiError::unavailable("the node is of an earlier version, which cannot be asked")
            }
        })?;
    }
    Ok(answer(
        json!({ "node": node.to_string(), "status": "draining" }),
    ))
}

// === queries ===

async fn socket(unisono: Handle, path: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let id = socket_id(&path)?;
    let unavailable = |_| ApiError::unavailable("the node of the socket does not answer");
    match unisono.socket(id).await.map_err(unavailable)? {
        Some(socket) => Ok(answer(json!({
            "id": id.to_string(),
            "node": id.node().to_string(),
            "rooms": socket.rooms.iter().map(RoomName::as_str).collect::<Vec<_>>(),
            "user": socket.user.as_ref().map(UserName::as_str),
            "connected_at": time(socket.connected_at_ms),
            "remote_addr": socket.remote_addr,
            "queued_bytes": socket.queued_bytes,
        }))),
        None => Err(ApiError::not_found("no such socket")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomsParameters {
    #[serde(default)]
    prefix: String,
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn rooms(unisono: Handle, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let parameters: RoomsParameters = query(&request)?;
    let listed = unisono
        .rooms(RoomsQuery {
            prefix: parameters.prefix,
            after: after(parameters.cursor)?.unwrap_or_default(),
            limit: limit(&unisono, parameters.limit)?,
        })
        .await;
    let page = listed.value;
    let last = page.rooms.last().map(|(room, _)| room.to_string());
    let room =
        |(room, sockets): &(RoomName, u64)| json!({"room": room.as_str(), "sockets": sockets});
    Ok(answer(json!({
        "rooms": page.rooms.iter().map(room).collect::<Vec<_>>(),
        "cursor": cursor(last, page.more),
        "nodes": nodes_value(&listed.nodes),
    })))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomSocketsParameters {
    room: String,
    limit: Option<usize>,
    cursor: Option<String>,
}

async fn room_sockets(unisono: Handle, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let parameters: RoomSocketsParameters = query(&request)?;
    let after = after(parameters.cursor)?
        .map(|id| SocketId::parse(&id))
        .transpose();
    let listed = unisono
        .sockets(SocketsQuery {
            room: room_name(&parameters.room)?,
            after: after.map_err(|_| ApiError::bad_cursor())?,
            limit: limit(&unisono, parameters.limit)?,
        })
        .await;
    let page = listed.value;
    let last = page.sockets.last().map(|(id, _)| id.to_string());
    let socket = |(id, user): &(SocketId, Option<UserName>)| json!({"id": id.to_string(), "user": user.as_ref().map(UserName::as_str)});
    Ok(answer(json!({
        "sockets": page.sockets.iter().map(socket).collect::<Vec<_>>(),
        "count": page.count,
        "cursor": cursor(last, page.more),
        "nodes": nodes_value(&listed.nodes),
    })))
}

async fn nodes(unisono: Handle) -> HttpResponse {
    let shared = &unisono.shared;
    let load = &shared.load;
    let state = |draining| if draining { "draining" } else { "up" };
    let mut nodes = vec![json!({
        "id": shared.node.to_string(),
        "name": shared.name,
        "sockets": load.sockets.load(Ordering::Relaxed),
        "rooms": load.rooms.load(Ordering::Relaxed),
        "version": proto::VERSION,
        "started_at": time(shared.started_at_ms),
        "state": state(load.draining.load(Ordering::Relaxed)),
    })];
    let mut peers = shared.cluster.peers().await;
    peers.sort_by_key(|peer| peer.id);
    nodes.extend(peers.into_iter().map(|peer| {
        json!({
            "id": peer.id.to_string(),
            "name": peer.heartbeat.name,
            "sockets": peer.heartbeat.sockets,
            "rooms": peer.heartbeat.rooms,
            "version": peer.heartbeat.version,
            "started_at": time(peer.heartbeat.started_at_ms),
            "state": state(peer.heartbeat.draining),
        })
    }));
    let mut all = json!({ "nodes": nodes, "self": shared.node.to_string() });
    let unreadable = shared.cluster.unreadable().await;
    if !unreadable.is_empty() {
        let node = |node: &Unreadable| json!({"id": node.id.to_string(), "protocol": node.version});
        all["unreadable"] = unreadable.iter().map(node).collect();
    }
    answer(all)
}

// === pages and probes ===

async fn chat_page(unisono: Handle) -> Result<HttpResponse, ApiError> {
    if !unisono.shared.config.rules.open() {
        return Err(ApiError::not_found("there is nothing here"));
    }
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/html; charset=utf-8"))
        .body(CHAT_PAGE))
}

async fn live(unisono: Handle, request: HttpRequest) -> HttpResponse {
    match pulse(&unisono).await {
        Ok(()) => health(&unisono, &request, StatusCode::OK, "ok"),
        Err(why) => health(&unisono, &request, StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// How long a thread may take to show that it lives: less than probes wait.
const PULSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether each thread of the node does what it is asked, or which does not. The one that asks is one of them.
async fn pulse(unisono: &Unisono) -> Result<(), &'static str> {
    let shared = &unisono.shared;
    let main = unisono.node.send(Pulse).map(|_| ());
    let workers = unisono.workers.ask(Request::Probe, None).map(drop);
    let bus = shared.cluster.peers().map(drop);
    let outside = shared.outside.spawn(std::future::ready(())).map(drop);
    let answers = async |thread, answer: LocalBoxFuture<'_, ()>| {
        let late = timeout(PULSE_TIMEOUT, answer).await;
        late.map_err(|_| thread)
    };
    tokio::try_join!(
        answers("the main thread does not answer", main.boxed_local()),
        answers("a worker does not answer", workers.boxed_local()),
        answers("the bus thread does not answer", bus.boxed_local()),
        answers("the outside thread does not answer", outside.boxed_local()),
    )
    .map(drop)
}

async fn ready(unisono: Handle, request: HttpRequest) -> HttpResponse {
    match unisono.shared.readiness() {
        Ok(()) => health(&unisono, &request, StatusCode::OK, "ok"),
        Err(why) => health(&unisono, &request, StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

/// Which node it is, only those are told who may read the rest, too.
fn health(
    unisono: &Unisono,
    request: &HttpRequest,
    code: StatusCode,
    status: &str,
) -> HttpResponse {
    let cluster = &unisono.shared.cluster;
    let bus = match cluster.link() {
        _ if cluster.alone() => "none",
        LinkState::Connecting => "connecting",
        LinkState::Connected => "connected",
        LinkState::Away => "away",
    };
    let mut body = json!({"status": status, "bus": bus});
    if access::may_read(unisono, request) {
        body["node"] = unisono.shared.node.to_string().into();
    }
    HttpResponse::build(code)
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(body)
}

async fn metrics_text(unisono: Handle) -> HttpResponse {
    // On a thread of its own: to count open files, of which every socket is one, may take a while.
    let shared = Arc::clone(&unisono.shared);
    match web::block(move || shared.metrics()).await {
        Ok(text) => HttpResponse::Ok()
            .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4"))
            .body(text),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

/// As [`at`], for holders of that scope.
fn may(
    scope: Scope,
    path: &str,
    route: Route,
) -> Resource<
    impl ServiceFactory<
        ServiceRequest,
        Config = (),
        Response = ServiceResponse,
        Error = actix_web::Error,
        InitError = (),
    >,
> {
    let authorize = move |request, next| access::authorize(scope, request, next);
    at(path, route).wrap(actix_web::middleware::from_fn(authorize))
}

/// Takes GET, and HEAD, which is answered without the body (RFC 9110 §9.3.2).
fn reading() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

/// A path with its route; other methods are told so.
fn at(path: &str, route: Route) -> Resource {
    web::resource(path)
        .route(route)
        .default_service(web::to(wrong_method))
}

async fn wrong_method() -> Result<HttpResponse, ApiError> {
    Err(ApiError {
        status: StatusCode::METHOD_NOT_ALLOWED,
        code: "wrong_method",
        message: "this path does not take that method".to_owned(),
    })
}

async fn no_such_path() -> Result<HttpResponse, ApiError> {
    Err(ApiError::not_found("no such path"))
}

// === reading and answering ===

/// A body within the limit, or an error in the words of this API.
struct Body(web::Bytes);

impl FromRequest for Body {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        if let Some(coding) = foreign_coding(request) {
            let error = ApiError {
                status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
                code: "unsupported_encoding",
                message: format!(
                    "the body comes with `Content-Encoding: {coding}`; send it as it is, without"
                ),
            };
            return Box::pin(std::future::ready(Err(error)));
        }
        let bytes = web::Bytes::from_request(request, payload);
        let unisono = request.app_data::<Handle>().cloned();
        let patience = unisono
            .as_ref()
            .map(|unisono| unisono.shared.config.api.idle_timeout);
        Box::pin(async move {
            let slow = |_| ApiError {
                status: StatusCode::REQUEST_TIMEOUT,
                code: "timeout",
                message: "the body took too long".to_owned(),
            };
            let bytes = tokio::time::timeout(patience.unwrap_or_default(), bytes);
            let bytes = bytes.await.map_err(slow)?;
            // One that came so slowly that it was waited for no longer.
            if unisono.is_some_and(|unisono| unisono.shared.load.left.load(Ordering::SeqCst)) {
                return Err(ApiError::draining());
            }
            let bytes = bytes.map_err(|error| {
                let status = error.as_response_error().status_code();
                ApiError {
                    status,
                    code: if status == StatusCode::PAYLOAD_TOO_LARGE {
                        "too_large"
                    } else {
                        "bad_request"
                    },
                    message: error.to_string(),
                }
            })?;
            Ok(Self(bytes))
        })
    }
}

/// The coding of a body that is not sent as it is.
fn foreign_coding(request: &HttpRequest) -> Option<String> {
    let lines = request.headers().get_all(CONTENT_ENCODING);
    let text = lines.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned());
    let mut codings = text.filter(|line| {
        let mut codings = line.split(',').map(str::trim);
        !codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case("identity"))
    });
    codings.next()
}

/// Reads a body, whatever its content type says.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ApiError> {
    from_object(text(body)?).map_err(|error| ApiError::bad(error.to_string()))
}

fn text(body: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(body).map_err(|_| ApiError::bad("the body is not UTF-8".to_owned()))
}

fn query<T: DeserializeOwned>(request: &HttpRequest) -> Result<T, ApiError> {
    let query = web::Query::<T>::from_query(request.query_string());
    query
        .map(web::Query::into_inner)
        .map_err(|error| ApiError::bad(error.to_string()))
}

fn answer(value: Value) -> HttpResponse {
    HttpResponse::Ok().json(value)
}

fn results(results: Vec<(String, Status)>) -> Value {
    let results: Map<_, _> = results
        .into_iter()
        .map(|(id, status)| (id, status.as_str().into()))
        .collect();
    json!({ "results": results })
}

fn nodes_value(nodes: &Nodes) -> Value {
    let missing: Vec<_> = nodes.missing.iter().map(ToString::to_string).collect();
    json!({ "reached": nodes.reached, "missing": missing })
}

/// A time of day, as RFC 3339 writes it.
pub fn time(ms: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_millis(ms);
    humantime::format_rfc3339_millis(time).to_string()
}

/// Cursors are opaque to callers; inside is the last name or id of a page.
fn cursor(last: Option<String>, more: bool) -> Option<String> {
    last.filter(|_| more)
        .map(|last| BASE64_URL_SAFE_NO_PAD.encode(last))
}

fn after(cursor: Option<String>) -> Result<Option<String>, ApiError> {
    cursor
        .map(|cursor| {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
            String::from_utf8(bytes).ok()
        })
        .map(|after| after.ok_or_else(ApiError::bad_cursor))
        .transpose()
}

fn limit(unisono: &Unisono, limit: Option<usize>) -> Result<usize, ApiError> {
    let max = unisono.shared.config.api.page;
    match limit {
        None => Ok(max.min(100)),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::bad(format!("`limit` is 1 to {max}"))),
    }
}

fn check_count(unisono: &Unisono, count: usize) -> Result<(), ApiError> {
    let max = unisono.shared.config.api.ids;
    if count > max {
        return Err(ApiError::bad(format!(
            "at most {max} ids or rooms in one request"
        )));
    }
    Ok(())
}

fn room_name(name: &str) -> Result<RoomName, ApiError> {
    RoomName::parse(name).map_err(|error| ApiError {
        code: "bad_room",
        ..ApiError::bad(error.to_string())
    })
}

fn socket_id(text: &str) -> Result<SocketId, ApiError> {
    SocketId::parse(text).map_err(|error| ApiError::bad(format!("`{text}`: {error}")))
}

impl ApiError {
    fn bad(message: String) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            code: "bad_request",
            message,
        }
    }

    fn bad_cursor() -> Self {
        Self::bad("`cursor` is not one that this API gave".to_owned())
    }

    fn not_found(message: &str) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            code: "not_found",
            message: message.to_owned(),
        }
    }

    /// As every 503 of this API it promises that nothing was done: nginx sends the request to another node.
    fn unavailable(message: &str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "unavailable",
            message: message.to_owned(),
        }
    }

    fn draining() -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "draining",
            message: "the node is about to stop: nothing was done, ask another".to_owned(),
        }
    }

    fn too_large() -> Self {
        Self {
            status: StatusCode::PAYLOAD_TOO_LARGE,
            code: "too_large",
            message: "the message is larger than the bus takes".to_owned(),
        }
    }

    fn unauthorized(message: &str) -> Self {
        Self {
            status: StatusCode::UNAUTHORIZED,
            code: "unauthorized",
            message: message.to_owned(),
        }
    }

    fn forbidden(scope: Scope) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            code: "forbidden",
            message: format!("the API key lacks the scope `{}`", scope.as_str()),
        }
    }

    fn body(&self) -> Value {
        json!({"error": {"code": self.code, "message": self.message}})
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::TooLarge => Self::too_large(),
            PublishError::Busy => Self {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: "busy",
                message: error.to_string(),
            },
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        match self.status {
            StatusCode::SERVICE_UNAVAILABLE => {
                response.insert_header(("Retry-After", "1"));
            }
            // RFC 9110 §15.5.16.
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                response.insert_header((ACCEPT_ENCODING, "identity"));
            }
            _ => {}
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        response.json(self.body())
    }
}
