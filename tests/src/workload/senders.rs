//! Clients that send requests.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Told;
use crate::{
    checker::Intent,
    client::{Connection, Request},
    scene::HOST,
    seed::Seed,
};

/// Longer than anything may take, shorter than a test.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a client goes away in mid-body.
struct Cut {
    /// Of its body, in thousandths, what it sends.
    share: u64,
    /// How long it then waits.
    pause: Duration,
}

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

    /// One request, and a pause. What it is depends on the seed and on how many came before it, on nothing that happens.
    pub(super) fn step(&mut self) {
        self.number += 1;
        let id = format!("{}.{}", self.name, self.number);
        let (intent, request) = self.choose(&id);
        let cut = (!intent.body.is_empty() && self.seed.one_in(12)).then(|| Cut {
            share: self.seed.within(0..1000),
            pause: Duration::from_millis(self.seed.within(0..15)),
        });
        let most = (self.pause.as_micros() as u64).max(1);
        let pause = Duration::from_micros(self.seed.within(0..most));
        let method = intent.method.clone();
        self.told.ledger.begins(intent);
        self.exchange(&id, &method, &request, cut);
        std::thread::sleep(pause);
    }

    /// A connection; a node that is down is waited for, a node that stays down is not.
    fn connection(&self) -> Option<Connection> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Connection::open(self.to, PATIENCE) {
                Ok(connection) => return Some(connection),
                Err(_) if Instant::now() > until || self.told.gone_home() => return None,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
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

    fn exchange(&self, id: &str, method: &str, request: &Request, cut: Option<Cut>) {
        let ledger = &self.told.ledger;
        let Some(mut connection) = self.connection() else { return ledger.never_left(id) };
        let mut bytes = request.to_bytes();
        if let Some(Cut { share, pause }) = cut {
            let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
            bytes.truncate(head + (bytes.len() - head) * share as usize / 1000);
            let _ = connection.send_raw(&bytes);
            std::thread::sleep(pause);
            drop(connection);
            ledger.unanswered(id);
            return;
        }
        if connection.send_raw(&bytes).is_ok() {
            ledger.sent_whole(id);
        }
        match connection.read_response(method) {
            Ok(response) if response.text().contains("problem:queue-unconfirmed") => ledger.unconfirmed(id),
            Ok(response) if response.status >= 500 => {
                ledger.explains(id, &response.text());
                ledger.answered(id, response.status, None);
            }
            Ok(response) => ledger.answered(id, response.status, response.header("location")),
            Err(_) => ledger.unanswered(id),
        }
    }
}
