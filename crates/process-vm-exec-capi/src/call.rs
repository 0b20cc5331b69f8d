//! The call itself: looks at the arguments, copies what they point to, and has it done.

use std::ffi::c_ulong;

use process_vm_exec::{Call, Errno, Returned, SigInfo, SignalSet};

use crate::abi::{ExtendedContext, Flags, SigContext};
use crate::fpstate::{self, FpState};
use crate::host;
use crate::own;
use crate::run::{self, Frame};
use crate::signals;
use crate::thread::{self, Name, Pointers};
use crate::user::Access;

/// The arguments, as the caller gave them.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) pid: i32,
    pub(crate) uctx: *mut SigContext,
    pub(crate) flags: c_ulong,
    pub(crate) siginfo: *mut SigInfo,
    pub(crate) sigmask: *const u64,
    pub(crate) sizemask: usize,
}

/// `process_vm_exec`.
///
/// # Errors
/// What the manual page says.
pub(crate) fn process_vm_exec(arguments: &Arguments) -> Result<(), Errno> {
    let flags = Flags::from_bits(arguments.flags).ok_or(Errno::INVAL)?;
    if arguments.sizemask != signals::SET_LEN {
        return Err(Errno::INVAL);
    }
    let name = name(arguments.pid, flags)?;
    thread::with(|thread| {
        let result = if flags.contains(Flags::SYSCALL) {
            syscall(thread, name, arguments.uctx)
        } else {
            run(thread, name, arguments, flags)
        };
        if result == Err(Errno::SRCH) {
            thread.leave_gone_targets();
        }
        result
    })
}

fn name<'a>(pid: i32, flags: Flags) -> Result<Name<'a>, Errno> {
    if flags.contains(Flags::PIDFD) {
        host::borrow(pid).map(Name::Pidfd).ok_or(Errno::BADF)
    } else if pid > 0 {
        Ok(Name::Pid(pid))
    } else {
        Err(Errno::INVAL)
    }
}

fn syscall(thread: &mut thread::Thread, name: Name<'_>, uctx: *mut SigContext) -> Result<(), Errno> {
    let mut context = thread.pointers.uctx.read(uctx, Access::Write)?;
    let (seated, pointers, process) = thread.seat(name, |_| false)?;
    // No signal ends it, so there is nothing to look for; what is known of the target is known until the next tick.
    seated.slot.enter(SignalSet::empty(), &process.watch);
    let execute = |call: &Call<'_>| seated.target.space.syscall(call).map(Returned::into_number);
    let result = run::syscall_in(execute, &mut context);
    seated.slot.leave();
    if result == Err(Errno::SRCH) {
        process.forget(&seated.target);
    }
    result?;
    pointers.uctx.write(uctx, context)
}

fn run(
    thread: &mut thread::Thread,
    name: Name<'_>,
    arguments: &Arguments,
    flags: Flags,
) -> Result<(), Errno> {
    let &Arguments { uctx, siginfo, sigmask, .. } = arguments;
    let mut frame = read_frame(&mut thread.pointers, uctx, flags)?;
    let signals = signals::set(thread.pointers.sigmask.read(sigmask, Access::Read)?);
    thread.pointers.siginfo.check(siginfo.cast(), size_of::<SigInfo>(), Access::Write)?;
    // Before a process is attached to for nothing.
    let registers = frame.context.registers(frame.bases)?;

    let (seated, pointers, process) = thread.seat(name, |guest| guest.is_answered_by(&registers))?;
    let place = (&*seated.slot, &process.watch);
    let result = run::run_in(&seated.target.space, &mut seated.guest, &mut frame, signals, place);
    match result {
        Ok(_) | Err(Errno::INTR) => write_frame(pointers, uctx, &frame, flags)?,
        Err(Errno::SRCH) => process.forget(&seated.target),
        Err(_) => {}
    }
    pointers.siginfo.write(siginfo, result?)
}

/// Copies what `uctx` points to.
fn read_frame(pointers: &mut Pointers, uctx: *mut SigContext, flags: Flags) -> Result<Frame, Errno> {
    let (context, bases) = if flags.contains(Flags::EXTENDED) {
        let extended = pointers.uctx.read(uctx.cast::<ExtendedContext>(), Access::Write)?;
        (extended.context, extended.bases)
    } else {
        (pointers.uctx.read(uctx, Access::Write)?, own::bases())
    };
    let fpstate = match fpstate_address(&context) {
        None => None,
        Some(at) => {
            let legacy = pointers.fpstate_head.read_bytes(at, fpstate::LEGACY_LEN)?;
            let bytes = pointers.fpstate.read_bytes(at, fpstate::len(&legacy)?)?;
            Some(FpState { bytes })
        }
    };
    Ok(Frame { context, bases, fpstate })
}

/// Copies it back.
fn write_frame(
    pointers: &mut Pointers,
    uctx: *mut SigContext,
    frame: &Frame,
    flags: Flags,
) -> Result<(), Errno> {
    if let (Some(at), Some(fpstate)) = (fpstate_address(&frame.context), &frame.fpstate) {
        pointers.fpstate.write_bytes(at, &fpstate.bytes)?;
    }
    if flags.contains(Flags::EXTENDED) {
        let extended = ExtendedContext { context: frame.context, bases: frame.bases };
        pointers.uctx.write(uctx.cast(), extended)
    } else {
        pointers.uctx.write(uctx, frame.context)
    }
}

/// Where the caller has its floating-point state, if anywhere.
fn fpstate_address(context: &SigContext) -> Option<*mut u8> {
    let at = usize::try_from(context.fpstate).ok().filter(|&at| at != 0)?;
    Some(std::ptr::with_exposed_provenance_mut(at))
}
