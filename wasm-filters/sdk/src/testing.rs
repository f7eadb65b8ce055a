//! Running a filter in `cargo test`, without a node and without Wasm.
//!
//! ```
//! use beamline_sdk::{Filter, Request, Verdict, testing::Call, upstream};
//!
//! struct Fallback;
//!
//! impl Filter for Fallback {
//!     type Config = ();
//!
//!     fn on_request(_: &(), _: &mut Request) -> Verdict {
//!         if upstream::is_up("api") { Verdict::next() } else { Verdict::route("standby").into() }
//!     }
//! }
//!
//! let outcome = Call::get("/").upstream("api", upstream::State::Down).run::<Fallback>();
//! assert_eq!(outcome.verdict, Verdict::route("standby").into());
//! ```
//!
//! Other phases run likewise: what came in, such as [`Call::response`] and [`Call::body`], then the phase, such as
//! [`Call::run_response`]. What a phase left in [`context`](crate::context) is in its outcome, and goes into the next call
//! with [`Call::context`].
//!
//! What a filter answers by itself is [`Outcome::answer`].
//!
//! The head behaves as the host's does: names in any case, bytes as values, the same refusals of changes. Limits are
//! not modelled, neither CPU time nor memory.

mod answer;
mod cases;
mod head;
pub(crate) mod host;
mod kept;

use std::time::Duration;

use serde_json::Value;

pub use self::{
    answer::Answer,
    cases::{run_cases, run_response_cases, run_whole_request_cases},
    head::{Head, ResponseHead},
    kept::Kept,
};
use crate::{
    Body, Chunk, ChunkVerdict, Filter, FinishFilter, Request, RequestBodyFilter, ResponseBodyFilter,
    ResponseFilter, ResponseVerdict, Verdict, WholeRequestFilter, WholeResponseFilter, config,
    log::Level,
    outbound::{IncomingResponse, OutboundError, OutgoingRequest},
    properties::Properties,
    upstream::{State, Status},
};

/// One call of a filter, and what its host would answer during it.
#[derive(Clone, Debug, Default)]
pub struct Call {
    head: Head,
    response: ResponseHead,
    body: Vec<u8>,
    host: host::Host,
}

/// What a call led to.
#[derive(Debug)]
pub struct Outcome {
    /// What the filter decided.
    pub verdict: Verdict,
    /// The request's head with the filter's changes.
    pub head: Head,
    /// The body that is sent: as it came, or as the filter replaced it.
    pub body: Vec<u8>,
    /// What the filter remembers of the request.
    pub context: Option<Vec<u8>>,
    /// What the filter logged, in order.
    pub log: Vec<(Level, String)>,
    /// What the filter counted, in order.
    pub metrics: Vec<Metric>,
    /// The requests that the filter sent, in order.
    pub sent: Vec<OutgoingRequest>,
}

/// What a call of a phase of the response led to.
#[derive(Debug)]
pub struct ResponseOutcome {
    /// What the filter decided.
    pub verdict: ResponseVerdict,
    /// The response's head with the filter's changes.
    pub head: ResponseHead,
    /// The body that is sent: as it came, or as the filter replaced it.
    pub body: Vec<u8>,
    /// What the filter remembers of the request.
    pub context: Option<Vec<u8>>,
    /// What the filter logged, in order.
    pub log: Vec<(Level, String)>,
    /// What the filter counted, in order.
    pub metrics: Vec<Metric>,
    /// The requests that the filter sent, in order.
    pub sent: Vec<OutgoingRequest>,
}

/// What became of a body that streamed.
#[derive(Debug)]
pub struct StreamOutcome {
    /// What went on, all of it.
    pub body: Vec<u8>,
    /// What the filter remembers of the request.
    pub context: Option<Vec<u8>>,
    /// What the filter logged, in order.
    pub log: Vec<(Level, String)>,
    /// What the filter counted, in order.
    pub metrics: Vec<Metric>,
    /// The requests that the filter sent, in order.
    pub sent: Vec<OutgoingRequest>,
}

/// What a filter did when an exchange had ended.
#[derive(Debug)]
pub struct FinishOutcome {
    /// What the filter logged, in order.
    pub log: Vec<(Level, String)>,
    /// What the filter counted, in order.
    pub metrics: Vec<Metric>,
    /// The requests that the filter sent, in order.
    pub sent: Vec<OutgoingRequest>,
}

/// One update of a metric by a filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// The metric's name.
    pub name: String,
    /// What was added to the counter, or what the histogram observed.
    pub value: f64,
    /// Its labels.
    pub labels: Vec<(String, String)>,
}

impl Call {
    /// A call for a request with this method and target (path, and query after a `?`), to the host `example.test`.
    pub fn new(method: &str, target: &str) -> Self {
        Self { head: Head::new(method, target), ..Self::default() }
    }

    /// A call for a `GET` request.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// The host that the client named.
    pub fn host(mut self, host: &str) -> Self {
        self.head = self.head.with_host(host);
        self
    }

    /// One more header field of the request.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.head = self.head.with_header(name, value.as_ref());
        self
    }

    /// The filter's configuration; `null`, as where the manifest gives none, if this is not called.
    pub fn config(mut self, config: Value) -> Self {
        self.host.config = config;
        self
    }

    /// An upstream that the manifest has, with an empty queue.
    pub fn upstream(mut self, name: &str, state: State) -> Self {
        self.host.upstreams.insert(name.to_owned(), Status { state, queue_depth: 0 });
        self
    }

    /// What the host's randomness gives, each time. 0 if this is not called.
    pub fn random(mut self, value: u64) -> Self {
        self.host.random = value;
        self
    }

    /// The wall clock during the call, in milliseconds since 1970. 0 if this is not called.
    pub fn now_ms(mut self, now_ms: u64) -> Self {
        self.host.now_ms = now_ms;
        self
    }

    /// How long the call has lasted whenever the filter asks. Nothing if this is not called.
    pub fn elapsed(mut self, elapsed: Duration) -> Self {
        self.host.elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// What a request of the filter to this URL is answered with: a status and a body. One to a URL that no call of this names
    /// is not allowed.
    pub fn answer(mut self, url: &str, status: u16, body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref().to_vec();
        self.host.answers.insert(url.to_owned(), Ok(IncomingResponse { status, headers: vec![], body }));
        self
    }

    /// How a request of the filter to this URL fails.
    pub fn no_answer(mut self, url: &str, error: OutboundError) -> Self {
        self.host.answers.insert(url.to_owned(), Err(error));
        self
    }

    /// A secret that the filter may read. None if this is not called.
    pub fn secret(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.host.secrets.insert(name.to_owned(), value.as_ref().to_vec());
        self
    }

    /// What the tenant's filters keep, shared with every call that is given the same. Nothing if this is not called. Time goes
    /// by [`now_ms`](Self::now_ms).
    pub fn kept(mut self, kept: &Kept) -> Self {
        self.host.kept = kept.clone();
        self
    }

    /// Changes what is known of the request beside its head: by default it comes from `203.0.113.7:40000`, for revision 1 of
    /// the tenant `example`, over `http`.
    pub fn properties(mut self, change: impl FnOnce(&mut Properties)) -> Self {
        change(&mut self.host.properties);
        self
    }

    /// What an earlier call for the same request remembered.
    pub fn context(mut self, context: impl Into<Vec<u8>>) -> Self {
        self.host.context = Some(context.into());
        self
    }

    /// The status of the response. 200 if this is not called.
    pub fn response(self, status: u16) -> Self {
        self.response.came_with_status(status);
        self
    }

    /// One more header field of the response.
    pub fn response_header(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.response.came_with_header(name, value.as_ref());
        self
    }

    /// The whole body of the request, or of the response where the phase is one of the response's.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Runs the filter.
    ///
    /// # Panics
    /// Where the filter does, or where its configuration is not valid: in a node, both end the call.
    #[track_caller]
    pub fn run<F: Filter>(self) -> Outcome {
        self.try_run::<F>().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs the filter.
    ///
    /// # Errors
    /// Where its configuration is not valid: what a node would log.
    ///
    /// # Panics
    /// Where the filter does.
    pub fn try_run<F: Filter>(self) -> Result<Outcome, String> {
        let Self { head, host, body, .. } = self;
        let config = config::read::<F::Config>(&host.config.to_string())?;
        let (verdict, host) = host.during(|| F::on_request(&config, &mut Request::new(&head)));
        Ok(Outcome {
            verdict,
            head,
            body,
            context: host.context,
            log: host.log,
            metrics: host.metrics,
            sent: host.sent,
        })
    }

    /// Runs the phase that sees the request's whole body.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    #[track_caller]
    pub fn run_whole_request<F: WholeRequestFilter>(self) -> Outcome {
        let config = self.configured::<F::Config>();
        let Self { head, host, body, .. } = self;
        let mut body = Body::new(body);
        let (verdict, host) =
            host.during(|| F::on_whole_request(&config, &mut Request::new(&head), &mut body));
        let body = body.bytes().to_vec();
        Outcome {
            verdict,
            head,
            body,
            context: host.context,
            log: host.log,
            metrics: host.metrics,
            sent: host.sent,
        }
    }

    /// Runs the phase of the response's head.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    #[track_caller]
    pub fn run_response<F: ResponseFilter>(self) -> ResponseOutcome {
        let config = self.configured::<F::Config>();
        let Self { head, response, host, body } = self;
        let (verdict, host) = host.during(|| {
            F::on_response(&config, &Request::new(&head), &mut crate::ResponseHead::new(&response))
        });
        ResponseOutcome {
            verdict,
            head: response,
            body,
            context: host.context,
            log: host.log,
            metrics: host.metrics,
            sent: host.sent,
        }
    }

    /// Runs the phase that sees the response's whole body.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    #[track_caller]
    pub fn run_whole_response<F: WholeResponseFilter>(self) -> ResponseOutcome {
        let config = self.configured::<F::Config>();
        let Self { head, response, host, body } = self;
        let mut body = Body::new(body);
        let (verdict, host) = host.during(|| {
            let response = &mut crate::ResponseHead::new(&response);
            F::on_whole_response(&config, &Request::new(&head), response, &mut body)
        });
        let body = body.bytes().to_vec();
        ResponseOutcome {
            verdict,
            head: response,
            body,
            context: host.context,
            log: host.log,
            metrics: host.metrics,
            sent: host.sent,
        }
    }

    /// Runs the phase of the request's body over a body that comes in these chunks.
    ///
    /// # Panics
    /// As [`run`](Self::run), and where a verdict wants more shown again than there was.
    #[track_caller]
    pub fn run_request_body<F: RequestBodyFilter>(self, chunks: &[&[u8]]) -> StreamOutcome {
        let config = self.configured::<F::Config>();
        let Self { head, host, .. } = self;
        let (body, host) = host
            .during(|| streamed(chunks, |chunk| F::on_request_chunk(&config, &Request::new(&head), chunk)));
        StreamOutcome { body, context: host.context, log: host.log, metrics: host.metrics, sent: host.sent }
    }

    /// Runs the phase of the response's body over a body that comes in these chunks.
    ///
    /// # Panics
    /// As [`run`](Self::run), and where a verdict wants more shown again than there was.
    #[track_caller]
    pub fn run_response_body<F: ResponseBodyFilter>(self, chunks: &[&[u8]]) -> StreamOutcome {
        let config = self.configured::<F::Config>();
        let Self { head, response, host, .. } = self;
        let (body, host) = host.during(|| {
            streamed(chunks, |chunk| {
                let response = &crate::ResponseHead::new(&response);
                F::on_response_chunk(&config, &Request::new(&head), response, chunk)
            })
        });
        StreamOutcome { body, context: host.context, log: host.log, metrics: host.metrics, sent: host.sent }
    }

    /// Runs the phase after the last byte.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    #[track_caller]
    pub fn run_finish<F: FinishFilter>(self, outcome: &crate::Outcome) -> FinishOutcome {
        let config = self.configured::<F::Config>();
        let Self { head, host, .. } = self;
        let ((), host) = host.during(|| F::on_finish(&config, &Request::new(&head), outcome));
        FinishOutcome { log: host.log, metrics: host.metrics, sent: host.sent }
    }

    #[track_caller]
    fn configured<C: serde::de::DeserializeOwned>(&self) -> C {
        config::read(&self.host.config.to_string()).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// What goes on of a body that comes in these chunks; the last of them ends it.
fn streamed(chunks: &[&[u8]], mut show: impl FnMut(Chunk) -> ChunkVerdict) -> Vec<u8> {
    let (mut held, mut on) = (Vec::new(), Vec::new());
    for (place, chunk) in chunks.iter().enumerate() {
        let last = place + 1 == chunks.len();
        held.extend_from_slice(chunk);
        match show(Chunk::new(&held, last)) {
            ChunkVerdict::Hold if !last => {}
            ChunkVerdict::Pass | ChunkVerdict::Hold => on.append(&mut held),
            ChunkVerdict::Replace(replacement) => {
                let (mut data, again) = replacement.into_parts();
                assert!(again <= held.len(), "again: {again} bytes of a chunk of {}", held.len());
                on.append(&mut data);
                held.drain(..held.len() - again);
            }
        }
    }
    on
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        HeaderError,
        buckets::{self, BucketError, Rate, Taken},
        clock, context,
        kv::{self, KvError},
        log, metrics, outbound, properties, secrets,
    };

    struct Late;

    impl Filter for Late {
        type Config = ();

        fn on_request(_: &(), _: &mut Request) -> Verdict {
            let known = properties::snapshot();
            let told = format!("{} {} {:?}", known.client_address, clock::now_ms(), clock::elapsed());
            Verdict::respond(200).body(told).into()
        }
    }

    #[test]
    fn time_and_sender_are_what_the_call_says() {
        let call = Call::get("/")
            .now_ms(1_700_000_000_000)
            .elapsed(Duration::from_millis(3))
            .properties(|known| known.client_address = "192.0.2.1".into());
        let expected = Verdict::respond(200).body("192.0.2.1 1700000000000 3ms").into();
        assert_eq!(call.run::<Late>().verdict, expected);
        let default = Verdict::respond(200).body("203.0.113.7 0 0ns").into();
        assert_eq!(Call::get("/").run::<Late>().verdict, default);
    }

    /// Counts requests of a minute, and takes a token for each.
    struct Counts;

    impl Filter for Counts {
        type Config = ();

        fn on_request(_: &(), _: &mut Request) -> Verdict {
            let seen = kv::increment("seen", 1, Some(Duration::from_secs(60)));
            let taken = buckets::take("b", "k", 1, Rate::per_minute(2));
            Verdict::respond(200).body(format!("{seen:?} {taken:?}")).into()
        }
    }

    #[test]
    fn calls_share_what_is_kept() {
        let kept = Kept::new();
        let told = |now_ms| Call::get("/").kept(&kept).now_ms(now_ms).run::<Counts>().verdict;
        let expected = |seen: i64, taken: Taken| {
            let body = format!("{:?} {:?}", Ok::<_, KvError>(seen), Ok::<_, BucketError>(taken));
            Verdict::respond(200).body(body).into()
        };
        assert_eq!(told(0), expected(1, Taken::Allowed(1)));
        assert_eq!(told(0), expected(2, Taken::Allowed(0)));
        assert_eq!(told(10_000), expected(3, Taken::RetryAfterMs(20_000)));
        assert_eq!(told(30_000), expected(4, Taken::Allowed(0)));
        assert_eq!(told(60_000), expected(1, Taken::Allowed(0)), "the first minute is over");
        assert_eq!(kept.get("seen", 60_000).as_deref(), Some(&b"1"[..]));
    }

    struct Counting;

    impl Filter for Counting {
        type Config = ();

        fn on_request(_: &(), _: &mut Request) -> Verdict {
            metrics::count("hits", 2, &[("plan", "pro")]).unwrap();
            metrics::observe("size", 0.5, &[]).unwrap();
            Verdict::next()
        }
    }

    #[test]
    fn an_outcome_has_what_was_counted() {
        let counted = Call::get("/").run::<Counting>().metrics;
        let hits = Metric { name: "hits".into(), value: 2.0, labels: vec![("plan".into(), "pro".into())] };
        assert_eq!(counted, [hits, Metric { name: "size".into(), value: 0.5, labels: vec![] }]);
    }

    struct Asks;

    impl Filter for Asks {
        type Config = ();

        fn on_request(_: &(), _: &mut Request) -> Verdict {
            match outbound::get("http://auth.test/").header("x-a", "1").send() {
                Ok(answer) => Verdict::respond(answer.status).body(answer.body).into(),
                Err(error) => Verdict::respond(503).body(format!("{error:?}")).into(),
            }
        }
    }

    #[test]
    fn requests_of_a_filter_get_what_the_call_says() {
        let url = "http://auth.test/";
        let outcome = Call::get("/").answer(url, 204, "yes").run::<Asks>();
        assert_eq!(outcome.verdict, Verdict::respond(204).body("yes").into());
        assert_eq!((outcome.sent[0].method(), outcome.sent[0].url()), ("GET", url));
        let outcome = Call::get("/").no_answer(url, OutboundError::Timeout).run::<Asks>();
        assert_eq!(outcome.verdict, Verdict::respond(503).body("OutboundError::Timeout").into());
        let outcome = Call::get("/").run::<Asks>();
        assert_eq!(outcome.verdict, Verdict::respond(503).body("OutboundError::NotAllowed").into());
    }

    struct Keyed;

    impl Filter for Keyed {
        type Config = ();

        fn on_request(_: &(), _: &mut Request) -> Verdict {
            match secrets::get("key") {
                Some(key) => Verdict::respond(200).body(key).into(),
                None => Verdict::respond(503).into(),
            }
        }
    }

    #[test]
    fn a_secret_is_there_where_the_call_has_it() {
        let verdict = Call::get("/").secret("key", "s3cret").run::<Keyed>().verdict;
        assert_eq!(verdict, Verdict::respond(200).body("s3cret").into());
        assert_eq!(Call::get("/").secret("other", "").run::<Keyed>().verdict, Verdict::respond(503).into());
    }

    #[test]
    fn a_full_tenant_is_refused_new_keys() {
        let call = Call::get("/").kept(&Kept::new().full());
        let expected = "Err(KvError::QuotaExceeded) Err(BucketError::TooManyKeys)";
        let Verdict::Respond(found) = call.run::<Counts>().verdict else { panic!("an answer") };
        assert_eq!(String::from_utf8_lossy(&found.as_raw().body), expected);
        let kept = Kept::new().with("k", "old").full();
        assert!(
            kept.compare_and_set("k", Some(b"old"), b"new", None, 0).unwrap(),
            "what is there may change"
        );
        assert!(!kept.compare_and_set("k", Some(b"old"), b"newer", None, 0).unwrap());
        assert_eq!(kept.set("", b"", None, 0), Err(KvError::InvalidKey));
        assert!(kept.delete("k", 0) && !kept.delete("k", 0));
    }

    struct Phases;

    impl WholeRequestFilter for Phases {
        type Config = ();

        fn on_whole_request((): &(), request: &mut Request, body: &mut Body) -> Verdict {
            request.set_header("x-length", body.bytes().len().to_string()).unwrap();
            body.replace(body.bytes().to_ascii_uppercase());
            context::set("whole").unwrap();
            Verdict::next()
        }
    }

    impl ResponseFilter for Phases {
        type Config = ();

        fn on_response((): &(), request: &Request, response: &mut crate::ResponseHead) -> ResponseVerdict {
            if response.header("x-secret").is_some() {
                return ResponseVerdict::respond(502).body(request.path()).into();
            }
            assert_eq!(response.set_status(99), Err(HeaderError::InvalidValue));
            assert_eq!(response.set_header("content-length", "1"), Err(HeaderError::Forbidden));
            response.set_status(203).unwrap();
            response.append_header("x-context", context::get().unwrap_or_default()).unwrap();
            ResponseVerdict::next()
        }
    }

    impl ResponseBodyFilter for Phases {
        type Config = ();

        /// Every `cat` becomes a `dog`, wherever the chunks are cut.
        fn on_response_chunk((): &(), _: &Request, _: &crate::ResponseHead, chunk: Chunk) -> ChunkVerdict {
            let text = String::from_utf8_lossy(chunk.bytes()).replace("cat", "dog");
            let again = ["ca", "c"].iter().find(|end| text.ends_with(**end)).map_or(0, |end| end.len());
            if chunk.is_last() || again == 0 {
                return ChunkVerdict::replace(text).into();
            }
            ChunkVerdict::replace(&text.as_bytes()[..text.len() - again]).again(again).into()
        }
    }

    impl RequestBodyFilter for Phases {
        type Config = ();

        /// Lines go on whole, and none that is empty.
        fn on_request_chunk((): &(), _: &Request, chunk: Chunk) -> ChunkVerdict {
            match chunk.bytes() {
                b"\n" => ChunkVerdict::drop(),
                bytes if bytes.ends_with(b"\n") => ChunkVerdict::pass(),
                _ => ChunkVerdict::hold(),
            }
        }
    }

    impl FinishFilter for Phases {
        type Config = ();

        fn on_finish((): &(), request: &Request, outcome: &crate::Outcome) {
            log::info!("{} {:?} {}", request.path(), outcome.status, outcome.response_bytes);
            metrics::count("ended", 1, &[]).unwrap();
        }
    }

    crate::export!(Phases: whole_request, request_body, response, response_body, finish);

    #[test]
    fn a_whole_request_is_changed_and_remembered() {
        let outcome = Call::new("POST", "/").body("abc").run_whole_request::<Phases>();
        assert_eq!((outcome.verdict, outcome.body.as_slice()), (Verdict::next(), &b"ABC"[..]));
        assert_eq!(outcome.head.get("x-length"), Some(b"3".to_vec()));
        assert_eq!(outcome.context, Some(b"whole".to_vec()));
    }

    #[test]
    fn a_response_is_changed_or_replaced() {
        let outcome = Call::get("/").context("c").response(200).run_response::<Phases>();
        assert_eq!((outcome.verdict, outcome.head.status()), (ResponseVerdict::next(), 203));
        assert_eq!(outcome.head.get("x-context"), Some(b"c".to_vec()));
        let outcome = Call::get("/p").response_header("X-Secret", "1").run_response::<Phases>();
        assert_eq!(outcome.verdict, ResponseVerdict::respond(502).body("/p").into());
    }

    #[test]
    fn a_body_is_rewritten_across_its_chunks() {
        for chunks in
            [&[&b"a cat, a cat"[..]][..], &[b"a c", b"at, a ca", b"t"], &[b"a ca", b"t, a cat", b""]]
        {
            assert_eq!(Call::get("/").run_response_body::<Phases>(chunks).body, b"a dog, a dog");
        }
        let lines: &[&[u8]] = &[b"a", b"b\n", b"\n", b"c", b"d"];
        assert_eq!(Call::get("/").run_request_body::<Phases>(lines).body, b"ab\ncd");
    }

    #[test]
    fn the_end_is_heard_of() {
        let outcome = crate::Outcome {
            status: Some(200),
            upstream: None,
            request_bytes: 0,
            response_bytes: 5,
            duration_us: 1,
            upstream_us: 0,
            error: None,
        };
        let FinishOutcome { log, metrics, sent } = Call::get("/end").run_finish::<Phases>(&outcome);
        assert_eq!(log, [(Level::Info, "/end Some(200) 5".to_owned())]);
        assert_eq!(metrics, [Metric { name: "ended".into(), value: 1.0, labels: vec![] }]);
        assert!(sent.is_empty());
    }

    #[test]
    fn more_than_4_kib_are_not_remembered() {
        assert_eq!(context::set(vec![0; context::MAX + 1]), Err(context::TooLarge));
        assert_eq!(context::set(vec![0; context::MAX]), Ok(()));
    }
}
