//! TLS at the door: a certificate and its key from files, which are read again when they change.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsStream;
use x509_cert::Certificate;
use x509_cert::der::Decode;

use crate::config;
use crate::reload::{Followed, Reload};

/// Speaks TLS with clients.
pub struct Tls {
    acceptor: TlsAcceptor,
    certificates: Arc<Certificates>,
}

/// A connection between a client and a node, on either side.
pub enum Stream {
    /// As it comes.
    Plain(TcpStream),
    /// Inside TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// The certificate of the moment. Connections that are open keep what they were made with.
struct Certificates(Followed<CertifiedKey>);

/// Bytes that a connection may keep encrypted, or to be encrypted, while its client takes none: one record of TLS
/// (RFC 8446 §5.1). They come on top of `sockets.queue_bytes`.
const BUFFER_BYTES: usize = 16 * 1024;

/// The first byte of TLS: a record of the handshake (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;

impl Tls {
    /// None where no certificate is configured.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or is not what it should be, or the two do not belong together.
    pub fn start(config: &config::Tls, reload: &Reload) -> anyhow::Result<Option<Self>> {
        if config.certificate_file.as_os_str().is_empty() {
            return Ok(None);
        }
        let settings = config.clone();
        // While the two do not fit together, as between the writing of the one and of the other, what was read before
        // stays.
        let followed = reload.follow_counted(
            "tls",
            "unisono_tls_reloads_total",
            config.reload_interval,
            vec![config.certificate_file.clone(), config.key_file.clone()],
            move |contents| match contents {
                [certificate, key] => parse(&settings, certificate, key),
                _ => bail!("a certificate and a key are needed"),
            },
        )?;
        let certificates = Arc::new(Certificates(followed));
        let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
        let mut tls = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Who comes back, as all do after a restart of another node, need not be shown the certificate again.
        tls.ticketer = ring::Ticketer::new()?;
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(tls)),
            certificates,
        }))
    }

    /// The handshake, within that time. What speaks something else instead, as HTTP, comes back as it is.
    ///
    /// # Errors
    ///
    /// When there is no connection left to speak of.
    pub async fn accept(&self, stream: TcpStream, limit: Duration) -> io::Result<Stream> {
        let accepted = match timeout(limit, self.handshake(stream)).await {
            Ok(accepted) => accepted,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let outcome = match &accepted {
            Ok(Stream::Tls(_)) => "ok",
            Ok(Stream::Plain(_)) => "not_tls",
            Err(error) if error.kind() == io::ErrorKind::TimedOut => "timeout",
            Err(_) => "failed",
        };
        metrics::counter!("unisono_tls_handshakes_total", "outcome" => outcome).increment(1);
        accepted
    }

    async fn handshake(&self, stream: TcpStream) -> io::Result<Stream> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE_RECORD {
            return Ok(Stream::Plain(stream));
        }
        let bounded = |tls: &mut ServerConnection| tls.set_buffer_limit(Some(BUFFER_BYTES));
        let accepted = self.acceptor.accept_with(stream, bounded).await?;
        Ok(Stream::Tls(Box::new(accepted.into())))
    }

    /// When the certificate in use ends, in seconds since 1970; not at all where it does not say so in a way that can
    /// be read.
    pub fn expires(&self) -> f64 {
        let current = self.certificates.0.get();
        let end = current.end_entity_cert().ok().and_then(end_of);
        end.map_or(f64::INFINITY, |end| end.as_secs_f64())
    }
}

fn parse(
    config: &config::Tls,
    certificate: &[u8],
    private_key: &[u8],
) -> anyhow::Result<CertifiedKey> {
    let file = config.certificate_file.display();
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("{file} is not PEM"))?;
    ensure!(!chain.is_empty(), "{file} has no certificate");
    let key_file = config.key_file.display();
    let key = PrivateKeyDer::from_pem_slice(private_key)
        .with_context(|| format!("{key_file} has no private key, as PEM and without a password"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .with_context(|| format!("{file} and {key_file} are of no use together"))
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificates")
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.get())
    }
}

/// Since 1970.
fn end_of(certificate: &CertificateDer<'_>) -> Option<Duration> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let end = certificate.tbs_certificate.validity.not_after;
    Some(end.to_unix_duration())
}

// === impl Stream ===

impl Stream {
    /// Writes what goes out without waiting: for the last word of what is about to end.
    pub fn write_now(&mut self, bytes: &[u8]) {
        let mut task = Context::from_waker(Waker::noop());
        if Pin::new(&mut *self).poll_write(&mut task, bytes).is_ready() {
            let _ = Pin::new(self).poll_flush(&mut task);
        }
    }
}

/// Has both kinds of [`Stream`] do the same.
macro_rules! either {
    ($stream:expr, $inner:ident => $does:expr) => {
        match $stream.get_mut() {
            Stream::Plain($inner) => {
                let $inner = Pin::new($inner);
                $does
            }
            Stream::Tls($inner) => {
                let $inner = Pin::new(&mut **$inner);
                $does
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => inner.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, inner => inner.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, inner => inner.poll_shutdown(cx))
    }
}
