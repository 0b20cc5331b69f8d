//! What a process that works loses while calls are executed in it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use process_vm_exec::{Call, LiveProcess, Sysno};
use serde::Serialize;

use super::{
    case::Placement,
    cpus::Cpus,
    machine::Machine,
    report::{Spread, human_ns},
    target::{Target, Work},
};

/// What a busy target does with and without calls in it; this very structure is the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Disturbance {
    machine: Machine,
    calls: usize,
    call_ns: Spread,
    /// How much the target does per second undisturbed, and while calls are made one after the other.
    undisturbed_per_second: Spread,
    called_per_second: Spread,
    /// Of the medians.
    ratio: f64,
}

/// Makes so many calls in a busy target, in turns with as long times without: target on one CPU, caller and executor on
/// another.
pub(super) fn measure(calls: usize) -> Result<Disturbance> {
    const TURNS: usize = 50;
    let cpus = Cpus::available()?;
    ensure!(cpus.has_two(), "--calls: a busy process and its caller need two CPUs");
    let mut target = Target::start_at(Work::Busy, Placement::TwoCpus, &cpus)?;
    cpus.pin_supervisor()?;
    let space = LiveProcess::attach_pid(target.pid()?)?;
    let (mut call, mut undisturbed, mut called) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        let share = calls * (turn + 1) / TURNS - calls * turn / TURNS;
        target.ask()?;
        let start = Instant::now();
        for _ in 0..share {
            space.syscall(&Call::new(Sysno::getpid))?;
        }
        let took = start.elapsed();
        called.push(rate(&mut target, took)?);
        call.push(took.as_secs_f64() * 1e9 / share as f64);
        std::thread::sleep(took);
        undisturbed.push(rate(&mut target, took)?);
    }
    space.detach()?;
    cpus.unpin()?;
    let (undisturbed, called) = (Spread::of(undisturbed), Spread::of(called));
    ensure!(
        undisturbed.median > 0.0,
        "the process did nothing in most of the {TURNS} turns: the machine is too busy; make more --calls"
    );
    Ok(Disturbance {
        machine: Machine::here(),
        calls,
        call_ns: Spread::of(call),
        undisturbed_per_second: undisturbed,
        called_per_second: called,
        ratio: called.median / undisturbed.median,
    })
}

fn rate(target: &mut Target, took: Duration) -> Result<f64> {
    Ok(target.ask()?.1 / took.as_secs_f64())
}

impl Disturbance {
    pub(super) fn text(&self) -> String {
        format!(
            "{} calls in a busy process, {} each\n\
             it does {:.4} times as much meanwhile as undisturbed (medians of turns)\n",
            self.calls,
            human_ns(self.call_ns.median),
            self.ratio
        )
    }
}
