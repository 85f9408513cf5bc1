//! What clients ask, and what becomes of it.

use std::sync::Arc;

use actix::{AsyncContext, Context};
use cluster::Permit;
use proto::client::{ClientId, ClientMessage, Command, ErrorCode, Refusal, room_data};
use proto::envelope::{Act, Payload};
use proto::json::speaks_for_server;
use proto::{Audience, Close, Publication, RoomName};

use super::{Emitted, Session, Stall, TOO_MANY};
use crate::delivery::Delivery;
use crate::meters::{self, Source};
use crate::node::{Burst, Publish};
use crate::rate::Limit;
use crate::registry::{Join, Leave};
use crate::rules::{ClientEvents, Denied, Rule};
use crate::trace::Parent;
use crate::unisono::PublishError;
use crate::websocket::frame::{self, encode};
use crate::websocket::{Incoming, Opcode};

impl Session {
    pub(super) fn on_incoming(&mut self, incoming: Incoming<'_>, ctx: &mut Context<Self>) {
        if let Incoming::Text(_) | Incoming::Binary(_) = incoming {
            self.queue.tally.received_message();
        }
        match incoming {
            Incoming::Text(text) if self.native() => self.on_text(&text, ctx),
            Incoming::Text(text) => {
                let payload = Payload::Text(text.into_owned().into());
                self.on_raw(payload, ctx);
            }
            Incoming::Binary(_) if self.native() => self.refuse_message(Refusal {
                id: None,
                code: ErrorCode::BadMessage,
                message: "messages are text frames".to_owned(),
                event: None,
            }),
            Incoming::Binary(bytes) => {
                let payload = Payload::Binary(bytes.into_owned().into());
                self.on_raw(payload, ctx);
            }
            // Of those that a client does not read, only the latest (RFC 6455 §5.5.3).
            Incoming::Ping(_) if !self.may_ping() => self.close(&Close::RATE),
            Incoming::Ping(payload) if self.outbox.blocked_since().is_some() => {
                self.pong = Some(encode(Opcode::Pong, &payload));
            }
            Incoming::Ping(payload) => self.push(encode(Opcode::Pong, &payload)),
            // Whatever comes is a sign of life.
            Incoming::Pong => {}
            Incoming::Close(close) => {
                // The client's own code back, as RFC 6455 §5.5.1 advises; the connection may end now.
                let echo = close.clone().map(|close| Close {
                    reason: "".into(),
                    ..close
                });
                let end = close.unwrap_or(Close::NO_STATUS);
                self.finish(frame::close(echo.as_ref()), end);
            }
        }
    }

    fn on_text(&mut self, text: &str, ctx: &mut Context<Self>) {
        let ClientMessage { id, command } = match ClientMessage::parse(text) {
            Ok(message) => message,
            Err(refusal) => return self.refuse_message(refusal),
        };
        let event = command.server_event();
        if !self.may_go_on() {
            let event = match &command {
                Command::Event { name, .. } => Some(name.as_str()),
                _ => event,
            };
            return self.refuse(&rate_limited(id, event.map(str::to_owned)));
        }
        let done = match command {
            Command::Event { name, data } => {
                return self.on_client_event(id, Payload::Event { name, data }, ctx);
            }
            Command::Join(room) => self.on_join(room, id.clone()),
            Command::Leave(room) => self.on_leave(room, id.clone()),
            Command::Publish { room, name, data } => {
                self.on_publish(room, Payload::Event { name, data }, id.clone())
            }
            Command::Emit { to, name, data } => {
                self.on_emit(to, Payload::Event { name, data }, id.clone(), ctx)
            }
            Command::Ping(data) => return self.ack(id.as_ref(), data.as_deref()),
            Command::Refresh(token) => return self.on_refresh(token, id, ctx),
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

    /// What cannot be understood counts as a message, too.
    fn refuse_message(&mut self, refusal: Refusal) {
        if self.may_go_on() {
            self.refuse(&refusal);
        } else {
            self.refuse(&rate_limited(refusal.id, refusal.event));
        }
    }

    /// A raw client cannot be told that a frame of its went nowhere, other than by the end.
    fn on_raw(&mut self, payload: Payload, ctx: &mut Context<Self>) {
        if self.may_go_on() {
            self.on_client_event(None, payload, ctx);
        } else {
            self.close(&Close::RATE);
        }
    }

    /// Counts a ping against the limit.
    fn may_ping(&mut self) -> bool {
        let limit = self.worker.shared.config.sockets.ping_limit();
        let may = self.pings.take(limit, self.heard);
        if !may {
            meters::rate_limited("ping");
        }
        may
    }

    /// Counts a message against the limit. Whoever was told of it too often is closed.
    fn may_go_on(&mut self) -> bool {
        let sockets = &self.worker.shared.config.sockets;
        if self.messages.take(sockets.message_limit(), self.heard) {
            return true;
        }
        meters::rate_limited("message");
        let warnings = Limit {
            rate: 1,
            burst: sockets.rate_warnings,
        };
        if !self.warnings.take(warnings, self.heard) {
            self.close(&Close::RATE);
        }
        false
    }

    /// An event of the application's own, or a bare frame: for a handler, or the room of the URL.
    fn on_client_event(&mut self, id: Option<ClientId>, payload: Payload, ctx: &mut Context<Self>) {
        if let Err(denied) = self.rule.may_send(self.grant()) {
            return self.refuse_event(id, &payload, denied);
        }
        let Some(payload) = self.handle(&id, payload, ctx) else {
            return;
        };
        let except = match self.rule.client_events {
            ClientEvents::Relay => vec![self.id],
            ClientEvents::Echo => Vec::new(),
            ClientEvents::Forward => return self.forward(id, &payload, ctx),
            ClientEvents::Deny if self.rule.handlers.is_some() => {
                let denied = (ErrorCode::UnknownEvent, "the application has no such event");
                return self.refuse_event(id, &payload, denied);
            }
            ClientEvents::Deny => {
                let denied = (ErrorCode::Forbidden, "clients send no events here");
                return self.refuse_event(id, &payload, denied);
            }
        };
        // Members of a raw room may have joined it from one of JSON, and take a bare text for the server's own.
        if let Payload::Text(text) = &payload
            && speaks_for_server(text.as_bytes())
        {
            let denied = (ErrorCode::Forbidden, "only the server speaks for itself");
            return self.refuse_event(id, &payload, denied);
        }
        if !self.is_in(&self.home) {
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

    pub(super) fn refuse_event(&mut self, id: Option<ClientId>, payload: &Payload, denied: Denied) {
        let (code, message) = denied;
        self.refuse(&Refusal {
            id,
            code,
            message: message.to_owned(),
            event: event_of(payload),
        });
    }

    fn on_join(&mut self, room: RoomName, id: Option<ClientId>) -> Result<(), Denied> {
        let rule = self.find_rule(&room)?;
        let rules = &self.shared().config.rules;
        rules.may_join(&rule, &room, self.grant())?;
        if self.is_in(&room) {
            self.ack(id.as_ref(), Some(room_data(&room).as_bytes()));
            return Ok(());
        }
        let sockets = &self.worker.shared.config.sockets;
        if self.rooms.len() + self.joins.len() >= sockets.rooms_per_socket {
            return Err(TOO_MANY);
        }
        if !self.joined.take(sockets.join_limit(), self.heard) {
            meters::rate_limited("join");
            let message = "too many joins in too short a time";
            return Err((ErrorCode::RateLimited, message));
        }
        self.joins.push((room.clone(), id));
        self.worker.registry.do_send(Join(self.id, room));
        Ok(())
    }

    fn on_leave(&mut self, room: RoomName, id: Option<ClientId>) -> Result<(), Denied> {
        let Some(index) = self.rooms.iter().position(|joined| joined.room == room) else {
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
        let rule = self.find_rule(&room)?;
        let rules = &self.shared().config.rules;
        rules.may_publish(&rule, &room, self.grant(), self.is_in(&room))?;
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
        self.rule.may_emit(self.grant())?;
        if to.len() > self.shared().config.sockets.emit_ids {
            return Err((ErrorCode::BadMessage, "too many ids in `to`"));
        }
        let emit = Act::Emit {
            payload,
            from: Some(self.id),
            trace: None,
        };
        let results = self.worker.unisono.act(to, emit);
        let results = results.map_err(|error| match error {
            PublishError::TooLarge => (ErrorCode::TooLarge, "more than the bus takes"),
            PublishError::Busy => (ErrorCode::Unavailable, "too much is on its way"),
        })?;
        if let Some(id) = id {
            self.asks_in_flight += 1;
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
        mut publication: Publication,
        id: Option<&ClientId>,
        permit: Permit,
    ) {
        let shared = self.shared();
        let span = shared.publishing(&mut publication, Source::Client, Parent::None);
        let delivery = Delivery::new(shared, publication, shared.node, permit);
        let publish = Publish::quietly(Source::Client, delivery);
        self.published.push(publish.within(span));
        self.ack(id, Some(b"{}"));
    }

    /// What was published in one turn goes on its way together, so that it stays together: see `Node::gather`.
    pub(super) fn hand_over(&mut self) {
        if !self.published.is_empty() {
            let burst = Burst(std::mem::take(&mut self.published));
            self.worker.unisono.node.do_send(burst);
        }
    }
}

fn rate_limited(id: Option<ClientId>, event: Option<String>) -> Refusal {
    Refusal {
        id,
        code: ErrorCode::RateLimited,
        message: "too many messages in too short a time".to_owned(),
        event,
    }
}

/// The name of the event, where it has one.
pub(super) fn event_of(payload: &Payload) -> Option<String> {
    match payload {
        Payload::Event { name, .. } => Some(name.to_string()),
        Payload::Text(_) | Payload::Binary(_) => None,
    }
}
