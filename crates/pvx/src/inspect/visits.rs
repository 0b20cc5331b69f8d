//! What belongs to a thread, which only the thread itself is told, or a tracer sees: each is stopped for a moment and
//! makes some calls about itself (`LiveProcess::batch_in_thread`). The first that answers is also asked about the whole
//! process.

use process_vm_exec::{Call, Errno, Error, LiveProcess, Result, Sysno};
use serde::Serialize;

use super::{
    report::{Report, hex},
    signals,
    threads::{Address, Registers, Thread},
};

/// Its alternate signal stack (sigaltstack(2)).
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct AlternateStack {
    #[serde(serialize_with = "hex")]
    pub(crate) address: u64,
    pub(crate) size: u64,
    /// `SS_DISABLE` if there is none.
    pub(crate) flags: Vec<&'static str>,
}

/// Its area of restartable sequences (rseq(2)).
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Rseq {
    pub(crate) registered: bool,
    #[serde(serialize_with = "hex")]
    pub(crate) address: u64,
    pub(crate) size: u32,
    #[serde(serialize_with = "hex")]
    pub(crate) signature: u64,
}

/// What prctl(2) tells a thread about itself. Null where it was refused.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct OwnSettings {
    /// The signal that it gets when its parent ends, or `none`.
    pub(crate) death_signal: Option<String>,
    pub(crate) timer_slack_ns: Option<u64>,
    pub(crate) keep_capabilities: Option<bool>,
    /// capabilities(7)
    pub(crate) secure_bits: Option<Address>,
    /// Whether it may read the processor's time-stamp counter.
    pub(crate) time_stamp_counter: Option<bool>,
}

/// An interval timer (setitimer(2)) of the process.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct IntervalTimer {
    /// `ITIMER_REAL`, ...
    pub(crate) timer: &'static str,
    /// Until it expires; 0 if it is not set.
    pub(crate) value_us: u64,
    /// From then on.
    pub(crate) interval_us: u64,
}

const TIMERS: [&str; 3] = ["ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"];

/// Numbers of prctl(2) from linux/prctl.h, which `libc` has in part.
const PR_GET_MDWE: i32 = 66;
const PR_GET_MEMORY_MERGE: i32 = 68;

/// Visits all threads and fills in what they tell. What a thread does not tell stays null, and the report says why.
pub(crate) fn visit_all(space: &LiveProcess, report: &mut Report) -> Result<()> {
    let buffers = space.scratch(Buffers::LEN)?;
    let buffers = Buffers { space, start: buffers.addr() };
    let mut threads = report.threads.take().unwrap_or_default();
    let mut refusals = Vec::new();
    for thread in threads.iter_mut().filter(|thread| !thread.is_kernels) {
        match space.thread(thread.tid) {
            Ok(state) => {
                thread.registers = Some(Registers::of(&state.registers));
                thread.rseq = Rseq::of(state.rseq);
            }
            Err(why) => {
                refusals.push(why.to_string());
                continue;
            }
        }
        if thread.rseq.is_none() {
            refusals.push("rseq is told by Linux 5.13 and later".to_owned());
        }
        refusals.extend(buffers.ask_about_itself(thread)?);
        if report.interval_timers.is_none() {
            refusals.extend(buffers.ask_about_all(thread.tid, report)?);
        }
    }
    report.threads = Some(threads);
    if let Some(first) = refusals.first() {
        let more = refusals.iter().filter(|why| *why != first).count();
        let more = if more == 0 { String::new() } else { format!("; and {more} more") };
        report.lacks("some of what threads tell", &format!("{first}{more}"));
    }
    Ok(())
}

/// Memory for what calls of threads leave.
struct Buffers<'a> {
    space: &'a LiveProcess,
    start: u64,
}

impl Buffers<'_> {
    const LEN: u64 = 256;
    const STACK: u64 = 0;
    const DEATH_SIGNAL: u64 = 24;
    const TSC: u64 = 32;
    const SUBREAPER: u64 = 40;
    const TIMERS: u64 = 64;

    /// The calls' results, of those that could be made and succeeded; and why one could not. A seccomp filter may refuse
    /// some and allow others.
    fn told(&self, tid: i32, calls: &[Call<'_>]) -> (Vec<Option<u64>>, Option<Error>) {
        let told = |call| self.space.batch_in_thread(tid, std::slice::from_ref(call)).ok()?[0].ok();
        match self.space.batch_in_thread(tid, calls) {
            Ok(results) => (results.into_iter().map(std::result::Result::ok).collect(), None),
            Err(why) if why.errno() == Errno::PERM => (calls.iter().map(told).collect(), Some(why)),
            Err(why) => (vec![None; calls.len()], Some(why)),
        }
    }

    fn words<const N: usize>(&self, offset: u64) -> Result<[u64; N]> {
        let mut bytes = [[0; 8]; N];
        self.space.read(self.start + offset, bytes.as_flattened_mut())?;
        Ok(bytes.map(u64::from_ne_bytes))
    }

    /// An `int` that a call has left.
    fn number(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.space.read(self.start + offset, &mut bytes)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn prctl(&self, option: i32, buffer: Option<u64>) -> Call<'static> {
        let buffer = buffer.map_or(0, |offset| self.start + offset);
        Call::with_args(Sysno::prctl, [u64::from(option.unsigned_abs()), buffer, 0, 0, 0, 0])
    }

    fn ask_about_itself(&self, thread: &mut Thread) -> Result<Option<String>> {
        let calls = [
            Call::with_args(Sysno::sigaltstack, [0, self.start + Self::STACK, 0, 0, 0, 0]),
            self.prctl(libc::PR_GET_PDEATHSIG, Some(Self::DEATH_SIGNAL)),
            self.prctl(libc::PR_GET_TSC, Some(Self::TSC)),
            self.prctl(libc::PR_GET_TIMERSLACK, None),
            self.prctl(libc::PR_GET_KEEPCAPS, None),
            self.prctl(libc::PR_GET_SECUREBITS, None),
        ];
        let (told, why) = self.told(thread.tid, &calls);
        let number = |call: usize, offset| told[call].map(|_| self.number(offset)).transpose();
        thread.alternate_stack =
            told[0].map(|_| self.words(Self::STACK)).transpose()?.map(AlternateStack::of);
        thread.own_settings = Some(OwnSettings {
            death_signal: number(1, Self::DEATH_SIGNAL)?.map(|signal| match signal {
                0 => "none".to_owned(),
                signal => signals::name(signal),
            }),
            time_stamp_counter: number(2, Self::TSC)?.map(|mode| mode == libc::PR_TSC_ENABLE.unsigned_abs()),
            timer_slack_ns: told[3],
            keep_capabilities: told[4].map(|flag| flag != 0),
            secure_bits: told[5].map(Address),
        });
        Ok(why.map(|why| why.to_string()))
    }

    fn ask_about_all(&self, tid: i32, report: &mut Report) -> Result<Option<String>> {
        let timer = |which: u64| {
            let args = [which, self.start + Self::TIMERS + 32 * which, 0, 0, 0, 0];
            Call::with_args(Sysno::getitimer, args)
        };
        let calls = [
            timer(0),
            timer(1),
            timer(2),
            self.prctl(libc::PR_GET_CHILD_SUBREAPER, Some(Self::SUBREAPER)),
            self.prctl(libc::PR_GET_DUMPABLE, None),
            self.prctl(libc::PR_GET_THP_DISABLE, None),
            self.prctl(PR_GET_MDWE, None),
            self.prctl(PR_GET_MEMORY_MERGE, None),
        ];
        let (told, why) = self.told(tid, &calls);
        if told[..3].iter().all(Option::is_some) {
            let words = self.words::<12>(Self::TIMERS)?;
            let timers = TIMERS.iter().zip(words.chunks_exact(4));
            report.interval_timers =
                Some(timers.map(|(timer, words)| IntervalTimer::of(timer, words)).collect());
        }
        if let Some(settings) = &mut report.settings {
            let subreaper = told[3].map(|_| self.number(Self::SUBREAPER)).transpose()?;
            settings.child_subreaper = subreaper.map(|flag| flag != 0);
            settings.dumpable = told[4].map(|mode| mode == 1).or(settings.dumpable);
            settings.huge_pages_disabled = told[5].map(|flag| flag != 0);
            settings.memory_deny_write_execute = told[6].map(|flags| flags != 0);
            settings.memory_merge = told[7].map(|flag| flag != 0);
        }
        Ok(why.map(|why| why.to_string()))
    }
}

impl AlternateStack {
    /// A `stack_t`: address, flags, length.
    fn of([address, flags, size]: [u64; 3]) -> Self {
        const FLAGS: [(u64, &str); 3] = [(1, "SS_ONSTACK"), (2, "SS_DISABLE"), (1 << 31, "SS_AUTODISARM")];
        let flags = FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|&(_, name)| name).collect();
        Self { address, size, flags }
    }
}

impl Rseq {
    fn of(rseq: process_vm_exec::Rseq) -> Option<Self> {
        use process_vm_exec::Rseq as R;
        let (registered, address, size, signature) = match rseq {
            R::Unknown => return None,
            R::None => (false, 0, 0, 0),
            R::Registered { addr, len, signature } => (true, addr, len, signature.into()),
        };
        Some(Self { registered, address, size, signature })
    }
}

impl IntervalTimer {
    /// A `struct itimerval`: seconds and microseconds of the interval, and of the value.
    fn of(timer: &'static str, words: &[u64]) -> Self {
        let us = |time: &[u64]| time[0] * 1_000_000 + time[1];
        Self { timer, value_us: us(&words[2..]), interval_us: us(&words[..2]) }
    }
}
