//! The log, against what others would like to write into it.

use proto::envelope::{Body, Envelope, Heartbeat};
use proto::{NodeId, wire};
use reqwest::Method;
use serde_json::{Value, json};
use unisono_tests::Sandbox;

const EVIL: &str = "evil\n2026-01-01T00:00:00Z ERROR forged: line\r\u{1b}[2J\u{9b}31m\u{7}";

#[tokio::test]
async fn nobody_writes_lines_into_the_log() {
    for format in ["text", "json"] {
        let log = format!("[log]\nformat = \"{format}\"\nlevel = \"info,unisono_server=trace\"");
        let mut sandbox = Sandbox::config().nodes(1).toml(&log).start().await;
        let envelope = Envelope {
            origin: NodeId::new(0xbad),
            connection: 0,
            body: Body::Heartbeat(Heartbeat {
                name: EVIL.to_owned(),
                version: EVIL.to_owned(),
                started_at_ms: 1,
                sockets: 0,
                rooms: 0,
                draining: false,
                occupancy: 0,
                number: 0,
            }),
        };
        let stranger = sandbox.nats[0].connect().await;
        let heartbeat = wire::encode(&envelope);
        let sent = stranger.publish("unisono.heartbeat", heartbeat).await;
        sent.expect("published");
        let node = &mut sandbox.nodes[0];
        let mut client = node.client("/x?token=hidden-query").await;
        client.send("hidden-event", json!("hidden-payload")).await;
        client.send_text(EVIL).await;
        client.expect_error("bad_json").await;
        let told = node.api().disconnect(&client.id, 4000, EVIL).await;
        assert_eq!(told, "delivered");
        client.expect_close().await;
        let mut leaving = node.client("/x").await;
        leaving.close(4000, EVIL).await;
        let request = node
            .api()
            .request(Method::GET, "/x/%0aforged%1b?token=hidden-query");
        let request = request.bearer_auth("hidden-token");
        request
            .header("accept", "text/event-stream")
            .send()
            .await
            .expect("an answer");
        node.interrupt();
        node.process().exited().await;

        let log = node.process().stderr();
        let expected = ["evil\\n2026", "node up", "drained"];
        for words in expected {
            assert!(log.contains(words), "{words} in {log}");
        }
        for line in log.lines() {
            assert!(!line.chars().any(char::is_control), "{line:?}");
            assert!(!line.starts_with("2026-01-01"), "{line:?}");
            assert!(!line.contains("hidden"), "{line:?}");
            if format == "json" {
                let event: Value = serde_json::from_str(line).expect("JSON");
                assert!(event["level"].is_string(), "{line}");
            }
        }
    }
}
