//! The promise of `beamline:edge@0.1.0`: a filter that was built against it goes on running, and all of it stays as it was.
//!
//! `tests/guests/edge-0-1-0` has the package as it was released, which nobody changes, and a filter over it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{collections::BTreeMap, fs, path::Path};

use beamline_tests::{
    client::{Request, Response},
    guests,
    scene::{PATIENCE, Scene, TENANT},
    seal_keys::SealKeys,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use wit_parser::{
    Function, Handle, Interface, InterfaceId, PackageId, Resolve, Type, TypeDefKind, TypeOwner, WorldItem,
};

/// A node with the old filter, whose request phase runs in this tier, and its seal key.
fn scene(tier: &str) -> (Scene, SealKeys) {
    let keys = SealKeys::with(&["one"]).unwrap();
    let mut options = keys.options();
    options.arguments.extend(["--reset-tier".into(), (tier == "reset").to_string()]);
    let scene = Scene::with(options).unwrap();
    scene.admin.set_secret(TENANT, "key", "opened").unwrap();
    let module = scene.admin.push(TENANT, &guests::module("edge-0-1-0").unwrap()).unwrap();
    assert_eq!(module.tier, tier);
    assert_eq!(module.phases.len(), 7, "it takes part in each: {:?}", module.phases);
    let filter =
        json!({ "name": "old", "module": module.digest, "config": { "a": [1] }, "secrets": ["key"] });
    let origin = format!("http://{}", scene.origin.address());
    scene
        .apply(|m| {
            m["filters"] = json!([filter]);
            m["upstreams"]["origin"]["queue"] = json!({ "mode": "prefer" });
            m["egress"] = json!({ "allow": [origin] });
            m["limits"] = json!({ "kv_bytes": "1000B", "bucket_keys": 4, "log": "2KiB" });
        })
        .unwrap();
    (scene, keys)
}

/// What the filter logged of the request that this answers, once there are `n` messages: level and text.
fn logged(scene: &Scene, answer: &Response, n: usize) -> Vec<(String, String)> {
    let id = answer.header("x-request-id").unwrap();
    let is_it = |r: &&Value| r["kind"] == "guest" && r["request.id"] == id;
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().filter(is_it).count() >= n).unwrap();
    let text = |record: &Value, key: &str| record[key].as_str().unwrap().to_lowercase();
    log.iter().filter(is_it).map(|r| (text(r, "severity_text"), text(r, "body"))).collect()
}

/// What every function is to give in the request's phase.
const ASKED: &str = r#"method: "POST"
path: "/ask"
query: Some("a=1")
host: "acme.test"
get: Some("1")
get none: None
get-all: ["1", "2"]
get-many: [Some("1"), None]
snapshot: ("POST", "/ask", Some("a=1"), "acme.test", 2)
set: Ok(())
append: Ok(())
changed: ["one", "more"]
remove: Ok(())
removed: []
invalid-name: Err(HeaderError::InvalidName)
invalid-value: Err(HeaderError::InvalidValue)
forbidden: Err(HeaderError::Forbidden)
too-large: Err(HeaderError::TooLarge)
config: "{\"a\":[1]}"
context: None
context set: Ok(())
context get: Some("remembered")
context too-large: Err(ContextError { code: 0, name: "too-large", message: "More than 4 KiB." })
secret: Some("opened")
secret none: None
upstream: Some((State::Ready, 0))
upstream none: None
random: true
now-ms: true
elapsed-ns: true
client: ("127.0.0.1", true)
ids: (false, 32)
tenant: ("acme", true)
scheme: ("http", None)
kv set: Ok(())
kv get: Some("1")
kv increment: Ok(42)
kv compare-and-set: Ok(true)
kv compare-and-set none: Ok(false)
kv not-a-number: Err(KvError::NotANumber)
kv delete: (true, false, true)
kv overflow: (Ok(9223372036854775807), Err(KvError::Overflow), true)
kv invalid-key: Err(KvError::InvalidKey)
kv value-too-large: Err(KvError::ValueTooLarge)
kv quota-exceeded: (Err(KvError::QuotaExceeded), false)
bucket: Ok(Taken::Allowed(0))
bucket retry-after-ms: true
bucket invalid-key: Err(BucketError::InvalidKey)
bucket invalid-rate: Err(BucketError::InvalidRate)
bucket too-many-keys: Some(BucketError::TooManyKeys)
count: Ok(())
observe: Ok(())
metric invalid-name: Err(MetricError::InvalidName)
metric invalid-label: Err(MetricError::InvalidLabel)
metric invalid-value: Err(MetricError::InvalidValue)
metric other-kind: Err(MetricError::OtherKind)
metric too-many-names: Some(MetricError::TooManyNames)
send: Ok((200, false, "sent"))
send broken: Err(OutboundError::Broken)
send not-allowed: Err(OutboundError::NotAllowed)
send invalid-request: true
send too-many: Some(OutboundError::TooMany)
"#;

/// And of a response's head.
const RESPONSE_HEAD: &str = r#"status: 201
get: Some("/orders/7")
get-all: ["/orders/7"]
get-many: [Some("/orders/7"), None]
snapshot: (201, 1)
set-status: Ok(())
changed status: 404
set-status 99: Err(HeaderError::InvalidValue)
set: Ok(())
append: Ok(())
changed: ["one", "more"]
remove: Ok(())
removed: []
forbidden: Err(HeaderError::Forbidden)
"#;

#[test]
fn a_filter_built_against_0_1_0_runs_in_the_reset_tier_as_it_did() {
    runs_as_it_did("reset");
}

#[test]
fn a_filter_built_against_0_1_0_runs_in_the_component_tier_as_it_did() {
    runs_as_it_did("component");
}

fn runs_as_it_did(tier: &str) {
    let (scene, _keys) = scene(tier);
    every_function(&scene);
    every_verdict_on_a_request(&scene);
    every_verdict_on_a_response(&scene);
    bodies_as_they_stream(&scene);
}

fn ask(scene: &Scene, request: Request, what: &str) -> Response {
    scene.send(request.header("x-ask", what)).unwrap()
}

fn every_function(scene: &Scene) {
    let origin = format!("http://{}", scene.origin.address());
    let request = Request::post("/ask?a=1", "").header("x-two", "1").header("x-two", "2");
    let answer = scene.send(request.header("x-origin-url", &origin)).unwrap();
    assert_eq!((answer.status, answer.header("x-answered")), (203, Some("0.1.0")), "{}", answer.text());
    let told = answer.text();
    for (told, expected) in told.lines().zip(ASKED.lines()) {
        assert_eq!(told, expected);
    }
    assert_eq!(told, ASKED);
    let lines = logged(scene, &answer, 4);
    for level in ["debug", "info", "warn", "error"] {
        assert!(lines.contains(&(level.to_owned(), level.to_owned())), "{level} in {lines:?}");
    }
    let answer = ask(scene, Request::post("/created", ""), "head");
    assert_eq!((answer.status, answer.text().as_str()), (203, RESPONSE_HEAD));
}

fn every_verdict_on_a_request(scene: &Scene) {
    let next = scene.send(Request::get("/inspect")).unwrap();
    assert_eq!((next.status, next.header("x-kept")), (200, Some("kept")), "{}", next.text());
    let seen = next.json().unwrap().to_string();
    assert!(seen.contains(r#"["x-marked","request"]"#), "{seen}");
    let finished = logged(scene, &next, 1).pop().unwrap();
    let bytes = next.body.len();
    let told = format!("finish /inspect some(200) some(\"origin\") 0 {bytes} true none");
    assert_eq!(finished, ("info".to_owned(), told));

    let routed = scene.send(Request::get("/route")).unwrap().json().unwrap();
    assert_eq!(routed["target"], "/inspect?routed");
    assert!(routed["headers"].to_string().contains(r#"["host","routed.test"]"#), "{routed}");

    let queued = scene.send(Request::post("/enqueue", "later")).unwrap();
    assert_eq!(queued.status, 202, "{}", queued.text());

    let whole = scene.send(Request::post("/whole", "loud")).unwrap();
    assert_eq!((whole.status, whole.text().as_str()), (200, "LOUD"));
}

fn every_verdict_on_a_response(scene: &Scene) {
    let replaced = ask(scene, Request::get("/"), "respond");
    assert_eq!((replaced.status, replaced.text().as_str()), (203, "in its place"));
    let whole = ask(scene, Request::get("/"), "read-body");
    assert_eq!((whole.status, whole.text().as_str()), (200, "200 ok\n"));
}

fn bodies_as_they_stream(scene: &Scene) {
    for (what, sent, expected) in [
        ("pass", "abc", "abc"),
        ("hold", "abc", "abc"),
        ("held", "abc", "abc"),
        ("replace", "abc", "abc!"),
        ("again", "abc", "abc|200"),
    ] {
        let answer = ask(scene, Request::post("/echo", sent).chunked(), what);
        assert_eq!((answer.status, answer.text().as_str()), (200, expected), "{what}");
    }
}

/// The package in this folder of the repository.
fn package(folder: &str) -> (Resolve, PackageId) {
    let mut resolve = Resolve::default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let (package, _) = resolve.push_dir(&folder).unwrap();
    (resolve, package)
}

/// A type as text, named ones by their interface and name: the same text in two packages is the same type there.
fn named(resolve: &Resolve, ty: &Type) -> String {
    let Type::Id(id) = ty else { return format!("{ty:?}").to_lowercase() };
    let def = &resolve.types[*id];
    match (&def.kind, &def.name, def.owner) {
        // A name that stands for a type of another interface.
        (TypeDefKind::Type(of @ Type::Id(_)), Some(_), _) => named(resolve, of),
        (_, Some(name), TypeOwner::Interface(interface)) => {
            format!("{}.{name}", resolve.interfaces[interface].name.as_deref().unwrap_or_default())
        }
        (kind, ..) => spelled(resolve, kind),
    }
}

/// What a type is made of.
fn spelled(resolve: &Resolve, kind: &TypeDefKind) -> String {
    let of = |ty: &Type| named(resolve, ty);
    let or_none = |ty: &Option<Type>| ty.as_ref().map_or_else(|| "_".to_owned(), of);
    let all = |parts: Vec<String>| parts.join(", ");
    match kind {
        TypeDefKind::Record(record) => {
            let fields = record.fields.iter().map(|field| format!("{}: {}", field.name, of(&field.ty)));
            format!("record {{ {} }}", all(fields.collect()))
        }
        TypeDefKind::Variant(variant) => {
            let cases = variant.cases.iter().map(|case| format!("{}({})", case.name, or_none(&case.ty)));
            format!("variant {{ {} }}", all(cases.collect()))
        }
        TypeDefKind::Enum(an_enum) => {
            format!("enum {{ {} }}", all(an_enum.cases.iter().map(|case| case.name.clone()).collect()))
        }
        TypeDefKind::Resource => "resource".to_owned(),
        TypeDefKind::Handle(Handle::Own(id)) => format!("own<{}>", of(&Type::Id(*id))),
        TypeDefKind::Handle(Handle::Borrow(id)) => format!("borrow<{}>", of(&Type::Id(*id))),
        TypeDefKind::Tuple(tuple) => format!("tuple<{}>", all(tuple.types.iter().map(of).collect())),
        TypeDefKind::Option(ty) => format!("option<{}>", of(ty)),
        TypeDefKind::Result(result) => format!("result<{}, {}>", or_none(&result.ok), or_none(&result.err)),
        TypeDefKind::List(ty) => format!("list<{}>", of(ty)),
        TypeDefKind::Type(ty) => of(ty),
        other => panic!("0.1.0 has no {}: teach this test what it is", other.as_str()),
    }
}

fn signature(resolve: &Resolve, function: &Function) -> String {
    let params: Vec<_> =
        function.params.iter().map(|p| format!("{}: {}", p.name, named(resolve, &p.ty))).collect();
    let result = function.result.as_ref().map_or_else(|| "_".to_owned(), |ty| named(resolve, ty));
    format!("func({}) -> {result}", params.join(", "))
}

/// Everything of a package: `INTERFACE TYPE-OR-FUNCTION` and `world NAME import-or-export` with what it is.
fn items(resolve: &Resolve, package: PackageId) -> BTreeMap<String, String> {
    let mut items = BTreeMap::new();
    let package = &resolve.packages[package];
    for (name, interface) in &package.interfaces {
        let Interface { types, functions, .. } = &resolve.interfaces[*interface];
        for (of, id) in types {
            items.insert(format!("{name} {of}"), spelled(resolve, &resolve.types[*id].kind));
        }
        for (of, function) in functions {
            items.insert(format!("{name} {of}"), signature(resolve, function));
        }
    }
    for (name, world) in &package.worlds {
        let world = &resolve.worlds[*world];
        for (way, all) in [("imports", &world.imports), ("exports", &world.exports)] {
            for item in all.values() {
                let WorldItem::Interface { id, .. } = item else {
                    panic!("0.1.0 has only interfaces in {name}")
                };
                items.insert(format!("world {name} {way} {}", called(resolve, *id)), "interface".to_owned());
            }
        }
    }
    items
}

fn called(resolve: &Resolve, interface: InterfaceId) -> &str {
    resolve.interfaces[interface].name.as_deref().unwrap_or_default()
}

#[test]
fn nobody_changed_the_copy_of_0_1_0() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/edge-0-1-0/wit");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut hash = Sha256::new();
    files.iter().for_each(|file| hash.update(fs::read(file).unwrap()));
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        found, "e7bf256e66331a4400f293bea54446479158eaa0143392327a39135ebd8bb4f2",
        "a promise is not edited: what is new goes into wit/ alone"
    );
}

#[test]
fn all_of_0_1_0_is_in_the_package_as_it_was() {
    let (old, old_package) = package("tests/guests/edge-0-1-0/wit");
    let (new, new_package) = package("wit");
    let version =
        |resolve: &Resolve, package: PackageId| resolve.packages[package].name.version.clone().unwrap();
    assert_eq!(version(&old, old_package).to_string(), "0.1.0");
    let now = version(&new, new_package);
    assert_eq!((now.major, now.minor), (0, 1), "another minor version needs a copy and a test of its own");
    let (old, new) = (items(&old, old_package), items(&new, new_package));
    assert!(old.len() > 100, "everything was looked at: {}", old.len());
    for (item, was) in &old {
        let is = new.get(item).unwrap_or_else(|| panic!("{item} is gone: filters were built against it"));
        assert_eq!(is, was, "{item} is another: filters were built against what it was");
    }
    // A phase is one function. A second one would be missing in every filter that exports the phase.
    let of_an_old_phase = |item: &str| {
        let interface = item.split(' ').next().unwrap_or_default();
        interface.ends_with("-handler") && old.contains_key(&format!("{interface} handle"))
    };
    for (item, is) in new.iter().filter(|(item, _)| !old.contains_key(*item)) {
        assert!(!(is.starts_with("func") && of_an_old_phase(item)), "{item}: no filter of 0.1.0 exports it");
    }
}
