//! The way of one request: breaker, endpoint, connection, exchange, and what happens where one of them fails.
//!
//! - No connection, or one that broke before a byte of the request left: the next endpoint is tried.
//! - A kept connection that was closed already: another is taken; the caller never learns of it.
//! - A kept connection that broke under a request that may be sent twice (RFC 9110, section 9.2.2: idempotent, and
//!   here also without a body): once more on a new connection to the same endpoint.
//! - Everything else is the caller's to judge, with the request given back as far as it is still there.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use beamline_model::UpstreamTarget;
use bytes::Bytes;
use http::{
    Extensions, HeaderValue, Method, Request, Response, Version,
    header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    request::Parts,
};
use http_body::Body;
use smallvec::SmallVec;

use crate::{
    AttemptInfo, Attempts, BoxError, Cluster, ErrorKind, Pools, SendError, Sentness, UpstreamBody,
    body::{Lent, Progress, RequestBody},
    breaker::Permit,
    connect::{Unconnected, connect},
    connection::{Idle, Lease, Line},
    exchange::{Broken, exchange},
    head, nats,
    pool::{ClusterPool, Demand},
    socket::Socket,
};

/// Endpoints that one request tries before it fails.
const ENDPOINTS_TRIED: usize = 3;

/// Kept connections that may turn out closed before a new one is made.
const STALE_TRIED: usize = 3;

/// How one request is sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct SendOptions {
    /// How long to wait for the response's head, counted from the request's last byte. Default, and most: the
    /// upstream's `response_timeout`.
    pub response_timeout: Option<Duration>,
    /// Sends even where the breaker is open, for a caller that paces itself as the queue's delivery does. Its
    /// success closes the breaker.
    pub probe: bool,
}

impl SendOptions {
    pub(crate) fn timeout_for(&self, cluster: &Cluster) -> Duration {
        let most = cluster.spec().response_timeout.get();
        self.response_timeout.map_or(most, |wanted| wanted.min(most))
    }
}

/// A request that got a response head.
#[derive(Debug)]
pub struct Sent {
    /// The response. Hop-by-hop fields are still in it.
    pub response: Response<UpstreamBody>,
    /// What was tried; the last one succeeded.
    pub attempts: Attempts,
}

impl Pools {
    /// Sends a request to one of the cluster's endpoints and waits for the response's head.
    ///
    /// The request's target is in origin form and its `Host` is set; hop-by-hop fields are gone. Request trailers
    /// are sent where a `Trailer` field announces them and the body's length is not known.
    ///
    /// # Errors
    /// Where no response head came, with the request as far as it can be given back.
    ///
    /// # Cancellation
    /// Dropping the future closes the connection; the upstream may have seen any part of the request.
    ///
    /// # Panics
    /// Outside a `LocalSet` or a local runtime.
    pub async fn send<B>(
        &self,
        cluster: &Arc<Cluster>,
        request: Request<B>,
        options: SendOptions,
    ) -> Result<Sent, Box<SendError<B>>>
    where
        B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
    {
        if let UpstreamTarget::Nats(target) = &cluster.spec().target {
            // Boxed, as all is that few requests do: a request's future is copied a few times, with room for all it may come to.
            return Box::pin(nats::send(self.nats(), cluster, target, request, options)).await;
        }
        let pool = self.of(cluster);
        let mut message = Message::new(request);
        let mut attempts = Attempts::new();
        if let Some(contradiction) = message.contradiction() {
            return Err(message.into_error(cluster, ErrorKind::RequestBody, Some(contradiction), attempts));
        }
        let Some(permit) = cluster.admit(options.probe) else {
            return Err(message.into_error(cluster, ErrorKind::BreakerOpen, None, attempts));
        };
        let timeout = options.timeout_for(cluster);

        let turn = cluster.turn();
        let mut tried = SmallVec::<[usize; ENDPOINTS_TRIED]>::new();
        let mut last = None;
        while tried.len() < ENDPOINTS_TRIED
            && let Some((index, endpoint_permit)) = cluster.pick(turn, &tried)
        {
            tried.push(index);
            match at_endpoint(cluster, &pool, index, &mut message, &mut attempts, timeout).await {
                Ok(response) => {
                    if let Some(endpoint_permit) = endpoint_permit {
                        endpoint_permit.success();
                    }
                    cluster.succeeded(permit);
                    return Ok(Sent { response, attempts });
                }
                Err(failure) => {
                    if let Some(endpoint_permit) = endpoint_permit.filter(|_| failure.kind.is_failure()) {
                        cluster.endpoint_failed(endpoint_permit);
                    }
                    let go_on = failure.untried && message.is_whole();
                    last = Some(failure);
                    if !go_on {
                        break;
                    }
                }
            }
        }
        let Failure { kind, source, .. } = last.expect("a manifest's upstream has an endpoint");
        settle(cluster, permit, &kind);
        Err(message.into_error(cluster, kind, source, attempts))
    }
}

/// Why no connection is to be had.
#[derive(Debug)]
pub struct Unreached {
    /// What went wrong at the endpoint that was tried last.
    pub kind: ErrorKind,
    /// What was tried.
    pub attempts: Attempts,
}

impl Pools {
    /// Whether there is a connection for a request to come, as far as is known without asking the kernel.
    pub fn is_reachable(&self, cluster: &Arc<Cluster>) -> bool {
        if let UpstreamTarget::Nats(target) = &cluster.spec().target {
            return nats::is_reachable(self.nats(), cluster, target);
        }
        let pool = self.of(cluster);
        (0..cluster.endpoint_count()).any(|index| pool.endpoint(index).has_idle())
    }

    /// Makes sure that there is a connection for a request to come: one that is kept, or a new one, which is kept then.
    /// Whatever the breaker says, as for a probe. That there is one closes no breaker; that there is none counts.
    ///
    /// # Errors
    /// [`Unreached`]. Nothing was sent.
    ///
    /// # Panics
    /// Outside a `LocalSet` or a local runtime.
    pub async fn reach(&self, cluster: &Arc<Cluster>) -> Result<(), Unreached> {
        if let UpstreamTarget::Nats(target) = &cluster.spec().target {
            return nats::reach(self.nats(), cluster, target).await;
        }
        if self.is_reachable(cluster) {
            return Ok(());
        }
        let pool = self.of(cluster);
        let permit = cluster.admit(true);
        let (turn, mut attempts) = (cluster.turn(), Attempts::new());
        let (mut tried, mut last) = (SmallVec::<[usize; ENDPOINTS_TRIED]>::new(), None);
        while tried.len() < ENDPOINTS_TRIED
            && let Some((index, endpoint_permit)) = cluster.pick(turn, &tried)
        {
            tried.push(index);
            let started = Instant::now();
            match open(cluster, &pool, index).await {
                Ok(Lease { sender, line, .. }) => {
                    pool.endpoint(index).put(Idle { sender, line, since: Instant::now() });
                    return Ok(());
                }
                Err(Unconnected { kind, peer, .. }) => {
                    attempts.push(attempt(peer, false, started, Some(kind.clone())));
                    if let Some(endpoint_permit) = endpoint_permit.filter(|_| kind.is_failure()) {
                        cluster.endpoint_failed(endpoint_permit);
                    }
                    last = Some(kind);
                }
            }
        }
        let kind = last.expect("a manifest's upstream has an endpoint");
        if let Some(permit) = permit {
            settle(cluster, permit, &kind);
        }
        Err(Unreached { kind, attempts })
    }
}

pub(crate) fn settle(cluster: &Cluster, permit: Permit<'_>, kind: &ErrorKind) {
    if kind.is_failure() {
        cluster.failed(permit, kind.token());
    } else if matches!(kind, ErrorKind::BadResponse | ErrorKind::Refused) {
        cluster.succeeded(permit);
    }
}

/// Why an endpoint gave no response.
struct Failure {
    kind: ErrorKind,
    source: Option<BoxError>,
    /// Whether no byte of the request reached this endpoint, so that another may be tried.
    untried: bool,
}

async fn at_endpoint<B>(
    cluster: &Cluster,
    pool: &ClusterPool,
    index: usize,
    message: &mut Message<B>,
    attempts: &mut Attempts,
    timeout: Duration,
) -> Result<Response<UpstreamBody>, Failure>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    let endpoint = pool.endpoint(index);
    let mut kept_left = STALE_TRIED;
    loop {
        let started = Instant::now();
        // What was sent once and may be sent once more goes on a new connection, which cannot be stale.
        let kept = if kept_left > 0 && !message.maybe_sent { endpoint.take(message.demand) } else { None };
        let lease = match kept {
            Some(lease) => lease,
            // Boxed: it is rare and its future large.
            None => match Box::pin(open(cluster, pool, index)).await {
                Ok(lease) => lease,
                Err(Unconnected { kind, peer, source }) => {
                    attempts.push(attempt(peer, false, started, Some(kind.clone())));
                    return Err(Failure { kind, source, untried: true });
                }
            },
        };

        let begun = if lease.reused { started } else { Instant::now() };
        let line = Rc::clone(&lease.line);
        let (peer, reused) = (line.peer, lease.reused);
        let request = message.lend(&line.socket);
        let lent = message.lent();
        let progress = || lent.as_ref().map_or(Progress::Ended(begun), |l| l.progress());
        match exchange(lease, request, begun, timeout, progress).await {
            Ok(response) => {
                if reused {
                    endpoint.proved();
                }
                attempts.push(AttemptInfo {
                    status: Some(response.status()),
                    ..attempt(Some(peer), reused, started, None)
                });
                return Ok(response.map(|incoming| UpstreamBody::new(incoming, peer)));
            }
            Err(Broken { kind, source, message: back }) => {
                let untouched = !line.socket.has_sent();
                message.restore(back, &line.socket);
                if untouched && reused && message.is_whole() {
                    kept_left -= 1;
                    continue;
                }
                attempts.push(attempt(Some(peer), reused, started, Some(kind.clone())));
                message.maybe_sent |= !untouched;
                if reused && message.demand == Demand::Any && kind == ErrorKind::Reset && message.is_whole() {
                    continue;
                }
                return Err(Failure { kind, source, untried: untouched });
            }
        }
    }
}

async fn open(cluster: &Cluster, pool: &ClusterPool, index: usize) -> Result<Lease, Unconnected> {
    let (stream, peer) = connect(cluster, cluster.endpoint(index)).await?;
    Line::open(stream, peer, pool.endpoint(index)).await.map_err(|error| Unconnected {
        kind: ErrorKind::ConnectFailed,
        peer: Some(peer),
        source: Some(error.into()),
    })
}

fn attempt(
    peer: Option<std::net::SocketAddr>,
    reused: bool,
    started: Instant,
    error: Option<ErrorKind>,
) -> AttemptInfo {
    AttemptInfo { peer, reused, started, duration: started.elapsed(), error, status: None }
}

/// A request on its way: lent to one connection after the other until one of them keeps it.
struct Message<B> {
    /// The head; none while a connection has it, or where it was lost with one.
    parts: Option<Parts>,
    extensions: Extensions,
    body: Payload<B>,
    /// What it asks of a kept connection.
    demand: Demand,
    /// Whether a byte of it may have left on any connection.
    maybe_sent: bool,
}

enum Payload<B> {
    Empty(B),
    Lent(Rc<Lent<B>>),
}

impl<B> Message<B>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin + 'static,
{
    fn new(request: Request<B>) -> Self {
        let (mut parts, body) = request.into_parts();
        let extensions = std::mem::take(&mut parts.extensions);
        // A proxy speaks its own version, whatever its client's was (RFC 9110, section 2.5).
        parts.version = Version::HTTP_11;
        let (body, demand) = if body.is_end_stream() {
            let demand = if parts.method.is_idempotent() { Demand::Any } else { Demand::Sound };
            (Payload::Empty(body), demand)
        } else {
            let sized = body.size_hint().exact().is_some() || parts.headers.contains_key(CONTENT_LENGTH);
            if !sized && matches!(parts.method, Method::GET | Method::HEAD | Method::CONNECT) {
                // hyper would take it for a request without a body and drop what there is.
                parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            (Payload::Lent(Lent::new(body)), if sized { Demand::Sound } else { Demand::SoundHttp11 })
        };
        Self { parts: Some(parts), extensions, body, demand, maybe_sent: false }
    }

    /// Why it must not be sent: a length without a body would make the upstream take the next request on the
    /// connection for it. A body that is there is held to its length by hyper.
    fn contradiction(&self) -> Option<BoxError> {
        let Payload::Empty(_) = &self.body else { return None };
        let length = self.parts.as_ref()?.headers.get(CONTENT_LENGTH)?;
        (length != "0").then(|| format!("the body is empty, but content-length says {length:?}").into())
    }

    /// The message for a connection to send.
    fn lend(&mut self, socket: &Rc<Socket>) -> Request<RequestBody> {
        let parts = self.parts.take().expect("the head is here whenever a connection is taken");
        let body = match &self.body {
            Payload::Empty(_) => RequestBody::Empty,
            Payload::Lent(body) => {
                RequestBody::Lent { body: Rc::clone(body) as _, socket: Rc::clone(socket) }
            }
        };
        Request::from_parts(parts, body)
    }

    fn lent(&self) -> Option<Rc<Lent<B>>> {
        match &self.body {
            Payload::Empty(_) => None,
            Payload::Lent(body) => Some(Rc::clone(body)),
        }
    }

    /// Takes back what a failed connection leaves: the message where it was not begun, else the head as written.
    fn restore(&mut self, message: Option<Request<RequestBody>>, socket: &Socket) {
        self.parts = match message {
            Some(message) => Some(message.into_parts().0),
            None => socket.take_head().as_deref().and_then(head::read_back),
        };
    }

    /// Whether it can be sent from its beginning.
    fn is_whole(&self) -> bool {
        self.parts.is_some()
            && match &self.body {
                Payload::Empty(_) => true,
                Payload::Lent(body) => body.progress() == Progress::Untouched,
            }
    }

    fn into_error(
        self,
        cluster: &Cluster,
        kind: ErrorKind,
        source: Option<BoxError>,
        attempts: Attempts,
    ) -> Box<SendError<B>> {
        let whole = self.is_whole();
        let body = match self.body {
            Payload::Empty(body) => Some(body),
            Payload::Lent(lent) => lent.take_back(),
        };
        let request = self.parts.zip(body).map(|(mut parts, body)| {
            parts.extensions = self.extensions;
            Request::from_parts(parts, body)
        });
        let (request, begun) = if whole { (request, None) } else { (None, request) };
        let sent = if self.maybe_sent { Sentness::Maybe } else { Sentness::Nothing };
        Box::new(SendError { cluster: cluster.key().clone(), kind, sent, request, begun, attempts, source })
    }
}
