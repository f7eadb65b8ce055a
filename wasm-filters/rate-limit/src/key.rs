//! What a limit counts by.

use std::net::IpAddr;

use beamline_sdk::{
    HeaderValue, Request,
    address::{self, Network},
    hash, properties,
};

use crate::config::{AddressFrom, Key};

/// How many bytes of a header's value stand in a key as they are; four times as many where all have to be escaped.
const PLAIN: usize = 32;

/// The most proxies that are gone back through.
const MAX_HOPS: usize = 32;

/// A request has several values where one is to be counted by: which of them the upstream goes by, it alone knows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Several;

/// The key of a request's bucket; none where it has not what is counted by. Different kinds cannot meet: each begins
/// with its own letter.
pub(crate) fn of(key: &Key, from: &AddressFrom, request: &Request) -> Result<Option<String>, Several> {
    match key {
        Key::Tenant => Ok(Some("t".to_owned())),
        Key::Address => Ok(Some(["a", &of_address(&client(from, request))].concat())),
        Key::Header(name) => match &*request.header_all(name) {
            [] => Ok(None),
            [value] => Ok(Some(["h", &of_value(value)].concat())),
            _ => Err(Several),
        },
    }
}

/// An IPv6 client has a whole network of 2⁶⁴ addresses: they count as one. Of an IPv4 address all 32 bits count.
fn of_address(client: &Client) -> String {
    match client {
        Client::Known(address) => Network::of(*address, 64).first().to_string(),
        Client::Unknown(text) => text.clone(),
    }
}

/// Keys are texts of at most 256 bytes, whatever a client sends. What a value is beyond its beginning is 64 bits of a hash: who
/// searches for a value that shares them with another's shares that one's bucket, as who knows the other's value does.
fn of_value(value: &HeaderValue) -> String {
    let bytes = value.as_bytes();
    let (plain, rest) = bytes.split_at(bytes.len().min(PLAIN));
    let mut key = plain.escape_ascii().to_string();
    if !rest.is_empty() {
        key.push('~');
        key.push_str(&hash::fnv1a(rest).to_string());
    }
    key
}

enum Client {
    Known(IpAddr),
    /// A peer whose address is none of IP.
    Unknown(String),
}

/// Who sent the request: the peer, or the client that trusted proxies name.
fn client(from: &AddressFrom, request: &Request) -> Client {
    let peer = properties::snapshot().client_address;
    let Some(mut client) = address::parse(&peer) else {
        return Client::Unknown(peer);
    };
    let is_trusted = |address| from.trusted_proxies.iter().any(|network| network.contains(address));
    // Each proxy adds the address of who spoke to it at the end: from there on, the first that is no proxy is the
    // client. What stands before it anybody may have written.
    let lines = if is_trusted(client) { request.header_all(&from.header) } else { Vec::new() };
    let named = lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    for text in named.take(MAX_HOPS) {
        let Some(address) = std::str::from_utf8(text.trim_ascii()).ok().and_then(address::parse) else {
            break;
        };
        client = address;
        if !is_trusted(client) {
            break;
        }
    }
    Client::Known(client)
}
