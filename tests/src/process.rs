//! Child processes: on one processor, ended for sure, waited for with a bound.

use std::{
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Restricts the calling thread, and what it starts from now on, to one processor.
///
/// # Errors
/// Where there is no such processor.
pub fn pin_to(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on processor {cpu} alone"))
}

/// The processors that the calling thread may run on.
///
/// # Errors
/// Where the kernel can't tell.
pub fn processors() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Starts a command, where `cpu` is given on that processor alone. The calling thread's own processors stay.
///
/// # Errors
/// Where it can't be started or there is no such processor.
pub fn spawn_on(command: &mut Command, cpu: Option<usize>) -> Result<Child> {
    let Some(cpu) = cpu else { return Ok(command.spawn()?) };
    let own = sched_getaffinity(None)?;
    pin_to(cpu)?;
    let child = command.spawn();
    sched_setaffinity(None, &own)?;
    Ok(child?)
}

fn pid_of(id: u32) -> Result<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw).context("a process id is a positive number")
}

/// Sends a signal to a process.
///
/// # Errors
/// Where there is no such process.
pub fn signal(id: u32, signal: Signal) -> Result<()> {
    kill_process(pid_of(id)?, signal).with_context(|| format!("cannot send {signal:?} to process {id}"))
}

/// Waits until a child has ended; `None` where it hasn't by then.
///
/// # Errors
/// Where the kernel can't tell.
pub fn wait_exit(child: &mut Child, within: Duration) -> Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait()? {
        return Ok(Some(status));
    }
    let ended = pidfd_open(pid_of(child.id())?, PidfdFlags::empty())?;
    let mut wanted = [PollFd::new(&ended, PollFlags::IN)];
    let timeout = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: i64::from(within.subsec_nanos()) };
    poll(&mut wanted, Some(&timeout))?;
    Ok(child.try_wait()?)
}

/// What a process holds of the machine's memory, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// At most so far.
    pub peak: u64,
}

/// How much memory a process holds.
///
/// # Errors
/// Where there is no such process.
pub fn memory(id: u32) -> Result<Memory> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line
            .and_then(|rest| rest.trim_start_matches(':').trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.map(|kib| kib << 10).with_context(|| format!("no {key} of process {id}"))
    };
    Ok(Memory { resident: of("VmRSS")?, peak: of("VmHWM")? })
}

/// Ticks of 10 ms that all threads of a process have used so far: in its own code, and in the kernel.
///
/// # Errors
/// Where there is no such process.
pub fn ticks(id: u32) -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Its name, in parentheses, may have spaces; what follows begins with the third field.
    let (_, fields) = stat.rsplit_once(") ").with_context(|| format!("no name of process {id}"))?;
    let field = |n: usize| -> Result<u64> {
        let value = fields.split(' ').nth(n - 3).with_context(|| format!("no field {n} of process {id}"))?;
        Ok(value.parse()?)
    };
    Ok((field(14)?, field(15)?))
}

/// Processor time that all threads of a process have used so far, in steps of 10 ms.
///
/// # Errors
/// Where there is no such process.
pub fn cpu_time(id: u32) -> Result<Duration> {
    let (user, kernel) = ticks(id)?;
    Ok(Duration::from_millis(10 * (user + kernel)))
}

/// How much machine code a process has that came from no file, in bytes: a node's is that of the modules it holds.
///
/// # Errors
/// Where there is no such process.
pub fn loaded_code(id: u32) -> Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{id}/maps"))?;
    let bytes = |line: &str| -> Option<u64> {
        let [range, "r-xp", _, _, "0"] = line.split_whitespace().collect::<Vec<_>>()[..] else { return None };
        let (start, end) = range.split_once('-')?;
        Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?)
    };
    Ok(maps.lines().filter_map(bytes).sum())
}

/// The names of a process's threads, sorted.
///
/// # Errors
/// Where there is no such process.
pub fn threads(id: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{id}/task"))? {
        // One that has ended meanwhile has no name any more.
        if let Ok(name) = std::fs::read_to_string(task?.path().join("comm")) {
            names.push(name.trim_end().to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// A child that is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Guarded(pub Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
