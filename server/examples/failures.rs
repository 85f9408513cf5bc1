//! A node whose parts fail when a client says so: nothing to learn from, but what the tests of that run. A client sends
//! `fail` with the part, and for how long it is to hold up its thread; without that it panics.

use std::process::ExitCode;
use std::time::Duration;

use serde::Deserialize;
use unisono_server::failures::{Failure, Part, fail};
use unisono_server::{App, HandlerError, Message, Room, RoomName, Socket, SocketId};

#[derive(Deserialize)]
struct Wish {
    part: String,
    /// For a session: another than the one that asks.
    socket: Option<SocketId>,
    block_ms: Option<u64>,
}

fn main() -> ExitCode {
    unisono_server::run(App::new().room(Room::new("/{room}").on("fail", grant)))
}

async fn grant(socket: Socket, message: Message) -> Result<(), HandlerError> {
    let wish: Wish = message.data()?;
    let blocked = wish.block_ms.map(Duration::from_millis);
    let failure = blocked.map_or(Failure::Panic, Failure::Block);
    let id = wish.socket.unwrap_or(socket.id());
    let part = match &*wish.part {
        "handler" => match failure {
            Failure::Panic => panic!("a handler that panics"),
            Failure::Block(time) => {
                std::thread::sleep(time);
                return Ok(());
            }
        },
        "session" => Part::Session(id),
        "room" => Part::Room(
            id,
            RoomName::parse(socket.room()).map_err(HandlerError::new)?,
        ),
        "registry" => Part::Registry(id),
        "node" => Part::Node,
        "bus" => Part::Bus,
        "outside" => Part::Outside,
        part => return Err(HandlerError::new(format!("no such part: {part}"))),
    };
    fail(socket.unisono(), part, failure);
    Ok(())
}
