/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * process_vm_exec(2): a task runs code, or one system call, with the memory of
 * another process. These are the hooks for the rest of the kernel, and the
 * helpers of the call's own body, which is written in Rust.
 *
 * A task has borrowed a memory if task->own_mm is set: task->mm is then another
 * process's, and own_mm is the one that it had. It is inside if, moreover, its
 * registers in user mode are those of code that runs there:
 * SYSCALL_WORK_PROCESS_VM_EXEC says so.
 */
#ifndef _LINUX_PROCESS_VM_EXEC_H
#define _LINUX_PROCESS_VM_EXEC_H

#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/seqlock.h>
#include <linux/signal.h>
#include <linux/thread_info.h>
#include <uapi/linux/audit.h>
#include <uapi/linux/process_vm_exec.h>

struct pt_regs;

/* The part of a task's state that C has to know. Only the task uses it. */
struct process_vm_exec {
	/* While inside: signals that end the run and are reported. */
	sigset_t mask;
	/* While inside: what has ended the run, if si_signo is not 0. */
	kernel_siginfo_t info;
};

#ifdef CONFIG_PROCESS_VM_EXEC

void process_vm_exec_syscall(struct pt_regs *regs);
void process_vm_exec_leave(struct pt_regs *regs);
void process_vm_exec_errand(struct pt_regs *regs);
void process_vm_exec_free(struct task_struct *task);

/**
 * process_vm_exec_inside() - does code of another memory run in this task?
 * @task: any task
 */
static inline bool process_vm_exec_inside(struct task_struct *task)
{
	return test_task_syscall_work(task, PROCESS_VM_EXEC);
}

/**
 * process_vm_exec_away() - has the current task borrowed the memory that it has?
 *
 * It must not be inherited then.
 */
static inline bool process_vm_exec_away(void)
{
	return current->own_mm;
}

/**
 * process_vm_exec_fork() - a new task has no state
 * @task: the task, which is a copy of its creator so far
 *
 * Its creator is at home, but can be inside otherwise: task work, which creates
 * threads for io_uring, is done by a task that goes back inside.
 */
static inline void process_vm_exec_fork(struct task_struct *task)
{
	task->process_vm_exec = NULL;
	clear_task_syscall_work(task, PROCESS_VM_EXEC);
}

/**
 * process_vm_exec_task_exit() - go home, and forget the state
 * @task: the current task, which ends
 */
static inline void process_vm_exec_task_exit(struct task_struct *task)
{
	if (unlikely(task->process_vm_exec))
		process_vm_exec_free(task);
}

/**
 * process_vm_exec_reports() - will this signal be reported, and not delivered?
 * @task: the task that has caused the signal
 * @sig: its number
 */
static inline bool process_vm_exec_reports(struct task_struct *task, int sig)
{
	return task == current && process_vm_exec_inside(task) &&
	       sigismember(&task->process_vm_exec->mask, sig);
}

/**
 * process_vm_exec_fault() - take a signal that an instruction has caused
 * @task: the task that gets the signal
 * @info: the signal
 *
 * Return: true if the signal will be reported, and must not be sent.
 */
static inline bool process_vm_exec_fault(struct task_struct *task,
					 const kernel_siginfo_t *info)
{
	if (!process_vm_exec_reports(task, info->si_signo))
		return false;
	copy_siginfo(&task->process_vm_exec->info, info);
	set_tsk_thread_flag(task, TIF_SIGPENDING);
	return true;
}

/**
 * process_vm_exec_vsyscall() - take a call that the kernel would have emulated
 * @caller: where the code goes on
 * @nr: number of the system call that stands for it
 *
 * Return: true if the task is inside, and the call will be reported.
 */
static inline bool process_vm_exec_vsyscall(unsigned long caller, int nr)
{
	kernel_siginfo_t *info;

	if (!process_vm_exec_inside(current))
		return false;
	info = &current->process_vm_exec->info;
	clear_siginfo(info);
	info->si_signo = SIGSYS;
	info->si_code = SYS_USER_DISPATCH;
	info->si_call_addr = (void __user *)caller;
	info->si_syscall = nr;
	info->si_arch = AUDIT_ARCH_X86_64;
	set_thread_flag(TIF_SIGPENDING);
	return true;
}

/**
 * process_vm_exec_own_mm() - the memory that a task has when it is at home
 * @task: any task
 *
 * That the task keeps it is sure only for current and for a task that is locked
 * by task_lock().
 */
static inline struct mm_struct *
process_vm_exec_own_mm(const struct task_struct *task)
{
	struct mm_struct *mm;
	unsigned int seq;

	do {
		seq = raw_read_seqcount_begin(&task->own_mm_seq);
		mm = READ_ONCE(task->own_mm) ?: READ_ONCE(task->mm);
	} while (read_seqcount_retry(&task->own_mm_seq, seq));
	return mm;
}

/**
 * process_vm_exec_mm() - what is shown as a task's memory
 * @task: current, or a task that is locked by task_lock()
 *
 * Return: for current, the memory that it uses; for others their own, even
 * while they have borrowed one: a right to look at a task is no right to look
 * at what it has borrowed.
 */
static inline struct mm_struct *
process_vm_exec_mm(const struct task_struct *task)
{
	return task == current ? task->mm : process_vm_exec_own_mm(task);
}

#else /* CONFIG_PROCESS_VM_EXEC */

static inline bool process_vm_exec_inside(struct task_struct *task)
{
	return false;
}

static inline bool process_vm_exec_away(void)
{
	return false;
}

static inline void process_vm_exec_fork(struct task_struct *task)
{
}

static inline void process_vm_exec_task_exit(struct task_struct *task)
{
}

static inline void process_vm_exec_syscall(struct pt_regs *regs)
{
}

static inline void process_vm_exec_leave(struct pt_regs *regs)
{
}

static inline void process_vm_exec_errand(struct pt_regs *regs)
{
}

static inline bool process_vm_exec_reports(struct task_struct *task, int sig)
{
	return false;
}

static inline bool process_vm_exec_fault(struct task_struct *task,
					 const kernel_siginfo_t *info)
{
	return false;
}

static inline bool process_vm_exec_vsyscall(unsigned long caller, int nr)
{
	return false;
}

static inline struct mm_struct *
process_vm_exec_own_mm(const struct task_struct *task)
{
	return READ_ONCE(task->mm);
}

static inline struct mm_struct *
process_vm_exec_mm(const struct task_struct *task)
{
	return task->mm;
}

#endif /* CONFIG_PROCESS_VM_EXEC */

#endif /* _LINUX_PROCESS_VM_EXEC_H */
