//! What an operator says of a connection.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use beamline_model::ConnectionName;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::{Auth, TlsSettings, credentials::Credentials, tls::Loaded};

/// A text that names no server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("NATS server {found:?} is not valid: {expected}")]
pub struct InvalidServer {
    found: String,
    expected: &'static str,
}

/// One server, as `nats://host:4222`, or `tls://host:4222` where nothing but TLS will do; the port may be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Whether its scheme asks for TLS.
    pub(crate) tls: bool,
}

/// One connection: where to, as whom, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionSettings {
    /// Servers of one cluster; not empty. Each connect tries them in random order.
    pub servers: Vec<ServerAddress>,
    /// As whom. Default: nobody.
    pub auth: Auth,
    /// How it is protected. Where it is set, every server is reached by TLS alone. Default: by TLS where a server's URL or
    /// the server itself asks for it, with the system's authorities.
    pub tls: Option<TlsSettings>,
    /// Until a connection stands and its server has taken the credentials; also how long the server may take not a
    /// byte of what is to be written before the connection is given up. Default 2 s.
    pub connect_timeout: Duration,
    /// How often the server is asked whether it is there; one that says nothing until the next time is not. Default 5 s.
    pub ping_interval: Duration,
    /// The largest body of a request. The server's `max_payload` must leave room for 64 KiB of headers beside it.
    /// Default 960 KiB, which with them is the servers' own default of 1 MiB.
    pub max_body: u64,
}

impl ConnectionSettings {
    /// These servers, and the defaults.
    pub fn new(servers: Vec<ServerAddress>) -> Self {
        Self {
            servers,
            auth: Auth::None,
            tls: None,
            connect_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(5),
            max_body: 960 << 10,
        }
    }

    /// Reads the files that are named, as each connection will. So a mistake in them is told before the first one.
    ///
    /// # Errors
    /// Where one cannot be used; the text names it, what was expected and what to do, and no secret.
    pub fn check(&self) -> Result<(), String> {
        Credentials::read(&self.auth)?;
        if self.tls.is_some() || self.servers.iter().any(|server| server.tls) {
            Loaded::read(&self.tls.clone().unwrap_or_default())?;
        }
        Ok(())
    }
}

/// What became of one thread's connection.
#[derive(Clone, Debug)]
pub enum Change {
    /// It stands.
    Connected {
        /// The server.
        server: SocketAddr,
        /// Whether it is under TLS.
        tls: bool,
    },
    /// It stood, and ended.
    Lost {
        /// The server.
        server: SocketAddr,
        /// Why.
        why: String,
    },
    /// It could not be made, and that is news: it was tried for the first time, or fails for a reason that is new in this
    /// outage and that somebody has to mend.
    Unreachable {
        /// Why.
        why: String,
    },
}

type Tell = Arc<dyn Fn(&ConnectionName, &Change) + Send + Sync>;

/// Every connection that the operator defined. Cheap to clone.
#[derive(Clone, Default)]
pub struct Connections {
    defined: Arc<BTreeMap<ConnectionName, Arc<ConnectionSettings>>>,
    tell: Option<Tell>,
}

impl Connections {
    /// These connections.
    pub fn new(defined: impl IntoIterator<Item = (ConnectionName, ConnectionSettings)>) -> Self {
        let defined = defined.into_iter().map(|(name, settings)| (name, Arc::new(settings)));
        Self { defined: Arc::new(defined.collect()), tell: None }
    }

    /// Has `tell` called, on the thread concerned, when a thread's connection comes or goes.
    #[must_use]
    pub fn telling(mut self, tell: impl Fn(&ConnectionName, &Change) + Send + Sync + 'static) -> Self {
        self.tell = Some(Arc::new(tell));
        self
    }

    /// A connection by its name.
    pub fn get(&self, name: &ConnectionName) -> Option<&Arc<ConnectionSettings>> {
        self.defined.get(name)
    }

    pub(crate) fn tell(&self, name: &ConnectionName, change: &Change) {
        if let Some(tell) = &self.tell {
            tell(name, change);
        }
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").field("defined", &self.defined).finish_non_exhaustive()
    }
}

impl ServerAddress {
    /// Whether its URL asks for TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for ServerAddress {
    type Err = InvalidServer;

    fn from_str(s: &str) -> Result<Self, InvalidServer> {
        let wrong = |expected| {
            // What stands before an @ may be a secret.
            let shown = s.rsplit_once('@').map_or(s, |(_, host)| host);
            Err(InvalidServer { found: shown.chars().take(80).collect(), expected })
        };
        const FORM: &str =
            "expected \"nats://host:port\" or \"tls://host:port\", such as \"nats://127.0.0.1:4222\"";
        let (tls, rest) = match s.split_once("://") {
            Some(("nats", rest)) => (false, rest),
            Some(("tls", rest)) => (true, rest),
            _ => return wrong(FORM),
        };
        if rest.contains('@') {
            return wrong("credentials do not belong here: name their files in the connection's credentials");
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[').map(|v6| v6.split_once(']')) {
            Some(Some((host, port))) => (host, port.strip_prefix(':')),
            Some(None) => return wrong(FORM),
            None => rest.split_once(':').map_or((rest, None), |(host, port)| (host, Some(port))),
        };
        let is_host = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        let port = port.map_or(Ok(4222), str::parse);
        match port {
            Ok(port) if port != 0 && !host.is_empty() && host.len() <= 253 && host.bytes().all(is_host) => {
                Ok(Self { host: host.to_owned(), port, tls })
            }
            _ => wrong(FORM),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl<'de> Deserialize<'de> for ServerAddress {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_and_what_is_wrong_is_said() {
        for (text, host, port, tls) in [
            ("nats://127.0.0.1:4222", "127.0.0.1", 4222, false),
            ("nats://nats.internal", "nats.internal", 4222, false),
            ("nats://[::1]:4223/", "::1", 4223, false),
            ("tls://nats.internal:4443", "nats.internal", 4443, true),
        ] {
            let server: ServerAddress = text.parse().unwrap();
            assert_eq!((server.host.as_str(), server.port, server.tls), (host, port, tls), "{text}");
        }
        for (bad, expected) in [
            ("127.0.0.1:4222", "expected \"nats://host:port\""),
            ("nats://", "expected \"nats://host:port\""),
            ("nats://a:0", "expected \"nats://host:port\""),
            ("nats://[::1", "expected \"nats://host:port\""),
            ("nats://a b:1", "expected \"nats://host:port\""),
            ("ws://a:4222", "or \"tls://host:port\""),
            ("TLS://a:4222", "or \"tls://host:port\""),
            ("nats://u:secret@a:4222", "credentials do not belong here"),
            ("tls://u:secret@a:4222", "credentials do not belong here"),
        ] {
            let error = bad.parse::<ServerAddress>().unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("secret"), "{bad}: {error}");
        }
    }
}
