//! Requests and responses pass as HTTP says: whole, in both directions, streamed, and with nothing that belongs to one
//! hop alone.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::HashSet,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use beamline_tests::{
    beamline::Options,
    client::{Connection, Request, Response},
    http1::{self, End, Framing},
    load::{self, Plan},
    process,
    raw::Raw,
    scene::{HOST, PATIENCE, Scene},
    seed::Seed,
};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// One worker: every request meets the same upstream connections.
fn one_worker() -> Scene {
    Scene::with(Options { workers: 1, ..Options::default() }).unwrap()
}

/// A scene whose upstream is a server of the test's own.
fn before(raw: &Raw) -> Scene {
    let scene = one_worker();
    scene.apply(|m| m["upstreams"]["origin"]["endpoints"] = json!([raw.address().to_string()])).unwrap();
    scene
}

/// An answer's head and body as `curl -i` prints them.
fn curled(scene: &Scene, path: &str, arguments: &[&str]) -> (http1::Head, Vec<u8>) {
    let seen = scene.curl(path, &[&["-i"], arguments].concat()).unwrap();
    assert_eq!(seen.exit, 0, "curl {path}: {}", String::from_utf8_lossy(&seen.body));
    let mut rest = seen.body.as_slice();
    loop {
        let head = http1::read_head(&mut rest).unwrap().unwrap();
        if !head.first_line.contains(" 100 ") {
            return (head, rest.to_vec());
        }
    }
}

/// The fields that the origin was sent for a GET of `/inspect`, as `/inspect` tells them.
fn inspected(body: &[u8]) -> Vec<(String, String)> {
    let seen: Value = serde_json::from_slice(body).unwrap();
    let pair = |p: &Value| (p[0].as_str().unwrap().to_owned(), p[1].as_str().unwrap().to_owned());
    seen["headers"].as_array().unwrap().iter().map(pair).collect()
}

fn values<'a>(fields: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
}

fn head_of(stream: &TcpStream) -> (http1::Head, BufReader<TcpStream>) {
    let mut input = BufReader::new(stream.try_clone().unwrap());
    (http1::read_head(&mut input).unwrap().unwrap(), input)
}

#[test]
fn a_body_passes_both_ways_as_it_is() {
    let scene = Scene::start().unwrap();
    let bytes = Seed::from_env("a_body_passes_both_ways_as_it_is").bytes(3 << 20);
    let file = scene.node.folder().join("body");
    std::fs::write(&file, &bytes).unwrap();
    let data = format!("@{}", file.display());
    for how in [&["-H", "expect:"][..], &["-H", "transfer-encoding: chunked"]] {
        let (head, body) = curled(&scene, "/echo", &[&["--data-binary", &data], how].concat());
        assert!(head.first_line.starts_with("HTTP/1.1 200"), "{head:?}");
        assert!(body == bytes, "{how:?}: {} bytes came back", body.len());
    }
    let log = scene.origin.requests();
    assert_eq!(log[0].headers.get("content-length"), Some("3145728"));
    assert_eq!(log[1].headers.get("transfer-encoding"), Some("chunked"));
}

#[test]
fn connections_are_kept_on_both_sides() {
    let scene = one_worker();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    for n in 0..20 {
        let request =
            if n % 2 == 0 { Request::get("/") } else { Request::post("/echo", vec![b'x'; n * 1000]) };
        let response = connection.exchange(&request.host(HOST)).unwrap();
        assert_eq!((response.status, response.end), (200, End::Whole));
    }
    // The first POST may take a second one: the origin has not shown yet that it keeps connections.
    let used: HashSet<_> = scene.origin.requests().iter().map(|r| r.connection).collect();
    assert!(used.len() <= 2, "20 requests took {} connections to the origin", used.len());

    let to = scene.node.address();
    let url = format!("http://{HOST}:{}/", to.port());
    let printed =
        scene.curl("/", &[&url, "-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} "]).unwrap();
    assert_eq!(String::from_utf8_lossy(&printed.body), "1 0 ", "curl used its connection again");
}

#[test]
fn trailers_pass_both_ways() {
    let scene = Scene::start().unwrap();
    let request =
        Request::post("/trailers", "some body").header("te", "trailers").header("trailer", "x-check");
    let answer = scene.send(request.trailer("x-check", "17")).unwrap();
    assert_eq!((answer.text().as_str(), answer.trailers.get("x-sum")), ("hello\n", Some("532")));
    assert_eq!(scene.origin.requests()[0].trailers.get("x-check"), Some("17"));

    let file = scene.node.folder().join("heads");
    let seen = scene.curl("/trailers", &["-H", "te: trailers", "-D", file.to_str().unwrap()]).unwrap();
    assert_eq!((seen.status, seen.body.as_slice()), (200, &b"hello\n"[..]));
    let heads = std::fs::read_to_string(&file).unwrap();
    assert!(heads.contains("x-sum: 532"), "curl saw the trailer: {heads}");
}

#[test]
fn a_response_passes_on_before_its_end_is_there() {
    let (saw, told) = channel::<()>();
    let told = Mutex::new(told);
    let raw = Raw::start(move |mut stream| {
        let (_, _input) = head_of(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\nfirst ").unwrap();
        if told.lock().unwrap().recv_timeout(PATIENCE).is_ok() {
            stream.write_all(b"second").unwrap();
        }
    })
    .unwrap();
    let scene = before(&raw);
    let mut stream = TcpStream::connect(scene.node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&Request::get("/").host(HOST).to_bytes()).unwrap();
    let (head, mut input) = head_of(&stream);
    assert_eq!(head.headers.get("content-length"), Some("12"));
    let mut body = [0; 12];
    input.read_exact(&mut body[..6]).unwrap();
    assert_eq!(&body[..6], b"first ");
    saw.send(()).unwrap();
    input.read_exact(&mut body[6..]).unwrap();
    assert_eq!(&body[6..], b"second");
}

#[test]
fn a_request_passes_on_before_its_end_is_there() {
    let (report, seen) = channel::<Vec<u8>>();
    let report = Mutex::new(report);
    let raw = Raw::start(move |mut stream| {
        let (_, mut input) = head_of(&stream);
        let mut body = [0; 12];
        for half in body.chunks_mut(6) {
            input.read_exact(half).unwrap();
            report.lock().unwrap().send(half.to_vec()).unwrap();
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    })
    .unwrap();
    let scene = before(&raw);
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    connection
        .send_raw(format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 12\r\n\r\nfirst ").as_bytes())
        .unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), b"first ");
    connection.send_raw(b"second").unwrap();
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), b"second");
    assert_eq!(connection.read_response("POST").unwrap().status, 200);
}

/// What a stream of bytes holds at a place, so that a lost or doubled piece shows.
fn piece(at: u64) -> Vec<u8> {
    (0..PIECE / 8).flat_map(|i| (at + i * 8).to_le_bytes()).collect()
}

const PIECE: u64 = 64 << 10;
const LARGE: u64 = 96 * MIB;
/// What the kernel's buffers of four sockets may hold, and hyper's: far less than [`LARGE`].
const IN_BETWEEN: u64 = 40 * MIB;
/// What the proxy may hold of a body that does not move.
const HELD: u64 = 16 * MIB;

fn write_pieces(out: &mut impl Write, written: &AtomicU64) -> io::Result<()> {
    (0..LARGE / PIECE).try_for_each(|i| {
        out.write_all(&piece(i * PIECE))?;
        written.fetch_add(PIECE, Ordering::SeqCst);
        Ok(())
    })
}

fn read_pieces(input: &mut impl Read, filter: Filter) {
    let mut found = vec![0; PIECE as usize];
    for i in 0..LARGE / PIECE {
        input.read_exact(&mut found).unwrap();
        let expected = match filter {
            Filter::None => piece(i * PIECE),
            Filter::Upper => piece(i * PIECE).to_ascii_uppercase(),
        };
        assert!(found == expected, "the piece at {} MiB came as it should", i * PIECE / MIB);
    }
}

/// What is in a body's way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    None,
    /// One that sees it chunk by chunk, and puts it in upper case.
    Upper,
}

impl Filter {
    /// Puts it in the scene.
    fn enter(self, scene: &Scene, raw: &Raw) {
        if self == Self::Upper {
            let upper = json!({ "upper": true });
            let mut phases = scene.filter("phases").unwrap();
            phases["config"] = json!({ "request_body": upper, "response_body": upper });
            let endpoints = json!([raw.address().to_string()]);
            scene
                .apply(|m| {
                    (m["filters"], m["upstreams"]["origin"]["endpoints"]) = (json!([phases]), endpoints)
                })
                .unwrap();
        }
    }

    /// A body's bytes, as its head frames them: what a filter changes has no stated length.
    fn body(self, head: &http1::Head, input: BufReader<TcpStream>) -> Box<dyn Read> {
        match self {
            Self::None => Box::new(input),
            Self::Upper => {
                assert!(head.headers.lists("transfer-encoding", "chunked"), "{head:?}");
                Box::new(Chunked { input, left: 0 })
            }
        }
    }
}

/// The bytes of a chunked body.
struct Chunked {
    input: BufReader<TcpStream>,
    /// Of the chunk under way.
    left: u64,
}

impl Read for Chunked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut line = String::new();
        while self.left == 0 {
            // The end of the one before, or nothing.
            line.clear();
            assert!(self.input.read_line(&mut line)? > 0, "the connection ended before the body");
            if !line.trim().is_empty() {
                self.left = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
                assert!(self.left > 0, "the body ended early");
            }
        }
        let most = into.len().min(usize::try_from(self.left).map_err(io::Error::other)?);
        let read = self.input.read(&mut into[..most])?;
        self.left -= read as u64;
        Ok(read)
    }
}

/// Waits until nothing more is written because nobody reads; gives how much was.
fn when_it_stalls(written: &AtomicU64) -> u64 {
    let until = Instant::now() + PATIENCE;
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = written.load(Ordering::SeqCst);
        if now > 0 && now == before {
            return now;
        }
        assert!(Instant::now() < until, "still writing after {PATIENCE:?}: {now} bytes");
        before = now;
    }
}

/// A client that does not read for a while: how much its origin could write, and what the node held.
fn slow_client(filter: Filter) {
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let raw = Raw::start(move |mut stream| {
        let (_, _input) = head_of(&stream);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n\r\n");
        if stream.write_all(head.as_bytes()).is_ok() {
            let _ = write_pieces(&mut stream, &count);
        }
    })
    .unwrap();
    let scene = before(&raw);
    filter.enter(&scene, &raw);
    let pid = scene.node.pid().unwrap();
    let idle = process::memory(pid).unwrap();
    let mut stream = TcpStream::connect(scene.node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&Request::get("/").host(HOST).to_bytes()).unwrap();

    let stalled = when_it_stalls(&written);
    assert!(stalled < IN_BETWEEN, "{} MiB left the origin though nobody read", stalled / MIB);
    let (head, input) = head_of(&stream);
    read_pieces(&mut filter.body(&head, input), filter);
    let held = process::memory(pid).unwrap().peak.saturating_sub(idle.peak);
    assert!(held < HELD, "the proxy held {} MiB", held / MIB);
}

/// The same of an origin that does not read for a while, and its client.
fn slow_origin(filter: Filter) {
    let (go, wait): (Sender<()>, Receiver<()>) = channel();
    let wait = Mutex::new(wait);
    let raw = Raw::start(move |mut stream| {
        let (head, input) = head_of(&stream);
        wait.lock().unwrap().recv_timeout(PATIENCE * 2).unwrap();
        read_pieces(&mut filter.body(&head, input), filter);
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    })
    .unwrap();
    let scene = before(&raw);
    filter.enter(&scene, &raw);
    let pid = scene.node.pid().unwrap();
    let idle = process::memory(pid).unwrap();
    let stream = TcpStream::connect(scene.node.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let (mut out, count) = (stream.try_clone().unwrap(), written.clone());
    let writing = std::thread::spawn(move || {
        write!(out, "POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {LARGE}\r\n\r\n").unwrap();
        write_pieces(&mut out, &count).unwrap();
    });

    let stalled = when_it_stalls(&written);
    assert!(stalled < IN_BETWEEN, "{} MiB left the client though nobody read", stalled / MIB);
    go.send(()).unwrap();
    let (head, _) = head_of(&stream);
    assert!(head.first_line.starts_with("HTTP/1.1 200"), "{head:?}");
    writing.join().unwrap();
    let held = process::memory(pid).unwrap().peak.saturating_sub(idle.peak);
    assert!(held < HELD, "the proxy held {} MiB", held / MIB);
    assert_eq!(written.load(Ordering::SeqCst), LARGE);
}

#[test]
fn a_client_that_reads_slowly_slows_its_origin_down() {
    slow_client(Filter::None);
}

#[test]
fn a_client_that_reads_slowly_slows_its_origin_down_through_a_filter_of_its_body() {
    slow_client(Filter::Upper);
}

#[test]
fn an_origin_that_reads_slowly_slows_its_client_down() {
    slow_origin(Filter::None);
}

#[test]
fn an_origin_that_reads_slowly_slows_its_client_down_through_a_filter_of_its_body() {
    slow_origin(Filter::Upper);
}

#[test]
fn fields_of_one_hop_do_not_pass() {
    let scene = Scene::start().unwrap();
    let hop = [
        "connection: keep-alive, x-secret",
        "x-secret: 1",
        "keep-alive: timeout=9",
        "proxy-connection: keep-alive",
        "te: gzip",
        "upgrade: h2c",
        "proxy-authorization: Basic eDp5",
        "proxy: http://evil.test",
    ];
    let arguments: Vec<&str> = hop.iter().flat_map(|line| ["-H", line]).chain(["-H", "x-kept: 1"]).collect();
    let (_, body) = curled(&scene, "/inspect", &arguments);
    let fields = inspected(&body);
    for line in hop {
        let name = line.split(':').next().unwrap();
        assert_eq!(values(&fields, name), Vec::<&str>::new(), "{name}");
    }
    assert_eq!(values(&fields, "x-kept"), ["1"]);
}

#[test]
fn fields_of_the_origins_hop_do_not_pass_to_the_client() {
    let raw = Raw::start(|mut stream| {
        let (_, _input) = head_of(&stream);
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close, x-inner\r\nx-inner: 1\r\nkeep-alive: timeout=5\r\n\
              proxy-connection: close\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n\r\nok",
        );
    })
    .unwrap();
    let scene = before(&raw);
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    for _ in 0..2 {
        let answer = connection.exchange(&Request::get("/").host(HOST)).unwrap();
        for name in ["connection", "x-inner", "keep-alive", "proxy-connection"] {
            assert_eq!(answer.header(name), None, "{name}");
        }
        assert_eq!(answer.headers.all("set-cookie").collect::<Vec<_>>(), ["a=1", "b=2"]);
    }
}

#[test]
fn both_sides_see_who_is_in_between() {
    let scene = Scene::start().unwrap();
    let claims = [
        "via: 1.1 front",
        "x-forwarded-for: 10.0.0.1",
        "x-forwarded-proto: https",
        "forwarded: for=10.0.0.1",
        "x-request-id: mine",
    ];
    let arguments: Vec<&str> = claims.iter().flat_map(|line| ["-H", line]).collect();
    let (head, body) = curled(&scene, "/inspect?q=1", &arguments);
    let fields = inspected(&body);
    assert_eq!(values(&fields, "via"), ["1.1 front", "1.1 beamline"]);
    assert_eq!(values(&fields, "x-forwarded-for"), ["127.0.0.1"], "nobody vouched for what the client said");
    assert_eq!(values(&fields, "x-forwarded-proto"), ["http"]);
    let host = format!("{HOST}:{}", scene.node.address().port());
    assert_eq!(values(&fields, "x-forwarded-host"), [host.as_str()]);
    assert_eq!(values(&fields, "host"), [host.as_str()]);
    assert_eq!(values(&fields, "forwarded"), Vec::<&str>::new());
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["target"], "/inspect?q=1");
    assert_eq!(head.headers.get("via"), Some("1.1 beamline"));
    let id = head.headers.get("x-request-id").unwrap();
    assert_eq!(values(&fields, "x-request-id"), [id], "one id for the client, the origin and the log");
}

#[test]
fn a_host_of_nobody_is_404() {
    let scene = Scene::start().unwrap();
    let answer = Request::get("/").host("nobody.test").send(scene.node.address()).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (404, "unknown-host"));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let status = answer.header("proxy-status").unwrap();
    assert!(status.contains("beamline") && status.contains("error=destination_not_found"), "{status}");
    for host in ["ACME.test", "acme.test:8080", "acme.test."] {
        assert_eq!(Request::get("/").host(host).send(scene.node.address()).unwrap().status, 200, "{host}");
    }
}

#[test]
fn ambiguous_requests_are_refused_and_reach_nobody() {
    let scene = Scene::start().unwrap();
    for request in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: acme.test\r\nhost: other.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: acme test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: acme.test:port\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: user@acme.test\r\n\r\n",
        "GET http://acme.test/ HTTP/1.1\r\nhost: other.test\r\n\r\n",
        "CONNECT acme.test:80 HTTP/1.1\r\nhost: acme.test:80\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: acme.test\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: acme.test\r\nx: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : acme.test\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: acme.test\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: acme.test\r\ncontent-length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: acme.test\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "nonsense\r\n\r\n",
    ] {
        let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
        connection.send_raw(request.as_bytes()).unwrap();
        let answer = connection.read_response("GET").unwrap();
        assert_eq!(answer.status, 400, "{request:?}: {}", answer.text());
    }
    assert_eq!(scene.send(Request::get("/after")).unwrap().status, 200);
    let log = scene.origin.requests();
    assert!(log.len() == 1 && log[0].target == "/after", "{log:?}");
}

#[test]
fn what_is_not_http_leaves_an_event_that_says_so() {
    let scene = Scene::start().unwrap();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    connection.send_raw(b"\x16\x03\x01 this is TLS, or so\r\n\r\n").unwrap();
    assert_eq!(connection.read_response("GET").unwrap().status, 400);
    connection.wait_closed(PATIENCE).unwrap();
    let is_it = |r: &Value| r["event.name"] == "connection.protocol_error";
    scene.node.wait_log(PATIENCE, |log| log.iter().any(is_it)).unwrap();
}

#[test]
fn a_head_beyond_its_limits_is_refused() {
    let scene = Scene::start().unwrap();
    let fields = |n: usize, bytes: usize| {
        let value = "x".repeat(bytes);
        (0..n).fold(Request::get("/"), |request, i| request.header(&format!("x-{i}"), &value)).host(HOST)
    };
    assert_eq!(fields(90, 100).send(scene.node.address()).unwrap().status, 200);
    assert_eq!(fields(101, 1).send(scene.node.address()).unwrap().status, 431);
    assert_eq!(fields(1, 200_000).attempt(scene.node.address()).unwrap().status, 431);
    assert_eq!(scene.origin.count(), 1);
}

#[test]
fn requests_that_were_sent_together_are_answered_in_their_order() {
    let scene = Scene::start().unwrap();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let requests =
        ["/slow?ms=100", "/status/404", "/echo", "/bytes?n=3"].map(|t| Request::get(t).host(HOST).to_bytes());
    connection.send_raw(&requests.concat()).unwrap();
    let answers: Vec<_> = (0..4).map(|_| connection.read_response("GET").unwrap()).collect();
    assert_eq!(answers.iter().map(|a| a.status).collect::<Vec<_>>(), [200, 404, 200, 200]);
    assert_eq!((answers[0].text().as_str(), answers[3].text().as_str()), ("slow\n", "xxx"));
}

#[test]
fn a_client_of_http_1_0_is_sent_no_chunks() {
    let scene = Scene::start().unwrap();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let request = format!("GET /bytes?n=100000&chunked HTTP/1.0\r\nhost: {HOST}\r\n\r\n");
    connection.send_raw(request.as_bytes()).unwrap();
    let answer = connection.read_response("GET").unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 100_000));
    assert_eq!(answer.header("transfer-encoding"), None);
    assert_eq!(scene.origin.requests()[0].headers.get("via"), Some("1.0 beamline"));
    assert_eq!(scene.access(|r| r["url.path"] == "/bytes").unwrap()["network.protocol.version"], "1.0");
}

#[test]
fn a_message_with_two_framings_is_never_passed_on_with_both() {
    let scene = Scene::start().unwrap();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let smuggling = format!(
        "POST /echo HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    );
    connection.send_raw(smuggling.as_bytes()).unwrap();
    let answer = connection.read_response("POST").unwrap();
    if answer.status != 400 {
        let log = scene.origin.requests();
        assert_eq!((answer.status, answer.text().as_str(), log.len()), (200, "abc", 1));
        assert_eq!(log[0].headers.get("content-length"), None, "{log:?}");
    }
}

#[test]
fn a_request_that_comes_back_again_and_again_is_ended() {
    let scene = Scene::start().unwrap();
    let own = scene.node.address().to_string();
    scene.apply(|m| m["upstreams"]["origin"]["endpoints"] = json!([own])).unwrap();
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (508, "loop-detected"));
    scene.apply(|_| ()).unwrap();
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
}

/// Sends 2,000 requests over 16 connections; gives how many did not end well.
fn two_thousand(scene: &Scene, request: Vec<u8>) -> u64 {
    let plan = Plan::new(scene.node.address(), request).limit(2000).lasting(PATIENCE).timeout(PATIENCE);
    let report = load::run(&plan).unwrap();
    assert_eq!(report.total(), 2000, "{report}");
    if report.failed() > 0 {
        eprintln!("{report}");
    }
    report.failed()
}

#[test]
fn an_origin_that_says_that_it_closes_is_never_met_closed() {
    let scene = Scene::start().unwrap();
    assert_eq!(two_thousand(&scene, load::get("/close", HOST)), 0);
    assert_eq!(two_thousand(&scene, load::request("POST", "/close", HOST, &[], b"once")), 0);
    assert_eq!(scene.origin.count(), 4000, "no POST was sent twice, no GET was lost");
}

#[test]
fn an_origin_that_closes_silently_is_never_met_closed() {
    let scene = Scene::start().unwrap();
    assert_eq!(two_thousand(&scene, load::get("/close-silently", HOST)), 0);
}

#[test]
fn what_must_not_be_sent_twice_never_meets_a_connection_that_was_closed_silently() {
    // The end leaves together with the answer: an origin that closes later, while a request is on its way to it, is
    // no proxy's to know.
    let raw = Raw::start(|mut stream| {
        let (head, mut input) = head_of(&stream);
        let framing = Framing::of_request(&head.headers).unwrap();
        if !http1::read_body(&mut input, framing).end.is_whole() {
            return;
        }
        rustix::net::sockopt::set_tcp_cork(&stream, true).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let _ = stream.shutdown(std::net::Shutdown::Write);
    })
    .unwrap();
    let scene = before(&raw);
    assert_eq!(two_thousand(&scene, load::request("POST", "/", HOST, &[], b"once")), 0);
}

#[test]
fn an_origin_that_restarts_between_two_requests_is_not_noticed() {
    let mut scene = one_worker();
    for n in 0..20 {
        assert_eq!(scene.send(Request::post("/echo", "once")).unwrap().status, 200, "restart {n}");
        scene.origin.stop();
        scene.origin.start_again().unwrap();
    }
    assert_eq!(scene.origin.count(), 20);
}

#[test]
fn answers_without_a_body_keep_their_connection() {
    let scene = one_worker();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let mut ask = |method: &str, target: &str| -> Response {
        let answer = connection.exchange(&Request::new(method, target).host(HOST)).unwrap();
        assert_eq!(answer.end, End::Whole, "{method} {target}");
        answer
    };
    let head = ask("HEAD", "/bytes?n=1000");
    assert_eq!((head.status, head.header("content-length")), (200, Some("1000")));
    let head = ask("HEAD", "/bytes?n=1000&chunked");
    assert_eq!((head.status, head.header("content-length")), (200, None));
    for status in [204, 304] {
        let answer = ask("GET", &format!("/status/{status}"));
        assert_eq!((answer.status, answer.body.len()), (status, 0));
        assert_eq!(answer.header("transfer-encoding"), None, "{status}");
    }
    assert_eq!(ask("GET", "/bytes?n=10").body.len(), 10);
    assert!(scene.curl("/bytes?n=5", &["-I"]).unwrap().exit == 0);
    let log = scene.origin.requests();
    assert!(log.iter().take(5).all(|r| r.connection == log[0].connection));
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    let scene = Scene::start().unwrap();
    let file = scene.node.folder().join("body");
    std::fs::write(&file, vec![b'x'; 100_000]).unwrap();
    let began = Instant::now();
    let data = format!("@{}", file.display());
    // curl sends the body without it only after this time.
    let waits = ["-H", "expect: 100-continue", "--expect100-timeout", "40", "--data-binary", &data];
    let (_, body) = curled(&scene, "/echo", &waits);
    assert_eq!(body.len(), 100_000);
    assert!(began.elapsed() < PATIENCE, "after {:?}", began.elapsed());
    assert_eq!(scene.origin.requests()[0].headers.get("expect"), None, "the proxy has answered it");
}

#[test]
fn a_refusal_comes_before_the_body_is_asked_for() {
    let scene = Scene::start().unwrap();
    let mut connection = Connection::open(scene.node.address(), PATIENCE).unwrap();
    let head = "POST / HTTP/1.1\r\nhost: nobody.test\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n";
    connection.send_raw(head.as_bytes()).unwrap();
    let answer = connection.read_response("POST").unwrap();
    assert_eq!((answer.status, answer.interim), (404, vec![]));
}

#[test]
fn each_way_in_which_an_upstream_fails_has_its_own_answer() {
    let mut scene = one_worker();
    scene.apply(|m| m["upstreams"]["origin"]["response_timeout"] = json!("1s")).unwrap();
    for (target, status, problem) in [
        ("/reset", 502, "upstream-reset"),
        ("/garbage", 502, "upstream-reset"),
        ("/hang", 504, "upstream-timeout"),
    ] {
        let answer = scene.send(Request::get(target)).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{target}");
        assert_eq!(scene.record(&answer).unwrap()["error.type"], problem);
        // One failure in a row: the breaker stays out of it.
        assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
    }
    let cut = Request::get("/cut?after=7").host(HOST).attempt(scene.node.address()).unwrap();
    assert_eq!((cut.status, cut.end.is_whole()), (200, false), "a client must see that it has not all");
    assert_eq!(scene.record(&cut).unwrap()["error.type"], "upstream-reset");

    scene.origin.stop();
    let refused = scene.send(Request::get("/")).unwrap();
    assert_eq!((refused.status, refused.problem().as_str()), (503, "upstream-connect"));
    assert!(refused.header("retry-after").is_some());
    assert!(!refused.text().contains(&scene.origin.address().port().to_string()), "{}", refused.text());
    while scene.send(Request::get("/")).unwrap().problem() == "upstream-connect" {}
    let down = scene.send(Request::get("/")).unwrap();
    assert_eq!((down.status, down.problem().as_str()), (503, "upstream-unavailable"), "the breaker is open");
    scene.origin.start_again().unwrap();
    let until = Instant::now() + PATIENCE;
    while scene.send(Request::get("/")).unwrap().status != 200 {
        assert!(Instant::now() < until, "the origin is back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The record of a request whose client went away, found by its path.
fn gone(scene: &Scene, path: &str) -> Value {
    let record = scene.access(|r| r["url.path"] == path).unwrap();
    assert_eq!(record["error.type"], "client-gone", "{record}");
    assert_eq!(record["tenant.id"], "acme");
    record
}

fn open_and_send(to: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

#[test]
fn a_client_that_goes_away_leaves_a_record_that_says_so() {
    let scene = Scene::start().unwrap();
    let to = scene.node.address();

    let waiting = open_and_send(to, &Request::get("/slow?ms=20000").host(HOST).to_bytes());
    scene.origin.wait_for(PATIENCE, |log| log.iter().any(|r| r.target.starts_with("/slow"))).unwrap();
    drop(waiting);
    let record = gone(&scene, "/slow");
    assert!(record.get("http.response.status_code").is_none(), "{record}");

    let mut reading = open_and_send(to, &Request::get("/bytes?n=67108864").host(HOST).to_bytes());
    reading.read_exact(&mut [0; 1000]).unwrap();
    drop(reading);
    let record = gone(&scene, "/bytes");
    assert_eq!(record["http.response.status_code"], 200);
    assert!(record["http.response.body.size"].as_u64().unwrap() < 64 * MIB, "{record}");

    let head = format!("POST /echo HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000\r\n\r\nsome");
    drop(open_and_send(to, head.as_bytes()));
    gone(&scene, "/echo");
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
    assert!(
        scene.origin.requests().iter().all(|r| r.target != "/echo" || !r.whole),
        "half a request is none"
    );
}

#[test]
fn each_request_leaves_one_record_of_what_became_of_it() {
    let scene = Scene::start().unwrap();
    let answer = scene.send(Request::post("/echo?secret=1", vec![b'x'; 700])).unwrap();
    let record = scene.record(&answer).unwrap();
    for (key, value) in [
        ("kind", json!("access")),
        ("tenant.id", json!("acme")),
        ("http.request.method", json!("POST")),
        ("http.route", json!("origin")),
        ("url.path", json!("/echo")),
        ("server.address", json!(HOST)),
        ("http.response.status_code", json!(200)),
        ("http.request.body.size", json!(700)),
        ("http.response.body.size", json!(700)),
        ("verdict", json!("next")),
        ("beamline.revision", json!(1)),
        ("upstream", json!("origin")),
        ("beamline.upstream.peer", json!(scene.origin.address().to_string())),
        ("beamline.upstream.attempts", json!(1)),
    ] {
        assert_eq!(record[key], value, "{key}: {record}");
    }
    assert_eq!(record["trace_id"].as_str().unwrap().len(), 32);
    assert!(record["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(record["duration_ms"].as_f64().unwrap() > 0.0);
    assert!(record.get("error.type").is_none(), "{record}");
    let ids = scene.node.log().unwrap();
    assert_eq!(ids.iter().filter(|r| r["kind"] == "access").count(), 1);
}
