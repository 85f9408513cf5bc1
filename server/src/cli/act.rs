//! Things done with sockets: disconnect, join, leave.

use std::time::Duration;

use clap::Args;
use proto::SocketId;
use serde_json::{Map, Value};

use super::connection::Api;
use super::outcome::{Failure, Outcome};
use super::send::{Nobody, results};

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono disconnect 9f1c2d3e-4b5a-8001-9c3d-0123456789ab\n  \
    unisono disconnect --user mallory --code 4001 --reason 'come back never'\n  \
    unisono disconnect --room /chat-rooms/1 --after 30s")]
pub struct Disconnect {
    /// The ids of sockets
    #[arg(value_name = "ID", required_unless_present_any = ["room", "user"])]
    ids: Vec<SocketId>,
    /// All members of this room
    #[arg(long, conflicts_with_all = ["ids", "user"])]
    room: Option<String>,
    /// All sockets of this user
    #[arg(long, value_name = "NAME", conflicts_with = "ids")]
    user: Option<String>,
    /// The close code: 1000, or 4000 to 4099
    #[arg(long, default_value_t = 1000)]
    code: u16,
    /// What the client is told, at most 123 bytes
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only after a while
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    after: Option<Duration>,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono join /vip 9f1c2d3e-4b5a-8001-9c3d-0123456789ab\n  \
    unisono join /vip --user alice")]
pub struct Join {
    #[command(flatten)]
    membership: Membership,
}

#[derive(Args)]
#[command(after_help = "Examples:\n  \
    unisono leave /vip 9f1c2d3e-4b5a-8001-9c3d-0123456789ab\n  \
    unisono leave /vip --user alice")]
pub struct Leave {
    #[command(flatten)]
    membership: Membership,
}

#[derive(Args)]
struct Membership {
    /// The room
    room: String,
    /// The ids of sockets
    #[arg(value_name = "ID", required_unless_present = "user")]
    ids: Vec<SocketId>,
    /// All sockets of this user
    #[arg(long, value_name = "NAME", conflicts_with = "ids")]
    user: Option<String>,
}

impl Disconnect {
    pub async fn run(self, api: &Api) -> Outcome {
        let mut body = whom(&self.ids, self.user);
        if let Some(room) = self.room {
            body.insert("room".to_owned(), room.into());
        }
        body.insert("code".to_owned(), self.code.into());
        if let Some(reason) = self.reason {
            body.insert("reason".to_owned(), reason.into());
        }
        if let Some(after) = self.after {
            let ms = u64::try_from(after.as_millis());
            let ms = ms.map_err(|_| Failure::Usage("--after is too long".to_owned()))?;
            body.insert("after_ms".to_owned(), ms.into());
        }
        let answer = api.post("/api/v1/disconnect", &body).await?;
        results(api, &answer, "disconnected", Nobody::IsFine)
    }
}

impl Join {
    pub async fn run(self, api: &Api) -> Outcome {
        let answer = api.post("/api/v1/join", &self.membership.body()).await?;
        results(api, &answer, "joined", Nobody::Fails)
    }
}

impl Leave {
    pub async fn run(self, api: &Api) -> Outcome {
        let answer = api.post("/api/v1/leave", &self.membership.body()).await?;
        results(api, &answer, "left", Nobody::IsFine)
    }
}

impl Membership {
    fn body(self) -> Map<String, Value> {
        let mut body = whom(&self.ids, self.user);
        body.insert("room".to_owned(), self.room.into());
        body
    }
}

fn whom(ids: &[SocketId], user: Option<String>) -> Map<String, Value> {
    let mut body = Map::new();
    if !ids.is_empty() {
        let ids: Vec<_> = ids.iter().map(SocketId::to_string).collect();
        body.insert("to".to_owned(), ids.into());
    }
    if let Some(user) = user {
        body.insert("user".to_owned(), user.into());
    }
    body
}
