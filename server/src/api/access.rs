//! Who may use the API: holders of a key; without any key, whoever sits at this machine.

use std::net::IpAddr;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Version;
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use actix_web::middleware::Next;
use actix_web::web;
use subtle::ConstantTimeEq;

use super::ApiError;
use crate::unisono::Unisono;

/// Headers that show that somebody stands between the client and this server.
const FORWARDING: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "via",
];

/// Refuses with 401 whoever may not.
pub(super) async fn check(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let app = request.app_data::<web::Data<Unisono>>();
    let keys = app.map_or(&[][..], |app| &app.shared.config.api.keys);
    let peer = request.peer_addr().map(|peer| peer.ip());
    // Nobody but a proxy speaks HTTP/1.0 any more: nginx does, unless it is told otherwise.
    let direct = peer.filter(|_| request.version() > Version::HTTP_10);
    match allowed(keys, direct, request.headers()) {
        Ok(()) => next.call(request).await,
        Err(why) => Err(ApiError::unauthorized(why).into()),
    }
}

fn allowed(keys: &[String], peer: Option<IpAddr>, headers: &HeaderMap) -> Result<(), &'static str> {
    if keys.is_empty() {
        return if is_local(peer, headers) {
            Ok(())
        } else {
            Err("without `api.keys`, only requests straight from this machine are answered")
        };
    }
    let value = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let given = value.and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
    });
    let Some(given) = given else {
        return Err("`Authorization: Bearer <api key>` is missing");
    };
    // Each key is compared, in the same time whatever differs.
    let equal = |key: &String| key.as_bytes().ct_eq(given.as_bytes());
    let found = keys
        .iter()
        .map(equal)
        .fold(0, |found, equal| found | equal.unwrap_u8());
    if found == 1 {
        Ok(())
    } else {
        Err("no such key")
    }
}

/// A proxy on this machine has a loopback address too, and so has a browser here that a foreign page
/// misleads; neither looks like somebody who asks directly.
fn is_local(peer: Option<IpAddr>, headers: &HeaderMap) -> bool {
    let loopback = peer.is_some_and(|peer| peer.to_canonical().is_loopback());
    let forwarded = FORWARDING
        .iter()
        .any(|name| headers.contains_key(HeaderName::from_static(name)));
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(HOST);
    let own_page = text(ORIGIN)
        .is_none_or(|origin| origin.split_once("://").map(|(_, origin)| origin) == host);
    loopback && !forwarded && own_page && host.is_some_and(is_loopback_host)
}

fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let value = HeaderValue::from_str(value).unwrap();
            headers.insert(HeaderName::from_static(name), value);
        }
        headers
    }

    #[test]
    fn without_keys_only_this_machine_may() {
        let here: Option<IpAddr> = Some("127.0.0.1".parse().unwrap());
        let there: Option<IpAddr> = Some("10.0.0.1".parse().unwrap());
        let may = |peer, pairs: &[_]| allowed(&[], peer, &headers(pairs)).is_ok();
        for host in [
            "localhost",
            "localhost:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(may(here, &[("host", host)]), "{host}");
        }
        for host in [
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com:80",
            "",
        ] {
            assert!(!may(here, &[("host", host)]), "{host}");
        }
        assert!(!may(there, &[("host", "localhost")]));
        assert!(!may(None, &[("host", "localhost")]));
        assert!(!may(here, &[]));
        for name in FORWARDING {
            assert!(!may(here, &[("host", "localhost"), (name, "x")]), "{name}");
        }
        let evil = ("origin", "http://evil.example");
        assert!(!may(here, &[("host", "localhost:1"), evil]));
        assert!(may(
            here,
            &[("host", "localhost:1"), ("origin", "http://localhost:1")]
        ));
    }

    #[test]
    fn with_keys_only_their_holders_may() {
        let keys = ["first-key".to_owned(), "second-key".to_owned()];
        let here: Option<IpAddr> = Some("127.0.0.1".parse().unwrap());
        let may = |pairs: &[_]| allowed(&keys, here, &headers(pairs)).is_ok();
        assert!(may(&[("authorization", "Bearer first-key")]));
        assert!(may(&[("authorization", "bearer second-key")]));
        assert!(!may(&[("authorization", "Bearer third-key")]));
        assert!(!may(&[("authorization", "Bearer first-ke")]));
        assert!(!may(&[("authorization", "Basic first-key")]));
        assert!(!may(&[("host", "localhost")]));
    }
}
