//! A manifest against its tenant's grant.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use beamline_model::{Digest, Endpoint, Grant, GrantRefusal, LimitClasses, Manifest, ModuleRef};
use beamline_nats::Connections;

use crate::{ControlError, Uncovered};

/// Whether a tenant's traffic may go to `addr`: [`Grant::permits_address`], and an admin API that listens on every address is
/// at each of this machine's.
pub(crate) fn permits_address(
    grant: &Grant,
    addr: SocketAddr,
    admin: &[SocketAddr],
) -> Result<(), GrantRefusal> {
    let everywhere = |admin: &SocketAddr| admin.ip().is_unspecified() && admin.port() == addr.port();
    if admin.iter().any(everywhere) && is_this_machines(addr.ip().to_canonical()) {
        return Err(GrantRefusal::Admin(addr));
    }
    grant.permits_address(addr, admin)
}

/// Whether a socket of this machine can have the address.
fn is_this_machines(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

/// Refuses what the grant does not cover, all of it at once.
///
/// A named endpoint is not resolved here: what it resolves to is asked at each connect.
pub(crate) fn within_grant(
    manifest: &Manifest,
    grant: &Grant,
    admin: &[SocketAddr],
    nats: &Connections,
    classes: &LimitClasses,
) -> Result<(), ControlError> {
    let hosts =
        manifest.hosts.iter().enumerate().map(|(i, host)| (format!("hosts[{i}]"), grant.permits_host(host)));
    let endpoints = manifest.upstreams.iter().flat_map(|(name, upstream)| {
        upstream.endpoints().iter().enumerate().filter_map(move |(i, endpoint)| match endpoint {
            Endpoint::Address(addr) => {
                Some((format!("upstreams.{name}.endpoints[{i}]"), permits_address(grant, *addr, admin)))
            }
            Endpoint::Named(..) => None,
        })
    });
    let subjects = manifest.upstreams.iter().filter_map(|(name, upstream)| {
        let target = upstream.nats()?;
        let undefined = || GrantRefusal::Undefined(target.connection.clone());
        let defined = nats.get(&target.connection).map(drop).ok_or_else(undefined);
        Some((format!("upstreams.{name}.nats"), grant.permits_subject(target).and(defined)))
    });
    let egress = manifest.egress.allow.iter().enumerate().filter_map(|(i, rule)| {
        Some((format!("egress.allow[{i}]"), permits_address(grant, rule.address()?, admin)))
    });
    let limits = classes.permit(grant.limit_class, &manifest.limits).map_err(GrantRefusal::from);
    let uncovered: Vec<_> = hosts
        .chain(endpoints)
        .chain(egress)
        .chain(subjects)
        .chain([("limits".to_owned(), limits)])
        .filter_map(|(key, asked)| asked.err().map(|refusal| Uncovered { key, refusal }))
        .collect();
    if uncovered.is_empty() { Ok(()) } else { Err(ControlError::Grant(uncovered)) }
}

/// The digest of each filter's module with its key, in the order of the chain.
///
/// # Errors
/// [`ControlError::ModulePath`] where a filter names a local path.
pub(crate) fn digests(manifest: &Manifest) -> Result<Vec<(String, Digest)>, ControlError> {
    manifest
        .filters
        .iter()
        .map(|filter| {
            let key = format!("filters[{}].module", filter.name);
            match &filter.module {
                ModuleRef::Digest(digest) => Ok((key, *digest)),
                ModuleRef::Path(path) => Err(ControlError::ModulePath { key, path: path.clone() }),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_api_on_every_address_is_refused_at_each_of_this_machines() {
        assert!(is_this_machines("127.0.0.1".parse().unwrap()));
        assert!(!is_this_machines("93.184.216.34".parse().unwrap()));
        let ranges = ["127.0.0.0/8", "0.0.0.0/8", "93.184.216.0/24"];
        let grant = Grant {
            upstream_ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Grant::default()
        };
        let admin: SocketAddr = "0.0.0.0:9090".parse().unwrap();
        for (asked, refused) in [
            ("127.0.0.1:9090", true),
            ("0.0.0.0:9090", true),
            ("[::ffff:127.0.0.1]:9090", true),
            ("127.0.0.1:9091", false),
            ("93.184.216.34:9090", false),
        ] {
            let permitted = permits_address(&grant, asked.parse().unwrap(), &[admin]);
            assert_eq!(matches!(permitted, Err(GrantRefusal::Admin(_))), refused, "{asked}: {permitted:?}");
        }
    }
}
