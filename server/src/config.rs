//! The configuration: one file of defaults, a user's file, the environment, flags. All mistakes are
//! found in one go, before any port is bound. Nothing else reads the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytesize::ByteSize;
use serde::{Deserialize, Deserializer};
use toml::{Table, Value};

use crate::auth::Listed;
use crate::rate::Limit;
use crate::rules::{Rule, Rules};
use crate::textfile;
use cluster::ClusterName;

/// Every key with its default and its comment; the only place that has them.
pub const REFERENCE: &str = include_str!("unisono.toml");

/// The file that is read when none is named and it exists.
pub const FILE_DEFAULT: &str = "unisono.toml";

/// `UNISONO__SECTION__KEY`.
const ENVIRONMENT_PREFIX: &str = "UNISONO__";

/// Keys whose values are URLs: of those only what comes before the path is shown.
const URLS: [&str; 6] = [
    "cluster.nats",
    "auth.jwks_url",
    "auth.hook_url",
    "hooks.url",
    "laravel.redis_url",
    "tracing.endpoint",
];

/// Keys whose values are not shown.
const SECRETS: [&str; 3] = ["api.keys", "auth.secret", "hooks.secret"];

/// Characters of an API key, at least.
const API_KEY_MIN: usize = 8;

/// Bytes of the name of an API key, at most.
const API_KEY_NAME_MAX: usize = 100;

const NO_SUCH_KEY: &str = "there is no such key";

/// What is wrong with such a value, without the value.
const SECRET_BAD: &str = "not the kind of value that belongs here (the value is not shown)";

/// Everything that can be set. See `unisono.toml` for what each key means.
#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    #[serde(deserialize_with = "address")]
    pub listen: SocketAddr,
    pub workers: usize,
    pub cluster: Cluster,
    pub tls: Tls,
    pub files: Files,
    pub sockets: Sockets,
    pub auth: Auth,
    pub hooks: Hooks,
    pub laravel: Laravel,
    pub api: Api,
    pub admin: Admin,
    #[serde(skip)]
    pub rules: Rules,
    pub drain: Drain,
    pub rebalance: Rebalance,
    pub tracing: Tracing,
    pub log: Log,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Tls {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub reload_interval: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Files {
    #[serde(deserialize_with = "duration")]
    pub reload_interval: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Cluster {
    #[serde(deserialize_with = "cluster_name")]
    pub name: ClusterName,
    pub node_name: String,
    pub nats: Vec<String>,
    pub nats_credentials_file: PathBuf,
    pub nats_user: String,
    pub nats_password_file: PathBuf,
    pub nats_token_file: PathBuf,
    pub nats_tls_ca: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub nats_connect_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub nats_reconnect_delay_max: Duration,
    #[serde(deserialize_with = "duration")]
    pub heartbeat_interval: Duration,
    #[serde(deserialize_with = "duration")]
    pub node_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub bus_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub call_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub room_linger: Duration,
    pub lingering_rooms: usize,
    pub queue_messages: usize,
    pub pending_requests: usize,
    pub subscription_messages: usize,
    #[serde(deserialize_with = "size")]
    pub incoming_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub ready_grace: Duration,
    #[serde(deserialize_with = "duration")]
    pub start_wait: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Sockets {
    pub max: usize,
    pub connections: usize,
    pub greeting: bool,
    #[serde(deserialize_with = "duration")]
    pub ping_interval: Duration,
    #[serde(deserialize_with = "duration")]
    pub pong_timeout: Duration,
    #[serde(deserialize_with = "size")]
    pub message_bytes: usize,
    #[serde(deserialize_with = "size")]
    pub queue_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub write_timeout: Duration,
    pub rooms_per_socket: usize,
    pub rooms_max: usize,
    pub join_rate: u32,
    pub join_burst: u32,
    pub first_join_rate: u32,
    pub first_join_burst: u32,
    pub emit_ids: usize,
    pub emits_in_flight: usize,
    #[serde(deserialize_with = "size")]
    pub head_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub head_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub close_timeout: Duration,
    #[serde(deserialize_with = "size")]
    pub inflight_bytes: usize,
    pub message_rate: u32,
    pub message_burst: u32,
    pub rate_warnings: u32,
    pub ping_rate: u32,
    pub ping_burst: u32,
    pub deflate: bool,
    #[serde(deserialize_with = "size")]
    pub deflate_min_bytes: usize,
    pub handshake_rate: u32,
    pub handshake_burst: u32,
    #[serde(deserialize_with = "duration")]
    pub handler_timeout: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Auth {
    pub mode: AuthMode,
    pub token_from: Vec<TokenPlace>,
    pub token_query: String,
    pub token_cookie: String,
    pub secret: Secret,
    pub secret_file: PathBuf,
    pub public_key_file: PathBuf,
    pub algorithm: String,
    pub jwks_file: PathBuf,
    pub jwks_url: String,
    #[serde(deserialize_with = "duration")]
    pub jwks_refresh: Duration,
    pub audience: Vec<String>,
    pub issuer: Vec<String>,
    #[serde(deserialize_with = "duration")]
    pub leeway: Duration,
    pub user_claim: String,
    pub rooms_claim: String,
    pub rights_claim: String,
    #[serde(deserialize_with = "duration")]
    pub expired_close_delay: Duration,
    pub hook_url: String,
    #[serde(deserialize_with = "duration")]
    pub hook_timeout: Duration,
    pub origins: Vec<String>,
    pub trusted_proxies: Vec<Network>,
}

/// How clients show who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthMode {
    /// They do not.
    None,
    /// By a JSON Web Token.
    Token,
    /// The application is asked.
    Hook,
}

/// Where a token is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenPlace {
    /// `Authorization: Bearer`.
    Header,
    /// A parameter of the URL.
    Query,
    /// A cookie.
    Cookie,
    /// A subprotocol that begins with `bearer.`.
    Subprotocol,
}

/// An address, or a network of addresses.
#[derive(Clone, Copy, Debug)]
pub struct Network(pub ipnet::IpNet);

/// A text that is not shown, by `Debug` neither.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Hooks {
    pub url: String,
    pub secret: Secret,
    pub secret_file: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    #[serde(deserialize_with = "size")]
    pub answer_bytes: usize,
    pub batch: usize,
    #[serde(deserialize_with = "size")]
    pub batch_bytes: usize,
    pub lanes: usize,
    pub queue: usize,
    #[serde(deserialize_with = "size")]
    pub queue_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub retry_for: Duration,
    #[serde(deserialize_with = "duration")]
    pub retry_delay_max: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Laravel {
    pub redis_url: String,
    pub redis_password_file: PathBuf,
    pub prefix: String,
    pub pattern: String,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Deserialize)]
pub struct Api {
    pub keys: Vec<ApiKey>,
    pub keys_file: PathBuf,
    #[serde(deserialize_with = "size")]
    pub body_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    #[serde(deserialize_with = "size")]
    pub linger_bytes: usize,
    #[serde(deserialize_with = "duration")]
    pub linger_time: Duration,
    #[serde(deserialize_with = "duration")]
    pub linger_timeout: Duration,
    pub ids: usize,
    pub batch: usize,
    pub page: usize,
}

/// An entry of `api.keys`: a key that may do everything, or a table.
#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub enum ApiKey {
    /// A key.
    Plain(String),
    /// A key, or a file of keys, with a name and scopes.
    Named(NamedKey),
}

/// A table of `api.keys`. What is wrong in it is told without its values, which may be secrets.
#[derive(Clone, Deserialize)]
pub struct NamedKey {
    /// For the log.
    #[serde(default)]
    pub name: String,
    /// The key itself,
    #[serde(default)]
    pub key: String,
    /// or a file of keys.
    #[serde(default)]
    pub key_file: PathBuf,
    /// What it may do; everything where this is missing.
    pub scopes: Option<Vec<String>>,
    #[serde(flatten)]
    unknown: BTreeMap<String, Value>,
}

/// What a key of the HTTP API may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Queries, the metrics, and tail.
    Read,
    /// Emit, publish, broadcast, join, leave.
    Send,
    /// Disconnect, drain, and all of the others.
    Admin,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Admin {
    #[serde(deserialize_with = "optional_address")]
    pub listen: Option<SocketAddr>,
    pub tls: bool,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Drain {
    #[serde(deserialize_with = "duration")]
    pub delay: Duration,
    #[serde(deserialize_with = "duration")]
    pub window: Duration,
    pub rate: u32,
    #[serde(deserialize_with = "duration")]
    pub reconnect_max: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Rebalance {
    pub enabled: bool,
    pub start_percent: u32,
    pub stop_percent: u32,
    pub rate: u32,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Tracing {
    pub endpoint: String,
    pub headers_file: PathBuf,
    pub service_name: String,
    pub sample_ratio: f64,
    pub queue: usize,
    pub batch: usize,
    #[serde(deserialize_with = "duration")]
    pub delay: Duration,
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
}

#[expect(missing_docs, reason = "documented, each key, in unisono.toml")]
#[derive(Clone, Debug, Deserialize)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// Where settings come from, in the order in which later wins.
#[derive(Clone, Default)]
pub struct Sources {
    /// A file that must exist.
    pub file: Option<PathBuf>,
    /// Names and values, as the environment has them.
    pub environment: Vec<(String, String)>,
    /// Flags, as `section.key` and text.
    pub flags: Vec<(String, String)>,
    /// Only what is said here: no file in the working directory is looked for.
    pub no_file: bool,
}

/// All that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigError {
    mistakes: Vec<Mistake>,
}

#[derive(Debug)]
struct Mistake {
    source: String,
    key: String,
    reason: String,
}

/// A configuration and the text that `unisono config` prints of it.
pub struct Loaded {
    /// What the program goes by.
    pub config: Config,
    /// The values in effect, with every comment, secrets hidden.
    pub text: String,
    /// The file that was read, if one was.
    pub file: Option<PathBuf>,
}

/// The names only: values may be secrets.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |pairs: &[(String, String)]| -> Vec<String> {
            pairs.iter().map(|(name, _)| name.clone()).collect()
        };
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("environment", &names(&self.environment))
            .field("flags", &names(&self.flags))
            .finish_non_exhaustive()
    }
}

impl Sources {
    /// The real environment.
    pub fn from_environment(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let ours = |(name, _): &(String, String)| name.starts_with(ENVIRONMENT_PREFIX);
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((
                name.into_string().ok()?,
                value.to_string_lossy().into_owned(),
            ))
        };
        Self {
            file,
            environment: std::env::vars_os().filter_map(text).filter(ours).collect(),
            flags,
            no_file: false,
        }
    }

    /// No sources at all: the defaults.
    pub fn without_file() -> Self {
        Self {
            no_file: true,
            ..Self::default()
        }
    }

    /// Reads and checks everything.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let mut merge = Merge::new();
        let file = match &self.file {
            Some(file) => Some(file.clone()),
            None => Some(PathBuf::from(FILE_DEFAULT)).filter(|file| !self.no_file && file.exists()),
        };
        if let Some(file) = &file {
            merge.add_file(file);
        }
        let mut environment = self.environment.clone();
        environment.sort();
        for (name, value) in &environment {
            let key = name
                .trim_start_matches(ENVIRONMENT_PREFIX)
                .to_lowercase()
                .replace("__", ".");
            merge.add_text(&format!("environment variable {name}"), &key, value);
        }
        for (key, value) in &self.flags {
            merge.add_text("flag", key, value);
        }
        let (config, text) = merge.finish()?;
        Ok(Loaded { config, text, file })
    }
}

/// The layers, one over the other, with the source of each value.
struct Merge {
    reference: Table,
    table: Table,
    sources: BTreeMap<String, String>,
    rooms: Vec<Value>,
    mistakes: Vec<Mistake>,
}

impl Merge {
    fn new() -> Self {
        let reference: Table = REFERENCE.parse().expect("the reference is TOML");
        Self {
            table: reference.clone(),
            reference,
            sources: BTreeMap::new(),
            rooms: Vec::new(),
            mistakes: Vec::new(),
        }
    }

    fn add_file(&mut self, path: &Path) {
        let source = path.display().to_string();
        let read = textfile::read(path)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                // Without the line itself, which may hold a secret.
                text.parse::<Table>().map_err(|error| {
                    let before = error.span().and_then(|span| text.get(..span.start));
                    let line = before.map_or(1, |before| before.matches('\n').count() + 1);
                    format!("line {line}: {}", error.message())
                })
            });
        match read {
            Ok(table) => self.add_table(&source, "", table),
            Err(reason) => self.mistake(&source, "", reason),
        }
    }

    fn add_table(&mut self, source: &str, prefix: &str, table: Table) {
        for (name, value) in table {
            let key = match prefix {
                "" => name,
                prefix => format!("{prefix}.{name}"),
            };
            match value {
                Value::Table(table) if self.is_section(&key) => {
                    self.add_table(source, &key, table);
                }
                value => self.add_value(source, &key, value),
            }
        }
    }

    /// A value from a place that has only text: its type is that of the default.
    fn add_text(&mut self, source: &str, key: &str, text: &str) {
        let parsed = |text: &str| {
            format!("value = {text}")
                .parse::<Table>()
                .ok()
                .and_then(|mut table| table.remove("value"))
        };
        let value = match self.reference_value(key) {
            Some(Value::String(_)) => Some(Value::String(text.to_owned())),
            Some(Value::Array(_)) if !text.trim_start().starts_with('[') => {
                let items = text.split(',').map(str::trim);
                let items = items.filter(|item| !item.is_empty());
                Some(Value::Array(
                    items.map(|item| Value::String(item.to_owned())).collect(),
                ))
            }
            _ => parsed(text),
        };
        match value {
            Some(value) => self.add_value(source, key, value),
            None if SECRETS.contains(&key) => self.mistake(source, key, SECRET_BAD.to_owned()),
            // What stands there may be a secret under a name with a slip in it.
            None if self.reference_value(key).is_none() && !self.is_section(key) => {
                self.mistake(source, key, NO_SUCH_KEY.to_owned());
            }
            None => self.mistake(source, key, format!("`{text}` is not a value for this key")),
        }
    }

    fn add_value(&mut self, source: &str, key: &str, value: Value) {
        if key == "rooms" {
            match value {
                Value::Array(rooms) => self.rooms = rooms,
                _ => self.mistake(source, key, "expected a list of tables".to_owned()),
            }
            self.sources.insert(key.to_owned(), source.to_owned());
            return;
        }
        if self.is_section(key) {
            return self.mistake(source, key, "this is a section, not a key".to_owned());
        }
        if self.reference_value(key).is_none() {
            return self.mistake(source, key, NO_SUCH_KEY.to_owned());
        }
        self.sources.insert(key.to_owned(), source.to_owned());
        self.set(key, value);
    }

    fn set(&mut self, key: &str, value: Value) {
        match key.split_once('.') {
            Some((section, key)) => {
                if let Some(Value::Table(section)) = self.table.get_mut(section) {
                    section.insert(key.to_owned(), value);
                }
            }
            None => {
                self.table.insert(key.to_owned(), value);
            }
        }
    }

    fn reference_value(&self, key: &str) -> Option<&Value> {
        match key.split_once('.') {
            Some((section, key)) => self.reference.get(section)?.get(key),
            None => self.reference.get(key),
        }
    }

    fn is_section(&self, key: &str) -> bool {
        matches!(self.reference.get(key), Some(Value::Table(_)))
    }

    fn mistake(&mut self, source: &str, key: &str, reason: String) {
        self.mistakes.push(Mistake {
            source: source.to_owned(),
            key: key.to_owned(),
            reason,
        });
    }

    fn source(&self, key: &str) -> String {
        let source = self.sources.get(key);
        source.map_or_else(|| "defaults".to_owned(), String::clone)
    }

    fn finish(mut self) -> Result<(Config, String), ConfigError> {
        let text = self.render();
        let config = self.deserialize();
        let rules = self.read_rooms();
        let config = config.map(|config| Config { rules, ..config });
        if let Some(config) = &config {
            for (key, reason) in config.contradictions() {
                let source = self.source(key);
                self.mistake(&source, key, reason);
            }
        }
        match config {
            Some(config) if self.mistakes.is_empty() => Ok((config, text)),
            _ => Err(ConfigError {
                mistakes: self.mistakes,
            }),
        }
    }

    /// A value that does not fit is noted, replaced by its default, and the rest is tried again, until all
    /// of them are known.
    fn deserialize(&mut self) -> Option<Config> {
        for _ in 0..=self.sources.len() {
            let value = Value::Table(self.table.clone());
            match serde_path_to_error::deserialize::<_, Config>(value) {
                Ok(config) => return Some(config),
                Err(error) => {
                    let path = error.path().to_string();
                    // An item of a list is a mistake of the list.
                    let key = path.split('[').next().unwrap_or_default().to_owned();
                    let key = key.trim_end_matches('.');
                    let default = self.reference_value(key).cloned();
                    let source = self.source(key);
                    let hidden = SECRETS.contains(&key) || URLS.contains(&key);
                    let reason = match hidden {
                        true => SECRET_BAD.to_owned(),
                        false => error.inner().message().trim_end().to_owned(),
                    };
                    self.mistake(&source, key, reason);
                    self.set(key, default?);
                }
            }
        }
        None
    }

    fn read_rooms(&mut self) -> Rules {
        let source = self.source("rooms");
        let mut rules = Vec::new();
        for (nth, room) in std::mem::take(&mut self.rooms).into_iter().enumerate() {
            match serde_path_to_error::deserialize::<_, Rule>(room) {
                Ok(rule) => rules.push(rule),
                Err(error) => {
                    let path = error.path().to_string();
                    let key = match path.as_str() {
                        "." => format!("rooms[{nth}]"),
                        path => format!("rooms[{nth}].{path}"),
                    };
                    let reason = error.inner().message().trim_end().to_owned();
                    self.mistake(&source, &key, reason);
                }
            }
        }
        Rules::new(rules)
    }

    /// The reference with the values in effect in the place of the defaults.
    fn render(&self) -> String {
        let mut document: toml_edit::DocumentMut =
            REFERENCE.parse().expect("the reference is TOML");
        for key in self.sources.keys().filter(|key| *key != "rooms") {
            let (section, name) = key.split_once('.').unwrap_or(("", key));
            let value = match section {
                "" => self.table.get(name),
                section => self.table.get(section).and_then(|table| table.get(name)),
            };
            let secret = SECRETS.contains(&key.as_str());
            let shown = match value {
                Some(Value::Array(items)) if secret => {
                    Value::Array(items.iter().map(hidden_key).collect())
                }
                Some(Value::String(text)) if secret && !text.is_empty() => "(hidden)".into(),
                Some(Value::String(text)) if URLS.contains(&key.as_str()) => shown_url(text).into(),
                Some(value) => value.clone(),
                None => continue,
            };
            let Ok(item) = shown.to_string().parse::<toml_edit::Value>() else {
                continue;
            };
            let item = toml_edit::value(item);
            match section {
                "" => document[name] = item,
                section => document[section][name] = item,
            }
        }
        let mut text = document.to_string();
        for room in &self.rooms {
            text.push_str("\n[[rooms]]\n");
            if let Value::Table(room) = room {
                text.push_str(&room.to_string());
            }
        }
        text
    }
}

/// An entry of a list of keys without the key.
fn hidden_key(entry: &Value) -> Value {
    let hidden = || Value::from("(hidden)");
    let Value::Table(table) = entry else {
        return hidden();
    };
    let open = ["name", "key_file", "scopes"];
    let shown = table
        .iter()
        .map(|(name, value)| match open.contains(&name.as_str()) {
            true => (name.clone(), value.clone()),
            false => (name.clone(), hidden()),
        });
    Value::Table(shown.collect())
}

/// A URL without what may be a secret in it: a user, a query.
fn shown_url(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return text.to_owned();
    };
    let secret = !url.username().is_empty() || url.password().is_some() || url.query().is_some();
    if !secret {
        return text.to_owned();
    }
    let _ = url.set_password(None);
    if !url.username().is_empty() {
        let _ = url.set_username("hidden");
    }
    if url.query().is_some() {
        url.set_query(Some("hidden"));
    }
    url.to_string()
}

impl Config {
    /// Values that are fine alone but not together, or not at all.
    fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut check = |ok: bool, key, reason: &str| {
            if !ok {
                found.push((key, reason.to_owned()));
            }
        };
        let Self {
            cluster,
            sockets,
            api,
            ..
        } = self;
        let rebalance_rate = self.rebalance.rate;
        check(self.workers <= 64, "workers", "at most 64");
        let logins = [
            !cluster.nats_credentials_file.as_os_str().is_empty(),
            !cluster.nats_user.is_empty(),
            !cluster.nats_token_file.as_os_str().is_empty(),
        ];
        let logins = logins.into_iter().filter(|login| *login).count();
        check(
            logins <= 1,
            "cluster.nats_user",
            "choose one of nats_credentials_file, nats_user and nats_token_file",
        );
        let password = !cluster.nats_password_file.as_os_str().is_empty();
        check(
            password != cluster.nats_user.is_empty(),
            "cluster.nats_password_file",
            "a user and a password file go together",
        );
        let tls = &self.tls;
        let certificate = !tls.certificate_file.as_os_str().is_empty();
        check(
            certificate != tls.key_file.as_os_str().is_empty(),
            "tls.key_file",
            "a certificate and its key go together",
        );
        check(
            certificate || !self.admin.tls,
            "admin.tls",
            "needs tls.certificate_file and tls.key_file",
        );
        for server in &cluster.nats {
            let scheme = ["nats://", "tls://"]
                .iter()
                .any(|scheme| server.starts_with(scheme));
            check(
                scheme,
                "cluster.nats",
                "a server reads nats://host:port or tls://host:port",
            );
            check(
                !server.contains('@'),
                "cluster.nats",
                "the URL is no place for a password; use nats_user and nats_password_file",
            );
            if let Err(error) = ::cluster::check_server(server) {
                check(false, "cluster.nats", &error.to_string());
            }
        }
        check(
            cluster.node_name.len() <= 100 && !cluster.node_name.chars().any(char::is_control),
            "cluster.node_name",
            "at most 100 bytes, without control characters",
        );
        check(
            cluster.heartbeat_interval >= Duration::from_millis(100),
            "cluster.heartbeat_interval",
            "at least 100ms",
        );
        check(
            cluster.node_timeout >= 2 * cluster.heartbeat_interval,
            "cluster.node_timeout",
            "at least twice heartbeat_interval",
        );
        check(
            cluster.bus_timeout >= 2 * cluster.heartbeat_interval,
            "cluster.bus_timeout",
            "at least twice heartbeat_interval",
        );
        check(
            cluster.room_linger >= cluster.call_timeout,
            "cluster.room_linger",
            "at least call_timeout",
        );
        for (value, key) in [
            (cluster.queue_messages, "cluster.queue_messages"),
            (cluster.pending_requests, "cluster.pending_requests"),
            (
                cluster.subscription_messages,
                "cluster.subscription_messages",
            ),
            (cluster.lingering_rooms, "cluster.lingering_rooms"),
            (sockets.max, "sockets.max"),
            (sockets.connections, "sockets.connections"),
            (sockets.rooms_per_socket, "sockets.rooms_per_socket"),
            (sockets.rooms_max, "sockets.rooms_max"),
            (sockets.join_rate as usize, "sockets.join_rate"),
            (sockets.join_burst as usize, "sockets.join_burst"),
            (sockets.first_join_rate as usize, "sockets.first_join_rate"),
            (
                sockets.first_join_burst as usize,
                "sockets.first_join_burst",
            ),
            (sockets.emit_ids, "sockets.emit_ids"),
            (sockets.emits_in_flight, "sockets.emits_in_flight"),
            (sockets.message_bytes, "sockets.message_bytes"),
            (sockets.message_rate as usize, "sockets.message_rate"),
            (sockets.message_burst as usize, "sockets.message_burst"),
            (sockets.rate_warnings as usize, "sockets.rate_warnings"),
            (sockets.ping_rate as usize, "sockets.ping_rate"),
            (sockets.ping_burst as usize, "sockets.ping_burst"),
            (sockets.handshake_burst as usize, "sockets.handshake_burst"),
            (rebalance_rate as usize, "rebalance.rate"),
            (self.hooks.batch, "hooks.batch"),
            (self.hooks.batch_bytes, "hooks.batch_bytes"),
            (self.hooks.lanes, "hooks.lanes"),
            (self.hooks.queue, "hooks.queue"),
            (self.tracing.queue, "tracing.queue"),
            (self.tracing.batch, "tracing.batch"),
            (api.ids, "api.ids"),
            (api.batch, "api.batch"),
            (api.page, "api.page"),
        ] {
            check(value >= 1, key, "at least 1");
        }
        check(
            sockets.message_bytes <= 64 << 20,
            "sockets.message_bytes",
            "at most 64MiB",
        );
        check(
            sockets.queue_bytes >= sockets.message_bytes,
            "sockets.queue_bytes",
            "at least message_bytes",
        );
        check(
            (1 << 16..=1 << 30).contains(&cluster.incoming_bytes),
            "cluster.incoming_bytes",
            "64KiB to 1GiB",
        );
        check(
            (1 << 16..=1 << 30).contains(&sockets.inflight_bytes),
            "sockets.inflight_bytes",
            "64KiB to 1GiB",
        );
        check(
            (1 << 10..=1 << 20).contains(&sockets.head_bytes),
            "sockets.head_bytes",
            "1KiB to 1MiB",
        );
        for (value, key) in [
            (sockets.ping_interval, "sockets.ping_interval"),
            (sockets.pong_timeout, "sockets.pong_timeout"),
            (sockets.write_timeout, "sockets.write_timeout"),
            (sockets.head_timeout, "sockets.head_timeout"),
            (sockets.handler_timeout, "sockets.handler_timeout"),
            (self.auth.hook_timeout, "auth.hook_timeout"),
            (self.auth.jwks_refresh, "auth.jwks_refresh"),
            (self.hooks.timeout, "hooks.timeout"),
            (self.tracing.delay, "tracing.delay"),
            (self.tracing.timeout, "tracing.timeout"),
            (self.hooks.retry_delay_max, "hooks.retry_delay_max"),
            (api.idle_timeout, "api.idle_timeout"),
            (api.linger_time, "api.linger_time"),
            (api.linger_timeout, "api.linger_timeout"),
            (self.tls.reload_interval, "tls.reload_interval"),
            (self.files.reload_interval, "files.reload_interval"),
            (cluster.call_timeout, "cluster.call_timeout"),
            (cluster.nats_connect_timeout, "cluster.nats_connect_timeout"),
        ] {
            check(value >= Duration::from_millis(10), key, "at least 10ms");
        }
        self.application_contradictions(&mut check);
        for key in &api.keys {
            if let Err(why) = key.check() {
                check(false, "api.keys", &why);
            }
        }
        let rebalance = &self.rebalance;
        check(
            rebalance.start_percent > rebalance.stop_percent && rebalance.start_percent <= 1_000,
            "rebalance.start_percent",
            "above stop_percent, at most 1000",
        );
        let tracing = &self.tracing;
        check(
            (0.0..=1.0).contains(&tracing.sample_ratio),
            "tracing.sample_ratio",
            "0 to 1",
        );
        check(
            tracing.batch <= tracing.queue,
            "tracing.batch",
            "at most queue",
        );
        check(tracing.queue <= 1 << 20, "tracing.queue", "at most 1048576");
        let base = |url: url::Url| {
            let scheme = matches!(url.scheme(), "http" | "https");
            let open = url.username().is_empty() && url.password().is_none();
            scheme && open && url.query().is_none() && url.fragment().is_none()
        };
        check(
            tracing.endpoint.is_empty() || url::Url::parse(&tracing.endpoint).is_ok_and(base),
            "tracing.endpoint",
            "a URL of http:// or https://, without a password or a query: a key goes into headers_file",
        );
        check(
            !tracing.service_name.is_empty(),
            "tracing.service_name",
            "a name is needed",
        );
        check(
            is_filter(&self.log.level),
            "log.level",
            "not error, warn, info, debug, trace or off, nor a list of target=level",
        );
        found
    }

    /// Those of the sections about the application.
    fn application_contradictions(&self, check: &mut impl FnMut(bool, &'static str, &str)) {
        let Self {
            auth,
            hooks,
            laravel,
            ..
        } = self;
        let set = |path: &Path| !path.as_os_str().is_empty();
        let keys = [
            !auth.secret.0.is_empty() || set(&auth.secret_file),
            set(&auth.public_key_file),
            set(&auth.jwks_file),
            !auth.jwks_url.is_empty(),
        ];
        check(
            auth.mode != AuthMode::Token || keys.contains(&true),
            "auth.mode",
            "tokens need a key: secret, secret_file, public_key_file, jwks_file or jwks_url",
        );
        check(
            auth.mode != AuthMode::Token || !auth.token_from.is_empty(),
            "auth.token_from",
            "name at least one place",
        );
        check(
            auth.secret.0.is_empty() || auth.secret.0.len() >= 32,
            "auth.secret",
            "at least 32 bytes",
        );
        check(
            auth.secret.0.is_empty() || !set(&auth.secret_file),
            "auth.secret_file",
            "choose one of secret and secret_file",
        );
        check(
            matches!(auth.algorithm.as_str(), "" | "RS256" | "ES256" | "EdDSA"),
            "auth.algorithm",
            "RS256, ES256 or EdDSA",
        );
        check(
            set(&auth.public_key_file) != auth.algorithm.is_empty(),
            "auth.algorithm",
            "public_key_file and algorithm go together",
        );
        check(
            !auth.token_from.contains(&TokenPlace::Cookie) || !auth.origins.is_empty(),
            "auth.origins",
            "a browser sends cookies whatever page asks it to: say which pages may",
        );
        for origin in &auth.origins {
            if let Err(reason) = Listed::parse(origin) {
                check(false, "auth.origins", &reason);
            }
        }
        check(
            auth.leeway <= Duration::from_secs(60),
            "auth.leeway",
            "at most 60s",
        );
        check(
            (auth.mode == AuthMode::Hook) != auth.hook_url.is_empty(),
            "auth.hook_url",
            "the mode `hook` and hook_url go together",
        );
        check(
            hooks.secret.0.is_empty() || hooks.secret.0.len() >= 16,
            "hooks.secret",
            "at least 16 bytes",
        );
        check(
            hooks.secret.0.is_empty() || !set(&hooks.secret_file),
            "hooks.secret_file",
            "choose one of secret and secret_file",
        );
        let signed = !hooks.secret.0.is_empty() || set(&hooks.secret_file);
        check(
            signed || (hooks.url.is_empty() && auth.hook_url.is_empty()),
            "hooks.secret",
            "the application has to know who calls: a secret, or a secret_file, is needed",
        );
        check(hooks.lanes <= 256, "hooks.lanes", "at most 256");
        for (url, key) in [
            (&auth.jwks_url, "auth.jwks_url"),
            (&auth.hook_url, "auth.hook_url"),
            (&hooks.url, "hooks.url"),
        ] {
            let http = |url: url::Url| {
                matches!(url.scheme(), "http" | "https") && url.password().is_none()
            };
            let fine = url.is_empty() || url::Url::parse(url).is_ok_and(http);
            check(
                fine,
                key,
                "a URL of http:// or https://, without a password",
            );
        }
        let redis = |url: url::Url| {
            let scheme = matches!(url.scheme(), "redis" | "rediss" | "redis+unix" | "unix");
            scheme && url.password().is_none() && !url.query_pairs().any(|(name, _)| name == "pass")
        };
        check(
            laravel.redis_url.is_empty() || url::Url::parse(&laravel.redis_url).is_ok_and(redis),
            "laravel.redis_url",
            "a URL of redis:// or rediss://, without a password, which belongs into redis_password_file",
        );
    }
}

impl Sockets {
    /// How many messages a client may send.
    pub fn message_limit(&self) -> Limit {
        Limit {
            rate: self.message_rate,
            burst: self.message_burst,
        }
    }

    /// How many rooms a client may join.
    pub fn join_limit(&self) -> Limit {
        Limit {
            rate: self.join_rate,
            burst: self.join_burst,
        }
    }

    /// How many rooms that are new to the node may be listened to.
    pub fn first_join_limit(&self) -> Limit {
        Limit {
            rate: self.first_join_rate,
            burst: self.first_join_burst,
        }
    }

    /// How many pings.
    pub fn ping_limit(&self) -> Limit {
        Limit {
            rate: self.ping_rate,
            burst: self.ping_burst,
        }
    }
}

impl Api {
    /// Whether there are any keys. Without, the node makes one.
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty() || !self.keys_file.as_os_str().is_empty()
    }
}

impl ApiKey {
    fn check(&self) -> Result<(), String> {
        let long = |key: &str| match key.len() >= API_KEY_MIN {
            true => Ok(()),
            false => Err(format!("a key has at least {API_KEY_MIN} characters")),
        };
        let named = match self {
            Self::Plain(key) => return long(key),
            Self::Named(named) => named,
        };
        if !named.unknown.is_empty() {
            return Err("a table has name, scopes, and key or key_file".to_owned());
        }
        if named.name.len() > API_KEY_NAME_MAX || named.name.chars().any(char::is_control) {
            return Err(format!(
                "a name has at most {API_KEY_NAME_MAX} bytes, and no control characters"
            ));
        }
        match (named.key.is_empty(), named.key_file.as_os_str().is_empty()) {
            (false, true) => long(&named.key)?,
            (true, false) => {}
            _ => return Err("a table has either key or key_file".to_owned()),
        }
        match &named.scopes {
            None => Ok(()),
            Some(scopes) if scopes.is_empty() => Err("scopes: name at least one".to_owned()),
            Some(scopes) => scopes
                .iter()
                .try_for_each(|scope| match Scope::parse(scope) {
                    Some(_) => Ok(()),
                    None => Err("scopes: read, send or admin".to_owned()),
                }),
        }
    }
}

impl NamedKey {
    /// What it may do.
    pub fn scopes(&self) -> Vec<Scope> {
        let Some(scopes) = &self.scopes else {
            return vec![Scope::Admin];
        };
        scopes
            .iter()
            .filter_map(|scope| Scope::parse(scope))
            .collect()
    }
}

impl Scope {
    /// As the configuration and the API write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Send => "send",
            Self::Admin => "admin",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Send, Self::Admin]
            .into_iter()
            .find(|scope| scope.as_str() == text)
    }
}

/// The keys of a file: one on each line, but for those that are empty or begin with `#`. With the number of its line.
///
/// # Errors
///
/// When there is none, or one that is too short. They do not tell it.
pub fn keys_of_file(file: &Path, content: &[u8]) -> anyhow::Result<Vec<(usize, String)>> {
    let file = file.display();
    let text = std::str::from_utf8(content).with_context(|| format!("{file} is not UTF-8"))?;
    let lines = text.lines().map(str::trim);
    let keys: Vec<_> = (1..)
        .zip(lines)
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .collect();
    ensure!(!keys.is_empty(), "{file} has no keys");
    let long = keys.iter().all(|(_, key)| key.len() >= API_KEY_MIN);
    ensure!(long, "{file}: a key has at least {API_KEY_MIN} characters");
    Ok(keys
        .into_iter()
        .map(|(line, key)| (line, key.to_owned()))
        .collect())
}

/// Those paths that are set.
pub fn files<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let set = paths
        .into_iter()
        .filter(|path| !path.as_os_str().is_empty());
    set.cloned().collect()
}

/// Folders of this user in which nodes without configured keys keep the one that they make, the best one first.
pub fn key_folders() -> Vec<PathBuf> {
    let absolute = |name| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path: &PathBuf| path.is_absolute())
    };
    let runtime = absolute("XDG_RUNTIME_DIR");
    let home = || Some(absolute("HOME")?.join(".local/state"));
    let state = absolute("XDG_STATE_HOME").or_else(home);
    let folders = runtime.into_iter().chain(state);
    folders.map(|folder| folder.join("unisono")).collect()
}

impl Secret {
    /// The secret itself: this one, or that of a file with that content, without the white space around it. None where
    /// neither is given.
    ///
    /// # Errors
    ///
    /// When both are given, or the content is no text.
    pub fn or_content(&self, content: Option<&[u8]>) -> anyhow::Result<Option<String>> {
        match (self.0.as_str(), content) {
            ("", None) => Ok(None),
            (secret, None) => Ok(Some(secret.to_owned())),
            ("", Some(content)) => {
                let text = std::str::from_utf8(content).context("the file is not UTF-8")?;
                Ok(Some(text.trim().to_owned()))
            }
            (_, Some(_)) => anyhow::bail!("a secret and a file with one: choose one of them"),
        }
    }

    /// The secret itself: this one, or that of the file, without the white space around it. None where
    /// neither is given.
    ///
    /// # Errors
    ///
    /// Those of reading the file, and one when both are given.
    pub fn or_file(&self, file: &Path) -> anyhow::Result<Option<String>> {
        let content = match file.as_os_str().is_empty() {
            true => None,
            false => Some(crate::reload::read(file)?),
        };
        self.or_content(content.as_deref())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() {
            "none"
        } else {
            "(hidden)"
        })
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let address = text.parse().map(|address: std::net::IpAddr| address.into());
        let network = address.or_else(|_| text.parse());
        let bad = |_| serde::de::Error::custom(format!("`{text}` is no address or network"));
        network.map(Self).map_err(bad)
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("keys", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.mistakes.len();
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        write!(f, "{count} {noun} in the configuration")?;
        for Mistake {
            source,
            key,
            reason,
        } in &self.mistakes
        {
            match key.as_str() {
                "" => write!(f, "\n  {source}: {reason}")?,
                key => write!(f, "\n  {source}: {key}: {reason}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// The filter itself takes any word for the name of a target.
fn is_filter(text: &str) -> bool {
    let level = |word: &str| {
        word.parse::<tracing_subscriber::filter::LevelFilter>()
            .is_ok()
    };
    let directive = |part: &str| level(part) || part.contains('=');
    text.split(',').all(|part| directive(part.trim()))
        && text.parse::<tracing_subscriber::EnvFilter>().is_ok()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    match humantime::parse_duration(&text) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        Ok(_) => Err(serde::de::Error::custom("at most 24h")),
        Err(_) => Err(serde::de::Error::custom(format!(
            "`{text}` is not a duration, such as \"25s\" or \"500ms\""
        ))),
    }
}

/// Far above what any of them is for, and what timers can count.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

fn optional_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<SocketAddr>, D::Error> {
    let text = address_text(deserializer)?;
    match text.as_str() {
        "" => Ok(None),
        text => listen_address(text)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    listen_address(&address_text(deserializer)?).map_err(serde::de::Error::custom)
}

/// People write a bare port as a number.
fn address_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text.trim().to_owned()),
        Value::Integer(port) => Ok(port.to_string()),
        _ => Err(serde::de::Error::custom(
            "an address with a port, such as \"127.0.0.1:8080\"",
        )),
    }
}

/// Reads an address to listen at. What lacks one is refused: whether only this machine or everybody may come is not
/// guessed. `localhost` is this machine; other names are not looked up, because which of their addresses is meant is
/// not known either.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if text.contains("://") {
        return Err(format!(
            "`{text}` is a URL; write only the address and the port, as 127.0.0.1:8080"
        ));
    }
    let is_port = |text: &str| text.parse::<u16>().is_ok();
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 8080);
        return Err(format!("`{text}` has no port; write {example}"));
    }
    let no_address = |port: &str| {
        format!(
            "`{text}` has no address; write 127.0.0.1:{port} for this machine only, or 0.0.0.0:{port} for everybody"
        )
    };
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(match text {
            text if is_port(text) => no_address(text),
            "localhost" => format!("`{text}` has no port; write 127.0.0.1:8080"),
            _ => format!("`{text}` is not an address with a port; write one as 127.0.0.1:8080"),
        });
    };
    let Ok(number) = port.parse::<u16>() else {
        return Err(format!(
            "`{port}` in `{text}` is not a port, which is a number from 0 to 65535; write 127.0.0.1:8080"
        ));
    };
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, number)));
    }
    Err(match host {
        "" | "*" => no_address(port),
        host if host.parse::<Ipv6Addr>().is_ok() => {
            format!("`{text}` is an IPv6 address without brackets; write [{host}]:{port}")
        }
        _ => format!(
            "`{host}` in `{text}` is not an IP address, and names are not looked up; write 127.0.0.1:{port} for this \
             machine only, 0.0.0.0:{port} for everybody, or one address of this machine"
        ),
    })
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let size = ByteSize::deserialize(deserializer).map_err(|_| {
        serde::de::Error::custom("not a size, such as \"64KiB\" or a number of bytes")
    })?;
    usize::try_from(size.as_u64()).map_err(serde::de::Error::custom)
}

fn cluster_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ClusterName, D::Error> {
    let text = String::deserialize(deserializer)?;
    ClusterName::parse(&text).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect()
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.toml");
        std::fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn the_defaults_are_a_configuration() {
        let loaded = Sources::default()
            .load()
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.config.listen.port(), 8080);
        assert_eq!(loaded.config.sockets.message_bytes, 64 << 10);
        assert!(loaded.config.rules.open());
        assert_eq!(loaded.text, REFERENCE, "nothing set, nothing changed");
    }

    #[test]
    fn later_wins() {
        let (_folder, path) =
            file("listen = '1.1.1.1:1'\n[sockets]\nmax = 1\nping_interval = '1s'");
        let sources = Sources {
            file: Some(path),
            environment: pairs(&[
                ("UNISONO__SOCKETS__MAX", "2"),
                ("UNISONO__CLUSTER__NATS", "nats://a:1, nats://b:2"),
                ("UNISONO__API__KEYS", "[\"key, with comma\"]"),
                ("UNISONO__LISTEN", "2.2.2.2:2"),
            ]),
            flags: pairs(&[("listen", "3.3.3.3:3")]),
            ..Sources::default()
        };
        let loaded = sources.load().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(loaded.config.listen.to_string(), "3.3.3.3:3");
        assert_eq!(loaded.config.sockets.max, 2);
        assert_eq!(loaded.config.sockets.ping_interval, Duration::from_secs(1));
        assert_eq!(loaded.config.cluster.nats, ["nats://a:1", "nats://b:2"]);
        assert!(
            matches!(&loaded.config.api.keys[..], [ApiKey::Plain(key)] if key == "key, with comma")
        );
        assert!(loaded.text.contains("max = 2\n") && loaded.text.contains("(hidden)"));
        assert!(!loaded.text.contains("with comma"));
        let shown: Table = loaded.text.parse().unwrap();
        assert_eq!(shown["listen"].as_str(), Some("3.3.3.3:3"));
    }

    #[test]
    fn an_address_to_listen_at_is_taken_or_refused_with_the_form_that_is_expected() {
        for (text, address) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::]:8080", "[::]:8080"),
            ("localhost:8080", "127.0.0.1:8080"),
            ("LocalHost:1", "127.0.0.1:1"),
        ] {
            assert_eq!(listen_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for (text, part) in [
            (
                ":8080",
                "`:8080` has no address; write 127.0.0.1:8080 for this machine only, or 0.0.0.0:8080 for everybody",
            ),
            ("8080", "`8080` has no address; write 127.0.0.1:8080"),
            ("*:8080", "has no address; write 127.0.0.1:8080"),
            ("0.0.0.0", "has no port; write 0.0.0.0:8080"),
            ("::1", "has no port; write [::1]:8080"),
            ("[::1]", "has no port; write [::1]:8080"),
            (
                "1:2:3:4:5:6:7:8:9090",
                "without brackets; write [1:2:3:4:5:6:7:8]:9090",
            ),
            ("localhost", "has no port; write 127.0.0.1:8080"),
            ("http://0.0.0.0:8080", "is a URL; write only the address"),
            (
                "example.com:80",
                "names are not looked up; write 127.0.0.1:80",
            ),
            ("127.0.0.1:", "is not a port"),
            ("127.0.0.1:65536", "is not a port"),
            ("127.0.0.1:http", "is not a port"),
            ("nonsense", "write one as 127.0.0.1:8080"),
            ("", "write one as 127.0.0.1:8080"),
        ] {
            let reason = listen_address(text).expect_err(text);
            assert!(reason.contains(part), "{text}: {reason}");
        }
        let (_folder, path) = file("listen = 8080\n[admin]\nlisten = ':9090'");
        let sources = Sources {
            file: Some(path),
            ..Sources::default()
        };
        let Err(error) = sources.load() else {
            panic!("refused");
        };
        let message = error.to_string();
        for part in [
            "listen: `8080` has no address; write 127.0.0.1:8080",
            "admin.listen: `:9090` has no address; write 127.0.0.1:9090",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let (_folder, path) = file(
            "listen = 'here'\nnope = 1\n[sockets]\nmax = 'many'\nping_interval = '25 parsecs'\n\
             message_bytes = '2GiB'\n[[rooms]]\npattern = '/a{b}'\n\
             [[rooms]]\npattern = '/c'\nclient_events = 'shout'\n[[rooms]]\npatern = '/d'",
        );
        let sources = Sources {
            file: Some(path),
            environment: pairs(&[("UNISONO__SOCKET__MAX", "1"), ("UNISONO__WORKERS", "many")]),
            ..Sources::default()
        };
        let message = match sources.load() {
            Err(error) => error.to_string(),
            Ok(_) => panic!("refused"),
        };
        for part in [
            "test.toml: listen:",
            "test.toml: nope: there is no such key",
            "test.toml: sockets.max:",
            "`25 parsecs` is not a duration",
            "test.toml: rooms[0].pattern:",
            "test.toml: rooms[1].client_events:",
            "test.toml: rooms[2].patern:",
            "environment variable UNISONO__SOCKET__MAX: socket.max: there is no such key",
            "environment variable UNISONO__WORKERS: workers: `many`",
        ] {
            assert!(message.contains(part), "{part} in {message}");
        }
    }

    #[test]
    fn a_secret_is_not_shown_even_when_it_is_wrong() {
        let (_folder, path) = file("[api]\nkeys = 'my-very-secret-key'");
        let sources = Sources {
            file: Some(path),
            environment: pairs(&[("UNISONO__API__KEYS", "['another-secret-key")]),
            ..Sources::default()
        };
        let Err(error) = sources.load() else {
            panic!("refused");
        };
        let message = error.to_string();
        assert!(
            message.contains("api.keys") && !message.contains("secret-key"),
            "{message}"
        );
    }

    #[test]
    fn contradictions_are_mistakes() {
        let sources = Sources {
            flags: pairs(&[
                ("cluster.nats_user", "me"),
                ("cluster.nats", "localhost:4222,nats://a b"),
                ("sockets.ping_interval", "100years"),
                ("api.keys", "short"),
                ("log.level", "deafening"),
                ("tracing.endpoint", "http://collector:4318?key=my-secret"),
                ("tracing.sample_ratio", "1.5"),
                ("tracing.service_name", ""),
                ("tracing.queue", "10"),
                ("tracing.batch", "11"),
                ("tracing.delay", "0s"),
                ("tracing.timeout", "1ms"),
            ]),
            ..Sources::default()
        };
        let Err(error) = sources.load() else {
            panic!("refused");
        };
        let message = error.to_string();
        for key in [
            "nats_password_file",
            "cluster.nats:",
            "sockets.ping_interval: at most 24h",
            "api.keys",
            "log.level",
            "tracing.endpoint: a URL of http:// or https://, without a password",
            "tracing.sample_ratio: 0 to 1",
            "tracing.service_name: a name",
            "tracing.batch: at most queue",
            "tracing.delay: at least 10ms",
            "tracing.timeout: at least 10ms",
        ] {
            assert!(message.contains(key), "{key} in {message}");
        }
        assert!(!message.contains("my-secret"), "{message}");
    }
}
