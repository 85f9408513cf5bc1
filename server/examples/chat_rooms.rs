//! A chat room for each id: `ws://127.0.0.1:8080/chat-rooms/1` and `/chat-rooms/2` hear nothing of each other.
//!
//! ```sh
//! cargo run --example chat_rooms -- --nats nats://127.0.0.1:4222
//! ```
//!
//! Clients send `{"event":"new message","data":{"content":"hi"}}` to the others in their room, and
//! `{"event":"who","id":1}` to learn who they are, on all nodes. Those who go are missed: `user left`.

use std::process::ExitCode;

use serde::Deserialize;
use serde_json::{Value, json};
use unisono_server::{App, Close, HandlerError, Message, Room, SendError, Sent, Socket};

#[derive(Deserialize)]
struct NewMessage {
    content: String,
}

fn main() -> ExitCode {
    let room = Room::new("/chat-rooms/{id}")
        .on("new message", new_message)
        .on("who", who)
        .on_close(user_left);
    unisono_server::run(App::new().room(room))
}

async fn new_message(socket: Socket, message: Message) -> Result<Sent, HandlerError> {
    let NewMessage { content } = message.data()?;
    let from = socket.id();
    let new = json!({ "from": from, "content": content });
    Ok(socket.publish("new message", new).await?)
}

async fn who(socket: Socket, _: Message) -> Result<Value, SendError> {
    let found = socket.unisono().members(socket.room()).await?.value;
    let ids = found.sockets.iter().map(|(id, _)| id);
    let members: Vec<_> = ids.collect();
    let id = socket.param("id");
    Ok(json!({ "chat_room": id, "count": found.count, "members": members }))
}

async fn user_left(socket: Socket, _: Close) -> Result<Sent, SendError> {
    let id = socket.id();
    let content = format!("User [{id}] left.");
    let left = json!({ "id": id, "content": content });
    socket.publish("user left", left).await
}
