// SPDX-License-Identifier: GPL-2.0-only

//! What the caller asks for, and what is wrong with it.

use crate::{registers, user};
use core::{mem::size_of, ptr::null_mut};
use kernel::{
    bindings,
    error::{code::*, Error, Result},
    ffi::{c_int, c_long, c_ulong},
};

const SYSCALL: c_ulong = bindings::PROCESS_VM_EXEC_SYSCALL as c_ulong;
const PIDFD: c_ulong = bindings::PROCESS_VM_EXEC_PIDFD as c_ulong;
const EXTENDED: c_ulong = bindings::PROCESS_VM_EXEC_EXTENDED as c_ulong;
const QUERY: c_ulong = bindings::PROCESS_VM_EXEC_QUERY as c_ulong;

/// Signals that nobody can take.
const KILL_AND_STOP: c_ulong = 1 << (bindings::SIGKILL - 1) | 1 << (bindings::SIGSTOP - 1);

/// `EOPNOTSUPP`, which the kernel crate does not have.
pub(crate) fn eopnotsupp() -> Error {
    Error::from_errno(-(bindings::EOPNOTSUPP as c_int))
}

/// What happens with the target's memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Code runs there until something ends it.
    Run,
    /// One system call is executed with it.
    SystemCall,
}

/// Whose memory it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Pid(c_int),
    Pidfd(c_int),
}

/// The arguments of one call, read and checked.
pub(crate) struct Arguments {
    pub(crate) mode: Mode,
    /// Where the registers come from and go to.
    uctx: *mut bindings::process_vm_exec_context,
    /// Whether `uctx` has the bases of FS and GS.
    pub(crate) extended: bool,
    /// Where to say why the run has ended.
    siginfo: *mut bindings::siginfo_t,
    /// Signals that end the run and are reported.
    pub(crate) mask: bindings::sigset_t,
    /// The registers.
    pub(crate) context: bindings::process_vm_exec_context,
    pub(crate) target: Target,
}

/// `PROCESS_VM_EXEC_QUERY`: which flags there are.
pub(crate) fn query(
    pid: c_int,
    uctx: *const bindings::process_vm_exec_context,
    siginfo: *const bindings::siginfo_t,
    sigmask: *const bindings::sigset_t,
    sizemask: usize,
) -> Result<c_long> {
    if pid != 0 || !uctx.is_null() || !siginfo.is_null() || !sigmask.is_null() || sizemask != 0 {
        return Err(EINVAL);
    }
    Ok((SYSCALL | PIDFD | EXTENDED | QUERY) as c_long)
}

impl Default for Arguments {
    fn default() -> Self {
        Arguments {
            mode: Mode::Run,
            uctx: null_mut(),
            extended: false,
            siginfo: null_mut(),
            mask: Default::default(),
            context: Default::default(),
            target: Target::Pid(0),
        }
    }
}

impl Arguments {
    /// Reads what the pointers point to, and checks everything that has nothing to do with the
    /// target.
    pub(crate) fn read(
        &mut self,
        pid: c_int,
        uctx: *mut bindings::process_vm_exec_context,
        flags: c_ulong,
        siginfo: *mut bindings::siginfo_t,
        sigmask: *const bindings::sigset_t,
        sizemask: usize,
    ) -> Result {
        if flags & !(SYSCALL | PIDFD | EXTENDED) != 0
            || sizemask != size_of::<bindings::sigset_t>()
            || (flags & PIDFD == 0 && pid <= 0)
        {
            return Err(EINVAL);
        }
        self.mode = if flags & SYSCALL != 0 {
            Mode::SystemCall
        } else {
            Mode::Run
        };
        self.target = if flags & PIDFD != 0 {
            Target::Pidfd(pid)
        } else {
            Target::Pid(pid)
        };
        self.uctx = uctx;
        self.siginfo = siginfo;
        self.extended = flags & EXTENDED != 0 && self.mode == Mode::Run;
        if self.extended {
            user::read_into(uctx, &mut self.context)?;
        } else {
            // SAFETY: Only an address is computed.
            let registers = unsafe { &raw const (*uctx).context };
            user::read_into(registers, &mut self.context.context)?;
        }
        if self.mode == Mode::Run {
            user::read_into(sigmask, &mut self.mask)?;
            self.mask.sig[0] &= !KILL_AND_STOP;
            registers::check(&self.context, self.extended)?;
        }
        Ok(())
    }

    /// Stores the registers where they came from.
    pub(crate) fn store_registers(&self) -> Result {
        // SAFETY: Only addresses are computed.
        let (fs_base, gs_base, registers) = unsafe {
            (
                &raw mut (*self.uctx).fs_base,
                &raw mut (*self.uctx).gs_base,
                &raw mut (*self.uctx).context,
            )
        };
        if self.extended {
            user::write(fs_base, &self.context.fs_base)?;
            user::write(gs_base, &self.context.gs_base)?;
        }
        user::write_start(registers, &self.context.context, registers::STORED)
    }

    /// Stores the result of a system call.
    pub(crate) fn store_result(&self, result: c_long) -> Result {
        // SAFETY: Only an address is computed.
        let ax = unsafe { &raw mut (*self.uctx).context.ax };
        user::write(ax, &(result as u64))
    }

    /// Stores why the run has ended.
    pub(crate) fn store_siginfo(&self, info: &bindings::kernel_siginfo_t) -> Result {
        user::write_siginfo(self.siginfo, info)
    }
}
