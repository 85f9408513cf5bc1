//! A TCP proxy that fails on demand: between a node and its NATS server, two NATS servers, or a client and a node.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, interval_at};

/// A port that leads to another port of this machine, for as long as this value lives.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    accepting: AbortHandle,
}

/// One way through a [`Proxy`], as whoever connects sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What the connecting side sends.
    There,
    /// What it gets.
    Back,
    /// Both.
    Both,
}

/// What happens to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// They arrive, so much later.
    Pass(Duration),
    /// They stay where they are, and arrive when the flow passes again: packets that are lost and sent again.
    Stall,
    /// They are taken and never arrive.
    Swallow,
}

#[derive(Debug, Clone)]
struct Weather {
    there: Flow,
    back: Flow,
    /// Whether newcomers are let in.
    open: bool,
    /// How often all connections were ended, and whether the last time by a reset.
    ends: u64,
    reset: bool,
}

/// Connections at a time; those above wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// Pieces that may be on their way in one direction of one connection, and the bytes of one.
const PIECES_MAX: usize = 256;
const PIECE_BYTES: usize = 16 * 1024;

/// An interval of which only the beginning counts.
const ONCE: Duration = Duration::from_secs(3_600);

/// Bytes on their way, and when they are there.
type Piece = (Instant, Vec<u8>);

// === impl Proxy ===

impl Proxy {
    /// Leads to this port of loopback, whether anybody listens there or not.
    pub async fn to(target: u16) -> Self {
        let address = (Ipv4Addr::LOCALHOST, 0);
        let listener = TcpListener::bind(address).await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let clear = Flow::Pass(Duration::ZERO);
        let (weather, seen) = watch::channel(Weather {
            there: clear,
            back: clear,
            open: true,
            ends: 0,
            reset: false,
        });
        let accepting = tokio::spawn(accept(listener, target, seen)).abort_handle();
        Self {
            port,
            weather,
            accepting,
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every byte takes so much longer, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.flow(Way::Both, Flow::Pass(delay));
    }

    /// Nothing moves until [`Proxy::heal`], and then all of it does: a network that loses packets for a while.
    pub fn stall(&self, way: Way) {
        self.flow(way, Flow::Stall);
    }

    /// What is sent is taken and lost. A connection that has lost something ends with a reset at [`Proxy::heal`].
    pub fn blackhole(&self, way: Way) {
        self.flow(way, Flow::Swallow);
    }

    /// Ends all connections; new ones are welcome.
    pub fn cut(&self) {
        self.end(false, true);
    }

    /// As [`Proxy::cut`], by a reset.
    pub fn reset(&self) {
        self.end(true, true);
    }

    /// Ends all connections, and new ones at once, until [`Proxy::heal`].
    pub fn sever(&self) {
        self.end(false, false);
    }

    /// As good as new, at once.
    pub fn heal(&self) {
        self.weather.send_modify(|weather| {
            weather.there = Flow::Pass(Duration::ZERO);
            weather.back = weather.there;
            weather.open = true;
        });
    }

    fn flow(&self, way: Way, flow: Flow) {
        self.weather.send_modify(|weather| {
            if way != Way::Back {
                weather.there = flow;
            }
            if way != Way::There {
                weather.back = flow;
            }
        });
    }

    fn end(&self, reset: bool, open: bool) {
        self.weather.send_modify(|weather| {
            weather.ends += 1;
            weather.reset = reset;
            weather.open = open;
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

// === the traffic ===

async fn accept(listener: TcpListener, target: u16, weather: watch::Receiver<Weather>) {
    // Aborted with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                if let Ok((near, _)) = accepted
                    && weather.borrow().open
                {
                    connections.spawn(carry(near, target, weather.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One connection, from its beginning to its end.
async fn carry(mut near: TcpStream, target: u16, weather: watch::Receiver<Weather>) {
    let ends = weather.borrow().ends;
    let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        return;
    };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let mut until = weather.clone();
    let reset = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let both = async {
            tokio::try_join!(
                way(near_read, far_write, weather.clone(), |weather| weather
                    .there),
                way(far_read, near_write, weather.clone(), |weather| weather
                    .back),
            )
        };
        tokio::select! {
            passed = both => passed.is_err(),
            ended = until.wait_for(|weather| weather.ends != ends) => {
                ended.is_ok_and(|weather| weather.reset)
            }
        }
    };
    if reset {
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}

/// The connection cannot go on.
struct Broken;

async fn way(
    from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    weather: watch::Receiver<Weather>,
    flow: impl Fn(&Weather) -> Flow + Copy,
) -> Result<(), Broken> {
    let (pieces, arriving) = mpsc::channel(PIECES_MAX);
    let written = write(to, arriving, weather.clone(), flow);
    tokio::try_join!(read(from, pieces, weather, flow), written)?;
    Ok(())
}

async fn read(
    mut from: ReadHalf<'_>,
    pieces: mpsc::Sender<Piece>,
    mut weather: watch::Receiver<Weather>,
    flow: impl Fn(&Weather) -> Flow,
) -> Result<(), Broken> {
    let mut swallowed = false;
    loop {
        let now = flow(&weather.borrow_and_update());
        if swallowed && now != Flow::Swallow {
            return Err(Broken);
        }
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        tokio::select! {
            changed = weather.changed() => changed.map_err(|_| Broken)?,
            got = from.read_buf(&mut piece), if now != Flow::Stall => match (got, now) {
                (Err(_), _) => return Err(Broken),
                (Ok(0), _) => return Ok(()),
                (Ok(_), Flow::Pass(delay)) => {
                    let due = Instant::now() + delay;
                    pieces.send((due, piece)).await.map_err(|_| Broken)?;
                }
                (Ok(_), _) => swallowed = true,
            },
        }
    }
}

async fn write(
    mut to: WriteHalf<'_>,
    mut arriving: mpsc::Receiver<Piece>,
    mut weather: watch::Receiver<Weather>,
    flow: impl Fn(&Weather) -> Flow,
) -> Result<(), Broken> {
    while let Some((due, piece)) = arriving.recv().await {
        // The length of the wire, which is what this is here for: nothing is synchronised by it.
        interval_at(due, ONCE).tick().await;
        let moves = weather.wait_for(|weather| flow(weather) != Flow::Stall);
        let now = moves.await.map(|weather| flow(&weather));
        if matches!(now, Ok(Flow::Swallow)) {
            // It was read before the hole opened. Nothing may come after it: no TCP has a gap in its middle.
            let healed = weather.wait_for(|weather| flow(weather) != Flow::Swallow);
            healed.await.map_err(|_| Broken)?;
            return Err(Broken);
        }
        to.write_all(&piece).await.map_err(|_| Broken)?;
    }
    to.shutdown().await.map_err(|_| Broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::unread_at;

    /// The clock stands still but where everybody waits for it.
    #[tokio::test(start_paused = true)]
    async fn what_was_on_its_way_into_a_hole_leaves_no_gap() {
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::to(target.local_addr().unwrap().port()).await;
        let mut near = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()))
            .await
            .unwrap();
        let (mut far, _) = target.accept().await.unwrap();
        near.write_all(b"one").await.unwrap();
        let mut one = [0; 3];
        far.read_exact(&mut one).await.unwrap();

        let hour = Duration::from_secs(3_600);
        proxy.delay(hour);
        near.write_all(b"two").await.unwrap();
        while unread_at(proxy.port()) > 0 {
            tokio::task::yield_now().await;
        }
        proxy.blackhole(Way::Both);
        tokio::time::advance(2 * hour).await;
        // Whoever carries the piece finds it due.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        proxy.heal();

        let mut rest = vec![];
        let end = tokio::time::timeout(hour, far.read_to_end(&mut rest)).await;
        let end = end.expect("the connection ends").unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(rest, b"");
    }
}
