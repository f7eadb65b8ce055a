//! The variants, and by how much each is dealt.

use beamline_sdk::field::{SentField, is_token};
use serde::Deserialize;

use crate::cookie::Cookie;

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) variants: Variants,
    #[serde(default)]
    pub(crate) cookie: Cookie,
    /// The field that tells the upstream which variant it is.
    pub(crate) header: Option<SentField>,
}

/// Variants of different names, at least one of which is dealt.
#[derive(Deserialize)]
#[serde(try_from = "Vec<Variant>")]
pub(crate) struct Variants(Vec<Variant>);

/// What a client can get.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Variant {
    pub(crate) name: String,
    /// Where its clients go; the next filter decides where there is none.
    pub(crate) upstream: Option<String>,
    /// Its share among new clients, in proportion to the others'. With 0 it keeps those that it has.
    #[serde(default = "one")]
    weight: u16,
}

const MAX_VARIANTS: usize = 32;
const MAX_NAME: usize = 64;

fn one() -> u16 {
    1
}

impl Variants {
    /// The variant of this name.
    pub(crate) fn named(&self, name: &[u8]) -> Option<&Variant> {
        self.0.iter().find(|variant| variant.name.as_bytes() == name)
    }

    /// All weights together; at least 1.
    pub(crate) fn sum(&self) -> u32 {
        self.0.iter().map(|variant| u32::from(variant.weight)).sum()
    }

    /// The variant that holds a point below [`sum`](Self::sum).
    pub(crate) fn at(&self, point: u32) -> &Variant {
        let mut end = 0;
        let holder = self.0.iter().find(|variant| {
            end += u32::from(variant.weight);
            point < end
        });
        holder.expect("the point is below the sum")
    }
}

impl TryFrom<Vec<Variant>> for Variants {
    type Error = &'static str;

    fn try_from(variants: Vec<Variant>) -> Result<Self, Self::Error> {
        if variants.len() > MAX_VARIANTS {
            return Err("expected at most 32");
        }
        let names = || variants.iter().map(|variant| variant.name.as_str());
        if names().any(|name| !is_token(name) || name.len() > MAX_NAME) {
            return Err("expected names of 1 to 64 letters, digits and !#$%&'*+-.^_`|~: the cookie has them");
        }
        if names().enumerate().any(|(place, name)| names().take(place).any(|earlier| earlier == name)) {
            return Err("expected different names, found one twice");
        }
        if variants.iter().all(|variant| variant.weight == 0) {
            return Err("expected at least one with a weight above 0");
        }
        Ok(Self(variants))
    }
}
