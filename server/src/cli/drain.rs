//! A node taken out of service from afar.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::connection::Api;
use super::list::text;
use super::outcome::{Done, Failure, Outcome};
use super::print;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono drain --node node-2\n  \
    unisono drain --node 7302bcb8d83d --yes --wait\n\n\
    The node is not ready at once, waits `drain.delay`, closes its sockets with 1012 over `drain.window`, and exits \
    with status 0: what supervises it may start it anew. `unisono nodes` shows how far it is.")]
pub struct Drain {
    /// Which: its name, where only one has it, or its id
    #[arg(long, value_name = "NAME_OR_ID")]
    node: String,
    /// Do not ask whether that is meant
    #[arg(long, short)]
    yes: bool,
    /// Wait until the node is gone
    #[arg(long, short)]
    wait: bool,
}

/// How often the asked node is asked again.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

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
        let mut drained = api.post("/api/v1/drain", &body).await?;
        if !api.json() {
            print::line(&format!("{} drains", print::visible(&shown)))?;
        }
        if self.wait {
            gone(api, node, node["id"] == answer["self"]).await?;
            drained["status"] = "gone".into();
            if !api.json() {
                print::line(&format!("{} is gone", print::visible(&shown)))?;
            }
        }
        if api.json() {
            print::line(&drained.to_string())?;
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

/// Waits until the node is not among those that are up, and shows people how far it is. `own` says that it is the
/// node which is asked: one that ends answers no more.
async fn gone(api: &Api, node: &Value, own: bool) -> Result<(), Failure> {
    let mut progress = Progress::default();
    loop {
        let answer = match api.get("/api/v1/nodes", &[]).await {
            Ok(answer) => answer,
            Err(_) if own => break,
            Err(failure) => return Err(failure),
        };
        let nodes = answer["nodes"].as_array().map(Vec::as_slice);
        let mut nodes = nodes.unwrap_or_default().iter();
        let Some(node) = nodes.find(|listed| listed["id"] == node["id"]) else {
            break;
        };
        progress.show(&node["sockets"])?;
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    progress.end()
}

/// A line that changes, on a terminal.
#[derive(Default)]
struct Progress {
    shown: bool,
}

impl Progress {
    fn show(&mut self, sockets: &Value) -> Result<(), Failure> {
        let mut stderr = io::stderr();
        if stderr.is_terminal() {
            // Back to the start of the line, and without what is left of a longer one.
            write!(stderr, "\r\x1b[Ksockets that are left: {sockets}")?;
            self.shown = true;
        }
        Ok(stderr.flush()?)
    }

    fn end(&self) -> Result<(), Failure> {
        if self.shown {
            write!(io::stderr(), "\r\x1b[K")?;
        }
        Ok(())
    }
}

fn sure(node: &str, sockets: &Value) -> Result<bool, Failure> {
    let node = print::visible(node);
    let mut stderr = io::stderr();
    let plural = if *sockets == 1 { "" } else { "s" };
    write!(
        stderr,
        "Drain {node}, which has {sockets} socket{plural}? [y/N] "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
