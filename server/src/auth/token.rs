//! JSON Web Tokens: whether one is good, and what it grants.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Map, Value};
use tokio::runtime::Handle;

use super::keys::{self, Key, Remote};
use super::{Denied, Grant, Names};
use crate::config;
use crate::reload::{Followed, Parse, Reload};

/// Longest token; it comes before anybody has shown who it is.
pub(super) const TOKEN_BYTES_MAX: usize = 8 << 10;

/// The last second that a grant may end in, of the year 9999: sums with it stay far from the end of time.
pub(super) const SECONDS_MAX: u64 = 253_402_300_799;

const OTHER_ALGORITHM: &str = "the algorithm of the token is not that of the key";

/// Verifies tokens.
pub(super) struct Verifier {
    keys: Followed<Vec<Key>>,
    remote: Option<Remote>,
    audience: Vec<String>,
    issuer: Vec<String>,
    leeway: Duration,
    names: Names,
}

/// The parts of a token that nobody has verified yet.
struct Token<'a> {
    algorithm: Algorithm,
    key_id: Option<String>,
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
}

/// How a token fares with some keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// One of them signed it.
    Good,
    /// The key that it names did not.
    Forged,
    /// It asks for an algorithm that is not that of the key.
    OtherAlgorithm,
    /// None of them did, and none is the one that it names.
    UnknownKey,
}

// === impl Verifier ===

impl Verifier {
    /// Reads the keys, and their files again when they change.
    pub fn start(config: &config::Auth, reload: &Reload, outside: &Handle) -> anyhow::Result<Self> {
        let (files, parse) = source(config);
        let keys = reload.follow("auth", files, parse)?;
        let url = &config.jwks_url;
        let remote = match url.is_empty() {
            true => None,
            false => {
                Some(Remote::start(url, config.jwks_refresh, outside).context("auth.jwks_url")?)
            }
        };
        Ok(Self::new(keys, remote, config))
    }

    /// Takes the keys of that configuration from now on.
    pub fn change(&self, config: &config::Auth) -> anyhow::Result<()> {
        let (files, parse) = source(config);
        self.keys.change(files, parse)
    }

    fn new(keys: Followed<Vec<Key>>, remote: Option<Remote>, config: &config::Auth) -> Self {
        Self {
            keys,
            remote,
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            leeway: config.leeway,
            names: Names {
                user: config.user_claim.clone(),
                rooms: config.rooms_claim.clone(),
                rights: config.rights_claim.clone(),
            },
        }
    }

    /// What a token grants.
    pub async fn verify(&self, token: &str, now: SystemTime) -> Result<Grant, Denied> {
        let refused = |why: String| Denied::Unauthorized(why);
        let token = Token::parse(token).map_err(refused)?;
        self.check_signature(&token).await?;
        let claims = token.claims().map_err(refused)?;
        self.grant(&claims, now).map_err(refused)
    }

    async fn check_signature(&self, token: &Token<'_>) -> Result<(), Denied> {
        let own = self.keys.get();
        let verdict = token.judge(&*own);
        let Some(remote) = &self.remote else {
            return verdict.result();
        };
        if verdict == Verdict::Good {
            return Ok(());
        }
        // A key that the token names and nobody knows may be a new one.
        let named = |keys: &[Key]| match &token.key_id {
            Some(id) => own.iter().chain(keys).any(|key| key.is_named(id)),
            None => true,
        };
        let mut keys = remote.keys();
        let suffice = |keys: &[Key]| named(keys) || token.judge(keys) == Verdict::Good;
        if !keys.as_deref().is_some_and(suffice) {
            remote.freshen().await;
            keys = remote.keys();
        }
        let Some(keys) = keys else {
            let why = "the keys of tokens are not there yet";
            return Err(Denied::Unavailable(why.to_owned()));
        };
        token.judge(own.iter().chain(&*keys)).result()
    }

    /// What the claims of a verified token grant.
    fn grant(&self, claims: &Map<String, Value>, now: SystemTime) -> Result<Grant, String> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let expires = seconds(claims, "exp")?.ok_or("the token has no `exp`")?;
        if now >= expires + self.leeway {
            return Err("the token has expired".to_owned());
        }
        if seconds(claims, "nbf")?.is_some_and(|begin| now + self.leeway < begin) {
            return Err("the token is not valid yet".to_owned());
        }
        let is_one_of = |given: &Value, list: &[String]| {
            given
                .as_str()
                .is_some_and(|given| list.iter().any(|item| item == given))
        };
        if !self.audience.is_empty() {
            let fine = match claims.get("aud") {
                None => return Err("the token has no `aud`".to_owned()),
                Some(Value::Array(given)) => given.iter().any(|one| is_one_of(one, &self.audience)),
                Some(given) => is_one_of(given, &self.audience),
            };
            if !fine {
                return Err("the token is for another audience".to_owned());
            }
        }
        if !self.issuer.is_empty() {
            let given = claims.get("iss").ok_or("the token has no `iss`")?;
            if !is_one_of(given, &self.issuer) {
                return Err("the token is of another issuer".to_owned());
            }
        }
        Ok(Grant {
            expires_at: Some(UNIX_EPOCH + expires),
            ..Grant::read(claims, &self.names)?
        })
    }
}

/// The files of keys, and the way to make all keys of what is in them.
fn source(config: &config::Auth) -> (Vec<PathBuf>, Parse<Vec<Key>>) {
    let config = config.clone();
    let paths = [
        &config.secret_file,
        &config.public_key_file,
        &config.jwks_file,
    ];
    let files = config::files(paths);
    let parse = move |contents: &[Vec<u8>]| {
        let mut contents = contents.iter();
        let mut content = |path: &PathBuf| match path.as_os_str().is_empty() {
            true => None,
            false => contents.next().map(Vec::as_slice),
        };
        let mut keys = Vec::new();
        let secret = config.secret.or_content(content(&config.secret_file));
        if let Some(secret) = secret.context("auth.secret")? {
            keys.push(Key::secret(&secret).context("auth.secret")?);
        }
        let path = &config.public_key_file;
        if let Some(pem) = content(path) {
            let read = || {
                let algorithm = config.algorithm.parse().context("auth.algorithm");
                Key::pem(std::str::from_utf8(pem)?, algorithm?)
            };
            keys.push(read().with_context(|| format!("cannot take {}", path.display()))?);
        }
        let path = &config.jwks_file;
        if let Some(set) = content(path) {
            let set = keys::usable_set(set);
            let cannot = || format!("cannot take keys from {}", path.display());
            keys.extend(set.with_context(cannot)?);
        }
        ensure!(
            !keys.is_empty() || !config.jwks_url.is_empty(),
            "tokens need a key, and none is configured"
        );
        Ok(keys)
    };
    (files, Box::new(parse))
}

/// A point in time that stays far from the end of time. Fractions of a second, which RFC 7519 allows and Laravel
/// Passport writes, are cut off.
fn seconds(claims: &Map<String, Value>, name: &str) -> Result<Option<Duration>, String> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let fraction = value.as_f64().filter(|seconds| *seconds >= 0.0);
    let whole = value.as_u64().or(fraction.map(|seconds| seconds as u64));
    let seconds = whole.filter(|seconds| *seconds <= SECONDS_MAX);
    let bad = || format!("the `{name}` of the token is no time in seconds");
    seconds.map(Duration::from_secs).map(Some).ok_or_else(bad)
}

// === impl Token ===

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(format!("the token has more than {TOKEN_BYTES_MAX} bytes"));
        }
        let split = || {
            let (message, signature) = text.rsplit_once('.')?;
            let (header, payload) = message.split_once('.')?;
            let header: Header = decode(header)?;
            // Five parts are an encrypted token.
            (!payload.contains('.')).then_some((message, signature, header, payload))
        };
        let not_one = "the token is not a signed JSON Web Token";
        let (message, signature, header, payload) = split().ok_or(not_one)?;
        if header.crit.is_some() {
            return Err("the token asks for an extension that is not known here".to_owned());
        }
        Ok(Self {
            // `none` is not an algorithm.
            algorithm: header.alg.parse().map_err(|_| OTHER_ALGORITHM)?,
            key_id: header.kid,
            message,
            payload,
            signature,
        })
    }

    fn judge<'k>(&self, keys: impl IntoIterator<Item = &'k Key>) -> Verdict {
        let id = self.key_id.as_deref();
        let mut verdict = None;
        for key in keys.into_iter().filter(|key| key.may_be(id)) {
            let named = id.is_some_and(|id| key.is_named(id));
            let found = match key.algorithm() == self.algorithm {
                true if key.verifies(self.message, self.signature) => return Verdict::Good,
                true if named => Verdict::Forged,
                true => Verdict::UnknownKey,
                false => Verdict::OtherAlgorithm,
            };
            // What the key says that it names counts more, then what one of its algorithm says.
            let better = match verdict {
                None | Some(Verdict::OtherAlgorithm) => true,
                Some(_) => named,
            };
            if better {
                verdict = Some(found);
            }
        }
        verdict.unwrap_or(Verdict::UnknownKey)
    }

    /// Only after its signature was found to be good.
    fn claims(&self) -> Result<Map<String, Value>, String> {
        decode(self.payload).ok_or_else(|| "the token has no claims".to_owned())
    }
}

// === impl Verdict ===

impl Verdict {
    fn result(self) -> Result<(), Denied> {
        let why = match self {
            Self::Good => return Ok(()),
            Self::Forged => "the signature of the token is not that of the key",
            Self::OtherAlgorithm => OTHER_ALGORITHM,
            Self::UnknownKey => "the token is signed by an unknown key",
        };
        Err(Denied::Unauthorized(why.to_owned()))
    }
}

fn decode<T: DeserializeOwned>(part: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Rights, sample};
    use crate::fetch::canned;
    use crate::rules::Pattern;
    use jsonwebtoken::{EncodingKey, encode};
    use serde_json::json;

    const NOW: u64 = 1_000_000_000;
    const UNKNOWN: &str = "the token is signed by an unknown key";
    const NO_TIME: &str = "the `exp` of the token is no time in seconds";

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(NOW)
    }

    fn secret() -> EncodingKey {
        EncodingKey::from_secret(sample::SECRET.as_bytes())
    }

    fn signed(algorithm: Algorithm, kid: Option<&str>, key: &EncodingKey) -> String {
        let header = jsonwebtoken::Header {
            kid: kid.map(str::to_owned),
            ..jsonwebtoken::Header::new(algorithm)
        };
        encode(&header, &json!({ "exp": NOW + 60 }), key).unwrap()
    }

    fn start(config: &config::Auth) -> anyhow::Result<Verifier> {
        let outside = Handle::current();
        let reload = Reload::new(sample::config().files.reload_interval, &outside);
        Verifier::start(config, &reload, &outside)
    }

    fn verifier(keys: Vec<Key>) -> Verifier {
        Verifier::new(Followed::fixed(keys), None, &sample::config().auth)
    }

    fn by_secret() -> Verifier {
        verifier(vec![Key::secret(sample::SECRET).unwrap()])
    }

    fn unauthorized<T>(why: &str) -> Result<T, Denied> {
        Err(Denied::Unauthorized(why.to_owned()))
    }

    /// What the claims grant, which come on top of an `exp` in a minute.
    async fn claimed(verifier: &Verifier, claims: Value) -> Result<Grant, Denied> {
        let mut all = json!({ "exp": NOW + 60 });
        let all = all.as_object_mut().unwrap();
        for (name, value) in claims.as_object().unwrap() {
            match value.as_str() {
                Some("missing") => all.remove(name),
                _ => all.insert(name.clone(), value.clone()),
            };
        }
        let token = encode(&jsonwebtoken::Header::default(), &*all, &secret()).unwrap();
        verifier.verify(&token, now()).await
    }

    #[tokio::test]
    async fn claims_say_who_may_what() {
        let config = &mut sample::config().auth;
        config.rooms_claim = "r".to_owned();
        let verifier = Verifier::new(
            Followed::fixed(vec![Key::secret(sample::SECRET).unwrap()]),
            None,
            config,
        );
        let claims = json!({ "sub": "ann", "r": ["/chat/{id}", "/all"], "rights": ["publish"] });
        assert_eq!(
            claimed(&verifier, claims).await.unwrap(),
            Grant {
                holder: None,
                within: None,
                user: Some(proto::UserName::parse("ann").unwrap()),
                rooms: Some(
                    ["/chat/{id}", "/all"]
                        .map(|room| Pattern::parse(room).unwrap())
                        .into()
                ),
                rights: Rights::of(["publish"]).unwrap(),
                expires_at: Some(now() + Duration::from_secs(60)),
            }
        );
        let expires_at = Some(now() + Duration::from_secs(60));
        let nobody = Grant {
            expires_at,
            ..Grant::default()
        };
        assert_eq!(claimed(&verifier, json!({})).await.unwrap(), nobody);
        let empty = claimed(&verifier, json!({ "r": [], "rights": [] }))
            .await
            .unwrap();
        assert_eq!(empty.rooms.as_deref(), Some(&[][..]));
        assert_eq!(empty.rights, Rights::of([]).unwrap());
        let user = async |id: Value| {
            let grant = claimed(&verifier, json!({ "sub": id })).await;
            grant.unwrap().user.map(|user| user.to_string())
        };
        assert_eq!(user(json!(-7)).await.as_deref(), Some("-7"));
        assert_eq!(
            user(json!(u64::MAX)).await.as_deref(),
            Some("18446744073709551615")
        );
        assert_eq!(user(json!(null)).await, None);
    }

    #[tokio::test]
    async fn bad_claims_are_refused() {
        let no_text = "`sub` is no text or whole number";
        let no_list = "`rooms` is no list of texts";
        for (claims, expected) in [
            (json!({ "exp": "missing" }), "the token has no `exp`"),
            (json!({ "exp": NOW - 30 }), "the token has expired"),
            (json!({ "exp": 0 }), "the token has expired"),
            (json!({ "exp": -1 }), NO_TIME),
            (json!({ "exp": 1e300 }), NO_TIME),
            (json!({ "exp": u64::MAX }), NO_TIME),
            (json!({ "exp": i64::MAX }), NO_TIME),
            (json!({ "exp": SECONDS_MAX + 1 }), NO_TIME),
            (json!({ "exp": "1000000060" }), NO_TIME),
            (json!({ "exp": null }), NO_TIME),
            (json!({ "nbf": NOW + 31 }), "the token is not valid yet"),
            (
                json!({ "nbf": "now" }),
                "the `nbf` of the token is no time in seconds",
            ),
            (json!({ "sub": "" }), "`sub`: a name has at least one byte"),
            (
                json!({ "sub": "a\nb" }),
                "`sub`: a name has no control characters",
            ),
            (json!({ "sub": 1.5 }), no_text),
            (json!({ "sub": true }), no_text),
            (json!({ "sub": ["ann"] }), no_text),
            (json!({ "rooms": "/a" }), no_list),
            (json!({ "rooms": null }), no_list),
            (json!({ "rooms": [1] }), no_list),
            (json!({ "rooms": [""] }), "`rooms`: a pattern is not empty"),
            (json!({ "rights": null }), "`rights` is no list of texts"),
            (
                json!({ "rights": ["join", "fly"] }),
                "`rights`: a right is one of join, publish, emit and send",
            ),
        ] {
            let text = claims.to_string();
            assert_eq!(
                claimed(&by_secret(), claims).await,
                unauthorized(expected),
                "{text}"
            );
        }
        for claims in [
            json!({ "exp": NOW - 29 }),
            json!({ "exp": SECONDS_MAX }),
            json!({ "exp": 1_000_000_060.681_63 }),
            json!({ "nbf": NOW + 30 }),
            json!({ "aud": "anybody", "iss": 1 }),
        ] {
            let text = claims.to_string();
            assert!(claimed(&by_secret(), claims).await.is_ok(), "{text}");
        }
    }

    #[tokio::test]
    async fn audience_and_issuer_are_looked_at() {
        let config = &mut sample::config().auth;
        config.audience = vec!["a".to_owned(), "b".to_owned()];
        config.issuer = vec!["i".to_owned(), "j".to_owned()];
        let verifier = Verifier::new(
            Followed::fixed(vec![Key::secret(sample::SECRET).unwrap()]),
            None,
            config,
        );
        let other = Some("the token is for another audience");
        for (claims, expected) in [
            (json!({ "aud": "a", "iss": "j" }), None),
            (json!({ "aud": ["x", "b"], "iss": "i" }), None),
            (json!({ "iss": "i" }), Some("the token has no `aud`")),
            (json!({ "aud": "x", "iss": "i" }), other),
            (json!({ "aud": ["x"], "iss": "i" }), other),
            (json!({ "aud": [], "iss": "i" }), other),
            (json!({ "aud": 1, "iss": "i" }), other),
            (json!({ "aud": "a" }), Some("the token has no `iss`")),
            (
                json!({ "aud": "a", "iss": "x" }),
                Some("the token is of another issuer"),
            ),
            (
                json!({ "aud": "a", "iss": ["i"] }),
                Some("the token is of another issuer"),
            ),
        ] {
            let text = claims.to_string();
            let found = claimed(&verifier, claims).await.map(|_| ());
            assert_eq!(found, expected.map_or(Ok(()), unauthorized), "{text}");
        }
    }

    #[tokio::test]
    async fn each_key_has_its_algorithm() {
        let rsa = EncodingKey::from_rsa_pem(sample::RSA.as_bytes()).unwrap();
        let ec = EncodingKey::from_ec_pem(sample::P256.as_bytes()).unwrap();
        let ed = EncodingKey::from_ed_pem(sample::ED25519.as_bytes()).unwrap();
        // The oldest trick: who takes the algorithm from the token takes a public key for a secret.
        let confused = EncodingKey::from_secret(sample::RSA_PUBLIC.as_bytes());
        let pem = |pem, algorithm| verifier(vec![Key::pem(pem, algorithm).unwrap()]);
        let by_rsa = pem(sample::RSA_PUBLIC, Algorithm::RS256);
        let by_ec = pem(sample::P256_PUBLIC, Algorithm::ES256);
        let by_ed = pem(sample::ED25519_PUBLIC, Algorithm::EdDSA);
        let other = Some(OTHER_ALGORITHM);
        for (verifier, algorithm, key, expected) in [
            (&by_secret(), Algorithm::HS256, &secret(), None),
            (&by_secret(), Algorithm::HS512, &secret(), other),
            (&by_secret(), Algorithm::RS256, &rsa, other),
            (&by_secret(), Algorithm::HS256, &confused, Some(UNKNOWN)),
            (&by_rsa, Algorithm::RS256, &rsa, None),
            (&by_rsa, Algorithm::RS512, &rsa, other),
            (&by_rsa, Algorithm::PS256, &rsa, other),
            (&by_rsa, Algorithm::HS256, &confused, other),
            (&by_rsa, Algorithm::HS256, &secret(), other),
            (&by_ec, Algorithm::ES256, &ec, None),
            (&by_ec, Algorithm::EdDSA, &ed, other),
            (&by_ed, Algorithm::EdDSA, &ed, None),
            (&by_ed, Algorithm::ES256, &ec, other),
        ] {
            // A name of the key changes nothing where keys have none.
            for kid in [None, Some("a")] {
                let token = signed(algorithm, kid, key);
                let found = verifier.verify(&token, now()).await.map(|_| ());
                assert_eq!(
                    found,
                    expected.map_or(Ok(()), unauthorized),
                    "{algorithm:?} {kid:?}"
                );
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_good_token_is_refused() {
        let good = signed(Algorithm::HS256, None, &secret());
        let (head, signature) = good.rsplit_once('.').unwrap();
        let (_, payload) = head.split_once('.').unwrap();
        let with = |header: Value, signature: &str| {
            let header = URL_SAFE_NO_PAD.encode(header.to_string());
            format!("{header}.{payload}.{signature}")
        };
        let no_token = "the token is not a signed JSON Web Token";
        let (none, hs256) = (json!({ "alg": "none" }), json!({ "alg": "HS256" }));
        let long = format!("{good}{}", "A".repeat(TOKEN_BYTES_MAX));
        for (token, expected) in [
            (String::new(), no_token),
            ("..".to_owned(), no_token),
            ("a.b.c".to_owned(), no_token),
            (head.to_owned(), no_token),
            (format!("{good}.a"), no_token),
            (format!("{good}.a.b"), no_token),
            (with(json!({}), signature), no_token),
            (with(json!({ "alg": 1 }), signature), no_token),
            (with(json!([]), signature), no_token),
            (with(none.clone(), ""), OTHER_ALGORITHM),
            (with(none, signature), OTHER_ALGORITHM),
            (with(json!({ "alg": "None" }), ""), OTHER_ALGORITHM),
            (with(json!({ "alg": "hs256" }), signature), OTHER_ALGORITHM),
            (with(hs256.clone(), ""), UNKNOWN),
            (with(hs256, signature), UNKNOWN),
            (format!("{head}."), UNKNOWN),
            (format!("{head}.!"), UNKNOWN),
            (
                with(
                    json!({ "alg": "HS256", "crit": ["b64"], "b64": false }),
                    signature,
                ),
                "the token asks for an extension that is not known here",
            ),
            (long, "the token has more than 8192 bytes"),
        ] {
            let found = by_secret().verify(&token, now()).await;
            assert_eq!(found, unauthorized(expected), "{token:.100}");
        }
        let signed = |claims: &str| {
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
            let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
            let signature =
                jsonwebtoken::crypto::sign(message.as_bytes(), &secret(), Algorithm::HS256);
            format!("{message}.{}", signature.unwrap())
        };
        for claims in ["", "[]", "null", "{", "{\"exp\":1e999}"] {
            let found = by_secret().verify(&signed(claims), now()).await;
            assert_eq!(found, unauthorized("the token has no claims"), "{claims}");
        }
    }

    #[tokio::test]
    async fn the_name_of_a_key_picks_it() {
        let set = sample::jwks(&[
            sample::jwk("p256", Some("a"), json!({})),
            sample::jwk("rsa", Some("b"), json!({})),
            sample::jwk("ed25519", Some("d"), json!({})),
        ]);
        let keys = verifier(keys::parse_set(&set).unwrap());
        let ec = EncodingKey::from_ec_pem(sample::P256.as_bytes()).unwrap();
        let rsa = EncodingKey::from_rsa_pem(sample::RSA.as_bytes()).unwrap();
        let forged = "the signature of the token is not that of the key";
        for (algorithm, key, kid, expected) in [
            (Algorithm::ES256, &ec, Some("a"), None),
            (Algorithm::ES256, &ec, None, None),
            (Algorithm::RS256, &rsa, Some("b"), None),
            (Algorithm::ES256, &ec, Some("b"), Some(OTHER_ALGORITHM)),
            (Algorithm::ES256, &ec, Some("c"), Some(UNKNOWN)),
            (
                Algorithm::HS256,
                &secret(),
                Some("a"),
                Some(OTHER_ALGORITHM),
            ),
            (Algorithm::HS256, &secret(), None, Some(OTHER_ALGORITHM)),
        ] {
            let token = signed(algorithm, kid, key);
            let found = keys.verify(&token, now()).await.map(|_| ());
            let text = format!("{algorithm:?} {kid:?}");
            assert_eq!(found, expected.map_or(Ok(()), unauthorized), "{text}");
        }
        let (mine, other) = (signed(Algorithm::ES256, Some("a"), &ec), "A".repeat(86));
        let token = format!("{}.{other}", mine.rsplit_once('.').unwrap().0);
        assert_eq!(keys.verify(&token, now()).await, unauthorized(forged));
    }

    #[tokio::test]
    async fn a_new_key_is_fetched_once() {
        let set = |kid| {
            let set = sample::jwks(&[sample::jwk("p256", Some(kid), json!({}))]);
            canned::answer(200, std::str::from_utf8(&set).unwrap())
        };
        let mut server = canned::serve(&[set("a"), set("b")]).await;
        let config = &mut sample::config().auth;
        config.jwks_url = server.url.clone();
        let verifier = start(config).unwrap();
        let ec = EncodingKey::from_ec_pem(sample::P256.as_bytes()).unwrap();
        let verify = async |kid| {
            let token = signed(Algorithm::ES256, Some(kid), &ec);
            verifier.verify(&token, now()).await.map(|_| ())
        };
        assert_eq!(verify("a").await, Ok(()), "waits for the first answer");
        assert_eq!(verify("b").await, Ok(()), "asks for another");
        assert_eq!(
            verify("a").await,
            unauthorized(UNKNOWN),
            "not again so soon"
        );
        assert!(server.requests.try_recv().is_ok() && server.requests.try_recv().is_ok());
        assert!(server.requests.try_recv().is_err());
    }

    #[tokio::test]
    async fn without_its_keys_nothing_can_be_said() {
        let server = canned::serve(&[canned::answer(500, "")]).await;
        let config = &mut sample::config().auth;
        config.jwks_url = server.url.clone();
        config.secret.0 = sample::SECRET.to_owned();
        let verifier = start(config).unwrap();
        let ec = EncodingKey::from_ec_pem(sample::P256.as_bytes()).unwrap();
        for kid in [None, Some("a")] {
            let token = signed(Algorithm::ES256, kid, &ec);
            let why = "the keys of tokens are not there yet".to_owned();
            let found = verifier.verify(&token, now()).await;
            assert_eq!(found, Err(Denied::Unavailable(why)), "{kid:?}");
            let mine = signed(Algorithm::HS256, kid, &secret());
            assert!(verifier.verify(&mine, now()).await.is_ok(), "{kid:?}");
        }
        let nonsense = verifier.verify("nonsense", now()).await;
        assert!(matches!(nonsense, Err(Denied::Unauthorized(_))));
    }
}
