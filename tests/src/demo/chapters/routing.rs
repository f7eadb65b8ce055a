//! A filter's decision routes.

use super::Chapter;
use crate::demo::{
    Told,
    stage::{ACME, Ask, Stage},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A filter's decision routes",
    shows: "A request runs through its tenant's filters, each in a fresh sandbox. Here `router` decides by the rules in\n\
            its configuration: by path, by header.",
    tell,
};

fn tell(stage: &mut Stage) -> Told {
    let [api, web] = stage.settings.origins().map(|port| format!("origin {port}"));
    let scenes = [
        (Ask::get(&ACME, "/api/orders?page=2"), &api),
        (Ask::get(&ACME, "/static/logo.svg"), &web),
        (Ask::get(&ACME, "/").header("x-beta", "on"), &api),
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
    )?;
    let asked = stage.origins[0].requests().first().map(|r| r.target.clone()).unwrap_or_default();
    stage.claim(
        format!("the rule took the prefix off: the origin was asked for {asked}"),
        asked == "/orders?page=2",
        "/orders?page=2",
        &asked,
    )
}
