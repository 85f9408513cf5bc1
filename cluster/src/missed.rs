//! Which publications of this node other nodes may have missed. Pure.
//!
//! NATS does not say what it took. What was written before a question that the server answered has
//! arrived there; whatever was written later is unsure until the next answer, and lost when the
//! connection is. So is what was written before the question answered last: the server may have been on its way
//! with it to another server, and be gone with it.

use std::collections::HashSet;

use proto::{Audience, RoomName};

#[derive(Debug, Default)]
pub(crate) struct Missed {
    lost: Rooms,
    /// Written since the last question.
    unasked: Rooms,
    /// Written before the question that waits for its answer.
    asked: Option<(u64, Rooms)>,
    /// Written before the question that was answered last, and after the one before.
    confirmed: Rooms,
}

/// A set of rooms that becomes "any room" when it grows too large.
#[derive(Debug, Default)]
struct Rooms {
    names: HashSet<RoomName>,
    any: bool,
}

/// Rooms to remember by name.
const NAMES_MAX: usize = 1_000;

impl Missed {
    /// A publication is being written.
    pub(crate) fn sent(&mut self, to: &Audience) {
        self.unasked.add(to);
    }

    /// A publication cannot be written.
    pub(crate) fn lose(&mut self, to: &Audience) {
        self.lost.add(to);
    }

    /// The server is being asked for a sign of life. Numbers grow.
    pub(crate) fn ask(&mut self, number: u64) {
        if self.asked.is_none() {
            self.asked = Some((number, std::mem::take(&mut self.unasked)));
        }
    }

    /// The server answered that question, and so has taken what came before it.
    pub(crate) fn confirm(&mut self, number: u64) {
        if let Some((_, rooms)) = self.asked.take_if(|(asked, _)| *asked <= number) {
            self.confirmed = rooms;
        }
    }

    /// The connection is lost.
    pub(crate) fn lose_unsure(&mut self) {
        for rooms in [&mut self.unasked, &mut self.confirmed] {
            self.lost.extend(std::mem::take(rooms));
        }
        if let Some((_, asked)) = self.asked.take() {
            self.lost.extend(asked);
        }
    }

    /// What was lost since the last call; no names mean any room.
    pub(crate) fn take_lost(&mut self) -> Option<Vec<RoomName>> {
        let lost = std::mem::take(&mut self.lost);
        match lost {
            Rooms { any: true, .. } => Some(Vec::new()),
            Rooms { names, .. } if names.is_empty() => None,
            Rooms { names, .. } => Some(names.into_iter().collect()),
        }
    }
}

impl Rooms {
    fn add(&mut self, to: &Audience) {
        match to {
            _ if self.any => {}
            Audience::Room(room) if self.names.len() < NAMES_MAX => {
                if !self.names.contains(room) {
                    self.names.insert(room.clone());
                }
            }
            Audience::Room(_) | Audience::Everyone => {
                self.any = true;
                self.names = HashSet::new();
            }
        }
    }

    fn extend(&mut self, other: Self) {
        if other.any {
            self.add(&Audience::Everyone);
        }
        for room in other.names {
            self.add(&Audience::Room(room));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(name: &str) -> Audience {
        Audience::Room(RoomName::parse(name).unwrap())
    }

    fn lost(missed: &mut Missed) -> Option<Vec<String>> {
        let mut names: Vec<_> = missed
            .take_lost()?
            .iter()
            .map(RoomName::to_string)
            .collect();
        names.sort();
        Some(names)
    }

    #[test]
    fn what_the_server_confirmed_is_not_lost() {
        let mut missed = Missed::default();
        missed.sent(&to("long before"));
        missed.ask(4);
        missed.confirm(4);
        missed.sent(&to("before"));
        missed.ask(5);
        missed.sent(&to("after"));
        missed.confirm(5);
        missed.lose_unsure();
        let names = ["after", "before"].map(str::to_owned).to_vec();
        assert_eq!(lost(&mut missed), Some(names));
        assert_eq!(lost(&mut missed), None);
    }

    #[test]
    fn an_unanswered_question_confirms_nothing() {
        let mut missed = Missed::default();
        missed.sent(&to("a"));
        missed.ask(5);
        missed.sent(&to("b"));
        missed.ask(6);
        // Late, from before the connection that is now.
        missed.confirm(4);
        missed.lose(&to("c"));
        missed.lose_unsure();
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(lost(&mut missed), Some(names));
    }

    #[test]
    fn many_rooms_are_any_room() {
        let mut missed = Missed::default();
        for n in 0..=NAMES_MAX {
            missed.lose(&to(&n.to_string()));
        }
        assert_eq!(lost(&mut missed), Some(Vec::new()));
        missed.lose(&Audience::Everyone);
        assert_eq!(lost(&mut missed), Some(Vec::new()));
    }
}
