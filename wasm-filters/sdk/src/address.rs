//! Addresses, and the networks that they lie in.
//!
//! ```
//! use beamline_sdk::address::{self, Network};
//!
//! let office: Network = "192.0.2.0/24".parse().unwrap();
//! assert!(office.contains(address::parse("192.0.2.7").unwrap()));
//! ```

use std::{net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, de::Error};

/// A network: an address and how many of its first bits all addresses in it share. Written `192.0.2.0/24`,
/// `2001:db8::/32`, or as one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    bits: u32,
}

/// An address, or none where the text is no address. An IPv4 address in IPv6's clothes (`::ffff:192.0.2.7`) is an IPv4 one.
pub fn parse(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

impl Network {
    /// The network of these first bits in which an address lies; all of its bits where it has fewer.
    pub fn of(address: IpAddr, bits: u32) -> Self {
        let bits = bits.min(width(address));
        let first = match address {
            IpAddr::V4(v4) => IpAddr::V4((u32::from(v4) & high(bits, 32) as u32).into()),
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & high(bits, 128)).into()),
        };
        Self { first, bits }
    }

    /// Whether an address lies in it. No IPv4 address lies in an IPv6 network.
    pub fn contains(&self, address: IpAddr) -> bool {
        width(address) == width(self.first) && Self::of(address, self.bits) == *self
    }

    /// Its first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }
}

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str =
            "expected a network such as 192.0.2.0/24 or 2001:db8::/32, without bits beyond its length";
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address = parse(address).ok_or(EXPECTED)?;
        let bits = match bits {
            // `+8` and `08` are nobody's way to write it.
            Some(bits) if bits.starts_with('+') || bits.len() > 1 && bits.starts_with('0') => {
                return Err(EXPECTED);
            }
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= width(address)).ok_or(EXPECTED)?,
            None => width(address),
        };
        let network = Self::of(address, bits);
        if network.first == address { Ok(network) } else { Err(EXPECTED) }
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A number of `width` bits with the first `bits` of them set.
fn high(bits: u32, width: u32) -> u128 {
    let all = u128::MAX >> (128 - width);
    all ^ all.checked_shr(bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_networks() {
        for (network, address, inside) in [
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7/32", "192.0.2.8", false),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "192.0.2.7", false),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::", false),
            ("192.0.2.0/24", "::ffff:192.0.2.1", true),
        ] {
            let network: Network = network.parse().unwrap();
            assert_eq!(network.contains(parse(address).unwrap()), inside, "{address} in {network:?}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in [
            "",
            "/",
            "192.0.2.0/33",
            "192.0.2.1/24",
            "::1/129",
            "::/+0",
            "::/01",
            "::/",
            "example.test",
            "1.2.3/8",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Network>("\"10.0.0.0/8\"").is_ok());
        assert!(
            serde_json::from_str::<Network>("\"10.0.0.1/8\"")
                .unwrap_err()
                .to_string()
                .contains("192.0.2.0/24")
        );
    }

    #[test]
    fn clients_can_be_counted_by_their_network() {
        let of = |address: &str, bits| Network::of(parse(address).unwrap(), bits).first().to_string();
        assert_eq!(of("2001:db8:1:2:3:4:5:6", 64), "2001:db8:1:2::");
        assert_eq!(of("192.0.2.7", 64), "192.0.2.7");
    }
}
