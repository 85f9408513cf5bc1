//! Mistakes in `[auth]` and `[hooks]`, and secrets that nobody is shown.

use tempfile::TempDir;

use super::*;
use crate::config::{accepted, refused, run, text};

#[test]
fn what_cannot_be_is_refused_with_its_key() {
    let token = format!("[auth]\nmode = \"token\"\nsecret = \"{SECRET}\"\n");
    let with_token = |line: &str| format!("{token}{line}");
    let auth = |lines: &str| format!("[auth]\n{lines}");
    for (file, key) in [
        (auth("mode = \"maybe\""), "auth.mode"),
        (auth("mode = \"token\""), "auth.mode"),
        (auth("sekret = \"a\""), "auth.sekret"),
        (auth("secret = \"short\""), "auth.secret"),
        (auth("secret = 5"), "auth.secret"),
        (with_token("secret_file = \"a\""), "auth.secret_file"),
        (with_token("token_from = []"), "auth.token_from"),
        (with_token("token_from = [\"body\"]"), "auth.token_from"),
        (with_token("token_from = [\"cookie\"]"), "auth.origins"),
        (with_token("public_key_file = \"a\""), "auth.algorithm"),
        (with_token("algorithm = \"RS256\""), "auth.algorithm"),
        (
            with_token("public_key_file = \"a\"\nalgorithm = \"HS256\""),
            "auth.algorithm",
        ),
        (
            with_token("public_key_file = \"a\"\nalgorithm = \"none\""),
            "auth.algorithm",
        ),
        (with_token("jwks_url = \"nonsense\""), "auth.jwks_url"),
        (
            with_token("jwks_url = \"file:///etc/passwd\""),
            "auth.jwks_url",
        ),
        (with_token("jwks_refresh = \"0s\""), "auth.jwks_refresh"),
        (with_token("leeway = \"2m\""), "auth.leeway"),
        (with_token("leeway = \"much\""), "auth.leeway"),
        (
            with_token("expired_close_delay = \"-1s\""),
            "auth.expired_close_delay",
        ),
        (
            with_token("hook_url = \"https://example.com\""),
            "auth.hook_url",
        ),
        (auth("mode = \"hook\""), "auth.hook_url"),
        (
            auth("mode = \"hook\"\nhook_url = \"ftp://a\""),
            "auth.hook_url",
        ),
        (
            auth("mode = \"hook\"\nhook_url = \"http://a\""),
            "hooks.secret",
        ),
        (auth("hook_timeout = \"0s\""), "auth.hook_timeout"),
        (auth("origins = [\"example.com\"]"), "auth.origins"),
        (auth("origins = [\"https://example.com/\"]"), "auth.origins"),
        (
            auth("origins = [\"https://example.com/\"]"),
            "write https://example.com",
        ),
        (
            auth("origins = [\"https://a@example.com\"]"),
            "auth.origins",
        ),
        (auth("origins = [\"https://*\"]"), "auth.origins"),
        (auth("origins = [\"https://a.*.com\"]"), "auth.origins"),
        (
            auth("origins = [\"https://m\u{fc}nchen.example\"]"),
            "write https://xn--mnchen-3ya.example",
        ),
        (auth("origins = [\"*\"]"), "auth.origins"),
        (auth("origins = \"https://example.com\""), "auth.origins"),
        (
            auth("trusted_proxies = [\"localhost\"]"),
            "auth.trusted_proxies",
        ),
        (
            auth("trusted_proxies = [\"10.0.0.0/33\"]"),
            "auth.trusted_proxies",
        ),
        ("[hooks]\nurl = \"http://a\"".to_owned(), "hooks.secret"),
        (
            "[hooks]\nurl = \"a\"\nsecret = \"a\"".to_owned(),
            "hooks.url",
        ),
        (
            "[hooks]\nsecret = \"a\"\nsecret_file = \"a\"".to_owned(),
            "hooks.secret_file",
        ),
        (
            "[[rooms]]\npattern = \"/x\"\nwho = \"nobody\"".to_owned(),
            "who",
        ),
        ("[[rooms]]\npattern = \"/x\"\nemit = 1".to_owned(), "emit"),
    ] {
        let said = refused(&["check-config"], &file, &[]);
        assert!(
            said.contains(key),
            "nothing about {key} in:\n{said}\n{file}"
        );
        assert!(
            !said.contains(SECRET) && !said.contains("\"short\""),
            "{said}"
        );
    }
}

#[test]
fn a_key_that_is_none_is_told_at_the_start() {
    let directory = TempDir::with_prefix("unisono-keys-").expect("a temporary directory");
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file of the test's own");
        path
    };
    let short = write("short", "s3cr3t");
    let empty = write("empty.json", "{\"keys\":[]}");
    let garbage = write("garbage.json", "garbage");
    let public = |name: &str, algorithm: &str| {
        let path = testdata(name);
        format!("public_key_file = {path:?}\nalgorithm = \"{algorithm}\"")
    };
    for (lines, expected) in [
        ("secret_file = \"/nowhere\"".to_owned(), "/nowhere"),
        (format!("secret_file = {short:?}"), "at least 32 bytes"),
        (
            "public_key_file = \"/nowhere\"\nalgorithm = \"RS256\"".to_owned(),
            "/nowhere",
        ),
        (public("rsa.pem", "RS256"), "private key"),
        (public("rsa1024.pub.pem", "RS256"), "1024"),
        (public("p256.pub.pem", "RS256"), "p256.pub.pem"),
        (public("p384.pub.pem", "ES256"), "p384.pub.pem"),
        (public("rsa.pub.pem", "EdDSA"), "rsa.pub.pem"),
        ("jwks_file = \"/nowhere\"".to_owned(), "/nowhere"),
        (format!("jwks_file = {empty:?}"), "empty.json"),
        (format!("jwks_file = {garbage:?}"), "garbage.json"),
    ] {
        let file = format!("listen = \"127.0.0.1:0\"\n[auth]\nmode = \"token\"\n{lines}");
        let output = run(&["serve"], &file, &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{lines}: {said}");
        assert!(said.contains(expected), "{lines}: {said}");
        assert!(
            !said.contains("s3cr3t") && !said.contains("BEGIN"),
            "{said}"
        );
    }
    let file = "listen = \"127.0.0.1:0\"\n[auth]\nmode = \"hook\"\nhook_url = \"http://a\"\n\
                [hooks]\nsecret = \"whsec_s3cr3t!s3cr3t!\"";
    let output = run(&["serve"], file, &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("hooks.secret") && !said.contains("s3cr3t"),
        "{said}"
    );
}

#[tokio::test]
async fn secrets_are_shown_to_nobody() {
    let hook_secret = "another that nobody is told";
    let file = format!("[auth]\nsecret = \"{SECRET}\"\n[hooks]\nsecret = \"{hook_secret}\"\n");
    let from_file = accepted(&["config"], &file, &[]);
    let env = [
        ("UNISONO__AUTH__SECRET", SECRET),
        ("UNISONO__HOOKS__SECRET", hook_secret),
    ];
    let from_env = accepted(&["config"], "", &env);
    let mut node = Node::config("quiet")
        .toml(&file)
        .arg("--set=log.level=trace");
    node = node.arg("--set=auth.mode=token");
    let mut node = node.start().await;
    let target = format!("/x?token={}", token(serde_json::json!({})));
    welcome(&node, "a client", &target, &[]).await;

    for said in [from_file, from_env, log(&mut node)] {
        assert!(
            !said.contains(SECRET) && !said.contains(hook_secret),
            "{said}"
        );
    }
}

#[test]
fn what_is_printed_is_accepted_without_its_secrets() {
    let printed = accepted(
        &["config"],
        "[auth]\nmode = \"token\"\njwks_url = \"https://example.com/keys\"\norigins = [\"https://example.com\"]\n\
         trusted_proxies = [\"10.0.0.0/8\", \"::1\"]\ntoken_from = [\"cookie\"]\n[[rooms]]\npattern = \"/x\"\nwho = \"users\"\n",
        &[],
    );
    assert_eq!(accepted(&["config"], &printed, &[]), printed);
}
