//! `pvx bench --spaces N`: what idle address spaces cost, and what making one costs a large supervisor.

use std::{fs, hint, time::Instant};

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use process_vm_exec::{AddressSpace, Engine};
use serde::Serialize;

use super::{
    baseline::TinyProgram,
    machine::{Machine, field_kib, mem_kib},
    report::{Spread, human_ns, table},
};
use crate::output::say;

/// Memory that the supervisor has touched when creation is timed.
const SUPERVISOR_MIB: [usize; 2] = [20, 1024];
/// Creations timed each.
const CREATIONS: usize = 51;
/// What stands for the engine in the lines of posix_spawn(3).
const SPAWN: &str = "spawn";

/// What came out; this very structure is the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Costs {
    machine: Machine,
    spaces: usize,
    memory: Vec<Memory>,
    create: Vec<Creation>,
}

/// Of idle spaces, each.
#[derive(Debug, Serialize)]
struct Memory {
    engine: &'static str,
    alive: usize,
    /// Pages in memory, shared ones counted in full (`Rss` of smaps_rollup).
    rss_kib: f64,
    /// The same with shared pages divided among those that share them (`Pss`).
    pss_kib: f64,
    /// What the whole machine has less since they exist: page tables and kernel objects included.
    machine_kib: f64,
    create_ns: f64,
}

/// The time to create and drop one.
#[derive(Debug, Serialize)]
struct Creation {
    engine: &'static str,
    supervisor_mib: usize,
    ns: Spread,
}

/// Measures both.
pub(super) fn measure(spaces: usize, engines: &[Engine]) -> Result<Costs> {
    let mut costs = Costs { machine: Machine::here(), spaces, memory: Vec::new(), create: Vec::new() };
    for &engine in engines {
        costs.memory.push(memory_of(spaces, engine)?);
    }
    let program = TinyProgram::new()?;
    for mib in SUPERVISOR_MIB {
        let room_mib = mem_kib("MemAvailable").unwrap_or(0) / 1024;
        if room_mib < 2 * mib as u64 {
            say(format_args!("pvx: not measured with {mib} MiB touched: {room_mib} MiB are available"));
            continue;
        }
        let ballast = touched(mib << 20);
        for &engine in engines {
            let create = || {
                drop(AddressSpace::builder().engine(engine).create()?);
                Ok(())
            };
            costs.create.push(creation(engine.name(), mib, create)?);
        }
        costs.create.push(creation(SPAWN, mib, || program.run())?);
        drop(ballast);
    }
    Ok(costs)
}

fn memory_of(spaces: usize, engine: Engine) -> Result<Memory> {
    let progress = ProgressBar::new(spaces as u64);
    let available_before = mem_kib("MemAvailable").unwrap_or(0) as f64;
    let mut alive = Vec::new();
    let start = Instant::now();
    for _ in 0..spaces {
        let space = AddressSpace::builder().engine(engine).create();
        alive.push(space.with_context(|| format!("address space {} with {engine}", alive.len() + 1))?);
        progress.inc(1);
    }
    let create_ns = start.elapsed().as_secs_f64() * 1e9 / spaces as f64;
    let available_after = mem_kib("MemAvailable").unwrap_or(0) as f64;
    let (mut rss, mut pss) = (0, 0);
    for space in &alive {
        let path = format!("/proc/{}/smaps_rollup", space.pid().expect("a live space").as_raw_pid());
        let rollup = fs::read_to_string(&path).with_context(|| path.clone())?;
        rss += field_kib(&rollup, "Rss").unwrap_or(0);
        pss += field_kib(&rollup, "Pss").unwrap_or(0);
    }
    progress.finish_and_clear();
    let each = |kib: f64| kib / spaces as f64;
    Ok(Memory {
        engine: engine.name(),
        alive: alive.len(),
        rss_kib: each(rss as f64),
        pss_kib: each(pss as f64),
        machine_kib: each(available_before - available_after),
        create_ns,
    })
}

fn creation(engine: &'static str, mib: usize, mut create: impl FnMut() -> Result<()>) -> Result<Creation> {
    create()?;
    let mut ns = Vec::new();
    for _ in 0..CREATIONS {
        let start = Instant::now();
        create()?;
        ns.push(start.elapsed().as_secs_f64() * 1e9);
    }
    Ok(Creation { engine, supervisor_mib: mib, ns: Spread::of(ns) })
}

/// So many bytes, with every page written.
fn touched(bytes: usize) -> Vec<u8> {
    hint::black_box(vec![0xa5; bytes])
}

impl Costs {
    pub(super) fn text(&self) -> String {
        let heading = ["engine", "Rss", "Pss", "of the machine", "created in"];
        let rows = self.memory.iter().map(|line| {
            let kib = |value: f64| format!("{value:.0} KiB");
            let create = human_ns(line.create_ns);
            vec![line.engine.to_owned(), kib(line.rss_kib), kib(line.pss_kib), kib(line.machine_kib), create]
        });
        let memory = table(&heading, 1, rows);
        let heading = ["engine", "supervisor", "median", "min", "max"];
        let rows = self.create.iter().map(|line| {
            let times = [line.ns.median, line.ns.min, line.ns.max].map(human_ns);
            let mut row = vec![line.engine.to_owned(), format!("{} MiB", line.supervisor_mib)];
            row.extend(times);
            row
        });
        let create = table(&heading, 1, rows);
        format!(
            "{} idle address spaces, each:\n{memory}\n\
             Created and dropped, by the supervisor's memory:\n{create}",
            self.spaces
        )
    }
}
