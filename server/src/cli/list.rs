//! What there is: nodes, rooms, sockets.

use clap::Args;
use serde_json::{Value, json};

use super::connection::Api;
use super::outcome::{Done, Failure, Outcome};
use super::print;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono nodes\n  \
    unisono nodes --url http://10.0.0.7:8080 --json | jq '.nodes[].sockets'")]
pub struct Nodes {}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono rooms\n  \
    unisono rooms --prefix /chat-rooms/ --limit 20")]
pub struct Rooms {
    /// Only rooms whose name begins so
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Most rooms to list; all, without it
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono sockets /chat-rooms/1\n  \
    unisono sockets /chat-rooms/1 --json | jq -r '.sockets[].id'")]
pub struct Sockets {
    /// The room
    room: String,
    /// Most sockets to list; all, without it
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono socket 9f1c2d3e-4b5a-8001-9c3d-0123456789ab")]
pub struct Socket {
    /// The id of the socket
    id: String,
}

/// The entries of as many pages as there are, or as are wanted.
struct Listed {
    entries: Vec<Value>,
    /// All there are, where the API says so.
    count: Option<u64>,
    more: bool,
    nodes: Value,
}

impl Nodes {
    pub async fn run(self, api: &Api) -> Outcome {
        let answer = api.get("/api/v1/nodes", &[]).await?;
        if api.json() {
            print::line(&answer.to_string())?;
            return Ok(Done::All);
        }
        let own = &answer["self"];
        let row = |node: &Value| {
            vec![
                text(&node["id"]),
                text(&node["name"]),
                text(&node["state"]),
                text(&node["sockets"]),
                text(&node["rooms"]),
                text(&node["version"]),
                seconds(&node["started_at"]),
                if node["id"] == *own { "*" } else { "" }.to_owned(),
            ]
        };
        let header = [
            "node", "name", "state", "sockets", "rooms", "version", "started", "asked",
        ];
        print::table(&header, rows(&answer["nodes"], row))?;
        let stranger =
            |node: &Value| format!("{} ({})", text(&node["id"]), text(&node["protocol"]));
        let unreadable = rows(&answer["unreadable"], stranger).join(", ");
        if !unreadable.is_empty() {
            print::note(&format!(
                "on the same bus, with a version of the protocol that the asked node does not read: {unreadable}"
            ));
        }
        Ok(Done::All)
    }
}

impl Rooms {
    pub async fn run(self, api: &Api) -> Outcome {
        let query = ("prefix", self.prefix.as_str());
        let listed = list(api, "/api/v1/rooms", "rooms", query, self.limit).await?;
        if api.json() {
            return listed.print_json("rooms");
        }
        let row = |room: &Value| vec![text(&room["room"]), text(&room["sockets"])];
        let rooms = listed.entries.iter().map(row).collect();
        print::table(&["room", "sockets"], rows_or_none(rooms, "no rooms")?)?;
        listed.note("rooms");
        Ok(Done::All)
    }
}

impl Sockets {
    pub async fn run(self, api: &Api) -> Outcome {
        let query = ("room", self.room.as_str());
        let listed = list(api, "/api/v1/rooms/sockets", "sockets", query, self.limit).await?;
        if api.json() {
            return listed.print_json("sockets");
        }
        let row = |socket: &Value| vec![text(&socket["id"]), text(&socket["user"])];
        let sockets = listed.entries.iter().map(row).collect();
        print::table(&["socket", "user"], rows_or_none(sockets, "no sockets")?)?;
        listed.note("sockets");
        Ok(Done::All)
    }
}

impl Socket {
    pub async fn run(self, api: &Api) -> Outcome {
        // Anything else would be another path.
        let id = self.id.parse::<proto::SocketId>();
        let id = id.map_err(|error| Failure::Usage(format!("`{}`: {error}", self.id)))?;
        let socket = api.get(&format!("/api/v1/sockets/{id}"), &[]).await?;
        if api.json() {
            print::line(&socket.to_string())?;
            return Ok(Done::All);
        }
        let rooms = rows(&socket["rooms"], text);
        let facts = [
            ("id", text(&socket["id"])),
            ("node", text(&socket["node"])),
            ("user", text(&socket["user"])),
            ("connected", seconds(&socket["connected_at"])),
            ("from", text(&socket["remote_addr"])),
            ("queued bytes", text(&socket["queued_bytes"])),
            ("rooms", rooms.join("\n")),
        ];
        let facts = facts.map(|(name, value)| vec![name.to_owned(), value]);
        print::table(&["socket", ""], facts.into())?;
        Ok(Done::All)
    }
}

impl Listed {
    fn print_json(self, word: &str) -> Outcome {
        let mut answer = json!({ (word): self.entries });
        if let Some(count) = self.count {
            answer["count"] = count.into();
        }
        answer["more"] = self.more.into();
        answer["nodes"] = self.nodes;
        print::line(&answer.to_string())?;
        Ok(Done::All)
    }

    fn note(&self, word: &str) {
        if self.more {
            let of = self.count.map(|count| format!(" of {count}"));
            let (shown, of) = (self.entries.len(), of.unwrap_or_default());
            print::note(&format!(
                "{shown}{of} {word} shown, there are more: see --limit"
            ));
        }
        note_missing(&self.nodes);
    }
}

/// Says which nodes are not in an answer, and whether there are any.
pub fn note_missing(nodes: &Value) -> bool {
    let missing = rows(&nodes["missing"], text);
    if !missing.is_empty() {
        let reached = text(&nodes["reached"]);
        let missing = missing.join(", ");
        print::note(&format!(
            "{reached} nodes answered, these did not: {missing}"
        ));
    }
    !missing.is_empty()
}

async fn list(
    api: &Api,
    path: &str,
    word: &str,
    query: (&str, &str),
    limit: Option<usize>,
) -> Result<Listed, Failure> {
    let mut listed = Listed {
        entries: Vec::new(),
        count: None,
        more: false,
        nodes: Value::Null,
    };
    let mut cursor: Option<String> = None;
    loop {
        let mut parameters = vec![query];
        if let Some(cursor) = &cursor {
            parameters.push(("cursor", cursor));
        }
        let mut page = api.get(path, &parameters).await?;
        if let Value::Array(entries) = page[word].take() {
            listed.entries.extend(entries);
        }
        listed.count = page["count"].as_u64().or(listed.count);
        let missing = |nodes: &Value| nodes["missing"].as_array().map_or(0, Vec::len);
        if listed.nodes.is_null() || missing(&page["nodes"]) > missing(&listed.nodes) {
            listed.nodes = page["nodes"].take();
        }
        cursor = page["cursor"].as_str().map(str::to_owned);
        let enough = limit.is_some_and(|limit| listed.entries.len() >= limit);
        if enough || cursor.is_none() {
            listed.more = cursor.is_some();
            if let Some(limit) = limit.filter(|limit| *limit < listed.entries.len()) {
                listed.entries.truncate(limit);
                listed.more = true;
            }
            return Ok(listed);
        }
    }
}

fn rows<T>(entries: &Value, row: impl Fn(&Value) -> T) -> Vec<T> {
    let entries = entries.as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().map(row).collect()
}

fn rows_or_none(rows: Vec<Vec<String>>, none: &str) -> Result<Vec<Vec<String>>, Failure> {
    if rows.is_empty() {
        print::note(none);
    }
    Ok(rows)
}

/// A value as a cell of a table.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A time without its milliseconds.
fn seconds(time: &Value) -> String {
    let time = text(time);
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time,
    }
}
