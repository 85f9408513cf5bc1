//! `unisono bench` on running clusters: what it counts is exact, and what it cannot do it says.

use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;
use unisono_tests::{
    Certificate, Identity, Node, Process, Sandbox, Terminal, eventually, free_port, unisono,
};

use crate::config::text;

/// `unisono bench` with those nodes.
fn bench(urls: &[&str], args: &[&str]) -> Output {
    let mut command = unisono();
    command.arg("bench").args(args);
    for url in urls {
        command.args(["--url", url]);
    }
    command.output().expect("unisono runs")
}

/// The report of a run in which everything came once.
#[track_caller]
fn report(urls: &[&str], args: &[&str]) -> Value {
    let output = bench(urls, &[args, &["--json"]].concat());
    let (said, printed) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(0), "{said}{printed}");
    assert_eq!(said, "", "no progress where there is no terminal");
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn urls(sandbox: &Sandbox) -> Vec<&str> {
    let nodes = sandbox.nodes.iter();
    nodes.map(|node| node.api().base()).collect()
}

/// Every message once at everybody, and what it took.
#[track_caller]
fn assert_whole(report: &Value, messages: u64, deliveries: u64) {
    for (name, expected) in [
        ("messages", messages),
        ("deliveries", deliveries),
        ("expected", deliveries),
        ("lost", 0),
        ("duplicates", 0),
        ("late", 0),
        ("failed", 0),
        ("foreign", 0),
    ] {
        assert_eq!(report[name], expected, "{name}: {report}");
    }
    assert_eq!(report["delivery_us"]["count"], deliveries, "{report}");
    assert_eq!(report["answer_us"]["count"], messages, "{report}");
    let at = |name: &str| report["delivery_us"][name].as_f64().expect("a number");
    assert!(at("p50") > 0.0 && at("p50") <= at("p99.9") && at("p99.9") <= at("max") * 1.001);
    assert!(
        number(&report["node_cpu_us_per_delivery"]) >= 0.0,
        "{report}"
    );
    assert!(number(&report["own_cpu_us_per_delivery"]) > 0.0, "{report}");
    assert!(number(&report["node_thread_busy"]) >= 0.0, "{report}");
    let busiest = report["node_thread"].as_str().expect("a thread");
    let known = ["node", "bus", "outside"].contains(&busiest);
    assert!(known || busiest.starts_with("worker-"), "{busiest}");
}

#[tokio::test]
async fn bench_counts_every_delivery_of_a_room_and_knows_its_ratio_to_a_bare_loop() {
    let sandbox = Sandbox::start(2).await;
    let fanout = ["fanout", "--sockets", "20", "--messages", "300"];
    let report = report(&urls(&sandbox), &fanout);
    assert_whole(&report, 300, 6_000);
    assert_eq!(report["sockets"], 20);
    assert_eq!(report["loop"], "closed");
    assert_eq!(report["raw"]["steps"], 100_000);
    // A header of 4 bytes, as messages of 126 bytes and more have it, and a greeting that does not count.
    assert_eq!(report["wire_bytes_per_delivery"], 132.0);
    let raw = number(&report["raw"]["cpu_us_per_step"]);
    let ratio = number(&report["node_cpu_us_per_delivery"]) / raw;
    assert!((number(&report["ratio"]) - ratio).abs() < 0.02, "{report}");

    let deliveries = async |node: usize| {
        let metrics = sandbox.nodes[node].metrics().await;
        metrics.sum("unisono_deliveries_total")
    };
    assert_eq!(
        deliveries(0).await,
        3_000.0,
        "half the room is on each node"
    );
    assert_eq!(deliveries(1).await, 3_000.0);
}

#[tokio::test]
async fn bench_publishes_by_a_socket_as_clients_do() {
    let sandbox = Sandbox::start(2).await;
    let urls = urls(&sandbox);
    let by_socket = ["--by", "socket", "--messages", "300", "--no-raw"];
    let fanout = [&["fanout", "--sockets", "20"], &by_socket[..]].concat();
    assert_whole(&report(&urls, &fanout), 300, 6_000);
    let rooms = [&["rooms", "--rooms", "3", "--members", "4"], &by_socket[..]].concat();
    assert_whole(&report(&urls, &rooms), 300, 1_200);
    let metrics = sandbox.nodes[0].metrics().await;
    let published = metrics.get("unisono_publications_total{source=\"client\"}");
    assert_eq!(published, 600.0, "all by way of the first node");

    let two = "rooms --rooms 4 --members 3 --by socket --publishers 2 --messages 300 --rate 1000 --no-raw";
    let two = report(&urls, &two.split(' ').collect::<Vec<_>>());
    assert_whole(&two, 300, 900);
    assert_eq!(two["foreign"], 0, "{two}");
    for (node, before) in [(0, 600.0), (1, 0.0)] {
        let metrics = sandbox.nodes[node].metrics().await;
        let published = metrics.get("unisono_publications_total{source=\"client\"}");
        assert_eq!(published, before + 150.0, "half by way of each node");
    }
}

#[tokio::test]
async fn bench_reports_the_memory_of_a_room() {
    let node = Node::alone("").await;
    let args = "rooms --rooms 10000 --members 1 --idle --duration 1s";
    let args: Vec<_> = args.split(' ').collect();
    let one = report(&[node.api().base()], &args);
    assert_eq!(one["loop"], "idle", "{one}");
    assert_eq!(
        (&one["rooms"], &one["members"]),
        (&10_000.into(), &1.into())
    );
    assert_eq!(one["sockets"], 100, "each is in a hundred");
    // The first of all is the room that the sockets came by, and was there before.
    assert_eq!(one["node_rooms_more"], 10_000, "{one}");
    let bytes = number(&one["node_bytes_per_room"]);
    // 1.8 KiB; what the allocator keeps, and the sockets' growth, is in it, too.
    assert!((500.0..2_560.0).contains(&bytes), "{one}");
}

#[tokio::test]
async fn bench_knows_rooms_of_several_members_on_several_nodes() {
    let sandbox = Sandbox::start(2).await;
    let urls = urls(&sandbox);
    let args = "rooms --rooms 60 --members 4 --idle --duration 1s";
    let args: Vec<_> = args.split(' ').collect();
    let report = report(&urls, &args);
    assert_eq!(report["sockets"], 4, "no fewer than members: {report}");
    assert_eq!(report["node_rooms_more"], 120, "on each node: {report}");

    let wrong = bench(&urls, &[&args[..], &["--by", "socket"]].concat());
    assert_eq!(wrong.status.code(), Some(64), "nobody publishes");
}

#[tokio::test]
async fn bench_says_why_a_socket_may_not_publish() {
    let node = Node::alone("[sockets]\nmessage_rate = 1\nmessage_burst = 5").await;
    let args = [
        "fanout",
        "--by",
        "socket",
        "--sockets",
        "2",
        "--messages",
        "20",
        "--no-raw",
    ];
    let output = bench(&[node.api().base()], &args);
    let (said, printed) = (text(&output.stderr), text(&output.stdout));
    assert_eq!(output.status.code(), Some(1), "{said}{printed}");
    assert!(
        said.contains("rate_limited") && said.contains("--by http"),
        "{said}"
    );

    let closed = "[[rooms]]\npattern = \"/{any...}\"\npublish = \"none\"";
    let node = Node::alone(closed).await;
    let output = bench(&[node.api().base()], &args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("forbidden") && said.contains("--by http"),
        "{said}"
    );
}

#[tokio::test]
async fn bench_at_a_rate_counts_from_when_a_message_was_due() {
    let sandbox = Sandbox::start(2).await;
    let args = [
        "fanout",
        "--sockets",
        "6",
        "--rate",
        "200",
        "--messages",
        "100",
        "--bytes",
        "70000",
        "--no-raw",
    ];
    let report = report(&urls(&sandbox), &args);
    assert_whole(&report, 100, 600);
    assert_eq!(report["loop"], "open");
    assert_eq!(report["raw"], Value::Null);
    assert_eq!(report["ratio"], Value::Null);
    // The last is due after 99 intervals of 5 ms.
    let seconds = report["seconds"].as_f64().expect("a number");
    assert!(seconds >= 0.495, "{report}");
}

#[tokio::test]
async fn bench_emits_through_the_other_node() {
    let sandbox = Sandbox::start(2).await;
    let args = ["emit", "--sockets", "4", "--messages", "50"];
    let urls = urls(&sandbox);
    let without = report(&urls, &args);
    assert_whole(&without, 50, 50);
    assert_eq!(without["health_us"]["count"], 200);
    assert!(without["ratio"].as_f64() > Some(0.0), "{without}");
    assert_eq!(without["nats_us"], Value::Null);
    let sent = sandbox.nodes[0].metrics().await;
    assert!(sent.sum("unisono_bus_sent_messages_total") >= 25.0);

    // What the cluster adds to an HTTP request and a round trip over the bus.
    let nats = sandbox.nats[0].url();
    let args = [&args[..], &["--nats", &nats]].concat();
    let with = report(&urls, &args);
    assert_whole(&with, 50, 50);
    let median = |name: &str| number(&with[name]["p50"]);
    assert_eq!(with["nats_us"]["count"], 200);
    let over = median("answer_us") - median("health_us") - median("nats_us");
    assert!(
        (number(&with["over_floor_us"]) - over).abs() < 0.01,
        "{with}"
    );

    let alone = report(&urls[..1], &args);
    assert_eq!(alone["over_floor_us"], Value::Null);
    let notes = alone["notes"].to_string();
    assert!(notes.contains("name two nodes"), "{notes}");
}

#[tokio::test]
async fn bench_fills_many_rooms() {
    let sandbox = Sandbox::start(2).await;
    let args = [
        "rooms",
        "--rooms",
        "10",
        "--members",
        "3",
        "--messages",
        "95",
        "--window",
        "30",
        "--no-raw",
    ];
    let report = report(&urls(&sandbox), &args);
    assert_whole(&report, 95, 285);
    assert_eq!(report["sockets"], 30);
}

#[tokio::test]
async fn bench_shakes_hands_and_holds_sockets() {
    let sandbox = Sandbox::start(2).await;
    let urls = urls(&sandbox);
    let connect = report(&urls, &["connect", "--sockets", "60", "--concurrency", "7"]);
    assert_eq!(
        (&connect["sockets"], &connect["failed"]),
        (&60.into(), &0.into())
    );
    assert_eq!(connect["handshake_us"]["count"], 60);
    assert_eq!(connect["raw_handshake_us"]["count"], 60);
    assert_eq!(connect["raw"]["steps"], 60);
    eventually("the sockets are gone", async || {
        sandbox.nodes[0].metrics().await.sum("unisono_sockets") == 0.0
            && sandbox.nodes[1].metrics().await.sum("unisono_sockets") == 0.0
    })
    .await;

    let idle = report(&urls, &["idle", "--sockets", "50", "--duration", "1s"]);
    assert_eq!(
        (&idle["sockets"], &idle["node_sockets_more"]),
        (&50.into(), &50.into())
    );
    assert!(idle["node_kib_per_socket"].is_number(), "{idle}");
    assert!(idle["node_cpu_us_per_socket_second"].is_number(), "{idle}");
    // It takes 25 seconds until the first.
    assert_eq!((&idle["pings"], &idle["ratio"]), (&0.into(), &Value::Null));
    let notes = idle["notes"].to_string();
    assert!(notes.contains("sockets.ping_interval"), "{notes}");
}

#[tokio::test]
async fn bench_holds_the_pings_of_idle_sockets_against_a_bare_loop() {
    let node = Node::alone("[sockets]\nping_interval = \"1s\"\npong_timeout = \"30s\"").await;
    let url = [node.api().base()];
    for wire in ["websocket", "sse"] {
        let args = "idle --sockets 400 --duration 3s --wire".split(' ');
        let args: Vec<_> = args.chain([wire]).collect();
        let idle = report(&url, &args);
        // Three for each, and fewer where the machine is busy.
        let pings = idle["pings"].as_u64().expect("a count");
        assert!((1..=1_200).contains(&pings), "{idle}");
        assert_eq!(idle["raw"]["steps"], 400, "one ping of each: {idle}");
        let raw = number(&idle["raw_cpu_us_per_ping"]);
        let ratio = number(&idle["node_cpu_us_per_ping"]) / raw;
        let off = (number(&idle["ratio"]) - ratio).abs();
        assert!(off < 0.01 + 0.05 * ratio, "{idle}");
    }
    let without = "idle --sockets 5 --duration 3s --no-raw";
    let without = report(&url, &without.split(' ').collect::<Vec<_>>());
    assert!(without["pings"].as_u64() > Some(0), "{without}");
    assert_eq!(
        (&without["raw"], &without["ratio"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn bench_reads_server_sent_events() {
    let sandbox = Sandbox::start(2).await;
    let urls = urls(&sandbox);
    let sse = ["--wire", "sse"];
    let fanout = ["fanout", "--sockets", "20", "--messages", "300"];
    let fanout = report(&urls, &[&fanout[..], &sse].concat());
    assert_whole(&fanout, 300, 6_000);
    assert_eq!(
        (&fanout["wire"], &fanout["deflate"]),
        (&"sse".into(), &false.into())
    );
    // `data: `, two line feeds and a chunk's frame at the most: several messages may share a chunk.
    let bytes = number(&fanout["wire_bytes_per_delivery"]);
    assert!(bytes > 136.0 && bytes <= 143.0, "{fanout}");
    let streams = sandbox.nodes[0].metrics().await;
    assert!(streams.sum("unisono_deliveries_total") >= 3_000.0);

    // Larger than what is read at one time.
    let large = "rooms --rooms 3 --members 2 --messages 12 --bytes 100000 --no-raw";
    let large: Vec<_> = large.split(' ').chain(sse).collect();
    assert_whole(&report(&urls, &large), 12, 24);
    let emit: Vec<_> = "emit --sockets 4 --messages 20"
        .split(' ')
        .chain(sse)
        .collect();
    assert_whole(&report(&urls, &emit), 20, 20);
    let connect: Vec<_> = "connect --sockets 30".split(' ').chain(sse).collect();
    let connect = report(&urls, &connect);
    assert_eq!(
        (&connect["sockets"], &connect["failed"]),
        (&30.into(), &0.into())
    );
    assert_eq!(connect["raw"]["steps"], 30);
}

#[tokio::test]
async fn bench_inflates_what_comes_compressed() {
    let sandbox = Sandbox::start(2).await;
    let urls = urls(&sandbox);
    let deflate = ["--bytes", "4096", "--deflate"];
    for (args, messages, deliveries) in [
        ("fanout --sockets 20 --messages 100", 100, 2_000),
        ("rooms --rooms 4 --members 3 --messages 40", 40, 120),
        ("emit --sockets 4 --messages 20", 20, 20),
    ] {
        let args: Vec<_> = args.split(' ').chain(deflate).collect();
        let report = report(&urls, &args);
        assert_whole(&report, messages, deliveries);
        assert_eq!(
            (&report["wire"], &report["deflate"]),
            (&"websocket".into(), &true.into())
        );
        assert_eq!(report["compressed"], deliveries, "{report}");
        let times = 4096.0 / number(&report["wire_bytes_per_delivery"]);
        assert!((2.0..4.0).contains(&times), "{times}: {report}");
    }
    let connect = report(
        &urls,
        &["connect", "--sockets", "9", "--deflate", "--no-raw"],
    );
    assert_eq!(
        (&connect["sockets"], &connect["failed"]),
        (&9.into(), &0.into())
    );

    let small = [
        "fanout",
        "--sockets",
        "2",
        "--messages",
        "5",
        "--deflate",
        "--no-raw",
    ];
    let small = report(&urls, &small);
    assert_whole(&small, 5, 10);
    assert_eq!(small["compressed"], 0);
    let notes = small["notes"].to_string();
    assert!(notes.contains("sockets.deflate_min_bytes"), "{notes}");
}

#[test]
fn bench_knows_the_limit_of_the_machine() {
    let raw = report(&[], &["raw", "--sockets", "10", "--messages", "500"]);
    assert_eq!(raw["writes"], 5_000);
    let output = bench(&[], &["raw", "--sockets", "2", "--messages", "10"]);
    let table = text(&output.stdout);
    assert!(
        table.starts_with("FIGURE") && table.contains("cpu us per write"),
        "{table}"
    );
}

#[tokio::test]
async fn bench_speaks_tls_with_keys_tokens_and_metrics_elsewhere() {
    let identity = Identity::new(&Certificate::new());
    let admin = format!("127.0.0.1:{}", free_port());
    let node = Node::config("secure")
        .tls(&identity)
        .key("a-long-secret-of-the-api")
        .toml(&format!("[admin]\nlisten = \"{admin}\""))
        .start()
        .await;
    let ca = identity.authority();
    let ca = ca.to_str().expect("a path");
    let args = [
        "fanout",
        "--sockets",
        "5",
        "--messages",
        "20",
        "--no-raw",
        "--key",
        "a-long-secret-of-the-api",
        "--ca",
        ca,
    ];
    let without = report(&[node.api().base()], &args);
    assert_eq!(
        (&without["deliveries"], &without["lost"]),
        (&100.into(), &0.into())
    );
    assert_eq!(without["node_cpu_us_per_delivery"], Value::Null);
    let notes = without["notes"].to_string();
    assert!(notes.contains("--metrics-url"), "{notes}");

    let with = report(
        &[node.api().base()],
        &[&args[..], &["--metrics-url", &admin]].concat(),
    );
    assert_whole(&with, 20, 100);
}

#[tokio::test]
async fn bench_shows_a_token_where_one_is_wanted() {
    let auth = "[auth]\nmode = \"token\"\nsecret = \"a secret of at least 32 bytes, it is\"\n";
    let node = Node::alone(auth).await;
    let minting = ["token", "--user", "ann", "--set", "auth.mode=token"];
    let secret = "auth.secret=a secret of at least 32 bytes, it is";
    let minted = unisono().args(minting).args(["--set", secret]).output();
    let token = text(&minted.expect("unisono runs").stdout);
    for wire in ["websocket", "sse"] {
        let args = "fanout --sockets 3 --messages 10 --no-raw --wire";
        let args = args.split(' ').chain([wire, "--token", token.trim()]);
        assert_whole(
            &report(&[node.api().base()], &args.collect::<Vec<_>>()),
            10,
            30,
        );
    }
}

#[tokio::test]
async fn bench_says_what_it_cannot_do() {
    let free = format!("http://127.0.0.1:{}", free_port());
    let locked = Node::config("locked")
        .key("a-long-secret-of-the-api")
        .start()
        .await;
    let ruled = Node::alone(
        "[[rooms]]\npattern = \"/json\"\nformat = \"json\"\n\n[[rooms]]\npattern = \"/raw\"\nformat = \"raw\"",
    )
    .await;
    let small = Node::alone("[sockets]\nmax = 3").await;
    let plain = Node::alone("[sockets]\ndeflate = false").await;
    let nowhere = format!("nats://127.0.0.1:{}", free_port());
    let tokens =
        Node::alone("[auth]\nmode = \"token\"\nsecret = \"a secret of at least 32 bytes, it is\"")
            .await;
    let (locked, ruled) = (locked.api().base(), ruled.api().base());
    let (small, tokens) = (small.api().base(), tokens.api().base());
    let plain = plain.api().base();
    let cases: &[(&str, &[&str], i32, &[&str])] = &[
        (&free, &["fanout"], 1, &["cannot reach", "--url"]),
        (locked, &["fanout"], 1, &["--key", "UNISONO_KEY"]),
        (
            locked,
            &["rooms", "--key", "wrong"],
            1,
            &["has to be one of `api.keys`"],
        ),
        (
            ruled,
            &["fanout"],
            1,
            &["refuses the handshake: 404", "--room"],
        ),
        (
            ruled,
            &["fanout", "--room", "/raw", "--timeout", "300ms"],
            1,
            &["unisono:open", "json"],
        ),
        (
            small,
            &["fanout", "--sockets", "9"],
            1,
            &["refuses the handshake: 503"],
        ),
        (
            tokens,
            &["fanout"],
            1,
            &["refuses the handshake: 401", "--token"],
        ),
        (
            ruled,
            &["fanout", "--sockets", "100000000"],
            1,
            &["too few open files", "ulimit -n"],
        ),
        (
            &free,
            &["idle", "--sockets", "100000000"],
            1,
            &["too few open files"],
        ),
        (
            &free,
            &["fanout", "--window", "1", "--rate", "1"],
            64,
            &["cannot be used with"],
        ),
        (
            plain,
            &["fanout", "--deflate"],
            1,
            &["does not compress", "sockets.deflate"],
        ),
        (
            plain,
            &["emit", "--nats", &nowhere, "--sockets", "2"],
            1,
            &["--nats", &nowhere],
        ),
        (
            &free,
            &["fanout", "--deflate", "--wire", "sse"],
            64,
            &["--deflate", "--wire sse"],
        ),
        (
            &free,
            &["idle", "--wire", "smoke"],
            64,
            &["websocket", "sse"],
        ),
        (
            ruled,
            &["fanout", "--wire", "sse"],
            1,
            &["refuses the handshake: 404", "--room"],
        ),
        (
            ruled,
            &[
                "fanout",
                "--wire",
                "sse",
                "--room",
                "/raw",
                "--timeout",
                "300ms",
            ],
            1,
            &["unisono:open", "json"],
        ),
        (
            tokens,
            &["idle", "--wire", "sse"],
            1,
            &["refuses the handshake: 401", "--token"],
        ),
        (&free, &["fanout", "--window", "9999"], 64, &["1..=1024"]),
        (&free, &["fanout", "--bytes", "3"], 64, &["39"]),
        (&free, &["fanout", "--sockets", "0"], 64, &["--sockets"]),
        (&free, &["rooms", "--publishers", "2"], 64, &["--by socket"]),
        (
            &free,
            &[
                "rooms",
                "--by",
                "socket",
                "--rooms",
                "2",
                "--publishers",
                "3",
            ],
            64,
            &["--publishers", "fewer --rooms"],
        ),
        (&free, &[], 64, &["fanout"]),
    ];
    for (url, args, status, parts) in cases {
        let output = match args {
            [] => unisono().arg("bench").output().expect("unisono runs"),
            args => bench(&[url], args),
        };
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*status), "{args:?}: {said}");
        for part in *parts {
            assert!(said.contains(part), "{args:?}: no {part} in {said}");
        }
        assert_eq!(text(&output.stdout), "", "{args:?}");
    }
    let allowed = [
        "fanout",
        "--room",
        "/json",
        "--sockets",
        "2",
        "--messages",
        "5",
        "--no-raw",
    ];
    assert_eq!(report(&[ruled], &allowed)["deliveries"], 10);
    // Some handshakes are refused, and the others are counted.
    let output = bench(
        &[small],
        &["connect", "--sockets", "9", "--no-raw", "--json"],
    );
    let part: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(1), "{part}");
    assert_eq!(
        (&part["sockets"], &part["failed"]),
        (&3.into(), &6.into()),
        "{part}"
    );
    assert!(part["notes"].to_string().contains("503"), "{part}");
}

#[tokio::test]
async fn bench_says_how_many_files_it_needs() {
    let node = Node::alone("").await;
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "ulimit -n 300 && exec \"$0\" \"$@\""]);
    shell.arg(unisono().get_program());
    let args = ["bench", "connect", "--sockets", "200", "--url"];
    let output = shell.args(args).arg(node.api().base()).output();
    let output = output.expect("sh runs");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["400 are needed", "the limit is 300", "ulimit -n"] {
        assert!(said.contains(part), "no {part} in {said}");
    }
}

#[tokio::test]
async fn bench_shows_on_a_terminal_how_far_it_is() {
    let node = Node::alone("").await;
    let mut command = unisono();
    let args = "bench fanout --sockets 3 --duration 1s --no-raw --url".split(' ');
    command.args(args).arg(node.api().base());
    let mut terminal = Terminal::spawn(&command);
    terminal.until("sending");
    terminal.until(" % ");
    let (shown, status) = terminal.end();
    assert_eq!(status, 0, "{shown}");
    // It is gone before the report, and that has borders.
    let (bar, report) = shown.split_once('┌').expect("a table");
    assert!(
        bar.contains("\u{1b}[2K") && !report.contains("sending"),
        "{shown}"
    );
    assert!(report.contains("deliveries"), "{shown}");
}

/// A bench while it runs.
fn started(directory: &TempDir, url: &str, args: &[&str]) -> Process {
    let mut command = unisono();
    command.arg("bench").args(args);
    if !url.is_empty() {
        command.args(["--url", url]);
    }
    Process::spawn("bench", command, directory.path(), "")
}

#[tokio::test]
async fn bench_ends_with_a_report_on_ctrl_c() {
    let node = Node::alone("").await;
    let directory = TempDir::with_prefix("unisono-bench-").expect("a temporary directory");
    let args = ["fanout", "--sockets", "5", "--duration", "1h", "--json"];
    let mut process = started(&directory, node.api().base(), &args);
    eventually("messages are sent", async || {
        node.metrics().await.sum("unisono_deliveries_total") > 100.0
    })
    .await;
    process.interrupt();
    assert_eq!(process.exited().await.code(), Some(0));
    let report: Value = serde_json::from_str(&process.stdout()).expect("JSON");
    assert_eq!(
        (&report["interrupted"], &report["lost"]),
        (&true.into(), &0.into())
    );
    assert!(report["deliveries"].as_u64() > Some(100), "{report}");
    assert_eq!(report["deliveries"], report["expected"]);
}

#[tokio::test]
async fn bench_reports_what_there_is_on_ctrl_c_whatever_it_does() {
    let node = Node::alone("").await;
    let url = node.api().base();
    let directory = TempDir::with_prefix("unisono-bench-").expect("a temporary directory");
    let raw = [
        "raw",
        "--sockets",
        "2",
        "--messages",
        "1000000000",
        "--json",
    ];
    let mut process = started(&directory, "", &raw);
    eventually("it writes", async || process.cpu_ticks() > 20).await;
    process.interrupt();
    assert_eq!(process.exited().await.code(), Some(0));
    let report: Value = serde_json::from_str(&process.stdout()).expect("JSON");
    assert_eq!(report["interrupted"], true);
    let writes = report["writes"].as_u64().expect("a count");
    assert!(writes > 0 && writes < 2_000_000_000, "{report}");

    let idle = ["idle", "--sockets", "5", "--duration", "1h", "--json"];
    let mut process = started(&directory, url, &idle);
    eventually("the sockets are held", async || {
        node.metrics().await.sum("unisono_sockets") == 5.0
    })
    .await;
    process.interrupt();
    assert_eq!(process.exited().await.code(), Some(0));
    let report: Value = serde_json::from_str(&process.stdout()).expect("JSON");
    assert_eq!(report["interrupted"], true);
    assert_eq!(report["ratio"], Value::Null);
}

#[tokio::test]
async fn bench_says_that_a_node_went_away() {
    let mut node = Node::alone("").await;
    let directory = TempDir::with_prefix("unisono-bench-").expect("a temporary directory");
    let args = [
        "fanout",
        "--sockets",
        "5",
        "--duration",
        "1h",
        "--json",
        "--timeout",
        "1s",
    ];
    let mut process = started(&directory, node.api().base(), &args);
    eventually("messages are sent", async || {
        node.metrics().await.sum("unisono_deliveries_total") > 100.0
    })
    .await;
    node.kill();
    assert_eq!(process.exited().await.code(), Some(1));
    let report: Value = serde_json::from_str(&process.stdout()).expect("JSON");
    assert!(
        report["notes"].to_string().contains("ended early"),
        "{report}"
    );
}
