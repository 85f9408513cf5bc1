//! Subjects: whatever a room is called, it is one token in a subject of its own.

use cluster::{ClusterName, Subjects};
use proto::RoomName;

/// Two names, in lines of their own.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (one, two) = text.split_once('\n').unwrap_or((&text, ""));
    let subjects = Subjects::new(ClusterName::parse("a").expect("a letter"));
    // What comes from the bus is any text.
    let _ = (Subjects::call_of(&text), Subjects::ask_of(&text));
    assert!(!Subjects::verb_of(&text).contains('.'));
    if let Ok(name) = ClusterName::parse(&text) {
        let all = Subjects::new(name).all();
        assert_eq!(all.as_str(), format!("{text}.all"));
        assert!(is_token(&text));
    }
    let names = [one, two].map(|name| RoomName::parse(name).ok());
    let rooms = names
        .each_ref()
        .map(|name| name.as_ref().map(|name| subjects.room(name)));
    for (name, subject) in names.iter().zip(&rooms) {
        let (Some(name), Some(subject)) = (name, subject) else {
            continue;
        };
        let token = subject.as_str().strip_prefix("a.room.").expect("a room's");
        assert!(is_token(token), "{token:?}");
        assert!(token.len() <= 3 * name.as_str().len());
        assert_eq!(read(token).as_deref(), Some(name.as_str().as_bytes()));
    }
    if let ([Some(one), Some(two)], [Some(first), Some(second)]) = (&names, &rooms) {
        assert_eq!(one == two, first == second);
    }
    // A path names the room that its name names.
    if let Ok(room) = RoomName::from_path(&text) {
        assert_eq!(RoomName::parse(room.as_str()).as_ref(), Ok(&room));
    }
}

/// As NATS sees it, and with nothing in it that means more than itself.
fn is_token(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-=".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

fn read(token: &str) -> Option<Vec<u8>> {
    let mut name = Vec::new();
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'=' {
            name.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
        name.push((high * 16 + low) as u8);
    }
    Some(name)
}
