//! How a node ends. Whoever has a request under way gets its answer, whoever comes early enough is served, what was
//! accepted is kept, and the exit code says whether that held.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::HashSet,
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use beamline_tests::{
    beamline::{Beamline, Options},
    client::{Connection, Request, Response},
    environment,
    heavy::heavy,
    load::{self, Mode, Outcome, Plan},
    otlp::Receiver,
    scene::{HOST, PATIENCE, Scene},
    seed::Seed,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// An end that is due within a second or two, on a machine that is busy.
const SOON: Duration = Duration::from_secs(20);

const LAME_DUCK: Duration = Duration::from_millis(250);
const IDLE_GRACE: Duration = Duration::from_millis(200);

fn ms(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

/// A node that drains in this way.
fn drains(lame_duck: Duration, idle_grace: Duration) -> Options {
    let arguments = ["--lame-duck".into(), ms(lame_duck), "--drain-idle-grace".into(), ms(idle_grace)];
    Options { arguments: arguments.into(), ..Options::default() }
}

fn quickly() -> Options {
    drains(LAME_DUCK, IDLE_GRACE)
}

/// Long enough for a test on a busy machine to do something in it.
fn with_room() -> Options {
    drains(Duration::from_secs(2), IDLE_GRACE)
}

/// Waits until the node says that it takes no new traffic.
fn wait_draining(node: &Beamline) {
    let until = Instant::now() + SOON;
    while Request::get("/readyz").send(node.admin_address()).unwrap().status != 503 {
        assert!(Instant::now() < until, "the node is still ready {SOON:?} after the signal");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a request from another thread.
fn under_way(to: SocketAddr, request: Request) -> JoinHandle<Response> {
    thread::spawn(move || request.host(HOST).attempt(to).unwrap())
}

fn exit_code(node: &mut Beamline) -> Option<i32> {
    node.wait_exit(SOON).unwrap().code()
}

fn event<'a>(log: &'a [Value], name: &str) -> &'a Value {
    log.iter().find(|r| r["event.name"] == name).unwrap_or_else(|| panic!("no event {name} in {log:#?}"))
}

// ---- what was under way ----

#[test]
fn a_request_that_takes_longer_than_the_lame_duck_is_finished() {
    let mut scene = Scene::with(quickly()).unwrap();
    let slow = under_way(scene.node.address(), Request::get("/slow?ms=1500"));
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    scene.node.sigterm().unwrap();

    assert_eq!(exit_code(&mut scene.node), Some(0));
    let answer = slow.join().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "slow\n"));
    assert!(answer.headers.lists("connection", "close"), "{:?}", answer.headers);
    assert_eq!(event(&scene.node.log().unwrap(), "node.stopped")["attributes"]["requests_cut"], 0);
}

#[test]
fn a_slow_upload_and_a_slow_download_are_finished() {
    let mut scene = Scene::with(quickly()).unwrap();
    let to = scene.node.address();
    let download = under_way(to, Request::get("/bytes?n=400000&pause_ms=50"));
    let mut upload = Connection::open(to, PATIENCE).unwrap();
    let pieces: Vec<_> = (0..12).map(|n| vec![b'a' + n; 10_000]).collect();
    let head = format!("POST /echo HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 120000\r\n\r\n");
    upload.send_raw(head.as_bytes()).unwrap();
    upload.send_raw(&pieces[0]).unwrap();
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    scene.node.sigterm().unwrap();
    for piece in &pieces[1..] {
        thread::sleep(Duration::from_millis(100));
        upload.send_raw(piece).unwrap();
    }

    let echo = upload.read_response("POST").unwrap();
    assert_eq!((echo.status, echo.body == pieces.concat(), echo.end.is_whole()), (200, true, true));
    let bytes = download.join().unwrap();
    assert_eq!((bytes.status, bytes.body.len(), bytes.end.is_whole()), (200, 400_000, true));
    assert_eq!(exit_code(&mut scene.node), Some(0));
}

#[test]
fn a_head_that_was_half_sent_before_the_signal_is_served() {
    // Each piece of it comes well within the grace, the last one well after the lame duck.
    let mut scene = Scene::with(drains(Duration::from_millis(200), Duration::from_secs(2))).unwrap();
    let mut client = Connection::open(scene.node.address(), PATIENCE).unwrap();
    client.send_raw(format!("GET /late HTTP/1.1\r\nhost: {HOST}\r\n").as_bytes()).unwrap();

    scene.node.sigterm().unwrap();
    wait_draining(&scene.node);
    for n in 0..8 {
        client.send_raw(format!("x-piece: {n}\r\n").as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    client.send_raw(b"\r\n").unwrap();

    let answer = client.read_response("GET").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
    assert!(answer.headers.lists("connection", "close"), "{:?}", answer.headers);
    assert_eq!(exit_code(&mut scene.node), Some(0));
}

#[test]
fn who_came_before_the_signal_is_served_although_the_node_was_still_starting() {
    let mut node = Beamline::prepare(quickly()).unwrap();
    node.spawn().unwrap();
    let until = Instant::now() + SOON;
    let mut early = loop {
        match Connection::open(node.address(), PATIENCE) {
            Ok(connection) => break connection,
            Err(error) => assert!(Instant::now() < until, "{error:#}"),
        }
    };
    early.send_raw(&Request::get("/").host("nobody.test").to_bytes()).unwrap();

    node.sigterm().unwrap();

    let code = node.wait_exit(SOON).unwrap().code();
    assert_eq!(code, Some(0), "none means that the signal killed it");
    assert_eq!(early.read_response("GET").unwrap().status, 404);
}

#[test]
fn a_kept_connection_that_rests_is_closed_after_the_grace_and_not_reset() {
    let mut scene = Scene::with(quickly()).unwrap();
    let mut resting: Vec<_> =
        (0..10).map(|_| Connection::open(scene.node.address(), PATIENCE).unwrap()).collect();
    for connection in &mut resting {
        assert_eq!(connection.exchange(&Request::get("/").host(HOST)).unwrap().status, 200);
    }

    scene.node.sigterm().unwrap();

    for connection in &mut resting {
        let end = connection.read_response("GET").unwrap_err();
        assert!(format!("{end:#}").contains("closed before its first byte"), "expected a close: {end:#}");
    }
    assert_eq!(exit_code(&mut scene.node), Some(0));
}

// ---- the lame duck ----

#[test]
fn a_lame_duck_is_alive_but_not_ready_and_serves_newcomers_once_each() {
    let mut scene = Scene::with(drains(Duration::from_secs(4), IDLE_GRACE)).unwrap();
    let (to, admin) = (scene.node.address(), scene.node.admin_address());
    let mut kept = Connection::open(to, PATIENCE).unwrap();
    let before = kept.exchange(&Request::get("/").host(HOST)).unwrap();
    assert!(!before.headers.lists("connection", "close"), "{:?}", before.headers);

    scene.node.sigterm().unwrap();
    wait_draining(&scene.node);

    let ready = Request::get("/readyz").send(admin).unwrap();
    assert_eq!(
        (ready.status, &ready.json().unwrap()["type"]),
        (503, &json!("urn:beamline:problem:not-ready"))
    );
    assert_eq!(Request::get("/livez").send(admin).unwrap().status, 200);
    let last = kept.exchange(&Request::get("/").host(HOST)).unwrap().expect(200).unwrap();
    assert!(last.headers.lists("connection", "close"), "a kept connection's: {:?}", last.headers);
    kept.wait_closed(SOON).unwrap();
    let receipt = Request::get("/.well-known/beamline/requests/unknown").host(HOST);
    for (whose, status, request) in [
        ("a new connection's", 200, Request::get("/").host(HOST)),
        ("the proxy's own", 404, Request::get("/").host("nobody.test")),
        ("a receipt's", 404, receipt),
        ("a failed upstream's", 502, Request::post("/reset", "x").host(HOST)),
    ] {
        let mut connection = Connection::open(to, PATIENCE).unwrap();
        let answer = connection.exchange(&request).unwrap().expect(status).unwrap();
        assert!(answer.headers.lists("connection", "close"), "{whose}: {:?}", answer.headers);
        connection.wait_closed(SOON).unwrap();
    }
    assert_eq!(scene.curl("/", &["-o", "/dev/null"]).unwrap().status, 200);
    assert_eq!(exit_code(&mut scene.node), Some(0));
}

#[test]
fn after_the_lame_duck_newcomers_are_refused_although_a_request_is_still_under_way() {
    let mut scene = Scene::with(quickly()).unwrap();
    let to = scene.node.address();
    let slow = under_way(to, Request::get("/slow?ms=6000"));
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    scene.node.sigterm().unwrap();

    // One that comes at the moment of the close may have to try again, as TCP does after a second.
    let refused = (0..16).any(|_| {
        thread::sleep(Duration::from_millis(50));
        let tried = TcpStream::connect_timeout(&to, Duration::from_millis(200));
        tried.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    });
    assert!(!slow.is_finished(), "the request was to outlast this");
    assert!(refused, "for seconds after the lame duck no connect was refused: they hang");
    assert_eq!(slow.join().unwrap().status, 200);
    assert_eq!(exit_code(&mut scene.node), Some(0));
}

#[test]
fn a_node_is_alive_until_the_end_of_a_long_drain() {
    let mut scene = Scene::with(quickly()).unwrap();
    let slow = under_way(scene.node.address(), Request::get("/slow?ms=5000"));
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    scene.node.sigterm().unwrap();

    while !slow.is_finished() {
        // The end may come between the look and the question.
        if let Ok(live) = Request::get("/livez").send(scene.node.admin_address()) {
            assert_eq!(live.status, 200, "{}", live.text());
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(slow.join().unwrap().status, 200);
    assert_eq!(exit_code(&mut scene.node), Some(0));
}

// ---- the deadline and the signals ----

#[test]
fn at_the_drain_timeout_what_is_left_is_cut_counted_and_told_by_the_exit_code() {
    let mut options = quickly();
    options.arguments.extend(["--drain-timeout", "1s"].map(Into::into));
    let mut scene = Scene::with(options).unwrap();
    let to = scene.node.address();
    let unanswered: Vec<_> = (0..2)
        .map(|_| thread::spawn(move || Request::get("/hang").host(HOST).attempt(to).is_err()))
        .collect();
    let download = under_way(to, Request::get("/bytes?n=10000000&pause_ms=50"));
    let quick = under_way(to, Request::get("/slow?ms=300"));
    scene.origin.wait_for_count(4, PATIENCE).unwrap();

    let signalled = Instant::now();
    scene.node.sigterm().unwrap();

    assert_eq!(exit_code(&mut scene.node), Some(4));
    assert!(signalled.elapsed() > Duration::from_millis(1250), "{:?}", signalled.elapsed());
    assert!(unanswered.into_iter().all(|client| client.join().unwrap()));
    let download = download.join().unwrap();
    assert!(!download.end.is_whole() && download.body.len() < 10_000_000);
    assert_eq!(quick.join().unwrap().status, 200);
    let log = scene.node.log().unwrap();
    assert_eq!(event(&log, "node.stopped")["attributes"]["requests_cut"], 3);
    let of = |path: &str| log.iter().filter(|r| r["kind"] == "access" && r["url.path"] == path).count();
    assert_eq!(
        (of("/hang"), of("/bytes"), of("/slow")),
        (2, 1, 1),
        "each request has its record, cut or not"
    );
}

#[test]
fn a_second_signal_ends_the_node_at_once() {
    for second in [Signal::TERM, Signal::INT] {
        let mut scene = Scene::with(drains(Duration::from_secs(300), IDLE_GRACE)).unwrap();
        let to = scene.node.address();
        let hang = thread::spawn(move || Request::get("/hang").host(HOST).attempt(to).is_err());
        scene.origin.wait_for_count(1, PATIENCE).unwrap();
        scene.node.sigterm().unwrap();
        scene.node.wait_log(SOON, |log| log.iter().any(|r| r["event.name"] == "node.draining")).unwrap();

        scene.node.signal(second).unwrap();

        assert_eq!(scene.node.wait_exit(Duration::from_secs(5)).unwrap().code(), Some(130));
        assert!(hang.join().unwrap());
    }
}

#[test]
fn sigint_drains_as_sigterm_does() {
    let mut scene = Scene::with(with_room()).unwrap();
    let slow = under_way(scene.node.address(), Request::get("/slow?ms=3000"));
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    scene.node.signal(Signal::INT).unwrap();
    wait_draining(&scene.node);

    assert_eq!(Request::get("/").host(HOST).send(scene.node.address()).unwrap().status, 200);
    assert_eq!(slow.join().unwrap().status, 200);
    assert_eq!(exit_code(&mut scene.node), Some(0));
    let log = scene.node.log().unwrap();
    assert_eq!(event(&log, "node.draining")["attributes"]["signal"], "SIGINT");
}

// ---- what was accepted ----

#[test]
fn what_was_queued_and_recorded_is_on_disk_and_exported_before_the_exit() {
    let collector = Receiver::start().unwrap();
    let options = Options { otlp_endpoint: Some(collector.endpoint()), ..with_room() };
    let mut scene = Scene::with(options).unwrap();
    scene.apply(|m| m["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" })).unwrap();
    scene.origin.stop();
    let to = scene.node.address();
    let post = |n: usize| Request::post("/orders", format!("order {n}")).host(HOST).send(to).unwrap().status;
    for n in 0..20 {
        assert_eq!(post(n), 202);
    }

    scene.node.sigterm().unwrap();
    wait_draining(&scene.node);
    // The last one may come as late as this.
    assert_eq!(post(20), 202);
    assert_eq!(exit_code(&mut scene.node), Some(0));

    let log = scene.node.log().unwrap();
    let traces: HashSet<_> = log
        .iter()
        .filter(|r| r["kind"] == "access" && r["http.response.status_code"] == 202)
        .filter_map(|r| r["trace_id"].as_str())
        .collect();
    assert_eq!(traces.len(), 21, "every request has its record");
    for trace in traces {
        let kinds: Vec<_> = collector.trace(trace).into_iter().map(|span| span.kind).collect();
        assert!(
            kinds.contains(&beamline_tests::otlp::Kind::Server)
                && kinds.contains(&beamline_tests::otlp::Kind::Producer),
            "trace {trace} was exported as {kinds:?}"
        );
    }
    scene.origin.start_again().unwrap();
    scene.node.launch().unwrap();
    let arrived = scene.origin.wait_for_count(21, PATIENCE).unwrap();
    let bodies: HashSet<_> = arrived.iter().map(|r| r.body.clone()).collect();
    assert_eq!(bodies, (0..21).map(|n| format!("order {n}").into_bytes()).collect());
}

#[test]
fn a_delivery_that_is_under_way_is_finished_and_not_repeated() {
    let mut scene = Scene::with(quickly()).unwrap();
    scene.apply(|m| m["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" })).unwrap();
    scene.origin.stop();
    let accepted = scene.send(Request::post("/orders", "order")).unwrap().expect(202).unwrap();
    let receipt = accepted.header("location").unwrap().to_owned();
    scene.origin.delay_all(Duration::from_millis(1500));
    scene.origin.start_again().unwrap();
    scene.origin.wait_for_count(1, PATIENCE).unwrap();

    scene.node.sigterm().unwrap();
    assert_eq!(exit_code(&mut scene.node), Some(0));

    scene.node.launch().unwrap();
    let receipt = scene.send(Request::get(&receipt)).unwrap().json().unwrap();
    assert_eq!(receipt["state"], "delivered", "{receipt}");
    assert_eq!(scene.origin.count(), 1);
}

// ---- under load ----

/// What many drains counted.
#[derive(Debug, Default)]
struct Total {
    drains: u64,
    requests: u64,
    /// Answered between the signal and the exit.
    served_while_draining: u64,
    /// Connects refused once the node had closed its port.
    refused: u64,
    /// Kept connections that ended just as the client used them again; the origin never saw those requests.
    idle_resets: u64,
    longest: Duration,
}

/// Drains as often as `BEAMLINE_DRAINS` says (50 without it), half of the clients keeping their connections and half
/// making a new one for each request.
#[test]
fn drains_under_load_cut_no_request() {
    let _alone = heavy().unwrap();
    let drains = environment::number("BEAMLINE_DRAINS").unwrap_or(50);
    let mut seed = Seed::from_env("drains_under_load_cut_no_request");
    let begun = Instant::now();
    // Two nodes at once, each drained half as often.
    let lanes = [(Mode::KeepAlive, drains / 2), (Mode::NewConnection, drains - drains / 2)]
        .map(|(mode, drains)| (mode, seed.fork(), drains))
        .map(|(mode, seed, drains)| (mode, thread::spawn(move || drain_again_and_again(mode, drains, seed))));
    for (mode, lane) in lanes {
        println!("{mode:?}: {:#?}", lane.join().unwrap());
    }
    println!("{drains} drains in {:.1?}", begun.elapsed());
}

fn drain_again_and_again(mode: Mode, drains: u64, mut seed: Seed) -> Total {
    let mut scene = Scene::with(quickly()).unwrap();
    let mut total = Total::default();
    for n in 0..drains {
        if n > 0 {
            scene.node.launch().unwrap();
        }
        scene.origin.forget();
        drain_once(&mut scene, mode, &mut seed, &mut total);
    }
    total
}

fn drain_once(scene: &mut Scene, mode: Mode, seed: &mut Seed, total: &mut Total) {
    let to = scene.node.address();
    // Some quick, some with a body, some that are under way for long enough to meet the signal and the close.
    let order = vec![b'o'; 2000];
    let mut plan = Plan::new(to, load::get("/load", HOST))
        .mode(mode)
        .connections(32)
        .rate(1000.0)
        .lasting(Duration::from_secs(60))
        .timeout(SOON);
    plan.requests.push(load::request("POST", "/echo", HOST, &[], &order));
    plan.requests.push(load::get("/slow?ms=30", HOST));
    let plan = plan.labelled();
    let started = Instant::now();
    let load = load::start(plan).unwrap();
    let resting: Vec<_> = match mode {
        Mode::KeepAlive => (0..8).map(|n| Resting::new(to, n)).collect(),
        Mode::NewConnection => Vec::new(),
    };
    load.wait_for_more(100, PATIENCE).unwrap();

    let (signalled, before) = (Instant::now(), load.good());
    scene.node.sigterm().unwrap();
    let resting: Vec<_> = resting
        .into_iter()
        .map(|client| client.ask_after(Duration::from_millis(seed.within(0..800))))
        .collect();
    let code = exit_code(&mut scene.node);
    total.longest = total.longest.max(signalled.elapsed());
    let served = load.good() - before;
    let report = load.stop().unwrap();

    assert_eq!(code, Some(0), "{report}");
    assert!(served > 0, "nothing was served while draining: {report}");
    for outcome in [
        Outcome::Cut,
        Outcome::FreshReset,
        Outcome::BadStatus,
        Outcome::Malformed,
        Outcome::TimedOut,
        Outcome::ConnectFailed,
    ] {
        assert_eq!(
            report.count(outcome),
            0,
            "{outcome:?} after a signal at {:?}: {report}",
            signalled - started
        );
    }
    // The load's own clock may have begun a little later than ours.
    let closed = (signalled - started + LAME_DUCK).saturating_sub(Duration::from_millis(150));
    let seen: HashSet<String> = scene
        .origin
        .requests()
        .iter()
        .map(|r| r.headers.get("x-load").map_or_else(|| r.target.clone(), str::to_owned))
        .collect();
    for failure in &report.failures {
        match failure.outcome {
            Outcome::Refused => assert!(failure.at >= closed, "refused before the close: {failure:?}"),
            Outcome::IdleReset => {
                assert!(!seen.contains(&format!("{:012}", failure.label)), "cut: {failure:?}, {report}");
            }
            other => panic!("{other:?}: {report}"),
        }
    }
    for client in resting {
        let (target, answered) = client.join().unwrap();
        assert!(answered || !seen.contains(&target), "{target} reached the origin and was cut");
        total.idle_resets += u64::from(!answered);
    }
    total.drains += 1;
    total.requests += report.good();
    total.served_while_draining += served;
    total.refused += report.count(Outcome::Refused);
    total.idle_resets += report.count(Outcome::IdleReset);
}

/// A client whose kept connection rests while the drain begins.
struct Resting {
    connection: Connection,
    target: String,
}

impl Resting {
    fn new(to: SocketAddr, n: usize) -> Self {
        let mut connection = Connection::open(to, PATIENCE).unwrap();
        assert_eq!(connection.exchange(&Request::get("/").host(HOST)).unwrap().status, 200);
        Self { connection, target: format!("/resting/{n}") }
    }

    /// Sends its next request after a while; tells its target and whether it was answered.
    fn ask_after(mut self, pause: Duration) -> JoinHandle<(String, bool)> {
        thread::spawn(move || {
            thread::sleep(pause);
            let answer = self.connection.exchange(&Request::get(&self.target).host(HOST));
            let whole = answer.is_ok_and(|a| {
                assert!(a.status == 200 && a.end.is_whole(), "{} was cut: {a:?}", self.target);
                true
            });
            (self.target, whole)
        })
    }
}
