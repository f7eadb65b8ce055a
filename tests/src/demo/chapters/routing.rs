//! A filter's decision routes.

use super::Chapter;
use crate::demo::{
    Told,
    stage::{ACME, Ask, GLOBEX, Stage},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A filter's decision routes",
    shows: "Each request runs through its tenant's filters, each in a fresh sandbox. Here `router` chooses by path and\n\
            header; the tenant is found by host.",
    tell,
};

fn tell(stage: &mut Stage) -> Told {
    let [first, second] = stage.settings.origins().map(|port| format!("origin {port}"));
    let scenes = [
        (Ask::get(&ACME, "/"), &first),
        (Ask::get(&ACME, "/beta/cart"), &second),
        (Ask::get(&ACME, "/").header("x-beta", "yes"), &second),
        (Ask::get(&GLOBEX, "/"), &second),
    ];
    let mut found = Vec::new();
    for (ask, _) in &scenes {
        let response = stage.ask(ask)?;
        found.push(match response.header("x-origin") {
            Some(origin) if response.status == 200 => origin.to_owned(),
            _ => format!("status {}", response.status),
        });
    }
    let expected: Vec<_> = scenes.iter().map(|(_, origin)| origin.as_str()).collect();
    stage.claim(
        "every request went where the filter sent it",
        found == expected,
        expected.join(", "),
        found.join(", "),
    )
}
