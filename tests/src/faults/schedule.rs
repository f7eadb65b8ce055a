//! What goes wrong, and when.

use std::{collections::BTreeMap, fmt};

use crate::{origin::Mischief, seed::Seed};

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

/// Between the furthest behind and the furthest ahead, in seconds.
const CLOCK_RANGE: u64 = 16 * 3600;

/// All that goes wrong in a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// In order.
    pub steps: Vec<Step>,
    /// What the origin does to the n-th request that reaches it.
    pub mischief: BTreeMap<u64, Mischief>,
}

impl Schedule {
    /// For a run of so many requests.
    pub fn new(requests: u64, seed: &mut Seed) -> Self {
        let mut steps = Vec::new();
        let (mut at, mut up, mut disk) = (0, true, true);
        loop {
            at += seed.within(2..(requests / 8).max(3));
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
            let kind = match seed.within(0..8) {
                0 | 1 => Mischief::Status(500),
                2 => Mischief::Busy,
                3 => Mischief::Reset,
                4 => Mischief::Cut,
                5 => Mischief::Hang(seed.within(20..200)),
                _ => Mischief::Slow(seed.within(1..60)),
            };
            mischief.insert(arrival, kind);
        }
        Self { steps, mischief }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { at, fault } in &self.steps {
            write!(f, "{at} {fault:?}, ")?;
        }
        write!(f, "{} requests ill treated by the origin", self.mischief.len())
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
        let mut seen = Vec::new();
        for seed in 0..200 {
            let schedule = Schedule::new(200, &mut Seed::new(seed));
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
    }
}
