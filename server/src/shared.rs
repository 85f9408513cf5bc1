//! What all actors of a node have in common.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use cluster::{Budget, Cluster, LinkState};
use proto::envelope::{Act, Request};
use proto::{Audience, NodeId, Publication, TraceContext};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::api::Keys;
use crate::app::Routes;
use crate::auth::Auth;
use crate::config::Config;
use crate::delivery::Wire;
use crate::events::Events;
use crate::meters::{Meters, Source};
use crate::places::Places;
use crate::rate::Addresses;
use crate::reload::{Followed, Reload};
use crate::signature::Signer;
use crate::tail::Tails;
use crate::tls::Tls;
use crate::trace::{Parent, Span, Traces, Work};

/// Settings, the way to other nodes, and the counts that make up a node's load.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// This node.
    pub node: NodeId,
    /// The way to the others.
    pub cluster: Cluster,
    /// A bound on what is under way.
    pub budget: Budget,
    /// The counts.
    pub load: Arc<Counts>,
    /// For rooms with members on this node.
    pub places: Arc<Places>,
    /// Its name for people.
    pub name: String,
    /// When the node started, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// What is measured.
    pub meters: Meters,
    /// Where clients speak TLS.
    pub(crate) tls: Option<Tls>,
    /// Who may use the HTTP API.
    pub keys: Keys,
    /// What is read again while the node runs.
    pub reload: Reload,
    /// Signs what goes to the application, where a secret is configured.
    pub signer: Option<Followed<Signer>>,
    /// Who may come, and what is known of them.
    pub auth: Auth,
    /// The way to the application outside.
    pub events: Events,
    /// The application's own HTTP routes.
    pub routes: Routes,
    /// How often addresses have come lately, where there is a limit.
    pub addresses: Option<Mutex<Addresses>>,
    /// Somebody wants to see the headers of handshakes.
    pub curious: bool,
    /// Who watches what passes.
    pub tails: Arc<Tails>,
    /// Where spans begin.
    pub traces: Traces,
    /// The thread for what is neither a client nor another node.
    pub outside: Handle,
    /// Another node, or the API, wants this one to drain.
    pub drain_wanted: Notify,
    /// Whether newcomers find nobody at the clients' address any more.
    pub doors_closed: watch::Sender<bool>,
    pub(crate) once: AtomicU64,
    /// Since when there is no bus.
    pub(crate) bus_away: Mutex<Option<Instant>>,
}

/// Counts that actors keep and heartbeats tell.
#[derive(Default)]
pub struct Counts {
    /// Sockets, from the door's yes to the end of the session.
    pub sockets: AtomicUsize,
    /// The same, by wire.
    pub wires: [AtomicUsize; Wire::COUNT],
    /// Connections that are no sockets.
    pub connections: AtomicUsize,
    /// Rooms with members on this node.
    pub rooms: AtomicUsize,
    /// No new sockets; the node is about to stop.
    pub draining: AtomicBool,
    /// No new requests either: it can no longer be sure that the other nodes would hear of them.
    pub leaving: AtomicBool,
    /// Requests over HTTP that are under way.
    pub requests: AtomicUsize,
    /// The other nodes have been told that this one is gone, or are about to be.
    pub left: AtomicBool,
}

/// A place taken in one of the [`Counts`], until it is dropped.
pub struct Slot {
    counts: Arc<Counts>,
    count: fn(&Counts) -> &AtomicUsize,
    /// Of a socket.
    wire: Option<Wire>,
}

impl Shared {
    /// Whether a load balancer should send clients here, or why not. A bus that is away for a short time
    /// is no reason: if all nodes lost it, there would be no node left to go to.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.load.draining.load(Ordering::SeqCst) {
            return Err("draining");
        }
        let mut away = self.bus_away.lock().unwrap_or_else(PoisonError::into_inner);
        match self.cluster.link() {
            LinkState::Connected => {
                *away = None;
                Ok(())
            }
            LinkState::Connecting => Err("connecting"),
            LinkState::Away => {
                let since = *away.get_or_insert_with(Instant::now);
                let patience = since.elapsed() <= self.config.cluster.ready_grace;
                patience.then_some(()).ok_or("bus away")
            }
        }
    }

    /// TLS, where it is spoken: at the administrators' address, or at that of everybody.
    pub fn tls(&self, admin: bool) -> Option<&Tls> {
        self.tls
            .as_ref()
            .filter(|_| !admin || self.config.admin.tls)
    }

    /// The metrics, as Prometheus reads them.
    pub fn metrics(&self) -> String {
        let counts = &self.load;
        let settings = &self.config.sockets;
        for label in [Wire::WebSocket, Wire::EventStream].map(Wire::as_str) {
            let wires = Wire::ALL.into_iter().filter(|wire| wire.as_str() == label);
            let sockets = wires.map(|wire| counts.wires[wire as usize].load(Ordering::Relaxed));
            let sockets: usize = sockets.sum();
            metrics::gauge!("unisono_sockets", "wire" => label).set(sockets as f64);
        }
        let is = |yes| if yes { 1.0 } else { 0.0 };
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed) as f64;
        let connected = self.cluster.link() == LinkState::Connected;
        for (name, value) in [
            ("unisono_ready", is(self.readiness().is_ok())),
            (
                "unisono_draining",
                is(counts.draining.load(Ordering::Relaxed)),
            ),
            ("unisono_connections", load(&counts.connections)),
            ("unisono_rooms", load(&counts.rooms)),
            ("unisono_inflight_bytes", self.budget.taken() as f64),
            (
                "unisono_incoming_bytes",
                self.cluster.incoming_bytes() as f64,
            ),
            ("unisono_bus_connected", is(connected)),
            ("unisono_hook_events_waiting", self.events.waiting() as f64),
            // They do not change, but a second node of the process, as in tests, has others.
            ("unisono_sockets_max", settings.max as f64),
            ("unisono_rooms_max", settings.rooms_max as f64),
            ("unisono_connections_max", settings.connections as f64),
            ("unisono_inflight_bytes_max", settings.inflight_bytes as f64),
            (
                "unisono_incoming_bytes_max",
                self.config.cluster.incoming_bytes as f64,
            ),
        ] {
            metrics::gauge!(name).set(value);
        }
        if let Some(tls) = &self.tls {
            metrics::gauge!("unisono_tls_certificate_expires_timestamp_seconds").set(tls.expires());
        }
        metrics::gauge!("unisono_build_info", "version" => proto::VERSION).set(1.0);
        self.meters.render()
    }

    /// The span of a publication that comes into the cluster here. What becomes of it is part of that.
    pub fn publishing(
        &self,
        publication: &mut Publication,
        source: Source,
        parent: Parent,
    ) -> Option<Span> {
        let work = match publication.to {
            Audience::Room(_) => Work::Publish,
            Audience::Everyone => Work::Broadcast,
        };
        let mut span = self.traces.begin(work, parent)?;
        span.say("unisono.source", source.as_str());
        self.say_audience(&mut span, &publication.to);
        publication.trace = Some(Box::new(span.place()));
        Some(span)
    }

    /// The span of what becomes on this node of a publication, from the moment when it was here.
    pub fn delivering(&self, publication: &Publication, origin: NodeId) -> Option<Span> {
        let place = publication.trace.as_deref()?;
        let parent = match origin == self.node {
            true => Parent::Here(*place),
            false => Parent::Elsewhere(*place),
        };
        let mut span = self.traces.begin(Work::Deliver, parent)?;
        self.say_audience(&mut span, &publication.to);
        Some(span)
    }

    /// The same of a request that came from `origin`, which is [`Parent::Here`] or [`Parent::Elsewhere`].
    pub fn answering(&self, request: &Request, origin: fn(TraceContext) -> Parent) -> Option<Span> {
        match request {
            Request::Act(_, Act::Emit { trace, .. }) => {
                self.traces.begin(Work::Deliver, origin(*trace.as_deref()?))
            }
            _ => None,
        }
    }

    /// Names of rooms may be personal; patterns are the operator's own.
    fn say_audience(&self, span: &mut Span, to: &Audience) {
        if let Audience::Room(room) = to
            && let Some(rule) = self.config.rules.find(room)
        {
            span.say("unisono.room.pattern", rule.pattern.to_string());
        }
    }

    /// A number for one send to several rooms.
    pub fn next_once(&self) -> u64 {
        self.once.fetch_add(1, Ordering::Relaxed)
    }
}

/// The time of day, for people: milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}

impl Counts {
    /// A place for a socket on that wire, unless `max` are taken.
    pub fn socket(self: &Arc<Self>, wire: Wire, max: usize) -> Option<Slot> {
        let mut slot = Slot::take(self, |counts| &counts.sockets, max)?;
        self.wires[wire as usize].fetch_add(1, Ordering::Relaxed);
        slot.wire = Some(wire);
        Some(slot)
    }

    /// A place for a request over HTTP, unless the node is [`leaving`](Self::leaving).
    pub fn request(self: &Arc<Self>) -> Option<Slot> {
        let slot = Slot::take(self, |counts| &counts.requests, usize::MAX)?;
        // After it is counted: whoever begins to leave now either sees it or is seen.
        (!self.leaving.load(Ordering::SeqCst)).then_some(slot)
    }

    /// A place for a connection that is no socket, unless `max` are taken.
    pub fn connection(self: &Arc<Self>, max: usize) -> Option<Slot> {
        Slot::take(self, |counts| &counts.connections, max)
    }
}

impl Slot {
    fn take(counts: &Arc<Counts>, count: fn(&Counts) -> &AtomicUsize, max: usize) -> Option<Self> {
        let one_more = |taken| (taken < max).then_some(taken + 1);
        count(counts)
            .fetch_update(Ordering::SeqCst, Ordering::Relaxed, one_more)
            .ok()?;
        Some(Self {
            counts: Arc::clone(counts),
            count,
            wire: None,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        (self.count)(&self.counts).fetch_sub(1, Ordering::Relaxed);
        if let Some(wire) = self.wire {
            self.counts.wires[wire as usize].fetch_sub(1, Ordering::Relaxed);
        }
    }
}
