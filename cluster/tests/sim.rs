//! Simulated clusters: several nodes on the in-memory bus, in one thread, under a paused clock. Links are
//! cut and healed; nothing here takes real time.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use metrics_exporter_prometheus::PrometheusBuilder;
use proto::envelope::{Act, Answer, Heartbeat, Held, Request, Seat, Status, Target};
use proto::{Audience, NodeId, Payload, Publication, RoomName, SocketId};
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::sleep;
use unisono_cluster::{
    Budget, Call, CallError, Cluster, ClusterName, Config, Event, LinkState, Load, MemoryHub, Sent,
    start,
};

/// Nodes on one hub. The host of each answers requests and writes down what it is told.
struct Sim {
    hub: MemoryHub,
    nodes: Vec<Node>,
}

struct Node {
    cluster: Cluster,
    seen: Rc<RefCell<Seen>>,
    tasks: [JoinHandle<()>; 2],
}

/// What a host was told.
#[derive(Default)]
struct Seen {
    /// Publications, as the origin, the room and the text.
    delivered: Vec<(NodeId, Option<RoomName>, String)>,
    ready: Vec<RoomName>,
    gaps: Vec<(Option<Vec<RoomName>>, &'static str)>,
    /// Rooms that became occupied (`+x`) or vacated (`-x`) in the cluster; sockets (`socket x`) and members
    /// (`member x`) that were lost with their node, or found again.
    turns: Vec<String>,
}

const NODE_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Long enough for everything that is going to happen without a time-out; costs nothing.
const A_WHILE: Duration = Duration::from_millis(500);

impl Sim {
    async fn start(count: u64) -> Self {
        let hub = MemoryHub::new(1 << 20);
        let mut sim = Self {
            hub,
            nodes: Vec::new(),
        };
        for id in 0..count {
            sim.add(id);
        }
        sleep(3 * A_WHILE).await;
        // Who was there before the bus was is told of a gap; here, nobody was.
        for nth in 0..sim.nodes.len() {
            let gaps = sim.seen(nth, |seen| std::mem::take(&mut seen.gaps));
            assert_eq!(gaps, [(None, "bus_outage")]);
        }
        sim
    }

    fn add(&mut self, id: u64) {
        let config = Config {
            cluster: ClusterName::parse("sim").unwrap(),
            node: NodeId::new(id),
            name: format!("node-{id}"),
            version: "0".to_owned(),
            started_at_ms: 0,
            alone: false,
            heartbeat_interval: Duration::from_secs(1),
            node_timeout: NODE_TIMEOUT,
            bus_timeout: Duration::from_secs(3),
            call_timeout: CALL_TIMEOUT,
            room_linger: Duration::from_secs(5),
            lingering_rooms_max: 10_000,
            queue_messages_max: 1_000,
            incoming_bytes_max: 64 << 20,
            pending_max: 1_000,
        };
        let (cluster, node, mut events) = start(config, Budget::new(1 << 20), Load::default);
        let seen = Rc::new(RefCell::new(Seen::default()));
        let log = Rc::clone(&seen);
        let host = spawn_local(async move {
            while let Some(event) = events.recv().await {
                log.borrow_mut().on(event);
            }
        });
        let bus = spawn_local(node.run(self.hub.connect(), answer));
        self.nodes.push(Node {
            cluster,
            seen,
            tasks: [host, bus],
        });
    }

    /// Kills a node: its connection goes with it.
    fn kill(&mut self, nth: usize) {
        for task in &self.nodes[nth].tasks {
            task.abort();
        }
    }

    fn cluster(&self, nth: usize) -> &Cluster {
        &self.nodes[nth].cluster
    }

    fn seen<T>(&self, nth: usize, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.nodes[nth].seen.borrow_mut())
    }

    /// The texts that a node was handed, and forgets.
    fn texts(&self, nth: usize) -> Vec<String> {
        self.seen(nth, |seen| {
            seen.delivered.drain(..).map(|(_, _, text)| text).collect()
        })
    }

    async fn peers(&self, nth: usize) -> Vec<NodeId> {
        let peers = self.cluster(nth).peers().await;
        let mut ids: Vec<_> = peers.into_iter().map(|peer| peer.id).collect();
        ids.sort_unstable();
        ids
    }
}

fn answer(call: Call) {
    call.responder.respond(match call.request {
        Request::Act(Target::Sockets(to), _) => {
            let delivered = |id| (id, Status::Delivered);
            Answer::Statuses(to.into_iter().map(delivered).collect())
        }
        _ => Answer::Count(1),
    });
}

impl Seen {
    fn on(&mut self, event: Event) {
        match event {
            Event::Deliver {
                publication,
                origin,
                responder,
                ..
            } => {
                let room = match publication.to {
                    Audience::Room(room) => Some(room),
                    Audience::Everyone => None,
                };
                let Payload::Text(text) = publication.payload else {
                    panic!("the simulation sends text");
                };
                let text = String::from_utf8(text.into_bytes().to_vec()).unwrap();
                self.delivered.push((origin, room, text));
                if let Some(responder) = responder {
                    responder.respond(Answer::Count(2));
                }
            }
            Event::Api {
                verb, responder, ..
            } => {
                if let Some(responder) = responder {
                    responder.respond_raw(verb.into());
                }
            }
            Event::ApiEnded(told) => told.send(()).unwrap(),
            Event::Occupied(room) => self.turns.push(format!("+{room}")),
            Event::Vacated(room) => self.turns.push(format!("-{room}")),
            Event::Found(held) => self.turns.push(format!("+{}", word(&held))),
            Event::Lost(held) => self.turns.push(format!("-{}", word(&held))),
            Event::RoomReady(room) => self.ready.push(room),
            Event::Gap { rooms, reason } => self.gaps.push((rooms, reason)),
        }
    }
}

fn word(held: &Held) -> String {
    match held {
        Held::Member(seat) => format!("member {}", seat.room),
        Held::Socket(seat) => format!("socket {}", seat.room),
        Held::Room(room) => room.to_string(),
    }
}

fn seat(node: u64, name: &str) -> Seat {
    Seat {
        socket: SocketId::new(NodeId::new(node), 0, 1),
        room: room(name),
        user: None,
    }
}

fn room(name: &str) -> RoomName {
    RoomName::parse(name).unwrap()
}

fn to_room(name: &str, text: &str) -> Publication {
    Publication::new(
        Audience::Room(room(name)),
        Payload::Text(text.to_owned().into()),
    )
}

fn to_all(text: &str) -> Publication {
    Publication::new(Audience::Everyone, Payload::Text(text.to_owned().into()))
}

fn emit(node: u64) -> Request {
    let to = Target::Sockets(vec![SocketId::new(NodeId::new(node), 0, 1)]);
    let payload = Payload::Binary(Bytes::from_static(b"hi"));
    Request::Act(
        to,
        Act::Emit {
            payload,
            from: None,
            trace: None,
        },
    )
}

/// Runs a story under a paused clock.
fn story(story: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, story());
}

#[test]
fn nodes_find_each_other_and_notice_a_death() {
    story(async || {
        let mut sim = Sim::start(3).await;
        let [a, b, c] = [0, 1, 2].map(NodeId::new);
        assert_eq!(sim.peers(0).await, [b, c]);
        assert_eq!(sim.peers(2).await, [a, b]);
        sim.kill(2);
        sleep(NODE_TIMEOUT + 3 * A_WHILE).await;
        assert_eq!(sim.peers(0).await, [b]);
        // One that says goodbye is not waited for.
        sim.cluster(1).leave().await;
        sleep(A_WHILE).await;
        assert!(sim.peers(0).await.is_empty());
        sim.add(7);
        sleep(3 * A_WHILE).await;
        assert_eq!(sim.peers(0).await, [NodeId::new(7)]);
    });
}

#[test]
fn a_node_that_says_goodbye_stays_gone_and_costs_no_gap() {
    story(async || {
        let sim = Sim::start(3).await;
        sim.cluster(0).want(room("r"));
        sleep(A_WHILE).await;
        let leaving = NodeId::new(2);
        assert_eq!(
            sim.cluster(2).publish(to_room("r", "last"), None),
            Sent::ToAll
        );
        let asked = sim.cluster(0).call(leaving, emit(2), None);
        sim.cluster(2).stop_serving().await;
        sim.cluster(2).say_goodbye().await;
        // What it was asked before it is gone is answered, and what it published before is heard.
        assert!(matches!(asked.await, Ok(Answer::Statuses(_))));
        assert_eq!(sim.texts(0), ["last"]);
        // It is not heard again, however long it takes until its connection is closed.
        for _ in 0..20 {
            assert_eq!(sim.peers(0).await, [NodeId::new(1)]);
            sleep(A_WHILE).await;
        }
        sim.cluster(2).leave().await;
        sleep(2 * NODE_TIMEOUT).await;
        for nth in 0..3 {
            assert_eq!(sim.seen(nth, |seen| seen.gaps.len()), 0, "node {nth}");
        }
    });
}

#[test]
fn a_call_to_a_dead_node_is_answered_at_once() {
    story(async || {
        let mut sim = Sim::start(2).await;
        let delivered = sim.cluster(0).call(NodeId::new(1), emit(1), None).await;
        let expected = vec![(SocketId::new(NodeId::new(1), 0, 1), Status::Delivered)];
        assert_eq!(delivered, Ok(Answer::Statuses(expected)));
        let stranger = sim.cluster(0).call(NodeId::new(99), emit(99), None).await;
        assert_eq!(stranger, Err(CallError::NodeGone));
        sim.kill(1);
        sleep(Duration::from_millis(1)).await;
        let before = tokio::time::Instant::now();
        let gone = sim.cluster(0).call(NodeId::new(1), emit(1), None).await;
        assert_eq!(gone, Err(CallError::NodeGone));
        assert!(before.elapsed() < Duration::from_millis(10));
        assert!(sim.peers(0).await.is_empty(), "and it is known to be down");
    });
}

#[test]
fn a_room_is_heard_from_the_word_ready_on() {
    story(async || {
        let sim = Sim::start(3).await;
        for n in 0..100 {
            let name = format!("/room/{n}");
            sim.cluster(1).want(room(&name));
            while !sim.seen(1, |seen| seen.ready.contains(&room(&name))) {
                sleep(Duration::from_millis(1)).await;
            }
            for from in [0, 2] {
                let sent = sim.cluster(from).publish(to_room(&name, &name), None);
                assert_eq!(sent, Sent::ToAll);
            }
            sleep(Duration::from_millis(10)).await;
            assert_eq!(sim.texts(1), [name.clone(), name]);
        }
        assert!(sim.texts(0).is_empty() && sim.texts(2).is_empty());
    });
}

#[test]
fn a_released_room_lingers_and_goes() {
    story(async || {
        let sim = Sim::start(2).await;
        sim.cluster(1).want(room("r"));
        sleep(A_WHILE).await;
        sim.cluster(1).release(room("r"));
        sleep(A_WHILE).await;
        sim.cluster(0).publish(to_room("r", "still heard"), None);
        sleep(Duration::from_secs(6)).await;
        sim.cluster(0).publish(to_room("r", "not any more"), None);
        sim.cluster(0).publish(to_all("fence"), None);
        sleep(A_WHILE).await;
        assert_eq!(sim.texts(1), ["still heard", "fence"]);
    });
}

#[test]
fn one_node_says_that_a_room_is_occupied_or_vacated() {
    story(async || {
        let mut sim = Sim::start(3).await;
        let turns = |sim: &Sim| {
            let nodes = 0..sim.nodes.len();
            let turns = nodes.map(|nth| sim.seen(nth, |seen| std::mem::take(&mut seen.turns)));
            turns.collect::<Vec<_>>().concat()
        };
        for nth in [1, 2] {
            sim.cluster(nth).hold(Held::Room(room("x")), true);
        }
        // Nobody speaks before it has had the time to hear of others.
        sleep(4 * A_WHILE).await;
        assert_eq!(turns(&sim), ["+x"]);
        sim.cluster(1).hold(Held::Room(room("x")), false);
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim), [""; 0], "the other node has members");
        sim.cluster(2).hold(Held::Room(room("x")), false);
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim), ["-x"]);

        // A newcomer learns what there is and says nothing of it.
        sim.cluster(0).hold(Held::Room(room("a")), true);
        sim.cluster(2).hold(Held::Room(room("b")), true);
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim).len(), 2);
        sim.add(9);
        sleep(3 * A_WHILE).await;
        assert_eq!(turns(&sim), [""; 0]);

        // The node that spoke dies with its rooms: the next one speaks.
        sim.kill(0);
        sleep(NODE_TIMEOUT + 3 * A_WHILE).await;
        assert_eq!(turns(&sim), ["-a"]);
        sim.cluster(3).hold(Held::Room(room("b")), true);
        sleep(A_WHILE).await;
        sim.cluster(2).hold(Held::Room(room("b")), false);
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim), [""; 0]);

        // What changed while the bus was away is told when it is back.
        sim.hub.cut(3);
        sleep(Duration::from_secs(4)).await;
        sim.cluster(3).hold(Held::Room(room("c")), true);
        sim.cluster(3).hold(Held::Room(room("b")), false);
        sleep(A_WHILE).await;
        sim.hub.heal(3);
        sleep(6 * A_WHILE).await;
        let mut changed = turns(&sim);
        changed.sort();
        assert_eq!(changed, ["+c", "-b"]);

        // So is what the node that speaks has missed, though others did not notice that it was away.
        sim.hub.cut(1);
        sleep(Duration::from_millis(1_300)).await;
        sim.cluster(3).hold(Held::Room(room("c")), false);
        sleep(Duration::from_millis(100)).await;
        sim.hub.heal(1);
        sleep(10 * A_WHILE).await;
        assert_eq!(turns(&sim), ["-c"]);

        // What happens while nobody knows yet that the node which speaks is dead is said when they do; and when
        // it was not, what was said of its rooms is taken back.
        sim.cluster(1).hold(Held::Room(room("d")), true);
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim), ["+d"]);
        sim.hub.cut(1);
        sleep(2 * A_WHILE).await;
        sim.cluster(2).hold(Held::Room(room("e")), true);
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim), [""; 0]);
        sleep(NODE_TIMEOUT).await;
        let mut changed = turns(&sim);
        changed.sort();
        assert_eq!(changed, ["+e", "-d"]);
        sim.hub.heal(1);
        sleep(10 * A_WHILE).await;
        let mut changed = turns(&sim);
        changed.sort();
        assert_eq!(changed, ["+d"], "and the other hears of e");
    });
}

/// What all nodes together have said since the last call, in alphabetical order.
fn turns(sim: &Sim) -> Vec<String> {
    let nodes = 0..sim.nodes.len();
    let turns = nodes.map(|nth| sim.seen(nth, |seen| std::mem::take(&mut seen.turns)));
    let mut turns = turns.collect::<Vec<_>>().concat();
    turns.sort();
    turns
}

#[test]
fn what_becomes_of_rooms_while_nobody_has_a_bus_is_said_after_it() {
    story(async || {
        let mut sim = Sim::start(3).await;
        sim.cluster(2).hold(Held::Room(room("a")), true);
        sim.cluster(1).hold(Held::Room(room("b")), true);
        sim.cluster(1).hold(Held::Member(seat(1, "b")), true);
        sleep(4 * A_WHILE).await;
        assert_eq!(turns(&sim), ["+a", "+b"]);
        for nth in 0..3 {
            sim.hub.cut(nth);
        }
        sleep(2 * NODE_TIMEOUT).await;
        sim.cluster(2).hold(Held::Room(room("a")), false);
        sim.cluster(2).hold(Held::Room(room("c")), true);
        sim.kill(1);
        sleep(A_WHILE).await;
        for nth in [0, 2] {
            sim.hub.heal(nth);
        }
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(turns(&sim), ["+c", "-a", "-b", "-member b"]);
    });
}

/// Each half takes the other for dead, and the one that speaks there is not the one that speaks when they are whole.
#[test]
fn halves_of_a_cluster_take_back_what_they_said_of_each_other() {
    story(async || {
        let sim = Sim::start(4).await;
        for nth in [0, 1] {
            sim.cluster(nth).hold(Held::Room(room("x")), true);
        }
        for nth in [2, 3] {
            sim.cluster(nth).hold(Held::Room(room("y")), true);
        }
        sleep(4 * A_WHILE).await;
        assert_eq!(turns(&sim), ["+x", "+y"]);
        sim.hub.part(|nth| nth >= 2);
        sleep(NODE_TIMEOUT + 4 * A_WHILE).await;
        assert_eq!(turns(&sim), ["-x", "-y"]);
        sim.hub.part(|_| false);
        sleep(NODE_TIMEOUT).await;
        assert_eq!(turns(&sim), ["+x", "+y"]);
        // Once: it is said anew by whoever speaks.
        for nth in [0, 1] {
            sim.cluster(nth).hold(Held::Room(room("x")), false);
            sleep(A_WHILE).await;
            sim.cluster(nth).hold(Held::Room(room("y")), true);
        }
        sleep(A_WHILE).await;
        assert_eq!(turns(&sim), ["-x"]);
    });
}

#[test]
fn a_survivor_says_that_the_sockets_of_a_dead_node_are_lost() {
    story(async || {
        let mut sim = Sim::start(3).await;
        for nth in 0..3 {
            sim.cluster(nth as usize)
                .hold(Held::Socket(seat(nth, "/")), true);
            sim.cluster(nth as usize)
                .hold(Held::Member(seat(nth, "x")), true);
        }
        sim.cluster(2).hold(Held::Member(seat(2, "y")), true);
        sim.cluster(2).hold(Held::Member(seat(2, "x")), false);
        sim.cluster(2).hold(Held::Room(room("y")), true);
        sleep(3 * A_WHILE).await;
        assert_eq!(turns(&sim), ["+y"], "of its own sockets each node tells");

        // One that has only lost its connection, and is missed, is back before anything is said.
        sim.hub.cut(2);
        let gone = sim.cluster(0).call(NodeId::new(2), emit(2), None).await;
        assert!(gone.is_err());
        sleep(NODE_TIMEOUT / 2).await;
        sim.hub.heal(2);
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(turns(&sim), [""; 0]);

        // One that is away for longer is taken for dead, and what was said is taken back; once, by one.
        sim.hub.cut(2);
        sleep(NODE_TIMEOUT + 3 * A_WHILE).await;
        assert_eq!(turns(&sim), ["-member y", "-socket /", "-y"]);
        sim.cluster(2).hold(Held::Member(seat(2, "y")), false);
        sim.cluster(2).hold(Held::Room(room("y")), false);
        sim.hub.heal(2);
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(
            turns(&sim),
            ["+socket /"],
            "but for what has ended meanwhile"
        );

        // The one that speaks dies: the next one does.
        sim.kill(0);
        sleep(NODE_TIMEOUT + 3 * A_WHILE).await;
        assert_eq!(turns(&sim), ["-member x", "-socket /"]);
        // Whoever says goodbye has told of its sockets itself.
        sim.cluster(1).leave().await;
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(turns(&sim), [""; 0]);
    });
}

/// So many that they are not said all at once, and one that comes up later knows of them, too.
#[test]
fn all_sockets_of_a_large_node_are_said_to_be_lost_once() {
    story(async || {
        let mut sim = Sim::start(2).await;
        let socket = |number| {
            let socket = SocketId::new(NodeId::new(1), 0, number);
            Held::Socket(Seat {
                socket,
                ..seat(1, "/")
            })
        };
        for number in 0..3_000 {
            sim.cluster(1).hold(socket(number), true);
        }
        sleep(5 * NODE_TIMEOUT).await;
        sim.add(2);
        sleep(5 * NODE_TIMEOUT).await;
        sim.kill(0);
        sim.kill(1);
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(turns(&sim).len(), 3_000);
    });
}

/// The one that speaks says all of it, however much it is; the next one remembers a part, in case the first is dead.
#[test]
fn turns_that_nobody_is_left_to_say_are_counted() {
    const ROOMS: usize = 10_500;
    let recorder = PrometheusBuilder::new().build_recorder();
    let counts = recorder.handle();
    let _guard = metrics::set_default_local_recorder(&recorder);
    let lost = || {
        let counts = counts.render();
        let is_lost = |line: &&str| line.starts_with("unisono_occupancy_lost_total{");
        counts.lines().find(is_lost).map(str::to_owned)
    };
    story(async || {
        let mut sim = Sim::start(3).await;
        sleep(4 * A_WHILE).await;
        for number in 0..ROOMS {
            sim.cluster(2)
                .hold(Held::Room(room(&number.to_string())), true);
        }
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(turns(&sim).len(), ROOMS);
        assert_eq!(lost(), None);

        sim.kill(0);
        for number in 0..ROOMS {
            sim.cluster(2)
                .hold(Held::Room(room(&number.to_string())), false);
        }
        sleep(2 * NODE_TIMEOUT).await;
        assert_eq!(turns(&sim).len(), 10_000);
        let some = "unisono_occupancy_lost_total{what=\"said\"} 500";
        assert_eq!(lost().as_deref(), Some(some));
    });
}

#[test]
fn a_confirmed_publication_counts_sockets_on_every_node() {
    story(async || {
        let mut sim = Sim::start(3).await;
        sim.cluster(1).want(room("r"));
        sleep(A_WHILE).await;
        let confirm = |publication| Publication {
            confirm: true,
            ..publication
        };
        let permit = || Budget::new(1 << 20).try_acquire(1).unwrap();
        let publication = confirm(to_room("r", "x"));
        let gathered = sim
            .cluster(0)
            .publish_confirmed(publication, permit())
            .await;
        let mut answers = gathered.answers;
        answers.sort_by_key(|(node, _)| *node);
        let (b, c) = (NodeId::new(1), NodeId::new(2));
        assert_eq!(answers, [(b, Answer::Count(2)), (c, Answer::Count(0))]);
        assert!(gathered.missing.is_empty());
        sim.kill(2);
        let publication = confirm(to_all("y"));
        let gathered = sim
            .cluster(0)
            .publish_confirmed(publication, permit())
            .await;
        assert_eq!(gathered.answers, [(b, Answer::Count(2))]);
        assert_eq!(gathered.missing, [(c, CallError::NodeGone)]);
    });
}

/// Confirmed or not, awaited or not: what one caller sends to one room, or to everybody, leaves in the order of its calls.
#[test]
fn confirmed_and_plain_publications_arrive_in_the_order_of_the_calls() {
    story(async || {
        let sim = Sim::start(2).await;
        sim.cluster(1).want(room("r"));
        sleep(A_WHILE).await;
        let budget = Budget::new(1 << 20);
        let to_r = |text: &str| to_room("r", text);
        for to in [&to_r as &dyn Fn(&str) -> Publication, &to_all] {
            let mut waiting = Vec::new();
            let mut sent = Vec::new();
            for number in 0..100 {
                let text = number.to_string();
                let publication = to(&text);
                sent.push(text);
                if number % 3 == 0 {
                    let permit = budget.try_acquire(1).expect("there is room");
                    let publication = Publication {
                        confirm: true,
                        ..publication
                    };
                    waiting.push(sim.cluster(0).publish_confirmed(publication, permit));
                } else {
                    sim.cluster(0).publish(publication, None);
                }
            }
            sleep(A_WHILE).await;
            assert_eq!(sim.texts(1), sent);
            for confirmed in waiting {
                assert_eq!(confirmed.await.answers.len(), 1);
            }
        }
    });
}

/// The bus may notice the death of a node later than a request is sent to it: the request is lost, and nobody says so.
#[test]
fn a_node_that_does_not_answer_is_asked_whether_it_is_there() {
    use unisono_cluster::{Bus, Outgoing, Subjects};
    story(async || {
        let sim = Sim::start(1).await;
        let subjects = Subjects::new(ClusterName::parse("sim").unwrap());
        let id = NodeId::new(77);
        let silent = sim.hub.connect();
        let requests = silent.subscribe(subjects.request(id)).await;
        let heartbeat = Heartbeat {
            name: "silent".to_owned(),
            version: "0".to_owned(),
            started_at_ms: 0,
            sockets: 0,
            rooms: 0,
            draining: false,
            occupancy: 0,
            number: 1,
        };
        let payload = proto::wire::encode(&proto::Envelope {
            origin: id,
            connection: 1,
            body: proto::Body::Heartbeat(heartbeat),
        });
        let outgoing = Outgoing {
            subject: subjects.heartbeat(),
            reply: None,
            payload,
        };
        silent.publish(outgoing).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(sim.peers(0).await, [id]);

        let begun = tokio::time::Instant::now();
        let frozen = sim.cluster(0).call(id, emit(77), None).await;
        assert_eq!(frozen, Err(CallError::Timeout), "somebody listens");
        assert_eq!(begun.elapsed().as_millis(), CALL_TIMEOUT.as_millis());

        let begun = tokio::time::Instant::now();
        let call = sim.cluster(0).call(id, emit(77), None);
        let all = sim.cluster(0).call_all(&Request::Drain);
        drop(requests);
        assert_eq!(call.await, Err(CallError::NodeGone));
        assert_eq!(all.await.missing, [(id, CallError::NodeGone)]);
        assert!(begun.elapsed() < CALL_TIMEOUT);
        assert!(sim.peers(0).await.is_empty());
    });
}

#[test]
fn a_partial_answer_names_who_is_missing() {
    story(async || {
        let sim = Sim::start(3).await;
        sim.hub.cut(2);
        let gathered = sim.cluster(0).call_all(&Request::Probe).await;
        assert_eq!(gathered.answers.len(), 1);
        assert_eq!(gathered.missing.len(), 1);
        assert_eq!(gathered.missing[0].0, NodeId::new(2));
    });
}

#[test]
fn an_outage_is_told_on_both_sides() {
    story(async || {
        let sim = Sim::start(3).await;
        for nth in 0..3 {
            sim.cluster(nth).want(room("r"));
        }
        sleep(A_WHILE).await;
        sim.hub.cut(0);
        sleep(A_WHILE).await;
        assert_eq!(sim.cluster(0).link(), LinkState::Away);
        let sent = sim.cluster(0).publish(to_room("r", "lost"), None);
        assert_eq!(sent, Sent::LocalOnly);
        let call = sim.cluster(0).call(NodeId::new(1), emit(1), None).await;
        assert_eq!(call, Err(CallError::Timeout));
        // A room is ready meanwhile, for local use, without the wait for anybody.
        sim.cluster(0).want(room("local"));
        sleep(Duration::from_millis(1)).await;
        assert!(sim.seen(0, |seen| seen.ready.contains(&room("local"))));
        assert!(sim.seen(0, |seen| seen.gaps.is_empty()), "it still grows");

        sleep(2 * NODE_TIMEOUT).await;
        sim.hub.heal(0);
        sleep(3 * A_WHILE).await;
        assert_eq!(sim.cluster(0).link(), LinkState::Connected);
        assert_eq!(
            sim.seen(0, |seen| seen.gaps.clone()),
            [(None, "bus_outage")]
        );
        for nth in [1, 2] {
            let gaps = sim.seen(nth, |seen| seen.gaps.clone());
            assert_eq!(gaps, [(Some(vec![room("r")]), "bus_outage")], "{nth}");
        }
        assert_eq!(sim.peers(0).await.len(), 2);
        sim.cluster(1).publish(to_room("local", "heard"), None);
        sim.cluster(0).publish(to_room("r", "again"), None);
        sleep(A_WHILE).await;
        assert_eq!(sim.texts(0), ["heard"]);
        assert_eq!(sim.texts(1), ["again"]);
    });
}

#[test]
fn garbage_and_forgery_change_nothing() {
    use unisono_cluster::{Bus, Outgoing, Subjects};
    story(async || {
        let sim = Sim::start(2).await;
        let intruder = sim.hub.connect();
        let subjects = Subjects::new(ClusterName::parse("sim").unwrap());
        let forged = proto::Envelope {
            origin: NodeId::new(1),
            connection: 0,
            body: proto::Body::Publication(to_room("other", "forged")),
        };
        for subject in [
            subjects.all(),
            subjects.heartbeat(),
            subjects.request(NodeId::new(1)),
        ] {
            for payload in [
                Bytes::from_static(b"\xff\x00"),
                proto::wire::encode(&forged),
            ] {
                let outgoing = Outgoing {
                    subject: subject.clone(),
                    reply: None,
                    payload,
                };
                intruder.publish(outgoing).await.unwrap();
            }
        }
        sim.cluster(0).publish(to_all("fence"), None);
        sleep(A_WHILE).await;
        assert_eq!(sim.texts(1), ["fence"]);
        assert_eq!(sim.peers(1).await, [NodeId::new(0)]);
    });
}

/// Cuts and heals at random while every node publishes. Whatever happens: nothing arrives twice, what
/// arrives from one sender is in order, and whoever missed something is told.
#[test]
fn random_outages_lose_nothing_in_silence() {
    for seed in 0..20u64 {
        story(async || random_outages(seed).await);
    }
}

async fn random_outages(seed: u64) {
    use rand::{RngExt, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let sim = Sim::start(3).await;
    for nth in 0..3 {
        sim.cluster(nth).want(room("r"));
    }
    sleep(A_WHILE).await;
    let mut cut = HashSet::new();
    // The numbers that each node published.
    let mut published: [Vec<u64>; 3] = Default::default();
    for number in 0..200 {
        match random.random_range(0..12) {
            0 => {
                let nth = random.random_range(0..3);
                if cut.insert(nth) {
                    sim.hub.cut(nth);
                }
            }
            1 => {
                if let Some(nth) = cut.iter().next().copied() {
                    cut.remove(&nth);
                    sim.hub.heal(nth);
                }
            }
            2..4 => sleep(Duration::from_millis(random.random_range(1..2_000))).await,
            _ => {
                let from = random.random_range(0..3);
                published[from].push(number);
                let publication = to_room("r", &number.to_string());
                sim.cluster(from).publish(publication, None);
            }
        }
    }
    for nth in cut {
        sim.hub.heal(nth);
    }
    sleep(NODE_TIMEOUT).await;
    for nth in 0..3 {
        let (delivered, gaps) = sim.seen(nth, |seen| (seen.delivered.clone(), seen.gaps.len()));
        for from in (0..3).filter(|from| *from != nth) {
            let origin = NodeId::new(from as u64);
            let from_there = delivered.iter().filter(|(sender, ..)| *sender == origin);
            let numbers: Vec<u64> = from_there.map(|(.., text)| text.parse().unwrap()).collect();
            assert!(
                numbers.is_sorted_by(|a, b| a < b),
                "seed {seed}: out of order or twice: {numbers:?}"
            );
            let missed = published[from].len() - numbers.len();
            assert!(
                missed == 0 || gaps > 0,
                "seed {seed}: node {nth} missed {missed} of node {from} in silence"
            );
        }
    }
}
