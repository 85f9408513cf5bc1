//! Parts of a node that fail when they are told to: for the tests of what comes of that. Only with the feature
//! `failures`, which no program that is shipped has.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use actix::{Handler, Message};
use proto::{RoomName, SocketId};

use crate::node::Node;
use crate::room::Room;
use crate::session::{EventStream, Session};
use crate::unisono::Unisono;
use crate::vital::Vital;

/// What fails.
#[derive(Clone, Debug)]
pub enum Part {
    /// The actor of a socket of this node.
    Session(SocketId),
    /// The actor of a room, on the worker of that socket.
    Room(SocketId, RoomName),
    /// The actor that knows the sockets of a worker: that of this one.
    Registry(SocketId),
    /// The one actor of the node.
    Node,
    /// The bus's thread, at the next heartbeat.
    Bus,
    /// A task of the outside thread that the node cannot do without.
    Outside,
}

/// How it fails.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    /// It panics.
    Panic,
    /// It holds up its thread for that long.
    Block(Duration),
}

/// An actor is to fail.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Fail {
    pub(crate) part: Part,
    pub(crate) failure: Failure,
}

static ON_THE_BUS: Mutex<Option<Failure>> = Mutex::new(None);

/// Makes a part of this node fail.
pub fn fail(unisono: &Unisono, part: Part, failure: Failure) {
    let fail = Fail { part, failure };
    match fail.part {
        Part::Session(id) | Part::Room(id, _) | Part::Registry(id) => {
            let registry = unisono.workers.get(id.worker());
            registry.expect("a socket of this node").do_send(fail);
        }
        Part::Node => unisono.node.do_send(fail),
        Part::Bus => {
            let mut on_the_bus = ON_THE_BUS.lock().unwrap_or_else(PoisonError::into_inner);
            *on_the_bus = Some(failure);
        }
        Part::Outside => {
            unisono.shared.outside.spawn(async move {
                let _vital = Vital("outside");
                failure.happen();
            });
        }
    }
}

/// Called where a heartbeat is put together.
pub(crate) fn on_the_bus() {
    let failure = ON_THE_BUS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(failure) = failure {
        failure.happen();
    }
}

impl Failure {
    pub(crate) fn happen(self) {
        match self {
            Self::Panic => panic!("a panic that was asked for"),
            Self::Block(time) => std::thread::sleep(time),
        }
    }
}

macro_rules! fails {
    ($($actor:ty),*) => {$(
        impl Handler<Fail> for $actor {
            type Result = ();

            fn handle(&mut self, fail: Fail, _: &mut Self::Context) {
                fail.failure.happen();
            }
        }
    )*};
}

fails!(Session, EventStream, Room, Node);
