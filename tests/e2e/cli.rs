//! The command line as a client of a running cluster.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Output, Stdio};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;
use unisono_tests::{Node, Process, Sandbox, Terminal, eventually, free_port, unisono};

use crate::config::text;

/// Runs a command to its end against the node at that URL.
fn run(url: &str, args: &[&str]) -> Output {
    let output = unisono().env("UNISONO_URL", url).args(args).output();
    output.expect("unisono runs")
}

/// Runs a command, with this on its standard input.
fn run_with_input(url: &str, args: &[&str], input: &str) -> Output {
    let mut command = unisono();
    let mut child = command
        .env("UNISONO_URL", url)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unisono runs");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

/// Runs a command that succeeds, and returns what it printed.
#[track_caller]
fn done(url: &str, args: &[&str]) -> String {
    printed(&run(url, args), 0)
}

#[track_caller]
fn printed(output: &Output, status: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    text(&output.stdout)
}

/// As [`done`], with `--json`.
#[track_caller]
fn done_json(url: &str, args: &[&str]) -> Value {
    let mut args = args.to_vec();
    args.push("--json");
    let printed = done(url, &args);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Runs a command that fails with that status, and returns its complaint.
#[track_caller]
fn failed(url: &str, args: &[&str], status: i32) -> String {
    let output = run(url, args);
    printed(&output, status);
    text(&output.stderr)
}

/// The rows of a plain table, without its header.
fn rows(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().skip(1);
    rows.map(|row| row.split_whitespace().collect()).collect()
}

#[tokio::test]
async fn what_there_is_is_listed_by_any_node() {
    let sandbox = Sandbox::start(3).await;
    let a = sandbox.client(0, "/list/a").await;
    let b = sandbox.client(1, "/list/b").await;
    let _c = sandbox.client(1, "/list/b").await;
    let _d = sandbox.client(1, "/other").await;
    let url = sandbox.api(2).base();

    let nodes = done(url, &["nodes"]);
    let mut names: Vec<_> = rows(&nodes).iter().map(|row| row[1].to_owned()).collect();
    names.sort();
    assert_eq!(names, ["node-0", "node-1", "node-2"], "{nodes}");
    let nodes = done_json(url, &["nodes"]);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(3));

    let rooms = done(url, &["rooms", "--prefix", "/list/"]);
    assert_eq!(rooms, "ROOM     SOCKETS\n/list/a  1\n/list/b  2\n");
    let rooms = done_json(url, &["rooms", "--limit", "1"]);
    assert_eq!(rooms["rooms"], json!([{"room": "/list/a", "sockets": 1}]));
    assert_eq!(rooms["more"], true);
    assert_eq!(rooms["nodes"]["reached"], 3);

    let sockets = done_json(url, &["sockets", "/list/b"]);
    assert_eq!(sockets["count"], 2);
    let sockets = done(url, &["sockets", "/list/a"]);
    assert_eq!(rows(&sockets), [[a.id.as_str(), "-"]]);

    let socket = done(url, &["socket", &b.id]);
    assert!(
        socket.contains(&b.id) && socket.contains("/list/b"),
        "{socket}"
    );
    assert_eq!(done_json(url, &["socket", &b.id])["node"], b.node.as_str());
}

#[tokio::test]
async fn pages_are_followed() {
    let node = Node::config("paged").arg("--set").arg("api.page=2");
    let node = node.start().await;
    let mut sockets = vec![];
    for i in 0..5 {
        sockets.push(node.client(&format!("/page/{i}")).await);
    }
    let url = node.api().base();
    assert_eq!(rows(&done(url, &["rooms"])).len(), 5);
    assert_eq!(rows(&done(url, &["rooms", "--limit", "3"])).len(), 3);
    let all = done_json(url, &["rooms"]);
    assert_eq!(all["rooms"].as_array().map(Vec::len), Some(5));
    assert_eq!(all["more"], false);
}

#[tokio::test]
async fn messages_reach_sockets_of_other_nodes() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/cli").await;
    let mut b = sandbox.client(1, "/cli").await;
    let url = sandbox.api(2).base();

    let sent = done(
        url,
        &[
            "emit",
            &a.id,
            &b.id,
            "hello",
            r#"{"n":12345678901234567890123}"#,
        ],
    );
    assert_eq!(
        rows(&sent),
        [[a.id.as_str(), "delivered"], [b.id.as_str(), "delivered"]]
    );
    for client in [&mut a, &mut b] {
        let event = client.expect("hello").await;
        assert!(
            event.text.contains(r#"{"n":12345678901234567890123}"#),
            "{}",
            event.text
        );
    }

    let sent = done(
        url,
        &[
            "publish",
            "/cli",
            "news",
            "[1]",
            "--confirm",
            "--except",
            &b.id,
        ],
    );
    assert_eq!(sent, "confirmed: 1 socket on 3 nodes\n");
    assert_eq!(a.expect("news").await.data, json!([1]));

    let output = run_with_input(url, &["broadcast", "all", "-"], "{\"from\": \"stdin\"}\n");
    assert_eq!(printed(&output, 0), "sent\n");
    assert_eq!(a.expect("all").await.data, json!({"from": "stdin"}));
    assert_eq!(b.expect("all").await.data, json!({"from": "stdin"}));

    done(url, &["emit", &b.id, "--text", "bare"]);
    b.expect_frame("bare".into()).await;
    let output = run_with_input(url, &["publish", "/cli", "--binary", "-"], "bytes");
    printed(&output, 0);
    b.expect_frame(b"bytes".to_vec().into()).await;
}

#[tokio::test]
async fn not_everything_delivered_is_status_1() {
    let sandbox = Sandbox::start(2).await;
    let a = sandbox.client(0, "/cli").await;
    let gone = "ffffffff-ffff-8000-8000-000000000000";
    let url = sandbox.api(1).base();

    let output = run(url, &["emit", &a.id, gone, "hello"]);
    let table = printed(&output, 1);
    assert_eq!(
        rows(&table),
        [[a.id.as_str(), "delivered"], [gone, "node_gone"]]
    );
    let output = run(url, &["emit", "--user", "nobody", "hello", "--json"]);
    let answer: Value = serde_json::from_str(&printed(&output, 1)).expect("JSON");
    assert_eq!(answer["delivered"], 0);
}

#[tokio::test]
async fn sockets_are_moved_and_closed() {
    let sandbox = Sandbox::start(2).await;
    let mut a = sandbox.client(0, "/cli").await;
    let mut b = sandbox.client(0, "/cli").await;
    let url = sandbox.api(1).base();

    done(url, &["join", "/vip", &a.id]);
    done(url, &["publish", "/vip", "welcome"]);
    a.expect("welcome").await;
    done(url, &["leave", "/vip", &a.id]);
    assert_eq!(rows(&done(url, &["sockets", "/vip"])).len(), 0);

    done(
        url,
        &["disconnect", &a.id, "--code", "4001", "--reason", "bye"],
    );
    assert_eq!(a.expect_close().await, (4001, "bye".to_owned()));
    let closed = done(url, &["disconnect", "--room", "/cli", "--after", "10ms"]);
    assert_eq!(closed, "disconnected: 1 socket\n");
    assert_eq!(b.expect_close().await.0, 1000);
}

#[tokio::test]
async fn errors_say_what_to_do() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let said = failed(&nobody, &["nodes"], 1);
    assert!(
        said.contains(&nobody) && said.contains("refused") && said.contains("--url"),
        "{said}"
    );

    let node = Node::config("keyed")
        .key("a-key-of-some-length")
        .start()
        .await;
    let url = node.api().base();
    let said = failed(url, &["nodes"], 1);
    assert!(
        said.contains("--key") && said.contains("UNISONO_KEY"),
        "{said}"
    );
    let said = failed(url, &["nodes", "--key", "wrong"], 1);
    assert!(said.contains("no such key"), "{said}");
    done(url, &["nodes", "--key", "a-key-of-some-length"]);
    let mut with_variable = unisono();
    with_variable.env("UNISONO_KEY", "a-key-of-some-length");
    let output = with_variable.args(["rooms", "--url", url]).output();
    printed(&output.expect("unisono runs"), 0);

    let open = Node::alone("").await;
    let url = open.api().base();
    failed(url, &["socket", "ffffffff-ffff-8000-8000-000000000000"], 1);
    for wrong in [
        &["socket", "no-id"][..],
        &["emit"],
        &["emit", "no-id", "hello"],
        &["emit", "--user", "alice"],
        &["emit", "--user", "alice", "event", "{}", "stray"],
        &["publish", "/room"],
        &["publish", "/room", "event", "no json"],
        &["publish", "/room", "event", "--text", "both"],
        &["publish", "/room", "--text", "a", "--binary", "b"],
        &["publish", "/room", "--binary", "no-such-file"],
        &["disconnect"],
        &["disconnect", "--room", "/a", "--user", "b"],
        &["join", "/room"],
        &["nodes", "--url", "ws://127.0.0.1"],
        &["nodes", "--timeout", "soon"],
    ] {
        let said = failed(url, wrong, 64);
        assert!(!said.is_empty(), "{wrong:?}");
    }
    // What only the node can know.
    let said = failed(url, &["publish", "/room", "unisono:open"], 1);
    assert!(said.contains("bad_event"), "{said}");
}

#[tokio::test]
async fn a_frozen_node_is_a_failure_in_time() {
    let node = Node::alone("").await;
    node.freeze();
    let said = failed(node.api().base(), &["health", "--timeout", "200ms"], 1);
    assert!(said.contains("200ms"), "{said}");
    node.thaw();
}

#[tokio::test]
async fn health_is_an_exit_status() {
    let mut node = Node::alone("[drain]\ndelay = \"60s\"").await;
    let url = node.api().base().to_owned();
    assert!(done(&url, &["health"]).starts_with("ok: node "));
    assert_eq!(done_json(&url, &["health", "--live"])["status"], "ok");

    node.terminate();
    eventually("it is not ready", async || {
        let said = run(&url, &["health"]);
        said.status.code() == Some(1) && text(&said.stderr).contains("draining")
    })
    .await;
    done(&url, &["health", "--live"]);
    node.kill();
    failed(&url, &["health", "--live"], 1);
}

#[tokio::test]
async fn a_pipe_that_ends_is_no_failure() {
    let node = Node::alone("").await;
    for args in [&["config"][..], &["nodes"], &["completions", "bash"]] {
        let mut child = unisono()
            .env("UNISONO_URL", node.api().base())
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("unisono runs");
        drop(child.stdout.take());
        let mut said = String::new();
        let mut stderr = child.stderr.take().expect("it is piped");
        stderr.read_to_string(&mut said).expect("it is text");
        let status = child.wait().expect("it ends");
        assert_eq!((status.code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn completions_are_scripts() {
    let bash = done("", &["completions", "bash"]);
    let mut parse = std::process::Command::new("bash")
        .arg("-n")
        .stdin(Stdio::piped())
        .spawn()
        .expect("bash is there");
    let mut stdin = parse.stdin.take().expect("it is piped");
    stdin.write_all(bash.as_bytes()).expect("bash reads");
    drop(stdin);
    assert!(parse.wait().expect("bash ends").success());
    for shell in ["bash", "zsh", "fish"] {
        let script = done("", &["completions", shell]);
        assert!(script.contains("publish") && script.contains("--confirm") || shell == "fish");
    }
    failed("", &["completions", "tcsh"], 64);
}

#[test]
fn every_command_has_help_with_examples() {
    for command in [
        "nodes",
        "rooms",
        "sockets",
        "socket",
        "emit",
        "publish",
        "broadcast",
        "disconnect",
        "join",
        "leave",
        "health",
        "completions",
    ] {
        let help = done("", &[command, "--help"]);
        assert!(
            help.contains("Usage") && help.contains("Examples:"),
            "{help}"
        );
        assert!(help.contains(&format!("unisono {command}")), "{help}");
    }
}

// === drain ===

const SOON: &str = "[drain]\ndelay = \"0s\"\nwindow = \"200ms\"";

#[tokio::test]
async fn a_node_is_drained_from_afar() {
    let mut sandbox = Sandbox::config().toml(SOON).start().await;
    let mut leaving = sandbox.client(0, "/drain").await;
    let mut staying = sandbox.client(1, "/drain").await;
    let url = sandbox.api(2).base().to_owned();

    // Nobody is asked, because nobody is at a terminal.
    let said = done(&url, &["drain", "--node", "node-0"]);
    assert!(
        said.starts_with("node-0 (") && said.ends_with(" drains\n"),
        "{said}"
    );
    leaving.expect("unisono:closing").await;
    assert_eq!(leaving.expect_close().await.0, 1012);
    let status = sandbox.nodes[0].process().exited().await;
    assert_eq!(status.code(), Some(0));

    let sent = done(&url, &["publish", "/drain", "still here", "--confirm"]);
    assert_eq!(sent, "confirmed: 1 socket on 2 nodes\n");
    staying.expect("still here").await;

    // The node that is asked, by its id.
    let id = sandbox.nodes[2].id().await;
    let answer = done_json(&url, &["drain", "--yes", "--node", &id]);
    assert_eq!(answer, json!({"node": id, "status": "draining"}));
    let status = sandbox.nodes[2].process().exited().await;
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_drain_is_waited_for() {
    let mut sandbox = Sandbox::config().toml(SOON).start().await;
    let _leaving = sandbox.client(0, "/drain").await;
    let url = sandbox.api(2).base().to_owned();

    let said = done(&url, &["drain", "--node", "node-0", "--wait"]);
    assert!(said.ends_with(" is gone\n"), "{said}");
    let nodes = done_json(&url, &["nodes"]);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(2));
    let status = sandbox.nodes[0].process().exited().await;
    assert_eq!(status.code(), Some(0));

    // The node that is asked answers until it is gone.
    let id = sandbox.nodes[2].id().await;
    let answer = done_json(&url, &["drain", "--node", &id, "--wait"]);
    assert_eq!(answer, json!({"node": id, "status": "gone"}));
    let status = sandbox.nodes[2].process().exited().await;
    assert_eq!(status.code(), Some(0));
}

/// Runs a command on a terminal of its own, and answers what it asks.
fn at_a_terminal(url: &str, args: &[&str], answer: &str) -> (String, i32) {
    let mut terminal = Terminal::spawn(unisono().args(args).env("UNISONO_URL", url));
    terminal.until("[y/N] ");
    terminal.enter(answer);
    terminal.end()
}

#[tokio::test]
async fn somebody_at_a_terminal_is_asked_and_sees_how_far_it_is() {
    let mut sandbox = Sandbox::config().nodes(2).toml(SOON).start().await;
    let mut client = sandbox.client(1, "/drain").await;
    let url = sandbox.api(0).base().to_owned();
    let drain = ["drain", "--node", "node-1", "--wait"];
    eventually("the other node has told of its socket", async || {
        let nodes = done_json(&url, &["nodes"]);
        nodes["nodes"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|node| node["sockets"] == 1)
    })
    .await;

    for no in ["n\n", "\n", "\x04"] {
        let (shown, status) = at_a_terminal(&url, &drain, no);
        assert!(
            shown.contains("Drain node-1 (") && shown.contains("nothing was done"),
            "{shown}"
        );
        assert_eq!(status, 1);
    }
    client.ack("unisono:ping", Value::Null).await;

    let (shown, status) = at_a_terminal(&url, &drain, "y\n");
    for part in [
        "which has 1 socket?",
        " drains",
        "sockets that are left: ",
        " is gone",
    ] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert_eq!(status, 0);
    assert_eq!(sandbox.nodes[1].process().exited().await.code(), Some(0));
}

#[tokio::test]
async fn only_a_node_that_is_meant_is_drained() {
    let config = Sandbox::config().nodes(2);
    let sandbox = config.clone().start().await;
    let twin = config.node(1, &sandbox.nats).start().await;
    let url = sandbox.api(0).base();
    eventually("the twin is known", async || {
        let nodes = done_json(url, &["nodes"]);
        nodes["nodes"].as_array().map(Vec::len) == Some(3)
    })
    .await;

    let said = failed(url, &["drain", "--node", "node-1"], 1);
    assert!(said.contains(&twin.id().await), "{said}");
    let said = failed(url, &["drain", "--node", "node-9"], 1);
    assert!(said.contains("node-9"), "{said}");
    failed(url, &["drain"], 64);
    for (body, status) in [
        (json!({"node": "ffffffffffff"}), 404),
        (json!({"node": "node-0"}), 400),
        (json!({}), 400),
        (json!({"node": "ffffffffffff", "x": 1}), 400),
    ] {
        assert_eq!(
            sandbox.api(0).post("drain", body.clone()).await.status,
            status,
            "{body}"
        );
    }
    // Those who may send may not stop nodes.
    let batch = sandbox
        .api(0)
        .post("batch", json!([{"drain": {"node": twin.id().await}}]));
    assert_eq!(batch.await.ok()[0]["error"]["code"], "bad_request");
    let up = done_json(url, &["nodes"]);
    let up = up["nodes"].as_array().expect("a list");
    assert!(up.iter().all(|node| node["state"] == "up"), "{up:?}");
}

// === tail ===

/// `unisono tail` while it runs.
struct Tail {
    process: Process,
    _directory: TempDir,
}

impl Tail {
    /// Returns when all nodes are watched.
    async fn start(url: &str, args: &[&str], nodes: usize) -> Self {
        let directory = TempDir::with_prefix("unisono-tail-").expect("a temporary directory");
        let mut command = unisono();
        command.env("UNISONO_URL", url).arg("tail").args(args);
        let mut tail = Self {
            process: Process::spawn("tail", command, directory.path(), ""),
            _directory: directory,
        };
        if args.contains(&"--json") {
            let begun = tail.line(r#""kind":"tail""#).await;
            assert!(begun.contains(&format!("\"reached\":{nodes}")), "{begun}");
        } else {
            tail.says(&format!("watching {nodes} nodes")).await;
        }
        tail
    }

    /// The first line that has this in it.
    async fn line(&mut self, part: &str) -> String {
        eventually(&format!("a line with {part}"), async || {
            let lines = self.process.stdout();
            let found = lines.lines().find(|line| line.contains(part));
            found.map(str::to_owned).ok_or(lines)
        })
        .await
    }

    async fn says(&mut self, part: &str) {
        eventually(&format!("it says {part}"), async || {
            let said = self.process.stderr();
            if said.contains(part) {
                Ok(())
            } else {
                Err(said)
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_tail_shows_what_passes_on_every_node() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/tail/a").await;
    let url = sandbox.api(2).base();
    let mut tail = Tail::start(url, &["room:/tail/*"], 3).await;

    a.send("hi", json!({"n": 1})).await;
    let line = tail.line("\"hi\"").await;
    for part in [
        " node-0 publish ",
        "/tail/a",
        &format!("from {}", a.id),
        r#"{"n":1}"#,
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    sandbox
        .api(1)
        .publish("/elsewhere", "unwanted", json!(1))
        .await;
    sandbox
        .api(1)
        .publish("/tail/b", "bye", json!("\u{9b}31m"))
        .await;
    let line = tail.line("\"bye\"").await;
    assert!(
        line.contains(" node-1 publish ") && !line.contains('\u{9b}'),
        "{line}"
    );
    let mut b = sandbox.client(2, "/tail/b").await;
    tail.line(" node-2 joined ").await;
    b.close(1000, "").await;
    tail.line(" node-2 left ").await;
    let all = tail.process.stdout();
    assert!(!all.contains("unwanted"), "{all}");
    assert_eq!(all.matches("\"bye\"").count(), 1, "{all}");
}

#[tokio::test]
async fn a_tail_of_a_socket_shows_what_it_gets_and_does() {
    let sandbox = Sandbox::start(3).await;
    let mut a = sandbox.client(0, "/tail").await;
    let b = sandbox.client(1, "/tail").await;
    let url = sandbox.api(2).base();
    let filter = format!("socket:{}", a.id);
    let mut tail = Tail::start(url, &[&filter, "--json"], 3).await;

    sandbox.api(1).emit(&b.id, "unwanted", json!(1)).await;
    sandbox
        .api(1)
        .emit(&a.id, "emitted", json!({"a": [1, 2]}))
        .await;
    sandbox.api(1).publish("/tail", "published", json!(1)).await;
    a.send("sent", json!(1)).await;
    a.join("/more").await;
    a.close(4000, "enough").await;

    let parse = |line: String| serde_json::from_str::<Value>(&line).expect("JSON");
    let emitted = parse(tail.line("\"emitted\"").await);
    let expected = json!({"kind": "emit", "node": a.node, "socket": a.id, "event": "emitted",
        "data": {"a": [1, 2]}, "status": "delivered", "at": emitted["at"]});
    assert_eq!(emitted, expected);
    let delivered = parse(tail.line("\"published\"").await);
    assert_eq!(delivered["kind"], "deliver");
    assert_eq!(delivered["room"], "/tail");
    let sent = parse(tail.line("\"sent\"").await);
    assert_eq!(
        (&sent["kind"], &sent["from"]),
        (&json!("publish"), &json!(a.id))
    );
    assert_eq!(parse(tail.line("\"joined\"").await)["room"], "/more");
    tail.line("\"closed\"").await;
    assert!(!tail.process.stdout().contains("unwanted"));
}

#[tokio::test]
async fn a_tail_of_events_goes_by_their_names() {
    let sandbox = Sandbox::start(2).await;
    let long = "x".repeat(5_000);
    let mut short = Tail::start(sandbox.api(0).base(), &["event:order.*"], 2).await;
    let mut full = Tail::start(sandbox.api(1).base(), &["event:order.*", "--full"], 2).await;

    sandbox.api(0).broadcast("other", json!(1)).await;
    sandbox.api(0).broadcast("order.paid", json!(long)).await;

    let line = short.line("order.paid").await;
    assert!(
        line.contains("broadcast") && line.contains("(5002 bytes)") && line.len() < 500,
        "{line}"
    );
    let line = full.line("order.paid").await;
    assert!(line.contains(&long), "{line}");
    assert!(!short.process.stdout().contains("other"));
}

#[tokio::test]
async fn a_tail_counts_what_it_cannot_show() {
    // Longer than a lease lasts that nobody renews: what is missed is counted however long the reader stands still.
    let still = Instant::now() + Duration::from_secs(6);
    let sandbox = Sandbox::start(2).await;
    let mut tail = Tail::start(sandbox.api(0).base(), &["--full"], 2).await;
    tail.process.freeze();
    let large = json!("x".repeat(60_000));
    for _ in 0..500 {
        sandbox
            .api(1)
            .publish("/flood", "drop", large.clone())
            .await;
    }
    eventually("it stands still for long", async || {
        if Instant::now() > still {
            Ok(())
        } else {
            Err(())
        }
    })
    .await;
    tail.process.thaw();
    tail.says("more on node-1, faster than they could be shown")
        .await;
    sandbox.api(1).publish("/flood", "after", json!(1)).await;
    tail.line("\"after\"").await;
    eventually("each is shown or counted", async || {
        let shown = tail.process.stdout().matches("\"drop\"").count();
        let said = tail.process.stderr();
        let missed = said.lines().filter_map(|line| {
            let (count, _) = line.split_once(" more on node-1")?;
            count.rsplit(' ').next()?.parse::<usize>().ok()
        });
        let sum = shown + missed.sum::<usize>();
        if sum == 500 { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn a_tail_follows_nodes_that_come_and_says_who_goes() {
    let config = Sandbox::config().nodes(2);
    let mut sandbox = config.clone().start().await;
    let mut tail = Tail::start(sandbox.api(0).base(), &[], 2).await;
    let third = config.node(2, &sandbox.nats).start().await;
    tail.says(&format!("{} is up", third.id().await)).await;
    third.api().broadcast("from the third", json!(1)).await;
    tail.line("from the third").await;
    sandbox.nodes[1].kill();
    tail.says("node-1 is down").await;
    third.api().broadcast("without the second", json!(1)).await;
    tail.line("without the second").await;

    sandbox.nodes[0].kill();
    assert_eq!(tail.process.exited().await.code(), Some(1));
    tail.says("the node has ended the tail").await;
}

#[tokio::test]
async fn a_node_has_so_many_tails_and_no_more() {
    let node = Node::alone("").await;
    let watch = || {
        node.api()
            .request(Method::GET, "/api/v1/tail?filter=room:/a")
            .send()
    };
    let mut tails = vec![];
    for _ in 0..8 {
        tails.push(watch().await.expect("an answer"));
    }
    assert!(tails.iter().all(|tail| tail.status() == 200));
    assert_eq!(
        node.api().get("/api/v1/tail").await.refusal(),
        (503, "busy")
    );
    failed(node.api().base(), &["tail"], 1);
    drop(tails);
    eventually("there is a place", async || {
        watch().await.expect("an answer").status() == 200
    })
    .await;
    for query in ["filter=a", "filter=socket:1", "full=maybe", "unknown=1"] {
        let answer = node.api().get(&format!("/api/v1/tail?{query}")).await;
        assert_eq!(answer.refusal(), (400, "bad_request"), "{query}");
    }
    failed(node.api().base(), &["tail", "rooms:/a"], 64);
}

#[tokio::test]
async fn a_tail_that_nobody_reads_ends() {
    let node = Node::alone("").await;
    let mut child = unisono()
        .args(["tail", "--url", node.api().base()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unisono runs");
    drop(child.stdout.take());
    let mut stderr = BufReader::new(child.stderr.take().expect("it is piped"));
    let mut said = String::new();
    stderr.read_line(&mut said).expect("it is text");
    assert!(said.contains("watching"), "{said}");
    node.api().broadcast("news", json!(1)).await;
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
}
