//! Places for the rooms of a node. Whoever brings a room that has no member on the node yet takes a place for it
//! first, whichever door it comes by, and there are so many and no more.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proto::RoomName;
use tokio::time::Instant;
use tracing::warn;

use crate::meters;
use crate::registry::give_back;
use crate::seldom::Seldom;

/// The rooms with members on this node, or with somebody on the way in. Workers and handshakes share it: a room is one,
/// however many of them have members of it.
pub struct Places {
    /// How many hold the place of a room; never zero.
    shards: [Mutex<HashMap<RoomName, u32>>; SHARDS],
    hasher: RandomState,
    taken: AtomicUsize,
    max: usize,
    refusals: Seldom,
}

/// The place of the room that a handshake asks for, from the yes until its socket is a member.
pub struct Place {
    places: Arc<Places>,
    room: RoomName,
}

/// All places are taken.
#[derive(Debug)]
pub struct Full;

/// Tables, so that workers seldom wait for each other, and none for long while one grows.
const SHARDS: usize = 32;

impl Places {
    /// Places for so many rooms.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            taken: AtomicUsize::new(0),
            max,
            refusals: Seldom::new(),
        })
    }

    /// One more holds the place of that room. A refusal is counted and, now and then, in the log.
    pub fn enter(&self, room: &RoomName) -> Result<(), Full> {
        let entered = self.try_enter(room);
        if entered.is_err() {
            meters::room_refused();
            if let Some(refused) = self.refusals.add(Instant::now(), 1) {
                let rooms_max = self.max;
                warn!(
                    refused,
                    rooms_max,
                    "the node has as many rooms as sockets.rooms_max: new ones are refused"
                );
            }
        }
        entered
    }

    /// The same, until the place is dropped.
    pub fn take(self: &Arc<Self>, room: &RoomName) -> Result<Place, Full> {
        self.enter(room)?;
        Ok(Place {
            places: Arc::clone(self),
            room: room.clone(),
        })
    }

    /// One holds it no longer.
    pub fn leave(&self, room: &RoomName) {
        let mut shard = self.shard(room);
        let Some(holders) = shard.get_mut(room) else {
            return;
        };
        *holders -= 1;
        if *holders == 0 {
            shard.remove(room);
            give_back(&mut shard);
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn try_enter(&self, room: &RoomName) -> Result<(), Full> {
        match self.shard(room).entry(room.clone()) {
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(entry) => {
                let one_more = |taken| (taken < self.max).then_some(taken + 1);
                self.taken
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                    .map_err(|_| Full)?;
                entry.insert(1);
            }
        }
        Ok(())
    }

    fn shard(&self, room: &RoomName) -> MutexGuard<'_, HashMap<RoomName, u32>> {
        let hash = self.hasher.hash_one(room.as_str());
        let shard = &self.shards[hash as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.leave(&self.room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomName {
        RoomName::parse(name).unwrap()
    }

    #[test]
    fn places_are_of_rooms_and_not_of_those_who_hold_them() {
        let places = Places::new(2);
        let (a, b, c) = (room("a"), room("b"), room("c"));
        places.enter(&a).unwrap();
        places.enter(&a).unwrap();
        let held = places.take(&b).unwrap();
        assert!(places.enter(&c).is_err(), "both are taken");
        places.enter(&b).unwrap();
        drop(held);
        assert!(places.enter(&c).is_err(), "b is still held");
        places.leave(&b);
        places.enter(&c).unwrap();
        places.leave(&a);
        assert!(places.enter(&b).is_err(), "a is still held");
        places.leave(&a);
        places.enter(&b).unwrap();
    }

    #[test]
    fn places_are_given_back_to_the_last() {
        let places = Places::new(10_000);
        let rooms: Vec<_> = (0..10_000).map(|n| room(&n.to_string())).collect();
        rooms.iter().for_each(|room| places.enter(room).unwrap());
        assert!(places.enter(&room("one more")).is_err());
        rooms.iter().for_each(|room| places.leave(room));
        assert_eq!(places.taken.load(Ordering::Relaxed), 0);
        assert!(
            places
                .shards
                .iter()
                .all(|shard| shard.lock().unwrap().is_empty())
        );
        // Nobody holds it.
        places.leave(&rooms[0]);
        assert_eq!(places.taken.load(Ordering::Relaxed), 0);
    }
}
