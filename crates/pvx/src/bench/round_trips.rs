//! The measurement itself: batches of all subjects in turn, so that noise falls on all of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    Selection, baseline,
    case::{Case, Placement, Rounds, Subject},
    cpus::Cpus,
    machine::Machine,
    report::{Measured, Report},
};

/// Batches of each subject; the median of so many is steady.
const BATCHES: u32 = 15;
/// How often the cache line is passed before each batch: takes a tenth of a millisecond.
const LINE_ROUNDS: u32 = 1000;

/// A subject, what does its rounds, and what came out so far.
struct Running {
    subject: Subject,
    rounds: Rounds,
    pace: Pace,
    ns: Vec<f64>,
    /// What a cache line took before each batch, if that is on two CPUs.
    line_ns: Vec<f64>,
}

/// How many rounds the next batch has, so that all batches together take their time.
#[derive(Debug)]
struct Pace {
    per_batch: u32,
    batches_left: u32,
    time_left: Duration,
}

impl Pace {
    fn new(share: Duration, per_batch: u32) -> Self {
        Self { per_batch, batches_left: BATCHES, time_left: share }
    }

    /// A batch took this long: a first guess is often wrong, and rounds become faster or slower.
    fn took(&mut self, elapsed: Duration) {
        self.batches_left = self.batches_left.saturating_sub(1);
        self.time_left = self.time_left.saturating_sub(elapsed);
        if self.batches_left > 0 {
            self.per_batch = fitting(self.time_left / self.batches_left, self.per_batch, elapsed);
        }
    }
}

/// Measures every selected subject for `budget` in all.
pub(super) fn measure(selection: &Selection, budget: Duration) -> Result<Report> {
    let machine = Machine::here();
    let cpus = Cpus::available()?;
    let subjects = subjects(selection, &cpus);
    ensure!(!subjects.is_empty(), "nothing to measure: no such case of those engines on this machine");
    cpus.pin_supervisor()?;
    let measured = rounds_of_all(&subjects, &cpus, budget);
    cpus.unpin()?;
    Ok(Report::new(machine, measured?))
}

fn subjects(selection: &Selection, cpus: &Cpus) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for &case in &selection.cases {
        let engines = match case.is_baseline() {
            true if selection.baseline => vec![None],
            true => vec![],
            false => selection
                .engines
                .iter()
                .copied()
                .filter(|&engine| case.only_engine().is_none_or(|only| only == engine))
                .map(Some)
                .collect(),
        };
        for placement in Placement::ALL {
            let possible = cpus.has_two() || placement == Placement::OneCpu;
            // Two threads on one CPU never pass a cache line, and a plain system call needs one CPU only.
            let sensible = match case {
                Case::CacheLine => placement == Placement::TwoCpus,
                Case::NativeGetppid => placement == Placement::OneCpu,
                _ => true,
            };
            if possible && sensible {
                subjects.extend(engines.iter().map(|&engine| Subject { case, engine, placement }));
            }
        }
    }
    subjects
}

fn rounds_of_all(subjects: &[Subject], cpus: &Cpus, budget: Duration) -> Result<Vec<Measured>> {
    let steps = u32::try_from(subjects.len())?;
    let progress = ProgressBar::new(u64::from(steps) * u64::from(BATCHES + 1));
    progress.set_style(ProgressStyle::with_template("{bar:32} {percent:>3} %  {msg}")?);
    let share = budget / steps;
    // The host moves virtual CPUs, and with them what any hand-off can cost at best.
    let mut line = cpus.has_two().then(|| baseline::cache_line_rounds(cpus)).transpose()?;

    let mut running = Vec::new();
    for &subject in subjects {
        progress.set_message(describe(subject));
        let mut rounds = subject.prepare(cpus).with_context(|| describe(subject))?;
        let per_batch = rounds_in(share / BATCHES, &mut rounds).with_context(|| describe(subject))?;
        let (pace, ns, line_ns) = (Pace::new(share, per_batch), Vec::new(), Vec::new());
        running.push(Running { subject, rounds, pace, ns, line_ns });
        progress.inc(1);
    }
    for _ in 0..BATCHES {
        for one in &mut running {
            progress.set_message(describe(one.subject));
            if let (Placement::TwoCpus, Some(line)) = (one.subject.placement, &mut line) {
                one.line_ns.push(line(LINE_ROUNDS).context("cache-line")?);
            }
            let start = Instant::now();
            one.ns.push((one.rounds)(one.pace.per_batch).with_context(|| describe(one.subject))?);
            one.pace.took(start.elapsed());
            progress.inc(1);
        }
    }
    progress.finish_and_clear();
    Ok(running.into_iter().map(|one| Measured::of(one.subject, one.ns, one.line_ns)).collect())
}

/// How many rounds fill `slice`; finding out warms the subject up.
fn rounds_in(slice: Duration, rounds: &mut Rounds) -> Result<u32> {
    let mut count = 1;
    loop {
        let start = Instant::now();
        rounds(count)?;
        let elapsed = start.elapsed();
        if elapsed * 4 >= slice || count >= 1 << 28 {
            return Ok(fitting(slice, count, elapsed));
        }
        count *= 2;
    }
}

/// How many rounds take `slice`, if `count` took `elapsed`.
fn fitting(slice: Duration, count: u32, elapsed: Duration) -> u32 {
    let fitting = slice.as_nanos() * u128::from(count) / elapsed.as_nanos().max(1);
    u32::try_from(fitting).unwrap_or(u32::MAX).clamp(1, 1 << 29)
}

fn describe(subject: Subject) -> String {
    format!("{} {} {}", subject.case.name(), subject.engine_name(), subject.placement.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time that all batches take, if a round of batch `n` takes `ns(n)`.
    fn all_batches(share: Duration, first: u32, ns: impl Fn(u32) -> u32) -> Duration {
        let mut pace = Pace::new(share, first);
        let batches = (0..BATCHES).map(|batch| {
            let elapsed = Duration::from_nanos(u64::from(pace.per_batch) * u64::from(ns(batch)));
            pace.took(elapsed);
            elapsed
        });
        batches.sum()
    }

    #[test]
    fn batches_take_their_time_though_the_first_guess_was_wrong() {
        let share = Duration::from_secs(2);
        // Half of what fits, twice as much, and rounds that become faster.
        for taken in [
            all_batches(share, 66_666, |_| 1000),
            all_batches(share, 266_666, |_| 1000),
            all_batches(share, 133_333, |batch| if batch < 5 { 1000 } else { 100 }),
        ] {
            assert!(taken.abs_diff(share) < share / 20, "{taken:?}");
        }
    }
}
