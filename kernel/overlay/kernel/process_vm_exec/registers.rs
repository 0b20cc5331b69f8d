// SPDX-License-Identifier: GPL-2.0-only

//! Between `struct sigcontext` and `struct pt_regs`.

use core::mem::offset_of;
use kernel::{
    bindings,
    error::{code::EINVAL, Result},
};

/// `__USER_CS`.
const CODE_64: u16 = 0x33;
/// `__USER32_CS`.
const CODE_32: u16 = 0x23;
/// `__USER_DS`.
const DATA: u16 = 0x2b;

/// Flags that user mode may have as it likes. Those that it may not change are the others, and RF,
/// which only an instruction breakpoint needs.
const USER_FLAGS: usize = 1 << bindings::X86_EFLAGS_AC_BIT
    | 1 << bindings::X86_EFLAGS_OF_BIT
    | 1 << bindings::X86_EFLAGS_DF_BIT
    | 1 << bindings::X86_EFLAGS_TF_BIT
    | 1 << bindings::X86_EFLAGS_SF_BIT
    | 1 << bindings::X86_EFLAGS_ZF_BIT
    | 1 << bindings::X86_EFLAGS_AF_BIT
    | 1 << bindings::X86_EFLAGS_PF_BIT
    | 1 << bindings::X86_EFLAGS_CF_BIT;

/// Flags that user mode always has.
const FIXED_FLAGS: usize = 1 << bindings::X86_EFLAGS_IF_BIT | 1 << bindings::X86_EFLAGS_FIXED_BIT;

/// Copies the registers that both structures have under the same name, whose types are of the same
/// size.
macro_rules! copy_registers {
    ($from:expr => $to:expr) => {
        copy_registers!(
            $from => $to;
            r8 r9 r10 r11 r12 r13 r14 r15 di si bp bx dx ax cx sp ip
        )
    };
    ($from:expr => $to:expr; $($register:ident)*) => {
        $( $to.$register = $from.$register as _; )*
    };
}

/// Refuses registers with which the return to user mode would fail, or that would not be user
/// mode's. The stack pointer may be anything, as it may for the code itself.
pub(crate) fn check(context: &bindings::process_vm_exec_context, extended: bool) -> Result {
    let registers = &context.context;
    // SAFETY: This only reads what kind of processor this is.
    let end = unsafe { bindings::process_vm_exec_task_size() } as u64;
    if !matches!(registers.cs, CODE_64 | CODE_32)
        || !matches!(registers.ss, DATA | 0)
        || registers.ip >= end
        || (extended && (context.fs_base >= end || context.gs_base >= end))
    {
        return Err(EINVAL);
    }
    Ok(())
}

/// Gives user mode the registers of `context`, and no system call to restart.
pub(crate) fn load(regs: &mut bindings::pt_regs, context: &bindings::sigcontext_64) {
    copy_registers!(context => regs);
    regs.flags = context.flags as usize & USER_FLAGS | FIXED_FLAGS;
    regs.__bindgen_anon_1.cs = context.cs;
    regs.__bindgen_anon_2.ss = DATA;
    regs.orig_ax = usize::MAX;
}

/// Takes the registers that user mode had.
pub(crate) fn store(regs: &bindings::pt_regs, context: &mut bindings::sigcontext_64) {
    copy_registers!(regs => context);
    context.flags = regs.flags as u64;
    // SAFETY: All members of these unions are integers.
    unsafe {
        context.cs = regs.__bindgen_anon_1.cs;
        context.ss = regs.__bindgen_anon_2.ss;
    }
    context.err = 0;
    context.trapno = 0;
    context.cr2 = 0;
}

/// Copies all of them, one by one: for so few, the processor takes longer to begin `rep movs` than
/// this takes altogether.
pub(crate) fn copy(from: &bindings::pt_regs, to: &mut bindings::pt_regs) {
    copy_registers!(from => to);
    to.orig_ax = from.orig_ax;
    to.flags = from.flags;
    to.__bindgen_anon_1 = from.__bindgen_anon_1;
    to.__bindgen_anon_2 = from.__bindgen_anon_2;
}

/// Undoes what the entry of a system call has done to `rax`.
pub(crate) fn roll_back_system_call(regs: &mut bindings::pt_regs) {
    regs.ax = regs.orig_ax;
}

/// How many bytes of a context are stored: all but the pointer `fpstate` and what follows.
pub(crate) const STORED: usize = offset_of!(bindings::sigcontext_64, fpstate);
