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

/// Names that the process resolves at once. The resolver's threads are shared by every tenant, and a name server
/// that does not answer holds one of them for many seconds.
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
    connect_to(endpoint, cluster.policy(), cluster.spec().connect_timeout.get()).await
}

/// Connects to an endpoint, as far as `policy` permits its addresses, within `limit`, resolution included.
pub(crate) async fn connect_to(
    endpoint: &Endpoint,
    policy: &dyn AddressPolicy,
    limit: Duration,
) -> Result<(TcpStream, SocketAddr), Unconnected> {
    let mut peer = None;
    let failed = |peer, kind, source| Unconnected { kind, peer, source };
    let deadline = Instant::now() + limit;

    let candidates = match endpoint {
        Endpoint::Address(addr) => Addresses::from_elem(*addr, 1),
        Endpoint::Named(host, port) => match time::timeout(limit, resolve(host, *port)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => return Err(failed(peer, ErrorKind::Dns, Some(error))),
            Err(_) => {
                return Err(failed(peer, ErrorKind::Dns, Some("no answer within connect_timeout".into())));
            }
        },
    };

    let mut last = None;
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

async fn resolve(host: &HostName, port: u16) -> Result<Addresses, BoxError> {
    static LOOKING_UP: AtomicUsize = AtomicUsize::new(0);
    /// Held by the lookup itself: it goes on where nobody waits for it any more.
    struct Slot;
    impl Drop for Slot {
        fn drop(&mut self) {
            LOOKING_UP.fetch_sub(1, Ordering::Relaxed);
        }
    }

    let before = LOOKING_UP.fetch_add(1, Ordering::Relaxed);
    let slot = Slot;
    if before >= LOOKUPS {
        return Err(format!("{LOOKUPS} names are being resolved already").into());
    }
    let name = host.clone();
    let found = tokio::task::spawn_blocking(move || {
        let _slot = slot;
        Ok::<_, io::Error>((name.as_str(), port).to_socket_addrs()?.collect::<Addresses>())
    });
    found.await.map_err(|e| Box::new(e) as Box<dyn Error + Send + Sync>)?.map_err(Into::into)
}
