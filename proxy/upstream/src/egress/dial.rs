//! Connections of filters' requests: to what a URL names, as far as the tenant may.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use beamline_model::{Egress as Rules, Endpoint};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use thiserror::Error;
use tokio::net::TcpStream;

use super::node::{Bound, Part};
use crate::{AddressPolicy, connect::connect_to};

/// For a connection, where the request's own time is not over before.
const CONNECT: Duration = Duration::from_secs(5);

/// Connects to what a URL names, as far as the policy permits.
#[derive(Clone)]
pub(super) struct Dialler {
    pub(super) rules: Arc<Rules>,
    pub(super) policy: Arc<dyn AddressPolicy>,
    pub(super) lookups: Bound,
    pub(super) kept: Bound,
}

/// No connection could be made.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct NotDialled(String);

/// A connection, which may be kept or not.
pub(super) struct Socket {
    stream: TokioIo<TcpStream>,
    /// Its place among those that are kept; none where it is closed when its exchange is over.
    place: Option<Part>,
}

impl Dialler {
    async fn dial(self, url: Uri) -> Result<Socket, NotDialled> {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let endpoint = Endpoint::of_http(authority).ok_or_else(|| NotDialled("no host".into()))?;
        let connected = connect_to(&endpoint, &*self.policy, CONNECT, || self.lookups.take(1)).await;
        let (stream, _) = connected.map_err(|unconnected| {
            let source = unconnected.source.map(|source| format!(": {source}")).unwrap_or_default();
            NotDialled(format!("{endpoint}: {}{source}", unconnected.kind))
        })?;
        // Hosts below a name can be any number, and a guest makes their names up: no connection of theirs is kept.
        let place = self.rules.names(&endpoint).then(|| self.kept.take(1)).flatten();
        Ok(Socket { stream: TokioIo::new(stream), place })
    }
}

impl tower_service::Service<Uri> for Dialler {
    type Response = Socket;
    type Error = NotDialled;
    type Future = Pin<Box<dyn Future<Output = Result<Socket, NotDialled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotDialled>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        Box::pin(self.clone().dial(url))
    }
}

impl Connection for Socket {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.place.is_none() {
            connected.poison();
        }
        connected
    }
}

impl Socket {
    fn stream(self: Pin<&mut Self>) -> Pin<&mut TokioIo<TcpStream>> {
        Pin::new(&mut self.get_mut().stream)
    }
}

impl Read for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bufs)
    }
}
