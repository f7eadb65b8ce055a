//! `nats` upstreams against a real server: what a request becomes, what a reply becomes, what is queued and what is
//! not, and what is left after the server was killed, stopped, or lost what it had not synced.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod credentials;
mod exchange;
mod outage;
mod pki;
mod queueing;
mod stream;
mod tls;

use beamline_tests::{
    admin::{Admin, AdminError, Applied},
    beamline::{Beamline, Options},
    client::{Request, Response},
    nats::{NatsServer, Service},
    scene::{HOST, PATIENCE, TENANT},
    wait::wait,
};
use serde_json::{Value, json};

/// The subject of the scene's upstream, within what the tenant is granted.
const SUBJECT: &str = "acme.orders.new";

/// A NATS server, a node with the connection `main` to it, and a tenant that may publish to `acme.orders`.
struct Stage {
    server: NatsServer,
    node: Beamline,
    admin: Admin,
}

impl Stage {
    /// With an upstream that waits for a service's reply.
    fn request(queue: Value) -> Self {
        Self::with(NatsServer::start().unwrap(), Options::default(), "request", queue)
    }

    /// With an upstream that publishes to a stream.
    fn jetstream(queue: Value) -> Self {
        let stage = Self::with(NatsServer::start().unwrap(), Options::default(), "jetstream", queue);
        stage.server.stream("ORDERS", &["acme.orders.>"], json!({})).unwrap();
        stage
    }

    fn with(server: NatsServer, options: Options, kind: &str, queue: Value) -> Self {
        let configuration = Some(server.node_config());
        Self::configured(server, Options { configuration, ..options }, kind, queue)
    }

    /// With a node that has a configuration of its own.
    fn configured(server: NatsServer, options: Options, kind: &str, queue: Value) -> Self {
        let node = Beamline::start(options).unwrap();
        let admin = node.admin().unwrap();
        admin
            .create_tenant_with(
                &json!({ "name": TENANT, "hosts": [HOST], "nats_subjects": ["main=acme.orders"] }),
            )
            .unwrap();
        let stage = Self { server, node, admin };
        stage.apply(kind, |upstream| upstream["queue"] = queue).unwrap();
        stage
    }

    fn apply(&self, kind: &str, change: impl FnOnce(&mut Value)) -> Result<Applied, AdminError> {
        let mut upstream = json!({
            "nats": { "connection": "main", "subject": SUBJECT, "kind": kind },
            "response_timeout": "10s",
        });
        change(&mut upstream);
        let manifest = json!({
            "version": 1,
            "hosts": [HOST],
            "default_upstream": "orders",
            "upstreams": { "orders": upstream },
        });
        self.admin.apply(TENANT, &manifest)
    }

    fn send(&self, request: Request) -> Response {
        request.host(HOST).send(self.node.address()).unwrap()
    }

    /// What a receipt tells.
    fn receipt(&self, location: &str) -> Value {
        let answer = self.send(Request::get(location));
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json().unwrap()
    }

    /// Waits until a receipt tells this state, and returns what it tells.
    #[track_caller]
    fn wait_state(&self, location: &str, state: &str) -> Value {
        wait(PATIENCE, || self.receipt(location), |told| told["state"] == state)
    }

    /// Waits until the node's connections are such that a request finds one: sends reads that change nothing.
    fn wait_up(&self) {
        let probe = || self.send(Request::get("/probe")).status;
        wait(PATIENCE, probe, |status| *status == 200);
    }
}

impl Stage {
    /// That requests pass. On a node of one worker: each has a connection of its own, and that of one is not that of another.
    #[track_caller]
    fn expect_works(&self) {
        let _service = Service::echo(self.server.access(), SUBJECT).unwrap();
        self.wait_up();
        assert_eq!(self.send(Request::post("/in", "an order")).text(), "an order");
    }

    /// Waits for an event of the node's that says this of its connections.
    #[track_caller]
    fn wait_told(&self, event: &str, says: &str) {
        let told = |record: &Value| record["event.name"] == event && record.to_string().contains(says);
        self.node.wait_log(PATIENCE, |log| log.iter().any(told)).unwrap();
    }

    /// That the connection cannot be made, for this reason: a read is refused, a request waits, the node is degraded and
    /// says why. Returns where the waiting request's receipt is.
    #[track_caller]
    fn expect_down(&self, body: &str, says: &str) -> String {
        let read = self.send(Request::get("/in"));
        assert_eq!((read.status, read.problem().as_str()), (503, "upstream-connect"), "{}", read.text());
        let waiting = location(&self.send(Request::post("/in", body)));
        self.wait_told("nats.disconnected", says);
        let ready = || {
            self.send(Request::get("/in"));
            Request::get("/readyz").send(self.node.admin_address()).unwrap().text()
        };
        wait(PATIENCE, ready, |told| told.contains("upstream-down"));
        waiting
    }

    /// That nothing of these is in the node's log or in what it printed.
    #[track_caller]
    fn expect_untold(&self, secrets: &[&str]) {
        let log = std::fs::read_to_string(self.node.log_file()).unwrap() + &self.node.last_words();
        assert!(log.contains("nats."), "it tells of its connections");
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} is in the log");
        }
    }
}

/// Where the receipt of a `202` is.
#[track_caller]
fn location(answer: &Response) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").unwrap_or_else(|| panic!("a receipt: {:?}", answer.headers)).to_owned()
}

fn on_failure() -> Value {
    json!({ "mode": "on-failure" })
}
