//! An executor, from the supervisor's side: one task in another address space that runs contexts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::handoff::{self, Half, Passed};
use super::layout::{self, kind, op};
use super::life::Life;
use super::machine::{self, Host, Until};
use super::service::{Entry, Service};
use super::{code, filter, setup};
use crate::arch::x86_64::{Registers, xstate};
use crate::error::{Error, Result};
use crate::exit::Arch;
use crate::refusal::EngineError;
use crate::signal::SigInfo;

/// One executor.
#[derive(Debug)]
pub(crate) struct Executor {
    pub(crate) life: Arc<Life>,
    pub(crate) tid: Pid,
    host: Host,
    index: u64,
    /// How long it may take for what is not a run.
    time_limit: Duration,
    /// The word of the last command. Only the one who runs a context here changes it.
    last: AtomicU32,
}

/// Why an executor came back.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Report {
    Done,
    /// A system call; whether by a rewritten site.
    Call {
        rewritten: bool,
    },
    Signal,
    Interrupted,
    /// The process is dead, or has just been killed for tampering.
    Dead,
}

/// For extended state, which a running executor gives and takes within microseconds.
const TIME_LIMIT: Duration = Duration::from_secs(2);

/// Command words count in steps of this; below is the operation.
const SEQUENCE: u32 = 1 << 8;

/// What a signal's frame told besides registers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap {
    pub(crate) error_code: u64,
    pub(crate) trapno: u64,
    pub(crate) cr2: u64,
}

impl Executor {
    /// Starts one as number `index` of its space.
    pub(crate) fn start(service: &Service, host: Host, index: u64) -> Result<Self> {
        if index >= layout::MAX_EXECUTORS {
            return Err(Error::TooMany("contexts in one address space"));
        }
        let life = &service.life;
        let command = layout::COMMANDS + index * layout::COMMAND_STRIDE;
        let mailbox = layout::MAILBOXES + index * layout::MAILBOX_STRIDE;
        // stack_t: address, flags, length.
        life.slot.write(
            command + layout::ALTSTACK,
            [life.slot.address(mailbox + layout::SIGSTACK), 0, layout::SIGSTACK_LEN],
        );
        life.slot.write(mailbox + layout::WORD, SEQUENCE);
        life.executors.fetch_max(u32::try_from(index).expect("bounded above") + 1, Ordering::SeqCst);
        let clone = Entry {
            nr: libc::SYS_clone,
            args: [u64::from(filter::CLONE_EXECUTOR.cast_unsigned()), 0, 0, 0, 0, 0],
            child: life.slot.address(mailbox),
        };
        let tid = service.request_one(clone)?.map_err(|errno| Error::Space { call: "clone", errno })?;
        let tid = i32::try_from(tid).ok().and_then(Pid::from_raw).ok_or(Error::Dead)?;
        let time_limit = service.time_limit().unwrap_or(TIME_LIMIT);
        let last = AtomicU32::new(SEQUENCE);
        let executor = Self { life: Arc::clone(life), tid, host, index, time_limit, last };
        let word =
            handoff::wait(&service.until(), &executor.mine(), &executor.other(), SEQUENCE, Passed::Quietly);
        // Another context may have said so, while this task is still without its filter.
        if word == SEQUENCE | kind::DONE && service.has_signed_start(mailbox) {
            return Ok(executor);
        }
        // The end is not waited for here: it does not come while the calling thread traces another task of the process.
        executor.life.condemn();
        Err(Error::Dead)
    }

    fn command(&self) -> u64 {
        layout::COMMANDS + self.index * layout::COMMAND_STRIDE
    }

    fn mailbox(&self) -> u64 {
        layout::MAILBOXES + self.index * layout::MAILBOX_STRIDE
    }

    /// The mailbox's address in the guest: the GS base of the trampoline.
    pub(crate) fn gs_base(&self) -> u64 {
        self.life.slot.address(self.mailbox())
    }

    /// Back to the guest, with `rax` as the answer to its call.
    #[inline]
    pub(crate) fn answer(&self, rax: u64) -> Report {
        self.life.slot.write(self.mailbox() + 8, rax);
        self.perform(op::ANSWER)
    }

    /// To the guest with these registers.
    pub(crate) fn load(&self, registers: &Registers) -> Report {
        self.life.slot.write(self.command() + 8, *registers);
        self.perform(op::LOAD)
    }

    /// The registers that the guest had at its exit.
    pub(crate) fn registers(&self) -> Registers {
        const BY_TRAMPOLINE: u32 = 0;
        let registers: Registers = self.life.slot.read(self.mailbox() + layout::RECORD);
        match self.life.slot.read::<u32>(self.mailbox() + layout::FLAVOUR) {
            // The trampoline saves only one of the two.
            BY_TRAMPOLINE => Registers { r11: registers.rflags, ..registers },
            _ => registers,
        }
    }

    /// `rax` and the six arguments that the guest had at its exit: one cache line.
    #[inline]
    pub(crate) fn call(&self) -> [u64; 7] {
        self.life.slot.read(self.mailbox() + 8)
    }

    /// The extended state that the guest had at its exit.
    pub(crate) fn save_xstate(&self) -> Result<Vec<u8>> {
        match self.perform_soon(op::SAVE_XSTATE) {
            Report::Done => Ok(self.read_xstate()),
            _ => Err(Error::Dead),
        }
    }

    fn read_xstate(&self) -> Vec<u8> {
        let mut area = vec![0; xstate::size()];
        self.life.slot.read_bytes(self.mailbox() + layout::XSTATE, &mut area);
        xstate::tidy(&mut area);
        area
    }

    /// Replaces the extended state. `area` has been validated.
    pub(crate) fn load_xstate(&self, area: &[u8]) -> Result<()> {
        self.life.slot.write_bytes(self.mailbox() + layout::XSTATE, area);
        match self.perform_soon(op::LOAD_XSTATE) {
            Report::Done => Ok(()),
            _ => Err(Error::Dead),
        }
    }

    /// The ABI of the last trapped call.
    pub(crate) fn call_arch(&self) -> Arch {
        match self.life.slot.read::<u32>(self.mailbox() + layout::SIGINFO + 28) {
            code::AUDIT_ARCH_X86_64 => Arch::X86_64,
            _ => Arch::I386,
        }
    }

    /// The last signal; none if the guest made it up.
    pub(crate) fn siginfo(&self) -> Option<SigInfo> {
        let mut bytes = [0; 128];
        self.life.slot.read_bytes(self.mailbox() + layout::SIGINFO, &mut bytes);
        let info = SigInfo::from_bytes(bytes);
        (1..=64).contains(&info.signal()).then_some(info)
    }

    /// What the last signal's frame told.
    pub(crate) fn trap(&self) -> Trap {
        let [error_code, trapno, cr2] = self.life.slot.read(self.mailbox() + layout::TRAP);
        Trap { error_code, trapno, cr2 }
    }

    /// Ends a run that goes on, or the next one.
    pub(crate) fn interrupt(&self) {
        // A signal handler may call this in a forked child, before that executes another program.
        if !self.life.slot.is_ours() {
            return;
        }
        // Whoever raised it before has sent the signal, or is about to.
        if self.life.slot.u32(self.command() + layout::INTERRUPT).swap(1, Ordering::SeqCst) == 0 {
            self.send_interrupt_signal();
        }
    }

    /// Has the task enter the kernel and look at whatever has been said to it.
    pub(crate) fn send_interrupt_signal(&self) {
        if let Some(pid) = *self.life.pid() {
            let (pid, tid) = (pid.as_raw_nonzero(), self.tid.as_raw_nonzero());
            // SAFETY: tgkill only sends a signal; the kernel checks that the task is in the process.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, code::INTERRUPT_SIGNAL) };
        }
    }

    /// Was there an interrupt since the last time?
    #[inline]
    pub(crate) fn take_interrupt(&self) -> bool {
        let flag = self.life.slot.u32(self.command() + layout::INTERRUPT);
        flag.load(Ordering::Acquire) != 0 && flag.swap(0, Ordering::AcqRel) != 0
    }

    #[inline]
    fn perform(&self, operation: u32) -> Report {
        self.perform_until(None, operation)
    }

    /// What an executor does by itself: one that takes long runs its guest, which has reported something in its place.
    fn perform_soon(&self, operation: u32) -> Report {
        self.perform_until(Instant::now().checked_add(self.time_limit), operation)
    }

    #[inline]
    fn perform_until(&self, deadline: Option<Instant>, operation: u32) -> Report {
        // The command may overwrite the word that says that the process is dead: the wait asks for its end too.
        let machine = Until { host: self.host, life: &self.life, deadline };
        if self.other().word.load(Ordering::Relaxed) == layout::DEAD {
            return self.end();
        }
        let previous = self.last.load(Ordering::Relaxed);
        let mut sequence = (previous & !(SEQUENCE - 1)).wrapping_add(SEQUENCE);
        if sequence == layout::DEAD & !(SEQUENCE - 1) {
            sequence = SEQUENCE;
        }
        let word = sequence | operation;
        self.last.store(word, Ordering::Relaxed);
        self.report(handoff::call(&machine, &self.mine(), &self.other(), word, word))
    }

    /// What this word says about the last command.
    #[inline]
    fn report(&self, word: u32) -> Report {
        let expected = self.last.load(Ordering::Relaxed) & !(SEQUENCE - 1);
        match word.wrapping_sub(expected) {
            kind::CALL => Report::Call { rewritten: true },
            kind::TRAPPED_CALL => Report::Call { rewritten: false },
            kind::DONE => Report::Done,
            kind::SIGNAL => Report::Signal,
            kind::INTERRUPTED => Report::Interrupted,
            _ => self.end(),
        }
    }

    /// The process is dead, or something else than the executor wrote into its mailbox: then it dies now.
    #[cold]
    pub(crate) fn end(&self) -> Report {
        self.life.kill();
        self.life.wait_for_end();
        Report::Dead
    }

    /// Both sides pass control by the mailbox's word.
    #[inline]
    fn mine(&self) -> Half<'_> {
        Half { word: self.other().word, ..machine::half(&self.life.slot, self.command()) }
    }

    #[inline]
    fn other(&self) -> Half<'_> {
        machine::half(&self.life.slot, self.mailbox())
    }
}

/// Whether executors can be used at all on this machine: what they lack, if not.
pub(crate) fn lacks() -> Option<EngineError> {
    const HWCAP2_FSGSBASE: u64 = 1 << 1;
    // SAFETY: asks for a number. Not by rustix, which looks for the function when the program runs, and finds none in a static one.
    let hwcap2 = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if hwcap2 & HWCAP2_FSGSBASE == 0 {
        return Some(EngineError::Fsgsbase);
    }
    if xstate::size() as u64 > layout::XSTATE_LEN {
        return Some(EngineError::LargeState);
    }
    if !setup::dispatch_works() && !seccomp_works() {
        return Some(EngineError::Dispatch);
    }
    None
}

fn seccomp_works() -> bool {
    const SECCOMP_GET_ACTION_AVAIL: libc::c_int = 2;
    let action = libc::SECCOMP_RET_TRAP;
    // SAFETY: asks whether the action, read from a valid address, is known (seccomp(2)).
    unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

#[cfg(fuzzing)]
impl Executor {
    /// One without a task, for reading what is in its mailbox.
    pub(crate) fn without_task(life: Arc<Life>) -> Self {
        let tid = rustix::thread::gettid();
        let last = AtomicU32::new(SEQUENCE);
        Self { life, tid, host: Host::new(0), index: 0, time_limit: TIME_LIMIT, last }
    }

    /// Puts `bytes` into the mailbox.
    pub(crate) fn fill_mailbox(&self, bytes: &[u8]) {
        self.life.slot.write_bytes(self.mailbox(), bytes);
    }

    /// What `word` says about the last command, for whose end the executor has left the extended state.
    pub(crate) fn reported(&self, word: u32) -> (Report, Vec<u8>) {
        (self.report(word), self.read_xstate())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::executor::arena::Arena;
    use crate::executor::region::Region;
    use crate::exit::WaitStatus;

    /// What an executor of a process that has died answers, whose mailbox's word is what `spoil` makes of it then.
    fn answer_of_a_dead_executor(spoil: fn(&AtomicU32)) -> Report {
        let slot = Arc::new(Arena::new(Region::DEFAULT).expect("an arena").slot().expect("a slot"));
        let life = Arc::new(Life::new(slot));
        life.executors.store(1, Ordering::SeqCst);
        life.die(WaitStatus::Signaled(libc::SIGKILL));
        spoil(life.slot.u32(layout::MAILBOXES + layout::WORD));
        let (answered, answer) = mpsc::channel();
        thread::spawn(move || {
            let tid = rustix::thread::gettid();
            let last = AtomicU32::new(SEQUENCE);
            answered.send(
                Executor { life, tid, host: Host::new(0), index: 0, time_limit: TIME_LIMIT, last }.answer(0),
            )
        });
        answer.recv_timeout(Duration::from_secs(20)).expect("an answer")
    }

    /// The moment is a few instructions long: between a run's look at the life and its look at the mailbox.
    #[test]
    fn a_command_to_a_process_that_died_a_moment_ago_is_answered_by_its_death() {
        assert!(matches!(answer_of_a_dead_executor(|_| {}), Report::Dead));
    }

    /// It has: both write the same word.
    #[test]
    fn a_command_that_overwrites_the_news_of_a_death_is_answered_by_that() {
        let overwrite = |word: &AtomicU32| word.store(SEQUENCE | kind::CALL, Ordering::SeqCst);
        assert!(matches!(answer_of_a_dead_executor(overwrite), Report::Dead));
    }
}
