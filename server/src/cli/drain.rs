//! A node taken out of service from afar.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use serde_json::{Value, json};

use super::connection::Api;
use super::list::text;
use super::outcome::{Done, Failure, Outcome};
use super::print;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono drain --node node-2\n  \
    unisono drain --node 7302bcb8d83d --yes\n\n\
    The node is not ready at once, waits `drain.delay`, closes its sockets with 1012 over `drain.window`, and exits \
    with status 0: what supervises it may start it anew. `unisono nodes` shows how far it is.")]
pub struct Drain {
    /// Which: its name, where only one has it, or its id
    #[arg(long, value_name = "NAME_OR_ID")]
    node: String,
    /// Do not ask whether that is meant
    #[arg(long, short)]
    yes: bool,
}

impl Drain {
    pub async fn run(self, api: &Api) -> Outcome {
        let answer = api.get("/api/v1/nodes", &[]).await?;
        let node = self.find(&answer["nodes"])?;
        let shown = format!("{} ({})", text(&node["name"]), text(&node["id"]));
        let terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        if terminal && !self.yes && !sure(&shown, &node["sockets"])? {
            print::note("nothing was done");
            return Ok(Done::Partly);
        }
        let body = json!({ "node": node["id"] });
        let answer = api.post("/api/v1/drain", &body).await?;
        if api.json() {
            print::line(&answer.to_string())?;
        } else {
            print::line(&format!("{} drains", print::visible(&shown)))?;
        }
        Ok(Done::All)
    }

    fn find<'a>(&self, nodes: &'a Value) -> Result<&'a Value, Failure> {
        let nodes = nodes.as_array().map(Vec::as_slice).unwrap_or_default();
        let by = |field: &str| {
            let same = |node: &&Value| node[field] == self.node.as_str();
            nodes.iter().filter(same).collect::<Vec<_>>()
        };
        let by_name = by("name");
        match (&by("id")[..], &by_name[..]) {
            ([node], _) | ([], [node]) => Ok(*node),
            ([], []) => Err(Failure::Failed(format!(
                "there is no node `{}`: `unisono nodes` lists those that are up",
                self.node
            ))),
            _ => {
                let ids: Vec<_> = by_name.iter().map(|node| text(&node["id"])).collect();
                Err(Failure::Failed(format!(
                    "several nodes are named `{}`, take an id: {}",
                    self.node,
                    ids.join(", ")
                )))
            }
        }
    }
}

fn sure(node: &str, sockets: &Value) -> Result<bool, Failure> {
    let node = print::visible(node);
    let mut stderr = io::stderr();
    write!(stderr, "Drain {node}, which has {sockets} sockets? [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
