//! Everybody hears who comes, and anybody writes to anybody, on whichever node they are.
//!
//! ```sh
//! cargo run --example private_messages -- --nats nats://127.0.0.1:4222
//! ```
//!
//! The greeting tells a client its id. With that of another it sends
//! `{"event":"private message","data":{"to":"<socket id>","content":"hello"},"id":1}`
//! and is told what became of it: `delivered`, `not_found` and so on.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::json;
use unisono_server::{App, HandlerError, Message, Room, SendError, Sent, Socket, SocketId, Status};

#[derive(Deserialize)]
struct PrivateMessage {
    to: SocketId,
    content: String,
}

fn main() -> ExitCode {
    let room = Room::new("/")
        .on_open(user_joined)
        .on("private message", private_message);
    unisono_server::run(App::new().room(room))
}

async fn user_joined(socket: Socket) -> Result<Sent, SendError> {
    let id = socket.id();
    let content = format!("User [{id}] joined.");
    let joined = json!({ "id": id, "content": content });
    socket.broadcast("user joined", joined).await
}

async fn private_message(socket: Socket, message: Message) -> Result<Status, HandlerError> {
    let PrivateMessage { to, content } = message.data()?;
    let private = json!({ "from": socket.id(), "content": content });
    let status = socket.unisono().emit(to, "private message", private);
    Ok(status.await?)
}
