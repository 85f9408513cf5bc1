//! How requests to the application are signed: as the Standard Webhooks specification has it, for which
//! most languages have a library. <https://www.standardwebhooks.com>

use std::fmt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config;
use crate::reload::{Followed, Parse, Reload};

/// What a secret begins with whose rest is base64.
const PREFIX: &str = "whsec_";

/// Signs requests with one secret. Cheap to clone.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

impl Signer {
    /// That of the configuration's secret, which is read again when its file changes. None without a secret.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a secret that is none.
    pub fn follow(
        config: &config::Hooks,
        reload: &Reload,
    ) -> anyhow::Result<Option<Followed<Self>>> {
        if config.secret.0.is_empty() && config.secret_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let (files, parse) = Self::source(config);
        let followed = reload.follow("hooks.secret", files, parse);
        followed.context("hooks.secret").map(Some)
    }

    /// Signs with the secret of that configuration from now on.
    ///
    /// # Errors
    ///
    /// As of [`Signer::follow`]; then all stays as it was.
    pub fn change(followed: &Followed<Self>, config: &config::Hooks) -> anyhow::Result<()> {
        let (files, parse) = Self::source(config);
        followed.change(files, parse)
    }

    fn source(config: &config::Hooks) -> (Vec<PathBuf>, Parse<Self>) {
        let secret = config.secret.clone();
        let files = config::files([&config.secret_file]);
        let parse = move |contents: &[Vec<u8>]| {
            let secret = secret.or_content(contents.first().map(Vec::as_slice))?;
            Self::new(&secret.context("a secret is needed")?)
        };
        (files, Box::new(parse))
    }

    /// The key is the secret, or what follows `whsec_`, decoded.
    ///
    /// # Errors
    ///
    /// A secret that is empty, or is not base64 after `whsec_`. They do not tell it.
    pub fn new(secret: &str) -> anyhow::Result<Self> {
        let key = match secret.strip_prefix(PREFIX) {
            None => secret.as_bytes().to_vec(),
            Some(encoded) => STANDARD
                .decode(encoded)
                .ok()
                .with_context(|| format!("what follows `{PREFIX}` in the secret is not base64"))?,
        };
        ensure!(!key.is_empty(), "the secret is empty");
        let hmac = Hmac::new_from_slice(&key).context("the secret is no key")?;
        Ok(Self(hmac))
    }

    /// The headers that a request carries. The id is that of the message: the same for each attempt.
    pub fn headers(&self, id: &str, now: SystemTime, body: &[u8]) -> [(&'static str, String); 3] {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut hmac = self.0.clone();
        hmac.update(format!("{id}.{seconds}.").as_bytes());
        hmac.update(body);
        let signature = STANDARD.encode(hmac.finalize().into_bytes());
        [
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", seconds.to_string()),
            ("webhook-signature", format!("v1,{signature}")),
        ]
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_example_of_the_specification() {
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let now = UNIX_EPOCH + Duration::from_secs(1_614_265_330);
        let body = br#"{"test": 2432232314}"#;
        let signer = Signer::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        assert_eq!(
            signer.headers(id, now, body),
            [
                ("webhook-id", id.to_owned()),
                ("webhook-timestamp", "1614265330".to_owned()),
                (
                    "webhook-signature",
                    "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned()
                ),
            ]
        );
    }

    #[test]
    fn any_other_text_is_the_key_itself() {
        let signature =
            |secret| Signer::new(secret).unwrap().headers("id", UNIX_EPOCH, b"")[2].clone();
        assert_eq!(signature("whsec_c2VjcmV0"), signature("secret"));
        assert_ne!(signature("c2VjcmV0"), signature("secret"));
    }

    #[tokio::test]
    async fn a_secret_is_rotated_by_writing_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "whsec_b25l\n").unwrap();
        let mut config = config::Sources::default().load().unwrap().config.hooks;
        config.secret_file = file.clone();
        let outside = tokio::runtime::Handle::current();
        let reload = Reload::new(std::time::Duration::from_secs(10), &outside);
        let followed = Signer::follow(&config, &reload).unwrap().expect("a secret");
        let signs = |secret: &str| {
            let headers = |signer: &Signer| signer.headers("id", UNIX_EPOCH, b"");
            headers(&followed.get()) == headers(&Signer::new(secret).unwrap())
        };
        assert!(signs("one"));
        for (text, secret) in [
            ("two", "two"),
            ("whsec_?", "two"),
            ("", "two"),
            ("three", "three"),
        ] {
            std::fs::write(&file, text).unwrap();
            reload.look().await;
            assert!(signs(secret), "{text}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_told() {
        for secret in ["", "whsec_", "whsec_hush, hush"] {
            let error = format!("{:#}", Signer::new(secret).unwrap_err());
            assert!(!error.contains("hush"), "{error}");
        }
    }
}
