//! Listening sockets: taken over from outside, left open for a successor, and the errors where one can't be had.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeSet,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::manifest,
    beamline::{Beamline, Options},
    client::{Connection, Request},
    handover::Handover,
    heavy::heavy,
    load::{self, Mode, Outcome, Plan},
    origin::Origin,
    ports::Port,
    scene::{HOST, PATIENCE, TENANT},
};

/// A socket as a service manager would make it, on a port that stays ours.
fn socket() -> (Port, TcpListener) {
    let port = Port::reserve().unwrap();
    let socket = TcpListener::bind(port.address()).unwrap();
    (port, socket)
}

/// A node that is not started yet and drains soon. The grace is long enough for clients of a busy machine.
fn prepared() -> Beamline {
    let arguments = ["--lame-duck", "300ms", "--drain-idle-grace", "1s"].map(Into::into).into();
    Beamline::prepare(Options { arguments, ..Options::default() }).unwrap()
}

/// Proxies the tenant's traffic to this origin; answers then tell which node served them.
fn lead(node: &Beamline, to: &Origin) {
    let admin = node.admin().unwrap();
    admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"]).unwrap();
    admin.apply(TENANT, &manifest(HOST, to.address())).unwrap();
}

/// Who answers a new connection.
fn served_by(to: SocketAddr) -> String {
    let answer = Request::get("/").host(HOST).send(to).unwrap().expect(200).unwrap();
    answer.header("x-origin").unwrap().to_owned()
}

/// What it printed when it would not start, and its exit code.
fn refusal(node: &mut Beamline) -> (String, Option<i32>) {
    node.spawn().unwrap();
    let code = node.wait_exit(PATIENCE).unwrap().code();
    (node.last_words(), code)
}

// ---- inherited sockets ----

#[test]
fn inherited_sockets_without_names_all_serve_tenants() {
    let ((first, a), (second, b)) = (socket(), socket());
    let sockets = Handover::of(vec![a.into(), b.into()], None).unwrap();
    let origin = Origin::start("acme").unwrap();
    let mut node = prepared();
    sockets.give_to(&mut node).unwrap();

    node.launch().unwrap();
    lead(&node, &origin);

    assert_eq!([first.address(), second.address()].map(served_by), ["acme", "acme"]);
    assert!(
        Connection::open(node.address(), PATIENCE).is_err(),
        "what is inherited stands in the place of --listen"
    );
}

#[test]
fn the_inherited_socket_named_admin_is_the_admin_apis() {
    let (port, traffic) = socket();
    let mut node = prepared();
    // On the port that the harness asks for readiness; the flag then must not bind it again.
    let admin = TcpListener::bind(node.admin_address()).unwrap();
    let sockets = Handover::of(vec![admin.into(), traffic.into()], Some("admin:web")).unwrap();
    sockets.give_to(&mut node).unwrap();
    let origin = Origin::start("acme").unwrap();

    node.launch().unwrap();
    lead(&node, &origin);

    assert_eq!(served_by(port.address()), "acme");
    assert_eq!(Request::get("/readyz").send(node.admin_address()).unwrap().status, 200);
    assert_eq!(Request::get("/readyz").send(port.address()).unwrap().status, 404, "tenants' traffic only");
}

#[test]
fn a_drained_node_leaves_its_inherited_socket_to_a_successor_and_nobody_is_refused() {
    let _alone = heavy().unwrap();
    for mode in [Mode::NewConnection, Mode::KeepAlive] {
        let (port, traffic) = socket();
        let sockets = Handover::of(vec![traffic.into()], None).unwrap();
        let origins = [Origin::start("first").unwrap(), Origin::start("second").unwrap()];
        let mut nodes = [prepared(), prepared()];
        for node in &mut nodes {
            sockets.give_to(node).unwrap();
        }
        let [first, second] = &mut nodes;
        first.launch().unwrap();
        lead(first, &origins[0]);
        assert_eq!(served_by(port.address()), "first");
        let plan = Plan::new(port.address(), load::get("/", HOST)).mode(mode).rate(500.0);
        let load = load::start(plan.lasting(Duration::from_secs(120)).timeout(PATIENCE)).unwrap();
        load.wait_for_more(100, PATIENCE).unwrap();

        // The successor gets its tenant before it gets traffic, as where both have one store.
        let traffic_later = second.options_mut().clone();
        second.options_mut().binary = None;
        second.launch().unwrap();
        lead(second, &origins[1]);
        second.sigterm().unwrap();
        assert_eq!(second.wait_exit(PATIENCE).unwrap().code(), Some(0));
        *second.options_mut() = traffic_later;
        second.launch().unwrap();
        first.sigterm().unwrap();
        assert_eq!(first.wait_exit(PATIENCE).unwrap().code(), Some(0));
        load.wait_for_more(200, PATIENCE).unwrap();
        let report = load.stop().unwrap();

        let ended_at_rest = report.count(Outcome::IdleReset);
        println!("{mode:?}: {report}");
        assert_eq!(report.failed() - ended_at_rest, 0, "{report}");
        assert!(mode == Mode::KeepAlive || ended_at_rest == 0, "{report}");
        assert!((0..20).all(|_| served_by(port.address()) == "second"));
    }
}

#[test]
fn who_connects_between_two_nodes_waits_in_the_inherited_socket_and_is_served() {
    let (port, traffic) = socket();
    let sockets = Handover::of(vec![traffic.into()], None).unwrap();
    let origin = Origin::start("acme").unwrap();
    let mut node = prepared();
    sockets.give_to(&mut node).unwrap();
    node.launch().unwrap();
    lead(&node, &origin);
    assert_eq!(served_by(port.address()), "acme");
    node.sigterm().unwrap();
    assert_eq!(node.wait_exit(PATIENCE).unwrap().code(), Some(0));

    let mut early = Connection::open(port.address(), PATIENCE).unwrap();
    early.send_raw(&Request::get("/").host(HOST).to_bytes()).unwrap();
    node.launch().unwrap();

    assert_eq!(early.read_response("GET").unwrap().status, 200);
}

#[test]
fn announced_sockets_of_another_process_are_not_taken() {
    // LISTEN_PID names another process: whoever it was meant for, the descriptors are not this node's.
    let origin = Origin::start("acme").unwrap();
    let mut node = prepared();
    let set = [("LISTEN_PID", "1"), ("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", "web")];
    node.options_mut().environment.extend(set.map(|(name, value)| (name.into(), value.into())));

    node.launch().unwrap();
    lead(&node, &origin);

    assert_eq!(served_by(node.address()), "acme");
}

#[test]
fn a_descriptor_that_is_no_listening_tcp_socket_stops_the_start() {
    let datagrams = || OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
    let unlistened = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        OwnedFd::from(socket)
    };
    for (what, wrong) in [("a UDP socket", datagrams()), ("a TCP socket that does not listen", unlistened())]
    {
        let sockets = Handover::of(vec![wrong], None).unwrap();
        let mut node = prepared();
        sockets.give_to(&mut node).unwrap();

        node.spawn().unwrap();

        let ended = node.wait_exit(Duration::from_secs(10));
        let said = node.last_words();
        assert_eq!(ended.map(|status| status.code()).ok(), Some(Some(2)), "{what} was taken: {said}");
        assert!(said.contains("LISTEN_FDS") && said.contains("TCP socket"), "{what}: {said}");
    }
}

// ---- addresses that can't be had ----

#[test]
fn an_address_in_use_stops_the_start_with_the_address_and_the_flag() {
    let mut wrong = BTreeSet::new();
    for flag in ["--listen", "--admin"] {
        let mut node = prepared();
        let taken = if flag == "--listen" { node.address() } else { node.admin_address() };
        let _holder = TcpListener::bind(taken).unwrap();
        let begun = Instant::now();

        let (said, code) = refusal(&mut node);

        assert_eq!(code, Some(2), "{said}");
        assert!(begun.elapsed() < PATIENCE && said.contains(&taken.to_string()), "{said}");
        assert!(said.to_lowercase().contains("in use"), "{said}");
        if !said.contains(flag) {
            wrong.insert(format!("expected {flag} to be named; found {said}"));
        }
        assert!(!node.data_dir().join("store").exists(), "nothing is opened before the sockets are there");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
