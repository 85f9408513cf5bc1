//! JSON that clients and applications send on is JSON that every common reader reads.

use std::io::Write;
use std::process::{Command, Stdio};

use proto::json::check_data;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use unisono_tests::{Node, Redis, Sandbox, eventually};

/// Data that some readers cannot read, with what is said of it.
fn unreadable() -> [(String, &'static str); 5] {
    let deep = |levels| "[".repeat(levels) + &"]".repeat(levels);
    [
        (deep(20_000), "`data` is nested too deeply"),
        (deep(125), "`data` is nested too deeply"),
        (
            r#"{"a":["\ud800"]}"#.to_owned(),
            "`data` has a lone surrogate",
        ),
        ("1e400".to_owned(), "`data` has a number beyond a double"),
        (
            r#"{"\u0000":1}"#.to_owned(),
            "`data` has a name that begins with U+0000",
        ),
    ]
}

#[tokio::test]
async fn what_not_every_reader_reads_reaches_nobody() {
    let rooms = "[[rooms]]\npattern = \"/echo\"\nclient_events = \"echo\"\n\
                 [[rooms]]\npattern = \"/{path...}\"";
    let node = Node::alone(rooms).await;
    let mut other = node.client("/relay").await;
    other.join("/echo").await;
    for path in ["/relay", "/echo"] {
        let mut client = node.client(path).await;
        for (data, why) in unreadable() {
            let to = &other.id;
            for message in [
                format!(r#"{{"event":"x","data":{data},"id":1}}"#),
                format!(
                    r#"{{"event":"unisono:publish","data":{{"room":"{path}","event":"x","data":{data}}},"id":1}}"#
                ),
                format!(
                    r#"{{"event":"unisono:emit","data":{{"to":"{to}","event":"x","data":{data}}},"id":1}}"#
                ),
            ] {
                client.send_text(message).await;
                let refusal = client.expect_error("bad_message").await;
                let message = refusal.data["message"].as_str().unwrap_or_default();
                assert!(message.contains(why), "{message}");
            }
        }
        // As deep as may be, and all that is unusual and fine.
        let deepest = "[".repeat(124) + &"]".repeat(124);
        for fine in [
            &*deepest,
            r#""\ud83d\ude00""#,
            "1e308",
            r#""1e400 \\ud800 [[[""#,
        ] {
            client
                .send_text(format!(r#"{{"event":"fine","data":{fine}}}"#))
                .await;
            let event = other.next().await;
            assert_eq!(
                (&*event.event, event.raw("data").as_deref()),
                ("fine", Some(fine))
            );
            if path == "/echo" {
                client.expect("fine").await;
            }
        }
    }
}

#[tokio::test]
async fn what_not_every_reader_reads_is_refused_of_applications() {
    let redis = Redis::start().await;
    let toml = format!("[laravel]\nredis_url = \"{}\"", redis.url());
    let sandbox = Sandbox::config().nodes(1).toml(&toml).start().await;
    redis.has_listeners(1).await;
    let mut client = sandbox.client(0, "/x").await;
    let bus = sandbox.nats[0].connect().await;
    for (data, why) in unreadable() {
        let id = &client.id;
        let requests = [
            (
                "publish",
                format!(r#"{{"room":"/x","event":"x","data":{data}}}"#),
            ),
            ("broadcast", format!(r#"{{"event":"x","data":{data}}}"#)),
            (
                "emit",
                format!(r#"{{"to":"{id}","event":"x","data":{data}}}"#),
            ),
        ];
        for (verb, body) in requests {
            let answer = sandbox.api(0).post_text(verb, &body).await;
            assert_eq!(answer.refusal(), (400, "bad_request"), "{verb}");
            let said = answer.body["error"]["message"].as_str().unwrap_or_default();
            assert!(said.contains(why), "{said}");

            let batch = format!(r#"[{{"{verb}":{body}}}]"#);
            let answer = sandbox.api(0).post_text("batch", &batch).await.ok();
            assert_eq!(answer[0]["error"]["code"], "bad_request", "{verb}");

            let subject = format!("unisono.api.{verb}");
            let answer = bus.request(subject, body.into()).await.expect("an answer");
            let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
            assert_eq!(answer["error"]["code"], "bad_request", "{verb}");
        }
        let payload = format!(r#"{{"event":"x","data":{data},"socket":null}}"#);
        redis.publish("/x", payload).await;
    }
    redis.publish("/x", r#"{"event":"fence"}"#).await;
    client.expect("fence").await;
    let bad = "unisono_laravel_broadcasts_total{result=\"bad\"} 5\n";
    eventually("each is counted", async || {
        let metrics = sandbox.api(0).get("/metrics").await.body;
        let metrics = metrics.as_str().unwrap_or_default().to_owned();
        metrics.contains(bad).then_some(()).ok_or(metrics)
    })
    .await;
}

// === readers ===

/// Reads a message on each line, and prints the numbers of those that it cannot make an object of and write down again.
const PYTHON: &str = r"
import json, sys
for number, line in enumerate(sys.stdin.buffer):
    try:
        json.dumps(json.loads(line), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        print(number, error)
";

const PHP: &str = r#"
for ($number = 0; ($line = fgets(STDIN)) !== false; $number++) {
    $read = json_decode($line);
    if (json_last_error() || json_encode($read) === false) {
        echo "$number ", json_last_error_msg(), "\n";
    }
}
"#;

const NODE: &str = r#"
const lines = require("fs").readFileSync(0, "utf8").split("\n");
const infinite = (_, value) => {
    if (value === Infinity || value === -Infinity) throw new Error("infinite");
    return value;
};
lines.slice(0, -1).forEach((line, number) => {
    try {
        new TextEncoder().encode(JSON.stringify(JSON.parse(line, infinite)));
    } catch (error) {
        console.log(number, error.message);
    }
});
"#;

#[test]
fn what_is_taken_is_read_by_python_php_and_node() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut messages, mut refused) = (String::new(), 0);
    let edges = [
        "[".repeat(124) + &"]".repeat(124),
        r#"{"":"#.repeat(124) + "1e308" + &"}".repeat(124),
        "9".repeat(308),
        format!("-0.{}", "1".repeat(4_000)),
        format!("{}e-4000", "1".repeat(4_000)),
    ];
    let random = (0..5_000).map(|_| value(&mut random, 0));
    for data in edges.into_iter().chain(random) {
        if check_data(data.as_bytes()).is_err() {
            refused += 1;
            continue;
        }
        messages.push_str(&format!("{{\"event\":\"x\",\"data\":{data}}}\n"));
    }
    assert!(refused > 100, "{refused} of 5000 try what is refused");
    assert!(messages.lines().count() > 1_000, "{refused} were refused");
    for (program, args) in [
        ("python3", ["-c", PYTHON]),
        ("php", ["-r", PHP]),
        ("node", ["-e", NODE]),
    ] {
        let mut reader = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/run installs it");
        let mut input = reader.stdin.take().expect("piped");
        input.write_all(messages.as_bytes()).expect("it reads all");
        drop(input);
        let output = reader.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{program}");
        let failed = String::from_utf8_lossy(&output.stdout);
        let shown = failed.lines().take(5).map(|line| {
            let number = line
                .split(' ')
                .next()
                .and_then(|number| number.parse().ok());
            let message = number.and_then(|number| messages.lines().nth(number));
            format!("{line}: {}", message.unwrap_or_default())
        });
        let shown: Vec<_> = shown.collect();
        assert!(shown.is_empty(), "{program} cannot read {shown:#?}");
    }
}

/// Any JSON, with a liking for what readers stumble over.
fn value(random: &mut StdRng, level: usize) -> String {
    let separator = [",", " , "][random.random_range(0..2)];
    let items = random.random_range(0..3);
    match random.random_range(0..12) {
        0..=2 if level < 140 => {
            let items: Vec<_> = (0..items).map(|_| value(random, level + 1)).collect();
            format!("[{}]", items.join(separator))
        }
        3..=5 if level < 140 => {
            let field = |random: &mut StdRng| {
                let name = text(random);
                format!("{name}:{}", value(random, level + 1))
            };
            let fields: Vec<_> = (0..items).map(|_| field(random)).collect();
            format!("{{{}}}", fields.join(separator))
        }
        6 if level == 0 => {
            let levels = random.random_range(100..160);
            "[".repeat(levels) + &value(random, 140) + &"]".repeat(levels)
        }
        7 => "0".to_owned(),
        8 => {
            let digits = random.random_range(1..330);
            format!("-{}", "7".repeat(digits))
        }
        9 => {
            let exponent = random.random_range(-400..400);
            format!("{}.5e{exponent}", random.random_range(1..99))
        }
        10 => ["true", "false", "null"][random.random_range(0..3)].to_owned(),
        _ => text(random),
    }
}

fn text(random: &mut StdRng) -> String {
    let pieces = [
        "a",
        "é",
        "😀",
        "[",
        "{",
        ":",
        r"\n",
        r"\\",
        r#"\""#,
        r"\/",
        r"\u0000",
        r"\u00e9",
        r"\ud83d\ude00",
        r"\ud800",
        r"\udc00",
        r"\uFFFF",
    ];
    let count = random.random_range(0..4);
    let pieces: String = (0..count)
        .map(|_| pieces[random.random_range(0..pieces.len())])
        .collect();
    format!("\"{pieces}\"")
}

#[tokio::test]
async fn a_message_of_the_deepest_data_is_read_by_python() {
    let node = Node::alone("").await;
    let mut receiver = node.client("/x").await;
    let deepest = "[".repeat(124) + &"]".repeat(124);
    let body = format!(r#"{{"room":"/x","event":"deep","data":{deepest}}}"#);
    node.api().post_text("publish", &body).await.ok();
    let text = receiver.expect("deep").await.text;
    let read = Command::new("python3")
        .args(["-c", "import json, sys; json.loads(sys.argv[1])", &text])
        .status();
    assert!(read.expect("tests/run installs it").success());
    node.api().publish("/x", "flat", json!(1)).await;
    receiver.expect("flat").await;
}
