//! A canary splits.

use std::{collections::BTreeMap, ops::RangeInclusive};

use anyhow::Result;

use super::Chapter;
use crate::demo::{
    Told,
    stage::{ACME, Ask, Stage},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A canary splits",
    shows: "What `router` leaves undecided comes to `canary`, the next filter of the chain: it gives one user in five\n\
            the other origin's page, and each user always the same.",
    tell,
};

const USERS: usize = 200;
/// A fifth of the users, give or take what a hash does to 200 of them.
const EXPECTED: RangeInclusive<usize> = 20..=60;

fn tell(stage: &mut Stage) -> Told {
    let [api, web] = stage.settings.origins().map(|port| format!("origin {port}"));
    let once = ask_all(stage)?;
    let count = |origin: &str| once.values().filter(|o| *o == origin).count();
    let (stable, canary) = (count(&web), count(&api));
    let counts = format!("{stable} from {web}, {canary} from {api}");
    stage.print.exchange(&format!("{USERS} × GET http://{}/  x-user: …", ACME.host), &counts);
    stage.claim(
        "about one user in five got the canary",
        EXPECTED.contains(&canary) && stable + canary == USERS,
        format!("{} to {} of {USERS} from {api}, the others from {web}", EXPECTED.start(), EXPECTED.end()),
        counts,
    )?;
    let moved = ask_all(stage)?.iter().filter(|(user, origin)| once.get(*user) != Some(origin)).count();
    stage.claim(
        "asked again, everybody got what they had before",
        moved == 0,
        "0 users moved",
        format!("{moved} moved"),
    )
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
