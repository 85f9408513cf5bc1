//! Every metric by name. `docs/metrics.md` has the same table, and a running node has no other.

use metrics::Unit;

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is to Prometheus.
    pub kind: Kind,
    /// In what it is measured.
    pub unit: Unit,
    /// Its label, with all values of that.
    pub label: Option<(&'static str, &'static [&'static str])>,
    /// What it says.
    pub help: &'static str,
    /// Whether it is there from the start, whatever the configuration is.
    pub always: bool,
}

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Grows, from zero when the node starts.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations, in buckets.
    Histogram,
}

/// The close codes that are told apart.
pub const CODES: [&str; 19] = [
    "1000",
    "1001",
    "1002",
    "1003",
    "1005",
    "1006",
    "1007",
    "1008",
    "1009",
    "1010",
    "1011",
    "1012",
    "1013",
    "1014",
    "4401",
    "4403",
    "4408",
    "application",
    "other",
];

/// What becomes of handshakes.
pub const HANDSHAKES: [&str; 14] = [
    "accepted", "400", "401", "402", "403", "404", "405", "408", "426", "429", "431", "500", "503",
    "other",
];

const fn metric(kind: Kind, name: &'static str, unit: Unit, help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        unit,
        label: None,
        help,
        always: true,
    }
}

const fn counter(name: &'static str, unit: Unit, help: &'static str) -> Metric {
    metric(Kind::Counter, name, unit, help)
}

const fn gauge(name: &'static str, unit: Unit, help: &'static str) -> Metric {
    metric(Kind::Gauge, name, unit, help)
}

const fn histogram(name: &'static str, help: &'static str) -> Metric {
    metric(Kind::Histogram, name, Unit::Seconds, help)
}

impl Metric {
    const fn by(self, label: &'static str, values: &'static [&'static str]) -> Self {
        Self {
            label: Some((label, values)),
            ..self
        }
    }

    const fn where_configured(self) -> Self {
        Self {
            always: false,
            ..self
        }
    }
}

/// The metrics of a node, without those of its process.
#[rustfmt::skip]
pub const TABLE: &[Metric] = &[
    gauge("unisono_build_info", Unit::Count, "1, with the version of the program")
        .by("version", &[proto::VERSION]),
    gauge("unisono_ready", Unit::Count, "1 while /health/ready says yes"),
    gauge("unisono_draining", Unit::Count, "1 from SIGTERM on"),
    gauge("unisono_nodes", Unit::Count, "Nodes of the cluster that are up as far as this one knows, itself included"),
    gauge("unisono_nodes_unreadable", Unit::Count, "Nodes on the bus that speak a version of the protocol which this one does not read"),

    gauge("unisono_sockets", Unit::Count, "Sockets, from the yes to their handshake on")
        .by("wire", &["websocket", "event_stream"]),
    gauge("unisono_sockets_max", Unit::Count, "sockets.max"),
    gauge("unisono_connections", Unit::Count, "Connections that are no sockets"),
    gauge("unisono_connections_max", Unit::Count, "sockets.connections"),
    gauge("unisono_rooms", Unit::Count, "Rooms with members on this node"),
    gauge("unisono_rooms_max", Unit::Count, "sockets.rooms_max"),
    counter("unisono_rooms_refused_total", Unit::Count, "Joins and handshakes that were refused because they would have brought one more room than sockets.rooms_max"),
    gauge("unisono_first_joins_waiting", Unit::Count, "Rooms that wait for their turn to be listened to, because of sockets.first_join_rate"),
    gauge("unisono_users", Unit::Count, "Users with sockets on this node"),
    counter("unisono_handshakes_total", Unit::Count, "Handshakes that were accepted, or refused with that HTTP status")
        .by("outcome", &HANDSHAKES),
    counter("unisono_connections_refused_total", Unit::Count, "Connections above sockets.connections, or for which there was no open file, answered 503 before anything was read"),
    counter("unisono_api_refused_total", Unit::Count, "Requests of the HTTP API without a good key, and with one that lacks the scope")
        .by("why", &["key", "scope"]),
    counter("unisono_file_reloads_total", Unit::Count, "Times that a file of API keys or secrets changed, or could not be used; after failed the old content stays")
        .by("outcome", &["ok", "failed"]),
    counter("unisono_tls_handshakes_total", Unit::Count, "TLS handshakes, where tls.certificate_file is set; not_tls spoke something else")
        .by("outcome", &["ok", "failed", "timeout", "not_tls"]),
    counter("unisono_tls_reloads_total", Unit::Count, "Times that the certificate or its key changed, or could not be read; after failed the old one stays")
        .by("outcome", &["ok", "failed"]),
    gauge("unisono_tls_certificate_expires_timestamp_seconds", Unit::Seconds, "When the certificate ends, since 1970; where there is one")
        .where_configured(),
    counter("unisono_closes_total", Unit::Count, "Sockets that ended, by close code; 1005 and 1006 without any, application for 4000 to 4099")
        .by("code", &CODES),
    counter("unisono_slow_sockets_total", Unit::Count, "Sockets that were closed because they read too slowly"),
    counter("unisono_rate_limited_total", Unit::Count, "Messages, pings, joins and handshakes above their limit")
        .by("what", &["message", "ping", "join", "handshake"]),

    counter("unisono_publications_total", Unit::Count, "Publications and broadcasts that came in, one for each room")
        .by("source", &["client", "api", "bus", "laravel"]),
    counter("unisono_deliveries_total", Unit::Count, "Publications that were put into queues of sockets, one for each socket"),
    counter("unisono_emits_total", Unit::Count, "Emits, one for each socket: counted where the socket would be; node_gone, timeout and invalid where somebody waits for the answer")
        .by("status", &["delivered", "not_found", "node_gone", "dropped", "timeout", "invalid"]),
    counter("unisono_gaps_total", Unit::Count, "Times that a socket was told that it may have missed something")
        .by("reason", &["bus_outage", "overload", "redis_outage", "unsupported"]),
    counter("unisono_received_messages_total", Unit::Count, "Text and binary messages of clients"),
    counter("unisono_received_bytes_total", Unit::Bytes, "Bytes of WebSockets"),
    counter("unisono_sent_messages_total", Unit::Count, "Messages put into queues of sockets: deliveries, emits, and the server's own"),
    counter("unisono_sent_bytes_total", Unit::Bytes, "Bytes written to sockets"),
    gauge("unisono_queue_bytes", Unit::Bytes, "Bytes that wait in the queues of all sockets, as sockets.queue_bytes counts them"),
    gauge("unisono_inflight_bytes", Unit::Bytes, "Bytes of publications under way"),
    gauge("unisono_inflight_bytes_max", Unit::Bytes, "sockets.inflight_bytes"),
    gauge("unisono_incoming_bytes", Unit::Bytes, "Bytes of messages from NATS that wait for the node, over all subscriptions"),
    gauge("unisono_incoming_bytes_max", Unit::Bytes, "cluster.incoming_bytes"),

    gauge("unisono_bus_connected", Unit::Count, "1 while NATS is there and answers, or where there is to be none"),
    counter("unisono_bus_connects_total", Unit::Count, "Connections made to NATS, the first included"),
    counter("unisono_bus_sent_messages_total", Unit::Count, "Messages handed to NATS"),
    counter("unisono_bus_sent_bytes_total", Unit::Bytes, "Their bytes"),
    counter("unisono_bus_received_messages_total", Unit::Count, "Messages that came from NATS"),
    counter("unisono_bus_received_bytes_total", Unit::Bytes, "Their bytes"),
    counter("unisono_bus_dropped_total", Unit::Count, "Messages for other nodes that were not sent, for want of a place in the queue or of a bus"),
    counter("unisono_bus_refused_total", Unit::Count, "Messages from NATS that cannot be understood: of another version, or from somebody else"),
    counter("unisono_bus_skipped_total", Unit::Count, "Messages of newer nodes that this one does not know and need not: no error while a cluster is upgraded"),
    counter("unisono_bus_late_total", Unit::Count, "Messages of a node that came after it had gone on over another connection and had told that they are lost"),
    counter("unisono_bus_forged_total", Unit::Count, "Times that somebody claimed a later connection in the name of a node, whose messages were dropped until its heartbeats showed that"),
    counter("unisono_bus_errors_total", Unit::Count, "Errors that the NATS server told, such as a right that is missing, and connections that failed"),
    counter("unisono_bus_overflows_total", Unit::Count, "Times that this node read from NATS too slowly and missed something"),

    counter("unisono_thread_cpu_seconds_total", Unit::Seconds, "CPU time of the thread of the node actor, of the bus, of each worker, and of the one that speaks to applications; on Linux")
        .by("thread", &["node", "bus", "worker-0 and so on", "outside"])
        .where_configured(),

    counter("unisono_handlers_total", Unit::Count, "Calls of handlers in Rust")
        .by("result", &["ok", "error", "timeout", "panic"]),
    histogram("unisono_handler_seconds", "How long they took"),
    counter("unisono_events_lost_total", Unit::Count, "Events that no application could be told, because there is no way to it"),
    gauge("unisono_hook_events_waiting", Unit::Count, "Events that wait for hooks.url, or are on their way there"),
    counter("unisono_hook_events_total", Unit::Count, "Events that were delivered to hooks.url, refused by it, or dropped because too much waited or waited too long")
        .by("result", &["delivered", "failed", "dropped"]),
    counter("unisono_hook_requests_total", Unit::Count, "Requests to hooks.url, each attempt one")
        .by("result", &["ok", "error"]),
    histogram("unisono_hook_request_seconds", "How long they took"),
    counter("unisono_hook_answers_refused_total", Unit::Count, "Answers of hooks.url that make no sense"),
    counter("unisono_occupancy_lost_total", Unit::Count, "Turns of rooms, sockets and members that the application may not have been told (said), or that will not be given back if their node returns (taken_back), because too many were to be remembered")
        .by("what", &["said", "taken_back"]),
    counter("unisono_actions_failed_total", Unit::Count, "Actions in answers of hooks.url that were not carried out"),

    counter("unisono_spans_total", Unit::Count, "Spans that the collector took, did not take, or that found no room in the queue")
        .by("result", &["sent", "failed", "dropped"]),

    gauge("unisono_laravel_connected", Unit::Count, "1 while Laravel's Redis is there; where laravel.redis_url is set")
        .where_configured(),
    counter("unisono_laravel_broadcasts_total", Unit::Count, "Broadcasts of Laravel that were delivered, and messages that are none")
        .by("result", &["delivered", "bad"]),
];

/// Makes all of them known, each at zero, so that alarms have something to look at.
pub fn register() {
    for metric in TABLE {
        let Metric {
            name, unit, help, ..
        } = *metric;
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(name, unit, help),
            Kind::Gauge => metrics::describe_gauge!(name, unit, help),
            Kind::Histogram => metrics::describe_histogram!(name, unit, help),
        }
        if !metric.always {
            continue;
        }
        let labels = match metric.label {
            None => vec![Vec::new()],
            Some((label, values)) => {
                let values = values.iter();
                let labels =
                    values.map(|value| vec![metrics::Label::from_static_parts(label, value)]);
                labels.collect()
            }
        };
        for labels in labels {
            match metric.kind {
                Kind::Counter => metrics::counter!(name, labels).increment(0),
                Kind::Gauge => metrics::gauge!(name, labels).increment(0.0),
                Kind::Histogram => drop(metrics::histogram!(name, labels)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_same_table() {
        let text = include_str!("../../../docs/metrics.md");
        let documented: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("| `unisono_"))
            .collect();
        let rows: Vec<_> = TABLE.iter().map(row).collect();
        assert_eq!(
            documented,
            rows,
            "the table in docs/metrics.md should be\n\n{}\n",
            rows.join("\n")
        );
    }

    fn row(metric: &Metric) -> String {
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let label = match metric.label {
            None => String::new(),
            Some(("version", _)) => "`version`".to_owned(),
            Some((label, values)) => format!("`{label}`: {}", values.join(", ")),
        };
        format!("| `{}` | {kind} | {label} | {} |", metric.name, metric.help)
    }

    #[test]
    fn names_say_what_they_are() {
        for metric in TABLE {
            let Metric {
                name, kind, unit, ..
            } = metric;
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.contains("_bytes"), *unit == Unit::Bytes, "{name}");
            let counted = name.trim_end_matches("_total");
            let in_seconds = counted.ends_with("_seconds");
            assert_eq!(in_seconds, *unit == Unit::Seconds, "{name}");
        }
    }
}
