//! `pvx bench`: what a round trip into another address space costs here.

mod baseline;
mod case;
mod cpus;
mod disturbance;
mod guest;
mod guests;
mod hogs;
mod limits;
mod live;
mod machine;
mod plot;
#[cfg(feature = "png")]
mod png;
mod report;
mod round_trips;
mod spaces;
mod target;

use std::{process::ExitCode, time::Duration};

use anyhow::{Result, bail};
use process_vm_exec::Engine;

pub(crate) use self::target::{TargetArgs, run as target};
use self::{
    case::{Case, Subject},
    plot::Chart,
};
use crate::{live::require_proc, output};

/// Measure round trips into other address spaces, beside what bounds them.
///
/// Every round trip is measured for each engine that works on this machine, with supervisor and guest on two
/// CPUs and on one. All of it runs interleaved, so that a noisy neighbour disturbs every line alike: compare
/// the lines of one run, as ratios. The column `line` has what a cache line took there and back just before.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Cases:
  syscall           the guest makes a system call, the supervisor answers it
  fault             the guest reads unmapped memory, the supervisor steps over the instruction
  interrupt         from a call of interrupt() to the return of the run that it ends
  create            an address space made and dropped
  map               64 KiB mapped and unmapped in a space whose guest has just stopped
  copy              64 bytes read from a guest that has just stopped
  native-getppid    a real getppid of this process (baseline)
  cache-line        a cache line there and back between two CPUs: no hand-off can beat it (baseline)
  attach            LiveProcess::attach to a process that works a little and sleeps
  remote-syscall    getpid executed in such a process, by an executor there
  inject-ptrace     the same by stopping it, setting registers, and stepping over one instruction
  spawn             posix_spawn of a program that exits at once, and wait (baseline)

Examples:
  pvx bench                                    everything, as a table
  pvx bench --case syscall --seconds 3         one case, quickly
  pvx bench --engine trap --engine ptrace --json
  pvx bench --plot round-trips.svg             a chart too
  pvx bench --case syscall --hogs              beside a busy thread on each CPU
  pvx bench --guests 64                        throughput and fairness of 64 guests
  pvx bench --spaces 1000                      what an idle address space costs
  pvx bench --attachments 1000                 how long attaching stops a process, by its own clock
  pvx bench --calls 10000000                   what a busy process loses while calls are made in it")]
pub(crate) struct BenchArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Draw a chart into this file, an SVG by its name (or PNG, if pvx was built with `--features png`)
    #[arg(long, value_name = "FILE", value_parser = Chart::parse)]
    #[arg(conflicts_with_all = ["guests", "spaces", "attachments", "calls"])]
    plot: Option<Chart>,

    /// Measure this engine only: native, rewrite, trap, ptrace or baseline (repeatable)
    #[arg(long, value_name = "NAME", value_parser = Wanted::parse)]
    engine: Vec<Wanted>,

    /// Measure this case only (repeatable)
    #[arg(long, value_name = "NAME", value_parser = Case::parse)]
    #[arg(conflicts_with_all = ["guests", "spaces", "attachments", "calls"])]
    case: Vec<Case>,

    /// Measure beside a thread on each CPU that computes all the time
    #[arg(long, conflicts_with_all = ["guests", "spaces", "attachments", "calls"])]
    hogs: bool,

    /// How long to measure in all, in seconds, 0.1 to 86400; preparations are not counted
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = limits::seconds)]
    seconds: Duration,

    /// Run this many guests at once instead, 1 to 1024, and report their throughput and its spread
    #[arg(long, value_name = "COUNT", value_parser = limits::count(limits::GUESTS))]
    #[arg(conflicts_with = "spaces")]
    guests: Option<usize>,

    /// Hold this many address spaces at once instead, 1 to 10000, and report their memory and the time to create one
    #[arg(long, value_name = "COUNT", value_parser = limits::count(limits::SPACES))]
    spaces: Option<usize>,

    /// Attach so often to a busy and to a sleeping process instead, 1 to 1000000 times, and report what they see of it
    #[arg(long, value_name = "COUNT", value_parser = limits::count(limits::ATTACHMENTS))]
    #[arg(conflicts_with_all = ["guests", "spaces"])]
    attachments: Option<usize>,

    /// Execute COUNT calls in a busy process instead, 1000000 to 1000000000, and report its slowdown
    #[arg(long, value_name = "COUNT", value_parser = limits::count(limits::CALLS))]
    #[arg(conflicts_with_all = ["guests", "spaces", "attachments"])]
    calls: Option<usize>,
}

/// What can be asked for in an engine's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Engine(Engine),
    Baseline,
}

impl Wanted {
    fn parse(name: &str) -> Result<Self, String> {
        if name == Subject::BASELINE {
            return Ok(Self::Baseline);
        }
        crate::engine::engine(name).map(Self::Engine).map_err(|why| format!("{why}, {}", Subject::BASELINE))
    }
}

/// Which lines are asked for.
#[derive(Debug)]
struct Selection {
    engines: Vec<Engine>,
    baseline: bool,
    cases: Vec<Case>,
}

/// Measures and reports.
pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    require_proc()?;
    let budget = args.seconds;
    let selection = Selection::of(args)?;
    if let Some(chart) = &args.plot {
        chart.require_writable()?;
    }
    if let Some(guests) = args.guests {
        let report = guests::measure(guests, &selection.engines, budget)?;
        output::report(&report, args.json, guests::Throughput::text)?;
    } else if let Some(spaces) = args.spaces {
        output::report(&spaces::measure(spaces, &selection.engines)?, args.json, spaces::Costs::text)?;
    } else if let Some(attachments) = args.attachments {
        output::report(&live::measure(attachments)?, args.json, live::Attachments::text)?;
    } else if let Some(calls) = args.calls {
        output::report(&disturbance::measure(calls)?, args.json, disturbance::Disturbance::text)?;
    } else {
        let hogs = args.hogs.then(hogs::Hogs::start).transpose()?;
        let mut report = round_trips::measure(&selection, budget)?;
        report.hogs = hogs.is_some();
        drop(hogs);
        // What took long is kept in one place, if it cannot be in the other.
        let drawn = args.plot.as_ref().map_or(Ok(()), |chart| chart.draw(&report));
        output::report(&report, args.json, report::Report::text)?;
        drawn?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Selection {
    fn of(args: &BenchArgs) -> Result<Self> {
        let all = args.engine.is_empty();
        let wanted: Vec<_> = args
            .engine
            .iter()
            .filter_map(|wanted| match wanted {
                Wanted::Engine(engine) => Some(*engine),
                Wanted::Baseline => None,
            })
            .collect();
        let engines = working_engines(&wanted, all)?;
        let baseline = all || args.engine.contains(&Wanted::Baseline);
        let cases = if args.case.is_empty() { Case::ALL.to_vec() } else { args.case.clone() };
        Ok(Self { engines, baseline, cases })
    }
}

/// The engines to measure: all that work here, or those asked for, which then have to work.
fn working_engines(wanted: &[Engine], all: bool) -> Result<Vec<Engine>> {
    if wanted.is_empty() && !all {
        return Ok(Vec::new());
    }
    let mut engines = Vec::new();
    for (engine, lack) in Engine::detect()?.engines {
        match lack {
            None if all || wanted.contains(&engine) => engines.push(engine),
            Some(lack) if wanted.contains(&engine) => bail!("--engine {engine}: does not work here: {lack}"),
            _ => {}
        }
    }
    Ok(engines)
}
