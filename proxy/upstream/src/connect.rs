//! From an endpoint to a TCP connection: resolve, hold against the address policy, dial.

use std::{
    error::Error,
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use beamline_model::{Endpoint, HostName};
use smallvec::SmallVec;
use tokio::{net::TcpStream, time};

use crate::{AddressPolicy, BoxError, Cluster, ErrorKind};

/// Names that the process resolves at once for its upstreams. The resolver's threads are shared by every tenant, and a name
/// server that does not answer holds one of them for many seconds.
const LOOKUPS: usize = 64;

/// Addresses of one name that are dialled before the endpoint is given up.
const ADDRESSES: usize = 4;

/// Why no connection stands.
pub(crate) struct Unconnected {
    pub(crate) kind: ErrorKind,
    /// The address that was dialled last.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) source: Option<BoxError>,
}

type Addresses = SmallVec<[SocketAddr; 1]>;

/// Connects to an endpoint within the upstream's `connect_timeout`, resolution included.
pub(crate) async fn connect(
    cluster: &Cluster,
    endpoint: &Endpoint,
) -> Result<(TcpStream, SocketAddr), Unconnected> {
    connect_to(endpoint, cluster.policy(), cluster.spec().connect_timeout.get(), Slot::take).await
}

/// One of the lookups for upstreams.
struct Slot;

static LOOKING_UP: AtomicUsize = AtomicUsize::new(0);

impl Slot {
    fn take() -> Option<Self> {
        let before = LOOKING_UP.fetch_add(1, Ordering::Relaxed);
        let slot = Self;
        (before < LOOKUPS).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        LOOKING_UP.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects to an endpoint, as far as `policy` permits its addresses, within `limit`, resolution included. A name is looked up
/// where `may_look_up` gives what stands for one lookup.
pub(crate) async fn connect_to<S: Send + 'static>(
    endpoint: &Endpoint,
    policy: &dyn AddressPolicy,
    limit: Duration,
    may_look_up: impl FnOnce() -> Option<S>,
) -> Result<(TcpStream, SocketAddr), Unconnected> {
    let deadline = Instant::now() + limit;
    let unresolved = |source| failed(None, ErrorKind::Dns, Some(source));
    let candidates = match endpoint {
        Endpoint::Address(addr) => Addresses::from_elem(*addr, 1),
        Endpoint::Named(host, port) => {
            let slot = may_look_up()
                .ok_or_else(|| unresolved("too many names are being resolved already".into()))?;
            match time::timeout(limit, resolve(host, *port, slot)).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) => return Err(unresolved(error)),
                Err(_) => return Err(unresolved("no answer within connect_timeout".into())),
            }
        }
    };
    reach(candidates, policy, deadline).await
}

fn failed(peer: Option<SocketAddr>, kind: ErrorKind, source: Option<BoxError>) -> Unconnected {
    Unconnected { kind, peer, source }
}

/// Connects to the first of these addresses that is permitted and can be reached.
async fn reach(
    candidates: Addresses,
    policy: &dyn AddressPolicy,
    deadline: Instant,
) -> Result<(TcpStream, SocketAddr), Unconnected> {
    let (mut peer, mut last) = (None, None);
    let mut permitted = Addresses::new();
    for addr in candidates {
        match policy.permits(addr) {
            Ok(()) => permitted.push(addr),
            Err(refusal) => {
                peer = Some(addr);
                last = Some(failed(peer, ErrorKind::Denied(refusal), None));
            }
        }
    }
    permitted.truncate(ADDRESSES);
    for (i, addr) in permitted.iter().enumerate() {
        peer = Some(*addr);
        // One address that swallows packets must not cost the others their chance.
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(permitted.len() - i).unwrap_or(u32::MAX);
        match dial(*addr, share).await {
            Ok(stream) => return Ok((stream, *addr)),
            Err((kind, source)) => last = Some(failed(peer, kind, source)),
        }
    }
    Err(last.unwrap_or_else(|| failed(peer, ErrorKind::Dns, Some("the name has no addresses".into()))))
}

async fn dial(addr: SocketAddr, limit: Duration) -> Result<TcpStream, (ErrorKind, Option<BoxError>)> {
    let connected = async {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        // A dead port in the ephemeral range can be dialled from itself, and TCP then connects the two ends.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, "connected to itself"));
        }
        Ok(stream)
    };
    match time::timeout(limit, connected).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => {
            let kind = match error.kind() {
                io::ErrorKind::ConnectionRefused => ErrorKind::ConnectRefused,
                io::ErrorKind::TimedOut => ErrorKind::ConnectTimeout,
                _ => ErrorKind::ConnectFailed,
            };
            Err((kind, Some(error.into())))
        }
        Err(_) => Err((ErrorKind::ConnectTimeout, None)),
    }
}

async fn resolve(host: &HostName, port: u16, slot: impl Send + 'static) -> Result<Addresses, BoxError> {
    let name = host.clone();
    let found = tokio::task::spawn_blocking(move || {
        // Held by the lookup itself: it goes on where nobody waits for it any more.
        let _slot = slot;
        Ok::<_, io::Error>((name.as_str(), port).to_socket_addrs()?.collect::<Addresses>())
    });
    found.await.map_err(|e| Box::new(e) as Box<dyn Error + Send + Sync>)?.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use beamline_model::{Grant, GrantRefusal, NatsTarget};
    use tokio::net::TcpListener;

    use super::*;

    /// A grant, asked as at each connect.
    struct Granted(Grant);

    impl AddressPolicy for Granted {
        fn permits(&self, addr: SocketAddr) -> Result<(), GrantRefusal> {
            self.0.permits_address(addr, &[])
        }

        fn permits_subject(&self, target: &NatsTarget) -> Result<(), GrantRefusal> {
            self.0.permits_subject(target)
        }
    }

    fn granted(range: &str) -> Granted {
        Granted(Grant { upstream_ranges: vec![range.parse().unwrap()], ..Grant::default() })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    #[tokio::test]
    async fn of_a_names_addresses_those_are_dialled_that_are_permitted() {
        let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let permitted = here.local_addr().unwrap();
        let denied: [SocketAddr; 3] = ["169.254.169.254", "10.0.0.1", "::1"]
            .map(|ip| (ip.parse::<IpAddr>().unwrap(), permitted.port()).into());
        let policy = granted("127.0.0.1");
        for at in 0..=denied.len() {
            let mut of_name = Addresses::from_slice(&denied);
            of_name.insert(at, permitted);
            let (_, peer) = reach(of_name, &policy, soon()).await.ok().unwrap();
            assert_eq!(peer, permitted);
        }
        let refused = reach(Addresses::from_slice(&denied), &policy, soon()).await.err().unwrap();
        assert!(matches!(refused.kind, ErrorKind::Denied(GrantRefusal::Special(_))));
    }

    #[tokio::test]
    async fn an_address_is_held_against_the_grant_however_it_is_written() {
        let here = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = here.local_addr().unwrap().port();
        let (elsewhere, loopback) = (granted("0.0.0.0/0"), granted("127.0.0.0/8"));
        for host in
            ["127.1", "2130706433", "0x7f000001", "127.0.0.1", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"]
        {
            // What is no host at all is refused before it is looked up.
            let Some(endpoint) = Endpoint::of_http(&format!("{host}:{port}")) else { continue };
            let limit = Duration::from_secs(30);
            let refused = connect_to(&endpoint, &elsewhere, limit, || Some(())).await.err().unwrap();
            let is_special = matches!(refused.kind, ErrorKind::Denied(GrantRefusal::Special(_)));
            assert!(is_special || matches!(refused.kind, ErrorKind::Dns), "{host}: {:?}", refused.kind);
            if let Ok((_, peer)) = connect_to(&endpoint, &loopback, limit, || Some(())).await {
                assert_eq!(peer.ip().to_canonical(), IpAddr::from([127, 0, 0, 1]), "{host}");
            }
        }
    }

    #[tokio::test]
    async fn a_name_is_not_looked_up_without_leave() {
        let name = Endpoint::of_http("localhost:1").unwrap();
        let refused =
            connect_to(&name, &granted("127.0.0.0/8"), Duration::from_secs(30), || None::<()>).await;
        let refused = refused.err().unwrap();
        assert_eq!(refused.kind, ErrorKind::Dns);
        assert!(refused.source.unwrap().to_string().contains("too many names"));
    }
}
