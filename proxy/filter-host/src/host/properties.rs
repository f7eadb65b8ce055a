//! `properties`: what is known of the request beside its head.

use std::net::SocketAddr;

use super::CallState;
use crate::bindings::beamline::edge::properties;

/// What is known of a request beside its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The peer at the other end of the connection.
    pub client: SocketAddr,
    /// The request's id, as in the log.
    pub request_id: String,
    /// The trace that it belongs to: 32 hexadecimal digits.
    pub trace_id: String,
    /// The tenant's name.
    pub tenant: String,
    /// The revision that serves it.
    pub revision: u64,
    /// `http` or `https`: how the client speaks to the node.
    pub scheme: &'static str,
    /// The name of the TLS handshake, where there was one.
    pub tls_server_name: Option<String>,
}

impl properties::Host for CallState {
    fn snapshot(&mut self) -> wasmtime::Result<properties::RequestProperties> {
        self.count_call()?;
        let Properties { client, request_id, trace_id, tenant, revision, scheme, tls_server_name } =
            self.view.properties();
        Ok(properties::RequestProperties {
            // An IPv4 client of a socket for both is one of IPv4.
            client_address: client.ip().to_canonical().to_string(),
            client_port: client.port(),
            request_id,
            trace_id,
            tenant,
            revision,
            scheme: scheme.to_owned(),
            tls_server_name,
        })
    }
}
