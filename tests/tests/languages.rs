//! Filters in other languages than Rust, built by their own tools from what their registries have. Slow: `make languages`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use beamline_tests::{
    beamline::{self, Beamline, Options},
    client::Request,
    origin::Origin,
    tools,
};
use serde_json::{Value, json};

/// For what fetches packages, or compiles a language's engine.
const PATIENCE: Duration = Duration::from_secs(600);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Runs a program in a folder; it must succeed.
fn run(
    folder: &Path,
    program: impl AsRef<std::ffi::OsStr>,
    arguments: &[&str],
    variables: &[(&str, String)],
) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).envs(variables.iter().map(|(k, v)| (k, v)));
    let output = tools::run(&mut command, PATIENCE).unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&told));
}

/// The example of this language, and a copy of the interface, in a folder of their own.
fn example(language: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&repository().join("examples").join(language), folder.path());
    let wit = folder.path().join("wit");
    fs::create_dir(&wit).unwrap();
    copy(&repository().join("wit"), &wit);
    folder
}

/// Puts the built example to work for this tenant, and asks what each of them does. Gives the node.
fn decides_for_each_request_afresh(folder: &Path, tenant: &str) -> Beamline {
    let (web, beta) = (Origin::start("web").unwrap(), Origin::start("beta").unwrap());
    let manifest = folder.join("manifest.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let text = text.replace("127.0.0.1:9001", &web.address().to_string());
    fs::write(&manifest, text.replace("127.0.0.1:9002", &beta.address().to_string())).unwrap();

    let node = Beamline::start(Options { workers: 1, ..Options::default() }).unwrap();
    let host = format!("{tenant}.test");
    let grant = json!({
        "name": tenant,
        "hosts": [host],
        "upstream_ranges": ["127.0.0.0/8"],
        "limit_class": "large",
    });
    node.admin().unwrap().create_tenant_with(&grant).unwrap();
    let variables = [
        ("BEAMLINE_ADMIN", format!("http://{}", node.admin_address())),
        ("BEAMLINE_DATA_DIR", node.data_dir().display().to_string()),
    ];
    let beamline = beamline::binary().unwrap();
    run(folder, beamline, &["apply", "manifest.toml", "--tenant", tenant], &variables);

    let send = |request: Request| request.host(&host).send(node.address()).unwrap();
    let health = send(Request::get("/health"));
    assert_eq!((health.status, &*health.text()), (200, "well\n"));
    for _ in 0..3 {
        assert_eq!(send(Request::get("/")).status, 200);
        assert_eq!(send(Request::get("/").header("x-beta", "on")).status, 200);
    }
    assert_eq!((web.count(), beta.count()), (3, 3));
    for request in web.requests().iter().chain(&beta.requests()) {
        assert_eq!(request.headers.get("x-calls"), Some("1"), "what one request left, another one saw");
    }
    node
}

#[test]
#[ignore = "fetches packages from npm and compiles an engine for a minute: make languages"]
fn a_filter_in_javascript_decides_for_each_request_afresh() {
    tools::require(&["npm", "node"]).unwrap();
    let folder = example("javascript");
    run(folder.path(), "npm", &["install", "--no-audit", "--no-fund"], &[]);
    run(folder.path(), "npm", &["run", "build"], &[]);
    decides_for_each_request_afresh(folder.path(), "umbrella");
}

#[test]
#[ignore = "fetches packages from PyPI and compiles an interpreter for a minute: make languages"]
fn a_filter_in_python_decides_for_each_request_afresh_and_prints_into_the_log() {
    tools::require(&["python3"]).unwrap();
    let folder = example("python");
    run(folder.path(), "python3", &["-m", "venv", "venv"], &[]);
    run(folder.path(), "venv/bin/pip", &["install", "--quiet", "-r", "requirements.txt"], &[]);
    let build = ["-d", "wit", "-w", "request-filter", "componentize", "filter", "-o", "filter.wasm"];
    run(folder.path(), "venv/bin/componentize-py", &build, &[]);
    let node = decides_for_each_request_afresh(folder.path(), "hooli");
    let printed = |record: &Value| record["kind"] == "guest" && record["body"] == "asked whether it is well";
    node.wait_log(PATIENCE, |log| log.iter().any(printed)).unwrap();
}
