//! The report, in Markdown: made of the results and of nothing else, so that the same results make the same text.

use std::fmt::Write as _;

use crate::charts::{self, BARE, NODE};
use crate::matrix::{
    BYTES, Cell, EMIT_WINDOWS, PUBLISHER_RATE, PUBLISHER_SOCKETS, PUBLISHERS, SOCKETS, Scale,
    WINDOWS, Wire,
};
use crate::results::{Outcome, Results, Round, Sample, Spread, count, number};

/// The folder of the plots, beside the report.
pub const PLOTS: &str = "plots";

/// Something that must not cost more.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    /// What it is about.
    pub what: String,
    /// In which unit it is, as it stands behind a number.
    pub unit: &'static str,
    /// The most that it may be.
    pub max: f64,
    /// What it is; none where it was not measured.
    pub measured: Option<Spread>,
}

impl Budget {
    /// Whether the median is within it. What was not measured is not kept.
    pub fn is_kept(&self) -> bool {
        self.measured
            .is_some_and(|spread| spread.median <= self.max)
    }

    fn row(&self) -> [String; 5] {
        let Self {
            what, unit, max, ..
        } = self;
        let verdict = match (self.measured, self.is_kept()) {
            (None, _) => "not measured",
            (Some(_), true) => "kept",
            (Some(_), false) => "**not kept**",
        };
        [
            what.clone(),
            format!("{max}{unit}"),
            self.measured
                .map_or(NOTHING.to_owned(), |spread| number(spread.median) + unit),
            self.measured.map_or(NOTHING.to_owned(), |spread| {
                format!("{} to {}", number(spread.min), number(spread.max))
            }),
            verdict.to_owned(),
        ]
    }
}

/// Where a table has nothing to say.
const NOTHING: &str = "–";

const RATIO: &str = "/ratio";

/// Handshakes at one time that a budget is held against: as many as keep a node and the bare loop busy.
const HANDSHAKES: u32 = 64;

/// The budgets of the design, and how they are kept.
pub fn budgets(results: &Results) -> Vec<Budget> {
    let [one, window] = WINDOWS;
    let bursts = |window| results.figure(&Cell::bursts(1, window), RATIO);
    let (idle, cluster) = (results.scale.idle(), results.scale.idle_cluster());
    let sockets = count(SOCKETS);
    vec![
        Budget {
            what: format!("CPU per delivery against the bare loop: {sockets} sockets, one publication at a time"),
            unit: "×",
            max: 1.25,
            measured: bursts(one),
        },
        Budget {
            what: format!("the same, {window} in flight"),
            unit: "×",
            max: 0.16,
            measured: bursts(window),
        },
        Budget {
            what: format!("memory of an idle socket, of {}", count(idle.sockets)),
            unit: " KiB",
            max: 4.0,
            measured: results.figure(&idle, "/node_kib_per_socket"),
        },
        Budget {
            what: "CPU of an idle socket in a second, with pings".to_owned(),
            unit: " µs",
            max: 1.0,
            measured: results.figure(&idle, "/node_cpu_us_per_socket_second"),
        },
        Budget {
            what: format!(
                "subscriptions on the bus for {} sockets in one room on {} nodes",
                count(cluster.sockets),
                cluster.nodes
            ),
            unit: "",
            max: f64::from(cluster.nodes),
            measured: results
                .of(&cluster)
                .and_then(|outcome| outcome.watched(subscriptions)),
        },
        Budget {
            what: "emit to a socket on another node: above an HTTP request and a bus round trip, medians".to_owned(),
            unit: " µs",
            max: 100.0,
            measured: results.figure(&Cell::emit(2, 1), "/over_floor_us"),
        },
        Budget {
            what: format!("handshakes, {HANDSHAKES} at one time: how many more a loop does that accepts and answers"),
            unit: "×",
            max: 1.25,
            measured: results
                .of(&results.scale.connect(HANDSHAKES))
                .and_then(|outcome| {
                    let rates = ["/raw_handshakes_per_second", "/handshakes_per_second"];
                    outcome.both(rates, |bare, node| bare / node)
                }),
        },
    ]
}

/// How many subscriptions sockets have brought.
fn subscriptions(samples: &[Sample]) -> Option<f64> {
    let before = samples.first()?.subscriptions?;
    let most = samples
        .iter()
        .filter_map(|sample| sample.subscriptions)
        .max()?;
    Some(most.saturating_sub(before) as f64)
}

/// What a round came to, in a few words for who waits for the next one.
pub fn in_short(round: &Round) -> String {
    const FIGURES: [(&str, &str, &str); 7] = [
        ("/node_cpu_us_per_delivery", "", " µs"),
        ("/node_cpu_us_per_handshake", "", " µs"),
        ("/ratio", "ratio ", ""),
        ("/answer_us/p50", "answer ", " µs"),
        ("/node_kib_per_socket", "", " KiB"),
        ("/node_cpu_us_per_socket_second", "", " µs a second"),
        ("/over_floor_us", "over the floor ", " µs"),
    ];
    match round {
        Round::Failed(reason) => format!("FAILED: {reason}"),
        Round::Measured { report, .. } => {
            let words = FIGURES.iter().filter_map(|(pointer, before, unit)| {
                let value = report.pointer(pointer)?.as_f64()?;
                Some(format!("{before}{}{unit}", number(value)))
            });
            words.collect::<Vec<_>>().join(", ")
        }
    }
}

/// The whole report.
pub fn document(results: &Results) -> String {
    let sections = [
        heading(results),
        summary(results),
        setting(results),
        method(results),
        growth(results),
        bursts(results),
        fanout(results),
        emits(results),
        handshakes(results),
        idle(results),
        failures(results),
    ];
    sections.join("\n")
}

fn heading(results: &Results) -> String {
    let mut text = "# How fast Unisono is\n\n".to_owned();
    let Results { date, seconds, .. } = results;
    let minutes = seconds.div_ceil(60);
    let _ = writeln!(
        text,
        "Measured on {date}, in {minutes} minutes, by `bench/run`, which writes this page; `bench/run --render` writes it again \
         from [results.json](results.json)."
    );
    if results.scale == Scale::Quick {
        text += "\n**A quick run: one round of each cell, fewer sockets, shorter. It shows that all works, and no figure is to be \
                 relied on.**\n";
    }
    if !results.only.is_empty() {
        let _ = writeln!(
            text,
            "\n**Only a part was measured: {}.**",
            results.only.join(", or ")
        );
    }
    if results.versions.debug {
        text += "\n**A build without optimisation: its figures mean nothing.**\n";
    }
    text
}

fn summary(results: &Results) -> String {
    let rows: Vec<[String; 5]> = budgets(results).iter().map(Budget::row).collect();
    let table = table(["what", "budget, at most", "median", "spread", ""], &rows);
    format!("## Budgets\n\n{table}")
}

fn setting(results: &Results) -> String {
    let (machine, versions) = (&results.machine, &results.versions);
    let rows = [
        ["processor", &machine.cpu],
        ["cores", &machine.cores.to_string()],
        ["memory", &format!("{} GiB", machine.memory_gib)],
        ["kernel", &machine.kernel],
        [
            "unisono",
            &format!("{}, commit {}", versions.unisono, versions.commit),
        ],
        ["rustc", &versions.rustc],
        ["NATS", &versions.nats_server],
    ];
    let table = table(["", ""], &rows.map(|row| row.map(str::to_owned)));
    format!("## The machine\n\nNodes, the NATS server and the clients were all on it.\n\n{table}")
}

fn method(results: &Results) -> String {
    let rounds = |cell: &Cell| results.scale.rounds(cell);
    let other = Cell::fanout(Wire::Websocket, 1, SOCKETS, BYTES, 1);
    format!(
        "## How it was measured\n\n\
         Each cell is a run of [`unisono bench`](../docs/commands.md#bench) on nodes of its own, which start and end with it; they have \
         their defaults, but for a higher `sockets.message_rate`. CPU is \
         what the nodes' processes used, all together, divided by the deliveries that arrived; the client counts every one of \
         them, and a cell in which one is lost or comes twice counts as failed. The ratio is that to a bare loop of `write` that \
         the client runs itself, in the same run and over as many connections: what any server must do at least for a \
         delivery. Below 1, several messages leave in one `write`. The window is the number of messages in flight: with 1 the \
         next is published when the last has reached everybody. What the client costs is in no figure of CPU, but it takes \
         its share of the cores, so rates and latencies are those of a machine that is shared. A figure is the median of the rounds \
         of a cell ({} where a budget hangs on a time or on the CPU of a message, {} of the others), with the least and the most in brackets; rounds are \
         spread over the whole run, so that a slow minute hits one round of every cell.\n",
        rounds(&Cell::bursts(1, 1)),
        rounds(&other),
    )
}

fn growth(results: &Results) -> String {
    let mut text = "## How cost grows\n".to_owned();
    for figure in charts::figures(results) {
        let _ = write!(
            text,
            "\n{}\n\n![{}]({PLOTS}/{})\n",
            figure.caption, figure.chart.title, figure.file
        );
    }
    text
}

// === tables ===

fn bursts(results: &Results) -> String {
    let rows: Vec<[String; 5]> = [1, 2]
        .iter()
        .flat_map(|&nodes| WINDOWS.map(|window| (nodes, window)))
        .flat_map(|(nodes, window)| {
            let client = Cell::bursts(nodes, window);
            let http = Cell::fanout(Wire::Websocket, nodes, SOCKETS, BYTES, window);
            [("by a client", client), ("over HTTP", http)].map(|(name, cell)| {
                let figure =
                    |pointer| in_table(results, &cell, pointer, |spread| spread.to_string());
                let name = format!("{name}, window {window}");
                [
                    name,
                    count(nodes),
                    figure(NODE),
                    figure(BARE),
                    figure(RATIO),
                ]
            })
        })
        .collect();
    let header = ["published", "nodes", "CPU", "bare loop", "ratio"];
    format!(
        "## Who publishes\n\nThe budgets of CPU are for a client that publishes over its own socket, as many messages at once as the \
         window has room for (`unisono bench fanout --by socket`). All other cells publish by requests over HTTP, each of which \
         costs more by itself, and which come one by one, so that fewer messages leave in one `write`. The bare loop puts none \
         together. {} sockets, {BYTES} B, CPU per delivery in µs, of all nodes together.\n\n{}\n{}",
        count(SOCKETS),
        table(header, &rows),
        publishers(results)
    )
}

/// Whether those who publish slow each other down.
fn publishers(results: &Results) -> String {
    let rows: Vec<[String; 5]> = PUBLISHERS
        .map(|publishers| {
            let cell = Cell::publishers(publishers);
            let figure = |pointer| in_table(results, &cell, pointer, |spread| spread.to_string());
            [
                count(publishers),
                figure("/delivery_us/p50"),
                figure("/delivery_us/p99"),
                figure("/delivery_us/max"),
                figure(NODE),
            ]
        })
        .into();
    let header = ["publishers", "p50", "p99", "max", "CPU per delivery"];
    format!(
        "Several publish at the same times, each over its own socket {PUBLISHER_RATE} times a second to {PUBLISHER_SOCKETS} sockets in a room \
         of its own, on one node: µs from when a message was due until a socket has it.\n\n{}",
        table(header, &rows)
    )
}

fn fanout(results: &Results) -> String {
    let mut text = "## One room\n\nCPU per delivery in µs: of the nodes, of the bare loop, and the ratio of both.\n".to_owned();
    for (wire, name) in [
        (Wire::Websocket, "WebSocket"),
        (Wire::Deflate, "WebSocket with permessage-deflate"),
        (Wire::Sse, "Server-sent events"),
    ] {
        for nodes in [1, 2] {
            let place = match nodes {
                1 => "one node".to_owned(),
                nodes => format!("{nodes} nodes over NATS"),
            };
            let _ = write!(text, "\n### {name}, {place}\n\n");
            if wire == Wire::Deflate {
                text += "Messages below `sockets.deflate_min_bytes` (1 KiB) are not compressed, so those of 128 B cost what they cost without.\n\n";
            }
            let rows: Vec<[String; 9]> = results
                .scale
                .sockets()
                .iter()
                .flat_map(|&sockets| wire.bytes().iter().map(move |&bytes| (sockets, bytes)))
                .map(|(sockets, bytes)| fanout_row(results, wire, nodes, sockets, bytes))
                .collect();
            text += &table(
                [
                    "sockets",
                    "bytes",
                    "window 1",
                    "bare",
                    "ratio",
                    "window 16",
                    "bare",
                    "ratio",
                    "bytes on the wire",
                ],
                &rows,
            );
        }
    }
    text
}

fn fanout_row(results: &Results, wire: Wire, nodes: u32, sockets: u32, bytes: u32) -> [String; 9] {
    let cell = |window| Cell::fanout(wire, nodes, sockets, bytes, window);
    let median = |window, pointer| {
        in_table(results, &cell(window), pointer, |spread| {
            number(spread.median)
        })
    };
    let spread =
        |window, pointer| in_table(results, &cell(window), pointer, |spread| spread.to_string());
    let [one, many] = WINDOWS;
    [
        count(sockets),
        size(bytes),
        median(one, NODE),
        median(one, BARE),
        spread(one, "/ratio"),
        median(many, NODE),
        median(many, BARE),
        spread(many, "/ratio"),
        median(many, "/wire_bytes_per_delivery"),
    ]
}

fn emits(results: &Results) -> String {
    let [one, many] = EMIT_WINDOWS;
    let rows: Vec<[String; 6]> = [
        (1, one, "answer_us", "answer, one node".to_owned()),
        (1, many, "answer_us", format!("the same, {many} in flight")),
        (2, one, "answer_us", "answer, from another node".to_owned()),
        (2, many, "answer_us", format!("the same, {many} in flight")),
        (2, one, "nats_us", "bare NATS request".to_owned()),
        (2, one, "health_us", "bare HTTP request".to_owned()),
    ]
    .map(|(nodes, window, latency, name)| {
        let cell = Cell::emit(nodes, window);
        let at = |quantile: &str| {
            in_table(
                results,
                &cell,
                &format!("/{latency}/{quantile}"),
                |spread| spread.to_string(),
            )
        };
        [
            name,
            at("p50"),
            at("p90"),
            at("p99"),
            at("p99.9"),
            at("max"),
        ]
    })
    .into();
    format!(
        "## Emits\n\nLatencies in µs of messages to single sockets over HTTP, until the node has answered what became of them: one at \
         a time, and many in flight.\n\n{}",
        table(["", "p50", "p90", "p99", "p99.9", "max"], &rows)
    )
}

fn handshakes(results: &Results) -> String {
    let rows: Vec<[String; 5]> = crate::matrix::CONCURRENCY
        .map(|concurrency| {
            let cell = results.scale.connect(concurrency);
            let figure = |pointer| in_table(results, &cell, pointer, |spread| spread.to_string());
            [
                count(concurrency),
                figure("/handshakes_per_second"),
                figure("/raw_handshakes_per_second"),
                figure("/node_cpu_us_per_handshake"),
                figure("/ratio"),
            ]
        })
        .into();
    let header = [
        "at one time",
        "in a second",
        "bare loop, in a second",
        "CPU, µs",
        "ratio of CPU",
    ];
    format!(
        "## Handshakes\n\nOf {} sockets on one node; the bare loop accepts and answers.\n\n{}",
        count(results.scale.connect(1).sockets),
        table(header, &rows)
    )
}

fn idle(results: &Results) -> String {
    let cell = results.scale.idle();
    let (hold, watch) = results.scale.idle_seconds();
    let figure = |pointer| in_table(results, &cell, pointer, |spread: Spread| spread.to_string());
    let memory = |of: fn(&[Sample]) -> Option<f64>| match results.of(&cell) {
        None => NOTHING.to_owned(),
        Some(outcome) => match outcome.watched(of) {
            Some(spread) => spread.to_string(),
            None => absent(outcome),
        },
    };
    let rows = [
        [
            "memory of each, KiB".to_owned(),
            figure("/node_kib_per_socket"),
        ],
        [
            "CPU of each in a second, µs".to_owned(),
            figure("/node_cpu_us_per_socket_second"),
        ],
        [
            "CPU of a ping and its pong, µs".to_owned(),
            figure("/node_cpu_us_per_ping"),
        ],
        [
            "the same of a bare loop after as long a silence, µs".to_owned(),
            figure("/raw_cpu_us_per_ping"),
        ],
        ["ratio of both".to_owned(), figure("/ratio")],
        [
            "resident memory before, MiB".to_owned(),
            memory(|samples| Some(resident_mib(samples.first()?))),
        ],
        [
            "with all sockets, MiB".to_owned(),
            memory(|samples| samples.iter().map(resident_mib).reduce(f64::max)),
        ],
        [
            "after they have left, MiB".to_owned(),
            memory(|samples| Some(resident_mib(samples.last()?))),
        ],
    ];
    format!(
        "## Sockets that do nothing\n\n{} on one node, held for {hold} seconds; a node sends a ping after 25 seconds of silence. \
         They leave all at once, and the memory is looked at again {watch} seconds later.\n\n{}",
        count(cell.sockets),
        table(["", ""], &rows)
    )
}

fn resident_mib(sample: &Sample) -> f64 {
    sample.resident_kib as f64 / 1024.0
}

fn failures(results: &Results) -> String {
    let mut text = String::new();
    for outcome in &results.cells {
        let mut reasons: Vec<&str> = outcome.failures().collect();
        let (failed, all) = (reasons.len(), outcome.rounds.len());
        reasons.dedup();
        if failed > 0 {
            let _ = writeln!(
                text,
                "- `{}`, {failed} of {all} rounds: {}",
                outcome.cell,
                reasons.join("; ")
            );
        }
    }
    match text.as_str() {
        "" => "## Failed\n\nNothing.\n".to_owned(),
        list => format!("## Failed\n\nThese are in no figure.\n\n{list}"),
    }
}

/// A figure for a table; what was not measured says why.
fn in_table(
    results: &Results,
    cell: &Cell,
    pointer: &str,
    show: impl Fn(Spread) -> String,
) -> String {
    match results.of(cell) {
        None => NOTHING.to_owned(),
        Some(outcome) => outcome
            .figure(pointer)
            .map_or_else(|| absent(outcome), show),
    }
}

fn absent(outcome: &Outcome) -> String {
    match outcome.reports().next() {
        None => "failed".to_owned(),
        Some(_) => NOTHING.to_owned(),
    }
}

fn size(bytes: u32) -> String {
    match bytes % 1024 {
        0 => format!("{} KiB", bytes / 1024),
        _ => format!("{bytes} B"),
    }
}

fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&header) + &line(&["---"; N]);
    for row in rows {
        text += &line(&row.each_ref().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plot;

    /// Two rounds of some cells, one of which has failed once and one always.
    fn results() -> Results {
        let measured = |report| Round::Measured {
            report,
            watched: vec![],
        };
        let fanout = |us: f64| {
            measured(json!({
                "node_cpu_us_per_delivery": us,
                "raw": { "cpu_us_per_step": 4.0 },
                "ratio": us / 4.0,
            }))
        };
        let ratio = |ratio: f64| measured(json!({ "ratio": ratio }));
        let sample = |at, resident_kib, subscriptions| Sample {
            at,
            sockets: 0,
            resident_kib,
            subscriptions,
        };
        let idle = |watched| Round::Measured {
            report: json!({ "node_kib_per_socket": 3.0 }),
            watched,
        };
        let lost = || Round::Failed("lost 3".to_owned());
        let scale = Scale::Full;
        let cell = |window| Cell::fanout(Wire::Websocket, 1, SOCKETS, BYTES, window);
        let outcome = |cell, rounds| Outcome { cell, rounds };
        Results::without_a_machine(vec![
            outcome(cell(1), vec![fanout(4.0), fanout(6.0), lost()]),
            outcome(cell(16), vec![lost(), lost()]),
            outcome(Cell::bursts(1, 1), vec![ratio(1.1), ratio(1.2)]),
            outcome(Cell::bursts(1, 16), vec![ratio(0.1), ratio(0.3)]),
            outcome(
                scale.connect(HANDSHAKES),
                vec![measured(json!({
                    "handshakes_per_second": 8.0,
                    "raw_handshakes_per_second": 10.0,
                }))],
            ),
            outcome(
                scale.idle(),
                vec![idle(vec![
                    sample(0.0, 20 * 1024, None),
                    sample(1.0, 64 * 1024, None),
                    sample(2.0, 24 * 1024, None),
                ])],
            ),
            outcome(
                scale.idle_cluster(),
                vec![idle(vec![
                    sample(0.0, 1, Some(10)),
                    sample(1.0, 1, Some(12)),
                ])],
            ),
        ])
    }

    #[test]
    fn budgets_are_held_against_medians() {
        let budgets = budgets(&results());
        let verdicts: Vec<_> = budgets.iter().map(Budget::row).collect();
        let of = |at: usize| verdicts[at].each_ref().map(String::as_str);
        assert_eq!(of(0)[1..], ["1.25×", "1.15×", "1.10 to 1.20", "kept"]);
        assert_eq!(
            of(1)[1..],
            ["0.16×", "0.200×", "0.100 to 0.300", "**not kept**"]
        );
        assert_eq!(of(2)[1..], ["4 KiB", "3.00 KiB", "3.00 to 3.00", "kept"]);
        assert_eq!(of(3)[1..], ["1 µs", NOTHING, NOTHING, "not measured"]);
        assert_eq!(of(4)[1..], ["2", "2.00", "2.00 to 2.00", "kept"]);
        assert_eq!(of(5)[4], "not measured");
        assert_eq!(of(6)[1..], ["1.25×", "1.25×", "1.25 to 1.25", "kept"]);
    }

    #[test]
    fn the_document_says_all_that_was_seen() {
        let results = results();
        let text = document(&results);
        for line in [
            "Measured on 2030-01-02, in 2 minutes,",
            "| processor | a processor |",
            "| unisono | unisono 0.1.0, commit abc |",
            "| 1,000 | 128 B | 5.00 | 4.00 | 1.25 (1.00 to 1.50) | failed | failed | failed | failed |",
            "| 10,000 | 4 KiB | – | – | – | – | – | – | – |",
            "| resident memory before, MiB | 20.0 |",
            "| with all sockets, MiB | 64.0 |",
            "| after they have left, MiB | 24.0 |",
            "- `fanout websocket nodes=1 sockets=1000 bytes=128 window=1`, 1 of 3 rounds: lost 3",
            "- `fanout websocket nodes=1 sockets=1000 bytes=128 window=16`, 2 of 2 rounds: lost 3",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
        assert!(results.has_failures());
        assert!(
            !text.contains("quick run") && !text.contains("Only a part"),
            "{text}"
        );
        assert_eq!(
            document(&results),
            text,
            "the same results are the same text"
        );
    }

    #[test]
    fn every_plot_that_the_document_names_is_drawn() {
        let results = results();
        let text = document(&results);
        let figures = charts::figures(&results);
        assert_eq!(text.matches("![").count(), figures.len());
        let files: Vec<_> = figures.iter().map(|figure| figure.file).collect();
        let drawn = ["sockets.svg", "nodes.svg", "connect.svg", "memory.svg"];
        assert_eq!(files, drawn);
        for figure in &figures {
            assert!(text.contains(&format!("({PLOTS}/{})", figure.file)));
            assert!(plot::svg(&figure.chart).is_ok(), "{}", figure.file);
        }
    }

    #[test]
    fn a_round_is_told_in_short() {
        let report = json!({ "node_cpu_us_per_delivery": 0.5, "ratio": 0.125 });
        let round = Round::Measured {
            report,
            watched: vec![],
        };
        assert_eq!(in_short(&round), "0.500 µs, ratio 0.125");
        assert_eq!(in_short(&Round::Failed("why".to_owned())), "FAILED: why");
    }
}
