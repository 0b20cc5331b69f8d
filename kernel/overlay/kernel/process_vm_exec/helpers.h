/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the body of process_vm_exec(2) needs and Rust cannot have: macros and
 * inline functions, most of them of the architecture.
 */
#ifndef _PROCESS_VM_EXEC_HELPERS_H
#define _PROCESS_VM_EXEC_HELPERS_H

#include <linux/audit.h>
#include <linux/pid.h>
#include <linux/prctl.h>
#include <linux/process_vm_exec.h>
#include <linux/ptrace.h>
#include <linux/sched/mm.h>
#include <linux/syscalls.h>
#include <asm/fpu/api.h>
#include <asm/mmu_context.h>
#include <asm/syscall.h>
#include <asm/trapnr.h>

/**
 * struct process_vm_exec_cpu - what user mode has in the CPU, beside pt_regs
 *				and the extended state
 * @fs_base: base of FS
 * @gs_base: base of GS
 * @pkru: rights of the protection keys
 * @ds: data segment
 * @es: extra segment
 * @fs: segment FS
 * @gs: segment GS
 */
struct process_vm_exec_cpu {
	unsigned long fs_base;
	unsigned long gs_base;
	u32 pkru;
	u16 ds;
	u16 es;
	u16 fs;
	u16 gs;
};

/**
 * struct process_vm_exec_access - what an access that was allowed depended on
 * @pid: of the target
 * @mm: the target's memory; its pages are not kept by this
 * @own: credentials of the caller
 * @theirs: credentials of the target
 */
struct process_vm_exec_access {
	struct pid *pid;
	struct mm_struct *mm;
	const struct cred *own;
	const struct cred *theirs;
};

long process_vm_exec_call(int pid, struct process_vm_exec_context __user *uctx,
			  unsigned long flags, siginfo_t __user *siginfo,
			  const sigset_t __user *sigmask, size_t sizemask);

bool process_vm_exec_read_words(u64 *to, const u64 __user *from, size_t words);
bool process_vm_exec_write_words(u64 __user *to, const u64 *from, size_t words);
bool process_vm_exec_write_siginfo(siginfo_t __user *to,
				   const kernel_siginfo_t *info);

struct task_struct *process_vm_exec_current(void);
struct pt_regs *process_vm_exec_regs(void);
int process_vm_exec_caller_fits(void);
struct mm_struct *process_vm_exec_access(struct task_struct *task,
					 struct process_vm_exec_access *noted);
struct mm_struct *
process_vm_exec_access_again(const struct process_vm_exec_access *noted);
void process_vm_exec_access_drop(struct process_vm_exec_access *noted);
unsigned long process_vm_exec_task_size(void);
unsigned int process_vm_exec_xstate_size(void);
unsigned int process_vm_exec_xstate_max(void);
u32 process_vm_exec_initial_pkru(void);
bool process_vm_exec_alloc_fpu(struct fpu_guest *fpu);

void process_vm_exec_inside_set(void);
void process_vm_exec_inside_clear(void);
u32 process_vm_exec_arch(void);
void process_vm_exec_restart(void);
void process_vm_exec_do_work(struct pt_regs *regs);

void process_vm_exec_cpu_save(struct process_vm_exec_cpu *state);
void process_vm_exec_cpu_load(const struct process_vm_exec_cpu *now,
			      const struct process_vm_exec_cpu *next);
u32 process_vm_exec_swap_pkru(u32 pkru);

void process_vm_exec_mmput(struct mm_struct *mm);
void process_vm_exec_mm_switch(struct mm_struct *to, struct mm_struct *own);
bool process_vm_exec_has_keys(void);
u64 process_vm_exec_mm_id(struct mm_struct *mm);
void process_vm_exec_mm_owner(struct mm_struct *borrowed, struct mm_struct *own);
void process_vm_exec_rseq_resume(void);

void process_vm_exec_siglock(void);
void process_vm_exec_sigunlock(void);

bool process_vm_exec_seccomp(void);
void process_vm_exec_audit_enter(const struct pt_regs *regs);
void process_vm_exec_audit_exit(long result);
long process_vm_exec_sys_call(const struct pt_regs *regs, unsigned int nr);

#endif /* _PROCESS_VM_EXEC_HELPERS_H */
