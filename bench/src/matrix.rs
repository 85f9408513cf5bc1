//! Which cells are measured, how often, and in which order. Values only.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One thing that is measured, on nodes of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// What happens to the sockets.
    pub load: Load,
    /// How they are connected.
    pub wire: Wire,
    /// One node is alone; several are a cluster on one NATS server.
    pub nodes: u32,
    /// On all nodes together.
    pub sockets: u32,
}

/// What happens to the sockets of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// All are in one room, which is published to over HTTP.
    Fanout(Messages),
    /// All are in one room, to which one of them publishes: as many messages at once as the window has room for. The
    /// budgets of CPU are held against it.
    Bursts(Messages),
    /// They are in so many rooms, which are published to in turn.
    Rooms {
        /// Divides the number of sockets.
        rooms: u32,
        /// What is published.
        messages: Messages,
    },
    /// They are in as many rooms as there are publishers, each of which publishes to one of them over its own socket, all
    /// at the same times.
    Publishers {
        /// How many.
        publishers: u32,
    },
    /// They are sent messages of their own, in turn, through another node than theirs where there is one.
    Emit {
        /// In flight at one time.
        window: u32,
    },
    /// They are opened, so many at one time.
    Connect {
        /// Handshakes under way.
        concurrency: u32,
    },
    /// They do nothing.
    Idle {
        /// Seconds for which they are held.
        hold: u64,
        /// Seconds for which the nodes are watched after the sockets have left.
        watch: u64,
    },
}

/// What is published, and how fast: a closed loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Messages {
    /// Bytes of text in each.
    pub bytes: u32,
    /// In flight at one time.
    pub window: u32,
}

/// How sockets are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// WebSocket without compression.
    Websocket,
    /// WebSocket with permessage-deflate.
    Deflate,
    /// Server-sent events.
    Sse,
}

/// How large a run is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Everything: some 25 minutes on two cores.
    Full,
    /// Every kind of cell, once, with fewer sockets and for a shorter time: to see that it works.
    Quick,
}

/// Sockets, where another thing is varied, and those of the budgets of CPU.
pub const SOCKETS: u32 = 1000;
/// The smaller of the two sizes of messages.
pub const BYTES: u32 = 128;
/// The larger one.
pub const LARGE_BYTES: u32 = 4096;
/// Messages in flight: one after the other, and as many as fill batches.
pub const WINDOWS: [u32; 2] = [1, 16];
/// Emits in flight: one, for how long an answer takes, and as many as keep the nodes busy.
pub const EMIT_WINDOWS: [u32; 2] = [1, 64];
/// Numbers of nodes, on the same machine.
pub const NODES: [u32; 4] = [1, 2, 3, 4];
/// Numbers of rooms among which the same sockets are shared out.
pub const ROOMS: [u32; 4] = [1, 10, 100, 1000];
/// Sockets that publish at one time.
pub const PUBLISHERS: [u32; 3] = [1, 2, 4];
/// Messages of each of them in a second, and sockets in its room: far from what keeps two cores busy.
pub const PUBLISHER_RATE: u32 = 100;
/// See there.
pub const PUBLISHER_SOCKETS: u32 = 250;
/// Handshakes at one time.
pub const CONCURRENCY: [u32; 4] = [1, 8, 64, 256];

impl Scale {
    /// Numbers of sockets in a room.
    pub fn sockets(self) -> &'static [u32] {
        match self {
            Self::Full => &[1, 100, 1000, 10_000],
            Self::Quick => &[1, 100, 1000],
        }
    }

    /// How long messages are sent to a cell with so many sockets.
    pub fn send_time(self, sockets: u32) -> Duration {
        match self {
            Self::Quick => Duration::from_millis(500),
            // Few publications of many deliveries each: the last one, which is cut off, must not count.
            Self::Full if sockets > SOCKETS => Duration::from_millis(1500),
            Self::Full => Duration::from_secs(1),
        }
    }

    /// Every cell, each once.
    pub fn cells(self) -> Vec<Cell> {
        let mut cells = self.matrix();
        cells.extend(NODES.iter().flat_map(|&nodes| {
            WINDOWS.map(|window| Cell::fanout(Wire::Websocket, nodes, SOCKETS, BYTES, window))
        }));
        cells.extend(
            ROOMS
                .iter()
                .flat_map(|&rooms| WINDOWS.map(|window| Cell::rooms(rooms, window))),
        );
        cells.extend(
            [1, 2]
                .iter()
                .flat_map(|&nodes| WINDOWS.map(|window| Cell::bursts(nodes, window))),
        );
        cells.extend(PUBLISHERS.map(Cell::publishers));
        cells.extend(
            [1, 2]
                .iter()
                .flat_map(|&nodes| EMIT_WINDOWS.map(|window| Cell::emit(nodes, window))),
        );
        cells.extend(CONCURRENCY.map(|concurrency| self.connect(concurrency)));
        cells.extend([self.idle(), self.idle_cluster()]);
        let mut seen = BTreeSet::new();
        cells.retain(|cell| seen.insert(cell.to_string()));
        cells
    }

    /// One room: sockets, bytes, window, nodes and wire, all with all that make a difference.
    fn matrix(self) -> Vec<Cell> {
        let mut cells = vec![];
        for wire in [Wire::Websocket, Wire::Deflate, Wire::Sse] {
            for nodes in [1, 2] {
                for &sockets in self.sockets() {
                    for &bytes in wire.bytes() {
                        cells.extend(
                            WINDOWS.map(|window| Cell::fanout(wire, nodes, sockets, bytes, window)),
                        );
                    }
                }
            }
        }
        cells
    }

    /// Handshakes, so many at one time.
    pub fn connect(self, concurrency: u32) -> Cell {
        let sockets = match self {
            Self::Full => 5000,
            Self::Quick => 500,
        };
        Cell {
            load: Load::Connect { concurrency },
            wire: Wire::Websocket,
            nodes: 1,
            sockets,
        }
    }

    /// Memory and CPU of sockets that do nothing, and what is left of them when they have gone.
    pub fn idle(self) -> Cell {
        let (hold, watch) = self.idle_seconds();
        let sockets = match self {
            Self::Full => 15_000,
            Self::Quick => 2000,
        };
        Cell {
            load: Load::Idle { hold, watch },
            wire: Wire::Websocket,
            nodes: 1,
            sockets,
        }
    }

    /// For how many seconds idle sockets are held, and their node is watched after they have left.
    pub fn idle_seconds(self) -> (u64, u64) {
        match self {
            // Nodes send a ping after 25 seconds of silence: in so long a time two to each socket.
            Self::Full => (50, 30),
            Self::Quick => (3, 3),
        }
    }

    /// What sockets in one room ask of the bus.
    pub fn idle_cluster(self) -> Cell {
        Cell {
            load: Load::Idle { hold: 2, watch: 0 },
            wire: Wire::Websocket,
            nodes: 2,
            sockets: 2000,
        }
    }

    /// How often a cell is measured: those that budgets hang on oftener.
    pub fn rounds(self, cell: &Cell) -> u32 {
        match (self, &cell.load) {
            (Self::Quick, _) => 1,
            (Self::Full, Load::Bursts(_)) if cell.nodes == 1 => 7,
            (Self::Full, Load::Emit { window: 1 } | Load::Connect { .. }) => 7,
            (Self::Full, _) => 3,
        }
    }
}

impl Wire {
    /// Bytes of messages that are measured with it.
    pub fn bytes(self) -> &'static [u32] {
        match self {
            Self::Websocket | Self::Sse => &[BYTES, LARGE_BYTES],
            // Smaller ones than `sockets.deflate_min_bytes` go as they are.
            Self::Deflate => &[LARGE_BYTES],
        }
    }
}

impl Cell {
    /// One room.
    pub fn fanout(wire: Wire, nodes: u32, sockets: u32, bytes: u32, window: u32) -> Self {
        Self {
            load: Load::Fanout(Messages { bytes, window }),
            wire,
            nodes,
            sockets,
        }
    }

    /// The usual sockets and bytes, in one room to which one of them publishes.
    pub fn bursts(nodes: u32, window: u32) -> Self {
        let messages = Messages {
            bytes: BYTES,
            window,
        };
        Self {
            load: Load::Bursts(messages),
            wire: Wire::Websocket,
            nodes,
            sockets: SOCKETS,
        }
    }

    /// So many sockets that publish at one time, on one node.
    pub fn publishers(publishers: u32) -> Self {
        Self {
            load: Load::Publishers { publishers },
            wire: Wire::Websocket,
            nodes: 1,
            sockets: PUBLISHER_SOCKETS * publishers,
        }
    }

    /// The usual sockets and bytes, on one node, in so many rooms.
    pub fn rooms(rooms: u32, window: u32) -> Self {
        let messages = Messages {
            bytes: BYTES,
            window,
        };
        Self {
            load: Load::Rooms { rooms, messages },
            wire: Wire::Websocket,
            nodes: 1,
            sockets: SOCKETS,
        }
    }

    /// Messages to single sockets.
    pub fn emit(nodes: u32, window: u32) -> Self {
        Self {
            load: Load::Emit { window },
            wire: Wire::Websocket,
            nodes,
            sockets: 100,
        }
    }

    /// The program that measures, and what it is asked for, without what depends on the processes of a run: `--url` of
    /// each node, and `--nats`.
    pub fn command_line(&self, scale: Scale) -> String {
        let Self { sockets, .. } = self;
        let mut line = match &self.load {
            Load::Fanout(messages) => {
                format!("unisono bench fanout --sockets {sockets} {messages}")
            }
            Load::Bursts(messages) => {
                format!("unisono bench fanout --by socket --sockets {sockets} {messages}")
            }
            Load::Rooms { rooms, messages } => {
                let members = sockets / rooms;
                format!("unisono bench rooms --rooms {rooms} --members {members} {messages}")
            }
            Load::Publishers { publishers } => {
                let rate = PUBLISHER_RATE * publishers;
                format!(
                    "unisono bench rooms --rooms {publishers} --members {PUBLISHER_SOCKETS} --by socket --publishers \
                     {publishers} --rate {rate} --bytes {BYTES}"
                )
            }
            Load::Emit { window } => {
                format!("unisono bench emit --sockets {sockets} --window {window}")
            }
            Load::Connect { concurrency } => {
                format!("unisono bench connect --sockets {sockets} --concurrency {concurrency}")
            }
            Load::Idle { hold, .. } => {
                format!("unisono bench idle --sockets {sockets} --duration {hold}s")
            }
        };
        if !matches!(self.load, Load::Connect { .. } | Load::Idle { .. }) {
            let time = scale.send_time(self.sockets).as_millis();
            line += &format!(" --duration {time}ms");
        }
        line += match self.wire {
            Wire::Websocket => "",
            Wire::Deflate => " --deflate",
            Wire::Sse => " --wire sse",
        };
        line + " --json"
    }

    /// How long one round takes on two cores, about: for who waits, and to know a process that hangs.
    pub fn expected_time(&self, scale: Scale) -> Duration {
        let sockets = Duration::from_micros(300) * self.sockets;
        let nodes = Duration::from_millis(600) * self.nodes;
        let run = match self.load {
            // The bare loop holds its sockets in the time in which the nodes are watched.
            Load::Idle { hold, watch } => Duration::from_secs(hold + watch),
            Load::Connect { .. } => Duration::from_millis(500),
            _ => scale.send_time(self.sockets) + Duration::from_millis(700),
        };
        nodes + sockets + run
    }
}

impl fmt::Display for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--bytes {} --window {}", self.bytes, self.window)
    }
}

/// The name of a cell: words, of which each says one thing.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = match self.wire {
            Wire::Websocket => "websocket",
            Wire::Deflate => "deflate",
            Wire::Sse => "sse",
        };
        let about = |f: &mut fmt::Formatter<'_>, load: &str| {
            write!(
                f,
                "{load} {wire} nodes={} sockets={}",
                self.nodes, self.sockets
            )
        };
        let messages = |f: &mut fmt::Formatter<'_>, Messages { bytes, window }: &Messages| {
            write!(f, " bytes={bytes} window={window}")
        };
        match &self.load {
            Load::Fanout(sent) => {
                about(f, "fanout")?;
                messages(f, sent)
            }
            Load::Bursts(sent) => {
                about(f, "bursts")?;
                messages(f, sent)
            }
            Load::Rooms {
                rooms,
                messages: sent,
            } => {
                about(f, "rooms")?;
                write!(f, " rooms={rooms}")?;
                messages(f, sent)
            }
            Load::Publishers { publishers } => {
                about(f, "publishers")?;
                write!(f, " publishers={publishers}")
            }
            Load::Emit { window } => {
                about(f, "emit")?;
                write!(f, " window={window}")
            }
            Load::Connect { concurrency } => {
                about(f, "connect")?;
                write!(f, " concurrency={concurrency}")
            }
            Load::Idle { .. } => about(f, "idle"),
        }
    }
}

/// Whether a cell is meant by any of the filters, each of them words that must all be in its name. Without filters every
/// cell is.
pub fn is_wanted(cell: &Cell, filters: &[String]) -> bool {
    let name = cell.to_string();
    let has = |word: &str| name.split(' ').any(|own| own == word);
    filters.is_empty()
        || filters
            .iter()
            .any(|filter| filter.split_whitespace().all(has))
}

/// The order in which the rounds of all cells are run, as places in the list of how many rounds each has.
///
/// The rounds of a cell are spread over the whole run, so that a slow minute of the machine hits one round of every cell
/// and not every round of one.
pub fn order(rounds: &[u32]) -> Vec<usize> {
    let mut due: Vec<(f64, usize)> = rounds
        .iter()
        .enumerate()
        .flat_map(|(cell, &rounds)| {
            (0..rounds).map(move |round| ((f64::from(round) + 0.5) / f64::from(rounds), cell))
        })
        .collect();
    due.sort_by(|a, b| a.0.total_cmp(&b.0));
    due.into_iter().map(|(_, cell)| cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(scale: Scale) -> u64 {
        let time: Duration = scale
            .cells()
            .iter()
            .map(|cell| cell.expected_time(scale) * scale.rounds(cell))
            .sum();
        time.as_secs() / 60
    }

    #[test]
    fn every_cell_has_a_name_of_its_own() {
        for scale in [Scale::Full, Scale::Quick] {
            let cells = scale.cells();
            let names: BTreeSet<_> = cells.iter().map(Cell::to_string).collect();
            assert_eq!(names.len(), cells.len());
        }
    }

    #[test]
    fn the_matrix_is_whole() {
        let cells = Scale::Full.cells();
        let fanout = cells
            .iter()
            .filter(|cell| matches!(cell.load, Load::Fanout(_)));
        // Two numbers of nodes, four of sockets, two windows, two sizes of two wires and one of the third; and three and
        // four nodes with two windows.
        assert_eq!(fanout.count(), 2 * 4 * 2 * (2 + 2 + 1) + 2 * 2);
        for cell in [
            Cell::emit(2, 1),
            Scale::Full.idle(),
            Scale::Full.connect(64),
        ] {
            assert!(cells.contains(&cell), "{cell}");
        }
    }

    #[test]
    fn a_run_is_as_short_as_promised() {
        let (full, quick) = (minutes(Scale::Full), minutes(Scale::Quick));
        assert!(full < 25, "{full} minutes");
        assert!(quick < 5, "{quick} minutes");
    }

    #[test]
    fn a_cell_is_a_command_line() {
        let cell = Cell::fanout(Wire::Sse, 2, 100, 4096, 16);
        assert_eq!(
            cell.command_line(Scale::Full),
            "unisono bench fanout --sockets 100 --bytes 4096 --window 16 --duration 1000ms --wire sse --json"
        );
        assert_eq!(
            Cell::rooms(10, 1).command_line(Scale::Quick),
            "unisono bench rooms --rooms 10 --members 100 --bytes 128 --window 1 --duration 500ms --json"
        );
    }

    #[test]
    fn filters_take_words() {
        let cell = Cell::fanout(Wire::Websocket, 1, 1000, 128, 1);
        let wanted = |filters: &[&str]| {
            let filters: Vec<_> = filters.iter().map(|&filter| filter.to_owned()).collect();
            is_wanted(&cell, &filters)
        };
        assert!(wanted(&[]));
        assert!(wanted(&["fanout window=1"]));
        assert!(wanted(&["idle", "sockets=1000"]));
        assert!(!wanted(&["fanout window=16"]));
        assert!(!wanted(&["window="]));
    }

    #[test]
    fn rounds_are_spread_over_the_run() {
        assert_eq!(order(&[1, 3, 3]), [1, 2, 0, 1, 2, 1, 2]);
        assert_eq!(order(&[]), [0; 0]);
    }
}
