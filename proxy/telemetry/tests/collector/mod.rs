//! A collector for tests: an OTLP/HTTP receiver on a real socket that answers as its script says.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
    },
    common::v1::any_value::Value,
    resource::v1::Resource,
    trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpSocket, sync::watch, task::JoinHandle, time::timeout};

/// How the collector answers one post.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// With a status, and no body.
    Status(u16),
    /// `503` with `Retry-After: 0`.
    TryAgain,
    /// `200`, with so many spans rejected.
    Rejects(i64),
    /// Not at all.
    Hang,
}

/// A running collector; it takes everything once its script is over, and ends when dropped.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    posts: watch::Receiver<Vec<Post>>,
    task: JoinHandle<()>,
}

/// One post that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    pub(crate) path: String,
    pub(crate) content_type: String,
    pub(crate) request: ExportTraceServiceRequest,
    pub(crate) taken: bool,
}

impl Collector {
    /// Starts one on a free port.
    pub(crate) fn start(script: &[Answer]) -> Self {
        Self::start_at(Self::absent().0, script)
    }

    /// An address of its own where nobody listens until [`Collector::start_at`].
    pub(crate) fn absent() -> (TcpSocket, SocketAddr) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        (socket, address)
    }

    /// Starts one on the socket that [`Collector::absent`] made.
    pub(crate) fn start_at(socket: TcpSocket, script: &[Answer]) -> Self {
        let listener = socket.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, posts) = watch::channel(vec![]);
        let script = Arc::new(Mutex::new(VecDeque::from(script.to_vec())));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (sender, script) = (sender.clone(), Arc::clone(&script));
                let service = service_fn(move |request| answer(request, sender.clone(), Arc::clone(&script)));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, posts, task }
    }

    /// Waits until `enough` holds of the posts; fails after a while.
    pub(crate) async fn until(&mut self, enough: impl FnMut(&Vec<Post>) -> bool) -> Vec<Post> {
        let posts = timeout(Duration::from_secs(20), self.posts.wait_for(enough)).await;
        posts.expect("the posts arrive in time").expect("the collector runs").clone()
    }

    /// What has arrived until now.
    pub(crate) fn posts(&self) -> Vec<Post> {
        self.posts.borrow().clone()
    }

    /// The spans that were taken until now.
    pub(crate) fn spans(&self) -> Vec<Span> {
        self.posts().iter().filter(|p| p.taken).flat_map(Post::spans).collect()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Post {
    pub(crate) fn spans(&self) -> Vec<Span> {
        let scopes = self.request.resource_spans.iter().flat_map(|r| &r.scope_spans);
        scopes.flat_map(|s| s.spans.clone()).collect()
    }

    pub(crate) fn resource(&self) -> &Resource {
        self.request.resource_spans[0].resource.as_ref().unwrap()
    }

    pub(crate) fn resource_attribute(&self, name: &str) -> Option<&str> {
        let attribute = self.resource().attributes.iter().find(|a| a.key == name)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    posts: watch::Sender<Vec<Post>>,
    script: Arc<Mutex<VecDeque<Answer>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let content_type = request.headers()["content-type"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let request = ExportTraceServiceRequest::decode(body).expect("the body is an export request");
    let answer = script.lock().unwrap().pop_front();
    let taken = matches!(answer, None | Some(Answer::Status(200) | Answer::Rejects(_)));
    posts.send_modify(|posts| posts.push(Post { path, content_type, request, taken }));
    let mut response = Response::new(Full::default());
    match answer {
        None => {}
        Some(Answer::Status(status)) => *response.status_mut() = StatusCode::from_u16(status).unwrap(),
        Some(Answer::TryAgain) => {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().insert("retry-after", "0".parse().unwrap());
        }
        Some(Answer::Rejects(rejected_spans)) => {
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: "no".to_owned() };
            let answer = ExportTraceServiceResponse { partial_success: Some(partial) };
            *response.body_mut() = answer.encode_to_vec().into();
        }
        Some(Answer::Hang) => std::future::pending().await,
    }
    Ok(response)
}
