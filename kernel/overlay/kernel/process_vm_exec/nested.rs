// SPDX-License-Identifier: GPL-2.0-only

//! System call mode: one system call of the caller, with the target's memory.

use crate::state::{current, Memory, State};
use kernel::{
    bindings,
    error::{code::*, Error, Result},
    ffi::{c_int, c_long, c_uint},
};

/// Executes the call that the registers describe, and stores its result.
///
/// The call is made with the task's real registers, where filters, tracers and the call itself look
/// for it, and may change it. So they are only accessed by pointer.
pub(crate) fn system_call(state: &mut State, memory: Memory) -> Result<c_long> {
    let regs = state.regs();
    let context = &state.arguments().context.context;
    // SAFETY: Only the current task uses its registers while it is in the kernel.
    let own_regs = unsafe {
        let own_regs = *regs;
        (*regs).orig_ax = context.ax as u32 as usize;
        (*regs).ax = -(bindings::ENOSYS as isize) as usize;
        (*regs).di = context.di as usize;
        (*regs).si = context.si as usize;
        (*regs).dx = context.dx as usize;
        (*regs).r10 = context.r10 as usize;
        (*regs).r8 = context.r8 as usize;
        (*regs).r9 = context.r9 as usize;
        own_regs
    };
    state.hold(memory);
    // SAFETY: `regs` are the current task's.
    let result = unsafe { filtered(state, regs) };
    state.let_go();
    // SAFETY: As above.
    unsafe { *regs = own_regs };
    state.arguments().store_result(result?)?;
    Ok(0)
}

/// Executes the call in `regs` if it is one that can be right, and the caller's filters let it
/// through.
///
/// They are asked before the memory changes: a tracer or a supervisor that they call in finds the
/// caller as it is. Both may change the call. A filter may also end the task.
///
/// # Safety
///
/// `regs` are the current task's.
unsafe fn filtered(state: &mut State, regs: *mut bindings::pt_regs) -> Result<c_long> {
    // SAFETY: The caller says so. The call that is made is right with a borrowed memory.
    let result = unsafe {
        if !bindings::process_vm_exec_seccomp() {
            return Ok((*regs).ax as c_long);
        }
        let number = (*regs).orig_ax as c_uint;
        if is_refused(number, (*regs).di) {
            return Ok(-(bindings::EOPNOTSUPP as c_long));
        }
        bindings::process_vm_exec_audit_enter(regs);
        state.borrow();
        // The caller's rights say nothing about the target's keys.
        let pkru =
            bindings::process_vm_exec_has_keys().then(|| bindings::process_vm_exec_swap_pkru(0));
        let result = bindings::process_vm_exec_sys_call(regs, number);
        if let Some(pkru) = pkru {
            bindings::process_vm_exec_swap_pkru(pkru);
        }
        state.give_back();
        bindings::process_vm_exec_audit_exit(result);
        result
    };
    settle(result)
}

/// Decides what happens after a call that a signal has interrupted: it is made again with
/// process_vm_exec(2) itself, unless it would have to be continued.
fn settle(result: c_long) -> Result<c_long> {
    if !(-(bindings::MAX_ERRNO as c_long)..0).contains(&result) {
        return Ok(result);
    }
    let error = Error::from_errno(result as c_int);
    if error == ERESTARTSYS || error == ERESTARTNOINTR || error == ERESTARTNOHAND {
        Err(error)
    } else if error == ERESTART_RESTARTBLOCK {
        // Its arguments are in the target's memory, where restart_syscall(2) would not find them.
        // SAFETY: There is always a current task, and only it uses this.
        unsafe {
            (*current()).restart_block.fn_ = Some(bindings::do_no_restart_syscall)
        };
        Ok(-(bindings::EINTR as c_long))
    } else {
        Ok(result)
    }
}

/// Calls that cannot be right with a borrowed memory.
fn is_refused(number: c_uint, first_argument: usize) -> bool {
    match number {
        // The caller would replace, copy or leave the memory that it has only borrowed. io_uring
        // makes threads, too.
        bindings::__NR_execve
        | bindings::__NR_execveat
        | bindings::__NR_fork
        | bindings::__NR_vfork
        | bindings::__NR_clone
        | bindings::__NR_clone3
        | bindings::__NR_exit
        | bindings::__NR_exit_group
        | bindings::__NR_io_uring_setup
        | bindings::__NR_io_uring_enter
        | bindings::__NR_io_uring_register => true,
        // There is no frame, no call and no probe to return to.
        bindings::__NR_rt_sigreturn
        | bindings::__NR_restart_syscall
        | bindings::__NR_uretprobe
        | bindings::__NR_process_vm_exec => true,
        // The kernel would keep the address and use it later, in the caller's own memory.
        bindings::__NR_rseq
        | bindings::__NR_set_robust_list
        | bindings::__NR_set_tid_address
        | bindings::__NR_sigaltstack
        | bindings::__NR_rt_sigaction => true,
        bindings::__NR_prctl => first_argument == bindings::PR_SET_SYSCALL_USER_DISPATCH as usize,
        // FS, GS and shadow stack are the caller's.
        bindings::__NR_arch_prctl => true,
        // New credentials make the memory of who gets them private to it: that would be the wrong
        // one.
        bindings::__NR_setuid
        | bindings::__NR_setgid
        | bindings::__NR_setreuid
        | bindings::__NR_setregid
        | bindings::__NR_setresuid
        | bindings::__NR_setresgid
        | bindings::__NR_setfsuid
        | bindings::__NR_setfsgid
        | bindings::__NR_setgroups
        | bindings::__NR_capset
        | bindings::__NR_unshare
        | bindings::__NR_setns => true,
        _ => false,
    }
}
