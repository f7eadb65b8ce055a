//! What processes cost, from /proc: nanoseconds on a processor, by thread and by user and kernel.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use beamline_tests::process;

/// What a process and its descendants have used so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage {
    /// Nanoseconds on a processor.
    pub(crate) total: u64,
    /// The same by thread name.
    pub(crate) by_thread: BTreeMap<String, u64>,
    /// Clock ticks in user code and in the kernel: coarse, for shares over many rounds only.
    user_ticks: u64,
    kernel_ticks: u64,
}

impl Usage {
    /// Of the process and its descendants.
    pub(crate) fn of(pid: u32) -> Self {
        let mut sum = Self::default();
        for id in tree(pid) {
            if let Ok((user, kernel)) = process::ticks(id) {
                sum.user_ticks += user;
                sum.kernel_ticks += kernel;
            }
            for task in tasks(id) {
                let Some(ns) = nanoseconds(&task) else { continue };
                let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                *sum.by_thread.entry(name.trim().to_owned()).or_default() += ns;
                sum.total += ns;
            }
        }
        sum
    }

    /// What was used since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let by_thread = self
            .by_thread
            .iter()
            .map(|(name, ns)| {
                (name.clone(), ns.saturating_sub(before.by_thread.get(name).copied().unwrap_or(0)))
            })
            .collect();
        Self {
            total: self.total.saturating_sub(before.total),
            by_thread,
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            kernel_ticks: self.kernel_ticks.saturating_sub(before.kernel_ticks),
        }
    }

    /// Adds up.
    pub(crate) fn add(&mut self, more: &Self) {
        self.total += more.total;
        self.user_ticks += more.user_ticks;
        self.kernel_ticks += more.kernel_ticks;
        for (name, ns) in &more.by_thread {
            *self.by_thread.entry(name.clone()).or_default() += ns;
        }
    }

    /// The part of the time that was spent in the kernel, from 0 to 1.
    pub(crate) fn kernel_share(&self) -> f64 {
        self.kernel_ticks as f64 / (self.user_ticks + self.kernel_ticks).max(1) as f64
    }

    /// The threads by their part of the time, the greatest first.
    pub(crate) fn threads_by_share(&self) -> Vec<(&str, f64)> {
        let mut all: Vec<_> = self
            .by_thread
            .iter()
            .map(|(name, ns)| (name.as_str(), *ns as f64 / self.total.max(1) as f64))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        all
    }
}

fn tasks(pid: u32) -> Vec<PathBuf> {
    let Ok(items) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    items.filter_map(|item| Some(item.ok()?.path())).collect()
}

/// A process and its descendants, parents first.
pub(crate) fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next).copied() {
        next += 1;
        for task in tasks(pid) {
            let children = fs::read_to_string(task.join("children")).unwrap_or_default();
            all.extend(children.split_whitespace().filter_map(|n| n.parse::<u32>().ok()));
        }
    }
    all
}

fn nanoseconds(task: &Path) -> Option<u64> {
    fs::read_to_string(task.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
}

/// The resident memory of a process and its descendants, in MiB.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    let resident = |id: u32| Some(process::memory(id).ok()?.resident as f64);
    tree(pid).into_iter().filter_map(resident).sum::<f64>() / f64::from(1 << 20)
}
