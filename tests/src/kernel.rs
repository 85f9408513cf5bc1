//! What the kernel knows of TCP connections on loopback: who is connected, and what nobody has read yet.

use std::collections::BTreeSet;
use std::fs;

const TIME_WAIT: u8 = 6;

/// One end of a connection.
struct End {
    local: u16,
    remote: u16,
    state: u8,
    unread: u64,
}

/// The local ports of connections to this port: those that stand, and those that this end has closed lately.
pub fn connections_to(port: u16) -> BTreeSet<u16> {
    let ends = ends().into_iter().filter(|end| end.remote == port);
    ends.map(|end| end.local).collect()
}

/// The local ports of connections to this port that this end was the first to close.
pub fn closed_to(port: u16) -> BTreeSet<u16> {
    let ends = ends().into_iter();
    let closed = ends.filter(|end| end.remote == port && end.state == TIME_WAIT);
    closed.map(|end| end.local).collect()
}

/// Whether anything is left of the connection between these ports, at the first one's end.
pub fn is_held(local: u16, remote: u16) -> bool {
    ends()
        .iter()
        .any(|end| end.local == local && end.remote == remote)
}

/// Bytes that have come to this port and wait to be read.
pub fn unread_at(port: u16) -> u64 {
    let ends = ends().into_iter().filter(|end| end.local == port);
    ends.map(|end| end.unread).sum()
}

fn ends() -> Vec<End> {
    let table = fs::read_to_string("/proc/net/tcp").expect("a Linux");
    table.lines().skip(1).filter_map(end).collect()
}

/// `sl local_address rem_address st tx_queue:rx_queue ...`, all in hexadecimal.
fn end(line: &str) -> Option<End> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let port = |field: &str| u16::from_str_radix(field.split_once(':')?.1, 16).ok();
    Some(End {
        local: port(fields.get(1)?)?,
        remote: port(fields.get(2)?)?,
        state: u8::from_str_radix(fields.get(3)?, 16).ok()?,
        unread: u64::from_str_radix(fields.get(4)?.split_once(':')?.1, 16).ok()?,
    })
}
