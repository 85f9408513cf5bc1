//! TLS in the server itself: what is spoken, whose certificate is shown, and what becomes of those who speak
//! something else.

use std::process::{Command, Stdio};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use unisono_tests::{
    Certificate, Client, Identity, Nats, Node, NodeConfig, Sandbox, Tls, Wire, eventually,
    stream_request, unisono, upgrade_request,
};

use crate::config::{refused, text};

fn secure(identity: &Identity) -> NodeConfig {
    Node::config("secure").tls(identity)
}

/// The certificate that the node shows to newcomers.
async fn shown(node: &Node) -> Vec<u8> {
    let stream = Tls::new().connect(node.port()).await.expect("a handshake");
    let certificates = stream.get_ref().1.peer_certificates();
    certificates.expect("a certificate")[0].to_vec()
}

/// How many handshakes had that outcome.
async fn handshakes(node: &Node, outcome: &str) -> f64 {
    let series = format!("unisono_tls_handshakes_total{{outcome=\"{outcome}\"}}");
    node.metrics().await.get(&series)
}

/// Runs `openssl s_client` against the node, and returns what it printed.
fn openssl(node: &Node, identity: &Identity, args: &[&str]) -> String {
    let output = Command::new("openssl")
        .args([
            "s_client",
            "-connect",
            &format!("127.0.0.1:{}", node.port()),
        ])
        .arg("-CAfile")
        .arg(identity.authority())
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.expect("openssl runs");
    text(&output.stdout) + &text(&output.stderr)
}

#[tokio::test]
async fn sockets_streams_and_the_api_are_all_inside() {
    let identity = Identity::new(&Certificate::new());
    let node = secure(&identity).start().await;
    let mut ann = node.client("/chat").await;
    let mut bob = node.client("/chat").await;
    ann.publish("/chat", "from ann", json!("x".repeat(60_000)))
        .await;
    let heard = bob.expect("from ann").await;
    assert_eq!(heard.data, json!("x".repeat(60_000)));
    let status = node.api().emit(&bob.id, "from the api", json!(1)).await;
    assert_eq!(status, "delivered");
    bob.expect("from the api").await;

    let mut stream = Tls::new().connect(node.port()).await.expect("a handshake");
    let request = stream_request("/chat", "");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it is taken");
    let mut read = String::new();
    while !read.contains("unisono:open") {
        let mut some = [0; 4096];
        let count = stream.read(&mut some).await.expect("a stream of events");
        assert_ne!(count, 0, "the stream ended: {read}");
        read.push_str(&text(&some[..count]));
    }
    assert!(read.contains("text/event-stream"), "{read}");

    ann.close(1000, "").await;
    assert_eq!(ann.expect_close().await, (1000, String::new()));
    let status = node.api().disconnect(&bob.id, 4001, "enough").await;
    assert_eq!(status, "delivered");
    assert_eq!(bob.expect_close().await, (4001, "enough".to_owned()));
}

#[tokio::test]
async fn nodes_with_and_without_are_one_cluster() {
    let sandbox = Sandbox::start(1).await;
    let identity = Identity::new(&Certificate::new());
    let nats = sandbox.nats.iter().map(Nats::url);
    let node = secure(&identity).nats(nats).start().await;
    let mut inside = node.client("/chat").await;
    let mut outside = sandbox.client(0, "/chat").await;
    outside.publish("/chat", "to all", json!(1)).await;
    inside.expect("to all").await;
    assert_eq!(
        inside.emit(&outside.id, "to one", json!(2)).await,
        "delivered"
    );
    outside.expect("to one").await;
}

#[tokio::test]
async fn everything_that_was_published_comes_however_slowly_it_is_read() {
    let identity = Identity::new(&Certificate::new());
    let config = secure(&identity).toml("[sockets]\nqueue_bytes = \"64MiB\"");
    let node = config.start().await;
    let mut reader = node.client("/much").await;
    let mut writer = node.client("/elsewhere").await;
    // Far more than the two systems and TLS keep for a connection.
    let much = "x".repeat(50_000);
    for n in 0..400 {
        writer
            .publish("/much", "part", json!({"n": n, "much": much}))
            .await;
    }
    for n in 0..400 {
        let part = reader.expect("part").await;
        assert_eq!(part.data["n"], n);
        assert_eq!(part.data["much"].as_str().map(str::len), Some(50_000));
    }
}

#[tokio::test]
async fn who_does_not_read_is_closed() {
    let identity = Identity::new(&Certificate::new());
    let config = secure(&identity).toml("[sockets]\nwrite_timeout = \"500ms\"");
    let node = config.start().await;
    let mut deaf = Tls::new().connect(node.port()).await.expect("a handshake");
    let request = upgrade_request("/much");
    deaf.write_all(request.as_bytes())
        .await
        .expect("it is taken");
    let mut writer = node.client("/much").await;
    let much = "x".repeat(50_000);
    eventually("the deaf one is closed", async || {
        writer.publish("/much", "part", json!(much)).await;
        let metrics = node.metrics().await;
        metrics.get("unisono_slow_sockets_total") == 1.0
    })
    .await;
}

#[tokio::test]
async fn a_drain_says_goodbye_inside() {
    let identity = Identity::new(&Certificate::new());
    let config = secure(&identity).toml("[drain]\ndelay = \"0s\"\nwindow = \"100ms\"");
    let mut node = config.start().await;
    let mut client = node.client("/chat").await;
    node.terminate();
    client.expect("unisono:closing").await;
    assert_eq!(client.expect_close().await.0, 1012);
    assert_eq!(node.process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn a_new_certificate_is_shown_and_open_sockets_stay() {
    let (old, new) = (Certificate::new(), Certificate::new());
    let identity = Identity::new(&old);
    let node = secure(&identity).start().await;
    let mut before = node.client("/chat").await;
    assert_eq!(shown(&node).await, **old.der());

    identity.replace_certificate(&new);
    // The two do not belong together yet.
    let failed = "unisono_tls_reloads_total{outcome=\"failed\"}";
    eventually("the node has seen that", async || {
        node.metrics().await.get(failed) >= 1.0
    })
    .await;
    assert_eq!(shown(&node).await, **old.der());
    identity.replace_key(&new);
    eventually("the new certificate is shown", async || {
        shown(&node).await == **new.der()
    })
    .await;
    let reloads = "unisono_tls_reloads_total{outcome=\"ok\"}";
    assert_eq!(node.metrics().await.get(reloads), 1.0);

    let mut after = node.client("/chat").await;
    after.publish("/chat", "still there?", json!(null)).await;
    before.expect("still there?").await;
    let expires = "unisono_tls_certificate_expires_timestamp_seconds";
    // The year 4096, where rcgen has certificates end that nobody gave an end.
    assert!(node.metrics().await.get(expires) > 60e9);
}

#[tokio::test]
async fn who_speaks_http_is_told_what_to_speak() {
    let identity = Identity::new(&Certificate::new());
    let node = secure(&identity).start().await;
    let mut wire = Wire::connect(node.port()).await;
    wire.send(upgrade_request("/chat")).await;
    let answer = wire.response().await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.body.contains("this port speaks TLS"),
        "{}",
        answer.body
    );
    wire.expect_eof().await;
    assert_eq!(handshakes(&node, "not_tls").await, 1.0);
}

#[tokio::test]
async fn who_speaks_nonsense_or_nothing_is_cut() {
    let identity = Identity::new(&Certificate::new());
    let config = secure(&identity).toml("[sockets]\nhead_timeout = \"2s\"");
    let node = config.start().await;
    let mut silent = Wire::connect(node.port()).await;
    let mut half = Wire::connect(node.port()).await;
    half.send([22, 3, 1]).await;
    let mut nonsense = Wire::connect(node.port()).await;
    nonsense.send([22; 64]).await;
    silent.expect_eof().await;
    half.expect_eof().await;
    nonsense.swallow().await;
    eventually("they are counted", async || {
        handshakes(&node, "timeout").await == 2.0 && handshakes(&node, "failed").await == 1.0
    })
    .await;
    // A handshake that nothing follows.
    let mut mute = Tls::new().connect(node.port()).await.expect("a handshake");
    let mut said = Vec::new();
    mute.read_to_end(&mut said)
        .await
        .expect("an end in good order");
    assert!(
        text(&said).contains("408 Request Timeout"),
        "{}",
        text(&said)
    );
    node.client("/chat").await;
}

#[tokio::test]
async fn old_versions_are_refused_and_who_comes_back_is_known() {
    let identity = Identity::new(&Certificate::new());
    let node = secure(&identity).start().await;
    let current = openssl(&node, &identity, &["-tls1_3"]);
    assert!(current.contains("Verify return code: 0 (ok)"), "{current}");
    let older = openssl(&node, &identity, &["-tls1_2"]);
    assert!(older.contains("New, TLSv1.2"), "{older}");
    for old in ["-tls1_1", "-tls1"] {
        let refused = openssl(&node, &identity, &[old, "-cipher", "ALL:@SECLEVEL=0"]);
        assert!(refused.contains("New, (NONE)"), "{refused}");
    }
    let again = openssl(&node, &identity, &["-tls1_2", "-reconnect"]);
    assert!(again.contains("Reused, TLSv1.2"), "{again}");
}

#[tokio::test]
async fn the_second_address_is_plain_unless_it_is_to_be_secure() {
    let identity = Identity::new(&Certificate::new());
    for (lines, scheme) in [("", "http"), ("tls = true", "https")] {
        let admin = format!("[admin]\nlisten = \"127.0.0.1:0\"\n{lines}");
        let mut node = secure(&identity).toml(&admin).start().await;
        let stdout = node.process().stdout();
        let (_, after) = stdout.split_once("metrics     ").expect("an address");
        let url = after.trim_end();
        assert!(url.starts_with(&format!("{scheme}://")), "{url}");
        let health = unisono()
            .args(["health", "--url", url.trim_end_matches("/metrics"), "--ca"])
            .arg(identity.authority())
            .output();
        let health = health.expect("unisono runs");
        assert!(health.status.success(), "{}", text(&health.stderr));
    }
}

#[tokio::test]
async fn the_command_line_trusts_whom_it_is_told_to_trust() {
    let identity = Identity::new(&Certificate::new());
    let node = secure(&identity).start().await;
    let _client = node.client("/chat").await;
    let url = format!("https://localhost:{}", node.port());
    let rooms = |ca: Option<&str>| {
        let mut command = unisono();
        command.args(["rooms", "--url", &url]);
        command.args(ca.map(|ca| ["--ca", ca]).into_iter().flatten());
        command.output().expect("unisono runs")
    };
    let authority = identity.authority();
    let trusting = rooms(authority.to_str());
    assert!(trusting.status.success(), "{}", text(&trusting.stderr));
    assert!(text(&trusting.stdout).contains("/chat"));
    let strange = rooms(None);
    assert!(!strange.status.success());
    let said = text(&strange.stderr);
    assert!(said.contains("invalid peer certificate"), "{said}");
    let missing = rooms(Some("/nowhere.pem"));
    assert!(text(&missing.stderr).contains("--ca /nowhere.pem: cannot read it"));
}

#[test]
fn what_cannot_be_used_is_told_at_the_start() {
    let identity = Identity::new(&Certificate::new());
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file in the test's own directory");
        path.display().to_string()
    };
    let certificate = identity.certificate().display().to_string();
    let key = identity.key().display().to_string();
    let empty = write("empty", "");
    let foreign = write("foreign", Certificate::new().key());
    for (certificate, key, why) in [
        ("/nowhere.pem", &*key, "cannot read /nowhere.pem"),
        (&certificate, "/nowhere.pem", "cannot read /nowhere.pem"),
        (&empty, &key, "has no certificate"),
        (&certificate, &certificate, "has no private key"),
        (&key, &key, "has no certificate"),
        (&certificate, &foreign, "are of no use together"),
    ] {
        let file = format!(
            "listen = \"127.0.0.1:0\"\n[tls]\ncertificate_file = {certificate:?}\nkey_file = {key:?}"
        );
        let output = crate::config::run(&[], &file, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{why}: {said}");
    }
    let half = format!("[tls]\ncertificate_file = {certificate:?}");
    let said = refused(&["check-config"], &half, &[]);
    assert!(
        said.contains("tls.key_file: a certificate and its key go together"),
        "{said}"
    );
    let said = refused(&["check-config"], "[admin]\ntls = true", &[]);
    assert!(
        said.contains("admin.tls: needs tls.certificate_file"),
        "{said}"
    );
}

#[tokio::test]
async fn nobody_waits_for_a_handshake_that_drips() {
    let identity = Identity::new(&Certificate::new());
    let node = secure(&identity).start().await;
    // Each holds a place of a connection, and nothing else, until head_timeout.
    let mut dripping = Vec::new();
    for _ in 0..50 {
        let mut wire = Wire::connect(node.port()).await;
        wire.send([22, 3]).await;
        dripping.push(wire);
    }
    let mut client = Client::connect(&node.url("/chat")).await;
    client.publish("/chat", "x", json!(null)).await;
}
