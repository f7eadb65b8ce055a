//! A node for tests of commands: it answers what it is told to and remembers what it was asked.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use clap::Parser;
use serde_json::{Value, json};

use super::{failure::Failure, node_args::NodeArgs, report::Report};

/// The digest of [`module`].
pub(crate) const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// What a node says of a module.
pub(crate) fn module(cached: bool) -> Value {
    json!({
        "digest": DIGEST,
        "kind": "core-module",
        "phases": ["beamline:edge/request-handler@0.1.0"],
        "imports": ["beamline:edge/http@0.1.0", "beamline:edge/verdicts@0.1.0"],
        "tier": "reset",
        "tier_reason": null,
        "size": 49_400,
        "artifact_size": 120_000,
        "compile_ms": 212,
        "cached": cached,
    })
}

/// A problem document.
pub(crate) fn problem(token: &str) -> Value {
    json!({
        "type": format!("urn:beamline:problem:{token}"),
        "title": format!("The title of {token}"),
        "status": 422,
        "detail": format!("the detail of {token}"),
    })
    .as_object()
    .map(|document| {
        let mut document = document.clone();
        if token == "tenant-exists" {
            document["status"] = 409.into();
        }
        document.into()
    })
    .unwrap()
}

/// The options for a node at `url`, with a token.
pub(crate) fn node_args(url: &str) -> NodeArgs {
    NodeArgs {
        admin: url.to_owned(),
        token: Some("blo_test".to_owned()),
        token_file: None,
        data_dir: "./no-such-folder".into(),
        json: false,
    }
}

/// Runs a command line (without quoting) against a node.
pub(crate) fn ask(node: &FakeNode, line: &str) -> Result<Report, Failure> {
    let line = format!("beamline {line} --admin {} --token blo_test", node.url());
    match crate::Cli::try_parse_from(line.split(' ')).expect("the line is a command").command {
        crate::Command::Client(command) => super::ask(&command),
        other => panic!("expected a command to a node, found {other:?}"),
    }
}

/// A request that a node got.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method and target.
    pub(crate) line: String,
    pub(crate) authorization: String,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }
}

/// A node that gives one answer after the other, each on a connection of its own.
pub(crate) struct FakeNode {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeNode {
    /// A node with these answers; further connections are not taken.
    pub(crate) fn answering<const N: usize>(answers: [(u16, Value); N]) -> Self {
        Self::serving(N, move |i, stream| {
            let (status, document) = &answers[i];
            let body = document.to_string();
            let head =
                format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all((head + &body).as_bytes());
        })
    }

    /// A node that takes `n` requests and goes away without a word.
    pub(crate) fn hanging_up(n: usize) -> Self {
        Self::serving(n, |_, _| {})
    }

    fn serving(n: usize, mut answer: impl FnMut(usize, &mut TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let url = format!("http://{}", listener.local_addr().expect("the listener has an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for i in 0..n {
                let (mut stream, _) = listener.accept().expect("a client comes");
                let request = read(&mut stream);
                log.lock().unwrap().push(request);
                answer(i, &mut stream);
            }
        });
        Self { url, asked }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What it was asked, in order.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The URL of a node that is gone: a node without answers has closed its listener, or is about to.
    pub(crate) fn into_closed(self) -> String {
        let address = self.url.trim_start_matches("http://").to_owned();
        while TcpStream::connect(&address).is_ok() {
            std::thread::yield_now();
        }
        self.url
    }
}

fn read(stream: &mut TcpStream) -> Asked {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket can be cloned"));
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a head comes");
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let field = |name: &str| {
        let found =
            lines.iter().filter_map(|l| l.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    if field("expect") == "100-continue" {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").expect("the client waits");
    }
    let mut body = vec![0; field("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body).expect("the body comes");
    let line = lines[0].trim_end_matches(" HTTP/1.1").to_owned();
    Asked { line, authorization: field("authorization"), body }
}
