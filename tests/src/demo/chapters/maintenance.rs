//! A filter answers by itself.

use super::Chapter;
use crate::demo::{
    Told,
    stage::{Ask, GLOBEX, Stage},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A filter answers by itself",
    shows: "globex is down for maintenance: its filter answers in place of the origin, but for health checks and for\n\
            staff who know the word.",
    tell,
};

/// The header by which staff gets through, as in globex's manifest.
const BYPASS: (&str, &str) = ("x-globex-staff", "let me in");

fn tell(stage: &mut Stage) -> Told {
    let site = &stage.origins[1];
    let before = site.count();
    let closed = stage.ask(&Ask::get(&GLOBEX, "/"))?;
    stage.print.detail(&format!("\"{}\"", closed.text().trim()));
    let reached = site.count() - before;
    let health = stage.ask(&Ask::get(&GLOBEX, "/health"))?;
    let staff = stage.ask(&Ask::get(&GLOBEX, "/").header(BYPASS.0, BYPASS.1))?;
    let leaked = site.requests().iter().any(|request| request.headers.get(BYPASS.0).is_some());
    stage.claim(
        "the filter answered, and the origin was not asked",
        closed.status == 503 && closed.header("x-origin").is_none() && reached == 0,
        "503 and 0 requests at the origin",
        format!("{} and {reached}", closed.status),
    )?;
    stage.claim(
        "health checks and staff got through; the word was taken off on the way",
        health.status == 200 && staff.status == 200 && !leaked,
        format!("200, 200, and no {} at the origin", BYPASS.0),
        format!("{}, {}, {}", health.status, staff.status, if leaked { "and the word" } else { "no word" }),
    )
}
