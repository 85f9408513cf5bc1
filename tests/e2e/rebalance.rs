//! Sockets that move to a node which has come to the cluster.

use serde_json::json;
use unisono_tests::{Sandbox, eventually};

#[tokio::test]
async fn a_node_above_the_mean_sheds_sockets_until_it_is_near() {
    let settings = "[rebalance]\nenabled = true\nstart_percent = 20\nstop_percent = 10\nrate = 1000\n\
                    [drain]\nreconnect_max = \"1s\"\n";
    let sandbox = Sandbox::config().nodes(2).toml(settings).start().await;
    let mut clients = vec![];
    for _ in 0..20 {
        clients.push(sandbox.client(0, "/x").await);
    }

    // The mean is ten, and ten percent above it is near.
    let left = eventually("the first node has shed sockets", async || {
        let text = sandbox.api(0).get("/metrics").await.body;
        let node = text.as_str().unwrap_or_default().to_owned();
        let line = node
            .lines()
            .find(|line| line.starts_with("unisono_sockets "));
        let sockets = line.and_then(|line| line.split(' ').nth(1)?.parse::<usize>().ok());
        sockets.filter(|sockets| *sockets < 20)
    })
    .await;
    assert!(left >= 11, "{left}");
    // Each was told why, and when to come back.
    sandbox.api(0).broadcast("fence", json!(1)).await;
    let mut shed = 0;
    for client in &mut clients {
        let event = client.next().await;
        if event.event == "fence" {
            continue;
        }
        assert_eq!(event.event, "unisono:closing");
        assert_eq!(event.data["code"], 1012);
        assert!(
            event.data["reconnect_in_ms"]
                .as_u64()
                .is_some_and(|ms| ms <= 1_000)
        );
        assert_eq!(
            client.expect_close().await,
            (1012, "rebalancing".to_owned())
        );
        shed += 1;
    }
    assert_eq!(shed, 9, "down to ten percent above the mean");
}
