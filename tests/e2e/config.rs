//! The configuration: where it comes from, which source wins, and what is refused.

use std::fs;
use std::process::Output;

use tempfile::TempDir;
use unisono_tests::{Certificate, Identity, Node, in_repository, unisono};

/// Runs `unisono` to its end, with this file as its configuration.
pub(super) fn run(args: &[&str], file: &str, env: &[(&str, &str)]) -> Output {
    let directory = TempDir::with_prefix("unisono-config-").expect("a temporary directory");
    let path = directory.path().join("mine.toml");
    fs::write(&path, file).expect("a file in the test's own directory");
    let mut command = unisono();
    command
        .current_dir(directory.path())
        .args(args)
        .arg("--config")
        .arg(&path);
    command.envs(env.iter().copied());
    command.output().expect("unisono runs")
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs it, expects exit status 64, and returns what it said.
pub(super) fn refused(args: &[&str], file: &str, env: &[(&str, &str)]) -> String {
    let output = run(args, file, env);
    let said = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(64),
        "{said}{}",
        text(&output.stdout)
    );
    said
}

/// Runs it, expects exit status 0, and returns what it printed.
pub(super) fn accepted(args: &[&str], file: &str, env: &[(&str, &str)]) -> String {
    let output = run(args, file, env);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

const MISTAKES: &str = r#"
    listen = "nonsense"
    typo_at_the_top = 1
    [cluster]
    name = "has.dots"
    [sockets]
    ping_interval = "25 parsecs"
    message_bytes = "a lot"
    max = "many"
    typo_inside = true
    [log]
    level = "deafening"
    [[rooms]]
    pattern = "no-slash"
    client_events = "shout"
    [typo_section]
    x = 1
"#;

#[test]
fn all_mistakes_are_reported_at_once() {
    for command in ["serve", "check-config"] {
        let said = refused(&[command], MISTAKES, &[]);
        assert!(said.contains("mine.toml"), "{said}");
        for key in [
            "listen",
            "typo_at_the_top",
            "cluster.name",
            "sockets.ping_interval",
            "sockets.message_bytes",
            "sockets.max",
            "sockets.typo_inside",
            "log.level",
            "client_events",
            "typo_section",
        ] {
            assert!(
                said.contains(key),
                "{command}: nothing about {key} in:\n{said}"
            );
        }
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_with_the_line() {
    let said = refused(
        &["check-config"],
        "listen = \"127.0.0.1:0\"\n[sockets\n",
        &[],
    );
    assert!(said.contains("mine.toml") && said.contains('2'), "{said}");
}

#[test]
fn a_file_that_is_named_but_not_there_is_refused() {
    let mut command = unisono();
    let output = command
        .args(["check-config", "--config", "not-there.toml"])
        .output();
    let output = output.expect("unisono runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains("not-there.toml"), "{said}");
}

#[test]
fn a_variable_that_is_not_known_is_refused() {
    let said = refused(&["check-config"], "", &[("UNISONO__SOCKETS__MAXX", "1")]);
    assert!(said.contains("UNISONO__SOCKETS__MAXX"), "{said}");

    let said = refused(&["check-config"], "", &[("UNISONO__SOCKETS__MAX", "many")]);
    assert!(said.contains("UNISONO__SOCKETS__MAX"), "{said}");
}

#[test]
fn mistakes_of_file_and_environment_come_together() {
    let file = "[sockets]\ntypo_inside = 1\n";
    let said = refused(&["check-config"], file, &[("UNISONO__LOG__TYPO", "1")]);
    assert!(
        said.contains("typo_inside") && said.contains("UNISONO__LOG__TYPO"),
        "{said}"
    );
}

#[test]
fn the_environment_wins_over_the_file_and_a_flag_over_both() {
    let file = "listen = \"127.0.0.1:1111\"\n[sockets]\nmax = 1111\n";
    let env = [
        ("UNISONO__LISTEN", "127.0.0.1:2222"),
        ("UNISONO__SOCKETS__MAX", "2222"),
    ];

    let printed = accepted(&["config"], file, &[]);
    assert!(
        printed.contains("127.0.0.1:1111") && printed.contains("max = 1111"),
        "{printed}"
    );

    let printed = accepted(&["config"], file, &env);
    assert!(
        printed.contains("127.0.0.1:2222") && printed.contains("max = 2222"),
        "{printed}"
    );
    assert!(!printed.contains("1111"), "{printed}");

    let printed = accepted(&["config", "--listen", "127.0.0.1:3333"], file, &env);
    assert!(
        printed.contains("127.0.0.1:3333") && printed.contains("max = 2222"),
        "{printed}"
    );
    assert!(!printed.contains("127.0.0.1:2222"), "{printed}");
}

#[test]
fn a_list_in_the_environment_is_separated_by_commas_or_toml() {
    for list in ["nats://a:1,nats://b:2", r#"["nats://a:1", "nats://b:2"]"#] {
        let printed = accepted(&["config"], "", &[("UNISONO__CLUSTER__NATS", list)]);
        assert!(
            printed.contains("nats://a:1") && printed.contains("nats://b:2"),
            "{printed}"
        );
    }
}

#[test]
fn the_printed_configuration_is_complete_and_hides_secrets() {
    let secret = "a-very-secret-key-0123456789abcdef0123";
    let printed = accepted(&["config"], &format!("[api]\nkeys = [\"{secret}\"]\n"), &[]);

    assert!(!printed.contains(secret), "{printed}");
    for key in [
        "listen",
        "[cluster]",
        "name",
        "nats",
        "[sockets]",
        "max",
        "greeting",
        "ping_interval",
        "pong_timeout",
        "message_bytes",
        "queue_bytes",
        "rooms_per_socket",
        "[api]",
        "keys",
        "[drain]",
        "delay",
        "window",
        "[log]",
        "level",
        "format",
    ] {
        assert!(printed.contains(key), "no {key} in:\n{printed}");
    }
    assert!(
        printed.lines().any(|line| line.contains('#')),
        "no comments in:\n{printed}"
    );
}

#[test]
fn the_printed_configuration_is_one_that_is_accepted() {
    let file = "[sockets]\nmax = 7\n[[rooms]]\npattern = \"/x/{id}\"\nclient_events = \"echo\"\n";
    let printed = accepted(&["config"], file, &[]);

    let again = accepted(&["config"], &printed, &[]);

    assert_eq!(printed, again);
}

#[test]
fn secrets_are_hidden_in_complaints_too() {
    let secret = "short";
    let file = format!("[api]\nkeys = [\"{secret}\"]\ntypo_inside = \"s3cr3t\"\n");
    let said = refused(&["check-config"], &file, &[]);
    assert!(said.contains("typo_inside"), "{said}");
    assert!(!said.contains("s3cr3t"), "{said}");
}

#[tokio::test]
async fn api_keys_of_a_file_count_like_the_others() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("keys");
    let write = |text: &str| fs::write(&file, text).expect("a file in the test's own directory");
    write("# of the shop\nfirst-of-the-file\n\n  second-of-the-file \n");
    let flag = format!("api.keys_file={}", file.display());
    let node = Node::config("keys").arg("--set").arg(&flag);
    let node = node.key("of-the-configuration").start().await;
    for (key, status) in [
        (Some("of-the-configuration"), 200),
        (Some("first-of-the-file"), 200),
        (Some("second-of-the-file"), 200),
        (Some("# of the shop"), 401),
        (None, 401),
    ] {
        let answer = node.api().with_key(key).get("/api/v1/nodes").await;
        assert_eq!(answer.status, status, "{key:?}");
    }
    for (keys, why) in [
        ("# none\n", "has no keys"),
        ("long-enough\nshort\n", "a key has at least 8 characters"),
    ] {
        write(keys);
        let output = run(&["--set", &flag], "listen = \"127.0.0.1:0\"", &[]);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(
            said.contains(why) && !said.contains("long-enough"),
            "{said}"
        );
    }
}

#[test]
fn what_is_right_is_said_to_be_right() {
    accepted(&["check-config"], "", &[]);
    accepted(
        &["check-config"],
        "[sockets]\nping_interval = \"500ms\"\nmessage_bytes = \"1MiB\"\n",
        &[],
    );
}

#[tokio::test]
async fn a_byte_order_mark_at_the_start_of_a_file_is_skipped() {
    accepted(&["check-config"], "\u{feff}listen = \"127.0.0.1:0\"", &[]);

    let directory = TempDir::new().expect("a temporary directory");
    let marked = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, format!("\u{feff}{text}")).expect("a file in the test's own directory");
        path
    };
    let keys = marked("keys", "of-the-first-line\n");
    let secret = marked("secret", &"s".repeat(32));
    let public = in_repository("server/testdata/p256.pub.pem");
    let public = marked("p256.pem", &public);
    let jwks = r#"{"keys":[{"kty":"oct","alg":"HS256","k":"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}"#;
    let jwks = marked("jwks", jwks);
    let headers = marked("headers", "x-key: 1\n");
    let certificate = Certificate::new();
    let identity = Identity::new(&certificate);
    for file in [identity.certificate(), identity.key()] {
        let text = fs::read_to_string(&file).expect("PEM");
        assert!(text.starts_with("-----BEGIN"), "on the line of the mark");
        fs::write(&file, format!("\u{feff}{text}")).expect("a file in the test's own directory");
    }
    let toml = format!(
        "[auth]\nmode = \"token\"\nsecret_file = {secret:?}\npublic_key_file = {public:?}\nalgorithm = \"ES256\"\n\
         jwks_file = {jwks:?}\n\
         [tracing]\nendpoint = \"http://127.0.0.1:1\"\nheaders_file = {headers:?}"
    );
    let node = Node::config("marked").tls(&identity).toml(&toml);
    let node = node
        .arg("--set")
        .arg(&format!("api.keys_file={}", keys.display()));
    let node = node.key("of-the-configuration").start().await;
    let with_key = node.api().with_key(Some("of-the-first-line"));
    assert_eq!(with_key.get("/api/v1/nodes").await.status, 200);

    let output = run(&["check-config"], "", &[]);
    assert_eq!(output.status.code(), Some(0));
    let utf_16 = directory.path().join("utf-16.toml");
    fs::write(&utf_16, b"\xff\xfel\0").expect("a file in the test's own directory");
    let output = unisono()
        .args(["check-config", "--config"])
        .arg(&utf_16)
        .output();
    let said = text(&output.expect("unisono runs").stderr);
    assert!(said.contains("save it as UTF-8"), "{said}");
}

#[tokio::test]
async fn patterns_in_vain_are_told_by_check_config_and_at_the_start() {
    let rooms = ["/x/", "/a%20b", "/chat/{id}", "/chat/lobby"];
    let rooms = rooms.map(|pattern| format!("[[rooms]]\npattern = \"{pattern}\"\n"));
    let file = rooms.concat();
    let checked = run(&["check-config"], &file, &[]);
    assert_eq!(checked.status.code(), Some(0), "they are no mistakes");
    let mut node = Node::alone(&file).await;
    for said in [text(&checked.stderr), node.process().stderr()] {
        for part in [
            "no client comes into `/x/`",
            "write `a b` for `a%20b`",
            "`/chat/lobby` never rules: `/chat/{id}` stands before it",
        ] {
            assert!(said.contains(part), "{part} in {said}");
        }
    }
    let fine = run(&["check-config"], "[[rooms]]\npattern = \"/x\"", &[]);
    assert_eq!(text(&fine.stderr), "");
}

#[test]
fn the_help_is_everywhere_and_wrong_use_is_64() {
    for args in [
        &["--help"][..],
        &["serve", "--help"],
        &["config", "--help"],
        &["check-config", "--help"],
    ] {
        let output = unisono().args(args).output().expect("unisono runs");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(text(&output.stdout).contains("Usage"), "{args:?}");
    }
    for args in [&["nonsense"][..], &["--nonsense"], &["config", "stray"]] {
        let output = unisono().args(args).output().expect("unisono runs");
        assert_eq!(
            output.status.code(),
            Some(64),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn an_address_that_lacks_something_is_refused_with_the_form_that_is_expected() {
    let form = "listen: `:8080` has no address; write 127.0.0.1:8080 for this machine only, or 0.0.0.0:8080";
    let check = "check-config";
    for said in [
        refused(&[check, "--listen", ":8080"], "", &[]),
        refused(&[check], "", &[("UNISONO__LISTEN", ":8080")]),
        refused(&[check], "listen = ':8080'", &[]),
        refused(&[check, "--set=admin.listen=:8080"], "", &[]),
        refused(&[check], "", &[("UNISONO__ADMIN__LISTEN", ":8080")]),
    ] {
        assert!(said.contains(form), "{said}");
    }
    for port in [
        refused(&[check, "--listen", "8080"], "", &[]),
        refused(&[check], "listen = 8080", &[]),
    ] {
        assert!(
            port.contains("`8080` has no address; write 127.0.0.1:8080"),
            "{port}"
        );
    }
    accepted(&[check, "--listen", "localhost:8080"], "", &[]);
}

#[tokio::test]
async fn a_port_that_is_taken_is_an_error_with_its_address() {
    let node = Node::alone("").await;
    let file = format!("listen = \"127.0.0.1:{}\"", node.port());

    let output = run(&["serve"], &file, &[]);

    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains(&node.port().to_string()), "{said}");
}

#[tokio::test]
async fn a_first_try_says_that_it_is_open() {
    let mut open = Node::alone("").await;
    let mut ruled = Node::alone("[[rooms]]\npattern = \"/x\"").await;

    let said = |node: &mut Node| node.process().stdout() + &node.process().stderr();
    assert!(said(&mut open).contains("open mode"), "{}", said(&mut open));
    assert!(
        !said(&mut ruled).contains("open mode"),
        "{}",
        said(&mut ruled)
    );
}
