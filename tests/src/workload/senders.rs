//! Clients that send requests.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::Told;
use crate::{
    checker::Intent,
    client::{Connection, Request},
    scene::HOST,
    seed::Seed,
};

/// Longer than anything may take, shorter than a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// One client, one request after the other.
pub(super) struct Sender {
    name: String,
    keyed: bool,
    to: SocketAddr,
    pause: Duration,
    seed: Seed,
    told: Arc<Told>,
    number: u64,
}

impl Sender {
    pub(super) fn new(
        name: String,
        keyed: bool,
        to: SocketAddr,
        pause: Duration,
        seed: Seed,
        told: &Arc<Told>,
    ) -> Self {
        Self { name, keyed, to, pause, seed, told: Arc::clone(told), number: 0 }
    }

    /// One request, and a pause.
    pub(super) fn step(&mut self) {
        self.number += 1;
        let id = format!("{}.{}", self.name, self.number);
        let (intent, request) = self.choose(&id);
        let cut = !intent.body.is_empty() && self.seed.one_in(12);
        let method = intent.method.clone();
        self.told.ledger.begins(intent);
        self.exchange(&id, &method, &request, cut);
        let most = (self.pause.as_micros() as u64).max(1);
        std::thread::sleep(Duration::from_micros(self.seed.within(0..most)));
    }

    fn choose(&mut self, id: &str) -> (Intent, Request) {
        let seed = &mut self.seed;
        let unwanted = seed.one_in(16);
        let target = if unwanted { format!("/status/404?id={id}") } else { format!("/in?id={id}") };
        let (method, idempotency_key) = *seed.pick(&[
            ("POST", false),
            ("POST", false),
            ("POST", true),
            ("PUT", false),
            ("DELETE", false),
        ]);
        let body = if method == "DELETE" {
            Vec::new()
        } else {
            let length = if seed.one_in(12) { seed.within(30_000..150_000) } else { seed.within(0..2_000) };
            seed.bytes(length as usize)
        };
        let mut request = Request::new(method, &target).host(HOST).timeout(PATIENCE);
        if method != "DELETE" {
            request = request.body(body.clone());
            if seed.one_in(4) {
                request = request.chunked();
            }
        }
        if idempotency_key {
            request = request.header("Idempotency-Key", id);
        }
        if self.keyed {
            request = request.header("X-Key", &self.name);
        }
        let intent = Intent {
            id: id.into(),
            method: method.into(),
            body,
            ordering_key: self.keyed.then(|| self.name.clone()),
            repeat_safe: method != "POST" || idempotency_key,
            origin_answers: if unwanted { 404 } else { 200 },
        };
        (intent, request)
    }

    fn exchange(&mut self, id: &str, method: &str, request: &Request, cut: bool) {
        let ledger = &self.told.ledger;
        let Ok(mut connection) = Connection::open(self.to, PATIENCE) else {
            ledger.never_left(id);
            std::thread::sleep(Duration::from_millis(5));
            return;
        };
        let mut bytes = request.to_bytes();
        if cut {
            let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
            bytes.truncate(self.seed.within(head as u64..bytes.len() as u64) as usize);
            let _ = connection.send_raw(&bytes);
            std::thread::sleep(Duration::from_millis(self.seed.within(0..15)));
            drop(connection);
            ledger.unanswered(id);
            return;
        }
        if connection.send_raw(&bytes).is_ok() {
            ledger.sent_whole(id);
        }
        match connection.read_response(method) {
            Ok(response) => ledger.answered(id, response.status, response.header("location")),
            Err(_) => ledger.unanswered(id),
        }
    }
}
