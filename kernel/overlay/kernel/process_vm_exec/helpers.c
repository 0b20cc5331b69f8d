// SPDX-License-Identifier: GPL-2.0-only
/*
 * The door of process_vm_exec(2), and the macros and inline functions that its
 * body needs.
 */
#include <linux/nospec.h>
#include <linux/nsproxy.h>
#include <linux/resume_user_mode.h>
#include <linux/rseq.h>
#include <linux/seccomp.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/uprobes.h>
#include <asm/fpu/xstate.h>
#include <asm/fsgsbase.h>
#include <asm/pkru.h>
#include <asm/prctl.h>
#include <asm/segment.h>

#include "helpers.h"

SYSCALL_DEFINE6(process_vm_exec, pid_t, pid, struct sigcontext __user *, uctx,
		unsigned long, flags, siginfo_t __user *, siginfo,
		const sigset_t __user *, sigmask, size_t, sizemask)
{
	return process_vm_exec_call(pid, (void __user *)uctx, flags, siginfo,
				    sigmask, sizemask);
}

/**
 * process_vm_exec_read_words() - copy a few words from user space
 * @to: where to
 * @from: where from
 * @words: how many
 *
 * For what is as short as a set of registers, moving words is faster than the
 * string instructions of copy_from_user(), which take long to begin.
 */
bool process_vm_exec_read_words(u64 *to, const u64 __user *from, size_t words)
{
	size_t i;

	might_fault();
	if (!user_read_access_begin(from, words * sizeof(*from)))
		return false;
	for (i = 0; i < words; i++)
		unsafe_get_user(to[i], &from[i], fault);
	user_read_access_end();
	return true;
fault:
	user_read_access_end();
	return false;
}

/* The same in the other direction. */
bool process_vm_exec_write_words(u64 __user *to, const u64 *from, size_t words)
{
	size_t i;

	might_fault();
	if (!user_write_access_begin(to, words * sizeof(*to)))
		return false;
	for (i = 0; i < words; i++)
		unsafe_put_user(from[i], &to[i], fault);
	user_write_access_end();
	return true;
fault:
	user_write_access_end();
	return false;
}

/* As copy_siginfo_to_user(), which clears what is behind @info on its own. */
bool process_vm_exec_write_siginfo(siginfo_t __user *to,
				   const kernel_siginfo_t *info)
{
	siginfo_t whole;

	BUILD_BUG_ON(sizeof(whole) % sizeof(u64));
	copy_siginfo_to_external(&whole, info);
	return process_vm_exec_write_words((u64 __user *)to, (u64 *)&whole,
					   sizeof(whole) / sizeof(u64));
}

/* Here, and not with Rust's other helpers: text far away costs time. */
struct task_struct *process_vm_exec_current(void)
{
	return current;
}

struct pt_regs *process_vm_exec_regs(void)
{
	return current_pt_regs();
}

/**
 * process_vm_exec_caller_fits() - can this task lend itself?
 *
 * Code elsewhere must not have the task's I/O ports, and a shadow stack would
 * have to be changed together with the memory. If the instruction that makes
 * the call is probed, it runs in a copy, and uprobes wait for its end with these
 * registers.
 */
int process_vm_exec_caller_fits(void)
{
#ifdef CONFIG_X86_USER_SHADOW_STACK
	if (current->thread.features & ARCH_SHSTK_SHSTK)
		return -EOPNOTSUPP;
#endif
#ifdef CONFIG_UPROBES
	if (current->utask && current->utask->active_uprobe)
		return -EBUSY;
#endif
	return test_thread_flag(TIF_IO_BITMAP) ? -EOPNOTSUPP : 0;
}

/**
 * process_vm_exec_target_fits() - can code in this task's memory run here?
 * @task: a task that has the memory
 *
 * Not after it has been killed: its memory is there for a while. The pages from
 * which the vDSO reads the time are mapped when they are first accessed: by a
 * task with another time namespace, those of the wrong one would be, and stay.
 */
static int process_vm_exec_target_fits(struct task_struct *task)
{
	struct nsproxy *own = current->nsproxy;
	bool same_time;

	if (READ_ONCE(task->signal->flags) & SIGNAL_GROUP_EXIT)
		return -ESRCH;
	task_lock(task);
	same_time = !task->nsproxy || task->nsproxy->time_ns == own->time_ns;
	task_unlock(task);
	if (!same_time || test_tsk_thread_flag(task, TIF_ADDR32))
		return -EOPNOTSUPP;
	return 0;
}

/**
 * process_vm_exec_access() - get the memory of a task, if the caller may
 * @task: the target
 * @noted: where to note what the answer depended on
 *
 * The credentials are noted before they are looked at. If the target changes
 * them in between, it will not have those that are noted again.
 *
 * Return: the memory, with a reference as of mmget(), or an error pointer.
 */
struct mm_struct *process_vm_exec_access(struct task_struct *task,
					 struct process_vm_exec_access *noted)
{
	const struct cred *theirs = get_task_cred(task);
	struct mm_struct *mm;
	int error;

	mm = mm_access(task, PTRACE_MODE_ATTACH_REALCREDS);
	if (IS_ERR(mm))
		goto put_cred;
	error = process_vm_exec_target_fits(task);
	if (error) {
		mmput(mm);
		mm = ERR_PTR(error);
		goto put_cred;
	}
	mmgrab(mm);
	noted->mm = mm;
	noted->pid = get_task_pid(task, PIDTYPE_PID);
	noted->own = get_current_cred();
	noted->theirs = theirs;
	return mm;

put_cred:
	put_cred(theirs);
	return mm;
}

/**
 * process_vm_exec_access_again() - get the same memory once more
 * @noted: what process_vm_exec_access() has noted
 *
 * That is allowed if nothing has changed that __ptrace_may_access() looks at.
 * What is compared cannot have been freed and allocated again: there are
 * references to it. Only memory that anybody with such credentials may see is
 * got in this way.
 *
 * A task that executes another program has another memory before it has the
 * credentials of that, and what this returns is the one that was noted.
 *
 * Return: the memory, with a reference as of mmget(), or NULL if
 * process_vm_exec_access() has to be asked.
 */
struct mm_struct *
process_vm_exec_access_again(const struct process_vm_exec_access *noted)
{
	struct mm_struct *mm = NULL;
	struct task_struct *task;

	rcu_read_lock();
	task = pid_task(noted->pid, PIDTYPE_PID);
	if (task && process_vm_exec_own_mm(task) == noted->mm &&
	    current_cred() == noted->own &&
	    rcu_access_pointer(task->real_cred) == noted->theirs) {
		/* As in __ptrace_may_access(), where this is explained. */
		smp_rmb();
		if (get_dumpable(noted->mm) == SUID_DUMP_USER &&
		    !process_vm_exec_target_fits(task) &&
		    mmget_not_zero(noted->mm))
			mm = noted->mm;
	}
	rcu_read_unlock();
	return mm;
}

/* Give the references back. */
void process_vm_exec_access_drop(struct process_vm_exec_access *noted)
{
	put_pid(noted->pid);
	mmdrop(noted->mm);
	put_cred(noted->own);
	put_cred(noted->theirs);
}

unsigned long process_vm_exec_task_size(void)
{
	return TASK_SIZE_MAX;
}

unsigned int process_vm_exec_xstate_size(void)
{
	return fpu_user_cfg.default_size;
}

unsigned int process_vm_exec_xstate_max(void)
{
	return fpu_user_cfg.max_size;
}

u32 process_vm_exec_initial_pkru(void)
{
	return pkru_get_init_value();
}

/**
 * process_vm_exec_alloc_fpu() - allocate extended state for code inside
 * @fpu: where to keep it
 *
 * Features that a task has to ask for stay off.
 */
bool process_vm_exec_alloc_fpu(struct fpu_guest *fpu)
{
	if (!fpu_alloc_guest_fpstate(fpu))
		return false;
	if (cpu_feature_enabled(X86_FEATURE_XFD))
		fpu_update_guest_xfd(fpu, fpu_kernel_cfg.max_features &
					  XFEATURE_MASK_USER_DYNAMIC);
	return true;
}

void process_vm_exec_inside_set(void)
{
	set_syscall_work(PROCESS_VM_EXEC);
}

/* If a 32-bit system call has ended the run, the one that goes on is not one. */
void process_vm_exec_inside_clear(void)
{
	clear_syscall_work(PROCESS_VM_EXEC);
	current_thread_info()->status &= ~TS_COMPAT;
}

u32 process_vm_exec_arch(void)
{
	return syscall_get_arch(current);
}

/* Have arch_do_signal_or_restart() look at the call's result. */
void process_vm_exec_restart(void)
{
	set_thread_flag(TIF_SIGPENDING);
}

/**
 * process_vm_exec_do_work() - do what TIF_NOTIFY_SIGNAL and TIF_NOTIFY_RESUME ask
 * @regs: what user mode will get
 */
void process_vm_exec_do_work(struct pt_regs *regs)
{
	clear_notify_signal();
	resume_user_mode_work(regs);
}

void process_vm_exec_cpu_save(struct process_vm_exec_cpu *state)
{
	savesegment(ds, state->ds);
	savesegment(es, state->es);
	savesegment(fs, state->fs);
	savesegment(gs, state->gs);
	state->fs_base = x86_fsbase_read_cpu();
	state->gs_base = x86_gsbase_read_cpu_inactive();
	state->pkru = read_pkru();
}

/* The same selector of the LDT means something else where the LDT is another. */
static bool segment_changes(u16 now, u16 next)
{
	return now != next || next & SEGMENT_TI_MASK;
}

/**
 * process_vm_exec_cpu_load() - give user mode another state
 * @now: what it has, as saved by process_vm_exec_cpu_save()
 * @next: what it shall have
 *
 * Most of the two is the same, and comparing is cheaper than writing. Segments
 * come before bases, since loading one changes the base.
 */
void process_vm_exec_cpu_load(const struct process_vm_exec_cpu *now,
			      const struct process_vm_exec_cpu *next)
{
	const bool fs = segment_changes(now->fs, next->fs);
	const bool gs = segment_changes(now->gs, next->gs);

	preempt_disable();
	if (unlikely(segment_changes(now->ds, next->ds)))
		loadsegment(ds, next->ds);
	if (unlikely(segment_changes(now->es, next->es)))
		loadsegment(es, next->es);
	if (fs || now->fs_base != next->fs_base) {
		if (fs)
			loadsegment(fs, next->fs);
		x86_fsbase_write_cpu(next->fs_base);
		current->thread.fsbase = next->fs_base;
	}
	if (gs || now->gs_base != next->gs_base) {
		if (gs)
			load_gs_index(next->gs);
		x86_gsbase_write_cpu_inactive(next->gs_base);
		current->thread.gsbase = next->gs_base;
	}
	preempt_enable();
	if (now->pkru != next->pkru)
		write_pkru(next->pkru);
}

/* Give user mode other rights of protection keys, and return those that it had. */
u32 process_vm_exec_swap_pkru(u32 pkru)
{
	u32 old = read_pkru();

	write_pkru(pkru);
	return old;
}

/* mmput(), whose last reference alone needs more than this. */
void process_vm_exec_mmput(struct mm_struct *mm)
{
	if (!atomic_add_unless(&mm->mm_users, -1, 1))
		mmput(mm);
}

/**
 * process_vm_exec_mm_switch() - switch to another memory
 * @to: the memory, whose reference becomes the task's
 * @own: NULL, or the memory to come back to
 *
 * membarrier(2) needs a full barrier between accesses to the old memory and the
 * change of current->mm; the switch itself has the one between the change and
 * accesses to the new memory.
 */
void process_vm_exec_mm_switch(struct mm_struct *to, struct mm_struct *own)
{
	struct task_struct *task = current;
	struct mm_struct *from = task->active_mm;

	task_lock(task);
	smp_mb__after_spinlock();
	local_irq_disable();
	raw_write_seqcount_begin(&task->own_mm_seq);
	WRITE_ONCE(task->own_mm, own);
	WRITE_ONCE(task->mm, to);
	raw_write_seqcount_end(&task->own_mm_seq);
	task->active_mm = to;
	/* The run queue has what is in @from. */
	if (atomic_read(&from->membarrier_state) |
	    atomic_read(&to->membarrier_state))
		membarrier_update_current_mm(to);
	switch_mm_irqs_off(from, to, task);
	local_irq_enable();
	task_unlock(task);
	lru_gen_use_mm(to);
}

/**
 * process_vm_exec_has_keys() - are there keys in the memory that the task has?
 *
 * Has one ever been allocated, that is, other than the one that all have.
 */
bool process_vm_exec_has_keys(void)
{
#ifdef CONFIG_X86_INTEL_MEMORY_PROTECTION_KEYS
	return READ_ONCE(current->mm->context.pkey_allocation_map) != 0x1;
#else
	return false;
#endif
}

u64 process_vm_exec_mm_id(struct mm_struct *mm)
{
	return mm->context.ctx_id;
}

/**
 * process_vm_exec_mm_owner() - put right who owns a memory
 * @borrowed: the memory that the task has just given back
 * @own: the one that it has again
 *
 * While it was away it can have been taken for the owner of @borrowed, and
 * missed as one of @own.
 */
void process_vm_exec_mm_owner(struct mm_struct *borrowed, struct mm_struct *own)
{
#ifdef CONFIG_MEMCG
	if (unlikely(READ_ONCE(borrowed->owner) == current))
		mm_update_next_owner(borrowed);
	if (unlikely(!READ_ONCE(own->owner)))
		cmpxchg(&own->owner, NULL, current);
#endif
}

void process_vm_exec_rseq_resume(void)
{
	rseq_set_notify_resume(current);
}

void process_vm_exec_siglock(void)
	__acquires(&current->sighand->siglock)
{
	spin_lock_irq(&current->sighand->siglock);
}

void process_vm_exec_sigunlock(void)
	__releases(&current->sighand->siglock)
{
	spin_unlock_irq(&current->sighand->siglock);
}

/**
 * process_vm_exec_seccomp() - ask the filters about the call in current_pt_regs()
 *
 * Return: true if the call may be made.
 */
bool process_vm_exec_seccomp(void)
{
	return secure_computing() != -1;
}

/**
 * process_vm_exec_audit_enter() - have a nested call recorded as a call
 * @regs: the nested call
 *
 * There is one record at a time: that of process_vm_exec(2) ends here.
 */
void process_vm_exec_audit_enter(const struct pt_regs *regs)
{
	if (likely(!audit_context()))
		return;
	__audit_syscall_exit(1, 0);
	audit_syscall_entry(regs->orig_ax, regs->di, regs->si, regs->dx,
			    regs->r10);
}

void process_vm_exec_audit_exit(long result)
{
	if (unlikely(audit_context()))
		__audit_syscall_exit(!IS_ERR_VALUE(result), result);
}

long process_vm_exec_sys_call(const struct pt_regs *regs, unsigned int nr)
{
	if (nr >= NR_syscalls)
		return -ENOSYS;
	return x64_sys_call(regs, array_index_nospec(nr, NR_syscalls));
}
