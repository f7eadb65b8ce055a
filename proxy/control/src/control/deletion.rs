//! The end of a tenant, and of an upstream, that requests may still wait for in the queue.
//!
//! A deletion is stored before anything else, so that it goes on after a restart. From then on the tenant takes no request and
//! no change; it is gone when the queue keeps nothing of it and nothing can come any more.

use std::{collections::BTreeSet, sync::Weak, time::Duration};

use beamline_model::{Manifest, TenantName, TokenScope, UpstreamName};
use beamline_queue::{LaneStatus, StateName};
use beamline_store::{Deletion, RevisionRecord, Stamp, StoreError, TenantRecord};
use serde_json::{Value, json};

use super::{Control, Inner, to_its_end};
use crate::{
    ControlError, DeletionView, UpstreamBacklog,
    actor::{named, permit_operator},
};

/// What was about to be accepted when the tenant stopped to accept shows in the queue within this time: from the look at the
/// snapshot to the reservation of room is no wait of any kind.
const SETTLE: Duration = Duration::from_secs(1);
/// How long a call waits for the deletion that it began; the rest is done without it.
const AT_ONCE: Duration = Duration::from_secs(5);
/// Between two looks of a call that waits.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Who discards when nobody waits for it any more: only the operator can have begun it.
const OPERATOR: &str = "operator";

/// The states of records that can be discarded: all but what is being delivered, which ends by itself.
const DISCARDABLE: [StateName; 3] = [StateName::Queued, StateName::Held, StateName::Dead];

impl Control {
    /// Deletes a tenant. One for which requests wait, or lie as dead letters, only where `queued` says what becomes of them.
    /// What cannot be done within a few seconds is done in the background, also after a restart. To ask again is to look,
    /// and with [`Deletion::Discard`] to give up what was to be drained.
    ///
    /// # Errors
    /// [`ControlError::OperatorOnly`], [`ControlError::Backlog`], [`ControlError::Queue`]; [`StoreError::UnknownTenant`].
    pub async fn delete_tenant(
        &self,
        tenant: &TenantName,
        queued: Option<Deletion>,
        actor: &TokenScope,
    ) -> Result<DeletionView, ControlError> {
        permit_operator(actor, "delete tenants")?;
        let (this, tenant, actor) = (self.clone(), tenant.clone(), named(actor));
        to_its_end(async move { this.inner.delete_tenant(&tenant, queued, &actor).await }).await
    }

    /// From time to time goes on with deletions that have begun. Ends with the last [`Control`].
    pub(super) fn keep_deleting(&self) {
        let inner = std::sync::Arc::downgrade(&self.inner);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(SETTLE).await;
                let Some(inner) = Weak::upgrade(&inner) else { return };
                for tenant in inner.deleting() {
                    if let Err(error) = inner.go_on(&tenant, OPERATOR).await {
                        tracing::warn!(%error, %tenant, "the deletion of a tenant did not get on");
                    }
                }
            }
        });
    }
}

impl Inner {
    async fn delete_tenant(
        &self,
        name: &TenantName,
        queued: Option<Deletion>,
        actor: &str,
    ) -> Result<DeletionView, ControlError> {
        {
            let (_turn, tenant) = self.turn_of_any(name).await?;
            if tenant.deletion.is_none() && queued.is_none() {
                let waiting = self.backlog(name, |_| true).await?;
                if !waiting.is_empty() {
                    return Err(ControlError::Backlog { of: format!("tenant {name}"), upstreams: waiting });
                }
            }
            let wanted = queued.or(tenant.deletion).unwrap_or(Deletion::Drain);
            let (of, by, at_ms) = (name.clone(), actor.to_owned(), self.now_ms());
            let begin = move |s: &dyn beamline_store::Store| {
                s.begin_deletion(&of, wanted, Stamp { at_ms, actor: &by })
            };
            let begun = self.store.call(begin).await?;
            self.begin_deleting(name);
            if tenant.deletion != Some(begun) {
                self.event("tenant.deleting", json!({ "tenant.id": name, "queued": begun, "actor": actor }));
            }
        }
        let until = tokio::time::Instant::now() + AT_ONCE;
        let mut discarded = 0;
        loop {
            let mut view = self.go_on(name, actor).await?;
            discarded += view.discarded;
            view.discarded = discarded;
            if view.deleted || tokio::time::Instant::now() >= until {
                return Ok(view);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Does what can be done now of a deletion that has begun.
    pub(super) async fn go_on(&self, name: &TenantName, actor: &str) -> Result<DeletionView, ControlError> {
        let gone =
            |discarded| DeletionView { tenant: name.clone(), deleted: true, discarded, waiting: 0, dead: 0 };
        let (_turn, tenant) = match self.turn_of_any(name).await {
            Ok(turn) => turn,
            // Another call was faster, or another process.
            Err(ControlError::Store(StoreError::UnknownTenant(_))) => {
                self.ended_elsewhere(name).await?;
                return Ok(gone(0));
            }
            Err(error) => return Err(error),
        };
        // It is gone, and its name is another's already.
        if tenant.deletion.is_none() {
            if self.deleting().contains(name) {
                self.begun_elsewhere(&tenant).await?;
            }
            return Ok(gone(0));
        }
        // Whoever loads the snapshot from here on sends and queues nothing for it.
        if self.snapshots.load().by_name(name).is_some_and(|runtime| !runtime.leaving)
            && let Some(runtime) = self.load(&tenant).await?
        {
            self.publisher.publish(runtime).await?;
        }
        let mut discarded = 0;
        if tenant.deletion == Some(Deletion::Discard) {
            for lane in self.backlog(name, |_| true).await? {
                discarded += self.discard(name, &lane.upstream, actor).await?;
            }
        }
        if self.queue.holds_nothing(name) {
            tokio::time::sleep(SETTLE).await;
            if self.queue.holds_nothing(name) && self.end(name, actor).await? {
                return Ok(gone(discarded));
            }
        }
        let left = self.backlog(name, |_| true).await?;
        Ok(DeletionView {
            tenant: name.clone(),
            deleted: false,
            discarded,
            waiting: left.iter().map(|lane| lane.waiting).sum(),
            dead: left.iter().map(|lane| lane.dead).sum(),
        })
    }

    /// Deletes what is left when nothing waits any more. Says whether that is done; otherwise it goes on with the next call.
    pub(super) async fn end(&self, name: &TenantName, actor: &str) -> Result<bool, ControlError> {
        // Of whoever gets the name next nothing is paused or slowed down.
        for lane in self.lanes(name).await? {
            if lane.paused {
                self.queue.set_paused(name, &lane.upstream, false, actor).await?;
            }
            if lane.per_second.is_some() {
                self.queue.set_rate(name, &lane.upstream, None, actor).await?;
            }
        }
        self.let_go_of_keys(name).await;
        // Out of the snapshot before its hosts can be another's.
        self.publisher.remove(name.clone()).await?;
        // Nobody can ask for its receipts any more; whoever gets the name must not be shown them.
        if !self.queue.clear(name).await? {
            return Ok(false);
        }
        let (of, by, at_ms) = (name.clone(), actor.to_owned(), self.now_ms());
        let ended = self.store.call(move |s| s.delete_tenant(&of, Stamp { at_ms, actor: &by })).await;
        if !matches!(ended, Err(ControlError::Store(StoreError::UnknownTenant(_)))) {
            ended?;
            self.event("tenant.deleted", json!({ "tenant.id": name, "actor": actor }));
        }
        self.forget(name);
        Ok(true)
    }

    /// Lets go of a tenant that the store does not have any more: what this node still knows of it must reach nobody who gets
    /// the name next.
    async fn ended_elsewhere(&self, name: &TenantName) -> Result<(), ControlError> {
        let _turn = self.turns.take(name).await;
        match self.tenant(name).await {
            Err(ControlError::Store(StoreError::UnknownTenant(_))) => {
                self.let_go_of_keys(name).await;
                self.publisher.remove(name.clone()).await?;
                self.forget(name);
                Ok(())
            }
            // Its name was given again meanwhile; or the next look tells.
            found => found.map(drop),
        }
    }

    /// For a tenant that another process created under the name of one whose deletion this one was still busy with: lets go
    /// of the old one, and serves the new one. Within the name's turn.
    async fn begun_elsewhere(&self, tenant: &TenantRecord) -> Result<(), ControlError> {
        let tokens = self.store.call(|s| s.tokens()).await?;
        self.let_go_of_keys(&tenant.name).await;
        self.publisher.remove(tenant.name.clone()).await?;
        if let Some(runtime) = self.load(tenant).await? {
            self.publisher.publish(runtime).await?;
        }
        self.forget(&tenant.name);
        let is_its = |scope: &TokenScope| matches!(scope, TokenScope::Tenant(of) if *of == tenant.name);
        for (hash, scope) in tokens.into_iter().filter(|(_, scope)| is_its(scope)) {
            self.allow(hash, scope);
        }
        Ok(())
    }

    /// Refuses a manifest that lacks upstreams of the active revision for which the queue keeps something, unless these
    /// records are to be discarded; returns those upstreams then.
    pub(super) async fn removed_with_backlog(
        &self,
        tenant: &TenantRecord,
        active: Option<&RevisionRecord>,
        manifest: &Manifest,
        discard: bool,
    ) -> Result<Vec<UpstreamName>, ControlError> {
        let removed: BTreeSet<UpstreamName> = active
            .and_then(|record| serde_json::from_str::<Value>(&record.manifest).ok())
            .iter()
            .filter_map(|manifest| manifest["upstreams"].as_object())
            .flat_map(|upstreams| upstreams.keys())
            .filter_map(|name| name.parse().ok())
            .filter(|name| !manifest.upstreams.contains_key(name))
            .collect();
        if removed.is_empty() {
            return Ok(Vec::new());
        }
        let upstreams = self.backlog(&tenant.name, |lane| removed.contains(&lane.upstream)).await?;
        if !discard && !upstreams.is_empty() {
            let names: Vec<_> = upstreams.iter().map(|lane| lane.upstream.as_str()).collect();
            return Err(ControlError::RemovedBacklog { names: names.join(", "), upstreams });
        }
        Ok(upstreams.into_iter().map(|lane| lane.upstream).collect())
    }

    /// Gives up all that waits for an upstream or is dead; returns how many records that were.
    async fn discard(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        actor: &str,
    ) -> Result<u64, ControlError> {
        let mut discarded = 0;
        loop {
            let purged = self.queue.purge(tenant, upstream, &DISCARDABLE, actor).await?;
            discarded += purged.records;
            if !purged.more {
                return Ok(discarded);
            }
        }
    }

    /// As [`discard`](Self::discard), and what is being delivered too once it has ended, if that is soon. Otherwise it is held,
    /// for its upstream is gone.
    pub(super) async fn discard_whole(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        actor: &str,
    ) -> Result<u64, ControlError> {
        let until = tokio::time::Instant::now() + AT_ONCE;
        let mut discarded = 0;
        loop {
            discarded += self.discard(tenant, upstream, actor).await?;
            if self.queue.depth(tenant, upstream) == 0 || tokio::time::Instant::now() >= until {
                return Ok(discarded);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn lanes(&self, tenant: &TenantName) -> Result<Vec<LaneStatus>, ControlError> {
        Ok(self.queue.lanes(Some(tenant)).await?)
    }

    /// What the queue keeps for a tenant's upstreams, of those that are `wanted`.
    async fn backlog(
        &self,
        tenant: &TenantName,
        wanted: impl Fn(&LaneStatus) -> bool,
    ) -> Result<Vec<UpstreamBacklog>, ControlError> {
        let lanes = self.lanes(tenant).await?;
        let kept = lanes.into_iter().filter(|lane| lane.depth + lane.dead > 0 && wanted(lane));
        Ok(kept
            .map(|lane| UpstreamBacklog { upstream: lane.upstream, waiting: lane.depth, dead: lane.dead })
            .collect())
    }
}
