//! What is replaced, and in which responses.

use serde::Deserialize;

use crate::{media::MediaRange, rules::Rules};

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) rules: Rules,
    #[serde(default = "texts")]
    pub(crate) content_types: Vec<MediaRange>,
}

fn texts() -> Vec<MediaRange> {
    ["text/*", "application/json", "application/javascript", "application/xml", "application/xhtml+xml"]
        .map(|text| MediaRange::try_from(text.to_owned()).expect("a media type"))
        .into()
}
