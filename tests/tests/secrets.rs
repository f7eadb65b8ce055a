//! Secrets and credentials: what is sealed, what a delivery gets, and that no value is ever told or stored in the clear.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::AdminError,
    beamline::{Beamline, Options, binary},
    canary::files_with,
    client::{Request, Response},
    otlp::Receiver,
    scene::{PATIENCE, Scene, TENANT, command},
    seal_keys::{SealKeys, key},
};
use serde_json::{Value, json};

/// What must be nowhere but in requests to the origin.
const CANARY: &str = "canary-0815-never-told";

/// Runs a command on the operator's authority, `input` on its standard input; gives all that it printed.
#[track_caller]
fn cli(scene: &Scene, line: &str, input: &str) -> String {
    let mut child = Command::new(binary().unwrap())
        .args(line.split(' '))
        .env("BEAMLINE_ADMIN", format!("http://{}", scene.node.admin_address()))
        .env("BEAMLINE_DATA_DIR", scene.node.data_dir())
        .env_remove("BEAMLINE_TOKEN")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(output.status.success(), "{line}: {}", text(&output.stderr));
    text(&output.stdout) + &text(&output.stderr)
}

/// Applies the smallest manifest with `headers` and `queue` of its upstream.
fn apply(scene: &Scene, headers: &Value, queue: &Value) -> Result<(), AdminError> {
    let change = |manifest: &mut Value| {
        manifest["upstreams"]["origin"]["headers"] = headers.clone();
        manifest["upstreams"]["origin"]["queue"] = queue.clone();
    };
    scene.apply(change).map(drop)
}

/// A node with a seal key, whose tenant has the secret `token`, set on each request as `authorization`.
fn injecting(keys: &SealKeys, queue: &Value) -> Scene {
    let scene = Scene::with(keys.options()).unwrap();
    scene.admin.set_secret(TENANT, "token", &format!("Bearer {CANARY}-1")).unwrap();
    apply(&scene, &json!({ "authorization": "secret://token" }), queue).unwrap();
    scene
}

#[track_caller]
fn location(answer: &Response) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").unwrap().to_owned()
}

/// Waits until a receipt is as wanted.
#[track_caller]
fn wait_receipt(scene: &Scene, location: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        let told = scene.send(Request::get(location)).unwrap().json().unwrap();
        if wanted(&told) {
            return told;
        }
        assert!(Instant::now() < until, "last seen: {told}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
fn wait_delivered(scene: &Scene, location: &str) {
    wait_receipt(scene, location, |told| told["state"] == "delivered");
}

/// Waits until what is wrong with the node is as wanted.
#[track_caller]
fn wait_reasons(scene: &Scene, wanted: impl Fn(&[Value]) -> bool) {
    let until = Instant::now() + PATIENCE;
    loop {
        let reasons = scene.admin.get("/v1/status").unwrap()["node"]["reasons"].as_array().unwrap().clone();
        if wanted(&reasons) {
            return;
        }
        assert!(Instant::now() < until, "last seen: {reasons:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, AdminError>) -> (u16, String, String) {
    let error = result.unwrap_err();
    (error.status().unwrap(), error.kind().to_owned(), error.detail().to_owned())
}

/// Starts the node anew after a crash.
fn restart(scene: &mut Scene) {
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
}

// ---- secrets that are set on requests ----

#[test]
fn a_secret_takes_the_place_of_what_client_and_filter_sent_and_no_filter_sees_it() {
    let keys = SealKeys::with(&["k1"]).unwrap();
    let scene = Scene::with(keys.options()).unwrap();
    cli(&scene, "secret set acme token", &format!("Bearer {CANARY}\n"));
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|manifest| {
            manifest["filters"] = json!([probe]);
            manifest["upstreams"]["origin"]["headers"] = json!({ "authorization": "secret://token" });
        })
        .unwrap();
    let client = || Request::get("/in").header("Authorization", "client's");
    let step = json!({ "do": "set-headers", "headers": { "authorization": ["filter's", "filter's too"] } });
    for request in [Request::get("/in"), client(), client().header("x-probe", &step.to_string())] {
        assert_eq!(scene.send(request).unwrap().status, 200);
        assert_eq!(scene.origin.last().values("authorization"), [format!("Bearer {CANARY}")]);
    }
    let seen = scene.send(client().header("x-probe", &json!({ "do": "head" }).to_string())).unwrap().text();
    assert!(seen.contains("client's") && !seen.contains(CANARY), "{seen}");
}

#[test]
fn a_secret_that_is_set_anew_counts_at_once_and_after_a_crash() {
    let keys = SealKeys::with(&["k1"]).unwrap();
    let mut scene = injecting(&keys, &json!({}));
    for n in 1..=3 {
        let value = format!("Bearer {CANARY}-{n}");
        scene.admin.set_secret(TENANT, "token", &value).unwrap();
        scene.send(Request::get("/in")).unwrap();
        assert_eq!(scene.origin.last().values("authorization"), [value]);
    }
    restart(&mut scene);
    scene.send(Request::get("/in")).unwrap();
    assert_eq!(scene.origin.last().values("authorization"), [format!("Bearer {CANARY}-3")]);
    let revision = scene.admin.show(TENANT).unwrap()["revision"].clone();
    assert_eq!(revision, 2, "it took no new revision");
}

#[test]
fn a_delivery_gets_the_secret_as_it_is_then_and_its_record_holds_neither_it_nor_the_clients() {
    let keys = SealKeys::with(&["k1"]).unwrap();
    // The client's credentials are replaced, so that they don't stand against queueing.
    let mut scene = injecting(&keys, &json!({ "mode": "on-failure", "credentials": "refuse" }));
    scene.origin.stop();
    let request = Request::post("/in", "body").header("Authorization", &format!("client-{CANARY}"));
    let location = location(&scene.send(request).unwrap());
    let shown = cli(&scene, "queue list --tenant acme", "");
    assert!(shown.contains("POST /in") && !shown.contains(CANARY), "{shown}");
    scene.admin.set_secret(TENANT, "token", &format!("Bearer {CANARY}-2")).unwrap();
    scene.origin.start_again().unwrap();
    wait_delivered(&scene, &location);
    assert_eq!(scene.origin.last().values("authorization"), [format!("Bearer {CANARY}-2")]);
    scene.node.kill_nine().unwrap();
    assert_eq!(files_with(scene.node.folder(), CANARY), [] as [String; 0]);
}

#[test]
fn without_its_key_a_secret_is_never_left_out_of_a_request() {
    let keys = SealKeys::with(&["old"]).unwrap();
    let old = keys.lines().unwrap();
    let mut scene = injecting(&keys, &json!({ "mode": "on-failure" }));
    scene.origin.stop();
    // Safe to repeat, so that no crash leaves it undecided.
    let location = location(&scene.send(Request::new("PUT", "/in").body("body")).unwrap());
    keys.write(&[key("new").unwrap()]).unwrap();
    restart(&mut scene);
    scene.origin.start_again().unwrap();
    let answer = scene.send(Request::get("/in")).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (503, "secret-unavailable"));
    assert!(!answer.text().contains("token"), "which one it is is no client's business: {}", answer.text());
    wait_receipt(&scene, &location, |told| told["last_error"] == "secret-unavailable");
    assert_eq!(scene.origin.count(), 0, "nothing was sent without it");
    let shown = cli(&scene, "show acme", "");
    assert!(shown.contains("secret token cannot be opened: it is sealed by key old"), "{shown}");
    let lacks = json!({ "reason": "secret-unavailable", "of": "acme/origin" });
    wait_reasons(&scene, |reasons| reasons.contains(&lacks));
    let told = |log: &[Value]| log.iter().any(|record| record["event.name"] == "secret.unavailable");
    scene.node.wait_log(PATIENCE, told).unwrap();

    keys.write(&old).unwrap();
    restart(&mut scene);
    assert_eq!(scene.send(Request::get("/in")).unwrap().status, 200);
    wait_delivered(&scene, &location);
    scene.node.kill_nine().unwrap();
    keys.write(&[key("new").unwrap()]).unwrap();
    scene.node.launch().unwrap();
    wait_reasons(&scene, |reasons| reasons.contains(&lacks));
    scene.admin.set_secret(TENANT, "token", "Bearer new").unwrap();
    wait_reasons(&scene, <[Value]>::is_empty);
    assert_eq!(scene.send(Request::get("/in")).unwrap().status, 200, "to set it anew helps, too");
}

#[test]
fn a_node_without_a_seal_key_takes_no_secret_and_no_policy_that_needs_one() {
    let scene = Scene::start().unwrap();
    let secret = refused(scene.admin.set_secret(TENANT, "token", CANARY));
    let policy = refused(apply(&scene, &json!({}), &json!({ "mode": "on-failure", "credentials": "seal" })));
    for (status, kind, detail) in [secret, policy] {
        assert_eq!((status, kind.as_str()), (409, "no-seal-key"));
        assert!(
            detail.contains("start the node with --seal-key-file") && !detail.contains(CANARY),
            "{detail}"
        );
    }
    let unset = refused(apply(&scene, &json!({ "x-api-key": "secret://key" }), &json!({})));
    assert_eq!((unset.0, unset.1.as_str()), (422, "secret-not-set"));
    assert!(unset.2.contains("upstreams.origin.headers.x-api-key"), "{}", unset.2);
    for (headers, why) in [
        (json!({ "authorization": CANARY }), "expected \"secret://NAME\""),
        (json!({ "content-length": "secret://key" }), "the proxy's own"),
    ] {
        let (status, kind, detail) = refused(apply(&scene, &headers, &json!({})));
        assert_eq!((status, kind.as_str()), (422, "invalid-manifest"));
        assert!(detail.contains(why) && !detail.contains(CANARY), "{detail}");
    }
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 1);
}

#[test]
fn a_key_file_that_protects_nothing_stops_the_start() {
    let ends = |path: &Path, node: &mut Beamline| {
        node.options_mut().arguments = vec!["--seal-key-file".into(), path.display().to_string()];
        let error = format!("{:#}", node.launch().unwrap_err());
        assert_eq!(node.last_exit().unwrap().code(), Some(2), "{error}");
        error
    };
    let mut node = Beamline::prepare(Options::default()).unwrap();
    let keys = SealKeys::with(&["k1"]).unwrap();
    let inside = node.data_dir().join("seal-keys");
    fs::copy(keys.path(), &inside).unwrap();
    assert!(ends(&inside, &mut node).contains("it lies in the data folder"));
    let open = keys.folder().join("open");
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&open).unwrap();
    assert!(ends(&open, &mut node).contains("others can use it (mode 0644)"));
    keys.write(&[format!("k1:{CANARY}")]).unwrap();
    let error = ends(&keys.path(), &mut node);
    assert!(error.contains("line 1") && !error.contains(CANARY), "{error}");
}

// ---- credentials of queued requests ----

/// A client's request with all that it proves itself by. Safe to repeat, so that no crash leaves it undecided.
fn with_credentials(target: &str) -> Request {
    Request::new("PUT", target)
        .body("body")
        .header("Authorization", &format!("Bearer {CANARY}"))
        .header("Cookie", &format!("a={CANARY}"))
        .header("Cookie", &format!("b={CANARY}"))
        .header("Proxy-Authorization", &format!("Basic {CANARY}"))
}

#[track_caller]
fn came_with_credentials(scene: &Scene) {
    assert_eq!(scene.origin.last().values("authorization"), [format!("Bearer {CANARY}")]);
    assert_eq!(scene.origin.last().values("cookie"), [format!("a={CANARY}"), format!("b={CANARY}")]);
    assert_eq!(
        scene.origin.last().values("proxy-authorization"),
        [] as [String; 0],
        "that was the proxy's, as on a live request"
    );
}

fn sealing(keys: &SealKeys) -> Scene {
    let scene = Scene::with(keys.options()).unwrap();
    apply(&scene, &json!({}), &json!({ "mode": "on-failure", "credentials": "seal" })).unwrap();
    scene
}

#[test]
fn sealed_credentials_come_to_the_origin_and_are_nowhere_else() {
    let keys = SealKeys::with(&["k1"]).unwrap();
    let mut scene = sealing(&keys);
    scene.origin.stop();
    let location = location(&scene.send(with_credentials("/in")).unwrap());
    let id = wait_receipt(&scene, &location, |_| true)["id"].as_str().unwrap().to_owned();
    assert_eq!(files_with(scene.node.folder(), CANARY), [] as [String; 0], "while it waits");
    for line in ["queue list --tenant acme --json", &format!("queue show --tenant acme {id} --json")] {
        let shown = cli(&scene, line, "");
        assert!(shown.contains(&id) && !shown.contains(CANARY), "{shown}");
    }
    restart(&mut scene);
    scene.origin.start_again().unwrap();
    wait_delivered(&scene, &location);
    came_with_credentials(&scene);
    scene.node.kill_nine().unwrap();
    assert_eq!(files_with(scene.node.folder(), CANARY), [] as [String; 0]);
}

#[test]
fn a_filters_verdict_seals_them_too_and_an_ordering_keys_backlog() {
    let keys = SealKeys::with(&["k1"]).unwrap();
    let mut scene = Scene::with(keys.options()).unwrap();
    let probe = scene.filter("probe").unwrap();
    scene
        .apply(|manifest| {
            manifest["filters"] = json!([probe]);
            manifest["upstreams"]["origin"]["queue"] =
                json!({ "mode": "on-failure", "credentials": "seal", "ordering_key": { "header": "x-account" } });
        })
        .unwrap();
    let by_verdict = with_credentials("/in").header("x-probe", "enqueue");
    wait_delivered(&scene, &location(&scene.send(by_verdict).unwrap()));
    came_with_credentials(&scene);
    scene.origin.stop();
    let first = location(&scene.send(with_credentials("/in").header("x-account", "7")).unwrap());
    let behind = location(&scene.send(with_credentials("/in").header("x-account", "7")).unwrap());
    scene.origin.start_again().unwrap();
    for receipt in [first, behind] {
        wait_delivered(&scene, &receipt);
        came_with_credentials(&scene);
    }
}

#[test]
fn a_record_waits_for_its_key_and_goes_when_it_is_back_beside_a_new_one() {
    let keys = SealKeys::with(&["old"]).unwrap();
    let old = keys.lines().unwrap();
    let mut scene = sealing(&keys);
    scene.admin.set_secret(TENANT, "token", CANARY).unwrap();
    scene.origin.stop();
    let location = location(&scene.send(with_credentials("/in")).unwrap());

    let new = key("new").unwrap();
    keys.write(std::slice::from_ref(&new)).unwrap();
    restart(&mut scene);
    scene.origin.start_again().unwrap();
    let told = wait_receipt(&scene, &location, |told| told["last_error"] == "seal-key-missing");
    assert_ne!(told["state"], "dead");
    let kept = scene.admin.get("/v1/tenants/acme/secrets").unwrap();
    assert_eq!(kept["secrets"][0]["key"], "old", "what does not open is left as it is");
    // Others are not held up by it.
    assert_eq!(scene.send(with_credentials("/live")).unwrap().status, 200);

    keys.write(&[vec![new], old].concat()).unwrap();
    restart(&mut scene);
    wait_delivered(&scene, &location);
    came_with_credentials(&scene);
    let sealed_anew = scene.admin.get("/v1/tenants/acme/secrets").unwrap();
    assert_eq!(sealed_anew["secrets"][0]["key"], "new", "secrets are sealed anew at the start");
    let audit = scene.admin.get("/v1/audit?tenant=acme").unwrap();
    let row = audit["entries"].as_array().unwrap().iter().find(|row| row["action"] == "secret.reseal");
    assert_eq!(row.unwrap()["actor"], "node");
}

// ---- everywhere ----

#[test]
fn no_value_is_in_any_output() {
    let (keys, receiver) = (SealKeys::with(&["k1"]).unwrap(), Receiver::start().unwrap());
    let mut options = Options { otlp_endpoint: Some(receiver.endpoint()), ..keys.options() };
    options.environment = vec![("BEAMLINE_STDERR".into(), "trace".into())];
    let mut scene = Scene::with(options).unwrap();
    let mut told = cli(&scene, "secret set acme token --json", &format!("Bearer {CANARY}"));
    let file = keys.folder().join("value");
    fs::write(&file, format!("{CANARY}\r\n")).unwrap();
    told += &cli(&scene, &format!("secret set acme key --file {}", file.display()), "");
    let headers = json!({ "authorization": "secret://token", "x-api-key": "secret://key" });
    apply(&scene, &headers, &json!({ "mode": "on-failure", "credentials": "seal" })).unwrap();
    scene.send(with_credentials("/live")).unwrap();
    assert_eq!(scene.origin.last().values("x-api-key"), [CANARY]);
    scene.origin.stop();
    let queued = with_credentials("/queued").header("X-Api-Key", CANARY);
    let location = location(&scene.send(queued).unwrap());
    let kept = files_with(scene.node.folder(), CANARY);
    assert_eq!(kept, [] as [String; 0], "a record has no field that is set at the end, whoever sent it");
    scene.origin.start_again().unwrap();
    wait_delivered(&scene, &location);
    assert_eq!(scene.origin.last().values("x-api-key"), [CANARY]);
    for line in [
        "secret list acme --json",
        "show acme --json",
        "audit --json",
        "status --json",
        "queue list --tenant acme --json",
    ] {
        told += &cli(&scene, line, "");
    }
    told += &scene.admin.manifest(TENANT).unwrap().to_string();
    told += &scene.admin.get("/v1/tenants/acme/revisions/2").unwrap().to_string();
    let in_use = command(&scene.node, keys.folder(), &["secret", "remove", "acme", "token"]).unwrap();
    assert_eq!(in_use.status.code(), Some(1));
    told += &String::from_utf8(in_use.stderr).unwrap();
    apply(&scene, &json!({}), &json!({})).unwrap();
    told += &cli(&scene, "secret remove acme token", "");
    assert!(told.contains("secret.set") && told.contains("secret://token"), "{told}");
    assert!(!told.contains(CANARY), "{told}");

    scene.node.sigterm().unwrap();
    scene.node.wait_exit(PATIENCE).unwrap();
    let spans = format!("{:?}", receiver.spans());
    assert!(!receiver.spans().is_empty() && !spans.contains(CANARY));
    assert_eq!(files_with(scene.node.folder(), CANARY), [] as [String; 0]);
}

#[test]
fn a_filter_reads_the_secrets_that_its_manifest_lists_and_none_is_told() {
    let keys = SealKeys::with(&["k1"]).unwrap();
    let scene = Scene::probed(keys.options()).unwrap();
    let probe = scene.filter("probe").unwrap();
    let listing = |names: &[&str]| {
        let mut probe = probe.clone();
        probe["secrets"] = json!(names);
        scene.apply(|m| m["filters"] = json!([probe]))
    };
    let read = |name: &str| {
        scene.probe("/", json!({ "do": "secret", "key": name })).unwrap().expect(200).unwrap().json().unwrap()
    };
    let refused = listing(&["signing-key"]).unwrap_err();
    assert_eq!((refused.status(), refused.kind()), (Some(422), "secret-not-set"), "{refused}");
    assert!(refused.to_string().contains("filters[probe].secrets"), "{refused}");

    scene.admin.set_secret(TENANT, "signing-key", CANARY).unwrap();
    scene.admin.set_secret(TENANT, "other", "another").unwrap();
    assert_eq!(read("signing-key"), Value::Null, "set is not listed");
    listing(&["signing-key"]).unwrap();
    assert_eq!((read("signing-key"), read("other")), (json!(CANARY), Value::Null));

    let log = json!({ "do": "secret", "key": "signing-key", "then": "next" });
    scene.probe("/", log).unwrap().expect(200).unwrap();
    let told = scene.node.wait_log(PATIENCE, |log| log.iter().any(|r| r["kind"] == "guest")).unwrap();
    let guest = told.iter().find(|record| record["kind"] == "guest").unwrap();
    assert!(guest.to_string().contains("the secret is Some(\\\"[redacted]\\\")"), "{guest}");
    let shown = [
        scene.admin.manifest(TENANT).unwrap().to_string(),
        scene.admin.show(TENANT).unwrap().to_string(),
        scene.admin.get("/v1/audit").unwrap().to_string(),
        serde_json::to_string(&told).unwrap(),
    ];
    assert!(shown.iter().all(|text| !text.contains(CANARY)), "{shown:?}");
    assert!(files_with(&scene.node.data_dir(), CANARY).is_empty());

    let in_use = scene.admin.delete("/v1/tenants/acme/secrets/signing-key").unwrap_err();
    assert_eq!(in_use.kind(), "secret-in-use");
    let revision = scene.admin.show(TENANT).unwrap()["revision"].clone();
    scene.admin.set_secret(TENANT, "signing-key", "a new one").unwrap();
    assert_eq!(read("signing-key"), "a new one");
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], revision, "without a new revision");
    listing(&[]).unwrap();
    assert_eq!(read("signing-key"), Value::Null);
}
