//! How long a thread has been asleep in a system call.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::ClockId;

use super::stop::Timeout;
use crate::procfs;
use crate::stat::Stat;

/// A sleep of a thread that was seen to last.
#[derive(Debug)]
pub(super) struct Asleep {
    tid: i32,
    /// How often it had gone to sleep by then.
    sleeps: u64,
    elapsed: Duration,
    seen: Instant,
}

impl Asleep {
    /// If the thread sleeps in a call whose timeout we would have to shorten. For how long, its scheduler knows, and
    /// the same of ourselves as we begin to run on its processor, whose clock that is. `None` where the kernel does not
    /// tell (CONFIG_SCHED_DEBUG).
    pub(super) fn look_at(tid: i32) -> Option<Self> {
        let call = procfs::read(format!("/proc/{tid}/syscall")).ok()?;
        Timeout::of(call.split(' ').next()?.parse().ok()?)?;
        let theirs = Scheduled::of(&tid.to_string())?;
        let (home, mut there) = (sched_getaffinity(None).ok()?, CpuSet::new());
        there.set(Stat::of(tid)?.processor);
        sched_setaffinity(None, &there).ok()?;
        let (ours, seen) = (Scheduled::of("thread-self"), Instant::now());
        let _ = sched_setaffinity(None, &home);
        let elapsed = Duration::try_from_secs_f64((ours?.began_ms - theirs.began_ms) / 1e3).ok()?;
        let elapsed = elapsed.saturating_sub(error_of_schedulers_clock());
        Some(Self { tid, sleeps: theirs.sleeps, elapsed, seen })
    }

    /// How long it had slept when we stopped it; `None` if that was another sleep.
    pub(super) fn until_stopped(&self) -> Option<Duration> {
        // To stop is to sleep once more.
        let is_same = Scheduled::of(&self.tid.to_string())?.sleeps == self.sleeps + 1;
        is_same.then(|| self.elapsed + self.seen.elapsed())
    }
}

/// By how much a span of the scheduler's clock may be too long: by nothing, unless time-stamp counters do not agree. Then
/// the clock is put right in ticks, and stands in between when its processor idles (kernel/sched/clock.c); and the kernel
/// does not tell the time by these counters either. To come back late is better than early.
fn error_of_schedulers_clock() -> Duration {
    static ERROR: OnceLock<Duration> = OnceLock::new();
    const OTHERS: [&str; 5] = ["hpet", "acpi_pm", "pit", "jiffies", "refined-jiffies"];
    *ERROR.get_or_init(|| {
        let source = procfs::read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        if source.is_ok_and(|source| OTHERS.contains(&source.trim())) {
            // The coarse clocks step once a tick. A span has two ends.
            let tick = rustix::time::clock_getres(ClockId::MonotonicCoarse);
            2 * Duration::try_from(tick).unwrap_or_default()
        } else {
            Duration::ZERO
        }
    })
}

/// What /proc/PID/sched tells.
struct Scheduled {
    /// When it last began to run, or was last seen to run, by its processor's clock.
    began_ms: f64,
    sleeps: u64,
}

impl Scheduled {
    fn of(task: &str) -> Option<Self> {
        let text = procfs::read(format!("/proc/{task}/sched")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
            line.rsplit(' ').next()
        };
        Some(Self {
            began_ms: field("se.exec_start")?.parse().ok()?,
            sleeps: field("nr_voluntary_switches")?.parse().ok()?,
        })
    }
}
