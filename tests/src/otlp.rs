//! A receiver of traces over OTLP/HTTP with protobuf: what a collector would see, to be queried and printed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write as _,
    io::{BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1 as proto,
};
use prost::Message;

use crate::{
    http1::{self, Framing, Headers},
    ports::Port,
    server::Server,
};

/// The most spans that are kept; later ones are only counted.
const MAX_SPANS: usize = 1 << 20;

/// What a span says about its part in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Not said.
    Unspecified,
    /// Inside the process.
    Internal,
    /// Answers a remote request.
    Server,
    /// Makes a remote request.
    Client,
    /// Hands a message over.
    Producer,
    /// Takes a message.
    Consumer,
}

/// One span, identifiers in hexadecimal digits.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// 32 digits.
    pub trace_id: String,
    /// 16 digits.
    pub span_id: String,
    /// 16 digits, or none for a root.
    pub parent: Option<String>,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// Its attributes, each value as text.
    pub attributes: BTreeMap<String, String>,
    /// The trace and span of each link.
    pub links: Vec<(String, String)>,
    /// The message of an error status; empty where the error has none.
    pub error: Option<String>,
    /// `service.name` of its resource.
    pub service: String,
}

impl Span {
    /// How long it took.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end.saturating_sub(self.start))
    }

    /// An attribute's value as text.
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

/// A running or stopped receiver. Dropping it stops it.
pub struct Receiver {
    shared: Arc<Shared>,
    server: Server,
}

#[derive(Default)]
struct Shared {
    spans: Mutex<Vec<Span>>,
    more: Condvar,
    status: AtomicU16,
    requests: AtomicU64,
    malformed: Mutex<Vec<String>>,
}

impl Shared {
    fn spans(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Receiver {
    /// Starts one on a port of its own.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn start() -> Result<Self> {
        Self::start_on(Port::reserve()?)
    }

    /// Starts one on this port.
    ///
    /// # Errors
    /// Where something listens on it.
    pub fn start_on(port: Port) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let for_handler = shared.clone();
        let server = Server::start("otlp", port, Arc::new(move |stream, _| serve(&for_handler, stream)))?;
        Ok(Self { shared, server })
    }

    /// What `--otlp-endpoint` takes.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it listens, or did before it was stopped.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Closes its port and connections.
    pub fn stop(&mut self) {
        self.server.stop();
    }

    /// Listens again on the same port; what was received stays.
    ///
    /// # Errors
    /// Where it runs already, or another process took the port.
    pub fn start_again(&mut self) -> Result<()> {
        self.server.start_again()
    }

    /// From now on refuses every export with this status; `None` ends that.
    pub fn refuse(&self, status: Option<u16>) {
        self.shared.status.store(status.unwrap_or(0), Ordering::SeqCst);
    }

    /// The number of export requests so far, refused ones among them.
    pub fn exports(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// What was sent that is not OTLP/HTTP with protobuf.
    pub fn malformed(&self) -> Vec<String> {
        self.shared.malformed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of spans that are kept.
    pub fn count(&self) -> usize {
        self.shared.spans().len()
    }

    /// Forgets the spans so far.
    pub fn forget(&self) {
        self.shared.spans().clear();
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        self.shared.spans().clone()
    }

    /// The spans of one trace so far, by their start.
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        of_trace(&self.shared.spans(), trace_id)
    }

    /// Waits until the spans of one trace satisfy `enough`, and returns them by their start.
    ///
    /// # Errors
    /// Where they don't by then; the message has the trace as a tree.
    pub fn wait_for_trace(
        &self,
        trace_id: &str,
        within: Duration,
        enough: impl Fn(&[Span]) -> bool,
    ) -> Result<Vec<Span>> {
        let until = Instant::now() + within;
        let mut all = self.shared.spans();
        loop {
            let found = of_trace(&all, trace_id);
            if enough(&found) {
                return Ok(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "trace {trace_id}: what was awaited did not come within {within:?}; there are {} spans in all, of this trace:\n{}",
                    all.len(),
                    tree(&found)
                );
            }
            (all, _) = self.shared.more.wait_timeout(all, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn of_trace(spans: &[Span], trace_id: &str) -> Vec<Span> {
    let mut found: Vec<_> = spans.iter().filter(|s| s.trace_id == trace_id).cloned().collect();
    found.sort_by_key(|s| (s.start, std::cmp::Reverse(s.end)));
    found
}

/// A span in its place in the tree.
#[derive(Debug)]
pub struct Branch<'a> {
    /// What leads to it, such as `│  └─ `; empty for a root.
    pub lead: String,
    /// The span.
    pub span: &'a Span,
    /// Whether it names a parent that is not among the spans; it then stands at the top.
    pub is_orphan: bool,
}

/// Spans as a tree, line by line: children under their parent, in the order of their start.
pub fn branches(spans: &[Span]) -> Vec<Branch<'_>> {
    let known: HashSet<_> = spans.iter().map(|s| s.span_id.as_str()).collect();
    let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
    let mut roots = Vec::new();
    for span in spans {
        match span.parent.as_deref().filter(|p| known.contains(p)) {
            Some(parent) => children.entry(parent).or_default().push(span),
            None => roots.push(span),
        }
    }
    let mut out = Vec::new();
    // Each with what stands before it and whether it is its parent's last; none of both for a root.
    let mut todo: Vec<(&Span, Option<(String, bool)>)> = roots.into_iter().rev().map(|s| (s, None)).collect();
    while let Some((span, place)) = todo.pop() {
        let is_orphan = place.is_none() && span.parent.is_some();
        let (lead, below) = match place {
            None => (String::new(), String::new()),
            Some((before, true)) => (format!("{before}└─ "), format!("{before}   ")),
            Some((before, false)) => (format!("{before}├─ "), format!("{before}│  ")),
        };
        let kids = children.remove(span.span_id.as_str()).unwrap_or_default();
        let n = kids.len();
        todo.extend(
            kids.into_iter().enumerate().rev().map(|(i, kid)| (kid, Some((below.clone(), i + 1 == n)))),
        );
        out.push(Branch { lead, span, is_orphan });
    }
    out
}

/// Spans as a tree for messages: one line each, links named.
pub fn tree(spans: &[Span]) -> String {
    let first = spans.iter().map(|s| s.start).min().unwrap_or(0);
    let mut out = String::new();
    for Branch { lead, span, is_orphan } in branches(spans) {
        let _ = write!(
            out,
            "{lead}{} [{:?}] +{:.1?} {:.1?}{}",
            span.name,
            span.kind,
            Duration::from_nanos(span.start.saturating_sub(first)),
            span.duration(),
            if is_orphan { " (its parent was not received)" } else { "" },
        );
        for key in ["tenant.id", "http.response.status_code", "verdict", "error.type"] {
            if let Some(value) = span.attribute(key) {
                let _ = write!(out, " {key}={value}");
            }
        }
        for (trace, id) in &span.links {
            let name =
                spans.iter().find(|s| s.span_id == *id && s.trace_id == *trace).map(|s| s.name.as_str());
            let _ = write!(out, " ⇢ {}", name.unwrap_or(id));
        }
        if let Some(error) = &span.error {
            let _ = write!(out, " ✗ {error}");
        }
        out.push('\n');
    }
    out
}

fn serve(shared: &Shared, stream: TcpStream) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    while let Ok(Some(head)) = http1::read_head(&mut input) {
        let Ok(framing) = Framing::of_request(&head.headers) else { return };
        let body = http1::read_body(&mut input, framing);
        if !body.end.is_whole() {
            return;
        }
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let status = match shared.status.load(Ordering::SeqCst) {
            0 => match take(shared, &head.first_line, &head.headers, &body.bytes) {
                Ok(()) => 200,
                Err(error) => {
                    let mut malformed = shared.malformed.lock().unwrap_or_else(PoisonError::into_inner);
                    if malformed.len() < 1000 {
                        malformed.push(format!("{error:#}"));
                    }
                    400
                }
            },
            status => status,
        };
        // An empty body is an ExportTraceServiceResponse without partial success.
        let answer = format!(
            "HTTP/1.1 {status} OTLP\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
        );
        if out.write_all(answer.as_bytes()).is_err() || head.headers.lists("connection", "close") {
            return;
        }
    }
}

fn take(shared: &Shared, request_line: &str, headers: &Headers, body: &[u8]) -> Result<()> {
    ensure!(request_line.starts_with("POST /v1/traces "), "expected POST /v1/traces; found {request_line:?}");
    let kind = headers.get("content-type").unwrap_or("none");
    ensure!(kind == "application/x-protobuf", "expected application/x-protobuf; found {kind}");
    let export = ExportTraceServiceRequest::decode(body).context("expected an ExportTraceServiceRequest")?;
    let mut new = Vec::new();
    for resource in export.resource_spans {
        let service = resource
            .resource
            .iter()
            .flat_map(|r| &r.attributes)
            .find(|a| a.key == "service.name")
            .map_or_else(String::new, |a| text(a.value.as_ref()));
        for span in resource.scope_spans.into_iter().flat_map(|s| s.spans) {
            new.push(read_span(span, &service)?);
        }
    }
    let mut spans = shared.spans();
    let room = MAX_SPANS.saturating_sub(spans.len());
    spans.extend(new.into_iter().take(room));
    drop(spans);
    shared.more.notify_all();
    Ok(())
}

fn read_span(span: proto::Span, service: &str) -> Result<Span> {
    ensure!(span.trace_id.len() == 16, "expected a trace id of 16 bytes; found {}", span.trace_id.len());
    ensure!(span.span_id.len() == 8, "expected a span id of 8 bytes; found {}", span.span_id.len());
    Ok(Span {
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        kind: match span.kind() {
            proto::span::SpanKind::Unspecified => Kind::Unspecified,
            proto::span::SpanKind::Internal => Kind::Internal,
            proto::span::SpanKind::Server => Kind::Server,
            proto::span::SpanKind::Client => Kind::Client,
            proto::span::SpanKind::Producer => Kind::Producer,
            proto::span::SpanKind::Consumer => Kind::Consumer,
        },
        name: span.name,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        attributes: span
            .attributes
            .into_iter()
            .map(|KeyValue { key, value, .. }| (key, text(value.as_ref())))
            .collect(),
        links: span.links.iter().map(|l| (hex(&l.trace_id), hex(&l.span_id))).collect(),
        error: span.status.filter(|s| s.code == proto::status::StatusCode::Error as i32).map(|s| s.message),
        service: service.to_owned(),
    })
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|v| v.value.as_ref()) {
        Some(Value::StringValue(s)) => s.clone(),
        Some(Value::BoolValue(b)) => b.to_string(),
        Some(Value::IntValue(n)) => n.to_string(),
        Some(Value::DoubleValue(x)) => x.to_string(),
        Some(Value::BytesValue(bytes)) => hex(bytes),
        Some(Value::ArrayValue(list)) => {
            let items: Vec<_> = list.values.iter().map(|v| text(Some(v))).collect();
            format!("[{}]", items.join(", "))
        }
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

    use super::*;
    use crate::client::Request;

    fn span(
        id: u8,
        parent: Option<u8>,
        name: &str,
        kind: proto::span::SpanKind,
        link: Option<u8>,
    ) -> proto::Span {
        proto::Span {
            trace_id: vec![7; 16],
            span_id: vec![id; 8],
            parent_span_id: parent.map(|p| vec![p; 8]).unwrap_or_default(),
            name: name.into(),
            kind: kind as i32,
            start_time_unix_nano: u64::from(id) * 1_000_000,
            end_time_unix_nano: u64::from(id) * 1_000_000 + 2_000_000,
            links: link
                .map(|l| proto::span::Link {
                    trace_id: vec![7; 16],
                    span_id: vec![l; 8],
                    ..Default::default()
                })
                .into_iter()
                .collect(),
            ..Default::default()
        }
    }

    fn export(spans: Vec<proto::Span>) -> Vec<u8> {
        let scope = ScopeSpans { spans, ..Default::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..Default::default() };
        ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec()
    }

    #[test]
    fn spans_arrive_and_print_as_a_tree() {
        use proto::span::SpanKind::{Client, Consumer, Internal, Producer, Server};
        let receiver = Receiver::start().unwrap();
        let post = |body: Vec<u8>| {
            Request::post("/v1/traces", body)
                .header("content-type", "application/x-protobuf")
                .send(receiver.address())
                .unwrap()
                .status
        };
        let spans = vec![
            span(5, Some(4), "POST", Client, None),
            span(1, None, "POST /orders", Server, None),
            span(2, Some(1), "filter router", Internal, None),
            span(3, Some(1), "publish api", Producer, None),
            span(4, Some(3), "process api", Consumer, Some(3)),
        ];
        assert_eq!(post(export(spans)), 200);
        let trace = "07".repeat(16);
        let found = receiver.wait_for_trace(&trace, Duration::from_secs(5), |s| s.len() == 5).unwrap();
        assert_eq!(
            tree(&found),
            "POST /orders [Server] +0.0ns 2.0ms\n\
             ├─ filter router [Internal] +1.0ms 2.0ms\n\
             └─ publish api [Producer] +2.0ms 2.0ms\n   \
                └─ process api [Consumer] +3.0ms 2.0ms ⇢ publish api\n      \
                   └─ POST [Client] +4.0ms 2.0ms\n"
        );
        assert_eq!(post(b"nonsense".to_vec()), 400);
        assert_eq!(receiver.malformed().len(), 1);
        receiver.refuse(Some(503));
        assert_eq!(post(export(vec![])), 503);
        assert_eq!(receiver.exports(), 3);
    }
}
