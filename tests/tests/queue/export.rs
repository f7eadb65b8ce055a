//! Exports with bodies whose callers are slow: what ends them, and how many there are.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use beamline_tests::{
    admin::{AdminError, manifest},
    client::Request,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::{count, hands::cli, outage, queue, wait};

const BODIES: &str = "/v1/tenants/acme/queue/bodies";

/// An export whose caller has read its head and a little more, and then rests.
struct Slow(TcpStream);

impl Slow {
    fn begin(scene: &Scene, token: &str) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        // So that little of it is on the way.
        socket.set_recv_buffer_size(256 << 10).unwrap();
        socket.connect(&scene.node.admin_address().into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!(
            "GET {BODIES} HTTP/1.1\r\nHost: node\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = [0; 1024];
        stream.read_exact(&mut head).unwrap();
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
        Self(stream)
    }

    /// Waits until no more comes, for all the buffers on the way are full.
    fn stalled(self) -> Self {
        let (mut there, mut seen) = (vec![0; 4 << 20], Vec::new());
        let mut look = || {
            seen.push(self.0.peek(&mut there).unwrap());
            std::thread::sleep(Duration::from_millis(50));
            seen.iter().rev().take_while(|n| Some(*n) == seen.last()).count()
        };
        wait(PATIENCE, &mut look, |unchanged| *unchanged > 10);
        self
    }

    /// Reads on until there is no more: what came, chunks and all, and whether it has its end.
    fn rest(mut self) -> (String, bool) {
        let mut read = Vec::new();
        match self.0.read_to_end(&mut read) {
            Ok(_) => {}
            // As a connection may end that breaks off.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the connection still stands: {error}"),
        }
        let is_whole = read.ends_with(b"\r\n0\r\n\r\n");
        (String::from_utf8(read).unwrap(), is_whole)
    }
}

/// The operator's token.
fn operator(scene: &Scene) -> String {
    std::fs::read_to_string(scene.node.data_dir().join("operator-token")).unwrap().trim().to_owned()
}

/// A scene whose origin is down, and that keeps one body that is too large for all the buffers on its way to a caller.
fn large_body() -> Scene {
    let mut scene = crate::queueing(json!({ "mode": "on-failure", "max_body": "64MiB" }));
    scene.origin.stop();
    cli(&scene, "queue pause --tenant acme origin");
    queue(&scene, Request::post("/in", vec![b'x'; 24 << 20]));
    scene
}

/// Whether an export of no line with this token is refused for want of a place.
fn has_no_place(scene: &Scene, token: &str) -> bool {
    has_no_place_of(scene, TENANT, token)
}

fn has_no_place_of(scene: &Scene, tenant: &str, token: &str) -> bool {
    match scene.admin.with_token(token).get(&format!("/v1/tenants/{tenant}/queue/bodies?state=held")) {
        Err(error) if error.status() == Some(503) => {
            assert_eq!(error.kind(), "exports-taken");
            true
        }
        // Nothing is held: the answer is no line at all, and so no document.
        Err(AdminError::Unknown(why)) if why.contains("answered 200") => false,
        other => panic!("an export with a place or without: {other:?}"),
    }
}

#[test]
fn an_export_ends_with_its_tenant_and_has_nothing_of_the_next_of_that_name() {
    let scene = outage();
    cli(&scene, "queue pause --tenant acme origin");
    // More than a page, and more than fits into all the buffers on the way.
    for _ in 0..110 {
        queue(&scene, Request::post("/in", vec![b'x'; 120_000]));
    }
    let exports = [operator(&scene), scene.token.clone()].map(|token| Slow::begin(&scene, &token).stalled());
    cli(&scene, "tenant delete acme --discard-queue");
    wait(PATIENCE, || scene.admin.show(TENANT).is_err(), |gone| *gone);

    scene.admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"]).unwrap();
    let mut next = manifest(HOST, scene.origin.address());
    next["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
    scene.admin.apply(TENANT, &next).unwrap();
    cli(&scene, "queue pause --tenant acme origin");
    queue(&scene, Request::post("/of-the-next", "an order of the next"));
    let own = cli(&scene, "queue export --tenant acme --bodies");
    let body = STANDARD.encode("an order of the next");
    assert!(own.contains("/of-the-next") && own.contains(&body), "{own}");

    for export in exports {
        let (read, is_whole) = export.rest();
        assert!(
            !is_whole,
            "it breaks off; {} bytes came, and at last {:?}",
            read.len(),
            &read[read.len().saturating_sub(200)..]
        );
        assert!(!read.contains("/of-the-next") && !read.contains(&body), "it is the next tenant's");
    }
}

#[test]
fn a_body_that_is_erased_is_not_sent_to_its_end() {
    let scene = large_body();
    let export = Slow::begin(&scene, &scene.token);
    assert!(has_no_place(&scene, &scene.token), "it is under way");
    cli(&scene, "queue purge --tenant acme origin");
    // It is cut off though its caller takes nothing.
    wait(PATIENCE, || has_no_place(&scene, &scene.token), |runs| !runs);
    let (read, is_whole) = export.rest();
    assert!(!is_whole && !read.contains("\"}\n"), "it breaks off in the middle of the body");
    assert!(read.len() < 24 << 20, "{} bytes came of an erased body", read.len());
}

#[test]
fn a_tenant_has_one_export_and_keeps_nobody_else_from_theirs() {
    let scene = large_body();
    let export = Slow::begin(&scene, &scene.token);
    assert!(has_no_place(&scene, &scene.token));
    assert!(!has_no_place(&scene, &operator(&scene)));
    let globex = scene.admin.create_tenant("globex", &["globex.test"], &[]).unwrap();
    assert!(!has_no_place_of(&scene, "globex", &globex));
    drop(export);
    wait(PATIENCE, || has_no_place(&scene, &scene.token), |runs| !runs);
}

#[test]
fn a_lost_body_is_told_and_what_comes_after_it_is_exported() {
    let scene = outage();
    cli(&scene, "queue pause --tenant acme origin");
    for size in [40_001, 40_002, 40_003] {
        queue(&scene, Request::post("/in", vec![b'x'; size]));
    }
    let folder = scene.node.data_dir().join("queue/bodies");
    let mut files = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let lost = files.find(|file| file.metadata().unwrap().len() == 40_002).unwrap();
    std::fs::remove_file(lost.path()).unwrap();
    let exported = |more: &str| -> Vec<Value> {
        let text = cli(&scene, &format!("queue export --tenant acme --bodies{more}"));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let lines = exported("");
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let len = line["body"].as_str().map(|body| STANDARD.decode(body).unwrap().len());
            (len, line.get("error").and_then(Value::as_str))
        })
        .collect();
    assert_eq!(told, [(Some(40_001), None), (None, Some("lost")), (Some(40_003), None)]);
    assert_eq!(lines[1]["request"]["body_bytes"], 40_002, "it is not erased");
    // Where one broke off, another goes on.
    assert_eq!(exported(&format!(" --after {}", lines[1]["seq"])), lines[2..]);
    let heads = cli(&scene, &format!("queue export --tenant acme --after {}", lines[0]["seq"]));
    assert_eq!(heads.lines().count(), 2, "{heads}");
    assert_eq!(count(&scene, "kept"), 3);
}
