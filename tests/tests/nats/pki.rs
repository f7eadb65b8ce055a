//! A certificate authority, and what it signed.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use beamline_tests::{beamline::Options, nats::NatsServer};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::Value;
use tempfile::TempDir;

use crate::Stage;

/// An authority in a folder of files.
pub(crate) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Pki {
    /// With `ca.pem`, and `server.pem` and its key for 127.0.0.1.
    pub(crate) fn new() -> Self {
        Self::named("an authority of a test")
    }

    /// The same, of an authority of this name.
    pub(crate) fn named(name: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("beamline-pki-").tempdir().unwrap();
        let pki = Self { authority: authority(name), folder };
        fs::write(pki.ca(), pki.authority.pem()).unwrap();
        pki.issue("server", "127.0.0.1");
        pki
    }

    /// Puts another authority in the place of this one, in the same files.
    pub(crate) fn replace(&mut self) {
        self.authority = authority("an authority of a test");
        fs::write(self.ca(), self.authority.pem()).unwrap();
        self.issue("server", "127.0.0.1");
    }

    /// Signs a certificate for a name or an address.
    pub(crate) fn issue(&self, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        let (cert_file, key_file) = self.pair(file);
        fs::write(cert_file, certificate.pem()).unwrap();
        fs::write(&key_file, key.serialize_pem()).unwrap();
        fs::set_permissions(key_file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The files of a certificate and of its key.
    pub(crate) fn pair(&self, file: &str) -> (PathBuf, PathBuf) {
        let of = |end: &str| self.folder.path().join(format!("{file}{end}"));
        (of(".pem"), of("-key.pem"))
    }

    /// What a server's configuration says of TLS, with more of it.
    pub(crate) fn server_settings(&self, more: &str) -> String {
        let (cert, key) = self.pair("server");
        format!(
            "tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {:?}, timeout: 10, {more} }}\n",
            self.ca()
        )
    }

    /// A server with TLS, of which more is said.
    pub(crate) fn server(&self, more: &str) -> NatsServer {
        self.server_with(more, "")
    }

    /// The same, and more of the server itself.
    pub(crate) fn server_with(&self, more: &str, of_server: &str) -> NatsServer {
        let mut server = NatsServer::prepare(&(self.server_settings(more) + of_server)).unwrap();
        let client = more.contains("verify").then(|| {
            self.issue("tests", "tests.internal");
            self.pair("tests")
        });
        let client = client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        let access = server.access().by_tls(&self.ca(), client).unwrap();
        let first = more.contains("handshake_first");
        server.set_access(if first { access.handshake_first() } else { access });
        server.start_again().unwrap();
        server
    }

    /// A server with TLS, and a node that knows its authority.
    pub(crate) fn stage(&self, more: &str, queue: Value) -> Stage {
        let server = self.server(more);
        let configuration = Some(node_config(&server, "tls", &tls(&[("ca_file", &self.ca())])));
        Stage::configured(
            server,
            Options { workers: 1, configuration, ..Options::default() },
            "request",
            queue,
        )
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The part of a node's configuration that names a server as the connection `main`, with more of it.
pub(crate) fn node_config(server: &NatsServer, scheme: &str, more: &str) -> String {
    format!("[nats.main]\nservers = [\"{scheme}://{}\"]\nconnect_timeout = \"5s\"\n{more}", server.address())
}

/// The table `tls` of a connection, with these files.
pub(crate) fn tls(files: &[(&str, &Path)]) -> String {
    let lines = files.iter().map(|(key, path)| format!("{key} = {path:?}\n"));
    format!("[nats.main.tls]\n{}", lines.collect::<String>())
}
