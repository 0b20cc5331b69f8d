//! Time: clocks, sleeping, and the timer that sends `SIGALRM`.

use std::{
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use process_vm_exec::{Context, Errno, Interrupter, Sysno};
use rustix::{
    thread::NanosleepRelativeResult,
    time::{ClockId, Timespec},
};

use crate::{
    abi::{Answer, Args, Record, from_long, i64_at, int},
    guest::GuestMemory,
    task::Task,
};

/// The longest time of a timer: as many seconds as nanoseconds of 64 bits can count (`KTIME_SEC_MAX`, linux/time64.h).
const LONGEST: Duration = Duration::from_secs(9_223_372_036);

/// The real-time interval timer (setitimer(2)).
#[derive(Debug, Default)]
pub(crate) struct Timers {
    deadline: Option<Instant>,
    interval: Duration,
    /// Dropping it ends the thread that interrupts the guest at the deadline.
    alarm: Option<Sender<()>>,
}

impl Timers {
    /// Has the timer run out?
    pub(crate) fn is_due(&self) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Starts the next period, if there is one.
    pub(crate) fn advance(&mut self) {
        self.deadline = match self.deadline {
            Some(deadline) if !self.interval.is_zero() => {
                Some((deadline + self.interval).max(Instant::now()))
            }
            _ => None,
        };
    }

    /// How long until the timer runs out.
    pub(crate) fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Has the rest of the time run for another context (`execve` keeps timers).
    pub(crate) fn move_to(&mut self, context: &Context) -> Result<(), Errno> {
        match self.remaining() {
            Some(remaining) => self.set(remaining.max(Duration::from_nanos(1)), self.interval, context),
            None => Ok(()),
        }
    }

    /// Starts the timer anew. If that fails, it stays as it was.
    fn set(&mut self, value: Duration, interval: Duration, context: &Context) -> Result<(), Errno> {
        let (value, interval) = (value.min(LONGEST), interval.min(LONGEST));
        let started = if value.is_zero() {
            None
        } else {
            Some((Instant::now() + value, start_alarm(value, interval, context.interrupter())?))
        };
        self.interval = interval;
        (self.deadline, self.alarm) = started.unzip();
        Ok(())
    }
}

/// Interrupts the guest after `value`, and every `interval` from then on.
fn start_alarm(value: Duration, interval: Duration, interrupter: Interrupter) -> Result<Sender<()>, Errno> {
    let (sender, receiver) = mpsc::channel();
    let run = move || {
        let mut wait = value;
        while receiver.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
            interrupter.interrupt();
            if interval.is_zero() {
                break;
            }
            wait = interval;
        }
    };
    let thread = thread::Builder::new().name("appkernel-alarm".to_owned()).spawn(run);
    match thread {
        Ok(_) => Ok(sender),
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)),
    }
}

impl Task {
    /// Sleeps for `timeout`, or for ever; `EINTR` when the timer runs out before.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) -> Result<(), Errno> {
        let timer = self.timers.remaining();
        let (wait, interrupted) = match (timeout, timer) {
            (Some(timeout), Some(timer)) => (Some(timeout.min(timer)), timer < timeout),
            (timeout, None) => (timeout, false),
            (None, timer) => (timer, true),
        };
        match wait {
            Some(wait) => thread::sleep(wait),
            None => loop {
                thread::park();
            },
        }
        if interrupted { Err(Errno::INTR) } else { Ok(()) }
    }

    /// Reads a `struct timespec` that is a length of time.
    pub(crate) fn fetch_duration(&self, addr: u64) -> Result<Duration, Errno> {
        let record: [u8; 16] = self.space.fetch(addr)?;
        duration(i64_at(&record, 0), i64_at(&record, 8), 1_000_000_000)
    }

    /// Reads a `struct timeval` that is a length of time.
    pub(crate) fn fetch_timeval(&self, addr: u64) -> Result<Duration, Errno> {
        self.space.fetch::<16>(addr).and_then(|record| timeval(&record, 0))
    }
}

fn timeval(record: &[u8], offset: usize) -> Result<Duration, Errno> {
    duration(i64_at(record, offset), i64_at(record, offset + 8), 1_000_000)
}

/// Seconds and a fraction in units of `1 / scale` seconds.
fn duration(seconds: i64, fraction: i64, scale: i64) -> Result<Duration, Errno> {
    if !(0..scale).contains(&fraction) {
        return Err(Errno::INVAL);
    }
    let seconds = u64::try_from(seconds).map_err(|_| Errno::INVAL)?;
    let nanoseconds = u32::try_from(fraction * (1_000_000_000 / scale)).map_err(|_| Errno::INVAL)?;
    Ok(Duration::new(seconds, nanoseconds))
}

/// A `struct timespec`.
pub(crate) fn timespec_record(time: Timespec) -> Record<16> {
    Record::new().put(0, time.tv_sec.to_ne_bytes()).put(8, time.tv_nsec.to_ne_bytes())
}

fn timeval_bytes(duration: Duration) -> [u8; 16] {
    *Record::<16>::new()
        .put(0, duration.as_secs().to_ne_bytes())
        .put(8, u64::from(duration.subsec_micros()).to_ne_bytes())
        .bytes()
}

/// clock_gettime(2). The clocks of processor time are the guest's own, so the call is made in its space.
pub(crate) fn clock_gettime(task: &mut Task, args @ [clock, time, ..]: Args) -> Answer {
    let clock = match int(clock) {
        libc::CLOCK_REALTIME => ClockId::Realtime,
        libc::CLOCK_MONOTONIC => ClockId::Monotonic,
        libc::CLOCK_MONOTONIC_RAW => ClockId::MonotonicRaw,
        libc::CLOCK_REALTIME_COARSE => ClockId::RealtimeCoarse,
        libc::CLOCK_MONOTONIC_COARSE => ClockId::MonotonicCoarse,
        libc::CLOCK_BOOTTIME => ClockId::Boottime,
        _ => return task.space.syscall(Sysno::clock_gettime, args).map_err(|error| error.errno()),
    };
    let now = rustix::time::clock_gettime(clock);
    task.space.store(time, timespec_record(now).bytes())?;
    Ok(0)
}

/// clock_getres(2)
pub(crate) fn clock_getres(task: &mut Task, args: Args) -> Answer {
    task.space.syscall(Sysno::clock_getres, args).map_err(|error| error.errno())
}

/// gettimeofday(2)
pub(crate) fn gettimeofday(task: &mut Task, [time, zone, ..]: Args) -> Answer {
    if time != 0 {
        let now = rustix::time::clock_gettime(ClockId::Realtime);
        let record =
            Record::<16>::new().put(0, now.tv_sec.to_ne_bytes()).put(8, (now.tv_nsec / 1000).to_ne_bytes());
        task.space.store(time, record.bytes())?;
    }
    if zone != 0 {
        task.space.store(zone, &[0; 8])?;
    }
    Ok(0)
}

/// time(2)
pub(crate) fn time(task: &mut Task, [result, ..]: Args) -> Answer {
    let now = rustix::time::clock_gettime(ClockId::Realtime).tv_sec;
    if result != 0 {
        task.space.store(result, &now.to_ne_bytes())?;
    }
    Ok(from_long(now))
}

/// nanosleep(2)
pub(crate) fn nanosleep(task: &mut Task, [request, remaining, ..]: Args) -> Answer {
    let request = task.fetch_duration(request)?;
    sleep_for(task, ClockId::Monotonic, request, remaining)
}

/// clock_nanosleep(2)
pub(crate) fn clock_nanosleep(task: &mut Task, [clock, flags, request, remaining, ..]: Args) -> Answer {
    let clock = match int(clock) {
        libc::CLOCK_REALTIME => ClockId::Realtime,
        libc::CLOCK_MONOTONIC => ClockId::Monotonic,
        libc::CLOCK_BOOTTIME => ClockId::Boottime,
        _ => return Err(Errno::INVAL),
    };
    let request = task.fetch_duration(request)?;
    if int(flags) & libc::TIMER_ABSTIME == 0 {
        return sleep_for(task, clock, request, remaining);
    }
    sleep_for(task, clock, request.saturating_sub(now(clock)), 0)
}

fn sleep_for(task: &Task, clock: ClockId, request: Duration, remaining: u64) -> Answer {
    if task.timers.remaining().is_none() {
        let request = Timespec::try_from(request).map_err(|_| Errno::INVAL)?;
        return match rustix::thread::clock_nanosleep_relative(clock, &request) {
            NanosleepRelativeResult::Ok => Ok(0),
            NanosleepRelativeResult::Interrupted(rest) => {
                if remaining != 0 {
                    task.space.store(remaining, timespec_record(rest).bytes())?;
                }
                Err(Errno::INTR)
            }
            NanosleepRelativeResult::Err(errno) => Err(errno),
        };
    }
    let start = Instant::now();
    let result = task.sleep(Some(request));
    if result.is_err() && remaining != 0 {
        let rest = request.saturating_sub(start.elapsed());
        let rest = Timespec::try_from(rest).map_err(|_| Errno::INVAL)?;
        task.space.store(remaining, timespec_record(rest).bytes())?;
    }
    result.map(|()| 0)
}

/// alarm(2)
pub(crate) fn alarm(task: &mut Task, [seconds, ..]: Args) -> Answer {
    let before = task.timers.remaining().unwrap_or_default();
    let value = Duration::from_secs(u64::from(crate::abi::uint(seconds)));
    task.timers.set(value, Duration::ZERO, &task.context)?;
    // Linux rounds to the nearest second, but never down to "no alarm".
    let rounded = before.as_secs() + u64::from(before.subsec_millis() >= 500);
    Ok(if before.is_zero() { 0 } else { rounded.max(1) })
}

/// setitimer(2)
pub(crate) fn setitimer(task: &mut Task, [which, new, old, ..]: Args) -> Answer {
    if int(which) != libc::ITIMER_REAL {
        return Err(Errno::INVAL);
    }
    let before = task.timers.remaining().map(|remaining| (task.timers.interval, remaining));
    if new != 0 {
        let record: [u8; 32] = task.space.fetch(new)?;
        let (interval, value) = (timeval(&record, 0)?, timeval(&record, 16)?);
        task.timers.set(value, interval, &task.context)?;
    }
    store_timer(task, old, before)
}

/// getitimer(2)
pub(crate) fn getitimer(task: &mut Task, [which, value, ..]: Args) -> Answer {
    if int(which) != libc::ITIMER_REAL {
        return Err(Errno::INVAL);
    }
    let now = task.timers.remaining().map(|remaining| (task.timers.interval, remaining));
    store_timer(task, value, now)
}

fn store_timer(task: &Task, addr: u64, timer: Option<(Duration, Duration)>) -> Answer {
    if addr != 0 {
        let (interval, value) = timer.unwrap_or_default();
        let record = Record::<32>::new().put(0, timeval_bytes(interval)).put(16, timeval_bytes(value));
        task.space.store(addr, record.bytes())?;
    }
    Ok(0)
}

/// The time on `clock`.
pub(crate) fn now(clock: ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    duration(now.tv_sec, now.tv_nsec, 1_000_000_000).unwrap_or_default()
}
