//! A name that a connection keeps: read from the cookie `username` at the handshake, there until the end.
//!
//! ```sh
//! cargo run --example username -- --nats nats://127.0.0.1:4222
//! ```
//!
//! Without the cookie there is no connection, but a 401. A browser sends cookies whatever page asks it to,
//! so say which pages may: `--set auth.origins=https://chat.example`.

use std::process::ExitCode;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use unisono_server::{
    Accept, App, Close, HandlerError, Handshake, Message, Refuse, Room, Sent, Socket,
};

struct Username(String);

#[derive(Deserialize)]
struct NewMessage {
    content: String,
}

fn main() -> ExitCode {
    let room = Room::new("/")
        .on_handshake(log_in)
        .on("new message", new_message)
        .on_close(user_left);
    unisono_server::run(App::new().room(room))
}

async fn log_in(handshake: Handshake) -> Result<Accept, Refuse> {
    match handshake.cookie("username") {
        None | Some("") => Err(Refuse::unauthorized("the cookie `username` is missing")),
        Some(name) => Ok(Accept::new().context(Username(name.to_owned()))),
    }
}

async fn new_message(socket: Socket, message: Message) -> Result<Sent, HandlerError> {
    let NewMessage { content } = message.data()?;
    let new = json!({ "username": username(&socket)?.0, "content": content });
    Ok(socket.publish("new message", new).await?)
}

async fn user_left(socket: Socket, _: Close) -> Result<Sent, HandlerError> {
    let left = json!({ "username": username(&socket)?.0 });
    Ok(socket.publish("user left", left).await?)
}

fn username(socket: &Socket) -> Result<Arc<Username>, HandlerError> {
    let kept = socket.context().get();
    Ok(kept.ok_or("the handshake kept no username")?)
}
