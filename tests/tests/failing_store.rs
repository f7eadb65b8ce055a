//! A disk that fails while the control plane is changed: no means no, also after a crash, or the answer says that nobody
//! knows.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{thread, time::Duration};

use beamline_tests::{
    admin::AdminError,
    powercut::{Entries, PowerCut},
    scene::Scene,
};
use serde_json::json;

/// A node whose fsyncs can be made to fail, with a tenant that has revision 1.
fn node_on_a_disk() -> (Scene, PowerCut) {
    let mut scene = Scene::start().unwrap();
    scene.node.kill_nine().unwrap();
    let disk = PowerCut::over(&scene.node.data_dir(), Entries::ByDirectory).unwrap();
    scene.node.options_mut().environment = disk.environment();
    scene.node.launch().unwrap();
    scene.apply(|manifest| manifest["upstreams"]["origin"]["connect_timeout"] = json!("1s")).unwrap();
    (scene, disk)
}

fn change(scene: &Scene, seconds: u32) -> Result<u64, AdminError> {
    let timeout = json!(format!("{seconds}s"));
    let applied = scene.apply(|manifest| manifest["upstreams"]["origin"]["response_timeout"] = timeout)?;
    Ok(applied.revision.unwrap())
}

fn active(scene: &Scene) -> serde_json::Value {
    let seen = scene.node.admin().unwrap().manifest("acme").unwrap();
    seen["manifest"]["upstreams"]["origin"]["response_timeout"].clone()
}

#[test]
fn a_change_that_was_refused_for_a_failing_disk_is_not_there_after_a_crash_either() {
    let (mut scene, disk) = node_on_a_disk();
    let before = active(&scene);
    disk.failing(true).unwrap();
    let refused = thread::scope(|threads| {
        let asked = threads.spawn(|| change(&scene, 7));
        thread::sleep(Duration::from_millis(700));
        disk.failing(false).unwrap();
        asked.join().unwrap()
    });
    let refused = refused.unwrap_err();
    assert_eq!((refused.status(), refused.kind()), (Some(503), "store-unavailable"), "{refused}");
    assert_eq!(active(&scene), before);

    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_eq!(active(&scene), before, "a change that was refused is made after all");
    let audit = scene.node.admin().unwrap().get("/v1/audit").unwrap();
    let rows = audit["entries"].as_array().unwrap();
    let recovered: Vec<_> = rows.iter().filter(|row| row["action"] == "store.recovered").collect();
    assert_eq!(recovered.len(), 1, "{audit}");
    assert_eq!(recovered[0]["detail"]["change_made"], false);
}

#[test]
fn a_change_of_which_nobody_knows_is_called_that_and_the_next_one_decides() {
    let (mut scene, disk) = node_on_a_disk();
    let before = active(&scene);
    disk.failing(true).unwrap();
    let unknown = change(&scene, 7).unwrap_err();
    assert_eq!((unknown.status(), unknown.kind()), (Some(503), "store-unconfirmed"), "{unknown}");
    // While the disk fails nothing more is taken, and that is certain at once.
    let refused = change(&scene, 8).unwrap_err();
    assert_eq!((refused.status(), refused.kind()), (Some(503), "store-unavailable"), "{refused}");
    assert_eq!(active(&scene), before);

    disk.failing(false).unwrap();
    change(&scene, 9).unwrap();
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_eq!(active(&scene), "9s");
}
