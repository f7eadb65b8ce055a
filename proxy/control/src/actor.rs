//! On whose authority something is done, and what that permits.

use beamline_model::{TenantName, TokenScope};

use crate::ControlError;

/// Whether `actor` may see and change what is `tenant`'s.
pub(crate) fn permit(actor: &TokenScope, tenant: &TenantName) -> Result<(), ControlError> {
    match actor {
        TokenScope::Operator => Ok(()),
        TokenScope::Tenant(own) if own == tenant => Ok(()),
        TokenScope::Tenant(own) => {
            Err(ControlError::OtherTenant { token: own.clone(), wanted: tenant.clone() })
        }
    }
}

/// Whether `actor` may do what is the operator's alone.
pub(crate) fn permit_operator(actor: &TokenScope, wanted: &'static str) -> Result<(), ControlError> {
    match actor {
        TokenScope::Operator => Ok(()),
        TokenScope::Tenant(own) => Err(ControlError::OperatorOnly { token: own.clone(), wanted }),
    }
}

/// The actor as the audit and events name it: `operator`, or `tenant/` and its name.
pub fn named(actor: &TokenScope) -> String {
    match actor {
        TokenScope::Operator => "operator".to_owned(),
        TokenScope::Tenant(name) => format!("tenant/{name}"),
    }
}
