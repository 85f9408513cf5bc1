//! Sockets that move to a node which has come to the cluster.

use futures_util::future::select_all;
use unisono_tests::{Client, Sandbox};

#[tokio::test]
async fn a_node_above_the_mean_sheds_sockets_until_it_is_near() {
    let settings = "[rebalance]\nenabled = true\nstart_percent = 20\nstop_percent = 10\nrate = 1000\n\
                    [drain]\nreconnect_max = \"1s\"\n";
    let config = Sandbox::config().nodes(0).toml(settings);
    let mut sandbox = config.clone().start().await;
    // With one worker each: those of several have shares, and none gives more than it holds.
    let node = |i| config.node(i, &sandbox.nats).arg("--set=workers=1");
    let (old, new) = (node(0), node(1));
    sandbox.nodes.push(old.start().await);
    let mut clients = vec![];
    for _ in 0..20 {
        clients.push(sandbox.client(0, "/x").await);
    }

    sandbox.nodes.push(new.start().await);

    // The mean is ten, and ten percent above it is near: nine go.
    let mut moved = vec![];
    for _ in 0..9 {
        let closings = clients
            .iter_mut()
            .map(|client| Box::pin(client.expect("unisono:closing")));
        let (closing, nth, _) = select_all(closings).await;
        assert_eq!(closing.data["code"], 1012);
        let in_ms = closing.data["reconnect_in_ms"].as_u64();
        assert!(in_ms.is_some_and(|ms| ms <= 1_000), "{in_ms:?}");
        let mut client: Client = clients.remove(nth);
        assert_eq!(
            client.expect_close().await,
            (1012, "rebalancing".to_owned())
        );
        moved.push(sandbox.client(1, "/x").await);
    }

    // And no more: the others hear what comes next.
    sandbox.api(1).broadcast("fence", 1.into()).await;
    for client in clients.iter_mut().chain(&mut moved) {
        client.expect("fence").await;
    }
}
