//! Whose module is compiled next: each class has a turn, and each tenant one place in it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use beamline_model::{LimitClass, TenantName};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

/// Gives turns at compiling, first come first served among tenants. A tenant that has many modules to compile waits
/// for its own before it stands in line again: what one tenant brings keeps another waiting for one compilation of its.
#[derive(Default)]
pub(crate) struct Turns {
    small: Arc<Turn<()>>,
    large: Arc<Turn<()>>,
    // Control plane only, held for a look-up.
    tenants: Mutex<HashMap<TenantName, Weak<Turn<()>>>>,
}

/// A turn, until it is dropped.
pub(crate) struct Taken {
    // In this order: who is next in the class may begin before the tenant's own next one stands in line.
    _class: OwnedMutexGuard<()>,
    _tenant: OwnedMutexGuard<()>,
}

impl Turns {
    /// Waits for a turn. Cancel safe: who goes away loses its place.
    pub(crate) async fn take(&self, tenant: &TenantName, class: LimitClass) -> Taken {
        let own = self.of(tenant).lock_owned().await;
        let class = match class {
            LimitClass::Small => &self.small,
            LimitClass::Large => &self.large,
        };
        Taken { _class: Arc::clone(class).lock_owned().await, _tenant: own }
    }

    fn of(&self, tenant: &TenantName) -> Arc<Turn<()>> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = tenants.get(tenant).and_then(Weak::upgrade) {
            return turn;
        }
        tenants.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::<Turn<()>>::default();
        tenants.insert(tenant.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{
        sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        time::{sleep, timeout},
    };

    use super::*;

    /// Takes a turn for a tenant, tells of it, and has it for a second.
    fn one(
        turns: &Arc<Turns>,
        tenant: &'static str,
        class: LimitClass,
        tell: &UnboundedSender<&'static str>,
    ) {
        let (turns, tell) = (Arc::clone(turns), tell.clone());
        tokio::spawn(async move {
            let _turn = turns.take(&tenant.parse().unwrap(), class).await;
            tell.send(tenant).unwrap();
            sleep(Duration::from_secs(1)).await;
        });
    }

    async fn order(mut told: UnboundedReceiver<&'static str>, n: usize) -> Vec<&'static str> {
        let mut order = Vec::new();
        for _ in 0..n {
            order.push(timeout(Duration::from_secs(60), told.recv()).await.unwrap().unwrap());
        }
        order
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_with_many_modules_lets_others_in_between() {
        let (turns, (tell, told)) = (Arc::<Turns>::default(), unbounded_channel());
        for _ in 0..3 {
            one(&turns, "many", LimitClass::Small, &tell);
        }
        sleep(Duration::from_millis(1)).await;
        one(&turns, "few", LimitClass::Small, &tell);
        assert_eq!(order(told, 4).await, ["many", "few", "many", "many"]);
        assert!(turns.tenants.lock().unwrap().len() <= 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_take_long_keeps_no_small_one_waiting() {
        let (turns, (tell, told)) = (Arc::<Turns>::default(), unbounded_channel());
        one(&turns, "engine", LimitClass::Large, &tell);
        one(&turns, "another", LimitClass::Large, &tell);
        sleep(Duration::from_millis(1)).await;
        one(&turns, "small", LimitClass::Small, &tell);
        assert_eq!(order(told, 3).await, ["engine", "small", "another"]);
    }
}
