//! One raw HTTP/1.1 exchange: exactly the bytes that a test wants to send, everything that comes back.
//!
//! Where it matters that a *real* client is satisfied, tests use [`curl`](crate::tools::curl); this one shows what a
//! real client hides: trailers, a connection's end, an interim response.

use std::{
    fmt::Write as _,
    io::{self, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::http1::{self, End, Framing, Headers};

/// How long a whole exchange may take unless [`Request::timeout`] says otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// A request to be sent.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    host: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
    trailers: Option<Vec<(String, String)>>,
    timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Response {
    /// The status of the final response.
    pub status: u16,
    /// Its fields.
    pub headers: Headers,
    /// Its body, without framing.
    pub body: Vec<u8>,
    /// The trailer fields of a chunked body.
    pub trailers: Headers,
    /// The statuses of the interim responses before it, such as 100.
    pub interim: Vec<u16>,
    /// Whether it came whole.
    pub end: End,
}

impl Request {
    /// A request without a body.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.into(),
            target: target.into(),
            host: "127.0.0.1".into(),
            headers: Vec::new(),
            body: None,
            trailers: None,
            timeout: TIMEOUT,
        }
    }

    /// A GET.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// A POST with a body.
    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    /// Names the host; without it, `127.0.0.1`.
    pub fn host(mut self, host: &str) -> Self {
        self.host = host.into();
        self
    }

    /// Adds a field line, as it is.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sends a body with `Content-Length`.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// Sends the body chunked, with this trailer after it. May be called again for a further one.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.get_or_insert_default().push((name.into(), value.into()));
        self
    }

    /// Sends the body chunked, in pieces of at most 1,000 bytes.
    pub fn chunked(mut self) -> Self {
        self.trailers.get_or_insert_default();
        self
    }

    /// How long the whole exchange may take; without it, [`TIMEOUT`].
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The bytes that are sent.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.target, self.host);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        let body = self.body.as_deref().unwrap_or_default();
        let Some(trailers) = &self.trailers else {
            if self.body.is_some() {
                let _ = write!(head, "Content-Length: {}\r\n", body.len());
            }
            head.push_str("\r\n");
            return [head.as_bytes(), body].concat();
        };
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
        let mut out = head.into_bytes();
        for piece in body.chunks(1000) {
            out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\n");
        for (name, value) in trailers {
            out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out
    }

    /// Sends it over a new connection.
    ///
    /// # Errors
    /// Where no whole response comes back in time; the message says how far it got.
    pub fn send(&self, to: SocketAddr) -> Result<Response> {
        let response = self.attempt(to)?;
        match &response.end {
            End::Whole => Ok(response),
            End::Cut(how) => {
                bail!("{} {}: the {} response was cut: {how}", self.method, self.target, response.status)
            }
        }
    }

    /// Sends it over a new connection and takes a response that is cut off, too.
    ///
    /// # Errors
    /// Where no response head comes back in time.
    pub fn attempt(&self, to: SocketAddr) -> Result<Response> {
        Connection::open(to, self.timeout)?.exchange(self)
    }
}

impl Response {
    /// A field's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)
    }

    /// The body as text, what isn't UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// Where it isn't; the message has the body.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("expected JSON; found {:?}", self.text()))
    }

    /// The token of the problem document that it is, such as `unknown-host`; empty where it is none.
    pub fn problem(&self) -> String {
        let kind = self.json().ok().and_then(|document| document["type"].as_str().map(str::to_owned));
        kind.as_deref()
            .and_then(|kind| kind.strip_prefix("urn:beamline:problem:"))
            .unwrap_or_default()
            .to_owned()
    }

    /// The status, and the token of the problem document that it is.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.problem())
    }

    /// The response itself where it has this status.
    ///
    /// # Errors
    /// Where it has another; the message has both and the body.
    pub fn expect(self, status: u16) -> Result<Self> {
        ensure!(self.status == status, "expected {status}; found {}: {}", self.status, self.text());
        Ok(self)
    }
}

/// A connection over which requests go one after the other.
pub struct Connection {
    stream: BufReader<Bounded>,
}

/// A stream whose reads and writes all end by one moment, whatever the peer does.
struct Bounded {
    stream: TcpStream,
    until: Instant,
}

impl Bounded {
    fn left(&self) -> io::Result<Duration> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, "no end of the exchange in time")),
            left => Ok(left),
        }
    }
}

/// The time-out of a socket shows as `WouldBlock`: say what it is.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, "no end of the exchange in time")
        }
        _ => error,
    }
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(into).map_err(timed_out)
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection {
    /// Connects. `timeout` bounds the connect and the first exchange.
    ///
    /// # Errors
    /// Where the connection is refused or doesn't stand in time.
    pub fn open(to: SocketAddr, timeout: Duration) -> Result<Self> {
        let stream =
            TcpStream::connect_timeout(&to, timeout).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(Bounded { stream, until: Instant::now() + timeout }) })
    }

    /// Sends a request and reads its response, which may end cut off.
    ///
    /// # Errors
    /// Where no response head comes back in time.
    pub fn exchange(&mut self, request: &Request) -> Result<Response> {
        self.stream.get_mut().until = Instant::now() + request.timeout;
        // A server may answer and close before it has read everything: what it said counts.
        let sent = self.send_raw(&request.to_bytes());
        match self.read_response(&request.method) {
            Ok(response) => Ok(response),
            Err(error) => Err(sent.err().unwrap_or(error))
                .with_context(|| format!("{} {} of {}", request.method, request.target, request.host)),
        }
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// Where the stream fails or doesn't take them in time.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).context("cannot send")
    }

    /// Says that nothing more will be sent.
    ///
    /// # Errors
    /// Where the connection is gone.
    pub fn finish_sending(&mut self) -> Result<()> {
        Ok(self.stream.get_ref().stream.shutdown(std::net::Shutdown::Write)?)
    }

    /// Reads the final response to a request with this method.
    ///
    /// # Errors
    /// Where no response head comes in time.
    pub fn read_response(&mut self, method: &str) -> Result<Response> {
        let mut interim = Vec::new();
        loop {
            let head = http1::read_head(&mut self.stream)
                .context("no response")?
                .context("no response: the connection was closed before its first byte")?;
            let status: u16 = head
                .first_line
                .strip_prefix("HTTP/1.")
                .and_then(|rest| rest.get(2..5)?.parse().ok())
                .with_context(|| format!("expected a status line; found {:?}", head.first_line))?;
            if status / 100 == 1 && status != 101 {
                interim.push(status);
                continue;
            }
            let framing = Framing::of_response(method, status, &head.headers)?;
            let body = http1::read_body(&mut self.stream, framing);
            return Ok(Response {
                status,
                headers: head.headers,
                body: body.bytes,
                trailers: body.trailers,
                interim,
                end: body.end,
            });
        }
    }

    /// Waits until the peer closes the connection; what it still sends is dropped.
    ///
    /// # Errors
    /// Where it doesn't close by then.
    pub fn wait_closed(&mut self, within: Duration) -> Result<()> {
        self.stream.get_mut().until = Instant::now() + within;
        match io::copy(&mut self.stream, &mut io::sink()) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                bail!("expected the peer to close within {within:?}; the connection still stands")
            }
            _ => Ok(()),
        }
    }
}
