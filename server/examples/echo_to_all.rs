//! The smallest chat: a page, and a room where what anybody says reaches all, the speaker included.
//!
//! ```sh
//! cargo run --example echo_to_all -- --nats nats://127.0.0.1:4222
//! cargo run --example echo_to_all -- --nats nats://127.0.0.1:4222 --listen 127.0.0.1:8081
//! ```
//!
//! Open <http://127.0.0.1:8080/> and <http://127.0.0.1:8081/>: two nodes, one room. No handler is needed, for
//! there is nothing to decide.

use std::process::ExitCode;

use actix_web::web;
use unisono_server::rules::{ClientEvents, Format};
use unisono_server::{App, Room};

const PAGE: &str = include_str!("echo_to_all/page.html");

fn main() -> ExitCode {
    let room = Room::new("/")
        .format(Format::Raw)
        .client_events(ClientEvents::Echo);
    let app = App::new().room(room).routes(|config| {
        config.route("/", web::get().to(async || web::Html::new(PAGE)));
    });
    unisono_server::run(app)
}
