//! Who is asked in which order, and what is queued.

use beamline_sdk::{Method, field::FieldName};
use serde::{Deserialize, Deserializer, de::Error};

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The best first.
    pub(crate) upstreams: Names,
    /// Whether one that is ready goes before a better one that failed lately.
    #[serde(default)]
    pub(crate) prefer_ready: bool,
    pub(crate) enqueue: Option<Enqueue>,
    #[serde(default = "five")]
    pub(crate) retry_after_seconds: u32,
}

fn five() -> u32 {
    5
}

/// At least one name.
#[derive(Deserialize)]
#[serde(try_from = "Vec<String>")]
pub(crate) struct Names(Vec<String>);

/// The queue for when nobody is up.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Enqueue {
    pub(crate) upstream: String,
    #[serde(default = "changing", deserialize_with = "queueable")]
    methods: Vec<Method>,
    pub(crate) ordering_key_header: Option<FieldName>,
}

/// Those that a queue can take at all by default.
fn changing() -> Vec<Method> {
    ["POST", "PUT", "PATCH", "DELETE"].map(|name| name.parse().expect("a method")).into()
}

/// Methods that a queue takes.
fn queueable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Method>, D::Error> {
    let methods = Vec::<Method>::deserialize(deserializer)?;
    if methods.iter().any(|method| ["GET", "HEAD", "CONNECT"].contains(&&**method)) {
        return Err(D::Error::custom("expected none of GET, HEAD and CONNECT: they are never queued"));
    }
    Ok(methods)
}

impl Enqueue {
    /// Whether requests with this method are queued.
    pub(crate) fn takes(&self, method: &str) -> bool {
        self.methods.iter().any(|known| **known == *method)
    }
}

impl<'a> IntoIterator for &'a Names {
    type Item = &'a String;
    type IntoIter = std::slice::Iter<'a, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl TryFrom<Vec<String>> for Names {
    type Error = &'static str;

    fn try_from(names: Vec<String>) -> Result<Self, Self::Error> {
        if (1..=16).contains(&names.len()) { Ok(Self(names)) } else { Err("expected 1 to 16 names") }
    }
}
