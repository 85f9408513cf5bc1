//! Who may use the API: holders of a key, each within the scopes of that key. Nothing else is a right, the address
//! from which somebody comes least of all: a proxy on the same machine looks like a program there.

use std::sync::Arc;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HeaderMap};
use actix_web::middleware::Next;
use actix_web::{HttpMessage, HttpRequest, web};
use tokio::time::Instant;
use tracing::warn;

use super::ApiError;
use super::keys::{Holder, Keys};
use crate::config::Scope;
use crate::seldom::Seldom;
use crate::unisono::Unisono;

/// The verbs of a request or a batch, with the scope that each wants.
pub(super) const VERBS: [(&str, Scope); 6] = [
    ("emit", Scope::Send),
    ("publish", Scope::Send),
    ("broadcast", Scope::Send),
    ("join", Scope::Send),
    ("leave", Scope::Send),
    ("disconnect", Scope::Admin),
];

/// Requests without a key that is good.
static STRANGERS: Seldom = Seldom::new();

/// Who asks for a verb: everybody who is not behind HTTP may do everything.
#[derive(Clone)]
pub(super) enum Asker {
    /// An application: over NATS, or by the answer to a webhook.
    Application,
    /// The holder of a key.
    Holder(Arc<Holder>),
}

impl Asker {
    /// Refuses what its scopes do not cover, and notes acts of administrators.
    pub(super) fn check(&self, scope: Scope, act: &str) -> Result<(), ApiError> {
        let Self::Holder(holder) = self else {
            return Ok(());
        };
        if !holder.scopes().has(scope) {
            refused("scope");
            holder.refused(scope);
            return Err(ApiError::forbidden(scope));
        }
        if scope == Scope::Admin {
            holder.acted(act);
        }
        Ok(())
    }

    /// Refuses a verb that its scopes do not cover. One that is unknown is refused later.
    pub(super) fn check_verb(&self, verb: &str) -> Result<(), ApiError> {
        let known = VERBS.iter().find(|(known, _)| *known == verb);
        known.map_or(Ok(()), |(verb, scope)| self.check(*scope, verb))
    }
}

/// Refuses whoever has no key with 401.
pub(super) async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let app = request.app_data::<web::Data<Unisono>>();
    let asker = match app {
        Some(app) => asker(&app.shared.keys, request.headers()),
        None => Err("the node is not there yet"),
    };
    match asker {
        Ok(holder) => {
            request.extensions_mut().insert(Asker::Holder(holder));
            next.call(request).await
        }
        Err(why) => {
            refused("key");
            if let Some(requests) = STRANGERS.add(Instant::now(), 1) {
                let peer = request.peer_addr();
                warn!(?peer, requests, "requests without a good API key");
            }
            Err(ApiError::unauthorized(why).into())
        }
    }
}

/// Refuses a holder without that scope with 403. Wants [`authenticate`] around it.
pub(super) async fn authorize(
    scope: Scope,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, actix_web::Error> {
    let act = request.path().rsplit('/').next().unwrap_or_default();
    match of(request.request()) {
        Some(asker) => asker.check(scope, act)?,
        None => return Err(ApiError::unauthorized("no key").into()),
    }
    next.call(request).await
}

/// Who asks, behind [`authenticate`].
pub(super) fn of(request: &HttpRequest) -> Option<Asker> {
    request.extensions().get::<Asker>().cloned()
}

/// Whether a request that needs no key comes with one that may read all the same.
pub(super) fn may_read(unisono: &Unisono, request: &HttpRequest) -> bool {
    let holder = asker(&unisono.shared.keys, request.headers());
    holder.is_ok_and(|holder| holder.scopes().has(Scope::Read))
}

fn asker(keys: &Keys, headers: &HeaderMap) -> Result<Arc<Holder>, &'static str> {
    let value = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = value.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let given = given.ok_or("`Authorization: Bearer <api key>` is missing")?;
    keys.find(given).ok_or("no such key")
}

fn refused(why: &'static str) {
    metrics::counter!("unisono_api_refused_total", "why" => why).increment(1);
}
