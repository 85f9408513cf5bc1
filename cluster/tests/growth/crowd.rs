//! Who is where: sockets of many rooms, on nodes drawn at random, as a load balancer spreads them. Pure; all chance
//! comes from a seed.

use std::collections::HashMap;

use proto::RoomName;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The number of a room, by size: the largest has 0.
pub type Rank = usize;

/// All sockets, those of every node, and what each node has of each room.
pub struct Crowd {
    random: StdRng,
    rooms: Vec<RoomName>,
    sockets: Vec<Socket>,
    /// How many members of which rooms each node has; never zero.
    members: Vec<HashMap<Rank, u32>>,
}

/// A socket, which is in one room.
#[derive(Clone, Copy)]
pub struct Socket {
    pub node: usize,
    pub room: Rank,
}

/// Of a node and a room: the first local member came, or the last one left.
pub struct Turn {
    pub node: usize,
    pub room: Rank,
    pub begun: bool,
}

impl Crowd {
    /// Rooms for so many sockets, and nobody in them yet. Sizes are Zipf's: the largest room has a twentieth of all
    /// sockets, that of rank `r` an `r`th of this; below that is a long tail of rooms of two and of three.
    pub fn new(nodes: usize, sockets: usize, seed: u64) -> (Self, Vec<Socket>) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut coming = Vec::with_capacity(sockets);
        let mut rooms = Vec::new();
        while coming.len() < sockets {
            let rank = rooms.len();
            let name = format!("/chat-rooms/{rank}");
            rooms.push(RoomName::parse(&name).expect("a short name"));
            let size = (sockets / 20 / (rank + 1)).max(2 + rank % 2);
            for _ in 0..size.min(sockets - coming.len()) {
                let node = random.random_range(0..nodes);
                coming.push(Socket { node, room: rank });
            }
        }
        // They come in any order.
        for nth in (1..coming.len()).rev() {
            coming.swap(nth, random.random_range(0..=nth));
        }
        let crowd = Self {
            random,
            rooms,
            sockets: Vec::with_capacity(sockets),
            members: vec![HashMap::new(); nodes],
        };
        (crowd, coming)
    }

    pub fn name(&self, room: Rank) -> &RoomName {
        &self.rooms[room]
    }

    pub fn rooms(&self) -> usize {
        self.rooms.len()
    }

    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// The rooms that have members on that node.
    pub fn rooms_of(&self, node: usize) -> impl Iterator<Item = Rank> {
        self.members[node].keys().copied()
    }

    /// Rooms with local members, added up over all nodes.
    pub fn interest(&self) -> usize {
        self.members.iter().map(HashMap::len).sum()
    }

    /// How many of the nodes have members of the room.
    pub fn nodes_with(&self, room: Rank) -> usize {
        let with = |there: &&HashMap<Rank, u32>| there.contains_key(&room);
        self.members.iter().filter(with).count()
    }

    /// A number below the bound.
    pub fn draw(&mut self, below: usize) -> usize {
        self.random.random_range(0..below)
    }

    /// Some socket.
    pub fn any(&mut self) -> Socket {
        let nth = self.draw(self.sockets.len());
        self.sockets[nth]
    }

    pub fn join(&mut self, socket: Socket) -> Option<Turn> {
        self.sockets.push(socket);
        let Socket { node, room } = socket;
        let count = self.members[node].entry(room).or_default();
        *count += 1;
        let begun = true;
        (*count == 1).then_some(Turn { node, room, begun })
    }

    /// Some socket leaves.
    pub fn leave(&mut self) -> (Socket, Option<Turn>) {
        let nth = self.draw(self.sockets.len());
        let socket = self.sockets.swap_remove(nth);
        (socket, self.left(socket))
    }

    /// A node is gone with all its sockets, which are given back.
    pub fn lose(&mut self, node: usize) -> Vec<Socket> {
        self.members[node].clear();
        let (lost, left) = self
            .sockets
            .drain(..)
            .partition(|socket| socket.node == node);
        self.sockets = left;
        lost
    }

    /// One node more.
    pub fn add_node(&mut self) {
        self.members.push(HashMap::new());
    }

    fn left(&mut self, Socket { node, room }: Socket) -> Option<Turn> {
        let count = self.members[node].get_mut(&room)?;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.members[node].remove(&room);
        let begun = false;
        Some(Turn { node, room, begun })
    }
}
