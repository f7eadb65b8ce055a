//! What operators, tenants and holders of receipts do to the queue by hand: by the command line, the admin API, and `DELETE`.

use std::time::Duration;

use beamline_tests::{
    admin::{Admin, AdminError},
    client::Request,
    scene::{PATIENCE, Scene, command},
};
use serde_json::{Value, json};

use crate::{count, deliveries, files_with, outage, queue, queueing, receipt, wait, wait_state};

const RECORDS: &str = "/v1/tenants/acme/queue/records";
const ORIGIN: &str = "/v1/tenants/acme/queue/upstreams/origin";

/// Runs `beamline queue …` on the operator's authority; it must do as it is told.
#[track_caller]
pub(crate) fn cli(scene: &Scene, line: &str) -> String {
    let (code, out, err) = cli_ends(scene, line);
    assert_eq!(code, 0, "{line}: {err}");
    out
}

fn cli_ends(scene: &Scene, line: &str) -> (i32, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = command(&scene.node, folder.path(), &line.split(' ').collect::<Vec<_>>()).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// The record that a receipt speaks of.
fn id(scene: &Scene, location: &str) -> String {
    receipt(scene, location)["id"].as_str().unwrap().to_owned()
}

fn cancel(scene: &Scene, location: &str) -> beamline_tests::client::Response {
    scene.send(Request::new("DELETE", location)).unwrap()
}

/// Actions and actors of the tenant's audit, those of the queue alone.
fn audit(admin: &Admin) -> Vec<String> {
    let told = admin.get("/v1/audit?tenant=acme").unwrap();
    let rows = told["entries"].as_array().unwrap().iter();
    let of_queue = rows.filter(|row| row["action"].as_str().unwrap().starts_with("queue."));
    let words = |row: &Value| {
        let word = |name: &str| row[name].as_str().unwrap().to_owned();
        format!("{} {} {}", word("actor"), word("action"), row["detail"]["count"])
    };
    of_queue.map(words).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, AdminError>) -> (u16, String) {
    let error = result.unwrap_err();
    (error.status().unwrap(), error.kind().to_owned())
}

/// Waits until a record is dead by the origin's refusal.
fn dead_letter(scene: &Scene, location: &str) -> String {
    let told = wait_state(scene, location, "dead");
    told["id"].as_str().unwrap().to_owned()
}

#[test]
fn delete_of_a_receipt_cancels_what_is_queued_and_it_is_never_delivered() {
    let mut scene = outage();
    let large = vec![b'x'; 60_000];
    let locations = [
        queue(&scene, Request::post("/in", "withdrawn")),
        queue(&scene, Request::post("/in", large)),
        queue(&scene, Request::post("/in", "kept")),
    ];
    for location in &locations[..2] {
        // It may be the one that is being tried just now: then it is too late for a moment.
        let answer = wait(PATIENCE, || cancel(&scene, location), |answer| answer.status != 409);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let told = answer.json().unwrap();
        assert_eq!((&told["state"], &told["reason"]), (&json!("dead"), &json!("cancelled")));
        assert_eq!(told, receipt(&scene, location));
        assert_eq!(cancel(&scene, location).json().unwrap(), told, "to cancel twice is to cancel");
    }
    wait(PATIENCE, || crate::body_files(&scene), |files| *files == 0);
    assert_eq!(count(&scene, "kept"), 1, "their room is free");

    // A crash takes nothing of that back.
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    scene.origin.start_again().unwrap();
    wait_state(&scene, &locations[2], "delivered");
    for location in &locations[..2] {
        assert_eq!(receipt(&scene, location)["reason"], "cancelled");
    }
    let log = scene.origin.requests();
    let bodies: Vec<_> = deliveries(&log).iter().map(|r| r.body.clone()).collect();
    assert_eq!(bodies, [b"kept"]);
    let late = cancel(&scene, &locations[2]);
    assert_eq!((late.status, late.problem().as_str()), (409, "too-late-to-cancel"));
    assert!(late.text().contains("delivered"), "{}", late.text());
    assert_eq!(audit(&scene.admin), ["receipt queue.cancel 1", "receipt queue.cancel 1"]);
}

#[test]
fn what_is_being_delivered_can_be_neither_cancelled_nor_discarded() {
    let mut scene = outage();
    let location = queue(&scene, Request::post("/in", "body"));
    scene.origin.delay_all(PATIENCE);
    scene.origin.start_again().unwrap();
    scene.origin.wait_for_count(1, PATIENCE).unwrap();
    let answer = cancel(&scene, &location);
    assert_eq!((answer.status, answer.problem().as_str()), (409, "too-late-to-cancel"));
    let discard = format!("{RECORDS}/{}/discard", id(&scene, &location));
    assert_eq!(refused(scene.admin.post(&discard, &json!(null))), (409, "record-state".into()));
    assert_eq!(receipt(&scene, &location)["state"], "delivering");
    assert_eq!(audit(&scene.admin), [] as [String; 0], "nothing was done");
}

#[test]
fn a_paused_upstream_gets_nothing_until_it_is_resumed_through_crashes_too() {
    let mut scene = outage();
    let before = queue(&scene, Request::post("/in", "before"));
    let said = cli(&scene, "queue pause --tenant acme origin");
    assert_eq!(said, "deliveries to upstream origin of tenant acme are paused\n");
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    let after = queue(&scene, Request::post("/in", "after"));
    scene.origin.start_again().unwrap();
    // Live traffic goes on, and with it come all the signs that the origin is well.
    for _ in 0..20 {
        scene.send(Request::get("/live")).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = scene.origin.requests();
    assert!(deliveries(&log).is_empty() && !log.is_empty(), "nothing comes from the queue: {log:?}");
    let status = cli(&scene, "queue status");
    let line = status.lines().nth(1).unwrap();
    assert!(line.starts_with("acme    origin    2        0") && line.ends_with("paused"), "{status}");
    let told = scene.admin.post(&format!("{ORIGIN}/resume"), &json!(null)).unwrap();
    assert_eq!(told, json!({ "upstream": "origin", "paused": false }));
    for location in [before, after] {
        wait_state(&scene, &location, "delivered");
    }
    assert_eq!(audit(&scene.admin), ["operator queue.pause 0", "operator queue.resume 0"]);
}

#[test]
fn a_rate_bounds_what_begins_in_a_second_through_crashes_too() {
    let mut scene = outage();
    let said = cli(&scene, "queue rate --tenant acme origin 4/s");
    assert_eq!(said, "deliveries to upstream origin of tenant acme begin at most at 4/s\n");
    let locations: Vec<_> = (0..12).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    scene.node.kill_nine().unwrap();
    scene.origin.start_again().unwrap();
    scene.node.launch().unwrap();
    locations.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    let log = scene.origin.requests();
    let at: Vec<_> = deliveries(&log).iter().map(|r| r.at).collect();
    let took = at[11].duration_since(at[0]).unwrap();
    assert!(took >= Duration::from_millis(2500), "eleven more than the first, at four a second: {took:?}");
    let status = cli(&scene, "queue status");
    assert!(status.contains("on, at most 4/s"), "{status}");
    cli(&scene, "queue rate --tenant acme origin none");
    assert!(!cli(&scene, "queue status").contains("at most"));
    let (code, _, err) = cli_ends(&scene, "queue rate --tenant acme origin 0/s");
    assert!(code == 2 && err.contains("expected 1 to 10000 deliveries a second"), "{code}: {err}");
    assert_eq!(audit(&scene.admin), ["operator queue.rate 0", "operator queue.rate 0"]);
}

#[test]
fn what_was_delivered_cancelled_or_discarded_is_in_no_file_any_more() {
    let mut scene = outage();
    let secret = |how: &str, body: Vec<u8>| {
        Request::post(&format!("/in?token=c4n4ry-q-{how}"), body).header("X-Key", &format!("c4n4ry-h-{how}"))
    };
    let body = |length: usize| b"c4n4ry-b-".repeat(length / 9);
    let locations = ["delivered", "cancelled", "discarded"].map(|how| {
        let small = queue(&scene, secret(how, body(100)));
        [small, queue(&scene, secret(how, body(20_000))), queue(&scene, secret(how, body(200_000)))]
    });
    let [delivered, cancelled, discarded] = &locations;
    let folder = scene.node.data_dir();
    assert!(!files_with(&folder, "c4n4ry-q").is_empty() && !files_with(&folder, "c4n4ry-b").is_empty());
    cli(&scene, "queue pause --tenant acme origin");
    wait(PATIENCE, || count(&scene, "in_flight"), |flying| *flying == 0);
    for location in cancelled {
        assert_eq!(cancel(&scene, location).status, 200);
    }
    for location in discarded {
        cli(&scene, &format!("queue discard --tenant acme {}", id(&scene, location)));
    }
    scene.origin.start_again().unwrap();
    cli(&scene, "queue resume --tenant acme origin");
    delivered.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    wait(2 * PATIENCE, || files_with(&folder, "c4n4ry-"), Vec::is_empty);
}

#[test]
fn dead_letters_are_listed_shown_and_tried_again() {
    let mut scene = queueing(json!({ "mode": "on-failure" }));
    scene.origin.stop();
    let location = queue(&scene, Request::post("/status/400?pin=1234", "body").header("X-Api-Key", "k3y"));
    scene.origin.start_again().unwrap();
    let id = dead_letter(&scene, &location);
    let listed = cli(&scene, "queue list --tenant acme --state dead");
    let line = listed.lines().nth(1).unwrap();
    assert!(line.starts_with(&format!("{id}  origin    dead(rejected)")), "{listed}");
    assert!(line.ends_with("POST /status/400"), "{listed}");
    let json: Value = serde_json::from_str(&cli(&scene, "queue list --tenant acme --json")).unwrap();
    assert_eq!((&json["records"][0]["id"], &json["next"]), (&json!(id), &Value::Null));
    assert_eq!(cli(&scene, "queue list --tenant acme --state queued"), "no such records\n");
    let shown = cli(&scene, &format!("queue show --tenant acme {id}"));
    for line in ["state       dead(rejected)", "request     POST /status/400", "x-api-key: (3 bytes)"] {
        assert!(shown.to_lowercase().contains(&line.to_lowercase()), "{shown}");
    }

    // More than one where it was tried before its origin was back.
    let before = receipt(&scene, &location)["attempts"].as_u64().unwrap();
    let said = cli(&scene, &format!("queue retry --tenant acme {id}"));
    assert!(said.starts_with(&format!("1 record queued again: {id} is ")), "{said}");
    let again = |told: &Value| told["attempts"] == before + 1 && told["state"] == "dead";
    wait(PATIENCE, || receipt(&scene, &location), again);
    let log = scene.origin.requests();
    let attempts: Vec<_> = deliveries(&log).iter().map(|r| crate::attempt(&r.headers)).collect();
    assert_eq!(attempts, [Some(before), Some(before + 1)], "it goes on counting");

    let said = cli(&scene, &format!("queue discard --tenant acme {id}"));
    assert_eq!(said, format!("1 record discarded: {id} is dead(discarded)\n"));
    assert_eq!(receipt(&scene, &location)["reason"], "discarded");
    let (code, _, err) = cli_ends(&scene, &format!("queue retry --tenant acme {id} --may-repeat"));
    assert!(code == 1 && err.contains("(409 record-state)"), "{err}");
    let told = cli(&scene, "audit --tenant acme");
    for action in ["tenant.create", "queue.retry", "queue.discard"] {
        assert!(told.contains(action), "{told}");
    }
}

#[test]
fn what_may_have_been_taken_is_sent_again_only_when_that_is_said() {
    let mut scene = outage();
    let location = queue(&scene, Request::post("/in", "body"));
    scene.origin.delay_all(PATIENCE);
    scene.origin.start_again().unwrap();
    scene.origin.wait_for_count(1, PATIENCE).unwrap();
    scene.origin.stop();
    let id = dead_letter(&scene, &location);
    assert_eq!(receipt(&scene, &location)["reason"], "indeterminate");
    scene.origin.delay_all(Duration::ZERO);
    scene.origin.start_again().unwrap();
    let (code, _, err) = cli_ends(&scene, &format!("queue retry --tenant acme {id}"));
    assert!(code == 1 && err.contains("(409 may-repeat)") && err.contains("--may-repeat"), "{err}");
    assert_eq!(receipt(&scene, &location)["state"], "dead");
    cli(&scene, &format!("queue retry --tenant acme {id} --may-repeat"));
    wait_state(&scene, &location, "delivered");
}

#[test]
fn a_purge_names_how_many_and_survives_a_crash() {
    let mut scene = outage();
    let locations: Vec<_> = (0..5).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    // So that none is in flight when the others go.
    cli(&scene, "queue pause --tenant acme origin");
    wait(PATIENCE, || count(&scene, "in_flight"), |flying| *flying == 0);
    let said = cli(&scene, "queue purge --tenant acme origin --state dead");
    assert_eq!(said, "0 records (0 B) of upstream origin of tenant acme discarded\n");
    let said = cli(&scene, "queue purge --tenant acme origin");
    assert!(
        said.starts_with("5 records (") && said.ends_with(" of upstream origin of tenant acme discarded\n"),
        "{said}"
    );
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    cli(&scene, "queue resume --tenant acme origin");
    scene.origin.start_again().unwrap();
    let last = queue_live(&scene);
    assert_eq!(last, 200);
    for location in &locations {
        assert_eq!(receipt(&scene, location)["reason"], "discarded");
    }
    assert_eq!((count(&scene, "kept"), count(&scene, "open")), (0, 0));
    let log = scene.origin.requests();
    assert!(deliveries(&log).is_empty());
    let rows = ["operator queue.pause 0", "operator queue.purge 5", "operator queue.resume 0"];
    assert_eq!(audit(&scene.admin), rows);
}

/// The status of a request that goes straight to the origin.
fn queue_live(scene: &Scene) -> u16 {
    scene.send(Request::get("/live")).unwrap().status
}

#[test]
fn a_tenant_has_hands_on_its_own_queue_and_on_no_other() {
    let scene = outage();
    let globex = scene.admin.create_tenant("globex", &["globex.test"], &["127.0.0.0/8"]).unwrap();
    let (acme, globex) = (scene.admin.with_token(&scene.token), scene.admin.with_token(&globex));
    let location = queue(&scene, Request::post("/in", "body"));
    let id = id(&scene, &location);
    let nothing = json!(null);
    for path in [
        format!("{RECORDS}/{id}/discard"),
        format!("{RECORDS}/{id}/retry"),
        format!("{ORIGIN}/pause"),
        format!("{ORIGIN}/resume"),
        format!("{ORIGIN}/purge"),
    ] {
        assert_eq!(refused(globex.post(&path, &json!({}))), (403, "other-tenant".into()), "{path}");
    }
    for path in [RECORDS.to_owned(), format!("{RECORDS}/{id}"), "/v1/audit?tenant=acme".into()] {
        assert_eq!(refused(globex.get(&path)), (403, "other-tenant".into()), "{path}");
    }
    // By its own path it finds nothing of it.
    let own = format!("/v1/tenants/globex/queue/records/{id}");
    assert_eq!(refused(globex.get(&own)), (404, "unknown-record".into()));
    assert_eq!(refused(globex.post(&format!("{own}/discard"), &nothing)), (404, "unknown-record".into()));
    assert_eq!(globex.get("/v1/queue").unwrap(), json!({ "upstreams": [] }));
    assert_eq!(audit(&scene.admin), [] as [String; 0]);

    assert_eq!(acme.get("/v1/queue").unwrap()["upstreams"][0]["depth"], 1);
    acme.post(&format!("{ORIGIN}/pause"), &nothing).unwrap();
    wait(PATIENCE, || count(&scene, "in_flight"), |flying| *flying == 0);
    let discarded = acme.post(&format!("{RECORDS}/{id}/discard"), &nothing).unwrap();
    assert_eq!((&discarded["reason"], &discarded["request"]), (&json!("discarded"), &Value::Null));
    assert_eq!(audit(&acme), ["tenant/acme queue.pause 0", "tenant/acme queue.discard 1"]);
}

#[test]
fn nothing_secret_is_in_anything_that_is_shown() {
    let scene = queueing(json!({ "mode": "on-failure", "credentials": "strip" }));
    let mut scene = scene;
    scene.origin.stop();
    let secrets = ["hunter2", "c00kie", "qu3ry", "ap1key", "b0dy"];
    let request = Request::post("/in?token=qu3ry", "b0dy")
        .header("Authorization", "Bearer hunter2")
        .header("Cookie", "session=c00kie")
        .header("X-Api-Key", "ap1key");
    let location = queue(&scene, request);
    let of_receipt = location.rsplit_once('.').unwrap().1.to_owned();
    let id = id(&scene, &location);
    let mut told = vec![
        cli(&scene, "queue status"),
        cli(&scene, "queue list --tenant acme"),
        cli(&scene, "queue list --tenant acme --json"),
        cli(&scene, &format!("queue show --tenant acme {id}")),
        cli(&scene, &format!("queue show --tenant acme {id} --json")),
        cli(&scene, "queue export --tenant acme"),
    ];
    let line: Value = serde_json::from_str(&told[5]).unwrap();
    assert_eq!((&line["path"], &line["request"]["body_bytes"]), (&json!("/in"), &json!(4)));
    assert!(told[3].to_lowercase().contains("x-api-key: (6 bytes)"), "{}", told[3]);
    wait(PATIENCE, || cancel(&scene, &location), |answer| answer.status == 200);
    told.extend([cli(&scene, "audit"), cli(&scene, "audit --json")]);
    let exported = cli(&scene, "queue export --tenant acme origin --state dead");
    let line: Value = serde_json::from_str(&exported).unwrap();
    assert_eq!(
        (&line["version"], &line["id"], &line["reason"]),
        (&json!(1), &json!(id), &json!("cancelled"))
    );
    told.push(exported);
    assert_eq!(cli(&scene, "queue export --tenant acme --state queued"), "");
    for secret in secrets.iter().copied().chain([of_receipt.as_str()]) {
        for text in &told {
            assert!(!text.contains(secret), "{secret} is in {text}");
        }
    }
    scene.node.sigterm().unwrap();
    scene.node.wait_exit(PATIENCE).unwrap();
    assert_eq!(files_with(scene.node.folder(), &of_receipt), [] as [String; 0]);
}

/// What `beamline queue export --bodies` writes: each record with its body, none where it is null.
fn exported(scene: &Scene, more: &str) -> Vec<(Value, Option<Vec<u8>>)> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = cli(scene, &format!("queue export --tenant acme --bodies{more}"));
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .map(|line| {
            assert_eq!(line["version"], 1);
            let body = line["body"].as_str().map(|body| STANDARD.decode(body).unwrap());
            assert_eq!(body.is_none(), line["body"].is_null(), "{line}");
            (line, body)
        })
        .collect()
}

#[test]
fn an_export_with_bodies_has_each_of_them_whole_and_is_in_the_audit() {
    let scene = outage();
    // In the row, in a file, in a file of many pieces, and none.
    let binary = |size: u32| (0..size).map(|n| (n.wrapping_mul(31) % 256) as u8).collect::<Vec<u8>>();
    let bodies = [b"small".to_vec(), binary(40_001), binary(700_000), Vec::new()];
    let locations: Vec<_> =
        bodies.iter().map(|body| queue(&scene, Request::post("/in?token=s3cret", body.clone()))).collect();
    assert_eq!(crate::body_files(&scene), 2);
    let found = exported(&scene, "");
    assert_eq!(found.iter().map(|(_, body)| body.clone().unwrap()).collect::<Vec<_>>(), bodies);
    for ((line, body), location) in found.iter().zip(&locations) {
        assert_eq!(line["id"].as_str().unwrap(), id(&scene, location));
        assert_eq!(line["request"]["body_bytes"], body.as_ref().unwrap().len());
        assert!(!line.to_string().contains("s3cret"), "{line}");
    }
    assert_eq!(audit(&scene.admin), ["operator queue.export 4"]);

    // What is erased is told as such, and is not counted.
    let record = id(&scene, &locations[2]);
    // It may be the one that is being tried just now.
    let discard = format!("queue discard --tenant acme {record}");
    wait(PATIENCE, || cli_ends(&scene, &discard).0, |code| *code == 0);
    let found = exported(&scene, " origin");
    assert_eq!(found.iter().filter(|(_, body)| body.is_none()).count(), 1);
    let (erased, _) = found.iter().find(|(_, body)| body.is_none()).unwrap();
    assert_eq!((erased["id"].as_str(), &erased["request"]), (Some(record.as_str()), &Value::Null));
    let told = audit(&scene.admin);
    assert_eq!(told[1..], ["operator queue.discard 1", "operator queue.export 3"]);

    // Without bodies nothing of it is noted, and there is none.
    let plain = cli(&scene, "queue export --tenant acme");
    assert!(plain.lines().count() == 4 && !plain.contains("\"body\""), "{plain}");
    assert_eq!(audit(&scene.admin).len(), 3);
    let dead = exported(&scene, " --state dead");
    assert_eq!(dead.len(), 1);
}

#[test]
fn bodies_are_a_tenants_own_and_the_audit_says_who_read_them() {
    let scene = outage();
    queue(&scene, Request::post("/in", "an order"));
    let other = scene.admin.create_tenant("globex", &["globex.test"], &[]).unwrap();
    let path = "/v1/tenants/acme/queue/bodies";
    assert_eq!(refused(scene.admin.with_token(&other).get(path)), (403, "other-tenant".into()));
    assert_eq!(refused(scene.admin.get(&format!("{path}?limit=1"))), (422, "invalid-request".into()));
    assert_eq!(refused(scene.admin.get("/v1/tenants/nobody/queue/bodies")), (404, "unknown-tenant".into()));
    assert_eq!(audit(&scene.admin), [] as [String; 0]);
    // One line is one document.
    let line = scene.admin.get(path).unwrap();
    assert_eq!(line["body"], "YW4gb3JkZXI=");
    assert_eq!(audit(&scene.admin), ["operator queue.export 1"]);
}
