//! What goes wrong, and when.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{checker::Quota, origin::Mischief, seed::Seed, workload::PATIENT};

/// Something that is done to the node, its disk or its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The origin's port refuses.
    OriginDown,
    /// The origin listens again.
    OriginUp,
    /// `kill -9`, and a start.
    Kill,
    /// `kill -9` twice, the second one while it starts.
    KillTwice,
    /// Everything is taken away that was not fsynced, and a start.
    PowerCut,
    /// Every fsync fails with EIO.
    DiskFails,
    /// The disk works again.
    DiskWorks,
    /// The wall clock is from now on so many seconds ahead of the true one, or behind it. Less than any record's expiry.
    Clock(i64),
}

/// One fault and its moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many requests clients have begun by then.
    pub at: u64,
    /// What is done.
    pub fault: Fault,
}

/// A quota so small that a run comes up to it, of the node or of the one tenant that queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Records of the node.
    NodeRecords(u64),
    /// KiB of the node.
    NodeKib(u64),
    /// Records of the tenant.
    TenantRecords(u64),
    /// KiB of the tenant.
    TenantKib(u64),
}

impl Bound {
    fn choose(seed: &mut Seed) -> Self {
        let (records, kib) = (seed.within(6..40), seed.within(24..300));
        *seed.pick(&[
            Self::NodeRecords(records),
            Self::NodeKib(kib),
            Self::TenantRecords(records),
            Self::TenantKib(kib),
        ])
    }

    /// The node's configuration file.
    pub fn configuration(self) -> String {
        match self {
            // A tenant has half of it, if nothing else is said.
            Self::NodeRecords(n) => format!("[queue]\nmax_records = {n}\ntenant_max_records = {n}\n"),
            Self::NodeKib(n) => format!("[queue]\nmax_bytes = \"{n}KiB\"\ntenant_max_bytes = \"{n}KiB\"\n"),
            Self::TenantRecords(n) => format!("[queue]\ntenant_max_records = {n}\n"),
            Self::TenantKib(n) => format!("[queue]\ntenant_max_bytes = \"{n}KiB\"\n"),
        }
    }

    /// What it allows.
    pub fn quota(self) -> Quota {
        match self {
            Self::NodeRecords(n) | Self::TenantRecords(n) => Quota { records: n, ..Quota::NONE },
            Self::NodeKib(n) | Self::TenantKib(n) => Quota { bytes: n * 1024, ..Quota::NONE },
        }
    }
}

/// Between the furthest behind and the furthest ahead, in seconds.
const CLOCK_RANGE: u64 = 16 * 3600;

/// All that goes wrong in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// In order.
    pub steps: Vec<Step>,
    /// What the origin does to the n-th request that reaches it.
    pub mischief: BTreeMap<u64, Mischief>,
    /// The quota, where the run has one of its own.
    pub bound: Option<Bound>,
    /// How long the origin may take to answer.
    pub response_timeout: Duration,
}

impl Schedule {
    /// For a run of so many requests.
    pub fn new(requests: u64, seed: &mut Seed) -> Self {
        let bound = seed.one_in(3).then(|| Bound::choose(seed));
        // Short enough to be run into, and long for an origin on a busy machine that means well.
        let short = seed.one_in(3).then(|| seed.within(301..500));
        // What ends with a crash or a closed port runs into no time-out: fewer of them, then.
        let apart = if short.is_some() { 3 } else { 1 };
        let mut steps = Vec::new();
        let (mut at, mut up, mut disk) = (0, true, true);
        loop {
            at += apart * seed.within(2..(requests / 8).max(3));
            if at >= requests {
                break;
            }
            let fault = match seed.within(0..11) {
                0..4 if up => Fault::OriginDown,
                0..4 => Fault::OriginUp,
                4 | 5 => Fault::Kill,
                6 => Fault::KillTwice,
                7 => Fault::PowerCut,
                8 => Fault::Clock(seed.within(0..CLOCK_RANGE) as i64 - CLOCK_RANGE as i64 / 2),
                _ if disk => Fault::DiskFails,
                _ => Fault::DiskWorks,
            };
            match fault {
                Fault::OriginDown => up = false,
                Fault::OriginUp => up = true,
                Fault::DiskFails => disk = false,
                // A node whose disk fails can't start, and is not what these faults are to show.
                Fault::Kill | Fault::KillTwice | Fault::PowerCut if !disk => {
                    steps.push(Step { at, fault: Fault::DiskWorks });
                    disk = true;
                }
                Fault::DiskWorks => disk = true,
                _ => {}
            }
            steps.push(Step { at, fault });
        }
        let mut mischief = BTreeMap::new();
        let mut arrival = 0;
        while arrival < 2 * requests {
            arrival += seed.within(1..12);
            let kind = match (seed.within(0..8), short) {
                (0 | 1, _) => Mischief::Status(500),
                (2, _) => Mischief::Busy,
                (3, _) => Mischief::Reset,
                (4, _) => Mischief::Cut,
                (5, _) => Mischief::Hang(seed.within(20..200)),
                (6 | 7, Some(ms)) => Mischief::Hang(ms + seed.within(100..400)),
                _ => Mischief::Slow(seed.within(1..60)),
            };
            mischief.insert(arrival, kind);
        }
        Self { steps, mischief, bound, response_timeout: short.map_or(PATIENT, Duration::from_millis) }
    }

    /// Whether requests come to run into the response time-out.
    pub fn is_impatient(&self) -> bool {
        self.response_timeout < PATIENT
    }

    /// Whether the origin keeps the node waiting for longer than it has.
    pub fn outlasts(&self, mischief: Option<Mischief>) -> bool {
        matches!(mischief, Some(Mischief::Hang(ms)) if Duration::from_millis(ms) > self.response_timeout)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { at, fault } in &self.steps {
            write!(f, "{at} {fault:?}, ")?;
        }
        write!(f, "{} requests ill treated by the origin", self.mischief.len())?;
        if let Some(bound) = self.bound {
            write!(f, ", {bound:?}")?;
        }
        write!(f, ", response_timeout {:?}", self.response_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_schedule() {
        let schedule = |seed| Schedule::new(200, &mut Seed::new(seed));
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
    }

    #[test]
    fn every_fault_comes_and_none_breaks_the_rules() {
        let (mut seen, mut bounded, mut outlasted) = (Vec::new(), [0; 4], 0);
        for seed in 0..200 {
            let schedule = Schedule::new(200, &mut Seed::new(seed));
            outlasted += usize::from(schedule.mischief.values().any(|m| schedule.outlasts(Some(*m))));
            if let Some(bound) = schedule.bound {
                let kind = match bound {
                    Bound::NodeRecords(_) => 0,
                    Bound::NodeKib(_) => 1,
                    Bound::TenantRecords(_) => 2,
                    Bound::TenantKib(_) => 3,
                };
                bounded[kind] += 1;
            }
            let mut disk = true;
            for pair in schedule.steps.windows(2) {
                assert!(pair[0].at <= pair[1].at, "{schedule}");
            }
            for step in &schedule.steps {
                match step.fault {
                    Fault::DiskFails => disk = false,
                    Fault::DiskWorks => disk = true,
                    Fault::Kill | Fault::KillTwice | Fault::PowerCut => assert!(disk, "{schedule}"),
                    Fault::OriginDown | Fault::OriginUp | Fault::Clock(_) => {}
                }
                let kind = std::mem::discriminant(&step.fault);
                if !seen.contains(&kind) {
                    seen.push(kind);
                }
            }
        }
        assert_eq!(seen.len(), 8, "{seen:?}");
        assert!(bounded.iter().all(|runs| (5..40).contains(runs)), "{bounded:?}");
        assert!((40..100).contains(&outlasted), "{outlasted}");
    }
}
