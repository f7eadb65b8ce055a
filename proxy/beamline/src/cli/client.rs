//! A node's admin API over HTTP.

use std::{
    io::{self, Read as _, Write},
    time::Duration,
};

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::{
    Agent, Timeout,
    http::{Method, Request, StatusCode, Uri, header, request},
};

use super::{
    failure::{Failure, Problem},
    node_args::NodeArgs,
    token,
};

/// Until a connection stands.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// For a whole exchange. The longest is an upload that waits for others to be compiled before it.
const EXCHANGE_TIME: Duration = Duration::from_secs(600);
/// For an answer that is written while it is read: the longest is an export of bodies, which a node ends after 30 min.
const COPY_TIME: Duration = Duration::from_secs(31 * 60);
/// The largest answer that is read.
const ANSWER_MAX: u64 = 64 << 20;

/// A node, as one token sees it.
pub(crate) struct Node {
    agent: Agent,
    base: String,
    token: String,
}

/// An answer: the document as it came.
#[derive(Debug)]
pub(crate) struct Answer(pub(crate) Value);

impl Answer {
    /// The document as what this build knows of it. Fields that it does not know are no error: the node may be newer.
    pub(crate) fn as_a<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        T::deserialize(&self.0).map_err(|error| {
            Failure::Unreachable(format!(
                "the node's answer is not of the expected form ({error}): is this command older than the node? \
                 --json prints answers as they come"
            ))
        })
    }
}

impl Node {
    /// The node that a command's options name.
    pub(crate) fn of(args: &NodeArgs) -> Result<Self, Failure> {
        let (base, host) = base(&args.admin).map_err(Failure::Local)?;
        let token = token::find(args, &host)?;
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Tokens go to the node and to nobody between.
            .proxy(None)
            // A connection that stood idle may be gone when it is needed, and a new one to a node is cheap.
            .max_idle_connections(0)
            .timeout_connect(Some(CONNECT_TIME))
            .timeout_global(Some(EXCHANGE_TIME))
            .user_agent(concat!("beamline/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, base, token })
    }

    /// Asks for a document.
    pub(crate) fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.exchange(Method::GET, path, None)
    }

    /// Writes what is at a path while it is read, whatever its length.
    pub(crate) fn copy(&self, path: &str, to: &mut impl Write) -> Result<(), Failure> {
        let request = self.request(Method::GET, path).body(());
        let sent = request.map_err(ureq::Error::from).and_then(|request| {
            let request = self.agent.configure_request(request).timeout_global(Some(COPY_TIME)).build();
            self.agent.run(request)
        });
        let mut response = sent.map_err(|error| self.broken(&error, false))?;
        let status = response.status();
        if !status.is_success() {
            let body = response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
            return self.answer(status, &body.map_err(|error| self.broken(&error, false))?).map(drop);
        }
        let (mut from, mut piece) =
            (response.body_mut().with_config().limit(u64::MAX).reader(), [0; 64 << 10]);
        loop {
            match from.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if !handed_on(&piece[..read], to)? {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Failure::Unreachable(format!(
                        "the node at {} broke off ({error}): the last line that was written may not be whole; go on with --after and \
                         the seq of the last whole one",
                        self.base
                    )));
                }
            }
        }
    }

    /// Posts a document.
    pub(crate) fn post(&self, path: &str, document: &Value) -> Result<Answer, Failure> {
        self.exchange(Method::POST, path, Some(("application/json", document.to_string().as_bytes())))
    }

    /// Posts nothing: the path says it all.
    pub(crate) fn post_empty(&self, path: &str) -> Result<Answer, Failure> {
        self.exchange(Method::POST, path, None)
    }

    /// Posts a module.
    pub(crate) fn post_module(&self, path: &str, module: &[u8]) -> Result<Answer, Failure> {
        self.exchange(Method::POST, path, Some(("application/wasm", module)))
    }

    /// Puts a document.
    pub(crate) fn put(&self, path: &str, document: &str) -> Result<Answer, Failure> {
        self.exchange(Method::PUT, path, Some(("application/json", document.as_bytes())))
    }

    /// Puts bytes as they are.
    pub(crate) fn put_bytes(&self, path: &str, bytes: &[u8]) -> Result<Answer, Failure> {
        self.exchange(Method::PUT, path, Some(("application/octet-stream", bytes)))
    }

    /// Deletes what is at a path.
    pub(crate) fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.exchange(Method::DELETE, path, None)
    }

    fn request(&self, method: Method, path: &str) -> request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::ACCEPT, "application/json, application/problem+json, application/x-ndjson")
    }

    fn exchange(&self, method: Method, path: &str, body: Option<(&str, &[u8])>) -> Result<Answer, Failure> {
        let changes = method != Method::GET;
        let mut request = self.request(method, path);
        if let Some((media_type, _)) = body {
            // A refusal then comes before the body is sent, and is not lost in a broken connection.
            request = request.header(header::CONTENT_TYPE, media_type).header(header::EXPECT, "100-continue");
        }
        let sent = match body {
            Some((_, bytes)) => {
                request.body(bytes).map_err(ureq::Error::from).and_then(|r| self.agent.run(r))
            }
            None => request.body(()).map_err(ureq::Error::from).and_then(|r| self.agent.run(r)),
        };
        let mut response = sent.map_err(|error| self.broken(&error, changes))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(ANSWER_MAX).read_to_vec();
        self.answer(status, &body.map_err(|error| self.broken(&error, changes))?)
    }

    fn answer(&self, status: StatusCode, body: &[u8]) -> Result<Answer, Failure> {
        let document = if status.is_success() { serde_json::from_slice(body).ok() } else { None };
        if let Some(document) = document {
            return Ok(Answer(document));
        }
        match Problem::read(body) {
            Some(problem) if !status.is_success() => Err(Failure::Refused(problem)),
            _ => Err(Failure::Unreachable(format!(
                "what answers at {} is not a BeamLine admin API (status {}, and neither a document nor a problem): \
                 look at --admin",
                self.base,
                status.as_u16()
            ))),
        }
    }

    /// Why an exchange did not come to its end.
    fn broken(&self, error: &ureq::Error, changes: bool) -> Failure {
        let base = &self.base;
        let nobody = |why: &str| {
            Failure::Unreachable(format!(
                "no node can be reached at {base} ({why}): start one with `beamline serve`, or name another by --admin"
            ))
        };
        match error {
            ureq::Error::Http(error) => Failure::Local(format!(
                "the token cannot be sent in a header ({error}): look at where it comes from"
            )),
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                nobody("connection refused")
            }
            ureq::Error::HostNotFound => nobody("the host is not known"),
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                nobody(&format!("no connection within {} s", CONNECT_TIME.as_secs()))
            }
            ureq::Error::ConnectionFailed => nobody("no connection"),
            other if changes => Failure::Unreachable(format!(
                "the node at {base} did not answer to the end ({other}): the change may have been made; look with \
                 `beamline show` before you repeat it"
            )),
            other => Failure::Unreachable(format!(
                "the node at {base} did not answer to the end ({other}): try again"
            )),
        }
    }
}

/// The admin URL without a final slash, and its host.
fn base(url: &str) -> Result<(String, String), String> {
    let wrong = |why: &str| {
        format!(
            "--admin {url:?} is not the URL of an admin API ({why}): expected one such as \"http://127.0.0.1:9090\""
        )
    };
    let uri: Uri = url.parse().map_err(|error| wrong(&format!("{error}")))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => return Err(wrong("nodes serve it without TLS")),
        _ => return Err(wrong("it does not begin with http://")),
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| wrong("it names no host"))?;
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(wrong("it holds a user name"));
    }
    if uri.path() != "/" || uri.query().is_some() {
        return Err(wrong("it has a path or a query"));
    }
    Ok((url.trim_end_matches('/').to_owned(), host.to_owned()))
}

/// Writes, and says whether more is wanted: a reader that went away has seen what it wanted.
pub(crate) fn handed_on(bytes: &[u8], to: &mut impl Write) -> Result<bool, Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::Local(format!("the answer could not be written: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{FakeNode, node_args};

    #[test]
    fn an_admin_url_is_scheme_host_and_port() {
        let good = base("http://[::1]:9090/").unwrap();
        assert_eq!(good, ("http://[::1]:9090".to_owned(), "[::1]".to_owned()));
        for (bad, why) in [
            ("127.0.0.1:9090", "does not begin with http://"),
            ("https://node", "without TLS"),
            ("http://node/v1", "a path"),
            ("http://node?x", "a query"),
            ("http://me:pw@node", "a user name"),
            ("", "not the URL"),
        ] {
            let problem = base(bad).unwrap_err();
            assert!(problem.contains(why) && problem.contains("http://127.0.0.1:9090"), "{bad}: {problem}");
        }
    }

    #[test]
    fn the_token_goes_with_each_request_as_a_bearer() {
        let node = FakeNode::answering([(200, json!({})), (200, json!({}))]);
        let client = Node::of(&node_args(node.url())).unwrap();
        client.get("/v1/status").unwrap();
        client.post("/v1/tenants", &json!({ "name": "acme" })).unwrap();
        let [first, second] = &node.requests()[..] else { panic!("expected two requests") };
        assert_eq!((&*first.line, &*first.authorization), ("GET /v1/status", "Bearer blo_test"));
        assert_eq!((&*second.line, &*second.authorization), ("POST /v1/tenants", "Bearer blo_test"));
        assert_eq!(second.body, br#"{"name":"acme"}"#);
    }

    #[test]
    fn nobody_there_is_not_the_same_as_a_refusal() {
        let gone = FakeNode::answering([]).into_closed();
        let failure = Node::of(&node_args(&gone)).unwrap().get("/v1/status").unwrap_err();
        assert!(matches!(failure, Failure::Unreachable(_)), "{failure}");
        assert!(failure.to_string().contains("connection refused"), "{failure}");
    }

    #[test]
    fn a_server_that_is_no_node_is_named_as_such() {
        let node = FakeNode::answering([(200, Value::Null), (404, json!("not found"))]);
        let client = Node::of(&node_args(node.url())).unwrap();
        assert!(client.get("/v1/status").unwrap().as_a::<Vec<String>>().is_err());
        let failure = client.get("/v1/status").unwrap_err();
        assert!(matches!(failure, Failure::Unreachable(_)), "{failure}");
        assert!(failure.to_string().contains("not a BeamLine admin API (status 404"), "{failure}");
    }

    #[test]
    fn a_change_whose_answer_was_lost_is_told_as_uncertain() {
        let node = FakeNode::hanging_up(2);
        let client = Node::of(&node_args(node.url())).unwrap();
        let lost = client.post("/v1/tenants", &json!({})).unwrap_err().to_string();
        assert!(lost.contains("the change may have been made"), "{lost}");
        let lost = client.get("/v1/tenants").unwrap_err().to_string();
        assert!(lost.contains("try again"), "{lost}");
    }
}
