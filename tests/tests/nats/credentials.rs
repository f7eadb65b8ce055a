//! Credentials: what a server is shown, that what is wrong is told, and that no secret is.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use beamline_tests::{
    beamline::{Beamline, Options},
    nats::{NatsServer, Service},
};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{SUBJECT, Stage, on_failure, pki::node_config};

/// A folder for the files of secrets.
struct Secrets(TempDir);

impl Secrets {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("beamline-secrets-").tempdir().unwrap())
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        // In one step, as whoever rotates secrets does it: nobody reads half of one.
        let new = path.with_extension("new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }
}

fn stage(server: NatsServer, credentials: &str) -> Stage {
    let configuration = Some(node_config(&server, "nats", &format!("credentials = {{ {credentials} }}\n")));
    let options = Options { workers: 1, configuration, ..Options::default() };
    Stage::configured(server, options, "request", on_failure())
}

fn file(key: &str, path: &Path) -> String {
    format!("{key} = {path:?}")
}

/// A server with these users, one of which the tests' own clients are.
fn server(users: &str) -> NatsServer {
    let settings = format!("authorization {{ users: [ {{ user: tests, password: tests }}, {users} ] }}\n");
    let mut server = NatsServer::prepare(&settings).unwrap();
    server.set_access(server.access().showing(|_| json!({ "user": "tests", "pass": "tests" })));
    server.start_again().unwrap();
    server
}

/// That the connection is refused, its request waits, and goes when `mend` has put the right secret into the file.
#[track_caller]
fn expect_mended(stage: &Stage, says: &str, mend: impl FnOnce()) {
    let waiting = stage.expect_down("an order", says);
    mend();
    let service = Service::echo(stage.server.access(), SUBJECT).unwrap();
    stage.wait_state(&waiting, "delivered");
    assert_eq!(service.counts()["an order"], 1);
}

#[test]
fn a_password_is_read_for_each_connection() {
    let secrets = Secrets::new();
    let path = secrets.put("password", "a-wrong-password\n");
    let stage = stage(
        server("{ user: edge, password: the-right-password }"),
        &format!("user = \"edge\", {}", file("password_file", &path)),
    );
    expect_mended(&stage, "refused the connection's credentials: Authorization Violation", || {
        secrets.put("password", "the-right-password\n");
    });
    stage.expect_untold(&["a-wrong-password", "the-right-password"]);
}

#[test]
fn an_nkey_signs_what_the_server_asks_for() {
    let (right, wrong, secrets) = (KeyPair::new_user(), KeyPair::new_user(), Secrets::new());
    let (right_seed, wrong_seed) = (right.seed().unwrap(), wrong.seed().unwrap());
    let path = secrets.put("seed", &right_seed);
    let of = || server(&format!("{{ nkey: {} }}", right.public_key()));
    let works = stage(of(), &file("nkey_seed_file", &path));
    works.expect_works();
    works.expect_untold(&[&right_seed]);

    secrets.put("seed", &wrong_seed);
    let stage = stage(of(), &file("nkey_seed_file", &path));
    expect_mended(&stage, "refused the connection's credentials: Authorization Violation", || {
        secrets.put("seed", &right_seed);
    });
    stage.expect_untold(&[&right_seed, &wrong_seed]);
}

/// A JWT as NATS has them.
fn jwt(issuer: &KeyPair, subject: &str, kind: &str, nats: Value) -> String {
    let mut nats = nats;
    nats["type"] = json!(kind);
    nats["version"] = json!(2);
    let claims = json!({
        "jti": format!("{kind}-{subject}"), "iat": 1_700_000_000, "iss": issuer.public_key(), "name": kind,
        "sub": subject, "nats": nats,
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn user_jwt(account: &KeyPair, user: &KeyPair) -> String {
    let limits = json!({ "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 });
    jwt(account, &user.public_key(), "user", limits)
}

fn creds(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\nNKEY Seed printed below can be used to sign.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n****\n"
    )
}

#[test]
fn a_jwt_and_its_seed_are_read_from_a_creds_file() {
    let (operator, account, user) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_user());
    let limits = json!({
        "limits": {
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
            "leaf": -1,
        },
        "default_permissions": { "pub": {}, "sub": {} },
    });
    let settings = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}\n# no jetstream\n",
        jwt(&operator, &operator.public_key(), "operator", json!({})),
        account.public_key(),
        jwt(&operator, &account.public_key(), "account", limits),
    );
    let mut server = NatsServer::prepare(&settings).unwrap();
    let tests = KeyPair::new_user();
    let tests_jwt = user_jwt(&account, &tests);
    server.set_access(server.access().showing(move |nonce| {
        let signature = URL_SAFE_NO_PAD.encode(tests.sign(nonce.as_bytes()).unwrap());
        json!({ "jwt": tests_jwt, "sig": signature })
    }));
    server.start_again().unwrap();

    let (secrets, seed) = (Secrets::new(), user.seed().unwrap());
    // Of an account that the operator knows nothing of.
    let stranger = user_jwt(&KeyPair::new_account(), &user);
    let right = user_jwt(&account, &user);
    let path = secrets.put("edge.creds", &creds(&stranger, &seed));
    let stage = stage(server, &file("creds_file", &path));
    expect_mended(&stage, "refused the connection's credentials: Authorization Violation", || {
        secrets.put("edge.creds", &creds(&right, &seed));
    });
    stage.expect_works();
    // A seed that is not the JWT's is found out before anything is sent; a connection that stands goes on.
    secrets.put("edge.creds", &creds(&right, &KeyPair::new_user().seed().unwrap()));
    stage.expect_works();
    stage.expect_untold(&[&seed, &stranger, &right]);
}

#[test]
fn what_a_server_asks_for_and_the_connection_has_not_is_told() {
    let secrets = Secrets::new();
    let (user, server_of) = (KeyPair::new_user(), server);
    let nkey = || server_of(&format!("{{ nkey: {} }}", user.public_key()));
    let without = Stage::with(nkey(), Options::default(), "request", on_failure());
    without.expect_down("an order", "asks for credentials, and the connection has none");
    let seed = secrets.put("seed", &user.seed().unwrap());
    let plain = stage(NatsServer::start().unwrap(), &file("nkey_seed_file", &seed));
    plain.expect_down("an order", "asks for no NKey or JWT, and the connection has one");
}

#[test]
fn a_secret_that_others_can_read_is_not_used() {
    let secrets = Secrets::new();
    let seed = KeyPair::new_user().seed().unwrap();
    let path = secrets.put("seed", &seed);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let server = NatsServer::prepare("").unwrap();
    let configuration = format!("credentials = {{ {} }}\n", file("nkey_seed_file", &path));
    let configuration = Some(node_config(&server, "nats", &configuration));
    let error =
        format!("{:#}", Beamline::start(Options { configuration, ..Options::default() }).err().unwrap());
    assert!(error.contains("others can use it (mode 0644)") && error.contains("chmod 600"), "{error}");
    assert!(!error.contains(&seed), "{error}");
}
