//! The keys of tokens: each good for one algorithm, which it knows and the token does not decide. From the
//! configuration, a file, or a key server that is asked again and again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use jsonwebtoken::crypto::{self, rust_crypto};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind};
use serde::Deserialize;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::fetch;
use crate::vital::Vital;

/// Fewest bytes of a secret: as many as HS256 has in its answer.
pub(super) const SECRET_BYTES_MIN: usize = 32;

/// Fewer can be broken; the library takes no more.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// Of an Ed25519 key.
const ED_BYTES: usize = 32;

/// Most keys of a set that are looked at: a token without `kid` is tried with all of its algorithm.
const SET_KEYS_MAX: usize = 100;

/// Most bytes that a key server's answer may have.
const SET_BYTES_MAX: usize = 1 << 20;

/// How long a key server may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a key that is not known makes the set be fetched, at most: anybody can name such keys.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// The first wait after a fetch that failed, and the longest; each is twice the one before.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);

/// Tokens that may wait for one fetch; others are judged by the keys that are there.
const ASKS_MAX: usize = 1000;

/// One key.
#[derive(Debug)]
pub(super) struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The keys of a key server, as they are just now. Cheap to clone.
#[derive(Clone)]
pub(super) struct Remote {
    /// None until the server has answered once.
    keys: watch::Receiver<Option<Arc<[Key]>>>,
    asks: mpsc::Sender<Ask>,
}

/// Dropped when the keys are as fresh as they get.
type Ask = oneshot::Sender<()>;

// === impl Key ===

impl Key {
    /// A secret, for HS256.
    pub fn secret(secret: &str) -> anyhow::Result<Self> {
        let key = DecodingKey::from_secret(secret.as_bytes());
        Self::new(None, Algorithm::HS256, key)
    }

    /// A public key, for that algorithm.
    pub fn pem(pem: &str, algorithm: Algorithm) -> anyhow::Result<Self> {
        ensure!(
            !pem.contains("PRIVATE KEY"),
            "this is a private key, which only belongs to who makes tokens: give the public one"
        );
        let key = match algorithm {
            Algorithm::RS256 => DecodingKey::from_rsa_pem(pem.as_bytes()),
            Algorithm::ES256 => DecodingKey::from_ec_pem(pem.as_bytes()),
            Algorithm::EdDSA => DecodingKey::from_ed_pem(pem.as_bytes()),
            _ => bail!("a PEM key is for RS256, ES256 or EdDSA"),
        };
        let key = key.with_context(|| format!("not a public key of {algorithm:?} as PEM"))?;
        Self::new(None, algorithm, key)
    }

    /// One of a set. None where it is not for signatures.
    fn jwk(value: &Value) -> anyhow::Result<Option<Self>> {
        let jwk = Jwk::deserialize(value).context("not a JSON Web Key")?;
        if jwk.common.public_key_use == Some(PublicKeyUse::Encryption) {
            return Ok(None);
        }
        if let Some(operations) = &jwk.common.key_operations
            && !operations.contains(&KeyOperations::Verify)
        {
            return Ok(None);
        }
        let algorithm = match (jwk.common.key_algorithm, &jwk.algorithm) {
            (Some(named), _) => Algorithm::try_from(named)
                .ok()
                .context("its algorithm is not one of signatures that are known here")?,
            (None, AlgorithmParameters::RSA(_)) => Algorithm::RS256,
            (None, AlgorithmParameters::EllipticCurve(key)) if key.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            (None, AlgorithmParameters::OctetKeyPair(key))
                if key.curve == EllipticCurve::Ed25519 =>
            {
                Algorithm::EdDSA
            }
            (None, AlgorithmParameters::OctetKey(_)) => Algorithm::HS256,
            _ => bail!("its kind is not known here"),
        };
        let key = DecodingKey::from_jwk(&jwk).context("its parts are no key")?;
        Self::new(jwk.common.key_id, algorithm, key).map(Some)
    }

    fn new(id: Option<String>, algorithm: Algorithm, key: DecodingKey) -> anyhow::Result<Self> {
        ensure!(
            key.family().algorithms().contains(&algorithm),
            "{algorithm:?} is not for keys of this kind"
        );
        match key.family() {
            AlgorithmFamily::Hmac => {
                let bytes = key.try_get_as_bytes()?.len();
                let enough = bytes >= SECRET_BYTES_MIN;
                ensure!(enough, "a secret has at least {SECRET_BYTES_MIN} bytes");
            }
            AlgorithmFamily::Rsa => {
                let bits = rsa_bits(&key)?;
                let (min, max) = (RSA_BITS.start(), RSA_BITS.end());
                ensure!(
                    RSA_BITS.contains(&bits),
                    "an RSA key has {min} to {max} bits, this one {bits}"
                );
            }
            // The library takes the first of its bytes without a look at how many there are.
            AlgorithmFamily::Ed => ensure!(
                key.try_get_as_bytes()?.len() == ED_BYTES,
                "an Ed25519 key has {ED_BYTES} bytes"
            ),
            AlgorithmFamily::Ec => {}
        }
        // The library reads some keys only when there is something to verify.
        crypto::verify("", b"", &key, algorithm)
            .with_context(|| format!("not a key of {algorithm:?}"))?;
        Ok(Self { id, algorithm, key })
    }

    /// The only algorithm that it is for.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether it is the one of that name.
    pub fn is_named(&self, id: &str) -> bool {
        self.id.as_deref() == Some(id)
    }

    /// Whether it may be the key of a token that names this one: one of another name is not.
    pub fn may_be(&self, id: Option<&str>) -> bool {
        self.id.is_none() || id.is_none_or(|id| self.is_named(id))
    }

    /// Whether the signature, as base64, is its own.
    pub fn verifies(&self, message: &str, signature: &str) -> bool {
        crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm).unwrap_or(false)
    }
}

fn rsa_bits(key: &DecodingKey) -> anyhow::Result<usize> {
    let modulus = match key.kind() {
        DecodingKeyKind::RsaModulusExponent { n, .. } => n.clone(),
        DecodingKeyKind::SecretOrDer(der) => {
            let read = rust_crypto::DEFAULT_PROVIDER
                .key_utils
                .rsa_pub_components_from_public_key;
            read(der)?.0
        }
    };
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let unused = modulus.get(zeros).map_or(0, |byte| byte.leading_zeros());
    Ok((modulus.len() - zeros) * 8 - unused as usize)
}

/// The keys of a set, at least one.
pub(super) fn usable_set(set: &[u8]) -> anyhow::Result<Vec<Key>> {
    let keys = parse_set(set)?;
    ensure!(!keys.is_empty(), "no key in it can be used");
    Ok(keys)
}

/// The keys of a set at a URL. What is published there others can read, so no secret is taken from it: whoever
/// knows one can make tokens.
pub(super) fn parse_public_set(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    let mut keys = parse_set(bytes)?;
    let all = keys.len();
    keys.retain(|key| key.algorithm != Algorithm::HS256);
    if keys.len() < all {
        warn!(
            secrets = all - keys.len(),
            "secrets in the JWKS of a URL are left out: others can read them"
        );
    }
    Ok(keys)
}

/// The keys of a set, without those that are of no use here.
pub(super) fn parse_set(bytes: &[u8]) -> anyhow::Result<Vec<Key>> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_slice(bytes).context("not a JSON Web Key Set")?;
    if set.keys.len() > SET_KEYS_MAX {
        warn!(
            keys = set.keys.len(),
            "only the first {SET_KEYS_MAX} keys of the JWKS are looked at"
        );
    }
    let mut keys = Vec::new();
    for value in set.keys.iter().take(SET_KEYS_MAX) {
        let id = value.get("kid").and_then(Value::as_str).unwrap_or("none");
        match Key::jwk(value) {
            Ok(Some(key)) => keys.push(key),
            Ok(None) => debug!(kid = ?id, "a key of the JWKS is not for signatures"),
            Err(error) => {
                warn!(kid = ?id, error = format!("{error:#}"), "a key of the JWKS is left out");
            }
        }
    }
    Ok(keys)
}

// === impl Remote ===

impl Remote {
    /// Fetches the keys from now on, for as long as somebody holds this. Does not wait for them.
    pub fn start(url: &str, refresh: Duration, outside: &Handle) -> anyhow::Result<Self> {
        let client = fetch::client(url)?;
        let url: Arc<str> = url.into();
        let fetch = move || {
            let (client, url) = (client.clone(), url.clone());
            async move {
                let request = async {
                    let response = client.get(&*url).send().await;
                    let response = response.map_err(reqwest::Error::without_url)?;
                    let status = response.status();
                    ensure!(status.as_u16() == 200, "the answer is {status}");
                    fetch::body(response, SET_BYTES_MAX).await
                };
                let late = || format!("no answer within {FETCH_TIMEOUT:?}");
                timeout(FETCH_TIMEOUT, request).await.with_context(late)?
            }
        };
        let (remote, keeper) = Self::new(fetch, refresh);
        outside.spawn(keeper.run());
        Ok(remote)
    }

    fn new<F>(fetch: F, refresh: Duration) -> (Self, Keeper<F>) {
        let (keys_sender, keys) = watch::channel(None);
        let (asks, asks_receiver) = mpsc::channel(ASKS_MAX);
        let keeper = Keeper {
            fetch,
            refresh,
            keys: keys_sender,
            asks: asks_receiver,
            text: Vec::new(),
            failures: 0,
        };
        (Self { keys, asks }, keeper)
    }

    /// The keys; none before the server has answered for the first time.
    pub fn keys(&self) -> Option<Arc<[Key]>> {
        self.keys.borrow().clone()
    }

    /// Returns when the keys have been fetched, or at once if they were, not long ago.
    pub async fn freshen(&self) {
        let (ask, answered) = oneshot::channel();
        if self.asks.try_send(ask).is_ok() {
            let _ = answered.await;
        }
    }
}

/// The task that fetches.
struct Keeper<F> {
    fetch: F,
    refresh: Duration,
    keys: watch::Sender<Option<Arc<[Key]>>>,
    asks: mpsc::Receiver<Ask>,
    /// What the server said last.
    text: Vec<u8>,
    /// Fetches in a row that failed.
    failures: u32,
}

impl<F, T> Keeper<F>
where
    F: FnMut() -> T,
    T: Future<Output = anyhow::Result<Vec<u8>>>,
{
    async fn run(mut self) {
        let _vital = Vital("keys");
        let mut asked_at: Option<Instant> = None;
        let mut ask: Option<Ask> = None;
        loop {
            let fetched = (self.fetch)().await;
            let taken = fetched.and_then(|text| self.take(text));
            let delay = self.delay(taken);
            // Whoever asked for this fetch has its answer, and whoever did while it was under way.
            drop(ask.take());
            while self.asks.try_recv().is_ok() {}
            let due = Instant::now() + delay;
            ask = loop {
                tokio::select! {
                    () = sleep_until(due) => break None,
                    ask = self.asks.recv() => match ask {
                        None => return,
                        Some(_) if asked_at.is_some_and(|at| at.elapsed() < ASK_INTERVAL) => {}
                        ask => {
                            asked_at = Some(Instant::now());
                            break ask;
                        }
                    }
                }
            };
        }
    }

    /// An empty set is taken too: it may be how somebody withdraws the only key.
    fn take(&mut self, text: Vec<u8>) -> anyhow::Result<()> {
        // What cannot be used is not told again every time.
        if self.keys.borrow().is_none() || self.text != text {
            let keys = parse_public_set(&text)?;
            if keys.is_empty() {
                warn!("the JWKS has no key that can be used: no token is good");
            }
            self.keys.send_replace(Some(keys.into()));
            self.text = text;
        }
        Ok(())
    }

    /// How long to wait, after that.
    fn delay(&mut self, taken: anyhow::Result<()>) -> Duration {
        match taken {
            Ok(()) => {
                if self.failures > 0 {
                    info!(failures = self.failures, "the JWKS is there again");
                }
                self.failures = 0;
                self.refresh
            }
            Err(error) => {
                if self.failures == 0 {
                    let error = format!("{error:#}");
                    warn!(error, "the JWKS cannot be fetched: old keys are kept");
                }
                let doubled = RETRY_DELAY * (1 << self.failures.min(5));
                self.failures = self.failures.saturating_add(1);
                doubled.min(RETRY_DELAY_MAX).min(self.refresh)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::sample;
    use crate::fetch::canned;
    use serde_json::json;
    use tokio::sync::Mutex;

    fn set(kid: &str) -> Vec<u8> {
        sample::jwks(&[sample::jwk("p256", Some(kid), json!({}))])
    }

    fn has(remote: &Remote, kid: &str) -> bool {
        remote
            .keys()
            .is_some_and(|keys| keys.iter().any(|key| key.is_named(kid)))
    }

    #[test]
    fn keys_of_a_set_are_for_one_algorithm() {
        let algorithm = |jwk: Value| {
            let key = Key::jwk(&jwk).map_err(|error| format!("{error:#}"));
            key.map(|key| key.map(|key| key.algorithm()))
        };
        for (name, more, expected) in [
            ("rsa", json!({}), Algorithm::RS256),
            ("p256", json!({}), Algorithm::ES256),
            ("ed25519", json!({}), Algorithm::EdDSA),
            ("secret", json!({}), Algorithm::HS256),
            ("rsa", json!({ "alg": "RS512" }), Algorithm::RS512),
            ("rsa", json!({ "alg": "PS256" }), Algorithm::PS256),
            ("rsa", json!({ "use": "sig" }), Algorithm::RS256),
        ] {
            let jwk = sample::jwk(name, None, more);
            assert_eq!(algorithm(jwk.clone()), Ok(Some(expected)), "{jwk}");
        }
        let encryption = sample::jwk("rsa", None, json!({ "use": "enc" }));
        assert_eq!(algorithm(encryption), Ok(None));
        for (name, more, why) in [
            (
                "rsa",
                json!({ "alg": "HS256" }),
                "HS256 is not for keys of this kind",
            ),
            (
                "secret",
                json!({ "alg": "RS256" }),
                "RS256 is not for keys of this kind",
            ),
            ("p256", json!({ "alg": "ES384" }), "not a key of ES384"),
            (
                "p256",
                json!({ "alg": "ES512" }),
                "not one of signatures that are known",
            ),
            (
                "p256",
                json!({ "alg": "none" }),
                "not one of signatures that are known",
            ),
            (
                "rsa",
                json!({ "alg": "RSA-OAEP" }),
                "not one of signatures that are known",
            ),
            ("p256", json!({ "crv": "P-384" }), "its kind is not known"),
            (
                "p256",
                json!({ "crv": "secp256k1" }),
                "its kind is not known",
            ),
            ("p256", json!({ "kty": "new" }), "its kind is not known"),
            ("p256", json!({ "x": "AAAA" }), "not a key of ES256"),
            (
                "ed25519",
                json!({ "x": "AAAA" }),
                "an Ed25519 key has 32 bytes",
            ),
            (
                "rsa",
                json!({ "n": "AQAB" }),
                "an RSA key has 2048 to 4096 bits, this one 17",
            ),
            ("rsa", json!({ "n": "AAAA" }), "this one 0"),
            ("rsa", json!({ "n": "!" }), "its parts are no key"),
            (
                "secret",
                json!({ "k": "c2hvcnQ" }),
                "a secret has at least 32 bytes",
            ),
        ] {
            let jwk = sample::jwk(name, None, more);
            let error = algorithm(jwk.clone()).unwrap_err();
            assert!(error.contains(why), "{jwk}: {error}");
        }
        assert!(algorithm(json!("key")).is_err());
    }

    #[test]
    fn files_without_a_key_are_refused() {
        let pem = |pem, algorithm| match Key::pem(pem, algorithm) {
            Ok(_) => panic!("refused"),
            Err(error) => format!("{error:#}"),
        };
        for (text, algorithm, why) in [
            (sample::RSA, Algorithm::RS256, "this is a private key"),
            (sample::RSA_1024_PUBLIC, Algorithm::RS256, "this one 1024"),
            (
                sample::RSA_PUBLIC,
                Algorithm::ES256,
                "not a public key of ES256",
            ),
            (sample::P256_PUBLIC, Algorithm::RS256, "not a"),
            (sample::P384_PUBLIC, Algorithm::ES256, "not a key of ES256"),
            (
                sample::P256_PUBLIC,
                Algorithm::EdDSA,
                "not a public key of EdDSA",
            ),
            (sample::RSA_PUBLIC, Algorithm::HS256, "a PEM key is for"),
            ("hello", Algorithm::RS256, "not a public key of RS256"),
        ] {
            let error = pem(text, algorithm);
            assert!(error.contains(why), "{why}: {error}");
        }
        let error = Key::secret("short").unwrap_err().to_string();
        assert_eq!(error, "a secret has at least 32 bytes");
        for (text, fine) in [
            ("hello", false),
            ("[]", false),
            (r#"{"keys": []}"#, false),
            (r#"{"keys": [{"kty": "new"}]}"#, false),
            (std::str::from_utf8(&set("a")).unwrap(), true),
        ] {
            assert_eq!(usable_set(text.as_bytes()).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn a_bad_key_does_not_spoil_a_set() {
        let bad = [
            json!({ "kty": "new" }),
            json!(7),
            json!({ "kty": "RSA", "n": 1, "e": 1 }),
        ];
        let good = sample::jwk("p256", Some("a"), json!({}));
        let all = [&bad[..], &[good]].concat();
        assert_eq!(parse_set(&sample::jwks(&all)).unwrap().len(), 1);
        let many = vec![sample::jwk("secret", None, json!({})); SET_KEYS_MAX + 1];
        assert_eq!(parse_set(&sample::jwks(&many)).unwrap().len(), SET_KEYS_MAX);
    }

    #[tokio::test]
    async fn a_key_server_is_asked() {
        let good = set("a");
        let good = std::str::from_utf8(&good).unwrap();
        let refresh = Duration::from_millis(1);
        let outage = [
            canned::answer(500, good),
            canned::answer(302, good),
            canned::answer(200, "hello"),
            canned::answer(200, &" ".repeat(SET_BYTES_MAX + 1)),
            b"garbage".to_vec(),
        ];
        let changed = set("b");
        let changed = canned::answer(200, std::str::from_utf8(&changed).unwrap());
        let answers = [&[canned::answer(200, good)], &outage[..], &[changed]].concat();
        let mut server = canned::serve(&answers).await;
        let mut remote = Remote::start(&server.url, refresh, &Handle::current()).unwrap();
        assert!(remote.keys().is_none());
        remote.keys.changed().await.unwrap();
        assert!(has(&remote, "a"));
        remote.keys.changed().await.unwrap();
        assert!(has(&remote, "b") && !has(&remote, "a"));
        for _ in 0..outage.len() + 2 {
            server.requests.try_recv().unwrap();
        }
    }

    /// A key server that answers when the test says so.
    struct Fake {
        answers: mpsc::UnboundedSender<Option<Vec<u8>>>,
        asked: mpsc::UnboundedReceiver<Duration>,
    }

    fn fake(refresh: Duration) -> (Remote, Fake) {
        let (answers, answers_receiver) = mpsc::unbounded_channel::<Option<Vec<u8>>>();
        let (seen, asked) = mpsc::unbounded_channel();
        let answer = Arc::new(Mutex::new(answers_receiver));
        let start = Instant::now();
        let fetch = move || {
            let (answer, seen) = (answer.clone(), seen.clone());
            async move {
                let _ = seen.send(start.elapsed());
                let answer = answer.lock().await.recv().await.unwrap();
                answer.context("away")
            }
        };
        let (remote, keeper) = Remote::new(fetch, refresh);
        tokio::spawn(keeper.run());
        (remote, Fake { answers, asked })
    }

    impl Fake {
        /// When it is asked next, in seconds; then it answers with that key, or not at all.
        async fn answer(&mut self, key: Option<&str>) -> u64 {
            let asked = self.asked.recv().await.unwrap();
            self.answers.send(key.map(set)).unwrap();
            asked.as_secs()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_keeps_the_keys_and_is_tried_again() {
        let (mut remote, mut server) = fake(Duration::from_secs(600));
        let mut asked = Vec::new();
        for _ in 0..4 {
            asked.push(server.answer(None).await);
            assert!(remote.keys().is_none());
        }
        assert_eq!(asked, [0, 1, 3, 7]);
        assert_eq!(server.answer(Some("a")).await, 15);
        remote.keys.changed().await.unwrap();
        let mut asked = Vec::new();
        for _ in 0..8 {
            asked.push(server.answer(None).await);
            assert!(has(&remote, "a"), "kept");
        }
        assert_eq!(asked, [615, 616, 618, 622, 630, 646, 676, 706]);
        assert_eq!(server.answer(Some("b")).await, 736);
        remote.keys.changed().await.unwrap();
        assert!(has(&remote, "b") && !has(&remote, "a"));
        assert_eq!(server.answer(None).await, 1336);
    }

    #[tokio::test(start_paused = true)]
    async fn askers_share_one_fetch_in_ten_seconds() {
        let (remote, mut server) = fake(Duration::from_secs(600));
        let askers = async |count: usize| {
            let asks = (0..count).map(|_| remote.freshen());
            futures_util::future::join_all(asks).await;
        };
        let (asked, ()) = tokio::join!(server.answer(Some("a")), askers(5));
        assert_eq!(asked, 0, "those of the beginning have the first");
        let (asked, ()) = tokio::join!(server.answer(Some("b")), askers(5));
        assert_eq!(asked, 0, "one more");
        assert!(has(&remote, "b"));
        askers(ASKS_MAX + 5).await;
        assert!(server.asked.try_recv().is_err(), "at once, and not asked");
        tokio::time::advance(ASK_INTERVAL).await;
        let (asked, ()) = tokio::join!(server.answer(Some("c")), askers(1));
        assert_eq!(asked, ASK_INTERVAL.as_secs());
        drop(remote);
        assert!(
            server.asked.recv().await.is_none(),
            "nobody left to fetch for"
        );
    }
}
