//! Requests that filters send by themselves: to what their tenant's manifest allows, over connections of their tenant alone.
//!
//! Each tenant has its pool, so that no tenant's request goes over a connection that another's grant let through. What a name
//! resolves to is held against the grant at each connect, and the address that was looked at is the one that is dialled.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use beamline_model::{Egress as Rules, Endpoint};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use thiserror::Error;
use tokio::{net::TcpStream, runtime::Handle, sync::oneshot};

use crate::{AddressPolicy, ErrorKind, connect::connect_to};

/// The most bytes of a body, either way.
const MAX_BODY: usize = 1 << 20;
/// Idle connections to one host that are kept, and how long.
const IDLE: usize = 4;
const IDLE_FOR: Duration = Duration::from_secs(30);
/// For a connection, where the request's own time is not over before.
const CONNECT: Duration = Duration::from_secs(5);
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
    /// No rule of the manifest allows it.
    #[error("egress.allow of the manifest has no rule for it")]
    NotAllowed,
    /// What the name resolves to is beyond the tenant's grant.
    #[error("the address is not one that the tenant may reach")]
    Denied,
    /// No connection could be made.
    #[error("no connection could be made")]
    Connect,
    /// No whole answer came in time.
    #[error("no whole answer came in time")]
    Timeout,
    /// The answer is too large.
    #[error("the answer has more than {MAX_BODY} bytes")]
    TooLarge,
    /// The exchange broke.
    #[error("the exchange broke before a whole answer")]
    Broken,
}

/// One tenant's way out, at one revision of its manifest.
pub struct EgressClient(Option<Open>);

struct Open {
    rules: Rules,
    policy: Arc<dyn AddressPolicy>,
    runtime: Handle,
    /// Made for the first request.
    client: OnceLock<Client<Dialler, Full<Bytes>>>,
}

impl EgressClient {
    /// To what `rules` allow and `policy` permits. Requests run on `runtime`, whoever waits for them.
    pub fn new(rules: Rules, policy: Arc<dyn AddressPolicy>, runtime: Handle) -> Self {
        if rules.is_empty() {
            return Self::closed();
        }
        Self(Some(Open { rules, policy, runtime, client: OnceLock::new() }))
    }

    /// Sends a request. The future can be polled on any thread; dropping it ends the exchange.
    ///
    /// # Errors
    /// [`EgressError`].
    pub fn send(
        &self,
        request: EgressRequest,
    ) -> impl Future<Output = Result<EgressResponse, EgressError>> + Send + use<> {
        let begun = self.0.as_ref().map_or(Err(EgressError::NotAllowed), |open| open.begin(request));
        async move { begun?.await }
    }

    /// That sends nothing.
    pub const fn closed() -> Self {
        Self(None)
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
                .build(Dialler(Arc::clone(&self.policy)))
        })
    }

    fn begin(&self, request: EgressRequest) -> Result<Exchange, EgressError> {
        let EgressRequest { method, url, headers, body, timeout } = request;
        if url.scheme_str() != Some("http") {
            return Err(EgressError::Invalid("expected an absolute URL of the scheme http"));
        }
        if method == Method::CONNECT {
            return Err(EgressError::Invalid("CONNECT cannot be sent"));
        }
        if body.len() > MAX_BODY {
            return Err(EgressError::Invalid("expected a body of at most 1 MiB"));
        }
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let endpoint = Endpoint::of_http(authority)
            .ok_or(EgressError::Invalid("expected a URL with a host, and without user information"))?;
        if !self.rules.allows(&endpoint) {
            return Err(EgressError::NotAllowed);
        }
        let mut outgoing = Request::new(Full::new(body));
        (*outgoing.method_mut(), *outgoing.uri_mut(), *outgoing.headers_mut()) = (method, url, headers);
        let client = {
            let _entered = self.runtime.enter();
            self.client().clone()
        };
        let (done, answer) = oneshot::channel();
        let task = self.runtime.spawn(async move {
            let outcome = tokio::time::timeout(timeout, exchange(client, outgoing)).await;
            // Nobody waits any more where the call ended.
            let _ = done.send(outcome.unwrap_or(Err(EgressError::Timeout)));
        });
        Ok(Exchange { answer, task: task.abort_handle() })
    }
}

async fn exchange(
    client: Client<Dialler, Full<Bytes>>,
    request: Request<Full<Bytes>>,
) -> Result<EgressResponse, EgressError> {
    let answer = client.request(request).await.map_err(|error| {
        let dialled =
            std::error::Error::source(&error).and_then(|source| source.downcast_ref::<NotDialled>());
        match dialled {
            Some(NotDialled { denied: true }) => EgressError::Denied,
            _ if error.is_connect() => EgressError::Connect,
            _ => EgressError::Broken,
        }
    })?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() { EgressError::TooLarge } else { EgressError::Broken }
    })?;
    Ok(EgressResponse { status: head.status, headers: head.headers, body: body.to_bytes() })
}

/// An exchange under way on another runtime; ends with its drop.
struct Exchange {
    answer: oneshot::Receiver<Result<EgressResponse, EgressError>>,
    task: tokio::task::AbortHandle,
}

impl Future for Exchange {
    type Output = Result<EgressResponse, EgressError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.unwrap_or(Err(EgressError::Broken)))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects to what a URL names, as far as the policy permits.
#[derive(Clone)]
struct Dialler(Arc<dyn AddressPolicy>);

#[derive(Debug, Error)]
#[error("no connection")]
struct NotDialled {
    denied: bool,
}

impl tower_service::Service<Uri> for Dialler {
    type Response = TokioIo<TcpStream>;
    type Error = NotDialled;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NotDialled>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotDialled>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let policy = Arc::clone(&self.0);
        Box::pin(async move {
            let authority = url.authority().map_or("", |authority| authority.as_str());
            let endpoint = Endpoint::of_http(authority).ok_or(NotDialled { denied: false })?;
            match connect_to(&endpoint, &*policy, CONNECT).await {
                Ok((stream, _)) => Ok(TokioIo::new(stream)),
                Err(unconnected) => {
                    Err(NotDialled { denied: matches!(unconnected.kind, ErrorKind::Denied(_)) })
                }
            }
        })
    }
}

impl fmt::Debug for EgressClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EgressClient").field(&self.0.as_ref().map(|open| &open.rules)).finish()
    }
}
