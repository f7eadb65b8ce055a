//! `make demo`: the story of BeamLine, told with real requests. See [`beamline_tests::demo`].

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    beamline_tests::demo::tell(beamline_tests::demo::Settings::parse())
}
