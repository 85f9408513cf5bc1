//! Whether a node does well, for health checks of containers.

use clap::Args;
use reqwest::StatusCode;

use super::connection::Api;
use super::list::text;
use super::outcome::{Done, Outcome};
use super::print;

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono health\n  \
    unisono health --live --url http://127.0.0.1:9090 --timeout 2s\n\n\
    Exit status: 0 when it is, 1 when not.")]
pub struct Health {
    /// Ask only whether it lives: a node that drains, or waits for its bus, does
    #[arg(long)]
    live: bool,
}

impl Health {
    pub async fn run(self, api: &Api) -> Outcome {
        let path = if self.live { "live" } else { "ready" };
        let (status, health) = api.get_any(&format!("/health/{path}"), &[]).await?;
        let well = status == StatusCode::OK;
        if api.json() {
            print::line(&health.to_string())?;
        } else if well {
            let bus = text(&health["bus"]);
            // Who has no key is not told.
            print::line(&match health["node"].as_str() {
                Some(node) => format!("ok: node {node}, bus {bus}"),
                None => format!("ok: bus {bus}"),
            })?;
        } else {
            let why = text(&health["status"]);
            print::note(&format!("not ready: {why} ({})", status.as_u16()));
        }
        Ok(Done::all(well))
    }
}
