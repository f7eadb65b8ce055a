//! TLS to a server: whom to believe and what to show, read from its files for each connection, and what a failure means.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};

use crate::files;

/// How a connection is protected. Where a server's URL says `tls://`, or the connection has these settings, nothing but
/// its server's INFO is ever read or sent in the clear; with [`handshake_first`](Self::handshake_first) not even that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsSettings {
    /// The authorities that may have signed the server's certificate (PEM). Default: the system's.
    pub ca_file: Option<PathBuf>,
    /// What is shown to a server that asks for a certificate. Default: nothing.
    pub client: Option<ClientCertificate>,
    /// The handshake comes before the server's INFO, as its own `handshake_first` says. Default: after it.
    pub handshake_first: bool,
}

/// A client's certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, and those between it and an authority that the server knows (PEM).
    pub cert_file: PathBuf,
    /// Its key (PEM), which nobody but the file's owner may use.
    pub key_file: PathBuf,
}

/// What was read, for one connection.
pub(crate) struct Loaded {
    pub(crate) config: Arc<ClientConfig>,
    /// Whose authorities are believed, as an error names them.
    roots: String,
    /// Whether there is a certificate to show.
    has_client: bool,
    /// Whether the server asked for one.
    asked: Arc<AtomicBool>,
}

impl Loaded {
    /// Reads what the settings name.
    pub(crate) fn read(settings: &TlsSettings) -> Result<Self, String> {
        let (roots, named) = match &settings.ca_file {
            Some(path) => (authorities(path)?, path.display().to_string()),
            None => (system()?, "the system's store".to_owned()),
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS cannot be set up: {error}"))?
            .with_root_certificates(roots);
        let shown = settings.client.as_ref().map(|client| {
            let ClientCertificate { cert_file, key_file } = client;
            let chain = certificates(cert_file)?;
            let pem = files::private(key_file)?;
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
                .map_err(|_| format!("{}: expected a private key in PEM; found none", key_file.display()))?;
            CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(|error| {
                let (cert, key) = (cert_file.display(), key_file.display());
                format!("{cert} and {key} are no certificate and its key: {error}")
            })
        });
        let shown = shown.transpose()?;
        let (asked, has_client) = (Arc::<AtomicBool>::default(), shown.is_some());
        let mut config =
            builder.with_client_cert_resolver(Arc::new(Client { shown, asked: Arc::clone(&asked) }));
        // Nothing of one connection is used in another.
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), roots: named, has_client, asked })
    }

    /// What an error of the handshake, or soon after it, means with `name`'s server.
    pub(crate) fn explain(&self, error: &Error, name: &str) -> String {
        use AlertDescription as Alert;
        match error {
            // The second where one of the same name is there, as after an authority was made anew.
            Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                format!(
                    "the server's certificate is signed by no authority in {}: name the file with the right one as tls.ca_file",
                    self.roots
                )
            }
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            ) => format!(
                "the server's certificate is not for {name:?}, by which it is reached: expected one with that name; {error}"
            ),
            Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ) => format!(
                "the server's certificate is not valid now: it is to be renewed, or a clock to be set; {error}"
            ),
            Error::InvalidCertificate(_) => format!("the server's certificate cannot be accepted: {error}"),
            Error::InvalidMessage(_) => format!(
                "the server answered with what is no TLS ({error}): check that it has TLS, and handshake_first where tls.handshake_first is set"
            ),
            Error::AlertReceived(
                Alert::CertificateRequired
                | Alert::BadCertificate
                | Alert::UnknownCA
                | Alert::CertificateUnknown
                | Alert::CertificateExpired
                | Alert::CertificateRevoked
                | Alert::UnsupportedCertificate
                | Alert::AccessDenied
                | Alert::HandshakeFailure,
            ) => self.about_client().map_or_else(|| error.to_string(), |why| format!("{why} ({error})")),
            _ => error.to_string(),
        }
    }

    /// What a server that ends the connection after the handshake may mean by it: in TLS 1.3 it looks at a client's
    /// certificate, or misses one, when the client is through.
    pub(crate) fn about_client(&self) -> Option<&'static str> {
        match (self.asked.load(Ordering::Relaxed), self.has_client) {
            (false, _) => None,
            (true, false) => Some(
                "the server asks for a client certificate, and the connection has none: set tls.cert_file and tls.key_file",
            ),
            (true, true) => Some(
                "the server asked for a client certificate and may not accept the one in tls.cert_file: check that it is valid, and signed by an authority that the server knows",
            ),
        }
    }
}

/// Shows a certificate where there is one, and notes that it was asked for.
#[derive(Debug)]
struct Client {
    shown: Option<Arc<CertifiedKey>>,
    asked: Arc<AtomicBool>,
}

impl ResolvesClientCert for Client {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.shown.clone()
    }

    // Else it is not asked, and nobody knows that the server wanted one.
    fn has_certs(&self) -> bool {
        true
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, shown) = (files::public(path)?, path.display());
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{shown}: expected certificates in PEM; found none")),
        Err(error) => Err(format!("{shown}: expected certificates in PEM; {error}")),
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (nth, certificate) in certificates(path)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            format!("{}: its certificate {} cannot be used as an authority: {error}", path.display(), nth + 1)
        })?;
    }
    Ok(roots)
}

fn system() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Stores of systems have old ones that cannot be used; the others can.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(format!(
            "the system's store has no authority{why}: install its package ca-certificates, or set tls.ca_file"
        ));
    }
    Ok(roots)
}
