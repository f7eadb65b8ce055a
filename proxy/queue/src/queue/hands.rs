//! What operators, tenants and holders of receipts do to the queue by hand, and what they get to see of it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use beamline_model::{TenantName, UpstreamName};
use serde::Serialize;
use thiserror::Error;

use super::{Queue, QueueError};
use crate::{
    DeadReason, Receipt, ReceiptView,
    log::{Act, Change, Effect, Intervened, Intervention, LogError, Refused},
    rate::Rate,
    record::{RecordId, Seq, State, StateName},
    settings::bounds::PAGE,
    view::{AuditRow, ExportPage, LaneStatus, RecordPage, RecordQuery, RecordView},
};

/// How long an intervention waits for its commit.
const COMMIT_TIME: Duration = Duration::from_secs(10);
/// The most records of one page of an export: each is looked for by itself, with its content.
const EXPORT_MAX: usize = 100;
/// How long one purge goes on: then it says that there is more.
const PURGE_TIME: Duration = Duration::from_secs(5);

/// Why nothing was done by hand.
#[derive(Debug, Error)]
pub enum HandError {
    /// The tenant has no such record.
    #[error("tenant {tenant} has no record {id}: it never had, or its retention is over")]
    Unknown {
        /// Whose it was taken for.
        tenant: TenantName,
        /// What was asked for.
        id: RecordId,
    },
    /// Not with a record in this state.
    #[error("record {id} is {state}, so that it cannot be {wanted}: {advice}")]
    State {
        /// The record.
        id: RecordId,
        /// Its state.
        state: State,
        /// What was to be done, as in "cannot be discarded".
        wanted: &'static str,
        /// What helps.
        advice: &'static str,
    },
    /// It may have been taken already, and the caller did not say that this is fine.
    #[error(
        "record {id} is dead(indeterminate): the origin may have taken it, and takes it twice if it is sent again; find out, \
         then ask for it to be repeated, or discard it"
    )]
    MayRepeat {
        /// The record.
        id: RecordId,
    },
    /// The log does not take it now.
    #[error("the queue does not answer now: look whether it was done, then try again")]
    Unavailable,
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// What came of the wish to cancel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// It is dead (cancelled), by this call or an earlier one, and will not be delivered.
    Done(ReceiptView),
    /// It is being delivered, or has ended.
    TooLate(ReceiptView),
}

/// What a purge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Purged {
    /// Records that were discarded.
    pub records: u64,
    /// The bytes that they took.
    pub bytes: u64,
    /// Whether its time was over before it was done: the same call again goes on.
    pub more: bool,
}

impl Queue {
    /// A page of a tenant's records, in commit order. Waits for one of few places.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn records(&self, query: RecordQuery) -> Result<RecordPage, QueueError> {
        self.look(move |log| log.records(&query)).await
    }

    /// A page of a tenant's records, in commit order, each as [`Queue::record`] shows it. Ends early where heads are long.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn export(&self, query: RecordQuery) -> Result<ExportPage, QueueError> {
        let query = RecordQuery { limit: query.limit.min(EXPORT_MAX), ..query };
        self.look(move |log| crate::log::export(log, &query)).await
    }

    /// One record of a tenant, as it may be shown.
    ///
    /// # Errors
    /// [`HandError::Unknown`], [`HandError::Log`].
    pub async fn record(&self, tenant: &TenantName, id: RecordId) -> Result<RecordView, HandError> {
        let of = tenant.clone();
        let found = self.look(move |log| log.record(&of, id)).await;
        found
            .map_err(|QueueError::Log(error)| error)?
            .ok_or_else(|| HandError::Unknown { tenant: tenant.clone(), id })
    }

    /// How each upstream's part of the queue fares, of one tenant or of all, by name.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn lanes(&self, of: Option<&TenantName>) -> Result<Vec<LaneStatus>, QueueError> {
        let mut figures: HashMap<_, _> = self.0.books.lanes(of).into_iter().collect();
        let open: Vec<_> = figures.iter().filter(|(_, f)| f.open > 0).map(|(lane, _)| lane.clone()).collect();
        let paused = self.look(|log| log.paused()).await?;
        let rates: HashMap<_, _> = self.look(|log| log.rates()).await?.into_iter().collect();
        let paused_keys: HashMap<_, _> = self.look(|log| log.paused_keys()).await?.into_iter().collect();
        let mut oldest = HashMap::new();
        // One look each: receipts and deliveries are read in between.
        for lane in open {
            let of = lane.clone();
            if let Some(accepted_ms) = self.look(move |log| log.oldest(&of)).await? {
                oldest.insert(lane, accepted_ms);
            }
        }
        for lane in paused.iter().chain(rates.keys()).filter(|lane| of.is_none_or(|of| *of == lane.tenant)) {
            figures.entry(lane.clone()).or_default();
        }
        let mut lanes: Vec<_> = figures
            .into_iter()
            .map(|(lane, figures)| LaneStatus {
                depth: figures.open,
                dead: figures.dead,
                bytes: figures.bytes,
                accepted: figures.accepted,
                delivered: figures.delivered,
                died: figures.died,
                oldest_ms: oldest.get(&lane).copied(),
                paused: paused.contains(&lane),
                per_second: rates.get(&lane).copied(),
                paused_keys: paused_keys.get(&lane).copied().unwrap_or(0),
                tenant: lane.tenant,
                upstream: lane.upstream,
            })
            .collect();
        lanes.sort_unstable_by(|a, b| (&a.tenant, &a.upstream).cmp(&(&b.tenant, &b.upstream)));
        Ok(lanes)
    }

    /// At most `limit` (and [`crate::PAGE_MAX`]) rows of the audit after row `after`, oldest first: of one tenant, or of
    /// all. The newest 200,000 are kept.
    ///
    /// # Errors
    /// [`QueueError`] where the log cannot be read.
    pub async fn audit(
        &self,
        tenant: Option<&TenantName>,
        after: u64,
        limit: usize,
    ) -> Result<Vec<AuditRow>, QueueError> {
        let tenant = tenant.cloned();
        self.look(move |log| log.audit(tenant.as_ref(), after, limit)).await
    }

    /// Gives a record up: it is dead (discarded), and its content is erased. `actor` is for the audit. When this returns
    /// the change survives a power cut, as for all that is done by hand. To discard twice is to discard.
    ///
    /// # Errors
    /// [`HandError`]: not while it is being delivered, nor after it was delivered or cancelled.
    pub async fn discard(&self, tenant: &TenantName, id: RecordId, actor: &str) -> Result<(), HandError> {
        let _place = self.place().await?;
        let advice = "what is being delivered ends by itself, and what is delivered or cancelled is erased";
        let discarded = Refused::State(State::Dead { reason: DeadReason::Discarded });
        match self.intervene(tenant, actor, Act::Discard { id }).await? {
            Err(refused) if refused != discarded => Err(refused.of(tenant, id, "discarded", advice)),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Queues a dead letter again with as much time as it had at first: before those that wait because it paused their
    /// key, else behind everything. `may_repeat` says that
    /// its origin may get it a second time.
    ///
    /// # Errors
    /// [`HandError`]: only dead letters with their content can be tried again, and never one whose client was refused.
    pub async fn retry(
        &self,
        tenant: &TenantName,
        id: RecordId,
        may_repeat: bool,
        actor: &str,
    ) -> Result<(), HandError> {
        let _place = self.place().await?;
        let advice = "only a dead letter can be, unless it is unconfirmed (its client was told no), cancelled or discarded";
        self.intervene(tenant, actor, Act::Requeue { id, may_repeat })
            .await?
            .map_err(|refused| refused.of(tenant, id, "tried again", advice))?;
        Ok(())
    }

    /// Discards the records of an upstream that are in one of these states, page by page, for a few seconds at most. What
    /// is accepted meanwhile stays. What is being delivered or is delivered cannot be discarded.
    ///
    /// # Errors
    /// [`HandError::Unavailable`]: what was purged until then stays purged.
    pub async fn purge(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        states: &[StateName],
        actor: &str,
    ) -> Result<Purged, HandError> {
        let _place = self.place().await?;
        let (started, mut purged) = (Instant::now(), Purged::default());
        let (mut after, mut until) = (Seq(0), None);
        loop {
            let (upstream, states) = (upstream.clone(), states.to_vec());
            let act = Act::Purge { upstream, states, after, until, limit: PAGE };
            let Ok(done) = self.intervene(tenant, actor, act).await? else { return Ok(purged) };
            purged.records += (done.ended.len() + done.erased.len()) as u64;
            purged.bytes += done.ended.iter().map(|ended| ended.size).sum::<u64>();
            purged.bytes += done.erased.iter().map(|erased| erased.size).sum::<u64>();
            let Some((last, end)) = done.next else { return Ok(purged) };
            (after, until) = (last, Some(end));
            if started.elapsed() > PURGE_TIME {
                return Ok(Purged { more: true, ..purged });
            }
        }
    }

    /// For the end of a tenant: deletes its finished records with their receipts and kept answers before their retention is
    /// over, page by page, for a few seconds at most. Says whether none is left; otherwise the same call again goes on.
    ///
    /// # Errors
    /// [`HandError::Unavailable`]: what was deleted until then stays deleted.
    pub async fn clear(&self, tenant: &TenantName) -> Result<bool, HandError> {
        let _place = self.place().await?;
        let started = Instant::now();
        loop {
            let now_ms = (self.0.settings.wall_clock)();
            let change = Change::Clear { tenant: tenant.clone(), now_ms, limit: PAGE };
            let Some(Effect::Pruned { pruned, .. }) = self.commit(change).await? else {
                return Err(HandError::Unavailable);
            };
            if pruned.len() < PAGE {
                return Ok(true);
            }
            if started.elapsed() > PURGE_TIME {
                return Ok(false);
            }
        }
    }

    /// Pauses or resumes deliveries to an upstream. Deliveries in flight end as they may; records are accepted, and expire,
    /// as ever. Both survive a restart, and doing either twice does nothing.
    ///
    /// # Errors
    /// [`HandError::Unavailable`].
    pub async fn set_paused(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        paused: bool,
        actor: &str,
    ) -> Result<(), HandError> {
        self.act(tenant, actor, Act::Pause { upstream: upstream.clone(), paused }).await
    }

    /// Sets how many deliveries to an upstream may begin in a second, until it is set anew; none: as many as can. Those in
    /// flight end as they may. A tenth of a second's deliveries may begin at once.
    ///
    /// # Errors
    /// [`HandError::Unavailable`].
    pub async fn set_rate(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        rate: Option<Rate>,
        actor: &str,
    ) -> Result<(), HandError> {
        self.act(tenant, actor, Act::Rate { upstream: upstream.clone(), rate }).await
    }

    /// Lets a paused ordering key go on with what comes after its dead letters, which stay what they are. Says how many
    /// they are: none where the key was not paused.
    ///
    /// # Errors
    /// [`HandError::Unavailable`]: dead letters may be left that pause it.
    pub async fn resume_key(
        &self,
        tenant: &TenantName,
        upstream: &UpstreamName,
        key: &str,
        actor: &str,
    ) -> Result<u64, HandError> {
        let _place = self.place().await?;
        let mut records = 0;
        loop {
            let (upstream, key) = (upstream.clone(), key.to_owned());
            let act = Act::ResumeKey { upstream, key, limit: PAGE };
            let done = self.intervene(tenant, actor, act).await?.map_err(|_| HandError::Unavailable)?;
            let page = done.unpaused.map_or(0, |unpaused| unpaused.records);
            records += page;
            if page < PAGE as u64 {
                return Ok(records);
            }
        }
    }

    /// Cancels the record of a receipt, where it is queued or held. A receipt that is malformed, unknown or another tenant's
    /// is `None`, one like the other.
    ///
    /// # Errors
    /// [`HandError::Unavailable`], [`HandError::Log`].
    pub async fn cancel(
        &self,
        tenant: &TenantName,
        presented: &str,
    ) -> Result<Option<Cancellation>, HandError> {
        let view = async || self.receipt(tenant, presented).await.map_err(|QueueError::Log(error)| error);
        if view().await?.is_none() {
            return Ok(None);
        }
        let Ok(receipt) = presented.parse::<Receipt>() else { return Ok(None) };
        {
            // A place that is not the admin side's: holders of receipts are many and nobody's friends.
            let receipts = &self.0.receipts;
            let _place = receipts.acquire().await.map_err(|_| HandError::Unavailable)?;
            // Refused or not, the receipt tells what is.
            let _ = self.intervene(tenant, "receipt", Act::Cancel { id: receipt.id() }).await?;
        }
        let cancelled = State::Dead { reason: DeadReason::Cancelled };
        Ok(view().await?.map(|view| {
            if view.state == cancelled { Cancellation::Done(view) } else { Cancellation::TooLate(view) }
        }))
    }

    /// Has an act done that nothing refuses.
    pub(super) async fn act(&self, tenant: &TenantName, actor: &str, act: Act) -> Result<(), HandError> {
        let _place = self.place().await?;
        self.intervene(tenant, actor, act).await?.map(drop).map_err(|_| HandError::Unavailable)
    }

    async fn place(&self) -> Result<tokio::sync::SemaphorePermit<'_>, HandError> {
        self.0.hands.acquire().await.map_err(|_| HandError::Unavailable)
    }

    pub(super) async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&mut dyn crate::log::LogReader) -> Result<T, LogError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let closed = |_| LogError::Failed("the queue is closed".into());
        let _place = self.0.hands.acquire().await.map_err(closed)?;
        Ok(self.0.reader.look(look).await?)
    }

    /// Has the writer commit an act.
    async fn intervene(
        &self,
        tenant: &TenantName,
        actor: &str,
        act: Act,
    ) -> Result<Result<Intervened, Refused>, HandError> {
        let at_ms = (self.0.settings.wall_clock)();
        let intervention = Intervention { tenant: tenant.clone(), actor: actor.to_owned(), at_ms, act };
        match self.commit(Change::Intervene(Box::new(intervention))).await? {
            Some(Effect::Intervened(done)) => Ok(Ok(*done)),
            Some(Effect::Refused(refused)) => Ok(Err(refused)),
            _ => Err(HandError::Unavailable),
        }
    }

    /// What a change did, if the writer commits it in time.
    async fn commit(&self, change: Change) -> Result<Option<Effect>, HandError> {
        if !self.0.health.is_available() {
            return Err(HandError::Unavailable);
        }
        let committed = tokio::time::timeout(COMMIT_TIME, self.0.writer.committed(change));
        committed.await.map_err(|_| HandError::Unavailable)
    }
}

impl Refused {
    fn of(self, tenant: &TenantName, id: RecordId, wanted: &'static str, advice: &'static str) -> HandError {
        match self {
            Self::Unknown => HandError::Unknown { tenant: tenant.clone(), id },
            Self::State(state) => HandError::State { id, state, wanted, advice },
            Self::MayRepeat => HandError::MayRepeat { id },
        }
    }
}
