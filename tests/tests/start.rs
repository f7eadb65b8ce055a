//! The start of a node: the operator's token, what others can read, the configuration and its errors, `--help`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use beamline_tests::{
    beamline::{Beamline, Options, binary},
    client::Request,
    ports::Port,
    scene::{PATIENCE, Scene, TENANT},
    tools,
};

/// Runs `beamline` with these arguments, which must not need a minute.
fn run(arguments: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(binary().unwrap());
    tools::run(command.args(arguments).current_dir(folder), Duration::from_secs(60)).unwrap()
}

/// Every file and folder below this one.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for item in fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn contains(file: &Path, secret: &str) -> bool {
    memchr::memmem::find(&fs::read(file).unwrap(), secret.as_bytes()).is_some()
}

// ---- the operator's token and the data folder ----

#[test]
fn the_first_start_makes_a_private_folder_and_writes_the_operators_token_for_its_owner_alone() {
    let mut node = Beamline::prepare(Options::default()).unwrap();
    fs::remove_dir(node.data_dir()).unwrap();

    node.launch().unwrap();

    let token = node.data_dir().join("operator-token");
    assert_eq!((mode(&node.data_dir()), mode(&token)), (0o700, 0o600));
    assert_eq!(fs::metadata(&token).unwrap().uid(), rustix::process::geteuid().as_raw());
    let text = fs::read_to_string(&token).unwrap();
    assert_eq!(text.lines().count(), 1);
    assert!(text.starts_with("blo_") && text.trim().len() >= 36, "128 bits or more: {text}");
    assert!(node.admin().unwrap().get("/v1/status").is_ok());
}

#[test]
fn in_a_folder_that_others_can_read_nothing_of_the_nodes_can_be_read_by_them() {
    let mut node = Beamline::prepare(Options::default()).unwrap();
    fs::set_permissions(node.data_dir(), fs::Permissions::from_mode(0o755)).unwrap();

    node.launch().unwrap();

    for item in fs::read_dir(node.data_dir()).unwrap() {
        let path = item.unwrap().path();
        assert_eq!(mode(&path) & 0o077, 0, "{} has mode {:o}", path.display(), mode(&path));
    }
}

#[test]
fn no_token_is_kept_in_clear_but_the_operators_in_its_file() {
    let mut scene = Scene::start().unwrap();
    let file = scene.node.data_dir().join("operator-token");
    let operators = fs::read_to_string(&file).unwrap().trim().to_owned();
    assert!(contains(&file, &operators));
    // Both are used, wrongly too, before anybody looks.
    assert!(scene.admin.with_token(&scene.token).show(TENANT).is_ok());
    assert!(scene.admin.with_token(&scene.token).get("/v1/status").is_err());
    let asked = Request::get("/").host("acme.test").header("authorization", &format!("Bearer {operators}"));
    asked.send(scene.node.address()).unwrap();

    // Once with the database's journal as it stands, once as a clean end leaves it.
    for running in [true, false] {
        if !running {
            scene.node.signal(rustix::process::Signal::TERM).unwrap();
            scene.node.signal(rustix::process::Signal::TERM).unwrap();
            scene.node.wait_exit(PATIENCE).unwrap();
        }
        let files = below(scene.node.folder()).into_iter().filter(|path| path.is_file() && *path != file);
        for path in files {
            for (whose, token) in [("the operator's", &operators), ("the tenant's", &scene.token)] {
                assert!(!contains(&path, token), "{whose} token is in {}", path.display());
                let secret = &token["blo_".len()..];
                assert!(!contains(&path, secret), "{whose} token is in {} without prefix", path.display());
            }
        }
    }
}

#[test]
fn a_second_start_keeps_the_token_and_does_not_bring_a_removed_file_back() {
    let mut node = Beamline::start(Options::default()).unwrap();
    let file = node.data_dir().join("operator-token");
    let (first, admin) = (fs::read_to_string(&file).unwrap(), node.admin().unwrap());

    node.kill_nine().unwrap();
    node.launch().unwrap();

    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    assert!(admin.get("/v1/status").is_ok());
    // Only its hash is kept: an operator who moved it to a safer place finds it valid, and not lying around again.
    fs::remove_file(&file).unwrap();
    node.kill_nine().unwrap();
    node.launch().unwrap();
    assert!(!file.exists());
    assert!(admin.get("/v1/status").is_ok());
}

#[test]
fn a_node_does_not_take_the_queue_of_one_that_does_not_answer() {
    let node = Beamline::start(Options::default()).unwrap();
    // It lives and holds its locks, but lets nobody in.
    node.signal(rustix::process::Signal::STOP).unwrap();
    let other = Port::reserve().unwrap();
    let (listen, data) = (other.address().to_string(), node.data_dir());

    let refused = run(
        &[
            "serve",
            "--listen",
            &listen,
            "--admin",
            "127.0.0.1:0",
            "--log",
            "off",
            "--data-dir",
            data.to_str().unwrap(),
        ],
        node.folder(),
    );

    node.signal(rustix::process::Signal::CONT).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains(data.to_str().unwrap()) && said.contains("does not share it"), "{said}");
    assert!(node.admin().unwrap().get("/v1/status").is_ok());
}

// ---- the configuration ----

/// What a start with this file prints; it must not succeed.
fn refused_by(file: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("node.toml"), file).unwrap();
    let output = run(&["serve", "--config", "node.toml", "--data-dir", "data"], folder.path());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{file}: {said}");
    assert!(
        !folder.path().join("data").exists(),
        "{file}: nothing is made before the configuration is right"
    );
    said
}

/// Checks that each of these errors names the file with the line, the key, and what was expected.
fn each_names_its_place(errors: &[(&str, u32, &str, &str)]) {
    let mut wrong = Vec::new();
    for (file, line, key, expected) in errors {
        let said = refused_by(file);
        let place = format!("node.toml:{line}");
        for part in [place.as_str(), key, expected] {
            if !said.contains(part) {
                wrong.push(format!("{file:?}: expected {part:?} in the error; found {said:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_key_that_is_unknown_is_an_error_with_file_line_and_key() {
    each_names_its_place(&[
        ("workers = 2\nwrokers = 2\n", 2, "wrokers", "workers"),
        ("[drain]\nlame_duck = \"1s\"\nlameduck = \"1s\"\n", 3, "lameduck", "lame_duck"),
        ("\n\n[drian]\nlame_duck = \"1s\"\n", 3, "drian", "drain"),
        ("[queue]\nmax_record = 1\n", 2, "max_record", "max_records"),
        ("[filters]\npool = 1\n", 2, "pool", "pool_instances"),
    ]);
}

#[test]
fn a_value_of_the_wrong_form_is_an_error_with_file_line_and_key() {
    each_names_its_place(&[
        // What stands there is not repeated: it can be a password that was put in the wrong place.
        ("workers = \"two\"\n", 1, "workers", "invalid type: string"),
        ("workers = 2\n[drain]\nlame_duck = \"soon\"\n", 3, "lame_duck", "expected a whole number"),
        ("listen = [\"nowhere\"]\n", 1, "listen", "invalid socket address"),
        ("listen = \"127.0.0.1:1\"\n", 1, "listen", "expected a"),
        ("\nadmin = \"127.0.0.1\"\n", 2, "admin", "invalid socket address"),
        ("[queue]\nmax_bytes = \"4 apples\"\n", 2, "max_bytes", "expected a whole number"),
    ]);
}

#[test]
fn a_value_out_of_its_range_is_an_error_with_file_line_and_key() {
    each_names_its_place(&[
        ("\nworkers = 0\n", 2, "workers", "1 to 1024"),
        ("[filters]\npool_instances = 1\n", 2, "pool_instances", "16 to 16384"),
        ("[filters]\n\nslow_lane_threads = 65\n", 3, "slow_lane_threads", "1 to 64"),
        ("sample_ratio = 2.0\n", 1, "sample_ratio", "0"),
        ("otlp_endpoint = \"ftp://x\"\n", 1, "otlp_endpoint", "http"),
    ]);
}

#[test]
fn a_wrong_flag_or_a_missing_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, named) in [
        (vec!["serve", "--config", "nowhere.toml"], "nowhere.toml"),
        (vec!["serve", "--workers", "0"], "workers"),
        (vec!["serve", "--lame-duck", "soon"], "--lame-duck"),
        (vec!["serve", "--listen", "nowhere"], "--listen"),
        (vec!["serve", "--lame-dukc", "1s"], "--lame-duck"),
        (vec!["serve", "--listen", "127.0.0.1:81", "--admin", "127.0.0.1:81"], "127.0.0.1:81"),
    ] {
        let output = run(&arguments, folder.path());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(named), "{arguments:?}: {said}");
    }
}

#[test]
fn flags_go_before_the_environment_and_the_environment_before_the_file() {
    let ports: Vec<_> = (0..3).map(|_| Port::reserve().unwrap()).collect();
    let [by_flag, by_environment, by_file] = [0, 1, 2].map(|n: usize| ports[n].address());
    let mut node = Beamline::prepare(Options::default()).unwrap();
    let file = node.folder().join("node.toml");
    // The harness names its own ports by flags; a further --listen adds to them.
    fs::write(&file, format!("listen = [\"{by_file}\"]\nsample_ratio = 0.5\n")).unwrap();
    let options = node.options_mut();
    options.arguments =
        ["--config", file.to_str().unwrap(), "--listen", &by_flag.to_string()].map(Into::into).into();
    options.environment = vec![("BEAMLINE_LISTEN".into(), by_environment.to_string().into())];

    node.launch().unwrap();

    let answers = |to| Request::get("/").send(to).is_ok();
    assert_eq!([by_flag, by_environment, by_file].map(answers), [true, false, false]);
    drop(node);

    let folder = tempfile::tempdir().unwrap();
    let (admin, config) = (Port::reserve().unwrap(), folder.path().join("node.toml"));
    fs::write(&config, format!("listen = [\"{by_file}\"]\nadmin = \"{}\"\nlog = \"off\"\n", admin.address()))
        .unwrap();
    let mut command = Command::new(binary().unwrap());
    command.args(["serve", "--data-dir", "data", "--config"]).arg(&config).current_dir(folder.path());
    command.env("BEAMLINE_LISTEN", by_environment.to_string());
    let _node = beamline_tests::process::Guarded(command.spawn().unwrap());
    let until = std::time::Instant::now() + PATIENCE;
    while !Request::get("/readyz").send(admin.address()).is_ok_and(|r| r.status == 200) {
        assert!(std::time::Instant::now() < until, "not ready on the admin address that the file names");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!([by_environment, by_file].map(answers), [true, false]);
}

// ---- the command line's own help ----

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn help_and_the_reference_page_list_the_same_flags_variables_and_defaults() {
    let page = include_str!("../../docs/reference/configuration.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .filter(|row: &Vec<&str>| row.len() == 5)
        .collect();
    assert!(rows.len() >= 10, "the page's table was not found");

    let output = run(&["serve", "--help"], Path::new("/"));
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    // Wrapped lines joined, one paragraph for each flag.
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");

    let mut wrong = Vec::new();
    let mut on_page: BTreeSet<String> = ["--config", "--help"].map(Into::into).into();
    for row in &rows {
        for flag in quoted(row[1]) {
            on_page.insert(flag.to_owned());
            let Some(at) = flat.find(&format!("{flag} <")) else {
                wrong.push(format!("{flag} is not in --help"));
                continue;
            };
            let about = &flat[at..];
            let about = &about[..about[2..].find(" --").map_or(about.len(), |end| end + 2)];
            for variable in quoted(row[2]) {
                if !about.contains(&format!("[env: {variable}=")) {
                    wrong.push(format!("{flag}: {variable} is not in {about:?}"));
                }
            }
            let default = row[3].trim_matches('`');
            if default != "none" && !about.contains(&format!("[default: {default}]")) {
                wrong.push(format!("{flag}: its default {default} is not in {about:?}"));
            }
        }
    }
    let in_help = help.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    for flag in in_help.map(|flag| flag.trim_end_matches(',').to_owned()) {
        if !on_page.contains(&flag) {
            wrong.push(format!("{flag} is in --help and not on the page"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
