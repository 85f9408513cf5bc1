//! What clients ask, and what becomes of it.

use std::sync::Arc;

use actix::{AsyncContext, Context};
use cluster::Permit;
use proto::client::{ClientId, ClientMessage, Command, ErrorCode, Refusal, room_data};
use proto::envelope::Payload;
use proto::{Audience, Close, Publication, RoomName};

use super::{Emitted, Session, Stall};
use crate::app::PublishError;
use crate::delivery::Delivery;
use crate::node::Publish;
use crate::registry::{Join, Leave};
use crate::rules::{self, ClientEvents, Rule};
use crate::websocket::frame::{self, encode};
use crate::websocket::{Incoming, Opcode};

impl Session {
    pub(super) fn on_incoming(&mut self, incoming: Incoming<'_>, ctx: &mut Context<Self>) {
        match incoming {
            Incoming::Text(text) if self.native() => self.on_text(&text, ctx),
            Incoming::Text(text) => {
                self.on_client_event(None, Payload::Text(text.into_owned().into()));
            }
            Incoming::Binary(_) if self.native() => self.refuse(&Refusal {
                id: None,
                code: ErrorCode::BadMessage,
                message: "messages are text frames".to_owned(),
                event: None,
            }),
            Incoming::Binary(bytes) => {
                self.on_client_event(None, Payload::Binary(bytes.into_owned().into()));
            }
            // Of those that a client does not read, only the latest (RFC 6455 §5.5.3).
            Incoming::Ping(payload) if self.outbox.blocked_since().is_some() => {
                self.pong = Some(encode(Opcode::Pong, &payload));
            }
            Incoming::Ping(payload) => self.push(encode(Opcode::Pong, &payload)),
            Incoming::Pong => self.pinged = None,
            Incoming::Close(close) => {
                // The client's own code back, as RFC 6455 §5.5.1 advises; the connection may end now.
                let echo = close.map(|close| Close {
                    reason: "".into(),
                    ..close
                });
                self.close_with(frame::close(echo.as_ref()), true);
            }
        }
    }

    fn on_text(&mut self, text: &str, ctx: &mut Context<Self>) {
        let ClientMessage { id, command } = match ClientMessage::parse(text) {
            Ok(message) => message,
            Err(refusal) => return self.refuse(&refusal),
        };
        let event = command.server_event();
        let done = match command {
            Command::Event { name, data } => {
                return self.on_client_event(id, Payload::Event { name, data });
            }
            Command::Join(room) => self.on_join(room, id.clone()),
            Command::Leave(room) => self.on_leave(room, id.clone()),
            Command::Publish { room, name, data } => {
                self.on_publish(room, Payload::Event { name, data }, id.clone())
            }
            Command::Emit { to, name, data } => {
                self.on_emit(to, Payload::Event { name, data }, id.clone(), ctx)
            }
            Command::Ping(data) => {
                let data = data
                    .as_ref()
                    .and_then(|data| std::str::from_utf8(data).ok());
                self.ack(id.as_ref(), data);
                return;
            }
        };
        if let Err((code, message)) = done {
            self.refuse(&Refusal {
                id,
                code,
                message: message.to_owned(),
                event: event.map(str::to_owned),
            });
        }
    }

    /// An event of the application's own, or a bare frame: for the room of the URL.
    fn on_client_event(&mut self, id: Option<ClientId>, payload: Payload) {
        let except = match self.rule.client_events {
            ClientEvents::Relay => vec![self.id],
            ClientEvents::Echo => Vec::new(),
            // Handled, by an application that is not there yet.
            ClientEvents::Forward => return self.ack(id.as_ref(), Some("{}")),
            ClientEvents::Deny => {
                let denied = (ErrorCode::Forbidden, "clients send no events here");
                return self.refuse_event(id, &payload, denied);
            }
        };
        if !self.rooms.contains(&self.home) {
            let message = "not a member of the room of the URL any more";
            return self.refuse_event(id, &payload, (ErrorCode::NotJoined, message));
        }
        let publication = Publication {
            from: Some(self.id),
            except,
            ..Publication::new(Audience::Room(self.home.clone()), payload)
        };
        self.publish(publication, id);
    }

    fn refuse_event(&mut self, id: Option<ClientId>, payload: &Payload, denied: Denied) {
        let (code, message) = denied;
        self.refuse(&Refusal {
            id,
            code,
            message: message.to_owned(),
            event: match payload {
                Payload::Event { name, .. } => Some(name.to_string()),
                Payload::Text(_) | Payload::Binary(_) => None,
            },
        });
    }

    fn on_join(&mut self, room: RoomName, id: Option<ClientId>) -> Result<(), Denied> {
        let rule = self.find_rule(&room)?;
        if !rule.join.by_client() {
            return Err((ErrorCode::Forbidden, "clients may not join this room"));
        }
        if self.rooms.contains(&room) {
            self.ack(id.as_ref(), Some(&room_data(&room)));
            return Ok(());
        }
        if self.rooms.len() + self.joins.len() >= self.shared().config.sockets.rooms_per_socket {
            return Err((ErrorCode::Forbidden, "this socket is in too many rooms"));
        }
        self.joins.push((room.clone(), id));
        self.worker.registry.do_send(Join(self.id, room));
        Ok(())
    }

    fn on_leave(&mut self, room: RoomName, id: Option<ClientId>) -> Result<(), Denied> {
        let Some(index) = self.rooms.iter().position(|joined| *joined == room) else {
            return Err((ErrorCode::NotJoined, "not a member of this room"));
        };
        self.rooms.remove(index);
        self.leaves.push((room.clone(), id));
        self.worker.registry.do_send(Leave(self.id, room));
        Ok(())
    }

    fn on_publish(
        &mut self,
        room: RoomName,
        payload: Payload,
        id: Option<ClientId>,
    ) -> Result<(), Denied> {
        match self.find_rule(&room)?.publish {
            rules::Publish::Anyone => {}
            rules::Publish::Members if self.rooms.contains(&room) => {}
            rules::Publish::Members => {
                return Err((ErrorCode::NotJoined, "only members publish to this room"));
            }
            rules::Publish::None => {
                return Err((ErrorCode::Forbidden, "clients may not publish to this room"));
            }
        }
        let publication = Publication {
            from: Some(self.id),
            except: vec![self.id],
            ..Publication::new(Audience::Room(room), payload)
        };
        self.publish(publication, id);
        Ok(())
    }

    fn on_emit(
        &mut self,
        to: Vec<String>,
        payload: Payload,
        id: Option<ClientId>,
        ctx: &mut Context<Self>,
    ) -> Result<(), Denied> {
        if !self.rule.emit {
            return Err((ErrorCode::Forbidden, "clients may not emit here"));
        }
        if to.len() > self.shared().config.sockets.emit_ids {
            return Err((ErrorCode::BadMessage, "too many ids in `to`"));
        }
        let results = self.worker.app.emit(to, payload, Some(self.id));
        let results = results.map_err(|error| match error {
            PublishError::TooLarge => (ErrorCode::TooLarge, "more than the bus takes"),
            PublishError::Busy => (ErrorCode::Unavailable, "too much is on its way"),
        })?;
        if let Some(id) = id {
            self.emits_in_flight += 1;
            let session = ctx.address();
            actix_rt::spawn(async move {
                let results = results.await;
                session.do_send(Emitted { id, results });
            });
        }
        Ok(())
    }

    fn find_rule(&self, room: &RoomName) -> Result<Arc<Rule>, Denied> {
        let rules = &self.shared().config.rules;
        let rule = rules.find(room).cloned();
        rule.ok_or((ErrorCode::BadRoom, "there is no such room"))
    }

    /// Sends a publication on its way, now or when the budget has room for it.
    fn publish(&mut self, publication: Publication, id: Option<ClientId>) {
        if !self.shared().cluster.fits(publication.payload.len()) {
            let denied = (ErrorCode::TooLarge, "more than the bus takes");
            return self.refuse_event(id, &publication.payload, denied);
        }
        let budget = self.shared().budget.clone();
        let bytes = publication.payload.len();
        match budget.try_acquire(bytes) {
            Some(permit) => self.published(publication, id.as_ref(), permit),
            None => {
                self.stall = Some(Stall {
                    publication,
                    id,
                    permit: Box::pin(async move { budget.acquire(bytes).await }),
                });
            }
        }
    }

    pub(super) fn published(
        &mut self,
        publication: Publication,
        id: Option<&ClientId>,
        permit: Permit,
    ) {
        let delivery = Delivery::new(publication, self.shared().node, permit);
        self.worker.app.node.do_send(Publish::quietly(delivery));
        self.ack(id, Some("{}"));
    }
}

/// Why a rule says no.
type Denied = (ErrorCode, &'static str);
