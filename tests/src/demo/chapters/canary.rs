//! A canary splits.

use std::collections::BTreeMap;

use anyhow::Result;

use super::Chapter;
use crate::demo::{
    Told,
    stage::{ACME, Ask, Stage},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A canary splits",
    shows: "A second revision puts `canary` behind `router`: one user in five gets the next version, and always the same.",
    tell,
};

const USERS: usize = 200;
/// A fifth of the users, give or take what a hash does to 200 of them.
const EXPECTED: std::ops::RangeInclusive<usize> = 20..=60;

fn tell(stage: &mut Stage) -> Told {
    stage.apply(&ACME, &stage.example(&ACME, "canary")?, "acme-canary.toml")?;
    let [first, second] = stage.settings.origins().map(|port| format!("origin {port}"));
    let once = ask_all(stage)?;
    let count = |origin: &str| once.values().filter(|o| *o == origin).count();
    let (stable, next) = (count(&first), count(&second));
    stage.print.exchange(
        &format!("{USERS} × GET http://{}/  x-user: user-…", ACME.host),
        &format!("{stable} from {first}, {next} from {second}"),
    );
    stage.claim(
        "about one user in five gets the next version",
        EXPECTED.contains(&next) && stable + next == USERS,
        format!("{} to {} of {USERS} from {second}, the others from {first}", EXPECTED.start(), EXPECTED.end()),
        format!("{stable} from {first}, {next} from {second}"),
    )?;
    let moved = ask_all(stage)?.iter().filter(|(user, origin)| once.get(*user) != Some(origin)).count();
    stage.claim("asked again, everybody got the same version", moved == 0, "0 users moved", format!("{moved} moved"))
}

/// Who answers each user.
fn ask_all(stage: &Stage) -> Result<BTreeMap<usize, String>> {
    (0..USERS)
        .map(|user| {
            let ask = Ask::get(&ACME, "/").quiet_header("x-user", &format!("user-{user}"));
            let response = stage.send(&ask)?.expect(200)?;
            Ok((user, response.header("x-origin").unwrap_or_default().to_owned()))
        })
        .collect()
}
