//! HTTP routes of the application's own, beside the sockets: to push to one of them, and to close one.
//!
//! ```sh
//! cargo run --example push -- --nats nats://127.0.0.1:4222
//! curl 'http://127.0.0.1:8080/server/send?fd=<socket id>'
//! curl 'http://127.0.0.1:8080/server/close?fd=<socket id>'
//! ```
//!
//! Any node will do, whichever holds the socket. Whoever reaches the port may ask: an application in earnest
//! would look first at who does.

use std::process::ExitCode;
use std::time::Duration;

use actix_web::error::ErrorBadRequest;
use actix_web::{HttpResponse, web};
use serde::Deserialize;
use unisono_server::{App, Room, SocketId, Status, Unisono};

#[derive(Deserialize)]
struct To {
    fd: String,
}

fn main() -> ExitCode {
    let app = App::new().room(Room::new("/")).routes(|config| {
        config.route("/server/send", web::get().to(send));
        config.route("/server/close", web::get().to(close));
    });
    unisono_server::run(app)
}

async fn send(unisono: web::Data<Unisono>, to: web::Query<To>) -> actix_web::Result<HttpResponse> {
    let sent = unisono.send_text(to.socket()?, "Hello World.").await?;
    Ok(match sent {
        Status::Delivered => HttpResponse::Ok().finish(),
        Status::NotFound | Status::NodeGone => HttpResponse::NotFound().body("no such socket"),
        other => HttpResponse::ServiceUnavailable().body(other.as_str()),
    })
}

/// Answers at once; the socket is closed a second later.
async fn close(unisono: web::Data<Unisono>, to: web::Query<To>) -> actix_web::Result<HttpResponse> {
    let soon = unisono
        .disconnect(to.socket()?)
        .after(Duration::from_secs(1));
    soon.await?;
    Ok(HttpResponse::Ok().finish())
}

impl To {
    fn socket(&self) -> actix_web::Result<SocketId> {
        self.fd.parse().map_err(ErrorBadRequest)
    }
}
