/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Targets, and guest code to run in them. A target is a child that has a copy of this program's memory and waits, so
 * the program's own text, data and stack for guests are there at the same addresses.
 */
#ifndef GUESTS_H
#define GUESTS_H

#include "claims.h"

#include <linux/audit.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#define EXTENDED PROCESS_VM_EXEC_EXTENDED
#define SIZEMASK sizeof(uint64_t)
#define USER_CS 0x33
#define USER32_CS 0x23
#define USER_SS 0x2b
/* A number that no system call has. */
#define NR_OURS 7777
#define PAGE 4096UL
/* A user without rights. */
#define NOBODY 65534

/* Guest code: a label and what stands behind it. */
#define GUEST(name, text)           \
	extern const char name[];   \
	__asm__(".pushsection .text\n" #name ":\n" text "\n.popsection")

/* Guest code in which something ends the run: where that is. */
#define MARK(name) extern const char name[]

#define SET(signal) (1UL << ((signal) - 1))
/* What instructions of a guest can cause. */
#define FAULTS (SET(SIGSEGV) | SET(SIGBUS) | SET(SIGILL) | SET(SIGFPE) | SET(SIGTRAP))

struct guest {
	pid_t target;
	struct process_vm_exec_context context;
	siginfo_t info;
	uint64_t mask;
};

static char guest_stack[16 * PAGE] __attribute__((aligned(4096)));

/* top: NR_OURS(), again and again */
GUEST(call_for_ever, "1: mov $7777, %eax; syscall; jmp 1b");
GUEST(spin, "1: incq %rbx; pause; jmp 1b");

static inline long process_vm_exec(pid_t pid, void *uctx, unsigned long flags, void *info, const void *mask,
				   size_t size)
{
	return syscall(__NR_process_vm_exec, pid, uctx, flags, info, mask, size);
}

/* A process that is a copy of this one and waits. */
static inline pid_t start_target(void)
{
	pid_t parent = getpid(), child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(EXIT_FAILURE);
	}
	return child;
}

static inline void end_target(pid_t target)
{
	kill(target, SIGKILL);
	waitpid(target, NULL, 0);
}

static inline void set_registers(struct guest *guest, const char *code)
{
	memset(&guest->context, 0, sizeof(guest->context));
	guest->context.context.rip = (uintptr_t)code;
	guest->context.context.rsp = (uintptr_t)guest_stack + sizeof(guest_stack) - 256;
	guest->context.context.cs = USER_CS;
	guest->context.context.ss = USER_SS;
	guest->context.context.eflags = 0x202;
}

/* A guest that is about to run `code` in a target of its own. Its faults are reported. */
static inline struct guest new_guest(const char *code)
{
	struct guest guest = { .mask = FAULTS };

	set_registers(&guest, code);
	guest.target = start_target();
	return guest;
}

static inline struct sigcontext *regs(struct guest *guest)
{
	return &guest->context.context;
}

static inline long run_raw(struct guest *guest)
{
	return process_vm_exec(guest->target, &guest->context, EXTENDED, &guest->info, &guest->mask, SIZEMASK);
}

/* Runs; that it comes back well is part of the claim. Returns the signal. */
static inline int run(struct guest *guest)
{
	memset(&guest->info, 0, sizeof(guest->info));
	CHECK_EQ(run_raw(guest), 0);
	return guest->info.si_signo;
}

/* Runs until the guest makes a call, which has to be this one. */
static inline void run_to_call(struct guest *guest, long number)
{
	int signal = run(guest);

	if (signal != SIGSYS)
		fail("signal %d, code %d, address %p at rip %#llx, and no system call", signal, guest->info.si_code,
		     guest->info.si_addr, (unsigned long long)regs(guest)->rip);
	CHECK_EQ(guest->info.si_syscall, number);
}

/* System call mode. */
static inline long call_raw(pid_t target, struct sigcontext *uctx, long number, const long *arguments)
{
	memset(uctx, 0, sizeof(*uctx));
	uctx->rax = (unsigned long)number;
	uctx->rdi = (unsigned long)arguments[0];
	uctx->rsi = (unsigned long)arguments[1];
	uctx->rdx = (unsigned long)arguments[2];
	uctx->r10 = (unsigned long)arguments[3];
	uctx->r8 = (unsigned long)arguments[4];
	uctx->r9 = (unsigned long)arguments[5];
	return process_vm_exec(target, uctx, PROCESS_VM_EXEC_SYSCALL, NULL, NULL, SIZEMASK);
}

#define call_in(target, number, ...)                                                    \
	({                                                                              \
		struct sigcontext call_context;                                         \
		CHECK_EQ(call_raw(target, &call_context, number, (long[6]){ __VA_ARGS__ }), 0); \
		(long)call_context.rax;                                                 \
	})

/* The target's value of a variable of this program. */
static inline void read_target(pid_t target, void *variable, void *value, size_t size)
{
	struct iovec ours = { value, size }, theirs = { variable, size };

	CHECK_EQ(process_vm_readv(target, &ours, 1, &theirs, 1, 0), size);
}

static inline void write_target(pid_t target, void *variable, const void *value, size_t size)
{
	struct iovec ours = { (void *)value, size }, theirs = { variable, size };

	CHECK_EQ(process_vm_writev(target, &ours, 1, &theirs, 1, 0), size);
}

#define TARGETS(target, variable)                                               \
	({                                                                      \
		__typeof__(variable) targets_value;                             \
		read_target(target, &(variable), &targets_value, sizeof(variable)); \
		targets_value;                                                  \
	})

static inline void block(int signal)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, signal);
	CHECK_EQ(sigprocmask(SIG_BLOCK, &set, NULL), 0);
}

/* A child that sends `signal` to this thread group after `ms`. */
static inline pid_t signal_later(int signal, long ms)
{
	pid_t parent = getpid(), child = fork();

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		sleep_ms(ms);
		kill(parent, signal);
		_exit(EXIT_SUCCESS);
	}
	return child;
}

/* Runs `body` in a child, and returns how that ended. It must end soon. */
static inline int status_of(void (*body)(void *), void *argument)
{
	pid_t child = fork();
	int status;

	CHECK(child != -1);
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		body(argument);
		_exit(EXIT_SUCCESS);
	}
	if (!wait_for(child, &status, 10 * slowness()))
		fail("a child has not ended");
	return status;
}

static inline pthread_t start_thread(void *(*body)(void *), void *argument)
{
	pthread_t thread;

	CHECK_EQ(pthread_create(&thread, NULL, body, argument), 0);
	return thread;
}

/* Words that are shared by all processes that come from this one. */
static inline volatile uint64_t *shared_words(void)
{
	void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED);
	return page;
}

/* The guest that counts in a shared word, so that others see that it runs: its address is in rdi. */
GUEST(count_for_ever, "1: lock incq (%rdi); pause; jmp 1b");

/* Waits until the word is not `before`. */
static inline void wait_while(volatile uint64_t *word, uint64_t before)
{
	int64_t deadline = now_ns() + 5000000000LL * slowness();

	while (*word == before) {
		if (now_ns() > deadline)
			fail("nobody changes a word that is waited for: the guest does not run");
		sched_yield();
	}
}

static inline void wait_for_change(volatile uint64_t *word)
{
	wait_while(word, *word);
}

static inline void wait_until_set(volatile uint64_t *word)
{
	wait_while(word, 0);
}

#endif
