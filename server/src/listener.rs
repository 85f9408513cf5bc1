//! Where connections come in: each worker accepts its own.

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
#[cfg(target_os = "linux")]
use socket2::SockFilter;
use socket2::{Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::door::Door;
use crate::seldom::Seldom;
use crate::shared::Shared;
use crate::vital::Vital;

/// One worker's part of a listener.
pub struct Listener {
    socket: TcpListener,
    /// Whether it is the administrators'.
    admin: bool,
    /// Clients that may be refused at one time.
    refusing_max: usize,
}

/// To who comes when `sockets.connections` are there.
const TOO_MANY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 64\r\n\r\n\
    {\"error\":{\"code\":\"full\",\"message\":\"too many connections wait\"}}\n";

/// How long such a client may take to read it, and how many may at one time, of each worker; more are not waited for.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(1);
pub const REFUSING_MAX: usize = 64;

/// How long a listener that closes still accepts those that the kernel has answered: longer than it takes such a
/// connection to be complete. Whoever is not heard for so long tries again after a second.
const LAST_CALL: Duration = Duration::from_millis(10);

/// Bytes of what such a client sends that are read at one time, and reads of one that is not waited for.
const SCRATCH_BYTES: usize = 1024;
const READS_MAX: usize = 64;

/// The wait after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Connections that could not be accepted, and such as found no place.
static UNACCEPTED: Seldom = Seldom::new();
static REFUSED: Seldom = Seldom::new();

/// A file that is open for nothing, but to be closed when no more can be opened. Whoever comes then can be accepted,
/// and told.
struct Spare(Option<File>);

/// Connections that the kernel keeps for each worker until they are accepted, for after a restart everybody comes at
/// once; it may take fewer (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// As `TcpListener::bind`, with a longer backlog.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let address = SockAddr::from(address);
    let socket = socket(&address)?;
    socket.bind(&address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// For a listener at that address, which may have been another's a moment ago.
fn socket(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

impl Listener {
    /// Shares a listener out among so many workers.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub fn share(
        listener: TcpListener,
        admin: bool,
        workers: usize,
        refusing_max: usize,
    ) -> io::Result<Vec<Self>> {
        listener.set_nonblocking(true)?;
        // Those that it accepts have it from it.
        SockRef::from(&listener).set_tcp_nodelay(true)?;
        let mut sockets = Vec::new();
        for _ in 1..workers {
            sockets.push(another(&listener)?);
        }
        sockets.push(listener);
        let of = |socket| Self {
            socket,
            admin,
            refusing_max,
        };
        Ok(sockets.into_iter().map(of).collect())
    }

    /// Lets in who comes, until the doors close, which those of administrators do not. What is above
    /// `sockets.connections` is told so.
    pub async fn accept(self, door: Rc<Door>, shared: Arc<Shared>) -> io::Result<()> {
        let admin = self.admin;
        let socket = tokio::net::TcpListener::from_std(self.socket)?;
        let _vital = Vital("listener");
        let refusing = Arc::new(Semaphore::new(self.refusing_max));
        let mut spare = Spare::open();
        let doors = (!admin).then(|| shared.doors_closed.subscribe());
        let mut closed = pin!(closing(&socket, doors));
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = socket.accept() => accepted,
                () = &mut closed => return Ok(()),
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    if let Some(times) = UNACCEPTED.add(Instant::now(), 1) {
                        warn!(%error, times, "connections cannot be accepted");
                    }
                    if is_want_of_files(&error) {
                        spare.refuse_one(&socket, shared.tls(admin).is_none());
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(slot) = shared.load.connection(shared.config.sockets.connections) else {
                metrics::counter!("unisono_connections_refused_total").increment(1);
                if let Some(connections) = REFUSED.add(Instant::now(), 1) {
                    warn!(
                        connections,
                        "connections are refused: sockets.connections are there already"
                    );
                }
                // Nothing can be said inside of TLS at that price.
                if shared.tls(admin).is_some() {
                    continue;
                }
                match Arc::clone(&refusing).try_acquire_owned() {
                    Ok(place) => {
                        actix_rt::spawn(async move {
                            let _ = tokio::time::timeout(REFUSE_TIMEOUT, refuse(stream)).await;
                            drop(place);
                        });
                    }
                    Err(_) => refuse_at_once(&stream),
                }
                continue;
            };
            let door = Rc::clone(&door);
            actix_rt::spawn(async move { door.greet(stream, peer, admin, slot).await });
        }
    }
}

/// Ends when the listener may be closed: nobody is left whom the kernel has told that there is one.
///
/// With a listener, the kernel closes those that wait in its queue by a reset. A load balancer may have sent a request by
/// then, which it cannot repeat. So the kernel is first to let nobody new into the queue.
async fn closing(socket: &tokio::net::TcpListener, doors: Option<watch::Receiver<bool>>) {
    let Some(mut doors) = doors else {
        return std::future::pending().await;
    };
    // Without a sender the node has ended.
    let _ = doors.wait_for(|closed| *closed).await;
    if let Err(error) = refuse_newcomers(&SockRef::from(socket)) {
        debug!(%error, "the kernel goes on to queue newcomers");
    }
    tokio::time::sleep(LAST_CALL).await;
}

/// From now on whoever begins to connect is not heard by this listener; they try again, by which time it is closed.
#[cfg(target_os = "linux")]
fn refuse_newcomers(listener: &Socket) -> io::Result<()> {
    // A filter of packets, of which a listener sees the TCP header: connections inherit it, and get no SYN. The codes are
    // those of linux/bpf_common.h.
    let instruction = |code, if_not, k| SockFilter::new(code, 0, if_not, k);
    listener.attach_filter(&[
        // The byte of flags; where SYN is among them, nothing of the packet is kept, else all.
        instruction(0x30, 0, 13),
        instruction(0x45, 1, 0x02),
        instruction(0x06, 0, 0),
        instruction(0x06, 0, u32::MAX),
    ])
}

#[cfg(not(target_os = "linux"))]
fn refuse_newcomers(_: &Socket) -> io::Result<()> {
    Ok(())
}

impl Spare {
    fn open() -> Self {
        Self(File::open("/dev/null").ok())
    }

    /// Accepts one for whom there is no file, in the place of the spare one.
    fn refuse_one(&mut self, listener: &tokio::net::TcpListener, is_plain: bool) {
        self.0 = None;
        if let Some(Ok((stream, _))) = listener.accept().now_or_never() {
            metrics::counter!("unisono_connections_refused_total").increment(1);
            if is_plain {
                refuse_at_once(&stream);
            }
        }
        *self = Self::open();
    }
}

/// This process, or the system, may open no more files.
fn is_want_of_files(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE]
        .iter()
        .any(|errno| number == Some(errno.raw_os_error()))
}

/// A further listener at the same address, with a queue of its own: the kernel deals connections out by a hash of both
/// addresses (`SO_REUSEPORT`). A thread of its own that accepted and handed on would cost a handshake 15 % more CPU,
/// would let in no more than one thread can, and would keep all workers waiting when something keeps it.
///
/// The address stays this process's: the option is set once the address is taken, and whoever binds without it, as each
/// node does at first, is told that the address is in use.
#[cfg(target_os = "linux")]
fn another(listener: &TcpListener) -> io::Result<TcpListener> {
    let first = SockRef::from(listener);
    first.set_reuse_port(true)?;
    let address = first.local_addr()?;
    let socket = socket(&address)?;
    if address.domain() == socket2::Domain::IPV6 {
        socket.set_only_v6(first.only_v6()?)?;
    }
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The same listener once more. All workers wake for each connection, and the first has it: elsewhere the kernel does
/// not deal them out.
#[cfg(not(target_os = "linux"))]
fn another(listener: &TcpListener) -> io::Result<TcpListener> {
    listener.try_clone()
}

/// Says why, and reads what comes: unread bytes would turn the end into a reset, which may cost the client the answer.
/// A request that has come and has no body is the last of it.
async fn refuse(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(TOO_MANY).await?;
    stream.shutdown().await?;
    let mut rest = vec![0; SCRATCH_BYTES];
    let mut is_first = true;
    loop {
        let count = stream.read(&mut rest).await?;
        let read = &rest[..count];
        let is_whole = read.starts_with(b"GET ") && read.ends_with(b"\r\n\r\n");
        if count == 0 || (is_first && is_whole) {
            return Ok(());
        }
        is_first = false;
    }
}

/// Says why to a client that there is no time to wait for.
fn refuse_at_once(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.send(TOO_MANY);
    let mut rest = [0; SCRATCH_BYTES];
    for _ in 0..READS_MAX {
        if !matches!((&*socket).read(&mut rest), Ok(SCRATCH_BYTES)) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares() -> Vec<Listener> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Listener::share(listener, false, 3, REFUSING_MAX).expect("it can be shared")
    }

    /// Connections until each share has one.
    #[cfg(target_os = "linux")]
    fn accepted_by_all(shares: &[Listener]) -> Vec<std::net::TcpStream> {
        let address = shares[0].socket.local_addr().expect("it listens");
        let mut clients = Vec::new();
        let mut accepted: Vec<_> = shares.iter().map(|_| None).collect();
        // Of a hundred none comes to one of three once in 10^17 times.
        for _ in 0..100 {
            clients.push(std::net::TcpStream::connect(address).expect("it listens"));
            for (share, accepted) in shares.iter().zip(&mut accepted) {
                if let Ok((stream, _)) = share.socket.accept() {
                    accepted.get_or_insert(stream);
                }
            }
        }
        accepted.into_iter().flatten().collect()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_worker_accepts_at_the_same_address() {
        let accepted = accepted_by_all(&shares());
        assert_eq!(accepted.len(), 3);
        for stream in accepted {
            assert!(stream.nodelay().expect("an open socket"));
        }
    }

    #[test]
    fn a_shared_address_is_in_use_for_others() {
        let shares = shares();
        let address = shares[0].socket.local_addr().expect("it listens");
        let error = TcpListener::bind(address).expect_err("it is in use");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
