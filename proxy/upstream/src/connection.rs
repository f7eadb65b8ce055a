//! One upstream connection: hyper's client, the task that drives it, and its way back to the pool.
//!
//! The task itself returns the connection, in the very poll in which hyper finds both bodies done: no further
//! task, no waiting for the caller to look at the response.

use std::{
    cell::Cell,
    net::SocketAddr,
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use http::{HeaderName, Response, Version};
use hyper::client::conn::http1;
use tokio::net::TcpStream;

use crate::{
    body::RequestBody,
    pool::EndpointPool,
    socket::{Io, Socket},
};

pub(crate) type Sender = http1::SendRequest<RequestBody>;

/// What the exchange, the pool and the driving task share about a connection.
pub(crate) struct Line {
    pub(crate) socket: Rc<Socket>,
    pub(crate) peer: SocketAddr,
    home: Weak<EndpointPool>,
    /// The sender while a request is under way. The driving task takes it when the connection is free again;
    /// dropping it closes the connection.
    parked: Cell<Option<Sender>>,
    /// What the first response said; none until then.
    version: Cell<Option<Version>>,
}

/// A connection that waits for its next request.
pub(crate) struct Idle {
    pub(crate) sender: Sender,
    pub(crate) line: Rc<Line>,
    pub(crate) since: Instant,
}

/// A connection that is about to carry a request.
pub(crate) struct Lease {
    pub(crate) sender: Sender,
    pub(crate) line: Rc<Line>,
    pub(crate) reused: bool,
}

impl Line {
    /// Speaks HTTP on a new socket; the connection goes to `home` after each exchange.
    ///
    /// # Panics
    /// Outside a `LocalSet` or a local runtime.
    pub(crate) async fn open(
        stream: TcpStream,
        peer: SocketAddr,
        home: &Rc<EndpointPool>,
    ) -> Result<Lease, hyper::Error> {
        let socket = Socket::new(stream);
        let (sender, connection) = http1::handshake(Io(Rc::clone(&socket))).await?;
        let line = Rc::new(Self {
            socket,
            peer,
            home: Rc::downgrade(home),
            parked: Cell::new(None),
            version: Cell::new(None),
        });
        tokio::task::spawn_local(Driver { connection, line: Rc::clone(&line) });
        Ok(Lease { sender, line, reused: false })
    }

    /// Leaves the sender with the driving task, which returns it to the pool when the exchange is over.
    pub(crate) fn park(&self, sender: Sender) {
        self.parked.set(Some(sender));
    }

    /// Whether the peer is known to speak HTTP/1.1, so to understand a chunked request body.
    pub(crate) fn speaks_http11(&self) -> bool {
        self.version.get() == Some(Version::HTTP_11)
    }

    /// Takes note of what a response tells of its connection.
    pub(crate) fn heard<B>(&self, response: &Response<B>) {
        if self.version.replace(Some(response.version())).is_none()
            && let Some(keep) = announced_idle_limit(response)
            && let Some(home) = self.home.upgrade()
        {
            home.announced(keep);
        }
    }

    /// Back to the pool, where the exchange is over.
    fn settle(self: &Rc<Self>) {
        let Some(sender) = self.parked.take() else { return };
        // hyper wants the next request only when it has read and written all of the last one.
        if !(self.socket.has_sent() && sender.is_ready()) {
            self.parked.set(Some(sender));
        } else if !self.socket.is_deaf()
            && let Some(home) = self.home.upgrade()
        {
            home.put(Idle { sender, line: Rc::clone(self), since: Instant::now() });
        }
    }

    fn ended(&self) {
        self.parked.take();
        if let Some(home) = self.home.upgrade() {
            home.lost(self);
        }
    }
}

/// `Keep-Alive: timeout=5`: how long the peer says it keeps an idle connection (RFC 2068, section 19.7.1.1).
fn announced_idle_limit<B>(response: &Response<B>) -> Option<Duration> {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    let value = response.headers().get(KEEP_ALIVE)?.to_str().ok()?;
    let seconds = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    seconds.trim().parse().ok().map(Duration::from_secs)
}

/// The task of one connection.
struct Driver {
    connection: http1::Connection<Io, RequestBody>,
    line: Rc<Line>,
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let polled = Pin::new(&mut self.connection).poll(cx);
        if polled.is_pending() {
            self.line.settle();
        }
        if let Err(error) = ready!(polled) {
            tracing::debug!(peer = %self.line.peer, %error, "upstream connection ended");
        }
        self.line.ended();
        Poll::Ready(())
    }
}
