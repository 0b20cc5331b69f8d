// SPDX-License-Identifier: GPL-2.0-only

//! That Rust and C agree on the structures that this directory reads and writes.
//!
//! bindgen overlooks the alignment of structures without members, so that in some configurations
//! all members of `struct task_struct` behind one are elsewhere in Rust.
//! `rust/bindings/bindings_helper.h` has C's offsets.

use core::mem::offset_of;
use kernel::bindings;

macro_rules! same_offset {
    ($structure:ident, $($member:ident).+, $offset:ident) => {
        const _: () = assert!(
            offset_of!(bindings::$structure, $($member).+) == bindings::$offset,
            "bindgen and C disagree; CONFIG_SCHEDSTATS=y is known to help"
        );
    };
}

same_offset!(task_struct, mm, TASK_STRUCT_MM);
same_offset!(task_struct, blocked, TASK_STRUCT_BLOCKED);
same_offset!(task_struct, real_blocked, TASK_STRUCT_REAL_BLOCKED);
same_offset!(task_struct, restart_block, TASK_STRUCT_RESTART_BLOCK);
same_offset!(task_struct, process_vm_exec, TASK_STRUCT_PROCESS_VM_EXEC);
same_offset!(task_struct, own_mm, TASK_STRUCT_OWN_MM);
same_offset!(task_struct, thread.cr2, TASK_STRUCT_THREAD_CR2);
same_offset!(task_struct, thread.trap_nr, TASK_STRUCT_THREAD_TRAP_NR);
same_offset!(
    task_struct,
    thread.error_code,
    TASK_STRUCT_THREAD_ERROR_CODE
);
#[cfg(CONFIG_RSEQ)]
same_offset!(task_struct, rseq, TASK_STRUCT_RSEQ);
#[cfg(CONFIG_SCHED_MM_CID)]
same_offset!(task_struct, mm_cid, TASK_STRUCT_MM_CID);
