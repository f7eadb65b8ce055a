//! Origins that do what a test tells them, over real sockets, and clusters that point at them.

#![allow(dead_code, reason = "each suite uses its part")]

use std::{
    cell::Cell,
    collections::VecDeque,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use beamline_model::{Endpoint, GrantRefusal, NatsTarget, QueuePolicy, UpstreamSpec, UpstreamTarget};
use beamline_upstream::{
    AddressPolicy, BoxError, Cluster, ClusterKey, ClusterSettings, Pools, SendError, SendOptions, Sent,
    UpstreamBody,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::LocalSet,
};

/// More than any step of a test takes on a busy machine; nothing waits for it while all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test as a worker runs: one thread, local tasks.
pub(crate) fn on_a_worker<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { within(test).await })
}

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("this takes milliseconds while all is well")
}

/// Gives other tasks their turn until `done`.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    let waited = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waited).await.is_ok(), "waited in vain until {what}");
}

/// A listening socket whose connections are handed to `serve` with their number, from 0.
pub(crate) struct Origin {
    pub(crate) addr: SocketAddr,
    pub(crate) connections: Rc<Cell<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Origin {
    pub(crate) async fn new<F: Future<Output = io::Result<()>> + 'static>(
        serve: impl Fn(TcpStream, usize) -> F + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Rc::new(Cell::new(0));
        let counter = Rc::clone(&connections);
        let task = tokio::task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = counter.replace(counter.get() + 1);
                tokio::task::spawn_local(serve(stream, number));
            }
        });
        Self { addr, connections, task }
    }

    /// Answers every request with `200` and what it was asked, for as long as the connection lives.
    pub(crate) async fn echo() -> Self {
        Self::new(|mut stream, _| async move {
            while let Some(request) = read_request(&mut stream).await? {
                let answer =
                    [request.head.lines().next().unwrap_or_default().as_bytes(), &request.body].concat();
                respond(&mut stream, "200 OK", "", &answer).await?;
            }
            Ok(())
        })
        .await
    }

    /// Stops listening: connections are refused from here on.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// An address where nothing listens.
pub(crate) async fn dead_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) struct Received {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// Reads up to and including the empty line; `None` where the connection ends before it.
pub(crate) async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await? == 0 {
            return Ok(None);
        }
        head.push(byte[0]);
    }
    Ok(Some(String::from_utf8(head).unwrap()))
}

pub(crate) async fn read_request(stream: &mut TcpStream) -> io::Result<Option<Received>> {
    let Some(head) = read_head(stream).await? else { return Ok(None) };
    let length =
        head.lines().find_map(|l| l.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Received { head, body }))
}

pub(crate) async fn respond(
    stream: &mut TcpStream,
    status: &str,
    fields: &str,
    body: &[u8],
) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).await
}

pub(crate) struct Everywhere;

impl AddressPolicy for Everywhere {
    fn permits(&self, _: SocketAddr) -> Result<(), GrantRefusal> {
        Ok(())
    }

    fn permits_subject(&self, _: &NatsTarget) -> Result<(), GrantRefusal> {
        Ok(())
    }
}

pub(crate) fn key() -> ClusterKey {
    ClusterKey { tenant: "acme".parse().unwrap(), upstream: "api".parse().unwrap() }
}

pub(crate) fn spec(endpoints: impl IntoIterator<Item = Endpoint>) -> UpstreamSpec {
    UpstreamSpec {
        target: UpstreamTarget::Http(endpoints.into_iter().collect()),
        connect_timeout: beamline_model::Duration::secs(5),
        response_timeout: beamline_model::Duration::secs(20),
        headers: std::collections::BTreeMap::new(),
        queue: QueuePolicy::default(),
    }
}

pub(crate) fn cluster(addr: SocketAddr) -> Arc<Cluster> {
    cluster_of([addr])
}

pub(crate) fn cluster_of(addrs: impl IntoIterator<Item = SocketAddr>) -> Arc<Cluster> {
    Cluster::new(key(), &spec(addrs.into_iter().map(Endpoint::Address)), Arc::new(Everywhere))
}

pub(crate) fn cluster_with(spec: &UpstreamSpec, settings: ClusterSettings) -> Arc<Cluster> {
    Cluster::with_settings(key(), spec, Arc::new(Everywhere), settings)
}

/// A request body as a test wants it: frames at hand, then frames from a channel, then its end.
pub(crate) struct TestBody {
    ready: VecDeque<Frame<Bytes>>,
    channel: Option<mpsc::Receiver<Result<Frame<Bytes>, BoxError>>>,
    length: Option<u64>,
}

impl TestBody {
    pub(crate) fn empty() -> Self {
        Self { ready: VecDeque::new(), channel: None, length: Some(0) }
    }

    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let length = Some(bytes.len() as u64);
        Self { ready: [Frame::data(bytes)].into(), channel: None, length }
    }

    /// Of unknown length.
    pub(crate) fn frames(frames: impl IntoIterator<Item = Frame<Bytes>>) -> Self {
        Self { ready: frames.into_iter().collect(), channel: None, length: None }
    }

    pub(crate) fn channel(length: Option<u64>) -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, Self) {
        let (tx, rx) = mpsc::channel(1);
        (tx, Self { ready: VecDeque::new(), channel: Some(rx), length })
    }
}

impl Body for TestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = match self.ready.pop_front() {
            Some(frame) => Some(Ok(frame)),
            None => match &mut self.channel {
                None => None,
                Some(rx) => std::task::ready!(rx.poll_recv(cx)),
            },
        };
        if let (Some(left), Some(Ok(frame))) = (&mut self.length, &frame) {
            *left -= frame.data_ref().map_or(0, |d| d.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.length == Some(0) || self.ready.is_empty() && self.channel.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

pub(crate) fn request(method: Method, path: &str, body: TestBody) -> Request<TestBody> {
    Request::builder().method(method).uri(path).header("host", "acme.test").body(body).unwrap()
}

pub(crate) fn get(path: &str) -> Request<TestBody> {
    request(Method::GET, path, TestBody::empty())
}

pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Request<TestBody> {
    request(Method::POST, path, TestBody::full(body))
}

pub(crate) type Outcome = Result<Sent, Box<SendError<TestBody>>>;

pub(crate) async fn send(pools: &Pools, cluster: &Arc<Cluster>, request: Request<TestBody>) -> Outcome {
    pools.send(cluster, request, SendOptions::default()).await
}

pub(crate) async fn whole(response: Response<UpstreamBody>) -> (Bytes, Option<HeaderMap>) {
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned();
    (collected.to_bytes(), trailers)
}

pub(crate) async fn text(sent: Sent) -> String {
    String::from_utf8(whole(sent.response).await.0.to_vec()).unwrap()
}
