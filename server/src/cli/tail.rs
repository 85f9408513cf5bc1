//! What passes, live.

use std::collections::HashMap;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::connection::Api;
use super::list::{note_missing, text};
use super::outcome::{Failure, Outcome};
use super::print;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono tail\n  \
    unisono tail 'room:/chat-rooms/*'\n  \
    unisono tail socket:9f1c2d3e-4b5a-8001-9c3d-0123456789ab --full\n  \
    unisono tail 'event:order.*' room:/orders --json | jq .data\n\n\
    What is shown: publish, broadcast, emit (with what became of it), message (of a client, to the application), deliver \
    (a publication at a socket that is watched), opened, joined, left, closed. What passes faster than it can be shown is \
    counted, and the count shown.")]
pub struct Tail {
    /// room:NAME, event:NAME (`*` stands for any text) or socket:ID: what fits one of them is shown; everything,
    /// without any
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Show data in full, up to 64 KiB
    #[arg(long)]
    full: bool,
}

/// A line of the API.
#[derive(Deserialize)]
struct Line<'a> {
    kind: &'a str,
    #[serde(default)]
    node: String,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(flatten)]
    more: HashMap<String, Value>,
}

/// Characters of data that are shown, unless all are wanted.
const SHOWN: usize = 120;

impl Tail {
    pub async fn run(self, api: &Api) -> Outcome {
        for filter in &self.filters {
            let read = filter.parse::<crate::tail::Filter>();
            read.map_err(|error| Failure::Usage(error.to_string()))?;
        }
        let nodes = api.get("/api/v1/nodes", &[]).await?;
        let nodes = nodes["nodes"].as_array();
        let names = nodes.into_iter().flatten();
        let names: HashMap<_, _> = names
            .map(|node| (text(&node["id"]), text(&node["name"])))
            .collect();
        let mut query: Vec<_> = self
            .filters
            .iter()
            .map(|text| ("filter", text.as_str()))
            .collect();
        if self.full {
            query.push(("full", "true"));
        }
        let mut stream = api.stream("/api/v1/tail", &query).await?;
        while let Some(line) = stream.next_line().await? {
            if line.is_empty() {
                continue;
            }
            if api.json() {
                print::line(&line)?;
                continue;
            }
            let read: Line = serde_json::from_str(&line)
                .map_err(|error| Failure::Failed(format!("a line cannot be read: {error}")))?;
            self.show(&read, &names)?;
        }
        Err(Failure::Failed("the node has ended the tail".to_owned()))
    }

    fn show(&self, line: &Line, names: &HashMap<String, String>) -> Result<(), Failure> {
        let node = names.get(&line.node).unwrap_or(&line.node);
        match line.kind {
            "tail" => {
                let nodes = line.more.get("nodes").unwrap_or(&Value::Null);
                let reached = text(&nodes["reached"]);
                let plural = if reached == "1" { "" } else { "s" };
                print::note(&format!("watching {reached} node{plural}, Ctrl-C ends it"));
                note_missing(nodes);
                Ok(())
            }
            "missed" => {
                let count = line.more.get("count").map(text).unwrap_or_default();
                let missed = format!("{count} more on {node}, faster than they could be shown");
                print::note(&missed);
                Ok(())
            }
            "up" | "down" => {
                print::note(&format!("{node} is {}", line.kind));
                Ok(())
            }
            _ => print::line(&print::visible(&self.text(line, node))),
        }
    }

    fn text(&self, line: &Line, node: &str) -> String {
        let field = |name: &str| line.more.get(name).map(text);
        let at = field("at").unwrap_or_default();
        // The day is today's.
        let time = at.split_once('T').map_or(&*at, |(_, time)| time);
        let mut words = vec![format!("{time} {node} {:<9}", line.kind)];
        words.extend(field("room"));
        words.extend(field("socket").map(|id| format!("socket {id}")));
        words.extend(field("user").map(|user| format!("user {user}")));
        words.extend(field("from").map(|id| format!("from {id}")));
        words.extend(field("status"));
        words.extend(field("event").map(|event| Value::from(event).to_string()));
        words.extend(line.data.map(|data| self.shorten(data.get())));
        words.extend(field("text").map(|text| self.shorten(&Value::from(text).to_string())));
        words.extend(field("binary").map(|bytes| format!("base64 {}", self.shorten(&bytes))));
        words.extend(field("start").map(|start| self.shorten(&format!("{start}…"))));
        words.extend(field("bytes").map(|bytes| format!("({bytes} bytes)")));
        words.extend(field("code"));
        words.extend(field("reason"));
        words.join(" ")
    }

    fn shorten(&self, data: &str) -> String {
        match data.char_indices().nth(SHOWN) {
            Some((at, _)) if !self.full => format!("{}…", &data[..at]),
            _ => data.to_owned(),
        }
    }
}
