//! The keys of the HTTP API: the one that a node makes for itself, scopes, rotation; and what signals do to a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use reqwest::Method;
use rustix::process::geteuid;
use serde_json::{Value, json};
use tempfile::TempDir;
use unisono_tests::{
    Answer, Api, Client, KEY, Nginx, Node, NodeConfig, Process, eventually, free_port, unisono,
    upgrade_request,
};

use crate::config::text;

/// Every route of the HTTP API, with the scope that it wants.
const ROUTES: [(&str, &str, &str); 15] = [
    ("POST", "/api/v1/emit", "send"),
    ("POST", "/api/v1/publish", "send"),
    ("POST", "/api/v1/broadcast", "send"),
    ("POST", "/api/v1/join", "send"),
    ("POST", "/api/v1/leave", "send"),
    ("POST", "/api/v1/disconnect", "admin"),
    ("POST", "/api/v1/drain", "admin"),
    ("POST", "/api/v1/batch", "any"),
    ("GET", "/api/v1/sockets/no-id", "read"),
    ("GET", "/api/v1/rooms", "read"),
    ("GET", "/api/v1/rooms/sockets?room=/x", "read"),
    ("GET", "/api/v1/nodes", "read"),
    ("GET", "/api/v1/tail?filter=bad", "read"),
    ("GET", "/api/v1/nothing", "any"),
    ("GET", "/metrics", "read"),
];

const UNAUTHORIZED: (u16, &str) = (401, "unauthorized");

/// A node that makes a key for itself, in a folder for itself.
async fn keyless() -> (Node, TempDir) {
    let folder = TempDir::with_prefix("unisono-runtime-").expect("a temporary directory");
    let node = keyless_in(folder.path()).start().await;
    (node, folder)
}

fn keyless_in(folder: &Path) -> NodeConfig {
    let folder = folder.to_str().expect("a path of text");
    Node::config("keyless")
        .keyless()
        .env("XDG_RUNTIME_DIR", folder)
}

/// The key that a node has made.
fn key_of(node: &Node, folder: &Path) -> String {
    let file = folder.join(format!("unisono/{}.key", node.port()));
    let key = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    key.trim_end().to_owned()
}

/// What a route answers, with an empty body.
async fn ask(api: &Api, method: &str, path: &str) -> Answer {
    let method = Method::from_bytes(method.as_bytes()).expect("a method");
    let request = api.request(method, path).body("{}");
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Answer { status, body }
}

// === the key that a node makes ===

#[tokio::test]
async fn without_a_key_nobody_is_answered_wherever_the_request_comes_from() {
    let (node, folder) = keyless().await;
    let port = node.port();
    // As the documentation of nginx has it for WebSocket, and as it speaks by itself since 1.29.7.
    let documented = "proxy_http_version 1.1;\nproxy_set_header Upgrade $http_upgrade;\n\
                      proxy_set_header Connection \"upgrade\";";
    let bare = "proxy_http_version 1.1;\nproxy_set_header Connection \"\";";
    let proxy = async |headers: &str| {
        let site = format!(
            "server {{\nlisten 80;\nlocation / {{\n{headers}\nproxy_pass http://127.0.0.1:{port};\n}}\n}}\n"
        );
        Nginx::site(&site).start().await
    };
    let proxies = [proxy(documented).await, proxy(bare).await, proxy("").await];
    let mut ways: Vec<Api> = proxies
        .iter()
        .map(|nginx| nginx.api().with_key(None))
        .collect();
    ways.push(node.api().with_key(None));
    ways.push(node.api().with_key(Some("a-key-of-somebody-else")));
    for api in &ways {
        for (method, path, _) in ROUTES {
            let answer = ask(api, method, path).await;
            assert_eq!(answer.refusal(), UNAUTHORIZED, "{method} {path} {api:?}");
        }
        let health = api.get("/health/ready").await.ok();
        assert_eq!(health["status"], "ok");
        assert_eq!(health["node"], Value::Null, "which node it is, is not said");
    }
    // And with it everybody is, through the documented proxy, too.
    let key = key_of(&node, folder.path());
    for api in ways.iter().map(|api| api.with_key(Some(&key))) {
        assert!(api.nodes().await["self"].is_string());
        assert!(api.get("/health/live").await.ok()["node"].is_string());
    }
}

#[tokio::test]
async fn the_key_of_a_node_is_in_a_file_of_its_user_until_the_node_ends() {
    for (signal, after) in [("TERM", 0), ("INT", 0), ("QUIT", 131)] {
        let (mut node, folder) = keyless().await;
        let file = folder.path().join(format!("unisono/{}.key", node.port()));
        let mode = |path: &Path| {
            let metadata = fs::metadata(path).expect("it is there");
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode(&file), 0o600);
        assert_eq!(mode(&folder.path().join("unisono")), 0o700);
        let key = key_of(&node, folder.path());
        assert!(
            key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{key}"
        );

        let said = node.process().stdout() + &node.process().stderr();
        assert!(said.contains(&file.display().to_string()), "{said}");
        assert!(!said.contains(&key), "the key itself is not shown: {said}");

        // Only who is root may become somebody else.
        if geteuid().is_root() {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mine");
            let nobody = Command::new("cat")
                .arg(&file)
                .uid(65_534)
                .gid(65_534)
                .output();
            let nobody = nobody.expect("cat runs");
            assert!(
                !nobody.status.success() && nobody.stdout.is_empty(),
                "{nobody:?}"
            );
        }

        match signal {
            "TERM" => node.terminate(),
            "INT" => node.interrupt(),
            _ => node.process().quit(),
        }
        let ended = node.process().exited().await;
        assert_eq!(ended.code(), Some(after), "{signal}");
        assert!(!file.exists(), "{signal}");
    }
}

#[tokio::test]
async fn the_command_line_finds_the_key_of_each_node_of_its_machine() {
    let folder = TempDir::with_prefix("unisono-runtime-").expect("a temporary directory");
    let admin = free_port();
    let one = keyless_in(folder.path()).start().await;
    let other = keyless_in(folder.path()).toml(&format!("[admin]\nlisten = \"127.0.0.1:{admin}\""));
    let other = other.start().await;
    assert_ne!(key_of(&one, folder.path()), key_of(&other, folder.path()));

    let run = |args: &[&str], url: &str, folder: &Path| {
        let mut command = unisono();
        command
            .env_remove("UNISONO_KEY")
            .env("XDG_RUNTIME_DIR", folder);
        command.env("HOME", folder).env_remove("XDG_STATE_HOME");
        command
            .args(args)
            .args(["--url", url])
            .output()
            .expect("unisono runs")
    };
    for url in [
        one.api().base(),
        other.api().base(),
        &format!("http://localhost:{}", one.port()),
        &format!("127.0.0.1:{admin}"),
    ] {
        for args in [
            &["publish", "/chat", "new message", "{\"text\":\"hi\"}"][..],
            &["nodes"],
            &["health"],
        ] {
            let output = run(args, url, folder.path());
            assert!(
                output.status.success(),
                "{url} {args:?}: {}",
                text(&output.stderr)
            );
        }
    }
    // As it is of somebody else, who has none of these files.
    let elsewhere = TempDir::new().expect("a temporary directory");
    let output = run(&["nodes"], one.api().base(), elsewhere.path());
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("--key") && said.contains("port"), "{said}");
    assert!(
        run(&["health"], one.api().base(), elsewhere.path())
            .status
            .success()
    );
}

#[tokio::test]
async fn a_node_that_can_keep_its_key_nowhere_starts_and_says_so() {
    let folder = TempDir::new().expect("a temporary directory");
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file in the test's own directory");
    let file = file.to_str().expect("a path of text");
    let config = Node::config("homeless").keyless();
    let config = config
        .env("XDG_RUNTIME_DIR", file)
        .env("XDG_STATE_HOME", file);
    let mut node = config.start().await;
    let said = node.process().stderr();
    assert!(said.contains("THE HTTP API ANSWERS NOBODY"), "{said}");
    assert_eq!(
        node.api().get("/api/v1/nodes").await.refusal(),
        UNAUTHORIZED
    );

    // Where there is no folder for the time of a session, it is that of the user's state.
    let state = folder.path().join("state");
    let state = state.to_str().expect("a path of text");
    let config = Node::config("at-home").keyless();
    let config = config
        .env("XDG_RUNTIME_DIR", "")
        .env("XDG_STATE_HOME", state);
    let node = config.start().await;
    let key = key_of(&node, Path::new(state));
    assert!(node.api().with_key(Some(&key)).nodes().await["self"].is_string());
}

// === scopes ===

#[tokio::test]
async fn a_key_may_do_what_its_scopes_say_and_no_more() {
    let scopes = ["read", "send", "admin"];
    let keys: Vec<String> = scopes
        .map(|scope| format!("{scope}-key-of-the-tests"))
        .into();
    let entries: Vec<String> = (scopes.iter().zip(&keys))
        .map(|(scope, key)| {
            format!("{{ name = 'of {scope}', key = '{key}', scopes = ['{scope}'] }}")
        })
        .collect();
    let mut node = Node::config("scoped")
        .arg(&format!("--set=api.keys=[{}, '{KEY}']", entries.join(", ")))
        .start()
        .await;
    for (scope, key) in scopes.iter().zip(&keys) {
        let api = node.api().with_key(Some(key));
        for (method, path, wanted) in ROUTES {
            let answer = ask(&api, method, path).await;
            let may = wanted == "any" || wanted == *scope || *scope == "admin";
            assert_eq!(
                answer.status != 403,
                may,
                "{scope} {method} {path}: {answer:?}"
            );
            assert_ne!(answer.status, 401, "{scope} {method} {path}");
            if !may {
                assert_eq!(answer.refusal(), (403, "forbidden"));
                let message = answer.body["error"]["message"].as_str().expect("a message");
                assert!(message.contains(&format!("`{wanted}`")), "{message}");
            }
        }
        // A batch is as good as its verbs.
        let batch = json!([
            {"publish": {"room": "/x", "event": "e"}},
            {"disconnect": {"room": "/x"}},
            {"nonsense": {}},
        ]);
        let done = api.post("batch", batch).await.ok();
        let codes = [0, 1, 2].map(|n| done[n]["error"]["code"].as_str().unwrap_or("done"));
        let expected = match *scope {
            "read" => ["forbidden", "forbidden", "bad_request"],
            "send" => ["done", "forbidden", "bad_request"],
            _ => ["done", "done", "bad_request"],
        };
        assert_eq!(codes, expected, "{scope}: {done}");
        let health = api.get("/health/live").await.ok();
        assert_eq!(health["node"].is_string(), *scope != "send", "{scope}");
    }
    // Whose they were, and what they did, is in the log, and no key.
    let said = node.process().stderr();
    for name in ["of read", "of send"] {
        let line = |line: &&str| line.contains("lacks the scope") && line.contains(name);
        assert!(said.lines().any(|text| line(&text)), "{name}: {said}");
    }
    let act = |line: &&str| line.contains("act of an administrator") && line.contains("of admin");
    assert!(said.lines().any(|text| act(&text)), "{said}");
    assert!(!said.contains("-key-of-the-tests"), "{said}");
    let metrics = node.metrics().await;
    assert!(metrics.sum("unisono_api_refused_total") >= 10.0);
}

#[test]
fn what_is_wrong_with_a_key_is_said_without_it() {
    for (keys, why) in [
        ("[{ name = 'x' }]", "either key or key_file"),
        (
            "[{ key = 'long-enough', key_file = '/x' }]",
            "either key or key_file",
        ),
        ("[{ key = 'short' }]", "at least 8 characters"),
        (
            "[{ key = 'long-enough', scopes = ['write'] }]",
            "read, send or admin",
        ),
        ("[{ key = 'long-enough', scopes = [] }]", "at least one"),
        (
            "[{ key = 'long-enough', scope = ['read'] }]",
            "has name, scopes",
        ),
        ("[7]", "api.keys"),
    ] {
        let said = crate::config::refused(&["check-config"], &format!("[api]\nkeys = {keys}"), &[]);
        assert!(said.contains(why), "{keys}: {said}");
        assert!(
            !said.contains("long-enough") && !said.contains("short'"),
            "{said}"
        );
    }
    let file = "[[api.keys]]\nname = 'grafana'\nkey = 'long-enough'\nscopes = ['read']";
    let shown = crate::config::accepted(&["config"], file, &[]);
    assert!(
        shown.contains("grafana") && !shown.contains("long-enough"),
        "{shown}"
    );
}

#[tokio::test]
async fn the_metrics_of_an_admin_listener_want_no_key_and_its_api_does() {
    let admin = free_port();
    let node = Node::alone(&format!("[admin]\nlisten = \"127.0.0.1:{admin}\"")).await;
    let stranger = Api::new(format!("http://127.0.0.1:{admin}"), None);
    assert_eq!(stranger.get("/metrics").await.status, 200);
    assert_eq!(stranger.get("/health/live").await.ok()["node"], Value::Null);
    assert_eq!(stranger.get("/api/v1/nodes").await.refusal(), UNAUTHORIZED);
    assert_eq!(node.api().get("/metrics").await.status, 404);
}

// === rotation ===

const OFTEN: &str = "[files]\nreload_interval = \"50ms\"";

#[tokio::test]
async fn keys_are_rotated_by_writing_their_files() {
    let folder = TempDir::new().expect("a temporary directory");
    let (all, some) = (folder.path().join("all"), folder.path().join("some"));
    let write = |file: &Path, keys: &str| fs::write(file, keys).expect("the test's own file");
    write(&all, "first-of-all\n");
    write(&some, "first-of-some\n");
    let entry = format!("{{ name = 'some', key_file = {some:?}, scopes = ['read'] }}");
    let mut node = Node::config("rotating")
        .arg(&format!("--set=api.keys=['{KEY}', {entry}]"))
        .arg(&format!("--set=api.keys_file={}", all.display()))
        .toml(OFTEN)
        .start()
        .await;
    let status = async |key: &str| {
        let api = node.api().with_key(Some(key));
        api.get("/api/v1/nodes").await.status
    };
    assert_eq!(
        (status("first-of-all").await, status("first-of-some").await),
        (200, 200)
    );

    // Both for a while, then the new one alone.
    write(&all, "first-of-all\nsecond-of-all\n");
    eventually("the second is good", async || {
        status("second-of-all").await == 200
    })
    .await;
    assert_eq!(status("first-of-all").await, 200);
    write(&all, "second-of-all\n");
    eventually("the first is not", async || {
        status("first-of-all").await == 401
    })
    .await;
    write(&some, "second-of-some\n");
    eventually("the second is good", async || {
        status("second-of-some").await == 200
    })
    .await;
    assert_eq!(status("first-of-some").await, 401);

    // What is of no use changes nothing, and is said and counted.
    fs::remove_file(&all).expect("it was there");
    write(&some, "short\n");
    eventually("it is counted", async || {
        let metrics = node.metrics().await;
        metrics.get("unisono_file_reloads_total{outcome=\"failed\"}") > 0.0
    })
    .await;
    for key in ["second-of-all", "second-of-some", KEY] {
        assert_eq!(status(key).await, 200, "{key}");
    }
    let said = node.process().stderr();
    assert!(said.contains("the old content stays"), "{said}");
    assert!(
        !said.contains("of-all") && !said.contains("of-some"),
        "{said}"
    );
}

#[tokio::test]
async fn the_secret_of_tokens_is_rotated_by_writing_its_file() {
    let folder = TempDir::new().expect("a temporary directory");
    let file = folder.path().join("secret");
    let secrets = [
        "the first secret of at least 32 bytes",
        "the second secret of at least 32 bytes",
    ];
    fs::write(&file, secrets[0]).expect("the test's own file");
    let node = Node::alone(&format!(
        "[auth]\nmode = \"token\"\nsecret_file = {file:?}\n{OFTEN}"
    ))
    .await;
    let token = |secret: &str| {
        let secret = format!("--set=auth.secret={secret}");
        let minted = unisono()
            .args(["token", "--user", "ann", "--set=auth.mode=token", &secret])
            .output();
        text(&minted.expect("unisono runs").stdout)
            .trim()
            .to_owned()
    };
    let status = async |token: &str| {
        let mut wire = node.wire().await;
        wire.send(upgrade_request(&format!("/x?token={token}")))
            .await;
        wire.response().await.status
    };
    let tokens = secrets.map(token);
    assert_eq!(
        (status(&tokens[0]).await, status(&tokens[1]).await),
        (101, 401)
    );
    let mut here = Client::connect(&node.url(&format!("/x?token={}", tokens[0]))).await;

    fs::write(&file, secrets[1]).expect("the test's own file");
    eventually("the second is good", async || {
        status(&tokens[1]).await == 101
    })
    .await;
    assert_eq!(status(&tokens[0]).await, 401);
    // Who is here stays.
    node.api().broadcast("news", json!(1)).await;
    here.expect("news").await;
}

// === signals ===

#[tokio::test]
async fn a_hang_up_reads_again_what_can_be_and_says_what_it_did() {
    let folder = TempDir::new().expect("a temporary directory");
    let file = folder.path().join("mine.toml");
    let port = free_port();
    let write = |keys: &str, more: &str| {
        let listen = format!("listen = \"127.0.0.1:{port}\"\n[api]\nkeys = {keys}\n{more}");
        fs::write(&file, listen).expect("the test's own file");
    };
    write(&format!("['{KEY}', 'the-first-key']"), "");
    let mut command = unisono();
    command.arg("--config").arg(&file);
    let mut process = Process::spawn("hup", command, folder.path(), "");
    let api = Api::new(format!("http://127.0.0.1:{port}"), Some(KEY.to_owned()));
    eventually("the node lives", async || {
        api.get("/health/live").await.status == 200
    })
    .await;
    let mut client = Client::connect(&format!("ws://127.0.0.1:{port}/x")).await;

    write(
        &format!("['{KEY}', 'the-second-key']"),
        "[sockets]\nmax = 7\n[log]\nlevel = \"debug\"",
    );
    process.hang_up();
    eventually("it has read again", async || {
        process.stderr().contains("SIGHUP: done")
    })
    .await;
    let status = async |key: &str| api.with_key(Some(key)).get("/api/v1/nodes").await.status;
    assert_eq!(status("the-second-key").await, 200);
    assert_eq!(status("the-first-key").await, 401);
    let said = process.stderr();
    for what in ["api.keys", "log.level", "sockets.max", "restart"] {
        assert!(said.contains(what), "{what}: {said}");
    }
    assert!(!said.contains("-key"), "{said}");

    // What cannot be used changes nothing.
    write("['short']", "");
    process.hang_up();
    eventually("it says what is wrong", async || {
        process.stderr().contains("at least 8 characters")
    })
    .await;
    assert_eq!(status("the-second-key").await, 200);

    // And these nothing at all.
    process.user_signal_1();
    process.user_signal_2();
    api.broadcast("news", json!(1)).await;
    client.expect("news").await;
    assert!(process.status().is_none());

    process.quit();
    assert_eq!(process.exited().await.code(), Some(131));
    assert!(process.stderr().contains("SIGQUIT"), "{}", process.stderr());
}
