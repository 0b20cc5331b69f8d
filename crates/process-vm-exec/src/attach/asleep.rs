//! How long a thread has been asleep in a system call.

use std::fmt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use rustix::time::{ClockId, clock_getres, clock_gettime};

use super::stop::Timeout;
use crate::procfs;
use crate::stat::Stat;

/// A sleep of a thread that was seen to last.
#[derive(Debug)]
pub(super) struct Asleep {
    tid: i32,
    scheduled: Scheduled,
    /// When it fell asleep, or later.
    since: Instant,
    /// The clocks of the processors where it may wake up: where it fell asleep, and where we have gone from there.
    clocks: Vec<Clock>,
}

impl Asleep {
    /// If the thread sleeps in a call whose timeout we would have to shorten. Since when, its scheduler knows, by its
    /// processor's clock, to which we go. `None` where the kernel does not tell (CONFIG_SCHED_DEBUG), and where it has
    /// forgotten: since Linux 6.12 a task may fall asleep and still be moved to another processor.
    pub(super) fn look_at(tid: i32) -> Option<Self> {
        let call = procfs::read(format!("/proc/{tid}/syscall")).ok()?;
        Timeout::of(call.split(' ').next()?.parse().ok()?)?;
        let scheduled = Scheduled::of(tid).filter(|it| it.last_ran_ns != Scheduled::FORGOTTEN)?;
        let processor = Stat::of(tid)?.processor;
        // If it has not run since, it was there that it did.
        if Scheduled::of(tid)? != scheduled {
            return None;
        }
        let clocks = Clock::of_processors_around(processor)?;
        let since = clocks[0].latest(scheduled.last_ran_ns)? + error_of_schedulers_clock();
        Some(Self { tid, scheduled, since, clocks })
    }

    /// How long it had slept when we stopped it, as we did at `interrupted` or later; `None` unless that was this sleep
    /// for certain. It was if the thread ran only once since, to stop, and did not begin before we interrupted it. Else it may
    /// have been in the next call already, and on its way to sleep.
    pub(super) fn until_stopped(&self, interrupted: Instant) -> Option<Duration> {
        let (then, now) = (&self.scheduled, Scheduled::of(self.tid)?);
        let processor = Stat::of(self.tid)?.processor;
        let clock = self.clocks.iter().find(|clock| clock.processor == processor)?;
        let woke_up_ns = now.last_ran_ns.checked_sub(now.ran_ns.checked_sub(then.ran_ns)?)?;
        // To stop is to sleep once more.
        let ran_once = now.sleeps == then.sleeps + 1 && now.preemptions == then.preemptions;
        let woke_up = clock.earliest(woke_up_ns)?;
        let is_same = ran_once && woke_up >= interrupted + error_of_schedulers_clock();
        is_same.then(|| self.since.elapsed())
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
            let tick = clock_getres(ClockId::MonotonicCoarse);
            2 * Duration::try_from(tick).unwrap_or_default()
        } else {
            Duration::ZERO
        }
    })
}

/// What the scheduler's clock of a processor said, beside ours. It stands while a hypervisor, or an interrupt, has the
/// processor: spans that it measures are never too long, but may be too short.
#[derive(Debug)]
struct Clock {
    processor: usize,
    now_ns: u64,
    before: Instant,
    after: Instant,
}

impl Clock {
    /// The clock of this processor, and of another, on which we are afterwards if there is one.
    fn of_processors_around(processor: usize) -> Option<Vec<Self>> {
        let home = sched_getaffinity(None).ok()?;
        let (mut there, mut elsewhere) = (CpuSet::new(), home);
        there.set(processor);
        elsewhere.unset(processor);
        sched_setaffinity(None, &there).ok()?;
        let clock = Self::here();
        let other = sched_setaffinity(None, &elsewhere).ok().and_then(|()| Self::here());
        let _ = sched_setaffinity(None, &home);
        Some([clock?].into_iter().chain(other).collect())
    }

    fn here() -> Option<Self> {
        let (processor, before) = (sched_getcpu(), Instant::now());
        // That has the scheduler write down its time (`task_sched_runtime` in kernel/sched/core.c).
        let _ = clock_gettime(ClockId::ThreadCPUTime);
        let now_ns = Scheduled::of("thread-self")?.last_ran_ns;
        let after = Instant::now();
        (sched_getcpu() == processor).then_some(Self { processor, now_ns, before, after })
    }

    /// When it was `past_ns` on this clock, at the latest.
    fn latest(&self, past_ns: u64) -> Option<Instant> {
        self.after.checked_sub(Duration::from_nanos(self.now_ns.checked_sub(past_ns)?))
    }

    /// When it was `later_ns` on this clock, at the earliest.
    fn earliest(&self, later_ns: u64) -> Option<Instant> {
        self.before.checked_add(Duration::from_nanos(later_ns.checked_sub(self.now_ns)?))
    }
}

/// What /proc/PID/sched tells.
#[derive(Debug, PartialEq, Eq)]
struct Scheduled {
    /// When it last ran, or was last seen to, by its processor's clock.
    last_ran_ns: u64,
    /// For how long altogether.
    ran_ns: u64,
    sleeps: u64,
    preemptions: u64,
}

impl Scheduled {
    /// When a task last ran that has been moved since and has not run there yet (`migrate_task_rq_fair` in
    /// kernel/sched/fair.c).
    const FORGOTTEN: u64 = 0;

    fn of(task: impl fmt::Display) -> Option<Self> {
        let text = procfs::read(format!("/proc/{task}/sched")).ok()?;
        let field = |name: &str| {
            let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(name))?;
            // Milliseconds have six decimal places.
            line.rsplit(' ').next()?.replace('.', "").parse().ok()
        };
        Some(Self {
            last_ran_ns: field("se.exec_start")?,
            ran_ns: field("se.sum_exec_runtime")?,
            sleeps: field("nr_voluntary_switches")?,
            preemptions: field("nr_involuntary_switches")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    use rustix::event::epoll::{Event, EventData, EventFlags};
    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::io::write;
    use rustix::thread::gettid;
    use rustix::time::Timespec;

    use super::*;

    fn wait_for(event: &OwnedFd) {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll_create(2)");
        epoll::add(&poll, event, EventData::new_u64(0), EventFlags::IN).expect("epoll_ctl(2)");
        let timeout = Timespec { tv_sec: 1000, tv_nsec: 0 };
        let mut events: [Event; 1] = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }];
        epoll::wait(&poll, &mut events, Some(&timeout)).expect("epoll_wait(2)");
    }

    /// What is known of the sleep of a thread that wakes up, goes on for `busy`, and sleeps again, as one does that
    /// stops. `wake` wakes it, sees it awake or not, and says when it interrupted it.
    fn sleep_of_one_that(
        busy: Duration,
        wake: impl FnOnce(&OwnedFd, &Receiver<()>) -> Instant,
    ) -> Option<Duration> {
        let event = eventfd(0, EventfdFlags::empty()).expect("eventfd(2)");
        let ((say_tid, tid), (say_awake, awake)) = (channel(), channel());
        thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                say_tid.send(gettid().as_raw_nonzero().get()).expect("a receiver");
                wait_for(&event);
                say_awake.send(()).expect("a receiver");
                let woken = Instant::now();
                while woken.elapsed() < busy {}
                thread::park();
            });
            let tid = tid.recv().expect("its number");
            thread::sleep(Duration::from_millis(2));
            let asleep = Asleep::look_at(tid);
            let interrupted = wake(&event, &awake);
            while Stat::of(tid).is_some_and(Stat::is_running) {}
            let elapsed = asleep.and_then(|asleep| asleep.until_stopped(interrupted));
            sleeper.thread().unpark();
            elapsed
        })
    }

    #[test]
    fn a_sleep_that_lasts_until_it_is_interrupted_is_known() {
        let began = Instant::now();
        let look = || {
            sleep_of_one_that(Duration::ZERO, |event, _| {
                let interrupted = Instant::now();
                write(event, &1u64.to_ne_bytes()).expect("write(2)");
                interrupted
            })
        };
        // Others may need the processor in between.
        let elapsed =
            std::iter::repeat_with(look).take(1000).flatten().next().expect("a sleep that is known");
        assert!(elapsed > Duration::from_millis(1) && elapsed < began.elapsed());
    }

    #[test]
    fn a_sleep_that_ended_before_is_not_taken_for_one_that_lasts() {
        for _ in 0..50 {
            let elapsed = sleep_of_one_that(Duration::from_millis(1), |event, awake| {
                write(event, &1u64.to_ne_bytes()).expect("write(2)");
                awake.recv().expect("it wakes up");
                Instant::now()
            });
            assert_eq!(elapsed, None);
        }
    }
}
