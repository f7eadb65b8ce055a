//! Modules that cannot be compiled or loaded: their own filter alone is not available.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use beamline_tests::{
    beamline::Options,
    client::Request,
    guests,
    heavy::heavy,
    scene::{HOST, PATIENCE, Scene, TENANT},
    wait::wait,
};
use serde_json::{Value, json};

use crate::guest;

const OTHER: &str = "other.test";

/// A node with two tenants, each with a filter of its own module; `other`'s answers by itself.
fn scene() -> Scene {
    let scene = Scene::probed(Options::default()).unwrap();
    scene.admin.create_tenant("other", &[OTHER], &["127.0.0.0/8"]).unwrap();
    let module = guests::variant(&guests::module("probe").unwrap(), "of the other");
    let module = scene.admin.push("other", &module).unwrap();
    let manifest = json!({
        "version": 1,
        "hosts": [OTHER],
        "filters": [{ "name": "probe", "module": module.digest, "config": { "do": "respond" } }],
    });
    scene.admin.apply("other", &manifest).unwrap();
    scene
}

fn asked_of_other(scene: &Scene) -> (u16, String) {
    Request::get("/").host(OTHER).send(scene.node.address()).unwrap().refusal()
}

#[test]
fn artifacts_that_are_torn_or_gone_are_compiled_again() {
    let mut scene = scene();
    let artifacts = scene.node.data_dir().join("artifacts");
    for ruin in [
        (|file: &[u8]| file[..file.len() / 2].to_vec()) as fn(&[u8]) -> Vec<u8>,
        |file| file.iter().map(|byte| byte ^ 0x55).collect(),
        |_| Vec::new(),
    ] {
        scene.node.kill_nine().unwrap();
        let mut ruined = 0;
        for file in fs::read_dir(&artifacts).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "cwasm") {
                fs::write(&path, ruin(&fs::read(&path).unwrap())).unwrap();
                ruined += 1;
            }
        }
        assert_eq!(ruined, 2);
        scene.node.launch().unwrap();
        assert_eq!(scene.probe("/", "next").unwrap().status, 200);
        assert_eq!(asked_of_other(&scene), (200, String::new()));
    }
    scene.node.kill_nine().unwrap();
    fs::remove_dir_all(&artifacts).unwrap();
    scene.node.launch().unwrap();
    assert_eq!((scene.probe("/", "next").unwrap().status, asked_of_other(&scene).0), (200, 200));
}

#[test]
fn a_module_that_cannot_be_loaded_at_the_start_takes_neither_the_node_nor_another_tenant_with_it() {
    let mut scene = scene();
    scene.node.kill_nine().unwrap();
    fs::remove_dir_all(scene.node.data_dir().join("artifacts")).unwrap();
    // What the store keeps of the other's module is no module any more.
    let store = rusqlite::Connection::open(scene.node.data_dir().join("store/store.db")).unwrap();
    let of_other = "digest IN (SELECT digest FROM tenant_modules WHERE tenant = 'other')";
    store.execute_batch("DROP TRIGGER modules_never_change").unwrap();
    let spoil = format!("UPDATE modules SET bytes = x'0061736d01000000ff' WHERE {of_other}");
    assert_eq!(store.execute(&spoil, []).unwrap(), 1);
    drop(store);

    scene.node.launch().unwrap();
    assert_eq!(scene.probe("/", "next").unwrap().status, 200);
    assert_eq!(asked_of_other(&scene), (503, "filter-unavailable".into()));
    let log = scene
        .node
        .wait_log(PATIENCE, |log| log.iter().any(|record| record["event.name"] == "tenant.unavailable"))
        .unwrap();
    let told: Vec<_> = log.iter().filter(|record| record["event.name"] == "tenant.unavailable").collect();
    assert!(told.iter().all(|record| record["tenant.id"] == "other"), "{told:?}");
    assert!(scene.admin.show("other").unwrap()["unloaded"][0]["problem"].is_string());
    assert_eq!(scene.admin.show(TENANT).unwrap()["unloaded"], json!([]));
}

/// The compile workers of a node: their process ids.
fn workers(node: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{node}/task/{node}/children")).unwrap_or_default();
    let mut all: Vec<u32> = children.split_whitespace().filter_map(|id| id.parse().ok()).collect();
    // Children belong to the thread that started them.
    for task in fs::read_dir(format!("/proc/{node}/task")).unwrap().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|id| id.parse::<u32>().ok()));
    }
    all.sort_unstable();
    all.dedup();
    all.retain(|id| {
        fs::read(format!("/proc/{id}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"compile-worker"))
    });
    all
}

/// What Linux says of a process's limit, soft and hard.
fn limit(id: u32, name: &str) -> Vec<String> {
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
    line[name.len()..].split_whitespace().take(2).map(str::to_owned).collect()
}

#[test]
fn a_bomb_kills_its_compile_worker_alone_and_others_are_answered_meanwhile() {
    let _heavy = heavy().unwrap();
    let mut options = Options::default();
    options.environment.push(("BEAMLINE_TEST_CANARY".into(), "not for a module's eyes".into()));
    let scene = Scene::with(options).unwrap();
    let known = guests::module("probe").unwrap();
    scene.admin.push(TENANT, &known).unwrap();
    scene.admin.create_tenant("noisy", &["noisy.test"], &[]).unwrap();
    let bomb = guest::bomb();
    let pid = scene.node.pid().unwrap();

    thread::scope(|scope| {
        let bombing = scope.spawn(|| scene.admin.push("noisy", &bomb).unwrap_err());
        let worker = wait(PATIENCE, || workers(pid), |found| !found.is_empty())[0];
        // Its limits come first of all; then its own environment and three descriptors are all it has.
        // The last of them that it sets is that of core files.
        wait(PATIENCE, || limit(worker, "Max core file size"), |found| found == &["0", "0"]);
        assert_eq!(limit(worker, "Max cpu time"), ["20", "20"]);
        assert_eq!(limit(worker, "Max address space"), ["2147483648", "2147483648"]);
        assert_eq!(fs::read(format!("/proc/{worker}/environ")).unwrap(), b"", "an empty environment");
        let mut open: Vec<_> = fs::read_dir(format!("/proc/{worker}/fd"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        open.sort();
        assert_eq!(open, ["0", "1", "2"], "it inherits nothing");

        // Meanwhile: what is known is pushed and applied, and served.
        let began = Instant::now();
        assert!(scene.admin.push(TENANT, &known).unwrap().cached);
        let probe = scene.filter("probe").unwrap();
        scene.apply(|m| m["filters"] = json!([probe])).unwrap();
        assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
        assert!(scene.admin.show("noisy").is_ok());
        assert!(workers(pid).contains(&worker), "the bomb was over before anything was asked");
        println!("answered within {:?} beside the bomb", began.elapsed());

        let refused = bombing.join().unwrap();
        assert_eq!(refused.status(), Some(422), "{refused}");
        assert!(refused.to_string().contains("20s of CPU time, 2GiB of memory"), "{refused}");
    });
    // And what is new is compiled when the bomb is over.
    let new = guests::variant(&known, "new");
    assert!(!scene.admin.push(TENANT, &new).unwrap().cached);
    assert_eq!(scene.send(Request::get("/").host(HOST)).unwrap().status, 200);
    assert_eq!(wait(Duration::from_secs(5), || workers(pid), Vec::is_empty), Vec::<u32>::new());
    let _: Value = scene.admin.get("/v1/status").unwrap();
}
