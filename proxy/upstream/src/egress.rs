//! Requests that filters send by themselves: to what their tenant's manifest allows, over connections of their tenant alone.
//!
//! Each tenant has its pool, so that no tenant's request goes over a connection that another's grant let through. What a name
//! resolves to is held against the grant at each connect, and the address that was looked at is the one that is dialled.
//! Everything runs on the [`EgressNode`]'s thread, within its bounds and those of the tenant.

mod dial;
mod node;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

pub use self::node::EgressNode;

use beamline_model::{Egress as Rules, Endpoint};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use thiserror::Error;
use tokio::sync::oneshot;

use self::{
    dial::{Dialler, NotDialled},
    node::{Bound, Bounds, Part},
};
use crate::AddressPolicy;

/// The most bytes of a method.
const MAX_METHOD: usize = 32;
/// The most bytes of a body, either way.
const MAX_BODY: usize = 1 << 20;
/// Idle connections to one host that are kept, and how long.
const IDLE: usize = 4;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// The most fields of an answer's head.
const MAX_FIELDS: usize = 100;
/// The most bytes that are read to find the end of an answer's head.
const MAX_HEAD: usize = 64 << 10;

/// A request of a filter.
#[derive(Debug)]
pub struct EgressRequest {
    /// Its method.
    pub method: Method,
    /// An absolute `http` URL.
    pub url: Uri,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// How long all of it may take.
    pub timeout: Duration,
}

/// The answer to a request of a filter.
#[derive(Debug)]
pub struct EgressResponse {
    /// Its status. A redirect is not followed.
    pub status: StatusCode,
    /// Its fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EgressError {
    /// The request is not one that can be sent.
    #[error("the request cannot be sent: {0}")]
    Invalid(&'static str),
    /// The request's body is too large.
    #[error("expected a body of at most 1 MiB")]
    TooLong,
    /// No rule of the manifest allows it.
    #[error("egress.allow of the manifest has no rule for it")]
    NotAllowed,
    /// No connection could be made: nobody is there, or nobody whom the tenant may reach.
    #[error("no connection could be made: {0}")]
    Connect(String),
    /// No whole answer came in time.
    #[error("no whole answer came in time")]
    Timeout,
    /// The answer is too large.
    #[error("the answer has more than {MAX_BODY} bytes")]
    TooLarge,
    /// The node holds too many bytes of such bodies, its own or its answer's would be more.
    #[error("too many bytes of filters' requests and their answers are held already")]
    NoRoom,
    /// The exchange broke.
    #[error("the exchange broke before a whole answer: {0}")]
    Broken(String),
}

/// One tenant's way out, at one revision of its manifest.
pub struct EgressClient {
    /// What the tenant may use, at whichever revision; none on a node that sends nothing.
    share: Option<Arc<Share>>,
    /// None where no rule allows anything.
    open: Option<Open>,
}

struct Share {
    node: EgressNode,
    bounds: Bounds<Bound>,
}

struct Open {
    rules: Arc<Rules>,
    policy: Arc<dyn AddressPolicy>,
    share: Arc<Share>,
    /// Made for the first request.
    client: OnceLock<Client<Dialler, Full<Bytes>>>,
}

impl EgressClient {
    /// To what `rules` allow and `policy` permits. What requests of the tenant's `earlier` revision hold counts for this one,
    /// too. Requests run on `node`, whoever waits for them.
    pub fn new(
        rules: Rules,
        policy: Arc<dyn AddressPolicy>,
        node: &EgressNode,
        earlier: Option<&Self>,
    ) -> Self {
        let share = earlier.and_then(|earlier| earlier.share.clone());
        let share = share.unwrap_or_else(|| Arc::new(Share { node: node.clone(), bounds: node.tenant() }));
        let open = (!rules.is_empty()).then(|| Open {
            rules: Arc::new(rules),
            policy,
            share: Arc::clone(&share),
            client: OnceLock::new(),
        });
        Self { share: Some(share), open }
    }

    /// Sends a request. The future can be polled on any thread; dropping it ends the exchange.
    ///
    /// # Errors
    /// [`EgressError`].
    pub fn send(
        &self,
        request: EgressRequest,
    ) -> impl Future<Output = Result<EgressResponse, EgressError>> + Send + use<> {
        let begun = self.open.as_ref().map_or(Err(EgressError::NotAllowed), |open| open.begin(request));
        async move { begun?.await }
    }

    /// That sends nothing.
    pub const fn closed() -> Self {
        Self { share: None, open: None }
    }
}

impl Open {
    fn client(&self) -> &Client<Dialler, Full<Bytes>> {
        self.client.get_or_init(|| {
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_FOR)
                .pool_max_idle_per_host(IDLE)
                .http1_max_headers(MAX_FIELDS)
                .http1_max_buf_size(MAX_HEAD)
                // What came of a request on a kept connection is told as it is; a filter may repeat it.
                .retry_canceled_requests(false)
                .build(Dialler {
                    rules: Arc::clone(&self.rules),
                    policy: Arc::clone(&self.policy),
                    lookups: self.share.bounds.lookups.clone(),
                    kept: self.share.bounds.kept.clone(),
                })
        })
    }

    fn begin(&self, request: EgressRequest) -> Result<Exchange, EgressError> {
        let EgressRequest { method, url, headers, body, timeout } = request;
        if url.scheme_str() != Some("http") {
            return Err(EgressError::Invalid("expected an absolute URL of the scheme http"));
        }
        if method.as_str().len() > MAX_METHOD {
            return Err(EgressError::Invalid("expected a method of at most 32 bytes"));
        }
        if method == Method::CONNECT {
            return Err(EgressError::Invalid("CONNECT cannot be sent"));
        }
        if body.len() > MAX_BODY {
            return Err(EgressError::TooLong);
        }
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let endpoint = Endpoint::of_http(authority)
            .ok_or(EgressError::Invalid("expected a URL with a host, and without user information"))?;
        if !self.rules.allows(&endpoint) {
            return Err(EgressError::NotAllowed);
        }
        let held = self.share.bounds.held.clone();
        let sent = held.take(body.len()).ok_or(EgressError::NoRoom)?;
        let mut outgoing = Request::new(Full::new(body));
        (*outgoing.method_mut(), *outgoing.uri_mut(), *outgoing.headers_mut()) = (method, url, headers);
        let client = {
            let _entered = self.share.node.handle().enter();
            self.client().clone()
        };
        let (done, answer) = oneshot::channel();
        let task = self.share.node.handle().spawn(async move {
            let outcome = tokio::time::timeout(timeout, exchange(client, outgoing, &held)).await;
            drop(sent);
            // Nobody waits any more where the call ended.
            let _ = done.send(outcome.unwrap_or(Err(EgressError::Timeout)));
        });
        Ok(Exchange { answer, task: task.abort_handle() })
    }
}

async fn exchange(
    client: Client<Dialler, Full<Bytes>>,
    request: Request<Full<Bytes>>,
    held: &Bound,
) -> Result<EgressResponse, EgressError> {
    let answer = client.request(request).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        let dialled = source.and_then(|source| source.downcast_ref::<NotDialled>());
        match dialled {
            Some(problem) => EgressError::Connect(problem.to_string()),
            None => EgressError::Broken(source.map_or_else(|| error.to_string(), ToString::to_string)),
        }
    })?;
    let (head, body) = answer.into_parts();
    let body = whole(body, held).await?;
    Ok(EgressResponse { status: head.status, headers: head.headers, body })
}

/// A whole body, which counts as held until it is dropped.
async fn whole(mut body: Incoming, held: &Bound) -> Result<Bytes, EgressError> {
    /// A body and its part of what may be held.
    struct Held(Bytes, #[expect(dead_code, reason = "held for as long as the bytes")] Part);

    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(EgressError::TooLarge);
    }
    let (mut all, mut part) = (BytesMut::new(), held.take(0).ok_or(EgressError::NoRoom)?);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| EgressError::Broken(error.to_string()))?;
        // What follows a body is not told.
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > MAX_BODY {
            return Err(EgressError::TooLarge);
        }
        part.add(held.take(data.len()).ok_or(EgressError::NoRoom)?);
        all.extend_from_slice(&data);
    }
    Ok(Bytes::from_owner(Held(all.freeze(), part)))
}

/// An exchange under way on another runtime; ends with its drop.
struct Exchange {
    answer: oneshot::Receiver<Result<EgressResponse, EgressError>>,
    task: tokio::task::AbortHandle,
}

impl Future for Exchange {
    type Output = Result<EgressResponse, EgressError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let ended = |answer: Result<_, _>| {
            answer.unwrap_or_else(|_| Err(EgressError::Broken("the node ends".into())))
        };
        Pin::new(&mut self.answer).poll(cx).map(ended)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for EgressClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EgressClient").field(&self.open.as_ref().map(|open| &open.rules)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use beamline_model::{GrantRefusal, NatsTarget};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    struct Everywhere;

    impl AddressPolicy for Everywhere {
        fn permits(&self, _: std::net::SocketAddr) -> Result<(), GrantRefusal> {
            Ok(())
        }

        fn permits_subject(&self, _: &NatsTarget) -> Result<(), GrantRefusal> {
            Ok(())
        }
    }

    /// An origin that answers each request with `ok` and counts its connections.
    async fn origin() -> (String, Arc<AtomicU32>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (at, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while stream.read_buf(&mut seen).await.is_ok_and(|n| n > 0) {
                        if seen.ends_with(b"\r\n\r\n") {
                            seen.clear();
                            stream
                                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                                .await
                                .unwrap();
                        }
                    }
                });
            }
        });
        (format!("http://{at}"), connections)
    }

    fn client(node: &EgressNode, allow: &str, earlier: Option<&EgressClient>) -> EgressClient {
        let rules = Rules { allow: vec![allow.parse().unwrap()] };
        EgressClient::new(rules, Arc::new(Everywhere), node, earlier)
    }

    async fn sent(client: &EgressClient, url: &str) -> Result<Bytes, EgressError> {
        let request = EgressRequest {
            method: Method::GET,
            url: url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(30),
        };
        client.send(request).await.map(|answer| answer.body)
    }

    #[tokio::test]
    async fn connections_are_kept_while_the_tenant_has_places_for_them() {
        let (node, (url, connections)) = (EgressNode::start(|| ()).unwrap(), origin().await);
        let client = client(&node, &url, None);
        let kept = &client.share.as_ref().unwrap().bounds.kept;
        let all = kept.take(128).unwrap();
        for n in 1..=3 {
            assert_eq!(sent(&client, &url).await.unwrap(), "ok");
            assert_eq!(connections.load(Ordering::Relaxed), n, "none is kept");
        }
        drop(all);
        for _ in 0..3 {
            assert_eq!(sent(&client, &url).await.unwrap(), "ok");
            // It is kept a moment after its answer.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(connections.load(Ordering::Relaxed) < 6, "one of the three was kept at least once");
    }

    #[tokio::test]
    async fn no_tenant_gets_a_connection_that_anothers_request_made() {
        let (node, (url, connections)) = (EgressNode::start(|| ()).unwrap(), origin().await);
        let (one, other) = (client(&node, &url, None), client(&node, &url, None));
        let made = || connections.load(Ordering::Relaxed);
        // Until one of its own is kept, and used again: that is a moment after its answer.
        let (mut before, mut tries) = (0, 0);
        while made() != before || tries == 0 {
            before = made();
            assert_eq!(sent(&one, &url).await.unwrap(), "ok");
            tokio::time::sleep(Duration::from_millis(20)).await;
            tries += 1;
            assert!(tries < 100, "none was ever kept");
        }
        assert_eq!(sent(&other, &url).await.unwrap(), "ok");
        assert_eq!(made(), before + 1);
        // Nor does the same tenant's next revision, whose rules and grant may be others.
        assert_eq!(sent(&client(&node, &url, Some(&one)), &url).await.unwrap(), "ok");
        assert_eq!(made(), before + 2);
    }

    /// Permits what a name leads to until that has changed.
    struct Rebound(AtomicBool);

    impl AddressPolicy for Rebound {
        fn permits(&self, address: std::net::SocketAddr) -> Result<(), GrantRefusal> {
            let changed = self.0.load(Ordering::Relaxed);
            if changed { Err(GrantRefusal::Special(address)) } else { Ok(()) }
        }

        fn permits_subject(&self, _: &NatsTarget) -> Result<(), GrantRefusal> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_a_name_leads_to_is_held_against_the_grant_at_each_connect() {
        let (node, (url, connections)) = (EgressNode::start(|| ()).unwrap(), origin().await);
        let url = url.replace("127.0.0.1", "localhost");
        let (rules, policy) =
            (Rules { allow: vec![url.parse().unwrap()] }, Arc::new(Rebound(AtomicBool::new(false))));
        let client = EgressClient::new(rules, Arc::clone(&policy) as Arc<dyn AddressPolicy>, &node, None);
        let _none_is_kept = client.share.as_ref().unwrap().bounds.kept.take(128).unwrap();
        assert_eq!(sent(&client, &url).await.unwrap(), "ok");
        policy.0.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            let refused = sent(&client, &url).await.unwrap_err();
            assert!(matches!(refused, EgressError::Connect(_)), "{refused}");
        }
        assert_eq!(connections.load(Ordering::Relaxed), 1, "nobody was dialled who may not be");
    }

    #[tokio::test]
    async fn what_a_revisions_requests_hold_counts_for_the_next() {
        let (node, (url, _)) = (EgressNode::start(|| ()).unwrap(), origin().await);
        let first = client(&node, &url, None);
        let held = &first.share.as_ref().unwrap().bounds.held;
        let answer = sent(&first, &url).await.unwrap();
        assert!(held.take(64 << 20).is_none(), "an answer counts until nobody has it any more");
        drop(answer);
        let all = held.take(64 << 20).unwrap();
        let second = client(&node, &url, Some(&first));
        let refused = sent(&second, &url).await.unwrap_err();
        assert_eq!(refused, EgressError::NoRoom);
        drop(all);
        assert_eq!(sent(&second, &url).await.unwrap(), "ok");
    }

    #[tokio::test]
    async fn a_method_is_short() {
        let (node, (url, connections)) = (EgressNode::start(|| ()).unwrap(), origin().await);
        let client = client(&node, &url, None);
        let with = |length: usize| EgressRequest {
            method: Method::from_bytes("M".repeat(length).as_bytes()).unwrap(),
            url: url.parse().unwrap(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(30),
        };
        let refused = client.send(with(33)).await.unwrap_err();
        assert_eq!(refused, EgressError::Invalid("expected a method of at most 32 bytes"));
        assert_eq!(connections.load(Ordering::Relaxed), 0);
        assert_eq!(client.send(with(32)).await.unwrap().body, "ok");
    }

    #[tokio::test]
    async fn names_beyond_the_tenants_lookups_are_not_looked_up() {
        let (node, (url, _)) = (EgressNode::start(|| ()).unwrap(), origin().await);
        let url = url.replace("127.0.0.1", "localhost");
        let client = client(&node, &url, None);
        let all = client.share.as_ref().unwrap().bounds.lookups.take(4).unwrap();
        let refused = sent(&client, &url).await.unwrap_err();
        assert!(matches!(&refused, EgressError::Connect(why) if why.contains("too many names")), "{refused}");
        drop(all);
        assert_eq!(sent(&client, &url).await.unwrap(), "ok");
    }
}
