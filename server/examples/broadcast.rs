//! One HTTP request speaks to every connection of the cluster.
//!
//! ```sh
//! cargo run --example broadcast -- --nats nats://127.0.0.1:4222
//! curl 'http://127.0.0.1:8080/?message=hi'
//! ```
//!
//! The sockets of `ws://127.0.0.1:8080/` speak no JSON: they get `hi`, and no more. What they say themselves is
//! answered with `this is server`. Whoever reaches the port may speak to all, so keep it to yourself.

use std::process::ExitCode;

use actix_web::web;
use serde::Deserialize;
use unisono_server::{App, Frame, Room, SendError, Socket, Status, Unisono};

#[derive(Deserialize)]
struct Say {
    message: String,
}

fn main() -> ExitCode {
    let app = App::new()
        .room(Room::new("/").on_frame(answer))
        .routes(|config| {
            config.route("/", web::get().to(say));
        });
    unisono_server::run(app)
}

async fn answer(socket: Socket, _: Frame) -> Status {
    socket.send_text("this is server")
}

async fn say(unisono: web::Data<Unisono>, say: web::Query<Say>) -> Result<String, SendError> {
    let text = unisono.broadcast_text(&say.message);
    let reached = text.confirm().await?.value;
    Ok(format!("said to {reached}\n"))
}
