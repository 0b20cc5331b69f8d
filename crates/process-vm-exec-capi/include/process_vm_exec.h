/*
 * process_vm_exec: run code, or one system call, in the memory of another process.
 *
 * The manual page process_vm_exec(2) describes it. x86-64 Linux only. `struct sigcontext` comes from <signal.h>, which
 * declares it if _DEFAULT_SOURCE or _GNU_SOURCE is defined, as it is by default with GNU compilers' own -std=gnu*.
 */
#ifndef PROCESS_VM_EXEC_H
#define PROCESS_VM_EXEC_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Execute the one system call that uctx describes: its number is in rax, its arguments are in rdi, rsi, rdx, r10, r8
 * and r9. The result, or the negated error number, is in rax afterwards. siginfo and sigmask are not used.
 */
#define PROCESS_VM_EXEC_SYSCALL 0x1UL

/* pid is not the number of a process, but a file descriptor that refers to one: see pidfd_open(2). */
#define PROCESS_VM_EXEC_PIDFD 0x2UL

/*
 * uctx points to a struct process_vm_exec_context, which has the bases of FS and GS too. Without this flag the code
 * finds those of the calling thread.
 */
#define PROCESS_VM_EXEC_EXTENDED 0x4UL

/* For sizemask: bytes of the kernel's set of signals. The C library's sigset_t starts with it, but is larger. */
#define PROCESS_VM_EXEC_SIZEMASK ((size_t)8)

/* For PROCESS_VM_EXEC_EXTENDED. */
struct process_vm_exec_context {
	struct sigcontext context;
	uint64_t fs_base;
	uint64_t gs_base;
};

/*
 * Runs in the memory of the process pid with the registers in uctx, until the code there makes a system call, or
 * until there is a signal that is in sigmask: one that the code causes, or one for the caller. Stores the registers
 * in uctx and the reason in siginfo.
 *
 * Returns 0, or -1 with an error number in errno.
 */
int process_vm_exec(pid_t pid, struct sigcontext *uctx, unsigned long flags, siginfo_t *siginfo,
		    const sigset_t *sigmask, size_t sizemask);

#ifdef __cplusplus
}
#endif

#endif
