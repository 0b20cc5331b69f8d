// SPDX-License-Identifier: GPL-2.0-only

//! What a task keeps about the other side; going there and back.

use crate::{arguments::Arguments, extended::Extended, registers, signals};
use core::ptr::{self, NonNull};
use kernel::{
    bindings,
    error::{code::*, Result},
    ffi::{c_long, c_ulong},
    prelude::*,
};

/// A reference to a memory, which keeps it alive even if all of its processes end.
pub(crate) struct Memory(NonNull<bindings::mm_struct>);

impl Memory {
    /// # Safety
    ///
    /// `mm` is not null, and the caller passes a reference (as of `mmget()`) on.
    pub(crate) unsafe fn from_raw(mm: *mut bindings::mm_struct) -> Self {
        // SAFETY: The caller says so.
        Memory(unsafe { NonNull::new_unchecked(mm) })
    }

    /// Whether the current task has this memory already.
    pub(crate) fn is_current(&self) -> bool {
        // SAFETY: There is always a current task, and only it changes its memory.
        unsafe { (*current()).mm == self.0.as_ptr() }
    }

    /// Whether parts of it can be protected by keys.
    pub(crate) fn has_keys(&self) -> bool {
        // SAFETY: There is a reference.
        unsafe { bindings::process_vm_exec_mm_has_keys(self.0.as_ptr()) }
    }

    /// A number that no other memory has, or will ever have.
    fn id(&self) -> u64 {
        // SAFETY: There is a reference.
        unsafe { bindings::process_vm_exec_mm_id(self.0.as_ptr()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: There is a reference, and nobody uses it after this.
        unsafe { bindings::mmput(self.0.as_ptr()) };
    }
}

/// The state of one task, which it has from its first call to its end.
///
/// C knows its first member as `task->process_vm_exec`.
#[repr(C)]
pub(crate) struct State {
    shared: bindings::process_vm_exec,
    /// The call that is being made.
    arguments: Arguments,
    /// The extended state of the code inside.
    extended: Extended,
    /// What user mode had when it made the call.
    regs: bindings::pt_regs,
    cpu: bindings::process_vm_exec_cpu,
    /// Signals that are blocked at home, and are not while inside.
    unblocked: c_ulong,
    rseq: Rseq,
    /// The memory that the task has at the time, if it is not its own.
    borrowed: Option<Memory>,
}

impl State {
    /// The state of the current task.
    pub(crate) fn of_current() -> Result<&'static mut Self> {
        let task = current();
        // SAFETY: There is always a current task; only it changes this pointer.
        let mut state = unsafe { (*task).process_vm_exec }.cast::<Self>();
        if state.is_null() {
            let new = Self {
                shared: Default::default(),
                arguments: Arguments::default(),
                extended: Extended::new()?,
                regs: Default::default(),
                cpu: Default::default(),
                unblocked: 0,
                rseq: Rseq::default(),
                borrowed: None,
            };
            state = KBox::into_raw(KBox::new(new, GFP_KERNEL_ACCOUNT)?);
            Self::publish(state);
        }
        // SAFETY: The state lives as long as the task, and only the task makes references to it: in
        // a call, of which it can be in one only, and on its way out of user mode while it is
        // inside, when it is not in a call.
        Ok(unsafe { &mut *state })
    }

    /// The state of the current task, which is inside.
    ///
    /// # Safety
    ///
    /// It is.
    pub(crate) unsafe fn inside() -> &'static mut Self {
        // SAFETY: A task that is inside has a state. See above.
        unsafe { &mut *(*current()).process_vm_exec.cast() }
    }

    /// Goes home if the current task is not there, and frees its state.
    ///
    /// # Safety
    ///
    /// `task` is the current one, and will not make the call again.
    pub(crate) unsafe fn free(task: *mut bindings::task_struct) {
        // SAFETY: The caller says so.
        let state = unsafe { (*task).process_vm_exec }.cast::<Self>();
        if state.is_null() {
            return;
        }
        // SAFETY: `of_current()` has made it this way, and has been its only user.
        let mut state = unsafe { KBox::from_raw(state) };
        // SAFETY: This changes the current task only.
        unsafe { bindings::process_vm_exec_inside_clear() };
        if !state.shared.own_mm.is_null() {
            state.give_back();
        }
        Self::publish(ptr::null_mut());
    }

    /// Makes `state` the one that others find.
    fn publish(state: *mut Self) {
        let _lock = MemoryLock::lock();
        // SAFETY: There is always a current task, and it is locked.
        unsafe { (*current()).process_vm_exec = state.cast() };
    }

    /// The call that is being made.
    pub(crate) fn arguments(&mut self) -> &mut Arguments {
        &mut self.arguments
    }

    /// Goes into `memory`, in run mode: user mode will continue there. Returns what its `rax` has.
    pub(crate) fn enter(&mut self, memory: Memory) -> Result<c_long> {
        let context = &self.arguments.context;
        let fpstate = context.context.fpstate as *const u8;
        if fpstate.is_null() {
            self.extended.keep_or_reset(memory.id())?;
        } else {
            self.extended.load(fpstate, memory.id())?;
        }

        self.shared.info.__bindgen_anon_1.si_signo = 0;
        self.shared.mask = self.arguments.mask;
        self.unblocked = signals::unblock(self.arguments.mask.sig[0]);
        // SAFETY: These belong to the current task, and are not used elsewhere while it is in the
        // kernel.
        let regs = unsafe { &mut *bindings::process_vm_exec_regs() };
        self.regs = *regs;
        // SAFETY: `cpu` can be written.
        unsafe { bindings::process_vm_exec_cpu_save(&mut self.cpu) };
        let inside = bindings::process_vm_exec_cpu {
            fs_base: if self.arguments.extended {
                context.fs_base as usize
            } else {
                self.cpu.fs_base
            },
            gs_base: if self.arguments.extended {
                context.gs_base as usize
            } else {
                self.cpu.gs_base
            },
            pkru: self.extended.pkru,
            ..Default::default()
        };

        self.borrow(memory);
        self.extended.enter();
        registers::load(regs, &self.arguments.context.context);
        // SAFETY: The bases have been checked or were there before. User mode gets what it will run
        // with.
        unsafe {
            bindings::process_vm_exec_cpu_load(&self.cpu, &inside);
            bindings::process_vm_exec_inside_set();
        }
        Ok(regs.ax as c_long)
    }

    /// Goes home for work that needs the task's own memory, and back into the same memory as
    /// before.
    ///
    /// The registers, and that the task has no rseq area, stay as they are. Protection keys have to
    /// be the caller's, since such work may access its memory.
    pub(crate) fn run_errand(&mut self, regs: *mut bindings::pt_regs) {
        let own = self.shared.own_mm;
        // SAFETY: There is always a current task.
        let borrowed = unsafe { (*current()).mm };
        self.switch(own, ptr::null_mut());
        // SAFETY: `regs` are those of the current task. The keys are the caller's, and then again
        // those of the code.
        unsafe {
            let pkru = bindings::process_vm_exec_swap_pkru(self.cpu.pkru);
            bindings::process_vm_exec_do_work(regs);
            bindings::process_vm_exec_swap_pkru(pkru);
        }
        self.switch(borrowed, own);
    }

    /// Says why the run ends.
    pub(crate) fn report(&mut self, info: bindings::kernel_siginfo_t) {
        self.shared.info = info;
    }

    /// Comes back from inside: user mode will continue in the caller, and gets the result there.
    pub(crate) fn leave(&mut self, regs: &mut bindings::pt_regs) {
        let mut inside = bindings::process_vm_exec_cpu::default();
        // SAFETY: This changes the current task only; `inside` can be written.
        unsafe {
            bindings::process_vm_exec_inside_clear();
            bindings::process_vm_exec_clear_compat();
            bindings::process_vm_exec_cpu_save(&mut inside);
        }
        let context = &mut self.arguments.context;
        registers::store(regs, &mut context.context);
        context.fs_base = inside.fs_base as u64;
        context.gs_base = inside.gs_base as u64;
        self.extended.pkru = inside.pkru;

        self.extended.leave();
        self.give_back();
        // SAFETY: This is what user mode had at home.
        unsafe { bindings::process_vm_exec_cpu_load(&inside, &self.cpu) };
        *regs = self.regs;

        let result = self.finish();
        regs.ax = result.map_or_else(|error| error.to_errno() as usize, |()| 0);
        if result == Err(ERESTARTSYS) {
            // SAFETY: This changes the current task only.
            unsafe { bindings::process_vm_exec_restart() };
        }
    }

    /// Stores where the run has come to, and why it has ended. If nothing has been asked for, it
    /// will go on: after the signals that the task has got have been delivered, or whatever it had
    /// to come home for has been done.
    fn finish(&mut self) -> Result {
        let reason = self.shared.info;
        let info = if signals::number(&reason) != 0 {
            if !signals::is_system_call(&reason) {
                self.store_trap();
            }
            signals::block(self.unblocked, 0);
            Some(reason)
        } else {
            signals::block(self.unblocked, self.arguments.mask.sig[0])
        };
        let fpstate = self.arguments.context.context.fpstate as *mut u8;
        if !fpstate.is_null() {
            self.extended.store(fpstate)?;
        }
        self.arguments.store_registers()?;
        match info {
            Some(info) => self.arguments.store_siginfo(&info),
            None => Err(ERESTARTSYS),
        }
    }

    /// Stores what the exception handlers have noted.
    fn store_trap(&mut self) {
        let context = &mut self.arguments.context.context;
        // SAFETY: There is always a current task; its exception handlers have written these.
        let thread = unsafe { &(*current()).thread };
        context.trapno = thread.trap_nr as u64;
        context.err = thread.error_code as u64;
        if thread.trap_nr == bindings::X86_TRAP_PF as usize {
            context.cr2 = thread.cr2 as u64;
        }
    }

    /// Gives the task `memory`, and nothing that it must not have there.
    pub(crate) fn borrow(&mut self, memory: Memory) {
        let task = current();
        self.rseq = Rseq::put_away();
        // SAFETY: There is always a current task. In `memory` it has no concurrency id, which it
        // could not use without an rseq area.
        let own = unsafe {
            #[cfg(CONFIG_SCHED_MM_CID)]
            bindings::sched_mm_cid_before_execve(task);
            (*task).mm
        };
        self.switch(memory.0.as_ptr(), own);
        self.borrowed = Some(memory);
    }

    /// Gives the task its own memory, and what it had there.
    pub(crate) fn give_back(&mut self) {
        let own = self.shared.own_mm;
        self.switch(own, ptr::null_mut());
        #[cfg(CONFIG_SCHED_MM_CID)]
        // SAFETY: There is always a current task, and `borrow()` has made the call that this
        // reverses.
        unsafe {
            bindings::sched_mm_cid_after_execve(current());
        }
        self.rseq.bring_back();
        if let Some(memory) = self.borrowed.take() {
            // SAFETY: There are references to both.
            unsafe { bindings::process_vm_exec_mm_owner(memory.0.as_ptr(), own) };
        }
    }

    /// Switches to another memory, whose reference becomes the task's. `own` is null, or the memory
    /// to come back to.
    fn switch(&mut self, to: *mut bindings::mm_struct, own: *mut bindings::mm_struct) {
        let task = current();
        let lock = MemoryLock::lock();
        // SAFETY: The task is the current one, and is locked. Both memories have references: `own`
        // and the one that the task has now by the task itself, the borrowed one by `borrowed` or
        // by who calls this.
        unsafe {
            let from = (*task).active_mm;
            ptr::addr_of_mut!(self.shared.own_mm).write_volatile(own);
            (*task).active_mm = to;
            (*task).mm = to;
            bindings::process_vm_exec_mm_switch(from, to);
        }
        drop(lock);
        // SAFETY: As above.
        unsafe { bindings::process_vm_exec_mm_used(to) };
    }
}

/// Holds `task->alloc_lock` of the current task, with interrupts off: its memory may change.
struct MemoryLock;

impl MemoryLock {
    fn lock() -> Self {
        // SAFETY: No caller holds the lock or has interrupts off. It is unlocked when this is
        // dropped.
        unsafe { bindings::process_vm_exec_mm_lock() };
        MemoryLock
    }
}

impl Drop for MemoryLock {
    fn drop(&mut self) {
        // SAFETY: `lock()` has locked it.
        unsafe { bindings::process_vm_exec_mm_unlock() };
    }
}

/// A registered area of restartable sequences, which the kernel would write to in the wrong memory.
#[derive(Default)]
struct Rseq {
    #[cfg(CONFIG_RSEQ)]
    area: Option<NonNull<bindings::rseq>>,
    #[cfg(CONFIG_SCHED_MM_CID)]
    mm_cid: kernel::ffi::c_int,
}

impl Rseq {
    /// Takes it from the current task.
    fn put_away() -> Self {
        let task = current();
        // SAFETY: There is always a current task, and only it uses these.
        unsafe {
            Rseq {
                #[cfg(CONFIG_RSEQ)]
                area: NonNull::new(ptr::replace(&raw mut (*task).rseq, ptr::null_mut())),
                #[cfg(CONFIG_SCHED_MM_CID)]
                mm_cid: (*task).mm_cid,
            }
        }
    }

    /// Gives it back. It has to be written only if what it says is not true any more: migration and
    /// preemption leave a note in `rseq_event_mask` whether or not there is an area.
    fn bring_back(&mut self) {
        #[cfg(CONFIG_RSEQ)]
        if let Some(area) = self.area.take() {
            let task = current();
            // SAFETY: As above.
            unsafe {
                (*task).rseq = area.as_ptr();
                let mut stale = ptr::addr_of!((*task).rseq_event_mask).read_volatile() != 0;
                #[cfg(CONFIG_SCHED_MM_CID)]
                {
                    stale |= (*task).mm_cid != self.mm_cid;
                }
                if stale {
                    bindings::process_vm_exec_rseq_resume();
                }
            }
        }
    }
}

/// The current task.
fn current() -> *mut bindings::task_struct {
    // SAFETY: There is always one.
    unsafe { bindings::get_current() }
}
