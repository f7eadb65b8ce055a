//! A filter answers by itself.

use super::Chapter;
use crate::demo::{
    Told,
    stage::{ACME, Ask, Stage},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A filter answers by itself",
    shows: "`maintenance` answers in place of the origin, which sees nothing of it. A rollback takes effect at once.",
    tell,
};

fn tell(stage: &mut Stage) -> Told {
    stage.apply(&ACME, &stage.example(&ACME, "maintenance")?, "acme-maintenance.toml")?;
    let seen = |stage: &Stage| stage.origins.iter().map(|origin| origin.count()).sum::<u64>();
    let before = seen(stage);
    let closed = stage.ask(&Ask::get(&ACME, "/"))?;
    stage.print.detail(closed.text().trim());
    let reached = seen(stage) - before;
    stage.claim(
        "the filter answered, and no origin was asked",
        closed.status == 503 && closed.header("x-origin").is_none() && reached == 0,
        "503 and 0 requests at the origins",
        format!("{} and {reached}", closed.status),
    )?;
    stage.roll_back(&ACME, Some("1"))?;
    let open = stage.ask(&Ask::get(&ACME, "/"))?;
    stage.claim("after the rollback the origin answers again", open.status == 200, 200, open.status)
}
