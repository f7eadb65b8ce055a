//! Ports on 127.0.0.1 that stay ours while nothing listens on them.
//!
//! A test stops an origin, or kills the proxy, and expects `connection refused` until it starts again on the same
//! port. A port from the kernel's ephemeral range would not do: another socket's outgoing connection may take it
//! meanwhile, or even connect to itself. So ports are taken below that range, and a UDP socket bound to the same
//! number keeps them from other processes that follow this rule; it goes away with its process, however that ends.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Context as _, Result, bail};

/// The first port that is given out.
const FIRST: u16 = 20_000;
/// How many ports are tried at most: 20000 to 31999, below every common ephemeral range.
const COUNT: u16 = 12_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A TCP port on 127.0.0.1, reserved until this is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// None for a port that was [named](Self::named) and whose UDP twin another process has.
    _reservation: Option<UdpSocket>,
}

impl Port {
    /// Reserves a port on which nothing listens.
    ///
    /// # Errors
    /// Where 12,000 ports in a row are taken.
    pub fn reserve() -> Result<Self> {
        let spread = (std::process::id() % u32::from(COUNT)) as u16;
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
            let number = FIRST + (spread.wrapping_mul(37) % COUNT + step) % COUNT;
            let Ok(reservation) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else { continue };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Ok(Self { number, _reservation: Some(reservation) });
            }
        }
        bail!(
            "expected a free port between {FIRST} and {}; found none: what listens on all of them?",
            FIRST + COUNT
        )
    }

    /// This port, where nothing listens on it: for what people have to find, such as `make demo`.
    ///
    /// # Errors
    /// Where it can't be listened on; the message names it.
    pub fn named(number: u16) -> Result<Self> {
        TcpListener::bind((Ipv4Addr::LOCALHOST, number))
            .with_context(|| format!("cannot listen on 127.0.0.1:{number}"))?;
        Ok(Self { number, _reservation: UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).ok() })
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// Its address on 127.0.0.1.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::TcpStream};

    use super::*;

    #[test]
    fn no_port_is_given_out_twice_and_nothing_listens_on_one() {
        let ports: Vec<_> = (0..200).map(|_| Port::reserve().unwrap()).collect();
        assert_eq!(ports.iter().map(Port::number).collect::<HashSet<_>>().len(), ports.len());
        assert!(ports.iter().all(|p| TcpStream::connect(p.address()).is_err()));
    }

    #[test]
    fn a_named_port_that_is_taken_is_an_error_that_names_it() {
        let number = Port::reserve().unwrap().number();
        let port = Port::named(number).unwrap();
        let _listener = TcpListener::bind(port.address()).unwrap();
        let error = format!("{:#}", Port::named(number).unwrap_err());
        assert!(error.contains(&format!("127.0.0.1:{number}")) && error.contains("in use"), "{error}");
    }
}
