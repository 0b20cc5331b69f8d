//! A thread of a live process that is stopped, and how it goes on as if it had not been.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::asleep::Asleep;
use crate::memory;
use crate::ptrace::{
    NO_SYSCALL, Stop, get_registers, get_signal_mask, look_for_stop, request, set_registers, set_signal_mask,
};
use crate::stat::Stat;

/// What the kernel keeps in `rax` between the end of an interrupted system call and the return to user space
/// (include/linux/errno.h).
const ERESTARTSYS: i64 = 512;
pub(super) const ERESTARTNOINTR: i64 = 513;
const ERESTARTNOHAND: i64 = 514;
const ERESTART_RESTARTBLOCK: i64 = 516;

/// Bytes of the `syscall` instruction.
const SYSCALL_LEN: u64 = 2;

/// `PTRACE_GET_RSEQ_CONFIGURATION` and `struct ptrace_rseq_configuration` (linux/ptrace.h, Linux 5.13).
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
#[repr(C)]
#[derive(Default)]
pub(super) struct RseqConfiguration {
    pub(super) pointer: u64,
    pub(super) size: u32,
    pub(super) signature: u32,
    flags: u32,
    padding: u32,
}

/// How long a thread may take to stop: it does at once, unless it is in an uninterruptible sleep.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stopped thread.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) tid: i32,
    /// With which it goes on, once the kernel has seen to an interrupted system call.
    registers: libc::user_regs_struct,
    pub(super) signal_mask: u64,
    /// Job control has stopped the whole process.
    pub(super) is_group_stopped: bool,
}

impl Stopped {
    /// Stops a thread that we have seized, and looks at it. `asleep` is what it was doing just before.
    pub(super) fn stop(tid: i32, asleep: Option<&Asleep>) -> Result<Self, Errno> {
        // A signal that came first takes its course.
        Self::stop_after(tid, asleep, &mut |signal| go_on_with(tid, signal))
    }

    /// The same; `meet` lets it go on when a signal has come first.
    pub(super) fn stop_after(
        tid: i32,
        asleep: Option<&Asleep>,
        meet: &mut dyn FnMut(i32) -> Result<(), Errno>,
    ) -> Result<Self, Errno> {
        let deadline = Instant::now() + PATIENCE;
        let interrupt = || request(libc::PTRACE_INTERRUPT, tid, 0, 0);
        let interrupted = Instant::now();
        interrupt()?;
        let is_group_stopped = loop {
            let stop = next_stop(tid, deadline)?;
            match stop {
                Stop::Event => break false,
                Stop::Group => break true,
                Stop::Gone(_) => return Err(Errno::SRCH),
                Stop::Signal(_) | Stop::Syscall => {}
            }
            // The kernel has taken this stop for the answer.
            interrupt()?;
            match stop {
                Stop::Signal(signal) => meet(signal)?,
                _ => go_on_with(tid, 0)?,
            }
        };
        let mut registers = get_registers(tid)?;
        let was_waiting = go_on_waiting(&mut registers);
        if was_waiting || leave_critical_section(tid, &mut registers) {
            // At once: if we die before this, the thread sees that its call was interrupted.
            set_registers(tid, &registers)?;
        }
        if was_waiting
            && let Some(timeout) = Timeout::of(registers.orig_rax.cast_signed())
            && let Some(elapsed) = asleep.and_then(|asleep| asleep.until_stopped(interrupted))
        {
            // It takes a while to find out; if we die before this, the thread waits for too long.
            timeout.shorten(tid, &mut registers, elapsed);
            set_registers(tid, &registers)?;
        }
        let signal_mask = get_signal_mask(tid)?;
        Ok(Self { tid, registers, signal_mask, is_group_stopped })
    }

    /// How many integers a state is made of.
    pub(super) const WORDS: usize = 1 + size_of::<libc::user_regs_struct>() / 8;

    /// The state, for whoever has to let the thread go on in our place.
    pub(super) fn to_words(&self) -> [u64; Self::WORDS] {
        let mut words = [self.signal_mask; Self::WORDS];
        // SAFETY: registers are integers of 64 bits and nothing else.
        words[1..].copy_from_slice(&unsafe {
            std::mem::transmute::<libc::user_regs_struct, [u64; Self::WORDS - 1]>(self.registers)
        });
        words
    }

    /// A thread that is stopped elsewhere, in the state that it is to have.
    pub(super) fn from_words(tid: i32, words: [u64; Self::WORDS]) -> Self {
        let [signal_mask, registers @ ..] = words;
        // SAFETY: as above; any integers are a value.
        let registers =
            unsafe { std::mem::transmute::<[u64; Self::WORDS - 1], libc::user_regs_struct>(registers) };
        // Only the state is known, and all that is done with it is to put it back.
        Self { tid, registers, signal_mask, is_group_stopped: false }
    }

    pub(super) fn registers(&self) -> &libc::user_regs_struct {
        &self.registers
    }

    /// The registers with which it would go on if nobody saw to an interrupted call: with that call again.
    pub(super) fn registers_by_itself(&self) -> libc::user_regs_struct {
        let mut registers = self.registers;
        if registers.orig_rax == NO_SYSCALL {
            return registers;
        }
        match -registers.rax.cast_signed() {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => registers.rax = registers.orig_rax,
            ERESTART_RESTARTBLOCK => registers.rax = libc::SYS_restart_syscall.cast_unsigned(),
            _ => return registers,
        }
        registers.rip -= SYSCALL_LEN;
        registers
    }

    /// Puts it back where it was stopped.
    pub(super) fn put_back(&self) -> Result<(), Errno> {
        set_signal_mask(self.tid, self.signal_mask)?;
        set_registers(self.tid, &self.registers)
    }

    /// Puts it back, and lets it go on.
    pub(super) fn release(&self) -> Result<(), Errno> {
        self.put_back()?;
        self.leave_alone()
    }

    /// Lets it go on as it is, which is as it was stopped unless somebody has changed that.
    pub(super) fn leave_alone(&self) -> Result<(), Errno> {
        request(libc::PTRACE_DETACH, self.tid, 0, 0).map(drop)
    }
}

/// Lets a stopped task run on, with this signal or 0.
pub(super) fn go_on_with(tid: i32, signal: i32) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, 0, signal.unsigned_abs() as usize).map(drop)
}

/// The next stop, of a thread that may end. `ESRCH` then: a main thread that ends before others says nothing to its tracer. Allocates
/// nothing.
fn next_stop(tid: i32, deadline: Instant) -> Result<Stop, Errno> {
    const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
    loop {
        let look = Instant::now() + BETWEEN_LOOKS;
        if let Some(stop) = wait_until(tid, deadline.min(look)) {
            return Ok(stop);
        }
        if Stat::has_ended(tid) {
            return Err(Errno::SRCH);
        }
        if look >= deadline {
            return Err(Errno::BUSY);
        }
    }
}

/// Waits for the next stop: awake at first, as most come soon and a wake-up takes longer.
pub(super) fn wait_until(tid: i32, deadline: Instant) -> Option<Stop> {
    wait_with(tid, Patience::until(deadline))
}

/// The same for a task that may need this very processor: asleep from the first look on.
pub(super) fn wait_asleep_until(tid: i32, deadline: Instant) -> Option<Stop> {
    wait_with(tid, Patience { awake_until: Instant::now(), ..Patience::until(deadline) })
}

fn wait_with(tid: i32, mut patience: Patience) -> Option<Stop> {
    loop {
        if let Some(stop) = look_for_stop(tid) {
            return Some(stop);
        }
        if !patience.wait() {
            return None;
        }
    }
}

/// Waiting between looks at something that comes soon, or not before a deadline.
///
/// By sleeping and not by yielding, although whom we wait for may need this very processor: since Linux 6.18 a task
/// that yields often to busy ones forfeits its share for seconds, and takes tasks that begin to run there with it.
pub(super) struct Patience {
    awake_until: Instant,
    deadline: Instant,
}

impl Patience {
    pub(super) fn until(deadline: Instant) -> Self {
        const AWAKE: Duration = Duration::from_micros(70);
        // Timers are late by 50 us otherwise (prctl(2)).
        // SAFETY: sets an attribute of this thread, of which there is one for each attachment.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        Self { awake_until: Instant::now() + AWAKE, deadline }
    }

    /// Waits a little; says whether there is time left.
    pub(super) fn wait(&mut self) -> bool {
        const NAP: Duration = Duration::from_micros(10);
        let now = Instant::now();
        if now > self.awake_until {
            std::thread::sleep(NAP);
        } else {
            std::hint::spin_loop();
        }
        now < self.deadline
    }
}

/// Where a call that has to be made anew has its timeout.
pub(super) enum Timeout {
    /// In `r10`, in milliseconds.
    InR10,
    /// In a `struct timespec` that `rdx` points to.
    AtRdx,
    /// In one that `r10` points to.
    AtR10,
}

impl Timeout {
    pub(super) fn of(nr: i64) -> Option<Self> {
        match nr {
            libc::SYS_epoll_wait | libc::SYS_epoll_pwait => Some(Self::InR10),
            libc::SYS_rt_sigtimedwait => Some(Self::AtRdx),
            libc::SYS_semtimedop | libc::SYS_epoll_pwait2 => Some(Self::AtR10),
            _ => None,
        }
    }

    fn shorten(&self, tid: i32, registers: &mut libc::user_regs_struct, elapsed: Duration) {
        match self {
            Self::InR10 => {
                let timeout_ms = i32::try_from(registers.r10.cast_signed() << 32 >> 32).unwrap_or(-1);
                if timeout_ms > 0 {
                    let elapsed_ms = i32::try_from(elapsed.as_millis()).unwrap_or(i32::MAX);
                    registers.r10 = u64::from(timeout_ms.saturating_sub(elapsed_ms).max(0).unsigned_abs());
                }
            }
            Self::AtRdx => registers.rdx = shorter_timespec(tid, registers, registers.rdx, elapsed),
            Self::AtR10 => registers.r10 = shorter_timespec(tid, registers, registers.r10, elapsed),
        }
    }
}

/// Puts what is left of a `struct timespec` below the thread's red zone, where the call reads it before anything else
/// can be put there, and returns its address.
fn shorter_timespec(tid: i32, registers: &libc::user_regs_struct, addr: u64, elapsed: Duration) -> u64 {
    const RED_ZONE: u64 = 128;
    const LEN: u64 = 16;
    let Some([seconds, nanoseconds]) = read_words(tid, addr) else { return addr };
    let left = Duration::from_secs(seconds)
        .saturating_add(Duration::from_nanos(nanoseconds))
        .saturating_sub(elapsed);
    let place = (registers.rsp - RED_ZONE - LEN) & !15;
    let words = [left.as_secs(), left.subsec_nanos().into()].map(u64::to_ne_bytes);
    if memory::write(tid, place, words.as_flattened()).is_ok() { place } else { addr }
}

/// Some calls say `EINTR` when a thread is stopped, whatever the disposition of signals (signal(7), "Interruption of
/// system calls and library functions by stop signals"). These are made anew, unless a handler runs first. Says whether it was
/// such a call.
fn go_on_waiting(registers: &mut libc::user_regs_struct) -> bool {
    if registers.orig_rax == NO_SYSCALL || registers.rax.cast_signed() != -i64::from(libc::EINTR) {
        return false;
    }
    registers.rax = (-ERESTARTNOHAND).cast_unsigned();
    true
}

/// A thread in a restartable sequence (rseq(2)) finds itself at the abort handler after it was preempted. Being stopped
/// is that, but the kernel looks at where the thread *is* when it goes on, which is elsewhere first. Says whether it was
/// in one.
fn leave_critical_section(tid: i32, registers: &mut libc::user_regs_struct) -> bool {
    // No system call is made in one (rseq(2)).
    if registers.orig_rax != NO_SYSCALL {
        return false;
    }
    let Ok(rseq) = rseq_configuration(tid) else { return false };
    if rseq.pointer == 0 {
        return false;
    }
    // struct rseq: cpu_id_start, cpu_id, rseq_cs. struct rseq_cs: version, flags, start_ip, post_commit_offset, abort_ip.
    let Some([section]) = read_words(tid, rseq.pointer + 8) else { return false };
    if section != 0
        && let Some([_, start, length, abort]) = read_words(tid, section)
        && registers.rip.wrapping_sub(start) < length
    {
        registers.rip = abort;
        return true;
    }
    false
}

/// Which area of restartable sequences a stopped thread has registered.
pub(super) fn rseq_configuration(tid: i32) -> Result<RseqConfiguration, Errno> {
    let mut rseq = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>();
    request(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut rseq) as usize)?;
    Ok(rseq)
}

fn read_words<const N: usize>(tid: i32, addr: u64) -> Option<[u64; N]> {
    let mut bytes = [[0u8; 8]; N];
    memory::read_at_once(tid, addr, bytes.as_flattened_mut()).ok()?;
    Some(bytes.map(u64::from_ne_bytes))
}
