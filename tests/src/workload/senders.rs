//! Clients that send requests.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use super::Told;
use crate::{
    checker::Intent,
    client::{Connection, Request, Response},
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

/// What a client knows of its request.
enum Known {
    /// No connection was to be had.
    Nothing,
    /// It was sent, and no answer came.
    Unanswered,
    Answer(Response),
}

impl Known {
    fn is_certain(&self) -> bool {
        matches!(self, Self::Answer(response) if !is_unconfirmed(response) && !is_in_use(response))
    }
}

fn is_unconfirmed(response: &Response) -> bool {
    response.problem() == "queue-unconfirmed"
}

/// Its first try is still under way, or the node does not know yet what became of it.
fn is_in_use(response: &Response) -> bool {
    response.problem() == "idempotency-key-in-use"
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
        let has_key = method == "POST" && intent.repeat_safe;
        // What the origin refuses for good gives its key up, and is another request when it comes again.
        let insists = has_key && intent.origin_answers == 200 && self.number.is_multiple_of(2);
        self.told.ledger.begins(intent);
        match cut {
            Some(cut) => self.goes_away(&id, &request, cut),
            None => self.exchange(&id, &method, &request, insists),
        }
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

    fn goes_away(&self, id: &str, request: &Request, Cut { share, pause }: Cut) {
        let ledger = &self.told.ledger;
        let Some(mut connection) = self.connection() else { return ledger.never_left(id) };
        let mut bytes = request.to_bytes();
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
        bytes.truncate(head + (bytes.len() - head) * share as usize / 1000);
        let _ = connection.send_raw(&bytes);
        std::thread::sleep(pause);
        drop(connection);
        ledger.unanswered(id);
    }

    /// Sends it; who insists sends it again as long as nobody knows what became of it.
    fn exchange(&self, id: &str, method: &str, request: &Request, insists: bool) {
        let ledger = &self.told.ledger;
        let mut end = Known::Nothing;
        let until = Instant::now() + PATIENCE;
        loop {
            let Some(mut connection) = self.connection() else { break };
            if connection.send_raw(&request.to_bytes()).is_ok() {
                ledger.sent_whole(id);
            }
            end = match connection.read_response(method) {
                Ok(response) => Known::Answer(response),
                Err(_) => Known::Unanswered,
            };
            if !insists || end.is_certain() || self.told.gone_home() || Instant::now() > until {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        match end {
            Known::Nothing => ledger.never_left(id),
            Known::Unanswered => ledger.unanswered(id),
            Known::Answer(response) if is_unconfirmed(&response) || is_in_use(&response) => {
                ledger.unconfirmed(id)
            }
            Known::Answer(response) if response.status >= 500 => {
                ledger.explains(id, &response.text());
                ledger.answered(id, response.status, None);
            }
            Known::Answer(response) => {
                ledger.answered(id, response.status, response.header("location"));
                if insists && response.status == 202 {
                    self.sends_again(id, method, request);
                }
            }
        }
    }

    /// As a client whose `202` was lost on its way.
    fn sends_again(&self, id: &str, method: &str, request: &Request) {
        let Some(mut connection) = self.connection() else { return };
        // A node that is killed now tells nothing, which proves nothing.
        let sent = connection.send_raw(&request.to_bytes());
        if let Ok(response) = sent.and_then(|()| connection.read_response(method)) {
            self.told.ledger.answered_again(id, response.status, response.header("location"));
        }
    }
}
