//! An HTTP/1.1 origin in the test's own process: it answers by path, remembers every request, misbehaves on demand,
//! and can be stopped (its port refuses) and started again on the same port.
//!
//! | path | answer |
//! |---|---|
//! | `/echo` | 200 with the request's body and content type |
//! | `/inspect` | 200 with the request as JSON: method, target, headers as a list of pairs, body, trailers |
//! | `/status/503` | that status; `?retry-after=2` adds the field, in which `+` stands for a space |
//! | `/created` | 201 with the request's body, a location, a cookie, and fields for its own connection |
//! | `/slow?ms=500` | 200 after that time (at most 60 s) |
//! | `/bytes?n=1000` | that many bytes; `&chunked` sends them chunked, `&pause_ms=5` pauses between pieces of 16 KiB |
//! | `/trailers` | a chunked body with the trailer `x-sum` |
//! | `/close` | 200 with `Connection: close`, then closes |
//! | `/close-silently` | 200 as if the connection stayed, then closes it: the trap for connection pools |
//! | `/cut?after=10` | the head of a 1,000-byte body, so many bytes of it, then closes |
//! | `/reset` | resets the connection before a head |
//! | `/hang` | no answer while the origin runs and its client stays |
//! | `/garbage` | bytes that are not HTTP |
//! | what [`Origin::page`] named | 200 with that body |
//! | any other | 200, `ok` |
//!
//! Every answer names the origin in `x-origin`. Requests are told apart by whether they came whole.

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use crate::{
    http1::{self, Framing, Headers},
    ports::Port,
    server::Server,
};

/// The most requests that are remembered; later ones are only counted.
const MAX_RECORDED: usize = 1 << 20;

/// What an origin does to one request in place of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mischief {
    /// It answers with this status.
    Status(u16),
    /// It answers 503 with `Retry-After: 0`: the request was not taken.
    Busy,
    /// It resets the connection before a head.
    Reset,
    /// Of a delivery from a queue, it breaks the answer's body off; anything else it answers well.
    Cut,
    /// It waits this many milliseconds, then resets the connection.
    Hang(u64),
    /// It waits this many milliseconds, then answers well.
    Slow(u64),
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The fields.
    pub headers: Headers,
    /// The body, or as much of it as came.
    pub body: Vec<u8>,
    /// The trailer fields of a chunked body.
    pub trailers: Headers,
    /// Whether the body came whole.
    pub whole: bool,
    /// The number of the connection it came over, from 0.
    pub connection: u64,
    /// When its last byte came.
    pub at: SystemTime,
    /// The same by the clock that nobody sets.
    pub came: Instant,
    /// What the origin did to it, if it did not answer it well.
    pub mischief: Option<Mischief>,
}

impl Recorded {
    /// Every value of a field, in order.
    pub fn values(&self, name: &str) -> Vec<String> {
        self.headers.all(name).map(str::to_owned).collect()
    }
}

/// A running or stopped origin. Dropping it stops it.
pub struct Origin {
    shared: Arc<Shared>,
    server: Server,
}

/// Held by the origin and each of its connections.
struct Shared {
    name: String,
    log: Mutex<Vec<Arc<Recorded>>>,
    one_more: Condvar,
    total: AtomicU64,
    close_silently: AtomicBool,
    status: AtomicU16,
    delay_ms: AtomicU64,
    /// By the number of the request among those that came whole, from 1.
    mischief: Mutex<BTreeMap<u64, Mischief>>,
    stopping: AtomicBool,
    /// Content types and bodies by path.
    pages: Mutex<BTreeMap<String, (String, Vec<u8>)>>,
}

impl Shared {
    fn log(&self) -> MutexGuard<'_, Vec<Arc<Recorded>>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin {
    /// Starts one on a port of its own.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_on(name, Port::reserve()?)
    }

    /// Starts one on this port.
    ///
    /// # Errors
    /// Where something listens on it.
    pub fn start_on(name: &str, port: Port) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: name.into(),
            log: Mutex::default(),
            one_more: Condvar::new(),
            total: AtomicU64::new(0),
            close_silently: AtomicBool::new(false),
            status: AtomicU16::new(0),
            delay_ms: AtomicU64::new(0),
            mischief: Mutex::default(),
            stopping: AtomicBool::new(false),
            pages: Mutex::default(),
        });
        let for_handler = shared.clone();
        let server =
            Server::start("origin", port, Arc::new(move |stream, id| serve(&for_handler, stream, id)))?;
        Ok(Self { shared, server })
    }

    /// Where it listens, or did before it was stopped.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Whether it runs.
    pub fn runs(&self) -> bool {
        self.server.runs()
    }

    /// Closes its port and connections. When this returns, connecting is refused.
    pub fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.server.stop();
    }

    /// Listens again on the same port; what was recorded stays.
    ///
    /// # Errors
    /// Where it runs already, or another process took the port.
    pub fn start_again(&mut self) -> Result<()> {
        self.shared.stopping.store(false, Ordering::SeqCst);
        self.server.start_again()
    }

    /// From now on answers this path with this body, in pieces of 16 KiB.
    pub fn page(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) {
        let mut pages = self.shared.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.insert(path.into(), (content_type.into(), body.into()));
    }

    /// From now on closes each connection after one response without saying so, whatever the path.
    pub fn close_silently(&self, on: bool) {
        self.shared.close_silently.store(on, Ordering::SeqCst);
    }

    /// From now on answers everything with this status, whatever the path; `None` ends that.
    pub fn answer_all(&self, status: Option<u16>) {
        self.shared.status.store(status.unwrap_or(0), Ordering::SeqCst);
    }

    /// From now on waits this long before each answer (at most 60 s).
    pub fn delay_all(&self, delay: Duration) {
        self.shared.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Does this to the n-th request that comes whole, counted from 1 over its whole life. An empty map ends it.
    pub fn misbehaves(&self, plan: BTreeMap<u64, Mischief>) {
        *self.shared.mischief.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// The requests so far, those cut off among them, in the order in which they ended.
    pub fn requests(&self) -> Vec<Arc<Recorded>> {
        self.shared.log().clone()
    }

    /// The last of the [requests](Self::requests).
    ///
    /// # Panics
    /// Where there was none.
    #[track_caller]
    pub fn last(&self) -> Arc<Recorded> {
        self.shared.log().last().cloned().expect("the origin got a request")
    }

    /// The number of requests that came whole.
    pub fn count(&self) -> u64 {
        self.shared.total.load(Ordering::SeqCst)
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.log().clear();
        self.shared.total.store(0, Ordering::SeqCst);
    }

    /// Waits until the recorded requests satisfy `enough`, and returns them.
    ///
    /// # Errors
    /// Where they don't by then; the message has the number and the last one.
    pub fn wait_for(
        &self,
        within: Duration,
        enough: impl Fn(&[Arc<Recorded>]) -> bool,
    ) -> Result<Vec<Arc<Recorded>>> {
        let until = Instant::now() + within;
        let mut log = self.shared.log();
        while !enough(&log) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "origin {}: what was awaited did not arrive within {within:?}; {} requests did, the last being {:?}",
                    self.shared.name,
                    log.len(),
                    log.last()
                );
            }
            (log, _) = self.shared.one_more.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(log.clone())
    }

    /// Waits until `n` requests have come whole, and returns what was recorded.
    ///
    /// # Errors
    /// Where they don't by then.
    pub fn wait_for_count(&self, n: usize, within: Duration) -> Result<Vec<Arc<Recorded>>> {
        self.wait_for(within, |log| log.iter().filter(|r| r.whole).count() >= n)
    }

    /// Waits until none of its connections stands.
    ///
    /// # Errors
    /// Where one does by then.
    pub fn wait_closed(&self, within: Duration) -> Result<()> {
        let standing = self.server.wait_closed(within);
        ensure!(standing == 0, "origin {}: {standing} connections stand after {within:?}", self.shared.name);
        Ok(())
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(shared: &Shared, stream: TcpStream, connection: u64) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::with_capacity(32 << 10, stream);
    while let Ok(Some(head)) = http1::read_head(&mut input) {
        let mut line = head.first_line.split(' ');
        let (Some(method), Some(target)) = (line.next(), line.next()) else { return };
        if head.headers.lists("expect", "100-continue")
            && out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").is_err()
        {
            return;
        }
        let Ok(framing) = Framing::of_request(&head.headers) else { return };
        let body = http1::read_body(&mut input, framing);
        let whole = body.end.is_whole();
        let number = shared.total.fetch_add(u64::from(whole), Ordering::SeqCst) + 1;
        let planned = || shared.mischief.lock().unwrap_or_else(PoisonError::into_inner).get(&number).copied();
        let mischief = if whole { planned() } else { None };
        let request = Arc::new(Recorded {
            mischief,
            method: method.into(),
            target: target.into(),
            whole,
            headers: head.headers,
            body: body.bytes,
            trailers: body.trailers,
            connection,
            at: SystemTime::now(),
            came: Instant::now(),
        });
        // First remembered, then answered: who has the answer finds the request.
        {
            let mut log = shared.log();
            if log.len() < MAX_RECORDED {
                log.push(request.clone());
            }
        }
        shared.one_more.notify_all();
        let answered = if whole { answer(shared, &request, mischief, &mut out) } else { Ok(Then::Close) };
        match answered {
            Ok(Then::Keep) => {}
            Ok(Then::Close) | Err(_) => return,
            Ok(Then::Reset) => {
                // A linger of zero makes the close a reset.
                let _ = socket2::SockRef::from(&out).set_linger(Some(Duration::ZERO));
                return;
            }
        }
    }
}

/// What becomes of the connection.
enum Then {
    Keep,
    Close,
    Reset,
}

/// The value of a query parameter.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((n, value)) if n == name => Some(value),
        None if pair == name => Some(""),
        _ => None,
    })
}

fn answer(
    shared: &Shared,
    request: &Recorded,
    mischief: Option<Mischief>,
    out: &mut TcpStream,
) -> io::Result<Then> {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let number = |name| parameter(query, name).and_then(|v| v.parse::<u64>().ok());
    let mut reply = Reply { shared, request, out, head: String::new() };
    let forced = shared.status.load(Ordering::SeqCst);
    // An origin that is stopped while it waits answers nothing any more.
    if !pause(shared, shared.delay_ms.load(Ordering::SeqCst)) {
        return Ok(Then::Close);
    }
    match mischief {
        Some(Mischief::Status(status)) => {
            reply.send(status, b"")?;
            return Ok(Then::Keep);
        }
        Some(Mischief::Busy) => {
            reply.field("retry-after", "0");
            reply.send(503, b"")?;
            return Ok(Then::Keep);
        }
        Some(Mischief::Reset) => return Ok(Then::Reset),
        Some(Mischief::Cut)
            if request.headers.get("beamline-attempt").is_some() && !path.starts_with("/status/") =>
        {
            reply.write_head(200, Some(1000))?;
            reply.out.write_all(&[b'x'; 10])?;
            return Ok(Then::Close);
        }
        Some(Mischief::Hang(ms)) => {
            pause(shared, ms);
            return Ok(Then::Reset);
        }
        Some(Mischief::Slow(ms)) => {
            if !pause(shared, ms) {
                return Ok(Then::Close);
            }
        }
        Some(Mischief::Cut) | None => {}
    }
    let page = shared.pages.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
    if forced != 0 {
        reply.send(forced, b"")?;
    } else if let Some((kind, body)) = page {
        reply.field("content-type", &kind);
        reply.field("etag", "\"1\"");
        reply.pieces(&body, true, 2)?;
    } else {
        match path {
            "/echo" => {
                let kind = request.headers.get("content-type").unwrap_or("application/octet-stream");
                reply.field("content-type", kind);
                reply.send(200, &request.body)?;
            }
            "/inspect" => {
                let pairs = |h: &Headers| h.iter().map(|(n, v)| json!([n, v])).collect::<Vec<_>>();
                let seen = json!({
                    "method": request.method, "target": request.target, "headers": pairs(&request.headers),
                    "body": String::from_utf8_lossy(&request.body), "trailers": pairs(&request.trailers),
                });
                reply.field("content-type", "application/json");
                reply.send(200, seen.to_string().as_bytes())?;
            }
            "/created" => {
                for (name, value) in [
                    ("location", "/orders/7"),
                    ("set-cookie", "session=s3cret-cookie"),
                    ("cache-control", "public, max-age=60"),
                    ("connection", "keep-alive, x-hop"),
                    ("keep-alive", "timeout=60"),
                    ("x-hop", "1"),
                ] {
                    reply.field(name, value);
                }
                reply.send(201, &request.body)?;
            }
            "/slow" => {
                if !pause(shared, number("ms").unwrap_or(100)) {
                    return Ok(Then::Close);
                }
                reply.send(200, b"slow\n")?;
            }
            "/bytes" => {
                let bytes = vec![b'x'; number("n").unwrap_or(0).min(1 << 30) as usize];
                let chunked = parameter(query, "chunked").is_some();
                reply.pieces(&bytes, chunked, number("pause_ms").unwrap_or(0))?;
            }
            "/trailers" => {
                reply.field("trailer", "x-sum");
                reply.field("transfer-encoding", "chunked");
                reply.write_head(200, None)?;
                reply.out.write_all(b"6\r\nhello\n\r\n0\r\nx-sum: 532\r\n\r\n")?;
            }
            "/close" => {
                reply.field("connection", "close");
                reply.send(200, b"bye\n")?;
                return Ok(Then::Close);
            }
            "/close-silently" => {
                reply.send(200, b"bye\n")?;
                return Ok(Then::Close);
            }
            "/cut" => {
                reply.write_head(200, Some(1000))?;
                reply.out.write_all(&vec![b'x'; number("after").unwrap_or(10).min(999) as usize])?;
                return Ok(Then::Close);
            }
            "/reset" => return Ok(Then::Reset),
            "/hang" => {
                while !has_left(reply.out) && pause(shared, 20) {}
                return Ok(Then::Close);
            }
            "/garbage" => {
                reply.out.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")?;
                return Ok(Then::Close);
            }
            _ => match path.strip_prefix("/status/").and_then(|s| s.parse().ok()) {
                Some(status) => {
                    if let Some(after) = parameter(query, "retry-after") {
                        reply.field("retry-after", &after.replace('+', " "));
                    }
                    reply.send(status, b"")?;
                }
                None => reply.send(200, b"ok\n")?,
            },
        }
    }
    let last = shared.close_silently.load(Ordering::SeqCst) || request.headers.lists("connection", "close");
    Ok(if last { Then::Close } else { Then::Keep })
}

/// Waits; false where the origin was stopped meanwhile.
fn pause(shared: &Shared, ms: u64) -> bool {
    let until = Instant::now() + Duration::from_millis(ms.min(3_600_000));
    while !shared.stopping.load(Ordering::SeqCst) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(Duration::from_millis(20)));
    }
    false
}

/// Whether the client has closed its side of a connection over which it sends nothing more.
fn has_left(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).is_ok()
        && match stream.peek(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
}

struct Reply<'a> {
    shared: &'a Shared,
    request: &'a Recorded,
    out: &'a mut TcpStream,
    head: String,
}

impl Reply<'_> {
    fn field(&mut self, name: &str, value: &str) {
        self.head.push_str(&format!("{name}: {value}\r\n"));
    }

    fn head_bytes(&mut self, status: u16, length: Option<usize>) -> Vec<u8> {
        let length = match length {
            Some(n) if status != 204 && status != 304 => format!("content-length: {n}\r\n"),
            _ => String::new(),
        };
        format!(
            "HTTP/1.1 {status} {}\r\nx-origin: {}\r\n{length}{}\r\n",
            if status < 400 { "Fine" } else { "Not fine" },
            self.shared.name,
            self.head
        )
        .into_bytes()
    }

    fn write_head(&mut self, status: u16, length: Option<usize>) -> io::Result<()> {
        let head = self.head_bytes(status, length);
        self.out.write_all(&head)
    }

    /// Head and body in one write.
    fn send(&mut self, status: u16, body: &[u8]) -> io::Result<()> {
        let mut bytes = self.head_bytes(status, Some(body.len()));
        if self.request.method != "HEAD" && status != 204 && status != 304 {
            bytes.extend_from_slice(body);
        }
        self.out.write_all(&bytes)
    }

    fn pieces(&mut self, body: &[u8], chunked: bool, pause_ms: u64) -> io::Result<()> {
        if chunked {
            self.field("transfer-encoding", "chunked");
        }
        self.write_head(200, (!chunked).then_some(body.len()))?;
        if self.request.method == "HEAD" {
            return Ok(());
        }
        for piece in body.chunks(16 << 10) {
            if chunked {
                self.out.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
            }
            self.out.write_all(piece)?;
            if chunked {
                self.out.write_all(b"\r\n")?;
            }
            if pause_ms > 0 {
                pause(self.shared, pause_ms);
            }
        }
        if chunked { self.out.write_all(b"0\r\n\r\n") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Connection, Request};

    #[test]
    fn it_answers_by_path_and_remembers_what_came() {
        let origin = Origin::start("acme").unwrap();
        let to = origin.address();
        let mut connection = Connection::open(to, Duration::from_secs(5)).unwrap();
        let echo = connection.exchange(&Request::post("/echo", "hello").header("X-A", "1")).unwrap();
        assert_eq!(
            (echo.status, echo.text().as_str(), echo.header("x-origin")),
            (200, "hello", Some("acme"))
        );
        let busy = connection.exchange(&Request::get("/status/503?retry-after=2")).unwrap();
        assert_eq!((busy.status, busy.header("retry-after")), (503, Some("2")));
        let sum = connection.exchange(&Request::get("/trailers")).unwrap();
        assert_eq!(sum.trailers.get("x-sum"), Some("532"));
        let bytes = connection.exchange(&Request::get("/bytes?n=100000&chunked")).unwrap();
        assert_eq!((bytes.body.len(), bytes.end.is_whole()), (100_000, true));
        let seen =
            connection.exchange(&Request::post("/inspect", "b").trailer("x-t", "2")).unwrap().json().unwrap();
        assert_eq!(seen["trailers"][0][1], "2");
        let log = origin.wait_for_count(5, Duration::from_secs(5)).unwrap();
        assert_eq!((log[0].target.as_str(), log[0].headers.get("x-a")), ("/echo", Some("1")));
        assert!(log.iter().all(|r| r.connection == log[0].connection), "the connection was kept");
    }

    #[test]
    fn it_misbehaves_on_demand() {
        let origin = Origin::start("acme").unwrap();
        let to = origin.address();
        assert!(!Request::get("/cut?after=7").attempt(to).unwrap().end.is_whole());
        assert!(Request::get("/reset").attempt(to).is_err());
        assert!(Request::get("/garbage").attempt(to).is_err());
        assert!(Request::get("/hang").timeout(Duration::from_millis(50)).attempt(to).is_err());
        let mut connection = Connection::open(to, Duration::from_secs(5)).unwrap();
        let quiet = connection.exchange(&Request::get("/close-silently")).unwrap();
        assert_eq!(quiet.header("connection"), None);
        connection.wait_closed(Duration::from_secs(5)).unwrap();
        origin.answer_all(Some(500));
        assert_eq!(Request::get("/echo").send(to).unwrap().status, 500);
    }

    #[test]
    fn stopped_it_refuses_and_started_again_it_answers_on_the_same_port() {
        let mut origin = Origin::start("acme").unwrap();
        let to = origin.address();
        let mut open = Connection::open(to, Duration::from_secs(5)).unwrap();
        open.exchange(&Request::get("/")).unwrap();
        for _ in 0..3 {
            origin.stop();
            open.wait_closed(Duration::from_secs(5)).unwrap();
            assert!(Connection::open(to, Duration::from_secs(5)).is_err());
            origin.start_again().unwrap();
            open = Connection::open(to, Duration::from_secs(5)).unwrap();
            assert_eq!(open.exchange(&Request::get("/")).unwrap().status, 200);
        }
    }

    #[test]
    fn a_request_cut_off_is_recorded_as_such() {
        let origin = Origin::start("acme").unwrap();
        let mut connection = Connection::open(origin.address(), Duration::from_secs(5)).unwrap();
        connection.send_raw(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").unwrap();
        drop(connection);
        let log = origin.wait_for(Duration::from_secs(5), |log| !log.is_empty()).unwrap();
        assert_eq!((log[0].whole, log[0].body.as_slice(), origin.count()), (false, &b"abc"[..], 0));
    }
}
