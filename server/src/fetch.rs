//! HTTP to the application, to key servers and to a collector of traces, and from the command line to a node: nothing
//! is followed, nothing is read without end.

use std::time::Duration;

use anyhow::{Context, ensure};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Response};

/// Shorter than the five seconds after which many servers hang up: a request on a connection that is being
/// closed fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// A client for one URL.
pub fn client(url: &str) -> anyhow::Result<Client> {
    builder(url).build().context("cannot make an HTTP client")
}

/// A client for one URL, with something still to be said.
pub fn builder(url: &str) -> ClientBuilder {
    let client = Client::builder()
        .user_agent(format!("unisono/{}", proto::VERSION))
        .redirect(Policy::none())
        .pool_idle_timeout(IDLE_TIMEOUT)
        // The configuration says where to go, not variables that other programs are meant to read.
        .no_proxy();
    match url.starts_with("http:") {
        // Then nobody's certificate is looked at, and an image without any authorities will do.
        true => client.tls_certs_only(std::iter::empty::<Certificate>()),
        false => client,
    }
}

/// The body of an answer.
///
/// # Errors
///
/// A connection that breaks, a body that is longer. They do not tell the URL, whose query may be a secret.
pub async fn body(mut response: Response, bytes_max: usize) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(reqwest::Error::without_url)?
    {
        let fits = body.len() + chunk.len() <= bytes_max;
        ensure!(fits, "the answer has more than {bytes_max} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A server for tests, whose answers are made beforehand.
#[cfg(test)]
pub mod canned {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    /// A server for as long as the test runs.
    pub struct Canned {
        pub url: String,
        /// Each request that came, head and body.
        pub requests: mpsc::UnboundedReceiver<(String, Vec<u8>)>,
    }

    /// Gives the answers in turn, the last again and again. An empty one never comes.
    pub async fn serve(answers: &[Vec<u8>]) -> Canned {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/here", listener.local_addr().unwrap());
        let (seen, requests) = mpsc::unbounded_channel();
        let mut answers = answers.to_vec();
        answers.reverse();
        tokio::spawn(async move {
            let mut silent = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let end = loop {
                    let end = request.windows(4).position(|window| window == b"\r\n\r\n");
                    match end {
                        Some(end) => break end + 4,
                        None => assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0),
                    }
                };
                let head = String::from_utf8(request[..end].to_vec()).unwrap();
                let length = head.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length")
                        .then(|| value.trim().parse::<usize>().unwrap())
                });
                let mut body = request[end..].to_vec();
                while body.len() < length.unwrap_or(0) {
                    assert_ne!(stream.read_buf(&mut body).await.unwrap(), 0);
                }
                let _ = seen.send((head, body));
                let answer = match answers.len() {
                    1 => answers[0].clone(),
                    _ => answers.pop().unwrap(),
                };
                match answer.is_empty() {
                    true => silent.push(stream),
                    // A client that has read enough hangs up.
                    false => drop(stream.write_all(&answer).await),
                }
            }
        });
        Canned { url, requests }
    }

    /// An answer of that status and body.
    pub fn answer(status: u16, body: &str) -> Vec<u8> {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {length}");
        format!("{head}\r\n\r\n{body}").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_answer_is_not_read_to_its_end() {
        let server = canned::serve(&[canned::answer(200, &"x".repeat(1000))]).await;
        let client = client(&server.url).unwrap();
        let get = async |max| body(client.get(&server.url).send().await.unwrap(), max).await;
        assert_eq!(get(1000).await.unwrap().len(), 1000);
        let error = get(999).await.unwrap_err().to_string();
        assert_eq!(error, "the answer has more than 999 bytes");
    }

    #[tokio::test]
    async fn nothing_is_followed() {
        let answer = b"HTTP/1.1 302 Found\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n";
        let server = canned::serve(&[answer.to_vec()]).await;
        let client = client(&server.url).unwrap();
        let response = client.get(&server.url).send().await.unwrap();
        assert_eq!(response.status().as_u16(), 302);
    }
}
