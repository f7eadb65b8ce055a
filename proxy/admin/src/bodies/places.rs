//! Places for exports: few, since each holds a page of heads, a piece of a body and a file.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beamline_model::TokenScope;

/// Exports that may run at once, of all callers.
const AT_ONCE: usize = 4;
/// Those of them that are not the operator's: one place is kept for it, whatever tenants do.
const OF_TENANTS: usize = AT_ONCE - 1;

/// Who exports. A lock, since a place is given back wherever its export is dropped; it is held for a look at a few entries.
#[derive(Default)]
pub(crate) struct Places(Mutex<Vec<TokenScope>>);

/// The right to run one export, until it is dropped.
pub(super) struct Place {
    of: Arc<Places>,
    whose: TokenScope,
}

/// Why there is no place.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The tenant has the one that it may have.
    ByItself,
    /// Others have them.
    ByOthers,
}

impl Taken {
    /// For whom is refused.
    pub(super) const fn detail(&self) -> &'static str {
        match self {
            Self::ByItself => {
                "expected no other export with bodies by this tenant's token, found one that runs: try again when it is done"
            }
            Self::ByOthers => {
                "expected a place for an export with bodies, found as many running as may at once: try again when one is done"
            }
        }
    }
}

impl Places {
    /// A place for whom this token speaks for.
    pub(super) fn take(self: &Arc<Self>, whose: &TokenScope) -> Result<Place, Taken> {
        let mut running = self.running();
        let is_tenants = *whose != TokenScope::Operator;
        if is_tenants && running.contains(whose) {
            return Err(Taken::ByItself);
        }
        let tenants = running.iter().filter(|of| **of != TokenScope::Operator).count();
        if running.len() >= AT_ONCE || (is_tenants && tenants >= OF_TENANTS) {
            return Err(Taken::ByOthers);
        }
        running.push(whose.clone());
        Ok(Place { of: Arc::clone(self), whose: whose.clone() })
    }

    fn running(&self) -> MutexGuard<'_, Vec<TokenScope>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut running = self.of.running();
        if let Some(at) = running.iter().position(|of| *of == self.whose) {
            running.swap_remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TokenScope {
        TokenScope::Tenant(name.parse().unwrap())
    }

    fn taken(result: Result<Place, Taken>) -> Taken {
        result.err().expect("no place is left")
    }

    #[test]
    fn a_tenant_has_one_place_and_tenants_never_have_all() {
        let places = Arc::<Places>::default();
        let acme = places.take(&tenant("acme")).unwrap();
        assert_eq!(taken(places.take(&tenant("acme"))), Taken::ByItself);
        let _others = ["globex", "initech"].map(|name| places.take(&tenant(name)).unwrap());
        assert_eq!(taken(places.take(&tenant("umbrella"))), Taken::ByOthers);
        let _operator = places.take(&TokenScope::Operator).unwrap();
        assert_eq!(taken(places.take(&TokenScope::Operator)), Taken::ByOthers);
        drop(acme);
        let _again = places.take(&tenant("acme")).unwrap();
    }

    #[test]
    fn the_operator_may_have_all_that_nobody_else_has() {
        let places = Arc::<Places>::default();
        let mut all: Vec<_> = (0..AT_ONCE).map(|_| places.take(&TokenScope::Operator).unwrap()).collect();
        assert_eq!(taken(places.take(&TokenScope::Operator)), Taken::ByOthers);
        assert_eq!(taken(places.take(&tenant("acme"))), Taken::ByOthers);
        all.pop();
        let _acme = places.take(&tenant("acme")).unwrap();
    }
}
