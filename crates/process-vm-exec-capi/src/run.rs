//! A run, and a system call, in a space that is given.

use process_vm_exec::{Call, Context, Errno, Error, Exit, Registers, SigInfo, SignalSet, Space, Sysno};

use crate::abi::{self, Bases, SigContext};
use crate::fpstate::FpState;
use crate::host;
use crate::signals::{self, Afterwards};
use crate::watch::{Look, Slot, Watch};

/// A context of one thread in one space.
#[derive(Debug)]
pub(crate) struct Guest {
    context: Context,
    /// The registers that the context has.
    loaded: Option<Registers>,
}

/// What the caller has given to be loaded, and gets back.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) context: SigContext,
    pub(crate) bases: Bases,
    pub(crate) fpstate: Option<FpState>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self { context: Context::new(0, 0), loaded: None }
    }

    /// What the watcher has to know.
    pub(crate) fn slot(&self) -> Slot {
        Slot::new(self.context.interrupter())
    }

    /// Do these registers only answer a system call, in `rax`? Mostly they do, and that is cheaper.
    pub(crate) fn is_answered_by(&self, registers: &Registers) -> bool {
        self.loaded.is_some_and(|loaded| Registers { rax: registers.rax, ..loaded } == *registers)
    }

    /// Makes the frame what is run next.
    fn load(&mut self, frame: &Frame) -> Result<(), Errno> {
        let registers = frame.context.registers(frame.bases)?;
        if let Some(fpstate) = &frame.fpstate {
            let initial = Context::new(0, 0).xstate().map_err(|error| error.errno())?.to_vec();
            self.context.set_xstate(&fpstate.to_area(&initial)).map_err(|error| error.errno())?;
        }
        if self.is_answered_by(&registers) {
            self.context.set_return(Ok(registers.rax));
        } else {
            *self.context.registers_mut() = registers;
        }
        self.loaded = None;
        Ok(())
    }

    /// Stores in the frame what the code left.
    fn store(&mut self, frame: &mut Frame) -> Result<(), Errno> {
        let registers = *self.context.registers();
        frame.context.store(&registers);
        frame.bases = Bases { fs: registers.fs_base, gs: registers.gs_base };
        if let Some(fpstate) = &mut frame.fpstate {
            fpstate.store(self.context.xstate().map_err(|error| error.errno())?);
        }
        self.loaded = Some(registers);
        Ok(())
    }
}

/// Run mode: loads `frame` and runs in `space` until a system call, a signal of `signals` that the code causes, or
/// one for the caller; stores what the code left and says why.
///
/// # Errors
/// `EINVAL` if the frame cannot be loaded, `ESRCH` if the space is gone, `EINTR` if the code caused another signal,
/// whose handler does not want calls to be restarted.
pub(crate) fn run_in(
    space: &Space,
    guest: &mut Guest,
    frame: &mut Frame,
    signals: SignalSet,
    (slot, watch): (&Slot, &Watch),
) -> Result<SigInfo, Errno> {
    guest.load(frame)?;
    // Faults have to come out in any case: their usual course is the caller's, not the executor's.
    let reported = signals::FAULTS.into_iter().fold(signals, SignalSet::with);
    loop {
        let look = slot.enter(signals, watch);
        if look == Look::Now
            && let Some(info) = signals::take(signals)
        {
            slot.leave();
            guest.store(frame)?;
            return Ok(info);
        }
        let exit = space.run(&mut guest.context, &reported);
        slot.leave();
        let (info, fault) = match exit.map_err(|error| error.errno())? {
            Exit::Syscall => {
                guest.store(frame)?;
                return Ok(abi::syscall_info(guest.context.syscall(), frame.context.rip));
            }
            Exit::Fault(fault) => (abi::fault_info(&fault), Some(fault)),
            Exit::Signal(info) => (info, None),
            Exit::Interrupted => continue,
            Exit::Died(_) => return Err(Errno::SRCH),
        };
        let is_reported = signals.contains(info.signal());
        if !is_reported && signals::raise(&info) == Afterwards::Restart {
            continue;
        }
        guest.store(frame)?;
        if let Some(fault) = fault {
            frame.context.store_fault(&fault);
        }
        return if is_reported { Ok(info) } else { Err(Errno::INTR) };
    }
}

/// System call mode: has the call that `context` describes executed in a space, and puts its result into `rax`.
///
/// # Errors
/// `ESRCH` if the space is gone.
pub(crate) fn syscall_in(
    execute: impl FnOnce(&Call<'_>) -> process_vm_exec::Result<u64>,
    context: &mut SigContext,
) -> Result<(), Errno> {
    let SigContext { rax, rdi, rsi, rdx, r10, r8, r9, .. } = *context;
    let negated = |errno: Errno| i64::from(-errno.raw_os_error()).cast_unsigned();
    let Some(nr) = usize::try_from(rax).ok().and_then(Sysno::new) else {
        context.rax = negated(Errno::NOSYS);
        return Ok(());
    };
    context.rax = match execute(&host::call(nr, [rdi, rsi, rdx, r10, r8, r9])) {
        Ok(result) => result,
        Err(Error::Space { errno, .. }) => negated(errno),
        // The executor's own memory, and its end: for the caller, what cannot be had there.
        Err(error @ (Error::Reserved { .. } | Error::EndOfTask { .. })) => negated(error.errno()),
        Err(error) => return Err(error.errno()),
    };
    Ok(())
}
