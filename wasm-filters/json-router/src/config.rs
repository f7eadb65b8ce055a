//! Which value decides, and how.

use serde::Deserialize;

use crate::{find::Found, pointer::Pointer, scalar::Scalar};

/// The filter's configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) pointer: Pointer,
    pub(crate) rules: Vec<Rule>,
    #[serde(default)]
    pub(crate) on_invalid: OnInvalid,
}

/// Where requests with some value go.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Rule {
    wanted: Wanted,
    pub(crate) upstream: String,
}

enum Wanted {
    Equals(Scalar),
    /// There, whatever it is; or not there.
    Present(bool),
}

/// What becomes of a body that is no JSON.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnInvalid {
    #[default]
    Refuse,
    Next,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    equals: Option<Scalar>,
    present: Option<bool>,
    upstream: String,
}

impl Rule {
    pub(crate) fn matches(&self, found: &Found) -> bool {
        match &self.wanted {
            Wanted::Equals(wanted) => matches!(found, Found::Scalar(scalar) if scalar == wanted),
            Wanted::Present(present) => (*found != Found::Nothing) == *present,
        }
    }
}

impl TryFrom<Written> for Rule {
    type Error = &'static str;

    fn try_from(rule: Written) -> Result<Self, Self::Error> {
        let wanted = match (rule.equals, rule.present) {
            (Some(scalar), None) => Wanted::Equals(scalar),
            (None, Some(present)) => Wanted::Present(present),
            _ => {
                return Err("expected equals or present, one of them");
            }
        };
        Ok(Self { wanted, upstream: rule.upstream })
    }
}
