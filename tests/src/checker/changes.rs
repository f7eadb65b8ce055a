//! What those who change the control plane tell, and see of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Kind, Violation};

/// A change of one tenant. A manifest is known by a mark, a number that is in no other manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is created.
    Create,
    /// The manifest with this mark is applied.
    Apply(u64),
    /// The revision that has the manifest with this mark is activated again.
    Rollback(u64),
}

/// How a change ended for who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// 2xx, with the revision that is active since.
    Done(Option<u64>),
    /// An error: nothing was changed.
    Refused(u16),
    /// No whole answer: it may have been made or not, and a look shows which.
    Unknown,
    /// An answer that says that nobody knows: it may be made at a later start, until a change after it is answered 2xx.
    Undecided,
}

/// What can be seen of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// It isn't there, or its token is not taken.
    Nothing,
    /// It is there, without a revision.
    Bare,
    /// With this active revision, which has the manifest with this mark.
    Active {
        /// The revision.
        revision: u64,
        /// The mark.
        mark: u64,
    },
}

/// The steps of every tenant, in order. Of one tenant only one client tells, step by step.
#[derive(Debug, Default)]
pub struct Changes(Mutex<BTreeMap<String, Vec<Step>>>);

#[derive(Clone, Debug)]
enum Step {
    Changed(Change, Outcome),
    Saw(Sight),
    /// Every revision with its mark.
    Listed(BTreeMap<u64, u64>),
}

impl Changes {
    fn steps(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Step>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, tenant: &str, step: Step) {
        self.steps().entry(tenant.into()).or_default().push(step);
    }

    /// A change ended.
    pub fn changed(&self, tenant: &str, change: Change, outcome: Outcome) {
        self.push(tenant, Step::Changed(change, outcome));
    }

    /// A tenant was looked at.
    pub fn saw(&self, tenant: &str, sight: Sight) {
        self.push(tenant, Step::Saw(sight));
    }

    /// All revisions of a tenant were looked at: each with the mark of its manifest.
    pub fn listed(&self, tenant: &str, revisions: BTreeMap<u64, u64>) {
        self.push(tenant, Step::Listed(revisions));
    }

    /// The changes that were answered 2xx, those that were refused, and those of which nobody knows.
    pub fn numbers(&self) -> (usize, usize, usize) {
        let mut n = (0, 0, 0);
        for step in self.steps().values().flatten() {
            match step {
                Step::Changed(_, Outcome::Done(_)) => n.0 += 1,
                Step::Changed(_, Outcome::Refused(_)) => n.1 += 1,
                Step::Changed(_, Outcome::Unknown | Outcome::Undecided) => n.2 += 1,
                Step::Saw(_) | Step::Listed(_) => {}
            }
        }
        n
    }

    /// Every promise that was broken.
    pub fn violations(&self) -> Vec<Violation> {
        self.steps().iter().flat_map(|(tenant, steps)| Tenant::new(tenant).judge(steps)).collect()
    }
}

/// What a tenant can look like, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Nothing,
    Bare,
    Active(u64),
}

struct Tenant<'a> {
    name: &'a str,
    /// Any of these; more than one after a change of which nobody knows.
    possible: BTreeSet<State>,
    /// Those of them that no look rules out.
    undecided: BTreeSet<State>,
    /// What was asked to be applied.
    asked: BTreeSet<u64>,
    /// Of revisions that were told: their marks.
    mark_of: HashMap<u64, u64>,
    violations: Vec<Violation>,
}

impl<'a> Tenant<'a> {
    fn new(name: &'a str) -> Self {
        Self {
            name,
            possible: BTreeSet::from([State::Nothing]),
            undecided: BTreeSet::new(),
            asked: BTreeSet::new(),
            mark_of: HashMap::new(),
            violations: Vec::new(),
        }
    }

    fn judge(mut self, steps: &[Step]) -> Vec<Violation> {
        for step in steps {
            match step {
                Step::Changed(change, outcome) => self.changed(*change, *outcome),
                Step::Saw(sight) => self.saw(*sight),
                Step::Listed(revisions) => self.listed(revisions),
            }
        }
        self.violations
    }

    fn broken(&mut self, kind: Kind, how: String) {
        self.violations.push(Violation { kind, of: self.name.into(), how });
    }

    fn changed(&mut self, change: Change, outcome: Outcome) {
        let (state, mark) = match change {
            Change::Create => (State::Bare, None),
            Change::Apply(mark) | Change::Rollback(mark) => (State::Active(mark), Some(mark)),
        };
        if let Change::Apply(mark) = change {
            self.asked.insert(mark);
        }
        match outcome {
            Outcome::Done(revision) => {
                if let (Some(revision), Some(mark)) = (revision, mark) {
                    self.stands_for(revision, mark);
                }
                self.possible = BTreeSet::from([state]);
                self.undecided.clear();
            }
            Outcome::Unknown => {
                self.possible.insert(state);
            }
            Outcome::Undecided => {
                self.possible.insert(state);
                self.undecided.insert(state);
            }
            Outcome::Refused(_) => {}
        }
    }

    fn saw(&mut self, sight: Sight) {
        let state = match sight {
            Sight::Nothing => State::Nothing,
            Sight::Bare => State::Bare,
            Sight::Active { revision, mark } => {
                self.stands_for(revision, mark);
                State::Active(mark)
            }
        };
        if !self.possible.contains(&state) {
            let asked_for = match state {
                State::Active(mark) => self.asked.contains(&mark),
                State::Nothing | State::Bare => true,
            };
            let kind = if asked_for { Kind::ChangeLost } else { Kind::ChangeFromNowhere };
            let how = format!("expected one of {:?}; found {state:?}", self.possible);
            self.broken(kind, how);
        }
        if self.undecided.contains(&state) {
            self.undecided.clear();
        }
        self.possible = self.undecided.clone();
        self.possible.insert(state);
    }

    fn listed(&mut self, revisions: &BTreeMap<u64, u64>) {
        let told: Vec<_> = self.mark_of.keys().copied().collect();
        for revision in told.into_iter().filter(|revision| !revisions.contains_key(revision)) {
            self.broken(Kind::ChangeLost, format!("revision {revision} was told of and is not listed"));
        }
        for (revision, mark) in revisions {
            self.stands_for(*revision, *mark);
            if !self.asked.contains(mark) {
                let how = format!("revision {revision} has the mark {mark}, which nobody applied");
                self.broken(Kind::ChangeFromNowhere, how);
            }
        }
    }

    fn stands_for(&mut self, revision: u64, mark: u64) {
        if let Some(known) = self.mark_of.insert(revision, mark).filter(|known| *known != mark) {
            self.broken(Kind::RevisionReused, format!("revision {revision} was {known} and is now {mark}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: &str = "acme";

    /// Created, two manifests applied, rolled back to the first.
    fn good() -> Changes {
        let changes = Changes::default();
        changes.changed(T, Change::Create, Outcome::Done(None));
        changes.saw(T, Sight::Bare);
        changes.changed(T, Change::Apply(71), Outcome::Done(Some(1)));
        changes.changed(T, Change::Apply(72), Outcome::Done(Some(2)));
        changes.saw(T, Sight::Active { revision: 2, mark: 72 });
        changes.changed(T, Change::Rollback(71), Outcome::Done(Some(1)));
        changes.changed(T, Change::Apply(73), Outcome::Refused(422));
        changes
    }

    fn finds(changes: &Changes) -> Vec<Kind> {
        changes.violations().into_iter().map(|v| v.kind).collect()
    }

    #[test]
    fn a_good_history_has_no_violations() {
        let changes = good();
        changes.saw(T, Sight::Active { revision: 1, mark: 71 });
        changes.listed(T, BTreeMap::from([(1, 71), (2, 72)]));
        assert_eq!(changes.violations(), []);
        assert_eq!(changes.numbers(), (4, 1, 0));
    }

    #[test]
    fn a_change_of_which_nobody_knows_may_be_there_or_not_but_is_decided_once_seen() {
        let (old, new) = (Sight::Active { revision: 1, mark: 71 }, Sight::Active { revision: 3, mark: 74 });
        for seen in [old, new] {
            let changes = good();
            changes.changed(T, Change::Apply(74), Outcome::Unknown);
            changes.saw(T, seen);
            assert_eq!(changes.violations(), []);
            changes.saw(T, if seen == old { new } else { old });
            assert_eq!(finds(&changes), [Kind::ChangeLost]);
        }
        let changes = Changes::default();
        changes.changed(T, Change::Create, Outcome::Unknown);
        changes.saw(T, Sight::Nothing);
        assert_eq!(changes.violations(), []);
    }

    #[test]
    fn an_undecided_change_may_be_made_later_but_not_be_lost_again_nor_come_after_another() {
        let (old, new) = (Sight::Active { revision: 1, mark: 71 }, Sight::Active { revision: 3, mark: 74 });
        let changes = good();
        changes.changed(T, Change::Apply(74), Outcome::Undecided);
        changes.saw(T, old);
        changes.saw(T, new);
        assert_eq!(changes.violations(), []);
        changes.saw(T, old);
        assert_eq!(finds(&changes), [Kind::ChangeLost]);

        let changes = good();
        changes.changed(T, Change::Apply(74), Outcome::Undecided);
        changes.changed(T, Change::Apply(75), Outcome::Done(Some(3)));
        changes.saw(T, Sight::Active { revision: 4, mark: 74 });
        assert_eq!(finds(&changes), [Kind::ChangeLost]);
    }

    #[test]
    fn a_lost_tenant_apply_or_rollback_is_caught() {
        for seen in [Sight::Nothing, Sight::Bare, Sight::Active { revision: 2, mark: 72 }] {
            let changes = good();
            changes.saw(T, seen);
            assert_eq!(finds(&changes), [Kind::ChangeLost], "{seen:?}");
        }
        let changes = Changes::default();
        changes.changed(T, Change::Create, Outcome::Done(None));
        changes.saw(T, Sight::Nothing);
        assert_eq!(finds(&changes), [Kind::ChangeLost]);
    }

    #[test]
    fn a_change_that_was_refused_must_not_be_made() {
        let changes = good();
        changes.saw(T, Sight::Active { revision: 3, mark: 73 });
        assert_eq!(finds(&changes), [Kind::ChangeLost]);
    }

    #[test]
    fn a_revision_that_is_gone_or_that_nobody_asked_for_is_caught() {
        let changes = good();
        changes.listed(T, BTreeMap::from([(1, 71)]));
        assert_eq!(finds(&changes), [Kind::ChangeLost]);
        let changes = good();
        changes.listed(T, BTreeMap::from([(1, 71), (2, 72), (3, 99)]));
        assert_eq!(finds(&changes), [Kind::ChangeFromNowhere]);
        let changes = good();
        changes.saw(T, Sight::Active { revision: 3, mark: 99 });
        assert_eq!(finds(&changes), [Kind::ChangeFromNowhere]);
    }

    #[test]
    fn a_number_that_is_given_twice_shows_that_its_first_change_was_lost() {
        let changes = good();
        changes.changed(T, Change::Apply(75), Outcome::Done(Some(2)));
        assert_eq!(finds(&changes), [Kind::RevisionReused]);
    }
}
