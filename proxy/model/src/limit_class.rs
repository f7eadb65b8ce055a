//! Limit classes: what the operator lets a tenant's manifests and modules ask for at most.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ByteSize, Duration, FilterLimits};

/// Which ceilings hold for a tenant. Part of its grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LimitClass {
    /// Modules of compiled languages: the default.
    #[default]
    Small,
    /// Modules that bring a language's engine along, such as JavaScript's.
    Large,
}

/// A name that is no limit class.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no limit class: expected small or large")]
pub struct InvalidLimitClass(String);

impl LimitClass {
    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// Whether it is the one that a grant has by default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for LimitClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LimitClass {
    type Err = InvalidLimitClass;

    fn from_str(text: &str) -> Result<Self, InvalidLimitClass> {
        [Self::Small, Self::Large]
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| InvalidLimitClass(text.chars().take(40).collect()))
    }
}

/// The ceilings of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// What a manifest's `[limits]` may ask for at most. Default: what any manifest may ask for.
    pub filter: FilterLimits,
    /// What a module may be and cost when it is uploaded.
    pub module: ModuleLimits,
}

/// What a module may be, and what compiling it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleLimits {
    /// Bytes of an uploaded module.
    pub size: ByteSize,
    /// CPU time of its compilation; it may take twice as long in all.
    pub compile_cpu: Duration,
    /// Address space of its compilation.
    pub compile_memory: ByteSize,
}

/// The largest module that any class can allow.
pub const MAX_MODULE: ByteSize = ByteSize::mib(64);

/// A limit that a manifest sets beyond its ceiling.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "limits.{key} = {wanted} is beyond the {ceiling} that the operator lets tenants of the limit class {class} ask for: ask for less, or the operator for another class"
)]
pub struct BeyondCeiling {
    key: &'static str,
    wanted: String,
    ceiling: String,
    class: LimitClass,
}

impl Ceilings {
    /// The defaults of a class.
    pub const fn of(class: LimitClass) -> Self {
        Self {
            filter: FilterLimits::CEILING,
            module: match class {
                LimitClass::Small => ModuleLimits {
                    size: ByteSize::mib(4),
                    compile_cpu: Duration::secs(20),
                    compile_memory: ByteSize::mib(2048),
                },
                LimitClass::Large => ModuleLimits {
                    size: ByteSize::mib(32),
                    compile_cpu: Duration::secs(120),
                    compile_memory: ByteSize::mib(4096),
                },
            },
        }
    }
}

/// The ceilings of every class, as the operator set them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitClasses {
    /// Of [`LimitClass::Small`].
    pub small: Ceilings,
    /// Of [`LimitClass::Large`].
    pub large: Ceilings,
}

impl Default for LimitClasses {
    fn default() -> Self {
        Self { small: Ceilings::of(LimitClass::Small), large: Ceilings::of(LimitClass::Large) }
    }
}

impl LimitClasses {
    /// Holds a manifest's limits against its tenant's class.
    ///
    /// # Errors
    /// The first that is beyond its ceiling. Defaults are not: what the ceiling leaves of them holds ([`FilterLimits::within`]).
    pub fn permit(&self, class: LimitClass, limits: &FilterLimits) -> Result<(), BeyondCeiling> {
        match limits.first_asked_beyond(&self.of(class).filter) {
            None => Ok(()),
            Some((key, wanted, ceiling)) => Err(BeyondCeiling { key, wanted, ceiling, class }),
        }
    }

    /// The ceilings of one class.
    pub const fn of(&self, class: LimitClass) -> &Ceilings {
        match class {
            LimitClass::Small => &self.small,
            LimitClass::Large => &self.large,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_read_as_it_is_written() {
        for class in [LimitClass::Small, LimitClass::Large] {
            assert_eq!(class.to_string().parse(), Ok(class));
            assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
        }
        assert!(LimitClass::Small.is_default() && !LimitClass::Large.is_default());
        let error = "huge".parse::<LimitClass>().unwrap_err();
        assert_eq!(error.to_string(), "\"huge\" is no limit class: expected small or large");
    }

    #[test]
    fn a_ceiling_refuses_what_is_asked_for_and_takes_its_part_of_defaults() {
        let mut classes = LimitClasses::default();
        let asked = FilterLimits { cpu: Duration::millis(40), ..Default::default() };
        assert_eq!(classes.permit(LimitClass::Small, &asked), Ok(()));
        assert_eq!(asked.within(&classes.small.filter), asked);
        classes.small.filter.cpu = Duration::millis(20);
        let refused = classes.permit(LimitClass::Small, &asked).unwrap_err().to_string();
        assert!(refused.starts_with("limits.cpu = 40ms is beyond the 20ms"), "{refused}");
        assert!(refused.contains("class small"), "{refused}");
        assert_eq!(classes.permit(LimitClass::Large, &asked), Ok(()));
        // 50 ms by default: nobody asked for it.
        assert_eq!(classes.permit(LimitClass::Small, &FilterLimits::default()), Ok(()));
        assert_eq!(FilterLimits::default().within(&classes.small.filter).cpu, Duration::millis(20));
    }
}
