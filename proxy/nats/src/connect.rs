//! From an operator's settings to a connection that a server has taken.

use std::{io, net::SocketAddr, time::Duration};

use bytes::BytesMut;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, lookup_host},
    time,
};

use crate::{
    Auth, ConnectionSettings, ServerAddress,
    connection::Connection,
    protocol::{Decoder, Hello, Info, ServerOp},
};

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
    /// It took longer than `connect_timeout`.
    #[error("no connection to {0} stood within connect_timeout")]
    Timeout(String),
    /// The connection failed otherwise.
    #[error("the connection to {0} failed: {1}")]
    Io(String, String),
    /// The server does not take the credentials.
    #[error("{0} refused the connection's credentials: {1}")]
    Credentials(SocketAddr, String),
    /// The server asks for, or lacks, what a connection needs.
    #[error("{0} {1}")]
    Unsuitable(SocketAddr, &'static str),
}

/// A server that took us.
pub(crate) struct Greeted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) max_payload: u64,
    /// What was read beyond the greeting.
    pub(crate) decoder: Decoder,
    pub(crate) buffer: BytesMut,
}

/// Connects to one of the servers, tried in random order, each within `connect_timeout`.
pub(crate) async fn connect(settings: &ConnectionSettings, random: u32) -> Result<Connection, ConnectError> {
    let count = settings.servers.len();
    let mut last = None;
    for turn in 0..count {
        let server = &settings.servers[(random as usize + turn) % count];
        match time::timeout(settings.connect_timeout, greet(settings, server)).await {
            Ok(Ok(greeted)) => return Ok(Connection::new(greeted, settings)),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(ConnectError::Timeout(server.to_string())),
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Dns("no server".into())))
}

async fn greet(settings: &ConnectionSettings, server: &ServerAddress) -> Result<Greeted, ConnectError> {
    let (stream, peer) = dial(server, settings.connect_timeout).await?;
    let failed = |error: &dyn ToString| ConnectError::Io(peer.to_string(), error.to_string());
    let mut greeting = Greeting { stream, decoder: Decoder::default(), buffer: BytesMut::new() };
    let info = match greeting.next().await.map_err(|e| failed(&e))? {
        ServerOp::Info(info) => info,
        _ => {
            return Err(ConnectError::Unsuitable(
                peer,
                "does not begin with INFO: check that it is a NATS server",
            ));
        }
    };
    if let Some(why) = unsuitable(&info, &settings.auth) {
        return Err(ConnectError::Unsuitable(peer, why));
    }
    let hello = hello(&settings.auth);
    greeting.stream.write_all(hello.as_bytes()).await.map_err(|e| failed(&e))?;
    loop {
        match greeting.next().await.map_err(|e| failed(&e))? {
            ServerOp::Pong => break,
            ServerOp::Err(why) => return Err(ConnectError::Credentials(peer, why)),
            ServerOp::Info(_) | ServerOp::Ok | ServerOp::Ping | ServerOp::Message(..) => {}
        }
    }
    let Greeting { stream, decoder, buffer } = greeting;
    Ok(Greeted { stream, peer, max_payload: info.max_payload, decoder, buffer })
}

fn unsuitable(info: &Info, auth: &Auth) -> Option<&'static str> {
    if info.tls_required {
        return Some("asks for TLS, which is not supported yet: reach it safely without");
    }
    if !info.headers {
        return Some("has no headers: NATS 2.2 or later is needed");
    }
    if info.nonce.is_some() && *auth == Auth::None {
        return Some(
            "asks for an NKey or JWT, which is not supported yet: give the connection a user or a token",
        );
    }
    if info.auth_required && *auth == Auth::None {
        return Some(
            "asks for credentials, and the connection has none: set user and password_file, or token_file",
        );
    }
    None
}

/// CONNECT, and a PING whose PONG says that it was taken.
fn hello(auth: &Auth) -> String {
    let (user, pass, auth_token) = match auth {
        Auth::None => (None, None, None),
        Auth::Token(token) => (None, None, Some(token.as_str())),
        Auth::User { user, password } => (Some(user.as_str()), Some(password.as_str()), None),
    };
    let hello = Hello {
        verbose: false,
        pedantic: false,
        tls_required: false,
        echo: true,
        headers: true,
        no_responders: true,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        name: "beamline",
        user,
        pass,
        auth_token,
    };
    let hello = serde_json::to_string(&hello).expect("texts and truths can be written as JSON");
    format!("CONNECT {hello}\r\nPING\r\n")
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
            Err(_) => ConnectError::Timeout(peer.to_string()),
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
    stream: TcpStream,
    decoder: Decoder,
    buffer: BytesMut,
}

impl Greeting {
    async fn next(&mut self) -> io::Result<ServerOp> {
        loop {
            if let Some(op) = self.decoder.next(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(op);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
