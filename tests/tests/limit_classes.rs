//! What an operator lets tenants ask for: limit classes, and the ceilings that the configuration sets for them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use beamline_tests::{
    beamline::Options,
    client::Request,
    guests,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::json;

const LARGE: &str = "large.test";
const MIB: usize = 1 << 20;

/// A node whose configuration file holds this.
fn configured(configuration: &str) -> Scene {
    let configuration = Some(configuration.to_owned());
    Scene::with(Options { workers: 1, configuration, ..Options::default() }).unwrap()
}

#[test]
fn a_large_module_is_for_tenants_of_the_class_large() {
    let scene = configured("[limits.large]\nmodule_size = \"6MiB\"\n");
    let grant = json!({ "name": "large", "hosts": [LARGE], "upstream_ranges": ["127.0.0.0/8"], "limit_class": "large" });
    scene.admin.create_tenant_with(&grant).unwrap();
    assert_eq!(scene.admin.show("large").unwrap()["limit_class"], "large");
    assert_eq!(scene.admin.show(TENANT).unwrap()["limit_class"], "small");

    let module = guests::longer(&guests::module("probe").unwrap(), 5 * MIB);
    let error = scene.admin.push(TENANT, &module).unwrap_err();
    assert_eq!((error.status(), error.kind()), (Some(413), "body-too-large"));
    assert!(error.detail().contains("class small has at most 4194304 bytes"), "{error}");

    let pushed = scene.admin.push("large", &module).unwrap();
    let mut manifest = scene.manifest();
    (manifest["hosts"], manifest["filters"]) =
        (json!([LARGE]), json!([{ "name": "probe", "module": pushed.digest }]));
    scene.admin.apply("large", &manifest).unwrap();
    let told = Request::get("/").host(LARGE).header("x-probe", r#"{"do":"respond","status":418}"#);
    assert_eq!(told.send(scene.node.address()).unwrap().status, 418);

    // The operator's own bound of the class.
    let error = scene.admin.push("large", &guests::longer(&module, MIB)).unwrap_err();
    assert!(error.detail().contains("class large has at most 6291456 bytes"), "{error}");
}

#[test]
fn a_module_that_was_taken_in_another_class_is_not_taken_again_in_this_one() {
    // Nothing is compiled for it, so nothing but its size speaks against it.
    let scene = configured("[limits.small]\nmodule_size = \"64KiB\"\n");
    let grant = json!({ "name": "large", "hosts": [LARGE], "upstream_ranges": ["127.0.0.0/8"], "limit_class": "large" });
    scene.admin.create_tenant_with(&grant).unwrap();
    let module = guests::longer(&guests::module("probe").unwrap(), 64 << 10);
    scene.admin.push("large", &module).unwrap();
    assert_eq!(scene.admin.push(TENANT, &module).unwrap_err().status(), Some(413));
}

#[test]
fn a_ceiling_refuses_what_is_asked_for_and_takes_its_part_of_defaults() {
    let scene = configured("[limits.small]\ncpu = \"20ms\"\n");
    let probe = scene.filter("probe").unwrap();
    let error = scene
        .apply(|m| (m["filters"], m["limits"]) = (json!([probe]), json!({ "cpu": "40ms" })))
        .unwrap_err();
    assert_eq!((error.status(), error.kind()), (Some(422), "outside-grant"));
    assert!(error.detail().contains("limits.cpu = 40ms is beyond the 20ms"), "{error}");

    // By default a call has 50 ms: here it has what the operator left of them.
    scene.apply(|m| m["filters"] = json!([probe])).unwrap();
    let spin = Request::get("/").host(HOST).header("x-probe", r#"{"do":"spin"}"#);
    let answer = spin.timeout(PATIENCE).send(scene.node.address()).unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("20ms"), "{}", answer.text());
    let record = scene.record(&answer).unwrap();
    assert_eq!(record["error.type"], "filter-timeout", "{record}");
}

#[test]
fn a_ceiling_beyond_what_the_node_can_do_stops_the_start() {
    let configuration = Some("[limits.large]\nmodule_size = \"1GiB\"\n".into());
    let error = Scene::with(Options { configuration, ..Options::default() }).err().unwrap();
    let told = format!("{error:#}");
    assert!(told.contains("limits.large.module_size: expected at most 64MiB"), "{told}");
}
