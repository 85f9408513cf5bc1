//! What a session has to do with the application: handlers in this process, events for others, tokens.

use std::sync::Arc;
use std::time::SystemTime;

use actix::{AsyncContext, Context};
use proto::client::{ClientId, ErrorCode, Refusal};
use proto::envelope::Payload;
use proto::{Close, RoomName};
use tokio::time::Instant;

use super::commands::event_of;
use super::{Answered, Handled, Refreshed, Session};
use crate::app::{Frame, Job, Message};
use crate::auth::{Denied, Grant};
use crate::events::{Event, Kind, NoAck};
use crate::tail::{self, Passed};

impl Session {
    /// Hands what a client sent to its handler; back, where there is none.
    pub(super) fn handle(
        &mut self,
        id: &Option<ClientId>,
        payload: Payload,
        ctx: &mut Context<Self>,
    ) -> Option<Payload> {
        let Some(handlers) = &self.rule.handlers else {
            return Some(payload);
        };
        let job = match payload.clone() {
            Payload::Event { name, data } => Job::Event(Message::new(name, data)),
            Payload::Binary(bytes) => Job::Frame(Frame::Binary(bytes)),
            // What the client sent was text.
            Payload::Text(text) => match String::from_utf8(text.into_bytes().into()) {
                Ok(text) => Job::Frame(Frame::Text(text)),
                Err(_) => return Some(payload),
            },
        };
        if !handlers.handle(&job) {
            return Some(payload);
        }
        self.show(&payload);
        self.run_handler(id.clone(), job, ctx);
        None
    }

    /// Shows what goes to the application, to whoever watches.
    fn show(&self, payload: &Payload) {
        let tails = &self.worker.shared.tails;
        if tails.on() {
            tails.show(&Passed {
                room: Some(&self.home),
                from: Some(self.id),
                user: self.grant().user.as_ref(),
                payload: Some(payload),
                ..Passed::new(tail::Kind::Message)
            });
        }
    }

    /// Has a handler do something. Nothing more is read before it is through.
    pub(super) fn run_handler(&mut self, id: Option<ClientId>, job: Job, ctx: &mut Context<Self>) {
        let (Some(handlers), Some(socket)) = (&self.rule.handlers, &self.socket) else {
            return;
        };
        if !handlers.handle(&job) {
            return;
        }
        let event = match &job {
            Job::Event(message) => Some(message.name().to_owned()),
            _ => None,
        };
        let limit = self.shared().config.sockets.handler_timeout;
        let running = handlers.run(socket.clone(), job, limit);
        self.handling = true;
        let session = ctx.address();
        actix_rt::spawn(async move {
            let done = running.await;
            session.do_send(Handled { id, event, done });
        });
    }

    /// Has the end of the socket handled, once. It keeps its place on the node until that is through.
    pub(super) fn run_on_close(&mut self, end: Close) {
        let slot = Arc::clone(&self.slot);
        let (Some(handlers), Some(socket)) = (&self.rule.handlers, self.socket.take()) else {
            return;
        };
        let job = Job::Close(end);
        if !handlers.handle(&job) {
            return;
        }
        let limit = self.shared().config.sockets.handler_timeout;
        let running = handlers.run(socket, job, limit);
        actix_rt::spawn(async move {
            let _ = running.await;
            drop(slot);
        });
    }

    /// Sends an event to the application outside.
    pub(super) fn forward(
        &mut self,
        id: Option<ClientId>,
        payload: &Payload,
        ctx: &mut Context<Self>,
    ) {
        self.show(payload);
        let event = Event {
            kind: Kind::Message(payload),
            socket: Some(self.id),
            room: &self.home,
            user: self.grant().user.as_ref(),
        };
        let events = &self.worker.shared.events;
        let Some(id) = id else {
            if let Err(no_ack) = events.tell(&event) {
                self.refuse_no_ack(None, event_of(payload), no_ack);
            }
            return;
        };
        let answer = events.ask(&event);
        let event = event_of(payload);
        self.asks_in_flight += 1;
        let session = ctx.address();
        actix_rt::spawn(async move {
            let answer = answer.await;
            session.do_send(Answered { id, event, answer });
        });
    }

    pub(super) fn refuse_no_ack(
        &mut self,
        id: Option<ClientId>,
        event: Option<String>,
        no_ack: NoAck,
    ) {
        let (code, message) = match no_ack {
            NoAck::Failed(message) => (ErrorCode::HandlerFailed, message),
            NoAck::TooLarge => {
                let message = "more than the bus takes";
                (ErrorCode::TooLarge, message.to_owned())
            }
            NoAck::Unavailable(message) => (ErrorCode::Unavailable, message.to_owned()),
        };
        self.refuse(&Refusal {
            id,
            code,
            message,
            event,
        });
    }

    /// A client wants to go on with a fresh token.
    pub(super) fn on_refresh(
        &mut self,
        token: String,
        id: Option<ClientId>,
        ctx: &mut Context<Self>,
    ) {
        self.handling = true;
        let shared = Arc::clone(&self.worker.shared);
        let session = ctx.address();
        actix_rt::spawn(async move {
            let grant = shared.auth.refresh(&token).await;
            session.do_send(Refreshed { id, grant });
        });
    }

    pub(super) fn on_refreshed(
        &mut self,
        id: Option<ClientId>,
        grant: Result<Grant, Denied>,
        ctx: &Context<Self>,
    ) {
        let same = |grant: Grant| match grant.user == self.grant().holder {
            true => Ok(Grant {
                user: self.grant().user.clone(),
                holder: grant.user,
                within: self.grant().within.clone(),
                ..grant
            }),
            false => Err(Denied::Forbidden("the token is of another user".to_owned())),
        };
        let grant = match grant.and_then(same) {
            Ok(grant) => grant,
            Err(denied) => {
                let (code, message) = match denied {
                    Denied::Unauthorized(why) | Denied::Forbidden(why) => {
                        (ErrorCode::Forbidden, why)
                    }
                    Denied::Unavailable(why) => (ErrorCode::Unavailable, why),
                };
                return self.refuse(&Refusal {
                    id,
                    code,
                    message,
                    event: Some("unisono:refresh".to_owned()),
                });
            }
        };
        let config = &self.worker.shared.config;
        let kept = |room: &RoomName| {
            let rule = config.rules.find(room);
            rule.is_none_or(|rule| config.rules.may_enter(rule, room, &grant).is_ok())
        };
        let joined = self.rooms.iter().filter(|joined| joined.by_client);
        let joined = joined.map(|joined| &joined.room);
        // Those were let in by the token before, and are not looked at again when they are there.
        let joining = self.joins.iter().map(|(room, _)| room);
        let home = std::iter::once(&self.home);
        if !joined.chain(joining).chain(home).all(kept) {
            return self.close(&Close::WITHDRAWN);
        }
        self.expires = grant.expires(Instant::now(), &config.auth);
        let left = grant
            .expires_at
            .and_then(|at| at.duration_since(SystemTime::now()).ok());
        let data = match left {
            Some(left) => serde_json::json!({ "expires_in": left.as_secs() }),
            None => serde_json::json!({}),
        };
        self.grant = super::boxed(grant);
        self.ack(id.as_ref(), Some(data.to_string().as_bytes()));
        self.schedule(ctx);
    }
}
