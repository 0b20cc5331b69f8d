//! The CPUs that measurements are pinned to.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use super::case::Placement;

/// Two of the CPUs that this process may use, or the only one.
#[derive(Clone, Debug)]
pub(super) struct Cpus {
    supervisor: usize,
    /// `None` where there is one CPU only.
    other: Option<usize>,
    all: CpuSet,
}

impl Cpus {
    /// Asks the kernel which there are.
    pub(super) fn available() -> Result<Self> {
        let all = sched_getaffinity(None).context("sched_getaffinity")?;
        let mut numbers = numbers(&all);
        let supervisor = numbers.next().context("no CPU to run on")?;
        Ok(Self { supervisor, other: numbers.next(), all })
    }

    /// The numbers of all.
    pub(super) fn all_numbers() -> Result<Vec<usize>> {
        Ok(numbers(&sched_getaffinity(None).context("sched_getaffinity")?).collect())
    }

    /// Puts the calling thread on the CPU of this number.
    pub(super) fn pin_to_number(cpu: usize) -> Result<()> {
        pin(None, cpu)
    }

    pub(super) fn has_two(&self) -> bool {
        self.other.is_some()
    }

    /// Puts the calling thread, and those that it starts later, on the supervisor's CPU.
    pub(super) fn pin_supervisor(&self) -> Result<()> {
        pin(None, self.supervisor)
    }

    /// Puts the calling thread, and those that it starts later, where `placement` has guests.
    pub(super) fn pin_to(&self, placement: Placement) -> Result<()> {
        pin(None, self.guest_cpu(placement))
    }

    /// Puts every task of the process `pid` where `placement` has guests.
    pub(super) fn pin_guest(&self, pid: i32, placement: Placement) -> Result<()> {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let name = task?.file_name();
            let tid = name.to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            pin(tid, self.guest_cpu(placement))?;
        }
        Ok(())
    }

    /// Runs `work` with the calling thread, and what it starts, on one CPU or on any.
    pub(super) fn spread<T>(&self, placement: Placement, work: impl FnOnce() -> T) -> Result<T> {
        if placement == Placement::TwoCpus {
            sched_setaffinity(None, &self.all).context("sched_setaffinity")?;
        }
        let result = work();
        self.pin_supervisor()?;
        Ok(result)
    }

    /// Lets the calling thread run anywhere again.
    pub(super) fn unpin(&self) -> Result<()> {
        sched_setaffinity(None, &self.all).context("sched_setaffinity")
    }

    fn guest_cpu(&self, placement: Placement) -> usize {
        match placement {
            Placement::TwoCpus => self.other.unwrap_or(self.supervisor),
            Placement::OneCpu => self.supervisor,
        }
    }
}

fn numbers(set: &CpuSet) -> impl Iterator<Item = usize> {
    (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu))
}

fn pin(task: Option<Pid>, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(task, &set).with_context(|| format!("sched_setaffinity to CPU {cpu}"))
}
