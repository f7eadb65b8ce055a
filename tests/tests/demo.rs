//! `make demo ONCE=1`: the story comes out as told, and one that does not says so and fails.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use beamline_tests::{guests, ports::Port, tools};

/// The story takes some 20 s of a quiet machine.
const STORY: Duration = Duration::from_secs(300);

/// Tells the story with the modules of this folder, on ports of its own.
fn tell(guests: &Path) -> Output {
    let ports: Vec<Port> = (0..5).map(|_| Port::reserve().unwrap()).collect();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.args(["--once", "--guests"]).arg(guests);
    demo.arg("--examples").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"));
    for (option, port) in ["--listen", "--admin", "--origin-1", "--origin-2", "--otlp"].iter().zip(&ports) {
        demo.arg(option).arg(port.number().to_string());
    }
    tools::run(&mut demo, STORY).unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_chapter_comes_out_as_told() {
    let told = tell(guests::path("router").parent().unwrap());
    let text = text(&told);
    assert!(told.status.success() && text.contains("chapters came out as told"), "{}\n{text}", told.status);
}

#[test]
fn a_story_that_does_not_come_out_says_what_was_expected_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    for module in fs::read_dir(guests::path("router").parent().unwrap()).unwrap() {
        let module = module.unwrap();
        fs::copy(module.path(), folder.path().join(module.file_name())).unwrap();
    }
    // A router that routes nothing.
    fs::copy(guests::existing("tiny").unwrap(), folder.path().join("router.wasm")).unwrap();
    let told = tell(folder.path());
    let text = text(&told);
    assert_eq!(told.status.code(), Some(1), "{text}");
    assert!(text.contains("expected") && text.contains("found"), "{text}");
}
