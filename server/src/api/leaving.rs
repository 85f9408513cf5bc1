//! What becomes of requests when the node leaves: those that it has taken are finished, others go elsewhere.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix_web::ResponseError;
use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::ConnectionType;
use actix_web::middleware::Next;

use super::ApiError;
use crate::worker::Worker;

/// Counts requests that are under way, and refuses all but probes once the node can no longer be sure that the others
/// would hear of what they ask for. From the start of a drain on, each answer closes its connection: pools of
/// connections move to other nodes while this one still serves them.
pub(super) async fn watch<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, actix_web::Error> {
    let Some(worker) = request.app_data::<Rc<Worker>>() else {
        return next
            .call(request)
            .await
            .map(ServiceResponse::map_into_left_body);
    };
    let load = Arc::clone(&worker.shared.load);
    let place = load.request();
    let is_probe = ["/health/live", "/health/ready", "/metrics"].contains(&request.path());
    let mut response = if place.is_some() || is_probe {
        next.call(request).await?.map_into_left_body()
    } else {
        let refusal = ApiError::draining().error_response();
        request.into_response(refusal).map_into_right_body()
    };
    if load.draining.load(Ordering::Relaxed) {
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    drop(place);
    Ok(response)
}
