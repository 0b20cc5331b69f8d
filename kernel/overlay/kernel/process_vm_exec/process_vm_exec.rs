// SPDX-License-Identifier: GPL-2.0-only

//! process_vm_exec(2): run code, or one system call, with the memory of another process.
//!
//! The calling task itself goes there. It keeps everything that is its own (credentials, files,
//! signals, time), and borrows the memory of the target:
//!
//! ```text
//!   at home ──call()──▶ State::enter() ──▶ inside: user mode runs the target's code
//!      ▲                                     │ system call: syscall_trace_enter()
//!      │                                     │ fault, signal, task work: exit_to_user_mode_loop()
//!      └──── result, uctx, siginfo ◀─ State::leave()
//! ```
//!
//! - [`arguments`]: what the caller asks for, and what is wrong with it.
//! - [`access`]: the target's memory, and whether the caller may have it.
//! - [`state`]: what a task keeps about the other side; going there and back.
//! - [`registers`]: between `struct sigcontext` and `struct pt_regs`.
//! - [`extended`]: floating-point and vector state.
//! - [`signals`]: those that end a run.
//! - [`nested`]: system call mode.
//! - [`layout`]: that Rust and C agree on `struct task_struct`.
//!
//! C header: [`include/linux/process_vm_exec.h`](srctree/include/linux/process_vm_exec.h).

mod access;
mod arguments;
mod extended;
mod layout;
mod nested;
mod registers;
mod signals;
mod state;
mod user;

use arguments::Mode;
use kernel::{
    bindings,
    error::Result,
    ffi::{c_int, c_long, c_ulong},
};
use state::State;

/// The system call.
///
/// What it returns is what user mode gets in `rax`: in run mode, that is the register of the code
/// that runs next.
#[no_mangle]
extern "C" fn process_vm_exec_call(
    pid: c_int,
    uctx: *mut bindings::process_vm_exec_context,
    flags: c_ulong,
    siginfo: *mut bindings::siginfo_t,
    sigmask: *const bindings::sigset_t,
    sizemask: usize,
) -> c_long {
    let call = || -> Result<c_long> {
        if flags == bindings::PROCESS_VM_EXEC_QUERY as c_ulong {
            return arguments::query(pid, uctx, siginfo, sigmask, sizemask);
        }
        let state = State::of_current()?;
        let arguments = state.arguments();
        arguments.read(pid, uctx, flags, siginfo, sigmask, sizemask)?;
        let mode = arguments.mode;
        let memory = state.memory()?;
        match mode {
            Mode::Run => state.enter(memory),
            Mode::SystemCall => nested::system_call(state, memory),
        }
    };
    call().unwrap_or_else(|error| error.to_errno() as c_long)
}

/// The task is inside, and its code makes a system call: goes back instead.
///
/// # Safety
///
/// `regs` are those with which the current task has entered the kernel, and the task is inside.
#[no_mangle]
unsafe extern "C" fn process_vm_exec_syscall(regs: *mut bindings::pt_regs) {
    // SAFETY: The caller says so.
    let (state, regs) = unsafe { (State::inside(), &mut *regs) };
    registers::roll_back_system_call(regs);
    state.report(signals::system_call(regs));
    state.leave(regs);
}

/// The task is inside, and has to do something at home.
///
/// # Safety
///
/// As for [`process_vm_exec_syscall`].
#[no_mangle]
unsafe extern "C" fn process_vm_exec_leave(regs: *mut bindings::pt_regs) {
    // SAFETY: The caller says so.
    let (state, regs) = unsafe { (State::inside(), &mut *regs) };
    state.leave(regs);
}

/// The task is inside, and has work to do at home that does not end the call: goes there and comes
/// back.
///
/// # Safety
///
/// As for [`process_vm_exec_syscall`].
#[no_mangle]
unsafe extern "C" fn process_vm_exec_errand(regs: *mut bindings::pt_regs) {
    // SAFETY: The caller says so.
    unsafe { State::inside() }.run_errand(regs);
}

/// The current task ends.
///
/// # Safety
///
/// `task` is the current task, and has a state.
#[no_mangle]
unsafe extern "C" fn process_vm_exec_free(task: *mut bindings::task_struct) {
    // SAFETY: The caller says so, and nobody uses the state after this.
    unsafe { State::free(task) };
}
