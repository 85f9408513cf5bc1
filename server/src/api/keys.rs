//! The keys of the HTTP API: whose they are, what they may do, and where they come from.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::ensure;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::{self, ApiKey, Scope, keys_of_file};
use crate::reload::{Followed, Parse, Reload};
use crate::seldom::Seldom;

/// Every key that is good at the moment.
pub struct Keys {
    followed: Followed<Vec<Key>>,
    /// The one that the node has made for itself, where none is configured.
    own: Option<String>,
}

/// One key. Kept as its digest: two digests are as long, so their comparison tells nothing about the length of a key.
struct Key {
    digest: [u8; 32],
    holder: Arc<Holder>,
}

/// Who asks: the name of its key, for the log, and what it may do.
#[derive(Debug)]
pub struct Holder {
    name: String,
    scopes: Scopes,
    refusals: Seldom,
    acts: Seldom,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

/// Bytes of a key that the node makes: 256 bits.
const OWN_KEY_BYTES: usize = 32;

/// The name of that key in the log.
const OWN_KEY_NAME: &str = "the node's own key";

/// Most keys, of all files together.
const KEYS_MAX: usize = 1000;

// === impl Keys ===

impl Keys {
    /// Reads the keys of the configuration, and their files again when they change. Without any it makes one.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, has no keys, or one that is too short.
    pub fn start(config: &config::Api, reload: &Reload) -> anyhow::Result<Self> {
        let own = (!config.has_keys()).then(own_key);
        let (files, parse) = source(config, own.clone());
        Ok(Self {
            followed: reload.follow("api.keys", files, parse)?,
            own,
        })
    }

    /// Takes the keys of that configuration from now on.
    ///
    /// # Errors
    ///
    /// As of [`Keys::start`]; then all stays as it was.
    pub fn change(&self, config: &config::Api) -> anyhow::Result<()> {
        // Whoever has the key that this node made goes on with it, until there are others.
        let own = self.own.clone().filter(|_| !config.has_keys());
        ensure!(
            own.is_some() || config.has_keys(),
            "there are no keys any more; a node makes one only at its start"
        );
        let (files, parse) = source(config, own);
        self.followed.change(files, parse)
    }

    /// The key that the node has made for itself, where none is configured.
    pub fn own(&self) -> Option<&str> {
        self.own.as_deref()
    }

    /// Who holds that key. Takes as long whichever it is.
    pub fn find(&self, given: &str) -> Option<Arc<Holder>> {
        let given: [u8; 32] = Sha256::digest(given).into();
        let keys = self.followed.get();
        let mut found = None;
        for key in keys.iter() {
            let same = bool::from(key.digest.ct_eq(&given));
            if same && found.is_none() {
                found = Some(&key.holder);
            }
        }
        found.map(Arc::clone)
    }
}

/// Random, and easy to copy.
fn own_key() -> String {
    let bytes: [u8; OWN_KEY_BYTES] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The files of keys, and the way to make all keys of what is in them.
fn source(config: &config::Api, own: Option<String>) -> (Vec<PathBuf>, Parse<Vec<Key>>) {
    let mut fixed = Vec::new();
    // Each with the name of its keys.
    let mut files = Vec::new();
    for (nth, entry) in config.keys.iter().enumerate() {
        let nameless = format!("api.keys[{nth}]");
        match entry {
            ApiKey::Plain(key) => fixed.push((key.clone(), Holder::new(nameless, Scopes::ALL))),
            ApiKey::Named(named) => {
                let name = match named.name.as_str() {
                    "" => nameless,
                    name => name.to_owned(),
                };
                let scopes = Scopes::of(&named.scopes());
                match named.key.as_str() {
                    "" => files.push((named.key_file.clone(), Some((name, scopes)))),
                    key => fixed.push((key.to_owned(), Holder::new(name, scopes))),
                }
            }
        }
    }
    if !config.keys_file.as_os_str().is_empty() {
        files.push((config.keys_file.clone(), None));
    }
    if let Some(own) = own {
        fixed.push((own, Holder::new(OWN_KEY_NAME.to_owned(), Scopes::ALL)));
    }
    let fixed: Vec<_> = fixed
        .into_iter()
        .map(|(key, holder)| (digest(&key), Arc::new(holder)))
        .collect();
    let paths = files.iter().map(|(path, _)| path.clone()).collect();
    let parse = move |contents: &[Vec<u8>]| {
        let fixed = fixed.iter().map(|(digest, holder)| Key {
            digest: *digest,
            holder: Arc::clone(holder),
        });
        let mut keys: Vec<Key> = fixed.collect();
        for ((path, whose), content) in files.iter().zip(contents) {
            for (line, key) in keys_of_file(path, content)? {
                let holder = match whose {
                    Some((name, scopes)) => Holder::new(name.clone(), *scopes),
                    None => Holder::new(format!("api.keys_file:{line}"), Scopes::ALL),
                };
                keys.push(Key {
                    digest: digest(&key),
                    holder: Arc::new(holder),
                });
            }
        }
        ensure!(keys.len() <= KEYS_MAX, "more than {KEYS_MAX} keys");
        Ok(keys)
    };
    (paths, Box::new(parse))
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

// === impl Holder ===

impl Holder {
    fn new(name: String, scopes: Scopes) -> Self {
        Self {
            name,
            scopes,
            refusals: Seldom::default(),
            acts: Seldom::default(),
        }
    }

    /// What it may do.
    pub fn scopes(&self) -> Scopes {
        self.scopes
    }

    /// Notes that it asked for what it may not do.
    pub fn refused(&self, scope: Scope) {
        if let Some(requests) = self.refusals.add(Instant::now(), 1) {
            warn!(
                key = self.name,
                scope = scope.as_str(),
                requests,
                "an API key lacks the scope of a request"
            );
        }
    }

    /// Notes that it did something that only administrators may.
    pub fn acted(&self, act: &str) {
        if let Some(acts) = self.acts.add(Instant::now(), 1) {
            info!(key = self.name, act, acts, "act of an administrator");
        }
    }
}

// === impl Scopes ===

impl Scopes {
    /// Everything.
    pub const ALL: Self = Self(0b111);

    fn of(scopes: &[Scope]) -> Self {
        let bits = scopes.iter().map(|scope| match scope {
            Scope::Admin => Self::ALL.0,
            scope => Self::bit(*scope),
        });
        Self(bits.fold(0, |all, bit| all | bit))
    }

    fn bit(scope: Scope) -> u8 {
        match scope {
            Scope::Read => 0b001,
            Scope::Send => 0b010,
            Scope::Admin => 0b100,
        }
    }

    /// Whether that is among them.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & Self::bit(scope) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use std::time::Duration;
    use tokio::runtime::Handle;

    fn keys(api_keys: &str, keys_file: &str) -> anyhow::Result<Keys> {
        let flags = [("api.keys", api_keys), ("api.keys_file", keys_file)];
        let flags = flags.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let sources = Sources {
            flags: flags.to_vec(),
            ..Sources::without_file()
        };
        let reload = Reload::new(Duration::from_secs(10), &Handle::current());
        Keys::start(&sources.load()?.config.api, &reload)
    }

    #[tokio::test]
    async fn a_key_has_its_name_and_its_scopes() {
        let folder = tempfile::tempdir().unwrap();
        let (all, some) = (folder.path().join("all"), folder.path().join("some"));
        std::fs::write(&all, "# of the shop\nfirst-of-the-file\n").unwrap();
        std::fs::write(&some, "old-of-grafana\nnew-of-grafana").unwrap();
        let entries = format!(
            "['first-key', {{ name = 'shop', key = 'second-key', scopes = ['send', 'read'] }}, \
             {{ name = 'grafana', key_file = {some:?}, scopes = ['read'] }}, {{ key = 'third-key' }}]"
        );
        let keys = keys(&entries, all.to_str().unwrap()).unwrap();
        for (key, name, scopes) in [
            ("first-key", "api.keys[0]", "read send admin"),
            ("second-key", "shop", "read send"),
            ("old-of-grafana", "grafana", "read"),
            ("new-of-grafana", "grafana", "read"),
            ("third-key", "api.keys[3]", "read send admin"),
            ("first-of-the-file", "api.keys_file:2", "read send admin"),
        ] {
            let holder = keys.find(key).expect(key);
            assert_eq!(holder.name, name);
            for scope in [Scope::Read, Scope::Send, Scope::Admin] {
                let may = scopes.contains(scope.as_str());
                assert_eq!(holder.scopes().has(scope), may, "{key} {scope:?}");
            }
        }
        for nobody in ["", "first-ke", "first-key ", "FIRST-KEY", "# of the shop"] {
            assert!(keys.find(nobody).is_none(), "{nobody}");
        }
        assert!(keys.own().is_none());
    }

    #[tokio::test]
    async fn without_keys_there_is_one_that_nobody_can_guess() {
        let (one, other) = (keys("", "").unwrap(), keys("", "").unwrap());
        let key = one.own().unwrap();
        assert_eq!(key.len(), 2 * OWN_KEY_BYTES);
        assert_ne!(one.own(), other.own());
        assert_eq!(one.find(key).unwrap().scopes(), Scopes::ALL);
        assert!(other.find(key).is_none());
    }
}
