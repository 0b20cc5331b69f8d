/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
#ifndef _UAPI_LINUX_PROCESS_VM_EXEC_H
#define _UAPI_LINUX_PROCESS_VM_EXEC_H

#include <linux/types.h>

/* The C library's <signal.h> declares struct sigcontext too. */
#ifndef _BITS_SIGCONTEXT_H
#include <asm/sigcontext.h>
#endif

/*
 * Execute the one system call that uctx describes, with the target's memory.
 * The result, or the negated error number, is in rax afterwards.
 */
#define PROCESS_VM_EXEC_SYSCALL		0x1UL

/* pid is a file descriptor that refers to the target: pidfd_open(2). */
#define PROCESS_VM_EXEC_PIDFD		0x2UL

/* uctx points to a struct process_vm_exec_context. */
#define PROCESS_VM_EXEC_EXTENDED	0x4UL

/*
 * All other arguments are 0: returns the flags that this kernel knows, and
 * does nothing.
 */
#define PROCESS_VM_EXEC_QUERY		0x80000000UL

/* For PROCESS_VM_EXEC_EXTENDED. */
struct process_vm_exec_context {
	struct sigcontext context;
	__u64 fs_base;
	__u64 gs_base;
};

#endif /* _UAPI_LINUX_PROCESS_VM_EXEC_H */
