//! The driver as it is called: it measures with real processes, and writes what it has seen.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;
use unisono_tests::{Process, eventually};

fn report(out: &TempDir, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_report"));
    command.arg("--out").arg(out.path()).args(args);
    command
}

fn run(out: &TempDir, args: &[&str]) -> Output {
    report(out, args).output().expect("the driver runs")
}

fn folder() -> TempDir {
    TempDir::with_prefix("unisono-report-").expect("a temporary directory")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

fn read(out: &TempDir, file: &str) -> String {
    fs::read_to_string(out.path().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

const SMALLEST: &str = "fanout websocket nodes=1 sockets=1 bytes=128 window=16";

#[test]
fn the_smallest_cell_is_measured_and_rendered_again() {
    let out = folder();
    let output = run(&out, &["--quick", "--only", SMALLEST]);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        said.starts_with("[1/1, 0:00 left] fanout websocket"),
        "{said}"
    );

    let results: Value = serde_json::from_str(&read(&out, "results.json")).expect("JSON");
    let measured = &results["cells"][0]["rounds"][0]["measured"]["report"];
    assert_eq!(
        (&measured["sockets"], &measured["lost"]),
        (&1.into(), &0.into()),
        "{said}"
    );
    assert!(
        measured["node_cpu_us_per_delivery"].as_f64() > Some(0.0),
        "{measured}"
    );

    let document = read(&out, "REPORT.md");
    for part in [
        "A quick run",
        "Only a part was measured",
        SMALLEST,
        "## Failed\n\nNothing.",
    ] {
        assert!(document.contains(part), "no {part} in {document}");
    }
    assert!(document.contains("(plots/sockets.svg)"), "{document}");
    let plot = read(&out, "plots/sockets.svg");

    // The same again, from the results alone.
    fs::remove_file(out.path().join("REPORT.md")).expect("the report");
    fs::remove_dir_all(out.path().join("plots")).expect("the plots");
    let output = run(&out, &["--render"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(read(&out, "REPORT.md"), document);
    assert_eq!(read(&out, "plots/sockets.svg"), plot);
}

#[test]
fn an_interrupted_run_writes_nothing() {
    let (out, logs) = (folder(), folder());
    let whole = "the results of a whole run";
    fs::write(out.path().join("results.json"), whole).expect("a file");
    let mut command = report(
        &out,
        &["--quick", "--only", "fanout websocket nodes=1 sockets=1"],
    );
    // Nodes work in temporary folders of their own, which go when they have ended.
    let nodes = folder();
    command.env("TMPDIR", nodes.path());
    let mut process = Process::spawn("report", command, logs.path(), "");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let status = runtime.block_on(async {
        eventually("the first cell is measured", async || {
            process.stderr().starts_with("[1/4")
        })
        .await;
        process.interrupt();
        process.exited().await
    });
    assert_eq!(status.code(), Some(130));
    assert_eq!(read(&out, "results.json"), whole);
    let files = fs::read_dir(out.path()).expect("a folder").count();
    assert_eq!(files, 1, "no report");
    let left = fs::read_dir(nodes.path()).expect("a folder").count();
    assert_eq!(left, 0, "every node has ended");
}

#[test]
fn what_it_cannot_do_it_says() {
    let out = folder();
    let output = run(&out, &["--only", "fanout sockets=7"]);
    let said = text(&output.stderr);
    assert!(said.contains("--list"), "{said}");
    let output = run(&out, &["--render"]);
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.contains("results.json"),
        "{said}"
    );
    let output = run(&out, &["--list", "--only", "emit window=1"]);
    assert_eq!(
        text(&output.stdout),
        "emit websocket nodes=1 sockets=100 window=1\nemit websocket nodes=2 sockets=100 window=1\n"
    );
}
