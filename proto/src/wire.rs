//! Envelopes as bytes. The generated protobuf types stay in this file, so that the wire and the inner
//! values can change apart from each other.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::envelope::{
    Act, Answer, Audience, Body, Envelope, Heartbeat, Held, Occupancy, Payload, Publication,
    Request, RoomsPage, RoomsQuery, Seat, SocketInfo, SocketsPage, SocketsQuery, Status, TailPage,
    TailQuery, Target, Text, Told, TraceContext,
};
use crate::json::speaks_for_server;
use crate::{Close, EventName, NodeId, RoomName, SocketId, UserName};

#[allow(
    missing_docs,
    clippy::all,
    reason = "generated from cluster.proto, where it is documented"
)]
mod pb {
    include!(concat!(env!("OUT_DIR"), "/unisono.cluster.rs"));
}

/// The version of `cluster.proto` that is written. How the schema may change is said there.
pub const VERSION: u32 = 2;

/// The versions that are read: two of them in the release that brings a new one.
pub const VERSIONS: RangeInclusive<u32> = VERSION..=VERSION;

/// Bytes that an envelope may add to what users chose (payload, names, `except`): a bound, not a measure.
pub const OVERHEAD_BYTES: usize = 512;

/// Bytes that are not an envelope that this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not a protobuf message of this schema.
    #[error("not an envelope")]
    Malformed,
    /// Of a node with a version of the schema that is not read.
    #[error("an envelope of version {version}, this node reads {VERSIONS:?}")]
    Version {
        /// Of which.
        version: u32,
        /// Who sent it.
        origin: NodeId,
    },
    /// Well formed, but a field has a value that it cannot have.
    #[error("an envelope with a bad {0}")]
    Field(&'static str),
}

/// Writes an envelope.
pub fn encode(envelope: &Envelope) -> Bytes {
    let bytes = write_envelope(envelope).encode_to_vec();
    #[cfg(feature = "next")]
    let bytes = next::grown(bytes, &envelope.body);
    bytes.into()
}

fn write_envelope(envelope: &Envelope) -> pb::Envelope {
    pb::Envelope {
        version: VERSION,
        origin: envelope.origin.as_u64(),
        connection: envelope.connection,
        body: Some(match &envelope.body {
            Body::Heartbeat(heartbeat) => pb::envelope::Body::Heartbeat(pb::Heartbeat {
                name: heartbeat.name.clone(),
                version: heartbeat.version.clone(),
                started_at_ms: heartbeat.started_at_ms,
                sockets: heartbeat.sockets,
                rooms: heartbeat.rooms,
                draining: heartbeat.draining,
                occupancy: heartbeat.occupancy,
                number: heartbeat.number,
            }),
            Body::Goodbye => pb::envelope::Body::Goodbye(pb::Goodbye {}),
            Body::Publication(publication) => {
                pb::envelope::Body::Publication(write_publication(publication))
            }
            Body::Request(request) => pb::envelope::Body::Request(write_request(request)),
            Body::Answer(answer) => pb::envelope::Body::Answer(write_answer(answer)),
            Body::Missed(rooms) => pb::envelope::Body::Missed(pb::Missed {
                rooms: write_rooms(rooms),
            }),
            Body::Occupancy(occupancy) => pb::envelope::Body::Occupancy(write_occupancy(occupancy)),
            Body::Unreadable(audience) => pb::envelope::Body::Publication(pb::Publication {
                room: write_audience(audience),
                ..pb::Publication::default()
            }),
            Body::Unknown => return unknown(envelope.origin, envelope.connection),
        }),
    }
}

/// What is left of an envelope with a body that is not known.
fn unknown(origin: NodeId, connection: u64) -> pb::Envelope {
    pb::Envelope {
        version: VERSION,
        origin: origin.as_u64(),
        connection,
        body: None,
    }
}

/// Reads an envelope. Payloads share the buffer of `bytes`.
pub fn decode(bytes: Bytes) -> Result<Envelope, WireError> {
    let message = pb::Envelope::decode(bytes).map_err(|_| WireError::Malformed)?;
    let origin = NodeId::new(message.origin);
    let version = message.version;
    if !VERSIONS.contains(&version) {
        return Err(WireError::Version { version, origin });
    }
    if origin.as_u64() != message.origin {
        return Err(WireError::Field("origin"));
    }
    let connection = message.connection;
    let Some(body) = message.body else {
        return Ok(Envelope {
            origin,
            connection,
            body: Body::Unknown,
        });
    };
    let body = match body {
        pb::envelope::Body::Heartbeat(heartbeat) => Body::Heartbeat(Heartbeat {
            name: heartbeat.name,
            version: heartbeat.version,
            started_at_ms: heartbeat.started_at_ms,
            sockets: heartbeat.sockets,
            rooms: heartbeat.rooms,
            draining: heartbeat.draining,
            occupancy: heartbeat.occupancy,
            number: heartbeat.number,
        }),
        pb::envelope::Body::Goodbye(pb::Goodbye {}) => Body::Goodbye,
        pb::envelope::Body::Publication(publication) if !has_kind(&publication) => {
            Body::Unreadable(read_audience(publication.room)?)
        }
        pb::envelope::Body::Publication(publication) => {
            Body::Publication(read_publication(publication)?)
        }
        // Whatever it is that cannot be read, somebody waits for an answer.
        pb::envelope::Body::Request(request) => {
            Body::Request(read_request(request).unwrap_or(Request::Unknown))
        }
        pb::envelope::Body::Answer(answer) => Body::Answer(read_answer(answer)?),
        pb::envelope::Body::Missed(pb::Missed { rooms }) => Body::Missed(read_rooms(&rooms)?),
        pb::envelope::Body::Occupancy(occupancy) => Body::Occupancy(read_occupancy(&occupancy)?),
    };
    Ok(Envelope {
        origin,
        connection,
        body,
    })
}

// === publications ===

fn write_publication(publication: &Publication) -> pb::Publication {
    pb::Publication {
        room: write_audience(&publication.to),
        payload: Some(write_payload(&publication.payload)),
        from: publication.from.as_ref().map(write_id),
        except: write_ids(&publication.except),
        once: publication.once.unwrap_or(0),
        confirm: publication.confirm,
        trace: publication.trace.as_deref().map(write_trace),
    }
}

fn read_publication(message: pb::Publication) -> Result<Publication, WireError> {
    Ok(Publication {
        to: read_audience(message.room)?,
        payload: read_payload(message.payload)?,
        from: read_optional_id(message.from.as_ref())?,
        except: read_ids(&message.except)?,
        once: (message.once != 0).then_some(message.once),
        confirm: message.confirm,
        trace: read_optional_trace(message.trace.as_ref())?,
    })
}

fn has_kind(publication: &pb::Publication) -> bool {
    let payload = publication.payload.as_ref();
    payload.is_some_and(|payload| payload.kind.is_some())
}

fn write_audience(audience: &Audience) -> Option<String> {
    match audience {
        Audience::Room(room) => Some(room.to_string()),
        Audience::Everyone => None,
    }
}

fn read_audience(room: Option<String>) -> Result<Audience, WireError> {
    Ok(match room {
        Some(room) => Audience::Room(read_room(&room)?),
        None => Audience::Everyone,
    })
}

fn write_payload(payload: &Payload) -> pb::Payload {
    let kind = match payload {
        Payload::Event { name, data } => pb::payload::Kind::Event(pb::Event {
            name: name.to_string(),
            data: data.clone(),
        }),
        Payload::Text(text) => pb::payload::Kind::Text(text.as_bytes().clone()),
        Payload::Binary(bytes) => pb::payload::Kind::Binary(bytes.clone()),
    };
    pb::Payload { kind: Some(kind) }
}

fn read_payload(message: Option<pb::Payload>) -> Result<Payload, WireError> {
    let kind = message.and_then(|payload| payload.kind);
    match kind.ok_or(WireError::Field("payload"))? {
        pb::payload::Kind::Event(pb::Event { name, data }) => Ok(Payload::Event {
            // No node sends clients an event of the server's own by way of another.
            name: EventName::parse_user(&name).map_err(|_| WireError::Field("event"))?,
            // Goes into a text frame as it is.
            data: data
                .map(|data| Text::from_utf8(data).map(Text::into_bytes))
                .transpose()
                .map_err(|_| WireError::Field("data"))?,
        }),
        pb::payload::Kind::Text(text) => match Text::from_utf8(text) {
            Ok(text) if !speaks_for_server(text.as_bytes()) => Ok(Payload::Text(text)),
            _ => Err(WireError::Field("text")),
        },
        pb::payload::Kind::Binary(bytes) => Ok(Payload::Binary(bytes)),
    }
}

fn write_occupancy(occupancy: &Occupancy) -> pb::Occupancy {
    let mut message = pb::Occupancy {
        version: occupancy.version,
        ..pb::Occupancy::default()
    };
    let (held, begun) = match &occupancy.told {
        Told::Begun(held) => (std::slice::from_ref(held), true),
        Told::Ended(held) => (std::slice::from_ref(held), false),
        Told::Snapshot { held, part, more } => {
            message.snapshot = true;
            message.part = *part;
            message.more = *more;
            (&held[..], true)
        }
    };
    for held in held {
        match (held, begun) {
            (Held::Room(room), true) => message.occupied.push(room.to_string()),
            (Held::Room(room), false) => message.vacated.push(room.to_string()),
            (Held::Member(seat), true) => message.joined.push(write_seat(seat)),
            (Held::Member(seat), false) => message.left.push(write_seat(seat)),
            (Held::Socket(seat), true) => message.opened.push(write_seat(seat)),
            (Held::Socket(seat), false) => message.closed.push(write_seat(seat)),
        }
    }
    message
}

fn read_occupancy(message: &pb::Occupancy) -> Result<Occupancy, WireError> {
    let held = |rooms: &[String], members: &[pb::Seat], sockets: &[pb::Seat]| {
        let rooms = read_rooms(rooms)?.into_iter().map(Held::Room);
        let members = read_seats(members)?.into_iter().map(Held::Member);
        let sockets = read_seats(sockets)?.into_iter().map(Held::Socket);
        Ok(members.chain(sockets).chain(rooms).collect::<Vec<_>>())
    };
    let mut begun = held(&message.occupied, &message.joined, &message.opened)?;
    let mut ended = held(&message.vacated, &message.left, &message.closed)?;
    let told = if message.snapshot && ended.is_empty() {
        Told::Snapshot {
            held: begun,
            part: message.part,
            more: message.more,
        }
    } else {
        match (begun.pop(), ended.pop()) {
            (Some(one), None) if begun.is_empty() => Told::Begun(one),
            (None, Some(one)) if ended.is_empty() => Told::Ended(one),
            _ => return Err(WireError::Field("occupancy")),
        }
    };
    let version = message.version;
    Ok(Occupancy { version, told })
}

fn write_seat(seat: &Seat) -> pb::Seat {
    pb::Seat {
        socket: write_id(&seat.socket),
        room: seat.room.to_string(),
        user: seat.user.as_ref().map(UserName::to_string),
    }
}

fn read_seats(seats: &[pb::Seat]) -> Result<Vec<Seat>, WireError> {
    let seat = |seat: &pb::Seat| {
        Ok(Seat {
            socket: read_id(&seat.socket)?,
            room: read_room(&seat.room)?,
            user: read_optional_user(seat.user.as_deref())?,
        })
    };
    seats.iter().map(seat).collect()
}

// === requests ===

fn write_request(request: &Request) -> pb::Request {
    use pb::request::Kind;
    let kind = match request {
        Request::Probe => Kind::Probe(pb::Probe {}),
        Request::Occupancy => Kind::Occupancy(pb::Probe {}),
        Request::Act(target, act) => Kind::Act(write_act(target, act)),
        Request::Socket(id) => Kind::Socket(write_id(id)),
        Request::Rooms(query) => Kind::Rooms(pb::RoomsQuery {
            prefix: query.prefix.clone(),
            after: query.after.clone(),
            limit: query.limit as u32,
        }),
        Request::Sockets(query) => Kind::Sockets(pb::SocketsQuery {
            room: query.room.to_string(),
            after: query.after.as_ref().map(write_id),
            limit: query.limit as u32,
        }),
        Request::NotSubscribed(room) => Kind::NotSubscribed(room.to_string()),
        Request::Drain => Kind::Drain(pb::Probe {}),
        Request::Tail(query) => Kind::Tail(pb::TailQuery {
            id: query.id,
            filters: query.filters.clone(),
            data_bytes: query.data_bytes as u32,
            wait_ms: query.wait.as_millis() as u32,
        }),
        Request::Unknown => return pb::Request { kind: None },
    };
    pb::Request { kind: Some(kind) }
}

fn read_request(message: pb::Request) -> Result<Request, WireError> {
    use pb::request::Kind;
    Ok(match message.kind.ok_or(WireError::Field("request"))? {
        Kind::Probe(pb::Probe {}) => Request::Probe,
        Kind::Occupancy(pb::Probe {}) => Request::Occupancy,
        Kind::Act(message) => read_act(message)?,
        Kind::Socket(id) => Request::Socket(read_id(&id)?),
        Kind::Rooms(query) => Request::Rooms(RoomsQuery {
            prefix: query.prefix,
            after: query.after,
            limit: query.limit as usize,
        }),
        Kind::Sockets(query) => Request::Sockets(SocketsQuery {
            room: read_room(&query.room)?,
            after: read_optional_id(query.after.as_ref())?,
            limit: query.limit as usize,
        }),
        Kind::NotSubscribed(room) => Request::NotSubscribed(read_room(&room)?),
        Kind::Drain(pb::Probe {}) => Request::Drain,
        Kind::Tail(query) => Request::Tail(TailQuery {
            id: query.id,
            filters: query.filters,
            data_bytes: query.data_bytes as usize,
            wait: Duration::from_millis(query.wait_ms.into()),
        }),
    })
}

fn write_act(target: &Target, act: &Act) -> pb::Act {
    let (to, room, user) = match target {
        Target::Sockets(ids) => (write_ids(ids), None, None),
        Target::Room(room) => (Vec::new(), Some(room.to_string()), None),
        Target::User(user) => (Vec::new(), None, Some(user.to_string())),
    };
    let act = match act {
        Act::Emit {
            payload,
            from,
            trace,
        } => pb::act::Act::Emit(pb::Emit {
            payload: Some(write_payload(payload)),
            from: from.as_ref().map(write_id),
            trace: trace.as_deref().map(write_trace),
        }),
        Act::Join(room) => pb::act::Act::Join(room.to_string()),
        Act::Leave(room) => pb::act::Act::Leave(room.to_string()),
        Act::Disconnect { close, after_ms } => pb::act::Act::Disconnect(pb::Disconnect {
            code: close.code.into(),
            reason: close.reason.to_string(),
            after_ms: *after_ms,
        }),
    };
    let act = Some(act);
    pb::Act {
        to,
        room,
        user,
        act,
    }
}

fn read_act(message: pb::Act) -> Result<Request, WireError> {
    let target = match (message.room, message.user) {
        (Some(room), None) => Target::Room(read_room(&room)?),
        (None, Some(user)) => Target::User(read_user(&user)?),
        (None, None) => Target::Sockets(read_ids(&message.to)?),
        (Some(_), Some(_)) => return Err(WireError::Field("target")),
    };
    let act = match message.act.ok_or(WireError::Field("act"))? {
        pb::act::Act::Emit(emit) => Act::Emit {
            payload: read_payload(emit.payload)?,
            from: read_optional_id(emit.from.as_ref())?,
            trace: read_optional_trace(emit.trace.as_ref())?,
        },
        pb::act::Act::Join(room) => Act::Join(read_room(&room)?),
        pb::act::Act::Leave(room) => Act::Leave(read_room(&room)?),
        pb::act::Act::Disconnect(disconnect) => Act::Disconnect {
            close: u16::try_from(disconnect.code)
                .ok()
                .and_then(|code| Close::by_application(code, disconnect.reason).ok())
                .ok_or(WireError::Field("close"))?,
            after_ms: disconnect.after_ms,
        },
    };
    Ok(Request::Act(target, act))
}

// === answers ===

fn write_answer(answer: &Answer) -> pb::Answer {
    use pb::answer::Kind;
    let kind = match answer {
        Answer::Pong => Kind::Pong(pb::Pong {}),
        Answer::Statuses(statuses) => Kind::Statuses(pb::Statuses {
            statuses: statuses
                .iter()
                .map(|(id, status)| pb::SocketStatus {
                    id: write_id(id),
                    status: write_status(*status),
                })
                .collect(),
        }),
        Answer::Count(count) => Kind::Count(*count),
        Answer::Socket(socket) => Kind::Socket(pb::MaybeSocket {
            socket: socket.as_ref().map(|socket| pb::Socket {
                id: write_id(&socket.id),
                rooms: write_rooms(&socket.rooms),
                user: socket.user.as_ref().map(UserName::to_string),
                connected_at_ms: socket.connected_at_ms,
                remote_addr: socket.remote_addr.clone(),
                queued_bytes: socket.queued_bytes,
            }),
        }),
        Answer::Rooms(page) => Kind::Rooms(pb::Rooms {
            rooms: page
                .rooms
                .iter()
                .map(|(name, sockets)| pb::Room {
                    name: name.to_string(),
                    sockets: *sockets,
                })
                .collect(),
            more: page.more,
        }),
        Answer::Sockets(page) => Kind::Sockets(pb::Sockets {
            sockets: page
                .sockets
                .iter()
                .map(|(id, user)| pb::Member {
                    id: write_id(id),
                    user: user.as_ref().map(UserName::to_string),
                })
                .collect(),
            count: page.count,
            more: page.more,
        }),
        Answer::Tail(page) => Kind::Tail(pb::TailPage {
            lines: page.lines.clone(),
            seen: page.seen,
        }),
        Answer::Unsupported => Kind::Unsupported(pb::Unsupported {}),
    };
    pb::Answer { kind: Some(kind) }
}

fn read_answer(message: pb::Answer) -> Result<Answer, WireError> {
    use pb::answer::Kind;
    let Some(kind) = message.kind else {
        return Ok(Answer::Unsupported);
    };
    Ok(match kind {
        Kind::Unsupported(pb::Unsupported {}) => Answer::Unsupported,
        Kind::Pong(pb::Pong {}) => Answer::Pong,
        Kind::Statuses(pb::Statuses { statuses }) => Answer::Statuses(
            statuses
                .into_iter()
                .map(|status| Ok((read_id(&status.id)?, read_status(status.status))))
                .collect::<Result<_, WireError>>()?,
        ),
        Kind::Count(count) => Answer::Count(count),
        Kind::Socket(pb::MaybeSocket { socket }) => Answer::Socket(
            socket
                .map(|socket| {
                    Ok(SocketInfo {
                        id: read_id(&socket.id)?,
                        rooms: read_rooms(&socket.rooms)?,
                        user: read_optional_user(socket.user.as_deref())?,
                        connected_at_ms: socket.connected_at_ms,
                        remote_addr: socket.remote_addr,
                        queued_bytes: socket.queued_bytes,
                    })
                })
                .transpose()?,
        ),
        Kind::Rooms(pb::Rooms { rooms, more }) => Answer::Rooms(RoomsPage {
            rooms: rooms
                .into_iter()
                .map(|room| Ok((read_room(&room.name)?, room.sockets)))
                .collect::<Result<_, WireError>>()?,
            more,
        }),
        Kind::Sockets(page) => Answer::Sockets(SocketsPage {
            sockets: page
                .sockets
                .into_iter()
                .map(|member| {
                    let user = read_optional_user(member.user.as_deref())?;
                    Ok((read_id(&member.id)?, user))
                })
                .collect::<Result<_, WireError>>()?,
            count: page.count,
            more: page.more,
        }),
        Kind::Tail(page) => Answer::Tail(TailPage {
            lines: page.lines,
            seen: page.seen,
        }),
    })
}

fn write_status(status: Status) -> u32 {
    match status {
        Status::Delivered => 1,
        Status::NotFound => 2,
        Status::NodeGone => 3,
        Status::Dropped => 4,
        Status::Timeout => 5,
        Status::Invalid => 6,
    }
}

fn read_status(number: u32) -> Status {
    match number {
        1 => Status::Delivered,
        2 => Status::NotFound,
        3 => Status::NodeGone,
        4 => Status::Dropped,
        6 => Status::Invalid,
        // 5, and what a later version tells apart: it may have arrived or not.
        _ => Status::Timeout,
    }
}

// === ids and names ===

fn write_id(id: &SocketId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn write_ids(ids: &[SocketId]) -> Vec<Bytes> {
    ids.iter().map(write_id).collect()
}

fn read_id(bytes: &Bytes) -> Result<SocketId, WireError> {
    SocketId::from_bytes(bytes).map_err(|_| WireError::Field("socket id"))
}

fn read_ids(ids: &[Bytes]) -> Result<Vec<SocketId>, WireError> {
    ids.iter().map(read_id).collect()
}

fn read_optional_id(id: Option<&Bytes>) -> Result<Option<SocketId>, WireError> {
    id.map(read_id).transpose()
}

fn write_trace(trace: &TraceContext) -> Bytes {
    let TraceContext { trace_id, span_id } = trace;
    [&trace_id[..], span_id].concat().into()
}

fn read_optional_trace(bytes: Option<&Bytes>) -> Result<Option<Box<TraceContext>>, WireError> {
    let Some(bytes) = bytes else {
        return Ok(None);
    };
    let ids = bytes.split_first_chunk().and_then(|(trace_id, rest)| {
        let (trace_id, span_id) = (*trace_id, rest.try_into().ok()?);
        Some(TraceContext { trace_id, span_id })
    });
    let trace = ids.ok_or(WireError::Field("trace"))?;
    Ok(Some(Box::new(trace)))
}

fn read_room(name: &str) -> Result<RoomName, WireError> {
    RoomName::parse(name).map_err(|_| WireError::Field("room"))
}

fn write_rooms(rooms: &[RoomName]) -> Vec<String> {
    rooms.iter().map(RoomName::to_string).collect()
}

fn read_rooms(names: &[String]) -> Result<Vec<RoomName>, WireError> {
    names.iter().map(|name| read_room(name)).collect()
}

fn read_user(name: &str) -> Result<UserName, WireError> {
    UserName::parse(name).map_err(|_| WireError::Field("user"))
}

fn read_optional_user(name: Option<&str>) -> Result<Option<UserName>, WireError> {
    name.map(read_user).transpose()
}

// === as the next minor release ===

/// For the tests of mixed versions.
#[cfg(feature = "next")]
mod next {
    use prost::Message;

    use crate::envelope::{Answer, Body, Payload, Request};

    #[allow(missing_docs, clippy::all, reason = "generated from next.proto")]
    mod pb {
        include!(concat!(env!("OUT_DIR"), "/unisono.next.rs"));
    }

    /// The envelope with what today's nodes do not know.
    pub fn grown(mut envelope: Vec<u8>, body: &Body) -> Vec<u8> {
        let text = || "new".to_owned();
        let novelty = || pb::Novelty { text: text() };
        let body = match body {
            Body::Heartbeat(_) => Some(pb::envelope::Body::Heartbeat(pb::Heartbeat {
                memory_bytes: 1,
            })),
            Body::Publication(publication) => {
                let event = matches!(publication.payload, Payload::Event { .. });
                let event = event.then(|| pb::Event { language: text() });
                let payload = event.map(|event| pb::Payload { event: Some(event) });
                let trace = text();
                Some(pb::envelope::Body::Publication(pb::Publication {
                    payload,
                    trace,
                }))
            }
            Body::Request(request) => {
                let unknown = matches!(request, Request::Unknown);
                let kind = unknown.then(|| pb::request::Kind::Novelty(novelty()));
                let trace = text();
                Some(pb::envelope::Body::Request(pb::Request { kind, trace }))
            }
            Body::Answer(answer) => {
                let trace = text();
                let known = !matches!(answer, Answer::Unsupported);
                known.then(|| pb::envelope::Body::Answer(pb::Answer { trace }))
            }
            Body::Unknown => Some(pb::envelope::Body::Novelty(novelty())),
            _ => None,
        };
        let trace = text();
        envelope.extend(pb::Envelope { body, trace }.encode_to_vec());
        envelope
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn socket() -> impl Strategy<Value = SocketId> {
        (any::<u64>(), 0..crate::id::WORKERS_MAX, any::<u64>())
            .prop_map(|(node, worker, random)| SocketId::new(NodeId::new(node), worker, random))
    }

    fn room() -> impl Strategy<Value = RoomName> {
        "\\PC{1,40}".prop_map(|name| RoomName::parse(&name).unwrap())
    }

    fn user() -> impl Strategy<Value = UserName> {
        "\\PC{1,40}".prop_map(|name| UserName::parse(&name).unwrap())
    }

    fn payload() -> impl Strategy<Value = Payload> {
        prop_oneof![
            ("\\PC{1,40}", proptest::option::of("\\PC{0,40}")).prop_map(|(name, data)| {
                Payload::Event {
                    name: EventName::parse(&name).unwrap(),
                    data: data.map(Bytes::from),
                }
            }),
            "\\PC{0,40}".prop_map(|text| Payload::Text(text.into())),
            proptest::collection::vec(any::<u8>(), 0..64)
                .prop_map(|bytes| Payload::Binary(bytes.into())),
        ]
    }

    fn trace() -> impl Strategy<Value = Option<Box<TraceContext>>> {
        let ids = any::<([u8; 16], [u8; 8])>()
            .prop_map(|(trace_id, span_id)| Box::new(TraceContext { trace_id, span_id }));
        proptest::option::of(ids)
    }

    fn sockets() -> impl Strategy<Value = Vec<SocketId>> {
        proptest::collection::vec(socket(), 0..4)
    }

    fn publication() -> impl Strategy<Value = Body> {
        let to = prop_oneof![room().prop_map(Audience::Room), Just(Audience::Everyone)];
        let once = proptest::option::of(1..u64::MAX);
        let from = proptest::option::of(socket());
        (to, payload(), from, sockets(), once, any::<bool>(), trace()).prop_map(
            |(to, payload, from, except, once, confirm, trace)| {
                Body::Publication(Publication {
                    to,
                    payload,
                    from,
                    except,
                    once,
                    confirm,
                    trace,
                })
            },
        )
    }

    fn request() -> impl Strategy<Value = Body> {
        let target = prop_oneof![
            sockets().prop_map(Target::Sockets),
            room().prop_map(Target::Room),
            user().prop_map(Target::User)
        ];
        let close = (4000..4100u16, any::<u64>()).prop_map(|(code, after_ms)| Act::Disconnect {
            close: Close::by_application(code, "bye".into()).unwrap(),
            after_ms,
        });
        let act = prop_oneof![
            (payload(), proptest::option::of(socket()), trace()).prop_map(
                |(payload, from, trace)| Act::Emit {
                    payload,
                    from,
                    trace,
                }
            ),
            room().prop_map(Act::Join),
            room().prop_map(Act::Leave),
            close
        ];
        let after = proptest::option::of(socket());
        prop_oneof![
            Just(Request::Probe),
            Just(Request::Occupancy),
            (target, act).prop_map(|(target, act)| Request::Act(target, act)),
            socket().prop_map(Request::Socket),
            ("\\PC{0,9}", "\\PC{0,9}", 0..1000usize).prop_map(|(prefix, after, limit)| {
                Request::Rooms(RoomsQuery {
                    prefix,
                    after,
                    limit,
                })
            }),
            (room(), after, 0..1000usize).prop_map(|(room, after, limit)| {
                Request::Sockets(SocketsQuery { room, after, limit })
            }),
            room().prop_map(Request::NotSubscribed),
            Just(Request::Drain),
            (any::<u64>(), "\\PC{0,9}", 0..9999u64).prop_map(|(id, filter, ms)| {
                Request::Tail(TailQuery {
                    id,
                    filters: vec![filter],
                    data_bytes: 9,
                    wait: Duration::from_millis(ms),
                })
            }),
            Just(Request::Unknown),
        ]
        .prop_map(Body::Request)
    }

    fn answer() -> impl Strategy<Value = Body> {
        let info = (socket(), proptest::collection::vec(room(), 0..3)).prop_map(|(id, rooms)| {
            SocketInfo {
                id,
                rooms,
                user: Some(UserName::parse("u").unwrap()),
                connected_at_ms: 5,
                remote_addr: "127.0.0.1:9".into(),
                queued_bytes: 7,
            }
        });
        prop_oneof![
            Just(Answer::Pong),
            any::<u64>().prop_map(Answer::Count),
            (socket(), 1..7u32)
                .prop_map(|(id, status)| { Answer::Statuses(vec![(id, read_status(status))]) }),
            proptest::option::of(info).prop_map(Answer::Socket),
            (room(), any::<u64>(), any::<bool>()).prop_map(|(room, sockets, more)| {
                Answer::Rooms(RoomsPage {
                    rooms: vec![(room, sockets)],
                    more,
                })
            }),
            (socket(), any::<u64>(), any::<bool>()).prop_map(|(id, count, more)| {
                Answer::Sockets(SocketsPage {
                    sockets: vec![(id, None)],
                    count,
                    more,
                })
            }),
            ("\\PC{0,9}", any::<u64>()).prop_map(|(line, seen)| {
                Answer::Tail(TailPage {
                    lines: vec![line.into()],
                    seen,
                })
            }),
            Just(Answer::Unsupported),
        ]
        .prop_map(Body::Answer)
    }

    fn held() -> impl Strategy<Value = Held> {
        let seat = || {
            (socket(), room()).prop_map(|(socket, room)| Seat {
                socket,
                room,
                user: Some(UserName::parse("alice").unwrap()),
            })
        };
        prop_oneof![
            seat().prop_map(Held::Member),
            seat().prop_map(Held::Socket),
            room().prop_map(Held::Room),
        ]
    }

    fn told() -> impl Strategy<Value = Told> {
        let all = proptest::collection::vec(held(), 0..3);
        prop_oneof![
            held().prop_map(Told::Begun),
            held().prop_map(Told::Ended),
            (all, any::<u32>(), any::<bool>()).prop_map(|(mut held, part, more)| {
                // Kinds travel apart.
                held.sort_by_key(|one| match one {
                    Held::Member(_) => 0,
                    Held::Socket(_) => 1,
                    Held::Room(_) => 2,
                });
                Told::Snapshot { held, part, more }
            })
        ]
    }

    fn body() -> impl Strategy<Value = Body> {
        prop_oneof![
            (any::<u64>(), any::<bool>()).prop_map(|(number, draining)| {
                Body::Heartbeat(Heartbeat {
                    name: "node-0".into(),
                    version: "1.2.3".into(),
                    started_at_ms: number,
                    sockets: number,
                    rooms: number,
                    draining,
                    occupancy: 3,
                    number: 4,
                })
            }),
            Just(Body::Goodbye),
            proptest::collection::vec(room(), 0..3).prop_map(Body::Missed),
            (any::<u64>(), told())
                .prop_map(|(version, told)| Body::Occupancy(Occupancy { version, told })),
            publication(),
            request(),
            answer(),
            Just(Body::Unknown),
            Just(Body::Unreadable(Audience::Everyone)),
            room().prop_map(|room| Body::Unreadable(Audience::Room(room))),
        ]
    }

    proptest! {
        #[test]
        fn every_envelope_comes_back(node: u64, connection: u64, body in body()) {
            let envelope = Envelope { origin: NodeId::new(node), connection, body };
            prop_assert_eq!(decode(encode(&envelope)), Ok(envelope));
        }

        #[test]
        fn the_overhead_has_a_bound(node: u64, body in publication()) {
            let Body::Publication(publication) = &body else { unreachable!() };
            let chosen = publication.payload.len() + 20 * publication.except.len() + 200;
            let connection = u64::MAX;
            let bytes = encode(&Envelope { origin: NodeId::new(node), connection, body: body.clone() });
            prop_assert!(bytes.len() <= chosen + OVERHEAD_BYTES);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(bytes.into());
        }
    }

    /// Reads an envelope with that body, behind which stands a field that nobody knows.
    fn read(body: pb::envelope::Body) -> Result<Body, WireError> {
        let envelope = pb::Envelope {
            version: VERSION,
            origin: 1,
            connection: 1,
            body: Some(body),
        };
        let mut bytes = envelope.encode_to_vec();
        // Field 1000, a text.
        bytes.extend(b"\xc2\x3e\x03new");
        decode(bytes.into()).map(|envelope| envelope.body)
    }

    #[test]
    fn what_a_later_version_adds_is_not_garbage() {
        use pb::envelope::Body as Wire;
        let unknown_payload = || Some(pb::Payload { kind: None });
        let request = |kind| read(Wire::Request(pb::Request { kind }));
        let not_known = Ok(Body::Request(Request::Unknown));
        assert_eq!(read(Wire::Goodbye(pb::Goodbye {})), Ok(Body::Goodbye));
        assert_eq!(request(None), not_known);
        let act = |act| request(Some(pb::request::Kind::Act(act)));
        assert_eq!(act(pb::Act::default()), not_known, "an act");
        let emit = pb::act::Act::Emit(pb::Emit {
            payload: unknown_payload(),
            from: None,
            trace: None,
        });
        let emit = pb::Act {
            act: Some(emit),
            ..pb::Act::default()
        };
        assert_eq!(act(emit), not_known, "a payload");
        let answer = read(Wire::Answer(pb::Answer { kind: None }));
        assert_eq!(answer, Ok(Body::Answer(Answer::Unsupported)));
        let publication = read(Wire::Publication(pb::Publication {
            room: Some("r".to_owned()),
            payload: unknown_payload(),
            ..pb::Publication::default()
        }));
        let room = RoomName::parse("r").unwrap();
        assert_eq!(publication, Ok(Body::Unreadable(Audience::Room(room))));
        assert_eq!(read_status(7), Status::Timeout);
        let bytes = unknown(NodeId::new(1), 1).encode_to_vec();
        assert_eq!(decode(bytes.into()).unwrap().body, Body::Unknown);
    }

    #[test]
    fn no_payload_speaks_for_the_server() {
        let event = |name: &str| {
            read_payload(Some(pb::Payload {
                kind: Some(pb::payload::Kind::Event(pb::Event {
                    name: name.to_owned(),
                    data: None,
                })),
            }))
        };
        let text = |text: &'static str| {
            read_payload(Some(pb::Payload {
                kind: Some(pb::payload::Kind::Text(Bytes::from_static(text.as_bytes()))),
            }))
        };
        assert_eq!(event("unisono:gap"), Err(WireError::Field("event")));
        assert!(event("unisono").is_ok());
        let gap = r#"{"event":"unisono:gap"}"#;
        assert_eq!(text(gap), Err(WireError::Field("text")));
        assert!(text(r#"{"event":"mine","data":"unisono:gap"}"#).is_ok());
    }

    #[test]
    fn a_trace_has_two_ids_of_their_length() {
        for (bytes, fine) in [(24, true), (23, false), (25, false), (0, false)] {
            let trace = Bytes::from(vec![1; bytes]);
            let read = read_optional_trace(Some(&trace));
            assert_eq!(read.is_ok(), fine, "{bytes}");
        }
    }

    #[test]
    fn another_version_is_told_from_garbage() {
        let other = pb::Envelope {
            version: VERSION + 1,
            ..Default::default()
        };
        let bytes = other.encode_to_vec().into();
        let error = WireError::Version {
            version: VERSION + 1,
            origin: NodeId::new(0),
        };
        assert_eq!(decode(bytes), Err(error));
        let garbage = Bytes::from_static(b"\xff\xff\xff");
        assert_eq!(decode(garbage), Err(WireError::Malformed));
    }
}
