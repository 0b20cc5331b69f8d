//! `pvx bench --guests N`: many guests at once, each with a thread of the supervisor.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use process_vm_exec::Engine;
use serde::Serialize;

use super::{
    guest::{CALL_LOOP, Guest},
    machine::Machine,
    report::table,
};

/// What all engines made of it; this very structure is the JSON.
#[derive(Debug, Serialize)]
pub(super) struct Throughput {
    machine: Machine,
    guests: usize,
    seconds_per_engine: f64,
    engines: Vec<Line>,
}

/// What one engine made of it.
#[derive(Debug, Serialize)]
struct Line {
    engine: &'static str,
    calls_per_second: f64,
    /// System calls answered for the guest that got fewest, and for the one that got most.
    fewest: u64,
    most: u64,
}

/// Lets `guests` guests make system calls for a share of `budget` with each engine.
pub(super) fn measure(guests: usize, engines: &[Engine], budget: Duration) -> Result<Throughput> {
    let share = budget / u32::try_from(engines.len().max(1))?;
    let lines = engines.iter().map(|&engine| with_engine(guests, engine, share));
    Ok(Throughput {
        machine: Machine::here(),
        guests,
        seconds_per_engine: share.as_secs_f64(),
        engines: lines.collect::<Result<_>>()?,
    })
}

fn with_engine(guests: usize, engine: Engine, share: Duration) -> Result<Line> {
    let start = Arc::new(Barrier::new(guests + 1));
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for _ in 0..guests {
        let (start, stop) = (Arc::clone(&start), Arc::clone(&stop));
        let thread = thread::Builder::new().spawn(move || calls_of_one(engine, &start, &stop));
        threads.push(thread.context("a thread for each guest; ask for fewer --guests")?);
    }
    start.wait();
    let begin = Instant::now();
    thread::sleep(share);
    stop.store(true, Ordering::Relaxed);
    let counts = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?);
    let counts: Vec<u64> = counts.collect::<Result<_>>()?;
    let seconds = begin.elapsed().as_secs_f64();
    Ok(Line {
        engine: engine.name(),
        calls_per_second: counts.iter().sum::<u64>() as f64 / seconds,
        fewest: counts.iter().copied().min().unwrap_or(0),
        most: counts.iter().copied().max().unwrap_or(0),
    })
}

fn calls_of_one(engine: Engine, start: &Barrier, stop: &AtomicBool) -> Result<u64> {
    let guest = Guest::new(engine, CALL_LOOP);
    // Whoever failed has to come here too, or the others wait for ever.
    start.wait();
    let mut guest = guest?;
    let mut calls = 0;
    while !stop.load(Ordering::Relaxed) {
        guest.answer_one_call()?;
        calls += 1;
    }
    Ok(calls)
}

impl Throughput {
    pub(super) fn text(&self) -> String {
        let heading = ["engine", "calls per second", "fewest of one guest", "most of one guest"];
        let rows = self.engines.iter().map(|line| {
            let rate = format!("{:.0}", line.calls_per_second);
            vec![line.engine.to_owned(), rate, line.fewest.to_string(), line.most.to_string()]
        });
        let Self { guests, seconds_per_engine, .. } = self;
        format!(
            "{guests} guests at once, {seconds_per_engine:.1} s for each engine\n{}",
            table(&heading, 1, rows)
        )
    }
}
