//! What becomes of the keys and values that a tenant's filters store: where its manifest has them durable they are brought back
//! before its first request, and kept from then on.

use std::time::Duration;

use beamline_model::{KvSpec, TenantName};
use beamline_store::KvRecord;
use serde_json::json;

use super::{Control, Inner};
use crate::{ControlError, runtime::Prepared};

impl Control {
    /// Stores what filters have stored durably until now; whether that could be done in time.
    pub async fn store_keys(&self, within: Duration) -> bool {
        self.inner.keeper.flush(within).await
    }

    /// Whether what filters store durably is stored: false from a failure until it works again.
    pub fn can_store_keys(&self) -> bool {
        !self.inner.keeper.is_failing()
    }
}

impl Inner {
    /// What is to be brought back before `prepared` serves; nothing where it is here already, or is not to be durable.
    pub(super) async fn stored_keys(&self, prepared: &Prepared) -> Result<Vec<KvRecord>, ControlError> {
        let durable = prepared.kv.is_some_and(|kv| kv.durable);
        if !durable || prepared.state().is_settled() {
            return Ok(Vec::new());
        }
        let name = prepared.name().clone();
        self.store.call(move |s| s.kv(&name)).await
    }

    /// Has a tenant's keys kept, or no more, as what is about to serve it says. `stored` is to be brought back.
    pub(super) fn keep_keys(&self, prepared: &Prepared, stored: Vec<KvRecord>) {
        // Of a manifest that cannot be read nobody knows: what is stored stays for one that can.
        let Some(KvSpec { durable }) = prepared.kv else { return };
        let (tenant, state) = (prepared.name(), prepared.state());
        let was_settled = state.settle();
        match (durable, state.kept()) {
            (true, Some(_)) => {}
            // Stored for an earlier manifest: by a node that ended too soon to erase it, or that could not read a later one.
            (false, None) if !was_settled => self.keeper.erase(tenant),
            (false, None) => {}
            (true, None) if was_settled => self.keeper.keep(tenant, &state.durable()),
            (true, None) => {
                let outcome = self.keeper.restore(tenant, &state.durable(), stored, prepared.limits());
                if outcome.dropped > 0 {
                    let fields = json!({
                        "tenant.id": tenant, "dropped": outcome.dropped, "restored": outcome.restored,
                    });
                    self.event("kv.dropped", fields);
                }
            }
            (false, Some(kv)) => {
                kv.end();
                self.keeper.erase(tenant);
            }
        }
    }

    /// Before a tenant is deleted: from the return on nothing of its keys is on its way to the store, where the next one of its
    /// name would find it.
    pub(super) async fn let_go_of_keys(&self, tenant: &TenantName) {
        let runtime = self.snapshots.load().by_name(tenant).cloned();
        if let Some(kv) = runtime.and_then(|runtime| runtime.chain.state().kept()) {
            kv.end();
        }
        self.keeper.forget(tenant).await;
    }
}
