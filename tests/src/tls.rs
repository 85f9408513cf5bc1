//! TLS from the client's side, by a library that is not the server's: certificates of an authority that exists only for
//! this process, who trusts it, and a tunnel through which clients that know nothing of TLS use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::client::{ClientConfig, Resumption};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

static AUTHORITY: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| {
    let mut params = CertificateParams::default();
    // Another than that of the certificates, which would look as if they had signed themselves.
    params
        .distinguished_name
        .push(DnType::CommonName, "an authority for tests");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("an authority")
});

/// A certificate of the authority for `localhost` and 127.0.0.1, with its key.
#[derive(Debug, Clone)]
pub struct Certificate {
    pem: String,
    key: String,
    der: CertificateDer<'static>,
}

/// A certificate, its key and that of the authority, in a directory of its own.
#[derive(Debug)]
pub struct Identity(TempDir);

/// A client that trusts the authority, and keeps its sessions to resume them.
#[derive(Debug, Clone)]
pub struct Tls(Arc<ClientConfig>);

/// A plain port: what connects there comes out at another port as TLS.
#[derive(Debug)]
pub struct Tunnel {
    port: u16,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
    accepting: AbortHandle,
}

/// What came of one handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// 1.2 or 1.3.
    pub version: ProtocolVersion,
    /// Whether an earlier session was taken up.
    pub resumed: bool,
    /// Whose certificate it was.
    pub certificate: CertificateDer<'static>,
}

/// The authority's certificate, for others who trust it.
pub(crate) fn authority() -> &'static CertificateDer<'static> {
    AUTHORITY.der()
}

// === impl Certificate ===

impl Certificate {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "each one is another")]
    pub fn new() -> Self {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &AUTHORITY).expect("a certificate");
        Self {
            pem: certificate.pem(),
            key: key.serialize_pem(),
            der: certificate.der().clone(),
        }
    }

    /// As it is shown in a handshake.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its key, as PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Puts it and its key into files.
    pub fn write(&self, directory: &Path, certificate: &str, key: &str) {
        for (name, text) in [(certificate, &self.pem), (key, &self.key)] {
            fs::write(directory.join(name), text).expect("a file in the test's own directory");
        }
    }
}

// === impl Identity ===

impl Identity {
    /// One with that certificate.
    pub fn new(certificate: &Certificate) -> Self {
        let identity = Self(TempDir::with_prefix("unisono-tls-").expect("a temporary directory"));
        fs::write(identity.authority(), AUTHORITY.pem())
            .expect("a file in the test's own directory");
        certificate.write(identity.0.path(), "certificate.pem", "key.pem");
        identity
    }

    /// Puts another certificate in its place, and not its key.
    pub fn replace_certificate(&self, certificate: &Certificate) {
        fs::write(self.certificate(), &certificate.pem)
            .expect("a file in the test's own directory");
    }

    /// Puts that key in its place, and not its certificate.
    pub fn replace_key(&self, certificate: &Certificate) {
        fs::write(self.key(), &certificate.key).expect("a file in the test's own directory");
    }

    /// The file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.0.path().join("certificate.pem")
    }

    /// The file of the key.
    pub fn key(&self) -> PathBuf {
        self.0.path().join("key.pem")
    }

    /// The file of the authority.
    pub fn authority(&self) -> PathBuf {
        self.0.path().join("authority.pem")
    }
}

// === impl Tls ===

impl Tls {
    /// A client of any version.
    #[expect(
        clippy::new_without_default,
        reason = "each one has sessions of its own"
    )]
    pub fn new() -> Self {
        Self::of_versions(rustls::ALL_VERSIONS)
    }

    /// A client that speaks these versions only.
    pub fn of_versions(versions: &[&'static SupportedProtocolVersion]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(AUTHORITY.der().clone()).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions that the library has")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::in_memory_sessions(64);
        Self(Arc::new(config))
    }

    /// Connects to this port of loopback.
    ///
    /// # Errors
    /// When the two do not come to terms.
    pub async fn connect(&self, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(Arc::clone(&self.0))
            .connect(name, stream)
            .await
    }

    /// A plain port that leads to this one.
    pub async fn tunnel(&self, to: u16) -> Tunnel {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let handshakes = Arc::new(Mutex::new(vec![]));
        let (tls, seen) = (self.clone(), Arc::clone(&handshakes));
        let accepting = tokio::spawn(async move {
            while let Ok((mut plain, _)) = listener.accept().await {
                let (tls, seen) = (tls.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let mut stream = tls.connect(to).await?;
                    let handshake = Handshake::of(&stream);
                    seen.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(handshake);
                    copy_bidirectional(&mut plain, &mut stream).await
                });
            }
        });
        Tunnel {
            port,
            handshakes,
            accepting: accepting.abort_handle(),
        }
    }
}

// === impl Handshake ===

impl Handshake {
    /// That of this connection.
    ///
    /// # Panics
    /// When there was none.
    pub fn of(stream: &TlsStream<TcpStream>) -> Self {
        let (_, connection) = stream.get_ref();
        let certificates = connection.peer_certificates();
        Self {
            version: connection.protocol_version().expect("a handshake"),
            resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
            certificate: certificates.expect("a certificate")[0].clone().into_owned(),
        }
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// The plain port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The handshakes so far, of connections that came to be.
    pub fn handshakes(&self) -> Vec<Handshake> {
        self.handshakes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The latest of them.
    pub fn latest(&self) -> Handshake {
        self.handshakes().pop().expect("a handshake")
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
