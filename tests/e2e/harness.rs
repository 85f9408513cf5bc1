//! The harness itself: a fault that it injects must be the fault that it says.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use unisono_tests::{Nats, Redis, eventually, free_port};

#[test]
fn free_ports_differ() {
    let ports: Vec<u16> = (0..50).map(|_| free_port()).collect();
    let mut unique = ports.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ports.len(), "{ports:?}");
}

#[tokio::test]
async fn a_killed_nats_comes_back_where_it_was() {
    let mut nats = Nats::start().await;
    let url = nats.url();
    let application = nats.connect().await;
    let mut subscription = application.subscribe("a").await.expect("a subscription");

    nats.kill();
    assert!(async_nats::connect(&url).await.is_err());
    nats.start_again().await;

    assert_eq!(nats.url(), url);
    let other = nats.connect().await;
    eventually("the subscription is back", async || {
        other.publish("a", "hello".into()).await.expect("published");
        timeout(Duration::from_millis(50), subscription.next())
            .await
            .is_ok()
    })
    .await;
    assert_eq!(
        nats.node_connections().await,
        Vec::<u64>::new(),
        "these are the tests' own"
    );
}

#[tokio::test]
async fn a_frozen_nats_keeps_its_connections_and_answers_nothing() {
    let nats = Nats::start().await;
    let application = nats.connect().await;
    let mut subscription = application.subscribe("a").await.expect("a subscription");
    application
        .publish("a", "before".into())
        .await
        .expect("published");
    assert_eq!(
        subscription.next().await.expect("a message").payload,
        "before"
    );

    nats.freeze();
    application
        .publish("a", "during".into())
        .await
        .expect("published");
    application.flush().await.expect("flushed to the socket");
    assert!(
        timeout(Duration::from_millis(300), subscription.next())
            .await
            .is_err()
    );

    nats.thaw();
    assert_eq!(
        subscription.next().await.expect("a message").payload,
        "during"
    );
}

#[tokio::test]
async fn a_pair_of_nats_is_one_bus() {
    let [first, second] = Nats::pair().await;
    let (left, right) = (first.connect().await, second.connect().await);
    let mut subscription = left.subscribe("a").await.expect("a subscription");

    eventually("the route has heard of the subscription", async || {
        right.publish("a", "hello".into()).await.expect("published");
        timeout(Duration::from_millis(50), subscription.next())
            .await
            .is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_small_nats_cuts_who_sends_too_much() {
    let nats = Nats::config().max_payload(1024).start().await;
    let application = nats.connect().await;
    assert_eq!(application.server_info().max_payload, 1024);
}

#[tokio::test]
async fn a_killed_redis_comes_back_where_it_was() {
    let mut redis = Redis::start().await;
    let url = redis.url();

    redis.kill();
    redis.start_again().await;

    assert_eq!(redis.url(), url);
    assert_eq!(redis.publish("nobody listens", "hello").await, 0);
}

#[tokio::test]
async fn a_frozen_redis_answers_nothing() {
    let redis = Redis::start().await;

    redis.freeze();
    let silence = timeout(Duration::from_millis(300), redis.listeners());
    assert!(silence.await.is_err());

    redis.thaw();
    assert_eq!(redis.listeners().await, 0);
}
