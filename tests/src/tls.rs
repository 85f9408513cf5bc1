//! Certificates of an authority that exists only for this process, and who trusts it.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
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

static CLIENT: LazyLock<TlsConnector> = LazyLock::new(|| {
    // Another library of the workspace may have chosen it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut trusted = RootCertStore::empty();
    trusted.add(AUTHORITY.der().clone()).expect("an authority");
    let config = ClientConfig::builder().with_root_certificates(trusted);
    TlsConnector::from(Arc::new(config.with_no_client_auth()))
});

/// A certificate for `localhost` and 127.0.0.1, its key, and the authority's certificate, as files.
#[derive(Debug)]
pub struct Identity {
    directory: TempDir,
    der: Vec<u8>,
}

// === impl Identity ===

impl Identity {
    /// A new one, in a directory of its own.
    pub fn new() -> Self {
        let directory = TempDir::with_prefix("unisono-tls-").expect("a temporary directory");
        let authority = directory.path().join("authority.pem");
        fs::write(authority, AUTHORITY.pem()).expect("a file in the test's own directory");
        let mut identity = Self {
            directory,
            der: Vec::new(),
        };
        let (certificate, key) = identity.issue();
        identity.write_certificate(&certificate);
        identity.write_key(&key);
        identity
    }

    /// Another certificate, with its key, as PEM, not written yet. It is the one that is expected from now on.
    pub fn issue(&mut self) -> (String, String) {
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = CertificateParams::new(names).expect("names");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &AUTHORITY).expect("a certificate");
        self.der = certificate.der().to_vec();
        (certificate.pem(), key.serialize_pem())
    }

    /// Puts a certificate in the place of the one that is there.
    pub fn write_certificate(&self, pem: &str) {
        fs::write(self.certificate(), pem).expect("a file in the test's own directory");
    }

    /// Puts a key in the place of the one that is there.
    pub fn write_key(&self, pem: &str) {
        fs::write(self.key(), pem).expect("a file in the test's own directory");
    }

    /// The certificate that was issued last, as DER.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// The file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path("certificate.pem")
    }

    /// The file of the key.
    pub fn key(&self) -> PathBuf {
        self.path("key.pem")
    }

    /// The file of the authority.
    pub fn authority(&self) -> PathBuf {
        self.path("authority.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        let directory: &Path = self.directory.path();
        directory.join(name)
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

/// The authority's certificate as DER, for others who trust it.
pub(crate) fn authority() -> &'static [u8] {
    AUTHORITY.der()
}

/// A TLS client of that port on this machine.
///
/// # Errors
/// When the two do not come to terms.
pub async fn connect_tls(port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    stream.set_nodelay(true)?;
    secure(stream).await
}

/// Begins TLS on a connection.
pub(crate) async fn secure<S>(stream: S) -> std::io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let name = ServerName::try_from("localhost").expect("a name");
    CLIENT.connect(name, stream).await
}
