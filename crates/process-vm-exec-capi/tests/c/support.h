/* What the test programs have in common: a failed claim says where, and ends the program. */
#ifndef SUPPORT_H
#define SUPPORT_H

#define _GNU_SOURCE
#include <errno.h>
#include <process_vm_exec.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The harness knows this status: the program has said why it skips. */
#define SKIPPED 77

#define CHECK(claim)                                                                         \
	do {                                                                                 \
		if (!(claim)) {                                                              \
			fprintf(stderr, "%s:%d: not true: %s (errno: %s)\n", __FILE__, __LINE__, #claim, \
				strerror(errno));                                            \
			exit(EXIT_FAILURE);                                                  \
		}                                                                            \
	} while (0)

/* The call fails like this. */
#define FAILS(call, number)                     \
	do {                                    \
		errno = 0;                      \
		CHECK((call) == -1);            \
		CHECK(errno == (number));       \
	} while (0)

/* A child that has our memory, and waits. */
static inline pid_t start_target(void)
{
	pid_t parent = getpid(), child = fork();

	CHECK(child != -1);
	if (child == 0) {
		/* A failed program must not leave anybody behind, who would keep its output open. */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(EXIT_FAILURE);
	}
	return child;
}

static inline void end_target(pid_t child)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static inline int call_in(pid_t pid, unsigned long flags, struct sigcontext *uctx)
{
	return process_vm_exec(pid, uctx, PROCESS_VM_EXEC_SYSCALL | flags, NULL, NULL, PROCESS_VM_EXEC_SIZEMASK);
}

/* Executes a system call in the target, and returns what the kernel says. */
static inline long syscall_in(pid_t pid, long number, long first, long second, long third)
{
	struct sigcontext uctx;

	memset(&uctx, 0, sizeof(uctx));
	uctx.rax = (unsigned long)number;
	uctx.rdi = (unsigned long)first;
	uctx.rsi = (unsigned long)second;
	uctx.rdx = (unsigned long)third;
	CHECK(call_in(pid, 0, &uctx) == 0);
	return (long)uctx.rax;
}

/* The process that makes our calls in the target: it is neither of us, and has the target's memory. */
static inline int is_executor(long executor, pid_t target)
{
	const int KCMP_VM = 1;

	return executor > 0 && executor != getpid() && executor != target &&
	       syscall(SYS_kcmp, executor, target, KCMP_VM, 0, 0) == 0;
}

/* Ends the program if live processes cannot be attached to here. */
static inline void need_targets(void)
{
	struct sigcontext uctx;
	pid_t child = start_target();
	int result;

	memset(&uctx, 0, sizeof(uctx));
	uctx.rax = SYS_getpid;
	result = call_in(child, 0, &uctx);
	if (result == -1 && errno == EPERM) {
		printf("SKIP: attaching to a live process: %s\n", strerror(errno));
		end_target(child);
		exit(SKIPPED);
	}
	CHECK(result == 0);
	end_target(child);
}

static inline struct sigcontext context_at(const char *code)
{
	struct sigcontext uctx;

	memset(&uctx, 0, sizeof(uctx));
	uctx.rip = (unsigned long)code;
	uctx.cs = 0x33;
	return uctx;
}

static inline sigset_t set_of(int signal)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	return set;
}

static inline int run_in(pid_t pid, struct sigcontext *uctx, siginfo_t *info, int signal)
{
	sigset_t set = set_of(signal);

	return process_vm_exec(pid, uctx, 0, info, &set, PROCESS_VM_EXEC_SIZEMASK);
}

#endif
