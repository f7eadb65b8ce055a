//! A server whose every byte the test chooses: for what no well-behaved [`Origin`](crate::origin::Origin) does.

use std::{net::SocketAddr, net::TcpStream, sync::Arc};

use anyhow::Result;

use crate::{ports::Port, server::Server};

/// A running server. Dropping it ends its connections.
pub struct Raw(Server);

impl Raw {
    /// Starts one that handles each connection on a thread of its own. The handler should return once a read or
    /// write fails.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn start(handler: impl Fn(TcpStream) + Send + Sync + 'static) -> Result<Self> {
        Ok(Self(Server::start("raw", Port::reserve()?, Arc::new(move |stream, _| handler(stream)))?))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }
}
