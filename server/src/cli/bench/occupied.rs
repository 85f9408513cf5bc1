//! Rooms with members in which nothing happens: what one takes of a node's memory.

use std::rc::Rc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::SETTLE_TIME;
use super::bare::OTHER_FILES;
use super::idle::{hold, reading};
use super::load::{Run, progress};
use super::nodes::{Reached, want_files};
use super::publisher::Talker;
use super::report::{Report, round};
use crate::cli::outcome::{Done, Failure, Outcome};

/// Rooms to be in.
pub struct Occupied {
    /// What their names begin with; the room of the sockets' URL.
    pub room: String,
    pub rooms: u32,
    /// Of each room.
    pub members: u32,
    /// How long they are left alone.
    pub duration: Duration,
    pub reached: Reached,
}

/// Rooms that one socket joins: within the defaults of `sockets.rooms_per_socket` and `sockets.join_burst`.
const ROOMS_PER_SOCKET: u64 = 100;

/// Joins that wait for their ack at one time.
const JOINING: usize = 1_000;

impl Occupied {
    pub async fn run(self, stop: CancellationToken) -> Outcome {
        let (rooms, members) = (u64::from(self.rooms), u64::from(self.members));
        let memberships = rooms * members;
        let sockets = memberships.div_ceil(ROOMS_PER_SOCKET).max(members);
        want_files(sockets + OTHER_FILES)?;
        let nodes = Rc::new(self.reached.reach().await?);
        let run = Run::new(Rc::clone(&nodes), stop.clone());
        let mut talkers = Vec::new();
        for entrance in nodes.entrances.iter().cycle().take(sockets as usize) {
            let entrance = entrance.for_websocket();
            let (socket, _) = entrance.join(&self.room, &run.buffer).await?;
            let talker = Rc::new(Talker::default());
            run.keep_talking(Rc::clone(&talker), socket);
            talkers.push(talker);
        }
        sleep(SETTLE_TIME).await;
        let before = reading(&nodes).await?;
        let begin = Instant::now();
        let bar = progress("joining rooms", memberships);
        let (talkers, name, bar) = (&talkers, &self.room, &bar);
        let joins = stream::iter(0..memberships).map(|nth| async move {
            // The members of one room are different sockets: there are as many sockets, at least.
            let talker = &talkers[(nth % sockets) as usize];
            let room = format!("{name}/{}", nth / members);
            talker.ask("unisono:join", &json!({ "room": room })).await?;
            bar.inc(1);
            Ok::<_, Failure>(())
        });
        let mut joins = joins.buffer_unordered(JOINING);
        loop {
            let next = tokio::select! {
                next = joins.next() => next,
                () = stop.cancelled() => None,
            };
            match next {
                Some(joined) => joined?,
                None => break,
            }
        }
        drop(joins);
        bar.finish_and_clear();
        let joined = begin.elapsed();
        hold("holding", self.duration, &stop).await;
        let after = reading(&nodes).await?;
        let interrupted = stop.is_cancelled();
        let (_, closed) = run.end().await;

        let mut report = Report::of("rooms");
        report.value("loop", "idle");
        report.shape(sockets, &nodes);
        report.count("rooms", rooms);
        report.count("members", members);
        let seconds = joined.as_secs_f64();
        report.figure("seconds", round(seconds), format!("{seconds:.2}"));
        let more = after.rooms - before.rooms;
        report.figure("node_rooms_more", more as i64, more.to_string());
        let bytes = (after.resident_bytes - before.resident_bytes) / more.max(1.0);
        report.figure("node_bytes_per_room", round(bytes), format!("{bytes:.0}"));
        report.note("memory is what the nodes' processes have more of; what was free in them before is not seen");
        if nodes.apis.len() > 1 {
            report.note("a room with members on several nodes counts on each of them");
        }
        report.ending(closed.as_deref(), interrupted);
        report.print(nodes.json)?;
        Ok(Done::all(closed.is_none()))
    }
}
