//! Rounds in a live process, and what they cost that process.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        ptrace,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use process_vm_exec::{Call, LiveProcess, Sysno};
use serde::Serialize;

use super::{
    case::{Placement, Rounds},
    cpus::Cpus,
    machine::Machine,
    report::{Spread, human_ns, table},
    target::{Target, Work},
};

// Targets live for one batch: between them they would disturb all other cases.

/// Attaching to a process that works, all of it but the detaching.
pub(super) fn attach_rounds(placement: Placement, cpus: &Cpus) -> Rounds {
    let cpus = cpus.clone();
    Box::new(move |rounds| {
        let target = Target::start_at(Work::Sleeping, placement, &cpus)?;
        let pid = target.pid()?;
        cpus.spread(placement, || {
            let mut total = Duration::ZERO;
            for _ in 0..rounds {
                let start = Instant::now();
                let space = LiveProcess::attach_pid(pid)?;
                total += start.elapsed();
                space.detach()?;
            }
            Ok(total.as_secs_f64() * 1e9 / f64::from(rounds))
        })?
    })
}

/// A system call in a process that goes on working.
pub(super) fn syscall_rounds(placement: Placement, cpus: &Cpus) -> Rounds {
    let cpus = cpus.clone();
    Box::new(move |rounds| {
        let target = Target::start_at(Work::Sleeping, placement, &cpus)?;
        // The executor runs where its supervisor does when it attaches.
        cpus.pin_to(placement)?;
        let space = LiveProcess::attach_pid(target.pid()?);
        cpus.pin_supervisor()?;
        let space = space?;
        super::guest::timed(rounds, || {
            space.syscall(&Call::new(Sysno::getpid))?;
            Ok(())
        })
    })
}

/// The same by what everybody does: stop the process, set its registers, step over one instruction, set them back.
pub(super) fn inject_rounds(placement: Placement, cpus: &Cpus) -> Rounds {
    let cpus = cpus.clone();
    Box::new(move |rounds| {
        let target = Target::start_at(Work::Sleeping, placement, &cpus)?;
        let pid = target.pid()?;
        let site = syscall_instruction(pid)?;
        super::guest::timed(rounds, || inject_getpid(Pid::from_raw(pid), site))
    })
}

fn inject_getpid(pid: Pid, site: u64) -> Result<()> {
    ptrace::seize(pid, ptrace::Options::empty()).context("PTRACE_SEIZE")?;
    ptrace::interrupt(pid)?;
    stopped(pid)?;
    let before = ptrace::getregs(pid)?;
    let mut call = before;
    call.rip = site;
    call.rax = Sysno::getpid.id().unsigned_abs().into();
    call.orig_rax = u64::MAX;
    ptrace::setregs(pid, call)?;
    ptrace::step(pid, None)?;
    stopped(pid)?;
    let result = ptrace::getregs(pid)?.rax;
    ptrace::setregs(pid, before)?;
    ptrace::detach(pid, None)?;
    anyhow::ensure!(i32::try_from(result) == Ok(pid.as_raw()), "an injected getpid returned {result}");
    Ok(())
}

fn stopped(pid: Pid) -> Result<()> {
    match waitpid(pid, Some(WaitPidFlag::__WALL))? {
        WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => Ok(()),
        other => bail!("a stop was expected, not {other:?}"),
    }
}

/// The address of a `syscall` instruction in the process's vDSO.
fn syscall_instruction(pid: i32) -> Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]")).context("the target has no vDSO")?;
    let (start, end) =
        vdso.split_once(' ').and_then(|(range, _)| range.split_once('-')).context("/proc/PID/maps")?;
    let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
    let mut text = vec![0; usize::try_from(end - start)?];
    File::open(format!("/proc/{pid}/mem"))?.read_exact_at(&mut text, start)?;
    let at = text.windows(2).position(|two| two == [0x0f, 0x05]).context("the vDSO makes no system call")?;
    Ok(start + at as u64)
}

/// What attachments cost the processes that were attached to; this very structure is the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Attachments {
    machine: Machine,
    attachments: usize,
    targets: Vec<Line>,
}

/// What one kind of target saw.
#[derive(Debug, Serialize)]
struct Line {
    target: &'static str,
    /// The longest gap of its own clock while somebody attached and detached, and in as long a time without that.
    gap_ns: Tail,
    undisturbed_gap_ns: Tail,
    /// What the call took.
    attach_ns: Tail,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Tail {
    #[serde(flatten)]
    spread: Spread,
    p99: f64,
}

impl Tail {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let p99 = values.get(values.len() * 99 / 100).copied().unwrap_or(f64::NAN);
        Self { spread: Spread::of(values), p99 }
    }
}

/// Attaches so often to a target of each kind.
pub(super) fn measure(attachments: usize) -> Result<Attachments> {
    let targets = [Work::Busy, Work::Sleeping].into_iter().map(|work| attach_to(work, attachments));
    Ok(Attachments { machine: Machine::here(), attachments, targets: targets.collect::<Result<_>>()? })
}

fn attach_to(work: Work, attachments: usize) -> Result<Line> {
    /// How long the target is watched around each attachment.
    const WATCH: Duration = Duration::from_millis(2);
    let mut target = Target::start(work)?;
    let pid = target.pid()?;
    let (mut gaps, mut undisturbed, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..attachments {
        target.ask()?;
        std::thread::sleep(WATCH);
        undisturbed.push(target.ask()?.0);
        let start = Instant::now();
        let space = LiveProcess::attach_pid(pid)?;
        calls.push(start.elapsed().as_secs_f64() * 1e9);
        std::thread::sleep(WATCH.saturating_sub(start.elapsed()));
        gaps.push(target.ask()?.0);
        space.detach()?;
    }
    let target = if work == Work::Busy { "busy" } else { "sleeping" };
    let (gap_ns, undisturbed_gap_ns) = (Tail::of(gaps), Tail::of(undisturbed));
    Ok(Line { target, gap_ns, undisturbed_gap_ns, attach_ns: Tail::of(calls) })
}

impl Attachments {
    pub(super) fn text(&self) -> String {
        let heading = ["target", "", "min", "median", "p99", "max"];
        let rows = self.targets.iter().flat_map(|line| {
            [
                ("gap of its clock", line.gap_ns),
                ("undisturbed", line.undisturbed_gap_ns),
                ("attach", line.attach_ns),
            ]
            .map(|(what, Tail { spread, p99 })| {
                let numbers = [spread.min, spread.median, p99, spread.max].map(human_ns);
                [line.target.to_owned(), what.to_owned()].into_iter().chain(numbers).collect()
            })
        });
        format!("{} attachments to each target\n{}", self.attachments, table(&heading, 2, rows))
    }
}
