//! What the operator lets a tenant do: which hosts it may hold, which upstream addresses and NATS
//! subjects it may reach.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{BeyondCeiling, ConnectionName, HostName, LimitClass, NatsTarget, Subject, SubjectGrant};

/// What one tenant was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The hosts that its manifests may name, exactly.
    pub hosts: Vec<HostName>,
    /// The addresses that its upstreams may resolve to.
    pub upstream_ranges: Vec<UpstreamRange>,
    /// The NATS subjects that its upstreams may send to. Grants from before there were any read as none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nats_subjects: Vec<SubjectGrant>,
    /// Which ceilings hold for its manifests and modules. Grants from before there were any read as small.
    #[serde(default, skip_serializing_if = "LimitClass::is_default")]
    pub limit_class: LimitClass,
}

/// A range of addresses and ports: `10.1.0.0/16`, `127.0.0.1/32:9001`, `10.0.0.0/8:8000-8999`, `[fd00::/8]:443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamRange {
    net: IpNet,
    ports: (u16, u16),
}

/// Why an address or host is not covered by a grant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GrantRefusal {
    /// No granted host is this one.
    #[error("host {0} is not granted to this tenant: ask the operator for it, or remove it from hosts")]
    Host(HostName),
    /// No granted range holds the address.
    #[error(
        "upstream address {0} is outside this tenant's granted ranges: ask the operator for the range, or use an address within it"
    )]
    Address(SocketAddr),
    /// The address is loopback, link-local, private or otherwise special, and no range within its block was granted.
    #[error(
        "upstream address {0} is loopback, link-local (cloud metadata among them), private or reserved, and no range within that block is granted to this tenant"
    )]
    Special(SocketAddr),
    /// The address is one that this node serves its admin API on.
    #[error("upstream address {0} is this node's admin API, which no tenant can reach")]
    Admin(SocketAddr),
    /// Nothing of the connection was granted.
    #[error("NATS connection {0} is not granted to this tenant: ask the operator for subjects on it")]
    Connection(ConnectionName),
    /// No granted prefix of the connection covers the subject.
    #[error(
        "NATS subject {subject} on connection {connection} is outside this tenant's granted prefixes: ask the operator for the prefix, or use a subject within one"
    )]
    Subject {
        /// The connection.
        connection: ConnectionName,
        /// The subject.
        subject: Subject,
    },
    /// A limit is beyond its ceiling.
    #[error(transparent)]
    Limit(#[from] BeyondCeiling),
    /// This node has no such connection.
    #[error(
        "NATS connection {0} is not defined on this node: the operator defines it as [nats.{0}] in the node's configuration"
    )]
    Undefined(ConnectionName),
}

const SPECIAL: [&str; 28] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    // What IPv4 addresses are written as, and translated or tunnelled to, among them: each could be one of those above.
    "::/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

fn special_block(ip: IpAddr) -> Option<IpNet> {
    SPECIAL.iter().filter_map(|block| block.parse::<IpNet>().ok()).find(|block| block.contains(&ip))
}

/// Whether an address lies in a block that only an explicit grant opens (RFC 6890 and its like).
pub fn is_special(ip: IpAddr) -> bool {
    special_block(ip.to_canonical()).is_some()
}

impl UpstreamRange {
    fn holds(&self, addr: SocketAddr) -> bool {
        self.net.contains(&addr.ip()) && (self.ports.0..=self.ports.1).contains(&addr.port())
    }
}

impl Grant {
    /// Whether `host` may be in this tenant's manifest.
    pub fn permits_host(&self, host: &HostName) -> Result<(), GrantRefusal> {
        if self.hosts.contains(host) { Ok(()) } else { Err(GrantRefusal::Host(host.clone())) }
    }

    /// Whether this tenant's requests may be published to `target`.
    pub fn permits_subject(&self, target: &NatsTarget) -> Result<(), GrantRefusal> {
        let mut granted = self.nats_subjects.iter().filter(|g| g.connection == target.connection).peekable();
        if granted.peek().is_none() {
            return Err(GrantRefusal::Connection(target.connection.clone()));
        }
        if granted.any(|g| g.prefix.covers(&target.subject)) {
            return Ok(());
        }
        Err(GrantRefusal::Subject { connection: target.connection.clone(), subject: target.subject.clone() })
    }

    /// Whether this tenant's traffic may go to `addr`; `admin` are the addresses of this node's admin API.
    ///
    /// Asked when a manifest is applied and again at each connect, when a name has been resolved.
    /// A range as wide as `0.0.0.0/0` does not open loopback, private or link-local addresses: a range within their block does.
    pub fn permits_address(&self, addr: SocketAddr, admin: &[SocketAddr]) -> Result<(), GrantRefusal> {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let is_admin = |a: &SocketAddr| {
            a.port() == addr.port()
                && (a.ip() == addr.ip() || a.ip().is_unspecified() && is_special(addr.ip()))
        };
        if admin.iter().any(is_admin) {
            return Err(GrantRefusal::Admin(addr));
        }
        match special_block(addr.ip()) {
            None if self.upstream_ranges.iter().any(|r| r.holds(addr)) => Ok(()),
            None => Err(GrantRefusal::Address(addr)),
            Some(block) if self.upstream_ranges.iter().any(|r| block.contains(&r.net) && r.holds(addr)) => {
                Ok(())
            }
            Some(_) => Err(GrantRefusal::Special(addr)),
        }
    }
}

impl FromStr for UpstreamRange {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "upstream range {s:?} is not valid: expected an address or CIDR block, then an optional port or port range, \
                 such as \"10.1.0.0/16\", \"127.0.0.1:9001\" or \"[fd00::/8]:8000-8999\""
            )
        };
        let (net, ports) = if let Some(rest) = s.strip_prefix('[') {
            let (net, tail) = rest.split_once(']').ok_or_else(wrong)?;
            (net, tail.strip_prefix(':'))
        } else if s.bytes().filter(|b| *b == b':').count() > 1 {
            (s, None)
        } else {
            s.split_once(':').map_or((s, None), |(net, ports)| (net, Some(ports)))
        };
        let net =
            net.parse::<IpNet>().or_else(|_| net.parse::<IpAddr>().map(IpNet::from)).map_err(|_| wrong())?;
        let ports = match ports {
            None => (1, u16::MAX),
            Some(p) => {
                let (low, high) = p.split_once('-').unwrap_or((p, p));
                (low.parse().map_err(|_| wrong())?, high.parse().map_err(|_| wrong())?)
            }
        };
        if ports.0 == 0 || ports.0 > ports.1 {
            return Err(wrong());
        }
        Ok(Self { net: net.trunc(), ports })
    }
}

impl fmt::Display for UpstreamRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.net, self.ports) {
            (net, (1, u16::MAX)) => write!(f, "{net}"),
            (IpNet::V4(net), (low, high)) if low == high => write!(f, "{net}:{low}"),
            (IpNet::V4(net), (low, high)) => write!(f, "{net}:{low}-{high}"),
            (IpNet::V6(net), (low, high)) => write!(f, "[{net}]:{low}-{high}"),
        }
    }
}

crate::text::as_text!(UpstreamRange);

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(ranges: &[&str]) -> Grant {
        let upstream_ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
        Grant { upstream_ranges, ..Grant::default() }
    }

    fn addr(a: &str) -> SocketAddr {
        a.parse().unwrap()
    }

    #[test]
    fn a_wide_range_does_not_open_special_addresses() {
        let wide = grant(&["0.0.0.0/0", "::/0"]);
        assert_eq!(wide.permits_address(addr("93.184.216.34:80"), &[]), Ok(()));
        for special in [
            "127.0.0.1:80",
            "169.254.169.254:80",
            "10.0.0.1:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]:80",
            "[fe80::1]:80",
            "0.0.0.0:80",
            "[::]:80",
            "[::127.0.0.1]:80",
            "[64:ff9b::7f00:1]:80",
            "[64:ff9b:1::7f00:1]:80",
            "[2002:7f00:1::]:80",
            "[2001::1]:80",
            "[fec0::1]:80",
        ] {
            assert!(
                matches!(wide.permits_address(addr(special), &[]), Err(GrantRefusal::Special(_))),
                "{special}"
            );
        }
    }

    #[test]
    fn a_range_within_a_special_block_opens_that_range() {
        let granted = grant(&["127.0.0.1:9001-9002"]);
        assert_eq!(granted.permits_address(addr("127.0.0.1:9002"), &[]), Ok(()));
        assert!(granted.permits_address(addr("127.0.0.1:9003"), &[]).is_err());
        assert!(granted.permits_address(addr("127.0.0.2:9001"), &[]).is_err());
    }

    #[test]
    fn the_admin_address_is_never_granted() {
        let granted = grant(&["127.0.0.0/8"]);
        let refused = |admin: &str| granted.permits_address(addr("127.0.0.1:9090"), &[addr(admin)]);
        assert!(matches!(refused("127.0.0.1:9090"), Err(GrantRefusal::Admin(_))));
        assert!(matches!(refused("0.0.0.0:9090"), Err(GrantRefusal::Admin(_))));
        assert_eq!(refused("127.0.0.1:9091"), Ok(()));
    }

    #[test]
    fn a_subject_is_granted_by_its_own_connection() {
        let granted = Grant {
            nats_subjects: vec!["main=acme".parse().unwrap(), "aux=acme.events".parse().unwrap()],
            ..Grant::default()
        };
        let asked = |connection: &str, subject: &str| {
            let (connection, subject) = (connection.parse().unwrap(), subject.parse().unwrap());
            granted.permits_subject(&NatsTarget { connection, subject, kind: crate::NatsKind::Request })
        };
        assert_eq!(asked("main", "acme.orders"), Ok(()));
        assert_eq!(asked("aux", "acme.events.new"), Ok(()));
        assert!(matches!(asked("aux", "acme.orders"), Err(GrantRefusal::Subject { .. })));
        assert!(matches!(asked("other", "acme.orders"), Err(GrantRefusal::Connection(_))));
    }

    #[test]
    fn a_grant_from_before_there_was_nats_reads_back_as_it_was() {
        let stored = r#"{"hosts":["acme.test"],"upstream_ranges":["127.0.0.1/32:9001"]}"#;
        let grant: Grant = serde_json::from_str(stored).unwrap();
        assert_eq!(serde_json::to_string(&grant).unwrap(), stored);
    }

    #[test]
    fn ranges_read_back_what_they_write() {
        for text in [
            "10.1.0.0/16",
            "127.0.0.1/32:9001",
            "10.0.0.0/8:8000-8999",
            "[fd00::/8]:443-444",
            "2001:db8::/32",
        ] {
            assert_eq!(text.parse::<UpstreamRange>().unwrap().to_string(), text);
        }
        for bad in ["", "10.0.0.0/33", "10.0.0.0/8:0", "10.0.0.0/8:9-8", "example.com", "10.0.0.0/8:x"] {
            assert!(bad.parse::<UpstreamRange>().unwrap_err().contains("expected"), "{bad}");
        }
    }
}
