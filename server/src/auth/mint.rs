//! Tokens for a try, and for services that keep the same secret: what `unisono token` prints.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use proto::UserName;
use serde_json::{Map, Value};

use super::Rights;
use super::keys::SECRET_BYTES_MIN;
use super::token::{SECONDS_MAX, TOKEN_BYTES_MAX};
use crate::config;
use crate::rules::Pattern;
use crate::textfile;

/// What a token says, and who signs it.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// Who the client is
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Rooms that it may be in, as `/chat-rooms/{id}`; may be given several times. Without any: all that
    /// the rules allow
    #[arg(long = "room", value_name = "PATTERN")]
    pub rooms: Vec<String>,
    /// What it may do: join, publish, emit or send; may be given several times. Without any: all of them
    #[arg(long = "right", value_name = "RIGHT")]
    pub rights: Vec<String>,
    /// How long the token is good
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub expires_in: Duration,
    /// Another claim, as `level=3` or `name="Ann"`, quotes and all; may be given several times. Wins over
    /// what would stand there otherwise
    #[arg(long = "claim", value_name = "KEY=JSON", value_parser = claim)]
    pub claims: Vec<(String, Value)>,
    /// A private key as PEM (PKCS #8) to sign with, instead of auth.secret
    #[arg(long, value_name = "FILE", requires = "algorithm")]
    pub key_file: Option<PathBuf>,
    /// The algorithm of that key: RS256, ES256 or EdDSA
    #[arg(long, value_name = "ALGORITHM", requires = "key_file")]
    pub algorithm: Option<String>,
    /// The name of the key in a JWKS
    #[arg(long, value_name = "ID")]
    pub kid: Option<String>,
}

/// Makes a token that nodes of this configuration take, where they know the key.
///
/// # Errors
///
/// No key, or one that is none; a name, a pattern or a right that is none.
pub fn mint(args: &TokenArgs, config: &config::Auth, now: SystemTime) -> anyhow::Result<String> {
    let (algorithm, key) = match &args.key_file {
        Some(path) => {
            let read = || pem(&textfile::read_bytes(path)?, args.algorithm.as_deref());
            read().with_context(|| format!("cannot sign with {}", path.display()))?
        }
        None => (Algorithm::HS256, secret(config)?),
    };
    let header = Header {
        kid: args.kid.clone(),
        ..Header::new(algorithm)
    };
    let claims = claims(args, config, now)?;
    let token = jsonwebtoken::encode(&header, &claims, &key).context("the key signs nothing")?;
    let bytes = token.len();
    ensure!(
        bytes <= TOKEN_BYTES_MAX,
        "the token would have {bytes} bytes, and {TOKEN_BYTES_MAX} are the most that a node takes"
    );
    Ok(token)
}

fn secret(config: &config::Auth) -> anyhow::Result<EncodingKey> {
    let secret = config.secret.or_file(&config.secret_file)?.context(
        "nothing to sign with: set auth.secret or auth.secret_file, or give --key-file and --algorithm",
    )?;
    let enough = secret.len() >= SECRET_BYTES_MIN;
    ensure!(
        enough,
        "auth.secret has fewer than {SECRET_BYTES_MIN} bytes"
    );
    Ok(EncodingKey::from_secret(secret.as_bytes()))
}

fn pem(pem: &[u8], algorithm: Option<&str>) -> anyhow::Result<(Algorithm, EncodingKey)> {
    let (algorithm, key) = match algorithm {
        Some("RS256") => (Algorithm::RS256, EncodingKey::from_rsa_pem(pem)),
        Some("ES256") => (Algorithm::ES256, EncodingKey::from_ec_pem(pem)),
        Some("EdDSA") => (Algorithm::EdDSA, EncodingKey::from_ed_pem(pem)),
        _ => bail!("--algorithm is RS256, ES256 or EdDSA"),
    };
    let key = key.with_context(|| format!("not a private key of {algorithm:?} as PKCS #8 PEM"))?;
    Ok((algorithm, key))
}

fn claims(
    args: &TokenArgs,
    config: &config::Auth,
    now: SystemTime,
) -> anyhow::Result<Map<String, Value>> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let end = now.saturating_add(args.expires_in);
    ensure!(end.as_secs() <= SECONDS_MAX, "--expires-in is too long");
    let mut claims = Map::new();
    let mut set = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    if let Some(user) = &args.user {
        UserName::parse(user).context("--user")?;
        set(&config.user_claim, user.as_str().into());
    }
    if !args.rooms.is_empty() {
        for room in &args.rooms {
            Pattern::parse(room).with_context(|| format!("--room {room}"))?;
        }
        set(&config.rooms_claim, args.rooms.clone().into());
    }
    if !args.rights.is_empty() {
        let words = args.rights.iter().map(String::as_str);
        Rights::of(words).map_err(|error| anyhow::anyhow!("--right: {error}"))?;
        set(&config.rights_claim, args.rights.clone().into());
    }
    if let Some(audience) = config.audience.first() {
        set("aud", audience.as_str().into());
    }
    if let Some(issuer) = config.issuer.first() {
        set("iss", issuer.as_str().into());
    }
    set("iat", now.as_secs().into());
    set("exp", end.as_secs().into());
    for (name, value) in &args.claims {
        set(name, value.clone());
    }
    Ok(claims)
}

fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected KEY=JSON")?;
    let value = serde_json::from_str(value);
    let bad = |_| "what follows `=` is not JSON; a text has quotes, as 'name=\"Ann\"'".to_owned();
    Ok((name.to_owned(), value.map_err(bad)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Grant, sample};
    use crate::config::AuthMode;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TokenArgs,
    }

    fn args(args: &[&str]) -> TokenArgs {
        Cli::parse_from([&["token"], args].concat()).args
    }

    fn keyed() -> config::Config {
        let mut config = sample::config();
        config.auth.mode = AuthMode::Token;
        config.auth.secret.0 = sample::SECRET.to_owned();
        config
    }

    async fn granted(config: &config::Config, token: &str) -> Grant {
        let auth = sample::auth(config).unwrap();
        auth.refresh(token).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_minted_is_taken() {
        let mut config = keyed();
        config.auth.user_claim = "id".to_owned();
        config.auth.audience = vec!["sockets".to_owned(), "other".to_owned()];
        config.auth.issuer = vec!["https://example.com".to_owned()];
        let args = args(&[
            "--user=ann",
            "--room=/chat/{id}",
            "--room=/all",
            "--right=join",
            "--right=send",
            "--expires-in=2h",
        ]);
        let now = SystemTime::now();
        let grant = granted(&config, &mint(&args, &config.auth, now).unwrap()).await;
        assert_eq!(grant.user.unwrap().as_str(), "ann");
        let patterns = ["/chat/{id}", "/all"].map(|room| Pattern::parse(room).unwrap());
        assert_eq!(*grant.rooms.unwrap(), patterns);
        assert_eq!(grant.rights, Rights::of(["join", "send"]).unwrap());
        let left = grant.expires_at.unwrap().duration_since(now).unwrap();
        assert_eq!(left.as_secs().div_ceil(60), 120);
    }

    #[tokio::test]
    async fn nothing_said_is_nothing_claimed() {
        let config = keyed();
        let token = mint(&args(&[]), &config.auth, SystemTime::now()).unwrap();
        let grant = granted(&config, &token).await;
        let expires_at = grant.expires_at;
        assert_eq!(
            grant,
            Grant {
                expires_at,
                ..Grant::default()
            }
        );
        let args = args(&["--claim", "sub=7", "--claim", "exp=4102444800"]);
        let token = mint(&args, &config.auth, SystemTime::now()).unwrap();
        let grant = granted(&config, &token).await;
        assert_eq!(grant.user.unwrap().as_str(), "7");
        assert_eq!(
            grant.expires_at,
            Some(UNIX_EPOCH + Duration::from_secs(4_102_444_800))
        );
    }

    #[tokio::test]
    async fn private_keys_sign() {
        for (algorithm, private, public) in [
            ("RS256", "rsa.pem", "rsa.pub.pem"),
            ("ES256", "p256.pem", "p256.pub.pem"),
            ("EdDSA", "ed25519.pem", "ed25519.pub.pem"),
        ] {
            let mut config = keyed();
            config.auth.secret.0.clear();
            config.auth.public_key_file = sample::path(public);
            config.auth.algorithm = algorithm.to_owned();
            let private = sample::path(private);
            let private = private.to_str().unwrap();
            let args = args(&["--key-file", private, "--algorithm", algorithm, "--kid=a"]);
            let token = mint(&args, &config.auth, SystemTime::now()).unwrap();
            assert_eq!(
                jsonwebtoken::decode_header(&token).unwrap().kid.as_deref(),
                Some("a")
            );
            granted(&config, &token).await;
        }
    }

    #[test]
    fn what_cannot_be_minted_is_said() {
        let public = sample::path("rsa.pub.pem");
        let public = public.to_str().unwrap();
        let p256 = sample::path("p256.pem");
        let key = ["--key-file", p256.to_str().unwrap(), "--algorithm"];
        let long = format!("--claim=a=\"{}\"", "x".repeat(TOKEN_BYTES_MAX));
        for (given, expected) in [
            (&["--user="][..], "--user: a name has at least one byte"),
            (
                &["--room=/a{b}"],
                "--room /a{b}: `{name}` stands for a whole segment",
            ),
            (
                &["--right=fly"],
                "--right: a right is one of join, publish, emit and send",
            ),
            (&["--expires-in=9000years"], "--expires-in is too long"),
            (&[&long], "the token would have"),
            (
                &[key[0], key[1], key[2], "HS256"],
                "--algorithm is RS256, ES256 or EdDSA",
            ),
            (
                &[key[0], key[1], key[2], "RS256"],
                "not a private key of RS256",
            ),
            (&[key[0], public, key[2], "RS256"], "the key signs nothing"),
            (
                &[key[0], key[1], key[2], "EdDSA"],
                "not a private key of EdDSA",
            ),
            (
                &[key[0], "/nowhere", key[2], "ES256"],
                "cannot sign with /nowhere",
            ),
        ] {
            let error = mint(&args(given), &keyed().auth, SystemTime::now()).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{given:.80?}: {error}");
        }
        for (secret, expected) in [
            (
                "",
                "nothing to sign with: set auth.secret or auth.secret_file",
            ),
            ("short", "auth.secret has fewer than 32 bytes"),
        ] {
            let mut config = keyed();
            config.auth.secret.0 = secret.to_owned();
            let error = mint(&args(&[]), &config.auth, SystemTime::now()).unwrap_err();
            assert!(error.to_string().starts_with(expected), "{error}");
        }
    }

    #[test]
    fn flags_that_make_no_sense_are_refused() {
        for given in [
            &["--claim=a"][..],
            &["--claim=a=b"],
            &["--key-file=a"],
            &["--algorithm=RS256"],
            &["--expires-in=soon"],
        ] {
            let given = [&["token"], given].concat();
            assert!(Cli::try_parse_from(&given).is_err(), "{given:?}");
        }
    }
}
