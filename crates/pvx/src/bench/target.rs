//! A live process to attach to: this program once more, which works and watches its own clock.

use std::{
    io::{BufRead, BufReader, Write, stdin, stdout},
    num::NonZeroU64,
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use super::{case::Placement, cpus::Cpus};

/// What a target does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Work {
    /// It never sleeps.
    Busy,
    /// It sleeps, and works a little in between.
    Sleeping,
}

/// Run as a target of `pvx bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct TargetArgs {
    #[arg(value_enum)]
    work: Work,
}

/// How long a sleeping target sleeps.
const NAP: Duration = Duration::from_micros(300);

/// What the target has seen since it was last asked.
static LONGEST_GAP_NS: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// The target's life: its main thread works, another answers each line of standard input.
pub(crate) fn run(args: &TargetArgs) -> Result<ExitCode> {
    let work = args.work;
    thread::spawn(answer);
    // The kernel may wake a sleeper as much later as this (prctl(2)); 50 us of it would hide what is measured here.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("PR_SET_TIMERSLACK")?;
    let mut last = Instant::now();
    loop {
        let slept = match work {
            Work::Busy => Duration::ZERO,
            Work::Sleeping => {
                thread::sleep(NAP);
                NAP
            }
        };
        let now = Instant::now();
        let gap = now.duration_since(last).saturating_sub(slept);
        LONGEST_GAP_NS.fetch_max(u64::try_from(gap.as_nanos())?, Ordering::Relaxed);
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        last = now;
    }
}

/// Ends the process when nobody asks any more.
fn answer() {
    for line in stdin().lines() {
        let (gap, rounds) = (LONGEST_GAP_NS.swap(0, Ordering::Relaxed), ROUNDS.swap(0, Ordering::Relaxed));
        if line.is_err() || writeln!(stdout(), "{gap} {rounds}").is_err() {
            break;
        }
    }
    std::process::exit(0);
}

/// A running target, from outside.
#[derive(Debug)]
pub(super) struct Target {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Target {
    pub(super) fn start(work: Work) -> Result<Self> {
        let name = work.to_possible_value().context("every kind of work has a name")?;
        let mut child = Command::new(std::env::current_exe().context("finding this program")?)
            .args(["bench-target", name.get_name()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a target")?;
        let questions = child.stdin.take().context("its standard input")?;
        let answers = BufReader::new(child.stdout.take().context("its standard output")?);
        let mut target = Self { child, questions, answers };
        target.ask()?;
        Ok(target)
    }

    /// Starts one where `placement` has guests.
    pub(super) fn start_at(work: Work, placement: Placement, cpus: &Cpus) -> Result<Self> {
        let target = Self::start(work)?;
        cpus.pin_guest(target.pid()?, placement)?;
        Ok(target)
    }

    pub(super) fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.child.id())?)
    }

    /// The longest gap of its clock, in nanoseconds, and how often it looked, both since the last question.
    pub(super) fn ask(&mut self) -> Result<(f64, f64)> {
        writeln!(self.questions)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let numbers: Vec<f64> = answer.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        ensure!(numbers.len() == 2, "the target has ended");
        Ok((numbers[0], numbers[1]))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
