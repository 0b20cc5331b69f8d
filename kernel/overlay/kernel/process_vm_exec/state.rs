// SPDX-License-Identifier: GPL-2.0-only

//! What a task keeps about the other side; going there and back.

use crate::{access::Access, arguments::Arguments, extended::Extended, registers, signals};
use core::ptr::{self, NonNull};
use kernel::{
    bindings,
    error::{code::*, Error, Result},
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

    /// Whether it is this one.
    pub(crate) fn is(&self, mm: *const bindings::mm_struct) -> bool {
        ptr::eq(self.0.as_ptr(), mm)
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
        unsafe { bindings::process_vm_exec_mmput(self.0.as_ptr()) };
    }
}

/// The state of one task, which it has from its first call to its end.
///
/// C knows its first member as `task->process_vm_exec`.
#[repr(C)]
pub(crate) struct State {
    shared: bindings::process_vm_exec,
    /// The task, and what user mode has in its registers. Both are kept here since asking for them
    /// takes a function of C's.
    task: *mut bindings::task_struct,
    regs: *mut bindings::pt_regs,
    /// The call that is being made.
    arguments: Arguments,
    /// The extended state of the code inside.
    extended: Extended,
    access: Access,
    /// What user mode had when it made the call.
    own_regs: bindings::pt_regs,
    cpu: bindings::process_vm_exec_cpu,
    /// Signals that are blocked at home, and are not while inside.
    unblocked: c_ulong,
    rseq: Rseq,
    /// The target's memory, from shortly before the task has it until it has given it back.
    target: Option<Memory>,
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
                task,
                // SAFETY: There is always a current task. They stay where they are.
                regs: unsafe { bindings::process_vm_exec_regs() },
                arguments: Arguments::default(),
                extended: Extended::new()?,
                access: Access::default(),
                own_regs: Default::default(),
                cpu: Default::default(),
                unblocked: 0,
                rseq: Rseq::default(),
                target: None,
            };
            state = KBox::into_raw(KBox::new(new, GFP_KERNEL_ACCOUNT)?);
            // SAFETY: As above.
            unsafe { (*task).process_vm_exec = state.cast() };
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
    /// `task` is the current one, has a state, and will not make the call again.
    pub(crate) unsafe fn free(task: *mut bindings::task_struct) {
        // SAFETY: `of_current()` has made it this way, and has been its only user. `inside_clear()`
        // changes the current task only.
        let mut state = unsafe {
            bindings::process_vm_exec_inside_clear();
            KBox::<Self>::from_raw((*task).process_vm_exec.cast())
        };
        // SAFETY: `task` is the current one, and only it changes this.
        if !unsafe { (*task).own_mm }.is_null() {
            state.give_back();
        }
        // SAFETY: As above.
        unsafe { (*task).process_vm_exec = ptr::null_mut() };
    }

    /// The call that is being made.
    pub(crate) fn arguments(&mut self) -> &mut Arguments {
        &mut self.arguments
    }

    /// The memory that the call is about, if the caller may have it.
    pub(crate) fn memory(&mut self) -> Result<Memory> {
        // SAFETY: This reads the current task's state only.
        let error = unsafe { bindings::process_vm_exec_caller_fits() };
        if error != 0 {
            return Err(Error::from_errno(error));
        }
        let memory = self.access.to(self.arguments.target)?;
        // SAFETY: `task` is the current one, and only it changes its memory.
        if memory.is(unsafe { (*self.task).mm }) {
            return Err(EINVAL);
        }
        Ok(memory)
    }

    /// What user mode has in the current task's registers.
    pub(crate) fn regs(&self) -> *mut bindings::pt_regs {
        self.regs
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
        self.unblocked = signals::unblock(self.task, self.arguments.mask.sig[0]);
        // SAFETY: These belong to the current task, and are not used elsewhere while it is in the
        // kernel.
        let regs = unsafe { &mut *self.regs };
        registers::copy(regs, &mut self.own_regs);
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

        self.hold(memory);
        self.borrow();
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
        // SAFETY: There is always a current task; only it changes these, and it is inside. It has
        // references to both memories. `regs` are those of the current task. The keys are the
        // caller's, and then again those of the code.
        unsafe {
            let (own, borrowed) = ((*self.task).own_mm, (*self.task).mm);
            bindings::process_vm_exec_mm_switch(own, ptr::null_mut());
            let pkru = bindings::process_vm_exec_swap_pkru(self.cpu.pkru);
            bindings::process_vm_exec_do_work(regs);
            bindings::process_vm_exec_swap_pkru(pkru);
            bindings::process_vm_exec_mm_switch(borrowed, own);
        }
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
        registers::copy(&self.own_regs, regs);

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
            signals::block(self.task, self.unblocked, 0);
            Some(reason)
        } else {
            signals::block(self.task, self.unblocked, self.arguments.mask.sig[0])
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
        // SAFETY: `task` is the current one; its exception handlers have written these.
        let thread = unsafe { &(*self.task).thread };
        context.trapno = thread.trap_nr as u64;
        context.err = thread.error_code as u64;
        if thread.trap_nr == bindings::X86_TRAP_PF as usize {
            context.cr2 = thread.cr2 as u64;
        }
    }

    /// Keeps the reference to `memory`, which will be borrowed. What the task does in the meantime
    /// may end it, and then only what its state has is given back.
    pub(crate) fn hold(&mut self, memory: Memory) {
        self.target = Some(memory);
    }

    /// Reverses [`State::hold()`], if the memory has not been borrowed.
    pub(crate) fn let_go(&mut self) {
        self.target = None;
    }

    /// Gives the task the memory that it holds, and nothing that it must not have there.
    pub(crate) fn borrow(&mut self) {
        let Some(Memory(to)) = self.target else {
            return;
        };
        let task = self.task;
        self.rseq = Rseq::put_away(task);
        // SAFETY: `task` is the current one, which has a reference to its own memory; `target` has
        // one to the other. In that, the task has no concurrency id, which it could not use without
        // an rseq area.
        unsafe {
            #[cfg(CONFIG_SCHED_MM_CID)]
            bindings::sched_mm_cid_before_execve(task);
            bindings::process_vm_exec_mm_switch(to.as_ptr(), (*task).mm);
        }
    }

    /// Gives the task its own memory, and what it had there.
    pub(crate) fn give_back(&mut self) {
        let task = self.task;
        // SAFETY: `task` is the current one, which has borrowed a memory and has kept the reference
        // to its own. `borrow()` has made the call that is reversed.
        let own = unsafe {
            let own = (*task).own_mm;
            bindings::process_vm_exec_mm_switch(own, ptr::null_mut());
            #[cfg(CONFIG_SCHED_MM_CID)]
            bindings::sched_mm_cid_after_execve(task);
            own
        };
        self.rseq.bring_back(task);
        if let Some(memory) = self.target.take() {
            // SAFETY: There are references to both.
            unsafe { bindings::process_vm_exec_mm_owner(memory.0.as_ptr(), own) };
        }
    }
}

/// A registered area of restartable sequences, which the kernel would write to in the wrong memory.
///
/// It says on which processor the task is, and its concurrency id.
#[derive(Default)]
struct Rseq {
    #[cfg(CONFIG_RSEQ)]
    area: Option<NonNull<bindings::rseq>>,
    /// Whether it was about to be written when it was put away.
    #[cfg(CONFIG_RSEQ)]
    pending: bool,
    #[cfg(CONFIG_SMP)]
    cpu: u32,
    #[cfg(CONFIG_SCHED_MM_CID)]
    mm_cid: kernel::ffi::c_int,
}

impl Rseq {
    /// Takes it from `task`, which is the current one.
    ///
    /// The order matters. As long as the task has an area, the scheduler asks for it to be written:
    /// if what is in it changes after it has been noted here, it is pending.
    fn put_away(task: *mut bindings::task_struct) -> Self {
        let mut rseq = Self::default();
        // SAFETY: `task` is the current one. Only it changes `rseq`, the others are changed by the
        // scheduler, too, while the task does not run.
        unsafe {
            #[cfg(CONFIG_SMP)]
            {
                rseq.cpu = (&raw const (*task).thread_info.cpu).read_volatile();
            }
            #[cfg(CONFIG_SCHED_MM_CID)]
            {
                rseq.mm_cid = (&raw const (*task).mm_cid).read_volatile();
            }
            #[cfg(CONFIG_RSEQ)]
            {
                let area = &raw mut (*task).rseq;
                rseq.area = NonNull::new(area.read_volatile());
                area.write_volatile(ptr::null_mut());
                let flags = (&raw const (*task).thread_info.flags).read_volatile();
                rseq.pending = flags & 1 << bindings::TIF_NOTIFY_RESUME != 0;
            }
        }
        rseq
    }

    /// Gives it back, and has it written if what it says is not true any more.
    ///
    /// The order matters here, too: what the scheduler changes after this has looked is its own
    /// business again.
    fn bring_back(&mut self, task: *mut bindings::task_struct) {
        #[cfg(CONFIG_RSEQ)]
        if let Some(area) = self.area.take() {
            let mut stale = self.pending;
            // SAFETY: As above.
            unsafe {
                (&raw mut (*task).rseq).write_volatile(area.as_ptr());
                #[cfg(CONFIG_SMP)]
                {
                    stale |= (&raw const (*task).thread_info.cpu).read_volatile() != self.cpu;
                }
                #[cfg(CONFIG_SCHED_MM_CID)]
                {
                    stale |= (&raw const (*task).mm_cid).read_volatile() != self.mm_cid;
                }
                if stale {
                    bindings::process_vm_exec_rseq_resume();
                }
            }
        }
    }
}

/// The current task.
pub(crate) fn current() -> *mut bindings::task_struct {
    // SAFETY: There is always one.
    unsafe { bindings::process_vm_exec_current() }
}
