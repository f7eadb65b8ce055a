//! `make demo`: what BeamLine does, told in chapters with real requests to a real node.
//!
//! Control-plane steps are commands of the real binary, shown as they are run; traffic is HTTP. Two origins and a
//! receiver of traces live in this process, so that they outlive the node's `kill -9`. Every chapter ends in claims
//! that are checked: one that does not hold ends the story with what was expected and what was found.

mod afterwards;
mod chapters;
mod interrupt;
mod manifest;
mod outcome;
mod printer;
mod settings;
mod stage;
mod trace_tree;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
pub use settings::Settings;

use self::{
    chapters::CHAPTERS,
    interrupt::{Interrupt, Interrupted},
    outcome::Missed,
    printer::Printer,
    stage::Stage,
};

/// A part of the story; what went wrong ends it.
type Told = Result<()>;

/// What a shell says of a program that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// Tells the story, then stays until Ctrl-C or, with `--once`, ends.
///
/// The code is 0 where every claim held, 130 where it was interrupted before its end, else 1.
pub fn tell(settings: Settings) -> ExitCode {
    let print = Printer::for_stdout();
    let began = Instant::now();
    let mut stage = match Interrupt::install().and_then(|interrupt| Stage::set(settings, print, interrupt)) {
        Ok(stage) => stage,
        Err(error) => {
            print.problem(&format!("the demo cannot start: {error:#}"));
            return ExitCode::FAILURE;
        }
    };
    print.title("BeamLine, told with real requests");
    for (i, chapter) in CHAPTERS.iter().enumerate() {
        print.chapter(i + 1, CHAPTERS.len(), chapter.title, chapter.shows);
        if let Err(error) = (chapter.tell)(&mut stage) {
            return failed(&stage, &format!("chapter {}, \"{}\"", i + 1, chapter.title), &error);
        }
    }
    let story = began.elapsed();
    let last = if stage.settings.once { afterwards::stop(&mut stage) } else { afterwards::stay(&mut stage) };
    match last {
        Ok(()) => {
            print.title(&format!(
                "All {} chapters came out as told, {} claims in {:.0?}",
                CHAPTERS.len(),
                stage.claims(),
                story
            ));
            ExitCode::SUCCESS
        }
        Err(error) => failed(&stage, "the end", &error),
    }
}

/// Says why the story ends here.
fn failed(stage: &Stage, place: &str, error: &anyhow::Error) -> ExitCode {
    let print = stage.print;
    if error.is::<Interrupted>() || stage.interrupt.count() > 0 {
        print.problem("interrupted: what the demo started is stopped now");
        return ExitCode::from(INTERRUPTED);
    }
    let missed = error.downcast_ref::<Missed>();
    print.failure(
        place,
        missed.map_or("its steps go through", |m| &m.claim),
        missed.map_or("no error", |m| &m.expected),
        &missed.map_or_else(|| format!("{error:#}"), |m| m.found.clone()),
    );
    print.quote(&stage.node.last_words());
    ExitCode::FAILURE
}
