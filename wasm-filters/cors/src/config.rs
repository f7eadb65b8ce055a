//! Which origins may do what.

use beamline_sdk::{Method, field::FieldName};
use serde::Deserialize;

use crate::origin::OriginPattern;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Config {
    origins: Origins,
    pub(crate) methods: Vec<Method>,
    pub(crate) headers: Vec<FieldName>,
    pub(crate) expose: Vec<FieldName>,
    pub(crate) credentials: bool,
    pub(crate) max_age_seconds: u32,
}

/// Whose pages may read responses.
#[derive(Deserialize)]
#[serde(try_from = "Vec<String>")]
enum Origins {
    Any,
    These(Vec<OriginPattern>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    origins: Origins,
    #[serde(default = "simple_methods")]
    methods: Vec<Method>,
    #[serde(default)]
    headers: Vec<FieldName>,
    #[serde(default)]
    expose: Vec<FieldName>,
    #[serde(default)]
    credentials: bool,
    #[serde(default = "ten_minutes")]
    max_age_seconds: u32,
}

fn simple_methods() -> Vec<Method> {
    ["GET", "HEAD", "POST"].map(|name| name.parse().expect("a method")).into()
}

fn ten_minutes() -> u32 {
    600
}

impl Config {
    /// What `Access-Control-Allow-Origin` says to a page of this origin; none where it may not. `*` stands also where no origin was
    /// named: who keeps that response may hand it to a page of any.
    pub(crate) fn allowed_origin<'a>(&self, origin: Option<&'a [u8]>) -> Option<&'a [u8]> {
        match &self.origins {
            Origins::Any => Some(b"*"),
            Origins::These(patterns) => {
                origin.filter(|origin| patterns.iter().any(|pattern| pattern.holds(origin)))
            }
        }
    }

    /// Whether responses differ by origin.
    pub(crate) fn varies(&self) -> bool {
        matches!(self.origins, Origins::These(_))
    }
}

impl TryFrom<Vec<String>> for Origins {
    type Error = String;

    fn try_from(origins: Vec<String>) -> Result<Self, String> {
        if origins == ["*"] {
            return Ok(Self::Any);
        }
        let patterns: Result<_, _> = origins.iter().map(|text| OriginPattern::parse(text)).collect();
        patterns.map(Self::These)
    }
}

impl TryFrom<Written> for Config {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        if written.credentials {
            if matches!(written.origins, Origins::Any) {
                return Err("origins: expected them by name where credentials are allowed, found *: \
                            every page of the Web could act as its reader");
            }
            if written.headers.iter().chain(&written.expose).any(|name| **name == *"*") {
                return Err("headers, expose: expected names where credentials are allowed, found *: \
                            to a browser it is a name like others then");
            }
        }
        Ok(Self {
            origins: written.origins,
            methods: written.methods,
            headers: written.headers,
            expose: written.expose,
            credentials: written.credentials,
            max_age_seconds: written.max_age_seconds,
        })
    }
}
