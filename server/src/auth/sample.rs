//! Keys, a configuration and a handshake for the tests of this module.

use std::path::PathBuf;

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use proto::RoomName;
use serde_json::{Value, json};
use tokio::runtime::Handle;

use super::Auth;
use crate::config::{Config, Sources};
use crate::handshake::Handshake;
use crate::reload::Reload;
use crate::signature::Signer;

pub const SECRET: &str = "a secret of at least thirty-two bytes";
// Made with `openssl genpkey` for these tests; they open nothing.
pub const RSA: &str = include_str!("../../testdata/rsa.pem");
pub const RSA_PUBLIC: &str = include_str!("../../testdata/rsa.pub.pem");
pub const RSA_1024_PUBLIC: &str = include_str!("../../testdata/rsa1024.pub.pem");
pub const P256: &str = include_str!("../../testdata/p256.pem");
pub const P256_PUBLIC: &str = include_str!("../../testdata/p256.pub.pem");
pub const P384_PUBLIC: &str = include_str!("../../testdata/p384.pub.pem");
pub const ED25519: &str = include_str!("../../testdata/ed25519.pem");
pub const ED25519_PUBLIC: &str = include_str!("../../testdata/ed25519.pub.pem");

/// A file of those.
pub fn path(name: &str) -> PathBuf {
    let folder: PathBuf = [env!("CARGO_MANIFEST_DIR"), "testdata"].iter().collect();
    folder.join(name)
}

/// The defaults.
pub fn config() -> Config {
    Sources::default().load().unwrap().config
}

/// What that configuration makes of clients.
pub fn auth(config: &Config) -> anyhow::Result<Auth> {
    let outside = Handle::current();
    let reload = Reload::new(config.files.reload_interval, &outside);
    let signer = Signer::follow(&config.hooks, &reload)?;
    Auth::start(&config.auth, signer.as_ref(), &reload, &outside)
}

/// A client's first request, from 192.0.2.7.
pub fn handshake(path: &str, query: &str, headers: &[(&'static str, &str)]) -> Handshake {
    Handshake {
        room: RoomName::from_path(path).unwrap(),
        query: query.to_owned(),
        headers: header_map(headers),
        peer: "192.0.2.7:4711".parse().unwrap(),
        user: None,
        parameters: Vec::new(),
    }
}

/// Several of one name are several lines.
pub fn header_map(headers: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        map.append(HeaderName::from_static(name), value);
    }
    map
}

/// The public part of a key, with other fields over its own.
pub fn jwk(name: &str, kid: Option<&str>, more: Value) -> Value {
    let (key, algorithm) = match name {
        "rsa" => (EncodingKey::from_rsa_pem(RSA.as_bytes()), Algorithm::RS256),
        "p256" => (EncodingKey::from_ec_pem(P256.as_bytes()), Algorithm::ES256),
        "ed25519" => (
            EncodingKey::from_ed_pem(ED25519.as_bytes()),
            Algorithm::EdDSA,
        ),
        _ => (
            Ok(EncodingKey::from_secret(SECRET.as_bytes())),
            Algorithm::HS256,
        ),
    };
    let jwk = Jwk::from_encoding_key(&key.unwrap(), algorithm).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    let fields = jwk.as_object_mut().unwrap();
    fields.remove("alg");
    fields.extend(kid.map(|kid| ("kid".to_owned(), kid.into())));
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    jwk
}

/// A set of keys, as a key server has it.
pub fn jwks(keys: &[Value]) -> Vec<u8> {
    json!({ "keys": keys }).to_string().into_bytes()
}
