//! TLS to a server: whom the node believes, what it shows, and that it never does without.

use std::fs;

use beamline_tests::{
    beamline::Options,
    client::Request,
    nats::{NatsServer, Service},
};
use serde_json::json;

use crate::{
    SUBJECT, Stage, on_failure,
    pki::{Pki, node_config, tls},
};

fn stage(server: NatsServer, configuration: String) -> Stage {
    let options = Options { workers: 1, configuration: Some(configuration), ..Options::default() };
    Stage::configured(server, options, "request", on_failure())
}

/// That requests pass, under TLS.
#[track_caller]
fn expect_works(stage: &Stage) {
    stage.expect_works();
    stage.wait_told("nats.connected", "\"tls\":true");
}

#[test]
fn messages_of_every_size_pass_under_tls() {
    let pki = Pki::new();
    let stage = pki.stage("", json!({}));
    let _service = Service::echo(stage.server.access(), SUBJECT).unwrap();
    stage.wait_up();
    for size in [0, 1, 16_383, 16_384, 16_385, 100_000, 900_000] {
        let body: String = (0..size).map(|at| char::from(b'a' + (at % 23) as u8)).collect();
        let answer = stage.send(Request::post("/in", body.clone()));
        assert!(answer.status == 200 && answer.text() == body, "{size}: {}", answer.status);
    }
    stage.wait_told("nats.connected", "\"tls\":true");
}

#[test]
fn an_unknown_authority_is_refused_until_the_file_names_it() {
    // Of the same name: an authority that was made anew.
    let (pki, other) = (Pki::new(), Pki::new());
    let server = pki.server("");
    let configuration = node_config(&server, "tls", &tls(&[("ca_file", &other.ca())]));
    let stage = stage(server, configuration);
    let waiting = stage.expect_down("an order", "is signed by no authority in");
    let answer = stage.send(Request::get("/in"));
    let status = answer.header("proxy-status").unwrap();
    assert!(
        status.contains("tls_protocol_error") || status.contains("destination_unavailable"),
        "TLS, or the breaker that it opened: {status}"
    );
    let service = Service::echo(stage.server.access(), SUBJECT).unwrap();
    assert_eq!(service.seen().len(), 0);
    // The file is read for each connection: no restart is needed.
    fs::copy(pki.ca(), other.ca()).unwrap();
    stage.wait_state(&waiting, "delivered");
    assert_eq!(service.counts()["an order"], 1);
    drop(service);
    expect_works(&stage);
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let pki = Pki::new();
    let server = pki.server("");
    let at_name = format!("nats://localhost:{}", server.address().port());
    let configuration = node_config(&server, "nats", &tls(&[("ca_file", &pki.ca())]))
        .replace(&format!("nats://{}", server.address()), &at_name);
    let stage = stage(server, configuration);
    stage.expect_down("an order", "is not for \\\"localhost\\\", by which it is reached");
}

#[test]
fn a_plain_url_is_under_tls_where_the_server_requires_it() {
    let pki = Pki::new();
    let server = pki.server("");
    let configuration = Some(node_config(&server, "nats", ""));
    // The system's store, as this process is told where it is.
    let environment = vec![("SSL_CERT_FILE".into(), pki.ca().into())];
    let options = Options { workers: 1, configuration, environment, ..Options::default() };
    expect_works(&Stage::configured(server, options, "request", on_failure()));
}

#[test]
fn with_the_systems_store_a_private_authority_is_unknown() {
    let (pki, other) = (Pki::new(), Pki::named("another authority"));
    let server = pki.server("");
    let configuration = Some(node_config(&server, "nats", ""));
    let environment = vec![("SSL_CERT_FILE".into(), other.ca().into())];
    let options = Options { configuration, environment, ..Options::default() };
    let stage = Stage::configured(server, options, "request", on_failure());
    stage.expect_down("an order", "is signed by no authority in the system's store");
}

#[test]
fn a_server_without_tls_is_refused_where_it_was_asked_for() {
    let pki = Pki::new();
    for (scheme, more) in [("tls", String::new()), ("nats", tls(&[("ca_file", &pki.ca())]))] {
        let server = NatsServer::start().unwrap();
        let configuration = Some(node_config(&server, scheme, &more));
        let environment = vec![("SSL_CERT_FILE".into(), pki.ca().into())];
        let options = Options { configuration, environment, ..Options::default() };
        let stage = Stage::configured(server, options, "request", on_failure());
        let _service = Service::echo(stage.server.address(), SUBJECT).unwrap();
        stage.expect_down("an order", "the server offers none, and the connection asks for it");
        assert_eq!(_service.seen().len(), 0);
    }
}

#[test]
fn a_server_that_wants_a_certificate_is_shown_one() {
    let pki = Pki::new();
    let server = pki.server("verify: true");
    let (cert, key) = pki.pair("node");
    pki.issue("node", "beamline.internal");
    let files = [("ca_file", pki.ca()), ("cert_file", cert), ("key_file", key)];
    let files: Vec<_> = files.iter().map(|(key, path)| (*key, path.as_path())).collect();
    let configuration = node_config(&server, "tls", &tls(&files));
    expect_works(&stage(server, configuration));
}

#[test]
fn without_a_certificate_that_it_wants_a_server_is_down_and_one_that_comes_is_used() {
    let (pki, other) = (Pki::new(), Pki::new());
    let server = pki.server("verify: true");
    let configuration = node_config(&server, "tls", &tls(&[("ca_file", &pki.ca())]));
    let without = stage(server, configuration);
    without.expect_down("an order", "asks for a client certificate, and the connection has none");

    // One of an authority that the server does not know, until it is replaced.
    let server = pki.server("verify: true");
    other.issue("node", "beamline.internal");
    let (cert, key) = other.pair("node");
    let files = [("ca_file", pki.ca()), ("cert_file", cert.clone()), ("key_file", key.clone())];
    let files: Vec<_> = files.iter().map(|(key, path)| (*key, path.as_path())).collect();
    let configuration = node_config(&server, "tls", &tls(&files));
    let stage = stage(server, configuration);
    let waiting = stage.expect_down("an order", "may not accept the one in tls.cert_file");
    pki.issue("good", "beamline.internal");
    let (good_cert, good_key) = pki.pair("good");
    fs::copy(good_key, key).unwrap();
    fs::copy(good_cert, cert).unwrap();
    let _service = Service::echo(stage.server.access(), SUBJECT).unwrap();
    stage.wait_state(&waiting, "delivered");
}

#[test]
fn the_handshake_comes_first_where_both_sides_say_so() {
    let pki = Pki::new();
    let server = pki.server("handshake_first: true");
    let first = tls(&[("ca_file", &pki.ca())]) + "handshake_first = true\n";
    let configuration = node_config(&server, "tls", &first);
    expect_works(&stage(server, configuration));

    let server = pki.server("handshake_first: true");
    let configuration = node_config(&server, "tls", &tls(&[("ca_file", &pki.ca())]))
        .replace("connect_timeout = \"5s\"", "connect_timeout = \"500ms\"");
    stage(server, configuration).expect_down("an order", "set tls.handshake_first");
}

#[test]
fn what_a_server_says_before_tls_of_how_much_it_takes_is_only_ever_enough_or_not() {
    let pki = Pki::new();
    let server = pki.server_with("", "max_payload: 10000");
    let configuration = node_config(&server, "tls", &tls(&[("ca_file", &pki.ca())]));
    stage(server, configuration).expect_down("an order", "has a max_payload that is less");
}

#[test]
fn certificates_that_are_replaced_on_disk_count_from_the_next_connection_on() {
    let mut pki = Pki::new();
    let mut stage = pki.stage("", on_failure());
    expect_works(&stage);
    // A new authority, in the same files of both sides.
    pki.replace();
    stage.server.kill().unwrap();
    let access = stage.server.access().by_tls(&pki.ca(), None).unwrap();
    stage.server.set_access(access);
    stage.server.start_again().unwrap();
    expect_works(&stage);
}

#[test]
fn a_wrong_file_stops_the_start_and_is_named() {
    let pki = Pki::new();
    let (_, key) = pki.pair("server");
    for (files, expected) in [
        (tls(&[("ca_file", &key)]), "expected certificates in PEM; found none"),
        (tls(&[("cert_file", &pki.ca()), ("key_file", &key)]), "are no certificate and its key"),
    ] {
        let server = NatsServer::prepare("").unwrap();
        let configuration = Some(node_config(&server, "tls", &files));
        let started =
            beamline_tests::beamline::Beamline::start(Options { configuration, ..Options::default() });
        let error = format!("{:#}", started.err().unwrap());
        assert!(error.contains(expected) && !error.contains("PRIVATE KEY"), "{error}");
    }
}
