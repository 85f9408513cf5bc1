//! What the plots of the report show.

use crate::matrix::{BYTES, CONCURRENCY, Cell, LARGE_BYTES, NODES, ROOMS, SOCKETS, WINDOWS, Wire};
use crate::plot::{Axis, Chart, Line, Point, Scale};
use crate::results::{Results, Round, Spread, count};

/// A chart, where it is kept, and what the report says of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// The name of the file.
    pub file: &'static str,
    /// What is seen in it, in a sentence.
    pub caption: &'static str,
    /// What is drawn.
    pub chart: Chart,
}

/// CPU of the nodes for each delivery.
pub const NODE: &str = "/node_cpu_us_per_delivery";
/// CPU of the bare loop for each `write`.
pub const BARE: &str = "/raw/cpu_us_per_step";

/// The figures for which there is something to show, in the order of the report. Lines of which nothing was measured are
/// left out.
pub fn figures(results: &Results) -> Vec<Figure> {
    let mut figures = vec![
        sockets(results),
        wires(results),
        rooms(results),
        nodes(results),
        emit(results),
        connect(results),
        memory(results),
    ];
    for figure in &mut figures {
        figure.chart.prune();
    }
    figures.retain(|figure| !figure.chart.lines.is_empty());
    figures
}

fn sockets(results: &Results) -> Figure {
    Figure {
        file: "sockets.svg",
        caption: "Cost against sockets in one room. What a publication costs once is shared out among its deliveries.",
        chart: Chart {
            title: format!("CPU per delivery against sockets: one node, {BYTES} B"),
            x: axis("sockets in the room", Scale::Log),
            y: axis("CPU per delivery, µs", Scale::Log),
            lines: windows(results, results.scale.sockets(), |sockets, window| {
                Cell::fanout(Wire::Websocket, 1, sockets, BYTES, window)
            }),
        },
    }
}

fn wires(results: &Results) -> Figure {
    let wires = [
        (Wire::Websocket, "WebSocket"),
        (Wire::Deflate, "WebSocket, compressed"),
        (Wire::Sse, "server-sent events"),
    ];
    let lines = wires.map(|(wire, name)| {
        line(name, results.scale.sockets(), |sockets| {
            let cell = Cell::fanout(wire, 1, sockets, LARGE_BYTES, 16);
            results.figure(&cell, NODE)
        })
    });
    Figure {
        file: "wires.svg",
        caption: "The same with larger messages, by the way in which sockets are connected.",
        chart: Chart {
            title: "CPU per delivery against sockets: one node, 4 KiB, window 16".to_owned(),
            x: axis("sockets in the room", Scale::Log),
            y: axis("CPU per delivery, µs", Scale::Log),
            lines: lines.into(),
        },
    }
}

fn rooms(results: &Results) -> Figure {
    Figure {
        file: "rooms.svg",
        caption: "Cost against rooms. The same sockets are shared out among more rooms, so each publication has fewer \
                  deliveries.",
        chart: Chart {
            title: format!(
                "CPU per delivery against rooms: {} sockets, {BYTES} B",
                count(SOCKETS)
            ),
            x: axis("rooms", Scale::Log),
            y: axis("CPU per delivery, µs", Scale::Log),
            lines: windows(results, &ROOMS, Cell::rooms),
        },
    }
}

fn nodes(results: &Results) -> Figure {
    Figure {
        file: "nodes.svg",
        caption: "Cost against nodes, which share the same sockets and the same machine: CPU of all of them together.",
        chart: Chart {
            title: format!(
                "CPU per delivery against nodes: {} sockets, {BYTES} B",
                count(SOCKETS)
            ),
            x: axis("nodes", Scale::Linear),
            y: axis("CPU of all nodes per delivery, µs", Scale::Linear),
            lines: windows(results, &NODES, |nodes, window| {
                Cell::fanout(Wire::Websocket, nodes, SOCKETS, BYTES, window)
            }),
        },
    }
}

fn emit(results: &Results) -> Figure {
    let quantiles = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];
    let of = |name: &str, nodes: u32, latency: &str, is_reference| Line {
        name: name.to_owned(),
        points: quantiles
            .iter()
            .filter_map(|(name, quantile)| {
                let y = results.figure(&Cell::emit(nodes, 1), &format!("/{latency}/{name}"))?;
                Some(Point {
                    x: 1.0 / (1.0 - quantile),
                    y,
                })
            })
            .collect(),
        is_reference,
    };
    Figure {
        file: "emit.svg",
        caption: "How long the sender of an emit waits for its definite answer, over HTTP.",
        chart: Chart {
            title: "Time until an emit is answered".to_owned(),
            x: axis("quantile, from the median on", Scale::Quantile),
            y: axis("time, µs", Scale::Log),
            lines: vec![
                of("to another node", 2, "answer_us", false),
                of("on the only node", 1, "answer_us", false),
                of("bare NATS request", 2, "nats_us", true),
                of("bare HTTP request", 2, "health_us", true),
            ],
        },
    }
}

fn connect(results: &Results) -> Figure {
    let of = |name: &str, pointer: &str, is_reference| Line {
        is_reference,
        ..line(name, &CONCURRENCY, |concurrency| {
            results.figure(&results.scale.connect(concurrency), pointer)
        })
    };
    Figure {
        file: "connect.svg",
        caption: "Handshakes in a second, with the client that makes them on the same cores. The bare loop accepts and answers.",
        chart: Chart {
            title: "Handshakes in a second: one node".to_owned(),
            x: axis("handshakes at one time", Scale::Log),
            y: axis("handshakes in a second", Scale::Linear),
            lines: vec![
                of("node", "/handshakes_per_second", false),
                of(
                    "bare loop that accepts and answers",
                    "/raw_handshakes_per_second",
                    true,
                ),
            ],
        },
    }
}

/// The last round, as it was seen.
fn memory(results: &Results) -> Figure {
    let cell = results.scale.idle();
    let rounds = results.of(&cell).map_or(&[][..], |outcome| &outcome.rounds);
    let watched = rounds.iter().rev().find_map(|round| match round {
        Round::Measured { watched, .. } => Some(watched.as_slice()),
        Round::Failed(_) => None,
    });
    let points = watched.unwrap_or_default().iter().map(|sample| Point {
        x: sample.at,
        y: exactly(sample.resident_kib as f64 / 1024.0),
    });
    Figure {
        file: "memory.svg",
        caption: "Memory of a node to which sockets come, do nothing, and leave all at once.",
        chart: Chart {
            title: format!(
                "Resident memory of a node: {} sockets come and leave",
                count(cell.sockets)
            ),
            x: axis("seconds", Scale::Linear),
            y: axis("resident memory, MiB", Scale::Linear),
            lines: vec![Line {
                name: "node".to_owned(),
                points: points.collect(),
                is_reference: false,
            }],
        },
    }
}

fn axis(label: &str, scale: Scale) -> Axis {
    Axis {
        label: label.to_owned(),
        scale,
    }
}

fn exactly(value: f64) -> Spread {
    Spread {
        median: value,
        min: value,
        max: value,
    }
}

/// What is there of a figure, for each of these values.
fn line(name: &str, values: &[u32], figure: impl Fn(u32) -> Option<Spread>) -> Line {
    let points = values.iter().filter_map(|&value| {
        let y = figure(value)?;
        Some(Point {
            x: f64::from(value),
            y,
        })
    });
    Line {
        name: name.to_owned(),
        points: points.collect(),
        is_reference: false,
    }
}

/// The nodes and the bare loop, for each window.
fn windows(results: &Results, values: &[u32], cell: impl Fn(u32, u32) -> Cell) -> Vec<Line> {
    let of = |name: &str, pointer: &str, is_reference| {
        WINDOWS.map(|window| Line {
            is_reference,
            ..line(&format!("{name}, window {window}"), values, |value| {
                results.figure(&cell(value, window), pointer)
            })
        })
    };
    let mut lines = Vec::from(of("nodes", NODE, false));
    lines.extend(of("bare loop", BARE, true));
    lines
}
