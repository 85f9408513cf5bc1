//! Which node gets whom.

use unisono_tests::{Endpoint, Reply, closed_to, connections_to, free_port, unread_at};

use super::*;

/// So many clients, through one worker and then through the other.
async fn through_each_worker(nginx: &Nginx, count: usize) -> Vec<Client> {
    let mut clients = vec![];
    for pid in nginx.workers() {
        nginx.freeze(pid);
        for _ in 0..count {
            clients.push(nginx.client("/x").await);
        }
        nginx.thaw(pid);
    }
    clients
}

#[tokio::test]
async fn all_workers_together_even_out_what_is_open() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let mut clients = through_each_worker(&nginx, 4).await;
    clients.push(nginx.client("/x").await);
    assert!(
        shares(&clients).values().all(|share| *share == 3),
        "{:?}",
        shares(&clients)
    );

    // What has arrived was even all the time; now one node has fewer that are open.
    let ids = sandbox.ids().await;
    let emptied = ids[1].as_str();
    clients.retain(|client| client.node != emptied);
    eventually("the node is empty", async || {
        sandbox.nodes[1].metrics().await.sum("unisono_sockets") == 0.0
    })
    .await;
    for _ in 0..3 {
        let client = nginx.client("/x").await;
        assert_eq!(client.node, emptied);
        clients.push(client);
    }
}

#[tokio::test]
async fn without_the_zone_each_worker_counts_for_itself() {
    let sandbox = Sandbox::start(3).await;
    let nginx = config(&sandbox.nodes)
        .set("    zone unisono 256k;", "    #")
        .start()
        .await;
    let clients = through_each_worker(&nginx, 4).await;
    let mut shares: Vec<usize> = shares(&clients).into_values().collect();
    shares.sort_unstable();
    assert_eq!(shares, [2, 2, 4]);
}

#[tokio::test]
async fn a_draining_node_gets_nobody() {
    let sandbox = Sandbox::config()
        .toml("[drain]\ndelay = \"60s\"")
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let draining = sandbox.nodes[0].id().await;

    drain(&sandbox.nodes[0]).await;

    for _ in 0..9 {
        assert_ne!(nginx.client("/").await.node, draining);
        assert_ne!(nginx.stream("/").await.node, draining);
    }
}

#[tokio::test]
async fn a_full_node_passes_newcomers_to_the_next() {
    let sandbox = Sandbox::config().toml("[sockets]\nmax = 2").start().await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let mut clients = vec![];
    for _ in 0..2 {
        clients.push(sandbox.client(0, "/x").await);
    }
    for _ in 0..4 {
        clients.push(nginx.client("/x").await);
    }
    assert!(shares(&clients).values().all(|share| *share == 2));

    // Nobody has room: the last one's own answer, or nginx's when all were found to have none.
    for _ in 0..6 {
        let refused = answer(nginx.wire().await, &upgrade_request("/x")).await;
        assert!([502, 503].contains(&refused.status), "{refused:?}");
    }
    let left = clients.pop().expect("a client");
    let node = left.node.clone();
    drop(left);
    let welcome = eventually("there is a place again", async || {
        let mut wire = nginx.wire().await;
        wire.send(upgrade_request("/x")).await;
        match wire.response().await.status {
            101 => Ok(wire),
            other => Err(other),
        }
    });
    let opened = welcome.await.text().await;
    assert!(opened.contains(&node), "{opened}");
}

#[tokio::test]
async fn a_machine_that_has_vanished_is_passed_by() {
    let node = Node::alone("").await;
    let vanished = Vanished::start().await;
    let nginx = Nginx::config([vanished.port(), node.port()])
        .set("proxy_connect_timeout 2s;", "proxy_connect_timeout 300ms;")
        .start()
        .await;
    for _ in 0..6 {
        nginx.client("/x").await;
    }
    // Nobody is put aside: whoever is sent there first waits, and is let in all the same.
    let asked = format!("127.0.0.1:{}, ", vanished.port());
    eventually("the log tells of all", async || {
        nginx.access_log().matches("\"GET /x\" 101").count() == 6
    })
    .await;
    assert!(nginx.access_log().contains(&asked));
}

#[tokio::test]
async fn all_attempts_together_have_one_time() {
    let vanished = [
        Vanished::start().await,
        Vanished::start().await,
        Vanished::start().await,
    ];
    let nginx = Nginx::config(vanished.each_ref().map(Vanished::port))
        .set("proxy_connect_timeout 2s;", "proxy_connect_timeout 1s;")
        .set(
            "proxy_next_upstream_timeout 10s;",
            "proxy_next_upstream_timeout 1900ms;",
        )
        .start()
        .await;
    let refused = answer(nginx.wire().await, &upgrade_request("/x")).await;
    assert_eq!(refused.status, 504);
    eventually("the log tells of it", async || {
        nginx.access_log().contains("GET /x")
    })
    .await;
    let log = nginx.access_log();
    assert_eq!(log.matches("127.0.0.1:").count(), 2, "{log}");
}

/// A node that has taken a request and will not answer: what nginx sent lies there unread.
async fn hangs_at(node: &Node) {
    eventually("a request waits at the frozen node", async || {
        unread_at(node.port()) > 0
    })
    .await;
}

#[tokio::test]
async fn a_post_is_never_repeated() {
    let mut sandbox = Sandbox::config().nodes(2).key("a-long-key").start().await;
    let nginx = config(&sandbox.nodes).start().await;
    let api = nginx.api().with_key(Some("a-long-key"));
    let mut member = sandbox.client(1, "/x").await;
    sandbox.nodes[0].freeze();

    // Of two at a time one goes to the node that lives.
    let publish = async |n| {
        let body = json!({"room": "/x", "event": "n", "data": n});
        api.post("publish", body).await.status
    };
    let murder = async {
        hangs_at(&sandbox.nodes[0]).await;
        sandbox.nodes[0].kill();
    };
    let (first, second, ()) = tokio::join!(publish(0), publish(1), murder);
    let mut both = [first, second];
    both.sort_unstable();
    assert_eq!(both, [200, 502]);

    let done = if first == 200 { 0 } else { 1 };
    assert_eq!(member.expect("n").await.data, done);
    assert_eq!(publish(2).await, 200);
    assert_eq!(member.expect("n").await.data, 2);
}

#[tokio::test]
async fn a_post_that_was_answered_503_is_not_repeated() {
    let busy = async || Endpoint::start(|_| Reply::Status(503)).await;
    let applications = [busy().await, busy().await, busy().await];
    let nginx = Nginx::config(applications.each_ref().map(Endpoint::port));
    let nginx = nginx.start().await;
    let request = "POST /order HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(answer(nginx.wire().await, request).await.status, 503);
    let requests = applications.iter().map(|it| it.requests().len());
    assert_eq!(requests.sum::<usize>(), 1);
}

const PUBLISH: &str =
    "POST /api/v1/publish HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\n{\"room\":\"/\"}";

#[tokio::test]
async fn a_post_that_the_api_has_refused_goes_to_the_next_node() {
    let node = async |status| Endpoint::start(move |_| Reply::Status(status)).await;
    let nodes = [node(503).await, node(503).await, node(200).await];
    let nginx = Nginx::config(nodes.each_ref().map(Endpoint::port));
    let nginx = nginx.start().await;
    for n in 1..=6 {
        assert_eq!(answer(nginx.wire().await, PUBLISH).await.status, 200);
        let taken = nodes[2].requests();
        assert_eq!(taken.len(), n, "once, and no more");
        assert!(
            taken
                .iter()
                .all(|request| request.bytes == b"{\"room\":\"/\"}")
        );
    }
}

#[tokio::test]
async fn a_post_passes_a_node_that_refuses_and_one_that_is_gone() {
    let refusing = Endpoint::start(|_| Reply::Status(503)).await;
    let node = Endpoint::start(|_| Reply::Status(200)).await;
    let ports = [free_port(), refusing.port(), node.port()];
    let nginx = Nginx::config(ports).start().await;
    // Whichever comes first: nothing was sent to the one, and the other did nothing. Where the turns of nginx end at the
    // one that refuses, the answer is 503, and nothing was done.
    let mut done = 0;
    for _ in 0..9 {
        let status = answer(nginx.wire().await, PUBLISH).await.status;
        assert!(matches!(status, 200 | 503), "{status}");
        done += usize::from(status == 200);
        assert_eq!(node.requests().len(), done, "once, and no more");
    }
    assert!(done > 0, "none got past the others");
}

#[tokio::test]
async fn a_post_that_every_node_refuses_is_answered_503() {
    let busy = async || Endpoint::start(|_| Reply::Status(503)).await;
    let nodes = [busy().await, busy().await, busy().await];
    let nginx = Nginx::config(nodes.each_ref().map(Endpoint::port));
    let nginx = nginx.start().await;
    assert_eq!(answer(nginx.wire().await, PUBLISH).await.status, 503);
    let requests = nodes.iter().map(|it| it.requests().len());
    assert_eq!(
        requests.sum::<usize>(),
        4,
        "in the first turn one, in the second all"
    );
}

#[tokio::test]
async fn a_post_that_was_refused_and_then_taken_is_not_repeated_after_an_error() {
    let refusing = Endpoint::start(|_| Reply::Status(503)).await;
    // Takes the request and hangs up: whatever it did, it has perhaps done it.
    let dying = async || Endpoint::start(|_| Reply::HangUp).await;
    let dying = [dying().await, dying().await];
    let [one, two] = dying.each_ref().map(Endpoint::port);
    let nginx = Nginx::config([refusing.port(), one, two]).start().await;
    let published = || dying.iter().map(|it| it.requests().len()).sum::<usize>();
    for _ in 0..6 {
        let before = published();
        assert_eq!(answer(nginx.wire().await, PUBLISH).await.status, 502);
        assert_eq!(published(), before + 1);
    }
}

#[tokio::test]
async fn a_get_and_a_handshake_are_repeated() {
    let mut sandbox = Sandbox::config().nodes(2).key("a-long-key").start().await;
    let nginx = config(&sandbox.nodes).start().await;
    sandbox.nodes[0].freeze();
    let live = async || nginx.api().get("/health/live").await.status;
    let come = async || nginx.client("/x").await.node;
    let alive = sandbox.nodes[1].id().await;
    let murder = async {
        hangs_at(&sandbox.nodes[0]).await;
        sandbox.nodes[0].kill();
    };
    let (one, two, three, four, ()) = tokio::join!(live(), live(), come(), come(), murder);
    assert_eq!((one, two), (200, 200));
    assert_eq!([three, four], [alive.clone(), alive]);
}

#[tokio::test]
async fn a_503_of_the_api_keeps_no_sockets_away() {
    let sandbox = Sandbox::config()
        .cluster("ready_grace = \"200ms\"")
        .start()
        .await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let Sandbox { nodes, nats } = sandbox;
    drop(nats);
    for node in &nodes {
        eventually("the node is no longer ready", async || {
            node.api().get("/health/ready").await.status == 503
        })
        .await;
    }
    for _ in 0..9 {
        assert_eq!(nginx.api().get("/health/ready").await.status, 503);
        nginx.client("/x").await;
    }
}

#[tokio::test]
async fn api_calls_share_connections_to_the_nodes() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let ports: Vec<u16> = sandbox.nodes.iter().map(Node::port).collect();
    let all = || -> Vec<_> { ports.iter().map(|port| connections_to(*port)).collect() };
    let before = all();
    for _ in 0..60 {
        assert_eq!(nginx.api().get("/health/live").await.status, 200);
    }
    let fresh: Vec<(u16, u16)> = ports
        .iter()
        .zip(all().iter().zip(&before))
        .flat_map(|(port, (after, before))| {
            let fresh = after.difference(before);
            fresh.map(|local| (*port, *local)).collect::<Vec<_>>()
        })
        .collect();
    // Each worker keeps one with each node.
    assert!((3..=6).contains(&fresh.len()), "{fresh:?}");

    // It is nginx that lets go: a node that did could do so while a request is on its way.
    eventually("all idle connections are closed, by nginx", async || {
        fresh
            .iter()
            .all(|(port, local)| closed_to(*port).contains(local))
    })
    .await;
}
