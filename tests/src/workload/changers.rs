//! Clients that change the control plane.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, anyhow};

use super::{Crowd, Told, manifest, mark_of};
use crate::{
    admin::{Admin, AdminError, Applied},
    checker::{Change, Outcome, Sight},
    seed::Seed,
};

/// The most tenants of one client: they can't be removed again.
const MAX_TENANTS: usize = 40;

/// One client with tenants of its own, one change after the other.
pub(super) struct Changer {
    number: usize,
    operator: Admin,
    origin: SocketAddr,
    crowd: Crowd,
    seed: Seed,
    told: Arc<Told>,
    tenants: Vec<Tenant>,
    /// Its next manifest's.
    mark: u64,
    /// The crash after which it has looked at what it changed before.
    looked_after: u32,
    /// Tenants that were changed since they were looked at.
    unseen: BTreeSet<usize>,
    /// The last change may have been made or not: that is looked at before anything else is done.
    in_doubt: bool,
}

struct Tenant {
    name: String,
    host: String,
    /// With the tenant's own token, where the client got it; else with the operator's.
    admin: Admin,
    /// Revisions that were told, with their marks: what can be gone back to.
    revisions: Vec<(u64, u64)>,
}

impl Changer {
    pub(super) fn new(
        number: usize,
        operator: Admin,
        origin: SocketAddr,
        crowd: Crowd,
        seed: Seed,
        told: &Arc<Told>,
    ) -> Self {
        Self {
            number,
            operator,
            origin,
            crowd,
            seed,
            told: Arc::clone(told),
            tenants: Vec::new(),
            mark: 1,
            looked_after: 0,
            unseen: BTreeSet::new(),
            in_doubt: false,
        }
    }

    /// Changes a tenant from now on that is there already, with the manifest 0.
    pub(super) fn takes_over(&mut self, name: &str, host: &str, revision: Option<u64>) {
        let revisions = revision.map(|revision| (revision, 0)).into_iter().collect();
        self.tenants.push(Tenant {
            name: name.into(),
            host: host.into(),
            admin: self.operator.clone(),
            revisions,
        });
    }

    /// One change, or, after a crash, a look at what was changed before; and a pause.
    pub(super) fn step(&mut self) {
        let crashes = self.told.ledger.crashes();
        if crashes != self.looked_after || self.in_doubt {
            // Where the node is still down, the next step looks again.
            if self.look_at_unseen().is_ok() {
                self.looked_after = crashes;
                self.in_doubt = false;
            }
        } else if self.tenants.is_empty() || self.tenants.len() < MAX_TENANTS && self.seed.one_in(6) {
            self.create();
        } else {
            let at = self.seed.within(0..self.tenants.len() as u64) as usize;
            self.change(at);
        }
        let most = (self.crowd.pause.as_micros() as u64).max(1);
        std::thread::sleep(Duration::from_micros(self.seed.within(0..most)));
    }

    fn create(&mut self) {
        let name = format!("t{}-{}", self.number, self.tenants.len());
        let host = format!("{name}.test");
        let range = format!("127.0.0.1/32:{}", self.origin.port());
        let created = self.operator.create_tenant(&name, &[&host], &[&range]);
        let (outcome, admin) = match created {
            Ok(token) => (Outcome::Done(None), self.operator.with_token(&token)),
            Err(error) => (outcome_of(&error), self.operator.clone()),
        };
        self.told.changes.changed(&name, Change::Create, outcome);
        self.unseen.insert(self.tenants.len());
        self.tenants.push(Tenant { name, host, admin, revisions: Vec::new() });
        self.in_doubt = outcome == Outcome::Unknown;
    }

    fn change(&mut self, at: usize) {
        let rolls_back = self.seed.one_in(3);
        let tenant = &mut self.tenants[at];
        let (change, applied) = if rolls_back && !tenant.revisions.is_empty() {
            let (revision, mark) = *self.seed.pick(&tenant.revisions);
            (Change::Rollback(mark), tenant.admin.rollback(&tenant.name, Some(revision)))
        } else {
            let mark = self.mark;
            self.mark += 1;
            let manifest = manifest(&tenant.host, self.origin, self.crowd.response_timeout, mark);
            (Change::Apply(mark), tenant.admin.apply(&tenant.name, &manifest))
        };
        let outcome = match applied {
            Ok(Applied { revision, .. }) => Outcome::Done(revision),
            Err(error) => outcome_of(&error),
        };
        if let (Change::Apply(mark), Outcome::Done(Some(revision))) = (change, outcome) {
            tenant.revisions.push((revision, mark));
        }
        self.told.changes.changed(&tenant.name, change, outcome);
        self.unseen.insert(at);
        self.in_doubt = outcome == Outcome::Unknown;
    }

    fn look_at_unseen(&mut self) -> Result<()> {
        while let Some(at) = self.unseen.first().copied() {
            self.look_at(at)?;
            self.unseen.remove(&at);
        }
        Ok(())
    }

    fn look_at(&self, at: usize) -> Result<()> {
        let Tenant { name, admin, .. } = &self.tenants[at];
        let path = format!("/v1/tenants/{name}/manifest");
        let sight = match admin.get(&path) {
            Ok(seen) => Sight::Active {
                revision: seen["revision"].as_u64().unwrap_or(0),
                mark: mark_of(&seen["manifest"]).unwrap_or(u64::MAX),
            },
            Err(error) => match (error.status(), error.kind()) {
                (Some(404), "no-revision") => Sight::Bare,
                (Some(404), "unknown-tenant") | (Some(401), _) => Sight::Nothing,
                _ => return Err(error.into()),
            },
        };
        self.told.changes.saw(name, sight);
        Ok(())
    }

    /// Looks at every tenant and each of its revisions.
    pub(super) fn look_at_all(&mut self) -> Result<()> {
        self.unseen.clear();
        for (at, Tenant { name, admin, .. }) in self.tenants.iter().enumerate() {
            self.look_at(at)?;
            let listed = match admin.get(&format!("/v1/tenants/{name}/revisions?limit=1000")) {
                Ok(listed) => listed,
                Err(error) if matches!(error.status(), Some(401 | 404)) => continue,
                Err(error) => return Err(error.into()),
            };
            let listed = listed["revisions"].as_array().ok_or_else(|| anyhow!("no list: {listed}"))?;
            let mut revisions = BTreeMap::new();
            for revision in listed.iter().filter_map(|r| r["revision"].as_u64()) {
                let seen = admin.get(&format!("/v1/tenants/{name}/revisions/{revision}"))?;
                revisions.insert(revision, mark_of(&seen["manifest"]).unwrap_or(u64::MAX));
            }
            self.told.changes.listed(name, revisions);
        }
        Ok(())
    }
}

/// Whether an error says that nothing was changed.
fn outcome_of(error: &AdminError) -> Outcome {
    match (error.status(), error.kind()) {
        (Some(503), "store-unconfirmed") => Outcome::Undecided,
        (Some(status), "store-unavailable") => Outcome::Refused(status),
        (Some(status), _) if status < 500 => Outcome::Refused(status),
        _ => Outcome::Unknown,
    }
}
