//! `pvx bench`: what a round trip into another address space costs here.

mod baseline;
mod case;
mod cpus;
mod disturbance;
mod guest;
mod guests;
mod live;
mod machine;
mod plot;
mod report;
mod round_trips;
mod spaces;
mod target;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail, ensure};
use process_vm_exec::Engine;

use self::case::{Case, Subject};
pub(crate) use self::target::{TargetArgs, run as target};

/// Measure round trips into other address spaces, beside what bounds them.
///
/// Every round trip is measured for each engine that works on this machine, with supervisor and guest on two
/// CPUs and on one. All of it runs interleaved, so that a noisy neighbour disturbs every line alike: compare
/// the lines of one run, as ratios.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Cases:
  syscall           the guest makes a system call, the supervisor answers it
  fault             the guest reads unmapped memory, the supervisor steps over the instruction
  interrupt         from a call of interrupt() to the return of the run that it ends
  create            an address space made and dropped
  native-getppid    a real getppid of this process (baseline)
  cache-line        a cache line there and back between two CPUs: no hand-off can beat it (baseline)
  attach            AddressSpace::attach to a process that works a little and sleeps
  remote-syscall    getpid executed in such a process, by an executor there
  inject-ptrace     the same by stopping it, setting its registers, and stepping over one instruction
  spawn             posix_spawn of a program that exits at once, and wait (baseline)

Examples:
  pvx bench                                    everything, as a table
  pvx bench --case syscall --seconds 3         one case, quickly
  pvx bench --engine trap --engine ptrace --json
  pvx bench --plot round-trips.svg             a chart too
  pvx bench --guests 64                        throughput and fairness of 64 guests
  pvx bench --spaces 1000                      what an idle address space costs
  pvx bench --attachments 1000                 how long attaching stops a live process, by that one's own clock
  pvx bench --calls 10000000                   what a busy process loses while calls are executed in it")]
pub(crate) struct BenchArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,

    /// Draw a chart into this file, as SVG or PNG by its name
    #[arg(long, value_name = "FILE", conflicts_with_all = ["guests", "spaces", "attachments", "calls"])]
    plot: Option<PathBuf>,

    /// Measure this engine only: native, rewrite, trap, ptrace or baseline (repeatable)
    #[arg(long, value_name = "NAME")]
    engine: Vec<String>,

    /// Measure this case only (repeatable)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["guests", "spaces", "attachments", "calls"])]
    case: Vec<String>,

    /// How long to measure, in seconds, preparations not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0)]
    seconds: f64,

    /// Run this many guests at once instead, and report their throughput and its spread
    #[arg(long, value_name = "COUNT", conflicts_with = "spaces")]
    guests: Option<usize>,

    /// Hold this many address spaces at once instead, and report their memory and the time to create one
    #[arg(long, value_name = "COUNT")]
    spaces: Option<usize>,

    /// Attach so often to a busy and to a sleeping process instead, and report what they see of it
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["guests", "spaces"])]
    attachments: Option<usize>,

    /// Execute so many calls in a busy process instead, and report how much less that does meanwhile
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["guests", "spaces", "attachments"])]
    calls: Option<usize>,
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
    ensure!(
        args.seconds.is_finite() && args.seconds > 0.0 && args.seconds < 1e6,
        "--seconds {}: use a number above 0",
        args.seconds
    );
    let budget = Duration::from_secs_f64(args.seconds);
    let selection = Selection::of(args)?;
    if let Some(path) = &args.plot {
        plot::Format::of(path)?;
    }
    if let Some(guests) = args.guests {
        ensure!(guests > 0, "--guests 0: use a number above 0");
        guests::measure(guests, &selection.engines, budget)?.print(args.json)?;
    } else if let Some(spaces) = args.spaces {
        ensure!(spaces > 0, "--spaces 0: use a number above 0");
        spaces::measure(spaces, &selection.engines)?.print(args.json)?;
    } else if let Some(attachments) = args.attachments {
        ensure!(attachments > 0, "--attachments 0: use a number above 0");
        live::measure(attachments)?.print(args.json)?;
    } else if let Some(calls) = args.calls {
        ensure!(calls > 0, "--calls 0: use a number above 0");
        disturbance::measure(calls)?.print(args.json)?;
    } else {
        let report = round_trips::measure(&selection, budget)?;
        report.print(args.json)?;
        if let Some(path) = &args.plot {
            plot::draw(&report, path)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Selection {
    fn of(args: &BenchArgs) -> Result<Self> {
        let mut wanted = Vec::new();
        let mut baseline = args.engine.is_empty();
        for name in &args.engine {
            if name == Subject::BASELINE {
                baseline = true;
            } else if let Ok(engine) = name.parse::<Engine>() {
                wanted.push(engine);
            } else {
                bail!("--engine {name}: no such engine; use native, rewrite, trap, ptrace or baseline");
            }
        }
        let engines = working_engines(&wanted, args.engine.is_empty())?;
        let mut cases = Vec::new();
        for name in &args.case {
            let case = Case::ALL.into_iter().find(|case| case.name() == name);
            let Some(case) = case else {
                let names: Vec<_> = Case::ALL.into_iter().map(Case::name).collect();
                bail!("--case {name}: no such case; use one of {}", names.join(", "));
            };
            cases.push(case);
        }
        if cases.is_empty() {
            cases = Case::ALL.to_vec();
        }
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
