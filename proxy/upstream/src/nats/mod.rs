//! The way of a request to a NATS subject: what [`Pools::send`](crate::Pools::send) does where the upstream is one.
//!
//! Breaker, attempts and errors are those of HTTP. A request's body is read whole before it is sent, for a message has
//! one payload, and a reply comes whole, both within a bound for all bodies that are held at once; what fails before the kernel took a byte of the message, or because nobody listens, was not sent.

mod message;
mod reply;
mod room;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use beamline_model::{ConnectionName, GrantRefusal, NatsTarget};
use beamline_nats::{
    Client, ConnectError, Connections, Ended, Failure, FailureKind, NotConnected, Publish, Waits,
};
use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;

pub use message::OwnKey;
use room::{Held, ROOM, Room};

use crate::{
    AttemptInfo, Attempts, BoxError, Cluster, ErrorKind, SendError, SendOptions, Sent, Sentness,
    UpstreamBody,
    send::{Unreached, settle},
};

/// One thread's NATS connections, each made when it is first needed.
pub(crate) struct Clients {
    defined: Connections,
    made: RefCell<HashMap<ConnectionName, Client>>,
    room: Room,
}

impl Clients {
    pub(crate) fn new(connections: &Connections) -> Self {
        Self { defined: connections.clone(), made: RefCell::default(), room: Room::new(ROOM) }
    }

    fn client(&self, name: &ConnectionName) -> Option<Client> {
        if let Some(client) = self.made.borrow().get(name) {
            return Some(client.clone());
        }
        let client = Client::to(&self.defined, name)?;
        self.made.borrow_mut().insert(name.clone(), client.clone());
        Some(client)
    }
}

/// Why there is no response.
#[derive(Debug)]
struct Broken {
    kind: ErrorKind,
    sent: Sentness,
    source: Option<BoxError>,
}

impl Broken {
    /// Not one byte was handed over, or the server said that nobody had it.
    fn unsent(kind: ErrorKind) -> Self {
        Self { kind, sent: Sentness::Nothing, source: None }
    }
}

/// Sends a request as one message, and makes its reply a response.
pub(crate) async fn send<B>(
    clients: &Clients,
    cluster: &Arc<Cluster>,
    target: &NatsTarget,
    request: Request<B>,
    options: SendOptions,
) -> Result<Sent, Box<SendError<B>>>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let mut attempts = Attempts::new();
    let (parts, mut body) = request.into_parts();
    let mut body_begun = false;
    let admitted = cluster.admit(options.probe).ok_or_else(|| Broken::unsent(ErrorKind::BreakerOpen));
    let outcome = match admitted {
        Err(broken) => Err(broken),
        Ok(permit) => {
            let exchange = Exchange { clients, cluster, target, timeout: options.timeout_for(cluster) };
            let outcome = exchange.run(&parts, &mut body, &mut body_begun, &mut attempts).await;
            match &outcome {
                Ok(_) => cluster.succeeded(permit),
                Err(broken) => settle(cluster, permit, &broken.kind),
            }
            outcome
        }
    };
    match outcome {
        Ok(response) => Ok(Sent { response, attempts }),
        Err(Broken { kind, sent, source }) => {
            let request = Request::from_parts(parts, body);
            let (request, begun) = if body_begun { (None, Some(request)) } else { (Some(request), None) };
            Err(Box::new(SendError {
                cluster: cluster.key().clone(),
                kind,
                sent,
                request,
                begun,
                attempts,
                source,
            }))
        }
    }
}

/// Whether the connection stands and the subject is granted.
pub(crate) fn is_reachable(clients: &Clients, cluster: &Cluster, target: &NatsTarget) -> bool {
    cluster.policy().permits_subject(target).is_ok()
        && clients.client(&target.connection).is_some_and(|client| client.is_connected())
}

/// Makes sure that the connection stands.
pub(crate) async fn reach(
    clients: &Clients,
    cluster: &Arc<Cluster>,
    target: &NatsTarget,
) -> Result<(), Unreached> {
    let (mut attempts, timeout) = (Attempts::new(), cluster.spec().connect_timeout.get());
    let refusal = cluster.policy().permits_subject(target).err();
    let name = &target.connection;
    let client = match (refusal, clients.client(name)) {
        (None, Some(client)) => client,
        (refusal, _) => {
            let refusal = refusal.unwrap_or_else(|| GrantRefusal::Undefined(name.clone()));
            return Err(Unreached { kind: ErrorKind::Denied(refusal), attempts });
        }
    };
    let permit = cluster.admit(true);
    let started = Instant::now();
    let Err(why) = client.connection(timeout).await else { return Ok(()) };
    let (Broken { kind, .. }, peer) = not_connected(why);
    attempts.push(attempt(peer, started, Err(kind.clone())));
    if let Some(permit) = permit {
        settle(cluster, permit, &kind);
    }
    Err(Unreached { kind, attempts })
}

struct Exchange<'a> {
    clients: &'a Clients,
    cluster: &'a Cluster,
    target: &'a NatsTarget,
    timeout: Duration,
}

impl Exchange<'_> {
    async fn run<B>(
        &self,
        parts: &http::request::Parts,
        body: &mut B,
        body_begun: &mut bool,
        attempts: &mut Attempts,
    ) -> Result<Response<UpstreamBody>, Broken>
    where
        B: Body<Data = Bytes, Error = BoxError> + Unpin,
    {
        let denied = |refusal| Broken::unsent(ErrorKind::Denied(refusal));
        self.cluster.policy().permits_subject(self.target).map_err(denied)?;
        let name = &self.target.connection;
        let client =
            self.clients.client(name).ok_or_else(|| denied(GrantRefusal::Undefined(name.clone())))?;
        let limit = client.settings().max_body;
        if body.size_hint().lower() > limit {
            return Err(Broken::unsent(ErrorKind::TooLarge { limit }));
        }

        let started = Instant::now();
        let connect_timeout = self.cluster.spec().connect_timeout.get();
        let connection = client.connection(connect_timeout).await.map_err(|why| {
            let (broken, peer) = not_connected(why);
            attempts.push(attempt(peer, started, Err(broken.kind.clone())));
            broken
        })?;

        // A message has one payload: its body is read whole before anything is sent of it.
        let mut held = self.clients.room.hold(&self.cluster.key().tenant);
        let payload = if body.is_end_stream() {
            Bytes::new()
        } else {
            *body_begun = true;
            whole(body, limit, &mut held).await?
        };

        let headers = message::headers(parts, &payload, self.cluster.key(), self.target.kind);
        let publish = Publish { subject: &self.target.subject, headers, payload };
        let waits = Waits { begin: connect_timeout, reply: self.timeout };
        let started = Instant::now();
        let replied = connection.request(publish, waits).await.map_err(failed);
        // Room for the reply, in place of the request's.
        drop(held);
        let room = self.clients.room.hold(&self.cluster.key().tenant);
        let response = replied.and_then(|reply| reply::response(reply, self.target.kind, room));
        let outcome = response.as_ref().map(Response::status).map_err(|broken| broken.kind.clone());
        attempts.push(attempt(Some(connection.peer()), started, outcome));
        response
    }
}

/// Reads a body to its end: at most `limit` bytes, as far as there is room.
async fn whole<B>(body: &mut B, limit: u64, held: &mut Held) -> Result<Bytes, Broken>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let unread = |error| Broken { source: Some(error), ..Broken::unsent(ErrorKind::RequestBody) };
        // Trailers have no place in a message.
        let Ok(data) = frame.map_err(unread)?.into_data() else { continue };
        if (read.len() + data.len()) as u64 > limit {
            return Err(Broken::unsent(ErrorKind::TooLarge { limit }));
        }
        held.grow(data.len() as u64).map_err(|_| Broken::unsent(ErrorKind::NoRoom))?;
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}

fn attempt(
    peer: Option<SocketAddr>,
    started: Instant,
    outcome: Result<http::StatusCode, ErrorKind>,
) -> AttemptInfo {
    let (status, error) = match outcome {
        Ok(status) => (Some(status), None),
        Err(kind) => (None, Some(kind)),
    };
    AttemptInfo { peer, reused: true, started, duration: started.elapsed(), error, status }
}

fn not_connected(why: NotConnected) -> (Broken, Option<SocketAddr>) {
    let (kind, peer) = match &why {
        NotConnected::Pending => (ErrorKind::ConnectTimeout, None),
        NotConnected::Lost { server, .. } => (ErrorKind::ConnectFailed, Some(*server)),
        NotConnected::Connect(error) => match error {
            ConnectError::Dns(_) => (ErrorKind::Dns, None),
            ConnectError::Refused(peer) => (ErrorKind::ConnectRefused, Some(*peer)),
            ConnectError::Timeout(..) => (ErrorKind::ConnectTimeout, None),
            ConnectError::Io(..) | ConnectError::File(_) => (ErrorKind::ConnectFailed, None),
            ConnectError::Tls(peer, _) => (ErrorKind::Tls, Some(*peer)),
            ConnectError::Credentials(peer, _) | ConnectError::Unsuitable(peer, _) => {
                (ErrorKind::ConnectFailed, Some(*peer))
            }
        },
    };
    let source: BoxError = match why {
        NotConnected::Connect(error) => error.into(),
        NotConnected::Lost { why, .. } => why.into(),
        NotConnected::Pending => "the first connection is still being made".into(),
    };
    (Broken { source: Some(source), ..Broken::unsent(kind) }, peer)
}

fn failed(failure: Failure) -> Broken {
    let Failure { kind, sent } = failure;
    let error = match &kind {
        FailureKind::NotBegun => ErrorKind::ConnectTimeout,
        FailureKind::Lost(Ended::Stalled) if !sent => ErrorKind::ConnectTimeout,
        FailureKind::Lost(_) if !sent => ErrorKind::ConnectFailed,
        FailureKind::Lost(_) => ErrorKind::Reset,
        FailureKind::TimedOut => ErrorKind::ResponseTimeout,
        FailureKind::TooLarge { limit } => ErrorKind::TooLarge { limit: *limit },
        FailureKind::Forbidden => ErrorKind::Forbidden,
        FailureKind::BadReply => ErrorKind::BadResponse,
    };
    let sent = if sent { Sentness::Maybe } else { Sentness::Nothing };
    Broken { kind: error, sent, source: Some(kind.into()) }
}
