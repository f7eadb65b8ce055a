//! The binary as a program: what it says of itself, and that it says no in the right way.

use std::process::{Command, Output};

fn beamline(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_beamline")).args(arguments).output().expect("the binary runs")
}

#[test]
fn it_says_its_version() {
    let output = beamline(&["--version"]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim(),
        concat!("beamline ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_wrong_setting_is_named_and_nothing_is_started() {
    let output = beamline(&["serve", "--workers", "0", "--data-dir", "/nonexistent/x"]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("expected 1 to 1024; found 0"), "{text}");
}
