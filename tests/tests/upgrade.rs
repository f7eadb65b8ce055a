//! An upgrade: two nodes on one data folder with one listening socket, the old one draining, the new one starting.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::fs::symlink,
    thread,
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::manifest,
    beamline::{Beamline, Options},
    client::Request,
    handover::Handover,
    heavy::heavy,
    origin::Origin,
    ports::Port,
    scene::{HOST, PATIENCE, TENANT},
};
use serde_json::json;

const CLIENTS: usize = 4;
const UPGRADES: usize = 4;

/// Nodes that take turns on one data folder and one socket.
struct Line {
    nodes: [Beamline; 2],
    port: Port,
    _sockets: Handover,
}

impl Line {
    fn new() -> Self {
        let port = Port::reserve().unwrap();
        let sockets = Handover::of(vec![TcpListener::bind(port.address()).unwrap().into()], None).unwrap();
        let arguments = ["--lame-duck", "300ms", "--drain-idle-grace", "1s"].map(Into::into);
        let mut nodes = [(); 2].map(|()| {
            let arguments = arguments.to_vec();
            let mut node =
                Beamline::prepare(Options { arguments, log: false, ..Options::default() }).unwrap();
            sockets.give_to(&mut node).unwrap();
            node
        });
        fs::remove_dir(nodes[1].data_dir()).unwrap();
        symlink(nodes[0].data_dir(), nodes[1].data_dir()).unwrap();
        nodes[0].launch().unwrap();
        Self { nodes, port, _sockets: sockets }
    }

    fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

/// What a client was told of each of its requests, in the order of their sending: where it asks for the end.
type Told = Vec<(String, Option<String>)>;

/// Sends one request after the other, each with the client's ordering key where it has one, none safe to repeat.
fn send(to: SocketAddr, client: usize, round: &str, requests: usize) -> Told {
    let one = |n: usize| {
        let id = format!("{client} {round} {n}");
        let mut request = Request::post("/orders", id.clone()).host(HOST);
        if client.is_multiple_of(2) {
            request = request.header("x-account", &client.to_string());
        }
        let answer = request.send(to).unwrap();
        let receipt = match answer.status {
            200 => None,
            202 => Some(answer.header("location").unwrap().to_owned()),
            status => panic!("{id}: {status} {}", answer.text()),
        };
        (id, receipt)
    };
    (0..requests).map(one).collect()
}

fn all_send(
    to: SocketAddr,
    round: &str,
    requests: usize,
    told: &mut [Told; CLIENTS],
    meanwhile: impl FnOnce(),
) {
    thread::scope(|threads| {
        let clients: Vec<_> =
            (0..CLIENTS).map(|client| threads.spawn(move || send(to, client, round, requests))).collect();
        meanwhile();
        for (told, client) in told.iter_mut().zip(clients) {
            told.extend(client.join().unwrap());
        }
    });
}

#[test]
fn in_an_upgrade_every_request_is_delivered_once_and_in_order() {
    let _alone = heavy().unwrap();
    let mut line = Line::new();
    let mut origin = Origin::start("acme").unwrap();
    let admin = line.nodes[0].admin().unwrap();
    admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"]).unwrap();
    let mut wanted = manifest(HOST, origin.address());
    wanted["upstreams"]["origin"]["queue"] =
        json!({ "mode": "on-failure", "ordering_key": { "header": "x-account" } });
    admin.apply(TENANT, &wanted).unwrap();

    let to = line.address();
    let mut told: [Told; CLIENTS] = Default::default();
    for upgrade in 0..UPGRADES {
        origin.stop();
        all_send(to, &format!("{upgrade} old"), 10, &mut told, || ());
        let [first, second] = &mut line.nodes;
        let (old, new) = if upgrade.is_multiple_of(2) { (first, second) } else { (second, first) };
        new.launch().unwrap();
        all_send(to, &format!("{upgrade} both"), 10, &mut told, || ());
        origin.delay_all(Duration::from_millis(15));
        origin.start_again().unwrap();
        all_send(to, &format!("{upgrade} handover"), 60, &mut told, || {
            // Deliveries are under way.
            origin.wait_for_count(upgrade * CLIENTS * 80 + 5, PATIENCE).unwrap();
            old.sigterm().unwrap();
            assert_eq!(old.wait_exit(PATIENCE).unwrap().code(), Some(0), "{}", old.last_words());
        });
        let until = Instant::now() + PATIENCE;
        for receipt in told.iter().flatten().filter_map(|(_, receipt)| receipt.as_ref()) {
            loop {
                let seen = Request::get(receipt).host(HOST).send(to).unwrap().json().unwrap();
                if seen["state"] == "delivered" {
                    break;
                }
                assert!(Instant::now() < until, "{seen}");
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    let queued = told.iter().flatten().filter(|(_, receipt)| receipt.is_some()).count();
    println!("{UPGRADES} upgrades: {queued} of {} requests were queued", told.iter().flatten().count());
    let mut arrived: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for request in origin.requests().iter() {
        let id = String::from_utf8(request.body.clone()).unwrap();
        let client = id.split(' ').next().unwrap().parse().unwrap();
        arrived.entry(client).or_default().push(id);
    }
    for (client, told) in told.iter().enumerate() {
        let (mut sent, mut arrived): (Vec<_>, _) =
            (told.iter().map(|(id, _)| id.clone()).collect(), arrived.remove(&client).unwrap());
        // Without an ordering key there is no order.
        if !client.is_multiple_of(2) {
            sent.sort();
            arrived.sort();
        }
        assert_eq!(arrived, sent, "client {client}");
    }
}
