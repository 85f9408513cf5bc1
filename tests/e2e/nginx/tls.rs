//! The variants with TLS.

use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
use rustls::version::{TLS12, TLS13};
use tokio_tungstenite::client_async;
use unisono_tests::{Api, Certificate, Endpoint, Reply, Stream, Tls, Tunnel};

use super::*;

/// A client through this tunnel, greeted.
async fn client(tunnel: &Tunnel, path: &str) -> Client {
    Client::connect(&format!("ws://localhost:{}{path}", tunnel.port())).await
}

#[tokio::test]
async fn sockets_streams_and_the_api_come_by_tls() {
    let sandbox = Sandbox::config().key("a-long-key").start().await;
    let certificate = Certificate::new();
    let nginx = config(&sandbox.nodes).tls(&certificate).start().await;
    let tls = Tls::new();

    let stream = tls.connect(nginx.tls_port()).await.expect("TLS");
    let url = format!("wss://localhost:{}/x", nginx.tls_port());
    let (_wss, response) = client_async(url, stream).await.expect("a handshake");
    assert_eq!(response.status(), 101);

    let tunnel = tls.tunnel(nginx.tls_port()).await;
    let mut stream = Stream::connect(tunnel.port(), "/x").await;
    let mut clients = vec![];
    for _ in 0..6 {
        clients.push(client(&tunnel, "/x").await);
    }
    assert_eq!(shares(&clients).len(), 3);
    let api = Api::new(
        format!("http://localhost:{}", tunnel.port()),
        Some("a-long-key".to_owned()),
    );
    for n in 0..5 {
        let told = api.publish_confirmed("/x", "n", json!(n)).await;
        assert_eq!(told["sockets"], 8);
        assert_eq!(stream.expect("n").await.data, n);
        for client in &mut clients {
            assert_eq!(client.expect("n").await.data, n);
        }
    }
    clients[0].close(4000, "bye").await;
    assert_eq!(clients[0].expect_close().await.0, 4000);
}

#[tokio::test]
async fn who_comes_back_resumes_its_session_on_any_worker_and_after_a_reload() {
    let sandbox = Sandbox::start(1).await;
    let certificate = Certificate::new();
    let nginx = config(&sandbox.nodes).tls(&certificate).start().await;
    for (versions, version) in [(&TLS12, TLSv1_2), (&TLS13, TLSv1_3)] {
        let tls = Tls::of_versions(&[versions]);
        let tunnel = tls.tunnel(nginx.tls_port()).await;
        client(&tunnel, "/x").await;
        let first = tunnel.latest();
        assert_eq!((first.version, first.resumed), (version, false));
        for _ in 0..10 {
            client(&tunnel, "/x").await;
            assert!(tunnel.latest().resumed, "{version:?}");
        }
        nginx.reload().await;
        for _ in 0..10 {
            client(&tunnel, "/x").await;
            assert!(tunnel.latest().resumed, "{version:?} after a reload");
        }
    }
}

/// Whether this handshake of a library that still knows old ways comes to an end.
fn openssl_comes_in(nginx: &Nginx, arguments: &[&str]) -> bool {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect"]);
    command.arg(format!("127.0.0.1:{}", nginx.tls_port()));
    command.args(arguments).stdin(std::process::Stdio::null());
    let output = command.output().expect("openssl");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("CONNECTED"), "{text}");
    !text.contains("Cipher is (NONE)") && !text.contains("Cipher    : 0000")
}

#[tokio::test]
async fn old_versions_and_weak_ciphers_are_refused() {
    let node = Node::alone("").await;
    let certificate = Certificate::new();
    let nginx = config(std::slice::from_ref(&node))
        .tls(&certificate)
        .start()
        .await;
    let all = "ALL:@SECLEVEL=0";
    for (arguments, welcome) in [
        (&["-tls1_3"][..], true),
        (&["-tls1_2"], true),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-CHACHA20-POLY1305"],
            true,
        ),
        (&["-tls1_1", "-cipher", all], false),
        (&["-tls1", "-cipher", all], false),
        (
            &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"],
            false,
        ),
        (
            &[
                "-tls1_2",
                "-cipher",
                "ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0",
            ],
            false,
        ),
    ] {
        assert_eq!(
            openssl_comes_in(&nginx, arguments),
            welcome,
            "{arguments:?}"
        );
    }
    // It is the configuration that refuses them, not the library.
    let lax = config(std::slice::from_ref(&node))
        .tls(&certificate)
        .set("TLSv1.2 TLSv1.3;", "TLSv1 TLSv1.1 TLSv1.2;")
        .set("ECDHE+AESGCM:ECDHE+CHACHA20;", "ALL:@SECLEVEL=0;")
        .start()
        .await;
    assert!(openssl_comes_in(&lax, &["-tls1_1", "-cipher", all]));
    let weak = ["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"];
    assert!(openssl_comes_in(&lax, &weak));
}

#[tokio::test]
async fn a_reload_shows_another_certificate_and_cuts_nobody() {
    let sandbox = Sandbox::start(3).await;
    let (first, second) = (Certificate::new(), Certificate::new());
    let mut nginx = config(&sandbox.nodes).tls(&first).start().await;
    let tunnel = Tls::new().tunnel(nginx.tls_port()).await;
    let mut old = client(&tunnel, "/x").await;
    assert_eq!(tunnel.latest().certificate, *first.der());

    nginx.certify(&second);
    // Not before it is told.
    client(&tunnel, "/x").await;
    assert_eq!(tunnel.latest().certificate, *first.der());
    nginx.reload().await;

    let mut new = client(&tunnel, "/x").await;
    let handshake = tunnel.latest();
    assert_eq!(handshake.certificate, *second.der());
    assert!(!handshake.resumed);
    new.send("hi", Value::Null).await;
    old.expect("hi").await;
}

#[tokio::test]
async fn plain_http_is_sent_to_tls() {
    let node = Node::alone("").await;
    let certificate = Certificate::new();
    let nginx = config(std::slice::from_ref(&node))
        .tls(&certificate)
        .start()
        .await;
    let request = "POST /api/v1/publish?a=s3cr3t HTTP/1.1\r\nHost: chat.example:80\r\nContent-Length: 0\r\n\r\n";
    let response = answer(nginx.wire().await, request).await;
    // The method is kept, and nothing of the address is lost.
    assert_eq!(response.status, 308);
    let there = "https://chat.example/api/v1/publish?a=s3cr3t";
    assert_eq!(response.header("location"), Some(there));
    // A WebSocket client would not follow.
    let response = answer(nginx.wire().await, &upgrade_request("/x")).await;
    assert_eq!(response.status, 308);
    let log = eventually("the log tells of both", async || {
        let log = nginx.access_log();
        (log.lines().count() == 2).then_some(log)
    })
    .await;
    assert!(!log.contains("s3cr3t"), "{log}");
}

#[tokio::test]
async fn a_redirect_of_a_websocket_is_an_error_to_its_client() {
    let node = Node::alone("").await;
    let certificate = Certificate::new();
    let nginx = config(std::slice::from_ref(&node))
        .tls(&certificate)
        .start()
        .await;
    let url = format!("ws://127.0.0.1:{}/x", nginx.port());
    let stream = TcpStream::connect(("127.0.0.1", nginx.port())).await;
    let refused = client_async(url, stream.expect("nginx")).await;
    let error = refused.expect_err("a redirect is no handshake");
    assert!(error.to_string().contains("308"), "{error}");
}

#[tokio::test]
async fn an_application_hears_that_it_was_https() {
    let endpoint = Endpoint::start(|_| Reply::taken()).await;
    let certificate = Certificate::new();
    let nginx = Nginx::config([endpoint.port()])
        .tls(&certificate)
        .start()
        .await;
    let tunnel = Tls::new().tunnel(nginx.tls_port()).await;
    let request =
        "POST /x HTTP/1.1\r\nHost: x\r\nX-Forwarded-Proto: http\r\nContent-Length: 2\r\n\r\n{}";
    let response = answer(Wire::connect(tunnel.port()).await, request).await;
    assert_eq!(response.status, 200);
    let request = endpoint.requests().pop().expect("a request");
    assert_eq!(request.headers["x-forwarded-proto"], "https");
}

#[tokio::test]
async fn browsers_are_told_to_insist_on_tls_where_that_was_chosen() {
    let node = Node::alone("").await;
    let certificate = Certificate::new();
    let plain = config(std::slice::from_ref(&node)).tls(&certificate);
    let insisting = plain.clone().variant("hsts");
    for (config, expected) in [(plain, None), (insisting, Some("max-age=31536000"))] {
        let nginx = config.start().await;
        let tunnel = Tls::new().tunnel(nginx.tls_port()).await;
        let get = |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        for request in [
            get("/health/live"),
            get("/api/v1/nodes"),
            get("/metrics"),
            upgrade_request("/x"),
        ] {
            let response = answer(Wire::connect(tunnel.port()).await, &request).await;
            let header = response.header("strict-transport-security");
            assert_eq!(header, expected, "{response:?}");
        }
        // It would not count there.
        let response = answer(nginx.wire().await, &get("/")).await;
        assert_eq!(response.header("strict-transport-security"), None);
    }
}
