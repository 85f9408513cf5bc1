//! `nginx -s reload`.

use super::*;

#[tokio::test]
async fn a_reload_cuts_nobody() {
    let sandbox = Sandbox::start(3).await;
    let nginx = Nginx::shipped(&sandbox.nodes).await;
    let mut clients = vec![];
    for _ in 0..6 {
        clients.push(nginx.client("/x").await);
    }
    let mut stream = nginx.stream("/x").await;
    nginx.reload().await;
    clients.push(nginx.client("/x").await);

    clients[0].send("new message", json!("hi")).await;
    for client in &mut clients[1..] {
        client.expect("new message").await;
    }
    stream.expect("new message").await;
    clients[0].close(4000, "bye").await;
    assert_eq!(clients[0].expect_close().await.0, 4000);
}

#[tokio::test]
async fn old_workers_cut_what_is_left_when_their_time_is_over() {
    let sandbox = Sandbox::start(3).await;
    let nginx = config(&sandbox.nodes)
        .main("worker_shutdown_timeout 2s;\n")
        .start()
        .await;
    let mut client = nginx.client("/x").await;
    let old = nginx.workers();
    nginx.reload().await;
    assert_eq!(
        client.ack("unisono:join", json!({"room": "/y"})).await["room"],
        "/y"
    );

    client.expect_cut().await;
    eventually("the old workers are gone", async || {
        nginx.workers().intersection(&old).count() == 0
    })
    .await;
    eventually("the node knows", async || {
        let answer = sandbox
            .api(0)
            .get(&format!("/api/v1/sockets/{}", client.id))
            .await;
        answer.status == 404
    })
    .await;
    nginx.client("/x").await;
}

#[tokio::test]
async fn without_a_time_old_workers_stay_until_the_last_socket_closes() {
    let sandbox = Sandbox::start(1).await;
    let nginx = config(&sandbox.nodes).start().await;
    let old = nginx.workers();
    let client = nginx.client("/x").await;
    nginx.reload().await;
    // The one that has no socket goes at once.
    eventually("one of the old workers is left", async || {
        nginx.workers().intersection(&old).count() == 1
    })
    .await;
    drop(client);
    eventually("none is left", async || {
        nginx.workers().intersection(&old).count() == 0
    })
    .await;
}
