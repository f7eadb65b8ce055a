//! The control plane keeps tenants within their grants and apart, and what it has answered is so, whatever happens next.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Output,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::{Admin, AdminError, manifest},
    beamline::{Beamline, Options},
    client::Request,
    guests::{self, variant},
    origin::Origin,
    ports::Port,
    scene::{self, HOST, PATIENCE, Scene, TENANT},
    seed::Seed,
};
use serde_json::{Value, json};

/// What a refusal says, and that it is one of this status and kind.
fn refusal<T: std::fmt::Debug>(result: Result<T, AdminError>, status: u16, kind: &str) -> String {
    let error = result.unwrap_err();
    assert_eq!((error.status(), error.kind()), (Some(status), kind), "{error}");
    error.detail().to_owned()
}

// ---- grants ----

#[test]
fn what_no_grant_covers_is_refused_by_name_and_changes_nothing() {
    let scene = Scene::start().unwrap();
    let port = scene.origin.address().port();
    scene
        .admin
        .create_tenant("globex", &["globex.test"], &[&format!("127.0.0.1:{port}"), "0.0.0.0/0"])
        .unwrap();
    let admin = scene.node.admin_address().to_string();
    let with = |tenant: &str, host: &str, endpoint: &str| {
        let mut wanted = manifest(host, scene.origin.address());
        wanted["upstreams"]["origin"]["endpoints"] = json!([endpoint]);
        refusal(scene.admin.apply(tenant, &wanted), 422, "outside-grant")
    };
    for (tenant, host, endpoint, words) in [
        (TENANT, "globex.test", "127.0.0.1:9", &["hosts[0]", "globex.test is not granted"][..]),
        (TENANT, "www.acme.test", "127.0.0.1:9", &["hosts[0]", "www.acme.test"]),
        (TENANT, HOST, &admin, &["upstreams.origin.endpoints[0]", &admin, "admin API"]),
        (
            TENANT,
            HOST,
            "169.254.169.254:80",
            &["upstreams.origin.endpoints[0]", "169.254.169.254:80", "metadata"],
        ),
        (TENANT, HOST, "192.0.32.7:80", &["192.0.32.7:80", "outside this tenant's granted ranges"]),
        (TENANT, HOST, "[::1]:80", &["[::1]:80", "loopback"]),
        ("globex", "globex.test", &admin, &[&admin, "admin API"]),
        ("globex", "globex.test", "127.0.0.1:9", &["127.0.0.1:9", "loopback"]),
        ("globex", "globex.test", "10.0.0.1:80", &["10.0.0.1:80", "private"]),
        ("globex", "globex.test", "169.254.169.254:80", &["169.254.169.254:80", "link-local"]),
        ("globex", "globex.test", "[::ffff:169.254.169.254]:80", &["169.254.169.254"]),
        ("globex", "globex.test", "[::ffff:127.0.0.1]:9", &["127.0.0.1:9"]),
    ] {
        let detail = with(tenant, host, endpoint);
        assert!(words.iter().all(|word| detail.contains(word)), "{words:?}: {detail}");
    }
    let both = with(TENANT, "globex.test", "10.0.0.1:80");
    assert!(both.contains("hosts[0]") && both.contains("endpoints[0]"), "all of it at once: {both}");
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 1);
    assert_eq!(scene.admin.show("globex").unwrap()["revision"], Value::Null);
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
}

#[test]
fn a_name_that_leads_outside_the_grant_is_refused_at_the_connection() {
    let scene = Scene::start().unwrap();
    let admin = format!("localhost:{}", scene.node.admin_address().port());
    scene.apply(|m| m["upstreams"]["origin"]["endpoints"] = json!([admin])).unwrap();
    let answer = scene.send(Request::get("/v1/status")).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-denied"), "{}", answer.text());

    let named = format!("localhost:{}", scene.origin.address().port());
    scene.admin.create_tenant("globex", &["globex.test"], &["0.0.0.0/0", "::/0"]).unwrap();
    let mut wanted = manifest("globex.test", scene.origin.address());
    wanted["upstreams"]["origin"]["endpoints"] = json!([named]);
    scene.admin.apply("globex", &wanted).unwrap();
    let answer = Request::get("/").host("globex.test").send(scene.node.address()).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-denied"), "{}", answer.text());
    assert_eq!(scene.origin.count(), 0);

    scene.apply(|m| m["upstreams"]["origin"]["endpoints"] = json!([named])).unwrap();
    assert_eq!(
        scene.send(Request::get("/")).unwrap().status,
        200,
        "what is granted by address is granted by name"
    );
}

#[test]
fn two_tenants_cannot_hold_one_host_nor_one_name() {
    let scene = Scene::start().unwrap();
    let taken = refusal(scene.admin.create_tenant("globex", &["globex.test", HOST], &[]), 409, "host-taken");
    assert!(taken.contains(HOST), "{taken}");
    assert!(refusal(scene.admin.show("globex"), 404, "unknown-tenant").contains("globex"));
    refusal(scene.admin.create_tenant(TENANT, &["other.test"], &[]), 409, "tenant-exists");
    let created: Vec<_> = std::thread::scope(|scope| {
        let create = |n: usize| {
            let admin = &scene.admin;
            scope.spawn(move || admin.create_tenant(&format!("racer-{n}"), &["race.test"], &[]).is_ok())
        };
        let racers: Vec<_> = (0..8).map(create).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(created.iter().filter(|won| **won).count(), 1, "{created:?}");
}

// ---- tokens ----

#[test]
fn a_tenants_token_reaches_that_tenant_alone() {
    let scene = Scene::start().unwrap();
    let globex = scene.admin.create_tenant("globex", &["globex.test"], &["127.0.0.0/8"]).unwrap();
    let acme = scene.admin.with_token(&scene.token);
    let others = scene.admin.with_token(&globex);
    assert_eq!(acme.show(TENANT).unwrap()["name"], TENANT);
    assert!(!acme.apply(TENANT, &scene.manifest()).unwrap().changed);

    for tenant in [TENANT, "nobody"] {
        let detail = refusal(others.show(tenant), 403, "other-tenant");
        assert!(detail.contains("globex") && detail.contains(tenant), "{detail}");
        refusal(others.manifest(tenant), 403, "other-tenant");
        refusal(others.apply(tenant, &scene.manifest()), 403, "other-tenant");
        refusal(others.dry_run(tenant, &scene.manifest()), 403, "other-tenant");
        refusal(others.rollback(tenant, None), 403, "other-tenant");
        refusal(others.push(tenant, b"\0asm"), 403, "other-tenant");
        for what in ["modules", "revisions", "revisions/1"] {
            refusal(others.get(&format!("/v1/tenants/{tenant}/{what}")), 403, "other-tenant");
        }
    }
    refusal(others.create_tenant("mine", &["mine.test"], &[]), 403, "operator-only");
    refusal(others.get("/v1/status"), 403, "operator-only");
    let seen = others.get("/v1/tenants").unwrap();
    assert_eq!(seen["tenants"].as_array().unwrap().len(), 1);
    assert_eq!(seen["tenants"][0]["name"], "globex");
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 1);
}

#[test]
fn without_a_known_token_there_is_nothing() {
    let scene = Scene::start().unwrap();
    let to = scene.node.admin_address();
    for (field, kind) in [
        (None, "token-missing"),
        (
            Some("Bearer blt_0000000000000000000000000000000000000000000000000000000000000000"),
            "token-unknown",
        ),
        (Some("Bearer "), ""),
        (Some("Basic YTpi"), ""),
    ] {
        for (method, path) in [
            ("GET", "/v1/tenants"),
            ("GET", "/v1/status"),
            ("GET", "/v1/tenants/acme"),
            ("POST", "/v1/tenants"),
        ] {
            let request = Request::new(method, path);
            let request = field.iter().fold(request, |request, field| request.header("authorization", field));
            let answer = request.send(to).unwrap();
            assert_eq!(answer.status, 401, "{field:?} {method} {path}");
            assert!(kind.is_empty() || answer.problem() == kind, "{}", answer.text());
            assert!(answer.header("www-authenticate").is_some(), "RFC 9110, section 11.6.1");
        }
    }
    for path in ["/readyz", "/livez"] {
        assert_eq!(Request::get(path).send(to).unwrap().status, 200, "{path} is for anyone");
    }
}

/// Every file below a folder with its bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => todo.push(path),
                false => drop(found.insert(path.display().to_string(), fs::read(&path).unwrap_or_default())),
            }
        }
    }
    found
}

#[test]
fn only_hashes_of_tokens_are_on_disk_and_the_operators_file_is_its_owners() {
    let scene = Scene::start().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = scene.node.data_dir().join("operator-token");
    let operator = fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(mode(&file), 0o600);
    assert!(operator.len() >= 32 && scene.token.len() >= 32 && operator != scene.token);
    let found = files(scene.node.folder());
    assert!(found.len() > 3, "{:?}", found.keys());
    for (path, bytes) in found {
        for token in [&operator, &scene.token] {
            // What follows the prefix, in case that stands apart.
            let secret = token.split('_').next_back().unwrap();
            let holds = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!holds || path.ends_with("operator-token"), "{path} holds a token");
        }
    }
}

// ---- revisions ----

fn timeout(scene: &Scene, seconds: u32) -> Value {
    let mut wanted = scene.manifest();
    wanted["upstreams"]["origin"]["response_timeout"] = json!(format!("{seconds}s"));
    wanted
}

#[test]
fn what_is_active_already_changes_nothing() {
    let scene = Scene::start().unwrap();
    for _ in 0..3 {
        let again = scene.apply(|_| ()).unwrap();
        assert_eq!((again.revision, again.changed, again.diff.len()), (Some(1), false, 0));
    }
    let shown = scene.admin.manifest(TENANT).unwrap();
    let again = scene.admin.apply(TENANT, &shown["manifest"]).unwrap();
    assert!(!again.changed, "a manifest can be sent back as it was shown");
    let revisions = scene.admin.get("/v1/tenants/acme/revisions").unwrap();
    assert_eq!(revisions["revisions"].as_array().unwrap().len(), 1);
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let scene = Scene::start().unwrap();
    let dry = scene.admin.dry_run(TENANT, &timeout(&scene, 7)).unwrap();
    assert_eq!((dry.revision, dry.changed), (Some(1), true));
    assert!(
        dry.diff.iter().any(|line| line.contains("response_timeout") && line.contains("7s")),
        "{:?}",
        dry.diff
    );
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 1);
    let applied = scene.admin.apply(TENANT, &timeout(&scene, 7)).unwrap();
    assert_eq!((applied.revision, applied.diff), (Some(2), dry.diff));
}

#[test]
fn a_rollback_leads_to_the_revision_before_and_back_or_to_the_one_that_is_named() {
    let mut scene = Scene::start().unwrap();
    let other = Origin::start("other").unwrap();
    let endpoints = json!([other.address().to_string()]);
    scene.apply(|m| m["upstreams"]["origin"]["endpoints"] = endpoints).unwrap();
    scene.apply(|m| m["default_upstream"] = Value::Null).unwrap();
    let served = |scene: &Scene| {
        let answer = scene.send(Request::get("/")).unwrap();
        answer.header("x-origin").map_or_else(|| answer.problem(), str::to_owned)
    };
    assert_eq!(served(&scene), "no-route");
    for (to, revision, expected) in [
        (None, 2, "other"),
        (None, 3, "no-route"),
        (Some(1), 1, TENANT),
        (None, 3, "no-route"),
        (Some(2), 2, "other"),
    ] {
        let back = scene.admin.rollback(TENANT, to).unwrap();
        assert_eq!((back.revision, back.changed), (Some(revision), true), "{to:?}");
        assert_eq!(served(&scene), expected, "after a rollback to {to:?}");
    }
    assert!(!scene.admin.rollback(TENANT, Some(2)).unwrap().changed);
    refusal(scene.admin.rollback(TENANT, Some(9)), 404, "unknown-revision");
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 2);

    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_eq!(served(&scene), "other", "after a restart, too");
    assert_eq!(scene.admin.rollback(TENANT, None).unwrap().revision, Some(3), "and it knows what was before");
}

#[test]
fn a_manifest_that_is_not_one_is_refused_with_key_and_reason() {
    let scene = Scene::start().unwrap();
    for (key, value, words) in [
        ("version", json!(2), &["version", "expected 1"][..]),
        ("hosts", json!([]), &["hosts", "at least one host"]),
        ("hosts", json!(["not a host"]), &["not a host"]),
        ("default_upstream", json!("none"), &["default_upstream", "none is not defined", "origin"]),
        ("colour", json!("red"), &["colour", "unknown field"]),
        ("limits", json!({ "memory": "1TiB" }), &["1TiB", "not a size", "GiB"]),
    ] {
        let mut wanted = scene.manifest();
        wanted[key] = value;
        let detail = refusal(scene.admin.apply(TENANT, &wanted), 422, "invalid-manifest");
        assert!(words.iter().all(|word| detail.contains(word)), "{words:?}: {detail}");
    }
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], 1);
}

// ---- durability ----

/// What was answered 2xx so far.
#[derive(Default)]
struct Answered {
    /// Tenants with their tokens.
    tenants: Vec<(String, String)>,
    /// Revisions of acme with the seconds that their manifests show.
    revisions: Vec<(u64, u32)>,
    /// The revision that is active, and the one that was before it.
    active: u64,
    before: u64,
    /// What was asked for and not answered, of what makes another revision active.
    unanswered: Option<Activation>,
    /// Digests of acme's modules.
    modules: Vec<String>,
}

impl Answered {
    fn activated(&mut self, revision: u64) {
        (self.before, self.active) = (self.active, revision);
        self.unanswered = None;
    }
}

/// What makes another revision active.
#[derive(Clone, Copy, Debug)]
enum Activation {
    /// A new one, whose manifest shows these seconds.
    Apply(u32),
    /// This one again.
    Rollback(u64),
}

/// The seconds that a revision's manifest shows.
fn seconds_of(admin: &Admin, revision: u64) -> u32 {
    let kept = admin.get(&format!("/v1/tenants/acme/revisions/{revision}")).unwrap();
    // A number of seconds that is whole minutes may be shown as such.
    let shown = kept["manifest"]["upstreams"]["origin"]["response_timeout"].as_str().unwrap();
    let unit = if shown.ends_with('m') { 60 } else { 1 };
    let number: u32 = shown.trim_end_matches(['m', 's']).parse().unwrap();
    number * unit
}

/// Makes changes until the node doesn't answer any more.
fn change_until_it_ends(admin: &Admin, scene_manifest: &Value, round: usize, answered: &Mutex<Answered>) {
    let noted = || answered.lock().unwrap_or_else(PoisonError::into_inner);
    let tiny = guests::module("tiny").unwrap();
    for n in 0..1000_u32 {
        let name = format!("tenant-{round}-{n}");
        match admin.create_tenant(&name, &[&format!("{name}.test")], &["127.0.0.0/8"]) {
            Ok(token) => noted().tenants.push((name, token)),
            Err(_) => return,
        }
        if n % 8 == 0 {
            match admin.push(TENANT, &variant(&tiny, &format!("{round}-{n}"))) {
                Ok(module) => noted().modules.push(module.digest),
                Err(_) => return,
            }
        }
        let seconds = 1000 * (round as u32 + 1) + n;
        let mut wanted = scene_manifest.clone();
        wanted["upstreams"]["origin"]["response_timeout"] = json!(format!("{seconds}s"));
        noted().unanswered = Some(Activation::Apply(seconds));
        match admin.apply(TENANT, &wanted) {
            Ok(applied) => {
                let revision = applied.revision.unwrap();
                let mut noted = noted();
                noted.revisions.push((revision, seconds));
                noted.activated(revision);
            }
            Err(_) => return,
        }
        if n % 4 == 3 {
            let back_to = noted().before;
            noted().unanswered = Some(Activation::Rollback(back_to));
            match admin.rollback(TENANT, None) {
                Ok(applied) => {
                    assert_eq!(applied.revision, Some(back_to), "what was active before");
                    noted().activated(back_to);
                }
                Err(_) => return,
            }
        }
    }
    panic!("the node should have been killed by now");
}

#[test]
fn every_change_that_was_answered_is_there_after_kill_nine() {
    let mut seed = Seed::from_env("every_change_that_was_answered_is_there_after_kill_nine");
    let mut scene = Scene::start().unwrap();
    let answered = Mutex::new(Answered { active: 1, before: 1, ..Answered::default() });
    for round in 0..6 {
        // By what was answered, for a busy machine answers little in any given time; and then at any moment.
        let enough = answered.lock().unwrap().revisions.len() + seed.within(2..9) as usize;
        let moment = Duration::from_millis(seed.within(0..80));
        let (admin, wanted) = (scene.admin.clone(), scene.manifest());
        std::thread::scope(|scope| {
            let changing = scope.spawn(|| change_until_it_ends(&admin, &wanted, round, &answered));
            let until = Instant::now() + PATIENCE;
            while answered.lock().unwrap().revisions.len() < enough && !changing.is_finished() {
                assert!(Instant::now() < until, "round {round}: no {enough} revisions were answered");
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(moment);
            scene.node.kill_nine().unwrap();
            changing.join().unwrap();
        });
        scene.node.launch().unwrap();

        let mut answered = answered.lock().unwrap();
        for (name, token) in &answered.tenants {
            let seen = scene.admin.with_token(token).show(name).unwrap();
            assert_eq!(seen["hosts"][0], format!("{name}.test"), "round {round}");
        }
        for (revision, seconds) in &answered.revisions {
            assert_eq!(seconds_of(&scene.admin, *revision), *seconds, "round {round}, revision {revision}");
        }
        let modules = scene.admin.get("/v1/tenants/acme/modules").unwrap();
        let known: Vec<_> =
            modules["modules"].as_array().unwrap().iter().map(|m| m["digest"].clone()).collect();
        assert!(answered.modules.iter().all(|digest| known.contains(&json!(digest))), "round {round}");

        // What was answered last is active, or what was asked for after it, made without its answer having come.
        let active = scene.admin.show(TENANT).unwrap()["revision"].as_u64().unwrap();
        if active != answered.active {
            let made = match answered.unanswered {
                Some(Activation::Apply(seconds)) => seconds_of(&scene.admin, active) == seconds,
                Some(Activation::Rollback(to)) => active == to,
                None => false,
            };
            let (last, asked) = (answered.active, answered.unanswered);
            assert!(
                made,
                "round {round}: expected revision {last} or {asked:?} to be active; found {active}"
            );
            answered.activated(active);
        }
        answered.unanswered = None;
        assert_eq!(scene.send(Request::get("/")).unwrap().status, 200, "round {round}");
    }
    let answered = answered.into_inner().unwrap();
    println!(
        "{} tenants, {} revisions, {} modules",
        answered.tenants.len(),
        answered.revisions.len(),
        answered.modules.len()
    );
    assert!(answered.tenants.len() > 6 && answered.revisions.len() > 6, "there was something to lose");
}

#[test]
fn a_restarted_node_serves_with_the_modules_that_it_was_given() {
    let mut scene = Scene::probed(Options::default()).unwrap();
    let count = |scene: &Scene| scene.probe("/", "count").unwrap().text();
    assert_eq!(count(&scene), "1");
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_eq!(count(&scene), "1", "from the cache of compiled modules");
    scene.node.kill_nine().unwrap();
    fs::remove_dir_all(scene.node.data_dir().join("artifacts")).unwrap();
    scene.node.launch().unwrap();
    assert_eq!(count(&scene), "1", "the cache can be deleted");
}

// ---- the command line ----

/// The command line before a node, in a folder of its own.
struct Shell {
    node: Beamline,
    folder: tempfile::TempDir,
}

impl Shell {
    fn new() -> Self {
        Self { node: Beamline::start(Options::default()).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    /// Runs `beamline` with these words.
    fn run(&self, line: &str) -> Output {
        let words: Vec<_> = line.split_whitespace().collect();
        scene::command(&self.node, self.folder.path(), &words).unwrap()
    }

    /// What it prints where it succeeds.
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// What it says where it fails with this exit code.
    fn fails(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {said}{}",
            String::from_utf8_lossy(&output.stdout)
        );
        assert!(!said.is_empty(), "{line} says why");
        said
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }
}

fn file(origin: &Origin, answer: &str) -> String {
    format!(
        "version = 1\nhosts = [\"{HOST}\"]\ndefault_upstream = \"origin\"\n\n[upstreams.origin]\nendpoints = [\"{}\"]\n\n\
         [[filters]]\nname = \"probe\"\nmodule = \"./filters/probe.wasm\"\nconfig = {{ do = \"respond\", status = 200, body = \"{answer}\" }}\n",
        origin.address()
    )
}

#[test]
fn a_tenant_is_created_served_changed_and_rolled_back_by_commands() {
    let (shell, origin) = (Shell::new(), Origin::start(TENANT).unwrap());
    let served = || Request::get("/").host(HOST).send(shell.node.address()).unwrap().text();

    shell.ok(&format!(
        "tenant create acme --host {HOST} --upstream-range {} --save-token acme.token",
        origin.address()
    ));
    let token = fs::metadata(shell.folder.path().join("acme.token")).unwrap();
    assert_eq!(token.permissions().mode() & 0o777, 0o600);
    fs::create_dir(shell.folder.path().join("filters")).unwrap();
    fs::copy(guests::path("probe"), shell.folder.path().join("filters/probe.wasm")).unwrap();

    shell.write("acme.toml", &file(&origin, "one"));
    let said = shell.ok("apply acme.toml --tenant acme --token-file acme.token");
    assert!(
        said.contains("pushed ./filters/probe.wasm: sha256:") && said.contains("revision 1 is active"),
        "{said}"
    );
    assert_eq!(served(), "one", "the module that the manifest names by a path was uploaded");
    let said = shell.ok("apply acme.toml --tenant acme --token-file acme.token");
    assert!(said.contains("nothing changed: revision 1"), "{said}");

    shell.write("acme.toml", &file(&origin, "two"));
    let said = shell.ok("apply acme.toml --tenant acme --token-file acme.token --dry-run");
    assert!(said.contains("would change") && said.contains("two"), "{said}");
    assert_eq!(served(), "one");
    assert!(
        shell.ok("apply acme.toml --tenant acme --token-file acme.token").contains("revision 2 is active")
    );
    assert_eq!(served(), "two");
    assert!(
        shell.ok("rollback --tenant acme --token-file acme.token").contains("revision 1 is active again")
    );
    assert_eq!(served(), "one");
    assert!(shell.ok("rollback --tenant acme --to 2").contains("revision 2 is active again"));
    assert_eq!(served(), "two");

    let pushed = shell.ok("push filters/probe.wasm --tenant acme");
    for word in ["sha256:", "request-handler", "beamline:edge/log", "KiB", "compiled before"] {
        assert!(pushed.contains(word), "{word}: {pushed}");
    }
    let shown = shell.ok("show acme --token-file acme.token");
    assert!(shown.contains(HOST) && shown.contains(&origin.address().port().to_string()), "{shown}");
    let revisions = shell.ok("show acme --revisions");
    assert!(revisions.lines().any(|line| line.starts_with('2') && line.contains("active")), "{revisions}");
    assert!(shell.ok("show acme --modules").contains("core-module"));
    shell.write("shown.toml", &shell.ok("show acme --manifest"));
    let said = shell.ok("apply shown.toml --tenant acme");
    assert!(said.contains("nothing changed"), "what is shown can be applied: {said}");
    assert!(shell.ok("tenant list").contains(TENANT));
    let status = shell.ok("status");
    assert!(status.contains("healthy") && status.contains("1 serving"), "{status}");
    let json: Value = serde_json::from_str(&shell.ok("status --json")).unwrap();
    assert_eq!(json["node"]["phase"], "healthy");
}

#[test]
fn commands_that_fail_say_why_and_their_exit_codes_tell_who_is_at_fault() {
    let (shell, origin) = (Shell::new(), Origin::start(TENANT).unwrap());
    shell.ok(&format!(
        "tenant create acme --host {HOST} --upstream-range {} --save-token acme.token",
        origin.address()
    ));

    // 1: the node refuses.
    let said = shell.fails("tenant create acme --host other.test", 1);
    assert!(said.contains("tenant-exists"), "{said}");
    assert!(shell.fails("status --token-file acme.token", 1).contains("operator-only"));
    assert!(shell.fails("show globex --token-file acme.token", 1).contains("other-tenant"));
    assert!(shell.fails("show acme --token blt_none", 1).contains("token-unknown"));
    assert!(shell.fails("show globex", 1).contains("unknown-tenant"));
    assert!(shell.fails("rollback --tenant acme", 1).contains("no-revision"));
    fs::copy(guests::path("evil-import"), shell.folder.path().join("evil.wasm")).unwrap();
    assert!(shell.fails("push evil.wasm --tenant acme", 1).contains("env.evil"));
    shell.write("acme.toml", "version = 1\nhosts = [\"globex.test\"]\n");
    assert!(shell.fails("apply acme.toml --tenant acme", 1).contains("globex.test is not granted"));
    let problem: Value =
        serde_json::from_str(&shell.fails("apply acme.toml --tenant acme --json", 1)).unwrap();
    assert_eq!(problem["type"], "urn:beamline:problem:outside-grant");

    // 2: something here is wrong.
    assert!(shell.fails("apply none.toml --tenant acme", 2).contains("none.toml"));
    shell.write("wrong.toml", "version = 1\nhosts = [\"acme test\"]\n");
    assert!(shell.fails("apply wrong.toml --tenant acme", 2).contains("wrong.toml:2"));
    shell.write("missing.toml", &file(&origin, "x"));
    assert!(shell.fails("apply missing.toml --tenant acme", 2).contains("filters/probe.wasm"));
    shell.fails("rollback --tenant Not_A_Name", 2);
    shell.fails("frobnicate", 2);
    assert!(
        shell.fails("tenant create other --host o.test --save-token acme.token", 2).contains("acme.token")
    );

    // 3: nobody is there.
    let nobody = Port::reserve().unwrap();
    let said = shell.fails(&format!("status --admin http://{}", nobody.address()), 3);
    assert!(said.contains(&nobody.address().to_string()), "{said}");
    assert_eq!(shell.node.admin().unwrap().show(TENANT).unwrap()["revision"], Value::Null);
}
