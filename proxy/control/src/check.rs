//! A manifest against its tenant's grant.

use std::net::SocketAddr;

use beamline_model::{Digest, Endpoint, Grant, GrantRefusal, LimitClasses, Manifest, ModuleRef};
use beamline_nats::Connections;

use crate::{ControlError, Uncovered};

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
                Some((format!("upstreams.{name}.endpoints[{i}]"), grant.permits_address(*addr, admin)))
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
        Some((format!("egress.allow[{i}]"), grant.permits_address(rule.address()?, admin)))
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
