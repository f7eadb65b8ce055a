//! From an operator's settings to a connection that a server has taken.

use std::{cell::Cell, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use rustls::{ClientConnection, pki_types::ServerName};
use thiserror::Error;
use tokio::{
    net::{TcpStream, lookup_host},
    task, time,
};
use zeroize::Zeroizing;

use crate::{
    Auth, ConnectionSettings, ServerAddress,
    connection::Connection,
    credentials::Credentials,
    protocol::{Decoder, Hello, Info, ServerOp},
    tls::Loaded,
    wire::{Failed, Wire},
};

/// What a message's headers may take beside a body of `max_body`, in bytes.
const HEADERS_ROOM: u64 = 64 << 10;
/// Addresses of one name that are dialled.
const ADDRESSES: usize = 4;

/// Why no connection stands.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// The name could not be resolved.
    #[error("the name of {0} could not be resolved")]
    Dns(String),
    /// Nothing listens there.
    #[error("{0} refused the connection: check that the server runs")]
    Refused(SocketAddr),
    /// It took longer than `connect_timeout`; and what was waited for.
    #[error("no connection to {0} stood within connect_timeout: {1}")]
    Timeout(String, &'static str),
    /// The connection failed otherwise.
    #[error("the connection to {0} failed: {1}")]
    Io(String, String),
    /// There is no TLS with the server, and nothing is sent without.
    #[error("no TLS with {0}: {1}")]
    Tls(SocketAddr, String),
    /// A file that the connection needs cannot be used.
    #[error("{0}")]
    File(String),
    /// The server does not take the credentials.
    #[error("{0} refused the connection's credentials: {1}")]
    Credentials(SocketAddr, String),
    /// The server asks for, or lacks, what a connection needs.
    #[error("{0} {1}")]
    Unsuitable(SocketAddr, &'static str),
}

impl ConnectError {
    /// Whether somebody has to do something about it, beyond a server that is to come back.
    pub(crate) const fn is_to_be_mended(&self) -> bool {
        match self {
            Self::Tls(..) | Self::File(_) | Self::Credentials(..) | Self::Unsuitable(..) => true,
            Self::Dns(_) | Self::Refused(_) | Self::Timeout(..) | Self::Io(..) => false,
        }
    }
}

/// A server that took us.
pub(crate) struct Greeted {
    pub(crate) wire: Wire,
    pub(crate) peer: SocketAddr,
    pub(crate) max_payload: u64,
    /// What was read beyond the greeting.
    pub(crate) decoder: Decoder,
    pub(crate) buffer: BytesMut,
}

/// Connects to one of the servers, tried in random order, each within `connect_timeout`.
pub(crate) async fn connect(
    settings: &Arc<ConnectionSettings>,
    random: u32,
) -> Result<Connection, ConnectError> {
    let count = settings.servers.len();
    let mut last = None;
    for turn in 0..count {
        let server = &settings.servers[(random as usize + turn) % count];
        let waiting = Cell::new("it was not reached");
        let greeted = time::timeout(settings.connect_timeout, greet(settings, server, &waiting)).await;
        match greeted {
            Ok(Ok(greeted)) => return Ok(Connection::new(greeted, settings)),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(ConnectError::Timeout(server.to_string(), waiting.get())),
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Dns("no server".into())))
}

/// `waiting` says what is waited for.
async fn greet(
    settings: &Arc<ConnectionSettings>,
    server: &ServerAddress,
    waiting: &Cell<&'static str>,
) -> Result<Greeted, ConnectError> {
    let (socket, peer) = dial(server, settings.connect_timeout).await?;
    let asked_for = server.tls || settings.tls.is_some();
    let first = settings.tls.as_ref().is_some_and(|tls| tls.handshake_first);
    let mut greeting = Greeting {
        peer,
        wire: Wire::plain(socket),
        decoder: Decoder::default(),
        buffer: BytesMut::new(),
        tls: None,
    };
    if first {
        greeting.secure(settings, server, waiting).await?;
    }
    waiting.set(if asked_for && !first {
        "it said nothing; where the server has handshake_first, set tls.handshake_first"
    } else {
        "it sent no INFO"
    });
    let ServerOp::Info(info) = greeting.next().await? else {
        return Err(greeting.unsuitable("does not begin with INFO: check that it is a NATS server"));
    };
    if !first && (asked_for || info.tls_required) {
        if !info.tls_required && !info.tls_available {
            return Err(ConnectError::Tls(
                peer,
                "the server offers none, and the connection asks for it: expected tls in the server's configuration, or a URL with nats:// and no tls here".into(),
            ));
        }
        greeting.secure(settings, server, waiting).await?;
    }
    if let Some(why) = unsuitable(&info, &settings.auth) {
        return Err(greeting.unsuitable(why));
    }
    // Said in the clear, anybody may have said it: then it must leave the room that is asked for, and counts for no more.
    let room = settings.max_body + HEADERS_ROOM;
    let max_payload = if greeting.tls.is_none() || first { info.max_payload } else { room };
    if info.max_payload < max_payload {
        return Err(greeting.unsuitable(
            "has a max_payload that is less than the connection's max_body and 64 KiB for headers: raise the one, lower the other, or set handshake_first on both sides, so that the server says it under TLS",
        ));
    }
    waiting.set("its credentials' files were not read");
    let credentials = off_thread(settings, |settings| Credentials::read(&settings.auth)).await?;
    let hello = hello(&credentials, &info, greeting.tls.is_some()).map_err(|why| greeting.unsuitable(why))?;
    waiting.set("it did not answer CONNECT");
    greeting.wire.write_all(hello.as_bytes()).await.map_err(|error| greeting.broken(&error))?;
    drop(hello);
    loop {
        match greeting.next().await? {
            ServerOp::Pong => break,
            ServerOp::Err(why) => return Err(ConnectError::Credentials(peer, credentials.cut_out(why))),
            ServerOp::Info(_) | ServerOp::Ok | ServerOp::Ping | ServerOp::Message(..) => {}
        }
    }
    let Greeting { wire, decoder, buffer, .. } = greeting;
    Ok(Greeted { wire, peer, max_payload, decoder, buffer })
}

/// Reads files where it holds up nobody's requests.
async fn off_thread<T: Send + 'static>(
    settings: &Arc<ConnectionSettings>,
    read: impl FnOnce(&ConnectionSettings) -> Result<T, String> + Send + 'static,
) -> Result<T, ConnectError> {
    let settings = Arc::clone(settings);
    let read = task::spawn_blocking(move || read(&settings)).await;
    read.map_err(|failed| ConnectError::File(failed.to_string()))?.map_err(ConnectError::File)
}

fn unsuitable(info: &Info, auth: &Auth) -> Option<&'static str> {
    if !info.headers {
        return Some("has no headers: NATS 2.2 or later is needed");
    }
    if info.auth_required && *auth == Auth::None {
        return Some(
            "asks for credentials, and the connection has none: set its credentials, with user and password_file, token_file, nkey_seed_file or creds_file",
        );
    }
    None
}

/// CONNECT, and a PING whose PONG says that it was taken.
fn hello(credentials: &Credentials, info: &Info, under_tls: bool) -> Result<Zeroizing<String>, &'static str> {
    let shown = credentials.show(info.nonce.as_deref())?;
    let hello = Hello {
        verbose: false,
        pedantic: false,
        tls_required: under_tls,
        echo: true,
        headers: true,
        no_responders: true,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        name: "beamline",
        user: shown.user,
        pass: shown.pass,
        auth_token: shown.auth_token,
        nkey: shown.nkey,
        jwt: shown.jwt,
        sig: shown.sig.as_deref(),
    };
    let hello = serde_json::to_string(&hello).expect("texts and truths can be written as JSON");
    let hello = Zeroizing::new(hello);
    Ok(Zeroizing::new(format!("CONNECT {}\r\nPING\r\n", *hello)))
}

async fn dial(server: &ServerAddress, limit: Duration) -> Result<(TcpStream, SocketAddr), ConnectError> {
    let found = lookup_host((server.host.as_str(), server.port)).await;
    let found: Vec<_> = found.map_err(|_| ConnectError::Dns(server.to_string()))?.take(ADDRESSES).collect();
    let mut last = ConnectError::Dns(server.to_string());
    for peer in &found {
        // One address that swallows packets must not cost the others their chance.
        let share = limit / u32::try_from(found.len()).unwrap_or(1);
        last = match time::timeout(share, TcpStream::connect(*peer)).await {
            Ok(Ok(stream)) => match is_sound(&stream) {
                Ok(()) => return Ok((stream, *peer)),
                Err(error) => ConnectError::Io(peer.to_string(), error.to_string()),
            },
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                ConnectError::Refused(*peer)
            }
            Ok(Err(error)) => ConnectError::Io(peer.to_string(), error.to_string()),
            Err(_) => ConnectError::Timeout(peer.to_string(), "it was not reached"),
        };
    }
    Err(last)
}

fn is_sound(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // A connection that is given up takes what the kernel still holds of it along.
    stream.set_zero_linger()?;
    // A dead port in the ephemeral range can be dialled from itself, and TCP then connects the two ends.
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connected to itself"));
    }
    Ok(())
}

struct Greeting {
    peer: SocketAddr,
    wire: Wire,
    decoder: Decoder,
    buffer: BytesMut,
    /// What the handshake was made by, when it was.
    tls: Option<Loaded>,
}

impl Greeting {
    async fn next(&mut self) -> Result<ServerOp, ConnectError> {
        loop {
            match self.decoder.next(&mut self.buffer) {
                Ok(Some(op)) => return Ok(op),
                Ok(None) => {}
                Err(error) => return Err(ConnectError::Io(self.peer.to_string(), error.to_string())),
            }
            match self.wire.read(&mut self.buffer).await {
                Ok(0) => return Err(self.broken(&io::Error::other("the server closed the connection"))),
                Ok(_) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    /// From here on everything passes under TLS.
    async fn secure(
        &mut self,
        settings: &Arc<ConnectionSettings>,
        server: &ServerAddress,
        waiting: &Cell<&'static str>,
    ) -> Result<(), ConnectError> {
        // What came in the clear could be anybody's, and would be taken for the server's when TLS stands.
        if !self.buffer.is_empty() {
            return Err(self.unsuitable("sent more than its INFO before TLS: somebody may be between"));
        }
        waiting.set("its TLS files were not read");
        let read = |settings: &ConnectionSettings| Loaded::read(&settings.tls.clone().unwrap_or_default());
        let loaded = off_thread(settings, read).await?;
        let peer = self.peer;
        let refused = |why: String| ConnectError::Tls(peer, why);
        let name = ServerName::try_from(server.host.clone())
            .map_err(|_| refused(format!("{:?} is no name that a certificate can have", server.host)))?;
        let session = ClientConnection::new(Arc::clone(&loaded.config), name)
            .map_err(|error| refused(error.to_string()))?;
        waiting.set("it did not end the TLS handshake");
        match self.wire.secure(session, &mut self.buffer).await {
            Ok(()) => {
                self.tls = Some(loaded);
                Ok(())
            }
            Err(Failed::Tls(error)) => Err(refused(loaded.explain(&error, &server.host))),
            Err(Failed::Io(error)) => Err(refused(format!("the connection ended in the handshake: {error}"))),
        }
    }

    fn unsuitable(&self, why: &'static str) -> ConnectError {
        ConnectError::Unsuitable(self.peer, why)
    }

    /// It ended before it was taken.
    fn broken(&self, error: &io::Error) -> ConnectError {
        let alert = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        match (&self.tls, alert) {
            (Some(tls), Some(alert)) => {
                ConnectError::Tls(self.peer, tls.explain(alert, &self.peer.to_string()))
            }
            (Some(tls), None) if tls.about_client().is_some() => {
                let why = tls.about_client().unwrap_or_default();
                ConnectError::Tls(self.peer, format!("{why} ({error})"))
            }
            _ => ConnectError::Io(self.peer.to_string(), error.to_string()),
        }
    }
}
